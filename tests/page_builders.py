"""Page builders that lead nowhere: what a source yields, without a relay and without a broker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Protocol

import orjson

from verity_stream.records import ID_HEADERS, EventEncoder, Headers, Origin, Record
from verity_stream.relay.ids import IdHasher
from verity_stream.relay.page_builder import PageBuilder, PageTarget
from verity_stream.relay.seen_window import SeenWindow
from verity_stream.relay.sources import NewBuilder

RECORD_BYTES_MAX = 1_000_000
HASHER = IdHasher(bytes(16))


class HasValue(Protocol):
    """A record, encoded or decoded."""

    @property
    def value(self) -> bytes | None: ...


def body_of(record: HasValue) -> Any:
    """A record's value, which is JSON."""
    assert record.value is not None
    return orjson.loads(record.value)


class ListPage:
    """An `OutgoingPage` that keeps its records."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    @property
    def record_count(self) -> int:
        return len(self.records)

    def add(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        partition: int | None = None,
    ) -> None:
        self.records.append(Record(topic, key, value, headers, partition))


class NoPublisher:
    """Makes pages, and publishes none."""

    def new_page(self) -> ListPage:
        return ListPage()

    async def open_topic(self, topic: str) -> None:
        pass


async def _nothing(_: object) -> None:
    pass


def target(
    connector_id: str = "acme-1",
    window: SeenWindow | None = None,
    platform: str | None = None,
    ensure_topics: Callable[[Iterable[str]], Awaitable[None]] = _nothing,
) -> PageTarget:
    return PageTarget(
        NoPublisher(),  # type: ignore[arg-type]
        SeenWindow(1_000_000) if window is None else window,
        HASHER,
        EventEncoder(connector_id, "principal_ref", RECORD_BYTES_MAX, platform),
        ensure_topics,
        lambda: Origin(connector_id, "acme", "2026-02-03T04:05:06.000007Z"),
        RECORD_BYTES_MAX,
    )


def new_builder(connector_id: str = "acme-1") -> NewBuilder:
    return partial(PageBuilder, target(connector_id))


def ids_of(builder: PageBuilder) -> list[str]:
    """The ids of a builder's records; those that the window is to remember are the same."""
    assert isinstance(builder.page, ListPage)
    builder.take()
    ids = [
        (record.topic, value)
        for record in builder.page.records
        for name, value in record.headers
        if name in ID_HEADERS
    ]
    assert list(builder.hashes) == [HASHER.hash(*one) for one in ids]
    return [value.decode() for _, value in ids]
