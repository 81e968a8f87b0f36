"""The connector: what is asked of the server, in which order, and what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime, tzinfo
from typing import Any, cast

from connectors.postgres.files import place_of
from connectors.postgres.log_analytics import LogAnalyticsLog
from connectors.postgres.log_lines import Line, LogContext, logged_at, parse_line, zone_of
from connectors.postgres.log_reader import LogDirectory, ReaderFunctions
from connectors.postgres.permissions import read_permissions
from connectors.postgres.server import Facts, Server
from connectors.postgres.settings import PLATFORM, Settings
from connectors.postgres.tail import LogReader, Portion, Tail, complete_through
from verity_sdk.connector_base import PermissionSnapshot
from verity_sdk.errors import Misconfigured, Unavailable
from verity_sdk.pages import Page, PagedConnector, Position, SnapshotGap, SnapshotScope


class PostgresConnector(PagedConnector):
    """Audit events from a PostgreSQL server's jsonlog, and its grants from its catalogs.

    The cursor is a file and an offset in bytes, so nothing is late: `lookback` and `settle`
    are zero. From Log Analytics it is a time of ingestion, with an hour to spare behind
    `complete_through`: there, too, no `lookback` is needed. What the log cannot tell is in
    docs/platforms/postgres.md.
    """

    settings: Settings  # Before the class attribute of that name.
    PLATFORM = PLATFORM
    Settings = Settings

    def __init__(self, config: Any, kafka_producer: Any, db_pool: Any) -> None:
        super().__init__(config, kafka_producer, db_pool)
        self._server = Server(self.settings)
        self._facts: Facts | None = None
        self._log_analytics: LogAnalyticsLog | None = None

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        """Yield the pages after `position`, up to the end of the newest log file.

        A bounded pass ends before the first line after `until`: its cursor stands there, so a
        later pass goes on without a loss.

        Raises:
            Unavailable: The server or the directory did not answer.
            Denied: The server or the file system refused, or the reader functions are missing.
            Misconfigured: The server logs in a way that is not read; the message names the
                setting.
        """
        context = await self._context()
        if self._azure is not None:
            async with aclosing(cast("Any", self._azure.pages(position, context))) as pages:
                async for page in pages:
                    yield page
            return
        tail = Tail(
            reader=self._reader(),
            place=place_of(position.cursor) if position.cursor else None,
            time_of_line=lambda line: logged_at(line, context.zone),
            page_records=self.settings.page_records,
            page_bytes=self.settings.page_bytes,
            line_bytes=self.settings.line_bytes,
        )
        async with aclosing(tail.portions(position.since)) as portions:
            async for portion in portions:
                # Parsing statements takes milliseconds each; the loop has heartbeats to keep.
                lines = await asyncio.to_thread(parse_portion, portion, context)
                cut = _first_after(lines, position.until)
                if cut is not None:
                    yield _page_until(portion, lines, cut)
                    return
                yield page_of(portion, lines)

    async def snapshot_permissions(
        self,
    ) -> AsyncIterator[PermissionSnapshot | SnapshotGap | SnapshotScope]:
        """Yield every grant that stands now, the shared ones first, then database by database.

        Raises:
            Unavailable: The server did not answer before or while the shared part was read.
            Denied: The server refused the login.
        """
        if self.settings.dsn is None:
            yield SnapshotGap("server", "dsn is missing: grants are read through a connection")
            return
        async with aclosing(read_permissions(self._server, self.settings)) as rows:
            async for row in rows:
                yield row

    async def check(self) -> None:
        """See that the source answers and can be read; changes nothing.

        Raises:
            Unavailable: The server or the directory does not answer.
            Denied: It refuses.
            Misconfigured: It logs in a way that is not read; names every setting at fault.
        """
        if self._azure is not None:
            await self._azure.check()
            return
        await self._context()
        await self._reader().list_files()

    async def close(self) -> None:
        """Close the connection to the observed server, and those to Log Analytics."""
        if self._log_analytics is not None:
            await self._log_analytics.close()
            self._log_analytics = None
        await self._server.close()

    @property
    def _azure(self) -> LogAnalyticsLog | None:
        if self.settings.log_analytics is not None and self._log_analytics is None:
            # Made on first use: after `close` another one begins.
            self._log_analytics = LogAnalyticsLog(self.settings.log_analytics, self.context)
        return self._log_analytics

    def _reader(self) -> LogReader:
        if self.settings.log_directory is not None:
            return LogDirectory(self.settings.log_directory, self.context.clock)
        return ReaderFunctions(self._server)

    async def _context(self) -> LogContext:
        """What the lines do not say, asked at the start of every pass: settings change."""
        settings = self.settings
        if settings.dsn is not None and settings.source != "log_analytics":
            try:
                self._facts = await self._server.facts()
            except Unavailable:
                # The log of a server that is down is the more interesting: a directory is read on.
                if settings.source == "reader" or self._facts is None:
                    raise
        facts = self._facts
        has_pgaudit = settings.statements == "pgaudit"
        if settings.statements == "auto":
            has_pgaudit = facts is not None and facts.has_pgaudit
        own = None
        if facts is not None and settings.exclude_own:
            own = (facts.user, settings.application_name)
        return LogContext(
            server=settings.server_name,
            system_identifier=settings.system_identifier
            or (facts.system_identifier if facts else None)
            or settings.server_name,
            zone=_zone(settings.log_timezone or (facts.log_timezone if facts else "UTC")),
            has_pgaudit=has_pgaudit,
            statement_bytes=settings.statement_bytes,
            databases=None if settings.databases is None else frozenset(settings.databases),
            exclude_users=frozenset(settings.exclude_users),
            own=own,
            redact_passwords=settings.redact_passwords,
        )


def _zone(name: str) -> tzinfo | None:
    try:
        return zone_of(name)
    except ValueError as error:
        raise Misconfigured(f"log_timezone {name!r} is no time zone known here") from error


def parse_portion(portion: Portion, context: LogContext) -> list[Line]:
    """What became of each line of a portion."""
    offset, not_before = portion.start.offset, portion.start.not_before
    parsed = []
    for line in portion.lines:
        found = parse_line(line, f"{portion.start.file}:{offset}", context)
        offset += len(line)
        if not_before is not None and found.logged_at is not None and found.logged_at < not_before:
            found = Line(logged_at=found.logged_at)
        parsed.append(found)
    return parsed


def page_of(portion: Portion, lines: list[Line]) -> Page:
    """The page of a whole portion."""
    return Page(
        events=[event for line in lines for event in line.events],
        cursor=portion.end.cursor(),
        complete_through=complete_through(portion),
        rejected=[*portion.rejected, *(line.rejected for line in lines if line.rejected)],
        gaps=portion.gaps,
    )


def _first_after(lines: list[Line], until: datetime | None) -> int | None:
    if until is None:
        return None
    later = (i for i, line in enumerate(lines) if line.logged_at and line.logged_at > until)
    return next(later, None)


def _page_until(portion: Portion, lines: list[Line], cut: int) -> Page:
    """The page of the first `cut` lines."""
    done = portion.lines[:cut]
    times = [line.logged_at for line in lines[:cut] if line.logged_at]
    newest_at = max(filter(None, [portion.start.newest_at, *times]), default=None)
    end = replace(
        portion.start, offset=portion.start.offset + sum(map(len, done)), newest_at=newest_at
    )
    return page_of(replace(portion, lines=done, end=end, caught_up_at=None), lines[:cut])
