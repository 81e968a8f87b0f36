"""Some jobs at once, their results in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def in_order(
    jobs: Iterable[Callable[[], Awaitable[T]]], concurrent: int
) -> AsyncGenerator[T, None]:
    """The results of the jobs in their order, at most `concurrent` of them under way or waiting.

    Closing it cancels what is under way. A job that raises ends it with that error.
    """
    waiting: deque[asyncio.Future[T]] = deque()
    remaining = iter(jobs)
    try:
        while True:
            while len(waiting) < concurrent and (job := next(remaining, None)) is not None:
                waiting.append(asyncio.ensure_future(job()))
            if not waiting:
                return
            result = await waiting[0]
            waiting.popleft()
            yield result
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
