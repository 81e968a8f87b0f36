"""Connectors that are hard on a worker: large, hanging, flooding, raising whatever can be raised.

Each of the hostile ones first yields `count` good events, so that a test can see what became of
them.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from pydantic import BaseModel

from verity_sdk import BaseConnector, Page, PagedConnector, PermissionSnapshot, Position, RawEvent

STARTED_AT = datetime(2026, 1, 1, tzinfo=UTC)


class _Settings(BaseModel, extra="forbid"):
    connector_id: str
    platform: str
    count: int = 10
    payload_bytes: int = 10
    page: int = 10
    mode: str = ""


def event(platform: str, number: int, payload_bytes: int) -> RawEvent:
    """The event of this number; its payload is made now and kept by nobody."""
    return RawEvent(
        platform,
        f"{platform}:{number:06}",
        STARTED_AT + timedelta(seconds=number),
        f"user{number % 40}",
        "table",
        "SELECT",
        {"number": number, "padding": "x" * payload_bytes},
    )


class _Hard:
    Settings = _Settings
    config: Any

    def _event(self, number: int) -> RawEvent:
        return event(self.config.platform, number, self.config.payload_bytes)

    async def snapshot_permissions(self) -> AsyncIterator[PermissionSnapshot]:
        yield PermissionSnapshot(self.config.platform, "user", "table", "SELECT", "direct")


class LargePlain(_Hard, BaseConnector):
    """A source of large events, served as fast as they are taken."""

    async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        first = max(0, int((since - STARTED_AT) / timedelta(seconds=1)))
        for number in range(first, self.config.count):
            yield self._event(number)


class LargePaged(_Hard, PagedConnector):
    """The same in pages."""

    lookback: ClassVar[timedelta] = timedelta(hours=1)

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        start = int(position.cursor["next"]) if position.cursor else 0
        while start < self.config.count:
            end = min(start + self.config.page, self.config.count)
            events = [self._event(number) for number in range(start, end)]
            yield Page(events, {"v": 1, "next": end}, events[-1].occurred_at)
            start = end


class Evil(BaseException):
    """No Exception, and none of asyncio's."""


class Hostile(_Hard, BaseConnector):
    """Behaves as `mode` says after its good events, or before them."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if self.config.mode == "constructor":
            raise SystemExit(3)

    def stream_audit_events(self, since: datetime) -> Any:
        if self.config.mode == "call":
            raise KeyboardInterrupt
        return self._open() if self.config.mode == "opening" else self._stream()

    async def _open(self) -> Any:
        await asyncio.Event().wait()

    async def _stream(self) -> AsyncIterator[RawEvent]:
        mode = self.config.mode
        for number in range(self.config.count):
            yield self._event(number)
        if mode == "hang":
            await asyncio.Event().wait()
        elif mode == "stubborn":
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    continue
        elif mode == "flood":
            for number in itertools.count():
                yield self._event(number % self.config.count)
        elif mode == "garbage":
            yield "no event"  # type: ignore[misc]
            yield RawEvent("..", "x", "never", None, 7, b"", {1: {2}})  # type: ignore[arg-type]
        elif mode == "exit":
            raise SystemExit(4)
        elif mode == "interrupt":
            raise KeyboardInterrupt
        elif mode == "evil":
            raise Evil
        elif mode == "leak":
            raise asyncio.CancelledError
        elif mode == "cancel":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)
        elif mode == "stop":
            raise StopAsyncIteration
        elif mode == "hoard":
            while True:
                connection = await self.db_pool.acquire()
                await connection.execute("SET search_path TO nowhere")
        elif mode == "block":
            time.sleep(3600)  # noqa: ASYNC251 - the fault itself

    async def close(self) -> None:
        if self.config.mode == "hoard":
            await self.db_pool.close()
        if self.config.mode == "closing":
            raise SystemExit(5)
        if self.config.mode == "hang":
            await asyncio.Event().wait()


FLOODS = ("flood",)
MODES_THAT_FAIL = (
    "hang",
    "opening",
    "stubborn",
    "exit",
    "interrupt",
    "evil",
    "leak",
    "cancel",
    "stop",
    "constructor",
    "call",
    "hoard",
)
