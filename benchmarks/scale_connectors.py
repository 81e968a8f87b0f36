"""Connectors of the scale benchmark: sources in memory that tick, or that have nothing to say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, ClassVar

from pydantic import BaseModel

from verity_sdk import Page, PagedConnector, PermissionSnapshot, Position, RawEvent


class TickingSettings(BaseModel, extra="forbid"):
    """How often there is a page."""

    connector_id: str
    platform: str
    every_seconds: float = 0.5
    events: int = 5


class Ticking(PagedConnector):
    """A page every `every_seconds`, for ever; its cursor counts them."""

    PLATFORM: ClassVar[str] = "scale"
    Settings = TickingSettings
    config: TickingSettings

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        """Yield pages that never end."""
        number = int(position.cursor["next"]) if position.cursor else 0
        while True:
            now = datetime.now(UTC)
            events = [
                RawEvent(
                    self.config.platform,
                    f"{self.config.connector_id}:{number}:{index}",
                    now,
                    f"user{index}",
                    "table",
                    "SELECT",
                    {"number": number, "padding": "x" * 300},
                )
                for index in range(self.config.events)
            ]
            number += 1
            yield Page(events, {"v": 1, "next": number}, now)
            await asyncio.sleep(self.config.every_seconds)

    async def snapshot_permissions(self) -> AsyncIterator[PermissionSnapshot]:
        """Yield nothing."""
        for grant in ():
            yield grant


class Idle(Ticking):
    """Has nothing new, whenever it is asked."""

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        """Yield nothing."""
        for page in ():
            yield page

    async def check(self) -> Any:
        """There is nothing to reach."""
