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

from simulation.corpus import Entry, entries
from simulation.plants import planted
from simulation.shrink import kind_of
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
    gc.unfreeze()
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


@pytest.mark.parametrize("entry", list(entries()), ids=lambda entry: entry.name)
@pytest.mark.usefixtures("installed")
def test_what_failed_once_does_not_fail(entry: Entry) -> None:
    assert run(entry.seed, entry.plan).violation == ""


@pytest.mark.parametrize(
    "entry", [one for one in entries() if one.plant != "none"], ids=lambda entry: entry.name
)
@pytest.mark.usefixtures("installed")
def test_what_a_planted_bug_broke_it_breaks_again(entry: Entry) -> None:
    with planted(entry.plant):
        found = run(entry.seed, entry.plan).violation
    assert kind_of(found) == kind_of(entry.was)


@pytest.mark.timeout(600)
def test_one_seed_decides_everything_in_any_process() -> None:
    """Under whatever hash seed, and whatever has run before."""
    seeds = range(REPLAYED)
    processes = [started(seeds), started(reversed(seeds))]
    there, back = (one.communicate(timeout=500)[0].splitlines() for one in processes)
    assert len({line.split()[1] for line in there}) == REPLAYED
    assert there == list(reversed(back))
