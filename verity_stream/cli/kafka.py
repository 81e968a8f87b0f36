"""Looking into Kafka for a person: which topics there are, and what is committed in them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient

from verity_common.kafka import KafkaSettings
from verity_sdk.errors import Malformed, Misconfigured, Unavailable
from verity_stream.checkpoints import KafkaTopicReader, _consumer
from verity_stream.publisher import as_verity_error
from verity_stream.records import CHECKPOINTS_TOPIC, Checkpoint, decode_checkpoint


@asynccontextmanager
async def kafka_admin(kafka: KafkaSettings, seconds: float) -> AsyncIterator[AIOKafkaAdminClient]:
    """An admin client, started and closed; everything within takes at most `seconds`.

    Raises:
        Unavailable, Denied, Misconfigured: What Kafka's client raised, by who must act.
    """
    try:
        admin = AIOKafkaAdminClient(**kafka.client_options())
    except ValueError as error:
        raise Misconfigured(str(error)) from error
    try:
        async with asyncio.timeout(seconds):
            try:
                await admin.start()
                yield admin
            finally:
                await admin.close()
    except TimeoutError:
        raise Unavailable(f"Kafka did not answer within {seconds:g} s") from None
    except kafka_errors.KafkaError as error:
        raise as_verity_error(error) from error


async def partition_counts(
    kafka: KafkaSettings, topics: Iterable[str], seconds: float
) -> Mapping[str, int]:
    """How many partitions each of these topics has; those that do not exist are left out.

    Raises:
        Unavailable, Denied: As `kafka_admin`.
    """
    async with kafka_admin(kafka, seconds) as admin:
        # Asked for by name, a missing topic might be created by the broker, with its own settings.
        present = [name for name in await admin.list_topics() if name in set(topics)]
        described = await admin.describe_topics(present) if present else []
    return {topic["topic"]: len(topic["partitions"]) for topic in described}


class CommittedReader(KafkaTopicReader):
    """Reads whole topics, committed records only.

    Args:
        kafka: How to reach the brokers.
        seconds: How long asking for the partitions may take.
        waits_for_open: Read up to the high watermark, waiting for transactions that are open;
            else up to the last stable offset, which is there at once.
    """

    def __init__(
        self, kafka: KafkaSettings, *, seconds: float = 10, waits_for_open: bool = True
    ) -> None:
        super().__init__(kafka, 1)
        self._seconds = seconds
        self._waits_for_open = waits_for_open

    async def records(self, topic: str) -> list[Any]:
        """Every committed record of a topic, in order within each partition; none without it."""
        counts = await partition_counts(self._kafka, [topic], self._seconds)
        places: dict[TopicPartition, int | None] = {
            TopicPartition(topic, number): None for number in range(counts.get(topic, 0))
        }
        return [record async for records in self._read(places) for record in records]

    async def last_checkpoints(self) -> Mapping[str, Checkpoint | Malformed]:
        """The last committed checkpoint record of every connector; the topic is read once."""
        values: dict[str, bytes | None] = {}
        for record in await self.records(CHECKPOINTS_TOPIC):
            if record.key is not None:  # Without one it is nobody's.
                values[record.key.decode("utf-8", "replace")] = record.value
        found: dict[str, Checkpoint | Malformed] = {}
        for connector_id, value in values.items():
            if value is None:
                continue
            try:
                found[connector_id] = decode_checkpoint(value)
            except Malformed as error:
                found[connector_id] = error
        return found

    async def _high_watermarks(self, places: list[TopicPartition]) -> Mapping[Any, int]:
        if self._waits_for_open:
            return await super()._high_watermarks(places)
        async with _consumer(self._kafka, "read_committed") as consumer:
            consumer.assign(places)
            ends: Mapping[Any, int] = await consumer.end_offsets(places)
            return ends
