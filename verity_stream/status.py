"""What a connector is doing, for the people who run it."""

from __future__ import annotations

import enum
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


@dataclass(slots=True)
class Status:
    """One connector's state and counts since this worker took it over.

    Attributes:
        page_count: Transactions committed.
        repeat_count: Events dropped because they were published before.
    """

    connector_id: str
    platform: str
    state: State = State.STARTING
    state_since: datetime = field(default_factory=utc_now)
    last_success_at: datetime | None = None
    last_event_at: datetime | None = None
    next_try_at: datetime | None = None
    last_error: str | None = None
    page_count: int = 0
    event_count: int = 0
    repeat_count: int = 0
    dead_count: int = 0
    gap_count: int = 0
    is_reported: bool = False

    def enter(
        self, state: State, *, error: str | None = None, next_try_at: datetime | None = None
    ) -> None:
        """Change the state; an error stays shown until the connector is caught up again."""
        if state is not self.state:
            self.state, self.state_since = state, utc_now()
        if error is not None:
            self.last_error = error
        elif state is State.CAUGHT_UP:
            self.last_error = None
        self.next_try_at = next_try_at
        self.is_reported = False
