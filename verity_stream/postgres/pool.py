"""Verity's own Postgres: the worker's pool and its connectors', errors, migrations."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any, NamedTuple

import asyncpg
import structlog

from verity_common.config import DatabaseSettings
from verity_sdk.errors import Denied, Misconfigured, Unavailable
from verity_sdk.postgres_dsn import Address, read_address, refused_parameter
from verity_stream.postgres.errors import READ_ONLY, database_errors
from verity_stream.postgres.rights import missing_rights
from verity_stream.settings import StreamSettings
from verity_stream.waiting import retry_until_available

logger = structlog.get_logger(__name__)

MIGRATION_LOCK = 0x5645524954590001
"""The advisory lock under which migrations run; any number that nobody else uses."""

CLOSE_SECONDS = 2.0
"""A pool gets this long to close its connections before they are cut."""
DSN = "VERITY_DATABASE__DSN"
STATEMENT_CACHE_SIZE = 100
"""asyncpg's own: so many prepared statements a connection; none where a pooler stands between."""
HOLD_SECONDS = 300
"""So long a connector may keep a connection without using it; then the server ends it, and the
pool has its place back."""
POOLED = (
    "a pooler stands between: Verity's own work needs no session, but settings, locks and prepared "
    "statements that a connector leaves in `db_pool` reach others; if one needs them, give an "
    "address with session pooling, or the server's own"
)


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

    1. Hosts are tried in turn, each with its own limit: one that is silent, as after a fail-over,
       does not use up the time of the next.
    2. After a statement was refused because the server is read-only, every connection is replaced.
    3. Where a pooler stands between, nothing is prepared: its next server would not know it.

    Args:
        database: Address, timeouts.
        size_min: Connections that are kept open.
        size_max: Connections at most.
        application_name: As the server shows it, unless the address has one.
        statement_cache_size: Prepared statements a connection.
        options: As for `asyncpg.create_pool`.

    Raises:
        Misconfigured: The address can't be used.
    """

    def __init__(
        self,
        database: DatabaseSettings,
        *,
        size_min: int,
        size_max: int,
        application_name: str,
        statement_cache_size: int = STATEMENT_CACHE_SIZE,
        **options: Any,
    ) -> None:
        address = read_address(database.dsn.get_secret_value(), DSN)
        if len(address.hosts) > 1:
            address = address.or_else(target_session_attrs="read-write")
        self._addresses = address.each_host()
        self._next_host = 0
        self._connect_seconds = address.connect_seconds or database.connect_timeout_seconds
        self.is_pooled: bool | None = True if address.is_pooled else None
        """Whether a pooler stands between; None before the first connection."""
        super().__init__(
            connect=self._connect_in_turn,
            min_size=size_min,
            max_size=size_max,
            command_timeout=database.command_timeout_seconds,
            max_queries=50_000,
            max_inactive_connection_lifetime=300.0,
            statement_cache_size=statement_cache_size,
            server_settings={"application_name": application_name, **address.session},
            loop=None,
            connection_class=asyncpg.Connection,
            record_class=asyncpg.Record,
            **address.arguments(),
            **options,
        )
        self._acquire_seconds = database.acquire_timeout_seconds

    async def _connect_in_turn(self, **options: Any) -> Any:
        # It begins with the host that served last. One that failed, or was still silent when its
        # caller gave up, is tried last the next time.
        error: Exception | None = None
        for _ in self._addresses:
            address = self._addresses[self._next_host]
            try:
                return await self._connect_to(address, **options)
            except (
                OSError,
                asyncpg.CannotConnectNowError,
                asyncpg.exceptions.TargetServerAttributeNotMatched,
            ) as refused:  # A TimeoutError is an OSError.
                error = refused
                self._next_host = (self._next_host + 1) % len(self._addresses)
            except asyncio.CancelledError:
                self._next_host = (self._next_host + 1) % len(self._addresses)
                raise
        assert error is not None  # noqa: S101 - there is at least one address
        raise error

    async def _connect_to(
        self, address: Address, *, statement_cache_size: int, **options: Any
    ) -> Any:
        if self.is_pooled is None:
            # Nothing is prepared on this one, so the question works in either case.
            connection = await self._open(address, statement_cache_size=0, **options)
            self.is_pooled = await _has_pooler(connection)
            if self.is_pooled or not statement_cache_size:
                return connection
            await connection.close(timeout=CLOSE_SECONDS)
        size = 0 if self.is_pooled else statement_cache_size
        return await self._open(address, statement_cache_size=size, **options)

    async def _open(self, address: Address, **options: Any) -> Any:
        connection = await asyncpg.connect(address.dsn, timeout=self._connect_seconds, **options)
        connection.add_query_logger(self._replace_if_read_only)
        return connection

    def _replace_if_read_only(self, query: Any) -> None:
        if isinstance(query.exception, asyncpg.ReadOnlySQLTransactionError):
            logger.warning("database.read_only", doing="connecting anew")
            self._expiring = asyncio.ensure_future(self.expire_connections())

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
            setup=self._limit_holding,
            reset=_discard,
            # DISCARD ALL forgets prepared statements, so none may be expected to be there.
            statement_cache_size=0,
            application_name="verity-stream-connectors",
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

    async def _limit_holding(self, connection: Any) -> None:
        if self.is_pooled:
            return  # It would stay with the pooler's connection, for whoever gets that next.
        milliseconds = int(HOLD_SECONDS * 1000)
        names = ["idle_in_transaction_session_timeout"]
        if connection.get_server_version() >= (14,):
            names.append("idle_session_timeout")
        await connection.execute(";".join(f"SET {name} = {milliseconds}" for name in names))


async def _has_pooler(connection: Any) -> bool:
    """Whether another process answers than the one that the login named: a pooler names none."""
    pid: int = await connection.fetchval("SELECT pg_catalog.pg_backend_pid()")
    return bool(pid != connection.get_server_pid())


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
    async with database_errors(DSN), _address_errors():
        pool = BoundedPool(
            database,
            size_min=database.pool_size_min,
            size_max=database.pool_size_max,
            init=_prepare,
            reset=_keep,
            application_name="verity-stream",
        )
        await pool
        for warning in read_address(database.dsn.get_secret_value(), DSN).warnings:
            logger.warning("database.address", warning=warning)
        if pool.is_pooled:
            logger.warning("database.pooled", warning=POOLED)
        return pool


@asynccontextmanager
async def _address_errors() -> AsyncIterator[None]:
    """Name what of the address the server, or a pooler before it, does not take."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise Misconfigured(
            f"{DSN}: the server's certificate is not trusted ({error.verify_message}): sslrootcert "
            "names the file with the vendor's roots, or system"
        ) from None
    except asyncpg.ProtocolViolationError as error:
        raise Misconfigured(
            f"{DSN}: a pooler refuses: {error.message}; give the server's own address, or let "
            "the pooler pass it by (ignore_startup_parameters of pgbouncer)"
        ) from None
    except asyncpg.ConnectionDoesNotExistError as error:
        if "statement pooling" not in str(error):
            raise
        raise Misconfigured(
            f"{DSN}: a pooler refuses transactions: pool_mode=statement can't be used; set it to "
            "transaction or session, or give the server's own address"
        ) from None
    except (
        asyncpg.UndefinedObjectError,
        asyncpg.CantChangeRuntimeParamError,
        asyncpg.InvalidParameterValueError,
    ) as error:
        refused = refused_parameter(error.message or "")
        raise Misconfigured(
            f"{DSN}: the server does not take {refused} ({error.sqlstate})"
        ) from None
    except ConnectionError as error:
        if "rejected SSL upgrade" not in str(error):
            raise
        raise Misconfigured(f"{DSN}: sslmode asks for TLS, which the server has not") from None


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
        await require_usable(own)  # What migrations create, this role then owns.
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


async def require_usable(pool: Any) -> None:
    """See that the server takes writes and transactions, and that the role has its rights.

    Raises:
        Unavailable: It is read-only.
        Misconfigured: A pooler stands between that knows no transactions.
        Denied: The role lacks rights on tables that are there; all are listed.
    """
    async with (
        database_errors("the database role"),
        _address_errors(),
        pool.acquire() as connection,
        connection.transaction(),
    ):
        is_read_only = await connection.fetchval(
            "SELECT pg_catalog.current_setting('transaction_read_only')::boolean"
        )
        missing = await missing_rights(connection)
    if is_read_only:
        raise Unavailable(f"{DSN}: {READ_ONLY}")
    if missing:
        raise Denied(
            f"the database role lacks {', '.join(missing)}: let the tables' owner grant it "
            "(docs/operating.md, The database role)"
        )
