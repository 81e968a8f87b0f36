"""Does the topic prove that each event is there once, each in a page; pure."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from verity_stream.records import CheckpointRecord, Kind, Partition

SAMPLES_MAX = 10
"""How many repeats, orphans or wrong pages are named; all are counted."""
Delivery = Literal["exactly_once", "at_least_once"]


@dataclass(frozen=True, slots=True)
class Proof:
    """What the topics prove about one connector.

    Attributes:
        event_count: The connector's events that were read.
        page_count: Checkpoint records whose counts were held against the topics.
        from_version: The oldest of them; None where there is none.
        replayed_count: Repeats that an edit asked for.
        faults: What contradicts "each event once, each in a page".
        notes: What could not be proven, and why.
    """

    event_count: int
    page_count: int
    from_version: int | None
    replayed_count: int
    faults: tuple[str, ...]
    notes: tuple[str, ...]


class Continuity:
    """Holds one connector's checkpoint records against its events, one event at a time.

    Memory grows with the events, about 100 bytes each: their ids have to be compared.

    Args:
        records: The connector's checkpoint records, in the order of the topic.
        edits: The versions that edits took, as far as the audit knows them.
        bounds: The offsets of each partition that can be read: from the first, up to the last.
        delivery: With `at_least_once` a crash may leave repeats and events without a page:
            they are counted, and are no faults.
    """

    def __init__(
        self,
        records: Sequence[CheckpointRecord],
        edits: Collection[int],
        bounds: Mapping[Partition, tuple[int, int]],
        delivery: Delivery = "exactly_once",
    ) -> None:
        self._records = list(records)
        self._bounds = bounds
        self._is_exact = delivery == "exactly_once"
        self._faults: list[str] = []
        self._notes: list[str] = []
        self._versions = [record.version for record in self._records]
        self._check_ascent()
        known = {record.version for record in self._records}
        # An edit takes a version, and the record that publishes it the next one.
        positions = {record.version - 1 for record in self._records if record.is_position}
        self._edits = sorted({*edits, *(positions - known)})
        self._accounted = sorted(known | set(self._edits))
        self._intervals: dict[Partition, tuple[list[int], list[int], list[int]]] = {}
        self._provable = self._place_pages()
        self._found: dict[int, dict[Kind, int]] = defaultdict(lambda: defaultdict(int))
        self._parts: set[tuple[int, int]] = set()
        self._seen: dict[int, int] = {}
        self._event_count = self._replayed_count = self._unproven_count = 0
        self._orphans: list[str] = []
        self._orphan_count = 0
        self._repeats: list[str] = []
        self._repeat_count = 0

    def _check_ascent(self) -> None:
        falling = [
            f"{after} after {before}"
            for before, after in zip(self._versions, self._versions[1:], strict=False)
            if after <= before
        ]
        if falling:
            # Without transactions a relay that was replaced may write its last record late.
            where = self._faults if self._is_exact else self._notes
            where.append(f"versions do not ascend: {_sample(falling, len(falling))}")

    def _place_pages(self) -> dict[int, CheckpointRecord]:
        """Which offsets belong to which page; returns the pages whose counts can be checked."""
        provable: dict[int, CheckpointRecord] = {}
        expired = recreated = unknown = newer = 0
        spans: dict[Partition, list[tuple[int, int, int]]] = defaultdict(list)
        floors: dict[Partition, int] = {}
        for record in sorted(self._records, key=lambda one: one.version, reverse=True):
            is_whole = True
            for place, (first, last) in record.ranges.items():
                start, end = self._bounds.get(place, (0, 0))
                if first < 0:
                    # Acknowledged as a duplicate, whose offset the broker had forgotten.
                    unknown += 1
                    is_whole = False
                    continue
                if last >= floors.get(place, last + 1):
                    # A later page stands lower: the topic was deleted and made anew.
                    recreated += 1
                    is_whole = False
                    continue
                floors[place] = first
                spans[place].append((first, last, record.version))
                if first < start:
                    expired += 1
                    is_whole = False
                elif last >= end:
                    newer += 1
                    is_whole = False
            if is_whole:
                provable[record.version] = record
        for place, pages in spans.items():
            pages.sort()
            firsts, lasts, versions = zip(*pages, strict=True)
            self._intervals[place] = (list(firsts), list(lasts), list(versions))
        for count, why in (
            (expired, "reach back beyond what the topics retain"),
            (recreated, "lie in a topic that was deleted since"),
            (unknown, "have offsets that the broker did not tell"),
            (newer, "were published while this was read"),
        ):
            if count:
                self._notes.append(f"{count} ranges of checkpoint records {why}")
        return provable

    def take(self, place: Partition, offset: int, kind: Kind, identity: bytes) -> None:
        """Take in one committed record of the connector; those of a partition come in order."""
        low, high = self._versions_at(place, offset)
        is_placed = low == high
        if is_placed:
            hashed = hash(identity)
            if kind != "dead" or (low, hashed) not in self._parts:
                self._found[low][kind] += 1
            if kind == "dead":
                self._parts.add((low, hashed))  # A long dead letter has several records.
        elif self._is_accounted(low, high):
            self._orphan_count += 1
            if len(self._orphans) < SAMPLES_MAX:
                self._orphans.append(f"{place[0]}[{place[1]}]@{offset} {_text(identity)}")
        else:
            self._unproven_count += 1
        if kind != "event":
            return
        self._event_count += 1
        hashed = hash(identity)
        earlier = self._seen.get(hashed)
        self._seen[hashed] = high if earlier is None else max(high, earlier)
        if earlier is None:
            return
        if self._is_edited_between(min(earlier, low), max(earlier, high)):
            self._replayed_count += 1
            return
        self._repeat_count += 1
        if len(self._repeats) < SAMPLES_MAX:
            self._repeats.append(_text(identity))

    def _versions_at(self, place: Partition, offset: int) -> tuple[int, int]:
        """The page of an offset as twice its version, or the pages before and after it."""
        firsts, lasts, versions = self._intervals.get(place, ([], [], []))
        index = bisect_right(firsts, offset) - 1
        if index >= 0 and offset <= lasts[index]:
            return versions[index], versions[index]
        before = versions[index] if index >= 0 else 0
        newest = self._accounted[-1] if self._accounted else 0
        after = versions[index + 1] if index + 1 < len(versions) else newest + 1
        return before, after

    def _is_accounted(self, low: int, high: int) -> bool:
        """Whether every version between the two is known, so that none may have been compacted."""
        if not self._records:
            return False
        between = bisect_right(self._accounted, high - 1) - bisect_right(self._accounted, low)
        return between == high - low - 1

    def _is_edited_between(self, low: int, high: int) -> bool:
        """Whether an edit lies between two pages; a page in flight shares its version."""
        index = bisect_right(self._edits, low - 1)
        return index < len(self._edits) and self._edits[index] < high

    def finish(self) -> Proof:
        """What was proven; call it once, after the last event."""
        faults, notes = list(self._faults), list(self._notes)
        wrong = []
        for version, record in self._provable.items():
            found = self._found.get(version, {})
            wrong += [
                f"version {version} says {kind}s: {said}, the topics hold {found.get(kind, 0)}"
                for kind, said in record.counts.items()
                if found.get(kind, 0) != said
            ]
        if wrong:
            faults.append(f"counts differ: {_sample(wrong, len(wrong))}")
        of_crashes = faults if self._is_exact else notes
        if self._orphan_count:
            text = _sample(self._orphans, self._orphan_count)
            of_crashes.append(f"{self._orphan_count} records belong to no page: {text}")
        if self._repeat_count:
            text = _sample(self._repeats, self._repeat_count)
            of_crashes.append(f"{self._repeat_count} events repeat the id of another: {text}")
        if self._unproven_count:
            notes.append(
                f"{self._unproven_count} records stand outside of the pages that the compacted "
                "topic still has"
            )
        missing = self._missing_count()
        if missing:
            notes.append(f"{missing} checkpoint records are gone, as compaction removes them")
        return Proof(
            self._event_count,
            len(self._provable),
            min(self._provable, default=None),
            self._replayed_count,
            tuple(faults),
            tuple(notes),
        )

    def _missing_count(self) -> int:
        if not self._records:
            return 0
        newest = self._accounted[-1]
        return newest - len([version for version in self._accounted if version > 0])


def _sample(things: Sequence[str], count: int) -> str:
    shown = "; ".join(things[:SAMPLES_MAX])
    return f"{shown}; …" if count > SAMPLES_MAX else shown


def _text(identity: bytes) -> str:
    return identity.decode("utf-8", "replace")[:200]
