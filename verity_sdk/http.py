"""Requests to a vendor's HTTP API: authorised, within budget, retried, and never to a stranger.

The only module that imports the HTTP client (httpx2). Errors are the SDK's five, and carry the
method, the URL without its query, the status, the vendor's error code and request id.
Decisions and what was rejected: docs/decisions/0007-http.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import ipaddress
import logging
import math
import re
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cache, lru_cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from random import Random
from typing import Any, NoReturn, Protocol
from urllib.parse import quote, urlencode, urljoin
from weakref import WeakKeyDictionary, WeakValueDictionary

import httpx2
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from verity_sdk.errors import Denied, Misconfigured, Unavailable
from verity_sdk.settings import Duration
from verity_sdk.values import dumps, loads
from verity_sdk.waits import report_wait

logger = logging.getLogger(__name__)

# httpx2 logs every URL with its query at INFO, httpcore2 the answer's headers at DEBUG; both
# may hold what an event or a link holds. An operator who wants them sets the level himself.
for _library in ("httpx2", "httpcore2"):
    logging.getLogger(_library).setLevel(logging.WARNING)

RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
REDIRECTS_MAX = 5
BACKOFF_SECONDS_MAX = 120.0
KEEP_ALIVE_SECONDS = 15.0
ANNOUNCED_SECONDS_MIN = 1.0
"""A shorter wait for the budget is the usual pace, and not shown as `backing_off`."""

_NOTHING = timedelta(0)
_SHOWN_CHARACTERS_MAX = 200
_CODE_CHARACTERS_MAX = 100
_CODE_BODY_BYTES_MAX = 256 * 1024
_REQUEST_ID_HEADERS = (
    "request-id",
    "x-ms-request-id",
    "x-request-id",
    "requestid",
    "x-ms-correlation-request-id",
    "client-request-id",
)
_SURROGATES = "surrogatepass"
_ORIGIN = re.compile(r"(https?)://([^/?#\\\s]+)", re.IGNORECASE)
_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]+)?", re.ASCII)


class HttpSettings(BaseModel):
    """How a connector reaches its API: the table `[connectors.<id>.http]`."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=True
    )

    proxy: SecretStr | None = Field(None, description="http://user:password@host:port")
    ca_file: Path | None = Field(None, description="PEM file of the certificates to trust.")
    connect_timeout: Duration = Field(
        timedelta(seconds=10), gt=_NOTHING, description="Longest wait for a connection."
    )
    read_timeout: Duration = Field(
        timedelta(seconds=60),
        gt=_NOTHING,
        description="Longest wait for the next bytes of an answer.",
    )
    connections_max: int = Field(16, ge=1, le=1000, description="Connections open at once.")
    retry_budget: Duration = Field(
        timedelta(minutes=2),
        description="Longest time for one request, all its retries and the waits between them "
        "together; waiting for the turn in the vendor's request budget does not count.",
    )
    retry_after_max: Duration = Field(
        timedelta(minutes=10), description="A vendor that asks for a longer pause gets this one."
    )
    budget_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="This worker's share of the vendor's request budget: 1 / number of workers.",
    )
    answer_bytes_max: int = Field(
        64 * 1024 * 1024, ge=1024, description="Longest answer that is read, uncompressed."
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the API, read completely.

    Attributes:
        url: What was asked, without its query.
        headers: Names in lower case.
    """

    method: str
    url: str
    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    def json(self) -> Any:
        """The body as JSON, read by `verity_sdk.values.loads`: exactly and tolerantly.

        Raises:
            Unavailable: It is none (a proxy's page, a body cut short).
        """
        try:
            return loads(self.body)
        except ValueError:
            # Without its cause: the decoder's error carries the document.
            kind = _printable(self.headers.get("content-type", ""), _CODE_CHARACTERS_MAX)
            raise Unavailable(
                f"{_described(self)}: {len(self.body)} bytes that are no JSON "
                f"(content-type {kind or 'not given'})"
            ) from None

    @property
    def error_code(self) -> str | None:
        """The vendor's code: `error.code`, `errorCode`, `error_code`, `code` or OAuth's `error`."""
        if len(self.body) > _CODE_BODY_BYTES_MAX:
            return None
        try:
            body = loads(self.body)
        except ValueError:
            return None
        if not isinstance(body, dict):
            return None
        error = body.get("error")
        candidates = [error.get("code")] if isinstance(error, dict) else []
        candidates += [body.get("errorCode"), body.get("error_code"), body.get("code"), error]
        for candidate in candidates:
            if isinstance(candidate, str | int) and not isinstance(candidate, bool):
                shown = _printable(str(candidate), _CODE_CHARACTERS_MAX)
                if shown:
                    return shown
        return None

    @property
    def request_id(self) -> str | None:
        """What the vendor's support asks for, from whichever header it came in."""
        for name in _REQUEST_ID_HEADERS:
            shown = _printable(self.headers.get(name, ""), _CODE_CHARACTERS_MAX)
            if shown:
                return shown
        return None


class Authorizer(Protocol):
    """Where the Authorization header comes from."""

    async def authorization(self) -> str:
        """The header's value, for example `Bearer …`.

        Raises:
            Denied: The credential is refused.
            Unavailable: The token's issuer does not answer.
        """

    async def renew(self, refused: str) -> bool:
        """The API answered 401 to this value: whether asking for another one may help."""


class Budget(Protocol):
    """A vendor's request budget."""

    def slot(self) -> AbstractAsyncContextManager[None]:
        """Wait for the turn of one request, and hold it while the request runs."""


def shared_budget(
    key: tuple[str, ...],
    *,
    requests: int,
    per: timedelta,
    concurrent: int | None = None,
    share: float = 1.0,
) -> Budget:
    """The budget of this key (platform, tenant, API); one object for all who name the same key.

    Never more than `requests` arrive at the vendor in any stretch of `per`: a place is free
    again `per` after the request that held it has ended. Turns are given in the order in which
    they were asked for. Whoever names the key with other numbers adds a limit; all of them hold.
    What was used is counted for each event loop by itself.

    Args:
        key: Whose budget it is.
        requests: So many requests …
        per: … in any stretch of this length, by the vendor's documentation.
        concurrent: At most so many at once.
        share: The part that this process takes of both; of `concurrent` it is at least one.
    """
    if requests < 1 or per <= _NOTHING or not 0 < share <= 1:
        raise ValueError(f"no budget: {requests} requests per {per}, share {share}")
    if concurrent is not None and concurrent < 1:
        raise ValueError(f"no budget: {concurrent} requests at once")
    allowed, per_seconds = requests * share, per.total_seconds()
    # Less than one request in the stretch is one request in a longer stretch.
    limit = (math.floor(allowed), per_seconds) if allowed >= 1 else (1, per_seconds / allowed)
    budget = _budgets.get(key)
    if budget is None:
        budget = _budgets[key] = _SharedBudget("/".join(key))
    budget.tighten(limit, None if concurrent is None else max(1, math.floor(concurrent * share)))
    return budget


class _SharedBudget:
    """All limits of one key, and what each event loop has used of them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._limits: set[tuple[int, float]] = set()
        self._concurrent_max: int | None = None
        # By loop, because locks and events belong to one. A loop that has ended takes its
        # count with it: what a process asked before is not what the next test asks.
        self._use_by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, _Use] = WeakKeyDictionary()

    def tighten(self, limit: tuple[int, float], concurrent: int | None) -> None:
        self._limits.add(limit)
        if concurrent is not None:
            self._concurrent_max = min(concurrent, self._concurrent_max or concurrent)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        use = self._use_by_loop.get(loop)
        if use is None:
            use = self._use_by_loop[loop] = _Use()
        async with use.turn:  # first come, first served
            await self._wait(use, loop)
            use.running_count += 1
        try:
            yield
        finally:
            use.running_count -= 1
            use.ended_at.append(loop.time())
            while len(use.ended_at) > max(allowed for allowed, _ in self._limits):
                use.ended_at.popleft()
            use.is_changed.set()

    async def _wait(self, use: _Use, loop: asyncio.AbstractEventLoop) -> None:
        report = report_wait.get()
        is_announced = False
        try:
            while (seconds := self._seconds_until_free(use, loop.time())) > 0:
                use.is_changed.clear()
                if report is not None and ANNOUNCED_SECONDS_MIN <= seconds < math.inf:
                    is_announced = True
                    until = datetime.now(UTC) + timedelta(seconds=seconds)
                    report(until, f"the request budget of {self._name} is used up")
                try:
                    async with asyncio.timeout(None if seconds == math.inf else seconds):
                        await use.is_changed.wait()
                except TimeoutError:
                    pass  # the time has come: counted again
        finally:
            if is_announced and report is not None:
                report(None, "")

    def _seconds_until_free(self, use: _Use, now: float) -> float:
        """0 if a request may go now; infinity if one that runs must end first."""
        if self._concurrent_max is not None and use.running_count >= self._concurrent_max:
            return math.inf
        seconds = 0.0
        for allowed, per_seconds in self._limits:
            left = allowed - use.running_count
            if left <= 0:
                return math.inf
            if len(use.ended_at) >= left:
                seconds = max(seconds, use.ended_at[-left] + per_seconds - now)
        return seconds


class _Use:
    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.is_changed = asyncio.Event()
        self.running_count = 0
        self.ended_at: deque[float] = deque()  # loop time, ascending


# Weak: a budget lives as long as a client holds it. A connector that starts anew, after an error,
# forgets what it had spent; the vendor's 429 reminds it.
_budgets: WeakValueDictionary[tuple[str, ...], _SharedBudget] = WeakValueDictionary()


class HttpClient:
    """A client of one API.

    1. A request goes only to an allowed host (https, or http on the loopback), redirects and
       absolute links included; the Authorization header goes nowhere else, and not with a
       redirect to another origin.
    2. 408, 429, 500, 502, 503, 504 and transport errors are tried again while `retry_budget`
       lasts: after `Retry-After` (seconds or a date, capped), else after 1, 2, 4 … s with jitter.
       A POST only where the caller says that it is idempotent, on 429, or where no connection
       came about. A pause that is longer than what is left of the budget ends the request at once.
    3. On 401 the credential is renewed once.
    4. What an error, a log line or a repr shows holds no query, no header and no body.

    Args:
        settings: Timeouts, proxy, budget share.
        platform: For log lines and the User-Agent.
        hosts: Allowed hosts; `*.example.com` allows every host below. Case does not count; a
            port belongs to it where it is not the scheme's own (`127.0.0.1:8080`).
        authorizer: None where the API needs no header.
        budget: None where no budget is documented.
        clock: The time, aware UTC.
        sleep: Waits so many seconds; handed in by tests.
        transport: An httpx2 transport, handed in by unit tests.
        random: Spreads the tries of those that failed together.

    Raises:
        Misconfigured: `http.proxy` or `http.ca_file` can't be used, or a host is no host.
    """

    def __init__(
        self,
        settings: HttpSettings,
        *,
        platform: str,
        hosts: Collection[str],
        authorizer: Authorizer | None = None,
        budget: Budget | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], Awaitable[None]] | None = None,
        transport: Any = None,
        random: Random | None = None,
    ) -> None:
        self._settings = settings
        self._random = Random() if random is None else random  # noqa: S311 - jitter
        self._platform = platform
        self._hosts = tuple(_host_pattern(host) for host in hosts)
        self._authorizer = authorizer
        self._budget = budget
        self._clock = clock
        self._sleep = asyncio.sleep if sleep is None else sleep
        self._client = _client(settings, platform, transport)

    def __repr__(self) -> str:
        return f"HttpClient({self._platform!r}, hosts={list(self._hosts)})"

    async def request(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        json: Any = None,
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        expect: Collection[int] = (),
        is_idempotent: bool | None = None,
        is_authorised: bool = True,
    ) -> Answer:
        """Ask once, with retries; every 2xx answer and those with a status in `expect` return.

        Args:
            url: Absolute; with `params` None it is sent byte for byte.
            params: Percent-encoded (a space as %20) into the query; the URL must have none.
            expect: Statuses that the caller understands, and wants as an answer.
            is_idempotent: Whether it may be sent again after an unknown outcome; default: only
                GET and HEAD.
            is_authorised: False sends no Authorization header (links that carry their own).

        Raises:
            Unavailable: No answer within the budget, or still 429 or 5xx at its end;
                `retry_after_seconds` says when to come back, if the vendor said so.
            Denied: 401 after a renewal, 403, any other 4xx that is not expected; a certificate
                or a proxy that refuses; an answer longer than `http.answer_bytes_max`.
            Misconfigured: The host is not allowed, or the URL is not https.
        """
        method = method.upper()
        call = _Call(
            method=method,
            target=self._target(with_params(url, params)),
            content=None,
            headers={name.lower(): value for name, value in (headers or {}).items()},
            is_idempotent=method in ("GET", "HEAD") if is_idempotent is None else is_idempotent,
            is_authorised=is_authorised and self._authorizer is not None,
        )
        if json is not None and form is not None:
            raise ValueError("a request has one body: json or form")
        if json is not None:
            call.content = dumps(json)
            call.headers.setdefault("content-type", "application/json")
        elif form is not None:
            call.content = urlencode(form, errors=_SURROGATES).encode()
            call.headers.setdefault("content-type", "application/x-www-form-urlencoded")
        for name, value in call.headers.items():
            if not _is_header_value(value):
                raise ValueError(f"the header {name} has characters that no header may have")

        retries = _Retries(self._settings, self._clock, self._sleep, self._random)
        try:
            while True:
                try:
                    return await self._attempt(call, frozenset(expect), retries)
                except _TryAgain as again:
                    if not retries.may_go_on(again):
                        raise again.final(retries.try_count) from again.__cause__
                await retries.pause()
        finally:
            retries.end()

    async def get(self, url: str, **options: Any) -> Answer:
        """`request("GET", …)`."""
        return await self.request("GET", url, **options)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    def _target(self, url: str) -> _Target:
        target = _Target.parse(url)
        if not any(_matches(target.host, pattern) for pattern in self._hosts):
            raise Misconfigured(
                f"{self._platform}: the host {target.host} is not allowed; allowed are "
                f"{', '.join(self._hosts) or 'none'}"
            )
        if target.scheme != "https" and not target.is_loopback:
            raise Misconfigured(f"{self._platform}: {target.shown} is not https")
        return target

    async def _attempt(self, call: _Call, expect: frozenset[int], retries: _Retries) -> Answer:
        """One try: with a renewal of the credential and redirects, but without a wait."""
        redirect_count = 0
        while True:
            authorization = None
            if call.is_authorised and self._authorizer is not None:
                authorization = await self._authorizer.authorization()
                if not _is_header_value(authorization):
                    raise Denied(
                        f"{self._platform}: the credential has characters that no HTTP header may "
                        "have (a line break at its end?)"
                    )
            answer = await self._exchange(call, authorization, retries)
            if (
                answer.status == 401
                and authorization is not None
                and self._authorizer is not None
                and not call.is_renewed
            ):
                call.is_renewed = True
                if await self._authorizer.renew(authorization):
                    continue
            if answer.status in expect or 200 <= answer.status < 300:
                return answer
            location = answer.headers.get("location")
            if answer.status in (301, 302, 303, 307, 308) and location:
                redirect_count += 1
                if redirect_count > REDIRECTS_MAX:
                    raise Denied(f"{_described(answer)}: more than {REDIRECTS_MAX} redirects")
                call = self._redirected(call, answer, location)
                continue
            self._refuse(call, answer)

    async def _exchange(self, call: _Call, authorization: str | None, retries: _Retries) -> Answer:
        """Send once, within the budget, and read the answer to its end."""
        if self._budget is None:
            return await self._send(call, authorization, retries)
        async with self._budget.slot():
            return await self._send(call, authorization, retries)

    async def _send(self, call: _Call, authorization: str | None, retries: _Retries) -> Answer:
        headers = dict(call.headers)
        if authorization is not None:
            headers["authorization"] = authorization
        where = f"{call.method} {call.target.shown}"
        seconds = retries.seconds_left
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout(seconds):
                answer = await self._read(call, headers)
        except (httpx2.RequestError, httpx2.InvalidURL, TimeoutError) as error:
            _raise_transport_error(error, where, call, seconds)
        finally:
            retries.spent_seconds += loop.time() - started
        logger.debug("%s: %s in %.3f s", self._platform, _described(answer), loop.time() - started)
        return answer

    async def _read(self, call: _Call, headers: dict[str, str]) -> Answer:
        request = self._client.build_request(
            call.method,
            call.target.url,
            content=call.content,
            headers=headers,
            # The URL class normalises quotes and dots; what goes out is this.
            extensions={"target": call.target.path_and_query},
        )
        response = await self._client.send(request, stream=True)
        try:
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > self._settings.answer_bytes_max:
                    raise Denied(
                        f"{call.method} {call.target.shown}: the answer is longer than "
                        f"http.answer_bytes_max ({self._settings.answer_bytes_max} bytes)"
                    )
        finally:
            await response.aclose()
        return Answer(
            method=call.method,
            url=call.target.shown,
            status=response.status_code,
            headers={name.lower(): value for name, value in response.headers.items()},
            body=bytes(body),
        )

    def _redirected(self, call: _Call, answer: Answer, location: str) -> _Call:
        url = location if _ORIGIN.match(location) else urljoin(call.target.url, location)
        target = self._target(url)
        is_same_origin = target.origin == call.target.origin
        method, content, headers = call.method, call.content, dict(call.headers)
        if answer.status == 303 and method != "HEAD":
            method, content = "GET", None
            headers.pop("content-type", None)
        elif method not in ("GET", "HEAD") and answer.status in (301, 302):
            raise Denied(f"{_described(answer)}: a {method} that is redirected loses its body")
        if not is_same_origin:
            if content is not None:
                raise Denied(
                    f"{_described(answer)}: a body is not sent on to another host ({target.host})"
                )
            headers = {name: value for name, value in headers.items() if name == "accept"}
        return _Call(
            method=method,
            target=target,
            content=content,
            headers=headers,
            is_idempotent=call.is_idempotent,
            is_authorised=call.is_authorised and is_same_origin,
            is_renewed=call.is_renewed,
        )

    def _refuse(self, call: _Call, answer: Answer) -> NoReturn:
        """Who must act on an answer that nobody expected."""
        described = _described(answer)
        if answer.status in RETRIED_STATUSES:
            raise _TryAgain(
                described,
                retry_after_seconds=retry_after_seconds(
                    answer.headers.get("retry-after"), self._clock()
                ),
                may_be_repeated=call.is_idempotent or answer.status == 429,
            )
        if answer.status >= 500:
            raise Unavailable(described)
        if answer.status == 401:
            raise Denied(f"{described}: the credential is refused")
        if answer.status == 407:
            raise Denied(f"{described}: the proxy refuses the credential in http.proxy")
        raise Denied(described)


async def follow(
    client: HttpClient,
    url: str,
    next_url: Callable[[Answer], str | None],
    *,
    params: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    expect: Collection[int] = (),
    pages_max: int = 10_000,
) -> AsyncIterator[Answer]:
    """The pages of a listing, each link followed byte for byte; an empty page is not the end.

    Raises:
        Unavailable: A link came twice, or there are more than `pages_max` pages; what was read
            is no complete listing.
        Denied: As `HttpClient.request`.
        Misconfigured: A link leads to a host that is not allowed.
    """
    link: str | None = with_params(url, params)
    # By digest: ten thousand links of some kilobytes each would be kept otherwise.
    seen: set[bytes] = set()
    while link is not None:
        digest = hashlib.sha256(link.encode("utf-8", "surrogatepass")).digest()
        if digest in seen or len(seen) >= pages_max:
            why = "a link came twice" if digest in seen else f"more than {pages_max} pages"
            raise Unavailable(f"{_shown_url(url)}: {why}; the listing is not complete")
        seen.add(digest)
        answer = await client.get(link, headers=headers, expect=expect)
        yield answer
        link = next_url(answer)


def with_params(url: str, params: Mapping[str, str] | None) -> str:
    """The URL with these parameters percent-encoded: a space as %20, `$` as it is."""
    if not params:
        return url
    if "?" in url or "#" in url:
        raise ValueError("with params the URL must have no query and no fragment of its own")
    query = urlencode(params, quote_via=quote, safe="$", errors=_SURROGATES)
    return f"{url}?{query}"


def encoded(text: str) -> str:
    """A text percent-encoded whole, as one segment of a path or one value of a query.

    Never raises: an id with half of a surrogate pair, which UTF-8 has no bytes for, goes out in
    those it would have. The server refuses it, and the caller loses that record and no other.
    """
    return quote(text, safe="", errors=_SURROGATES)


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """The pause that a Retry-After header asks for (RFC 9110, 10.2.3); None where it asks none.

    Zero, a negative number, a past date and nonsense ask for none: the usual pause then holds.
    """
    text = (value or "").strip()
    if _SECONDS.fullmatch(text):
        seconds = float(text)
    else:
        try:
            at = parsedate_to_datetime(text)
            at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
            seconds = (at - now).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return None
    return seconds if seconds > 0 else None


@dataclass(slots=True)
class _Call:
    """What is sent, and what may be done about it."""

    method: str
    target: _Target
    content: bytes | None
    headers: dict[str, str]
    is_idempotent: bool
    is_authorised: bool
    is_renewed: bool = False


@dataclass(frozen=True, slots=True)
class _Target:
    """A URL in the parts that are checked, shown and sent.

    Attributes:
        host: With its port where that is not the scheme's own; lower case.
        path_and_query: What goes out, byte for byte.
        shown: Without query, for people.
    """

    url: str
    scheme: str
    host: str
    is_loopback: bool
    path_and_query: bytes
    shown: str

    @property
    def origin(self) -> tuple[str, str]:
        return self.scheme, self.host

    @classmethod
    def parse(cls, url: str) -> _Target:
        match = _ORIGIN.match(url)
        if match is None:
            raise Misconfigured(f"{_shown_url(url)} is no absolute http or https URL")
        if "@" in match[2]:
            raise Misconfigured("a URL with a user or password in it is not sent")
        rest = url[match.end() :].partition("#")[0]
        if not rest.startswith("/"):
            rest = "/" + rest
        # No request line may hold these; all else stays as it came.
        rest = "".join(
            character if "!" <= character <= "~" else quote(character, errors=_SURROGATES)
            for character in rest
        )
        try:
            # The host as the library that connects understands it, so that both mean the same.
            parsed = httpx2.URL(match[0] + rest)
            name = parsed.raw_host.decode("ascii")
        except (httpx2.InvalidURL, UnicodeError) as error:
            raise Misconfigured(f"{_shown_url(url)} is no usable URL") from error
        if not name:
            raise Misconfigured(f"{_shown_url(url)} names no host")
        shown_name = f"[{name}]" if ":" in name else name
        host = shown_name if parsed.port is None else f"{shown_name}:{parsed.port}"
        return cls(
            url=match[0] + rest,
            scheme=parsed.scheme,
            host=host,
            is_loopback=_is_loopback(name),
            path_and_query=rest.encode("ascii"),
            shown=_printable(f"{parsed.scheme}://{host}{rest.partition('?')[0]}"),
        )


class _TryAgain(Exception):
    """One try failed in a way that another may not."""

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        may_be_repeated: bool = True,
    ) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        self.may_be_repeated = may_be_repeated

    def final(self, try_count: int) -> Unavailable:
        after = f" (try {try_count})" if try_count > 1 else ""
        return Unavailable(f"{self}{after}", retry_after_seconds=self.retry_after_seconds)


class _Retries:
    """Decides, for one request, whether and when it is tried again; announces the wait."""

    def __init__(
        self,
        settings: HttpSettings,
        clock: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]],
        random: Random,
    ) -> None:
        self._random = random
        self._budget_seconds = settings.retry_budget.total_seconds()
        self._first_seconds = (settings.connect_timeout + settings.read_timeout).total_seconds()
        self._pause_seconds_max = settings.retry_after_max.total_seconds()
        self._clock = clock
        self._sleep = sleep
        self._report = report_wait.get()
        self._is_announced = False
        self._pause_seconds = 0.0
        self.try_count = 1
        # Counted, not read from a clock: waiting for the turn in the budget is not part of it.
        self.spent_seconds = 0.0

    @property
    def seconds_left(self) -> float:
        """For one exchange; the first try always has the time of its timeouts."""
        left = self._budget_seconds - self.spent_seconds
        return max(left, self._first_seconds) if self.try_count == 1 else max(left, 0.001)

    def may_go_on(self, error: _TryAgain) -> bool:
        """Whether there is another try; the wait before it is announced."""
        if error.retry_after_seconds is not None:
            error.retry_after_seconds = min(error.retry_after_seconds, self._pause_seconds_max)
            pause = error.retry_after_seconds
        else:
            backoff = min(2.0 ** (self.try_count - 1), BACKOFF_SECONDS_MAX)
            pause = backoff * self._random.uniform(0.5, 1.5)
        if not error.may_be_repeated or self.spent_seconds + pause >= self._budget_seconds:
            return False
        self.spent_seconds += pause
        self.try_count += 1
        self._pause_seconds = pause
        logger.info("%s; asked again in %.1f s", error, pause)
        if self._report is not None:
            self._is_announced = True
            self._report(self._clock() + timedelta(seconds=pause), str(error))
        return True

    async def pause(self) -> None:
        """Wait for the next try."""
        await self._sleep(self._pause_seconds)
        self.end()

    def end(self) -> None:
        """Nothing waits any more."""
        if self._is_announced and self._report is not None:
            self._is_announced = False
            self._report(None, "")


def _raise_transport_error(error: Exception, where: str, call: _Call, seconds: float) -> NoReturn:
    """Who must act when no answer came; the texts of protocol errors quote headers, and stay out.

    Raises:
        Denied: A certificate that is not trusted, a proxy that refuses.
        _TryAgain: Anything else.
    """
    name = type(error).__name__
    if isinstance(error, httpx2.ConnectError):
        if _is_certificate_error(error):
            raise Denied(
                f"{where}: the certificate is not trusted ({_printable(str(error))}); where a "
                "proxy signs anew, name its certificate in http.ca_file"
            ) from error
        raise _TryAgain(f"{where}: no connection ({_printable(str(error))})") from error
    if isinstance(error, httpx2.ConnectTimeout | httpx2.PoolTimeout):
        raise _TryAgain(f"{where}: no connection in time ({name})") from error
    if isinstance(error, httpx2.ProxyError):
        text = _printable(str(error))
        if text.startswith("407"):
            raise Denied(f"{where}: the proxy refuses the credential in http.proxy") from error
        raise _TryAgain(f"{where}: the proxy gives no connection ({text})") from error
    unknown = "" if call.is_idempotent else "; whether it was carried out is not known"
    if isinstance(error, TimeoutError):
        raise _TryAgain(
            f"{where}: no complete answer within {seconds:.3g} s{unknown}",
            may_be_repeated=call.is_idempotent,
        ) from error
    again = _TryAgain(
        f"{where}: no complete answer ({name}){unknown}", may_be_repeated=call.is_idempotent
    )
    if isinstance(error, httpx2.ProtocolError | httpx2.InvalidURL):
        raise again from None
    raise again from error


def _is_certificate_error(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _client(settings: HttpSettings, platform: str, transport: Any) -> httpx2.AsyncClient:
    verify: ssl.SSLContext | bool = True
    if settings.ca_file is not None:
        try:
            verify = ssl.create_default_context(cafile=str(settings.ca_file))
        except OSError as error:  # ssl.SSLError is one
            raise Misconfigured(
                f"http.ca_file: {settings.ca_file} is no readable PEM file of certificates "
                f"({error.strerror or type(error).__name__})"
            ) from error
    connect, read = settings.connect_timeout.total_seconds(), settings.read_timeout.total_seconds()
    return httpx2.AsyncClient(
        verify=verify if settings.ca_file is not None else _system_trust(),
        proxy=_proxy(settings, verify),
        transport=transport,
        trust_env=False,  # nothing but the settings decides where requests go
        follow_redirects=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        headers={"user-agent": f"verity-stream/{_version()} ({_printable(platform)})"},
        timeout=httpx2.Timeout(connect=connect, read=read, write=read, pool=read),
        limits=httpx2.Limits(
            max_connections=settings.connections_max,
            max_keepalive_connections=settings.connections_max,
            keepalive_expiry=KEEP_ALIVE_SECONDS,
        ),
    )


def _system_trust() -> ssl.SSLContext | bool:
    """What the system trusts, for all clients alike; read again where its file has changed.

    To read it takes tens of milliseconds, in which the loop stands still, and a connector has up
    to three clients. True where the system has no such file: then httpx2 finds what there is.
    """
    file = ssl.get_default_verify_paths().openssl_cafile
    try:
        found = Path(file).stat()
    except OSError:
        return True
    return _trust_in(file, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=1)
def _trust_in(file: str, changed_at_ns: int, size_bytes: int) -> ssl.SSLContext:
    # Which file it is, httpx2 knows as well; here it is what the answer is kept by.
    return httpx2.create_ssl_context(trust_env=False)


def _proxy(settings: HttpSettings, verify: ssl.SSLContext | bool) -> httpx2.Proxy | None:
    if settings.proxy is None:
        return None
    try:
        proxy = httpx2.Proxy(settings.proxy.get_secret_value())
        is_usable = proxy.url.scheme in ("http", "https") and bool(proxy.url.host)
    except (httpx2.InvalidURL, ValueError):
        is_usable = False
    if not is_usable:
        # Without its cause, which quotes the URL and so the password.
        raise Misconfigured("http.proxy is no URL such as http://user:password@host:port")
    if proxy.url.scheme == "https" and isinstance(verify, ssl.SSLContext):
        proxy.ssl_context = verify
    return proxy


@cache
def _version() -> str:
    try:
        return importlib.metadata.version("verity-stream")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def _host_pattern(host: str) -> str:
    pattern = host.strip().lower()
    name = pattern.removeprefix("*.")
    if not name or "*" in name or re.search(r"[/?#@\\\s]", name):
        raise Misconfigured(f"{host!r} is no host such as api.example.com or *.example.com")
    return pattern.removesuffix(":443")


def _matches(host: str, pattern: str) -> bool:
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return host == pattern


def _is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_header_value(value: str) -> bool:
    return value.isascii() and value.isprintable() and value == value.strip()


def _described(answer: Answer) -> str:
    details = [
        text
        for text in (
            answer.error_code,
            answer.request_id and f"request id {answer.request_id}",
        )
        if text
    ]
    after = f" ({', '.join(details)})" if details and answer.status >= 300 else ""
    return f"{answer.method} {answer.url}: {answer.status}{after}"


def _shown_url(url: str) -> str:
    return _printable(re.split(r"[?#]", url, maxsplit=1)[0].rpartition("@")[2])


def _printable(text: str, characters_max: int = _SHOWN_CHARACTERS_MAX) -> str:
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return shown if len(shown) <= characters_max else shown[: characters_max - 1] + "…"
