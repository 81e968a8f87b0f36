"""PostgreSQL's log from Log Analytics: what a row says, and a pass over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from fakes.kit import Clock, Fault, serving
from fakes.synapse import CLIENT_ID, CLIENT_SECRET, SUBSCRIPTION, TENANT, WORKSPACE_ID, SynapseFake
from fakes.world import World
from hypothesis import given
from hypothesis import strategies as st

from connectors._azure.log_analytics import IngestedRow
from connectors.postgres import PostgresConnector, Settings
from connectors.postgres.files import place_of
from connectors.postgres.log_analytics import events_of
from connectors.postgres.log_lines import LogContext
from connectors.postgres.log_prefix import DEFAULT_PREFIX, TABLE, compiled, jsonlog_line
from verity_sdk.context import Context
from verity_sdk.errors import Denied, Malformed, Misconfigured
from verity_sdk.pages import Page, Position, SnapshotGap

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SERVER = (
    f"/subscriptions/{SUBSCRIPTION}/resourceGroups/rg-data"
    "/providers/Microsoft.DBforPostgreSQL/flexibleServers/db1"
)
PATTERN = compiled(DEFAULT_PREFIX)
CONTEXT = LogContext(server="db1", system_identifier="sys", has_pgaudit=True)
HEAD = "2026-11-24 09:59:58.123 UTC|6b050163.4246|7|alice|shop|"


def row(message: Any = HEAD + "LOG:  connection authorized: user=alice", **columns: Any) -> Any:
    record = {"Message": message, "BackendType": "client backend", "SqlErrorCode": "00000"}
    return IngestedRow(TABLE, "2026-11-24T10:00:00Z", NOW, record | columns)


def line(message: str, **columns: Any) -> dict[str, Any]:
    data = jsonlog_line(row(message, **columns), PATTERN)
    assert data is not None
    found: dict[str, Any] = orjson.loads(data)
    return found


class TestPrefix:
    @pytest.mark.parametrize(
        ("prefix", "text"),
        [
            (DEFAULT_PREFIX, HEAD),
            ("%t-%c-%l-%u-%d-", "2026-11-24 09:59:58 UTC-6b050163.4246-7-alice-shop-"),
            ("%m [%p] %c:%l %q%u@%d (%a) %%", HEAD),
            ("", ""),
        ],
    )
    def test_it_is_read_as_the_server_writes_it(self, prefix: str, text: str) -> None:
        if not prefix:
            with pytest.raises(ValueError, match="%c, %l, %u, %d, %m"):
                compiled(prefix)
            return
        if "%q" in prefix:
            text = "2026-11-24 09:59:58.1 UTC [42] 6b050163.4246:7 alice@shop (psql) %"
        match = compiled(prefix).fullmatch(text + "LOG:  hello\nworld")
        assert match is not None
        found = match.groupdict()
        assert (found["session_id"], found["line_num"]) == ("6b050163.4246", "7")
        assert (found["user"], found["dbname"]) == ("alice", "shop")
        assert (found["level"], found["message"]) == ("LOG", "hello\nworld")

    @pytest.mark.parametrize(
        "prefix", ["%t-%c-", "%m%c%l%u", "%m%c%l%u%d%z", "%m%c%l%u%d%u", "%m%c%l%u%d%", "%c%l%u%d"]
    )
    def test_one_that_lacks_or_has_too_much_is_refused(self, prefix: str) -> None:
        with pytest.raises(ValueError, match="log_line_prefix"):
            compiled(prefix)

    def test_behind_q_a_process_without_a_session_has_no_role(self) -> None:
        pattern = compiled("%m %q%c %l %u %d ")
        entry = row("2026-11-24 09:59:58.123 UTC LOG:  checkpoint starting: time")
        assert jsonlog_line(entry, pattern) is None


class TestRows:
    def test_a_row_becomes_the_line_that_jsonlog_would_have(self) -> None:
        found = line(
            HEAD + 'FATAL:  password authentication failed for user "alice"\n',
            SqlErrorCode="28P01",
            Detail="Connection matched",
            _ResourceId=SERVER,
        )
        assert found == {
            "timestamp": "2026-11-24 09:59:58.123 UTC",
            "session_id": "6b050163.4246",
            "line_num": 7,
            "error_severity": "FATAL",
            "message": 'password authentication failed for user "alice"',
            "user": "alice",
            "dbname": "shop",
            "detail": "Connection matched",
            "state_code": "28P01",
            "backend_type": "client backend",
            "log_analytics": {
                "ingested_at": "2026-11-24T12:00:00.000000Z",
                "BackendType": "client backend",
                "_ResourceId": SERVER,
            },
        }

    def test_who_is_not_known_yet_is_not_there(self) -> None:
        head = HEAD.replace("|alice|shop|", "|[unknown]|[unknown]|")
        found = line(head + "LOG:  connection received: host=10.1.2.3", BackendType=None)
        assert not {"user", "dbname", "backend_type"} & set(found)

    def test_no_column_is_lost(self) -> None:
        columns = {"Detail": "d", "DetailLog": "e", "Statement": "s", "Query": "q", "Context": "c"}
        found = line(HEAD + "LOG:  x", **columns, Hint="h")
        assert found["detail"] == "d\ne"
        keys = ("statement", "internal_query", "context")
        assert [found[key] for key in keys] == ["s", "q", "c"]
        assert found["log_analytics"]["Hint"] == "h"
        assert line(HEAD + "LOG:  x", Detail="d", DetailLog="d")["detail"] == "d"

    def test_events_are_those_of_the_servers_own_log(self) -> None:
        audit = "AUDIT: SESSION,1,1,READ,SELECT,TABLE,fin.salary,select 1,<not logged>"
        entries = [
            row(),
            row(HEAD.replace("|7|", "|8|") + f"LOG:  {audit}"),
            row(HEAD.replace("|7|", "|9|") + "ERROR:  permission denied", SqlErrorCode="42501"),
            row(HEAD.replace("|7|", "|10|") + "STATEMENT:  select 1"),
            row("2026-11-24 09:59:58.123 UTC|6b050163.4246|7|[unknown]|[unknown]|LOG:  x"),
        ]
        events, rejected = events_of(entries, PATTERN, CONTEXT)
        assert not rejected
        assert [(event.event_id, event.operation, event.asset_ref) for event in events] == [
            ("pg:sys:6b050163.4246:7", "LOGIN", "pg:db1/shop"),
            ("pg:sys:6b050163.4246:8", "READ.SELECT", "pg:db1/shop/TABLE:fin.salary"),
            ("pg:sys:6b050163.4246:9", "DENIED", "pg:db1/shop"),
        ]
        assert {event.principal_ref for event in events} == {"pg:db1/role:alice"}
        assert events[0].occurred_at == datetime(2026, 11, 24, 9, 59, 58, 123000, tzinfo=UTC)

    def test_a_password_stands_nowhere(self) -> None:
        text = "statement: ALTER ROLE bob PASSWORD 'very-secret'"
        context = LogContext(server="db1", system_identifier="sys", has_pgaudit=False)
        entry = row(HEAD + f"LOG:  {text}", Statement=text, Query=text, DetailLog=text)
        events, _ = events_of([entry], PATTERN, context)
        assert events
        assert "very-secret" not in repr(events)

    @pytest.mark.parametrize(
        "message",
        [None, 7, "", "LOG:  no prefix", HEAD + "no level", HEAD.replace("6b05", "zz") + "LOG:  x"],
    )
    def test_what_does_not_fit_the_prefix_is_kept(self, message: Any) -> None:
        entry = row(message)
        events, rejected = events_of([entry, row()], PATTERN, CONTEXT)
        assert len(events) == 1
        assert [orjson.loads(one.data) for one in rejected] == [entry.record]
        with pytest.raises(Malformed):
            jsonlog_line(entry, PATTERN)

    def test_a_time_that_is_none_is_kept_with_the_row(self) -> None:
        entry = row(HEAD.replace("-24 ", "-44 ") + "LOG:  connection authorized: user=alice")
        events, rejected = events_of([entry], PATTERN, CONTEXT)
        assert not events
        assert orjson.loads(rejected[0].data) == entry.record

    @given(
        st.text() | st.text().map(lambda text: HEAD + "LOG:  " + text),
        st.dictionaries(st.sampled_from(["Detail", "SqlErrorCode", "BackendType"]), st.text()),
    )
    def test_any_message_becomes_events_or_a_rejected_record(
        self, message: str, columns: dict[str, str]
    ) -> None:
        _, rejected = events_of([row(message, **columns)], PATTERN, CONTEXT)
        assert len(rejected) <= 1


@pytest.fixture
def served() -> Iterator[tuple[SynapseFake, str]]:
    fake = SynapseFake(World(now=NOW), Clock(NOW))
    fake.tables.clear()
    with serving(fake.app) as url:
        yield fake, url


def table(url: str, **others: Any) -> dict[str, Any]:
    workspace = {
        "tenant_id": TENANT,
        "client_id": CLIENT_ID,
        "client_secret": CLIENT_SECRET,
        "workspace_id": WORKSPACE_ID,
        "resource_id": SERVER,
        "login_url": f"{url}/login",
        "url": f"{url}/loganalytics",
        "retention": "2d",
        "rows_max": 5,
    }
    return {
        "connector_id": "pg",
        "source": "log_analytics",
        "server": "db1",
        "statements": "pgaudit",
        "log_analytics": workspace | others,
    }


def connector_of(fake: SynapseFake, url: str) -> PostgresConnector:
    return Context(fake.clock).construct(PostgresConnector, table(url))


def add(fake: SynapseFake, number: int, at: datetime, ingested_at: datetime) -> str:
    stamp = at.strftime("%Y-%m-%d %H:%M:%S.000 UTC")
    text = f"{stamp}|6b050163.4246|{number}|alice|shop|LOG:  connection authorized: user=alice"
    record = {"Message": text, "BackendType": "client backend", "_ResourceId": SERVER.lower()}
    fake.add_row(TABLE, record, generated_at=at, ingested_at=ingested_at)
    return f"pg:db1:6b050163.4246:{number}"


async def pages_of(connector: PostgresConnector, position: Position) -> list[Page]:
    try:
        return [page async for page in connector.fetch_pages(position)]
    finally:
        await connector.close()


class TestPasses:
    async def test_all_that_came_in_is_read_and_late_rows_are_found(
        self, served: tuple[SynapseFake, str]
    ) -> None:
        fake, url = served
        at = NOW - timedelta(hours=1)
        ids = [add(fake, n, at, at + timedelta(seconds=n % 4)) for n in range(20)]
        position = Position(NOW - timedelta(hours=3))
        pages = await pages_of(connector_of(fake, url), position)
        assert sorted(e.event_id for page in pages for e in page.events) == sorted(ids)
        cursor = pages[-1].cursor
        late = add(fake, 77, NOW - timedelta(hours=47), NOW + timedelta(minutes=1))
        fake.clock.advance(timedelta(minutes=10))
        pages = await pages_of(connector_of(fake, url), Position(position.since, cursor))
        assert [e.event_id for page in pages for e in page.events] == [late]

    async def test_no_repeat_is_older_than_what_is_remembered_without_a_lookback(
        self, served: tuple[SynapseFake, str]
    ) -> None:
        fake, url = served
        assert PostgresConnector.lookback == timedelta(0)
        lag = timedelta(days=2)
        ingested_at = NOW - timedelta(minutes=6)
        again = add(fake, 1, ingested_at - lag, ingested_at)
        connector = Context(fake.clock).construct(PostgresConnector, table(url, retention="9d"))
        position = Position(NOW - timedelta(hours=1))
        first = await pages_of(connector, position)
        fake.clock.advance(timedelta(minutes=9))
        second = await pages_of(connector, Position(position.since, first[-1].cursor))
        repeats = [event for page in second for event in page.events]
        assert [event.event_id for event in repeats] == [again]
        # The relay forgets what lies before the watermark, which is this.
        assert first[-1].complete_through is not None
        assert all(event.occurred_at > first[-1].complete_through for event in repeats)

    async def test_a_server_that_is_down_is_not_asked(
        self, served: tuple[SynapseFake, str]
    ) -> None:
        fake, url = served
        ours = add(fake, 1, NOW - timedelta(hours=1), NOW - timedelta(hours=1))
        config = table(url) | {"dsn": "postgresql://a:b@127.0.0.1:1/shop"}
        connector = Context(fake.clock).construct(PostgresConnector, config)
        pages = await pages_of(connector, Position(NOW - timedelta(hours=2)))
        assert [event.event_id for page in pages for event in page.events] == [ours]

    async def test_check_names_the_diagnostic_setting_and_the_role(
        self, served: tuple[SynapseFake, str]
    ) -> None:
        fake, url = served
        connector = connector_of(fake, url)
        with pytest.raises(Misconfigured, match="PostgreSQLLogs"):
            await connector.check()
        fake.tables.add(TABLE)
        await connector.check()
        fake.roles.clear()
        with pytest.raises(Denied, match="Log Analytics Reader"):
            await connector.check()
        await connector.close()

    async def test_without_a_dsn_there_is_no_snapshot(
        self, served: tuple[SynapseFake, str]
    ) -> None:
        fake, url = served
        parts = [part async for part in connector_of(fake, url).snapshot_permissions()]
        assert len(parts) == 1
        assert isinstance(parts[0], SnapshotGap)

    async def test_a_refused_credential_is_denied_without_the_secret(
        self, served: tuple[SynapseFake, str]
    ) -> None:
        fake, url = served
        fake.faults.inject(Fault.CREDENTIAL_REFUSED)
        connector = connector_of(fake, url)
        with pytest.raises(Denied) as error:
            await connector.check()
        await connector.close()
        assert CLIENT_SECRET not in str(error.value)

    async def test_a_cursor_of_another_source_is_refused_not_taken_for_a_start(
        self, served: tuple[SynapseFake, str]
    ) -> None:
        fake, url = served
        with pytest.raises(Misconfigured):
            await pages_of(
                connector_of(fake, url), Position(NOW, {"v": 1, "file": "a.json", "offset": 0})
            )
        with pytest.raises(Misconfigured):
            place_of({"v": 1, "streams": {}})


class TestSettings:
    def test_the_least_that_is_needed(self) -> None:
        settings = Settings.model_validate(table("http://127.0.0.1:1"))
        assert settings.log_analytics is not None
        assert CLIENT_SECRET not in repr(settings)

    @pytest.mark.parametrize(
        ("changes", "fault"),
        [
            ({"log_analytics": None}, "log_analytics is for source"),
            ({"source": "reader", "dsn": "postgresql://a:b@c/d"}, "log_analytics is for source"),
            ({"statements": "auto", "dsn": "postgresql://a:b@c/d"}, "statements must be"),
            ({"log_directory": "/logs"}, "log_directory is for"),
            ({"server": ""}, "server is missing"),
        ],
    )
    def test_faults_name_the_setting(self, changes: dict[str, Any], fault: str) -> None:
        config = {k: v for k, v in (table("https://x.example") | changes).items() if v is not None}
        with pytest.raises(Misconfigured, match=fault) as error:
            PostgresConnector(config, None, None)
        assert CLIENT_SECRET not in str(error.value)

    @pytest.mark.parametrize(
        "others",
        [{"log_line_prefix": "%t-%c-"}, {"resource_id": "x"}, {"workspace_id": "x"}, {"x": 1}],
    )
    def test_faults_of_the_workspace(self, others: dict[str, Any]) -> None:
        with pytest.raises(Misconfigured, match=next(iter(others))):
            PostgresConnector(table("https://x.example", **others), None, None)
