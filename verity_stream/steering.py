"""Moving a connector back, and starting it anew: edits with an audit row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from verity_sdk.errors import Misconfigured
from verity_sdk.times import format_utc
from verity_stream.checkpoints import PostgresCheckpoints, _from_row
from verity_stream.cursors import given_cursor, stored_cursor
from verity_stream.database import database_errors
from verity_stream.operation import OperationStore
from verity_stream.records import CHECKPOINTS_TOPIC, Checkpoint


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


def position_body(checkpoint: Checkpoint) -> dict[str, Any]:
    """A position as the audit trail has it."""
    return {
        "version": checkpoint.version,
        "last_ts": format_utc(checkpoint.last_ts),
        "cursor": checkpoint.cursor,
    }


class SteeringStore:
    """Writes what operators decide; every method raises one of the five errors."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def request_restart(self, connector_id: str, *, who: str, reason: str | None) -> datetime:
        """Ask for a new start, with an audit row; its worker acts within 2 seconds."""
        async with (
            database_errors("asking for a restart"),
            self._pool.acquire() as connection,
            connection.transaction(),
        ):
            before = await OperationStore._lock_control(connection, connector_id=connector_id)
            asked_at: datetime = await connection.fetchval(
                "UPDATE connector_controls SET restart_requested_at = clock_timestamp() "
                "WHERE connector_id = $1 RETURNING restart_requested_at",
                connector_id,
            )
            last = before["restart_requested_at"]
            await OperationStore._audit(
                connection,
                connector_id,
                "restart",
                who,
                reason,
                {"restart_requested_at": None if last is None else format_utc(last)},
                {"restart_requested_at": format_utc(asked_at)},
            )
            return asked_at

    async def stored(self, connector_id: str) -> Checkpoint:
        """The row of a connector that is paused.

        Raises:
            Misconfigured: It is not paused, or has no row yet.
        """
        async with database_errors("reading the controls"):
            is_paused = await self._pool.fetchval(
                "SELECT paused FROM connector_controls WHERE connector_id = $1", connector_id
            )
        _require_paused(connector_id, bool(is_paused))
        stored = await PostgresCheckpoints(self._pool).load(connector_id)
        if stored is None:
            raise Misconfigured(f"{connector_id} has no checkpoint yet: it starts at the beginning")
        return stored

    async def edited_version(self, connector_id: str) -> int:
        """The version that the last edit or rewind of the row took; 0 if there was none."""
        async with database_errors("reading the audit trail"):
            version: int = await self._pool.fetchval(
                "SELECT coalesce(max((after->>'version')::bigint), 0) FROM connector_audit "
                "WHERE connector_id = $1 AND action IN ('edit', 'rewind')",
                connector_id,
            )
        return version

    async def rewind(self, stored: Checkpoint, after: Checkpoint, *, who: str, reason: str) -> None:
        """Write the position and an audit row, if nothing has changed since `stored` was read.

        A page that is still in flight loses against it: its compare-and-set finds the version
        taken, and the relay takes up the edit.

        Raises:
            Misconfigured: The connector was resumed, or its row moved; nothing was changed.
        """
        connector_id = stored.connector_id
        async with (
            database_errors("rewinding"),
            self._pool.acquire() as connection,
            connection.transaction(),
        ):
            # Held until the end: a resume waits for it.
            control = await OperationStore._lock_control(connection, connector_id=connector_id)
            _require_paused(connector_id, control["paused"])
            row = await connection.fetchrow(
                """
                UPDATE connector_checkpoints
                SET last_ts = $4, cursor = $5, complete_through = NULL, seen = NULL,
                    version = $3, updated_at = now()
                WHERE connector_id = $1 AND version = $2
                RETURNING *
                """,
                connector_id,
                stored.version,
                after.version,
                after.last_ts,
                after.cursor,
            )
            if row is None:
                raise Misconfigured(f"{connector_id} moved meanwhile; nothing was changed")
            await OperationStore._audit(
                connection,
                connector_id,
                "rewind",
                who,
                reason,
                position_body(stored),
                position_body(_from_row(row)),
            )


def _require_paused(connector_id: str, is_paused: bool) -> None:
    if not is_paused:
        raise Misconfigured(
            f"{connector_id} is not paused; first: verity pause {connector_id} --reason …"
        )
