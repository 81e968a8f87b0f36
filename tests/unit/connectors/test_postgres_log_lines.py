"""From the bytes of a log to events."""

# ruff: noqa: E501 - the tables read best with a case a line

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.postgres.log_lines import (
    LogContext,
    parse_line,
    parse_timestamp,
    split_lines,
    zone_of,
)
from verity_sdk.connector_base import RawEvent
from verity_sdk.errors import Malformed

PLAIN = LogContext(server="db1", system_identifier="42", own=("collector", "verity-stream/pg"))
PGAUDIT = replace(PLAIN, has_pgaudit=True)


def line(message: str, **changes: Any) -> bytes:
    record = {
        "timestamp": "2026-11-24 03:15:47.984 UTC",
        "user": "alice",
        "dbname": "shop",
        "pid": 4711,
        "remote_host": "10.0.0.9",
        "session_id": "6b050163.4246",
        "line_num": 3,
        "error_severity": "LOG",
        "message": message,
        "application_name": "psql",
        "backend_type": "client backend",
        **changes,
    }
    kept = {key: value for key, value in record.items() if value is not None}
    return json.dumps(kept, ensure_ascii=False).encode() + b"\n"


def events(data: bytes, context: LogContext = PLAIN) -> tuple[RawEvent, ...]:
    found = parse_line(data, "f.json:0", context)
    assert found.rejected is None, found.rejected
    return found.events


def audit(*fields: str) -> str:
    return "AUDIT: " + ",".join(fields)


def test_a_login_keeps_the_whole_record() -> None:
    data = line("connection authorized: user=alice database=shop")
    (event,) = events(data)
    assert event == RawEvent(
        platform="postgres",
        event_id="pg:42:6b050163.4246:3",
        occurred_at=datetime(2026, 11, 24, 3, 15, 47, 984000, UTC),
        principal_ref="pg:db1/role:alice",
        asset_ref="pg:db1/shop",
        operation="LOGIN",
        raw_payload={**json.loads(data), "verity": {}},
    )


@pytest.mark.parametrize(
    ("message", "changes", "operation", "asset"),
    [
        ("replication connection authorized: user=alice", {"backend_type": "walsender"}, "LOGIN", "pg:db1/shop"),
        ("disconnection: session time: 0:00:00.006 user=alice", {}, "LOGOUT", "pg:db1/shop"),
        ("password authentication failed", {"error_severity": "FATAL", "state_code": "28P01"}, "LOGIN_FAILED", "pg:db1/shop"),
        ('role "x" does not exist', {"error_severity": "FATAL", "state_code": "28000"}, "LOGIN_FAILED", "pg:db1/shop"),
        ('database "x" does not exist', {"error_severity": "FATAL", "state_code": "3D000", "dbname": "x"}, "LOGIN_FAILED", "pg:db1/x"),
        ("sorry, too many clients already", {"error_severity": "FATAL", "state_code": "53300"}, "LOGIN_FAILED", "pg:db1/shop"),
        ("the database system is starting up", {"error_severity": "FATAL", "state_code": "57P03", "ps": "startup"}, "LOGIN_FAILED", "pg:db1/shop"),
        ("terminating connection", {"error_severity": "FATAL", "state_code": "57P01"}, "ERROR", "pg:db1/shop"),
        ("division by zero", {"error_severity": "ERROR", "state_code": "22012"}, "ERROR", "pg:db1/shop"),
        ("permission denied for table secret", {"error_severity": "ERROR", "state_code": "42501"}, "DENIED", "pg:db1/shop/TABLE:secret"),
        ("permission denied for schema fin", {"error_severity": "ERROR", "state_code": "42501"}, "DENIED", "pg:db1/shop/SCHEMA:fin"),
        ("must be owner of view v", {"error_severity": "ERROR", "state_code": "42501"}, "DENIED", "pg:db1/shop/VIEW:v"),
        ("only a superuser may", {"error_severity": "ERROR", "state_code": "42501"}, "DENIED", "pg:db1/shop"),
        ("statement: select 1", {}, "READ.SELECT", "pg:db1/shop"),
        ("execute <unnamed>: select * from t", {}, "READ.SELECT", "pg:db1/shop/TABLE:t"),
        ("execute s1/p1: select * from t", {}, "READ.SELECT", "pg:db1/shop/TABLE:t"),
        ("duration: 0.125 ms  statement: delete from t", {}, "WRITE.DELETE", "pg:db1/shop/TABLE:t"),
        ("statement: grant a to b", {}, "ROLE.GRANT ROLE", "pg:db1/role:a"),
        ("statement: create database x", {}, "DDL.CREATE DATABASE", "pg:db1/x"),
        ("statement: security label for x", {}, "DDL.SECURITY", "pg:db1/shop"),
        ("statement: EXECUTE p(1)", {"detail": "prepare: PREPARE p (int) AS select * from t"}, "READ.SELECT", "pg:db1/shop/TABLE:t"),
    ],
)  # fmt: skip
def test_each_kind_of_line_is_one_event(
    message: str, changes: dict[str, Any], operation: str, asset: str
) -> None:
    (event,) = events(line(message, **changes))
    assert (event.operation, event.asset_ref) == (operation, asset)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("connection received: host=127.0.0.1", {"user": None, "backend_type": "not initialized"}),
        ('connection authenticated: identity="alice"', {}),
        ("parse s1: select * from t", {}),
        ("bind s1: select * from t", {}),
        ("execute fetch from s1: select * from t", {}),
        ("duration: 0.125 ms", {}),
        ("duration: 0.1 ms  parse s1: select * from t", {}),
        ("checkpoint complete: wrote 3 buffers", {"user": None, "backend_type": "checkpointer"}),
        ("automatic vacuum of table x", {"user": None, "backend_type": "autovacuum worker"}),
        ("division by zero", {"error_severity": "ERROR", "backend_type": "parallel worker"}),
        ("there is no transaction in progress", {"error_severity": "WARNING"}),
        ("statement: words of a warning", {"error_severity": "WARNING"}),
        ("a remark", {}),
    ],
)
def test_lines_of_no_audit_interest_are_passed_over(message: str, changes: dict[str, Any]) -> None:
    assert events(line(message, **changes)) == ()


def test_one_event_for_each_object_and_the_first_keeps_the_id_of_the_line() -> None:
    found = events(line("statement: insert into z select * from a, b"))
    assert [(e.event_id, e.operation, e.asset_ref) for e in found] == [
        ("pg:42:6b050163.4246:3", "READ.SELECT", "pg:db1/shop/TABLE:a"),
        ("pg:42:6b050163.4246:3:1", "READ.SELECT", "pg:db1/shop/TABLE:b"),
        ("pg:42:6b050163.4246:3:2", "WRITE.INSERT", "pg:db1/shop/TABLE:z"),
    ]


def test_a_statement_over_thousands_of_tables_stays_small() -> None:
    tables = ", ".join(f"t{number}" for number in range(5000))
    (event,) = events(line(f"statement: select 1 from {tables}"))
    assert event.asset_ref == "pg:db1/shop"
    assert len(event.raw_payload["verity"]["objects"]) == 5000


def test_what_was_not_parsed_says_so() -> None:
    (event,) = events(line("statement: select 'never closed"))
    assert event.raw_payload["verity"]["parsed"] is False


# pgaudit.


def test_an_audit_line_has_nine_fields_of_csv_with_quotes_and_newlines() -> None:
    message = audit("SESSION", "7", "1", "READ", "SELECT", "TABLE", '"fin.""order"""', '"select\n""x"", 1"', "<none>")  # fmt: skip
    (event,) = events(line(message), PGAUDIT)
    assert (event.operation, event.asset_ref) == ("READ.SELECT", 'pg:db1/shop/TABLE:fin."order"')
    assert event.raw_payload["message"] == message


@pytest.mark.parametrize(
    ("class_", "command", "statement", "operation", "assets"),
    [
        ("ROLE", "GRANT", '"grant select on a.t, b to bob"', "ROLE.GRANT", ["TABLE:a.t", "TABLE:b"]),
        ("ROLE", "CREATE ROLE", "create role bob login password <REDACTED>", "ROLE.CREATE ROLE", ["role:bob"]),
        ("DDL", "CREATE TABLE", "create table a.t as select * from x", "DDL.CREATE TABLE", ["TABLE:a.t"]),
        ("DDL", "CREATE TABLE", "create table a (); create table b ()", "DDL.CREATE TABLE", [""]),
        ("DDL", "CREATE TABLE", "create 'nonsense", "DDL.CREATE TABLE", [""]),
        ("READ", "SELECT", "select 1 from a", "READ.SELECT", [""]),
    ],
)  # fmt: skip
def test_an_audit_line_without_an_object_takes_it_from_a_single_statement(
    class_: str, command: str, statement: str, operation: str, assets: list[str]
) -> None:
    message = audit("SESSION", "1", "1", class_, command, "", "", statement, "<none>")
    found = events(line(message), PGAUDIT)
    assert {event.operation for event in found} == {operation}
    assert [event.asset_ref.removeprefix("pg:db1/").removeprefix("shop").lstrip("/") for event in found] == assets  # fmt: skip


def test_a_statement_is_never_counted_twice() -> None:
    """With pgaudit its lines count, without it those of log_statement: never both."""
    by_statement = line("statement: select * from t")
    by_audit = line(audit("SESSION", "1", "1", "READ", "SELECT", "TABLE", "t", "x", "<none>"))
    assert len(events(by_statement, PLAIN)) == len(events(by_audit, PGAUDIT)) == 1
    assert events(by_audit, PLAIN) == events(by_statement, PGAUDIT) == ()


def test_an_audit_line_may_have_any_level() -> None:
    message = audit("OBJECT", "1", "1", "READ", "SELECT", "TABLE", "t", "x", "<none>")
    assert len(events(line(message, error_severity="NOTICE"), PGAUDIT)) == 1


@pytest.mark.parametrize("message", ["AUDIT: SESSION,1", 'AUDIT: "never closed', "AUDIT: "])
def test_a_broken_audit_line_is_rejected(message: str) -> None:
    assert parse_line(line(message), "r", PGAUDIT).rejected is not None


# Whose records are dropped.


def test_own_records_are_dropped_by_role_and_application_name() -> None:
    own = {"user": "collector", "application_name": "verity-stream/pg"}
    assert events(line("statement: select * from t", **own)) == ()
    assert events(line("disconnection: session time: 0", **own)) == ()
    login = "connection authorized: user=collector database=shop application_name=verity-stream/pg"
    assert events(line(login, user="collector", application_name=None)) == ()
    assert events(line(f"{login} SSL enabled (x)", user="collector", application_name=None)) == ()


def test_whoever_else_uses_the_collectors_role_is_seen() -> None:
    assert len(events(line("statement: select * from t", user="collector"))) == 1
    login = "connection authorized: user=collector database=shop application_name=psql"
    assert len(events(line(login, user="collector", application_name=None))) == 1
    failed = line(
        "password authentication failed",
        user="collector",
        application_name="verity-stream/pg",
        error_severity="FATAL",
        state_code="28P01",
    )
    assert len(events(failed)) == 1


def test_excluded_users_and_other_databases_are_dropped() -> None:
    data = line("statement: select 1")
    assert events(data, replace(PLAIN, exclude_users=frozenset({"alice"}))) == ()
    assert events(data, replace(PLAIN, databases=frozenset({"other"}))) == ()
    assert len(events(data, replace(PLAIN, databases=frozenset({"shop"})))) == 1


def test_passwords_do_not_reach_the_payload() -> None:
    data = line(
        "statement: create role a password 's3cret'", statement="alter role a PASSWORD 's3cret'"
    )
    (event,) = events(data)
    assert "s3cret" not in json.dumps(event.raw_payload)
    (event,) = events(data, replace(PLAIN, redact_passwords=False))
    assert "s3cret" in json.dumps(event.raw_payload)


# Times.


@pytest.mark.parametrize(
    ("text", "zone", "expected"),
    [
        ("2026-11-24 03:15:47.984 UTC", "UTC", "2026-11-24T03:15:47.984Z"),
        ("2026-11-24 03:15:47.984 GMT", "UTC", "2026-11-24T03:15:47.984Z"),
        ("2026-07-01 12:00:00.000 CEST", "Europe/Berlin", "2026-07-01T10:00:00Z"),
        ("2026-11-24 12:00:00 CET", "Europe/Berlin", "2026-11-24T11:00:00Z"),
        # The repeated hour: the abbreviation tells its two halves apart.
        ("2026-10-25 02:30:00.000 CEST", "Europe/Berlin", "2026-10-25T00:30:00Z"),
        ("2026-10-25 02:30:00.000 CET", "Europe/Berlin", "2026-10-25T01:30:00Z"),
        # One abbreviation, three zones.
        ("2026-07-01 12:00:00.000 IST", "Asia/Kolkata", "2026-07-01T06:30:00Z"),
        ("2026-07-01 12:00:00.000 IST", "Europe/Dublin", "2026-07-01T11:00:00Z"),
        ("2026-01-01 12:00:00.000 IST", "Asia/Jerusalem", "2026-01-01T10:00:00Z"),
        ("2026-07-01 12:00:00.000 -03", "America/Sao_Paulo", "2026-07-01T15:00:00Z"),
        ("2026-07-01 12:00:00.000 +0545", "Asia/Kathmandu", "2026-07-01T06:15:00Z"),
        ("2026-07-01 12:00:00.000 +03", "<+03>-3", "2026-07-01T09:00:00Z"),
        # Lines from before log_timezone was set to Berlin.
        ("2026-07-01 12:00:00.000 UTC", "Europe/Berlin", "2026-07-01T12:00:00Z"),
    ],
)
def test_local_times_become_utc(text: str, zone: str, expected: str) -> None:
    assert parse_timestamp(text, zone_of(zone)) == datetime.fromisoformat(expected)


@pytest.mark.parametrize(
    "text",
    [
        "2026-07-01 12:00:00.000 CET",  # in July Berlin has CEST
        "2026-07-01 12:00:00.000 PST",
        "2026-13-01 12:00:00.000 UTC",
        "2026-07-01 24:00:00.000 UTC",
        "2026-07-01T12:00:00Z",
        "10000-01-01 00:00:00.000 UTC",
        "0001-01-01 00:00:00.000 +14",
        "2026-07-01 12:00:00.000",
        "",
    ],
)
def test_a_time_that_is_not_certain_is_none(text: str) -> None:
    with pytest.raises(Malformed):
        parse_timestamp(text, ZoneInfo("Europe/Berlin"))


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.datetimes(min_value=datetime(1996, 1, 1), max_value=datetime(2036, 1, 1)),  # noqa: DTZ001 - drawn naive
    st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"]),
)
def test_every_time_survives_the_way_through_the_log(naive: datetime, name: str) -> None:
    """Except where one hour repeats under one abbreviation, which these zones do not have."""
    zone = ZoneInfo(name)
    at = naive.replace(tzinfo=UTC, microsecond=naive.microsecond // 1000 * 1000)
    local = at.astimezone(zone)
    text = (
        local.strftime("%Y-%m-%d %H:%M:%S.") + f"{local.microsecond // 1000:03d} {local.tzname()}"
    )
    assert parse_timestamp(text, zone) == at


# Whatever the bytes are.


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"not json\n", "JSON"),
        (b"[1]\n", "object"),
        (b"{}\n", "timestamp"),
        (b"[" * 100_000 + b"\n", "JSON"),
        (line("connection authorized: x", line_num=None), "line_num"),
        (line("connection authorized: x", session_id=7), "session_id"),
        (line("x", error_severity=None), "error_severity"),
    ],
)
def test_a_line_that_is_not_understood_is_rejected_with_its_bytes(data: bytes, reason: str) -> None:
    found = parse_line(data, "f.json:17", PLAIN)
    assert found.events == ()
    assert found.rejected is not None
    assert found.rejected.data == data
    assert found.rejected.reference == "f.json:17"
    assert reason in found.rejected.reason


def test_a_byte_that_is_not_utf_8_does_not_hide_the_deed() -> None:
    """A database of SQL_ASCII logs whatever bytes its clients send."""
    (event,) = events(line("connection authorized: x").replace(b"alice", b"al\xefce"))
    assert (event.operation, event.principal_ref) == ("LOGIN", "pg:db1/role:al\udcefce")


def test_an_empty_line_is_nothing() -> None:
    assert parse_line(b"\n", "r", PLAIN).events == ()
    assert parse_line(b"\n", "r", PLAIN).rejected is None


@settings(deadline=None)  # a busy machine is no failure
@given(st.binary(max_size=400))
def test_any_bytes_become_events_or_a_rejected_record(data: bytes) -> None:
    found = parse_line(data + b"\n", "r", PGAUDIT)
    if data.strip():
        assert found.rejected is not None or found.logged_at is not None
    if found.rejected is not None:
        assert found.rejected.data == data + b"\n"


_VALUES = st.one_of(
    st.none(), st.text(max_size=30), st.integers(), st.lists(st.integers(), max_size=2)
)
_KEYS = st.sampled_from(
    [
        "timestamp",
        "user",
        "dbname",
        "session_id",
        "line_num",
        "error_severity",
        "message",
        "backend_type",
        "state_code",
        "detail",
        "statement",
        "application_name",
        "ps",
    ]
)


@settings(deadline=None)  # a busy machine is no failure
@given(st.dictionaries(_KEYS, _VALUES, max_size=6), st.booleans())
def test_any_record_becomes_events_or_a_rejected_record(
    changes: dict[str, Any], has_pgaudit: bool
) -> None:
    data = line(**{"message": "statement: select 1", **changes})
    found = parse_line(data, "r", replace(PLAIN, has_pgaudit=has_pgaudit))
    for event in found.events:
        assert event.occurred_at.utcoffset() == timedelta(0)
        assert event.event_id.startswith("pg:42:")


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.lists(st.binary(max_size=20).filter(lambda part: b"\n" not in part)), st.binary(max_size=9)
)
def test_splitting_loses_no_byte(parts: list[bytes], rest: bytes) -> None:
    rest = rest.replace(b"\n", b"")
    data = b"".join(part + b"\n" for part in parts) + rest
    lines, end = split_lines(data)
    assert b"".join(lines) + data[end:] == data
    assert len(lines) == len(parts)
