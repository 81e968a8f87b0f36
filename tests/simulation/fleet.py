"""Many worlds in several processes.

A module of its own: a process that is spawned imports what it runs, and can't import a `__main__`.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass

from simulation.plants import planted
from simulation.world import Outcome, install, run

RUNS_A_PROCESS = 2000
"""After so many a process is renewed: what Python never gives back stays bounded."""
CHUNK = 20
AHEAD = 2


@dataclass(frozen=True)
class Chunk:
    """Some seeds that were run.

    Attributes:
        failed: The worlds that broke a promise.
    """

    failed: list[Outcome]
    count: int
    steps: int
    cpu_seconds: float


def _work(seeds: range, size: str, plant: str, is_first_enough: bool) -> Chunk:
    install()
    began, steps, count = time.process_time(), 0, 0
    failed: list[Outcome] = []
    with planted(plant):
        for seed in seeds:
            outcome = run(seed, size=size)
            steps, count = steps + outcome.steps, count + 1
            if outcome.violation:
                failed.append(outcome)
                if is_first_enough:
                    break
    return Chunk(failed, count, steps, time.process_time() - began)


def worked(
    seeds: range, size: str, plant: str, processes: int, *, is_first_enough: bool = False
) -> Generator[Chunk, None, None]:
    """The chunks of these seeds, in order; close it to leave out the rest."""
    chunks = deque(seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK))
    working: deque[Future[Chunk]] = deque()
    # Spawned: what one process has imported and cached is not the others'.
    with ProcessPoolExecutor(
        processes,
        multiprocessing.get_context("spawn"),
        max_tasks_per_child=RUNS_A_PROCESS // CHUNK,
    ) as pool:
        try:
            while chunks or working:
                while chunks and len(working) < processes * AHEAD:
                    job = (chunks.popleft(), size, plant, is_first_enough)
                    working.append(pool.submit(_work, *job))
                yield working.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
