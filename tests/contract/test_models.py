"""The simulator's models of Kafka and Postgres, held against the real servers.

One suite: every case runs on the model, on the simulator's loop, and on a real server, with the
same assertions. The numbers are those of the rules of Kafka that the simulator relies on:

1. starting fences · 2. decide, answer, mark · 3. old epochs · 4. time-outs · 5. one transaction
after the other · 6. the last stable offset · 7. markers take offsets · 8. effects outlive their
client · 9. batches that are too large · 10. compaction, retention, topics made anew · 11. epochs
and leaders · 12. groups.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from pydantic import SecretStr
from simulation import kafka as model
from simulation.group import Group, Member
from simulation.loop import SimLoop
from simulation.postgres import Pool, Postgres
from simulation.wire import Wire
from stack_fixtures import StackFactory, _execute, _run, with_database

from verity_common.config import DatabaseSettings
from verity_sdk.errors import Misconfigured, Unavailable
from verity_stream.dev.stack import Stack
from verity_stream.postgres.checkpoints import Persisted, PostgresCheckpoints
from verity_stream.postgres.controls import Controls
from verity_stream.postgres.pool import create_pool, migrate
from verity_stream.postgres.reports import Reports
from verity_stream.records import Seen, SnapshotResult
from verity_stream.relay.start import rewound
from verity_stream.status import State, Status

SECONDS = 60.0
"""How long a case waits for what must come."""

CASE_SECONDS = 400.0
"""Some start brokers, or wait for what a broker does by itself, on machines that are busy."""
pytestmark = pytest.mark.timeout(CASE_SECONDS + 60)

Case = Callable[["Side"], Coroutine[Any, Any, None]]


class Side:
    """One of both: where clients come from, and what befalls their server."""

    is_model = False

    def run(self, case: Case) -> None:
        """Run a case to its end."""
        asyncio.run(asyncio.wait_for(case(self), CASE_SECONDS))

    def new_producer(self, **options: Any) -> Any:
        """A producer, not started."""
        raise NotImplementedError

    def new_consumer(self, **options: Any) -> Any:
        """A consumer without a group, not started."""
        raise NotImplementedError

    def new_admin(self) -> Any:
        """An admin client, not started."""
        raise NotImplementedError

    async def new_pool(self) -> Any:
        """A pool of connections to a database of the case's own, migrated."""
        raise NotImplementedError

    async def new_member(self, topic: str, group: str, name: str) -> AMember:
        """A member of a consumer group, whose sessions last 6 s."""
        raise NotImplementedError

    async def compact(self, topic: str) -> None:
        """See to it that a topic is compacted soon."""

    async def broker_away(self, seconds: float) -> None:
        """Take the broker away, and let it come back after so long."""
        raise NotImplementedError

    def unreachable(self) -> Side:
        """The same with servers that are not there."""
        raise NotImplementedError

    # What both have in common

    @asynccontextmanager
    async def producer(self, name: str | None, **options: Any) -> AsyncIterator[Any]:
        """A started producer; without a name it is idempotent only."""
        if name is None:
            options["enable_idempotence"] = True
        else:
            options["transactional_id"] = name
        one = self.new_producer(**options)
        await one.start()
        try:
            yield one
        finally:
            await bounded(one.stop())

    @asynccontextmanager
    async def consumer(
        self, level: str = "read_committed", reset: str = "earliest"
    ) -> AsyncIterator[Any]:
        """A started consumer."""
        one = self.new_consumer(
            isolation_level=level,
            auto_offset_reset=reset,
            enable_auto_commit=False,
            request_timeout_ms=3_000,
        )
        await one.start()
        try:
            yield one
        finally:
            await asyncio.sleep(0)  # aiokafka's stop() fails where nothing was awaited.
            await one.stop()

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[Any]:
        """A started admin client."""
        one = self.new_admin()
        await one.start()
        try:
            yield one
        finally:
            await one.close()

    async def topic(self, partitions: int = 1, **configs: str) -> str:
        """A topic of the case's own."""
        name = f"t{secrets.token_hex(4)}"
        await self.create(name, partitions, configs)
        return name

    async def create(self, name: str, partitions: int, configs: Any = None) -> None:
        """Create a topic, and wait until it is whole."""
        async with self.admin() as admin:
            made = await admin.create_topics(
                [NewTopic(name, partitions, 1, topic_configs=dict(configs or {}))]
            )
            assert [error[1] for error in made.topic_errors] == [0]

            async def is_whole() -> bool:
                described = {one["topic"]: one for one in await admin.describe_topics()}
                found = described.get(name, {}).get("partitions", [])
                return len(found) == partitions and all(
                    one["error_code"] == 0 and one["leader"] >= 0 for one in found
                )

            await eventually(is_whole)

    async def ends(self, topic: str, partition: int = 0) -> tuple[int, int, int]:
        """First offset, last stable offset, high watermark."""
        place = TopicPartition(topic, partition)
        found = []
        for level in ("read_committed", "read_uncommitted"):
            async with self.consumer(level) as consumer:
                consumer.assign([place])
                found.append((await consumer.end_offsets([place]))[place])
                start = (await consumer.beginning_offsets([place]))[place]
        return start, *found

    async def read(
        self, topic: str, level: str = "read_committed", partition: int = 0, at: int | None = None
    ) -> list[tuple[int, bytes]]:
        """Offsets and values, up to the end that this level sees."""
        place = TopicPartition(topic, partition)
        async with self.consumer(level) as consumer:
            consumer.assign([place])
            if at is None:
                await consumer.seek_to_beginning(place)
            else:
                consumer.seek(place, at)
            end = (await consumer.end_offsets([place]))[place]
            found = []
            deadline = now() + SECONDS
            while await consumer.position(place) < end:
                assert now() < deadline, "the end is never reached"
                batches = await consumer.getmany(place, timeout_ms=200)
                found += [one for records in batches.values() for one in records]
        return [(one.offset, one.value) for one in found]


def now() -> float:
    """The loop's time, in seconds."""
    return asyncio.get_running_loop().time()


async def eventually(
    condition: Callable[[], Awaitable[bool]], seconds: float = SECONDS, seen: object = None
) -> None:
    """Wait until something is so; `seen` is shown where it never is."""
    deadline = now() + seconds
    while not await condition():
        assert now() < deadline, f"it never came: {seen}"
        await asyncio.sleep(0)


async def bounded(step: Awaitable[Any], seconds: float = 5) -> None:
    """A step of cleaning up."""
    try:
        await asyncio.wait_for(step, seconds)
    except (TimeoutError, kafka_errors.KafkaError, AssertionError):
        pass  # What a case leaves behind may be beyond help.


class AMember:
    """A member of a consumer group: what it has got, and None from when a rebalance begins.

    Attributes:
        history: All that it had, in order.
    """

    def __init__(self) -> None:
        self.owned: frozenset[int] | None = None
        self.history: list[frozenset[int]] = []

    def started(self) -> None:
        """A rebalance begins."""
        self.owned = None

    def assigned(self, partitions: frozenset[int]) -> None:
        """It is over."""
        self.owned = partitions
        self.history.append(partitions)

    async def leave(self) -> None:
        """Go, and say so."""

    async def fall_silent(self) -> None:
        """Go on without a heartbeat, as whoever is frozen."""


class Model(Side):
    """The models, on the simulator's loop."""

    is_model = True

    def __init__(self, seed: int = 0) -> None:
        self.loop = SimLoop(Random(f"{seed}:schedule"), "random", step_seconds=0.0001)
        self.wire = Wire(self.loop, Random(f"{seed}:kafka"), "kafka", 0.01)
        self.committed: list[model.Txn] = []
        self.groups: dict[str, Group] = {}
        self.rng = Random(f"{seed}:group")
        self.kafka = model.Kafka(self.wire, self.committed.append)
        self.postgres = Postgres(Wire(self.loop, Random(f"{seed}:postgres"), "postgres", 0.01))

    def run(self, case: Case) -> None:
        errors: list[Any] = []
        self.loop.set_exception_handler(lambda _, context: errors.append(context))
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(asyncio.wait_for(case(self), 600))
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()
        assert not errors

    def new_producer(self, **options: Any) -> Any:
        return model.Producer(self.kafka, **options)

    def new_consumer(self, **options: Any) -> Any:
        return model.Consumer(self.kafka, **options)

    def new_admin(self) -> Any:
        return model.Admin(self.kafka)

    async def new_pool(self) -> Any:
        return Pool(self.postgres, command_timeout=2.0)

    async def new_member(self, topic: str, group: str, name: str) -> AMember:
        count = len(self.kafka.topics[topic].logs)
        coordinator = self.groups.setdefault(group, Group(self.wire, self.rng, count, 6.0))
        loop = self.loop

        class Modelled(AMember):
            def __init__(self) -> None:
                super().__init__()
                self.member = Member(coordinator, name, self)  # type: ignore[arg-type]
                self.running = loop.spawn(name, self.member.run())

            rebalance_started = AMember.started

            async def revoked(self) -> None:
                """What it has is not touched."""

            async def leave(self) -> None:
                self.running.cancel()
                await self.member.leave()

            async def fall_silent(self) -> None:
                loop.freeze(name)

        return Modelled()

    async def compact(self, topic: str) -> None:
        self.kafka.compact(topic)

    async def broker_away(self, seconds: float) -> None:
        self.wire.away_until = now() + seconds

    def unreachable(self) -> Side:
        for wire in (self.kafka.wire, self.postgres.wire):
            wire.away_until, wire.refuses = float("inf"), True
        return self


class Real(Side):
    """The servers."""

    stack: Stack | None = None

    def __init__(self, bootstrap_servers: str, dsn: str) -> None:
        self._options = {"bootstrap_servers": bootstrap_servers}
        self._dsn = dsn
        self._is_there = True

    def new_producer(self, **options: Any) -> Any:
        return AIOKafkaProducer(**self._options, **options)

    def new_consumer(self, **options: Any) -> Any:
        return AIOKafkaConsumer(**self._options, fetch_max_wait_ms=50, **options)

    def new_admin(self) -> Any:
        return AIOKafkaAdminClient(**self._options)

    async def new_pool(self) -> Any:
        pool = await create_pool(
            DatabaseSettings(
                dsn=SecretStr(self._dsn),
                command_timeout_seconds=2.0,
                pool_size_min=int(self._is_there),
            )
        )
        if self._is_there:
            await migrate(pool)
        return pool

    async def new_member(self, topic: str, group: str, name: str) -> AMember:
        consumer = AIOKafkaConsumer(
            **self._options,
            group_id=group,
            session_timeout_ms=6_000,
            heartbeat_interval_ms=500,
            metadata_max_age_ms=1_000,
        )

        class Live(AMember, ConsumerRebalanceListener):  # type: ignore[misc]
            def on_partitions_revoked(self, revoked: Any) -> None:
                self.started()

            def on_partitions_assigned(self, assigned: Any) -> None:
                self.assigned(frozenset(place.partition for place in assigned))

            async def leave(self) -> None:
                await consumer.stop()

            async def fall_silent(self) -> None:
                consumer._coordinator._coordination_task.cancel()
                task = consumer._coordinator._heartbeat_task
                if task is not None:
                    task.cancel()

        member = Live()
        consumer.subscribe([topic], listener=member)
        await consumer.start()
        return member

    async def broker_away(self, seconds: float) -> None:
        assert self.stack is not None
        kafka = self.stack.kafka
        kafka.kill()

        async def bring_back() -> None:
            await asyncio.sleep(seconds)
            await asyncio.to_thread(kafka.start)

        self.coming_back = asyncio.create_task(bring_back())

    def unreachable(self) -> Side:
        there = Real("127.0.0.1:1", "postgresql://verity@127.0.0.1:1/verity")
        there._is_there = False
        return there


@pytest.fixture(params=["model", pytest.param("real", marks=pytest.mark.stack)])
def side(request: pytest.FixtureRequest) -> Side:
    """Model and server, one after the other."""
    if request.param == "model":
        return Model()
    return Real(
        request.getfixturevalue("bootstrap_servers"), request.getfixturevalue("empty_database")
    )


@pytest.fixture
def empty_database(dsn: str) -> Iterator[str]:
    """A database of this test's own; made without the test's event loop."""
    name = f"test_{secrets.token_hex(6)}"
    _run(_execute(dsn, f'CREATE DATABASE "{name}"'))
    yield with_database(dsn, name)
    _run(_execute(dsn, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))


@pytest.fixture(params=["model", pytest.param("real", marks=pytest.mark.stack)])
def own_side(request: pytest.FixtureRequest, make_stack: StackFactory) -> Side:
    """The same with servers of the test's own: to be taken away, or with settings."""
    if request.param == "model":
        return Model()
    # A broker looks for what is to be compacted every 15 s, and no topic can say otherwise.
    stack = make_stack(kafka_settings={"log.cleaner.backoff.ms": "200"})
    address = stack.up(environ={})
    side = Real(address.bootstrap_servers, address.dsn)
    side.stack = stack
    return side


def on_both(case: Case) -> Callable[[Side], None]:
    """A case becomes a test of both sides."""

    def test(side: Side) -> None:
        side.run(case)

    test.__name__, test.__doc__, test.__module__ = case.__name__, case.__doc__, case.__module__
    assert inspect.iscoroutinefunction(case)
    return test


async def put(
    producer: Any, topic: str, *values: bytes, partition: int = 0, key: bytes | None = b"k"
) -> int:
    """A batch of these; returns its first offset."""
    batch = producer.create_batch()
    for value in values:
        assert batch.append(timestamp=None, key=key, value=value, headers=[]) is not None
    batch.close()
    return int((await (await producer.send_batch(batch, topic, partition=partition))).offset)


async def committed(producer: Any, topic: str, *values: bytes, partition: int = 0) -> int:
    """The same in a transaction of its own."""
    await producer.begin_transaction()
    offset = await put(producer, topic, *values, partition=partition)
    await producer.commit_transaction()
    return offset


async def is_stable(side: Side, topic: str, end: int) -> bool:
    """Whether all is marked up to an offset."""
    return (await side.ends(topic))[1] >= end


# 1. Starting fences


@on_both
async def test_a_start_aborts_what_the_older_producer_left_open(side: Side) -> None:
    topic, name = await side.topic(), secrets.token_hex(4)
    async with side.producer(name) as older:
        await older.begin_transaction()
        await put(older, topic, b"left open")
        async with side.producer(name) as newer:
            # Its start waited for the markers: nothing is open any more.
            assert await side.ends(topic) == (0, 2, 2)
            assert await committed(newer, topic, b"new") == 2
    await eventually(lambda: is_stable(side, topic, 4))
    assert await side.read(topic) == [(2, b"new")]
    assert await side.read(topic, "read_uncommitted") == [(0, b"left open"), (2, b"new")]


@on_both
async def test_what_was_committed_is_not_undone_by_a_start(side: Side) -> None:
    topic, name = await side.topic(), secrets.token_hex(4)
    async with side.producer(name) as older:
        await committed(older, topic, b"done")
        async with side.producer(name):
            assert await side.read(topic) == [(0, b"done")]


# 3. Old epochs


@on_both
async def test_a_fenced_producer_can_do_nothing(side: Side) -> None:
    topic, name = await side.topic(2), secrets.token_hex(4)
    async with side.producer(name) as older:
        await committed(older, topic, b"before")
        async with side.producer(name):
            await older.begin_transaction()  # Nobody is asked.
            with pytest.raises(kafka_errors.ProducerFenced):
                await put(older, topic, b"after")
            # And from here on its own state forbids it.
            with pytest.raises(AssertionError):
                await older.commit_transaction()
            with pytest.raises(AssertionError):
                await older.abort_transaction()
            with pytest.raises(AssertionError):
                await older.begin_transaction()
            with pytest.raises(kafka_errors.IllegalOperation):
                await put(older, topic, b"after")
    assert await side.read(topic) == [(0, b"before")]


@asynccontextmanager
async def fenced_with_a_record(side: Side, topic: str) -> AsyncIterator[Any]:
    """A producer that was fenced while its transaction had a record."""
    name = secrets.token_hex(4)
    async with side.producer(name) as older:
        await older.begin_transaction()
        await put(older, topic, b"sent")
        async with side.producer(name):
            yield older


@on_both
async def test_a_producer_that_is_fenced_before_its_commit_commits_nothing(side: Side) -> None:
    topic = await side.topic()
    async with fenced_with_a_record(side, topic) as older:
        with pytest.raises(kafka_errors.ProducerFenced):
            await older.commit_transaction()
    assert await side.read(topic) == []


@on_both
async def test_more_records_of_a_fenced_producer_are_refused_in_a_partition_it_had(
    side: Side,
) -> None:
    topic = await side.topic()
    async with fenced_with_a_record(side, topic) as older:
        with pytest.raises(kafka_errors.ProducerFenced):
            await put(older, topic, b"more")
        with pytest.raises(kafka_errors.ProducerFenced):
            await older.abort_transaction()


@on_both
async def test_an_empty_transaction_asks_nobody_and_so_is_not_fenced(side: Side) -> None:
    name = secrets.token_hex(4)
    async with side.producer(name) as older, side.producer(name):
        await older.begin_transaction()
        await older.commit_transaction()
        await older.begin_transaction()
        await older.abort_transaction()


@on_both
async def test_no_record_without_a_transaction(side: Side) -> None:
    topic = await side.topic()
    async with side.producer(secrets.token_hex(4)) as one:
        with pytest.raises(kafka_errors.IllegalOperation):
            await put(one, topic, b"x")
        with pytest.raises(AssertionError):
            await one.commit_transaction()
        await one.begin_transaction()
        with pytest.raises(AssertionError):
            await one.begin_transaction()
    async with side.producer(None) as plain:
        with pytest.raises(kafka_errors.IllegalOperation):
            await plain.begin_transaction()
        assert await put(plain, topic, b"x") == 0
        assert await put(plain, topic, b"y", b"z") == 1
    assert await side.read(topic) == [(0, b"x"), (1, b"y"), (2, b"z")]


# 4. Time-outs


@on_both
async def test_the_coordinator_ends_what_takes_too_long(side: Side) -> None:
    topic, name = await side.topic(), secrets.token_hex(4)
    async with side.producer(name, transaction_timeout_ms=1_000) as one:
        await one.begin_transaction()
        await put(one, topic, b"slow")
        began = now()
        await eventually(lambda: is_stable(side, topic, 2))
        assert 0.5 < now() - began < 13  # It looks every 10 s.
        # The producer can't tell that from being fenced.
        with pytest.raises(kafka_errors.ProducerFenced):
            await one.commit_transaction()
    assert await side.read(topic) == []
    async with side.producer(name) as again:
        await committed(again, topic, b"again")
    assert await side.read(topic) == [(2, b"again")]


@on_both
async def test_a_time_out_above_the_brokers_is_refused_at_the_start(side: Side) -> None:
    one = side.new_producer(transactional_id=secrets.token_hex(4), transaction_timeout_ms=901_000)
    with pytest.raises(kafka_errors.InvalidTransactionTimeout):
        await one.start()
    await bounded(one.stop())


# 2, 5, 7. One transaction after the other, and their markers


@on_both
async def test_markers_take_offsets_and_transactions_follow_each_other(side: Side) -> None:
    topic = await side.topic()
    async with side.producer(secrets.token_hex(4)) as one:
        first = [await committed(one, topic, b"%d" % number) for number in range(10)]
        assert first == [2 * number for number in range(10)]
        await one.begin_transaction()
        await put(one, topic, b"aborted", b"aborted")
        await one.abort_transaction()
        assert await committed(one, topic, b"last") == 23
    await eventually(lambda: is_stable(side, topic, 25))
    assert await side.ends(topic) == (0, 25, 25)
    assert [offset for offset, _ in await side.read(topic)] == [*first, 23]


@on_both
async def test_a_partition_that_joined_gets_a_marker_without_a_record(side: Side) -> None:
    topic = await side.topic(2)
    async with side.producer(secrets.token_hex(4)) as one:
        await one.begin_transaction()
        one._txn_manager.maybe_add_partition_to_txn(TopicPartition(topic, 1))
        await put(one, topic, b"x")
        await one.commit_transaction()

        async def are_marked() -> bool:
            return [(await side.ends(topic, number))[2] for number in (0, 1)] == [2, 1]

        await eventually(are_marked)


@on_both
async def test_all_of_a_transaction_becomes_visible_partition_by_partition(side: Side) -> None:
    topic = await side.topic(8)
    async with side.producer(secrets.token_hex(4)) as one:
        await one.begin_transaction()
        for partition in range(8):
            await put(one, topic, b"x", partition=partition)
        await one.commit_transaction()

        async def stable() -> list[int]:
            places = [TopicPartition(topic, number) for number in range(8)]
            async with side.consumer() as consumer:
                consumer.assign(places)
                ends = await consumer.end_offsets(places)
            return [ends[place] for place in places]

        # Answered is decided, and not yet marked everywhere: some may still be hidden.
        assert set(await stable()) <= {0, 2}

        async def all_of_it() -> bool:
            return await stable() == [2] * 8

        await eventually(all_of_it)


# 6. The last stable offset


@on_both
async def test_an_open_transaction_of_anybody_hides_what_comes_after_it(side: Side) -> None:
    topic = await side.topic()
    async with (
        side.producer(secrets.token_hex(4)) as slow,
        side.producer(secrets.token_hex(4)) as quick,
        side.producer(None) as plain,
    ):
        await slow.begin_transaction()
        await put(slow, topic, b"slow")
        await committed(quick, topic, b"quick")
        await put(plain, topic, b"plain")

        async def is_marked() -> bool:
            return (await side.ends(topic))[2] == 4

        await eventually(is_marked)
        assert await side.ends(topic) == (0, 0, 4)
        assert await side.read(topic) == []
        found = await side.read(topic, "read_uncommitted")
        assert [value for _, value in found] == [b"slow", b"quick", b"plain"]
        await slow.abort_transaction()
        await eventually(lambda: is_stable(side, topic, 5))
        assert [value for _, value in await side.read(topic)] == [b"quick", b"plain"]


# 8. Effects outlive their client


@on_both
async def test_a_commit_that_is_given_up_is_carried_out(side: Side) -> None:
    topic, name = await side.topic(), secrets.token_hex(4)
    async with side.producer(name) as one:
        await one.begin_transaction()
        await put(one, topic, b"x")
        giving_up = asyncio.ensure_future(one.commit_transaction())

        async def has_begun() -> bool:
            return one._txn_manager.needs_transaction_commit() is not None

        await eventually(has_begun)
        giving_up.cancel()
        await eventually(lambda: is_stable(side, topic, 2))
    assert await side.read(topic) == [(0, b"x")]


@on_both
async def test_records_that_nobody_waits_for_are_part_of_the_transaction(side: Side) -> None:
    topic = await side.topic()
    async with side.producer(secrets.token_hex(4)) as one:
        await one.begin_transaction()
        batch = one.create_batch()
        batch.append(timestamp=None, key=b"k", value=b"x", headers=[])
        (await one.send_batch(batch, topic, partition=0)).cancel()
        await one.commit_transaction()
    await eventually(lambda: is_stable(side, topic, 2))
    assert await side.read(topic) == [(0, b"x")]


@on_both
async def test_the_same_batch_again_is_acknowledged_and_not_repeated(side: Side) -> None:
    topic = await side.topic()
    place = TopicPartition(topic, 0)
    async with side.producer(secrets.token_hex(4)) as one:
        await one.begin_transaction()
        assert await put(one, topic, b"x", b"y") == 0
        assert await put(one, topic, b"z") == 2
        one._txn_manager._sequence_numbers[place] = 0  # As a retry whose answer was lost.
        assert await put(one, topic, b"x", b"y") == 0
        one._txn_manager._sequence_numbers[place] = 3
        await one.commit_transaction()
    await eventually(lambda: is_stable(side, topic, 4))
    assert [value for _, value in await side.read(topic)] == [b"x", b"y", b"z"]


@on_both
async def test_a_batch_that_comes_again_much_later_is_out_of_order(side: Side) -> None:
    """The broker knows the last five of a producer."""
    topic = await side.topic()
    place = TopicPartition(topic, 0)
    async with side.producer(secrets.token_hex(4)) as one:
        await one.begin_transaction()
        for _ in range(6):
            await put(one, topic, b"x")
        one._txn_manager._sequence_numbers[place] = 1
        assert await put(one, topic, b"x") == 1
        one._txn_manager._sequence_numbers[place] = 0
        with pytest.raises(kafka_errors.OutOfOrderSequenceNumber):
            await put(one, topic, b"x")
        await one.abort_transaction()


@on_both
async def test_a_batch_out_of_order_is_refused(side: Side) -> None:
    topic = await side.topic()
    async with side.producer(secrets.token_hex(4)) as one:
        await one.begin_transaction()
        await put(one, topic, b"x")
        one._txn_manager.increment_sequence_number(TopicPartition(topic, 0), 1)
        with pytest.raises(kafka_errors.OutOfOrderSequenceNumber):
            await put(one, topic, b"z")
        await one.abort_transaction()
    assert await side.read(topic) == []


# 9. Batches that are too large


@on_both
async def test_a_batch_that_is_too_large_fails_alone_and_spoils_its_partition(side: Side) -> None:
    topic = await side.topic(2, **{"max.message.bytes": "500"})
    async with side.producer(secrets.token_hex(4)) as one:
        await one.begin_transaction()
        await put(one, topic, b"good", partition=1)
        with pytest.raises(kafka_errors.MessageSizeTooLargeError):
            await put(one, topic, b"x" * 2000)
        # aiokafka has counted its sequence numbers, and the broker has not.
        with pytest.raises(kafka_errors.OutOfOrderSequenceNumber):
            await put(one, topic, b"small")
        # What nobody looks at is no hindrance: aiokafka commits the rest.
        await one.commit_transaction()
        await one.begin_transaction()
        with pytest.raises(kafka_errors.OutOfOrderSequenceNumber):
            await put(one, topic, b"small")
        await one.abort_transaction()
        assert await committed(one, topic, b"other", partition=1) == 2
    assert await side.read(topic) == []

    async def others() -> bool:
        found = await side.read(topic, partition=1)
        return found == [(0, b"good"), (2, b"other")]

    await eventually(others)


@on_both
async def test_without_transactions_a_partition_takes_any_first_sequence(side: Side) -> None:
    topic = await side.topic(1, **{"max.message.bytes": "500"})
    async with side.producer(None) as one:
        with pytest.raises(kafka_errors.MessageSizeTooLargeError):
            await put(one, topic, b"x" * 2000)
        assert await put(one, topic, b"small") == 0
        with pytest.raises(kafka_errors.MessageSizeTooLargeError):
            await put(one, topic, b"x" * 2000)
        with pytest.raises(kafka_errors.OutOfOrderSequenceNumber):
            await put(one, topic, b"small")


@on_both
async def test_a_batch_is_full_at_its_size_and_takes_its_first_record_whatever_it_is(
    side: Side,
) -> None:
    async with side.producer(None, max_batch_size=4096) as one:
        batch = one.create_batch()
        assert batch.append(timestamp=None, key=None, value=b"x" * 9000, headers=[]) is not None
        assert batch.append(timestamp=None, key=None, value=b"x", headers=[]) is None
        batch, count = one.create_batch(), 0
        headers = [("event_id", b"e" * 10)]
        while batch.append(timestamp=None, key=b"key", value=b"x" * 100, headers=headers):
            count += 1
        assert 28 <= count <= 32
        assert batch.record_count() == count


# 10. Retention, topics made anew


@on_both
async def test_what_was_cut_off_is_out_of_range_and_reset_to_the_earliest(side: Side) -> None:
    topic = await side.topic()
    async with side.producer(None) as plain:
        for number in range(6):
            await put(plain, topic, b"%d" % number)
    async with side.admin() as admin:
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=4)})
    assert await side.ends(topic) == (4, 6, 6)
    assert await side.read(topic, at=1) == [(4, b"4"), (5, b"5")]
    # Beyond the end, too: everything comes again.
    place = TopicPartition(topic, 0)
    for reset in ("earliest", "none"):
        async with side.consumer(reset=reset) as consumer:
            consumer.assign([place])
            consumer.seek(place, 9)
            if reset == "none":
                with pytest.raises(kafka_errors.OffsetOutOfRangeError):
                    await got(consumer, place)
            else:
                assert [one.offset for one in await got(consumer, place)] == [4, 5]


async def got(consumer: Any, place: TopicPartition) -> list[Any]:
    """The next records."""
    deadline = now() + SECONDS
    while now() < deadline:
        batches = await consumer.getmany(place, timeout_ms=200)
        if batches:
            return list(batches[place])
    return []


@on_both
async def test_a_topic_made_anew_begins_at_0_with_the_partitions_it_is_given(side: Side) -> None:
    topic = await side.topic(3)
    async with side.producer(secrets.token_hex(4), request_timeout_ms=3_000) as one:
        for _ in range(3):
            await committed(one, topic, b"old", partition=2)
        await remade(side, topic, 1)
        async with side.producer(secrets.token_hex(4)) as other:
            assert len(await other.partitions_for(topic)) == 1
            await other.begin_transaction()
            with pytest.raises(AssertionError):
                await put(other, topic, b"new", partition=2)
            assert await put(other, topic, b"new") == 0
            await other.commit_transaction()
        await eventually(lambda: is_stable(side, topic, 2))
        assert await side.read(topic) == [(0, b"new")]


async def remade(side: Side, topic: str, partitions: int) -> None:
    """Delete a topic and create it with so many partitions."""
    await deleted(side, topic)
    await asyncio.sleep(0.5)
    await side.create(topic, partitions)


async def deleted(side: Side, topic: str) -> None:
    """Delete a topic, and wait until the broker knows of it, too."""
    async with side.admin() as admin:
        await admin.delete_topics([topic])

        async def is_gone() -> bool:
            return topic not in await admin.list_topics()

        await eventually(is_gone)


@on_both
async def test_a_producer_goes_on_with_a_topic_that_was_made_anew(side: Side) -> None:
    """The broker has forgotten its sequence numbers and takes any."""
    topic = await side.topic()
    async with side.producer(secrets.token_hex(4)) as one:
        for _ in range(3):
            await committed(one, topic, b"old")
        await remade(side, topic, 1)
        assert await committed(one, topic, b"new") == 0
    await eventually(lambda: is_stable(side, topic, 2))
    assert await side.read(topic) == [(0, b"new")]


@on_both
async def test_without_its_topic_a_transaction_waits(side: Side) -> None:
    topic = await side.topic()
    async with side.producer(secrets.token_hex(4), request_timeout_ms=1_000) as one:
        await committed(one, topic, b"old")
        await deleted(side, topic)
        await one.begin_transaction()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(put(one, topic, b"new"), 3)


def test_compaction_keeps_the_last_of_each_key_and_all_offsets(own_side: Side) -> None:
    """And does not pass the last stable offset."""

    async def case(side: Side) -> None:
        configs = {
            "cleanup.policy": "compact",
            "segment.ms": "100",
            "min.cleanable.dirty.ratio": "0.001",
            "delete.retention.ms": "0",
        }
        topic = await side.topic(1, **configs)
        async with (
            side.producer(secrets.token_hex(4)) as one,
            # By default the broker aborts after a minute, which the cleaner may need.
            side.producer(secrets.token_hex(4), transaction_timeout_ms=600_000) as slow,
        ):
            await one.begin_transaction()
            for key, value in ((b"a", b"0"), (b"b", b"1"), (b"a", b"2"), (b"c", b"3")):
                await put(one, topic, value, key=key)
            await one.commit_transaction()  # Its marker: 4
            await one.begin_transaction()
            await put(one, topic, b"aborted", key=b"a")  # 5, marker 6
            await one.abort_transaction()
            # A segment that holds something open is not cleaned at all.
            await asyncio.sleep(0.3)
            await slow.begin_transaction()
            await put(slow, topic, b"open", key=b"x")  # 7
            await committed(one, topic, b"8")  # 8, marker 9
            await committed(one, topic, b"10")  # 10, marker 11
            await asyncio.sleep(0.3)
            await committed(one, topic, b"12")  # 12, in a segment of its own

            async def is_compact() -> bool:
                await side.compact(topic)
                seen[:] = [offset for offset, _ in await side.read(topic, "read_uncommitted")]
                # A broker keeps an aborted record for a while where its marker came to lie in the
                # next segment (a slow machine: segments of 100 ms). No committed reader sees it.
                return seen in ([1, 2, 3, 7, 8, 10, 12], [1, 2, 3, 5, 7, 8, 10, 12])

            seen: list[int] = []
            await eventually(is_compact, 200, seen)
            # Not past what is open: of the same key, 8 and 10 are still there.
            await slow.abort_transaction()
            await asyncio.sleep(0.3)
            await committed(one, topic, b"15")

            async def is_all() -> bool:
                await side.compact(topic)
                seen[:] = [offset for offset, _ in await side.read(topic)]
                return seen in ([1, 2, 3, 15], [1, 2, 3, 12, 15])

            await eventually(is_all, 200, seen)
            assert await committed(one, topic, b"17") == 17
            start, stable, end = await side.ends(topic)
            assert (start, stable, end) == (0, 19, 19)
            found = await side.read(topic, at=5)
            # Of one key: a cleaner that was quicker than this reader has removed 15.
            left = [(offset, value) for offset, value in found if offset > 12]
            assert left in ([(15, b"15"), (17, b"17")], [(17, b"17")])

    own_side.run(case)


def test_with_the_broker_away_everything_waits_and_goes_on(own_side: Side) -> None:
    """Nothing raises, and nothing is there twice."""

    async def case(side: Side) -> None:
        topic = await side.topic()
        async with side.producer(secrets.token_hex(4)) as one, side.consumer() as consumer:
            consumer.assign([TopicPartition(topic, 0)])
            await consumer.position(TopicPartition(topic, 0))
            await committed(one, topic, b"before")
            await one.begin_transaction()
            await put(one, topic, b"sent")
            await side.broker_away(8)
            committing = asyncio.ensure_future(one.commit_transaction())
            await asyncio.sleep(3)
            assert not committing.done()
            await asyncio.wait_for(committing, 200)
            await committed(one, topic, b"after")
            await eventually(lambda: is_stable(side, topic, 6), 200)
        assert [value for _, value in await side.read(topic)] == [b"before", b"sent", b"after"]

    own_side.run(case)


# 11. Epochs


@on_both
async def test_only_a_start_raises_the_epoch(side: Side) -> None:
    """With transactions of version 2 every transaction would; aiokafka speaks version 1."""
    topic, name = await side.topic(), secrets.token_hex(4)
    async with side.producer(name) as one:
        epoch = one._txn_manager.producer_epoch
        for _ in range(3):
            await committed(one, topic, b"x")
        assert one._txn_manager.producer_epoch == epoch
        async with side.producer(name) as two:
            assert two._txn_manager.producer_id == one._txn_manager.producer_id
            assert two._txn_manager.producer_epoch > epoch


# 12. Groups


@on_both
async def test_each_partition_has_one_owner_and_whoever_leaves_is_replaced(side: Side) -> None:
    topic, group = await side.topic(4), secrets.token_hex(4)
    one = await side.new_member(topic, group, "one")
    await eventually(lambda: owns(one, 4))
    two = await side.new_member(topic, group, "two")
    await eventually(lambda: share(4, one, two))
    await two.leave()
    await eventually(lambda: owns(one, 4))
    # In between it was told that a rebalance began, and then what it had.
    assert one.history[0] == one.history[-1] == {0, 1, 2, 3}
    assert len(one.history) == 3
    await one.leave()


@on_both
async def test_a_silent_member_is_replaced_and_believes_in_what_it_had(side: Side) -> None:
    topic, group = await side.topic(4), secrets.token_hex(4)
    one = await side.new_member(topic, group, "one")
    await eventually(lambda: owns(one, 4))
    two = await side.new_member(topic, group, "two")
    await eventually(lambda: share(4, one, two))
    had, began = two.owned, now()
    await two.fall_silent()
    await eventually(lambda: owns(one, 4))
    # Its session has to end first, and nobody tells it.
    assert 3 < now() - began < 12
    assert two.owned == had
    await one.leave()
    await bounded(two.leave())


async def owns(member: AMember, count: int) -> bool:
    """Whether a member has so many partitions."""
    return member.owned is not None and len(member.owned) == count


async def share(count: int, *members: AMember) -> bool:
    """Whether members have all partitions, and none twice."""
    if any(one.owned is None for one in members):
        return False
    owned = [place for one in members for place in one.owned or ()]
    assert len(set(owned)) == len(owned)
    return len(owned) == count


# Reading, and the admin client


@on_both
async def test_offsets_for_times_are_of_the_first_record_that_is_not_older(side: Side) -> None:
    topic = await side.topic()
    place = TopicPartition(topic, 0)
    async with side.producer(None) as plain:
        for at in (1_000, 3_000, 2_000, 5_000):
            await (await plain.send(topic, b"x", partition=0, timestamp_ms=at))
    async with side.consumer() as consumer:
        consumer.assign([place])
        for at, offset in ((0, 0), (1_000, 0), (1_001, 1), (2_500, 1), (3_001, 3), (5_000, 3)):
            found = (await consumer.offsets_for_times({place: at}))[place]
            assert found is not None
            assert found.offset == offset, at
        assert (await consumer.offsets_for_times({place: 5_001})).get(place) is None


@on_both
async def test_a_topic_that_is_not_there_is_waited_for(side: Side) -> None:
    place = TopicPartition(f"t{secrets.token_hex(4)}", 0)
    async with side.consumer() as consumer:
        consumer.assign([place])
        with pytest.raises(kafka_errors.KafkaTimeoutError):
            await consumer.end_offsets([place])
    async with side.producer(secrets.token_hex(4), request_timeout_ms=1_000) as one:
        await one.begin_transaction()
        with pytest.raises(kafka_errors.UnknownTopicOrPartitionError):
            await put(one, place.topic, b"x")


@on_both
async def test_nothing_starts_without_a_broker(side: Side) -> None:
    there = side.unreachable()
    producer = there.new_producer(transactional_id="t")
    for one in (producer, there.new_consumer(), there.new_admin()):
        with pytest.raises(kafka_errors.KafkaConnectionError):
            await one.start()
    await bounded(producer.stop())


@on_both
async def test_what_is_not_assigned_cannot_be_read(side: Side) -> None:
    topic = await side.topic()
    async with side.consumer() as consumer:
        with pytest.raises(kafka_errors.IllegalStateError):
            await consumer.position(TopicPartition(topic, 0))
        consumer.assign([TopicPartition(topic, 0)])
        with pytest.raises(ValueError, match="positive"):
            consumer.seek(TopicPartition(topic, 0), -1)
        assert await consumer.position(TopicPartition(topic, 0)) == 0
        assert await consumer.getmany(TopicPartition(topic, 0), timeout_ms=100) == {}


@on_both
async def test_topics_are_created_once_and_described(side: Side) -> None:
    topic = await side.topic(3)
    async with side.admin() as admin:
        again = await admin.create_topics([NewTopic(topic, 2, 1)])
        assert [error[:2] for error in again.topic_errors] == [
            (topic, kafka_errors.TopicAlreadyExistsError.errno)
        ]
        described = {one["topic"]: one for one in await admin.describe_topics()}
        assert described[topic]["error_code"] == 0
        parts = sorted(one["partition"] for one in described[topic]["partitions"])
        assert parts == [0, 1, 2]
        assert (await admin.describe_cluster())["cluster_id"]
        gone = await admin.delete_topics([f"t{secrets.token_hex(4)}"])
        assert [code for _, code, *_ in gone.topic_error_codes] == [
            kafka_errors.UnknownTopicOrPartitionError.errno
        ]


@on_both
async def test_a_topics_settings_are_what_it_was_given(side: Side) -> None:
    topic = await side.topic(**{"cleanup.policy": "compact", "segment.ms": "3600000"})
    async with side.admin() as admin:
        resource = ConfigResource(ConfigResourceType.TOPIC, topic)
        (response,) = await admin.describe_configs([resource])
        (found,) = response.resources
        values = {entry[0]: entry[1] for entry in found[4]}
        assert found[0] == 0
        assert values["cleanup.policy"] == "compact"
        assert values["segment.ms"] == "3600000"
        assert values["retention.ms"] == "604800000"
        await admin.alter_configs(
            [ConfigResource(ConfigResourceType.TOPIC, topic, {"retention.ms": "-1"})]
        )

        async def is_changed() -> bool:
            (response,) = await admin.describe_configs([resource])
            values = {entry[0]: entry[1] for entry in response.resources[0][4]}
            return values["retention.ms"] == "-1" and values["cleanup.policy"] == "delete"

        await eventually(is_changed)


# Postgres. The statements are the product's own, wherever it has them.

AT = datetime(2026, 5, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


@asynccontextmanager
async def a_pool(side: Side) -> AsyncIterator[Any]:
    """A pool, closed at the end."""
    pool = await side.new_pool()
    try:
        yield pool
    finally:
        await pool.close()


async def rows(pool: Any, sql: str, *args: Any) -> list[dict[str, Any]]:
    """Rows as dictionaries."""
    return [dict(row) for row in await pool.fetch(sql, *args)]


@on_both
async def test_a_claim_makes_the_row_and_then_raises_its_epoch(side: Side) -> None:
    async with a_pool(side) as pool:
        store = PostgresCheckpoints(pool, "cluster")
        assert await store.load("c") is None
        first = await store.claim("c")
        assert (first.version, first.epoch, first.cursor, first.seen) == (0, 1, None, None)
        second = await store.claim("c")
        assert second == replace(first, epoch=2)
        assert await store.load("c") == second
        assert (await store.provenance("c")).other_cluster is None
        other = PostgresCheckpoints(pool, "other")
        assert (await other.provenance("c")).other_cluster == "cluster"
        await other.adopt("c")
        assert (await other.provenance("c")).other_cluster is None
        await PostgresCheckpoints(pool).claim("b")
        assert [one.connector_id for one in await store.load_all()] == ["b", "c"]


@on_both
async def test_persisting_compares_version_and_epoch_and_sets_all_or_nothing(side: Side) -> None:
    async with a_pool(side) as pool:
        store = PostgresCheckpoints(pool, "cluster")
        claimed = await store.claim("c")
        cursor = {"next": 3, "deep": [{"ä": None}, 1.5, True]}
        seen = Seen(5, 7)
        after = replace(
            claimed, version=1, last_ts=AT, cursor=cursor, complete_through=AT, seen=seen
        )
        assert await store.persist(after, expected_version=0) is Persisted.DONE
        assert await store.load("c") == after
        assert (await store.provenance("c")).published_version == 1
        # Every read has objects of its own.
        found = await store.load("c")
        assert found is not None
        found.cursor["next"] = 4  # type: ignore[index]
        assert await store.load("c") == after
        again = replace(after, version=2, last_ts=AT + HOUR)
        assert await store.persist(again, expected_version=0) is Persisted.EDITED
        assert await store.persist(replace(again, epoch=7), expected_version=1) is Persisted.FENCED
        assert await store.load("c") == after


TEXTS = {
    "\0": False,
    "a\ud800": False,
    "\udfff\ud800": False,
    "\U0001f600": True,
    "\\u0000": True,
    '{"a": "\\ud800"}': True,
}
"""Whether JSON in Postgres may hold them."""


@on_both
async def test_jsonb_takes_what_is_a_text_and_nothing_else(side: Side) -> None:
    async with a_pool(side) as pool:
        store = PostgresCheckpoints(pool, "cluster")
        page = await store.claim("c")
        for text, is_taken in TEXTS.items():
            for cursor in ({"a": [text]}, {text: 1}):
                after = replace(page, version=page.version + 1, cursor=cursor)
                if is_taken:
                    await store.persist(after, expected_version=page.version)
                    page = after
                else:
                    with pytest.raises(Misconfigured):
                        await store.persist(after, expected_version=page.version)
                assert await store.load("c") == page, text


@on_both
async def test_an_edit_by_hand_is_the_next_version_and_forgets_the_rest(side: Side) -> None:
    async with a_pool(side) as pool:
        store = PostgresCheckpoints(pool, "cluster")
        claimed = await store.claim("c")
        after = replace(claimed, version=1, last_ts=AT, cursor={"n": 1}, complete_through=AT)
        await store.persist(after, expected_version=0)
        done = await pool.execute(
            "UPDATE connector_checkpoints SET last_ts = $2 WHERE connector_id = $1", "c", AT - HOUR
        )
        assert done == "UPDATE 1"
        edited = await store.load("c")
        assert edited == replace(
            after, version=2, last_ts=AT - HOUR, cursor=None, complete_through=None
        )
        assert (await store.provenance("c")).published_version == 1
        (audit,) = await rows(pool, "SELECT * FROM connector_audit ORDER BY id")
        assert (audit["connector_id"], audit["action"]) == ("c", "edit")
        assert (audit["before"]["cursor"], audit["before"]["version"]) == ({"n": 1}, 1)
        assert audit["after"]["version"] == 2
        # Another column alone, or the same position, is no edit.
        await pool.execute(
            "UPDATE connector_checkpoints SET kafka_cluster = $2 WHERE connector_id = $1", "c", "x"
        )
        await pool.execute(
            "UPDATE connector_checkpoints SET last_ts = last_ts WHERE connector_id = $1", "c"
        )
        assert await store.load("c") == edited
        # The specification's own upsert is one.
        await pool.execute(
            "INSERT INTO connector_checkpoints (connector_id, last_ts) VALUES ($1, $2) "
            "ON CONFLICT (connector_id) DO UPDATE SET last_ts = EXCLUDED.last_ts",
            "c",
            AT,
        )
        found = await store.load("c")
        assert found is not None
        assert (found.version, found.last_ts) == (3, AT)
        assert await store.persist(after, expected_version=1) is Persisted.EDITED


@on_both
async def test_an_edit_of_the_cursor_alone_keeps_what_was_written(side: Side) -> None:
    async with a_pool(side) as pool:
        store = PostgresCheckpoints(pool, "cluster")
        claimed = await store.claim("c")
        after = replace(claimed, version=1, last_ts=AT, cursor={"n": 1}, complete_through=AT)
        await store.persist(after, expected_version=0)
        await pool.execute(
            "UPDATE connector_checkpoints SET cursor = $2 WHERE connector_id = $1", "c", {"n": 0}
        )
        edited = replace(after, version=2, cursor={"n": 0}, complete_through=None)
        assert await store.load("c") == edited
        assert await Controls(pool).edited_version("c") == 2
        (audit,) = await rows(pool, "SELECT after FROM connector_audit ORDER BY id")
        assert (audit["after"]["cursor"], audit["after"]["version"]) == ({"n": 0}, 2)


@on_both
async def test_controls_audits_and_snapshots(side: Side) -> None:
    async with a_pool(side) as pool:
        store, reports = Controls(pool), Reports(pool, "w")
        assert await store.controls() == {}
        assert await store.set_paused("a", is_paused=True, who="me", reason="why")
        assert not await store.set_paused("a", is_paused=True, who="me", reason=None)
        asked_at = await store.request_snapshot("b", who="me", reason=None)
        result = SnapshotResult("id", AT, 3)
        await reports.snapshot_taken("s", result, AT)
        await reports.snapshot_taken("s", result, AT + HOUR)
        restart_at = await store.request_restart("a", who="me", reason=None)
        controls = await store.controls()
        assert controls.keys() == {"a", "b", "s"}
        assert (controls["a"].is_paused, controls["a"].restart_requested_at) == (True, restart_at)
        assert controls["b"].snapshot_requested_at == asked_at
        assert (controls["s"].is_paused, controls["s"].snapshot_started_at) == (False, AT + HOUR)
        found = await rows(pool, "SELECT action, reason, before FROM connector_audit ORDER BY id")
        assert [one["action"] for one in found] == ["pause", "snapshot", "restart"]
        assert found[0]["before"] == {"paused": False}
        assert found[0]["reason"] == "why"


@on_both
async def test_a_rewind_is_written_with_its_audit_row_or_not_at_all(side: Side) -> None:
    async with a_pool(side) as pool:
        store, controls = PostgresCheckpoints(pool, "cluster"), Controls(pool)
        claimed = await store.claim("c")
        after = replace(claimed, version=1, last_ts=AT)
        await store.persist(after, expected_version=0)
        with pytest.raises(Misconfigured, match="not paused"):
            await controls.stored("c")
        await controls.set_paused("c", is_paused=True, who="me", reason="r")
        stored = await controls.stored("c")
        wanted = rewound(stored, [after], to=AT - HOUR, cursor=None)
        await controls.rewind(stored, wanted, who="me", reason="r")
        assert await store.load("c") == wanted
        with pytest.raises(Misconfigured, match="moved"):
            await controls.rewind(stored, wanted, who="me", reason="r")
        found = await rows(pool, "SELECT action FROM connector_audit ORDER BY id")
        assert [one["action"] for one in found] == ["pause", "rewind"]


@on_both
async def test_reports_and_the_last_errors(side: Side) -> None:
    async with a_pool(side) as pool:
        mine, other = Reports(pool, "mine"), Reports(pool, "other")
        status = Status("c", "p")
        for number in range(22):
            status.enter(State.BACKING_OFF, error=f"error {number}", next_try_at=AT)
            await mine.report([status])
        await mine.report([status])  # The same error makes its row younger.
        found = await rows(pool, "SELECT error FROM connector_errors ORDER BY id")
        assert [one["error"] for one in found] == [f"error {number}" for number in range(2, 22)]
        status.enter(State.RUNNING)
        await other.report([status])
        # A stopped state is only for the worker that ran it last.
        status.enter(State.STOPPED)
        await mine.report([status])
        (row,) = await rows(pool, "SELECT worker, state FROM connector_status")
        assert row == {"worker": "other", "state": "running"}
        await other.report([status, Status("d", "p")])
        found = await rows(
            pool, "SELECT connector_id, state FROM connector_status ORDER BY connector_id"
        )
        assert [(one["connector_id"], one["state"]) for one in found] == [
            ("c", "stopped"),
            ("d", "starting"),
        ]


@on_both
async def test_many_rows_are_written_all_or_nothing(side: Side) -> None:
    async with a_pool(side) as pool:
        sql = "INSERT INTO connector_controls (connector_id, paused) VALUES ($1, $2)"
        with pytest.raises(asyncpg.UniqueViolationError):
            await pool.executemany(sql, [("a", True), ("b", True), ("a", False)])
        assert await rows(pool, "SELECT * FROM connector_controls") == []
        with pytest.raises(asyncpg.NotNullViolationError):
            await pool.execute(sql, "a", None)
        with pytest.raises(asyncpg.DataError):
            await pool.execute(sql, 7, True)


@on_both
async def test_what_is_not_there_is_said(side: Side) -> None:
    async with a_pool(side) as pool:
        with pytest.raises(asyncpg.UndefinedTableError):
            await pool.fetch("SELECT * FROM nowhere")
        await pool.execute("INSERT INTO connector_controls (connector_id) VALUES ($1)", "a")
        with pytest.raises(asyncpg.UndefinedColumnError):
            await pool.fetch("SELECT nothing FROM connector_controls")
        with pytest.raises(asyncpg.UndefinedColumnError):
            await pool.execute("UPDATE connector_controls SET nothing = $1", True)


@on_both
async def test_text_and_json_that_postgres_does_not_take(side: Side) -> None:
    async with a_pool(side) as pool:
        store = PostgresCheckpoints(pool, "cluster")
        claimed = await store.claim("c")
        for cursor in ({"x": float("nan")}, {"x": "\0"}, {"x": "\ud800"}):
            with pytest.raises(Misconfigured):
                await store.persist(replace(claimed, cursor=cursor), expected_version=0)
        assert await store.load("c") == claimed
        with pytest.raises(asyncpg.PostgresError):
            await pool.execute("INSERT INTO connector_controls (connector_id) VALUES ($1)", "a\0")


@on_both
async def test_a_locked_row_is_waited_for_and_then_looked_at_again(side: Side) -> None:
    async with a_pool(side) as pool:
        store = PostgresCheckpoints(pool, "cluster")
        claimed = await store.claim("c")
        after = replace(claimed, version=1, last_ts=AT)
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(
                "UPDATE connector_checkpoints SET last_ts = $2 WHERE connector_id = $1",
                "c",
                AT - HOUR,
            )
            # Readers see what was committed, and wait for nobody.
            assert await store.load("c") == claimed
            persisting = asyncio.ensure_future(store.persist(after, expected_version=0))
            await asyncio.sleep(0.3)
            assert not persisting.done()
        assert await persisting is Persisted.EDITED
        found = await store.load("c")
        assert found is not None
        assert (found.version, found.last_ts) == (1, AT - HOUR)


@on_both
async def test_who_gives_up_waiting_for_a_lock_has_changed_nothing(side: Side) -> None:
    async with a_pool(side) as pool:
        store = PostgresCheckpoints(pool, "cluster")
        claimed = await store.claim("c")
        after = replace(claimed, version=1, last_ts=AT)
        async with pool.acquire() as connection, connection.transaction():
            await connection.fetchrow(
                "SELECT * FROM connector_checkpoints WHERE connector_id = $1 FOR UPDATE", "c"
            )
            began = now()
            with pytest.raises(Unavailable, match="no answer, in time"):
                await store.persist(after, expected_version=0)
            assert 1.5 < now() - began < 20
        await asyncio.sleep(0.5)
        assert await store.load("c") == claimed
        assert await store.persist(after, expected_version=0) is Persisted.DONE


@on_both
async def test_a_transaction_that_fails_leaves_nothing(side: Side) -> None:
    async with a_pool(side) as pool:
        sql = "INSERT INTO connector_controls (connector_id) VALUES ($1)"

        async def failing() -> None:
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute(sql, "a")
                raise ValueError("mine")

        with pytest.raises(ValueError, match="mine"):
            await failing()
        assert await rows(pool, "SELECT * FROM connector_controls") == []
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(sql, "a")
            assert await rows(pool, "SELECT * FROM connector_controls") == []
        (row,) = await rows(pool, "SELECT connector_id FROM connector_controls WHERE NOT paused")
        assert row == {"connector_id": "a"}


@on_both
async def test_a_cancelled_statement_may_have_been_carried_out(side: Side) -> None:
    """Cancelled at whatever moment, it happened as a whole or not at all."""
    async with a_pool(side) as pool:
        store = PostgresCheckpoints(pool, "cluster")
        before = await store.claim("c")
        for steps in range(12):
            after = replace(before, version=before.version + 1, last_ts=AT + steps * HOUR)
            persisting = asyncio.ensure_future(
                store.persist(after, expected_version=before.version)
            )
            for _ in range(steps):
                await asyncio.sleep(0.001)
            persisting.cancel()
            await asyncio.wait({persisting})
            await asyncio.sleep(0.1)
            found = await store.load("c")
            assert found in (before, after)
            before = found


@on_both
async def test_a_database_that_is_not_there_refuses(side: Side) -> None:
    async with a_pool(side.unreachable()) as pool:
        with pytest.raises(ConnectionRefusedError):
            await pool.fetch("SELECT * FROM connector_controls")
        with pytest.raises(Unavailable):
            await PostgresCheckpoints(pool, "cluster").claim("c")
