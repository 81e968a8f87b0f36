"""The settings of one Fabric tenant: a table of `verity.toml`, validated."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, SecretStr, model_validator

from connectors._azure.sign_in import LOGIN_URL, TENANT_PATTERN, Identity, require_secret
from verity_sdk.http import HttpSettings
from verity_sdk.settings import ConnectorSettings, Duration, Url

PLATFORM = "fabric"

DAY = timedelta(hours=24)
# Late by 24 hours, and not seen for another four until the next look back.
LOOKBACK = timedelta(hours=28)
SETTLE = timedelta(minutes=60)
SLICE_MAX = timedelta(hours=1)
# Users of FUAM got 400 for day 29 (microsoft/fabric-toolbox issues 97, 117, 156); older
# documentation says 30 days.
RETENTION = timedelta(days=28)


class Settings(ConnectorSettings):
    """What the connector needs to know about the tenant it observes."""

    tenant_id: str = Field(
        pattern=TENANT_PATTERN, description="The Entra ID tenant: its id or a domain of it."
    )
    authentication: Literal["client_secret", "azure_identity"] = Field(
        "client_secret",
        description="`azure_identity`: whatever DefaultAzureCredential finds (managed or workload "
        "identity, certificate); needs the extra `azure`.",
    )
    client_id: str = Field("", description="The application's (client) id.")
    client_secret: SecretStr | None = Field(None, description="The application's secret.")

    login_url: Url = Field(LOGIN_URL, description="Issuer of tokens; national clouds differ.")
    power_bi_url: Url = Field("https://api.powerbi.com", description="Power BI REST API.")
    fabric_url: Url = Field("https://api.fabric.microsoft.com", description="Fabric REST API.")
    graph_url: Url = Field("https://graph.microsoft.com", description="Microsoft Graph.")
    continuation_hosts: list[str] = Field(
        default_factory=lambda: ["*.analysis.windows.net"],
        description="Hosts besides those above that a `continuationUri` may lead to; the bearer "
        "is sent there. Power BI continues on its regional hosts.",
    )
    power_bi_scope: str = Field(
        "https://analysis.windows.net/powerbi/api/.default", description="Scope of Power BI tokens."
    )
    # UNCONFIRMED: whether the admin APIs want this audience or Power BI's; both are in use.
    fabric_scope: str = Field(
        "https://api.fabric.microsoft.com/.default", description="Scope of Fabric tokens."
    )
    graph_scope: str = Field(
        "https://graph.microsoft.com/.default", description="Scope of Graph tokens."
    )

    settle: Duration = Field(
        SETTLE, description="A pass ends this far behind now: Microsoft says up to 60 minutes."
    )
    lateness: Duration = Field(
        DAY, description="How late Microsoft says an event may come: `complete_through` waits."
    )
    relook: Duration = Field(timedelta(hours=2), description="How far back every pass reads again.")
    lookback: Duration = Field(
        LOOKBACK,
        description="How far back is read again every `lookback_every`; no less than `lateness` "
        "and `lookback_every` together.",
    )
    lookback_every: Duration = Field(
        timedelta(hours=4),
        description="How often `lookback` is read again: each of its hours is a request or more of "
        "the 200 an hour, so not in every pass.",
    )
    slice_max: Annotated[Duration, Field(gt=timedelta(0), le=DAY)] = Field(
        SLICE_MAX, description="Longest window of one request; up to `24h` to catch up faster."
    )
    slice_events_max: int = Field(
        200_000, ge=1, description="Most events of a window kept in memory; it is halved beyond."
    )
    advance_min: Duration = Field(
        timedelta(minutes=10),
        description="A pass that would read less new time than this asks nothing, and spends "
        "nothing of the budget; `poll_every` may be short.",
    )
    retention: Duration = Field(RETENTION, description="How far back the tenant's events go.")
    silence_after: Annotated[Duration, Field(gt=timedelta(0))] = Field(
        DAY, description="No event of the whole tenant for so long is warned of."
    )
    activity_requests_per_hour: int = Field(
        200, ge=1, description="Microsoft's limit for activity events, a tenant."
    )

    snapshot_source: Literal["scanner", "admin_api"] = Field(
        "scanner",
        description="`scanner`: Power BI's scanner, in bulk. `admin_api`: Fabric's admin API "
        "(preview), one request per workspace and item: for small tenants.",
    )
    personal_workspaces: bool = Field(True, description="Snapshot personal workspaces, too.")
    workspaces_per_scan: int = Field(100, ge=1, le=100, description="Microsoft's limit is 100.")
    scans_concurrent: int = Field(4, ge=1, le=16, description="Microsoft's limit is 16.")
    scan_timeout: Annotated[Duration, Field(gt=timedelta(0))] = Field(
        timedelta(minutes=15), description="A scan that takes longer is a gap of the snapshot."
    )
    admin_requests_per_hour: int = Field(
        200, ge=1, description="Microsoft's limit for each operation of the Fabric admin API."
    )
    expand_groups: bool = Field(
        False,
        description="Also a row for every member of a group that holds a grant; needs Graph's "
        "application permission GroupMember.Read.All.",
    )
    group_members_max: int = Field(
        100_000, ge=1, description="A group with more members is a gap of the snapshot."
    )

    http: Annotated[HttpSettings, Field(strict=False)] = Field(
        default_factory=HttpSettings, description="Proxy, time limits, budget share."
    )

    @model_validator(mode="after")
    def _looks_back_far_enough(self) -> Settings:
        # An event may become visible just after a look back, and must still be in the next one.
        if self.lookback < self.lateness + self.lookback_every:
            raise ValueError(
                "lookback must be at least lateness and lookback_every together, or an event that "
                "comes late is missed"
            )
        return self

    @model_validator(mode="after")
    def _has_a_credential(self) -> Settings:
        if self.authentication == "client_secret":
            require_secret(self, "authentication `client_secret`")
        return self

    @property
    def identity(self) -> Identity:
        """Who signs in; azure-identity is not told of an application."""
        has_secret = self.authentication == "client_secret"
        client_id, secret = (self.client_id, self.client_secret) if has_secret else ("", None)
        return Identity(self.tenant_id, client_id, secret, self.login_url)
