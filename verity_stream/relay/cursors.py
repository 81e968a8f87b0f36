"""A connector's cursor in the form in which it is stored, and back: exactly, whatever is in it.

A cursor holds what a source said, and that may be anything: a NUL, half of a surrogate pair,
infinity. Postgres refuses some of it and orjson some more, and a connector whose cursor can't be
stored stands still for ever. Both take a text in ASCII.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import copysign
from typing import Any

from verity_sdk.errors import Misconfigured
from verity_sdk.values import dumps, is_utf8, loads, readable

AS_TEXT = "verity:json"
"""The only key of a cursor that is stored as its own JSON text."""

DEPTH_MAX = 100
"""orjson writes 254 levels, and a cursor is stored within others."""
_INTEGER_MIN, _INTEGER_MAX = -(2**63), 2**64 - 1
_FLOAT_MAX = 1e15
"""Postgres writes larger ones without a fraction, and they would come back as integers."""


def stored_cursor(cursor: Any) -> Any:
    """A copy of a cursor that is the same in Kafka and in Postgres.

    An ordinary one can be read and edited there; any other is its own JSON text.
    """
    copy = loads(dumps(cursor))
    if _is_plain(copy) and not _is_text(copy):
        return copy
    return {AS_TEXT: readable(copy)}


def given_cursor(stored: Any) -> Any:
    """The cursor that was stored, as a JSON value.

    Raises:
        Misconfigured: Its text was edited, and is no JSON any more.
    """
    if not _is_text(stored):
        return stored
    try:
        return loads(stored[AS_TEXT])
    except (ValueError, TypeError, AttributeError) as error:
        raise Misconfigured(
            f"the text of the stored cursor ({AS_TEXT}) is no JSON: move the position by time "
            "with `verity rewind`"
        ) from error


def _is_text(cursor: Any) -> bool:
    return isinstance(cursor, Mapping) and list(cursor) == [AS_TEXT]


def _is_plain(value: Any) -> bool:
    """Whether both stores give back a value, as `loads` made it, as it is."""
    level = [value]
    for _ in range(DEPTH_MAX):
        below = []
        for one in level:
            if type(one) is dict:
                below += [*one, *one.values()]
            elif type(one) is list:
                below += one
            elif not _is_plain_scalar(one):
                return False
        if not below:
            return True
        level = below
    return False


def _is_plain_scalar(value: Any) -> bool:
    kind = type(value)
    if kind is str:
        return "\0" not in value and is_utf8(value)
    if kind is int:
        return bool(_INTEGER_MIN <= value <= _INTEGER_MAX)
    if kind is float:
        return bool(abs(value) < _FLOAT_MAX and (value or copysign(1, value) > 0))
    return value is None or kind is bool
