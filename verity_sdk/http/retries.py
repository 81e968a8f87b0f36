"""Whether and when a request is tried again; nothing is sent here."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from random import Random

from verity_sdk.context import current_context
from verity_sdk.errors import Unavailable
from verity_sdk.http.settings import HttpSettings

logger = logging.getLogger(__name__)

RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
BACKOFF_SECONDS_MAX = 120.0

_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]+)?", re.ASCII)


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """The pause that a Retry-After header asks for (RFC 9110, 10.2.3); None where it asks none.

    Zero, a negative number, a past date and nonsense ask for none: the usual pause then holds.
    """
    text = (value or "").strip()
    if _SECONDS.fullmatch(text):
        seconds = float(text)
    else:
        try:
            at = parsedate_to_datetime(text)
            at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
            seconds = (at - now).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return None
    return seconds if seconds > 0 else None


class TryAgain(Exception):
    """One try failed in a way that another may not."""

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        may_be_repeated: bool = True,
    ) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        self.may_be_repeated = may_be_repeated

    def final(self, try_count: int) -> Unavailable:
        """What the caller hears when there is no other try."""
        after = f" (try {try_count})" if try_count > 1 else ""
        return Unavailable(f"{self}{after}", retry_after_seconds=self.retry_after_seconds)


class Retries:
    """Decides, for one request, whether and when it is tried again; announces the wait."""

    def __init__(
        self,
        settings: HttpSettings,
        clock: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]],
        random: Random,
    ) -> None:
        self._random = random
        self._budget_seconds = settings.retry_budget.total_seconds()
        self._first_seconds = (settings.connect_timeout + settings.read_timeout).total_seconds()
        self._pause_seconds_max = settings.retry_after_max.total_seconds()
        self._clock = clock
        self._sleep = sleep
        self._report = current_context().report_wait
        self._is_announced = False
        self._pause_seconds = 0.0
        self.try_count = 1
        # Counted, not read from a clock: waiting for the turn in the budget is not part of it.
        self.spent_seconds = 0.0

    @property
    def seconds_left(self) -> float:
        """For one exchange; the first try always has the time of its timeouts."""
        left = self._budget_seconds - self.spent_seconds
        return max(left, self._first_seconds) if self.try_count == 1 else max(left, 0.001)

    def may_go_on(self, error: TryAgain) -> bool:
        """Whether there is another try; the wait before it is announced."""
        if error.retry_after_seconds is not None:
            error.retry_after_seconds = min(error.retry_after_seconds, self._pause_seconds_max)
            pause = error.retry_after_seconds
        else:
            backoff = min(2.0 ** (self.try_count - 1), BACKOFF_SECONDS_MAX)
            pause = backoff * self._random.uniform(0.5, 1.5)
        if not error.may_be_repeated or self.spent_seconds + pause >= self._budget_seconds:
            return False
        self.spent_seconds += pause
        self.try_count += 1
        self._pause_seconds = pause
        logger.info("%s; asked again in %.1f s", error, pause)
        if self._report is not None:
            self._is_announced = True
            self._report(self._clock() + timedelta(seconds=pause), str(error))
        return True

    async def pause(self) -> None:
        """Wait for the next try."""
        await self._sleep(self._pause_seconds)
        self.end()

    def end(self) -> None:
        """Nothing waits any more."""
        if self._is_announced and self._report is not None:
            self._is_announced = False
            self._report(None, "")
