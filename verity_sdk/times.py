"""Times as Verity means them: aware, UTC, to the microsecond."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from verity_sdk.errors import Malformed

_TIME = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt ](\d{2}):(\d{2})(?::(\d{2})(?:[.,](\d+))?)?"
    r" ?([Zz]|[+-]\d{2}(?::?[0-5]\d)?)?",
    re.ASCII,
)
_SHOWN_CHARACTERS_MAX = 80


def parse_utc(text: str) -> datetime:
    """Read a time as ISO 8601 or RFC 3339 writes it, as aware UTC.

    `T` or a space stands between date and time; seconds may be missing; a fraction may have
    any number of digits, of which those beyond the microsecond are cut off, not rounded (a time
    is never moved into the next second). `Z` or an offset in hours and minutes ends it; without
    one it is taken as UTC. `24:00:00` is the next day's midnight. A leap second (`:60`) has no
    `datetime` and is refused.

    Raises:
        Malformed: Anything else, and a time outside the years 1 to 9999 once it is UTC; the
            message shows the text.
    """
    match = _TIME.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise Malformed(f"{_shown(text)} is not a time such as 2026-01-31T23:59:59.123456Z")
    date, hour, minute, second, fraction, offset = match.groups(default="")
    is_end_of_day = hour == "24" and not (minute + second + fraction).strip("0")
    try:
        at = datetime.fromisoformat(date).replace(
            hour=0 if is_end_of_day else int(hour),
            minute=int(minute),
            second=int(second or 0),
            microsecond=int(fraction[:6].ljust(6, "0")),
            tzinfo=UTC,
        )
        if is_end_of_day:
            at += timedelta(days=1)
        return at - _offset(offset)
    except (ValueError, OverflowError) as error:
        raise Malformed(f"{_shown(text)} is not a time: {error}") from error


def format_utc(at: datetime) -> str:
    """Write a time as RFC 3339 in UTC, always with six digits of fraction and `Z`.

    Texts of this form sort as their times do.

    Raises:
        Malformed: As `as_utc`.
    """
    if at.tzinfo is not UTC:
        at = as_utc(at)
    return at.isoformat(timespec="microseconds")[:-6] + "Z"  # "+00:00" has six characters, too


def as_utc(value: datetime) -> datetime:
    """The same time as aware UTC; a naive value is taken as UTC, whatever this machine's zone.

    Raises:
        Malformed: The value is not a `datetime`, lies outside the years 1 to 9999 in UTC, or its
            zone fails.
    """
    if not isinstance(value, datetime):
        raise Malformed(f"{_shown(value)} is a {type(value).__name__}, not a datetime")
    if value.tzinfo is UTC:
        return value
    try:
        # A zone that knows no offset leaves the value naive; astimezone() would then silently
        # take it as this machine's local time.
        if value.utcoffset() is None:
            return value.replace(tzinfo=UTC)
        return value.astimezone(UTC)
    except Exception as error:  # The zone may be anybody's code.
        raise Malformed(f"{_shown(value)} does not exist in UTC: {error}") from error


def _offset(text: str) -> timedelta:
    if text in ("", "Z", "z"):
        return timedelta(0)
    hours, minutes = int(text[1:3]), int(text[3:].lstrip(":") or 0)
    if hours > 23:
        raise ValueError("an offset is less than a day")
    offset = timedelta(hours=hours, minutes=minutes)
    return -offset if text[0] == "-" else offset


def _shown(value: object) -> str:
    try:
        shown = repr(value)
    except Exception:  # noqa: BLE001 - a datetime shows its zone, which may be anybody's code
        shown = f"a {type(value).__name__}"
    return shown if len(shown) <= _SHOWN_CHARACTERS_MAX else shown[:_SHOWN_CHARACTERS_MAX] + "…"
