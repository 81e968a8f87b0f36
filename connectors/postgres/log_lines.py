"""From the bytes of a jsonlog file to audit events: pure functions, no I/O.

PostgreSQL writes one JSON object a line (log_destination = jsonlog, PostgreSQL ≥ 15;
documentation of PostgreSQL 18, "Error Reporting and Logging", and servers 15.18, 16.14 and
18.4, read 2026-11-24). A line becomes events, or nothing by rule, or a rejected record.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from connectors.postgres.references import asset_ref, quoted, role_ref
from connectors.postgres.settings import PLATFORM
from connectors.postgres.statements import Statement, Touch, first_word, redacted, touched
from verity_sdk.connector_base import RawEvent
from verity_sdk.errors import Malformed
from verity_sdk.pages import RejectedRecord
from verity_sdk.values import loads

DERIVED_KEY = "verity"

# Who acts on behalf of a role. The rest (checkpointer, autovacuum, …) has no one to audit, and
# what a parallel worker reports its leader reports too.
SESSION_BACKENDS = frozenset(
    {"client backend", "walsender", "background worker", "standalone backend"}
)
# SQLSTATEs of a FATAL that end an attempt to log in: wrong password, no such role or not allowed
# by pg_hba.conf, no such database, no CONNECT privilege, database takes no connections, too many
# connections (documentation of PostgreSQL 18, appendix A, read 2026-11-24).
LOGIN_FAILED_STATES = frozenset({"28P01", "28000", "3D000", "42501", "55000", "53300"})
LOGIN_PHASES = frozenset({"startup", "authentication"})
DENIED_STATE = "42501"
OBJECTS_MAX = 100

_TIMESTAMP = re.compile(r"(\d{4,5})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))? (\S{1,40})")
_OFFSET = re.compile(r"([+-])(\d\d):?(\d\d)?(?::?(\d\d))?")
_DURATION = re.compile(r"duration: [0-9.]+ ms  ")
_EXECUTE = re.compile(r"execute (?!fetch from )(.{1,200}?): ", re.DOTALL)
_PREPARE_DETAIL = "prepare: "
_PREPARED = re.compile(r"\bAS\b", re.IGNORECASE)
_APPLICATION_NAME = re.compile(r" application_name=(.*?)(?: SSL enabled| GSS |$)", re.DOTALL)
_DENIED = re.compile(
    r"(?:permission denied for|must be owner of) "
    r"(table|view|materialized view|foreign table|sequence|schema|function|procedure|database"
    r"|language|type|domain|tablespace|foreign-data wrapper|foreign server|large object"
    r'|parameter|relation) "?(.+?)"?',
    re.DOTALL,
)
_DENIED_KINDS = {"FOREIGN-DATA WRAPPER": "FOREIGN DATA WRAPPER", "RELATION": "TABLE"}
# Keys that are text where they are present; absent ones have no value.
_TEXTS = (
    *("timestamp", "user", "dbname", "session_id", "ps", "error_severity", "state_code"),
    *("message", "detail", "application_name", "backend_type"),
)
_AUDIT = "AUDIT: "
_AUDIT_FIELDS = 9
_UTC_NAMES = frozenset({"UTC", "GMT", "Z", "UCT"})


@dataclass(frozen=True, slots=True)
class LogContext:
    """What a line does not say itself.

    Attributes:
        server: The server's name in references.
        system_identifier: The cluster's identity in event ids.
        zone: The zone of log_timezone; None where only UTC and numeric zones are understood.
        has_pgaudit: Whether pgaudit's lines say what was done; else those of log_statement.
        statement_bytes: The longest statement whose objects are looked for.
        databases: Only these, or None for all.
        exclude_users: Roles whose records are dropped.
        own: Role and application name of this connector itself, or None.
        redact_passwords: Whether passwords in statements are replaced.
    """

    server: str
    system_identifier: str
    zone: tzinfo | None = UTC
    has_pgaudit: bool = False
    statement_bytes: int = 64 * 1024
    databases: frozenset[str] | None = None
    exclude_users: frozenset[str] = frozenset()
    own: tuple[str, str] | None = None
    redact_passwords: bool = True


@dataclass(frozen=True, slots=True)
class Line:
    """What became of one line.

    Attributes:
        events: Its events; empty for a line without audit interest.
        rejected: Set instead of events where the line was not understood.
        logged_at: When it was logged, aware UTC; None where it was not understood.
    """

    events: tuple[RawEvent, ...] = ()
    rejected: RejectedRecord | None = None
    logged_at: datetime | None = None


def split_lines(data: bytes) -> tuple[list[bytes], int]:
    """The complete lines in `data`, each with its newline, and how many bytes they are.

    Bytes are split before they are decoded: a chunk may end inside a character.
    """
    end = data.rfind(b"\n") + 1
    # bytes.splitlines would also split at a bare carriage return.
    return [line + b"\n" for line in data[:end].split(b"\n")[:-1]], end


def parse_line(line: bytes, reference: str, context: LogContext) -> Line:
    """What one line of the log says.

    Never raises: what is not understood is a rejected record with the line's bytes.
    """
    stripped = line.strip()
    if not stripped:
        return Line()
    try:
        record = _record(stripped)
        logged_at = parse_timestamp(_text(record, "timestamp"), context.zone)
        return Line(tuple(_events(record, logged_at, context)), logged_at=logged_at)
    except Malformed as error:
        return Line(rejected=RejectedRecord(line, str(error), reference))


def logged_at(line: bytes, zone: tzinfo | None) -> datetime | None:
    """When a line was logged, or None where it does not say."""
    try:
        return parse_timestamp(_text(_record(line.strip()), "timestamp"), zone)
    except Malformed:
        return None


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = loads(line)
    except ValueError as error:
        raise Malformed("not JSON") from error
    if not isinstance(record, dict):
        raise Malformed("JSON, but not an object")
    for key in _TEXTS:
        if not isinstance(record.get(key, ""), str):
            raise Malformed(f"no text under `{key}`")
    return record


def _text(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise Malformed(f"no text under `{key}`")
    return value


def parse_timestamp(text: str, zone: tzinfo | None) -> datetime:
    """The time of a log line, aware UTC.

    PostgreSQL writes local time and the zone's abbreviation, which alone is ambiguous (IST). So
    UTC and numeric zones are taken as they are, and any other abbreviation must be one that
    `zone` has at that time: then it also tells the two halves of the repeated hour apart when
    daylight saving ends. Where both halves have one abbreviation the earlier is taken.

    Raises:
        Malformed: No such form, no such time, or an abbreviation that log_timezone does not
            have then (it was changed: better no time than a wrong one).
    """
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise Malformed("`timestamp` has no known form")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    microsecond = int((match[7] or "").ljust(6, "0"))
    try:
        local = datetime(year, month, day, hour, minute, second, microsecond)  # noqa: DTZ001 - the zone comes next
        offset = _fixed_offset(match[8])
        if offset is not None:
            return local.replace(tzinfo=offset).astimezone(UTC)
        if zone is not None:
            for fold in (0, 1):
                aware = local.replace(tzinfo=zone, fold=fold)
                if aware.tzname() == match[8]:
                    return aware.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Malformed("`timestamp` is no time") from error
    raise Malformed(f"`timestamp` has zone {match[8]!r}, which log_timezone does not have then")


def _fixed_offset(name: str) -> tzinfo | None:
    if name in _UTC_NAMES:
        return UTC
    match = _OFFSET.fullmatch(name)
    if match is None:
        return None
    sign = -1 if match[1] == "-" else 1
    hours, minutes, seconds = (int(part or 0) for part in match.groups()[1:])
    return timezone(sign * timedelta(hours=hours, minutes=minutes, seconds=seconds))


def zone_of(name: str) -> tzinfo | None:
    """The zone that log_timezone names; None for a POSIX one such as `<+03>-3`.

    PostgreSQL prints those as numbers, which need no zone.

    Raises:
        ValueError: No such zone.
    """
    if name.upper() in {"UTC", "GMT", "ETC/UTC", "ETC/GMT"}:
        return UTC
    if name.startswith("<"):
        return None
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise ValueError("no such time zone") from error


@dataclass(frozen=True, slots=True)
class _Found:
    """What a line is about, before it becomes events."""

    touches: Sequence[Touch]
    derived: dict[str, Any]


def _events(record: dict[str, Any], logged_at: datetime, context: LogContext) -> Iterator[RawEvent]:
    if _is_unwanted(record, context):
        return
    found = _found(record, context)
    if found is None or _is_own(record, context, found.touches[0].operation):
        return
    session, number = _text(record, "session_id"), record.get("line_num")
    if not isinstance(number, int):
        raise Malformed("no number under `line_num`")
    line_id = f"pg:{context.system_identifier}:{session}:{number}"
    user, database = _text(record, "user"), record.get("dbname")
    raw = _redacted(record) if context.redact_passwords else record
    found = _bounded(found)
    for index, touch in enumerate(found.touches):
        yield RawEvent(
            platform=PLATFORM,
            # The first object keeps the line's own id, further ones count from 1. Touches are
            # sorted, so the numbers do not depend on how a parser walks.
            event_id=line_id if index == 0 else f"{line_id}:{index}",
            occurred_at=logged_at,
            principal_ref=role_ref(context.server, user),
            asset_ref=_asset(touch, database, context.server),
            operation=touch.operation,
            raw_payload={**raw, DERIVED_KEY: found.derived},
        )


def _bounded(found: _Found) -> _Found:
    """Every event carries the whole record: a statement over thousands of tables must not
    become gigabytes. Past the limit its objects are listed in events on the database."""
    if len(found.touches) <= OBJECTS_MAX:
        return found
    objects = [f"{touch.operation} {touch.kind}:{touch.name}" for touch in found.touches]
    operations = sorted({touch.operation for touch in found.touches})
    return _Found(
        [Touch(operation) for operation in operations], found.derived | {"objects": objects}
    )


def _asset(touch: Touch, database: str | None, server: str) -> str:
    if touch.kind == "DATABASE":
        return asset_ref(server, _unquoted(touch.name), None, None)
    if touch.kind in {"TABLESPACE", "PARAMETER"}:
        return asset_ref(server, None, touch.kind, touch.name)
    return asset_ref(server, database, touch.kind or None, touch.name or None)


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _is_unwanted(record: dict[str, Any], context: LogContext) -> bool:
    if record.get("user") in context.exclude_users:
        return True
    return context.databases is not None and record.get("dbname") not in context.databases


def _is_own(record: dict[str, Any], context: LogContext, operation: str) -> bool:
    """Whether this connector caused the record: its role under its application name.

    Without this rule every pass would write lines that the next pass reads. The role alone is not
    enough: whoever else uses the collector's password must be seen.
    """
    if context.own is None or record.get("user") != context.own[0]:
        return False
    if operation == "LOGIN_FAILED":
        # Somebody tries the collector's role: that is news. Its own attempts end in Denied.
        return False
    name = record.get("application_name")
    if not name and operation == "LOGIN":
        # PostgreSQL logs the connection before the key is filled; the message has the name.
        match = _APPLICATION_NAME.search(str(record.get("message")))
        name = match[1] if match else None
    return bool(name == context.own[1])


def _found(record: dict[str, Any], context: LogContext) -> _Found | None:
    """What the line is about; None for a line without audit interest."""
    severity, message = _text(record, "error_severity"), record.get("message", "")
    if record.get("backend_type") not in SESSION_BACKENDS or "user" not in record:
        return None
    if severity in {"ERROR", "FATAL", "PANIC"}:
        return _failure(record, severity, message)
    if severity != "LOG":
        # pgaudit.log_level can make its lines any level; all else at these is a remark.
        return _audit(message, context) if message.startswith(_AUDIT) else None
    if message.startswith(("connection authorized: ", "replication connection authorized: ")):
        return _Found([Touch("LOGIN")], {})
    if message.startswith("disconnection: "):
        return _Found([Touch("LOGOUT")], {})
    if message.startswith(_AUDIT):
        return _audit(message, context)
    return None if context.has_pgaudit else _logged_statement(record, message, context)


def _failure(record: dict[str, Any], severity: str, message: str) -> _Found:
    state = record.get("state_code")
    is_login = severity == "FATAL" and (
        state in LOGIN_FAILED_STATES or record.get("ps") in LOGIN_PHASES
    )
    if is_login:
        return _Found([Touch("LOGIN_FAILED")], {"state_code": state})
    if state != DENIED_STATE:
        return _Found([Touch("ERROR")], {"state_code": state})
    match = _DENIED.fullmatch(message)
    if match is None:
        return _Found([Touch("DENIED")], {"state_code": state})
    kind = match[1].upper()
    kind = _DENIED_KINDS.get(kind, kind)
    # The server names what was denied without its schema.
    return _Found(
        [Touch("DENIED", kind, quoted(match[2]))], {"state_code": state, "is_qualified": False}
    )


def _audit(message: str, context: LogContext) -> _Found | None:
    """A line of pgaudit: `AUDIT: ` and nine fields of CSV (pgaudit 1.7, README, 2026-11)."""
    if not context.has_pgaudit:
        return None
    try:
        rows = list(csv.reader([message[len(_AUDIT) :]], strict=True))
    except csv.Error as error:
        raise Malformed("the AUDIT line is not CSV") from error
    if len(rows) != 1 or len(rows[0]) < _AUDIT_FIELDS:
        raise Malformed("the AUDIT line has not nine fields")
    kind, statement_id, substatement_id, class_, command, object_type, name, text = rows[0][:8]
    if not class_:
        raise Malformed("the AUDIT line has no class")
    operation = f"{class_}.{command}" if command else class_
    derived: dict[str, Any] = {
        "from": "pgaudit",
        "audit_type": kind,
        "statement_id": statement_id,
        "substatement_id": substatement_id,
        "parsed": True,
    }
    if object_type and name:
        return _Found([Touch(operation, object_type, name)], derived)
    # Grants never name their object, DDL only where the extension is created in the database.
    found = touched(text, context.statement_bytes) if class_ in {"ROLE", "DDL"} else None
    if found is not None and found.is_parsed and found.statement_count == 1:
        objects = [t for t in found.touches if t.kind and t.operation.startswith(f"{class_}.")]
        if objects:
            derived["objects_from"] = "statement"
            touches = sorted({Touch(operation, t.kind, t.name) for t in objects})
            return _Found(touches, derived)
    return _Found([Touch(operation)], derived)


def _logged_statement(record: dict[str, Any], message: str, context: LogContext) -> _Found | None:
    """A line of log_statement or log_min_duration_statement; None for any other line.

    `parse`, `bind` and `execute fetch from` lines are left out: the `execute` line says it.
    """
    if duration := _DURATION.match(message):
        message = message[duration.end() :]
    if message.startswith("statement: "):
        text = message[len("statement: ") :]
    elif execute := _EXECUTE.match(message):
        text = message[execute.end() :]
    elif message.startswith("fastpath function call: "):
        return _Found([Touch("FUNCTION.CALL")], {"from": "log_statement", "parsed": False})
    else:
        return None
    statement = touched(_executed(record, text), context.statement_bytes)
    return _Found(statement.touches, _derived(statement))


def _executed(record: dict[str, Any], text: str) -> str:
    """The text that ran: of a SQL-level EXECUTE it is in the detail, not in the message."""
    detail = record.get("detail")
    if isinstance(detail, str) and detail.startswith(_PREPARE_DETAIL):
        match = _PREPARED.search(detail)
        if match is not None and first_word(text) == "EXECUTE":
            return detail[match.end() :]
    return text


def _derived(statement: Statement) -> dict[str, Any]:
    return {
        "from": "log_statement",
        "parsed": statement.is_parsed,
        "statements": statement.statement_count,
        # Names stand as written: without the session's search_path an unqualified name does not
        # tell its schema. A relation is called TABLE, whatever its kind.
        "names_as_written": True,
    }


def _redacted(record: dict[str, Any]) -> dict[str, Any]:
    changed = {
        key: redacted(value)
        for key in ("message", "statement", "detail", "internal_query")
        if isinstance(value := record.get(key), str) and "password" in value.lower()
    }
    return {**record, **changed} if changed else record
