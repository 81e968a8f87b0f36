"""What Kafka refuses or loses under a running worker: one of the five errors, then a clean retry.

Every test ends the same way: whatever the broker did, every event of the source is in the topic
once, the views agree, and the worker's process is the one that was there before.

Elsewhere: a broker that is killed at any time (`test_outages.py`, `make sweep`), a topic that does
not exist and a transaction time-out above the broker's (`tests/contract/test_publisher.py`).
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from stack_fixtures import StackFactory, temporary_stack
from verity_test_connectors import sequence
from workers import (
    Bench,
    Worker,
    assert_said,
    committed,
    delete_topics,
    ended,
    eventually,
    high_watermarks,
    killing,
    make_bench,
)

from verity_stream.dev.stack import Stack
from verity_stream.dev.stack.server import free_port

pytestmark = pytest.mark.stack

COUNT = 400


@contextmanager
def bench_on(stack: Stack, directory: Path, **source: Any) -> Iterator[Bench]:
    """A bench with a source of 20 pages."""
    address = stack.up(environ={})
    with killing(make_bench(directory, address.bootstrap_servers, address.dsn)) as bench:
        # A process that is frozen for some seconds stays in its group: this is about the relay.
        bench.environment.update(
            VERITY_SESSION_TIMEOUT_SECONDS="30",
            VERITY_PAGE_EVENTS="20",
            VERITY_BACKOFF_MAX="1s",
            VERITY_BLOCKED_PROBE="1s",
        )
        bench.configure(
            source={
                "type": "test_paged",
                "platform": bench.name,
                "count": COUNT,
                "page": 20,
                "page_seconds": 0.1,
                "overlap": 5,
                "poll_every": "500ms",
                "snapshot_every": 86400,
                **source,
            }
        )
        yield bench


async def assert_all_arrived_once(bench: Bench, worker: Worker) -> None:
    """The end of every refusal."""
    await bench.wait_for_state("source", "caught_up")
    expected = {one.event_id for one in sequence(bench.name, COUNT)}
    await bench.assert_exactly_once("source", expected)
    assert worker.process is not None
    assert worker.process.poll() is None, "the same worker goes on"


async def refused(worker: Worker, state: str, text: str, seconds: float = 90) -> None:
    """Until a relay ended in this state, with an error of this text."""

    async def was() -> bool:
        found = worker.messages(f"connector.{state}")
        return any(text in line["error"] for line in found)

    await eventually(was, seconds, lambda: worker.log[-6000:])


async def frozen(worker: Worker) -> None:
    """Until the process stands at its failpoint."""
    assert worker.process is not None
    process = psutil.Process(worker.process.pid)

    async def stands() -> bool:
        return bool(process.status() == psutil.STATUS_STOPPED)

    await eventually(stands, 90, lambda: worker.log[-4000:])


async def with_admin(bench: Bench, step: Callable[[AIOKafkaAdminClient], Any]) -> Any:
    """Do something as Kafka's administrator."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bench.bootstrap_servers)
    await admin.start()
    try:
        return await step(admin)
    finally:
        await admin.close()


# A broker that refuses by its access rules.

PASSWORD = "a-password-of-the-test"


async def test_what_the_access_rules_refuse_is_denied_until_it_is_granted(
    make_stack: StackFactory, tmp_path: Path
) -> None:
    kafka_port, sasl_port, controller = free_port(), free_port(), free_port()
    login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    stack = make_stack(
        kafka_port=kafka_port,
        kafka_settings={
            "listeners": f"PLAINTEXT://127.0.0.1:{kafka_port},SASL://127.0.0.1:{sasl_port},"
            f"CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://localhost:{kafka_port},"
            f"SASL://localhost:{sasl_port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,"
            "CONTROLLER:PLAINTEXT",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.name.sasl.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl.plain.sasl.jaas.config": f'{login} user_verity="{PASSWORD}";',
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            # The test asks through the plain listener, where everybody is anonymous.
            "super.users": "User:ANONYMOUS",
        },
    )
    await asyncio.to_thread(stack.up, environ={})

    async def rules(*arguments: str) -> None:
        command = stack.kafka.java_command(
            "org.apache.kafka.tools.AclCommand",
            "--bootstrap-server", f"localhost:{kafka_port}", "--force", *arguments,
        )  # fmt: skip
        result = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 0, result.stdout + result.stderr

    # Changing the rules takes a JVM some seconds, and then there must be pages left.
    gate = tmp_path / "gate"
    with bench_on(stack, tmp_path, gate=str(gate), gate_at=100) as bench:
        bench.environment.update(
            VERITY_KAFKA__BOOTSTRAP_SERVERS=f"localhost:{sasl_port}",
            VERITY_KAFKA__SECURITY_PROTOCOL="SASL_PLAINTEXT",
            VERITY_KAFKA__SASL_USERNAME="verity",
            VERITY_KAFKA__SASL_PASSWORD=PASSWORD,
        )
        allow = ("--add", "--allow-principal", "User:verity", "--operation", "All")
        await rules(*allow, "--topic", "*", "--cluster")
        groupless = bench.worker()
        assert await ended(groupless) == 1
        assert_said(groupless, "Kafka refused: GroupAuthorizationFailed")
        await rules(*allow, "--group", "*")
        worker = bench.worker()
        await refused(worker, "blocked", "Denied: Kafka refused: TransactionalIdAuthorization")
        await bench.wait_for_state("source", "blocked")
        await rules(*allow, "--transactional-id", "*")
        await bench.wait_for_version("source", 3)

        deny = ("--deny-principal", "User:verity", "--operation", "Write")
        topic = ("--topic", "verity.events.raw." + bench.name)
        await rules("--add", *deny, *topic)
        gate.touch()
        await refused(worker, "blocked", "Denied: Kafka refused: TopicAuthorizationFailed")
        stored = await bench.stored_checkpoint("source")
        (*_, last) = await bench.published_checkpoints("source")
        assert stored is not None
        assert stored["version"] == last["version"], "no checkpoint without its events"
        await rules("--remove", *deny, *topic)
        await assert_all_arrived_once(bench, worker)

        # Taken away under a member that runs, too.
        await rules("--remove", *allow[1:], "--group", "*")
        assert await ended(worker) == 1
        assert_said(worker, "Kafka refused: GroupAuthorizationFailed")


# A topic that is deleted under the worker.


async def test_a_topic_that_is_deleted_is_made_anew_and_filled_from_where_the_relay_stands(
    make_stack: StackFactory, tmp_path: Path
) -> None:
    """What was in it is gone, which is what a deletion means; nothing else is lost or repeated."""
    gate = tmp_path / "gate"
    with bench_on(make_stack(), tmp_path, overlap=0, gate=str(gate), gate_at=100) as bench:
        # A page that finds its topic gone waits for as long as its transaction may last.
        worker = bench.worker(VERITY_TRANSACTION_TIMEOUT="3s")
        await bench.wait_for_version("source", 4)
        topic = f"verity.events.raw.{bench.name}"
        await delete_topics(bench, topic)
        gate.touch()
        await refused(worker, "backing_off", "Unavailable: Kafka did not take the page")
        await bench.wait_for_state("source", "caught_up")
        truth = [one.event_id for one in sequence(bench.name, COUNT)]
        found = sorted(await bench.event_ids("source"))
        assert found, worker.log[-4000:]
        assert found == truth[-len(found) :], "all from some page on, each once"
        published = await bench.published_checkpoints("source")
        assert sum(one["event_count"] for one in published) == COUNT, "every page was published"
        assert [one["version"] for one in published] == list(range(1, len(published) + 1))


# A broker that goes away exactly while a page is committed.


@pytest.fixture(scope="module")
def restarted() -> Iterator[Stack]:
    """A stack for these cases, one after the other."""
    with temporary_stack() as stack:
        yield stack


@pytest.mark.parametrize("point", ["after_begin", "after_publish", "before_commit", "after_commit"])
async def test_a_broker_that_restarts_while_a_page_is_committed(
    restarted: Stack, tmp_path: Path, point: str
) -> None:
    """The coordinator and every leader change their incarnation in the middle of a transaction."""
    stack = restarted
    with bench_on(stack, tmp_path) as bench:
        worker = bench.worker(VERITY_FAILPOINTS=f"{point}=stop@4")
        await frozen(worker)
        stack.kafka.kill()
        await asyncio.to_thread(stack.kafka.start)
        worker.signal(signal.SIGCONT)
        await assert_all_arrived_once(bench, worker)


# A transaction that takes longer than the broker allows.


async def is_ended(bench: Bench) -> bool:
    """Whether no open transaction holds back any event of the test's platform."""
    topic = f"verity.events.raw.{bench.name}"
    places = [TopicPartition(topic, number) for number in range(6)]
    highs = await high_watermarks(bench.bootstrap_servers, places)
    async with AIOKafkaConsumer(
        bootstrap_servers=bench.bootstrap_servers, isolation_level="read_committed"
    ) as consumer:
        return bool(await consumer.end_offsets(places) == highs)


@pytest.mark.parametrize("point", ["after_begin", "before_commit"])
async def test_a_transaction_that_the_broker_ended_is_told_from_a_fencing(
    make_stack: StackFactory, tmp_path: Path, point: str
) -> None:
    stack = make_stack(
        kafka_settings={"transaction.abort.timed.out.transaction.cleanup.interval.ms": "200"}
    )
    with bench_on(stack, tmp_path) as bench:
        # At after_begin the broker knows of no transaction yet, so it has nothing to end.
        worker = bench.worker(VERITY_FAILPOINTS=f"{point}=stop@4", VERITY_TRANSACTION_TIMEOUT="2s")
        await frozen(worker)
        await asyncio.sleep(3)
        await eventually(lambda: is_ended(bench), 90)  # by the broker's clock, not ours
        worker.signal(signal.SIGCONT)
        if point == "before_commit":
            await refused(worker, "backing_off", "the broker ended the transaction")
        await assert_all_arrived_once(bench, worker)
        assert worker.messages("connector.stopped") == [], "nobody else owns it"
        epoch = (await bench.stored_checkpoint("source") or {})["epoch"]
        assert epoch == len(worker.messages("relay.started"))


# Pages and records that are larger than the broker takes.


async def test_a_page_of_many_requests_is_one_transaction(
    make_stack: StackFactory, tmp_path: Path
) -> None:
    """20 MB in one page, a broker that takes 100 kB at once and requests of 1 MB."""
    stack = make_stack(
        kafka_settings={"message.max.bytes": "100000", "socket.request.max.bytes": "1000000"}
    )
    with bench_on(stack, tmp_path) as bench:
        bench.configure(
            source={"type": "test_large_paged", "platform": bench.name, "count": 400,
                    "page": 400, "payload_bytes": 50_000, "poll_every": "500ms"}
        )  # fmt: skip
        worker = bench.worker(VERITY_KAFKA__MAX_RECORD_BYTES="60000")
        await bench.wait_for_state("source", "caught_up")
        published = await bench.published_checkpoints("source")
        assert [one["event_count"] for one in published] == [400], "whole, however large"
        await bench.assert_exactly_once("source", {f"{bench.name}:{n:06}" for n in range(400)})
        assert worker.messages("source.page_too_large"), "and an operator is told"


async def test_a_record_that_the_broker_refuses_blocks_until_the_limit_is_raised(
    make_stack: StackFactory, tmp_path: Path
) -> None:
    """The operator is told which two settings disagree; nothing of the page is visible."""
    with bench_on(make_stack(), tmp_path) as bench:
        topic = f"verity.events.raw.{bench.name}"
        limits = {"max.message.bytes": "20000"}
        await with_admin(
            bench, lambda admin: admin.create_topics([NewTopic(topic, 3, 1, topic_configs=limits)])
        )
        bench.configure(
            source={"type": "test_large_paged", "platform": bench.name, "count": 40,
                    "page": 10, "payload_bytes": 50_000, "poll_every": "500ms"}
        )  # fmt: skip
        worker = bench.worker()
        await refused(worker, "blocked", "VERITY_KAFKA__MAX_RECORD_BYTES")
        assert await committed(bench.bootstrap_servers, topic) == []
        raised = ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": "1048576"})
        await with_admin(bench, lambda admin: admin.alter_configs([raised]))
        await bench.wait_for_state("source", "caught_up")
        await bench.assert_exactly_once("source", {f"{bench.name}:{n:06}" for n in range(40)})
        assert len(worker.messages("relay.started")) > 1, "a new producer"
