"""What an assignment, a rebalance and a lost group do to the connectors that run."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs
from verity_test_connectors import PagedSequence

from verity_sdk.errors import Fenced, Unavailable
from verity_stream.kafka.partitions import partition_for
from verity_stream.kafka.topics import Misshapen
from verity_stream.postgres.controls import Control
from verity_stream.records import SnapshotResult
from verity_stream.settings import ConnectorOptions, ConnectorSpec, StreamSettings
from verity_stream.status import State, Status, utc_now
from verity_stream.worker import runner as runner_module
from verity_stream.worker.runner import ConnectorRunner


class Operation:
    """Controls that a test sets, and every state that was reported."""

    def __init__(self) -> None:
        self.asked: dict[str, Control] = {}
        self.clock = utc_now
        self.error: Exception | None = None
        self.reported: list[tuple[str, State]] = []

    async def now(self) -> datetime:
        return self.clock()

    async def controls(self) -> Mapping[str, Control]:
        if self.error is not None:
            raise self.error
        return self.asked

    async def snapshot_taken(self, name: str, _: SnapshotResult, started_at: datetime) -> None:
        self.asked = {name: replace(self.asked[name], snapshot_started_at=started_at)}

    async def report(self, statuses: Sequence[Status]) -> None:
        self.reported += [(one.connector_id, one.state) for one in statuses]


async def noop() -> None:
    """Starts or closes nothing."""


class NoTopics:
    """Topics of the right shape."""

    def __init__(self) -> None:
        self.misshapen: str | None = None

    async def require_shape(self) -> None:
        if self.misshapen is not None:
            raise Misshapen(self.misshapen)

    def forget(self) -> None:
        pass


class StubRelay:
    """Runs until it is halted, or fails as a test says."""

    def __init__(self) -> None:
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_deaf = False

    def halt(self) -> None:
        if not self.is_deaf and not self.end.done():
            self.end.set_result(None)


class Bench:
    """A runner over stub relays."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, names: Sequence[str]) -> None:
        settings = StreamSettings()
        options = ConnectorOptions(type="test", snapshot_every=None)
        specs = [ConnectorSpec(name, PagedSequence, "test", {}, options) for name in names]
        self.partition = {name: partition_for(name, 24) for name in names}
        self.runner = ConnectorRunner(settings, specs)
        self.operation = Operation()
        self.runner._controls = self.runner._reports = self.operation  # type: ignore[assignment]
        self.runner._topics = NoTopics()  # type: ignore[assignment]
        self.started: list[str] = []
        self.relays: dict[str, StubRelay] = {}
        monkeypatch.setattr(self.runner, "_run", self._run)

    async def _run(self, one: Any) -> None:
        name = one.spec.connector_id
        self.started.append(name)
        relay = self.relays[name] = one.relay = StubRelay()
        one.status.enter(State.RUNNING)
        one.status.page_count += 1
        try:
            await relay.end
        finally:
            if one.relay is relay:
                one.relay = None

    async def assign(self, *names: str) -> None:
        await self.runner.assign(frozenset(self.partition[name] for name in names))
        await self.reconcile()

    async def reconcile(self) -> None:
        await self.runner.reconcile()
        await asyncio.sleep(0)

    def fail(self, name: str, error: BaseException) -> None:
        self.relays[name].end.set_exception(error)

    def runs(self) -> set[str]:
        return {
            one.spec.connector_id
            for one in self.runner._connectors
            if one.task is not None and not one.task.done()
        }


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch, ["a", "b", "c"])


async def test_a_rebalance_touches_only_what_moves(bench: Bench) -> None:
    assert len(set(bench.partition.values())) == 3
    await bench.assign("a", "b")
    bench.runner.hold()
    await bench.reconcile()
    assert bench.runs() == {"a", "b"}
    await bench.assign("b", "c")
    assert bench.runs() == {"b", "c"}
    assert bench.started == ["a", "b", "c"], "b was not started again"
    assert bench.runner.statuses.keys() == {"b", "c"}
    assert ("a", State.STOPPED) in bench.operation.reported


async def test_the_same_partitions_again_change_nothing(bench: Bench) -> None:
    """As after the group was out of reach, and nobody had joined."""
    await bench.assign("a")
    relay = bench.relays["a"]
    bench.runner.hold()
    await bench.assign("a")
    assert bench.relays["a"] is relay
    assert not relay.end.done()


@pytest.mark.parametrize("is_seen_before", [False, True])
async def test_who_is_fenced_during_a_rebalance_waits_for_the_assignment(
    bench: Bench, is_seen_before: bool
) -> None:
    """Two that both start it again would fight; the assignment then knows better than a delay."""
    await bench.assign("a", "b")
    bench.runner.hold()
    bench.fail("a", Fenced("taken over"))
    await asyncio.sleep(0)
    for one in bench.runner._connectors:
        one.life = replace(one.life, next_start_at=None)
    if is_seen_before:
        await bench.reconcile()
        for one in bench.runner._connectors:  # However much time passes.
            one.life = replace(one.life, next_start_at=None)
        await bench.reconcile()
    assert bench.started == ["a", "b"]
    await bench.assign("a", "b")
    assert bench.started == ["a", "b", "a"]


async def test_who_is_fenced_and_no_longer_owner_stays_away(bench: Bench) -> None:
    await bench.assign("a", "b")
    bench.runner.hold()
    bench.fail("a", Fenced("taken over"))
    await bench.assign("b")
    assert (bench.started, bench.runs()) == (["a", "b"], {"b"})


async def test_a_failure_keeps_its_delay_over_an_assignment(bench: Bench) -> None:
    """Only who was fenced starts at once: a source that is down is not asked more often."""
    await bench.assign("a")
    bench.fail("a", Unavailable("down"))
    await asyncio.sleep(0)
    await bench.reconcile()
    bench.runner.hold()
    await bench.assign("a")
    assert bench.started == ["a"]


async def test_pause_is_honoured_while_nothing_may_be_started(bench: Bench) -> None:
    await bench.assign("a", "b")
    bench.runner.hold()
    bench.operation.asked = {"a": Control(is_paused=True)}
    await bench.reconcile()
    assert bench.runs() == {"b"}
    bench.operation.asked = {}
    await bench.reconcile()
    assert bench.runs() == {"b"}, "resumed, but who owns it is not known"
    await bench.assign("a", "b")
    assert bench.runs() == {"a", "b"}


async def test_a_revoke_stops_all_and_the_next_assignment_starts_it(bench: Bench) -> None:
    await bench.assign("a", "b")
    await bench.runner.revoke()
    await bench.reconcile()
    assert bench.runs() == set()
    assert not bench.runner.is_ready()
    await bench.assign("a", "b")
    assert bench.started == ["a", "b", "a", "b"]


async def test_what_is_stopped_twice_and_started_between_is_not_lost_sight_of(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An assignment and a reconcile may both stop a connector; a relay nobody knows runs on."""
    monkeypatch.setattr(runner_module, "HALT_SECONDS", 0.2)
    await bench.assign("a", "b")
    bench.relays["b"].is_deaf = True
    slow = asyncio.create_task(bench.runner.revoke())  # It halts both, and waits for b.
    await asyncio.sleep(0)
    await bench.assign("b")
    await bench.assign("a", "b")
    assert bench.started == ["a", "b", "a"]
    assert not slow.done()
    await slow
    assert bench.runs() == {"a"}
    await bench.runner.revoke()
    assert bench.relays["a"].end.done()


async def test_misshapen_topics_stop_all_relays_with_one_error_and_let_them_go_on(
    bench: Bench,
) -> None:
    await bench.assign("a", "b")
    topics: Any = bench.runner._topics
    topics.misshapen = "delete them"
    with capture_logs() as logs:
        await bench.assign("a", "b")
        await bench.reconcile()
        await bench.reconcile()
    assert [one["error"] for one in logs if one["log_level"] == "error"] == ["delete them"]
    assert bench.runs() == set()
    for one in bench.runner.statuses.values():
        assert (one.state, one.last_error) == (State.BLOCKED, "delete them")
    topics.misshapen = None
    await bench.assign("a", "b")
    assert bench.runs() == {"a", "b"}


async def test_a_clock_that_is_set_back_holds_no_restart_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next try was at a time of the wall clock: set back by hours, it came hours later."""
    await bench.assign("a")
    bench.runner._clock = bench.operation.clock = lambda: datetime(2026, 1, 1, 12, tzinfo=UTC)
    now = 100.0
    monkeypatch.setattr(runner_module, "_loop_seconds", lambda: now)
    bench.fail("a", Unavailable("away"))
    await asyncio.sleep(0)
    await bench.reconcile()
    assert bench.started == ["a"]
    bench.runner._clock = bench.operation.clock = lambda: datetime(2026, 1, 1, 2, tzinfo=UTC)
    now += bench.runner._settings.backoff_max.total_seconds()
    await bench.reconcile()
    assert bench.started == ["a", "a"]


@pytest.mark.parametrize("hours", [2, -2, 0])
async def test_of_two_clocks_that_differ_the_earlier_counts_and_it_is_said_once(
    bench: Bench, hours: int
) -> None:
    true = datetime(2026, 1, 1, 12, tzinfo=UTC)
    bench.operation.clock = lambda: true
    bench.runner._clock = lambda: true + timedelta(hours=hours)
    with capture_logs() as logs:
        await bench.assign("a")
        await bench.reconcile()
    present = bench.runner._present()
    assert timedelta(0) <= present - true - timedelta(hours=min(0, hours)) < timedelta(minutes=1)
    said = [one for one in logs if one["event"] == "worker.clock_differs"]
    assert [one["ahead_of_database_seconds"] for one in said] == ([hours * 3600] if hours else [])


async def test_a_clock_that_is_set_while_the_database_is_away_is_noticed(bench: Bench) -> None:
    """It was believed for as long as nothing could be compared, and windows read ahead of time."""
    true = datetime(2026, 1, 1, 12, tzinfo=UTC)
    bench.operation.clock = bench.runner._clock = lambda: true
    await bench.assign("a")
    bench.operation.error = Unavailable("away")
    bench.runner._clock = lambda: true + timedelta(hours=1)
    await bench.reconcile()
    assert true < bench.runner._present() < true + timedelta(minutes=1)


async def test_nothing_starts_before_it_is_known_what_operators_asked_for(bench: Bench) -> None:
    """A paused connector ran, and a restart that was asked for meanwhile was forgotten."""
    bench.operation.error = Unavailable("away")
    await bench.assign("a", "b")
    assert bench.started == []
    bench.operation.error = None
    bench.operation.asked = {"a": Control(is_paused=True)}
    await bench.reconcile()
    assert bench.started == ["b"]


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_snapshot_that_is_asked_for_is_taken_once_whatever_this_clock_says(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """A clock that is behind took it again and again; one that was ahead never did."""
    true = datetime(2026, 1, 1, 12, tzinfo=UTC)
    bench.operation.clock = lambda: true
    bench.runner._clock = lambda: true + timedelta(hours=hours)
    taken: list[str] = []

    async def publish(spec: Any, *_: Any) -> SnapshotResult:
        taken.append(spec.connector_id)
        return SnapshotResult("id", bench.runner._clock())

    monkeypatch.setattr(runner_module, "publish_snapshot", publish)
    monkeypatch.setattr(bench.runner, "_construct", lambda spec: SimpleNamespace(close=noop))
    monkeypatch.setattr(
        bench.runner, "_publisher", lambda _: SimpleNamespace(start=noop, close=noop)
    )
    await bench.assign("a")
    for wanted in (["a"], ["a", "a"]):
        true += timedelta(minutes=1)
        bench.operation.asked = {
            "a": replace(bench.operation.asked.get("a", Control()), snapshot_requested_at=true)
        }
        true += timedelta(minutes=1)
        for _ in range(4):
            await bench.reconcile()
            await asyncio.sleep(0.01)
        assert taken == wanted


async def test_a_life_that_outlived_its_cancellation_takes_nothing_of_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next one's relay could not be halted any more."""
    ends: list[asyncio.Event] = []

    class Deaf:
        def __init__(self, *arguments: Any) -> None:
            self.may_end = asyncio.Event()
            ends.append(self.may_end)

        async def run(self) -> None:
            await self.may_end.wait()

    monkeypatch.setattr(runner_module, "Relay", Deaf)
    options = ConnectorOptions(type="test")
    config = PagedSequence.Settings(connector_id="a", platform="test")
    runner: Any = ConnectorRunner(
        StreamSettings(), [ConnectorSpec("a", PagedSequence, "test", config, options)]
    )
    runner._store = runner._ids = object()
    (one,) = runner._connectors
    lives = [asyncio.create_task(runner._run(one)) for _ in range(2)]
    await asyncio.sleep(0)
    relay = one.relay
    ends[0].set()
    await asyncio.wait({lives[0]}, timeout=5)
    assert one.relay is relay
    ends[1].set()
    await asyncio.wait({lives[1]}, timeout=5)
    assert (one.relay, one.connector) == (None, None)
