"""The same file with a cursor of its own: nothing is read twice, nothing stops at a bad line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from lagoon_connector.records import events_of

from verity_sdk import Misconfigured, Page, PagedConnector, PermissionSnapshot, Position

PAGE_BYTES = 64 * 1024


class LagoonTail(PagedConnector):
    PLATFORM = "lagoon"

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        file, offset = Path(self.config["file"]), _offset(position.cursor)
        # Up to where the file ends now: a pass that follows a growing file has no end.
        end = (await asyncio.to_thread(file.stat)).st_size
        while offset < end:
            lines = await asyncio.to_thread(_lines, file, offset)
            if not lines:
                return  # the last line is not written to its end yet
            offset += sum(map(len, lines))
            events, rejected = events_of(lines)
            yield Page(events, cursor={"v": 1, "offset": offset}, rejected=rejected)

    async def snapshot_permissions(self) -> AsyncIterator[PermissionSnapshot]:
        return
        yield


def _lines(file: Path, offset: int) -> list[bytes]:
    with file.open("rb") as opened:
        opened.seek(offset)
        return [line for line in opened.readlines(PAGE_BYTES) if line.endswith(b"\n")]


def _offset(cursor: Any) -> int:
    if cursor is None:
        return 0
    if cursor.get("v") != 1:
        raise Misconfigured(f"the cursor has version {cursor.get('v')!r}, this connector reads 1")
    return int(cursor["offset"])
