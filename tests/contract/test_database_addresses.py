"""Addresses as vendors hand them out, several hosts, fail-over: on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import asyncpg
import pytest

from verity_common.config import DatabaseSettings
from verity_common.kafka import KafkaSettings
from verity_sdk.errors import Misconfigured, Unavailable
from verity_stream.cli.check import Findings, _check_database
from verity_stream.postgres.checkpoints import PostgresCheckpoints
from verity_stream.postgres.pool import (
    close_pool,
    create_connector_pool,
    create_pool,
    migrate,
    open_pools,
)
from verity_stream.settings import StreamSettings

pytestmark = pytest.mark.stack


def stream_settings(dsn: str) -> StreamSettings:
    return StreamSettings(
        database=DatabaseSettings(dsn=dsn), kafka=KafkaSettings(bootstrap_servers="localhost:1")
    )


@pytest.mark.parametrize(
    "parameters",
    [
        "channel_binding=require",  # Neon's own
        "channel_binding=prefer&sslmode=prefer",
        "connect_timeout=10",
        "keepalives=1&keepalives_idle=30&tcp_user_timeout=1000",
        "gssencmode=prefer",
        "pgbouncer=true",
        "target_session_attrs=read-write",
        "application_name=ours",
        "options=-c%20search_path%3Dpublic",
        "statement_timeout=30s",
        "load_balance_hosts=random&sslcompression=0&client_encoding=UTF8",
    ],
)
async def test_a_parameter_of_libpqs_keeps_nobody_from_connecting(
    database: str, parameters: str
) -> None:
    settings = DatabaseSettings(dsn=f"{database}?{parameters}")
    for pool in (await create_pool(settings), await create_connector_pool(settings)):
        try:
            assert await pool.fetchval("SELECT 1") == 1
        finally:
            await close_pool(pool)


async def test_both_forms_and_what_the_session_is_told(database: str) -> None:
    place = urlsplit(database)
    dsn = (
        f"host={place.hostname} port={place.port} dbname={place.path[1:]} user={place.username} "
        f"password='{place.password}' application_name='of ours' options='-c work_mem=5MB'"
    )
    pool = await create_pool(DatabaseSettings(dsn=dsn))
    try:
        assert await pool.fetchval("SHOW application_name") == "of ours"
        assert await pool.fetchval("SHOW work_mem") == "5MB"
    finally:
        await close_pool(pool)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ("no_such_thing=1", "no_such_thing"),
        ("shared_buffers=1GB", "shared_buffers"),
        ("statement_timeout=soon", "statement_timeout"),
        ("gssencmode=require", "gssencmode"),
        ("sslmode=require", "sslmode"),
        ("schema=public", "schema"),
        ("connect_timeout=soon", "connect_timeout"),
    ],
)
async def test_what_can_not_be_used_is_named_at_once_by_start_and_check(
    database: str, parameters: str, named: str
) -> None:
    settings = stream_settings(f"{database}?{parameters}")
    with pytest.raises(Misconfigured) as caught:
        await asyncio.wait_for(open_pools(settings), 10)  # The default waits for a minute.
    findings = Findings()
    await _check_database(settings, findings)
    assert findings.exit_code == 2
    for line in (str(caught.value), *(line for _, line in findings.faults)):
        assert "VERITY_DATABASE__DSN" in line
        assert named in line
        assert "\n" not in line


@asynccontextmanager
async def silent_server() -> AsyncIterator[int]:
    """A port that takes connections and says nothing, as a machine that was switched off."""
    held = []

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        await reader.read()

    server = await asyncio.start_server(hold, "localhost")
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        for writer in held:
            writer.close()
        server.close()


async def test_a_silent_host_does_not_use_up_the_time_of_the_next(database: str) -> None:
    place = urlsplit(database)
    async with silent_server() as port:
        login, _, real = place.netloc.rpartition("@")
        dsn = place._replace(netloc=f"{login}@localhost:{port},localhost:1,{real}").geturl()
        settings = DatabaseSettings(dsn=dsn, connect_timeout_seconds=2)
        began = time.monotonic()
        pool = await create_pool(settings)
        assert time.monotonic() - began < 10
        taken = [await pool.acquire() for _ in range(3)]
        assert time.monotonic() - began < 12, "the one that served last is asked first"
        for connection in taken:
            await pool.release(connection)
        await close_pool(pool)
        # Where acquiring gives up first, the next one begins with another host.
        lent = await create_connector_pool(
            settings.model_copy(update={"acquire_timeout_seconds": 1.0})
        )
        with pytest.raises(TimeoutError):
            await lent.fetchval("SELECT 1")
        assert await lent.fetchval("SELECT 1") == 1
        await close_pool(lent)


async def test_after_a_fail_over_the_pool_finds_the_server_that_takes_writes(
    database: str,
) -> None:
    pool = await create_pool(DatabaseSettings(dsn=database))
    name = urlsplit(database).path[1:]
    boss = await asyncpg.connect(database)
    try:
        await migrate(pool)
        store = PostgresCheckpoints(pool)
        await store.claim("c")
        # Connections that were open keep what they had, as after a demotion without a restart.
        await pool.execute("SET default_transaction_read_only = on")
        with pytest.raises(Unavailable, match="the server is read-only: a standby, or one that"):
            await store.claim("c")
        assert (await store.claim("c")).epoch == 2
        # A server that stays read-only is named by start and check, before any work.
        await boss.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        settings = stream_settings(database)
        with pytest.raises(Unavailable, match="the server is read-only"):
            await open_pools(settings)
        findings = Findings()
        await _check_database(settings, findings)
        assert [code for code, _ in findings.faults] == [1]
        assert "the server is read-only" in findings.faults[0][1]
        # With several hosts, one that takes writes is looked for without being asked to.
        place = urlsplit(database)
        login, _, real = place.netloc.rpartition("@")
        several = place._replace(netloc=f"{login}@{real},{real}").geturl()
        with pytest.raises(Unavailable, match="the server is read-only"):
            await create_pool(DatabaseSettings(dsn=several))
    finally:
        await boss.close()
        await close_pool(pool)
