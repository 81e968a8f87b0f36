"""The Synapse connector against its fake, over real HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from fakes.kit import Clock, Fault, serving
from fakes.synapse import AUDIT, BUILTIN, CLIENT_SECRET, RBAC, SynapseFake, settings_of
from fakes.world import World

from connectors.synapse import SynapseConnector, sql_server
from connectors.synapse import connector as connector_module
from connectors.synapse.sql_grants import SqlCatalog
from verity_sdk.connector_base import PermissionSnapshot, RawEvent
from verity_sdk.context import Context
from verity_sdk.errors import Denied, Malformed, Misconfigured, Unavailable
from verity_sdk.pages import Page, Position, SnapshotGap, SnapshotScope
from verity_sdk.times import format_utc

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SINCE = NOW - timedelta(hours=4)


@dataclass
class Served:
    """A fake and what a connector needs to reach it."""

    fake: SynapseFake
    url: str

    def connector(self, **others: Any) -> SynapseConnector:
        http = {"connect_timeout": "2s", "read_timeout": "2s", "retry_budget": "5s"}
        settings = settings_of(self.url, **{"http": http, "query_timeout": "2s", **others})

        async def sleep(seconds: float) -> None:
            self.fake.clock.advance(timedelta(seconds=seconds))

        return Context(self.fake.clock, sleep).construct(SynapseConnector, settings)

    async def pages(self, position: Position, **others: Any) -> list[Page]:
        connector = self.connector(**others)
        try:
            return [page async for page in connector.fetch_pages(position)]
        finally:
            await connector.close()

    async def snapshot(self, **others: Any) -> list[Any]:
        connector = self.connector(**others)
        try:
            return [part async for part in connector.snapshot_permissions()]
        finally:
            await connector.close()


@pytest.fixture
def served() -> Iterator[Served]:
    fake = SynapseFake(World(now=NOW), Clock(NOW))
    with serving(fake.app) as url:
        yield Served(fake, url)


def ids_of(pages: list[Page]) -> list[str]:
    return [event.event_id for page in pages for event in page.events]


def tuples_of(parts: list[Any]) -> set[tuple[str, ...]]:
    return {
        (
            one.principal_ref,
            one.asset_ref,
            one.privilege,
            one.grant_mechanism,
            one.granted_via or "",
        )
        for one in parts
        if isinstance(one, PermissionSnapshot)
    }


class TestEvents:
    @pytest.mark.parametrize("cells", ["json_text", "object", "strings"])
    async def test_what_happened_is_what_is_collected_in_any_spelling(
        self, served: Served, cells: Any
    ) -> None:
        served.fake.cells = cells
        for hours in (1, 2, 3):
            served.fake.add_events(40, at=NOW - timedelta(hours=hours))
        pages = await served.pages(Position(SINCE))
        assert sorted(ids_of(pages)) == sorted(served.fake.event_ids())
        assert len(served.fake.event_ids()) == 120
        for page in pages:
            keys = [(event.occurred_at, event.event_id) for event in page.events]
            assert keys == sorted(keys)
        tables = {event.raw_payload["verity"]["table"] for p in pages for event in p.events}
        assert tables == {AUDIT, RBAC, BUILTIN}

    async def test_two_equal_rows_of_one_moment_are_two_events(self, served: Served) -> None:
        served.fake.add_events(20, at=NOW - timedelta(hours=1))
        ids = ids_of(await served.pages(Position(SINCE)))
        twins = [one for one in ids if one.endswith(":1") and len(one) > 60]
        assert len(twins) == 2
        assert all(one.removesuffix(":1") in ids for one in twins)

    @pytest.mark.parametrize("rows_max", [1, 2, 7, 50])
    async def test_ids_do_not_depend_on_how_the_slices_are_cut(
        self, served: Served, rows_max: int
    ) -> None:
        served.fake.is_limited = False
        served.fake.add_events(40, at=NOW - timedelta(hours=1))
        ids = ids_of(await served.pages(Position(SINCE), rows_max=rows_max, slice_max="1h"))
        assert sorted(ids) == sorted(served.fake.event_ids())
        takes = {(query.take, query.skip is None) for query in served.fake.queries}
        # What shares a second with too many others is read in portions.
        assert ((rows_max, False) in takes) == (rows_max < 20)

    async def test_a_late_row_is_found_at_once_whatever_its_own_time(self, served: Served) -> None:
        served.fake.add_events(3, at=NOW - timedelta(hours=1))
        first = await served.pages(Position(SINCE))
        late = served.fake.add_events(
            2, at=NOW - timedelta(days=1, hours=20), visible_at=NOW + timedelta(minutes=3)
        )
        served.fake.clock.advance(timedelta(minutes=9))
        asked = len(served.fake.queries)
        second = await served.pages(Position(first[-1].complete_through or NOW, first[-1].cursor))
        assert set(late) <= set(ids_of(second))
        assert len(served.fake.queries) == asked + 1

    async def test_nothing_is_read_again_but_the_last_ten_minutes(self, served: Served) -> None:
        """Not once a day either: what was ingested three days ago may be five days old."""
        served.fake.add_events(3, at=NOW - timedelta(hours=1))
        first = await served.pages(Position(SINCE))
        served.fake.clock.advance(timedelta(hours=25))
        del served.fake.queries[:]
        await served.pages(Position(SINCE, first[-1].cursor))
        read_to = NOW - timedelta(minutes=5)
        assert min(query.from_at for query in served.fake.queries) == read_to - timedelta(
            minutes=10
        )

    async def test_complete_through_stays_behind_by_the_lateness(self, served: Served) -> None:
        served.fake.add_events(3, at=NOW - timedelta(hours=1))
        # Not read yet (5 minutes), still to be asked again (10 minutes), and the instant itself.
        behind = timedelta(minutes=5) + timedelta(minutes=10) + timedelta(microseconds=1)
        last = (await served.pages(Position(SINCE)))[-1]
        assert last.complete_through == NOW - behind - timedelta(days=2)
        last = (await served.pages(Position(SINCE), lateness="0s"))[-1]
        assert last.complete_through == NOW - behind

    async def test_a_position_before_all_time_stays_in_it(self, served: Served) -> None:
        since = datetime(1, 1, 1, 5, tzinfo=UTC)
        pages = await served.pages(Position(since, until=since + timedelta(hours=2)))
        assert all(page.complete_through == datetime.min.replace(tzinfo=UTC) for page in pages)

    async def test_a_second_delivery_of_a_row_has_its_id(self, served: Served) -> None:
        ids = served.fake.add_events(10, at=NOW - timedelta(hours=2))
        for one in (ids[0], ids[7]):
            served.fake.deliver_again(one, at=NOW - timedelta(hours=1))
        found = ids_of(await served.pages(Position(SINCE)))
        assert sorted(found) == sorted([*ids, ids[0], ids[7]])

    @pytest.mark.parametrize("stops_after", [1, 2, 3])
    async def test_every_cursor_goes_on_where_its_page_ends(
        self, served: Served, stops_after: int
    ) -> None:
        for hours in (1, 2, 3):
            served.fake.add_events(10, at=NOW - timedelta(hours=hours))
        pages = (await served.pages(Position(SINCE)))[:stops_after]
        rest = await served.pages(Position(SINCE, pages[-1].cursor))
        assert set(ids_of(pages)) | set(ids_of(rest)) == served.fake.event_ids()
        assert not set(ids_of(pages)[:10]) & set(ids_of(rest)) or stops_after == 1

    async def test_a_part_of_a_result_never_moves_the_stream(self, served: Served) -> None:
        served.fake.add_events(10, at=NOW - timedelta(hours=1))
        first = await served.pages(Position(SINCE, until=NOW - timedelta(hours=2)))
        cursor = first[-1].cursor
        connector = served.connector()
        served.fake.partial_results = 1

        async def remember() -> None:
            nonlocal cursor
            async for page in connector.fetch_pages(Position(SINCE, cursor)):
                cursor = page.cursor

        with pytest.raises(Unavailable, match="PartialError"):
            await remember()
        await connector.close()
        assert cursor == first[-1].cursor
        pages = await served.pages(Position(SINCE, cursor))
        assert set(ids_of(pages)) == served.fake.event_ids()

    async def test_a_result_beyond_the_services_limit_is_asked_for_in_halves(
        self, served: Served
    ) -> None:
        served.fake.is_limited = False
        served.fake.result_rows_max = 5
        served.fake.add_events(40, at=NOW - timedelta(hours=1))
        ids = ids_of(await served.pages(Position(SINCE)))
        assert sorted(ids) == sorted(served.fake.event_ids())

    async def test_the_vendors_limits_are_kept(self, served: Served) -> None:
        served.fake.add_events(10, at=NOW - timedelta(hours=1))
        # Nine at once may be slow beside other work: this is about how many ask, not how fast.
        patient = dict.fromkeys(("connect_timeout", "read_timeout", "retry_budget"), "60s")
        connectors = [served.connector(http=patient, query_timeout="60s") for _ in range(9)]
        served.fake.query_seconds = 0.05

        async def drain(connector: SynapseConnector) -> set[str]:
            ids = {
                event.event_id
                async for page in connector.fetch_pages(Position(NOW - timedelta(hours=2)))
                for event in page.events
            }
            await connector.close()
            return ids

        found = await asyncio.gather(*map(drain, connectors))
        assert all(ids == served.fake.event_ids() for ids in found)
        # With a budget that all connectors of one identity share nothing was refused.
        queries = [path for _, path in served.fake.requests if path.endswith("/query")]
        assert len(queries) == len(served.fake.queries)

    async def test_only_the_tables_that_are_asked_for(self, served: Served) -> None:
        served.fake.add_events(20, at=NOW - timedelta(hours=1))
        pages = await served.pages(Position(SINCE), tables=[RBAC])
        tables = {event.raw_payload["verity"]["table"] for p in pages for event in p.events}
        assert tables == {RBAC}

    async def test_what_is_older_than_the_retention_is_a_gap(self, served: Served) -> None:
        served.fake.add_events(10, at=NOW - timedelta(hours=1))
        since = NOW - timedelta(days=10)
        pages = await served.pages(Position(since), retention="2d")
        gaps = [gap for page in pages for gap in page.gaps]
        assert [(gap.from_at, gap.to_at) for gap in gaps] == [(since, NOW - timedelta(days=2))]
        assert set(ids_of(pages)) == served.fake.event_ids()

    @pytest.mark.parametrize(
        "fault",
        [
            Fault.THROTTLED_SECONDS,
            Fault.THROTTLED_DATE,
            Fault.THROTTLED_BARE,
            Fault.UNAVAILABLE,
            Fault.DROPPED,
            Fault.NOT_JSON,
            Fault.TOKEN_EXPIRED,
            Fault.UNKNOWN_ENUM,
            Fault.NULL_ACTOR,
            Fault.REPEATED_EVENT,
            Fault.MALFORMED_RECORD,
        ],
    )
    async def test_no_fault_loses_or_makes_an_event(self, served: Served, fault: Fault) -> None:
        for hours in (1, 2, 3):
            served.fake.add_events(20, at=NOW - timedelta(hours=hours))
        # Of two in a row the second says that the fresh bearer is refused, too: that is Denied.
        served.fake.faults.inject(fault, times=1 if fault is Fault.TOKEN_EXPIRED else 2, after=1)
        position, found, rejected = Position(SINCE), set[str](), 0
        for _ in range(3):
            connector = served.connector()
            try:
                async for page in connector.fetch_pages(position):
                    found |= {event.event_id for event in page.events}
                    rejected += len(page.rejected)
                    position = Position(SINCE, page.cursor)
            except Unavailable:
                continue
            finally:
                await connector.close()
        assert found == served.fake.event_ids()
        assert served.fake.faults.are_over
        assert (rejected > 0) == (fault is Fault.MALFORMED_RECORD)

    async def test_who_is_not_named_is_unknown(self, served: Served) -> None:
        served.fake.add_events(3, at=NOW - timedelta(hours=1))
        served.fake.faults.inject(Fault.NULL_ACTOR)
        pages = await served.pages(Position(SINCE))
        who = [event.principal_ref for page in pages for event in page.events]
        assert who.count("unknown") == 1


class TestActivityLog:
    async def test_it_is_off_unless_it_is_wanted(self, served: Served) -> None:
        served.fake.add_activities(3, at=NOW - timedelta(hours=1))
        assert not ids_of(await served.pages(Position(SINCE)))

    async def test_both_streams_together(self, served: Served) -> None:
        served.fake.add_events(20, at=NOW - timedelta(hours=2))
        served.fake.add_activities(20, at=NOW - timedelta(hours=2))
        pages = await served.pages(Position(SINCE), activity_log=True)
        assert set(ids_of(pages)) == served.fake.event_ids()
        assert set(pages[-1].cursor["streams"]) == {"log_analytics", "activity_log"}
        assets = {event.asset_ref for page in pages for event in page.events}
        assert "synapse:ws1/sqlPools/dw" in assets
        assert any("roleAssignments/r" in asset for asset in assets)

    async def test_by_resource_only_the_workspace_itself_is_asked_for(self, served: Served) -> None:
        served.fake.add_activities(20, at=NOW - timedelta(hours=2))
        pages = await served.pages(
            Position(SINCE), activity_log=True, activity_log_by="resource", slice_max="1d"
        )
        assert {event.asset_ref for page in pages for event in page.events} == {"synapse:ws1"}

    @pytest.mark.parametrize(
        "fault",
        [Fault.PAGE_TOKEN_EXPIRED, Fault.EMPTY_PAGE, Fault.REPEATED_EVENT, Fault.REPEATED_TOKEN],
    )
    async def test_faults_of_pages(self, served: Served, fault: Fault) -> None:
        served.fake.add_activities(20, at=NOW - timedelta(hours=2))
        served.fake.faults.inject(fault)
        position, found = Position(SINCE), set[str]()
        for _ in range(2):
            connector = served.connector(activity_log=True, slice_max="1d")
            try:
                async for page in connector.fetch_pages(position):
                    found |= {event.event_id for event in page.events}
                    position = Position(SINCE, page.cursor)
            except Unavailable:
                continue
            finally:
                await connector.close()
        assert found == served.fake.event_ids()
        assert served.fake.faults.are_over

    async def test_a_token_that_always_ends_is_unavailable(self, served: Served) -> None:
        served.fake.add_activities(20, at=NOW - timedelta(hours=2))
        served.fake.faults.inject(Fault.PAGE_TOKEN_EXPIRED, times=100)
        with pytest.raises(Unavailable, match="page token"):
            await served.pages(Position(SINCE), activity_log=True, slice_max="1d")


class TestSnapshot:
    @pytest.mark.parametrize("scopes", [True, False])
    async def test_it_is_the_truth(self, served: Served, scopes: bool) -> None:
        parts = await served.snapshot(synapse_scopes=scopes)
        assert tuples_of(parts) == served.fake.grants()
        grants = [part for part in parts if isinstance(part, PermissionSnapshot)]
        assert len(grants) == len(served.fake.grants())
        assert {grant.snapshot_at for grant in grants} == {NOW}
        read = [part.scope for part in parts if isinstance(part, SnapshotScope)]
        assert read == ["synapse-rbac", "azure-rbac", "azure-deny"]
        conditions = [g.raw_payload.get("properties", {}).get("condition") for g in grants]
        assert "@Resource[x] StringEquals 'y'" in conditions

    async def test_planes_can_be_left_out(self, served: Served) -> None:
        parts = await served.snapshot(azure_rbac=False)
        assert [part.scope for part in parts if isinstance(part, SnapshotScope)] == ["synapse-rbac"]
        assert not [path for _, path in served.fake.requests if "/management/" in path]

    @pytest.mark.parametrize(
        ("role", "gaps", "read"),
        [
            ("synapse", ["synapse-rbac"], ["azure-rbac", "azure-deny"]),
            ("azure", ["azure-rbac", "azure-deny"], ["synapse-rbac"]),
        ],
    )
    async def test_a_plane_that_is_denied_is_a_gap(
        self, served: Served, role: str, gaps: list[str], read: list[str]
    ) -> None:
        served.fake.roles.discard(role)
        parts = await served.snapshot()
        assert [part.scope for part in parts if isinstance(part, SnapshotGap)] == gaps
        assert [part.scope for part in parts if isinstance(part, SnapshotScope)] == read
        assert tuples_of(parts)
        assert tuples_of(parts) < served.fake.grants()

    @pytest.mark.parametrize("fault", [Fault.FORBIDDEN_OBJECT, Fault.VANISHED_OBJECT])
    @pytest.mark.parametrize("after", range(0, 12, 2))
    async def test_one_object_that_cannot_be_read(
        self, served: Served, fault: Fault, after: int
    ) -> None:
        served.fake.faults.inject(fault, after=after)
        parts = await served.snapshot()
        gaps = {part.scope for part in parts if isinstance(part, SnapshotGap)}
        read = {part.scope for part in parts if isinstance(part, SnapshotScope)}
        assert served.fake.faults.are_over
        assert len(gaps) == 1
        assert not gaps & read
        assert tuples_of(parts) <= served.fake.grants()

    @pytest.mark.parametrize("times", [1, 100])
    @pytest.mark.parametrize(
        "fault",
        [
            Fault.PAGE_TOKEN_EXPIRED,
            Fault.REPEATED_TOKEN,
            Fault.EMPTY_PAGE,
            Fault.REPEATED_EVENT,
            Fault.DROPPED,
            Fault.UNAVAILABLE,
            Fault.THROTTLED_BARE,
        ],
    )
    async def test_it_is_the_truth_or_says_what_it_lacks(
        self, served: Served, fault: Fault, times: int
    ) -> None:
        served.fake.faults.inject(fault, times=times, after=0 if "TOKEN" in fault.name else 3)
        # Without the listings by scope, which would make up for what the first one lacks.
        parts = await served.snapshot(synapse_scopes=False)
        gaps = [part for part in parts if isinstance(part, SnapshotGap)]
        assert tuples_of(parts) <= served.fake.grants()
        assert gaps or tuples_of(parts) == served.fake.grants()
        is_survived = fault in {Fault.EMPTY_PAGE, Fault.REPEATED_EVENT} or times == 1
        assert bool(gaps) == (not is_survived or fault is Fault.REPEATED_TOKEN)

    async def test_a_refused_credential_is_no_gap(self, served: Served) -> None:
        served.fake.faults.inject(Fault.CREDENTIAL_REFUSED, times=10)
        with pytest.raises(Denied):
            await served.snapshot()

    async def test_sql_grants(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        async def read(server: str, database: str, credential: Any, seconds: float) -> SqlCatalog:
            asked.append((server, database, credential["Authentication"]))
            if database == "paused":
                raise Unavailable("the pool may be paused")
            dbo = {"principal_id": 1, "name": "dbo", "type": "S"}
            if database == "odd":
                return SqlCatalog([dbo], [{"role_principal_id": 7}], [], [])
            return SqlCatalog([dbo], [], [], [{"name": "hr", "principal_id": 1}])

        monkeypatch.setattr(connector_module, "load_driver", lambda: None)
        monkeypatch.setattr(connector_module, "read_catalog", read)
        parts = await served.snapshot(
            azure_rbac=False,
            synapse_rbac=False,
            sql_pools=["dw", "paused"],
            serverless_databases=["odd"],
        )
        assert asked == [
            ("ws1.sql.azuresynapse.net", "dw", "ActiveDirectoryServicePrincipal"),
            ("ws1.sql.azuresynapse.net", "paused", "ActiveDirectoryServicePrincipal"),
            ("ws1-ondemand.sql.azuresynapse.net", "odd", "ActiveDirectoryServicePrincipal"),
        ]
        owner = "synapse:ws1/dw/user:dbo"
        assert tuples_of(parts) == {(owner, "synapse:ws1/dw/schema:hr", "CONTROL", "owner", "")}
        assert [part.scope for part in parts if isinstance(part, SnapshotScope)] == ["sql:dw"]
        gaps = [part.scope for part in parts if isinstance(part, SnapshotGap)]
        assert gaps == ["sql:paused", "sql:odd"]

    async def test_sql_grants_without_the_extra(
        self, served: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sql_server, "DRIVER", "no_such_module_anywhere")
        with pytest.raises(Misconfigured, match="synapse-sql"):
            await served.snapshot(sql_pools=["dw"])


class TestCheck:
    async def check(self, served: Served, **others: Any) -> None:
        connector = served.connector(**others)
        try:
            await connector.check()
        finally:
            await connector.close()

    async def test_all_is_well(self, served: Served) -> None:
        await self.check(served, activity_log=True)
        assert len(served.fake.requests) == 7

    @pytest.mark.parametrize(
        ("role", "says"),
        [
            ("logs", "Log Analytics Reader"),
            ("synapse", "Synapse User"),
            ("azure", "role Reader on the workspace"),
        ],
    )
    async def test_the_missing_role_is_named(self, served: Served, role: str, says: str) -> None:
        served.fake.roles.discard(role)
        with pytest.raises(Denied, match=says):
            await self.check(served)

    async def test_all_missing_roles_are_named_together(self, served: Served) -> None:
        served.fake.roles.clear()
        with pytest.raises(Denied) as error:
            await self.check(served)
        for role in ("Log Analytics Reader", "Synapse User", "Reader on the workspace"):
            assert role in str(error.value)

    async def test_what_the_activity_log_needs_is_named(self, served: Served) -> None:
        served.fake.roles.discard("azure")
        with pytest.raises(Denied, match="Monitoring Reader on the resource group"):
            await self.check(served, activity_log=True, azure_rbac=False)

    async def test_without_its_tables_the_diagnostic_setting_is_named(self, served: Served) -> None:
        served.fake.tables = set()
        with pytest.raises(Misconfigured) as error:
            await self.check(served)
        text = str(error.value)
        for word in ("diagnostic setting", "SQLSecurityAuditEvents", "BuiltinSqlReqsEnded"):
            assert word in text
        with pytest.raises(Misconfigured, match="diagnostic setting"):
            await served.pages(Position(SINCE))
        served.fake.tables = {RBAC}
        await self.check(served)

    @pytest.mark.parametrize(
        ("others", "says"),
        [
            ({"workspace_id": "00000000-0000-0000-0000-000000000000"}, "workspace_id"),
            ({"resource_id": settings_of("x")["resource_id"] + "x"}, "resource_id"),
        ],
    )
    async def test_what_does_not_exist_is_named(
        self, served: Served, others: dict[str, str], says: str
    ) -> None:
        connector = served.connector()
        settings = settings_of(served.url) | others
        await connector.close()
        connector = Context(served.fake.clock).construct(SynapseConnector, settings)
        with pytest.raises(Misconfigured, match=says):
            await connector.check()
        await connector.close()

    async def test_a_missing_extra_is_named(
        self, served: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sql_server, "DRIVER", "no_such_module_anywhere")
        with pytest.raises(Misconfigured, match="synapse-sql"):
            await self.check(served, serverless_databases=["lake"])

    async def test_a_refused_credential_is_said_once(self, served: Served) -> None:
        served.fake.faults.inject(Fault.CREDENTIAL_REFUSED, times=10)
        with pytest.raises(Denied) as error:
            await self.check(served)
        assert str(error.value).count("invalid_client") <= 1

    async def test_the_machines_identity(
        self, served: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One credential of azure-identity for all endpoints, closed with the connector."""
        made: list[Any] = []

        class Credential:
            closed = 0

            async def get_token(self, *scopes: str, **_: Any) -> Any:
                return SimpleNamespace(token=served.fake.token_for(scopes[0]), expires_on=2**33)

            async def close(self) -> None:
                self.closed += 1

        def make(**options: Any) -> Credential:
            made.append((options, Credential()))
            return made[-1][1]

        monkeypatch.setattr("connectors._azure.sign_in.azure_default_credential", make)
        await self.check(served, credential="azure", client_secret=None)
        assert len(made) == 1
        options, credential = made[0]
        assert options["managed_identity_client_id"] == settings_of("x")["client_id"]
        assert credential.closed == 1
        assert not [path for _, path in served.fake.requests if path.endswith("/token")]

    async def test_nobody_answers(self, served: Served) -> None:
        served.fake.faults.inject(Fault.UNAVAILABLE, times=1000)
        with pytest.raises(Unavailable):
            await self.check(served)


async def test_no_secret_is_seen(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    served.fake.add_events(5, at=NOW - timedelta(hours=1))
    seen = [repr(served.connector()), repr(served.connector().settings)]
    for fault in (
        Fault.CREDENTIAL_REFUSED,
        Fault.TOKEN_EXPIRED,
        Fault.FORBIDDEN_OBJECT,
        Fault.MALFORMED_RECORD,
        Fault.NOT_JSON,
    ):
        served.fake.faults.inject(fault, times=20)
        for work in (served.pages(Position(NOW - timedelta(hours=1))), served.snapshot()):
            try:
                seen.append(repr(await work))
            except (Denied, Unavailable, Misconfigured, Malformed) as error:
                seen.append(f"{error!r} {error.__cause__!r} {error.__context__!r}")
        served.fake.faults.clear()
        served.fake.clock.advance(timedelta(minutes=10))
    text = "".join(seen) + caplog.text
    for secret in (CLIENT_SECRET, *served.fake.tokens()):
        assert secret not in text


async def test_a_source_that_hangs_is_unavailable(served: Served) -> None:
    served.fake.faults.inject(Fault.HANGING, times=10)
    with pytest.raises(Unavailable):
        await served.pages(Position(NOW - timedelta(minutes=30)))


def test_a_mapping_that_is_not_valid_is_misconfigured_without_its_values() -> None:
    with pytest.raises(Misconfigured, match="workspace_id") as error:
        SynapseConnector(settings_of("http://127.0.0.1:1", workspace_id="x"), None, None)
    assert CLIENT_SECRET not in str(error.value)
    with pytest.raises(Misconfigured, match="not a table"):
        SynapseConnector("x", None, None)


def test_events_say_when_they_came_in(served: Served) -> None:
    """Lateness can be measured from the payload."""

    async def collect() -> list[RawEvent]:
        served.fake.add_events(1, at=NOW - timedelta(hours=1))
        return [event for page in await served.pages(Position(SINCE)) for event in page.events]

    event = asyncio.run(collect())[0]
    expected = format_utc(NOW - timedelta(hours=1) + timedelta(seconds=30))
    assert event.raw_payload["verity"]["ingested_at"] == expected
