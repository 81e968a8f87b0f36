"""What a record of `activityevents` says, as a `RawEvent`: pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from connectors.fabric import references as names
from connectors.fabric.settings import PLATFORM
from verity_sdk import references
from verity_sdk.connector_base import RawEvent
from verity_sdk.errors import Malformed
from verity_sdk.pages import RejectedRecord
from verity_sdk.times import parse_utc
from verity_sdk.values import dumps

# Office 365 Management Activity schema, UserType: 5 Application, 6 ServicePrincipal.
_APPLICATION_TYPES = (5, 6)
# The most specific first. An event about a report also names its semantic model, a dashboard's
# may: what was looked at goes before what lies under it. Fields as in semantic-link-labs'
# _activities.py; the swagger leaves the record open.
_ITEM_FIELDS = ("ArtifactId", "ReportId", "DashboardId", "DataflowId", "DatasetId", "ItemId")


def event_of(record: Any) -> RawEvent:
    """The event that a record tells of.

    `CreationTime` has no offset and is UTC. `UserId` is an e-mail or login, so it is in lower
    case here, as the snapshot's aliases are; `UserKey` is no Entra object id (langwatch 7142).

    Raises:
        Malformed: It has no `Id`, no `CreationTime` that is a time, or no `Operation`.
    """
    if not isinstance(record, dict):
        raise Malformed(f"the record is a {type(record).__name__}, not an object")
    event_id = _text(record, "Id")
    if event_id is None:
        raise Malformed("the record has no Id")
    created = record.get("CreationTime")
    if not isinstance(created, str):
        raise Malformed("the record has no CreationTime")
    operation = _text(record, "Operation") or _text(record, "Activity")
    if operation is None:
        raise Malformed("the record has neither Operation nor Activity")
    return RawEvent(
        platform=PLATFORM,
        event_id=event_id,
        occurred_at=parse_utc(created),
        principal_ref=_principal(record),
        asset_ref=_asset(record),
        operation=operation,
        raw_payload=record,
    )


def read_records(records: Iterable[Any]) -> tuple[list[RawEvent], list[RejectedRecord]]:
    """The events of some records, and the records that were not understood."""
    events: list[RawEvent] = []
    rejected: list[RejectedRecord] = []
    for record in records:
        try:
            events.append(event_of(record))
        except Malformed as error:
            event_id = record.get("Id") if isinstance(record, dict) else None
            reference = event_id if isinstance(event_id, str) else None
            rejected.append(RejectedRecord(dumps(record), str(error), reference))
    return events, rejected


def _principal(record: Mapping[str, Any]) -> str:
    user_id = _text(record, "UserId")
    # UNCONFIRMED: whether UserId is a service principal's object id or its application id.
    if record.get("UserType") in _APPLICATION_TYPES:
        name = user_id or _text(record, "ClientId")
        return references.service_principal(name) if name else references.UNKNOWN
    return references.account(user_id) if user_id else references.UNKNOWN


def _asset(record: Mapping[str, Any]) -> str:
    workspace_id = _text(record, "WorkspaceId")
    for field in _ITEM_FIELDS:
        item_id = record.get(field)
        if item_id and isinstance(item_id, str):
            return names.item(workspace_id, item_id)
    if workspace_id:
        return names.workspace(workspace_id)
    object_id = _text(record, "ObjectId")
    if object_id:
        return names.object_of(object_id)
    capacity_id = _text(record, "CapacityId")
    if capacity_id:
        return names.capacity(capacity_id)
    tenant_id = _text(record, "OrganizationId")
    return names.tenant(tenant_id) if tenant_id else references.UNKNOWN


def _text(record: Mapping[str, Any], field: str) -> str | None:
    value = record.get(field)
    return value if value and isinstance(value, str) else None
