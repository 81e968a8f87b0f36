"""Pages are bounded in bytes as well as in events, whatever a source yields."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog.testing
from hypothesis import given
from hypothesis import strategies as st
from page_builders import ListPage, ids_of, new_builder

from verity_sdk import BaseConnector, Page, PagedConnector, RawEvent, RejectedRecord
from verity_sdk.batches import Limits, batched
from verity_sdk.errors import Unavailable
from verity_stream.records import Checkpoint
from verity_stream.relay.sources import RelayPage, source_of

START = datetime(2026, 1, 1, tzinfo=UTC)
CHECKPOINT = Checkpoint("acme-1", 3, 1, START, None, None)
LONG = timedelta(hours=1)
EVENTS_MAX = 20
PAGE_BYTES = 100_000


def event(number: int, payload_bytes: int) -> RawEvent:
    at = START + timedelta(seconds=number)
    return RawEvent("acme", f"e{number}", at, "u", "a", "SELECT", {"p": "x" * payload_bytes})


class Plain(BaseConnector):
    """Yields events of these sizes."""

    def __init__(self, *things: Any) -> None:
        super().__init__({"connector_id": "acme-1"}, None, None)
        self.things = things

    async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        for thing in self.things:
            yield thing

    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        return
        yield


class Paged(PagedConnector):
    """Yields these pages."""

    def __init__(self, *pages: Page) -> None:
        super().__init__({"connector_id": "acme-1"}, None, None)
        self.pages = pages

    async def fetch_pages(self, position: Any) -> AsyncIterator[Page]:
        for page in self.pages:
            yield page

    snapshot_permissions = Plain.snapshot_permissions


async def pages_of(connector: BaseConnector) -> list[RelayPage]:
    source = source_of(
        connector, timedelta(0), Limits(EVENTS_MAX, LONG), lambda: START + LONG, PAGE_BYTES
    )
    return [page async for page in source.pages(CHECKPOINT, new_builder())]


def sizes_of(page: RelayPage) -> list[int]:
    """Of its events, as JSON."""
    page.builder.take()
    assert isinstance(page.builder.page, ListPage)
    return [len(record.value or b"") for record in page.builder.page.records]


@given(st.lists(st.sampled_from([0, 100, 4000, 6000, 30_000, 250_000]), max_size=40))
def test_a_page_is_full_at_so_many_events_or_so_many_bytes(sizes: list[int]) -> None:
    given_events = [event(*one) for one in enumerate(sizes)]
    pages = asyncio.run(pages_of(Plain(*given_events)))
    assert [one for page in pages for one in ids_of(page.builder)] == [
        one.event_id for one in given_events
    ]
    for page in pages:
        sizes = sizes_of(page)
        assert len(sizes) <= EVENTS_MAX
        # Without its last event a page is below the bound.
        assert sum(sizes[:-1]) < PAGE_BYTES
    for page in pages[:-1]:
        # And it is not cut for nothing.
        assert len(sizes_of(page)) == EVENTS_MAX or sum(sizes_of(page)) >= PAGE_BYTES


@given(st.lists(st.tuples(st.integers(0, 8), st.sampled_from([0, 3000, 20_000])), max_size=20))
def test_small_pages_are_coalesced_up_to_the_bytes(given_pages: list[tuple[int, int]]) -> None:
    cursors = [
        Page([event(10 * number + one, payload) for one in range(count)], {"next": number})
        for number, (count, payload) in enumerate(given_pages)
    ]
    pages = asyncio.run(pages_of(Paged(*cursors)))
    assert sum(len(page.builder.times) for page in pages) == sum(count for count, _ in given_pages)
    largest = max((count * (payload + 200) for count, payload in given_pages), default=0)
    for page in pages:
        assert sum(sizes_of(page)) < PAGE_BYTES + largest


def test_rejected_records_have_a_size_too() -> None:
    rejected = [RejectedRecord(b"x" * 60_000, "no JSON")]
    pages = asyncio.run(pages_of(Paged(*(Page([], {"n": n}, None, rejected) for n in range(4)))))
    assert [asyncio.run(page.builder.finish()).dead_count for page in pages] == [1, 0]
    assert [page.reached.cursor for page in pages] == [{"n": 1}, {"n": 3}]


def test_a_page_that_is_too_large_by_itself_stays_whole_and_is_said() -> None:
    """Its cursor continues after all of it: a part could only go out without one."""
    whole = Page([event(number, 30_000) for number in range(10)], {"next": 10})
    with structlog.testing.capture_logs() as said:
        (page,) = asyncio.run(pages_of(Paged(whole)))
    assert len(page.builder.times) == 10
    assert [one["event"] for one in said] == ["source.page_too_large"]
    assert said[0]["size_bytes"] > 300_000


class Unprintable:
    """Raises whatever is done with it."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


nested: list[Any] = []
nested.append(nested)


@pytest.mark.parametrize(
    "thing", [Unprintable(), {"a": Unprintable()}, nested, {1: 2**80}, "\ud800", {"b": b"x" * 9}]
)
def test_whatever_is_yielded_has_a_size(thing: Any) -> None:
    (page,) = asyncio.run(pages_of(Plain(thing)))
    assert page.builder.size_bytes > 0
    assert asyncio.run(page.builder.finish()).dead_count == 1


@pytest.mark.parametrize("thing", [{"b": b"x" * 100_000}, {"n": 2**80, "s": "x" * 100_000}])
def test_what_is_no_json_is_not_free(thing: Any) -> None:
    page, *_ = asyncio.run(pages_of(Plain(thing)))
    assert page.builder.size_bytes >= 100_000


# What a source may raise, and what comes of it


class Evil(BaseException):
    """No Exception."""


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), Evil()])
async def test_what_would_end_the_event_loop_is_an_error_of_the_source(
    error: BaseException,
) -> None:
    """asyncio lets SystemExit and KeyboardInterrupt out of a task and ends the loop."""

    async def source() -> AsyncIterator[int]:
        yield 1
        raise error

    items: Any = batched(source(), Limits(9, LONG))
    assert await anext(items) == ([1], False)
    with pytest.raises(RuntimeError, match=type(error).__name__):
        await anext(items)


class Opening(Plain):
    """`async def` that does something before it returns an iterator."""

    def __init__(self, opening: Any) -> None:
        super().__init__()
        self.opening = opening

    # As the specification's signature also allows.
    async def stream_audit_events(self, since: datetime) -> Any:  # type: ignore[override]
        await self.opening()
        return super().stream_audit_events(since)


async def test_an_opening_that_hangs_is_cut_by_the_fetch_timeout() -> None:
    limits = Limits(9, LONG, timedelta(milliseconds=1))
    source = source_of(Opening(asyncio.Event().wait), LONG, limits, lambda: START)
    with pytest.raises(Unavailable, match="fetch_timeout"):
        async with asyncio.timeout(5):
            await anext(source.pages(CHECKPOINT, new_builder()))


async def test_an_opening_that_cancels_is_unavailable() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    source = source_of(Opening(cancelled), LONG, Limits(9, LONG), lambda: START)
    with pytest.raises(Unavailable):
        await anext(source.pages(CHECKPOINT, new_builder()))
