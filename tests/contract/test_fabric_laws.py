"""The laws of connectors, on the Fabric connector and its fake tenant."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from fakes.fabric import CLIENT_ID, CLIENT_SECRET, FabricFake
from fakes.kit import Clock, serving
from fakes.world import World

from connectors.fabric import FabricConnector
from verity_sdk.context import Context
from verity_sdk.testing import ConnectorLaws, FakedSource

NOW = datetime(2026, 11, 24, 12, 30, 20, tzinfo=UTC)


class FabricSource(FakedSource):
    """The fake tenant, served, and connectors for it."""

    # Microsoft says up to 24 hours; what was looked back at is read again every four hours, and a
    # pass stays an hour behind.
    late_by = on_time = timedelta(hours=24)
    late_found_within = timedelta(hours=5)

    def __init__(self, fake: FabricFake, url: str) -> None:
        super().__init__(fake)
        self._url = url

    def connector(self) -> FabricConnector:
        table = {
            "connector_id": "fabric-1",
            # Each its own: a law makes many connectors, and one tenant's would share the budget of
            # 30 scans an hour until the last of them is collected as garbage.
            "tenant_id": str(uuid.uuid4()),
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "login_url": f"{self._url}/login",
            "power_bi_url": f"{self._url}/powerbi",
            "fabric_url": f"{self._url}/fabric",
            "graph_url": f"{self._url}/graph",
            "advance_min": 0,
            "activity_requests_per_hour": 1_000_000,
            # Each hour is a request at least: 28 days of them take long and prove nothing more.
            "retention": "3d",
            "workspaces_per_scan": 3,
            "http": {"read_timeout": 1, "retry_budget": 5},
        }
        return Context(self.fake.clock, self.sleep).construct(FabricConnector, table)

    def secrets(self) -> Collection[str]:
        return [CLIENT_SECRET, "fabric-token-powerbi"]


class TestFabricLaws(ConnectorLaws):
    """All of them apply."""

    connector_class = FabricConnector

    @pytest.fixture
    def source(self) -> Iterator[FabricSource]:
        clock = Clock(NOW)
        fake = FabricFake(World(now=NOW), clock)
        fake.page_events = 7
        fake.is_limited = False
        with serving(fake.app) as url:
            yield FabricSource(fake, url)
