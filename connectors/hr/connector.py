"""The connector: passes over an HR system, and what stands in it now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final, cast

from connectors._azure.credential import explained
from connectors.hr.bamboohr import BambooHrSource
from connectors.hr.changes import learn, observe
from connectors.hr.known import Known
from connectors.hr.reading import (
    SETTLE,
    Asking,
    Reading,
    ReadingState,
    Source,
    TokenFile,
    bound_of,
    host_of,
    place_of,
)
from connectors.hr.scim import ScimSource
from connectors.hr.settings import (
    LOOKBACK,
    PLATFORM,
    BambooHr,
    Basic,
    Bearer,
    ClientCredential,
    Settings,
)
from verity_sdk.auth import ClientCredentials, FixedAuthorization
from verity_sdk.connector_base import PermissionSnapshot, RawEvent
from verity_sdk.errors import Misconfigured
from verity_sdk.http import Authorizer, HttpClient
from verity_sdk.pages import Page, PagedConnector, Position, SnapshotGap, SnapshotScope

LARGE_CURSOR_BYTES: Final = 64 * 1024
QUIET_EVERY: Final = timedelta(minutes=10)
"""A cursor that is large is not written again for a quiet pass, but once in this time."""


class HrConnector(PagedConnector):
    """Joiners, movers and leavers from BambooHR or a SCIM 2.0 source, and who belongs where.

    Neither source says what changed. An event is the difference between how a person is and how
    the person was last known; that state is part of the cursor and moves with the events. The
    first pass takes a baseline, and of changes since the start it tells what dates can tell.
    docs/platforms/hr.md has the rules.
    """

    settings: Settings  # Before the class attribute of that name.
    PLATFORM = PLATFORM
    Settings = Settings
    lookback: ClassVar[timedelta] = LOOKBACK
    settle: ClassVar[timedelta] = SETTLE

    def __init__(self, config: Any, kafka_producer: Any, db_pool: Any) -> None:
        super().__init__(config, kafka_producer, db_pool)
        self._clients: list[HttpClient] = []
        self._quiet_told_at: datetime | None = None
        self._of, self._source = self._build()

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        """Yield the pages of one pass, oldest change first.

        Raises:
            Unavailable: The source did not answer; pages yielded so far stand.
            Denied: The source refused, or so many people are gone at once that it can't be right.
            Misconfigured: The cursor is another source's, or what is known of the people does not
                fit into a checkpoint any more; the message says how many fit.
        """
        place = place_of(position, self.settings.source, self._of)
        packed: str | None = None
        if position.cursor is not None:
            packed = position.cursor.get("known")
        known = await asyncio.to_thread(self._known, packed)
        read_at = self.context.trusted(self.context.clock())
        through = bound_of(read_at, position.until)
        readings = cast("Any", self._source.readings(place, known, read_at, position.until))
        async with aclosing(readings):
            async for reading in readings:
                # Thousands of people take a second; the loop has heartbeats to keep.
                events = await asyncio.to_thread(_derive, reading, known, place)
                after = reading.after
                if after is not None:
                    met_again = after.since - self.settings.lookback - timedelta(seconds=1)
                    is_pruned = known.forget_changes_before(int(met_again.timestamp()))
                else:
                    is_pruned = False
                if packed is None or reading.is_news or is_pruned:
                    packed = await asyncio.to_thread(known.encode)
                elif not reading.rejected and self._may_stay_quiet(after, place, packed, read_at):
                    continue
                yield Page(
                    events=events,
                    cursor=(after or place).cursor(packed),
                    complete_through=None if after is None else through,
                    rejected=tuple(reading.rejected),
                )

    def _may_stay_quiet(
        self, after: ReadingState | None, place: ReadingState, packed: str, read_at: datetime
    ) -> bool:
        """Whether a page would say nothing but how far the source was read, at a high price."""
        if len(packed) < LARGE_CURSOR_BYTES or after != place:
            return False
        told_at = self._quiet_told_at
        if told_at is not None and timedelta(0) <= read_at - told_at < QUIET_EVERY:
            return True
        self._quiet_told_at = read_at
        return False

    async def snapshot_permissions(
        self,
    ) -> AsyncIterator[PermissionSnapshot | SnapshotGap | SnapshotScope]:
        """Yield departments, titles, managers and accounts of everybody; SCIM also has groups.

        Raises:
            Unavailable: The source did not answer.
            Denied: The source refused.
        """
        items = cast("Any", self._source.snapshot(self.context.clock()))
        async with aclosing(items):
            async for item in items:
                yield item

    async def check(self) -> None:
        """See that the source answers and shows what is needed; changes nothing.

        Raises:
            Unavailable: It does not answer.
            Denied: It refuses; the message names the permission in the vendor's words.
        """
        await self._source.check()

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients:
            await client.close()

    def _known(self, packed: str | None) -> Known:
        is_by_value = self.settings.remember == "values"
        if packed is None:
            return Known(is_by_value)
        return Known.decode(packed, is_by_value=is_by_value)

    def _client(self, url: str, authorizer: Authorizer | None) -> HttpClient:
        client = HttpClient(
            self.settings.http,
            platform=PLATFORM,
            hosts=[host_of(url)],
            authorizer=authorizer,
            context=self.context,
        )
        self._clients.append(client)
        return client

    def _build(self) -> tuple[str, Source]:
        settings = self.settings
        if settings.bamboohr is not None:
            bamboohr = settings.bamboohr
            client = self._client(bamboohr.url, _bamboohr_authorizer(bamboohr))
            return bamboohr.company_domain, BambooHrSource(bamboohr, self._asking(client))
        if settings.scim is None:
            raise Misconfigured("neither the table bamboohr nor the table scim is there")
        scim = settings.scim
        client = self._client(scim.base_url, self._scim_authorizer(scim.auth))
        return scim.source_name, ScimSource(scim, self._asking(client))

    def _asking(self, client: HttpClient) -> Asking:
        settings = self.settings
        return Asking(client, settings.lookback, settings.page_events, self.context.clock)

    def _scim_authorizer(self, auth: Bearer | Basic | ClientCredential) -> Authorizer:
        if isinstance(auth, Bearer):
            return FixedAuthorization.bearer(auth.token)
        if isinstance(auth, Basic):
            return FixedAuthorization.basic(auth.user, auth.password)
        return ClientCredentials(
            self._client(auth.token_url, None),
            token_url=auth.token_url,
            client_id=auth.client_id,
            client_secret=auth.client_secret,
            scope=auth.scope,
            style=auth.style,
            explain=explained,  # The issuer of a SCIM source is Entra ID as a rule.
        )


def _bamboohr_authorizer(settings: BambooHr) -> Authorizer:
    if settings.api_key is not None:
        # The key is the user; the password may be anything (BambooHR, "Getting Started").
        return FixedAuthorization.basic(settings.api_key, "x")
    if settings.access_token is not None:
        return FixedAuthorization.bearer(settings.access_token)
    if settings.access_token_file is None:
        raise Misconfigured("bamboohr has no credential")
    return TokenFile(settings.access_token_file)


def _derive(reading: Reading, known: Known, place: ReadingState) -> list[RawEvent]:
    """The events of a part of a pass; `known` has learnt all of it afterwards."""
    for one in reading.baseline:
        learn(one, known)
    events = (observe(one, known, place.began_at) for one in reading.observations)
    return [event for event in events if event is not None]
