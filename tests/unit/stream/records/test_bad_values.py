"""One bad value costs at most its record: whatever a connector yields, through both sources.

An event that says who did what, on what, when and whose it is, is published, altered where JSON
has no word for something; then its original is a dead letter, too. Any other is one dead letter.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_builders import ListPage, body_of, target

from verity_sdk.batches import Limits
from verity_sdk.connector_base import BaseConnector, RawEvent
from verity_sdk.pages import Page, PagedConnector, Position
from verity_stream.records import Checkpoint, Record, dead_topic, raw_topic
from verity_stream.relay.page_builder import PageBuilder
from verity_stream.relay.sources import Source, source_of

AT = datetime(2026, 1, 31, 23, 59, 59, tzinfo=UTC)
CHECKPOINT = Checkpoint("acme-1", 3, 2, AT - timedelta(days=1))


class Plain(BaseConnector):
    def __init__(self, *events: Any) -> None:
        super().__init__({}, None, None)
        self.events = events

    async def stream_audit_events(self, since: datetime) -> AsyncIterator[Any]:
        for event in self.events:
            yield event

    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        return
        yield


class Paged(PagedConnector):
    def __init__(self, *events: Any) -> None:
        super().__init__({}, None, None)
        self.events = events

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        yield Page(self.events, {"next": 1})

    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        return
        yield


async def records_of(source: Source) -> list[Record]:
    """All records of one pass."""
    records: list[Record] = []
    pages: Any = source.pages(CHECKPOINT, partial(PageBuilder, target(platform="acme")))
    async for page in pages:
        await page.builder.finish()
        assert isinstance(page.builder.page, ListPage)
        records += page.builder.page.records
    return records


def published(kind: type[Plain] | type[Paged], *events: Any) -> tuple[list[Record], list[Record]]:
    """What of the events is in the raw topic, and what in the dead letters."""
    limits = Limits(1000, timedelta(seconds=1))
    source = source_of(kind(*events), timedelta(0), limits, lambda: AT + timedelta(days=1))
    records = asyncio.run(records_of(source))
    raw = [one for one in records if one.topic == raw_topic("acme")]
    dead = [one for one in records if one.topic == dead_topic("acme")]
    assert len(raw) + len(dead) == len(records)
    return raw, dead


def event(**fields: Any) -> RawEvent:
    return RawEvent(
        **{
            "platform": "acme",
            "event_id": "bad",
            "occurred_at": AT,
            "principal_ref": "ada",
            "asset_ref": "vault",
            "operation": "READ",
            "raw_payload": {"a": 1},
            **fields,
        }
    )


def strictly(value: bytes | None) -> Any:
    """JSON as a strict reader takes it: UTF-8, no NaN, no key twice, integers of 64 bits."""

    def no_constant(text: str) -> Any:
        raise AssertionError(f"{text} is no JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs), "a key stands twice"
        return dict(pairs)

    def integer(text: str) -> int:
        assert -(2**63) <= int(text) < 2**64
        return int(text)

    assert value is not None
    assert orjson.loads(value) is not None
    text = value.decode("utf-8")
    return json.loads(text, parse_constant=no_constant, object_pairs_hook=unique, parse_int=integer)


def key_text(key: Any) -> str | None:
    """The key that JSON has in place of this one; None where that is not the same thing."""
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, bool):
        return {None: "null", True: "true", False: "false"}[key]
    if isinstance(key, int) and -(2**63) <= key < 2**64:
        return str(key)
    return None


def differences(was: Any, found: Any, at: str) -> Iterator[str]:
    """The pointers to what is not as it was."""
    if isinstance(was, Mapping) and isinstance(found, dict):
        assert len(was) == len(found)
        for (key, one), (name, other) in zip(was.items(), found.items(), strict=True):
            place = f"{at}/{name.replace('~', '~0').replace('/', '~1')}"
            if key_text(key) != name:
                yield place
            yield from differences(one, other, place)
    elif isinstance(was, list | tuple) and isinstance(found, list):
        for number, (one, other) in enumerate(zip(was, found, strict=True)):
            yield from differences(one, other, f"{at}/{number}")
    elif isinstance(was, datetime | UUID):
        assert isinstance(found, str)
    elif type(was) is not type(found) or was != found:
        assert isinstance(found, str), "what can't be written is a text"
        yield at


class BadZone(tzinfo):
    def utcoffset(self, at: datetime | None) -> timedelta:
        raise RuntimeError("no")

    def dst(self, at: datetime | None) -> None:
        return None

    def tzname(self, at: datetime | None) -> None:
        return None


any_text = st.text(st.characters(exclude_categories=()), max_size=8)
integers = st.integers() | st.sampled_from([2**63, 2**64 - 1, 2**64, -(2**63) - 1])
leaves = (
    st.none()
    | st.booleans()
    | integers
    | st.floats()
    | any_text
    | st.binary(max_size=4)
    | st.builds(object)
    | st.decimals()
    | st.uuids()
    | st.just(AT)
)
keys = any_text | st.integers() | st.none() | st.tuples(st.integers()) | st.booleans()
payloads = st.dictionaries(
    keys,
    st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(keys, inner, max_size=3)
            | st.tuples(inner)
        ),
        max_leaves=8,
    ),
    max_size=4,
)
references = any_text | st.none() | st.integers() | st.uuids() | st.binary() | st.floats()
times = (
    st.datetimes()
    | st.datetimes(timezones=st.just(UTC))
    | st.sampled_from(
        [
            *(None, "yesterday", 7, date(2026, 1, 1)),
            datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
        ]
    )
    | st.builds(lambda: AT.replace(tzinfo=BadZone()))  # It can't be hashed.
)
platforms = st.sampled_from(["acme", "acme", "acme", "hr", None, "a/b", ["acme"], "ac\ud800me"])
events = st.builds(
    RawEvent,
    platform=platforms,
    event_id=references,
    occurred_at=times,
    principal_ref=references,
    asset_ref=references,
    operation=references,
    raw_payload=payloads,
)
sound = st.builds(
    event,
    event_id=any_text.filter(lambda text: text not in ("", "first", "last")),
    principal_ref=any_text | integers | st.uuids(),
    raw_payload=payloads,
)


def says_who_and_what(one: RawEvent) -> bool:
    """The rule, said once more."""

    def is_text(value: Any) -> bool:
        return isinstance(value, str | UUID) or type(value) is int

    try:
        has_time = isinstance(one.occurred_at, datetime)
        if has_time and one.occurred_at.tzinfo is not None:
            one.occurred_at.astimezone(UTC)
    except (RuntimeError, OverflowError):
        has_time = False
    names = (one.event_id, one.principal_ref, one.asset_ref, one.operation)
    return (
        one.platform == "acme"
        and has_time
        and one.event_id != ""
        and all(is_text(name) for name in names)
    )


@pytest.mark.parametrize("kind", [Plain, Paged])
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_event_is_out_or_one_dead_letter_and_the_others_are_out(
    kind: type[Plain] | type[Paged], data: st.DataObject
) -> None:
    bad = data.draw(sound | events)
    raw, dead = published(kind, event(event_id="first"), bad, event(event_id="last"))
    first, *between, last = raw
    assert [dict(one.headers)["event_id"] for one in (first, last)] == [b"first", b"last"]
    if not says_who_and_what(bad):
        assert between == []
        assert len(dead) == 1
        return
    (out,) = between
    body, headers = strictly(out.value), dict(out.headers)
    payload = body.pop("raw_payload")
    found = set(differences(bad.raw_payload, payload, "/raw_payload"))
    for name in ("event_id", "principal_ref", "asset_ref", "operation"):
        was = getattr(bad, name)
        if body[name] != (was if isinstance(was, str) else str(was)):
            assert body[name] == was.encode("utf-8", "backslashreplace").decode()
            found.add(f"/{name}")
    assert found == set(orjson.loads(headers.get("altered", b"[]")))
    assert headers["event_id"].decode() == body["event_id"]
    assert len(dead) == bool(found)
    for letter in dead:
        assert dict(letter.headers)["event_id"] == headers["event_id"]
        assert strictly(letter.value)["reason"].startswith("published, but altered")


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"in": value}
    return value


def itself() -> dict[str, Any]:
    value: dict[str, Any] = {"a": 1}
    value["self"] = [value]
    return value


ALTERED: dict[str, tuple[dict[str, Any], list[str], Any]] = {
    "a surrogate": ({"raw_payload": {"x": "a\ud800b"}}, ["/raw_payload/x"], {"x": "a\\ud800b"}),
    "in a key": ({"raw_payload": {"\udfff": 1}}, ["/raw_payload/\\udfff"], {"\\udfff": 1}),
    "NaN": ({"raw_payload": {"x": [math.nan]}}, ["/raw_payload/x/0"], {"x": ["NaN"]}),
    "NaN beside null": (
        {"raw_payload": {"n": None, "in": {"m": None, "x": math.nan}}},
        ["/raw_payload/in/x"],
        {"n": None, "in": {"m": None, "x": "NaN"}},
    ),
    "infinity": (
        {"raw_payload": {"x": -math.inf, "y": math.inf}},
        ["/raw_payload/x", "/raw_payload/y"],
        {"x": "-Infinity", "y": "Infinity"},
    ),
    "a long integer": (
        {"raw_payload": {"x": 2**64, "y": 2**64 - 1}},
        ["/raw_payload/x"],
        {"x": "18446744073709551616", "y": 2**64 - 1},
    ),
    "thousands of digits": (
        {"raw_payload": {"x": -(10**5000)}, "asset_ref": 10**5000},
        ["/raw_payload/x"],
        {"x": "-1" + "0" * 5000},
    ),
    "bytes": ({"raw_payload": {"x": b"a\xff"}}, ["/raw_payload/x"], {"x": "a\\xff"}),
    "a key that is escaped in a pointer": (
        {"raw_payload": {"a/b~": b""}},
        ["/raw_payload/a~1b~0"],
        {"a/b~": ""},
    ),
    "two keys of one text": (
        {"raw_payload": {1: "a", "1": "b"}},
        ["/raw_payload/1 (2)"],
        {"1": "a", "1 (2)": "b"},
    ),
    "an object": ({"raw_payload": {"x": Decimal("1.10")}}, ["/raw_payload/x"], None),
    "itself": ({"raw_payload": itself()}, ["/raw_payload/self/0"], None),
    "depth": ({"raw_payload": nested(1000)}, ["/raw_payload" + "/in" * 253], None),
    "more depth": ({"raw_payload": nested(50_000)}, ["/raw_payload" + "/in" * 253], None),
    "an id": ({"event_id": "\ud800"}, ["/event_id"], {"a": 1}),
    "a reference": ({"principal_ref": "\ud800"}, ["/principal_ref"], {"a": 1}),
    "an operation": ({"operation": "\ud800"}, ["/operation"], {"a": 1}),
}


@pytest.mark.parametrize("kind", [Plain, Paged])
@pytest.mark.parametrize("name", ALTERED)
def test_what_is_wrong_otherwise_never_hides_the_deed(
    kind: type[Plain] | type[Paged], name: str
) -> None:
    fields, pointers, payload = ALTERED[name]
    (out,), (letter, *more) = published(kind, event(**fields))
    assert orjson.loads(dict(out.headers)["altered"]) == pointers
    assert payload is None or strictly(out.value)["raw_payload"] == payload
    parts = body_of(letter)["parts"]
    assert len(more) == parts - 1


@pytest.mark.parametrize("depth", [252, 253])
def test_as_deep_as_orjson_writes_nothing_is_altered(depth: int) -> None:
    (out,), dead = published(Plain, event(raw_payload=nested(depth) | {1: 1}))
    assert (("altered" in dict(out.headers)), len(dead)) == ((depth > 252), (depth > 252))


def test_with_many_pointers_the_header_names_the_fields() -> None:
    payload = {"x": [b""] * 101}
    (out,), _ = published(Plain, event(raw_payload=payload, asset_ref="\ud800"))
    assert orjson.loads(dict(out.headers)["altered"]) == ["/asset_ref", "/raw_payload"]
    (out,), _ = published(Plain, event(raw_payload={"x" * 5000: b""}))
    assert orjson.loads(dict(out.headers)["altered"]) == ["/raw_payload"]


@pytest.mark.parametrize("value", [17, UUID(int=5), True])
@pytest.mark.parametrize("name", ["event_id", "principal_ref", "asset_ref", "operation"])
def test_integers_and_uuids_are_references(name: str, value: Any) -> None:
    raw, dead = published(Paged, event(**{name: value}))
    if value is True:
        assert (len(raw), len(dead)) == (0, 1)
    else:
        assert strictly(raw[0].value)[name] == str(value)
        assert dead == []


def test_a_naive_time_is_utc() -> None:
    (out,), dead = published(Plain, event(occurred_at=AT.replace(tzinfo=None)))
    assert strictly(out.value)["occurred_at"] == "2026-01-31T23:59:59.000000Z"
    assert dead == []


def test_an_event_without_its_fields_is_a_dead_letter() -> None:
    half = RawEvent.__new__(RawEvent)
    half.platform = "acme"
    raw, dead = published(Paged, half, event())
    assert (len(raw), len(dead)) == (1, 1)
