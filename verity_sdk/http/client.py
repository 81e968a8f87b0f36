"""A client of one API: authorised, within its budget, retried, and only to allowed hosts."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from random import Random
from typing import Any, NoReturn, Protocol
from urllib.parse import urlencode, urljoin

from verity_sdk.context import Context, current_context
from verity_sdk.errors import Denied, Misconfigured, Unavailable
from verity_sdk.http.answers import Answer, described
from verity_sdk.http.budgets import Budget
from verity_sdk.http.connections import Connections
from verity_sdk.http.retries import RETRIED_STATUSES, Retries, TryAgain, retry_after_seconds
from verity_sdk.http.settings import HttpSettings
from verity_sdk.http.shown import shown_url
from verity_sdk.http.urls import ORIGIN, SURROGATES, Target, host_pattern, matches, with_params
from verity_sdk.values import dumps

logger = logging.getLogger(__name__)

REDIRECTS_MAX = 5


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
        context: The connector's. None: whichever is the current one when a request is made.
        clock, sleep: In place of the context's.
        transport: An httpx2 transport, handed in by unit tests.
        random: Spreads the tries of those that failed together.

    Raises:
        Misconfigured: `http.proxy` or `http.ca_file` can't be used, or a host is not one.
    """

    def __init__(
        self,
        settings: HttpSettings,
        *,
        platform: str,
        hosts: Collection[str],
        authorizer: Authorizer | None = None,
        budget: Budget | None = None,
        context: Context | None = None,
        clock: Callable[[], datetime] | None = None,
        sleep: Callable[[float], Awaitable[None]] | None = None,
        transport: Any = None,
        random: Random | None = None,
    ) -> None:
        self._settings = settings
        self._random = Random() if random is None else random  # noqa: S311 - jitter
        self._platform = platform
        self._hosts = tuple(host_pattern(host) for host in hosts)
        self._authorizer = authorizer
        self._budget = budget
        self._context = context
        self._own_clock = clock
        self._own_sleep = sleep
        self._connections = Connections(settings, platform, transport)

    def __repr__(self) -> str:
        return f"HttpClient({self._platform!r}, hosts={list(self._hosts)})"

    def clock(self) -> datetime:
        """The present by which it waits, aware UTC."""
        return (self._own_clock or self._surroundings.clock)()

    @property
    def _surroundings(self) -> Context:
        return self._context or current_context()

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
            call.content = urlencode(form, errors=SURROGATES).encode()
            call.headers.setdefault("content-type", "application/x-www-form-urlencoded")
        for name, value in call.headers.items():
            if not _is_header_value(value):
                raise ValueError(f"the header {name} has characters that no header may have")

        with self._surroundings.within():
            sleep = self._own_sleep or self._surroundings.sleep
            retries = Retries(self._settings, self.clock, sleep, self._random)
            try:
                while True:
                    try:
                        return await self._attempt(call, frozenset(expect), retries)
                    except TryAgain as again:
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
        await self._connections.close()

    def _target(self, url: str) -> Target:
        target = Target.parse(url)
        if not any(matches(target.host, pattern) for pattern in self._hosts):
            raise Misconfigured(
                f"{self._platform}: the host {target.host} is not allowed; allowed are "
                f"{', '.join(self._hosts) or 'none'}"
            )
        if target.scheme != "https" and not target.is_loopback:
            raise Misconfigured(f"{self._platform}: {target.shown} is not https")
        return target

    async def _attempt(self, call: _Call, expect: frozenset[int], retries: Retries) -> Answer:
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
                    raise Denied(f"{described(answer)}: more than {REDIRECTS_MAX} redirects")
                call = self._redirected(call, answer, location)
                continue
            self._refuse(call, answer)

    async def _exchange(self, call: _Call, authorization: str | None, retries: Retries) -> Answer:
        """Send once, within the budget, and read the answer to its end."""
        if self._budget is None:
            return await self._send(call, authorization, retries)
        async with self._budget.slot():
            return await self._send(call, authorization, retries)

    async def _send(self, call: _Call, authorization: str | None, retries: Retries) -> Answer:
        headers = dict(call.headers)
        if authorization is not None:
            headers["authorization"] = authorization
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            answer = await self._connections.exchange(
                call.method,
                call.target,
                content=call.content,
                headers=headers,
                seconds=retries.seconds_left,
                is_idempotent=call.is_idempotent,
            )
        finally:
            retries.spent_seconds += loop.time() - started
        logger.debug("%s: %s in %.3f s", self._platform, described(answer), loop.time() - started)
        return answer

    def _redirected(self, call: _Call, answer: Answer, location: str) -> _Call:
        url = location if ORIGIN.match(location) else urljoin(call.target.url, location)
        target = self._target(url)
        is_same_origin = target.origin == call.target.origin
        method, content, headers = call.method, call.content, dict(call.headers)
        if answer.status == 303 and method != "HEAD":
            method, content = "GET", None
            headers.pop("content-type", None)
        elif method not in ("GET", "HEAD") and answer.status in (301, 302):
            raise Denied(f"{described(answer)}: a {method} that is redirected loses its body")
        if not is_same_origin:
            if content is not None:
                raise Denied(
                    f"{described(answer)}: a body is not sent on to another host ({target.host})"
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
        what = described(answer)
        if answer.status in RETRIED_STATUSES:
            raise TryAgain(
                what,
                retry_after_seconds=retry_after_seconds(
                    answer.headers.get("retry-after"), self.clock()
                ),
                may_be_repeated=call.is_idempotent or answer.status == 429,
            )
        if answer.status >= 500:
            raise Unavailable(what)
        if answer.status == 401:
            raise Denied(f"{what}: the credential is refused")
        if answer.status == 407:
            raise Denied(f"{what}: the proxy refuses the credential in http.proxy")
        raise Denied(what)


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
            is not a complete listing.
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
            raise Unavailable(f"{shown_url(url)}: {why}; the listing is not complete")
        seen.add(digest)
        answer = await client.get(link, headers=headers, expect=expect)
        yield answer
        link = next_url(answer)


@dataclass(slots=True)
class _Call:
    """What is sent, and what may be done about it."""

    method: str
    target: Target
    content: bytes | None
    headers: dict[str, str]
    is_idempotent: bool
    is_authorised: bool
    is_renewed: bool = False


def _is_header_value(value: str) -> bool:
    return value.isascii() and value.isprintable() and value == value.strip()
