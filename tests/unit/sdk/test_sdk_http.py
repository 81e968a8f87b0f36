"""The HTTP client's decisions: hosts, retries, renewals, budgets, and what is shown."""

from __future__ import annotations

import asyncio
import logging
import math
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, unquote_plus

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from verity_sdk.context import Context
from verity_sdk.errors import Denied, Misconfigured, Unavailable
from verity_sdk.http import (
    Answer,
    Authorizer,
    HttpClient,
    HttpSettings,
    encoded,
    follow,
    retry_after_seconds,
    shared_budget,
    with_params,
)

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
API = "https://api.example.com"
SECRET = "s3cr3t-t0ken"


class Tokens:
    """An authorizer that counts; `renewable` of its tokens may be renewed."""

    def __init__(self, renewable: int = 9) -> None:
        self.number = 1
        self.renewable = renewable
        self.refused: list[str] = []

    async def authorization(self) -> str:
        return f"Bearer {SECRET}-{self.number}"

    async def renew(self, refused: str) -> bool:
        self.refused.append(refused)
        if self.renewable == 0:
            return False
        self.renewable -= 1
        self.number += 1
        return True


class Api:
    """Answers in turn; the last one again and again."""

    def __init__(self, *answers: httpx2.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx2.Request] = []
        self.slept: list[float] = []
        self.waits: list[tuple[datetime | None, str]] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def client(
        self,
        *,
        hosts: Iterable[str] = ("api.example.com",),
        authorizer: Authorizer | None = None,
        platform: str = "test",
        **http: Any,
    ) -> HttpClient:
        return HttpClient(
            HttpSettings(**http),
            platform=platform,
            hosts=list(hosts),
            authorizer=authorizer,
            clock=lambda: NOW,
            sleep=self.sleep,
            transport=httpx2.MockTransport(self),
        )


def answer(status: int = 200, body: Any = None, **headers: str) -> httpx2.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.Response(status, json={} if body is None else body, headers=names)


def throttled(retry_after: str | None = None, status: int = 429) -> httpx2.Response:
    return answer(status, **({} if retry_after is None else {"retry_after": retry_after}))


# Hosts


@pytest.mark.parametrize(
    ("allowed", "url"),
    [
        ("api.example.com", "https://api.example.com/a"),
        ("API.Example.com", "https://api.EXAMPLE.com/a"),
        ("api.example.com:443", "https://api.example.com/a"),
        ("api.example.com", "https://api.example.com:443/a"),
        ("api.example.com:8443", "https://api.example.com:8443/a"),
        ("*.example.com", "https://a.b.example.com/a"),
        ("*.example.com:8443", "https://a.example.com:8443/a"),
        ("127.0.0.1:8080", "http://127.0.0.1:8080/a"),
        ("localhost:8080", "http://localhost:8080/a"),
        ("[::1]:8080", "http://[::1]:8080/a"),
        ("api.example.com", "https://api.example.com"),
        ("api.example.com", "https://api.example.com?a=b"),
    ],
)
async def test_an_allowed_host_is_asked(allowed: str, url: str) -> None:
    api = Api(answer())
    assert (await api.client(hosts=[allowed]).get(url)).status == 200


@pytest.mark.parametrize(
    ("allowed", "url"),
    [
        ("api.example.com", "https://evil.example/a"),
        ("api.example.com", "https://api.example.com.evil.example/a"),
        ("api.example.com", "https://xapi.example.com/a"),
        ("api.example.com", "https://api.example.com:8443/a"),
        ("api.example.com", "https://api.example.com./a"),
        ("api.example.com:8443", "https://api.example.com/a"),
        ("*.example.com", "https://example.com/a"),
        ("*.example.com", "https://evilexample.com/a"),
        ("*.example.com", "https://.example.com/a"),
        ("api.example.com", "https://evil.example\\@api.example.com/a"),
        ("api.example.com", "https://user:hunter2@api.example.com/a"),
        ("api.example.com", "https://api.example.com@evil.example/a"),
        ("api.example.com", "http://api.example.com/a"),
        ("api.example.com", "http://api.example.com:443/a"),
        ("10.0.0.1:80", "http://10.0.0.1/a"),
        ("api.example.com", "/a"),
        ("api.example.com", "//api.example.com/a"),
        ("api.example.com", "ftp://api.example.com/a"),
        ("api.example.com", "https:///a"),
        ("api.example.com", "https://api.example.com:port/a"),
        ("api.example.com", ""),
    ],
)
async def test_a_stranger_is_never_asked(allowed: str, url: str) -> None:
    api = Api(answer())
    with pytest.raises(Misconfigured) as caught:
        await api.client(hosts=[allowed], authorizer=Tokens()).get(url)
    assert api.requests == []
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("host", ["", "*", "*.", "*.*.com", "a*.com", "https://a.com", "a@b"])
def test_what_is_no_host_is_refused_at_once(host: str) -> None:
    with pytest.raises(Misconfigured):
        Api(answer()).client(hosts=[host])


# What is sent


QUERY_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


@given(st.dictionaries(QUERY_TEXT.filter(bool), QUERY_TEXT, max_size=4))
def test_parameters_come_out_as_they_went_in(params: dict[str, str]) -> None:
    url = with_params(f"{API}/a", params)
    query = url.partition("?")[2]
    assert {key: values[0] for key, values in parse_qs(query, keep_blank_values=True).items()} == (
        params
    )
    assert set(query) <= set("%$=&-._~") | {c for c in map(chr, range(128)) if c.isalnum()}


def test_parameters_are_encoded_as_odata_wants_them() -> None:
    url = with_params(f"{API}/a", {"$filter": "name eq 'O''Neil + co' and a/b"})
    assert url == f"{API}/a?$filter=name%20eq%20%27O%27%27Neil%20%2B%20co%27%20and%20a%2Fb"
    assert with_params(f"{API}/a", {}) == f"{API}/a"
    with pytest.raises(ValueError, match="no query"):
        with_params(f"{API}/a?b=c", {"d": "e"})


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=10)
"""Halves of surrogate pairs among it, which Hypothesis leaves out by itself."""


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#")))
async def test_a_url_without_params_is_sent_byte_for_byte(rest: str) -> None:
    api = Api(answer())
    await api.client().get(f"{API}/{rest}")
    assert api.requests[0].extensions["target"] == f"/{rest}".encode()


@given(ANY_TEXT, ANY_TEXT)
async def test_no_text_breaks_the_request_line(path: str, query: str) -> None:
    api = Api(answer())
    await api.client().get(f"{API}/{path}?{query}")
    target = api.requests[0].extensions["target"]
    assert all(0x21 <= byte <= 0x7E for byte in target)
    sent_path = unquote(target.decode().partition("?")[0], errors="surrogatepass")
    if not set(path) & set("?#%"):
        assert sent_path == f"/{path}"


@given(ANY_TEXT)
async def test_any_id_can_be_asked_for_in_a_path_a_query_and_a_form(name: str) -> None:
    """Half of a surrogate pair too: whoever asks for one record loses no other."""
    api = Api(answer())
    client = api.client()
    await client.get(f"{API}/{encoded(name)}", params={"of": name})
    await client.request("POST", f"{API}/a", form={"of": name})
    target = api.requests[0].extensions["target"].decode()
    path, _, query = target.removeprefix("/").partition("?of=")
    for sent in (path, query, api.requests[1].content.decode().removeprefix("of=")):
        assert unquote_plus(sent, errors="surrogatepass") == name


async def test_bodies_and_headers() -> None:
    api = Api(answer())
    client = api.client(authorizer=Tokens(), platform="azure_ad")
    await client.request("post", f"{API}/a", json={"b": [1, "ä"]}, headers={"Prefer": "x"})
    await client.request("POST", f"{API}/a", form={"c d": "e&f"}, is_authorised=False)
    as_json, as_form = api.requests
    assert as_json.method == "POST"
    assert as_json.content == '{"b":[1,"ä"]}'.encode()
    assert as_json.headers["content-type"] == "application/json"
    assert as_json.headers["prefer"] == "x"
    assert as_json.headers["authorization"] == f"Bearer {SECRET}-1"
    assert as_json.headers["user-agent"].startswith("verity-stream/")
    assert as_json.headers["user-agent"].endswith(" (azure_ad)")
    assert as_form.content == b"c+d=e%26f"
    assert as_form.headers["content-type"] == "application/x-www-form-urlencoded"
    assert "authorization" not in as_form.headers
    with pytest.raises(ValueError, match="one body"):
        await client.request("POST", f"{API}/a", json={}, form={})


async def test_a_line_break_in_a_header_never_leaves() -> None:
    class Broken(Tokens):
        async def authorization(self) -> str:
            return f"Bearer {SECRET}\r\nx: y"

    api = Api(answer())
    with pytest.raises(Denied) as caught:
        await api.client(authorizer=Broken()).get(f"{API}/a")
    with pytest.raises(ValueError, match="x-a"):
        await api.client().get(f"{API}/a", headers={"X-A": "b\nc"})
    assert api.requests == []
    assert SECRET not in "".join(traceback.format_exception(caught.value))


# Retries


async def test_retry_after_in_seconds_is_waited_for() -> None:
    api = Api(throttled("7"), throttled("3", 503), answer(body=[1]))
    assert (await api.client().get(f"{API}/a")).json() == [1]
    assert api.slept == [7, 3]


async def test_retry_after_as_a_date_is_waited_for() -> None:
    at = format_datetime(NOW + timedelta(seconds=30), usegmt=True)
    api = Api(throttled(at), answer())
    await api.client().get(f"{API}/a")
    assert api.slept == [30]


@pytest.mark.parametrize(
    "header",
    [None, "", "0", "-5", "soon", "nan", "1e9", "Tue, 24 Nov 2026 11:59:00 GMT", "Mon, 99 Foo"],
)
async def test_without_a_pause_asked_for_the_waits_double(header: str | None) -> None:
    api = Api(throttled(header))
    with pytest.raises(Unavailable) as caught:
        await api.client(retry_budget="60s").get(f"{API}/a")
    assert caught.value.retry_after_seconds is None
    assert len(api.slept) >= 4
    for number, seconds in enumerate(api.slept):
        assert 0.5 * 2**number <= seconds <= 1.5 * 2**number
    assert sum(api.slept) < 60


async def test_a_long_pause_ends_the_request_at_once_and_says_when_to_come_back() -> None:
    api = Api(throttled("300"))
    with pytest.raises(Unavailable) as caught:
        await api.client(retry_budget="2m").get(f"{API}/a")
    assert caught.value.retry_after_seconds == 300
    assert api.slept == []
    assert len(api.requests) == 1


@pytest.mark.parametrize("header", ["86400", "9" * 5000, "Tue, 24 Nov 2099 12:00:00 GMT"])
async def test_an_absurd_pause_is_capped(header: str) -> None:
    api = Api(throttled(header))
    with pytest.raises(Unavailable) as caught:
        await api.client(retry_after_max="10m").get(f"{API}/a")
    assert caught.value.retry_after_seconds == 600


async def test_all_pauses_together_stay_within_the_budget() -> None:
    api = Api(throttled("50"))
    with pytest.raises(Unavailable) as caught:
        await api.client(retry_budget="2m").get(f"{API}/a")
    assert api.slept == [50, 50]
    assert caught.value.retry_after_seconds == 50
    assert "429" in str(caught.value)
    assert "try 3" in str(caught.value)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_transient_statuses_are_tried_again(status: int) -> None:
    api = Api(answer(status), answer())
    assert (await api.client().get(f"{API}/a")).status == 200
    assert len(api.requests) == 2


@pytest.mark.parametrize(
    ("status", "error"),
    [
        *((status, Denied) for status in (304, 400, 403, 404, 410, 422)),
        *((status, Unavailable) for status in (501, 505)),
    ],
)
async def test_other_statuses_are_not(status: int, error: type[Exception]) -> None:
    api = Api(answer(status))
    with pytest.raises(error, match=str(status)):
        await api.client().get(f"{API}/a")
    assert len(api.requests) == 1


@pytest.mark.parametrize("status", [302, 400, 401, 404, 410, 429, 500, 503])
async def test_an_expected_status_is_an_answer(status: int) -> None:
    api = Api(answer(status, {"error": {"code": "Gone"}}, location="https://evil.example/"))
    got = await api.client(authorizer=Tokens(0)).get(f"{API}/a", expect={status})
    assert (got.status, got.error_code) == (status, "Gone")
    assert len(api.requests) == 1


TRANSPORT_ERRORS: list[Exception] = [
    httpx2.ReadError("x"),
    httpx2.ReadTimeout("x"),
    httpx2.WriteError("x"),
    httpx2.RemoteProtocolError("x"),
    httpx2.DecodingError("x"),
]
NO_CONNECTION: list[Exception] = [
    httpx2.ConnectError("x"),
    httpx2.ConnectTimeout("x"),
    httpx2.PoolTimeout("x"),
]


@pytest.mark.parametrize("error", TRANSPORT_ERRORS + NO_CONNECTION, ids=lambda e: type(e).__name__)
async def test_a_get_is_sent_again_after_any_transport_error(error: Exception) -> None:
    api = Api(error, answer())
    assert (await api.client().get(f"{API}/a")).status == 200


@pytest.mark.parametrize("error", TRANSPORT_ERRORS, ids=lambda e: type(e).__name__)
async def test_a_post_of_unknown_outcome_is_not_sent_again(error: Exception) -> None:
    api = Api(error, answer())
    with pytest.raises(Unavailable, match="not known"):
        await api.client().request("POST", f"{API}/a", json={})
    assert len(api.requests) == 1
    api = Api(error, answer())
    await api.client().request("POST", f"{API}/a", json={}, is_idempotent=True)
    assert len(api.requests) == 2


@pytest.mark.parametrize("first", [*NO_CONNECTION, throttled()], ids=lambda e: type(e).__name__)
async def test_a_post_that_was_surely_not_carried_out_is_sent_again(first: Any) -> None:
    api = Api(first, answer())
    await api.client().request("POST", f"{API}/a", json={})
    assert len(api.requests) == 2


async def test_a_post_is_not_sent_again_after_a_server_error() -> None:
    api = Api(answer(503), answer())
    with pytest.raises(Unavailable):
        await api.client().request("POST", f"{API}/a", json={})
    assert len(api.requests) == 1


async def test_a_bug_is_no_transport_error() -> None:
    api = Api(RuntimeError("bug"))
    with pytest.raises(RuntimeError, match="bug"):
        await api.client().get(f"{API}/a")
    assert len(api.requests) == 1


async def test_each_wait_is_announced_and_cleared() -> None:
    api = Api(throttled("7"), throttled("3"), answer())
    Context(report_wait=lambda at, why: api.waits.append((at, why))).enter()
    await api.client().get(f"{API}/a?q={SECRET}")
    assert [at for at, _ in api.waits] == [
        NOW + timedelta(seconds=7),
        None,
        NOW + timedelta(seconds=3),
        None,
    ]
    assert "429" in api.waits[0][1]
    assert SECRET not in str(api.waits)


async def test_a_wait_that_is_cancelled_is_cleared() -> None:
    api = Api(throttled("7"))
    asleep = asyncio.Event()

    async def sleep(seconds: float) -> None:
        asleep.set()
        await asyncio.Event().wait()

    api.sleep = sleep  # type: ignore[method-assign]
    Context(report_wait=lambda at, why: api.waits.append((at, why))).enter()
    task = asyncio.create_task(api.client().get(f"{API}/a"))
    await asleep.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [at is None for at, _ in api.waits] == [False, True]


@given(st.one_of(st.none(), st.text(max_size=40), st.from_regex(r"[-+]?[0-9.e]{1,12}")))
def test_any_retry_after_is_a_positive_pause_or_none(header: str | None) -> None:
    pause = retry_after_seconds(header, NOW)
    assert pause is None or pause > 0


# 401


async def test_a_refused_token_is_renewed_once() -> None:
    tokens = Tokens()
    api = Api(answer(401), answer(body=1))
    assert (await api.client(authorizer=tokens).get(f"{API}/a")).json() == 1
    assert tokens.refused == [f"Bearer {SECRET}-1"]
    assert api.requests[1].headers["authorization"] == f"Bearer {SECRET}-2"
    assert api.slept == []


async def test_after_one_renewal_it_is_denied() -> None:
    tokens = Tokens()
    api = Api(answer(401))
    with pytest.raises(Denied, match="401"):
        await api.client(authorizer=tokens).get(f"{API}/a")
    assert len(api.requests) == 2
    assert len(tokens.refused) == 1


async def test_a_renewal_is_not_given_again_by_a_retry() -> None:
    tokens = Tokens()
    api = Api(answer(401), answer(503), answer(401))
    with pytest.raises(Denied):
        await api.client(authorizer=tokens).get(f"{API}/a")
    assert len(tokens.refused) == 1


async def test_without_another_token_it_is_denied_at_once() -> None:
    api = Api(answer(401))
    with pytest.raises(Denied):
        await api.client(authorizer=Tokens(0)).get(f"{API}/a")
    with pytest.raises(Denied):
        await api.client(authorizer=Tokens()).get(f"{API}/a", is_authorised=False)
    assert len(api.requests) == 2


# Answers


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"error": {"code": "Authorization_RequestDenied", "message": "m"}}, True),
        ({"errorCode": "Authorization_RequestDenied"}, True),
        ({"error_code": "Authorization_RequestDenied"}, True),
        ({"code": "Authorization_RequestDenied"}, True),
        ({"error": "Authorization_RequestDenied"}, True),
        ({"error": {"code": 5}}, "5"),
        ({"error": {"code": {"a": 1}}}, None),
        ({"error": {"code": True}}, None),
        ({"error": {}}, None),
        ({"error": ["a"]}, None),
        ({}, None),
        ([], None),
        ("error", None),
        (None, None),
    ],
)
def test_the_vendors_code_is_found(body: Any, code: str | bool | None) -> None:
    got = Answer("GET", API, 400, {}, httpx2.Response(400, json=body).content).error_code
    assert got == ("Authorization_RequestDenied" if code is True else code)


@given(st.binary(max_size=200))
def test_any_body_is_json_or_unavailable(body: bytes) -> None:
    got = Answer("GET", API, 200, {"content-type": "text/html\r\n"}, body)
    assert got.error_code is None or len(got.error_code) <= 100
    try:
        got.json()
    except Unavailable as error:
        text = str(error)
    else:
        text = ""
    assert text == "" or text.isprintable()


def test_json_may_begin_with_a_byte_order_mark() -> None:
    assert Answer("GET", API, 200, {}, b'\xef\xbb\xbf{"a":1}').json() == {"a": 1}


async def test_an_error_says_what_support_asks_for() -> None:
    api = Api(answer(403, {"error": {"code": "No\x1b[31m" + "x" * 500}}, x_ms_request_id="r-1"))
    with pytest.raises(Denied) as caught:
        await api.client().get(f"{API}/audit/logs?token={SECRET}#{SECRET}")
    text = str(caught.value)
    assert text.startswith(f"GET {API}/audit/logs: 403 (No?[31mxxx")
    assert "request id r-1" in text
    assert text.isprintable()
    assert len(text) < 300


# What is shown


async def test_nothing_shown_holds_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    api = Api(
        answer(401, body={"body": SECRET}, x_header=SECRET),
        throttled(),
        httpx2.LocalProtocolError(f"Illegal header value b'{SECRET}'"),
        httpx2.RemoteProtocolError(f"illegal header line: {SECRET}"),
        answer(403, body={"body": SECRET}, x_header=SECRET),
    )
    client = api.client(authorizer=Tokens())
    url = f"{API}/a?sig={SECRET}"
    with pytest.raises(Denied) as caught:
        await client.request("GET", url, headers={"x-key": SECRET}, json={"a": SECRET})
    got = await client.get(url, expect=[403])
    assert SECRET in got.body.decode()
    with pytest.raises(Unavailable) as not_json:
        Answer("GET", API, 200, {}, SECRET.encode()).json()
    shown = [
        *("".join(traceback.format_exception(error.value)) for error in (caught, not_json)),
        repr(client),
        repr(got),
        repr(HttpSettings(proxy=SecretStr(f"http://user:{SECRET}@127.0.0.1:9"))),
        caplog.text,
        *(str(record.__dict__) for record in caplog.records if record.name != "asyncio"),
    ]
    assert len(api.requests) == 6
    assert "403" in caplog.text
    assert SECRET not in "\n".join(shown)


def test_importing_the_sdk_imports_no_http_client() -> None:
    check = (
        "import sys, verity_sdk, verity_sdk.windows\n"
        "heavy = {'httpx2', 'aiohttp', 'azure'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_one_package_imports_the_http_client() -> None:
    root = Path(__file__).parents[3]
    importers = {
        str(path.relative_to(root))
        for folder in ("verity_sdk", "verity_common", "verity_stream", "connectors")
        for path in (root / folder).rglob("*.py")
        for line in path.read_text().splitlines()
        if line.split()[:1] in (["import"], ["from"])
        and line.split()[1].split(".")[0] in ("httpx", "httpx2", "requests")
    }
    assert importers == {"verity_sdk/http/connections.py", "verity_sdk/http/urls.py"}


# Settings


@pytest.mark.parametrize(
    "value", ["", "nonsense", f"user:{SECRET}", f"ftp://u:{SECRET}@h:1", f"http://u:{SECRET}@:x"]
)
def test_a_proxy_that_is_no_url_is_named_without_its_password(value: str) -> None:
    with pytest.raises(Misconfigured, match=r"http\.proxy") as caught:
        Api(answer()).client(proxy=SecretStr(value))
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("content", [None, b"", b"no certificate", b"\x00\xff"])
def test_a_ca_file_that_is_none_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Misconfigured, match=r"http\.ca_file.*ca\.pem"):
        HttpClient(HttpSettings(ca_file=path), platform="test", hosts=["a.example"])


@pytest.mark.parametrize(
    "table",
    [
        {"connect_timeout": 0},
        {"read_timeout": "0s"},
        {"budget_share": 0},
        {"budget_share": 1.1},
        {"connections_max": 0},
        {"answer_bytes_max": 0},
        {"proxies": "x"},
    ],
)
def test_settings_without_sense_are_refused(table: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        HttpSettings(**table)


# Listings


def link(got: Answer) -> str | None:
    found: str | None = got.json().get("next")
    return found


async def test_a_listing_is_followed_to_its_end_over_empty_pages() -> None:
    links = [f"{API}/a?$skiptoken='x%3D%3D'", f'{API}/a?$skiptoken="y"']
    api = Api(
        answer(body={"value": [1], "next": links[0]}),
        answer(body={"value": [], "next": links[1]}),
        answer(body={"value": [2]}),
    )
    pages = [got.json()["value"] async for got in follow(api.client(), f"{API}/a", link)]
    assert pages == [[1], [], [2]]
    assert [request.extensions["target"] for request in api.requests[1:]] == [
        b"/a?$skiptoken='x%3D%3D'",
        b'/a?$skiptoken="y"',
    ]


@pytest.mark.parametrize("again", [f"{API}/b", f"{API}/a?c=d%20e"])
async def test_a_link_that_comes_twice_is_no_listing(again: str) -> None:
    api = Api(answer(body={"next": f"{API}/b"}), answer(body={"next": again}))
    pages = follow(api.client(), f"{API}/a", link, params={"c": "d e"})
    assert [(await anext(pages)).status, (await anext(pages)).status] == [200, 200]
    with pytest.raises(Unavailable, match="twice"):
        await anext(pages)


async def test_a_listing_without_end_is_ended() -> None:
    class Endless(Api):
        def __call__(self, request: httpx2.Request) -> httpx2.Response:
            super().__call__(request)
            return answer(body={"next": f"{API}/{len(self.requests)}"})

    api = Endless(answer())
    with pytest.raises(Unavailable, match="more than 7 pages"):
        async for _ in follow(api.client(), f"{API}/0", link, pages_max=7):
            pass
    assert len(api.requests) == 7


async def test_a_link_to_a_stranger_is_refused() -> None:
    api = Api(answer(body={"next": "https://evil.example/"}))
    with pytest.raises(Misconfigured):
        async for _ in follow(api.client(authorizer=Tokens()), f"{API}/a", link):
            pass
    assert len(api.requests) == 1


async def test_a_listing_may_be_left_early() -> None:
    api = Api(answer(body={"next": f"{API}/b"}))
    async with aclosing(follow(api.client(), f"{API}/a", link)) as pages:  # type: ignore[type-var]
        async for _ in pages:
            break
    assert len(api.requests) == 1


# Budgets


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer: an hour of waiting takes no time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        select = self._selector.select  # type: ignore[attr-defined]

        def jump(timeout: float | None = None) -> Any:
            if timeout is None:
                raise AssertionError("everybody waits and no timer is set")
            self.now += max(timeout, 0.0)
            return select(0)

        self._selector.select = jump  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.now


def in_virtual_time(main: Callable[[], Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())


def most_in_any(stretch: float, times: list[float]) -> int:
    """The most of these times that lie in one half-open stretch of this length."""
    ordered = sorted(times)
    # What floating point makes of "exactly one stretch later" is no fault of the budget.
    return max(
        sum(1 for at in ordered[start:] if at < ordered[start] + stretch - 1e-6)
        for start in range(len(ordered))
    )


@settings(deadline=None, max_examples=60)
@given(
    requests=st.integers(1, 6),
    per=st.integers(500, 100_000).map(lambda number: timedelta(milliseconds=number)),
    share=st.floats(0.05, 1),
    calls=st.lists(
        st.tuples(st.floats(0, 50), st.floats(0, 20), st.floats(0, 1)), min_size=1, max_size=25
    ),
)
def test_never_more_requests_than_allowed_arrive_in_any_stretch(
    requests: int, per: timedelta, share: float, calls: list[tuple[float, float, float]]
) -> None:
    """Whenever within its time a request arrives at the vendor, and however they are timed."""
    arrived: list[float] = []

    async def call(start: float, seconds: float, part: float) -> None:
        await asyncio.sleep(start)
        budget = shared_budget(("stretch",), requests=requests, per=per, share=share)
        async with budget.slot():
            await asyncio.sleep(seconds * part)
            arrived.append(asyncio.get_running_loop().time())
            await asyncio.sleep(seconds * (1 - part))

    async def main() -> None:
        keep = shared_budget(("stretch",), requests=requests, per=per, share=share)
        await asyncio.gather(*(call(*one) for one in calls))
        del keep

    in_virtual_time(main)
    assert len(arrived) == len(calls)
    allowed = requests * share
    if allowed >= 1:
        assert most_in_any(per.total_seconds(), arrived) <= math.floor(allowed)
    else:
        assert most_in_any(per.total_seconds() / allowed, arrived) <= 1


def test_the_budget_is_used_to_the_full_and_in_order() -> None:
    started: list[tuple[int, float]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        budget = shared_budget(("full",), requests=5, per=timedelta(seconds=10))
        begin = loop.time()

        async def call(number: int) -> None:
            async with budget.slot():
                started.append((number, round(loop.time() - begin, 3)))

        await asyncio.gather(*(call(number) for number in range(12)))

    in_virtual_time(main)
    assert started == [(number, 10.0 * (number // 5)) for number in range(12)]


def test_no_more_at_once_than_allowed() -> None:
    async def main() -> int:
        budget = shared_budget(
            ("once",), requests=1000, per=timedelta(seconds=1), concurrent=9, share=0.4
        )
        running = most = 0

        async def call() -> None:
            nonlocal running, most
            async with budget.slot():
                running += 1
                most = max(most, running)
                await asyncio.sleep(1)
                running -= 1

        await asyncio.gather(*(call() for _ in range(10)))
        return most

    assert in_virtual_time(main) == 3


def test_who_waits_may_be_cancelled_and_who_fails_gives_its_place_back() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        budget = shared_budget(("cancel",), requests=1, per=timedelta(seconds=10), concurrent=1)

        async def call() -> float:
            async with budget.slot():
                at = loop.time()
                await asyncio.sleep(1)
                raise ConnectionError(at)

        begin = loop.time()
        tasks = [asyncio.create_task(call()) for _ in range(4)]
        await asyncio.sleep(0.5)
        tasks[1].cancel()  # at the head of the queue
        await asyncio.sleep(5)
        tasks[2].cancel()  # waits for its time
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(ended[1], asyncio.CancelledError)
        assert isinstance(ended[2], asyncio.CancelledError)
        assert isinstance(ended[3], ConnectionError)
        started: float = ended[3].args[0]
        return started - begin

    assert in_virtual_time(main) == pytest.approx(11)


def test_one_key_is_one_budget_and_all_limits_hold() -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        one = shared_budget(("both",), requests=2, per=timedelta(seconds=1))
        assert shared_budget(("both",), requests=3, per=timedelta(seconds=60)) is one
        assert shared_budget(("another",), requests=3, per=timedelta(seconds=60)) is not one
        begin = loop.time()
        started = []
        for _ in range(4):
            async with one.slot():
                started.append(round(loop.time() - begin, 3))
        return started

    assert in_virtual_time(main) == [0, 0, 1, 60]


def test_a_long_wait_for_the_budget_is_announced_and_cleared() -> None:
    waits: list[tuple[datetime | None, str]] = []

    async def main() -> None:
        Context(report_wait=lambda at, why: waits.append((at, why))).enter()
        slow = shared_budget(("tenant", "slow"), requests=1, per=timedelta(minutes=5))
        quick = shared_budget(("tenant", "quick"), requests=1, per=timedelta(seconds=0.5))
        for budget in (quick, quick, slow, slow):
            async with budget.slot():
                pass

    before = datetime.now(UTC)
    in_virtual_time(main)
    assert len(waits) == 2
    until, why = waits[0]
    assert until is not None
    assert timedelta(minutes=4) < until - before < timedelta(minutes=6)
    assert "tenant/slow" in why
    assert waits[1][0] is None


def test_each_event_loop_counts_by_itself() -> None:
    budget = shared_budget(("loops",), requests=1, per=timedelta(hours=1))

    async def main() -> float:
        begin = asyncio.get_running_loop().time()
        async with budget.slot():
            return asyncio.get_running_loop().time() - begin

    assert [in_virtual_time(main) for _ in range(3)] == [0, 0, 0]


@pytest.mark.parametrize(
    "numbers",
    [{"requests": 0}, {"per": timedelta(0)}, {"share": 0}, {"share": 2}, {"concurrent": 0}],
)
def test_a_budget_of_nothing_is_a_bug(numbers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no budget"):
        shared_budget(("x",), **{"requests": 1, "per": timedelta(seconds=1), **numbers})


def test_the_time_of_the_tries_counts_for_the_retry_budget() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def slow(request: httpx2.Request) -> httpx2.Response:
        await asyncio.sleep(30)
        return throttled("1", 503)

    async def main() -> float:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        client = HttpClient(
            HttpSettings(retry_budget=100),
            platform="test",
            hosts=["api.example.com"],
            sleep=sleep,
            transport=httpx2.MockTransport(slow),
        )
        with pytest.raises(Unavailable):
            await client.get(f"{API}/a")
        return loop.time() - begin

    spent = in_virtual_time(main)
    # The fourth try begins at 93 s and has the seven that are left.
    assert slept == [1, 1, 1]
    assert spent + sum(slept) == pytest.approx(100)


def test_waiting_for_the_turn_does_not_count_for_the_retry_budget() -> None:
    api = Api(throttled("1"), throttled("1"), answer())

    async def main() -> int:
        client = HttpClient(
            HttpSettings(retry_budget=10),
            platform="test",
            hosts=["api.example.com"],
            budget=shared_budget(("turns",), requests=1, per=timedelta(minutes=5)),
            sleep=api.sleep,
            transport=httpx2.MockTransport(api),
        )
        return (await client.get(f"{API}/a")).status

    assert in_virtual_time(main) == 200
    assert api.slept == [1, 1]


async def test_every_try_takes_a_turn_and_no_wait_holds_one() -> None:
    held: list[bool] = []
    api = Api(throttled("1"), throttled("1"), answer())

    class Counting:
        turns = 0
        is_held = False

        def slot(self) -> Any:
            return self

        async def __aenter__(self) -> None:
            self.turns += 1
            self.is_held = True

        async def __aexit__(self, *_: object) -> None:
            self.is_held = False

    budget = Counting()

    async def sleep(seconds: float) -> None:
        held.append(budget.is_held)

    client = HttpClient(
        HttpSettings(),
        platform="test",
        hosts=["api.example.com"],
        budget=budget,
        sleep=sleep,
        transport=httpx2.MockTransport(api),
    )
    await client.get(f"{API}/a")
    assert budget.turns == 3
    assert held == [False, False]
