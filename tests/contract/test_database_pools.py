"""Verity's own pool, and the one that connectors get: bounded, apart, and as new each time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from contract.streams import AT
from workers import eventually

from verity_common.config import DatabaseSettings
from verity_common.kafka import KafkaSettings
from verity_sdk.connector_base import BaseConnector
from verity_sdk.errors import Unavailable
from verity_stream.postgres import pool as database_module
from verity_stream.postgres.checkpoints import PostgresCheckpoints
from verity_stream.postgres.controls import Controls
from verity_stream.postgres.pool import (
    Pools,
    close_pool,
    create_connector_pool,
    create_pool,
    migrate,
    open_pools,
)
from verity_stream.settings import ConnectorOptions, ConnectorSpec, StreamSettings
from verity_stream.worker.runner import ConnectorRunner

pytestmark = pytest.mark.stack

WORKERS = 10
OPERATORS_CONNECTIONS = 15
"""Of `verity`'s commands, of one more worker while one is replaced, of people with psql."""
IMPATIENT_SECONDS = 2.0  # Opening a connection counts, on a busy machine too.


class Idle(BaseConnector):
    """Does nothing; its `db_pool` is what is tested."""

    PLATFORM = "test"

    async def stream_audit_events(self, since: Any) -> AsyncIterator[Any]:
        for event in list[Any]():
            yield event

    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        for grant in list[Any]():
            yield grant


@pytest.fixture
def settings(database: str) -> DatabaseSettings:
    # The defaults but for the wait, which this suite would otherwise sit through each time.
    return DatabaseSettings(dsn=database, acquire_timeout_seconds=IMPATIENT_SECONDS)


@pytest.fixture
async def own(settings: DatabaseSettings) -> AsyncIterator[Any]:
    pool = await create_pool(settings)
    await migrate(pool)
    yield pool
    await close_pool(pool)


@pytest.fixture
async def lent(settings: DatabaseSettings) -> AsyncIterator[Any]:
    pool = await create_connector_pool(settings)
    yield pool
    await close_pool(pool)


async def take_all(pool: Any) -> list[Any]:
    """Every connection of a pool, none given back; within a minute."""
    taken: list[Any] = []
    async with asyncio.timeout(60):
        while True:
            try:
                taken.append(await pool.acquire(timeout=IMPATIENT_SECONDS))
            except TimeoutError:
                return taken


async def open_connections(own: Any, application: str) -> int:
    found: int = await own.fetchval(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE application_name = $1 AND datname = current_database()",
        application,
    )
    return found


async def test_a_connector_that_keeps_every_connection_takes_none_of_veritys(
    database: str, bootstrap_servers: str
) -> None:
    taken: list[Any] = []
    opened: list[Pools] = []

    class Greedy(Idle):
        async def stream_audit_events(self, since: Any) -> AsyncIterator[Any]:
            taken.extend(await take_all(self.db_pool))
            for event in list[Any]():
                yield event

    async def open_and_keep(settings: StreamSettings) -> Pools:
        opened.append(await open_pools(settings))
        return opened[0]

    async def has_them() -> bool:
        await runner.reconcile()
        return bool(taken)

    options = ConnectorOptions(type="greedy")
    spec = ConnectorSpec("c", Greedy, "test", {}, options)
    settings = StreamSettings(
        database=DatabaseSettings(dsn=database),
        kafka=KafkaSettings(bootstrap_servers=bootstrap_servers),
    )
    runner = ConnectorRunner(settings, [spec], open_pools=open_and_keep)
    await runner.start()
    try:
        await runner.assign(frozenset(range(settings.checkpoint_partitions)))
        await eventually(has_them, 120)
        async with asyncio.timeout(30):
            await Controls(opened[0].own).controls()
            await PostgresCheckpoints(opened[0].own).claim("another")
    finally:
        async with asyncio.timeout(60):
            await runner.stop()


async def test_nobody_waits_without_end_for_a_connection_of_veritys(own: Any) -> None:
    assert len(await take_all(own)) == DatabaseSettings().pool_size_max
    store = PostgresCheckpoints(own)
    for statement in (store.claim("c"), store.load_all(), store.adopt("c")):
        began = time.monotonic()
        with pytest.raises(Unavailable, match="no free connection"):
            await asyncio.wait_for(statement, 30)
        assert time.monotonic() - began < DatabaseSettings().acquire_timeout_seconds
    with pytest.raises(TimeoutError):
        async with own.acquire():
            pass


async def test_by_default_the_wait_for_a_connection_has_an_end() -> None:
    assert timedelta(0) < timedelta(seconds=DatabaseSettings().acquire_timeout_seconds)
    assert DatabaseSettings().acquire_timeout_seconds <= 30


async def test_ten_workers_fit_a_server_as_it_comes(own: Any) -> None:
    offered = await own.fetchval(
        "SELECT sum(CASE name WHEN 'max_connections' THEN 1 ELSE -1 END * boot_val::int) "
        "FROM pg_settings WHERE name IN "
        "('max_connections', 'superuser_reserved_connections', 'reserved_connections')"
    )
    defaults = DatabaseSettings()
    used = WORKERS * (defaults.pool_size_max + defaults.connector_pool_size_max)
    assert used + OPERATORS_CONNECTIONS <= offered, f"{used} of {offered}"


async def test_the_connectors_pool_opens_nothing_until_it_is_used(own: Any, lent: Any) -> None:
    application = "verity-stream-connectors"
    assert await open_connections(own, application) == 0
    assert await lent.fetchval("SELECT 1") == 1
    assert await open_connections(own, application) == 1
    taken = await take_all(lent)
    assert len(taken) == DatabaseSettings().connector_pool_size_max
    assert await open_connections(own, application) == len(taken)
    for connection in taken:
        await lent.release(connection)


async def test_what_the_specification_does_with_its_pool_works(own: Any, lent: Any) -> None:
    assert isinstance(lent, asyncpg.Pool)
    connector = Idle({"connector_id": "c"}, None, lent)
    await connector._save_checkpoint(AT)
    assert await connector._load_checkpoint() == AT
    async with lent.acquire() as connection, connection.transaction():
        await connection.executemany("SELECT $1::int", [(1,), (2,)])
    async with lent.acquire() as connection:
        assert await (await connection.prepare("SELECT $1::int")).fetchval(7) == 7
    assert [row[0] for row in await lent.fetch("SELECT generate_series(1, 3)")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("left_behind", "look"),
    [
        ("SET search_path TO nowhere", "SELECT current_setting('search_path') LIKE '%public%'"),
        ("SET ROLE pg_monitor", "SELECT current_user = session_user"),
        ("SET SESSION AUTHORIZATION pg_monitor", "SELECT session_user <> 'pg_monitor'"),
        ("CREATE TEMP TABLE mine (a int)", "SELECT to_regclass('pg_temp.mine') IS NULL"),
        ("PREPARE mine AS SELECT 1", "SELECT count(*) = 0 FROM pg_prepared_statements"),
        ("SELECT pg_advisory_lock(7)", "SELECT count(*) = 0 FROM pg_locks WHERE objid = 7"),
        ("LISTEN mine", "SELECT count(*) = 0 FROM pg_listening_channels()"),
        ("BEGIN", "SELECT true"),
    ],
)
async def test_what_one_connector_sets_the_next_one_does_not_find(
    own: Any, settings: DatabaseSettings, left_behind: str, look: str
) -> None:
    # One connection, so that the next one to take a connection takes this one.
    lent = await create_connector_pool(settings.model_copy(update={"connector_pool_size_max": 1}))
    try:
        async with lent.acquire() as connection:
            server_process = connection.get_server_pid()
            await connection.execute(left_behind)
        async with lent.acquire() as connection:
            assert connection.get_server_pid() == server_process, "it is kept, and reset"
            assert await connection.fetchval(look) is True
            assert not connection.is_in_transaction()
    finally:
        await close_pool(lent)


async def test_a_connection_that_is_kept_and_not_used_comes_back(
    own: Any, lent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a connector that leaks one in each of its lives would take them from all others."""
    monkeypatch.setattr(database_module, "HOLD_SECONDS", 5)
    taken = [await lent.acquire() for _ in range(DatabaseSettings().connector_pool_size_max)]
    await taken[0].execute("BEGIN")
    async with asyncio.timeout(60):
        while lent.get_size():  # noqa: ASYNC110 - the server ends them, and tells nobody
            await asyncio.sleep(0.05)
    for _ in taken:
        await lent.acquire()


async def test_a_connector_that_closes_the_pool_closes_it_for_nobody(own: Any, lent: Any) -> None:
    await lent.close()
    lent.terminate()
    async with lent:
        pass
    assert await lent.fetchval("SELECT 1") == 1
    taken = await lent.acquire()
    async with asyncio.timeout(30):  # What a connector keeps holds no worker up.
        await close_pool(lent)
    with pytest.raises(asyncpg.InterfaceError):
        await taken.fetchval("SELECT 1")
    with pytest.raises(asyncpg.InterfaceError):
        await lent.fetchval("SELECT 1")
