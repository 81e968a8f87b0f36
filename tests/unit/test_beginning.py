"""From when on a connector's events are collected: never a claim too many."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from faults.memory import CONNECTOR, NOW, Platform, event
from faults.test_relay import World

from verity_sdk.connector_base import FIRST_SINCE
from verity_stream.checkpoints import beginning
from verity_stream.records import Checkpoint

AT = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("version", "last_ts", "known", "retention", "expected"),
    [
        # The first start.
        (0, FIRST_SINCE, None, 30 * DAY, AT - 30 * DAY),
        (0, FIRST_SINCE, None, None, AT),
        (0, FIRST_SINCE, None, timedelta.max, FIRST_SINCE),
        (0, AT - 3 * DAY, None, 30 * DAY, AT - 3 * DAY),
        (0, AT - 3 * DAY, None, None, AT - 3 * DAY),
        # What an older version wrote: the first start was before now.
        (7, AT - 3 * DAY, None, 30 * DAY, AT - 30 * DAY),
        (7, AT - 3 * DAY, None, None, AT - 3 * DAY),
        (7, AT + 3 * DAY, None, None, AT),
        # A later start, and an edit.
        (7, AT - 3 * DAY, AT - 90 * DAY, 30 * DAY, AT - 90 * DAY),
        (7, AT - 20 * DAY, AT - 9 * DAY, 30 * DAY, AT - 20 * DAY),
        (7, AT - 60 * DAY, AT - 9 * DAY, 30 * DAY, AT - 30 * DAY),
        (7, AT - 60 * DAY, AT - 9 * DAY, None, AT - 60 * DAY),
        (7, AT - 3 * DAY, AT - 9 * DAY, None, AT - 9 * DAY),
        (7, FIRST_SINCE, AT - 9 * DAY, None, AT - 9 * DAY),
    ],
)
def test_the_beginning(
    version: int,
    last_ts: datetime,
    known: datetime | None,
    retention: timedelta | None,
    expected: datetime,
) -> None:
    checkpoint = Checkpoint(CONNECTOR, version, 1, last_ts, collected_from=known)
    assert beginning(checkpoint, retention, AT) == expected


async def test_the_oldest_event_published_tells_where_nobody_declares_a_retention() -> None:
    """Also where a source hands out the newest first."""
    world = World("cursor", Platform([[event(5, 50), event(6, 60)], [event(1, 10)]]))
    await world.run_until_done()
    first, *_, last = world.checkpoints()
    assert (first.collected_from, last.collected_from) == (
        event(5, 50).occurred_at,
        event(1, 10).occurred_at,
    )
    assert world.store.rows[CONNECTOR].collected_from == last.collected_from


async def test_with_a_retention_it_is_written_once_and_a_rewind_moves_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World("cursor")
    monkeypatch.setattr(world.spec.cls, "retention", DAY, raising=False)
    await world.run_until_done()
    assert {one.collected_from for one in world.checkpoints()} == {NOW - DAY}
    # The first start was less than its retention ago, and someone asks for what came later.
    row = world.store.rows[CONNECTOR]
    world.store.rows[CONNECTOR] = replace(row, collected_from=NOW)
    world.store.edit(CONNECTOR, NOW - DAY / 2)
    world.platform.passes = 0
    await world.run_until_done()
    assert world.checkpoints()[-1].collected_from == NOW - DAY / 2
