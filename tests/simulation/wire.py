"""The way to a server and back, on which everything takes a while and anything may get lost.

A request takes effect at its server whatever has become of its client meanwhile: a client that is
killed, cancelled or timed out in between does not know what happened, and nothing else is needed
for an unknown outcome. Whatever the *client* does (asking again, giving up) runs in the context of
whoever sent the request, so that a process that was killed asks nothing again.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Protocol

SERVER = contextvars.Context()
"""Servers belong to no process: nobody kills or freezes them along with a worker."""

SLOW_SECONDS = 3.0
BEGIN = datetime(2026, 6, 1, tzinfo=UTC)
"""The wall clock of servers at the loop's 0."""
RETRY_SECONDS = 0.1
"""aiokafka's `retry_backoff_ms`; its first request of a transaction waits 20 ms instead."""


class Retry(Exception):
    """The server says: not now.

    Args:
        seconds: How long its client waits before it asks again.
    """

    def __init__(self, seconds: float = RETRY_SECONDS) -> None:
        super().__init__(f"again in {seconds} s")
        self.seconds = seconds


class Wait(Exception):
    """The server can't answer yet and keeps the request: a row is locked.

    Args:
        waiters: Whoever is to be called when it is worth another look; they take themselves out.
    """

    def __init__(self, waiters: list[Callable[[], None]]) -> None:
        super().__init__("locked")
        self.waiters = waiters


class Loop(Protocol):
    """What a wire needs of an event loop; `simulation.loop.SimLoop` is one."""

    def time(self) -> float: ...
    def create_future(self) -> asyncio.Future[Any]: ...
    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any: ...
    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any: ...
    def note(self, *what: Any) -> None: ...


@dataclass(eq=False)
class Wire:
    """One kind of server as its clients reach it.

    Args:
        rng: Decides delays and losses.
        name: The server's, for errors and the trace.
        seconds: What one way takes at most.
        slow_share: The share of ways that take up to `SLOW_SECONDS` instead.
        lost_share: The share of requests whose connection breaks, half of them before the effect
            and half after it.

    Attributes:
        away_until: Until then nobody reaches the server.
        refuses: Whether that is said at once; else requests are swallowed until they time out.
    """

    loop: Loop
    rng: Random
    name: str
    seconds: float
    slow_share: float = 0.0
    lost_share: float = 0.0
    away_until: float = 0.0
    refuses: bool = False

    @property
    def is_away(self) -> bool:
        """Whether nobody reaches the server now."""
        return self.loop.time() < self.away_until

    def now(self) -> datetime:
        """The servers' clock."""
        return BEGIN + timedelta(seconds=self.loop.time())

    def delay(self) -> float:
        """What one way takes, in seconds."""
        if self.slow_share and self.rng.random() < self.slow_share:
            return self.rng.random() * SLOW_SECONDS
        return self.rng.random() * self.seconds

    def later(self, seconds: float, step: Callable[..., Any], *args: Any) -> None:
        """Something that the server does by itself, after so many seconds."""
        self.loop.call_at(self.loop.time() + seconds, step, *args, context=SERVER)

    def send(
        self,
        what: str,
        effect: Callable[[], Any],
        *,
        timeout: float | None = None,
        is_patient: bool = False,
    ) -> asyncio.Future[Any]:
        """Send a request; the future has the answer, or what the server or the way raised.

        Args:
            what: For the trace.
            effect: What it does at the server, at once and as a whole. It may raise `Retry` or
                `Wait`, which the client does not see.
            timeout: The client gives up after so many seconds, with `TimeoutError`.
            is_patient: The client asks again by itself where the server is away or the connection
                broke, as Kafka's do.
        """
        request = _Request(self, what, effect, timeout, is_patient)
        request.go()
        return request.reply


class _Request:
    """One request with all its tries."""

    __slots__ = ("_client", "_effect", "_expires_at", "_is_patient", "_what", "_wire", "reply")

    def __init__(
        self,
        wire: Wire,
        what: str,
        effect: Callable[[], Any],
        timeout: float | None,
        is_patient: bool,
    ) -> None:
        self._wire = wire
        self._what = what
        self._effect = effect
        self._is_patient = is_patient
        self._client = contextvars.copy_context()
        self._expires_at = None if timeout is None else wire.loop.time() + timeout
        self.reply = wire.loop.create_future()

    def go(self) -> None:
        """The client sends it."""
        if self.reply.done():
            return  # Given up meanwhile: nobody asks again.
        wire, rng = self._wire, self._wire.rng
        lost = ""
        if wire.lost_share and rng.random() < wire.lost_share:
            lost = rng.choice(("before", "after"))
        there, back = wire.delay(), wire.delay()
        now = wire.loop.time()
        if self._expires_at is not None and now + there + back > self._expires_at:
            self._expire()
        wire.loop.call_at(now + there, self._arrive, lost, back, context=SERVER)

    def _arrive(self, lost: str, back: float) -> None:
        wire = self._wire
        if wire.is_away:
            if self._is_patient:
                self._again(wire.away_until - wire.loop.time() + wire.delay())
            elif wire.refuses:
                self._answer(back, None, ConnectionRefusedError(f"{wire.name} is away"))
            else:
                self._expire()
            return
        if lost == "before":
            self._break(back)
            return
        result, error = None, None
        try:
            result = self._effect()
        except Retry as retry:
            self._again(back + retry.seconds)
            return
        except Wait as wait:
            self._expire()
            wait.waiters.append(lambda: self._look_again(lost, back))
            return
        except NotImplementedError as missing:
            self._answer(back, None, missing)
            raise  # The loop's handler ends the run: this is no outage.
        except Exception as raised:  # noqa: BLE001 - whatever a server answers, its client gets
            error = raised
        wire.loop.note(self._what, "done" if error is None else type(error).__name__)
        if lost:
            self._break(back)
        else:
            self._answer(back, result, error)

    def _look_again(self, lost: str, back: float) -> None:
        if not self.reply.done():  # Else its client has cancelled it meanwhile.
            self._wire.later(0.0, self._arrive, lost, back)

    def _answer(self, seconds: float, result: Any, error: Exception | None) -> None:
        self._wire.later(seconds, self._take, result, error)

    def _take(self, result: Any, error: Exception | None) -> None:
        if self.reply.done():
            return
        if error is None:
            self.reply.set_result(result)
        else:
            self.reply.set_exception(error)

    def _break(self, back: float) -> None:
        """The connection breaks: the client can't know on which way."""
        if self._is_patient:
            self._again(back + RETRY_SECONDS)
        else:
            error = ConnectionResetError(f"{self._wire.name}: the connection was lost")
            self._answer(back, None, error)

    def _again(self, seconds: float) -> None:
        loop = self._wire.loop
        loop.call_at(loop.time() + seconds, self.go, context=self._client)

    def _expire(self) -> None:
        """From here on only the client's patience ends it."""
        if self._expires_at is None:
            return
        expires_at, self._expires_at = self._expires_at, None

        def give_up() -> None:
            if not self.reply.done():
                self.reply.set_exception(TimeoutError())

        self._wire.loop.call_at(expires_at, give_up, context=self._client)
