"""The runner's decisions over real relays, against Kafka and Postgres in memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
import structlog
from faults.memory import (
    Broker,
    MemoryCheckpoints,
    MemoryIdLog,
    MemoryPublisher,
    MemoryReader,
    Script,
    event,
)

from verity_sdk.context import Context
from verity_sdk.errors import Denied, Unavailable
from verity_sdk.http import HttpClient, HttpSettings
from verity_sdk.pages import Page, PagedConnector, Position
from verity_stream.kafka.partitions import partition_for
from verity_stream.postgres.controls import Control
from verity_stream.settings import ConnectorOptions, ConnectorSpec, StreamSettings
from verity_stream.status import State, Status, utc_now
from verity_stream.worker import supervise
from verity_stream.worker.runner import ConnectorRunner

CONNECTOR = "http-1"
SETTINGS = StreamSettings()
WAIT_SECONDS = 60.0
OK = httpx2.Response(200, json={"events": [1]})
EMPTY = httpx2.Response(200, json={"events": []})
DOWN = httpx2.Response(503)


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with structlog.testing.capture_logs():
        yield


class Controls:
    """What operators ask for, in place of the tables in Postgres."""

    def __init__(self) -> None:
        self.control = Control()

    async def now(self) -> datetime:
        return datetime.now(UTC)

    async def controls(self) -> Mapping[str, Control]:
        return {CONNECTOR: self.control}

    async def report(self, statuses: Iterable[Status]) -> None:
        pass


class NoTopics:
    """Topics that are there."""

    async def ensure(self, names: Iterable[str]) -> None:
        pass

    async def require_shape(self) -> None:
        pass

    def forget(self) -> None:
        pass


class MemoryRunner(ConnectorRunner):
    """A worker's runner over Kafka and Postgres in memory; it owns its one connector."""

    def __init__(self, cls: type[PagedConnector], **others: Any) -> None:
        options = ConnectorOptions(type="memory", poll_every=0.001, snapshot_every=None)
        super().__init__(SETTINGS, [ConnectorSpec(CONNECTOR, cls, "memory", {}, options)], **others)
        self.broker, self.script, self.asked = Broker(), Script(), Controls()
        self._store = MemoryCheckpoints().scripted(self.script)  # type: ignore[assignment]
        self._reader = MemoryReader(self.broker, self.script)  # type: ignore[assignment]
        self._ids = MemoryIdLog(self.broker, self.script)  # type: ignore[assignment]
        self._topics = NoTopics()  # type: ignore[assignment]
        self._controls = self._reports = self.asked  # type: ignore[assignment]

    def _publisher(self, name: str) -> Any:
        return MemoryPublisher(self.broker, self.script, name)

    @property
    def state(self) -> State:
        return self.statuses[CONNECTOR].state

    async def own_it(self) -> None:
        partition = partition_for(CONNECTOR, SETTINGS.checkpoint_partitions)
        await self.assign(frozenset({partition}))

    async def reconcile_until(self, is_reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not is_reached():
                await self.reconcile()
                await asyncio.sleep(0.001)


def http_connector(lives: Iterable[Iterable[httpx2.Response]]) -> type[PagedConnector]:
    """A connector of an HTTP API that answers these in each of its lives, and then 503 for ever.

    It waits for its vendor as every HTTP connector does, and says so; only the waits take no time.
    """
    later = iter([list(answers) for answers in lives])

    async def no_time(_: float) -> None:
        await asyncio.sleep(0)

    class Http(PagedConnector):
        PLATFORM = "memory"

        def __init__(self, config: Any, kafka_producer: Any, db_pool: Any) -> None:
            super().__init__(config, kafka_producer, db_pool)
            self.left = next(later, [])

        async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
            api = HttpClient(
                HttpSettings(),
                platform="memory",
                hosts=["api.example.com"],
                sleep=no_time,
                transport=httpx2.MockTransport(lambda _: self.left.pop(0) if self.left else DOWN),
            )
            try:
                found = (await api.get("https://api.example.com/events")).json()["events"]
            finally:
                await api.close()
            events = [event(number, number) for number in found]
            if events:
                through = datetime(2026, 1, 1, tzinfo=UTC)
                yield Page(events, {"next": 2}, through)

        async def snapshot_permissions(self) -> AsyncIterator[Any]:
            for grant in list[Any]():
                yield grant

    return Http


class Ends:
    """How often a connector's relay ended, and how long the runner then pauses.

    The pauses are decided as always, with a seeded jitter, and not waited for.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.errors: list[BaseException | None] = []
        self.failures: list[int] = []
        self.pauses: list[float] = []
        jitter, decide = random.Random(13), supervise.after_failure

        def decided(
            error: BaseException | None, failures: int, settings: StreamSettings, _: float
        ) -> Any:
            state, pause = decide(error, failures, settings, jitter.random())
            self.errors.append(error)
            self.failures.append(failures)
            self.pauses.append(pause.total_seconds())
            return state, timedelta(0)

        monkeypatch.setattr(supervise, "after_failure", decided)


async def ends_of(
    lives: Iterable[Iterable[httpx2.Response]], count: int, monkeypatch: pytest.MonkeyPatch
) -> Ends:
    ends = Ends(monkeypatch)
    runner = MemoryRunner(http_connector(lives))
    await runner.own_it()
    await runner.reconcile_until(lambda: len(ends.errors) >= count)
    await runner.revoke()
    assert all(isinstance(error, Unavailable) for error in ends.errors), ends.errors
    return ends


async def test_an_http_connector_that_only_ever_waits_and_fails_backs_off_further_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wait that is over is shown as `running`, and is no progress."""
    ends = await ends_of([], 8, monkeypatch)
    for number, pause in enumerate(ends.pauses[:8]):
        doubled = min(2.0**number, SETTINGS.backoff_max.total_seconds())
        assert doubled / 2 <= pause <= doubled, f"end {number + 1}: {ends.pauses}"


@pytest.mark.parametrize(
    ("progress", "meaning"),
    [(OK, "a page was committed"), (EMPTY, "a pass was finished")],
)
async def test_progress_makes_the_next_failure_the_first_one(
    progress: httpx2.Response, meaning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = await ends_of([[], [], [progress], []], 4, monkeypatch)
    assert ends.failures[:4] == [1, 2, 1, 2], meaning


async def test_a_connector_is_handed_the_workers_clocks_and_who_shows_its_waits() -> None:
    """Behind `trusted` stands the database's clock, too."""
    contexts: list[Context] = []
    cls = http_connector([[DOWN, EMPTY]])

    class Noting(cls):  # type: ignore[misc, valid-type]
        def __init__(self, config: Any, kafka_producer: Any, db_pool: Any) -> None:
            super().__init__(config, kafka_producer, db_pool)
            contexts.append(self.context)

    def present() -> datetime:
        return datetime.now(UTC)

    runner = MemoryRunner(Noting, clock=present)
    await runner.own_it()
    await runner.reconcile_until(lambda: runner.state is State.CAUGHT_UP)
    (context,) = contexts
    assert context.clock is present
    assert context.report_wait is not None
    context.report_wait(utc_now(), "it is throttled")
    states = [runner.state]
    context.report_wait(None, "")
    assert [*states, runner.state] == [State.BACKING_OFF, State.RUNNING]
    ahead = utc_now() + timedelta(hours=3)
    assert context.trusted(ahead) < ahead - timedelta(hours=2)
    await runner.revoke()


class Locked(PagedConnector):
    """Denied until somebody has mended its grant."""

    is_granted = False

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        if not Locked.is_granted:
            raise Denied("no grant")
        for page in list[Page]():
            yield page

    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        for grant in list[Any]():
            yield grant


@pytest.fixture
async def locked(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MemoryRunner]:
    """A runner whose connector is blocked: by itself it is tried again in 5 minutes."""
    monkeypatch.setattr(Locked, "is_granted", False)
    runner = MemoryRunner(Locked)
    await runner.own_it()
    await runner.reconcile_until(lambda: runner.state is State.BLOCKED)
    yield runner
    await runner.revoke()


async def test_a_resume_starts_a_connector_that_was_blocked_when_it_was_paused(
    locked: MemoryRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked.asked.control = Control(is_paused=True)
    await locked.reconcile_until(lambda: locked.state is State.PAUSED)
    monkeypatch.setattr(Locked, "is_granted", True)
    locked.asked.control = Control()
    await locked.reconcile()
    assert locked.state is State.STARTING, "at the first look after the resume"
    await locked.reconcile_until(lambda: locked.state is State.CAUGHT_UP)


async def test_a_pause_that_goes_on_starts_nothing(locked: MemoryRunner) -> None:
    locked.asked.control = Control(is_paused=True)
    await locked.reconcile_until(lambda: locked.state is State.PAUSED)
    for _ in range(3):
        await locked.reconcile()
    assert locked.state is State.PAUSED


async def test_a_snapshot_that_is_asked_for_does_not_wait_for_the_last_ones_pause() -> None:
    runner = MemoryRunner(http_connector([[EMPTY] * 100_000]))
    await runner.own_it()
    await runner.reconcile_until(lambda: runner.state is State.CAUGHT_UP)
    (one,) = runner._connectors
    failed_until = one.next_snapshot_at = asyncio.get_running_loop().time() + 3600
    await runner.reconcile()
    assert one.next_snapshot_at == failed_until
    runner.asked.control = Control(snapshot_requested_at=utc_now())
    await runner.reconcile()
    assert one.next_snapshot_at is None or one.next_snapshot_at < failed_until
    await runner.revoke()
