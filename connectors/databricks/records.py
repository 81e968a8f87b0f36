"""From rows of `system.access.audit` to audit events: pure functions, no I/O.

A row has three cells: the event's id, its time in microseconds, and the whole record as JSON.
Columns and their types: MS Learn, azure/databricks/admin/system-tables/audit-logs, read 2026-11.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from connectors.databricks.references import Workspace, asset_of, principal_ref
from connectors.databricks.settings import PLATFORM
from verity_sdk.connector_base import RawEvent
from verity_sdk.errors import Malformed
from verity_sdk.pages import RejectedRecord
from verity_sdk.values import dumps, loads

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
COLUMNS = ("event_id", "ts_us", "raw")

_MICROSECONDS = re.compile(r"-?\d{1,18}", re.ASCII)


def parse_rows(
    rows: Iterable[Any], workspace: Workspace
) -> tuple[list[RawEvent], list[RejectedRecord]]:
    """The events of some rows; a row that is not understood is a rejected record, with its bytes.

    Args:
        rows: Each with the cells of `COLUMNS`, in their order.
    """
    events, rejected = [], []
    for row in rows:
        try:
            events.append(event_of(row, workspace))
        except Malformed as error:
            reference = (
                row[0] if isinstance(row, list) and row and isinstance(row[0], str) else None
            )
            rejected.append(RejectedRecord(dumps(row), str(error), reference))
    return events, rejected


def event_of(row: Any, workspace: Workspace) -> RawEvent:
    """The event of one row.

    Raises:
        Malformed: The row, its time or its record is not what the table holds.
    """
    if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != len(COLUMNS):
        raise Malformed(f"not a row of {len(COLUMNS)} cells")
    event_id, ts_us, raw = row
    if event_id is not None and not isinstance(event_id, str):
        raise Malformed("`event_id` is no text")
    record = _record(raw)
    service, action = record.get("service_name"), record.get("action_name")
    if not isinstance(service, str) or not isinstance(action, str) or not service or not action:
        raise Malformed("no text under `service_name` or `action_name`")
    parameters = record.get("request_params")
    return RawEvent(
        platform=PLATFORM,
        event_id=event_id or fallback_id(record),
        occurred_at=_time(ts_us),
        principal_ref=principal_ref(_who(record)),
        asset_ref=asset_of(
            action, parameters if isinstance(parameters, dict) else {}, record, workspace
        ),
        operation=f"{service}.{action}",
        raw_payload=record,
    )


def fallback_id(record: Mapping[str, Any]) -> str:
    """The id of an event that has none (older rows): a hash of its record in canonical form.

    Two rows that are equal to the byte are one event then.
    """
    canonical = dumps(record, sort_keys=True)
    return f"sha256:{hashlib.sha256(canonical).hexdigest()}"


def _record(raw: Any) -> dict[str, Any]:
    if not isinstance(raw, str):
        raise Malformed("`raw` is no text")
    try:
        record = loads(raw)
    except ValueError as error:
        raise Malformed("`raw` is not JSON") from error
    if not isinstance(record, dict):
        raise Malformed("`raw` is JSON, but not an object")
    return record


def _time(ts_us: Any) -> datetime:
    if not isinstance(ts_us, str) or not _MICROSECONDS.fullmatch(ts_us):
        raise Malformed("`ts_us` is no number of microseconds")
    try:
        return EPOCH + timedelta(microseconds=int(ts_us))
    except OverflowError as error:
        raise Malformed("`ts_us` is no time") from error


def _who(record: Mapping[str, Any]) -> str | None:
    """The acting identity; null for what Databricks does itself."""
    identity = record.get("user_identity")
    if isinstance(identity, dict):
        # The documentation shows the second key in both spellings.
        for key in ("email", "subject_name", "subjectName"):
            value = identity.get(key)
            if isinstance(value, str) and value:
                return value
    metadata = record.get("identity_metadata")
    if isinstance(metadata, dict):
        for key in ("run_by", "run_as"):
            value = metadata.get(key)
            if isinstance(value, str) and value:
                return value
    return None
