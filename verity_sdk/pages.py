"""Pages: how a connector that knows its source well says what it knows.

A plain connector yields events after a timestamp. Real platforms deliver late, out of
order, in windows and pages, with cursors that are not timestamps. A `PagedConnector`
yields `Page`s instead: a page is published as a whole or not at all, together with the
cursor that continues after it.

What the stream application promises a paged connector:

1. `fetch_pages` is called with the position of the last page that was published, or with a
   position an operator chose. It is never called concurrently for one connector.
2. A page's events, rejected records, gaps and cursor become visible to consumers together.
3. A cursor is stored and handed back as it was yielded (as a JSON value), and to this
   connector only.
4. An event id that was published and lies within `lookback` of the watermark is not
   published again, so overlapping windows are safe.

What it asks of the connector:

1. Asked again from the same position, it yields every event the source still serves after
   that position, in whatever pages.
2. The pass ends (the iterator is exhausted) when it has caught up.
3. A cursor is a JSON object with a version of its own, and old versions stay readable.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, TypeAlias, cast

from verity_sdk.connector_base import BaseConnector, RawEvent

logger = logging.getLogger(__name__)

Cursor: TypeAlias = Mapping[str, Any]
"""A JSON object, opaque to all but the connector that made it, versioned by it."""


@dataclass(frozen=True, slots=True)
class RejectedRecord:
    """A record of the source that was not understood; it goes to the dead letters.

    Attributes:
        data: The record's bytes exactly as the source gave them.
        reason: Why it was not understood, in one sentence, without secrets.
        reference: Where in the source it stands (a file and offset, an id), if known.
    """

    data: bytes
    reason: str
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch of time of which events are known to be missing.

    Attributes:
        from_at: The start of what is missing, aware UTC; None where it is not known.
        to_at: The end of what is missing, aware UTC; None where it is not known.
        scope: What is affected, in the source's words (`signIns`, a file, a workspace).
        reason: Why it is missing, in one sentence.
    """

    from_at: datetime | None
    to_at: datetime | None
    scope: str
    reason: str


@dataclass(frozen=True, slots=True)
class SnapshotGap:
    """A part of a permission snapshot that could not be read; it makes the snapshot partial.

    Attributes:
        scope: What could not be read (a database, a workspace, a collection).
        reason: Why, in one sentence.
    """

    scope: str
    reason: str


@dataclass(frozen=True, slots=True)
class SnapshotScope:
    """Says, after the grants of a part of the source, that the part was read completely.

    Attributes:
        scope: What was read (a database, a workspace, a collection).
    """

    scope: str


@dataclass(frozen=True, slots=True)
class Position:
    """Where a pass starts and, for a bounded backfill, where it ends.

    Attributes:
        since: The watermark, aware UTC. A promise of no order: the connector looks back
            from it by its own `lookback`. `FIRST_SINCE` at the first start: what the source no
            longer serves then was never collected, and is not a gap.
        cursor: The cursor of the last published page, or None at the first start and after
            an operator moved the position by time.
        until: The end of a bounded backfill, aware UTC, or None to go on to now.
    """

    since: datetime
    cursor: Cursor | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """A part of the source that is published as a whole or not at all.

    Attributes:
        events: In `(occurred_at, event_id)` order where the source allows it.
        cursor: Continues after this page.
        complete_through: Every event up to here, as far as the platform's declared lateness
            goes, is out; aware UTC, None where the source cannot tell. Never past the oldest
            stretch that is still to be asked again; what a gap says to be missing is answered,
            and holds nothing up.
        rejected: Records that were not understood.
        gaps: What is known to be missing, for example past the source's retention.
    """

    events: Sequence[RawEvent]
    cursor: Cursor
    complete_through: datetime | None = None
    rejected: Sequence[RejectedRecord] = ()
    gaps: Sequence[Gap] = ()


class PagedConnector(BaseConnector):
    """A connector that yields pages; subclass it when the source has cursors or delivers late.

    Attributes:
        lookback: How far before the watermark events may come again: so long ids are
            remembered. Zero unless said otherwise: a cursor knows where to go on, and only its
            author knows how far it reads again.
        settle: How far a pass stays behind now, because the source is not complete up to now.
        slice_max: The longest window that one request asks for; None where windows don't apply.
        retention: How far back the source serves events; None where it is unlimited or unknown.
    """

    lookback: ClassVar[timedelta] = timedelta(0)
    settle: ClassVar[timedelta] = timedelta(0)
    slice_max: ClassVar[timedelta | None] = None
    retention: ClassVar[timedelta | None] = None

    @abstractmethod
    def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        """Yield the pages after `position`, and end when caught up.

        Raises:
            Unavailable: The source did not answer; pages yielded so far stand.
            Denied: The source refused; pages yielded so far stand.
        """

    async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        """Yield the events of all pages after `since`, for use without the stream application.

        Rejected records and gaps have no place in a stream of events: they are logged.
        """
        pages = cast("Any", self.fetch_pages(Position(since=since)))
        async with aclosing(pages):
            async for page in pages:
                for event in page.events:
                    yield event
                for record in page.rejected:
                    logger.error("record rejected: %s (%s)", record.reason, record.reference)
                for gap in page.gaps:
                    logger.error("gap in %s: %s", gap.scope, gap.reason)
