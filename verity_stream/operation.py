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

    async def controls(self) -> Mapping[str, Control]:
        """The controls of every connector that has any."""
        async with database_errors("reading the controls"):
            rows = await self._pool.fetch(
                """
                SELECT connector_id, coalesce(c.paused, false) AS paused,
                       c.snapshot_requested_at, s.started_at
                FROM connector_controls c FULL JOIN connector_snapshots s USING (connector_id)
                """
            )
        return {
            row["connector_id"]: Control(
                row["paused"], row["snapshot_requested_at"], row["started_at"]
            )
            for row in rows
        }

    async def snapshot_taken(
        self, connector_id: str, result: SnapshotResult, ended_at: datetime
    ) -> None:
        """Remember that a snapshot was published."""
        async with database_errors("recording a snapshot"):
            await self._pool.execute(
                """
                INSERT INTO connector_snapshots
                    (connector_id, snapshot_id, started_at, ended_at, is_complete, grant_count)
                VALUES ($1, $2, $3, $4, $5, $6)
                ON CONFLICT (connector_id) DO UPDATE SET
                    snapshot_id = EXCLUDED.snapshot_id, started_at = EXCLUDED.started_at,
                    ended_at = EXCLUDED.ended_at, is_complete = EXCLUDED.is_complete,
                    grant_count = EXCLUDED.grant_count
                """,
                connector_id,
                result.snapshot_id,
                result.started_at,
                ended_at,
                result.is_complete,
                result.grant_count,
            )

    async def report(self, statuses: Sequence[Status]) -> None:
        """Write statuses; a reported one is marked so."""
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
                status.last_error,
                status.event_count,
                status.repeat_count,
                status.dead_count,
                status.gap_count,
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
                    event_count, repeat_count, dead_count, gap_count)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
                ON CONFLICT (connector_id) DO UPDATE SET
                    platform = EXCLUDED.platform, worker = EXCLUDED.worker,
                    state = EXCLUDED.state, state_since = EXCLUDED.state_since,
                    last_success_at = coalesce(EXCLUDED.last_success_at, s.last_success_at),
                    last_event_at = coalesce(EXCLUDED.last_event_at, s.last_event_at),
                    next_try_at = EXCLUDED.next_try_at, last_error = EXCLUDED.last_error,
                    event_count = EXCLUDED.event_count, repeat_count = EXCLUDED.repeat_count,
                    dead_count = EXCLUDED.dead_count, gap_count = EXCLUDED.gap_count,
                    reported_at = now()
                WHERE EXCLUDED.state <> 'stopped' OR s.worker = EXCLUDED.worker
                """,
                rows,
            )
        for status in statuses:
            status.is_reported = True
