"""What operators ask for: pause, restart, snapshot and rewind, each with an audit row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from verity_sdk.errors import Misconfigured
from verity_sdk.times import format_utc
from verity_stream.postgres.checkpoints import PostgresCheckpoints, checkpoint_of
from verity_stream.postgres.errors import database_errors
from verity_stream.postgres.pool import storable
from verity_stream.records import Checkpoint


@dataclass(frozen=True, slots=True)
class Control:
    """What is asked of one connector, and when its permissions were last read."""

    is_paused: bool = False
    snapshot_requested_at: datetime | None = None
    snapshot_started_at: datetime | None = None
    restart_requested_at: datetime | None = None

    def is_snapshot_due(self, every: timedelta | None, now: datetime) -> bool:
        """Whether a snapshot was asked for, or its time has come."""
        last, asked = self.snapshot_started_at, self.snapshot_requested_at
        if asked is not None and (last is None or asked > last):
            return True
        return every is not None and (last is None or last + every <= now)


def position_body(checkpoint: Checkpoint) -> dict[str, Any]:
    """A position as the audit trail has it."""
    return {
        "version": checkpoint.version,
        "last_ts": format_utc(checkpoint.last_ts),
        "cursor": checkpoint.cursor,
    }


class Controls:
    """The controls of connectors and their audit trail; a method raises one of the five errors."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def now(self) -> datetime:
        """The database's clock."""
        async with database_errors("asking for the time"):
            now: datetime = await self._pool.fetchval("SELECT clock_timestamp()")
            return now

    async def controls(self) -> Mapping[str, Control]:
        """The controls of every connector that has any."""
        async with database_errors("reading the controls"):
            rows = await self._pool.fetch(
                """
                SELECT connector_id, coalesce(c.paused, false) AS paused,
                       c.snapshot_requested_at, s.started_at, c.restart_requested_at
                FROM connector_controls c FULL JOIN connector_snapshots s USING (connector_id)
                """
            )
        return {
            row["connector_id"]: Control(
                row["paused"],
                row["snapshot_requested_at"],
                row["started_at"],
                row["restart_requested_at"],
            )
            for row in rows
        }

    async def set_paused(
        self, connector_id: str, *, is_paused: bool, who: str, reason: str | None
    ) -> bool:
        """Pause or resume a connector, with an audit row; False if it was so already.

        Workers act on it at their next look, within 2 seconds: what is resumed starts then,
        however long it was to wait when it was paused. `who` is what the caller says;
        the database role, which it had to prove, is added.
        """
        async with (
            database_errors("changing the controls"),
            self._pool.acquire() as connection,
            connection.transaction(),
        ):
            before = await self._lock_control(connection, connector_id=connector_id)
            if before["paused"] == is_paused:
                return False
            await connection.execute(
                "UPDATE connector_controls SET paused = $2 WHERE connector_id = $1",
                connector_id,
                is_paused,
            )
            if not is_paused:  # It asks for a start: workers may not have seen a short pause.
                await connection.execute(
                    "UPDATE connector_controls SET restart_requested_at = clock_timestamp() "
                    "WHERE connector_id = $1",
                    connector_id,
                )
            await self._audit(
                connection,
                connector_id,
                "pause" if is_paused else "resume",
                who,
                reason,
                {"paused": not is_paused},
                {"paused": is_paused},
            )
            return True

    async def request_restart(self, connector_id: str, *, who: str, reason: str | None) -> datetime:
        """Ask for a new start, with an audit row; its worker acts within 2 seconds."""
        async with (
            database_errors("asking for a restart"),
            self._pool.acquire() as connection,
            connection.transaction(),
        ):
            before = await self._lock_control(connection, connector_id=connector_id)
            asked_at: datetime = await connection.fetchval(
                "UPDATE connector_controls SET restart_requested_at = clock_timestamp() "
                "WHERE connector_id = $1 RETURNING restart_requested_at",
                connector_id,
            )
            last = before["restart_requested_at"]
            await self._audit(
                connection,
                connector_id,
                "restart",
                who,
                reason,
                {"restart_requested_at": None if last is None else format_utc(last)},
                {"restart_requested_at": format_utc(asked_at)},
            )
            return asked_at

    async def request_snapshot(
        self, connector_id: str, *, who: str, reason: str | None
    ) -> datetime:
        """Ask for a permission snapshot as soon as the connector runs; returns when it was asked.

        A snapshot that began before this does not count.
        """
        async with (
            database_errors("asking for a snapshot"),
            self._pool.acquire() as connection,
            connection.transaction(),
        ):
            before = await self._lock_control(connection, connector_id=connector_id)
            asked_at: datetime = await connection.fetchval(
                "UPDATE connector_controls SET snapshot_requested_at = clock_timestamp() "
                "WHERE connector_id = $1 RETURNING snapshot_requested_at",
                connector_id,
            )
            last = before["snapshot_requested_at"]
            await self._audit(
                connection,
                connector_id,
                "snapshot",
                who,
                reason,
                {"snapshot_requested_at": None if last is None else last.isoformat()},
                {"snapshot_requested_at": asked_at.isoformat()},
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
            control = await self._lock_control(connection, connector_id=connector_id)
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
            await self._audit(
                connection,
                connector_id,
                "rewind",
                who,
                reason,
                position_body(stored),
                position_body(checkpoint_of(row)),
            )

    @staticmethod
    async def _lock_control(connection: Any, *, connector_id: str) -> Any:
        """The controls of a connector as they are, held until the transaction ends."""
        await connection.execute(
            "INSERT INTO connector_controls (connector_id) VALUES ($1) ON CONFLICT DO NOTHING",
            connector_id,
        )
        return await connection.fetchrow(
            "SELECT * FROM connector_controls WHERE connector_id = $1 FOR UPDATE", connector_id
        )

    @staticmethod
    async def _audit(
        connection: Any,
        connector_id: str,
        action: str,
        who: str,
        reason: str | None,
        before: Mapping[str, Any],
        after: Mapping[str, Any],
    ) -> None:
        await connection.execute(
            """
            INSERT INTO connector_audit (connector_id, action, who, reason, before, after)
            VALUES ($1, $2, $3::text || ' as ' || session_user, $4, $5, $6)
            """,
            connector_id,
            action,
            storable(who),
            storable(reason),
            before,
            after,
        )


def _require_paused(connector_id: str, is_paused: bool) -> None:
    if not is_paused:
        raise Misconfigured(
            f"{connector_id} is not paused; first: verity pause {connector_id} --reason …"
        )
