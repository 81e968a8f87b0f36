"""The connector: what is asked of the workspace, in which order, and what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from typing import Any, ClassVar
from urllib.parse import urlsplit

from connectors._azure.sign_in import SignIn
from connectors.databricks.api import RestApi
from connectors.databricks.permissions import CATALOG_API, read_permissions
from connectors.databricks.records import parse_rows
from connectors.databricks.references import Workspace
from connectors.databricks.settings import LOOKBACK, PLATFORM, Settings
from connectors.databricks.statements import CHECK_SQL, Statement, audit_statement
from connectors.databricks.warehouse import RESTARTS_MAX, ResultGone, Warehouse
from verity_sdk.auth import ClientCredentials, FixedAuthorization
from verity_sdk.connector_base import PermissionSnapshot, RawEvent
from verity_sdk.errors import Denied, Misconfigured, Unavailable
from verity_sdk.http import Authorizer, HttpClient
from verity_sdk.pages import (
    Page,
    PagedConnector,
    Position,
    RejectedRecord,
    SnapshotGap,
    SnapshotScope,
)
from verity_sdk.windows import Fetched, Slice, WindowedStream, WindowPolicy, windowed_pages

AUDIT_STREAM = "audit"
OIDC_SCOPE = "all-apis"


class DatabricksConnector(PagedConnector):
    """Audit events from `system.access.audit`, and grants from Unity Catalog and workspace ACLs.

    The table is read in windows through a SQL warehouse: it has no column that says when a row
    arrived. What it cannot tell is in docs/platforms/databricks.md.
    """

    settings: Settings  # Before the class attribute of that name.
    PLATFORM = PLATFORM
    Settings = Settings
    lookback: ClassVar[timedelta] = LOOKBACK
    settle: ClassVar[timedelta] = timedelta(minutes=30)
    slice_max: ClassVar[timedelta | None] = timedelta(days=1)
    retention: ClassVar[timedelta | None] = timedelta(days=365)

    def __init__(self, config: Any, kafka_producer: Any, db_pool: Any) -> None:
        super().__init__(config, kafka_producer, db_pool)
        self._workspace: Workspace | None = None
        self._clients: list[HttpClient] = []
        self._sign_in: SignIn | None = None
        settings = self.settings
        self._login = self._authorizer()
        client = self._client([_authority(settings.host)], self._login)
        self._api = RestApi(client, settings.host)
        self._warehouse = Warehouse(
            settings,
            client,
            self._client(settings.storage_hosts),
            context=self.context,
        )

    def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        """Yield the pages after `position`, up to `settle` behind now.

        Raises:
            Unavailable: The warehouse did not answer in time; pages yielded so far stand.
            Denied: A permission is missing; the message has the SQL that grants it.
            Misconfigured: There is no such warehouse.
        """
        settings = self.settings
        policy = WindowPolicy(
            settle=settings.settle,
            slice_max=settings.slice_max,
            lateness=settings.lateness,
            relook=settings.relook,
            lookback=settings.lookback,
            retention=settings.retention,
        )
        stream = WindowedStream(AUDIT_STREAM, self._fetch, policy)
        return windowed_pages([stream], position, self.context.clock)

    async def snapshot_permissions(
        self,
    ) -> AsyncIterator[PermissionSnapshot | SnapshotGap | SnapshotScope]:
        """Yield every grant that stands now, memberships of groups first.

        Raises:
            Unavailable: The workspace did not answer at all.
            Denied: It refused the login.
        """
        # A refused login is no gap of each part: without it nothing is there to be partial.
        await self._login.authorization()
        workspace = await self._where()
        reading = read_permissions(
            self.settings, self._api, self._warehouse, workspace, self.context.clock()
        )
        async with aclosing(reading) as found:
            async for one in found:
                yield one

    async def check(self) -> None:
        """See that the table can be read; starts the warehouse if it sleeps, reads no row.

        Raises:
            Unavailable: The workspace or the warehouse does not answer.
            Denied: A permission is missing; the message has the SQL or the permission that helps.
            Misconfigured: There is no such warehouse.
        """
        await self._where()
        statement = Statement(CHECK_SQL, "system.access.audit")
        async with aclosing(self._warehouse.rows(statement)) as chunks:
            async for _ in chunks:
                pass

    async def close(self) -> None:
        """Close the connections."""
        for one in (*self._clients, self._sign_in):
            if one is not None:
                await one.close()

    async def _fetch(self, one: Slice) -> Fetched:
        workspace = await self._where()
        for _ in range(RESTARTS_MAX + 1):
            try:
                return await self._read(one, workspace)
            except ResultGone:
                continue  # from the start: half a result is none
        raise Unavailable(
            f"the result of {RESTARTS_MAX + 1} statements was gone before it was read"
        )

    async def _read(self, one: Slice, workspace: Workspace) -> Fetched:
        events: list[RawEvent] = []
        rejected: list[RejectedRecord] = []
        reading = self._warehouse.audit_rows(audit_statement(one))
        async with aclosing(reading) as chunks:
            async for rows in chunks:
                # Some chunks have tens of thousands of rows; the loop has heartbeats to keep.
                more, bad = await asyncio.to_thread(parse_rows, rows, workspace)
                events += more
                rejected += bad
        return Fetched(events, rejected)

    async def _where(self) -> Workspace:
        """The workspace and its metastore: as set, else asked once."""
        if self._workspace is None:
            settings = self.settings
            metastore_id, workspace_id = settings.metastore_id, settings.workspace_id
            if metastore_id is None or workspace_id is None:
                try:
                    found = await self._api.object(f"{CATALOG_API}/current-metastore-assignment")
                except Denied as error:
                    raise Denied(
                        f"the workspace names no Unity Catalog metastore: assign one, or set "
                        f"metastore_id and workspace_id ({error})"
                    ) from error
                metastore_id = metastore_id or str(found.get("metastore_id") or "")
                workspace_id = workspace_id or str(found.get("workspace_id") or "")
                if not metastore_id or not workspace_id:
                    raise Misconfigured(
                        "metastore_id, workspace_id: the workspace does not say them; set both"
                    )
            self._workspace = Workspace(metastore_id, workspace_id)
        return self._workspace

    def _authorizer(self) -> Authorizer:
        settings = self.settings
        if settings.token is not None:
            return FixedAuthorization.bearer(settings.token)
        if settings.client_id is not None and settings.client_secret is not None:
            return ClientCredentials(
                self._client([_authority(settings.host)]),
                token_url=f"{settings.host}/oidc/v1/token",
                client_id=settings.client_id,
                client_secret=settings.client_secret,
                scope=OIDC_SCOPE,
                style="basic",
            )
        assert settings.identity is not None  # noqa: S101 - by the settings
        self._sign_in = SignIn(
            settings.identity, settings.http, platform=PLATFORM, context=self.context
        )
        return self._sign_in.authorizer(settings.azure_scope)

    def _client(self, hosts: list[str], authorizer: Authorizer | None = None) -> HttpClient:
        client = HttpClient(
            self.settings.http,
            platform=PLATFORM,
            hosts=hosts,
            authorizer=authorizer,
            context=self.context,
        )
        self._clients.append(client)
        return client


def _authority(url: str) -> str:
    """Host, and port where it is stated: what the client's list of allowed hosts takes."""
    return urlsplit(url).netloc
