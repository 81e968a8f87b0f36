"""What every fake shares: a clock that is handed in, faults that are injected, a real server."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from email.utils import format_datetime
from typing import Any

import uvicorn
from starlette.responses import JSONResponse, Response, StreamingResponse

from verity_sdk.testing.faults import Clock as Clock
from verity_sdk.testing.faults import Fault as Fault
from verity_sdk.testing.faults import Faults as Faults

START_SECONDS_MAX = 15.0
STOP_SECONDS_MAX = 5.0


class Rate:
    """A vendor's limit: so many requests in any stretch of so long, by the fake's clock."""

    def __init__(self, requests: int, per: timedelta, clock: Clock) -> None:
        self.requests, self._per, self._clock = requests, per, clock
        self._times: deque[datetime] = deque()

    def refuse(self) -> float | None:
        """None if a request is within the limit; else the seconds until the next may come."""
        now = self._clock()
        while self._times and self._times[0] <= now - self._per:
            self._times.popleft()
        if len(self._times) < self.requests:
            self._times.append(now)
            return None
        return (self._times[0] + self._per - now).total_seconds()


def http_fault(faults: Faults, clock: Clock, error_body: Any = None) -> Response | None:
    """The answer of a fault that any endpoint may show, or None; ask it before anything else.

    `HANGING` is for the endpoint itself: `await hang()`.
    """
    body = error_body if error_body is not None else {"error": {"code": "Injected"}}
    if faults.take(Fault.THROTTLED_SECONDS):
        return JSONResponse(body, 429, {"Retry-After": "1"})
    if faults.take(Fault.THROTTLED_DATE):
        at = clock() + timedelta(seconds=1)
        return JSONResponse(body, 429, {"Retry-After": format_datetime(at, usegmt=True)})
    if faults.take(Fault.THROTTLED_BARE):
        return JSONResponse(body, 429)
    if faults.take(Fault.UNAVAILABLE):
        return JSONResponse(body, 503)
    if faults.take(Fault.NOT_JSON):
        return Response("<html>proxy</html>", 200, media_type="text/html")
    return None


def dropped(response: Response) -> Response:
    """The same answer, cut in the middle of its body."""

    async def half() -> Any:
        body = bytes(response.body)
        yield body[: len(body) // 2]
        await asyncio.sleep(0.01)
        raise ConnectionAbortedError("injected: connection dropped")

    headers = {"content-length": str(len(bytes(response.body)))}
    return StreamingResponse(half(), response.status_code, headers, response.media_type)


async def hang() -> None:
    """Longer than any test's read timeout."""
    await asyncio.sleep(30)


@contextmanager
def serving(app: Any, port: int = 0) -> Iterator[str]:
    """Serve an ASGI app over real HTTP on the loopback, in a thread; yields `http://host:port`."""
    listener = socket.create_server(("127.0.0.1", port))
    # asyncio does it only for sockets that name their protocol; without it an answer takes 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(app, log_level="critical", lifespan="off", timeout_keep_alive=30)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = threading.Event()
    waited = 0.0
    while not server.started:
        deadline.wait(0.01)
        waited += 0.01
        if waited > START_SECONDS_MAX or not thread.is_alive():
            raise RuntimeError("the fake did not start")
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(STOP_SECONDS_MAX)
        listener.close()


def with_bad_ids(app: Any, ids: Collection[str], status: int = 404) -> Any:
    """The same fake, where these ids end in half of a surrogate pair, which JSON can write.

    Asked for one of them in a URL it answers so, as servers do that take only UTF-8.
    """

    async def spoiling(scope: Any, receive: Any, send: Any) -> None:
        if b"%ed%a0%80" in (scope["raw_path"] + b"?" + scope["query_string"]).lower():
            refusal = JSONResponse({"error": {"code": "BadId"}}, status)
            await refusal(scope, receive, send)
            return
        started: list[Any] = []
        body = bytearray()

        async def keep(message: Any) -> None:
            if message["type"] == "http.response.start":
                started.append(message)
                return
            body.extend(message.get("body", b""))
            if message.get("more_body"):
                return
            spoilt = bytes(body)
            for one in ids:
                spoilt = spoilt.replace(f'"{one}"'.encode(), f'"{one}\\ud800"'.encode())
            headers = [
                (name, b"%d" % len(spoilt) if name == b"content-length" else value)
                for name, value in started[0]["headers"]
            ]
            await send({**started[0], "headers": headers})
            await send({"type": "http.response.body", "body": spoilt})

        await app(scope, receive, keep)

    return spoiling
