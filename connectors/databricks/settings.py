"""The settings of one Databricks workspace: a table of `verity.toml`, validated."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from connectors._azure.sign_in import LOGIN_URL, Identity
from verity_sdk.http import HttpSettings
from verity_sdk.settings import ConnectorSettings, Duration, Origin

PLATFORM = "databricks"
LOOKBACK = timedelta(hours=4)
AZURE_DATABRICKS_SCOPE = "2ff814a6-3304-4ab8-85cb-cd0e6f879c1d/.default"
"""The resource id of Azure Databricks in every Azure cloud (databricks-sdk, environments.py)."""

PRIVILEGE_VIEWS = (
    "metastore_privileges",
    "catalog_privileges",
    "schema_privileges",
    "table_privileges",
    "volume_privileges",
    "routine_privileges",
    "external_location_privileges",
    "storage_credential_privileges",
    "connection_privileges",
    "share_recipient_privileges",
)
OWNER_VIEWS = (
    "metastores",
    "catalogs",
    "schemata",
    "tables",
    "volumes",
    "routines",
    "external_locations",
    "storage_credentials",
    "connections",
    "shares",
)
WORKSPACE_OBJECTS = (
    "clusters",
    "cluster-policies",
    "instance-pools",
    "jobs",
    "pipelines",
    "repos",
    "serving-endpoints",
    "warehouses",
)
STORAGE_HOSTS = (
    "*.blob.core.windows.net",
    "*.dfs.core.windows.net",
    "*.amazonaws.com",
    "storage.googleapis.com",
    "*.storage.googleapis.com",
)

Minutes = Annotated[Duration, Field(gt=timedelta(0), le=timedelta(hours=2))]
Period = Annotated[Duration, Field(ge=timedelta(0), le=timedelta(days=365))]


class Settings(ConnectorSettings):
    """What the connector needs to know about the workspace it observes.

    Exactly one way to log in is given: `token`, or `client_id` with `client_secret`, or the three
    `azure_…` fields.
    """

    host: Origin = Field(description="The workspace's URL: https://adb-….azuredatabricks.net.")
    warehouse_id: str = Field(
        pattern=r"^[A-Za-z0-9_-]{1,64}$", description="The SQL warehouse that runs the queries."
    )

    token: SecretStr | None = Field(None, description="A personal access token.")
    client_id: str | None = Field(
        None, min_length=1, description="OAuth M2M: the service principal's application id."
    )
    client_secret: SecretStr | None = Field(None, description="OAuth M2M: its secret.")
    azure_tenant_id: str | None = Field(None, min_length=1, description="Entra ID: the tenant.")
    azure_client_id: str | None = Field(
        None, min_length=1, description="Entra ID: the application (client) id."
    )
    azure_client_secret: SecretStr | None = Field(None, description="Entra ID: its secret.")
    azure_login_host: Origin = Field(
        LOGIN_URL, description="Entra ID's host; national clouds differ."
    )
    azure_scope: str = Field(AZURE_DATABRICKS_SCOPE, description="The scope of the Entra ID token.")

    disposition: Literal["inline", "external_links"] = Field(
        "inline",
        description="How results come: in the answers (25 MiB a statement; a larger window is "
        "halved), or through links to cloud storage (for backfills and busy accounts).",
    )
    storage_hosts: list[str] = Field(
        list(STORAGE_HOSTS),
        description="Hosts that links to results may lead to. No credential is sent there.",
    )
    wait_timeout: Duration = Field(
        timedelta(0),
        description="How long a submission waits for its result: 0, or 5 s to 50 s. With 0 the "
        "statement's id is known at once, so that it can always be cancelled.",
    )
    statement_timeout: Minutes = Field(
        timedelta(minutes=15),
        description="Longest wait for a statement, a cold warehouse's start included; then it is "
        "cancelled.",
    )
    poll_interval_max: Annotated[Duration, Field(gt=timedelta(0), le=timedelta(minutes=10))] = (
        Field(timedelta(seconds=10), description="Longest pause between looks at a statement.")
    )
    rows_max: int = Field(
        200_000,
        ge=1,
        le=10_000_000,
        description="Most events held in memory: a window with more is halved.",
    )

    # The vendor documents no latency of system.access.audit. UNCONFIRMED: minutes, at times hours.
    settle: Period = Field(timedelta(minutes=30), description="A pass ends this far behind now.")
    lateness: Period = Field(
        timedelta(hours=4), description="How late events may come; completeness stays behind by it."
    )
    relook: Period = Field(timedelta(hours=4), description="What every pass reads again.")
    lookback: Period = Field(LOOKBACK, description="What is read again from time to time.")
    slice_max: Annotated[Duration, Field(ge=timedelta(minutes=1), le=timedelta(days=31))] = Field(
        timedelta(days=1), description="Longest window of one statement."
    )
    retention: Annotated[Duration, Field(gt=timedelta(0))] = Field(
        timedelta(days=365), description="How far back the table reaches."
    )

    snapshot_source: Literal["information_schema", "rest"] = Field(
        "information_schema",
        description="Where Unity Catalog's grants are read: SQL views (one consistent read each), "
        "or the REST API's effective permissions, an object at a time.",
    )
    # Which views a runtime has is not documented in one place: UNCONFIRMED, so a setting.
    privilege_views: list[str] = Field(
        list(PRIVILEGE_VIEWS),
        description="Views of system.information_schema with grants; take out what this runtime "
        "does not have.",
    )
    owner_views: list[str] = Field(
        list(OWNER_VIEWS), description="Views of system.information_schema with owners; likewise."
    )
    workspace_objects: list[str] = Field(
        list(WORKSPACE_OBJECTS),
        description="Kinds of workspace objects whose ACLs are read, a request each.",
    )
    expand_groups_up_to: int = Field(
        1000,
        ge=0,
        le=1_000_000,
        description="A grant to a group is repeated for each of its members, nested ones "
        "included, unless they are more than so many. 0: memberships only.",
    )
    snapshot_concurrency: int = Field(
        4, ge=1, le=32, description="Most requests at once while permissions are read."
    )
    metastore_id: str | None = Field(
        None, pattern=r"^[A-Za-z0-9-]+$", description="In references. Default: asked."
    )
    workspace_id: str | None = Field(
        None, pattern=r"^[0-9]+$", description="In references. Default: asked."
    )
    http: HttpSettings = Field(HttpSettings(), description="Timeouts, proxy.")

    @field_validator("privilege_views")
    @classmethod
    def _are_privilege_views(cls, names: list[str]) -> list[str]:
        return _known(names, PRIVILEGE_VIEWS)

    @field_validator("owner_views")
    @classmethod
    def _are_owner_views(cls, names: list[str]) -> list[str]:
        return _known(names, OWNER_VIEWS)

    @field_validator("workspace_objects")
    @classmethod
    def _are_workspace_objects(cls, names: list[str]) -> list[str]:
        return _known(names, WORKSPACE_OBJECTS)

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        oauth = [self.client_id, self.client_secret]
        azure = [self.azure_tenant_id, self.azure_client_id, self.azure_client_secret]
        if any(oauth) and not all(oauth):
            raise ValueError("client_id and client_secret belong together")
        if any(azure) and not all(azure):
            raise ValueError(
                "azure_tenant_id, azure_client_id and azure_client_secret belong together"
            )
        if [self.token is not None, all(oauth), all(azure)].count(True) != 1:
            raise ValueError(
                "exactly one way to log in is needed: token, or client_id and client_secret, or "
                "azure_tenant_id, azure_client_id and azure_client_secret"
            )
        if self.wait_timeout:
            seconds = self.wait_timeout.total_seconds()
            if seconds != int(seconds) or not 5 <= seconds <= 50:
                raise ValueError("wait_timeout is 0, or whole seconds from 5 to 50")
            if self.wait_timeout >= self.http.read_timeout:
                raise ValueError("wait_timeout must be shorter than http.read_timeout")
        return self

    @property
    def identity(self) -> Identity | None:
        """Who signs in to Entra ID, where that is the way to log in."""
        if self.azure_tenant_id is None or self.azure_client_id is None:
            return None
        return Identity(
            self.azure_tenant_id,
            self.azure_client_id,
            self.azure_client_secret,
            self.azure_login_host,
        )

    @property
    def principal(self) -> str:
        """Whom grants have to name, for messages: the service principal's application id."""
        return self.client_id or self.azure_client_id or "<principal>"


def _known(names: list[str], known: tuple[str, ...]) -> list[str]:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"not known: {', '.join(unknown)}; known are {', '.join(known)}")
    return names
