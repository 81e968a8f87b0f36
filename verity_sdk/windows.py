"""Windows of time: how a source that delivers late and out of order is read completely.

A stream is read in slices. A slice is fetched completely, sorted by `(occurred_at, event_id)` and
then yielded; only then does the stream's own `through` move to the slice's end. Every pass reads
the last `relook` again, and every `lookback_every` the last `lookback`; repeats are dropped by
event id behind the connector. What can't be read any more (`retention`) is a `Gap`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from verity_sdk.clock import trusted
from verity_sdk.errors import Malformed, Misconfigured, Unavailable
from verity_sdk.events import RawEvent
from verity_sdk.pages import Cursor, Gap, Page, Position, RejectedRecord
from verity_sdk.position import FIRST_SINCE, earlier
from verity_sdk.times import as_utc, format_utc, parse_utc

logger = logging.getLogger(__name__)

CURSOR_VERSION = 1
SILENT_SLICES_MAX = 100
SILENCE_MAX = timedelta(seconds=1)
"""So many slices, or so long, pass without an event before a page says how far the pass is."""

_SECOND = timedelta(seconds=1)
_DAY = timedelta(days=1)
_MICROSECOND = timedelta(microseconds=1)
_LAST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class WindowPolicy:
    """What is known of a source's lateness, each from its vendor or measured.

    Attributes:
        settle: A pass ends this far behind now.
        slice_max: The longest slice.
        lateness: How late the vendor says events may come: `complete_through` stays this far
            behind what was read; where it is more than `settle` and `relook` together, behind the
            last lookback, for only that finds such events.
        relook: How far back every pass reads again.
        lookback: How far back a pass reads again from time to time; the connector's class
            attribute `lookback` is at least this, or repeats are published. At least `lateness`
            and `lookback_every` together, where `complete_through` rests on it.
        lookback_every: How often.
        retention: How far back the source answers; None for ever.
        is_day_bound: No slice crosses midnight UTC.
        slice_min: A slice that the source refuses for its size is halved down to this.
        page_events: A slice comes out in pages of at most so many events.
    """

    settle: timedelta
    slice_max: timedelta
    lateness: timedelta = timedelta(0)
    relook: timedelta = timedelta(0)
    lookback: timedelta = timedelta(0)
    lookback_every: timedelta = timedelta(hours=24)
    retention: timedelta | None = None
    is_day_bound: bool = False
    slice_min: timedelta = timedelta(seconds=1)
    page_events: int = 2000


@dataclass(frozen=True, slots=True)
class Slice:
    """A stretch of time on whole seconds, half-open: `from_at <= t < to_at`, aware UTC.

    A source whose filter is closed at both ends is asked up to `to_at`, or up to `last_second`
    where it may not cross a day; what comes twice is dropped by its id.
    """

    from_at: datetime
    to_at: datetime

    @property
    def last_second(self) -> datetime:
        """The last whole second of the slice."""
        return self.to_at - timedelta(seconds=1)


class TooLarge(Exception):
    """Raised by a fetch: the source can't answer a slice of this length; halve it."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """All that a slice holds, in any order."""

    events: Sequence[RawEvent]
    rejected: Sequence[RejectedRecord] = ()
    gaps: Sequence[Gap] = ()


@dataclass(frozen=True, slots=True)
class WindowedStream:
    """One stream of a connector.

    Attributes:
        name: Its name in the cursor and as the scope of its gaps, for example `signIns`.
        fetch: Reads one slice completely. Raises `TooLarge` to have it halved.
    """

    name: str
    fetch: Callable[[Slice], Awaitable[Fetched]]
    policy: WindowPolicy


def slices(
    from_at: datetime, to_at: datetime, *, slice_max: timedelta, is_day_bound: bool = False
) -> Iterator[Slice]:
    """Cut a range on whole seconds (the start rounded down, the end down) into slices.

    The slices cover the range exactly, in order, without overlap; none is longer than
    `slice_max` less its fraction of a second, which is at least one second.
    """
    longest = timedelta(seconds=slice_max // _SECOND)
    if longest < _SECOND:
        raise ValueError(f"a slice of {slice_max} is shorter than a second")
    start, end = _whole_second(from_at), _whole_second(to_at)
    while start < end:
        # Compared as lengths: near the year 9999 there is no time for the sum.
        length = min(longest, end - start)
        if is_day_bound:
            length = min(length, _DAY - (start - start.replace(hour=0, minute=0, second=0)))
        yield Slice(start, start + length)
        start += length


def halves(one: Slice, slice_min: timedelta) -> tuple[Slice, Slice] | None:
    """The two halves on a whole second, or None where they would be shorter than `slice_min`."""
    half = (one.to_at - one.from_at) // 2 // _SECOND * _SECOND
    if half < max(slice_min, _SECOND):
        return None
    middle = one.from_at + half
    return Slice(one.from_at, middle), Slice(middle, one.to_at)


async def windowed_pages(
    streams: Sequence[WindowedStream], position: Position, clock: Callable[[], datetime]
) -> AsyncIterator[Page]:
    """The pages of one pass over all streams; the body of a connector's `fetch_pages`.

    The cursor is `{"v": 1, "streams": {name: {"through": time, "looked_back_at": time}}}`. A
    stream that the cursor does not know starts at `position.since`; one that is not configured
    any more keeps its place in the cursor. `complete_through` is the least of all streams', less
    each one's lateness (see `WindowPolicy`).

    The streams take turns, a slice each. A slice with more than `page_events` events comes in
    several pages, of which only the last moves `through`. Empty slices come as one page a second
    or a hundred slices. A pass that has nothing new to read yields nothing.

    A stream whose fetch raises ends the pass only after the other streams had their turn; then
    the first error is raised. The pages yielded so far stand. A slice that is refused as too
    large and can't be halved any more ends its stream as `Unavailable`: nothing is left out.

    Raises:
        Denied, Unavailable, …: Whatever a fetch raises.
        Misconfigured: The cursor has a version that is not known.
    """
    places = _places(position.cursor)
    since = as_utc(position.since)
    until = None if position.until is None else as_utc(position.until)
    # Once for the pass: asked up to a time that is still to come, a source has nothing there.
    now = trusted(as_utc(clock()))
    if len({stream.name for stream in streams}) < len(streams):
        raise ValueError("two streams have the same name")
    turns = deque(
        turn for stream in streams if (turn := _turn(stream, places, since, until, now)) is not None
    )

    def page(part: _Part) -> Page:
        return Page(
            events=part.events,
            cursor=_cursor(places),
            complete_through=min(
                (
                    _complete_through(
                        places.get(stream.name, _StreamState(since, now)), stream.policy
                    )
                    for stream in streams
                ),
                default=None,
            ),
            rejected=part.rejected,
            gaps=part.gaps,
        )

    first_error: Exception | None = None
    last_cursor, last_at, silent_count = _cursor(places), now, 0
    while turns:
        turn = turns.popleft()
        try:
            parts = await turn.next_parts()
        except Exception as error:  # noqa: BLE001 - raised below, after the others had their turn
            if first_error is not None:
                logger.warning("stream %s: %s: %s", turn.name, type(error).__name__, error)
            first_error = first_error or error
            continue
        if not parts:
            continue
        turns.append(turn)
        for part in parts:
            # With the slice's last page, not before: a crash in between reads the slice again.
            if part.place is not None:
                places[turn.name] = part.place
            if not (part.events or part.rejected or part.gaps):
                silent_count += 1
                if silent_count < SILENT_SLICES_MAX and as_utc(clock()) - last_at < SILENCE_MAX:
                    continue
            yield page(part)
            last_cursor, last_at, silent_count = _cursor(places), as_utc(clock()), 0
    if _cursor(places) != last_cursor:
        yield page(_Part())
    if first_error is not None:
        raise first_error


@dataclass(frozen=True, slots=True)
class _StreamState:
    """How far a stream was read, and when its lookback was last read again."""

    through: datetime
    looked_back_at: datetime


@dataclass(frozen=True, slots=True)
class _Part:
    """What one page holds, and where its stream stands once the page is out; None: as before."""

    events: Sequence[RawEvent] = ()
    rejected: Sequence[RejectedRecord] = ()
    gaps: Sequence[Gap] = ()
    place: _StreamState | None = None


def _turn(
    stream: WindowedStream,
    places: dict[str, _StreamState],
    since: datetime,
    until: datetime | None,
    now: datetime,
) -> _Turn | None:
    """What the stream reads in this pass; None if nothing. A new stream gets its place."""
    policy, name = stream.policy, stream.name
    oldest = None
    if policy.retention is not None:
        oldest = _next_whole_second(earlier(now, policy.retention))
    begin = _whole_second(since)
    if oldest is not None and since <= FIRST_SINCE:
        # At a connector's first start nothing is missing: this is its beginning.
        begin = max(begin, oldest)
    place = places.get(name, _StreamState(begin, looked_back_at=now))
    to_at = earlier(now, policy.settle)
    to_at = _whole_second(to_at if until is None else min(to_at, until))
    if place.through > now and name in places:
        logger.warning(
            "stream %s was read through %s, which is still to come: is a clock wrong?",
            name,
            format_utc(place.through),
        )
    if to_at <= place.through:
        return None
    is_new = name not in places
    # At once, so that a crash within the first slice does not start from a later watermark.
    places[name] = place
    is_deep = policy.lookback > policy.relook and not (
        timedelta(0) <= now - place.looked_back_at < policy.lookback_every
    )
    back = timedelta(0) if is_new else policy.lookback if is_deep else policy.relook
    from_at = earlier(place.through, back)
    gap = None
    if oldest is not None:
        from_at = max(from_at, oldest)
        if place.through < oldest:
            place = _StreamState(min(oldest, to_at), place.looked_back_at)
            gap = Gap(
                from_at=places[name].through,
                to_at=place.through,
                scope=name,
                reason=f"older than the source's retention of {policy.retention}",
            )
    return _Turn(
        stream,
        place,
        slices(from_at, to_at, slice_max=policy.slice_max, is_day_bound=policy.is_day_bound),
        gap=gap,
        looked_back_at=now if is_deep else place.looked_back_at,
    )


class _Turn:
    """One stream's part of a pass, slice by slice.

    Args:
        place: Where the stream stands; the slices may begin before it.
        gap: What lies before the first slice and is lost.
        looked_back_at: Becomes the stream's once what lies before its place was read again.
    """

    def __init__(
        self,
        stream: WindowedStream,
        place: _StreamState,
        todo: Iterator[Slice],
        *,
        gap: Gap | None,
        looked_back_at: datetime,
    ) -> None:
        self.name = stream.name
        self._stream = stream
        self._place = place
        self._todo = todo
        self._halves: list[Slice] = []  # the earliest last
        self._gap = gap
        self._reread_to = place.through
        self._looked_back_at = looked_back_at

    async def next_parts(self) -> Sequence[_Part]:
        """The pages of the next slice; none if there is no further slice."""
        if self._gap is not None:
            gap, self._gap = self._gap, None
            return [_Part(gaps=(gap,), place=self._place)]
        one = self._halves.pop() if self._halves else next(self._todo, None)
        if one is None:
            return ()
        while True:
            try:
                fetched = await self._stream.fetch(one)
                break
            except TooLarge as error:
                halved = halves(one, self._stream.policy.slice_min)
                if halved is None:
                    raise Unavailable(
                        f"stream {self.name}: from {format_utc(one.from_at)} to "
                        f"{format_utc(one.to_at)} there is more than the source gives in one "
                        "answer, and no shorter slice can be asked for; nothing was left out, "
                        "the stream waits here"
                    ) from error
                one, later = halved
                self._halves.append(later)
        is_reread = one.to_at >= self._reread_to
        self._place = _StreamState(
            through=max(self._place.through, one.to_at),
            looked_back_at=self._looked_back_at if is_reread else self._place.looked_back_at,
        )
        return _parts(fetched, self._place, self._stream.policy.page_events)


def _parts(fetched: Fetched, place: _StreamState, page_events: int) -> Sequence[_Part]:
    """Cut what a slice holds into pages; the last one moves the stream."""
    events = sorted(fetched.events, key=_order)
    rejected = fetched.rejected
    starts = range(0, max(len(events), len(rejected), 1), page_events)
    return [
        _Part(
            events=events[start : start + page_events],
            rejected=rejected[start : start + page_events],
            gaps=fetched.gaps if start == 0 else (),
            place=place if start == starts[-1] else None,
        )
        for start in starts
    ]


def _order(event: Any) -> tuple[datetime, str]:
    """By time and id; what has no time comes last, and the others are not lost for it."""
    try:
        return as_utc(event.occurred_at), str(event.event_id)
    except (Malformed, AttributeError):
        return _LAST, ""


def _places(cursor: Cursor | None) -> dict[str, _StreamState]:
    if cursor is None:
        return {}
    version = cursor.get("v")
    if version != CURSOR_VERSION or isinstance(version, bool):
        raise Misconfigured(
            f"the stored cursor has version {str(version)[:20]}, and this connector reads version "
            f"{CURSOR_VERSION}: move it by time with `verity rewind`"
        )
    try:
        return {
            str(name): _StreamState(
                through=parse_utc(place["through"]),
                looked_back_at=parse_utc(place["looked_back_at"]),
            )
            for name, place in cursor["streams"].items()
        }
    except (Malformed, KeyError, TypeError, AttributeError) as error:
        raise Misconfigured(
            "the stored cursor is not understood: move it by time with `verity rewind`"
        ) from error


def _cursor(places: Mapping[str, _StreamState]) -> dict[str, Any]:
    return {
        "v": CURSOR_VERSION,
        "streams": {
            name: {
                "through": format_utc(place.through),
                "looked_back_at": format_utc(place.looked_back_at),
            }
            for name, place in places.items()
        },
    }


def _complete_through(place: _StreamState, policy: WindowPolicy) -> datetime:
    seen = place.through
    if policy.lateness > policy.settle + policy.relook:
        # What comes later than a pass reads again is seen by the next lookback, not before.
        seen = min(seen, place.looked_back_at)
    # The last `relook` is still to be asked again, however late the vendor says events may come.
    return complete_before(earlier(seen, max(policy.lateness, policy.relook)))


def complete_before(at: datetime) -> datetime:
    """Up to when a stream is complete where all that happened before `at` was read.

    What happens at `at` itself was not, and a source that cuts its times to seconds shows it as
    of the second's beginning: so it is the last microsecond before that.
    """
    return earlier(_whole_second(at), _MICROSECOND)


def _whole_second(at: datetime) -> datetime:
    return as_utc(at).replace(microsecond=0)


def _next_whole_second(at: datetime) -> datetime:
    return at if at.microsecond == 0 else _whole_second(at) + _SECOND
