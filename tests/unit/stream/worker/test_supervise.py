"""What becomes of a connector, as tables: each row is a fact and what follows from it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verity_sdk.errors import Denied, Fenced, Malformed, Misconfigured, Unavailable
from verity_stream.postgres.controls import Control
from verity_stream.settings import StreamSettings
from verity_stream.status import State
from verity_stream.worker.supervise import (
    FENCED_RETRY,
    RETRY_AFTER_MAX,
    Life,
    Step,
    Wanted,
    after_failure,
    ended,
    next_step,
)

SETTINGS = StreamSettings()
AT = datetime(2026, 1, 1, tzinfo=UTC)
NOW = 100.0

NEW, RESTART = Life(), Life(is_restart_due=True)
WAITS = Life(failures=3, next_start_at=NOW + 1)
RUN = Wanted()
PAUSED, OFF = Wanted(is_paused=True), Wanted(is_enabled=False)
NOT_MINE, HELD = Wanted(is_mine=False), Wanted(may_start=False)
WRONG_SHAPE = Wanted(misshapen="another number of partitions")


@pytest.mark.parametrize(
    ("life", "wanted", "runs", "step"),
    [
        (NEW, RUN, "", Step.START),
        (NEW, RUN, "relay", Step.GO_ON),
        (NEW, RUN, "snapshot", Step.START),
        (WAITS, RUN, "", Step.GO_ON),
        (Life(next_start_at=NOW), RUN, "", Step.START),
        # While it is not known what is owned, or asked for, what runs goes on and nothing starts.
        (NEW, HELD, "", Step.GO_ON),
        (NEW, HELD, "relay", Step.GO_ON),
        (RESTART, HELD, "", Step.GO_ON),
        # A restart is two steps, and ends whatever is waited for.
        (RESTART, RUN, "relay", Step.STOP),
        (RESTART, RUN, "snapshot", Step.STOP),
        (RESTART, RUN, "", Step.START),
        (Life(3, NOW + 1, is_restart_due=True), RUN, "", Step.START),
        *[
            row
            for wanted in (PAUSED, OFF, NOT_MINE, WRONG_SHAPE)
            for row in (
                (NEW, wanted, "relay", Step.STOP),
                (NEW, wanted, "snapshot", Step.STOP),
                (NEW, wanted, "", Step.REST),
                (WAITS, wanted, "", Step.REST),
                (RESTART, wanted, "", Step.REST),
            )
        ],
    ],
)
def test_the_next_step(life: Life, wanted: Wanted, runs: str, step: Step) -> None:
    found, after = next_step(
        life, wanted, NOW, has_relay=runs == "relay", has_snapshot=runs == "snapshot"
    )
    assert found is step
    if life.is_restart_due:
        assert after == Life(), "asked for once, done once"
    elif step is not Step.START:
        assert after == life


@pytest.mark.parametrize(
    ("wanted", "state"),
    [
        (RUN, None),
        (HELD, None),
        (PAUSED, State.PAUSED),
        (OFF, State.STOPPED),
        (NOT_MINE, State.STOPPED),
        (WRONG_SHAPE, State.BLOCKED),
        (Wanted(is_paused=True, is_enabled=False), State.PAUSED),
        (Wanted(is_paused=True, misshapen="x"), State.BLOCKED),
        (Wanted(is_mine=False, misshapen="x", is_paused=True), State.STOPPED),
    ],
)
def test_as_what_it_rests(wanted: Wanted, state: State | None) -> None:
    assert wanted.rest is state


@pytest.mark.parametrize(
    ("before", "after", "is_due"),
    [
        (Control(), Control(), False),
        (Control(), Control(is_paused=True), False),
        (Control(is_paused=True), Control(), True),
        (Control(is_paused=True), Control(is_paused=True), False),
        (Control(), Control(restart_requested_at=AT), True),
        (Control(restart_requested_at=AT), Control(restart_requested_at=AT), False),
        (Control(), Control(snapshot_requested_at=AT), False),
    ],
)
def test_a_restart_is_due_when_asked_for_or_resumed(
    before: Control, after: Control, is_due: bool
) -> None:
    assert WAITS.asked(before, after).is_restart_due is is_due
    assert RESTART.asked(before, after).is_restart_due, "what was asked for stays asked for"


@pytest.mark.parametrize("failures", [0, 1, 5])
def test_progress_makes_a_failure_the_first_one(failures: int) -> None:
    def failures_after(*, made_progress: bool) -> int:
        end = ended(
            Life(failures),
            Unavailable("no"),
            made_progress=made_progress,
            now=NOW,
            settings=SETTINGS,
            jitter=1.0,
        )
        assert end.life.next_start_at == NOW + end.pause.total_seconds()
        return end.life.failures

    assert failures_after(made_progress=True) == 1
    assert failures_after(made_progress=False) == failures + 1


def test_an_assignment_ends_the_wait_of_who_was_fenced_and_of_nobody_else() -> None:
    for error, next_start_at in ((Fenced("taken over"), None), (Unavailable("no"), NOW + 1)):
        end = ended(NEW, error, made_progress=False, now=NOW, settings=SETTINGS, jitter=1.0)
        assert end.life.assigned().next_start_at == next_start_at


def test_what_is_stopped_from_here_waits_for_nothing() -> None:
    asked_meanwhile = Life(3, NOW + 9, is_fenced=True, is_restart_due=True)
    assert asked_meanwhile.stopped() == RESTART


@pytest.mark.parametrize(
    ("error", "state", "delay"),
    [
        (Denied("no"), State.BLOCKED, SETTINGS.blocked_probe),
        (Misconfigured("no"), State.BLOCKED, SETTINGS.blocked_probe),
        (Fenced("no"), State.STOPPED, FENCED_RETRY),
        (Unavailable("no"), State.BACKING_OFF, timedelta(seconds=1)),
        (Malformed("no"), State.BACKING_OFF, timedelta(seconds=1)),
        (ZeroDivisionError(), State.BACKING_OFF, timedelta(seconds=1)),
        (None, State.BACKING_OFF, timedelta(seconds=1)),
    ],
)
def test_each_error_says_who_must_act(
    error: BaseException | None, state: State, delay: timedelta
) -> None:
    assert after_failure(error, 1, SETTINGS, 1.0) == (state, delay)


@given(st.integers(0, 10**9), st.floats(0, 1))
def test_a_backoff_grows_and_has_a_limit(failures: int, jitter: float) -> None:
    _, delay = after_failure(Unavailable("no"), failures, SETTINGS, jitter)
    assert timedelta(0) < delay <= SETTINGS.backoff_max
    _, next_delay = after_failure(Unavailable("no"), failures + 1, SETTINGS, jitter)
    assert next_delay >= delay


@given(st.floats() | st.integers())
def test_no_source_sends_a_connector_to_sleep_for_longer_than_an_hour(seconds: float) -> None:
    """An infinite Retry-After must not end the timer that serves all connectors."""
    error = Unavailable("no", retry_after_seconds=seconds)
    state, delay = after_failure(error, 1, SETTINGS, 0.5)
    assert state is State.BACKING_OFF
    assert timedelta(0) <= delay <= RETRY_AFTER_MAX


def test_what_the_source_asked_for_is_honoured() -> None:
    error = Unavailable("slow down", retry_after_seconds=17)
    assert after_failure(error, 9, SETTINGS, 0.0)[1] == timedelta(seconds=17)
