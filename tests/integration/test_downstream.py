"""Downstream on the real stack: what arrives, what is committed, what a poison record does.

Workers are processes; events are published in transactions, as the relay does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from contract.streams import published
from workers import Bench, Worker, committed, eventually

from verity_common.kafka import KafkaSettings
from verity_sdk import PermissionSnapshot, RawEvent
from verity_stream.downstream import agents_dead_topic
from verity_stream.kafka.topics import Topics
from verity_stream.kafka.transactions import KafkaPublisher
from verity_stream.records import (
    EventEncoder,
    Origin,
    Record,
    dead_topic,
    grant_body,
    permissions_topic,
    raw_topic,
    snapshot_record,
)
from verity_stream.settings import StreamSettings

pytestmark = pytest.mark.stack

EXAMPLES = Path(__file__).parents[2] / "examples" / "downstream"
FETCHED_AT = "2026-01-01T00:00:00.000000Z"
NOW = datetime.now(UTC)

# Each agent writes what it gets, as Python shows it, to a file of its own.
AGENTS = """
import os
from verity_stream import create_app, dead_topic, permissions_topic, raw_topic, verity_agent
from verity_stream.downstream import guarded

platform = os.environ["TEST_PLATFORM"]
app = create_app(os.environ["TEST_APP_ID"])

def note(name, *what):
    with open(os.environ["TEST_DIRECTORY"] + "/" + name, "a") as file:
        print(*what, sep="\\t", file=file)

@verity_agent(app, raw_topic(app, platform))
async def events(value, event):
    if value.operation == "RAISE":
        raise RuntimeError("this one can't be processed \\udc00")
    if value.operation == "CANCEL":
        import asyncio
        raise asyncio.CancelledError
    note("events", repr(value), event.headers["connector_id"].decode(), event.message.offset)

@verity_agent(app, permissions_topic(app, platform))
async def permissions(record):
    note("permissions", repr(record))

@verity_agent(app, dead_topic(app, platform))
async def dead(letter):
    note("dead", repr(letter))

@app.agent(raw_topic(app, platform), name="by_hand")
async def by_hand(stream):
    async for event in stream.events():
        async with guarded(event):
            if event.value.operation == "RAISE":
                raise LookupError("by hand")
            note("by_hand", event.value.event_id)
"""

EXAMPLE = """
import os, {module}
app = {module}.make_app(os.environ["TEST_PLATFORM"], os.environ["TEST_APP_ID"])
"""


def kafka_settings(bench: Bench) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=bench.bootstrap_servers)


def event(number: int, **fields: Any) -> RawEvent:
    return RawEvent(
        **{
            "platform": "set by the test",
            "event_id": f"e{number}",
            "occurred_at": datetime(2026, 1, 1, 12, 30, 0, number, tzinfo=UTC),
            "principal_ref": f"user{number % 7}",
            "asset_ref": f"tàble{number % 5}",
            "operation": "SELECT",
            "raw_payload": {"n": number, "nested": {"list": [1, None, "é"]}},
            **fields,
        }
    )


class Source:
    """Publishes in transactions, as a relay does."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.platform = bench.name
        self.topic = raw_topic(bench.name)
        self.origin = Origin(f"{bench.name}-c", bench.name, FETCHED_AT)
        self._encoder = EventEncoder(self.origin.connector_id, "principal_ref", 1_000_000)

    async def __aenter__(self) -> Source:
        names = [self.topic, dead_topic(self.platform), permissions_topic(self.platform)]
        await Topics(StreamSettings(kafka=kafka_settings(self.bench))).ensure(names)
        self._publisher = await self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._publisher.close()

    async def _start(self) -> KafkaPublisher:
        publisher = KafkaPublisher(
            kafka_settings(self.bench),
            transactional_id=f"{self.platform}-{secrets.token_hex(2)}",
            transaction_timeout=timedelta(seconds=20),
        )
        await publisher.start()
        return publisher

    def record(self, event: RawEvent) -> Record:
        id_header, _, topic, key, value, _ = self._encoder.encode(
            replace(event, platform=self.platform)
        )
        headers = [("event_id", id_header), *self.origin.headers("raw_event/1")]
        return Record(topic, key, value, headers)

    async def publish(self, *events: RawEvent) -> list[RawEvent]:
        """One transaction; the events as they must arrive."""
        await published(self._publisher, [self.record(one) for one in events])
        return [replace(one, platform=self.platform) for one in events]

    async def publish_records(self, records: Iterable[Record]) -> Any:
        return await published(self._publisher, list(records))

    async def abort(self, *events: RawEvent) -> None:
        """One transaction that the broker has taken whole, and that is aborted then."""

        def refuse(_: Any) -> Record:
            raise RuntimeError("aborted by the test")

        publisher = await self._start()
        with pytest.raises(RuntimeError, match="aborted by the test"):
            await published(publisher, [self.record(one) for one in events], refuse)
        await publisher.close()


@contextlib.asynccontextmanager
async def source(bench: Bench) -> AsyncIterator[Source]:
    async with Source(bench) as one:
        yield one


def start(bench: Bench, code: str, app_id: str) -> Worker:
    """A worker that runs this code's `app`."""
    directory = bench.directory / app_id
    directory.mkdir(exist_ok=True)
    (directory / "agents_under_test.py").write_text(textwrap.dedent(code))
    python_path = os.pathsep.join([str(directory), str(EXAMPLES)])
    worker = Worker(
        directory,
        {
            **bench.environment,
            "PYTHONPATH": python_path,
            "TEST_PLATFORM": bench.name,
            "TEST_APP_ID": app_id,
            "TEST_DIRECTORY": str(directory),
        },
        command=(
            str(Path(sys.executable).with_name("faust")),
            *("-A", "agents_under_test", "worker", "--loglevel", "INFO"),
        ),
    )
    bench.workers.append(worker)
    return worker.start()


def lines(worker: Worker, name: str) -> list[str]:
    path = worker.directory / name
    return path.read_text().splitlines() if path.exists() else []


async def until(condition: Callable[[], Any], bench: Bench, seconds: float = 90) -> float:
    """Wait until the condition holds; how long it took."""
    began = time.monotonic()

    async def holds() -> bool:
        return bool(condition())

    await eventually(holds, seconds, bench.logs)
    return time.monotonic() - began


async def until_ready(worker: Worker, bench: Bench) -> None:
    await until(lambda: worker.get("/readyz")[0] == 200, bench)


async def committed_offsets(bench: Bench, group: str) -> dict[TopicPartition, int]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bench.bootstrap_servers)
    await admin.start()
    try:
        found = await admin.list_consumer_group_offsets(group)
    finally:
        await admin.close()
    return {place: entry.offset for place, entry in found.items()}


async def lag(bench: Bench, group: str, topic: str) -> int:
    """What `kafka-consumer-groups` shows: the end of each partition less the committed offset."""
    offsets = await committed_offsets(bench, group)
    places = [TopicPartition(topic, number) for number in range(6)]
    async with AIOKafkaConsumer(
        bootstrap_servers=bench.bootstrap_servers, isolation_level="read_committed"
    ) as consumer:
        ends = await consumer.end_offsets(places)
    return sum(ends[place] - offsets.get(place, 0) for place in places)


async def assert_lag_vanishes(bench: Bench, group: str, topic: str) -> None:
    """Faust's own commits hang where a transaction's end is the last of a partition: for ever."""

    async def is_0() -> bool:
        return await lag(bench, group, topic) == 0

    await eventually(is_0, 60, bench.logs)


async def test_typed_records_arrive_and_poison_does_not_stop_them(bench: Bench) -> None:
    """Equal to what was published; aborted ones never; lag 0; dead letters; nothing repeated."""
    group = f"{bench.name}-app"
    async with source(bench) as src:
        grant = PermissionSnapshot(
            bench.name, "ada", "vault", "READ", "role", "admins", NOW, {"id": 1}
        )
        about = {"connector_id": src.origin.connector_id, "platform": bench.name}
        end = {
            **about,
            "started_at": FETCHED_AT,
            "ended_at": FETCHED_AT,
            "is_complete": False,
            "grant_count": 1,
            "dead_count": 0,
            "scopes_tried": ["db"],
            "scopes_denied": [{"scope": "db2", "reason": "denied"}],
        }
        snapshot = [
            ("start", {**about, "started_at": FETCHED_AT}),
            ("grant", grant_body(grant, NOW)[0]),
            ("end", end),
        ]
        await src.publish_records(snapshot_record(src.origin, "s1", *one) for one in snapshot)

        # At offset 0 of its partition: one record and a marker, where Faust's commits hang.
        expected = await src.publish(event(0))
        worker = start(bench, AGENTS, group)
        for number in range(1, 60):  # one-record transactions
            expected += await src.publish(event(number))
        await src.abort(*(event(number) for number in range(1000, 1050)))
        expected += await src.publish(*(event(number) for number in range(100, 400)))

        junk = Record(src.topic, b"user1", b"\xff not JSON", src.origin.headers("raw_event/1"))
        empty = Record(src.topic, b"user2", None, [])  # type: ignore[arg-type]  # a tombstone
        naive = Record(src.topic, b"user3", b'{"platform": "p", "event_id": 1}', [])
        offsets = await src.publish_records([junk])
        await src.publish_records([empty, naive])
        raising = await src.publish(event(500, operation="RAISE"))
        cancelling = await src.publish(event(501, operation="CANCEL"))
        expected += await src.publish(*(event(number) for number in range(600, 650)))
        await src.abort(*(event(number) for number in range(2000, 2100)))

        await until(lambda: len(lines(worker, "events")) >= len(expected), bench)
        drained_at = time.monotonic()
        await assert_lag_vanishes(bench, group, src.topic)
        print(f"lag 0 after {time.monotonic() - drained_at:.2f} s")  # noqa: T201 - shown by -s

        got = [line.split("\t") for line in lines(worker, "events")]
        assert Counter(one for one, *_ in got) == Counter(repr(one) for one in expected)
        assert {connector for _, connector, _ in got} == {src.origin.connector_id}
        assert all("tzinfo=datetime.timezone.utc" in one for one, *_ in got)
        await until(lambda: len(lines(worker, "permissions")) == 3, bench)
        started, granted, ended = lines(worker, "permissions")
        assert started.startswith("SnapshotStart(snapshot_id='s1'")
        assert granted == f"Grant(snapshot_id='s1', snapshot={grant!r})"
        assert "is_complete=False" in ended
        assert "scopes_denied={'db2': 'denied'}" in ended

        # Each agent of the topic answers for itself.
        letters = await committed(bench.bootstrap_servers, agents_dead_topic(group))
        by_agent: dict[str, list[Any]] = {}
        for letter in letters:
            by_agent.setdefault(dict(letter.headers)["agent"].decode(), []).append(letter)
        raised = src.record(raising[0]).value
        cancelled = src.record(cancelling[0]).value
        bad = [junk.value, None, naive.value]
        assert Counter(one.value for one in by_agent["events"]) == Counter(
            [*bad, raised, cancelled]
        )
        assert Counter(one.value for one in by_agent["by_hand"]) == Counter([*bad, raised])
        (letter,) = [one for one in by_agent["events"] if one.value == junk.value]
        headers = dict(letter.headers)
        (place,) = [(number, first) for number, (first, _) in offsets[src.topic].items()]
        assert (int(headers["partition"]), int(headers["offset"])) == place
        assert headers["topic"].decode() == src.topic
        assert headers["app_id"].decode() == group
        assert headers["connector_id"].decode() == src.origin.connector_id  # kept
        assert "not a raw event" in headers["reason"].decode()
        assert letter.key == b"user1"
        (letter,) = [one for one in by_agent["events"] if one.value == raised]
        assert (
            dict(letter.headers)["reason"] == b"RuntimeError: this one can't be processed \\udc00"
        )

        # A graceful stop, then a kill: what was committed is not repeated.
        before = len(expected)
        assert worker.terminate() < 8
        worker.start()
        expected += await src.publish(event(700))
        await until(lambda: len(lines(worker, "events")) > before, bench)
        await assert_lag_vanishes(bench, group, src.topic)
        worker.kill()
        worker.start()
        expected += await src.publish(event(701))
        await until(lambda: len(lines(worker, "events")) > before + 1, bench)
        await assert_lag_vanishes(bench, group, src.topic)
        got = [line.split("\t") for line in lines(worker, "events")]
        assert Counter(one for one, *_ in got) == Counter(repr(one) for one in expected)
        assert len(lines(worker, "permissions")) == 3
        by_hand = Counter(lines(worker, "by_hand"))
        assert by_hand == Counter([one.event_id for one in [*expected, *cancelling]])


async def test_a_dead_letter_that_cant_be_published_stops_the_worker(bench: Bench) -> None:
    """Exit code 1, and the poison record is not committed: it would be lost."""
    group = f"{bench.name}-app"
    admin = AIOKafkaAdminClient(bootstrap_servers=bench.bootstrap_servers)
    await admin.start()
    limit = {"max.message.bytes": "300"}
    await admin.create_topics([NewTopic(agents_dead_topic(group), 1, 1, topic_configs=limit)])
    await admin.close()
    async with source(bench) as src:
        await src.publish(event(1, principal_ref="one"))
        poison = Record(src.topic, b"one", b"x" * 1000, [])
        offsets = await src.publish_records([poison])
        await src.publish(event(2, principal_ref="one"))
    worker = start(bench, AGENTS, group)
    assert worker.process is not None
    code = await asyncio.to_thread(worker.process.wait, 90)
    assert code == 1, worker.log[-3000:]
    assert "A dead letter can't be published, so the worker stops" in worker.log
    ((partition, (offset, _)),) = offsets[src.topic].items()
    place = TopicPartition(src.topic, partition)
    assert (await committed_offsets(bench, group)).get(place, 0) <= offset


NOTE_IDS = """
import os
from verity_stream import create_app, raw_topic, verity_agent

app = create_app(os.environ["TEST_APP_ID"])
ids = open(os.environ["TEST_DIRECTORY"] + f"/ids-{os.getpid()}", "a", buffering=1)

@verity_agent(app, raw_topic(app, os.environ["TEST_PLATFORM"]))
async def note(event):
    ids.write(event.event_id + "\\n")
"""


async def test_a_second_worker_joins_and_leaves_under_load(bench: Bench) -> None:
    """Each committed event once, none of the aborted; offsets that run ahead would lose some."""
    group = f"{bench.name}-app"
    async with source(bench) as src:
        first = start(bench, NOTE_IDS, group)
        await until_ready(first, bench)
        published: list[str] = []
        is_over = False

        async def load() -> None:
            while not is_over:
                number = len(published)
                await src.publish(event(number))
                published.append(f"e{number}")
                if number % 50 == 0:
                    await src.abort(*(event(number, event_id="aborted") for _ in range(20)))

        def noted() -> Counter[str]:
            files = first.directory.glob("ids-*")
            return Counter(one for file in files for one in file.read_text().split())

        def count(worker: Worker) -> int:
            assert worker.process is not None
            path = worker.directory / f"ids-{worker.process.pid}"
            return len(path.read_text().split()) if path.exists() else 0

        loading = asyncio.create_task(load())
        await until(lambda: count(first) > 100, bench)
        second = start(bench, NOTE_IDS, group)
        await until(lambda: count(second) > 100, bench)
        second.terminate()
        so_far = count(first)
        await until(lambda: count(first) > so_far + 100, bench)
        is_over = True
        await loading
        await until(lambda: set(noted()) >= set(published), bench)
        await assert_lag_vanishes(bench, group, src.topic)
        assert noted() == Counter(published)


def expected_bursts(events: Iterable[RawEvent]) -> set[tuple[str, float]]:
    """By brute force: who failed five times in which minute, minutes beginning every 30 s."""
    counts: Counter[tuple[str, float]] = Counter()
    for one in events:
        if one.operation == "LOGIN_FAILED":
            at = one.occurred_at.timestamp()
            newest = at // 30 * 30
            counts.update((one.principal_ref, start) for start in (newest - 30, newest))
    return {key for key, count in counts.items() if count >= 5}


async def test_the_examples_raise_every_alert_across_a_kill(bench: Bench) -> None:
    """Exactly the expected alerts; across a kill -9 some may repeat, none is missing."""
    bursts_app, access_app = f"{bench.name}-bursts", f"{bench.name}-access"
    began = NOW - timedelta(minutes=10)
    events = []
    for number in range(600):
        # Every third principal fails all the time, the others now and then.
        user = number % 20
        fails = user % 3 == 0 or number % 7 == 0
        at = began + timedelta(seconds=number / 2, microseconds=number)
        events.append(
            event(
                number,
                occurred_at=at,
                principal_ref=f"user{user}",
                asset_ref=f"table{number * number % 11}",
                operation="LOGIN_FAILED" if fails else "READ.SELECT",
            )
        )
    # A burst of one principal across the border of a minute.
    border = datetime.fromtimestamp(began.timestamp() // 60 * 60, UTC)
    events += [
        event(
            1000 + number,
            occurred_at=border + timedelta(seconds=number - 3),
            principal_ref="burst",
            operation="LOGIN_FAILED",
        )
        for number in range(6)
    ]
    bursts = expected_bursts(events)
    assert ("burst", border.timestamp() - 30) in bursts
    assert 5 < len({who for who, _ in bursts}) < 15
    accesses = {}
    for one in events:
        accesses.setdefault((one.principal_ref, one.asset_ref), one.event_id)

    async def alerts(app_id: str) -> list[dict[str, Any]]:
        found = await committed(bench.bootstrap_servers, f"alerts.{app_id}")
        return [orjson.loads(one.value) for one in found]

    async with source(bench) as src:
        workers = [
            start(bench, EXAMPLE.format(module="failed_logins"), bursts_app),
            start(bench, EXAMPLE.format(module="new_access"), access_app),
        ]

        killed = asyncio.Event()

        async def publish() -> None:
            for first in range(0, len(events), 3):
                await src.publish(*events[first : first + 3])
                if first == 300:
                    await src.abort(*(event(n, asset_ref="aborted") for n in range(5000, 5030)))
                if first == 450:
                    await killed.wait()
                await asyncio.sleep(0.03)

        for worker in workers:
            await until_ready(worker, bench)
        publishing = asyncio.create_task(publish())

        async def some_are_out() -> bool:
            return bool(await alerts(bursts_app) and await alerts(access_app))

        await eventually(some_are_out, 90, bench.logs)
        for worker in workers:
            worker.kill()
        assert not publishing.done(), "killed in mid-stream"
        killed.set()
        for worker in workers:
            worker.start()
        await publishing

        async def lag_is_0() -> bool:
            return not (
                await lag(bench, bursts_app, src.topic) or await lag(bench, access_app, src.topic)
            )

        await eventually(lag_is_0, 90, bench.logs)
    burst_alerts, access_alerts = await alerts(bursts_app), await alerts(access_app)
    found = {(one["principal_ref"], one["window_start"]) for one in burst_alerts}
    assert found == bursts, bench.logs()
    firsts = {(one["principal_ref"], one["asset_ref"], one["event_id"]) for one in access_alerts}
    assert firsts == {(*pair, event_id) for pair, event_id in accesses.items()}, bench.logs()
    print(  # noqa: T201 - shown by -s
        f"alerts: {len(burst_alerts)} for {len(bursts)} bursts, "
        f"{len(access_alerts)} for {len(accesses)} first accesses"
    )


@pytest.fixture
def run_plain(bench: Bench) -> Iterator[Callable[[str], Path]]:
    """Start a plain example; returns the file of its output."""
    processes = []

    def run(name: str) -> Path:
        output = bench.directory / f"{name}.out"
        with output.open("wb") as file:
            command = [sys.executable, str(EXAMPLES / f"{name}.py")]
            processes.append(
                subprocess.Popen(
                    [*command, bench.bootstrap_servers, bench.name], stdout=file, stderr=file
                )
            )
        return output

    yield run
    for process in processes:
        process.kill()
        process.wait(10)


async def test_plain_consumers_read_committed_events(
    bench: Bench, run_plain: Callable[[str], Path]
) -> None:
    """Every event once, none of an aborted transaction."""
    async with source(bench) as src:
        await src.publish(event(0))
        await src.abort(*(event(number) for number in range(100, 150)))
        await src.publish(*(event(number) for number in range(1, 50)))
    outputs = [run_plain("plain_aiokafka"), run_plain("plain_confluent")]
    expected = {f"e{number}" for number in range(50)}
    await until(lambda: all(len(one.read_text().split()) >= 50 for one in outputs), bench)
    for output in outputs:
        assert Counter(output.read_text().split()) == Counter(expected)
