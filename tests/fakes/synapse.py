"""A Synapse workspace and its Log Analytics workspace: tokens, KQL, role assignments, activity log.

One app under four prefixes: `/login`, `/loganalytics`, `/synapse`, `/management`. Each takes only
tokens of its own audience.

KQL is not interpreted. The one query that the SDK writes is recognised, and its times, tables,
resource, `take` and offset are read from its text; anything else is refused as Log Analytics
refuses a syntax error. Rows are answered by their time of ingestion, can be queried a minute after
it, and vanish after the retention by `TimeGenerated`.

Faults of the kit that mean nothing here: none of an event's page tokens (Log Analytics has no
pages: REPEATED_TOKEN, EMPTY_PAGE, PAGE_TOKEN_EXPIRED happen to role assignments and the activity
log). UNKNOWN_ENUM, NULL_ACTOR and REPEATED_EVENT happen to rows of SQLSecurityAuditEvents. What
the kit has no name for: `partial_results`, `result_rows_max`.

What is not known of the vendor, and chosen here: error codes below `BadArgumentError`, the
answer to a sixth concurrent query (429 at once; the vendor lets it wait up to three minutes), the
keys of `Identity`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import itertools
import json
import re
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Literal
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fakes.kit import Clock, Fault, Faults, Rate, dropped, hang, http_fault, serving
from fakes.world import World

AUDIT = "SQLSecurityAuditEvents"
RBAC = "SynapseRbacOperations"
BUILTIN = "SynapseBuiltinSqlPoolRequestsEnded"

TENANT = "9a1f6a1c-0f5e-4a44-9b1a-2d1f3c7b5e01"
CLIENT_ID = "4c0e3a52-6e0b-4f58-8a53-6b7f0d9c1a02"
CLIENT_SECRET = "fake-secret-of-the-synapse-collector"
WORKSPACE_ID = "b7c9d1e2-3f40-4a5b-8c6d-7e8f90a1b203"
SUBSCRIPTION = "0d9e8f70-1a2b-4c3d-8e4f-5a6b7c8d9e04"
GROUP = "rg-data"
NAME = "ws1"
RESOURCE = (
    f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}"
    f"/providers/Microsoft.Synapse/workspaces/{NAME}"
)
POOL = f"{RESOURCE}/sqlPools/dw"
MANAGEMENT_GROUP = "/providers/Microsoft.Management/managementGroups/contoso"

SCOPES = {
    "https://api.loganalytics.io/.default": "loganalytics",
    "https://dev.azuresynapse.net/.default": "synapse",
    "https://management.azure.com/.default": "management",
}
TOKEN_SECONDS = 3600
INGESTION_LAG = timedelta(seconds=30)
QUERYABLE_AFTER = timedelta(seconds=60)
LAG_MAX = timedelta(days=2)
ACTIVITY_RETENTION = timedelta(days=90)
CONCURRENT_MAX = 5
TAKE_MAX = 500_000
PAGE_SIZE = 3

_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
_LEG = re.compile(
    r"(?P<table>\w+)\n"
    r"\| where TimeGenerated between \(\(from_at - (?P<before>\d+)d\) \.\. "
    r"\(to_at \+ (?P<after>\d+)d\)\)\n"
    r"\| where ingestion_time\(\) >= from_at and ingestion_time\(\) < to_at\n"
    r'\| where _ResourceId =~ "(?P<resource>[^"\\]+)" or _ResourceId startswith "(?P=resource)/"\n'
    r'\| project SourceTable = "(?P=table)", TimeGenerated,'
    r" IngestedAt = ingestion_time\(\), Row = pack_all\(\)"
)
_QUERY = re.compile(
    r"// verity-stream: ingested rows, 1\n"
    rf"let from_at = datetime\((?P<from>{_TIME})\);\n"
    rf"let to_at = datetime\((?P<to>{_TIME})\);\n"
    r"(?P<source>.+?)\n"
    r"(?:\| order by IngestedAt asc, TimeGenerated asc\n"
    r"|\| extend RowText = tostring\(Row\)\n"
    r"\| order by IngestedAt asc, TimeGenerated asc, SourceTable asc, RowText asc\n"
    r"\| extend Number = row_number\(\)\n"
    r"\| where Number > (?P<skip>\d+)\n"
    r"\| project-away RowText, Number\n)"
    r"\| take (?P<take>\d+)",
    re.DOTALL,
)
_STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z"
_ACTIVITY_FILTER = re.compile(
    rf"eventTimestamp ge '(?P<from>{_STAMP})' and eventTimestamp le '(?P<to>{_STAMP})'"
    r"(?: and (?P<what>resourceGroupName|resourceUri|resourceProvider|correlationId)"
    r" eq '(?P<value>[^']+)')?"
)


@dataclass(frozen=True, slots=True)
class Stored:
    """A row of the workspace."""

    table: str
    generated_at: datetime
    ingested_at: datetime
    record: dict[str, Any]
    event_id: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a query asks for."""

    from_at: datetime
    to_at: datetime
    tables: tuple[str, ...]
    resource: str
    before: timedelta
    after: timedelta
    take: int
    skip: int | None


def parse_query(text: str) -> Parsed | None:
    """The one query that is recognised, or None."""
    match = _QUERY.fullmatch(text)
    if match is None:
        return None
    source = match["source"]
    legs = [source]
    if source.startswith("union isfuzzy=true\n("):
        legs = source.removeprefix("union isfuzzy=true\n(").removesuffix(")").split("),\n(")
    found = [_LEG.fullmatch(leg) for leg in legs]
    if any(leg is None for leg in found):
        return None
    first = found[0]
    assert first is not None
    if any(leg is None or leg["resource"] != first["resource"] for leg in found):
        return None
    return Parsed(
        from_at=_at(match["from"]),
        to_at=_at(match["to"]),
        tables=tuple(leg["table"] for leg in found if leg is not None),
        resource=first["resource"].lower(),
        before=timedelta(days=int(first["before"])),
        after=timedelta(days=int(first["after"])),
        take=int(match["take"]),
        skip=None if match["skip"] is None else int(match["skip"]),
    )


class SynapseFake:
    """The service; see the module's docstring.

    Attributes:
        tables: The tables that the Log Analytics workspace has.
        roles: What the collector's identity may: `logs`, `synapse`, `azure`.
        cells: How `Row` is written: `json_text` is what the service does; `object` is JSON; in
            `strings` its numbers and booleans are texts, too, as the specification types them.
        partial_results: So many queries answer 200 with a part of the rows and an `error`.
        result_rows_max: A result beyond it is cut, and answered so.
        query_seconds: How long a query runs; lowered, those that run end, too.
        is_limited: Whether rates and concurrency are limited.
    """

    is_acted_on: ClassVar[bool] = True

    def __init__(self, world: World, clock: Clock) -> None:
        self.world = world
        self.clock = clock
        self.faults = Faults()
        self.requests: list[tuple[str, str]] = []
        self.queries: list[Parsed] = []
        self.tables = {AUDIT, RBAC, BUILTIN}
        self.roles = {"logs", "synapse", "azure"}
        self.cells: Literal["json_text", "object", "strings"] = "json_text"
        self.partial_results = 0
        self.result_rows_max = TAKE_MAX
        self.query_seconds = 0.0
        self.retention = timedelta(days=30)
        self.is_limited = True
        self.token_seconds = TOKEN_SECONDS
        self._rate = Rate(200, timedelta(seconds=30), clock)
        self._running = 0
        self._rows: list[Stored] = []
        self._activities: list[tuple[dict[str, Any], datetime]] = []
        self._made = 0
        self._asked_until = datetime.min.replace(tzinfo=UTC)
        self._pages: dict[str, tuple[list[Any], int, datetime]] = {}
        self._tokens: dict[str, tuple[str, datetime]] = {}
        self._number = itertools.count(1)
        self._build_roles()
        self.app = Starlette(
            routes=[
                Route("/login/{tenant}/oauth2/v2.0/token", self._token, methods=["POST"]),
                Route(
                    "/loganalytics/v1/workspaces/{workspace}/query", self._query, methods=["POST"]
                ),
                Route("/synapse/roleAssignments", self._synapse_assignments),
                Route("/synapse/roleDefinitions", self._synapse_definitions),
                Route("/synapse/rbacScopes", self._synapse_scopes),
                Route(
                    "/management/subscriptions/{subscription}/providers/Microsoft.Insights"
                    "/eventtypes/management/values",
                    self._activity_log,
                ),
                Route(
                    "/management/{scope:path}/providers/Microsoft.Authorization/{kind}",
                    self._authorization,
                ),
                Route("/_truth", self._truth),
                Route("/_add", self._add, methods=["POST"]),
                Route("/_fault", self._inject, methods=["POST"]),
            ]
        )

    # What happens in the workspace.

    def table(self, url: str, retention: str) -> dict[str, Any]:
        """The connector's table of `verity.toml` for this fake, served at a URL."""
        return settings_of(url, retention=retention, lateness="1h", settle="5s")

    def add_events(
        self, count: int, *, at: datetime, visible_at: datetime | None = None
    ) -> list[str]:
        """Rows of events at or just after `at`; returns their ids as the connector names them."""
        ids = []
        for i in range(count):
            occurred_at = at + timedelta(milliseconds=10 * (i // 4))
            ingested_at = visible_at
            if ingested_at is None:
                # Seven to a batch, and every other batch on a whole second.
                ingested_at = (at + INGESTION_LAG).replace(microsecond=0)
                ingested_at += timedelta(seconds=0.5 * (i // 7))
            # Nothing comes in at a time that was answered for already.
            ingested_at = max(ingested_at, self._asked_until)
            ids += self._add_row(occurred_at, ingested_at, is_first=i == 0)
        return ids

    def add_activities(
        self, count: int, *, at: datetime, visible_at: datetime | None = None
    ) -> list[str]:
        """Records of the activity log, one a second; every fifth is of another resource."""
        ids: list[str] = []
        for i in range(count):
            number = next(self._number)
            occurred_at = at + timedelta(seconds=i)
            is_other = i % 5 == 4
            about = POOL if i % 3 == 1 else RESOURCE
            if i % 3 == 2:
                about = f"{RESOURCE}/providers/Microsoft.Authorization/roleAssignments/r{number}"
            if is_other:
                about = RESOURCE + "2"
            person = self.world.people[number % len(self.world.people)]
            record = {
                "eventDataId": self._guid(f"activity/{number}"),
                "eventTimestamp": _seven(occurred_at),
                "submissionTimestamp": _seven(visible_at or occurred_at + timedelta(minutes=5)),
                "caller": person.email,
                "claims": {
                    "http://schemas.microsoft.com/identity/claims/objectidentifier": (
                        person.object_id
                    ),
                    "idtyp": "user",
                },
                "correlationId": self._guid(f"correlation/{number}"),
                "level": "Informational",
                "resourceGroupName": GROUP,
                "resourceId": about,
                "operationName": {"value": "Microsoft.Synapse/workspaces/write"},
                "status": {"value": "Succeeded"},
                "subscriptionId": SUBSCRIPTION,
            }
            self._activities.append((record, visible_at or occurred_at + timedelta(minutes=5)))
            if not is_other:
                ids.append(str(record["eventDataId"]))
        return ids

    def deliver_again(self, event_id: str, *, at: datetime) -> None:
        """The row comes in a second time, as a diagnostic setting may deliver it."""
        row = next(row for row in self._rows if row.event_id == event_id)
        self._rows.append(replace(row, ingested_at=at))

    def add_row(
        self, table: str, record: dict[str, Any], *, generated_at: datetime, ingested_at: datetime
    ) -> None:
        """A row of any table, for connectors that read others; its events are not in the truth."""
        self.tables.add(table)
        self._rows.append(Stored(table, generated_at, ingested_at, record, ""))

    def event_ids(self) -> set[str]:
        """The ids of all events."""
        ours = {
            record["eventDataId"]
            for record, _ in self._activities
            if f"{record['resourceId']}/".startswith(f"{RESOURCE}/")
        }
        return {row.event_id for row in self._rows if row.event_id} | ours

    def grants(self) -> set[tuple[str, ...]]:
        """Principal, asset, privilege, mechanism and via of every grant."""
        return set(self._grants)

    def tokens(self) -> set[str]:
        """All bearer tokens that were given out."""
        return set(self._tokens)

    def _add_row(
        self, occurred_at: datetime, ingested_at: datetime, *, is_first: bool
    ) -> list[str]:
        kind = self._made % 10
        self._made += 1
        # A row that comes in later than the bound gets the time it came in; EventTime stays.
        is_redated = ingested_at - occurred_at > LAG_MAX
        generated_at = ingested_at if is_redated else occurred_at
        number = next(self._number)
        person = self.world.people[number % len(self.world.people)]
        if kind < 6:
            record = self._audit_record(number, person.email, occurred_at)
            event_id = f"{record['EventId']}:{record['SequenceNumber']}"
            table = AUDIT
        elif kind == 6:
            table, record = RBAC, self._rbac_record(number, person)
            event_id = _hash(table, generated_at, record)
        elif kind == 9 and not is_first:
            # A twin of the row before: equal in all that it says, and another event.
            last = self._rows[-1]
            self._rows.append(replace(last, event_id=f"{last.event_id}:1"))
            return [f"{last.event_id}:1"]
        else:
            table, record = BUILTIN, self._builtin_record(number, person)
            event_id = _hash(table, generated_at, record)
        record["TimeGenerated"] = _seven(generated_at)
        record["Type"] = table
        self._rows.append(Stored(table, generated_at, ingested_at, record, event_id))
        return [event_id]

    def _audit_record(self, number: int, email: str, occurred_at: datetime) -> dict[str, Any]:
        is_split = number % 12 in (3, 4)
        app = self.world.applications[number % len(self.world.applications)]
        who = f"{app.service_principal_id}@{TENANT}" if number % 12 == 5 else email
        return {
            "EventId": self._guid(f"event/{number - 1 if number % 12 == 4 else number}"),
            "SequenceNumber": 2 if number % 12 == 4 else 1,
            "SequenceGroupId": self._guid(f"group/{number}"),
            "EventTime": _seven(occurred_at),
            "ActionId": ("BCM ", "SL  ", "DBAS")[number % 3],
            "ActionName": ("BATCH COMPLETED", "SELECT", "DATABASE AUTHENTICATION SUCCEEDED")[
                number % 3
            ],
            "SessionServerPrincipalName": who,
            "ServerPrincipalName": who,
            "DatabasePrincipalName": "dbo",
            "DatabaseName": "" if number % 11 == 0 else "dw",
            "SchemaName": "hr" if number % 3 == 1 else "",
            "ObjectName": "salary" if number % 3 == 1 else "",
            "ClassType": "U " if number % 3 == 1 else "DB",
            "Statement": "select 1" * (2 if is_split else 1),
            "Succeeded": True,
            "AffectedRows": number % 5,
            "ClientIp": "10.1.2.3",
            "LogicalServerName": NAME,
            "PermissionBitmask": None,
            "_ResourceId": POOL.lower(),
        }

    def _rbac_record(self, number: int, person: Any) -> dict[str, Any]:
        return {
            "Category": "SynapseRbacOperations",
            "OperationName": "Microsoft.Synapse/workspaces/roleAssignments/write",
            "OperationVersion": "2020-12-01",
            "CorrelationId": self._guid(f"correlation/{number}"),
            "Identity": {"claims": {"oid": person.object_id, "upn": person.email}},
            "Properties": {"principalType": "User", "scope": f"workspaces/{NAME}"},
            "ResultType": "Succeeded",
            "ResultSignature": 200,
            "ResultDescription": None,
            "RoleAssignmentId": self._guid(f"assignment/{number}"),
            "Location": "westeurope",
            "_ResourceId": RESOURCE.lower(),
        }

    def _builtin_record(self, number: int, person: Any) -> dict[str, Any]:
        return {
            "Category": "BuiltinSqlReqsEnded",
            "CorrelationId": self._guid(f"correlation/{number}"),
            "DurationMs": number % 900,
            "ErrorCode": 0,
            "Identity": person.email,
            "OperationName": "SQLPoolRequestEnded",
            "Properties": {"command": "OPENROWSET", "dataProcessedBytes": number},
            "ResultType": "Completed",
            "_ResourceId": RESOURCE.lower(),
        }

    def _guid(self, name: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"synapse/{self.world.seed}/{name}"))

    # Tokens.

    async def _token(self, request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode()))
        self._log(request)
        if self.faults.take(Fault.CREDENTIAL_REFUSED):
            return _oauth_error()
        if request.path_params["tenant"] != TENANT or form.get("client_secret") != CLIENT_SECRET:
            return _oauth_error()
        if form.get("client_id") != CLIENT_ID or form.get("grant_type") != "client_credentials":
            return _oauth_error()
        if form.get("scope") not in SCOPES:
            return _oauth_error("invalid_scope")
        token = self.token_for(form["scope"])
        return JSONResponse(
            {"token_type": "Bearer", "expires_in": self.token_seconds, "access_token": token}
        )

    def token_for(self, scope: str) -> str:
        """A bearer token, as the machine's identity gets it."""
        token = f"token-{SCOPES[scope]}-{next(self._number)}"
        ends_at = self.clock() + timedelta(seconds=self.token_seconds)
        self._tokens[token] = (SCOPES[scope], ends_at)
        return token

    def _unauthorised(self, request: Request, audience: str) -> Response | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        granted, ends_at = self._tokens.get(token, ("", self.clock()))
        if self.faults.take(Fault.TOKEN_EXPIRED):
            self._tokens.pop(token, None)
            granted = ""
        if scheme != "Bearer" or granted != audience or ends_at <= self.clock():
            return _error(401, "InvalidTokenError", "The access token is expired or invalid")
        return None

    async def _preface(self, request: Request, audience: str) -> Response | None:
        """What any endpoint may answer instead."""
        self._log(request)
        if self.faults.take(Fault.HANGING):
            await hang()
        error = _error(429, "Injected", "Injected").body
        fault = http_fault(self.faults, self.clock, json.loads(bytes(error)))
        return fault or self._unauthorised(request, audience)

    def _sent(self, response: Response) -> Response:
        return dropped(response) if self.faults.take(Fault.DROPPED) else response

    def _log(self, request: Request) -> None:
        self.requests.append((request.method, request.url.path))

    # Log Analytics.

    async def _query(self, request: Request) -> Response:
        if (refused := await self._preface(request, "loganalytics")) is not None:
            return refused
        if request.path_params["workspace"] != WORKSPACE_ID:
            return _error(404, "WorkspaceNotFoundError", "The workspace could not be found")
        if "logs" not in self.roles:
            return _error(403, "InsufficientAccessError", "The credentials have no access")
        prefer = re.fullmatch(r"wait=(\d+)", request.headers.get("prefer", "wait=180"))
        if prefer is None or not 0 < int(prefer[1]) <= 600:
            return _bad_query("the wait is not within its limits")
        if self.is_limited and (seconds := self._rate.refuse()) is not None:
            throttled = _error(429, "ThrottledError", "Too many requests")
            throttled.headers["Retry-After"] = str(max(1, round(seconds)))
            return throttled
        if self.is_limited and self._running >= CONCURRENT_MAX:
            return _error(429, "ThrottledError", "Too many concurrent queries")
        try:
            body = json.loads(await request.body())
        except ValueError:
            return _bad_query("the body is no JSON")
        parsed = (
            parse_query(body["query"]) if isinstance(body, dict) and body.get("query") else None
        )
        if parsed is None or set(body) - {"query", "timespan", "workspaces"}:
            return _bad_query("the query is not understood")
        self._running += 1
        try:
            begun = time.monotonic()
            # Lowered by a test's own thread, which no asyncio.Event is for.
            while time.monotonic() < begun + self.query_seconds:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            return self._sent(self._answer(parsed))
        finally:
            self._running -= 1

    def _answer(self, parsed: Parsed) -> Response:
        self.queries.append(parsed)
        present = [table for table in parsed.tables if table in self.tables]
        if not present:
            inner = {"code": "SEM0100", "message": "Failed to resolve the table expression"}
            return _bad_query("no table", {"code": "SemanticError", "innererror": inner})
        now = self.clock()
        self._asked_until = max(self._asked_until, min(parsed.to_at, now))
        rows = [
            row
            for row in self._rows
            if row.table in present
            and parsed.from_at <= row.ingested_at < parsed.to_at
            and row.ingested_at + QUERYABLE_AFTER <= now
            and row.generated_at > now - self.retention
            and parsed.from_at - parsed.before <= row.generated_at <= parsed.to_at + parsed.after
            and f"{row.record['_ResourceId']}/".startswith(f"{parsed.resource}/")
        ]
        order = [(row.ingested_at, row.generated_at, row.table, _json(row.record)) for row in rows]
        rows = [row for _, row in sorted(zip(order, rows, strict=True), key=lambda pair: pair[0])]
        rows = rows[parsed.skip or 0 :][: parsed.take]
        # Of a cut result nothing is taken, so nothing that goes wrong in it would be seen.
        # Half of `take` is room for what a fault adds.
        cells = list(self._cells(rows, has_faults=2 * len(rows) < parsed.take))
        error = None
        if self.partial_results > 0:
            self.partial_results -= 1
            cells, error = cells[: len(cells) // 2], _partial("EngineError", "Injected")
        elif len(cells) > self.result_rows_max:
            cells = cells[: self.result_rows_max]
            error = _partial("-2133196797", "too many rows (E_QUERY_RESULT_SET_TOO_LARGE)")
        columns = (
            ("SourceTable", "string"),
            ("TimeGenerated", "datetime"),
            ("IngestedAt", "datetime"),
            ("Row", "dynamic"),
        )
        body: dict[str, Any] = {
            "tables": [
                {
                    "name": "PrimaryResult",
                    "columns": [{"name": name, "type": type_} for name, type_ in columns],
                    "rows": cells,
                }
            ]
        }
        return JSONResponse(body if error is None else body | {"error": error})

    def _cells(self, rows: list[Stored], *, has_faults: bool) -> Iterator[list[Any]]:
        for row in rows:
            record = dict(row.record)
            if not has_faults:
                yield self._written(row, record)
                continue
            if row.table == AUDIT and self.faults.take(Fault.UNKNOWN_ENUM):
                record |= {"ActionId": "ZZZZ", "ClassType": "ZZ", "ActionName": "NEVER SEEN"}
            if row.table == AUDIT and self.faults.take(Fault.NULL_ACTOR):
                record |= {"SessionServerPrincipalName": None, "ServerPrincipalName": None}
            one = self._written(row, record)
            yield one
            if row.table == AUDIT and self.faults.take(Fault.REPEATED_EVENT):
                yield one
            if self.faults.take(Fault.MALFORMED_RECORD):
                yield [*one[:3], self._row({"EventId": 4711, "EventTime": "yesterday"})]

    def _written(self, row: Stored, record: dict[str, Any]) -> list[Any]:
        return [row.table, _short(row.generated_at), _short(row.ingested_at), self._row(record)]

    def _row(self, record: dict[str, Any]) -> Any:
        if self.cells == "strings":
            return {key: _as_string(value) for key, value in record.items()}
        return _json(record) if self.cells == "json_text" else record

    # Synapse RBAC.

    async def _synapse_preface(self, request: Request) -> Response | None:
        if (refused := await self._preface(request, "synapse")) is not None:
            return refused
        if request.query_params.get("api-version") != "2020-12-01":
            return _error(400, "UnsupportedApiVersion", "The api-version is not supported")
        if "synapse" not in self.roles or self.faults.take(Fault.FORBIDDEN_OBJECT):
            return _error(403, "Unauthorized", "The principal does not have the required role")
        if self.faults.take(Fault.VANISHED_OBJECT):
            return _error(404, "NotFound", "The workspace was not found")
        return None

    async def _synapse_assignments(self, request: Request) -> Response:
        if (refused := await self._synapse_preface(request)) is not None:
            return refused
        scope, role = request.query_params.get("scope"), request.query_params.get("roleId")
        found = [
            one
            for one in self._synapse_roles
            if scope in (None, one["scope"]) and role in (None, one["roleDefinitionId"])
        ]
        page = self._page(found, request.headers.get("x-ms-continuation"))
        if page is None:
            return _error(400, "InvalidContinuationToken", "The continuation token is not valid")
        values, token = page
        headers = {} if token is None else {"x-ms-continuation": token}
        return self._sent(JSONResponse({"count": len(values), "value": values}, headers=headers))

    async def _synapse_definitions(self, request: Request) -> Response:
        if (refused := await self._synapse_preface(request)) is not None:
            return refused
        return self._sent(JSONResponse(self._synapse_role_definitions))

    async def _synapse_scopes(self, request: Request) -> Response:
        if (refused := await self._synapse_preface(request)) is not None:
            return refused
        return self._sent(JSONResponse(sorted({one["scope"] for one in self._synapse_roles})))

    # Azure.

    async def _authorization(self, request: Request) -> Response:
        if (refused := await self._preface(request, "management")) is not None:
            return refused
        if request.query_params.get("api-version") != "2022-04-01":
            return _error(400, "InvalidApiVersionParameter", "The api-version is invalid")
        if "azure" not in self.roles or self.faults.take(Fault.FORBIDDEN_OBJECT):
            return _error(403, "AuthorizationFailed", "The client does not have authorization")
        scope = "/" + request.path_params["scope"]
        if scope.lower() != RESOURCE.lower() or self.faults.take(Fault.VANISHED_OBJECT):
            return _error(404, "ResourceNotFound", "The resource was not found")
        filter_ = request.query_params.get("$filter")
        if filter_ not in (None, "atScope()"):
            return _error(400, "UnsupportedQuery", "The filter is not supported")
        kind = request.path_params["kind"]
        known = {
            "roleAssignments": self._azure_assignments,
            "denyAssignments": self._azure_denials,
            "roleDefinitions": self._azure_definitions,
        }
        if kind not in known:
            return _error(404, "NotFound", "No such type")
        found = known[kind]
        if kind != "roleDefinitions":
            # Read narrowly: without the filter only what is at the scope or below.
            found = [one for one in found if _is_below(one, is_filtered=filter_ is not None)]
        return self._linked(request, found)

    async def _activity_log(self, request: Request) -> Response:
        if (refused := await self._preface(request, "management")) is not None:
            return refused
        if request.query_params.get("api-version") != "2015-04-01":
            return _flat_error(400, "InvalidApiVersionParameter", "The api-version is invalid")
        if "azure" not in self.roles or self.faults.take(Fault.FORBIDDEN_OBJECT):
            return _flat_error(403, "AuthorizationFailed", "The client has no authorization")
        if "$skipToken" in request.query_params:
            return self._linked(request, [])
        match = _ACTIVITY_FILTER.fullmatch(request.query_params.get("$filter", ""))
        if match is None or request.path_params["subscription"] != SUBSCRIPTION:
            return _flat_error(400, "BadRequest", "The filter is not supported")
        now = self.clock()
        from_at, to_at = _at(match["from"]), _at(match["to"])
        if from_at < now - ACTIVITY_RETENTION:
            return _flat_error(400, "BadRequest", "The start time is more than 90 days past")
        key = {"resourceGroupName": "resourceGroupName", "resourceUri": "resourceId"}.get(
            match["what"] or ""
        )
        found = [
            record
            for record, visible_at in self._activities
            if visible_at <= now
            and from_at <= _at(record["eventTimestamp"]) <= to_at
            and (key is None or record[key].lower() == match["value"].lower())
        ]
        # The newest first, as the portal shows them; the order is not documented.
        found.sort(key=lambda record: record["eventTimestamp"], reverse=True)
        if found and self.faults.take(Fault.MALFORMED_RECORD):
            found = [*found, {"eventDataId": "broken", "resourceId": RESOURCE}]
        return self._linked(request, found)

    def _linked(self, request: Request, found: list[Any]) -> Response:
        page = self._page(found, request.query_params.get("$skipToken"))
        if page is None:
            return _error(400, "InvalidSkipToken", "The skip token is not valid")
        values, token = page
        body: dict[str, Any] = {"value": values}
        if token is not None:
            rest = request.url.remove_query_params("$skipToken")
            body["nextLink"] = str(rest.include_query_params(**{"$skipToken": token}))
        return self._sent(JSONResponse(body))

    def _page(self, found: list[Any], token: str | None) -> tuple[list[Any], str | None] | None:
        """A page and the token of the next; tokens are opaque, and end after five minutes."""
        start = 0
        if token is not None:
            if self.faults.take(Fault.PAGE_TOKEN_EXPIRED) or token not in self._pages:
                return None
            found, start, ends_at = self._pages[token]
            if ends_at <= self.clock():
                return None
        is_empty = len(found) > start and self.faults.take(Fault.EMPTY_PAGE)
        end = start if is_empty else start + PAGE_SIZE
        values = found[start:end]
        if token is not None and start and self.faults.take(Fault.REPEATED_EVENT):
            values = [found[start - 1], *values]
        if end >= len(found):
            return values, None
        if token is not None and self.faults.take(Fault.REPEATED_TOKEN):
            return values, token
        fresh = f"page-{next(self._number)}"
        self._pages[fresh] = (found, end, self.clock() + timedelta(minutes=5))
        return values, fresh

    # Who may what.

    def _build_roles(self) -> None:
        world, guid = self.world, self._guid
        person, second = world.people[0].object_id, world.people[1].object_id
        group, app = world.groups[0].id, world.applications[0].service_principal_id
        names = ("Synapse Administrator", "Synapse User", "Synapse Compute Operator")
        self._synapse_role_definitions = [
            {"id": guid(name), "name": name, "isBuiltIn": True, "scopes": ["workspaces"]}
            for name in names
        ]
        root = f"workspaces/{NAME}"
        rows = [
            (names[0], person, "User", root, f"user:{person}", f"synapse:{NAME}"),
            (names[1], group, "Group", root, f"group:{group}", f"synapse:{NAME}"),
            (names[1], app, "ServicePrincipal", root, f"sp:{app}", f"synapse:{NAME}"),
            *(
                (names[1], one.object_id, "User", root, f"user:{one.object_id}", f"synapse:{NAME}")
                for one in world.people[2:5]
            ),
            (
                names[2],
                second,
                "User",
                f"{root}/bigDataPools/spark1",
                f"user:{second}",
                f"synapse:{NAME}/bigDataPools/spark1",
            ),
        ]
        self._synapse_roles = [
            {
                "id": guid(f"synapse-assignment/{i}"),
                "roleDefinitionId": guid(name),
                "principalId": principal,
                "scope": scope,
                "principalType": kind,
            }
            for i, (name, principal, kind, scope, _, _) in enumerate(rows)
        ]
        self._grants: list[tuple[str, ...]] = [
            (who, asset, name, "direct", "") for name, _, _, _, who, asset in rows
        ]
        self._build_azure(person, second, group, app)

    def _build_azure(self, person: str, second: str, group: str, app: str) -> None:
        guid = self._guid
        roles = ("Owner", "Contributor", "Reader", "Pool Keeper")
        define = f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Authorization/roleDefinitions"
        self._azure_definitions = [
            {
                "id": f"{define}/{guid(name)}",
                "name": guid(name),
                "type": "Microsoft.Authorization/roleDefinitions",
                "properties": {"roleName": name, "type": "BuiltInRole", "assignableScopes": ["/"]},
            }
            for name in roles
        ]
        here, above = f"synapse:{NAME}", f"azure:/subscriptions/{SUBSCRIPTION}"
        in_group = f"{above}/resourcegroups/{GROUP}"
        rows = [
            ("Owner", person, "User", f"/subscriptions/{SUBSCRIPTION}", here, "role", above),
            (
                "Contributor",
                group,
                "Group",
                f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}",
                here,
                "role",
                in_group,
            ),
            (
                "Reader",
                app,
                "ServicePrincipal",
                MANAGEMENT_GROUP,
                here,
                "role",
                f"azure:{MANAGEMENT_GROUP.lower()}",
            ),
            ("Reader", second, "User", RESOURCE, here, "direct", ""),
            ("Pool Keeper", second, "User", POOL, f"{here}/sqlPools/dw", "direct", ""),
        ]
        prefix = {"User": "user", "Group": "group", "ServicePrincipal": "sp"}
        self._azure_assignments = [
            {
                "id": f"{scope}/providers/Microsoft.Authorization/roleAssignments/{guid(f'a/{i}')}",
                "name": guid(f"a/{i}"),
                "type": "Microsoft.Authorization/roleAssignments",
                "properties": {
                    "scope": scope,
                    "roleDefinitionId": f"{define}/{guid(role)}",
                    "principalId": principal,
                    "principalType": kind,
                    "condition": "@Resource[x] StringEquals 'y'" if role == "Contributor" else None,
                    "createdOn": "2026-10-01T08:00:00.1234567Z",
                },
            }
            for i, (role, principal, kind, scope, *_) in enumerate(rows)
        ]
        self._grants += [
            (f"{prefix[kind]}:{principal}", asset, role, how, via)
            for role, principal, kind, _, asset, how, via in rows
        ]
        scope = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}"
        nobody = "00000000-0000-0000-0000-000000000000"
        self._azure_denials = [
            {
                "id": f"{scope}/providers/Microsoft.Authorization/denyAssignments/{guid('deny')}",
                "name": guid("deny"),
                "type": "Microsoft.Authorization/denyAssignments",
                "properties": {
                    "denyAssignmentName": "Deny deletion",
                    "scope": scope,
                    "permissions": [{"actions": ["*/delete"], "notActions": []}],
                    "principals": [{"id": nobody, "type": "SystemDefined"}],
                    "excludePrincipals": [{"id": person, "type": "User"}],
                    "isSystemProtected": True,
                },
            }
        ]
        self._grants.append(("everyone", here, "DENY Deny deletion", "role", in_group))

    # For a demonstration.

    async def _truth(self, request: Request) -> Response:
        return JSONResponse(
            {"event_ids": sorted(self.event_ids()), "grants": sorted(map(list, self.grants()))}
        )

    async def _add(self, request: Request) -> Response:
        now = self.clock()
        late = float(request.query_params.get("late_seconds", 0))
        visible_at = now + timedelta(seconds=late) if late else None
        count = int(request.query_params.get("count", 1))
        return JSONResponse(self.add_events(count, at=now, visible_at=visible_at))

    async def _inject(self, request: Request) -> Response:
        times = int(request.query_params.get("times", 1))
        self.faults.inject(Fault[request.query_params["name"]], times=times)
        return JSONResponse({})


def settings_of(url: str, **others: Any) -> dict[str, Any]:
    """The connector's settings for a fake at this URL."""
    return {
        "connector_id": "synapse-1",
        "tenant_id": TENANT,
        "client_id": CLIENT_ID,
        "client_secret": CLIENT_SECRET,
        "workspace_id": WORKSPACE_ID,
        "resource_id": RESOURCE,
        "login_url": f"{url}/login",
        "log_analytics_url": f"{url}/loganalytics",
        "synapse_url": f"{url}/synapse",
        "management_url": f"{url}/management",
        **others,
    }


def _is_below(assignment: dict[str, Any], *, is_filtered: bool) -> bool:
    scope = f"{assignment['properties']['scope'].lower()}/"
    root = f"{RESOURCE.lower()}/"
    if is_filtered:
        return root.startswith(scope) or scope.startswith("/providers/microsoft.management/")
    return scope.startswith(root)


# The recipe of docs/platforms/synapse.md, written a second time on purpose.
_HASHED = (
    *("Category", "CorrelationId", "OperationName", "OperationVersion", "RoleAssignmentId"),
    *("Identity", "Properties", "ResultType", "ResultSignature", "ResultDescription"),
    *("DurationMs", "ErrorCode", "Level", "Location", "_ResourceId"),
)


def _hash(table: str, generated_at: datetime, record: dict[str, Any]) -> str:
    def spelled(value: Any) -> str:
        if value is None:
            return ""
        if isinstance(value, dict):
            return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return str(value)

    parts = [table, _short(generated_at).removesuffix("Z")]
    parts += [spelled(record.get(key)) for key in _HASHED]
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def _at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _seven(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%f") + "0Z"


def _short(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%f").rstrip("0").rstrip(".") + "Z"


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _as_string(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return _json(value)
    return str(value) if isinstance(value, int) else value


def _error(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message}}, status)


def _flat_error(status: int, code: str, message: str) -> JSONResponse:
    """As the activity log's specification has it: without `error` around it."""
    return JSONResponse({"code": code, "message": message}, status)


def _bad_query(message: str, inner: dict[str, Any] | None = None) -> JSONResponse:
    inner = inner or {"code": "SyntaxError", "innererror": {"code": "SYN0002", "message": message}}
    error = {
        "code": "BadArgumentError",
        "message": "The request had some invalid properties",
        "innererror": {"message": message, **inner},
    }
    return JSONResponse({"error": error}, 400)


def _partial(code: str, message: str) -> dict[str, Any]:
    inner = {"code": code, "message": message}
    detail = {"code": "EngineError", "message": "The query failed", "innererror": inner}
    return {"code": "PartialError", "message": "There were some errors", "details": [detail]}


def _oauth_error(error: str = "invalid_client") -> Response:
    status = 401 if error == "invalid_client" else 400
    return JSONResponse({"error": error, "error_description": "AADSTS7000215: refused"}, status)


def main() -> None:
    """Serve a workspace with a history until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--hours", type=float, default=6)
    options = parser.parse_args()
    clock = Clock()
    fake = SynapseFake(World(seed=options.seed, now=clock()), clock)
    start, step = clock() - timedelta(hours=options.hours), 10
    for first in range(0, options.events, step):
        at = start + timedelta(hours=options.hours) * (first / max(1, options.events))
        fake.add_events(min(step, options.events - first), at=at)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with serving(fake.app, options.port) as url, contextlib.suppress(KeyboardInterrupt):
        print(url, flush=True)  # noqa: T201 - the first line is the interface
        ended.wait()


Fake = SynapseFake


if __name__ == "__main__":
    main()
