"""URLs: encoded, taken apart as they are checked, shown and sent, and their hosts allowed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode

import httpx2

from verity_sdk.errors import Misconfigured
from verity_sdk.http.shown import printable, shown_url
from verity_sdk.settings import is_loopback

SURROGATES = "surrogatepass"
"""How half of a surrogate pair is encoded: it must not raise, and the server refuses it."""
ORIGIN = re.compile(r"(https?)://([^/?#\\\s]+)", re.IGNORECASE)
"""How an absolute URL begins."""


def with_params(url: str, params: Mapping[str, str] | None) -> str:
    """The URL with these parameters percent-encoded: a space as %20, `$` as it is."""
    if not params:
        return url
    if "?" in url or "#" in url:
        raise ValueError("with params the URL must have no query and no fragment of its own")
    query = urlencode(params, quote_via=quote, safe="$", errors=SURROGATES)
    return f"{url}?{query}"


def encoded(text: str) -> str:
    """A text percent-encoded whole, as one segment of a path or one value of a query.

    Never raises: an id with half of a surrogate pair, which UTF-8 has no bytes for, goes out in
    those it would have. The server refuses it, and the caller loses that record and no other.
    """
    return quote(text, safe="", errors=SURROGATES)


@dataclass(frozen=True, slots=True)
class Target:
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
        """What a redirect must not leave, for a credential to go with it."""
        return self.scheme, self.host

    @classmethod
    def parse(cls, url: str) -> Target:
        """The URL's parts.

        Raises:
            Misconfigured: It is not an absolute http or https URL, or has a password in it.
        """
        match = ORIGIN.match(url)
        if match is None:
            raise Misconfigured(f"{shown_url(url)} is not an absolute http or https URL")
        if "@" in match[2]:
            raise Misconfigured("a URL with a user or password in it is not sent")
        rest = url[match.end() :].partition("#")[0]
        if not rest.startswith("/"):
            rest = "/" + rest
        # No request line may hold these; all else stays as it came.
        rest = "".join(
            character if "!" <= character <= "~" else quote(character, errors=SURROGATES)
            for character in rest
        )
        try:
            # The host as the library that connects understands it, so that both mean the same.
            parsed = httpx2.URL(match[0] + rest)
            name = parsed.raw_host.decode("ascii")
        except (httpx2.InvalidURL, UnicodeError) as error:
            raise Misconfigured(f"{shown_url(url)} is not a usable URL") from error
        if not name:
            raise Misconfigured(f"{shown_url(url)} names no host")
        shown_name = f"[{name}]" if ":" in name else name
        host = shown_name if parsed.port is None else f"{shown_name}:{parsed.port}"
        return cls(
            url=match[0] + rest,
            scheme=parsed.scheme,
            host=host,
            is_loopback=is_loopback(name),
            path_and_query=rest.encode("ascii"),
            shown=printable(f"{parsed.scheme}://{host}{rest.partition('?')[0]}"),
        )


def host_pattern(host: str) -> str:
    """An allowed host as `matches` compares it.

    Raises:
        Misconfigured: It is not a host.
    """
    pattern = host.strip().lower()
    name = pattern.removeprefix("*.")
    if not name or "*" in name or re.search(r"[/?#@\\\s]", name):
        raise Misconfigured(f"{host!r} is not a host such as api.example.com or *.example.com")
    return pattern.removesuffix(":443")


def matches(host: str, pattern: str) -> bool:
    """Whether a host is allowed by a pattern; `*.example.com` allows every host below."""
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return host == pattern
