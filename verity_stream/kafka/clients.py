"""Kafka's clients: where they are made, so that others can stand in their place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient

from verity_common.kafka import KafkaSettings
from verity_sdk.errors import Misconfigured, Unavailable
from verity_stream.kafka.errors import as_verity_error

ADMIN_SECONDS = 10.0
"""Asking which topics there are."""


class Clients(NamedTuple):
    """Makers of clients, each called with aiokafka's options; the simulator hands in its own."""

    producer: Callable[..., Any] = AIOKafkaProducer
    consumer: Callable[..., Any] = AIOKafkaConsumer
    admin: Callable[..., Any] = AIOKafkaAdminClient


AIOKAFKA = Clients()


@asynccontextmanager
async def consumer_of(
    kafka: KafkaSettings, isolation_level: str, clients: Clients = AIOKAFKA
) -> AsyncIterator[Any]:
    """A consumer without a group, started and stopped; assign it what it is to read."""
    consumer = clients.consumer(
        **kafka.client_options(),
        group_id=None,
        enable_auto_commit=False,
        isolation_level=isolation_level,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=50,
    )
    try:
        await consumer.start()
        yield consumer
    finally:
        await consumer.stop()


@asynccontextmanager
async def kafka_admin(
    kafka: KafkaSettings, seconds: float, clients: Clients = AIOKAFKA
) -> AsyncIterator[AIOKafkaAdminClient]:
    """An admin client, started and closed; everything within takes at most `seconds`.

    Raises:
        Unavailable, Denied, Misconfigured: What Kafka's client raised, by who must act.
    """
    try:
        admin = clients.admin(**kafka.client_options())
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
    kafka: KafkaSettings,
    is_wanted: Callable[[str], bool],
    seconds: float = ADMIN_SECONDS,
    clients: Clients = AIOKAFKA,
) -> dict[str, int]:
    """How many partitions each of the wanted topics has that exist.

    Raises:
        Unavailable, Denied: As `kafka_admin`.
    """
    async with kafka_admin(kafka, seconds, clients) as admin:
        # Asked for by name, a missing topic might be created by the broker, with its own settings.
        present = [name for name in await admin.list_topics() if is_wanted(name)]
        described = await admin.describe_topics(present) if present else []
    return {topic["topic"]: len(topic["partitions"]) for topic in described}


def partitions_of(counts: Mapping[str, int]) -> list[TopicPartition]:
    """Every partition of topics that have so many."""
    return [TopicPartition(name, one) for name, count in counts.items() for one in range(count)]
