"""Verity's own Postgres: connecting, errors, migrations."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

import asyncpg
import structlog

from verity_common.config import DatabaseSettings
from verity_sdk.errors import Denied, Misconfigured, Unavailable
from verity_stream.waiting import patiently

logger = structlog.get_logger(__name__)

MIGRATION_LOCK = 0x5645524954590001
"""The advisory lock under which migrations run; any number that nobody else uses."""


@asynccontextmanager
async def database_errors(doing: str) -> AsyncIterator[None]:
    """Turn what asyncpg raises into the errors that say who must act.

    Raises:
        Denied: The role may not do this, or its password is wrong.
        Misconfigured: The table or column is not there: migrations are missing.
        Unavailable: Anything else; the statement may or may not have been carried out.
    """
    try:
        yield
    except (
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.InvalidPasswordError,
        asyncpg.InsufficientPrivilegeError,
    ) as error:
        raise Denied(f"{doing}: the database refused: {error}") from error
    except asyncpg.exceptions.ClientConfigurationError as error:
        raise Misconfigured(
            f"VERITY_DATABASE__DSN is no Postgres address ({type(error).__name__})"
        ) from None
    except asyncpg.InvalidCatalogNameError as error:
        raise Misconfigured(f"VERITY_DATABASE__DSN: {error}") from error
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError) as error:
        raise Misconfigured(f"{doing}: {error}; run `verity migrate`") from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        raise Unavailable(f"{doing}: {type(error).__name__}: {error}".rstrip(": ")) from error


async def _keep(_: Any) -> None:
    """Nothing of ours outlives its statement: no reset, which would be another round trip."""


async def _prepare(connection: Any) -> None:
    await connection.set_type_codec(
        "jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads
    )


async def create_pool(database: DatabaseSettings, *, wait_seconds: float = 0) -> Any:
    """Open the pool, waiting for the server to come up for at most `wait_seconds`.

    Raises:
        Unavailable, Denied, Misconfigured: As `database_errors`; the message names the setting.
    """
    return await patiently(lambda: _open_pool(database), wait_seconds)


async def _open_pool(database: DatabaseSettings) -> Any:
    try:
        async with database_errors("VERITY_DATABASE__DSN"):
            return await asyncpg.create_pool(
                dsn=database.dsn.get_secret_value(),
                min_size=database.pool_size_min,
                max_size=database.pool_size_max,
                command_timeout=database.command_timeout_seconds,
                timeout=database.connect_timeout_seconds,
                init=_prepare,
                reset=_keep,
                server_settings={"application_name": "verity-stream"},
            )
    except ValueError as error:
        raise Misconfigured(
            f"VERITY_DATABASE__DSN is no Postgres address ({type(error).__name__})"
        ) from None


def migrations() -> list[tuple[str, str]]:
    """Name and SQL of every migration, in order."""
    folder = files("verity_stream") / "migrations"
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
    async with (
        database_errors("migrations"),
        pool.acquire() as connection,
        connection.transaction(),
    ):
        await connection.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK, timeout=60)
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS verity_migrations ("
            "name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        missing = await missing_migrations(connection)
        for name, sql in migrations():
            if name in missing:
                await connection.execute(sql)
                await connection.execute("INSERT INTO verity_migrations (name) VALUES ($1)", name)
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
