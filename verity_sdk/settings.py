"""Types for the settings of connectors."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from verity_sdk.errors import Misconfigured

M = TypeVar("M", bound=BaseModel)

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_SECONDS_MAX = 1000 * 365.25 * 86400
_UNIT_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, None: 1}


def parse_duration(value: Any) -> Any:
    """Read a duration: a number of seconds, or a string such as `500ms`, `30s`, `5m`, `24h`.

    Raises:
        ValueError: The text is not a duration; pydantic turns it into a settings error.
    """
    if isinstance(value, bool):
        raise ValueError("not a duration: write 500ms, 30s, 5m, 24h or a number of seconds")
    if isinstance(value, int | float):
        return _seconds(value)
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if match is None:
            raise ValueError("not a duration: write 500ms, 30s, 5m, 24h or a number of seconds")
        return _seconds(float(match[1]) * _UNIT_SECONDS[match[2]])
    return value


def _seconds(value: float) -> timedelta:
    # No setting means a time that runs backwards: a negative lookback would skip events.
    if not 0 <= value <= _SECONDS_MAX:
        raise ValueError("not a duration: it is negative, or longer than 1000 years")
    return timedelta(seconds=value)


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
"""A `timedelta` that is written as seconds or as a string with a unit."""


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself, where http will do."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def checked_url(url: str) -> str:
    """The root of an API without a slash at its end; https, or http on the loopback.

    Raises:
        ValueError: It is none, or holds a user, a query or a fragment. The value stays out of the
            message: it may hold a password.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host = ""
    is_plain = host and not (parts.query or parts.fragment or parts.username or parts.password)
    if not is_plain or not (
        parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))
    ):
        raise ValueError("not a URL of the form https://host/path (http on the loopback only)")
    return url.rstrip("/")


def checked_origin(url: str) -> str:
    """As `checked_url`, and without a path.

    Raises:
        ValueError: It has one, or as `checked_url`.
    """
    url = checked_url(url)
    if urlsplit(url).path:
        raise ValueError("not of the form https://host, without a path")
    return url


Url = Annotated[str, AfterValidator(checked_url)]
"""The root of an API: https://host/path."""
UrlOrDefault = Annotated[str, AfterValidator(lambda url: checked_url(url) if url else url)]
"""Likewise, or empty: then it is derived from other settings."""
Origin = Annotated[str, AfterValidator(checked_origin)]
"""Likewise, https://host alone."""


class Table(BaseModel):
    """A table of `verity.toml`. Input values are hidden in errors: some of them are secrets."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=True
    )


class ConnectorSettings(Table):
    """The table of a connector."""

    connector_id: str = Field(min_length=1, description="The connector's own name.")


def validated(model: type[M], config: Any) -> M:
    """A connector's settings: as they are, or validated from a mapping.

    Raises:
        Misconfigured: The mapping is not valid; the message names each setting at fault, and never
            its value, which may be a secret.
    """
    if isinstance(config, model):
        return config
    if not isinstance(config, Mapping):
        raise Misconfigured("the settings are not a table")
    try:
        return model.model_validate(dict(config))
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'settings'}: {fault['msg']}"
            for fault in error.errors(include_input=False, include_url=False, include_context=False)
        )
        raise Misconfigured(faults) from None
