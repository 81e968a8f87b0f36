"""One seed, one world: sources, a Kafka, a Postgres, workers, what befalls them, and the reference.

The workers run the product's real code from the driver down; only its clients, its clock and its
chances are ours.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache, partial
from random import Random
from typing import Any

import orjson
import structlog

from simulation.acts import ASKED, BUSY, ENDS_NOTHING, FREEZES, OPERATOR, Acts, tell
from simulation.group import Group, Member
from simulation.kafka import Admin, Consumer, Kafka, Producer, Txn
from simulation.loop import PROCESS, SimLoop, Stuck
from simulation.plan import Plan, draw
from simulation.postgres import Pool, Postgres
from simulation.reference import Facts, Reference, Violated
from simulation.sources import KINDS, PLATFORM, Truth
from simulation.wire import BEGIN, Wire
from verity_sdk.errors import VerityError
from verity_stream.kafka.clients import Clients
from verity_stream.kafka.partitions import partition_for
from verity_stream.postgres.pool import Pools
from verity_stream.records import CHECKPOINTS_TOPIC, GAPS_TOPIC, IDS_TOPIC, dead_topic, raw_topic
from verity_stream.settings import ConnectorOptions, ConnectorSpec, StreamSettings
from verity_stream.worker.driver import Driver
from verity_stream.worker.runner import ConnectorRunner

END_SECONDS = 400.0
"""Once all faults are over, everything is out within this, and the time that sources take."""
STEPS_A_PAGE = 200
"""Of the loop, what all else does meanwhile included."""
CALM_SECONDS = 5.0
COUNTED = {
    "relay.database_behind": "behind_count",
    "relay.topic_behind": "topic_behind_count",
    "relay.seen_window_lost": "lost_count",
}
"""What is said at ERROR and counted, too, and by what of a connector's status."""


class World:
    """Runs one plan.

    Args:
        seed: Gives every random stream.
    """

    def __init__(self, seed: int, plan: Plan, *, keep_trace: bool = False) -> None:
        self.seed, self.plan, self.violation = seed, plan, ""
        self.loop = loop = SimLoop(
            self._rng("schedule"),
            plan["policy"],
            step_seconds=plan["step_seconds"],
            stall_share=plan["stall_share"],
            keep_trace=keep_trace,
        )
        loop.set_exception_handler(self._on_exception)
        self.settings = settings_of(orjson.dumps(plan["settings"]))
        self.kafka = Kafka(
            Wire(loop, self._rng("kafka"), "kafka", **plan["kafka"]), self._on_commit
        )
        self.postgres = Postgres(
            Wire(loop, self._rng("postgres"), "postgres", **plan["postgres"], refuses=True)
        )
        self.group = Group(
            self.kafka.wire,
            self._rng("group"),
            self.settings.checkpoint_partitions,
            self.settings.session_timeout_seconds,
            self._on_shared,
        )
        self.group.on_assigned = lambda process: tell(self._acts.at_assigned, process)
        self.postgres.watch("connector_checkpoints", self._on_checkpoint_row)
        self.postgres.watch("connector_status", self._on_status_row)
        self.kafka.on_left_open = lambda name: self.check(lambda: self.reference.left_open(name))
        if (reading := plan.get("reading")) is not None:
            self.kafka.fetch_records, self.kafka.fetch_seconds = reading
        if (made_before := plan.get("made_before")) is not None:
            for name in (CHECKPOINTS_TOPIC, IDS_TOPIC):
                self.kafka.create(name, made_before)
        self.options = {
            f"c{number}": (KINDS[one["kind"]], options_of(plan["poll_every"], one["lookback"]))
            for number, one in enumerate(plan["connectors"])
        }
        self.truths = {
            name: Truth(name, one, self._rng(name), _lookback_of(*self.options[name]))
            for (name, one) in zip(self.options, plan["connectors"], strict=True)
        }
        self.is_exact = self.settings.delivery == "exactly_once"
        self.reference = Reference(
            self.truths.values(),
            PLATFORM,
            Facts(
                self.settings.page_events,
                plan["workers"],
                self.is_exact,
                self._causes(),
                BUSY - {"terminate", "stopped_in_hand"} | {"slow"},
                loop.time,
            ),
        )
        for truth in self.truths.values():
            truth.on_served = partial(self.check, partial(self.reference.served, truth))
        self.skews = [timedelta(0)] * plan["workers"]
        self.lives = [""] * plan["workers"]
        self.tasks: dict[str, asyncio.Task[Any]] = {}
        self._members: dict[str, Member] = {}
        self._drivers: dict[str, Driver] = {}
        self.dark_until = 0.0
        self._life = self._snapshot_count = 0
        self._acts = Acts(self)

    def _rng(self, name: str) -> Random:
        return Random(f"{self.seed}:{name}")

    def _causes(self) -> set[str]:
        """What was drawn that may be the cause of an alarm."""
        kinds = {act["kind"] for act in self.plan["acts"]}
        causes = set()
        connectors = self.plan["connectors"]
        wires = self.plan["kafka"], self.plan["postgres"]
        silence_max = self.settings.fetch_timeout.total_seconds()
        is_slow = any(one["slow_share"] or one["lost_share"] for one in wires)
        fails = any(
            one["error_share"]
            or one["hangs"]
            or one["leaks"]
            or "outage" in one
            # What lies before the position it reads over in silence.
            or one["items"] / one["page"] * max(one["waits"]) > silence_max
            for one in connectors
        )
        for cause, is_drawn in (
            ("busy", bool(kinds & BUSY) or any(one["hangs"] for one in connectors)),
            ("odd", any(one["odd_share"] or "twins" in one for one in connectors)),
            ("windowed", any(one["kind"] == "windowed" for one in connectors)),
            ("denied", any(one["denied_share"] for one in connectors)),
            ("slow", is_slow),
            ("asked", kinds & ASKED),
            ("ended", is_slow or fails or kinds - ENDS_NOTHING),
            ("read", self.plan.get("reading") is not None),
            ("zombie", not self.is_exact and kinds & FREEZES),
            ("remade", self.plan.get("made_before") is not None and self.plan["workers"] > 1),
        ):
            if is_drawn:
                causes.add(cause)
        return causes

    # What is wrong

    def fail(self, why: str) -> None:
        """A violation; the first one counts."""
        if not self.violation:
            self.violation = why
            self.loop.note("VIOLATION", why)
            self.loop.stop()

    def _on_exception(self, _: Any, context: Mapping[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Exception) and "never retrieved" not in context["message"]:
            self.fail(f"bug: {context['message']}: {error!r}")

    def _on_commit(self, txn: Txn) -> None:
        seals = [record for topic, _, record in txn.records if topic == CHECKPOINTS_TOPIC]
        is_kept = all(self.kafka.has(record) for record in seals)
        self.check(lambda: self.reference.committed(txn.records, is_kept=is_kept))
        for topic, _, record in txn.records:
            if topic == CHECKPOINTS_TOPIC:
                tell(self._acts.at_commit, record.key.decode())
            elif topic == raw_topic(PLATFORM):
                tell(self._acts.at_events, dict(record.headers)["connector_id"].decode())

    def _on_checkpoint_row(self, process: str, before: Any, after: Any) -> None:
        if before is not None and before["epoch"] == after["epoch"]:
            return
        now, member = self.loop.time(), self._members.get(process)
        since = None if member is None else member.unsure_since
        if since is not None:  # One that was frozen has not had that time.
            since = max(since, self._acts.thawed_at.get(process, 0.0))
        unsure_seconds = 0.0 if since is None else now - since
        name, epoch = after["connector_id"], after["epoch"]
        self.check(lambda: self.reference.claimed(name, process, epoch, unsure_seconds))
        tell(self._acts.at_claim, (name, process))

    def _on_status_row(self, process: str, _: Any, after: Any) -> None:
        name, state, error = after["connector_id"], after["state"], after["last_error"]
        self.check(lambda: self.reference.reported(name, process, state, error))

    def _on_shared(self, owners: Mapping[int, str]) -> None:
        for name in self.truths:
            place = partition_for(name, self.settings.checkpoint_partitions)
            self.reference.shared(name, owners[place])

    def check(self, promise: Callable[[], None]) -> None:
        """Hold the world against the reference."""
        try:
            promise()
        except Violated as violated:
            self.fail(str(violated))
        except Exception as error:  # noqa: BLE001 - an error of ours must not pass for a broker's
            self.fail(f"the reference's own: {error!r}")

    def on_error(self, event: Mapping[str, Any]) -> None:
        """The product has logged something at ERROR."""
        if PROCESS.get() == OPERATOR or self.violation:
            return
        name = event["event"]
        if name in ("connector.bug", "snapshot.failed"):
            error = event.get("error") or repr(sys.exc_info()[1])
            # Frozen for longer than a source may be silent, a worker finds that it was.
            if not ("busy" in self._causes() and "fetch_timeout" in error):
                self.fail(f"bug: {name}: {error}")
        else:
            whose, error = event.get("connector_id", ""), event.get("error", "")
            self.check(lambda: self.reference.alarm(name, error, whose))
            if name in COUNTED and not self._is_counted(name, whose):
                self.fail(f"alarm: {name} of {whose} is not counted")

    def _is_counted(self, alarm: str, whose: str) -> bool:
        status = self._drivers[PROCESS.get()].statuses.get(whose)
        return status is None or bool(getattr(status, COUNTED[alarm]))

    # Workers

    def start(self, index: int) -> None:
        """A new process of a worker."""
        if self.loop.time() < self.dark_until:
            self.loop.call_at(self.dark_until, self.start, index)
            return
        self._life += 1
        self.lives[index] = process = f"w{index}.{self._life}"
        self.loop.note("start", process)
        task = self.tasks[process] = self.loop.spawn(process, self._worker(index, process))
        task.add_done_callback(lambda task: self._ended(index, process, task))

    def _ended(self, index: int, process: str, task: asyncio.Task[Any]) -> None:
        """The process ended by itself: an orchestrator starts the next one."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(f"bug: a worker ended: {error!r}")
        if self.lives[index] == process:
            self.kill(index, 1.0)

    def kill(self, index: int, seconds: float) -> None:
        """kill -9; the next process comes after so many seconds."""
        process = self.lives[index]
        if process:
            self.loop.note("kill", process)
            self.loop.kill(process)
            self.lives[index] = ""
            self.loop.call_later(seconds, self.start, index)

    def now(self, index: int) -> datetime:
        """A worker's wall clock."""
        return BEGIN + timedelta(seconds=self.loop.time()) + self.skews[index]

    async def _worker(self, index: int, process: str) -> None:
        driver = Driver(partial(self._runner, index, process), is_fenced=self.is_exact)
        self._drivers[process] = driver
        member = self._members[process] = Member(self.group, process, driver)
        joining: asyncio.Task[Any] | None = None
        try:
            await driver.start()
            joining = asyncio.create_task(member.run())
            while True:
                await asyncio.sleep(1)
                await driver.tick(is_in_group=member.is_in_group)
        except VerityError as error:
            self.loop.note("gives up", process, error)
        finally:
            if joining is not None:
                joining.cancel()
            await driver.stop()
            await member.leave()

    def _runner(self, index: int, process: str) -> ConnectorRunner:
        clock, chances = partial(self.now, index), self._rng(process)
        specs = [
            ConnectorSpec(
                name,
                cls,
                PLATFORM,
                {
                    "connector_id": name,
                    "truth": self.truths[name],
                    "clock": clock,
                    "random": chances,
                },
                options,
            )
            for name, (cls, options) in self.options.items()
        ]
        return ConnectorRunner(
            self.settings.model_copy(update={"worker_name": process}),
            specs,
            clock=clock,
            random=chances,
            clients=self.clients(),
            open_pools=self._open_pools,
            new_snapshot_id=self._new_snapshot_id,
        )

    def clients(self) -> Clients:
        return Clients(
            partial(Producer, self.kafka), partial(Consumer, self.kafka), partial(Admin, self.kafka)
        )

    async def _open_pools(self, _: StreamSettings) -> Pools:
        return Pools(Pool(self.postgres), Pool(self.postgres))

    def _new_snapshot_id(self) -> str:
        self._snapshot_count += 1
        return f"s{self._snapshot_count}"

    # The run

    async def main(self) -> None:
        """All of it: work, faults, calm, and one more look."""
        for index in range(len(self.lives)):
            self.start(index)
        acts = [asyncio.ensure_future(self._acts.befall(one)) for one in self.plan["acts"]]
        for act in acts:
            await act
        outage_ends_at = max(truth.outage_ends_at for truth in self.truths.values())
        await asyncio.sleep(max(CALM_SECONDS, outage_ends_at - self.loop.time()))
        for wire in (self.postgres.wire, self.kafka.wire):
            wire.lost_share = wire.slow_share = 0.0
        for truth in self.truths.values():
            truth.is_calm = True
        # One that is behind makes everything later by as much.
        self.skews = [timedelta(0)] * len(self.skews)
        last = max(truth.last_visible_at for truth in self.truths.values())
        allowed = END_SECONDS + max(truth.slowness for truth in self.truths.values())
        allowed += self._reading_seconds() + self._writing_seconds()
        deadline = max(last, self.loop.time()) + allowed
        while left := self.reference.left(self.postgres.checkpoints):
            if self.loop.time() > deadline:
                return self.fail(f"not within {allowed:g} s: {'; '.join(left)}")
            await asyncio.sleep(1)
        # One more pass: is anything repeated?
        poll = max(one.poll_every for _, one in self.options.values())
        await asyncio.sleep(poll.total_seconds() + 2)
        kept = {name: self.kept(name) for name in (GAPS_TOPIC, dead_topic(PLATFORM))}
        self.check(lambda: self.reference.ended(kept))
        return None

    def _reading_seconds(self) -> float:
        """What three starts take to read back, where that is slow."""
        topics = [self.kafka.topics.get(name) for name in (CHECKPOINTS_TOPIC, IDS_TOPIC)]
        longest = sum(max(len(log.offsets) for log in topic.logs) for topic in topics if topic)
        return 3 * longest / self.kafka.fetch_records * self.kafka.fetch_seconds

    def _writing_seconds(self) -> float:
        """What all pages take to write, where requests or steps are slow and pages small."""
        most, connectors = self.settings.page_events, self.plan["connectors"]
        pages = [one["items"] / min(one["page"], most) for one in connectors]
        each = 4 * self.plan["postgres"]["seconds"] + 10 * self.plan["kafka"]["seconds"]
        # One loop runs them all.
        return each * max(pages) + STEPS_A_PAGE * self.plan["step_seconds"] * sum(pages)

    def kept(self, name: str) -> list[Any]:
        """The committed records that a topic still has."""
        return [record for record, _ in self.committed(name)]

    def committed(self, name: str) -> list[tuple[Any, Txn | None]]:
        """The same, with their transactions."""
        topic = self.kafka.topics.get(name)
        entries = [] if topic is None else [entry for log in topic.logs for entry in log.entries]
        return [
            (record, txn)
            for record, txn in entries
            if record is not None and (txn is None or txn.state == "committed")
        ]


class _Settings(StreamSettings):
    """From what is given and nothing else: an environment is no part of a seed."""

    @classmethod
    def settings_customise_sources(cls, *_: Any, init_settings: Any, **__: Any) -> tuple[Any, ...]:
        """Look nowhere else."""
        return (init_settings,)


@cache
def settings_of(changed: bytes) -> StreamSettings:
    """The settings as people have them, but for what a plan changes."""
    return _Settings(worker_name="sim", **orjson.loads(changed))


@cache
def options_of(poll_every: float | None, lookback: float | None) -> ConnectorOptions:
    """A connector's options; None is the default."""
    given = {"poll_every": poll_every, "lookback": lookback}
    return ConnectorOptions(
        type=PLATFORM, **{name: value for name, value in given.items() if value is not None}
    )


def _lookback_of(cls: Any, options: ConnectorOptions) -> float:
    return ConnectorSpec("", cls, PLATFORM, {}, options).lookback.total_seconds()


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    seed: int
    violation: str
    digest: str
    steps: int
    seconds: float
    events: int
    trace: list[str] | None = None


_running: list[World] = []


def _capture(_: Any, __: str, event: Any) -> Any:
    if _running:
        _running[-1].on_error(event)
    raise structlog.DropEvent


def install() -> None:
    """What a whole process of runs needs: logs become alarms."""
    structlog.configure(
        processors=[_capture],
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        cache_logger_on_first_use=False,
    )
    logging.disable(logging.CRITICAL)
    # What the processes that were killed leave behind closes when it is collected.
    sys.unraisablehook = lambda _: None
    # What is imported lives as long as the process: no collection need look at it again.
    gc.collect()
    gc.freeze()


def run(seed: int, plan: Plan | None = None, *, size: str = "full", trace: bool = False) -> Outcome:
    """Run one world to its end."""
    random.seed(seed)
    gc.disable()  # A collection would end generators at a moment that no seed decides.
    world = World(seed, draw(seed, size) if plan is None else plan, keep_trace=trace)
    _running.append(world)
    asyncio.set_event_loop(world.loop)
    main = world.loop.create_task(world.main(), name="main")
    main.add_done_callback(lambda _: world.loop.stop())
    try:
        world.loop.run_forever()
    except Stuck:
        world.fail(f"stuck: nothing is ready and nothing is due; {'; '.join(world.loop.waiting())}")
    if main.done() and not main.cancelled() and (error := main.exception()) is not None:
        where = "".join(traceback.format_tb(error.__traceback__)[-1:]).split("\n")[0].strip()
        world.fail(f"the world's own: {error!r}: {where}")
    outcome = Outcome(
        seed,
        world.violation,
        world.loop.digest,
        world.loop.steps,
        world.loop.time(),
        sum(sum(known.events) for known in world.reference.known.values()),
        world.loop.trace,
    )
    _running.pop()
    world.loop.discard()
    asyncio.set_event_loop(None)
    if seed % 20 == 0:
        gc.collect()
    return outcome
