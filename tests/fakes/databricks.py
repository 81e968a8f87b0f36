"""A Databricks workspace that behaves as documented, and no more generously.

Imitated: the SQL Statement Execution API (states, chunks, the limit of INLINE, links to another
host that refuse an Authorization header, results that end after an hour), `system.access.audit`
and `system.information_schema`, Unity Catalog's REST listings and effective permissions, object
permissions, workspace SCIM, and three ways to log in. Shapes: databricks-sdk 0.162; behaviour:
docs.databricks.com, read 2026-11.

Statements are parsed, not compared: a select list, a table, conditions over named parameters and
an order. What is none of that fails as the warehouse would fail it, with status 200. The session's
time zone is not UTC, so that a time without a zone is read as another one.

Faults without a meaning here: none of an empty page in SCIM (there it is the end). 403 and 404 on
one object concern REST objects; a view of the information schema has none. `PAGE_TOKEN_EXPIRED` is
a chunk that is gone, `REPEATED_TOKEN` a chunk or a page that names itself as the next. No budget is
documented, so the limit is made up.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import signal
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any, ClassVar
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fakes.kit import Clock, Fault, Faults, Rate, dropped, hang, http_fault, serving
from fakes.world import World

ACCOUNT_ID = "7b1c9a52-0000-4000-8000-00000000acc0"
METASTORE_ID = "5d0e7a3c-0000-4000-8000-0000000000e5"
WORKSPACE_ID = 7405615123456789
WAREHOUSE_ID = "a1b2c3d4e5f60718"
CLIENT_ID = "0f5d6e7a-1111-4000-8000-00000000c1de"
CLIENT_SECRET = "dose-not-a-real-secret"
AZURE_TENANT = "0e11a0ad-2222-4000-8000-00000000a2e0"
AZURE_CLIENT_ID = "0f5d6e7a-3333-4000-8000-00000000a2c1"
AZURE_CLIENT_SECRET = "entra-not-a-real-secret"
AZURE_SCOPE = "2ff814a6-3304-4ab8-85cb-cd0e6f879c1d/.default"
PERSONAL_TOKEN = "dapi-not-a-real-token"
SESSION_ZONE = timezone(timedelta(hours=5, minutes=30))
RETENTION = timedelta(days=365)
KEEP_ALIVE = timedelta(minutes=15)
FORGOTTEN_AFTER = timedelta(hours=12)

_SELECT = re.compile(
    r"SELECT (?P<columns>.+?) FROM (?P<table>[\w.]+)(?: WHERE (?P<where>.+?))?"
    r"(?: ORDER BY (?P<order>.+?))?(?: LIMIT (?P<limit>\d+))?"
)
_CONDITION = re.compile(
    r"(?P<between>\w+) BETWEEN :(?P<low>\w+) AND :(?P<high>\w+)"
    r"|(?P<column>\w+) (?P<operator>>=|<=|>|<|=) :(?P<name>\w+)"
)
_WAIT = re.compile(r"(\d+)s")
_SUBMISSION_KEYS = frozenset(
    {
        *("warehouse_id", "statement", "parameters", "disposition", "format", "wait_timeout"),
        *("on_wait_timeout", "row_limit", "byte_limit", "catalog", "schema"),
    }
)
# Which kinds of object a privilege of a catalog or schema reaches.
_REACHES = {
    "USE_SCHEMA": {"schema"},
    "SELECT": {"schema", "table"},
    "MODIFY": {"schema", "table"},
    "EXECUTE": {"schema", "function"},
    "READ_VOLUME": {"schema", "volume"},
    "ALL_PRIVILEGES": {"schema", "table", "volume", "function"},
}
_VIEWS = {
    "metastore_privileges": ("metastore", ("metastore_id",)),
    "catalog_privileges": ("catalog", ("catalog_name",)),
    "schema_privileges": ("schema", ("catalog_name", "schema_name")),
    "table_privileges": ("table", ("table_catalog", "table_schema", "table_name")),
    "volume_privileges": ("volume", ("volume_catalog", "volume_schema", "volume_name")),
    "routine_privileges": ("function", ("specific_catalog", "specific_schema", "specific_name")),
    "external_location_privileges": ("external_location", ("external_location_name",)),
    "storage_credential_privileges": ("storage_credential", ("storage_credential_name",)),
    "connection_privileges": ("connection", ("connection_name",)),
}
_OWNER_VIEWS = {
    "metastores": ("metastore", ("metastore_id",), "metastore_owner"),
    "catalogs": ("catalog", ("catalog_name",), "catalog_owner"),
    "schemata": ("schema", ("catalog_name", "schema_name"), "schema_owner"),
    "tables": ("table", ("table_catalog", "table_schema", "table_name"), "table_owner"),
    "volumes": ("volume", ("volume_catalog", "volume_schema", "volume_name"), "volume_owner"),
    "routines": (
        "function",
        ("specific_catalog", "specific_schema", "specific_name"),
        "routine_owner",
    ),
    "external_locations": (
        "external_location",
        ("external_location_name",),
        "external_location_owner",
    ),
    "storage_credentials": (
        "storage_credential",
        ("storage_credential_name",),
        "storage_credential_owner",
    ),
    "connections": ("connection", ("connection_name",), "connection_owner"),
    "shares": ("share", ("share_name",), "share_owner"),
}
_OBJECT_LISTINGS = {
    "clusters": ("/api/2.1/clusters/list", "clusters", "cluster_id"),
    "cluster-policies": ("/api/2.0/policies/clusters/list", "policies", "policy_id"),
    "instance-pools": ("/api/2.0/instance-pools/list", "instance_pools", "instance_pool_id"),
    "jobs": ("/api/2.2/jobs/list", "jobs", "job_id"),
    "pipelines": ("/api/2.0/pipelines", "statuses", "pipeline_id"),
    "repos": ("/api/2.0/repos", "repos", "id"),
    "serving-endpoints": ("/api/2.0/serving-endpoints", "endpoints", "id"),
    "warehouses": ("/api/2.0/sql/warehouses", "warehouses", "id"),
}
_UNPAGED = frozenset({"cluster-policies", "instance-pools", "serving-endpoints"})
_NUMBERED = frozenset({"jobs", "repos"})


@dataclass(slots=True)
class Row:
    """A row of the audit table."""

    at: datetime
    visible_at: datetime
    event_id: str | None
    record: dict[str, Any]
    raw: str

    @property
    def name(self) -> str:
        """Its id as the connector will name it."""
        if self.event_id:
            return self.event_id
        text = json.dumps(self.record, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


@dataclass(slots=True)
class Securable:
    """An object of Unity Catalog with its owner and the grants on itself."""

    kind: str
    name: str
    owner: str
    grants: list[tuple[str, str]] = field(default_factory=list)


@dataclass(slots=True)
class Running:
    """A submitted statement.

    Attributes:
        chunks: What the rows are made of; `cells` makes a row, when it is asked for. So a result
            that nobody reads takes no memory, as in a warehouse.
    """

    id: str
    text: str
    parameters: dict[str, tuple[Any, str]]
    disposition: str
    polls_left: int
    submitted_at: datetime
    looked_at: datetime
    state: str = "PENDING"
    ended_at: datetime | None = None
    error: dict[str, Any] | None = None
    sql_state: str | None = None
    columns: list[tuple[str, str]] = field(default_factory=list)
    cells: Callable[[Any], list[str | None]] = list
    chunks: list[list[Any]] = field(default_factory=list)
    is_truncated: bool = False


class StatementFailed(Exception):
    """A statement that was accepted and failed."""

    def __init__(self, code: str, sql_state: str | None, message: str) -> None:
        super().__init__(message)
        self.code, self.sql_state = code, sql_state


class DatabricksFake:
    """One workspace of a made-up company.

    Attributes:
        polls_pending: How many looks a statement takes to be done.
        inline_bytes_max: The limit of INLINE; the vendor's is 25 MiB.
        external_bytes_max: Where a result through links is cut; the vendor's is 100 GiB.
        chunk_rows: Rows in a chunk.
        page_items: Items in a page of a listing.
        storage_url: Where links lead to: `storage` must be served there.
        missing: What the service principal lacks: `warehouse`, `USE CATALOG`, `USE SCHEMA`,
            `SELECT`, `schema` (the system schema is not enabled), `scim`, `metastore`.
        hidden_views: Views of the information schema that this runtime does not have.
        denied_tables: Tables that may not be selected from.
        rows_lost: So many rows of every chunk after the first are left out, whatever the manifest
            says.
        rows_promised: The manifest says so many rows more than there are.
        links_refused: The storage refuses the next so many downloads.
        cancelled: Ids of the statements whose cancellation was asked for.
        storage_credentials_seen: Authorization headers that the storage was shown.
        submitted: Bodies of the submissions.
        answers: Where set, a list that gets route, status and body of every answer.
    """

    is_acted_on: ClassVar[bool] = True

    def __init__(self, world: World, clock: Clock) -> None:
        self.world = world
        self.clock = clock
        self.faults = Faults()
        self.is_limited = True
        self.rate = Rate(2000, timedelta(minutes=1), clock)
        self.requests: list[tuple[str, str]] = []
        self.answers: list[tuple[str, int, Any]] | None = None
        self.polls_pending = 1
        self.inline_bytes_max = 25 * 1024 * 1024
        self.external_bytes_max = 100 * 1024**3
        self.chunk_rows = 1000
        self.page_items = 3
        self.link_seconds = 900.0
        self.result_seconds = 3600.0
        self.storage_url = "https://storage.invalid"
        self.missing: set[str] = set()
        self.hidden_views: set[str] = set()
        self.denied_tables: set[str] = set()
        self.rows_lost = 0
        self.rows_promised = 0
        self.links_refused = 0
        self.submitted: list[dict[str, Any]] = []
        self.cancelled: list[str] = []
        self.storage_credentials_seen: list[str] = []
        self._rows: list[Row] = []
        self.statements: dict[str, Running] = {}
        self.tokens: dict[str, datetime] = {}
        self._made = 0
        self._tokens_given = 0
        self._emails = {one.object_id: one.email for one in world.people}
        # One login is not in lower case, as directories have them.
        capital = world.people[5]
        self._emails[capital.object_id] = capital.email[0].upper() + capital.email[1:]
        self._build_groups()
        self._build_securables()
        self._build_objects()
        self.app = Starlette(routes=list(self._routes()))
        self.storage = Starlette(routes=[Route("/results/{key}", self._stored)])

    # ------------------------------------------------------------------ the world, as it is here

    @property
    def beside(self) -> dict[str, Any]:
        """What is served beside it: the attribute that takes the URL, and the application."""
        return {"storage_url": self.storage}

    def table(self, url: str, retention: str) -> dict[str, Any]:
        """The connector's table of `verity.toml` for this fake, served at a URL."""
        return {
            "host": url,
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "warehouse_id": WAREHOUSE_ID,
            "storage_hosts": [self.storage_url.removeprefix("http://")],
            "retention": retention,
        }

    def email(self, index: int) -> str:
        """The login of a person."""
        return self._emails[self.world.people[index % len(self.world.people)].object_id]

    def _build_groups(self) -> None:
        """SCIM resources: numbers as ids, as Databricks has them."""
        numbers: dict[str, str] = {}
        for number, one in enumerate(self.world.people, start=1001):
            numbers[one.object_id] = str(number)
        for number, app in enumerate(self.world.applications, start=5001):
            numbers[app.app_id] = str(number)
        for number, one in enumerate(self.world.groups, start=9001):
            numbers[one.id] = str(number)
        self._users = [
            {"id": numbers[one.object_id], "userName": self._emails[one.object_id]}
            for one in self.world.people
        ]
        self._principals = [
            {"id": numbers[app.app_id], "applicationId": app.app_id, "displayName": app.name}
            for app in self.world.applications
        ]
        self._groups = []
        for one in self.world.groups:
            members = [
                {"value": numbers[person], "$ref": f"Users/{numbers[person]}"}
                for person in one.people
            ]
            members += [
                {"value": numbers[inner], "$ref": f"Groups/{numbers[inner]}"}
                for inner in one.groups
            ]
            if one.name == "Engineering":
                app = self.world.applications[0]
                members.append(
                    {
                        "value": numbers[app.app_id],
                        "display": app.name,
                        "$ref": f"ServicePrincipals/{numbers[app.app_id]}",
                    }
                )
                # An account's member that this workspace's SCIM does not list.
                members.append({"value": "777777", "display": "Gone", "$ref": "Users/777777"})
            self._groups.append(
                {
                    "id": numbers[one.id],
                    "displayName": one.name,
                    "members": members,
                    "meta": {"resourceType": "Group"},
                }
            )

    def _build_securables(self) -> None:
        people = [self.email(i) for i in range(len(self.world.people))]
        app = self.world.applications[1].app_id
        self.securables = [
            Securable("metastore", METASTORE_ID, people[0], [("Engineering", "CREATE_CATALOG")]),
            Securable("external_location", "landing", people[1], [(app, "READ_FILES")]),
            Securable("storage_credential", "lake", people[1]),
            Securable("connection", "crm", people[2], [("Sales", "USE_CONNECTION")]),
            Securable(
                "catalog",
                "main",
                people[0],
                [
                    ("account users", "USE_CATALOG"),
                    ("Engineering", "ALL_PRIVILEGES"),
                    ("Cycle A", "SELECT"),
                ],
            ),
            Securable("schema", "main.information_schema", "System user"),
            Securable("schema", "main.hr", "People", [("All departments", "USE_SCHEMA")]),
            Securable(
                "table", "main.hr.salary", people[3], [(people[4], "SELECT"), (app, "MODIFY")]
            ),
            Securable("table", "main.hr.people", people[3], [("Cycle B", "SELECT")]),
            Securable("volume", "main.hr.files", people[3], [(people[5], "READ_VOLUME")]),
            Securable("function", "main.hr.mask", people[3], [("Legal", "EXECUTE")]),
            Securable("schema", "main.sales", "Sales", [("Sales", "SELECT")]),
            Securable("table", "main.sales.orders with space/slash", people[6]),
            Securable("catalog", "sandbox", people[7], [(people[7], "ALL_PRIVILEGES")]),
            Securable("schema", "sandbox.tmp", people[7]),
            Securable("share", "partners", people[0]),
        ]
        self.recipients = [("acme", "partners", "SELECT")]

    def _build_objects(self) -> None:
        """Access control lists: kind → id → entries."""
        people = [self.email(i) for i in range(len(self.world.people))]
        app = self.world.applications[0]

        def acl(owner: str, top: str) -> list[dict[str, Any]]:
            return [
                {
                    "user_name": owner,
                    "display_name": "The owner",
                    "all_permissions": [{"permission_level": "IS_OWNER", "inherited": False}],
                },
                {
                    "group_name": "Engineering",
                    "all_permissions": [
                        {
                            "permission_level": "CAN_MANAGE",
                            "inherited": True,
                            "inherited_from_object": [top],
                        },
                        {"permission_level": "CAN_VIEW", "inherited": False},
                    ],
                },
                {
                    "service_principal_name": app.app_id,
                    "display_name": app.name,
                    "all_permissions": [{"permission_level": "CAN_VIEW", "inherited": False}],
                },
            ]

        self.objects: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for offset, kind in enumerate(_OBJECT_LISTINGS):
            ids = [
                str(4000 + 10 * offset + i) if kind in _NUMBERED else f"{kind[:4]}-{i:04x}"
                for i in range(5)
            ]
            self.objects[kind] = {
                object_id: acl(people[(offset + i) % 9], f"/{kind}/")
                for i, object_id in enumerate(ids)
            }

    # ---------------------------------------------------------------------------------- truth

    def add_events(
        self, count: int, *, at: datetime, visible_at: datetime | None = None
    ) -> list[str]:
        """Let events happen at `at` and just after, three in each 7 ms; returns their names."""
        at = at.replace(microsecond=at.microsecond // 1000 * 1000)
        names = []
        for index in range(count):
            when = at + timedelta(milliseconds=7 * (index // 3))
            row = self._row(self._made, when)
            row.visible_at = visible_at or when
            self._made += 1
            self._rows.append(row)
            names.append(row.name)
        return names

    def event_ids(self) -> set[str]:
        """Every event that there is, or will be seen later."""
        return {row.name for row in self._rows}

    def _row(self, number: int, at: datetime) -> Row:
        seed = uuid.uuid5(uuid.NAMESPACE_URL, f"verity/databricks/{self.world.seed}/{number}")
        event_id = None if number % 11 == 7 else seed.hex
        service, action, parameters, is_account = _ACTIVITIES[number % len(_ACTIVITIES)]
        app = self.world.applications[number % 2].app_id
        who = [self.email(number), self.email(3 * number), app, "System-User"][number % 4]
        record: dict[str, Any] = {
            "account_id": ACCOUNT_ID,
            "workspace_id": "0" if is_account else str(WORKSPACE_ID),
            "version": "2.0",
            "event_time": at.astimezone(SESSION_ZONE).isoformat(timespec="milliseconds"),
            "event_date": f"{at:%Y-%m-%d}",
            "source_ip_address": f"10.0.{number % 250}.{number % 200}",
            "user_agent": "Databricks-Workspace/1.0",
            "user_identity": {"email": who},
            "service_name": service,
            "action_name": action,
            "request_id": f"req-{number}",
            "request_params": {
                key: value.format(n=number, w=WORKSPACE_ID, m=METASTORE_ID)
                for key, value in parameters.items()
            },
            "response": {"status_code": 200},
            "audit_level": "ACCOUNT_LEVEL" if is_account else "WORKSPACE_LEVEL",
        }
        if event_id is not None:
            record["event_id"] = event_id
        raw = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
        return Row(at, at, event_id, record, raw)

    def grants(self, source: str = "information_schema") -> set[tuple[str, ...]]:
        """Who may do what: (principal, asset, privilege, mechanism, via), expanded."""
        people, via = self._closure()
        found: set[tuple[str, ...]] = set()

        def add(name: str, asset: str, privilege: str, inherited: str = "") -> None:
            ref = self._ref(name)
            found.add((ref, asset, privilege, "direct", inherited))
            for member in people.get(name, ()):
                found.add((member, asset, privilege, "group", ref))

        for name, members in via.items():
            for member, inner in members.items():
                mechanism = "direct" if inner == name else "group"
                through = "" if inner == name else f"group:{inner}"
                found.add((member, f"group:{name}", "MEMBER", mechanism, through))
        for email in self._emails.values():
            if email != email.lower():
                found.add((f"user:{email}", f"user:{email.lower()}", "alias", "alias", ""))
        for one in self.securables:
            if source == "rest" and (
                one.kind == "share" or one.name.endswith(".information_schema")
            ):
                continue
            asset = f"uc:{METASTORE_ID}/{one.kind}/{one.name}"
            add(one.owner, asset, "OWNER")
            for name, privilege, above in self._effective(one):
                inherited = f"{above.kind}:{above.name}" if above is not one else ""
                add(name, asset, privilege, inherited)
        if source == "information_schema":
            for recipient, share, privilege in self.recipients:
                ref = f"uc:{METASTORE_ID}/recipient/{recipient}"
                found.add((ref, f"uc:{METASTORE_ID}/share/{share}", privilege, "direct", ""))
        for kind, objects in self.objects.items():
            for object_id, entries in objects.items():
                for entry in entries:
                    name = (
                        entry.get("user_name")
                        or entry.get("group_name")
                        or entry.get("service_principal_name")
                    )
                    for held in entry["all_permissions"]:
                        level = held["permission_level"]
                        inherited = ",".join(held.get("inherited_from_object", []))
                        asset = f"workspace:{WORKSPACE_ID}/{kind}/{object_id}"
                        add(name, asset, "OWNER" if level == "IS_OWNER" else level, inherited)
        return found

    def _ref(self, name: str) -> str:
        if any(one["displayName"] == name for one in self._groups):
            return f"group:{name}"
        if any(app.app_id == name for app in self.world.applications):
            return f"sp:{name}"
        return f"user:{name}" if "@" in name or name == "System user" else f"group:{name}"

    def _closure(self) -> tuple[dict[str, set[str]], dict[str, dict[str, str]]]:
        """Of each group: the people in it, and of each member through which group."""
        by_id = {one.id: one for one in self.world.groups}
        apps = {"Engineering": {f"sp:{self.world.applications[0].app_id}", "scim:777777"}}
        inside = {
            one.name: {f"user:{self._emails[person]}" for person in one.people}
            | apps.get(one.name, set())
            for one in self.world.groups
        }
        children = {
            one.name: {by_id[inner].name for inner in one.groups} for one in self.world.groups
        }
        # Distances by relaxation until nothing changes.
        far = {(one, one): 0 for one in inside}
        is_settled = False
        while not is_settled:
            is_settled = True
            for (top, low), steps in list(far.items()):
                for inner in children[low]:
                    if far.get((top, inner), 10**6) > steps + 1:
                        far[top, inner] = steps + 1
                        is_settled = False
        people = {
            top: set().union(*(inside[low] for up, low in far if up == top)) for top in inside
        }
        via: dict[str, dict[str, str]] = {top: {} for top in inside}
        for top in inside:
            reached = sorted((steps, low) for (up, low), steps in far.items() if up == top)
            for _, low in reached:
                for member in inside[low] | {f"group:{inner}" for inner in children[low]}:
                    if member != f"group:{top}":
                        via[top].setdefault(member, low)
        return people, via

    def _effective(self, one: Securable) -> Iterator[tuple[str, str, Securable]]:
        for name, privilege in one.grants:
            yield name, privilege, one
        for above in self.securables:
            is_above = above.kind in {"catalog", "schema"} and one.name.startswith(f"{above.name}.")
            if is_above and one.name.endswith(".information_schema"):
                continue
            if is_above:
                for name, privilege in above.grants:
                    if one.kind in _REACHES.get(privilege, ()):
                        yield name, privilege, above

    # --------------------------------------------------------------------------------- routes

    def _routes(self) -> Iterator[Route]:
        yield Route("/oidc/v1/token", self._oidc, methods=["POST"])
        yield Route("/{tenant}/oauth2/v2.0/token", self._entra, methods=["POST"])
        yield Route("/_truth", self._truth)
        yield Route("/_add", self._add, methods=["POST"])
        yield Route("/_fault", self._fault, methods=["POST"])
        sql = "/api/2.0/sql/statements"
        catalog = "/api/2.1/unity-catalog"
        for path, handler, method in (
            (sql, self._submit, "POST"),
            (sql + "/{id}", self._look, "GET"),
            (sql + "/{id}/cancel", self._cancel, "POST"),
            (sql + "/{id}/result/chunks/{index:int}", self._chunk, "GET"),
            (catalog + "/current-metastore-assignment", self._assignment, "GET"),
            (catalog + "/metastore_summary", self._summary, "GET"),
            (catalog + "/effective-permissions/{kind}/{name:path}", self._permissions, "GET"),
            (catalog + "/{listing}", self._list_securables, "GET"),
            ("/api/2.0/permissions/{kind}/{id}", self._acl, "GET"),
            ("/api/2.0/preview/scim/v2/{resource}", self._scim, "GET"),
        ):
            yield Route(path, self._guarded(handler), methods=[method])
        for kind, (path, _, _) in _OBJECT_LISTINGS.items():
            yield Route(path, self._guarded(self._object_lister(kind)), methods=["GET"])

    def _guarded(
        self, handler: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            self.requests.append((request.method, request.url.path))
            if self.faults.take(Fault.HANGING):
                await hang()
            injected = http_fault(self.faults, self.clock, _body("INJECTED", "injected"))
            if injected is not None:
                return injected
            wait = self.rate.refuse() if self.is_limited else None
            if wait is not None:
                headers = {"Retry-After": str(max(1, round(wait)))}
                return JSONResponse(_body("REQUEST_LIMIT_EXCEEDED", "slow down"), 429, headers)
            refused = self.refused(request)
            if refused is not None:
                return refused
            response = await handler(request)
            if response.status_code == 200 and self.faults.take(Fault.DROPPED):
                return dropped(response)
            if self.answers is not None:
                kind = "/".join(request.scope["route"].path.split("/")[2:])
                body = json.loads(bytes(response.body))
                self.answers.append((kind, response.status_code, body))
            return response

        return answer

    def refused(self, request: Request) -> Response | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        expired = self.faults.take(Fault.TOKEN_EXPIRED)
        if scheme == "Bearer" and not expired:
            if token == PERSONAL_TOKEN:
                return None
            if token in self.tokens and self.clock() < self.tokens[token]:
                return None
        if expired:
            self.tokens.pop(token, None)
        return _error(401, "UNAUTHENTICATED", "the credential is missing, wrong or has expired")

    # ---------------------------------------------------------------------------------- login

    async def _oidc(self, request: Request) -> Response:
        self.requests.append((request.method, request.url.path))
        form = await _form(request)
        expected = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        is_known = request.headers.get("authorization") == f"Basic {expected}"
        if self.faults.take(Fault.CREDENTIAL_REFUSED) or not is_known:
            return JSONResponse(
                {"error": "invalid_client", "error_description": "Client authentication failed"},
                401,
            )
        if form.get("grant_type") != "client_credentials" or form.get("scope") != "all-apis":
            return JSONResponse({"error": "invalid_request", "error_description": "form"}, 400)
        return JSONResponse({**self._new_token(), "scope": "all-apis"})

    async def _entra(self, request: Request) -> Response:
        self.requests.append((request.method, request.url.path))
        form = await _form(request)
        is_known = (
            request.path_params["tenant"] == AZURE_TENANT
            and form.get("client_id") == AZURE_CLIENT_ID
            and form.get("client_secret") == AZURE_CLIENT_SECRET
        )
        if self.faults.take(Fault.CREDENTIAL_REFUSED) or not is_known:
            return JSONResponse(
                {"error": "invalid_client", "error_description": "AADSTS7000215"}, 401
            )
        if form.get("grant_type") != "client_credentials" or form.get("scope") != AZURE_SCOPE:
            return JSONResponse({"error": "invalid_scope", "error_description": "scope"}, 400)
        return JSONResponse(self._new_token())

    def _new_token(self) -> dict[str, Any]:
        token = f"token-{len(self.tokens)}-{uuid.uuid4().hex}"
        self.tokens[token] = self.clock() + timedelta(hours=1)
        return {"access_token": token, "token_type": "Bearer", "expires_in": 3600}

    # ----------------------------------------------------------------------------- statements

    async def _submit(self, request: Request) -> Response:
        body = await request.json()
        if not isinstance(body, dict) or set(body) - _SUBMISSION_KEYS:
            return _error(400, "MALFORMED_REQUEST", "unknown fields")
        self.submitted.append(body)
        warehouse = body.get("warehouse_id")
        if warehouse != WAREHOUSE_ID:
            return _error(
                400, "INVALID_PARAMETER_VALUE", f"{warehouse} is not a valid endpoint id."
            )
        if "warehouse" in self.missing:
            return _error(403, "PERMISSION_DENIED", "You do not have permission to use the SQL")
        wait = _WAIT.fullmatch(str(body.get("wait_timeout", "10s")))
        if wait is None or not (int(wait[1]) == 0 or 5 <= int(wait[1]) <= 50):
            return _error(400, "INVALID_PARAMETER_VALUE", "wait_timeout must be 0s or 5s to 50s")
        disposition = body.get("disposition", "INLINE")
        if disposition not in {"INLINE", "EXTERNAL_LINKS"} or body.get("format") != "JSON_ARRAY":
            return _error(400, "INVALID_PARAMETER_VALUE", "disposition and format don't fit")
        parameters = {}
        for one in body.get("parameters", []):
            parameters[one["name"]] = (one.get("value"), one.get("type", "STRING"))
        now = self.clock()
        running = Running(
            f"01ef-{len(self.statements):012x}",
            body["statement"],
            parameters,
            disposition,
            self.polls_pending,
            now,
            now,
        )
        self.statements[running.id] = running
        if int(wait[1]) and running.polls_left <= 0:
            self.execute(running)
        elif int(wait[1]) and body.get("on_wait_timeout") == "CANCEL":
            running.state, running.ended_at = "CANCELED", now
        return JSONResponse(self._described(running))

    async def _look(self, request: Request) -> Response:
        running = self.statements.get(request.path_params["id"])
        now = self.clock()
        if running is None or (running.ended_at and now - running.ended_at > FORGOTTEN_AFTER):
            return _error(404, "NOT_FOUND", "no such statement")
        if running.ended_at is None:
            running.polls_left -= 1
            if now - running.looked_at > KEEP_ALIVE:
                running.state, running.ended_at = "CANCELED", now
            elif running.polls_left <= 0:
                self.execute(running)
            else:
                running.state = "RUNNING"
            running.looked_at = now
        elif running.state == "SUCCEEDED" and self._is_over(running):
            running.state = "CLOSED"
        return JSONResponse(self._described(running))

    async def _cancel(self, request: Request) -> Response:
        running = self.statements.get(request.path_params["id"])
        if running is None:
            return _error(404, "NOT_FOUND", "no such statement")
        self.cancelled.append(running.id)
        if running.ended_at is None:
            running.state, running.ended_at = "CANCELED", self.clock()
        return JSONResponse({})

    async def _chunk(self, request: Request) -> Response:
        running = self.statements.get(request.path_params["id"])
        index = request.path_params["index"]
        if running is None or running.state != "SUCCEEDED" or index >= len(running.chunks):
            return _error(404, "NOT_FOUND", "no such chunk")
        if self._is_over(running) or self.faults.take(Fault.PAGE_TOKEN_EXPIRED):
            running.state = "CLOSED"
            return _error(404, "NOT_FOUND", "the result is no longer available")
        return JSONResponse(self._result(running, index))

    def _is_over(self, running: Running) -> bool:
        assert running.ended_at is not None
        return (self.clock() - running.ended_at).total_seconds() > self.result_seconds

    def _described(self, running: Running) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "statement_id": running.id,
            "status": {"state": running.state},
        }
        if running.error is not None:
            answer["status"]["error"] = running.error
            if running.sql_state:
                answer["status"]["sql_state"] = running.sql_state
        if running.state == "SUCCEEDED":
            offsets = self._offsets(running)
            answer["manifest"] = {
                "format": "JSON_ARRAY",
                "schema": {
                    "column_count": len(running.columns),
                    "columns": [
                        {"name": name, "position": at, "type_name": kind, "type_text": kind}
                        for at, (name, kind) in enumerate(running.columns)
                    ],
                },
                "total_chunk_count": len(running.chunks),
                "total_row_count": sum(map(len, running.chunks)) + self.rows_promised,
                "truncated": running.is_truncated,
            }
            if running.chunks:
                answer["manifest"]["chunks"] = [
                    {"chunk_index": at, "row_offset": offsets[at], "row_count": len(rows)}
                    for at, rows in enumerate(running.chunks)
                ]
                answer["result"] = self._result(running, 0)
        return answer

    def _offsets(self, running: Running) -> list[int]:
        offsets, total = [], 0
        for rows in running.chunks:
            offsets.append(total)
            total += len(rows)
        return offsets

    def _result(self, running: Running, index: int) -> dict[str, Any]:
        rows = [running.cells(row) for row in running.chunks[index]]
        lost = self.rows_lost if index else 0
        part: dict[str, Any] = {
            "chunk_index": index,
            "row_offset": self._offsets(running)[index],
            "row_count": len(rows),
        }
        following = index + 1 if index + 1 < len(running.chunks) else None
        if following is not None and self.faults.take(Fault.REPEATED_TOKEN):
            following = index
        if following is not None:
            part["next_chunk_index"] = following
            part["next_chunk_internal_link"] = (
                f"/api/2.0/sql/statements/{running.id}/result/chunks/{following}"
                f"?row_offset={part['row_offset'] + len(rows)}"
            )
        if running.disposition == "INLINE":
            part["data_array"] = rows[: len(rows) - lost]
            return part
        expires_at = self.clock() + timedelta(seconds=self.link_seconds)
        # What the link is for stands in it, signed: the storage keeps no list.
        key = f"{running.id}.{index}.{int(expires_at.timestamp())}"
        signature = _signature(key)
        part["byte_count"] = len(json.dumps(rows))
        part["external_link"] = f"{self.storage_url}/results/{key}?sig={signature}&se=1"
        part["expiration"] = expires_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        part["http_headers"] = {"x-encryption-key": f"key-{signature}"}
        return {"external_links": [part]}

    async def _stored(self, request: Request) -> Response:
        """The storage: no login, a signature and the headers that came with the link."""
        self.requests.append((request.method, "/results"))
        if "authorization" in request.headers:
            self.storage_credentials_seen.append(request.headers["authorization"])
            return Response("<Error>one kind of login only</Error>", 400)
        key = request.path_params["key"]
        statement_id, index, expires = key.rsplit(".", 2)
        signature = _signature(key)
        is_good = request.url.query == f"sig={signature}&se=1"
        is_good = is_good and request.headers.get("x-encryption-key") == f"key-{signature}"
        if self.links_refused:
            self.links_refused, is_good = self.links_refused - 1, False
        if not is_good or self.clock().timestamp() >= int(expires):
            return Response("<Error><Code>AuthenticationFailed</Code></Error>", 403)
        running = self.statements[statement_id]
        rows = [running.cells(row) for row in running.chunks[int(index)]]
        lost = self.rows_lost if int(index) else 0
        return JSONResponse(rows[: len(rows) - lost])

    def execute(self, running: Running) -> None:
        running.ended_at = self.clock()
        try:
            columns, rows, cells = self._select(running)
            size = sum(len(cell or "") for row in rows for cell in cells(row))
            if running.disposition == "INLINE" and size > self.inline_bytes_max:
                raise StatementFailed(
                    "BAD_REQUEST",
                    None,
                    "Inline byte limit exceeded. Statements executed with disposition=INLINE can "
                    f"have a result size of at most {self.inline_bytes_max} bytes. Please execute "
                    "the statement with disposition=EXTERNAL_LINKS if you want to download the "
                    "full result.",
                )
        except StatementFailed as failed:
            running.state = "FAILED"
            running.error = {"error_code": failed.code, "message": str(failed)}
            running.sql_state = failed.sql_state
            return
        while rows and size > self.external_bytes_max:
            running.is_truncated = True
            size -= sum(len(cell or "") for cell in cells(rows.pop()))
        running.state, running.columns, running.cells = "SUCCEEDED", columns, cells
        running.chunks = [
            rows[at : at + self.chunk_rows] for at in range(0, len(rows), self.chunk_rows)
        ]

    def _select(
        self, running: Running
    ) -> tuple[list[tuple[str, str]], list[Any], Callable[[Any], list[str | None]]]:
        text = " ".join(running.text.split())
        parsed = _SELECT.fullmatch(text)
        if "?" in text or parsed is None:
            raise StatementFailed("BAD_REQUEST", "42601", "[PARSE_SYNTAX_ERROR] Syntax error")
        table = parsed["table"]
        self._authorise(table)
        columns = [one.strip() for one in _split(parsed["columns"])]
        if table == "system.access.audit":
            rows = self._audit(parsed["where"], parsed["order"], running.parameters)
            found = _AUDIT_COLUMNS
        else:
            if parsed["where"] or parsed["order"] or running.parameters:
                raise StatementFailed("BAD_REQUEST", None, "[UNSUPPORTED] not in this fake")
            rows, names = self._view(table.removeprefix("system.information_schema."))
            found = {name: (name, "STRING", lambda row, name=name: row[name]) for name in names}
            if columns == ["*"]:
                columns = list(names)
        unknown = [one for one in columns if one not in found]
        if unknown:
            raise StatementFailed(
                "BAD_REQUEST", "42703", f"[UNRESOLVED_COLUMN] {unknown[0]} cannot be resolved"
            )
        if parsed["limit"] is not None:
            rows = rows[: int(parsed["limit"])]
        makers = [found[one][2] for one in columns]
        return (
            [found[one][:2] for one in columns],
            rows,
            lambda row: [make(row) for make in makers],
        )

    def _authorise(self, table: str) -> None:
        catalog, schema, name = table.split(".")
        if catalog != "system" or schema not in {"access", "information_schema"}:
            raise StatementFailed(
                "BAD_REQUEST", "42P01", f"[TABLE_OR_VIEW_NOT_FOUND] {table} cannot be found"
            )
        if schema == "access" and "schema" in self.missing:
            raise StatementFailed(
                "BAD_REQUEST",
                "42P01",
                f"[TABLE_OR_VIEW_NOT_FOUND] The table or view `{table}` cannot be found.",
            )
        for privilege, kind, what in (
            ("USE CATALOG", "Catalog", "system"),
            ("USE SCHEMA", "Schema", f"system.{schema}"),
            ("SELECT", "Table", table),
        ):
            is_denied = table in self.denied_tables and privilege == "SELECT"
            if is_denied or (schema == "access" and privilege in self.missing):
                raise StatementFailed(
                    "BAD_REQUEST",
                    "42501",
                    "[INSUFFICIENT_PERMISSIONS] Insufficient privileges: User does not have "
                    f"{privilege} on {kind} '{what}'. SQLSTATE: 42501",
                )
        known = {"audit"} if schema == "access" else self._view_names() - self.hidden_views
        if name not in known:
            raise StatementFailed(
                "BAD_REQUEST", "42P01", f"[TABLE_OR_VIEW_NOT_FOUND] {table} cannot be found"
            )

    def _view_names(self) -> set[str]:
        return {*_VIEWS, *_OWNER_VIEWS, "share_recipient_privileges"}

    def _audit(
        self, where: str | None, order: str | None, parameters: dict[str, tuple[Any, str]]
    ) -> list[Row]:
        now = self.clock()
        rows = [row for row in self._rows if row.visible_at <= now and row.at > now - RETENTION]
        if where:
            rest = where
            while rest:
                condition = _CONDITION.match(rest)
                if condition is None:
                    raise StatementFailed("BAD_REQUEST", "42601", "[PARSE_SYNTAX_ERROR] in WHERE")
                rest = rest[condition.end() :]
                if rest and not rest.startswith(" AND "):
                    raise StatementFailed("BAD_REQUEST", "42601", "[PARSE_SYNTAX_ERROR] in WHERE")
                rest = rest.removeprefix(" AND ")
                rows = [row for row in rows if _holds(condition, row, parameters)]
        used = set(re.findall(r":(\w+)", where or ""))
        if set(parameters) != used:
            raise StatementFailed("BAD_REQUEST", "42P02", "[UNBOUND_SQL_PARAMETER] a parameter")
        if order == "event_time, event_id":
            rows.sort(key=lambda row: (row.at, row.event_id is not None, row.event_id or ""))
        elif order is not None:
            raise StatementFailed("BAD_REQUEST", "42703", "[UNRESOLVED_COLUMN] in ORDER BY")
        else:
            rows.reverse()  # no order is promised
        return self._with_faults(rows)

    def _with_faults(self, rows: list[Row]) -> list[Row]:
        if not rows:
            return rows
        if self.faults.take(Fault.REPEATED_EVENT):
            rows = [*rows[: len(rows) // 2 + 1], *rows[len(rows) // 2 :]]
        if self.faults.take(Fault.NULL_ACTOR):
            rows[0] = _changed(rows[0], user_identity=None)
        if self.faults.take(Fault.UNKNOWN_ENUM):
            rows[-1] = _changed(rows[-1], action_name="foldedUnheard", audit_level="GALAXY_LEVEL")
        if self.faults.take(Fault.MALFORMED_RECORD):
            rows.insert(1, Row(rows[0].at, rows[0].at, "malformed", {}, '{"service_name": "uni'))
        return rows

    def _view(self, name: str) -> tuple[list[dict[str, str | None]], list[str]]:
        rows: list[dict[str, str | None]] = []
        if name == "share_recipient_privileges":
            columns = ["grantor", "recipient_name", "share_name", "privilege_type"]
            for recipient, share, privilege in self.recipients:
                rows.append(dict(zip(columns, ["admin", recipient, share, privilege], strict=True)))
            return rows, columns
        if name in _OWNER_VIEWS:
            kind, names, owner = _OWNER_VIEWS[name]
            columns = [*names, owner, "comment"]
            for one in self.securables:
                if one.kind == kind:
                    parts = one.name.split(".", len(names) - 1)
                    rows.append(dict(zip(columns, [*parts, one.owner, None], strict=True)))
            return rows, columns
        kind, names = _VIEWS[name]
        columns = ["grantor", "grantee", *names, "privilege_type", "is_grantable", "inherited_from"]
        for one in self.securables:
            if one.kind != kind:
                continue
            parts = one.name.split(".", len(names) - 1)
            for grantee, privilege, above in self._effective(one):
                inherited = "NONE" if above is one else above.kind.upper()
                cells = ["System user", grantee, *parts, privilege, "NO", inherited]
                rows.append(dict(zip(columns, cells, strict=True)))
        return rows, columns

    # ------------------------------------------------------------------------------------ REST

    async def _assignment(self, request: Request) -> Response:
        if "metastore" in self.missing:
            return _error(404, "METASTORE_DOES_NOT_EXIST", "No metastore assigned")
        return JSONResponse(
            {
                "metastore_id": METASTORE_ID,
                "workspace_id": WORKSPACE_ID,
                "default_catalog_name": "main",
            }
        )

    async def _summary(self, request: Request) -> Response:
        owner = self.securables[0].owner
        return JSONResponse(
            {"metastore_id": METASTORE_ID, "name": "primary", "owner": owner, "cloud": "azure"}
        )

    async def _list_securables(self, request: Request) -> Response:
        listing, query = request.path_params["listing"], request.query_params
        kind = {
            "catalogs": "catalog",
            "schemas": "schema",
            "tables": "table",
            "volumes": "volume",
            "functions": "function",
            "external-locations": "external_location",
            "storage-credentials": "storage_credential",
            "connections": "connection",
        }.get(listing)
        if kind is None:
            return _error(404, "ENDPOINT_NOT_FOUND", listing)
        bad = _bad_max_results(query.get("max_results"), is_bounded=False)
        if bad is not None:
            return bad
        parent = [query.get("catalog_name"), query.get("schema_name")]
        depth = {"schema": 1, "table": 2, "volume": 2, "function": 2}.get(kind, 0)
        if any(part is None for part in parent[:depth]):
            return _error(400, "INVALID_PARAMETER_VALUE", "the parent is missing")
        if depth and self.faults.take(Fault.FORBIDDEN_OBJECT):
            return _error(403, "PERMISSION_DENIED", f"User does not have USE on {parent}")
        prefix = "".join(f"{part}." for part in parent[:depth])
        items = []
        for one in self.securables:
            if one.kind == kind and one.name.startswith(prefix):
                item = {"name": one.name.removeprefix(prefix), "owner": one.owner}
                if depth or kind == "catalog":
                    item["full_name"] = one.name
                items.append(item)
        return self._page(request, listing.replace("-", "_"), items)

    async def _permissions(self, request: Request) -> Response:
        kind, name = request.path_params["kind"], request.path_params["name"]
        bad = _bad_max_results(request.query_params.get("max_results"), is_bounded=True)
        if bad is not None:
            return bad
        found = next((one for one in self.securables if (one.kind, one.name) == (kind, name)), None)
        if found is None or self.faults.take(Fault.VANISHED_OBJECT):
            return _error(404, f"{kind.upper()}_DOES_NOT_EXIST", f"{kind} '{name}' does not exist.")
        if self.faults.take(Fault.FORBIDDEN_OBJECT):
            return _error(403, "PERMISSION_DENIED", f"User does not own {kind} '{name}'.")
        by_principal: dict[str, list[dict[str, Any]]] = {}
        for principal, privilege, above in self._effective(found):
            held: dict[str, Any] = {"privilege": privilege}
            if above is not found:
                held["inherited_from_type"] = above.kind.upper()
                held["inherited_from_name"] = above.name
            by_principal.setdefault(principal, []).append(held)
        items = [{"principal": who, "privileges": held} for who, held in by_principal.items()]
        return self._page(request, "privilege_assignments", items)

    def _page(self, request: Request, key: str, items: list[dict[str, Any]]) -> Response:
        """A page: opaque tokens, which belong to the listing that gave them."""
        path = request.url.path
        stated = request.query_params.get("page_token") or request.query_params.get(
            "next_page_token"
        )
        start = 0
        if stated:
            try:
                owner, _, position = base64.b64decode(stated).decode().split("|")
                start = int(position)
            except ValueError:
                owner = ""
            if owner != path:
                return _error(400, "INVALID_PARAMETER_VALUE", "invalid page token")
        shown = items[start : start + self.page_items]
        following = start + len(shown)
        if self.faults.take(Fault.EMPTY_PAGE):
            shown, following = [], start
        answer: dict[str, Any] = {key: shown} if shown else {}
        if following < len(items):
            self._tokens_given += 1
            text = f"{path}|{self._tokens_given}|{following}"
            answer["next_page_token"] = base64.b64encode(text.encode()).decode()
        if stated and self.faults.take(Fault.REPEATED_TOKEN):
            answer["next_page_token"] = stated
        return JSONResponse(answer)

    def _object_lister(self, kind: str) -> Callable[[Request], Awaitable[Response]]:
        _, key, id_key = _OBJECT_LISTINGS[kind]

        async def answer(request: Request) -> Response:
            items = [{id_key: int(one) if kind in _NUMBERED else one} for one in self.objects[kind]]
            if kind in _UNPAGED:
                return JSONResponse({key: items})
            token = "next_page_token" if kind == "repos" else "page_token"
            if set(request.query_params) - {token}:
                return _error(400, "INVALID_PARAMETER_VALUE", "unknown parameter")
            return self._page(request, key, items)

        return answer

    async def _acl(self, request: Request) -> Response:
        kind, object_id = request.path_params["kind"], request.path_params["id"]
        entries = self.objects.get(kind, {}).get(object_id)
        if entries is None or self.faults.take(Fault.VANISHED_OBJECT):
            return _error(404, "RESOURCE_DOES_NOT_EXIST", f"{kind} {object_id} does not exist")
        if self.faults.take(Fault.FORBIDDEN_OBJECT):
            return _error(403, "PERMISSION_DENIED", f"no CAN MANAGE on {kind} {object_id}")
        if self.faults.take(Fault.UNKNOWN_ENUM):
            entries = [
                *entries,
                {
                    "user_name": self.email(0),
                    "all_permissions": [{"permission_level": "CAN_JUGGLE", "inherited": False}],
                },
            ]
        return JSONResponse(
            {
                "object_id": f"/{kind}/{object_id}",
                "object_type": kind.removesuffix("s"),
                "access_control_list": entries,
            }
        )

    async def _scim(self, request: Request) -> Response:
        resource, query = request.path_params["resource"], request.query_params
        found: dict[str, list[dict[str, Any]]] = {
            "Users": self._users,
            "ServicePrincipals": self._principals,
            "Groups": self._groups,
        }
        if resource not in found:
            return _scim_error(404, "no such resource")
        if "scim" in self.missing:
            return _scim_error(403, "Only workspace admins may list")
        try:
            start, count = int(query.get("startIndex", "1")), int(query.get("count", "100"))
        except ValueError:
            return _scim_error(400, "startIndex and count are numbers")
        items = found[resource]
        kept = query.get("attributes")
        wanted = None if kept is None else {"id", "schemas", *kept.split(",")}
        shown = [
            {key: value for key, value in one.items() if wanted is None or key in wanted}
            for one in items[start - 1 : start - 1 + min(count, 7)]
        ]
        answer: dict[str, Any] = {
            "schemas": ["urn:ietf:params:scim:api:messages:2.0:ListResponse"],
            "totalResults": len(items),
            "startIndex": start,
            "itemsPerPage": len(shown),
        }
        if shown:
            answer["Resources"] = shown
        return JSONResponse(answer)

    # ------------------------------------------------------------------------- for other tests

    async def _truth(self, request: Request) -> Response:
        return JSONResponse(
            {"event_ids": sorted(self.event_ids()), "grants": sorted(map(list, self.grants()))}
        )

    async def _add(self, request: Request) -> Response:
        now = self.clock()
        late = float(request.query_params.get("late_seconds", "0"))
        visible_at = now + timedelta(seconds=late) if late else None
        count = int(request.query_params["count"])
        return JSONResponse(self.add_events(count, at=now, visible_at=visible_at))

    async def _fault(self, request: Request) -> Response:
        fault = Fault[request.query_params["name"]]
        self.faults.inject(fault, times=int(request.query_params.get("times", "1")))
        return JSONResponse({})


class Stage:
    """Serves whichever fake is on it, so that many tests share two servers.

    Attributes:
        fake: Set before the first request.
    """

    fake: DatabricksFake

    @classmethod
    @contextmanager
    def served(cls) -> Iterator[tuple[Stage, str, str]]:
        """The stage, its workspace's URL and the URL of the storage that links lead to."""
        stage = cls()

        # Functions: uvicorn takes a bound method for an older kind of application.
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await stage.fake.app(scope, receive, send)

        async def storage(scope: Any, receive: Any, send: Any) -> None:
            await stage.fake.storage(scope, receive, send)

        with serving(app) as url, serving(storage) as storage_url:
            yield stage, url, storage_url


_AUDIT_COLUMNS: dict[str, tuple[str, str, Callable[[Row], str | None]]] = {
    "event_id": ("event_id", "STRING", lambda row: row.event_id),
    "unix_micros(event_time) AS ts_us": (
        "ts_us",
        "LONG",
        lambda row: str((row.at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)),
    ),
    "to_json(struct(*)) AS raw": ("raw", "STRING", lambda row: row.raw),
}
# Service, action, request_params, whether of the account: audit log reference, read 2026-11.
_ACTIVITIES: tuple[tuple[str, str, dict[str, str], bool], ...] = (
    ("unityCatalog", "getTable", {"full_name_arg": "main.hr.salary", "metastore_id": "{m}"}, False),
    (
        "unityCatalog",
        "updatePermissions",
        {
            "securable_type": "TABLE",
            "securable_full_name": "main.hr.people",
            "changes": '[{{"principal":"Sales","add":["SELECT"]}}]',
        },
        False,
    ),
    ("accounts", "login", {"user": "u{n}"}, True),
    ("unityCatalog", "generateTemporaryTableCredential", {"table_full_name": "a.b.c{n}"}, False),
    ("unityCatalog", "createSchema", {"name": "s{n}", "catalog_name": "main"}, False),
    ("databrickssql", "commandSubmit", {"warehouseId": "wh{n}", "commandText": "SELECT 1"}, False),
    ("clusters", "start", {"cluster_id": "c-{n}"}, False),
    ("jobs", "runNow", {"job_id": "{n}"}, False),
    ("notebook", "runCommand", {"notebookId": "{n}", "path": "/Users/ä {n}"}, False),
    ("workspace", "changeWorkspaceAcl", {"path": "/Shared"}, False),
    ("unityCatalog", "getCatalog", {"name_arg": "main"}, False),
    ("accounts", "tokenLogin", {}, False),
)


def _holds(condition: re.Match[str], row: Row, parameters: dict[str, tuple[Any, str]]) -> bool:
    if condition["between"]:
        value = _column(row, condition["between"])
        low, high = _bound(parameters, condition["low"]), _bound(parameters, condition["high"])
        return bool(low <= value <= high)
    value, bound = _column(row, condition["column"]), _bound(parameters, condition["name"])
    return bool(
        {
            ">=": value >= bound,
            "<=": value <= bound,
            ">": value > bound,
            "<": value < bound,
            "=": value == bound,
        }[condition["operator"]]
    )


def _column(row: Row, name: str) -> Any:
    if name == "event_time":
        return row.at
    if name == "event_date":
        return row.at.date()
    raise StatementFailed("BAD_REQUEST", "42703", f"[UNRESOLVED_COLUMN] {name}")


def _bound(parameters: dict[str, tuple[Any, str]], name: str) -> Any:
    """A parameter's value, cast as its type says."""
    if name not in parameters:
        raise StatementFailed("BAD_REQUEST", "42P02", f"[UNBOUND_SQL_PARAMETER] {name}")
    value, kind = parameters[name]
    try:
        if kind == "DATE":
            return date.fromisoformat(value)
        if kind == "TIMESTAMP":
            at = datetime.fromisoformat(value)
            return at.replace(tzinfo=SESSION_ZONE) if at.tzinfo is None else at
    except ValueError as error:
        raise StatementFailed("BAD_REQUEST", "22018", f"[CAST_INVALID_INPUT] {name}") from error
    raise StatementFailed("BAD_REQUEST", "42K09", f"[DATATYPE_MISMATCH] {name} is a {kind}")


def _changed(row: Row, **changes: Any) -> Row:
    record = {**row.record, **changes}
    kept = {key: value for key, value in record.items() if value is not None}
    raw = json.dumps(kept, ensure_ascii=False, separators=(",", ":"))
    # The id of a row without one is a hash of it: give it the one it had.
    return Row(row.at, row.visible_at, row.name, kept, raw)


def _split(columns: str) -> list[str]:
    """A select list at its commas, except those in parentheses."""
    parts, depth, start = [], 0, 0
    for at, character in enumerate(columns):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and not depth:
            parts.append(columns[start:at])
            start = at + 1
    return [*parts, columns[start:]]


def _bad_max_results(value: str | None, *, is_bounded: bool) -> Response | None:
    if value is None:
        return None
    number = int(value) if value.lstrip("-").isdigit() else -1
    if number < 0 or (is_bounded and 0 < number < 150):
        return _error(400, "INVALID_PARAMETER_VALUE", f"max_results {value}")
    return None


def _signature(key: str) -> str:
    return hashlib.sha256(f"storage {key}".encode()).hexdigest()


async def _form(request: Request) -> dict[str, str]:
    return dict(parse_qsl((await request.body()).decode()))


def _body(code: str, message: str) -> dict[str, Any]:
    return {"error_code": code, "message": message}


def _error(status: int, code: str, message: str) -> Response:
    return JSONResponse(_body(code, message), status)


def _scim_error(status: int, detail: str) -> Response:
    return JSONResponse(
        {
            "schemas": ["urn:ietf:params:scim:api:messages:2.0:Error"],
            "detail": detail,
            "status": str(status),
        },
        status,
    )


def _spread(fake: DatabricksFake, count: int, hours: float) -> None:
    """A past history: the events in ten bursts over so many hours."""
    start = fake.clock() - timedelta(hours=hours)
    for burst in range(10):
        size = count // 10 + (1 if burst < count % 10 else 0)
        fake.add_events(size, at=start + timedelta(hours=hours * burst / 10))


def main(arguments: Iterable[str] | None = None) -> None:
    """Serve a fake on the machine's clock until SIGTERM; the first line printed is its URL."""
    parser = argparse.ArgumentParser(prog="fakes.databricks")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--hours", type=float, default=6)
    options = parser.parse_args(None if arguments is None else list(arguments))
    fake = DatabricksFake(World(seed=options.seed, now=datetime.now(UTC)), Clock())
    _spread(fake, options.events, options.hours)
    is_over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: is_over.set())
    with serving(fake.app, options.port) as url, serving(fake.storage) as storage_url:
        fake.storage_url = storage_url
        print(url, flush=True)  # noqa: T201 - whoever started it reads the URL
        is_over.wait()


Fake = DatabricksFake


if __name__ == "__main__":
    main()
