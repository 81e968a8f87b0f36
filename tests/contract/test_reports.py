"""What workers report: the table `connector_status`, written and read by the metrics' names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from documents import seen

from verity_common.config import DatabaseSettings
from verity_stream.postgres.pool import create_pool, migrate
from verity_stream.postgres.reports import Reports
from verity_stream.status import METRICS, Kind, State, Status, reported

pytestmark = pytest.mark.stack


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Any]:
    pool = await create_pool(DatabaseSettings(dsn=database))
    await migrate(pool)
    yield pool
    await pool.close()


@pytest.mark.parametrize("text", ["a\x00b", "\ud800", "é" * 5000])
async def test_no_error_text_keeps_the_others_from_being_reported(pool: Any, text: str) -> None:
    """All connectors of a worker are reported in one statement."""
    statuses = [Status("a", "acme"), Status("b", "acme")]
    statuses[0].enter(State.BACKING_OFF, error=text)
    await Reports(pool, "worker").report(statuses)
    assert await pool.fetchval("SELECT count(*) FROM connector_status") == 2


async def test_every_metric_of_the_command_line_has_its_column(pool: Any) -> None:
    """Whoever declares a metric with a title writes a migration."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    status = seen(at)
    for number, (name, metric) in enumerate(METRICS.items(), 1):
        if metric.kind is Kind.COUNTER:
            setattr(status, name, number)
        elif metric.kind is Kind.HISTOGRAM:
            getattr(status, name).observe([1.0] * number)
    await Reports(pool, "worker").report([status])
    row = (await Reports(pool).overview())[status.connector_id]
    wanted = reported(status)
    assert {name: row[name] for name in wanted} == wanted
    columns = await pool.fetch(
        "SELECT column_name FROM information_schema.columns "
        "WHERE table_name = 'connector_status' AND table_schema = current_schema()"
    )
    assert {column["column_name"] for column in columns} == {
        *wanted, "connector_id", "worker", "reported_at",
    }  # fmt: skip


async def test_who_takes_a_connector_over_keeps_the_times_that_it_has_not_seen(pool: Any) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    await Reports(pool, "before").report([seen(at)])
    await Reports(pool, "after").report([Status("c", "test")])
    row = (await Reports(pool).overview())["c"]
    assert (row["worker"], row["last_success_at"], row["last_event_at"]) == ("after", at, at)
    assert row["event_count"] == 0
