"""Migrations on a real database: once, in order, all or nothing, whoever comes first."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from contract.streams import AT

from verity_common.config import DatabaseSettings
from verity_sdk.errors import Denied, Misconfigured, Unavailable
from verity_stream.postgres.checkpoints import PostgresCheckpoints
from verity_stream.postgres.pool import create_pool, migrate, migrations, require_migrations
from verity_stream.records import Checkpoint

pytestmark = pytest.mark.stack

NAMES = [name for name, _ in migrations()]


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Any]:
    pool = await create_pool(DatabaseSettings(dsn=database))
    yield pool
    await pool.close()


async def test_all_are_applied_in_order_and_only_once(pool: Any) -> None:
    assert NAMES == sorted(NAMES) != []
    assert await migrate(pool) == NAMES
    assert await migrate(pool) == []
    await require_migrations(pool)


async def test_what_is_missing_is_listed_and_nothing_is_changed(pool: Any) -> None:
    with pytest.raises(Misconfigured) as caught:
        await require_migrations(pool)
    for part in (*NAMES, "verity migrate", "VERITY_MIGRATE=apply"):
        assert part in str(caught.value)
    with pytest.raises(Misconfigured, match="verity migrate"):
        await PostgresCheckpoints(pool).claim("c")
    assert await pool.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0


async def test_a_table_made_by_hand_keeps_its_positions(pool: Any) -> None:
    """A connector that ran on its own before has made it with two columns."""
    await pool.execute(
        "CREATE TABLE connector_checkpoints "
        "(connector_id text PRIMARY KEY, last_ts timestamptz NOT NULL)"
    )
    await pool.execute("INSERT INTO connector_checkpoints VALUES ('c', $1)", AT)
    await migrate(pool)
    assert await PostgresCheckpoints(pool).claim("c") == Checkpoint("c", 0, 1, AT)
    await pool.execute("UPDATE connector_checkpoints SET last_ts = last_ts - interval '1 day'")
    assert (await PostgresCheckpoints(pool).load_all())[0].version == 1


async def test_three_workers_that_start_together_migrate_once(database: str) -> None:
    pools = [await create_pool(DatabaseSettings(dsn=database)) for _ in range(3)]
    try:
        applied = await asyncio.gather(*map(migrate, pools))
    finally:
        for pool in pools:
            await pool.close()
    assert sorted(applied, key=len) == [[], [], NAMES]


async def test_a_failing_migration_leaves_nothing_behind(
    pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [*migrations(), ("9999_broken.sql", "SELECT * FROM no_such_table")]
    monkeypatch.setattr("verity_stream.postgres.pool.migrations", lambda: broken)
    with pytest.raises(Misconfigured):
        await migrate(pool)
    assert await pool.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0


async def test_a_role_that_may_not_is_denied_and_nothing_is_changed(database: str) -> None:
    role = f"weak_{secrets.token_hex(4)}"
    boss = await asyncpg.connect(database)
    try:
        await boss.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'weak'")
        address = urlsplit(database)
        place = f"{role}:weak@{address.hostname}:{address.port}"
        weak = address._replace(netloc=place).geturl()
        pool = await create_pool(DatabaseSettings(dsn=weak))
        try:
            with pytest.raises(Denied):
                await migrate(pool)
            await boss.execute("CREATE TABLE connector_checkpoints (connector_id text)")
            with pytest.raises(Denied):
                await PostgresCheckpoints(pool).load("c")
        finally:
            await pool.close()
        tables = await boss.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        assert tables == 1
        with pytest.raises(Denied) as caught:
            await create_pool(DatabaseSettings(dsn=weak.replace(":weak@", ":wrong-secret@")))
        assert "wrong-secret" not in str(caught.value)
    finally:
        await boss.execute(f"DROP ROLE {role}")
        await boss.close()


@pytest.mark.parametrize(
    ("dsn", "error"),
    [
        ("postgresql://verity:s3cret@localhost:1/verity", Unavailable),
        ("no address s3cret", Misconfigured),
        ("postgresql://verity:s3cret@localhost:port/verity", Misconfigured),
    ],
)
async def test_a_database_that_cant_be_reached_names_the_setting_and_no_secret(
    dsn: str, error: type[Exception]
) -> None:
    with pytest.raises(error, match="VERITY_DATABASE__DSN") as caught:
        await create_pool(DatabaseSettings(dsn=dsn))
    assert "s3cret" not in str(caught.value)


async def test_a_database_that_does_not_exist_is_misconfigured(database: str) -> None:
    dsn = urlsplit(database)._replace(path="/absent").geturl()
    with pytest.raises(Misconfigured, match="VERITY_DATABASE__DSN"):
        await create_pool(DatabaseSettings(dsn=dsn))


@pytest.mark.parametrize(
    ("query", "kind", "text"),
    [
        # As managed servers hand them out, and no longer retried for a minute.
        ("channel_bindings=require", Misconfigured, "channel_bindings"),
        ("work_mem=many", Misconfigured, "work_mem"),
        ("max_connections=7", Misconfigured, "max_connections"),
        ("sslmode=require", Misconfigured, "sslmode"),
    ],
)
async def test_a_parameter_that_the_server_refuses_is_named_at_once(
    database: str, query: str, kind: type[Exception], text: str
) -> None:
    dsn = urlsplit(database)._replace(query=query).geturl()
    with pytest.raises(kind, match=text) as caught:
        await create_pool(DatabaseSettings(dsn=dsn), wait_seconds=60)
    assert "VERITY_DATABASE__DSN" in str(caught.value)


async def test_a_role_with_too_few_connections_and_a_read_only_server(database: str) -> None:
    role = f"few_{secrets.token_hex(4)}"
    boss = await asyncpg.connect(database)
    try:
        await boss.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'few' CONNECTION LIMIT 1")
        address = urlsplit(database)
        dsn = address._replace(netloc=f"{role}:few@{address.hostname}:{address.port}").geturl()
        one = await create_pool(DatabaseSettings(dsn=dsn))
        try:
            with pytest.raises(Unavailable, match=r"53300.*VERITY_DATABASE__POOL_SIZE_MAX"):
                await create_pool(DatabaseSettings(dsn=dsn))
        finally:
            await one.close()
        await boss.execute(f"ALTER ROLE {role} SET default_transaction_read_only = on")
        pool = await create_pool(DatabaseSettings(dsn=dsn))
        try:
            with pytest.raises(Unavailable, match=r"25006.*the server is read-only"):
                await migrate(pool)
        finally:
            await pool.close()
    finally:
        await boss.execute(f"DROP ROLE {role}")
        await boss.close()
