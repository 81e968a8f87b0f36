"""What all records share: topics, headers, and how bytes are read that anybody may have written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

import orjson

from verity_sdk.errors import Malformed
from verity_sdk.times import parse_utc
from verity_sdk.values import shown, utf8

CHECKPOINTS_TOPIC = "verity.connector.checkpoints"
GAPS_TOPIC = "verity.connector.gaps"
IDS_TOPIC = "verity.connector.ids"

Headers = list[tuple[str, bytes]]
Partition = tuple[str, int]
"""A topic's partition."""
Offsets = dict[str, dict[int, tuple[int, int]]]
"""Topic → partition → the first and last offset that a page took there."""

Kind = Literal["event", "dead", "gap"]
KINDS: Mapping[str, Kind] = {"raw_event/1": "event", "dead_letter/1": "dead", "gap/1": "gap"}
"""By the header `schema`: what a page is made of, and a checkpoint record counts."""


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

    def __exit__(self, kind: Any, error: BaseException | None, _trace: Any) -> None:
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


def require(body: Mapping[str, Any], kind: type, *names: str) -> None:
    """Raise TypeError unless each of these fields is of this type."""
    for name in names:
        if type(body[name]) is not kind:
            raise TypeError(f"{name} is a {type(body[name]).__name__}")


def read_time(text: str) -> datetime:
    """A time as `parse_utc` reads it."""
    # What we publish ourselves, at a sixth of the price of any time at all.
    if len(text) == 27 and text[26] == "Z" and text[10] == "T":
        return datetime.fromisoformat(text)
    return parse_utc(text)


def clean(text: Any) -> str:
    """Text that fits a JSON string and a line: nothing a source says can break a record."""
    return utf8(text if isinstance(text, str) else shown(text)).decode()[:2000]
