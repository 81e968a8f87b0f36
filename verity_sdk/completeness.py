"""Is everything there? The answer that the topics give by themselves.

A connector says with each page up to when it is complete, and records what it knows to be missing
as gaps. Joined, they answer for a stretch of time of a platform: complete, not yet, or incomplete,
which it stays.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from verity_sdk.errors import Malformed
from verity_sdk.times import as_utc, parse_utc


class Completeness(enum.StrEnum):
    """Whether a stretch of time is complete."""

    COMPLETE = "complete"
    NOT_YET = "not yet"
    INCOMPLETE = "incomplete"
    """Events are known to be missing; it will not become complete."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether a stretch of time is complete, and what speaks against it.

    Attributes:
        complete_through: Up to when all of the connectors are complete; None where one of them
            can't tell, or there is none.
        waiting_for: The connectors that are not complete up to the end of the stretch.
        gaps: What is known to be missing from it, as the gap records say it.
    """

    completeness: Completeness
    complete_through: datetime | None
    waiting_for: tuple[str, ...] = ()
    gaps: tuple[Mapping[str, Any], ...] = ()


def completeness(
    checkpoints: Iterable[Mapping[str, Any]],
    gaps: Iterable[Mapping[str, Any]],
    *,
    platform: str,
    since: datetime,
    until: datetime,
    connectors: Collection[str] | None = None,
) -> Answer:
    """Whether every event of the platform between two times is in the topic.

    Complete is meant as the connectors mean it: as far as the platform's declared lateness goes.

    Args:
        checkpoints: The values of `verity.connector.checkpoints`, decoded, in the topic's order;
            of each connector the last counts. Read committed records only, and read them before
            the gaps, up to the high watermark: a page's gaps become visible with its checkpoint.
        gaps: The values of `verity.connector.gaps`, decoded.
        since: The beginning of the stretch, included.
        until: Its end, included.
        connectors: Who has to be complete. None means all that ever published a page of the
            platform; name them where one of those has been retired.

    Raises:
        Malformed: A record is not what the topics hold; there is no answer.
    """
    since, until = as_utc(since), as_utc(until)
    reached: dict[str, datetime | None] = dict.fromkeys(connectors or ())
    missing = []
    try:
        for body in checkpoints:
            name = body["connector_id"]
            if body["platform"] == platform and (connectors is None or name in reached):
                through = body["complete_through"]
                reached[name] = None if through is None else parse_utc(through)
        for body in gaps:
            name = body["connector_id"]
            if (
                body["platform"] == platform
                and (connectors is None or name in reached)
                and _overlaps(body, since, until)
            ):
                missing.append(body)
    except (KeyError, TypeError, AttributeError) as error:
        raise Malformed(f"not a record of these topics: {error!r}") from error
    waiting = tuple(sorted(name for name, at in reached.items() if at is None or at < until))
    known = [at for at in reached.values() if at is not None]
    through_all = min(known) if known and len(known) == len(reached) else None
    if missing:
        verdict = Completeness.INCOMPLETE
    elif waiting or not reached:
        verdict = Completeness.NOT_YET
    else:
        verdict = Completeness.COMPLETE
    return Answer(verdict, through_all, waiting, tuple(missing))


def _overlaps(gap: Mapping[str, Any], since: datetime, until: datetime) -> bool:
    """Whether a gap reaches into the stretch; an unknown end is the time it was recorded."""
    from_at, to_at = gap["from_at"], gap["to_at"] or gap["recorded_at"]
    return (from_at is None or parse_utc(from_at) <= until) and parse_utc(to_at) >= since
