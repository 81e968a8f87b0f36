"""One adapter for both kinds of connector: whatever it yields becomes pages for the relay.

A plain connector's events and a paged connector's pages both go through `batched_into`, which
gathers them into builders of a useful size, in events and in bytes, without making a quiet source
wait, and fills the next one while the relay publishes the one before.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol

import structlog

from verity_sdk.batches import Limits, batched_into, closing
from verity_sdk.connector_base import BaseConnector, RawEvent
from verity_sdk.errors import Misconfigured
from verity_sdk.pages import Page, PagedConnector, Position
from verity_sdk.position import FIRST_SINCE, PlainPass, Reached, after_page, asked_since
from verity_sdk.times import as_utc
from verity_stream.records import Checkpoint
from verity_stream.relay.cursors import given_cursor, stored_cursor
from verity_stream.relay.page_builder import PageBuilder

logger = structlog.get_logger(__name__)

Clock = Callable[[], datetime]

PAGE_BYTES = 8 * 1024 * 1024
"""What a page holds at most, unless the settings say otherwise: as JSON, before compression."""


NewBuilder = Callable[[int, int], PageBuilder]
"""Makes a page to fill, which is full at so many events or so many bytes."""


@dataclass(frozen=True, slots=True)
class RelayPage:
    """What the relay publishes as one transaction.

    Attributes:
        builder: The events, and what else the page carries.
        reached: How far the connector has come once this page is out; the cursor in the form in
            which it is stored.
    """

    builder: PageBuilder
    reached: Reached


class Source(Protocol):
    """What a relay pulls from."""

    def pages(self, checkpoint: Checkpoint, new_builder: NewBuilder) -> AsyncIterator[RelayPage]:
        """One pass from this checkpoint; ends when caught up."""


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
        self._met_at = FIRST_SINCE

    async def pages(
        self, checkpoint: Checkpoint, new_builder: NewBuilder
    ) -> AsyncIterator[RelayPage]:
        """One pass over `stream_audit_events(since)`."""
        one_pass = PlainPass(checkpoint.last_ts, self._clock(), self._met_at)
        since = asked_since(checkpoint.last_ts, self._lookback)
        stream = _called(self._connector.stream_audit_events, since)
        if inspect.isawaitable(stream):
            stream = _opened(stream)
        new = partial(new_builder, self._limits.events_max, self._page_bytes)
        builders = batched_into(stream, new, self._limits)
        async with closing(builders):
            async for builder, is_last in builders:
                reached = one_pass.after_page(builder.times, is_last=is_last, now=self._clock())
                self._met_at = one_pass.met_at
                yield RelayPage(builder, reached)


class _Pages:
    """A connector's pages together in one builder.

    Attributes:
        largest_bytes: The size of the largest of them.
        is_torn: Whether it holds a part of a page.
    """

    def __init__(self, builder: PageBuilder, pages_max: int) -> None:
        self.builder = builder
        self.cursor: Any = None
        self.complete_through: datetime | None = None
        self.largest_bytes = 0
        self.is_empty, self.is_full, self.is_torn = True, False, False
        self._pages_left = pages_max

    async def add(self, page: Page, /) -> None:
        """Add all of a page: its cursor continues after all of it.

        A part of it could only be published without one, and a crash would repeat whatever of it
        the seen window no longer remembers.
        """
        self.is_torn = True
        size_before = self.builder.size_bytes
        for event in page.events:
            waiting = self.builder.add(event)
            if waiting is not None:
                await waiting
        for record in page.rejected:
            self.builder.reject(record)
        self.largest_bytes = max(self.largest_bytes, self.builder.size_bytes - size_before)
        self.builder.gaps += page.gaps
        # A copy: read ahead, a connector may go on using what it yielded.
        self.cursor = stored_cursor(page.cursor)
        if page.complete_through:
            # The last one's, as its cursor: it may have gone back, to what is to be asked again.
            self.complete_through = as_utc(page.complete_through)
        self._pages_left -= 1
        self.is_empty = self.is_torn = False
        self.is_full = self.builder.is_full or not self._pages_left


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
        self._has_warned = False

    async def pages(
        self, checkpoint: Checkpoint, new_builder: NewBuilder
    ) -> AsyncIterator[RelayPage]:
        """One pass over `fetch_pages(position)`."""
        position = Position(since=checkpoint.last_ts, cursor=given_cursor(checkpoint.cursor))
        began_at = self._clock()
        reached = checkpoint.reached
        stream = _called(self._connector.fetch_pages, position)

        def new() -> _Pages:
            builder = new_builder(self._limits.events_max, self._page_bytes)
            return _Pages(builder, self._limits.events_max)

        gathered = batched_into(stream, new, self._limits)
        async with closing(gathered):
            async for pages, _ in gathered:
                # What adding a page failed for follows as an error; all of it is asked for again.
                if pages.is_empty or pages.is_torn:
                    continue
                self._warn_of_size(checkpoint.connector_id, pages.largest_bytes)
                reached = after_page(
                    reached,
                    pages.builder.times,
                    pages.cursor,
                    pages.complete_through,
                    began_at=began_at,
                    now=self._clock(),
                )
                yield RelayPage(pages.builder, reached)

    def _warn_of_size(self, connector_id: str, size_bytes: int) -> None:
        """A page of the connector's that is too large by itself stays whole, and is said once."""
        if size_bytes > 2 * self._page_bytes and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "source.page_too_large",
                connector_id=connector_id,
                size_bytes=size_bytes,
                limit_bytes=self._page_bytes,
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


class PublishedByTheRelay:
    """Stands where a connector would have its own producer.

    Under the worker a connector yields events and the relay publishes them. One that sends by
    itself would publish outside the transaction, so it is told.
    """

    def __getattr__(self, name: str) -> Any:
        raise Misconfigured(
            f"the connector used kafka_producer.{name}: under the worker it yields its events "
            "and the relay publishes them"
        )
