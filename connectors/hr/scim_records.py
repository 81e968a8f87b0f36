"""From SCIM 2.0 resources to observations and snapshot rows: pure functions, no I/O.

RFC 7643 (schemas) and RFC 7644 (protocol), read 2026-11-24.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from connectors.hr import references as names
from connectors.hr.changes import Observation
from connectors.hr.fields import ENTERPRISE, text
from connectors.hr.grants import Holder
from connectors.hr.settings import PLATFORM
from verity_sdk import references
from verity_sdk.connector_base import PermissionSnapshot
from verity_sdk.errors import Malformed
from verity_sdk.pages import RejectedRecord
from verity_sdk.times import parse_utc
from verity_sdk.values import dumps

Record = dict[str, Any]

# Canonical name → the attribute that says it (RFC 7644, 3.10).
_SIMPLE: Final = {
    "login": "userName",
    "display_name": "displayName",
    "job_title": "title",
    "user_type": "userType",
}
_NAME: Final = {"first_name": "givenName", "last_name": "familyName"}
_ENTERPRISE: Final = {
    "employee_number": "employeeNumber",
    "cost_center": "costCenter",
    "organization": "organization",
    "division": "division",
    "department": "department",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """Which tracked fields the allow-list lets through; worked out once."""

    simple: tuple[tuple[str, str], ...]
    name: tuple[tuple[str, str], ...]
    enterprise: tuple[tuple[str, str], ...]
    has_emails: bool
    has_manager: bool

    @classmethod
    def of(cls, attributes: Collection[str]) -> Shown:
        """Of the allowed attributes."""
        allowed = frozenset(attributes)
        return cls(
            simple=tuple((k, v) for k, v in _SIMPLE.items() if v in allowed),
            name=tuple(
                (k, v) for k, v in _NAME.items() if "name" in allowed or f"name.{v}" in allowed
            ),
            enterprise=tuple(
                (k, v) for k, v in _ENTERPRISE.items() if f"{ENTERPRISE}:{v}" in allowed
            ),
            has_emails="emails" in allowed,
            has_manager=f"{ENTERPRISE}:manager" in allowed,
        )


@dataclass(frozen=True, slots=True)
class Context:
    """What the resources do not say themselves.

    Attributes:
        source: The source's name in event ids.
        shown: Which fields are let through.
        began_at: From when on changes are wanted, aware UTC.
        read_at: When this pass began, aware UTC.
    """

    source: str
    shown: Shown
    began_at: datetime
    read_at: datetime


@dataclass(frozen=True, slots=True)
class Times:
    """A resource's `meta`, as far as it is there."""

    created_at: datetime | None
    modified_at: datetime | None
    version: str | None


def rejected(record: Record, reason: str) -> RejectedRecord:
    """A resource that was not understood, after the allow-list went over it."""
    reference = record.get("id")
    return RejectedRecord(dumps(record), reason, reference if isinstance(reference, str) else None)


def resource_id(record: Record) -> str:
    """The resource's id.

    Raises:
        Malformed: It has none.
    """
    found = text(record, "id")
    if found is None:
        raise Malformed("the resource has no id")
    return found


def times_of(record: Record) -> Times:
    """When the resource was made and changed.

    Raises:
        Malformed: A time is none.
    """
    meta = record.get("meta")
    if not isinstance(meta, dict):
        return Times(None, None, None)
    return Times(_time(meta, "created"), _time(meta, "lastModified"), text(meta, "version"))


def _time(meta: Record, name: str) -> datetime | None:
    value = text(meta, name)
    if value is None:
        return None
    try:
        return parse_utc(value)
    except Malformed:
        raise Malformed(f"meta.{name} is no time") from None


def observation(record: Record, times: Times, context: Context) -> Observation:
    """What a user's resource shows; an attribute that is not there is an empty one (RFC 7643, 2.5).

    Args:
        record: The user, allowed attributes only.
        times: Its `meta`, from `times_of`.

    Raises:
        Malformed: It has no id, or an attribute has the wrong type.
    """
    person_id = resource_id(record)
    values = values_of(record, context.shown)
    is_active = _is_active(record)
    mark = times.version
    if mark is None and times.modified_at is not None:
        mark = record["meta"]["lastModified"]
    if mark is None:
        mark = _digest(values, is_active)
    created_at, modified_at = times.created_at, times.modified_at
    return Observation(
        person_id,
        f"scim:{context.source}:{person_id}:{mark}",
        modified_at or context.read_at,
        values,
        is_active=is_active,
        is_new=(created_at or modified_at or context.read_at) >= context.began_at,
        is_untouched=created_at is not None and created_at == modified_at,
        payload={"resource": record},
    )


def absence(person_id: str, reads: int, last_read_at: str | None, context: Context) -> Observation:
    """That a complete read no longer holds somebody.

    Args:
        reads: How many complete reads there were before: the same until this one is published, so
            the id stays the same however often it is read again.
        last_read_at: When everybody was last read before.
    """
    return Observation(
        person_id,
        f"scim:{context.source}:{person_id}:absent:{reads}",
        context.read_at,
        {},
        is_gone=True,
        payload={"resource": None},
        derived={"basis": "absent", "last_complete_read_at": last_read_at},
    )


def values_of(record: Record, shown: Shown) -> dict[str, str | None]:
    """The tracked values.

    Raises:
        Malformed: An attribute has the wrong type.
    """
    values: dict[str, str | None] = {name: text(record, key) for name, key in shown.simple}
    if shown.name:
        name = _complex(record, "name")
        for canonical, key in shown.name:
            values[canonical] = text(name, key)
    if shown.enterprise or shown.has_manager:
        enterprise = _complex(record, ENTERPRISE)
        for canonical, key in shown.enterprise:
            values[canonical] = text(enterprise, key)
        if shown.has_manager:
            values["manager"] = _manager(enterprise)
    if shown.has_emails:
        values["work_email"] = _work_email(record)
    return values


def _complex(record: Record, name: str) -> Record:
    value = record.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Malformed(f"{name} is a {type(value).__name__}, not an object")
    return value


def _many(record: Record, name: str) -> list[Record]:
    values = record.get(name)
    if values is None:
        return []
    if not isinstance(values, list) or not all(isinstance(one, dict) for one in values):
        raise Malformed(f"{name} is no list of objects")
    return values


def _manager(enterprise: Record) -> str | None:
    manager = enterprise.get("manager")
    if isinstance(manager, dict):
        return text(manager, "value")
    return text(enterprise, "manager")


def _work_email(record: Record) -> str | None:
    best, best_rank = None, -1
    for one in _many(record, "emails"):
        value = text(one, "value")
        if value is None:
            continue
        is_work = (text(one, "type") or "").lower() == "work"
        rank = 2 * is_work + (one.get("primary") is True)
        if rank > best_rank:
            best, best_rank = value, rank
    return best


def _is_active(record: Record) -> bool | None:
    active = record.get("active")
    if active is None or isinstance(active, bool):
        return active
    # Some providers write it as a text (known of Microsoft Entra's provisioning).
    found = {"true": True, "false": False}.get(str(active).lower())
    if found is None:
        raise Malformed("active is neither true nor false")
    return found


def _digest(values: Mapping[str, str | None], is_active: bool | None) -> str:
    data = dumps([values, is_active], sort_keys=True)
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def holder(record: Record, shown: Shown) -> Holder:
    """A snapshot's person.

    Raises:
        Malformed: It has no id, or an attribute has the wrong type.
    """
    values = values_of(record, shown)
    others = [
        (reference(value), names.ASSIGNED, names.ROLE, None)
        for attribute, reference in (("roles", names.role), ("entitlements", names.entitlement))
        for one in _many(record, attribute)
        if (value := text(one, "value")) is not None
    ]
    accounts = (values.get("login"), values.get("work_email"))
    return Holder(
        person_id=resource_id(record),
        is_active=_is_active(record) is not False,
        department=values.get("department"),
        job_title=values.get("job_title"),
        manager_id=values.get("manager"),
        accounts=[one for one in accounts if one is not None],
        others=list(dict.fromkeys(others)),
        payload={"resource": record},
    )


def memberships(record: Record, snapshot_at: datetime) -> list[PermissionSnapshot]:
    """The direct members of a group, people and groups.

    Raises:
        Malformed: It has no id, or its members are no list of objects.
    """
    group_id = resource_id(record)
    about = {key: value for key, value in record.items() if key != "members"}
    found = {}
    for member in _many(record, "members"):
        value = text(member, "value")
        if value is None:
            continue
        kind = (text(member, "type") or "").lower()
        # The type may be missing; the reference ends with /Groups/{id} then (RFC 7643, 2.4).
        is_group = kind == "group" or (not kind and "/Groups/" in (text(member, "$ref") or ""))
        who = references.group(value) if is_group else references.employee(value)
        found[who] = PermissionSnapshot(
            platform=PLATFORM,
            principal_ref=who,
            asset_ref=references.group(group_id),
            privilege=names.MEMBER,
            grant_mechanism=names.GROUP,
            granted_via=None,
            snapshot_at=snapshot_at,
            raw_payload={"group": about, "member": member},
        )
    return list(found.values())
