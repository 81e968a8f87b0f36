"""What becomes of a connector on this worker: decided from facts, carried out by the runner.

Pure functions. A fact is a committed page, a finished pass, an error, an assignment, what operators
asked for; never what is shown to people.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from enum import Enum

from verity_sdk.errors import Denied, Fenced, Misconfigured, Unavailable
from verity_stream.postgres.controls import Control
from verity_stream.settings import StreamSettings
from verity_stream.status import State

FENCED_RETRY = timedelta(seconds=5)
RETRY_AFTER_MAX = timedelta(hours=1)
"""No source may send a connector to sleep for longer."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What should be, here and now.

    Attributes:
        is_mine: The group gave the connector to this worker.
        is_enabled: By its configuration.
        is_paused: By an operator.
        misshapen: Why no connector may run: topics of another shape.
        may_start: Nothing starts while the group shares its partitions anew, or before it is
            known what operators asked for.
    """

    is_mine: bool = True
    is_enabled: bool = True
    is_paused: bool = False
    misshapen: str | None = None
    may_start: bool = True

    @property
    def rest(self) -> State | None:
        """As what it rests; None where it should run."""
        if not self.is_mine:
            return State.STOPPED
        if self.misshapen is not None:
            return State.BLOCKED
        if self.is_paused:
            return State.PAUSED
        return None if self.is_enabled else State.STOPPED


@dataclass(frozen=True, slots=True)
class Life:
    """What is remembered of a connector from one look to the next.

    Attributes:
        failures: How many times in a row it ended without progress.
        next_start_at: Not before, in seconds of the event loop's clock: however the wall clock is
            set, it comes. None: at once.
        is_fenced: Another relay had taken it over when it ended.
        is_restart_due: An operator asked for a restart, or resumed it.
    """

    failures: int = 0
    next_start_at: float | None = None
    is_fenced: bool = False
    is_restart_due: bool = False

    def asked(self, before: Control, after: Control) -> Life:
        """After another look at what operators asked for."""
        # However long it was to wait: a resume is asked for by whoever has mended something.
        is_resumed = before.is_paused and not after.is_paused
        is_asked = after.restart_requested_at != before.restart_requested_at
        return replace(self, is_restart_due=self.is_restart_due or is_resumed or is_asked)

    def assigned(self) -> Life:
        """After an assignment: who fenced it was an owner of before."""
        return replace(self, next_start_at=None) if self.is_fenced else self

    def stopped(self) -> Life:
        """After it was stopped from here: whatever it waited for is over."""
        return Life(is_restart_due=self.is_restart_due)


class Step(Enum):
    """What the runner does."""

    START = "start a relay"
    GO_ON = "leave everything as it is"
    STOP = "stop what runs"
    REST = "nothing runs; show why"


def next_step(
    life: Life, wanted: Wanted, now: float, *, has_relay: bool, has_snapshot: bool
) -> tuple[Step, Life]:
    """What to do with a connector, and what is remembered then.

    Args:
        now: By the event loop's clock.
        has_relay: Whether its relay runs, or has ended and nobody has looked.
        has_snapshot: Whether a snapshot is being taken.
    """
    runs = has_relay or has_snapshot
    if life.is_restart_due:
        life = Life()
        if runs:
            return Step.STOP, life  # The next look starts it.
    if wanted.rest is not None:
        return (Step.STOP if runs else Step.REST), life
    if wanted.may_start and not has_relay and (life.next_start_at or 0.0) <= now:
        return Step.START, replace(life, next_start_at=None)
    return Step.GO_ON, life


@dataclass(frozen=True, slots=True)
class End:
    """What a relay's end means: the state to show, and how long until the next start."""

    life: Life
    state: State
    pause: timedelta


def ended(
    life: Life,
    error: BaseException | None,
    *,
    made_progress: bool,
    now: float,
    settings: StreamSettings,
    jitter: float,
) -> End:
    """A relay has ended by itself.

    Args:
        error: What it raised; None where it returned or was cancelled.
        made_progress: Whether it had committed a page or finished a pass.
        now: By the event loop's clock.
        jitter: 0 to 1, so that connectors that failed together do not return together.
    """
    failures = 1 if made_progress else life.failures + 1
    state, pause = after_failure(error, failures, settings, jitter)
    after = replace(
        life,
        failures=failures,
        next_start_at=now + pause.total_seconds(),
        is_fenced=isinstance(error, Fenced),
    )
    return End(after, state, pause)


def after_failure(
    error: BaseException | None, failures: int, settings: StreamSettings, jitter: float
) -> tuple[State, timedelta]:
    """The state to show after so many failures in a row, and how long until the next start."""
    if isinstance(error, Denied | Misconfigured):
        return State.BLOCKED, settings.blocked_probe
    if isinstance(error, Fenced):
        return State.STOPPED, FENCED_RETRY
    if isinstance(error, Unavailable) and error.retry_after_seconds is not None:
        asked = min(max(0.0, error.retry_after_seconds), RETRY_AFTER_MAX.total_seconds())
        return State.BACKING_OFF, timedelta(seconds=asked)
    doubled = min(timedelta(seconds=2 ** min(failures - 1, 20)), settings.backoff_max)
    return State.BACKING_OFF, doubled * (0.5 + jitter / 2)
