"""Each workaround on its own, without a broker; a test names the defect that it keeps away."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.consumer.group_coordinator import GroupCoordinator
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.types import TP

from verity_sdk.errors import Misconfigured
from verity_stream.faust_base import fixes
from verity_stream.faust_base.app import VerityApp
from verity_stream.faust_base.fixes import (
    PINNED,
    DeliveredOffsetsConsumer,
    SeekFirstRecovery,
    add_timer,
    check_versions,
)
from verity_stream.faust_base.group import note_heartbeats
from verity_stream.faust_base.options import faust_options
from verity_stream.settings import StreamSettings
from verity_stream.waiting import contained

TOPIC = "verity.events.raw.test"


def make_settings(**changes: Any) -> StreamSettings:
    kafka = {"bootstrap_servers": "localhost:1"}
    return StreamSettings(**{"app_id": "unit", "kafka": kafka, **changes})


def make_app() -> VerityApp:
    settings = make_settings()
    return VerityApp("unit", verity=settings, **faust_options(settings))


# Versions.


def test_the_pinned_versions_are_the_installed_ones() -> None:
    """The workarounds run against what they were read in."""
    check_versions()
    assert {name: importlib.metadata.version(name) for name in PINNED} == PINNED


def test_another_version_is_refused() -> None:
    """The message names what is installed, what must be, and how to get it."""
    with pytest.raises(Misconfigured, match=r"faust-streaming is 0\.16\.0, not 0\.15\.3") as error:
        check_versions(lambda name: "0.16.0" if name == "faust-streaming" else PINNED[name])
    assert "aiokafka==0.14.0" in str(error.value)


def test_an_app_is_not_made_with_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard stands at the only door."""
    monkeypatch.setattr(fixes, "PINNED", {**PINNED, "aiokafka": "0.13.0"})
    with pytest.raises(Misconfigured, match="aiokafka"):
        make_app()


# Committed offsets.


@pytest.fixture
async def consumer() -> AsyncIterator[DeliveredOffsetsConsumer]:
    app = make_app()
    conductor: Any = app.topics
    conductor._acking_topics.add(TOPIC)
    consumer = app.consumer
    assert isinstance(consumer, DeliveredOffsetsConsumer)

    async def deliver(message: Any) -> None:
        message.incref()

    consumer._deliver = deliver
    yield consumer
    consumer._thread.thread_loop.close()  # Of a thread that is never started.


def make_message(consumer: Any, offset: int) -> Any:
    record = SimpleNamespace(
        topic=TOPIC,
        partition=0,
        offset=offset,
        timestamp=0,
        timestamp_type=0,
        headers=(),
        key=b"",
        value=b"",
        checksum=None,
        serialized_key_size=0,
        serialized_value_size=0,
    )
    return consumer._to_message(TP(TOPIC, 0), record)


async def deliver(consumer: Any, *offsets: int) -> list[Any]:
    messages = []
    for offset in offsets:
        message = make_message(consumer, offset)
        tp = message.tp
        read = consumer._read_offset[tp]
        if read is not None and offset - read > 1:  # as Consumer._drain_messages does
            await consumer._add_gap(tp, read + 1, offset)
        await consumer.callback(message)
        consumer._read_offset[tp] = offset
        messages.append(message)
    return messages


def acknowledge(consumer: Any, *messages: Any) -> None:
    for message in messages:
        message.ack(consumer)


@pytest.mark.parametrize(
    "offsets",
    [(0, 2, 4, 6, 8), (0, 1, 2), (7, 9, 12), (0, 500)],
    ids=["one-record transactions", "no gap", "compacted", "offset 0, then a gap"],
)
async def test_commits_reach_the_last_delivered_offset(
    consumer: DeliveredOffsetsConsumer, offsets: tuple[int, ...]
) -> None:
    """Control markers and compaction hold nothing up (transport/consumer.py:1215 and :1196)."""
    acknowledge(consumer, *await deliver(consumer, *offsets))
    assert consumer._new_offset(TP(TOPIC, 0)) == offsets[-1] + 1


async def test_commits_never_pass_a_message_in_flight(consumer: DeliveredOffsetsConsumer) -> None:
    """Only the acknowledged prefix; the rest follows when its first is done (#606)."""
    first, second, third = await deliver(consumer, 1, 3, 5)
    acknowledge(consumer, second)
    assert consumer._new_offset(TP(TOPIC, 0)) is None
    acknowledge(consumer, first)
    assert consumer._new_offset(TP(TOPIC, 0)) == 4
    assert consumer._new_offset(TP(TOPIC, 0)) is None
    acknowledge(consumer, third)
    assert consumer._new_offset(TP(TOPIC, 0)) == 6


async def test_an_offset_delivered_again_counts_by_its_own_processing(
    consumer: DeliveredOffsetsConsumer,
) -> None:
    """After a seek back, the acknowledgement of the first copy does not commit the second."""
    (late,) = await deliver(consumer, 5)
    consumer._delivered.clear()  # as a revoke does
    again, after = await deliver(consumer, 5, 6)
    acknowledge(consumer, late, after)
    assert consumer._new_offset(TP(TOPIC, 0)) is None
    acknowledge(consumer, again)
    assert consumer._new_offset(TP(TOPIC, 0)) == 7


async def test_a_delivery_cancelled_before_its_first_step_is_not_committed_past(
    consumer: DeliveredOffsetsConsumer,
) -> None:
    """Faust races the delivery with a suspended flow; what lost the race was not processed."""
    (before,) = await deliver(consumer, 1)
    message = make_message(consumer, 2)
    task = asyncio.ensure_future(consumer.callback(message))
    task.cancel()
    await asyncio.wait({task})
    (after,) = await deliver(consumer, 3)
    acknowledge(consumer, before, after)
    assert consumer._new_offset(TP(TOPIC, 0)) == 2


async def test_changelogs_are_not_tracked(consumer: DeliveredOffsetsConsumer) -> None:
    """Their records are never acknowledged: tracking them would only fill the memory."""
    conductor: Any = consumer.app.topics
    conductor._acking_topics.clear()
    await deliver(consumer, 1, 2)
    assert not consumer._delivered


async def test_acknowledged_offsets_are_committed_at_a_revoke(
    consumer: DeliveredOffsetsConsumer,
) -> None:
    """Upstream #502: it forgets them before the commit, and the next owner repeats them."""
    tp = TP(TOPIC, 0)
    committed = {}

    async def app_revokes(revoked: set[TP]) -> None:
        committed.update(consumer._filter_committable_offsets(list(consumer._acked)))

    consumer._on_partitions_revoked = app_revokes
    acknowledge(consumer, *await deliver(consumer, 1, 3))
    await consumer.on_partitions_revoked({tp})
    assert committed == {tp: 4}
    for state in (consumer._delivered, consumer._acked, consumer._read_offset):
        assert tp not in state


async def test_a_waiting_fetch_takes_nothing_from_paused_partitions(
    consumer: DeliveredOffsetsConsumer,
) -> None:
    """aiokafka takes an empty set for "all": what it took was dropped, and the position moved."""
    active = {TP(TOPIC, 0)}
    handed_over = []

    async def call_thread(method: Any, client: Any, partitions: Any, **kwargs: Any) -> None:
        handed_over.append(partitions)

    thread: Any = consumer._thread
    thread._consumer = SimpleNamespace(_max_poll_records=None)
    thread.call_thread = call_thread
    await thread.getmany(active, timeout=1.0)
    (partitions,) = handed_over
    assert TP(TOPIC, 0) in partitions
    active.clear()
    assert partitions  # aiokafka's `if partitions and tp not in partitions`
    assert TP(TOPIC, 0) not in partitions


async def test_an_assignment_is_paused_from_the_start(consumer: DeliveredOffsetsConsumer) -> None:
    """Nothing is fetched before the recovery has sought, not for a moment."""
    seen = []

    async def app_assigns(assigned: set[TP], generation_id: int) -> None:
        seen.append(set(consumer._get_active_partitions()))

    # With the generation, as the consumer of this version calls it; its type says less.
    consumer._on_partitions_assigned = cast("Any", app_assigns)
    consumer.app.on_rebalance_start()
    await consumer.on_partitions_assigned({TP(TOPIC, 0), TP(TOPIC, 1)}, 3)
    assert seen == [set()]
    consumer.resume_partitions({TP(TOPIC, 1)})
    assert consumer._get_active_partitions() == {TP(TOPIC, 1)}


# Recovery.


class FakeConsumer:
    """Notes what a recovery does, in order."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.while_seeking: Callable[[], object] = lambda: None
        self.seek_seconds = 0.0

    def assignment(self) -> set[TP]:
        return {TP(TOPIC, 0)}

    async def perform_seek(self) -> None:
        await asyncio.sleep(self.seek_seconds)
        self.did.append("seek")
        self.while_seeking()

    def resume_partitions(self, partitions: set[TP]) -> None:
        self.did.append("resume partitions")

    def resume_flow(self) -> None:
        self.did.append("resume flow")


@pytest.fixture
async def recovery() -> SeekFirstRecovery:
    app: Any = make_app()
    app._consumer = FakeConsumer()
    app.__dict__["_fetcher"] = SimpleNamespace(maybe_start=_nothing)
    app.consumer_generation_id = 7
    app.on_rebalance_start()
    app._assigned_in = app.rebalancing_count
    recovery = app.tables.recovery
    assert isinstance(recovery, SeekFirstRecovery)
    return recovery


async def _nothing() -> None:
    pass


@pytest.mark.parametrize("way", ["on_recovery_completed", "_resume_streams"])
async def test_partitions_are_sought_before_they_are_resumed(
    recovery: SeekFirstRecovery, way: str
) -> None:
    """Upstream #596: resumed first, a partition repeats a record and then stops committing."""
    await getattr(recovery, way)(generation_id=7)
    assert recovery.app.consumer.did == ["seek", "resume partitions", "resume flow"]
    assert recovery.app.is_settled
    assert not recovery.app.rebalancing


async def test_a_rebalance_that_has_been_overtaken_does_not_end(
    recovery: SeekFirstRecovery,
) -> None:
    """Faust would declare itself ready in the middle of the next rebalance."""
    recovery.app.consumer.while_seeking = recovery.app.on_rebalance_start
    await recovery.on_recovery_completed(generation_id=7)
    assert recovery.app.consumer.did == ["seek"]
    assert not recovery.app.is_settled
    recovery.app.on_rebalance_end()
    assert recovery.app.rebalancing


async def test_a_step_that_takes_too_long_is_an_error(recovery: SeekFirstRecovery) -> None:
    """Faust takes it for a stop of the service: alive, and never assigned anything again."""
    recovery.app.consumer.seek_seconds = 60
    recovery.app.conf.broker_request_timeout = 0.01
    with pytest.raises(TimeoutError):
        await recovery.on_recovery_completed(generation_id=7)


# Timers.


async def test_a_timer_survives_errors_and_cancellations(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """mode/services.py:879: one kills the worker, the other ends the timer without a word."""
    app = make_app()
    ticks: list[int] = []
    went_on = asyncio.Event()

    async def tick() -> None:
        ticks.append(len(ticks))
        if ticks[-1] == 0:
            raise RuntimeError("boom")
        if ticks[-1] == 1:
            raise asyncio.CancelledError
        if ticks[-1] == 2:
            await asyncio.sleep(60)
        if ticks[-1] == 3:
            running.cancel()
            await asyncio.sleep(60)
        if ticks[-1] == 5:
            went_on.set()

    add_timer(app, 0.001, tick, name="test", seconds_max=0.5)
    running = asyncio.ensure_future(app._app_tasks[-1]())
    async with asyncio.timeout(30):
        await went_on.wait()
    assert not running.done()
    app._stopped.set()
    await asyncio.wait({running}, timeout=30)
    assert running.done()
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == [
        "test failed",
        "test was cancelled from within",
        "test took over 0.5 s and was cancelled",
        "The timer test was cancelled from outside; it goes on",
    ]


async def test_contained_passes_its_own_cancellation_on() -> None:
    """Whoever is cancelled cancels what it waits for."""
    started = asyncio.Event()
    ended = asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    task = asyncio.ensure_future(contained(work(), "work", 60))
    await started.wait()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    async with asyncio.timeout(1):
        await ended.wait()


# The surroundings.


async def test_only_our_pages_are_served() -> None:
    """Faust's /, /table/ and /router/ give data to whoever asks."""
    app = make_app()
    app.web.init_server()
    web: Any = app.web
    routes = {route.resource.canonical for route in web.web_app.router.routes()}
    assert routes == {"/healthz", "/readyz"}


async def test_a_fetch_does_not_hold_a_rebalance_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,500 ms in Faust, and what a rebalance asks for waits behind it on the same connection."""
    consumer = AIOKafkaConsumer(bootstrap_servers="localhost:1")
    assert isinstance(consumer._fetch_max_wait_ms, int), "aiokafka reads it when it starts"
    monkeypatch.setattr(AIOKafkaConsumerThread, "_create_worker_consumer", lambda *_: consumer)
    thread = object.__new__(fixes.CommittedReaderThread)
    assert thread._create_worker_consumer(None)._fetch_max_wait_ms == fixes.FETCH_WAIT_MS
    assert fixes.FETCH_WAIT_MS <= 250
    assert consumer._isolation_level == "read_committed"
    await asyncio.sleep(0)  # aiokafka's stop() fails where nothing was awaited before.
    await consumer.stop()


async def test_a_coordinator_says_when_the_group_last_heard_of_it() -> None:
    """aiokafka keeps it in a local variable; once the session is over others own the partitions."""

    class Coordinator:
        answers: ClassVar[list[bool]] = [True, False]

        async def _do_heartbeat(self) -> bool:
            return self.answers.pop(0)

    assert hasattr(GroupCoordinator, "_do_heartbeat"), "called by _heartbeat_routine"
    note_heartbeats(None)
    coordinator: Any = Coordinator()
    note_heartbeats(coordinator)
    joined_at = coordinator.heard_at
    assert await coordinator._do_heartbeat()
    heard_at = coordinator.heard_at
    assert heard_at > joined_at
    assert not await coordinator._do_heartbeat()
    assert coordinator.heard_at == heard_at
    note_heartbeats(coordinator)  # The next assignment: wrapped once only.
    assert coordinator.heard_at > heard_at
    coordinator.answers.append(True)
    assert await coordinator._do_heartbeat()
    assert not coordinator.answers
