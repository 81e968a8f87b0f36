"""How principals and assets of a workspace are named; events and grants agree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from verity_sdk import references

_GUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_EVERYONE = "00000000-0000-0000-0000-000000000000"
_KINDS = {
    "user": references.user,
    "group": references.group,
    "foreigngroup": references.group,
    "serviceprincipal": references.service_principal,
    "msi": references.service_principal,
}

# Keys of an identity or of claims, by what they hold; compared by their last path segment, in
# lower case. The inner keys of `Identity` are documented nowhere (UNCONFIRMED), so the names that
# Azure's claims have elsewhere are tried.
_OBJECT_KEYS = ("objectidentifier", "oid", "objectid", "principalid", "callerobjectid")
_NAME_KEYS = ("upn", "userprincipalname", "unique_name", "preferred_username", "name", "loginname")
_APP_KEYS = ("appid", "applicationid", "clientid", "azp")


def workspace(name: str) -> str:
    """The workspace itself, which is also how far most roles reach."""
    return f"synapse:{name}"


def below(name: str, *parts: str) -> str:
    """Something within the workspace; empty parts are left out."""
    return "/".join([workspace(name), *(part for part in parts if part)])


def sql_object(name: str, database: str, schema: str, thing: str) -> str:
    """A database's object; the database where no object is named, the workspace without one."""
    if not database:
        return workspace(name)
    if not thing:
        return below(name, database, f"schema:{schema}" if schema else "")
    return below(name, database, f"{schema}.{thing}" if schema else thing)


def sql_role(name: str, database: str, role: str) -> str:
    """A role of a database, as a principal and as an asset."""
    return below(name, database, f"role:{role}")


def login(name: str, text: str) -> str:
    """Who a SQL principal's name stands for: a person, an application, or a login of the pool.

    Entra's names are `user@domain`, those of applications `appid@tenantid` or a bare GUID.
    """
    text = text.strip()
    if not text:
        return references.UNKNOWN
    first = text.partition("@")[0]
    if _GUID.fullmatch(first):
        return references.service_principal(first.lower())
    if "@" in text:
        return references.account(text)
    return below(name, f"login:{text}")


def principal(kind: str, object_id: str) -> str:
    """A principal of a role assignment; a kind that is not known keeps its own word."""
    kind = kind.lower()
    if object_id == _EVERYONE:
        return "everyone"
    make = _KINDS.get(kind)
    return make(object_id) if make else f"{kind or 'principal'}:{object_id}"


def resource(name: str, workspace_id: str, resource_id: str) -> str:
    """An Azure resource: those of the workspace under its name, any other under its whole id."""
    low, root = resource_id.rstrip("/").lower(), workspace_id.lower()
    if low == root:
        return workspace(name)
    if low.startswith(root + "/"):
        return below(name, resource_id.rstrip("/")[len(root) + 1 :])
    return f"azure:{low or '/'}"


def identity(name: str, value: Any) -> str:
    """Who an `Identity` or a set of claims names, as far as its keys are known."""
    if isinstance(value, str):
        return login(name, value)
    found = _flat(value)
    object_id = _first(found, _OBJECT_KEYS)
    login_name = _first(found, _NAME_KEYS)
    app = _first(found, _APP_KEYS)
    is_app = found.get("idtyp", "").lower() == "app" or found.get("principaltype", "").lower() in {
        "serviceprincipal",
        "msi",
    }
    if object_id:
        if is_app or (app and not login_name):
            return references.service_principal(object_id)
        return references.user(object_id)
    if login_name:
        return login(name, login_name)
    return references.application(app) if app else references.UNKNOWN


def _flat(value: Any, depth: int = 0) -> dict[str, str]:
    found: dict[str, str] = {}
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(inner, Mapping) and depth < 2:
                for name, text in _flat(inner, depth + 1).items():
                    found.setdefault(name, text)
            elif isinstance(inner, str) and inner:
                found.setdefault(str(key).rpartition("/")[2].lower(), inner)
    return found


def _first(found: Mapping[str, str], keys: tuple[str, ...]) -> str:
    return next((found[key] for key in keys if found.get(key)), "")
