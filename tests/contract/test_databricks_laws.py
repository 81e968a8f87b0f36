"""The laws of connectors, on Databricks."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest
from fakes.databricks import CLIENT_ID, CLIENT_SECRET, WAREHOUSE_ID, DatabricksFake, Stage
from fakes.kit import Clock, Fault
from fakes.world import World

from connectors.databricks import DatabricksConnector
from verity_sdk.context import Context
from verity_sdk.testing import ConnectorLaws, FakedSource, Verdict, judge

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


class DatabricksSource(FakedSource):
    """A fake workspace: small chunks, windows of half an hour, REST snapshots, no wait in a poll.

    The snapshot is the one by REST: an object that is refused is an object there; the one by SQL is
    tested in test_databricks_connector.py.
    """

    does_not_apply: ClassVar[dict[Fault | str, str]] = {
        Fault.EMPTY_PAGE: "events come in chunks by number; a chunk without rows is not documented",
    }
    # The vendor documents no latency: the settings say four hours, and that far behind it stays.
    on_time = timedelta(hours=4)
    fake: DatabricksFake

    def __init__(self, fake: DatabricksFake, url: str, storage_url: str, **changes: Any) -> None:
        super().__init__(fake)
        self._config = {
            "connector_id": "dbx",
            "host": url,
            "warehouse_id": WAREHOUSE_ID,
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "storage_hosts": [storage_url.removeprefix("http://")],
            "slice_max": "30m",
            "retention": "2d",  # half an hour at a time, a year takes too long
            "snapshot_source": "rest",
            "http": {"read_timeout": 0.5, "connect_timeout": 0.5, "retry_budget": 1.5},
            **changes,
        }

    def connector(self) -> DatabricksConnector:
        return Context(self.fake.clock, self.sleep).construct(DatabricksConnector, self._config)

    def grants(self) -> Collection[tuple[str, ...]]:
        return self.fake.grants("rest")

    def secrets(self) -> Collection[str]:
        return [CLIENT_SECRET, *self.fake.tokens]


@pytest.fixture(scope="module")
def stage() -> Iterator[tuple[Stage, str, str]]:
    with Stage.served() as found:
        yield found


def staged(stage: tuple[Stage, str, str], disposition: str) -> DatabricksSource:
    """A new fake on the stage."""
    fake = DatabricksFake(World(), Clock(NOW))
    fake.chunk_rows, fake.storage_url, fake.is_limited = 3, stage[2], False
    stage[0].fake = fake
    return DatabricksSource(fake, stage[1], stage[2], disposition=disposition)


class TestDatabricksLaws(ConnectorLaws):
    """Results in the answers: the default."""

    connector_class = DatabricksConnector

    @pytest.fixture
    def source(self, stage: tuple[Stage, str, str]) -> DatabricksSource:
        return staged(stage, "inline")


class _ByLinks(ConnectorLaws):
    connector_class = DatabricksConnector
    crashes_max = 10


@pytest.mark.parametrize("label", ["L1", "L5", "L6", "L10", "L11", "L18", "L25", "L26"])
def test_results_by_links_obey_the_laws_too(stage: tuple[Stage, str, str], label: str) -> None:
    """Those laws that the way of the results can break."""
    outcomes = judge(_ByLinks(), lambda: nullcontext(staged(stage, "external_links")), [label])
    assert outcomes
    assert {one.verdict for one in outcomes} == {Verdict.HOLDS}, outcomes
