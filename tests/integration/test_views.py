"""The three views of a checkpoint, when one of them is taken away or is another environment's.

Each case is detected at the start, resolved as the configuration says, logged and counted.

Elsewhere: a restored backup (`test_outages.py`), an edit while a connector stands still
(`test_worker.py`), an edit at every point of a page (`tests/faults`), rewinds (`test_operator.py`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from stack_fixtures import StackFactory
from verity_test_connectors import sequence
from workers import Bench, Worker, delete_topics, eventually, killing, make_bench, metric

from verity_common.config import DatabaseSettings
from verity_stream.postgres.checkpoints import Persisted, PostgresCheckpoints, Provenance
from verity_stream.postgres.pool import create_pool, migrate
from verity_stream.records import SeenInTopics

pytestmark = pytest.mark.stack

COUNT = 400
CHECKPOINTS = "verity.connector.checkpoints"


def configure(bench: Bench, *names: str, **settings: Any) -> None:
    """Sources of 20 pages."""
    table = {
        "type": "test_paged",
        "platform": bench.name,
        "count": COUNT,
        "page": 20,
        "page_seconds": 0.1,
        "overlap": 5,
        "poll_every": "300ms",
        "snapshot_every": 86400,
        **settings,
    }
    bench.configure(**dict.fromkeys(names or ("source",), table))
    bench.environment.update(
        VERITY_PAGE_EVENTS="20", VERITY_BACKOFF_MAX="1s", VERITY_BLOCKED_PROBE="1s"
    )


def truth(bench: Bench, count: int = COUNT) -> set[str]:
    """The ids of the source's first events."""
    return {one.event_id for one in sequence(bench.name, count)}


async def mirrored(worker: Worker, bench: Bench) -> None:
    """Until the Faust table has the version that Postgres has."""

    async def is_so() -> bool:
        stored = await bench.stored_checkpoint("source")
        _, table = worker.get("/checkpoints")
        held = (table or {}).get(bench.id("source"), {}).get("version")
        return stored is not None and held == stored["version"]

    await eventually(is_so, 60, lambda: f"{worker.get('/checkpoints')}\n{bench.logs()}")


# The database was emptied.


async def test_an_emptied_database_follows_the_topic(bench: Bench) -> None:
    configure(bench)
    worker = bench.worker()
    await bench.wait_for_version("source", 6)
    worker.terminate()
    await bench.fetchrow("DELETE FROM connector_checkpoints")
    second = bench.worker()
    await bench.wait_for_state("source", "caught_up")
    await bench.assert_exactly_once("source", truth(bench))
    assert metric(second, bench, "verity_database_behind_total") == 1
    (found,) = second.messages("relay.database_behind")
    assert found["policy"] == "kafka_wins"
    assert found["pages"] >= 6
    await mirrored(second, bench)


async def test_an_emptied_database_blocks_where_the_operator_wants_to_decide(bench: Bench) -> None:
    configure(bench)
    worker = bench.worker()
    await bench.wait_for_version("source", 6)
    worker.terminate()
    before = await bench.published_checkpoints("source")
    await bench.fetchrow("DELETE FROM connector_checkpoints")
    second = bench.worker(VERITY_DATABASE_BEHIND="stop")
    await bench.wait_for_state("source", "blocked")
    assert await bench.published_checkpoints("source") == before, "nothing is published"
    assert metric(second, bench, "verity_database_behind_total") >= 1
    row = await bench.fetchrow("SELECT last_error FROM connector_status")
    assert "VERITY_DATABASE_BEHIND=stop" in row["last_error"]


async def test_rows_that_are_deleted_under_a_running_worker_come_back(bench: Bench) -> None:
    gate = bench.directory / "gate"
    configure(bench, gate=str(gate), gate_at=120)
    worker = bench.worker()
    await bench.wait_for_version("source", 6)
    await bench.fetchrow("DELETE FROM connector_checkpoints")
    gate.touch()
    # Another relay might own a connector whose row is gone, so it waits before it claims again.
    await bench.wait_for_state("source", "caught_up", 90)
    await bench.assert_exactly_once("source", truth(bench))
    assert metric(worker, bench, "verity_database_behind_total") == 1


# The topic was deleted. A stack of its own: the topic is everybody's.


async def test_a_deleted_checkpoints_topic_is_filled_from_the_database(
    make_stack: StackFactory, tmp_path: Path
) -> None:
    address = make_stack().up(environ={})
    with killing(make_bench(tmp_path, address.bootstrap_servers, address.dsn)) as bench:
        configure(bench)
        worker = bench.worker()
        await bench.wait_for_version("source", 6)
        worker.terminate()
        lost = await bench.published_checkpoints("source")
        await delete_topics(bench, CHECKPOINTS)

        # First with an operator who wants to decide.
        blocked = bench.worker(VERITY_TOPIC_BEHIND="stop")
        await bench.wait_for_state("source", "blocked")
        assert await bench.published_checkpoints("source") == []
        row = await bench.fetchrow("SELECT last_error FROM connector_status")
        assert "VERITY_TOPIC_BEHIND=stop" in row["last_error"]
        blocked.terminate()

        second = bench.worker()
        await bench.wait_for_state("source", "caught_up")
        counts = Counter(await bench.event_ids("source"))
        assert counts.keys() == truth(bench)
        assert set(counts.values()) == {1}, "the ids are still read back from the raw topic"
        assert metric(second, bench, "verity_topic_behind_total") == 1
        (found,) = second.messages("relay.topic_behind")
        assert (found["versions"], found["policy"]) == (len(lost), "repair")
        published = await bench.published_checkpoints("source")
        assert [one["version"] for one in published] == list(
            range(len(lost) + 1, len(lost) + 1 + len(published))
        )
        await mirrored(second, bench)


async def test_a_checkpoints_topic_that_is_deleted_under_a_running_worker(
    make_stack: StackFactory, tmp_path: Path
) -> None:
    """Faust's consumer commits to a topic that is gone, for ever; the watchdog ends the process."""
    address = make_stack().up(environ={})
    with killing(make_bench(tmp_path, address.bootstrap_servers, address.dsn)) as bench:
        configure(bench, count=800)
        worker = bench.worker(VERITY_WATCHDOG_TIMEOUT="6s")
        await bench.wait_for_version("source", 6)
        await delete_topics(bench, CHECKPOINTS)
        assert worker.process is not None
        assert await asyncio.to_thread(worker.process.wait, 90) == 1
        assert "no assignment is complete" in worker.log
        again = bench.worker()
        await bench.wait_for_state("source", "caught_up", 90)
        counts = Counter(await bench.event_ids("source"))
        assert counts.keys() == truth(bench, 800)
        assert set(counts.values()) == {1}
        assert metric(again, bench, "verity_topic_behind_total") == 1
        await mirrored(again, bench)


async def test_a_checkpoints_topic_that_is_deleted_before_a_rebalance(
    make_stack: StackFactory, tmp_path: Path
) -> None:
    """The group assigns nothing to anybody, which looks complete; the watchdog knows better."""
    address = make_stack().up(environ={})
    with killing(make_bench(tmp_path, address.bootstrap_servers, address.dsn)) as bench:
        configure(bench, count=800)
        # Longer than the session of the one that is killed: the rebalance comes first.
        left = bench.worker(VERITY_WATCHDOG_TIMEOUT="25s")
        await bench.wait_for_version("source", 6)
        killed = bench.worker()

        async def shares() -> bool:
            return bool(killed.messages("runner.assigned"))

        await eventually(shares, 90, bench.logs)
        killed.kill()
        await delete_topics(bench, CHECKPOINTS)
        assert left.process is not None
        assert await asyncio.to_thread(left.process.wait, 120) == 1
        assert "no assignment is complete" in left.log
        assert left.messages("runner.assigned")[-1]["partitions"] == []


# Two environments, one database.


async def test_another_environments_database_is_left_alone(
    bench: Bench, make_stack: StackFactory, tmp_path: Path
) -> None:
    """The same configuration and Postgres, another Kafka: nothing is claimed, nobody is fenced."""
    configure(bench, count=4000, page_seconds=0.3)
    own = bench.worker()
    await bench.wait_for_version("source", 3)
    other = make_stack()
    elsewhere = await asyncio.to_thread(other.up, environ={})
    intruder = bench.worker(VERITY_KAFKA__BOOTSTRAP_SERVERS=elsewhere.bootstrap_servers)

    async def is_refused() -> bool:
        return bool(intruder.messages("connector.blocked"))

    await eventually(is_refused, 90, bench.logs)
    (found, *_) = intruder.messages("connector.blocked")
    assert "VERITY_OTHER_CLUSTER" in found["error"]
    (said, *_) = intruder.messages("relay.other_cluster")
    assert said["policy"] == "stop"
    assert metric(intruder, bench, "verity_other_cluster_total") >= 1
    at = (await bench.stored_checkpoint("source") or {})["version"]
    await bench.wait_for_version("source", at + 3)
    assert (await bench.stored_checkpoint("source") or {})["epoch"] == 1, "never claimed"
    assert len(own.messages("relay.started")) == 1
    assert own.messages("connector.stopped") == []


async def test_a_move_to_another_cluster_is_adopted_and_goes_on(
    bench: Bench, make_stack: StackFactory
) -> None:
    configure(bench)
    worker = bench.worker()
    await bench.wait_for_version("source", 6)
    worker.terminate()
    before = set(await bench.event_ids("source"))
    stored = await bench.stored_checkpoint("source")
    assert stored is not None
    other = make_stack()
    elsewhere = await asyncio.to_thread(other.up, environ={})
    bench.environment["VERITY_KAFKA__BOOTSTRAP_SERVERS"] = elsewhere.bootstrap_servers
    bench.bootstrap_servers = elsewhere.bootstrap_servers
    adopting = bench.worker(VERITY_OTHER_CLUSTER="adopt")
    await bench.wait_for_state("source", "caught_up")
    counts = Counter(await bench.event_ids("source"))
    assert before | counts.keys() == truth(bench), "nothing is lost between the two"
    assert set(counts.values()) == {1}
    # A repeat is one for whoever reads both: the overlap, whose ids stand in the old cluster.
    assert len(before & counts.keys()) <= 5
    assert metric(adopting, bench, "verity_other_cluster_total") == 1
    assert adopting.messages("relay.topic_behind") == [], "it was published elsewhere, not lost"
    published = await bench.published_checkpoints("source")
    assert published[0]["version"] == stored["version"] + 1
    adopting.terminate()
    third = bench.worker()
    await bench.wait_for_state("source", "caught_up")
    assert third.messages("relay.other_cluster") == [], "it is ours now"


# An operator's hand.


async def test_an_edit_under_a_running_backfill_wins_within_a_page(bench: Bench) -> None:
    configure(bench, overlap=0)
    worker = bench.worker()
    await bench.wait_for_version("source", 8)
    events = sequence(bench.name, COUNT)
    back_to = events[20].occurred_at
    await bench.fetchrow(
        "UPDATE connector_checkpoints SET last_ts = $2 WHERE connector_id = $1",
        bench.id("source"),
        back_to,
    )
    audit = await bench.fetchrow(
        "SELECT * FROM connector_audit WHERE connector_id = $1", bench.id("source")
    )
    assert audit["action"] == "edit"
    edited_version = orjson.loads(audit["after"])["version"]
    await bench.wait_for_state("source", "caught_up")
    published = await bench.published_checkpoints("source")
    adopted = next(one for one in published if one["event_count"] == 0)
    # One page may have been in flight; it took the edit's version, and the edit came on top.
    assert edited_version <= adopted["version"] <= edited_version + 1
    assert adopted["last_ts"].startswith(back_to.isoformat()[:19])
    counts = Counter(await bench.event_ids("source"))
    assert counts.keys() == truth(bench)
    replayed = {one for one, count in counts.items() if count == 2}
    assert max(counts.values()) == 2
    done = sum(one["event_count"] for one in published if one["version"] < adopted["version"])
    expected = {one.event_id for one in events[:done] if one.occurred_at >= back_to}
    assert replayed == expected, "from there on once more, and nothing else"
    assert len(worker.messages("relay.position_edited")) == 1


async def test_what_is_adopted_is_read_back_from_the_beginning(database: str) -> None:
    """Its offsets are another cluster's: here the ids can stand anywhere."""
    pool = await create_pool(DatabaseSettings(dsn=database))
    try:
        await migrate(pool)
        theirs, ours = PostgresCheckpoints(pool, "theirs"), PostgresCheckpoints(pool, "ours")
        claimed = await theirs.claim("c")
        seen = SeenInTopics({"verity.events.raw.t": {0: 77, 3: 5}}, claimed.last_ts)
        page = replace(claimed, version=1, cursor={"n": 1}, seen=seen)
        assert await theirs.persist(page, expected_version=0) is Persisted.DONE
        assert await theirs.provenance("c") == Provenance(1)
        assert await ours.provenance("c") == Provenance(1, "theirs")
        await ours.adopt("c")
        assert await ours.provenance("c") == Provenance(1)
        stored = await ours.load("c")
        start = {"verity.events.raw.t": {0: 0, 3: 0}}
        assert stored == replace(page, seen=SeenInTopics(start, seen.newest_at))
        assert await ours.provenance("nobody") == Provenance()
    finally:
        await pool.close()
