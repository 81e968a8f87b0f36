"""From rows of Log Analytics and records of the activity log to events: pure functions, no I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from connectors._azure.log_analytics import IngestedRow, canonical_time, numbered, parsed
from connectors.synapse import references as names
from connectors.synapse.settings import PLATFORM, RBAC_OPERATIONS, SERVERLESS_REQUESTS, SQL_AUDIT
from verity_sdk import references
from verity_sdk.connector_base import RawEvent
from verity_sdk.errors import Malformed
from verity_sdk.pages import RejectedRecord
from verity_sdk.times import format_utc, parse_utc
from verity_sdk.values import dumps, utf8

DERIVED_KEY = "verity"

# What makes a row of a table without an id that row and no other: all that its documentation
# lists as content (MS Learn, Azure Monitor table reference, read 2026-11-24). The columns that
# the workspace adds (`_BilledSize`, `TenantId`, …) are left out: they change with each delivery.
_CONTENT = (
    *("Category", "CorrelationId", "OperationName", "OperationVersion", "RoleAssignmentId"),
    *("Identity", "Properties", "ResultType", "ResultSignature", "ResultDescription"),
    *("DurationMs", "ErrorCode", "Level", "Location", "_ResourceId"),
)


def events_of(
    rows: Sequence[IngestedRow], workspace: str
) -> tuple[list[RawEvent], list[RejectedRecord]]:
    """The events of a whole slice, and the rows that were not understood.

    It must be whole: equal rows of one moment are told apart by their number in it.
    """
    events: list[RawEvent] = []
    rejected: list[RejectedRecord] = []
    hashed: list[tuple[RawEvent, datetime]] = []
    for row in rows:
        try:
            event = event_of(row, workspace)
        except Malformed as error:
            rejected.append(RejectedRecord(_bytes_of(row), str(error), row.table))
            continue
        if not event.event_id:
            event.event_id = content_hash(row)
            hashed.append((event, row.ingested_at))
        events.append(event)
    ids = numbered((event.event_id, ingested_at) for event, ingested_at in hashed)
    for (event, _), event_id in zip(hashed, ids, strict=True):
        event.event_id = event_id
    return events, rejected


def event_of(row: IngestedRow, workspace: str) -> RawEvent:
    """What one row says; its `event_id` is empty where the row has no id of its own.

    Raises:
        Malformed: A time is none, or a column that is read is not of its type.
    """
    record = row.record
    if row.table == SQL_AUDIT:
        who, what, operation = _sql_audit(record, workspace)
        occurred_at = _text(record, "EventTime") or row.generated_at
        event_id = _sql_id(record)
    else:
        who = names.identity(workspace, parsed(record.get("Identity")))
        operation = _text(record, "OperationName") or row.table
        what = names.workspace(workspace)
        if row.table == SERVERLESS_REQUESTS:
            what = names.below(workspace, "builtin")
        elif row.table == RBAC_OPERATIONS and (role := _text(record, "RoleAssignmentId")):
            what = names.below(workspace, f"roleAssignment:{role}")
        occurred_at, event_id = row.generated_at, ""
    derived = {"table": row.table, "ingested_at": format_utc(row.ingested_at)}
    return RawEvent(
        platform=PLATFORM,
        event_id=event_id,
        occurred_at=parse_utc(occurred_at),
        principal_ref=who,
        asset_ref=what,
        operation=operation,
        raw_payload={**record, DERIVED_KEY: derived},
    )


def content_hash(row: IngestedRow) -> str:
    """SHA-256 over the table, `TimeGenerated` and the content's columns, in a canonical form."""
    record = row.record
    content = [row.table, canonical_time(row.generated_at)]
    content += [_canonical(record.get(column)) for column in _CONTENT]
    return hashlib.sha256(utf8("\x1f".join(content))).hexdigest()


def activity_events_of(
    records: Iterable[Any], workspace: str, resource_id: str
) -> tuple[list[RawEvent], list[RejectedRecord]]:
    """The activity log's events about the workspace and what lies below it."""
    events: list[RawEvent] = []
    rejected: list[RejectedRecord] = []
    root = resource_id.lower()
    for record in records:
        try:
            if not isinstance(record, dict):
                raise Malformed("the record is no object")
            about = _text(record, "resourceId")
            if f"{about.lower()}/".startswith(f"{root}/"):
                events.append(_activity_event(record, about, workspace, resource_id))
        except Malformed as error:
            rejected.append(RejectedRecord(dumps(record), str(error), "activity log"))
    return events, rejected


def _activity_event(
    record: dict[str, Any], about: str, workspace: str, resource_id: str
) -> RawEvent:
    event_id = _text(record, "eventDataId")
    if not event_id:
        raise Malformed("no text under `eventDataId`")
    return RawEvent(
        platform=PLATFORM,
        event_id=event_id,
        occurred_at=parse_utc(_text(record, "eventTimestamp")),
        principal_ref=_caller(record, workspace),
        asset_ref=names.resource(workspace, resource_id, about),
        operation=_localizable(record, "operationName") or "activity",
        raw_payload={**record, DERIVED_KEY: {"table": "activity log"}},
    )


def _caller(record: dict[str, Any], workspace: str) -> str:
    # The directory's object id, where the claims have it, joins with grants; a name does less.
    who = names.identity(workspace, record.get("claims"))
    if who != references.UNKNOWN:
        return who
    return names.login(workspace, _text(record, "caller"))


def _sql_audit(record: dict[str, Any], workspace: str) -> tuple[str, str, str]:
    # The session's principal is who logged in; EXECUTE AS changes the other one.
    who = _text(record, "SessionServerPrincipalName") or _text(record, "ServerPrincipalName")
    what = names.sql_object(
        workspace,
        _text(record, "DatabaseName"),
        _text(record, "SchemaName"),
        _text(record, "ObjectName"),
    )
    # `ActionId` is char(4), padded with spaces (sys.fn_get_audit_file).
    operation = _text(record, "ActionName") or _text(record, "ActionId").strip() or SQL_AUDIT
    return names.login(workspace, who), what, operation


def _sql_id(record: dict[str, Any]) -> str:
    """One audited event may be split over several rows: only with the number it is one of them."""
    event_id, number = _text(record, "EventId"), record.get("SequenceNumber")
    if not event_id:
        return ""
    if isinstance(number, bool) or not isinstance(number, int | str | None):
        raise Malformed("no number under `SequenceNumber`")
    return f"{event_id}:{number}" if number not in (None, "") else event_id


def _text(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Malformed(f"no text under `{key}`")
    return value


def _localizable(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if isinstance(value, dict):
        return _text(value, "value")
    return _text(record, key)


def _canonical(value: Any) -> str:
    """One spelling for each value, whether the service wrote it as JSON or as text."""
    value = parsed(value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        return dumps(value, sort_keys=True).decode()
    return str(value)


def _bytes_of(row: IngestedRow) -> bytes:
    return dumps(
        {
            "SourceTable": row.table,
            "TimeGenerated": row.generated_at,
            "IngestedAt": format_utc(row.ingested_at),
            "Row": row.record,
        }
    )
