"""The events that every contestant publishes, and the connectors that yield them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from verity_sdk.connector_base import BaseConnector, PermissionSnapshot, RawEvent
from verity_sdk.pages import Page, PagedConnector, Position
from verity_stream.records import EventEncoder

EVENT_BYTES = 500
PRINCIPALS = 500
FIRST_AT = datetime(2026, 1, 1, tzinfo=UTC)
APART = timedelta(milliseconds=1)
RECORD_BYTES_MAX = 1_000_000

RUN = f"{int(datetime.now(UTC).timestamp()) & 0xFFFFFFFF:08x}"
"""Tells this process's topics from those of an earlier run on the same broker."""

_run_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Workload:
    """The same events as objects, and as the keys and values that end up in the topic."""

    events: Sequence[RawEvent]
    records: Sequence[tuple[bytes, bytes]]

    @classmethod
    def of(cls, count: int) -> Workload:
        """`count` events whose records' values are `EVENT_BYTES` long."""
        platform = _platform(0)
        events = [_event(platform, number) for number in range(count)]
        encoder = EventEncoder("bench", "principal_ref", RECORD_BYTES_MAX)
        records = []
        for event in events:
            *_, key, value, _ = encoder.encode(event)
            assert len(value) == EVENT_BYTES, f"an event is {len(value)} bytes"
            records.append((key, value))
        return cls(events, records)

    def first(self, count: int) -> Workload:
        """The first `count` of the events."""
        return Workload(self.events[:count], self.records[:count])

    def on_new_platform(self) -> str:
        """Move the events to a platform, and so to a topic, that nothing else has used."""
        platform = _platform(next(_run_numbers))
        for event in self.events:
            event.platform = platform
        return platform


def _platform(number: int) -> str:
    # All of one length, so that the events are.
    return f"bench-{RUN}-{number:04d}"


def _event(platform: str, number: int) -> RawEvent:
    principal = f"user{number * 7919 % PRINCIPALS:04d}@example.com"
    return RawEvent(
        platform=platform,
        event_id=f"{number:08d}-5f1c-4b7e-9a51-2c0de1a7b3f4",
        occurred_at=FIRST_AT + number * APART,
        principal_ref=principal,
        asset_ref=f"warehouse.sales.table_{number % 89:03d}",
        operation="SELECT",
        raw_payload={
            "statement": "SELECT id, amount FROM sales WHERE region = $1 ORDER BY id",
            "client": "10.20.30.40",
            "rows": 1000 + number % 9000,
            "succeeded": True,
            "padding": "." * 118,
        },
    )


class _Memory(BaseConnector):
    """Notes when it is first asked: that is where a measurement starts."""

    def __init__(self, config: Any, kafka_producer: Any = None, db_pool: Any = None) -> None:
        super().__init__(config, kafka_producer, db_pool)
        self.events: Sequence[RawEvent] = config["events"]
        self.is_asked = asyncio.Event()
        self.asked_at = 0.0

    def note_asked(self) -> None:
        """The relay has started and wants events."""
        if not self.is_asked.is_set():
            self.asked_at = asyncio.get_running_loop().time()
            self.is_asked.set()

    async def snapshot_permissions(self) -> AsyncIterator[PermissionSnapshot]:
        """Nothing: events are what is measured."""
        for grant in ():
            yield grant


class MemoryConnector(_Memory):
    """A plain connector: yields prebuilt events one by one."""

    async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        """All events at the first pass, none at the next."""
        self.note_asked()
        events, self.events = self.events, ()
        for event in events:
            yield event


class MemoryPagedConnector(_Memory, PagedConnector):
    """A paged connector: yields prebuilt events in pages of `page_events`."""

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        """All events at the first pass, none at the next."""
        self.note_asked()
        size = self.config["page_events"]
        events, self.events = self.events, ()
        for start in range(0, len(events), size):
            page = events[start : start + size]
            yield Page(page, {"v": 1, "next": start + size}, page[-1].occurred_at)


class LiveConnector(_Memory):
    """One event a pass, made when it is asked for; notes when it was handed out."""

    def __init__(self, config: Any, kafka_producer: Any = None, db_pool: Any = None) -> None:
        super().__init__(config, kafka_producer, db_pool)
        self.handed_out_at: list[float] = []
        self.is_exhausted = asyncio.Event()

    async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        """The next event."""
        self.note_asked()
        if len(self.handed_out_at) < len(self.events):
            event = self.events[len(self.handed_out_at)]
            self.handed_out_at.append(asyncio.get_running_loop().time())
            yield event
        else:
            # Asked once more: the last event's page is persisted.
            self.is_exhausted.set()
