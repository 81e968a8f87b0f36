"""Lagoon, played: its API as its guide describes it, and all that can go wrong with it.

`python lagoon_server.py 8700` serves it by the machine's clock, with an event a second.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from verity_sdk import format_utc, parse_utc
from verity_sdk.testing import Clock, Fault, Faults

SECRET = "open-sesame"  # noqa: S105 - the fake's own
TOKEN_LIVES = timedelta(hours=1)
PAGE_TOKEN_LIVES = timedelta(minutes=15)
BOXES = {f"box {n}": [("ada", "read"), (f"ben{n}", "write")] for n in range(5)}


class LagoonFake:
    """Lists events in the order in which it got them, `page_items` a page."""

    def __init__(self, clock: Clock, page_items: int = 5) -> None:
        self.clock = clock
        self.faults = Faults()
        self.requests: list[tuple[str, str]] = []
        self.app = Starlette(
            routes=[
                Route("/token", self._token, methods=["POST"]),
                Route("/audit", self._audit),
                Route("/boxes", self._boxes),
                Route("/boxes/{name}/members", self._members),
            ]
        )
        self._page_items = page_items
        self._log: list[tuple[datetime, datetime, dict[str, Any]]] = []
        self._bearers: dict[str, datetime] = {}
        self._page_tokens: dict[str, tuple[int, datetime]] = {}

    # The truth

    def add_events(
        self, count: int, *, at: datetime, visible_at: datetime | None = None
    ) -> list[str]:
        ids = []
        for number in range(count):
            happened_at = at + timedelta(milliseconds=100) * (number // 2)
            ids.append(f"L-{len(self._log):06}")
            record = {"id": ids[-1], "at": format_utc(happened_at), "who": "ada", "did": "open"}
            record["box"] = f"box {len(self._log) % len(BOXES)}"
            self._log.append((happened_at, visible_at or happened_at, record))
        return ids

    def event_ids(self) -> set[str]:
        return {record["id"] for _, _, record in self._log}

    def grants(self) -> set[tuple[str, ...]]:
        return {
            (f"user:{who}", f"lagoon:box:{name}", may.upper(), "direct", "")
            for name, members in BOXES.items()
            for who, may in members
        }

    # The API

    async def _token(self, request: Request) -> Response:
        self.requests.append(("POST", "/token"))
        form = (await request.body()).decode()
        if f"client_secret={SECRET}" not in form or self.faults.take(Fault.CREDENTIAL_REFUSED):
            return JSONResponse({"error": "invalid_client"}, 401)
        bearer = f"bearer-{len(self._bearers)}"
        self._bearers[bearer] = self.clock() + TOKEN_LIVES
        return JSONResponse({"access_token": bearer, "expires_in": TOKEN_LIVES.total_seconds()})

    async def _audit(self, request: Request) -> Response:
        refusal = await self._refusal(request)
        if refusal is not None:
            return refusal
        try:
            from_at = parse_utc(request.query_params["from"])
            to_at = parse_utc(request.query_params["to"])
        except (KeyError, ValueError):
            return JSONResponse({"error": "bad_range"}, 400)
        now = self.clock()
        found = [
            dict(record)
            for happened_at, visible_at, record in self._log
            if from_at <= happened_at < to_at and visible_at <= now
        ]
        return self._page(request, found)

    async def _boxes(self, request: Request) -> Response:
        refusal = await self._refusal(request)
        if refusal is not None:
            return refusal
        return self._page(request, [{"name": name} for name in BOXES], most=2)

    async def _members(self, request: Request) -> Response:
        refusal = await self._refusal(request)
        if refusal is not None:
            return refusal
        for fault, status in ((Fault.FORBIDDEN_OBJECT, 403), (Fault.VANISHED_OBJECT, 404)):
            if self.faults.take(fault):
                return JSONResponse({"error": "no_such_luck"}, status)
        members = BOXES[request.path_params["name"]]
        return JSONResponse({"items": [{"who": who, "may": may} for who, may in members]})

    async def _refusal(self, request: Request) -> Response | None:
        """What any request may meet: a fault, or a bearer that is none."""
        take = self.faults.take
        self.requests.append((request.method, request.url.path))
        if take(Fault.HANGING):
            await asyncio.sleep(30)
        busy = {"error": "slow_down"}
        if take(Fault.THROTTLED_SECONDS):
            return JSONResponse(busy, 429, {"Retry-After": "2"})
        if take(Fault.THROTTLED_DATE):
            at = format_datetime(self.clock() + timedelta(seconds=2), usegmt=True)
            return JSONResponse(busy, 429, {"Retry-After": at})
        if take(Fault.THROTTLED_BARE):
            return JSONResponse(busy, 429)
        if take(Fault.UNAVAILABLE):
            return JSONResponse(busy, 503)
        if take(Fault.NOT_JSON):
            return Response("<html>a proxy</html>", media_type="text/html")
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if take(Fault.TOKEN_EXPIRED):
            self._bearers.pop(bearer, None)
        if self._bearers.get(bearer, self.clock()) <= self.clock():
            return JSONResponse({"error": "expired"}, 401)
        return None

    def _page(self, request: Request, rows: list[Any], most: int | None = None) -> Response:
        take, size = self.faults.take, most or self._page_items
        token, start = request.query_params.get("page"), 0
        if token is not None:
            start, made_at = self._page_tokens[token]
            is_old = self.clock() - made_at > PAGE_TOKEN_LIVES
            if is_old or take(Fault.PAGE_TOKEN_EXPIRED):
                return JSONResponse({"error": "page_expired"}, 410)
        items, end = rows[start : start + size], start + size
        if token is not None and items and take(Fault.EMPTY_PAGE):
            items, end = [], start
        if start and items and most is None and take(Fault.REPEATED_EVENT):
            items = [rows[start - 1], *items]
        if items and most is None:
            self._spoil(items[-1])
        following = None
        if end < len(rows):
            name = f"p{len(self._page_tokens)}"
            self._page_tokens[name] = (end, self.clock())
            if token is not None and take(Fault.REPEATED_TOKEN):
                name = token
            following = str(request.url.include_query_params(page=name))
        response = JSONResponse({"items": items, "next": following})
        return _cut(response) if take(Fault.DROPPED) else response

    def _spoil(self, record: dict[str, Any]) -> None:
        if self.faults.take(Fault.UNKNOWN_ENUM):
            record["did"] = "teleport"
        if self.faults.take(Fault.NULL_ACTOR):
            record["who"] = None
        if self.faults.take(Fault.MALFORMED_RECORD):
            record["at"] = "yesterday"


def _cut(response: Response) -> Response:
    body = bytes(response.body)

    async def half() -> Any:
        yield body[: len(body) // 2]
        await asyncio.sleep(0.01)
        raise ConnectionAbortedError("dropped")

    return StreamingResponse(half(), headers={"content-length": str(len(body))})


@contextmanager
def serving(app: Any, port: int = 0) -> Iterator[str]:
    """Serve over real HTTP on the loopback, in a thread; yields the URL."""
    listener = socket.create_server(("127.0.0.1", port))
    # asyncio does it only for sockets that name their protocol; without it an answer takes 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the server did not start")
        thread.join(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(5)
        listener.close()


def main(port: int) -> None:
    fake = LagoonFake(Clock(), page_items=100)
    with serving(fake.app, port) as url:
        print(json.dumps({"url": url}), flush=True)
        while True:
            fake.add_events(1, at=datetime.now(UTC))
            threading.Event().wait(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
