"""Sources whose whole truth is known, and connectors that read them.

A `Truth` is all that one source will ever hold. What its connector promises (how late an event may
be, how far back it repeats) is a part of its plan, and the truth keeps to it: what is lost then is
lost by the product.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Any, ClassVar

import httpx2

from simulation.wire import BEGIN
from verity_sdk.connector_base import BaseConnector, PermissionSnapshot, RawEvent
from verity_sdk.errors import Denied, Unavailable
from verity_sdk.http import HttpClient, HttpSettings
from verity_sdk.pages import Gap, Page, PagedConnector, Position, RejectedRecord, SnapshotGap
from verity_sdk.windows import (
    Fetched,
    Slice,
    TooLarge,
    WindowedStream,
    WindowPolicy,
    windowed_pages,
)

PLATFORM = "sim"
FUTURE = timedelta(days=1)
BACKLOG_SECONDS = 3600
RETENTION = timedelta(hours=2)
LATE_SECONDS_MAX = 120.0
"""However far back a connector looks: a world that waits an hour for one event runs through 100,000
steps in which nobody does anything."""
EVENTS = ("event", "malformed", "altered", "twin")
ODD = {
    "plain": ("malformed", "altered"),
    "windowed": ("malformed", "altered", "reject"),
    "paged": ("malformed", "altered", "reject", "gap"),
    "http": ("malformed", "altered", "reject", "gap"),
}
"""What else than events a source of each kind holds."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing in a source.

    Attributes:
        number: Its place in the order in which things become visible.
        kind: `event`; `malformed`, an event that can't be published; `altered`, one that can, in
            part; `twin`, one that comes twice under its id, and the first can't be published;
            `reject`; `gap`.
        at: When it occurred, as the source says.
        visible_at: From when on the source shows it, by the world's clock.
    """

    number: int
    kind: str
    at: datetime
    visible_at: float


class Truth:
    """All that one source will ever hold.

    Args:
        lookback: How far back its connector is asked again, in seconds.

    Attributes:
        out: The numbers of what consumers have.
        outstanding: The numbers of what was handed out in this pass, and is not.
        on_served: Called whenever that has grown.
        asked: Where there is one: done once the next pass begins.
        refusal: The source forbids everything while there is one; done once somebody has asked.
    """

    def __init__(self, name: str, plan: Mapping[str, Any], rng: Random, lookback: float) -> None:
        self.name, self.plan, self.rng, self.lookback = name, plan, rng, lookback
        self.is_calm = False
        self.asked: asyncio.Future[None] | None = None
        self.refusal: asyncio.Future[None] | None = None
        self.lateness = self._lateness()
        count = plan["items"]
        backlog = int(count * plan["backlog"])
        seconds = [-float(round(BACKLOG_SECONDS * rng.random())) for _ in range(backlog)]
        seconds += [plan["spread"] * rng.random() for _ in range(count - backlog)]
        odd = ODD[plan["kind"]]
        # The source of whole seconds cuts off: what it shows is up to a second late.
        is_whole = plan["is_whole"] and (plan["kind"] != "plain" or not self.is_strict)
        shown: list[tuple[float, str, datetime]] = []
        for one in seconds:
            late = self.lateness * rng.random() if rng.random() < plan["late_share"] else 0.0
            kind = rng.choice(odd) if rng.random() < plan["odd_share"] else "event"
            at = BEGIN + timedelta(seconds=math.floor(one) if is_whole else one)
            shown.append((max(0.0, one + late), kind, at))
        if plan["has_future"] and plan["kind"] != "windowed":  # No window reaches there.
            shown.append((0.0, "event", BEGIN + FUTURE))
        if "twins" in plan:
            twins = Random(plan["twins"])
            for number, (when, kind, at) in enumerate(shown):
                if kind == "event" and twins.random() < 0.05:
                    shown[number] = (when, "twin", at)
        shown.sort(key=lambda one: one[0])
        self.items = [Item(number, kind, at, when) for number, (when, kind, at) in enumerate(shown)]
        self._visible = [one.visible_at for one in self.items]
        self.by_time = sorted(self.items, key=lambda one: (one.at, one.number))
        self.times = [one.at for one in self.by_time]
        self.out: set[int] = set()
        self.outstanding: set[int] = set()
        self.on_served: Callable[[], None] = lambda: None

    @property
    def is_strict(self) -> bool:
        """Whether it is asked for what came *after* a time; a lookback must cover ties."""
        return bool(self.plan["is_strict"]) and self.lookback >= 2

    def _lateness(self) -> float:
        """How late an event may be without being missed, in seconds."""
        plan = self.plan
        if plan["kind"] == "plain":
            return min(LATE_SECONDS_MAX, max(0.0, float(plan["late"]) * (self.lookback - 2)))
        if plan["kind"] == "windowed":
            if "late_by" in plan:
                return float(plan["late_by"])
            return max(0.0, float(plan["late"]) * (plan["settle"] + plan["relook"] - 2))
        return 60.0 * float(plan["late"])  # A cursor follows the order in which things appear.

    @property
    def last_visible_at(self) -> float:
        """From when on all of it is visible."""
        return self._visible[-1] if self._visible else 0.0

    @property
    def slowness(self) -> float:
        """Seconds that it waits at most while it is read once from its beginning."""
        return len(self.items) / self.plan["page"] * max(self.plan["waits"])

    def visible_count(self, now: float) -> int:
        """How many things are visible."""
        return bisect_right(self._visible, now)

    def ordered(self, items: list[Item]) -> list[Item]:
        """Things of ascending times in the order in which a plain source yields them."""
        order = self.plan.get("order", "ascending")
        if order == "descending":
            items.reverse()
        elif order == "arrival":
            items.sort(key=lambda one: one.visible_at)
        return items

    def first_since(self, since: datetime) -> int:
        """The number of the first thing that did not occur before."""
        if not self.items or since <= self.by_time[0].at:
            return 0
        return min(
            (one.number for one in self.by_time[self.index_of(since) :]), default=len(self.items)
        )

    def index_of(self, at: datetime) -> int:
        """Where in `by_time` what did not occur before begins."""
        return bisect_left(self.times, at)

    def id_of(self, item: Item) -> str:
        """As consumers see it, in an event, a dead letter or a gap."""
        return f"{self.name}:{item.number}"

    def events(self, item: Item) -> Iterator[RawEvent]:
        """What the connector yields for an event of any kind."""
        if item.number not in self.out:
            self.outstanding.add(item.number)
            self.on_served()
        payload = {"share": float("nan")} if item.kind == "altered" else {}
        assets: Sequence[Any] = {"malformed": (None,), "twin": (None, "table")}.get(
            item.kind, ("table",)
        )
        for asset in assets:
            user = f"user{item.number % 7}"
            yield RawEvent(PLATFORM, self.id_of(item), item.at, user, asset, "SELECT", payload)

    def page(self, items: list[Item]) -> tuple[list[RawEvent], list[RejectedRecord], list[Gap]]:
        """These things as parts of a page."""
        return (
            [event for one in items if one.kind in EVENTS for event in self.events(one)],
            [
                RejectedRecord(self.id_of(one).encode(), "odd", str(one.number))
                for one in items
                if one.kind == "reject"
            ],
            [Gap(one.at, one.at, self.id_of(one), "lost") for one in items if one.kind == "gap"],
        )

    def complete_before(self, end: int) -> datetime | None:
        """Up to when everything is among the first things; an honest source's word."""
        left = min((one.at for one in self.items[end:]), default=None)
        return None if left is None else left - timedelta(microseconds=1)

    @property
    def outage_seconds(self) -> float:
        """For how long it has been failing; 0 where it isn't."""
        begin, seconds = self.plan.get("outage", (0.0, 0.0))
        now = self.now()
        return 0.0 if self.is_calm or not begin <= now < begin + seconds else now - begin

    @property
    def outage_ends_at(self) -> float:
        """From when on it does not fail for long any more."""
        return float(sum(self.plan.get("outage", ())))

    def begin(self) -> None:
        """A pass begins.

        Raises:
            Unavailable: The source fails.
        """
        if self.asked is not None and not self.asked.done():
            self.asked.set_result(None)
        self.outstanding.clear()
        if self.outage_seconds and self.plan["kind"] != "http":  # There its gateway answers.
            raise Unavailable("the source fails")

    def is_refused(self) -> bool:
        """Whether the source forbids everything."""
        if self.refusal is not None and not self.refusal.done():
            self.refusal.set_result(None)
        return self.refusal is not None

    async def pause(self) -> None:
        """What a request takes, and how it may end."""
        rng, plan = self.rng, self.plan
        if self.outage_seconds:
            raise Unavailable("the source fails")
        if self.is_refused():
            raise Denied("the source forbids it")
        if not self.is_calm:
            if plan["error_share"] and rng.random() < plan["error_share"]:
                raise Unavailable("the source says so")
            if plan["hangs"] and rng.random() < 0.02:
                await asyncio.sleep(1000)
            if plan["leaks"] and rng.random() < 0.02:
                raise asyncio.CancelledError
        seconds = rng.choice(plan["waits"])
        if seconds:
            await asyncio.sleep(seconds)

    def now(self) -> float:
        """The world's clock."""
        return asyncio.get_running_loop().time()


class _Grants(BaseConnector):
    """Permissions; a part of them may be denied."""

    @property
    def truth(self) -> Truth:
        """What it reads."""
        found: Truth = self.config["truth"]
        return found

    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        """The grants, and what was denied."""
        truth = self.truth
        last = truth.plan["grants"] - 1
        for number in range(truth.plan["grants"]):
            if number % 25 == 0:
                await asyncio.sleep(truth.rng.choice(truth.plan["waits"]))
            if number < last:
                yield _grant(number)
        if truth.plan["denied_share"] and truth.rng.random() < truth.plan["denied_share"]:
            yield SnapshotGap("last", "denied")
        elif last >= 0:
            yield _grant(last)


def _grant(number: int) -> PermissionSnapshot:
    return PermissionSnapshot(PLATFORM, f"user{number}", "table", "READ", "direct")


class SimPlain(_Grants):
    """Events after a time; those of that very time are among them, or not."""

    PLATFORM = PLATFORM

    async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        """One pass over what is visible as it begins."""
        truth = self.truth
        truth.begin()
        now = truth.now()
        first = truth.index_of(since)
        for number, one in enumerate(truth.ordered(truth.by_time[first:])):
            if number % truth.plan["page"] == 0:
                await truth.pause()
            if one.visible_at <= now and not (truth.is_strict and one.at == since):
                for event in truth.events(one):
                    yield event


class SimPaged(_Grants, PagedConnector):
    """Pages with a cursor, in the order in which things appear; they may overlap."""

    PLATFORM = PLATFORM

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        """One pass."""
        truth = self.truth
        truth.begin()
        overlap = truth.plan["overlap"]
        start = truth.first_since(position.since)
        if position.cursor is not None:
            start = position.cursor["next"]
        cursor: dict[str, Any] = {}
        while True:
            end = await self.ask(start)
            if end <= start:
                return
            events, rejected, _ = truth.page(truth.items[max(0, start - overlap) : end])
            _, _, gaps = truth.page(truth.items[start:end])
            if not truth.plan["reuses_cursor"]:
                cursor = {}
            cursor["next"] = end
            yield Page(events, cursor, truth.complete_before(end), rejected, gaps)
            start = end

    async def ask(self, start: int) -> int:
        """Ask the source for a page; returns where it ends."""
        truth = self.truth
        await truth.pause()
        return min(start + int(truth.plan["page"]), truth.visible_count(truth.now()))


class SimHttp(SimPaged):
    """The same over HTTP: a source that is busy, slow, and sometimes gone."""

    def __init__(self, config: Any, kafka_producer: Any, db_pool: Any) -> None:
        super().__init__(config, kafka_producer, db_pool)
        self._busy_count = 0
        self._api = HttpClient(
            HttpSettings(),
            platform=PLATFORM,
            hosts=["api.example.com"],
            clock=config["clock"],
            random=config["random"],
            transport=httpx2.MockTransport(self._answer),
        )

    async def ask(self, start: int) -> int:
        """A request, with the retries of the HTTP kit."""
        url = "https://api.example.com/events"
        answer = await self._api.get(url, params={"start": str(start)})
        return int(answer.json()["end"])

    async def _answer(self, request: httpx2.Request) -> httpx2.Response:
        truth = self.truth
        if truth.outage_seconds:  # A gateway before it: busy, and then with a page of its own.
            self._busy_count += 1
            if self._busy_count % 2:
                return httpx2.Response(429, headers={"retry-after": "1"})
            return httpx2.Response(200, content=b"<html>")
        if truth.is_refused():
            return httpx2.Response(403)
        fault = "" if truth.is_calm else truth.rng.choice(("", "", "", "", "", "", "busy", "gone"))
        if truth.plan["error_share"] and fault == "busy":
            return httpx2.Response(429, headers={"retry-after": str(truth.rng.randrange(4))})
        if truth.plan["error_share"] and fault == "gone":
            raise httpx2.ReadError("the connection was lost", request=request)
        await truth.pause()
        start = int(request.url.params["start"])
        end = min(start + int(truth.plan["page"]), truth.visible_count(truth.now()))
        return httpx2.Response(200, json={"end": end})

    async def close(self) -> None:
        """Disconnect."""
        await self._api.close()


class SimWindowed(_Grants, PagedConnector):
    """A source that is asked for a stretch of time, and delivers late."""

    PLATFORM = PLATFORM
    retention: ClassVar[timedelta] = RETENTION

    async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        """One pass, slice by slice."""
        truth, clock = self.truth, self.config["clock"]
        truth.begin()
        plan = truth.plan
        policy = WindowPolicy(
            settle=timedelta(seconds=plan["settle"]),
            slice_max=timedelta(seconds=plan["slice_max"]),
            lateness=timedelta(seconds=truth.lateness),
            relook=timedelta(seconds=plan["relook"]),
            lookback=timedelta(seconds=truth.lookback),
            lookback_every=timedelta(seconds=plan.get("lookback_every", 86_400)),
            retention=RETENTION,
            page_events=plan["page"],
        )
        pages: Any = windowed_pages([WindowedStream("w", self._fetch, policy)], position, clock)
        async for page in pages:
            yield page

    async def _fetch(self, one: Slice) -> Fetched:
        truth = self.truth
        await truth.pause()
        now = truth.now()
        found = [
            item
            for item in truth.by_time[truth.index_of(one.from_at) : truth.index_of(one.to_at)]
            if item.visible_at <= now
        ]
        most = truth.plan["refused_above"]
        if (
            most is not None
            and len(found) > most
            and one.to_at - one.from_at > timedelta(seconds=1)
        ):
            raise TooLarge
        events, rejected, _ = truth.page(found)
        return Fetched(events, rejected)


KINDS: Mapping[str, type[BaseConnector]] = {
    "plain": SimPlain,
    "paged": SimPaged,
    "http": SimHttp,
    "windowed": SimWindowed,
}
