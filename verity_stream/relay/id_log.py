"""The log of ids: the seen windows of all connectors, in a compacted topic.

Each record is a slot of one connector's window (see `seen`), in the partition of its checkpoints.
It is written by the relay, in the page's own transaction, and read here. A worker reads a
partition once for all its connectors: whoever asks while it is being read joins the next round,
which goes on from where the last one ended.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any, Protocol

import structlog

from verity_sdk.errors import Malformed, Unavailable
from verity_stream.kafka.clients import TopicPartition
from verity_stream.kafka.committed import CommittedReader
from verity_stream.kafka.partitions import partition_for
from verity_stream.kafka.transactions import KafkaPublisher
from verity_stream.postgres.errors import database_errors
from verity_stream.records import (
    ID_KEY_KEY,
    IDS_TOPIC,
    Record,
    decode_slot_key,
    encode_slot,
    slot_key,
)
from verity_stream.relay.ids import KEY_BYTES, IdHasher
from verity_stream.relay.seen_window import Changes

logger = structlog.get_logger(__name__)

KEPT_SECONDS = 30.0
"""What was read is kept for so long after the last request: connectors start in bursts."""

KEY_PARTITION = 0


Slots = Mapping[int, bytes]
"""A connector's slots by number, as they stand in the log."""


class IdLog(Protocol):
    """What a relay asks of the log at its start. Call it only after the producer has fenced.

    Attributes:
        hasher: Makes the hashes that stand there.
    """

    hasher: IdHasher

    async def slots(self, connector_id: str) -> Slots:
        """The connector's committed slots, whoever's key they were made with."""


class KafkaIdLog:
    """Reads the log for all relays of a worker.

    Args:
        reader: Reads committed records up to the high watermark.
        partitions: How many the log has.
        hasher: Of the installation's key.
    """

    def __init__(self, reader: CommittedReader, partitions: int, hasher: IdHasher) -> None:
        self.hasher = hasher
        self._reader = reader
        self._partitions = partitions
        self._read: dict[int, _Partition] = {}

    async def slots(self, connector_id: str) -> Slots:
        """The connector's slots as they stood after this was called.

        Raises:
            Unavailable, Denied: The log can't be read.
        """
        number = partition_for(connector_id, self._partitions)
        if number not in self._read:
            self._read[number] = _Partition(self._reader, number)
        found = await self._read[number].read()
        return dict(found.get(connector_id, {}))

    def close(self) -> None:
        """Stop reading, and drop what was read."""
        for one in self._read.values():
            one.close()


_Found = Mapping[str, Slots]
"""What a partition holds, by connector id."""


class _Partition:
    """One partition of the log, read in rounds for whoever waits."""

    def __init__(self, reader: CommittedReader, number: int) -> None:
        self._reader = reader
        self._place = TopicPartition(IDS_TOPIC, number)
        self._slots: dict[str, dict[int, bytes]] = {}
        self._reached = 0
        self._waiting: list[asyncio.Future[_Found]] = []
        self._rounds: asyncio.Task[None] | None = None
        self._drop: asyncio.TimerHandle | None = None

    async def read(self) -> _Found:
        """Every connector's slots, read up to an end that was asked for after this call."""
        done: asyncio.Future[_Found] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        if self._drop is not None:
            self._drop.cancel()
        if self._rounds is None or self._rounds.done():
            self._rounds = asyncio.create_task(self._read_rounds())
        return await done

    async def _read_rounds(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            try:
                await self._read_on()
            except asyncio.CancelledError:
                for one in (*waiting, *self._waiting):
                    one.cancel()
                raise
            except Exception as error:  # noqa: BLE001 - it belongs to those who wait
                self._forget()
                for one in waiting:
                    if not one.done():
                        one.set_exception(error)
            else:
                for one in waiting:
                    if not one.done():
                        one.set_result(self._slots)
        self._drop = asyncio.get_running_loop().call_later(KEPT_SECONDS, self._forget)

    async def _read_on(self) -> None:
        end = (await self._reader.ends([self._place]))[self._place]
        if end < self._reached:
            self._forget()  # The log was made anew.
        if end == self._reached:
            return
        begin = self._reached or None
        async for records in self._reader.read({self._place: begin}, {self._place: end}):
            for record in records:
                self._take(record.key, record.value)
        self._reached = end

    def _take(self, key: bytes | None, value: bytes | None) -> None:
        try:
            connector_id, number = decode_slot_key(key or b"")
        except Malformed:
            return  # The hashes' key, or not ours.
        slots = self._slots.setdefault(connector_id, {})
        if value is None:
            slots.pop(number, None)
        else:
            slots[number] = value

    def _forget(self) -> None:
        # Not cleared: somebody may still look at what was handed out.
        self._slots, self._reached = {}, 0

    def close(self) -> None:
        if self._rounds is not None:
            self._rounds.cancel()
        if self._drop is not None:
            self._drop.cancel()
        self._forget()


def slot_records(
    connector_id: str, partition: int, hasher: IdHasher, changes: Changes
) -> tuple[list[Record], list[Record]]:
    """The records that write a page's slots, and those that take others out of the log."""
    written = [
        Record(
            IDS_TOPIC,
            slot_key(connector_id, slot.number),
            encode_slot(hasher.fingerprint, slot.newest_at, slot.hashes),
            [],
            partition,
        )
        for slot in changes.written
    ]
    gone = [
        Record(IDS_TOPIC, slot_key(connector_id, number), None, [], partition)
        for number in changes.gone
    ]
    return written, gone


def new_id_key() -> bytes:
    """A key that nobody can guess."""
    return secrets.token_bytes(KEY_BYTES)


async def agree_on_key(
    pool: Any,
    reader: CommittedReader,
    publisher: KafkaPublisher,
    new_key: Callable[[], bytes] = new_id_key,
) -> bytes:
    """The key of the hashes: the log's, or the database's, or a new one; both have it afterwards.

    The log wins: its hashes are worth nothing under another key. Workers that start together agree
    through the database, before any of them writes to the log.

    Args:
        publisher: A fresh one without transactions; it is closed.
        new_key: Makes one.

    Raises:
        Unavailable, Denied, Misconfigured: One of the two can't be read or written.
    """
    async with database_errors("reading the key of the ids"):
        stored: bytes | None = await pool.fetchval("SELECT key FROM verity_id_key")
    logged = await _logged_key(reader, stored)
    key = logged or stored or new_key()
    if stored is None:
        async with database_errors("storing the key of the ids"):
            await pool.execute(
                "INSERT INTO verity_id_key (key) VALUES ($1) ON CONFLICT DO NOTHING", key
            )
            stored = await pool.fetchval("SELECT key FROM verity_id_key")
        if stored is None:
            raise Unavailable("the key of the ids is gone again: is the database restored?")
    if logged is None:
        try:
            await publisher.start()
            async with publisher.transaction() as transaction:
                await transaction.send([Record(IDS_TOPIC, ID_KEY_KEY, stored, [], KEY_PARTITION)])
        finally:
            await publisher.close()
        logger.info("ids.key_written")
        return stored
    if stored != logged:
        # As with a database of another installation, or one that was made anew and then restored.
        logger.error("ids.key_differs", taken="the log's")
        async with database_errors("storing the key of the ids"):
            await pool.execute("UPDATE verity_id_key SET key = $1", logged)
    return logged


async def _logged_key(reader: CommittedReader, expected: bytes | None) -> bytes | None:
    """The key in the log; read no further than to the one that is expected, if that is there.

    Uncommitted, because it is no part of a transaction: the page that a worker left open when it
    died would hold up its own restart.
    """
    place = TopicPartition(IDS_TOPIC, KEY_PARTITION)
    found: bytes | None = None
    reading = reader.read({place: None}, isolation_level="read_uncommitted")
    async with aclosing(reading):
        async for records in reading:
            for record in records:
                if record.key == ID_KEY_KEY and record.value and len(record.value) == KEY_BYTES:
                    found = record.value
                    if found == expected:
                        return found
    return found
