"""Some pieces of work at once, their results in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
)
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


async def in_order(
    items: Iterable[Item] | AsyncIterable[Item],
    work: Callable[[Item], Awaitable[Result]],
    limit: int,
) -> AsyncGenerator[Result, None]:
    """The results of work on each item, in the items' order, at most `limit` under way at once.

    Closed or failed, it cancels what is under way.
    """
    under_way: deque[asyncio.Task[Result]] = deque()

    async def run(item: Item) -> Result:
        return await work(item)

    try:
        async for item in _each(items):
            under_way.append(asyncio.create_task(run(item)))
            if len(under_way) >= limit:
                yield await under_way.popleft()
        while under_way:
            yield await under_way.popleft()
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def _each(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
