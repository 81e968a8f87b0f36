"""A rebalance touches what moves, and nothing else; on a real broker, with real workers."""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
from collections.abc import Mapping

import pytest
from verity_test_connectors import sequence
from workers import Bench, Worker, eventually

from verity_stream.kafka.partitions import partition_for
from verity_stream.worker.supervise import FENCED_RETRY

pytestmark = pytest.mark.stack

COUNT = 3000
"""Events of a source: 10 every 100 ms, so 30 s of them, and a page every 300 ms."""


def platform_of(bench: Bench, name: str) -> str:
    """Of its own, so that its ids are."""
    return f"{bench.name}.{name}"


def configure(bench: Bench, number: int) -> list[str]:
    """So many connectors, each in a partition of its own; their short names."""
    names: dict[int, str] = {}
    for index in itertools.count():
        names.setdefault(partition_for(bench.id(f"source{index}"), 24), f"source{index}")
        if len(names) == number:
            break
    bench.configure(
        **{
            name: {"type": "test_paged", "platform": platform_of(bench, name), "count": COUNT,
                   "page": 10, "page_seconds": 0.1, "snapshot_every": 86400, "poll_every": "300ms"}
            for name in names.values()
        }
    )  # fmt: skip
    return list(names.values())


def assigned(worker: Worker) -> set[str]:
    """The ids of the connectors that the worker was assigned last."""
    found = worker.messages("runner.assigned")
    return set(found[-1]["connectors"]) if found else set()


async def epochs(bench: Bench, names: list[str]) -> Mapping[str, int]:
    """Of every connector; one more a start."""
    found = {}
    for name in names:
        stored = await bench.stored_checkpoint(name)
        found[name] = 0 if stored is None else stored["epoch"]
    return found


async def shared(
    bench: Bench, workers: list[Worker], names: list[str], seconds: float = 90
) -> None:
    """Until each of these workers has some connectors, and together they have each once."""

    async def is_so() -> bool:
        parts = [assigned(worker) for worker in workers]
        return all(parts) and sorted(itertools.chain(*parts)) == sorted(map(bench.id, names))

    await eventually(is_so, seconds, bench.logs)


async def running(bench: Bench, names: list[str], since: Mapping[str, int] | None = None) -> None:
    """Until each of these connectors has published pages after `since`, or all that it has."""

    async def is_so() -> bool:
        at = await versions(bench, names)
        for name in names:
            is_on = at[name] >= 3 + (since or {}).get(name, 0)
            if not is_on and await bench.state(name) != "caught_up":
                return False
        return True

    await eventually(is_so, 90, bench.logs)


async def started_again(bench: Bench, names: list[str], before: Mapping[str, int]) -> None:
    """Until each of these connectors was started since."""

    async def is_so() -> bool:
        found = await epochs(bench, names)
        return all(found[name] > before[name] for name in names)

    await eventually(is_so, 90, bench.logs)


async def versions(bench: Bench, names: list[str]) -> dict[str, int]:
    """Of every connector's row."""
    return {name: (await bench.stored_checkpoint(name) or {"version": 0})["version"]
            for name in names}  # fmt: skip


@pytest.mark.timeout(300)
async def test_what_stays_with_its_worker_runs_on_through_a_join_and_a_leave(
    bench: Bench,
) -> None:
    """Its relay is not started again: the epoch, one more a start, is what it was."""
    names = configure(bench, 8)
    first = bench.worker()
    await shared(bench, [first], names)
    await running(bench, names)
    before = await epochs(bench, names)

    second = bench.worker()
    await shared(bench, [first, second], names)
    moved = [name for name in names if bench.id(name) in assigned(second)]
    stayed = [name for name in names if name not in moved]
    assert len(moved) == len(stayed) == 4
    await started_again(bench, moved, before)
    await running(bench, names, await versions(bench, names))
    after = await epochs(bench, names)
    assert {name: after[name] for name in stayed} == {name: before[name] for name in stayed}

    second.terminate()
    await shared(bench, [first], names)
    await started_again(bench, moved, after)
    await running(bench, names, await versions(bench, names))
    back = await epochs(bench, names)
    assert {name: back[name] for name in stayed} == {name: before[name] for name in stayed}
    for name in names:
        await bench.wait_for_state(name, "caught_up", 90)
        await assert_exactly_once(bench, name)


async def assert_exactly_once(bench: Bench, name: str) -> None:
    platform = platform_of(bench, name)
    found = sorted(one["event_id"] for one in await bench.events(name, platform=platform))
    assert found == [one.event_id for one in sequence(platform, COUNT)], bench.logs()


@pytest.mark.timeout(300)
async def test_exactly_once_by_exactly_one_through_rebalances_and_kills(bench: Bench) -> None:
    """Workers come, go and are killed while every source yields; each event arrives once."""
    numbers = random.Random(7)
    names = configure(bench, 6)
    workers = [bench.worker()]
    await shared(bench, workers, names)
    for act in ("join", "kill", "join", "leave", "join", "kill"):
        if act == "join":
            workers.append(bench.worker())
        else:
            one = workers.pop(numbers.randrange(len(workers)))
            await asyncio.to_thread(one.kill if act == "kill" else one.terminate)
            if not workers:
                workers.append(bench.worker())
        await shared(bench, workers, names)
        await running(bench, names, await versions(bench, names))
    for name in names:
        await bench.wait_for_state(name, "caught_up", 120)
    for name in names:
        await assert_exactly_once(bench, name)
        published = [one["version"] for one in await bench.published_checkpoints(name)]
        assert published == sorted(set(published)), "versions ascend: one owner at a time"
        epochs_of = [one["epoch"] for one in await bench.published_checkpoints(name)]
        assert epochs_of == sorted(epochs_of), "and who was replaced publishes no more"
    # Whoever believes to be the owner is the only one.
    parts = [assigned(worker) for worker in workers]
    assert sorted(itertools.chain(*parts)) == sorted(map(bench.id, names))


@pytest.mark.timeout(300)
async def test_a_worker_that_wakes_up_after_its_session_does_not_fight(bench: Bench) -> None:
    """What was taken over meanwhile starts once more at most: where the new assignment has it."""
    names = configure(bench, 6)
    frozen, other = bench.worker(), bench.worker()
    await shared(bench, [frozen, other], names)
    await running(bench, names)
    taken = [name for name in names if bench.id(name) in assigned(frozen)]
    before = await epochs(bench, names)
    frozen.signal(signal.SIGSTOP)
    await shared(bench, [other], names)

    async def are_taken_over() -> bool:
        now = await epochs(bench, names)
        return all(now[name] > before[name] for name in taken)

    await eventually(are_taken_over, 90, bench.logs)
    meanwhile = await epochs(bench, names)
    frozen.signal(signal.SIGCONT)
    await shared(bench, [frozen, other], names)
    await running(bench, names, await versions(bench, names))
    # Longer than a relay waits after a fencing: whoever meant to start again has done so.
    await asyncio.sleep(FENCED_RETRY.total_seconds() + 1)
    after = await epochs(bench, names)
    for name in names:
        assert after[name] <= meanwhile[name] + 1, bench.logs()
    for name in names:
        await bench.wait_for_state(name, "caught_up", 90)
        await assert_exactly_once(bench, name)
