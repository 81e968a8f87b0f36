"""What operators ask for and what workers report: the tables beside the checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from verity_stream.database import database_errors
from verity_stream.snapshots import SnapshotResult
from verity_stream.status import Status


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


class OperationStore:
    """Reads controls and writes reports; every method raises one of the five errors."""

    def __init__(self, pool: Any, worker: str) -> None:
        self._pool = pool
        self._worker = worker

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

    async def overview(self) -> Mapping[str, Mapping[str, Any]]:
        """What the database knows of every connector: its status, its controls, its snapshot."""
        async with database_errors("reading the connectors' states"):
            rows = await self._pool.fetch(
                """
                SELECT connector_id, c.paused, c.snapshot_requested_at,
                       t.platform, t.worker, t.state, t.state_since, t.last_success_at,
                       t.last_event_at, t.next_try_at, t.last_error, t.warning, t.event_count,
                       t.repeat_count, t.dead_count, t.gap_count, t.reported_at,
                       t.lateness_p50_seconds, t.lateness_p99_seconds, p.complete_through,
                       s.snapshot_id, s.started_at AS snapshot_started_at,
                       s.ended_at AS snapshot_ended_at, s.is_complete AS snapshot_is_complete,
                       s.grant_count AS snapshot_grant_count
                FROM connector_status t
                FULL JOIN connector_controls c USING (connector_id)
                FULL JOIN connector_snapshots s USING (connector_id)
                LEFT JOIN connector_checkpoints p USING (connector_id)
                """
            )
        return {row["connector_id"]: dict(row) for row in rows}

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
            _storable(who),
            _storable(reason),
            before,
            after,
        )

    async def snapshot_taken(
        self, connector_id: str, result: SnapshotResult, started_at: datetime
    ) -> None:
        """Remember that a snapshot was published.

        Args:
            started_at: By the database's clock, as the time at which one is asked for.
        """
        async with database_errors("recording a snapshot"):
            await self._pool.execute(
                """
                INSERT INTO connector_snapshots
                    (connector_id, snapshot_id, started_at, ended_at, is_complete, grant_count)
                VALUES ($1, $2, $3, clock_timestamp(), $4, $5)
                ON CONFLICT (connector_id) DO UPDATE SET
                    snapshot_id = EXCLUDED.snapshot_id, started_at = EXCLUDED.started_at,
                    ended_at = EXCLUDED.ended_at, is_complete = EXCLUDED.is_complete,
                    grant_count = EXCLUDED.grant_count
                """,
                connector_id,
                result.snapshot_id,
                started_at,
                result.is_complete,
                result.grant_count,
            )

    async def report(self, statuses: Sequence[Status]) -> None:
        """Write statuses."""
        rows = [
            (
                status.connector_id,
                status.platform,
                self._worker,
                str(status.state),
                status.state_since,
                status.last_success_at,
                status.last_event_at,
                status.next_try_at,
                _storable(status.last_error),
                status.event_count,
                status.repeat_count,
                status.dead_count,
                status.gap_count,
                status.lateness.quantile(0.5),
                status.lateness.quantile(0.99),
                _storable(status.warning),
            )
            for status in statuses
        ]
        async with database_errors("reporting states"):
            # A stopped state is only for the worker that ran the connector last: the one that
            # took it over may have reported already.
            await self._pool.executemany(
                """
                INSERT INTO connector_status AS s (connector_id, platform, worker, state,
                    state_since, last_success_at, last_event_at, next_try_at, last_error,
                    event_count, repeat_count, dead_count, gap_count, lateness_p50_seconds,
                    lateness_p99_seconds, warning)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
                ON CONFLICT (connector_id) DO UPDATE SET
                    platform = EXCLUDED.platform, worker = EXCLUDED.worker,
                    state = EXCLUDED.state, state_since = EXCLUDED.state_since,
                    last_success_at = coalesce(EXCLUDED.last_success_at, s.last_success_at),
                    last_event_at = coalesce(EXCLUDED.last_event_at, s.last_event_at),
                    next_try_at = EXCLUDED.next_try_at, last_error = EXCLUDED.last_error,
                    event_count = EXCLUDED.event_count, repeat_count = EXCLUDED.repeat_count,
                    dead_count = EXCLUDED.dead_count, gap_count = EXCLUDED.gap_count,
                    lateness_p50_seconds = EXCLUDED.lateness_p50_seconds,
                    lateness_p99_seconds = EXCLUDED.lateness_p99_seconds,
                    warning = EXCLUDED.warning, reported_at = now()
                WHERE EXCLUDED.state <> 'stopped' OR s.worker = EXCLUDED.worker
                """,
                rows,
            )


def _storable(text: str | None) -> str | None:
    """Text that Postgres takes: one connector's error must not keep all from being reported."""
    if text is None:
        return None
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
