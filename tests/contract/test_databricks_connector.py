"""The connector against the fake workspace, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fakes.databricks import (
    AZURE_CLIENT_ID,
    AZURE_CLIENT_SECRET,
    AZURE_TENANT,
    CLIENT_ID,
    CLIENT_SECRET,
    METASTORE_ID,
    PERSONAL_TOKEN,
    WAREHOUSE_ID,
    WORKSPACE_ID,
    DatabricksFake,
    Stage,
)
from fakes.kit import Clock, Fault
from fakes.world import World

from connectors.databricks import DatabricksConnector
from connectors.databricks.settings import PRIVILEGE_VIEWS
from connectors.databricks.warehouse import RESTARTS_MAX
from verity_sdk.connector_base import PermissionSnapshot
from verity_sdk.context import Context
from verity_sdk.errors import Denied, Misconfigured, Unavailable, VerityError
from verity_sdk.http import HttpClient
from verity_sdk.pages import Page, Position, SnapshotGap, SnapshotScope

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SINCE = NOW - timedelta(hours=30)
Make = Callable[..., DatabricksConnector]
Sleep = Callable[[float], Awaitable[None]]
LOGIN = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}


@pytest.fixture(scope="module")
def stage() -> Iterator[tuple[Stage, str, str]]:
    with Stage.served() as found:
        yield found


@pytest.fixture
def fake(stage: tuple[Stage, str, str]) -> DatabricksFake:
    found = DatabricksFake(World(), Clock(NOW))
    found.chunk_rows, found.storage_url = 7, stage[2]
    stage[0].fake = found
    return found


@pytest.fixture
async def make(fake: DatabricksFake, stage: tuple[Stage, str, str]) -> AsyncIterator[Make]:
    """Makes connectors that look at the fake with its clock, and sleep by moving it."""
    made: list[DatabricksConnector] = []

    async def by_the_clock(seconds: float) -> None:
        fake.clock.advance(timedelta(seconds=seconds))
        await asyncio.sleep(0)

    def one(*, sleep: Sleep = by_the_clock, **changes: Any) -> DatabricksConnector:
        config = {
            "connector_id": "dbx",
            "host": stage[1],
            "warehouse_id": WAREHOUSE_ID,
            "storage_hosts": [stage[2].removeprefix("http://")],
            "http": {"read_timeout": 2, "connect_timeout": 2},
            **({} if "token" in changes or "azure_client_id" in changes else LOGIN),
            **changes,
        }
        connector = Context(fake.clock, sleep).construct(DatabricksConnector, config)
        made.append(connector)
        return connector

    yield one
    for connector in made:
        await connector.close()


def history(fake: DatabricksFake) -> set[str]:
    """Events of a day and more, with ties on midnight and on the hour."""
    for hours in (29, 26, 12.5, 12, 11, 7, 2):
        fake.add_events(9, at=NOW - timedelta(hours=hours))
    fake.add_events(4, at=datetime(2026, 11, 24, tzinfo=UTC) - timedelta(milliseconds=7))
    return fake.event_ids()


async def pages_of(connector: DatabricksConnector, position: Position | None = None) -> list[Page]:
    return [page async for page in connector.fetch_pages(position or Position(SINCE))]


def ids_of(pages: list[Page]) -> list[str]:
    return [event.event_id for page in pages for event in page.events]


@pytest.mark.parametrize("disposition", ["inline", "external_links"])
async def test_everything_is_collected_once_and_in_order(
    fake: DatabricksFake, make: Make, disposition: str
) -> None:
    truth = history(fake)
    pages = await pages_of(make(disposition=disposition))
    assert Counter(ids_of(pages)) == Counter(truth)
    times = [event.occurred_at for page in pages for event in page.events]
    assert times == sorted(times)
    assert not [page for page in pages if page.rejected or page.gaps]
    assert pages[-1].complete_through == NOW - timedelta(minutes=30, hours=4, microseconds=1)
    assert fake.submitted[0]["disposition"] == disposition.upper()
    assert fake.cancelled == []


async def test_links_are_fetched_without_the_workspace_s_login(
    fake: DatabricksFake, make: Make
) -> None:
    truth = history(fake)
    pages = await pages_of(make(disposition="external_links"))
    assert set(ids_of(pages)) == truth
    assert fake.requests.count(("GET", "/results")) > 1
    assert fake.storage_credentials_seen == []


@pytest.mark.parametrize("wait", ["0s", "5s"])
@pytest.mark.parametrize("polls", [0, 1, 30])
async def test_a_statement_may_be_pending_for_minutes(
    fake: DatabricksFake, make: Make, polls: int, wait: str
) -> None:
    truth = history(fake)
    fake.polls_pending = polls
    pages = await pages_of(make(wait_timeout=wait, http={"read_timeout": 10}, slice_max="7d"))
    assert set(ids_of(pages)) == truth
    assert fake.cancelled == []
    waited = fake.clock() - NOW
    assert waited < timedelta(minutes=6)
    assert (waited > timedelta(minutes=3)) == (polls == 30)


async def test_a_statement_that_takes_too_long_is_cancelled(
    fake: DatabricksFake, make: Make
) -> None:
    history(fake)
    fake.polls_pending = 1000
    with pytest.raises(Unavailable, match=r"PENDING|RUNNING"):
        await pages_of(make(statement_timeout="5m", slice_max="7d"))
    assert len(fake.cancelled) == len(fake.submitted) == 1
    assert timedelta(minutes=5) <= fake.clock() - NOW < timedelta(minutes=6)


async def test_a_pass_that_is_cancelled_cancels_its_statement(
    fake: DatabricksFake, make: Make
) -> None:
    history(fake)
    fake.polls_pending = 10**9
    polled = asyncio.Event()

    async def sleep(_: float) -> None:
        polled.set()
        await asyncio.sleep(3600)

    task = asyncio.create_task(pages_of(make(slice_max="7d", sleep=sleep)))
    await polled.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(fake.cancelled) == len(fake.submitted) == 1


async def test_a_cancellation_that_fails_hides_nothing(fake: DatabricksFake, make: Make) -> None:
    history(fake)
    fake.polls_pending = 1000

    async def sleep(seconds: float) -> None:
        fake.clock.advance(timedelta(seconds=seconds))
        if fake.clock() - NOW > timedelta(minutes=2):
            fake.polls_pending = 0
            fake.faults.inject(Fault.UNAVAILABLE, times=1, after=1)

    short = {"statement_timeout": "2m", "http": {"retry_budget": "1s"}}
    with pytest.raises(Unavailable, match="does not start"):
        await pages_of(make(slice_max="7d", sleep=sleep, **short))
    assert fake.cancelled == []


@pytest.mark.parametrize(
    "limit",
    [
        {"inline_bytes_max": 9000},
        {"external_bytes_max": 9000, "disposition": "external_links"},
        {"rows_max": 10},
    ],
)
async def test_a_window_that_is_too_large_is_halved(
    fake: DatabricksFake, make: Make, limit: dict[str, Any]
) -> None:
    truth = history(fake)
    settings = {}
    for name, value in limit.items():
        if hasattr(fake, name):
            setattr(fake, name, value)
        else:
            settings[name] = value
    pages = await pages_of(make(**settings))
    assert Counter(ids_of(pages)) == Counter(truth)
    assert len(fake.submitted) > 5


FAULTS = [
    Fault.THROTTLED_SECONDS,
    Fault.THROTTLED_DATE,
    Fault.THROTTLED_BARE,
    Fault.UNAVAILABLE,
    Fault.DROPPED,
    Fault.NOT_JSON,
    Fault.TOKEN_EXPIRED,
    Fault.REPEATED_TOKEN,
    Fault.PAGE_TOKEN_EXPIRED,
    Fault.REPEATED_EVENT,
    Fault.UNKNOWN_ENUM,
    Fault.NULL_ACTOR,
    Fault.MALFORMED_RECORD,
]


@pytest.mark.parametrize("disposition", ["inline", "external_links"])
@pytest.mark.parametrize("fault", FAULTS, ids=[one.name for one in FAULTS])
async def test_no_fault_loses_or_adds_an_event(
    fake: DatabricksFake, make: Make, fault: Fault, disposition: str
) -> None:
    truth = history(fake)
    # A token that was just renewed and is refused again is a refusal.
    fake.faults.inject(fault, times=1 if fault is Fault.TOKEN_EXPIRED else 2, after=1)
    connector = make(disposition=disposition, slice_max="4h")
    seen: set[str] = set()
    rejected = []
    position = Position(SINCE)
    for _ in range(10):
        try:
            async for page in connector.fetch_pages(position):
                seen.update(event.event_id for event in page.events)
                rejected += page.rejected
                position = Position(SINCE, json.loads(json.dumps(page.cursor)))
        except Unavailable:
            continue
        break
    else:
        raise AssertionError("it never ended")
    assert fake.faults.are_over
    assert seen == truth
    assert bool(rejected) == (fault is Fault.MALFORMED_RECORD)
    for record in rejected:
        assert json.loads(record.data)[0] == record.reference == "malformed"
    assert fake.storage_credentials_seen == []


async def test_a_source_that_does_not_answer_is_unavailable(
    fake: DatabricksFake, make: Make
) -> None:
    history(fake)
    fake.faults.inject(Fault.HANGING, times=50)
    connector = make(http={"read_timeout": 0.2, "retry_budget": 0.5})
    with pytest.raises(Unavailable):
        await pages_of(connector)


async def test_a_result_that_ends_before_it_is_read_is_asked_for_anew(
    fake: DatabricksFake, make: Make
) -> None:
    truth = history(fake)
    fake.faults.inject(Fault.PAGE_TOKEN_EXPIRED, times=RESTARTS_MAX, after=1)
    pages = await pages_of(make(slice_max="7d"))
    assert Counter(ids_of(pages)) == Counter(truth)
    assert len(fake.submitted) == 1 + RESTARTS_MAX
    fake.faults.inject(Fault.PAGE_TOKEN_EXPIRED, times=RESTARTS_MAX + 1)
    with pytest.raises(Unavailable, match="gone"):
        await pages_of(make(slice_max="7d"))


async def test_a_statement_whose_result_was_closed_is_unavailable(
    fake: DatabricksFake, make: Make
) -> None:
    history(fake)

    async def sleep(seconds: float) -> None:
        fake.clock.advance(timedelta(seconds=seconds))
        for running in fake.statements.values():
            fake.execute(running)
        fake.clock.advance(timedelta(hours=2))

    with pytest.raises(Unavailable, match="CLOSED"):
        await pages_of(make(slice_max="7d", sleep=sleep))


async def test_links_that_expire_are_asked_for_anew(fake: DatabricksFake, make: Make) -> None:
    truth = history(fake)
    connector = make(slice_max="7d", disposition="external_links")
    fake.link_seconds = 20  # less than the margin: no link is ever fresh
    with pytest.raises(Unavailable, match="links"):
        await pages_of(connector)
    fake.link_seconds, fake.links_refused = 900, 2
    before = fake.requests.count(("GET", "/results"))
    assert before == 0
    pages = await pages_of(connector)
    assert Counter(ids_of(pages)) == Counter(truth)
    chunks = -(-len(truth) // fake.chunk_rows)
    assert fake.requests.count(("GET", "/results")) == chunks + 2


async def test_a_link_to_a_strange_host_is_not_followed(fake: DatabricksFake, make: Make) -> None:
    history(fake)
    connector = make(disposition="external_links", storage_hosts=["storage.example.com"])
    with pytest.raises(Misconfigured, match=r"storage_hosts.*127\.0\.0\.1"):
        await pages_of(connector)
    assert ("GET", "/results") not in fake.requests


@pytest.mark.parametrize("disposition", ["inline", "external_links"])
async def test_a_chunk_that_is_not_whole_is_not_believed(
    fake: DatabricksFake, make: Make, disposition: str
) -> None:
    history(fake)
    fake.rows_lost = 1
    with pytest.raises(Unavailable, match="not whole"):
        await pages_of(make(disposition=disposition))


async def test_fewer_rows_than_promised_are_not_believed(fake: DatabricksFake, make: Make) -> None:
    history(fake)
    fake.rows_promised = 1
    with pytest.raises(Unavailable, match="its manifest says"):
        await pages_of(make())
    _, scopes, gaps, _ = await snapshot(make(workspace_objects=[]))
    assert scopes == ["groups"]
    assert gaps


async def test_late_events_are_found_and_repeats_have_their_ids(
    fake: DatabricksFake, make: Make
) -> None:
    history(fake)
    late = fake.add_events(5, at=NOW - timedelta(hours=2), visible_at=NOW + timedelta(minutes=45))
    connector = make()
    first = await pages_of(connector)
    assert not set(late) & set(ids_of(first))
    fake.clock.advance(timedelta(hours=1))
    second = await pages_of(connector, Position(SINCE, first[-1].cursor))
    assert set(late) <= set(ids_of(second))
    assert set(ids_of(first)) | set(ids_of(second)) == fake.event_ids()


async def test_every_page_s_cursor_goes_on_without_a_loss(fake: DatabricksFake, make: Make) -> None:
    truth = history(fake)
    pages = await pages_of(make(slice_max="2h"))
    assert len(pages) > 5
    before: set[str] = set()
    for page in pages:
        before |= {event.event_id for event in page.events}
        cursor = json.loads(json.dumps(page.cursor))
        after = await pages_of(make(slice_max="2h"), Position(SINCE, cursor))
        assert before | set(ids_of(after)) == truth


async def test_what_is_beyond_retention_is_a_gap(fake: DatabricksFake, make: Make) -> None:
    truth = history(fake)
    connector = make(slice_max="31d")
    pages = await pages_of(connector, Position(NOW - timedelta(days=400)))
    (gap,) = [gap for page in pages for gap in page.gaps]
    assert gap.scope == "audit"
    assert gap.to_at is not None
    assert abs(gap.to_at - (NOW - timedelta(days=365))) < timedelta(minutes=1)
    assert set(ids_of(pages)) == truth


# ------------------------------------------------------------------------------------ logging in


@pytest.mark.parametrize("login", ["pat", "oauth", "entra"])
async def test_three_ways_to_log_in(
    fake: DatabricksFake, make: Make, stage: tuple[Stage, str, str], login: str
) -> None:
    truth = history(fake)
    changes: dict[str, Any] = {
        "pat": {"token": PERSONAL_TOKEN},
        "oauth": {},
        "entra": {
            "azure_tenant_id": AZURE_TENANT,
            "azure_client_id": AZURE_CLIENT_ID,
            "azure_client_secret": AZURE_CLIENT_SECRET,
            "azure_login_host": stage[1],
        },
    }[login]
    connector = make(**changes)
    await connector.check()
    assert set(ids_of(await pages_of(connector))) == truth
    asked = {path for _, path in fake.requests if "token" in path}
    assert (
        asked
        == {
            "pat": set(),
            "oauth": {"/oidc/v1/token"},
            "entra": {f"/{AZURE_TENANT}/oauth2/v2.0/token"},
        }[login]
    )


@pytest.mark.parametrize("changes", [{"token": "dapi-wrong"}, {"client_secret": "wr0ng"}])
async def test_a_wrong_credential_is_denied(
    fake: DatabricksFake, make: Make, changes: dict[str, str]
) -> None:
    for work in (lambda one: one.check(), pages_of):
        with pytest.raises(Denied) as caught:
            await work(make(**changes))
        assert "wr0ng" not in str(caught.value)
        assert "dapi-wrong" not in str(caught.value)


async def test_a_snapshot_without_a_login_is_denied_and_not_partial(
    fake: DatabricksFake, make: Make
) -> None:
    fake.faults.inject(Fault.CREDENTIAL_REFUSED, times=50)
    with pytest.raises(Denied):
        await snapshot(make(metastore_id=METASTORE_ID, workspace_id=str(WORKSPACE_ID)))


# ----------------------------------------------------------------------------- what is missing


@pytest.mark.parametrize(
    ("missing", "helps"),
    [
        ("USE CATALOG", f"GRANT USE CATALOG ON CATALOG system TO `{CLIENT_ID}`"),
        ("USE SCHEMA", f"GRANT USE SCHEMA ON SCHEMA system.access TO `{CLIENT_ID}`"),
        ("SELECT", f"GRANT SELECT ON TABLE system.access.audit TO `{CLIENT_ID}`"),
        ("schema", "databricks system-schemas enable <metastore id> access"),
        ("warehouse", "CAN USE"),
        ("metastore", "metastore_id and workspace_id"),
    ],
)
async def test_what_is_missing_is_named_with_what_helps(
    fake: DatabricksFake, make: Make, missing: str, helps: str
) -> None:
    fake.missing.add(missing)
    for work in (lambda one: one.check(), pages_of):
        with pytest.raises(Denied) as caught:
            await work(make())
        assert helps in str(caught.value)
    fake.missing.clear()
    await make().check()


async def test_a_warehouse_that_does_not_exist_is_named(make: Make) -> None:
    with pytest.raises(Misconfigured, match="warehouse_id: there is no SQL warehouse gone"):
        await make(warehouse_id="gone").check()


async def test_a_workspace_that_names_no_metastore_may_be_told(
    fake: DatabricksFake, make: Make
) -> None:
    fake.missing.add("metastore")
    truth = history(fake)
    connector = make(metastore_id=METASTORE_ID, workspace_id=str(WORKSPACE_ID))
    assert set(ids_of(await pages_of(connector))) == truth


async def test_a_check_reads_no_row(fake: DatabricksFake, make: Make) -> None:
    history(fake)
    await make().check()
    (body,) = fake.submitted
    assert body["statement"].endswith("LIMIT 0")


# ------------------------------------------------------------------------------------ snapshots


async def snapshot(
    connector: DatabricksConnector,
) -> tuple[list[tuple[str, ...]], list[str], dict[str, str], set[datetime]]:
    grants: list[tuple[str, ...]] = []
    scopes: list[str] = []
    gaps: dict[str, str] = {}
    times = set()
    async for one in connector.snapshot_permissions():
        if isinstance(one, PermissionSnapshot):
            assert one.snapshot_at is not None
            assert one.platform == "databricks"
            assert one.raw_payload
            times.add(one.snapshot_at)
            grants.append(
                (
                    one.principal_ref,
                    one.asset_ref,
                    one.privilege,
                    one.grant_mechanism,
                    one.granted_via or "",
                )
            )
        elif isinstance(one, SnapshotScope):
            scopes.append(one.scope)
        else:
            assert isinstance(one, SnapshotGap)
            gaps[one.scope] = one.reason
    return grants, scopes, gaps, times


@pytest.mark.parametrize("source", ["information_schema", "rest"])
async def test_a_snapshot_is_the_truth(fake: DatabricksFake, make: Make, source: str) -> None:
    grants, scopes, gaps, times = await snapshot(make(snapshot_source=source))
    assert not gaps
    assert set(grants) == fake.grants(source)
    assert len(scopes) == len(set(scopes))
    assert {"groups", "permissions/jobs"} <= set(scopes)
    expected = "information_schema.table_privileges" if source != "rest" else "catalog:main"
    assert expected in scopes
    assert len(times) == 1
    seen = {mechanism for _, _, _, mechanism, _ in grants}
    assert seen == {"direct", "group", "alias"}


async def test_events_and_grants_name_the_same_objects_and_people(
    fake: DatabricksFake, make: Make
) -> None:
    fake.add_events(24, at=NOW - timedelta(hours=2))
    pages = await pages_of(make())
    grants, *_ = await snapshot(make())
    events = [event for page in pages for event in page.events]
    assert {event.asset_ref for event in events} & {asset for _, asset, *_ in grants} >= {
        f"uc:{METASTORE_ID}/table/main.hr.salary",
        f"uc:{METASTORE_ID}/catalog/main",
    }
    people = {who for who, *_ in grants}
    assert {event.principal_ref for event in events} & people


async def test_a_large_view_comes_through_links(fake: DatabricksFake, make: Make) -> None:
    fake.inline_bytes_max = 300
    grants, _, gaps, _ = await snapshot(make(workspace_objects=[]))
    assert not gaps
    assert set(grants) <= fake.grants()
    asked = Counter(body["disposition"] for body in fake.submitted)
    assert asked["EXTERNAL_LINKS"] > 0
    assert fake.storage_credentials_seen == []


async def test_groups_larger_than_the_limit_are_not_expanded(
    fake: DatabricksFake, make: Make
) -> None:
    grants, _, gaps, _ = await snapshot(make(expand_groups_up_to=0))
    assert not gaps
    kept = {one for one in fake.grants() if one[3] != "group" or one[2] == "MEMBER"}
    assert set(grants) == kept


OBJECT_FAULTS = [Fault.FORBIDDEN_OBJECT, Fault.VANISHED_OBJECT]


@pytest.mark.parametrize("fault", OBJECT_FAULTS, ids=[one.name for one in OBJECT_FAULTS])
@pytest.mark.parametrize("source", ["information_schema", "rest"])
@pytest.mark.parametrize("after", [0, 6, 12])
async def test_one_object_that_is_refused_or_gone_is_a_gap_and_the_rest_is_there(
    fake: DatabricksFake, make: Make, source: str, fault: Fault, after: int
) -> None:
    fake.faults.inject(fault, times=1, after=after)
    grants, scopes, gaps, _ = await snapshot(make(snapshot_source=source))
    assert fake.faults.are_over
    truth = fake.grants(source)
    (gap,) = gaps
    assert set(grants) < truth
    lost = {asset for _, asset, *_ in truth - set(grants)}
    name = gap.partition(":")[2].partition("/")[0]
    assert lost
    assert all(name in asset for asset in lost)
    assert gap not in scopes
    assert not {"permissions/" + gap.partition(":")[0]} & set(scopes)


async def test_without_the_right_to_list_groups_grants_are_there_unexpanded(
    fake: DatabricksFake, make: Make
) -> None:
    fake.missing.add("scim")
    grants, scopes, gaps, _ = await snapshot(make())
    assert list(gaps) == ["groups"]
    assert "groups" not in scopes
    assert set(grants) < fake.grants()
    assert {one[3] for one in grants} == {"direct"}


async def test_a_view_that_is_missing_or_closed_is_a_gap_with_what_helps(
    fake: DatabricksFake, make: Make
) -> None:
    fake.hidden_views.add("volume_privileges")
    fake.denied_tables.add("system.information_schema.table_privileges")
    grants, _, gaps, _ = await snapshot(make(workspace_objects=[]))
    assert set(gaps) == {
        "information_schema.volume_privileges",
        "information_schema.table_privileges",
    }
    assert "privilege_views" in gaps["information_schema.volume_privileges"]
    assert "GRANT SELECT" in gaps["information_schema.table_privileges"]
    assert [one for one in grants if "/schema/" in one[1]]
    known = [one for one in PRIVILEGE_VIEWS if one not in {"volume_privileges", "table_privileges"}]
    _, _, gaps, _ = await snapshot(make(workspace_objects=[], privilege_views=known))
    assert not gaps


async def test_a_warehouse_that_is_down_costs_two_tries_and_hides_no_other_part(
    fake: DatabricksFake, make: Make
) -> None:
    fake.polls_pending = 10**9
    grants, scopes, gaps, _ = await snapshot(make(statement_timeout="1m"))
    assert len(fake.submitted) == len(fake.cancelled) == 2
    assert all(scope.startswith("information_schema.") for scope in gaps)
    assert "permissions/jobs" in scopes
    assert set(grants) < fake.grants()


LISTING_FAULTS = [
    Fault.EMPTY_PAGE,
    Fault.THROTTLED_SECONDS,
    Fault.UNAVAILABLE,
    Fault.DROPPED,
    Fault.TOKEN_EXPIRED,
]


@pytest.mark.parametrize("fault", LISTING_FAULTS, ids=[one.name for one in LISTING_FAULTS])
async def test_passing_faults_leave_a_snapshot_whole(
    fake: DatabricksFake, make: Make, fault: Fault
) -> None:
    fake.faults.inject(fault, times=1 if fault is Fault.TOKEN_EXPIRED else 2, after=5)
    grants, _, gaps, _ = await snapshot(make(snapshot_source="rest"))
    assert fake.faults.are_over
    assert not gaps
    assert set(grants) == fake.grants("rest")


async def test_a_repeated_page_token_is_no_end_and_no_loop(
    fake: DatabricksFake, make: Make
) -> None:
    fake.faults.inject(Fault.REPEATED_TOKEN, times=10**6)
    grants, _, gaps, _ = await snapshot(make(snapshot_source="rest"))
    assert set(gaps) >= {"permissions/clusters", "permissions/jobs", "permissions/repos"}
    assert "twice" in gaps["permissions/jobs"]
    assert set(grants) < fake.grants("rest")


async def test_requests_of_a_snapshot_are_few_at_once(
    fake: DatabricksFake, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way = most = 0
    original = fake.refused

    def counting(request: Any) -> Any:
        nonlocal most
        most = max(most, under_way)
        return original(request)

    fake.refused = counting
    connector = make(snapshot_source="rest", snapshot_concurrency=2)
    request = HttpClient.request

    async def watched(*arguments: Any, **options: Any) -> Any:
        nonlocal under_way
        under_way += 1
        try:
            return await request(*arguments, **options)
        finally:
            under_way -= 1

    await connector.check()  # Signs in and starts the warehouse, outside of what is counted.
    most = 0
    monkeypatch.setattr(HttpClient, "request", watched)
    await snapshot(connector)
    assert most == 2


async def test_a_snapshot_that_is_left_cancels_what_is_under_way(
    fake: DatabricksFake, make: Make
) -> None:
    reading = make(snapshot_source="rest").snapshot_permissions()
    async for one in reading:
        if isinstance(one, PermissionSnapshot) and "/table/" in one.asset_ref:
            break
    await reading.aclose()
    assert len(asyncio.all_tasks()) == 1


# ------------------------------------------------------------------------------------- secrets


async def test_no_secret_is_in_any_error_log_or_repr(
    fake: DatabricksFake, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    history(fake)
    errors: list[str] = []
    for fault in (Fault.CREDENTIAL_REFUSED, Fault.NOT_JSON, Fault.UNAVAILABLE, Fault.DROPPED):
        fake.faults.inject(fault, times=50)
        for disposition in ("inline", "external_links"):
            connector = make(disposition=disposition, http={"retry_budget": 2})
            try:
                await pages_of(connector)
            except VerityError as error:
                errors.append(f"{error!r} {error.__cause__!r}")
            errors.append(repr(connector.settings) + repr(vars(connector)))
        fake.faults.clear()
    await pages_of(make(disposition="external_links"))
    fake.link_seconds = 1
    with pytest.raises(Unavailable):
        await pages_of(make(disposition="external_links"))
    assert len(errors) > 8
    tokens = list(fake.tokens)
    assert tokens
    for secret in (CLIENT_SECRET, "sig=", "key-", *tokens):
        assert not [text for text in (*errors, caplog.text) if secret in text]
