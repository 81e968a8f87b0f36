"""What counts as a standstill, and when the process is ended because of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verity_stream.worker.watchdog import (
    Facts,
    MirrorWatch,
    StandstillLimits,
    Watchdog,
    standstills,
    where_main_thread_is,
)

LIMITS = StandstillLimits(standstill=120, mirror=300)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (Facts(), None),
        (Facts(since_tick=120, since_settled=120, since_member=120, since_mirrored=300), None),
        (Facts(since_tick=121), "has not ticked for 121 s"),
        (Facts(since_settled=121), "no assignment is complete since 121 s"),
        (Facts(since_member=121), "left its consumer group 121 s ago"),
        (Facts(since_mirrored=301), "published and not mirrored"),
        (Facts(since_settled=999, is_broker_reachable=False), None),
        (Facts(since_member=999, is_broker_reachable=False), None),
        (Facts(since_mirrored=999, is_broker_reachable=False), None),
        (Facts(since_tick=999, is_broker_reachable=False), "has not ticked"),
    ],
)
def test_what_stands_still_is_said(facts: Facts, said: str | None) -> None:
    found = standstills(facts, LIMITS)
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


# The mirror

steps = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(1, 60)), max_size=20)


@given(steps)
def test_a_mirror_that_moves_or_has_nothing_to_do_never_stands_still(
    given_steps: list[tuple[int, int, int]],
) -> None:
    """Behind by any number of versions, and even for ever, as long as it moves."""
    watch, now, version, held = MirrorWatch(), 0.0, 0, 0
    for published, moved, seconds in given_steps:
        now += seconds
        version += published
        held = min(version, held + max(1, moved))
        assert watch.look({"c": version}, {"c": held}, now) == 0


@given(st.integers(1, 50), st.integers(0, 1000))
def test_a_mirror_that_waits_while_nothing_is_published_proves_nothing(
    seconds: int, more: int
) -> None:
    """Kafka may be away: the last page is committed, and nobody can read it."""
    watch = MirrorWatch()
    watch.look({"c": 5}, {"c": 4}, 0)
    assert watch.look({"c": 5}, {"c": 4}, seconds + more) == 0


def test_a_mirror_that_stands_still_under_new_pages_is_measured_from_where_it_stopped() -> None:
    watch = MirrorWatch()
    for second in range(1, 200):
        found = watch.look({"c": second, "idle": 3}, {"c": 0, "idle": 3}, second)
    assert found == 198
    assert watch.look({"c": 200}, {"c": 1}, 200) == 0, "it moves again"
    assert watch.look({}, {}, 201) == 0, "its partition went to another worker"


def test_one_partition_that_is_stuck_is_seen_beside_others_that_move() -> None:
    watch = MirrorWatch()
    for second in range(100):
        found = watch.look(
            {"stuck": second, "moves": second}, {"stuck": 0, "moves": second - 1}, second
        )
    assert found == 98


# The thread's look


@dataclass
class Bench:
    """A watchdog on a clock of the test's own."""

    now: float = 0.0
    is_reachable: bool = True
    left: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dog = Watchdog(LIMITS, lambda: self.is_reachable, self.left.append, lambda: self.now)

    def run(self, seconds: int, *, ticks: bool = True, **seen: bool) -> None:
        """Time passes; the loop ticks once a second, the thread looks as often as it should."""
        for _ in range(seconds):
            self.now += 1
            if ticks:
                defaults = {"is_settled": True, "is_member": True}
                self.dog.ticked(**{**defaults, **seen}, published={}, mirrored={})
            if self.now % 6 == 0:
                self.dog.look()


def test_a_worker_that_moves_is_left_alone() -> None:
    bench = Bench()
    bench.run(10_000)
    assert bench.left == []
    assert bench.dog.reasons_not_ready() == []


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ({"ticks": False}, "has not ticked"),
        ({"is_settled": False}, "no assignment is complete"),
        ({"is_member": False}, "left its consumer group"),
    ],
)
def test_it_is_unready_first_and_then_ends_with_the_reason(
    fault: dict[str, bool], text: str
) -> None:
    bench = Bench()
    bench.run(500)
    bench.run(59, **fault)
    assert bench.dog.reasons_not_ready() == []
    bench.run(5, **fault)
    assert text in bench.dog.reasons_not_ready()[0]
    assert bench.left == []
    bench.run(54, **fault)
    assert bench.left == []
    bench.run(9, **fault)
    assert text in bench.left[0]


def test_a_standstill_that_ends_counts_from_zero_again() -> None:
    bench = Bench()
    for _ in range(5):
        bench.run(115, is_settled=False)
        bench.run(1)
    assert bench.left == []


def test_while_no_broker_can_be_reached_it_waits_and_then_gives_the_full_time() -> None:
    bench = Bench(is_reachable=False)
    bench.run(2000, is_settled=False, is_member=False)
    assert bench.left == []
    bench.is_reachable = True
    bench.run(114, is_settled=False, is_member=False)
    assert bench.left == [], "there was hardly time to join"
    bench.run(130, is_settled=False, is_member=False)
    assert bench.left


def test_a_loop_that_is_blocked_ends_the_process_also_without_a_broker() -> None:
    bench = Bench(is_reachable=False)
    bench.run(130, ticks=False)
    assert "the main thread is at" in bench.left[0]


def test_a_process_that_was_frozen_as_a_whole_gets_its_time_anew() -> None:
    """SIGSTOP, or a suspended machine: the thread slept as long as the loop did."""
    bench = Bench()
    bench.run(60)
    bench.now += 5000
    bench.dog.look()
    assert bench.left == []
    bench.run(100, ticks=False)
    assert bench.left == []
    bench.run(30, ticks=False)
    assert bench.left


def test_where_the_main_thread_is_names_the_place() -> None:
    assert "test_where_the_main_thread_is_names_the_place" in where_main_thread_is()
