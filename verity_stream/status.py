"""What a connector is doing, for the people who run it."""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime


def utc_now() -> datetime:
    """The clock of the process; handed in wherever time decides something."""
    return datetime.now(UTC)


class State(enum.StrEnum):
    """The states an operator sees."""

    STARTING = "starting"
    RUNNING = "running"
    CAUGHT_UP = "caught_up"
    BACKING_OFF = "backing_off"
    """The source, Kafka or Postgres is unavailable; `next_try_at` says when it is tried again."""
    BLOCKED = "blocked"
    """Denied or misconfigured: an operator has to act; tried again slowly."""
    PAUSED = "paused"
    STOPPED = "stopped"


LATENESS_BOUNDS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0, 604_800.0)
COMMIT_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(slots=True)
class Histogram:
    """How often values up to each bound were seen; the last count is of those above all bounds."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0

    def __post_init__(self) -> None:
        """Start with nothing seen."""
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, values: Sequence[float]) -> None:
        """Count values; sorted at once, because a page brings thousands."""
        ordered = sorted(values)
        counted = 0
        for index, bound in enumerate(self.bounds):
            up_to = bisect_right(ordered, bound)
            self.counts[index] += up_to - counted
            counted = up_to
        self.counts[-1] += len(ordered) - counted
        self.sum += sum(ordered)

    def quantile(self, share: float) -> float | None:
        """The bound below which this share of the values lies; None where nothing was seen.

        The last bound also stands for more.
        """
        wanted, counted = share * sum(self.counts), 0
        for bound, count in zip((*self.bounds, self.bounds[-1]), self.counts, strict=True):
            counted += count
            if counted and counted >= wanted:
                return bound
        return None


@dataclass(slots=True)
class Status:
    """One connector's state and counts since this worker took it over.

    Attributes:
        clock: The present, aware UTC.
        page_count: Transactions committed.
        pass_count: Passes finished, with or without a page.
        repeat_count: Events dropped because they were published before.
        lookback_seconds: How late an event may be without being missed, to hold lateness against.
        version: Of the last page; None before the relay has started.
        seen_count: Ids that are remembered now.
        forgotten_count: Ids that had to be forgotten early.
        lost_count: Ids that the log of ids lacked at starts.
        retry_count: Relays that failed and were started again.
        fenced_count: … because another one owns the connector.
        behind_count: Starts that found the database more than a page behind.
        warning: What the connector itself says is worth a look, though nothing failed.
        topic_behind_count: … that found the topic without checkpoints that were published.
        other_cluster_count: … that found the checkpoints of another Kafka cluster.
        lateness: Seconds from when an event occurred to when it was first seen, without backfills.
        commit_seconds: From the beginning of a page's transaction to its commit.
    """

    connector_id: str
    platform: str
    state: State = State.STARTING
    state_since: datetime = field(default_factory=utc_now)
    last_success_at: datetime | None = None
    last_event_at: datetime | None = None
    next_try_at: datetime | None = None
    last_error: str | None = None
    warning: str | None = None
    page_count: int = 0
    pass_count: int = 0
    event_count: int = 0
    repeat_count: int = 0
    dead_count: int = 0
    gap_count: int = 0
    is_reported: bool = False
    lookback_seconds: float | None = None
    poll_seconds: float | None = None
    version: int | None = None
    complete_through: datetime | None = None
    seen_count: int = 0
    forgotten_count: int = 0
    lost_count: int = 0
    retry_count: int = 0
    fenced_count: int = 0
    behind_count: int = 0
    topic_behind_count: int = 0
    other_cluster_count: int = 0
    lateness: Histogram = field(default_factory=lambda: Histogram(LATENESS_BOUNDS))
    commit_seconds: Histogram = field(default_factory=lambda: Histogram(COMMIT_BOUNDS))
    clock: Callable[[], datetime] = utc_now

    @property
    def progress(self) -> int:
        """Rises with every committed page and every finished pass, and with nothing else."""
        return self.page_count + self.pass_count

    def enter(
        self, state: State, *, error: str | None = None, next_try_at: datetime | None = None
    ) -> None:
        """Change the state; an error stays shown until the connector is caught up again."""
        if state is not self.state:
            self.state, self.state_since = state, self.clock()
        if error is not None:
            self.last_error = error
        elif state is State.CAUGHT_UP:
            self.last_error = None
        self.next_try_at = next_try_at
        self.is_reported = False
