"""Verity's own Postgres: the worker's pool and its connectors', errors, migrations."""

from __future__ import annotations

import asyncio
import json
from importlib.resources import files
from typing import Any, NamedTuple

import asyncpg
import structlog

from verity_common.config import DatabaseSettings
from verity_sdk.errors import Denied, Misconfigured
from verity_stream.postgres.errors import database_errors
from verity_stream.postgres.rights import missing_rights
from verity_stream.settings import StreamSettings
from verity_stream.waiting import retry_until_available

logger = structlog.get_logger(__name__)

MIGRATION_LOCK = 0x5645524954590001
"""The advisory lock under which migrations run; any number that nobody else uses."""

CLOSE_SECONDS = 2.0
"""A pool gets this long to close its connections before they are cut."""
HOLD_SECONDS = 300
"""So long a connector may keep a connection without using it; then the server ends it, and the
pool has its place back."""


def storable(text: str | None) -> str | None:
    """Text that Postgres takes: one connector's error must not keep all from being reported."""
    if text is None:
        return None
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


async def _keep(_: Any) -> None:
    """Nothing of ours outlives its statement: no reset, which would be another round trip."""


async def _prepare(connection: Any) -> None:
    await connection.set_type_codec(
        "jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads
    )


class BoundedPool(asyncpg.Pool):  # type: ignore[misc]  # asyncpg ships no types
    """A pool of asyncpg that nobody waits for without end: by itself it has no such limit.

    Args:
        database: Address, timeouts.
        size_min: Connections that are kept open.
        size_max: Connections at most.
        options: As for `asyncpg.create_pool`.
    """

    def __init__(
        self, database: DatabaseSettings, *, size_min: int, size_max: int, **options: Any
    ) -> None:
        super().__init__(
            dsn=database.dsn.get_secret_value(),
            min_size=size_min,
            max_size=size_max,
            command_timeout=database.command_timeout_seconds,
            timeout=database.connect_timeout_seconds,
            max_queries=50_000,
            max_inactive_connection_lifetime=300.0,
            loop=None,
            connection_class=asyncpg.Connection,
            record_class=asyncpg.Record,
            **options,
        )
        self._acquire_seconds = database.acquire_timeout_seconds

    def acquire(self, *, timeout: float | None = None) -> Any:
        """As asyncpg's, but with a timeout; `execute`, `fetch` and the others call it, too.

        Raises:
            TimeoutError: None was free in time.
        """
        return super().acquire(timeout=self._acquire_seconds if timeout is None else timeout)


class ConnectorPool(BoundedPool):
    """The pool that connectors are given as `db_pool`: none of them can starve or change Verity's.

    1. It is another pool than the worker's own, of `connector_pool_size_max` connections, the
       first of which is opened when one is used.
    2. A connection that comes back is as new for the next connector: no setting, role, lock,
       temporary table or prepared statement of the one before is left. Only type codecs stay.
    3. A connection that is kept unused for `HOLD_SECONDS` is ended by the server (PostgreSQL 14 or
       newer), and another takes its place.
    4. Closing it is the worker's business: what a connector closes stays open for the others.
    """

    def __init__(self, database: DatabaseSettings) -> None:
        super().__init__(
            database,
            size_min=0,
            size_max=database.connector_pool_size_max,
            setup=_limit_holding,
            reset=_discard,
            # DISCARD ALL forgets prepared statements, so none may be expected to be there.
            statement_cache_size=0,
            server_settings={"application_name": "verity-stream-connectors"},
        )
        self._is_ending = False

    async def close(self) -> None:
        """Nothing, for a connector; see `close_pool`."""
        if self._is_ending:
            await super().close()
        else:
            logger.warning("database.connector_closed_pool")

    def terminate(self) -> None:
        """Nothing, for a connector; see `close_pool`."""
        if self._is_ending:
            super().terminate()
        else:
            logger.warning("database.connector_closed_pool")

    def end(self) -> None:
        """From here on it can be closed."""
        self._is_ending = True


async def _limit_holding(connection: Any) -> None:
    milliseconds = int(HOLD_SECONDS * 1000)
    names = ["idle_in_transaction_session_timeout"]
    if connection.get_server_version() >= (14,):
        names.append("idle_session_timeout")
    await connection.execute(";".join(f"SET {name} = {milliseconds}" for name in names))


async def _discard(connection: Any) -> None:
    await connection.execute("DISCARD ALL")


async def create_pool(database: DatabaseSettings, *, wait_seconds: float = 0) -> Any:
    """Open Verity's own pool, waiting for the server to come up for at most `wait_seconds`.

    Raises:
        Unavailable, Denied, Misconfigured: As `database_errors`; the message names the setting.
    """
    return await retry_until_available(lambda: _open_pool(database), wait_seconds)


async def create_connector_pool(database: DatabaseSettings) -> ConnectorPool:
    """The pool for connectors; nothing is connected yet, and no server is needed."""
    pool = ConnectorPool(database)
    await pool
    return pool


async def _open_pool(database: DatabaseSettings) -> Any:
    try:
        async with database_errors("VERITY_DATABASE__DSN"):
            pool = BoundedPool(
                database,
                size_min=database.pool_size_min,
                size_max=database.pool_size_max,
                init=_prepare,
                reset=_keep,
                server_settings={"application_name": "verity-stream"},
            )
            await pool
            return pool
    except ValueError as error:
        raise Misconfigured(
            f"VERITY_DATABASE__DSN is no Postgres address ({type(error).__name__})"
        ) from None


class Pools(NamedTuple):
    """A worker's pools: its own, and the one that its connectors are given."""

    own: Any
    connectors: Any


async def open_pools(settings: StreamSettings) -> Pools:
    """Connect a worker to Postgres and see to its migrations, as the settings say.

    Raises:
        Unavailable, Denied, Misconfigured: Nothing is left open.
    """
    database = settings.database
    own = await create_pool(database, wait_seconds=settings.broker_wait_seconds)
    try:
        await require_rights(own)  # What migrations create, this role then owns.
        if settings.migrate == "apply":
            await migrate(own)
        else:
            await require_migrations(own)
        return Pools(own, await create_connector_pool(database))
    except BaseException:
        await close_pool(own)
        raise


async def close_pool(pool: Any) -> None:
    """Close a pool of either kind; what does not end within `CLOSE_SECONDS` is cut."""
    if isinstance(pool, ConnectorPool):
        pool.end()
    try:
        await asyncio.wait_for(pool.close(), CLOSE_SECONDS)
    except TimeoutError:
        pool.terminate()


def migrations() -> list[tuple[str, str]]:
    """Name and SQL of every migration, in order."""
    folder = files("verity_stream.postgres") / "migrations"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(name, (folder / name).read_text("utf-8")) for name in names]


async def missing_migrations(connection: Any) -> list[str]:
    """The names of the migrations that were not applied yet."""
    exists = await connection.fetchval("SELECT to_regclass('verity_migrations') IS NOT NULL")
    applied: set[str] = set()
    if exists:
        rows = await connection.fetch("SELECT name FROM verity_migrations")
        applied = {row["name"] for row in rows}
    return [name for name, _ in migrations() if name not in applied]


async def migrate(pool: Any) -> list[str]:
    """Apply what is missing, all or nothing, one process at a time; returns what was applied.

    Raises:
        Denied: The role may not create tables; nothing was changed.
        Unavailable: The server did not answer; nothing was changed.
    """
    async with database_errors("migrations"), pool.acquire() as connection:
        # Looked at before anything is asked for: where nothing is missing, a role without the
        # right to create tables starts, and nobody waits for the lock.
        if not await missing_migrations(connection):
            return []
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK, timeout=60)
            await connection.execute(
                "CREATE TABLE IF NOT EXISTS verity_migrations ("
                "name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
            )
            missing = await missing_migrations(connection)
            for name, sql in migrations():
                if name in missing:
                    await connection.execute(sql)
                    await connection.execute(
                        "INSERT INTO verity_migrations (name) VALUES ($1)", name
                    )
                    logger.info("database.migrated", migration=name)
            return missing


async def require_migrations(pool: Any) -> None:
    """Raise Misconfigured that lists what is missing, or return."""
    async with database_errors("migrations"), pool.acquire() as connection:
        missing = await missing_migrations(connection)
    if missing:
        raise Misconfigured(
            f"the database lacks the migrations {', '.join(missing)}: run `verity migrate`, or "
            "set VERITY_MIGRATE=apply"
        )


async def require_rights(pool: Any) -> None:
    """Raise Denied that lists what the role lacks of the tables that are there, or return."""
    async with database_errors("the role's rights"), pool.acquire() as connection:
        missing = await missing_rights(connection)
    if missing:
        raise Denied(
            f"the database role lacks {', '.join(missing)}: let the tables' owner grant it "
            "(docs/operating.md, The database role)"
        )
