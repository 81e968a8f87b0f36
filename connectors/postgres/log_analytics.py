"""The log of an Azure Database for PostgreSQL flexible server, read from Log Analytics."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from typing import Any, cast

from connectors._azure.log_analytics import (
    LAG_MAX,
    IngestedRow,
    IngestedRows,
    in_time_of_events,
    workspace_of,
)
from connectors._azure.sign_in import SignIn
from connectors.postgres.log_lines import LogContext, parse_line
from connectors.postgres.log_prefix import TABLE, compiled, jsonlog_line, row_bytes
from connectors.postgres.settings import PLATFORM, LogAnalyticsSource
from verity_sdk.connector_base import RawEvent
from verity_sdk.context import Context
from verity_sdk.errors import Malformed
from verity_sdk.pages import Page, Position, RejectedRecord
from verity_sdk.windows import Fetched, Slice, WindowedStream, WindowPolicy, windowed_pages

STREAM = "log_analytics"
SETTLE = timedelta(minutes=5)
RELOOK = timedelta(minutes=10)
SLICE_MAX = timedelta(hours=1)
LATENESS = LAG_MAX + timedelta(hours=1)
"""How far `complete_through` stays behind. An hour more than the vendor's bound, so that what a
pass reads again is never older than it: then ids are remembered without a `lookback`."""

SETUP = (
    "Add a diagnostic setting to the server that sends the category PostgreSQLLogs to this Log "
    "Analytics workspace, with the destination table `Resource specific`"
)


class LogAnalyticsLog:
    """The server's log in one workspace.

    Args:
        settings: Where it is, and the credential.
        context: The connector's.
    """

    def __init__(self, settings: LogAnalyticsSource, context: Context) -> None:
        self._settings = settings
        self._clock = context.clock
        self._pattern = compiled(settings.log_line_prefix)
        self._query = IngestedRows((TABLE,), settings.resource_id, settings.rows_max)
        self._sign_in = SignIn(settings.identity, settings.http, platform=PLATFORM, context=context)
        self._workspace = workspace_of(
            self._sign_in,
            url=settings.url,
            scope=settings.scope,
            workspace_id=settings.workspace_id,
            wait=settings.query_timeout,
            setup=SETUP,
        )

    async def pages(self, position: Position, context: LogContext) -> AsyncIterator[Page]:
        """The pages of one pass.

        Raises:
            Unavailable, Denied, Misconfigured: As `LogAnalytics.query`; pages yielded so far stand.
        """

        async def fetch(one: Slice) -> Fetched:
            is_divisible = one.to_at - one.from_at >= timedelta(seconds=2)
            found = await self._workspace.slice(self._query, one, is_divisible=is_divisible)
            events, rejected = await asyncio.to_thread(
                events_of, found.rows, self._pattern, context
            )
            return Fetched(events, [*found.rejected, *rejected])

        policy = WindowPolicy(
            settle=SETTLE,
            slice_max=SLICE_MAX,
            relook=RELOOK,
            retention=self._settings.retention,
        )
        streams = [WindowedStream(STREAM, fetch, policy)]
        pages = cast("Any", windowed_pages(streams, position, self._clock))
        async with aclosing(pages):
            async for page in pages:
                yield in_time_of_events(page, LATENESS)

    async def check(self) -> None:
        """See that the table can be read.

        Raises:
            Unavailable, Denied, Misconfigured: As `LogAnalytics.query`.
        """
        await self._workspace.probe(self._query, self._clock())

    async def close(self) -> None:
        """Close all connections."""
        await self._sign_in.close()


def events_of(
    rows: list[IngestedRow], pattern: re.Pattern[str], context: LogContext
) -> tuple[list[RawEvent], list[RejectedRecord]]:
    """The events of a slice, and the rows that were not understood."""
    events: list[RawEvent] = []
    rejected: list[RejectedRecord] = []
    for row in rows:
        reference = f"{row.table} {row.generated_at}"
        try:
            data = jsonlog_line(row, pattern)
        except Malformed as error:
            rejected.append(RejectedRecord(row_bytes(row), str(error), reference))
            continue
        if data is None:
            continue
        line = parse_line(data, reference, context)
        events += line.events
        if line.rejected is not None:
            rejected.append(RejectedRecord(row_bytes(row), line.rejected.reason, reference))
    return events, rejected
