"""A real pgbouncer between Verity and PostgreSQL: what needs no session works, the rest is said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from contract.streams import AT
from poolers import pgbouncer

from verity_common.config import DatabaseSettings
from verity_common.kafka import KafkaSettings
from verity_sdk.errors import Misconfigured
from verity_stream.cli.check import Findings, _check_database
from verity_stream.postgres.checkpoints import Persisted, PostgresCheckpoints
from verity_stream.postgres.controls import Controls
from verity_stream.postgres.pool import close_pool, create_connector_pool, create_pool, open_pools
from verity_stream.postgres.reports import Reports
from verity_stream.records import Checkpoint, SnapshotResult
from verity_stream.settings import StreamSettings
from verity_stream.status import State, Status

pytestmark = pytest.mark.stack

WORKERS = 2
PAGES = 30


def stream_settings(dsn: str) -> StreamSettings:
    return StreamSettings(
        database=DatabaseSettings(dsn=dsn), kafka=KafkaSettings(bootstrap_servers="localhost:1")
    )


@pytest.fixture(params=["transaction", "session"])
async def pooled(request: pytest.FixtureRequest, database: str) -> AsyncIterator[str]:
    # In a session pool each connection of a client's has one of the server's, for as long as it
    # is open: two workers' pools need so many. A transaction pool does with three.
    size = {"transaction": "3", "session": "30"}[request.param]
    async with pgbouncer(database, request.param, default_pool_size=size) as address:
        yield address


async def work(pools: Any, name: str) -> None:
    """All that a worker and an operator do with the database, page after page."""
    store = PostgresCheckpoints(pools.own, "cluster")
    controls, reports = Controls(pools.own), Reports(pools.own)
    await store.provenance(name)
    stored = await store.claim(name)
    for version in range(1, PAGES + 1):
        page = Checkpoint(name, version, stored.epoch, AT, {"page": version})
        assert await store.persist(page, expected_version=version - 1) is Persisted.DONE
        assert (await store.load(name)) == page
        status = Status(name, "test", State.BACKING_OFF, last_error=f"error {version}")
        await reports.report([status, Status(f"{name}-2", "test")])
        await controls.controls()
    await controls.set_paused(name, is_paused=True, who="me", reason="r")
    await controls.request_snapshot(name, who="me", reason="r")
    await reports.snapshot_taken(name, SnapshotResult("s", AT), datetime.now(UTC))
    await reports.overview()
    async with pools.connectors.acquire() as connection, connection.transaction():
        assert await connection.fetchval("SELECT $1::int", 7) == 7
        rows = [row[0] async for row in connection.cursor("SELECT generate_series(1, 99)")]
        assert rows == list(range(1, 100))
    assert await pools.connectors.fetchval("SELECT $1::jsonb", '{"a": 1}') == '{"a": 1}'


async def test_two_workers_migrate_and_work_through_a_pooler(pooled: str) -> None:
    async with asyncio.timeout(120):
        opened = await asyncio.gather(
            *(open_pools(stream_settings(pooled)) for _ in range(WORKERS))
        )
        try:
            await asyncio.gather(
                *(
                    work(pools, f"{name}-{number}")
                    for number, pools in enumerate(opened)
                    for name in ("a", "b", "c")
                )
            )
        finally:
            for pools in opened:
                for pool in pools:
                    await close_pool(pool)


async def test_nothing_is_left_in_the_sessions_that_a_pooler_shares(
    database: str, pooled: str
) -> None:
    lent = await create_connector_pool(DatabaseSettings(dsn=pooled))
    try:
        async with lent.acquire() as connection:
            for name in ("idle_session_timeout", "idle_in_transaction_session_timeout"):
                assert await connection.fetchval(f"SHOW {name}") == "0"
            assert await connection.fetchval("SELECT count(*) FROM pg_prepared_statements") == 0
    finally:
        await close_pool(lent)


async def test_check_says_that_a_pooler_stands_between(pooled: str) -> None:
    findings = Findings()
    await _check_database(stream_settings(pooled), findings)
    assert not findings.faults
    assert [line for line in findings.warnings if "a pooler stands between" in line]


async def test_without_one_statements_are_prepared_and_nothing_is_said(database: str) -> None:
    pool = await create_pool(DatabaseSettings(dsn=database))
    try:
        assert pool.is_pooled is False
        for _ in range(2):
            await pool.fetchval("SELECT 7")
        prepared = await pool.fetchval(
            "SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT 7'"
        )
        assert prepared == 1
    finally:
        await close_pool(pool)
    findings = Findings()
    await _check_database(stream_settings(database), findings)
    assert not findings.warnings


async def test_a_pool_without_transactions_is_refused_by_start_and_check(database: str) -> None:
    async with pgbouncer(database, "statement") as address:
        settings = stream_settings(address)
        with pytest.raises(Misconfigured, match="a pooler refuses transactions"):
            await asyncio.wait_for(open_pools(settings), 20)
        findings = Findings()
        await _check_database(settings, findings)
        assert findings.exit_code == 2
        assert "a pooler refuses" in findings.faults[0][1]


async def test_a_parameter_that_the_pooler_does_not_know_is_named(database: str) -> None:
    async with pgbouncer(database, "transaction") as address:
        settings = stream_settings(f"{address}?statement_timeout=30s")
        with pytest.raises(Misconfigured, match=r"VERITY_DATABASE__DSN.*statement_timeout"):
            await asyncio.wait_for(open_pools(settings), 20)
    async with pgbouncer(
        database, "transaction", ignore_startup_parameters="statement_timeout"
    ) as address:
        pool = await create_pool(DatabaseSettings(dsn=f"{address}?statement_timeout=30s"))
        await close_pool(pool)
