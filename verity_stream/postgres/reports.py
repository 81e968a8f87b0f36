"""What workers report: states, snapshots taken; and the overview of it all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from verity_stream.postgres.pool import database_errors, storable
from verity_stream.records import SnapshotResult
from verity_stream.status import Status


class Reports:
    """What the database shows of connectors; a method raises one of the five errors."""

    def __init__(self, pool: Any, worker: str = "") -> None:
        self._pool = pool
        self._worker = worker

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
                storable(status.last_error),
                status.event_count,
                status.repeat_count,
                status.dead_count,
                status.gap_count,
                status.lateness.quantile(0.5),
                status.lateness.quantile(0.99),
                storable(status.warning),
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
