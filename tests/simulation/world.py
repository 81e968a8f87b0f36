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
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache, partial
from random import Random
from typing import Any

import orjson
import structlog

from simulation.group import Group, Member
from simulation.kafka import Admin, Consumer, Kafka, Producer, Txn
from simulation.loop import PROCESS, SimLoop, Stuck
from simulation.plan import Plan, draw
from simulation.postgres import Pool, Postgres
from simulation.reference import Facts, LostPage, Reference, Violated
from simulation.sources import KINDS, PLATFORM, Truth
from simulation.wire import BEGIN, SLOW_SECONDS, Wait, Wire
from verity_sdk.errors import VerityError
from verity_sdk.times import parse_utc
from verity_stream.kafka.clients import Clients
from verity_stream.kafka.committed import CommittedReader
from verity_stream.kafka.partitions import partition_for
from verity_stream.postgres.controls import Controls
from verity_stream.postgres.pool import Pools
from verity_stream.records import (
    CHECKPOINTS_TOPIC,
    GAPS_TOPIC,
    IDS_TOPIC,
    Checkpoint,
    dead_topic,
    raw_topic,
)
from verity_stream.relay import start
from verity_stream.settings import ConnectorOptions, ConnectorSpec, StreamSettings
from verity_stream.worker.driver import Driver
from verity_stream.worker.runner import ConnectorRunner

END_SECONDS = 400.0
"""Once all faults are over, everything is out within this, and the time that sources take."""
STEPS_A_PAGE = 200
"""Of the loop, what all else does meanwhile included."""
CALM_SECONDS = 5.0
OPERATOR = "operator"
BUSY = frozenset(
    {
        *("kill", "terminate", "freeze", "database_away", "database_lost", "row_locked", "restore"),
        *("broker_away", "coordinator_moved", "leader_moved", "checkpoints_deleted", "raw_deleted"),
        *("clock_step", "starter_frozen", "crossed", "crash_edit", "stopped_in_hand"),
        *("restart_unsure",),
        *("clock_step", "restored_and_edited", "zombie", "crash_behind_open", "end_lost"),
        "woken_unheard",
    }
)
"""Acts beside which nobody promises how soon a pause takes."""

ASKED = frozenset(
    {
        *("pause", "restart", "rewind", "restart_unsure", "forward_rewind", "forbidden"),
        *("size_limited", "zombie", "crash_behind_open"),
    }
)
"""Acts in which an operator asks for a start."""
FREEZES = frozenset(
    {"freeze", "starter_frozen", "crossed", "restart_unsure", "zombie", "woken_unheard"}
)
"""Acts that freeze a worker: thawed it may still believe that it owns what another has."""
ENDS_NOTHING = frozenset({"kill", "terminate", "stopped_in_hand", "rebalance", "snapshot"})
"""Acts after which what runs on another worker, and stays there, has no reason to start again."""

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
        self.group.on_assigned = lambda process: _tell(self._at_assigned, process)
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
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._members: dict[str, Member] = {}
        self._thawed_at: dict[str, float] = {}
        self._at_commit: list[asyncio.Future[str]] = []
        self._at_events: list[asyncio.Future[str]] = []
        self._at_claim: list[asyncio.Future[tuple[str, str]]] = []
        self._at_assigned: list[asyncio.Future[str]] = []
        self._drivers: dict[str, Driver] = {}
        self._dark_until = 0.0
        self._life = self._snapshot_count = 0
        self._controls: asyncio.Lock | None = None

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
                _tell(self._at_commit, record.key.decode())
            elif topic == raw_topic(PLATFORM):
                _tell(self._at_events, dict(record.headers)["connector_id"].decode())

    def _on_checkpoint_row(self, process: str, before: Any, after: Any) -> None:
        if before is not None and before["epoch"] == after["epoch"]:
            return
        now, member = self.loop.time(), self._members.get(process)
        since = None if member is None else member.unsure_since
        if since is not None:  # One that was frozen has not had that time.
            since = max(since, self._thawed_at.get(process, 0.0))
        unsure_seconds = 0.0 if since is None else now - since
        name, epoch = after["connector_id"], after["epoch"]
        self.check(lambda: self.reference.claimed(name, process, epoch, unsure_seconds))
        _tell(self._at_claim, (name, process))

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
        if self.loop.time() < self._dark_until:
            self.loop.call_at(self._dark_until, self.start, index)
            return
        self._life += 1
        self.lives[index] = process = f"w{index}.{self._life}"
        self.loop.note("start", process)
        task = self._tasks[process] = self.loop.spawn(process, self._worker(index, process))
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
            clients=self._clients(),
            open_pools=self._open_pools,
            new_snapshot_id=self._new_snapshot_id,
        )

    def _clients(self) -> Clients:
        return Clients(
            partial(Producer, self.kafka), partial(Consumer, self.kafka), partial(Admin, self.kafka)
        )

    async def _open_pools(self, _: StreamSettings) -> Pools:
        return Pools(Pool(self.postgres), Pool(self.postgres))

    def _new_snapshot_id(self) -> str:
        self._snapshot_count += 1
        return f"s{self._snapshot_count}"

    # What befalls them

    async def _act(self, act: Plan) -> None:
        await asyncio.sleep(act["at"])
        index, names = act["who"] % len(self.lives), list(self.truths)
        self.loop.note("act", act["kind"])
        self.reference.happened(act["kind"])
        await getattr(self, f"_{act['kind']}")(act, index, names[act["who"] % len(names)])

    async def _kill(self, act: Plan, index: int, _: str) -> None:
        self._after(act["steps"], lambda: self.kill(index, act["seconds"] / 10))

    async def _terminate(self, act: Plan, index: int, _: str) -> None:
        task = self._tasks.get(self.lives[index])
        if task is not None:
            task.cancel()

    async def _freeze(self, act: Plan, index: int, _: str) -> None:
        process = self.lives[index]
        if process:
            self.loop.freeze(process)
            await asyncio.sleep(act["seconds"])
            self._thaw(process)

    async def _zombie(self, act: Plan, index: int, name: str) -> None:
        """A worker freezes in the middle of a page, others take over, and it wakes up."""
        await self._next(self._at_commit, act["seconds"])
        await self._freeze(act | {"seconds": 25 + act["seconds"] / 3}, index, name)
        await asyncio.sleep(5)
        for each in self.truths:
            await self._restart(act, index, each)

    async def _crash_behind_open(self, act: Plan, *_: Any) -> None:
        """All workers die as one connector's transaction is open before another's checkpoint.

        And the one with the transaction is paused then, so that it does not abort it by a start.
        """
        until = self.loop.time() + 60
        while (name := self._open_before_committed()) is None and self.loop.time() < until:
            await self._next(self._at_commit, until - self.loop.time())
        if name is not None:
            for index in range(len(self.lives)):
                self.kill(index, 1.0)
            await self._pause(act | {"seconds": 20.0}, 0, name)

    def _open_before_committed(self) -> str | None:
        """The connector whose open transaction hides another's last checkpoint."""
        topic = self.kafka.topics.get(CHECKPOINTS_TOPIC)
        for log in [] if topic is None else topic.logs:
            found = [txn for _, txn in log.entries[bisect_left(log.offsets, log.last_stable) :]]
            for number, txn in enumerate(found):
                if txn is not None and txn.state == "open":
                    after = found[number + 1 :]
                    if any(it and it.state == "committed" and it is not txn for it in after):
                        return txn.producer.split(".")[1]
                    break
        return None

    async def _away(self, wire: Wire, seconds: float) -> None:
        wire.away_until = max(wire.away_until, self.loop.time() + seconds)
        await asyncio.sleep(seconds)

    async def _database_away(self, act: Plan, *_: Any) -> None:
        await self._away(self.postgres.wire, act["seconds"])

    async def _broker_away(self, act: Plan, *_: Any) -> None:
        await self._away(self.kafka.wire, act["seconds"] * 2)

    async def _database_lost(self, act: Plan, *_: Any) -> None:
        wire = self.postgres.wire
        before, wire.lost_share = wire.lost_share, 0.3
        await asyncio.sleep(act["seconds"])
        wire.lost_share = before

    async def _row_locked(self, act: Plan, _: int, name: str) -> None:
        if name in self.postgres.checkpoints:
            try:
                self.postgres.lock("connector_checkpoints", name, act["seconds"])
            except Wait:
                return  # Somebody else has it.
            await asyncio.sleep(act["seconds"])

    async def _coordinator_moved(self, act: Plan, *_: Any) -> None:
        self.kafka.coordinators_away_until = self.loop.time() + act["seconds"] / 4
        await asyncio.sleep(act["seconds"] / 4)

    async def _leader_moved(self, act: Plan, *_: Any) -> None:
        self.kafka.leaders_away_until[act["who"] % 3] = self.loop.time() + act["seconds"] / 4
        await asyncio.sleep(act["seconds"] / 4)

    async def _checkpoints_deleted(self, *_: Any) -> None:
        if CHECKPOINTS_TOPIC in self.kafka.topics:
            self.reference.checkpoints_deleted()
            self.kafka.delete(CHECKPOINTS_TOPIC)
            # Faust goes on committing to what is gone: the watchdog ends each process.
            old = list(enumerate(self.lives))
            await asyncio.sleep(self.settings.watchdog_timeout.total_seconds())
            for index, process in old:
                if self.lives[index] == process:
                    self.kill(index, 1.0)

    async def _raw_deleted(self, *_: Any) -> None:
        if raw_topic(PLATFORM) in self.kafka.topics:
            self.reference.raw_deleted()
            self.kafka.delete(raw_topic(PLATFORM))

    async def _end_lost(self, act: Plan, _: int, name: str) -> None:
        """Power fails everywhere, and what was not yet on some disks is gone.

        With the workers running nobody could tell: the next page would stand where one was lost.
        """
        async with self._one_operator():
            until = self.loop.time() + act["seconds"]
            for _ in range(1 + act["steps"] % 20):
                await self._next(self._at_commit, until - self.loop.time())
            arrived = 3 * SLOW_SECONDS  # All that was sent, and the markers of what it decided.
            self._dark_until = self.loop.time() + arrived + act["seconds"] / 10
            for index in range(len(self.lives)):
                self.kill(index, 0.0)
            await asyncio.sleep(arrived)
            seals = [
                (seal, txn)
                for seal, txn in self._committed(CHECKPOINTS_TOPIC)
                if seal.key == name.encode()
            ]
            if not seals:
                return
            later = seals[1:] or seals  # Mostly one is left, to go back to.
            oldest, txn = later[-1 - int(len(later) * act["share"] ** 2)]
            since_ms = oldest.timestamp
            if txn is not None and act["steps"] % 4:  # The events of its page went before it.
                since_ms = min(record.timestamp for *_, record in txn.records)
            topics = (CHECKPOINTS_TOPIC, IDS_TOPIC, raw_topic(PLATFORM))
            only = act["who"] % 10  # One topic, one broker, or in most cases all there is.
            places = [
                (topic, number)
                for topic, found in sorted(self.kafka.topics.items())
                for number, log in enumerate(found.logs)
                if (topic == topics[only] if only < 3 else only > 4 or log.broker == only % 3)
            ]
            self.reference.end_lost(
                self._lost_pages(self.kafka.cut_end(since_ms, places)),
                self._kept(CHECKPOINTS_TOPIC),
                self.postgres.checkpoints,
            )

    def _lost_pages(self, lost: list[tuple[Any, Txn | None]]) -> list[LostPage]:
        """What went along, page by page; where pages are no transactions, record by record."""
        gone = {id(record) for record, _ in lost}
        pages: dict[int, list[Any]] = {}
        for record, txn in lost:
            key = id(record) if txn is None else txn.number
            pages[key] = [record] if txn is None else [record for *_, record in txn.records]
        return [
            LostPage(
                [one for one in records if id(one) in gone],
                [one for one in records if id(one) not in gone],
            )
            for records in pages.values()
        ]

    async def _clock_step(self, act: Plan, index: int, _: str) -> None:
        self.skews[index] += timedelta(seconds=3600 * (2 * act["share"] - 1))

    async def _rebalance(self, *_: Any) -> None:
        self.group.disturb()

    async def _restore(self, act: Plan, *_: Any) -> None:
        backup = self.postgres.backup()
        await asyncio.sleep(act["seconds"])
        await self._restored(backup)

    async def _restored(self, backup: Any) -> None:
        # Stopped for longer than anything is on its way: nobody's transaction survives it.
        away = asyncio.ensure_future(self._away(self.postgres.wire, 2 * SLOW_SECONDS))
        self.postgres.restore(backup)
        self.reference.restored()
        await away
        # A pause that the backup knows and that is over.
        async with self._one_operator():
            controls = self.postgres.rows("connector_controls")
            for name in [name for name in self.truths if controls.get(name, {}).get("paused")]:
                await self._set_paused(name, is_paused=False)

    async def _restored_and_edited(self, act: Plan, _: int, name: str) -> None:
        """An operator restores a backup, and puts a position right before anybody else looks."""
        backup, known = self.postgres.backup(), self.reference.known[name]
        version, until = known.version, self.loop.time() + act["seconds"]
        while known.version < version + 3 and self.loop.time() < until:
            await self._next(self._at_commit, until - self.loop.time())
        restoring = asyncio.ensure_future(self._restored(backup))
        await asyncio.sleep(SLOW_SECONDS)
        truth, row = self.truths[name], self.postgres.checkpoints.get(name)
        if known.last is not None and row is not None:
            earlier = truth.index_of(parse_utc(known.last["last_ts"]))
            to = truth.times[int(act["share"] * earlier)]
            if to != row["last_ts"]:  # Else it is no edit.
                self.postgres.edit(name, last_ts=to, cursor=None)
                self.reference.moved(name, to)
        await restoring

    async def _cleaned(self, *_: Any) -> None:
        self.reference.cleaned()
        self.kafka.clean()

    async def _size_limited(self, act: Plan, index: int, name: str) -> None:
        """Somebody lowers what the brokers take in a batch, and mends it."""
        if (topic := self.kafka.topics.get(raw_topic(PLATFORM))) is not None:
            topic.configs["max.message.bytes"] = str(int(100 * 50 ** act["share"]))
            await asyncio.sleep(act["seconds"])
            del topic.configs["max.message.bytes"]
            for each in self.truths:
                await self._restart(act, index, each)

    async def _forbidden(self, act: Plan, _: int, name: str) -> None:
        """A source forbids it, until somebody has seen to that; meanwhile it is paused."""
        truth = self.truths[name]
        async with self._one_operator():
            truth.refusal = self.loop.create_future()
            await asyncio.wait({truth.refusal}, timeout=90)
            await asyncio.sleep(3)
            await self._set_paused(name, is_paused=True)
            await asyncio.sleep(3)
            truth.refusal = None
            await self._set_paused(name, is_paused=False)
            truth.asked, seconds = self.loop.create_future(), self.reference.resume_seconds
            _, waiting = await asyncio.wait({truth.asked}, timeout=seconds)
            # A backup that was restored meanwhile may know of the pause, and not of its end.
            if waiting and not self.postgres.rows("connector_controls")[name]["paused"]:
                self.fail(f"resume: {name} asks nothing for {seconds:g} s after it")

    def _earlier(self, act: Plan, name: str) -> datetime | None:
        """A time before a connector's watermark, to move it back to."""
        row = self.postgres.checkpoints.get(name)
        times = self.truths[name].times
        to = times[int(act["share"] * len(times))]
        return to if row is not None and to < row["last_ts"] else None

    async def _in_between(self, act: Plan) -> None:
        """Wait for a moment between a page's commit and its row, in every second act."""
        if act["steps"] % 2:
            await self._next(self._at_commit, act["seconds"])

    async def _next(self, told: list[Any], seconds: float) -> Any:
        """What is told there next, within so many seconds; else None."""
        waiting = self.loop.create_future()
        told.append(waiting)
        await asyncio.wait({waiting}, timeout=seconds)
        if waiting.done():
            return waiting.result()
        told.remove(waiting)
        return None

    async def _edit(self, act: Plan, _: int, name: str) -> None:
        await self._in_between(act)
        await self._edited(act, name)

    async def _cursor_edit(self, act: Plan, _: int, name: str) -> None:
        """An operator moves the cursor alone."""
        await self._in_between(act)
        row, plan = self.postgres.checkpoints.get(name), self.truths[name].plan
        while row is not None and row["cursor"] is not None and plan["kind"] in ("paged", "http"):
            to = int(act["share"] * row["cursor"]["next"])
            try:
                self.postgres.edit(name, cursor={"next": to})
            except Wait:
                await asyncio.sleep(0.1)
                row = self.postgres.checkpoints.get(name)
                continue
            self.reference.cursor_moved(name, to)
            return

    async def _edited(self, act: Plan, name: str) -> None:
        to = self._earlier(act, name)
        while to is not None:
            try:
                self.postgres.edit(name, last_ts=to)
            except Wait:
                await asyncio.sleep(0.1)
                to = self._earlier(act, name)
                continue
            self.reference.moved(name, to)
            return

    # What needs several things at one moment

    async def _starter_frozen(self, act: Plan, *_: Any) -> None:
        """Who starts a connector is frozen some steps later, and another takes over."""
        self.group.disturb()
        _, process = await self._next(self._at_claim, act["seconds"]) or ("", "")
        if process:
            self._freeze_after(act["steps"], process)
            await asyncio.sleep(act["seconds"])
            self._thaw(process)

    async def _crossed(self, act: Plan, _: int, name: str) -> None:
        """An owner is woken up while who takes over stands between its claim and its fencing."""
        older = self.reference.known[name].claimed_by
        if older not in self.lives:
            return
        self.loop.freeze(older)
        until = self.loop.time() + act["seconds"] + self.settings.session_timeout_seconds
        claimed, newer = "", older
        while claimed is not None and (claimed != name or newer == older):
            seconds = until - self.loop.time()
            claimed, newer = await self._next(self._at_claim, seconds) or (None, "")
        if newer:
            self.loop.freeze(newer)
        self._thaw(older)
        await asyncio.sleep(act["seconds"] / 8)
        self._thaw(newer)

    async def _woken_unheard(self, act: Plan, *_: Any) -> None:
        """A worker is frozen amid an assignment, and wakes up where the group can't hear of it."""
        self.group.disturb()
        process = ""
        for _ in range(1 + act["who"] % len(self.lives)):
            process = await self._next(self._at_assigned, 10.0) or process
        if process in self.lives and process:
            self._freeze_after(act["steps"] % 6, process)
            await asyncio.sleep(self.settings.session_timeout_seconds + 2)
            away = asyncio.ensure_future(self._away(self.kafka.wire, 45 + act["seconds"] / 2))
            await asyncio.sleep(1)
            self._thaw(process)
            await away

    async def _restart_unsure(self, act: Plan, index: int, _: str) -> None:
        """Restarts are asked for while the group waits for a member that is frozen."""
        process = self.lives[index]
        if process:
            self.loop.freeze(process)
            await asyncio.sleep(1.2)  # What it had sent by then has arrived.
            self.group.disturb()
            await asyncio.sleep(2.2)
            for name in self.truths:
                await self._restart(act, index, name)
            await asyncio.sleep(act["seconds"])
            self._thaw(process)

    async def _stopped_in_hand(self, act: Plan, *_: Any) -> None:
        """A worker is told to end while a page of its is on its way."""
        for _ in range(1 + act["steps"] % 4):
            name = await self._next(self._at_events, act["seconds"])
        process = "" if name is None else self.reference.known[name].claimed_by
        if process in self.lives and process:
            self._tasks[process].cancel()

    async def _crash_edit(self, act: Plan, *_: Any) -> None:
        """A worker dies between a page's commit and its row, and an operator moves the row."""
        for _ in range(1 + act["steps"] % 4):
            name = await self._next(self._at_commit, act["seconds"])
        process = "" if name is None else self.reference.known[name].claimed_by
        if process in self.lives and process:
            self.kill(self.lives.index(process), act["seconds"] / 10)
            await self._edited(act, name)

    def _after(self, steps: int, what: Callable[[], None]) -> None:
        step = self.loop.steps + steps
        while step in self.loop.at_step:
            step += 1
        self.loop.at_step[step] = what

    def _freeze_after(self, steps: int, process: str) -> None:
        self._after(steps, lambda: self.loop.freeze(process))

    def _thaw(self, process: str) -> None:
        self._thawed_at[process] = self.loop.time()
        self.loop.thaw(process)

    # Operators, with the product's own code

    async def _operate(self, what: Callable[[Pool], Awaitable[Any]]) -> Any:
        """What an operator does, again until it works."""

        async def patient() -> Any:
            while True:
                try:
                    return await what(Pool(self.postgres))
                except VerityError:
                    await asyncio.sleep(1)

        return await self.loop.spawn(OPERATOR, patient())

    async def _set_paused(self, name: str, *, is_paused: bool) -> None:
        known = self.reference.known[name]
        # A commit counts before its answer is here, and an answer can be late: a pause is sure
        # from its answer on, and up to the request that ends it.
        known.paused_at = None
        await self._operate(
            lambda pool: Controls(pool).set_paused(
                name, is_paused=is_paused, who=OPERATOR, reason=None
            )
        )
        known.paused_at = self.loop.time() if is_paused else None

    async def _pause(self, act: Plan, _: int, name: str) -> None:
        async with self._one_operator():
            await self._set_paused(name, is_paused=True)
            await asyncio.sleep(act["seconds"])
            await self._set_paused(name, is_paused=False)

    async def _restart(self, act: Plan, _: int, name: str) -> None:
        known = self.reference.known[name]
        known.restart_after = known.claims
        await self._operate(
            lambda pool: Controls(pool).request_restart(name, who=OPERATOR, reason=None)
        )

    async def _snapshot(self, act: Plan, _: int, name: str) -> None:
        self.reference.snapshot_asked(name)
        await self._operate(
            lambda pool: Controls(pool).request_snapshot(name, who=OPERATOR, reason=None)
        )

    async def _rewind(self, act: Plan, _: int, name: str) -> None:
        await self._while_paused(name, self._rewound(act, name))

    async def _forward_rewind(self, act: Plan, _: int, name: str) -> None:
        """A slip: it must be refused, or what it skips would never be fetched."""
        await self._while_paused(name, self._rewound_ahead(act, name))

    async def _while_paused(self, name: str, rewinding: Coroutine[Any, Any, None]) -> None:
        async with self._one_operator():
            await self._set_paused(name, is_paused=True)
            await asyncio.sleep(3)
            task = self.loop.spawn(OPERATOR, rewinding)
            await asyncio.wait({task})
            if (error := task.exception()) is not None:
                self.fail(f"bug: a rewind raised {error!r}")
            await self._set_paused(name, is_paused=False)

    async def _rewound(self, act: Plan, name: str) -> None:
        to = self._earlier(act, name)
        if to is None:
            return
        try:
            store, stored, history, edited = await self._positions(name)
            after = start.rewound(stored, history, to=to, cursor=None, edited_version=edited)
            self.reference.moved(name, to)
            await store.rewind(stored, after, who=OPERATOR, reason="simulated")
        except VerityError:
            self.reference.known[name].wish = None  # It did not happen, or nobody knows.

    async def _rewound_ahead(self, act: Plan, name: str) -> None:
        try:
            store, stored, history, edited = await self._positions(name)
            newest = max(one.last_ts for one in (stored, *history))
            to: datetime | None = newest + timedelta(seconds=1 + 10 * act["share"])
            cursor = None
            if act["steps"] % 2 and self.truths[name].plan["kind"] in ("paged", "http"):
                ends = [one.cursor["next"] for one in (stored, *history) if one.cursor]
                to, cursor = None, {"next": max(ends, default=0) + int(1 + 20 * act["share"])}
            after = start.rewound(stored, history, to=to, cursor=cursor, edited_version=edited)
            await store.rewind(stored, after, who=OPERATOR, reason="simulated")
        except VerityError:
            pass  # As it should be.

    async def _positions(self, name: str) -> tuple[Controls, Checkpoint, list[Checkpoint], int]:
        """What a rewind is decided by."""
        settings, store = self.settings, Controls(Pool(self.postgres))
        reader = CommittedReader(
            settings.kafka,
            settings.checkpoint_partitions,
            settings.transaction_timeout,
            self._clients(),
        )
        stored = await store.stored(name)
        return store, stored, await reader.history(name), await store.edited_version(name)

    def _one_operator(self) -> asyncio.Lock:
        if self._controls is None:
            self._controls = asyncio.Lock()
        return self._controls

    # The run

    async def main(self) -> None:
        """All of it: work, faults, calm, and one more look."""
        for index in range(len(self.lives)):
            self.start(index)
        acts = [asyncio.ensure_future(self._act(one)) for one in self.plan["acts"]]
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
        kept = {name: self._kept(name) for name in (GAPS_TOPIC, dead_topic(PLATFORM))}
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

    def _kept(self, name: str) -> list[Any]:
        """The committed records that a topic still has."""
        return [record for record, _ in self._committed(name)]

    def _committed(self, name: str) -> list[tuple[Any, Txn | None]]:
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


def _tell(waiting: list[asyncio.Future[Any]], what: Any) -> None:
    """Whoever waits for it gets it; who comes later waits for the next."""
    for one in waiting:
        one.set_result(what)
    waiting.clear()


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
