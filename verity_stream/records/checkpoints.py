"""Checkpoints: a position after a page, and what the page held."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from verity_sdk.position import Reached
from verity_sdk.times import as_utc, format_utc, parse_utc
from verity_stream.records.record import (
    CHECKPOINTS_TOPIC,
    Kind,
    Offsets,
    Origin,
    Partition,
    Record,
    decoding,
    json_object,
    require,
)


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

    @property
    def reached(self) -> Reached:
        """How far the connector has come: what its next page is judged by."""
        return Reached(self.last_ts, self.cursor, self.complete_through)

    def differences(self, other: Checkpoint) -> tuple[str, ...]:
        """The fields in which another view of the connector's position differs; none: the same.

        Two may differ and are not asked: the epoch, which a claim writes to the row alone, and
        the beginning, of which each start takes the earlier one of both views.
        """
        names = [name for name in ("version", *POSITION) if name != "collected_from"]
        return tuple(name for name in names if getattr(self, name) != getattr(other, name))


def encode_seen(seen: Seen | SeenInTopics) -> dict[str, Any]:
    """`Seen` as a JSON value."""
    if isinstance(seen, Seen):
        return {"from": seen.slots_from, "count": seen.count}
    start = {
        topic: {str(partition): offset for partition, offset in offsets.items()}
        for topic, offsets in seen.start.items()
    }
    return {"start": start, "newest_at": format_utc(seen.newest_at)}


def decode_seen(body: Mapping[str, Any]) -> Seen | SeenInTopics:
    """`Seen` from JSON; raises KeyError, ValueError, TypeError or Malformed if it is none."""
    if "from" in body:
        return Seen(int(body["from"]), int(body["count"]))
    start = {
        topic: {int(partition): int(offset) for partition, offset in offsets.items()}
        for topic, offsets in body["start"].items()
    }
    return SeenInTopics(start, parse_utc(body["newest_at"]))


class Codec(NamedTuple):
    """How a value that is not None stands in a record's JSON and in the row.

    Attributes:
        is_newer: Records of older versions lack it.
    """

    to_json: Callable[[Any], Any]
    of_json: Callable[[Any], Any]
    to_row: Callable[[Any], Any]
    of_row: Callable[[Any], Any]
    is_newer: bool = False


def _as_is(value: Any) -> Any:
    return value


def _object(value: Any) -> Any:
    require({"it": value}, dict, "it")
    return value


# asyncpg reads the infinities as naive times, and writes datetime.max as one.
_TIME = Codec(format_utc, parse_utc, _as_is, as_utc)

POSITION: Mapping[str, Codec] = {
    "last_ts": _TIME,
    "cursor": Codec(_as_is, _object, _as_is, _as_is),
    "complete_through": _TIME,
    "seen": Codec(encode_seen, decode_seen, encode_seen, decode_seen),
    "collected_from": _TIME._replace(is_newer=True),
}
"""The fields of a checkpoint that a row and a record have alike, and the names of their columns."""


def position_json(checkpoint: Checkpoint) -> dict[str, Any]:
    """The position as a record has it."""
    return {
        name: None if (value := getattr(checkpoint, name)) is None else one.to_json(value)
        for name, one in POSITION.items()
    }


def position_row(checkpoint: Checkpoint) -> list[Any]:
    """The position as the row has it, in the order of `POSITION`."""
    return [
        None if (value := getattr(checkpoint, name)) is None else one.to_row(value)
        for name, one in POSITION.items()
    ]


def position_of_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a position out of its row."""
    return {
        name: None if row[name] is None else one.of_row(row[name]) for name, one in POSITION.items()
    }


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
            **position_json(checkpoint),
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
        position = _position_of_json(body)
    return Checkpoint(body["connector_id"], body["version"], body["epoch"], **position)


def _position_of_json(body: Mapping[str, Any]) -> dict[str, Any]:
    """Raises what `decoding` takes for Malformed."""
    values = {
        name: body.get(name) if one.is_newer else body[name] for name, one in POSITION.items()
    }
    return {
        name: None if value is None else POSITION[name].of_json(value)
        for name, value in values.items()
    }


def decode_checkpoint_body(value: bytes | None, key: bytes | None = None) -> dict[str, Any]:
    """The fields of a checkpoint record, the page's counts and offsets among them.

    Raises:
        Malformed: As `decode_checkpoint`.
    """
    with decoding("a checkpoint record"):
        body = json_object(value)
        require(body, str, "connector_id", "platform", "last_ts")
        require(body, int, "version", "epoch")
        if key is not None and body["connector_id"].encode() != key:
            raise ValueError("the key is another connector's")
        if not all(0 <= number < 2**63 for number in (body["version"], body["epoch"])):
            raise ValueError("version or epoch is out of range")
        _position_of_json(body)
        return body


def newer_checkpoint(held: Checkpoint, incoming: Checkpoint) -> Checkpoint:
    """Which of two records of a connector counts, the second being the later one in the topic.

    The newer (`verity_sdk.completeness.order_of`), of equal ones the later.
    """
    is_older = (incoming.version, incoming.epoch) < (held.version, held.epoch)
    return held if is_older else incoming


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """What a checkpoint record says about its page.

    Attributes:
        counts: How many events, dead letters and gaps it had.
        ranges: The first and last offset that it took in each partition.
        is_position: It moved no page: an operator's edit was published.
    """

    version: int
    counts: Mapping[Kind, int]
    ranges: Mapping[Partition, tuple[int, int]]
    is_position: bool = False


def decode_checkpoint_record(value: bytes, key: bytes | None = None) -> CheckpointRecord:
    """Read a checkpoint record for what it says about its page.

    Raises:
        Malformed: The value is not one.
    """
    body = decode_checkpoint_body(value, key)
    with decoding("a checkpoint record"):
        counts: dict[Kind, int] = {
            "event": int(body["event_count"]),
            "dead": int(body["dead_count"]),
            "gap": int(body["gap_count"]),
        }
        ranges = {
            (topic, int(partition)): (int(first), int(last))
            for topic, partitions in body["offsets"].items()
            for partition, (first, last) in partitions.items()
        }
        return CheckpointRecord(
            int(body["version"]),
            counts,
            ranges,
            is_position=(
                # None before there was a log of ids.
                (body["seen"] is None or body["seen"].get("count") == 0)
                and not ranges
                and not any(counts.values())
            ),
        )
