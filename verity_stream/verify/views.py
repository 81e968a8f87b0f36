"""Do the three views of a checkpoint agree: `judge` decides from what was read; pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal, NamedTuple

from verity_sdk.errors import Malformed
from verity_stream.records import Checkpoint

Policy = Literal["kafka_wins", "stop"]


class Verdict(enum.StrEnum):
    """How the views of a connector's checkpoint stand to each other, best first."""

    EQUAL = "equal"
    IN_FLIGHT = "page in flight"
    """A view is being brought up; nothing stood still between two looks, or there was only one."""
    REPAIRED = "repaired at next start"
    """They differ, as after a crash or an edit, and the next start makes them equal."""
    DIVERGED = "diverged"
    """No crash and no edit explains it: somebody has to look."""

    @property
    def rank(self) -> int:
        """0 for the best."""
        return list(Verdict).index(self)


@dataclass(frozen=True, slots=True)
class Views:
    """One connector's checkpoint in all places, in the order in which it was read.

    Attributes:
        table: The Faust table, as its changelog has it.
        before: The row in Postgres, read before the topic: no page makes it newer than `topic`.
        topic: The last committed record.
        after: The row, read after the topic: at most the page in flight is missing in it.
        edits: The versions that operators' edits took, read last.
    """

    connector_id: str
    table: Checkpoint | Malformed | None = None
    before: Checkpoint | None = None
    topic: Checkpoint | Malformed | None = None
    after: Checkpoint | None = None
    edits: frozenset[int] = frozenset()

    @property
    def versions(self) -> tuple[int | None, ...]:
        """What moves while the connector does."""
        return tuple(
            one.version if isinstance(one, Checkpoint) else None
            for one in (self.table, self.topic, self.after)
        )


class Finding(NamedTuple):
    """A verdict and, unless it is `EQUAL`, why."""

    verdict: Verdict
    reasons: tuple[str, ...] = ()


def judge(views: Views, *, policy: Policy, is_settled: bool) -> Finding:
    """How a connector's views stand to each other.

    Args:
        policy: What a start does when the database is more than a page behind.
        is_settled: Nothing moved since an earlier look, so what is behind stays behind.
    """
    parts = [_judge_row(views, policy, is_settled), _judge_table(views, is_settled)]
    verdict = max((part.verdict for part in parts), key=lambda one: one.rank)
    return Finding(verdict, tuple(reason for part in parts for reason in part.reasons))


def _judge_row(views: Views, policy: Policy, is_settled: bool) -> Finding:
    topic, before, after = views.topic, views.before, views.after
    if isinstance(topic, Malformed):
        return Finding(Verdict.DIVERGED, (f"the topic's record is not understood: {topic}",))
    if topic is None:
        if before is None or before.version == 0:
            return Finding(Verdict.EQUAL)
        return Finding(
            Verdict.REPAIRED,
            (f"the topic has no record; the next start publishes version {before.version}",),
        )
    behind = topic.version - (0 if after is None else after.version)
    if behind > 1:
        if after is not None and after.version in views.edits:
            return Finding(
                Verdict.REPAIRED,
                (f"an edit, {behind} versions behind the topic, is not published yet",),
            )
        if policy == "stop":
            return Finding(
                Verdict.DIVERGED,
                (f"Postgres is {behind} versions behind, and VERITY_DATABASE_BEHIND=stop",),
            )
        return Finding(
            Verdict.REPAIRED,
            (f"Postgres is {behind} versions behind, as after a restored backup",),
        )
    if behind == 1:
        return Finding(
            Verdict.REPAIRED if is_settled else Verdict.IN_FLIGHT,
            ("the last page is in the topic and not yet in Postgres",),
        )
    if before is not None and before.version > topic.version:
        return _judge_row_ahead(before, topic, views.edits)
    # A page may have been persisted between the two looks at the row.
    same = next(
        (one for one in (before, after) if one is not None and one.version == topic.version), None
    )
    different = () if same is None else same.differences(topic)
    if not different:
        return Finding(Verdict.EQUAL)
    what = ", ".join(different)
    if topic.version in views.edits:
        # It took the version that a page in flight took too; it came later, so it wins.
        return Finding(Verdict.REPAIRED, (f"an edit of {what} is not published yet",))
    return Finding(
        Verdict.DIVERGED,
        (f"Postgres and the topic both have version {topic.version}, with different {what}",),
    )


def _judge_row_ahead(stored: Checkpoint, topic: Checkpoint, edits: frozenset[int]) -> Finding:
    """The row is newer than the topic: only edits may make it so, one version each."""
    known = sum(1 for version in edits if topic.version < version <= stored.version)
    ahead = stored.version - topic.version
    if known == ahead:
        return Finding(Verdict.REPAIRED, ("an edit is not published yet",))
    return Finding(
        Verdict.DIVERGED,
        (
            f"Postgres is {ahead} versions ahead of the topic, {known} of them by edits: "
            "it stands for events that the topic may not have",
        ),
    )


def _judge_table(views: Views, is_settled: bool) -> Finding:
    table, topic = views.table, views.topic
    if isinstance(table, Malformed):
        return Finding(Verdict.DIVERGED, (f"the table's value is not understood: {table}",))
    if isinstance(topic, Malformed):
        return Finding(Verdict.EQUAL)  # Said of the row.
    if topic is None:
        if table is None:
            return Finding(Verdict.EQUAL)
        return Finding(
            Verdict.REPAIRED,
            (f"the table holds version {table.version}, of which the topic has no record",),
        )
    held = 0 if table is None else table.version
    if held < topic.version:
        return Finding(
            Verdict.REPAIRED if is_settled else Verdict.IN_FLIGHT,
            (f"the table is {topic.version - held} versions behind the topic",),
        )
    if held > topic.version:
        return Finding(
            Verdict.DIVERGED,
            (f"the table is {held - topic.version} versions ahead of the topic",),
        )
    assert table is not None  # noqa: S101 - versions of records start at 1
    different = table.differences(topic)
    if different or table.epoch != topic.epoch:  # It is a copy: no claim explains it.
        what = ", ".join(different) or "epoch"
        return Finding(
            Verdict.DIVERGED,
            (f"the table and the topic both have version {held}, with different {what}",),
        )
    return Finding(Verdict.EQUAL)
