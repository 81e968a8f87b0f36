"""Credentials: one request however many wait, a circuit that spares the issuer, no secret shown."""

from __future__ import annotations

import asyncio
import base64
import logging
import traceback
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from connectors._azure.credential import explained
from verity_sdk.auth import LIFETIME_ASSUMED, LIFETIME_MAX, ClientCredentials, FixedAuthorization
from verity_sdk.errors import Denied, Misconfigured, Unavailable
from verity_sdk.http import HttpClient, HttpSettings

START = datetime(2026, 11, 24, 12, tzinfo=UTC)
URL = "https://login.example.com/tenant/oauth2/v2.0/token"
SECRET = "s3cr3t~/+ ä"
MINUTE = timedelta(minutes=1)


class Issuer:
    """A token endpoint with a clock; `answer` is what it says next, `gate` holds it back."""

    def __init__(self) -> None:
        self.now = START
        self.requests: list[httpx2.Request] = []
        self.answer: Any = None
        self.gate: asyncio.Event | None = None
        self.slept: list[float] = []

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        number = len(self.requests)
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        if isinstance(self.answer, tuple):
            status, body = self.answer
            return httpx2.Response(status, json=body, headers={"x-ms-request-id": "r-1"})
        body = {"token_type": "Bearer", "access_token": f"t{number}", "expires_in": 3600}
        return httpx2.Response(200, json=body | (self.answer or {}))

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def credentials(self, **options: Any) -> ClientCredentials:
        client = HttpClient(
            HttpSettings(),
            platform="test",
            hosts=["login.example.com"],
            clock=lambda: self.now,
            sleep=self.sleep,
            transport=httpx2.MockTransport(self),
        )
        return ClientCredentials(
            client,
            token_url=URL,
            client_id="id:1",
            client_secret=SecretStr(SECRET),
            scope="https://graph.example.com/.default",
            explain=explained,
            clock=lambda: self.now,
            **options,
        )


REFUSED = (401, {"error": "invalid_client", "error_description": f"AADSTS7000215: {SECRET}"})


# What is sent


async def test_the_form_carries_id_and_secret() -> None:
    issuer = Issuer()
    assert await issuer.credentials().authorization() == "Bearer t1"
    (request,) = issuer.requests
    assert request.method == "POST"
    assert str(request.url) == URL
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert "authorization" not in request.headers
    assert parse_qs(request.content.decode()) == {
        "grant_type": ["client_credentials"],
        "scope": ["https://graph.example.com/.default"],
        "client_id": ["id:1"],
        "client_secret": [SECRET],
    }


async def test_basic_encodes_both_parts_before_it_joins_them() -> None:
    issuer = Issuer()
    await issuer.credentials(style="basic").authorization()
    (request,) = issuer.requests
    scheme, _, value = request.headers["authorization"].partition(" ")
    assert scheme == "Basic"
    assert base64.b64decode(value) == b"id%3A1:s3cr3t~%2F%2B+%C3%A4"
    assert set(parse_qs(request.content.decode())) == {"grant_type", "scope"}


# How long a token is used


async def test_a_token_is_used_until_shortly_before_its_end() -> None:
    issuer = Issuer()
    credentials = issuer.credentials()
    for minutes, token in ((0, "t1"), (54, "t1"), (55, "t2"), (109, "t2"), (110, "t3")):
        issuer.now = START + minutes * MINUTE
        assert await credentials.authorization() == f"Bearer {token}", minutes
    assert len(issuer.requests) == 3


@pytest.mark.parametrize(
    ("expires_in", "used"),
    [
        (600, 5 * MINUTE),
        (60, timedelta(seconds=30)),
        ("3600", 55 * MINUTE),
        (3600.5, 55 * MINUTE),
        (None, LIFETIME_ASSUMED / 2),
        (0, LIFETIME_ASSUMED / 2),
        (-5, LIFETIME_ASSUMED / 2),
        (True, LIFETIME_ASSUMED / 2),
        ("soon", LIFETIME_ASSUMED / 2),
        ("nan", LIFETIME_ASSUMED / 2),
        ([], LIFETIME_ASSUMED / 2),
        (10**30, LIFETIME_MAX - 5 * MINUTE),
    ],
)
async def test_any_lifetime_has_a_meaning(expires_in: Any, used: timedelta) -> None:
    issuer = Issuer()
    issuer.answer = {"expires_in": expires_in}
    credentials = issuer.credentials()
    await credentials.authorization()
    issuer.now = START + used - timedelta(seconds=1)
    assert await credentials.authorization() == "Bearer t1"
    issuer.now = START + used + timedelta(seconds=1)
    assert await credentials.authorization() == "Bearer t2"


async def test_a_token_that_lives_serves_on_while_the_issuer_is_away() -> None:
    issuer = Issuer()
    credentials = issuer.credentials()
    await credentials.authorization()
    issuer.answer = (400, {"error": "temporarily_unavailable"})
    issuer.now = START + 56 * MINUTE
    assert [await credentials.authorization() for _ in range(5)] == ["Bearer t1"] * 5
    assert len(issuer.requests) == 2
    issuer.now += timedelta(seconds=31)
    assert await credentials.authorization() == "Bearer t1"
    assert len(issuer.requests) == 3
    issuer.now = START + 60 * MINUTE
    with pytest.raises(Unavailable):
        await credentials.authorization()
    issuer.answer = None
    assert await credentials.authorization() == "Bearer t5"


# One request at a time


async def test_however_many_wait_one_request_is_made() -> None:
    issuer = Issuer()
    issuer.gate = asyncio.Event()
    credentials = issuer.credentials()
    waiting = [asyncio.create_task(credentials.authorization()) for _ in range(20)]
    await started(issuer, 1)
    issuer.gate.set()
    assert await asyncio.gather(*waiting) == ["Bearer t1"] * 20
    assert len(issuer.requests) == 1


@pytest.mark.parametrize(
    ("answer", "error"),
    [(REFUSED, Denied), ((200, {}), Unavailable), ((501, {}), Unavailable)],
    ids=["denied", "no token", "unavailable"],
)
async def test_who_waited_shares_the_failure(answer: Any, error: type[Exception]) -> None:
    issuer = Issuer()
    issuer.gate = asyncio.Event()
    issuer.answer = answer
    credentials = issuer.credentials()
    waiting = [asyncio.create_task(credentials.authorization()) for _ in range(20)]
    await started(issuer, 1)
    issuer.gate.set()
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(one) for one in ended] == [error] * 20
    assert len(set(map(id, ended))) == 20
    assert len(set(map(str, ended))) == 1
    assert len(issuer.requests) == 1


async def test_who_comes_after_a_failure_asks_anew() -> None:
    issuer = Issuer()
    issuer.answer = (501, {})
    credentials = issuer.credentials()
    for _ in range(2):
        with pytest.raises(Unavailable):
            await credentials.authorization()
    assert len(issuer.requests) == 2


async def test_who_is_cancelled_takes_nobody_along() -> None:
    issuer = Issuer()
    issuer.gate = asyncio.Event()
    credentials = issuer.credentials()
    waiting = [asyncio.create_task(credentials.authorization()) for _ in range(4)]
    await started(issuer, 1)
    waiting[0].cancel()  # it makes the request
    waiting[2].cancel()  # it waits
    await started(issuer, 2)
    issuer.gate.set()
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(ended[0], asyncio.CancelledError)
    assert isinstance(ended[2], asyncio.CancelledError)
    assert [ended[1], ended[3]] == ["Bearer t2"] * 2
    assert len(issuer.requests) == 2


async def started(issuer: Issuer, count: int) -> None:
    async with asyncio.timeout(30):
        while len(issuer.requests) < count:  # noqa: ASYNC110 - the transport has no event
            await asyncio.sleep(0)


# Refusals


async def test_a_refusal_opens_a_circuit_and_one_probe_goes_out() -> None:
    issuer = Issuer()
    issuer.answer = REFUSED
    credentials = issuer.credentials()
    texts = []
    for seconds in (0, 1, 299, 300, 301, 599):
        issuer.now = START + timedelta(seconds=seconds)
        with pytest.raises(Denied) as caught:
            await credentials.authorization()
        texts.append(str(caught.value))
    assert len(set(texts)) == 1
    assert len(issuer.requests) == 2
    assert not await credentials.renew("Bearer x")
    issuer.answer = None
    issuer.now = START + timedelta(seconds=600)
    assert await credentials.renew("Bearer x")
    assert await credentials.authorization() == "Bearer t3"
    assert await credentials.authorization() == "Bearer t3"


async def test_a_clock_that_is_set_back_does_not_keep_the_circuit_open() -> None:
    issuer = Issuer()
    issuer.answer = REFUSED
    credentials = issuer.credentials()
    with pytest.raises(Denied):
        await credentials.authorization()
    issuer.answer = None
    issuer.now = START - timedelta(hours=5)
    assert (await credentials.authorization()).startswith("Bearer ")


async def test_a_refusal_says_which_and_shows_no_secret() -> None:
    issuer = Issuer()
    issuer.answer = REFUSED
    with pytest.raises(Denied) as caught:
        await issuer.credentials().authorization()
    text = str(caught.value)
    assert text.startswith(f"POST {URL}: 401 (invalid_client, AADSTS7000215, request id r-1)")
    assert "secret is wrong" in text
    assert SECRET not in text


@pytest.mark.parametrize("code", ["invalid_client", "unauthorized_client", "invalid_scope", None])
async def test_oauth_errors_are_for_the_operator(code: str | None) -> None:
    issuer = Issuer()
    issuer.answer = (400, {} if code is None else {"error": code})
    with pytest.raises(Denied, match=code or "no error code"):
        await issuer.credentials().authorization()


@pytest.mark.parametrize("status", [403, 404])
async def test_what_the_client_denies_opens_the_circuit_too(status: int) -> None:
    issuer = Issuer()
    issuer.answer = (status, {})
    credentials = issuer.credentials()
    for _ in range(3):
        with pytest.raises(Denied, match=str(status)):
            await credentials.authorization()
    assert len(issuer.requests) == 1


async def test_a_refusal_ends_a_token_that_lives() -> None:
    issuer = Issuer()
    credentials = issuer.credentials()
    await credentials.authorization()
    issuer.answer = REFUSED
    issuer.now = START + 56 * MINUTE
    with pytest.raises(Denied):
        await credentials.authorization()


@pytest.mark.parametrize("body", [{}, [], 5, {"access_token": ""}, {"access_token": 5}, "x"])
async def test_an_answer_without_a_token_is_unavailable(body: Any) -> None:
    issuer = Issuer()
    issuer.answer = (200, body)
    with pytest.raises(Unavailable, match="access_token"):
        await issuer.credentials().authorization()


async def test_transient_failures_are_tried_again() -> None:
    issuer = Issuer()
    issuer.answer = httpx2.ReadError("x")
    with pytest.raises(Unavailable):
        await issuer.credentials().authorization()
    assert len(issuer.requests) > 3
    issuer.answer = (400, {"error": "server_error"})
    with pytest.raises(Unavailable):
        await issuer.credentials().authorization()


# Renewal


async def test_a_refused_token_is_dropped() -> None:
    issuer = Issuer()
    credentials = issuer.credentials()
    refused = await credentials.authorization()
    assert await credentials.renew(refused)
    assert await credentials.authorization() == "Bearer t2"


async def test_a_refusal_that_comes_late_drops_no_newer_token() -> None:
    issuer = Issuer()
    credentials = issuer.credentials()
    refused = await credentials.authorization()
    assert await credentials.renew(refused)
    await credentials.authorization()
    assert await credentials.renew(refused)
    assert await credentials.authorization() == "Bearer t2"
    assert len(issuer.requests) == 2


async def test_a_second_refusal_while_the_first_is_renewed_may_try_again() -> None:
    issuer = Issuer()
    credentials = issuer.credentials()
    refused = await credentials.authorization()
    assert await credentials.renew(refused)
    assert await credentials.renew(refused)


# Fixed


async def test_fixed_headers() -> None:
    bearer = FixedAuthorization.bearer(SecretStr("token"))
    assert await bearer.authorization() == "Bearer token"
    assert not await bearer.renew("Bearer token")


@given(st.text().filter(lambda text: ":" not in text), st.text())
async def test_basic_is_reversible(user: str, password: str) -> None:
    try:
        expected = f"{user}:{password}".encode()
    except UnicodeEncodeError:
        return
    header = await FixedAuthorization.basic(user, SecretStr(password)).authorization()
    assert header.startswith("Basic ")
    assert base64.b64decode(header.removeprefix("Basic ")) == expected


def test_a_user_with_a_colon_is_refused() -> None:
    with pytest.raises(Misconfigured):
        FixedAuthorization.basic("a:b", "c")


# What is shown


@pytest.mark.parametrize("style", ["form", "basic"])
async def test_nothing_shown_holds_a_secret(style: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    issuer = Issuer()
    credentials = issuer.credentials(style=style)
    token = await credentials.authorization()
    shown = [repr(credentials), *(f"{one} {one!r}" for one in vars(credentials).values())]
    issuer.now += 3 * timedelta(hours=1)
    for answer in (REFUSED, (200, {"a": SECRET}), (500, {}), httpx2.ReadError("x")):
        issuer.answer = answer
        issuer.now += timedelta(hours=1)
        with pytest.raises((Denied, Unavailable)) as caught:
            await credentials.authorization()
        shown.append("".join(traceback.format_exception(caught.value)))
    fixed = FixedAuthorization.basic("user", SecretStr(SECRET))
    shown += [repr(fixed), caplog.text]
    text = "\n".join(shown)
    encoded = base64.b64encode(b"id%3A1:s3cr3t~%2F%2B+%C3%A4").decode()
    for secret in (SECRET, "s3cr3t", token, encoded):
        assert secret not in text
