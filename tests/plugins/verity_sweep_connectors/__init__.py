"""Both kinds of connector over the sweep's script, from memory and over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any, ClassVar, TypeAlias
from urllib.parse import urlsplit

from pydantic import BaseModel

from verity_sdk import (
    BaseConnector,
    Gap,
    Page,
    PagedConnector,
    PermissionSnapshot,
    Position,
    RawEvent,
    RejectedRecord,
    parse_utc,
)
from verity_sdk.http import HttpClient, HttpSettings
from verity_sweep_connectors.script import LATE_MAX, SPAN, STARTED_AT, page_of


class Settings(BaseModel, extra="forbid"):
    """How much there is, and how fast it comes."""

    connector_id: str
    platform: str
    pages: int
    is_hurried: bool = False
    """Pages come without their waits."""
    pages_a_pass: int = 20
    """A plain source ends its pass after so many; seven of them are the lookback."""
    overlap: int = 7
    """A paged source shows so many of the page before again."""
    url: str = ""


_Config: TypeAlias = Settings


class _Source:
    # Without a PLATFORM of its own: the events' counts, which is that of the lane.
    Settings = Settings
    config: _Config

    async def page(self, number: int) -> dict[str, Any]:
        page = page_of(self.config.platform, number)
        await asyncio.sleep(0 if self.config.is_hurried else page["wait"])
        return page

    async def snapshot_permissions(self) -> AsyncIterator[PermissionSnapshot]:
        yield PermissionSnapshot(self.config.platform, "user1", "box", "READ", "direct")

    def event_of(self, item: dict[str, Any]) -> RawEvent:
        """The event; a record without an id makes one that can't be published."""
        return RawEvent(
            self.config.platform,
            item.get("id", ""),
            parse_utc(item["at"]),
            item["who"],
            "box",
            "OPEN",
            item,
        )


class _OverHttp(_Source):
    """The same pages from the sweep's server, through the real HTTP kit."""

    def __init__(self, config: Any, kafka_producer: Any, db_pool: Any) -> None:
        super().__init__(config, kafka_producer, db_pool)  # type: ignore[call-arg]
        host = urlsplit(config.url).netloc
        self._client = HttpClient(HttpSettings(), platform="sweep", hosts=[host])

    async def page(self, number: int) -> dict[str, Any]:
        params = {"platform": self.config.platform, "number": str(number)}
        if self.config.is_hurried:
            params["hurry"] = "1"
        answer = await self._client.get(f"{self.config.url}/page", params=params)
        page: dict[str, Any] = answer.json()
        return page

    async def close(self) -> None:
        await self._client.close()


class Plain(_Source, BaseConnector):
    """Yields what is not older than `since`; the lookback is the default."""

    async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        first = max(0, (since - STARTED_AT) // SPAN)
        # A pass ends, and the next one goes on: what comes after it was not to be seen yet.
        for number in range(first, min(first + self.config.pages_a_pass, self.config.pages)):
            for item in (await self.page(number))["items"]:
                event = self.event_of(item)
                if event.occurred_at >= since:
                    yield event


class Paged(_Source, PagedConnector):
    """Yields the pages with their rejected records and gaps, and shows the last items again."""

    # As far back as what comes again may have happened, and the page before it.
    lookback: ClassVar[timedelta] = timedelta(seconds=LATE_MAX) + 2 * SPAN

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        number = int(position.cursor["next"]) if position.cursor else 0
        before: list[dict[str, Any]] = []
        if number:
            before = (await self.page(number - 1))["items"]
        while number < self.config.pages:
            page = await self.page(number)
            again = before[-self.config.overlap :] if self.config.overlap else []
            items = [*again, *page["items"]]
            number += 1
            yield Page(
                [self.event_of(item) for item in items if "id" in item],
                {"v": 1, "next": number},
                rejected=[
                    RejectedRecord(json.dumps(item).encode(), "it has no id", item["ref"])
                    for item in items
                    if "ref" in item
                ],
                gaps=[Gap(None, None, page["gap"], "it was rotated away")] if page["gap"] else [],
            )
            before = page["items"]


class HttpPlain(_OverHttp, Plain):
    """The plain one over HTTP."""


class HttpPaged(_OverHttp, Paged):
    """The paged one over HTTP."""
