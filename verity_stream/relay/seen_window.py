"""The seen window: which event ids were published lately, so that none is published twice.

Sources repeat events: windows overlap, pages are asked for again, late events make a
connector look back. The window remembers the ids of published events that may still come
again, that is those since `watermark − lookback`, as 64-bit hashes.

They are kept in numbered *slots*, which are also what stands in the log of ids: a page's ids
are a slot, small pages share one, and a slot leaves when the window has passed all of it. The log
is the window's only store, whatever becomes of the raw topics: a page's slots are written in the
page's own transaction, and a start reads them back as they were.
"""

from __future__ import annotations

import heapq
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from verity_stream.records import Seen
from verity_stream.relay.ids import IdTable, hashes_of

SHARED_IDS_MAX = 64
"""A slot with fewer ids takes in the next page, and is written again: at most so many for nothing.
Without, a connector of small pages would have a slot, some 400 bytes, for every id."""

SHARED_SPAN = timedelta(minutes=1)
"""Pages share a slot only this far: they are forgotten together."""

SLOT_IDS_MAX = 16_384
"""128 KB: more are cut into several slots. No record is longer than a batch."""

GONE_MAX = 256
"""So many slots are taken out of the log with a page: an edit may leave thousands."""


@dataclass(slots=True)
class Slot:
    """Ids that are kept, and forgotten, together.

    Attributes:
        number: Ascends; a later page's is higher.
        newest_at: None of their events occurred after this.
        first_at: `newest_at` of the page that opened it.
        is_in_log: Whether it was written, so that it has to be taken out of the log.
    """

    number: int
    hashes: array[int]
    newest_at: datetime
    first_at: datetime
    is_in_log: bool = False


class Changes(NamedTuple):
    """What a page has to write to the log of ids."""

    written: list[Slot]
    gone: list[int]


class SeenWindow:
    """The ids of one connector's published events, slot by slot, bounded.

    Args:
        ids_max: At the bound the oldest slot is forgotten early, which the caller must report:
            from then on a repeat can pass.
        slot_ids_max: The most that a record of the log holds.
    """

    def __init__(self, ids_max: int, slot_ids_max: int = SLOT_IDS_MAX) -> None:
        self._ids_max = ids_max
        self._slot_ids_max = slot_ids_max
        self._table = IdTable()
        self._slots: dict[int, Slot] = {}
        # The numbers in order. A dict from whose front much is removed takes long to find its
        # first entry; here what is gone leaves once it stands in front.
        self._order: deque[int] = deque()
        self._due: list[tuple[datetime, int]] = []
        self._next = 1
        self._count = 0
        # How far ahead of the present its events are → the slot that takes in more of them.
        self._shared: dict[int, int] = {}
        self._unwritten: set[int] = set()
        self._gone: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, hashed: int) -> bool:
        return hashed in self._table

    def claim(self, hashes: Iterable[int]) -> list[bool]:
        """Which ids were not known, in order; all are from now on: the next page may be filled
        before this one is out.

        The caller publishes and remembers what it claimed, or throws the window away.
        """
        return self._table.add(hashes)

    def remember(self, hashes: Sequence[int], times: Sequence[datetime], now: datetime) -> int:
        """Take in the ids of a page that is about to be published, as they were claimed.

        Args:
            hashes: Of the page's events and dead letters.
            times: Up to when each of them may come again, the time it occurred at the earliest.
            now: Events that are dated far beyond it have slots of their own, so that they hold
                back no others.

        Returns:
            How many ids had to be forgotten early.
        """
        taken: set[int] = set()
        for ahead, newest_at, group in _by_lead(hashes, times, now):
            taken |= self._take(group, newest_at, ahead)
        return self._shrink(taken)

    def _take(self, hashes: Sequence[int], newest_at: datetime, ahead: int) -> set[int]:
        """Put ids into the slot that is shared, or into new ones; returns their numbers."""
        taken: set[int] = set()
        shared = self._slots.get(self._shared.get(ahead, 0))
        begin = 0
        if (
            shared is not None
            and len(shared.hashes) < SHARED_IDS_MAX
            and abs(newest_at - shared.first_at) <= SHARED_SPAN
        ):
            begin = max(0, min(len(hashes), self._slot_ids_max - len(shared.hashes)))
            shared.hashes.extend(hashes[:begin])
            shared.newest_at = max(shared.newest_at, newest_at)
            self._count += begin
            taken.add(shared.number)
        for start in range(begin, len(hashes), self._slot_ids_max):
            self._shared[ahead] = self._next
            taken.add(self._next)
            part = hashes_of(hashes[start : start + self._slot_ids_max])
            self._append(Slot(self._next, part, newest_at, newest_at))
        self._unwritten |= taken
        return taken

    def _append(self, slot: Slot) -> None:
        self._slots[slot.number] = slot
        self._order.append(slot.number)
        heapq.heappush(self._due, (slot.newest_at, slot.number))
        self._count += len(slot.hashes)
        self._next = slot.number + 1

    def _shrink(self, taken: set[int]) -> int:
        """Forget the oldest slots above the bound, but none that the page is in."""
        forgotten = 0
        if self._count > self._ids_max:
            for number in self._order:
                if number in self._slots and number not in taken:
                    forgotten += len(self._slots[number].hashes)
                    self._forget(number)
                if self._count <= self._ids_max:
                    break
        return forgotten

    def expect(self, seen: Seen | None, found: Iterable[int]) -> list[int]:
        """Prepare for a restore, before anything is claimed.

        Args:
            seen: What the checkpoint says; None where nothing is to be remembered.
            found: The numbers of the slots in the log.

        Returns:
            The slots to restore, in order; the others leave the log with the next pages.
        """
        found = sorted(found)
        begin = found[-1] + 1 if found else 1
        live: list[int] = []
        if seen is not None:
            begin = max(begin, seen.slots_from)
            live = [number for number in found if number >= seen.slots_from]
            self._table.reserve(seen.count)
        self._next = begin
        self._gone.extend(found[: len(found) - len(live)])
        return live

    def drop(self, number: int) -> None:
        """A slot of the log is of no use; it leaves with the next pages."""
        self._gone.append(number)

    def restore(self, number: int, newest_at: datetime, hashes: array[int]) -> None:
        """Take in a slot as it stands in the log; in order of their numbers."""
        self._table.add(hashes)
        after = self._next
        self._append(Slot(number, hashes, newest_at, newest_at, is_in_log=True))
        self._next = max(after, self._next)
        self._shared[0] = number

    def forget_before(self, at: datetime) -> None:
        """Forget the slots all of whose events occurred before `at`, wherever they stand."""
        while self._due and self._due[0][0] < at:
            _, number = heapq.heappop(self._due)
            slot = self._slots.get(number)
            if slot is None:
                continue
            if slot.newest_at < at:
                self._forget(number)
            else:  # It took in more since.
                heapq.heappush(self._due, (slot.newest_at, number))

    def forget_all(self) -> None:
        """Forget everything: an operator asked for a replay."""
        self._gone.extend(number for number in self._order if self._is_in_log(number))
        self._table.clear()
        self._slots.clear()
        self._order.clear()
        self._due.clear()
        self._shared.clear()
        self._unwritten.clear()
        self._count = 0

    def _is_in_log(self, number: int) -> bool:
        slot = self._slots.get(number)
        return slot is not None and slot.is_in_log

    def _forget(self, number: int) -> None:
        slot = self._slots.pop(number)
        self._unwritten.discard(number)
        self._count -= len(slot.hashes)
        for hashed in slot.hashes:
            self._table.discard(hashed)
        if slot.is_in_log:
            self._gone.append(number)

    def _oldest(self) -> int:
        """The least number that is remembered, or the one that the next slot gets."""
        while self._order and self._order[0] not in self._slots:
            self._order.popleft()
        return self._order[0] if self._order else self._next

    def changes(self) -> Changes:
        """What the next page has to write; the caller does, or throws the window away."""
        written = [self._slots[number] for number in sorted(self._unwritten)]
        for slot in written:
            slot.is_in_log = True
        self._unwritten.clear()
        gone = [self._gone.popleft() for _ in range(min(GONE_MAX, len(self._gone)))]
        return Changes(written, gone)

    def seen(self) -> Seen:
        """What a checkpoint has to say so that the window can be read back."""
        return Seen(self._oldest(), self._count)


def _by_lead(
    hashes: Sequence[int], times: Sequence[datetime], now: datetime
) -> Iterator[tuple[int, datetime, Sequence[int]]]:
    """A page's ids by how far their events are dated ahead, nearly always all of them together.

    Twice as far is another group: what is a year ahead holds back nothing of tomorrow.
    """
    if not hashes:
        return
    newest_at = max(times)
    if newest_at - now < SHARED_SPAN:
        yield 0, newest_at, hashes
        return
    groups: dict[int, tuple[list[datetime], list[int]]] = {}
    for hashed, at in zip(hashes, times, strict=True):
        ahead = max(0, (at - now) // SHARED_SPAN).bit_length()
        occurred, group = groups.setdefault(ahead, ([], []))
        occurred.append(at)
        group.append(hashed)
    for ahead, (occurred, group) in sorted(groups.items()):
        yield ahead, max(occurred), group
