"""`make sweep`: faults by the hundred, and a table of what was lost or repeated.

    SWEEP=quick|full  how many of each (quick: what CI runs)
    SWEEP_ONLY=kill   one kind only, or several: kill,zombie
    SWEEP_PLANT=name  with a planted bug: the sweep must fail

The workers run on their default settings; what a lane sets in spite of that has its reason beside
it. Exits with 1 when an event, a dead letter or a gap was lost or repeated, when one is torn (no
checkpoint counts it), or the views of a checkpoint differ.
"""

from __future__ import annotations

import argparse
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
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import psutil
from rich.console import Console
from rich.table import Table
from stack_fixtures import temporary_stack, with_database
from verity_sweep_connectors.script import SPAN, STARTED_AT, shows_in_time, truth_of
from workers import Bench, Worker, committed, eventually, killing, make_bench

from sweep.server import serving
from verity_stream.dev.stack import Stack
from verity_stream.failpoints import POINTS, START_POINTS

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
PAGE_EVENTS_MAX = 8000
"""`VERITY_PAGE_EVENTS`'s default: what a page may hold."""
PAGES_AFTER = 120
"""So many pages of the source come after those that were read when the faults were over; a page of
the relay that is out and not in Postgres yet holds fewer."""
DEADLINE_SECONDS = 180.0
"""For whatever has to come: waited for only where it fails, or the machine does much else."""
FOREVER = 1_000_000
"""Pages of a source that does not end while faults go on."""
KINDS = ("events", "dead letters", "gaps")

NUMBERS = {
    #                 quick, full
    "kill": (33, 220),
    "kill_plain": (6, 30),
    "kill_http_paged": (4, 30),
    "kill_http_plain": (4, 30),
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
    published: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)
    repeats_allowed: int = 0
    longest_stall: timedelta = field(default_factory=timedelta)
    views_are_equal: bool = True
    is_continuous: bool = True
    orphans: Counter[str] = field(default_factory=Counter)
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether the guarantee held."""
        is_bounded = self.repeated.total() <= self.repeats_allowed
        is_whole = self.is_continuous and (not self.orphans.total() or self.repeats_allowed > 0)
        is_complete = not self.lost.total() and self.published["events"] > 0
        return is_complete and is_bounded and is_whole and self.views_are_equal and not self.note


class Lane:
    """One kind of fault, over sources of its own."""

    def __init__(self, fault: str, bench: Bench, stack: Stack, runs: int, url: str) -> None:
        self.outcome = Outcome(fault)
        self.bench = bench
        self.stack = stack
        self.runs = runs
        self.url = url
        self.random = random.Random(fault)
        self.tables: dict[str, dict[str, Any]] = {}

    @property
    def connectors(self) -> list[str]:
        """The names of the lane's connectors."""
        return list(self.tables)

    def configure(self, *types: str) -> None:
        """Sources that last for all the runs, one of each type."""
        for number, kind in enumerate(types):
            self.tables[f"source{number}"] = {
                "type": kind,
                "platform": self.bench.name,
                "pages": FOREVER,
                # A pass every 30 s would be most of the sweep's time.
                "poll_every": "300ms",
                **({"url": self.url} if "http" in kind else {}),
            }
        self.bench.configure(**self.tables)

    def start(self, **environment: str) -> Worker:
        """A bare worker."""
        worker = Worker(
            self.bench.directory / f"worker{len(self.bench.workers)}",
            self.bench.environment,
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

    async def progress(self, pages: int, seconds: float = DEADLINE_SECONDS) -> None:
        """Until this many more pages are stored."""
        await self.bench.wait_for_version(self.connectors[0], await self.version() + pages, seconds)

    async def finish(self, worker: Worker | None = None) -> None:
        """Let the sources end, a little after where they are, then compare with their truth."""
        if worker is not None:
            worker.kill()
        for connector, table in self.tables.items():
            pages = await self.pages_read(connector) + PAGES_AFTER
            while not shows_in_time(table["platform"], pages - 1):
                pages += 1
            table.update(pages=pages, is_hurried=True)
        self.bench.configure(**self.tables)
        self.start()
        for connector, table in self.tables.items():

            async def is_out(connector: str = connector, pages: int = table["pages"]) -> bool:
                return await self.pages_read(connector) >= pages

            await eventually(is_out, DEADLINE_SECONDS, self.bench.logs)
        # Some passes more: what comes again now is the most there is to be recognised.
        await asyncio.sleep(2)
        for connector in self.connectors:
            await self.bench.wait_for_state(connector, "caught_up", DEADLINE_SECONDS)
            await self.compare(connector)
        for one in self.bench.workers:
            one.kill()

    async def pages_read(self, connector: str) -> int:
        """How many pages of the source are out, as Postgres has it."""
        stored = await self.bench.stored_checkpoint(connector)
        if stored is None:
            return 0
        if "plain" in self.tables[connector]["type"]:
            return max(0, int((stored["last_ts"] - STARTED_AT) // SPAN) + 1)
        cursor = stored["cursor"] or '{"next": 0}'
        cursor = json.loads(cursor) if isinstance(cursor, str) else cursor
        return int(cursor["next"])

    async def published_by(self, connector: str) -> dict[str, Counter[str]]:
        """What is out of a connector, by the source's own names."""
        own = self.bench.id(connector).encode()
        kind = self.tables[connector]["type"]
        found = {one: Counter[str]() for one in KINDS}
        topics = {
            "events": f"verity.events.raw.{self.bench.name}",
            "dead letters": f"verity.events.dead.{kind}",
            "gaps": "verity.connector.gaps",
        }
        for what, topic in topics.items():
            for record in await committed(self.bench.bootstrap_servers, topic):
                if dict(record.headers)["connector_id"] == own:
                    found[what][name_of(what, orjson.loads(record.value))] += 1
        return found

    async def compare(self, connector: str) -> None:
        """Count what is lost and repeated, and whether the views are equal."""
        outcome, table = self.outcome, self.tables[connector]
        counts = await self.published_by(connector)
        truth = dict(zip(KINDS, truth_of(self.bench.name, table["pages"]), strict=True))
        if "plain" in table["type"]:
            truth["gaps"] = set()  # A plain connector has no word for them.
        published = await self.bench.published_checkpoints(connector)
        counted = {"events": "event_count", "dead letters": "dead_count", "gaps": "gap_count"}
        for kind in KINDS:
            outcome.published[kind] += len(truth[kind])
            outcome.lost[kind] += len(truth[kind] - counts[kind].keys())
            outcome.repeated[kind] += counts[kind].total() - len(counts[kind])
            # A page is visible with its checkpoint or not at all (I2). What no checkpoint counts
            # was left by a page that was not whole.
            sum_of_pages = sum(one[counted[kind]] for one in published)
            outcome.orphans[kind] += abs(counts[kind].total() - sum_of_pages)
            if unknown := counts[kind].keys() - truth[kind]:
                outcome.note = f"{kind} that the source never held: {sorted(unknown)[:3]}"
        stored = await self.bench.stored_checkpoint(connector)
        assert stored is not None
        views = [(one["version"], one["cursor"]) for one in (published[-1], stored)]
        cursors = [json.loads(c) if isinstance(c, str) else c for _, c in views]
        versions = [one["version"] for one in published]
        if views[0][0] != views[1][0] or cursors[0] != cursors[1]:
            outcome.views_are_equal = False
        outcome.is_continuous &= versions == sorted(set(versions))  # I3
        times = [datetime.fromisoformat(one["published_at"]) for one in published]
        stalls = [later - earlier for earlier, later in itertools.pairwise(times)]
        outcome.longest_stall = max([outcome.longest_stall, *stalls])


def name_of(what: str, body: dict[str, Any]) -> str:
    """What the source calls an event, a bad record or a gap."""
    if what == "gaps":
        return str(body["scope"])
    if what == "events":
        return str(body["event_id"])
    data = json.loads(body["data"])
    return str(data.get("raw_payload", data)["ref"])


async def kill_lane(lane: Lane) -> None:
    """kill -9 at every failpoint in turn, and at random times."""
    lane.configure("sweep_paged")
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
            code = await asyncio.to_thread(worker.process.wait, DEADLINE_SECONDS)
            assert code == -signal.SIGKILL, worker.log[-3000:]
        lane.outcome.runs += 1
    await lane.finish()


async def kill_at_random(lane: Lane, kind: str) -> None:
    """kill -9 at random times, to a source of this type."""
    lane.configure(kind)
    for _ in range(lane.runs):
        worker = lane.start()
        await lane.progress(lane.random.randint(1, 9))  # Some within a pass, some after its end.
        await asyncio.sleep(lane.random.uniform(0, 0.5))
        worker.kill()
        lane.outcome.runs += 1
    await lane.finish()


async def kill_plain_lane(lane: Lane) -> None:
    """A source of plain events, late ones among them, with the default lookback."""
    await kill_at_random(lane, "sweep_plain")


async def kill_http_paged_lane(lane: Lane) -> None:
    """Pages over HTTP."""
    await kill_at_random(lane, "sweep_http_paged")


async def kill_http_plain_lane(lane: Lane) -> None:
    """Plain events over HTTP."""
    await kill_at_random(lane, "sweep_http_plain")


async def kill_at_least_once_lane(lane: Lane) -> None:
    """kill -9 without transactions: nothing lost, at most a page a crash repeated."""
    lane.bench.environment["VERITY_DELIVERY"] = "at_least_once"  # What the lane is about.
    lane.configure("sweep_paged")
    lane.outcome.repeats_allowed = lane.runs * PAGE_EVENTS_MAX
    points = ("after_publish", "after_commit", "before_persist", "after_persist")
    for number in range(lane.runs):
        worker = lane.start(VERITY_FAILPOINTS=f"{points[number % len(points)]}=kill@2")
        assert worker.process is not None
        await asyncio.to_thread(worker.process.wait, DEADLINE_SECONDS)
        lane.outcome.runs += 1
    await lane.finish()


async def zombie_lane(lane: Lane) -> None:
    """Frozen at a failpoint, taken over, woken up: it must find itself fenced."""
    lane.configure("sweep_http_paged")
    for number in range(lane.runs):
        point = ZOMBIE_POINTS[number % len(ZOMBIE_POINTS)]
        passage = 1 if point in START_POINTS else lane.random.randint(1, 3)
        zombie = lane.start(VERITY_FAILPOINTS=f"{point}=stop@{passage}")
        await eventually(partial(is_frozen, zombie), DEADLINE_SECONDS, lambda: lane.bench.logs())
        heir = lane.start()
        await lane.progress(2)
        zombie.signal(signal.SIGCONT)
        await eventually(partial(is_fenced, zombie), DEADLINE_SECONDS, lambda: lane.bench.logs())
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
    lane.configure("sweep_paged", "sweep_http_plain")
    worker = lane.start()
    for number in range(lane.runs):
        await lane.progress(2)
        await asyncio.to_thread(lane.stack.kafka.kill)
        await asyncio.sleep(60 if number % 5 == 4 else 5)
        await asyncio.to_thread(lane.stack.kafka.start)
        await lane.progress(2)
        lane.outcome.runs += 1
    await lane.finish(worker)


async def database_lane(lane: Lane) -> None:
    """Postgres is killed, cut off, made read-only, or holds a lock on the row."""
    lane.configure("sweep_plain", "sweep_http_paged")
    worker = lane.start()
    faults = [database_killed, connections_cut, read_only, row_locked, database_restarted]
    for number in range(lane.runs):
        await lane.progress(2)
        await faults[number % len(faults)](lane)
        await lane.progress(2)
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
                lane.bench.id("source0"),
            )
            await asyncio.sleep(4)
    finally:
        await connection.close()


async def rebalance_lane(lane: Lane) -> None:
    """Three real workers under Faust: one joins, ends, or is killed, under load."""
    kinds = ("sweep_paged", "sweep_plain", "sweep_http_paged", "sweep_http_plain")
    lane.configure(*kinds, *kinds[:2])
    workers = [lane.bench.worker() for _ in range(2)]
    await lane.progress(2)
    for number in range(lane.runs):
        kind = number % 3
        if kind == 0:
            workers.append(lane.bench.worker())
        elif kind == 1:
            await hears_signals(workers[0], lane.bench)
            await asyncio.to_thread(workers.pop(0).terminate)
        else:
            workers.pop(0).kill()
            workers.append(lane.bench.worker())
        await lane.progress(3)
        lane.outcome.runs += 1
    for worker in workers:
        await hears_signals(worker, lane.bench)
        await asyncio.to_thread(worker.terminate)
    await lane.finish()


async def hears_signals(worker: Worker, bench: Bench) -> None:
    """Wait until a worker serves its pages: before it listens to signals, SIGTERM just kills it."""

    async def serves() -> bool:
        return bool((await asyncio.to_thread(worker.get, "/healthz"))[0])

    await eventually(serves, DEADLINE_SECONDS, bench.logs)


LANES: dict[str, Callable[[Lane], Awaitable[None]]] = {
    "kill": kill_lane,
    "kill_plain": kill_plain_lane,
    "kill_http_paged": kill_http_paged_lane,
    "kill_http_plain": kill_http_plain_lane,
    "kill_at_least_once": kill_at_least_once_lane,
    "zombie": zombie_lane,
    "rebalance": rebalance_lane,
    "database": database_lane,
    "broker": broker_lane,
}
# These disturb everybody on the stack: they run alone, after the others.
ALONE = ("database", "broker")


async def run_lane(fault: str, stack: Stack, directory: Path, is_full: bool, url: str) -> Outcome:
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
    began = time.monotonic()
    with killing(bench):
        lane = Lane(fault, bench, stack, NUMBERS[fault][is_full], url)
        try:
            await LANES[fault](lane)
        except Exception as error:  # noqa: BLE001 - one lane's failure is a line of the table
            lane.outcome.note = f"{type(error).__name__}: {error}"[-1500:]
        verdict = "holds" if lane.outcome.holds else "DOES NOT HOLD"
        Console().print(f"{fault}: {verdict}, {time.monotonic() - began:.0f} s")
        return lane.outcome


async def sweep(directory: Path, is_full: bool, only: str | None) -> list[Outcome]:
    """Every lane; those that can share a stack run side by side."""
    chosen = [fault for fault in LANES if only is None or fault in only.split(",")]
    alone = [fault for fault in chosen if fault in ALONE]
    with temporary_stack() as stack, serving() as url:
        stack.up()
        together = [fault for fault in chosen if fault not in ALONE]
        outcomes = list(
            await asyncio.gather(
                *(run_lane(fault, stack, directory / fault, is_full, url) for fault in together)
            )
        )
        return outcomes + [
            await run_lane(fault, stack, directory / fault, is_full, url) for fault in alone
        ]


def shown(counts: Counter[str]) -> str:
    """One number where there is only one to say."""
    if not counts.total():
        return "0"
    return " / ".join(str(counts[kind]) for kind in KINDS)


def report(outcomes: list[Outcome], seconds: float) -> None:
    """The table."""
    table = Table(title=f"Fault sweep, {seconds:.0f} s; events / dead letters / gaps")
    columns = (
        "fault",
        "runs",
        "published",
        "lost",
        "repeated",
        "torn",
        "longest stall",
        "views equal",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "fault" else "right")
    for one in outcomes:
        allowed = f" (≤ {one.repeats_allowed} allowed)" if one.repeats_allowed else ""
        torn = shown(one.orphans)
        table.add_row(
            one.fault,
            str(one.runs),
            shown(one.published),
            shown(one.lost),
            f"{shown(one.repeated)}{allowed}",
            torn if one.is_continuous else f"{torn}, versions out of order",
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
    as_written = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser("sweep", description=__doc__, formatter_class=as_written).parse_args()
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
