"""The settings of one Synapse workspace: a table of `verity.toml`, validated."""

from __future__ import annotations

from datetime import timedelta
from typing import Final, Literal

from pydantic import (
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from connectors._azure import log_analytics
from connectors._azure.log_analytics import LAG_MAX, WAIT_MAX, ResourceId, WorkspaceId
from connectors._azure.sign_in import LOGIN_URL, Identity, IdentitySettings
from verity_sdk.http import HttpSettings
from verity_sdk.settings import Duration, Url

PLATFORM = "synapse"

Table = Literal[
    "SQLSecurityAuditEvents", "SynapseRbacOperations", "SynapseBuiltinSqlPoolRequestsEnded"
]
SQL_AUDIT: Final = "SQLSecurityAuditEvents"
RBAC_OPERATIONS: Final = "SynapseRbacOperations"
SERVERLESS_REQUESTS: Final = "SynapseBuiltinSqlPoolRequestsEnded"
TABLES: tuple[Table, ...] = (SQL_AUDIT, RBAC_OPERATIONS, SERVERLESS_REQUESTS)
CATEGORIES: dict[Table, str] = {
    SQL_AUDIT: "SQLSecurityAuditEvents",
    RBAC_OPERATIONS: "SynapseRbacOperations",
    SERVERLESS_REQUESTS: "BuiltinSqlReqsEnded",
}
"""The diagnostic category behind each table (MS Learn, supported logs of
Microsoft.Synapse/workspaces, read 2026-11-24)."""

LOOKBACK = timedelta(days=3)
SETTLE = timedelta(minutes=5)
_WORKSPACE_TYPE = "/providers/microsoft.synapse/workspaces/"


class Settings(IdentitySettings):
    """What the connector needs to know about the workspace it observes."""

    model_config = ConfigDict(strict=False)

    workspace_id: WorkspaceId = Field(description="The Log Analytics workspace's id, a GUID.")
    resource_id: ResourceId = Field(
        description="/subscriptions/…/resourceGroups/…/providers/Microsoft.Synapse/workspaces/…"
    )
    tables: tuple[Table, ...] = Field(
        TABLES, min_length=1, description="The tables of Log Analytics to read."
    )
    rows_max: int = Field(
        20_000, ge=1, le=500_000, description="Rows per query; a slice with more is halved."
    )
    query_timeout: Duration = Field(
        WAIT_MAX, gt=timedelta(0), le=WAIT_MAX, description="How long a query may run."
    )
    slice_max: Duration = Field(
        timedelta(hours=1),
        ge=timedelta(seconds=1),
        description="Longest time that a request spans.",
    )
    settle: Duration = Field(
        SETTLE, description="A pass ends this far behind now, in time of ingestion."
    )
    relook: Duration = Field(
        timedelta(minutes=10),
        le=timedelta(hours=12),
        description="How far back every pass reads again, in time of ingestion.",
    )
    lateness: Duration = Field(
        LAG_MAX,
        description="How far `complete_through` stays behind what was read. The default is the "
        "vendor's bound on how long after its time an event may be ingested.",
    )
    lookback: Duration = Field(
        LOOKBACK,
        description="How far back ids are remembered so that repeats are dropped. At least the "
        "vendor's 2 d and `relook`.",
    )
    retention: Duration = Field(
        timedelta(days=30),
        description="How long the workspace keeps rows for interactive queries; what is older at "
        "the first start is a gap.",
    )
    activity_log: bool = Field(
        False, description="Also read Azure's activity log: creation, firewall, role assignments."
    )
    activity_log_by: Literal["resource_group", "resource"] = Field(
        "resource_group",
        description="What the activity log is asked for. `resource` needs less permission, and "
        "may lack what happens to pools and role assignments.",
    )
    activity_retention: Duration = Field(
        # UNCONFIRMED in the stored copies of the vendor's documentation.
        timedelta(days=90),
        description="How far back the activity log answers.",
    )
    synapse_rbac: bool = Field(True, description="Snapshot the workspace's own roles.")
    synapse_scopes: bool = Field(
        True, description="Also ask for the role assignments of each scope within the workspace."
    )
    azure_rbac: bool = Field(True, description="Snapshot Azure's roles and deny assignments.")
    sql_pools: tuple[str, ...] = Field(
        (), description="Dedicated SQL pools whose grants are read; needs the extra `synapse-sql`."
    )
    serverless_databases: tuple[str, ...] = Field(
        (), description="Databases of the serverless pool whose grants are read; likewise."
    )
    sql_domain: str = Field(
        "sql.azuresynapse.net",
        pattern=r"^[A-Za-z0-9.-]+$",
        description="Where the workspace's SQL endpoints live.",
    )
    sql_timeout: Duration = Field(
        timedelta(minutes=2),
        gt=timedelta(0),
        le=timedelta(minutes=30),
        description="Longest wait for one database's grants.",
    )
    login_url: Url = Field(LOGIN_URL, description="Issuer of tokens.")
    log_analytics_url: Url = Field(log_analytics.API_URL, description="Log Analytics' endpoint.")
    log_analytics_scope: str = Field(log_analytics.SCOPE, description="Scope of its token.")
    management_url: Url = Field("https://management.azure.com", description="Azure's endpoint.")
    management_scope: str = Field(
        "https://management.azure.com/.default", description="Scope of its token."
    )
    synapse_url: Url | None = Field(
        None, description="The workspace's endpoint. Default: https://{name}.dev.azuresynapse.net"
    )
    synapse_scope: str = Field(
        # UNCONFIRMED in the stored specification; it is what the vendor's SDKs use.
        "https://dev.azuresynapse.net/.default",
        description="Scope of its token.",
    )
    http: HttpSettings = Field(default_factory=HttpSettings, description="Timeouts, proxy, budget.")

    @field_validator("resource_id")
    @classmethod
    def _is_a_workspace(cls, resource_id: str) -> str:
        _, found, name = resource_id.lower().partition(_WORKSPACE_TYPE)
        if not found or "/" in name:
            raise ValueError("not the id of a Microsoft.Synapse/workspaces resource")
        return resource_id

    @field_validator("sql_pools", "serverless_databases")
    @classmethod
    def _are_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        # They go into a connection string: whatever could end a value there is refused.
        if any(not name or set(name) & set(";={}\"'\0") for name in names):
            raise ValueError("a database's name is empty or holds one of ; = { } quotes")
        return names

    @model_validator(mode="after")
    def _fits(self) -> Settings:
        # A row may be ingested LAG_MAX after its event; read again within `relook`, its id must
        # still be known, whatever `lateness` is.
        if self.lookback < LAG_MAX + self.relook:
            raise ValueError("lookback is shorter than 2 d and relook: repeats would be published")
        return self

    @property
    def identity(self) -> Identity:
        """Who signs in."""
        return Identity(self.tenant_id, self.client_id, self.client_secret, self.login_url)

    @property
    def workspace(self) -> str:
        """The workspace's name, in lower case as Azure compares it."""
        return self.resource_id.rpartition("/")[2].lower()

    @property
    def subscription(self) -> str:
        """The subscription's id."""
        return self.resource_id.split("/")[2]

    @property
    def resource_group(self) -> str:
        """The resource group's name."""
        return self.resource_id.split("/")[4]

    @property
    def workspace_url(self) -> str:
        """The workspace's development endpoint."""
        return self.synapse_url or f"https://{self.workspace}.dev.azuresynapse.net"
