"""`make demo-all`: six platforms into one Kafka, exactly once, and one picture of who left.

Behavioural fakes of five vendors run as a process of their own; PostgreSQL and Kafka are real, and
so are the workers, one of which is killed with -9 in a storm of 429s while late events arrive.
Exit code 0: everything that the last tables claim was found to be true.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import click
import orjson
from rich.table import Table
from rich.text import Text

from fakes.company import AUDITED, PLATFORMS, toml_lines
from fakes.world import Person, World
from verity_common.config import DatabaseSettings
from verity_common.kafka import KafkaSettings
from verity_sdk.errors import Unavailable, VerityError
from verity_sdk.references import ALIAS, employee
from verity_stream.cli.output import quiet_logs
from verity_stream.dev.demo.scenario import KAFKA_SETTINGS, SESSION_SECONDS
from verity_stream.dev.demo.show import Progress
from verity_stream.dev.demo.workers import DemoWorker, WorkerDied, kill_left_behind
from verity_stream.dev.demo.workload import COLLECTOR, DATABASE, Workload
from verity_stream.dev.stack import Stack, StackAddress, StackError
from verity_stream.kafka.committed import CommittedReader
from verity_stream.postgres.pool import create_pool, migrate
from verity_stream.records import permissions_topic, raw_topic

LATE_COUNT = 8
SERVER = "shop-server"
APP_ID = "leavers"
EVERYTHING = (*PLATFORMS, "postgres")
SECONDS_MAX = 150.0
POLL_SECONDS = 0.5
ROOT = Path(__file__).resolve().parents[2]


class DemoFailed(Exception):
    """Something did not happen in time; the message says what."""


class LeaversApp(DemoWorker):
    """The downstream example, `faust -A leavers worker`."""

    @property
    def command(self) -> list[str]:
        """What a team downstream would type."""
        faust = [sys.executable, "-m", "faust", "--datadir", str(self._data)]
        return [*faust, "-A", "leavers", "worker"]


@dataclass
class Fakes:
    """The process of the fakes."""

    process: subprocess.Popen[str]
    tables: dict[str, Any]
    urls: dict[str, str]

    @classmethod
    def start(cls, log: Path) -> Fakes:
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "fakes.company"],
                cwd=ROOT / "tests",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise DemoFailed(f"the fakes did not start: {log.read_text()[-2000:]}")
        return cls(process, **json.loads(line))

    def say(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def truth(self, platform: str) -> tuple[set[str], set[tuple[str, ...]]]:
        """The events and the grants that are really there."""
        url = f"{self.urls[platform]}/_truth"
        with urllib.request.urlopen(url, timeout=20) as answer:  # noqa: S310 - our own process
            body = orjson.loads(answer.read())
        return set(body["event_ids"]), {tuple(grant) for grant in body["grants"]}

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
            self.process.kill()


@dataclass(frozen=True, slots=True)
class Row:
    """What one platform's source has, and what the topics have of it."""

    platform: str
    source: set[str]
    topic: Sequence[str]
    grants: set[tuple[str, ...]] | None
    published: set[tuple[str, ...]]
    is_complete: bool

    @property
    def lost(self) -> int:
        return len(self.source - set(self.topic))

    @property
    def repeated(self) -> int:
        return sum(1 for count in Counter(self.topic).values() if count > 1)

    @property
    def differing_grants(self) -> int:
        return 0 if self.grants is None else len(self.grants ^ self.published)

    @property
    def holds(self) -> bool:
        return not (self.lost or self.repeated or self.differing_grants) and self.is_complete


class Show:
    """One run on fresh servers."""

    def __init__(self, address: StackAddress, directory: Path, progress: Progress) -> None:
        self._address = address
        self._directory = directory
        self._progress = progress
        self._reader = CommittedReader(KafkaSettings(bootstrap_servers=address.bootstrap_servers))
        self._workload = Workload(address.dsn)
        self._world = World(seed=1)
        self._pool: Any = None

    async def run(self) -> bool:
        """The whole story; whether everything held."""
        say = self._progress.say
        fakes = Fakes.start(self._directory / "fakes.log")
        environment = self._environment(fakes)
        first, second = (
            DemoWorker(self._directory, f"worker-{number}", environment) for number in (1, 2)
        )
        app = LeaversApp(self._directory, "leavers", {**environment, **self._app_environment()})
        try:
            say(f"the fakes of {', '.join(PLATFORMS)} run, pid {fakes.process.pid}")
            await self._workload.prepare()
            await self._workload.rounds(20)
            await self._forgotten_role(self._world.leavers[0])
            say(f"people work on PostgreSQL; the role of {self._world.leavers[0].name}, who left, ")
            say("was forgotten there, and is used")
            database = DatabaseSettings.model_validate({"dsn": self._address.dsn})
            self._pool = await create_pool(database)
            await migrate(self._pool)
            fakes.say("storm 4")
            first.start()
            say(f"worker-1 runs, pid {first.pid}; every vendor answers 429 for a while")
            await self._until(lambda: self._has_events("databricks", 20), [first], "a first page")
            fakes.say("storm 6")
            fakes.say(f"late {LATE_COUNT}")
            await asyncio.sleep(1)
            first.kill()
            say("kill -9 of worker-1, in a storm of 429s; late events arrive", "bold")
            second.start()
            app.start()
            say(f"worker-2 runs, pid {second.pid}; downstream: faust -A leavers worker")
            for platform in AUDITED:
                truth, _ = fakes.truth(platform)
                await self._until(
                    lambda platform=platform, truth=truth: self._has_all(platform, truth),
                    [second, app],
                    f"all events of {platform}",
                )
                say(f"{platform}: all {len(truth)} events are in the topic")
            await self._until(self._have_snapshots, [second, app], "all permission snapshots")
            say("the permissions of every platform are in Kafka")
            await self._until(self._are_found, [second, app], "a finding about every leaver")
            for worker in (second, app):
                code, seconds = await asyncio.to_thread(worker.terminate)
                say(f"SIGTERM: {worker.name} stopped in {seconds:.1f} s, exit code {code}")
            return await self._show([await self._row(name, fakes) for name in EVERYTHING])
        finally:
            first.kill()
            second.kill()
            app.kill()
            fakes.stop()
            with suppress(Exception):
                await self._workload.close()
            if self._pool is not None:
                self._pool.terminate()

    def _environment(self, fakes: Fakes) -> Mapping[str, str]:
        tables = {
            **fakes.tables,
            "postgres": {
                "type": "postgres",
                "dsn": "env:DEMO_COLLECTOR_DSN",
                "server": SERVER,
                "databases": [DATABASE],
                "poll_every": "1s",
            },
        }
        lines = [line for name, table in tables.items() for line in toml_lines(name, table)]
        config = self._directory / "verity.toml"
        config.write_text("\n".join([*lines, ""]), "utf-8")
        return {
            "VERITY_CONFIG": str(config),
            "VERITY_KAFKA__BOOTSTRAP_SERVERS": self._address.bootstrap_servers,
            "VERITY_DATABASE__DSN": self._address.dsn,
            "VERITY_SESSION_TIMEOUT_SECONDS": str(SESSION_SECONDS),
            "VERITY_LOG_FORMAT": "json",
            "DEMO_COLLECTOR_DSN": self._workload.dsn(COLLECTOR),
        }

    def _app_environment(self) -> Mapping[str, str]:
        return {
            "PYTHONPATH": str(ROOT / "examples" / "downstream"),
            "LEAVERS_APP_ID": APP_ID,
            "LEAVERS_DOMAIN": self._world.people[0].email.partition("@")[2],
        }

    async def _forgotten_role(self, person: Person) -> None:
        login = person.email.partition("@")[0]
        boss = await asyncpg.connect(self._workload.dsn("olga"))
        await boss.execute(f"CREATE ROLE \"{login}\" LOGIN PASSWORD '{self._workload.password}'")
        await boss.execute(f'GRANT USAGE ON SCHEMA hr TO "{login}"')
        await boss.execute(f'GRANT SELECT ON hr.salaries TO "{login}"')
        await boss.close()
        session = await asyncpg.connect(self._workload.dsn(login))
        await session.execute("SELECT * FROM hr.salaries")
        await session.close()

    # What is waited for.

    async def _events(self, platform: str) -> list[dict[str, Any]]:
        return [orjson.loads(one.value) async for one in self._reader.stream(raw_topic(platform))]

    async def _has_events(self, platform: str, count: int) -> bool:
        return len(await self._events(platform)) >= count

    async def _has_all(self, platform: str, truth: set[str]) -> bool:
        return {event["event_id"] for event in await self._events(platform)} >= truth

    async def _have_snapshots(self) -> bool:
        rows = await self._pool.fetch("SELECT connector_id FROM connector_snapshots")
        return {row["connector_id"] for row in rows} >= set(EVERYTHING)

    async def _findings(self) -> dict[str, Any]:
        records = [one async for one in self._reader.stream(f"findings.{APP_ID}")]
        return {one.key.decode().strip('"'): orjson.loads(one.value) for one in records}

    async def _are_found(self) -> bool:
        found = await self._findings()
        forgotten = found.get(employee(self._world.leavers[0].employee_id), {})
        return all(
            found.get(employee(one.employee_id), {}).get("still_may") for one in self._world.leavers
        ) and "postgres" in {act["platform"] for act in forgotten["did_after"]}

    async def _until(
        self,
        condition: Callable[[], Awaitable[bool]],
        workers: Sequence[DemoWorker],
        what: str,
    ) -> None:
        deadline = time.monotonic() + SECONDS_MAX
        while True:
            for worker in workers:
                worker.require_alive()
            with suppress(Unavailable, asyncpg.PostgresError):
                if await condition():
                    return
            if time.monotonic() > deadline:
                tails = "\n".join(worker.log_tail() for worker in workers)
                raise DemoFailed(f"not within {SECONDS_MAX:g} s: {what}\n{tails}")
            await asyncio.sleep(POLL_SECONDS)

    # What came of it.

    async def _row(self, platform: str, fakes: Fakes) -> Row:
        topic = [event["event_id"] for event in await self._events(platform)]
        bodies = [
            orjson.loads(one.value)
            async for one in self._reader.stream(permissions_topic(platform))
        ]
        ends = [body for body in bodies if body["record"] == "end"]
        names = ("principal_ref", "asset_ref", "privilege", "grant_mechanism", "granted_via")
        published = {
            tuple(body[name] or "" for name in names)
            for body in bodies
            if body["record"] == "grant" and body["snapshot_id"] == ends[-1]["snapshot_id"]
        }
        if platform in AUDITED:
            source, grants = fakes.truth(platform)
            return Row(platform, source, topic, grants, published, ends[-1]["is_complete"])
        # HR's first pass also tells of everybody who was there; PostgreSQL's own log is compared
        # by `make demo`.
        return Row(platform, set(topic), topic, None, published, ends[-1]["is_complete"])

    async def _show(self, rows: Sequence[Row]) -> bool:
        console = self._progress.console
        counts: Counter[tuple[str, str, str]] = Counter()
        for row in rows:
            for event in await self._events(row.platform):
                counts[row.platform, event["operation"], event["principal_ref"]] += 1
        done = Table(title="Who did what", title_justify="left", title_style="bold")
        for column in ("platform", "did", "who", "times"):
            done.add_column(column)
        for platform in EVERYTHING:
            mine = [(key, count) for key, count in counts.most_common() if key[0] == platform]
            for (_, operation, who), count in mine[:3]:
                done.add_row(*map(Text, (platform, operation, who, str(count))))
        console.print()
        console.print(done)
        console.print(_proof(rows))
        findings = await self._findings()
        console.print(_leavers(self._world, findings))
        holds = all(row.holds for row in rows)
        console.print(
            Text("It held: exactly once on every platform, across a kill -9.", style="bold green")
            if holds
            else Text("It did not hold: see the table.", style="bold red")
        )
        return holds


def _proof(rows: Sequence[Row]) -> Table:
    table = Table(title="Source and topics", title_justify="left", title_style="bold")
    for column in ("platform", "events in source", "in topic", "lost", "repeated"):
        table.add_column(column, justify="left" if column == "platform" else "right")
    for column in ("grants in source", "in topic", "differ", "snapshot"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.platform,
            str(len(row.source)) if row.grants is not None else "",
            str(len(row.topic)),
            str(row.lost),
            str(row.repeated),
            "" if row.grants is None else str(len(row.grants)),
            str(len(row.published)),
            "" if row.grants is None else str(row.differing_grants),
            "complete" if row.is_complete else "partial",
            style="" if row.holds else "bold red",
        )
    return table


def _leavers(world: World, findings: Mapping[str, Any]) -> Table:
    table = Table(
        title="Who left, still may, and still did", title_justify="left", title_style="bold"
    )
    for column in ("who left", "since", "on", "still may", "did after leaving"):
        table.add_column(column)
    for person in world.leavers:
        finding = findings[employee(person.employee_id)]
        grants = [grant for grant in finding["still_may"] if grant[1] != ALIAS]
        platforms = sorted(
            {grant[0] for grant in grants} | {act["platform"] for act in finding["did_after"]}
        )
        for number, platform in enumerate(platforms):
            mine = [f"{grant[1]} on {grant[2]}" for grant in grants if grant[0] == platform]
            acts = Counter(
                act["operation"] for act in finding["did_after"] if act["platform"] == platform
            )
            table.add_row(
                Text("" if number else person.name, style="bold"),
                "" if number else finding["left_at"][:10],
                platform,
                Text(_few(mine)),
                Text(_few([f"{count} × {what}" for what, count in acts.most_common()])),
            )
    return table


def _few(texts: Sequence[str], count: int = 2) -> str:
    rest = len(texts) - count
    return "\n".join([*texts[:count], *([f"… {rest} more"] if rest > 0 else [])])


@click.command()
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".verity/demo-all"),
    show_default=True,
    help="For the servers' data and all logs. What an earlier demo left there is removed.",
)
def main(directory: Path) -> None:
    """Six platforms into one Kafka, exactly once, and one picture of who left."""
    quiet_logs()
    signal.signal(signal.SIGTERM, _interrupt)
    progress = Progress()
    directory.mkdir(parents=True, exist_ok=True)
    kill_left_behind(directory.resolve())
    stack = Stack(directory, kafka_port=0, postgres_port=0, kafka_settings=KAFKA_SETTINGS)
    holds = False
    try:
        stack.down(wipe=True)
        progress.say("starting a real Kafka and a real PostgreSQL")
        address = stack.up()
        holds = asyncio.run(Show(address, stack.directory, progress).run())
    except KeyboardInterrupt:
        progress.say("interrupted; everything that was started is stopped", "yellow")
        sys.exit(130)
    except (StackError, DemoFailed, WorkerDied, VerityError, OSError) as error:
        progress.console.print(f"The demo failed: {error}", style="bold red", markup=False)
    finally:
        stack.down(wipe=holds)
    if not holds:
        progress.say(f"the servers' data and the workers' logs stay in {directory}")
    sys.exit(0 if holds else 1)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
