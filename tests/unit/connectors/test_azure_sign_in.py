"""Signing in to Entra ID: azure-identity, what a refusal means, one credential for many scopes."""

from __future__ import annotations

import builtins
from importlib import import_module
from types import ModuleType
from typing import Any

import azure.identity.aio
import pytest
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError
from azure.identity import CredentialUnavailableError
from pydantic import SecretStr, ValidationError

from connectors._azure import sign_in as sign_in_module
from connectors._azure.credential import AzureCredential, azure_default_credential, explained
from connectors._azure.sign_in import LOGIN_URL, Identity, IdentitySettings, SignIn
from verity_sdk.auth import ClientCredentials
from verity_sdk.context import Context
from verity_sdk.errors import Denied, Misconfigured, Unavailable
from verity_sdk.http import Answer, HttpSettings

SECRET = "s3cr3t"


class Credential:
    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome
        self.scopes: list[tuple[str, ...]] = []
        self.is_closed = False

    async def get_token(self, *scopes: str) -> Any:
        self.scopes.append(scopes)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return type("AccessToken", (), {"token": self.outcome})

    async def close(self) -> None:
        self.is_closed = True


async def test_azure_tokens_are_passed_on() -> None:
    credential = Credential("token")
    azure_credential = AzureCredential(credential, "scope")
    assert await azure_credential.authorization() == "Bearer token"
    assert credential.scopes == [("scope",)]
    assert [await azure_credential.renew(token) for token in "aabb"] == [True, False, True, False]
    await azure_credential.close()
    assert credential.is_closed


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (ClientAuthenticationError(f"AADSTS7000222: {SECRET}"), Denied, "secret has expired"),
        (ClientAuthenticationError("AADSTS12345: x"), Denied, "AADSTS12345"),
        (CredentialUnavailableError("no managed identity\nmore"), Denied, "no managed identity"),
        (ServiceRequestError("x"), Unavailable, "ServiceRequestError"),
        (TimeoutError(), Unavailable, "no token within"),
        (RuntimeError("bug"), RuntimeError, "bug"),
    ],
)
async def test_azures_errors_are_sorted(
    error: Exception, expected: type[Exception], text: str
) -> None:
    with pytest.raises(expected, match=text) as caught:
        await AzureCredential(Credential(error), "scope").authorization()
    assert SECRET not in str(caught.value)


async def test_azures_default_credential() -> None:
    credential = azure_default_credential(
        authority="https://login.microsoftonline.us/", managed_identity_client_id="id"
    )
    assert isinstance(credential, azure.identity.aio.DefaultAzureCredential)
    await credential.close()
    with pytest.raises(Misconfigured):
        azure_default_credential(authority="http://login.example.com")


@pytest.mark.parametrize("missing", ["azure.identity.aio", "aiohttp"])
def test_without_the_extra_it_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == missing:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    def no_aiohttp(self: Any, **options: Any) -> None:
        raise ImportError("aiohttp package is not installed")

    if missing == "aiohttp":
        monkeypatch.setattr(azure.identity.aio.DefaultAzureCredential, "__init__", no_aiohttp)
    else:
        monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Misconfigured, match=r"verity-stream\[azure\]"):
        azure_default_credential()


def test_a_credential_is_shown_without_its_token() -> None:
    assert "t1" not in repr(AzureCredential(Credential("t1"), "s"))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"AADSTS7000222: x", ("AADSTS7000222", "the client secret has expired")),
        (b"AADSTS12345: x", ("AADSTS12345", "")),
        (b"invalid_client", None),
    ],
)
def test_entras_codes_are_explained(body: bytes, expected: Any) -> None:
    answer = Answer(method="POST", url=LOGIN_URL, status=401, headers={}, body=body)
    assert explained(answer) == expected


# Who signs in


def sign_in(secret: str | None = SECRET, **identity: Any) -> SignIn:
    fields = {"tenant_id": "t", "client_id": "c", "login_url": LOGIN_URL, **identity}
    return SignIn(
        Identity(client_secret=None if secret is None else SecretStr(secret), **fields),
        HttpSettings(),
        platform="test",
        context=Context(),
    )


async def test_a_secret_serves_every_scope_by_one_login() -> None:
    one = sign_in(tenant_id="a/b")
    first, second = one.authorizer("a"), one.authorizer("b")
    assert first is one.authorizer("a")
    assert first is not second
    assert isinstance(first, ClientCredentials)
    client = one.client("https://api.example.com/v1", "a", hosts=["*.example.org"])
    assert "api.example.com" in repr(client)
    assert "*.example.org" in repr(client)
    assert SECRET not in repr([one.identity, client, first])
    await one.close()
    assert one.authorizer("a") is not first, "after it was closed another one begins"
    await one.close()


async def test_without_a_secret_azure_identity_serves_every_scope(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[tuple[Any, Credential]] = []

    def make(**options: Any) -> Credential:
        made.append((options, Credential("token")))
        return made[-1][1]

    monkeypatch.setattr(sign_in_module, "azure_default_credential", make)
    one = sign_in(None, client_id="")
    for scope in ("a", "b"):
        assert await one.authorizer(scope).authorization() == "Bearer token"
    ((options, credential),) = made
    assert options == {"authority": LOGIN_URL, "managed_identity_client_id": None}
    assert credential.scopes == [("a",), ("b",)]
    await one.close()
    assert credential.is_closed
    assert one.identity.name == "t/azure"


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({}, "client_id is missing: credential `secret` needs it"),
        ({"client_id": "c"}, "client_secret is missing"),
        ({"client_id": "c", "client_secret": ""}, "client_secret is missing"),
        ({"credential": "azure", "client_secret": SECRET}, "for credential `secret` only"),
        ({"credential": "azure", "tenant_id": "-t"}, "tenant_id"),
    ],
)
def test_settings_that_can_not_sign_in_are_refused(fields: dict[str, str], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault) as raised:
        IdentitySettings.model_validate({"connector_id": "a", "tenant_id": "t", **fields})
    assert SECRET not in str(raised.value)


# Where it was


@pytest.mark.parametrize(
    ("old", "name", "new"),
    [
        ("verity_sdk.auth", "AzureCredential", "connectors._azure.credential"),
        ("verity_sdk.auth", "azure_default_credential", "connectors._azure.credential"),
        ("verity_sdk.log_analytics", "LogAnalytics", "connectors._azure.log_analytics"),
        ("verity_sdk.log_analytics", "API_URL", "connectors._azure.log_analytics"),
        ("verity_sdk.log_analytics", "ResourceId", "connectors._azure.log_analytics"),
    ],
)
def test_the_names_of_old_lead_here_and_warn(old: str, name: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"{old}.{name} is {new}.{name} now"):
        found = getattr(import_module(old), name)
    assert found is getattr(import_module(new), name)


def test_every_public_name_of_log_analytics_leads_here() -> None:
    new = import_module("connectors._azure.log_analytics")
    public = [
        name
        for name, value in vars(new).items()
        if not name.startswith("_")
        and name != "workspace_of"  # It is new.
        and getattr(value, "__module__", new.__name__) == new.__name__
        and not isinstance(value, ModuleType)
    ]
    assert len(public) > 15
    for name in public:
        with pytest.warns(DeprecationWarning, match=name):
            assert getattr(import_module("verity_sdk.log_analytics"), name) is getattr(new, name)
