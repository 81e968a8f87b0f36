"""An answer of the API: read completely, and described without what is secret."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from verity_sdk.errors import Unavailable
from verity_sdk.http.shown import printable
from verity_sdk.values import loads

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
            Unavailable: It is not JSON (a proxy's page, a body cut short).
        """
        try:
            return loads(self.body)
        except ValueError:
            # Without its cause: the decoder's error carries the document.
            kind = printable(self.headers.get("content-type", ""), _CODE_CHARACTERS_MAX)
            raise Unavailable(
                f"{described(self)}: {len(self.body)} bytes that are not JSON "
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
                shown = printable(str(candidate), _CODE_CHARACTERS_MAX)
                if shown:
                    return shown
        return None

    @property
    def request_id(self) -> str | None:
        """What the vendor's support asks for, from whichever header it came in."""
        for name in _REQUEST_ID_HEADERS:
            shown = printable(self.headers.get(name, ""), _CODE_CHARACTERS_MAX)
            if shown:
                return shown
        return None


def described(answer: Answer) -> str:
    """What was asked and answered, with the vendor's code and request id of an error."""
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
