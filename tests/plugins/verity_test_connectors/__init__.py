"""Connectors over a source whose whole truth is known: for tests of the worker.

The source is `sequence(...)`: the same events in every process, with ties, with late events
(older than one that was delivered before) where asked for, and with repeats.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel

from verity_sdk import (
    BaseConnector,
    Denied,
    Page,
    PagedConnector,
    PermissionSnapshot,
    Position,
    RawEvent,
    SnapshotGap,
    SnapshotScope,
)

STARTED_AT = datetime(2026, 1, 1, tzinfo=UTC)


class SequenceSettings(BaseModel, extra="forbid"):
    """What the source holds and how slowly it serves it.

    Attributes:
        gate: A file; until it exists, pages that begin at `gate_at` or later are not served. So a
            test does something in the middle, however fast or slow the machine is.
    """

    connector_id: str
    platform: str
    count: int = 1000
    page: int = 50
    page_seconds: float = 0.0
    overlap: int = 0
    gate: str = ""
    gate_at: int = 0
    late: float = 0.0
    seed: int = 1
    denied_scopes: list[str] = []


def sequence(platform: str, count: int, seed: int = 1, late: float = 0.0) -> list[RawEvent]:
    """The events of the source, in the order of delivery; groups of up to 4 share a time.

    Args:
        late: The share of events that occurred up to a minute before those delivered before them.
    """
    numbers = random.Random(seed)
    events: list[RawEvent] = []
    at = STARTED_AT
    while len(events) < count:
        at += timedelta(milliseconds=numbers.randint(1, 2000))
        for _ in range(min(numbers.randint(1, 4), count - len(events))):
            number = len(events)
            events.append(
                RawEvent(
                    platform=platform,
                    event_id=f"{platform}:{number:06}",
                    occurred_at=at - timedelta(seconds=numbers.randint(1, 60))
                    if numbers.random() < late
                    else at,
                    principal_ref=f"user{numbers.randint(0, 40)}",
                    asset_ref=f"table{numbers.randint(0, 9)}",
                    operation="SELECT",
                    raw_payload={"number": number, "padding": "x" * numbers.randint(0, 300)},
                )
            )
    return events


class _Sequence:
    # Without a PLATFORM: that of the events counts, which is each test's own.
    Settings: ClassVar[type[BaseModel]] = SequenceSettings
    config: Any  # As its own Settings have it.

    def _events(self) -> list[RawEvent]:
        return sequence(self.config.platform, self.config.count, self.config.seed, self.config.late)

    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        for number in range(5):
            yield PermissionSnapshot(
                self.config.platform, f"user{number}", "table0", "SELECT", "direct"
            )
        yield SnapshotScope("tables")
        for scope in self.config.denied_scopes:
            yield SnapshotGap(scope, "the source refused")


class PlainSequence(_Sequence, BaseConnector):
    """Yields what is not older than `since`, as a source with a closed interval does."""

    async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        for number, event in enumerate(self._events()):
            if event.occurred_at < since:
                continue
            if number % self.config.page == 0:
                await asyncio.sleep(self.config.page_seconds)
            yield event


class PagedSequence(_Sequence, PagedConnector):
    """Yields pages whose cursor is a number, each repeating the last `overlap` events."""

    lookback: ClassVar[timedelta] = timedelta(hours=1)

    def _is_open(self) -> bool:
        return not self.config.gate or Path(self.config.gate).exists()

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        events = self._events()
        start = int(position.cursor["next"]) if position.cursor else 0
        if position.cursor is None:
            while start < len(events) and events[start].occurred_at < position.since:
                start += 1
        while start < len(events):
            await asyncio.sleep(self.config.page_seconds)
            # Whoever opens it is another process.
            while start >= self.config.gate_at and not self._is_open():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            end = min(start + self.config.page, len(events))
            yield Page(
                events[max(0, start - self.config.overlap) : end],
                cursor={"v": 1, "next": end},
                complete_through=events[end - 1].occurred_at,
            )
            start = end


class FailingSettings(BaseModel, extra="forbid"):
    """How it fails."""

    connector_id: str
    platform: str
    error: str


class Failing(_Sequence, PagedConnector):
    """Fails at every page."""

    Settings = FailingSettings

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        if self.config.error == "denied":
            raise Denied("the credential was revoked")
        if self.config.error:
            raise RuntimeError("a bug in the connector")
        yield Page((), {})
