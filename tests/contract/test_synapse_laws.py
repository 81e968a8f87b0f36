"""The laws of connectors, for Synapse: rows of Log Analytics, and the activity log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest
from fakes.kit import Clock, serving
from fakes.synapse import CLIENT_SECRET, SynapseFake, settings_of
from fakes.world import World

from connectors.synapse import SynapseConnector
from verity_sdk.context import Context
from verity_sdk.testing import ConnectorLaws, FakedSource, Fault

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
HTTP = {"connect_timeout": "1s", "read_timeout": "1s", "retry_budget": "3s"}
NO_PAGES = "a query's answer has no pages"


class SynapseSource(FakedSource):
    """A workspace in which nothing happened yet."""

    # The vendor's bound; what comes later is dated anew, and found all the same.
    late_by = timedelta(days=2)
    on_time = timedelta(days=2)
    does_not_apply: ClassVar = {
        Fault.REPEATED_TOKEN: NO_PAGES,
        Fault.EMPTY_PAGE: NO_PAGES,
        Fault.PAGE_TOKEN_EXPIRED: NO_PAGES,
    }
    others: ClassVar = {"rows_max": 60, "retention": "4d"}

    def __init__(self, fake: SynapseFake, url: str) -> None:
        super().__init__(fake)
        self.workspace = fake
        fake.retention = timedelta(days=4)
        self.url = url

    def connector(self) -> SynapseConnector:
        settings = settings_of(self.url, http=HTTP, query_timeout="1s", **self.others)
        return Context(self.workspace.clock, self.sleep).construct(SynapseConnector, settings)

    def secrets(self) -> set[str]:
        return {CLIENT_SECRET, *self.workspace.tokens()}


class ActivitySource(SynapseSource):
    """Things happen to the resource; nothing comes in at Log Analytics."""

    settle = timedelta(minutes=20)
    late_by = timedelta(hours=2)
    on_time = timedelta(hours=1)
    does_not_apply: ClassVar = {
        Fault.UNKNOWN_ENUM: "rows of Log Analytics have the ones that are looked at",
        Fault.NULL_ACTOR: "rows of Log Analytics have the ones that are looked at",
        **dict.fromkeys(("L19", "L20", "L22", "L26"), "as with the rows of Log Analytics"),
    }
    others: ClassVar = {
        "activity_log": True,
        "activity_retention": "4d",
        "retention": "4d",
        "lateness": "0s",
    }

    def add_events(
        self, count: int, *, at: datetime, visible_at: datetime | None = None
    ) -> Sequence[str]:
        return self.workspace.add_activities(count, at=at, visible_at=visible_at)


def served(source: type[SynapseSource]) -> Iterator[SynapseSource]:
    fake = SynapseFake(World(seed=9, now=NOW), Clock(NOW))
    fake.is_limited = False
    with serving(fake.app) as url:
        yield source(fake, url)


class TestSynapseLaws(ConnectorLaws):
    """L1 to L28 on the rows of Log Analytics."""

    connector_class = SynapseConnector
    crashes_max = 12

    @pytest.fixture
    def source(self) -> Iterator[SynapseSource]:
        yield from served(SynapseSource)


class TestActivityLaws(ConnectorLaws):
    """L1 to L28 on the activity log."""

    connector_class = SynapseConnector
    crashes_max = 6
    # A thousand empty pages are a thousand requests.
    pass_seconds_max = 90.0
    memory_events_per_slice = 60

    @pytest.fixture
    def source(self) -> Iterator[SynapseSource]:
        yield from served(ActivitySource)
