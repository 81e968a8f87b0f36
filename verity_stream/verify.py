"""`verity verify`: do the three views of a checkpoint agree, and does the topic prove it?

Two questions, each decided by pure code over what was read:

1. **Views.** A connector's position stands in Postgres, in the topic and in the Faust table. They
   may differ by the page in flight; `judge` says whether that is all.
2. **Continuity** (deep). Every checkpoint record says how many events its page had and which
   offsets they took. `Continuity` holds that against the events that are there: none is missing,
   none stands outside of a page, none has the id of another.

What is read is never read at one moment, so the order of reading is what makes it comparable:
table, row, topic, row again for the views; for continuity the ends of the event topics (the last
stable offsets: everything below is decided), then the checkpoints, then the events.
"""

from __future__ import annotations

import asyncio
import enum
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from verity_sdk.errors import Malformed
from verity_stream.checkpoints import PostgresCheckpoints
from verity_stream.database import database_errors
from verity_stream.kafka.clients import partition_counts, partitions_of
from verity_stream.records import (
    CHECKPOINTS_TOPIC,
    GAPS_TOPIC,
    KINDS,
    Checkpoint,
    Kind,
    Place,
    dead_topic,
    decode_checkpoint,
    header,
    raw_topic,
)
from verity_stream.records import Sealed as Sealed
from verity_stream.records import decode_sealed as decode_sealed
from verity_stream.settings import StreamSettings
from verity_stream.topic_reader import CommittedReader, by_name
from verity_stream.topics import changelog_topic

SAMPLES_MAX = 10
"""How many repeats, orphans or wrong pages are named; all are counted."""

Policy = Literal["kafka_wins", "stop"]
Delivery = Literal["exactly_once", "at_least_once"]


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


# Continuity.


@dataclass(frozen=True, slots=True)
class Proof:
    """What the topics prove about one connector.

    Attributes:
        event_count: The connector's events that were read.
        page_count: Checkpoint records whose counts were held against the topics.
        from_version: The oldest of them; None where there is none.
        replayed_count: Repeats that an edit asked for.
        faults: What contradicts "each event once, each in a page".
        notes: What could not be proven, and why.
    """

    event_count: int
    page_count: int
    from_version: int | None
    replayed_count: int
    faults: tuple[str, ...]
    notes: tuple[str, ...]


class Continuity:
    """Holds one connector's checkpoint records against its events, one event at a time.

    Memory grows with the events, about 100 bytes each: their ids have to be compared.

    Args:
        records: The connector's checkpoint records, in the order of the topic.
        edits: The versions that edits took, as far as the audit knows them.
        bounds: The offsets of each partition that can be read: from the first, up to the last.
        delivery: With `at_least_once` a crash may leave repeats and events without a page:
            they are counted, and are no faults.
    """

    def __init__(
        self,
        records: Sequence[Sealed],
        edits: Collection[int],
        bounds: Mapping[Place, tuple[int, int]],
        delivery: Delivery = "exactly_once",
    ) -> None:
        self._records = list(records)
        self._bounds = bounds
        self._is_exact = delivery == "exactly_once"
        self._faults: list[str] = []
        self._notes: list[str] = []
        self._versions = [record.version for record in self._records]
        self._check_ascent()
        known = {record.version for record in self._records}
        # An edit takes a version, and the record that publishes it the next one.
        positions = {record.version - 1 for record in self._records if record.is_position}
        self._edits = sorted({*edits, *(positions - known)})
        self._accounted = sorted(known | set(self._edits))
        self._intervals: dict[Place, tuple[list[int], list[int], list[int]]] = {}
        self._provable = self._place_pages()
        self._found: dict[int, dict[Kind, int]] = defaultdict(lambda: defaultdict(int))
        self._parts: set[tuple[int, int]] = set()
        self._seen: dict[int, int] = {}
        self._event_count = self._replayed_count = self._unproven_count = 0
        self._orphans: list[str] = []
        self._orphan_count = 0
        self._repeats: list[str] = []
        self._repeat_count = 0

    def _check_ascent(self) -> None:
        falling = [
            f"{after} after {before}"
            for before, after in zip(self._versions, self._versions[1:], strict=False)
            if after <= before
        ]
        if falling:
            # Without transactions a relay that was replaced may write its last record late.
            where = self._faults if self._is_exact else self._notes
            where.append(f"versions do not ascend: {_sample(falling, len(falling))}")

    def _place_pages(self) -> dict[int, Sealed]:
        """Which offsets belong to which page; returns the pages whose counts can be checked."""
        provable: dict[int, Sealed] = {}
        expired = recreated = unknown = newer = 0
        spans: dict[Place, list[tuple[int, int, int]]] = defaultdict(list)
        floors: dict[Place, int] = {}
        for record in sorted(self._records, key=lambda one: one.version, reverse=True):
            is_whole = True
            for place, (first, last) in record.ranges.items():
                start, end = self._bounds.get(place, (0, 0))
                if first < 0:
                    # Acknowledged as a duplicate, whose offset the broker had forgotten.
                    unknown += 1
                    is_whole = False
                    continue
                if last >= floors.get(place, last + 1):
                    # A later page stands lower: the topic was deleted and made anew.
                    recreated += 1
                    is_whole = False
                    continue
                floors[place] = first
                spans[place].append((first, last, record.version))
                if first < start:
                    expired += 1
                    is_whole = False
                elif last >= end:
                    newer += 1
                    is_whole = False
            if is_whole:
                provable[record.version] = record
        for place, pages in spans.items():
            pages.sort()
            firsts, lasts, versions = zip(*pages, strict=True)
            self._intervals[place] = (list(firsts), list(lasts), list(versions))
        for count, why in (
            (expired, "reach back beyond what the topics retain"),
            (recreated, "lie in a topic that was deleted since"),
            (unknown, "have offsets that the broker did not tell"),
            (newer, "were published while this was read"),
        ):
            if count:
                self._notes.append(f"{count} ranges of checkpoint records {why}")
        return provable

    def take(self, place: Place, offset: int, kind: Kind, identity: bytes) -> None:
        """Take in one committed record of the connector; those of a partition come in order."""
        low, high = self._versions_at(place, offset)
        is_placed = low == high
        if is_placed:
            hashed = hash(identity)
            if kind != "dead" or (low, hashed) not in self._parts:
                self._found[low][kind] += 1
            if kind == "dead":
                self._parts.add((low, hashed))  # A long dead letter has several records.
        elif self._is_accounted(low, high):
            self._orphan_count += 1
            if len(self._orphans) < SAMPLES_MAX:
                self._orphans.append(f"{place[0]}[{place[1]}]@{offset} {_text(identity)}")
        else:
            self._unproven_count += 1
        if kind != "event":
            return
        self._event_count += 1
        hashed = hash(identity)
        earlier = self._seen.get(hashed)
        self._seen[hashed] = high if earlier is None else max(high, earlier)
        if earlier is None:
            return
        if self._is_edited_between(min(earlier, low), max(earlier, high)):
            self._replayed_count += 1
            return
        self._repeat_count += 1
        if len(self._repeats) < SAMPLES_MAX:
            self._repeats.append(_text(identity))

    def _versions_at(self, place: Place, offset: int) -> tuple[int, int]:
        """The page of an offset as twice its version, or the pages before and after it."""
        firsts, lasts, versions = self._intervals.get(place, ([], [], []))
        index = bisect_right(firsts, offset) - 1
        if index >= 0 and offset <= lasts[index]:
            return versions[index], versions[index]
        before = versions[index] if index >= 0 else 0
        newest = self._accounted[-1] if self._accounted else 0
        after = versions[index + 1] if index + 1 < len(versions) else newest + 1
        return before, after

    def _is_accounted(self, low: int, high: int) -> bool:
        """Whether every version between the two is known, so that none may have been compacted."""
        if not self._records:
            return False
        between = bisect_right(self._accounted, high - 1) - bisect_right(self._accounted, low)
        return between == high - low - 1

    def _is_edited_between(self, low: int, high: int) -> bool:
        """Whether an edit lies between two pages; a page in flight shares its version."""
        index = bisect_right(self._edits, low - 1)
        return index < len(self._edits) and self._edits[index] < high

    def finish(self) -> Proof:
        """What was proven; call it once, after the last event."""
        faults, notes = list(self._faults), list(self._notes)
        wrong = []
        for version, record in self._provable.items():
            found = self._found.get(version, {})
            wrong += [
                f"version {version} says {kind}s: {said}, the topics hold {found.get(kind, 0)}"
                for kind, said in record.counts.items()
                if found.get(kind, 0) != said
            ]
        if wrong:
            faults.append(f"counts differ: {_sample(wrong, len(wrong))}")
        of_crashes = faults if self._is_exact else notes
        if self._orphan_count:
            text = _sample(self._orphans, self._orphan_count)
            of_crashes.append(f"{self._orphan_count} records belong to no page: {text}")
        if self._repeat_count:
            text = _sample(self._repeats, self._repeat_count)
            of_crashes.append(f"{self._repeat_count} events repeat the id of another: {text}")
        if self._unproven_count:
            notes.append(
                f"{self._unproven_count} records stand outside of the pages that the compacted "
                "topic still has"
            )
        missing = self._missing_count()
        if missing:
            notes.append(f"{missing} checkpoint records are gone, as compaction removes them")
        return Proof(
            self._event_count,
            len(self._provable),
            min(self._provable, default=None),
            self._replayed_count,
            tuple(faults),
            tuple(notes),
        )

    def _missing_count(self) -> int:
        if not self._records:
            return 0
        newest = self._accounted[-1]
        return newest - len([version for version in self._accounted if version > 0])


def _sample(things: Sequence[str], count: int) -> str:
    shown = "; ".join(things[:SAMPLES_MAX])
    return f"{shown}; …" if count > SAMPLES_MAX else shown


def _text(identity: bytes) -> str:
    return identity.decode("utf-8", "replace")[:200]


# Reading.


@dataclass(slots=True)
class Report:
    """What `verify` found about one connector."""

    views: Views
    finding: Finding
    proof: Proof | None = None

    @property
    def verdict(self) -> Verdict:
        """That of the views, unless the topic contradicts itself."""
        is_refuted = self.proof is not None and self.proof.faults
        return Verdict.DIVERGED if is_refuted else self.finding.verdict

    @property
    def reasons(self) -> list[str]:
        """Why it is not equal."""
        return [*self.finding.reasons, *(self.proof.faults if self.proof is not None else ())]


async def verify(
    settings: StreamSettings,
    pool: Any,
    only: Collection[str] = (),
    *,
    is_deep: bool = False,
    settle_seconds: float | None = 2.0,
) -> list[Report]:
    """Compare all views of all connectors, twice where they differ.

    Args:
        only: These connectors; all that any view knows if empty.
        is_deep: Prove continuity from the topics, too.
        settle_seconds: How long to wait before the second look; None: there is only one.

    Raises:
        Unavailable, Denied, Misconfigured: A view can't be read; nothing is known.
    """
    views = await _look(settings, pool, only)
    policy = settings.database_behind
    findings = {name: judge(view, policy=policy, is_settled=False) for name, view in views.items()}
    are_equal = all(finding.verdict is Verdict.EQUAL for finding in findings.values())
    if settle_seconds is not None and not are_equal:
        await asyncio.sleep(settle_seconds)
        first, views = views, await _look(settings, pool, only)
        for name, view in views.items():
            is_settled = name in first and first[name].versions == view.versions
            findings[name] = judge(view, policy=policy, is_settled=is_settled)
    reports = {name: Report(view, findings[name]) for name, view in sorted(views.items())}
    if is_deep:
        edits = {name: report.views.edits for name, report in reports.items()}
        proofs = await prove(settings, edits, only)
        for name, proof in proofs.items():
            if name not in reports:
                nothing = Finding(Verdict.EQUAL)
                reports[name] = Report(Views(name), nothing)
            reports[name].proof = proof
    return [reports[name] for name in sorted(reports)]


async def _look(settings: StreamSettings, pool: Any, only: Collection[str]) -> dict[str, Views]:
    store = PostgresCheckpoints(pool)
    reader = CommittedReader(settings.kafka, transaction_timeout=settings.transaction_timeout)
    # The table as a worker would recover it: the last value of every key.
    table = by_name(await reader.last_by_key(changelog_topic(settings), decode_checkpoint))
    before = {row.connector_id: row for row in await store.load_all()}
    topic = await reader.last_checkpoints()
    after = {row.connector_id: row for row in await store.load_all()}
    edits = await _edits(pool)
    names = set(only) or {*before, *topic, *after, *table}
    return {
        name: Views(
            name,
            table.get(name),
            before.get(name),
            topic.get(name),
            after.get(name),
            edits.get(name, frozenset()),
        )
        for name in names
    }


async def _edits(pool: Any) -> dict[str, frozenset[int]]:
    async with database_errors("reading the audit trail"):
        rows = await pool.fetch(
            """
            SELECT connector_id, array_agg((after->>'version')::bigint) AS versions
            FROM connector_audit
            WHERE action IN ('edit', 'rewind') AND after ? 'version'
            GROUP BY connector_id
            """
        )
    return {row["connector_id"]: frozenset(row["versions"]) for row in rows}


async def prove(
    settings: StreamSettings, edits: Mapping[str, Collection[int]], only: Collection[str] = ()
) -> dict[str, Proof]:
    """Prove continuity of every connector from the topics alone.

    Raises:
        Unavailable, Denied: The topics can't be read.
    """
    prefixes = (raw_topic(""), dead_topic(""))
    counts = await partition_counts(
        settings.kafka, lambda name: name.startswith(prefixes) or name == GAPS_TOPIC
    )
    places = partitions_of(counts)
    decided = CommittedReader(settings.kafka, waits_for_open=False)
    # The order matters: whatever is decided now has its checkpoint in the topic by the time that
    # is read. What follows is newer than this look, and left out.
    ends = await decided.ends(places)
    sealed, malformed = await _sealed(settings, only)
    begins = await decided.begins(places)
    bounds = {(place.topic, place.partition): (begins[place], ends[place]) for place in places}

    def new(name: str) -> Continuity:
        return Continuity(sealed.get(name, ()), edits.get(name, ()), bounds, settings.delivery)

    proofs = {name: new(name) for name in sealed}
    async for records in decided.read(dict.fromkeys(places), ends):
        for record in records:
            kind = KINDS.get(header(record, "schema"))
            name = header(record, "connector_id")
            place = record.topic, record.partition
            # Published by a connector's own run(), which promises less; or since this look.
            if kind is None or not name or record.offset >= bounds[place][1]:
                continue
            if only and name not in only:
                continue
            if name not in proofs:
                proofs[name] = new(name)
            headers = dict(record.headers)
            identity = headers.get("dead_id" if kind == "dead" else "event_id") or record.value
            proofs[name].take(place, record.offset, kind, identity or b"")
    finished = {name: proof.finish() for name, proof in proofs.items()}
    for name, reason in malformed.items():
        empty = finished.get(name) or Proof(0, 0, None, 0, (), ())
        finished[name] = replace(empty, faults=(*empty.faults, reason))
    return finished


async def _sealed(
    settings: StreamSettings, only: Collection[str]
) -> tuple[dict[str, list[Sealed]], dict[str, str]]:
    found: dict[str, list[Sealed]] = defaultdict(list)
    malformed: dict[str, str] = {}
    reader = CommittedReader(settings.kafka, transaction_timeout=settings.transaction_timeout)
    async for record in reader.stream(CHECKPOINTS_TOPIC):
        if record.key is None or record.value is None:
            continue
        name = record.key.decode("utf-8", "backslashreplace")
        if only and name not in only:
            continue
        try:
            found[name].append(decode_sealed(record.value, record.key))
        except Malformed as error:
            malformed[name] = f"a checkpoint record is not understood: {error}"
    return dict(found), malformed
