"""Many connectors, several workers: `python -m benchmarks.scale`.

Measures what an operator of a large installation asks, on real workers under Faust: how evenly
connectors are shared, how long a worker takes to get its part or to hand it over, how long one
that was killed is missed, whether anybody else notices, and what connectors cost that have nothing
to do. Prints a table of what was measured and what is wanted; exits with 1 where that is missed.

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

import orjson
import psutil
from aiokafka import AIOKafkaConsumer, TopicPartition
from rich.console import Console
from rich.table import Table

from verity_stream.records import CHECKPOINTS_TOPIC
from verity_stream.stack import Stack

SESSION_SECONDS = 5.0
TICK_SECONDS = 0.5
START_SECONDS_MAX = 60.0
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
            "VERITY_SESSION_TIMEOUT_SECONDS": str(SESSION_SECONDS),
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

    async def shared(self, workers: list[Worker], names: set[str]) -> None:
        """Until each of these workers has some of the connectors, and together they have all."""

        def are_shared() -> bool:
            parts = [worker.assigned() for worker in workers]
            return all(parts) and sorted(itertools.chain(*parts)) == sorted(names)

        await until(are_shared, START_SECONDS_MAX)


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
        lines += await _leaves(
            site, log, second, [first, third], names, signal.SIGTERM, "SIGTERM", 3.0
        )
        fourth = site.start("fourth")
        await site.shared([first, third, fourth], names)
        await asyncio.sleep(SETTLE_SECONDS)
        lines += await _leaves(
            site, log, third, [first, fourth], names, signal.SIGKILL, "kill -9",
            SESSION_SECONDS + 2,
        )  # fmt: skip
    finally:
        following.cancel()
        await asyncio.wait({following})
    return lines


async def _joins(site: Site, log: PageLog, there: list[Worker], names: set[str]) -> list[Line]:
    """A third worker takes its share; counted from when it begins to join."""
    began = time.time()
    third = site.start("third")
    await until(lambda: _logged(third, "Starting...") is not None, START_SECONDS_MAX)
    await site.shared([*there, third], names)
    await asyncio.sleep(SETTLE_SECONDS)
    moved = set(third.assigned())
    # From its own start, the process's imports left out, to the first page of each connector.
    starting = _logged(third, "Starting...") or began
    taken = max(_first_page(log, name, third) for name in moved) - starting
    pauses = log.pauses(names, starting - 1, time.time())
    stayed = max((pauses[name] for name in names - moved), default=0.0)
    return [
        Line("a joining worker publishes of all its share", f"{taken:.1f} s", "< 3 s", taken < 3),
        Line("… the connectors that stay pause at most", *_pause(stayed)),
    ]


async def _leaves(
    site: Site,
    log: PageLog,
    leaving: Worker,
    staying: list[Worker],
    names: set[str],
    number: signal.Signals,
    title: str,
    goal_seconds: float,
) -> list[Line]:
    """One worker goes; the pause of what it ran, and of what it did not."""
    moved = set(leaving.assigned())
    began = time.time()
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
        for name in moved
    ]
    handed_over = max(first_pages) - began
    # A pause of a connector that stays begins when the others notice, not when the worker dies.
    stayed = max(log.pauses(names - moved, began - 1, time.time()).values())
    return [
        Line(
            f"{title}: all its connectors publish elsewhere",
            f"{handed_over:.1f} s",
            f"< {goal_seconds:g} s",
            handed_over < goal_seconds,
        ),
        Line("… the connectors that stay pause at most", *_pause(stayed)),
    ]


def _pause(seconds: float) -> tuple[str, str, bool]:
    """Kafka's eager protocol stops everybody during a rebalance; nobody may pause for longer."""
    return f"{seconds:.1f} s", "< 3 s, a rebalance", seconds < 3


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


async def measure(options: argparse.Namespace) -> list[Line]:
    """Both parts, each on a stack of its own."""
    lines: list[Line] = []
    if options.only in (None, "sharing"):
        with site() as one:
            lines += await sharing(one, options.connectors)
    if options.only in (None, "idle"):
        with site() as one:
            lines += await idle(one, options.idle)
    return lines


def main() -> int:
    """Measure, print, and say whether every goal is met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--connectors", type=int, default=60, help="shared by three workers")
    parser.add_argument("--idle", type=int, default=200, help="in one worker")
    parser.add_argument("--only", choices=("sharing", "idle"))
    options = parser.parse_args()
    load = os.getloadavg()[0]
    lines = asyncio.run(measure(options))
    table = Table(
        title=f"{os.cpu_count()} cores, load before {load:.2f}, session {SESSION_SECONDS:g} s, "
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
