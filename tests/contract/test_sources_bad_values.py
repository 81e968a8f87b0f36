"""On the real broker, through the real relay: each fault costs its record, and comes once."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

import asyncpg
import orjson
import pytest
from contract.streams import new_name, stream_settings
from workers import committed

from verity_sdk.connector_base import BaseConnector, RawEvent
from verity_sdk.pages import Page, PagedConnector, Position
from verity_sdk.times import format_utc
from verity_stream.records import dead_topic, raw_topic
from verity_stream.settings import ConnectorOptions, ConnectorSpec
from verity_stream.status import State
from verity_stream.worker.runner import ConnectorRunner

pytestmark = pytest.mark.stack

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


class Plain(BaseConnector):
    """Plain, and as every plain connector asked again from its lookback."""

    async def stream_audit_events(self, since: datetime) -> AsyncIterator[Any]:
        for event in self.config["events"]:
            yield event

    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        for grant in ():
            yield grant


class Paged(PagedConnector):
    """Serves everything at every pass, as overlapping windows do."""

    lookback = timedelta(days=1)

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        events = self.config["events"]
        for start in range(0, len(events), 30):
            yield Page(events[start : start + 30], {"next": start})

    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        for grant in ():
            yield grant


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"in": value}
    return value


HIDDEN: Sequence[dict[str, Any]] = (
    {"event_id": None},
    {"event_id": ""},
    {"occurred_at": None},
    {"occurred_at": "yesterday"},
    {"principal_ref": None},
    {"asset_ref": 1.5},
    {"operation": b"READ"},
    {"platform": None},
    {"platform": "another"},
)
"""Without who, what, on what, when or whose: a dead letter."""
ALTERED: Sequence[dict[str, Any]] = (
    {"principal_ref": "a\ud800da"},
    {"event_id": "\udfff"},
    {"raw_payload": {"x": "\ud800"}},
    {"raw_payload": {"\ud800": 1}},
    {"raw_payload": {"x": math.nan, "y": None}},
    {"raw_payload": {"x": [-math.inf]}},
    {"raw_payload": {"x": 2**64}},
    {"raw_payload": {"x": b"\xff"}},
    {"raw_payload": {"x": object()}},
    {"raw_payload": nested(900)},
)
"""Wrong otherwise: out, and the original as well."""
KEPT: Sequence[dict[str, Any]] = (
    {"event_id": 17},
    {"principal_ref": UUID(int=5)},
    {"occurred_at": datetime(2026, 1, 1)},  # noqa: DTZ001 - naive: UTC, with a warning
    {"raw_payload": {1: None}},
)


def events_of(platform: str) -> list[RawEvent]:
    faults = [*HIDDEN, *ALTERED, *KEPT]
    places = sorted(random.Random(platform).sample(range(100), len(faults)))
    events = [
        RawEvent(
            platform, f"e{n}", BEGINNING + timedelta(seconds=n), "ada", "vault", "READ", {"n": n}
        )
        for n in range(100)
    ]
    for place, fault in zip(places, faults, strict=True):
        for name, value in fault.items():
            setattr(events[place], name, value)
    return events


async def live(spec: ConnectorSpec, bootstrap_servers: str, database: str) -> None:
    """A worker's runner, until the connector has finished two passes, and its end."""
    settings = stream_settings(bootstrap_servers, database={"dsn": database})
    runner = ConnectorRunner(settings, [spec])
    await runner.start()
    try:
        await runner.assign(frozenset(range(settings.checkpoint_partitions)))
        (status,) = runner.statuses.values()
        async with asyncio.timeout(60):
            while status.pass_count < 2:
                await runner.reconcile()
                assert status.state not in (State.BLOCKED, State.BACKING_OFF), status.last_error
                await asyncio.sleep(0.05)
    finally:
        await runner.stop()


@pytest.mark.parametrize("kind", [Plain, Paged])
async def test_a_hundred_events_with_each_fault_once(
    bootstrap_servers: str, database: str, kind: type[BaseConnector]
) -> None:
    platform = new_name()
    spec = ConnectorSpec(
        new_name(),
        type("Declared", (kind,), {"PLATFORM": platform}),
        platform,
        {"events": events_of(platform)},
        # Often, so that the passes that repeat everything come soon.
        ConnectorOptions(type="given", poll_every=0.1, lookback=timedelta(days=1)),
    )
    for _ in range(2):  # The second life knows only what the first left in Kafka.
        await live(spec, bootstrap_servers, database)
    raw = await committed(bootstrap_servers, raw_topic(platform))
    dead = await committed(bootstrap_servers, dead_topic(platform))
    ids = [dict(one.headers)["event_id"] for one in raw]
    assert len(ids) == len(set(ids)) == 100 - len(HIDDEN)
    assert all(orjson.loads(one.value)["platform"] == platform for one in raw)
    altered = {dict(one.headers)["event_id"] for one in raw if "altered" in dict(one.headers)}
    assert len(altered) == len(ALTERED)
    letters = [orjson.loads(one.value) for one in dead]
    assert len({one["sha256"] for one in letters}) == len(letters)
    originals = {
        dict(one.headers)["event_id"]
        for one, letter in zip(dead, letters, strict=True)
        if letter["reason"].startswith("published, but altered")
    }
    assert originals == altered
    assert len(letters) == len(ALTERED) + len(HIDDEN)


async def test_what_was_published_altered_is_recognised_where_the_log_of_ids_lacks_it(
    bootstrap_servers: str, database: str
) -> None:
    """As after an upgrade: the first start knows only what stands in the topics."""
    platform = new_name()
    events = events_of(platform)
    spec = ConnectorSpec(
        new_name(),
        type("Declared", (Paged,), {"PLATFORM": platform}),
        platform,
        {"events": events},
        ConnectorOptions(type="given", poll_every=0.1),
    )
    await live(spec, bootstrap_servers, database)
    raw = await committed(bootstrap_servers, raw_topic(platform))
    dead = await committed(bootstrap_servers, dead_topic(platform))
    start: dict[str, dict[int, int]] = {}
    for one in (*raw, *dead):
        start.setdefault(one.topic, {})[one.partition] = 0
    connection = await asyncpg.connect(database)
    try:
        await connection.execute(
            "UPDATE connector_checkpoints SET seen = $2 WHERE connector_id = $1",
            spec.connector_id,
            orjson.dumps(
                {"start": start, "newest_at": format_utc(BEGINNING + timedelta(seconds=100))},
                option=orjson.OPT_NON_STR_KEYS,
            ).decode(),
        )
    finally:
        await connection.close()
    # One of those that went out altered comes again, and now it does not say who did it.
    again = next(
        one for one in events if one.raw_payload == {"x": "\ud800"} and one.principal_ref == "ada"
    )
    events.append(replace(again, principal_ref=None))
    await live(spec, bootstrap_servers, database)
    assert len(await committed(bootstrap_servers, raw_topic(platform))) == len(raw)
    new = await committed(bootstrap_servers, dead_topic(platform))
    known = {dict(one.headers)["dead_id"] for one in dead}
    fresh = [one for one in new if dict(one.headers)["dead_id"] not in known]
    assert len(new) == len(dead) + 1
    assert [dict(one.headers)["event_id"] for one in fresh] == [again.event_id.encode()]
    assert "principal_ref is missing" in orjson.loads(fresh[0].value)["reason"]


CURSORS: Sequence[dict[str, Any]] = (
    {"next": "a\ud800da"},
    {"next": "\0"},
    {"\udfff": {"\0": ["\\u0000", "\\", '"', "é\U0001f600"]}},
    {"x": [2**64, math.inf, -math.inf], "in": nested(250)},
    {"next": "ordinary", "n": 2**53, "f": [1.5, None, True]},
)


class Pointing(PagedConnector):
    """Its cursor is what its source says, whatever that is; it moves once in a life."""

    given: ClassVar[list[Any]] = []
    has_moved = False

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        if self.has_moved:
            return
        self.has_moved = True
        self.given.append(position.cursor)
        number = 0 if position.cursor is None else position.cursor["number"] + 1
        if number < len(CURSORS):
            yield Page((), {"number": number, "of": CURSORS[number]})

    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        for grant in ():
            yield grant


async def test_a_cursor_comes_back_as_it_was_given_whatever_is_in_it(
    bootstrap_servers: str, database: str
) -> None:
    """Postgres refuses NUL and halves of surrogate pairs, JSON has no NaN: no reason to stop."""
    platform = new_name()
    connector = type("Declared", (Pointing,), {"PLATFORM": platform, "given": []})
    spec = ConnectorSpec(
        new_name(), connector, platform, {}, ConnectorOptions(type="given", poll_every=0.1)
    )
    for _ in range(len(CURSORS) + 1):  # Each life knows only what the one before stored.
        await live(spec, bootstrap_servers, database)
    wanted = [None, *({"number": number, "of": one} for number, one in enumerate(CURSORS))]
    assert connector.given == wanted
