"""One pass of `BaseConnector.run()`: what a connector does without the stream application.

At least once, with a timestamp as its checkpoint. Which rules decide how far that may go is
`verity_sdk.position`'s to say.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from verity_sdk.batches import Limits
from verity_sdk.errors import Denied, Malformed, Misconfigured, Unavailable, VerityError
from verity_sdk.events import RawEvent
from verity_sdk.position import Watermark, is_valid_name
from verity_sdk.times import as_utc, format_utc
from verity_sdk.values import altered_header, has_null, hides_a_number, plain, publishable, shown

logger = logging.getLogger(__name__)

RUN_LIMITS = Limits(events_max=1000, wait=timedelta(seconds=1))
"""So many events, or those of so long, are published before the checkpoint follows them."""
ACK_SECONDS_MAX = 120.0
"""How long Kafka may take to acknowledge a batch; an idempotent producer alone waits for ever."""

_TEXTS = ("event_id", "principal_ref", "asset_ref", "operation")


class Pass:
    """Publishing and checkpoints of one pass; the guarantees are those of `BaseConnector.run()`.

    Args:
        connector_id: Whose pass it is.
        since: The checkpoint as it was loaded.
        producer: An `AIOKafkaProducer`, or what behaves like one.
        read_checkpoint: The stored one; None where there is none.
        save_checkpoint: Writes it.
        is_checkpoint_known: Whether `since` is what is stored: if not, it is asked for again
            before anything is written, so that nothing is moved backwards.
        on_naive_time: Told of each event without a time zone, by its id.
    """

    def __init__(
        self,
        connector_id: str,
        since: datetime,
        *,
        producer: Any,
        read_checkpoint: Callable[[], Awaitable[datetime | None]],
        save_checkpoint: Callable[[datetime], Awaitable[None]],
        is_checkpoint_known: bool,
        on_naive_time: Callable[[Any], None],
    ) -> None:
        self._connector_id = connector_id
        self._producer = producer
        self._read_checkpoint = read_checkpoint
        self._save_checkpoint = save_checkpoint
        self._is_checkpoint_known = is_checkpoint_known
        self._on_naive_time = on_naive_time
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
        # A `send` that is not a coroutine, or does not hand back a future, is taken at its word:
        # the event is out.
        ack = self._producer.send(topic=topic, value=value, **headers)
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
            if event.occurred_at.tzinfo is None:
                self._on_naive_time(event.event_id)
            fields = {name: getattr(event, name) for name in _TEXTS}
            altered: list[str] = []
            if not (all(type(one) is str for one in fields.values()) and _is_json(event)):
                fields, altered = publishable(event, _TEXTS)
        except Malformed:
            raise
        except Exception as error:
            # It comes from a connector, and may be anything: it costs its record, not the pass.
            raise Malformed(f"it can't be written as JSON: {described(error)}") from error
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
        if not self._is_checkpoint_known:
            await self._learn_checkpoint()
        if to > self._written:
            await self._save_checkpoint(to)
            self._written = to

    async def _learn_checkpoint(self) -> None:
        try:
            stored = await self._read_checkpoint()
        except Exception as error:
            raise Unavailable(
                f"connector {self._connector_id}: the checkpoint can still not be read: "
                f"{described(error)}; it has not moved"
            ) from error
        self._is_checkpoint_known = True
        if stored is not None:
            self._written = max(self._written, stored)

    def _send_error(self, error: Exception, event_id: str, topic: str) -> VerityError:
        """Who must act when the producer refused an event: its serializer, or nobody."""
        if isinstance(error, TypeError | ValueError | RecursionError):
            self._must_stay = True
            return Misconfigured(
                "the Kafka producer needs a value_serializer that turns a dict into bytes, as "
                f"verity_common.kafka.create_producer gives it: event {event_id!r}: "
                f"{described(error)}; {self._what_is_true()}"
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

        what = f"event {event_id!r} ({where}): {described(error)}; {self._what_is_true()}"
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


def described(error: BaseException) -> str:
    """An error in one line: its kind and what it says."""
    return f"{type(error).__name__}: {error}".rstrip(": ")
