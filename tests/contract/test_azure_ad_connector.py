"""The connector against the fake tenant, over real HTTP: all that happened, and nothing twice."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import orjson
import pytest
from fakes.azure_ad import SIGN_IN_TYPES, AzureAdFake
from fakes.kit import Clock, Fault, Rate, serving
from fakes.world import World

from connectors.azure_ad import AzureAdConnector
from verity_sdk import (
    Denied,
    Gap,
    Misconfigured,
    Page,
    PermissionSnapshot,
    Position,
    RejectedRecord,
    SnapshotGap,
    SnapshotScope,
    Unavailable,
)
from verity_sdk.context import Context

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
AUDITS = "/v1.0/auditLogs/directoryAudits"
SIGN_INS = "/v1.0/auditLogs/signIns"
HTTP = {"connect_timeout": "2s", "read_timeout": "2s", "retry_budget": "20s"}


class Unhurried(AzureAdConnector):
    """Its budget is out of the way: the tests' clock does not move by itself."""

    reports_requests: ClassVar[int] = 100_000


@dataclass
class Tenant:
    """A served fake, and connectors that observe it."""

    fake: AzureAdFake
    url: str
    slept: list[float] = field(default_factory=list)
    connectors: list[AzureAdConnector] = field(default_factory=list)

    def connector(self, **settings: Any) -> AzureAdConnector:
        table = self.fake.settings(self.url, **{"http": HTTP, **settings})
        made = Context(self.fake.clock, self.sleep).construct(Unhurried, table)
        self.connectors.append(made)
        return made

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.fake.clock.advance(timedelta(seconds=seconds))

    async def settle(self) -> None:
        self.fake.clock.advance(timedelta(minutes=16))

    def asked(self, path: str) -> int:
        return sum(one == path for _, one in self.fake.requests)


@dataclass
class Collected:
    """What a consumer has after some passes: ids are dropped that came before."""

    since: datetime
    cursor: dict[str, Any] | None = None
    through: datetime | None = None
    order: list[str] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    rejected: list[RejectedRecord] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)

    async def one_pass(
        self, connector: AzureAdConnector, until: datetime | None = None
    ) -> Collected:
        position = Position(self.since, self.cursor, until)
        async with aclosing(connector.fetch_pages(position)) as pages:
            async for page in pages:
                self.take(page)
        return self

    def take(self, page: Page) -> None:
        self.pages.append(page)
        self.cursor = json.loads(json.dumps(page.cursor))
        known = set(self.order)
        for event in page.events:
            if event.event_id not in known:
                known.add(event.event_id)
                self.order.append(event.event_id)
        self.gaps += page.gaps
        self.rejected += page.rejected
        self.through = page.complete_through or self.through

    def copy(self) -> Collected:
        return Collected(self.since, self.cursor, self.through, list(self.order))

    @property
    def ids(self) -> set[str]:
        assert len(self.order) == len(set(self.order))
        return set(self.order)


@dataclass
class Snapshot:
    """What one reading of the permissions gave."""

    grants: list[PermissionSnapshot] = field(default_factory=list)
    gaps: dict[str, str] = field(default_factory=dict)
    scopes: list[str] = field(default_factory=list)

    @property
    def keys(self) -> set[tuple[str, str, str, str, str]]:
        found = [
            (g.principal_ref, g.asset_ref, g.privilege, g.grant_mechanism, g.granted_via or "")
            for g in self.grants
        ]
        assert len(found) == len(set(found)), "a grant came twice"
        return set(found)


async def snapshot(connector: AzureAdConnector) -> Snapshot:
    taken = Snapshot()
    async for item in connector.snapshot_permissions():
        if isinstance(item, SnapshotGap):
            taken.gaps[item.scope] = item.reason
        elif isinstance(item, SnapshotScope):
            taken.scopes.append(item.scope)
        else:
            taken.grants.append(item)
    return taken


@pytest.fixture
def fake() -> AzureAdFake:
    made = AzureAdFake(World(seed=2, now=NOW), Clock(NOW))
    made.is_limited = False
    made.page_records = 7
    made.page_objects = 9
    return made


@pytest.fixture
def url(fake: AzureAdFake) -> Iterator[str]:
    with serving(fake.app) as found:
        yield found


@pytest.fixture
async def tenant(fake: AzureAdFake, url: str) -> AsyncIterator[Tenant]:
    made = Tenant(fake, url)
    yield made
    for connector in made.connectors:
        await connector.close()


def lay(fake: AzureAdFake, streams: Iterable[str] = ("directoryAudits", "interactive")) -> None:
    """Three hours of events; some at whole hours, where slices meet."""
    for number in range(9):
        fake.add_events(10, at=NOW - 3 * HOUR + number * HOUR / 3, streams=streams)


SINCE = NOW - 4 * HOUR


# Events ----------------------------------------------------------------------------------------


async def test_all_events_are_collected(tenant: Tenant) -> None:
    """Exactly those that happened, sorted within a page, with the whole record."""
    lay(tenant.fake)
    await tenant.settle()
    collected = await Collected(SINCE).one_pass(tenant.connector())
    assert collected.ids == tenant.fake.event_ids()
    for page in collected.pages:
        keys = [(one.occurred_at, one.event_id) for one in page.events]
        assert keys == sorted(keys)
        for event in page.events:
            assert event.raw_payload == tenant.fake.record(event.event_id)
            assert event.platform == "azure_ad"
    read_to = tenant.fake.clock() - timedelta(minutes=15)
    assert collected.through == read_to - 2 * HOUR - timedelta(microseconds=1)
    assert not collected.gaps


async def test_every_kind_of_sign_in_is_a_stream_of_its_own(tenant: Tenant) -> None:
    """With one place each in one cursor; what is not asked for does not come."""
    lay(tenant.fake, ("directoryAudits", *SIGN_IN_TYPES))
    await tenant.settle()
    collected = await Collected(SINCE).one_pass(tenant.connector(sign_ins=list(SIGN_IN_TYPES)))
    assert collected.ids == tenant.fake.event_ids()
    assert collected.cursor is not None
    assert len(collected.cursor["streams"]) == 5
    audits = await Collected(SINCE).one_pass(tenant.connector(sign_ins=[]))
    assert audits.ids == tenant.fake.event_ids(["directoryAudits"])


async def test_only_settled_events_are_taken(tenant: Tenant) -> None:
    """A pass ends 15 minutes behind now; a bounded one at its end."""
    tenant.fake.add_events(6, at=NOW - timedelta(minutes=10))
    early = set(tenant.fake.add_events(6, at=NOW - 3 * HOUR))
    connector = tenant.connector()
    assert (await Collected(SINCE).one_pass(connector)).ids == early
    bounded = await Collected(SINCE).one_pass(connector, until=NOW - 3.5 * HOUR)
    assert bounded.ids == set()
    await tenant.settle()
    assert (await bounded.one_pass(connector)).ids == tenant.fake.event_ids()


@pytest.mark.parametrize("late", [timedelta(minutes=20), 100 * timedelta(minutes=1), 20 * HOUR])
async def test_late_events_are_found(tenant: Tenant, late: timedelta) -> None:
    """Up to two hours late in every pass, later ones once a day; each once."""
    connector, collected = tenant.connector(), Collected(SINCE)
    lay(tenant.fake)
    await tenant.settle()
    await collected.one_pass(connector)
    at = tenant.fake.clock()
    late_ids = set(tenant.fake.add_events(4, at=at, visible_at=at + late))
    passed = timedelta(0)
    while passed < late + timedelta(minutes=16):
        tenant.fake.add_events(2, at=tenant.fake.clock())
        tenant.fake.clock.advance(late / 4 + timedelta(minutes=4))
        passed += late / 4 + timedelta(minutes=4)
        await collected.one_pass(connector)
    if late > 2 * HOUR:
        assert not late_ids & collected.ids
        tenant.fake.clock.advance(timedelta(hours=5))
        await collected.one_pass(connector)
    await tenant.settle()
    await collected.one_pass(connector)
    assert collected.ids == tenant.fake.event_ids()


async def test_a_restart_at_any_page_goes_on(tenant: Tenant) -> None:
    """With a new connector, from the cursor as it is stored."""
    lay(tenant.fake)
    await tenant.settle()
    whole, boundaries = Collected(SINCE), []
    async with aclosing(tenant.connector().fetch_pages(Position(SINCE))) as pages:
        async for page in pages:
            whole.take(page)
            boundaries.append(whole.copy())
    assert len(boundaries) >= 6
    tenant.fake.add_events(4, at=tenant.fake.clock())
    await tenant.settle()
    for boundary in boundaries:
        assert (await boundary.one_pass(tenant.connector())).ids == tenant.fake.event_ids()


@pytest.mark.parametrize(
    ("fault", "times", "after"),
    [
        (Fault.THROTTLED_SECONDS, 2, 3),
        (Fault.THROTTLED_DATE, 2, 3),
        (Fault.THROTTLED_BARE, 2, 3),
        (Fault.UNAVAILABLE, 2, 3),
        (Fault.DROPPED, 2, 3),
        (Fault.TOKEN_EXPIRED, 1, 3),
        (Fault.EMPTY_PAGE, 3, 1),
        (Fault.PAGE_TOKEN_EXPIRED, 3, 1),
        (Fault.REPEATED_EVENT, 3, 0),
        (Fault.UNKNOWN_ENUM, 3, 1),
        (Fault.NULL_ACTOR, 3, 0),
        (Fault.MALFORMED_RECORD, 3, 1),
    ],
)
async def test_a_fault_on_the_way_loses_nothing(
    tenant: Tenant, fault: Fault, times: int, after: int
) -> None:
    """It is sat out within the pass."""
    lay(tenant.fake)
    await tenant.settle()
    tenant.fake.faults.inject(fault, times=times, after=after)
    collected = await Collected(SINCE).one_pass(tenant.connector())
    assert tenant.fake.faults.are_over
    assert collected.ids == tenant.fake.event_ids()
    expected_rejected = times if fault is Fault.MALFORMED_RECORD else 0
    # A slice that another one begins with is read again, and so is its broken record.
    assert len({record.data for record in collected.rejected}) >= min(1, expected_rejected)
    assert len(collected.rejected) == expected_rejected
    for record in collected.rejected:
        assert "id" not in orjson.loads(record.data)


@pytest.mark.parametrize(
    "fault", [Fault.NOT_JSON, Fault.REPEATED_TOKEN, Fault.HANGING, Fault.PAGE_TOKEN_EXPIRED]
)
async def test_a_fault_that_ends_the_pass_loses_nothing(tenant: Tenant, fault: Fault) -> None:
    """It is Unavailable; what was yielded stands, and the next pass has the rest."""
    lay(tenant.fake)
    await tenant.settle()
    short = {"connect_timeout": "1s", "read_timeout": "0.2s", "retry_budget": "0.2s"}
    connector, collected = tenant.connector(http=short), Collected(SINCE)
    times = 6 if fault is Fault.PAGE_TOKEN_EXPIRED else 1
    tenant.fake.faults.inject(fault, times=times, after=2)
    if fault is Fault.PAGE_TOKEN_EXPIRED:
        tenant.fake.faults.clear()
        tenant.fake.faults.inject(fault, times=6)
    with pytest.raises(Unavailable):
        await collected.one_pass(connector)
    assert tenant.fake.faults.are_over
    await collected.one_pass(connector)
    assert collected.ids == tenant.fake.event_ids()


async def test_one_stream_that_fails_does_not_hold_up_the_others(tenant: Tenant) -> None:
    """Audits are all there although each page of sign-ins has lost its token."""
    lay(tenant.fake)
    await tenant.settle()
    connector, collected = tenant.connector(sign_ins=["non_interactive"]), Collected(SINCE)
    tenant.fake.add_events(20, at=SINCE, streams=["non_interactive"])
    refuse_beta(tenant.fake)
    with pytest.raises(Unavailable):
        await collected.one_pass(connector)
    assert collected.ids == tenant.fake.event_ids(["directoryAudits"])


def refuse_beta(fake: AzureAdFake) -> None:
    """Page tokens of /beta no longer work."""
    state = fake.state

    def refusing(token: str, path: str, *others: Any) -> Any:
        return state("none" if path.startswith("/beta/auditLogs") else token, path, *others)

    fake.state = refusing


async def test_an_order_that_is_refused_is_left_out(tenant: Tenant) -> None:
    """Slices are sorted here; it is not asked for again."""
    lay(tenant.fake)
    await tenant.settle()
    tenant.fake.is_order_refused = True
    collected = await Collected(SINCE).one_pass(tenant.connector(sign_ins=[]))
    assert collected.ids == tenant.fake.event_ids(["directoryAudits"])
    assert tenant.fake.option_counts["$orderby"] == 1
    for page in collected.pages:
        keys = [(one.occurred_at, one.event_id) for one in page.events]
        assert keys == sorted(keys)


async def test_a_slice_with_too_many_pages_is_halved(tenant: Tenant) -> None:
    """Until it fits; the next pass begins with the shorter slices."""
    fake = tenant.fake
    for minute in range(60):
        fake.add_events(
            4, at=NOW - 2 * HOUR + timedelta(minutes=minute), streams=["directoryAudits"]
        )
    await tenant.settle()
    connector = tenant.connector(slice_pages=10, sign_ins=[])
    collected = await Collected(SINCE).one_pass(connector)
    assert collected.ids == fake.event_ids()
    assert fake.pages_in_a_row == 11  # The one too many is seen, not read on.
    fake.pages_in_a_row = 0
    fake.requests.clear()
    again = await Collected(SINCE).one_pass(connector)
    assert again.ids == fake.event_ids()
    assert fake.pages_in_a_row <= 10


async def test_the_requests_stay_within_the_budget() -> None:
    """The fake answers 429 to what exceeds it, and never has to; on the machine's clock."""
    fake = AzureAdFake(World(seed=7), Clock())
    period = timedelta(seconds=0.5)
    fake.rate = Rate(5, period, fake.clock)
    fake.add_events(40, at=fake.clock() - 3 * HOUR)
    fake.page_records = 7

    class Budgeted(AzureAdConnector):
        reports_per: ClassVar[timedelta] = period

    with serving(fake.app) as url:
        connector = Budgeted(fake.settings(url), None, None)
        try:
            collected = await Collected(fake.clock() - 4 * HOUR).one_pass(connector)
        finally:
            await connector.close()
    assert collected.ids == fake.event_ids()
    assert fake.refused_count == 0
    assert len(fake.requests) > 12


async def test_events_past_the_retention_are_a_gap(tenant: Tenant) -> None:
    """What can't be read any more is said, not asked for."""
    tenant.fake.add_events(4, at=NOW - timedelta(days=12))
    tenant.fake.add_events(4, at=NOW - timedelta(days=2))
    tenant.fake.retention = timedelta(days=7)
    connector = tenant.connector(retention="7d", sign_ins=[])
    collected = await Collected(NOW - timedelta(days=20)).one_pass(connector)
    assert len(collected.ids) == 2
    (gap,) = collected.gaps
    assert gap.scope == "directoryAudits"
    assert gap.from_at == NOW - timedelta(days=20)
    assert gap.to_at is not None
    assert abs(gap.to_at - (NOW - timedelta(days=7))) < timedelta(minutes=5)


async def test_a_retention_that_is_set_too_long_is_a_gap_too(
    tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    """Where Graph refuses the time, each slice says so, and one warning names the setting."""
    tenant.fake.add_events(4, at=NOW - timedelta(days=2))
    tenant.fake.retention = timedelta(days=8)
    connector = tenant.connector(retention="9d", sign_ins=[])
    collected = await Collected(NOW - timedelta(days=20)).one_pass(connector)
    assert len(collected.ids) == 2
    assert len(collected.gaps) in (25, 26)  # The first is of the nine days.
    assert max(gap.to_at for gap in collected.gaps if gap.to_at) <= NOW - timedelta(
        days=7, hours=23
    )
    assert caplog.text.count("set `retention`") == 1


async def test_a_recent_query_that_is_refused_is_an_error(tenant: Tenant) -> None:
    """It can't be the retention, so it is no gap; it is asked for once."""
    tenant.fake.retention = HOUR * 1.5
    collected = Collected(SINCE)
    with pytest.raises(Denied, match="the query is refused"):
        await collected.one_pass(tenant.connector())
    assert not collected.gaps
    assert tenant.asked(SIGN_INS) == 2  # The first asks whether there is a licence.


# Licences --------------------------------------------------------------------------------------


async def test_without_a_licence_the_audits_go_on(
    tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning; the gap reaches from where the stream stands to where the audits are."""
    lay(tenant.fake)
    tenant.fake.licence = "free"
    await tenant.settle()
    connector, collected = tenant.connector(), Collected(SINCE)
    await collected.one_pass(connector)
    assert collected.ids == tenant.fake.event_ids(["directoryAudits"])
    end = tenant.fake.clock() - timedelta(minutes=15)
    assert [(gap.scope, gap.from_at, gap.to_at) for gap in collected.gaps] == [
        ("signIns", SINCE, end)
    ]
    for _ in range(3):
        tenant.fake.clock.advance(timedelta(minutes=30))
        await collected.one_pass(connector)
    assert len(collected.gaps) == 1
    assert tenant.asked(SIGN_INS) == 1
    # Between the records nothing is called complete that no record covers.
    assert collected.through == end - 2 * HOUR
    tenant.fake.clock.advance(timedelta(minutes=31))
    await collected.one_pass(connector)
    assert [(gap.from_at, gap.to_at) for gap in collected.gaps] == [
        (SINCE, end),
        (end, tenant.fake.clock() - timedelta(minutes=15)),
    ]
    assert tenant.asked(SIGN_INS) == 2
    assert caplog.text.count("sign_ins = []") == 1


async def test_a_new_instance_records_the_gap_from_where_the_old_one_stood(
    tenant: Tenant,
) -> None:
    """Gaps join without a hole, whoever records them."""
    tenant.fake.licence = "free"
    collected = Collected(SINCE)
    for _ in range(3):
        tenant.fake.clock.advance(timedelta(minutes=50))
        await collected.one_pass(tenant.connector(sign_ins=["interactive", "service_principal"]))
    for scope in ("signIns", "signIns.service_principal"):
        gaps = [gap for gap in collected.gaps if gap.scope == scope]
        assert len(gaps) == 3
        assert gaps[0].from_at == SINCE
        assert [gap.from_at for gap in gaps[1:]] == [gap.to_at for gap in gaps[:-1]]


async def test_a_free_tenant_has_seven_days(tenant: Tenant) -> None:
    """Whatever retention is set: older audits are a gap, not quiet days."""
    tenant.fake.licence = "free"
    since = NOW - timedelta(days=10)
    collected = await Collected(since).one_pass(tenant.connector())
    gaps = {gap.scope: gap for gap in collected.gaps}
    assert gaps["directoryAudits"].from_at == since
    to_at = gaps["directoryAudits"].to_at
    assert to_at is not None
    assert abs(to_at - (NOW - timedelta(days=7))) < timedelta(minutes=5)


async def test_a_licence_that_is_bought_is_noticed(tenant: Tenant) -> None:
    """Sign-ins come from where the recorded gap ends."""
    tenant.fake.licence = "free"
    connector, collected = tenant.connector(), Collected(SINCE)
    await collected.one_pass(connector)
    tenant.fake.licence = "P1"
    tenant.fake.clock.advance(3 * HOUR)
    ids = set(tenant.fake.add_events(6, at=tenant.fake.clock() - HOUR))
    await collected.one_pass(connector)
    assert collected.ids == ids
    assert len(collected.gaps) == 1


async def test_a_licence_that_ends_is_noticed(tenant: Tenant) -> None:
    """The pass that meets it goes on with the others; the next records the gap."""
    lay(tenant.fake)
    connector, collected = tenant.connector(), Collected(SINCE)
    await tenant.settle()
    await collected.one_pass(connector)
    tenant.fake.licence = "free"
    stood = tenant.fake.clock() - timedelta(minutes=15)
    tenant.fake.add_events(6, at=tenant.fake.clock(), streams=["directoryAudits"])
    tenant.fake.clock.advance(HOUR)
    await collected.one_pass(connector)
    assert collected.ids == tenant.fake.event_ids()
    assert not collected.gaps
    await collected.one_pass(connector)
    assert [(gap.scope, gap.from_at) for gap in collected.gaps] == [("signIns", stood)]


# Permissions -----------------------------------------------------------------------------------

PARTS = {
    "groups",
    "roleDefinitions",
    "roleAssignments",
    "roleAssignmentScheduleInstances",
    "roleEligibilityScheduleInstances",
    "servicePrincipals",
    "applications",
    "oauth2PermissionGrants",
    "users",
}


async def test_a_snapshot_is_the_truth(tenant: Tenant) -> None:
    """Every grant, once, of one time, with its record; every part read."""
    taken = await snapshot(tenant.connector())
    assert taken.keys == tenant.fake.grants()
    assert taken.gaps == {}
    assert set(taken.scopes) == PARTS
    assert len(taken.scopes) == len(PARTS)
    assert {one.snapshot_at for one in taken.grants} == {NOW}
    assert all(one.raw_payload for one in taken.grants)
    eligible = [one for one in taken.grants if one.raw_payload.get("eligible")]
    assert eligible
    assert all("roleEligibility" in (one.granted_via or "") for one in eligible)
    aliases = [one for one in taken.grants if one.privilege == "alias"]
    assert any(one.raw_payload["employeeId"] for one in aliases)


async def test_without_pim_nothing_of_it_is_asked(tenant: Tenant) -> None:
    """A tenant without P2 has complete snapshots, once its settings say so."""
    tenant.fake.licence = "P1"
    partial = await snapshot(tenant.connector())
    instances = {"roleAssignmentScheduleInstances", "roleEligibilityScheduleInstances"}
    assert partial.gaps.keys() == instances
    assert "AadPremiumLicenseRequired" in partial.gaps["roleEligibilityScheduleInstances"]
    expected = {one for one in tenant.fake.grants() if "Schedule" not in one[4]}
    expected = {one for one in expected if "roleEligibility" not in one[4]}
    assert partial.keys == expected
    whole = await snapshot(tenant.connector(pim=False))
    assert whole.gaps == {}
    assert whole.keys == expected


async def test_members_from_v1_are_said_to_be_incomplete(tenant: Tenant) -> None:
    """It leaves service principals out, so nobody may read a revocation out of it."""
    taken = await snapshot(tenant.connector(group_members_from="v1.0"))
    assert taken.gaps.keys() == {"groups/servicePrincipals"}
    missing = {one for one in tenant.fake.grants() if one[0].startswith("sp:")} - taken.keys
    assert missing
    assert tenant.fake.grants() - taken.keys == missing


@pytest.mark.parametrize("fault", [Fault.FORBIDDEN_OBJECT, Fault.VANISHED_OBJECT])
@pytest.mark.parametrize("after", [0, 5, 11, 19])
async def test_an_object_that_is_lost_is_named(tenant: Tenant, fault: Fault, after: int) -> None:
    """And no other; what reaches through a lost group is not called complete."""
    tenant.fake.faults.inject(fault, after=after)
    taken = await snapshot(tenant.connector())
    assert tenant.fake.faults.are_over
    lost = [scope for scope in taken.gaps if ":" in scope]
    assert len(lost) == 1
    assert taken.keys <= tenant.fake.grants()
    missing = tenant.fake.grants() - taken.keys
    kind, _, object_id = lost[0].partition(":")
    own = [one for one in missing if object_id in one[1]]
    through = [one for one in missing if one not in own]
    parts = {
        "roleAssignment": "roleAssignments",
        "roleAssignmentSchedule": "roleAssignmentScheduleInstances",
        "roleEligibility": "roleEligibilityScheduleInstances",
        "appRoleAssignment": "servicePrincipals",
    }
    if kind == "group":
        for one in through:
            part = parts[one[4].rpartition(">")[2].partition(":")[0]]
            assert part in taken.gaps
            assert part not in taken.scopes
    elif kind == "servicePrincipal":
        assert not through
    assert not taken.gaps.keys() & set(taken.scopes)


async def test_a_collection_that_is_denied_is_named(tenant: Tenant) -> None:
    """With its permission; the others are read."""
    tenant.fake.permissions = {"RoleManagement.Read.Directory", "GroupMember.Read.All"}
    taken = await snapshot(tenant.connector())
    denied = {"servicePrincipals", "applications", "oauth2PermissionGrants", "users"}
    assert taken.gaps.keys() == denied
    assert set(taken.scopes) == PARTS - denied
    assert "Application.Read.All" in taken.gaps["applications"]
    assert "User.Read.All" in taken.gaps["users"]
    assert taken.keys <= tenant.fake.grants()


async def test_many_losses_are_few_gaps(tenant: Tenant) -> None:
    """A permission that is missing for every object does not fill the end record."""
    tenant.fake.add_groups(40)
    tenant.fake.faults.inject(Fault.FORBIDDEN_OBJECT, times=96)
    taken = await snapshot(tenant.connector())
    groups = [scope for scope in taken.gaps if scope.startswith("group:")]
    assert len(groups) <= 20
    assert "96 parts" in taken.gaps["groups"]


@pytest.mark.parametrize(
    ("fault", "times"),
    [
        (Fault.PAGE_TOKEN_EXPIRED, 5),
        (Fault.EMPTY_PAGE, 4),
        (Fault.THROTTLED_SECONDS, 4),
        (Fault.DROPPED, 4),
        (Fault.TOKEN_EXPIRED, 1),
    ],
)
async def test_a_snapshot_survives(tenant: Tenant, fault: Fault, times: int) -> None:
    """What is asked again is not doubled, nor mixed of two enumerations."""
    tenant.fake.faults.inject(fault, times=times, after=2)
    taken = await snapshot(tenant.connector())
    assert tenant.fake.faults.are_over
    assert taken.keys == tenant.fake.grants()
    assert taken.gaps == {}


async def test_a_listing_is_begun_again_without_what_it_had(tenant: Tenant) -> None:
    """A grant that is gone when the enumeration restarts is not there."""
    fake = tenant.fake
    fake.page_objects = 1
    state, gone = fake.state, fake.consents[0]

    def expiring(token: str, path: str, *others: Any) -> Any:
        if path.endswith("/oauth2PermissionGrants") and gone in fake.consents:
            fake.consents.remove(gone)
            token = "expired"
        return state(token, path, *others)

    fake.state = expiring
    taken = await snapshot(tenant.connector())
    assert gone not in fake.consents
    assert taken.keys == fake.grants()


async def test_an_object_that_is_listed_twice_is_there_once(tenant: Tenant) -> None:
    """On a page and over pages."""
    page = tenant.fake.page

    def repeating(request: Any, state: Any, *others: Any, **options: Any) -> Any:
        body = page(request, state, *others, **options)
        return {**body, "value": [*state.items[:1], *body["value"], *body["value"]]}

    tenant.fake.page = repeating
    taken = await snapshot(tenant.connector())
    assert taken.keys == tenant.fake.grants()
    assert taken.gaps == {}


async def test_an_outage_ends_the_snapshot(tenant: Tenant) -> None:
    """Not part by part, each with its own wait."""
    short = {"connect_timeout": "1s", "read_timeout": "1s", "retry_budget": "1s"}
    tenant.fake.faults.inject(Fault.UNAVAILABLE, times=1000)
    with pytest.raises(Unavailable):
        await snapshot(tenant.connector(http=short))
    assert len(tenant.fake.requests) < 30


async def test_at_most_eight_requests_at_once(tenant: Tenant) -> None:
    """Counted where they arrive."""
    running, most = 0, 0
    tenant.fake.add_groups(40)
    inner = tenant.fake.app

    async def counting(scope: Any, receive: Any, send: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        try:
            await inner(scope, receive, send)
        finally:
            running -= 1

    with serving(counting) as url:
        other = Tenant(tenant.fake, url)
        taken = await snapshot(other.connector())
        await other.connectors[0].close()
    assert taken.keys == tenant.fake.grants()
    assert 2 <= most <= 8


# What goes wrong -------------------------------------------------------------------------------


async def test_check_is_silent_where_all_is_well(tenant: Tenant) -> None:
    """It reads next to nothing."""
    await tenant.connector(sign_ins=list(SIGN_IN_TYPES)).check()
    assert len(tenant.fake.requests) < 24


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (
            lambda fake: setattr(fake, "secret_state", "wrong"),
            ["client secret is wrong", "AADSTS7000215"],
        ),
        (
            lambda fake: setattr(fake, "secret_state", "expired"),
            ["secret has expired", "AADSTS7000222"],
        ),
        (lambda fake: setattr(fake, "client_id", "other"), ["client id", "AADSTS700016"]),
        (lambda fake: setattr(fake, "tenant_id", "other"), ["no such tenant", "AADSTS90002"]),
        (
            lambda fake: fake.permissions.remove("AuditLog.Read.All"),
            ["directoryAudits", "signIns", "AuditLog.Read.All"],
        ),
        (
            lambda fake: fake.permissions.difference_update(
                {"Directory.Read.All", "RoleManagement.Read.Directory"}
            ),
            ["roleAssignments", "RoleManagement.Read.Directory", "oauth2PermissionGrants"],
        ),
        (
            lambda fake: setattr(fake, "licence", "free"),
            ["signIns", "licence", "roleEligibilityScheduleInstances"],
        ),
    ],
)
async def test_check_says_what_is_missing(tenant: Tenant, break_it: Any, named: list[str]) -> None:
    """All at once, in Microsoft's names."""
    connector = tenant.connector()
    break_it(tenant.fake)
    with pytest.raises(Denied) as raised:
        await connector.check()
    for name in named:
        assert name in str(raised.value)


async def test_a_missing_permission_is_denied_by_name(tenant: Tenant) -> None:
    """In a pass, too."""
    tenant.fake.permissions.remove("AuditLog.Read.All")
    with pytest.raises(Denied, match=r"AuditLog\.Read\.All"):
        await Collected(SINCE).one_pass(tenant.connector())


async def test_a_refused_secret_is_denied(tenant: Tenant) -> None:
    """In a pass, a snapshot and a check; and it goes on once it is accepted."""
    lay(tenant.fake)
    await tenant.settle()
    tenant.fake.faults.inject(Fault.CREDENTIAL_REFUSED, times=1000)
    with pytest.raises(Denied):
        await Collected(SINCE).one_pass(tenant.connector())
    with pytest.raises(Denied):
        await snapshot(tenant.connector())
    with pytest.raises(Denied):
        await tenant.connector().check()
    tenant.fake.faults.clear()
    collected = await Collected(SINCE).one_pass(tenant.connector())
    assert collected.ids == tenant.fake.event_ids()


async def test_a_cursor_of_another_version_is_refused(tenant: Tenant) -> None:
    """Also where a missing licence moves it first."""
    for licence in ("P2", "free"):
        tenant.fake.licence = licence
        for cursor in ({"v": 99, "streams": {}}, {"v": 1}, {"v": 1, "streams": {"signIns": 7}}):
            collected = Collected(SINCE, cursor=cursor)
            with pytest.raises(Misconfigured):
                await collected.one_pass(tenant.connector())
            assert not collected.pages


async def test_links_to_strangers_are_not_followed(tenant: Tenant) -> None:
    """The bearer goes to Graph only."""
    lay(tenant.fake)
    await tenant.settle()
    page = tenant.fake.page

    def led_astray(*args: Any, **options: Any) -> Any:
        body = page(*args, **options)
        if "@odata.nextLink" in body:
            body["@odata.nextLink"] = "https://stranger.example/next"
        return body

    tenant.fake.page = led_astray
    with pytest.raises(Misconfigured, match=r"stranger\.example"):
        await Collected(SINCE).one_pass(tenant.connector())
    # In a snapshot it is a part that is lost, of a collection as of a single object.
    tenant.fake.page_objects = 2
    taken = await snapshot(tenant.connector())
    assert "stranger.example" in taken.gaps["users"]
    assert "groups" in taken.gaps
    tenant.fake.page_objects = 9
    taken = await snapshot(tenant.connector())
    assert taken.gaps.keys() >= {f"group:{tenant.fake.groups[0]['id']}", "users"}
    assert taken.grants


async def test_no_secret_is_shown(tenant: Tenant, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the secret nor a bearer: not in an error, a log line or a repr."""
    caplog.set_level(logging.DEBUG)
    lay(tenant.fake)
    await tenant.settle()
    texts = []
    for fault in (Fault.CREDENTIAL_REFUSED, Fault.NOT_JSON, Fault.UNAVAILABLE, Fault.TOKEN_EXPIRED):
        tenant.fake.faults.inject(fault, times=1000)
        short = {"connect_timeout": "1s", "read_timeout": "1s", "retry_budget": "1s"}
        connector = tenant.connector(http=short)
        for work in (connector.check(), Collected(SINCE).one_pass(connector), snapshot(connector)):
            try:
                await work
            except (Denied, Unavailable, Misconfigured) as error:
                texts.append(f"{error!r} {error} {error.__cause__!r} {error.__context__!r}")
        texts.append(repr(connector) + repr(connector.settings) + repr(vars(connector)))
        tenant.fake.faults.clear()
    assert len(texts) >= 8
    shown = "\n".join([*texts, caplog.text])
    for secret in (tenant.fake.client_secret, *tenant.fake.bearers):
        assert secret not in shown


async def test_azure_identity_may_sign_in(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its token is used as any other, and it is closed with the connector."""
    lay(tenant.fake)
    await tenant.settle()
    closed = []

    class Token:
        expires_on = int(NOW.timestamp()) + 86400

        def __init__(self, token: str) -> None:
            self.token = token

    class Credential:
        async def get_token(self, *scopes: str, **_: Any) -> Token:
            assert scopes == (f"{tenant.url}/.default",)
            bearer = f"managed-{len(tenant.fake.bearers)}"
            allowed = frozenset(tenant.fake.permissions)
            tenant.fake.bearers[bearer] = (NOW + 5 * HOUR, allowed)
            return Token(bearer)

        async def close(self) -> None:
            closed.append(True)

    def found(**options: Any) -> Credential:
        assert options == {
            "authority": tenant.url,
            "managed_identity_client_id": tenant.fake.client_id,
        }
        return Credential()

    monkeypatch.setattr("connectors._azure.sign_in.azure_default_credential", found)
    settings = tenant.fake.settings(tenant.url, credential="azure")
    del settings["client_secret"]
    connector = Context(tenant.fake.clock).construct(Unhurried, settings)
    collected = await Collected(SINCE).one_pass(connector)
    await connector.close()
    assert collected.ids == tenant.fake.event_ids()
    assert closed == [True]
    assert not any(path.endswith("/token") for _, path in tenant.fake.requests)
