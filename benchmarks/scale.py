"""Many connectors, several workers: `python -m benchmarks.scale`.

Measures what an operator of a large installation asks, on real workers under Faust with default
settings: how evenly connectors are shared, how long a worker takes to get its part or to hand it
over, how long one that was killed is missed, whether anybody else notices, what connectors cost
that have nothing to do, and what a join and a leave cost where there are many of those. Prints a
table of what was measured and what is wanted; exits with 1 where that is missed.

It starts its own Kafka and PostgreSQL in a directory that it removes. `SCALE_LOGS=folder` keeps the
workers' logs.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import psutil
from aiokafka import AIOKafkaConsumer, TopicPartition
from rich.console import Console
from rich.table import Table

from verity_stream.dev.stack import Stack
from verity_stream.records import CHECKPOINTS_TOPIC
from verity_stream.settings import StreamSettings

TICK_SECONDS = 0.5
START_SECONDS_MAX = 60.0
CHURN_SECONDS_MAX = 300.0
SETTLE_SECONDS = 12.0
IDLE_SECONDS = 60.0
ROOT = Path(__file__).parent.parent
ENTRY_POINTS = """\
[verity.connectors]
scale_ticking = benchmarks.scale_connectors:Ticking
scale_idle = benchmarks.scale_connectors:Idle
"""


@dataclass(frozen=True, slots=True)
class Line:
    """One measured figure and what is wanted of it."""

    title: str
    measured: str
    goal: str
    is_met: bool


@dataclass
class Worker:
    """One worker's process and its log."""

    name: str
    directory: Path
    web_port: int
    process: subprocess.Popen[bytes]

    def assigned(self) -> list[str]:
        """The connectors that it was assigned last."""
        last: list[str] = []
        for line in (self.directory / "worker.log").read_text("utf-8", "replace").splitlines():
            if line.startswith("{") and (body := json.loads(line))["message"] == "runner.assigned":
                last = body["connectors"]
        return last

    def caught_up_count(self) -> int:
        """How many connectors it shows as caught up."""
        address = f"http://127.0.0.1:{self.web_port}/metrics"
        try:
            with urllib.request.urlopen(address, timeout=5) as page:
                lines = page.read().decode().splitlines()
        except OSError:
            return 0
        return sum(line.endswith('state="caught_up"} 1.0') for line in lines)

    def kill(self) -> None:
        """kill -9."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def usage(self) -> psutil.Process:
        """The process, to be measured."""
        return psutil.Process(self.process.pid)


@dataclass
class Site:
    """A stack, a configuration, and the workers that share it."""

    directory: Path
    stack: Stack
    bootstrap_servers: str
    dsn: str
    app_id: str
    workers: list[Worker] = field(default_factory=list)

    def configure(self, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """Write `verity.toml`."""
        lines = []
        for name, table in tables.items():
            lines.append(f"[connectors.{name}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        (self.directory / "verity.toml").write_text("\n".join(lines) + "\n")

    def start(self, name: str) -> Worker:
        """Start a worker; it runs on when this returns, and is not ready yet."""
        directory, web_port = self.directory / name, free_port()
        directory.mkdir()
        info = self.directory / "plugin" / "verity_scale-0.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: verity-scale\nVersion: 0\n")
        (info / "entry_points.txt").write_text(ENTRY_POINTS)
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{info.parent}",
            "VERITY_KAFKA__BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "VERITY_DATABASE__DSN": self.dsn,
            "VERITY_CONFIG": str(self.directory / "verity.toml"),
            "VERITY_APP_ID": self.app_id,
            "VERITY_WORKER_NAME": name,
            "VERITY_LOG_FORMAT": "json",
            "VERITY_WEB_PORT": str(web_port),
        }
        faust = str(Path(sys.executable).with_name("faust"))
        with (directory / "worker.log").open("wb") as log:
            process = subprocess.Popen(
                (faust, "--datadir", str(directory / "data"), "-A", "verity_stream", "worker"),
                cwd=directory,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        worker = Worker(name, directory, web_port, process)
        self.workers.append(worker)
        return worker

    async def shared(
        self, workers: list[Worker], names: set[str], seconds: float = START_SECONDS_MAX
    ) -> None:
        """Until each of these workers has some of the connectors, and together they have all."""

        def are_shared() -> bool:
            parts = [worker.assigned() for worker in workers]
            return all(parts) and sorted(itertools.chain(*parts)) == sorted(names)

        await until(are_shared, seconds)

    async def fetch(self, sql: str) -> list[Any]:
        """Ask Verity's database."""
        connection = await asyncpg.connect(self.dsn)
        try:
            return list(await connection.fetch(sql))
        finally:
            await connection.close()

    async def epochs(self) -> dict[str, int]:
        """How many times each connector was started."""
        rows = await self.fetch("SELECT connector_id, epoch FROM connector_checkpoints")
        return {row["connector_id"]: row["epoch"] for row in rows}

    async def caught_up(self) -> set[tuple[str, str]]:
        """Connectors that are caught up, each with the worker that says so."""
        rows = await self.fetch(
            "SELECT connector_id, worker FROM connector_status WHERE state = 'caught_up'"
        )
        return {(row["connector_id"], row["worker"]) for row in rows}


@dataclass(frozen=True, slots=True)
class PageOut:
    """One published page: whose, when, and in which epoch, which is one more a start."""

    connector_id: str
    at: float
    epoch: int


class PageLog:
    """Every page of every connector, read from the checkpoints topic while it is written."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._bootstrap_servers = bootstrap_servers
        self.pages: list[PageOut] = []

    async def follow(self) -> None:
        """Read for ever."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap_servers,
            enable_auto_commit=False,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            fetch_max_wait_ms=50,
        )
        await consumer.start()
        try:
            consumer.assign([TopicPartition(CHECKPOINTS_TOPIC, number) for number in range(24)])
            while True:
                batches = await consumer.getmany(timeout_ms=200)
                for records in batches.values():
                    for record in records:
                        body = orjson.loads(record.value)
                        self.pages.append(
                            PageOut(
                                body["connector_id"],
                                datetime.fromisoformat(body["published_at"]).timestamp(),
                                body["epoch"],
                            )
                        )
        finally:
            await consumer.stop()

    def pauses(self, names: set[str], since: float, until: float) -> dict[str, float]:
        """The longest time between two pages of each connector in a stretch of time."""
        found = {}
        for name in names:
            times = sorted(
                page.at for page in self.pages if page.connector_id == name and page.at >= since
            )
            times = [since, *(at for at in times if at <= until), until]
            found[name] = max(after - at for at, after in itertools.pairwise(times))
        return found


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until(condition: Callable[[], bool], seconds: float) -> float:
    """Wait for a condition; how many seconds it took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"not so within {seconds} s")
        await asyncio.sleep(0.05)
    return time.monotonic() - began


@contextmanager
def site() -> Iterator[Site]:
    """A stack of its own; its servers and workers are killed at the end."""
    directory = Path(tempfile.mkdtemp(prefix="verity-scale-"))
    # PostgreSQL runs as another user when this runs as root, and must get in.
    directory.chmod(0o755)
    stack = Stack(directory / "stack", kafka_port=0, postgres_port=0)
    found: Site | None = None
    try:
        address = stack.up(environ={})
        found = Site(directory, stack, address.bootstrap_servers, address.dsn, "scale")
        yield found
    finally:
        for worker in [] if found is None else found.workers:
            worker.kill()
            if logs := os.environ.get("SCALE_LOGS"):
                shutil.copy(worker.directory / "worker.log", Path(logs) / f"{worker.name}.log")
        for server in stack.servers:
            server.kill()
            server.wipe()
        shutil.rmtree(directory, ignore_errors=True)


async def sharing(site: Site, connector_count: int) -> list[Line]:
    """Three workers; one joins, one ends, one is killed."""
    names = {f"source-{number:03}" for number in range(connector_count)}
    table = {
        "type": "scale_ticking",
        "platform": "scale",
        "every_seconds": TICK_SECONDS,
        "snapshot_every": 86400,
    }
    site.configure(dict.fromkeys(sorted(names), table))
    first, second = site.start("first"), site.start("second")
    await site.shared([first, second], names)
    log = PageLog(site.bootstrap_servers)
    following = asyncio.create_task(log.follow())
    lines = []
    try:
        await asyncio.sleep(SETTLE_SECONDS)

        joined = await _joins(site, log, [first, second], names)
        third = site.workers[-1]
        lines += joined
        parts = [len(worker.assigned()) for worker in (first, second, third)]
        even = connector_count / 3
        lines.append(
            Line(
                f"connectors a worker, {connector_count} on 3",
                " / ".join(map(str, parts)),
                f"{even * 0.7:.0f} – {even * 1.3:.0f}",
                all(even * 0.7 <= part <= even * 1.3 for part in parts),
            )
        )
        lines += await _leaves(site, log, second, [first, third], names, signal.SIGTERM, 3.0)
        fourth = site.start("fourth")
        await site.shared([first, third, fourth], names)
        await asyncio.sleep(SETTLE_SECONDS)
        lines += await _leaves(site, log, third, [first, fourth], names, signal.SIGKILL, 10.0)
    finally:
        following.cancel()
        await asyncio.wait({following})
    return lines


async def _joins(site: Site, log: PageLog, there: list[Worker], names: set[str]) -> list[Line]:
    """A third worker takes its share; counted from when it begins to join."""
    began, before, owners = time.time(), await site.epochs(), _owners(there)
    third = site.start("third")
    await until(lambda: _logged(third, "Starting...") is not None, START_SECONDS_MAX)
    await site.shared([*there, third], names)
    await asyncio.sleep(SETTLE_SECONDS)
    stayed = _stayed(owners, [*there, third])
    # From its own start, the process's imports left out, to the first page of each connector.
    starting = _logged(third, "Starting...") or began
    taken = max(_first_page(log, name, third) for name in third.assigned()) - starting
    return [
        Line("a joining worker publishes of all its share", f"{taken:.1f} s", "< 3 s", taken < 3),
        *await _others(site, log, stayed, before, starting - 1),
    ]


async def _leaves(
    site: Site,
    log: PageLog,
    leaving: Worker,
    staying: list[Worker],
    names: set[str],
    number: signal.Signals,
    goal_seconds: float,
) -> list[Line]:
    """One worker goes; the pause of what it ran, and of what it did not."""
    moved = set(leaving.assigned())
    began, before, owners = time.time(), await site.epochs(), _owners(staying)
    os.kill(leaving.process.pid, number)
    await asyncio.to_thread(leaving.process.wait, 20)
    await site.shared(staying, names)
    await asyncio.sleep(SETTLE_SECONDS)
    epochs = {page.connector_id: page.epoch for page in log.pages if page.at < began}
    first_pages = [
        min(
            page.at
            for page in log.pages
            if page.connector_id == name and page.at >= began and page.epoch > epochs[name]
        )
        - began
        for name in moved
    ]
    # What a connector's people notice is the median; the last one is what the worker takes.
    middle, last = statistics.median(first_pages), max(first_pages)
    return [
        Line(
            f"{number.name}: its connectors publish elsewhere, median / last",
            f"{middle:.1f} / {last:.1f} s",
            f"median < {goal_seconds:g} s",
            middle < goal_seconds,
        ),
        *await _others(site, log, _stayed(owners, staying), before, began - 1),
    ]


def _owners(workers: list[Worker]) -> set[tuple[str, str]]:
    """Every connector with its worker."""
    return {(name, worker.name) for worker in workers for name in worker.assigned()}


def _stayed(before: set[tuple[str, str]], workers: list[Worker]) -> set[str]:
    """The connectors that are where they were: evening may swap some between any two workers."""
    return {name for name, _ in before & _owners(workers)}


async def _others(
    site: Site, log: PageLog, stayed: set[str], before: Mapping[str, int], since: float
) -> list[Line]:
    """What a rebalance does to the connectors that stay where they are."""
    after = await site.epochs()
    restarted = sum(after[name] > before[name] for name in stayed)
    gaps = log.pauses(stayed, since, time.time()).values()
    # Between two pages of these sources there are TICK_SECONDS anyway.
    pause = max(max(gaps, default=0.0) - TICK_SECONDS, 0.0)
    return [
        Line(f"… of the {len(stayed)} that stay are started again", f"{restarted}", "0",
             restarted == 0),
        Line("… and pause at most, beyond their own pace", f"{pause:.1f} s", "< 1 s", pause < 1),
    ]  # fmt: skip


def _first_page(log: PageLog, connector_id: str, worker: Worker) -> float:
    """When the connector's first page came out of this worker."""
    assigned = _logged(worker, "runner.assigned")
    assert assigned is not None
    return min(
        page.at for page in log.pages if page.connector_id == connector_id and page.at >= assigned
    )


def _logged(worker: Worker, message: str) -> float | None:
    """When the worker first logged a message that ends so."""
    path = worker.directory / "worker.log"
    for line in path.read_text("utf-8", "replace").splitlines():
        if line.startswith("{") and (body := json.loads(line))["message"].endswith(message):
            return datetime.fromisoformat(body["timestamp"]).timestamp()
    return None


async def idle(site: Site, connector_count: int) -> list[Line]:
    """What connectors cost that have nothing to do: polled every 30 s, as by default."""
    names = {f"idle-{number:03}" for number in range(connector_count)}
    table = {"type": "scale_idle", "platform": "scale", "snapshot_every": 86400}
    site.app_id = "scale-idle"
    site.configure(dict.fromkeys(sorted(names), table))
    worker = site.start("idle")
    await site.shared([worker], names)
    await until(lambda: worker.caught_up_count() == connector_count, START_SECONDS_MAX)
    await asyncio.sleep(SETTLE_SECONDS)
    process = worker.usage()
    before, began = process.cpu_times(), time.monotonic()
    await asyncio.sleep(IDLE_SECONDS)
    after, seconds = process.cpu_times(), time.monotonic() - began
    share = 100 * (after.user + after.system - before.user - before.system) / seconds
    megabytes = process.memory_info().rss / 2**20
    return [
        Line(
            f"memory of a worker with {connector_count} idle connectors",
            f"{megabytes:.0f} MB",
            "< 400 MB",
            megabytes < 400,
        ),
        Line(f"… its CPU, of one core, over {seconds:.0f} s", f"{share:.1f} %", "< 10 %",
             share < 10),
    ]  # fmt: skip


async def churn(site: Site, connector_count: int) -> list[Line]:
    """Two workers with idle connectors; one joins, one leaves."""
    names = {f"idle-{number:04}" for number in range(connector_count)}
    table = {"type": "scale_idle", "platform": "scale", "snapshot_every": 86400}
    site.configure(dict.fromkeys(sorted(names), table))
    there = [site.start("first"), site.start("second")]
    began = time.monotonic()
    await site.shared(there, names, CHURN_SECONDS_MAX)
    await _served(site, there)
    lines = [Line(f"{connector_count} idle connectors start on 2 workers",
                  f"{time.monotonic() - began:.1f} s", "", True)]  # fmt: skip
    await asyncio.sleep(SETTLE_SECONDS)
    joining = await _churned(site, names, there, join=True)
    await asyncio.sleep(SETTLE_SECONDS)
    leaving = await _churned(site, names, [*there, site.workers[-1]], join=False)
    return lines + joining + leaving


async def _churned(site: Site, names: set[str], there: list[Worker], *, join: bool) -> list[Line]:
    """One more worker, or the first of these leaves: what moves, and what that costs."""
    owned = {name: worker.name for worker in there for name in worker.assigned()}
    before, processes = await site.epochs(), [worker.usage() for worker in there[1:]]
    cpu = sum(sum(one.cpu_times()[:2]) for one in processes)
    began = time.monotonic()
    if join:
        now = [*there, site.start("third")]
    else:
        now = there[1:]
        there[0].process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(there[0].process.wait, 20)
    await site.shared(now, names, CHURN_SECONDS_MAX)
    shared_seconds = time.monotonic() - began
    await _served(site, now)
    seconds = time.monotonic() - began
    cpu = sum(sum(one.cpu_times()[:2]) for one in processes) - cpu
    after = await site.epochs()
    moved = {name for worker in now for name in worker.assigned() if owned[name] != worker.name}
    again = sum(after[name] > before[name] for name in names - moved)
    twice = sum(after[name] > before[name] + 1 for name in moved)
    title = "a third joins" if join else "one leaves (SIGTERM)"
    return [
        Line(f"{title}: assigned / all caught up", f"{shared_seconds:.1f} / {seconds:.1f} s", "",
             True),
        Line("… connectors that move", f"{len(moved)}", "", True),
        Line("… of those started more than once", f"{twice}", "0", twice == 0),
        Line("… of those that stay started again", f"{again}", "0", again == 0),
        Line("… CPU of the workers that stay", f"{cpu:.1f} s", "", True),
        Line("… memory of the largest worker",
             f"{max(one.usage().memory_info().rss for one in now) / 2**20:.0f} MB", "", True),
    ]  # fmt: skip


async def _served(site: Site, workers: list[Worker]) -> None:
    """Until every connector is shown as caught up by the worker that has it now."""
    deadline = time.monotonic() + CHURN_SECONDS_MAX
    owners = _owners(workers)
    while not owners <= await site.caught_up():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all caught up within {CHURN_SECONDS_MAX} s")
        # Not in the workers' /metrics: rendering hundreds of connectors is CPU of theirs.
        await asyncio.sleep(0.25)


async def measure(options: argparse.Namespace) -> list[Line]:
    """Every part, each on a stack of its own."""
    lines: list[Line] = []
    if options.only in (None, "sharing"):
        with site() as one:
            lines += await sharing(one, options.connectors)
    if options.only in (None, "idle"):
        with site() as one:
            lines += await idle(one, options.idle)
    if options.only in (None, "churn"):
        with site() as one:
            lines += await churn(one, options.churn)
    return lines


def main() -> int:
    """Measure, print, and say whether every goal is met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--connectors", type=int, default=60, help="shared by three workers")
    parser.add_argument("--idle", type=int, default=200, help="in one worker")
    parser.add_argument("--churn", type=int, default=1000, help="idle ones, on two workers")
    parser.add_argument("--only", choices=("sharing", "idle", "churn"))
    options = parser.parse_args()
    load = os.getloadavg()[0]
    session = StreamSettings().session_timeout_seconds
    lines = asyncio.run(measure(options))
    table = Table(
        title=f"{os.cpu_count()} cores, load before {load:.2f}, session {session:g} s, "
        f"Python {platform.python_version()}"
    )
    for column in ("", "measured", "goal", ""):
        table.add_column(column)
    for line in lines:
        table.add_row(line.title, line.measured, line.goal, "met" if line.is_met else "NOT MET")
    console = Console()
    if not console.is_terminal:
        console.width = 110
    console.print(table)
    return 0 if all(line.is_met for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
