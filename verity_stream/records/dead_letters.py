"""Dead letters: what could not be published as an event, whole, and as it is read back."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from verity_sdk.errors import Malformed
from verity_sdk.pages import RejectedRecord
from verity_sdk.times import as_utc
from verity_sdk.values import dumps, readable, reference, utf8
from verity_stream.records.record import (
    Origin,
    Record,
    clean,
    dead_topic,
    decoding,
    header,
    json_object,
    read_time,
    require,
)


class Undeliverable(NamedTuple):
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


def dead_event(origin: Origin, event: Any, reason: str, part_bytes: int) -> Undeliverable:
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


def original(origin: Origin, event: Any, altered: bytes, part_bytes: int) -> Undeliverable:
    """The dead letter that keeps what an event was before it was altered to be published."""
    reason = f"{ORIGINAL_REASON}{altered.decode()}: this is the original"
    letter = dead_event(origin, event, reason, part_bytes)
    return letter._replace(ids=letter.ids[-1:])  # The event's own id is claimed by the event.


def _fields(thing: Any) -> dict[str, Any]:
    fields = getattr(thing, "__dict__", None)
    return dict(fields) if isinstance(fields, dict) else {"value": thing}


def dead_record(origin: Origin, rejected: Any, part_bytes: int) -> Undeliverable:
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
) -> Undeliverable:
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
    return Undeliverable(tuple(ids.values()), records)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What a connector could not publish, or one part of it.

    Attributes:
        reason: Why.
        reference: The source's own name for it, if it has one.
        size_bytes: Of all parts.
        sha256: Of all parts: the same for each of them.
        part: From 1.
        data: The bytes of this part.
    """

    platform: str
    connector_id: str
    reason: str
    reference: str | None
    fetched_at: datetime
    size_bytes: int
    sha256: str
    part: int
    parts: int
    data: bytes


def decode_dead_letter(value: bytes | None) -> DeadLetter:
    """Read a record of a topic of connectors' dead letters.

    Raises:
        Malformed: It is none.
    """
    with decoding("a dead letter"):
        body = json_object(value)
        require(body, str, "platform", "connector_id", "reason", "sha256", "data")
        require(body, int, "size_bytes", "part", "parts")
        if body["reference"] is not None:
            require(body, str, "reference")
        data, is_text = body["data"], body["encoding"] == "utf-8"
        return DeadLetter(
            body["platform"],
            body["connector_id"],
            body["reason"],
            body["reference"],
            read_time(body["fetched_at"]),
            body["size_bytes"],
            body["sha256"],
            body["part"],
            body["parts"],
            data.encode() if is_text else base64.b64decode(data, validate=True),
        )


def decode_dead_part(record: Any) -> tuple[str, DeadLetter]:
    """A dead letter's id, and what one of its records holds.

    Raises:
        Malformed: It is no part of a dead letter.
    """
    if header(record, "schema") != "dead_letter/1":
        raise Malformed("not a dead letter: no header `schema` says so")
    return header(record, "dead_id"), decode_dead_letter(record.value)
