"""Collections of Microsoft Graph, page by page, and what its refusals mean."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from verity_sdk.errors import Denied, Unavailable
from verity_sdk.http import Answer, HttpClient, follow
from verity_sdk.windows import TooLarge

RESTARTS_MAX = 5
"""A listing whose page token expires is begun again at most so often (as Cartography does)."""

_UNDERSTOOD = frozenset({400, 403, 404, 410})
# The first: sign-ins without P1 (steampipe-plugin-azuread#98); the others: PIM without P2, as
# several public collectors match them, with status 400 or 403 (read 2026-11-24).
_UNLICENSED = frozenset(
    {
        "Authentication_RequestFromNonPremiumTenantOrB2CTenant",
        "AadPremiumLicenseRequired",
        "PimLicenseRequired",
    }
)


class LicenceMissing(Denied):
    """The tenant's licence does not include this collection."""


class Vanished(Unavailable):
    """The object was there when it was listed, and is no longer."""


class QueryRefused(Denied):
    """Graph answered 400 to a query of ours.

    Attributes:
        vendor_message: What it said; to decide by, not to show.
    """

    def __init__(self, message: str, vendor_message: str) -> None:
        super().__init__(message)
        self.vendor_message = vendor_message


class _PageTokenRefused(Exception):
    """A link that Graph itself made is refused: only its token can be at fault."""


@dataclass(frozen=True, slots=True)
class Listing:
    """Where a collection is, and what reading it takes.

    Attributes:
        path: Below Graph's root, with the version: `/v1.0/users`.
        params: Its query options.
        needs: The application permission that a refusal is explained with.
    """

    path: str
    params: Mapping[str, str]
    needs: str


@dataclass(frozen=True, slots=True)
class _Portion:
    """An answer, parsed once."""

    items: list[Any]
    next_link: str | None


class Graph:
    """Reads collections through one client.

    Args:
        client: Authorised, within its budget.
        root: Graph's root without a version, for example `https://graph.microsoft.com`.
    """

    def __init__(self, client: HttpClient, root: str) -> None:
        self._client = client
        self._root = root

    async def collection(self, listing: Listing, *, pages_max: int | None = None) -> list[Any]:
        """All items, of one enumeration: what an expired token leaves behind is thrown away.

        Args:
            listing: What is read.
            pages_max: `TooLarge` where there are more pages.

        Raises:
            TooLarge: As above; nothing was returned.
            LicenceMissing, Vanished, QueryRefused: See there.
            Denied: Graph refused; the message names the permission.
            Unavailable: Graph did not answer, repeated a link, or let the token of the listing
                expire again and again.
        """
        for _ in range(1 + RESTARTS_MAX):
            items: list[Any] = []
            page_count = 0
            try:
                async with aclosing(self._portions(listing)) as portions:
                    async for portion in portions:
                        page_count += 1
                        if pages_max is not None and page_count > pages_max:
                            raise TooLarge(f"{listing.path}: more than {pages_max} pages")
                        items += portion.items
            except _PageTokenRefused:
                continue
            return items
        raise self._always_expired(listing)

    async def pages(self, listing: Listing) -> AsyncGenerator[list[Any], None]:
        """The items page by page, for collections that are too long to be held.

        After a restart what came already, by its `id`, does not come again; an object that is
        removed meanwhile may have come.

        Raises:
            LicenceMissing, Vanished, QueryRefused, Denied, Unavailable: As `collection`; the
                pages yielded so far are not all.
        """
        seen: set[Any] = set()
        for _ in range(1 + RESTARTS_MAX):
            try:
                async with aclosing(self._portions(listing)) as portions:
                    async for portion in portions:
                        # By its id, and within a page the last of each: a listing may repeat some.
                        fresh = {_id(one): one for one in portion.items}
                        yield [one for name, one in fresh.items() if name not in seen]
                        seen.update(fresh)
            except _PageTokenRefused:
                continue
            return
        raise self._always_expired(listing)

    async def first(self, listing: Listing) -> list[Any]:
        """The first page only: whether it may be read.

        Raises:
            LicenceMissing, Vanished, QueryRefused, Denied, Unavailable: As `collection`.
        """
        async with aclosing(self._portions(listing)) as portions:
            async for portion in portions:
                return portion.items
        return []

    async def _portions(self, listing: Listing) -> AsyncGenerator[_Portion, None]:
        parsed: list[tuple[Answer, _Portion]] = []
        is_first = True

        def portion_of(answer: Answer) -> _Portion:
            # Asked for twice, by the loop and by its search for the next link.
            if not parsed or parsed[0][0] is not answer:
                parsed[:] = [(answer, _portion(answer))]
            return parsed[0][1]

        def next_url(answer: Answer) -> str | None:
            return None if answer.status in _UNDERSTOOD else portion_of(answer).next_link

        answers: Any = follow(
            self._client,
            self._root + listing.path,
            next_url,
            params=listing.params,
            expect=_UNDERSTOOD,
        )
        async with aclosing(answers):
            async for answer in answers:
                if answer.status in _UNDERSTOOD:
                    raise refusal(answer, listing.needs, is_first=is_first)
                is_first = False
                yield portion_of(answer)

    def _always_expired(self, listing: Listing) -> Unavailable:
        return Unavailable(
            f"{self._root}{listing.path}: the page token was refused {1 + RESTARTS_MAX} times"
        )


def refusal(answer: Answer, needs: str, *, is_first: bool) -> Exception:
    """What a refusal means, as the error to raise.

    Args:
        answer: With a status of 400, 403, 404 or 410.
        needs: The application permission that the question takes.
        is_first: Whether the query is ours; later ones are Graph's own links.
    """
    code = answer.error_code
    said = f"{answer.method} {answer.url}: {answer.status} {code or ''}".rstrip()
    if code in _UNLICENSED:
        return LicenceMissing(f"{said}: the tenant's licence does not include it")
    if answer.status == 403:
        return Denied(
            f"{said}: the application permission {needs} is missing, or has no admin consent"
        )
    if answer.status in (400, 410) and not is_first:
        # Directory_ExpiredPageToken, `Invalid Skip Token` (msgraph-sdk-powershell#1388), `Token
        # not found` (#451): the wording differs, the meaning does not.
        return _PageTokenRefused(said)
    if answer.status == 400:
        return QueryRefused(f"{said}: the query is refused", _message(answer))
    return Vanished(f"{said}: it is not there")


def _portion(answer: Answer) -> _Portion:
    body = answer.json()
    items = body.get("value") if isinstance(body, dict) else None
    if not isinstance(items, list):
        raise Unavailable(f"{answer.method} {answer.url}: the answer is no collection")
    link = body.get("@odata.nextLink")
    return _Portion(items, link if isinstance(link, str) and link else None)


def _message(answer: Answer) -> str:
    try:
        body = answer.json()
    except Unavailable:
        return ""
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else ""


def _id(one: Any) -> Any:
    """An object's id; what has none is never the same as another."""
    found = one.get("id") if isinstance(one, dict) else None
    return found if isinstance(found, str) else object()
