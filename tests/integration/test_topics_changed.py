"""Topics that change their shape under workers, as administrators and brokers make them do.

Stacks of their own: the placed topics are everybody's.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from integration.test_views import configure, truth
from stack_fixtures import StackFactory
from workers import Bench, committed, delete_topics, eventually, killing, make_bench

from verity_stream.kafka.partitions import partition_for
from verity_stream.records import CHECKPOINTS_TOPIC, GAPS_TOPIC, IDS_TOPIC, raw_topic

pytestmark = pytest.mark.stack

COUNT = 800


@asynccontextmanager
async def admin_of(bench: Bench) -> AsyncIterator[Any]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bench.bootstrap_servers)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def assert_exactly_once(bench: Bench, count: int) -> None:
    counts = Counter(await bench.event_ids("source"))
    assert counts.keys() == truth(bench, count)
    assert set(counts.values()) == {1}


async def test_partitions_added_to_the_checkpoints_topic_stop_the_relays_with_one_error(
    make_stack: StackFactory, tmp_path: Path
) -> None:
    """Each relay went on into the partition that the new number says, where nobody looks."""
    address = make_stack().up(environ={})
    with killing(make_bench(tmp_path, address.bootstrap_servers, address.dsn)) as bench:
        configure(bench, "source", "second", "third", count=100_000, page_seconds=0.5)
        worker = bench.worker()
        for name in ("source", "second", "third"):
            await bench.wait_for_version(name, 3)
        async with admin_of(bench) as admin:
            await admin.create_partitions({CHECKPOINTS_TOPIC: NewPartitions(48)})
        # The consumer hears of it with its next metadata, after 30 s at most.
        for name in ("source", "second", "third"):
            await bench.wait_for_state(name, "blocked", 90)
        row = await bench.fetchrow("SELECT last_error FROM connector_status LIMIT 1")
        assert f"--delete --topic '{CHECKPOINTS_TOPIC}'" in row["last_error"]
        (said,) = worker.messages("topics.misshapen")
        assert said["level"] == "error"
        assert worker.messages("connector.blocked") == []
        assert worker.process is not None
        assert worker.process.poll() is None
        for record in await committed(bench.bootstrap_servers, CHECKPOINTS_TOPIC):
            assert record.partition == partition_for(record.key.decode(), 24)

        # What the error says to do leads somewhere.
        worker.terminate()
        await delete_topics(bench, CHECKPOINTS_TOPIC)
        bench.worker()
        await bench.wait_for_state("source", "running", 90)


async def test_a_start_with_topics_of_another_shape_ends_with_one_error_and_one_command(
    make_stack: StackFactory, tmp_path: Path
) -> None:
    """As any configuration that is wrong: Faust can't carry a table of another shape at all."""
    address = make_stack().up(environ={})
    with killing(make_bench(tmp_path, address.bootstrap_servers, address.dsn)) as bench:
        configure(bench, count=COUNT)
        worker = bench.worker()
        await bench.wait_for_version("source", 6)
        worker.terminate()
        changelog = f"{bench.name}-checkpoints-changelog"
        misshapen = {
            changelog: NewPartitions(30),
            CHECKPOINTS_TOPIC: NewPartitions(48),
            IDS_TOPIC: NewPartitions(36),
        }
        async with admin_of(bench) as admin:
            await admin.create_partitions(misshapen)
        before = await bench.stored_checkpoint("source")
        again = bench.worker()
        assert again.process is not None
        assert await asyncio.to_thread(again.process.wait, 90) == 2, bench.logs()
        lines = [json.loads(one) for one in again.log.splitlines() if one.startswith("{")]
        (said,) = [one for one in lines if one["level"] not in ("debug", "info")]
        assert said["level"] == "critical"
        assert f"--delete --topic '{'|'.join(sorted(misshapen))}'" in said["message"]
        assert await bench.stored_checkpoint("source") == before

        # What the error says to do leads somewhere.
        await delete_topics(bench, *misshapen)
        bench.worker()
        await bench.wait_for_state("source", "caught_up", 90)
        await assert_exactly_once(bench, COUNT)


async def test_a_raw_topic_made_anew_with_fewer_partitions_is_taken(
    make_stack: StackFactory, tmp_path: Path
) -> None:
    """The ids to read back stood in partitions that are gone; the connector never started."""
    address = make_stack().up(environ={})
    with killing(make_bench(tmp_path, address.bootstrap_servers, address.dsn)) as bench:
        configure(bench, count=COUNT)
        bench.environment["VERITY_KAFKA__EVENT_PARTITIONS"] = "6"
        worker = bench.worker()
        await bench.wait_for_version("source", 6)
        worker.terminate()
        before = set(await bench.event_ids("source"))
        raw = raw_topic(bench.name)
        await delete_topics(bench, raw)
        async with admin_of(bench) as admin:
            await admin.create_topics([NewTopic(raw, 2, 1)])
        again = bench.worker()
        await bench.wait_for_state("source", "caught_up", 90)
        assert before | set(await bench.event_ids("source")) == truth(bench, COUNT)
        (said,) = [one for one in again.messages("topics.other_partitions") if one["topic"] == raw]
        assert (said["partitions"], said["setting"]) == (2, 6)


async def test_partitions_added_to_the_topics_of_events_lose_and_repeat_nothing(
    make_stack: StackFactory, tmp_path: Path
) -> None:
    address = make_stack().up(environ={})
    with killing(make_bench(tmp_path, address.bootstrap_servers, address.dsn)) as bench:
        configure(bench, count=COUNT)
        bench.worker()
        await bench.wait_for_version("source", 6)
        async with admin_of(bench) as admin:
            names = [
                name
                for name in await admin.list_topics()
                if name.startswith(("verity.events", "verity.permissions", GAPS_TOPIC))
            ]
            assert raw_topic(bench.name) in names
            await admin.create_partitions(dict.fromkeys(names, NewPartitions(12)))
        await bench.wait_for_state("source", "caught_up", 90)
        await assert_exactly_once(bench, COUNT)


async def test_a_checkpoints_topic_that_the_broker_made_by_itself_is_made_anew(
    make_stack: StackFactory, tmp_path: Path
) -> None:
    """auto.create.topics.enable=true: the deleted topic is back at once, with one partition."""
    stack = make_stack(kafka_settings={"auto.create.topics.enable": "true", "num.partitions": "1"})
    address = await asyncio.to_thread(stack.up, environ={})
    with killing(make_bench(tmp_path, address.bootstrap_servers, address.dsn)) as bench:
        configure(bench, count=COUNT)
        worker = bench.worker()
        await bench.wait_for_version("source", 6)
        worker.terminate()
        async with admin_of(bench) as admin:
            await admin.delete_topics([CHECKPOINTS_TOPIC])

            async def is_gone() -> bool:
                return CHECKPOINTS_TOPIC not in await admin.list_topics()

            await eventually(is_gone, 60)
            # Asked for by its name, it is there again.
            await admin.describe_topics([CHECKPOINTS_TOPIC])

            async def is_back() -> bool:
                return CHECKPOINTS_TOPIC in await admin.list_topics()

            await eventually(is_back, 60)
        again = bench.worker()
        await bench.wait_for_state("source", "caught_up", 90)
        assert CHECKPOINTS_TOPIC in {one["topic"] for one in again.messages("topics.made_anew")}
        async with admin_of(bench) as admin:
            (described,) = await admin.describe_topics([CHECKPOINTS_TOPIC])
        assert len(described["partitions"]) == 24
        await assert_exactly_once(bench, COUNT)
