"""What happens in a world: drawn from its seed, as a plain dict that JSON holds.

A plan is all there is to a world but its random streams, which the seed gives, too. A shrinker
makes a plan smaller, and the corpus keeps plans: a change here changes what a seed means.
"""

from __future__ import annotations

from random import Random
from typing import Any

Plan = dict[str, Any]

ACTS = {
    "kill": 30,
    "terminate": 8,
    "freeze": 20,
    "database_away": 8,
    "database_lost": 4,
    "row_locked": 4,
    "edit": 6,
    "restore": 4,
    "broker_away": 8,
    "coordinator_moved": 3,
    "leader_moved": 3,
    "checkpoints_deleted": 2,
    "raw_deleted": 2,
    "clock_step": 2,
    "pause": 4,
    "restart": 3,
    "rewind": 4,
    "snapshot": 4,
    "rebalance": 10,
}
"""What may befall a world, and how often against each other."""

TAKE_OVERS = {
    "starter_frozen": 4,
    "crossed": 4,
    "crash_edit": 4,
    "stopped_in_hand": 3,
    "restart_unsure": 3,
}
"""What needs several things at one moment, which would hardly ever meet by themselves."""
ALONE = {"crash_edit": 1, "stopped_in_hand": 1}
"""Those that one worker can meet."""
MORE_ACTS = {
    "cleaned": 8,
    "cursor_edit": 4,
    "restored_and_edited": 4,
    "forward_rewind": 4,
    "forbidden": 4,
    "size_limited": 4,
}
"""The same, drawn beside the others: a kind that comes here leaves every other seed as it was."""


def draw(seed: int, size: str = "full") -> Plan:
    """The plan of a seed.

    Args:
        size: `small` worlds have one connector, one worker, few items and at most one act.
    """
    rng = Random(f"{seed}:plan")
    is_small = size == "small"
    is_default = rng.random() < 0.5
    page_wait = 0.25 if is_default else _log(rng, 0.01, 1)
    kinds = {kind: share for kind, share in ACTS.items() if rng.random() < 0.5}
    acts = [_act(rng, kinds) for _ in range(rng.choice((0, 1, 1, 2, 3, 5)))] if kinds else []
    connectors = [
        _connector(rng, page_wait, is_default=is_default, is_small=is_small)
        for _ in range(rng.choice((1, 1, 1, 1, 1, 1, 2, 2, 2, rng.choice((3, 4, 5)))))
    ]
    plan: Plan = {
        "policy": rng.choice(("fifo", "fifo", "random", "priorities")),
        "step_seconds": rng.choice((0.0, 0.00002, 0.001, 0.005)),
        "stall_share": rng.choice((0.0, 0.0, 0.01)),
        "workers": rng.choice((1, 2, 2, 3)),
        "connectors": connectors,
        # Nothing here: as people run it.
        "settings": {} if is_default else _settings(rng, page_wait),
        "poll_every": None if is_default else _log(rng, 0.2, 10),
        "kafka": {
            "seconds": _log(rng, 0.001, 0.1),
            "slow_share": rng.choice((0.0, 0.0, 0.02)),
            "lost_share": rng.choice((0.0, 0.0, 0.01)),
        },
        "postgres": {
            "seconds": _log(rng, 0.001, 0.1),
            "slow_share": rng.choice((0.0, 0.0, 0.02)),
            "lost_share": rng.choice((0.0, 0.0, 0.01)),
        },
        "acts": acts,
    }
    if is_small:
        plan |= {"workers": 1, "connectors": connectors[:1], "acts": acts[:1]}
    _add_take_over(Random(f"{seed}:take-over"), plan, is_small=is_small)
    for number, one in enumerate(plan["connectors"]):
        _add_outage(Random(f"{seed}:outage:{number}"), one)
    _add_more(seed, plan, is_small=is_small)
    return plan


def _add_take_over(rng: Random, plan: Plan, *, is_small: bool) -> None:
    """From a stream of its own, as all that was added later: the rest of a seed stays as it was."""
    kinds = TAKE_OVERS if plan["workers"] > 1 else ALONE
    if plan["settings"].get("delivery") == "at_least_once":
        kinds = kinds | {"stopped_in_hand": 10}  # There it counts.
    act = _act(rng, kinds)
    # Longer than a session, most often.
    act["seconds"] = _log(rng, 5, 40)
    if rng.random() < 0.2 and not (is_small and plan["acts"]):
        plan["acts"].append(act)


def _add_outage(rng: Random, connector: Plan) -> None:
    """The source fails for so long, from then on."""
    outage = [rng.choice((1.0, 20.0)) * rng.random(), _log(rng, 5, 60)]
    if rng.random() < 0.1:
        connector["outage"] = outage


def _add_more(seed: int, plan: Plan, *, is_small: bool) -> None:
    """What was added later: drawn from streams of its own, so that the rest keeps its meaning."""
    rng = Random(f"{seed}:more")
    has_act = rng.random() < 0.25
    act = _act(rng, MORE_ACTS)
    if has_act and not (is_small and plan["acts"]):
        plan["acts"].append(act)
    # A broker that creates topics by itself was asked for them before we came.
    shape = rng.choice((1, 3, 50))
    plan["made_before"] = shape if rng.random() < 0.05 else None
    if plan["settings"] and not is_small:
        first, share = plan["connectors"][0], rng.random()
        if share < 0.06:
            # So many records an answer, and what it takes: reading back many small pages is long,
            # and goes on steadily.
            plan["reading"] = [2, _log(rng, 0.5, 3)]
            plan["settings"] |= {"page_events": 2, "transaction_timeout": 10.0}
            first["items"] = max(150, first["items"])
            plan["acts"].append(_act(rng, {"kill": 1}) | {"at": 15 + 10 * rng.random()})
        elif share < 0.12:
            # Without transactions nothing fences a worker that wakes up in the middle of a page.
            plan["settings"] |= {"delivery": "at_least_once"}
            plan["workers"] = max(2, plan["workers"])
            first |= {"backlog": 0.0, "spread": 12.0, "items": max(60, first["items"])}
            plan["acts"].append(_act(rng, {"zombie": 1}))
        elif share < 0.25 and len(plan["connectors"]) > 1:
            # One connector's transaction stays open before what another has committed.
            plan["settings"] |= {"checkpoint_partitions": 1, "page_events": 10}
            plan["kafka"]["slow_share"] = 0.05
            plan["acts"].append(_act(rng, {"crash_behind_open": 1}) | {"at": 0.0})
    for number, connector in enumerate(plan["connectors"]):
        _add_more_of(Random(f"{seed}:more:{number}"), connector)
        twins = Random(f"{seed}:twins:{number}")
        if twins.random() < 0.1:
            connector["twins"] = twins.randrange(2**32)
    _add_power_cut(Random(f"{seed}:power"), plan, is_small=is_small)
    unheard = Random(f"{seed}:unheard")
    if unheard.random() < 0.1 and plan["workers"] > 1:
        plan["acts"].append(_act(unheard, {"woken_unheard": 1}))


def _add_power_cut(rng: Random, plan: Plan, *, is_small: bool) -> None:
    act = _act(rng, {"end_lost": 1})
    if rng.random() > 0.05 or (is_small and plan["acts"]):
        return
    plan["acts"].append(act)
    if rng.random() < 0.7:  # With pages before it and after it.
        first = plan["connectors"][0]
        first |= {"page": max(1, first["items"] // 20), "waits": [0.3]}
        act["at"] = 4 * rng.random()


def _add_more_of(rng: Random, connector: Plan) -> None:
    kind = connector["kind"]
    if kind == "plain":
        connector["order"] = rng.choice(("ascending",) * 6 + ("arrival", "descending"))
        if rng.random() < 0.1:  # A pass that takes longer than what is left of the lookback.
            connector |= {
                "has_future": True,
                "late_share": 0.3,
                "late": 0.9,
                "lookback": 5.0,
                "backlog": 0.5,
                "page": max(1, connector["items"] // 20),
                "waits": [0.0, _log(rng, 0.2, 2)],
            }
    elif kind == "windowed" and rng.random() < 0.3:
        # Later than a pass reads again: only the lookback finds it.
        connector |= {
            "late_by": _log(rng, 5, 100),
            "late_share": 0.3,
            "lookback_every": _log(rng, 10, 60),
        }


def _log(rng: Random, low: float, high: float) -> float:
    """Small as often as large."""
    return float(low * (high / low) ** rng.random())


def _settings(rng: Random, page_wait: float) -> Plan:
    return {
        "page_events": int(_log(rng, 1, 300)) if rng.random() < 0.5 else int(_log(rng, 25, 8000)),
        "page_wait": page_wait,
        "checkpoint_partitions": int(_log(rng, 1, 24)),
        "fetch_timeout": rng.choice((300.0, 15.0)),
        "transaction_timeout": rng.choice((60.0, 60.0, 10.0)),
        "delivery": "at_least_once" if rng.random() < 0.3 else "exactly_once",
    }


def _act(rng: Random, kinds: dict[str, int]) -> Plan:
    return {
        "kind": rng.choices(list(kinds), list(kinds.values()))[0],
        # Half of them within the first second: that is where the work is.
        "at": rng.choice((1.0, 20.0)) * rng.random(),
        "steps": int(_log(rng, 1, 500)),
        "seconds": _log(rng, 0.1, 60),
        "who": rng.randrange(60),
        "share": rng.random(),
    }


def _connector(rng: Random, page_wait: float, *, is_default: bool, is_small: bool) -> Plan:
    kind = rng.choice(("plain", "plain", "paged", "paged", "paged", "windowed", "http"))
    overlap = rng.choice((0, 0, 3, 40)) if kind in ("paged", "http") else 0
    near = page_wait * (1 + rng.choice((-0.02, -0.001, 0.0, 0.001, 0.02)))
    # Whoever repeats must say how far back: two hours are more than there is.
    lookback = rng.choice((5.0, 60.0, 7200.0))
    if kind == "plain" and (is_default or rng.random() < 0.3):
        lookback = None
    items = int(_log(rng, 5, 60 if is_small else 800))
    if not is_small and rng.random() < 0.005:
        items = 8000
    plan: Plan = {
        "kind": kind,
        "items": items,
        "page": int(_log(rng, 1, 25)) if rng.random() < 0.5 else int(_log(rng, 25, 300)),
        "overlap": overlap,
        "lookback": 7200.0 if overlap else lookback,
        "backlog": rng.choice((0.0, 0.5, 1.0)),
        "spread": _log(rng, 1, 30),
        # Bursts around page_wait: there a page is handed over while the next one comes.
        "waits": rng.choice(
            ([0.0], [0.0, _log(rng, 0.0001, 0.5)], [0.0, 0.0, near], [near], [0.0, near, 2 * near])
        ),
        "error_share": rng.choice((0.0, 0.0, 0.02)),
        "odd_share": rng.choice((0.0, 0.05)),
        "reuses_cursor": rng.random() < 0.3,
        "is_strict": rng.random() < 0.3,
        "is_whole": rng.random() < 0.3,
        "late_share": rng.choice((0.0, 0.0, 0.3)),
        "late": rng.random() * 0.9,  # as a share of what is declared
        "has_future": rng.random() < 0.2,
        "grants": rng.choice((0, 3, 60)),
        "denied_share": rng.choice((0.0, 0.0, 0.3)),
        "hangs": rng.random() < 0.03,
        "leaks": rng.random() < 0.05,
    }
    if kind == "windowed":
        plan["settle"] = rng.choice((0.0, 2.0, 10.0))
        plan["relook"] = rng.choice((0.0, 5.0, 60.0))
        plan["slice_max"] = _log(rng, 300, 7200)
        plan["refused_above"] = rng.choice((None, None, max(20, items // 4)))
        plan["lookback"] = 7200.0
    return plan
