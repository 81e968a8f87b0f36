"""Which view of a checkpoint wins at a start."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from verity_stream.records import Checkpoint, Seen
from verity_stream.relay.start import Start, decide_start, lifted

AT = datetime(2026, 1, 1, tzinfo=UTC)
SEEN = Seen(3, 7)


def stored(version: int, seconds: int = 0, **fields: object) -> Checkpoint:
    return Checkpoint("c", version, 9, AT + timedelta(seconds=seconds), **fields)  # type: ignore[arg-type]


def published(version: int, seconds: int = 0, **fields: object) -> Checkpoint:
    return replace(stored(version, seconds, **fields), epoch=8)


def test_a_first_start_has_nothing_to_repair() -> None:
    assert decide_start(stored(0), None) == Start(stored(0))


def test_equal_views_need_nothing_and_keep_the_new_epoch() -> None:
    start = decide_start(stored(5, seen=SEEN), published(5, seen=SEEN))
    assert start == Start(stored(5, seen=SEEN))
    assert start.checkpoint.epoch == 9


def test_a_crash_between_commit_and_persist_is_repaired_from_the_topic() -> None:
    start = decide_start(stored(4), published(5, 10, cursor={"a": 1}, seen=SEEN))
    assert start == Start(stored(5, 10, cursor={"a": 1}, seen=SEEN))


def test_a_new_row_beside_an_old_topic_follows_the_topic() -> None:
    assert decide_start(stored(0), published(7, 10)) == Start(stored(7, 10))


def test_an_edit_while_the_connector_stood_still_is_published() -> None:
    assert decide_start(stored(6, -50), published(5)) == Start(stored(6, -50), publish=True)


@pytest.mark.parametrize("edited", [stored(5, -50), stored(5, cursor=None), stored(5, 99)])
def test_an_edit_that_took_the_version_of_a_page_in_flight_wins(edited: Checkpoint) -> None:
    assert decide_start(edited, published(5, cursor={"a": 1})) == Start(edited, publish=True)


@pytest.mark.parametrize(
    "fields",
    [{"complete_through": AT}, {"seen": None}, {"seen": Seen(3, 8)}, {"cursor": {"a": 1}}],
)
def test_whatever_differs_at_one_version_is_published_again(fields: dict[str, Any]) -> None:
    """An edit to the very time that the page in flight had leaves no other trace than these."""
    edited = stored(5, **{"seen": SEEN, **fields})
    assert decide_start(edited, published(5, seen=SEEN)) == Start(edited, publish=True)


@pytest.mark.parametrize("version", [1, 5])
def test_a_topic_without_the_record_gets_it_again(version: int) -> None:
    assert decide_start(stored(version), None) == Start(stored(version), publish=True)


# An edit of a row that is behind the topic


def test_an_edit_of_a_restored_row_wins_at_the_topics_version() -> None:
    edited = stored(4, -50)
    at_topics_version = lifted(edited, published(40, cursor={"a": 1}), 3)
    assert at_topics_version == stored(40, -50)
    start = decide_start(at_topics_version, published(40, cursor={"a": 1}))
    assert start == Start(stored(40, -50), publish=True), "as the version above both"


def test_a_restored_row_without_an_edit_stays_behind() -> None:
    assert lifted(stored(3), published(40), 3) == stored(3)
    assert lifted(stored(0), published(40), 0) == stored(0)


def test_an_edit_that_is_ahead_of_the_topic_keeps_its_version() -> None:
    assert lifted(stored(6, -50), published(5), 5) == stored(6, -50)
    assert lifted(stored(6, -50), None, 5) == stored(6, -50)


def test_an_edit_that_was_published_before_a_crash_is_not_published_again() -> None:
    """Its version is one above the edit's; only the row does not know yet."""
    start = decide_start(lifted(stored(6, -50), published(7, -50), 5), published(7, -50))
    assert start == Start(stored(7, -50))
