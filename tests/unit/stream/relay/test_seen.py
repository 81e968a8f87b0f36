"""The seen window against a naive model, and the log of ids that it is read back from."""

from __future__ import annotations

from array import array
from datetime import UTC, datetime, timedelta
from itertools import compress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from verity_stream.records import Seen
from verity_stream.relay.ids import hashes_of
from verity_stream.relay.seen_window import GONE_MAX, SHARED_IDS_MAX, SHARED_SPAN, SeenWindow

START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 6, 1, tzinfo=UTC)
FAR = datetime.max.replace(tzinfo=UTC)
SPAN = int(SHARED_SPAN.total_seconds())


def at(second: int) -> datetime:
    return START + timedelta(seconds=second)


def claimed(window: SeenWindow, *ids: int) -> array[int]:
    return hashes_of(compress(ids, window.claim(ids)))


def published(window: SeenWindow, ids: list[int], *times: datetime, now: datetime = NOW) -> int:
    """What the relay does with a page: claim its ids and remember them. One time counts for all."""
    each = list(times) * len(ids) if len(times) == 1 else list(times)
    return window.remember(claimed(window, *ids), each, now)


class Log:
    """The topic, compacted."""

    def __init__(self) -> None:
        self.slots: dict[int, tuple[datetime, array[int]]] = {}

    def take(self, window: SeenWindow) -> Seen:
        """What a page writes; returns what its checkpoint says."""
        written, gone = window.changes()
        for slot in written:
            self.slots[slot.number] = (slot.newest_at, slot.hashes[:])
        for number in gone:
            self.slots.pop(number, None)
        return window.seen()

    def restored(self, window: SeenWindow, seen: Seen | None, begin: datetime) -> SeenWindow:
        """A start; the window is a fresh one."""
        for number in window.expect(seen, self.slots):
            newest_at, hashes = self.slots[number]
            window.restore(number, newest_at, hashes[:])
        if seen is not None:
            assert window.seen().count >= seen.count, "a false alarm: nothing is lost"
        window.forget_before(begin)
        return window


def test_repeats_in_the_window_and_within_a_page_are_dropped_in_order() -> None:
    window = SeenWindow(100)
    published(window, [2], at(1))
    assert list(claimed(window, 1, 2, 1, 3)) == [1, 3]


def test_a_page_may_be_claimed_before_the_one_before_it_is_out() -> None:
    """Its repeats are dropped though nothing is remembered yet; and then both are."""
    window = SeenWindow(100)
    first = claimed(window, 1, 2)
    second = claimed(window, 2, 3, 4, 4, 1)
    assert (list(first), list(second)) == ([1, 2], [3, 4])
    window.remember(first, [at(1), at(1)], NOW)
    window.remember(second, [at(1 + SPAN + 1), at(2)], NOW)
    window.forget_before(at(2))
    assert [one in window for one in (1, 2, 3, 4)] == [False, False, True, True]


def test_a_page_is_kept_while_one_of_its_events_may_come_again() -> None:
    window = SeenWindow(100)
    published(window, [1, 2], at(3), at(10))
    window.forget_before(at(10))
    assert 1 in window
    window.forget_before(at(11))
    assert 1 not in window


def test_pages_of_one_slot_are_kept_as_long_as_the_newest_of_them() -> None:
    """Also where the log says how long."""
    log, window = Log(), SeenWindow(100)
    published(window, [1], at(1))
    log.take(window)
    published(window, [2], at(30))
    seen = log.take(window)
    assert len(log.slots) == 1
    window.forget_before(at(30))
    assert 2 in window, "what is asked for from then on may bring it again"
    assert 2 in log.restored(SeenWindow(100), seen, at(30))
    window.forget_before(at(31))
    assert len(window) == 0, "it is not kept for ever for having been looked at too early"


def test_an_event_dated_far_ahead_pins_only_itself() -> None:
    """Neither the rest of its page, nor the pages around it, nor what is a little ahead."""
    window = SeenWindow(100)
    now = at(100)
    published(window, [1, 2, 3, 4], at(90), FAR, at(3700), at(95), now=now)
    published(window, [5], at(96), now=now)
    window.forget_before(at(97))
    assert [one in window for one in range(1, 6)] == [False, True, True, False, False]
    window.forget_before(at(3701))
    assert [one in window for one in range(1, 6)] == [False, True, False, False, False]


def test_an_event_dated_far_ahead_does_not_hold_back_what_is_read_back() -> None:
    """However often the relay restarts."""
    log, window = Log(), SeenWindow(100)
    published(window, [1, 2], FAR, at(0), now=at(0))
    seen = log.take(window)
    for number in range(3, 40):
        window = log.restored(SeenWindow(100), seen, at(0))
        published(window, [number], at(100 * number), now=at(100 * number))
        window.forget_before(at(100 * number - 50))
        seen = log.take(window)
        assert len(window) == 2
        assert len(log.slots) == 2
        assert seen.count == 2


def test_at_the_bound_the_oldest_goes_and_is_counted() -> None:
    window = SeenWindow(3)
    assert published(window, [1, 2], at(1)) == 0
    assert published(window, [3, 4], at(100)) == 2
    assert [1 in window, 3 in window, len(window)] == [False, True, 2]


def test_at_the_bound_no_more_is_forgotten_than_has_to_be() -> None:
    window = SeenWindow(5)
    for number in range(1, 6):
        assert published(window, [number], at(number * 2 * SPAN)) == 0
    assert published(window, [6, 7, 8], at(20 * SPAN)) == 3
    assert [number in window for number in range(1, 9)] == [False] * 3 + [True] * 5
    # What is gone already holds nothing back.
    window.forget_before(at(19 * SPAN))
    assert [number in window for number in range(1, 9)] == [False] * 5 + [True] * 3


def test_the_newest_page_is_never_forgotten_whatever_its_size() -> None:
    window = SeenWindow(1, slot_ids_max=2)
    assert published(window, [1, 2, 3, 4, 5], at(1)) == 0
    assert len(window) == 5


def test_small_pages_share_a_slot_and_a_large_one_is_cut() -> None:
    window, log = SeenWindow(1000, slot_ids_max=100), Log()
    for number in range(1, 11):
        published(window, [number], at(number))
        log.take(window)
    assert [len(hashes) for _, hashes in log.slots.values()] == [10]
    published(window, list(range(11, 300)), at(20))
    log.take(window)
    assert [len(hashes) for _, hashes in log.slots.values()] == [100, 100, 99]
    published(window, [300], at(21))
    log.take(window)
    assert [len(hashes) for _, hashes in log.slots.values()] == [100, 100, 99, 1]


def test_no_slot_is_longer_than_a_record_may_be() -> None:
    """Though small pages would fill it up further."""
    window, log = SeenWindow(1000, slot_ids_max=4), Log()
    for number in range(10):
        published(window, [2 * number + 1, 2 * number + 2], at(number))
        log.take(window)
    assert [len(hashes) for _, hashes in log.slots.values()] == [4, 4, 4, 4, 4]


def test_what_is_written_again_is_bounded() -> None:
    """However long small pages come, and whatever is between them."""
    window = SeenWindow(100_000)
    for number in range(1, 3000):
        published(window, [number], at(number // 100))
        written, _ = window.changes()
        assert sum(len(slot.hashes) for slot in written) <= SHARED_IDS_MAX


def test_pages_far_apart_share_no_slot() -> None:
    """They are forgotten together, so they may not be of different hours."""
    window = SeenWindow(100)
    for number in range(5):
        published(window, [number + 1], at(SPAN // 2 * number))
    window.forget_before(at(SPAN // 2 * 2 + 1))
    assert [number + 1 in window for number in range(5)] == [False, False, False, True, True]


def test_after_an_edit_nothing_is_remembered_and_the_log_is_emptied_bit_by_bit() -> None:
    window, log = SeenWindow(10_000), Log()
    count = 2 * GONE_MAX + 5
    for number in range(1, count + 1):
        published(window, [number], at(number * 2 * SPAN))
        seen = log.take(window)
    assert (seen.count, len(log.slots)) == (count, count)
    window.forget_all()
    seen = log.take(window)
    assert seen == Seen(count + 1, 0)
    assert len(log.slots) == count - GONE_MAX
    # A start before the rest has left does not bring it back.
    window = log.restored(SeenWindow(10_000), seen, START)
    assert len(window) == 0
    published(window, [1], at(1))
    for _ in range(2):
        log.take(window)
    assert [list(hashes) for _, hashes in log.slots.values()] == [[1]]


def test_an_edit_in_the_database_forgets_what_the_log_has() -> None:
    """The trigger sets `seen` to NULL; the log's slots are of before."""
    window, log = SeenWindow(100), Log()
    published(window, [1], at(1))
    log.take(window)
    window = log.restored(SeenWindow(100), None, START)
    assert 1 not in window
    published(window, [1], at(1))
    log.take(window)
    assert list(log.slots) == [2], "the number is not used again while the log has it"


def test_what_was_never_written_leaves_no_tombstone() -> None:
    window = SeenWindow(100)
    published(window, [1], at(1))
    window.forget_before(at(2))
    assert window.changes() == ([], [])


@pytest.mark.parametrize("understood", [(), (3,), (3, 4)])
def test_what_is_of_no_use_leaves_the_log_and_takes_nothing_else_along(
    understood: tuple[int, ...],
) -> None:
    """As slots of another key: no new slot may have the number of one that is to leave."""
    log, window = Log(), SeenWindow(100)
    for number in range(1, 6):
        published(window, [number], at(number * 2 * SPAN))
    log.take(window)
    window.forget_before(at(5 * SPAN))
    seen = log.take(window)
    assert (seen, list(log.slots)) == (Seen(3, 3), [3, 4, 5])
    window = SeenWindow(100)
    for number in window.expect(seen, log.slots):
        if number in understood:
            window.restore(number, *log.slots[number])
        else:
            window.drop(number)
    for number in (6, 7, 8):
        published(window, [number], at(number * 2 * SPAN))
        seen = log.take(window)
    known = [*understood, 6, 7, 8]
    assert sorted(one for _, hashes in log.slots.values() for one in hashes) == known
    window = log.restored(SeenWindow(100), seen, START)
    assert [number for number in range(1, 9) if number in window] == known


@given(st.lists(st.integers(1, 2**64 - 1), max_size=20, unique=True))
def test_what_was_read_back_is_known(ids: list[int]) -> None:
    window, log = SeenWindow(1000), Log()
    published(window, ids, at(5))
    seen = log.take(window)
    window = log.restored(SeenWindow(1000), seen, START)
    assert list(claimed(window, *ids)) == []
    assert window.seen() == seen
    assert window.changes() == ([], [])


def test_what_the_log_has_lost_is_missing() -> None:
    window, log = SeenWindow(1000), Log()
    published(window, [1, 2], at(5))
    published(window, [3], at(5 + 2 * SPAN))
    seen = log.take(window)
    del log.slots[2]
    with pytest.raises(AssertionError, match="a false alarm"):
        log.restored(SeenWindow(1000), seen, START)


class WindowMachine(RuleBasedStateMachine):
    """Any sequence of pages, ahead of the present among them, of forgetting, edits and restarts."""

    def __init__(self) -> None:
        super().__init__()
        self.bound = 12
        self.window = SeenWindow(self.bound, slot_ids_max=4)
        self.log = Log()
        self.seen: Seen | None = None
        self.begin = START
        self.now = at(400)
        self.remembered: dict[int, datetime] = {}
        self.next = 1

    @rule(
        times=st.lists(st.integers(0, 500) | st.sampled_from([4000, 10**6, 10**9]), max_size=6),
        repeats=st.integers(0, 3),
        letters=st.integers(0, 2),
    )
    def page(self, times: list[int], repeats: int, letters: int) -> None:
        again = [one for one, when in self.remembered.items() if when >= self.begin][:repeats]
        fresh = list(range(self.next, self.next + len(times) + letters))
        self.next += len(fresh)
        hashes = claimed(self.window, *again, *fresh, *fresh)
        assert list(hashes) == fresh
        occurred = [at(one) for one in times] + [self.now] * letters
        before = len(self.window) - len(fresh)
        forgotten = self.window.remember(hashes, occurred, self.now)
        self.window.forget_before(self.begin)
        self.seen = self.log.take(self.window)
        self.remembered |= dict(zip(fresh, occurred, strict=True))
        if forgotten:
            assert before + len(fresh) > self.bound
            # Which ones is said elsewhere; the page's own are among the kept, if they are young.
            assert all(
                one in self.window
                for one, when in zip(fresh, occurred, strict=False)
                if when >= self.begin
            )
            self.remembered = {
                one: when for one, when in self.remembered.items() if one in self.window
            }

    @rule(second=st.integers(0, 700))
    def move(self, second: int) -> None:
        self.begin = max(self.begin, at(second))
        self.now = max(self.now, self.begin)
        self.page([], 0, 0)

    @rule()
    def edit(self) -> None:
        self.window.forget_all()
        self.remembered = {}
        self.seen = self.log.take(self.window)

    @rule()
    def restart(self) -> None:
        before = {one for one in range(1, self.next) if one in self.window}
        self.window = self.log.restored(
            SeenWindow(self.bound, slot_ids_max=4), self.seen, self.begin
        )
        assert {one for one in range(1, self.next) if one in self.window} == before

    @rule()
    def restart_after_an_edit_in_the_database(self) -> None:
        self.window = self.log.restored(SeenWindow(self.bound, slot_ids_max=4), None, self.begin)
        self.remembered = {}
        self.seen = None
        assert len(self.window) == 0

    @invariant()
    def what_may_come_again_is_remembered(self) -> None:
        for one, when in self.remembered.items():
            assert one in self.window or when < self.begin

    @invariant()
    def what_is_passed_is_forgotten(self) -> None:
        for one, when in self.remembered.items():
            # A page's newest may be a minute ahead, and two pages share a slot within a minute.
            ahead = when > self.now + SHARED_SPAN
            if not ahead and self.begin > max(at(500), self.now) + 2 * SHARED_SPAN:
                assert one not in self.window

    @invariant()
    def the_log_has_what_is_remembered(self) -> None:
        assert self.window.seen().count == len(self.window)
        if self.seen is not None:
            assert sum(len(hashes) for _, hashes in self.log.slots.values()) == len(self.window)


TestWindow = WindowMachine.TestCase
