"""What happens in the demo, in order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any

import asyncpg
import orjson
from pydantic import SecretStr

from connectors.postgres.log_lines import LogContext
from connectors.postgres.settings import PLATFORM, Settings
from verity_common.config import DatabaseSettings
from verity_common.kafka import KafkaSettings
from verity_sdk.errors import Malformed, Unavailable
from verity_stream.dev.demo.proof import Copies, Proof, events_in_log, statement_lines
from verity_stream.dev.demo.show import Progress, proof_lines, who_did_what, who_may_do_what
from verity_stream.dev.demo.workers import DemoWorker
from verity_stream.dev.demo.workload import COLLECTOR, DATABASE, Workload
from verity_stream.dev.stack import StackAddress
from verity_stream.kafka.committed import CommittedReader
from verity_stream.postgres.checkpoints import PostgresCheckpoints
from verity_stream.postgres.controls import Controls
from verity_stream.postgres.pool import create_pool, migrate
from verity_stream.records import decode_checkpoint, permissions_topic, raw_topic

CONNECTOR_ID = "shop-audit"
SERVER = "shop-server"
DSN_VARIABLE = "DEMO_COLLECTOR_DSN"

PAGE_EVENTS = 20
"""Small, so that the kill finds many pages behind it and many before it."""
PAGES_BEFORE_KILL = 4
ROUNDS_BEFORE = 60
ROUNDS_AFTER = 30
PAUSE_SECONDS = 0.05
REST_SECONDS = 90
"""A second on an idle machine; what came last is read, published and mirrored in this time."""
SESSION_SECONDS = 3
"""The killed worker keeps its partitions for so long; the broker's least is lowered to it."""
KAFKA_SETTINGS = {"group.min.session.timeout.ms": str(SESSION_SECONDS * 1000)}

START_SECONDS = 60.0
CATCH_UP_SECONDS = 60.0
POLL_SECONDS = 0.1


class DemoFailed(Exception):
    """Something did not happen in time; the message says what."""


@dataclass
class Scenario:
    """One run on fresh servers.

    Args:
        address: Where Kafka and PostgreSQL are.
        directory: For `verity.toml` and what the workers write.
        log_directory: PostgreSQL's own log files, for the count that trusts nobody.
    """

    address: StackAddress
    directory: Path
    log_directory: Path
    progress: Progress

    def __post_init__(self) -> None:
        self.workload = Workload(self.address.dsn)
        kafka = KafkaSettings(bootstrap_servers=self.address.bootstrap_servers)
        self._committed = CommittedReader(kafka)
        self._stable = CommittedReader(kafka, waits_for_open=False)
        self._pool: Any = None

    async def run(self) -> Proof:
        """The whole story; whatever happens, its workers and sessions are gone afterwards.

        Raises:
            DemoFailed: Something did not happen in time.
            WorkerDied: A worker ended by itself.
        """
        environment = self._configure()
        first = DemoWorker(self.directory, "worker-1", environment)
        second = DemoWorker(self.directory, "worker-2", environment)
        going_on: asyncio.Task[None] | None = None
        try:
            say = self.progress.say
            identifier = await self.workload.prepare()
            await self.workload.rounds(ROUNDS_BEFORE)
            await self.workload.incidents()
            say(
                f"the workload has begun: {self.workload.statement_count} statements by "
                "5 people, a failed login, 2 denied; it goes on"
            )
            database = DatabaseSettings.model_validate({"dsn": self.address.dsn})
            self._pool = await create_pool(database)
            await migrate(self._pool)
            going_on = asyncio.create_task(self.workload.rounds(100_000, PAUSE_SECONDS))
            await self._kill_in_the_middle(first, self._context(identifier))

            second.start()
            say(f"worker-2 runs, pid {second.pid}; the workload goes on, olga revokes bob's role")
            await _ended(going_on)
            await self.workload.revoke()
            await self.workload.rounds(ROUNDS_AFTER, PAUSE_SECONDS)
            await self.workload.close()
            say(f"the workload is over: {self.workload.statement_count} statements")
            return await self._prove(second, self._context(identifier))
        finally:
            first.kill()
            second.kill()
            if going_on is not None:
                await _ended(going_on)
            with contextlib.suppress(Exception):
                # The servers may be gone already: that is reported elsewhere.
                await self.workload.close()
            if self._pool is not None:
                self._pool.terminate()

    def _configure(self) -> Mapping[str, str]:
        """Write `verity.toml`; returns the environment of the workers."""
        table = {
            "type": "postgres",
            "dsn": f"env:{DSN_VARIABLE}",
            "server": SERVER,
            "databases": [DATABASE],
            "page_records": PAGE_EVENTS,
            "poll_every": "500ms",
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        config = self.directory / "verity.toml"
        config.write_text("\n".join([f"[connectors.{CONNECTOR_ID}]", *lines, ""]), "utf-8")
        return {
            "VERITY_CONFIG": str(config),
            "VERITY_KAFKA__BOOTSTRAP_SERVERS": self.address.bootstrap_servers,
            "VERITY_DATABASE__DSN": self.address.dsn,
            "VERITY_PAGE_EVENTS": str(PAGE_EVENTS),
            "VERITY_SESSION_TIMEOUT_SECONDS": str(SESSION_SECONDS),
            "VERITY_LOG_FORMAT": "json",
            DSN_VARIABLE: self.workload.dsn(COLLECTOR),
        }

    def _context(self, identifier: str) -> LogContext:
        """What the connector learns from its settings and its server, from the same settings."""
        settings = Settings(
            connector_id=CONNECTOR_ID,
            dsn=SecretStr(self.workload.dsn(COLLECTOR)),
            server=SERVER,
        )
        return LogContext(
            server=settings.server_name,
            system_identifier=identifier,
            zone=UTC,
            statement_bytes=settings.statement_bytes,
            databases=frozenset({DATABASE}),
            own=(COLLECTOR, settings.application_name),
        )

    async def _kill_in_the_middle(self, worker: DemoWorker, context: LogContext) -> None:
        worker.start()
        self.progress.say(f"worker-1 runs, pid {worker.pid}: faust -A verity_stream worker")

        async def has_begun() -> bool:
            return await self._version() >= PAGES_BEFORE_KILL

        await self._until(has_begun, worker, START_SECONDS, "worker-1 publishing", 0.01)
        worker.kill()
        published = len(await self._topic_ids(self._stable))
        written = len(events_in_log(self.log_directory, context))
        self.progress.say(
            f"kill -9 of worker-1 in the middle: {published} of {written} events were published",
            "bold",
        )
        if not 0 < published < written:
            raise DemoFailed("the kill did not find the worker in the middle of the stream")

    async def _prove(self, worker: DemoWorker, context: LogContext) -> Proof:
        source_ids = [event.event_id for event in events_in_log(self.log_directory, context)]
        worker_seconds = self.progress.seconds

        async def has_all() -> bool:
            return set(await self._topic_ids(self._stable)) >= set(source_ids)

        await self._until(has_all, worker, CATCH_UP_SECONDS, "worker-2 catching up", POLL_SECONDS)
        waited = self.progress.seconds - worker_seconds
        self.progress.say(f"worker-2 has caught up, {waited:.1f} s after the last statement")
        await self._new_snapshot(worker)
        views = await self._rest(worker)
        code, seconds = await asyncio.to_thread(worker.terminate)
        self.progress.say(f"SIGTERM: worker-2 stopped in {seconds:.1f} s")

        records = await self._mine(self._committed, raw_topic(PLATFORM))
        events = [orjson.loads(record.value) for record in records]
        # Once more, now that nothing runs: what came last must be right as well.
        source_ids = [event.event_id for event in events_in_log(self.log_directory, context)]
        console = self.progress.console
        console.print()
        console.print(who_did_what(events, SERVER))
        console.print(who_may_do_what(await self._grants(), SERVER, DATABASE))
        secret = self.workload.password.encode()
        proof = Proof(
            source_ids=source_ids,
            topic_ids=[_event_id(record) for record in records],
            views=views,
            statements_sent=self.workload.statement_count,
            statements_found=statement_lines(
                (event["event_id"], str(event["raw_payload"].get("message"))) for event in events
            ),
            leak_count=sum(secret in record.value for record in records),
            exit_code=code,
        )
        console.print(proof_lines(proof))
        return proof

    async def _new_snapshot(self, worker: DemoWorker) -> None:
        """Ask for a permission snapshot, as `verity snapshot` does, and wait until it is out."""
        store = Controls(self._pool)
        asked_at = await store.request_snapshot(CONNECTOR_ID, who="demo", reason="to show it")

        async def is_out() -> bool:
            started_at = await self._pool.fetchval(
                "SELECT started_at FROM connector_snapshots WHERE connector_id = $1", CONNECTOR_ID
            )
            return started_at is not None and started_at >= asked_at

        await self._until(is_out, worker, CATCH_UP_SECONDS, "a permission snapshot", POLL_SECONDS)
        self.progress.say("a snapshot of all permissions, taken after the revoke, is in Kafka")

    async def _rest(self, worker: DemoWorker) -> Copies:
        """The three views as soon as they agree, or as they are when time is up."""
        views = Copies(None, None, None)

        async def agree() -> bool:
            nonlocal views
            views = await self._views(worker)
            return views.are_equal

        with contextlib.suppress(DemoFailed):
            # If they never agree the proof says how they differ.
            await self._until(agree, worker, REST_SECONDS, "three equal views", POLL_SECONDS)
        return views

    async def _views(self, worker: DemoWorker) -> Copies:
        page = await asyncio.to_thread(worker.page, "/checkpoints")
        entry = (page or {}).get(CONNECTOR_ID)
        topic = (await self._committed.last_checkpoints()).get(CONNECTOR_ID)
        return Copies(
            await PostgresCheckpoints(self._pool).load(CONNECTOR_ID),
            None if isinstance(topic, Malformed) else topic,
            None if entry is None else decode_checkpoint(orjson.dumps(entry)),
        )

    async def _version(self) -> int:
        version = await self._pool.fetchval(
            "SELECT version FROM connector_checkpoints WHERE connector_id = $1", CONNECTOR_ID
        )
        return int(version or 0)

    async def _topic_ids(self, reader: CommittedReader) -> list[str]:
        return [_event_id(record) for record in await self._mine(reader, raw_topic(PLATFORM))]

    async def _mine(self, reader: CommittedReader, topic: str) -> list[Any]:
        mine = ("connector_id", CONNECTOR_ID.encode())
        return [record async for record in reader.stream(topic) if mine in record.headers]

    async def _grants(self) -> list[Mapping[str, Any]]:
        """The grants of the last complete snapshot in the topic."""
        bodies = [
            orjson.loads(record.value)
            for record in await self._mine(self._committed, permissions_topic(PLATFORM))
        ]
        complete = [
            body["snapshot_id"]
            for body in bodies
            if body["record"] == "end" and body["is_complete"]
        ]
        if not complete:
            raise DemoFailed("the topic has no complete permission snapshot")
        return [
            body
            for body in bodies
            if body["record"] == "grant" and body["snapshot_id"] == complete[-1]
        ]

    async def _until(
        self,
        condition: Callable[[], Awaitable[bool]],
        worker: DemoWorker,
        seconds: float,
        what: str,
        poll_seconds: float,
    ) -> None:
        """Wait for a condition while the worker lives; a server that hiccups is asked again."""
        deadline = time.monotonic() + seconds
        while True:
            worker.require_alive()
            try:
                if await condition():
                    return
                said = ""
            except (Unavailable, asyncpg.PostgresError) as error:
                said = f" ({error})"
            if time.monotonic() > deadline:
                raise DemoFailed(f"no {what} within {seconds:g} s{said}\n{worker.log_tail()}")
            await asyncio.sleep(poll_seconds)


async def _ended(task: asyncio.Task[None]) -> None:
    """Cancel a task between two of its steps, and see it end."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _event_id(record: Any) -> str:
    return str(dict(record.headers)["event_id"].decode())
