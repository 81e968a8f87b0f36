"""The one module that speaks TDS: a driver that blocks, in a thread, as an extra.

Never run against a server: no Synapse pool was at hand. What comes of the rows is in
`sql_grants`, and tested.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping
from typing import Any

from connectors.synapse.sql_grants import (
    MEMBERS_SQL,
    PERMISSIONS_SQL,
    PRINCIPALS_SQL,
    SCHEMAS_SQL,
    SqlCatalog,
)
from verity_sdk.errors import Misconfigured, Unavailable

DRIVER = "mssql_python"
EXTRA = "synapse-sql"


def load_driver() -> Any:
    """The driver's module.

    Raises:
        Misconfigured: It is not installed.
    """
    try:
        return importlib.import_module(DRIVER)
    except ImportError as error:
        raise Misconfigured(
            "sql_pools and serverless_databases need the extra `synapse-sql`: "
            f"pip install verity-stream[{EXTRA}]"
        ) from error


async def read_catalog(
    server: str, database: str, credential: Mapping[str, str], timeout_seconds: float
) -> SqlCatalog:
    """Read one database's catalog.

    The thread can't be stopped: after the timeout it is left to the driver's own.

    Raises:
        Misconfigured: The driver is not installed.
        Unavailable: It can't be read: the pool is paused, the login is refused, the time is up.
            The message names the database and the driver's kind of error, not its text, which
            may quote the connection string.
    """
    driver = load_driver()
    try:
        async with asyncio.timeout(timeout_seconds):
            return await asyncio.to_thread(
                _read, driver, server, database, credential, timeout_seconds
            )
    except TimeoutError as error:
        raise Unavailable(f"{server}/{database}: no answer in {timeout_seconds:g} s") from error


def connection_string(server: str, database: str, credential: Mapping[str, str]) -> str:
    """The driver's connection string; it holds the secret."""
    parts = {
        "Server": f"tcp:{server},1433",
        "Database": database,
        "Encrypt": "yes",
        "TrustServerCertificate": "no",
        **credential,
    }
    return "".join(f"{key}={value};" for key, value in parts.items())


def _read(
    driver: Any,
    server: str,
    database: str,
    credential: Mapping[str, str],
    timeout_seconds: float,
) -> SqlCatalog:
    try:
        connection = driver.connect(
            connection_string(server, database, credential),
            autocommit=True,
            timeout=max(1, int(timeout_seconds)),
        )
        try:
            return SqlCatalog(
                principals=_rows(connection, PRINCIPALS_SQL),
                members=_rows(connection, MEMBERS_SQL),
                permissions=_rows(connection, PERMISSIONS_SQL),
                schemas=_rows(connection, SCHEMAS_SQL),
            )
        finally:
            connection.close()
    except Exception as error:  # noqa: BLE001 - a driver's errors are its own, and stay in this file
        # `from None`: the driver's text, and its traceback's, may hold the connection string.
        raise Unavailable(
            f"{server}/{database}: {type(error).__name__}; the pool may be paused, or the "
            "identity no user of the database (CREATE USER … FROM EXTERNAL PROVIDER, "
            "GRANT VIEW DEFINITION)"
        ) from None


def _rows(connection: Any, sql: str) -> list[dict[str, Any]]:
    cursor = connection.cursor()
    try:
        cursor.execute(sql)
        columns = [column[0] for column in cursor.description]
        return [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]
    finally:
        cursor.close()
