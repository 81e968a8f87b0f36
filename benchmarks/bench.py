"""What all measurements share: the servers, topics that come and go, counting, one relay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from benchmarks.workload import MemoryConnector
from verity_sdk.batches import Limits
from verity_stream.dev.stack import KafkaServer
from verity_stream.kafka.committed import CommittedReader
from verity_stream.kafka.topics import Topics
from verity_stream.kafka.transactions import KafkaPublisher
from verity_stream.postgres.checkpoints import PostgresCheckpoints
from verity_stream.postgres.pool import create_pool, migrate
from verity_stream.records import CHECKPOINTS_TOPIC, raw_topic
from verity_stream.relay.id_log import KafkaIdLog
from verity_stream.relay.ids import IdHasher
from verity_stream.relay.relay import Relay
from verity_stream.relay.sources import source_of
from verity_stream.settings import ConnectorOptions, ConnectorSpec, StreamSettings
from verity_stream.status import State, Status, utc_now

LOOKBACK = timedelta(days=30)
"""Beyond all events: the seen window holds every id that was published."""


@dataclass
class Bench:
    """The servers of a run, connected."""

    settings: StreamSettings
    pool: Any
    admin: AIOKafkaAdminClient
    topics: Topics
    kafka_server: KafkaServer

    @asynccontextmanager
    async def topic(self, platform: str) -> AsyncIterator[str]:
        """The platform's raw topic, removed afterwards so that the disk does not fill."""
        name = raw_topic(platform)
        await self.topics.ensure({name, CHECKPOINTS_TOPIC})
        try:
            # Also waits until every partition has its leader.
            assert await self.committed_count(name) == 0
            yield name
        finally:
            await self.admin.delete_topics([name])

    async def committed_count(self, topic: str) -> int:
        """How many records a reader of committed records finds in the topic."""
        consumer = AIOKafkaConsumer(
            **self.settings.kafka.client_options(),
            group_id=None,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            fetch_max_wait_ms=50,
        )
        await consumer.start()
        try:
            places = [TopicPartition(topic, n) for n in range(self.settings.kafka.event_partitions)]
            consumer.assign(places)
            ends = await consumer.end_offsets(places)
            count = 0
            unread = {place for place in places if ends[place]}
            while unread:
                batches = await consumer.getmany(*unread, timeout_ms=200, max_records=5000)
                count += sum(map(len, batches.values()))
                for place in list(unread):
                    if await consumer.position(place) >= ends[place]:
                        unread.discard(place)
            return count
        finally:
            await consumer.stop()

    def publisher(self, connector_id: str | None) -> KafkaPublisher:
        """As the worker makes it; without a connector one without transactions."""
        return KafkaPublisher(
            self.settings.kafka,
            transactional_id=connector_id and f"verity.{connector_id}",
            transaction_timeout=self.settings.transaction_timeout,
        )


@asynccontextmanager
async def connected(settings: StreamSettings, kafka_server: KafkaServer) -> AsyncIterator[Bench]:
    """Connect to the servers and apply the migrations."""
    pool = await create_pool(settings.database)
    admin = AIOKafkaAdminClient(**settings.kafka.client_options())
    await admin.start()
    try:
        await migrate(pool)
        yield Bench(settings, pool, admin, Topics(settings), kafka_server)
    finally:
        await admin.close()
        await pool.close()


@dataclass(slots=True)
class WatchedStatus(Status):
    """Notes when the first pass has ended: everything is committed and persisted."""

    is_done: asyncio.Event = field(default_factory=asyncio.Event)
    done_at: float = 0.0

    def enter(self, state: State, **details: Any) -> None:
        """As `Status.enter`."""
        # Named, because a dataclass with slots is a new class, which a bare super() misses.
        Status.enter(self, state, **details)
        if state is State.CAUGHT_UP and not self.is_done.is_set():
            self.done_at = asyncio.get_running_loop().time()
            self.is_done.set()


class WatchedCheckpoints(PostgresCheckpoints):
    """Notes when each page was persisted."""

    def __init__(self, pool: Any) -> None:
        super().__init__(pool)
        self.persisted_at: list[float] = []

    async def persist(self, *args: Any, **kwargs: Any) -> Any:
        """As `PostgresCheckpoints.persist`."""
        outcome = await super().persist(*args, **kwargs)
        self.persisted_at.append(asyncio.get_running_loop().time())
        return outcome


@dataclass
class RelayRun:
    """One relay as the worker assembles it, from its start to its end."""

    bench: Bench
    connector: Any
    connector_id: str
    platform: str
    seconds_max: float = 120.0
    status: WatchedStatus = field(init=False)
    store: WatchedCheckpoints = field(init=False)
    relay: Relay = field(init=False)
    started_at: float = 0.0

    def __post_init__(self) -> None:
        bench, settings = self.bench, self.bench.settings
        options = ConnectorOptions(
            type="memory", poll_every=timedelta(milliseconds=1), lookback=LOOKBACK
        )
        spec = ConnectorSpec(
            self.connector_id, type(self.connector), self.platform, self.connector.config, options
        )
        self.status = WatchedStatus(self.connector_id, self.platform)
        self.store = WatchedCheckpoints(bench.pool)
        limits = Limits(settings.page_events, settings.page_wait, settings.fetch_timeout)
        reader = CommittedReader(settings.kafka, settings.checkpoint_partitions)
        self.relay = Relay(
            spec,
            settings,
            source_of(self.connector, spec.lookback, limits, utc_now),
            bench.publisher(self.connector_id),
            self.store,
            reader,
            KafkaIdLog(reader, settings.checkpoint_partitions, IdHasher(bytes(16))),
            bench.topics.ensure,
            self.status,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run it; on leaving it has finished its page and closed its producer."""
        self.started_at = asyncio.get_running_loop().time()
        task = asyncio.create_task(self.relay.run())
        try:
            yield
        finally:
            self.relay.halt()
            await asyncio.wait({task}, timeout=self.seconds_max)
            # Halting cancels a relay that only waits for its next pass.
            if not (task.done() and task.cancelled()):
                await asyncio.wait_for(task, 1)

    async def until_done(self) -> None:
        """Wait until the first pass is persisted."""
        await asyncio.wait_for(self.status.is_done.wait(), self.seconds_max)

    @property
    def start_seconds(self) -> float:
        """From the start of the relay until it asks its source."""
        return float(self.connector.asked_at - self.started_at)

    @property
    def pass_seconds(self) -> float:
        """From the first question to the source until all is committed and persisted."""
        return float(self.status.done_at - self.connector.asked_at)


def memory(events: Any, **config: Any) -> MemoryConnector:
    """A plain connector over these events."""
    return MemoryConnector({"events": events, **config})
