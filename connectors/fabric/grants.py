"""What the scanner and the Fabric admin API say of permissions, as snapshot rows: pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from connectors.fabric import references as names
from connectors.fabric.settings import PLATFORM
from verity_sdk import references
from verity_sdk.connector_base import PermissionSnapshot
from verity_sdk.errors import Malformed

ROLE = "role"
DIRECT = "direct"
GROUP = "group"

_NO_ACCESS = "None"
_WORKSPACE_RIGHT = "groupUserAccessRight"
_ABOUT_WORKSPACE = (
    "id",
    "name",
    "type",
    "state",
    "capacityId",
    "isOnDedicatedCapacity",
    "dataRetrievalState",
)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a grant.

    Attributes:
        login: The e-mail or login of a person that is named by an id; makes an alias.
    """

    ref: str
    login: str | None = None


@dataclass(slots=True)
class Found:
    """What a part of an answer says.

    Attributes:
        rows: Grants, and aliases of those who hold them.
        problems: What was not understood, each in one sentence.
    """

    rows: list[PermissionSnapshot] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(
        self,
        holder: Holder,
        asset_ref: str,
        privileges: Sequence[str],
        mechanism: str,
        snapshot_at: datetime,
        payload: dict[str, Any],
    ) -> None:
        """One row a privilege, and the alias of the holder."""
        for privilege in privileges:
            self.rows.append(
                PermissionSnapshot(
                    platform=PLATFORM,
                    principal_ref=holder.ref,
                    asset_ref=asset_ref,
                    privilege=privilege,
                    grant_mechanism=mechanism,
                    granted_via=privilege if mechanism == ROLE else None,
                    snapshot_at=snapshot_at,
                    raw_payload=payload,
                )
            )
        if privileges and holder.login:
            self.rows.append(alias(holder.ref, holder.login, snapshot_at, payload))


def alias(
    ref: str, login: str, snapshot_at: datetime, payload: dict[str, Any]
) -> PermissionSnapshot:
    """The row that says: this principal is also known by this login."""
    return PermissionSnapshot(
        platform=PLATFORM,
        principal_ref=ref,
        asset_ref=references.account(login),
        privilege=references.ALIAS,
        grant_mechanism=references.ALIAS,
        snapshot_at=snapshot_at,
        raw_payload=payload,
    )


def member_row(
    grant: PermissionSnapshot, member_ref: str, member: Mapping[str, Any]
) -> PermissionSnapshot:
    """The same grant as a member of the group has it."""
    return PermissionSnapshot(
        platform=grant.platform,
        principal_ref=member_ref,
        asset_ref=grant.asset_ref,
        privilege=grant.privilege,
        grant_mechanism=GROUP,
        granted_via=grant.principal_ref,
        snapshot_at=grant.snapshot_at,
        raw_payload={**grant.raw_payload, "member": dict(member)},
    )


# ── Power BI scanner ─────────────────────────────────────────────────────────────────────────


def scanned(workspace: Mapping[str, Any], snapshot_at: datetime, scan: dict[str, Any]) -> Found:
    """The grants in a workspace of a `scanResult`.

    Every list of things that have an id is read as items of a kind: besides what the swagger
    lists, tenants get `Lakehouse`, `Notebook`, `warehouses`, … with `artifactUserAccessRight`
    (seen in Microsoft's FUAM and semantic-link-labs, 2026-11-24). UNCONFIRMED: whether an item's
    users include those who reach it through a role of the workspace; the rows say `direct`.

    Args:
        workspace: With an id.
        scan: What to say of the scan in the rows' payload.
    """
    found = Found()
    workspace_id = str(workspace["id"])
    about = {name: workspace[name] for name in _ABOUT_WORKSPACE if name in workspace}
    state = workspace.get("dataRetrievalState")
    # The states are not documented; a peer treats these as incomplete.
    if isinstance(state, str) and any(word in state.lower() for word in ("fail", "partial")):
        found.problems.append(f"the scanner says dataRetrievalState {state}")
    for user in _users(workspace, found):
        _add_user(
            found,
            user,
            _WORKSPACE_RIGHT,
            names.workspace(workspace_id),
            ROLE,
            snapshot_at,
            {"workspace": about, "user": user, "scan": scan},
        )
    for kind, things in workspace.items():
        if kind.lower() == "users" or not isinstance(things, list):
            continue
        for thing in things:
            if not isinstance(thing, dict) or "users" not in {name.lower() for name in thing}:
                continue
            item_id = thing.get("id") or thing.get("objectId")
            if not isinstance(item_id, str):
                found.problems.append(f"one of {kind} has users and no id")
                continue
            item = {
                "id": item_id,
                "kind": kind,
                "name": thing.get("name", thing.get("displayName")),
            }
            for user in _users(thing, found):
                _add_user(
                    found,
                    user,
                    None,
                    names.item(workspace_id, item_id),
                    DIRECT,
                    snapshot_at,
                    {"workspace": about, "item": item, "user": user, "scan": scan},
                )
    return found


def _users(thing: Mapping[str, Any], found: Found) -> Iterator[dict[str, Any]]:
    for name, users in thing.items():
        # The swagger's own example spells a datamart's list `Users`.
        if name.lower() != "users" or users is None:
            continue
        if not isinstance(users, list):
            found.problems.append("users is no list")
            continue
        for user in users:
            if isinstance(user, dict):
                yield user
            else:
                found.problems.append("a user is no object")


def _add_user(
    found: Found,
    user: dict[str, Any],
    right_field: str | None,
    asset_ref: str,
    mechanism: str,
    snapshot_at: datetime,
    payload: dict[str, Any],
) -> None:
    try:
        right = _access_right(user, right_field)
        holder = scanned_holder(user)
    except Malformed as error:
        found.problems.append(f"{asset_ref}: {error}")
        return
    # `None` takes access away: it is no grant.
    if right != _NO_ACCESS:
        found.add(holder, asset_ref, [right], mechanism, snapshot_at, payload)


def _access_right(user: Mapping[str, Any], right_field: str | None) -> str:
    """The one value whose field ends in `AccessRight`.

    The swagger spells the field differently in schema (`DataflowUserAccessRight`), required list
    and example (`appUserAccessRight`): only the ending can be relied on.
    """
    value = user.get(right_field) if right_field else None
    if value is None:
        values = (right for name, right in user.items() if name.lower().endswith("accessright"))
        value = next(values, None)
    if not isinstance(value, str) or not value:
        raise Malformed("a user has no access right")
    return value


def scanned_holder(user: Mapping[str, Any]) -> Holder:
    """Who a user of a scan is.

    Raises:
        Malformed: Nobody is named.
    """
    kind = user.get("principalType")
    if kind == "None":
        return Holder(names.ALL_TENANT_USERS)
    profile = user.get("profile")
    if isinstance(profile, dict) and _text(profile, "id"):
        return Holder(names.profile(str(profile["id"])))
    graph_id, email = _text(user, "graphId"), _text(user, "emailAddress")
    name = graph_id or _text(user, "identifier") or email
    if name is None:
        raise Malformed("a user has no id")
    if kind == "User":
        if graph_id is None:
            return Holder(references.account(name))
        return Holder(references.user(graph_id), email or _login(_text(user, "identifier")))
    return Holder(_ref_of(kind, name))


# ── Fabric admin API ─────────────────────────────────────────────────────────────────────────


def workspace_access(workspace: Mapping[str, Any], body: Any, snapshot_at: datetime) -> Found:
    """The grants that `GET /v1/admin/workspaces/{id}/users` tells of."""
    found = Found()
    asset_ref = names.workspace(str(workspace["id"]))
    for entry in _access_details(body, found):
        try:
            holder = admin_holder(entry.get("principal"))
            role = _text(_object(entry, "workspaceAccessDetails"), "workspaceRole")
            if role is None:
                raise Malformed("an entry has no workspaceRole")
        except Malformed as error:
            found.problems.append(f"{asset_ref}: {error}")
            continue
        payload = {"workspace": dict(workspace), "access": entry}
        found.add(holder, asset_ref, [role], ROLE, snapshot_at, payload)
    return found


def item_access(item: Mapping[str, Any], body: Any, snapshot_at: datetime) -> Found:
    """The grants that `GET /v1/admin/workspaces/{id}/items/{id}/users` tells of.

    One row a value of `permissions` and of `additionalPermissions`.
    """
    found = Found()
    asset_ref = names.item(str(item["workspaceId"]), str(item["id"]))
    for entry in _access_details(body, found):
        try:
            holder = admin_holder(entry.get("principal"))
            details = _object(entry, "itemAccessDetails")
            privileges = [
                *_texts(details, "permissions"),
                *_texts(details, "additionalPermissions"),
            ]
        except Malformed as error:
            found.problems.append(f"{asset_ref}: {error}")
            continue
        payload = {"item": dict(item), "access": entry}
        found.add(holder, asset_ref, privileges, DIRECT, snapshot_at, payload)
    return found


def admin_holder(principal: Any) -> Holder:
    """Who a `Principal` of the Fabric API is; types that are not known are no error.

    Raises:
        Malformed: It has no id.
    """
    if not isinstance(principal, dict):
        raise Malformed("an entry has no principal")
    kind = principal.get("type")
    if kind == "EntireTenant":
        return Holder(names.ALL_TENANT_USERS)
    name = _text(principal, "id")
    if name is None:
        raise Malformed("a principal has no id")
    if kind == "ServicePrincipalProfile":
        return Holder(names.profile(name))
    if kind == "User":
        details = principal.get("userDetails")
        login = _text(details, "userPrincipalName") if isinstance(details, dict) else None
        return Holder(references.user(name), login)
    return Holder(_ref_of(kind, name))


def _access_details(body: Any, found: Found) -> Iterator[dict[str, Any]]:
    entries = body.get("accessDetails") if isinstance(body, dict) else None
    if not isinstance(entries, list):
        found.problems.append("the answer has no accessDetails")
        return
    for entry in entries:
        if isinstance(entry, dict):
            yield entry
        else:
            found.problems.append("an entry of accessDetails is no object")


def _ref_of(kind: Any, name: str) -> str:
    if kind == "Group":
        return references.group(name)
    if kind in ("App", "ServicePrincipal"):
        return references.service_principal(name)
    return names.principal(name)


def _login(name: str | None) -> str | None:
    """The name if it is an e-mail or login."""
    return name if name and "@" in name else None


def _object(thing: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = thing.get(name)
    if not isinstance(value, dict):
        raise Malformed(f"an entry has no {name}")
    return value


def _texts(thing: Mapping[str, Any], name: str) -> list[str]:
    values = thing.get(name) or []
    if not isinstance(values, list) or not all(isinstance(one, str) and one for one in values):
        raise Malformed(f"{name} is no list of texts")
    return list(dict.fromkeys(values))


def _text(thing: Mapping[str, Any], name: str) -> str | None:
    value = thing.get(name)
    return value if value and isinstance(value, str) else None
