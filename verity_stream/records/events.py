"""Raw events: what connectors yield, checked and encoded, and as consumers read it."""

from __future__ import annotations

from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, TypeAlias

import orjson
import structlog

from verity_sdk.connector_base import RawEvent
from verity_sdk.errors import Malformed
from verity_sdk.position import is_valid_name
from verity_sdk.times import as_utc, format_utc
from verity_sdk.values import altered_header, has_null, hides_a_number, publishable
from verity_stream.records.record import decoding, raw_topic, read_time

logger = structlog.get_logger(__name__)

EncodedEvent: TypeAlias = tuple[bytes, datetime, str, bytes, bytes, bytes | None]
"""An event as it goes to Kafka, but for the headers that its whole page shares: the source's id
in UTF-8, when it occurred (aware UTC), topic, key, value, and the header `altered` where
something of it could not be written as it is.

There is one for every event; a tuple with names takes seven times as long to make."""

_TEXTS = ("event_id", "principal_ref", "asset_ref", "operation")
_PAYLOAD_FROM = 135
"""No payload begins before, in an event's JSON: so long are the names and the time before it."""


class EventEncoder:
    """Checks and encodes whatever a connector yields as events.

    Args:
        connector_id: Whose events they are.
        partition_by: The field whose value is the record's key: `principal_ref`, `asset_ref` or
            `event_id`.
        record_bytes_max: The longest record the broker takes.
        platform: The one that the connector declares: no other's events are published. None where
            it declares none: each event's own counts.
    """

    def __init__(
        self,
        connector_id: str,
        partition_by: str,
        record_bytes_max: int,
        platform: str | None = None,
    ) -> None:
        self._connector_id = connector_id
        self._partition_by = partition_by
        self._key_of = attrgetter(partition_by)
        self._record_bytes_max = record_bytes_max
        self._topics = _Topics(platform)
        self._has_warned = False

    def encode(self, event: Any) -> EncodedEvent:
        """Encode one event.

        Raises:
            Malformed: It is no event, does not say who did what, on what, when and whose it is,
                or is too long; it belongs to the dead letters. What else is wrong with it is
                altered.
        """
        if not isinstance(event, RawEvent):
            raise Malformed(f"the connector yielded a {type(event).__name__}, not a RawEvent")
        try:
            platform, identity, at = event.platform, event.event_id, event.occurred_at
            principal_ref, asset_ref = event.principal_ref, event.asset_ref
            operation, payload = event.operation, event.raw_payload
            topic = self._topics[platform]
            if not (isinstance(at, datetime) and at.tzinfo is UTC):
                at = self._utc(at)
            # A list of fields rather than orjson's own dataclass support, which leaves out
            # microseconds of 0 and cannot write naive times as UTC.
            body = {
                "platform": platform,
                "event_id": identity,
                # orjson writes it as format_utc does, in a tenth of the time.
                "occurred_at": at if at.microsecond else format_utc(at),
                "principal_ref": principal_ref,
                "asset_ref": asset_ref,
                "operation": operation,
                "raw_payload": payload,
            }
            altered = None
            try:
                if not (
                    type(identity)
                    is type(principal_ref)
                    is type(asset_ref)
                    is type(operation)
                    is str
                ):
                    raise TypeError("not all of it is text")
                value = orjson.dumps(body, option=orjson.OPT_UTC_Z)
                if has_null(value, _PAYLOAD_FROM) and hides_a_number(payload):
                    raise TypeError("NaN would be null")
                key = self._key_of(event).encode()
            except TypeError:
                fields, pointers = publishable(event, _TEXTS)
                identity, key = fields["event_id"], fields[self._partition_by].encode()
                value = orjson.dumps({**body, "occurred_at": format_utc(at), **fields})
                altered = altered_header(pointers) if pointers else None
        except Malformed:
            raise
        except Exception as error:
            # It comes from a connector, and may be anything: it costs its record, not the page.
            raise Malformed(
                f"the event can't be written as JSON: {type(error).__name__}: {error}"
            ) from error
        if not identity:
            raise Malformed("the event has no event_id")
        id_header = identity.encode()
        size = len(value) + len(key) + len(id_header)
        if altered is not None:
            size += len(altered)
        if size > self._record_bytes_max:
            raise Malformed(
                f"the event is {size} bytes, more than the {self._record_bytes_max} of "
                "VERITY_KAFKA__MAX_RECORD_BYTES"
            )
        return id_header, at, topic, key, value, altered

    def _utc(self, at: Any) -> datetime:
        """A time that is not UTC yet; naive ones are warned of once."""
        utc = as_utc(at)
        if at.tzinfo is None and not self._has_warned:
            self._has_warned = True
            logger.warning("source.naive_time", connector_id=self._connector_id, taken_as="UTC")
        return utc


class _Topics(dict[str, str]):
    """The raw topic of each platform that an event may be of.

    Args:
        declared: The only one, where there is one.
    """

    def __init__(self, declared: str | None) -> None:
        super().__init__()
        self._declared = declared

    def __missing__(self, platform: Any) -> str:
        if not is_valid_name(platform):
            raise Malformed("platform can't be part of a topic's name")
        if self._declared is not None and platform != self._declared:
            raise Malformed(
                f"the event is of platform {platform!r}, and the connector of {self._declared!r}"
            )
        topic = self[platform] = raw_topic(str.__str__(platform))
        return topic


def decode_event(value: bytes) -> RawEvent:
    """Read a record of a raw topic.

    Raises:
        Malformed: It is none.
    """
    with decoding("a raw event"):
        body = orjson.loads(value)
        return RawEvent(
            body["platform"],
            body["event_id"],
            read_time(body["occurred_at"]),
            body["principal_ref"],
            body["asset_ref"],
            body["operation"],
            body["raw_payload"],
        )
