"""A vendor's request budget, shared by all who name the same key."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Protocol
from weakref import WeakKeyDictionary, WeakValueDictionary

from verity_sdk.context import current_context

ANNOUNCED_SECONDS_MIN = 1.0
"""A shorter wait for the budget is the usual pace, and not shown as `backing_off`."""


class Budget(Protocol):
    """A vendor's request budget."""

    def slot(self) -> AbstractAsyncContextManager[None]:
        """Wait for the turn of one request, and hold it while the request runs."""


def shared_budget(
    key: tuple[str, ...],
    *,
    requests: int,
    per: timedelta,
    concurrent: int | None = None,
    share: float = 1.0,
) -> Budget:
    """The budget of this key (platform, tenant, API); one object for all who name the same key.

    Never more than `requests` arrive at the vendor in any stretch of `per`: a place is free
    again `per` after the request that held it has ended. Turns are given in the order in which
    they were asked for. Whoever names the key with other numbers adds a limit; all of them hold.
    What was used is counted for each event loop by itself.

    Args:
        key: Whose budget it is.
        requests: So many requests …
        per: … in any stretch of this length, by the vendor's documentation.
        concurrent: At most so many at once.
        share: The part that this process takes of both; of `concurrent` it is at least one.
    """
    if requests < 1 or per <= timedelta(0) or not 0 < share <= 1:
        raise ValueError(f"no budget: {requests} requests per {per}, share {share}")
    if concurrent is not None and concurrent < 1:
        raise ValueError(f"no budget: {concurrent} requests at once")
    allowed, per_seconds = requests * share, per.total_seconds()
    # Less than one request in the stretch is one request in a longer stretch.
    limit = (math.floor(allowed), per_seconds) if allowed >= 1 else (1, per_seconds / allowed)
    budget = _budgets.get(key)
    if budget is None:
        budget = _budgets[key] = _SharedBudget("/".join(key))
    budget.tighten(limit, None if concurrent is None else max(1, math.floor(concurrent * share)))
    return budget


class _SharedBudget:
    """All limits of one key, and what each event loop has used of them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._limits: set[tuple[int, float]] = set()
        self._concurrent_max: int | None = None
        # By loop, because locks and events belong to one. A loop that has ended takes its
        # count with it: what a process asked before is not what the next test asks.
        self._use_by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, _Use] = WeakKeyDictionary()

    def tighten(self, limit: tuple[int, float], concurrent: int | None) -> None:
        self._limits.add(limit)
        if concurrent is not None:
            self._concurrent_max = min(concurrent, self._concurrent_max or concurrent)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        use = self._use_by_loop.get(loop)
        if use is None:
            use = self._use_by_loop[loop] = _Use()
        async with use.turn:  # first come, first served
            await self._wait(use, loop)
            use.running_count += 1
        try:
            yield
        finally:
            use.running_count -= 1
            use.ended_at.append(loop.time())
            while len(use.ended_at) > max(allowed for allowed, _ in self._limits):
                use.ended_at.popleft()
            use.is_changed.set()

    async def _wait(self, use: _Use, loop: asyncio.AbstractEventLoop) -> None:
        report = current_context().report_wait
        is_announced = False
        try:
            while (seconds := self._seconds_until_free(use, loop.time())) > 0:
                use.is_changed.clear()
                if report is not None and ANNOUNCED_SECONDS_MIN <= seconds < math.inf:
                    is_announced = True
                    until = datetime.now(UTC) + timedelta(seconds=seconds)
                    report(until, f"the request budget of {self._name} is used up")
                try:
                    async with asyncio.timeout(None if seconds == math.inf else seconds):
                        await use.is_changed.wait()
                except TimeoutError:
                    pass  # the time has come: counted again
        finally:
            if is_announced and report is not None:
                report(None, "")

    def _seconds_until_free(self, use: _Use, now: float) -> float:
        """0 if a request may go now; infinity if one that runs must end first."""
        if self._concurrent_max is not None and use.running_count >= self._concurrent_max:
            return math.inf
        seconds = 0.0
        for allowed, per_seconds in self._limits:
            left = allowed - use.running_count
            if left <= 0:
                return math.inf
            if len(use.ended_at) >= left:
                seconds = max(seconds, use.ended_at[-left] + per_seconds - now)
        return seconds


class _Use:
    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.is_changed = asyncio.Event()
        self.running_count = 0
        self.ended_at: deque[float] = deque()  # loop time, ascending


# Weak: a budget lives as long as a client holds it. A connector that starts anew, after an error,
# forgets what it had spent; the vendor's 429 reminds it.
_budgets: WeakValueDictionary[tuple[str, ...], _SharedBudget] = WeakValueDictionary()
