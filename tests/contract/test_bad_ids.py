"""An id that no URL can hold costs its own record: the connectors against the fakes, over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from contract import test_azure_ad_connector as azure_ad
from contract import test_fabric_connector as fabric
from contract import test_hr_connector as hr
from fakes.azure_ad import AzureAdFake
from fakes.databricks import CLIENT_ID, CLIENT_SECRET, WAREHOUSE_ID, DatabricksFake
from fakes.fabric import FabricFake
from fakes.hr import SCIM_NAME, SCIM_TOKEN, HrFake, ScimHarness
from fakes.kit import Clock, serving, with_bad_ids
from fakes.world import World

from connectors.databricks import DatabricksConnector
from verity_sdk.connector_base import PermissionSnapshot
from verity_sdk.context import Context
from verity_sdk.pages import SnapshotGap

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
BAD = "\ud800"

pytestmark = pytest.mark.parametrize("status", [400, 404])
"""What a server answers that is asked for such an id."""


@asynccontextmanager
async def entra(status: int, *ids: str) -> AsyncIterator[Any]:
    fake = AzureAdFake(World(), Clock(NOW))
    with serving(with_bad_ids(fake.app, ids, status)) as url:
        tenant = azure_ad.Tenant(fake, url)
        try:
            yield tenant.connector()
        finally:
            for one in tenant.connectors:
                await one.close()


@pytest.mark.parametrize("kind", ["groups", "service_principals", "applications"])
async def test_entra_loses_the_object_alone(status: int, kind: str) -> None:
    fake = AzureAdFake(World(), Clock(NOW))
    bad = getattr(fake, kind)[0]
    async with entra(status, bad["id"]) as connector:
        taken = await azure_ad.snapshot(connector)
    (lost,) = [scope for scope in taken.gaps if ":" in scope]
    assert lost.endswith(bad["id"] + BAD)
    # Its own, what reaches through it, and what its application is called by.
    names = (bad["id"], f"app:{bad.get('appId')}")
    others = {one for one in fake.grants() if not any(name in str(one) for name in names)}
    assert {one for one in others - taken.keys if one[3] != "group"} == set()


async def test_entra_is_checked_all_the_same(status: int) -> None:
    fake = AzureAdFake(World(), Clock(NOW))
    async with entra(status, fake.groups[0]["id"], fake.service_principals[0]["id"]) as connector:
        await connector.check()


@pytest.mark.parametrize("part", ["workspace", "item", "group"])
async def test_fabric_loses_what_the_object_holds(status: int, part: str) -> None:
    clock = Clock(NOW)
    fake = FabricFake(World(now=NOW), clock)
    workspace = fake.workspaces[2]
    bad = {
        "workspace": workspace.id,
        "item": workspace.items[0].id,
        "group": fake.world.groups[0].id,
    }[part]
    with serving(with_bad_ids(fake.app, [bad], status)) as url:
        tenant = fabric.Tenant(fake, clock, url)
        found = await tenant.snapshot(snapshot_source="admin_api", expand_groups=True)
    assert found.gaps
    assert len(found.gaps) + len(found.scopes) == len(fake.workspaces)
    if part != "group":
        assert [one.scope.rstrip(BAD) for one in found.gaps] == [f"workspace:{workspace.id}"]
    whole = {scope.removeprefix("workspace:") for scope in found.scopes}
    wanted = fake.grants("admin_api", are_groups_expanded=True)
    missing = {one for one in wanted - found.grants if bad not in str(one)}
    assert {one for one in missing if any(name in one[1] for name in whole)} == set()


@pytest.mark.parametrize(
    "bad",
    ["main.hr.salary", "main.sales", "sandbox", "clus-0001", "serv-0003", "landing"],
)
async def test_databricks_loses_what_the_object_holds(status: int, bad: str) -> None:
    clock = Clock(NOW)
    fake = DatabricksFake(World(), clock)
    with serving(with_bad_ids(fake.app, [bad], status)) as url:
        connector = Context(clock).construct(
            DatabricksConnector,
            {
                "connector_id": "dbx",
                "host": url,
                "warehouse_id": WAREHOUSE_ID,
                "client_id": CLIENT_ID,
                "client_secret": CLIENT_SECRET,
                "snapshot_source": "rest",
            },
        )
        try:
            rows = [one async for one in connector.snapshot_permissions()]
        finally:
            await connector.close()
    gaps = [one.scope for one in rows if isinstance(one, SnapshotGap)]
    assert gaps
    assert all(bad + BAD in one for one in gaps)
    got = {
        (one.principal_ref, one.asset_ref, one.privilege)
        for one in rows
        if isinstance(one, PermissionSnapshot)
    }
    wanted = {one[:3] for one in fake.grants("rest")}
    assert {one for one in wanted - got if bad not in one[1]} == set()


async def test_somebody_whose_id_bamboohr_cannot_be_asked_for_holds_up_nobody(
    status: int,
) -> None:
    fake = HrFake(World(), Clock(NOW))
    with serving(with_bad_ids(fake.app, ["100"], status)) as url:
        reader = hr.Reader(fake, hr.table(url, "api_key"), NOW - timedelta(days=4))
        await reader.poll()
        at = NOW + timedelta(seconds=5)
        fake.change("leave", "100", at=at)
        other = fake.change("leave", "101", at=at)
        fake.clock.advance(timedelta(minutes=1))
        events = await reader.poll()
    assert other in {one.event_id for one in events}
    rejected = [one.reference for page in reader.pages for one in page.rejected]
    told = [one.principal_ref for one in events if BAD in one.principal_ref]
    assert told or rejected, "neither told nor in the dead letters"


async def test_somebody_whose_id_scim_cannot_be_asked_for_leaves_like_others(status: int) -> None:
    fake = ScimHarness(World(), Clock(NOW))
    bad, good = fake.ids["100"], fake.ids["101"]
    with serving(with_bad_ids(fake.app, [bad], status)) as url:
        settings = {
            "base_url": f"{url}/v2",
            "name": SCIM_NAME,
            "auth": {"kind": "bearer", "token": SCIM_TOKEN},
        }
        reader = hr.Reader(fake, {"source": "scim", "scim": settings}, NOW - timedelta(days=4))
        await reader.poll()
        for one in (bad, good):
            fake.change("delete", one, at=NOW + timedelta(seconds=5))
        fake.clock.advance(timedelta(days=1))
        events = await reader.poll()
    assert sorted(one.raw_payload["verity"]["basis"] for one in events) == ["absent", "absent"]
    assert len([one for one in events if BAD in one.event_id]) == 1
