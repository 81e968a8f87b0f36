"""A tenant of Entra ID as Microsoft Graph and its token service show it.

Served by one app: `/{tenant}/oauth2/v2.0/token`, `/v1.0/…` and `/beta/…`. It takes only the query
options that are documented for each collection and refuses the others. Page tokens are opaque,
belong to one query, and expire. The audit logs answer 5 requests in 10 seconds by the fake's
clock. Every fault of the kit can happen; PAGE_TOKEN_EXPIRED and REPEATED_TOKEN happen at a page
token, REPEATED_EVENT, UNKNOWN_ENUM, NULL_ACTOR and MALFORMED_RECORD in the audit logs only.

What real Graph does not allow and the fake has nevertheless: groups in a role-assignable group
(so that nesting and cycles are seen through roles).
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from urllib.parse import parse_qsl, quote, urlencode

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fakes.kit import Clock, Fault, Faults, Rate, dropped, hang, http_fault, serving
from fakes.world import DOMAIN, World

NOBODY = "00000000-0000-0000-0000-000000000000"
EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
TOKENS_MAX = 64  # So many enumerations are remembered; whoever is slower begins anew.
TICKS = 10_000_000  # A tick is 100 ns, as in Graph's seven digits.

EVERY_PERMISSION = frozenset(
    {
        "AuditLog.Read.All",
        "Directory.Read.All",
        "RoleManagement.Read.Directory",
        "GroupMember.Read.All",
        "Application.Read.All",
        "User.Read.All",
        "Member.Read.Hidden",
    }
)
GLOBAL_ADMINISTRATOR = "62e90394-69f5-4237-9190-012177145e10"
USER_ADMINISTRATOR = "fe930be7-5e62-47db-91af-98c3a49a38b1"
REPORTS_READER = "4a5d8f65-41da-4de4-8968-e035b65339cf"

SIGN_IN_TYPES = {
    "interactive": "interactiveUser",
    "non_interactive": "nonInteractiveUser",
    "service_principal": "servicePrincipal",
    "managed_identity": "managedIdentity",
}

_CONDITION = re.compile(r"(?P<field>\w+) (?P<operator>ge|le|eq) (?P<value>\S+)")
_EVENT_TYPE = re.compile(r"signInEventTypes/any\(\s*(\w)\s*:\s*\1 eq '(?P<type>\w+)'\s*\)")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,7})?Z")


def ticks_of(text: str) -> int:
    """A time of Graph's as ticks since 2020."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    seconds = datetime.fromisoformat(whole + "+00:00") - EPOCH
    return int(seconds.total_seconds()) * TICKS + int(fraction.ljust(7, "0") or 0)


def text_of(ticks: int) -> str:
    """Ticks as Graph writes them: always seven digits."""
    seconds, fraction = divmod(ticks, TICKS)
    at = EPOCH + timedelta(seconds=seconds)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{fraction:07d}Z"


@dataclass(slots=True)
class _Event:
    stream: str
    ticks: int
    visible_at: datetime
    record: dict[str, Any]


@dataclass(slots=True)
class _Token:
    """A page token: the rest of one enumeration."""

    path: str
    query: tuple[tuple[str, str], ...]
    items: list[dict[str, Any]]
    offset: int
    expires_at: datetime


@dataclass(eq=False)
class _Refusal(Exception):
    status: int
    code: str
    message: str
    headers: dict[str, str] = field(default_factory=dict)


def _unsupported(message: str, code: str = "BadRequest") -> _Refusal:
    return _Refusal(400, code, message)


class AzureAdFake:
    """The tenant of a world.

    Attributes:
        licence: `free`, `P1` or `P2`.
        permissions: The application permissions that were consented to; a token keeps those of
            its time.
        retention: How far back the audit logs answer; older times are refused.
        page_records: The largest page of the audit logs.
        page_objects: The largest page of directory collections; without $top it is 100 at most.
        is_order_refused: Whether `$orderby` is refused.
        secret_state: `valid`, `wrong` or `expired`.
        pages_in_a_row: The most pages that an enumeration of the audit logs was read.
    """

    is_acted_on: ClassVar[bool] = True

    def __init__(self, world: World, clock: Clock) -> None:
        self.world = world
        self.clock = clock
        self.faults = Faults()
        self.requests: list[tuple[str, str]] = []
        self.option_counts: Counter[str] = Counter()
        self.is_limited = True
        self.licence = "P2"
        self.permissions = set(EVERY_PERMISSION)
        self.retention = timedelta(days=30)
        self.page_records = 1000
        self.page_objects = 999
        self.is_order_refused = False
        self.secret_state = "valid"
        self.tenant_id = self._id("tenant")
        self.client_id = self._id("client")
        self.client_secret = f"fake~{self._id('secret')}"
        self.rate = Rate(5, timedelta(seconds=10), clock)
        self.refused_count = 0
        self.pages_in_a_row = 0
        self.answers: list[tuple[str, dict[str, Any]]] = []
        self.keeps_answers = False
        self._events: list[_Event] = []
        self._made: dict[str, int] = {}
        self._tokens: dict[str, _Token] = {}
        self.bearers: dict[str, tuple[datetime, frozenset[str]]] = {}
        self._lock = threading.RLock()
        self._make_directory()
        self.app = Starlette(
            routes=[
                Route("/{tenant}/oauth2/v2.0/token", self._token, methods=["POST"]),
                Route("/_truth", self._truth),
                Route("/_add", self._add, methods=["POST"]),
                Route("/_fault", self._fault, methods=["POST"]),
                Route("/{version}/{path:path}", self._graph),
            ]
        )

    def table(self, url: str, retention: str) -> dict[str, Any]:
        """The connector's table of `verity.toml` for this fake, served at a URL."""
        return self.settings(url, retention=retention)

    def settings(self, url: str, **others: Any) -> dict[str, Any]:
        """The settings of a connector that observes this tenant."""
        return {
            "connector_id": "entra",
            "tenant_id": self.tenant_id,
            "client_id": self.client_id,
            "client_secret": self.client_secret,
            "login_url": url,
            "graph_url": url,
        } | others

    # What there is -----------------------------------------------------------------------------

    def add_events(
        self,
        count: int,
        *,
        at: datetime,
        visible_at: datetime | None = None,
        streams: Iterable[str] = ("directoryAudits", "interactive"),
    ) -> list[str]:
        """Events of the world's people at `at` and just after, three at a time at the same tick.

        Args:
            count: How many, dealt out to the streams in turn.
            at: The time of the first.
            visible_at: When they can be read; default: from their own time on.
            streams: `directoryAudits` or kinds of sign-ins.

        Returns:
            Their ids.
        """
        names = list(streams)
        base = int((at - EPOCH).total_seconds() * 1_000_000) * 10
        found = []
        with self._lock:
            for i in range(count):
                # 3.7 ms apart, with a seventh digit: what reads microseconds must not round.
                ticks = base + (i // 3) * 37_003
                stream = names[i % len(names)]
                number = self._made[stream] = self._made.get(stream, 0) + 1
                if stream == "directoryAudits":
                    record = self._audit(number, ticks)
                else:
                    record = self._sign_in(number, ticks, stream)
                own_time = EPOCH + timedelta(microseconds=ticks // 10)
                self._events.append(_Event(stream, ticks, visible_at or own_time, record))
                found.append(record["id"])
        return found

    def event_ids(self, streams: Iterable[str] = ("directoryAudits", *SIGN_IN_TYPES)) -> set[str]:
        """All events of these streams, whether they can be read yet or not."""
        names = set(streams)
        return {event.record["id"] for event in self._events if event.stream in names}

    def record(self, event_id: str) -> dict[str, Any]:
        """One event as Graph serves it."""
        return next(one.record for one in self._events if one.record["id"] == event_id)

    def grants(self) -> set[tuple[str, str, str, str, str]]:
        """Every grant: principal, asset, privilege, mechanism, via (or nothing)."""
        found: set[tuple[str, str, str, str, str]] = set()
        for group_id, members in self.members.items():
            found |= {(self._ref(m), f"group:{group_id}", "member", "direct", "") for m in members}
        for group_id, owners in self.group_owners.items():
            found |= {(self._ref(o), f"group:{group_id}", "owner", "direct", "") for o in owners}
        roles = {one["id"]: one["displayName"] for one in self.role_definitions}
        kinds = [
            ("roleAssignment", self.role_assignments),
            ("roleAssignmentSchedule", self.active_roles),
            ("roleEligibility", self.eligible_roles),
        ]
        for kind, records in kinds:
            for one in records:
                asset = f"directory:{one['directoryScopeId']}"
                role, via = roles[one["roleDefinitionId"]], f"{kind}:{one['id']}"
                holder = one["principalId"]
                found.add((self._ref(holder), asset, role, "role", via))
                for member in self._everybody(holder) if holder in self.members else ():
                    path = f"group:{holder}>{via}"
                    found.add((self._ref(member), asset, role, "group", path))
        values = {
            role["id"]: role["value"] for sp in self.service_principals for role in sp["appRoles"]
        }
        for resource, assignments in self.app_roles.items():
            for one in assignments:
                role = values.get(one["appRoleId"], "default_access")
                asset, via = f"servicePrincipal:{resource}", f"appRoleAssignment:{one['id']}"
                holder = one["principalId"]
                found.add((self._ref(holder), asset, role, "direct", via))
                # Direct members only: application assignments do not cascade.
                for member in self.members.get(holder, ()):
                    if member not in self.members:
                        path = f"group:{holder}>{via}"
                        found.add((self._ref(member), asset, role, "group", path))
        for one in self.consents:
            for scope in one["scope"].split():
                holder = f"user:{one['principalId']}" if one["principalId"] else "all_principals"
                asset, via = f"servicePrincipal:{one['resourceId']}", one["id"]
                found.add((holder, asset, scope, "policy", f"oauth2PermissionGrant:{via}"))
        for one in self.service_principals:
            asset = f"servicePrincipal:{one['id']}"
            for owner in self.owners.get(one["id"], ()):
                found.add((self._ref(owner), asset, "owner", "direct", ""))
        for one in self.applications:
            for owner in self.owners.get(one["id"], ()):
                found.add((self._ref(owner), f"app:{one['appId']}", "owner", "direct", ""))
        for one in self.users:
            for login in filter(None, (one["userPrincipalName"], one["mail"])):
                alias = (f"user:{one['id']}", f"user:{login.lower()}", "alias", "alias", "")
                found.add(alias)
        return found

    def _everybody(self, group_id: str) -> set[str]:
        reached: set[str] = set()
        growing = {group_id}
        while growing - reached:
            reached |= growing
            growing = {m for one in reached for m in self.members.get(one, ())}
        return {one for one in reached if one not in self.members}

    def _ref(self, object_id: str) -> str:
        return f"{self._kinds[object_id]}:{object_id}"

    def _id(self, name: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"azure_ad/{self.world.seed}/{name}"))

    def _make_directory(self) -> None:
        world, people = self.world, self.world.people
        self._kinds = {one.object_id: "user" for one in people}
        self._kinds |= {one.id: "group" for one in world.groups}
        self._kinds |= {one.service_principal_id: "sp" for one in world.applications}
        self.graph_sp, self.device, guest = self._id("graph"), self._id("device"), self._id("guest")
        self._kinds |= {self.graph_sp: "sp", self.device: "device", guest: "user"}
        self.users: list[dict[str, Any]] = [
            {
                "id": one.object_id,
                "userPrincipalName": one.email,
                "mail": one.email.upper() if i % 7 == 0 else None if i % 7 == 1 else one.email,
                "userType": "Member",
                "accountEnabled": one.left_at is None,
                "deletedDateTime": None,
                "employeeId": one.employee_id,
                "displayName": one.name,
                "jobTitle": one.job_title,
            }
            for i, one in enumerate(people)
        ]
        self.users.append(
            {
                "id": guest,
                "userPrincipalName": f"pat_fabrikam.example#EXT#@{DOMAIN}",
                "mail": "Pat@fabrikam.example",
                "userType": "Guest",
                "accountEnabled": True,
                "deletedDateTime": None,
                "employeeId": None,
                "displayName": "Pat (guest)",
                "jobTitle": None,
            }
        )
        self.groups: list[dict[str, Any]] = [
            {
                "id": one.id,
                "displayName": one.name,
                "securityEnabled": True,
                "isAssignableToRole": True,
                "groupTypes": [],
                "visibility": None,
                "mail": None,
                "description": None,
            }
            for one in world.groups
        ]
        self.members: dict[str, list[str]] = {
            one.id: [*one.people, *one.groups] for one in world.groups
        }
        etl, dashboards = world.applications[:2]
        first = world.groups[0].id
        self.members[first] += [etl.service_principal_id, self.device, guest]
        self.group_owners = {
            one.id: [people[i].object_id] for i, one in enumerate(world.groups) if i % 2 == 0
        }
        self.group_owners[first].append(dashboards.service_principal_id)
        self.role_definitions = [
            {
                "id": role_id,
                "displayName": name,
                "description": f"{name}, as built in.",
                "isBuiltIn": True,
                "isEnabled": True,
                "resourceScopes": ["/"],
                "templateId": role_id,
                "version": "1",
                "rolePermissions": [
                    {
                        "allowedResourceActions": ["microsoft.directory/users/read"],
                        "condition": None,
                    }
                ],
            }
            for role_id, name in (
                (GLOBAL_ADMINISTRATOR, "Global Administrator"),
                (USER_ADMINISTRATOR, "User Administrator"),
                (REPORTS_READER, "Reports Reader"),
            )
        ]
        unit = f"/administrativeUnits/{self._id('unit')}"
        everyone, cycle_a = world.groups[-3].id, world.groups[-2].id
        leaver = world.leavers[0].object_id if world.leavers else people[5].object_id
        self.role_assignments = [
            self._role("a1", GLOBAL_ADMINISTRATOR, people[0].object_id),
            self._role("a2", REPORTS_READER, dashboards.service_principal_id),
            self._role("a3", REPORTS_READER, everyone),
            self._role("a4", USER_ADMINISTRATOR, cycle_a, unit),
            self._role("a5", USER_ADMINISTRATOR, leaver),
        ]
        self.active_roles = [
            self._instance("s1", USER_ADMINISTRATOR, people[2].object_id, is_active=True),
            self._instance("s2", REPORTS_READER, everyone, is_active=True),
        ]
        self.eligible_roles = [
            self._instance("e1", GLOBAL_ADMINISTRATOR, people[3].object_id, is_active=False),
            self._instance("e2", USER_ADMINISTRATOR, world.groups[1].id, is_active=False),
        ]
        self.service_principals: list[dict[str, Any]] = [
            self._service_principal(
                self.graph_sp, self._id("graph app"), "Directory API", ("User.Read.All",)
            ),
            *(
                self._service_principal(
                    one.service_principal_id,
                    one.app_id,
                    one.name,
                    (f"{one.name}.View", f"{one.name}.Edit"),
                )
                for one in world.applications
            ),
        ]
        self.applications = [
            {"id": self._id(f"app {one.app_id}"), "appId": one.app_id, "displayName": one.name}
            for one in world.applications
        ]
        view, edit = (role["id"] for role in self.service_principals[2]["appRoles"])
        board = dashboards.service_principal_id
        self.app_roles: dict[str, list[dict[str, Any]]] = {
            self.graph_sp: [
                self._app_role(
                    self.graph_sp,
                    self.service_principals[0]["appRoles"][0]["id"],
                    etl.service_principal_id,
                    "ServicePrincipal",
                )
            ],
            board: [
                self._app_role(board, view, people[1].object_id, "User"),
                self._app_role(board, edit, world.groups[1].id, "Group"),
                self._app_role(board, NOBODY, everyone, "Group"),
                self._app_role(board, NOBODY, first, "Group"),
            ],
            etl.service_principal_id: [],
        }
        self.consents = [
            {
                "id": "c1",
                "clientId": board,
                "consentType": "AllPrincipals",
                "principalId": None,
                "resourceId": self.graph_sp,
                "scope": " openid profile  User.Read",
            },
            {
                "id": "c2",
                "clientId": board,
                "consentType": "Principal",
                "principalId": people[4].object_id,
                "resourceId": self.graph_sp,
                "scope": "Mail.Read",
            },
        ]
        self.owners = {
            self.applications[0]["id"]: [people[6].object_id, board],
            board: [people[7].object_id],
        }

    def _role(self, name: str, role: str, holder: str, scope: str = "/") -> dict[str, Any]:
        return {
            "id": f"{name}-{self._id(name)[:8]}-1",
            "principalId": holder,
            "roleDefinitionId": role,
            "directoryScopeId": scope,
            "appScopeId": None,
            "condition": None,
        }

    def _instance(self, name: str, role: str, holder: str, *, is_active: bool) -> dict[str, Any]:
        record = self._role(name, role, holder)
        del record["condition"]
        record |= {"memberType": "Direct", "startDateTime": "2026-11-01T08:00:00Z"}
        if is_active:
            record |= {
                "assignmentType": "Activated",
                "roleAssignmentOriginId": record["id"],
                "roleAssignmentScheduleId": self._id(name),
                "endDateTime": "2026-11-24T20:00:00Z",
            }
        else:
            record |= {"roleEligibilityScheduleId": self._id(name), "endDateTime": None}
        return record

    def _service_principal(
        self, object_id: str, app_id: str, name: str, roles: Iterable[str]
    ) -> dict[str, Any]:
        return {
            "id": object_id,
            "appId": app_id,
            "displayName": name,
            "servicePrincipalType": "Application",
            "appRoles": [
                {
                    "id": self._id(f"role {value}"),
                    "value": value,
                    "displayName": value,
                    "description": value,
                    "isEnabled": True,
                    "origin": "Application",
                    "allowedMemberTypes": ["User", "Application"],
                }
                for value in roles
            ],
        }

    def _app_role(self, resource: str, role: str, holder: str, kind: str) -> dict[str, Any]:
        return {
            "id": self._id(f"{resource}/{role}/{holder}").replace("-", ""),
            "deletedDateTime": None,
            "appRoleId": role,
            "createdDateTime": "2026-01-05T09:00:00.1234567Z",
            "principalId": holder,
            "principalType": kind,
            "principalDisplayName": f"{kind} {holder[:4]}",
            "resourceId": resource,
            "resourceDisplayName": resource[:4],
        }

    def add_groups(self, count: int) -> None:
        """Groups of nobody."""
        for _ in range(count):
            group_id = self._id(f"more {len(self.groups)}")
            self._kinds[group_id] = "group"
            self.members[group_id] = []
            self.groups.append({**self.groups[0], "id": group_id})

    # The records of the audit logs -------------------------------------------------------------

    def _audit(self, number: int, ticks: int) -> dict[str, Any]:
        world = self.world
        actor = world.people[number % len(world.people)]
        other = world.people[(number * 7 + 3) % len(world.people)]
        group = world.groups[number % len(world.groups)]
        app = world.applications[number % len(world.applications)]
        user_target = self._target("User", other.object_id, None, other.email)
        kind = number % 6
        by_person: dict[str, Any] | None = {
            "id": actor.object_id,
            "displayName": None,
            # A user who was deleted since keeps the id only.
            "userPrincipalName": None if number % 11 == 0 else actor.email,
            "ipAddress": f"192.0.2.{number % 250}",
            "userType": None,
            "homeTenantId": None,
            "homeTenantName": None,
        }
        by_app = None
        category, operation_type, service = "GroupManagement", "Assign", "Core Directory"
        if kind == 0:
            name = "Add member to group"
            targets = [user_target, self._target("Group", group.id, group.name, None, "azureAD")]
        elif kind == 1:
            name, category, operation_type = "Update user", "UserManagement", "Update"
            targets = [user_target]
        elif kind == 2:
            name, category = "Add app role assignment to service principal", "ApplicationManagement"
            targets = [
                self._target("ServicePrincipal", app.service_principal_id, app.name, None),
                user_target,
            ]
            by_person = None
            by_app = {
                "appId": app.app_id,
                "displayName": app.name,
                "servicePrincipalId": app.service_principal_id if number % 2 else None,
                "servicePrincipalName": None,
            }
        elif kind == 3:
            name, category = "Add eligible member to role in PIM requested", "RoleManagement"
            service = "PIM"
            targets = [
                self._target("Role", USER_ADMINISTRATOR, "User Administrator", None),
                user_target,
            ]
        elif kind == 4:
            name, category, operation_type = "Validate user", "Authentication", "Other"
            targets = [self._target("N/A", None, "N/A", None)]
        else:
            name, category, operation_type = "Set company information", "DirectoryManagement", "Set"
            targets, by_person = [], None
        correlation = self._id(f"correlation {number // 3}")
        return {
            "id": f"{service.split()[-1]}_{correlation}_{number % 997:03d}XY_{number}",
            "category": category,
            "correlationId": correlation,
            "result": "failure" if number % 13 == 0 else "success",
            "resultReason": "",
            "activityDisplayName": name,
            "activityDateTime": text_of(ticks),
            "loggedByService": service,
            "operationType": operation_type,
            "initiatedBy": {"user": by_person, "app": by_app},
            "targetResources": targets,
            "additionalDetails": [{"key": "User-Agent", "value": "Example/1.0 (test)"}],
        }

    def _target(
        self,
        kind: str,
        object_id: str | None,
        name: str | None,
        login: str | None,
        group: Any = None,
    ) -> dict[str, Any]:
        return {
            "id": object_id,
            "displayName": name,
            "type": kind,
            "userPrincipalName": login,
            "groupType": group,
            "modifiedProperties": [
                {"displayName": "Group.ObjectID", "oldValue": None, "newValue": '"x"'}
            ],
        }

    def _sign_in(self, number: int, ticks: int, kind: str) -> dict[str, Any]:
        world = self.world
        person = world.people[number % len(world.people)]
        app = world.applications[number % len(world.applications)]
        is_person = kind in ("interactive", "non_interactive")
        # Somebody who mistyped the name is nobody that the directory knows.
        is_known = number % 17 != 0
        record: dict[str, Any] = {
            "id": self._id(f"sign-in {kind} {number}"),
            "createdDateTime": text_of(ticks),
            "appDisplayName": app.name,
            "appId": app.app_id,
            "clientAppUsed": "Browser" if is_person else "",
            "conditionalAccessStatus": "notApplied",
            "correlationId": self._id(f"correlation {number}"),
            "ipAddress": "2001:db8::1" if number % 4 == 0 else f"198.51.100.{number % 250}",
            "isInteractive": kind == "interactive",
            "resourceDisplayName": "Directory API",
            "resourceId": self._id("graph app"),
            "riskDetail": "none",
            "riskEventTypes_v2": [],
            "riskLevelAggregated": "none",
            "riskLevelDuringSignIn": "none",
            "riskState": "none",
            "status": {"errorCode": 0, "failureReason": "Other.", "additionalDetails": None},
            "userDisplayName": person.name if is_person else "",
            "userId": "",
            "userPrincipalName": person.email if is_person else "",
            "location": {
                "city": "Bern",
                "state": "Bern",
                "countryOrRegion": "CH",
                "geoCoordinates": {"altitude": None, "latitude": 46.9, "longitude": 7.4},
            },
            "deviceDetail": {
                "browser": "Firefox",
                "deviceId": "",
                "displayName": "",
                "isCompliant": False,
                "isManaged": False,
                "operatingSystem": "Linux",
                "trustType": "",
            },
            "appliedConditionalAccessPolicies": [],
        }
        if is_person:
            record["userId"] = person.object_id if is_known else NOBODY
        if kind != "interactive":
            # What beta adds; v1.0 has no such properties.
            record |= {
                "signInEventTypes": [SIGN_IN_TYPES[kind]],
                "resourceServicePrincipalId": self.graph_sp,
                "servicePrincipalId": "",
                "servicePrincipalName": "",
            }
            if not is_person:
                record["servicePrincipalId"] = app.service_principal_id if is_known else ""
                record["servicePrincipalName"] = app.name
        return record

    # The token service -------------------------------------------------------------------------

    async def _token(self, request: Request) -> Response:
        self._note(request)
        if self.faults.take(Fault.CREDENTIAL_REFUSED):
            return _login_error(401, "invalid_client", 7000215, "Invalid client secret provided.")
        form = dict(parse_qsl((await request.body()).decode()))
        if request.path_params["tenant"] != self.tenant_id:
            return _login_error(400, "invalid_request", 90002, "Tenant not found.")
        if form.get("grant_type") != "client_credentials":
            return _login_error(400, "unsupported_grant_type", 70003, "Unsupported grant type.")
        if form.get("client_id") != self.client_id:
            return _login_error(400, "unauthorized_client", 700016, "Application not found.")
        if self.secret_state == "expired":
            return _login_error(401, "invalid_client", 7000222, "The secret keys are expired.")
        if form.get("client_secret") != self.client_secret or self.secret_state == "wrong":
            return _login_error(401, "invalid_client", 7000215, "Invalid client secret provided.")
        base = str(request.base_url).rstrip("/")
        if form.get("scope") != f"{base}/.default":
            return _login_error(400, "invalid_scope", 1002012, "The scope is not valid.")
        bearer = uuid.uuid4().hex
        with self._lock:
            expires_at = self.clock() + timedelta(seconds=3599)
            self.bearers[bearer] = (expires_at, frozenset(self.permissions))
        return JSONResponse({"token_type": "Bearer", "expires_in": 3599, "access_token": bearer})

    def _allowed(self, request: Request) -> frozenset[str]:
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        known = self.bearers.get(bearer) if scheme == "Bearer" else None
        if known is None or known[0] <= self.clock() or self.faults.take(Fault.TOKEN_EXPIRED):
            raise _Refusal(
                401,
                "InvalidAuthenticationToken",
                "Lifetime validation failed, the token is expired.",
                {"WWW-Authenticate": 'Bearer realm="", error="invalid_token"'},
            )
        return known[1]

    # Graph -------------------------------------------------------------------------------------

    async def _graph(self, request: Request) -> Response:
        self._note(request)
        error = {"error": {"code": "TooManyRequests", "message": "injected"}}
        if self.faults.take(Fault.HANGING):
            await hang()
        fault = http_fault(self.faults, self.clock, error)
        if fault is not None:
            return fault
        try:
            with self._lock:
                answer = self._answer(request)
        except _Refusal as refusal:
            self.refused_count += 1
            body = {
                "error": {
                    "code": refusal.code,
                    "message": refusal.message,
                    "innerError": {"date": "2026-11-24T12:00:00", "request-id": self._id("r")},
                }
            }
            return JSONResponse(body, refusal.status, refusal.headers)
        response = JSONResponse(answer)
        return dropped(response) if self.faults.take(Fault.DROPPED) else response

    def _answer(self, request: Request) -> dict[str, Any]:
        allowed = self._allowed(request)
        version, path = request.path_params["version"], request.path_params["path"]
        if version not in ("v1.0", "beta"):
            raise _unsupported(f"Invalid version: {version}")
        query = dict(parse_qsl(request.url.query, keep_blank_values=True))
        parts = path.split("/")
        match parts:
            case ["auditLogs", "directoryAudits" | "signIns"]:
                return self._reports(request, version, parts[1], query, allowed)
            case _:
                return self._directory(request, version, parts, query, allowed)

    def _reports(
        self,
        request: Request,
        version: str,
        name: str,
        query: dict[str, str],
        allowed: frozenset[str],
    ) -> dict[str, Any]:
        if self.is_limited:
            wait = self.rate.refuse()
            if wait is not None:
                message = "This request is throttled. Please try again later."
                seconds = str(max(1, round(wait + 0.5)))
                raise _Refusal(429, "UnknownError", message, {"Retry-After": seconds})
        if not {"AuditLog.Read.All", "Directory.Read.All"} <= allowed:
            raise _Refusal(
                403,
                "Authentication_MSGraphPermissionMissing",
                "The principal does not have required Microsoft Graph permission(s).",
            )
        if name == "signIns" and self.licence == "free":
            raise _Refusal(
                403,
                "Authentication_RequestFromNonPremiumTenantOrB2CTenant",
                "Neither tenant is B2C or tenant doesn't have premium license",
            )
        options = {"$filter", "$top", "$skiptoken"}
        if name == "directoryAudits":
            options.add("$orderby")
        self._only(query, options)
        token = query.pop("$skiptoken", None)
        key = tuple(sorted(query.items()))
        top = min(self._top(query, self.page_records, 1000), self.page_records)
        if token is not None:
            state = self.state(token, request.url.path, key, "BadRequest", "Invalid Skip Token.")
        else:
            state = self._new_state(request, key, self._matching(version, name, query))
        return self.page(request, state, query, top, is_report=True, token=token)

    def _matching(self, version: str, name: str, query: dict[str, str]) -> list[dict[str, Any]]:
        """The records of a query in the order in which Graph serves them."""
        field_name = "activityDateTime" if name == "directoryAudits" else "createdDateTime"
        lower, upper, event_type = 0, None, "interactiveUser"
        minimum = int((self.clock() - self.retention - EPOCH).total_seconds()) * TICKS
        for condition in filter(None, query.get("$filter", "").split(" and ")):
            typed = _EVENT_TYPE.fullmatch(condition)
            if typed and version == "beta" and name == "signIns":
                event_type = typed["type"]
                continue
            found = _CONDITION.fullmatch(condition)
            if not found or found["field"] != field_name or not _TIME.fullmatch(found["value"]):
                raise _unsupported("Invalid filter clause")
            ticks = ticks_of(found["value"])
            if ticks < minimum:
                raise _unsupported("Invalid filter clause")
            if found["operator"] in ("ge", "eq"):
                lower = max(lower, ticks)
            if found["operator"] in ("le", "eq"):
                upper = ticks if upper is None else min(upper, ticks)
        lower = max(lower, minimum)
        stream = "directoryAudits"
        if name == "signIns":
            kinds = [kind for kind, own in SIGN_IN_TYPES.items() if own == event_type]
            if not kinds:
                raise _unsupported("Invalid filter clause")
            stream = kinds[0]
        now = self.clock()
        events = [
            one
            for one in self._events
            if one.stream == stream
            and one.visible_at <= now
            and lower <= one.ticks
            and (upper is None or one.ticks <= upper)
        ]
        order = query.get("$orderby")
        if order is None:
            if name == "signIns":
                events.sort(key=lambda one: -one.ticks)  # As documented.
            else:
                events.sort(key=lambda one: one.record["id"])  # Not documented: any order.
        else:
            matched = re.fullmatch(r"activityDateTime( asc| desc)?", order)
            if not matched or self.is_order_refused:
                raise _unsupported("Invalid orderby clause")
            events.sort(key=lambda one: one.ticks, reverse=matched[1] == " desc")
        return [one.record for one in events]

    def _directory(
        self,
        request: Request,
        version: str,
        parts: list[str],
        query: dict[str, str],
        allowed: frozenset[str],
    ) -> dict[str, Any]:
        needs, options, items, shape = self._directory_collection(version, parts)
        if not needs & allowed:
            raise _Refusal(
                403,
                "Authorization_RequestDenied",
                "Insufficient privileges to complete the operation.",
            )
        if "PIM" in needs and self.licence != "P2":
            message = "The tenant needs to have Microsoft Entra ID P2 license."
            raise _Refusal(400, "AadPremiumLicenseRequired", message)
        if len(parts) == 3 and parts[0] != "roleManagement":
            if self.faults.take(Fault.FORBIDDEN_OBJECT):
                raise _Refusal(403, "Authorization_RequestDenied", "Insufficient privileges.")
            if self.faults.take(Fault.VANISHED_OBJECT):
                message = f"Resource '{parts[1]}' does not exist."
                raise _Refusal(404, "Request_ResourceNotFound", message)
        self._only(query, options | {"$skiptoken"})
        token = query.pop("$skiptoken", None)
        key = tuple(sorted(query.items()))
        top = min(self._top(query, 100, 999), self.page_objects)
        if token is not None:
            message = "The specified page token value has expired."
            state = self.state(token, request.url.path, key, "Directory_ExpiredPageToken", message)
        else:
            state = self._new_state(request, key, [shape(one, query) for one in items()])
        return self.page(request, state, query, top, is_report=False, token=token)

    def _directory_collection(
        self, version: str, parts: list[str]
    ) -> tuple[
        set[str],
        set[str],
        Callable[[], list[dict[str, Any]]],
        Callable[[dict[str, Any], dict[str, str]], dict[str, Any]],
    ]:
        """Which permissions and options a collection takes, its objects, and how they look."""
        everything = {"Directory.Read.All"}
        roles = {"RoleManagement.Read.Directory"} | everything
        selected = {"$select", "$top"}
        match parts:
            case ["roleManagement", "directory", "roleDefinitions"]:
                return roles, set(), lambda: self.role_definitions, _whole
            case ["roleManagement", "directory", "roleAssignments"]:
                # No $top: it is not documented here.
                return roles, {"$expand"}, lambda: self.role_assignments, self._expanded
            case ["roleManagement", "directory", "roleAssignmentScheduleInstances"]:
                needs = {"RoleManagement.Read.Directory", "PIM"}
                return needs, {"$expand"}, lambda: self.active_roles, self._expanded
            case ["roleManagement", "directory", "roleEligibilityScheduleInstances"]:
                needs = {"RoleManagement.Read.Directory", "PIM"}
                return needs, {"$expand"}, lambda: self.eligible_roles, self._expanded
            case ["groups"]:
                return everything | {"GroupMember.Read.All"}, selected, lambda: self.groups, _chosen
            case ["groups", group_id, ("members" | "owners") as relation]:
                found = (self.members if relation == "members" else self.group_owners).get(
                    group_id, None if group_id not in self.members else []
                )
                if found is None:
                    raise _missing(group_id)
                needs = everything | {"GroupMember.Read.All"}
                return needs, selected, lambda: self._objects(found, version), _chosen
            case ["servicePrincipals"]:
                needs = everything | {"Application.Read.All"}
                return needs, selected, lambda: self.service_principals, _chosen
            case ["servicePrincipals", object_id, "appRoleAssignedTo"]:
                if object_id not in self.app_roles:
                    raise _missing(object_id)
                needs = everything | {"Application.Read.All"}
                return needs, set(), lambda: self.app_roles[object_id], _whole
            case ["servicePrincipals" | "applications", object_id, "owners"]:
                known = self.service_principals + self.applications
                if object_id not in {one["id"] for one in known}:
                    raise _missing(object_id)
                needs = everything | {"Application.Read.All"}
                owners = self.owners.get(object_id, [])
                return needs, {"$select"}, lambda: self._objects(owners, "beta"), _chosen
            case ["applications"]:
                needs = everything | {"Application.Read.All"}
                return needs, selected, lambda: self.applications, _chosen
            case ["oauth2PermissionGrants"]:
                return everything, set(), lambda: self.consents, _whole
            case ["users"]:
                needs = everything | {"User.Read.All"}
                return needs, selected, lambda: self.users, _chosen
            case _:
                raise _unsupported(f"Resource not found for the segment '{parts[0]}'.")

    def _objects(self, ids: Iterable[str], version: str) -> list[dict[str, Any]]:
        """References to objects; v1.0 is known to leave out service principals."""
        names = {"sp": "servicePrincipal"}
        found = []
        for one in ids:
            kind = self._kinds[one]
            if kind == "sp" and version == "v1.0":
                continue
            found.append({"@odata.type": f"#microsoft.graph.{names.get(kind, kind)}", "id": one})
        return found

    def _expanded(self, one: dict[str, Any], query: dict[str, str]) -> dict[str, Any]:
        expand = query.get("$expand")
        if expand is None:
            return one
        if expand != "principal":
            raise _unsupported("Parsing OData Select and Expand failed.")
        return {**one, "principal": self._objects([one["principalId"]], "beta")[0]}

    # Pages -------------------------------------------------------------------------------------

    def _only(self, query: dict[str, str], options: set[str]) -> None:
        for name in query:
            if name.startswith("$") and name not in options:
                message = f"Query option '{name[1:].title()}' is not allowed."
                raise _unsupported(message, "Request_UnsupportedQuery")

    def _top(self, query: dict[str, str], default: int, most: int) -> int:
        text = query.get("$top")
        if text is None:
            return default
        if not text.isdecimal() or not 1 <= int(text) <= most:
            message = f"Invalid page size specified. Must be between 1 and {most} inclusive."
            raise _unsupported(message, "Request_UnsupportedQuery")
        return int(text)

    def _new_state(
        self, request: Request, key: tuple[tuple[str, str], ...], items: list[dict[str, Any]]
    ) -> _Token:
        expires_at = self.clock() + timedelta(hours=1)
        return _Token(request.url.path, key, items, 0, expires_at)

    def state(
        self, token: str, path: str, key: tuple[tuple[str, str], ...], code: str, message: str
    ) -> _Token:
        state = self._tokens.get(token)
        if (
            state is None
            or state.path != path
            or state.query != key
            or state.expires_at <= self.clock()
            or self.faults.take(Fault.PAGE_TOKEN_EXPIRED)
        ):
            raise _Refusal(400, code, message)
        return state

    def page(
        self,
        request: Request,
        state: _Token,
        query: dict[str, str],
        top: int,
        *,
        is_report: bool,
        token: str | None,
    ) -> dict[str, Any]:
        items = state.items[state.offset : state.offset + top]
        offset = state.offset + len(items)
        if is_report:
            self.pages_in_a_row = max(self.pages_in_a_row, state.offset // top + 1)
        if state.items and self.faults.take(Fault.EMPTY_PAGE):
            items, offset = [], state.offset
        elif is_report:
            if token is not None and state.offset and self.faults.take(Fault.REPEATED_EVENT):
                items = [state.items[state.offset - 1], *items]
            items = self._distorted(items)
        body: dict[str, Any] = {
            "@odata.context": f"{request.base_url}v1.0/$metadata#{request.url.path.lstrip('/')}",
        }
        if offset < len(state.items):
            if token is not None and self.faults.take(Fault.REPEATED_TOKEN):
                body["@odata.nextLink"] = str(request.url)
            else:
                made = uuid.uuid4().hex
                if len(self._tokens) >= TOKENS_MAX:
                    del self._tokens[next(iter(self._tokens))]
                self._tokens[made] = _Token(
                    state.path, state.query, state.items, offset, state.expires_at
                )
                rest = urlencode({**query, "$skiptoken": made}, quote_via=quote)
                base = str(request.base_url).rstrip("/")
                body["@odata.nextLink"] = f"{base}{state.path}?{rest}"
        body["value"] = items
        if self.keeps_answers:
            self.answers.append((request.url.path, body))
        return body

    def _distorted(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not items:
            return items
        if self.faults.take(Fault.UNKNOWN_ENUM):
            name = "result" if "result" in items[0] else "riskState"
            items = [{**items[0], name: "somethingNew"}, *items[1:]]
        if "initiatedBy" in items[0] and self.faults.take(Fault.NULL_ACTOR):
            items = [{**items[0], "initiatedBy": {"user": None, "app": None}}, *items[1:]]
        if self.faults.take(Fault.MALFORMED_RECORD):
            broken = {name: value for name, value in items[0].items() if name != "id"}
            items = [broken, *items]
        return items

    # The tests' own doors ----------------------------------------------------------------------

    def _note(self, request: Request) -> None:
        self.requests.append((sys.intern(request.method), sys.intern(request.url.path)))
        self.option_counts.update(name for name, _ in parse_qsl(request.url.query))

    def _truth(self, request: Request) -> Response:
        with self._lock:
            return JSONResponse(
                {
                    "event_ids": sorted(self.event_ids(("directoryAudits", "interactive"))),
                    "grants": sorted(map(list, self.grants())),
                }
            )

    def _add(self, request: Request) -> Response:
        count = int(request.query_params.get("count", "1"))
        late = timedelta(seconds=float(request.query_params.get("late_seconds", "0")))
        now = self.clock()
        # What comes late happened now and is seen later.
        ids = self.add_events(count, at=now, visible_at=now + late if late else None)
        return JSONResponse({"event_ids": ids})

    def _fault(self, request: Request) -> Response:
        fault = Fault[request.query_params["name"]]
        self.faults.inject(fault, times=int(request.query_params.get("times", "1")))
        return JSONResponse({"injected": fault.name})


def _login_error(status: int, error: str, number: int, text: str) -> Response:
    body = {
        "error": error,
        "error_description": f"AADSTS{number}: {text} Trace ID: 0 Correlation ID: 0",
        "error_codes": [number],
        "timestamp": "2026-11-24 12:00:00Z",
    }
    return JSONResponse(body, status)


def _missing(object_id: str) -> _Refusal:
    message = f"Resource '{object_id}' does not exist or one of its queried references is gone."
    return _Refusal(404, "Request_ResourceNotFound", message)


def _whole(one: dict[str, Any], query: dict[str, str]) -> dict[str, Any]:
    return one


_DEFAULT_PROPERTIES = {"id", "displayName", "userPrincipalName", "mail", "jobTitle", "appId"}


def _chosen(one: dict[str, Any], query: dict[str, str]) -> dict[str, Any]:
    """An object's properties as selected; without $select only the usual ones come."""
    select = query.get("$select")
    if select is None:
        return {
            name: value
            for name, value in one.items()
            if name in _DEFAULT_PROPERTIES or name.startswith("@")
        }
    wanted = select.split(",")
    unknown = [name for name in wanted if name not in one]
    if unknown:
        message = f"Could not find a property named '{unknown[0]}'."
        raise _unsupported(message, "Request_BadRequest")
    return {name: one[name] for name in one if name in wanted or name.startswith("@")}


def main() -> None:
    """Serve a tenant on the machine's clock until SIGTERM; the first line is its URL."""
    options = argparse.ArgumentParser(prog="python -m fakes.azure_ad")
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--events", type=int, default=200)
    options.add_argument("--hours", type=float, default=6)
    asked = options.parse_args()
    clock = Clock()
    fake = AzureAdFake(World(seed=asked.seed, now=clock()), clock)
    start = clock() - timedelta(hours=asked.hours)
    for i in range(asked.events):
        fake.add_events(1, at=start + timedelta(hours=asked.hours) * i / max(1, asked.events))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with serving(fake.app, asked.port) as url:
        print(url, flush=True)  # noqa: T201 - the address is the program's answer
        for name in ("tenant_id", "client_id", "client_secret"):
            print(f"{name} = {getattr(fake, name)!r}", flush=True)  # noqa: T201 - so are these
        stop.wait()


Fake = AzureAdFake


if __name__ == "__main__":
    main()
