"""The table of a connector in verity.toml, validated before anything starts."""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from verity_sdk.http import HttpSettings
from verity_sdk.settings import Duration


class Settings(BaseModel):
    """What the connector needs to know; inputs are hidden in errors, for one is a secret."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=True
    )

    connector_id: str = Field(min_length=1)
    url: str = Field("https://api.lagoon.example", description="Where the API is.")
    client_id: str = Field(min_length=1)
    client_secret: SecretStr
    lookback: Duration = Field(
        timedelta(hours=1), description="How late an event may come and still be found."
    )
    page_events: int = Field(2000, ge=1, le=10_000)
    http: HttpSettings = HttpSettings()
