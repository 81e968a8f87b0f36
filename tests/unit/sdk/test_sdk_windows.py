"""Windows: nothing is left out, whatever comes late, and no cursor says more than was read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verity_sdk.clock import ClockDifference
from verity_sdk.connector_base import RawEvent
from verity_sdk.context import Context
from verity_sdk.errors import Denied, Misconfigured, Unavailable
from verity_sdk.pages import Gap, Page, Position, RejectedRecord
from verity_sdk.position import FIRST_SINCE
from verity_sdk.times import parse_utc
from verity_sdk.windows import (
    Fetched,
    Slice,
    TooLarge,
    WindowedStream,
    WindowPolicy,
    halves,
    slices,
    windowed_pages,
)

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

POLICY = WindowPolicy(settle=5 * MINUTE, slice_max=HOUR)


@dataclass
class Source:
    """What a platform holds: `(id, occurred_at, visible_at)`; it notes what it is asked."""

    events: list[tuple[str, datetime, datetime]] = field(default_factory=list)
    now: datetime = NOW
    limit: int | None = None
    asked: list[Slice] = field(default_factory=list)
    errors: list[Exception | None] = field(default_factory=list)
    rejected: Sequence[RejectedRecord] = ()
    gaps: Sequence[Gap] = ()

    def clock(self) -> datetime:
        return self.now

    def add(self, *minutes_ago: float) -> None:
        for minutes in minutes_ago:
            at = self.now - timedelta(minutes=minutes)
            self.events.append((f"e{len(self.events)}", at, at))

    async def fetch(self, one: Slice) -> Fetched:
        self.asked.append(one)
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error
        found = [
            event(event_id, at)
            for event_id, at, visible_at in self.events
            if one.from_at <= at < one.to_at and visible_at <= self.now
        ]
        if self.limit is not None and len(found) > self.limit:
            raise TooLarge
        return Fetched(list(reversed(found)), self.rejected, self.gaps)

    def stream(self, policy: WindowPolicy = POLICY, name: str = "a") -> WindowedStream:
        return WindowedStream(name, self.fetch, policy)

    async def read(
        self,
        policy: WindowPolicy = POLICY,
        *,
        since: datetime = NOW - 6 * HOUR,
        cursor: Any = None,
        until: datetime | None = None,
    ) -> list[Page]:
        position = Position(since, cursor, until)
        return [page async for page in windowed_pages([self.stream(policy)], position, self.clock)]


def event(event_id: str, at: datetime) -> RawEvent:
    return RawEvent("p", event_id, at, "who", "what", "READ")


def ids(pages: Sequence[Page]) -> list[str]:
    return [one.event_id for page in pages for one in page.events]


async def until_error(pages: AsyncIterator[Page], error: type[Exception], match: str) -> list[Page]:
    """What came before the error."""
    read: list[Page] = []

    async def to_the_end() -> None:
        async for page in pages:
            read.append(page)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(error, match=match):
        await to_the_end()
    return read


def through(page: Page, name: str = "a") -> datetime:
    return parse_utc(page.cursor["streams"][name]["through"])


def looked_back_at(page: Page, name: str = "a") -> datetime:
    return parse_utc(page.cursor["streams"][name]["looked_back_at"])


def cursor(
    at: datetime, looked_back: datetime | None = None, name: str = "a"
) -> dict[str, dict[str, Any] | int]:
    place = {"through": at.isoformat(), "looked_back_at": (looked_back or NOW).isoformat()}
    return {"v": 1, "streams": {name: place}}


# Cutting

TIMES = st.datetimes(
    datetime(2026, 1, 1), datetime(2026, 1, 4), timezones=st.just(UTC)  # noqa: DTZ001 - hypothesis wants them so
)  # fmt: skip
LENGTHS = st.timedeltas(10 * MINUTE, timedelta(days=2))


@given(TIMES, TIMES, LENGTHS, st.booleans())
def test_slices_cover_the_range_exactly(
    from_at: datetime, to_at: datetime, slice_max: timedelta, is_day_bound: bool
) -> None:
    cut = list(slices(from_at, to_at, slice_max=slice_max, is_day_bound=is_day_bound))
    start, end = from_at.replace(microsecond=0), to_at.replace(microsecond=0)
    if start >= end:
        assert cut == []
        return
    assert cut[0].from_at == start
    assert cut[-1].to_at == end
    for one, following in pairwise(cut):
        assert one.to_at == following.from_at
    for one in cut:
        assert SECOND <= one.to_at - one.from_at <= slice_max
        assert one.from_at.microsecond == one.to_at.microsecond == 0
        if is_day_bound:
            assert one.last_second.date() == one.from_at.date()


def test_a_slice_is_as_long_as_it_may_be() -> None:
    at = datetime(2026, 1, 1, 22, 30, tzinfo=UTC)
    cut = list(slices(at, at + 3 * HOUR, slice_max=HOUR, is_day_bound=True))
    assert [(one.to_at - one.from_at) / MINUTE for one in cut] == [60, 30, 60, 30]
    assert cut[1].last_second == datetime(2026, 1, 1, 23, 59, 59, tzinfo=UTC)
    cut = list(slices(at, at + 3 * HOUR, slice_max=HOUR))
    assert [(one.to_at - one.from_at) / MINUTE for one in cut] == [60, 60, 60]


def test_a_slice_shorter_than_a_second_is_a_bug() -> None:
    with pytest.raises(ValueError, match="shorter than a second"):
        list(slices(NOW, NOW + HOUR, slice_max=timedelta(milliseconds=999)))


@given(st.integers(1, 10**6), st.timedeltas(timedelta(0), timedelta(days=12)))
def test_halves_are_exact_and_not_too_short(seconds: int, slice_min: timedelta) -> None:
    one = Slice(NOW, NOW + timedelta(seconds=seconds))
    both = halves(one, slice_min)
    if both is None:
        assert seconds // 2 < max(slice_min.total_seconds(), 1)
        return
    first, second = both
    assert (first.from_at, second.to_at) == (one.from_at, one.to_at)
    assert first.to_at == second.from_at
    assert first.to_at.microsecond == 0
    assert timedelta(0) <= (second.to_at - second.from_at) - (first.to_at - first.from_at) <= SECOND
    assert first.to_at - first.from_at >= max(slice_min, SECOND)


# One pass


async def test_a_pass_reads_from_since_to_the_settled_second() -> None:
    source = Source(now=NOW + timedelta(microseconds=5))
    source.add(359, 200, 200, 6, 4)
    since = NOW - 6 * HOUR + timedelta(microseconds=3)
    pages = await source.read(since=since)
    assert sorted(ids(pages)) == ["e0", "e1", "e2", "e3"]
    assert source.asked[0].from_at == NOW - 6 * HOUR
    assert source.asked[-1].to_at == NOW - 5 * MINUTE
    assert through(pages[-1]) == NOW - 5 * MINUTE
    assert looked_back_at(pages[-1]) == source.now
    assert all(page.gaps == () for page in pages)


async def test_events_come_sorted_by_time_and_id() -> None:
    source = Source()
    at = NOW - HOUR
    source.events = [(name, at, at) for name in "dbca"] + [("z", at - SECOND, at - SECOND)]
    assert ids(await source.read()) == ["z", "a", "b", "c", "d"]


async def test_a_naive_time_is_utc() -> None:
    async def fetch(one: Slice) -> Fetched:
        at = one.from_at
        return Fetched([event("b", at + SECOND), event("a", at.replace(tzinfo=None))])

    position = Position(NOW - HOUR)
    stream = WindowedStream("a", fetch, replace(POLICY, slice_max=DAY))
    pages = [page async for page in windowed_pages([stream], position, lambda: NOW)]
    assert ids(pages) == ["a", "b"]


async def test_a_long_slice_comes_in_pages_and_only_the_last_moves_the_cursor() -> None:
    source = Source()
    source.add(*(55 + number / 100 for number in range(25)))
    source.rejected = [RejectedRecord(bytes([number]), "r") for number in range(12)]
    source.gaps = [Gap(None, None, "object", "lost")]
    policy = replace(POLICY, slice_max=2 * HOUR, page_events=10)
    pages = await source.read(policy, since=NOW - HOUR)
    assert [len(page.events) for page in pages] == [10, 10, 5]
    assert [len(page.rejected) for page in pages] == [10, 2, 0]
    assert [len(page.gaps) for page in pages] == [1, 0, 0]
    assert [through(page) for page in pages] == [NOW - HOUR, NOW - HOUR, NOW - 5 * MINUTE]
    assert {record.data for page in pages for record in page.rejected} == (
        {record.data for record in source.rejected}
    )


async def test_more_rejected_records_than_events_are_all_there() -> None:
    source = Source(rejected=[RejectedRecord(b"x", "r")] * 25)
    pages = await source.read(replace(POLICY, slice_max=DAY, page_events=10))
    assert [len(page.rejected) for page in pages] == [10, 10, 5]
    assert [through(page) for page in pages[:2]] == [NOW - 6 * HOUR] * 2


async def test_empty_slices_come_as_one_page_at_the_end() -> None:
    source = Source()
    source.add(5.5 * 60)
    pages = await source.read()
    assert [len(page.events) for page in pages] == [1, 0]
    assert through(pages[0]) == NOW - 5 * HOUR
    assert through(pages[1]) == NOW - 5 * MINUTE


async def test_empty_slices_show_their_progress_from_time_to_time() -> None:
    source = Source()
    pages = await source.read(replace(POLICY, slice_max=MINUTE))
    assert [len(source.asked), len(pages)] == [355, 4]
    assert through(pages[0]) == NOW - 6 * HOUR + 100 * MINUTE

    async def slow(one: Slice) -> Fetched:
        source.now += SECOND
        return Fetched([])

    stream = WindowedStream("a", slow, POLICY)
    read = windowed_pages([stream], Position(NOW - 6 * HOUR), source.clock)
    assert len([page async for page in read]) == 6


@pytest.mark.parametrize(
    ("since", "until", "place"),
    [
        (NOW + HOUR, None, None),
        (NOW - 5 * MINUTE, None, None),
        (NOW - HOUR, NOW - HOUR, None),
        (NOW - HOUR, NOW - 2 * HOUR, None),
        (NOW, None, cursor(NOW - 5 * MINUTE)),
        (NOW, None, cursor(NOW + DAY)),
        (NOW - DAY, NOW - HOUR, cursor(NOW - HOUR)),
    ],
)
async def test_where_nothing_is_to_be_read_nothing_is_asked(
    since: datetime, until: datetime | None, place: Any
) -> None:
    source = Source()
    source.add(1, 10, 100)
    policy = replace(POLICY, relook=DAY, lookback=10 * DAY, retention=30 * DAY)
    assert await source.read(policy, since=since, until=until, cursor=place) == []
    assert source.asked == []


async def test_a_backfill_ends_at_until() -> None:
    source = Source()
    until = NOW - 2 * HOUR + timedelta(milliseconds=500)
    pages = await source.read(since=NOW - 4 * HOUR, until=until)
    assert through(pages[-1]) == NOW - 2 * HOUR
    assert source.asked[-1].to_at == NOW - 2 * HOUR
    pages = await source.read(until=NOW + DAY)
    assert through(pages[-1]) == NOW - 5 * MINUTE


# Reading again


async def test_every_pass_reads_the_last_relook_again_and_the_cursor_stays() -> None:
    source = Source()
    source.add(*range(20, 200, 10))
    policy = replace(POLICY, relook=2 * HOUR)
    pages = await source.read(policy, cursor=cursor(NOW - 10 * MINUTE))
    assert source.asked[0].from_at == NOW - 10 * MINUTE - 2 * HOUR
    assert [through(page) for page in pages[:-1]] == [NOW - 10 * MINUTE] * (len(pages) - 1)
    assert through(pages[-1]) == NOW - 5 * MINUTE
    assert [looked_back_at(page) for page in pages] == [NOW] * len(pages)
    assert set(ids(pages)) == {f"e{number}" for number in range(12)}


async def test_the_lookback_is_read_again_when_its_time_has_come() -> None:
    policy = replace(POLICY, relook=HOUR, lookback=3 * DAY, lookback_every=DAY, slice_max=DAY)
    source = Source()
    source.add(4000)
    recent, due = NOW - 23 * HOUR, NOW - 25 * HOUR
    at = NOW - 10 * MINUTE
    pages = await source.read(policy, cursor=cursor(at, recent))
    assert source.asked[0].from_at == at - HOUR
    assert looked_back_at(pages[-1]) == recent
    source.asked.clear()
    pages = await source.read(policy, cursor=cursor(at, due))
    assert source.asked[0].from_at == at - 3 * DAY
    assert ids(pages) == ["e0"]
    assert looked_back_at(pages[0]) == due  # not before all of it was read
    assert looked_back_at(pages[-1]) == NOW
    source.asked.clear()
    await source.read(policy, cursor=cursor(at, NOW + 300 * DAY))  # a clock was wrong
    assert source.asked[0].from_at == at - 3 * DAY


async def test_a_lookback_that_fails_is_due_again() -> None:
    policy = replace(POLICY, lookback=3 * DAY, slice_max=DAY)
    due = NOW - 25 * HOUR
    source = Source(errors=[None, None, Unavailable("x")])
    source.add(3 * 1440)
    position = Position(NOW, cursor(NOW - 10 * MINUTE, due))
    read = windowed_pages([source.stream(policy)], position, source.clock)
    pages = await until_error(read, Unavailable, "x")
    assert ids(pages) == ["e0"]
    assert [looked_back_at(page) for page in pages] == [due]


async def test_the_first_pass_looks_back_at_nothing() -> None:
    source = Source()
    policy = replace(POLICY, relook=HOUR, lookback=DAY, slice_max=DAY)
    pages = await source.read(policy, since=NOW - HOUR)
    assert [one.from_at for one in source.asked] == [NOW - HOUR]
    assert looked_back_at(pages[-1]) == NOW


async def test_complete_is_what_was_looked_for_late_enough() -> None:
    """An event that comes an hour late is found by the lookback only: until then not complete."""
    source = Source()
    policy = replace(
        POLICY, relook=10 * MINUTE, lateness=HOUR, lookback=DAY, lookback_every=3 * HOUR
    )
    place, complete = None, []
    for hours in (0, 2, 3):
        source.now = NOW + hours * HOUR
        pages = await source.read(policy, cursor=place)
        place = pages[-1].cursor
        complete.append(pages[-1].complete_through)
    through = [NOW - 65 * MINUTE, NOW - HOUR, NOW + 3 * HOUR - 65 * MINUTE]
    assert complete == [one - timedelta(microseconds=1) for one in through]
    within = replace(policy, relook=55 * MINUTE, lookback_every=DAY)
    pages = await source.read(within, cursor=cursor(NOW, NOW))
    assert pages[-1].complete_through == source.now - 65 * MINUTE - timedelta(microseconds=1)


async def test_complete_leaves_out_what_a_source_shows_as_of_its_second() -> None:
    """It happened after the second that it shows, and came as late as the vendor says."""
    source = Source()
    looked_back_at = NOW - HOUR + timedelta(seconds=0.3)
    settle = timedelta(0)
    policy = replace(POLICY, settle=settle, lateness=HOUR, lookback=2 * DAY, lookback_every=DAY)
    pages = await source.read(policy, cursor=cursor(NOW - MINUTE, looked_back_at))
    happened_at = looked_back_at - HOUR + timedelta(seconds=0.6)
    shown_at = happened_at.replace(microsecond=0)
    assert looked_back_at < happened_at + HOUR, "it was not there yet"
    complete_through = pages[-1].complete_through
    assert complete_through is not None
    assert complete_through < shown_at


async def test_a_clock_that_is_hours_ahead_loses_nothing() -> None:
    """Read up to a time that is still to come, a stretch is empty and was taken as read."""
    source = Source()
    policy = replace(POLICY, relook=30 * MINUTE, lateness=30 * MINUTE)
    difference = ClockDifference(lambda: 0.0)
    with Context(trusted=difference.trusted).within():
        place: Any = cursor(NOW - HOUR)
        seen: set[str] = set()
        for _ in range(6):
            source.add(0)
            source.now += 10 * MINUTE
            difference.hear(source.now)
            position = Position(NOW - HOUR, place)
            ahead = windowed_pages([source.stream(policy)], position, lambda: source.now + 3 * HOUR)
            pages = [page async for page in ahead]
            place = pages[-1].cursor
            seen |= set(ids(pages))
            assert pages[-1].complete_through is not None
            assert pages[-1].complete_through <= source.now
    assert seen == {event_id for event_id, _, _ in source.events}


# Retention


async def test_what_is_past_retention_is_a_gap_in_the_first_page() -> None:
    source = Source(now=NOW + timedelta(milliseconds=300))
    policy = replace(POLICY, retention=2 * HOUR)
    pages = await source.read(policy)
    oldest = NOW - 2 * HOUR + SECOND
    assert len(pages) == 2
    (gap,) = pages[0].gaps
    assert (gap.scope, gap.from_at, gap.to_at) == ("a", NOW - 6 * HOUR, oldest)
    assert pages[1].gaps == ()
    assert source.asked[0].from_at == oldest
    source.asked.clear()
    again = await source.read(policy, cursor=pages[0].cursor)
    assert [page.gaps for page in again] == [()]
    assert source.asked[0].from_at == oldest


async def test_at_the_first_start_nothing_is_missing() -> None:
    """It was a gap of 26 years, told as a loss; each stream begins where its source does."""
    source = Source(now=NOW + timedelta(milliseconds=300))
    policy = replace(POLICY, retention=2 * HOUR)
    pages = await source.read(policy, since=FIRST_SINCE)
    oldest = NOW - 2 * HOUR + SECOND
    assert [gap for page in pages for gap in page.gaps] == []
    assert source.asked[0].from_at == oldest
    # What the source lets go of from then on is missing.
    pages = await Source(now=NOW + DAY).read(policy, cursor=pages[-1].cursor)
    assert [gap.to_at for page in pages for gap in page.gaps] == [NOW + 22 * HOUR]


async def test_complete_is_never_further_than_what_is_still_asked_again() -> None:
    """The stretch that every pass reads again, also where no lateness is declared."""
    policy = replace(POLICY, settle=timedelta(0), lateness=timedelta(0), relook=HOUR)
    pages = await Source().read(policy, cursor=cursor(NOW - 2 * HOUR))
    assert pages[-1].complete_through == NOW - HOUR - timedelta(microseconds=1)


async def test_a_relook_past_retention_is_no_gap() -> None:
    source = Source()
    policy = replace(POLICY, retention=2 * HOUR, relook=DAY)
    pages = await source.read(policy, cursor=cursor(NOW - HOUR))
    assert [page.gaps for page in pages] == [()]
    assert source.asked[0].from_at == NOW - 2 * HOUR


async def test_a_worker_that_was_down_too_long_says_what_it_missed() -> None:
    policy = replace(POLICY, retention=2 * HOUR)
    pages = await Source().read(policy, cursor=cursor(NOW - DAY))
    (gap,) = pages[0].gaps
    assert (gap.from_at, gap.to_at) == (NOW - DAY, NOW - 2 * HOUR)


async def test_a_backfill_before_retention_is_all_gap() -> None:
    source = Source()
    policy = replace(POLICY, retention=2 * HOUR)
    pages = await source.read(policy, since=NOW - 9 * HOUR, until=NOW - 8 * HOUR)
    assert source.asked == []
    assert [(gap.from_at, gap.to_at) for page in pages for gap in page.gaps] == [
        (NOW - 9 * HOUR, NOW - 8 * HOUR)
    ]
    assert through(pages[-1]) == NOW - 8 * HOUR


# Slices that are too large


async def test_a_slice_that_is_too_large_is_halved() -> None:
    source = Source(limit=3)
    source.add(*(20 + number for number in range(40)))
    pages = await source.read(since=NOW - HOUR)
    assert ids(pages) == [f"e{number}" for number in reversed(range(40))]
    throughs = [through(page) for page in pages]
    assert throughs == sorted(throughs)
    assert all(len(page.events) <= 3 for page in pages)


async def test_a_second_that_is_too_large_stops_its_stream_and_names_it() -> None:
    source = Source(limit=3)
    source.add(20, 10, 10, 10, 10, 8)
    position = Position(NOW - HOUR)
    read = windowed_pages([source.stream()], position, source.clock)
    why = r"stream a: from 2026-11-24T11:50:00.*nothing was left out"
    pages = await until_error(read, Unavailable, why)
    assert ids(pages) == ["e0"]
    assert through(pages[-1]) == NOW - 10 * MINUTE
    shortest = min(one.to_at - one.from_at for one in source.asked)
    assert shortest == SECOND


async def test_halving_ends_at_slice_min() -> None:
    source = Source(limit=0)
    source.add(20)
    policy = replace(POLICY, slice_min=7 * MINUTE)
    with pytest.raises(Unavailable):
        await source.read(policy, since=NOW - HOUR)
    assert min(one.to_at - one.from_at for one in source.asked) >= 7 * MINUTE


# Several streams


async def test_streams_take_turns_and_share_a_cursor() -> None:
    one, other = Source(), Source()
    one.add(*range(10, 300, 40))
    other.add(*range(15, 300, 40))
    other.events = [(f"o{name}", at, seen) for name, at, seen in other.events]
    streams = [one.stream(name="a"), other.stream(replace(POLICY, lateness=HOUR), name="b")]
    position = Position(NOW - 5 * HOUR)
    pages = [page async for page in windowed_pages(streams, position, lambda: NOW)]
    assert len(ids(pages)) == 16
    kinds = [page.events[0].event_id[0] for page in pages if page.events]
    assert kinds[:4] == ["e", "o", "e", "o"]
    assert through(pages[-1], "a") == through(pages[-1], "b") == NOW - 5 * MINUTE
    assert pages[-1].complete_through == NOW - 5 * MINUTE - HOUR - timedelta(microseconds=1)
    assert pages[0].complete_through == NOW - 6 * HOUR - timedelta(microseconds=1)


async def test_a_stream_that_fails_ends_the_pass_after_the_others() -> None:
    failing = Source(errors=[None, Denied("no licence"), None])
    failing.add(290)
    late = Source(errors=[None, None, None, Unavailable("later")])
    good = Source()
    good.add(*range(10, 300, 10))
    streams = [failing.stream(name="f"), late.stream(name="l"), good.stream(name="g")]
    read = windowed_pages(streams, Position(NOW - 5 * HOUR), lambda: NOW)
    pages = await until_error(read, Denied, "no licence")
    assert through(pages[-1], "f") == NOW - 4 * HOUR
    assert through(pages[-1], "l") == NOW - 2 * HOUR
    assert through(pages[-1], "g") == NOW - 5 * MINUTE
    assert pages[-1].complete_through == NOW - 4 * HOUR - timedelta(microseconds=1)
    assert len(failing.asked) == 2


async def test_a_new_stream_starts_at_since_and_an_old_one_keeps_its_place() -> None:
    source = Source()
    place = cursor(NOW - 3 * HOUR, name="gone")
    pages = await source.read(cursor=place, since=NOW - 2 * HOUR)
    assert source.asked[0].from_at == NOW - 2 * HOUR
    assert through(pages[-1], "gone") == NOW - 3 * HOUR
    assert pages[-1].complete_through == NOW - 5 * MINUTE - timedelta(microseconds=1)


async def test_a_new_stream_does_not_start_later_after_a_crash() -> None:
    """Its first slice is half out: the next pass may have a later watermark, but reads all."""
    source = Source()
    source.add(*(50 + number / 100 for number in range(30)))
    policy = replace(POLICY, page_events=10)
    position = Position(NOW - HOUR)
    async with aclosing(windowed_pages([source.stream(policy)], position, source.clock)) as pages:  # type: ignore[type-var]
        first = await anext(pages)
    again = await source.read(policy, since=NOW - MINUTE, cursor=first.cursor)
    assert len(set(ids(again))) == 30


async def test_two_streams_of_one_name_are_a_bug() -> None:
    source = Source()
    with pytest.raises(ValueError, match="same name"):
        await anext(windowed_pages([source.stream()] * 2, Position(NOW - HOUR), lambda: NOW))


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"v": 2, "streams": {}},
        {"v": True, "streams": {}},
        {"v": "1", "streams": {}},
        {"v": 1},
        {"v": 1, "streams": []},
        {"v": 1, "streams": {"a": {}}},
        {"v": 1, "streams": {"a": {"through": "soon", "looked_back_at": "soon"}}},
        {"v": 1, "streams": {"a": {"through": 5, "looked_back_at": 5}}},
        {"v": 1, "streams": {"a": None}},
    ],
)
async def test_a_cursor_that_is_not_known_names_the_way_out(stored: Any) -> None:
    with pytest.raises(Misconfigured, match="verity rewind"):
        await Source().read(cursor=stored)


# The whole


@dataclass
class History:
    """What was published, and where the next pass starts, whatever was cut short."""

    published: dict[str, datetime] = field(default_factory=dict)
    cursor: Any = None
    promised: list[datetime] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_nothing_is_lost_and_no_promise_is_broken(data: st.DataObject) -> None:
    """Passes that end anywhere, events that come late, slices that are refused or fail."""
    minutes = st.integers(0, 90).map(lambda number: timedelta(minutes=number))
    settle, relook, lateness = (data.draw(minutes, label=name) for name in ("s", "r", "l"))
    lookback_every = data.draw(st.sampled_from([30 * MINUTE, 3 * HOUR]), label="every")
    is_covered = lateness <= settle + relook
    policy = WindowPolicy(
        settle=settle,
        slice_max=data.draw(st.sampled_from([7 * MINUTE, HOUR, 5 * HOUR]), label="slice_max"),
        lateness=lateness,
        relook=relook,
        lookback=timedelta(0) if is_covered else lateness + lookback_every + 2 * HOUR,
        lookback_every=lookback_every,
        is_day_bound=data.draw(st.booleans(), label="day"),
        page_events=data.draw(st.integers(1, 5), label="page"),
    )
    begin = datetime(2026, 11, 24, 20, tzinfo=UTC)
    latest = max(settle + relook, lateness) if is_covered else lateness
    source = Source(now=begin, limit=data.draw(st.sampled_from([None, 6]), label="limit"))
    drawn = data.draw(
        st.lists(st.tuples(st.integers(0, 6 * 3600), st.floats(0, 1), st.booleans()), max_size=30),
        label="events",
    )
    # Not more of one second than can be answered: that is its own test.
    for number, (second, part, is_whole) in enumerate(sorted(drawn, key=lambda one: one[0])):
        at = begin + timedelta(seconds=second, microseconds=0 if is_whole else number)
        source.events.append((f"e{number}", at, at + part * latest))
    seconds = [at.replace(microsecond=0) for _, at, _ in source.events]
    if source.limit is not None:
        source.limit = max(source.limit, *(seconds.count(at) for at in seconds), 1)
    late_by_id = {name: seen - at for name, at, seen in source.events}
    history = History()

    def take(page: Page) -> None:
        json.dumps(page.cursor)
        if history.cursor is not None:
            before, after = (parse_utc(one["streams"]["a"]["through"]) for one in
                             (history.cursor, page.cursor))  # fmt: skip
            assert after >= before
            assert after <= source.now - policy.settle
        for one in page.events:
            if one.event_id in history.published:
                continue
            history.published[one.event_id] = one.occurred_at
            late_by = late_by_id[one.event_id]
            if history.promised and late_by <= policy.lateness:
                assert one.occurred_at > history.promised[-1], "complete_through was not true"
        assert page.complete_through is not None
        if history.promised:
            assert page.complete_through >= history.promised[-1]
        history.promised.append(page.complete_through)
        history.gaps.extend(page.gaps)
        history.cursor = page.cursor

    async def one_pass(pages_max: int) -> None:
        position = Position(begin, history.cursor)
        pages = windowed_pages([source.stream(policy)], position, source.clock)
        async with aclosing(pages):  # type: ignore[type-var]
            try:
                for _ in range(pages_max):
                    take(await anext(pages))
            except (StopAsyncIteration, Unavailable):
                return

    async def main() -> None:
        while source.now < begin + 7 * HOUR:
            source.now += timedelta(minutes=data.draw(st.integers(1, 60)))
            source.errors = data.draw(
                st.lists(st.sampled_from([None, None, Unavailable("x")]), max_size=4)
            )
            await one_pass(data.draw(st.sampled_from([0, 1, 2, 1000])))
        source.errors = []
        # Until everything has come, and once the lookback after it.
        source.now += latest + lookback_every
        await one_pass(100_000)

    asyncio.run(main())
    assert set(history.published) == {name for name, _, _ in source.events}
    assert history.gaps == []
