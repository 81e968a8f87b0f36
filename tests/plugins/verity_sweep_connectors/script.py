"""What the sweep's sources hold: as many pages as are asked for, each known by its number.

A page has 1 to 900 records, most of them few. They come in bursts around the time for which the
worker waits before a page goes out. Among them are ties, whole seconds, events that are late or
dated ahead, records that nobody understands, and stretches that are known to be missing.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from verity_sdk import format_utc, parse_utc

STARTED_AT = datetime(2026, 1, 1, tzinfo=UTC)
SPAN = timedelta(seconds=10)
"""The time of a page's records; `LATE_MAX` and it stay below a plain connector's lookback."""
LATE_MAX = 45.0
AHEAD_AT = datetime(9999, 1, 1, tzinfo=UTC)
RECORDS_MAX = 900
PAGE_WAIT = 0.25
"""`VERITY_PAGE_WAIT`'s default, in seconds."""


def page_of(platform: str, number: int) -> dict[str, Any]:
    """A page of the source, as its API answers.

    Returns:
        `items`, `gap` (a scope, or None), and after how many seconds the page comes (`wait`).
    """
    draw = Random(f"{platform}:{number}")
    size = int(math.exp(draw.uniform(0, math.log(RECORDS_MAX + 1))))
    begins_at = STARTED_AT + number * SPAN
    is_whole = draw.random() < 0.5
    items: list[dict[str, Any]] = []
    seconds = 0.0
    for place in range(size):
        if draw.random() < 0.4:  # The others happen at the same time as the one before.
            seconds = max(seconds, SPAN.total_seconds() * place / size)
        at = begins_at + timedelta(seconds=math.floor(seconds) if is_whole else seconds)
        kind = draw.random()
        item = {
            "id": f"{platform}:{number:06}:{place:03}",
            "at": format_utc(at),
            "who": f"user{draw.randint(0, 40)}",
            "what": "x" * draw.randint(0, 300),
        }
        if kind < 0.02:
            item["at"] = format_utc(at - timedelta(seconds=draw.uniform(0, LATE_MAX)))
        elif kind < 0.022:
            item["at"] = format_utc(AHEAD_AT)
        elif kind < 0.03:
            item = {"ref": item["id"], "at": format_utc(at), "who": "nobody knows"}
        items.append(item)
    gap = f"gap-{number}" if draw.random() < 0.1 else None
    wait = draw.choice((0.0, 0.0, draw.uniform(0, 0.06), PAGE_WAIT * draw.uniform(0.98, 1.02)))
    return {"items": items, "gap": gap, "wait": wait}


def shows_in_time(platform: str, number: int) -> bool:
    """Whether a page has an event of its own time: else no watermark tells that it was read."""
    begins_at = STARTED_AT + number * SPAN
    times = (parse_utc(one["at"]) for one in page_of(platform, number)["items"] if "id" in one)
    return any(begins_at <= at < begins_at + SPAN for at in times)


def truth_of(platform: str, pages: int) -> tuple[set[str], set[str], set[str]]:
    """The ids of all events, the references of all bad records, the scopes of all gaps."""
    events, bad, gaps = set[str](), set[str](), set[str]()
    for number in range(pages):
        page = page_of(platform, number)
        for item in page["items"]:
            (events if "id" in item else bad).add(item.get("id") or item["ref"])
        if page["gap"]:
            gaps.add(page["gap"])
    return events, bad, gaps
