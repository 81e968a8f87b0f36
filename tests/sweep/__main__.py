"""`make sweep`: faults by the hundred, and a table of what was lost or repeated.

    SWEEP=quick|full  how many of each (quick: what CI runs)
    SWEEP_ONLY=kill   one kind only
    SWEEP_PLANT=name  with a planted bug: the sweep must fail

Exits with 1 when anything was lost, repeated or torn (an event that no checkpoint counts), or
the views of a checkpoint differ.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import psutil
from rich.console import Console
from rich.table import Table
from stack_fixtures import temporary_stack, with_database
from verity_test_connectors import sequence
from workers import Bench, Worker, eventually, killing, make_bench

from verity_stream.failpoints import POINTS
from verity_stream.stack import Stack

START_POINTS = ("after_claim", "after_fence", "after_read_back")
PAGE_POINTS = tuple(point for point in POINTS if point not in START_POINTS)
ZOMBIE_POINTS = (
    "after_fetch",
    "after_begin",
    "after_publish",
    "before_commit",
    "after_commit",
    "before_persist",
    "after_claim",
    "after_fence",
)
BARE = (sys.executable, "-m", "sweep.bare_worker")
PAGE = 20

NUMBERS = {
    #                 quick, full
    "kill": (33, 220),
    "kill_plain": (6, 30),
    "kill_at_least_once": (6, 30),
    "zombie": (8, 32),
    "broker": (1, 10),
    "database": (5, 15),
    "rebalance": (3, 21),
}


@dataclass
class Outcome:
    """What one kind of fault did."""

    fault: str
    runs: int = 0
    events: int = 0
    lost: int = 0
    repeated: int = 0
    repeats_allowed: int = 0
    longest_stall: timedelta = field(default_factory=timedelta)
    views_are_equal: bool = True
    is_continuous: bool = True
    orphans: int = 0
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether the guarantee held."""
        is_bounded = self.repeated <= self.repeats_allowed
        is_whole = self.is_continuous and (self.orphans == 0 or self.repeats_allowed > 0)
        return self.lost == 0 and is_bounded and is_whole and self.views_are_equal and not self.note


class Lane:
    """One kind of fault, over sources of its own."""

    def __init__(self, fault: str, bench: Bench, stack: Stack, runs: int) -> None:
        self.outcome = Outcome(fault)
        self.bench = bench
        self.stack = stack
        self.runs = runs
        self.random = random.Random(fault)
        self.connectors = ["source"]
        self.table: dict[str, Any] = {}

    def configure(self, *, pages_a_run: int = 10, **options: Any) -> None:
        """A source that lasts for all the runs; slow enough to be caught in the middle."""
        count = PAGE * max(60, self.runs * pages_a_run)
        self.table = {
            "type": "test_paged",
            "platform": self.bench.name,
            "count": count,
            "page": PAGE,
            "page_seconds": 0.02,
            "overlap": 7,
            "late": 0.05,
            "poll_every": "300ms",
            **options,
        }
        self.bench.configure(**dict.fromkeys(self.connectors, self.table))

    def start(self, **environment: str) -> Worker:
        """A bare worker."""
        worker = Worker(
            self.bench.directory / f"worker{len(self.bench.workers)}",
            {**self.bench.environment, "VERITY_PAGE_EVENTS": str(PAGE)},
            command=BARE,
        )
        self.bench.workers.append(worker)
        return worker.start(**environment)

    async def version(self) -> int:
        """The stored version, 0 before there is one."""
        try:
            row = await self.bench.stored_checkpoint(self.connectors[0])
        except asyncpg.UndefinedTableError:
            return 0
        return int(row["version"]) if row else 0

    async def progress(self, pages: int, seconds: float = 60) -> None:
        """Until this many more pages are stored."""
        await self.bench.wait_for_version(self.connectors[0], await self.version() + pages, seconds)

    async def finish(self, worker: Worker | None = None) -> None:
        """Let the rest of the sources through at full speed, then compare with their truth."""
        if worker is None or worker.command:
            if worker is not None:
                worker.kill()
            self.table.update(page=500, page_seconds=0)
            self.bench.configure(**dict.fromkeys(self.connectors, self.table))
            worker = self.start(VERITY_PAGE_EVENTS="2000")
        for connector in self.connectors:
            await self.bench.wait_for_state(connector, "caught_up", 120)
            await self.compare(connector)
        for worker in self.bench.workers:
            worker.kill()

    async def compare(self, connector: str) -> None:
        """Count what is lost and repeated, and whether the views are equal."""
        outcome, table = self.outcome, self.table
        counts = Counter(await self.bench.event_ids(connector))
        truth = {
            event.event_id
            for event in sequence(self.bench.name, table["count"], late=table["late"])
        }
        outcome.events += len(truth)
        outcome.lost += len(truth - counts.keys())
        outcome.repeated += sum(counts.values()) - len(counts)
        published = await self.bench.published_checkpoints(connector)
        stored = await self.bench.stored_checkpoint(connector)
        assert stored is not None
        views = [(one["version"], one["cursor"]) for one in (published[-1], stored)]
        cursors = [json.loads(c) if isinstance(c, str) else c for _, c in views]
        versions = [one["version"] for one in published]
        if views[0][0] != views[1][0] or cursors[0] != cursors[1]:
            outcome.views_are_equal = False
        # A page is visible with its checkpoint or not at all (I2), and versions ascend (I3). An
        # event that no checkpoint counts was left by a page that was not whole.
        counted = sum(one["event_count"] for one in published)
        outcome.orphans += abs(sum(counts.values()) - counted)
        outcome.is_continuous &= versions == sorted(set(versions))
        times = [datetime.fromisoformat(one["published_at"]) for one in published]
        stalls = [later - earlier for earlier, later in itertools.pairwise(times)]
        outcome.longest_stall = max([outcome.longest_stall, *stalls])


async def kill_lane(lane: Lane) -> None:
    """kill -9 at every failpoint in turn, and at random times."""
    lane.configure()
    for number in range(lane.runs):
        if number % 3 == 2:
            worker = lane.start()
            await lane.progress(1)
            await asyncio.sleep(lane.random.uniform(0, 0.2))
            worker.kill()
        else:
            point = POINTS[(number - number // 3) % len(POINTS)]
            passage = 1 if point in START_POINTS else lane.random.randint(1, 4)
            worker = lane.start(VERITY_FAILPOINTS=f"{point}=kill@{passage}")
            assert worker.process is not None
            code = await asyncio.to_thread(worker.process.wait, 60)
            assert code == -signal.SIGKILL, worker.log[-3000:]
        lane.outcome.runs += 1
    await lane.finish()


async def kill_plain_lane(lane: Lane) -> None:
    """The same to a source of plain events, with late ones."""
    lane.configure(type="test_plain", overlap=0, lookback="2m")
    for _ in range(lane.runs):
        worker = lane.start()
        await lane.progress(1)
        await asyncio.sleep(lane.random.uniform(0, 0.2))
        worker.kill()
        lane.outcome.runs += 1
    await lane.finish()


async def kill_at_least_once_lane(lane: Lane) -> None:
    """kill -9 without transactions: nothing lost, at most a page a crash repeated."""
    lane.bench.environment["VERITY_DELIVERY"] = "at_least_once"
    lane.configure()
    lane.outcome.repeats_allowed = lane.runs * PAGE
    points = ("after_publish", "after_commit", "before_persist", "after_persist")
    for number in range(lane.runs):
        worker = lane.start(VERITY_FAILPOINTS=f"{points[number % len(points)]}=kill@2")
        assert worker.process is not None
        await asyncio.to_thread(worker.process.wait, 60)
        lane.outcome.runs += 1
    await lane.finish()


async def zombie_lane(lane: Lane) -> None:
    """Frozen at a failpoint, taken over, woken up: it must find itself fenced."""
    lane.configure(pages_a_run=60, page_seconds=0.05)
    for number in range(lane.runs):
        point = ZOMBIE_POINTS[number % len(ZOMBIE_POINTS)]
        passage = 1 if point in START_POINTS else lane.random.randint(1, 3)
        zombie = lane.start(VERITY_FAILPOINTS=f"{point}=stop@{passage}")
        await eventually(lambda zombie=zombie: is_frozen(zombie), 60, lambda: lane.bench.logs())
        heir = lane.start()
        await lane.progress(2)
        zombie.signal(signal.SIGCONT)
        await eventually(lambda zombie=zombie: is_fenced(zombie), 30, lambda: lane.bench.logs())
        zombie.kill()
        await lane.progress(1)
        heir.kill()
        lane.outcome.runs += 1
    await lane.finish()


async def is_frozen(worker: Worker) -> bool:
    """Whether the process is stopped by a signal."""
    assert worker.process is not None
    return psutil.Process(worker.process.pid).status() == psutil.STATUS_STOPPED


async def is_fenced(worker: Worker) -> bool:
    """Whether it said that another owns the connector."""
    return any("Fenced" in line["error"] for line in worker.messages("connector.stopped"))


async def broker_lane(lane: Lane) -> None:
    """The broker is killed and comes back, after 5 s and, in a full sweep, also after 60 s."""
    lane.configure(pages_a_run=60, page_seconds=0.05)
    worker = lane.start()
    for number in range(lane.runs):
        await lane.progress(2)
        await asyncio.to_thread(lane.stack.kafka.kill)
        await asyncio.sleep(60 if number % 5 == 4 else 5)
        await asyncio.to_thread(lane.stack.kafka.start)
        await lane.progress(2, 150)
        lane.outcome.runs += 1
    await lane.finish(worker)


async def database_lane(lane: Lane) -> None:
    """Postgres is killed, cut off, made read-only, or holds a lock on the row."""
    lane.configure(pages_a_run=60, page_seconds=0.05)
    worker = lane.start(VERITY_BACKOFF_MAX="1s")
    faults = [database_killed, connections_cut, read_only, row_locked, database_restarted]
    for number in range(lane.runs):
        await lane.progress(2)
        await faults[number % len(faults)](lane)
        await lane.progress(2, 90)
        lane.outcome.runs += 1
    await lane.finish(worker)


async def database_killed(lane: Lane) -> None:
    """kill -9 of the server, 3 s down."""
    await asyncio.to_thread(lane.stack.postgres.kill)
    await asyncio.sleep(3)
    await asyncio.to_thread(lane.stack.postgres.start)


async def database_restarted(lane: Lane) -> None:
    """An orderly restart."""
    await asyncio.to_thread(lane.stack.postgres.stop)
    await asyncio.to_thread(lane.stack.postgres.start)


async def connections_cut(lane: Lane) -> None:
    """Every connection of the workers is terminated."""
    await lane.bench.fetchrow(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE application_name = 'verity-stream' AND datname = current_database()"
    )


async def read_only(lane: Lane) -> None:
    """The database takes no writes for 3 s, as a standby after a fail-over."""
    name = (await lane.bench.fetchrow("SELECT current_database() AS name"))["name"]
    await lane.bench.fetchrow(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    await connections_cut(lane)
    await asyncio.sleep(3)
    connection = await asyncpg.connect(lane.bench.dsn)
    try:
        await connection.execute("SET default_transaction_read_only = off")
        await connection.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
    finally:
        await connection.close()
    await connections_cut(lane)


async def row_locked(lane: Lane) -> None:
    """Somebody holds a lock on the checkpoint's row for 4 s."""
    connection = await asyncpg.connect(lane.bench.dsn)
    try:
        async with connection.transaction():
            await connection.execute(
                "SELECT * FROM connector_checkpoints WHERE connector_id = $1 FOR UPDATE",
                lane.bench.id("source"),
            )
            await asyncio.sleep(4)
    finally:
        await connection.close()


async def rebalance_lane(lane: Lane) -> None:
    """Three real workers under Faust: one joins, ends, or is killed, under load."""
    lane.connectors = [f"s{number}" for number in range(6)]
    lane.configure(page_seconds=0.3, count=PAGE * max(200, lane.runs * 60))
    workers = [lane.bench.worker(VERITY_PAGE_EVENTS=str(PAGE)) for _ in range(2)]
    await lane.progress(2)
    for number in range(lane.runs):
        kind = number % 3
        if kind == 0:
            workers.append(lane.bench.worker(VERITY_PAGE_EVENTS=str(PAGE)))
        elif kind == 1:
            await hears_signals(workers[0], lane.bench)
            await asyncio.to_thread(workers.pop(0).terminate)
        else:
            workers.pop(0).kill()
            workers.append(lane.bench.worker(VERITY_PAGE_EVENTS=str(PAGE)))
        await lane.progress(3, 90)
        lane.outcome.runs += 1
    for worker in workers:
        await hears_signals(worker, lane.bench)
        await asyncio.to_thread(worker.terminate)
    await lane.finish()


async def hears_signals(worker: Worker, bench: Bench) -> None:
    """Wait until a worker serves its pages: before it listens to signals, SIGTERM just kills it."""

    async def serves() -> bool:
        return bool((await asyncio.to_thread(worker.get, "/healthz"))[0])

    await eventually(serves, 60, bench.logs)


LANES: dict[str, Callable[[Lane], Awaitable[None]]] = {
    "kill": kill_lane,
    "kill_plain": kill_plain_lane,
    "kill_at_least_once": kill_at_least_once_lane,
    "zombie": zombie_lane,
    "rebalance": rebalance_lane,
    "database": database_lane,
    "broker": broker_lane,
}
# These disturb everybody on the stack: they run alone, after the others.
ALONE = ("database", "broker")


async def run_lane(fault: str, stack: Stack, directory: Path, is_full: bool) -> Outcome:
    """One kind of fault on a database of its own."""
    connection = await asyncpg.connect(stack.up().dsn)
    try:
        await connection.execute(f'CREATE DATABASE "sweep_{fault}"')
    finally:
        await connection.close()
    address = stack.up()
    bench = make_bench(
        directory, address.bootstrap_servers, with_database(address.dsn, f"sweep_{fault}")
    )
    tests = Path(__file__).parent.parent
    bench.environment["PYTHONPATH"] = f"{tests}:{tests / 'plugins'}"
    bench.environment["VERITY_PLANT"] = os.environ.get("SWEEP_PLANT", "")
    with killing(bench):
        lane = Lane(fault, bench, stack, NUMBERS[fault][is_full])
        try:
            await LANES[fault](lane)
        except Exception as error:  # noqa: BLE001 - one lane's failure is a line of the table
            lane.outcome.note = f"{type(error).__name__}: {error}"[-1500:]
        return lane.outcome


async def sweep(directory: Path, is_full: bool, only: str | None) -> list[Outcome]:
    """Every lane; those that can share a stack run side by side."""
    chosen = [fault for fault in LANES if only in (None, fault)]
    alone = [fault for fault in chosen if fault in ALONE]
    with temporary_stack() as stack:
        stack.up()
        together = [fault for fault in chosen if fault not in ALONE]
        outcomes = list(
            await asyncio.gather(
                *(run_lane(fault, stack, directory / fault, is_full) for fault in together)
            )
        )
        return outcomes + [
            await run_lane(fault, stack, directory / fault, is_full) for fault in alone
        ]


def report(outcomes: list[Outcome], seconds: float) -> None:
    """The table."""
    table = Table(title=f"Fault sweep, {seconds:.0f} s")
    columns = "fault", "runs", "events", "lost", "repeated", "torn", "longest stall", "views equal"
    for column in columns:
        table.add_column(column, justify="left" if column == "fault" else "right")
    for one in outcomes:
        allowed = f" (≤ {one.repeats_allowed} allowed)" if one.repeats_allowed else ""
        table.add_row(
            one.fault,
            str(one.runs),
            str(one.events),
            str(one.lost),
            f"{one.repeated}{allowed}",
            str(one.orphans) if one.is_continuous else f"{one.orphans}, versions out of order",
            f"{one.longest_stall.total_seconds():.1f} s",
            "yes" if one.views_are_equal else "NO",
        )
    console = Console(width=110)
    console.print(table)
    for one in outcomes:
        if one.note:
            console.print(f"{one.fault}: {one.note}", markup=False)


def main() -> None:
    """Run the sweep and exit with what it found."""
    is_full = os.environ.get("SWEEP", "quick") == "full"
    began = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="verity-sweep-"))
    for fault in LANES:
        (directory / fault).mkdir()
    outcomes = asyncio.run(sweep(directory, is_full, os.environ.get("SWEEP_ONLY")))
    report(outcomes, time.monotonic() - began)
    sys.exit(0 if outcomes and all(one.holds for one in outcomes) else 1)


if __name__ == "__main__":
    main()
