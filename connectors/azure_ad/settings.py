"""The settings of one Entra ID tenant: a table of `verity.toml`, validated."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import Field, field_validator

from connectors._azure.sign_in import LOGIN_URL, Identity, IdentitySettings
from verity_sdk.http import HttpSettings
from verity_sdk.settings import Duration, UrlOrDefault

PLATFORM = "azure_ad"
LOOKBACK = timedelta(hours=24)
RETENTION = timedelta(days=30)
# Microsoft staff: "typically less than 15 minutes after the event" (microsoft-graph-docs#6101).
SETTLE = timedelta(minutes=15)

Cloud = Literal["public", "usgov", "china"]
SignIns = Literal["interactive", "non_interactive", "service_principal", "managed_identity"]

# MS Learn graph/deployments, read 2026-11-24: the token service's and Graph's root of each cloud.
# The US Government's L5 (DoD) shares the login with L4; its Graph is https://dod-graph.microsoft.us.
_LOGIN_URLS: dict[Cloud, str] = {
    "public": LOGIN_URL,
    "usgov": "https://login.microsoftonline.us",
    "china": "https://login.chinacloudapi.cn",
}
_GRAPH_URLS: dict[Cloud, str] = {
    "public": "https://graph.microsoft.com",
    "usgov": "https://graph.microsoft.us",
    "china": "https://microsoftgraph.chinacloudapi.cn",
}
# These stand for any tenant; an application that signs in as itself has to name one.
_NOT_A_TENANT = frozenset({"common", "organizations", "consumers"})


class Settings(IdentitySettings):
    """What the connector needs to know about the tenant it observes."""

    cloud: Cloud = Field(default="public", description="Derives login_url and graph_url.")
    login_url: UrlOrDefault = Field(
        default="", description="The token service. Default: of the cloud."
    )
    graph_url: UrlOrDefault = Field(
        default="",
        description="Microsoft Graph. Default: of the cloud. The US Government's DoD has "
        "https://dod-graph.microsoft.us.",
    )
    sign_ins: list[SignIns] = Field(
        default=["interactive"],
        description="Which sign-ins are collected besides the audit records; needs Entra ID P1 or "
        "P2. All but `interactive` are served by Graph's /beta only. [] where there is no licence.",
    )
    retention: Duration = Field(
        default=RETENTION,
        gt=timedelta(0),
        description="How far back the tenant keeps its logs: 30d with P1 or P2, 7d on Free. Set "
        "longer than the tenant's, days that it no longer has are taken for quiet ones.",
    )
    settle: Duration = Field(
        default=SETTLE,
        description="A pass ends this far behind now: Microsoft gives no number for how late its "
        "logs are.",
    )
    lookback: Duration = Field(
        default=LOOKBACK,
        description="How far back is read again every 24 hours, for what arrived late.",
    )
    slice_pages: int = Field(
        default=100,
        ge=1,
        le=400,
        description="Pages of up to 1,000 records read of one slice of time; a longer slice is "
        "halved. At 5 requests in 10 s, 100 pages take 200 s: stay below fetch_timeout.",
    )
    pim: bool = Field(
        default=True,
        description="Read active and eligible assignments of Privileged Identity Management; "
        "needs P2. False where the tenant has none: else its snapshots stay partial.",
    )
    group_members_from: Literal["beta", "v1.0"] = Field(
        default="beta",
        description="Graph version that lists the members of groups. v1.0 is documented to leave "
        "out service principals; with it, snapshots stay partial.",
    )
    http: HttpSettings = Field(
        default_factory=HttpSettings,
        description="Timeouts, proxy, certificates, share of the vendor's budget.",
    )

    @field_validator("tenant_id")
    @classmethod
    def _is_one_tenant(cls, tenant_id: str) -> str:
        if tenant_id.lower() in _NOT_A_TENANT:
            raise ValueError("name one tenant: an application can't sign in to any")
        return tenant_id

    @field_validator("sign_ins")
    @classmethod
    def _are_named_once(cls, sign_ins: list[SignIns]) -> list[SignIns]:
        if len(set(sign_ins)) != len(sign_ins):
            raise ValueError("each kind of sign-in once")
        return sign_ins

    @property
    def login(self) -> str:
        """The token service's root, without a slash at the end."""
        return self.login_url or _LOGIN_URLS[self.cloud]

    @property
    def graph(self) -> str:
        """Microsoft Graph's root, without version and without a slash at the end."""
        return self.graph_url or _GRAPH_URLS[self.cloud]

    @property
    def identity(self) -> Identity:
        """Who signs in."""
        return Identity(self.tenant_id, self.client_id, self.client_secret, self.login)

    @property
    def scope(self) -> str:
        """All application permissions that were consented to; of this cloud's Graph."""
        return f"{self.graph}/.default"
