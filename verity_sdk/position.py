"""The rules that everybody who drives a connector shares: the worker, `run()`, and the laws.

Where a pass begins, how far a page moves the checkpoint, and what a name may be. Pure functions:
whoever needs one of them calls it, so that what passes here passes there.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

FIRST_SINCE = datetime(2000, 1, 1, tzinfo=UTC)
"""Where a connector starts that has no checkpoint."""

NAME_RULE = "letters, digits, `.`, `_` and `-`, beginning with a letter or digit, at most 128"
"""What a name may be, to be said where one is refused."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def is_valid_name(name: Any) -> bool:
    """Whether this can be a connector's id or a platform.

    It stands in the names of topics, in transactional ids, in the labels of metrics, and as an
    argument on command lines, where what begins with `-` is an option.
    """
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def earlier(at: datetime, by: timedelta) -> datetime:
    """`at − by`, or the beginning of time.

    By a connector's lookback it is what the seen window begins with; by a source's lateness, how
    far the source is complete.
    """
    try:
        return at - by
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


def asked_since(last_ts: datetime, lookback: timedelta) -> datetime:
    """What the stream application hands a plain connector as `since`.

    Not before the first start's: nothing was published until then that could have late company.
    """
    return max(earlier(last_ts, lookback), min(last_ts, FIRST_SINCE))


def not_after(until: datetime, times: Sequence[datetime]) -> Sequence[datetime]:
    """The times that are not later than this."""
    if not times or max(times) <= until:
        return times
    return [at for at in times if at <= until]


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a connector has come, as its checkpoint says it.

    Attributes:
        last_ts: The watermark, aware UTC.
        cursor: Where a paged connector goes on; None for a plain one, and before the first page.
        complete_through: Up to when every event is out; None where the source cannot tell.
    """

    last_ts: datetime
    cursor: Any = None
    complete_through: datetime | None = None


def after_page(
    before: Reached,
    times: Sequence[datetime],
    cursor: Any,
    complete_through: datetime | None,
    *,
    began_at: datetime,
    now: datetime,
) -> Reached:
    """How far a paged connector has come once a page is out.

    A connector that knows how far it is complete says so, and the watermark follows that. Of
    another, the newest time is the best there is. The watermark never goes back.

    What is dated later than the pass's begin moves nothing: it is ahead of what the source had
    shown, or happened during the pass, and what appears late would be passed by.

    Args:
        before: How far it had come before the page.
        times: When the page's events occurred, aware UTC.
        cursor: The page's own.
        complete_through: The page's own, aware UTC. None: it says nothing, and what an earlier
            page said still holds.
        began_at: When the pass began.
        now: The present: of what is still to come nobody can know whether it is complete.
    """
    reached = max(not_after(began_at, times), default=before.last_ts)
    through = before.complete_through
    if complete_through is not None:
        through = min(complete_through, now)
        reached = min(through, began_at)
    return Reached(max(before.last_ts, reached), cursor, through)


class Watermark:
    """Where the checkpoint of a plain source may rest within a pass.

    The times of a pass are expected to ascend. The newest may still get company (a source
    that filters strictly "after" would then lose it), so within the pass the watermark rests
    on the newest time that was left behind. Once the order is broken it stays until the end.

    An event that is dated ahead moves nothing: what happens until then would be skipped.

    Args:
        since: The watermark before the pass; it never goes below this.

    Attributes:
        rests_at: Where the checkpoint may rest now.
        is_ascending: Whether the order held so far.
    """

    def __init__(self, since: datetime) -> None:
        self.rests_at = since
        self._newest: datetime | None = None
        self.is_ascending = True

    def pass_by(self, times: Sequence[datetime], until: datetime | None = None) -> None:
        """Take in the times of the next events, but for those later than `until`.

        Where they break the order, it stays where it was before them: what is out of order may
        have older company yet to come.
        """
        if until is not None:
            times = not_after(until, times)
        if not times:
            return
        passed = list(times) if self._newest is None else [self._newest, *times]
        ascending = sorted(passed)
        if ascending != passed:
            self.is_ascending = False
        self._newest = ascending[-1]
        left_behind = bisect_left(ascending, self._newest)
        if self.is_ascending and left_behind:
            self.rests_at = max(self.rests_at, ascending[left_behind - 1])

    def finish(self) -> None:
        """The pass ended normally: everything up to the newest is out."""
        if self._newest is not None:
            self.rests_at = max(self.rests_at, self._newest)


class PlainPass:
    """How far a plain connector has come after each page of a pass.

    What is dated later than the pass's begin is ahead of what the source had shown, or happened
    during the pass: if it moved the watermark, what appears late would be passed by. It counts
    from the next pass on, also of a source that shows it only once.

    Args:
        since: The watermark before the pass.
        began_at: When the pass began.
        met_at: The one before's, of the same relay.

    Attributes:
        met_at: The newest time that was met and was not ahead of the clock then.
    """

    def __init__(self, since: datetime, began_at: datetime, met_at: datetime = FIRST_SINCE) -> None:
        self.met_at = met_at
        self._watermark = Watermark(since)
        self._began_at = began_at
        # A clock that was put back: what was met may be ahead of it.
        self._met_before = met_at if met_at <= began_at else since

    def after_page(self, times: Sequence[datetime], *, is_last: bool, now: datetime) -> Reached:
        """How far it has come once a page is out; the last one ends the pass normally."""
        self._watermark.pass_by(times, self._began_at)
        self.met_at = max([self.met_at, *not_after(now, times)])
        last_ts = self._watermark.rests_at
        if is_last:
            self._watermark.finish()
            last_ts = max(self._watermark.rests_at, self._met_before)
        return Reached(last_ts)
