"""SCIM 2.0 (RFC 7643, 7644, 9865; read 2026-11-24): what is asked, in which order.

SCIM has no feed and no tombstones. What changed is the difference between how people are and how
they were known; who is not there any more is found only by reading everybody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import (
    AsyncIterator,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from connectors.hr import scim_records as records
from connectors.hr.changes import Observation
from connectors.hr.fields import GROUP_ATTRIBUTES, Keep, scim_filter
from connectors.hr.grants import grants_of
from connectors.hr.known import Known
from connectors.hr.reading import (
    Asking,
    Reading,
    ReadingState,
    SnapshotItem,
    advanced,
    bound_of,
    each,
    not_there,
    portions,
)
from connectors.hr.scim_records import Context, Record, Shown
from connectors.hr.settings import Scim
from verity_sdk.errors import Denied, Malformed, Unavailable
from verity_sdk.http import Answer, encoded
from verity_sdk.pages import RejectedRecord, SnapshotGap, SnapshotScope
from verity_sdk.times import format_utc

logger = logging.getLogger(__name__)

READ_ATTEMPTS: Final = 3
"""A list that changes while it is read is read again so often."""
PAGES_MAX: Final = 100_000
ABSENT_ALWAYS: Final = 10
"""So many may be gone at once, whatever their share."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the server says it can do (RFC 7643, 5; RFC 9865, 4)."""

    can_filter: bool = False
    can_sort: bool = False
    has_cursors: bool = False
    results_max: int | None = None


@dataclass(slots=True)
class Listing:
    """What a listing held.

    Attributes:
        found: By id, allowed attributes only.
        faulty: What has no id.
        incomplete: Why it can't be taken for complete, or None: it can.
    """

    found: dict[str, Record] = field(default_factory=dict)
    faulty: list[RejectedRecord] = field(default_factory=list)
    incomplete: str | None = None


class _Seen(NamedTuple):
    """Somebody in a listing, by when the record changed."""

    at: datetime
    person_id: str


class FilterRefused(Exception):
    """The server can't filter as it is asked to, whatever it announces."""


class ScimSource:
    """A SCIM 2.0 service provider.

    Args:
        settings: Where it is, and what may be read.
        asking: How it is asked.
    """

    def __init__(self, settings: Scim, asking: Asking) -> None:
        self._settings = settings
        self._asking = asking
        self._keep_user = scim_filter(settings.attributes)
        self._keep_group = scim_filter(GROUP_ATTRIBUTES)
        self._shown = Shown.of(settings.attributes)
        self._capabilities: Capabilities | None = None

    async def readings(
        self, place: ReadingState, known: Known, read_at: datetime, until: datetime | None
    ) -> AsyncIterator[Reading]:
        """One pass: those who changed since, or everybody."""
        context = Context(self._settings.source_name, self._shown, place.began_at, read_at)
        listing, is_full = await self._users(place, read_at)
        faulty = list(listing.faulty)
        changed, unchanged = await asyncio.to_thread(
            self._sorted_out, listing, place, known, context, until, faulty
        )
        after = advanced(place, (one.at for one in changed if one.at < read_at))
        absent: list[Observation] = []
        excess = None
        if is_full and until is None and listing.incomplete is None and not listing.faulty:
            absent, excess = await self._absent(place, known, listing.found, context)
            if excess is None:
                after = replace(after, last_read_at=read_at, reads=place.reads + 1)
        elif is_full:
            logger.warning(
                "SCIM %s: everybody was read, but nobody is looked for who is gone: %s",
                self._settings.source_name,
                listing.incomplete or "bounded, or some records are not understood",
            )
        # Last, because they are noticed now.
        parts: list[Sequence[_Seen | Observation]] = [
            *portions(changed, self._asking.portion),
            *portions(absent, self._asking.portion),
        ]
        quiet: Iterable[Observation] = _observed(unchanged, listing.found, context, faulty)
        if not parts:
            yield Reading((), quiet, faulty, is_news=bool(unchanged), after=after)
        for number, part in enumerate(parts, 1):
            is_last = number == len(parts)
            observations = _observed(part, listing.found, context, faulty)
            yield Reading(observations, quiet, faulty, after=after if is_last else None)
            quiet, faulty = (), []
        if excess is not None:
            raise Denied(excess)

    async def _users(self, place: ReadingState, read_at: datetime) -> tuple[Listing, bool]:
        """Those who changed, or everybody; and which of the two it is."""
        # One that lies ahead was read under a clock that stood wrong.
        is_due = place.last_read_at is None or not (
            timedelta(0) <= read_at - place.last_read_at < self._settings.full_read_every
        )
        if not place.is_first and not is_due and (await self._can()).can_filter:
            # `ge` and a lookback: writes may become visible late, and `gt` would skip a twin.
            since = f"{place.since - self._asking.lookback:%Y-%m-%dT%H:%M:%SZ}"
            try:
                return await self._list("Users", f'meta.lastModified ge "{since}"'), False
            except FilterRefused:
                # Several vendors announce filters and mean eq and co only.
                logger.info(
                    "SCIM %s can't filter by meta.lastModified: every pass reads everybody",
                    self._settings.source_name,
                )
                self._capabilities = replace(await self._can(), can_filter=False)
        return await self._list("Users"), True

    def _sorted_out(
        self,
        listing: Listing,
        place: ReadingState,
        known: Known,
        context: Context,
        until: datetime | None,
        faulty: list[RejectedRecord],
    ) -> tuple[list[_Seen], list[_Seen]]:
        """Whose records may become events, oldest first, and whose are a baseline."""
        changed, unchanged = [], []
        for person_id, record in listing.found.items():
            try:
                times = records.times_of(record)
            except Malformed as error:
                faulty.append(records.rejected(record, str(error)))
                continue
            modified_at = times.modified_at
            # A version tells two changes of one second apart; without it the second must be over.
            newest_at = until if times.version is not None else bound_of(context.read_at, until)
            if modified_at is not None and newest_at is not None and modified_at > newest_at:
                continue
            seen = _Seen(modified_at or context.read_at, person_id)
            if known.get(person_id) is None and (
                modified_at < place.began_at if modified_at is not None else place.is_first
            ):
                unchanged.append(seen)
            else:
                changed.append(seen)
        return sorted(changed), unchanged

    async def _absent(
        self, place: ReadingState, known: Known, found: Collection[str], context: Context
    ) -> tuple[list[Observation], str | None]:
        """Those who are known and not there, each asked for; or why that can't be believed."""
        gone = [one for one in known.people if one not in found]
        active = list(known.active_ids())
        suspects = [one for one in active if one not in found]
        share_max = self._settings.absence_share_max
        if len(suspects) > max(ABSENT_ALWAYS, share_max * len(active)):
            return [], (
                f"{len(suspects)} of {len(active)} active people are gone from SCIM "
                f"{self._settings.source_name} at once, more than absence_share_max = "
                f"{share_max:g}: nobody is said to have left. If the token still sees everybody, "
                "raise scim.absence_share_max until the next pass"
            )
        # A list may skip somebody while others come and go; a 404 to the id leaves no doubt.
        is_there = await each(suspects, self._is_there, self._settings.concurrent_requests)
        there = {one for one, answer in zip(suspects, is_there, strict=True) if answer}
        last_read_at = None if place.last_read_at is None else format_utc(place.last_read_at)
        return [
            records.absence(one, place.reads, last_read_at, context)
            for one in gone
            if one not in there
        ], None

    async def _is_there(self, person_id: str) -> bool:
        answer = await self._get(
            f"Users/{encoded(person_id)}", {"attributes": "id"}, expect=not_there(person_id, 404)
        )
        return answer.status < 400

    async def snapshot(self, snapshot_at: datetime) -> AsyncIterator[SnapshotItem]:
        """Who belongs where, has which roles and accounts; then who is in which group."""

        async def users() -> AsyncIterator[SnapshotItem]:
            listing = await self._list("Users")
            for record in listing.found.values():
                try:
                    holder = records.holder(record, self._shown)
                except Malformed as error:
                    listing.faulty.append(records.rejected(record, str(error)))
                    continue
                for grant in grants_of(holder, snapshot_at):
                    yield grant
            yield _end_of("users", listing)

        async def groups() -> AsyncIterator[SnapshotItem]:
            listing = await self._list("Groups")
            for record in listing.found.values():
                try:
                    members = records.memberships(record, snapshot_at)
                except Malformed as error:
                    listing.faulty.append(records.rejected(record, str(error)))
                    continue
                for grant in members:
                    yield grant
            yield _end_of("groups", listing)

        parts = {"users": users, "groups": groups}
        if not self._settings.groups:
            del parts["groups"]
        failures: dict[str, Denied | Unavailable] = {}
        for scope, part in parts.items():
            try:
                async for item in part():
                    yield item
            except (Denied, Unavailable) as error:
                failures[scope] = error
        if len(failures) == len(parts):
            raise next(iter(failures.values()))
        for scope, failure in failures.items():
            # One closed part must not hide the other.
            yield SnapshotGap(scope, str(failure))

    async def check(self) -> None:
        """See that users, and groups where they are wanted, may be read."""
        self._capabilities = None
        await self._can()
        for kind in ("Users", "Groups"):
            if kind == "Users" or self._settings.groups:
                params = {"startIndex": "1", "count": "1", "attributes": "id"}
                _list_response((await self._get(kind, params)).json())

    async def _can(self) -> Capabilities:
        if self._capabilities is None:
            answer = await self._get("ServiceProviderConfig", expect=(403, 404, 501))
            body = answer.json() if answer.status == 200 else {}
            self._capabilities = _capabilities(body)
        return self._capabilities

    async def _list(self, kind: str, condition: str | None = None) -> Listing:
        """All resources of a kind, read again where they changed meanwhile.

        Raises:
            FilterRefused: The server can't take the condition.
        """
        can = await self._can()
        keep = self._keep_user if kind == "Users" else self._keep_group
        attributes = self._settings.attributes if kind == "Users" else GROUP_ATTRIBUTES
        count = min(self._settings.page_size, can.results_max or self._settings.page_size)
        params = {"count": str(count)}
        if self._settings.request_attributes:
            params["attributes"] = ",".join(("id", "meta", *attributes))
        if condition is not None:
            params["filter"] = condition
            if can.can_sort:
                params |= {"sortBy": "meta.lastModified", "sortOrder": "ascending"}
        faulty: dict[bytes, RejectedRecord] = {}
        for _ in range(READ_ATTEMPTS):
            if can.has_cursors:
                listing = await self._by_cursor(kind, params, keep)
            else:
                listing = await self._by_index(kind, params, keep)
            faulty |= {one.data: one for one in listing.faulty}
            if listing.incomplete is None:
                break
        listing.faulty = list(faulty.values())
        return listing

    async def _by_index(self, kind: str, params: Mapping[str, str], keep: Keep) -> Listing:
        """Index paging: over a changing set it skips and repeats, so the count must agree."""
        listing = Listing()
        totals: list[int] = []
        start = 1
        for _ in range(PAGES_MAX):
            answer = await self._page(kind, {"startIndex": str(start), **params})
            total, resources = _list_response(answer.json())
            if total is None:
                raise Unavailable(f"SCIM {kind}: the list has no totalResults")
            totals.append(total)
            _gather(resources, keep, listing)
            start += len(resources)
            if not resources or start > total:
                break
        listing.incomplete = doubt_of(listing, totals)
        return listing

    async def _by_cursor(self, kind: str, params: Mapping[str, str], keep: Keep) -> Listing:
        """Cursor paging (RFC 9865); an empty page is not the end."""
        listing = Listing()
        totals: list[int] = []
        cursor, cursors = "", set[str]()
        for _ in range(PAGES_MAX):
            answer = await self._page(kind, {"cursor": cursor, **params}, is_cursor=bool(cursor))
            if answer.status == 400:
                listing.incomplete = "the cursor has expired"
                return listing
            body = answer.json()
            total, resources = _list_response(body)
            if total is not None:
                totals.append(total)
            _gather(resources, keep, listing)
            following = body.get("nextCursor")
            if not isinstance(following, str) or not following:
                break
            if following in cursors:
                raise Unavailable(f"SCIM {kind}: the list came with the same cursor twice")
            cursors.add(following)
            cursor = following
        listing.incomplete = doubt_of(listing, totals)
        return listing

    async def _page(
        self, kind: str, params: Mapping[str, str], *, is_cursor: bool = False
    ) -> Answer:
        if "filter" in params:
            answer = await self._get(kind, params, expect=(400, 403, 501))
            if answer.status == 501 or (answer.status in (400, 403) and not is_cursor):
                raise FilterRefused
            return answer
        return await self._get(kind, params, expect=(400,) if is_cursor else ())

    async def _get(
        self,
        path: str,
        params: Mapping[str, str] | None = None,
        *,
        expect: Collection[int] = (),
    ) -> Answer:
        try:
            return await self._asking.client.get(
                f"{self._settings.base_url}/{path}",
                params=params,
                headers={"Accept": "application/scim+json"},
                expect=expect,
            )
        except Denied as error:
            raise Denied(
                f"SCIM {self._settings.source_name} refuses /{path.split('/')[0]}: 401 means that "
                "scim.auth is wrong or expired, 403 that it may not read them, 404 that "
                f"scim.base_url does not end where /Users begins: {error}"
            ) from error


def _observed(
    seen: Sequence[_Seen | Observation],
    found: Mapping[str, Record],
    context: Context,
    faulty: list[RejectedRecord],
) -> Iterator[Observation]:
    """What is seen of them, one by one."""
    for one in seen:
        if isinstance(one, Observation):
            yield one
            continue
        record = found[one.person_id]
        try:
            yield records.observation(record, records.times_of(record), context)
        except Malformed as error:
            faulty.append(records.rejected(record, str(error)))


def _gather(resources: Sequence[Any], keep: Keep, listing: Listing) -> None:
    for one in resources:
        record = keep(one)
        try:
            listing.found[records.resource_id(record)] = record
        except Malformed as error:
            listing.faulty.append(records.rejected(record, str(error)))


def doubt_of(listing: Listing, totals: Sequence[int]) -> str | None:
    """Why a listing can't be taken for complete."""
    if len(set(totals)) > 1:
        return f"totalResults went from {totals[0]} to {totals[-1]} while it was read"
    held = len(listing.found) + len(listing.faulty)
    if totals and held != totals[0]:
        return f"totalResults is {totals[0]}, but there were {held}"
    return None


def _end_of(scope: str, listing: Listing) -> SnapshotGap | SnapshotScope:
    if listing.incomplete is not None:
        return SnapshotGap(scope, listing.incomplete)
    if listing.faulty:
        count, reason = len(listing.faulty), listing.faulty[0].reason
        return SnapshotGap(scope, f"{count} records are not understood: {reason}")
    return SnapshotScope(scope)


def _list_response(body: Any) -> tuple[int | None, list[Any]]:
    """`totalResults` and `Resources` (RFC 7644, 3.4.2); the latter may be missing when empty."""
    if not isinstance(body, dict):
        raise Unavailable("SCIM: the answer is no ListResponse")
    total, resources = body.get("totalResults"), body.get("Resources")
    if resources is None:
        resources = []
    is_number = isinstance(total, int) and not isinstance(total, bool)
    if not isinstance(resources, list) or not (total is None or is_number):
        raise Unavailable("SCIM: the answer is no ListResponse")
    return total, resources


def _capabilities(body: Any) -> Capabilities:
    def part(name: str) -> dict[str, Any]:
        value = body.get(name) if isinstance(body, dict) else None
        return value if isinstance(value, dict) else {}

    results_max = part("filter").get("maxResults")
    return Capabilities(
        can_filter=part("filter").get("supported") is True,
        can_sort=part("sort").get("supported") is True,
        has_cursors=part("pagination").get("cursor") is True,
        results_max=results_max if type(results_max) is int and results_max > 0 else None,
    )
