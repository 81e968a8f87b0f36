"""Settings, the installer and what of both may be said aloud."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from connectors.postgres import PostgresConnector, Settings
from connectors.postgres.command import postgres_setup
from connectors.postgres.log_reader import LogDirectory
from connectors.postgres.server import is_english, translated
from connectors.postgres.setup import setup_sql
from verity_sdk.errors import Denied, Misconfigured, Unavailable, VerityError
from verity_sdk.pages import Position, SnapshotGap

DSN = "postgresql://collector:very-secret@db1.example/postgres"
READER: dict[str, Any] = {"connector_id": "pg", "dsn": DSN}


def test_the_least_that_is_needed() -> None:
    settings = Settings.model_validate(READER)
    assert settings.server_name == "db1.example:5432"
    assert settings.application_name == "verity-stream/pg"
    assert "very-secret" not in repr(settings)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"dsn": None}, "dsn is missing"),
        ({"dsn": "very-secret"}, "no PostgreSQL address"),
        ({"dsn": "mysql://a:very-secret@b/c"}, "must begin with postgresql://"),
        ({"dsn": "postgresql://a:very-secret@b:port/c"}, "percent-encoded"),
        ({"dsn": "postgresql://a:very-secret@b/c?gssencmode=require"}, "gssencmode"),
        ({"dsn": "postgresql://a:very-secret@/c"}, "names no host"),
        ({"sauce": "directory"}, "sauce"),
        ({"source": "directory"}, "log_directory is missing"),
        ({"source": "directory", "dsn": None, "log_directory": "/logs"}, "server is missing"),
        (
            {"source": "directory", "dsn": None, "log_directory": "/logs", "server": "db1"},
            "statements must be",
        ),
        ({"page_records": 0}, "page_records"),
        ({"page_records": "10"}, "page_records"),
        ({"query_timeout": "soon"}, "query_timeout"),
        ({"query_timeout": 0}, "query_timeout"),
        ({"server": "a/b"}, "server"),
        ({"connector_id": ""}, "connector_id"),
    ],
)
def test_faults_name_the_setting_and_never_the_password(
    changes: dict[str, Any], fault: str
) -> None:
    table = {key: value for key, value in {**READER, **changes}.items() if value is not None}
    with pytest.raises(Misconfigured, match=fault) as raised:
        PostgresConnector(table, None, None)
    assert "very-secret" not in str(raised.value)
    with pytest.raises(ValidationError) as direct:
        Settings.model_validate(table)
    assert "very-secret" not in str(direct.value)


def test_a_directory_needs_no_dsn() -> None:
    connector = PostgresConnector(
        {
            "connector_id": "pg",
            "source": "directory",
            "log_directory": "/logs",
            "server": "db1",
            "statements": "log_statement",
            "query_timeout": "5s",
        },
        None,
        None,
    )
    assert connector.settings.log_directory == Path("/logs")
    assert connector.settings.query_timeout == timedelta(seconds=5)


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


async def test_a_directory_without_jsonlog_is_refused_by_name(tmp_path: Path) -> None:
    reader = LogDirectory(tmp_path, lambda: datetime.now(UTC))
    assert await reader.list_files() == []
    (tmp_path / "postgresql-2026.csv").write_text("x")
    with pytest.raises(Misconfigured, match="log_destination"):
        await reader.list_files()
    with pytest.raises(Misconfigured, match="log_directory"):
        await LogDirectory(tmp_path / "none", lambda: datetime.now(UTC)).list_files()


async def test_a_directory_is_never_left(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("x")
    reader = LogDirectory(tmp_path / "log", lambda: datetime.now(UTC))
    assert await reader.read("../secret.json", 0, 10) is None


async def test_without_a_dsn_a_snapshot_is_one_gap(tmp_path: Path) -> None:
    connector = PostgresConnector(
        {
            "connector_id": "pg",
            "source": "directory",
            "log_directory": str(tmp_path),
            "server": "db1",
            "statements": "log_statement",
        },
        None,
        None,
    )
    (only,) = [row async for row in connector.snapshot_permissions()]
    assert isinstance(only, SnapshotGap)


async def test_an_unreachable_server_is_unavailable_and_says_no_secret() -> None:
    connector = PostgresConnector(
        {**READER, "dsn": "postgresql://collector:very-secret@127.0.0.1:1/postgres"}, None, None
    )
    with pytest.raises(Unavailable) as raised:
        async for _ in connector.fetch_pages(Position(since=datetime.now(UTC))):
            pass
    assert "very-secret" not in str(raised.value)
    await connector.close()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (asyncpg.InvalidPasswordError("x"), Denied),
        (asyncpg.InvalidAuthorizationSpecificationError("x"), Denied),
        (asyncpg.InsufficientPrivilegeError("x"), Denied),
        (asyncpg.UndefinedFunctionError("x"), Denied),
        (asyncpg.InvalidSchemaNameError("x"), Denied),
        (asyncpg.InvalidCatalogNameError("x"), Misconfigured),
        (asyncpg.TooManyConnectionsError("x"), Unavailable),
        (asyncpg.CannotConnectNowError("x"), Unavailable),
        (asyncpg.AdminShutdownError("x"), Unavailable),
        (asyncpg.QueryCanceledError("x"), Unavailable),
        (asyncpg.ConnectionDoesNotExistError("x"), Unavailable),
        (asyncpg.InterfaceError("x"), Unavailable),
        (asyncpg.ClientConfigurationError("postgresql://very-secret"), Misconfigured),
        (ConnectionRefusedError("x"), Unavailable),
        (TimeoutError("x"), Unavailable),
        (Unavailable("x"), Unavailable),
    ],
)
def test_foreign_errors_become_ours(error: Exception, expected: type[VerityError]) -> None:
    with pytest.raises(expected) as raised, translated():
        raise error
    assert "very-secret" not in str(raised.value)


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(ZeroDivisionError), translated():
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("name", "expected"),
    [("C", True), ("", True), ("POSIX", True), ("en_US.UTF-8", True), ("de_DE.UTF-8", False)],
)
def test_messages_must_be_in_english(name: str, expected: bool) -> None:
    assert is_english(name) is expected


def test_the_installer_quotes_the_role() -> None:
    sql = setup_sql("o'\"Brien\\ {role}")
    assert 'TO "o\'""Brien\\ {role}";' in sql
    assert "'verity.collector', E'o''\"Brien\\\\ {role}', true" in sql
    assert "{role_literal}" not in sql


@pytest.mark.parametrize("role", ["", "x" * 64, "ä" * 32, "a\nb", "a\0b", "pg_x", "public", "none"])
def test_the_installer_refuses_names_that_no_role_can_have(role: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the type is the promise
        setup_sql(role)


def test_the_command_prints_the_installer() -> None:
    result = CliRunner().invoke(postgres_setup, ["--role", "reader"])
    assert result.exit_code == 0
    assert result.output == setup_sql("reader")
    assert CliRunner().invoke(postgres_setup, ["--role", "pg_x"]).exit_code == 2
