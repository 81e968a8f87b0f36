"""How a source that waits for its vendor tells whoever drives it."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime

WaitReport = Callable[[datetime | None, str], None]

report_wait: ContextVar[WaitReport | None] = ContextVar("report_wait", default=None)
"""Told when a request waits for its next try (the time, aware UTC, and why), and, with None, that
it goes on. The worker shows it as `backing_off`."""
