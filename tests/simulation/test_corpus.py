"""The simulator's own promises: what failed once does not, and one seed decides everything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from simulation.corpus import entries
from simulation.plan import Plan
from simulation.world import Outcome, run

ROOT = Path(__file__).parents[2]
REPLAYED = range(20)

HASHES = """
import sys
from simulation.world import install, run
install()
for seed in map(int, sys.argv[1:]):
    print(run(seed, size="small").digest)
"""


def simulated(seed: int, plan: Plan | None = None, size: str = "small") -> Outcome:
    """A run in this process, whose logs stay as they are."""
    from simulation import world

    with structlog.testing.capture_logs(processors=[world._capture]):
        return run(seed, plan, size=size)


def in_another_process(seeds: range) -> list[str]:
    """The trace hashes, from a process that has run nothing else."""
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HASHES, *map(str, seeds)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=True,
    )
    return found.stdout.split()


@pytest.mark.parametrize(
    ("seed", "plan"), [pytest.param(seed, plan, id=path.stem) for path, seed, plan in entries()]
)
def test_what_failed_once_does_not_fail(seed: int, plan: Plan) -> None:
    assert simulated(seed, plan).violation == ""


def test_one_seed_decides_everything_in_any_process() -> None:
    """Under whatever hash seed, and whatever has run before."""
    first = in_another_process(REPLAYED)
    assert len(first) == len(REPLAYED)
    assert in_another_process(REPLAYED) == first
    assert in_another_process(REPLAYED[-3:]) == first[-3:]
    assert len(set(first)) == len(first)
