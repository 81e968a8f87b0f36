"""What the contract tests of the stream application share: names, records, readers."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from verity_common.kafka import KafkaSettings
from verity_stream.kafka.clients import AIOKAFKA, Clients
from verity_stream.kafka.topics import Topics
from verity_stream.kafka.transactions import KafkaPublisher
from verity_stream.records import (
    CHECKPOINTS_TOPIC,
    Checkpoint,
    Offsets,
    Origin,
    PageSummary,
    Partition,
    Record,
    checkpoint_record,
    raw_topic,
)
from verity_stream.settings import StreamSettings

AT = datetime(2026, 1, 1, tzinfo=UTC)
FETCHED_AT = "2026-01-01T00:00:00.000000Z"


def kafka_settings(bootstrap_servers: str, **fields: Any) -> KafkaSettings:
    return KafkaSettings(
        **{
            "bootstrap_servers": bootstrap_servers,
            "request_timeout_seconds": 5,
            "event_partitions": 2,
            **fields,
        }
    )


def stream_settings(bootstrap_servers: str, **fields: Any) -> StreamSettings:
    """Settings of a worker; topics get two partitions, which is enough and quick."""
    return StreamSettings(**{"kafka": kafka_settings(bootstrap_servers), **fields})


def new_name() -> str:
    """A platform or connector that no other test knows."""
    return f"t{secrets.token_hex(4)}"


async def create(bootstrap_servers: str, *topics: str) -> None:
    await Topics(stream_settings(bootstrap_servers)).ensure(topics)


async def new_topic(bootstrap_servers: str) -> str:
    """A raw topic of its own, with two partitions."""
    topic = raw_topic(new_name())
    await create(bootstrap_servers, topic, CHECKPOINTS_TOPIC)
    return topic


def publisher(
    kafka: KafkaSettings,
    transactional_id: str | None,
    seconds: float = 20,
    clients: Clients = AIOKAFKA,
) -> KafkaPublisher:
    return KafkaPublisher(
        kafka,
        transactional_id=transactional_id,
        transaction_timeout=timedelta(seconds=seconds),
        clients=clients,
    )


class Makes:
    """Kafka's clients, of which the producer is within reach.

    Attributes:
        producer: What was made last.
    """

    producer: Any = None

    def __init__(self) -> None:
        self.clients = Clients(producer=self._make)

    def _make(self, **options: Any) -> AIOKafkaProducer:
        self.producer = AIOKafkaProducer(**options)
        return self.producer


async def published(
    one: KafkaPublisher,
    records: Iterable[Record],
    seal: Callable[[Offsets], Iterable[Record]] | None = None,
    *last: Partition,
) -> Offsets:
    """Publish as a relay does: a page that was filled before, and what closes it."""
    page = one.new_page()
    for each in records:
        await one.open_topic(each.topic)
        page.add(*each)
    async with one.transaction(*last) as transaction:
        offsets = await transaction.send(page)
        if seal is not None:
            await transaction.send_in_order(seal(offsets))
    return offsets


def record(topic: str, number: int, connector: str = "c", **fields: Any) -> Record:
    return Record(
        **{
            "topic": topic,
            "key": f"key{number % 5}".encode(),
            "value": str(number).encode(),
            "headers": [("event_id", f"e{number}".encode()), ("connector_id", connector.encode())],
            **fields,
        }
    )


def checkpoint_of(connector: str, version: int, epoch: int = 1) -> Record:
    origin = Origin(connector, "p", FETCHED_AT)
    return checkpoint_record(origin, Checkpoint(connector, version, epoch, AT), PageSummary())


def neighbour(connector: str, partition_for: Any) -> str:
    """Another connector whose checkpoints stand in the same partition."""
    wanted = partition_for(connector, 24)
    while True:
        name = new_name()
        if partition_for(name, 24) == wanted:
            return name


async def watermarks(bootstrap_servers: str, topic: str) -> dict[int, tuple[int, int]]:
    """For each partition the last stable offset and the high watermark."""
    ends = []
    for isolation_level in ("read_committed", "read_uncommitted"):
        consumer = AIOKafkaConsumer(
            bootstrap_servers=bootstrap_servers, isolation_level=isolation_level
        )
        await consumer.start()
        try:
            await consumer._client.add_topic(topic)  # noqa: SLF001 - aiokafka's
            places = [TopicPartition(topic, one) for one in consumer.partitions_for_topic(topic)]
            ends.append(await consumer.end_offsets(places))
        finally:
            # aiokafka's stop() fails where nothing was awaited since the start.
            await asyncio.sleep(0)
            await consumer.stop()
    stable, high = ends
    return {place.partition: (stable[place], high[place]) for place in high}


def values(records: Iterable[Any]) -> list[str]:
    return sorted(one.value.decode() for one in records)
