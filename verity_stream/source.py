"""One adapter for both kinds of connector: whatever it yields becomes pages for the relay.

A plain connector's events and a paged connector's pages both go through `chunked`, which
gathers them into pages of a useful size, in events and in bytes, without making a quiet source
wait, and fetches the next page while the relay publishes the one before.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import orjson
import structlog

from verity_sdk.chunks import Limits, Watermark, chunked, closing
from verity_sdk.connector_base import BaseConnector, RawEvent
from verity_sdk.errors import Malformed
from verity_sdk.pages import Gap, Page, PagedConnector, Position, RejectedRecord
from verity_sdk.times import as_utc
from verity_stream.records import Checkpoint

logger = structlog.get_logger(__name__)

Clock = Callable[[], datetime]

PAGE_BYTES = 8 * 1024 * 1024
"""What a page holds at most, unless the settings say otherwise: as JSON, before compression."""


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


def earlier(at: datetime, by: timedelta) -> datetime:
    """`at − by`, or the beginning of time."""
    try:
        return at - by
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


def json_bytes_of(thing: Any) -> int:
    """How many bytes a thing takes as JSON; never raises.

    Measured, not estimated: orjson writes an event of 500 bytes in 0.4 µs, where looking at its
    fields in Python takes longer.
    """
    try:
        return len(orjson.dumps(thing, default=repr, option=orjson.OPT_NON_STR_KEYS))
    except TypeError:
        pass  # What is no JSON becomes a dead letter, and has a size, too.
    try:
        return len(repr(thing))
    except Exception:  # noqa: BLE001 - it comes from a connector, and may be anything
        return 0


class Scale:
    """Weighs what a source yields, so that a list is full at so many events or so many bytes.

    Something that takes more bytes than its share of a page weighs as much as the events that
    would fit in its place. So the one bound of `chunked` keeps both.
    """

    def __init__(self, connector_id: str, events_max: int, bytes_max: int) -> None:
        self._connector_id = connector_id
        self._bytes_max = bytes_max
        self._weight_of_byte = events_max / bytes_max
        self._has_warned = False

    def event(self, event: Any) -> float:
        """The weight of one event."""
        return max(1.0, json_bytes_of(event) * self._weight_of_byte)

    def page(self, page: Page) -> float:
        """The weight of a page; one that is too large by itself is said, and stays whole.

        Its cursor continues after all of it, so a part of it could only be published without
        one, and a crash would repeat whatever of it the seen window no longer remembers.
        """
        size = sum(map(json_bytes_of, page.events)) + sum(len(one.data) for one in page.rejected)
        if size > 2 * self._bytes_max and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "source.page_too_large",
                connector_id=self._connector_id,
                size_bytes=size,
                limit_bytes=self._bytes_max,
            )
        count = len(page.events) + len(page.rejected)
        return max(1.0, count, size * self._weight_of_byte)


class PlainSource:
    """Pages from a connector that yields events after a timestamp."""

    def __init__(
        self,
        connector: BaseConnector,
        lookback: timedelta,
        limits: Limits,
        clock: Clock,
        page_bytes: int = PAGE_BYTES,
    ) -> None:
        self._connector = connector
        self._lookback = lookback
        self._limits = limits
        self._clock = clock
        self._page_bytes = page_bytes
        self._check: EventCheck | None = None

    async def pages(self, checkpoint: Checkpoint) -> AsyncIterator[RelayPage]:
        """One pass over `stream_audit_events(since)`."""
        check = self._check = self._check or EventCheck(checkpoint.connector_id)
        watermark = Watermark(checkpoint.last_ts)
        since = earlier(checkpoint.last_ts, self._lookback)
        stream = _called(self._connector.stream_audit_events, since)
        if inspect.isawaitable(stream):
            stream = _opened(stream)
        scale = Scale(checkpoint.connector_id, self._limits.events_max, self._page_bytes)
        chunks = chunked(stream, scale.event, self._limits)
        async with closing(chunks):
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

    def __init__(
        self,
        connector: PagedConnector,
        limits: Limits,
        clock: Clock,
        page_bytes: int = PAGE_BYTES,
    ) -> None:
        self._connector = connector
        self._limits = limits
        self._clock = clock
        self._page_bytes = page_bytes
        self._check: EventCheck | None = None

    async def pages(self, checkpoint: Checkpoint) -> AsyncIterator[RelayPage]:
        """One pass over `fetch_pages(position)`."""
        check = self._check = self._check or EventCheck(checkpoint.connector_id)
        position = Position(since=checkpoint.last_ts, cursor=checkpoint.cursor)
        last_ts, complete_through = checkpoint.last_ts, checkpoint.complete_through
        pages = _as_yielded(_called(self._connector.fetch_pages, position))
        scale = Scale(checkpoint.connector_id, self._limits.events_max, self._page_bytes)
        chunks = chunked(pages, scale.page, self._limits)
        async with closing(chunks):
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


def _called(method: Callable[[Any], Any], argument: Any) -> Any:
    """What a connector's method returns; most return a generator and have not begun."""
    try:
        return method(argument)
    except BaseException as error:
        if isinstance(error, Exception):
            raise
        # SystemExit would end the event loop. Nothing was awaited: a CancelledError is its own.
        raise RuntimeError(f"the connector raised {error!r}") from error


async def _as_yielded(pages: AsyncIterator[Page]) -> AsyncIterator[Page]:
    """The pages as they are now: read ahead, a connector may go on using what it yielded."""
    async with closing(pages):
        async for page in pages:
            yield replace(page, events=tuple(page.events), cursor=deepcopy(page.cursor))


async def _opened(opening: Any) -> AsyncIterator[RawEvent]:
    """The events of an iterator that has to be awaited first.

    Here and not before, so that an opening that hangs or cancels is the source's, too.
    """
    stream = await opening
    async with closing(stream):
        async for event in stream:
            yield event


def source_of(
    connector: BaseConnector,
    lookback: timedelta,
    limits: Limits,
    clock: Clock,
    page_bytes: int = PAGE_BYTES,
) -> Source:
    """The adapter that fits the connector's kind."""
    if isinstance(connector, PagedConnector):
        return PagedSource(connector, limits, clock, page_bytes)
    return PlainSource(connector, lookback, limits, clock, page_bytes)
