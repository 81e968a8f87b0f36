"""Whether the whole tenant has gone silent: pure.

Power BI has answered with empty pages for days while people worked (powerbi-powershell 299 in
2021, pbimonitor 69 in 2025). That is no error that an API shows, so it is watched for.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

WARN_EVERY = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Silence:
    """A stretch of time that was read and holds no event of the tenant.

    Attributes:
        from_at: Its start: the newest event, or where reading began; aware UTC.
        to_at: Up to where was read, aware UTC.
        window_count: How many windows in a row were read without an event.
    """

    from_at: datetime
    to_at: datetime
    window_count: int

    @property
    def length(self) -> timedelta:
        """How long it lasts."""
        return self.to_at - self.from_at


class SilenceWatch:
    """Follows what was read, in windows that may overlap and come again.

    Args:
        after: A silence of this length is worth a warning.
    """

    def __init__(self, after: timedelta) -> None:
        self._after = after
        self._quiet: Silence | None = None
        self._recent: Silence | None = None
        self._warned_at: datetime | None = None

    @property
    def silence(self) -> Silence | None:
        """The silence that lasts, or None while it is shorter than `after`."""
        quiet = self._quiet
        return quiet if quiet is not None and quiet.length >= self._after else None

    def saw(self, from_at: datetime, to_at: datetime, newest_at: datetime | None) -> None:
        """Take note of a window.

        Args:
            from_at: Its start.
            to_at: Its end.
            newest_at: The newest event in it, or None where it holds none. One that is dated
                ahead counts from the window's end: no silence begins in the future.
        """
        recent, quiet = self._recent, self._quiet
        if newest_at is not None:
            newest_at = min(newest_at, to_at)
            recent = Silence(newest_at, to_at, 0)
        elif recent is not None and recent.to_at == from_at:
            recent = Silence(recent.from_at, to_at, recent.window_count + 1)
        else:
            recent = Silence(from_at, to_at, 1)
        self._recent = recent
        if quiet is None or recent.from_at > quiet.to_at:
            self._quiet = recent
        elif newest_at is not None and newest_at >= quiet.from_at:
            self._quiet = Silence(newest_at, max(to_at, quiet.to_at), 0)
        elif recent.to_at >= quiet.from_at:
            # What was read again counts once: the longer of the two rows of windows.
            count = quiet.window_count + (newest_at is None and to_at > quiet.to_at)
            self._quiet = Silence(
                min(recent.from_at, quiet.from_at),
                max(recent.to_at, quiet.to_at),
                max(recent.window_count, count),
            )

    def is_warning_due(self, now: datetime) -> bool:
        """Whether to warn now: once when silence sets in, then once a day while it lasts."""
        if self.silence is None:
            self._warned_at = None
            return False
        if self._warned_at is not None and now - self._warned_at < WARN_EVERY:
            return False
        self._warned_at = now
        return True
