"""What stands in Kafka: raw events, dead letters, gaps, checkpoints, permissions.

Pure functions from the SDK's objects to `Record`s. Every value is a JSON object; times are
RFC 3339, UTC, with microseconds and `Z`. The headers are UTF-8 text:

| header | on | is |
| --- | --- | --- |
| `event_id` | raw events, dead letters that have one | the source's id, as text |
| `dead_id` | dead letters | the same whenever the same thing is rejected again |
| `connector_id` | all | which connector published it |
| `schema` | all | `raw_event/1`, `dead_letter/1`, `gap/1`, `checkpoint/1`, `permission/1` |
| `fetched_at` | all | when the page was fetched |
| `snapshot_id`, `record` | permissions | the run; `start`, `grant` or `end` |
"""

from __future__ import annotations

import base64
import hashlib
import struct
import sys
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

import orjson
import structlog

from verity_sdk.completeness import order_of
from verity_sdk.connector_base import PermissionSnapshot, RawEvent
from verity_sdk.errors import Malformed
from verity_sdk.pages import Gap, RejectedRecord
from verity_sdk.position import is_valid_name
from verity_sdk.times import as_utc, format_utc, parse_utc
from verity_sdk.values import (
    altered_header,
    dumps,
    has_null,
    hides_a_number,
    publishable,
    readable,
    reference,
    shown,
    utf8,
)

logger = structlog.get_logger(__name__)

CHECKPOINTS_TOPIC = "verity.connector.checkpoints"
GAPS_TOPIC = "verity.connector.gaps"
IDS_TOPIC = "verity.connector.ids"

Headers = list[tuple[str, bytes]]
Place = tuple[str, int]
"""A topic's partition."""
Offsets = dict[str, dict[int, tuple[int, int]]]
"""Topic → partition → the first and last offset that a page took there."""


def raw_topic(platform: str) -> str:
    """The topic of a platform's audit events."""
    return f"verity.events.raw.{platform}"


def dead_topic(platform: str) -> str:
    """The topic of a platform's dead letters."""
    return f"verity.events.dead.{platform}"


def permissions_topic(platform: str) -> str:
    """The topic of a platform's permission snapshots."""
    return f"verity.permissions.raw.{platform}"


class Record(NamedTuple):
    """One record to publish; the partition follows from the key, unless it is given.

    Without a value it removes its key from a compacted topic.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    partition: int | None = None


@dataclass(frozen=True, slots=True)
class NotUnderstood:
    """A record in one of our topics that is not of its kind: a stranger's, or a later version's."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    reason: str

    @classmethod
    def of(cls, record: Any, error: Malformed) -> NotUnderstood:
        """A record as Kafka's client gives it, and what its decoder said."""
        return cls(record.topic, record.partition, record.offset, record.key, str(error))

    def __str__(self) -> str:
        # As Python writes bytes: whatever they are, they command no terminal.
        key = "no key" if self.key is None else f"key {self.key[:80]!r}"
        return f"{self.topic}[{self.partition}]@{self.offset}, {key}: {self.reason}"


def header(record: Any, name: str) -> str:
    """The text of a record's header; empty where it has none, or one without a value."""
    value = dict(record.headers).get(name)
    return value.decode("utf-8", "replace") if value else ""


class decoding:  # noqa: N801 - reads as a statement; a generator would cost half a microsecond
    """Whatever a record's bytes make a decoder raise within is Malformed."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Malformed | ValueError):
            raise Malformed(f"not {self._what}: {error}") from error
        if isinstance(error, LookupError | TypeError | AttributeError | OverflowError):
            raise Malformed(f"not {self._what}: {type(error).__name__}: {error}") from error


def json_object(value: bytes | None) -> dict[str, Any]:
    """The JSON object that a value is.

    Raises:
        ValueError: It is another thing.
    """
    body = orjson.loads(value or b"")
    if not isinstance(body, dict):
        raise ValueError("not a JSON object")
    return body


def _require(body: Mapping[str, Any], kind: type, *names: str) -> None:
    for name in names:
        if type(body[name]) is not kind:
            raise TypeError(f"{name} is a {type(body[name]).__name__}")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a page's records come from: the headers they share, encoded once."""

    connector_id: str
    platform: str
    fetched_at: str

    def headers(self, schema: str) -> Headers:
        """The headers that every record of the page carries."""
        return [
            ("connector_id", self.connector_id.encode()),
            ("schema", schema.encode()),
            ("fetched_at", self.fetched_at.encode()),
        ]


EncodedEvent: TypeAlias = tuple[bytes, datetime, str, bytes, bytes, bytes | None]
"""An event as it goes to Kafka, but for the headers that its whole page shares: the source's id
in UTF-8, when it occurred (aware UTC), topic, key, value, and the header `altered` where
something of it could not be written as it is.

There is one for every event; a tuple with names takes seven times as long to make."""

_EVENT_TEXTS = ("event_id", "principal_ref", "asset_ref", "operation")
_PAYLOAD_FROM = 135
"""No payload begins before, in an event's JSON: so long are the names and the time before it."""
_GRANT_TEXTS = ("principal_ref", "asset_ref", "privilege", "grant_mechanism")


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
                fields, pointers = publishable(event, _EVENT_TEXTS)
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


class DeadLetter(NamedTuple):
    """What could not be published, whole, in one record or in parts.

    `ids` are the same whenever the same thing turns up again, so that it is one dead letter: its
    own, and the event's as its header has it. `occurred_at` is None where nobody knows it.
    """

    ids: tuple[str, ...]
    records: list[Record]
    occurred_at: datetime | None = None

    @property
    def size_bytes(self) -> int:
        """Of its records' values."""
        return sum(len(record.value or b"") for record in self.records)


def dead_event(origin: Origin, event: Any, reason: str, part_bytes: int) -> DeadLetter:
    """The dead letter of an event that can't be published."""
    fields = _fields(event)
    try:
        event_id = reference(fields.get("event_id"), "event_id")[0] or None
    except Malformed:
        event_id = None
    try:
        occurred_at = as_utc(fields["occurred_at"])
    except (KeyError, Malformed):
        occurred_at = None
    data = readable(fields).encode("ascii")
    letter = _dead_letter(origin, data, reason, event_id, part_bytes, event_id=event_id)
    return letter._replace(occurred_at=occurred_at)


ORIGINAL_REASON = "published, but altered at "
"""So begins the reason of a dead letter that keeps what a published event was."""


def original(origin: Origin, event: Any, altered: bytes, part_bytes: int) -> DeadLetter:
    """The dead letter that keeps what an event was before it was altered to be published."""
    reason = f"{ORIGINAL_REASON}{altered.decode()}: this is the original"
    letter = dead_event(origin, event, reason, part_bytes)
    return letter._replace(ids=letter.ids[-1:])  # The event's own id is claimed by the event.


def _fields(thing: Any) -> dict[str, Any]:
    fields = getattr(thing, "__dict__", None)
    return dict(fields) if isinstance(fields, dict) else {"value": thing}


def dead_record(origin: Origin, rejected: Any, part_bytes: int) -> DeadLetter:
    """The dead letter of a source record that was not understood."""
    if not isinstance(rejected, RejectedRecord):
        reason = f"the connector rejected a {type(rejected).__name__}, not a RejectedRecord"
        return _dead_letter(origin, dumps(rejected), reason, None, part_bytes)
    data: Any = rejected.data
    if isinstance(data, bytearray | memoryview):
        data = bytes(data)
    elif isinstance(data, str):
        data = utf8(data)
    elif not isinstance(data, bytes):
        data = dumps(data)
    return _dead_letter(origin, data, rejected.reason, rejected.reference, part_bytes)


def _dead_letter(
    origin: Origin,
    data: bytes,
    reason: Any,
    reference: Any,
    part_bytes: int,
    *,
    event_id: str | None = None,
) -> DeadLetter:
    """Cut the data into parts that fit a record; `sha256` and `parts` prove a whole one."""
    digest = hashlib.sha256(data).hexdigest()
    # Cleaned, so that it reads back from the header as it is, and is never too long for one.
    dead_id = f"{digest}:{clean('' if reference is None else reference)}"
    ids = {"dead_id": dead_id}
    if event_id is not None:
        ids = {"event_id": clean(event_id), **ids}
    headers = [(name, one.encode()) for name, one in ids.items()]
    headers += origin.headers("dead_letter/1")
    parts = max(1, -(-len(data) // part_bytes))
    records = []
    for part in range(parts):
        piece = data[part * part_bytes : (part + 1) * part_bytes]
        body: dict[str, Any] = {
            "platform": origin.platform,
            "connector_id": origin.connector_id,
            "reason": clean(reason),
            "reference": None if reference is None else clean(reference),
            "fetched_at": origin.fetched_at,
            "size_bytes": len(data),
            "sha256": digest,
            "part": part + 1,
            "parts": parts,
        }
        value = b""
        try:
            value = orjson.dumps({**body, "encoding": "utf-8", "data": piece.decode()})
        except UnicodeDecodeError:
            pass  # A part may also end within a character.
        # Escapes can make text six times as long; base64 is never more than a third longer.
        if not value or len(value) > part_bytes * 3 // 2 + 4096:
            encoded = base64.b64encode(piece).decode()
            value = orjson.dumps({**body, "encoding": "base64", "data": encoded})
        records.append(Record(dead_topic(origin.platform), digest.encode(), value, headers))
    return DeadLetter(tuple(ids.values()), records)


def decode_dead_part(record: Any) -> tuple[str, dict[str, Any], bytes]:
    """A dead letter's id, the fields of one of its records, and that part's bytes.

    Raises:
        Malformed: It is no part of a dead letter.
    """
    with decoding("a dead letter"):
        if header(record, "schema") != "dead_letter/1":
            raise ValueError("no header `schema` says so")
        body, data = decode_dead_body(record.value)
        return header(record, "dead_id"), body, data


def decode_dead_body(value: bytes | None) -> tuple[dict[str, Any], bytes]:
    """The fields of a record of a dead letter, and the bytes that it holds; `decoding` guards."""
    body = json_object(value)
    _require(body, str, "platform", "connector_id", "reason", "fetched_at", "sha256", "data")
    _require(body, int, "size_bytes", "part", "parts")
    if body["reference"] is not None:
        _require(body, str, "reference")
    parse_utc(body["fetched_at"])
    if body["encoding"] == "utf-8":
        return body, body["data"].encode()
    return body, base64.b64decode(body["data"], validate=True)


def clean(text: Any) -> str:
    """Text that fits a JSON string and a line: nothing a source says can break a record."""
    return utf8(text if isinstance(text, str) else shown(text)).decode()[:2000]


def gap_record(origin: Origin, gap: Gap) -> Record:
    """The record of what is known to be missing."""
    value = orjson.dumps(
        {
            "platform": origin.platform,
            "connector_id": origin.connector_id,
            "from_at": None if gap.from_at is None else format_utc(as_utc(gap.from_at)),
            "to_at": None if gap.to_at is None else format_utc(as_utc(gap.to_at)),
            "scope": clean(gap.scope),
            "reason": clean(gap.reason),
            "recorded_at": origin.fetched_at,
        }
    )
    return Record(GAPS_TOPIC, origin.connector_id.encode(), value, origin.headers("gap/1"))


def decode_gap(record: Any) -> dict[str, Any]:
    """The fields of a gap's record.

    Raises:
        Malformed: It is none.
    """
    with decoding("a gap"):
        if header(record, "schema") != "gap/1":
            raise ValueError("no header `schema` says so")
        body = json_object(record.value)
        _require(body, str, "platform", "connector_id", "scope", "reason", "recorded_at")
        for name in ("recorded_at", "from_at", "to_at"):
            if body[name] is not None:
                parse_utc(body[name])
        return body


def claims_to_be_a_gap(record: Any) -> bool:
    """Whether a record that is not understood was written as a gap, perhaps by a later version."""
    return header(record, "schema").startswith("gap/")


def sound_gap(gap: Any) -> Gap:
    """Whatever a connector reports as a gap, as one that can be recorded.

    A time that is none is unknown; so a gap is never lost for how it is said.
    """
    if not isinstance(gap, Gap):
        return Gap(None, None, "*", f"the connector reported {clean(gap)} in place of a gap")
    reason = clean(gap.reason)
    times: list[datetime | None] = []
    for at in (gap.from_at, gap.to_at):
        try:
            times.append(None if at is None else as_utc(at))
        except Malformed as error:
            times.append(None)
            reason = clean(f"{reason} ({error})")
    from_at, to_at = times
    return Gap(from_at, to_at, clean(gap.scope), reason)


@dataclass(frozen=True, slots=True)
class Seen:
    """Which slots of the log of ids hold what is to be remembered.

    Attributes:
        slots_from: The number of the first; those below hold nothing any more.
        count: How many ids they hold, at least. A log with fewer has lost some.
    """

    slots_from: int
    count: int


@dataclass(frozen=True, slots=True)
class SeenInTopics:
    """What checkpoints said before there was a log of ids: where they begin in the raw topics.

    Attributes:
        start: Topic → partition → the first offset to read back.
        newest_at: No remembered event occurred after this.
    """

    start: Mapping[str, Mapping[int, int]]
    newest_at: datetime


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A connector's position after a page; the same in Postgres, the topic and the table.

    Attributes:
        version: One more with every page and every edit; 0 before the first.
        epoch: The start of the relay that wrote it.
        last_ts: The watermark.
        cursor: The connector's own position, if it has one.
        complete_through: Up to when every event is out, as far as the source can tell.
        seen: Where the ids to remember are; None after an edit, which forgets them.
        collected_from: The connector's beginning: from then on its events are collected. None
            where it was not known yet, as in what older versions wrote.
        is_edited: Whether an operator moved it since it was published. Only a row tells; its
            version does not, where a database was restored and then edited.
    """

    connector_id: str
    version: int
    epoch: int
    last_ts: datetime
    cursor: Mapping[str, Any] | None = None
    complete_through: datetime | None = None
    seen: Seen | SeenInTopics | None = None
    collected_from: datetime | None = None
    is_edited: bool = field(default=False, compare=False)

    def differences(self, other: Checkpoint) -> tuple[str, ...]:
        """The fields in which another view of the connector's position differs; none: the same.

        Two may differ and are not asked: the epoch, which a claim writes to the row alone, and
        the beginning, of which each start takes the earlier one of both views.
        """
        names = ("version", "last_ts", "cursor", "complete_through", "seen")
        return tuple(name for name in names if getattr(self, name) != getattr(other, name))


@dataclass(frozen=True, slots=True)
class PageSummary:
    """What the page of a checkpoint record held; `offsets` proves continuity from the topic."""

    event_count: int = 0
    repeat_count: int = 0
    dead_count: int = 0
    gap_count: int = 0
    offsets: Offsets | None = None


def checkpoint_record(origin: Origin, checkpoint: Checkpoint, summary: PageSummary) -> Record:
    """The record that makes a page's position visible together with the page."""
    value = orjson.dumps(
        {
            "connector_id": checkpoint.connector_id,
            "platform": origin.platform,
            "version": checkpoint.version,
            "epoch": checkpoint.epoch,
            "last_ts": format_utc(checkpoint.last_ts),
            "cursor": checkpoint.cursor,
            "complete_through": _optional_time(checkpoint.complete_through),
            "collected_from": _optional_time(checkpoint.collected_from),
            "seen": encode_seen(checkpoint.seen),
            "event_count": summary.event_count,
            "repeat_count": summary.repeat_count,
            "dead_count": summary.dead_count,
            "gap_count": summary.gap_count,
            "offsets": summary.offsets or {},
            "published_at": origin.fetched_at,
        },
        option=orjson.OPT_NON_STR_KEYS,
    )
    key = checkpoint.connector_id.encode()
    return Record(CHECKPOINTS_TOPIC, key, value, origin.headers("checkpoint/1"))


def decode_checkpoint(value: bytes | None, key: bytes | None = None) -> Checkpoint:
    """Read a checkpoint record.

    Args:
        key: The record's, where it is known: nobody speaks for another connector.

    Raises:
        Malformed: The value is not one.
    """
    body = decode_checkpoint_body(value, key)
    with decoding("a checkpoint record"):
        return Checkpoint(
            connector_id=body["connector_id"],
            version=body["version"],
            epoch=body["epoch"],
            last_ts=parse_utc(body["last_ts"]),
            cursor=body["cursor"],
            complete_through=body["complete_through"] and parse_utc(body["complete_through"]),
            seen=decode_seen(body["seen"]),
            # Older versions wrote none.
            collected_from=(began := body.get("collected_from")) and parse_utc(began),
        )


def decode_checkpoint_body(value: bytes | None, key: bytes | None = None) -> dict[str, Any]:
    """The fields of a checkpoint record, the page's counts and offsets among them.

    Raises:
        Malformed: As `decode_checkpoint`.
    """
    with decoding("a checkpoint record"):
        body = json_object(value)
        _require(body, str, "connector_id", "platform", "last_ts")
        if key is not None and body["connector_id"].encode() != key:
            raise ValueError("the key is another connector's")
        if not all(0 <= number < 2**63 for number in order_of(body)):
            raise ValueError("version or epoch is out of range")
        if body["cursor"] is not None:
            _require(body, dict, "cursor")
        decode_seen(body["seen"])
        for at in (body["last_ts"], body["complete_through"], body.get("collected_from")):
            if at is not None:
                parse_utc(at)
        return body


def newer_checkpoint(held: bytes | None, incoming: bytes | None) -> bytes | None:
    """Which of two checkpoint records of a connector counts, the second being the later one.

    The newer (`verity_sdk.completeness.order_of`), of equal ones the later. One that is not
    understood can't be compared: the later one counts, and whoever decodes it says so.
    """
    if held is None or incoming is None:
        return incoming
    try:
        is_older = order_of(orjson.loads(incoming)) < order_of(orjson.loads(held))
    except (ValueError, TypeError, AttributeError):
        return incoming
    return held if is_older else incoming


def encode_seen(seen: Seen | SeenInTopics | None) -> dict[str, Any] | None:
    """`Seen` as a JSON value."""
    if seen is None:
        return None
    if isinstance(seen, Seen):
        return {"from": seen.slots_from, "count": seen.count}
    start = {
        topic: {str(partition): offset for partition, offset in offsets.items()}
        for topic, offsets in seen.start.items()
    }
    return {"start": start, "newest_at": format_utc(seen.newest_at)}


def decode_seen(body: Mapping[str, Any] | None) -> Seen | SeenInTopics | None:
    """`Seen` from JSON; raises KeyError, ValueError, TypeError or Malformed if it is none."""
    if body is None:
        return None
    if "from" in body:
        return Seen(int(body["from"]), int(body["count"]))
    start = {
        topic: {int(partition): int(offset) for partition, offset in offsets.items()}
        for topic, offsets in body["start"].items()
    }
    return SeenInTopics(start, parse_utc(body["newest_at"]))


# The log of ids. No JSON, and no headers: it is read as a whole at every start.

ID_KEY_KEY = b"\0key"
"""The key of the record with the hashes' key. No connector's id is empty."""

_SLOT = struct.Struct("<B4sq")
_SLOT_FORMAT = 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def slot_key(connector_id: str, number: int) -> bytes:
    """The key of a slot of a connector's ids."""
    return b"%b\0%d" % (connector_id.encode(), number)


def decode_slot_key(key: bytes) -> tuple[str, int]:
    """Whose slot it is, and its number.

    Raises:
        Malformed: It is no slot's key.
    """
    connector_id, _, number = key.partition(b"\0")
    # What comes after the highest number must fit a checkpoint, too.
    with decoding("the key of a slot"):
        # Python refuses to read thousands of digits; and the numbers after it have to fit JSON.
        if not (connector_id and number.isdigit() and len(number) < 20 and int(number) <= 2**62):
            raise ValueError(repr(key[:80]))
        return connector_id.decode(), int(number)


def encode_slot(fingerprint: bytes, newest_at: datetime, hashes: array[int]) -> bytes:
    """A slot's value: format, whose hashes, the newest event's time, and 8 bytes an id."""
    head = _SLOT.pack(_SLOT_FORMAT, fingerprint, (newest_at - _EPOCH) // _MICROSECOND)
    return head + _little_endian(hashes).tobytes()


def decode_slot(value: bytes) -> tuple[bytes, datetime, array[int]]:
    """The fingerprint of the hashes' key, the newest event's time, and the hashes.

    Raises:
        Malformed: It is no slot.
    """
    try:
        slot_format, fingerprint, newest = _SLOT.unpack_from(value)
        if slot_format != _SLOT_FORMAT:
            raise Malformed(f"a slot of format {slot_format}, which this version does not know")
        hashes = array("Q")
        hashes.frombytes(value[_SLOT.size :])
        return fingerprint, _EPOCH + newest * _MICROSECOND, _little_endian(hashes)
    except (struct.error, ValueError, OverflowError) as error:
        raise Malformed(f"not a slot of ids: {error}") from error


def _little_endian(hashes: array[int]) -> array[int]:
    if sys.byteorder == "big":
        hashes = hashes[:]
        hashes.byteswap()
    return hashes


def _optional_time(at: datetime | None) -> str | None:
    return None if at is None else format_utc(at)


def snapshot_record(
    origin: Origin,
    snapshot_id: str,
    kind: str,
    body: dict[str, Any],
    altered: bytes | None = None,
) -> Record:
    """A record of a permission snapshot.

    All records of a connector's snapshots share one key and so one partition: start, grants
    and end stand in that order for every consumer.

    Args:
        altered: The header of that name, if it has one.
    """
    headers = [
        *origin.headers("permission/1"),
        ("snapshot_id", snapshot_id.encode()),
        ("record", kind.encode()),
    ]
    if altered is not None:
        headers.append(("altered", altered))
    value = orjson.dumps({"record": kind, "snapshot_id": snapshot_id, **body})
    return Record(permissions_topic(origin.platform), origin.connector_id.encode(), value, headers)


def grant_body(
    grant: PermissionSnapshot, snapshot_at: datetime
) -> tuple[dict[str, Any], bytes | None]:
    """The fields of a grant as JSON values, and the header `altered` where some had to be.

    Raises:
        Malformed: It does not say who holds what on what, or its time is none.
    """
    at = snapshot_at if grant.snapshot_at is None else as_utc(grant.snapshot_at)
    fields, pointers = publishable(grant, _GRANT_TEXTS, ("granted_via",))
    body = {"platform": grant.platform, "snapshot_at": format_utc(at), **fields}
    return body, altered_header(pointers) if pointers else None
