"""An event loop that never waits: where everybody sleeps, its clock jumps to who wakes first.

For code that waits by asyncio alone. What waits for a socket, a process or a thread has to be
tested on asyncio's own loop: here time-outs would be over before an answer can come. So threads
are refused.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar, TypeVarTuple

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


class _NeverWaits(selectors.DefaultSelector):
    """Instead of waiting, it says for how long it would have."""

    seconds = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready now, asked where the loop would wait; its clock has passed then.

        Raises:
            AssertionError: Everybody waits, and nothing is due that could wake anybody.
        """
        if timeout is None:
            raise AssertionError("everybody waits, and nobody will wake anybody")
        if timeout <= 0:
            return []
        self.seconds += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """As asyncio's, with a clock that starts at 0 and passes only while everybody waits."""

    def __init__(self) -> None:
        self._waits = _NeverWaits()
        super().__init__(self._waits)

    def time(self) -> float:
        """In seconds from 0."""
        return self._waits.seconds

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Arguments], Result], *args: *Arguments
    ) -> asyncio.Future[Result]:
        """Refused: time would jump while the thread works."""
        raise NotImplementedError(f"{func} would run in a thread: use asyncio's own loop")


class VirtualTime(asyncio.DefaultEventLoopPolicy):
    """Whoever asks for a new loop, `asyncio.run` included, gets a virtual one."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """A virtual loop."""
        return VirtualLoop()
