"""Is everything there? The answer that the topics give by themselves.

A connector says with each page up to when it is complete, and records what it knows to be missing
as gaps, and from when on its events are collected at all. Joined, they answer for a stretch of time
of a platform: complete, not yet, or, which it stays, incomplete or not collected.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from verity_sdk.deprecation import moved
from verity_sdk.errors import Malformed
from verity_sdk.times import as_utc, parse_utc


class Completeness(enum.StrEnum):
    """Whether a stretch of time is complete."""

    COMPLETE = "complete"
    NOT_YET = "not yet"
    INCOMPLETE = "incomplete"
    """Events are known to be missing; it will not become complete."""
    NOT_COLLECTED = "not collected"
    """It begins before a connector's beginning; what was then, nobody asked for."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """Whether a stretch of time is complete, and what speaks against it.

    Attributes:
        complete_through: Up to when all of the connectors are complete; None where one of them
            can't tell, or there is none.
        waiting_for: The connectors that are not complete up to the end of the stretch.
        gaps: What is known to be missing from it, as the gap records say it.
        not_collected: The connectors whose beginning lies after that of the stretch, or is not
            known, with their beginning.
        not_understood: Records of the topics that are not of their kind, where whoever read the
            topics names them: they are in nobody's way, unless they may be a connector's own.
    """

    completeness: Completeness
    complete_through: datetime | None
    waiting_for: tuple[str, ...] = ()
    gaps: tuple[Mapping[str, Any], ...] = ()
    not_collected: Mapping[str, datetime | None] = field(default_factory=dict)
    not_understood: tuple[str, ...] = ()


def completeness(
    checkpoints: Iterable[Mapping[str, Any]],
    gaps: Iterable[Mapping[str, Any]],
    *,
    platform: str,
    since: datetime,
    until: datetime,
    connectors: Collection[str] | None = None,
    configured: Collection[str] = (),
    unreadable: Collection[str] = (),
) -> Coverage:
    """Whether every event of the platform between two times is in the topic.

    Complete is meant as the connectors mean it: as far as the platform's declared lateness goes.

    Args:
        checkpoints: The values of `verity.connector.checkpoints`, decoded, in the topic's order;
            of each connector the newest counts (`order_of`). Read committed records only, and read
            them before the gaps, up to the high watermark: a page's gaps become visible with its
            checkpoint.
        gaps: The values of `verity.connector.gaps`, decoded.
        since: The beginning of the stretch, included.
        until: Its end, included.
        connectors: Who has to be complete. None means all that ever published a page of the
            platform, and those of `configured`; name them where one of those has been retired.
        configured: The platform's connectors that may not have published anything yet, where
            somebody knows them: the topics don't. They are waited for.
        unreadable: Connectors of which a record can't be understood, which may be a gap or the
            newest checkpoint: of them the answer is never more than "not yet".

    Raises:
        Malformed: A record is not what the topics hold; there is no answer.
    """
    since, until = as_utc(since), as_utc(until)
    named = configured if connectors is None else connectors
    reached: dict[str, datetime | None] = dict.fromkeys(named)
    began: dict[str, datetime | None] = {}
    newest: dict[str, tuple[int, int]] = {}
    missing = []
    try:
        for body in checkpoints:
            name = body["connector_id"]
            if body["platform"] == platform and (connectors is None or name in reached):
                order = order_of(body)
                if order < newest.get(name, order):
                    continue
                newest[name] = order
                through = body["complete_through"]
                reached[name] = None if through is None else parse_utc(through)
                # Older versions wrote none: it is not known.
                begin = body.get("collected_from")
                began[name] = None if begin is None else parse_utc(begin)
        for body in gaps:
            name = body["connector_id"]
            if (
                body["platform"] == platform
                and (connectors is None or name in reached)
                and _overlaps(body, since, until, began.get(name))
            ):
                missing.append(body)
    except (KeyError, TypeError, AttributeError) as error:
        raise Malformed(f"not a record of these topics: {error!r}") from error
    reached |= dict.fromkeys(reached.keys() & set(unreadable))
    waiting = tuple(sorted(name for name, at in reached.items() if at is None or at < until))
    known = [at for at in reached.values() if at is not None]
    through_all = min(known) if known and len(known) == len(reached) else None
    not_collected = {name: at for name, at in sorted(began.items()) if at is None or at > since}
    if missing:
        verdict = Completeness.INCOMPLETE
    elif not_collected:
        verdict = Completeness.NOT_COLLECTED
    elif waiting or not reached:
        verdict = Completeness.NOT_YET
    else:
        verdict = Completeness.COMPLETE
    return Coverage(verdict, through_all, waiting, tuple(missing), not_collected)


def order_of(body: Mapping[str, Any]) -> tuple[int, int]:
    """Which of a connector's checkpoint records is the newest: versions ascend, always.

    Of one version the higher epoch is newer. Without transactions (`at_least_once`) a relay that
    was replaced may still write the record of its last page after its successor's first ones.
    Not the epoch first: with a restored database it starts again lower, the version does not.
    """
    version, epoch = body.get("version", 0), body.get("epoch", 0)
    if type(version) is not int or type(epoch) is not int:  # A bool is an int, too.
        raise TypeError(f"version {version!r}, epoch {epoch!r}")
    return version, epoch


def _overlaps(
    gap: Mapping[str, Any], since: datetime, until: datetime, began_at: datetime | None
) -> bool:
    """Whether a gap reaches into what was collected of the stretch.

    An unknown end is the time it was recorded.
    """
    from_at, to_at = gap["from_at"], gap["to_at"] or gap["recorded_at"]
    first = since if began_at is None else max(since, began_at)
    return (
        first <= until
        and (from_at is None or parse_utc(from_at) <= until)
        and parse_utc(to_at) >= first
    )


if not TYPE_CHECKING:
    __getattr__ = moved(__name__, {"Answer": "verity_sdk.completeness.Coverage"})
