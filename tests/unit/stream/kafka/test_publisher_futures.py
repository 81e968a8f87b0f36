"""What becomes of the batches of a page that is refused half-way."""

from __future__ import annotations

import asyncio
import gc
from datetime import timedelta
from typing import Any

import pytest
from aiokafka.errors import ProducerFenced

from verity_common.kafka import KafkaSettings
from verity_stream.kafka.clients import Clients
from verity_stream.kafka.transactions import Batches, KafkaPublisher


class Batch:
    def close(self) -> None: ...

    def append(self, **record: Any) -> object:
        return object()


class Fenced:
    """Takes a batch, is fenced, and refuses the next: the first one's future fails as well."""

    def __init__(self) -> None:
        self.taken: list[asyncio.Future[Any]] = []

    async def start(self) -> None:
        pass

    def create_batch(self) -> Batch:
        return Batch()

    async def send_batch(self, batch: Batch, topic: str, *, partition: int) -> Any:
        if self.taken:
            self.taken.pop().set_exception(ProducerFenced())
            raise ProducerFenced
        self.taken.append(asyncio.get_running_loop().create_future())
        return self.taken[0]


async def test_nobody_misses_the_future_of_a_batch_before_the_refused_one() -> None:
    """asyncio logs a future whose error nobody saw, which looks like a bug to operators."""
    unseen: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    producer: Any = Fenced()
    publisher = KafkaPublisher(
        KafkaSettings(),
        transactional_id="t",
        transaction_timeout=timedelta(seconds=1),
        clients=Clients(producer=lambda **_: producer),
    )
    await publisher.start()
    page = Batches(producer, {"topic": {b"a": 0, b"b": 1}})
    for key in (b"a", b"b"):
        page.add("topic", key, b"", [])
    with pytest.raises(ProducerFenced):
        await publisher.send(page)
    del page
    await asyncio.sleep(0)
    gc.collect()
    await asyncio.sleep(0)
    assert unseen == []
