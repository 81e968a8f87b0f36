"""The seen window: which event ids were published lately, so that none is published twice.

Sources repeat events: windows overlap, pages are asked for again, late events make a
connector look back. The window remembers the ids of published events that may still come
again, that is those since `watermark − lookback`, as 64-bit hashes in the order of their
pages. The raw topic is its only store: every checkpoint says from which offsets the ids
have to be read back at the next start.

Two ids with the same hash would lose an event: with a million ids remembered, once in 10^13
events. Python's string hash is seeded anew in every process, so nobody can aim at it.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from verity_stream.records import Offsets, Seen

PAGES_EXACT = 1000
"""Beyond so many pages small ones are kept as one: each costs memory and, at every page, time."""

MERGED_IDS_MAX = 4096
MERGED_SPAN = timedelta(minutes=1)
"""Pages kept as one hold at most so many ids, and of this span: they are forgotten together."""


Place = tuple[str, int]
"""A topic's partition."""


@dataclass(slots=True)
class _PageIds:
    hashes: array[int]
    newest_at: datetime
    start: dict[Place, int]
    first_at: datetime


class SeenWindow:
    """The ids of one connector's published events, page by page, bounded.

    Args:
        ids_max: At the bound the oldest page is forgotten early, which the caller must report:
            from then on a repeat can pass.
    """

    def __init__(self, ids_max: int) -> None:
        self._ids_max = ids_max
        self._hashes: set[int] = set()
        self._pages: deque[_PageIds] = deque()
        # Page after page a partition's offsets ascend: the first page that has some of it has the
        # least. So dropping a page need not look at all others.
        self._first: dict[Place, int] = {}
        self._last: dict[Place, int] = {}

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, identity: str) -> bool:
        return hash(identity) in self._hashes

    def claim(self, identity: str) -> bool:
        """Whether an id was not known; it is from now on: the next page may be filled before
        this one is out.

        The caller publishes and remembers what it claimed, or throws the window away.
        """
        hashed = hash(identity)
        if hashed in self._hashes:
            return False
        self._hashes.add(hashed)
        return True

    def remember(self, ids: Sequence[str], newest_at: datetime, offsets: Offsets) -> int:
        """Take in a published page; returns how many ids had to be forgotten early.

        Args:
            ids: Of the page's events and dead letters, as they were claimed.
            newest_at: None of them occurred after this.
            offsets: What the page took in the topics of events and dead letters.
        """
        if not ids:
            return 0
        start = {
            (topic, partition): first
            for topic, taken in offsets.items()
            for partition, (first, _) in taken.items()
        }
        return self._add(array("q", map(hash, ids)), newest_at, start)

    def restore(self, ids: Iterable[str], seen: Seen) -> int:
        """Take in ids read back from the topics, list by list; returns how many were forgotten."""
        hashes = array("q", map(hash, ids))
        self._hashes.update(hashes)
        start = {
            (topic, partition): first
            for topic, taken in seen.start.items()
            for partition, first in taken.items()
        }
        return self._add(hashes, seen.newest_at, start)

    def _add(self, hashes: array[int], newest_at: datetime, start: dict[Place, int]) -> int:
        for place, offset in start.items():
            if offset < self._last.get(place, offset):
                self._begin_again(place, offset)
            self._first.setdefault(place, offset)
            self._last[place] = offset
        self._append(hashes, newest_at, start)
        forgotten = 0
        while len(self._hashes) > self._ids_max and len(self._pages) > 1:
            oldest = self._pages.popleft()
            self._forget([oldest])
            forgotten += len(oldest.hashes)
        return forgotten

    def _begin_again(self, place: Place, offset: int) -> None:
        """The topic was made anew: what was published before is not behind its offsets any more."""
        for page in self._pages:
            if place in page.start:
                page.start[place] = min(page.start[place], offset)
        if place in self._first:
            self._first[place] = min(self._first[place], offset)

    def _append(self, hashes: array[int], newest_at: datetime, start: dict[Place, int]) -> None:
        """Take in a page, together with the one before where both are small and near in time."""
        last = self._pages[-1] if self._pages else None
        if (
            last is None
            or len(self._pages) < PAGES_EXACT
            or len(last.hashes) + len(hashes) > MERGED_IDS_MAX
            or abs(newest_at - last.first_at) > MERGED_SPAN
        ):
            self._pages.append(_PageIds(hashes, newest_at, start, newest_at))
            return
        last.hashes.extend(hashes)
        last.newest_at = max(last.newest_at, newest_at)
        last.start = start | last.start

    def forget_before(self, at: datetime) -> None:
        """Forget the pages all of whose events occurred before `at`."""
        # Any of them, not only the oldest: one event dated far ahead must not hold back the rest.
        gone = [page for page in self._pages if page.newest_at < at]
        if gone:
            self._pages = deque(page for page in self._pages if page.newest_at >= at)
            self._forget(gone)

    def forget_all(self) -> None:
        """Forget everything: an operator asked for a replay."""
        self._hashes.clear()
        self._pages.clear()
        self._first.clear()
        self._last.clear()

    def _forget(self, gone: Sequence[_PageIds]) -> None:
        """Drop what is left of pages that were taken out."""
        for page in gone:
            self._hashes.difference_update(page.hashes)
        for place in {place for page in gone for place in page.start}:
            firsts = (page.start[place] for page in self._pages if place in page.start)
            first = next(firsts, None)
            if first is None:
                del self._first[place]
            else:
                self._first[place] = first

    def seen(self) -> Seen | None:
        """What a checkpoint has to say so that the window can be read back; None where empty."""
        if not self._pages:
            return None
        start: dict[str, dict[int, int]] = {}
        for (topic, partition), first in self._first.items():
            start.setdefault(topic, {})[partition] = first
        return Seen(start, max(page.newest_at for page in self._pages))
