"""A page while it is filled: what becomes of each thing that a connector yields."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import orjson
import pytest
from page_builders import HASHER, ListPage, body_of, ids_of, target

from verity_sdk.connector_base import RawEvent
from verity_sdk.errors import Denied
from verity_sdk.pages import Gap, RejectedRecord
from verity_stream.records import (
    GAPS_TOPIC,
    Origin,
    PageSummary,
    Record,
    dead_topic,
    published_ids_of,
    raw_topic,
)
from verity_stream.relay.page_builder import TAKEN_TOGETHER, PageBuilder
from verity_stream.relay.seen_window import SeenWindow

AT = datetime(2026, 1, 31, tzinfo=UTC)


def event(event_id: Any, **fields: Any) -> RawEvent:
    given = {"platform": "acme", "operation": "READ", "raw_payload": {}, **fields}
    given = {"occurred_at": AT, "principal_ref": "ada", "asset_ref": "vault", **given}
    return RawEvent(event_id=event_id, **given)


async def filled(builder: PageBuilder, *things: Any) -> PageBuilder:
    for thing in things:
        waiting = builder.add(thing)
        if waiting is not None:
            await waiting
    return builder


def records_of(builder: PageBuilder) -> list[Record]:
    builder.take()
    assert isinstance(builder.page, ListPage)
    return builder.page.records


async def test_the_headers_say_where_an_event_comes_from() -> None:
    builder = await filled(PageBuilder(target(), 9, 10**6), event("id-1"), event(17))
    shared = [
        ("connector_id", b"acme-1"),
        ("schema", b"raw_event/1"),
        ("fetched_at", b"2026-02-03T04:05:06.000007Z"),
    ]
    assert [one.headers for one in records_of(builder)] == [
        [("event_id", b"id-1"), *shared],
        [("event_id", b"17"), *shared],
    ]
    assert [one.key for one in records_of(builder)] == [b"ada", b"ada"]


async def test_fetched_at_is_when_the_first_thing_came_not_when_the_page_was_made() -> None:
    there = target()
    builder = PageBuilder(there, 9, 10**6)
    there.origin = lambda: Origin("acme-1", "acme", "later")
    await filled(builder, event(1))
    there.origin = lambda: Origin("acme-1", "acme", "too late")
    await filled(builder, event(2))
    assert {dict(one.headers)["fetched_at"] for one in records_of(builder)} == {b"later"}


async def test_repeats_are_dropped_and_counted_and_their_times_kept() -> None:
    there = target()
    first = await filled(PageBuilder(there, 9, 10**6), event("a"), event("b"), event("a"))
    second = await filled(PageBuilder(there, 9, 10**6), event("b"), event("c"))
    assert (ids_of(first), ids_of(second)) == (["a", "b"], ["c"])
    assert await first.finish() == PageSummary(event_count=2, repeat_count=1)
    assert await second.finish() == PageSummary(event_count=1, repeat_count=1)
    # The watermark looks at the times of all; what the window remembers is the new ones'.
    assert (len(first.times), len(first.fresh_times)) == (3, 2)


async def test_a_page_claims_its_ids_before_the_next_one_does() -> None:
    """Else the first page, already handed over, would leave its event to the second."""
    there = target()
    first = await filled(PageBuilder(there, 9, 10**6), event("a"))
    second = await filled(
        PageBuilder(there, 1000, 10**6), event("a"), *map(event, range(TAKEN_TOGETHER))
    )
    await second.finish()
    await first.finish()
    assert "a" in ids_of(first)
    assert "a" not in ids_of(second)


async def test_a_page_that_was_left_unfinished_claims_nothing_once_all_is_forgotten() -> None:
    """An operator moved the position back while a page was read ahead: its events come again."""
    there = target()
    await filled(PageBuilder(there, 100, 10**6), event("a"))
    there.forget_all()
    again = await filled(PageBuilder(there, 100, 10**6), event("a"))
    await again.finish()
    assert ids_of(again) == ["a"]


async def test_an_id_that_is_a_number_is_the_text_that_reads_back() -> None:
    window = SeenWindow(100)
    window.claim([HASHER.hash(raw_topic("acme"), b"17")])
    builder = await filled(
        PageBuilder(target(window=window), 9, 10**6), event(17), event(18), event("18")
    )
    assert ids_of(builder) == ["18"]


async def test_an_id_belongs_to_its_topic() -> None:
    """Two platforms may number their events alike, and a dead letter is not the event."""
    there = target(platform=None)
    here, elsewhere = event("1"), event("1", platform="other")
    unpublishable = event("1", raw_payload={}, platform="no name")
    builder = await filled(PageBuilder(there, 9, 10**6), here, elsewhere, unpublishable)
    assert await builder.finish() == PageSummary(event_count=2, dead_count=1)
    again = await filled(PageBuilder(there, 9, 10**6), here, elsewhere, unpublishable)
    assert await again.finish() == PageSummary(repeat_count=2)


async def test_what_cant_be_published_is_one_dead_letter_however_often_it_comes() -> None:
    """An object's `repr` may differ at every turn: its event's id says that it is the same."""
    there = target()
    builder = PageBuilder(there, 99, 10**6)
    await filled(builder, *(event("x", operation=object()) for _ in range(3)), "no event")
    builder.reject(RejectedRecord(b"{", "no JSON", "line 7"))
    builder.reject(RejectedRecord(b"{", "no JSON", "line 7"))
    builder.gaps.append(Gap(None, AT, "all", "lost"))
    assert await builder.finish() == PageSummary(dead_count=3, gap_count=1)
    *letters, gap = records_of(builder)
    assert {one.topic for one in letters} == {dead_topic("acme")}
    assert gap.topic == GAPS_TOPIC
    assert [body_of(one)["reference"] for one in letters] == ["x", None, "line 7"]
    ids = [
        value.decode()
        for letter in letters
        for name, value in letter.headers
        if name in ("event_id", "dead_id")
    ]
    assert ids_of(builder) == ids
    again = await filled(PageBuilder(there, 99, 10**6), event("x", operation=object()))
    assert (await again.finish()).dead_count == 0


async def test_an_altered_event_is_out_once_and_so_is_its_original() -> None:
    there = target()
    builder = PageBuilder(there, 99, 10**6)
    await filled(builder, *(event("x", raw_payload={"n": 2**70, "o": b"ab"}) for _ in range(3)))
    assert await builder.finish() == PageSummary(event_count=1, repeat_count=2, dead_count=1)
    altered, letter = records_of(builder)
    headers = dict(altered.headers)
    assert orjson.loads(headers["altered"]) == ["/raw_payload/n", "/raw_payload/o"]
    assert body_of(altered)["raw_payload"] == {"n": str(2**70), "o": "ab"}
    assert letter.topic == dead_topic("acme")
    assert dict(letter.headers)["event_id"] == b"x"
    body = body_of(letter)
    assert "/raw_payload/n" in body["reason"]
    assert str(2**70) in body["data"]
    assert body["reference"] == "x"
    again = await filled(PageBuilder(there, 99, 10**6), event("x", raw_payload={"n": 2**70}))
    assert await again.finish() == PageSummary(repeat_count=1)


async def test_what_a_page_remembers_can_be_read_back_from_its_records_exactly() -> None:
    """So an upgrade, or a log of ids that was lost, changes nothing of what is recognised."""
    builder = await filled(
        PageBuilder(target(), 99, 10**6),
        event("plain"),
        event(17),
        event("altered", raw_payload={"x": "\ud800"}),
        event("x\udfff", principal_ref="\ud800"),
        event(None),
        event("no time", occurred_at=None),
        event("nobody", principal_ref=None),
        event("no one", principal_ref=None, raw_payload={"x": 10**30}),
        event("y" * 3000, asset_ref=None),
        "no event",
    )
    builder.reject(RejectedRecord(b"bytes", "published, but altered at birth", "f:7"))
    builder.reject(RejectedRecord(b"\xff" * 600_000, "long", None))
    await builder.finish()
    found = {
        HASHER.hash(topic, identity)
        for record in records_of(builder)
        for topic, identity, _ in published_ids_of(record)
    }
    assert found == set(builder.hashes)


async def test_a_dead_letter_is_what_was_yielded_though_the_connector_goes_on_using_it() -> None:
    builder = PageBuilder(target(), 99, 10**6)
    one = event(None, raw_payload={"n": 1})
    await filled(builder, one)
    one.raw_payload["n"] = 2
    await builder.finish()
    (letter,) = records_of(builder)
    assert '"raw_payload": {"n": 1}' in body_of(letter)["data"]


@pytest.mark.parametrize(
    "rejected",
    [
        RejectedRecord("text\ud800", "why"),  # type: ignore[arg-type]
        RejectedRecord(None, None, 7),  # type: ignore[arg-type]
        RejectedRecord(bytearray(b"x"), "why"),  # type: ignore[arg-type]
        {"no": "record"},
    ],
)
async def test_a_rejected_record_of_wrong_types_is_a_dead_letter_too(rejected: Any) -> None:
    builder = await filled(PageBuilder(target(), 99, 10**6), event(1))
    builder.reject(rejected)
    assert await builder.finish() == PageSummary(event_count=1, dead_count=1)


@pytest.mark.parametrize("gap", [Gap("long ago", AT, None, 7), "lost"])  # type: ignore[arg-type]
async def test_a_gap_of_wrong_types_is_recorded_too(gap: Any) -> None:
    builder = await filled(PageBuilder(target(), 99, 10**6), event(1))
    builder.gaps.append(gap)
    assert await builder.finish() == PageSummary(event_count=1, gap_count=1)
    body = body_of(records_of(builder)[-1])
    assert body["from_at"] is None
    assert ("long ago" in body["reason"]) or ("lost" in body["reason"])


@pytest.mark.parametrize("size", [10, 5000])
async def test_it_is_full_at_so_many_events_or_bytes(size: int) -> None:
    builder = PageBuilder(target(), 4, 10_000)
    count = 0
    assert builder.is_empty
    while not builder.is_full:
        await filled(builder, event(count, raw_payload={"p": "x" * size}))
        count += 1
    assert count == (4 if size == 10 else 2)
    assert not builder.is_empty


async def test_what_cant_be_published_and_what_repeats_fills_it_too() -> None:
    """Or a source of nothing else would never be published."""
    for thing in (event("same"), "no event", event(None)):
        builder = await filled(PageBuilder(target(), 3, 10_000), thing, thing)
        assert not builder.is_full
        assert (await filled(builder, thing)).is_full


async def test_a_new_topic_is_made_before_its_first_event_is_added() -> None:
    made: list[str] = []

    async def ensure(topics: Iterable[str]) -> None:
        made.extend(topics)

    builder = PageBuilder(target(ensure_topics=ensure), 9, 10**6)
    waiting = builder.add(event(1))
    assert waiting is not None
    assert ids_of(builder) == []
    await waiting
    assert builder.add(event(2)) is None
    assert made == [raw_topic("acme")]
    assert ids_of(builder) == ["1", "2"]


async def test_others_have_their_turn_while_a_source_floods() -> None:
    """What sends the page before needs a dozen turns until it waits for the broker."""
    turns: list[int] = []
    builder = PageBuilder(target(), 2000, 10**7)
    await filled(builder, event(0))

    async def other() -> None:
        while len(builder.hashes) < 2000:
            turns.append(len(builder.hashes))
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await filled(builder, *map(event, range(1, 2000)))
    await task
    assert len([at for at in turns if at < 600]) >= 12
    assert max(later - one for one, later in itertools.pairwise(turns)) <= 250


async def test_an_event_whose_topic_cant_be_made_is_not_claimed() -> None:
    async def ensure(_: Any) -> None:
        raise Denied("no topic for you")

    there = target(ensure_topics=ensure)
    with pytest.raises(Denied):
        await filled(PageBuilder(there, 9, 10**6), event(1))
    assert there.window.claim([HASHER.hash(raw_topic("acme"), b"1")]) == [True]


def test_an_empty_page_has_an_origin_too() -> None:
    new = partial(PageBuilder, target())
    assert new(1, 1).origin.connector_id == "acme-1"
