"""From BambooHR's answers to observations and snapshot rows: pure functions, no I/O.

Shapes: BambooHR OpenAPI 3.1, read 2026-11-24. The columns of jobInfo (date, location, department,
division, jobTitle, reportsTo) and employmentStatus (date, employmentStatus) are UNCONFIRMED: the
specification leaves a table's columns open. A column that is missing counts as hidden.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

from connectors.hr.changes import LEAVER, MOVER, Observation
from connectors.hr.fields import RESTRICTED, Keep, text
from connectors.hr.grants import Holder
from verity_sdk.errors import Malformed
from verity_sdk.pages import RejectedRecord
from verity_sdk.times import parse_utc
from verity_sdk.values import dumps

JOB: Final = "jobInfo"
STATUS: Final = "employmentStatus"
DELETED: Final = "deleted"
INSERTED: Final = "inserted"

Record = dict[str, Any]

_DATE = re.compile(r"(?!0000)\d{4}-\d\d-\d\d", re.ASCII)

_IDENTITY: Final = {
    "first_name": "firstName",
    "last_name": "lastName",
    "preferred_name": "preferredName",
    "work_email": "workEmail",
    "hired_on": "hireDate",
}
# Canonical name → the column of the table, then the fields of a record that say the same.
_POSITION: Final = {
    "department": ("department", "departmentName"),
    "division": ("division", "divisionName"),
    "location": ("location", "locationName"),
    "job_title": ("jobTitle", "jobTitleName"),
    # The name and not the id: the tables have no other, and only they know of future moves.
    "manager": ("reportsTo", "reportsToName", "supervisor"),
}
_EMPLOYMENT: Final = ("employmentStatus", "employmentStatusName")
_COLUMNS: Final = frozenset(
    {"id", "date", _EMPLOYMENT[0], *(columns[0] for columns in _POSITION.values())}
)


@dataclass(frozen=True, slots=True)
class Context:
    """What the records do not say themselves.

    Attributes:
        domain: The company's domain, in event ids.
        terminated: Employment statuses of those who left, in lower case.
        keep: Leaves of a record what is allowed.
        began_at: From when on changes are wanted, aware UTC.
    """

    domain: str
    terminated: frozenset[str]
    keep: Keep
    began_at: datetime


@dataclass(frozen=True, slots=True)
class Change:
    """An entry of the feed of changed employees.

    Attributes:
        action: As it stands there; `Inserted`, `Updated`, `Deleted`, or what comes in future.
        changed_at: Aware UTC, whole seconds.
        record: The entry, allowed fields only.
    """

    person_id: str
    action: str
    changed_at: datetime
    record: Record

    @property
    def changed(self) -> int:
        """`changed_at` in seconds since 1970."""
        return int(self.changed_at.timestamp())

    @property
    def is_deletion(self) -> bool:
        """Whether the record is gone."""
        return self.action.lower() == DELETED


@dataclass(slots=True)
class Tables:
    """The rows of both tables by employee; an employee that is not there has none shown."""

    job: dict[str, list[Record]]
    status: dict[str, list[Record]]


def rejected(record: Record, reason: str, reference: str) -> RejectedRecord:
    """A record that was not understood, after the allow-list went over it."""
    return RejectedRecord(dumps(record), reason, reference)


def changes_of(body: Any, keep: Keep) -> tuple[list[Change], list[RejectedRecord]]:
    """The feed's entries, oldest first.

    Raises:
        Malformed: The answer as a whole is not the feed.
    """
    employees = body.get("employees") if isinstance(body, dict) else None
    if employees == []:
        employees = {}  # How PHP writes an empty map.
    if not isinstance(employees, dict):
        raise Malformed("employees/changed: there is no map of employees")
    changes, faulty = [], []
    for key, entry in employees.items():
        record = keep(entry)
        try:
            changes.append(_change(str(key), record))
        except Malformed as error:
            faulty.append(rejected(record, str(error), f"employees/changed:{key}"))
    changes.sort(key=lambda one: (one.changed_at, one.person_id))
    return changes, faulty


def _change(key: str, record: Record) -> Change:
    changed = text(record, "lastChanged")
    if changed is None:
        raise Malformed("the changed employee has no lastChanged")
    return Change(
        person_id=text(record, "id") or key,
        action=text(record, "action") or "Updated",
        changed_at=_time("lastChanged", changed).replace(microsecond=0),
        record=record,
    )


def _time(name: str, value: str) -> datetime:
    try:
        return parse_utc(value)
    except Malformed:
        raise Malformed(f"{name} is no time") from None


def rows_of_changed(
    body: Any, table: str, keep: Keep
) -> tuple[dict[str, list[Record]], list[RejectedRecord]]:
    """The rows by employee, of the answer for changed employees.

    Raises:
        Malformed: The answer as a whole is not that.
    """
    employees = body.get("employees") if isinstance(body, dict) else None
    if employees == []:
        employees = {}
    if not isinstance(employees, dict):
        raise Malformed(f"changed/tables/{table}: there is no map of employees")
    found: dict[str, list[Record]] = {}
    faulty: list[RejectedRecord] = []
    for key, one in employees.items():
        rows = one.get("rows") if isinstance(one, dict) else None
        if not isinstance(rows, list):
            faulty.append(rejected(keep(one), "the employee has no list of rows", f"{table}:{key}"))
            continue
        found[str(key)] = _rows(rows, table, str(key), keep, faulty)
    return found, faulty


def rows_of_all(
    body: Any, table: str, keep: Keep
) -> tuple[dict[str, list[Record]], list[RejectedRecord]]:
    """The rows by employee, of the answer for all employees.

    Raises:
        Malformed: The answer as a whole is not that.
    """
    if not isinstance(body, list):
        raise Malformed(f"employees/all/tables/{table}: there is no list of rows")
    found: dict[str, list[Record]] = {}
    faulty: list[RejectedRecord] = []
    for one in body:
        for row in _rows([one], table, None, keep, faulty):
            found.setdefault(str(row["employeeId"]), []).append(row)
    return found, faulty


def _rows(
    rows: Sequence[Any], table: str, person_id: str | None, keep: Keep, faulty: list[RejectedRecord]
) -> list[Record]:
    good = []
    for row in rows:
        record = keep(row)
        try:
            if person_id is None and text(record, "employeeId") is None:
                raise Malformed("the row names no employee")
            for name, value in record.items():
                if value.__class__ is not str and name in _COLUMNS:
                    text(record, name)
        except Malformed as error:
            faulty.append(rejected(record, str(error), f"{table}:{person_id or '?'}"))
        else:
            good.append(record)
    return good


def shown_id(record: Record) -> str:
    """The id of an employee's record, however the endpoint calls it.

    Raises:
        Malformed: It has none.
    """
    found = text(record, "employeeId") or text(record, "id")
    if found is None:
        raise Malformed("the employee has no id")
    return found


def newest(rows: Sequence[Record], *, until: str = "9999-99-99") -> Record | None:
    """The row that counts last, by date and then by id; tables come in no order."""
    dated = [row for row in rows if _date(row) <= until]
    return max(dated, key=lambda row: (_date(row), _number(row)), default=None)


def _date(row: Record) -> str:
    found = row.get("date")
    return found if isinstance(found, str) and _DATE.fullmatch(found) else ""


def _number(row: Record) -> int:
    found = str(row.get("id", ""))
    return int(found) if found.isdecimal() and len(found) < 20 else 0


def _is_shown(record: Mapping[str, Any], key: str) -> bool:
    return key in record and key not in record.get(RESTRICTED, ())


def values_of(
    employee: Record | None, job: Record | None, status: Record | None, context: Context
) -> tuple[dict[str, str | None], bool | None, dict[str, str]]:
    """The tracked values, whether the person is active, and the dates.

    The newest row counts even if its date lies ahead: a move and a termination are news when they
    are entered, and the feed does not say when their day has come (UNCONFIRMED).

    Raises:
        Malformed: A field is no text.
    """
    person = employee or {}
    values: dict[str, str | None] = {}
    for name, key in _IDENTITY.items():
        if _is_shown(person, key):
            values[name] = text(person, key)
    for name, keys in _POSITION.items():
        if job is not None and keys[0] in job:
            values[name] = text(job, keys[0])
            continue
        for key in keys:
            if _is_shown(person, key):
                values[name] = text(person, key)
                break
    employment = None
    if status is not None and _EMPLOYMENT[0] in status:
        values["employment_status"] = employment = text(status, _EMPLOYMENT[0])
    else:
        for key in _EMPLOYMENT:
            if _is_shown(person, key):
                values["employment_status"] = text(person, key)
                break
    is_active: bool | None = None
    if employment is not None:
        is_active = employment.lower() not in context.terminated
    elif _is_shown(person, "status"):
        is_active = _ACTIVITY.get((text(person, "status") or "").lower())
    dates = {}
    if (hired := values.get("hired_on")) and _DATE.fullmatch(hired):
        dates["hired_on"] = hired
    if job is not None and _date(job):
        dates["moved_on"] = _date(job)
    if is_active is False:
        left = _date(status) if employment is not None and status is not None else ""
        left = left or text(person, "terminationDate") or ""
        if _DATE.fullmatch(left):
            dates["left_on"] = left
    if is_active is not None:
        values["left_on"] = dates.get("left_on")
    return values, is_active, dates


_ACTIVITY: Final = {"active": True, "inactive": False}


def observation(
    person_id: str,
    change: Change | None,
    employee: Record | None,
    tables: Tables,
    context: Context,
) -> Observation:
    """What all answers together show of one employee.

    Args:
        change: Its entry in the feed; None for a baseline.
        employee: Its record, allowed fields only; None where it is not shown.

    Raises:
        Malformed: A field is no text.
    """
    job_rows = tables.job.get(person_id, [])
    status_rows = tables.status.get(person_id, [])
    job, status = newest(job_rows), newest(status_rows)
    changed_at = context.began_at if change is None else change.changed_at
    action = "" if change is None else change.action
    event_id = f"bhr:{context.domain}:{person_id}:{action}:{changed_at:%Y-%m-%dT%H:%M:%SZ}"
    if change is not None and change.is_deletion:
        return Observation(
            person_id,
            event_id,
            changed_at,
            {},
            is_gone=True,
            changed=change.changed,
            payload={"feed": change.record},
            derived={"basis": "deleted"},
        )
    values, is_active, dates = values_of(employee, job, status, context)
    if "hired_on" not in dates:
        first = min(filter(None, map(_date, (*job_rows, *status_rows))), default=None)
        if first is not None:
            dates["hired_on"] = first
    suffixes = {}
    if job is not None and "id" in job:
        suffixes[MOVER] = f":{JOB}:{job['id']}"
    if status is not None and "id" in status:
        suffixes[LEAVER] = f":{STATUS}:{status['id']}"
    payload: Record = {}
    if change is not None:
        payload = {
            "feed": change.record,
            "employee": employee,
            JOB: job_rows,
            STATUS: status_rows,
        }
    return Observation(
        person_id,
        event_id,
        changed_at,
        values,
        is_active=is_active,
        is_new=action.lower() == INSERTED and changed_at >= context.began_at,
        dates=dates,
        has_moved_before=len(job_rows) > 1,
        suffixes=suffixes,
        changed=0 if change is None else change.changed,
        payload=payload,
    )


def listed_holders(employees: Iterable[Record]) -> tuple[list[Holder], list[RejectedRecord]]:
    """A snapshot's people, from the employee list."""
    holders, faulty = [], []
    for one in employees:
        try:
            holders.append(_listed_holder(one))
        except Malformed as error:
            faulty.append(rejected(one, str(error), "employees"))
    return holders, faulty


def _listed_holder(employee: Record) -> Holder:
    return Holder(
        person_id=shown_id(employee),
        is_active=_ACTIVITY.get((text(employee, "status") or "").lower(), True),
        department=text(employee, "departmentName"),
        job_title=text(employee, "jobTitleName"),
        manager_id=text(employee, "reportsToId"),
        accounts=[email] if (email := text(employee, "workEmail")) else [],
        payload={"employee": employee},
    )


def directory_holders(
    directory: Mapping[str, Record] | None,
    tables: Tables,
    today: date,
    terminated: frozenset[str],
) -> tuple[list[Holder], list[str], list[RejectedRecord]]:
    """A snapshot's people, from the directory and the tables.

    Args:
        directory: Everybody who is active, by id; None where the directory is not shared: then
            the tables say who is, and nobody's e-mail is known.

    Returns:
        The people; the ids of those whose manager is named but not found, for neither the
        directory nor the tables have the manager's id for sure; and what was not understood.
    """
    until = today.isoformat()
    people: Mapping[str, Record]
    if directory is not None:
        people = directory
    else:
        employed = (
            one
            for one, rows in tables.status.items()
            if _is_employed(newest(rows, until=until), terminated)
        )
        people = {one: {} for one in employed}
    ids_by_name = _ids_by_name(people)
    holders, lost, faulty = [], [], []
    for person_id, record in people.items():
        job = newest(tables.job.get(person_id, []), until=until) or {}
        try:
            manager_id = text(record, "supervisorId")
            manager = text(job, "reportsTo") or text(record, "supervisor")
            if manager_id is None and manager is not None:
                manager_id = ids_by_name.get(manager)
                if manager_id is None:
                    lost.append(person_id)
            holders.append(
                Holder(
                    person_id=person_id,
                    is_active=True,
                    department=text(job, "department") or text(record, "department"),
                    job_title=text(job, "jobTitle") or text(record, "jobTitle"),
                    manager_id=manager_id,
                    accounts=[email] if (email := text(record, "workEmail")) else [],
                    payload={"employee": record or None, JOB: job or None},
                )
            )
        except Malformed as error:
            faulty.append(rejected(record, str(error), f"employee:{person_id}"))
    return holders, lost, faulty


def _is_employed(status: Record | None, terminated: frozenset[str]) -> bool:
    employment = None if status is None else text(status, _EMPLOYMENT[0])
    return employment is not None and employment.lower() not in terminated


def _ids_by_name(people: Mapping[str, Record]) -> dict[str, str]:
    """Ids by full name; of a name that two share, none."""
    named = [
        (name, person_id) for person_id, one in people.items() for name in sorted(_full_names(one))
    ]
    count = Counter(name for name, _ in named)
    return {name: person_id for name, person_id in named if count[name] == 1}


def _full_names(record: Record) -> Iterable[str]:
    """How other records may name this person."""
    last = record.get("lastName")
    firsts = {record.get("firstName"), record.get("preferredName")}
    return {
        f"{first} {last}"
        for first in firsts
        if first and last and isinstance(first, str) and isinstance(last, str)
    }
