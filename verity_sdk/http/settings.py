"""How a connector reaches its API: the settings of `[connectors.<id>.http]`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from verity_sdk.settings import Duration


class HttpSettings(BaseModel):
    """How a connector reaches its API: the table `[connectors.<id>.http]`."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=True
    )

    proxy: SecretStr | None = Field(None, description="http://user:password@host:port")
    ca_file: Path | None = Field(None, description="PEM file of the certificates to trust.")
    connect_timeout: Duration = Field(
        timedelta(seconds=10), gt=timedelta(0), description="Longest wait for a connection."
    )
    read_timeout: Duration = Field(
        timedelta(seconds=60),
        gt=timedelta(0),
        description="Longest wait for the next bytes of an answer.",
    )
    connections_max: int = Field(16, ge=1, le=1000, description="Connections open at once.")
    retry_budget: Duration = Field(
        timedelta(minutes=2),
        description="Longest time for one request, all its retries and the waits between them "
        "together; waiting for the turn in the vendor's request budget does not count.",
    )
    retry_after_max: Duration = Field(
        timedelta(minutes=10), description="A vendor that asks for a longer pause gets this one."
    )
    budget_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="This worker's share of the vendor's request budget: 1 / number of workers.",
    )
    answer_bytes_max: int = Field(
        64 * 1024 * 1024, ge=1024, description="Longest answer that is read, uncompressed."
    )
