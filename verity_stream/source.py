"""One adapter for both kinds of connector: whatever it yields becomes pages for the relay.

A plain connector's events and a paged connector's pages both go through `chunked`, which
gathers them into pages of a useful size without making a quiet source wait, and fetches the
next page while the relay publishes the one before.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar

import structlog

from verity_sdk.connector_base import BaseConnector, RawEvent
from verity_sdk.errors import Malformed, Unavailable
from verity_sdk.pages import Gap, Page, PagedConnector, Position, RejectedRecord
from verity_sdk.times import as_utc
from verity_stream.records import Checkpoint

logger = structlog.get_logger(__name__)

T = TypeVar("T")
Clock = Callable[[], datetime]

ABANDON_SECONDS = 3.0
"""How long a source may take to react to its cancellation before it is left behind."""


@dataclass(frozen=True, slots=True)
class RelayPage:
    """What the relay publishes as one transaction.

    Attributes:
        last_ts: The watermark once this page is out.
        unpublishable: What is no valid event, each with the reason; to the dead letters.
    """

    events: Sequence[RawEvent]
    last_ts: datetime
    cursor: Any = None
    complete_through: datetime | None = None
    rejected: Sequence[RejectedRecord] = ()
    gaps: Sequence[Gap] = ()
    unpublishable: Sequence[tuple[Any, str]] = ()


class Source(Protocol):
    """What a relay pulls from."""

    def pages(self, checkpoint: Checkpoint) -> AsyncIterator[RelayPage]:
        """One pass from this checkpoint; ends when caught up."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How pages are cut.

    Attributes:
        events_max: A page is full at this many events.
        wait: A page that is not full goes out after this.
        fetch_timeout: The longest the source may be silent within a pass.
    """

    events_max: int
    wait: timedelta
    fetch_timeout: timedelta


async def chunked(
    items: AsyncIterator[T], weigh: Callable[[T], int], limits: Limits
) -> AsyncIterator[tuple[list[T], bool]]:
    """Gather items into lists; the flag says that the source ended with this one.

    The source is read ahead by at most one list. If it raises, what it yielded before comes
    out first.

    Raises:
        Unavailable: It yielded nothing for `fetch_timeout`.
    """
    gathered: list[T] = []
    weight = 0
    has_some, is_full, has_room = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def gather() -> None:
        nonlocal weight
        try:
            async with _closing(items):
                async for item in items:
                    gathered.append(item)
                    weight += weigh(item)
                    has_some.set()
                    if weight >= limits.events_max:
                        is_full.set()
                        has_room.clear()
                        await has_room.wait()
        finally:
            has_some.set()
            is_full.set()

    gathering = asyncio.create_task(gather())
    try:
        while True:
            try:
                async with asyncio.timeout(limits.fetch_timeout.total_seconds()):
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
            chunk, gathered, weight = gathered, [], 0
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
            logger.error("source.ignores_cancellation")


@asynccontextmanager
async def _closing(items: Any) -> AsyncIterator[None]:
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


class EventCheck:
    """Tells valid events from what can't be published, and warns once of naive times."""

    def __init__(self, connector_id: str) -> None:
        self._connector_id = connector_id
        self._has_warned = False

    def split(
        self, events: Sequence[Any]
    ) -> tuple[list[RawEvent], list[datetime], list[tuple[Any, str]]]:
        """The valid events, their times as aware UTC, and the others, each with the reason."""
        valid: list[RawEvent] = []
        times: list[datetime] = []
        faulty: list[tuple[Any, str]] = []
        for event in events:
            reason = _fault(event)
            if reason is None:
                try:
                    times.append(as_utc(event.occurred_at))
                except Malformed as error:
                    reason = str(error)
            if reason is not None:
                faulty.append((event, reason))
                continue
            valid.append(event)
            if event.occurred_at.tzinfo is None and not self._has_warned:
                self._has_warned = True
                logger.warning("source.naive_time", connector_id=self._connector_id, taken_as="UTC")
        return valid, times, faulty


def _fault(event: Any) -> str | None:
    if not isinstance(event, RawEvent):
        return f"the connector yielded a {type(event).__name__}, not a RawEvent"
    if event.event_id is None or event.event_id == "":
        return "the event has no event_id"
    return None


class Watermark:
    """Where the checkpoint of a plain source may rest within a pass.

    The times of a pass are expected to ascend. The newest may still get company (a source
    that filters strictly "after" would then lose it), so within the pass the watermark rests
    on the newest time that was left behind. Once the order is broken it stays until the end.

    Args:
        since: The watermark before the pass; it never goes below this.
    """

    def __init__(self, since: datetime) -> None:
        self.rests_at = since
        self._newest: datetime | None = None
        self._is_ascending = True

    def pass_by(self, times: Sequence[datetime]) -> None:
        """Take in the times of the next events."""
        for at in times:
            if self._newest is None:
                self._newest = at
            elif at > self._newest:
                if self._is_ascending:
                    self.rests_at = max(self.rests_at, self._newest)
                self._newest = at
            elif at < self._newest:
                self._is_ascending = False

    def finish(self) -> None:
        """The pass ended normally: everything up to the newest is out."""
        if self._newest is not None:
            self.rests_at = max(self.rests_at, self._newest)


def earlier(at: datetime, by: timedelta) -> datetime:
    """`at − by`, or the beginning of time."""
    try:
        return at - by
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


class PlainSource:
    """Pages from a connector that yields events after a timestamp."""

    def __init__(
        self, connector: BaseConnector, lookback: timedelta, limits: Limits, clock: Clock
    ) -> None:
        self._connector = connector
        self._lookback = lookback
        self._limits = limits
        self._clock = clock
        self._check: EventCheck | None = None

    async def pages(self, checkpoint: Checkpoint) -> AsyncIterator[RelayPage]:
        """One pass over `stream_audit_events(since)`."""
        check = self._check = self._check or EventCheck(checkpoint.connector_id)
        watermark = Watermark(checkpoint.last_ts)
        stream = self._connector.stream_audit_events(earlier(checkpoint.last_ts, self._lookback))
        if inspect.isawaitable(stream):
            stream = await stream
        chunks = chunked(stream, lambda _: 1, self._limits)
        async with _closing(chunks):
            async for chunk, is_last in chunks:
                events, times, faulty = check.split(chunk)
                # A time in the future must not carry the watermark there: whatever happens
                # until then would be skipped.
                now = self._clock()
                watermark.pass_by([min(at, now) for at in times])
                if is_last:
                    watermark.finish()
                yield RelayPage(events, watermark.rests_at, unpublishable=faulty)


class PagedSource:
    """Pages from a connector that yields pages; small ones are coalesced."""

    def __init__(self, connector: PagedConnector, limits: Limits, clock: Clock) -> None:
        self._connector = connector
        self._limits = limits
        self._clock = clock
        self._check: EventCheck | None = None

    async def pages(self, checkpoint: Checkpoint) -> AsyncIterator[RelayPage]:
        """One pass over `fetch_pages(position)`."""
        check = self._check = self._check or EventCheck(checkpoint.connector_id)
        position = Position(since=checkpoint.last_ts, cursor=checkpoint.cursor)
        last_ts, complete_through = checkpoint.last_ts, checkpoint.complete_through
        chunks = chunked(self._connector.fetch_pages(position), _page_weight, self._limits)
        async with _closing(chunks):
            async for chunk, _ in chunks:
                if not chunk:
                    continue
                events, times, faulty = check.split(
                    [event for page in chunk for event in page.events]
                )
                # A connector that knows how far it is complete says so; of another the
                # newest time is the best there is, and never one in the future.
                reached = max(times, default=last_ts)
                complete = [
                    as_utc(page.complete_through) for page in chunk if page.complete_through
                ]
                if complete:
                    reached = complete_through = max(complete)
                last_ts = max(last_ts, min(reached, self._clock()))
                yield RelayPage(
                    events,
                    last_ts,
                    cursor=chunk[-1].cursor,
                    complete_through=complete_through,
                    rejected=[record for page in chunk for record in page.rejected],
                    gaps=[gap for page in chunk for gap in page.gaps],
                    unpublishable=faulty,
                )


def _page_weight(page: Page) -> int:
    return max(1, len(page.events) + len(page.rejected))


def source_of(
    connector: BaseConnector, lookback: timedelta, limits: Limits, clock: Clock
) -> Source:
    """The adapter that fits the connector's kind."""
    if isinstance(connector, PagedConnector):
        return PagedSource(connector, limits, clock)
    return PlainSource(connector, lookback, limits, clock)
