"""Waiting with a limit: for what a worker needs at its start, and for what may never end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog

from verity_sdk.errors import Unavailable

logger = structlog.get_logger(__name__)
# What other teams' apps use as well, who may not have configured structlog.
stdlib_logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_SECONDS = 1.0


async def patiently(step: Callable[[], Awaitable[T]], seconds: float) -> T:
    """Repeat a step for as long as it is Unavailable, for at most `seconds`.

    Raises:
        Unavailable: It still was at the end; any other error at once.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        try:
            return await step()
        except Unavailable as error:
            if loop.time() >= deadline:
                raise
            logger.warning("worker.waiting", error=str(error))
        await asyncio.sleep(RETRY_SECONDS)


async def contained(coroutine: Coroutine[Any, Any, Any], name: str, seconds_max: float) -> bool:
    """Run a coroutine as a task of its own; whatever becomes of it is logged, never raised.

    Returns:
        Whether it ended well and in time. When it did not end in time it was cancelled.
    """
    task = asyncio.ensure_future(coroutine)
    try:
        # `asyncio.wait` and not the task itself: its cancellation is not ours.
        await asyncio.wait({task}, timeout=seconds_max)
        if not task.done():
            stdlib_logger.error("%s took over %g s and was cancelled", name, seconds_max)
            task.cancel()
            await asyncio.wait({task}, timeout=1.0)
            return False
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task}, timeout=1.0)
        raise
    if task.cancelled():
        stdlib_logger.error("%s was cancelled from within", name)
        return False
    error = task.exception()
    if error is not None:
        stdlib_logger.error("%s failed", name, exc_info=error)
    return error is None
