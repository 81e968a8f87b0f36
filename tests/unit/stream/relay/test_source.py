"""From what a connector yields to pages: cutting, checking, and how far the watermark may go."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import compress
from typing import Any

import page_builders
import pytest
import structlog.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st
from page_builders import HASHER, ListPage, body_of, new_builder, target

from verity_sdk import batches as batches_module
from verity_sdk.batches import Limits, ListBatch, batched, batched_into
from verity_sdk.connector_base import BaseConnector, RawEvent
from verity_sdk.errors import Denied, Unavailable
from verity_sdk.pages import Gap, Page, PagedConnector, Position, RejectedRecord
from verity_sdk.position import FIRST_SINCE, Watermark, earlier
from verity_stream.records import GAPS_TOPIC, Checkpoint, PageSummary, Record, dead_topic, raw_topic
from verity_stream.relay.ids import hashes_of
from verity_stream.relay.page_builder import PageBuilder
from verity_stream.relay.seen_window import SeenWindow
from verity_stream.relay.sources import PagedSource, PlainSource, RelayPage, source_of

START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 6, 1, tzinfo=UTC)
LONG = timedelta(hours=1)


def at(second: int) -> datetime:
    return START + timedelta(seconds=second)


def event(number: Any, second: int = 0, **fields: Any) -> RawEvent:
    return RawEvent(
        **{
            "platform": "acme",
            "event_id": f"e{number}",
            "occurred_at": at(second),
            "principal_ref": "ada",
            "asset_ref": "vault",
            "operation": "READ",
            **fields,
        }
    )


async def yielding(*things: Any) -> AsyncIterator[Any]:
    """A source: yields things, awaits functions, raises errors."""
    for thing in things:
        if isinstance(thing, BaseException):
            raise thing
        if callable(thing):
            await thing()
        else:
            yield thing


async def gathered(items: Any, limits: Limits) -> tuple[list[Any], bool, BaseException | None]:
    """The lists, whether the last said that it is the last, and how it ended."""
    lists: list[Any] = []
    flags = [False]
    try:
        async for chunk, is_last in batched(items, limits):
            lists.append(chunk)
            flags.append(is_last)
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return lists, flags[-1], error
    return lists, flags[-1], None


# batched


@given(st.lists(st.integers(1, 4), max_size=30), st.integers(1, 6))
def test_lists_keep_the_order_and_their_bound(given_items: list[int], bound: int) -> None:
    async def scenario() -> list[list[int]]:
        items = batched(yielding(*given_items), Limits(bound, LONG))
        flags = []
        lists = []
        async for chunk, is_last in items:
            lists.append(chunk)
            flags.append(is_last)
        assert flags == [False] * (len(flags) - 1) + [True]
        return lists

    lists = asyncio.run(scenario())
    assert [item for chunk in lists for item in chunk] == given_items
    assert all(len(chunk) == bound for chunk in lists[:-1])
    assert len(lists[-1]) <= bound


async def test_an_empty_source_ends_with_an_empty_list() -> None:
    assert await gathered(yielding(), Limits(3, LONG)) == ([[]], True, None)


@pytest.mark.parametrize("error", [Unavailable("gone"), Denied("no"), ZeroDivisionError()])
@pytest.mark.parametrize("before", [0, 1, 2, 3])
async def test_what_came_before_an_error_comes_out_first(error: Exception, before: int) -> None:
    lists, is_last, raised = await gathered(yielding(*range(before), error), Limits(2, LONG))
    assert [one for chunk in lists for one in chunk] == list(range(before))
    assert raised is error
    assert not is_last


async def test_a_quiet_source_does_not_hold_back_what_it_yielded() -> None:
    quiet = asyncio.Event()
    items: Any = batched(yielding(1, quiet.wait, 2), Limits(9, timedelta(0)))
    assert await anext(items) == ([1], False)
    quiet.set()
    assert await anext(items) == ([2], True)


async def test_a_source_that_hangs_is_unavailable() -> None:
    limits = Limits(9, timedelta(0), timedelta(milliseconds=1))
    lists, _, raised = await gathered(yielding(1, asyncio.Event().wait), limits)
    assert lists == [[1]]
    assert isinstance(raised, Unavailable)
    assert "fetch_timeout" in str(raised)


async def test_a_source_that_cancels_itself_is_unavailable() -> None:
    """Its CancelledError must not look like an order to the relay."""
    lists, _, raised = await gathered(yielding(1, asyncio.CancelledError()), Limits(9, LONG))
    assert lists == [[1]]
    assert isinstance(raised, Unavailable)


async def test_the_source_is_read_ahead_by_one_list_at_most() -> None:
    read = []

    async def source() -> AsyncIterator[int]:
        for number in range(100):
            read.append(number)
            yield number

    items: Any = batched(source(), Limits(3, LONG))
    await anext(items)
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(read) <= 6
    await items.aclose()


@pytest.mark.parametrize("stop", ["close", "cancel"])
async def test_the_source_is_closed_with_its_consumer(stop: str) -> None:
    closed = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            closed.set()

    items: Any = batched(source(), Limits(9, timedelta(0)))
    await anext(items)
    if stop == "close":
        await items.aclose()
    else:
        waiting = asyncio.create_task(anext(items))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert closed.is_set()


async def test_a_source_that_ignores_its_cancellation_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(batches_module, "ABANDON_SECONDS", 0.01)
    let_go = asyncio.Event()

    async def stubborn() -> None:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    added: list[int] = []

    class Noted(ListBatch[int]):
        def add(self, item: int, /) -> None:
            added.append(item)
            super().add(item)

    items: Any = batched_into(yielding(1, stubborn, 2), lambda: Noted(9), Limits(9, timedelta(0)))
    await anext(items)
    await asyncio.wait_for(items.aclose(), 5)
    assert "left behind" in caplog.text
    let_go.set()
    for _ in range(9):
        await asyncio.sleep(0)
    assert added == [1], "what nobody waits for any more would claim its ids"


async def test_a_source_that_fails_while_it_is_closed_leaves_no_noise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """asyncio logs an ERROR "Task exception was never retrieved", which means loss here."""

    async def source() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            raise OSError("the connection was gone already")

    items: Any = batched(source(), Limits(9, timedelta(0)))
    await anext(items)
    with caplog.at_level(logging.ERROR, "asyncio"):
        await items.aclose()
        del items
        await asyncio.sleep(0)
        gc.collect()
    assert caplog.records == []


class SlowBatch:
    """Takes an item in in two steps, between which others have their turn."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.halves = 0
        self.is_empty, self.is_full = True, False

    async def add(self, item: Any, /) -> None:
        self.halves += 1
        self.is_empty = False
        await asyncio.sleep(0)
        self.halves += 1
        self.items.append(item)
        self.is_full = len(self.items) >= 10


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 3))
def test_a_basket_that_was_handed_over_is_never_added_to(waits: list[bool], slow: int) -> None:
    """Whenever it is handed over: what came later would be in no batch that goes out."""
    given_items = list(range(len(waits)))
    things = [
        thing
        for number, is_waiting in zip(given_items, waits, strict=True)
        for thing in ([lambda: asyncio.sleep(0)] if is_waiting else []) + [number]
    ]

    async def scenario() -> tuple[list[SlowBatch], list[list[int]]]:
        batches, handed_over = [], []
        limits = Limits(10, timedelta(0))
        async for batch, _ in batched_into(yielding(*things), SlowBatch, limits):
            batches.append(batch)
            handed_over.append(list(batch.items))
            assert batch.halves == 2 * len(batch.items)
            for _ in range(slow):
                await asyncio.sleep(0)
        return batches, handed_over

    batches, handed_over = asyncio.run(scenario())
    assert [item for items in handed_over for item in items] == given_items
    assert [batch.items for batch in batches] == handed_over


# Watermark

seconds = st.lists(st.integers(0, 6), max_size=14)


@given(seconds)
def test_the_watermark_never_goes_back_and_ends_at_the_newest(offsets: list[int]) -> None:
    watermark = Watermark(at(3))
    rests = [watermark.rests_at]
    for second in offsets:
        watermark.pass_by([at(second)])
        rests.append(watermark.rests_at)
        # Within a pass it stays below the newest time, which may still get company.
        assert watermark.rests_at == at(3) or watermark.rests_at < at(max(offsets))
    assert rests == sorted(rests)
    assert watermark.is_ascending == (offsets == sorted(offsets))
    watermark.finish()
    assert watermark.rests_at == at(max([3, *offsets]))


@given(
    delivered=seconds,
    page=st.integers(1, 4),
    crash=st.integers(0, 8),
    is_closed=st.booleans(),
    remembers=st.booleans(),
)
def test_a_crash_at_any_page_loses_nothing_of_an_ascending_source(
    delivered: list[int], page: int, crash: int, is_closed: bool, remembers: bool
) -> None:
    """… and repeats nothing where the seen window remembers."""
    source = [event(number, second) for number, second in enumerate(sorted(delivered))]

    def served(since: datetime) -> list[RawEvent]:
        return [
            one
            for one in source
            if one.occurred_at > since or (is_closed and one.occurred_at == since)
        ]

    window = SeenWindow(1000)
    published: list[RawEvent] = []
    last_ts = earlier(START, timedelta(seconds=1))
    for pages_max in (crash, len(source) + 1, 1):
        watermark = Watermark(last_ts)
        events = served(last_ts)
        cut = [events[start : start + page] for start in range(0, len(events), page)] or [[]]
        for number, chunk in enumerate(cut[:pages_max]):
            watermark.pass_by([one.occurred_at for one in chunk])
            if number == len(cut) - 1:
                watermark.finish()
            hashes = [HASHER.hash("t", str(one.event_id).encode()) for one in chunk]
            is_fresh = window.claim(hashes)
            fresh = list(compress(chunk, is_fresh))
            published += fresh
            if remembers:
                times = [one.occurred_at for one in fresh]
                window.remember(hashes_of(compress(hashes, is_fresh)), times, NOW)
            last_ts = watermark.rests_at
            window.forget_before(last_ts)
    ids = [one.event_id for one in published]
    assert set(ids) == {one.event_id for one in source}
    assert len(ids) == len(set(ids)) or not remembers


@given(delivered=seconds, crash=st.integers(0, 14))
def test_once_the_order_is_broken_the_watermark_waits(delivered: list[int], crash: int) -> None:
    """So a crash can only lose what is older than where it rested when the order broke."""
    watermark = Watermark(earlier(START, timedelta(seconds=1)))
    before = delivered[:crash]
    for one in before:
        watermark.pass_by([at(one)])
    broken = next((n for n in range(1, len(before)) if before[n] < max(before[:n])), None)
    if broken is not None:
        again = Watermark(earlier(START, timedelta(seconds=1)))
        for one in before[:broken]:
            again.pass_by([at(one)])
        assert watermark.rests_at == again.rests_at


def test_what_breaks_the_order_takes_its_whole_chunk_along() -> None:
    """The chunk is published, but older company of the late one may yet come."""
    watermark = Watermark(at(0))
    watermark.pass_by([at(1), at(2), at(3)])
    assert watermark.rests_at == at(2)
    watermark.pass_by([at(4), at(5), at(1)])
    assert watermark.rests_at == at(2)
    watermark.pass_by([at(9)])
    assert watermark.rests_at == at(2)
    watermark.finish()
    assert watermark.rests_at == at(9)


# Plain connectors


class Plain(BaseConnector):
    """Yields what it was given and notes what it was asked."""

    def __init__(self, *things: Any) -> None:
        super().__init__({"connector_id": "acme-1"}, None, None)
        self.things = things
        self.asked: list[datetime] = []

    async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        self.asked.append(since)
        async for one in yielding(*self.things):
            yield one

    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        return
        yield


class Coroutine(Plain):
    """`async def` that returns an iterator, as the specification's signature also allows."""

    async def stream_audit_events(self, since: datetime) -> Any:  # type: ignore[override]
        return yielding(*self.things)


class Paged(PagedConnector):
    """Yields the given pages."""

    def __init__(self, *pages: Any) -> None:
        super().__init__({"connector_id": "acme-1"}, None, None)
        self.pages = pages
        self.asked: list[Position] = []

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        self.asked.append(position)
        async for page in yielding(*self.pages):
            yield page

    snapshot_permissions = Plain.snapshot_permissions


CHECKPOINT = Checkpoint("acme-1", 3, 1, at(10), {"next": 4}, at(9))


async def pages_of(
    connector: BaseConnector, lookback: int = 0, events_max: int = 2
) -> list[RelayPage]:
    source: Any = source_of(
        connector, timedelta(seconds=lookback), Limits(events_max, LONG), lambda: NOW
    )
    return [page async for page in source.pages(CHECKPOINT, new_builder())]


def ids_of(*pages: RelayPage) -> list[str]:
    return [one for page in pages for one in page_builders.ids_of(page.builder)]


def records_of(page: RelayPage) -> list[Record]:
    assert isinstance(page.builder.page, ListPage)
    return page.builder.page.records


def test_the_adapter_fits_the_kind() -> None:
    limits = Limits(1, LONG)
    assert isinstance(source_of(Plain(), LONG, limits, lambda: NOW), PlainSource)
    assert isinstance(source_of(Paged(), LONG, limits, lambda: NOW), PagedSource)


async def test_a_plain_pass_rests_behind_the_newest_until_it_ends() -> None:
    plain = Plain(event(1, 11), event(2, 12), event(3, 12), event(4, 13))
    pages = await pages_of(plain, lookback=5)
    assert ids_of(*pages) == ["e1", "e2", "e3", "e4"]
    assert pages[0].reached.last_ts == at(11)
    assert pages[-1].reached.last_ts == at(13)
    assert plain.asked == [at(5)]


async def test_an_async_function_that_returns_an_iterator_works_too() -> None:
    (page,) = await pages_of(Coroutine(event(1, 11)))
    assert ids_of(page) == ["e1"]


FAR = datetime(9999, 1, 1, tzinfo=UTC)


class Ticking:
    """A clock that the test moves, and sources that move it while they are read."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    async def advance(self, seconds: float = 60) -> None:
        self.now += timedelta(seconds=seconds)


async def test_a_time_in_the_future_does_not_move_the_watermark() -> None:
    """Not even to now: what a sane event has not reached may still appear."""
    far = event(1, occurred_at=FAR)
    (page,) = await pages_of(Plain(far))
    assert page.reached.last_ts == at(10)
    (page,) = await pages_of(Paged(Page([far], {"next": 1})))
    assert page.reached.last_ts == at(10)


@pytest.mark.parametrize("far_stands_at", range(4))
async def test_what_is_dated_ahead_leaves_the_sane_times_their_say(far_stands_at: int) -> None:
    events = [event(number, 11 + number) for number in range(3)]
    events.insert(far_stands_at, event("far", occurred_at=FAR))
    pages = await pages_of(Plain(*events))
    assert [page.reached.last_ts for page in pages][-1] == at(13)
    pages = await pages_of(Paged(*(Page([one], {"next": 1}) for one in events)))
    assert [page.reached.last_ts for page in pages][-1] == at(13)


async def test_what_happens_during_a_pass_moves_the_watermark_in_the_next_one() -> None:
    """A pass looks at a source when it begins: what appears late meanwhile is no part of it."""
    clock = Ticking()
    before, during = event(1, occurred_at=NOW), event(2, occurred_at=NOW + timedelta(seconds=30))
    for connector in (
        Plain(before, clock.advance, during),
        Paged(Page([before], {"next": 1}), clock.advance, Page([during], {"next": 2})),
    ):
        clock.now = NOW
        source: Any = source_of(connector, timedelta(0), Limits(1, LONG), clock)
        first = [page.reached.last_ts async for page in source.pages(CHECKPOINT, new_builder())]
        assert first[-1] == NOW
        second = [page.reached.last_ts async for page in source.pages(CHECKPOINT, new_builder())]
        assert second[-1] == during.occurred_at


async def test_a_source_that_shows_what_happens_only_once_moves_its_watermark_too() -> None:
    """It is a pass late, but the window of ids does not grow for ever."""
    clock = Ticking()

    class Heartbeat(Plain):
        async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
            await clock.advance(1)
            yield event(clock().isoformat(), occurred_at=clock())

    source: Any = source_of(Heartbeat(), timedelta(0), Limits(9, LONG), clock)
    rests = []
    for _ in range(4):
        rests += [page.reached.last_ts async for page in source.pages(CHECKPOINT, new_builder())]
    assert rests == [at(10), *(NOW + timedelta(seconds=one) for one in (1, 2, 3))]


async def test_complete_through_is_never_ahead_of_the_clock() -> None:
    (page,) = await pages_of(Paged(Page([event(1, 11)], {"next": 1}, FAR)))
    assert (page.reached.last_ts, page.reached.complete_through) == (NOW, NOW)


@pytest.mark.parametrize(
    ("last_ts", "lookback", "since"),
    [
        (FIRST_SINCE, 60, FIRST_SINCE),
        (FIRST_SINCE + timedelta(seconds=9), 60, FIRST_SINCE),
        (at(70), 60, at(10)),
        (at(70), 0, at(70)),
        (FIRST_SINCE - timedelta(seconds=9), 60, FIRST_SINCE - timedelta(seconds=9)),
    ],
)
async def test_a_plain_source_is_asked_from_its_lookback_on(
    last_ts: datetime, lookback: int, since: datetime
) -> None:
    """The first start asks from the year 2000, as specified: before it nothing was published."""
    plain = Plain()
    source: Any = source_of(plain, timedelta(seconds=lookback), Limits(9, LONG), lambda: NOW)
    assert [_ async for _ in source.pages(replace(CHECKPOINT, last_ts=last_ts), new_builder())]
    assert plain.asked == [since]


class Late(Plain):
    """Shows an event some seconds after its time, and takes its time to show all of them."""

    def __init__(
        self, truth: list[tuple[RawEvent, datetime]], clock: Ticking, is_strict: bool, slow: float
    ) -> None:
        super().__init__()
        self.truth, self.clock, self.is_strict, self.slow = truth, clock, is_strict, slow

    async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        looked_at = self.clock()
        shown = [
            one
            for one, visible_at in self.truth
            if visible_at <= looked_at
            and (one.occurred_at > since or (one.occurred_at == since and not self.is_strict))
        ]
        for one in sorted(shown, key=lambda one: (one.occurred_at, one.event_id)):
            await self.clock.advance(self.slow)
            yield one


@settings(deadline=None, max_examples=60)  # Each is dozens of passes.
@given(
    happened=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 4)), min_size=1, max_size=30),
    ahead=st.lists(st.integers(0, 60), max_size=2),
    is_strict=st.booleans(),
    slow=st.sampled_from([0, 0.1, 1, 3]),
    every=st.integers(1, 20),
)
def test_a_late_source_loses_and_repeats_nothing_whatever_is_dated_ahead(
    happened: list[tuple[int, int]], ahead: list[int], is_strict: bool, slow: float, every: int
) -> None:
    """Lateness is at most the lookback; whole seconds, so that many share their time."""
    lookback = timedelta(seconds=5)
    clock = Ticking(START)
    truth = [
        (event(number, second), at(second + late)) for number, (second, late) in enumerate(happened)
    ]
    truth += [(event(f"ahead-{one}", one + 3600), at(one)) for one in set(ahead)]
    source: Any = source_of(Late(truth, clock, is_strict, slow), lookback, Limits(4, LONG), clock)
    window = SeenWindow(10_000)
    checkpoint = Checkpoint("acme-1", 0, 1, START - timedelta(seconds=10))
    published: list[str] = []

    async def one_pass() -> None:
        nonlocal checkpoint
        builders: Any = partial(PageBuilder, target("acme-1", window))
        async for page in source.pages(checkpoint, builders):
            published.extend(ids_of(page))
            builder = page.builder
            window.remember(builder.hashes, builder.times_of_ids(clock()), clock())
            checkpoint = replace(checkpoint, last_ts=max(checkpoint.last_ts, page.reached.last_ts))
            window.forget_before(earlier(checkpoint.last_ts, lookback))

    async def scenario() -> None:
        while clock() < at(80):
            await one_pass()
            await clock.advance(every)
        await one_pass()

    asyncio.run(scenario())
    assert sorted(published) == sorted(one.event_id for one, _ in truth)


async def test_what_is_no_event_is_set_apart_with_the_reason() -> None:
    things = [
        event(1, 11),
        "no event",
        event(2, 12, event_id=None),
        event(3, 12, event_id=""),
        event(4, occurred_at="yesterday"),
        event(0, 14, event_id=0),
    ]
    (page,) = await pages_of(Plain(*things), events_max=100)
    assert ids_of(page) == ["e1", "0"]
    assert page.reached.last_ts == at(14)
    assert (await page.builder.finish()).dead_count == 4
    letters = [body_of(one) for one in records_of(page) if "dead" in one.topic]
    assert [letter["reference"] for letter in letters] == [None, None, None, "e4"]
    assert "str" in letters[0]["reason"]


async def test_naive_times_are_utc_and_warned_of_once() -> None:
    naive = [event(one, occurred_at=at(7).replace(tzinfo=None)) for one in range(3)]
    with structlog.testing.capture_logs() as said:
        pages = await pages_of(Plain(*naive))
    assert [one for page in pages for one in page.builder.times] == [at(7)] * 3
    assert [one["event"] for one in said] == ["source.naive_time"]


@pytest.mark.parametrize(
    ("start", "by"), [(datetime.min.replace(tzinfo=UTC), LONG), (START, timedelta.max)]
)
def test_looking_back_ends_at_the_beginning_of_time(start: datetime, by: timedelta) -> None:
    assert earlier(start, by) == datetime.min.replace(tzinfo=UTC)


# Paged connectors


async def test_small_pages_are_coalesced_with_all_they_carry() -> None:
    gap = Gap(None, None, "all", "lost")
    rejected = RejectedRecord(b"x", "no JSON")
    pages = await pages_of(
        Paged(
            Page([event(1, 11)], {"next": 1}, at(11), [rejected]),
            Page([event(2, 9)], {"next": 2}, at(20), gaps=[gap]),
            Page([], {"next": 3}),
        ),
        events_max=100,
    )
    (page,) = pages
    assert (page.reached.last_ts, page.reached.cursor, page.reached.complete_through) == (
        at(20),
        {"next": 3},
        at(20),
    )
    assert ids_of(page) == ["e1", "e2"]
    assert page.builder.times == [at(11), at(9)]
    assert await page.builder.finish() == PageSummary(2, 0, 1, 1)
    assert [one.topic for one in records_of(page)] == [
        *(raw_topic("acme"), raw_topic("acme"), dead_topic("acme"), GAPS_TOPIC)
    ]


@given(
    said=st.lists(st.none() | st.integers(0, 30), min_size=1, max_size=8),
    events_max=st.integers(1, 8),
)
@example(said=[20, 15], events_max=8)
@example(said=[20, 15], events_max=1)
@example(said=[20, 15, None], events_max=8)
@example(said=[None, None], events_max=1)
def test_it_is_complete_as_far_as_the_last_page_that_says_so(
    said: list[int | None], events_max: int
) -> None:
    """Also where that goes back: something of what lies before is to be asked again."""
    given_pages = [
        Page([event(n, 11)], {"next": n}, None if second is None else at(second))
        for n, second in enumerate(said)
    ]
    pages = asyncio.run(pages_of(Paged(*given_pages), events_max=events_max))
    last: datetime | None = CHECKPOINT.complete_through
    wanted = [last := last if second is None else at(second) for second in said]
    assert [page.reached.complete_through for page in pages] == [
        wanted[min(end, len(said)) - 1]
        for end in range(events_max, len(said) + events_max, events_max)
    ]


async def test_a_paged_pass_starts_from_the_stored_position() -> None:
    paged = Paged()
    assert await pages_of(paged) == []
    assert paged.asked == [Position(at(10), {"next": 4}, None)]


@given(st.lists(st.integers(0, 30), max_size=8), st.integers(1, 4))
def test_a_paged_watermark_never_goes_back(offsets: Sequence[int], events_max: int) -> None:
    given_pages = [Page([event(n, second)], {"next": n}) for n, second in enumerate(offsets)]
    pages = asyncio.run(pages_of(Paged(*given_pages), events_max=events_max))
    rests = [page.reached.last_ts for page in pages]
    assert rests == sorted(rests)
    assert rests[-1:] == [at(max([10, *offsets]))][: len(rests)]


async def test_pages_before_an_error_come_out_first() -> None:
    source = PagedSource(
        Paged(Page([event(1)], {"next": 1}), Denied("no")), Limits(9, LONG), lambda: NOW
    )
    pages: Any = source.pages(CHECKPOINT, new_builder())
    assert (await anext(pages)).reached.cursor == {"next": 1}
    with pytest.raises(Denied):
        await anext(pages)


@given(
    sizes=st.lists(st.sampled_from([0, 1, 1, 1, 2, 24, 25, 26, 60]), max_size=60),
    events_max=st.sampled_from([2, 25, 26, 1000]),
    slow=st.integers(0, 2),
)
def test_what_goes_out_is_whole_however_it_was_cut(
    sizes: list[int], events_max: int, slow: int
) -> None:
    """At every 25th event a builder gives others their turn, also to what hands it over."""
    numbers = itertools.count()
    given_pages = [
        Page([event(next(numbers)) for _ in range(size)], {"next": page + 1})
        for page, size in enumerate(sizes)
    ]
    ends = list(itertools.accumulate(sizes, initial=0))

    async def scenario() -> None:
        source: Any = PagedSource(
            Paged(*given_pages), Limits(events_max, timedelta(0)), lambda: NOW
        )
        out = 0
        handed_over = []
        async for page in source.pages(CHECKPOINT, new_builder()):
            ids = ids_of(page)
            assert ids == [f"e{number}" for number in range(out, out + len(ids))]
            out += len(ids)
            assert out == ends[page.reached.cursor["next"]], "events and cursor of different pages"
            handed_over.append((page.builder, ids))
            for _ in range(slow):
                await asyncio.sleep(0)
        assert out == sum(sizes)
        assert all(page_builders.ids_of(builder) == ids for builder, ids in handed_over)

    asyncio.run(scenario())


@pytest.mark.parametrize("count", [1, 3])
async def test_a_page_that_could_only_be_added_in_part_does_not_go_out(count: int) -> None:
    """It would be torn: what the connector is asked for again comes with a cursor."""
    gaps: Any = 5  # Which can't be added.
    good = [Page([event(number)], {"next": number}) for number in range(count)]
    source: Any = PagedSource(
        Paged(*good, Page([event("torn")], {}, gaps=gaps)),
        Limits(2, LONG),
        lambda: NOW,
    )
    ids: list[str] = []

    async def read() -> None:
        async for page in source.pages(CHECKPOINT, new_builder()):
            ids.extend(ids_of(page))

    with pytest.raises(TypeError):
        await read()
    assert ids == [f"e{number}" for number in range(count - count % 2)]


async def test_a_cursor_that_the_connector_goes_on_using_is_the_one_of_its_page() -> None:
    """`cursor["next"] = …; yield Page(…, cursor)`: read ahead, the cursor would skip a page."""

    class Reusing(Paged):
        async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
            cursor = {"next": 0}
            for number in range(3):
                cursor["next"] = number + 1
                yield Page([event(number)], cursor)

    source: Any = PagedSource(Reusing(), Limits(1, LONG), lambda: NOW)
    cursors = []
    async for page in source.pages(CHECKPOINT, new_builder()):
        for _ in range(5):
            await asyncio.sleep(0)  # The relay publishes meanwhile.
        cursors.append(dict(page.reached.cursor))
    assert cursors == [{"next": 1}, {"next": 2}, {"next": 3}]
