"""The connector: which rows are asked for, in which order, and what becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any, ClassVar, cast

from connectors._azure.log_analytics import IngestedRows, in_time_of_events
from connectors.synapse.api import Api
from connectors.synapse.grants import azure_grant, deny_grants, role_names, synapse_grant
from connectors.synapse.records import activity_events_of, events_of
from connectors.synapse.settings import LOOKBACK, PLATFORM, SETTLE, Settings
from connectors.synapse.sql_grants import sql_records
from connectors.synapse.sql_server import load_driver, read_catalog
from verity_sdk.connector_base import PermissionSnapshot
from verity_sdk.errors import Denied, Malformed, Misconfigured, Unavailable
from verity_sdk.pages import Page, PagedConnector, Position, SnapshotGap, SnapshotScope
from verity_sdk.windows import Fetched, Slice, WindowedStream, WindowPolicy, windowed_pages

ROWS_STREAM = "log_analytics"
ACTIVITY_STREAM = "activity_log"

# MS Learn "Log data ingestion time" (2026-02): the activity log takes 3 to 20 minutes.
ACTIVITY_SETTLE = timedelta(minutes=20)
ACTIVITY_LATENESS = timedelta(hours=1)
ACTIVITY_RELOOK = timedelta(hours=2)

REQUESTS_AT_ONCE = 4

Part = PermissionSnapshot | SnapshotGap | SnapshotScope


class SynapseConnector(PagedConnector):
    """Audit events of a Synapse workspace from Log Analytics, and its grants from three planes.

    The main stream's cursor is a time of ingestion, so nothing is late to it; `lookback` is here
    only how far back ids are remembered, not how far back rows are read again. What
    `complete_through` promises is in docs/platforms/synapse.md.
    """

    settings: Settings  # Before the class attribute of that name.
    PLATFORM = PLATFORM
    Settings = Settings

    lookback: ClassVar[timedelta] = LOOKBACK
    settle: ClassVar[timedelta] = SETTLE
    slice_max: ClassVar[timedelta | None] = timedelta(hours=1)
    retention: ClassVar[timedelta | None] = timedelta(days=30)

    def __init__(self, config: Any, kafka_producer: Any, db_pool: Any) -> None:
        super().__init__(config, kafka_producer, db_pool)
        self._made: Api | None = None
        self._query = IngestedRows(
            self.settings.tables, self.settings.resource_id, self.settings.rows_max
        )

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        """Yield the pages after `position`, up to `settle` before now.

        Raises:
            Unavailable: An endpoint did not answer, or gave a partial result; pages yielded so
                far stand.
            Denied: The identity lacks a role; the message names it.
            Misconfigured: The Log Analytics workspace has none of the tables.
        """
        pages = cast("Any", windowed_pages(self._streams(), position, self.context.clock))
        async with aclosing(pages):
            async for page in pages:
                yield in_time_of_events(page, self.settings.lateness)

    async def snapshot_permissions(self) -> AsyncIterator[Part]:
        """Yield every grant that stands now, plane by plane.

        A plane that can't be read completely ends with a `SnapshotGap` instead of its
        `SnapshotScope`.

        Raises:
            Denied: The credential is refused; nothing was yielded.
            Unavailable: The issuer of tokens does not answer; likewise.
            Misconfigured: SQL grants are asked for without the extra `synapse-sql`.
        """
        settings, snapshot_at = self.settings, self.context.clock()
        if settings.sql_pools or settings.serverless_databases:
            load_driver()
        # A credential that is refused is no gap: then nothing can be known.
        await self._api.sign_in()
        if settings.synapse_rbac:
            for part in await self._synapse_parts(snapshot_at):
                yield part
        if settings.azure_rbac:
            for scope, reading in (
                ("azure-rbac", self._azure_records),
                ("azure-deny", self._deny_records),
            ):
                for part in await _read_completely(scope, reading(snapshot_at)):
                    yield part
        for database, server in self._databases():
            reading_sql = self._sql_records(server, database, snapshot_at)
            for part in await _read_completely(f"sql:{database}", reading_sql):
                yield part

    async def check(self) -> None:
        """See that everything that the settings ask for can be read; changes nothing.

        Raises:
            Unavailable: An endpoint does not answer.
            Denied: Roles are missing; the message names every one.
            Misconfigured: Tables, a workspace or an extra are missing; names every one.
        """
        settings, api = self.settings, self._api
        probes: list[Awaitable[None]] = [api.log_analytics.probe(self._query, self.context.clock())]
        if settings.synapse_rbac:
            probes.append(api.check_synapse())
        if settings.azure_rbac or settings.activity_log:
            probes.append(api.check_azure())
        found = await asyncio.gather(*probes, return_exceptions=True)
        errors = [error for error in found if isinstance(error, BaseException)]
        if settings.sql_pools or settings.serverless_databases:
            try:
                load_driver()
            except Misconfigured as error:
                errors.append(error)
        _raise_all(errors)

    async def close(self) -> None:
        """Close all connections."""
        if self._made is not None:
            await self._made.close()
            self._made = None

    @property
    def _api(self) -> Api:
        # Made on first use: after `close` another one begins.
        if self._made is None:
            self._made = Api(self.settings, self.context)
        return self._made

    def _streams(self) -> list[WindowedStream]:
        settings = self.settings
        policy = WindowPolicy(
            settle=settings.settle,
            slice_max=settings.slice_max,
            relook=settings.relook,
            # By time of ingestion nothing is late: there is nothing to look back for, and the
            # kit's `lateness`, which waits for a lookback, would wait for ever.
            lookback=timedelta(0),
            retention=settings.retention,
        )
        streams = [WindowedStream(ROWS_STREAM, self._fetch_rows, policy)]
        if settings.activity_log:
            policy = WindowPolicy(
                settle=ACTIVITY_SETTLE,
                slice_max=settings.slice_max,
                lateness=ACTIVITY_LATENESS,
                relook=ACTIVITY_RELOOK,
                lookback=settings.lookback,
                retention=settings.activity_retention,
            )
            streams.append(WindowedStream(ACTIVITY_STREAM, self._fetch_activities, policy))
        return streams

    async def _fetch_rows(self, one: Slice) -> Fetched:
        is_divisible = one.to_at - one.from_at >= timedelta(seconds=2)
        found = await self._api.log_analytics.slice(self._query, one, is_divisible=is_divisible)
        # A slice of 20,000 rows takes the better part of a second; the loop has heartbeats to keep.
        events, rejected = await asyncio.to_thread(events_of, found.rows, self.settings.workspace)
        return Fetched(events, [*found.rejected, *rejected])

    async def _fetch_activities(self, one: Slice) -> Fetched:
        found = await self._api.activities(one.from_at, one.to_at)
        settings = self.settings
        events, rejected = activity_events_of(found, settings.workspace, settings.resource_id)
        # The filter is closed at both ends; what lies on the end belongs to the next slice, too.
        return Fetched(events, rejected)

    async def _synapse_parts(self, snapshot_at: datetime) -> list[Part]:
        """The workspace's own roles: all in one listing, and once more scope by scope.

        Whether the listing without a scope holds those of every scope is not said (UNCONFIRMED),
        so each scope is asked for, too, and an assignment counts once. What could be read is
        yielded, also where a scope could not.
        """
        settings, api = self.settings, self._api
        at_once = asyncio.Semaphore(REQUESTS_AT_ONCE)

        async def at(scope: str) -> list[Any]:
            async with at_once:
                return await api.synapse_assignments(scope)

        records: dict[str, PermissionSnapshot] = {}
        gaps: list[Part] = []
        try:
            roles = role_names(await api.synapse_roles())
            listings: list[Any] = [await api.synapse_assignments()]
            if settings.synapse_scopes:
                scopes = sorted(set(await api.synapse_scopes()))
                listings += await asyncio.gather(*map(at, scopes), return_exceptions=True)
            for listing in listings:
                if isinstance(listing, BaseException):
                    raise listing
                for one in listing:
                    grant = synapse_grant(one, roles, settings.workspace, snapshot_at)
                    records.setdefault(str(one.get("id") or len(records)), grant)
        except (Denied, Unavailable, Malformed) as error:
            gaps = [SnapshotGap("synapse-rbac", str(error))]
        return [*records.values(), *(gaps or [SnapshotScope("synapse-rbac")])]

    async def _azure_records(self, snapshot_at: datetime) -> list[PermissionSnapshot]:
        settings, api = self.settings, self._api
        roles, assignments = await asyncio.gather(api.azure_roles(), api.azure_assignments())
        known = role_names(roles)
        return [
            azure_grant(one, known, settings.workspace, settings.resource_id, snapshot_at)
            for one in assignments
        ]

    async def _deny_records(self, snapshot_at: datetime) -> list[PermissionSnapshot]:
        settings = self.settings
        return [
            grant
            for one in await self._api.azure_denials()
            for grant in deny_grants(one, settings.workspace, settings.resource_id, snapshot_at)
        ]

    def _databases(self) -> list[tuple[str, str]]:
        """Each database whose grants are wanted, with its server."""
        settings = self.settings
        pool = f"{settings.workspace}.{settings.sql_domain}"
        serverless = f"{settings.workspace}-ondemand.{settings.sql_domain}"
        return [
            *((name, pool) for name in settings.sql_pools),
            *((name, serverless) for name in settings.serverless_databases),
        ]

    async def _sql_records(
        self, server: str, database: str, snapshot_at: datetime
    ) -> list[PermissionSnapshot]:
        settings = self.settings
        catalog = await read_catalog(
            server, database, self._api.sql_credential(), settings.sql_timeout.total_seconds()
        )
        return list(
            sql_records(
                catalog, workspace=settings.workspace, database=database, snapshot_at=snapshot_at
            )
        )


async def _read_completely(
    scope: str, reading: Awaitable[Sequence[PermissionSnapshot]]
) -> list[Part]:
    """The records and then their scope, or a gap: a part that was lost must not look like less."""
    try:
        records = await reading
    except (Denied, Unavailable, Malformed) as error:
        return [SnapshotGap(scope, str(error))]
    return [*records, SnapshotScope(scope)]


def _raise_all(errors: Sequence[BaseException]) -> None:
    """Raise nothing, the only error, or one that says all that an operator must do."""
    for error in errors:
        if not isinstance(error, Denied | Misconfigured):
            raise error
    if not errors:
        return
    if len(errors) == 1:
        raise errors[0]
    kind = Misconfigured if any(isinstance(error, Misconfigured) for error in errors) else Denied
    raise kind("; ".join(dict.fromkeys(map(str, errors)))) from errors[0]
