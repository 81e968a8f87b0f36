"""Which planted bugs are found, and after how many seeds: `python -m simulation.table [SEEDS]`."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterable

from simulation.plants import PLANTS, Stale, planted
from simulation.world import install, run

SEEDS = 2000


def seeds_needed(name: str, seeds: Iterable[int]) -> tuple[int, str] | None:
    """The first of these seeds whose world finds a plant, and what it says; None if none does.

    Raises:
        Stale: What the plant replaces has gone.
    """
    with planted(name):
        for seed in seeds:
            outcome = run(seed)
            if outcome.violation:
                return seed, outcome.violation
            if seed % 20 == 19:
                gc.collect()
    return None


def main(count: int, names: Iterable[str]) -> int:
    """Print the table; how many were not found."""
    missed = 0
    print("| # | planted | breaks | found at seed | what was said |")
    print("| ---: | --- | --- | ---: | --- |")
    for name in names:
        one, began = PLANTS[name], time.process_time()
        try:
            found = seeds_needed(name, range(count))
        except Stale as stale:
            found, said = None, f"stale: {stale}"
        else:
            said = f"not in {count} seeds" if found is None else found[1].split("\n")[0][:90]
        missed += found is None
        where = "-" if found is None else str(found[0])
        seconds = time.process_time() - began
        print(f"| {one.number} | {name} | {one.breaks} | {where} | {said} |", flush=True)
        print(f"{name}: {seconds:.0f} CPU s", file=sys.stderr, flush=True)
    return missed


if __name__ == "__main__":
    install()
    chosen = sys.argv[2:] or sorted(PLANTS, key=lambda name: (PLANTS[name].number, name))
    sys.exit(bool(main(int(sys.argv[1]) if sys.argv[1:] else SEEDS, chosen)))
