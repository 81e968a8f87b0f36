"""Plans that failed once, as JSON: `corpus/<name>.json`.

A plan and not only a seed: a change of the generator changes what a seed means.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simulation.plan import Plan
from simulation.world import Outcome

FOLDER = Path(__file__).with_name("corpus")


def entries() -> Iterator[tuple[Path, int, Plan]]:
    """Every file with its seed and plan, in order."""
    for path in sorted(FOLDER.glob("*.json")):
        entry = json.loads(path.read_text("utf-8"))
        yield path, entry["seed"], entry["plan"]


def entry_of(outcome: Outcome, plan: Plan) -> dict[str, Any]:
    """What a file holds."""
    return {
        "was": outcome.violation,
        "python": platform.python_version(),
        "seed": outcome.seed,
        "plan": plan,
    }
