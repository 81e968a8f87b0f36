"""The worker on a real broker: placement, mirror, commits, life and death.

A stub stands in for the runner and notes every call; the processes are real.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from contract.streams import checkpoint_of
from stack_fixtures import start_java_fast

from verity_stream.dev.stack.kafka import KafkaServer
from verity_stream.dev.stack.server import free_port
from verity_stream.kafka.partitions import partition_for
from verity_stream.records import CHECKPOINTS_TOPIC

pytestmark = pytest.mark.stack

PARTITIONS = 24
DEADLINE_SECONDS = 90.0

STUB = """
import asyncio, json, logging, os, sys

logging.basicConfig(
    level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s"
)
from verity_stream.worker import app as worker_app
from verity_stream.settings import StreamSettings

options = json.loads(os.environ["STUB"])
calls = open(options["calls"], "a", buffering=1)

def note(name, *details):
    calls.write(json.dumps([name, *details]) + "\\n")

mirror_event = worker_app.mirror_event

def noted_mirror_event(table, event):
    note("mirror", event.message.partition, event.message.offset)
    mirror_event(table, event)

worker_app.mirror_event = noted_mirror_event

class Runner:
    ticks = 0
    statuses = {}

    async def start(self):
        note("start")

    async def assign(self, partitions):
        note("assign", sorted(partitions))

    def hold(self):
        note("hold")

    async def revoke(self):
        note("revoke")

    async def reconcile(self):
        self.ticks += 1
        note("reconcile", self.ticks)
        if self.ticks == 1:
            raise RuntimeError("the first tick fails")
        if self.ticks == 2:
            raise asyncio.CancelledError("the second one is cancelled")

    async def stop(self):
        note("stop", app.consumer.flow_active and not app.producer.should_stop)

    def is_ready(self):
        return self.ticks > 2

app = worker_app.create_worker_app(
    StreamSettings(
        app_id=options["app_id"],
        kafka={"bootstrap_servers": options["bootstrap_servers"]},
        commit_interval_seconds=1.0,
        broker_wait_seconds=options["broker_wait_seconds"],
        web_port=options["web_port"],
    ),
    Runner,
)
"""


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A broker of this module's own: it is stopped and continued, and the topic's name is fixed.

    It creates topics by itself, as many do: with one partition, if we leave it to that.
    """
    settings = {"auto.create.topics.enable": "true"}
    start_java_fast()
    server = KafkaServer(tmp_path_factory.mktemp("kafka"), 0, settings)
    server.start()
    yield server
    server.kill()


def address(kafka: KafkaServer) -> str:
    return f"localhost:{kafka.port}"


@pytest.fixture
async def producer(kafka: KafkaServer) -> AsyncIterator[AIOKafkaProducer]:
    """A transactional producer, as a relay's."""
    producer = AIOKafkaProducer(
        bootstrap_servers=address(kafka), transactional_id=f"test-{time.time_ns()}"
    )
    await producer.start()
    yield producer
    await producer.stop()


class Worker:
    """`faust -A stub worker` in a process group of its own."""

    def __init__(self, folder: Path, bootstrap_servers: str, app_id: str, **options: Any) -> None:
        self.folder = folder / f"worker-{time.time_ns()}"
        self.folder.mkdir()
        (self.folder / "stub.py").write_text(textwrap.dedent(STUB))
        self.calls_file = self.folder / "calls"
        self.calls_file.touch()
        self.web_port = free_port()
        stub = {
            "app_id": app_id,
            "bootstrap_servers": bootstrap_servers,
            "calls": str(self.calls_file),
            "broker_wait_seconds": 30.0,
            "web_port": self.web_port,
            **options,
        }
        environment = {
            **os.environ,
            "STUB": json.dumps(stub),
            "PYTHONPATH": os.pathsep.join([str(self.folder), os.environ.get("PYTHONPATH", "")]),
            # Strays that would take over a Faust app without our precautions.
            "BROKER_URL": "kafka://localhost:1",
            "WEB_PORT": "1",
            "NODE_CANONICAL_URL": "http://elsewhere.invalid",
        }
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "faust", "-A", "stub", "worker", "--loglevel", "INFO"],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def calls(self, *names: str) -> list[list[Any]]:
        lines = self.calls_file.read_text().splitlines()
        calls = [json.loads(line) for line in lines]
        return [call for call in calls if not names or call[0] in names]

    def mirrored(self) -> list[tuple[int, int]]:
        return [(partition, offset) for _, partition, offset in self.calls("mirror")]

    def owned(self) -> set[int]:
        """The partitions of the last assignment, none when another rebalance began after it."""
        *_, last = [["hold"], *self.calls("assign", "hold")]
        return set(last[1]) if last[0] == "assign" else set()

    def get(self, path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.web_port}{path}", timeout=5
            ) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            body = error.read()
            return error.code, json.loads(body) if body.startswith(b"{") else body
        except OSError:
            return 0, None

    def is_ready(self) -> bool:
        return self.get("/readyz")[0] == 200

    def finish(self, number: signal.Signals | None = None) -> tuple[int, float]:
        """Exit code and how long it took to end after the signal."""
        began = time.monotonic()
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(timeout=DEADLINE_SECONDS), time.monotonic() - began

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=30)


@pytest.fixture
def start_worker(tmp_path: Path, kafka: KafkaServer) -> Iterator[Callable[..., Worker]]:
    workers = []

    def start(app_id: str, *, bootstrap_servers: str | None = None, **options: Any) -> Worker:
        servers = bootstrap_servers or address(kafka)
        workers.append(Worker(tmp_path, servers, app_id, **options))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


async def until(
    condition: Callable[[], Any], worker: Worker, seconds: float = DEADLINE_SECONDS
) -> float:
    """Wait until the condition holds; how long it took."""
    began = time.monotonic()
    while not condition():
        assert worker.process.poll() is None, worker.log[-3000:]
        assert time.monotonic() - began < seconds, worker.log[-3000:]
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def publish(
    producer: AIOKafkaProducer, connector_id: str, value: bytes | None, *, commit: bool = True
) -> TopicPartition:
    """One record in a transaction of its own, to the partition that the relay picks."""
    await producer.begin_transaction()
    sent = await producer.send(CHECKPOINTS_TOPIC, value, key=connector_id.encode())
    metadata = await sent
    await (producer.commit_transaction() if commit else producer.abort_transaction())
    return metadata.topic_partition


def checkpoint(connector_id: str, version: int) -> bytes | None:
    return checkpoint_of(connector_id, version).value


async def ends(kafka: KafkaServer, topic: str = CHECKPOINTS_TOPIC) -> dict[int, int]:
    """The end offset of every partition that has one."""
    consumer = AIOKafkaConsumer(bootstrap_servers=address(kafka), isolation_level="read_committed")
    await consumer.start()
    try:
        found = await consumer.end_offsets([TopicPartition(topic, p) for p in range(PARTITIONS)])
    finally:
        await consumer.stop()
    return {tp.partition: offset for tp, offset in found.items() if offset}


async def committed(kafka: KafkaServer, group: str) -> dict[int, int]:
    admin = AIOKafkaAdminClient(bootstrap_servers=address(kafka))
    await admin.start()
    try:
        found = await admin.list_consumer_group_offsets(group)
    finally:
        await admin.close()
    return {
        tp.partition: entry.offset for tp, entry in found.items() if tp.topic == CHECKPOINTS_TOPIC
    }


async def read_all(kafka: KafkaServer, topic: str) -> list[Any]:
    consumer = AIOKafkaConsumer(bootstrap_servers=address(kafka), isolation_level="read_committed")
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, p) for p in range(PARTITIONS)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        end = await consumer.end_offsets(partitions)
        records: list[Any] = []
        while any([await consumer.position(tp) < end[tp] for tp in partitions]):
            for batch in (await consumer.getmany(timeout_ms=200)).values():
                records += batch
        return records
    finally:
        await consumer.stop()


async def test_one_worker_mirrors_commits_stops_and_repeats_nothing(
    kafka: KafkaServer, producer: AIOKafkaProducer, start_worker: Callable[..., Worker]
) -> None:
    """The mirror holds the newest committed versions; commits reach the end; no repeats."""
    group = "one-worker"
    first = start_worker(group)
    await until(first.is_ready, first)
    assert first.owned() == set(range(PARTITIONS))
    assert first.calls("assign") == [["assign", list(range(PARTITIONS))]]
    # 3: a tick that raises and one that is cancelled do not end the timer.
    await until(lambda: len(first.calls("reconcile")) >= 4, first)

    ids = [f"connector-{number}" for number in range(10)]
    for version in range(1, 31):
        for connector_id in ids:
            tp = await publish(producer, connector_id, checkpoint(connector_id, version))
            assert tp.partition == partition_for(connector_id, PARTITIONS)
    await publish(producer, ids[0], checkpoint(ids[0], 999), commit=False)
    await publish(producer, ids[0], checkpoint(ids[0], 3))
    await publish(producer, ids[2], b"not JSON")
    await publish(producer, "gone", checkpoint("gone", 1))
    await publish(producer, "gone", None)
    await publish(producer, ids[3], checkpoint(ids[3], 31))
    expected = dict.fromkeys(ids, 30) | {ids[3]: 31}

    def mirror() -> dict[str, int]:
        return {key: value["version"] for key, value in first.get("/checkpoints")[1].items()}

    await until(lambda: mirror() == expected, first)
    reached = time.monotonic()
    end = await ends(kafka)
    while (found := await committed(kafka, group)) != {p: o - 1 for p, o in end.items()}:
        assert time.monotonic() - reached < DEADLINE_SECONDS, (found, end)
        await asyncio.sleep(0.1)
    assert re.search(r"checkpoints\[\d+\]@\d+, key b'connector-2': not a checkpoint", first.log)
    for path in ("/", "/table/", "/router/", "/stats/", "/graph/"):
        assert first.get(path)[0] == 404
    assert first.get("/healthz")[0] == 200

    # The changelog record of a key lies in the same partition number, under the same raw key.
    changelog = await read_all(kafka, f"{group}-checkpoints-changelog")
    assert {record.key.decode() for record in changelog} == {*ids, "gone"}
    for record in changelog:
        assert record.partition == partition_for(record.key.decode(), PARTITIONS)

    code, seconds = first.finish(signal.SIGTERM)
    assert code == 0, first.log[-3000:]
    assert seconds < 10
    assert first.calls()[-1] == ["stop", True]  # while Faust's consumer and producer still ran

    second = start_worker(group)
    await until(second.is_ready, second)
    assert {
        key: value["version"] for key, value in second.get("/checkpoints")[1].items()
    } == expected
    await publish(producer, "later", checkpoint("later", 1))
    await until(lambda: second.mirrored(), second)
    assert [partition for partition, _ in second.mirrored()] == [partition_for("later", PARTITIONS)]


async def test_workers_share_and_hand_over_without_a_repeat(
    kafka: KafkaServer, producer: AIOKafkaProducer, start_worker: Callable[..., Worker]
) -> None:
    """Under load, a worker joins and leaves: hold, assign; each record exactly once."""
    group = "two-workers"
    a = start_worker(group)
    await until(a.is_ready, a)
    before = await ends(kafka)
    is_over = False

    async def load() -> int:
        count = 0
        while not is_over:
            connector_id = f"load-{count % 40}"
            await publish(producer, connector_id, checkpoint(connector_id, count))
            count += 1
        return count

    loading = asyncio.create_task(load())
    await until(lambda: len(a.mirrored()) > 50, a)
    b = start_worker(group)
    await until(lambda: b.owned() and a.owned() and a.owned() != set(range(PARTITIONS)), a)
    assert a.owned() | b.owned() == set(range(PARTITIONS))
    assert not a.owned() & b.owned()
    for worker in (a, b):
        names = [call[0] for call in worker.calls("hold", "revoke", "assign")]
        # One that is overtaken by the next has no assignment of its own.
        assert [name for name, _ in itertools.groupby(names)] == ["hold", "assign"] * (
            names.count("assign")
        )
    await until(lambda: len(b.mirrored()) > 50, b)

    code, seconds = b.finish(signal.SIGTERM)
    assert (code, seconds < 10) == (0, True), b.log[-3000:]
    await until(lambda: a.owned() == set(range(PARTITIONS)), a)
    is_over = True
    count = await loading
    loaded = [
        record
        for record in await read_all(kafka, CHECKPOINTS_TOPIC)
        if record.offset >= before.get(record.partition, 0)
    ]
    sent = {(record.partition, record.offset) for record in loaded}
    assert len(sent) == count
    # Nothing is lost: what is acknowledged but not processed would never come.
    await until(lambda: sent <= {*a.mirrored(), *b.mirrored()}, a)
    times = Counter(at for at in a.mirrored() + b.mirrored() if at in sent)
    assert [at for at, number in times.items() if number > 1] == []


async def test_a_stop_ends_in_time_while_the_broker_is_away(
    kafka: KafkaServer, producer: AIOKafkaProducer, start_worker: Callable[..., Worker]
) -> None:
    """SIGTERM with a frozen broker: gone within 10 s; and a start waits for its return."""
    worker = start_worker("broker-away")
    await until(worker.is_ready, worker)
    await publish(producer, "pending", checkpoint("pending", 1))
    assert kafka.pid is not None
    os.kill(kafka.pid, signal.SIGSTOP)
    try:
        waiting = start_worker("broker-back")
        _, seconds = worker.finish(signal.SIGTERM)
        assert seconds < 10
        assert worker.calls("stop")
        await until(lambda: "Waiting for up to" in waiting.log, waiting)
        assert not waiting.calls()
    finally:
        os.kill(kafka.pid, signal.SIGCONT)
    await until(waiting.is_ready, waiting)


async def test_no_broker_is_one_clear_message(start_worker: Callable[..., Worker]) -> None:
    """Exit code 1 after the wait, with the address and the variable; a SIGTERM ends it at once."""
    nobody = f"localhost:{free_port()}"
    given_up = start_worker("no-broker", bootstrap_servers=nobody, broker_wait_seconds=1.0)
    waiting = start_worker("no-broker", bootstrap_servers=nobody)
    code, seconds = given_up.finish()
    assert code == 1
    assert seconds < 30, "the time that it was given, not the default"
    # In the format of the process's own logging, which Faust would replace.
    assert (
        f"CRITICAL verity_stream.faust_base.fixes No Kafka broker answered at {nobody}"
        in given_up.log
    )
    assert "VERITY_KAFKA__BOOTSTRAP_SERVERS" in given_up.log
    assert "Traceback" not in given_up.log
    await until(lambda: "Waiting for up to" in waiting.log, waiting)
    code, seconds = waiting.finish(signal.SIGTERM)
    assert (code, seconds < 10) == (0, True), waiting.log[-3000:]
    assert not waiting.calls("start")


async def test_another_partition_count_is_refused(
    kafka: KafkaServer, start_worker: Callable[..., Worker]
) -> None:
    """Exit code 2 before anything starts: at the first write Faust would lose the record."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address(kafka))
    await admin.start()
    await admin.create_topics([NewTopic("misfit-checkpoints-changelog", 3, 1)])
    await admin.close()
    # One without a record would be nobody's, and made anew.
    plain = AIOKafkaProducer(bootstrap_servers=address(kafka))
    await plain.start()
    await plain.send_and_wait("misfit-checkpoints-changelog", b"{}", key=b"a")
    await plain.stop()
    worker = start_worker("misfit")
    code, _ = worker.finish()
    assert code == 2, worker.log[-3000:]
    assert "misfit-checkpoints-changelog has 3 partitions" in worker.log
    assert "Traceback" not in worker.log
    assert not worker.calls()
