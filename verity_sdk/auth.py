"""Credentials for HTTP APIs: client credentials and fixed tokens."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias
from urllib.parse import quote_plus

from pydantic import SecretStr

from verity_sdk.deprecation import moved
from verity_sdk.errors import Denied, Misconfigured, Unavailable, VerityError
from verity_sdk.http import Answer, HttpClient

LIFETIME_ASSUMED = timedelta(minutes=10)
"""Of a token whose answer does not say how long it lives (RFC 6749, 5.1 only recommends it)."""
LIFETIME_MAX = timedelta(hours=24)
RENEWAL_PAUSE = timedelta(seconds=30)
"""A token that still lives is used so long, after its renewal failed, before it is tried again."""

_TRANSIENT = frozenset({"temporarily_unavailable", "server_error", "slow_down"})

Explain: TypeAlias = Callable[[Answer], tuple[str, str] | None]
"""The vendor's own code in a refusal, and what it means ("": not known). None: it has none."""


@dataclass(frozen=True, slots=True)
class _Token:
    """An access token; `usable_until` is earlier than `ends_at`, so that it is renewed in time."""

    value: str
    usable_until: datetime
    ends_at: datetime

    def __repr__(self) -> str:
        return f"_Token(ends_at={self.ends_at})"


class ClientCredentials:
    """OAuth 2.0 client credentials (RFC 6749, 4.4): an `Authorizer`.

    The token is cached and renewed `early` before it ends, one request at a time however many
    wait; they share its outcome. While the issuer does not answer, a token that has not ended
    serves on. A refused credential opens a circuit: for `probe_every` every caller gets the same
    `Denied` without a request, then one probe goes out.

    Args:
        client: For the token endpoint: without an authorizer, its host allowed.
        token_url: The issuer's token endpoint.
        scope: For example `https://graph.microsoft.com/.default`.
        style: Where id and secret go: the form, or HTTP Basic.
        explain: Reads the issuer's own codes in a refusal.
        clock: In place of the client's.
    """

    def __init__(
        self,
        client: HttpClient,
        *,
        token_url: str,
        client_id: str,
        client_secret: SecretStr,
        scope: str,
        style: Literal["form", "basic"] = "form",
        early: timedelta = timedelta(minutes=5),
        probe_every: timedelta = timedelta(minutes=5),
        explain: Explain | None = None,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self._client = client
        self._token_url = token_url
        self._client_id = client_id
        self._client_secret = client_secret
        self._scope = scope
        self._style = style
        self._early = early
        self._probe_every = probe_every
        self._explain = explain
        self._clock = client.clock if clock is None else clock
        self._turn = asyncio.Lock()
        self._token: _Token | None = None
        self._denied_text = ""
        self._denied_at: datetime | None = None
        self._renewal_not_before: datetime | None = None
        # Which request for a token was the last to end, and how, for those who waited for it.
        self._round = 0
        self._failure: VerityError | None = None

    def __repr__(self) -> str:
        return f"ClientCredentials(scope={self._scope!r})"

    async def authorization(self) -> str:
        """`Bearer …`.

        Raises:
            Denied: The issuer refuses the credential, or did so within `probe_every`.
            Unavailable: The issuer does not answer, or not with a token.
        """
        if (value := self._ready()) is not None:
            return value
        asked_in = self._round
        # Whoever is cancelled in here leaves the turn to the next one, who asks anew.
        async with self._turn:
            if (value := self._ready()) is not None:
                return value
            if self._round != asked_in and self._failure is not None:
                raise _anew(self._failure)
            return await self._renewed()

    async def renew(self, refused: str) -> bool:
        """Drop the refused token; false while the circuit is open: there is no other then."""
        if self._token is not None and _bearer(self._token.value) == refused:
            self._token = None
        # Where another caller dropped it before, its successor is ready or under way.
        return not self._is_circuit_open()

    def _ready(self) -> str | None:
        """The header if there is nothing to ask for; raises while the circuit is open."""
        if self._is_circuit_open():
            raise Denied(self._denied_text)
        token, now = self._token, self._clock()
        if token is None or now >= token.ends_at:
            return None
        may_renew = self._renewal_not_before is None or now >= self._renewal_not_before
        return None if now >= token.usable_until and may_renew else _bearer(token.value)

    def _is_circuit_open(self) -> bool:
        if self._denied_at is None:
            return False
        # A clock that was set back meanwhile does not keep it open for so much longer.
        return timedelta(0) <= self._clock() - self._denied_at < self._probe_every

    async def _renewed(self) -> str:
        started_at = self._clock()
        try:
            self._token = await self._ask(started_at)
        except Denied as error:
            self._denied_text = str(error)
            self._denied_at = self._clock()
            self._fail(error)
            raise
        except Unavailable as error:
            self._renewal_not_before = self._clock() + RENEWAL_PAUSE
            if self._token is not None and self._clock() < self._token.ends_at:
                return _bearer(self._token.value)
            self._fail(error)
            raise
        self._round += 1
        self._failure = self._denied_at = self._renewal_not_before = None
        return _bearer(self._token.value)

    def _fail(self, error: VerityError) -> None:
        self._round += 1
        self._failure = error

    async def _ask(self, started_at: datetime) -> _Token:
        form = {"grant_type": "client_credentials", "scope": self._scope}
        headers = {"accept": "application/json"}
        secret = self._client_secret.get_secret_value()
        if self._style == "basic":
            # RFC 6749, 2.3.1: both parts are form-encoded before they are joined.
            pair = f"{quote_plus(self._client_id)}:{quote_plus(secret)}"
            headers["authorization"] = _basic(pair)
        else:
            form |= {"client_id": self._client_id, "client_secret": secret}
        answer = await self._client.request(
            "POST",
            self._token_url,
            form=form,
            headers=headers,
            expect=(400, 401),
            is_idempotent=True,
        )
        if answer.status in (400, 401):
            _refuse(answer, self._explain)
        body = answer.json()
        value = body.get("access_token") if isinstance(body, dict) else None
        if not isinstance(value, str) or not value:
            raise Unavailable(f"{answer.method} {answer.url}: an answer without access_token")
        lifetime = _lifetime(body.get("expires_in"))
        # Of a short token at least half its life is used.
        usable = max(lifetime - self._early, lifetime / 2)
        return _Token(value, started_at + usable, started_at + lifetime)


class FixedAuthorization:
    """A header that never changes: a personal access token, an API key, HTTP Basic.

    Build it with `bearer` or `basic`; its repr shows nothing.
    """

    def __init__(self, value: SecretStr) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "FixedAuthorization()"

    @classmethod
    def bearer(cls, token: SecretStr) -> FixedAuthorization:
        """`Bearer {token}`."""
        return cls(SecretStr(_bearer(token.get_secret_value())))

    @classmethod
    def basic(cls, user: str | SecretStr, password: str | SecretStr) -> FixedAuthorization:
        """HTTP Basic (RFC 7617), UTF-8.

        Raises:
            Misconfigured: The user has a colon, which the scheme can't carry.
        """
        user, password = _plain(user), _plain(password)
        if ":" in user:
            raise Misconfigured("a user name of HTTP Basic can't have a colon")
        return cls(SecretStr(_basic(f"{user}:{password}")))

    async def authorization(self) -> str:
        """The value."""
        return self._value.get_secret_value()

    async def renew(self, refused: str) -> bool:
        """False: there is no other."""
        return False


def _refuse(answer: Answer, explain: Explain | None) -> NoReturn:
    """Who must act on an OAuth error (RFC 6749, 5.2); its description is not shown."""
    where = f"{answer.method} {answer.url}: {answer.status}"
    code = answer.error_code or "no error code"
    details = [code]
    if code in _TRANSIENT:
        raise Unavailable(f"{where} ({code})")
    own_code, meaning = (explain and explain(answer)) or ("", "")
    if own_code:
        details.append(own_code)
    if answer.request_id:
        details.append(f"request id {answer.request_id}")
    meaning = meaning or "the issuer refuses the credential"
    raise Denied(f"{where} ({', '.join(details)}): {meaning}")


def _lifetime(expires_in: Any) -> timedelta:
    """Seconds as a number or, as some issuers send it, as text."""
    try:
        seconds = 0.0 if isinstance(expires_in, bool) else float(expires_in)
    except (TypeError, ValueError, OverflowError):
        return LIFETIME_ASSUMED
    if not seconds > 0:
        return LIFETIME_ASSUMED
    return timedelta(seconds=min(seconds, LIFETIME_MAX.total_seconds()))


def _anew(error: VerityError) -> VerityError:
    """The same error for another caller: one instance raised twice would chain their traces."""
    if isinstance(error, Unavailable):
        return Unavailable(str(error), retry_after_seconds=error.retry_after_seconds)
    return type(error)(str(error))


def _bearer(token: str) -> str:
    return f"Bearer {token}"


def _basic(pair: str) -> str:
    return f"Basic {base64.b64encode(pair.encode()).decode('ascii')}"


def _plain(value: str | SecretStr) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


if not TYPE_CHECKING:
    # Above this package, so only by name, and only when it is asked for.
    __getattr__ = moved(
        __name__,
        {
            "AzureCredential": "connectors._azure.credential.AzureCredential",
            "azure_default_credential": "connectors._azure.credential.azure_default_credential",
            "AZURE_SECONDS_MAX": "connectors._azure.credential.AZURE_SECONDS_MAX",
        },
    )
