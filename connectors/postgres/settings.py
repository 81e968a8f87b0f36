"""The settings of one observed PostgreSQL server: a table of `verity.toml`, validated."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator

from connectors._azure.log_analytics import API_URL, SCOPE, WAIT_MAX, ResourceId, WorkspaceId
from connectors._azure.sign_in import LOGIN_URL, TENANT_PATTERN, Identity
from connectors.postgres.log_prefix import DEFAULT_PREFIX, compiled
from verity_sdk.errors import Misconfigured
from verity_sdk.http import HttpSettings
from verity_sdk.postgres_dsn import read_address
from verity_sdk.settings import ConnectorSettings, Duration, Table, Url

PLATFORM = "postgres"

Seconds = Annotated[Duration, Field(gt=timedelta(0), le=timedelta(minutes=10))]


class LogAnalyticsSource(Table):
    """The log of an Azure flexible server: the table `[connectors.<id>.log_analytics]`."""

    model_config = ConfigDict(strict=False)

    tenant_id: str = Field(pattern=TENANT_PATTERN, description="The directory.")
    client_id: str = Field(min_length=1, description="The application's id.")
    client_secret: SecretStr = Field(description="The application's secret.")
    workspace_id: WorkspaceId = Field(description="The Log Analytics workspace's id, a GUID.")
    resource_id: ResourceId = Field(
        description="/subscriptions/…/providers/Microsoft.DBforPostgreSQL/flexibleServers/…"
    )
    log_line_prefix: str = Field(
        DEFAULT_PREFIX,
        description="The server parameter of this name; needs %c, %l, %u, %d and %m or %t.",
    )
    login_url: Url = Field(LOGIN_URL, description="Issuer of tokens.")
    url: Url = Field(API_URL, description="Log Analytics' endpoint.")
    scope: str = Field(SCOPE, description="Scope of its token.")
    rows_max: int = Field(
        20_000, ge=1, le=500_000, description="Rows per query; a slice with more is halved."
    )
    query_timeout: Duration = Field(
        WAIT_MAX, gt=timedelta(0), le=WAIT_MAX, description="How long a query may run."
    )
    retention: Duration = Field(
        timedelta(days=30), description="How long the workspace keeps rows."
    )
    http: HttpSettings = Field(default_factory=HttpSettings, description="Timeouts, proxy, budget.")

    @field_validator("log_line_prefix")
    @classmethod
    def _is_a_prefix(cls, prefix: str) -> str:
        compiled(prefix)
        return prefix

    @property
    def identity(self) -> Identity:
        """Who signs in."""
        return Identity(self.tenant_id, self.client_id, self.client_secret, self.login_url)


class Settings(ConnectorSettings):
    """What the connector needs to know about the server it observes."""

    dsn: SecretStr | None = Field(
        default=None,
        description="postgresql://user:password@host:port/database of the server to observe, or "
        "host=… dbname=…, as [settings](../settings.md#addresses-of-postgresql) has it. "
        "Needed by source `reader` and by permission snapshots.",
    )
    server: str = Field(
        default="",
        pattern=r"^[^/\s]*$",
        description="The server's name in references (`pg:{server}/…`). Default: host:port of dsn.",
    )
    source: Literal["reader", "directory", "log_analytics"] = Field(
        default="reader",
        description="`reader`: through the functions that `verity postgres-setup` prints. "
        "`directory`: the server's log directory, mounted where the worker runs. "
        "`log_analytics`: Azure's flexible server, from its Log Analytics workspace.",
    )
    log_analytics: LogAnalyticsSource | None = Field(
        default=None, description="The workspace; needed by source `log_analytics`."
    )
    log_directory: Annotated[Path | None, Field(strict=False)] = Field(
        default=None, description="The mounted log directory; needed by source `directory`."
    )
    log_timezone: str | None = Field(
        default=None,
        description="The server's log_timezone. Default: asked of the server; UTC without a dsn.",
    )
    system_identifier: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="The cluster's identity in event ids. Default: asked of the server "
        "(pg_control_system()); the server's name without a dsn or where that is not allowed.",
    )
    statements: Literal["auto", "pgaudit", "log_statement"] = Field(
        default="auto",
        description="Which lines tell what was done: pgaudit's, or those of log_statement. "
        "`auto`: pgaudit's if the server has it loaded. Never both, or statements count twice.",
    )
    databases: list[str] | None = Field(
        default=None, min_length=1, description="Only these databases. Default: all."
    )
    exclude_users: list[str] = Field(
        default_factory=list,
        description="Roles whose records are dropped, whatever they do: a blind spot, on purpose.",
    )
    exclude_own: bool = Field(
        default=True,
        description="Drop what this connector itself does: its role under its application name.",
    )
    redact_passwords: bool = Field(
        default=True,
        description="Replace the password in CREATE/ALTER ROLE … PASSWORD by <redacted>.",
    )
    page_records: int = Field(
        default=2000, ge=1, le=100_000, description="Most log lines in one page."
    )
    page_bytes: int = Field(
        default=1024 * 1024,
        ge=1,
        le=8 * 1024 * 1024,
        description="Most bytes asked for in one read of the log.",
    )
    line_bytes: int = Field(
        default=16 * 1024 * 1024,
        ge=1024,
        le=256 * 1024 * 1024,
        description="Longest line kept in memory; a longer one goes to the dead letters in pieces.",
    )
    statement_bytes: int = Field(
        default=64 * 1024,
        ge=0,
        le=1024 * 1024,
        description="Longest statement whose objects are looked for; of a longer one the event "
        "stands on the database.",
    )
    connect_timeout: Seconds = Field(
        default=timedelta(seconds=10), description="Longest wait for a connection."
    )
    query_timeout: Seconds = Field(
        default=timedelta(seconds=30), description="Longest wait for the answer to one query."
    )

    @field_validator("dsn")
    @classmethod
    def _is_a_dsn(cls, dsn: SecretStr | None) -> SecretStr | None:
        if dsn is not None:
            try:
                address = read_address(dsn.get_secret_value(), "dsn")
            except Misconfigured as error:
                # The value itself stays out of the message: it may hold a password.
                raise ValueError(str(error).removeprefix("dsn: ")) from None
            if not address.hosts:
                raise ValueError("it names no host")
        return dsn

    @field_validator("log_directory", mode="before")
    @classmethod
    def _is_a_path(cls, value: object) -> object:
        return Path(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits_the_source(self) -> Settings:
        if self.source == "reader" and self.dsn is None:
            raise ValueError("dsn is missing: source `reader` reads through the server")
        if self.source == "directory" and self.log_directory is None:
            raise ValueError("log_directory is missing: source `directory` reads it")
        if (self.source == "log_analytics") != (self.log_analytics is not None):
            raise ValueError("log_analytics is for source `log_analytics`, which needs it")
        if self.source == "log_analytics" and self.statements == "auto":
            # Its log_destination is none that is read here, so the server is not asked.
            raise ValueError("statements must be `pgaudit` or `log_statement` with Log Analytics")
        if self.source != "directory" and self.log_directory is not None:
            raise ValueError("log_directory is for source `directory` only")
        if self.dsn is None:
            if not self.server:
                raise ValueError("server is missing: without a dsn the server needs a name")
            if self.statements == "auto":
                raise ValueError(
                    "statements must be `pgaudit` or `log_statement`: without a dsn the server "
                    "cannot be asked"
                )
        return self

    @property
    def server_name(self) -> str:
        """The server's name in references: as set, else host and port of the DSN."""
        if self.server or self.dsn is None:
            return self.server
        host, port = read_address(self.dsn.get_secret_value(), "dsn").hosts[0]
        return f"{host.lower()}:{port}"

    @property
    def application_name(self) -> str:
        """What the connector calls itself; PostgreSQL keeps 63 bytes of printable ASCII."""
        plain = "".join(c if " " < c < "\x7f" else "?" for c in self.connector_id)
        return f"verity-stream/{plain}"[:63]

    def is_wanted_database(self, name: str) -> bool:
        """Whether events and grants of this database are wanted."""
        return self.databases is None or name in self.databases
