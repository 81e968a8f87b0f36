"""The laws judged: a lawful connector keeps all of them, and each planted bug breaks its own."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from verity_sdk import (
    BaseConnector,
    Denied,
    Fenced,
    Gap,
    Malformed,
    Misconfigured,
    Page,
    PagedConnector,
    PermissionSnapshot,
    Position,
    RawEvent,
    RejectedRecord,
    SnapshotGap,
    SnapshotScope,
    Unavailable,
    format_utc,
    parse_utc,
)
from verity_sdk.testing import (
    LAWS,
    Clock,
    ConnectorLaws,
    FakedSource,
    Fault,
    Faults,
    LawBroken,
    SourceUnderTest,
    Verdict,
    judge,
    laws,
)
from verity_sdk.testing.driver import Collector, State
from verity_sdk.testing.report import Outcome, table

# The API is in memory: nothing here waits but for time.
pytestmark = pytest.mark.usefixtures("virtual_time")

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SECRET = 'open-"sesame" 7'
API_PAGE = 6
PAGE_TOKEN_LIVES = timedelta(minutes=30)
MICROSECOND = timedelta(microseconds=1)
logger = logging.getLogger("tiny")


class ApiError(Exception):
    """An answer that is no 200."""

    def __init__(self, status: int, retry_after: float | None = None) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.retry_after = retry_after


class TinyApi:
    """An audit API in memory: it lists in the order in which it got the events."""

    def __init__(self) -> None:
        self.clock = Clock(NOW)
        self.faults = Faults()
        self.requests: list[str] = []
        self._log: list[tuple[datetime, datetime, dict[str, Any]]] = []
        self._page_tokens: dict[str, tuple[int, datetime]] = {}
        self._bearers: set[str] = set()
        self._members = {f"w{n}": [f"user:{n}{k}" for k in range(3)] for n in range(5)}

    def add_events(
        self, count: int, *, at: datetime, visible_at: datetime | None = None
    ) -> list[str]:
        ids = []
        for number in range(count):
            happened_at = at + timedelta(milliseconds=50) * (number // 2)
            ids.append(f"e{len(self._log)}")
            record: dict[str, Any] = {
                "id": ids[-1],
                "at": format_utc(happened_at),
                "who": "ada",
                "did": "read",
            }
            record["note"] = [f"{ids[-1]}/{line}" for line in range(15)]
            self._log.append((happened_at, visible_at or happened_at, record))
        return ids

    def event_ids(self) -> set[str]:
        return {record["id"] for _, _, record in self._log}

    def grants(self) -> set[tuple[str, ...]]:
        return {
            (who, f"workspace:{name}", "READ", "direct", "")
            for name, people in self._members.items()
            for who in people
        }

    async def token(self, secret: str) -> str:
        await self._request("token")
        if secret != SECRET or self.faults.take(Fault.CREDENTIAL_REFUSED):
            raise ApiError(400)
        self._bearers.add(bearer := f"bearer-{len(self.requests)}")
        return bearer

    async def log(
        self, bearer: str, from_at: datetime, to_at: datetime, token: str | None
    ) -> bytes:
        """Events with `from_at <= at < to_at`."""
        await self._authorised("log", bearer)
        now = self.clock()
        found = [
            record
            for happened_at, visible_at, record in self._log
            if from_at <= happened_at < to_at and visible_at <= now
        ]
        return self._paged(found, token, is_log=True)

    async def workspaces(self, bearer: str, token: str | None) -> bytes:
        await self._authorised("workspaces", bearer)
        return self._paged([{"name": name} for name in self._members], token, size=2)

    async def members(self, bearer: str, name: str) -> bytes:
        await self._authorised("members", bearer)
        for fault, status in ((Fault.FORBIDDEN_OBJECT, 403), (Fault.VANISHED_OBJECT, 404)):
            if self.faults.take(fault):
                raise ApiError(status)
        return json.dumps({"items": self._members[name]}).encode()

    def _paged(
        self, rows: list[Any], token: str | None, *, size: int = API_PAGE, is_log: bool = False
    ) -> bytes:
        take, start = self.faults.take, 0
        if token is not None:
            start, made_at = self._page_tokens[token]
            is_old = self.clock() - made_at > PAGE_TOKEN_LIVES
            if is_old or take(Fault.PAGE_TOKEN_EXPIRED):
                raise ApiError(410)
        page = [dict(row) for row in rows[start : start + size]]
        end = start + size
        if token is not None and end < len(rows) and take(Fault.EMPTY_PAGE):
            page, end = [], start
        if is_log and start and page and take(Fault.REPEATED_EVENT):
            page.insert(0, dict(rows[start - 1]))
        if is_log and page:
            for fault, change in (
                (Fault.UNKNOWN_ENUM, {"did": "whirl"}),
                (Fault.NULL_ACTOR, {"who": None}),
                (Fault.MALFORMED_RECORD, {"at": "yesterday"}),
            ):
                if take(fault):
                    page[len(page) // 2].update(change)
        following = None
        if end < len(rows):
            following = f"page-{len(self._page_tokens)}"
            self._page_tokens[following] = (end, self.clock())
            if token is not None and take(Fault.REPEATED_TOKEN):
                following = token
        return json.dumps({"items": page, "next": following}).encode()

    async def _authorised(self, what: str, bearer: str) -> None:
        await self._request(what)
        if bearer not in self._bearers or self.faults.take(Fault.TOKEN_EXPIRED):
            self._bearers.discard(bearer)
            raise ApiError(401)
        if self.faults.take(Fault.THROTTLED_SECONDS) or self.faults.take(Fault.THROTTLED_DATE):
            raise ApiError(429, retry_after=1)
        if self.faults.take(Fault.THROTTLED_BARE):
            raise ApiError(429)
        if self.faults.take(Fault.UNAVAILABLE):
            raise ApiError(503)
        if self.faults.take(Fault.DROPPED):
            raise ConnectionResetError("in the middle of the body")
        if self.faults.take(Fault.NOT_JSON):
            raise NotJsonError
        if self.faults.take(Fault.HANGING):
            await asyncio.sleep(30)

    async def _request(self, what: str) -> None:
        self.requests.append(what)
        await asyncio.sleep(0)


class NotJsonError(ValueError):
    """What reading a proxy's page as JSON raises."""


class Settings:
    """The token stays out of the repr."""

    def __init__(self, token: str) -> None:
        self.connector_id = "tiny"
        self.token = token


class TinyConnector(PagedConnector):
    """Lawful: windows, read completely, sorted, and two hours of them again in every pass."""

    PLATFORM = "tiny"
    settle = timedelta(minutes=15)
    lookback = timedelta(hours=2)
    slice_max = timedelta(hours=2)
    retention = timedelta(days=4)
    page_events = 8
    answer_seconds: ClassVar[float] = 0.3

    def __init__(self, config: Any, kafka_producer: Any, db_pool: Any) -> None:
        self.settings: Settings = config["settings"]
        super().__init__(self.settings, kafka_producer, db_pool)
        self.api: TinyApi = config["api"]
        self._bearer: str | None = None

    # Positions

    def start_of(self, position: Position) -> datetime:
        if position.cursor is None:
            return position.since
        if position.cursor.get("v") != 1:
            raise Misconfigured(f"the cursor has version {position.cursor.get('v')!r}")
        return parse_utc(position.cursor["through"])

    def cursor_of(self, through: datetime) -> dict[str, Any]:
        return {"v": 1, "through": format_utc(through)}

    def relook(self, through: datetime) -> datetime:
        return through - self.lookback

    def complete(self, through: datetime, to_at: datetime) -> datetime:
        return through - MICROSECOND

    def end_of(self) -> datetime:
        return self.api.clock() - self.settle

    def gaps_of(self, through: datetime, oldest: datetime) -> Sequence[Gap]:
        if through >= oldest:
            return ()
        return (Gap(through, oldest, "log", "past the retention of four days"),)

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        through, end = self.start_of(position), self.end_of()
        oldest = self.api.clock() - self.retention
        gaps = self.gaps_of(through, oldest)
        from_at = max(self.relook(through), oldest)
        while from_at < end:
            to_at = min(from_at + self.slice_max, end)
            events, rejected = await self.read(from_at, to_at)
            events.sort(key=lambda event: (event.occurred_at, event.event_id))
            while len(events) > self.page_events:
                page, events = events[: self.page_events], events[self.page_events :]
                # Said although the slice is not done: without it the newest event's time would
                # count, and the seen window would forget what the next pass reads again.
                yield Page(page, self.cursor_of(through), self.complete(through, from_at), (), gaps)
                gaps = ()
            through = max(through, to_at)
            complete = self.complete(through, to_at)
            yield Page(events, self.cursor_of(through), complete, rejected, gaps)
            gaps, from_at, end = (), to_at, self.end_again(end)

    def end_again(self, end: datetime) -> datetime:
        return end

    async def read(
        self, from_at: datetime, to_at: datetime
    ) -> tuple[list[RawEvent], list[RejectedRecord]]:
        events, rejected = [], []
        for record in await self.listing("log", from_at, to_at):
            try:
                events.append(self.event_of(record))
            except Malformed as error:
                rejected.append(RejectedRecord(json.dumps(record).encode(), str(error)))
        return events, rejected

    def event_of(self, record: dict[str, Any]) -> RawEvent:
        return RawEvent(
            platform="tiny",
            event_id=record["id"],
            occurred_at=parse_utc(record["at"]),
            principal_ref=record["who"] or "unknown",
            asset_ref="vault",
            operation=record["did"].upper(),
            raw_payload=record,
        )

    # Requests

    async def listing(self, what: str, *arguments: Any) -> list[Any]:
        for _ in range(3):
            try:
                return await self.all_pages(what, *arguments)
            except ApiError as error:
                if error.status != 410:
                    raise
        raise Unavailable("the page tokens expire faster than they can be used")

    async def all_pages(self, what: str, *arguments: Any) -> list[Any]:
        rows, token, used = [], None, set()
        while True:
            answer = await self.ask(what, *arguments, token)
            rows += answer["items"]
            token = answer["next"]
            if token is None:
                return rows
            if token in used:
                raise Unavailable("a page token came twice")
            used.add(token)

    async def ask(self, what: str, *arguments: Any) -> Any:
        for attempt in (1, 2):
            try:
                async with asyncio.timeout(self.answer_seconds):
                    if self._bearer is None:
                        self._bearer = await self.api.token(self.settings.token)
                    answer = await getattr(self.api, what)(self._bearer, *arguments)
                return json.loads(answer)
            except ApiError as error:
                if error.status == 401 and attempt == 1:
                    self._bearer = None
                    continue
                if error.status == 410:
                    raise
                raise self.error_of(error, what) from error
            except (TimeoutError, OSError, ValueError) as error:
                raise Unavailable(f"{what}: {type(error).__name__}") from error
        raise Denied(f"{what}: a new token is refused, too")

    def error_of(self, error: ApiError, what: str) -> Exception:
        if error.status in (429, 503):
            return Unavailable(f"{what}: {error}", retry_after_seconds=error.retry_after)
        return Denied(f"{what}: {error}")

    # Snapshots

    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        snapshot_at = self.api.clock()
        for workspace in await self.listing("workspaces"):
            name = workspace["name"]
            try:
                answer = await self.ask("members", name)
            except Denied as error:
                yield SnapshotGap(name, str(error))
                continue
            for who in answer["items"]:
                yield PermissionSnapshot(
                    "tiny", who, f"workspace:{name}", "READ", "direct", None, snapshot_at
                )
            yield SnapshotScope(name)

    async def check(self) -> None:
        await self.ask("workspaces", None)

    async def close(self) -> None:
        return


class TinyLaws(ConnectorLaws):
    """Small numbers: the source is in memory, and there are many bugs to try."""

    connector_class: ClassVar[type[BaseConnector] | None] = TinyConnector
    crashes_max = 8
    memory_events_per_slice = 60
    hanging_seconds_max = 1.5
    pass_seconds_max = 3.0
    page_events_max = 50


class TinySource(FakedSource):
    def __init__(self, connector_class: type[BaseConnector]) -> None:
        super().__init__(TinyApi())
        self.connector_class = connector_class

    def connector(self) -> BaseConnector:
        return self.connector_class({"settings": Settings(SECRET), "api": self.fake}, None, None)

    def secrets(self) -> Sequence[str]:
        return (SECRET,)


def source_for(connector_class: type[BaseConnector]) -> Callable[[], Any]:
    @contextmanager
    def make() -> Iterator[TinySource]:
        yield TinySource(connector_class)

    return make


# The planted bugs. Each is a mistake that somebody made or could make.

PLANTED: list[Any] = []


def plant(*labels: str) -> Callable[[type[Any]], type[Any]]:
    """Says which laws the bug below breaks: one, but where one mistake is two."""

    def register(bug: type[Any]) -> type[Any]:
        PLANTED.append(pytest.param(bug, set(labels), id=f"{labels[0]}-{bug.__name__}"))
        return bug

    return register


@plant("L1")
class ReadsStrictlyAfterTheEndOfThePassBefore(TinyConnector):
    """What happens at the very instant at which a pass ended is never asked for."""

    settle = timedelta(0)
    lookback = timedelta(0)

    async def read(self, from_at: datetime, to_at: datetime) -> Any:
        return await super().read(from_at + MICROSECOND, to_at + MICROSECOND)


@plant("L1")
class LosesTheLastSecondOfTheDay(TinyConnector):
    """Asks for a day up to 23:59:59."""

    def event_of(self, record: dict[str, Any]) -> RawEvent:
        event = super().event_of(record)
        if event.occurred_at.strftime("%H:%M:%S.%f") > "23:59:59.000000":
            event.event_id = ""
        return event

    async def read(self, from_at: datetime, to_at: datetime) -> Any:
        events, rejected = await super().read(from_at, to_at)
        return [event for event in events if event.event_id], rejected


@plant("L2")
class NeverLooksBack(TinyConnector):
    def relook(self, through: datetime) -> datetime:
        return through


@plant("L3")
class TakesTheListToAscend(TinyConnector):
    """Whatever is older than what came before it is taken for known."""

    async def listing(self, what: str, *arguments: Any) -> list[Any]:
        rows = await super().listing(what, *arguments)
        if what != "log":
            return rows
        kept: list[Any] = []
        newest = ""
        for row in rows:
            minute = row["at"][:16]
            if minute >= newest:
                kept.append(row)
                newest = minute if minute[0].isdigit() else newest
        return kept


@plant("L4")
class NumbersRepeats(TinyConnector):
    """Makes ids unique within a listing."""

    async def listing(self, what: str, *arguments: Any) -> list[Any]:
        rows = await super().listing(what, *arguments)
        counts: dict[str, int] = {}
        for row in rows if what == "log" else ():
            counts[row["id"]] = counts.get(row["id"], 0) + 1
            if counts[row["id"]] > 1:
                row["id"] += f"#{counts[row['id']]}"
        return rows


@plant("L5", "L25")
class RemembersOnShutdownWhatWasNotPublished(TinyConnector):
    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        known = getattr(self.api, "known_by_connector", None)
        if known is not None:
            position = Position(max(position.since, known))
        try:
            async for page in super().fetch_pages(position):
                yield page
        except asyncio.CancelledError:
            self.api.known_by_connector = self.end_of()  # type: ignore[attr-defined]
            raise


@plant("L5", "L25")
class GoesOnWhenCancelled(TinyConnector):
    async def ask(self, what: str, *arguments: Any) -> Any:
        try:
            return await super().ask(what, *arguments)
        except asyncio.CancelledError:
            return await super().ask(what, *arguments)


@plant("L5", "L14", "L25")
class MovesTheCursorWithTheFirstPageOfASlice(TinyConnector):
    """One mistake, three ways to meet it: whenever a pass ends behind that page."""

    lookback = timedelta(0)

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        waiting: list[Page] = []
        async for page in super().fetch_pages(position):
            waiting.append(page)
            if page.cursor != waiting[0].cursor or len(page.events) < self.page_events:
                for one in waiting:
                    yield replace(one, cursor=page.cursor)
                waiting = []


@plant("L6")
class GivesUpASliceThatIsThrottled(TinyConnector):
    async def read(self, from_at: datetime, to_at: datetime) -> Any:
        try:
            return await super().read(from_at, to_at)
        except Unavailable as error:
            if "status" not in str(error):
                raise
            return [], []


@plant("L7")
class DoesNotRenewTheToken(TinyConnector):
    async def ask(self, what: str, *arguments: Any) -> Any:
        bearer = self._bearer = self._bearer or await self.tokens()
        try:
            return await super().ask(what, *arguments)
        finally:
            if self._bearer != bearer:
                raise Denied("the token has expired")

    async def tokens(self) -> str | None:
        try:
            return await self.api.token(self.settings.token)
        except ApiError as error:
            raise self.error_of(error, "token") from error


@plant("L8")
class TakesARepeatedTokenForTheEnd(TinyConnector):
    async def all_pages(self, what: str, *arguments: Any) -> list[Any]:
        if what != "log":
            return await super().all_pages(what, *arguments)
        rows: list[Any] = []
        token = None
        while True:
            answer = await self.ask(what, *arguments, token)
            rows += answer["items"]
            if answer["next"] is None or answer["next"] == token:
                return rows
            token = answer["next"]


@plant("L8")
class FollowsARepeatedTokenForEver(TinyConnector):
    async def all_pages(self, what: str, *arguments: Any) -> list[Any]:
        if what != "log":
            return await super().all_pages(what, *arguments)
        rows: list[Any] = []
        token = None
        while True:
            answer = await self.ask(what, *arguments, token)
            rows = [*rows, *answer["items"]][-100:]
            token = answer["next"]
            if token is None:
                return rows


@plant("L9")
class TakesAnEmptyPageForTheEnd(TinyConnector):
    async def ask(self, what: str, *arguments: Any) -> Any:
        answer = await super().ask(what, *arguments)
        if what == "log" and not answer["items"]:
            answer["next"] = None
        return answer


@plant("L10")
class KeepsWhatItHasWhenAPageTokenExpires(TinyConnector):
    async def all_pages(self, what: str, *arguments: Any) -> list[Any]:
        rows: list[Any] = []
        token, used = None, set()
        while True:
            try:
                answer = await self.ask(what, *arguments, token)
            except ApiError:
                if what != "log":
                    raise
                return rows
            rows += answer["items"]
            token = answer["next"]
            if token is None:
                return rows
            if token in used:
                raise Unavailable("a page token came twice")
            used.add(token)


@plant("L11")
class TakesAProxysPageForAnEmptyAnswer(TinyConnector):
    async def ask(self, what: str, *arguments: Any) -> Any:
        try:
            return await super().ask(what, *arguments)
        except Unavailable as error:
            if what == "log" and isinstance(error.__cause__, NotJsonError):
                return {"items": [], "next": None}
            raise


@plant("L11")
class KeepsTheHalfOfABody(TinyConnector):
    async def ask(self, what: str, *arguments: Any) -> Any:
        try:
            return await super().ask(what, *arguments)
        except Unavailable as error:
            if what == "log" and isinstance(error.__cause__, ConnectionResetError):
                return {"items": [], "next": None}
            raise


@plant("L12")
class DropsWhatItDoesNotUnderstand(TinyConnector):
    async def read(self, from_at: datetime, to_at: datetime) -> Any:
        events, _ = await super().read(from_at, to_at)
        return events, []


@plant("L12")
class StopsAtWhatItDoesNotUnderstand(TinyConnector):
    async def read(self, from_at: datetime, to_at: datetime) -> Any:
        events, rejected = await super().read(from_at, to_at)
        if rejected:
            raise Malformed(rejected[0].reason)
        return events, rejected


@plant("L12")
class LosesTheNeighboursOfAMalformedRecord(TinyConnector):
    async def read(self, from_at: datetime, to_at: datetime) -> Any:
        events, rejected = await super().read(from_at, to_at)
        return ([] if rejected else events), rejected


@plant("L13")
class RejectsNobody(TinyConnector):
    def event_of(self, record: dict[str, Any]) -> RawEvent:
        if record["who"] is None:
            raise Malformed("no actor")
        return super().event_of(record)


@plant("L13")
class KnowsAllOperations(TinyConnector):
    def event_of(self, record: dict[str, Any]) -> RawEvent:
        if record["did"] not in ("read", "write"):
            raise Malformed(f"unknown operation {record['did']}")
        return super().event_of(record)


@plant("L14")
class DistrustsAnOldCursor(TinyConnector):
    """It starts anew after half a day off, a little before now."""

    def cursor_of(self, through: datetime) -> dict[str, Any]:
        return {**super().cursor_of(through), "made_at": format_utc(self.api.clock())}

    def start_of(self, position: Position) -> datetime:
        through, cursor = super().start_of(position), position.cursor
        if cursor is not None:
            age = self.api.clock() - parse_utc(cursor["made_at"])
            if age > timedelta(minutes=45):
                return max(through, self.api.clock() - self.lookback)
        return through


@plant("L15")
class ReadsACursorOfAnyVersion(TinyConnector):
    def start_of(self, position: Position) -> datetime:
        if position.cursor is None:
            return position.since
        return parse_utc(position.cursor["through"])


@plant("L15")
class HasNoVersionInItsCursor(TinyConnector):
    def cursor_of(self, through: datetime) -> dict[str, Any]:
        return {"through": format_utc(through)}

    def start_of(self, position: Position) -> datetime:
        cursor = position.cursor
        return super().start_of(
            Position(position.since, None if cursor is None else {"v": 1, **cursor})
        )


@plant("L15")
class HasACursorThatJsonChanges(TinyConnector):
    def cursor_of(self, through: datetime) -> dict[str, Any]:
        return {**super().cursor_of(through), "pair": (1, 2)}


@plant("L16")
class TellsNoGap(TinyConnector):
    def gaps_of(self, through: datetime, oldest: datetime) -> Sequence[Gap]:
        return ()


@plant("L16")
class ToleratesNoFuture(TinyConnector):
    def start_of(self, position: Position) -> datetime:
        start = super().start_of(position)
        if start > self.api.clock():
            raise Misconfigured("since lies in the future")
        return start


@plant("L16")
class TellsTheGapInEveryPass(TinyConnector):
    def start_of(self, position: Position) -> datetime:
        start = super().start_of(position)
        self._first = position.cursor["first"] if position.cursor else format_utc(start)
        return start

    def cursor_of(self, through: datetime) -> dict[str, Any]:
        return {**super().cursor_of(through), "first": self._first}

    def gaps_of(self, through: datetime, oldest: datetime) -> Sequence[Gap]:
        return super().gaps_of(parse_utc(self._first), oldest)


@plant("L17")
class CompleteThroughGoesBack(TinyConnector):
    def complete(self, through: datetime, to_at: datetime) -> datetime:
        return to_at - MICROSECOND


@plant("L17")
class PromisesTheInstantAtWhichASliceEnds(TinyConnector):
    """Half-open slices, and a promise that is closed."""

    def complete(self, through: datetime, to_at: datetime) -> datetime:
        return through


@plant("L17")
class PromisesEventsThatAreStillOnTheirWay(TinyConnector):
    """Reads up to now, says so, and finds the rest by looking back."""

    def end_of(self) -> datetime:
        return self.api.clock()


@plant("L18")
class ReadsAllBeforeItYields(TinyConnector):
    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        for page in [page async for page in super().fetch_pages(position)]:
            yield page


@plant("L18")
class MakesOnePageOfASlice(TinyConnector):
    page_events = 100_000


@plant("L19")
class NamesNoScope(TinyConnector):
    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        async for row in super().snapshot_permissions():
            if not isinstance(row, SnapshotScope):
                yield row


@plant("L19", "L21")
class ForgetsAMember(TinyConnector):
    """A snapshot that is wrong on a good day is wrong on a bad one."""

    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        async for row in super().snapshot_permissions():
            if getattr(row, "principal_ref", "") != "user:22":
                yield row


@plant("L20")
class PassesOverWhatIsForbidden(TinyConnector):
    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        async for row in super().snapshot_permissions():
            if isinstance(row, SnapshotGap) and "403" in row.reason:
                continue
            yield row


@plant("L20")
class SaysCompleteOfWhatVanished(TinyConnector):
    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        async for row in super().snapshot_permissions():
            is_vanished = isinstance(row, SnapshotGap) and "404" in row.reason
            yield SnapshotScope(row.scope) if is_vanished else row


@plant("L21")
class EndsASnapshotWhereItIsCutShort(TinyConnector):
    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        try:
            async for row in super().snapshot_permissions():
                yield row
        except Unavailable:
            logger.warning("the snapshot is cut short")


@plant("L22")
class WaitsForARefusedCredential(TinyConnector):
    def error_of(self, error: ApiError, what: str) -> Exception:
        if error.status == 400:
            return Unavailable("no token")
        return super().error_of(error, what)


@plant("L23")
class WaitsForEver(TinyConnector):
    answer_seconds = 60.0


@plant("L23")
class TakesSilenceForAnEmptyAnswer(TinyConnector):
    async def ask(self, what: str, *arguments: Any) -> Any:
        try:
            return await super().ask(what, *arguments)
        except Unavailable as error:
            if what == "log" and isinstance(error.__cause__, TimeoutError):
                return {"items": [], "next": None}
            raise


@plant("L24")
class FollowsNowWhileItReads(TinyConnector):
    def end_again(self, end: datetime) -> datetime:
        return self.end_of()


@plant("L25")
class LeavesATaskBehind(TinyConnector):
    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        self._reading = asyncio.create_task(asyncio.sleep(3600))
        async for page in super().fetch_pages(position):
            yield page


@plant("L25")
class LeavesAConnectionOpen(TinyConnector):
    async def close(self) -> None:
        import socket

        socket.socket()


@plant("L25")
class CanNotBeUsedAfterItWasLeft(TinyConnector):
    _is_used = False

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        try:
            async for page in super().fetch_pages(position):
                if not self._is_used:
                    yield page
        except GeneratorExit:
            self._is_used = True
            raise


@plant("L26")
class ShowsItsTokenInItsRepr(TinyConnector):
    def __repr__(self) -> str:
        return f"TinyConnector({self.settings.token})"


@plant("L26")
class LogsItsToken(TinyConnector):
    async def ask(self, what: str, *arguments: Any) -> Any:
        logger.debug("asking for %s with %s", what, self.settings.token)
        return await super().ask(what, *arguments)


@plant("L26")
class QuotesItsTokenInAnError(TinyConnector):
    def error_of(self, error: ApiError, what: str) -> Exception:
        if error.status == 400:
            return Denied(f"refused: secret={self.settings.token}")
        return super().error_of(error, what)


@plant("L26")
class KeepsItsTokenInTheCursor(TinyConnector):
    def cursor_of(self, through: datetime) -> dict[str, Any]:
        return {**super().cursor_of(through), "token": self.settings.token}


@plant("L27")
class LetsAForeignErrorOut(TinyConnector):
    async def check(self) -> None:
        self._bearer = await self.tokens()
        await self.api.workspaces(self._bearer, None)

    async def tokens(self) -> str:
        try:
            return await self.api.token(self.settings.token)
        except ApiError as error:
            raise self.error_of(error, "token") from error


@plant("L27")
class TakesTheRelaysError(TinyConnector):
    async def check(self) -> None:
        try:
            await super().check()
        except Unavailable as error:
            raise Fenced("somebody else has it") from error


@plant("L28")
class HasATimeInItsPayload(TinyConnector):
    def event_of(self, record: dict[str, Any]) -> RawEvent:
        event = super().event_of(record)
        event.raw_payload = {**record, "read_at": self.api.clock()}
        return event


@plant("L28")
class HasNoAsset(TinyConnector):
    def event_of(self, record: dict[str, Any]) -> RawEvent:
        event = super().event_of(record)
        event.asset_ref = ""
        return event


@plant("L28")
class HasAnIdThatIsAnOption(TinyConnector):
    def __init__(self, config: Any, kafka_producer: Any, db_pool: Any) -> None:
        super().__init__(config, kafka_producer, db_pool)
        self.config.connector_id = "-door"


@plant("L28")
class HasALongPlatform(TinyConnector):
    PLATFORM = "x" * 150

    def event_of(self, record: dict[str, Any]) -> RawEvent:
        return replace(super().event_of(record), platform=self.PLATFORM)


class TestTinyLaws(TinyLaws):
    """The lawful connector under pytest, as an author runs it."""

    @pytest.fixture
    def source(self) -> TinySource:
        return TinySource(TinyConnector)


def broken(outcomes: list[Outcome]) -> dict[str, str]:
    return {one.label: one.reason for one in outcomes if one.verdict is Verdict.BROKEN}


@pytest.mark.parametrize(("bug", "labels"), PLANTED)
def test_a_planted_bug_breaks_its_law_and_no_other(bug: type[Any], labels: set[str]) -> None:
    found = broken(judge(TinyLaws(), source_for(bug)))
    assert set(found) == labels, found


def test_every_law_has_a_planted_bug() -> None:
    assert {label for case in PLANTED for label in case.values[1]} == set(LAWS)


# What the suite says, and to whom.


def test_a_law_that_does_not_apply_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(TinySource):
        does_not_apply: ClassVar = {"L5": "it never crashes", Fault.DROPPED: "no wire"}

    source = Odd(TinyConnector)
    outcomes: list[Outcome] = []
    monkeypatch.setattr(laws, "OUTCOMES", outcomes)
    with pytest.raises(pytest.skip.Exception, match="L5 does not apply: it never crashes"):
        TinyLaws().test_l5_a_crash_anywhere_loses_nothing(source)
    with pytest.raises(pytest.skip.Exception, match="L11 does not apply: no wire"):
        TinyLaws().test_l11_a_broken_answer_is_no_answer(source=source, fault=Fault.DROPPED)
    TinyLaws().test_l11_a_broken_answer_is_no_answer(source=source, fault=Fault.NOT_JSON)
    assert [(one.label, one.case, one.verdict) for one in outcomes] == [
        ("L5", "", Verdict.DOES_NOT_APPLY),
        ("L11", "DROPPED", Verdict.DOES_NOT_APPLY),
        ("L11", "NOT_JSON", Verdict.HOLDS),
    ]


def test_the_table_is_whole_where_pytest_runs_in_several_processes() -> None:
    command = [sys.executable, "-m", "pytest", "-n", "2", "-k", "TestTinyLaws and l1_", __file__]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^L1 .* holds$", result.stdout, re.MULTILINE), result.stdout
    assert "node down" not in result.stdout


def test_a_broken_law_says_which_and_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laws, "OUTCOMES", [])  # The table of the session is about the lawful.
    with pytest.raises(LawBroken, match=r"^L28 .* is broken: 'e0': no asset_ref$"):
        TinyLaws().test_l28_events_can_be_published(TinySource(HasNoAsset))


@pytest.mark.parametrize("label", ["L4", "L6", "L7", "L8", "L9", "L10", "L11", "L12", "L13", "L20"])
def test_a_fault_that_never_happens_proves_nothing(label: str) -> None:
    """Whoever names no reason must show the fault."""

    class Harmless(TinySource):
        def __init__(self) -> None:
            super().__init__(TinyConnector)
            self.fake.faults.take = lambda fault: False

    @contextmanager
    def make() -> Iterator[TinySource]:
        yield Harmless()

    outcomes = judge(TinyLaws(), make, [label])
    assert {one.verdict for one in outcomes} == {Verdict.BROKEN}
    assert all("did not happen" in one.reason for one in outcomes)


def test_the_source_must_say_that_it_can_not_show_a_fault() -> None:
    class Bare(TinySource):
        def inject(self, fault: Fault, *, times: int = 1, after: int = 0) -> None:
            SourceUnderTest.inject(self, fault, times=times, after=after)

    @contextmanager
    def make() -> Iterator[TinySource]:
        yield Bare(TinyConnector)

    (outcome,) = judge(TinyLaws(), make, ["L9"])
    assert outcome.verdict is Verdict.BROKEN
    assert "say so in does_not_apply" in outcome.reason


def test_a_source_without_grants_or_secrets_is_not_asked_for_them() -> None:
    class Poor(TinySource):
        def grants(self) -> None:
            return None

        def secrets(self) -> Sequence[str]:
            return ()

    @contextmanager
    def make() -> Iterator[TinySource]:
        yield Poor(TinyConnector)

    outcomes = judge(TinyLaws(), make, ["L19", "L20", "L21", "L26"])
    assert {one.verdict for one in outcomes} == {Verdict.DOES_NOT_APPLY}


class PlainTiny(BaseConnector):
    """The simplest lawful connector: ascending, everything after since, in memory."""

    PLATFORM = "tiny"
    lookback = timedelta(hours=2)

    def __init__(self, config: Any, kafka_producer: Any, db_pool: Any) -> None:
        super().__init__(config["settings"], kafka_producer, db_pool)
        self.paged = TinyConnector(config, None, None)

    async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        end = self.paged.end_of()
        while since < end:
            events, _ = await self.paged.read(since, min(since + timedelta(hours=2), end))
            for event in sorted(events, key=lambda event: (event.occurred_at, event.event_id)):
                yield event
            since += timedelta(hours=2)

    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        async for row in self.paged.snapshot_permissions():
            yield row


class ForgetfulPlainTiny(PlainTiny):
    """Up to now, and strictly after the newest time that was read: ties are lost."""

    lookback = timedelta(0)

    def __init__(self, config: Any, kafka_producer: Any, db_pool: Any) -> None:
        super().__init__(config, kafka_producer, db_pool)
        self.paged.settle = -MICROSECOND  # type: ignore[misc]

    async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        async for event in super().stream_audit_events(since):
            if event.occurred_at > since:
                yield event


class PlainLaws(TinyLaws):
    connector_class = PlainTiny


class PlainSource(TinySource):
    settle = TinyConnector.settle
    slice_max = TinyConnector.slice_max


def plain(connector_class: type[PlainTiny]) -> Callable[[], Any]:
    @contextmanager
    def make() -> Iterator[PlainSource]:
        yield PlainSource(connector_class)

    return make


def test_a_plain_connector_keeps_the_laws_that_can_be_asked_of_it() -> None:
    outcomes = judge(PlainLaws(), plain(PlainTiny))
    assert broken(outcomes) == {}
    not_asked = {one.label for one in outcomes if one.verdict is Verdict.DOES_NOT_APPLY}
    assert not_asked == {"L12", "L15", "L17"}


def test_a_plain_connector_that_loses_ties_is_found() -> None:
    assert "L1" in broken(judge(PlainLaws(), plain(ForgetfulPlainTiny), ["L1"]))


def test_the_table_has_a_row_a_law_and_a_column_a_connector() -> None:
    outcomes = [
        Outcome("acme", "L11", "a broken answer", "DROPPED", Verdict.DOES_NOT_APPLY, "no wire"),
        Outcome("acme", "L11", "a broken answer", "NOT_JSON", Verdict.HOLDS),
        Outcome("acme", "L2", "late events", "", Verdict.DOES_NOT_APPLY, "nothing is late"),
        Outcome("zeta", "L2", "late events", "", Verdict.HOLDS),
        Outcome("zeta", "L2", "late events", "", Verdict.BROKEN, "e1 is missing"),
    ]
    assert table(outcomes).splitlines() == [
        "                      acme   zeta",
        "L2  late events          – BROKEN",
        "L11 a broken answer  holds       ",
        "",
        "acme: L11 (DROPPED) does not apply: no wire",
        "acme: L2 does not apply: nothing is late",
    ]
    assert table([]) == ""


AUTHORS_FILE = """
import sys
sys.path.insert(0, {folder!r})
from test_sdk_testing_laws import TestTinyLaws as TestSomeLaws
"""


def test_pytest_runs_it_and_prints_the_table(tmp_path: Path) -> None:
    """As an author has it: no plugin of asyncio, one line in conftest.py."""
    (tmp_path / "conftest.py").write_text(
        "from verity_sdk.testing.report import pytest_terminal_summary\n"
    )
    folder = str(Path(__file__).parent)
    (tmp_path / "test_some.py").write_text(AUTHORS_FILE.format(folder=folder))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:asyncio", "-p", "no:cacheprovider"),
            *("-k", "l1_ or l9_ or l20_", "--rootdir", str(tmp_path), str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "laws of connectors" in done.stdout
    assert "L20 a partial snapshot says so" in done.stdout
    assert "4 passed" in done.stdout


def test_without_pytest_only_the_laws_are_missing() -> None:
    check = (
        "import sys\n"
        "sys.modules['pytest'] = None\n"
        "import verity_sdk, verity_sdk.pages, verity_sdk.windows, verity_sdk.http\n"
        "try:\n"
        "    import verity_sdk.testing\n"
        "except ImportError as error:\n"
        "    sys.exit(0 if 'pip install pytest' in str(error) else 'no help')\n"
        "sys.exit('imported')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


async def test_the_driver_forgets_ids_as_the_seen_window_does() -> None:
    """Beyond the lookback a repeat gets through, and is counted."""
    source = TinySource(TinyConnector)
    since = NOW - timedelta(hours=3)
    collector = Collector(source, State(since))
    source.add_events(3, at=since)
    source.advance(timedelta(minutes=20))
    await collector.catch_up()
    await collector.catch_up()
    assert collector.repeated == []
    source.advance(timedelta(hours=6))
    await collector.catch_up()
    collector.state = State(since)
    await collector.catch_up()
    assert collector.repeated == ["e0", "e1", "e2"]
