"""What befalls a world: faults and operators. An act of a plan is the method of its name.

An act is given its plan, the number of a worker and the name of a connector. It tells the reference
what it has done, and knows the product only as an operator does.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from simulation.kafka import Txn
from simulation.plan import Plan
from simulation.postgres import Pool
from simulation.reference import LostPage
from simulation.sources import PLATFORM
from simulation.wire import SLOW_SECONDS, Wait, Wire
from verity_sdk.errors import VerityError
from verity_sdk.times import parse_utc
from verity_stream.kafka.committed import CommittedReader
from verity_stream.postgres.controls import Controls
from verity_stream.records import CHECKPOINTS_TOPIC, IDS_TOPIC, Checkpoint, raw_topic
from verity_stream.relay import start

if TYPE_CHECKING:
    from simulation.world import World

OPERATOR = "operator"
BUSY = frozenset(
    {
        *("kill", "terminate", "freeze", "database_away", "database_lost", "row_locked", "restore"),
        *("broker_away", "coordinator_moved", "leader_moved", "checkpoints_deleted", "raw_deleted"),
        *("clock_step", "starter_frozen", "crossed", "crash_edit", "stopped_in_hand"),
        *("restart_unsure", "restored_and_edited", "zombie", "crash_behind_open", "end_lost"),
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


def tell(waiting: list[asyncio.Future[Any]], what: Any) -> None:
    """Whoever waits for it gets it; who comes later waits for the next."""
    for one in waiting:
        one.set_result(what)
    waiting.clear()


class Acts:
    """What may befall one world.

    Attributes:
        at_commit, at_events, at_claim, at_assigned: Who waits for the next checkpoint that is
            committed, events, claim (of what, by whom) or assignment. The world tells them.
        thawed_at: When each process was woken up last.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._loop, self._settings = world.loop, world.settings
        self._kafka, self._postgres, self._group = world.kafka, world.postgres, world.group
        self._truths, self._reference, self._lives = world.truths, world.reference, world.lives
        self.at_commit: list[asyncio.Future[str]] = []
        self.at_events: list[asyncio.Future[str]] = []
        self.at_claim: list[asyncio.Future[tuple[str, str]]] = []
        self.at_assigned: list[asyncio.Future[str]] = []
        self.thawed_at: dict[str, float] = {}
        self._controls: asyncio.Lock | None = None

    async def befall(self, act: Plan) -> None:
        """Carry out an act of the plan, at its time."""
        await asyncio.sleep(act["at"])
        index, names = act["who"] % len(self._lives), list(self._truths)
        self._loop.note("act", act["kind"])
        self._reference.happened(act["kind"])
        await getattr(self, act["kind"])(act, index, names[act["who"] % len(names)])

    async def kill(self, act: Plan, index: int, _: str) -> None:
        self._after(act["steps"], lambda: self._world.kill(index, act["seconds"] / 10))

    async def terminate(self, act: Plan, index: int, _: str) -> None:
        task = self._world.tasks.get(self._lives[index])
        if task is not None:
            task.cancel()

    async def freeze(self, act: Plan, index: int, _: str) -> None:
        process = self._lives[index]
        if process:
            self._loop.freeze(process)
            await asyncio.sleep(act["seconds"])
            self._thaw(process)

    async def zombie(self, act: Plan, index: int, name: str) -> None:
        """A worker freezes in the middle of a page, others take over, and it wakes up."""
        await self._next(self.at_commit, act["seconds"])
        await self.freeze(act | {"seconds": 25 + act["seconds"] / 3}, index, name)
        await asyncio.sleep(5)
        for each in self._truths:
            await self.restart(act, index, each)

    async def crash_behind_open(self, act: Plan, *_: Any) -> None:
        """All workers die as one connector's transaction is open before another's checkpoint.

        And the one with the transaction is paused then, so that it does not abort it by a start.
        """
        until = self._loop.time() + 60
        while (name := self._open_before_committed()) is None and self._loop.time() < until:
            await self._next(self.at_commit, until - self._loop.time())
        if name is not None:
            for index in range(len(self._lives)):
                self._world.kill(index, 1.0)
            await self.pause(act | {"seconds": 20.0}, 0, name)

    def _open_before_committed(self) -> str | None:
        """The connector whose open transaction hides another's last checkpoint."""
        topic = self._kafka.topics.get(CHECKPOINTS_TOPIC)
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
        wire.away_until = max(wire.away_until, self._loop.time() + seconds)
        await asyncio.sleep(seconds)

    async def database_away(self, act: Plan, *_: Any) -> None:
        await self._away(self._postgres.wire, act["seconds"])

    async def broker_away(self, act: Plan, *_: Any) -> None:
        await self._away(self._kafka.wire, act["seconds"] * 2)

    async def database_lost(self, act: Plan, *_: Any) -> None:
        wire = self._postgres.wire
        before, wire.lost_share = wire.lost_share, 0.3
        await asyncio.sleep(act["seconds"])
        wire.lost_share = before

    async def row_locked(self, act: Plan, _: int, name: str) -> None:
        if name in self._postgres.checkpoints:
            try:
                self._postgres.lock("connector_checkpoints", name, act["seconds"])
            except Wait:
                return  # Somebody else has it.
            await asyncio.sleep(act["seconds"])

    async def coordinator_moved(self, act: Plan, *_: Any) -> None:
        self._kafka.coordinators_away_until = self._loop.time() + act["seconds"] / 4
        await asyncio.sleep(act["seconds"] / 4)

    async def leader_moved(self, act: Plan, *_: Any) -> None:
        self._kafka.leaders_away_until[act["who"] % 3] = self._loop.time() + act["seconds"] / 4
        await asyncio.sleep(act["seconds"] / 4)

    async def checkpoints_deleted(self, *_: Any) -> None:
        if CHECKPOINTS_TOPIC in self._kafka.topics:
            self._reference.checkpoints_deleted()
            self._kafka.delete(CHECKPOINTS_TOPIC)
            # Faust goes on committing to what is gone: the watchdog ends each process.
            old = list(enumerate(self._lives))
            await asyncio.sleep(self._settings.watchdog_timeout.total_seconds())
            for index, process in old:
                if self._lives[index] == process:
                    self._world.kill(index, 1.0)

    async def raw_deleted(self, *_: Any) -> None:
        if raw_topic(PLATFORM) in self._kafka.topics:
            self._reference.raw_deleted()
            self._kafka.delete(raw_topic(PLATFORM))

    async def end_lost(self, act: Plan, _: int, name: str) -> None:
        """Power fails everywhere, and what was not yet on some disks is gone.

        With the workers running nobody could tell: the next page would stand where one was lost.
        """
        async with self._one_operator():
            until = self._loop.time() + act["seconds"]
            for _ in range(1 + act["steps"] % 20):
                await self._next(self.at_commit, until - self._loop.time())
            arrived = 3 * SLOW_SECONDS  # All that was sent, and the markers of what it decided.
            self._world.dark_until = self._loop.time() + arrived + act["seconds"] / 10
            for index in range(len(self._lives)):
                self._world.kill(index, 0.0)
            await asyncio.sleep(arrived)
            seals = [
                (seal, txn)
                for seal, txn in self._world.committed(CHECKPOINTS_TOPIC)
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
                for topic, found in sorted(self._kafka.topics.items())
                for number, log in enumerate(found.logs)
                if (topic == topics[only] if only < 3 else only > 4 or log.broker == only % 3)
            ]
            self._reference.end_lost(
                self._lost_pages(self._kafka.cut_end(since_ms, places)),
                self._world.kept(CHECKPOINTS_TOPIC),
                self._postgres.checkpoints,
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

    async def clock_step(self, act: Plan, index: int, _: str) -> None:
        self._world.skews[index] += timedelta(seconds=3600 * (2 * act["share"] - 1))

    async def rebalance(self, *_: Any) -> None:
        self._group.disturb()

    async def restore(self, act: Plan, *_: Any) -> None:
        backup = self._postgres.backup()
        await asyncio.sleep(act["seconds"])
        await self._restored(backup)

    async def _restored(self, backup: Any) -> None:
        # Stopped for longer than anything is on its way: nobody's transaction survives it.
        away = asyncio.ensure_future(self._away(self._postgres.wire, 2 * SLOW_SECONDS))
        self._postgres.restore(backup)
        self._reference.restored()
        await away
        # A pause that the backup knows and that is over.
        async with self._one_operator():
            controls = self._postgres.rows("connector_controls")
            for name in [name for name in self._truths if controls.get(name, {}).get("paused")]:
                await self._set_paused(name, is_paused=False)

    async def restored_and_edited(self, act: Plan, _: int, name: str) -> None:
        """An operator restores a backup, and puts a position right before anybody else looks."""
        backup, known = self._postgres.backup(), self._reference.known[name]
        version, until = known.version, self._loop.time() + act["seconds"]
        while known.version < version + 3 and self._loop.time() < until:
            await self._next(self.at_commit, until - self._loop.time())
        restoring = asyncio.ensure_future(self._restored(backup))
        await asyncio.sleep(SLOW_SECONDS)
        truth, row = self._truths[name], self._postgres.checkpoints.get(name)
        if known.last is not None and row is not None:
            earlier = truth.index_of(parse_utc(known.last["last_ts"]))
            to = truth.times[int(act["share"] * earlier)]
            if to != row["last_ts"]:  # Else it is no edit.
                self._postgres.edit(name, last_ts=to, cursor=None)
                self._reference.moved(name, to)
        await restoring

    async def cleaned(self, *_: Any) -> None:
        self._reference.cleaned()
        self._kafka.clean()

    async def size_limited(self, act: Plan, index: int, name: str) -> None:
        """Somebody lowers what the brokers take in a batch, and mends it."""
        if (topic := self._kafka.topics.get(raw_topic(PLATFORM))) is not None:
            topic.configs["max.message.bytes"] = str(int(100 * 50 ** act["share"]))
            await asyncio.sleep(act["seconds"])
            del topic.configs["max.message.bytes"]
            for each in self._truths:
                await self.restart(act, index, each)

    async def forbidden(self, act: Plan, _: int, name: str) -> None:
        """A source forbids it, until somebody has seen to that; meanwhile it is paused."""
        truth = self._truths[name]
        async with self._one_operator():
            truth.refusal = self._loop.create_future()
            await asyncio.wait({truth.refusal}, timeout=90)
            await asyncio.sleep(3)
            await self._set_paused(name, is_paused=True)
            await asyncio.sleep(3)
            truth.refusal = None
            await self._set_paused(name, is_paused=False)
            truth.asked, seconds = self._loop.create_future(), self._reference.resume_seconds
            _, waiting = await asyncio.wait({truth.asked}, timeout=seconds)
            # A backup that was restored meanwhile may know of the pause, and not of its end.
            if waiting and not self._postgres.rows("connector_controls")[name]["paused"]:
                self._world.fail(f"resume: {name} asks nothing for {seconds:g} s after it")

    def _earlier(self, act: Plan, name: str) -> datetime | None:
        """A time before a connector's watermark, to move it back to."""
        row = self._postgres.checkpoints.get(name)
        times = self._truths[name].times
        to = times[int(act["share"] * len(times))]
        return to if row is not None and to < row["last_ts"] else None

    async def _in_between(self, act: Plan) -> None:
        """Wait for a moment between a page's commit and its row, in every second act."""
        if act["steps"] % 2:
            await self._next(self.at_commit, act["seconds"])

    async def _next(self, told: list[Any], seconds: float) -> Any:
        """What is told there next, within so many seconds; else None."""
        waiting = self._loop.create_future()
        told.append(waiting)
        await asyncio.wait({waiting}, timeout=seconds)
        if waiting.done():
            return waiting.result()
        told.remove(waiting)
        return None

    async def edit(self, act: Plan, _: int, name: str) -> None:
        await self._in_between(act)
        await self._edited(act, name)

    async def cursor_edit(self, act: Plan, _: int, name: str) -> None:
        """An operator moves the cursor alone."""
        await self._in_between(act)
        row, plan = self._postgres.checkpoints.get(name), self._truths[name].plan
        while row is not None and row["cursor"] is not None and plan["kind"] in ("paged", "http"):
            to = int(act["share"] * row["cursor"]["next"])
            try:
                self._postgres.edit(name, cursor={"next": to})
            except Wait:
                await asyncio.sleep(0.1)
                row = self._postgres.checkpoints.get(name)
                continue
            self._reference.cursor_moved(name, to)
            return

    async def _edited(self, act: Plan, name: str) -> None:
        to = self._earlier(act, name)
        while to is not None:
            try:
                self._postgres.edit(name, last_ts=to)
            except Wait:
                await asyncio.sleep(0.1)
                to = self._earlier(act, name)
                continue
            self._reference.moved(name, to)
            return

    # What needs several things at one moment

    async def starter_frozen(self, act: Plan, *_: Any) -> None:
        """Who starts a connector is frozen some steps later, and another takes over."""
        self._group.disturb()
        _, process = await self._next(self.at_claim, act["seconds"]) or ("", "")
        if process:
            self._freeze_after(act["steps"], process)
            await asyncio.sleep(act["seconds"])
            self._thaw(process)

    async def crossed(self, act: Plan, _: int, name: str) -> None:
        """An owner is woken up while who takes over stands between its claim and its fencing."""
        older = self._reference.known[name].claimed_by
        if older not in self._lives:
            return
        self._loop.freeze(older)
        until = self._loop.time() + act["seconds"] + self._settings.session_timeout_seconds
        claimed, newer = "", older
        while claimed is not None and (claimed != name or newer == older):
            seconds = until - self._loop.time()
            claimed, newer = await self._next(self.at_claim, seconds) or (None, "")
        if newer:
            self._loop.freeze(newer)
        self._thaw(older)
        await asyncio.sleep(act["seconds"] / 8)
        self._thaw(newer)

    async def woken_unheard(self, act: Plan, *_: Any) -> None:
        """A worker is frozen amid an assignment, and wakes up where the group can't hear of it."""
        self._group.disturb()
        process = ""
        for _ in range(1 + act["who"] % len(self._lives)):
            process = await self._next(self.at_assigned, 10.0) or process
        if process in self._lives and process:
            self._freeze_after(act["steps"] % 6, process)
            await asyncio.sleep(self._settings.session_timeout_seconds + 2)
            away = asyncio.ensure_future(self._away(self._kafka.wire, 45 + act["seconds"] / 2))
            await asyncio.sleep(1)
            self._thaw(process)
            await away

    async def restart_unsure(self, act: Plan, index: int, _: str) -> None:
        """Restarts are asked for while the group waits for a member that is frozen."""
        process = self._lives[index]
        if process:
            self._loop.freeze(process)
            await asyncio.sleep(1.2)  # What it had sent by then has arrived.
            self._group.disturb()
            await asyncio.sleep(2.2)
            for name in self._truths:
                await self.restart(act, index, name)
            await asyncio.sleep(act["seconds"])
            self._thaw(process)

    async def stopped_in_hand(self, act: Plan, *_: Any) -> None:
        """A worker is told to end while a page of its is on its way."""
        for _ in range(1 + act["steps"] % 4):
            name = await self._next(self.at_events, act["seconds"])
        process = "" if name is None else self._reference.known[name].claimed_by
        if process in self._lives and process:
            self._world.tasks[process].cancel()

    async def crash_edit(self, act: Plan, *_: Any) -> None:
        """A worker dies between a page's commit and its row, and an operator moves the row."""
        for _ in range(1 + act["steps"] % 4):
            name = await self._next(self.at_commit, act["seconds"])
        process = "" if name is None else self._reference.known[name].claimed_by
        if process in self._lives and process:
            self._world.kill(self._lives.index(process), act["seconds"] / 10)
            await self._edited(act, name)

    def _after(self, steps: int, what: Callable[[], None]) -> None:
        step = self._loop.steps + steps
        while step in self._loop.at_step:
            step += 1
        self._loop.at_step[step] = what

    def _freeze_after(self, steps: int, process: str) -> None:
        self._after(steps, lambda: self._loop.freeze(process))

    def _thaw(self, process: str) -> None:
        self.thawed_at[process] = self._loop.time()
        self._loop.thaw(process)

    # Operators, with the product's own code

    async def _operate(self, what: Callable[[Pool], Awaitable[Any]]) -> Any:
        """What an operator does, again until it works."""

        async def patient() -> Any:
            while True:
                try:
                    return await what(Pool(self._postgres))
                except VerityError:
                    await asyncio.sleep(1)

        return await self._loop.spawn(OPERATOR, patient())

    async def _set_paused(self, name: str, *, is_paused: bool) -> None:
        known = self._reference.known[name]
        # A commit counts before its answer is here, and an answer can be late: a pause is sure
        # from its answer on, and up to the request that ends it.
        known.paused_at = None
        await self._operate(
            lambda pool: Controls(pool).set_paused(
                name, is_paused=is_paused, who=OPERATOR, reason=None
            )
        )
        known.paused_at = self._loop.time() if is_paused else None

    async def pause(self, act: Plan, _: int, name: str) -> None:
        async with self._one_operator():
            await self._set_paused(name, is_paused=True)
            await asyncio.sleep(act["seconds"])
            await self._set_paused(name, is_paused=False)

    async def restart(self, act: Plan, _: int, name: str) -> None:
        known = self._reference.known[name]
        known.restart_after = known.claims
        await self._operate(
            lambda pool: Controls(pool).request_restart(name, who=OPERATOR, reason=None)
        )

    async def snapshot(self, act: Plan, _: int, name: str) -> None:
        self._reference.snapshot_asked(name)
        await self._operate(
            lambda pool: Controls(pool).request_snapshot(name, who=OPERATOR, reason=None)
        )

    async def rewind(self, act: Plan, _: int, name: str) -> None:
        await self._while_paused(name, self._rewound(act, name))

    async def forward_rewind(self, act: Plan, _: int, name: str) -> None:
        """A slip: it must be refused, or what it skips would never be fetched."""
        await self._while_paused(name, self._rewound_ahead(act, name))

    async def _while_paused(self, name: str, rewinding: Coroutine[Any, Any, None]) -> None:
        async with self._one_operator():
            await self._set_paused(name, is_paused=True)
            await asyncio.sleep(3)
            task = self._loop.spawn(OPERATOR, rewinding)
            await asyncio.wait({task})
            if (error := task.exception()) is not None:
                self._world.fail(f"bug: a rewind raised {error!r}")
            await self._set_paused(name, is_paused=False)

    async def _rewound(self, act: Plan, name: str) -> None:
        to = self._earlier(act, name)
        if to is None:
            return
        try:
            store, stored, history, edited = await self._positions(name)
            after = start.rewound(stored, history, to=to, cursor=None, edited_version=edited)
            self._reference.moved(name, to)
            await store.rewind(stored, after, who=OPERATOR, reason="simulated")
        except VerityError:
            self._reference.known[name].wish = None  # It did not happen, or nobody knows.

    async def _rewound_ahead(self, act: Plan, name: str) -> None:
        try:
            store, stored, history, edited = await self._positions(name)
            newest = max(one.last_ts for one in (stored, *history))
            to: datetime | None = newest + timedelta(seconds=1 + 10 * act["share"])
            cursor = None
            if act["steps"] % 2 and self._truths[name].plan["kind"] in ("paged", "http"):
                ends = [one.cursor["next"] for one in (stored, *history) if one.cursor]
                to, cursor = None, {"next": max(ends, default=0) + int(1 + 20 * act["share"])}
            after = start.rewound(stored, history, to=to, cursor=cursor, edited_version=edited)
            await store.rewind(stored, after, who=OPERATOR, reason="simulated")
        except VerityError:
            pass  # As it should be.

    async def _positions(self, name: str) -> tuple[Controls, Checkpoint, list[Checkpoint], int]:
        """What a rewind is decided by."""
        settings, store = self._settings, Controls(Pool(self._postgres))
        reader = CommittedReader(
            settings.kafka,
            settings.checkpoint_partitions,
            settings.transaction_timeout,
            self._world.clients(),
        )
        stored = await store.stored(name)
        return store, stored, await reader.history(name), await store.edited_version(name)

    def _one_operator(self) -> asyncio.Lock:
        if self._controls is None:
            self._controls = asyncio.Lock()
        return self._controls
