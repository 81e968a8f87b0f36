"""Which view of a checkpoint wins at a start."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from verity_stream.checkpoints import Start, decide_start
from verity_stream.records import Checkpoint, Seen

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
    assert start == Start(
        stored(5, 10, cursor={"a": 1}, seen=SEEN), repair_database_from=4, pages_behind=1
    )


def test_a_database_far_behind_says_how_far() -> None:
    assert decide_start(stored(2), published(40)).pages_behind == 38


def test_a_new_row_beside_an_old_topic_follows_the_topic() -> None:
    start = decide_start(stored(0), published(7, 10))
    assert (start.checkpoint.version, start.repair_database_from) == (7, 0)


def test_an_edit_while_the_connector_stood_still_is_published() -> None:
    assert decide_start(stored(6, -50), published(5)) == Start(stored(6, -50), publish=True)


@pytest.mark.parametrize("edited", [stored(5, -50), stored(5, cursor=None), stored(5, 99)])
def test_an_edit_that_took_the_version_of_a_page_in_flight_wins(edited: Checkpoint) -> None:
    assert decide_start(edited, published(5, cursor={"a": 1})) == Start(edited, publish=True)


def test_a_topic_without_the_record_gets_it_again() -> None:
    assert decide_start(stored(5), None) == Start(stored(5), publish=True)
