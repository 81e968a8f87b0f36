"""The virtual loop that other tests run on: time passes, nobody waits, and no wait is unfounded."""

from __future__ import annotations

import asyncio
import time

import pytest

pytestmark = pytest.mark.usefixtures("virtual_time")


def test_an_hour_passes_at_once_and_everybody_wakes_in_order() -> None:
    woken: list[float] = []

    async def sleeper(seconds: float) -> None:
        await asyncio.sleep(seconds)
        woken.append(asyncio.get_running_loop().time())

    async def scenario() -> None:
        await asyncio.gather(*map(sleeper, (3600, 60, 0, 600)))

    began_at = time.monotonic()
    asyncio.run(scenario())
    assert woken == [0, 60, 600, 3600]
    assert time.monotonic() - began_at < 60


def test_what_never_answers_is_timed_out_at_its_time() -> None:
    async def scenario() -> float:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(30), 0.3)
        return asyncio.get_running_loop().time()

    assert asyncio.run(scenario()) == pytest.approx(0.3)


def test_waiting_for_what_nobody_will_do_is_an_error() -> None:
    with pytest.raises(AssertionError, match="nobody will wake"):
        asyncio.run(asyncio.Event().wait())


def test_a_thread_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="in a thread"):
        asyncio.run(asyncio.to_thread(time.monotonic))
