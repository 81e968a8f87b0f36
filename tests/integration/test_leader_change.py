"""Three brokers, every topic on all of them, and one that dies while it is needed.

A page's transaction needs three leaders: of the events' partition, of the checkpoints' partition
and of the transaction's coordinator. Each is killed with -9 while a worker stands at a point of its
commit; another broker takes its place; the worker wakes up and meets the new leader.

In CI one of each; with `SWEEP=full` every leader at every point.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from stack_fixtures import temporary_stack
from verity_test_connectors import sequence
from workers import Bench, eventually, killing, make_bench

from verity_stream.dev.stack.kafka import KafkaServer
from verity_stream.dev.stack.server import free_port
from verity_stream.kafka.partitions import partition_for

pytestmark = pytest.mark.stack

NODES = 3
COUNT = 300
TRANSACTIONS_TOPIC = "__transaction_state"
TRANSACTION_PARTITIONS = 3
POINTS = ("after_begin", "after_publish", "before_commit", "after_commit")
LEADERS = ("events", "checkpoints", "coordinator")
CASES = (
    [(point, leader) for point in POINTS for leader in LEADERS]
    if os.environ.get("SWEEP") == "full"
    else [("after_publish", "events"), ("before_commit", "coordinator")]
)


@dataclass
class Cluster:
    """Kafka on three nodes, each broker and controller, and a PostgreSQL."""

    nodes: dict[int, KafkaServer]
    dsn: str

    @property
    def bootstrap_servers(self) -> str:
        return ",".join(node.address for node in self.nodes.values())

    async def partitions(self, topic: str) -> dict[int, dict[str, Any]]:
        """What the cluster says of each partition of a topic; nothing if it asked a dead node."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap_servers)
        try:
            await admin.start()
            (found,) = await admin.describe_topics([topic])
            return {one["partition"]: one for one in found["partitions"]}
        except KafkaError:
            return {}
        finally:
            await admin.close()

    async def leader(self, topic: str, partition: int) -> int:
        found = (await self.partitions(topic)).get(partition, {"leader": -1})
        return int(found["leader"])

    async def wait_until_whole(self, *topics: str) -> None:
        """Until every replica follows again: the next leader may die."""

        async def whole() -> bool:
            described = [await self.partitions(topic) for topic in topics]
            return all(described) and all(
                len(one["isr"]) == NODES for each in described for one in each.values()
            )

        await eventually(whole, 120)


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    with ExitStack() as cleanup:
        stack = cleanup.enter_context(temporary_stack())
        stack.postgres.start()
        directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="verity-nodes-")))
        ports = {number: (free_port(), free_port()) for number in range(1, NODES + 1)}
        voters = ",".join(f"{number}@127.0.0.1:{port}" for number, (_, port) in ports.items())
        nodes: dict[int, KafkaServer] = {}
        for number, (port, controller) in ports.items():
            settings = {
                "node.id": str(number),
                "controller.quorum.voters": voters,
                "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
                "default.replication.factor": str(NODES),
                "min.insync.replicas": "2",
                "offsets.topic.replication.factor": str(NODES),
                "offsets.topic.num.partitions": "1",
                "transaction.state.log.replication.factor": str(NODES),
                "transaction.state.log.min.isr": "2",
                "transaction.state.log.num.partitions": str(TRANSACTION_PARTITIONS),
            }
            node = nodes[number] = KafkaServer(directory / str(number), port, settings)
            node.cluster_id = nodes[1].cluster_id
            cleanup.callback(node.kill)
        start_all(nodes)
        yield Cluster(nodes, stack.postgres.address)


def start_all(nodes: dict[int, KafkaServer]) -> None:
    """Together: none is ready before the controllers have a majority."""

    async def start() -> None:
        await asyncio.gather(*(asyncio.to_thread(node.start) for node in nodes.values()))

    asyncio.run(start())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as one:
        yield one


def java_hash(text: str) -> int:
    """`String.hashCode()`, by which Kafka places a transactional id (and `Utils.abs`)."""
    value = 0
    for character in text:
        value = (31 * value + ord(character)) & 0xFFFFFFFF
    return value & 0x7FFFFFFF


async def leader_of(what: str, cluster: Cluster, bench: Bench) -> tuple[str, int]:
    """The topic and the partition whose leader the page needs."""
    connector = bench.id("source")
    if what == "coordinator":
        return TRANSACTIONS_TOPIC, java_hash(f"verity.{connector}") % TRANSACTION_PARTITIONS
    if what == "checkpoints":
        topic = "verity.connector.checkpoints"
        return topic, partition_for(connector, len(await cluster.partitions(topic)))
    return f"verity.events.raw.{bench.name}", 0


@pytest.mark.parametrize(("point", "what"), CASES)
async def test_a_leader_that_dies_during_a_commit(
    cluster: Cluster, tmp_path: Path, point: str, what: str
) -> None:
    with killing(make_bench(tmp_path, cluster.bootstrap_servers, cluster.dsn)) as bench:
        bench.environment.update(
            VERITY_KAFKA__REPLICATION_FACTOR=str(NODES),
            VERITY_KAFKA__EVENT_PARTITIONS="1",
            VERITY_CHECKPOINT_PARTITIONS="6",
            VERITY_SESSION_TIMEOUT_SECONDS="30",
            VERITY_PAGE_EVENTS="20",
            VERITY_BACKOFF_MAX="1s",
        )
        bench.configure(
            source={
                "type": "test_paged", "platform": bench.name, "count": COUNT, "page": 20,
                "page_seconds": 0.1, "overlap": 5, "poll_every": "500ms", "snapshot_every": 86400,
            }
        )  # fmt: skip
        worker = bench.worker(VERITY_FAILPOINTS=f"{point}=stop@4")
        assert worker.process is not None
        process = psutil.Process(worker.process.pid)

        async def stands() -> bool:
            return bool(process.status() == psutil.STATUS_STOPPED)

        await eventually(stands, 120, bench.logs)
        topic, partition = await leader_of(what, cluster, bench)
        victim = await cluster.leader(topic, partition)
        await asyncio.to_thread(cluster.nodes[victim].kill)

        async def has_another() -> bool:
            return await cluster.leader(topic, partition) not in (victim, -1)

        await eventually(has_another, 120)
        worker.signal(signal.SIGCONT)
        await bench.wait_for_state("source", "caught_up", 90)
        await bench.assert_exactly_once(
            "source", {one.event_id for one in sequence(bench.name, COUNT)}
        )
        assert worker.process.poll() is None, "the same worker goes on"
        # While the broker is still dead, a worker can also end and another start.
        worker.terminate()
        after = await bench.stored_checkpoint("source") or {}
        bench.worker()

        async def has_started() -> bool:
            return (await bench.stored_checkpoint("source") or {})["epoch"] > after["epoch"]

        await eventually(has_started, 120, bench.logs)
        await bench.wait_for_state("source", "caught_up")
        await bench.assert_exactly_once(
            "source", {one.event_id for one in sequence(bench.name, COUNT)}
        )
        await asyncio.to_thread(cluster.nodes[victim].start)
        await cluster.wait_until_whole(
            topic, TRANSACTIONS_TOPIC, "verity.connector.checkpoints", "__consumer_offsets"
        )
