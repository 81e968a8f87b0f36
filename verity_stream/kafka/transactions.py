"""Publishing in transactions: all that is sent in one becomes visible, or nothing.

`KafkaPublisher` is the only place that writes to Kafka. Its contract:

1. After a `transaction` ends, every record sent in it is committed: readers of committed records
   will see them all. (The broker answers before its markers stand in every partition: the last
   stable offset may follow some milliseconds later.)
2. After it raises, none of them will ever be visible, or (only if the outcome of the commit
   itself is unknown) all of them: the topic is asked at the next start.
3. After it raises or is cancelled, the publisher is spent: close it and make a new one.
   aiokafka has advanced its sequence numbers, and the next transaction would fail.
4. `start` fences every older publisher of the same transactional id and aborts what it left.

Without a transactional id (`at_least_once`) the producer is idempotent and 2. becomes: some of
the records may be visible.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Protocol

import structlog
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.producer.message_accumulator import BatchBuilder

from verity_common.kafka import KafkaSettings, abandon
from verity_sdk.errors import Misconfigured, Unavailable
from verity_stream.failpoints import passing
from verity_stream.kafka.clients import AIOKAFKA, Clients
from verity_stream.kafka.errors import as_verity_error
from verity_stream.kafka.partitions import partition_of_key
from verity_stream.records import Headers, Offsets, Partition, Record

logger = structlog.get_logger(__name__)

BATCH_BYTES = 256 * 1024
"""A batch is closed at this size: large enough to be cheap, well below a broker's limit of 1 MB.

A broker's message.max.bytes limits a batch, not a record: where the longest record is set lower,
so is this."""

CLOSE_SECONDS = 5.0
STATE_ERRORS = (AssertionError, kafka_errors.IllegalOperation)
"""How aiokafka says that its state no longer allows a call; neither is one of its KafkaErrors."""
KEYS_CACHED_MAX = 65_536
NOT_KNOWN: Mapping[str, int] = MappingProxyType({})


class OutgoingPage(Protocol):
    """Records that are published together."""

    @property
    def record_count(self) -> int:
        """How many were added."""

    def add(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        partition: int | None = None,
    ) -> None:
        """Add a record of a topic that was opened; without a partition the key has one."""


class Transaction(Protocol):
    """An open transaction. Every acknowledgement is awaited before a method returns."""

    async def send(self, page: Any, /) -> Offsets:
        """Send a page that was filled, or records; returns the offsets they took."""

    async def send_in_order(self, records: Iterable[Record], /) -> None:
        """Send records, of which without a transaction no later one may be visible alone."""


class Publisher(Protocol):
    """What a relay needs; see the module's contract."""

    async def start(self) -> None:
        """Connect and fence; raises one of the five errors."""

    def new_page(self) -> OutgoingPage:
        """A page to fill; nothing is sent, and the page before may be on its way meanwhile."""

    async def open_topic(self, topic: str) -> None:
        """Learn what there is to know of a topic that exists, so that records can be added."""

    def transaction(self, *last: Partition) -> AbstractAsyncContextManager[Transaction]:
        """One transaction; see the module's contract.

        Args:
            last: Partitions of the records that are sent at its end: they join it together with
                the others, which saves a round trip.
        """

    async def close(self) -> None:
        """Abort what is open and disconnect; never raises, bounded in time."""


class _Partitions(dict[bytes | None, int]):
    """Keys and their partitions, as Kafka's default partitioner has them; remembered, bounded."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def __missing__(self, key: bytes | None) -> int:
        partition = 0 if key is None else partition_of_key(key, self._count)
        if len(self) >= KEYS_CACHED_MAX:
            self.clear()
        self[key] = partition
        return partition


class Batches:
    """A page of records as Kafka's batches.

    Args:
        producer: Makes the batches and sends them.
        partitions: The partition of every key, for each topic that was opened.
    """

    def __init__(
        self, producer: AIOKafkaProducer, partitions: Mapping[str, Mapping[bytes | None, int]]
    ) -> None:
        self._producer = producer
        self._partitions = partitions
        self._all: list[tuple[str, int, BatchBuilder]] = []
        self._filling = defaultdict[str, dict[int, BatchBuilder]](dict)

    @property
    def record_count(self) -> int:
        """How many records were added."""
        return sum(batch.record_count() for _, _, batch in self._all)

    def add(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        partition: int | None = None,
    ) -> None:
        """Add a record to its partition's batch."""
        if partition is None:
            partition = self._partitions[topic][key]
        try:
            batch = self._filling[topic][partition]
        except KeyError:
            batch = self._begin(topic, partition)
        if batch.append(timestamp=None, key=key, value=value, headers=headers) is None:
            # It is full; a new one takes its first record whatever its size.
            batch = self._begin(topic, partition)
            batch.append(timestamp=None, key=key, value=value, headers=headers)

    def _begin(self, topic: str, partition: int) -> BatchBuilder:
        batch = self._filling[topic][partition] = self._producer.create_batch()
        self._all.append((topic, partition, batch))
        return batch

    def __iter__(self) -> Iterator[tuple[str, int, BatchBuilder]]:
        return iter(self._all)


class KafkaPublisher:
    """Publishes pages through one producer of its own.

    Args:
        kafka: How to reach the brokers.
        transactional_id: Whose transactions these are, or None for `at_least_once`.
        transaction_timeout: After this the broker aborts a page by itself. It also bounds
            how long the page of a relay that died holds back committed readers.
        partitions: Topics with a number of partitions that is known, and not asked of the broker:
            whoever reads them uses the same number. (`topics.placed_partitions`)
        clients: Makes the producer.

    Attributes:
        publish_seconds: How long a transaction may take.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        *,
        transactional_id: str | None,
        transaction_timeout: timedelta,
        partitions: Mapping[str, int] = NOT_KNOWN,
        clients: Clients = AIOKAFKA,
    ) -> None:
        self._is_transactional = transactional_id is not None
        # Beyond the transaction's own time-out nothing can succeed any more; the margin lets
        # the broker's answer arrive.
        self.publish_seconds = transaction_timeout.total_seconds() + 10
        self._start_seconds = kafka.request_timeout_seconds + self.publish_seconds
        options: dict[str, Any] = {
            **kafka.client_options(),
            "acks": "all",
            "compression_type": kafka.compression_type,
            "max_batch_size": min(BATCH_BYTES, kafka.max_record_bytes),
            "max_request_size": max(1_048_576, kafka.max_record_bytes + 65_536),
        }
        if transactional_id is None:
            options["enable_idempotence"] = True
        else:
            options["transactional_id"] = transactional_id
            options["transaction_timeout_ms"] = int(transaction_timeout.total_seconds() * 1000)
        self._clients = clients
        self._options = options
        self._producer: AIOKafkaProducer | None = None
        self._closing: asyncio.Task[None] | None = None
        self._partitions = {topic: _Partitions(count) for topic, count in partitions.items()}

    async def start(self) -> None:
        """Connect, fence older producers and abort what they left open."""
        try:
            self._producer = self._clients.producer(**self._options)
        except (RuntimeError, ValueError) as error:
            raise Misconfigured(f"VERITY_KAFKA__…: {error}") from error
        try:
            await asyncio.wait_for(self._producer.start(), self._start_seconds)
        except TimeoutError:
            raise Unavailable("Kafka did not answer the producer's start in time") from None
        except (kafka_errors.KafkaError, ValueError) as error:
            raise as_verity_error(error) from error

    def new_page(self) -> Batches:
        """An empty page; see the protocol."""
        return Batches(self._started, self._partitions)

    async def open_topic(self, topic: str) -> None:
        """Learn how many partitions a topic has.

        Raises:
            Unavailable: The broker does not say so in time.
        """
        if topic not in self._partitions:
            try:
                count = len(await self._started.partitions_for(topic))
            except kafka_errors.KafkaError as error:
                raise as_verity_error(error) from error
            self._partitions[topic] = _Partitions(count)

    @asynccontextmanager
    async def transaction(self, *last: Partition) -> AsyncIterator[Transaction]:
        """Begin, let the caller send, commit; see the module's contract."""
        producer = self._started
        try:
            async with asyncio.timeout(self.publish_seconds):
                if self._is_transactional:
                    await producer.begin_transaction()
                    for topic, partition in last:
                        await self.open_topic(topic)
                        place = TopicPartition(topic, partition)
                        producer._txn_manager.maybe_add_partition_to_txn(place)
                passing("after_begin")
                yield self
                passing("before_commit")
                # Every acknowledgement was awaited. Committing with one outstanding would commit
                # the rest of the page if that one failed.
                if self._is_transactional:
                    await producer.commit_transaction()
                passing("after_commit")
        except TimeoutError:
            raise Unavailable("Kafka did not take the page within the transaction's time") from None
        except (kafka_errors.KafkaError, *STATE_ERRORS) as error:
            raise as_verity_error(self._cause_of(error, producer)) from error

    def _cause_of(self, error: BaseException, producer: AIOKafkaProducer) -> BaseException:
        """What ended the transaction, where aiokafka only says that its state forbids the call."""
        if not (self._is_transactional and isinstance(error, STATE_ERRORS)):
            return error
        end = producer._txn_manager.wait_for_transaction_end()
        is_known = end is not None and end.done() and not end.cancelled()
        return (end.exception() if is_known else None) or error

    @property
    def _started(self) -> AIOKafkaProducer:
        assert self._producer is not None, "start() comes first"  # noqa: S101 - a bug of ours
        return self._producer

    async def send(self, page: Batches | Iterable[Record], /) -> Offsets:
        """Send in the open transaction; see the protocol."""
        if not isinstance(page, Batches):
            records, page = page, self.new_page()
            for record in records:
                await self.open_topic(record.topic)
                page.add(*record)
        producer = self._started
        futures: list[asyncio.Future[Any]] = []
        for topic, partition, batch in page:
            batch.close()
            future = await producer.send_batch(batch, topic, partition=partition)
            # Where a later batch is refused nobody awaits this one, and asyncio would log an error.
            future.add_done_callback(lambda it: it.cancelled() or it.exception())
            futures.append(future)
        acknowledged = await asyncio.gather(*futures, return_exceptions=True)
        offsets: Offsets = {}
        for (topic, partition, batch), metadata in zip(page, acknowledged, strict=True):
            if isinstance(metadata, BaseException):
                raise metadata
            first, last = metadata.offset, metadata.offset + batch.record_count() - 1
            taken = offsets.setdefault(topic, {})
            if partition in taken:
                first = min(first, taken[partition][0])
                last = max(last, taken[partition][1])
            taken[partition] = (first, last)
        return offsets

    async def send_in_order(self, records: Iterable[Record], /) -> None:
        """Send in the open transaction; see the protocol."""
        if self._is_transactional:
            await self.send(records)
        else:
            for record in records:
                await self.send([record])

    async def close(self) -> None:
        """Abort what is open and disconnect; never raises an error, bounded in time.

        Cancelled, it goes on in the background: the transaction must not stay open.
        """
        producer, self._producer = self._producer, None
        if producer is not None:
            self._closing = asyncio.create_task(self._close(producer))
            await asyncio.shield(self._closing)

    async def _close(self, producer: AIOKafkaProducer) -> None:
        # stop() leaves an open transaction open, which holds back every committed reader of
        # its partitions until the transaction times out: abort first.
        if self._is_transactional and producer._txn_manager.is_in_transaction():
            await _bounded(producer.abort_transaction(), "abort")
        if not await _bounded(producer.stop(), "stop"):
            await abandon(producer)


async def _bounded(step: Any, name: str) -> bool:
    """Run a step of closing; whether it finished in time."""
    try:
        await asyncio.wait_for(step, CLOSE_SECONDS)
    except TimeoutError:
        logger.warning("publisher.close_timed_out", step=name)
        return False
    except (kafka_errors.KafkaError, *STATE_ERRORS) as error:
        # Fenced, or never begun: there is nothing left to abort.
        logger.debug("publisher.close_refused", step=name, error=repr(error))
    return True
