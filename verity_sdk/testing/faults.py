"""What goes wrong at a source, a clock that is handed in, and a queue of faults for a fake."""

from __future__ import annotations

import threading
from collections import deque
from datetime import UTC, datetime, timedelta
from enum import StrEnum


class Clock:
    """A fake's time, aware UTC; it stands still unless it is moved, or follows the machine's."""

    def __init__(self, at: datetime | None = None) -> None:
        self._at = at

    def __call__(self) -> datetime:
        return datetime.now(UTC) if self._at is None else self._at

    def advance(self, by: timedelta) -> None:
        """Move a clock that stands still.

        Raises:
            ValueError: It follows the machine's.
        """
        if self._at is None:
            raise ValueError("a clock that follows the machine can't be moved")
        self._at += by


class Fault(StrEnum):
    """What can go wrong, one by one; what each means for an API is up to its fake."""

    THROTTLED_SECONDS = "429 with Retry-After in seconds"
    THROTTLED_DATE = "429 with Retry-After as a date"
    THROTTLED_BARE = "429 without Retry-After"
    UNAVAILABLE = "503"
    DROPPED = "connection dropped in the middle of the body"
    HANGING = "no answer"
    NOT_JSON = "a proxy's page with status 200"
    TOKEN_EXPIRED = "401: the bearer has expired"  # noqa: S105 - says what goes wrong
    CREDENTIAL_REFUSED = "the token endpoint refuses the secret"
    REPEATED_TOKEN = "the next page's token is that of this page"  # noqa: S105 - as above
    EMPTY_PAGE = "an empty page with a token"
    PAGE_TOKEN_EXPIRED = "the page token has expired"  # noqa: S105 - as above
    REPEATED_EVENT = "an event of the page before comes again"
    UNKNOWN_ENUM = "a value that the specification does not list"
    NULL_ACTOR = "an event without an actor"
    MALFORMED_RECORD = "a record that can't be understood, among others"
    FORBIDDEN_OBJECT = "403 on one object of a snapshot"
    VANISHED_OBJECT = "404 on one object of a snapshot"


class Faults:
    """Faults that wait for their request; safe to use from the fake's thread and the test's."""

    def __init__(self) -> None:
        self._waiting: dict[Fault, deque[int]] = {}
        self._lock = threading.Lock()

    def inject(self, fault: Fault, *, times: int = 1, after: int = 0) -> None:
        """Let the fault happen `times` times, after it could have happened `after` times."""
        with self._lock:
            waiting = self._waiting.setdefault(fault, deque())
            waiting.extend([0] * after + [1] * times)

    def take(self, fault: Fault) -> bool:
        """Asked by the fake wherever the fault could happen: whether it does now."""
        with self._lock:
            waiting = self._waiting.get(fault)
            return bool(waiting and waiting.popleft())

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        with self._lock:
            self._waiting.clear()

    @property
    def are_over(self) -> bool:
        """Whether all that was injected has happened."""
        with self._lock:
            return not any(any(waiting) for waiting in self._waiting.values())
