"""Kafka, Postgres and a source in memory, as the relay's protocols promise them.

Every effect passes a `Script` before and after, which may fail it, cancel the task there,
pause it, or look around: a test names any point of a relay's life and makes something happen
exactly there, without time playing a part.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from aiokafka.partitioner import murmur2
from page_builders import HASHER, ListPage

from verity_sdk.connector_base import BaseConnector, RawEvent
from verity_sdk.errors import Fenced
from verity_sdk.position import FIRST_SINCE, Reached
from verity_stream.kafka.partitions import partition_for
from verity_stream.kafka.transactions import Transaction
from verity_stream.postgres.checkpoints import Persisted, Provenance
from verity_stream.records import (
    CHECKPOINTS_TOPIC,
    IDS_TOPIC,
    Checkpoint,
    Offsets,
    Partition,
    PublishedId,
    Record,
    dead_topic,
    decode_checkpoint,
    decode_slot_key,
    published_ids_of,
    raw_topic,
)
from verity_stream.relay.ids import IdHasher
from verity_stream.relay.page_builder import PageBuilder
from verity_stream.relay.sources import NewBuilder, RelayPage
from verity_stream.settings import StreamSettings

PARTITIONS = 3
RAW_AND_DEAD = (raw_topic(""), dead_topic(""))
CONNECTOR = "memory-1"
PARTITION = partition_for(CONNECTOR, StreamSettings().checkpoint_partitions)
PLATFORM = "memory"
NOW = datetime(2026, 6, 1, tzinfo=UTC)

Hook = Callable[["Effect"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Effect:
    """One point of a relay's life: the `number`-th time that it is about to do, or did, a thing."""

    name: str
    number: int
    when: str

    def __str__(self) -> str:
        return f"{self.when} {self.name} {self.number}"


class Script:
    """What happens at which point; without a hook it only writes down what was passed."""

    def __init__(self, hook: Hook | None = None) -> None:
        self.passed: list[Effect] = []
        self._hook = hook
        self._counts: dict[str, int] = {}

    @asynccontextmanager
    async def effect(self, name: str) -> AsyncIterator[None]:
        """Around an effect; what the hook raises before it means that it did not happen."""
        number = self._counts[name] = self._counts.get(name, 0) + 1
        await self._pass(Effect(name, number, "before"))
        yield
        await self._pass(Effect(name, number, "after"))

    async def _pass(self, effect: Effect) -> None:
        self.passed.append(effect)
        if self._hook is not None:
            await self._hook(effect)


async def cancel_here() -> None:
    """Be cancelled, as by `task.cancel()` while the caller waits at this point."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


@dataclass(slots=True)
class Entry:
    """One place in a partition: a record, or the marker that ends a transaction."""

    record: Record | None
    state: str


class Broker:
    """Kafka: partitions with transactions, fenced by transactional id."""

    def __init__(self) -> None:
        self.partitions: dict[tuple[str, int], list[Entry]] = {}
        self.commits: list[list[Record]] = []
        self._generations: dict[str, int] = {}
        self._open: dict[str, list[tuple[tuple[str, int], Entry]]] = {}

    def fence(self, transactional_id: str) -> int:
        """A new producer: older ones are fenced, what they left open is aborted."""
        self._end(transactional_id, "aborted")
        self._generations[transactional_id] = self._generations.get(transactional_id, 0) + 1
        return self._generations[transactional_id]

    def append(self, transactional_id: str, generation: int, record: Record) -> tuple[int, int]:
        """Write a record into the open transaction; returns its partition and offset."""
        self._check(transactional_id, generation)
        partition = self._partition(record.key) if record.partition is None else record.partition
        place = (record.topic, partition)
        entries = self.partitions.setdefault(place, [])
        entry = Entry(record, "open")
        entries.append(entry)
        self._open.setdefault(transactional_id, []).append((place, entry))
        return place[1], len(entries) - 1

    def commit(self, transactional_id: str, generation: int) -> None:
        """Make the open transaction visible, all of it at once."""
        self._check(transactional_id, generation)
        records = [entry.record for _, entry in self._open.get(transactional_id, [])]
        self._end(transactional_id, "committed")
        self.commits.append([record for record in records if record is not None])

    def abort(self, transactional_id: str, generation: int) -> None:
        """Make sure that the open transaction is never visible."""
        self._check(transactional_id, generation)
        self._end(transactional_id, "aborted")

    def committed(self, topic: str) -> list[Record]:
        """What a reader of committed records sees, in order of commits."""
        return [record for commit in self.commits for record in commit if record.topic == topic]

    def read(self, place: tuple[str, int], start: int) -> list[Record]:
        """The committed records of a partition from an offset on."""
        return [
            entry.record
            for entry in self.partitions.get(place, [])[start:]
            if entry.state == "committed" and entry.record is not None
        ]

    @staticmethod
    def _partition(key: bytes | None) -> int:
        return 0 if key is None else (murmur2(key) & 0x7FFFFFFF) % PARTITIONS

    def _check(self, transactional_id: str, generation: int) -> None:
        if self._generations[transactional_id] != generation:
            raise Fenced("a newer producer has the transactional id")

    def _end(self, transactional_id: str, state: str) -> None:
        touched = self._open.pop(transactional_id, [])
        for _, entry in touched:
            entry.state = state
        for place in {place for place, _ in touched}:
            self.partitions[place].append(Entry(None, "marker"))


class MemoryPublisher:
    """Publishes to a `Broker` in transactions; spent after the first failure, as the real one."""

    def __init__(self, broker: Broker, script: Script, transactional_id: str = CONNECTOR) -> None:
        self.broker = broker
        self.script = script
        self.transactional_id = transactional_id
        self._generation = 0
        self._is_open = self._is_spent = False

    async def start(self) -> None:
        async with self.script.effect("publisher.start"):
            self._generation = self.broker.fence(self.transactional_id)

    def new_page(self) -> ListPage:
        return ListPage()

    async def open_topic(self, topic: str) -> None:
        pass

    @asynccontextmanager
    async def transaction(self, *last: Partition) -> AsyncIterator[Transaction]:
        assert self._generation, "start() comes first"
        assert not self._is_spent, "spent: aiokafka's next transaction would fail"
        self._is_open = self._is_spent = True
        yield self
        async with self.script.effect("commit"):
            self.broker.commit(self.transactional_id, self._generation)
            self._is_open = False
        self._is_spent = False

    async def send(self, page: ListPage, /) -> Offsets:
        async with self.script.effect("append"):
            return self._append(page.records)

    async def send_in_order(self, records: Iterable[Record], /) -> None:
        async with self.script.effect("seal"):
            self._append(records)

    def _append(self, records: Iterable[Record]) -> Offsets:
        offsets: Offsets = {}
        for record in records:
            partition, offset = self.broker.append(self.transactional_id, self._generation, record)
            taken = offsets.setdefault(record.topic, {})
            taken[partition] = (taken.get(partition, (offset, 0))[0], offset)
        return offsets

    async def close(self) -> None:
        async with self.script.effect("close"):
            if self._is_open:
                self._is_open = False
                try:
                    self.broker.abort(self.transactional_id, self._generation)
                except Fenced:
                    pass  # Nothing is left to abort.


class MemoryCheckpoints:
    """The row in Postgres, with the trigger's rule for edits."""

    def __init__(self) -> None:
        self.rows: dict[str, Checkpoint] = {}
        self.published_versions: dict[str, int] = {}
        self.other_cluster: str | None = None

    def scripted(self, script: Script) -> ScriptedCheckpoints:
        """The store as one relay sees it."""
        return ScriptedCheckpoints(self, script)

    def claim(self, connector_id: str) -> Checkpoint:
        row = self.rows.get(connector_id) or Checkpoint(connector_id, 0, 0, FIRST_SINCE)
        self.rows[connector_id] = replace(row, epoch=row.epoch + 1)
        return self.rows[connector_id]

    def persist(self, checkpoint: Checkpoint, expected_version: int) -> Persisted:
        row = self.rows.get(checkpoint.connector_id)
        if row is None or row.epoch != checkpoint.epoch:
            return Persisted.FENCED
        if row.version != expected_version or (row.is_edited and not checkpoint.is_edited):
            return Persisted.EDITED
        self.rows[checkpoint.connector_id] = replace(checkpoint, is_edited=False)
        self.published_versions[checkpoint.connector_id] = checkpoint.version
        return Persisted.DONE

    def edit(
        self,
        connector_id: str,
        last_ts: datetime | None = None,
        cursor: Mapping[str, Any] | None = None,
    ) -> Checkpoint:
        """What `UPDATE … SET last_ts = …` by hand does, or `… SET cursor = …`, or both."""
        row = self.rows[connector_id]
        self.rows[connector_id] = replace(
            row,
            version=row.version + 1,
            last_ts=row.last_ts if last_ts is None else last_ts,
            cursor=cursor,
            complete_through=None,
            seen=None,
            is_edited=True,
        )
        return self.rows[connector_id]


class ScriptedCheckpoints:
    """A `CheckpointStore` whose every call passes the script."""

    def __init__(self, store: MemoryCheckpoints, script: Script) -> None:
        self.store = store
        self.script = script

    async def provenance(self, connector_id: str) -> Provenance:
        # No effect of its own: what fails here fails before the claim, or is a crash after it.
        is_there = connector_id in self.store.rows
        version = self.store.published_versions.get(connector_id, 0) if is_there else 0
        return Provenance(version, self.store.other_cluster)

    async def adopt(self, connector_id: str) -> None:
        self.store.other_cluster = None

    async def claim(self, connector_id: str) -> Checkpoint:
        async with self.script.effect("claim"):
            return self.store.claim(connector_id)

    async def load(self, connector_id: str) -> Checkpoint | None:
        async with self.script.effect("load"):
            return self.store.rows.get(connector_id)

    async def persist(self, checkpoint: Checkpoint, *, expected_version: int) -> Persisted:
        async with self.script.effect("persist"):
            return self.store.persist(checkpoint, expected_version)


class MemoryReader:
    """A `TopicReader` of committed records."""

    def __init__(self, broker: Broker, script: Script) -> None:
        self.broker = broker
        self.script = script

    async def last_checkpoint(self, connector_id: str) -> Checkpoint | None:
        async with self.script.effect("last_checkpoint"):
            place = (CHECKPOINTS_TOPIC, PARTITION)
            mine = [
                record
                for record in self.broker.read(place, 0)
                if record.key == connector_id.encode()
            ]
        return decode_checkpoint(mine[-1].value) if mine else None

    async def published_ids(
        self, connector_id: str, start: Mapping[str, Mapping[int, int]]
    ) -> AsyncIterator[list[PublishedId]]:
        async with self.script.effect("published_ids"):
            mine = ("connector_id", connector_id.encode())
            found = [
                one
                for topic, offsets in start.items()
                for partition, offset in offsets.items()
                for record in self.broker.read((topic, partition), offset)
                if mine in record.headers
                for one in published_ids_of(record)
            ]
        for one in found:
            yield [one]

    async def offsets_since(
        self, topics: Collection[str], since: datetime
    ) -> Mapping[str, Mapping[int, int]]:
        async with self.script.effect("offsets_since"):
            start: dict[str, dict[int, int]] = {}
            for topic, partition in self.broker.partitions:
                # It has no clock: all of them may be younger.
                if topic in topics if topics else topic.startswith(RAW_AND_DEAD):
                    start.setdefault(topic, {})[partition] = 0
        return start


class MemoryIdLog:
    """The log of ids, compacted."""

    def __init__(self, broker: Broker, script: Script, hasher: IdHasher = HASHER) -> None:
        self.hasher = hasher
        self.broker = broker
        self.script = script

    async def slots(self, connector_id: str) -> Mapping[int, bytes]:
        slots: dict[int, bytes] = {}
        async with self.script.effect("slots"):
            for record in self.broker.read((IDS_TOPIC, PARTITION), 0):
                assert record.key is not None
                owner, number = decode_slot_key(record.key)
                if owner == connector_id and record.value is not None:
                    slots[number] = record.value
                elif owner == connector_id:
                    slots.pop(number, None)
        return slots


def event(number: int, seconds: float, **fields: Any) -> RawEvent:
    """An event of the source; `seconds` after its beginning."""
    return RawEvent(
        **{
            "platform": PLATFORM,
            "event_id": f"e{number}",
            "occurred_at": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds),
            "principal_ref": f"user{number % 7}",
            "asset_ref": "table",
            "operation": "SELECT",
            "raw_payload": {"number": number},
            **fields,
        }
    )


@dataclass
class Platform:
    """What a source holds. Deliveries arrive pass by pass, so an old event can be late.

    Attributes:
        deliveries: For each pass the events that have become readable since the one before.
    """

    deliveries: Sequence[Sequence[RawEvent]]
    passes: int = 0
    ids: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = {str(one.event_id) for delivery in self.deliveries for one in delivery}

    def next_pass(self) -> list[RawEvent]:
        """What is readable in the pass that begins now, in order of delivery."""
        self.passes += 1
        return [one for delivery in self.deliveries[: self.passes] for one in delivery]

    @property
    def is_all_served(self) -> bool:
        """Whether a pass has begun in which everything was readable."""
        return self.passes >= len(self.deliveries)


class CursorSource:
    """A `Source` with an exact cursor: how many events were delivered.

    It repeats the last `overlap` events on every page, and after an edit starts at the first
    event that is not older than the position.
    """

    def __init__(self, platform: Platform, script: Script, page: int = 3, overlap: int = 2) -> None:
        self._platform = platform
        self._script = script
        self._page = page
        self._overlap = overlap

    async def pages(
        self, checkpoint: Checkpoint, new_builder: NewBuilder
    ) -> AsyncIterator[RelayPage]:
        events = self._platform.next_pass()
        if checkpoint.cursor is not None:
            start = int(checkpoint.cursor["next"])
        else:
            since = checkpoint.last_ts
            at = [number for number, one in enumerate(events) if one.occurred_at >= since]
            start = at[0] if at else len(events)
        while start < len(events):
            end = min(start + self._page, len(events))
            async with self._script.effect("fetch"):
                newest = max(one.occurred_at for one in events[:end])
            builder = await builder_of(new_builder, events[max(0, start - self._overlap) : end])
            yield RelayPage(builder, Reached(newest, {"next": end}))
            start = end


async def builder_of(new_builder: NewBuilder, events: Iterable[Any]) -> PageBuilder:
    """These events as a page."""
    builder = new_builder(1000, 1_000_000)
    for event in events:
        waiting = builder.add(event)
        if waiting is not None:
            await waiting
    return builder


class PlainConnector(BaseConnector):
    """Yields events in ascending order of time; `is_closed` is its interval's left end."""

    def __init__(self, platform: Platform, script: Script, *, is_closed: bool) -> None:
        super().__init__({"connector_id": CONNECTOR}, None, None)
        self._platform = platform
        self._script = script
        self._is_closed = is_closed

    async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        for one in sorted(self._platform.next_pass(), key=lambda one: one.occurred_at):
            if one.occurred_at > since or (self._is_closed and one.occurred_at == since):
                yield one

    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        return
        yield
