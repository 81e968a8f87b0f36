"""The laws of connectors, on BambooHR by OAuth, BambooHR by API key, and a SCIM source."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest
from fakes.hr import (
    ACCESS_TOKEN,
    API_KEY,
    COMPANY,
    SCIM_ACCESS_TOKEN,
    SCIM_CLIENT,
    SCIM_NAME,
    SCIM_SECRET,
    HrFake,
    ScimHarness,
)
from fakes.kit import Clock, serving
from fakes.world import World

from connectors.hr import HrConnector
from verity_sdk.context import Context
from verity_sdk.testing import ConnectorLaws, FakedSource, Fault, GrantTuple

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
# Beside other work, and with memory traced, a fake may need more than a second for its people.
HTTP = {"retry_budget": "5s", "read_timeout": 3.0, "connect_timeout": 3.0}
NO_ACTOR = "HR systems do not say who made a change"
ONCE_EACH = "an employee is a key of a map, and comes once"


class HrSource(FakedSource):
    """A company in which nothing happened yet."""

    def __init__(self, fake: HrFake | ScimHarness, settings: dict[str, Any]) -> None:
        super().__init__(fake)
        self._settings = {"connector_id": "people", "http": HTTP, "page_events": 12, **settings}

    def connector(self) -> HrConnector:
        return Context(self.fake.clock, self.sleep).construct(HrConnector, self._settings)


class OAuthSource(HrSource):
    does_not_apply: ClassVar = {
        Fault.NULL_ACTOR: NO_ACTOR,
        Fault.TOKEN_EXPIRED: "who keeps the token fresh is outside",
        Fault.VANISHED_OBJECT: "the list has no objects that are asked for one by one",
        Fault.FORBIDDEN_OBJECT: "the list has no objects that are asked for one by one",
    }

    def grants(self) -> Collection[GrantTuple]:
        return self.fake.grants(has_oauth=True)  # type: ignore[call-arg]

    def secrets(self) -> Collection[str]:
        return [ACCESS_TOKEN]


class ApiKeySource(HrSource):
    does_not_apply: ClassVar = {
        Fault.NULL_ACTOR: NO_ACTOR,
        Fault.TOKEN_EXPIRED: "an API key does not expire",
        Fault.VANISHED_OBJECT: "a snapshot asks for no single object",
        Fault.REPEATED_TOKEN: "nothing comes in pages",
        Fault.EMPTY_PAGE: "nothing comes in pages",
        Fault.PAGE_TOKEN_EXPIRED: "nothing comes in pages",
        Fault.REPEATED_EVENT: ONCE_EACH,
    }

    def secrets(self) -> Collection[str]:
        return [API_KEY]


class ScimSource(HrSource):
    does_not_apply: ClassVar = {
        Fault.NULL_ACTOR: NO_ACTOR,
        Fault.VANISHED_OBJECT: "a snapshot asks for no single object",
        Fault.REPEATED_TOKEN: "index paging has no tokens; test_hr_connector has cursors",
        Fault.EMPTY_PAGE: "index paging has no tokens; test_hr_connector has cursors",
        Fault.PAGE_TOKEN_EXPIRED: "index paging has no tokens; test_hr_connector has cursors",
    }

    def secrets(self) -> Collection[str]:
        return [SCIM_SECRET, SCIM_ACCESS_TOKEN]


def bamboohr(url: str, **credential: str) -> dict[str, Any]:
    table = {"company_domain": COMPANY, "api_url": f"{url}/api/v1", **credential}
    return {"source": "bamboohr", "bamboohr": table}


def scim(url: str) -> dict[str, Any]:
    auth = {
        "kind": "client_credentials",
        "token_url": f"{url}/token",
        "client_id": SCIM_CLIENT,
        "client_secret": SCIM_SECRET,
    }
    table = {"base_url": f"{url}/v2", "name": SCIM_NAME, "auth": auth, "page_size": 15}
    return {"source": "scim", "scim": table}


class TestBambooHrByOAuth(ConnectorLaws):
    connector_class = HrConnector
    crashes_max = 10
    memory_events_per_slice = 60

    @pytest.fixture
    def source(self) -> Iterator[HrSource]:
        fake = HrFake(World(leaver_count=0), Clock(NOW))
        fake.is_limited = False
        fake.list_limit_max = 15
        with serving(fake.app) as url:
            yield OAuthSource(fake, bamboohr(url, access_token=ACCESS_TOKEN))


class TestBambooHrByApiKey(ConnectorLaws):
    connector_class = HrConnector
    crashes_max = 10
    # No fewer events: by an API key a first pass holds everybody's rows, and those of the first
    # people weigh too much beside few who come.

    @pytest.fixture
    def source(self) -> Iterator[HrSource]:
        fake = HrFake(World(leaver_count=0), Clock(NOW))
        fake.is_limited = False
        with serving(fake.app) as url:
            yield ApiKeySource(fake, bamboohr(url, api_key=API_KEY))


class TestScim(ConnectorLaws):
    connector_class = HrConnector
    crashes_max = 10
    memory_events_per_slice = 24  # The real server copies everybody at each request.

    @pytest.fixture
    def source(self) -> Iterator[HrSource]:
        harness = ScimHarness(World(leaver_count=0), Clock(NOW + timedelta(seconds=0.25)))
        with serving(harness.app) as url:
            yield ScimSource(harness, scim(url))
