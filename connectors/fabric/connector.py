"""The connector: what is asked of the tenant, in which order, and what becomes of it."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from typing import Any, ClassVar, cast

from connectors.fabric import groups
from connectors.fabric.activity import STREAM, ActivityEvents
from connectors.fabric.admin_api import AdminApi
from connectors.fabric.clients import Clients
from connectors.fabric.groups import Groups
from connectors.fabric.scanner import Row, Scanner
from connectors.fabric.settings import LOOKBACK, PLATFORM, RETENTION, SETTLE, SLICE_MAX, Settings
from connectors.fabric.silence import Silence, SilenceWatch
from verity_sdk.connector_base import PermissionSnapshot
from verity_sdk.errors import Malformed
from verity_sdk.pages import Page, PagedConnector, Position, SnapshotGap, SnapshotScope
from verity_sdk.times import parse_utc
from verity_sdk.windows import WindowedStream, WindowPolicy, windowed_pages

logger = logging.getLogger(__name__)

SLICE_MIN = timedelta(minutes=1)


class FabricConnector(PagedConnector):
    """Activity events of a Fabric and Power BI tenant, and the permissions in its workspaces.

    Events come up to an hour late as a rule and up to 24 hours at times, so a pass stays an hour
    behind now, reads the last two hours again, and every four hours the last 28: more often
    would not fit into the 200 requests an hour. docs/platforms/fabric.md reckons it up.
    """

    settings: Settings  # Before the class attribute of that name.
    PLATFORM = PLATFORM
    Settings = Settings

    lookback: ClassVar[timedelta] = LOOKBACK
    # A turn among the 200 requests of an hour may take that hour.
    fetch_timeout: ClassVar[timedelta | None] = timedelta(minutes=75)
    settle: ClassVar[timedelta] = SETTLE
    slice_max: ClassVar[timedelta | None] = SLICE_MAX
    retention: ClassVar[timedelta | None] = RETENTION

    def __init__(self, config: Any, kafka_producer: Any, db_pool: Any) -> None:
        super().__init__(config, kafka_producer, db_pool)
        self._clients = Clients(self.settings, self.context)
        self._watch = SilenceWatch(self.settings.silence_after)
        self._activity = ActivityEvents(self._clients, self.settings, self._watch)

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        """Yield the pages after `position`, up to `settle` before now.

        A pass that would read less than `advance_min` of new time ends without a request, so
        that the budget is left for those that do; a bounded pass never does.

        Raises:
            Unavailable: The tenant did not answer.
            Denied: It refused; the message names what to allow.
            Misconfigured: A continuation leads to a host that is not allowed, or the cursor is
                of a version that is not known.
        """
        if self._is_too_early(position):
            return
        stream = WindowedStream(STREAM, self._activity.read, self._policy())
        pages = windowed_pages([stream], position, self.context.clock)
        async with aclosing(cast("AsyncGenerator[Page, None]", pages)) as reading:
            async for page in reading:
                yield page
        self._warn_of_silence()

    async def snapshot_permissions(
        self,
    ) -> AsyncIterator[PermissionSnapshot | SnapshotGap | SnapshotScope]:
        """Yield every grant in every workspace, workspace by workspace.

        Raises:
            Unavailable: The workspaces could not be listed.
            Denied: They may not be; the message names what to allow.
        """
        rows = self._reader().rows()
        if self.settings.expand_groups:
            rows = Groups(self._clients, self.settings).expanded(rows)
        known: set[tuple[str, str]] = set()
        async with aclosing(rows):
            async for row in rows:
                # Somebody with a hundred grants has one alias.
                if isinstance(row, PermissionSnapshot) and groups.is_alias(row):
                    if (row.principal_ref, row.asset_ref) in known:
                        continue
                    known.add((row.principal_ref, row.asset_ref))
                yield row

    async def check(self) -> None:
        """Ask for one second of events and, where set so, for the Fabric admin API.

        Raises:
            Unavailable: The tenant does not answer.
            Denied: It refuses; the message names the tenant setting or permission.
            Misconfigured: A setting can't work.
        """
        await self._activity.probe()
        reader = self._reader()
        if isinstance(reader, AdminApi):
            await reader.probe()

    async def close(self) -> None:
        """Close all connections."""
        await self._clients.close()

    @property
    def silence(self) -> Silence | None:
        """The stretch without any event of the tenant, once it is `silence_after` long."""
        return self._watch.silence

    def health_warnings(self) -> list[str]:
        """What is no error and yet worth showing, each in one sentence."""
        quiet = self.silence
        return [] if quiet is None else [_silence_text(quiet)]

    def _reader(self) -> Scanner | AdminApi:
        reader = Scanner if self.settings.snapshot_source == "scanner" else AdminApi
        return reader(self._clients, self.settings)

    def _policy(self) -> WindowPolicy:
        chosen = self.settings
        return WindowPolicy(
            settle=chosen.settle,
            slice_max=chosen.slice_max,
            lateness=chosen.lateness,
            relook=chosen.relook,
            lookback=chosen.lookback,
            lookback_every=chosen.lookback_every,
            retention=chosen.retention,
            is_day_bound=True,
            slice_min=SLICE_MIN,
        )

    def _is_too_early(self, position: Position) -> bool:
        if position.until is not None or not position.cursor:
            return False
        try:
            through = parse_utc(position.cursor["streams"][STREAM]["through"])
        except (KeyError, TypeError, Malformed):
            return False  # Whatever is wrong with the cursor, windowed_pages says it.
        return through + self.settings.settle + self.settings.advance_min > self.context.clock()

    def _warn_of_silence(self) -> None:
        if self._watch.is_warning_due(self.context.clock()):
            quiet = self._watch.silence
            assert quiet is not None  # noqa: S101 - a warning is due only while there is one
            logger.warning("%s: %s", self.settings.connector_id, _silence_text(quiet))


def _silence_text(quiet: Silence) -> str:
    hours = quiet.length.total_seconds() / 3600
    return (
        f"the whole tenant shows no activity event in {quiet.window_count} windows, {hours:.0f} "
        f"hours from {quiet.from_at:%Y-%m-%dT%H:%M:%SZ} to {quiet.to_at:%Y-%m-%dT%H:%M:%SZ}: if "
        "people worked, Power BI's activity log is not delivering"
    )


__all__ = ["FabricConnector", "Row"]
