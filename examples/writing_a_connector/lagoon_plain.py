"""A connector in its simplest form: events after a time, from a file of JSON lines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

from verity_sdk import BaseConnector, Malformed, PermissionSnapshot, RawEvent, parse_utc


class LagoonFile(BaseConnector):
    PLATFORM = "lagoon"
    lookback = timedelta(hours=1)

    async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        text = await asyncio.to_thread(Path(self.config["file"]).read_text, "utf-8")
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except ValueError as error:
                raise Malformed("a line that is not JSON") from error
            at = parse_utc(record["at"])
            if at >= since:
                yield RawEvent(
                    platform=self.PLATFORM,
                    event_id=record["id"],
                    occurred_at=at,
                    principal_ref=f"user:{record['who']}",
                    asset_ref=f"lagoon:box:{record['box']}",
                    operation=record["did"].upper(),
                    raw_payload=record,
                )

    async def snapshot_permissions(self) -> AsyncIterator[PermissionSnapshot]:
        return
        yield  # a generator without a grant: the file names none
