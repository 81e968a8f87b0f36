"""The Lagoon connector under the laws."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from lagoon_connector import LagoonConnector
from lagoon_server import SECRET, LagoonFake, serving

from verity_sdk.context import Context
from verity_sdk.testing import Clock, ConnectorLaws, FakedSource

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


class Unhurried(LagoonConnector):
    """The vendor's budget goes by the machine's clock; no law waits for that."""

    requests_per_minute = 1_000_000


class LagoonSource(FakedSource):
    def __init__(self, url: str, fake: LagoonFake) -> None:
        super().__init__(fake)
        self.url = url

    def connector(self) -> LagoonConnector:
        return Context(self.now, self.sleep).construct(
            Unhurried,
            {
                "connector_id": "harbour",
                "url": self.url,
                "client_id": "verity",
                "client_secret": SECRET,
                "page_events": 7,
                "http": {"read_timeout": "500ms", "retry_budget": "5s"},
            },
        )

    def secrets(self) -> list[str]:
        return [SECRET, "bearer-0", "bearer-1"]


class TestLagoonLaws(ConnectorLaws):
    connector_class = LagoonConnector

    @pytest.fixture
    def source(self) -> Iterator[LagoonSource]:
        fake = LagoonFake(Clock(NOW))
        with serving(fake.app) as url:
            yield LagoonSource(url, fake)
