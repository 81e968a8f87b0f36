"""The ways to bring the same events into Kafka that are compared.

Each takes the connected servers and the workload, publishes it to a new topic of the same
number of partitions, counts what a committed reader finds there, and returns what it took. Its
clients are connected before the clock starts. Nothing is compressed.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import orjson
from aiokafka import AIOKafkaProducer
from confluent_kafka import Producer

from benchmarks.bench import Bench, RelayRun
from benchmarks.workload import MemoryConnector, MemoryPagedConnector, Workload
from verity_common.kafka import create_producer
from verity_sdk.times import format_utc

PAGE = 2000
GATHERED = 10_000
"""So many futures are outstanding at most in the loop that gathers."""
MARKER_SECONDS_MAX = 10.0
JAVA_SECONDS = 120
PAYLOADS = 10_000
"""Java picks its records at random from so many of ours."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one contestant took once.

    Attributes:
        cpu_seconds: Of this process, all its threads; None where another process did the work.
    """

    event_count: int
    seconds: float
    cpu_seconds: float | None

    @property
    def rate(self) -> float:
        """Events per second."""
        return self.event_count / self.seconds


@dataclass(frozen=True, slots=True)
class Contestant:
    """One row of the table.

    Attributes:
        share: It gets one event of so many: a slow loop would take all the time.
    """

    name: str
    title: str
    measure: Callable[[Bench, Workload], Awaitable[Measured]]
    share: int = 1


class _Clock:
    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self, event_count: int) -> Measured:
        return Measured(
            event_count, time.perf_counter() - self._wall, time.process_time() - self._cpu
        )


async def _check(bench: Bench, topic: str, measured: Measured) -> Measured:
    """See that all is there; a commit is answered before its markers stand in all partitions."""
    deadline = time.monotonic() + MARKER_SECONDS_MAX
    while (found := await bench.committed_count(topic)) < measured.event_count:
        if time.monotonic() > deadline:
            break
    if found != measured.event_count:
        raise RuntimeError(f"{topic}: {found} records, expected {measured.event_count}")
    return measured


async def specification(bench: Bench, workload: Workload) -> Measured:
    """The specification's loop: for each event, hand it to the producer, then one upsert.

    As there, `send` is awaited and not its acknowledgement: the checkpoint may pass an event
    that Kafka never took. What is outstanding at the end is awaited here before the clock stops.
    """
    platform = workload.on_new_platform()
    async with bench.topic(platform) as topic, create_producer(bench.settings.kafka) as producer:
        clock = _Clock()
        for event in workload.events:
            body = {**vars(event), "occurred_at": event.occurred_at.isoformat()}
            await producer.send(topic=f"verity.events.raw.{event.platform}", value=body)
            await bench.pool.execute(
                "INSERT INTO connector_checkpoints (connector_id, last_ts) VALUES ($1, $2) "
                "ON CONFLICT (connector_id) DO UPDATE SET last_ts = EXCLUDED.last_ts",
                platform,
                event.occurred_at,
            )
        await producer.flush()
        return await _check(bench, topic, clock.stop(len(workload.events)))


async def sdk_run(bench: Bench, workload: Workload) -> Measured:
    """`BaseConnector.run()`: at least once, acknowledgements and upsert a batch of 1,000."""
    platform = workload.on_new_platform()
    async with bench.topic(platform) as topic, create_producer(bench.settings.kafka) as producer:
        config = {"connector_id": platform, "events": workload.events}
        connector = MemoryConnector(config, producer, bench.pool)
        clock = _Clock()
        await connector.run()
        return await _check(bench, topic, clock.stop(len(workload.events)))


async def gathered(bench: Bench, workload: Workload) -> Measured:
    """aiokafka alone: `send` ready-made bytes, gather the futures; no source, no checkpoint."""
    platform = workload.on_new_platform()
    producer = AIOKafkaProducer(
        **bench.settings.kafka.client_options(), acks="all", enable_idempotence=True
    )
    async with bench.topic(platform) as topic, producer:
        clock = _Clock()
        for start in range(0, len(workload.records), GATHERED):
            records = workload.records[start : start + GATHERED]
            await asyncio.gather(
                *[await producer.send(topic, value, key=key) for key, value in records]
            )
        return await _check(bench, topic, clock.stop(len(workload.records)))


async def batches(bench: Bench, workload: Workload) -> Measured:
    """aiokafka's batches of ready-made bytes, page after page: what is left to the relay's client.

    Idempotent, without transactions, headers, source, window or checkpoint.
    """
    platform = workload.on_new_platform()
    async with bench.topic(platform) as topic:
        publisher = bench.publisher(None)
        await publisher.start()
        try:
            await publisher.open_topic(topic)
            clock = _Clock()
            for start in range(0, len(workload.records), PAGE):
                page = publisher.new_page()
                for key, value in workload.records[start : start + PAGE]:
                    page.add(topic, key, value, [])
                await publisher.publish(page)
            measured = clock.stop(len(workload.records))
        finally:
            await publisher.close()
        return await _check(bench, topic, measured)


class _Delivered:
    """Counts what librdkafka reports as delivered."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, error: Any, _: Any) -> None:
        if error is not None:
            raise RuntimeError(f"not delivered: {error}")
        self.count += 1


def _librdkafka(bench: Bench) -> Producer:
    return Producer(
        {
            "bootstrap.servers": bench.settings.kafka.bootstrap_servers,
            "acks": "all",
            "enable.idempotence": True,
        }
    )


def _produce(producer: Producer, topic: str, key: bytes, value: bytes, **more: Any) -> None:
    while True:
        try:
            producer.produce(topic, value, key, **more)
            break
        except BufferError:
            producer.poll(0.1)
    producer.poll(0)


def _warm(producer: Producer, topic: str) -> None:
    """Connect, and learn the topic, before the clock starts."""
    producer.list_topics(topic, timeout=30)


async def confluent(bench: Bench, workload: Workload) -> Measured:
    """librdkafka alone: `produce` ready-made bytes, poll, flush; no source, no checkpoint."""
    platform = workload.on_new_platform()
    async with bench.topic(platform) as topic:
        producer, delivered = _librdkafka(bench), _Delivered()
        _warm(producer, topic)
        clock = _Clock()
        for key, value in workload.records:
            _produce(producer, topic, key, value, on_delivery=delivered)
        producer.flush(60)
        return await _check(bench, topic, clock.stop(delivered.count))


async def confluent_events(bench: Bench, workload: Workload) -> Measured:
    """librdkafka from the same events: JSON, key and four headers, as our records have them."""
    platform = workload.on_new_platform()
    async with bench.topic(platform) as topic:
        producer, delivered = _librdkafka(bench), _Delivered()
        _warm(producer, topic)
        headers = [
            ("connector_id", platform.encode()),
            ("schema", b"raw_event/1"),
            ("fetched_at", b"2026-01-01T00:00:00.000000Z"),
        ]
        clock = _Clock()
        for event in workload.events:
            body = {**vars(event), "occurred_at": format_utc(event.occurred_at)}
            _produce(
                producer,
                topic,
                event.principal_ref.encode(),
                orjson.dumps(body),
                headers=[("event_id", event.event_id.encode()), *headers],
                on_delivery=delivered,
            )
        producer.flush(60)
        return await _check(bench, topic, clock.stop(delivered.count))


async def java(bench: Bench, workload: Workload) -> Measured:
    """Kafka's own ProducerPerformance, idempotent; as many records before, to warm its JIT."""
    platform, count = workload.on_new_platform(), len(workload.events)
    async with bench.topic(platform) as topic:
        with tempfile.NamedTemporaryFile() as payloads:
            payloads.write(b"\n".join(value for _, value in workload.records[:PAYLOADS]))
            payloads.flush()
            text = await _performance(bench, topic, count, payloads.name)
        # The last line of the kind counts what came after the warm-up.
        reports = re.findall(r"(\d+) records sent, ([\d.]+) records/sec", text)
        await _check(bench, topic, Measured(2 * count, 1.0, None))
        return Measured(count, count / float(reports[-1][1]), None)


async def _performance(bench: Bench, topic: str, count: int, payloads: str) -> str:
    command = bench.kafka_server.java_command(
        "org.apache.kafka.tools.ProducerPerformance",
        f"--topic={topic}",
        f"--num-records={2 * count}",
        f"--warmup-records={count}",
        f"--payload-file={payloads}",
        "--throughput=-1",
        "--command-property",
        f"bootstrap.servers={bench.settings.kafka.bootstrap_servers}",
        "acks=all",
        "enable.idempotence=true",
    )
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), JAVA_SECONDS)
    except BaseException:
        if process.returncode is None:
            process.kill()
        raise
    text = output.decode()
    if process.returncode != 0 or "records/sec" not in text:
        raise RuntimeError(f"ProducerPerformance ended with {process.returncode}:\n{text}")
    return text


async def _relay(bench: Bench, workload: Workload, make: Callable[[Any], Any]) -> Measured:
    platform = workload.on_new_platform()
    async with bench.topic(platform) as topic:
        connector = make({"events": workload.events})
        run = RelayRun(bench, connector, platform, platform)
        async with run.running():
            await connector.is_asked.wait()
            clock = _Clock()
            await run.until_done()
            cpu_seconds = clock.stop(0).cpu_seconds
        measured = Measured(len(workload.events), run.pass_seconds, cpu_seconds)
        row = await run.store.load(platform)
        assert row is not None
        assert row.last_ts == workload.events[-1].occurred_at
        return await _check(bench, topic, measured)


async def relay_plain(bench: Bench, workload: Workload) -> Measured:
    """The relay, exactly once, from a connector that yields single events."""
    return await _relay(bench, workload, MemoryConnector)


async def relay_paged(bench: Bench, workload: Workload) -> Measured:
    """The relay, exactly once, from a connector that yields pages; they are coalesced."""
    return await _relay(bench, workload, _pages_of(PAGE))


async def relay_small_pages(bench: Bench, workload: Workload) -> Measured:
    """As `relay_paged`, with smaller pages to coalesce."""
    return await _relay(bench, workload, _pages_of(500))


async def relay_one_by_one(bench: Bench, workload: Workload) -> Measured:
    """As `relay_paged`, but every page is a transaction."""
    settings = bench.settings.model_copy(update={"page_events": PAGE})
    return await _relay(replace(bench, settings=settings), workload, _pages_of(PAGE))


def _pages_of(event_count: int) -> Callable[[Any], MemoryPagedConnector]:
    return lambda config: MemoryPagedConnector({**config, "page_events": event_count})


CONTESTANTS = (
    Contestant("spec", "the specification's loop", specification, 50),
    Contestant("sdk", "BaseConnector.run(), at least once", sdk_run),
    Contestant("gather", "aiokafka send + gather, ready-made bytes", gathered),
    Contestant("batches", "aiokafka batches by the page, ready-made bytes", batches),
    Contestant("confluent", "idempotent, ready-made bytes", confluent),
    Contestant("confluent-events", "idempotent, from the events", confluent_events),
    Contestant("java", "ProducerPerformance, idempotent, no keys", java),
    Contestant("relay", "exactly once, single events", relay_plain),
    Contestant("relay-2000", "exactly once, pages of 2,000", relay_paged),
    Contestant("relay-500", "exactly once, pages of 500", relay_small_pages),
    Contestant("uncoalesced", "relay, pages of 2,000, a transaction each", relay_one_by_one),
)
