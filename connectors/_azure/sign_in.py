"""Signing in to Entra ID: one identity, a token for each of its scopes, clients that carry them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from connectors._azure.credential import AzureCredential, azure_default_credential, explained
from verity_sdk.auth import ClientCredentials
from verity_sdk.context import Context
from verity_sdk.http import Authorizer, Budget, HttpClient, HttpSettings, encoded
from verity_sdk.settings import ConnectorSettings

LOGIN_URL = "https://login.microsoftonline.com"
"""The issuer of tokens of the public cloud."""
TENANT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9.-]*$"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who signs in.

    Attributes:
        tenant_id: The tenant, by its id or a domain of it.
        client_id: The application's id; without a secret that of a user-assigned managed identity,
            or empty.
        client_secret: The application's. None: whatever azure-identity's DefaultAzureCredential
            finds (a managed or workload identity, a certificate).
        login_url: The issuer of tokens.
    """

    tenant_id: str
    client_id: str
    client_secret: SecretStr | None
    login_url: str

    @property
    def token_url(self) -> str:
        """Where an application asks for its token."""
        return f"{self.login_url}/{encoded(self.tenant_id)}/oauth2/v2.0/token"

    @property
    def name(self) -> str:
        """Whose budget its requests count against."""
        return f"{self.tenant_id}/{self.client_id or 'azure'}"


class IdentitySettings(ConnectorSettings):
    """How a connector signs in, as its table of `verity.toml` says it."""

    tenant_id: str = Field(
        pattern=TENANT_PATTERN, description="The tenant's id, or one of its verified domains."
    )

    client_id: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9-]*$",
        description="The app registration's application (client) id; with credential `azure`, "
        "that of a user-assigned managed identity, if it is one.",
    )
    client_secret: SecretStr | None = Field(
        default=None, description="The app registration's secret; needed by credential `secret`."
    )
    credential: Literal["secret", "azure"] = Field(
        default="secret",
        description="`secret`: client_secret. `azure`: azure-identity's DefaultAzureCredential "
        "(managed or workload identity, certificate); needs the extra `azure`.",
    )

    @model_validator(mode="after")
    def _has_a_credential(self) -> IdentitySettings:
        if self.credential == "secret":
            require_secret(self, "credential `secret`")
        elif self.client_secret is not None:
            raise ValueError("client_secret is for credential `secret` only")
        return self


def require_secret(settings: Any, needed_by: str) -> None:
    """Refuse settings without the application's id or its secret.

    Raises:
        ValueError: One of them is missing; pydantic turns it into a settings error.
    """
    for name in ("client_id", "client_secret"):
        if not getattr(settings, name):
            raise ValueError(f"{name} is missing: {needed_by} needs it")


class SignIn:
    """The clients of one connector that go by one identity; they are closed together.

    Args:
        identity: Who signs in.
        http: For the login, and for every client that is not given others.
        platform: For log lines and the User-Agent.
        context: The connector's.
    """

    def __init__(
        self, identity: Identity, http: HttpSettings, *, platform: str, context: Context
    ) -> None:
        self.identity = identity
        self.http = http
        self._options: dict[str, Any] = {"platform": platform, "context": context}
        self._authorizers: dict[str, Authorizer] = {}
        self._clients: list[HttpClient] = []
        self._login: HttpClient | None = None
        self._credential: Any = None

    def authorizer(self, scope: str) -> Authorizer:
        """What gives the tokens of a scope; one object for all who name the same.

        Raises:
            Misconfigured: azure-identity is asked for and not installed.
        """
        if scope not in self._authorizers:
            self._authorizers[scope] = self._make(scope)
        return self._authorizers[scope]

    def client(
        self,
        url: str,
        scope: str,
        *,
        hosts: Collection[str] = (),
        budget: Budget | None = None,
        http: HttpSettings | None = None,
    ) -> HttpClient:
        """A client of the API at a URL, authorised.

        Args:
            url: Its root.
            scope: Of its tokens.
            hosts: Hosts besides that of the URL that the token may be sent to.
            budget: None where no budget is documented.
            http: In place of those of all.

        Raises:
            Misconfigured: As `authorizer`, or a host is none.
        """
        client = HttpClient(
            http or self.http,
            hosts=[urlsplit(url).netloc, *hosts],
            authorizer=self.authorizer(scope),
            budget=budget,
            **self._options,
        )
        self._clients.append(client)
        return client

    async def close(self) -> None:
        """Close all connections; what is asked for afterwards is new."""
        closing = [one for one in (*self._clients, self._login, self._credential) if one]
        self._clients, self._authorizers = [], {}
        self._login = self._credential = None
        for one in closing:
            await one.close()

    def _make(self, scope: str) -> Authorizer:
        identity = self.identity
        if identity.client_secret is None:
            if self._credential is None:
                self._credential = azure_default_credential(
                    authority=identity.login_url,
                    managed_identity_client_id=identity.client_id or None,
                )
            return AzureCredential(self._credential, scope)
        if self._login is None:
            host = urlsplit(identity.login_url).netloc
            self._login = HttpClient(self.http, hosts=[host], **self._options)
        return ClientCredentials(
            self._login,
            token_url=identity.token_url,
            client_id=identity.client_id,
            client_secret=identity.client_secret,
            scope=scope,
            explain=explained,
        )
