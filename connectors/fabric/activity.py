"""Reading the activity events of a window: hour by hour, as Power BI pages them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import timedelta
from typing import Any, cast

from connectors.fabric.clients import Clients, activity_events, refusal
from connectors.fabric.records import read_records
from connectors.fabric.settings import Settings
from connectors.fabric.silence import SilenceWatch
from verity_sdk.errors import Denied, Unavailable
from verity_sdk.http import Answer, follow
from verity_sdk.pages import Gap
from verity_sdk.windows import Fetched, Slice, TooLarge

logger = logging.getLogger(__name__)

STREAM = "activityevents"
PATH = "/v1.0/myorg/admin/activityevents"
# A refused continuation token: the listing starts over, this many times.
RESTARTS_MAX = 2
# A window that was within the retention when it was cut may have left it when it is asked for.
RETENTION_MARGIN = timedelta(hours=1)
BAD_REQUEST = 400
# A day has 24 pages that may be empty; a listing that goes on and on without an event has no end.
EMPTY_PAGES_MAX = 100


class _ContinuationRefused(Exception):
    """A later page was answered with 400."""


class ActivityEvents:
    """The activity events of a tenant.

    Args:
        clients: For the requests.
        settings: Where and how much.
        watch: Told of every window that was read.
    """

    def __init__(self, clients: Clients, settings: Settings, watch: SilenceWatch) -> None:
        self._clients = clients
        self._settings = settings
        self._watch = watch

    async def read(self, window: Slice) -> Fetched:
        """Read a window completely.

        A continuation token that is refused starts the listing over: what was read of it is
        dropped, for it is no complete listing.

        Raises:
            TooLarge: It holds more than `slice_events_max` events.
            Unavailable: No answer, or answers that lead in circles.
            Denied: The tenant refuses; the message says what to grant.
            Misconfigured: A continuation leads to a host that is not allowed.
        """
        for _ in range(1 + RESTARTS_MAX):
            try:
                fetched = await self._read_once(window)
            except _ContinuationRefused:
                logger.info("a continuation token was refused, the window is read again")
            except Denied as error:
                raise refusal(error, "power_bi") from error
            else:
                self._notice(window, fetched)
                return fetched
        raise Unavailable(f"{PATH}: continuation tokens are refused again and again")

    async def probe(self) -> None:
        """Ask for one settled second: whether the tenant answers at all.

        Raises:
            Denied, Unavailable, Misconfigured: As `read`.
        """
        at = (self._clients.context.clock() - self._settings.settle).replace(microsecond=0)
        try:
            await self._clients.of(activity_events(self._settings)).get(
                self._url, params=_window_params(Slice(at, at + timedelta(seconds=1)))
            )
        except Denied as error:
            raise refusal(error, "power_bi") from error

    @property
    def _url(self) -> str:
        return f"{self._settings.power_bi_url}{PATH}"

    async def _read_once(self, window: Slice) -> Fetched:
        events, rejected = [], []
        empty_count = 0
        listing = _Listing(self._url)
        answers = follow(
            self._clients.of(activity_events(self._settings)),
            self._url,
            listing.next_url,
            params=_window_params(window),
            expect=[BAD_REQUEST],
        )
        async with aclosing(cast("AsyncGenerator[Answer, None]", answers)) as pages:
            async for answer in pages:
                if answer.status == BAD_REQUEST:
                    if not listing.is_first(answer):
                        raise _ContinuationRefused
                    return self._refused(window, answer)
                records = listing.records(answer)
                empty_count = 0 if records else empty_count + 1
                if empty_count > EMPTY_PAGES_MAX:
                    raise Unavailable(
                        f"{answer.url}: {empty_count} empty pages in a row; "
                        "the listing is not complete"
                    )
                # Some thousand records take a tenth of a second; the loop has heartbeats to keep.
                page = await asyncio.to_thread(read_records, records)
                events += page[0]
                rejected += page[1]
                if len(events) > self._settings.slice_events_max:
                    raise TooLarge
        return Fetched(events, rejected)

    def _refused(self, window: Slice, answer: Answer) -> Fetched:
        """The first page was answered with 400: too old at the edge, or a fault of ours."""
        oldest_at = self._clients.context.clock() - self._settings.retention + RETENTION_MARGIN
        if window.from_at < oldest_at:
            reason = f"older than the tenant keeps its events ({answer.error_code})"
            return Fetched((), gaps=[Gap(window.from_at, window.to_at, STREAM, reason)])
        raise Denied(
            f"GET {answer.url} answered 400 ({answer.error_code}) to a window from "
            f"{window.from_at:%Y-%m-%dT%H:%M:%SZ}: if the tenant keeps less than "
            f"{self._settings.retention.days} days, set `retention`"
        )

    def _notice(self, window: Slice, fetched: Fetched) -> None:
        newest_at = max((event.occurred_at for event in fetched.events), default=None)
        if newest_at is None and fetched.rejected:
            newest_at = window.last_second
        if not fetched.gaps:
            self._watch.saw(window.from_at, window.to_at, newest_at)


class _Listing:
    """The answers of one listing, each parsed once."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._first: Answer | None = None
        self._parsed: tuple[Answer, dict[str, Any]] | None = None

    def is_first(self, answer: Answer) -> bool:
        """Whether the answer is that to the window itself."""
        self._note(answer)
        return self._first is answer

    def records(self, answer: Answer) -> list[Any]:
        """The records of a page; none is not the end."""
        return cast("list[Any]", self._body(answer)["activityEventEntities"])

    def next_url(self, answer: Answer) -> str | None:
        """Where the next page is; the token alone says whether there is one.

        `lastResultSet` was false on the last page of Microsoft's own example. The URI holds the
        token in quotes and percent-encoded already: it goes out byte for byte.
        """
        self._note(answer)
        if answer.status == BAD_REQUEST:
            return None
        body = self._body(answer)
        token, uri = body.get("continuationToken"), body.get("continuationUri")
        if not token:
            return None
        if isinstance(uri, str) and uri:
            return uri
        return f"{self._url}?continuationToken='{token}'"

    def _note(self, answer: Answer) -> None:
        if self._first is None:
            self._first = answer

    def _body(self, answer: Answer) -> dict[str, Any]:
        self._note(answer)
        if self._parsed is None or self._parsed[0] is not answer:
            body = answer.json()
            if not isinstance(body, dict) or not isinstance(
                body.get("activityEventEntities"), list
            ):
                raise Unavailable(f"GET {answer.url} answered without activityEventEntities")
            self._parsed = (answer, body)
        return self._parsed[1]


def _window_params(window: Slice) -> dict[str, str]:
    """The window in Power BI's words: in single quotes, closed, within one UTC day.

    Closed at the last millisecond of the last second, not at the next slice's first: on the hour
    that one lies in another page, and each page is a request of the 200.
    """
    return {
        "startDateTime": f"'{window.from_at:%Y-%m-%dT%H:%M:%S}Z'",
        "endDateTime": f"'{window.last_second:%Y-%m-%dT%H:%M:%S}.999Z'",
    }
