"""The connector: what is asked of Graph, in which order, and what becomes of it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, ClassVar

from connectors._azure.sign_in import SignIn
from connectors.azure_ad.graph import Graph, LicenceMissing, Listing, QueryRefused, Vanished
from connectors.azure_ad.permissions import (
    CONCURRENT_MAX,
    GROUPS,
    SERVICE_PRINCIPALS,
    Item,
    collections_of,
    members_of,
    read_permissions,
)
from connectors.azure_ad.settings import LOOKBACK, PLATFORM, RETENTION, SETTLE, Settings
from connectors.azure_ad.streams import (
    AUDITS,
    FREE_RETENTION,
    SIGN_INS,
    Stream,
    fetched,
    is_past_retention,
)
from verity_sdk.errors import Denied, Malformed, Unavailable
from verity_sdk.http import Authorizer, encoded, shared_budget
from verity_sdk.pages import Gap, Page, PagedConnector, Position
from verity_sdk.times import format_utc, parse_utc
from verity_sdk.values import is_utf8
from verity_sdk.windows import (
    CURSOR_VERSION,
    Fetched,
    Slice,
    TooLarge,
    WindowedStream,
    WindowPolicy,
    windowed_pages,
)

logger = logging.getLogger(__name__)

SLICE_MAX = timedelta(hours=1)
RELOOK = timedelta(hours=2)
LATENESS = timedelta(hours=2)

SHORT_SLICES_FOR = timedelta(hours=24)
"""After a busy hour slices stay short for so long."""

LICENCE_PROBE_EVERY = LATENESS
"""How often a stream without a licence is asked for again, and its gap recorded up to then; as
much may `complete_through` be behind for that."""

_NO_LICENCE = (
    "the tenant has no Entra ID P1 or P2 licence (Authentication_RequestFromNonPremiumTenantOr"
    "B2CTenant): sign-ins are not served"
)


@dataclass(slots=True)
class _Licence:
    """What is known of a stream's licence."""

    is_there: bool
    asked_at: datetime


class AzureAdConnector(PagedConnector):
    """Audit records and sign-ins of an Entra ID tenant, and its grants.

    Every stream is read in slices of time behind now, again and again for what comes late. What
    is promised and what is not is in docs/platforms/azure_ad.md.

    Attributes:
        reports_requests: Requests to the audit logs …
        reports_per: … in any stretch of this length, an app and tenant (MS Learn
            graph/throttling-limits: 5 in 10 s).
    """

    settings: Settings  # Before the class attribute of that name.
    PLATFORM = PLATFORM
    Settings = Settings
    lookback = LOOKBACK
    settle = SETTLE
    slice_max = SLICE_MAX
    retention = RETENTION
    reports_requests: ClassVar[int] = 5
    reports_per: ClassVar[timedelta] = timedelta(seconds=10)

    def __init__(self, config: Any, kafka_producer: Any, db_pool: Any) -> None:
        super().__init__(config, kafka_producer, db_pool)
        self._connection: _Connection | None = None
        self._licences: dict[str, _Licence] = {}
        self._slices_max: dict[str, tuple[timedelta, datetime]] = {}
        self._has_warned_of_licence = False
        self._has_warned_of_retention = False
        self._is_order_refused = False

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        """Yield the pages after `position`, up to 15 minutes behind now.

        Sign-ins that the tenant has no licence for are a gap, recorded every two hours up to
        then; the audit records go on.

        Raises:
            Unavailable: Graph did not answer; the pages yielded so far stand.
            Denied: A credential or permission is missing; the message names it.
            Misconfigured: The cursor is not understood, or a link leads away from Graph.
        """
        gap, position, until_gap = await self._unlicensed(position)
        if gap is not None:
            yield gap
        streams = [
            self._windowed(stream) for stream in self._streams() if self._may_be_read(stream)
        ]
        pages: Any = windowed_pages(streams, position, self.context.clock)
        try:
            async with aclosing(pages):
                async for page in pages:
                    yield _held(page, until_gap)
        except LicenceMissing:
            # It was there when the connector started. Forgotten, it is asked for in the next
            # pass, which then records the gap.
            self._licences.clear()

    async def snapshot_permissions(self) -> AsyncIterator[Item]:
        """Yield every grant that stands now, collection by collection.

        Raises:
            Denied: The credential is refused.
            Unavailable: Graph is down.
            Misconfigured: `credential = "azure"` without the extra.
        """
        connection = self._connected()
        # A snapshot without anything in it would say less than the reason.
        await connection.authorizer.authorization()
        graph = connection.directory
        async with aclosing(read_permissions(graph, self.settings, self.context.clock())) as items:
            async for item in items:
                yield item

    async def check(self) -> None:
        """Ask once for everything that would be read; changes nothing.

        Raises:
            Denied: The tenant, the application or its secret is wrong, or permissions or a
                licence are missing: all of them, each by its name.
            Unavailable: The login or Graph does not answer.
        """
        connection = self._connected()
        await connection.authorizer.authorization()
        faults = []
        for label, ask in self._questions(connection):
            try:
                await ask()
            except Denied as error:
                faults.append(f"{label}: {error}")
        if faults:
            raise Denied("; ".join(faults))

    async def close(self) -> None:
        """Close all connections."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.sign_in.close()

    def _streams(self) -> list[Stream]:
        return [AUDITS, *(SIGN_INS[kind] for kind in self.settings.sign_ins)]

    def _may_be_read(self, stream: Stream) -> bool:
        licence = self._licences.get(stream.name)
        return licence is None or licence.is_there

    def _windowed(self, stream: Stream) -> WindowedStream:
        retention = self.settings.retention
        if any(not licence.is_there for licence in self._licences.values()):
            # A tenant that is refused its sign-ins is a Free one, whatever was configured.
            retention = min(retention, FREE_RETENTION)
        slice_max, since = self._slices_max.get(stream.name, (SLICE_MAX, self.context.clock()))
        if self.context.clock() - since > SHORT_SLICES_FOR:
            slice_max = SLICE_MAX
        policy = WindowPolicy(
            settle=self.settings.settle,
            slice_max=slice_max,
            lateness=LATENESS,
            relook=RELOOK,
            lookback=self.settings.lookback,
            lookback_every=timedelta(hours=24),
            retention=retention,
        )
        return WindowedStream(stream.name, partial(self._fetch, stream), policy)

    async def _fetch(self, stream: Stream, one: Slice) -> Fetched:
        graph = self._connected().reports
        is_ordered = stream.is_ordered and not self._is_order_refused
        try:
            records = await self._read(graph, stream, one, is_ordered=is_ordered)
        except QueryRefused as error:
            if is_past_retention(error.vendor_message, one, self.context.clock()):
                return self._past_retention(stream, one)
            if not is_ordered:
                raise
            # The order is a convenience: a slice is sorted once it is complete.
            records = await self._read(graph, stream, one, is_ordered=False)
            self._is_order_refused = True
        return fetched(stream, records)

    async def _read(
        self, graph: Graph, stream: Stream, one: Slice, *, is_ordered: bool
    ) -> list[Any]:
        listing = stream.listing(one.from_at, one.to_at, is_ordered=is_ordered)
        try:
            return await graph.collection(listing, pages_max=self.settings.slice_pages)
        except TooLarge:
            # Deep paging ends in throttling that never ends (microsoft-graph-docs#6892). The
            # next passes begin with what is likely to fit.
            shorter = max((one.to_at - one.from_at) / 2, timedelta(seconds=1))
            self._slices_max[stream.name] = shorter, self.context.clock()
            raise

    def _past_retention(self, stream: Stream, one: Slice) -> Fetched:
        reason = "Graph no longer answers for this time: the tenant's retention is shorter"
        if not self._has_warned_of_retention:
            self._has_warned_of_retention = True
            logger.warning("%s: %s; set `retention`", self.settings.connector_id, reason)
        return Fetched((), gaps=[Gap(one.from_at, one.to_at, stream.name, reason)])

    async def _unlicensed(
        self, position: Position
    ) -> tuple[Page | None, Position, datetime | None]:
        """What a missing licence means for this pass.

        Returns:
            The page with the gaps that are due, the position behind it, and the time up to which
            the gaps of all streams without a licence are recorded.
        """
        if not _is_known(position.cursor):
            return None, position, None  # windowed_pages refuses it, before anything is moved.
        now = self.context.clock()
        to_at = _whole_second(min(now - self.settings.settle, position.until or now))
        cursor, gaps, recorded = position.cursor, [], []
        for stream in self._streams():
            if not stream.is_licensed:
                continue
            is_new = await self._ask_licence(stream, now)
            if self._may_be_read(stream):
                continue
            stands_at = _stands_at(cursor, stream.name) or position.since
            if is_new and stands_at < to_at:
                gaps.append(Gap(stands_at, to_at, stream.name, _NO_LICENCE))
                cursor = _moved(cursor, stream.name, to_at)
                stands_at = to_at
            recorded.append(stands_at)
        until_gap = min(recorded, default=None)
        if not gaps or cursor is None:
            return None, position, until_gap
        return Page((), cursor, gaps=gaps), replace(position, cursor=cursor), until_gap

    async def _ask_licence(self, stream: Stream, now: datetime) -> bool:
        """Ask whether a stream is served, unless that is known; true if it was just refused."""
        known = self._licences.get(stream.name)
        if known is not None and (known.is_there or now - known.asked_at < LICENCE_PROBE_EVERY):
            return False
        try:
            await self._connected().reports.first(_newest(stream, now))
        except LicenceMissing:
            self._licences[stream.name] = _Licence(is_there=False, asked_at=now)
            if not self._has_warned_of_licence:
                self._has_warned_of_licence = True
                logger.warning(
                    "%s: %s; only audit records are collected. Set sign_ins = [] to leave it so",
                    self.settings.connector_id,
                    _NO_LICENCE,
                )
            return True
        except (Denied, Unavailable):
            # Not about the licence: the stream's own turn in the pass meets it again, after
            # those that work.
            self._licences.pop(stream.name, None)
            return False
        if known is not None:
            logger.info("%s: %s is served now", self.settings.connector_id, stream.name)
        self._licences[stream.name] = _Licence(is_there=True, asked_at=now)
        return False

    def _questions(
        self, connection: _Connection
    ) -> list[tuple[str, Callable[[], Awaitable[object]]]]:
        """One cheap question for everything that would be read."""
        now = self.context.clock()
        questions: list[tuple[str, Callable[[], Awaitable[object]]]] = [
            (stream.name, partial(connection.reports.first, _newest(stream, now)))
            for stream in self._streams()
        ]
        for listing in collections_of(self.settings):
            cheap = replace(listing, params=_cheap(listing.params))
            label = listing.path.rpartition("/")[2]
            questions.append((label, partial(connection.directory.first, cheap)))
        questions.append(("groups/members", partial(self._ask_below, connection, GROUPS)))
        below = partial(self._ask_below, connection, SERVICE_PRINCIPALS)
        questions.append(("servicePrincipals/appRoleAssignedTo", below))
        return questions

    async def _ask_below(self, connection: _Connection, listing: Listing) -> None:
        """Ask for what hangs on the first object of a collection, if there is one."""
        try:
            found = await connection.directory.first(
                replace(listing, params=_cheap(listing.params))
            )
        except Denied:
            return  # The collection's own question says so.
        first = found[0] if found else None
        if not isinstance(first, dict) or not isinstance(first.get("id"), str):
            return
        if not is_utf8(first["id"]):
            return  # A refusal would say nothing of the permission.
        if listing is GROUPS:
            below = members_of(first["id"], self.settings.group_members_from)
        else:
            path = f"{listing.path}/{encoded(first['id'])}/appRoleAssignedTo"
            below = Listing(path, {}, listing.needs)
        try:
            await connection.directory.first(below)
        except Vanished:
            return

    def _connected(self) -> _Connection:
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _connect(self) -> _Connection:
        settings = self.settings
        sign_in = SignIn(settings.identity, settings.http, platform=PLATFORM, context=self.context)
        share = settings.http.budget_share
        key = (PLATFORM, settings.tenant_id, settings.client_id)
        reports = shared_budget(
            (*key, "reports"), requests=self.reports_requests, per=self.reports_per, share=share
        )
        # The smallest tenants have 3,500 resource units in 10 s, and the dearest question here
        # costs 3 (MS Learn graph/throttling-limits).
        directory = shared_budget(
            (*key, "directory"),
            requests=1000,
            per=timedelta(seconds=10),
            concurrent=CONCURRENT_MAX,
            share=share,
        )
        return _Connection(
            sign_in,
            sign_in.authorizer(settings.scope),
            *(
                Graph(sign_in.client(settings.graph, settings.scope, budget=budget), settings.graph)
                for budget in (reports, directory)
            ),
        )


@dataclass(frozen=True, slots=True)
class _Connection:
    """What is open."""

    sign_in: SignIn
    authorizer: Authorizer
    reports: Graph
    directory: Graph


def _newest(stream: Stream, now: datetime) -> Listing:
    """A question about the last hour, for one record."""
    at = _whole_second(now)
    listing = stream.listing(at - timedelta(hours=1), at)
    return replace(listing, params={**listing.params, "$top": "1"})


def _cheap(params: Mapping[str, str]) -> dict[str, str]:
    cheap = {name: value for name, value in params.items() if name != "$expand"}
    return cheap | {"$top": "1"} if "$top" in cheap else cheap


def _whole_second(at: datetime) -> datetime:
    return at.replace(microsecond=0)


def _held(page: Page, until_gap: datetime | None) -> Page:
    """Complete only as far as the missing licence's gap is on record, with the usual lateness:
    so it does not go back when the licence is there again.
    """
    if until_gap is None or page.complete_through is None:
        return page
    return replace(page, complete_through=min(page.complete_through, until_gap - LATENESS))


def _stands_at(cursor: Mapping[str, Any] | None, name: str) -> datetime | None:
    stream = (cursor or {}).get("streams", {}).get(name)
    return None if stream is None else parse_utc(stream["through"])


def _is_known(cursor: Mapping[str, Any] | None) -> bool:
    """Whether a cursor is one that `windowed_pages` reads."""
    if cursor is None:
        return True
    try:
        for name in cursor["streams"]:
            _stands_at(cursor, name)
    except (Malformed, KeyError, TypeError, AttributeError):
        return False
    return cursor.get("v") == CURSOR_VERSION


def _moved(cursor: Mapping[str, Any] | None, name: str, to_at: datetime) -> dict[str, Any]:
    """The cursor of `windowed_pages` with one stream moved."""
    at = format_utc(to_at)
    streams = {**(cursor or {}).get("streams", {}), name: {"through": at, "looked_back_at": at}}
    return {"v": CURSOR_VERSION, **(cursor or {}), "streams": streams}
