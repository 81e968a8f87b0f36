"""The log of ids: slots of hashes, and the ids that other records stand for.

No JSON, and no headers: it is read as a whole at every start.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import orjson

from verity_sdk.errors import Malformed
from verity_sdk.times import parse_utc
from verity_stream.records.dead_letters import ORIGINAL_REASON
from verity_stream.records.record import decoding

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


ID_HEADERS = frozenset({"event_id", "dead_id"})

PublishedId: TypeAlias = tuple[str, bytes, datetime | None]
"""The topic of an event or dead letter, its id, and when it occurred, if that can be known."""


def published_ids_of(record: Any) -> Iterator[PublishedId]:
    """The ids that a record of a topic of events or dead letters stands for, as its page had them.

    An event has one, a dead letter its own and its event's. The original of an event that was
    published altered stands for itself only: should the event come again and be unpublishable,
    that is another dead letter.
    """
    body: Any = None
    at: datetime | None = None
    try:
        body = orjson.loads(record.value)
        # None in a dead letter: what it is about may not even have a time.
        at = parse_utc(body["occurred_at"])
    except (ValueError, KeyError, TypeError, Malformed):
        pass
    reason = body.get("reason") if isinstance(body, dict) else None
    is_original = at is None and isinstance(reason, str) and reason.startswith(ORIGINAL_REASON)
    for name, value in record.headers:
        if value and name in ID_HEADERS and not (is_original and name == "event_id"):
            yield record.topic, value, at
