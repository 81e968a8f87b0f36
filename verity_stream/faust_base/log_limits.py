"""A limit on log lines that repeat: an outage may say so, not a hundred times a second."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

LINES_MAX = 5
WINDOW_SECONDS = 30.0
MESSAGES_MAX = 1000


class RepeatLimit(logging.Filter):
    """Lets each message of some loggers through a few times a window, then counts.

    The first line of the next window carries how many were held back. aiokafka logs 100 lines a
    second while a broker is away. A filter on a logger does not see its children's records, so
    this one belongs on the handlers.

    Args:
        prefix: Loggers of this name, and those below it, are limited; others are not touched.
        lines_max: How often one message passes in a window.
        window_seconds: How long a window lasts.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        prefix: str,
        *,
        lines_max: int = LINES_MAX,
        window_seconds: float = WINDOW_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(prefix)
        self._lines_max = lines_max
        self._window_seconds = window_seconds
        self._clock = clock
        self._windows: dict[tuple[str, int, str], tuple[float, int]] = {}
        # Handlers call their filters outside their own lock, and Faust logs from two threads.
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged; the first after a pause says what was held back."""
        if not super().filter(record):
            return True
        key = (record.name, record.levelno, str(record.msg))
        now = self._clock()
        with self._lock:
            since, count = self._windows.get(key, (now, 0))
            held_back = 0
            if now - since >= self._window_seconds:
                held_back = max(0, count - self._lines_max)
                since, count = now, 0
            if len(self._windows) >= MESSAGES_MAX and key not in self._windows:
                self._windows.clear()
            self._windows[key] = (since, count + 1)
        if held_back:
            record.msg = f"{record.msg} ({held_back} more like this were not logged)"
        return count < self._lines_max


def install(prefix: str) -> None:
    """Limit what the root handlers log from the loggers at `prefix`; once, however often called."""
    for handler in logging.getLogger().handlers:
        if not any(isinstance(known, RepeatLimit) for known in handler.filters):
            handler.addFilter(RepeatLimit(prefix))
