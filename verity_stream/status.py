"""What a connector is doing, for the people who run it.

A metric is declared once, at the field of `Status` that counts it: `/metrics`, the row in
`connector_status`, the tables and the JSON of the command line, and the table in
`docs/operating.md` follow from there.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, get_type_hints


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
QUANTILES: Mapping[str, float] = {"p50": 0.5, "p99": 0.99}
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


class Kind(enum.StrEnum):
    """How a metric is shown."""

    COUNTER = "counter"
    GAUGE = "gauge"
    AGE = "age"
    """A time: a gauge of the seconds since then."""
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """What a field of a status is to those who look at it.

    Attributes:
        name: In Prometheus, where `_total` comes behind that of a counter.
        text: What it says, in a sentence.
        title: Its heading in the tables of the command line; it is reported then, in columns of
            the field's name. None: for `/metrics` only.
        is_in_checkpoint: Its column is one of the checkpoint's row instead of the report's.
    """

    name: str
    kind: Kind
    text: str
    title: str | None = None
    is_in_checkpoint: bool = False

    @property
    def is_reported(self) -> bool:
        """Whether the worker writes it to `connector_status`."""
        return self.title is not None and not self.is_in_checkpoint


@dataclass(slots=True)
class Status:
    """One connector's state and counts since this worker took it over.

    Attributes:
        clock: The present, aware UTC.
        pass_count: Passes finished, with or without a page.
        warning: What the connector itself says is worth a look, though nothing failed.
        is_reported: Whether what it says stands in Postgres.
    """

    connector_id: str
    platform: str
    state: State = State.STARTING
    state_since: datetime = field(default_factory=utc_now)
    next_try_at: datetime | None = None
    last_error: str | None = None
    warning: str | None = None
    pass_count: int = 0
    is_reported: bool = False

    last_success_at: Annotated[
        datetime | None,
        Metric(
            "verity_last_success_age_seconds",
            Kind.AGE,
            "Since a page was committed or the source had nothing new.",
            "last success",
        ),
    ] = None
    last_event_at: Annotated[
        datetime | None,
        Metric(
            "verity_last_event_age_seconds", Kind.AGE, "Since an event was published.", "last event"
        ),
    ] = None
    complete_through: Annotated[
        datetime | None,
        Metric(
            "verity_complete_through_age_seconds",
            Kind.AGE,
            "Since the time up to which every event is out; absent where the source can't tell.",
            "complete through",
            is_in_checkpoint=True,
        ),
    ] = None
    lateness: Annotated[
        Histogram,
        Metric(
            "verity_event_lateness_seconds",
            Kind.HISTOGRAM,
            "From when an event occurred to when it was first seen; only once the connector has "
            "caught up, for backfills and replays are not late.",
            "late by",
        ),
    ] = field(default_factory=lambda: Histogram(LATENESS_BOUNDS))
    lookback_seconds: Annotated[
        float | None,
        Metric(
            "verity_lookback_seconds",
            Kind.GAUGE,
            "How late an event may be and is not missed, to hold the lateness against.",
        ),
    ] = None
    poll_seconds: Annotated[
        float | None,
        Metric("verity_poll_interval_seconds", Kind.GAUGE, "How often the source is asked."),
    ] = None

    event_count: Annotated[
        int, Metric("verity_events", Kind.COUNTER, "Events published.", "events")
    ] = 0
    repeat_count: Annotated[
        int,
        Metric(
            "verity_repeats_dropped",
            Kind.COUNTER,
            "Events dropped because their id was published before.",
            "repeats",
        ),
    ] = 0
    dead_count: Annotated[
        int,
        Metric(
            "verity_dead_letters",
            Kind.COUNTER,
            "Records that could not be published as events.",
            "dead letters",
        ),
    ] = 0
    gap_count: Annotated[
        int,
        Metric(
            "verity_gaps",
            Kind.COUNTER,
            "Stretches that are known to be missing, recorded as data.",
            "gaps",
        ),
    ] = 0

    page_count: Annotated[
        int,
        Metric("verity_pages", Kind.COUNTER, "Pages committed, each in a transaction of its own."),
    ] = 0
    commit_seconds: Annotated[
        Histogram,
        Metric(
            "verity_commit_seconds",
            Kind.HISTOGRAM,
            "From the beginning of a page's transaction to its commit.",
        ),
    ] = field(default_factory=lambda: Histogram(COMMIT_BOUNDS))
    version: Annotated[
        int | None,
        Metric(
            "verity_checkpoint_version", Kind.GAUGE, "Version of the checkpoint, one more per page."
        ),
    ] = None
    seen_count: Annotated[
        int, Metric("verity_seen_window_ids", Kind.GAUGE, "Event ids that are remembered.")
    ] = 0
    forgotten_count: Annotated[
        int,
        Metric(
            "verity_ids_forgotten",
            Kind.COUNTER,
            "Ids forgotten early because the seen window was full: their repeats can pass.",
        ),
    ] = 0
    lost_count: Annotated[
        int,
        Metric(
            "verity_ids_lost",
            Kind.COUNTER,
            "Ids that the log of ids lacked at a start: those that the raw topics lack, too, can "
            "pass.",
        ),
    ] = 0
    retry_count: Annotated[
        int,
        Metric(
            "verity_retries", Kind.COUNTER, "Relays that ended with an error and are started again."
        ),
    ] = 0
    fenced_count: Annotated[
        int,
        Metric(
            "verity_fenced", Kind.COUNTER, "Relays that ended because another owns the connector."
        ),
    ] = 0
    behind_count: Annotated[
        int,
        Metric(
            "verity_database_behind",
            Kind.COUNTER,
            "Starts that found Postgres more than a page behind the topic.",
        ),
    ] = 0
    topic_behind_count: Annotated[
        int,
        Metric(
            "verity_topic_behind",
            Kind.COUNTER,
            "Starts that found the topic without checkpoints that were published.",
        ),
    ] = 0
    other_cluster_count: Annotated[
        int,
        Metric(
            "verity_other_cluster",
            Kind.COUNTER,
            "Starts that found the checkpoints of another Kafka cluster.",
        ),
    ] = 0

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


METRICS: Mapping[str, Metric] = {
    name: metric
    for name, hint in get_type_hints(Status, include_extras=True).items()
    for metric in getattr(hint, "__metadata__", ())
}
"""Every metric by its field of a status, in the order in which tables show it."""


def columns_of(name: str) -> tuple[str, ...]:
    """The columns in which a metric of the command line stands: its field, or its quantiles."""
    if METRICS[name].kind is Kind.HISTOGRAM:
        return tuple(f"{name}_{quantile}_seconds" for quantile in QUANTILES)
    return (name,)


def reported(status: Status) -> dict[str, Any]:
    """A status as the row of `connector_status` has it, but for its id and its worker."""
    row = {name: getattr(status, name) for name in _REPORTED_BESIDES}
    for name, metric in METRICS.items():
        if metric.is_reported:
            value = getattr(status, name)
            values = (
                [value.quantile(share) for share in QUANTILES.values()]
                if isinstance(value, Histogram)
                else [value]
            )
            row |= zip(columns_of(name), values, strict=True)
    return row


_REPORTED_BESIDES = ("platform", "state", "state_since", "next_try_at", "last_error", "warning")
