"""From role assignments to permission records: pure functions, no I/O.

Synapse data plane 2020-12-01 (roleAssignments.json, roleDefinitions.json) and Microsoft.
Authorization 2022-04-01, Azure/azure-rest-api-specs, read 2026-11-24.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from connectors.synapse import references as names
from connectors.synapse.settings import PLATFORM
from verity_sdk.connector_base import PermissionSnapshot
from verity_sdk.errors import Malformed


def role_names(definitions: Iterable[Any]) -> dict[str, str]:
    """The names of Synapse's or Azure's roles by the last part of their id, in lower case."""
    found = {}
    for definition in definitions:
        if isinstance(definition, Mapping) and isinstance(definition.get("id"), str):
            inner = definition.get("properties")
            name = inner.get("roleName") if isinstance(inner, Mapping) else definition.get("name")
            if isinstance(name, str) and name:
                found[_last(definition["id"])] = name
    return found


def synapse_grant(
    assignment: Any, roles: Mapping[str, str], workspace: str, snapshot_at: datetime
) -> PermissionSnapshot:
    """What a role assignment of the workspace grants.

    Raises:
        Malformed: It names no principal or no role.
    """
    if not isinstance(assignment, Mapping):
        raise Malformed("a role assignment is no object")
    role, scope = _text(assignment, "roleDefinitionId"), _optional(assignment, "scope")
    # "workspaces/{name}" and, below it, "/bigDataPools/…", "/credentials/…" and more.
    asset = names.below(workspace, *scope.strip("/").split("/")[2:])
    return PermissionSnapshot(
        platform=PLATFORM,
        principal_ref=names.principal(
            _optional(assignment, "principalType"), _text(assignment, "principalId")
        ),
        asset_ref=asset,
        privilege=_role(role, roles),
        grant_mechanism="direct",
        snapshot_at=snapshot_at,
        raw_payload={**assignment, "plane": "synapse"},
    )


def azure_grant(
    assignment: Any,
    roles: Mapping[str, str],
    workspace: str,
    resource_id: str,
    snapshot_at: datetime,
) -> PermissionSnapshot:
    """What a role assignment of Azure grants on the workspace or below it.

    One that stands above the workspace reaches it by inheritance: its mechanism is `role`, and
    `granted_via` says where it stands.

    Raises:
        Malformed: It names no principal or no role.
    """
    properties = _properties(assignment)
    scope = _optional(properties, "scope")
    asset, via = _reached(workspace, resource_id, scope)
    return PermissionSnapshot(
        platform=PLATFORM,
        principal_ref=names.principal(
            _optional(properties, "principalType"), _text(properties, "principalId")
        ),
        asset_ref=asset,
        privilege=_role(_text(properties, "roleDefinitionId"), roles),
        grant_mechanism="direct" if via is None else "role",
        granted_via=via,
        snapshot_at=snapshot_at,
        raw_payload={**assignment, "plane": "azure"},
    )


def deny_grants(
    assignment: Any, workspace: str, resource_id: str, snapshot_at: datetime
) -> Iterator[PermissionSnapshot]:
    """What a deny assignment takes away: a record for each principal, its privilege `DENY …`.

    Raises:
        Malformed: Its principals are no list of principals.
    """
    properties = _properties(assignment)
    principals = properties.get("principals")
    if not isinstance(principals, list):
        raise Malformed("no list under `principals`")
    asset, via = _reached(workspace, resource_id, _optional(properties, "scope"))
    label = _optional(properties, "denyAssignmentName") or _last(_text(assignment, "id"))
    for one in principals:
        if not isinstance(one, Mapping):
            raise Malformed("a principal is no object")
        yield PermissionSnapshot(
            platform=PLATFORM,
            principal_ref=names.principal(_optional(one, "type"), _text(one, "id")),
            asset_ref=asset,
            privilege=f"DENY {label}",
            grant_mechanism="direct" if via is None else "role",
            granted_via=via,
            snapshot_at=snapshot_at,
            raw_payload={**assignment, "plane": "azure"},
        )


def _reached(workspace: str, resource_id: str, scope: str) -> tuple[str, str | None]:
    """The asset that an assignment at this scope reaches, and where it stands if above."""
    low, root = scope.rstrip("/").lower(), resource_id.lower()
    if f"{low}/".startswith(f"{root}/"):
        return names.resource(workspace, resource_id, scope), None
    return names.workspace(workspace), names.resource(workspace, resource_id, scope)


def _role(role_id: str, roles: Mapping[str, str]) -> str:
    # A role that is not listed (defined elsewhere, or deleted) keeps its id, and the grant stands.
    last = _last(role_id)
    return roles.get(last) or f"roleDefinition:{last}"


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2].lower()


def _properties(assignment: Any) -> Mapping[str, Any]:
    properties = assignment.get("properties") if isinstance(assignment, Mapping) else None
    if not isinstance(properties, Mapping):
        raise Malformed("no object under `properties`")
    return properties


def _optional(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    return value if isinstance(value, str) else ""


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value:
        raise Malformed(f"no text under `{key}`")
    return value
