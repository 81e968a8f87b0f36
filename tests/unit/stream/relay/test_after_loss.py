"""Which position holds when the topic lacks what was published to it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from verity_stream.records import Checkpoint, Seen
from verity_stream.relay.start import after_loss, decide_start

AT = datetime(2026, 1, 1, tzinfo=UTC)
STORED = Checkpoint("c", 40, 9, AT + timedelta(hours=1), {"n": 40}, None, Seen(30, 9))
PUBLISHED = Checkpoint("c", 7, 8, AT, {"n": 7}, None, Seen(3, 7))


def test_without_any_record_only_postgres_knows_a_position() -> None:
    assert after_loss(STORED, None, 40) == STORED
    assert decide_start(STORED, None).publish


def test_a_topic_that_lost_its_end_wins_at_its_last_record() -> None:
    """Events may be lost with it; those that are left are recognised by their ids."""
    held = after_loss(STORED, PUBLISHED, 40)
    assert held == replace(PUBLISHED, version=40, epoch=9)
    start = decide_start(held, PUBLISHED)
    assert start.publish, "as the next version, so that versions ascend"
    assert start.checkpoint.version == held.version, "Postgres is not behind"


def test_an_edit_came_later_and_wins() -> None:
    edited = replace(STORED, version=41, last_ts=AT - timedelta(hours=5), cursor=None, seen=None)
    assert after_loss(edited, PUBLISHED, 40) == edited
    assert after_loss(edited, None, 40) == edited
