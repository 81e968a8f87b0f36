"""Kafka's clients: where they are made, so that others can stand in their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient


class Clients(NamedTuple):
    """Makers of clients, each called with aiokafka's options; the simulator hands in its own."""

    producer: Callable[..., Any] = AIOKafkaProducer
    consumer: Callable[..., Any] = AIOKafkaConsumer
    admin: Callable[..., Any] = AIOKafkaAdminClient


AIOKAFKA = Clients()
