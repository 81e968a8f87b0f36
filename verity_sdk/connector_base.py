"""The base of every connector: the records it yields, and one pass of publishing them.

`BaseConnector.run()` is what a connector does without the stream application: at least once,
with a timestamp as its checkpoint. Its rules are decisions over times (`_Watermark`); the rest
is thin: `_ReadAhead` pulls the source, `_Pass` publishes and moves the checkpoint.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from verity_sdk.errors import Denied, Malformed, Misconfigured, Unavailable, VerityError
from verity_sdk.times import as_utc, format_utc

logger = logging.getLogger(__name__)

FIRST_SINCE = datetime(2000, 1, 1, tzinfo=UTC)
"""Where a connector starts that has no checkpoint."""

CHUNK_EVENTS_MAX = 1000
"""So many events are sent before their acknowledgements are awaited, together."""
CHUNK_SECONDS_MAX = 1.0
"""An event waits at most this long for the checkpoint to follow it."""
READ_AHEAD_EVENTS_MAX = 1000
"""So many events are taken from the source before they can be sent."""
ACK_SECONDS_MAX = 120.0
"""How long Kafka may take to acknowledge a chunk; an idempotent producer alone waits for ever."""
DATABASE_SECONDS_MAX = 30.0
"""How long reading or writing the checkpoint may take."""
CLOSE_SECONDS_MAX = 5.0
"""How long a source may take to react to its cancellation before it is left behind."""

_SELECT_CHECKPOINT = "SELECT last_ts FROM connector_checkpoints WHERE connector_id = $1"
_UPSERT_CHECKPOINT = (
    "INSERT INTO connector_checkpoints (connector_id, last_ts) VALUES ($1, $2) "
    "ON CONFLICT (connector_id) DO UPDATE SET last_ts = EXCLUDED.last_ts"
)
_PLATFORM = re.compile(r"[A-Za-z0-9._-]{1,200}")


@dataclass
class RawEvent:
    """One audit event, as the source reported it.

    Attributes:
        platform: The source platform, for example `azure_ad`; part of the topic's name.
        event_id: The source's own id, exactly as it gave it; repeats are recognised by it.
        occurred_at: When it happened; a naive value is taken as UTC.
        principal_ref: Who did it, in the source's terms.
        asset_ref: What it was done to, in the source's terms.
        operation: What was done, for example `SELECT`.
        raw_payload: The source's record, complete.
    """

    platform: str
    event_id: str
    occurred_at: datetime
    principal_ref: str
    asset_ref: str
    operation: str
    raw_payload: dict[str, Any] = field(default_factory=dict)


@dataclass
class PermissionSnapshot:
    """One grant, as it stood at one point in time.

    Attributes:
        platform: The source platform.
        principal_ref: Who holds the privilege, in the source's terms.
        asset_ref: On what, in the source's terms.
        privilege: What it allows, for example `READ`.
        grant_mechanism: How it is held: `direct`, `group`, `role`, `policy`, …
        granted_via: The group or role it is held through, if any.
        snapshot_at: When it was read; a naive value is taken as UTC.
        raw_payload: The source's record, complete.
    """

    platform: str
    principal_ref: str
    asset_ref: str
    privilege: str
    grant_mechanism: str
    granted_via: str | None = None
    snapshot_at: datetime | None = None
    raw_payload: dict[str, Any] = field(default_factory=dict)


class BaseConnector(ABC):
    """What every connector extends: two methods to implement, publishing and checkpoints given.

    Attributes:
        lookback: How far before the watermark the source may still deliver new events. The
            stream application looks back by it; `run()`, which cannot tell a repeat, does not.
    """

    lookback: ClassVar[timedelta] = timedelta(0)

    # Class attributes, so that a subclass that forgets super().__init__() still has them.
    _has_warned_of_naive_time = False
    _is_checkpoint_known = True

    def __init__(self, config: Any, kafka_producer: Any, db_pool: Any) -> None:
        """Keep what is handed in; nothing is connected or checked yet.

        Args:
            config: A mapping, or an object with attributes, that has `connector_id`.
            kafka_producer: A started `AIOKafkaProducer` whose `value_serializer` turns a dict
                into bytes, for `run()`; `verity_common.kafka.create_producer` makes one.
            db_pool: An `asyncpg` pool, for `run()`.
        """
        self.config = config
        self.kafka_producer = kafka_producer
        self.db_pool = db_pool

    # Not `async def`: a generator function (`async def` with `yield`) returns its iterator
    # without being awaited, and only so does an override type-check.
    @abstractmethod
    def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        """Yield the audit events that occurred after `since`, oldest first; end when caught up.

        An event may be yielded again after a crash: its id must be the same then. That the
        generator is resumed does not mean that the event before is published.

        Args:
            since: Aware UTC.
        """

    @abstractmethod
    def snapshot_permissions(self) -> AsyncIterator[Any]:
        """Yield the grants that stand now, as `PermissionSnapshot`s.

        A part that could not be read is yielded as a `verity_sdk.pages.SnapshotGap`.
        """

    async def run(self) -> None:
        """One pass: publish every event after the checkpoint, and let the checkpoint follow.

        What it guarantees, at least once and to one `run()` of a `connector_id` at a time:

        1. Each event goes to the topic `verity.events.raw.{platform}`, in the order in which
           the source yields them, as a dict of its fields with `occurred_at` as text.
        2. The checkpoint never passes an event that Kafka has not acknowledged.
        3. Within a pass the checkpoint rests on a time that the source has left behind: the
           newest one strictly before the newest. So a source that filters strictly "after"
           never loses events that share their time with the last one before a crash.
        4. The checkpoint never moves backwards within a pass, and never below where it was
           loaded. Once an event comes out older than one before it, which is warned of once a
           pass, it stays where it is until the end of the pass.
        5. A pass that ends normally leaves it at the newest `occurred_at`.
        6. Acknowledgements are awaited and the checkpoint is written once for every 1,000
           events, and 1 s after the first that waits, also while the source is silent.

        A naive `occurred_at` is taken as UTC, with one warning a connector.

        Raises:
            Misconfigured: No `connector_id` in the config (nothing was done), or the producer
                has no serializer for a dict (nothing was published, nothing moved).
            Unavailable: Kafka did not take or acknowledge an event, or the checkpoint could not
                be written. The checkpoint is where it was last written, and events after it may
                be published already; the next pass publishes all of them.
            Denied: Kafka does not let us write to the topic; then as with Unavailable.
            Malformed: An event can't be published: no `RawEvent`, no valid time or platform, a
                payload that the serializer refuses, or too large. The message names its id. The
                events before it are published, and the checkpoint has followed them as far as 3
                and 4 allow; it does not pass this event, so the next pass meets it again.
            asyncio.CancelledError: The source is closed; the checkpoint is where it was last
                written. Events after it may be published, and are published again.
            Exception: Whatever the source raises, as it is. What it yielded before is treated as
                with Malformed.
        """
        self._connector_id()  # Before anything else: without it there is no checkpoint.
        since = as_utc(await self._load_checkpoint())
        one_pass = _Pass(self, since)
        async with _read_ahead(lambda: self.stream_audit_events(since=since)) as source:
            try:
                while (events := await source.take(one_pass.seconds_left())) is not None:
                    for event in events:
                        await one_pass.publish(event)
                        if one_pass.is_due():
                            await one_pass.settle()
                    if one_pass.is_due():
                        await one_pass.settle()
                await one_pass.finish()
            except Exception:
                await one_pass.settle_after_failure()
                raise
            finally:
                one_pass.abandon()

    async def _load_checkpoint(self) -> datetime:
        """The checkpoint, or the start of the year 2000 if there is none or the query fails.

        A failing query is warned of. `run()` then starts from 2000, and asks again before it
        writes, so that the stored checkpoint is not moved backwards.

        Raises:
            Misconfigured: No `connector_id` in the config.
        """
        connector_id = self._connector_id()
        self._is_checkpoint_known = True
        try:
            stored = await self._read_checkpoint(connector_id)
        except Exception as error:  # noqa: BLE001 - the pool is handed in: any error is its query's
            self._is_checkpoint_known = False
            logger.warning(
                "connector %s: the checkpoint can't be read, starting from %s: %s",
                connector_id,
                format_utc(FIRST_SINCE),
                _described(error),
            )
            return FIRST_SINCE
        return FIRST_SINCE if stored is None else stored

    async def _save_checkpoint(self, ts: datetime) -> None:
        """Write the checkpoint, whatever it was before; a naive time is taken as UTC.

        Raises:
            Misconfigured: No `connector_id` in the config.
            Malformed: The time is none.
            Unavailable: The query failed or took too long; the checkpoint is what it was, or,
                where the answer was lost, the new one.
        """
        connector_id, at = self._connector_id(), as_utc(ts)
        try:
            async with asyncio.timeout(DATABASE_SECONDS_MAX):
                await self.db_pool.execute(_UPSERT_CHECKPOINT, connector_id, at)
        except Exception as error:
            raise Unavailable(
                f"connector {connector_id}: the checkpoint {format_utc(at)} could not be "
                f"written: {_described(error)}; what was published after the stored one is "
                "published again"
            ) from error

    async def _read_checkpoint(self, connector_id: str) -> datetime | None:
        async with asyncio.timeout(DATABASE_SECONDS_MAX):
            row = await self.db_pool.fetchrow(_SELECT_CHECKPOINT, connector_id)
        return None if row is None or row["last_ts"] is None else as_utc(row["last_ts"])

    def _connector_id(self) -> str:
        if isinstance(self.config, Mapping):
            connector_id = self.config.get("connector_id")
        else:
            connector_id = getattr(self.config, "connector_id", None)
        if not isinstance(connector_id, str) or not connector_id:
            raise Misconfigured(
                "the connector's config has no connector_id: it must be a text, "
                "the key of the connector's checkpoint"
            )
        return connector_id


class _Watermark:
    """Where the checkpoint may rest, given the times that were yielded so far.

    The times of a pass should ascend. The newest may still get company, so the watermark rests
    on the newest one that was left behind; once the order is broken, on what it had reached.
    """

    def __init__(self, since: datetime) -> None:
        self.rests_at = since
        self.is_ascending = True
        self._newest: datetime | None = None

    def pass_by(self, at: datetime) -> None:
        """Take in the time of the next event."""
        if self._newest is None or at > self._newest:
            if self._newest is not None and self.is_ascending:
                self.rests_at = max(self.rests_at, self._newest)
            self._newest = at
        elif at < self._newest:
            self.is_ascending = False

    def finish(self) -> None:
        """The pass ended normally: everything up to the newest is out."""
        if self._newest is not None:
            self.rests_at = max(self.rests_at, self._newest)


class _Pass:
    """Publishing and checkpoints of one pass; the guarantees are those of `run()`."""

    def __init__(self, connector: BaseConnector, since: datetime) -> None:
        self._connector = connector
        self._connector_id = connector._connector_id()
        self._watermark = _Watermark(since)
        self._written = since
        self._topics: dict[str, str] = {}
        self._acks: list[tuple[str, asyncio.Future[Any]]] = []
        self._sent_count = 0
        self._due_at: float | None = None
        self._has_failed = False
        self._now: Callable[[], float] = asyncio.get_running_loop().time

    def is_due(self) -> bool:
        """Whether the chunk is full or old enough to be settled."""
        return self._due_at is not None and (
            self._sent_count >= CHUNK_EVENTS_MAX or self._now() >= self._due_at
        )

    def seconds_left(self) -> float | None:
        """Until the chunk is due by its age; None while there is no chunk."""
        return None if self._due_at is None else max(0.0, self._due_at - self._now())

    async def publish(self, event: Any) -> None:
        """Hand one event to the producer; its acknowledgement is awaited by `settle`."""
        topic, at, value = self._encode(event)
        try:
            # A producer that is no coroutine, and one that hands back no future, are taken at
            # their word: the event is out.
            ack = self._connector.kafka_producer.send(topic=topic, value=value)
            if inspect.isawaitable(ack):
                ack = await ack
        except Exception as error:
            raise self._publish_error(error, event.event_id, topic, value) from error
        if inspect.isawaitable(ack):
            self._acks.append((event.event_id, asyncio.ensure_future(ack)))
        # Only now does the event count: the watermark never knows of one that was not sent.
        was_ascending = self._watermark.is_ascending
        self._watermark.pass_by(at)
        if was_ascending and not self._watermark.is_ascending:
            logger.warning(
                "connector %s: event %r is older than one before it; the checkpoint stays at %s "
                "until the end of the pass",
                self._connector_id,
                event.event_id,
                format_utc(self._watermark.rests_at),
            )
        self._sent_count += 1
        if self._due_at is None:
            self._due_at = self._now() + CHUNK_SECONDS_MAX

    async def settle(self) -> None:
        """Await what Kafka still owes of the chunk, then move the checkpoint."""
        # The order is the guarantee: send, await the broker, then move the checkpoint.
        await self._await_acks()
        await self._move_checkpoint()

    async def finish(self) -> None:
        """Settle the last chunk of a pass that ended normally, at its newest time."""
        await self._await_acks()
        self._watermark.finish()
        await self._move_checkpoint()

    async def settle_after_failure(self) -> None:
        """Let the checkpoint follow what is out, unless Kafka or the database is what failed."""
        if self._has_failed:
            return
        try:
            await self.settle()
        except VerityError as error:
            logger.warning("connector %s: on leaving the pass: %s", self._connector_id, error)

    def abandon(self) -> None:
        """Stop waiting for what is outstanding; that nobody asks any more is not worth a log."""
        for _, ack in self._acks:
            ack.add_done_callback(_retrieve)
        self._acks = []

    def _encode(self, event: Any) -> tuple[str, datetime, dict[str, Any]]:
        if not isinstance(event, RawEvent):
            raise Malformed(f"the connector yielded a {type(event).__name__}, not a RawEvent")
        try:
            at = as_utc(event.occurred_at)
            topic = self._topic(event.platform)
        except Malformed as error:
            raise Malformed(f"event {event.event_id!r}: {error}; {self._what_is_true()}") from error
        if event.occurred_at.tzinfo is None and not self._connector._has_warned_of_naive_time:
            self._connector._has_warned_of_naive_time = True
            logger.warning(
                "connector %s: occurred_at has no time zone and is taken as UTC (event %r)",
                self._connector_id,
                event.event_id,
            )
        value = {
            "platform": event.platform,
            "event_id": event.event_id,
            "occurred_at": format_utc(at),
            "principal_ref": event.principal_ref,
            "asset_ref": event.asset_ref,
            "operation": event.operation,
            "raw_payload": event.raw_payload,
        }
        return topic, at, value

    def _topic(self, platform: Any) -> str:
        topic = self._topics.get(platform) if isinstance(platform, str) else None
        if topic is None:
            if not isinstance(platform, str) or _PLATFORM.fullmatch(platform) is None:
                raise Malformed(f"platform {platform!r} can't be part of a topic's name")
            topic = self._topics[platform] = f"verity.events.raw.{platform}"
        return topic

    async def _await_acks(self) -> None:
        acks, self._due_at, self._sent_count = self._acks, None, 0
        try:
            async with asyncio.timeout(ACK_SECONDS_MAX):
                for _, ack in acks:
                    if not ack.done():
                        # asyncio.wait, because awaiting the future itself would cancel it with us.
                        await asyncio.wait({ack})
        except TimeoutError as error:
            self._has_failed = True
            raise Unavailable(
                f"connector {self._connector_id}: Kafka acknowledged nothing for "
                f"{ACK_SECONDS_MAX:g} s; {self._what_is_true()}"
            ) from error
        self._acks = []
        failed = [(event_id, error) for event_id, ack in acks if (error := _error_of(ack))]
        if failed:
            event_id, error = failed[0]
            raise self._publish_error(error, event_id, f"{len(failed)} of {len(acks)} events")

    async def _move_checkpoint(self) -> None:
        to = self._watermark.rests_at
        if to <= self._written:
            return
        try:
            if not self._connector._is_checkpoint_known:
                await self._learn_checkpoint()
            if to > self._written:
                await self._connector._save_checkpoint(to)
                self._written = to
        except Exception:
            self._has_failed = True
            raise

    async def _learn_checkpoint(self) -> None:
        try:
            stored = await self._connector._read_checkpoint(self._connector_id)
        except Exception as error:
            raise Unavailable(
                f"connector {self._connector_id}: the checkpoint can still not be read: "
                f"{_described(error)}; it has not moved"
            ) from error
        self._connector._is_checkpoint_known = True
        if stored is not None:
            self._written = max(self._written, stored)

    def _publish_error(
        self, error: BaseException, event_id: str, where: str, value: Any = None
    ) -> VerityError:
        """Who must act when an event could not be published; notes whether Kafka failed."""
        # Here and not at the top: who imports the SDK to write or test a connector needs no Kafka.
        from aiokafka.errors import (
            ClusterAuthorizationFailedError,
            MessageSizeTooLargeError,
            TopicAuthorizationFailedError,
        )

        what = f"event {event_id!r} ({where}): {_described(error)}; {self._what_is_true()}"
        if isinstance(error, MessageSizeTooLargeError):
            return Malformed(f"too large for Kafka: {what}")
        if isinstance(error, TypeError | ValueError | RecursionError) and value is not None:
            if self._has_serializer() and not _is_json(value):
                return Malformed(f"can't be serialised: {what}")
            self._has_failed = True
            return Misconfigured(
                "the Kafka producer has no value_serializer that turns a dict into bytes "
                f"(verity_common.kafka.create_producer makes one that does): {what}"
            )
        self._has_failed = True
        if isinstance(error, TopicAuthorizationFailedError | ClusterAuthorizationFailedError):
            return Denied(f"Kafka refused: {what}")
        return Unavailable(f"not published: {what}")

    def _has_serializer(self) -> bool:
        # aiokafka shows it nowhere in public; of another producer it is taken to exist.
        return getattr(self._connector.kafka_producer, "_value_serializer", True) is not None

    def _what_is_true(self) -> str:
        return (
            f"the checkpoint was last written as {format_utc(self._written)}, "
            "what comes after it is published again"
        )


class _ReadAhead:
    """Pulls a source in a task of its own, so that a chunk can be settled while it is silent."""

    def __init__(self, open_stream: Callable[[], Any]) -> None:
        self._open_stream = open_stream
        self._events: list[Any] = []
        self._has_news, self._has_room = asyncio.Event(), asyncio.Event()
        self._task = asyncio.create_task(self._pull())

    async def take(self, timeout_seconds: float | None) -> list[Any] | None:
        """What there is; nothing if nothing came in time; None once the source has ended.

        Raises:
            Unavailable: The source cancelled itself.
            Exception: What the source raised, after all that it yielded was taken.
        """
        while not self._events:
            if self._task.done():
                if (error := _error_of(self._task)) is not None:
                    raise error
                return None
            self._has_news.clear()
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self._has_news.wait()
            except TimeoutError:
                return []
        events, self._events = self._events, []
        self._has_room.set()
        return events

    async def close(self) -> None:
        """Cancel the source where it stands and let it clean up."""
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=CLOSE_SECONDS_MAX)
        if not self._task.done():
            logger.error("the source ignores its cancellation and is left behind")
        else:
            _retrieve(self._task)

    async def _pull(self) -> None:
        try:
            stream = self._open_stream()
            if inspect.isawaitable(stream):
                stream = await stream
            try:
                async for event in stream:
                    self._events.append(event)
                    self._has_news.set()
                    if len(self._events) >= READ_AHEAD_EVENTS_MAX:
                        self._has_room.clear()
                        await self._has_room.wait()
            finally:
                if hasattr(stream, "aclose"):
                    await stream.aclose()
        finally:
            self._has_news.set()


@asynccontextmanager
async def _read_ahead(open_stream: Callable[[], Any]) -> AsyncIterator[_ReadAhead]:
    source = _ReadAhead(open_stream)
    try:
        yield source
    finally:
        await source.close()


def _error_of(future: asyncio.Future[Any]) -> BaseException | None:
    # Nobody here cancels what is waited for. Passed on as CancelledError it would look as if
    # run() had been told to stop.
    if future.cancelled():
        return Unavailable("cancelled by its own side")
    return future.exception()


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Look at the outcome, so that asyncio does not log it as one that nobody looked at."""
    if not future.cancelled():
        future.exception()


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
