"""From Graph's directory objects to grants; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from connectors.azure_ad import references as names
from connectors.azure_ad.settings import PLATFORM
from verity_sdk import references
from verity_sdk.connector_base import PermissionSnapshot
from verity_sdk.errors import Malformed

DEFAULT_ACCESS = "default_access"
GROUP_PREFIX = references.group("")


@dataclass(frozen=True, slots=True)
class Reach:
    """Who is in a group, over any number of steps.

    Attributes:
        principals: All members that are no groups, sorted.
        unread: Groups on the way whose members are not known; if any, `principals` lacks some.
    """

    principals: Sequence[str]
    unread: frozenset[str]


@dataclass(slots=True)
class Groups:
    """The groups of the tenant and their direct members.

    Attributes:
        known: Ids of all groups that were listed.
        members: The direct members of each group that was read, as principals.
    """

    known: set[str] = field(default_factory=set)
    members: dict[str, Sequence[str]] = field(default_factory=dict)
    _reached: dict[str, Reach] = field(default_factory=dict)

    def reach(self, group_id: str) -> Reach:
        """The transitive members; nested and cyclic groups are each walked once."""
        if group_id not in self._reached:
            self._reached[group_id] = self._walk(group_id)
        return self._reached[group_id]

    def direct(self, group_id: str) -> Reach:
        """The direct members only."""
        members = self.members.get(group_id)
        if members is None:
            return Reach((), frozenset({group_id}))
        return Reach(sorted(set(_without_groups(members))), frozenset())

    def _walk(self, group_id: str) -> Reach:
        principals: set[str] = set()
        unread: set[str] = set()
        visited, waiting = {group_id}, [group_id]
        while waiting:
            one = waiting.pop()
            members = self.members.get(one)
            if members is None:
                unread.add(one)
                continue
            principals.update(_without_groups(members))
            nested = {m.removeprefix(GROUP_PREFIX) for m in members if m.startswith(GROUP_PREFIX)}
            waiting.extend(nested - visited)
            visited |= nested
        return Reach(sorted(principals), frozenset(unread))


def _without_groups(members: Iterable[str]) -> Iterator[str]:
    return (member for member in members if not member.startswith(GROUP_PREFIX))


@dataclass(frozen=True, slots=True)
class RoleKind:
    """A collection of role assignments.

    Attributes:
        via: How its records are named in `granted_via`.
        is_eligible: Whether its holders have to activate the role first (PIM).
    """

    via: str
    is_eligible: bool = False


ASSIGNED = RoleKind("roleAssignment")
ACTIVE = RoleKind("roleAssignmentSchedule")
ELIGIBLE = RoleKind("roleEligibility", is_eligible=True)


@dataclass(frozen=True, slots=True)
class Found:
    """The grants of one record.

    Attributes:
        unread: Groups whose members would have to be known to name all of them.
    """

    grants: Sequence[PermissionSnapshot]
    unread: frozenset[str] = frozenset()


class Grants:
    """Makes the grants of one snapshot.

    Every method raises `Malformed` for a record without the ids that name its grant.
    """

    def __init__(self, snapshot_at: datetime, groups: Groups) -> None:
        self._snapshot_at = snapshot_at
        self._groups = groups
        self._roles: dict[str, Mapping[str, Any]] = {}
        self._app_roles: dict[str, str] = {}

    def learn_role(self, definition: Mapping[str, Any]) -> None:
        """Remember what a role is called."""
        kept = ("id", "displayName", "templateId", "isBuiltIn")
        self._roles[_id(definition, "id")] = {name: definition.get(name) for name in kept}

    def learn_app_roles(self, service_principal: Mapping[str, Any]) -> None:
        """Remember what the roles of an application are called."""
        for role in service_principal.get("appRoles") or ():
            if isinstance(role, dict) and role.get("id") and role.get("value"):
                self._app_roles[f"{service_principal.get('id')}/{role['id']}"] = role["value"]

    def of_member(self, member: Mapping[str, Any], group: Mapping[str, Any]) -> PermissionSnapshot:
        """A direct member of a group."""
        return self._of_relation(member, "member", references.group(_id(group, "id")), group=group)

    def of_group_owner(
        self, owner: Mapping[str, Any], group: Mapping[str, Any]
    ) -> PermissionSnapshot:
        """An owner of a group."""
        return self._of_relation(owner, "owner", references.group(_id(group, "id")), group=group)

    def of_application_owner(
        self, owner: Mapping[str, Any], application: Mapping[str, Any]
    ) -> PermissionSnapshot:
        """An owner of an app registration: may give it new credentials."""
        asset = references.application(_id(application, "appId"))
        return self._of_relation(owner, "owner", asset, application=application)

    def of_service_principal_owner(
        self, owner: Mapping[str, Any], service_principal: Mapping[str, Any]
    ) -> PermissionSnapshot:
        """An owner of a service principal: may give it new credentials, too."""
        asset = names.resource(_id(service_principal, "id"))
        shown = {name: service_principal.get(name) for name in ("id", "appId", "displayName")}
        return self._of_relation(owner, "owner", asset, servicePrincipal=shown)

    def of_role(self, record: Mapping[str, Any], kind: RoleKind) -> Found:
        """A role assignment; one to a group also stands for each transitive member."""
        role_id = _id(record, "roleDefinitionId")
        role = self._roles.get(role_id, {"id": role_id})
        scope = record.get("directoryScopeId") or record.get("appScopeId")
        if not isinstance(scope, str):
            raise Malformed("the role assignment has no scope")
        payload = {**record, "roleDefinition": role}
        if kind.is_eligible:
            payload["eligible"] = True
        holder = self._holder(record)
        return self._spread(
            holder,
            self._groups.reach if holder.startswith(GROUP_PREFIX) else None,
            asset=names.directory(scope),
            privilege=str(role.get("displayName") or role_id),
            mechanism="role",
            via=f"{kind.via}:{_id(record, 'id')}",
            payload=payload,
        )

    def of_app_role(self, record: Mapping[str, Any]) -> Found:
        """An app-role assignment; one to a group also stands for each *direct* member.

        It does not cascade to nested groups (MS Learn assign-user-or-group-access-portal, read
        2026-11-24).
        """
        resource_id, role_id = _id(record, "resourceId"), _id(record, "appRoleId")
        if role_id == names.NO_OBJECT:
            privilege = DEFAULT_ACCESS
        else:
            privilege = self._app_roles.get(f"{resource_id}/{role_id}", role_id)
        holder = names.principal(_id(record, "principalType"), _id(record, "principalId"))
        return self._spread(
            holder,
            self._groups.direct if holder.startswith(GROUP_PREFIX) else None,
            asset=names.resource(resource_id),
            privilege=privilege,
            mechanism="direct",
            via=f"appRoleAssignment:{_id(record, 'id')}",
            payload=dict(record),
        )

    def of_consent(self, record: Mapping[str, Any]) -> list[PermissionSnapshot]:
        """A delegated consent: the client may do each scope in the name of its user, or of all."""
        if record.get("consentType") == "AllPrincipals":
            holder = names.ALL_PRINCIPALS
        else:
            holder = references.user(_id(record, "principalId"))
        scopes = record.get("scope")
        words = scopes.split() if isinstance(scopes, str) else []
        return [
            self._grant(
                holder,
                names.resource(_id(record, "resourceId")),
                word,
                "policy",
                f"oauth2PermissionGrant:{_id(record, 'id')}",
                dict(record),
            )
            for word in dict.fromkeys(words)
        ]

    def of_aliases(self, user: Mapping[str, Any]) -> list[PermissionSnapshot]:
        """What else a user is known as: the name to sign in with, and the e-mail if it differs."""
        holder = references.user(_id(user, "id"))
        logins = [user.get("userPrincipalName"), user.get("mail")]
        accounts = dict.fromkeys(
            references.account(login) for login in logins if isinstance(login, str) and login
        )
        return [
            self._grant(holder, account, references.ALIAS, references.ALIAS, None, dict(user))
            for account in accounts
        ]

    def _of_relation(
        self, holder: Mapping[str, Any], privilege: str, asset: str, **about: Any
    ) -> PermissionSnapshot:
        return self._grant(
            principal_of(holder), asset, privilege, "direct", None, {**holder, **about}
        )

    def _holder(self, record: Mapping[str, Any]) -> str:
        """Who holds a role: the expanded principal says its type; else the groups are known."""
        holder_id, expanded = _id(record, "principalId"), record.get("principal")
        if isinstance(expanded, dict) and isinstance(expanded.get("@odata.type"), str):
            return names.principal(expanded["@odata.type"], holder_id)
        if holder_id in self._groups.known:
            return references.group(holder_id)
        # A principal that was deleted is not expanded; most were users.
        return references.user(holder_id)

    def _spread(
        self,
        holder: str,
        members_of: Any,
        *,
        asset: str,
        privilege: str,
        mechanism: str,
        via: str,
        payload: dict[str, Any],
    ) -> Found:
        own = self._grant(holder, asset, privilege, mechanism, via, payload)
        if members_of is None:
            return Found([own])
        reach: Reach = members_of(holder.removeprefix(GROUP_PREFIX))
        spread = [
            self._grant(member, asset, privilege, "group", f"{holder}>{via}", payload)
            for member in reach.principals
        ]
        return Found([own, *spread], reach.unread)

    def _grant(
        self,
        holder: str,
        asset: str,
        privilege: str,
        mechanism: str,
        via: str | None,
        payload: dict[str, Any],
    ) -> PermissionSnapshot:
        return PermissionSnapshot(
            platform=PLATFORM,
            principal_ref=holder,
            asset_ref=asset,
            privilege=privilege,
            grant_mechanism=mechanism,
            granted_via=via,
            snapshot_at=self._snapshot_at,
            raw_payload=payload,
        )


def principal_of(one: Mapping[str, Any]) -> str:
    """A directory object as a principal.

    Raises:
        Malformed: It has no id or no type.
    """
    return names.principal(_id(one, "@odata.type"), _id(one, "id"))


def _id(record: Any, name: str) -> str:
    value = record.get(name) if isinstance(record, Mapping) else None
    if not isinstance(value, str) or not value:
        raise Malformed(f"the record has no {name}")
    return value
