"""The base of every connector: the records it yields, and one pass of publishing them.

`BaseConnector.run()` is what a connector does without the stream application: at least once,
with a timestamp as its checkpoint.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

import orjson

from verity_sdk._moved import moved
from verity_sdk.batches import Limits, batched, closing
from verity_sdk.errors import Denied, Malformed, Misconfigured, Unavailable, VerityError
from verity_sdk.position import FIRST_SINCE as FIRST_SINCE
from verity_sdk.position import NAME_RULE, Watermark, is_valid_name
from verity_sdk.times import as_utc, format_utc
from verity_sdk.values import altered_header, has_null, hides_a_number, plain, publishable, shown

logger = logging.getLogger(__name__)

RUN_LIMITS = Limits(events_max=1000, wait=timedelta(seconds=1))
"""So many events, or those of so long, are published before the checkpoint follows them."""
ACK_SECONDS_MAX = 120.0
"""How long Kafka may take to acknowledge a batch; an idempotent producer alone waits for ever."""
DATABASE_SECONDS_MAX = 30.0
"""How long reading or writing the checkpoint may take."""

_SELECT_CHECKPOINT = "SELECT last_ts FROM connector_checkpoints WHERE connector_id = $1"
_UPSERT_CHECKPOINT = (
    "INSERT INTO connector_checkpoints (connector_id, last_ts) VALUES ($1, $2) "
    "ON CONFLICT (connector_id) DO UPDATE SET last_ts = EXCLUDED.last_ts"
)
_TEXTS = ("event_id", "principal_ref", "asset_ref", "operation")


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
            stream application asks from there and drops what it has published before; `run()`,
            which can't tell a repeat, does not look back. Zero only for a source in which
            nothing ever appears late.
        fetch_timeout: How long a pass may be silent before the stream application cuts it, where
            its own default is too short: for a request budget of an hour, say. None: the default.
    """

    # Most sources show an event some seconds after its time; asking for a minute again costs
    # little, and not asking loses what nobody notices.
    lookback: ClassVar[timedelta] = timedelta(seconds=60)
    fetch_timeout: ClassVar[timedelta | None] = None

    # Class attributes, so that a subclass that forgets super().__init__() still has them.
    _has_warned_of_naive_time = False
    _is_checkpoint_known = True

    def __init__(self, config: Any, kafka_producer: Any, db_pool: Any) -> None:
        """Keep what is handed in; nothing is connected or checked yet.

        Args:
            config: A mapping, or an object with attributes, that has `connector_id`.
            kafka_producer: A started `AIOKafkaProducer` whose `value_serializer` turns a dict
                into bytes, for `run()`; `verity_common.kafka.create_producer` makes one.
            db_pool: An `asyncpg` pool, for `run()`. Under the worker it is a small one that all
                connectors share: give connections back.
        """
        self.config = config
        self.kafka_producer = kafka_producer
        self.db_pool = db_pool

    # Not `async def`: a generator function (`async def` with `yield`) returns its iterator
    # without being awaited, and only so does an override type-check.
    @abstractmethod
    def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        """Yield the audit events of `since` and later, oldest first; end when caught up.

        This is what `since` means, everywhere:

        - Every event that the source shows and that occurred at `since` or later is yielded.
          Those *at* `since` belong to it: others of the same time may have appeared after the
          last pass, and whoever asks only for what is later never sees them. Where an API
          filters strictly, ask it from a moment earlier.
        - What was yielded before comes again then, with the same id. The stream application
          drops it; `run()`, at least once, publishes it again.
        - The stream application asks from `lookback` before the watermark, `run()` from exactly
          the stored one. Neither is moved by an event that is dated ahead of the clock.

        Write it as `async def` with `yield`. That the generator is resumed does not mean that the
        event is published.

        Args:
            since: Aware UTC.
        """

    @abstractmethod
    def snapshot_permissions(self) -> AsyncIterator[Any]:
        """Yield every grant that stands now, as `PermissionSnapshot`s.

        What could not be read is a `SnapshotGap`; what was read completely may be named by a
        `SnapshotScope`. Write it as `async def` with `yield`.
        """

    def health_warnings(self) -> list[str]:
        """What is no error and yet worth an operator's look, each in one sentence without secrets.

        Asked by the stream application about every ten seconds; must not wait for anything.
        """
        return []

    async def run(self) -> None:
        """One pass: publish every event after the checkpoint, and let the checkpoint follow.

        What it guarantees, at least once and to one `run()` of a `connector_id` at a time:

        1. Each event goes to the topic `verity.events.raw.{platform}`, in the order in which
           the source yields them, as a dict of its fields with `occurred_at` as text.
        2. The checkpoint never passes an event that Kafka has not acknowledged.
        3. Within a pass the checkpoint rests on a time that the source has left behind: the
           newest one strictly before the newest. So even a source that filters strictly "after"
           loses nothing in a crash that shares its time with the last one.
        4. The checkpoint never moves backwards within a pass, and never below where it was
           loaded. Once an event comes out older than one before it, which is warned of once a
           pass, it stays where it was written until the end of the pass. Should that pass
           fail, the next one is not asked for events that are older than what was written: a
           source that can't yield oldest first is a `PagedConnector`, for the worker.
        5. A pass that ends normally leaves it at the newest `occurred_at` that is not ahead of
           the clock; an event that is dated ahead is published, at every pass until its time.
        6. Events are published, their acknowledgements awaited and the checkpoint written once
           for up to 1,000 events, and 1 s after the first that waits, also while the source is
           silent.

        A naive `occurred_at` is taken as UTC, with one warning a connector.

        One bad value costs at most its record. A value that JSON has no word for (half of a
        surrogate pair, NaN, bytes, an integer beyond 64 bits) goes out in its text form: the
        record has the header `altered`, a JSON list of the JSON pointers to what was altered,
        and a warning names the event; integers and UUIDs as ids or references become their text.
        What is no `RawEvent`, has no id, no valid time, no reference or no valid platform is not
        published: one line at ERROR names its id and says why, the pass goes on, and the
        checkpoint follows the events after it. Nothing keeps it then but the source, for `run()`
        has no dead letters; the stream application has.

        Raises:
            Misconfigured: No `connector_id` in the config, or one that the worker would refuse
                (nothing was done), or the producer has no serializer for a dict (nothing was
                published, nothing moved).
            Unavailable: Kafka did not take or acknowledge an event, or the checkpoint could not
                be written. The checkpoint is where it was last written, and events after it may
                be published already; the next pass publishes all of them.
            Denied: Kafka does not let us write to the topic; then as with Unavailable.
            Malformed: An event is too large for Kafka; the message names its id. The checkpoint
                does not pass it, so the next pass meets it again. Where the producer itself
                refused it, the events before it are published and the checkpoint has followed
                them as far as 3 and 4 allow.
            asyncio.CancelledError: The source is closed; the checkpoint is where it was last
                written. Events after it may be published, and are published again.
            Exception: Whatever the source raises, as it is. What it yielded before is published,
                and the checkpoint has followed as far as 3 and 4 allow.
        """
        self._connector_id()  # Before anything else: without it there is no checkpoint.
        since = as_utc(await self._load_checkpoint())
        stream: Any = self.stream_audit_events(since=since)
        if inspect.isawaitable(stream):
            stream = await stream
        one_pass = _Pass(self, since)
        batches = batched(stream, RUN_LIMITS)
        async with closing(batches):
            try:
                async for events, is_last in batches:
                    for event in events:
                        await one_pass.publish(event)
                    await one_pass.settle(is_last=is_last)
            except Malformed:
                await one_pass.settle_before_malformed()
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
        if not is_valid_name(connector_id):
            raise Misconfigured(f"connector_id {connector_id!r}: an id is {NAME_RULE}")
        return connector_id


class _Pass:
    """Publishing and checkpoints of one pass; the guarantees are those of `run()`."""

    def __init__(self, connector: BaseConnector, since: datetime) -> None:
        self._connector = connector
        self._connector_id = connector._connector_id()
        self._watermark = Watermark(since)
        self._written = since
        self._now = since
        self._must_stay = False
        self._topics: dict[str, str] = {}
        self._acks: list[tuple[str, asyncio.Future[Any]]] = []

    async def publish(self, event: Any) -> None:
        """Hand one event to the producer; its acknowledgement is awaited by `settle`.

        One that can't be published is said and passed.
        """
        try:
            event_id, at, topic, value, altered = self._checked(event)
        except Malformed as error:
            logger.error(
                "connector %s: event %s is not published and the pass goes on without it: %s",
                self._connector_id,
                shown(getattr(event, "event_id", None)),
                error,
            )
            return
        if altered:
            logger.warning(
                "connector %s: event %r is published altered, at %s",
                self._connector_id,
                event_id,
                altered.decode(),
            )
        self._pass_by(at, event_id)
        try:
            ack = await self._send(topic, value, altered)
        except Exception as error:
            raise self._send_error(error, event_id, topic) from error
        if inspect.isawaitable(ack):
            self._acks.append((event_id, asyncio.ensure_future(ack)))

    async def _send(self, topic: str, value: dict[str, Any], altered: bytes | None) -> Any:
        # Only where there is something to say: not every producer's `send` takes headers.
        headers = {"headers": [("altered", altered)]} if altered else {}
        try:
            return await self._sent(topic, value, **headers)
        except (TypeError, ValueError, RecursionError):
            # What orjson writes by itself, a time in a payload for one, other serializers refuse.
            simple, _ = plain(value)
            if simple == value and not headers:
                raise
        return await self._sent(topic, simple)

    async def _sent(self, topic: str, value: dict[str, Any], **headers: Any) -> Any:
        # A `send` that is no coroutine, or that hands back no future, is taken at its word: the
        # event is out.
        ack = self._connector.kafka_producer.send(topic=topic, value=value, **headers)
        return await ack if inspect.isawaitable(ack) else ack

    async def settle(self, *, is_last: bool) -> None:
        """Await what Kafka owes of the batch, then move the checkpoint as far as it may rest."""
        # The order is the guarantee: send, await the broker, then move the checkpoint.
        await self._await_acks()
        if is_last:
            self._watermark.finish()
        elif not self._watermark.is_ascending:
            return
        await self._move_checkpoint()

    async def settle_before_malformed(self) -> None:
        """Let the checkpoint follow what is out, up to before the event that is malformed."""
        if self._must_stay:
            return
        try:
            await self.settle(is_last=False)
        except VerityError as error:
            # The malformed event is what the caller must hear of; this one comes again by itself.
            logger.warning("connector %s: on leaving the pass: %s", self._connector_id, error)

    def abandon(self) -> None:
        """Stop waiting for what is outstanding; that nobody asks any more is not worth a log."""
        for _, ack in self._acks:
            ack.add_done_callback(_error_of)
        self._acks = []

    def _checked(self, event: Any) -> tuple[str, datetime, str, dict[str, Any], bytes | None]:
        """An event's id, time, topic and fields, and the header `altered` where it has one.

        Raises:
            Malformed: It does not say who did what, on what, when and whose it is.
        """
        if not isinstance(event, RawEvent):
            raise Malformed(f"the connector yielded a {type(event).__name__}, not a RawEvent")
        try:
            at = as_utc(event.occurred_at)
            topic = self._topic(event.platform)
            self._warn_of_naive_time(event)
            fields = {name: getattr(event, name) for name in _TEXTS}
            altered: list[str] = []
            if not (all(type(one) is str for one in fields.values()) and _is_json(event)):
                fields, altered = publishable(event, _TEXTS)
        except Malformed:
            raise
        except Exception as error:
            # It comes from a connector, and may be anything: it costs its record, not the pass.
            raise Malformed(f"it can't be written as JSON: {_described(error)}") from error
        if not fields["event_id"]:
            raise Malformed("the event has no event_id")
        value = {
            "platform": event.platform,
            "event_id": fields["event_id"],
            "occurred_at": format_utc(at),
            "principal_ref": fields["principal_ref"],
            "asset_ref": fields["asset_ref"],
            "operation": fields["operation"],
            "raw_payload": fields.get("raw_payload", event.raw_payload),
        }
        return value["event_id"], at, topic, value, altered_header(altered) if altered else None

    def _warn_of_naive_time(self, event: RawEvent) -> None:
        if event.occurred_at.tzinfo is None and not self._connector._has_warned_of_naive_time:
            self._connector._has_warned_of_naive_time = True
            logger.warning(
                "connector %s: occurred_at has no time zone and is taken as UTC (event %r)",
                self._connector_id,
                event.event_id,
            )

    def _pass_by(self, at: datetime, event_id: str) -> None:
        was_ascending = self._watermark.is_ascending
        if at > self._now:
            self._now = datetime.now(UTC)
        self._watermark.pass_by((at,), self._now)
        if was_ascending and not self._watermark.is_ascending:
            logger.warning(
                "connector %s: event %r is older than one before it; the checkpoint stays at %s "
                "until the end of the pass",
                self._connector_id,
                event_id,
                format_utc(self._written),
            )

    def _topic(self, platform: Any) -> str:
        topic = self._topics.get(platform) if isinstance(platform, str) else None
        if topic is None:
            if not is_valid_name(platform):
                raise Malformed(f"platform {shown(platform)} can't be part of a topic's name")
            topic = self._topics[platform] = f"verity.events.raw.{str.__str__(platform)}"
        return topic

    async def _await_acks(self) -> None:
        acks = self._acks
        try:
            async with asyncio.timeout(ACK_SECONDS_MAX):
                for _, ack in acks:
                    if not ack.done():
                        # asyncio.wait, because awaiting the future itself would cancel it with us.
                        await asyncio.wait({ack})
        except TimeoutError as error:
            self._must_stay = True
            raise Unavailable(
                f"connector {self._connector_id}: Kafka did not acknowledge within "
                f"{ACK_SECONDS_MAX:g} s; {self._what_is_true()}"
            ) from error
        self._acks = []
        failures = [(event_id, _error_of(ack)) for event_id, ack in acks]
        failed = [(event_id, reason) for event_id, reason in failures if reason is not None]
        if failed:
            # Some of the batch are out and some are not: no place in it is safe to rest on.
            self._must_stay = True
            event_id, reason = failed[0]
            where = f"and {len(failed) - 1} more of {len(acks)}"
            raise self._kafka_error(reason, event_id, where) from reason

    async def _move_checkpoint(self) -> None:
        to = self._watermark.rests_at
        if to <= self._written:
            return
        if not self._connector._is_checkpoint_known:
            await self._learn_checkpoint()
        if to > self._written:
            await self._connector._save_checkpoint(to)
            self._written = to

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

    def _send_error(self, error: Exception, event_id: str, topic: str) -> VerityError:
        """Who must act when the producer refused an event: its serializer, or nobody."""
        if isinstance(error, TypeError | ValueError | RecursionError):
            self._must_stay = True
            return Misconfigured(
                "the Kafka producer needs a value_serializer that turns a dict into bytes, as "
                f"verity_common.kafka.create_producer gives it: event {event_id!r}: "
                f"{_described(error)}; {self._what_is_true()}"
            )
        return self._kafka_error(error, event_id, f"topic {topic}")

    def _kafka_error(self, error: BaseException, event_id: str, where: str) -> VerityError:
        """Who must act when Kafka did not take an event."""
        # Here and not at the top: who imports the SDK to write or test a connector needs no Kafka.
        from aiokafka.errors import (
            ClusterAuthorizationFailedError,
            MessageSizeTooLargeError,
            TopicAuthorizationFailedError,
        )

        what = f"event {event_id!r} ({where}): {_described(error)}; {self._what_is_true()}"
        if isinstance(error, MessageSizeTooLargeError):
            return Malformed(f"too large for Kafka: {what}")
        if isinstance(error, TopicAuthorizationFailedError | ClusterAuthorizationFailedError):
            return Denied(f"Kafka refused: {what}")
        return Unavailable(f"not published: {what}")

    def _what_is_true(self) -> str:
        return (
            f"the checkpoint was last written as {format_utc(self._written)}, "
            "what comes after it is published again"
        )


def _error_of(future: asyncio.Future[Any]) -> BaseException | None:
    # Nobody here cancels what is waited for. Passed on as CancelledError it would look as if
    # run() had been told to stop.
    if future.cancelled():
        return Unavailable("cancelled by the producer")
    return future.exception()


def _is_json(event: RawEvent) -> bool:
    """Whether an event whose references are texts is JSON as it is."""
    texts = [event.event_id, event.principal_ref, event.asset_ref, event.operation]
    try:
        data = orjson.dumps([texts, event.raw_payload])
    except TypeError:
        return False
    return not (has_null(data) and hides_a_number(event.raw_payload))


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


if not TYPE_CHECKING:
    __getattr__ = moved(__name__, {"asked_since": "verity_sdk.position.asked_since"})
