"""How far this machine's clock is to be believed.

A clock that is ahead loses events: what is asked of a source up to a time that is still to come
comes back empty, and is taken as read. The worker compares its clock with the database's; where it
is ahead, the earlier of the two counts. A clock that is behind only makes everything later.
"""

from __future__ import annotations

from contextvars import ContextVar
from datetime import datetime, timedelta

TOLERANCE = timedelta(seconds=5)
"""What two clocks that are right may differ by, together with the time that asking takes."""


class ClockDifference:
    """How far this machine's clock is ahead of another's; kept up to date by whoever compares."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def trusted(self, at: datetime) -> datetime:
        """A time of this machine's clock, as the earlier of the two clocks has it."""
        return at - self.ahead if self.ahead > TOLERANCE else at


clock_difference: ContextVar[ClockDifference | None] = ContextVar("clock_difference", default=None)
"""Set by the worker for each of its connectors."""


def trusted(at: datetime) -> datetime:
    """The present of this machine's clock, up to which a source may be asked and taken as read.

    The window kit does so by itself.
    """
    difference = clock_difference.get()
    return at if difference is None else difference.trusted(at)
