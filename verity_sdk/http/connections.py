"""Connections to an API, and what becomes of one exchange: the module that speaks HTTP (httpx2)."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import ssl
from collections.abc import Mapping
from functools import cache, lru_cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any, NoReturn

import httpx2

from verity_sdk.errors import Denied, Misconfigured
from verity_sdk.http.answers import Answer
from verity_sdk.http.retries import TryAgain
from verity_sdk.http.settings import HttpSettings
from verity_sdk.http.shown import printable
from verity_sdk.http.urls import Target

# httpx2 logs every URL with its query at INFO, httpcore2 the answer's headers at DEBUG; both
# may hold what an event or a link holds. An operator who wants them sets the level himself.
for _library in ("httpx2", "httpcore2"):
    logging.getLogger(_library).setLevel(logging.WARNING)

KEEP_ALIVE_SECONDS = 15.0


class Connections:
    """Those of one client.

    Args:
        platform: For the User-Agent.
        transport: An httpx2 transport, handed in by unit tests.

    Raises:
        Misconfigured: `http.proxy` or `http.ca_file` can't be used.
    """

    def __init__(self, settings: HttpSettings, platform: str, transport: Any) -> None:
        self._answer_bytes_max = settings.answer_bytes_max
        self._client = _client(settings, platform, transport)

    async def exchange(
        self,
        method: str,
        target: Target,
        *,
        content: bytes | None,
        headers: Mapping[str, str],
        seconds: float,
        is_idempotent: bool,
    ) -> Answer:
        """Send once, and read the answer to its end, whatever its status.

        Args:
            seconds: For all of it.
            is_idempotent: Whether it may be sent again where the outcome is not known.

        Raises:
            TryAgain: It failed in a way that another try may not.
            Denied: A certificate or a proxy that refuses; an answer that is too long.
        """
        try:
            async with asyncio.timeout(seconds):
                return await self._answer(method, target, content, headers)
        except (httpx2.RequestError, httpx2.InvalidURL, TimeoutError) as error:
            where = f"{method} {target.shown}"
            _raise_transport_error(error, where, seconds, is_idempotent=is_idempotent)

    async def _answer(
        self, method: str, target: Target, content: bytes | None, headers: Mapping[str, str]
    ) -> Answer:
        request = self._client.build_request(
            method,
            target.url,
            content=content,
            headers=headers,
            # The URL class normalises quotes and dots; what goes out is this.
            extensions={"target": target.path_and_query},
        )
        response = await self._client.send(request, stream=True)
        try:
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > self._answer_bytes_max:
                    raise Denied(
                        f"{method} {target.shown}: the answer is longer than "
                        f"http.answer_bytes_max ({self._answer_bytes_max} bytes)"
                    )
        finally:
            await response.aclose()
        return Answer(
            method=method,
            url=target.shown,
            status=response.status_code,
            headers={name.lower(): value for name, value in response.headers.items()},
            body=bytes(body),
        )

    async def close(self) -> None:
        """Close all of them."""
        await self._client.aclose()


def _raise_transport_error(
    error: Exception, where: str, seconds: float, *, is_idempotent: bool
) -> NoReturn:
    """Who must act when no answer came; the texts of protocol errors quote headers, and stay out.

    Raises:
        Denied: A certificate that is not trusted, a proxy that refuses.
        TryAgain: Anything else.
    """
    name = type(error).__name__
    if isinstance(error, httpx2.ConnectError):
        if _is_certificate_error(error):
            raise Denied(
                f"{where}: the certificate is not trusted ({printable(str(error))}); where a "
                "proxy signs anew, name its certificate in http.ca_file"
            ) from error
        raise TryAgain(f"{where}: no connection ({printable(str(error))})") from error
    if isinstance(error, httpx2.ConnectTimeout | httpx2.PoolTimeout):
        raise TryAgain(f"{where}: no connection in time ({name})") from error
    if isinstance(error, httpx2.ProxyError):
        text = printable(str(error))
        if text.startswith("407"):
            raise Denied(f"{where}: the proxy refuses the credential in http.proxy") from error
        raise TryAgain(f"{where}: the proxy gives no connection ({text})") from error
    unknown = "" if is_idempotent else "; whether it was carried out is not known"
    if isinstance(error, TimeoutError):
        raise TryAgain(
            f"{where}: no complete answer within {seconds:.3g} s{unknown}",
            may_be_repeated=is_idempotent,
        ) from error
    again = TryAgain(
        f"{where}: no complete answer ({name}){unknown}", may_be_repeated=is_idempotent
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
                f"http.ca_file: {settings.ca_file} is not a readable PEM file of certificates "
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
        headers={"user-agent": f"verity-stream/{_version()} ({printable(platform)})"},
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
def _trust_in(_file: str, _changed_at_ns: int, _size_bytes: int) -> ssl.SSLContext:
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
        raise Misconfigured("http.proxy is not a URL such as http://user:password@host:port")
    if proxy.url.scheme == "https" and isinstance(verify, ssl.SSLContext):
        proxy.ssl_context = verify
    return proxy


@cache
def _version() -> str:
    try:
        return importlib.metadata.version("verity-stream")
    except importlib.metadata.PackageNotFoundError:
        return "0"
