"""Types for the settings of connectors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ValidationError

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
