"""A connector with everything that an operator looks at: gaps, dead letters, lateness, errors."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from pydantic import BaseModel

from verity_sdk import (
    Denied,
    Gap,
    Page,
    PagedConnector,
    PermissionSnapshot,
    Position,
    RawEvent,
    RejectedRecord,
    SnapshotGap,
)

STARTED_AT = datetime(2026, 1, 1, tzinfo=UTC)
LATE = timedelta(seconds=120)
BROKEN = b"\xff\xfe no text: " + bytes(range(256)) * 8
"""Rejected at the first page."""


class OperatedSettings(BaseModel, extra="forbid"):
    """What the source holds, and how it fails."""

    connector_id: str
    platform: str
    token: str = ""
    count: int = 100
    live: int = 0
    has_gaps: bool = False
    denied_until: str = ""
    bug: bool = False


class Operated(PagedConnector):
    """A history of `count` events, a minute apart; then one late event a pass, `live` times."""

    Settings = OperatedSettings
    lookback: ClassVar[timedelta] = timedelta(hours=1)
    config: OperatedSettings

    def health_warnings(self) -> list[str]:
        return [f"nothing came since {self.config.token or 'long'}"] if self.config.has_gaps else []

    def _event(self, number: int, at: datetime) -> RawEvent:
        name = self.config.platform
        return RawEvent(name, f"{name}:{number:06}", at, "user", "table", "SELECT", {"n": number})

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        settings = self.config
        if settings.denied_until and not os.path.exists(settings.denied_until):  # noqa: ASYNC240 - a test
            raise Denied(f"the token {settings.token} was revoked")
        if settings.bug:
            raise RuntimeError(f"GET https://source.example/?token={settings.token}: no answer")
        start = int(position.cursor["next"]) if position.cursor else 0
        if position.cursor is None and position.since > STARTED_AT:
            start = int((position.since - STARTED_AT) / timedelta(minutes=1))
        while start < settings.count:
            end = min(start + 20, settings.count)
            events = [self._event(n, STARTED_AT + timedelta(minutes=n)) for n in range(start, end)]
            extra: dict[str, Any] = {}
            if start == 0 and settings.has_gaps:
                extra["rejected"] = [
                    RejectedRecord(BROKEN, "it is not UTF-8", "audit.log:7"),
                    RejectedRecord(b'{"half": ', "it is not JSON", "audit.log:8"),
                ]
                extra["gaps"] = [
                    Gap(STARTED_AT, STARTED_AT + timedelta(minutes=5), "signIns", "past retention")
                ]
            yield Page(events, {"v": 1, "next": end}, events[-1].occurred_at, **extra)
            start = end
        if position.cursor and start < settings.count + settings.live:
            yield Page(
                [self._event(start, datetime.now(UTC) - LATE)], {"v": 1, "next": start + 1}, None
            )

    async def snapshot_permissions(self) -> AsyncIterator[PermissionSnapshot | SnapshotGap]:
        yield PermissionSnapshot(self.config.platform, "user", "table", "SELECT", "direct")
