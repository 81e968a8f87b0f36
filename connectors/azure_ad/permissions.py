"""Reading who may do what: collection by collection, each lost part said by name.

Graph has no snapshot over collections, so the parts are of slightly different times. What can't
be read is a `SnapshotGap`, and the others go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from connectors.azure_ad.grants import (
    ACTIVE,
    ASSIGNED,
    ELIGIBLE,
    Found,
    Grants,
    Groups,
    RoleKind,
    principal_of,
)
from connectors.azure_ad.graph import Graph, Listing, Vanished
from connectors.azure_ad.settings import Settings
from verity_sdk.connector_base import PermissionSnapshot
from verity_sdk.errors import Denied, Malformed, Misconfigured, Unavailable
from verity_sdk.http import encoded
from verity_sdk.pages import SnapshotGap, SnapshotScope

Item: TypeAlias = PermissionSnapshot | SnapshotGap | SnapshotScope

CONCURRENT_MAX = 8
"""Objects asked about at once; the client's budget holds the same number."""

# Misconfigured is a link to a host that is not Graph's: it is not followed, and the part is lost.
_LOSSES = (Denied, Unavailable, Malformed, Misconfigured)
_BATCH = 64
_LOST_SHOWN_MAX = 20
_OUTAGES_MAX = 3
_NAMED_MAX = 5
_PAGE = "999"  # The most that lists of directory objects take (MS Learn graph/paging).

# The application permissions, least privileged first (MS Learn, each method's page, read
# 2026-11-24). Directory.Read.All includes the lists of the second line.
_MEMBERS = "GroupMember.Read.All (for hidden memberships also Member.Read.Hidden)"
_DIRECTORY = "Directory.Read.All"
_ROLES = "RoleManagement.Read.Directory"
_ACTIVE = "RoleAssignmentSchedule.Read.Directory or RoleManagement.Read.Directory"
_ELIGIBLE = "RoleEligibilitySchedule.Read.Directory or RoleManagement.Read.Directory"
_APPLICATIONS = "Application.Read.All"
_USERS = "User.Read.All"

GROUPS = Listing(
    "/v1.0/groups",
    {
        "$select": "id,displayName,securityEnabled,isAssignableToRole,groupTypes,visibility",
        "$top": _PAGE,
    },
    "Group.Read.All or Directory.Read.All",
)
ROLE_DEFINITIONS = Listing("/v1.0/roleManagement/directory/roleDefinitions", {}, _ROLES)
ROLE_ASSIGNMENTS = Listing(
    "/v1.0/roleManagement/directory/roleAssignments", {"$expand": "principal"}, _ROLES
)
ACTIVE_ROLES = Listing(
    "/v1.0/roleManagement/directory/roleAssignmentScheduleInstances",
    {"$expand": "principal"},
    _ACTIVE,
)
ELIGIBLE_ROLES = Listing(
    "/v1.0/roleManagement/directory/roleEligibilityScheduleInstances",
    {"$expand": "principal"},
    _ELIGIBLE,
)
SERVICE_PRINCIPALS = Listing(
    "/v1.0/servicePrincipals",
    {"$select": "id,appId,displayName,appRoles", "$top": _PAGE},
    _APPLICATIONS,
)
APPLICATIONS = Listing(
    "/v1.0/applications", {"$select": "id,appId,displayName", "$top": _PAGE}, _APPLICATIONS
)
CONSENTS = Listing("/v1.0/oauth2PermissionGrants", {}, _DIRECTORY)
USERS = Listing(
    "/v1.0/users",
    {
        "$select": "id,userPrincipalName,mail,userType,accountEnabled,deletedDateTime,employeeId",
        "$top": _PAGE,
    },
    _USERS,
)


def collections_of(settings: Settings) -> list[Listing]:
    """What a snapshot reads, without what hangs on single objects."""
    found = [GROUPS, ROLE_DEFINITIONS, ROLE_ASSIGNMENTS, SERVICE_PRINCIPALS, APPLICATIONS]
    if settings.pim:
        found += [ACTIVE_ROLES, ELIGIBLE_ROLES]
    return [*found, CONSENTS, USERS]


def members_of(group_id: str, version: str) -> Listing:
    """The direct members of a group."""
    return Listing(
        f"/{version}/groups/{encoded(group_id)}/members",
        {"$select": "id", "$top": _PAGE},
        _MEMBERS,
    )


async def read_permissions(
    graph: Graph, settings: Settings, snapshot_at: datetime
) -> AsyncGenerator[Item, None]:
    """Every grant that stands, and after each part whether it was read completely.

    Raises:
        Unavailable: Graph is down: after several parts had to be given up for that.
    """
    reading = _Reading(graph, settings, snapshot_at)
    parts: list[Callable[[], AsyncGenerator[Item, None]]] = [
        # The groups first: the others' grants reach through them.
        reading.groups,
        reading.role_definitions,
        lambda: reading.roles(ROLE_ASSIGNMENTS, ASSIGNED),
    ]
    if settings.pim:
        parts += [
            lambda: reading.roles(ACTIVE_ROLES, ACTIVE),
            lambda: reading.roles(ELIGIBLE_ROLES, ELIGIBLE),
        ]
    parts += [reading.service_principals, reading.applications, reading.consents, reading.users]
    for part in parts:
        async with aclosing(part()) as items:
            async for item in items:
                yield item


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What was read of one object, and why not all of it."""

    grants: Sequence[PermissionSnapshot]
    unread: frozenset[str] = frozenset()
    errors: Sequence[Exception] = ()


class _Reading:
    """One snapshot."""

    def __init__(self, graph: Graph, settings: Settings, snapshot_at: datetime) -> None:
        self._graph = graph
        self._settings = settings
        self._groups = Groups()
        self._grants = Grants(snapshot_at, self._groups)
        self._outage_count = 0

    async def groups(self) -> AsyncGenerator[Item, None]:
        """Who is in each group, and who owns it."""
        listed = await self._listed(GROUPS)
        if isinstance(listed, SnapshotGap):
            yield listed
            return
        self._groups.known.update(_ids(listed))
        async with aclosing(self._each(GROUPS, "group", listed, self._group)) as items:
            async for item in items:
                yield item
        if self._settings.group_members_from == "v1.0":
            yield SnapshotGap(
                "groups/servicePrincipals",
                "Graph v1.0 leaves service principals out of a group's members: set "
                'group_members_from = "beta"',
            )

    async def role_definitions(self) -> AsyncGenerator[Item, None]:
        """What the roles are called; no grants."""
        listed = await self._listed(ROLE_DEFINITIONS)
        if isinstance(listed, SnapshotGap):
            # The assignments still come, under the roles' ids.
            yield listed
            return
        faults = []
        for record in listed:
            try:
                self._grants.learn_role(record)
            except Malformed as error:
                faults.append(error)
        yield _verdict(_scope(ROLE_DEFINITIONS), (), faults)

    async def roles(self, listing: Listing, kind: RoleKind) -> AsyncGenerator[Item, None]:
        """The role assignments of one kind."""
        listed = await self._listed(listing)
        if isinstance(listed, SnapshotGap):
            yield listed
            return
        unread: set[str] = set()
        faults = []
        for record in listed:
            try:
                found = self._grants.of_role(record, kind)
            except Malformed as error:
                faults.append(error)
                continue
            unread |= found.unread
            for grant in found.grants:
                yield grant
        yield _verdict(_scope(listing), unread, faults)

    async def service_principals(self) -> AsyncGenerator[Item, None]:
        """Who holds which role of each application, and who owns it."""
        listed = await self._listed(SERVICE_PRINCIPALS)
        if isinstance(listed, SnapshotGap):
            yield listed
            return
        for record in listed:
            self._grants.learn_app_roles(record)
        items = self._each(SERVICE_PRINCIPALS, "servicePrincipal", listed, self._service_principal)
        async with aclosing(items):
            async for item in items:
                yield item

    async def applications(self) -> AsyncGenerator[Item, None]:
        """Who owns each app registration."""
        listed = await self._listed(APPLICATIONS)
        if isinstance(listed, SnapshotGap):
            yield listed
            return
        items = self._each(APPLICATIONS, "application", listed, self._application)
        async with aclosing(items):
            async for item in items:
                yield item

    async def consents(self) -> AsyncGenerator[Item, None]:
        """What applications may do in the name of users."""
        listed = await self._listed(CONSENTS)
        if isinstance(listed, SnapshotGap):
            yield listed
            return
        faults = []
        for record in listed:
            try:
                grants = self._grants.of_consent(record)
            except Malformed as error:
                faults.append(error)
                continue
            for grant in grants:
                yield grant
        yield _verdict(_scope(CONSENTS), (), faults)

    async def users(self) -> AsyncGenerator[Item, None]:
        """What the users are also known as; page by page, since there may be many."""
        faults = []
        try:
            async with aclosing(self._graph.pages(USERS)) as pages:
                async for page in pages:
                    for record in page:
                        try:
                            aliases = self._grants.of_aliases(record)
                        except Malformed as error:
                            faults.append(error)
                            continue
                        for alias in aliases:
                            yield alias
        except _LOSSES as error:
            yield self._lost(_scope(USERS), error)
            return
        yield _verdict(_scope(USERS), (), faults)

    async def _group(self, group: dict[str, Any]) -> _Outcome:
        group_id = group["id"]
        version = self._settings.group_members_from
        owners = Listing(
            f"/{version}/groups/{encoded(group_id)}/owners",
            {"$select": "id", "$top": _PAGE},
            "Group.Read.All or Directory.Read.All",
        )
        grants: list[PermissionSnapshot] = []
        errors: list[Exception] = []
        try:
            members = _once(await self._graph.collection(members_of(group_id, version)))
            grants += [self._grants.of_member(one, group) for one in members]
            # Only now, and only if every member was understood, is the group known.
            self._groups.members[group_id] = [principal_of(one) for one in members]
        except _LOSSES as error:
            errors.append(error)
        if not any(isinstance(error, Vanished) for error in errors):
            try:
                found = _once(await self._graph.collection(owners))
                grants += [self._grants.of_group_owner(one, group) for one in found]
            except _LOSSES as error:
                errors.append(error)
        return _Outcome(grants, errors=errors)

    async def _service_principal(self, resource: dict[str, Any]) -> _Outcome:
        root = f"/v1.0/servicePrincipals/{encoded(resource['id'])}"
        assigned = Listing(f"{root}/appRoleAssignedTo", {}, _APPLICATIONS)
        owners = Listing(f"{root}/owners", {"$select": "id"}, _APPLICATIONS)
        grants: list[PermissionSnapshot] = []
        unread: set[str] = set()
        errors: list[Exception] = []
        try:
            for record in _once(await self._graph.collection(assigned)):
                found: Found = self._grants.of_app_role(record)
                grants += found.grants
                unread |= found.unread
            for owner in _once(await self._graph.collection(owners)):
                grants.append(self._grants.of_service_principal_owner(owner, resource))
        except _LOSSES as error:
            errors.append(error)
        return _Outcome(grants, frozenset(unread), errors)

    async def _application(self, application: dict[str, Any]) -> _Outcome:
        owners = Listing(
            f"/v1.0/applications/{encoded(application['id'])}/owners",
            {"$select": "id"},
            _APPLICATIONS,
        )
        try:
            found = _once(await self._graph.collection(owners))
            return _Outcome([self._grants.of_application_owner(one, application) for one in found])
        except _LOSSES as error:
            return _Outcome((), errors=[error])

    async def _each(
        self,
        listing: Listing,
        kind: str,
        objects: Sequence[Any],
        read: Callable[[dict[str, Any]], Awaitable[_Outcome]],
    ) -> AsyncGenerator[Item, None]:
        """The grants of every object, a few at once; a lost object does not end the others."""
        running = asyncio.Semaphore(CONCURRENT_MAX)
        unread: set[str] = set()
        faults: list[Exception] = []
        lost_count = 0

        async def bounded(one: Any) -> _Outcome:
            if not isinstance(one, dict) or not isinstance(one.get("id"), str):
                return _Outcome((), errors=[Malformed(f"a {kind} without an id")])
            async with running:
                return await read(one)

        for start in range(0, len(objects), _BATCH):
            batch = objects[start : start + _BATCH]
            async with asyncio.TaskGroup() as tasks:
                started = [tasks.create_task(bounded(one)) for one in batch]
            for one, task in zip(batch, started, strict=True):
                outcome = task.result()
                for grant in outcome.grants:
                    yield grant
                unread |= outcome.unread
                for error in outcome.errors:
                    lost_count += 1
                    gap = self._lost(f"{kind}:{_shown_id(one)}", error)
                    if lost_count <= _LOST_SHOWN_MAX:
                        yield gap
        if lost_count > _LOST_SHOWN_MAX:
            # One missing permission makes every object of a kind a loss.
            faults.append(Unavailable(f"{lost_count} parts of objects could not be read"))
        if unread or faults or not lost_count:
            yield _verdict(_scope(listing), unread, faults)

    async def _listed(self, listing: Listing) -> list[Any] | SnapshotGap:
        try:
            return _once(await self._graph.collection(listing))
        except _LOSSES as error:
            return self._lost(_scope(listing), error)

    def _lost(self, scope: str, error: Exception) -> SnapshotGap:
        """The gap of what could not be read; an outage is not sat out part by part."""
        if isinstance(error, Unavailable) and not isinstance(error, Vanished):
            self._outage_count += 1
            if self._outage_count > _OUTAGES_MAX:
                raise error
        return SnapshotGap(scope, str(error))


def _scope(listing: Listing) -> str:
    return listing.path.rpartition("/")[2]


def _verdict(
    scope: str, unread: Collection[str], faults: Sequence[Exception]
) -> SnapshotGap | SnapshotScope:
    """Whether a part is complete."""
    reasons = []
    if unread:
        shown = ", ".join(sorted(unread)[:_NAMED_MAX])
        reasons.append(f"it grants to groups whose members are not known: {shown}")
        if len(unread) > _NAMED_MAX:
            reasons[-1] += f" and {len(unread) - _NAMED_MAX} more"
    if faults:
        reasons.append(f"{faults[0]} ({len(faults)} such)" if len(faults) > 1 else str(faults[0]))
    return SnapshotGap(scope, "; ".join(reasons)) if reasons else SnapshotScope(scope)


def _once(items: list[Any]) -> list[Any]:
    """Each object once: a listing that shifts while it is paged may repeat some."""
    seen: set[str] = set()
    return [one for one in items if _is_new(one, seen)]


def _is_new(one: Any, seen: set[str]) -> bool:
    object_id = one.get("id") if isinstance(one, dict) else None
    if not isinstance(object_id, str):
        return True
    if object_id in seen:
        return False
    seen.add(object_id)
    return True


def _ids(objects: Sequence[Any]) -> Iterator[str]:
    for one in objects:
        if isinstance(one, dict) and isinstance(one.get("id"), str):
            yield one["id"]


def _shown_id(one: Any) -> str:
    found = one.get("id") if isinstance(one, dict) else None
    return found if isinstance(found, str) else "?"
