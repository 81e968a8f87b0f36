"""Makes a plan that fails smaller: the same seed and kind of violation, less of everything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy

from simulation.plan import Plan
from simulation.world import run

SIMPLEST = {
    "policy": "fifo",
    "stall_share": 0.0,
    "step_seconds": 0.0,
    "poll_every": None,
    "made_before": None,
    "reading": None,
}
SIMPLEST_SOURCE = {
    "overlap": 0,
    "odd_share": 0.0,
    "error_share": 0.0,
    "late_share": 0.0,
    "denied_share": 0.0,
    "grants": 0,
    "has_future": False,
    "hangs": False,
    "leaks": False,
    "is_whole": False,
    "is_strict": False,
    "reuses_cursor": False,
    "waits": [0.0],
    "order": "ascending",
}
LEFT_OUT = ("twins", "late_by", "lookback_every")


def kind_of(violation: str) -> str:
    """What two violations have in common that are the same."""
    return re.sub(r"[\d.]+", "n", violation.split(":")[0])


def smaller(plan: Plan) -> Iterator[Plan]:
    """Every plan that is one step simpler, the largest steps first."""

    def changed(**values: object) -> Plan:
        return deepcopy({**plan, **values})

    for index in range(len(plan["acts"])):
        yield changed(acts=plan["acts"][:index] + plan["acts"][index + 1 :])
    if len(plan["connectors"]) > 1:
        for one in plan["connectors"]:
            yield changed(connectors=[one])
    if plan["workers"] > 1:
        yield changed(workers=plan["workers"] - 1)
    if plan["settings"]:
        yield changed(settings={})
        for name in plan["settings"]:
            yield changed(
                settings={one: plan["settings"][one] for one in plan["settings"] if one != name}
            )
    for name, simple in SIMPLEST.items():
        if plan.get(name) != simple:
            yield changed(**{name: simple})
    for wire in ("kafka", "postgres"):
        for share in ("slow_share", "lost_share"):
            if plan[wire][share]:
                yield changed(**{wire: {**plan[wire], share: 0.0}})
    for index, one in enumerate(plan["connectors"]):
        sources = [{**one, name: one[name] // 2} for name in ("items", "page") if one[name] > 1]
        sources += [
            {**one, name: simple}
            for name, simple in SIMPLEST_SOURCE.items()
            if name in one and one[name] != simple
        ]
        sources += [
            {key: value for key, value in one.items() if key != name}
            for name in LEFT_OUT
            if name in one
        ]
        for source in sources:
            connectors = [*plan["connectors"]]
            connectors[index] = source
            yield changed(connectors=connectors)


def shrunk(seed: int, plan: Plan) -> tuple[Plan, int]:
    """The smallest plan that was found, and how many runs that took."""
    kind, runs = kind_of(run(seed, deepcopy(plan)).violation), 1
    if not kind:
        return plan, runs
    while True:
        for candidate in smaller(plan):
            runs += 1
            if kind_of(run(seed, deepcopy(candidate)).violation) == kind:
                plan = candidate
                break
        else:
            return plan, runs
