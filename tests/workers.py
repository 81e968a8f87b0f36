"""Real workers in processes of their own, and the truth they leave in Kafka and Postgres."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from prometheus_client.parser import text_string_to_metric_families

from verity_stream.dev.stack.server import free_port

PLUGINS = Path(__file__).parent / "plugins"
ASK_SECONDS = 30


@dataclass
class Worker:
    """`faust -A verity_stream worker`, as an operator starts it."""

    directory: Path
    environment: dict[str, str]
    web_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    command: tuple[str, ...] = ()

    def start(self, **extra: str) -> Worker:
        """Start it; its log goes to a file of the directory."""
        self.directory.mkdir(parents=True, exist_ok=True)
        extra["VERITY_WEB_PORT"] = str(self.web_port)
        faust = str(Path(sys.executable).with_name("faust"))
        data = str(self.directory / "data")
        command = self.command or (faust, "--datadir", data, "-A", "verity_stream", "worker")
        with (self.directory / "worker.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.directory,
                env={
                    **os.environ,
                    **self.environment,
                    "VERITY_WEB_PORT": str(self.web_port),
                    **extra,
                },
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    @property
    def log(self) -> str:
        """What it logged so far."""
        return (self.directory / "worker.log").read_text("utf-8", "replace")

    def messages(self, message: str) -> list[dict[str, Any]]:
        """The log lines with this message."""
        found = []
        for line in self.log.splitlines():
            if line.startswith("{"):
                body = json.loads(line)
                if body.get("message") == message:
                    found.append(body)
        return found

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the worker."""
        assert self.process is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """kill -9, and reap it."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)

    def terminate(self) -> float:
        """SIGTERM; returns how many seconds it took to end, and asserts that it ended well."""
        assert self.process is not None
        began = time.monotonic()
        self.signal(signal.SIGTERM)
        code = self.process.wait(60)
        assert code == 0, f"exit code {code}\n{self.log[-4000:]}"
        return time.monotonic() - began

    def get(self, path: str) -> tuple[int, Any]:
        """A page of its web server."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.web_port}{path}", timeout=5
            ) as page:
                return page.status, orjson.loads(page.read())
        except urllib.error.HTTPError as error:
            return error.code, orjson.loads(error.read())
        except OSError:
            return 0, None


@dataclass
class Bench:
    """Makes workers that share a configuration, and reads what they did.

    Attributes:
        name: Unique to the test: its platform, the prefix of its connectors, its group.
    """

    name: str
    directory: Path
    bootstrap_servers: str
    dsn: str
    environment: dict[str, str]
    workers: list[Worker] = field(default_factory=list)

    def configure(self, **connectors: dict[str, Any]) -> None:
        """Write `verity.toml`; the ids get the test's name as a prefix."""
        lines = []
        for name, table in connectors.items():
            lines.append(f"[connectors.{self.id(name)}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        (self.directory / "verity.toml").write_text("\n".join(lines) + "\n")

    def id(self, name: str) -> str:
        """A connector's full id."""
        return f"{self.name}-{name}"

    def worker(self, **environment: str) -> Worker:
        """Start another worker."""
        worker = Worker(
            self.directory / f"worker{len(self.workers)}", {**self.environment, **environment}
        )
        self.workers.append(worker)
        return worker.start()

    async def events(
        self, connector: str | None = None, *, platform: str | None = None
    ) -> list[dict[str, Any]]:
        """The committed raw events of the test's platform, in no order across partitions."""
        topic = f"verity.events.raw.{platform or self.name}"
        records = await committed(self.bootstrap_servers, topic)
        own = None if connector is None else self.id(connector).encode()
        return [
            orjson.loads(record.value)
            for record in records
            if own is None or dict(record.headers)["connector_id"] == own
        ]

    async def event_ids(self, connector: str | None = None) -> list[str]:
        """The ids of those events."""
        return [event["event_id"] for event in await self.events(connector)]

    async def published_checkpoints(self, connector: str) -> list[dict[str, Any]]:
        """The committed checkpoint records of one connector, in order."""
        records = await committed(self.bootstrap_servers, "verity.connector.checkpoints")
        key = self.id(connector).encode()
        return [orjson.loads(record.value) for record in records if record.key == key]

    async def stored_checkpoint(self, connector: str) -> dict[str, Any] | None:
        """The row in Postgres."""
        row = await self.fetchrow(
            "SELECT * FROM connector_checkpoints WHERE connector_id = $1", self.id(connector)
        )
        return None if row is None else dict(row)

    async def fetchrow(self, sql: str, *arguments: Any) -> Any:
        """Ask Verity's database."""
        connection = await asyncpg.connect(self.dsn)
        try:
            return await connection.fetchrow(sql, *arguments)
        finally:
            await connection.close()

    async def state(self, connector: str) -> str | None:
        """The state that operators see."""
        try:
            row = await self.fetchrow(
                "SELECT state FROM connector_status WHERE connector_id = $1", self.id(connector)
            )
        except asyncpg.UndefinedTableError:
            return None
        return None if row is None else row["state"]

    async def wait_for_version(self, connector: str, version: int, seconds: float = 90) -> None:
        """Until Postgres holds at least this version."""

        sql = "SELECT version FROM connector_checkpoints WHERE connector_id = $1"
        await self._wait_for(sql, connector, lambda stored: stored >= version, seconds)

    async def wait_for_state(self, connector: str, state: str, seconds: float = 90) -> None:
        """Until the connector is shown in this state."""

        sql = "SELECT state FROM connector_status WHERE connector_id = $1"
        await self._wait_for(sql, connector, lambda shown: shown == state, seconds)

    async def _wait_for(
        self, sql: str, connector: str, is_so: Callable[[Any], bool], seconds: float
    ) -> None:
        async with asking(self.dsn) as ask:

            async def reached() -> bool:
                value = await ask(sql, self.id(connector))
                return value is not None and is_so(value)

            await eventually(reached, seconds, lambda: self.logs())

    async def wait_for_events(
        self,
        count: int,
        seconds: float = 90,
        *,
        connector: str | None = None,
        platform: str | None = None,
    ) -> None:
        """Until the topic holds at least so many events of the test."""

        async def reached() -> bool:
            return len(await self.events(connector, platform=platform)) >= count

        await eventually(reached, seconds, lambda: self.logs())

    async def assert_exactly_once(self, connector: str, expected: set[str]) -> None:
        """Every event of the source is in the topic once, and the stored views agree."""
        counts = Counter(await self.event_ids(connector))
        assert expected - counts.keys() == set(), f"lost\n{self.logs()}"
        repeated = [key for key, number in counts.items() if number > 1]
        assert repeated == [], f"repeated\n{self.logs()}"
        assert counts.keys() == expected
        published = await self.published_checkpoints(connector)
        versions = [checkpoint["version"] for checkpoint in published]
        assert versions == sorted(set(versions)), "versions ascend"
        stored = await self.stored_checkpoint(connector)
        assert stored is not None
        assert stored["version"] == versions[-1]
        # The checkpoint records prove continuity: their counts add up to the events.
        assert sum(checkpoint["event_count"] for checkpoint in published) == len(expected)

    def logs(self) -> str:
        """The ends of all workers' logs, for a failing test."""
        return "\n".join(f"--- {one.directory.name}\n{one.log[-3000:]}" for one in self.workers)


async def ended(worker: Worker) -> int:
    """How it ended, by itself."""
    process = worker.process
    assert process is not None

    async def has() -> bool:
        return process.poll() is not None

    await eventually(has, 90, lambda: worker.log[-6000:])
    return int(process.returncode)


def assert_said(worker: Worker, text: str) -> None:
    """Its last word was this, and nobody took it for a standstill."""
    last = [line for line in worker.log.splitlines() if '"critical"' in line.lower()]
    assert any(text in line for line in last), worker.log[-6000:]
    assert "standstill" not in worker.log
    assert "left its consumer group" not in worker.log


def make_bench(directory: Path, bootstrap_servers: str, dsn: str) -> Bench:
    """A bench with a name of its own on these servers."""
    name = f"t{secrets.token_hex(4)}"
    environment = {
        "VERITY_KAFKA__BOOTSTRAP_SERVERS": bootstrap_servers,
        "VERITY_DATABASE__DSN": dsn,
        "VERITY_CONFIG": str(directory / "verity.toml"),
        "VERITY_APP_ID": name,
        "VERITY_LOG_FORMAT": "json",
        "PYTHONPATH": str(PLUGINS),
    }
    return Bench(name, directory, bootstrap_servers, dsn, environment)


@contextlib.asynccontextmanager
async def asking(dsn: str) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """A function that asks for a value again and again: None where there is no row or no table.

    It keeps its connection, since to log in costs more than to ask. Where the server ended it, the
    next question goes by a new one.
    """
    connection: Any = None

    async def ask(sql: str, *arguments: Any) -> Any:
        nonlocal connection
        if connection is None or connection.is_closed():
            # Nothing is kept of a statement: a migration may change its table meanwhile.
            connection = await asyncpg.connect(dsn, statement_cache_size=0)
        try:
            return await connection.fetchval(sql, *arguments, timeout=ASK_SECONDS)
        except asyncpg.UndefinedTableError:
            return None
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            if not connection.is_closed():
                raise
            return None

    try:
        yield ask
    finally:
        if connection is not None:
            with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError):
                await connection.close(timeout=ASK_SECONDS)


async def eventually(
    condition: Callable[[], Any], seconds: float, explain: Callable[[], str] = lambda: ""
) -> None:
    """Wait for a condition with a deadline."""
    deadline = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not so within {seconds} s\n{explain()}")
        await asyncio.sleep(0.1)


def metric(worker: Worker, bench: Bench, name: str) -> float:
    """A counter of the connector `source`."""
    with urllib.request.urlopen(f"http://127.0.0.1:{worker.web_port}/metrics", timeout=5) as page:
        text = page.read().decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and sample.labels.get("connector_id") == bench.id("source")
    )


async def delete_topics(bench: Bench, *names: str) -> None:
    """Delete topics and wait until they are gone."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bench.bootstrap_servers)
    await admin.start()

    async def gone() -> bool:
        return not set(names) & set(await admin.list_topics())

    try:
        await admin.delete_topics(list(names))
        await eventually(gone, 60)
    finally:
        await admin.close()


async def committed(bootstrap_servers: str, topic: str, wait_seconds: float = 5) -> list[Any]:
    """Every committed record of a topic, up to its end as it stands now.

    A commit is answered before its markers stand in the partitions, so the last stable offset
    may lag behind; a transaction that stays open is waited for up to `wait_seconds`.
    """
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap_servers,
        enable_auto_commit=False,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        partitions = consumer.partitions_for_topic(topic)
        if partitions is None:
            await consumer._client.force_metadata_update()  # noqa: SLF001 - aiokafka's
            await consumer._client.add_topic(topic)  # noqa: SLF001 - aiokafka's
            partitions = consumer.partitions_for_topic(topic)
        if not partitions:
            await asyncio.sleep(0)  # aiokafka's stop() fails where nothing was awaited before.
            return []
        places = [TopicPartition(topic, number) for number in partitions]
        consumer.assign(places)
        stable = await consumer.end_offsets(places)
        ends = await high_watermarks(bootstrap_servers, places)
        records: list[Any] = []
        deadline = time.monotonic() + wait_seconds
        async with asyncio.timeout(60):
            for place in places:
                while (at := await consumer.position(place)) < ends[place]:
                    if at >= stable[place] and time.monotonic() > deadline:
                        break
                    batch = await consumer.getmany(place, timeout_ms=200)
                    records += batch.get(place, [])
        return records
    finally:
        await consumer.stop()


async def high_watermarks(bootstrap_servers: str, places: list[Any]) -> dict[Any, int]:
    """The ends of partitions, open transactions included."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap_servers, enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign(places)
        ends: dict[Any, int] = await consumer.end_offsets(places)
        return ends
    finally:
        await consumer.stop()


@contextlib.contextmanager
def killing(bench: Bench) -> Iterator[Bench]:
    """Kill what a test leaves behind."""
    try:
        yield bench
    finally:
        for worker in bench.workers:
            with contextlib.suppress(ProcessLookupError):
                worker.signal(signal.SIGCONT)
            worker.kill()
