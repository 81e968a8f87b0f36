"""The seen window against a naive model: a list of pages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from verity_stream import seen as seen_module
from verity_stream.records import Offsets, Seen
from verity_stream.seen import SeenWindow

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(second: int) -> datetime:
    return START + timedelta(seconds=second)


def published(window: SeenWindow, ids: list[str], newest_at: datetime, offsets: Offsets) -> int:
    """What the relay does with a page: claim its ids, publish, remember them."""
    for one in ids:
        window.claim(one)
    return window.remember(ids, newest_at, offsets)


def claimed(window: SeenWindow, *ids: str) -> list[str]:
    return [one for one in ids if window.claim(one)]


def test_repeats_in_the_window_and_within_a_page_are_dropped_in_order() -> None:
    window = SeenWindow(100)
    published(window, ["b"], at(1), {"t": {0: (5, 5)}})
    assert claimed(window, "a", "b", "a", "c") == ["a", "c"]


def test_a_page_may_be_claimed_before_the_one_before_it_is_out() -> None:
    """Its repeats are dropped though nothing is remembered yet; and then both are."""
    window = SeenWindow(100)
    assert claimed(window, "a", "b") == ["a", "b"]
    assert claimed(window, "b", "c", "d", "d", "a") == ["c", "d"]
    window.remember(["a", "b"], at(1), {"t": {0: (0, 1)}})
    window.remember(["c", "d"], at(2), {"t": {0: (2, 3)}})
    window.forget_before(at(2))
    assert [one in window for one in "abcd"] == [False, False, True, True]


def test_an_empty_window_says_nothing() -> None:
    window = SeenWindow(100)
    assert window.seen() is None
    assert published(window, [], at(1), {}) == 0
    assert window.seen() is None


def test_a_page_is_kept_while_one_of_its_events_may_come_again() -> None:
    window = SeenWindow(100)
    published(window, ["a"], at(10), {"t": {0: (0, 0)}})
    window.forget_before(at(10))
    assert "a" in window
    window.forget_before(at(11))
    assert "a" not in window


def test_one_page_dated_far_ahead_holds_back_no_other() -> None:
    window = SeenWindow(100)
    published(window, ["far"], datetime.max.replace(tzinfo=UTC), {"t": {0: (0, 0)}})
    published(window, ["a"], at(1), {"t": {0: (1, 1)}})
    window.forget_before(at(2))
    assert ("far" in window, "a" in window, len(window)) == (True, False, 1)


def test_at_the_bound_the_oldest_page_goes_and_is_counted() -> None:
    window = SeenWindow(3)
    assert published(window, ["a", "b"], at(1), {}) == 0
    assert published(window, ["c", "d"], at(2), {}) == 2
    assert ["a" in window, "c" in window, len(window)] == [False, True, 2]


def test_the_newest_page_is_never_forgotten_whatever_its_size() -> None:
    window = SeenWindow(1)
    assert published(window, ["a", "b", "c"], at(1), {}) == 0
    assert len(window) == 3


def test_small_pages_kept_as_one_are_forgotten_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen_module, "PAGES_EXACT", 2)
    window = SeenWindow(100)
    for number in range(5):
        published(window, [str(number)], at(30 * number), {"t": {0: (number, number)}})
    # A minute is the longest span of what is kept as one: 0; 30, 60 and 90; and 120 s.
    window.forget_before(at(90))
    assert [str(number) in window for number in range(5)] == [False, True, True, True, True]
    assert window.seen() == Seen({"t": {0: 1}}, at(120))
    window.forget_before(at(91))
    assert [str(number) in window for number in range(5)] == [False, False, False, False, True]
    assert window.seen() == Seen({"t": {0: 4}}, at(120))


@given(st.lists(st.text(), max_size=20))
def test_what_was_read_back_is_known(ids: list[str]) -> None:
    window = SeenWindow(1000)
    seen = Seen({"t": {0: 4}}, at(5))
    window.restore(ids, seen)
    assert claimed(window, *ids) == []
    assert window.seen() == seen


class WindowMachine(RuleBasedStateMachine):
    """Any sequence of pages over two partitions, forgetting, restarts, and a topic made anew."""

    def __init__(self) -> None:
        super().__init__()
        self.bound = 12
        self.window = SeenWindow(self.bound)
        self.pages: list[tuple[list[str], datetime, dict[int, int]]] = []
        self.logs: tuple[list[str], list[str]] = ([], [])
        self.is_made_anew = False

    @rule(ids=st.lists(st.integers(0, 40).map(str), max_size=6), second=st.integers(0, 30))
    def page(self, ids: list[str], second: int) -> None:
        fresh = claimed(self.window, *ids)
        known = {one for page, _, _ in self.pages for one in page}
        assert fresh == [one for one in dict.fromkeys(ids) if one not in known]
        taken = {}
        for partition, log in enumerate(self.logs):
            first = len(log)
            log += [one for one in fresh if int(one) % 2 == partition]
            if len(log) > first:
                taken[partition] = (first, len(log) - 1)
        forgotten = self.window.remember(fresh, at(second), {"t": taken} if taken else {})
        if fresh:
            starts = {partition: first for partition, (first, _) in taken.items()}
            self.pages.append((fresh, at(second), starts))
        expected = 0
        while sum(len(page) for page, _, _ in self.pages) > self.bound and len(self.pages) > 1:
            expected += len(self.pages.pop(0)[0])
        assert forgotten == expected

    @rule(second=st.integers(0, 30))
    def forget(self, second: int) -> None:
        self.window.forget_before(at(second))
        self.pages = [page for page in self.pages if page[1] >= at(second)]

    @rule()
    def edit(self) -> None:
        self.window.forget_all()
        self.pages = []

    @rule()
    def topic_made_anew(self) -> None:
        self.logs = ([], [])
        self.is_made_anew = True

    @rule()
    def restart(self) -> None:
        """Read back from where the checkpoint says: at least what was remembered and is there."""
        seen = self.window.seen()
        self.window = SeenWindow(self.bound)
        if seen is None:
            assert self.pages == []
            return
        starts = dict(seen.start["t"])
        ids = [one for partition, first in starts.items() for one in self.logs[partition][first:]]
        remembered = {one for page, _, _ in self.pages for one in page}
        assert remembered & {one for log in self.logs for one in log} <= set(ids)
        assert seen.newest_at == max(newest for _, newest, _ in self.pages)
        self.window.restore(ids, seen)
        self.pages = [(ids, seen.newest_at, starts)]

    @invariant()
    def same_as_the_model(self) -> None:
        assert len(self.window) == len({one for page, _, _ in self.pages for one in page})
        assert all(one in self.window for page, _, _ in self.pages for one in page)
        seen = self.window.seen()
        if seen is None:
            assert self.pages == []
            return
        assert seen.newest_at == max(newest for _, newest, _ in self.pages)
        least: dict[int, int] = {}
        for _, _, starts in self.pages:
            for partition, first in starts.items():
                least[partition] = min(first, least.get(partition, first))
        found = seen.start["t"]
        assert found.keys() == least.keys()
        if self.is_made_anew:
            # Never too late; perhaps earlier, which reads back more.
            assert all(found[partition] <= first for partition, first in least.items())
        else:
            assert found == least


TestWindow = WindowMachine.TestCase
