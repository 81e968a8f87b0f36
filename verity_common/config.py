"""Settings from the environment, for any program that uses Verity's Kafka and Postgres."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from verity_common.kafka import KafkaSettings

logger = logging.getLogger(__name__)

__all__ = ["DatabaseSettings", "KafkaSettings", "VerityConfig"]


class DatabaseSettings(BaseModel):
    """Where Postgres is and how long it is waited for; `VERITY_DATABASE__<NAME>`."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    dsn: SecretStr = Field(
        default=SecretStr("postgresql://verity:verity@localhost/verity"),
        description="Address and credentials; never shown.",
    )
    pool_size_min: int = Field(
        default=1, ge=0, le=1000, description="Connections of a worker's own that are kept open."
    )
    pool_size_max: int = Field(
        default=5,
        ge=1,
        le=1000,
        description="Connections of a worker for its own work, at most. Ten workers with their "
        "connectors' pools, and some commands beside them, fit a server with 100 connections, "
        "its default.",
    )
    connector_pool_size_max: int = Field(
        default=3,
        ge=1,
        le=1000,
        description="Connections that a worker's connectors share as `db_pool`, at most; none is "
        "open until one is used.",
    )
    connect_timeout_seconds: float = Field(
        default=10.0, gt=0, le=3600, description="How long opening a connection may take."
    )
    acquire_timeout_seconds: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="How long waiting for a free connection of a pool may take.",
    )
    command_timeout_seconds: float = Field(
        default=30.0, gt=0, le=3600, description="How long one statement may take."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pool_size_min > self.pool_size_max:
            raise ValueError("pool_size_min is more than pool_size_max")
        return self


def _without_service_links(
    variables: Mapping[str, str | None], settings: Collection[str]
) -> dict[str, str | None]:
    """The environment without what Kubernetes adds to every pod of a namespace.

    A Service named `verity-web` gives `VERITY_WEB_PORT=tcp://10.43.12.7:6066`, which would be read
    as a setting that nobody made. It is known by its value and by its companion
    `VERITY_WEB_SERVICE_HOST`
    (kubernetes.io/docs/concepts/services-networking/service, read 2026-11-30).

    Args:
        variables: As pydantic has them, whatever their case.
        settings: Variables that would be read, in upper case: only of these is anything said.
    """
    names = {name.upper() for name in variables}
    kept = {}
    for name, value in variables.items():
        is_link = (
            name.upper().endswith("_PORT")
            and f"{name.upper().removesuffix('_PORT')}_SERVICE_HOST" in names
            and (value or "").startswith(("tcp://", "udp://", "sctp://"))
        )
        if not is_link:
            kept[name] = value
        elif name.upper() in settings:
            logger.warning(
                "%s is a service link of Kubernetes and not read; the pod's "
                "`enableServiceLinks: false` keeps such variables out",
                name.upper(),
            )
    return kept


class VerityConfig(BaseSettings):
    """The environment's `VERITY_…` variables; two underscores lead into a group.

    For example `VERITY_KAFKA__BOOTSTRAP_SERVERS` or `VERITY_DATABASE__DSN`. Other variables of
    the prefix belong to other programs and are left alone; an unknown name within a group is an
    error, because a misspelt `VERITY_KAFKA__SECURITY_PROTOCOL` would mean plain text.

    Raises:
        pydantic.ValidationError: It names every variable at fault and shows no value.
    """

    model_config = SettingsConfigDict(
        env_prefix="VERITY_",
        env_nested_delimiter="__",
        extra="ignore",
        hide_input_in_errors=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """As pydantic's, without the service links of Kubernetes."""
        if isinstance(env_settings, EnvSettingsSource):
            names = {f"{env_settings.env_prefix}{name}".upper() for name in cls.model_fields}
            env_settings.env_vars = _without_service_links(env_settings.env_vars, names)
        return init_settings, env_settings, dotenv_settings, file_secret_settings

    kafka: KafkaSettings = Field(
        default_factory=KafkaSettings, description="How to reach Kafka: a group of its own."
    )
    database: DatabaseSettings = Field(
        default_factory=DatabaseSettings,
        description="Verity's own Postgres: a group of its own.",
    )
