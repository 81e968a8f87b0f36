"""Kafka and Postgres go away under a running worker, and come back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from stack_fixtures import temporary_stack
from verity_test_connectors import sequence
from workers import Bench, killing, make_bench

from verity_stream.dev.stack import Stack

pytestmark = pytest.mark.stack

COUNT = 600


@pytest.fixture(scope="module")
def own_stack() -> Iterator[Stack]:
    """A stack that only these tests use, one after the other."""
    with temporary_stack() as stack:
        yield stack


@pytest.fixture
def fragile(own_stack: Stack, tmp_path: Path) -> Iterator[tuple[Stack, Bench]]:
    """That stack, whatever the test before left of it, and a bench on it."""
    stack = own_stack
    address = stack.up(environ={})
    with killing(make_bench(tmp_path, address.bootstrap_servers, address.dsn)) as bench:
        bench.configure(
            source={
                "type": "test_paged",
                "platform": bench.name,
                "count": COUNT,
                "page": 20,
                "page_seconds": 0.1,
                "overlap": 5,
                "poll_every": "500ms",
            }
        )
        yield stack, bench


async def assert_all_arrived_once(bench: Bench) -> None:
    """The end of every outage."""
    await bench.wait_for_state("source", "caught_up", 90)
    expected = {event.event_id for event in sequence(bench.name, COUNT)}
    await bench.assert_exactly_once("source", expected)


async def test_a_killed_broker_that_comes_back(fragile: tuple[Stack, Bench]) -> None:
    stack, bench = fragile
    worker = bench.worker(VERITY_PAGE_EVENTS="20")
    await bench.wait_for_version("source", 3)
    stack.kafka.kill()
    await asyncio.sleep(3)
    await asyncio.to_thread(stack.kafka.start)
    await assert_all_arrived_once(bench)
    assert worker.process is not None
    assert worker.process.poll() is None, "the same worker goes on"


async def test_a_killed_database_that_comes_back(fragile: tuple[Stack, Bench]) -> None:
    stack, bench = fragile
    worker = bench.worker(VERITY_PAGE_EVENTS="20", VERITY_BACKOFF_MAX="1s")
    await bench.wait_for_version("source", 3)
    stack.postgres.kill()
    await asyncio.sleep(3)
    await asyncio.to_thread(stack.postgres.start)
    await assert_all_arrived_once(bench)
    assert worker.process is not None
    assert worker.process.poll() is None, "the same worker goes on"


async def restore_an_early_page(bench: Bench) -> None:
    """What a backup from some pages ago would have held."""
    (early, *_) = await bench.published_checkpoints("source")
    await bench.fetchrow(
        "UPDATE connector_checkpoints SET version = $2, published_version = $2,"
        " last_ts = $3::text::timestamptz, cursor = $4::text::jsonb WHERE connector_id = $1",
        bench.id("source"),
        early["version"],
        early["last_ts"],
        '{"v": 1, "next": 20}',
    )


async def test_an_edit_of_a_restored_database_wins(fragile: tuple[Stack, Bench]) -> None:
    """Whoever restores a database and then says where to go on is heard."""
    _, bench = fragile
    worker = bench.worker(VERITY_PAGE_EVENTS="20")
    await bench.wait_for_state("source", "caught_up", 90)
    worker.terminate()
    newest = (await bench.published_checkpoints("source"))[-1]["version"]
    await restore_an_early_page(bench)
    events = sequence(bench.name, COUNT)
    back_to = events[COUNT // 2].occurred_at
    await bench.fetchrow(
        "UPDATE connector_checkpoints SET last_ts = $2 WHERE connector_id = $1",
        bench.id("source"),
        back_to,
    )
    # Even where an operator wants to decide: this is the decision.
    second = bench.worker(VERITY_PAGE_EVENTS="20", VERITY_DATABASE_BEHIND="stop")
    await bench.wait_for_version("source", newest + 2)
    await bench.wait_for_state("source", "caught_up", 90)
    (found,) = second.messages("relay.database_behind")
    assert found["policy"] == "edit_wins"
    published = await bench.published_checkpoints("source")
    versions = [one["version"] for one in published]
    assert versions == sorted(set(versions))
    edited = next(one for one in published if one["version"] > newest)
    assert datetime.fromisoformat(edited["last_ts"]) == back_to
    counts = Counter(await bench.event_ids("source"))
    first = next(number for number, one in enumerate(events) if one.occurred_at >= back_to)
    # The source's first page after the edit overlaps with the 5 events before it, too.
    assert {one for one, count in counts.items() if count == 2} == {
        one.event_id for one in events[first - 5 :]
    }
    assert max(counts.values()) == 2
    stored = await bench.stored_checkpoint("source")
    assert stored is not None
    assert stored["version"] == versions[-1]


async def test_a_restored_database_follows_the_topic(fragile: tuple[Stack, Bench]) -> None:
    _, bench = fragile
    worker = bench.worker(VERITY_PAGE_EVENTS="20")
    await bench.wait_for_version("source", 8)
    worker.terminate()
    await restore_an_early_page(bench)
    second = bench.worker(VERITY_PAGE_EVENTS="20")
    await assert_all_arrived_once(bench)
    assert second.messages("relay.database_behind"), "an operator is told"
