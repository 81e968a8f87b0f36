"""The connector against the fake tenant, over real HTTP.

What is collected is held against the ground truth: as a set, and without a repeat once repeats are
dropped by id as the relay drops them.
"""

from __future__ import annotations

import itertools
import logging
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

import pytest
from fakes.fabric import CLIENT_ID, CLIENT_SECRET, SCANNER_AHEAD, FabricFake
from fakes.kit import Clock, Fault, serving
from fakes.world import World
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from connectors.fabric import FabricConnector, Settings, clients
from connectors.fabric.admin_api import AdminApi
from verity_sdk.connector_base import PermissionSnapshot, RawEvent
from verity_sdk.context import Context
from verity_sdk.errors import Denied, Misconfigured, Unavailable, VerityError
from verity_sdk.pages import Gap, Page, Position, RejectedRecord, SnapshotGap, SnapshotScope

NOW = datetime(2026, 11, 24, 12, 30, 20, tzinfo=UTC)
SINCE = NOW - timedelta(hours=8)
EVENTS = "/powerbi/v1.0/myorg/admin/activityevents"
PASSES_MAX = 12

WAITING_FAULTS = [
    Fault.THROTTLED_SECONDS, Fault.THROTTLED_DATE, Fault.THROTTLED_BARE, Fault.UNAVAILABLE,
    Fault.DROPPED, Fault.HANGING, Fault.NOT_JSON, Fault.TOKEN_EXPIRED, Fault.REPEATED_TOKEN,
    Fault.EMPTY_PAGE, Fault.PAGE_TOKEN_EXPIRED, Fault.REPEATED_EVENT, Fault.UNKNOWN_ENUM,
    Fault.NULL_ACTOR, Fault.MALFORMED_RECORD,
]  # fmt: skip


@dataclass
class Collected:
    """What came out of some passes."""

    pages: list[Page] = field(default_factory=list)
    errors: list[VerityError] = field(default_factory=list)

    @property
    def events(self) -> list[RawEvent]:
        return [event for page in self.pages for event in page.events]

    @property
    def ids(self) -> set[str]:
        return {event.event_id for event in self.events}

    @property
    def rejected(self) -> list[RejectedRecord]:
        return [one for page in self.pages for one in page.rejected]

    @property
    def gaps(self) -> list[Gap]:
        return [gap for page in self.pages for gap in page.gaps]

    @property
    def cursor(self) -> Any:
        return self.pages[-1].cursor if self.pages else None


@dataclass
class Tenant:
    """The fake, served, and connectors for it."""

    fake: FabricFake
    clock: Clock
    url: str
    tenant_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    slept: list[float] = field(default_factory=list)

    def table(self, **settings: Any) -> dict[str, Any]:
        return {
            "connector_id": "fabric-1",
            "tenant_id": self.tenant_id,
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "login_url": f"{self.url}/login",
            "power_bi_url": f"{self.url}/powerbi",
            "fabric_url": f"{self.url}/fabric",
            "graph_url": f"{self.url}/graph",
            "advance_min": 0,
            "http": {"read_timeout": 1, **settings.pop("http", {})},
            **settings,
        }

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.clock.advance(timedelta(seconds=seconds))

    @asynccontextmanager
    async def connector(
        self, context: Context | None = None, **settings: Any
    ) -> AsyncIterator[FabricConnector]:
        context = context or Context(self.clock, self.sleep)
        connector = context.construct(FabricConnector, self.table(**settings))
        try:
            yield connector
        finally:
            await connector.close()

    async def one_pass(self, connector: FabricConnector, position: Position) -> Collected:
        found = Collected()
        try:
            async for page in connector.fetch_pages(position):
                found.pages.append(page)
        except VerityError as error:
            found.errors.append(error)
        return found

    async def collect(
        self, *, since: datetime = SINCE, cursor: Any = None, passes: int = 1, **settings: Any
    ) -> Collected:
        """Some passes that go on from each other; after an error one is tried again at once."""
        found = Collected()
        async with self.connector(**settings) as connector:
            done = 0
            for _ in range(PASSES_MAX):
                one = await self.one_pass(connector, Position(since, cursor))
                found.pages += one.pages
                found.errors += one.errors
                cursor = one.cursor or cursor
                done += not one.errors
                if done == passes:
                    return found
                self.clock.advance(timedelta(minutes=6))
        raise AssertionError(f"did not catch up: {found.errors}")

    def windows(self) -> list[tuple[str, str]]:
        """The windows that were asked for."""
        queries = [dict(parse_qsl(query)) for path, query in self.fake.queries if path == EVENTS]
        return [(q["startDateTime"], q["endDateTime"]) for q in queries if "startDateTime" in q]

    async def snapshot(self, **settings: Any) -> Snapshot:
        found = Snapshot()
        async with self.connector(**settings) as connector:
            async for row in connector.snapshot_permissions():
                found.add(row)
        return found


@dataclass
class Snapshot:
    """What came out of a snapshot."""

    rows: list[PermissionSnapshot] = field(default_factory=list)
    gaps: list[SnapshotGap] = field(default_factory=list)
    scopes: list[str] = field(default_factory=list)

    def add(self, row: Any) -> None:
        if isinstance(row, SnapshotGap):
            self.gaps.append(row)
        elif isinstance(row, SnapshotScope):
            self.scopes.append(row.scope)
        else:
            self.rows.append(row)

    @property
    def grants(self) -> set[tuple[str, ...]]:
        return {
            (
                row.principal_ref,
                row.asset_ref,
                row.privilege,
                row.grant_mechanism,
                row.granted_via or "",
            )
            for row in self.rows
        }


@pytest.fixture
def tenant() -> Iterator[Tenant]:
    clock = Clock(NOW)
    fake = FabricFake(World(now=NOW), clock)
    fake.page_events = 3
    with serving(fake.app) as url:
        yield Tenant(fake, clock, url)


def fill(tenant: Tenant, hours: int = 6) -> None:
    """Events in some hours, with ties, on the hour and just before it; some hours are empty."""
    start = (NOW - timedelta(hours=hours + 1)).replace(minute=0, second=0)
    for n in range(hours):
        if n % 3 != 1:
            at = start + timedelta(hours=n)
            tenant.fake.add_events(5, at=at)
            tenant.fake.add_events(2, at=at + timedelta(minutes=59, seconds=59))


# ── Events ───────────────────────────────────────────────────────────────────────────────────


async def test_everything_is_collected_in_order(tenant: Tenant) -> None:
    fill(tenant)
    found = await tenant.collect()
    assert found.ids == tenant.fake.event_ids()
    assert len(found.events) == len(found.ids)
    keys = [(event.occurred_at, event.event_id) for event in found.events]
    assert keys == sorted(keys)
    assert not found.gaps
    assert not found.rejected
    # Up to 24 hours late, says Microsoft: no claim for anything younger.
    assert found.pages[-1].complete_through is not None
    assert found.pages[-1].complete_through <= NOW - timedelta(hours=25)


async def test_windows_are_quoted_closed_and_within_a_day(tenant: Tenant) -> None:
    since = NOW - timedelta(days=2)
    await tenant.collect(since=since)
    windows = tenant.windows()
    assert windows[0][0] == "'2026-11-22T12:30:20Z'"
    assert windows[-1][1] == "'2026-11-24T11:30:19.999Z'"
    for start, end in windows:
        assert start[:11] == end[:11]
        length = datetime.fromisoformat(end[1:-1]) - datetime.fromisoformat(start[1:-1])
        assert length < timedelta(hours=1)
    for (_, end), (start, _) in itertools.pairwise(windows):
        gap = datetime.fromisoformat(start[1:-1]) - datetime.fromisoformat(end[1:-1])
        assert gap == timedelta(milliseconds=1)


@pytest.mark.parametrize("fault", WAITING_FAULTS, ids=lambda fault: fault.name)
@pytest.mark.parametrize("after", [0, 3])
async def test_no_fault_loses_or_repeats_an_event(tenant: Tenant, fault: Fault, after: int) -> None:
    fill(tenant)
    tenant.fake.faults.inject(fault, after=after)
    found = await tenant.collect()
    assert tenant.fake.faults.are_over
    assert found.ids == tenant.fake.event_ids()
    assert not found.gaps
    assert len(found.rejected) == (fault is Fault.MALFORMED_RECORD)
    assert all(isinstance(error, Unavailable) for error in found.errors)
    if fault is Fault.REPEATED_TOKEN:
        assert len(found.errors) == 1
    once: dict[str, RawEvent] = {}
    for event in found.events:
        once.setdefault(event.event_id, event)
    assert len(once) == len(tenant.fake.event_ids())
    principals = [event.principal_ref for event in once.values()]
    assert principals.count("unknown") == (fault is Fault.NULL_ACTOR)


async def test_a_record_that_is_not_understood_is_handed_on_with_its_bytes(tenant: Tenant) -> None:
    fill(tenant)
    tenant.fake.faults.inject(Fault.MALFORMED_RECORD)
    (rejected,) = (await tenant.collect()).rejected
    assert b"yesterday" in rejected.data
    assert rejected.reference is not None


async def test_an_expired_listing_starts_over_and_gives_up_in_the_end(tenant: Tenant) -> None:
    fill(tenant)
    tenant.fake.faults.inject(Fault.PAGE_TOKEN_EXPIRED, times=3)
    async with tenant.connector() as connector:
        found = await tenant.one_pass(connector, Position(SINCE))
        assert [type(error) for error in found.errors] == [Unavailable]
        again = await tenant.one_pass(connector, Position(SINCE, found.cursor))
    assert found.ids | again.ids == tenant.fake.event_ids()


async def test_a_refused_secret_blocks_and_shows_nothing(
    tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tenant)
    caplog.set_level(logging.DEBUG)
    tenant.fake.faults.inject(Fault.CREDENTIAL_REFUSED)
    async with tenant.connector() as connector:
        found = await tenant.one_pass(connector, Position(SINCE))
        assert [type(error) for error in found.errors] == [Denied]
        assert CLIENT_SECRET not in f"{found.errors}{caplog.text}{connector.settings!r}"
        tenant.clock.advance(timedelta(minutes=6))
        again = await tenant.one_pass(connector, Position(SINCE))
    assert again.ids == tenant.fake.event_ids()
    assert CLIENT_SECRET not in caplog.text
    assert "fabric-token-" not in caplog.text


async def test_late_events_are_found_by_looking_back(tenant: Tenant) -> None:
    fill(tenant)
    (soon,) = tenant.fake.add_events(
        1, at=NOW - timedelta(hours=2), visible_at=NOW + timedelta(minutes=30)
    )
    (late,) = tenant.fake.add_events(
        1, at=NOW - timedelta(hours=7), visible_at=NOW + timedelta(hours=3)
    )
    found = await tenant.collect()
    assert found.ids == tenant.fake.event_ids() - {soon, late}
    tenant.clock.advance(timedelta(minutes=40))
    again = await tenant.collect(cursor=found.cursor)
    assert soon in again.ids, "two hours are read again in every pass"
    assert late not in again.ids
    tenant.clock.advance(timedelta(hours=4))
    last = await tenant.collect(cursor=again.cursor)
    assert late in last.ids, "28 hours are read again every four hours"
    complete = found.pages[-1].complete_through
    event = next(event for event in last.events if event.event_id == late)
    assert complete is not None
    assert event.occurred_at > complete, "nothing comes that was said to be complete"


async def test_the_day_is_not_read_again_in_every_pass(tenant: Tenant) -> None:
    found = await tenant.collect(since=NOW - timedelta(hours=30))
    tenant.fake.queries.clear()
    tenant.clock.advance(timedelta(minutes=30))
    await tenant.collect(cursor=found.cursor)
    assert len(tenant.windows()) <= 3


async def test_an_event_a_day_late_is_found_wherever_the_look_back_stands(tenant: Tenant) -> None:
    """Just after one look back is the worst: four hours pass before the next."""
    found = await tenant.collect(since=NOW - timedelta(hours=2))
    late_at = NOW + timedelta(minutes=1)
    (late,) = tenant.fake.add_events(1, at=late_at - timedelta(hours=24), visible_at=late_at)
    while tenant.clock() < late_at + timedelta(hours=4):
        tenant.clock.advance(timedelta(minutes=40))
        found = await tenant.collect(cursor=found.cursor)
        if late in found.ids:
            return
    raise AssertionError("it was not found")


async def test_a_listing_of_empty_pages_without_an_end_is_left(tenant: Tenant) -> None:
    fill(tenant)
    tenant.fake.faults.inject(Fault.EMPTY_PAGE, times=1000)
    async with tenant.connector() as connector:
        found = await tenant.one_pass(connector, Position(SINCE))
    assert [type(error) for error in found.errors] == [Unavailable]
    assert "empty pages" in str(found.errors[0])
    assert len(tenant.fake.requests) < 150


async def test_it_goes_on_from_every_page(tenant: Tenant) -> None:
    fill(tenant)
    whole = await tenant.collect()
    for n, page in enumerate(whole.pages):
        rest = await tenant.collect(cursor=page.cursor)
        before = {event.event_id for one in whole.pages[: n + 1] for event in one.events}
        assert before | rest.ids == tenant.fake.event_ids(), f"page {n}"


async def test_a_day_in_one_window_catches_up_with_fewer_windows(tenant: Tenant) -> None:
    tenant.fake.page_events = 5000
    for n in range(40):
        tenant.fake.add_events(1, at=NOW - timedelta(hours=2 + n))
    since = NOW - timedelta(hours=48)
    found = await tenant.collect(since=since, slice_max="24h")
    assert found.ids == tenant.fake.event_ids()
    assert len(tenant.windows()) == 3  # One for each of the three days touched.


async def test_a_window_with_too_many_events_is_halved(tenant: Tenant) -> None:
    tenant.fake.page_events = 5000
    at = NOW - timedelta(hours=3)
    for n in range(20):
        tenant.fake.add_events(10, at=at + timedelta(minutes=2 * n))
    found = await tenant.collect(since=NOW - timedelta(hours=4), slice_events_max=60)
    assert found.ids == tenant.fake.event_ids()
    assert not found.gaps


async def test_what_the_tenant_no_longer_keeps_is_a_gap(tenant: Tenant) -> None:
    async with tenant.connector() as connector:
        position = Position(NOW - timedelta(days=40), until=NOW - timedelta(days=27, hours=12))
        found = await tenant.one_pass(connector, position)
    assert not found.errors
    (gap,) = found.gaps
    assert gap.scope == "activityevents"
    assert gap.from_at == NOW - timedelta(days=40)
    assert gap.to_at is not None
    assert abs(gap.to_at - (NOW - timedelta(days=28))) < timedelta(hours=1)


async def test_the_edge_of_what_is_kept_is_a_gap_and_no_refusal(tenant: Tenant) -> None:
    slow = timedelta(seconds=90)  # The worker's clock is behind the tenant's.
    context = Context(lambda: tenant.clock() - slow, tenant.sleep)
    async with tenant.connector(context, slice_max="24h") as connector:
        position = Position(NOW - timedelta(days=40), until=NOW - timedelta(days=27))
        found = await tenant.one_pass(connector, position)
    assert not found.errors
    assert [gap.scope for gap in found.gaps] == ["activityevents"] * len(found.gaps)
    assert len(found.gaps) == 2
    assert any("BadRequest" in gap.reason for gap in found.gaps)


async def test_a_tenant_that_keeps_less_is_a_refusal_that_names_the_setting(
    tenant: Tenant,
) -> None:
    async with tenant.connector(retention="30d") as connector:
        found = await tenant.one_pass(connector, Position(NOW - timedelta(days=29)))
    assert [type(error) for error in found.errors] == [Denied]
    assert "`retention`" in str(found.errors[0])


async def test_the_limit_of_requests_delays_and_loses_nothing(tenant: Tenant) -> None:
    tenant.fake.page_events = 5000
    since = NOW - timedelta(days=5)
    for n in range(115):
        tenant.fake.add_events(1, at=since + timedelta(hours=n))
    for _ in range(150):
        tenant.fake.rates["activityevents"].refuse()  # Somebody else reads the log, too.
    # Budget of our own beyond the tenant's: it is the tenant that refuses.
    settings = {"activity_requests_per_hour": 1_000_000, "http": {"retry_budget": "2h"}}
    found = await tenant.collect(since=since, **settings)
    assert tenant.fake.clock() > NOW + timedelta(minutes=20), "it had to wait"
    assert not found.errors
    assert found.ids == tenant.fake.event_ids()


async def test_every_operation_has_the_budget_that_microsoft_gives_it(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets: dict[str, tuple[int, int | None]] = {}

    def note(
        key: tuple[str, ...],
        *,
        requests: int,
        per: timedelta,
        concurrent: int | None,
        share: float,
    ) -> None:
        assert key[:2] == ("fabric", tenant.tenant_id)
        assert (per, share) == (timedelta(hours=1), 0.5)
        budgets[key[2]] = (requests, concurrent)

    monkeypatch.setattr(clients, "shared_budget", note)
    share = {"budget_share": 0.5}
    await tenant.collect(http=share)
    await tenant.snapshot(http=share)
    await tenant.snapshot(http=share, snapshot_source="admin_api")
    assert budgets == {
        "activityevents": (200, None),
        "workspaces/modified": (30, None),
        "workspaces/getInfo": (500, 16),
        "workspaces/scanStatus": (10_000, None),
        "workspaces/scanResult": (500, None),
        "admin/workspaces": (200, None),
        "admin/workspaces/users": (200, None),
        "admin/items": (200, None),
        "admin/items/users": (200, None),
    }


async def test_a_pass_too_early_asks_nothing(tenant: Tenant) -> None:
    fill(tenant)
    found = await tenant.collect(advance_min="10m")
    tenant.fake.requests.clear()
    tenant.clock.advance(timedelta(minutes=9, seconds=59))
    assert not (await tenant.collect(cursor=found.cursor, advance_min="10m")).pages
    assert not tenant.fake.requests
    async with tenant.connector(advance_min="10m") as connector:
        until = Position(SINCE, found.cursor, until=tenant.clock())
        assert (await tenant.one_pass(connector, until)).pages, "a bounded pass is no poll"
    tenant.clock.advance(timedelta(seconds=1))
    assert (await tenant.collect(cursor=found.cursor, advance_min="10m")).pages


async def test_the_bearer_goes_to_no_stranger(tenant: Tenant) -> None:
    fill(tenant)
    asked: list[str] = []

    async def stranger(request: Any) -> JSONResponse:
        asked.append(request.headers.get("authorization", ""))
        return JSONResponse({"activityEventEntities": []})

    app = Starlette(routes=[Route("/{path:path}", stranger)])
    with serving(app) as url:
        tenant.fake.continuation_base = url
        async with tenant.connector() as connector:
            found = await tenant.one_pass(connector, Position(SINCE))
        assert [type(error) for error in found.errors] == [Misconfigured]
        assert asked == []
        host = url.removeprefix("http://")
        async with tenant.connector(continuation_hosts=[host]) as connector:
            found = await tenant.one_pass(connector, Position(SINCE))
        assert not found.errors
        assert asked


async def test_a_silent_tenant_is_warned_of_once_and_is_no_error(
    tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    tenant.fake.add_events(1, at=NOW - timedelta(hours=26))
    async with tenant.connector() as connector:
        position = Position(NOW - timedelta(hours=30))
        found = await tenant.one_pass(connector, position)
        assert not found.errors
        quiet = connector.silence
        assert quiet is not None
        assert quiet.from_at == NOW - timedelta(hours=26)
        assert quiet.to_at == NOW - timedelta(hours=1)
        assert quiet.window_count >= 24
        (text,) = connector.health_warnings()
        assert "no activity event" in text
        await tenant.one_pass(connector, Position(SINCE, found.cursor))
        warnings = [one for one in caplog.records if "no activity event" in one.getMessage()]
        assert len(warnings) == 1
        assert warnings[0].levelno == logging.WARNING
        tenant.fake.add_events(1, at=NOW - timedelta(minutes=50))
        tenant.clock.advance(timedelta(minutes=30))
        await tenant.one_pass(connector, Position(SINCE, found.cursor))
        assert connector.silence is None
        assert connector.health_warnings() == []


async def test_without_the_worker_events_come_as_a_stream(tenant: Tenant) -> None:
    fill(tenant)
    async with tenant.connector() as connector:
        events = [event async for event in connector.stream_audit_events(SINCE)]
    assert {event.event_id for event in events} == tenant.fake.event_ids()


# ── Check ────────────────────────────────────────────────────────────────────────────────────


async def test_check_costs_one_request_of_the_budget(tenant: Tenant) -> None:
    async with tenant.connector() as connector:
        await connector.check()
    assert [path for _, path in tenant.fake.requests if path.startswith("/powerbi")] == [EVENTS]


async def test_check_names_the_tenant_settings(tenant: Tenant) -> None:
    tenant.fake.is_allowed = False
    async with tenant.connector() as connector:
        with pytest.raises(Denied) as caught:
            await connector.check()
    text = str(caught.value)
    assert "PowerBINotAuthorizedException" in text
    assert "Allow service principals to use read-only admin APIs" in text
    assert "admin consent" in text
    assert CLIENT_SECRET not in text


async def test_check_of_the_admin_api_names_its_settings(tenant: Tenant) -> None:
    tenant.fake.is_allowed = False
    settings = Settings.model_validate(tenant.table(snapshot_source="admin_api"))
    own = clients.Clients(settings, Context(tenant.clock, tenant.sleep))
    with pytest.raises(Denied, match="use Fabric APIs"):
        await AdminApi(own, settings).probe()
    await own.close()
    tenant.fake.is_allowed = True
    async with tenant.connector(snapshot_source="admin_api") as connector:
        await connector.check()
    assert ("GET", "/fabric/v1/admin/workspaces") in tenant.fake.requests


async def test_a_closed_connector_can_be_used_again(tenant: Tenant) -> None:
    async with tenant.connector() as connector:
        await connector.check()
        await connector.close()
        await connector.check()


# ── Snapshot through the scanner ─────────────────────────────────────────────────────────────


async def test_the_scanner_tells_every_grant(tenant: Tenant) -> None:
    found = await tenant.snapshot()
    assert found.grants == tenant.fake.grants()
    assert len(found.rows) == len(found.grants), "no row comes twice"
    assert found.scopes == [f"workspace:{one.id}" for one in tenant.fake.workspaces]
    assert not found.gaps
    # The scanner's time of the request, not ours.
    assert {row.snapshot_at for row in found.rows} == {NOW + SCANNER_AHEAD}
    assert tenant.slept == [2.0, 4.0]


async def test_personal_workspaces_may_be_left_out(tenant: Tenant) -> None:
    found = await tenant.snapshot(personal_workspaces=False)
    assert len(found.scopes) == len(tenant.fake.workspaces) - 1


async def test_many_workspaces_are_scanned_in_batches_not_all_at_once() -> None:
    clock = Clock(NOW)
    fake = FabricFake(World(now=NOW), clock, workspace_count=230)
    with serving(fake.app) as url:
        tenant = Tenant(fake, clock, url)
        found = await tenant.snapshot()
        assert found.grants == fake.grants()
        starts = [path for _, path in fake.requests if path.endswith("/getInfo")]
        assert len(starts) == 3
        assert fake.scans_seen_at_once <= 4
        fake.scans_seen_at_once = 0
        found = await tenant.snapshot(workspaces_per_scan=10, scans_concurrent=3)
        assert found.grants == fake.grants()
        assert fake.scans_seen_at_once == 3
        assert len({row.snapshot_at for row in found.rows}) == 1
        assert {row.snapshot_at for row in found.rows} <= {
            scan.created_at + SCANNER_AHEAD for scan in fake.scans.values()
        }


@pytest.mark.parametrize(
    "fault",
    [
        Fault.THROTTLED_SECONDS, Fault.THROTTLED_DATE, Fault.THROTTLED_BARE, Fault.UNAVAILABLE,
        Fault.DROPPED, Fault.HANGING, Fault.TOKEN_EXPIRED, Fault.UNKNOWN_ENUM,
    ],
    ids=lambda fault: fault.name,
)  # fmt: skip
@pytest.mark.parametrize("after", [0, 1, 2, 4])
async def test_the_scanner_goes_on_after_a_fault(tenant: Tenant, fault: Fault, after: int) -> None:
    tenant.fake.faults.inject(fault, after=min(after, 1) if fault is Fault.UNKNOWN_ENUM else after)
    found = await tenant.snapshot()
    assert tenant.fake.faults.are_over
    assert found.grants == tenant.fake.grants()
    assert not found.gaps


async def test_a_failed_scan_is_started_once_more(tenant: Tenant) -> None:
    tenant.fake.scans_to_fail = 1
    found = await tenant.snapshot()
    assert found.grants == tenant.fake.grants()
    assert not found.gaps


async def test_a_scan_that_fails_again_is_a_gap_of_its_workspaces(tenant: Tenant) -> None:
    tenant.fake.scans_to_fail = 2
    found = await tenant.snapshot(workspaces_per_scan=3, scans_concurrent=1)
    lost = [f"workspace:{one.id}" for one in tenant.fake.workspaces[:3]]
    assert [gap.scope for gap in found.gaps] == lost
    assert "ScanInternalError" in found.gaps[0].reason
    assert len(found.scopes) == 4
    there = set[tuple[str, ...]]()
    for workspace in tenant.fake.workspaces[3:]:
        there |= tenant.fake.grants_of(workspace)
    assert found.grants == there


@pytest.mark.parametrize("after", [0, 1])
async def test_a_batch_that_is_refused_is_a_gap(tenant: Tenant, after: int) -> None:
    tenant.fake.faults.inject(Fault.FORBIDDEN_OBJECT, after=after)
    found = await tenant.snapshot(workspaces_per_scan=3, scans_concurrent=1)
    lost = tenant.fake.workspaces[3 * after : 3 * after + 3]
    assert [gap.scope for gap in found.gaps] == [f"workspace:{one.id}" for one in lost]
    assert len(found.scopes) == len(tenant.fake.workspaces) - 3
    assert all("read-only admin APIs" in gap.reason for gap in found.gaps)
    there = set[tuple[str, ...]]()
    for workspace in tenant.fake.workspaces:
        if workspace not in lost:
            there |= tenant.fake.grants_of(workspace)
    assert found.grants == there


async def test_a_workspace_missing_in_the_result_is_a_gap(tenant: Tenant) -> None:
    tenant.fake.faults.inject(Fault.VANISHED_OBJECT, after=2)
    found = await tenant.snapshot()
    assert [gap.scope for gap in found.gaps] == [f"workspace:{tenant.fake.workspaces[2].id}"]
    assert len(found.scopes) == len(tenant.fake.workspaces) - 1


async def test_a_scan_without_an_end_is_a_gap_in_time(tenant: Tenant) -> None:
    tenant.fake.scan_polls = 10**9
    found = await tenant.snapshot(scan_timeout="5m")
    assert len(found.gaps) == len(tenant.fake.workspaces)
    assert "scan_timeout" in found.gaps[0].reason
    assert sum(tenant.slept) < 600
    assert max(tenant.slept) == 30


async def test_a_result_that_is_gone_is_scanned_for_again(tenant: Tenant) -> None:
    async def long(seconds: float) -> None:
        await tenant.sleep(seconds)
        if len(tenant.slept) == 2:
            tenant.clock.advance(timedelta(hours=25))

    async with tenant.connector(Context(tenant.clock, long)) as connector:
        found = Snapshot()
        async for row in connector.snapshot_permissions():
            found.add(row)
    assert found.grants == tenant.fake.grants()
    assert not found.gaps


async def test_workspaces_that_may_not_be_listed_are_a_refusal(tenant: Tenant) -> None:
    tenant.fake.is_allowed = False
    with pytest.raises(Denied, match="read-only admin APIs"):
        await tenant.snapshot()


# ── Snapshot through the Fabric admin API ────────────────────────────────────────────────────


async def test_the_admin_api_tells_every_grant(tenant: Tenant) -> None:
    tenant.fake.page_records = 3
    found = await tenant.snapshot(snapshot_source="admin_api")
    assert found.grants == tenant.fake.grants("admin_api")
    assert len(found.rows) == len(found.grants)
    assert found.scopes == [f"workspace:{one.id}" for one in tenant.fake.workspaces]
    assert not found.gaps
    assert len({row.snapshot_at for row in found.rows}) == 1


async def test_a_forbidden_workspace_is_a_gap(tenant: Tenant) -> None:
    tenant.fake.faults.inject(Fault.FORBIDDEN_OBJECT)
    found = await tenant.snapshot(snapshot_source="admin_api")
    (gap,) = found.gaps
    assert "InsufficientPrivileges" in gap.reason
    assert gap.scope not in found.scopes
    assert len(found.scopes) == len(tenant.fake.workspaces) - 1
    assert found.grants < tenant.fake.grants("admin_api")


async def test_an_item_that_vanished_makes_its_workspace_a_gap(tenant: Tenant) -> None:
    del tenant.fake.workspaces[:5]
    workspace = tenant.fake.workspaces[0]
    # Asked in turn: the users of the workspaces, then of its items.
    tenant.fake.faults.inject(Fault.VANISHED_OBJECT, after=4)
    found = await tenant.snapshot(snapshot_source="admin_api")
    (gap,) = found.gaps
    assert gap.scope == f"workspace:{workspace.id}"
    assert "ItemNotFound" in gap.reason
    assert found.scopes == [f"workspace:{one.id}" for one in tenant.fake.workspaces[1:]]
    missing = tenant.fake.grants("admin_api") - found.grants
    assert len({row[1] for row in missing if row[2] != "alias"}) == 1


@pytest.mark.parametrize(
    ("status", "is_retriable", "gap_count", "asked"),
    [
        (400, True, 0, 2),
        (409, True, 0, 2),
        (500, True, 0, 2),
        (500, False, 1, 1),
        (404, False, 1, 1),
    ],
)
async def test_the_error_says_whether_to_try_again(
    tenant: Tenant, status: int, is_retriable: bool, gap_count: int, asked: int
) -> None:
    del tenant.fake.workspaces[1:]
    body = {"errorCode": "SomethingNew", "message": "m", "isRetriable": is_retriable}
    tenant.fake.error_bodies.append((status, body, "7" if is_retriable else None))
    found = await tenant.snapshot(snapshot_source="admin_api")
    assert len(found.gaps) == gap_count
    assert sum(path.endswith("/users") for _, path in tenant.fake.requests) == asked + (
        len(tenant.fake.workspaces[0].items) if not gap_count else 0
    )
    assert tenant.slept == ([7.0] if is_retriable else [])


async def test_it_does_not_try_for_ever(tenant: Tenant) -> None:
    del tenant.fake.workspaces[1:]
    body = {"errorCode": "Busy", "message": "m", "isRetriable": True}
    tenant.fake.error_bodies += [(409, body, None)] * 3
    found = await tenant.snapshot(snapshot_source="admin_api")
    (gap,) = found.gaps
    assert "Busy" in gap.reason
    assert tenant.slept == [5.0, 5.0]


# ── Groups ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("source", ["scanner", "admin_api"])
async def test_groups_are_expanded_through_graph(tenant: Tenant, source: str) -> None:
    tenant.fake.page_records = 3
    found = await tenant.snapshot(snapshot_source=source, expand_groups=True)
    assert found.grants == tenant.fake.grants(source, are_groups_expanded=True)
    assert not found.gaps
    asked = [path for _, path in tenant.fake.requests if "transitiveMembers" in path]
    pages = sum(
        -(-(len(tenant.fake.people_of(one.id)) + len(one.groups)) // 3)
        for one in tenant.fake.world.groups
    )
    assert 0 < len(asked) <= pages, "a group is read once"


@pytest.mark.parametrize("fault", [Fault.FORBIDDEN_OBJECT, Fault.VANISHED_OBJECT])
async def test_a_group_that_is_not_shown_makes_gaps_where_it_holds_grants(
    tenant: Tenant, fault: Fault
) -> None:
    async with tenant.connector(expand_groups=True) as connector:
        found = Snapshot()
        async for row in connector.snapshot_permissions():
            if not found.rows:
                # Only from here on: the scan itself knows the same faults.
                tenant.fake.faults.inject(fault)
            found.add(row)
    lost = tenant.fake.world.groups[0].id
    assert found.gaps
    assert all(f"group:{lost}" in gap.reason for gap in found.gaps)
    holding = {
        f"workspace:{one.id}"
        for one in tenant.fake.workspaces
        if any(holder.id == lost for holder, _ in one.roles)
        or any(holder.id == lost for item in one.items for holder, _ in item.shares)
    }
    assert {gap.scope for gap in found.gaps} == holding
    assert set(found.scopes).isdisjoint(holding)
    assert found.grants >= tenant.fake.grants()
    if fault is Fault.FORBIDDEN_OBJECT:
        assert "GroupMember.Read.All" in found.gaps[0].reason


async def test_a_group_with_too_many_members_is_a_gap(tenant: Tenant) -> None:
    found = await tenant.snapshot(expand_groups=True, group_members_max=3)
    assert found.gaps
    assert "group_members_max" in found.gaps[0].reason
