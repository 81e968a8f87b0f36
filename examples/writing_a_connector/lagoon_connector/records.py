"""From a record of Lagoon to an event: pure functions over data, no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from verity_sdk import Malformed, RawEvent, RejectedRecord, parse_utc
from verity_sdk.references import UNKNOWN, user
from verity_sdk.values import dumps, loads

PLATFORM = "lagoon"


def event_of(record: Any) -> RawEvent:
    """The event of a record; what Lagoon leaves out or invents later does not matter.

    Raises:
        Malformed: It has no id, no time, or is not an object.
    """
    if not isinstance(record, dict) or not isinstance(record.get("id"), str) or not record["id"]:
        raise Malformed("a record without an id")
    who, box, did = record.get("who"), record.get("box"), record.get("did")
    return RawEvent(
        platform=PLATFORM,
        event_id=record["id"],
        occurred_at=parse_utc(record.get("at")),
        principal_ref=user(who) if who else UNKNOWN,
        asset_ref=box_ref(box) if box else "lagoon:unknown",
        operation=str(did or "UNKNOWN").upper(),
        raw_payload=record,
    )


def box_ref(name: str) -> str:
    """How a box is named, in events and in grants alike: that is what joins them."""
    return f"lagoon:box:{name}"


def events_of(lines: Iterable[Any]) -> tuple[list[RawEvent], list[RejectedRecord]]:
    """The events of records, or of lines of JSON, and those that are not understood."""
    events, rejected = [], []
    for line in lines:
        try:
            events.append(event_of(loads(line) if isinstance(line, bytes) else line))
        except (Malformed, ValueError) as error:
            data = line if isinstance(line, bytes) else dumps(line)
            rejected.append(RejectedRecord(data, reason=str(error)))
    return events, rejected
