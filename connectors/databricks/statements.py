"""What is asked of a SQL warehouse, and what its answers mean: pure functions, no I/O.

The SQL Statement Execution API, as databricks-sdk 0.162 (service/sql.py, read 2026-11) has it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from connectors.databricks.records import COLUMNS
from verity_sdk.errors import Denied, Malformed, Misconfigured, Unavailable
from verity_sdk.times import parse_utc
from verity_sdk.windows import Slice, TooLarge

Disposition = Literal["inline", "external_links"]

# unix_micros does not depend on the session's time zone, as a formatted time would; to_json leaves
# out keys without a value.
AUDIT_SQL = """
SELECT event_id, unix_micros(event_time) AS ts_us, to_json(struct(*)) AS raw
FROM system.access.audit
WHERE event_date BETWEEN :d0 AND :d1 AND event_time >= :t0 AND event_time < :t1
ORDER BY event_time, event_id
""".strip()
CHECK_SQL = "SELECT event_id FROM system.access.audit LIMIT 0"

# event_date is there to prune files only. That it is the date in UTC is not said anywhere, and a
# day more on either side costs little: event_time has file statistics, too.
DATE_MARGIN = timedelta(days=1)

MESSAGE_CHARACTERS_MAX = 300

# status.error.error_code (ServiceErrorCode) of failures that go away by themselves.
_PASSING = frozenset(
    {
        *("ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL_ERROR", "IO_ERROR"),
        *("RESOURCE_EXHAUSTED", "SERVICE_UNDER_MAINTENANCE", "TEMPORARILY_UNAVAILABLE"),
        *("UNKNOWN", "WORKSPACE_TEMPORARILY_UNAVAILABLE"),
    }
)
# "Inline byte limit exceeded. Statements executed with disposition=INLINE can have a result size
# of at most 26214400 bytes. …" with BAD_REQUEST (databrickslabs/ucx issues 3447, 4675).
_INLINE_LIMIT = re.compile(
    r"inline byte limit|disposition=INLINE can have a result size", re.IGNORECASE
)
_NOT_ALLOWED = re.compile(
    r"INSUFFICIENT_PERMISSIONS|PERMISSION_DENIED|Insufficient privileges|UnauthorizedAccess"
)
_NOT_THERE = re.compile(
    r"TABLE_OR_VIEW_NOT_FOUND|SCHEMA_NOT_FOUND|CATALOG_NOT_FOUND|NO_SUCH_CATALOG"
)
# "User does not have USE SCHEMA on Schema 'system.access'." (SQLSTATE 42501)
_MISSING_GRANT = re.compile(
    r"does not have ([A-Z][A-Z _]{1,40}?) on (Catalog|Schema|Table|View) '([\w.`-]{1,200})'"
)
_STATES_NOT_ALLOWED = frozenset({"42501"})
_STATES_NOT_THERE = frozenset({"42P01", "42704", "3F000"})


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement and its parameters.

    Attributes:
        table: What it reads, for messages.
        parameters: Name, value and type of each; the API knows named parameters only.
    """

    text: str
    table: str
    parameters: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Status:
    """How far a statement is.

    Attributes:
        state: PENDING, RUNNING, SUCCEEDED, FAILED, CANCELED, CLOSED, or one that is not known yet.
    """

    statement_id: str
    state: str
    error_code: str = ""
    message: str = ""
    sql_state: str = ""

    @property
    def is_under_way(self) -> bool:
        """Whether to look again later."""
        return self.state in {"PENDING", "RUNNING"}


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a result holds, by its own account.

    Attributes:
        columns: Names in lower case.
    """

    columns: tuple[str, ...]
    chunk_count: int
    row_count: int
    is_truncated: bool


@dataclass(frozen=True, slots=True)
class Link:
    """Where the rows of a chunk can be fetched; the URL and the headers are secrets.

    Attributes:
        expires_at: Aware UTC, or None where it is not said.
    """

    url: str
    headers: Mapping[str, str]
    expires_at: datetime | None

    def __repr__(self) -> str:
        return f"Link(expires_at={self.expires_at!r})"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a result: its rows, or the link to them."""

    index: int
    row_offset: int
    row_count: int
    next_index: int | None
    rows: Sequence[Any] | None = None
    link: Link | None = None


def audit_statement(one: Slice) -> Statement:
    """Every audit event of a slice, oldest first."""
    return Statement(
        AUDIT_SQL,
        "system.access.audit",
        (
            ("d0", f"{one.from_at - DATE_MARGIN:%Y-%m-%d}", "DATE"),
            ("d1", f"{one.to_at + DATE_MARGIN:%Y-%m-%d}", "DATE"),
            ("t0", f"{one.from_at:%Y-%m-%dT%H:%M:%SZ}", "TIMESTAMP"),
            ("t1", f"{one.to_at:%Y-%m-%dT%H:%M:%SZ}", "TIMESTAMP"),
        ),
    )


def submission(
    statement: Statement, warehouse_id: str, disposition: Disposition, wait_timeout: timedelta
) -> dict[str, Any]:
    """The body that submits a statement."""
    body: dict[str, Any] = {
        "warehouse_id": warehouse_id,
        "statement": statement.text,
        "disposition": disposition.upper(),
        "format": "JSON_ARRAY",
        "wait_timeout": f"{int(wait_timeout.total_seconds())}s",
        "on_wait_timeout": "CONTINUE",
    }
    if statement.parameters:
        body["parameters"] = [
            {"name": name, "value": value, "type": kind}
            for name, value, kind in statement.parameters
        ]
    return body


def status_of(answer: Any) -> Status:
    """How far a statement is, by an answer about it.

    Raises:
        Unavailable: The answer does not say.
    """
    status = answer.get("status") if isinstance(answer, dict) else None
    statement_id = answer.get("statement_id") if isinstance(answer, dict) else None
    state = status.get("state") if isinstance(status, dict) else None
    if not isinstance(statement_id, str) or not statement_id or not isinstance(state, str):
        raise Unavailable("the warehouse's answer names no statement and state")
    error = status.get("error") if isinstance(status, dict) else None
    error = error if isinstance(error, dict) else {}
    return Status(
        statement_id,
        state,
        error_code=str(error.get("error_code") or ""),
        message=str(error.get("message") or ""),
        sql_state=str(status.get("sql_state") or "") if isinstance(status, dict) else "",
    )


def failure(status: Status, statement: Statement, principal: str) -> Exception:
    """What the end of a statement that has no result means, and who must act.

    Args:
        principal: Whom a grant has to name.
    """
    if status.state != "FAILED":
        # CANCELED by somebody else, CLOSED before it was read, or a state of a later version.
        return Unavailable(f"the statement on {statement.table} ended as {status.state}")
    if _INLINE_LIMIT.search(status.message):
        return TooLarge(f"the result on {statement.table} is over the limit of INLINE")
    said = f"{status.error_code or 'FAILED'}: {_shown(status.message)}"
    if status.sql_state in _STATES_NOT_ALLOWED or _NOT_ALLOWED.search(status.message):
        return Denied(
            f"{statement.table} may not be read ({said}); run as a metastore admin: "
            f"{grants_needed(status.message, statement.table, principal)}"
        )
    if status.sql_state in _STATES_NOT_THERE or _NOT_THERE.search(status.message):
        return Denied(f"{statement.table} is not there ({said}); {_how_to_enable(statement.table)}")
    if status.error_code == "UNAUTHENTICATED":
        return Denied(f"the warehouse refused the login ({said})")
    if status.error_code in _PASSING:
        return Unavailable(f"the statement on {statement.table} failed ({said})")
    return Denied(f"the warehouse refused the statement on {statement.table} ({said})")


def grants_needed(message: str, table: str, principal: str) -> str:
    """The SQL that grants what a message says is missing, or all that reading a table needs.

    USE SCHEMA on the catalog `system` is accepted and has no effect: it must be on the schema
    (DataDog/documentation pull request 36005).
    """
    match = _MISSING_GRANT.search(message)
    if match:
        kind = "TABLE" if match[2] == "View" else match[2].upper()
        return f"GRANT {match[1]} ON {kind} {match[3]} TO `{principal}`"
    schema = table.rpartition(".")[0]
    return "; ".join(
        [
            f"GRANT USE CATALOG ON CATALOG system TO `{principal}`",
            f"GRANT USE SCHEMA ON SCHEMA {schema} TO `{principal}`",
            f"GRANT SELECT ON TABLE {table} TO `{principal}`",
        ]
    )


def _how_to_enable(table: str) -> str:
    if table.startswith("system.information_schema."):
        return "this runtime may not have the view: take it out of privilege_views or owner_views"
    schema = table.split(".")[1]
    return (
        f"enable the system schema as an account admin: databricks system-schemas enable "
        f"<metastore id> {schema}, and grant USE SCHEMA and SELECT on it"
    )


def refusal(status: int, error_code: str, message: str, warehouse_id: str) -> Exception:
    """What a submission that was not accepted means, and who must act."""
    said = f"HTTP {status} {error_code}: {_shown(message)}"
    if status == 403:
        return Denied(
            f"no permission to use the SQL warehouse {warehouse_id} ({said}); give the service "
            "principal the permission CAN USE on it, and the entitlement databricks-sql-access"
        )
    # "… is not a valid endpoint id." with 400 INVALID_PARAMETER_VALUE; 404 for a deleted one.
    if status == 404 or "endpoint id" in message or "warehouse" in message.lower():
        return Misconfigured(f"warehouse_id: there is no SQL warehouse {warehouse_id} ({said})")
    return Denied(f"the warehouse {warehouse_id} did not accept the statement ({said})")


def manifest_of(answer: Any, expected: Sequence[str] = ()) -> Manifest:
    """What the result of a statement that succeeded holds.

    Args:
        expected: Columns that have to be there, in this order; none for any.

    Raises:
        Unavailable: The answer does not say, or has other columns.
    """
    manifest = answer.get("manifest") if isinstance(answer, dict) else None
    if not isinstance(manifest, dict):
        raise Unavailable("a statement succeeded without a manifest")
    schema = manifest.get("schema")
    columns = schema.get("columns") if isinstance(schema, dict) else None
    if not isinstance(columns, list) or not all(isinstance(one, dict) for one in columns):
        raise Unavailable("a result's manifest has no columns")
    names = tuple(str(one.get("name") or "").lower() for one in columns)
    if expected and names != tuple(expected):
        raise Unavailable(f"a result has the columns {', '.join(names)[:200]}")
    return Manifest(
        names,
        chunk_count=_count(manifest, "total_chunk_count"),
        row_count=_count(manifest, "total_row_count"),
        is_truncated=manifest.get("truncated") is True,
    )


def audit_manifest(answer: Any, rows_max: int) -> Manifest:
    """The manifest of an audit statement's result.

    Raises:
        TooLarge: It has more rows than may be held, or was cut at the vendor's limit (100 GiB).
        Unavailable: As `manifest_of`.
    """
    manifest = manifest_of(answer, COLUMNS)
    if manifest.is_truncated or manifest.row_count > rows_max:
        raise TooLarge(f"{manifest.row_count} rows")
    return manifest


def chunk_of(result: Any, index: int) -> Chunk:
    """A chunk, by an answer that should hold the one of this index.

    Raises:
        Unavailable: It does not.
    """
    if not isinstance(result, dict):
        raise Unavailable(f"chunk {index} of a result is missing")
    links = result.get("external_links")
    if isinstance(links, list) and links:
        # One link an answer today; several are announced (databricks-sdk, ResultData).
        found = [one for one in links if isinstance(one, dict) and one.get("chunk_index") == index]
        if not found or not isinstance(found[0].get("external_link"), str):
            raise Unavailable(f"no link to chunk {index} of a result")
        return _chunk(found[0], index, link=_link(found[0]))
    rows = result.get("data_array")
    if rows is None:
        rows = []  # a result without rows
    if not isinstance(rows, list):
        raise Unavailable(f"chunk {index} of a result has no rows")
    return _chunk(result, index, rows=rows)


def _chunk(
    part: Mapping[str, Any], index: int, rows: list[Any] | None = None, link: Link | None = None
) -> Chunk:
    following = part.get("next_chunk_index")
    return Chunk(
        index=_count(part, "chunk_index", 0 if rows == [] else None),
        row_offset=_count(part, "row_offset", 0 if rows == [] else None),
        row_count=_count(part, "row_count", 0 if rows == [] else None),
        next_index=None if following is None else _count(part, "next_chunk_index"),
        rows=rows,
        link=link,
    )


def _link(part: Mapping[str, Any]) -> Link:
    headers = part.get("http_headers")
    try:
        expires_at = parse_utc(part.get("expiration", ""))
    except Malformed:
        expires_at = None  # the storage will say
    found = headers if isinstance(headers, dict) else {}
    for name, value in found.items():
        # The values are secrets: the message must not show them.
        if not isinstance(value, str) or not (value.isascii() and value.isprintable()):
            raise Unavailable(f"a link comes with a header {name!r} that no request may have")
    return Link(part["external_link"], found, expires_at)


class Assembly:
    """Sees that the chunks of a result are all of it, each once and in order.

    What the manifest promises is compared with what came: `truncated` alone says nothing of a
    chunk that is short or comes twice.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._chunks = 0
        self._rows = 0

    @property
    def next_index(self) -> int | None:
        """The chunk to fetch next, or None after the last."""
        return self._chunks if self._chunks < self._manifest.chunk_count else None

    def add(self, chunk: Chunk, rows: Any) -> list[Any]:
        """Take the rows of the next chunk.

        Raises:
            Unavailable: It is not the next one, or not whole; nothing of the result is good.
        """
        if not isinstance(rows, list):
            raise Unavailable(f"chunk {chunk.index} of a result is no list of rows")
        is_last = self._chunks + 1 >= self._manifest.chunk_count
        if chunk.index != self._chunks or chunk.row_offset != self._rows:
            raise Unavailable(f"chunk {self._chunks} of a result is not the one that came")
        if chunk.next_index != (None if is_last else self._chunks + 1):
            raise Unavailable(f"chunk {self._chunks} of a result names another as the next")
        if len(rows) != chunk.row_count:
            raise Unavailable(f"chunk {self._chunks} of a result is not whole")
        self._chunks += 1
        self._rows += len(rows)
        return rows

    def finish(self) -> None:
        """Say that no more comes.

        Raises:
            Unavailable: More was promised, or more came.
        """
        promised = self._manifest
        if self._rows != promised.row_count or self._manifest.is_truncated:
            raise Unavailable(
                f"a result has {self._rows} rows in {self._chunks} chunks, its manifest says "
                f"{promised.row_count} in {promised.chunk_count}, truncated: "
                f"{promised.is_truncated}"
            )


def _count(part: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A number that is not negative; the API may write 64-bit numbers as texts."""
    value = part.get(key, default)
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise Unavailable(f"a result has no number under `{key}`")
    return value


def _shown(message: str) -> str:
    text = " ".join(message.split())
    return text if len(text) <= MESSAGE_CHARACTERS_MAX else text[:MESSAGE_CHARACTERS_MAX] + "…"
