"""Cutting a stream of events into useful pieces, and knowing how far it is complete."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from verity_sdk.errors import Unavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

ABANDON_SECONDS = 3.0
"""How long a source may take to react to its cancellation before it is left behind."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How a stream is cut into lists.

    Attributes:
        events_max: A list is full at this weight.
        wait: A list that is not full goes out after this.
        fetch_timeout: The longest the source may be silent; None for ever.
    """

    events_max: int
    wait: timedelta
    fetch_timeout: timedelta | None = None


async def chunked(
    items: AsyncIterator[T], weigh: Callable[[T], float], limits: Limits
) -> AsyncIterator[tuple[list[T], bool]]:
    """Gather items into lists; the flag says that the source ended with this one.

    The source is read ahead by at most one list. If it raises, what it yielded before comes
    out first.

    Raises:
        Unavailable: It yielded nothing for `fetch_timeout`.
    """
    gathered: list[T] = []
    weight = 0.0
    has_some, is_full, has_room = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def gather() -> None:
        nonlocal weight
        try:
            async with closing(items):
                async for item in items:
                    gathered.append(item)
                    weight += weigh(item)
                    has_some.set()
                    if weight >= limits.events_max:
                        is_full.set()
                        has_room.clear()
                        await has_room.wait()
        except BaseException as error:
            if isinstance(error, Exception | asyncio.CancelledError | GeneratorExit):
                raise
            # asyncio lets SystemExit out of a task and ends the loop: one source would end all.
            raise RuntimeError(f"the source raised {error!r}") from error
        finally:
            has_some.set()
            is_full.set()

    gathering = asyncio.create_task(gather())
    try:
        while True:
            try:
                async with asyncio.timeout(_seconds(limits.fetch_timeout)):
                    await has_some.wait()
            except TimeoutError:
                raise Unavailable(
                    f"the source yielded nothing for {limits.fetch_timeout} (fetch_timeout)"
                ) from None
            try:
                async with asyncio.timeout(limits.wait.total_seconds()):
                    await is_full.wait()
            except TimeoutError:
                pass  # A page need not be full.
            chunk, gathered, weight = gathered, [], 0.0
            # The task is done, or about to be: both events stay set for good.
            has_ended = gathering.done()
            if not has_ended:
                has_some.clear()
                is_full.clear()
                has_room.set()
            error = _error_of(gathering) if has_ended else None
            if chunk or (has_ended and error is None):
                yield chunk, has_ended and error is None
            if error is not None:
                raise error
            if has_ended:
                return
    finally:
        gathering.cancel()
        await asyncio.wait({gathering}, timeout=ABANDON_SECONDS)
        if not gathering.done():
            logger.error("the source ignores its cancellation and was left behind")
        elif not gathering.cancelled():
            gathering.exception()  # Seen: nobody asks any more how the source ended.


@asynccontextmanager
async def closing(items: Any) -> AsyncIterator[None]:
    """Close a generator when done with it; an iterator of another kind has nothing to close."""
    try:
        yield
    finally:
        if hasattr(items, "aclose"):
            await items.aclose()


def _error_of(task: asyncio.Task[None]) -> BaseException | None:
    if task.cancelled():
        # Nobody cancelled it but the source itself; letting that pass would look as if the
        # relay had been told to stop.
        return Unavailable("the source cancelled itself")
    return task.exception()


def _seconds(duration: timedelta | None) -> float | None:
    return None if duration is None else duration.total_seconds()


class Watermark:
    """Where the checkpoint of a plain source may rest within a pass.

    The times of a pass are expected to ascend. The newest may still get company (a source
    that filters strictly "after" would then lose it), so within the pass the watermark rests
    on the newest time that was left behind. Once the order is broken it stays until the end.

    Args:
        since: The watermark before the pass; it never goes below this.

    Attributes:
        rests_at: Where the checkpoint may rest now.
        is_ascending: Whether the order held so far.
    """

    def __init__(self, since: datetime) -> None:
        self.rests_at = since
        self._newest: datetime | None = None
        self.is_ascending = True

    def pass_by(self, times: Sequence[datetime]) -> None:
        """Take in the times of the next events.

        Where they break the order, it stays where it was before them: what is out of order may
        have older company yet to come.
        """
        before = self.rests_at
        for at in times:
            if self._newest is None:
                self._newest = at
            elif at > self._newest:
                if self.is_ascending:
                    self.rests_at = max(self.rests_at, self._newest)
                self._newest = at
            elif at < self._newest:
                self.is_ascending = False
        if not self.is_ascending:
            self.rests_at = before

    def finish(self) -> None:
        """The pass ended normally: everything up to the newest is out."""
        if self._newest is not None:
            self.rests_at = max(self.rests_at, self._newest)
