"""Reading what was committed to Kafka: a connector's own records, or whole topics.

Up to the high watermark as it stood at the beginning, not to the last stable offset: an open
transaction of another connector lower in the partition would hide records behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Generic, Protocol, TypeVar

from aiokafka import TopicPartition
from aiokafka import errors as kafka_errors

from verity_common.kafka import KafkaSettings
from verity_sdk.errors import Malformed, Unavailable
from verity_stream.kafka.clients import (
    AIOKAFKA,
    Clients,
    consumer_of,
    partition_counts,
    partitions_of,
)
from verity_stream.kafka.errors import as_verity_error
from verity_stream.kafka.partitions import partition_for
from verity_stream.records import (
    CHECKPOINTS_TOPIC,
    Checkpoint,
    NotUnderstood,
    PublishedId,
    dead_topic,
    decode_checkpoint,
    newer_checkpoint,
    published_ids_of,
    raw_topic,
)

T = TypeVar("T")

TRANSACTION_TIMEOUT = timedelta(seconds=60)
"""Where nobody says what the workers' setting is: its default."""
STALL_MARGIN = timedelta(seconds=30)
"""The broker ends a transaction up to 10 s after its time-out; and it may be slow."""

READ_RECORDS = 250
"""So many records are asked of the client at a time: young enough for the garbage collector to
forget them at once. With 5,000 the collector takes half of the time."""


def later(_: T, incoming: T) -> T:
    """Whatever comes later in the topic counts."""
    return incoming


@dataclass(slots=True)
class Last(Generic[T]):
    """What a topic holds under a key.

    Attributes:
        value: What counts of all that is understood; None after a record without a value.
        strange: The records that are not understood.
        is_clear: Whether what counts is understood: what can't be compared counts where it comes
            last, for it may be the newest.
    """

    value: T | None = None
    strange: list[NotUnderstood] = field(default_factory=list)
    is_clear: bool = True

    @property
    def counts(self) -> T | Malformed | None:
        """The value, or what is wrong with the record that stands in its place."""
        return self.value if self.is_clear else Malformed(str(self.strange[-1]))

    def take(
        self, record: Any, decode: Callable[[bytes, bytes], T], newer: Callable[[T, T], T]
    ) -> None:
        """Take in the next record of the key."""
        if record.value is None:
            self.value, self.is_clear = None, True
            return
        try:
            incoming = decode(record.value, record.key or b"")
        except Malformed as error:
            self.strange.append(NotUnderstood.of(record, error))
            self.is_clear = False
            return
        self.value = incoming if self.value is None else newer(self.value, incoming)
        self.is_clear |= self.value is incoming


class TopicReader(Protocol):
    """What a relay reads back at its start. Call it only after the producer has fenced."""

    async def last_checkpoint(self, connector_id: str) -> Checkpoint | None:
        """The newest committed checkpoint record of the connector."""

    def published_ids(
        self, connector_id: str, start: Mapping[str, Mapping[int, int]]
    ) -> AsyncIterator[list[PublishedId]]:
        """The ids of the connector's committed events and dead letters from these offsets on.

        In short lists: a million of them need not be held at once.
        """

    async def offsets_since(
        self, topics: Collection[str], since: datetime
    ) -> Mapping[str, Mapping[int, int]]:
        """From where on these topics hold what was published since then.

        Those that do not exist are left out; without any, all topics of events and dead letters
        are meant.
        """


class CommittedReader:
    """Reads committed records up to the high watermark as it stood at the beginning.

    The high watermark, not the last stable offset: an open transaction of another connector
    lower in the partition would hide this connector's own committed records behind it.
    Waiting for the high watermark waits at most for that transaction's end. Reading takes as long
    as there is much to read, but not without any progress.

    Args:
        kafka: How to reach the brokers.
        checkpoint_partitions: Of the checkpoints topic, for whoever asks for one connector's.
        transaction_timeout: How long a transaction of any worker may stay open; without progress
            for longer, reading ends in Unavailable.
        waits_for_open: Whether to wait for transactions that are open; else reading ends at the
            last stable offset, which is there at once.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        checkpoint_partitions: int = 0,
        transaction_timeout: timedelta = TRANSACTION_TIMEOUT,
        clients: Clients = AIOKAFKA,
        *,
        waits_for_open: bool = True,
    ) -> None:
        self._kafka = kafka
        self._clients = clients
        self.stall_seconds = (transaction_timeout + STALL_MARGIN).total_seconds()
        self._ends_seen_by = "read_uncommitted" if waits_for_open else "read_committed"
        self._checkpoint_partitions = checkpoint_partitions

    async def last_checkpoint(self, connector_id: str) -> Checkpoint | None:
        """The newest committed checkpoint record of the connector, or None."""
        found = await self.last_by_key(
            CHECKPOINTS_TOPIC,
            decode_checkpoint,
            newer=newer_checkpoint,
            partitions=[partition_for(connector_id, self._checkpoint_partitions)],
            only=connector_id.encode(),
        )
        last = found.get(connector_id.encode(), Last[Checkpoint]()).counts
        if isinstance(last, Malformed):
            raise last
        return last

    async def history(self, connector_id: str) -> list[Checkpoint]:
        """The connector's committed checkpoint records that the topic still has, oldest first.

        The topic is compacted: the last one is there for certain, others for some hours. What is
        not understood was no position of the connector's.
        """
        partition = partition_for(connector_id, self._checkpoint_partitions)
        key = connector_id.encode()
        found = []
        async for records in self.read({TopicPartition(CHECKPOINTS_TOPIC, partition): None}):
            for record in records:
                if record.key == key:
                    with suppress(Malformed):
                        found.append(decode_checkpoint(record.value, key))
        return found

    async def published_ids(
        self, connector_id: str, start: Mapping[str, Mapping[int, int]]
    ) -> AsyncIterator[list[PublishedId]]:
        """The ids; see the protocol.

        A topic that was made anew has other partitions: what stood in those that are gone is gone.
        """
        counts = await self.partition_counts(start) if start else {}
        places: dict[TopicPartition, int | None] = {
            TopicPartition(topic, partition): offset
            for topic, offsets in start.items()
            for partition, offset in offsets.items()
            if partition < counts.get(topic, partition + 1)
        }
        mine = ("connector_id", connector_id.encode())
        async for records in self.read(places):
            yield [
                found
                for record in records
                if mine in record.headers
                for found in published_ids_of(record)
            ]

    async def offsets_since(
        self, topics: Collection[str], since: datetime
    ) -> dict[str, dict[int, int]]:
        """Offsets by the time of publishing; see the protocol."""
        prefixes = (raw_topic(""), dead_topic(""))
        counts = await partition_counts(
            self._kafka,
            lambda name: name in topics if topics else name.startswith(prefixes),
            clients=self._clients,
        )
        at_ms = max(0, int(since.timestamp() * 1000))
        times = dict.fromkeys(partitions_of(counts), at_ms)
        start: dict[str, dict[int, int]] = {}
        if not times:
            return start
        try:
            async with (
                asyncio.timeout(self.stall_seconds),
                consumer_of(self._kafka, "read_uncommitted", self._clients) as consumer,
            ):
                consumer.assign(list(times))
                found = await consumer.offsets_for_times(times)
        except TimeoutError:
            raise Unavailable("Kafka did not say in time where a time's records are") from None
        except kafka_errors.KafkaError as error:
            raise as_verity_error(error) from error
        for place, at in found.items():
            if at is not None:  # Else nothing was published since.
                start.setdefault(place.topic, {})[place.partition] = at.offset
        return start

    async def last_by_key(
        self,
        topic: str,
        decode: Callable[[bytes, bytes], T],
        *,
        newer: Callable[[T, T], T] = later,
        partitions: Iterable[int] | None = None,
        only: bytes | None = None,
    ) -> dict[bytes, Last[T]]:
        """What a compacted topic holds under each key; nothing if it does not exist.

        Args:
            decode: Makes of a value and its key what is held; raises Malformed.
            newer: Which counts of what is held and what comes later in the topic.
            partitions: Those to read; None: all.
            only: The one key that is asked for; None: all.

        Raises:
            Unavailable, Denied: As `read`.
        """
        if partitions is None:
            partitions = range((await self.partition_counts([topic])).get(topic, 0))
        found: dict[bytes, Last[T]] = {}
        async for records in self.read({TopicPartition(topic, one): None for one in partitions}):
            for record in records:
                key = record.key or b""
                if only is None or key == only:
                    found.setdefault(key, Last()).take(record, decode, newer)
        return found

    async def last_checkpoints(self) -> Mapping[str, Checkpoint | Malformed]:
        """The newest committed checkpoint record of every connector; the topic is read once."""
        found = await self.last_by_key(CHECKPOINTS_TOPIC, decode_checkpoint, newer=newer_checkpoint)
        return by_name(found)

    async def stream(self, *topics: str) -> AsyncGenerator[Any]:
        """Every committed record of topics, in order within each partition; none without them."""
        places = partitions_of(await self.partition_counts(topics))
        async for records in self.read(dict.fromkeys(places)):
            for record in records:
                yield record

    async def partition_counts(self, topics: Collection[str]) -> dict[str, int]:
        """How many partitions each of these topics has that exist; raises as `kafka_admin`."""
        return await partition_counts(self._kafka, topics.__contains__, clients=self._clients)

    async def read(
        self,
        places: Mapping[TopicPartition, int | None],
        ends: Mapping[TopicPartition, int] | None = None,
        isolation_level: str = "read_committed",
    ) -> AsyncGenerator[Sequence[Any]]:
        """The records of these places from these offsets on, in lists, each of one place.

        Args:
            places: Where to begin; None is the beginning.
            ends: Where to stop, if it was asked for before.
            isolation_level: Committed records only, or all.

        Raises:
            Unavailable: No progress for longer than any transaction can stay open; or as Kafka's
                client says.
        """
        if not places:
            return
        loop = asyncio.get_running_loop()
        try:
            async with AsyncExitStack() as opened:
                async with asyncio.timeout(self.stall_seconds):
                    if ends is None:
                        ends = await self.ends(list(places))
                    # A place that was recreated shorter holds nothing. aiokafka's stop() raises
                    # CancelledError if nothing was awaited since assign().
                    places = {
                        place: offset
                        for place, offset in places.items()
                        if offset is None or offset < ends[place]
                    }
                    if not places:
                        return
                    consumer = await opened.enter_async_context(
                        consumer_of(self._kafka, isolation_level, self._clients)
                    )
                    consumer.assign(list(places))
                    for place, offset in places.items():
                        if offset is None:
                            await consumer.seek_to_beginning(place)
                        else:
                            # -1: acknowledged as a duplicate whose offset the broker forgot.
                            consumer.seek(place, max(offset, 0))
                    # position() also counts control markers and aborted records.
                    at = {place: await consumer.position(place) for place in places}
                moved_at = loop.time()
                while unread := [place for place in at if at[place] < ends[place]]:
                    # Not around the yield: what is done with the records takes its own time.
                    try:
                        async with asyncio.timeout_at(moved_at + self.stall_seconds):
                            batches = await consumer.getmany(
                                *unread, timeout_ms=200, max_records=READ_RECORDS
                            )
                            now = {place: await consumer.position(place) for place in unread}
                    except TimeoutError:
                        text = self._standstill(consumer, unread[0], at, ends)
                        raise Unavailable(text) from None
                    is_moved = any(now[place] != at[place] for place in unread)
                    at |= now
                    for records in batches.values():
                        yield records
                    if is_moved:
                        moved_at = loop.time()
        except TimeoutError:
            raise Unavailable(
                f"reading back from Kafka: no answer within {self.stall_seconds:g} s"
            ) from None
        except kafka_errors.KafkaError as error:
            raise as_verity_error(error) from error

    def _standstill(
        self,
        consumer: Any,
        place: TopicPartition,
        at: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
    ) -> str:
        stable = consumer.last_stable_offset(place)
        is_held_back = stable is not None and 0 <= stable <= at[place]
        why = "a transaction of another producer stays open" if is_held_back else "nothing comes"
        return (
            f"reading {place.topic}[{place.partition}] back stands still at offset {at[place]} of "
            f"{ends[place]} for {self.stall_seconds:g} s: {why}"
        )

    async def ends(self, places: list[TopicPartition]) -> Mapping[Any, int]:
        """Where to stop: uncommitted it is the high watermark, committed the last stable offset.

        Raises:
            Unavailable, Denied: The broker does not say so, or not in time.
        """
        return await self._asked(
            places, self._ends_seen_by, lambda consumer: consumer.end_offsets(places)
        )

    async def begins(self, places: list[TopicPartition]) -> Mapping[Any, int]:
        """The first offsets that are still there; raises as `ends`."""
        return await self._asked(
            places, "read_uncommitted", lambda consumer: consumer.beginning_offsets(places)
        )

    async def _asked(
        self,
        places: list[TopicPartition],
        isolation_level: str,
        question: Callable[[Any], Awaitable[Mapping[Any, int]]],
    ) -> Mapping[Any, int]:
        if not places:
            return {}
        try:
            async with (
                asyncio.timeout(self.stall_seconds),
                consumer_of(self._kafka, isolation_level, self._clients) as consumer,
            ):
                # Assigned first, the client learns all topics at once and not one after another.
                consumer.assign(places)
                return await question(consumer)
        except TimeoutError:
            raise Unavailable("Kafka did not say in time where topics begin and end") from None
        except kafka_errors.KafkaError as error:
            raise as_verity_error(error) from error


def by_name(found: Mapping[bytes, Last[T]]) -> dict[str, T | Malformed]:
    """What counts under each key that holds anything; a key that is no text stands escaped."""
    return {
        key.decode("utf-8", "backslashreplace"): counts
        for key, last in found.items()
        if (counts := last.counts) is not None
    }
