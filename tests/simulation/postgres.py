"""A model of Postgres, beneath asyncpg's pool: Verity's tables, and its statements by what they do.

An unknown statement fails the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from datetime import datetime
from typing import Any, ClassVar

import asyncpg

from simulation.wire import Wait, Wire

COMMAND_SECONDS = 30.0


class Postgres:
    """The tables of one database."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.checkpoints: dict[str, dict[str, Any]] = {}
        self.controls: dict[str, dict[str, Any]] = {}
        self.snapshots: dict[str, dict[str, Any]] = {}
        self.states: dict[str, str] = {}
        self.locked_until: dict[str, float] = {}

    def execute(self, sql: str, args: Sequence[Any]) -> Any:
        """Run one statement: as a whole, or not at all."""
        run = self._known.get(sql)
        if run is None:
            key = " ".join(sql.split())
            found = [one for start, one in self._statements.items() if key.startswith(start)]
            assert found, f"no model of: {key}"
            run = self._known[sql] = found[0]
        return run(self, *args)

    def copy(self) -> Any:
        """A backup."""
        return deepcopy((self.checkpoints, self.controls, self.snapshots))

    def restore(self, backup: Any) -> None:
        """All rows as they were."""
        self.checkpoints, self.controls, self.snapshots = deepcopy(backup)

    def edit(self, connector_id: str, last_ts: datetime) -> None:
        """`UPDATE … SET last_ts` by hand, with the trigger."""
        row = self.checkpoints[connector_id]
        row |= {"last_ts": last_ts, "cursor": None, "complete_through": None, "seen": None}
        row["version"] += 1

    def _wait_for(self, connector_id: str) -> None:
        if self.wire.loop.time() < self.locked_until.get(connector_id, 0.0):
            raise Wait

    def _select(self, connector_id: str) -> dict[str, Any] | None:
        row = self.checkpoints.get(connector_id)
        return None if row is None else dict(row)

    def _claim(self, connector_id: str, first: datetime, cluster: str) -> dict[str, Any]:
        self._wait_for(connector_id)
        row = self.checkpoints.setdefault(
            connector_id,
            {
                "connector_id": connector_id,
                "last_ts": first,
                "cursor": None,
                "complete_through": None,
                "seen": None,
                "version": 0,
                "epoch": 0,
                "published_version": 0,
            },
        )
        row["epoch"] += 1
        row["kafka_cluster"] = cluster
        return dict(row)

    def _persist(
        self, connector_id: str, expected: int, epoch: int, last_ts: datetime, *rest: Any
    ) -> str:
        self._wait_for(connector_id)
        row = self.checkpoints.get(connector_id)
        if row is None or (row["version"], row["epoch"]) != (expected, epoch):
            return "UPDATE 0"
        cursor, through, seen, version = rest
        row |= {"last_ts": last_ts, "cursor": cursor, "complete_through": through, "seen": seen}
        row |= {"version": version, "published_version": version}
        return "UPDATE 1"

    def _controls(self) -> list[dict[str, Any]]:
        blank = {"snapshot_requested_at": None, "started_at": None, "restart_requested_at": None}
        names = sorted({*self.controls, *self.snapshots})
        return [
            {
                "connector_id": name,
                "paused": False,
                **blank,
                **self.controls.get(name, {}),
                **self.snapshots.get(name, {}),
            }
            for name in names
        ]

    def _snapshot(self, connector_id: str, *values: Any) -> None:
        names = ("snapshot_id", "started_at", "ended_at", "is_complete", "grant_count")
        self.snapshots[connector_id] = dict(zip(names, values, strict=True))

    def _report(self, rows: Sequence[Any]) -> None:
        for row in rows:
            self.states[row[0]] = row[3]

    _known: ClassVar[dict[str, Callable[..., Any]]] = {}
    _statements: ClassVar[Mapping[str, Callable[..., Any]]] = {
        "SELECT published_version": _select,
        "SELECT * FROM connector_checkpoints WHERE": _select,
        "INSERT INTO connector_checkpoints": _claim,
        "UPDATE connector_checkpoints SET last_ts = $4": _persist,
        "SELECT connector_id, coalesce(c.paused": _controls,
        "INSERT INTO connector_snapshots": _snapshot,
        "INSERT INTO connector_status": _report,
    }


class Pool:
    """What Verity uses of an asyncpg pool."""

    def __init__(self, postgres: Postgres, *, command_timeout: float = COMMAND_SECONDS) -> None:
        self._postgres = postgres
        self._seconds = command_timeout

    async def _run(self, sql: str, *args: Any) -> Any:
        postgres = self._postgres
        what = "sql " + " ".join(sql.split()[:3])
        try:
            return await postgres.wire.send(
                what, lambda: postgres.execute(sql, args), timeout=self._seconds
            )
        except ConnectionResetError as error:
            raise asyncpg.ConnectionDoesNotExistError(
                "connection was closed in the middle of operation"
            ) from error

    fetchrow = fetch = execute = executemany = _run

    async def close(self) -> None:
        """Disconnect."""

    def terminate(self) -> None:
        """Disconnect at once."""
