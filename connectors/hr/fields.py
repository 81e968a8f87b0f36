"""What of a person is kept: an allow-list, applied before anything else sees the record.

Everything that is not on the list is dropped where the answer is parsed. Nothing behind it (events,
dead letters, logs, the cursor) can leak what it never had.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from verity_sdk.errors import Malformed

BAMBOOHR_FIELDS: Final = (
    "firstName",
    "lastName",
    "preferredName",
    "workEmail",
    "status",
    "hireDate",
    "terminationDate",
    "employmentStatusName",
    "departmentName",
    "departmentId",
    "divisionName",
    "locationName",
    "jobTitleName",
    "reportsToName",
    "reportsToId",
)
"""The default: identity, organisation, employment. No pay, no birth date, no home address."""

# One field has several names: of the list, of a single employee, of the directory and of the
# tables (BambooHR OpenAPI, read 2026-11-24; the directory's set varies by company, and its
# supervisor and the columns of tables are UNCONFIRMED: not in the specification).
BAMBOOHR_SYNONYMS: Final = {
    "department": "departmentName",
    "division": "divisionName",
    "location": "locationName",
    "jobTitle": "jobTitleName",
    "employmentStatus": "employmentStatusName",
    "supervisor": "reportsToName",
    "supervisorId": "reportsToId",
    "reportsTo": "reportsToName",
}
# What the list may be asked for besides what it always has (EmployeeOptionalField, ibid.).
LIST_FIELDS: Final = frozenset(
    {
        *("workEmail", "hireDate", "departmentName", "departmentId", "divisionName"),
        *("divisionId", "locationName", "locationId", "jobTitleId", "employmentStatusName"),
        *("employmentStatusId", "reportsToName", "reportsToId", "middleName", "workPhone"),
        *("workPhoneExtension", "mobilePhone", "homePhone", "homeEmail", "bestEmail"),
        *("birthDate", "skypeUsername", "linkedinUrl", "facebookUrl", "instagramUrl"),
        *("twitterUrl", "pinterestUrl"),
    }
)
# How Get Employee calls what the list calls otherwise (GetEmployeeResponse, ibid.).
SINGLE_NAMES: Final = {
    "departmentName": "department",
    "divisionName": "division",
    "locationName": "location",
    "employmentStatusName": "employmentStatus",
}
_BAMBOOHR_KEYS: Final = ("id", "employeeId", "date", "action", "lastChanged")
RESTRICTED: Final = "_restrictedFields"

ENTERPRISE: Final = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"
SCIM_ATTRIBUTES: Final = (
    "userName",
    "externalId",
    "active",
    "displayName",
    "name.givenName",
    "name.familyName",
    "title",
    "userType",
    "emails",
    "groups",
    "roles",
    "entitlements",
    f"{ENTERPRISE}:employeeNumber",
    f"{ENTERPRISE}:costCenter",
    f"{ENTERPRISE}:organization",
    f"{ENTERPRISE}:division",
    f"{ENTERPRISE}:department",
    f"{ENTERPRISE}:manager",
)
"""The default, in SCIM's attribute notation (RFC 7644, 3.10)."""
GROUP_ATTRIBUTES: Final = ("displayName", "members")
_META: Final = ("resourceType", "created", "lastModified", "version")
# Of a value with parts only these; `home` addresses are nobody's business.
_PARTS: Final = {
    "emails": ("value", "type", "primary"),
    "groups": ("value", "display", "type"),
    "members": ("value", "display", "type", "$ref"),
    "roles": ("value", "display", "type", "primary"),
    "entitlements": ("value", "display", "type", "primary"),
    "manager": ("value", "displayName"),
}

# What has no parts that an allow-list of names could overlook.
_SCALARS: Final = frozenset({str, int, float, bool, type(None)})
Keep = Callable[[Any], dict[str, Any]]


def bamboohr_filter(fields: Collection[str]) -> Keep:
    """A function that leaves of one of BambooHR's records only what is allowed.

    It never fails: of a value that is no scalar its kind is left, of what is no object nothing.
    """
    allowed = frozenset(fields)
    kept = {
        *allowed,
        *(key for key, name in BAMBOOHR_SYNONYMS.items() if name in allowed),
        *_BAMBOOHR_KEYS,
    }

    def keep(record: Any) -> dict[str, Any]:
        if not isinstance(record, dict):
            return {"is": type(record).__name__}
        left = {
            key: value if value.__class__ in _SCALARS else [type(value).__name__]
            for key, value in record.items()
            if key in kept
        }
        restricted = record.get(RESTRICTED)
        if isinstance(restricted, list):
            left[RESTRICTED] = [
                name for name in restricted if isinstance(name, str) and name in kept
            ]
        return left

    return keep


def scim_filter(attributes: Collection[str]) -> Keep:
    """A function that leaves of a SCIM resource only what is allowed, `id` and `meta`.

    It never fails, as `bamboohr_filter`. Attribute names are compared as they stand: servers
    spell them as the schema does (RFC 7643, 2.1 would let them differ in case).
    """
    whole: set[str] = set()
    below: dict[str, set[str]] = {}
    for path in attributes:
        urn, colon, name = path.rpartition(":")
        if colon:
            below.setdefault(urn, set()).add(name)
        elif "." in path:
            head, _, tail = path.partition(".")
            below.setdefault(head, set()).add(tail)
        else:
            whole.add(path)

    def keep(resource: Any) -> dict[str, Any]:
        if not isinstance(resource, dict):
            return {"is": type(resource).__name__}
        left: dict[str, Any] = {}
        for key, value in resource.items():
            if key == "id":
                left[key] = value if type(value) in _SCALARS else [type(value).__name__]
            elif key == "meta":
                left[key] = _scalars(value, _META)
            elif key in whole:
                left[key] = _parts(key, value)
            elif key in below and isinstance(value, dict):
                names = below[key]
                left[key] = {k: _parts(k, v) for k, v in value.items() if k in names}
        return left

    return keep


def _scalars(value: Any, names: Collection[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {"is": type(value).__name__}
    return {
        name: value[name] if value[name].__class__ in _SCALARS else [type(value[name]).__name__]
        for name in names
        if name in value
    }


def _parts(name: str, value: Any) -> Any:
    """A value with parts: of those known here the parts that matter, of others all."""
    parts = _PARTS.get(name)
    if parts is None:
        return value
    if isinstance(value, dict):
        return _scalars(value, parts)
    if not isinstance(value, list):
        # A manager may be named by the id alone (SCIM 1.1's form, still met).
        is_plain = value is None or (name == "manager" and isinstance(value, str))
        return value if is_plain else [type(value).__name__]
    return [
        _scalars(one, parts)
        for one in value
        if not (name == "emails" and isinstance(one, dict) and _is_home(one))
    ]


def _is_home(email: Mapping[str, Any]) -> bool:
    kind = email.get("type")
    return isinstance(kind, str) and kind.lower() == "home"


def text(record: Mapping[str, Any], key: str) -> str | None:
    """A value as text; None where it is null or empty.

    Raises:
        Malformed: It has parts; the message names the field and never shows the value.
    """
    value = record.get(key)
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Malformed(f"{key} is a {type(value).__name__}, not a text")
    return str(value)
