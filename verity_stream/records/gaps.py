"""Gaps: what is known to be missing."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import orjson

from verity_sdk.errors import Malformed
from verity_sdk.pages import Gap
from verity_sdk.times import as_utc, format_utc, parse_utc
from verity_stream.records.record import (
    GAPS_TOPIC,
    Origin,
    Record,
    clean,
    decoding,
    header,
    json_object,
    require,
)


def gap_record(origin: Origin, gap: Gap) -> Record:
    """The record of what is known to be missing."""
    value = orjson.dumps(
        {
            "platform": origin.platform,
            "connector_id": origin.connector_id,
            "from_at": None if gap.from_at is None else format_utc(as_utc(gap.from_at)),
            "to_at": None if gap.to_at is None else format_utc(as_utc(gap.to_at)),
            "scope": clean(gap.scope),
            "reason": clean(gap.reason),
            "recorded_at": origin.fetched_at,
        }
    )
    return Record(GAPS_TOPIC, origin.connector_id.encode(), value, origin.headers("gap/1"))


def decode_gap(record: Any) -> dict[str, Any]:
    """The fields of a gap's record.

    Raises:
        Malformed: It is none.
    """
    with decoding("a gap"):
        if header(record, "schema") != "gap/1":
            raise ValueError("no header `schema` says so")
        body = json_object(record.value)
        require(body, str, "platform", "connector_id", "scope", "reason", "recorded_at")
        for name in ("recorded_at", "from_at", "to_at"):
            if body[name] is not None:
                parse_utc(body[name])
        return body


def claims_to_be_a_gap(record: Any) -> bool:
    """Whether a record that is not understood was written as a gap, perhaps by a later version."""
    return header(record, "schema").startswith("gap/")


def sound_gap(gap: Any) -> Gap:
    """Whatever a connector reports as a gap, as one that can be recorded.

    A time that is none is unknown; so a gap is never lost for how it is said.
    """
    if not isinstance(gap, Gap):
        return Gap(None, None, "*", f"the connector reported {clean(gap)} in place of a gap")
    reason = clean(gap.reason)
    times: list[datetime | None] = []
    for at in (gap.from_at, gap.to_at):
        try:
            times.append(None if at is None else as_utc(at))
        except Malformed as error:
            times.append(None)
            reason = clean(f"{reason} ({error})")
    from_at, to_at = times
    return Gap(from_at, to_at, clean(gap.scope), reason)
