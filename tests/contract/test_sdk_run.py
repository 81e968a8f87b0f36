"""The laws of `BaseConnector.run()`, in memory and on the real broker and database.

Each law names the guarantee of `run()`'s docstring that it proves. A schedule of failures is
written as what fails and at which event; after each, no checkpoint may have run ahead of what
was acknowledged, and running again must complete the topic.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from verity_common.kafka import KafkaSettings, create_producer
from verity_sdk import (
    BaseConnector,
    Malformed,
    Misconfigured,
    RawEvent,
    Unavailable,
    format_utc,
    parse_utc,
)
from verity_sdk import run as module
from verity_sdk.batches import Limits

START = datetime(2026, 1, 1, tzinfo=UTC)
CONNECTOR_ID = "acme-1"

TABLES = {
    "two columns": (
        "CREATE TABLE connector_checkpoints "
        "(connector_id text PRIMARY KEY, last_ts timestamptz NOT NULL)"
    ),
    "more columns": (
        "CREATE TABLE connector_checkpoints (connector_id text PRIMARY KEY, "
        "last_ts timestamptz NOT NULL, cursor jsonb, version bigint NOT NULL DEFAULT 0, "
        "updated_at timestamptz NOT NULL DEFAULT now())"
    ),
}


def at(second: int) -> datetime:
    return START + timedelta(seconds=second)


# ── Worlds ───────────────────────────────────────────────────────────────────────────────────


class World(Protocol):
    """A Kafka and a database: what `run()` is handed, and how to see what it did."""

    platform: str
    producer: Any
    pool: Any

    async def published(self) -> list[dict[str, Any]]: ...

    async def checkpoint(self) -> datetime | None: ...


@dataclass
class MemoryWorld:
    """Acknowledges in a later turn of the loop, as a broker does."""

    platform: str = "acme"
    log: list[bytes] = field(default_factory=list)
    rows: dict[str, datetime] = field(default_factory=dict)

    @property
    def producer(self) -> Any:
        return self

    @property
    def pool(self) -> Any:
        return self

    async def send(self, *, topic: str, value: dict[str, Any]) -> asyncio.Future[None]:
        assert topic == f"verity.events.raw.{self.platform}"
        ack: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(self._acknowledge, json.dumps(value).encode(), ack)
        return ack

    def _acknowledge(self, record: bytes, ack: asyncio.Future[None]) -> None:
        self.log.append(record)
        if not ack.done():
            ack.set_result(None)

    async def fetchrow(self, _: str, connector_id: str) -> dict[str, Any] | None:
        last_ts = self.rows.get(connector_id)
        return None if last_ts is None else {"last_ts": last_ts}

    async def execute(self, _: str, connector_id: str, last_ts: datetime) -> None:
        self.rows[connector_id] = last_ts

    async def published(self) -> list[dict[str, Any]]:
        # A record that was handed over is published whether or not anybody still asks.
        await asyncio.sleep(0)
        return [json.loads(record) for record in self.log]

    async def checkpoint(self) -> datetime | None:
        return self.rows.get(CONNECTOR_ID)


@dataclass
class RealWorld:
    """A topic of one partition on the real broker, a table in the real database."""

    platform: str
    servers: str
    producer: Any
    pool: Any

    async def published(self) -> list[dict[str, Any]]:
        # Whatever the test abandoned has to arrive before it can be counted.
        await self.producer.flush()
        partition = TopicPartition(f"verity.events.raw.{self.platform}", 0)
        consumer = AIOKafkaConsumer(bootstrap_servers=self.servers, enable_auto_commit=False)
        await consumer.start()
        try:
            consumer.assign([partition])
            await consumer.seek_to_beginning(partition)
            end = (await consumer.end_offsets([partition]))[partition]
            values = []
            async with asyncio.timeout(30):
                while await consumer.position(partition) < end:
                    batches = await consumer.getmany(timeout_ms=1000)
                    values += [json.loads(r.value) for rs in batches.values() for r in rs]
            return values
        finally:
            await consumer.stop()

    async def checkpoint(self) -> datetime | None:
        statement = "SELECT last_ts FROM connector_checkpoints WHERE connector_id = $1"
        last_ts: datetime | None = await self.pool.fetchval(statement, CONNECTOR_ID)
        return last_ts


@asynccontextmanager
async def real_world(servers: str, dsn: str, table: str) -> AsyncIterator[RealWorld]:
    """A topic and a schema of their own: cheaper by far than a database for each schedule."""
    name = f"run_{secrets.token_hex(6)}"
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(f"verity.events.raw.{name}", 1, 1)])
    finally:
        await admin.close()
    async with (
        create_producer(KafkaSettings(bootstrap_servers=servers)) as producer,
        asyncpg.create_pool(
            dsn=dsn, min_size=1, max_size=1, server_settings={"search_path": name}
        ) as pool,
    ):
        await pool.execute(f"CREATE SCHEMA {name}")
        try:
            await pool.execute(table)
            yield RealWorld(name, servers, producer, pool)
        finally:
            await pool.execute(f"DROP SCHEMA {name} CASCADE")


@pytest.fixture(params=["memory", pytest.param("real", marks=pytest.mark.stack)])
async def world(request: pytest.FixtureRequest, place: tuple[str, str]) -> AsyncIterator[World]:
    if request.param == "memory":
        yield MemoryWorld()
        return
    async with real_world(*place, TABLES["two columns"]) as real:
        yield real


@pytest.fixture
def place(request: pytest.FixtureRequest) -> tuple[str, str] | None:
    """Broker and database for who needs them; the tests in memory start no stack."""
    if "memory" in request.node.callspec.id.split("-"):
        return None
    return request.getfixturevalue("bootstrap_servers"), request.getfixturevalue("dsn")


# ── The source, and what can go wrong ────────────────────────────────────────────────────────


class Source(BaseConnector):
    """A platform that filters strictly "after" and serves what it has in the given order."""

    def __init__(self, world: World, times: Sequence[int], producer: Any = None, pool: Any = None):
        super().__init__(
            {"connector_id": CONNECTOR_ID}, producer or world.producer, pool or world.pool
        )
        self.events = [
            RawEvent(world.platform, f"e{n}", at(second), "ann", "table", "SELECT", {"n": n})
            for n, second in enumerate(times)
        ]
        self.fails_at: int | None = None
        self.is_closed = False

    async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        self.is_closed = False
        try:
            for number, event in enumerate(self.events):
                if number == self.fails_at:
                    self.fails_at = None
                    raise Unavailable("the API is down")
                if event.occurred_at > since:
                    yield event
        finally:
            self.is_closed = True

    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        for grant in ():
            yield grant


class LawBrokenError(BaseException):
    """Seen within the pass; no Exception, which run() would take for a fault of the database."""


class Faulty:
    """A producer and a pool around those of a world, that fail once and watch every save.

    Attributes:
        send_at, lose_at, late_at, save_at: The number of the event (or save) whose send fails,
            whose record is lost, whose record arrives though its ack fails, whose save fails.
        hold_from: Acks from this event on never come; `is_holding` says when the first is held.
    """

    def __init__(self, world: World, **faults: int) -> None:
        self.world = world
        self.faults = faults
        self.sends = itertools.count()
        self.saves = itertools.count()
        self.saved: list[datetime] = []
        self.unacknowledged: list[datetime] = []
        self.is_holding = asyncio.Event()

    async def send(self, *, topic: str, value: dict[str, Any]) -> asyncio.Future[Any]:
        number = next(self.sends)
        occurred_at = parse_utc(value["occurred_at"])
        self.unacknowledged.append(occurred_at)
        loop = asyncio.get_running_loop()
        if number == self.faults.get("send_at"):
            raise OSError("the broker is gone")
        if number == self.faults.get("lose_at"):
            lost = loop.create_future()
            loop.call_soon(lost.set_exception, OSError("lost"))
            return lost
        inner = await self.world.producer.send(topic=topic, value=value)
        if number >= self.faults.get("hold_from", 1 << 30):
            self.is_holding.set()
            return loop.create_future()
        ack = loop.create_future()

        def arrived(_: Any) -> None:
            if ack.done():
                return
            if number == self.faults.get("late_at"):
                ack.set_exception(OSError("no answer"))
            else:
                self.unacknowledged.remove(occurred_at)
                ack.set_result(None)

        inner.add_done_callback(arrived)
        return ack

    async def fetchrow(self, statement: str, *arguments: Any) -> Any:
        return await self.world.pool.fetchrow(statement, *arguments)

    async def execute(self, statement: str, connector_id: str, last_ts: datetime) -> Any:
        if any(occurred_at <= last_ts for occurred_at in self.unacknowledged):
            raise LawBrokenError(f"guarantee 2: {last_ts} passes what is not acknowledged")
        if self.saved and last_ts <= self.saved[-1]:
            raise LawBrokenError(f"guarantee 4: {last_ts} is not after {self.saved[-1]}")
        if next(self.saves) == self.faults.get("save_at"):
            raise OSError("the database is gone")
        self.saved.append(last_ts)
        return await self.world.pool.execute(statement, connector_id, last_ts)


async def assert_complete(world: World, source: Source) -> None:
    """Nothing is lost, nothing is altered, and the checkpoint is the newest time."""
    published = await world.published()
    wanted = {
        event.event_id: {
            "platform": event.platform,
            "event_id": event.event_id,
            "occurred_at": format_utc(event.occurred_at),
            "principal_ref": event.principal_ref,
            "asset_ref": event.asset_ref,
            "operation": event.operation,
            "raw_payload": event.raw_payload,
        }
        for event in source.events
    }
    assert {value["event_id"]: value for value in published} == wanted
    assert await world.checkpoint() == max(event.occurred_at for event in source.events)


async def assert_resumable(world: World, source: Source) -> None:
    """What a next pass would not be asked for again is in the topic already."""
    checkpoint = await world.checkpoint()
    published = {value["event_id"] for value in await world.published()}
    for event in source.events:
        if checkpoint is not None and event.occurred_at <= checkpoint:
            assert event.event_id in published, f"{event.event_id} is lost"


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RUN_LIMITS", Limits(3, timedelta(seconds=60)))


ASCENDING = [1, 2, 2, 2, 3, 4, 4, 5, 6, 7, 7]
# Never older than the checkpoint within the pass: what may come after that, run() can't know.
DISORDERED = [1, 2, 5, 3, 4, 4, 6, 3, 7, 7, 5]
TIES = [1] * 11


# ── The laws ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("times", [ASCENDING, DISORDERED], ids=["ascending", "disordered"])
async def test_a_pass_publishes_everything_in_order_and_ends_at_the_newest_time(
    world: World, times: list[int]
) -> None:
    """Guarantees 1 and 5."""
    source = Source(world, times)
    await source.run()
    await assert_complete(world, source)
    assert [value["event_id"] for value in await world.published()] == [
        event.event_id for event in source.events
    ]
    assert source.is_closed


@pytest.mark.usefixtures("small_chunks")
async def test_a_second_pass_publishes_only_what_is_new(world: World) -> None:
    """Guarantee 5."""
    source = Source(world, ASCENDING)
    await source.run()
    source.events += Source(world, [*ASCENDING, 8, 9]).events[len(ASCENDING) :]
    await source.run()
    await assert_complete(world, source)
    assert len(await world.published()) == len(source.events)


@pytest.mark.usefixtures("small_chunks")
async def test_within_a_pass_it_rests_where_no_tie_can_come(world: World) -> None:
    """Guarantees 3 and 6: one save a chunk of three, strictly below the newest time."""
    faulty = Faulty(world)
    await Source(world, ASCENDING, faulty, faulty).run()
    #  1 2 2 | 2 3 4 | 4 5 6 | 7 7
    assert faulty.saved == [at(1), at(3), at(5), at(7)]


@pytest.mark.usefixtures("small_chunks")
async def test_once_the_order_is_broken_it_waits_for_the_end(world: World) -> None:
    """Guarantee 4."""
    faulty = Faulty(world)
    await Source(world, DISORDERED, faulty, faulty).run()
    #  1 2 5 | 3 4 4 | …
    assert faulty.saved == [at(2), at(7)]


@pytest.mark.usefixtures("small_chunks")
async def test_what_was_reached_but_not_written_is_given_up_with_the_order(world: World) -> None:
    """Guarantee 4: in one chunk with the break, even a time that had been left behind."""
    faulty = Faulty(world)
    source = Source(world, [5, 6, 3, 2, 6], faulty, faulty)
    source.fails_at = 3
    with pytest.raises(Unavailable):
        await source.run()
    assert faulty.saved == []
    await source.run()
    await assert_complete(world, source)


@pytest.mark.usefixtures("small_chunks")
async def test_it_never_goes_below_where_it_was_loaded(world: World) -> None:
    """Guarantee 4: a source that looks back yields older events; they are published."""

    class LookingBack(Source):
        def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
            return super().stream_audit_events(since - timedelta(seconds=3))

    await Source(world, [5]).run()
    faulty = Faulty(world)
    source = LookingBack(world, [3, 4, 5, 5, 5, 6, 7], faulty, faulty)
    await source.run()
    assert faulty.saved == [at(6), at(7)] or faulty.saved == [at(7)]
    await assert_complete(world, source)


FAULTS = [
    *({"send_at": n} for n in (0, 1, 3, 5, 10)),
    *({"lose_at": n} for n in (0, 2, 3, 4, 10)),
    *({"late_at": n} for n in (0, 2, 3, 10)),
    {"lose_at": 4, "send_at": 5},
]
SCHEDULES = [
    *((times, fault) for times in (ASCENDING, DISORDERED, TIES) for fault in FAULTS),
    *((ASCENDING, {"save_at": n}) for n in (0, 1, 3)),
    *((DISORDERED, {"save_at": n}) for n in (0, 1)),
    (TIES, {"save_at": 0}),
]


def schedule_id(value: Any) -> str:
    if isinstance(value, dict):
        return "-".join(f"{name}-{number}" for name, number in value.items())
    return {1: "ties", 2: "ascending", 5: "disordered"}[value[2] if value[1] > 1 else 1]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(("times", "fault"), SCHEDULES, ids=schedule_id)
async def test_after_a_failure_nothing_is_lost(
    world: World, times: list[int], fault: dict[str, int]
) -> None:
    """Guarantees 2 to 5, with one failure of Kafka or of the database."""
    faulty = Faulty(world, **fault)
    source = Source(world, times, faulty, faulty)
    with pytest.raises(Unavailable):
        await source.run()
    assert source.is_closed
    await assert_resumable(world, source)
    await Source(world, times).run()
    await assert_complete(world, source)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("number", range(len(ASCENDING)))
async def test_when_the_source_fails_nothing_is_lost(world: World, number: int) -> None:
    """What it yielded before is published, and the checkpoint follows as far as 3 allows."""
    faulty = Faulty(world)
    source = Source(world, ASCENDING, faulty, faulty)
    source.fails_at = number
    with pytest.raises(Unavailable, match="the API is down"):
        await source.run()
    assert len(await world.published()) == number
    assert all(saved < at(ASCENDING[number - 1]) for saved in faulty.saved)
    await assert_resumable(world, source)
    await Source(world, ASCENDING).run()
    await assert_complete(world, source)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("number", [0, 2, 3, 5, 10])
async def test_cancelled_between_send_and_acknowledgement_nothing_is_saved(
    world: World, number: int
) -> None:
    """Guarantee 2: the events are out, but nobody has said so."""
    faulty = Faulty(world, hold_from=number)
    source = Source(world, ASCENDING, faulty, faulty)
    running = asyncio.create_task(source.run())
    holding = asyncio.create_task(faulty.is_holding.wait())
    await asyncio.wait({running, holding}, return_when=asyncio.FIRST_COMPLETED)
    if not holding.done():
        holding.cancel()
        await running  # It ended too early, and says why.
    saved_before = list(faulty.saved)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert faulty.saved == saved_before
    assert source.is_closed
    await assert_resumable(world, source)
    await Source(world, ASCENDING).run()
    await assert_complete(world, source)


async def test_every_turn_of_the_loop_is_a_safe_place_to_be_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Guarantees 2 to 5, in memory: cancelled after 1, 2, 3, … turns until a pass gets through."""
    monkeypatch.setattr(module, "RUN_LIMITS", Limits(3, timedelta(seconds=60)))
    for turns in itertools.count():
        world = MemoryWorld()
        faulty = Faulty(world)
        source = Source(world, ASCENDING, faulty, faulty)
        running = asyncio.create_task(source.run())
        for _ in range(turns):
            await asyncio.sleep(0)
        got_through = running.done()
        running.cancel()
        await asyncio.wait({running})
        if not running.cancelled():
            await running
        await assert_resumable(world, source)
        await Source(world, ASCENDING).run()
        await assert_complete(world, source)
        if got_through:
            assert turns > 20
            return


@pytest.mark.stack
async def test_a_table_with_more_columns_works_as_well(bootstrap_servers: str, dsn: str) -> None:
    """The statements touch no column but the two of the specification."""
    async with real_world(bootstrap_servers, dsn, TABLES["more columns"]) as world:
        source = Source(world, [1, 2])
        await source.run()
        source.events += Source(world, [1, 2, 3]).events[2:]
        await source.run()
        await assert_complete(world, source)


@pytest.mark.stack
async def test_what_aiokafka_itself_raises_says_who_must_act(
    bootstrap_servers: str, dsn: str
) -> None:
    """A producer without a serializer, and a payload that no record can hold."""
    async with real_world(bootstrap_servers, dsn, TABLES["two columns"]) as world:
        async with AIOKafkaProducer(bootstrap_servers=bootstrap_servers) as bare:
            with pytest.raises(Misconfigured, match="value_serializer"):
                await Source(world, [1], producer=bare).run()
        source = Source(world, [1, 2, 3])
        source.events[2].raw_payload = {"x": "y" * 2_000_000}
        with pytest.raises(Malformed, match="'e2'"):
            await source.run()
        assert await world.checkpoint() == at(2)
        source.events[2].raw_payload = {"n": 2}
        await source.run()
        await assert_complete(world, source)


async def test_many_events_are_one_save_a_thousand(world: World) -> None:
    """Guarantee 6, with the limits as they are."""
    faulty = Faulty(world)
    source = Source(world, range(2500), faulty, faulty)
    await source.run()
    assert faulty.saved == [at(998), at(1998), at(2499)]
    await assert_complete(world, source)
