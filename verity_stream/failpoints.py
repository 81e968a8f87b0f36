"""Places in the relay where a test can make the process die, freeze or wait.

Off unless `VERITY_FAILPOINTS` is set, and then for tests only: it names points, what to do
there, and at which passage, as in `after_commit=kill@3,before_persist=stop@1`. A point that is
not named costs one look into an empty dict a page.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

VARIABLE = "VERITY_FAILPOINTS"

START_POINTS = ("after_claim", "after_fence", "after_read_back", "after_ids_read")
"""Passed once a life, before the first page."""

POINTS = (
    *START_POINTS,
    "before_fetch",
    "after_fetch",
    "after_begin",
    "after_publish",
    "before_commit",
    "after_commit",
    "before_persist",
    "after_persist",
)

ACTIONS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    # Blocks the whole process, as a long pause of its machine would.
    "block": lambda: time.sleep(5),
}


@dataclass(slots=True)
class _Failpoint:
    action: str
    passages_left: int


def _parse(text: str) -> dict[str, _Failpoint]:
    """Read the variable; a mistake in it is an error at once, or a test would test nothing."""
    armed = {}
    for part in filter(None, text.split(",")):
        name, _, rest = part.partition("=")
        action, _, passage = rest.partition("@")
        if name not in POINTS or action not in ACTIONS:
            raise ValueError(f"{VARIABLE}: {part!r} is no failpoint")
        armed[name] = _Failpoint(action, int(passage or 1))
    return armed


_armed = _parse(os.environ.get(VARIABLE, ""))


def passing(name: str) -> None:
    """Called where the relay passes the point of this name."""
    point = _armed.get(name)
    if point is not None:
        point.passages_left -= 1
        if point.passages_left == 0:
            ACTIONS[point.action]()
