"""The HTTP client against servers: bytes on the wire, redirects, broken answers, proxies, TLS."""

from __future__ import annotations

import asyncio
import gzip
import logging
import ssl
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpcore2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fakes.kit import Clock, Fault, Faults, dropped, http_fault, serving
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from verity_sdk.auth import FixedAuthorization
from verity_sdk.context import Context
from verity_sdk.errors import Denied, Misconfigured, Unavailable
from verity_sdk.http import Answer, HttpClient, HttpSettings

SECRET = "s3cr3t-t0ken"
HANGING = b"hanging"


def raw(status: str, body: bytes = b"", *headers: str) -> bytes:
    """An answer as bytes."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class RawServer:
    """Answers with the bytes it is given, one a request; the last again and again."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.requests: list[str] = []  # complete, as they came
        self.connection_count = 0
        self.port = 0
        self.is_asked = asyncio.Event()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def header(self, name: str, number: int = -1) -> str | None:
        for line in self.requests[number].split("\r\n\r\n")[0].split("\r\n")[1:]:
            key, _, value = line.partition(": ")
            if key.lower() == name:
                return value
        return None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connection_count += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                text = head.decode("latin-1")
                length = [
                    int(line.split(": ")[1])
                    for line in text.split("\r\n")
                    if line.lower().startswith("content-length: ")
                ]
                body = await reader.readexactly(length[0]) if length else b""
                self.requests.append(text + body.decode("latin-1"))
                self.is_asked.set()
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if answer.startswith(HANGING):
                    writer.write(answer[len(HANGING) :])
                    await asyncio.sleep(30)
                writer.write(answer)
                await writer.drain()
                if b"Connection: close" in answer:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Any]]:
    """Starts raw servers; all of them are stopped at the end of the test."""
    tasks: set[asyncio.Task[None]] = set()

    async with AsyncExitStack() as stack:

        async def start(*answers: bytes, tls: ssl.SSLContext | None = None) -> RawServer:
            raw_server = RawServer(*answers)

            def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                task = asyncio.create_task(raw_server.serve(reader, writer))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

            server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
            raw_server.port = server.sockets[0].getsockname()[1]
            stack.callback(server.close)
            return raw_server

        try:
            yield start
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def client(
    *hosts: str, token: str | None = SECRET, slept: list[float] | None = None, **http: Any
) -> AsyncIterator[HttpClient]:
    async def sleep(seconds: float) -> None:
        assert slept is not None
        slept.append(seconds)

    made = HttpClient(
        HttpSettings(**{"retry_budget": 5, "read_timeout": 5, **http}),
        platform="test",
        hosts=hosts,
        authorizer=None if token is None else FixedAuthorization.bearer(SecretStr(token)),
        sleep=None if slept is None else sleep,
    )
    try:
        yield made
    finally:
        await made.close()


Start = Callable[..., Any]


# On the wire


@pytest.mark.parametrize(
    "target",
    [
        "/a?$skiptoken='abc%3D%3D'&b=\"c\"",
        "/a/../b/./c?d=e%2fF+g",
        "/a%2Fb?x=[1]{2}|^`\\",
        "/?",
        "/a?",
        "/a;b=c?d=%zz",
    ],
)
async def test_a_link_arrives_byte_for_byte(start: Start, target: str) -> None:
    server = await start(raw("200 OK", b"{}"))
    async with client(server.host) as http:
        await http.get(server.url + target)
    assert server.requests[0].startswith(f"GET {target} HTTP/1.1\r\n")


async def test_parameters_arrive_as_odata_wants_them(start: Start) -> None:
    server = await start(raw("200 OK", b"{}"))
    async with client(server.host) as http:
        await http.get(f"{server.url}/a", params={"$filter": "t ge 2026-01-01 and n eq 'ä+b'"})
    assert server.requests[0].startswith(
        "GET /a?$filter=t%20ge%202026-01-01%20and%20n%20eq%20%27%C3%A4%2Bb%27 HTTP/1.1\r\n"
    )
    assert server.header("host") == server.host
    assert server.header("authorization") == f"Bearer {SECRET}"


async def test_connections_are_kept_and_cookies_are_not(start: Start) -> None:
    server = await start(raw("200 OK", b"{}", "Set-Cookie: a=b; Path=/"))
    async with client(server.host) as http:
        for _ in range(3):
            await http.get(f"{server.url}/a")
    assert server.connection_count == 1
    assert all("cookie" not in request.lower() for request in server.requests)


async def test_the_environment_decides_nothing(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password word\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server = await start(raw("200 OK", b"{}"))
    async with client(server.host, token=None) as http:
        await http.get(f"{server.url}/a")
    assert server.header("authorization") is None


# Redirects


@pytest.mark.parametrize("status", ["301 x", "302 x", "303 x", "307 x", "308 x"])
async def test_a_redirect_within_the_origin_keeps_the_header(start: Start, status: str) -> None:
    server = await start(raw(status, b"", "Location: /b?c='d'"), raw("200 OK", b"{}"))
    async with client(server.host) as http:
        got = await http.get(f"{server.url}/a", headers={"Prefer": "x"})
    assert got.url == f"{server.url}/b"
    assert server.requests[1].startswith("GET /b?c='d' HTTP/1.1\r\n")
    assert server.header("authorization") == f"Bearer {SECRET}"
    assert server.header("prefer") == "x"


async def test_a_redirect_to_another_origin_drops_what_is_secret(start: Start) -> None:
    other = await start(raw("200 OK", b"{}"))
    server = await start(raw("302 x", b"", f"Location: {other.url}/b"))
    async with client(server.host, other.host) as http:
        await http.get(f"{server.url}/a", headers={"X-Api-Key": SECRET, "Accept": "text/csv"})
    assert SECRET in server.requests[0]
    assert SECRET not in other.requests[0]
    assert other.header("accept") == "text/csv"


async def test_a_redirect_back_does_not_bring_the_header_back(start: Start) -> None:
    server, other = await start(b""), await start(b"")
    server.answers = [raw("302 x", b"", f"Location: {other.url}/b"), raw("200 OK", b"{}")]
    other.answers = [raw("302 x", b"", f"Location: {server.url}/c")]
    async with client(server.host, other.host) as http:
        await http.get(f"{server.url}/a")
    assert server.header("authorization", 1) is None


@pytest.mark.parametrize("where", ["{stranger}/b", "//{host}/b", "https://evil.example/", "ftp:x"])
async def test_a_redirect_to_a_stranger_is_not_followed(start: Start, where: str) -> None:
    stranger = await start(raw("200 OK", b"{}"))
    location = where.format(stranger=stranger.url, host=stranger.host)
    server = await start(raw("302 x", b"", f"Location: {location}"))
    async with client(server.host) as http:
        with pytest.raises(Misconfigured):
            await http.get(f"{server.url}/a")
    assert stranger.requests == []


async def test_the_sixth_redirect_is_not_followed(start: Start) -> None:
    server = await start(raw("302 x", b"", "Location: /a"))
    async with client(server.host) as http:
        with pytest.raises(Denied, match="5 redirects"):
            await http.get(f"{server.url}/a")
    assert len(server.requests) == 6


async def test_a_post_keeps_its_body_where_the_status_says_so(start: Start) -> None:
    server = await start(raw("307 x", b"", "Location: /b"), raw("200 OK", b"{}"))
    async with client(server.host) as http:
        await http.request("POST", f"{server.url}/a", json={"c": 1})
    assert server.requests[1].startswith("POST /b ")
    assert server.requests[1].endswith('{"c":1}')


@pytest.mark.parametrize("status", ["301 x", "302 x"])
async def test_a_post_is_not_turned_into_a_get_without_a_word(start: Start, status: str) -> None:
    server = await start(raw(status, b"", "Location: /b"), raw("200 OK", b"{}"))
    async with client(server.host) as http:
        with pytest.raises(Denied, match="loses its body"):
            await http.request("POST", f"{server.url}/a", json={"c": 1})
    assert len(server.requests) == 1


async def test_see_other_turns_a_post_into_a_get(start: Start) -> None:
    server = await start(raw("303 x", b"", "Location: /b"), raw("200 OK", b"{}"))
    async with client(server.host) as http:
        await http.request("POST", f"{server.url}/a", json={"c": 1})
    assert server.requests[1].startswith("GET /b ")
    assert '{"c":1}' not in server.requests[1]


async def test_no_body_goes_to_another_origin(start: Start) -> None:
    other = await start(raw("200 OK", b"{}"))
    server = await start(raw("307 x", b"", f"Location: {other.url}/b"))
    async with client(server.host, other.host) as http:
        with pytest.raises(Denied, match="body"):
            await http.request("POST", f"{server.url}/a", form={"client_secret": SECRET})
    assert other.requests == []


# Answers that fail


CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\n{"
CUT_CHUNK = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\n[1,2,\r\n"
)
BAD_GZIP = raw("200 OK", b"no gzip", "Content-Encoding: gzip")
NO_HTTP = b"SSH-2.0-x Connection: close\r\n\r\n"
BAD_HEADER = b"HTTP/1.1 200 OK\r\n" + SECRET.encode() + b" x\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "broken", [CUT, CUT_CHUNK, BAD_GZIP, NO_HTTP, BAD_HEADER], ids=lambda b: repr(b[:24])
)
async def test_a_broken_answer_is_asked_for_again(
    start: Start, broken: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    slept: list[float] = []
    server = await start(broken, raw("200 OK", b"[1]"))
    async with client(server.host, slept=slept) as http:
        assert (await http.get(f"{server.url}/a")).json() == [1]
    assert len(slept) == 1
    server.answers = [broken]
    async with client(server.host, slept=slept) as http:
        with pytest.raises(Unavailable) as caught:
            await http.get(f"{server.url}/a?b={SECRET}")
        count = len(server.requests)
        with pytest.raises(Unavailable, match="not known"):
            await http.request("POST", f"{server.url}/a?b={SECRET}", json={"c": SECRET})
    assert len(server.requests) == count + 1
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in caplog.text


@pytest.mark.parametrize("beginning", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"])
async def test_a_server_that_hangs_is_left(start: Start, beginning: bytes) -> None:
    slept: list[float] = []
    server = await start(HANGING + beginning, raw("200 OK", b"[1]"))
    async with client(server.host, slept=slept, read_timeout="1s") as http:
        assert (await http.get(f"{server.url}/a")).json() == [1]
    assert len(slept) == 1


async def test_an_answer_that_trickles_ends_with_the_budget(start: Start) -> None:
    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            try:
                await writer.drain()
            except ConnectionError:
                return
            await asyncio.sleep(0.02)

    server = await asyncio.start_server(trickle, "127.0.0.1", 0)
    host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    options = {"read_timeout": "200ms", "connect_timeout": "200ms", "retry_budget": "500ms"}
    async with server, client(host, **options) as http:
        async with asyncio.timeout(30):
            with pytest.raises(Unavailable, match=r"within 0\.5 s"):
                await http.get(f"http://{host}/a")


async def test_nobody_listens(start: Start) -> None:
    slept: list[float] = []
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    async with client(host, slept=slept) as http:
        with pytest.raises(Unavailable, match="no connection") as caught:
            await http.request("POST", f"http://{host}/a?b={SECRET}", json={})
    assert slept
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "answer",
    [
        raw("200 OK", b"x" * 5000),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"3e8\r\n" + b"x" * 1000
        + b"\r\n3e8\r\n" + b"x" * 1000 + b"\r\n0\r\n\r\n",
        raw("200 OK", gzip.compress(b"x" * 50_000_000), "Content-Encoding: gzip"),
    ],
    ids=["length", "chunked", "gzip"],
)  # fmt: skip
async def test_an_answer_that_is_too_long_is_not_kept(start: Start, answer: bytes) -> None:
    server = await start(answer)
    async with client(server.host, answer_bytes_max=1999, connections_max=1) as http:
        with pytest.raises(Denied, match=r"http\.answer_bytes_max"):
            await http.get(f"{server.url}/a")
        assert len(server.requests) == 1
        server.answers = [raw("200 OK", b"[" + b" " * 1997 + b"]")]
        assert (await http.get(f"{server.url}/a")).json() == []


async def test_a_cancelled_request_leaves_the_client_usable(start: Start) -> None:
    server = await start(HANGING, raw("200 OK", b"[1]"))
    async with client(server.host, connections_max=1) as http:
        task = asyncio.create_task(http.get(f"{server.url}/a"))
        await server.is_asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await http.get(f"{server.url}/a")).json() == [1]


async def test_a_pause_is_slept_without_a_sleep_handed_in(start: Start) -> None:
    waits: list[datetime | None] = []
    Context(report_wait=lambda at, why: waits.append(at)).enter()
    server = await start(raw("429 x", b"", "Retry-After: 0.3"), raw("200 OK", b"[1]"))
    async with client(server.host) as http:
        before = asyncio.get_running_loop().time()
        assert (await http.get(f"{server.url}/a")).json() == [1]
        assert asyncio.get_running_loop().time() - before >= 0.3
    assert len(waits) == 2
    assert waits[0] is not None
    assert waits[1] is None


# The kit's faults


async def test_each_fault_of_the_kit_is_survived() -> None:
    faults, clock = Faults(), Clock()
    body = {"value": list(range(100))}

    async def values(request: Request) -> Response:
        if faults.take(Fault.DROPPED):
            return dropped(JSONResponse(body))
        return http_fault(faults, clock) or JSONResponse(body)

    slept: list[float] = []
    with serving(Starlette(routes=[Route("/values", values)])) as url:
        async with client(url.removeprefix("http://"), slept=slept) as http:
            for fault in (
                Fault.THROTTLED_SECONDS,
                Fault.THROTTLED_DATE,
                Fault.THROTTLED_BARE,
                Fault.UNAVAILABLE,
                Fault.DROPPED,
            ):
                faults.inject(fault)
                count = len(slept)
                assert (await http.get(f"{url}/values")).json() == body
                assert faults.are_over
                assert len(slept) == count + 1, fault
            faults.inject(Fault.NOT_JSON)
            with pytest.raises(Unavailable, match="not JSON"):
                (await http.get(f"{url}/values")).json()


# Proxies


async def test_a_proxy_is_asked_for_the_whole_url(start: Start) -> None:
    proxy = await start(raw("200 OK", b"[1]"))
    url = SecretStr(f"http://user:{SECRET}@{proxy.host}")
    async with client("127.0.0.1:9", token=None, proxy=url) as http:
        assert (await http.get("http://127.0.0.1:9/a?b='c'")).json() == [1]
    assert proxy.requests[0].startswith("GET http://127.0.0.1:9/a?b='c' HTTP/1.1\r\n")
    assert proxy.header("proxy-authorization", 0) is not None


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_refuses_is_for_the_operator(
    start: Start, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    proxy = await start(raw("407 Proxy Authentication Required"))
    url = SecretStr(f"http://user:{SECRET}@{proxy.host}")
    async with client("127.0.0.1:9", proxy=url) as http:
        with pytest.raises(Denied, match=r"http\.proxy") as caught:
            await http.get(f"{scheme}://127.0.0.1:9/a")
    assert len(proxy.requests) == 1
    assert SECRET not in "".join(traceback.format_exception(caught.value)) + caplog.text


async def test_no_token_is_shown_to_a_proxy(start: Start) -> None:
    proxy = await start(raw("502 Bad Gateway"))
    slept: list[float] = []
    async with client("127.0.0.1:9", proxy=SecretStr(proxy.url), slept=slept) as http:
        with pytest.raises(Unavailable, match="proxy"):
            await http.get("https://127.0.0.1:9/a?b=c")
    assert slept
    assert all(request.startswith("CONNECT 127.0.0.1:9 ") for request in proxy.requests)
    assert SECRET not in "".join(proxy.requests)


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return self_signed(tmp_path_factory.mktemp("tls"))


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    ca_file, key_file = folder / "ca.pem", folder / "key.pem"
    ca_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return ca_file, key_file


async def test_a_certificate_counts_only_where_it_is_trusted(
    start: Start, certificate: tuple[Path, Path]
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = await start(raw("200 OK", b"[1]"), tls=context)
    async with client(server.host, ca_file=certificate[0]) as http:
        assert (await http.get(f"https://{server.host}/a")).json() == [1]
    async with client(server.host) as http:
        with pytest.raises(Denied, match=r"http\.ca_file"):
            await http.get(f"https://{server.host}/a")
    assert len(server.requests) == 1


async def test_what_the_system_trusts_is_read_once_and_again_where_it_has_changed(
    start: Start, certificate: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = await start(raw("200 OK", b"[1]"), tls=context)
    trusted, read_count, read = self_signed(tmp_path)[0], 0, httpcore2.default_ssl_context

    def counted(**options: Any) -> ssl.SSLContext:
        nonlocal read_count
        read_count += 1
        return read(**options)

    paths = ssl.get_default_verify_paths()._replace(
        openssl_cafile=str(trusted), openssl_capath=str(tmp_path / "none")
    )
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths)
    monkeypatch.setattr(httpcore2, "default_ssl_context", counted)
    for _ in range(2):
        async with client(server.host) as http:
            with pytest.raises(Denied, match="the certificate is not trusted"):
                await http.get(f"https://{server.host}/a")
    assert read_count == 1
    trusted.write_bytes(certificate[0].read_bytes() + b"\n")
    async with client(server.host) as http:
        assert (await http.get(f"https://{server.host}/a")).json() == [1]


async def test_an_answer_shows_neither_body_nor_headers(start: Start) -> None:
    server = await start(raw("200 OK", SECRET.encode(), f"X-A: {SECRET}"))
    async with client(server.host) as http:
        got = await http.get(f"{server.url}/a?b={SECRET}")
    assert isinstance(got, Answer)
    assert got.headers["x-a"] == SECRET
    assert SECRET not in repr(got)
