"""Waiting for what a worker needs, instead of ending because it started first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from verity_sdk.errors import Unavailable

logger = structlog.get_logger(__name__)

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
