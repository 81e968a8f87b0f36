"""Where a connector goes on: which view of its checkpoint wins, also after a loss or a rewind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from verity_sdk.errors import Misconfigured
from verity_sdk.position import FIRST_SINCE
from verity_sdk.times import format_utc
from verity_stream.records import CHECKPOINTS_TOPIC, Checkpoint
from verity_stream.relay.cursors import given_cursor, stored_cursor


def beginning(checkpoint: Checkpoint, retention: timedelta | None, now: datetime) -> datetime:
    """From when on a connector's events are collected, at a start and after an edit.

    What its source no longer served at the first start was never collected. Where nobody declares
    how far back the source serves, it is the first start, until the first page moves it back to
    its oldest event (`Relay`).

    Args:
        checkpoint: Where the connector stands.
        retention: How far back the source serves, as declared.
        now: The present.
    """
    known, asked_from = checkpoint.collected_from, checkpoint.last_ts
    if retention is not None:
        served_from = now - min(retention, now - FIRST_SINCE)
        if known is None and checkpoint.version > 0:
            # Older versions wrote none. Their first start was before now: no claim too many.
            return served_from
        asked_from = max(asked_from, served_from)
    elif asked_from <= FIRST_SINCE:
        # Asked from the beginning of time, it is the oldest event that tells.
        asked_from = now
    return min(asked_from, now if known is None else known)


@dataclass(frozen=True, slots=True)
class Start:
    """Where a relay starts, and what has to be made equal first.

    Attributes:
        checkpoint: The position, with the new epoch. Where its version is higher than the row's,
            the row is brought up; by more than one: the database is not the one that this topic
            was written with.
        publish: Whether the topic lacks this position, so that it must be published as a
            checkpoint of its own.
    """

    checkpoint: Checkpoint
    publish: bool = False


def after_loss(
    stored: Checkpoint, published: Checkpoint | None, published_version: int
) -> Checkpoint:
    """The position that holds where the topic lacks versions that were published to it.

    The topic wins again, at its last version: what it lost may have taken events along, and those
    that it still has are recognised by their ids. Without any record only Postgres knows a
    position. An edit came later than what was lost, so it wins over both.

    Args:
        stored: The row in Postgres; the result keeps its version and epoch.
        published: The last committed record of the topic, or None.
        published_version: What a relay last published.
    """
    if published is None or stored.version > published_version:
        return stored
    return replace(published, version=stored.version, epoch=stored.epoch)


def lifted(stored: Checkpoint, published: Checkpoint | None, published_version: int) -> Checkpoint:
    """The row; an edit of a row that is behind the topic at the topic's version.

    A database that was restored and then edited: the edit came after everything that was
    published, so it must not lose against a version that it could not know.

    Args:
        stored: The row in Postgres.
        published: The last committed record of the topic, or None.
        published_version: What the row says that a relay last published; an edit comes on top.
    """
    if published is None or stored.version <= published_version:
        return stored
    return replace(stored, version=max(stored.version, published.version))


def decide_start(stored: Checkpoint, published: Checkpoint | None) -> Start:
    """Which of the two views of a checkpoint wins.

    Only the topic is atomic with the events, so where it is ahead it wins: a crash between
    the commit and the write to Postgres leaves it ahead by one. Where both have the same
    version and differ, an operator's edit took the version that a page in flight also took:
    the edit wins, because it came later.

    Args:
        stored: The row in Postgres, with the epoch just claimed.
        published: The last committed record of the topic, or None.
    """
    if published is None:
        return Start(stored, publish=stored.version > 0)
    if published.version > stored.version:
        return Start(replace(published, epoch=stored.epoch))
    return Start(stored, publish=bool(stored.differences(published)))


def rewound(
    stored: Checkpoint,
    history: Sequence[Checkpoint],
    *,
    to: datetime | None,
    cursor: Mapping[str, Any] | None,
    edited_version: int = 0,
) -> Checkpoint:
    """The row that moves a connector back: the next version, and no ids are remembered.

    Nothing in Verity can compare two cursors. One lies behind for certain if the connector stood
    there since its position was last edited: then it goes back to that checkpoint, watermark
    included.

    Args:
        stored: The row as it is.
        history: The committed records that the topic still has, oldest first. The last may be a
            page ahead of the row, or many after a backup was restored: the higher version wins,
            so the new one must be higher than both.
        to: The watermark to go on from; None leaves it where it was.
        cursor: The connector's own position to go on from, as it has it or as it is stored; None
            clears it.
        edited_version: The version that the last edit took; 0 if there was none.

    Raises:
        Misconfigured: It is no rewind, or can't be known to be one. Going forward would leave out
            events and record no gap.
    """
    newest = stored
    if history and history[-1].version > stored.version:
        newest = history[-1]
    if to is None and cursor is None:
        raise Misconfigured("a rewind needs --to, --cursor, or both")
    watermark = newest.last_ts if to is None else to
    if watermark > newest.last_ts:
        raise Misconfigured(
            f"{format_utc(watermark)} is after the watermark {format_utc(newest.last_ts)}: what "
            "lies between would never be fetched"
        )
    if cursor is not None:
        cursor = stored_cursor(given_cursor(cursor))  # An operator may type either form.
        known = next(
            (
                one
                for one in history
                if one.cursor == cursor
                and one.version > edited_version
                and one.last_ts <= newest.last_ts
            ),
            None,
        )
        if known is None:
            raise Misconfigured(
                "this cursor may lie ahead, and what it skips would never be fetched: no "
                f"checkpoint since version {edited_version} that {CHECKPOINTS_TOPIC} still has "
                "stood there. Use --to instead: the connector makes its own cursor"
            )
        watermark = min(watermark, known.last_ts)
    return replace(
        stored,
        version=newest.version + 1,
        last_ts=watermark,
        cursor=cursor,
        complete_through=None,
        seen=None,
    )
