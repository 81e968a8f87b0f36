"""`make simulate`: runs worlds, replays one, shrinks what fails, looks for planted bugs.

python -m simulation                    the corpus, and what CI runs: worlds of fixed seeds
python -m simulation --seeds 20000      fresh worlds, from --first on
python -m simulation --seed 42          one world again, with its trace
python -m simulation --plan FILE        one of the corpus, or any plan
python -m simulation --seed 42 --shrink the smallest plan that fails in the same way
python -m simulation --plants all       which seed finds which planted bug
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from simulation.corpus import entries, entry_of, read
from simulation.fleet import worked
from simulation.plan import Plan, draw
from simulation.plants import PLANTS, planted
from simulation.shrink import shrunk
from simulation.world import Outcome, install, run

SMALL, FULL = 3000, 300
"""What CI runs, from seed 0 on."""
PLANT_SEEDS = 2000


def main(arguments: list[str]) -> int:
    """The exit code: 0 where no promise was broken."""
    parser = argparse.ArgumentParser(prog="simulation")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--plan", type=Path)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--size", choices=["small", "full"], default="full")
    parser.add_argument("--plant", default="none", choices=["none", *PLANTS])
    parser.add_argument("--plants", help="`all`, or names with commas between")
    parser.add_argument("--shrink", action="store_true")
    parser.add_argument("--steps", action="store_true", help="every step in the trace")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args(arguments)
    if given.plan is not None:
        entry = read(given.plan)
        return one_world(entry.seed, entry.plan, given)
    if given.seed is not None:
        return one_world(given.seed, draw(given.seed, given.size), given)
    if given.plants is not None:
        names = list(PLANTS) if given.plants == "all" else given.plants.split(",")
        return table(names, given.size, given.processes)
    if given.seeds is not None:
        seeds = range(given.first, given.first + given.seeds)
        return many_worlds(seeds, given.size, given.plant, given.processes)
    return (
        corpus()
        | many_worlds(range(SMALL), "small", "none", given.processes)
        | many_worlds(range(FULL), "full", "none", given.processes)
    )


# One world


def one_world(seed: int, plan: Plan, given: argparse.Namespace) -> int:
    """Run it with its trace; `--shrink` looks for the smallest plan."""
    install()
    with planted(given.plant):
        if given.shrink:
            plan, runs = shrunk(seed, plan)
            say(f"after {runs} runs:")
        outcome = run(seed, plan, trace=True)
    if given.shrink:
        say(json.dumps(entry_of(outcome, plan, given.plant), indent=1))
    else:
        for line in outcome.trace or ():
            if given.steps or " step " not in line:
                say(line)
    say(
        described(outcome, given.size, given.plant)
        if outcome.violation
        else f"seed {seed}: nothing is broken"
    )
    say(f"{outcome.steps} steps, {outcome.seconds:.1f} virtual s, trace {outcome.digest}")
    return 1 if outcome.violation else 0


def described(outcome: Outcome, size: str = "full", plant: str = "none") -> str:
    """What was broken, and how to see it again."""
    how = f"make simulate SEED={outcome.seed}"
    if size != "full":
        how += f" SIZE={size}"
    if plant != "none":
        how += f" PLANT={plant}"
    return (
        f"seed {outcome.seed}: {outcome.violation}\n"
        f"    Python {platform.python_version()}, trace {outcome.digest}; again: {how}"
    )


# Many worlds


def many_worlds(seeds: range, size: str, plant: str, processes: int) -> int:
    """Run them all, and say what was broken."""
    began, failures, steps, count, cpu_seconds = time.monotonic(), 0, 0, 0, 0.0
    for chunk in worked(seeds, size, plant, processes):
        for outcome in chunk.failed:
            say(described(outcome, size, plant))
        failures, count = failures + len(chunk.failed), count + chunk.count
        steps, cpu_seconds = steps + chunk.steps, cpu_seconds + chunk.cpu_seconds
    say(
        f"{count} {size} worlds from seed {seeds.start}: {failures} failed; "
        f"{steps / max(count, 1):.0f} steps each, {count / cpu_seconds:.1f} a CPU second, "
        f"{time.monotonic() - began:.0f} s"
    )
    return 1 if failures else 0


def corpus() -> int:
    """Every plan that failed once, as the product is now."""
    install()
    failures = count = 0
    for entry in entries():
        outcome, count = run(entry.seed, entry.plan), count + 1
        if outcome.violation:
            failures += 1
            say(f"{entry.name}: {outcome.violation} (trace {outcome.digest})")
    say(f"{count} plans of the corpus: {failures} failed")
    return 1 if failures else 0


def table(names: Iterable[str], size: str, processes: int) -> int:
    """For each planted bug the first seed that finds it; 1 where one is not found."""
    is_missed = False
    for name in names:
        found: Outcome | None = None
        seeds = range(PLANT_SEEDS)
        with closing(worked(seeds, size, name, processes, is_first_enough=True)) as chunks:
            for chunk in chunks:
                if chunk.failed:
                    found = chunk.failed[0]
                    break
        is_missed |= found is None
        what = "not found" if found is None else f"{found.seed}: {found.violation[:90]}"
        say(f"{PLANTS[name].number:3} {name}: {what}")
    return 1 if is_missed else 0


def say(text: Any) -> None:
    """To whoever runs it."""
    print(text, flush=True)  # noqa: T201 - a command's output


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
