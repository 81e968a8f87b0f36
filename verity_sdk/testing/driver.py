"""The relay in memory: it drives a connector as the stream application does, and can crash.

It keeps the position, publishes a page as a whole, drops repeats by id within the lookback, and
comes back after `Unavailable`. How far a page moves the position it asks where the stream
application asks, `verity_sdk.position`, so that what passes here passes there.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from verity_sdk.batches import closing
from verity_sdk.connector_base import BaseConnector, RawEvent
from verity_sdk.errors import Unavailable
from verity_sdk.pages import Gap, Page, PagedConnector, Position, RejectedRecord
from verity_sdk.position import PlainPass, Reached, after_page, asked_since, earlier
from verity_sdk.testing.source import SourceUnderTest, declared
from verity_sdk.times import as_utc

PLAIN_PAGE_EVENTS = 7
"""A plain connector's events are published so many at a time: more boundaries to crash at."""
RETRY_SECONDS = 60.0
"""The clock moves so far before the next try, where the error asks for nothing else."""
RETRY_SECONDS_MAX = 3600.0


class LawBroken(AssertionError):
    """What was promised is not so; the message says what was seen instead."""


@dataclass(frozen=True, slots=True)
class State:
    """What a checkpoint holds: where the next pass starts.

    Attributes:
        cursor: As JSON, as it is stored; None before the first page.
    """

    last_ts: datetime
    cursor: str | None = None
    complete_through: datetime | None = None

    @property
    def reached(self) -> Reached:
        """With the cursor as the connector gets it."""
        cursor = None if self.cursor is None else json.loads(self.cursor)
        return Reached(self.last_ts, cursor, self.complete_through)

    @classmethod
    def of(cls, reached: Reached) -> State:
        """How far the connector has come, as it is stored."""
        cursor = None if reached.cursor is None else json.dumps(reached.cursor, allow_nan=False)
        return cls(reached.last_ts, cursor, reached.complete_through)


@dataclass(slots=True)
class Collector:
    """Passes over one source, and what they published.

    Attributes:
        state: The checkpoint.
        events: What was published, by id.
        published_counts: How often each id was; more than once means that the consumer sees it
            twice, although repeats within the lookback were dropped.
        on_page: Called with the page, the ids of its events that are new, and the state before it.
        pass_seconds_max: A pass that takes longer is broken, in real seconds.
        tries_max: How often in a row a pass may be Unavailable.
    """

    source: SourceUnderTest
    state: State
    events: dict[str, RawEvent] = field(default_factory=dict)
    published_counts: Counter[str] = field(default_factory=Counter)
    rejected: list[RejectedRecord] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    pages_count: int = 0
    unavailable: list[Unavailable] = field(default_factory=list)
    on_page: Callable[[Page, Sequence[RawEvent], State], None] | None = None
    pass_seconds_max: float = 30.0
    tries_max: int = 20
    _seen: Counter[str] = field(default_factory=Counter)
    _window: deque[tuple[datetime, tuple[str, ...]]] = field(default_factory=deque)

    def copy(self) -> Collector:
        """The same, to go on from here another way."""
        return replace(
            self,
            events=dict(self.events),
            published_counts=Counter(self.published_counts),
            rejected=list(self.rejected),
            gaps=list(self.gaps),
            unavailable=list(self.unavailable),
            on_page=None,
            _seen=Counter(self._seen),
            _window=deque(self._window),
        )

    @property
    def repeated(self) -> list[str]:
        """The ids that were published more than once."""
        return sorted(one for one, count in self.published_counts.items() if count > 1)

    async def catch_up(self) -> None:
        """One pass to its end, however often it is Unavailable on the way.

        Raises:
            LawBroken: It stayed Unavailable for `tries_max` tries, or did not end.
        """
        async with opened(self.source) as connector:
            for _ in range(self.tries_max):
                try:
                    await self.one_pass(connector)
                except Unavailable as error:
                    self.unavailable.append(error)
                    asked = error.retry_after_seconds
                    seconds = min(RETRY_SECONDS if asked is None else asked, RETRY_SECONDS_MAX)
                    self.source.advance(timedelta(seconds=max(seconds, 0.0)))
                else:
                    return
        raise LawBroken(
            f"still Unavailable after {self.tries_max} tries: {self.unavailable[-1]}"
        ) from self.unavailable[-1]

    async def one_pass(self, connector: BaseConnector) -> None:
        """One pass from the state; every page that was yielded is published.

        Raises:
            LawBroken: It did not end within `pass_seconds_max`.
            Exception: What the connector raised; the pages before it stand.
        """
        lookback = declared(self.source, connector, "lookback") or timedelta(0)
        ending = asyncio.timeout(self.pass_seconds_max)
        try:
            async with ending, closing(steps := self._steps(connector)):
                async for page, reached in steps:
                    # Publishing waits, too: a worker may die before it and after it.
                    await asyncio.sleep(0)
                    self._publish(page, reached, lookback)
                    await asyncio.sleep(0)
        except TimeoutError as error:
            if not ending.expired():
                raise
            raise LawBroken(f"the pass did not end within {self.pass_seconds_max:g} s") from error

    def _steps(self, connector: BaseConnector) -> AsyncIterator[tuple[Page, Reached]]:
        if isinstance(connector, PagedConnector):
            return self._paged(connector)
        return self._plain(connector)

    async def _paged(self, connector: PagedConnector) -> AsyncIterator[tuple[Page, Reached]]:
        began_at, reached = self.source.now(), self.state.reached
        pages = connector.fetch_pages(Position(reached.last_ts, reached.cursor))
        async with closing(pages):
            async for page in pages:
                through = page.complete_through
                reached = after_page(
                    reached,
                    [as_utc(event.occurred_at) for event in page.events],
                    page.cursor,
                    None if through is None else as_utc(through),
                    began_at=began_at,
                    now=self.source.now(),
                )
                yield page, reached

    async def _plain(self, connector: BaseConnector) -> AsyncIterator[tuple[Page, Reached]]:
        lookback = declared(self.source, connector, "lookback") or timedelta(0)
        one_pass = PlainPass(self.state.last_ts, self.source.now())
        stream: Any = connector.stream_audit_events(asked_since(self.state.last_ts, lookback))
        if inspect.isawaitable(stream):
            stream = await stream
        waiting: list[RawEvent] = []

        def page(*, is_last: bool) -> tuple[Page, Reached]:
            times = [as_utc(event.occurred_at) for event in waiting]
            reached = one_pass.after_page(times, is_last=is_last, now=self.source.now())
            return Page(tuple(waiting), cursor={}), reached

        async with closing(stream):
            async for event in stream:
                waiting.append(event)
                if len(waiting) >= PLAIN_PAGE_EVENTS:
                    yield page(is_last=False)
                    waiting.clear()
        yield page(is_last=True)

    def _publish(self, page: Page, reached: Reached, lookback: timedelta) -> None:
        before = self.state
        fresh: dict[str, RawEvent] = {}
        for event in page.events:
            if not self._seen[str(event.event_id)] and event.event_id not in fresh:
                fresh[str(event.event_id)] = event
        self.state = State.of(reached)
        self.pages_count += 1
        self.events.update(fresh)
        self.published_counts.update(fresh.keys())
        self.rejected.extend(page.rejected)
        self.gaps.extend(page.gaps)
        if fresh:
            newest_at = max(as_utc(event.occurred_at) for event in fresh.values())
            self._seen.update(fresh.keys())
            self._window.append((newest_at, tuple(fresh)))
        self._forget_before(earlier(reached.last_ts, lookback))
        if self.on_page is not None:
            self.on_page(page, tuple(fresh.values()), before)

    def _forget_before(self, at: datetime) -> None:
        for newest_at, ids in tuple(self._window):
            if newest_at < at:
                self._window.remove((newest_at, ids))
                self._seen.subtract(ids)

    async def crash_at_suspension(
        self, number: int, connector: BaseConnector | None = None
    ) -> bool:
        """One pass by a worker that dies when it waits for the `number`-th time.

        Args:
            connector: None makes a new one, and closes it.

        Returns:
            Whether it died; false where the pass ended before.

        Raises:
            LawBroken: The connector went on although it was cancelled.
        """
        if connector is None:
            async with opened(self.source) as connector:
                return await self.crash_at_suspension(number, connector)
        suspending = Suspending(self.one_pass(connector), cancel_at=number)
        return await _died(asyncio.create_task(_awaiting(suspending)), lambda: suspending.count)

    async def crash_during_request(self, number: int) -> bool:
        """One pass by a worker that dies once the source has seen its `number`-th request."""
        before = self.source.requests_count() or 0
        async with opened(self.source) as connector:
            task = asyncio.create_task(self.one_pass(connector))
            while not task.done():
                if (self.source.requests_count() or 0) - before >= number:
                    task.cancel()
                    break
                await asyncio.sleep(0.0005)
            return await _died(task, lambda: number)

    async def suspensions_count(self) -> int:
        """How often a whole pass waits."""
        async with opened(self.source) as connector:
            suspending = Suspending(self.one_pass(connector))
            await suspending
            return suspending.count


async def _awaiting(awaitable: Awaitable[None]) -> None:
    await awaitable


async def _died(task: asyncio.Task[None], where: Callable[[], int]) -> bool:
    asked = task.cancelling() > 0
    await asyncio.wait({task})
    asked = asked or task.cancelling() > 0
    if task.cancelled():
        return True
    error = task.exception()
    if error is not None:
        raise error
    if asked:
        raise LawBroken(f"the connector went on although it was cancelled (at {where()})")
    return False


class Suspending:
    """Awaits a coroutine, counts how often it waits, and cancels the task at one of these."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], cancel_at: int | None = None) -> None:
        self._coroutine = coroutine
        self._cancel_at = cancel_at
        self.count = 0

    def __await__(self) -> Generator[Any, Any, None]:
        inner = self._coroutine.__await__()
        error: BaseException | None = None
        while True:
            try:
                waited_for = inner.send(None) if error is None else inner.throw(error)
            except StopIteration:
                return
            self.count += 1
            task = asyncio.current_task()
            if self.count == self._cancel_at and task is not None:
                task.cancel()
            try:
                yield waited_for
                error = None
            except BaseException as raised:  # noqa: BLE001 - the coroutine's, thrown into it
                error = raised


@asynccontextmanager
async def opened(source: SourceUnderTest) -> AsyncIterator[BaseConnector]:
    """A new connector, closed at the end."""
    connector = source.connector()
    try:
        yield connector
    finally:
        await connector.close()
