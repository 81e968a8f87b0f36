"""Work at once, results in order: of a listing that is still being read as of a list."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from verity_sdk.concurrently import in_order
from verity_sdk.errors import Unavailable


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


async def test_results_come_in_order_with_a_limit_of_work_at_once() -> None:
    at_once = most = 0

    async def work(number: int) -> int:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        for _ in range(10 - number):
            await asyncio.sleep(0)
        at_once -= 1
        return number

    assert [one async for one in in_order(numbers(10), work, 3)] == list(range(10))
    assert [one async for one in in_order(range(10), work, 3)] == list(range(10))
    assert most == 3


async def test_work_that_is_left_is_cancelled_and_not_awaited() -> None:
    cancelled: list[int] = []

    async def work(number: int) -> int:
        if number:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(number)
                raise
        return number

    results = in_order(numbers(10), work, 3)
    async with asyncio.timeout(5):
        assert await anext(results) == 0
        await results.aclose()
    assert cancelled == [1, 2]


async def test_work_that_fails_fails_the_whole_and_leaves_nothing_behind() -> None:
    async def work(number: int) -> int:
        if number == 1:
            raise Unavailable("no")
        await asyncio.sleep(0)
        return number

    with pytest.raises(Unavailable):
        _ = [one async for one in in_order(numbers(5), work, 4)]
    assert len(asyncio.all_tasks()) == 1
