"""What workers report: states, snapshots taken; and the overview of it all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from verity_stream.postgres.errors import database_errors
from verity_stream.postgres.pool import storable
from verity_stream.records import SnapshotResult
from verity_stream.status import METRICS, Kind, Status, reported

_COLUMNS = ("connector_id", "worker", *reported(Status("", "")))
# What a worker that has just taken over has not seen yet stays as the one before had it.
_KEPT = {name for name, metric in METRICS.items() if metric.kind is Kind.AGE}
_CHANGES = ", ".join(
    f"{name} = " + (f"coalesce(EXCLUDED.{name}, s.{name})" if name in _KEPT else f"EXCLUDED.{name}")
    for name in _COLUMNS[1:]
)
# A stopped state is only for the worker that ran the connector last: the one that took it over may
# have reported already.
_UPSERT = f"""
    INSERT INTO connector_status AS s ({", ".join(_COLUMNS)})
    VALUES ({", ".join(f"${number}" for number in range(1, len(_COLUMNS) + 1))})
    ON CONFLICT (connector_id) DO UPDATE SET {_CHANGES}, reported_at = now()
    WHERE EXCLUDED.state <> 'stopped' OR s.worker = EXCLUDED.worker
"""  # noqa: S608 - the names are those of the fields of a status
_OVERVIEW = f"""
    SELECT connector_id, {", ".join(f"t.{name}" for name in _COLUMNS[1:])}, t.reported_at,
           c.paused, c.snapshot_requested_at, p.complete_through,
           s.snapshot_id, s.started_at AS snapshot_started_at,
           s.ended_at AS snapshot_ended_at, s.is_complete AS snapshot_is_complete,
           s.grant_count AS snapshot_grant_count
    FROM connector_status t
    FULL JOIN connector_controls c USING (connector_id)
    FULL JOIN connector_snapshots s USING (connector_id)
    LEFT JOIN connector_checkpoints p USING (connector_id)
"""  # noqa: S608 - likewise


class Reports:
    """What the database shows of connectors; a method raises one of the five errors."""

    def __init__(self, pool: Any, worker: str = "") -> None:
        self._pool = pool
        self._worker = worker

    async def overview(self) -> Mapping[str, Mapping[str, Any]]:
        """What the database knows of every connector: its status, its controls, its snapshot."""
        async with database_errors("reading the connectors' states"):
            rows = await self._pool.fetch(_OVERVIEW)
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
            [
                storable(value) if isinstance(value, str) else value
                for value in (status.connector_id, self._worker, *reported(status).values())
            ]
            for status in statuses
        ]
        async with database_errors("reporting states"):
            await self._pool.executemany(_UPSERT, rows)
