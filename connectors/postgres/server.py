"""The connection to the observed server: the only file that knows asyncpg and its errors."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

from connectors.postgres.files import is_chronological
from connectors.postgres.settings import Settings
from verity_sdk.errors import Denied, Misconfigured, Unavailable, VerityError
from verity_sdk.postgres_dsn import read_address, refused_parameter

SETUP_HINT = (
    "run the SQL that `verity postgres-setup` prints, as a superuser, in the dsn's database"
)
READER_NAMES = ("audit_reader", "list_logs", "read_log", "log_filename")
OLDEST_VERSION = 150_000
CLOSE_SECONDS = 5.0
SNAPSHOT_PREFETCH = 500

# Not pgaudit.log: the installer sets that one for the role, so it exists without pgaudit too.
FACTS_SQL = """
SELECT pg_catalog.current_setting('server_version_num')::int AS version,
       pg_catalog.current_setting('log_destination') AS log_destination,
       pg_catalog.current_setting('logging_collector') AS logging_collector,
       pg_catalog.current_setting('log_timezone') AS log_timezone,
       pg_catalog.current_setting('lc_messages') AS lc_messages,
       session_user::text AS session_user_name,
       pg_catalog.current_setting('pgaudit.log_catalog', true) IS NOT NULL AS has_pgaudit
"""
VERSION_SQL = "SELECT pg_catalog.current_setting('server_version_num')::int"
LOG_FILENAME_SQL = "SELECT audit_reader.log_filename()"
SYSTEM_IDENTIFIER_SQL = "SELECT system_identifier::text FROM pg_catalog.pg_control_system()"


@dataclass(frozen=True, slots=True)
class Facts:
    """What the server says about itself.

    Attributes:
        log_timezone: The zone of the log's times.
        has_pgaudit: Whether pgaudit is loaded.
        system_identifier: The cluster's identity, or None where it may not be asked.
        user: The role that the connection logged in as.
    """

    log_timezone: str
    has_pgaudit: bool
    system_identifier: str | None
    user: str


class Server:
    """One connection, opened when it is needed, kept between passes, reopened when broken."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection: Any = None
        self._lock = asyncio.Lock()

    async def rows(self, sql: str, *arguments: Any) -> Sequence[Any]:
        """The rows of a query.

        Raises:
            Unavailable: No connection, or no answer in time.
            Denied: Not allowed, or the reader functions are missing.
            Misconfigured: The DSN names no such database.
        """
        async with self._lock:
            connection = await self._open()
            try:
                with translated():
                    rows: Sequence[Any] = await connection.fetch(sql, *arguments)
                    return rows
            except Unavailable:
                # Whatever state it is in, a new one is safer; the next call opens it.
                self._drop()
                raise
            except asyncio.CancelledError:
                self._drop()
                raise

    async def value(self, sql: str, *arguments: Any) -> Any:
        """The first value of the first row, or None."""
        rows = await self.rows(sql, *arguments)
        return rows[0][0] if rows else None

    async def facts(self) -> Facts:
        """Ask the server about itself, and see that its log can be read.

        Raises:
            Misconfigured: Too old, or it logs in a way that is not read; names every setting.
            Denied: The reader functions are needed, and are missing or may not be called.
        """
        check_version(await self.value(VERSION_SQL))
        row = (await self.rows(FACTS_SQL))[0]
        pattern = None
        if self._settings.source == "reader":
            pattern = await self.value(LOG_FILENAME_SQL)
        faults = _faults(row, pattern)
        if faults:
            raise Misconfigured("; ".join(faults))
        return Facts(
            log_timezone=row["log_timezone"],
            has_pgaudit=row["has_pgaudit"],
            system_identifier=await self._system_identifier(),
            user=row["session_user_name"],
        )

    async def _system_identifier(self) -> str | None:
        try:
            return str(await self.value(SYSTEM_IDENTIFIER_SQL))
        except Denied:
            return None  # managed servers keep it to themselves

    @asynccontextmanager
    async def snapshot(self, database: str | None = None) -> AsyncIterator[Snapshot]:
        """A connection of its own in one repeatable-read, read-only transaction.

        Args:
            database: Where to connect; None for the DSN's.
        """
        connection = await self._connect(database)
        try:
            transaction = connection.transaction(isolation="repeatable_read", readonly=True)
            with translated():
                await transaction.start()
            # Nothing was written, so the end of the connection may end the transaction.
            yield Snapshot(connection)
        finally:
            await _close(connection)

    async def close(self) -> None:
        """Close the connection; the next query opens another."""
        async with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            await _close(connection)

    async def _open(self) -> Any:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect(None)
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def _connect(self, database: str | None) -> Any:
        settings = self._settings
        if settings.dsn is None:
            raise Misconfigured("dsn is missing: this needs a connection to the server")
        address = read_address(settings.dsn.get_secret_value(), "dsn")
        with translated():
            return await asyncpg.connect(
                address.dsn,
                database=database,
                timeout=address.connect_seconds or settings.connect_timeout.total_seconds(),
                command_timeout=settings.query_timeout.total_seconds(),
                # A pooler that stands between may send each statement to another server.
                statement_cache_size=0,
                server_settings={
                    **address.session,
                    # Whatever the address says: records of its own are known by it.
                    "application_name": settings.application_name,
                    "default_transaction_read_only": "on",
                },
                **address.arguments(),
            )


class Snapshot:
    """Queries that all see one state of one database."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def rows(self, sql: str) -> AsyncIterator[Any]:
        """The rows, streamed: memory holds a few hundred at a time."""
        with translated():
            async for row in self._connection.cursor(sql, prefetch=SNAPSHOT_PREFETCH):
                yield row

    async def value(self, sql: str) -> Any:
        """One value."""
        with translated():
            return await self._connection.fetchval(sql)


def check_version(version: int) -> None:
    """See that the server is new enough.

    Args:
        version: As server_version_num: 150018 is 15.18.

    Raises:
        Misconfigured: It is not.
    """
    if version < OLDEST_VERSION:
        raise Misconfigured(
            f"the server is PostgreSQL {version // 10_000}; jsonlog needs 15 or newer"
        )


def _faults(row: Any, log_filename: str | None) -> list[str]:
    """What keeps the log of a server with these settings from being read."""
    faults = []
    if row["logging_collector"] != "on":
        faults.append("the server's logging_collector is off: it writes no log files")
    destinations = {part.strip().lower() for part in row["log_destination"].split(",")}
    if "jsonlog" not in destinations:
        faults.append(
            f"the server's log_destination is {row['log_destination']}: it must contain jsonlog "
            "(csvlog and stderr are not read)"
        )
    if not is_english(row["lc_messages"]):
        faults.append(
            f"the server's lc_messages is {row['lc_messages']}: log messages must be in English (C)"
        )
    if log_filename is not None and not is_chronological(log_filename):
        faults.append(
            f"the server's log_filename is {log_filename}: names must sort by time, for example "
            "postgresql-%Y-%m-%d_%H%M%S.log"
        )
    return faults


def is_english(lc_messages: str) -> bool:
    """Whether a value of lc_messages leaves messages untranslated."""
    name = lc_messages.lower()
    return name in {"", "c", "posix", "c.utf-8", "c.utf8"} or name.startswith("en")


async def _close(connection: Any) -> None:
    try:
        await connection.close(timeout=CLOSE_SECONDS)
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()


@contextmanager
def translated() -> Iterator[None]:
    """Turn asyncpg's and the system's errors into Verity's.

    The server's own words are passed on only where they are known to hold no secret; a DSN never
    is part of them.
    """
    try:
        yield
    except VerityError:
        raise
    except (
        asyncpg.InvalidPasswordError,
        asyncpg.InvalidAuthorizationSpecificationError,
    ) as error:
        raise Denied(f"the server refused the login ({error.sqlstate}): {error.message}") from error
    except (asyncpg.UndefinedFunctionError, asyncpg.InvalidSchemaNameError) as error:
        raise Denied(f"the reader functions are missing: {SETUP_HINT}") from error
    except asyncpg.InsufficientPrivilegeError as error:
        message = error.message or "permission denied"
        is_reader = any(name in message for name in READER_NAMES)
        raise Denied(f"{message}: {SETUP_HINT}" if is_reader else message) from error
    except asyncpg.InvalidCatalogNameError as error:
        raise Misconfigured("dsn: the server has no such database") from error
    except asyncpg.ProtocolViolationError as error:
        raise Misconfigured(
            f"dsn: a pooler refuses: {error.message}; give the server's own address"
        ) from error
    except (
        asyncpg.UndefinedObjectError,
        asyncpg.CantChangeRuntimeParamError,
        asyncpg.InvalidParameterValueError,
    ) as error:
        refused = refused_parameter(error.message or "")
        raise Misconfigured(f"dsn: the server does not take {refused} ({error.sqlstate})") from None
    except ssl.SSLCertVerificationError as error:
        raise Denied("the server's certificate is not trusted") from error
    except asyncpg.ClientConfigurationError as error:
        # Its text may quote the DSN.
        raise Misconfigured("dsn: not understood") from error
    except asyncpg.PostgresError as error:
        raise Unavailable(
            f"the server answered {error.sqlstate}: {type(error).__name__}"
        ) from error
    except asyncpg.exceptions.TargetServerAttributeNotMatched as error:
        raise Unavailable("no host of the dsn fits its target_session_attrs") from error
    except asyncpg.InterfaceError as error:
        raise Unavailable("the connection to the server is broken") from error
    except TimeoutError as error:
        raise Unavailable("the server did not answer in time") from error
    except OSError as error:
        raise Unavailable(f"the server cannot be reached: {type(error).__name__}") from error
