"""The laws of connectors, for Entra ID."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest
from fakes.azure_ad import AzureAdFake
from fakes.kit import Clock, serving
from fakes.world import World

from connectors.azure_ad import AzureAdConnector
from verity_sdk.context import Context
from verity_sdk.testing import ConnectorLaws, FakedSource


class Unhurried(AzureAdConnector):
    """Its budget, which goes by the machine's clock, is out of the way."""

    reports_requests: ClassVar[int] = 100_000


class AzureAdSource(FakedSource):
    """A served tenant."""

    # Every pass reads the last two hours again; what is later is found once a day.
    late_by = timedelta(minutes=90)

    def __init__(self, fake: AzureAdFake, url: str) -> None:
        super().__init__(fake)
        self.tenant = fake
        self.url = url

    def connector(self) -> AzureAdConnector:
        http = {"connect_timeout": "1s", "read_timeout": "1s", "retry_budget": "3s"}
        table = self.tenant.settings(self.url, http=http)
        return Context(self.tenant.clock, self.sleep).construct(Unhurried, table)

    def secrets(self) -> set[str]:
        return {self.tenant.client_secret, *self.tenant.bearers}


class TestAzureAdLaws(ConnectorLaws):
    """L1 to L28."""

    connector_class = AzureAdConnector

    @pytest.fixture
    def source(self) -> Iterator[AzureAdSource]:
        now = datetime(2026, 11, 24, 12, tzinfo=UTC)
        fake = AzureAdFake(World(seed=9, now=now), Clock(now))
        fake.is_limited = False
        fake.page_records = 3
        fake.page_objects = 20
        with serving(fake.app) as url:
            yield AzureAdSource(fake, url)
