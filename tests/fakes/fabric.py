"""A Fabric tenant that behaves as documented, and no more generously.

One app serves the issuer of tokens (`/login`), Power BI (`/powerbi`, continued on `/wabi` as the
real one continues on a regional host), the Fabric admin API (`/fabric`) and Graph (`/graph`).

What is documented and imitated: quoted instants, one UTC day, 28 days, hour pages of which some are
empty, continuation tokens in quotes and percent-encoded, `lastResultSet` false throughout, 200
requests an hour; the scanner's states and limits; the Fabric admin API's paging, `type` and errors.
What is not documented and chosen: tokens of a listing live for 30 minutes, a refused one is 400;
a 429 of Power BI has no Retry-After; pages are in descending order. `$filter` is refused.

Every fault of the kit can happen. `FORBIDDEN_OBJECT` is 403 to a scan's start, to a workspace's or
an item's users, to a group's members; `VANISHED_OBJECT` a workspace that a scan's result lacks, or
404 there. `NULL_ACTOR`, `MALFORMED_RECORD`, `REPEATED_EVENT`, `EMPTY_PAGE`, `REPEATED_TOKEN` and
`PAGE_TOKEN_EXPIRED` are of activity events only; `UNKNOWN_ENUM` is also a scan's status.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import threading
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from urllib.parse import parse_qs, quote

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fakes.kit import Clock, Fault, Faults, Rate, dropped, hang, http_fault, serving
from fakes.world import World

TENANT = "6f0d2f0e-7a9b-4b8e-9d53-1d6f8a0c1b2e"
CLIENT_ID = "0f3b2c1d-5e6a-4b7c-8d9e-0a1b2c3d4e5f"
CLIENT_SECRET = "fabric-secret~8Q.x"
SCOPES = {
    "https://analysis.windows.net/powerbi/api/.default": "powerbi",
    "https://api.fabric.microsoft.com/.default": "fabric",
    "https://graph.microsoft.com/.default": "graph",
}
RETENTION = timedelta(days=28)
TOKEN_LIVES = timedelta(minutes=60)
PAGE_TOKEN_LIVES = timedelta(minutes=30)
RESULT_LIVES = timedelta(hours=24)
SCAN_LIVES = timedelta(minutes=10)
SCANNER_AHEAD = timedelta(seconds=3)  # The scanner's clock is not the asker's.
HOUR = timedelta(hours=1)
TYPES_TO_NAME = {"Report", "Dashboard", "SemanticModel", "App", "Dataflow"}

_INSTANT = re.compile(r"'(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?)Z'")

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Holder:
    """Somebody who can hold a grant, in the words of both APIs."""

    kind: str  # user, group, app, everyone, profile
    id: str
    name: str
    email: str | None = None

    @property
    def ref(self) -> str:
        """As the connector must name it."""
        return {
            "user": f"user:{self.id}",
            "group": f"group:{self.id}",
            "app": f"sp:{self.id}",
            "everyone": "all_tenant_users",
            "profile": f"sp_profile:{self.id}",
        }[self.kind]

    def scanned(self, **rights: str) -> dict[str, Any]:
        """A user of a scan's result."""
        kinds = {"user": "User", "group": "Group", "app": "App", "everyone": "None"}
        user: dict[str, Any] = {
            **rights,
            "displayName": self.name,
            "identifier": self.email or self.id,
            "principalType": kinds.get(self.kind, "App"),
        }
        if self.email:
            user["emailAddress"] = self.email
        if self.kind in ("user", "group", "app"):
            user["graphId"] = self.id
        if self.kind == "profile":
            user["profile"] = {"id": self.id, "displayName": self.name}
        return user

    def principal(self) -> dict[str, Any]:
        """A principal of the Fabric API."""
        about: dict[str, Any] = {"id": self.id, "displayName": self.name}
        if self.kind == "user":
            return {**about, "type": "User", "userDetails": {"userPrincipalName": self.email}}
        if self.kind == "group":
            return {**about, "type": "Group", "groupDetails": {"groupType": "SecurityGroup"}}
        if self.kind == "app":
            return {**about, "type": "ServicePrincipal"}
        if self.kind == "profile":
            return {**about, "type": "ServicePrincipalProfile"}
        return {**about, "type": "EntireTenant"}


@dataclass
class Item:
    """An item and who may use it.

    Attributes:
        part: Its list in a scan's result.
        kind: Its type in the Fabric API.
        right: The field of the right in a scan's result.
    """

    id: str
    name: str
    part: str
    kind: str
    right: str
    shares: list[tuple[Holder, str]] = field(default_factory=list)
    additional: list[str] = field(default_factory=list)


@dataclass
class Workspace:
    """A workspace, who has a role in it and what is in it."""

    id: str
    name: str
    kind: str
    roles: list[tuple[Holder, str]] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)


@dataclass
class _Event:
    at: datetime
    visible_at: datetime
    record: dict[str, Any]


@dataclass
class _Listing:
    """Where a listing of events goes on: an hour of the window and an offset in it."""

    from_at: datetime
    to_at: datetime
    hour_at: datetime
    offset: int
    asked_at: datetime
    last_ids: list[str]


@dataclass
class _Scan:
    created_at: datetime
    workspace_ids: list[str]
    will_fail: bool
    has_users: bool
    poll_count: int = 0


class FabricFake:
    """The tenant.

    Args:
        world: Whose company.
        clock: The time.
        workspace_count: How many workspaces, the personal one included.

    Attributes:
        page_events: Most events in a page.
        page_records: Most workspaces or items in a page of the Fabric admin API.
        scan_polls: So many times a scan says that it is not done.
        scans_to_fail: So many scans end as `Failed`.
        scans_seen_at_once: The most scans that were under way at once.
        continuation_base: Where continuations lead, if not to this server.
        is_allowed: Whether the tenant settings let the service principal in.
        error_bodies: Refusals of the Fabric admin API to come, each answered once:
            (status, body, Retry-After or None).
    """

    is_acted_on: ClassVar[bool] = True

    def __init__(self, world: World, clock: Clock, *, workspace_count: int = 7) -> None:
        self.world, self.clock, self.faults = world, clock, Faults()
        self.requests: list[tuple[str, str]] = []
        self.queries: list[tuple[str, str]] = []
        self.is_limited = True
        self.is_allowed = True
        self.page_events = 5000
        self.page_records = 10_000
        self.scan_polls = 2
        self.scans_to_fail = 0
        self.continuation_base: str | None = None
        self.error_bodies: list[tuple[int, Any, str | None]] = []
        self.workspaces = self._make_workspaces(workspace_count)
        self._made = 0
        self._events: list[_Event] = []
        self._listings: dict[str, tuple[_Listing, datetime]] = {}
        self._listing_count = 0
        self.scans: dict[str, _Scan] = {}
        self._tokens: dict[str, tuple[str, datetime]] = {}
        self._admin_tokens: dict[str, int] = {}
        self._lock = threading.Lock()
        self.scans_seen_at_once = 0
        self.rates = {
            name: Rate(count, HOUR, clock)
            for name, count in {
                "activityevents": 200,
                "modified": 30,
                "getInfo": 500,
                "scanStatus": 10_000,
                "scanResult": 500,
                "admin/workspaces": 200,
                "admin/users": 200,
                "admin/items": 200,
                "admin/item_users": 200,
            }.items()
        }
        self.app = Starlette(routes=self._routes())

    # ── What a test says and asks ────────────────────────────────────────────────────────────

    def table(self, url: str, retention: str) -> dict[str, Any]:
        """The connector's table of `verity.toml` for this fake, served at a URL."""
        return {
            "tenant_id": TENANT,
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "login_url": f"{url}/login",
            "power_bi_url": f"{url}/powerbi",
            "fabric_url": f"{url}/fabric",
            "graph_url": f"{url}/graph",
            "retention": retention,
            "advance_min": 0,
        }

    def add_events(
        self, count: int, *, at: datetime, visible_at: datetime | None = None
    ) -> list[str]:
        """Add events at or just after `at`, two to a second; returns their ids.

        Args:
            at: Aware UTC.
            visible_at: From when on they are served; default: from now on.
        """
        ids = []
        for i in range(count):
            self._made += 1
            created = (at + timedelta(seconds=i // 2)).replace(microsecond=0)
            record = self._record(self._made, created)
            ids.append(record["Id"])
            self._events.append(_Event(created, visible_at or self.clock(), record))
        return ids

    def event_ids(self) -> set[str]:
        """The ids of all events."""
        return {event.record["Id"] for event in self._events}

    def grants(
        self, source: str = "scanner", *, are_groups_expanded: bool = False
    ) -> set[tuple[str, ...]]:
        """All rows of a snapshot: principal, asset, privilege, mechanism, granted_via or ""."""
        rows: set[tuple[str, ...]] = set()
        for workspace in self.workspaces:
            rows |= self.grants_of(workspace, source, are_groups_expanded=are_groups_expanded)
        return rows

    def grants_of(
        self, workspace: Workspace, source: str = "scanner", *, are_groups_expanded: bool = False
    ) -> set[tuple[str, ...]]:
        """The rows of one workspace."""
        rows: set[tuple[str, ...]] = set()

        def add(holder: Holder, asset: str, privilege: str, mechanism: str, via: str) -> None:
            rows.add((holder.ref, asset, privilege, mechanism, via))
            if holder.kind == "user" and holder.email:
                rows.add((holder.ref, f"user:{holder.email.lower()}", "alias", "alias", ""))
            if holder.kind == "group" and are_groups_expanded:
                for person in self.people_of(holder.id):
                    ref = f"user:{person.object_id}"
                    rows.add((ref, asset, privilege, "group", holder.ref))
                    rows.add((ref, f"user:{person.email}", "alias", "alias", ""))

        for holder, role in workspace.roles:
            add(holder, f"workspace:{workspace.id}", role, "role", role)
        for item in workspace.items:
            asset = f"workspace:{workspace.id}/item:{item.id}"
            for holder, right in item.shares:
                rights = [right]
                if source == "admin_api":
                    rights = [*_permissions(right), *item.additional]
                for one in rights:
                    add(holder, asset, one, "direct", "")
        return rows

    # ── The company in Fabric ────────────────────────────────────────────────────────────────

    def _guid(self, *name: object) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"fabric/{self.world.seed}/{name}"))

    def _make_workspaces(self, count: int) -> list[Workspace]:
        people = [
            Holder("user", one.object_id, one.name, one.email.title()) for one in self.world.people
        ]
        groups = [Holder("group", one.id, one.name) for one in self.world.groups]
        apps = [
            Holder("app", one.service_principal_id, one.name) for one in self.world.applications
        ]
        everyone = Holder("everyone", self._guid("tenant"), "Everyone")
        profile = Holder("profile", self._guid("profile"), "Embedded customer")
        parts = (
            ("reports", "Report", "reportUserAccessRight", "ReadReshare"),
            ("datasets", "SemanticModel", "datasetUserAccessRight", "ReadWriteReshareExplore"),
            ("dashboards", "Dashboard", "dashboardUserAccessRight", "Read"),
            ("dataflows", "Dataflow", "dataflowUserAccessRight", "ReadWrite"),
            ("datamarts", "Datamart", "datamartUserAccessRight", "ReadExplore"),
            ("Lakehouse", "Lakehouse", "artifactUserAccessRight", "ReadWriteExecute"),
        )
        workspaces = []
        for n in range(count):
            owner = people[n % len(people)]
            if n == count - 1:
                personal = Workspace(
                    self._guid("w", n), f"PersonalWorkspace {owner.name}", "Personal"
                )
                personal.roles.append((owner, "Admin"))
                workspaces.append(personal)
                break
            one = Workspace(self._guid("w", n), f"Workspace {n}", "Workspace")
            one.roles = [
                (owner, "Admin"),
                (groups[n % len(groups)], "Member"),
                (apps[n % len(apps)], "Contributor"),
            ]
            if n % 3 == 2:
                one.roles.append((profile, "Viewer"))
            for k, (part, kind, right, access) in enumerate(parts[: 1 + n % len(parts)]):
                item = Item(self._guid("i", n, k), f"{kind} {n}", part, kind, right)
                item.shares = [(people[(n + k + 1) % len(people)], access)]
                if k % 2 == 0:
                    item.shares.append((groups[(n + k) % len(groups)], "Read"))
                if k == 0 and n % 2 == 0:
                    item.shares.append((everyone, "Read"))
                if kind == "Lakehouse":
                    item.additional = ["ReadAll", "SubscribeOneLakeEvents"]
                one.items.append(item)
            workspaces.append(one)
        return workspaces

    def people_of(self, group_id: str, seen: frozenset[str] = frozenset()) -> list[Any]:
        """Everybody in a group, through other groups too; groups may be cyclic."""
        people: dict[str, Any] = {}
        waiting, known = [group_id], set(seen)
        while waiting:
            one = waiting.pop()
            if one in known:
                continue
            known.add(one)
            group = next(group for group in self.world.groups if group.id == one)
            people |= {
                person.object_id: person
                for person in self.world.people
                if person.object_id in group.people
            }
            waiting += group.groups
        return list(people.values())

    def _record(self, n: int, created: datetime) -> dict[str, Any]:
        people, workspaces = self.world.people, self.workspaces
        person, workspace = people[n % len(people)], workspaces[n % len(workspaces)]
        record: dict[str, Any] = {
            "Id": self._guid("e", n),
            "RecordType": 20,
            "CreationTime": f"{created:%Y-%m-%dT%H:%M:%S}",
            "OrganizationId": self._guid("tenant"),
            "UserType": 0,
            "UserKey": f"10032000{n:08X}",
            "Workload": "PowerBI",
            "UserId": person.email.title() if n % 5 == 0 else person.email,
            "ClientIP": "198.51.100.7",
            "RequestId": self._guid("r", n),
            "IsSuccess": True,
        }
        if n % 7 == 0:
            app = self.world.applications[n % len(self.world.applications)]
            record |= {"UserType": 6, "UserId": app.service_principal_id, "UserAgent": "etl/1.0"}
        operation = "UpdatedAdminFeatureSwitch"
        if n % 11:
            operation = "ViewReport" if n % 2 else "RefreshDataset"
            record |= {"WorkspaceId": workspace.id, "WorkSpaceName": workspace.name}
            if workspace.items:
                item = workspace.items[n % len(workspace.items)]
                record |= {
                    "ArtifactId": item.id,
                    "ArtifactName": item.name,
                    "ArtifactKind": "Dataset" if item.kind == "SemanticModel" else item.kind,
                    "ItemName": item.name,
                }
        return record | {"Operation": operation, "Activity": operation}

    # ── HTTP ─────────────────────────────────────────────────────────────────────────────────

    def _routes(self) -> list[Route]:
        pbi, fab = "/powerbi/v1.0/myorg/admin", "/fabric/v1/admin"
        power_bi = {
            f"{pbi}/activityevents": ("activityevents", self._activity),
            "/wabi/v1.0/myorg/admin/activityevents": ("activityevents", self._activity),
            f"{pbi}/workspaces/modified": ("modified", self._modified),
            f"{pbi}/workspaces/scanStatus/{{scan}}": ("scanStatus", self._scan_status),
            f"{pbi}/workspaces/scanResult/{{scan}}": ("scanResult", self._scan_result),
        }
        fabric = {
            f"{fab}/workspaces": ("admin/workspaces", self._admin_workspaces),
            f"{fab}/items": ("admin/items", self._admin_items),
            f"{fab}/workspaces/{{w}}/users": ("admin/users", self._admin_users),
            f"{fab}/workspaces/{{w}}/items/{{i}}/users": (
                "admin/item_users",
                self._admin_item_users,
            ),
        }
        routes = [
            Route("/login/{tenant}/oauth2/v2.0/token", self._token, methods=["POST"]),
            Route(
                f"{pbi}/workspaces/getInfo",
                self._guarded("powerbi", "getInfo", self._get_info),
                methods=["POST"],
            ),
            Route(
                "/graph/v1.0/groups/{group}/transitiveMembers",
                self._guarded("graph", None, self._members),
            ),
            Route("/_truth", self._truth),
            Route("/_add", self._add, methods=["POST"]),
            Route("/_fault", self._fault, methods=["POST"]),
        ]
        routes += [
            Route(path, self._guarded("powerbi", limit, handler))
            for path, (limit, handler) in power_bi.items()
        ]
        routes += [
            Route(path, self._guarded("fabric", limit, handler))
            for path, (limit, handler) in fabric.items()
        ]
        return routes

    def _guarded(self, audience: str, limit: str | None, handler: Handler) -> Handler:
        """The handler behind faults, the bearer and the limit."""

        async def guarded(request: Request) -> Response:
            self.requests.append((request.method, request.url.path))
            self.queries.append((request.url.path, request.scope["query_string"].decode("ascii")))
            if self.faults.take(Fault.HANGING):
                await hang()
            fault = http_fault(self.faults, self.clock, self._error_body(audience, "Injected"))
            if fault is not None:
                return fault
            refused = self._check_bearer(request, audience)
            if refused is not None:
                return refused
            if limit is not None and self.is_limited:
                wait = self.rates[limit].refuse()
                if wait is not None:
                    headers = {"Retry-After": str(int(wait) + 1)} if audience == "fabric" else {}
                    body = self._error_body(audience, "TooManyRequests", is_retriable=True)
                    return JSONResponse(body, 429, headers)
            response = await handler(request)
            return dropped(response) if self.faults.take(Fault.DROPPED) else response

        return guarded

    def _error_body(
        self, audience: str, code: str, message: str = "", *, is_retriable: bool = False
    ) -> dict[str, Any]:
        if audience == "fabric":
            return {
                "errorCode": code,
                "message": message or code,
                "requestId": self._guid("request", len(self.requests)),
                "moreDetails": [],
                "isRetriable": is_retriable,
            }
        return {"error": {"code": code, "message": message or code}}

    def _check_bearer(self, request: Request, audience: str) -> Response | None:
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.faults.take(Fault.TOKEN_EXPIRED):
            self._tokens.pop(bearer, None)
        known = self._tokens.get(bearer)
        if known is None or known[1] <= self.clock():
            return JSONResponse(self._error_body(audience, "TokenExpired"), 401)
        if known[0] != audience:
            return JSONResponse(self._error_body(audience, "InvalidAudience"), 401)
        if not self.is_allowed and audience == "powerbi":
            return JSONResponse(self._error_body(audience, "PowerBINotAuthorizedException"), 401)
        if not self.is_allowed and audience == "fabric":
            return JSONResponse(self._error_body(audience, "InsufficientPrivileges"), 403)
        return None

    async def _token(self, request: Request) -> Response:
        self.requests.append((request.method, request.url.path))
        form = {
            name: values[0] for name, values in parse_qs((await request.body()).decode()).items()
        }
        is_right = form.get("client_id") == CLIENT_ID and form.get("client_secret") == CLIENT_SECRET
        if self.faults.take(Fault.CREDENTIAL_REFUSED) or not is_right:
            return JSONResponse(
                {"error": "invalid_client", "error_description": "AADSTS7000215"}, 401
            )
        audience = SCOPES.get(form.get("scope", ""))
        if form.get("grant_type") != "client_credentials" or audience is None:
            return JSONResponse({"error": "invalid_scope"}, 400)
        with self._lock:
            token = f"fabric-token-{audience}-{len(self._tokens)}"
            self._tokens[token] = (audience, self.clock() + TOKEN_LIVES)
        seconds = int(TOKEN_LIVES.total_seconds())
        return JSONResponse({"token_type": "Bearer", "expires_in": seconds, "access_token": token})

    # ── Activity events ──────────────────────────────────────────────────────────────────────

    def _bad(self, message: str) -> Response:
        return JSONResponse(self._error_body("powerbi", "BadRequest", message), 400)

    async def _activity(self, request: Request) -> Response:
        query = request.scope["query_string"].decode("ascii")
        params = dict(request.query_params)
        if set(params) - {"startDateTime", "endDateTime", "continuationToken"}:
            return self._bad("a parameter that is not imitated")
        if "continuationToken" in params:
            if len(params) > 1:
                return self._bad("either a token or a window")
            if self.faults.take(Fault.PAGE_TOKEN_EXPIRED):
                return self._bad("the continuation token has expired")
            # Byte for byte as it was handed out: quotes, percent signs and all.
            match = re.fullmatch(r"continuationToken='([^']*)'", query)
            known = self._listings.get(match[1]) if match else None
            if known is None or known[1] <= self.clock():
                return self._bad("the continuation token is not known")
            assert match is not None
            return self._events_page(request, known[0], match[1])
        instants = [
            _INSTANT.fullmatch(params.get(name, "")) for name in ("startDateTime", "endDateTime")
        ]
        if not all(instants):
            return self._bad("startDateTime and endDateTime are instants in single quotes")
        from_at, to_at = (
            datetime.fromisoformat(found[1]).replace(tzinfo=UTC) for found in instants if found
        )
        if from_at.date() != to_at.date():
            return self._bad("startDateTime and endDateTime must be in the same UTC day")
        if from_at > to_at:
            return self._bad("startDateTime is after endDateTime")
        if from_at < self.clock() - RETENTION:
            return self._bad("startDateTime is too far back")
        hour_at = from_at.replace(minute=0, second=0, microsecond=0)
        listing = _Listing(from_at, to_at, hour_at, 0, self.clock(), [])
        return self._events_page(request, listing, None)

    def _events_page(self, request: Request, listing: _Listing, token: str | None) -> Response:
        hour_ends_at = listing.hour_at + HOUR
        there = [
            event
            for event in self._events
            if listing.from_at <= event.at <= listing.to_at
            and listing.hour_at <= event.at < hour_ends_at
            and event.visible_at <= listing.asked_at
        ]
        there.sort(key=lambda event: (event.at, event.record["Id"]), reverse=True)
        page = there[listing.offset : listing.offset + self.page_events]
        if self.faults.take(Fault.EMPTY_PAGE):
            page = []
        offset, hour_at = listing.offset + len(page), listing.hour_at
        is_empty_by_fault = not page and listing.offset < len(there)
        if not is_empty_by_fault and offset >= len(there):
            offset, hour_at = 0, hour_ends_at
        records = [event.record for event in page]
        entities = self._spoilt(records, listing)
        ids = [record["Id"] for record in records]
        following: str | None = None
        if hour_at <= listing.to_at:
            following = self._continue(
                _Listing(listing.from_at, listing.to_at, hour_at, offset, listing.asked_at, ids)
            )
        if token is not None and following and self.faults.take(Fault.REPEATED_TOKEN):
            following = token
        body: dict[str, Any] = {"activityEventEntities": entities}
        if following:
            base = self.continuation_base or f"http://{request.headers['host']}/wabi"
            body["continuationUri"] = (
                f"{base}/v1.0/myorg/admin/activityevents?continuationToken='{following}'"
            )
            body["continuationToken"] = following
        elif self._listing_count % 2:  # Null or absent: both are documented ends.
            body |= {"continuationUri": None, "continuationToken": None}
        return JSONResponse(body | {"lastResultSet": False})

    def _continue(self, listing: _Listing) -> str:
        with self._lock:
            self._listing_count += 1
            raw = f"+RID:{self._guid('listing', self._listing_count)[:13]}==#RT:1#TRC:5"
            token = quote(raw, safe="")
            self._listings[token] = (listing, self.clock() + PAGE_TOKEN_LIVES)
        return token

    def _spoilt(self, records: list[dict[str, Any]], listing: _Listing) -> list[Any]:
        entities: list[Any] = list(records)
        if listing.last_ids and self.faults.take(Fault.REPEATED_EVENT):
            entities += [e.record for e in self._events if e.record["Id"] == listing.last_ids[-1]]
        if entities and self.faults.take(Fault.UNKNOWN_ENUM):
            entities[0] = {**entities[0], "UserType": 99, "Operation": "TeleportReport"}
        if entities and self.faults.take(Fault.NULL_ACTOR):
            entities[-1] = {**entities[-1], "UserId": None, "UserKey": None}
        if entities and self.faults.take(Fault.MALFORMED_RECORD):
            entities.append({"Id": self._guid("broken"), "CreationTime": "yesterday"})
        return entities

    # ── Scanner ──────────────────────────────────────────────────────────────────────────────

    async def _modified(self, request: Request) -> Response:
        params = {name.lower(): value for name, value in request.query_params.items()}
        if set(params) - {"excludepersonalworkspaces", "excludeinactiveworkspaces"}:
            return self._bad("a parameter that is not imitated")
        is_without = params.get("excludepersonalworkspaces", "").lower() == "true"
        return JSONResponse(
            [{"id": w.id} for w in self.workspaces if not (is_without and w.kind == "Personal")]
        )

    async def _get_info(self, request: Request) -> Response:
        if self.faults.take(Fault.FORBIDDEN_OBJECT):
            return JSONResponse(self._error_body("powerbi", "Forbidden"), 403)
        try:
            ids = json.loads(await request.body())["workspaces"]
        except (ValueError, KeyError, TypeError):
            return self._bad("no workspaces")
        if not isinstance(ids, list) or not 1 <= len(ids) <= 100:
            return self._bad("1 to 100 workspaces")
        with self._lock:
            if self.is_limited and self.scans_under_way >= 16:
                return JSONResponse(self._error_body("powerbi", "TooManyRequests"), 429)
            scan_id = self._guid("scan", len(self.scans))
            has_users = request.query_params.get("getArtifactUsers", "").lower() == "true"
            self.scans[scan_id] = _Scan(self.clock(), ids, self.scans_to_fail > 0, has_users)
            self.scans_to_fail = max(0, self.scans_to_fail - 1)
        self.scans_seen_at_once = max(self.scans_seen_at_once, self.scans_under_way)
        return JSONResponse(self._scan_body(scan_id, "NotStarted"), 202)

    @property
    def scans_under_way(self) -> int:
        """How many scans were started and are not done."""
        oldest_at = self.clock() - SCAN_LIVES
        return sum(
            scan.poll_count <= self.scan_polls and scan.created_at > oldest_at
            for scan in self.scans.values()
        )

    def _scan_body(self, scan_id: str, status: str) -> dict[str, Any]:
        created = f"{self.scans[scan_id].created_at + SCANNER_AHEAD:%Y-%m-%dT%H:%M:%S.%f}7Z"
        return {"id": scan_id, "createdDateTime": created, "status": status}

    async def _scan_status(self, request: Request) -> Response:
        scan_id = request.path_params["scan"]
        scan = self.scans.get(scan_id)
        if scan is None:
            return JSONResponse(self._error_body("powerbi", "ScanNotFound"), 404)
        scan.poll_count += 1
        if scan.poll_count <= self.scan_polls:
            status = "NotStarted" if scan.poll_count == 1 else "Running"
            if self.faults.take(Fault.UNKNOWN_ENUM):
                status = "Levitating"
            return JSONResponse(self._scan_body(scan_id, status))
        if scan.will_fail:
            error = {"code": "ScanInternalError", "message": "the scan failed"}
            return JSONResponse({**self._scan_body(scan_id, "Failed"), "error": error})
        return JSONResponse(self._scan_body(scan_id, "Succeeded"))

    async def _scan_result(self, request: Request) -> Response:
        scan = self.scans.get(request.path_params["scan"])
        if scan is None or scan.created_at + RESULT_LIVES <= self.clock():
            return JSONResponse(self._error_body("powerbi", "ScanNotFound"), 404)
        if scan.poll_count <= self.scan_polls or scan.will_fail:
            return self._bad("the scan has not succeeded")
        body: dict[str, Any] = {"workspaces": [], "datasourceInstances": []}
        for workspace in self.workspaces:
            if workspace.id in scan.workspace_ids and not self.faults.take(Fault.VANISHED_OBJECT):
                body["workspaces"].append(_scanned(workspace, has_users=scan.has_users))
        return JSONResponse(body)

    # ── Fabric admin API ─────────────────────────────────────────────────────────────────────

    def _told(self) -> Response | None:
        """A refusal that a test has put in line."""
        if not self.error_bodies:
            return None
        status, body, retry_after = self.error_bodies.pop(0)
        return JSONResponse(body, status, {"Retry-After": retry_after} if retry_after else {})

    def _admin_error(self, code: str, status: int) -> Response:
        return JSONResponse(self._error_body("fabric", code), status)

    def _admin_page(self, request: Request, field_name: str, records: list[Any]) -> Response:
        token, start = request.query_params.get("continuationToken"), 0
        if token is not None:
            if token not in self._admin_tokens:
                return self._admin_error("BadRequest", 400)
            start = self._admin_tokens[token]
        end = start + self.page_records
        body: dict[str, Any] = {field_name: records[start:end]}
        if end < len(records):
            following = f"LDEsMTAwMDAs+{end}/{field_name}=="
            self._admin_tokens[following] = end
            query = {**dict(request.query_params), "continuationToken": following}
            text = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
            body["continuationToken"] = following
            host = request.headers["host"]
            body["continuationUri"] = f"http://{host}{request.url.path}?{text}"
        return JSONResponse(body)

    async def _admin_workspaces(self, request: Request) -> Response:
        params = request.query_params
        if set(params) - {"state", "type", "continuationToken"}:
            return self._admin_error("BadRequest", 400)
        kind = params.get("type", "").lower()
        if params.get("state", "active") not in ("active", "deleted"):
            return self._admin_error("BadRequest", 400)
        if kind not in ("", "personal", "workspace", "adminworkspace"):
            return self._admin_error("BadRequest", 400)
        there = [
            {"id": w.id, "name": w.name, "type": w.kind, "state": "Active"}
            for w in self.workspaces
            if params.get("state") != "deleted" and kind in ("", w.kind.lower())
        ]
        return self._admin_page(request, "workspaces", there)

    async def _admin_items(self, request: Request) -> Response:
        if set(request.query_params) - {"workspaceId", "continuationToken"}:
            return self._admin_error("BadRequest", 400)
        wanted = request.query_params.get("workspaceId")
        items = [
            {
                "id": item.id,
                "name": item.name,
                "type": item.kind,
                "state": "Active",
                "workspaceId": workspace.id,
            }
            for workspace in self.workspaces
            if wanted in (None, workspace.id)
            for item in workspace.items
        ]
        return self._admin_page(request, "itemEntities", items)

    async def _admin_users(self, request: Request) -> Response:
        told = self._told()
        if told is not None:
            return told
        if self.faults.take(Fault.FORBIDDEN_OBJECT):
            return self._admin_error("InsufficientPrivileges", 403)
        found = [w for w in self.workspaces if w.id == request.path_params["w"]]
        if not found or self.faults.take(Fault.VANISHED_OBJECT):
            return self._admin_error("EntityNotFound", 404)
        details = [
            {
                "principal": holder.principal(),
                "workspaceAccessDetails": {"type": found[0].kind, "workspaceRole": role},
            }
            for holder, role in found[0].roles
        ]
        return JSONResponse({"accessDetails": details})

    async def _admin_item_users(self, request: Request) -> Response:
        told = self._told()
        if told is not None:
            return told
        found = [
            item
            for workspace in self.workspaces
            if workspace.id == request.path_params["w"]
            for item in workspace.items
            if item.id == request.path_params["i"]
        ]
        if not found or self.faults.take(Fault.VANISHED_OBJECT):
            return self._admin_error("ItemNotFound", 404)
        item = found[0]
        kind = request.query_params.get("type")
        if (kind is None and item.kind in TYPES_TO_NAME) or kind not in (None, item.kind):
            return self._admin_error("InvalidItemType", 400)
        details = [
            {
                "principal": holder.principal(),
                "itemAccessDetails": {
                    "type": item.kind,
                    "permissions": _permissions(right),
                    "additionalPermissions": item.additional,
                },
            }
            for holder, right in item.shares
        ]
        return JSONResponse({"accessDetails": details})

    # ── Graph ────────────────────────────────────────────────────────────────────────────────

    async def _members(self, request: Request) -> Response:
        group_id, params = request.path_params["group"], request.query_params
        if self.faults.take(Fault.FORBIDDEN_OBJECT):
            body = self._error_body("graph", "Authorization_RequestDenied")
            return JSONResponse(body, 403)
        is_known = any(group.id == group_id for group in self.world.groups)
        if not is_known or self.faults.take(Fault.VANISHED_OBJECT):
            return JSONResponse(self._error_body("graph", "Request_ResourceNotFound"), 404)
        members: list[dict[str, Any]] = [
            {
                "@odata.type": "#microsoft.graph.user",
                "id": person.object_id,
                "userPrincipalName": person.email,
            }
            for person in self.people_of(group_id)
        ]
        group = next(one for one in self.world.groups if one.id == group_id)
        members += [{"@odata.type": "#microsoft.graph.group", "id": one} for one in group.groups]
        start, size = int(params.get("$skiptoken", "0")), min(int(params.get("$top", "100")), 999)
        size = min(size, self.page_records)
        body = {
            "@odata.context": "https://graph.microsoft.com/v1.0/$metadata#directoryObjects",
            "value": members[start : start + size],
        }
        if start + size < len(members):
            host = request.headers["host"]
            body["@odata.nextLink"] = (
                f"http://{host}{request.url.path}?$top={size}&$skiptoken={start + size}"
            )
        return JSONResponse(body)

    # ── For a test in another process ────────────────────────────────────────────────────────

    async def _truth(self, request: Request) -> Response:
        return JSONResponse(
            {
                "event_ids": sorted(self.event_ids()),
                "grants": sorted(list(row) for row in self.grants()),
            }
        )

    async def _add(self, request: Request) -> Response:
        params = request.query_params
        now, late = self.clock(), timedelta(seconds=float(params.get("late_seconds", "0")))
        return JSONResponse(self.add_events(int(params["count"]), at=now, visible_at=now + late))

    async def _fault(self, request: Request) -> Response:
        params = request.query_params
        self.faults.inject(Fault[params["name"]], times=int(params.get("times", "1")))
        return JSONResponse({})


def _permissions(right: str) -> list[str]:
    """A right of the scanner as the permissions of the Fabric API."""
    return re.findall(r"[A-Z][a-z]+", right)


def _scanned(workspace: Workspace, *, has_users: bool) -> dict[str, Any]:
    body: dict[str, Any] = {
        "id": workspace.id,
        "name": workspace.name,
        "type": workspace.kind,
        "state": "Active",
        "isOnDedicatedCapacity": False,
        "reports": [],
        "dashboards": [],
        "datasets": [],
        "dataflows": [],
        "datamarts": [],
        "users": [holder.scanned(groupUserAccessRight=role) for holder, role in workspace.roles],
    }
    for item in workspace.items:
        id_field = "objectId" if item.part == "dataflows" else "id"
        name_field = "displayName" if item.part == "dashboards" else "name"
        body.setdefault(item.part, []).append(
            {
                id_field: item.id,
                name_field: item.name,
                "users": [holder.scanned(**{item.right: right}) for holder, right in item.shares],
            }
        )
    if not has_users:  # They come only where they are asked for.
        del body["users"]
        for things in body.values():
            for thing in things if isinstance(things, list) else []:
                del thing["users"]
    return body


def main() -> None:
    """Serve a tenant with a past, on the machine's clock, until SIGTERM."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--hours", type=float, default=6)
    options = parser.parse_args()
    now = datetime.now(UTC)
    fake = FabricFake(World(seed=options.seed, now=now), Clock())
    start, step = (
        now - timedelta(hours=options.hours),
        options.hours * 3600 / max(options.events, 1),
    )
    for n in range(options.events):
        fake.add_events(1, at=start + timedelta(seconds=n * step), visible_at=start)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with serving(fake.app, options.port) as url:
        print(url, flush=True)  # noqa: T201 - the caller reads it
        stop.wait()


Fake = FabricFake


if __name__ == "__main__":
    main()
