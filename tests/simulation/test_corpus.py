"""The simulator's own promises: what failed once does not, and one seed decides everything."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import structlog

from simulation.corpus import entries
from simulation.plan import Plan
from simulation.world import install, run

ROOT = Path(__file__).parents[2]
REPLAYED = 20

HASHES = """
import sys
from simulation.world import install, run
install()
for seed in map(int, sys.argv[1:]):
    print(seed, run(seed, size="small").digest)
"""


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process of worlds, for as long as one test."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = structlog.get_config()
    install()
    yield
    gc.enable()
    gc.collect()
    logging.disable(logging.NOTSET)
    structlog.configure(**before)


def started(seeds: Iterable[int]) -> subprocess.Popen[str]:
    """A process that prints the hashes of these worlds."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HASHES, *map(str, seeds)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("seed", "plan"), [pytest.param(seed, plan, id=path.stem) for path, seed, plan in entries()]
)
@pytest.mark.usefixtures("installed")
def test_what_failed_once_does_not_fail(seed: int, plan: Plan) -> None:
    assert run(seed, plan).violation == ""


@pytest.mark.timeout(600)
def test_one_seed_decides_everything_in_any_process() -> None:
    """Under whatever hash seed, and whatever has run before."""
    seeds = range(REPLAYED)
    processes = [started(seeds), started(reversed(seeds))]
    there, back = (one.communicate(timeout=500)[0].splitlines() for one in processes)
    assert len({line.split()[1] for line in there}) == REPLAYED
    assert there == list(reversed(back))
