"""What is not throughput: starts, the latency of one event, the seen window."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from aiokafka import AIOKafkaProducer

from benchmarks.bench import Bench, RelayRun, memory
from benchmarks.workload import FIRST_AT, LiveConnector, Workload
from verity_stream.relay.ids import IdHasher, hashes_of
from verity_stream.relay.seen_window import SeenWindow

WINDOW_IDS = 1_000_000
STARTS = 15
PAGES_OF_ONE = 300
HASHER = IdHasher(bytes(16))


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the second table: values of one unit, measured one after the other."""

    title: str
    unit: str
    values: list[float] = field(default_factory=list)


async def starts(bench: Bench, workload: Workload) -> list[Figure]:
    """From nothing to the first question to the source: nothing to read back."""
    empty = Figure("start of a relay, empty window", "ms")
    aborting = Figure("start of a relay, another's transaction open", "ms")
    platform = workload.on_new_platform()
    async with bench.topic(platform) as topic:
        for number in range(STARTS):
            connector_id = f"{platform}-{number}"
            run = await _start(bench, connector_id, platform)
            empty.values.append(1000 * run.start_seconds)
            dead = AIOKafkaProducer(
                **bench.settings.kafka.client_options(),
                transactional_id=f"verity.{connector_id}",
            )
            await dead.start()
            await dead.begin_transaction()
            await dead.send_and_wait(topic, b"never visible")
            run = await _start(bench, connector_id, platform)
            aborting.values.append(1000 * run.start_seconds)
            await dead.stop()
    return [empty, aborting]


async def _start(bench: Bench, connector_id: str, platform: str) -> RelayRun:
    connector = memory(())
    run = RelayRun(bench, connector, connector_id, platform)
    async with run.running():
        await connector.is_asked.wait()
    return run


async def latency(bench: Bench, workload: Workload) -> list[Figure]:
    """From the source's handing out of one event until its checkpoint is in Postgres."""
    events = workload.first(PAGES_OF_ONE)
    platform = events.on_new_platform()
    async with bench.topic(platform):
        connector = LiveConnector({"events": events.events})
        run = RelayRun(bench, connector, platform, platform)
        async with run.running():
            async with asyncio.timeout(60):
                await connector.is_exhausted.wait()
        taken = [
            1000 * (end - start)
            for start, end in zip(connector.handed_out_at, run.store.persisted_at, strict=True)
        ]
    return [Figure("a page of one event, source to Postgres", "ms", taken)]


async def read_back(bench: Bench, workload: Workload) -> list[Figure]:
    """The start of a relay that has a million ids to read back from the topic."""
    platform = workload.on_new_platform()
    rounds = -(-WINDOW_IDS // len(workload.events))
    async with bench.topic(platform):
        first = RelayRun(bench, memory(_Numbered(workload, rounds)), platform, platform, 300)
        async with first.running():
            await first.until_done()
        figure = Figure(f"start of a relay, {rounds * len(workload.events):,} ids to read", "s")
        rate = Figure("… ids read back", "thousand/s")
        for _ in range(3):
            run = await _start(bench, platform, platform)
            assert run.status.seen_count == rounds * len(workload.events)
            figure.values.append(run.start_seconds)
            rate.values.append(rounds * len(workload.events) / run.start_seconds / 1000)
    return [figure, rate]


class _Numbered:
    """The workload again and again, each time with new ids, without a million objects."""

    def __init__(self, workload: Workload, rounds: int) -> None:
        self._workload, self._rounds = workload, rounds

    def __iter__(self) -> Iterator[Any]:
        for number in range(self._rounds):
            for event in self._workload.events:
                fresh = type(event)(**vars(event))
                fresh.event_id = f"{number}:{event.event_id}"
                yield fresh


async def seen_window(_: Bench, __: Workload) -> list[Figure]:
    """Memory of the window at its bound, and what a page costs there, by the page's size."""
    figures = []
    for size in (2000, 1):
        gc.collect()
        tracemalloc.start()
        window = SeenWindow(WINDOW_IDS)
        for number in range(WINDOW_IDS // size):
            _remember(window, number, size)
        megabytes = tracemalloc.get_traced_memory()[0] / 1e6
        tracemalloc.stop()
        figures.append(
            Figure(f"seen window, 1,000,000 ids in pages of {size:,}: memory", "MB", [megabytes])
        )
        first = WINDOW_IDS // size
        per_page = [_page_ms(window, number, size) for number in range(first, first + 20)]
        figures.append(Figure("… bookkeeping of one more page", "ms", per_page))
    return figures


def _remember(window: SeenWindow, number: int, size: int) -> None:
    hashes = hashes_of(HASHER.hash("t", b"%d:%d" % (number, place)) for place in range(size))
    at = FIRST_AT + number * timedelta(milliseconds=size)
    window.claim(hashes)
    window.remember(hashes, [at] * size, at)
    window.forget_before(FIRST_AT)
    window.changes()
    window.seen()


def _page_ms(window: SeenWindow, number: int, size: int) -> float:
    start = time.perf_counter()
    _remember(window, number, size)
    return 1000 * (time.perf_counter() - start)


EXTRAS = {
    "starts": starts,
    "latency": latency,
    "read-back": read_back,
    "seen-window": seen_window,
}
