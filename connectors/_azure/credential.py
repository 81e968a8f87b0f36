"""Tokens of azure-identity, and what Entra ID says where it refuses."""

from __future__ import annotations

import asyncio
import re
from typing import Any, NoReturn

from verity_sdk.errors import Denied, Misconfigured, Unavailable
from verity_sdk.http import Answer

AZURE_SECONDS_MAX = 120.0

_AADSTS = re.compile(r"AADSTS[0-9]{4,12}", re.ASCII)
# "Microsoft Entra authentication and authorization error codes", MS Learn, read 2026-11-24.
_AADSTS_MEANINGS = {
    "AADSTS7000215": "the client secret is wrong (its value is needed, not its id)",
    "AADSTS7000222": "the client secret has expired",
    "AADSTS700016": "the tenant does not know the application (client id)",
    "AADSTS90002": "there is no such tenant",
    "AADSTS53003": "a Conditional Access policy blocks it",
}


def explained(answer: Answer) -> tuple[str, str] | None:
    """Entra ID's code in a refusal, and what it means; "" where that is not known.

    For `ClientCredentials(explain=…)`.
    """
    found = _AADSTS.search(answer.body[:65_536].decode("utf-8", "replace"))
    return None if found is None else (found[0], _AADSTS_MEANINGS.get(found[0], ""))


class AzureCredential:
    """Any `azure.core.credentials_async.AsyncTokenCredential`; needs the extra `azure`.

    It asks the credential for every request: azure-identity caches and renews by itself.

    Args:
        credential: With `async get_token(scope)`, for example of `azure_default_credential`.
        scope: The resource's scope.
    """

    def __init__(self, credential: Any, scope: str) -> None:
        self._credential = credential
        self._scope = scope
        self._refused: str | None = None

    def __repr__(self) -> str:
        return f"AzureCredential({type(self._credential).__name__}, scope={self._scope!r})"

    async def authorization(self) -> str:
        """`Bearer …`.

        Raises:
            Denied: No identity is available here, or the issuer refuses it.
            Unavailable: The issuer or the metadata service does not answer.
        """
        try:
            async with asyncio.timeout(AZURE_SECONDS_MAX):
                token = await self._credential.get_token(self._scope)
        except TimeoutError as error:
            raise Unavailable(f"{self!r}: no token within {AZURE_SECONDS_MAX:g} s") from error
        except Exception as error:  # noqa: BLE001 - azure's own types are sorted below
            _raise_azure_error(error, self)
        return f"Bearer {token.token}"

    async def renew(self, refused: str) -> bool:
        """Azure's credentials cache by themselves: true once for each refused token."""
        is_first = refused != self._refused
        self._refused = refused
        return is_first

    async def close(self) -> None:
        """Close the credential's own connections."""
        close = getattr(self._credential, "close", None)
        if close is not None:
            await close()


def azure_default_credential(
    *, authority: str | None = None, managed_identity_client_id: str | None = None
) -> Any:
    """azure-identity's DefaultAzureCredential, for `AzureCredential`: one serves many scopes.

    It takes what the machine offers: a workload identity, a managed identity, or what the
    `AZURE_…` variables name (a certificate, for example). Its owner closes it.

    Args:
        authority: The login host of a national cloud, as a host or an https URL.
        managed_identity_client_id: A user-assigned identity, where there are several.

    Raises:
        Misconfigured: The extra `azure` is not installed, or the authority is not https.
    """
    options: dict[str, Any] = {}
    if authority is not None:
        options["authority"] = authority
    if managed_identity_client_id is not None:
        options["managed_identity_client_id"] = managed_identity_client_id
    try:
        from azure.identity.aio import DefaultAzureCredential

        # aiohttp is looked for when a credential is made, not when the module is imported.
        return DefaultAzureCredential(**options)
    except ImportError as error:
        raise Misconfigured(
            "managed and workload identities need azure-identity and aiohttp: install "
            "verity-stream[azure]"
        ) from error
    except ValueError as error:
        raise Misconfigured(f"azure-identity refuses its settings: {_first_line(error)}") from error


def _raise_azure_error(error: Exception, credential: AzureCredential) -> NoReturn:
    """Sort an error of azure-identity by who must act; what is none of its goes on as it is."""
    try:
        from azure.core.exceptions import AzureError, ClientAuthenticationError
    except ImportError:
        raise error from None
    if isinstance(error, ClientAuthenticationError):
        code = _AADSTS.search(str(error))
        text = _AADSTS_MEANINGS.get(code[0]) if code else None
        shown = f"{code[0]}: {text or 'refused'}" if code else _first_line(error)
        raise Denied(f"{credential!r}: {shown}") from error
    if isinstance(error, AzureError):
        raise Unavailable(f"{credential!r}: {type(error).__name__}") from error
    raise error


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return "".join(character if character.isprintable() else "?" for character in line)[:200]
