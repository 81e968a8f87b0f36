"""How far this machine's clock is to be believed.

A clock that is ahead loses events: what is asked of a source up to a time that is still to come
comes back empty, and is taken as read. The worker compares its clock with the database's; where it
is ahead, the earlier of the two counts. A clock that is behind only makes everything later.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta

from verity_sdk.context import current_context

TOLERANCE = timedelta(seconds=5)
"""What two clocks that are right may differ by, together with the time that asking takes."""


class ClockDifference:
    """Another's clock beside this machine's; kept up to date by whoever compares.

    Between two comparisons the other clock goes on by one that nobody sets. So this one can be set
    while the other can't be asked, too: it is ahead from that moment on.

    Args:
        seconds: A clock that nobody sets, in seconds from anywhere.
    """

    def __init__(self, seconds: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._heard: tuple[datetime, float] | None = None

    def hear(self, other: datetime) -> None:
        """The other clock has just answered this time, aware."""
        self._heard = other, self._seconds()

    @property
    def other(self) -> datetime | None:
        """The other clock's present, later by nothing and earlier by what its answer took.

        None before the first comparison.
        """
        if self._heard is None:
            return None
        at, heard_seconds = self._heard
        return at + timedelta(seconds=self._seconds() - heard_seconds)

    def trusted(self, at: datetime) -> datetime:
        """A time of this machine's clock, as the earlier of the two clocks has it."""
        other = self.other
        return at if other is None or at - other <= TOLERANCE else other


def trusted(at: datetime) -> datetime:
    """The present of this machine's clock, up to which a source may be asked and taken as read.

    The window kit does so by itself.
    """
    return current_context().trusted(at)
