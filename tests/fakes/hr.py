"""BambooHR as a company's API shows it, and a harness around the real scim2-server.

`HrFake` serves, under `/api/v1`, the feed of changes, both tables, the employee list, the
directory and single employees, and is no more generous than documented: at most one entry of an
employee in the feed, in no order and only strictly after `since`; the list by OAuth only, with
opaque cursors that go stale when the employee at the boundary changes; the directory with active
people only; XML to whoever does not ask for JSON; 503 until 2026-09-15 and 429 from then on.

Every employee carries private data (`PRIVATE`), which the list, the directory and the tables show
as far as BambooHR does. NULL_ACTOR makes no sense: nobody acts in this feed. TOKEN_EXPIRED and
CREDENTIAL_REFUSED are 401 of the API itself, which has no token endpoint. REPEATED_TOKEN,
EMPTY_PAGE, PAGE_TOKEN_EXPIRED and REPEATED_EVENT happen in the list, UNKNOWN_ENUM in the list and
a single employee, MALFORMED_RECORD in the feed, FORBIDDEN_OBJECT at the directory and a single
employee, VANISHED_OBJECT at a single employee.

`ScimHarness` wraps scim2-server 0.8 (in memory) with a clock, faults, and refusals that real
providers show. Run as a module it serves BambooHR: see `main`.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import signal
import threading
import uuid
import zlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlencode

from scim2_models import ResourceType, ScimProvider
from scim2_server.applications.asgi import ASGIApplication
from scim2_server.memory import AsyncInMemoryStorage, InMemoryStorage
from scim2_server.service import ScimService
from scim2_server.utils import (
    load_default_resource_types,
    load_default_schemas,
    load_default_service_provider_config,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fakes.kit import Clock, Fault, Faults, Rate, dropped, hang, http_fault, serving
from fakes.world import DEPARTMENTS, DOMAIN, Person, World

COMPANY = "contoso"
API_KEY = "hr-api-key-secret"
ACCESS_TOKEN = "hr-access-token-secret"
PRIVATE = "PRIVATE"
"""In every value that must never leave the connector."""

# From this day on BambooHR throttles with 429 ("Planned changes to the API", read 2026-11-24).
TOO_MANY_FROM = datetime(2026, 9, 16, tzinfo=UTC)
LIST_BASE = ("employeeId", "firstName", "lastName", "preferredName", "photoUrl", "jobTitleName")
SORTABLE = {"employeeId", "firstName", "lastName", "preferredName", "jobTitleName", "status"}
LIST_OPTIONAL = {
    *("workEmail", "homeEmail", "bestEmail", "middleName", "workPhone", "workPhoneExtension"),
    *("mobilePhone", "homePhone", "birthDate", "hireDate", "divisionName", "divisionId"),
    *("departmentName", "departmentId", "locationName", "locationId", "jobTitleId"),
    *("employmentStatusName", "employmentStatusId", "reportsToName", "reportsToId"),
}
TABLES = ("jobInfo", "employmentStatus")
TERMINATED = "Terminated"
FOUNDED_AT = datetime(2024, 3, 4, 9, tzinfo=UTC)

Grant = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Employee:
    """An employee's record at one time."""

    id: str
    first_name: str
    last_name: str
    email: str
    hired_on: date
    jobs: tuple[dict[str, Any], ...]
    statuses: tuple[dict[str, Any], ...]
    preferred_name: str | None = None
    restricted: frozenset[str] = frozenset()

    def job(self, today: date) -> dict[str, Any]:
        """The position of a day."""
        return current(self.jobs, today) or {}

    def is_active(self, today: date) -> bool:
        """Whether somebody is employed on a day."""
        status = current(self.statuses, today)
        return status is not None and status["employmentStatus"] != TERMINATED

    @property
    def name(self) -> str:
        """As others' records name them."""
        return f"{self.first_name} {self.last_name}"


def current(rows: Iterable[dict[str, Any]], today: date) -> dict[str, Any] | None:
    """The row that counts on a day."""
    past = [row for row in rows if row["date"] <= today.isoformat()]
    return max(past, key=lambda row: (row["date"], int(row["id"])), default=None)


@dataclass(frozen=True, slots=True)
class Version:
    """What a change made of an employee; None where the record was deleted.

    Attributes:
        event_id: As the connector names the change, or None for one that it does not tell.
    """

    employee: Employee | None
    changed_at: datetime
    visible_at: datetime
    action: str
    event_id: str | None


@dataclass(slots=True)
class _Entry:
    versions: list[Version] = field(default_factory=list)

    def shown(self, now: datetime) -> Version | None:
        return next((one for one in reversed(self.versions) if one.visible_at <= now), None)


class HrFake:
    """A company's BambooHR."""

    is_acted_on: ClassVar[bool] = False

    def __init__(self, world: World, clock: Clock) -> None:
        self.world = world
        self.clock = clock
        self.faults = Faults()
        self.requests: list[tuple[str, str]] = []
        self.queries: list[str] = []
        self.is_limited = True
        self.is_directory_shared = True
        self.list_limit_max = 2500
        self.on_request: Callable[[str], None] | None = None
        """Called with the path of each request before it is answered."""
        self.feed_action = "last"
        """`last` change, or `first`: an insertion stays one. Which of them is not documented."""
        self.hidden_columns: set[str] = set()
        self.hidden_tables: set[str] = set()
        self.rate = Rate(100, timedelta(seconds=10), clock)
        self.entries: dict[str, _Entry] = {}
        self._row_id = 1000
        self._hired = 0
        self._chance = random.Random(world.seed)
        self._touched: set[str] = set()
        self._lock = threading.RLock()
        self._last_list: list[dict[str, Any]] = []
        people = {one.employee_id: one for one in world.people}
        for one in world.people:
            self._found(one, people)
        for one in world.leavers:
            assert one.left_at is not None
            self.change("leave", one.employee_id, at=one.left_at.replace(microsecond=0))
        routes: list[tuple[str, Callable[[Request], Awaitable[Response]]]] = [
            ("/api/v1/employees/changed", self._changed),
            ("/api/v1/employees/changed/tables/{table}", self._changed_tables),
            ("/api/v1/employees/directory", self._directory),
            ("/api/v1/employees/{id}/tables/{table}", self._tables),
            ("/api/v1/employees/{id}", self._single),
            ("/api/v1/employees", self._list),
        ]
        self.app = Starlette(
            routes=[
                *(Route(path, self._endpoint(handle)) for path, handle in routes),
                Route("/_truth", self._truth),
                Route("/_add", self._add, methods=["POST"]),
                Route("/_fault", self._fault, methods=["POST"]),
            ]
        )

    # What happens in the company.

    def table(self, url: str, retention: str) -> dict[str, Any]:
        """The connector's table of `verity.toml` for this fake, served at a URL."""
        bamboohr = {
            "company_domain": COMPANY,
            "api_url": f"{url}/api/v1",
            "access_token": ACCESS_TOKEN,
        }
        return {"source": "bamboohr", "bamboohr": bamboohr}

    def _found(self, person: Person, people: dict[str, Person]) -> None:
        """Somebody who was there when the story began."""
        manager = people.get(person.manager_id or "")
        first, _, last = person.name.partition(" ")
        employee = Employee(
            id=person.employee_id,
            first_name=first,
            last_name=last,
            email=person.email,
            hired_on=FOUNDED_AT.date(),
            jobs=(
                self._job(
                    person.employee_id,
                    FOUNDED_AT.date(),
                    person.department,
                    person.job_title,
                    manager.name if manager else None,
                ),
            ),
            statuses=(self._status(person.employee_id, FOUNDED_AT.date(), "Full-Time"),),
        )
        self._write(employee, FOUNDED_AT, FOUNDED_AT, "Inserted", employee.id, None)

    def _job(
        self, person_id: str, on: date, department: str, title: str, manager: str | None
    ) -> dict[str, Any]:
        self._row_id += 1
        return {
            "id": str(self._row_id),
            "employeeId": person_id,
            "date": on.isoformat(),
            "location": "Lyon" if department == "Sales" else "Utrecht",
            "department": department,
            "division": "Europe",
            "jobTitle": title,
            "reportsTo": manager,
        }

    def _status(self, person_id: str, on: date, status: str) -> dict[str, Any]:
        self._row_id += 1
        return {
            "id": str(self._row_id),
            "employeeId": person_id,
            "date": on.isoformat(),
            "employmentStatus": status,
            "comment": f"{PRIVATE} comment",
            "terminationReasonId": f"{PRIVATE} reason" if status == TERMINATED else None,
        }

    def _write(
        self,
        employee: Employee | None,
        at: datetime,
        visible_at: datetime,
        action: str,
        person_id: str,
        event_id: str | None,
    ) -> None:
        self.entries.setdefault(person_id, _Entry()).versions.append(
            Version(employee, at, visible_at, action, event_id)
        )

    def latest(self, person_id: str) -> Employee:
        """An employee's record, as it will be when all is visible."""
        employee = self.entries[person_id].versions[-1].employee
        assert employee is not None
        return employee

    def change(
        self,
        kind: str,
        person_id: str | None = None,
        *,
        at: datetime,
        visible_at: datetime | None = None,
        effective_on: date | None = None,
        **fields: Any,
    ) -> str:
        """Hire, move, leave, rehire, update or delete somebody.

        Args:
            at: When it is entered; whole seconds.
            effective_on: From which day on it counts; default: the day of `at`.
            fields: For `update`, of `Employee`; for `move`, of the new position.

        Returns:
            The id of the event, for a reader that saw what was before.
        """
        assert at.microsecond == 0, "BambooHR's times have whole seconds"
        with self._lock:
            on = effective_on or at.date()
            action, suffix = "Updated", ""
            employee: Employee | None
            if kind == "hire":
                employee = self._new_employee(on, **fields)
                person_id, action = employee.id, "Inserted"
            else:
                assert person_id is not None
                employee = self.latest(person_id)
            if kind == "move":
                job = self._job(person_id, on, **{**self._elsewhere(employee), **fields})
                employee = replace(employee, jobs=(*employee.jobs, job))
                suffix = f":jobInfo:{job['id']}"
            elif kind in ("leave", "rehire"):
                status = self._status(person_id, on, TERMINATED if kind == "leave" else "Full-Time")
                employee = replace(employee, statuses=(*employee.statuses, status))
                suffix = f":employmentStatus:{status['id']}" if kind == "leave" else ""
            elif kind == "update":
                given = fields or {"preferred_name": f"P{self._row_id}"}
                self._row_id += 1
                employee = replace(employee, **given)
            elif kind == "delete":
                employee, action = None, "Deleted"
            event_id = f"bhr:{COMPANY}:{person_id}:{action}:{at:%Y-%m-%dT%H:%M:%SZ}{suffix}"
            self._write(employee, at, visible_at or at, action, person_id, event_id)
            self._touched.add(person_id)
            return event_id

    def _new_employee(self, on: date, **fields: Any) -> Employee:
        self._hired += 1
        number = str(5000 + self._hired)
        given = {
            "department": DEPARTMENTS[self._hired % len(DEPARTMENTS)],
            "title": "Analyst",
            "manager": self.world.people[0].name,
            **fields,
        }
        return Employee(
            id=number,
            first_name="Hire",
            last_name=f"Number{self._hired}",
            email=f"hire.number{self._hired}@{DOMAIN}",
            hired_on=on,
            jobs=(self._job(number, on, **given),),
            statuses=(self._status(number, on, "Full-Time"),),
        )

    def _elsewhere(self, employee: Employee) -> dict[str, Any]:
        job = employee.jobs[-1]
        others = [one for one in DEPARTMENTS if one != job["department"]]
        return {
            "department": self._chance.choice(others),
            "title": job["jobTitle"],
            "manager": job["reportsTo"],
        }

    def add_events(
        self, count: int, *, at: datetime, visible_at: datetime | None = None
    ) -> list[str]:
        """So many changes, each of another employee, so that the feed can show every one.

        Whoever was changed once is left alone: once all of the first people were, only hires
        come. Three changes share a second.
        """
        with self._lock:
            start = at.replace(microsecond=0) + timedelta(seconds=bool(at.microsecond))
            free = [
                one.employee_id
                for one in self.world.people
                if one.left_at is None and one.employee_id not in self._touched
            ]
            ids, start_at = [], len(self._touched)
            for i in range(count):
                kind = ("move", "hire", "leave", "update")[(start_at + i) % 4]
                when = start + timedelta(seconds=i // 3)
                person_id = None
                if kind != "hire":
                    if not free:
                        kind = "hire"
                    else:
                        person_id = free.pop(self._chance.randrange(len(free)))
                ids.append(self.change(kind, person_id, at=when, visible_at=visible_at))
            return ids

    def event_ids(self) -> set[str]:
        """Everything since the story began that a reader can see: not what a later change hides,
        and not that the first people were hired."""
        with self._lock:
            shown = [entry.versions[-1] for entry in self.entries.values()]
            return {one.event_id for one in shown if one.event_id is not None}

    def everything(self) -> set[tuple[str, str]]:
        """(employee, operation) of a first pass from the beginning of the feed."""
        found = set()
        with self._lock:
            for person_id, entry in self.entries.items():
                employee = entry.versions[-1].employee
                has_left = (
                    employee is None or employee.statuses[-1]["employmentStatus"] == TERMINATED
                )
                found.add((f"hr:employee:{person_id}", "LEAVER" if has_left else "JOINER"))
        return found

    def grants(self, *, has_oauth: bool = False) -> set[Grant]:
        """What a snapshot must hold; an API key shows less than OAuth."""
        now = self.clock()
        today = now.date()
        with self._lock:
            shown = [one for entry in self.entries.values() if (one := entry.shown(now))]
            everybody = [one.employee for one in shown if one.employee is not None]
        active = [one for one in everybody if one.is_active(today)]
        by_name = {one.name: one.id for one in (everybody if has_oauth else active)}
        found: set[Grant] = set()
        for one in active:
            who, job = f"hr:employee:{one.id}", one.job(today)
            found.add((who, f"hr:department:{job['department']}", "member_of", "role", ""))
            found.add((who, f"hr:job_title:{job['jobTitle']}", "job_title", "role", ""))
            manager = by_name.get(job["reportsTo"] or "")
            if manager is not None:
                found.add((who, f"hr:employee:{manager}", "reports_to", "role", ""))
        for one in everybody if has_oauth else active:
            found.add((f"hr:employee:{one.id}", f"user:{one.email}", "alias", "alias", ""))
        return found

    # What the API shows.

    def _endpoint(
        self, handle: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            self.requests.append((request.method, request.url.path))
            self.queries.append(request.url.query)
            if self.on_request is not None:
                self.on_request(request.url.path)
            if self.faults.take(Fault.HANGING):
                await hang()
            fault = http_fault(self.faults, self.clock)
            if fault is not None:
                return fault
            if self.is_limited:
                seconds = self.rate.refuse()
                if seconds is not None:
                    status = 429 if self.clock() >= TOO_MANY_FROM else 503
                    return Response(
                        status_code=status, headers={"Retry-After": str(int(seconds) + 1)}
                    )
            is_refused = self.faults.take(Fault.TOKEN_EXPIRED) or self.faults.take(
                Fault.CREDENTIAL_REFUSED
            )
            if is_refused or self._scheme(request) is None:
                return Response(status_code=401)
            answer = await handle(request)
            if answer.status_code == 200:
                if "application/json" not in request.headers.get("accept", ""):
                    return Response("<result/>", media_type="application/xml")
                if self.faults.take(Fault.DROPPED):
                    return dropped(answer)
            return answer

        return endpoint

    def _scheme(self, request: Request) -> str | None:
        given = request.headers.get("authorization", "")
        if given == f"Bearer {ACCESS_TOKEN}":
            return "oauth"
        kind, _, encoded = given.partition(" ")
        if kind.lower() == "basic":
            user, _, _ = base64.b64decode(encoded).decode().partition(":")
            if user == API_KEY:
                return "basic"
        return None

    def _shown(self) -> dict[str, Version]:
        now = self.clock()
        with self._lock:
            return {
                person_id: version
                for person_id, entry in self.entries.items()
                if (version := entry.shown(now)) is not None
            }

    def _changed_since(self, request: Request) -> dict[str, Version] | None:
        """Whose last visible change is later than `since`; None for a `since` that is no time."""
        try:
            since = datetime.fromisoformat(request.query_params["since"])
        except (KeyError, ValueError):
            return None
        if since.tzinfo is None:
            since = since.replace(tzinfo=UTC)
        shown = list(self._shown().items())
        # In no order; the same for the same moment.
        random.Random(str(self.clock())).shuffle(shown)
        return {person_id: one for person_id, one in shown if one.changed_at > since}

    async def _changed(self, request: Request) -> Response:
        kind = request.query_params.get("type", "all")
        changed = self._changed_since(request)
        if changed is None or kind not in ("inserted", "updated", "deleted", "all"):
            return Response(status_code=400)
        employees: dict[str, Any] = {}
        for person_id, one in changed.items():
            action = one.action
            if (
                self.feed_action == "first"
                and action == "Updated"
                and self._was_inserted_since(person_id, request.query_params["since"])
            ):
                action = "Inserted"
            if kind not in ("all", action.lower()):
                continue
            employees[person_id] = {
                "id": person_id,
                "action": action,
                "lastChanged": one.changed_at.isoformat(),
            }
        latest = max((one["lastChanged"] for one in employees.values()), default=None)
        if self.faults.take(Fault.MALFORMED_RECORD):
            employees["9999"] = {"id": "9999", "action": "Updated", "lastChanged": f"{PRIVATE}"}
        return JSONResponse(
            {"latest": latest or request.query_params["since"], "employees": employees}
        )

    def _was_inserted_since(self, person_id: str, since: str) -> bool:
        first = self.entries[person_id].versions[0]
        return first.action == "Inserted" and first.changed_at > datetime.fromisoformat(since)

    def _columns(self, rows: Iterable[dict[str, Any]], *, with_owner: bool) -> list[dict[str, Any]]:
        shown = [
            {
                key: value
                for key, value in row.items()
                if key not in self.hidden_columns and (with_owner or key != "employeeId")
            }
            for row in rows
        ]
        self._chance.shuffle(shown)
        return shown

    async def _changed_tables(self, request: Request) -> Response:
        table = request.path_params["table"]
        if table not in TABLES or table in self.hidden_tables:
            return Response(status_code=404)
        changed = self._changed_since(request)
        if changed is None:
            return Response(status_code=400)
        employees = {
            person_id: {
                "lastChanged": one.changed_at.isoformat(),
                "rows": self._columns(self._rows(one.employee, table), with_owner=False),
            }
            for person_id, one in changed.items()
            if one.employee is not None
        }
        return JSONResponse({"table": table, "employees": employees})

    def _rows(self, employee: Employee, table: str) -> tuple[dict[str, Any], ...]:
        return employee.jobs if table == "jobInfo" else employee.statuses

    async def _tables(self, request: Request) -> Response:
        table, person_id = request.path_params["table"], request.path_params["id"]
        shown = [one.employee for one in self._shown().values() if one.employee is not None]
        if person_id != "all":
            shown = [one for one in shown if one.id == person_id]
        if table not in TABLES or table in self.hidden_tables or not shown:
            return Response(status_code=404)
        rows = [row for one in shown for row in self._rows(one, table)]
        return JSONResponse(self._columns(rows, with_owner=True))

    def _ids(self) -> dict[str, str]:
        people = [one.employee for one in self._shown().values() if one.employee]
        return {one.name: one.id for one in people}

    def _record(self, employee: Employee, ids: dict[str, str]) -> dict[str, Any]:
        """Everything that there is of an employee, by the list's names."""
        today = self.clock().date()
        job = employee.job(today)
        status = current(employee.statuses, today)
        is_active = "Active" if employee.is_active(today) else "Inactive"
        return {
            "employeeId": employee.id,
            "firstName": employee.first_name,
            "lastName": employee.last_name,
            "preferredName": employee.preferred_name,
            "photoUrl": f"https://photos.example/{PRIVATE}/{employee.id}.jpg",
            "jobTitleName": job.get("jobTitle"),
            "status": is_active,
            "workEmail": employee.email,
            "homeEmail": f"{PRIVATE}.{employee.id}@home.example",
            "bestEmail": f"{PRIVATE}.{employee.id}@home.example",
            "middleName": f"{PRIVATE} middle",
            "workPhone": f"{PRIVATE} phone",
            "workPhoneExtension": f"{PRIVATE} ext",
            "mobilePhone": f"{PRIVATE} mobile",
            "homePhone": f"{PRIVATE} home",
            "birthDate": f"{PRIVATE} birthday",
            "hireDate": employee.hired_on.isoformat(),
            "divisionName": job.get("division"),
            "divisionId": "9" if job else None,
            "departmentName": job.get("department"),
            "departmentId": str(zlib.crc32(job["department"].encode())) if job else None,
            "locationName": job.get("location"),
            "locationId": "3" if job else None,
            "jobTitleId": "77" if job else None,
            "employmentStatusName": None if status is None else status["employmentStatus"],
            "employmentStatusId": None if status is None else "5",
            "reportsToName": job.get("reportsTo"),
            "reportsToId": ids.get(job.get("reportsTo") or ""),
        }

    async def _directory(self, request: Request) -> Response:
        if not self.is_directory_shared or self.faults.take(Fault.FORBIDDEN_OBJECT):
            return Response(status_code=403)
        today = self.clock().date()
        only_current = request.query_params.get("onlyCurrent", "true") != "false"
        names = ("displayName", "firstName", "lastName", "preferredName", "jobTitle", "workEmail")
        names += ("department", "location", "division", "supervisor", "mobilePhone", "photoUrl")
        employees, ids = [], self._ids()
        for one in self._shown().values():
            employee = one.employee
            if employee is None:
                continue
            if not employee.is_active(today) and (only_current or employee.hired_on <= today):
                continue
            record = self._record(employee, ids)
            record |= {
                "displayName": employee.name,
                "jobTitle": record["jobTitleName"],
                "department": record["departmentName"],
                "location": record["locationName"],
                "division": record["divisionName"],
                "supervisor": record["reportsToName"],
            }
            employees.append(
                {"id": employee.id, **{name: record[name] for name in names}, "canUploadPhoto": 0}
            )
        if not employees:
            return Response(status_code=404)
        fields = [{"id": name, "type": "text", "name": name} for name in names]
        return JSONResponse({"fields": fields, "employees": employees})

    async def _single(self, request: Request) -> Response:
        if self.faults.take(Fault.FORBIDDEN_OBJECT):
            return Response(status_code=403)
        version = self._shown().get(request.path_params["id"])
        is_gone = version is None or version.employee is None
        if is_gone or self.faults.take(Fault.VANISHED_OBJECT):
            return Response(status_code=404)
        employee = version.employee
        asked = request.query_params.get("fields", "firstName,lastName").split(",")
        if len(asked) > 400:
            return Response(status_code=400)
        record = self._record(employee, self._ids())
        status = current(employee.statuses, self.clock().date())
        has_left = status is not None and status["employmentStatus"] == TERMINATED
        record |= {
            "department": record["departmentName"],
            "division": record["divisionName"],
            "location": record["locationName"],
            "employmentStatus": record["employmentStatusName"],
            "terminationDate": status["date"] if has_left else None,
            "payRate": f"{PRIVATE} pay",
            "address1": f"{PRIVATE} address",
        }
        for name in ("departmentName", "divisionName", "locationName", "employmentStatusName"):
            del record[name]
        if "status" in asked and self.faults.take(Fault.UNKNOWN_ENUM):
            record["status"] = "Sabbatical"
        shown = {
            name: record[name]
            for name in asked
            if name in record and name not in employee.restricted
        }
        return JSONResponse({"id": employee.id, **shown})

    async def _list(self, request: Request) -> Response:
        if self._scheme(request) != "oauth":
            return Response(status_code=401)
        query = request.query_params
        try:
            limit = int(query.get("page[limit]", "250"))
        except ValueError:
            limit = 0
        sort = query.get("sort", "employeeId")
        if not 1 <= limit <= 2500 or sort.lstrip("-") not in SORTABLE:
            return self._list_error("BadRequest")
        limit = min(limit, self.list_limit_max)
        asked = [name for name in query.get("fields", "").split(",") if name in LIST_OPTIONAL]
        wanted = set(query.get("filter[ids]", "").split(",")) | set(query.getlist("filter[ids][]"))
        wanted.discard("")
        versions = {
            person_id: one
            for person_id, one in self._shown().items()
            if one.employee is not None and (not wanted or person_id in wanted)
        }
        ids = sorted(versions, key=int)
        start = 0
        after = query.get("page[after]")
        if after is not None:
            found = self._boundary(after, versions)
            if found is None or self.faults.take(Fault.PAGE_TOKEN_EXPIRED):
                return self._list_error("BadPage")
            start = ids.index(found) + 1
        page = ids[start : start + limit]
        next_cursor = None
        if start + limit < len(ids):
            next_cursor = self._cursor(page[-1], versions[page[-1]])
        by_name = self._ids()
        data = [self._listed(versions[one].employee, asked, by_name) for one in page]
        if after is not None and self._last_list and self.faults.take(Fault.REPEATED_EVENT):
            data.insert(0, self._last_list[-1])
        if next_cursor is not None and self.faults.take(Fault.EMPTY_PAGE):
            data, next_cursor = (
                [],
                self._cursor(
                    ids[start - 1] if start else "", versions.get(ids[start - 1] if start else "")
                ),
            )
        if after is not None and self.faults.take(Fault.REPEATED_TOKEN):
            next_cursor = after
        self._last_list = list(data) or self._last_list
        if data and self.faults.take(Fault.UNKNOWN_ENUM):
            data[0] = {**data[0], "status": "Sabbatical"}
        link = str(request.url)
        links = {"self": {"href": link}}
        if next_cursor is not None:
            links["next"] = {"href": link}
        return JSONResponse(
            {
                "data": data,
                "meta": {
                    "total": len(ids),
                    "page": {"limit": limit, "nextCursor": next_cursor, "prevCursor": None},
                },
                "_links": links,
            }
        )

    def _cursor(self, person_id: str, version: Version | None) -> str:
        mark = "" if version is None else version.changed_at.isoformat()
        return base64.urlsafe_b64encode(f"{person_id}|{mark}".encode()).decode()

    def _boundary(self, cursor: str, versions: dict[str, Version]) -> str | None:
        """Whose record the page before ended with, if it is still as it was."""
        try:
            person_id, _, mark = base64.urlsafe_b64decode(cursor).decode().partition("|")
        except ValueError:
            return None
        version = versions.get(person_id)
        if version is None or version.changed_at.isoformat() != mark:
            return None
        return person_id

    def _listed(self, employee: Employee, asked: list[str], ids: dict[str, str]) -> dict[str, Any]:
        record = self._record(employee, ids)
        shown = {name: record[name] for name in (*LIST_BASE, "status", *asked)}
        hidden = [name for name in shown if name in employee.restricted]
        return {**shown, **dict.fromkeys(hidden), "_restrictedFields": hidden}

    def _list_error(self, code: str) -> Response:
        return JSONResponse({"error": {"code": code, "message": "refused by the fake"}}, 400)

    # For other processes.

    async def _truth(self, request: Request) -> Response:
        grants = sorted(map(list, self.grants()))
        return JSONResponse({"event_ids": sorted(self.event_ids()), "grants": grants})

    async def _add(self, request: Request) -> Response:
        late = timedelta(seconds=float(request.query_params.get("late_seconds", "0")))
        now = self.clock()
        ids = self.add_events(
            int(request.query_params.get("count", "1")), at=now, visible_at=now + late
        )
        return JSONResponse({"event_ids": ids})

    async def _fault(self, request: Request) -> Response:
        times = int(request.query_params.get("times", "1"))
        self.faults.inject(Fault[request.query_params["name"]], times=times)
        return JSONResponse({})


ENTERPRISE = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"
SCIM_TOKEN = "scim-token-secret"
SCIM_USER, SCIM_PASSWORD = "scim-user", "scim-password-secret"
SCIM_CLIENT, SCIM_SECRET = "scim-client", "scim-client-secret"
SCIM_ACCESS_TOKEN = "scim-access-token-secret"
SCIM_NAME = "people"


class _Storage(InMemoryStorage):
    """The server's memory, with ids and versions that the harness knows beforehand."""

    def __init__(self, clock: Clock) -> None:
        self.written_at: datetime | None = None
        self.version: str | None = None
        super().__init__(clock=lambda: self.written_at or clock())

    def generate_id(self, resource_type: ResourceType, resource: Any) -> str:
        name = getattr(resource, "user_name", None) or getattr(resource, "display_name", "")
        return uuid.uuid5(uuid.NAMESPACE_URL, f"{resource_type.name}/{name}").hex

    def next_version(self) -> str:
        return self.version or super().next_version()


class ScimHarness:
    """The real scim2-server, with a clock; the harness may get in the way of its answers.

    Attributes:
        refuses_filters: Whether every filter is answered by 400 invalidFilter, whatever the
            service provider says of itself: several vendors do.
        ignores_attributes: Whether `attributes=` is overlooked: several vendors do.
        has_versions: Whether `meta.version` is shown; it is optional.
        hidden: Ids that lists leave out although the user is there.
        between_pages: Called before each page of a list but the first.
        answers: Path and body of every list that was sent, for validation.
    """

    def __init__(self, world: World, clock: Clock, **config: dict[str, Any]) -> None:
        self.world = world
        self.clock = clock
        self.faults = Faults()
        self.requests: list[tuple[str, str]] = []
        self.queries: list[str] = []
        self.answers: list[tuple[str, Any]] = []
        self.refuses_filters = False
        self.ignores_attributes = False
        self.has_versions = True
        self.is_limited = False
        self.hidden: set[str] = set()
        self.between_pages: Callable[[], None] | None = None
        self._rate = Rate(600, timedelta(minutes=1), clock)
        self._later: list[tuple[datetime, Callable[[], None]]] = []
        self._event_ids: set[str] = set()
        self._touched: set[str] = set()
        self._versions = 100_000
        self._hired = 0
        self._last: dict[str, Any] | None = None
        self._storage = _Storage(clock)
        self._types = {one.name: one for one in load_default_resource_types().values()}
        announced = load_default_service_provider_config()
        body = announced.model_dump()
        for name, value in config.items():
            body[name] = {**body.get(name, {}), **value}
        self._provider = ScimProvider.from_discovery(
            load_default_schemas().values(),
            self._types.values(),
            config=type(announced).model_validate(body),
        )
        self._server = ASGIApplication(
            AsyncInMemoryStorage(self._storage),
            self._provider,
            ScimService(self._provider, secret="cursors"),
        )
        self.ids: dict[str, str] = {}
        for one in world.people:
            self._create(self._user(one.email, one.name, one), FOUNDED_AT, one.employee_id)
        for one in world.people:
            if one.manager_id is not None:
                self._patch(self.ids[one.employee_id], {"manager": one.manager_id}, FOUNDED_AT)
        for one in world.leavers:
            assert one.left_at is not None
            self.change("leave", self.ids[one.employee_id], at=one.left_at.replace(microsecond=0))
        by_object = {one.object_id: self.ids[one.employee_id] for one in world.people}
        self.group_ids: dict[str, str] = {}
        self._storage.written_at = FOUNDED_AT
        for group in world.groups:
            made = self._storage.create(self._types["Group"], self._group(group.name, []))
            self.group_ids[group.id] = made.id
        for group in world.groups:
            members = [{"value": by_object[one], "type": "User"} for one in group.people]
            members += [{"value": self.group_ids[one], "type": "Group"} for one in group.groups]
            made = self._storage.get(self._types["Group"], self.group_ids[group.id])
            filled = self._group(group.name, members)
            filled.id, filled.meta = made.id, made.meta
            self._storage.update(self._types["Group"], filled)
        self._storage.written_at = None

        # A function: uvicorn takes a bound method for an application of ASGI 2.
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await self._serve(scope, receive, send)

        self.app = app

    def _group(self, name: str, members: list[dict[str, Any]]) -> Any:
        schema = "urn:ietf:params:scim:schemas:core:2.0:Group"
        body = {"schemas": [schema], "displayName": name, "members": members}
        return self._provider.model_for("Group").model_validate(body)

    def _user(self, email: str, name: str, person: Person | None = None) -> dict[str, Any]:
        first, _, last = name.partition(" ")
        user: dict[str, Any] = {
            "schemas": ["urn:ietf:params:scim:schemas:core:2.0:User", ENTERPRISE],
            "userName": email,
            "displayName": name,
            "name": {"givenName": first, "familyName": last, "middleName": f"{PRIVATE} middle"},
            "nickName": f"{PRIVATE} nick",
            "active": True,
            "title": person.job_title if person else "Analyst",
            "userType": "Employee",
            "emails": [
                {"value": f"{PRIVATE}.{first}@home.example", "type": "home"},
                {"value": email, "type": "work", "primary": True},
            ],
            "phoneNumbers": [{"value": f"tel:+1;ext={PRIVATE}", "type": "mobile"}],
            "addresses": [{"streetAddress": f"{PRIVATE} street", "type": "home"}],
            ENTERPRISE: {
                "employeeNumber": person.employee_id if person else email,
                "department": person.department if person else "Sales",
                "costCenter": "C1",
            },
        }
        if person is not None and person.employee_id.endswith("7"):
            user["roles"] = [{"value": "approver"}]
            user["entitlements"] = [{"value": "parking"}]
        return user

    def _create(self, user: dict[str, Any], at: datetime, key: str) -> None:
        self._storage.written_at = at
        model = self._provider.model_for("User").model_validate(user)
        self.ids[key] = self._storage.create(self._types["User"], model).id
        self._storage.written_at = None

    def user(self, user_id: str) -> dict[str, Any]:
        """A user as the server holds it."""
        return self._storage.get(self._types["User"], user_id).model_dump()

    def _patch(self, user_id: str, changes: dict[str, Any], at: datetime) -> None:
        body = self.user(user_id)
        enterprise = body.setdefault(ENTERPRISE, {})
        for name, value in changes.items():
            if name == "manager":
                enterprise["manager"] = {"value": self.ids.get(value, value)}
            elif name in ("department", "costCenter", "division", "organization"):
                enterprise[name] = value
            else:
                body[name] = value
        body.pop("meta", None)
        model = self._provider.model_for("User").model_validate(body)
        self._storage.written_at = at
        self._storage.update(self._types["User"], model)
        self._storage.written_at = None

    def change(
        self,
        kind: str,
        user_id: str | None = None,
        *,
        at: datetime,
        visible_at: datetime | None = None,
        **changes: Any,
    ) -> str:
        """Hire, move, leave, rehire, update or touch somebody.

        Returns:
            The id of the event. To `delete` there is none: it depends on when it is noticed.
        """
        self._versions += 1
        version = f'W/"{self._versions}"'
        if kind == "hire":
            self._hired += 1
            email = f"hire.number{self._hired}@{DOMAIN}"
            user = {**self._user(email, f"Hire Number{self._hired}"), **changes}
            user_id = uuid.uuid5(uuid.NAMESPACE_URL, f"User/{email}").hex

            def act() -> None:
                self._create(user, at, email)

        else:
            assert user_id is not None
            given = (
                changes
                or {
                    "move": {"department": f"Unit {self._versions}"},
                    "leave": {"active": False},
                    "rehire": {"active": True},
                    "update": {"displayName": f"Name {self._versions}"},
                    "touch": {"nickName": f"{PRIVATE} {self._versions}"},
                    "delete": {},
                }[kind]
            )
            whom = user_id

            def act() -> None:
                if kind == "delete":
                    self._storage.delete(self._types["User"], whom)
                else:
                    self._patch(whom, given, at)

        def write() -> None:
            self._storage.version = version
            try:
                act()
            finally:
                self._storage.version = None

        self._touched.add(user_id)
        if visible_at is not None and visible_at > self.clock():
            self._later.append((visible_at, write))
        else:
            write()
        mark = version if self.has_versions else None
        event_id = f"scim:{SCIM_NAME}:{user_id}:{mark}"
        if kind not in ("touch", "delete"):
            self._event_ids.add(event_id)
        return event_id

    def add_events(
        self, count: int, *, at: datetime, visible_at: datetime | None = None
    ) -> list[str]:
        """So many changes, each of another user, so that lists can show every one."""
        free = [
            one
            for person in self.world.people
            if person.left_at is None and (one := self.ids[person.employee_id]) not in self._touched
        ]
        ids, start_at = [], len(self._touched)
        for i in range(count):
            kind = ("move", "hire", "leave", "update")[(start_at + i) % 4]
            user_id = free.pop(0) if free and kind != "hire" else None
            when = at + timedelta(seconds=i // 3)
            kind = kind if user_id else "hire"
            ids.append(self.change(kind, user_id, at=when, visible_at=visible_at))
        return ids

    def event_ids(self) -> set[str]:
        """Every change that is told."""
        return set(self._event_ids)

    def grants(self) -> set[Grant]:
        """What a snapshot must hold."""
        self._catch_up()
        found: set[Grant] = set()
        for one in self._storage.resources:
            body = one.model_dump()
            if "members" in body or "userName" not in body:
                for member in body.get("members") or []:
                    kind = "group" if member.get("type") == "Group" else "hr:employee"
                    who = f"{kind}:{member['value']}"
                    found.add((who, f"group:{body['id']}", "member", "group", ""))
                continue
            who = f"hr:employee:{body['id']}"
            found.add((who, f"user:{body['userName'].lower()}", "alias", "alias", ""))
            if body.get("active") is False:
                continue
            enterprise = body[ENTERPRISE]
            found.add((who, f"hr:department:{enterprise['department']}", "member_of", "role", ""))
            found.add((who, f"hr:job_title:{body['title']}", "job_title", "role", ""))
            if enterprise.get("manager"):
                manager = enterprise["manager"]["value"]
                found.add((who, f"hr:employee:{manager}", "reports_to", "role", ""))
            for role in body.get("roles") or []:
                found.add((who, f"hr:role:{role['value']}", "assigned", "role", ""))
            for one_more in body.get("entitlements") or []:
                found.add((who, f"hr:entitlement:{one_more['value']}", "assigned", "role", ""))
        return found

    def _catch_up(self) -> None:
        now = self.clock()
        due = [one for one in self._later if one[0] <= now]
        self._later = [one for one in self._later if one[0] > now]
        for _, write in due:
            write()

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        response = await self._answer(request)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        path = request.url.path
        self.requests.append((request.method, path))
        self.queries.append(request.url.query)
        self._catch_up()
        if path == "/token":
            return await self._token(request)
        if self.faults.take(Fault.HANGING):
            await hang()
        fault = http_fault(self.faults, self.clock)
        if fault is not None:
            return fault
        if self.is_limited and (seconds := self._rate.refuse()) is not None:
            return Response(status_code=429, headers={"Retry-After": str(int(seconds) + 1)})
        if not path.endswith("/ServiceProviderConfig"):
            if not self._is_welcome(request) or self.faults.take(Fault.TOKEN_EXPIRED):
                return self._error(401)
            if path.endswith("/Groups") and self.faults.take(Fault.FORBIDDEN_OBJECT):
                return self._error(403)
        query = dict(parse_qsl(request.url.query, keep_blank_values=True))
        if "filter" in query and self.refuses_filters:
            return self._error(400, "invalidFilter")
        if query.get("cursor") and self.faults.take(Fault.PAGE_TOKEN_EXPIRED):
            return self._error(400, "expiredCursor")
        is_next = query.get("startIndex", "1") != "1" or bool(query.get("cursor"))
        if is_next and self.between_pages is not None:
            self.between_pages()
        if self.ignores_attributes:
            query.pop("attributes", None)
        status, body = await self._inner(request, query)
        if isinstance(body, dict) and "Resources" in body:
            self._bend(body, query, is_next=is_next)
        if status == 200:
            self.answers.append((path, body))
        answer = JSONResponse(body, status, media_type="application/scim+json")
        if status == 200 and self.faults.take(Fault.DROPPED):
            return dropped(answer)
        return answer

    def _bend(self, body: dict[str, Any], query: dict[str, str], *, is_next: bool) -> None:
        """What gets in the way of a list."""
        resources = body["Resources"]
        if self.hidden and resources:
            kept = [one for one in resources if one.get("id") not in self.hidden]
            body["totalResults"] -= len(self.hidden)
            body["Resources"] = resources = kept
        if not self.has_versions:
            for one in resources:
                one.get("meta", {}).pop("version", None)
        if is_next and self._last is not None and self.faults.take(Fault.REPEATED_EVENT):
            resources[0] = self._last
        if resources and self.faults.take(Fault.UNKNOWN_ENUM):
            for email in resources[0].get("emails", []):
                email["type"] = "work" if email["type"] == "work" else "home"
            resources[0].setdefault("emails", []).append({"value": "x@x.example", "type": "dream"})
        if resources and "userName" in resources[0] and self.faults.take(Fault.MALFORMED_RECORD):
            resources.append({"userName": ["no", "text"], "phoneNumbers": PRIVATE})
            body["totalResults"] += 1
        if query.get("cursor") and self.faults.take(Fault.REPEATED_TOKEN):
            body["nextCursor"] = query["cursor"]
        self._last = resources[-1] if resources else self._last

    async def _inner(self, request: Request, query: dict[str, str]) -> tuple[int, Any]:
        """What the real server answers."""
        status, parts = 500, []

        async def send(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                parts.append(message.get("body", b""))

        scope = {**request.scope, "query_string": urlencode(query).encode()}
        await self._server(scope, request.receive, send)
        data = b"".join(parts)
        return status, json.loads(data) if data else {}

    def _is_welcome(self, request: Request) -> bool:
        given = request.headers.get("authorization", "")
        basic = base64.b64encode(f"{SCIM_USER}:{SCIM_PASSWORD}".encode()).decode()
        return given in (
            f"Bearer {SCIM_TOKEN}",
            f"Bearer {SCIM_ACCESS_TOKEN}",
            f"Basic {basic}",
        )

    async def _token(self, request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode()))
        is_right = (form.get("client_id"), form.get("client_secret")) == (SCIM_CLIENT, SCIM_SECRET)
        if not is_right or self.faults.take(Fault.CREDENTIAL_REFUSED):
            return JSONResponse({"error": "invalid_client"}, 401)
        return JSONResponse(
            {"token_type": "Bearer", "expires_in": 3600, "access_token": SCIM_ACCESS_TOKEN}
        )

    def _error(self, status: int, kind: str | None = None) -> Response:
        body = {"schemas": ["urn:ietf:params:scim:api:messages:2.0:Error"], "status": str(status)}
        return JSONResponse({**body, **({"scimType": kind} if kind else {})}, status)


def main() -> None:
    """Serve BambooHR on the machine's clock, with a past; until SIGTERM."""
    options = argparse.ArgumentParser(prog="python -m fakes.hr")
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--events", type=int, default=200)
    options.add_argument("--hours", type=float, default=6.0)
    options.add_argument("--people", type=int, default=40)
    given = options.parse_args()
    now = datetime.now(UTC)
    fake = HrFake(World(seed=given.seed, now=now, people_count=given.people), Clock())
    for i in range(given.events):
        ago = timedelta(hours=given.hours) * (1 - i / max(given.events, 1))
        fake.add_events(1, at=now - ago)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with serving(fake.app, given.port) as url:
        print(url, flush=True)  # noqa: T201 - the first line is for whoever started it
        stop.wait()


Fake = HrFake


if __name__ == "__main__":
    main()
