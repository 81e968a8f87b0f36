"""From when on a connector's events are collected: never a claim too many."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from faults.memory import CONNECTOR, NOW, PLATFORM, Effect, Platform, Script, event
from faults.test_relay import World

from verity_sdk.batches import Limits
from verity_sdk.completeness import Completeness, completeness
from verity_sdk.pages import Page, PagedConnector, Position
from verity_sdk.position import FIRST_SINCE
from verity_sdk.times import format_utc
from verity_stream.records import CHECKPOINTS_TOPIC, GAPS_TOPIC, Checkpoint
from verity_stream.relay.sources import PagedSource
from verity_stream.relay.start import beginning, rewound

AT = datetime(2026, 6, 1, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)


class Hourly(PagedConnector):
    """An event an hour, as far back as it is asked for; complete up to now."""

    PLATFORM = PLATFORM
    served_from = NOW - 240 * HOUR

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        at = max(position.since, self.served_from)
        while at < NOW:
            number = (NOW - at) // HOUR
            yield Page([event(number, 0, occurred_at=at)], {"at": format_utc(at)}, at)
            at += HOUR
        yield Page((), {"at": format_utc(at)}, NOW)

    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        return
        yield


class HourlyWorld(World):
    """The real adapter over it. It is told to begin three days ago."""

    def source(self, script: Script) -> Any:
        self.platform.next_pass()
        connector = Hourly({"connector_id": CONNECTOR}, None, None)
        return PagedSource(connector, Limits(7, HOUR), lambda: NOW)

    def rewind(self, to: datetime) -> None:
        row = self.store.rows[CONNECTOR]
        self.store.rows[CONNECTOR] = rewound(row, self.checkpoints(), to=to, cursor=None)

    def answer(self, since: datetime, until: datetime) -> Completeness:
        """As `verity complete` has it of the topics as they stand."""
        return completeness(
            [orjson.loads(one.value or b"") for one in self.broker.committed(CHECKPOINTS_TOPIC)],
            [orjson.loads(one.value or b"") for one in self.broker.committed(GAPS_TOPIC)],
            platform=PLATFORM,
            since=since,
            until=until,
        ).completeness


async def test_what_a_rewind_asks_for_is_complete_once_it_was_read_and_not_before() -> None:
    world = HourlyWorld("cursor", Platform([[]]))
    world.store.rows[CONNECTOR] = Checkpoint(CONNECTOR, 0, 0, NOW - 72 * HOUR)
    await world.run_until_done()
    early, late = (NOW - 100 * HOUR, NOW - 90 * HOUR), (NOW - 70 * HOUR, NOW - 60 * HOUR)
    across = (early[0], late[1])
    assert world.answer(*early) is world.answer(*across) is Completeness.NOT_COLLECTED
    assert world.answer(*late) is Completeness.COMPLETE
    world.rewind(NOW - 120 * HOUR)
    # Nobody has asked for it yet; what was complete still is.
    assert world.answer(*early) is Completeness.NOT_COLLECTED
    assert world.answer(*late) is Completeness.COMPLETE
    answers = []

    async def look(effect: Effect) -> None:
        if (effect.name, effect.when) == ("persist", "after"):
            answers.append(tuple(world.answer(*one) for one in (early, across, late)))

    await world.run_until_done(Script(look))
    assert answers[0] == (Completeness.NOT_YET,) * 3, "it is all read again"
    assert answers[-1] == (Completeness.COMPLETE,) * 3
    for before, after in itertools.pairwise(answers):
        for one, other in zip(before, after, strict=True):
            assert one is other or other is Completeness.COMPLETE, "it went back"
    (*_, last) = world.checkpoints()
    assert last.collected_from == NOW - 120 * HOUR
    assert world.answer(NOW - 121 * HOUR, late[1]) is Completeness.NOT_COLLECTED
    # A rewind to a later time takes nothing back.
    world.rewind(NOW - 10 * HOUR)
    await world.run_until_done()
    assert world.checkpoints()[-1].collected_from == NOW - 120 * HOUR


async def test_an_edit_of_a_row_from_a_backup_forgets_no_beginning() -> None:
    """The backup knows a later one, for it is older than the oldest event that was published."""
    world = World("cursor", Platform([[event(5, 50)], [event(1, 10)]]))
    await world.run_until_done()
    began_at = world.checkpoints()[-1].collected_from
    assert began_at == event(1, 10).occurred_at
    row = world.store.rows[CONNECTOR]
    world.store.rows[CONNECTOR] = replace(row, version=1, collected_from=NOW)
    world.store.published_versions[CONNECTOR] = 1
    world.store.edit(CONNECTOR, event(9, 90).occurred_at)
    world.platform.passes = 0
    await world.run_until_done()
    assert world.checkpoints()[-1].collected_from == began_at


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
        (1, AT - 3 * DAY, None, 30 * DAY, AT - 30 * DAY),
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
    # Its first start was told to begin later, and someone asks for what came before.
    world = World("cursor")
    monkeypatch.setattr(world.spec.cls, "retention", DAY, raising=False)
    world.store.rows[CONNECTOR] = Checkpoint(CONNECTOR, 0, 0, NOW - DAY / 4)
    world.platform.deliveries = [[event(1, 0, occurred_at=NOW)]]
    await world.run_until_done()
    assert {one.collected_from for one in world.checkpoints()} == {NOW - DAY / 4}
    world.store.edit(CONNECTOR, NOW - DAY / 2)
    world.platform.passes = 0
    await world.run_until_done()
    assert world.checkpoints()[-1].collected_from == NOW - DAY / 2
