"""Cutting a stream into batches: full ones, or what came within a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, Protocol, TypeVar

from verity_sdk.errors import Unavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")
B = TypeVar("B")
Item = TypeVar("Item", contravariant=True)

ABANDON_SECONDS = 3.0
"""How long a source may take to react to its cancellation before it is left behind."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How a stream is cut into pieces.

    Attributes:
        events_max: A piece is full at this number.
        wait: A piece that is not full goes out after this.
        fetch_timeout: The longest the source may be silent; None for ever.
    """

    events_max: int
    wait: timedelta
    fetch_timeout: timedelta | None = None


class Batch(Protocol[Item]):
    """What items are gathered into.

    Attributes:
        is_empty: Whether nothing was added yet.
        is_full: Whether it has to go out before something else is added.
    """

    is_empty: bool
    is_full: bool

    def add(self, item: Item, /) -> Awaitable[None] | None:
        """Take an item in; what has to be awaited until all of it is in is returned."""


class ListBatch(Generic[T]):
    """A list; it is full at so many items."""

    def __init__(self, count_max: int) -> None:
        self.items: list[T] = []
        self._count_max = count_max
        self.is_empty, self.is_full = True, False

    def add(self, item: T, /) -> None:
        self.items.append(item)
        self.is_empty = False
        self.is_full = len(self.items) >= self._count_max


async def batched(items: AsyncIterator[T], limits: Limits) -> AsyncIterator[tuple[list[T], bool]]:
    """Gather items into lists; see `batched_into`."""
    lists: AsyncIterator[tuple[ListBatch[T], bool]] = batched_into(
        items, lambda: ListBatch(limits.events_max), limits
    )
    async with closing(lists):
        async for one, is_last in lists:
            yield one.items, is_last


async def batched_into(
    items: AsyncIterator[T], new: Callable[[], B], limits: Limits
) -> AsyncIterator[tuple[B, bool]]:
    """Gather items into batches; the flag says that the source ended with this one.

    The source is read ahead by at most one batch. If it raises, or if adding an item does, what
    was added before comes out first.

    Raises:
        Unavailable: It yielded nothing for `fetch_timeout`.
    """
    batch: Any = new()  # A Batch[T] that is a B, which the type system has no word for.
    has_some, is_full, has_room = asyncio.Event(), asyncio.Event(), asyncio.Event()
    # A batch changes hands between two items: one that is being added is waited for, and the
    # next is not begun before. A lock an item does the same, and costs a tenth of the item.
    is_wanted, is_whole = False, asyncio.Event()
    is_whole.set()

    async def gather() -> None:
        try:
            async with closing(items):
                async for item in items:
                    if is_wanted:
                        has_room.clear()
                        await has_room.wait()
                    waiting = batch.add(item)
                    if waiting is not None:
                        is_whole.clear()
                        await waiting
                        is_whole.set()
                    has_some.set()
                    if batch.is_full:
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
            is_whole.set()

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
                pass  # A batch need not be full.
            is_wanted = True
            await is_whole.wait()
            done, batch, is_wanted = batch, new(), False
            # The task is done, or about to be: both events stay set for good.
            has_ended = gathering.done()
            if not has_ended:
                has_some.clear()
                is_full.clear()
                has_room.set()
            error = _error_of(gathering) if has_ended else None
            if not done.is_empty or (has_ended and error is None):
                yield done, has_ended and error is None
            if error is not None:
                raise error
            if has_ended:
                return
    finally:
        # Whatever the source does with its cancellation, nothing is added any more.
        is_wanted = True
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
