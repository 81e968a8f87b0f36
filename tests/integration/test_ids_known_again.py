"""The log of ids with real workers: what happens to the raw topics, to it, or to its key.

The connector of these tests serves everything again at every poll, so whatever the seen window
does not know repeats.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from stack_fixtures import StackFactory
from workers import (
    Bench,
    Worker,
    committed,
    delete_topics,
    eventually,
    high_watermarks,
    killing,
    make_bench,
    metric,
)

pytestmark = pytest.mark.stack

COUNT = 200
IDS = "verity.connector.ids"
FIXTURE = Path(__file__).parent.parent / "fixtures" / "installation_0_9.json"


def configure(bench: Bench, count: int = COUNT) -> None:
    """One connector; its polls are so frequent that a repeat would be there at once."""
    bench.configure(
        source={
            "type": "test_repeating",
            "platform": bench.name,
            "count": count,
            "poll_every": "300ms",
            "snapshot_every": 86400,
        }
    )


async def caught_up(bench: Bench) -> Worker:
    """A worker that was started, and has asked the source for everything at least twice."""
    worker = bench.worker()
    await bench.wait_for_state("source", "caught_up")
    await polled(bench)
    return worker


async def polled(bench: Bench) -> None:
    """Until every connector has asked its source for everything once more."""
    since = datetime.now(UTC)

    async def is_so() -> bool:
        row = await bench.fetchrow(
            "SELECT min(coalesce(last_success_at, '-infinity')) AS at FROM connector_status"
        )
        return bool(row["at"] > since)

    await eventually(is_so, 90, bench.logs)


async def empty(bench: Bench, topic: str) -> None:
    """What retention does to a topic in the end."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bench.bootstrap_servers)
    await admin.start()
    try:
        (described,) = await admin.describe_topics([topic])
        places = [TopicPartition(topic, one["partition"]) for one in described["partitions"]]
        ends = await high_watermarks(bench.bootstrap_servers, places)
        await admin.delete_records({place: RecordsToDelete(ends[place]) for place in places})
    finally:
        await admin.close()


async def test_nothing_repeats_when_the_raw_topics_retention_has_removed_everything(
    bench: Bench,
) -> None:
    """Quiet for longer than any retention, and then a deploy."""
    configure(bench)
    worker = await caught_up(bench)
    assert len(await bench.event_ids()) == COUNT
    worker.terminate()
    await empty(bench, f"verity.events.raw.{bench.name}")
    assert await bench.event_ids() == []
    worker = await caught_up(bench)
    assert await bench.event_ids() == [], f"repeated\n{bench.logs()}"
    assert metric(worker, bench, "verity_seen_window_ids") == COUNT
    worker.terminate()
    configure(bench, COUNT + 10)
    worker = await caught_up(bench)
    assert len(await bench.event_ids()) == 10, "what is new is not held back"
    worker.terminate()
    # Hashes and no more: eight bytes an id, and no key of them in any log.
    row = await bench.fetchrow("SELECT key FROM verity_id_key")
    assert row["key"].hex() not in bench.logs()


async def test_a_log_of_ids_that_is_gone_is_said_and_read_back_from_the_raw_topics(
    make_stack: StackFactory, tmp_path: Path
) -> None:
    address = make_stack().up(environ={})
    with killing(make_bench(tmp_path, address.bootstrap_servers, address.dsn)) as bench:
        configure(bench)
        worker = await caught_up(bench)
        worker.terminate()
        await delete_topics(bench, IDS)
        worker = await caught_up(bench)
        counts = Counter(await bench.event_ids())
        assert (len(counts), set(counts.values())) == (COUNT, {1}), bench.logs()
        (lost,) = worker.messages("relay.seen_window_lost")
        assert (lost["level"], lost["lost_ids"], lost["recovered_ids"]) == ("error", COUNT, COUNT)
        assert metric(worker, bench, "verity_ids_lost_total") == COUNT
        worker.terminate()
        # The log has them again: this time nothing is read back.
        await empty(bench, f"verity.events.raw.{bench.name}")
        worker = await caught_up(bench)
        assert worker.messages("relay.seen_window_lost") == []
        assert await bench.event_ids() == []


@pytest.mark.parametrize("is_lost", ["the row is gone", "the row is another"])
async def test_a_database_without_the_key_or_with_another_loses_no_ids(
    bench: Bench, is_lost: str
) -> None:
    configure(bench)
    worker = await caught_up(bench)
    worker.terminate()
    before = await bench.fetchrow("SELECT key FROM verity_id_key")
    if is_lost == "the row is gone":
        await bench.fetchrow("DELETE FROM verity_id_key")
    else:
        await bench.fetchrow("UPDATE verity_id_key SET key = $1", bytes(16))
    worker = await caught_up(bench)
    assert len(await bench.event_ids()) == COUNT
    assert await bench.fetchrow("SELECT key FROM verity_id_key") == before
    said = worker.messages("ids.key_differs")
    assert [one["level"] for one in said] == (["error"] if is_lost == "the row is another" else [])
    assert worker.messages("relay.seen_window_lost") == []
    worker.terminate()


# From the version before there was a log of ids.


async def install(bench: Bench, recorded: dict[str, Any]) -> None:
    """Put back what a worker of the older version left: rows, and records at their offsets."""
    connection = await asyncpg.connect(bench.dsn)
    try:
        await connection.execute(
            "CREATE TABLE verity_migrations "
            "(name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        for name in recorded["migrations"]:
            sql = (files("verity_stream.postgres") / "migrations" / name).read_text("utf-8")
            await connection.execute(sql)
            await connection.execute("INSERT INTO verity_migrations (name) VALUES ($1)", name)
        for row in recorded["rows"]:
            await connection.execute(
                "INSERT INTO connector_checkpoints (connector_id, last_ts, cursor, seen, version, "
                "epoch, published_version) "
                "VALUES ($1, $2::text::timestamptz, $3::text::jsonb, $4::text::jsonb, $5, $6, $7)",
                *(row[name] for name in ("connector_id", "last_ts", "cursor", "seen", "version",
                                         "epoch", "published_version")),
            )  # fmt: skip
    finally:
        await connection.close()
    admin = AIOKafkaAdminClient(bootstrap_servers=bench.bootstrap_servers)
    producer = AIOKafkaProducer(bootstrap_servers=bench.bootstrap_servers)
    await admin.start()
    await producer.start()
    try:
        await admin.create_topics(
            [
                NewTopic(name, topic["partitions"], 1, topic_configs={"cleanup.policy": "delete"})
                for name, topic in recorded["topics"].items()
            ]
        )
        for name, topic in recorded["topics"].items():
            ends: Counter[int] = Counter()
            for one in topic["records"]:
                # Where a transaction's end stood, a record of nobody stands.
                for _ in range(one["offset"] - ends[one["partition"]]):
                    await producer.send(name, b"nobody's", partition=one["partition"])
                ends[one["partition"]] = one["offset"] + 1
                await producer.send(
                    name,
                    one["value"].encode(),
                    key=None if one["key"] is None else one["key"].encode(),
                    partition=one["partition"],
                    headers=[(key, value.encode()) for key, value in one["headers"]],
                    timestamp_ms=one["timestamp"],
                )
            await producer.flush()
            places = [TopicPartition(name, partition) for partition in ends]
            found = await high_watermarks(bench.bootstrap_servers, places) if places else {}
            assert {place.partition: end for place, end in found.items()} == dict(ends)
    finally:
        await producer.stop()
        await admin.close()


async def test_an_older_installation_is_taken_over_with_nothing_lost_and_nothing_twice(
    make_stack: StackFactory, tmp_path: Path
) -> None:
    """`installation_0_9.json` is what a worker of commit ad103d9 left after two starts.

    Its connectors are those of this test, with pages of 30 events.
    """
    recorded = json.loads(FIXTURE.read_text("utf-8"))
    address = make_stack().up(environ={})
    with killing(make_bench(tmp_path, address.bootstrap_servers, address.dsn)) as bench:
        bench.name = "recorded"
        await install(bench, recorded)
        table = {"poll_every": "300ms", "snapshot_every": 86400}
        plain = {**table, "type": "test_repeating", "platform": "recorded"}
        pages = {**table, "type": "test_repeating_pages", "platform": "recorded-pages", "page": 20}
        # Some more events, so that there is something to lose.
        bench.configure(plain={**plain, "count": 160}, pages={**pages, "count": 100})
        for start in range(3):
            worker = bench.worker()
            for connector in ("plain", "pages"):
                await bench.wait_for_state(connector, "caught_up")
            await polled(bench)
            await polled(bench)
            said = worker.messages("relay.seen_window_taken_over")
            assert len(said) == (2 if start == 0 else 0)
            worker.terminate()
        for platform, count in (("recorded", 160), ("recorded-pages", 100)):
            counts = Counter(
                json.loads(one.value)["event_id"]
                for one in await committed(bench.bootstrap_servers, f"verity.events.raw.{platform}")
                if one.headers
            )
            assert len(counts) == count, f"lost\n{bench.logs()}"
            assert set(counts.values()) == {1}, f"repeated\n{bench.logs()}"
        letters = await committed(
            bench.bootstrap_servers, "verity.events.dead.test_repeating_pages"
        )
        ids = Counter(dict(one.headers)["dead_id"] for one in letters if one.headers)
        assert (len(ids), set(ids.values())) == (5, {1}), "a dead letter came again"
        for worker in bench.workers:
            assert worker.messages("relay.seen_window_lost") == []
