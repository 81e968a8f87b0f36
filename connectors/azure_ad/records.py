"""From a record of Graph's audit logs to an event; no I/O.

The complete record is the event's payload, so a field that Microsoft adds is never lost, and
nothing here fails for a value of an enumeration that is not known.
"""

from __future__ import annotations

from typing import Any

from connectors.azure_ad import references as names
from connectors.azure_ad.settings import PLATFORM
from verity_sdk import references
from verity_sdk.connector_base import RawEvent
from verity_sdk.errors import Malformed
from verity_sdk.times import parse_utc

SIGN_IN = "Sign-in activity"
"""The operation of every sign-in, as Azure Monitor's SigninLogs call it; success or failure
stands in the payload's `status`."""

# Of `Add member to group` the group is what was changed; the user is who it was given to.
_ASSET_KINDS = frozenset(
    {"Group", "Role", "ServicePrincipal", "Application", "Policy", "Directory", "Device"}
)


def audit_event(record: Any) -> RawEvent:
    """The event of a `directoryAudit`.

    Raises:
        Malformed: It is no object, or its `id` or `activityDateTime` is missing.
    """
    body = _object(record)
    operation = _text(body.get("activityDisplayName")) or _text(body.get("operationType"))
    return RawEvent(
        platform=PLATFORM,
        event_id=_needed(body, "id"),
        occurred_at=parse_utc(_needed(body, "activityDateTime")),
        principal_ref=_initiator(body.get("initiatedBy")),
        asset_ref=_target(body.get("targetResources")),
        operation=operation or references.UNKNOWN,
        raw_payload=body,
    )


def sign_in_event(record: Any, *, is_workload: bool) -> RawEvent:
    """The event of a `signIn`.

    Args:
        record: As v1.0 or beta serve it.
        is_workload: Whether applications sign in, not people. A person who is not known is
            not the application that the person used.

    Raises:
        Malformed: It is no object, or its `id` or `createdDateTime` is missing.
    """
    body = _object(record)
    return RawEvent(
        platform=PLATFORM,
        event_id=_needed(body, "id"),
        occurred_at=parse_utc(_needed(body, "createdDateTime")),
        principal_ref=_who_signed_in(body, is_workload),
        asset_ref=_where_signed_in(body),
        operation=SIGN_IN,
        raw_payload=body,
    )


def reference_of(record: Any) -> str | None:
    """The id of a record that was not understood, if it has one."""
    return _text(record.get("id")) if isinstance(record, dict) else None


def _object(record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise Malformed(f"a {type(record).__name__} where a record should be")
    return record


def _needed(body: dict[str, Any], name: str) -> str:
    text = _text(body.get(name))
    if text is None:
        raise Malformed(f"the record has no {name}")
    return text


def _text(value: Any) -> str | None:
    """A text that says something; Graph writes absent ids as null, as "" and as zeros."""
    if isinstance(value, str) and value and value != names.NO_OBJECT:
        return value
    return None


def _initiator(value: Any) -> str:
    # Either part may be null, an object, or an object of nulls (wazuh#29522).
    if not isinstance(value, dict):
        return references.UNKNOWN
    person, app = value.get("user"), value.get("app")
    if isinstance(person, dict) and (object_id := _text(person.get("id"))):
        # Also of a deleted user, whose userPrincipalName is null. The name is an alias only.
        return references.user(object_id)
    if isinstance(app, dict):
        if object_id := _text(app.get("servicePrincipalId")):
            return references.service_principal(object_id)
        if client_id := _text(app.get("appId")):
            return references.application(client_id)
    return references.UNKNOWN


def _target(value: Any) -> str:
    targets = [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
    if not targets:
        return references.UNKNOWN
    chosen = next((one for one in targets if _kind(one) in _ASSET_KINDS), targets[0])
    # A policy or a setting may come without an id; its name is the best there is.
    name = _text(chosen.get("id")) or _text(chosen.get("displayName"))
    kind = _kind(chosen)
    return references.UNKNOWN if name is None or kind is None else names.target(kind, name)


def _kind(target: dict[str, Any]) -> str | None:
    # Microsoft's own examples spell the key both ways (MS Learn directoryaudit-list).
    return _text(target.get("type")) or _text(target.get("Type"))


def _who_signed_in(body: dict[str, Any], is_workload: bool) -> str:
    if object_id := _text(body.get("userId")):
        return references.user(object_id)
    if object_id := _text(body.get("servicePrincipalId")):
        return references.service_principal(object_id)
    if is_workload and (client_id := _text(body.get("appId"))):
        return references.application(client_id)
    return references.UNKNOWN


def _where_signed_in(body: dict[str, Any]) -> str:
    # v1.0 names the resource by its client id only; beta also by its service principal.
    if object_id := _text(body.get("resourceServicePrincipalId")):
        return names.resource(object_id)
    if client_id := _text(body.get("resourceId")) or _text(body.get("appId")):
        return references.application(client_id)
    return references.UNKNOWN
