"""Which worker gets which partitions: as even in connectors as can be, and little moves; pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

NOBODY: Mapping[str, Collection[int]] = {}

EVEN_ENOUGH = 0.2
"""Workers whose numbers of connectors differ by less than this share of the mean are even."""


def kept(
    owned: Mapping[str, Collection[int]], before: Mapping[str, Collection[int]]
) -> dict[str, set[int]]:
    """The same numbers of partitions, exchanged so that fewer have left a worker that had them.

    Where the numbers don't divide evenly Faust takes a partition from a worker and gives it another
    for it.

    Args:
        owned: Who is to have which partitions.
        before: Who had them; workers that are gone, and new ones, are missing.
    """
    result = {worker: set(partitions) for worker, partitions in owned.items()}
    homes = {one: worker for worker, partitions in before.items() for one in partitions}
    for worker in sorted(result):
        for one in sorted(result[worker]):
            home = homes.get(one)
            if home is None or home == worker or home not in result:
                continue
            strangers = result[home].difference(before[home])
            if strangers:
                # At best one that comes home itself, or else nobody's, which has to move anyway.
                other = min(
                    strangers, key=lambda it: (homes.get(it) != worker, homes.get(it) in result, it)
                )
                result[worker] ^= {one, other}
                result[home] ^= {one, other}
    return result


def balanced(
    owned: Mapping[str, Collection[int]],
    weights: Mapping[int, int],
    before: Mapping[str, Collection[int]] = NOBODY,
) -> dict[str, set[int]]:
    """The same partitions, swapped between workers until each has about as many connectors.

    A consumer group shares partitions evenly, but ids are hashed: of 60 connectors in 24 partitions
    one of three workers often gets 30. Partitions are swapped one against one, so that each
    worker keeps their number, and no more than needed, so that most stay where they were.

    Args:
        owned: Who has which partitions.
        weights: How many connectors a partition has; 0 where it is missing.
        before: Who had them before: of two that weigh the same, one that moves anyway is swapped.
    """
    result = {worker: set(partitions) for worker, partitions in owned.items()}
    loads = {
        worker: sum(weights.get(partition, 0) for partition in partitions)
        for worker, partitions in result.items()
    }
    mean = sum(loads.values()) / max(1, len(loads))
    # Every swap makes the sum of squares smaller, so this ends; the bound is for the reader.
    for _ in range(sum(map(len, result.values()))):
        order = sorted(loads, key=lambda worker: (loads[worker], worker))
        if not order or loads[order[-1]] - loads[order[0]] <= max(1, EVEN_ENOUGH * mean):
            break
        pairs = [(order[-1], worker) for worker in order[:-1]]
        pairs += [(worker, order[0]) for worker in order[1:-1]]
        found = max(
            (_best_swap(result, loads, weights, before, *pair) for pair in pairs), default=None
        )
        if found is None or found[0] <= 0:
            break
        _, moved, given, taken = found
        heavy = next(worker for worker in order if given in result[worker])
        light = next(worker for worker in order if taken in result[worker])
        result[heavy] ^= {given, taken}
        result[light] ^= {given, taken}
        loads[heavy] -= moved
        loads[light] += moved
    return result


def _best_swap(
    owned: Mapping[str, set[int]],
    loads: Mapping[str, int],
    weights: Mapping[int, int],
    before: Mapping[str, Collection[int]],
    heavy: str,
    light: str,
) -> tuple[int, int, int, int]:
    """How much the best swap between two evens them, its weight, and the two partitions."""
    excess = loads[heavy] - loads[light]
    best = (0, 0, -1, -1)

    def one_of_each_weight(worker: str) -> dict[int, int]:
        """The last of each weight, and those come last that were not here before."""
        had = before.get(worker, ())
        order = sorted(owned[worker], key=lambda one: (one not in had, one))
        return {weights.get(partition, 0): partition for partition in order}

    # One partition of each weight is enough to look at: there are few weights.
    gives, takes = one_of_each_weight(heavy), one_of_each_weight(light)
    for given_weight, given in gives.items():
        for taken_weight, taken in takes.items():
            moved = given_weight - taken_weight
            best = max(best, (moved * (excess - moved), moved, given, taken))
    return best
