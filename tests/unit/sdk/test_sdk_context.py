"""What a connector is handed of its surroundings, and which connectors need not know of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any

import httpx2
import pytest
from pydantic import BaseModel, ConfigDict

from verity_sdk import BaseConnector, Context, Denied, Misconfigured, RawEvent
from verity_sdk.connector_base import has_check
from verity_sdk.context import current_context
from verity_sdk.http import HttpClient, HttpSettings

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


class Plain(BaseConnector):
    """As the specification has it: three parameters, two methods."""

    async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        none: list[RawEvent] = []
        for event in none:
            yield event

    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        none: list[Any] = []
        for grant in none:
            yield grant


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)
    connector_id: str
    hours: int = 1


class Modelled(Plain):
    settings: Table
    PLATFORM = "acme"
    Settings = Table

    def __init__(self, config: Any, kafka_producer: Any, db_pool: Any) -> None:
        super().__init__(config, kafka_producer, db_pool)
        self.made_at = self.context.clock()


class Throttled:
    """An API that answers 429 once; its clients sleep without waiting."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.waits: list[datetime | None] = []
        self.context = Context(lambda: NOW, self.sleep, lambda until, _: self.waits.append(until))
        self._answers = [httpx2.Response(429, headers={"retry-after": "7"})]

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)

    def client(self, **options: Any) -> HttpClient:
        return HttpClient(
            HttpSettings(),
            platform="acme",
            hosts=["api.example.com"],
            transport=httpx2.MockTransport(
                lambda _: self._answers.pop() if self._answers else httpx2.Response(200, json={})
            ),
            **options,
        )


def test_a_context_is_there_from_the_first_line_of_a_constructor_on() -> None:
    one = Context(lambda: NOW).construct(Modelled, {"connector_id": "a"})
    assert one.made_at == one.context.clock() == NOW
    assert one.kafka_producer is one.db_pool is None


def test_what_is_made_outside_goes_by_the_machine() -> None:
    before = datetime.now(UTC)
    assert before <= Modelled({"connector_id": "a"}, None, None).made_at <= datetime.now(UTC)
    assert current_context().sleep is asyncio.sleep
    assert current_context().trusted(NOW) == NOW


def test_one_connectors_context_is_not_the_next_ones() -> None:
    with pytest.raises(Misconfigured):
        Context(lambda: NOW).construct(Modelled, {"connector_id": "a", "hours": "many"})
    assert current_context() is Modelled({"connector_id": "b"}, None, None).context
    assert current_context().clock() != NOW


def test_the_settings_are_the_validated_table() -> None:
    one = Modelled({"connector_id": "a", "hours": 3}, "producer", "pool")
    assert one.settings is one.config
    assert (one.settings.hours, one.kafka_producer, one.db_pool) == (3, "producer", "pool")
    assert Modelled(Table(connector_id="a"), None, None).settings == Table(connector_id="a")
    with pytest.raises(Misconfigured, match="hours: ") as raised:
        Modelled({"connector_id": "a", "hours": "s3cr3t"}, None, None)
    assert "s3cr3t" not in str(raised.value)


async def test_a_connector_of_the_specification_needs_none_of_it() -> None:
    config = {"connector_id": "a"}
    one = Plain(config, "producer", "pool")
    assert one.config is config
    assert (one.PLATFORM, one.Settings, has_check(one)) == ("", None, False)
    assert not hasattr(one, "settings")
    await one.check()
    await one.close()


def test_names_that_an_author_uses_otherwise_go_on_working() -> None:
    class Author(Plain):
        class Settings:
            url = "https://acme.example"

        @property
        def context(self) -> str:  # type: ignore[override]
            return "mine"

        def __init__(self, config: Any, kafka_producer: Any, db_pool: Any) -> None:
            self.settings = {"before": True}
            super().__init__(config, kafka_producer, db_pool)

    one = Author({"connector_id": "a"}, None, None)
    assert (one.context, one.settings, one.config) == (
        "mine",
        {"before": True},
        {"connector_id": "a"},
    )


def test_a_subclass_that_forgets_super_has_a_context() -> None:
    class Forgetful(Plain):
        def __init__(self, config: Any, kafka_producer: Any, db_pool: Any) -> None:
            self.config = config

    one = Forgetful({}, None, None)
    assert one.context.clock().tzinfo is UTC


async def test_an_authors_check_is_known_as_one() -> None:
    class Checked(Plain):
        async def check(self) -> None:
            raise Denied("no grant")

    assert has_check(Checked({}, None, None))


async def test_a_client_waits_and_says_so_by_the_context_it_was_given() -> None:
    api = Throttled()
    client = api.client(context=api.context)
    with Context(report_wait=lambda *_: pytest.fail("another one's")).within():
        await client.get("https://api.example.com/a")
    assert api.slept == [7.0]
    assert api.waits == [NOW + timedelta(seconds=7), None]


async def test_a_client_that_was_given_none_goes_by_whoever_drives_it() -> None:
    """An author's connector need not hand it on; it may have made the client before, too."""
    api = Throttled()
    client = api.client()
    with api.context.within():
        await client.get("https://api.example.com/a")
    assert api.slept == [7.0]
    assert api.waits == [NOW + timedelta(seconds=7), None]


async def test_the_names_of_old_serve_for_one_more_release() -> None:
    old: Any = import_module("verity_sdk.waits")
    with pytest.warns(DeprecationWarning, match="report_wait is verity_sdk.context"):
        report_wait = old.report_wait
    with pytest.warns(DeprecationWarning, match="WaitReport"):
        assert old.WaitReport is not None
    with pytest.raises(AttributeError, match="waits"):
        _ = old.other

    api = Throttled()

    async def driver() -> None:
        report_wait.set(lambda until, _: api.waits.append(until))
        assert report_wait.get() is current_context().report_wait
        await api.client(clock=lambda: NOW, sleep=api.sleep).get("https://api.example.com/a")

    await asyncio.create_task(driver())
    assert api.waits == [NOW + timedelta(seconds=7), None]
    assert report_wait.get() is None
