"""A model of Kafka, beneath aiokafka's producer, consumer and admin client.

`Kafka` is the brokers and the coordinators; `Producer`, `Consumer` and `Admin` stand where the
product makes aiokafka's. They raise aiokafka's own exceptions, and the producer's states are
aiokafka's own `TransactionManager`: what is not allowed there is not allowed here.
`tests/contract/test_models.py` holds all of it against the real broker.
"""

from __future__ import annotations

import asyncio
import contextvars
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from zlib import crc32

from aiokafka import TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.partitioner import murmur2
from aiokafka.producer.transaction_manager import TransactionManager, TransactionResult
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.structs import OffsetAndTimestamp

from simulation.wire import RETRY_SECONDS, Retry, Wire

Place = tuple[str, int]
"""A topic's partition; aiokafka's `TopicPartition` is one."""

BROKERS = 3
CONCURRENT_SECONDS = 0.02
"""aiokafka's wait where the transaction before is not yet marked everywhere."""
LOOK_EVERY_SECONDS = 10.0
"""`transaction.abort.timed.out.transaction.cleanup.interval.ms`: so late a time-out may be."""
TRANSACTION_SECONDS_MAX = 900.0
BATCH_BYTES_MAX = 1_048_588
RECORDS_MAX = 1_000_000
BATCH_FRAME_BYTES = 61
RECORD_FRAME_BYTES = 6
BATCHES_KEPT = 5
"""So many batches of a producer a partition recognises when they come again."""

_size_of: Callable[..., int] = DefaultRecordBatchBuilder.size_of
TOPIC_CONFIGS: Mapping[str, str] = {
    "cleanup.policy": "delete",
    "delete.retention.ms": "86400000",
    "max.message.bytes": str(BATCH_BYTES_MAX),
    "min.cleanable.dirty.ratio": "0.5",
    "min.insync.replicas": "1",
    "retention.bytes": "-1",
    "retention.ms": "604800000",
    "segment.bytes": "1073741824",
    "segment.ms": "604800000",
}
"""What a broker gives a topic without settings of its own."""
NO_CONFIGS: Mapping[str, str] = {}


class Record:
    """A record in a log, as a consumer sees it."""

    __slots__ = ("headers", "key", "offset", "partition", "timestamp", "topic", "value")

    def __init__(
        self, key: bytes | None, value: bytes | None, headers: Iterable[Any], timestamp: int
    ) -> None:
        self.key = key
        self.value = value
        self.headers = tuple(headers)
        self.timestamp = timestamp
        self.topic, self.partition, self.offset = "", -1, -1

    def __repr__(self) -> str:
        return f"Record({self.topic}[{self.partition}]@{self.offset}, {self.key!r})"


# The brokers


@dataclass(eq=False)
class Txn:
    """A transaction: decided at its coordinator, then marked partition by partition.

    Attributes:
        producer: The transactional id; empty for a batch of a producer without transactions,
            which is committed as it is appended.
        state: `open`, `committed` or `aborted`.
    """

    producer: str
    number: int
    state: str = "open"
    records: list[tuple[str, int, Record]] = field(default_factory=list)
    unmarked: list[Place] = field(default_factory=list)


@dataclass
class _Coordinated:
    """What a coordinator knows of a transactional id."""

    pid: int
    epoch: int = -1
    seconds: float = 60.0
    txn: Txn | None = None  # open, or decided and not yet marked everywhere
    last: str = ""  # how the transaction before ended


@dataclass
class _Known:
    """What a partition knows of a producer."""

    epoch: int
    last_sequence: int = -1
    batches: deque[tuple[int, int, int]] = field(  # first sequence, count, first offset
        default_factory=lambda: deque(maxlen=BATCHES_KEPT)
    )


class Log:
    """A partition.

    Attributes:
        start: The first offset that is kept.
        end: The high watermark: the next offset.
        offsets: Of the entries, ascending; compaction leaves holes.
        entries: Record and transaction; without a record it is a marker.
        producers: What is known of each that wrote here, by its id.
        tried: The lowest sequence number that a transaction tried here before anything was known
            of its producer: with a higher one its first batch would be missing.
        cleaned: Compaction has seen what comes before; so have all replicas.
    """

    def __init__(self, broker: int) -> None:
        self.broker = broker
        self.start = self.end = self.cleaned = 0
        self.offsets: list[int] = []
        self.entries: list[tuple[Record | None, Txn | None]] = []
        self.producers: dict[int, _Known] = {}
        self.tried: dict[int, int] = {}
        self._open: dict[int, int] = {}

    @property
    def last_stable(self) -> int:
        """The first offset of the oldest open transaction, of any producer; else the end."""
        for offset in self._open.values():  # In the order in which they began.
            return offset
        return self.end

    def append(self, entry: tuple[Record | None, Txn | None]) -> int:
        """Take the next offset."""
        offset, self.end = self.end, self.end + 1
        self.offsets.append(offset)
        self.entries.append(entry)
        return offset

    def begin(self, txn: Txn) -> None:
        """From the next offset on a transaction is open here, unless it is already."""
        self._open.setdefault(txn.number, self.end)

    def mark(self, txn: Txn) -> None:
        """Write a transaction's marker, which takes an offset too."""
        self.append((None, txn))
        self._open.pop(txn.number, None)

    def between(self, start: int, end: int) -> range:
        """The indices of the entries with these offsets."""
        return range(bisect_left(self.offsets, start), bisect_left(self.offsets, end))

    def whole_before(self, offset: int) -> int:
        """The highest offset up to this one that parts no transaction from its marker."""
        begun: dict[Txn, int] = {}
        ended: dict[Txn, int] = {}
        for at, (record, txn) in zip(self.offsets, self.entries, strict=True):
            if txn is not None:
                begun.setdefault(txn, at)
                if record is None:
                    ended[txn] = at
        for txn, at in sorted(begun.items(), key=lambda one: -one[1]):
            if at < offset <= ended.get(txn, -1):
                offset = at
        return offset

    def cut_end(self, offset: int) -> list[tuple[Record | None, Txn | None]]:
        """The newest entries were never there; returns them."""
        lost = [self.entries[index] for index in self.between(offset, self.end)]
        self.keep(self.between(0, offset))
        self.end = offset
        self._open = {number: at for number, at in self._open.items() if at < offset}
        self.producers.clear()
        self.tried.clear()
        return lost

    def keep(self, indices: Iterable[int]) -> None:
        """Drop all other entries; the offsets stay what they are."""
        kept = list(indices)
        self.offsets = [self.offsets[index] for index in kept]
        self.entries = [self.entries[index] for index in kept]


@dataclass
class Topic:
    """A topic; one made anew under the same name is another."""

    name: str
    logs: list[Log]
    configs: dict[str, str]


class Kafka:
    """Brokers and coordinators.

    Args:
        wire: The way there.
        on_commit: Called with every transaction at the moment when it is decided to be committed,
            and with every batch that needs no transaction.

    Attributes:
        topics: By name.
        forgets_share: The share of repeated batches that are acknowledged with offset −1.
        coordinators_away_until: Until then whoever asks a coordinator has to look for another.
        fetch_records, fetch_seconds: A fetch brings at most so many records, and takes so long.
        on_left_open: Called with the id of a producer that disconnects and leaves a transaction
            open.
    """

    def __init__(self, wire: Wire, on_commit: Callable[[Txn], None] = lambda _: None) -> None:
        self.wire = wire
        self.topics: dict[str, Topic] = {}
        self.forgets_share = 0.0
        self.coordinators_away_until = 0.0
        self.leaders_away_until: dict[int, float] = {}
        self.fetch_records, self.fetch_seconds = RECORDS_MAX, 0.0
        self.on_left_open: Callable[[str], None] = lambda _: None
        self.cluster_id = "simulated"
        self._ids: dict[str, _Coordinated] = {}
        self._on_commit = on_commit
        self._txn_count = self._pid_count = 0
        self._looks_at = wire.rng.random() * LOOK_EVERY_SECONDS

    # Topics, and what befalls them

    def now_ms(self) -> int:
        """The wall clock."""
        return int(self.wire.now().timestamp() * 1000)

    def create(self, name: str, partitions: int, configs: Mapping[str, str] = NO_CONFIGS) -> None:
        """Create a topic.

        Raises:
            TopicAlreadyExistsError: It exists.
        """
        if name in self.topics:
            raise kafka_errors.TopicAlreadyExistsError(name)
        logs = [Log(_broker_of((name, number))) for number in range(partitions)]
        self.topics[name] = Topic(name, logs, dict(configs))

    def grow(self, name: str, partitions: int) -> None:
        """Give a topic more partitions."""
        topic = self._topic(name)
        if partitions <= len(topic.logs):
            raise kafka_errors.InvalidPartitionsError(name)
        topic.logs += [
            Log(_broker_of((name, number))) for number in range(len(topic.logs), partitions)
        ]

    def delete(self, name: str) -> None:
        """Delete a topic, whatever is open there."""
        self._topic(name)
        del self.topics[name]
        for one in self._ids.values():
            if one.txn is not None and one.txn.state != "open":
                gone = [place for place in one.txn.unmarked if place[0] == name]
                for place in gone:
                    self._marked(one, one.txn, place)

    def compact(self, name: str) -> None:
        """Keep the last record of each key, and all offsets; never past the last stable offset.

        The aborted go, and so do tombstones, as after `delete.retention.ms`.
        """
        for log in self._topic(name).logs:
            dirty = log.between(log.start, log.last_stable)
            log.cleaned = log.last_stable
            last: dict[bytes | None, int] = {}
            for index in dirty:
                record, txn = log.entries[index]
                if record is not None and (txn is None or txn.state == "committed"):
                    last[record.key] = index
            kept = {index for index in last.values() if _value_of(log.entries[index]) is not None}
            log.keep(
                index
                for index in range(len(log.entries))
                # What was written last stays, whatever it is: the active segment.
                if index in kept or index >= dirty.stop - 1
            )

    def cut_beginning(self, name: str, partition: int, before: int) -> None:
        """What retention does, and DeleteRecords: the start moves, never past what is stable."""
        log = self.log((name, partition))
        log.start = max(log.start, min(before, log.last_stable))
        log.keep(log.between(log.start, log.end))

    def clean(self) -> None:
        """As if all that there is were older than any retention: what each topic's policy does."""
        for name, topic in self.topics.items():
            configs = {**TOPIC_CONFIGS, **topic.configs}
            if configs["cleanup.policy"] == "compact":
                self.compact(name)
            elif configs["retention.ms"] != "-1":
                for number, log in enumerate(topic.logs):
                    self.cut_beginning(name, number, log.end)

    def cut_end(self, since_ms: int, places: Iterable[Place]) -> list[tuple[Record, Txn | None]]:
        """What an unclean election does, or a disk that was not written to in time.

        Whole transactions go: where a marker alone is lost, its transaction is open in that
        partition until an operator aborts it. And nothing that a replica has compacted already.

        Returns:
            The committed records that went along.
        """
        lost: list[tuple[Record, Txn | None]] = []
        for place in places:
            log = self.log(place)
            newer = (
                at
                for at, (record, _) in zip(log.offsets, log.entries, strict=True)
                if record is not None and record.timestamp >= since_ms
            )
            offset = log.whole_before(min(newer, default=log.end))
            if max(log.start, log.cleaned) <= offset < log.end:
                lost += [
                    (record, txn)
                    for record, txn in log.cut_end(offset)
                    if record is not None and (txn is None or txn.state == "committed")
                ]
        return lost

    def _topic(self, name: str) -> Topic:
        try:
            return self.topics[name]
        except KeyError:
            raise kafka_errors.UnknownTopicOrPartitionError(name) from None

    def log(self, place: Place) -> Log:
        """A partition.

        Raises:
            UnknownTopicOrPartitionError: There is none.
        """
        name, number = place
        logs = self._topic(name).logs
        if number >= len(logs):
            raise kafka_errors.UnknownTopicOrPartitionError(f"{name}-{number}")
        return logs[number]

    def has(self, record: Record) -> bool:
        """Whether a record is still where it was appended."""
        topic = self.topics.get(record.topic)
        logs = [] if topic is None else topic.logs[record.partition : record.partition + 1]
        found = [
            log.entries[i] for log in logs for i in log.between(record.offset, record.offset + 1)
        ]
        return any(one is record for one, _ in found)

    def is_led(self, log: Log) -> bool:
        """Whether a partition has a leader now."""
        away_until = self.leaders_away_until
        return not away_until or self.wire.loop.time() >= away_until.get(log.broker, 0.0)

    def ask_leader(self, log: Log) -> None:
        """Raise `Retry` where it has none."""
        if not self.is_led(log):
            raise Retry

    # The coordinator

    def _coordinator(self) -> None:
        if self.wire.loop.time() < self.coordinators_away_until:
            raise Retry  # NOT_COORDINATOR: clients look for the new one.

    def init(self, transactional_id: str | None, seconds: float) -> tuple[int, int]:
        """InitProducerId: the older producer is fenced and what it left open is aborted, first."""
        if transactional_id is None:
            self._pid_count += 1
            return self._pid_count, 0
        self._coordinator()
        if seconds > TRANSACTION_SECONDS_MAX:
            raise kafka_errors.InvalidTransactionTimeout
        one = self._ids.get(transactional_id)
        if one is None:
            self._pid_count += 1
            one = self._ids[transactional_id] = _Coordinated(self._pid_count)
        if one.txn is not None:
            if one.txn.state == "open":
                self._fence(one)
            raise Retry  # CONCURRENT_TRANSACTIONS until its markers stand.
        one.epoch += 1
        one.seconds = seconds
        return one.pid, one.epoch

    def add_partitions(
        self, transactional_id: str, epoch: int, places: Sequence[Place], *, is_first: bool
    ) -> None:
        """AddPartitionsToTxn: begins the transaction where none is open."""
        self._coordinator()
        one = self._checked(transactional_id, epoch)
        if one.txn is not None and one.txn.state != "open":
            raise Retry(CONCURRENT_SECONDS if is_first else RETRY_SECONDS)
        for place in places:
            if place[0] not in self.topics or place[1] >= len(self.topics[place[0]].logs):
                raise Retry  # UNKNOWN_TOPIC_OR_PARTITION: clients ask again, without end.
        if one.txn is None:
            self._txn_count += 1
            one.txn = Txn(transactional_id, self._txn_count)
            self._look(one, one.txn)
        for place in places:
            if place not in one.txn.unmarked:
                one.txn.unmarked.append(place)

    def end(self, transactional_id: str, epoch: int, state: str) -> None:
        """EndTxn: from here on it is decided; the markers follow, partition by partition."""
        self._coordinator()
        one = self._checked(transactional_id, epoch)
        if one.txn is None:
            if one.last != state:
                raise kafka_errors.InvalidTxnState
        elif one.txn.state == "open":
            self._decide(one, one.txn, state)
        elif one.txn.state == state:
            raise Retry  # CONCURRENT_TRANSACTIONS: it is decided so, and not yet marked.
        else:
            raise kafka_errors.InvalidTxnState

    def disconnected(self, transactional_id: str, epoch: int) -> None:
        """A producer goes by itself, and may have left something open."""
        one = self._ids.get(transactional_id)
        if one is not None and one.epoch == epoch and one.txn and one.txn.state == "open":
            self.on_left_open(transactional_id)

    def _checked(self, transactional_id: str, epoch: int) -> _Coordinated:
        one = self._ids[transactional_id]
        if one.epoch != epoch:
            raise kafka_errors.ProducerFenced
        return one

    def _look(self, one: _Coordinated, txn: Txn) -> None:
        """The coordinator looks every 10 s for transactions that took too long."""
        due = self.wire.loop.time() + one.seconds
        rounds = -((self._looks_at - due) // LOOK_EVERY_SECONDS)
        at = self._looks_at + rounds * LOOK_EVERY_SECONDS
        self.wire.later(max(at, due) - self.wire.loop.time(), self._time_out, one, txn)

    def _time_out(self, one: _Coordinated, txn: Txn) -> None:
        if txn.state != "open":
            return
        if self.wire.is_away:
            seconds = self.wire.away_until - self.wire.loop.time() + RETRY_SECONDS
            self.wire.later(seconds, self._time_out, one, txn)
        else:
            self._fence(one)  # Its producer can't tell this from being fenced.

    def _fence(self, one: _Coordinated) -> None:
        one.epoch += 1
        assert one.txn is not None
        self._decide(one, one.txn, "aborted")

    def _decide(self, one: _Coordinated, txn: Txn, state: str) -> None:
        txn.state = state
        if state == "committed":
            self._on_commit(txn)
        if not txn.unmarked:
            self._done(one, txn)
        for place in list(txn.unmarked):
            self.wire.later(self.wire.delay(), self._mark, one, txn, place, one.epoch)

    def _mark(self, one: _Coordinated, txn: Txn, place: Place, epoch: int) -> None:
        if place not in txn.unmarked:
            return  # Its topic was deleted.
        topic = self.topics.get(place[0])
        if topic is not None and place[1] < len(topic.logs):
            log = topic.logs[place[1]]
            back_at = max(self.wire.away_until, self.leaders_away_until.get(log.broker, 0.0))
            if self.wire.loop.time() < back_at:
                seconds = back_at - self.wire.loop.time() + RETRY_SECONDS
                self.wire.later(seconds, self._mark, one, txn, place, epoch)
                return
            log.mark(txn)
            log.tried.pop(one.pid, None)
            known = log.producers.setdefault(one.pid, _Known(epoch))
            if known.epoch != epoch:
                log.producers[one.pid] = _Known(epoch)
        self._marked(one, txn, place)

    def _marked(self, one: _Coordinated, txn: Txn, place: Place) -> None:
        txn.unmarked.remove(place)
        if not txn.unmarked:
            self._done(one, txn)

    def _done(self, one: _Coordinated, txn: Txn) -> None:
        if one.txn is txn:
            one.txn, one.last = None, txn.state

    # A partition's leader

    def produce(
        self,
        pid: int,
        epoch: int,
        transactional_id: str | None,
        place: Place,
        batch: Batch,
        sequence: int,
    ) -> int:
        """Produce; returns the first offset, or −1 where it is a repeat and forgotten."""
        log = self.log(place)
        self.ask_leader(log)
        count, configs = len(batch.records), self.topics[place[0]].configs
        known = log.producers.get(pid)
        lowest = sequence if transactional_id is None else log.tried.setdefault(pid, sequence)
        if batch.size() > int(configs.get("max.message.bytes", BATCH_BYTES_MAX)):
            raise kafka_errors.MessageSizeTooLargeError
        if known is not None and pid >= 0:
            if epoch < known.epoch:
                raise kafka_errors.ProducerFenced
            if epoch == known.epoch:
                for first, length, offset in known.batches:
                    if (first, length) == (sequence, count):
                        is_forgotten = self.wire.rng.random() < self.forgets_share
                        return -1 if is_forgotten else offset
            expected = known.last_sequence + 1 if epoch == known.epoch else 0
            if sequence != expected:
                raise kafka_errors.OutOfOrderSequenceNumber
        elif sequence > lowest:
            raise kafka_errors.OutOfOrderSequenceNumber
        txn = None
        if transactional_id is not None:
            txn = self._ids[transactional_id].txn
            if txn is None or place not in txn.unmarked:
                raise kafka_errors.InvalidTxnState
            log.begin(txn)
        if known is None or known.epoch != epoch:
            known = log.producers[pid] = _Known(epoch)
        log.tried.pop(pid, None)
        first_offset = log.end
        for record in batch.records:
            record.topic, record.partition = place
            record.offset = log.append((record, txn))
        known.last_sequence = sequence + count - 1
        known.batches.append((sequence, count, first_offset))
        appended = [(*place, record) for record in batch.records]
        if txn is None:
            self._on_commit(Txn("", 0, "committed", appended))
        else:
            txn.records += appended
        return first_offset


def _broker_of(place: Place) -> int:
    """Who leads a partition."""
    return (crc32(place[0].encode()) + place[1]) % BROKERS


def _value_of(entry: tuple[Record | None, Txn | None]) -> bytes | None:
    record, _ = entry
    return None if record is None else record.value


async def _bootstrap(kafka: Kafka, options: Mapping[str, Any]) -> None:
    """Any client's start.

    Raises:
        KafkaConnectionError: No broker could be reached.
    """
    seconds = options.get("request_timeout_ms", 40_000) / 1000
    try:
        await kafka.wire.send("bootstrap", lambda: None, timeout=seconds)
    except (OSError, TimeoutError) as error:
        raise kafka_errors.KafkaConnectionError("Unable to bootstrap") from error


# The producer


class Batch:
    """What aiokafka's `BatchBuilder` offers, without the encoding."""

    def __init__(self, bytes_max: int, now_ms: Callable[[], int]) -> None:
        self.records: list[Record] = []
        self._bytes_max = bytes_max
        self._size = BATCH_FRAME_BYTES
        self._is_closed = False
        self._now_ms = now_ms

    def append(
        self, *, timestamp: int | None, key: bytes | None, value: bytes | None, headers: Any
    ) -> Any:
        """Take a record; None where it is full, but the first one is always taken."""
        if self._is_closed:
            return None
        size = _size_of(key, value, headers) + RECORD_FRAME_BYTES
        if self.records and self._size + size > self._bytes_max:
            self._is_closed = True
            return None
        self._size += size
        now = self._now_ms() if timestamp is None else timestamp
        self.records.append(Record(key, value, headers, now))
        return self

    def close(self) -> None:
        """No record is taken any more."""
        self._is_closed = True

    def size(self) -> int:
        """In bytes."""
        return self._size

    def record_count(self) -> int:
        """How many were taken."""
        return len(self.records)


class _Sent:
    """A batch on its way."""

    __slots__ = ("batch", "began_at", "place", "reply", "sequence")

    def __init__(self, batch: Batch, place: TopicPartition, loop: Any) -> None:
        self.batch = batch
        self.place = place
        self.began_at: float = loop.time()
        self.sequence = -1
        self.reply: asyncio.Future[Any] = loop.create_future()

    def fail(self, error: BaseException) -> None:
        """It will never be there, as far as its producer knows."""
        _fail(self.reply, error)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # Whoever waits for it still gets it; the loop need not tell.


class _Transactions(TransactionManager):  # type: ignore[misc]  # aiokafka ships no types
    """aiokafka's, which wakes our sender in place of aiokafka's."""

    def __init__(self, transactional_id: str | None, timeout_ms: int, wake: Any) -> None:
        super().__init__(transactional_id, timeout_ms)
        self.notify_task_waiter = wake


class Producer:
    """What Verity uses of `AIOKafkaProducer`.

    aiokafka's sender is a task; here it is callbacks in the context of whoever made the producer,
    so that it dies and freezes with its process.
    """

    def __init__(self, kafka: Kafka, **options: Any) -> None:
        self._id: str | None = options.get("transactional_id")
        is_idempotent = self._id is not None or bool(options.get("enable_idempotence"))
        if is_idempotent and options.get("acks", "all") not in ("all", -1):
            raise ValueError(f"acks={options['acks']} not supported if enable_idempotence=True")
        self._kafka = kafka
        self._options = options
        self._is_idempotent = is_idempotent
        self._seconds = options.get("transaction_timeout_ms", 60_000) / 1000
        self._request_seconds = options.get("request_timeout_ms", 40_000) / 1000
        self._bytes_max = options.get("max_batch_size", 16_384)
        self._txn_manager = _Transactions(self._id, int(self._seconds * 1000), self._wake)
        self._partitions: dict[str, int] = {}
        self._queues: dict[TopicPartition, deque[_Sent]] = {}
        self._room: dict[TopicPartition, asyncio.Future[None]] = {}
        self._pending: dict[_Sent, None] = {}
        self._busy: set[int] = set()
        self._muted: set[TopicPartition] = set()
        self._is_asking = self._is_awake = self._is_closed = False
        self._requests: dict[asyncio.Future[Any], None] = {}
        self._context = contextvars.copy_context()
        self._error: BaseException | None = None
        self._flushed: asyncio.Future[None] | None = None
        self._sender_task: asyncio.Future[None] = kafka.wire.loop.create_future()
        self._sender_task.add_done_callback(self._sender_ended)
        # What aiokafka keeps there, for whoever has to leave a producer behind.
        self._sender = SimpleNamespace(sender_task=None)
        self.client = SimpleNamespace(close=self._close_client)

    async def start(self) -> None:
        """Connect, fence the older producer and abort what it left open."""
        await _bootstrap(self._kafka, self._options)
        if self._is_idempotent:
            name, seconds = self._id, self._seconds
            answer = await self._ask(f"init {name}", lambda: self._kafka.init(name, seconds))
            self._txn_manager.set_pid_and_epoch(*answer)
        self._sender.sender_task = self._sender_task

    async def stop(self) -> None:
        """Send what is left and disconnect; a transaction that is open stays open."""
        if self._is_closed:
            return
        self._is_closed = True
        sender = self._sender.sender_task
        if sender is not None and not sender.done():
            if self._pending or self._queues:
                self._flushed = self._kafka.wire.loop.create_future()
                await self._flushed
            while self._requests and not sender.done():
                await asyncio.wait({*self._requests, sender}, return_when="FIRST_COMPLETED")
        if self._id is not None:
            self._kafka.disconnected(self._id, self._txn_manager.producer_epoch)
        await self._close_client()

    async def _close_client(self) -> None:
        self._sender_task.cancel()

    def create_batch(self) -> Batch:
        """A batch to fill."""
        return Batch(self._bytes_max, self._kafka.now_ms)

    async def partitions_for(self, topic: str) -> set[int]:
        """What the client knows of a topic; it keeps it for minutes.

        Raises:
            UnknownTopicOrPartitionError: There was none within the request's time-out.
        """
        if topic not in self._partitions:
            loop = self._kafka.wire.loop
            deadline = loop.time() + self._request_seconds
            while not (found := await self._ask("metadata", lambda: self._count_of(topic))):
                if loop.time() > deadline:
                    raise kafka_errors.UnknownTopicOrPartitionError
                await asyncio.sleep(RETRY_SECONDS)
            self._partitions[topic] = found
        return set(range(self._partitions[topic]))

    def _count_of(self, topic: str) -> int:
        found = self._kafka.topics.get(topic)
        return 0 if found is None else len(found.logs)

    async def begin_transaction(self) -> None:
        """Begin, here and not yet at the broker."""
        self._ensure_transactional()
        self._txn_manager.begin_transaction()

    async def send(
        self,
        topic: str,
        value: bytes | None = None,
        key: bytes | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Any = None,
    ) -> asyncio.Future[Any]:
        """One record, as a batch of its own."""
        batch = self.create_batch()
        batch.append(timestamp=timestamp_ms, key=key, value=value, headers=headers or [])
        if partition is None:
            count = len(await self.partitions_for(topic))
            partition = 0 if key is None else int((murmur2(key) & 0x7FFFFFFF) % count)
        return await self.send_batch(batch, topic, partition=partition)

    async def send_and_wait(self, topic: str, *args: Any, **options: Any) -> Any:
        """One record, and its acknowledgement."""
        return await (await self.send(topic, *args, **options))

    async def send_batch(self, batch: Batch, topic: str, *, partition: int) -> asyncio.Future[Any]:
        """Hand a batch over; the future has its place."""
        if topic not in self._partitions:
            await self.partitions_for(topic)
        assert 0 <= partition < self._partitions[topic], "Unrecognized partition"
        if self._id is not None and not self._txn_manager.is_in_transaction():
            raise kafka_errors.IllegalOperation("Can't send messages while not in transaction")
        place = TopicPartition(topic, partition)
        if self._is_closed:
            raise kafka_errors.ProducerClosed
        while place in self._queues and self._error is None:
            # One batch a partition waits in the client; the next one's sender does.
            room = self._room.setdefault(place, self._kafka.wire.loop.create_future())
            await asyncio.shield(room)
        if self._error is not None:
            raise self._error
        self._txn_manager.maybe_add_partition_to_txn(place)
        batch.close()
        sent = _Sent(batch, place, self._kafka.wire.loop)
        self._queues[place] = deque([sent])
        self._wake()
        return sent.reply

    async def commit_transaction(self) -> None:
        """Commit; what was not acknowledged is sent before."""
        self._ensure_transactional()
        self._txn_manager.committing_transaction()
        await asyncio.shield(self._txn_manager.wait_for_transaction_end())

    async def abort_transaction(self) -> None:
        """Abort; what was not acknowledged is sent before."""
        self._ensure_transactional()
        self._txn_manager.aborting_transaction()
        await asyncio.shield(self._txn_manager.wait_for_transaction_end())

    def _ensure_transactional(self) -> None:
        if self._id is None:
            raise kafka_errors.IllegalOperation(
                "You need to configure transaction_id to use transactions"
            )

    # The sender

    def _ask(self, what: str, effect: Callable[[], Any]) -> asyncio.Future[Any]:
        """A request that is asked again until it is answered or nobody is left to ask."""
        reply = self._kafka.wire.send(what, effect, is_patient=True)
        self._requests[reply] = None
        reply.add_done_callback(self._requests.pop, context=self._context)
        return reply

    def _wake(self) -> None:
        if not self._is_awake and not self._sender_task.done():
            self._is_awake = True
            # Not at once: what is handed over in the same step goes out together.
            self._kafka.wire.loop.call_soon(self._send, context=self._context)

    def _send(self) -> None:
        """Send what may be sent: a request to the coordinator, and one to each broker."""
        self._is_awake = False
        if self._sender_task.done():
            return
        flushed = self._flushed
        if flushed is not None and not (self._pending or self._queues or flushed.done()):
            flushed.set_result(None)
        adding: set[TopicPartition] = set()
        if self._id is not None:
            if not self._is_asking:
                self._ask_coordinator(self._id)
            adding = self._txn_manager.partitions_to_add()
        ready: dict[int, list[TopicPartition]] = {}
        for place in self._queues:
            if place not in self._muted and place not in adding:
                broker = _broker_of(place)
                if broker not in self._busy:
                    ready.setdefault(broker, []).append(place)
        for broker, places in ready.items():
            self._produce(broker, [self._drained(place) for place in places])

    def _drained(self, place: TopicPartition) -> _Sent:
        queue = self._queues[place]
        sent = queue.popleft()
        if not queue:
            del self._queues[place]
            room = self._room.pop(place, None)
            if room is not None and not room.done():
                room.set_result(None)
        return sent

    def _ask_coordinator(self, name: str) -> None:
        manager, kafka = self._txn_manager, self._kafka
        epoch, result = manager.producer_epoch, manager.needs_transaction_commit()
        places = sorted(manager.partitions_to_add())
        if places:
            is_first = not manager.txn_partitions

            def add() -> None:
                kafka.add_partitions(name, epoch, places, is_first=is_first)

            def done() -> None:
                for place in places:
                    manager.partition_added(place)

            asking = self._ask(f"add {name} {len(places)}", add)
        elif result is None or self._pending or self._queues:
            return
        elif manager.is_empty_transaction():
            # Nobody is asked, so nobody finds out that it is fenced.
            manager.complete_transaction()
            return
        else:
            state = "committed" if result is TransactionResult.COMMIT else "aborted"
            done = manager.complete_transaction
            asking = self._ask(f"end {name} {state}", lambda: kafka.end(name, epoch, state))
        self._is_asking = True

        def answered(asking: asyncio.Future[Any]) -> None:
            self._is_asking = False
            if asking.cancelled():
                return
            error = asking.exception()
            if error is None:
                done()
                self._wake()
            else:
                self._end(error)

        asking.add_done_callback(answered, context=self._context)

    def _produce(self, broker: int, sending: list[_Sent]) -> None:
        """One request to one broker: a batch a partition."""
        manager, kafka = self._txn_manager, self._kafka
        self._busy.add(broker)
        for sent in sending:
            self._muted.add(sent.place)
            self._pending[sent] = None
            if sent.sequence < 0:
                sent.sequence = manager.sequence_number(sent.place)
                manager.increment_sequence_number(sent.place, len(sent.batch.records))
        pid, epoch = manager.producer_id, manager.producer_epoch

        def effect() -> list[int | Exception]:
            results: list[int | Exception] = []
            for sent in sending:
                try:
                    offset = kafka.produce(
                        pid, epoch, self._id, sent.place, sent.batch, sent.sequence
                    )
                    results.append(offset)
                except (Retry, kafka_errors.KafkaError) as error:
                    results.append(error)
            return results

        def answered(asking: asyncio.Future[Any]) -> None:
            self._busy.discard(broker)
            if asking.cancelled():
                return
            for sent, result in zip(sending, asking.result(), strict=True):
                self._acknowledge(sent, result)
            self._wake()

        places = " ".join(f"{sent.place.topic}-{sent.place.partition}" for sent in sending)
        asking = self._ask(f"produce {self._id} {places}", effect)
        asking.add_done_callback(answered, context=self._context)

    def _acknowledge(self, sent: _Sent, result: int | Exception) -> None:
        loop = self._kafka.wire.loop
        if isinstance(result, int):
            if not sent.reply.done():
                topic, partition = sent.place
                sent.reply.set_result(
                    SimpleNamespace(topic=topic, partition=partition, offset=result)
                )
        elif isinstance(result, Retry) or result.retriable:  # type: ignore[attr-defined]
            if loop.time() - sent.began_at < self._request_seconds or isinstance(result, Retry):
                loop.call_at(loop.time() + RETRY_SECONDS, self._again, sent, context=self._context)
                return
            # The client's metadata have no such partition any more, and its patience ends.
            sent.fail(kafka_errors.NotLeaderForPartitionError())
        else:
            sent.fail(result)
        self._muted.discard(sent.place)
        self._pending.pop(sent, None)

    def _again(self, sent: _Sent) -> None:
        """Before anything else of its partition, with the same sequence number."""
        if self._sender_task.done():
            return
        self._muted.discard(sent.place)
        self._queues.setdefault(sent.place, deque()).appendleft(sent)
        self._wake()

    def _end(self, error: BaseException) -> None:
        """The sender's end: nothing can be sent any more."""
        known = (
            kafka_errors.ProducerFenced,
            kafka_errors.OutOfOrderSequenceNumber,
            kafka_errors.TransactionalIdAuthorizationFailed,
        )
        if not isinstance(error, known):
            cause, error = error, kafka_errors.KafkaError("Unexpected error during batch delivery")
            error.__cause__ = cause
        self._error = error
        _fail(self._sender_task, error)
        sent = [*self._pending, *(one for queue in self._queues.values() for one in queue)]
        for waiting in [*(one.reply for one in sent), *self._room.values()]:
            _fail(waiting, error)
        self._queues.clear()
        self._pending.clear()
        self._txn_manager.fatal_error(error)
        self._txn_manager.wait_for_transaction_end().exception()

    def _sender_ended(self, _: Any) -> None:
        for reply in list(self._requests):
            reply.cancel()


# The consumer


class Consumer:
    """What Verity uses of `AIOKafkaConsumer`, without a group."""

    def __init__(self, kafka: Kafka, **options: Any) -> None:
        self._kafka = kafka
        self._options = options
        level = options.get("isolation_level", "read_uncommitted")
        if level not in ("read_committed", "read_uncommitted"):
            raise ValueError(f"Incorrect isolation level {level}")
        self._is_committed = level == "read_committed"
        self._reset = options.get("auto_offset_reset", "latest")
        self._request_seconds = options.get("request_timeout_ms", 40_000) / 1000
        self._at: dict[TopicPartition, int | None] = {}
        self._stable: dict[TopicPartition, int] = {}
        self._fetching: asyncio.Future[Any] | None = None

    async def start(self) -> None:
        """Connect."""
        await _bootstrap(self._kafka, self._options)

    async def stop(self) -> None:
        """Disconnect."""

    def assign(self, places: Iterable[TopicPartition]) -> None:
        """Read these, from wherever `auto_offset_reset` says."""
        self._at, self._fetching = dict.fromkeys(places), None

    def assignment(self) -> set[TopicPartition]:
        """What is read."""
        return set(self._at)

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        """The partitions that the client knows."""
        found = self._kafka.topics.get(topic)
        return None if found is None else set(range(len(found.logs)))

    async def seek_to_beginning(self, *places: TopicPartition) -> bool:
        """Go on from the start as it is now."""
        starts = await self.beginning_offsets(self._assigned(places))
        self._at |= starts
        return True

    async def seek_to_end(self, *places: TopicPartition) -> bool:
        """Go on from the end as it is now."""
        ends = await self.end_offsets(self._assigned(places))
        self._at |= ends
        return True

    def seek(self, place: TopicPartition, offset: int) -> None:
        """Go on from an offset; whether it exists shows when it is read."""
        if not isinstance(offset, int) or offset < 0:
            raise ValueError("Offset must be a positive integer")
        self._assigned([place])
        self._at[place] = offset

    def _assigned(self, places: Sequence[TopicPartition]) -> list[TopicPartition]:
        for place in places:
            if place not in self._at:
                raise kafka_errors.IllegalStateError(f"Partition {place} is not assigned")
        return sorted(places or self._at)

    async def position(self, place: TopicPartition) -> int:
        """The next offset to read."""
        self._assigned([place])
        at = self._at[place]
        if at is None:
            at = await self._asked(f"reset {place}", lambda: self._reset_of(place))
            self._at[place] = at
        return at

    def _reset_of(self, place: TopicPartition) -> int:
        log = self._found(place)
        if self._reset == "none":
            raise kafka_errors.NoOffsetForPartitionError(place)
        return log.start if self._reset == "earliest" else self._end_of(log)

    def _found(self, place: TopicPartition) -> Log:
        try:
            log = self._kafka.log(place)
        except kafka_errors.UnknownTopicOrPartitionError:
            raise Retry from None
        self._kafka.ask_leader(log)
        return log

    def _end_of(self, log: Log) -> int:
        return log.last_stable if self._is_committed else log.end

    async def _asked(self, what: str, effect: Callable[[], Any]) -> Any:
        try:
            return await self._kafka.wire.send(
                what, effect, timeout=self._request_seconds, is_patient=True
            )
        except TimeoutError:
            raise kafka_errors.KafkaTimeoutError(what) from None

    def last_stable_offset(self, place: TopicPartition) -> int | None:
        """As the last answer had it; -1 where nobody asks, None before anything was read."""
        self._assigned([place])
        return self._stable.get(place) if self._is_committed else -1

    async def end_offsets(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The last stable offsets; read uncommitted, the high watermarks."""
        wanted = sorted(places)
        found: dict[TopicPartition, int] = await self._asked(
            "ends", lambda: {place: self._end_of(self._found(place)) for place in wanted}
        )
        return found

    async def beginning_offsets(
        self, places: Iterable[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """The first offsets that are kept."""
        wanted = sorted(places)
        found: dict[TopicPartition, int] = await self._asked(
            "starts", lambda: {place: self._found(place).start for place in wanted}
        )
        return found

    async def offsets_for_times(
        self, times: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        """The first records that are not older, in milliseconds."""
        wanted = sorted(times)
        found: dict[TopicPartition, OffsetAndTimestamp | None] = await self._asked(
            "times", lambda: {place: self._first_at(place, times[place]) for place in wanted}
        )
        return found

    def _first_at(self, place: TopicPartition, time_ms: int) -> OffsetAndTimestamp | None:
        log = self._found(place)
        for index in log.between(log.start, self._end_of(log)):
            record, _ = log.entries[index]
            if record is not None and record.timestamp >= time_ms:
                return OffsetAndTimestamp(record.offset, record.timestamp)
        return None

    async def getmany(
        self, *places: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[Record]]:
        """Some of the next records; nothing where none come within the time-out."""
        wanted = self._assigned(places)
        for place in wanted:
            if self._at[place] is None:
                await self.position(place)
        if self._fetching is None:
            at = {place: self._at[place] or 0 for place in wanted}
            self._fetching = self._kafka.wire.send(
                "fetch", lambda: self._fetch(at, max_records), is_patient=True
            )
            if self._kafka.fetch_seconds:
                self._fetching = asyncio.ensure_future(self._slowly(self._fetching))
        if not self._fetching.done():
            await asyncio.wait({self._fetching}, timeout=timeout_ms / 1000)
            if not self._fetching.done():
                return {}  # It goes on in the background.
        fetching, self._fetching = self._fetching, None
        found: dict[TopicPartition, list[Record]] = {}
        for place, before, after, stable, records in fetching.result():
            self._stable[place] = stable
            if place in wanted and self._at.get(place) == before:
                self._at[place] = after
                if records:
                    found[place] = records
        if not found:
            await asyncio.sleep(timeout_ms / 1000)
        return found

    async def _slowly(self, fetching: asyncio.Future[Any]) -> Any:
        found = await fetching
        await asyncio.sleep(self._kafka.fetch_seconds)
        return found

    def _fetch(
        self, at: Mapping[TopicPartition, int], max_records: int | None
    ) -> list[tuple[TopicPartition, int, int | None, int, list[Record]]]:
        """Of each place: where it was read from, where to go on, what is stable, the records."""
        found: list[tuple[TopicPartition, int, int | None, int, list[Record]]] = []
        left = min(RECORDS_MAX if max_records is None else max_records, self._kafka.fetch_records)
        for place, position in at.items():
            try:
                log = self._kafka.log(place)
            except kafka_errors.UnknownTopicOrPartitionError:
                continue  # The client looks for it again and again.
            if not left or not self._kafka.is_led(log):
                continue
            if not log.start <= position <= log.end:
                if self._reset == "none":
                    raise kafka_errors.OffsetOutOfRangeError({place: position})
                found.append((place, position, None, log.last_stable, []))  # Reset, as it says.
                continue
            end = self._end_of(log)
            after, records = max(position, end), []
            for index in log.between(position, end):
                record, txn = log.entries[index]
                is_aborted = self._is_committed and txn is not None and txn.state != "committed"
                if record is not None and not is_aborted:
                    records.append(record)
                    left -= 1
                    if not left:
                        after = record.offset + 1
                        break
            found.append((place, position, after, log.last_stable, records))
        return found


# The admin client


class Admin:
    """What Verity uses of `AIOKafkaAdminClient`."""

    def __init__(self, kafka: Kafka, **options: Any) -> None:
        self._kafka = kafka
        self._options = options

    async def start(self) -> None:
        """Connect."""
        await _bootstrap(self._kafka, self._options)

    async def close(self) -> None:
        """Disconnect."""

    async def _asked(self, what: str, effect: Callable[[], Any]) -> Any:
        seconds = self._options.get("request_timeout_ms", 40_000) / 1000
        try:
            return await self._kafka.wire.send(what, effect, timeout=seconds)
        except (OSError, TimeoutError) as error:
            raise kafka_errors.KafkaConnectionError(str(error)) from error

    async def list_topics(self) -> list[str]:
        """All names."""
        found: list[str] = await self._asked("topics", lambda: list(self._kafka.topics))
        return found

    async def create_topics(self, wanted: Sequence[Any], **_: Any) -> Any:
        """Create topics; the answer has a code for each."""

        def create() -> Any:
            errors = []
            for one in wanted:
                code, message = 0, None
                try:
                    self._kafka.create(
                        one.name, one.num_partitions, getattr(one, "topic_configs", None) or {}
                    )
                except kafka_errors.KafkaError as error:
                    code, message = error.errno, str(error)
                errors.append((one.name, code, message))
            return SimpleNamespace(topic_errors=errors)

        return await self._asked("create", create)

    async def delete_topics(self, names: Sequence[str], **_: Any) -> Any:
        """Delete topics; the answer has a code for each."""

        def delete() -> Any:
            codes = []
            for name in names:
                code = 0
                try:
                    self._kafka.delete(name)
                except kafka_errors.KafkaError as error:
                    code = error.errno
                codes.append((name, code))
            return SimpleNamespace(topic_error_codes=codes)

        return await self._asked("delete", delete)

    async def describe_topics(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Partitions and leaders; of all topics where none are named."""
        found: list[dict[str, Any]] = await self._asked(
            "describe",
            lambda: [
                self._described(name) for name in (self._kafka.topics if names is None else names)
            ],
        )
        return found

    def _described(self, name: str) -> dict[str, Any]:
        topic = self._kafka.topics.get(name)
        if topic is None:
            return {
                "error_code": kafka_errors.UnknownTopicOrPartitionError.errno,
                "topic": name,
                "is_internal": False,
                "partitions": [],
            }
        return {
            "error_code": 0,
            "topic": name,
            "is_internal": False,
            "partitions": [
                {
                    "error_code": 0,
                    "partition": number,
                    "leader": log.broker if self._kafka.is_led(log) else -1,
                    "replicas": [log.broker],
                    "isr": [log.broker],
                }
                for number, log in enumerate(topic.logs)
            ],
        }

    async def create_partitions(self, wanted: Mapping[str, Any], **_: Any) -> Any:
        """Give topics more partitions, of which they then have `total_count`."""

        def grow() -> Any:
            errors = []
            for name, new in wanted.items():
                code = 0
                try:
                    self._kafka.grow(name, new.total_count)
                except kafka_errors.KafkaError as error:
                    code = error.errno
                errors.append((name, code, None))
            return SimpleNamespace(topic_errors=errors)

        return await self._asked("grow", grow)

    async def delete_records(
        self, wanted: Mapping[TopicPartition, Any], **_: Any
    ) -> dict[TopicPartition, int]:
        """Cut the beginning off; returns where each partition begins now."""

        def cut() -> dict[TopicPartition, int]:
            for place, records in wanted.items():
                self._kafka.cut_beginning(place.topic, place.partition, records.before_offset)
            return {place: self._kafka.log(place).start for place in wanted}

        found: dict[TopicPartition, int] = await self._asked("cut", cut)
        return found

    async def describe_configs(self, resources: Sequence[Any], **_: Any) -> list[Any]:
        """Topics' settings, those of the broker among them."""

        def describe() -> list[Any]:
            found: list[Any] = []
            for resource in resources:
                topic = self._kafka.topics.get(resource.name)
                if topic is None:
                    code = kafka_errors.UnknownTopicOrPartitionError.errno
                    found.append((code, "unknown", resource.resource_type, resource.name, []))
                    continue
                entries: list[Any] = []
                for name, default in TOPIC_CONFIGS.items():
                    # Name, value, read only, source (1: the topic's own, 5: default), sensitive.
                    value, source = (
                        topic.configs.get(name, default),
                        1 if name in topic.configs else 5,
                    )
                    entries.append((name, value, False, source, False, []))
                found.append((0, None, resource.resource_type, resource.name, entries))
            return [SimpleNamespace(resources=found)]

        answer: list[Any] = await self._asked("configs", describe)
        return answer

    async def alter_configs(self, resources: Sequence[Any], **_: Any) -> list[Any]:
        """Give topics other settings *in place of* all their own."""

        def alter() -> list[Any]:
            answers = []
            for resource in resources:
                topic, code = self._kafka.topics.get(resource.name), 0
                if topic is None:
                    code = kafka_errors.UnknownTopicOrPartitionError.errno
                else:
                    topic.configs = {name: str(value) for name, value in resource.configs.items()}
                answers.append((code, None, resource.resource_type, resource.name))
            return [SimpleNamespace(resources=answers)]

        answer: list[Any] = await self._asked("alter", alter)
        return answer

    async def describe_cluster(self) -> dict[str, Any]:
        """Which cluster it is."""
        found: dict[str, Any] = await self._asked(
            "cluster",
            lambda: {
                "cluster_id": self._kafka.cluster_id,
                "brokers": [{"node_id": number} for number in range(BROKERS)],
            },
        )
        return found
