"""BambooHR: what is asked, in which order (OpenAPI 3.1 of its API, read 2026-11-24).

The feed of changes says who changed, never what, and of each employee only the last change. So a
pass asks the feed, then the tables and the records of those whom it names, and the difference to
what was known is the event.
"""

from __future__ import annotations

from collections.abc import (
    AsyncIterator,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from connectors.hr import bamboohr_records as records
from connectors.hr.bamboohr_records import JOB, STATUS, Change, Context, Record, Tables
from connectors.hr.changes import Observation
from connectors.hr.fields import LIST_FIELDS, SINGLE_NAMES, bamboohr_filter
from connectors.hr.grants import grants_of
from connectors.hr.known import Known
from connectors.hr.reading import (
    Asking,
    Reading,
    ReadingState,
    SnapshotItem,
    advanced,
    bound_of,
    each,
    not_there,
    portions,
)
from connectors.hr.settings import BambooHr
from verity_sdk.errors import Denied, Malformed, Misconfigured, Unavailable
from verity_sdk.http import Answer, encoded
from verity_sdk.pages import RejectedRecord, SnapshotGap, SnapshotScope

FEED_BEGINS_AT: Final = datetime(2011, 6, 5, tzinfo=UTC)
"""Earlier changes are in no feed ("Last Change Information", read 2026-11-24)."""
LIST_LIMIT: Final = 2500
IDS_MAX: Final = 100
"""Ids in one `filter[ids]`: the specification names no limit, but a URL has one."""
LIST_RESTARTS_MAX: Final = 5
LIST_PAGES_MAX: Final = 10_000
EMPLOYEES: Final = "employees"
REPORTS_TO: Final = "reports_to"


class BambooHrSource:
    """A company's BambooHR.

    Args:
        settings: Which company, and what may be read.
        asking: How it is asked.
    """

    def __init__(self, settings: BambooHr, asking: Asking) -> None:
        self._settings = settings
        self._asking = asking
        self._keep = bamboohr_filter(settings.fields)
        self._terminated = frozenset(one.lower() for one in settings.terminated_statuses)

    async def readings(
        self, place: ReadingState, known: Known, read_at: datetime, until: datetime | None
    ) -> AsyncIterator[Reading]:
        """One pass, oldest change first."""
        bound = bound_of(read_at, until)
        context = Context(
            self._settings.company_domain, self._terminated, self._keep, place.began_at
        )
        since = max(FEED_BEGINS_AT, place.since)
        if not place.is_first:
            since = max(FEED_BEGINS_AT, since - self._asking.lookback)
        faulty: list[RejectedRecord] = []
        before: dict[str, datetime] = {}
        baseline: dict[str, Record | None] = {}
        tables = Tables({}, {})
        if place.is_first:
            # The feed before and after the baseline: whose entry stayed the same is in the
            # baseline as the entry says. No clock decides that.
            changes, _ = await self._feed(since)
            before = {one.person_id: one.changed_at for one in changes}
            del changes
            baseline, tables, rejects = await self._everybody()
            faulty += rejects
        changes, rejects = await self._feed(since)
        faulty += rejects
        later = [one for one in changes if one.changed_at > bound]
        todo = [one for one in changes if one.changed_at <= bound and _is_news(one, known)]
        settled = {one.person_id for one in todo if before.get(one.person_id) == one.changed_at}
        unsettled = [one for one in todo if one.person_id not in settled]
        if unsettled:
            fresh, rejects = await self._tables_of_changed(unsettled[0].changed_at)
            tables.job.update(fresh.job)
            tables.status.update(fresh.status)
            faulty += rejects
        # Of whom there is a change to come nothing may be known yet, or it would be no change.
        pending = {one.person_id for one in (*todo, *later)}
        others = {one: employee for one, employee in baseline.items() if one not in pending}
        quiet: Iterable[Observation] = _baseline(others, tables, context, faulty)
        after = advanced(place, (one.changed_at for one in changes if one.changed_at <= bound))
        parts = portions(todo, self._asking.portion)
        if not parts:
            yield Reading((), quiet, faulty, is_news=bool(others), after=after)
        for number, part in enumerate(parts, 1):
            observations = await self._observations(
                part, settled, baseline, tables, context, faulty
            )
            is_last = number == len(parts)
            yield Reading(observations, quiet, faulty, after=after if is_last else None)
            quiet, faulty = (), []

    async def _observations(
        self,
        changes: Sequence[Change],
        settled: Collection[str],
        baseline: Mapping[str, Record | None],
        tables: Tables,
        context: Context,
        faulty: list[RejectedRecord],
    ) -> list[Observation]:
        """What is seen of those who changed.

        Args:
            settled: Whose record in `baseline` is not older than the change.
        """
        wanted = [
            one.person_id
            for one in changes
            if not one.is_deletion
            and (
                one.person_id not in settled
                or (
                    baseline.get(one.person_id) is None
                    and self._has_left_since(one.person_id, tables, context)
                )
            )
        ]
        employees = await self._employees(wanted, faulty)
        observations = []
        for one in changes:
            employee = employees.get(one.person_id)
            if employee is None and one.person_id in settled:
                employee = baseline.get(one.person_id)
            try:
                observations.append(
                    records.observation(one.person_id, one, employee, tables, context)
                )
            except Malformed as error:
                reference = f"employee:{one.person_id}"
                faulty.append(records.rejected(employee or one.record, str(error), reference))
        return observations

    def _has_left_since(self, person_id: str, tables: Tables, context: Context) -> bool:
        """Whether the tables say so; then the e-mail is worth a request."""
        status = records.newest(tables.status.get(person_id, []))
        _, is_active, dates = records.values_of(None, None, status, context)
        began_on = context.began_at.date().isoformat()
        return is_active is False and dates.get("left_on", began_on) >= began_on

    async def snapshot(self, snapshot_at: datetime) -> AsyncIterator[SnapshotItem]:
        """Who belongs where now."""
        lost: list[str] = []
        denied = None
        if self._settings.has_oauth:
            found, faulty = await self._list(None)
            holders, rejects = records.listed_holders(found.values())
        else:
            directory, faulty = await self._directory(only_current=True)
            if directory is None:
                denied = _DIRECTORY_DENIED
            tables, rejects = await self._all_tables()
            faulty += rejects
            holders, lost, rejects = records.directory_holders(
                directory, tables, snapshot_at.date(), self._terminated
            )
        faulty += rejects
        for holder in holders:
            for grant in grants_of(holder, snapshot_at):
                yield grant
        if faulty:
            denied = f"{len(faulty)} records are not understood: {faulty[0].reason}"
        yield SnapshotScope(EMPLOYEES) if denied is None else SnapshotGap(EMPLOYEES, denied)
        if lost:
            yield SnapshotGap(
                REPORTS_TO,
                f"the managers of {len(lost)} people are named but not found by their name; "
                "only OAuth shows their ids",
            )
        elif denied is None:
            yield SnapshotScope(REPORTS_TO)

    async def check(self) -> None:
        """See that the feed, both tables and the employees are open."""
        now = self._asking.clock()
        await self._feed(now)
        for table in (JOB, STATUS):
            await self._table_of_changed(table, now)
        if self._settings.has_oauth:
            await self._get(EMPLOYEES, {"page[limit]": "1"}, needs=_LIST_DENIED)
            return
        directory, _ = await self._directory(only_current=True)
        if directory is None:
            raise Denied(_DIRECTORY_DENIED)

    async def _feed(self, since: datetime) -> tuple[list[Change], list[RejectedRecord]]:
        answer = await self._get(
            "employees/changed", {"since": _time(since), "type": "all"}, needs=_FEED_DENIED
        )
        with _whole_answer():
            return records.changes_of(answer.json(), self._keep)

    async def _tables_of_changed(self, since: datetime) -> tuple[Tables, list[RejectedRecord]]:
        # Whether `since` itself is included is not said; one second more is.
        since -= timedelta(seconds=1)
        job, faulty = await self._table_of_changed(JOB, since)
        status, more = await self._table_of_changed(STATUS, since)
        return Tables(job, status), faulty + more

    async def _table_of_changed(
        self, table: str, since: datetime
    ) -> tuple[dict[str, list[Record]], list[RejectedRecord]]:
        answer = await self._get(
            f"employees/changed/tables/{table}",
            {"since": _time(since)},
            needs=_TABLE_DENIED.format(table=table),
        )
        with _whole_answer():
            return records.rows_of_changed(answer.json(), table, self._keep)

    async def _all_tables(self) -> tuple[Tables, list[RejectedRecord]]:
        rows: dict[str, dict[str, list[Record]]] = {}
        faulty: list[RejectedRecord] = []
        for table in (JOB, STATUS):
            answer = await self._get(
                f"employees/all/tables/{table}", needs=_TABLE_DENIED.format(table=table)
            )
            with _whole_answer():
                rows[table], more = records.rows_of_all(answer.json(), table, self._keep)
            faulty += more
        return Tables(rows[JOB], rows[STATUS]), faulty

    async def _everybody(
        self,
    ) -> tuple[dict[str, Record | None], Tables, list[RejectedRecord]]:
        """The baseline: all employees; None for whose record is not shown."""
        if self._settings.has_oauth:
            listed, faulty = await self._list(None)
        else:
            directory, faulty = await self._directory(only_current=False)
            listed = {} if directory is None else directory
        tables, more = await self._all_tables()
        everybody: dict[str, Record | None] = dict.fromkeys([*tables.job, *tables.status])
        everybody.update(listed)
        return everybody, tables, faulty + more

    async def _employees(
        self, ids: Sequence[str], faulty: list[RejectedRecord]
    ) -> dict[str, Record]:
        """The records of some; who is not shown is missing."""
        if not self._settings.has_oauth:
            single = await each(ids, self._employee, self._settings.concurrent_requests)
            pairs = zip(ids, single, strict=True)
            return {person_id: record for person_id, record in pairs if record is not None}
        found: dict[str, Record] = {}
        for part in portions(ids, IDS_MAX):
            listed, rejects = await self._list(part)
            found.update(listed)
            faulty += rejects
        return found

    async def _employee(self, person_id: str) -> Record | None:
        fields = ",".join(SINGLE_NAMES.get(one, one) for one in self._settings.fields)
        answer = await self._get(
            f"employees/{encoded(person_id)}",
            {"fields": fields},
            expect=not_there(person_id, 403, 404),
        )
        return self._keep(answer.json()) if answer.status == 200 else None

    async def _directory(
        self, *, only_current: bool
    ) -> tuple[dict[str, Record] | None, list[RejectedRecord]]:
        """Everybody who is active, by id; None where the directory is not shared."""
        answer = await self._get(
            "employees/directory",
            {"onlyCurrent": "true" if only_current else "false"},
            expect=(403, 404),
        )
        if answer.status == 403:
            return None, []
        body = {"employees": []} if answer.status == 404 else answer.json()
        employees = body.get("employees") if isinstance(body, dict) else None
        if not isinstance(employees, list):
            raise Unavailable("BambooHR's directory is not understood: there are no employees")
        return self._by_id(employees)

    def _by_id(self, items: Sequence[Any]) -> tuple[dict[str, Record], list[RejectedRecord]]:
        found: dict[str, Record] = {}
        faulty = []
        for one in items:
            record = self._keep(one)
            try:
                found[records.shown_id(record)] = record
            except Malformed as error:
                faulty.append(records.rejected(record, str(error), EMPLOYEES))
        return found, faulty

    async def _list(
        self, ids: Sequence[str] | None
    ) -> tuple[dict[str, Record], list[RejectedRecord]]:
        """The employee list, completely, by id."""
        for _ in range(LIST_RESTARTS_MAX):
            found = await self._list_once(ids)
            if found is not None:
                return found
        raise Unavailable(
            "BambooHR's employee list changed while it was read (BadPage), "
            f"{LIST_RESTARTS_MAX} times"
        )

    async def _list_once(
        self, ids: Sequence[str] | None
    ) -> tuple[dict[str, Record], list[RejectedRecord]] | None:
        """The list, or None where the cursor went stale (`400 BadPage`): start again then."""
        fields = [one for one in self._settings.fields if one in LIST_FIELDS]
        params = {
            "fields": ",".join(fields),
            "page[limit]": str(LIST_LIMIT),
            "sort": "employeeId",
        }
        if ids is not None:
            params["filter[ids]"] = ",".join(ids)
        found: dict[str, Record] = {}
        faulty: list[RejectedRecord] = []
        cursors: set[str] = set()
        while len(cursors) < LIST_PAGES_MAX:
            answer = await self._get(EMPLOYEES, params, expect=(400,), needs=_LIST_DENIED)
            if answer.status == 400:
                if answer.error_code == "BadPage" and cursors:
                    return None
                raise Misconfigured(
                    f"BambooHR refuses the employee list ({answer.error_code}): is every name in "
                    "bamboohr.fields one of its fields?"
                )
            data, cursor = _list_page(answer.json())
            page, rejects = self._by_id(data)
            found.update(page)
            faulty += rejects
            if cursor is None:
                return found, faulty
            if cursor in cursors:
                raise Unavailable("BambooHR's employee list came with the same cursor twice")
            cursors.add(cursor)
            params["page[after]"] = cursor
        raise Unavailable(f"BambooHR's employee list has more than {LIST_PAGES_MAX} pages")

    async def _get(
        self,
        path: str,
        params: Mapping[str, str] | None = None,
        *,
        expect: Collection[int] = (),
        needs: str = "",
    ) -> Answer:
        """Ask for JSON (the default is XML).

        Args:
            needs: What a 403 or 404 means here.
        """
        try:
            answer = await self._asking.client.get(
                f"{self._settings.url}/{path}",
                params=params,
                headers={"Accept": "application/json"},
                expect=(403, 404, *expect),
            )
        except Denied as error:
            raise Denied(f"{self._credential_hint()}: {error}") from error
        if answer.status in (403, 404) and answer.status not in expect:
            raise Denied(f"BambooHR answers {answer.status} to {path}: {needs}")
        return answer

    def _credential_hint(self) -> str:
        domain = self._settings.company_domain
        if self._settings.has_oauth:
            return (
                f"BambooHR refuses the access token for company {domain} (expired, revoked, or of "
                "another company)"
            )
        return (
            f"BambooHR refuses the API key for company {domain} (revoked, of another company, or "
            "its user is disabled; keys are made under the user's menu, API Keys)"
        )


_FEED_DENIED: Final = (
    "company_domain is wrong, or the credential may not see changed employees (the API key's "
    "user needs an access level over all employees; OAuth the scope public.integration)"
)
_TABLE_DENIED: Final = (
    "the table {table} is not visible: give the API key's user an access level that sees the Job "
    "tab of all employees (OAuth: scope employee:job)"
)
_LIST_DENIED: Final = (
    "the OAuth application needs the scopes employee, employee:name and employee:job"
)
_DIRECTORY_DENIED: Final = (
    "BambooHR answers 403 to employees/directory: share the directory with the company (Settings, "
    "Employee Directory), or use OAuth; without it the snapshot has no e-mails"
)


def _baseline(
    employees: Mapping[str, Record | None],
    tables: Tables,
    context: Context,
    faulty: list[RejectedRecord],
) -> Iterator[Observation]:
    """How those are who have no change that is wanted."""
    for person_id, employee in employees.items():
        try:
            yield records.observation(person_id, None, employee, tables, context)
        except Malformed as error:
            faulty.append(records.rejected(employee or {}, str(error), f"employee:{person_id}"))


def _is_news(change: Change, known: Known) -> bool:
    person = known.get(change.person_id)
    return person is None or person.changed != change.changed


def _time(at: datetime) -> str:
    # Whole seconds and Z: an offset's `+` would reach the server as a space (BambooHR,
    # "Get Changed Employee IDs", read 2026-11-24).
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


@contextmanager
def _whole_answer() -> Iterator[None]:
    """An answer that is something else altogether is no record: it is asked for again."""
    try:
        yield
    except Malformed as error:
        raise Unavailable(f"BambooHR's answer is not understood: {error}") from error


def _list_page(body: Any) -> tuple[list[Any], str | None]:
    data = body.get("data") if isinstance(body, dict) else None
    page = None
    if isinstance(data, list) and isinstance(body.get("meta"), dict):
        page = body["meta"].get("page")
    if not isinstance(data, list) or not isinstance(page, dict):
        raise Unavailable("BambooHR's employee list is not understood: no data, or no meta.page")
    cursor = page.get("nextCursor")
    return data, None if cursor is None or cursor == "" else str(cursor)
