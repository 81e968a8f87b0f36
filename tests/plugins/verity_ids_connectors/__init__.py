"""Connectors that serve everything again and again: only the seen window keeps it from repeating.

They declare no platform, so that each test's events have a topic of their own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import ClassVar

from verity_test_connectors import SequenceSettings, sequence

from verity_sdk import BaseConnector, Page, PagedConnector, PermissionSnapshot, Position, RawEvent
from verity_sdk.pages import RejectedRecord


class Repeating(BaseConnector):
    """All events that are not older than `since`, which is a year before the watermark."""

    Settings = SequenceSettings
    config: SequenceSettings
    lookback: ClassVar[timedelta] = timedelta(days=365)

    async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        for event in sequence(self.config.platform, self.config.count):
            if event.occurred_at >= since:
                yield event

    async def snapshot_permissions(self) -> AsyncIterator[PermissionSnapshot]:
        return
        yield


class RepeatingPages(PagedConnector):
    """All pages from the first, whatever the cursor says; each with a record that is rejected."""

    Settings = SequenceSettings
    config: SequenceSettings
    lookback: ClassVar[timedelta] = timedelta(days=365)

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        events = sequence(self.config.platform, self.config.count)
        for start in range(0, len(events), self.config.page):
            yield Page(
                events[start : start + self.config.page],
                cursor={"v": 1, "next": start},
                complete_through=None,
                rejected=[RejectedRecord(b"no record %d" % start, "not understood", f"r{start}")],
            )

    async def snapshot_permissions(self) -> AsyncIterator[PermissionSnapshot]:
        return
        yield
