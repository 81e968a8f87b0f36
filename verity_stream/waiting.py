"""Waiting with a limit: for what a worker needs at its start, and for what may never end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from verity_sdk.errors import Unavailable

# The standard library's: other teams' apps wait here too, who may not have configured structlog.
logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_SECONDS = 1.0


async def retry_until_available(step: Callable[[], Awaitable[T]], seconds: float) -> T:
    """Repeat a step for as long as it is Unavailable, for at most `seconds`.

    Raises:
        Unavailable: It still was at the end; any other error at once.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    is_first = True
    while True:
        try:
            return await step()
        except Unavailable as error:
            left_seconds = deadline - loop.time()
            if left_seconds <= 0:
                raise
            if is_first:
                logger.warning("Waiting for up to %.0f s: %s", left_seconds, error)
            is_first = False
        await asyncio.sleep(min(RETRY_SECONDS, left_seconds))


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
            logger.error("%s took over %g s and was cancelled", name, seconds_max)
            task.cancel()
            await asyncio.wait({task}, timeout=1.0)
            return False
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task}, timeout=1.0)
        raise
    if task.cancelled():
        logger.error("%s was cancelled from within", name)
        return False
    error = task.exception()
    if error is not None:
        logger.error("%s failed", name, exc_info=error)
    return error is None
