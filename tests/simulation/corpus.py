"""Plans that failed once, as JSON: `corpus/<name>.json`.

A plan and not only a seed: a change of the generator changes what a seed means. One with a `plant`
failed with that bug planted, and must do so again: a simulator that has gone blind finds nothing.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from simulation.plan import Plan
from simulation.world import Outcome

FOLDER = Path(__file__).with_name("corpus")


class Entry(NamedTuple):
    """A file of the corpus.

    Attributes:
        was: What was broken.
        plant: The planted bug that broke it; `none` where it was the product's own.
    """

    name: str
    was: str
    seed: int
    plan: Plan
    plant: str


def read(path: Path) -> Entry:
    """One file."""
    found = json.loads(path.read_text("utf-8"))
    plant = found.get("plant", "none")
    return Entry(path.stem, found["was"], found["seed"], found["plan"], plant)


def entries() -> Iterator[Entry]:
    """Every file, in order."""
    for path in sorted(FOLDER.glob("*.json")):
        yield read(path)


def entry_of(outcome: Outcome, plan: Plan, plant: str) -> dict[str, Any]:
    """What a file holds."""
    return {
        "was": outcome.violation,
        **({} if plant == "none" else {"plant": plant}),
        "python": platform.python_version(),
        "seed": outcome.seed,
        "plan": plan,
    }
