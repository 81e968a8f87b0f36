"""The reference: what `docs/guarantees.md` promises of any world, and nothing of how.

It sees what is committed, at the moment when it is, and what operators and faults did. Of the
product it knows the topics and what stands in their records, as any consumer does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import orjson

from simulation.sources import Item, Truth
from simulation.wire import BEGIN
from verity_sdk.times import parse_utc
from verity_stream.records import (
    CHECKPOINTS_TOPIC,
    GAPS_TOPIC,
    IDS_TOPIC,
    dead_topic,
    permissions_topic,
    raw_topic,
)

PAUSE_SECONDS = 20.0
"""So long a pause takes at most where nothing else happens."""
RESUME_SECONDS = 250.0
"""So long a resume takes whatever else happens."""

PAGES_TOGETHER = timedelta(minutes=2)
SMALL_PAGES_IDS = 100
"""Pages of some minutes, and some small ones more, may be remembered together with one page."""

ALONE = frozenset(
    {
        *("slow", "deleted", "broker_away", "coordinator_moved", "leader_moved", "raw_deleted"),
        "woken_unheard",
    }
)
"""What may keep the broker from being asked."""

IDS_OF = {"event": 1, "malformed": 2, "altered": 2, "twin": 3, "reject": 1, "gap": 0}
"""How many ids tell a thing when it comes again."""

UNSURE_SECONDS = 3.0
"""What was started before a worker stopped knowing what it owns has claimed within this."""

POSITION = ("last_ts", "cursor", "complete_through")
COUNTS = ("event_count", "dead_count", "gap_count")

CAUSES: Mapping[str, frozenset[str]] = {
    "relay.database_behind": frozenset({"restored"}),
    # Of two that find an empty topic of another shape, one may delete what the other made anew.
    "relay.topic_behind": frozenset({"deleted", "remade", "end_lost"}),
    # Restored between a first start's two looks, the database has another key than the log.
    "ids.key_differs": frozenset({"restored"}),
    "relay.dead_letters": frozenset({"odd"}),
    "relay.gap": frozenset({"odd", "windowed"}),
    "snapshot.published": frozenset({"denied", "busy"}),
    # Nothing fences a zombie without transactions: it writes over its successor's slots of ids.
    "relay.seen_window_lost": frozenset({"zombie", "remade", "end_lost"}),
    "connector.blocked": frozenset({"forbidden", "size_limited"}),
    "worker.clock_differs": frozenset({"clock_step"}),
    # Its producer can't close while the page in its hands can't be sent or aborted.
    "runner.task_ignores_cancellation": frozenset(
        {
            *("broker_away", "coordinator_moved", "leader_moved", "database_away", "slow"),
            *("raw_deleted", "deleted", "woken_unheard"),
        }
    ),
}
"""An alarm, and what may be its cause. Any other, or one without its cause, is a violation."""


@dataclass(frozen=True)
class Facts:
    """What is true of a world from its beginning.

    Attributes:
        page_events: A page's size, as the settings say.
        worker_count: How many may hold something of a source: one of them may be a zombie.
        is_exact: Whether pages are transactions.
        causes: What was drawn that may cause an alarm, and what has happened.
        crashes: What leaves a page half published, where pages are no transactions.
        now: The world's clock, in seconds.
    """

    page_events: int
    worker_count: int
    is_exact: bool
    causes: set[str]
    crashes: frozenset[str]
    now: Callable[[], float]


@dataclass(frozen=True)
class LostPage:
    """A page whose records, or some of them, topics have lost with their ends.

    Attributes:
        gone, left: Its records.
    """

    gone: Sequence[Any]
    left: Sequence[Any]

    def has_lost(self, topic: str) -> bool:
        """Whether what it had said there is gone."""
        return any(one.topic == topic and one.value is not None for one in self.gone)

    def has_left(self, topic: str) -> bool:
        """Whether something that it said there is left, or in what came in its place."""
        return any(one.topic == topic and one.value is not None for one in self.left)


@dataclass
class Known:
    """What was committed of one connector.

    Attributes:
        events, letters, gaps: How often each thing is out, by its number.
        allowed: How often it may be.
        passed, completed: How much of the truth, by time, a checkpoint was held against.
        was_moved: Whether anybody moved its position, or took a view of it away.
        sealed: Without transactions: what was out as its owner published a checkpoint.
        claims, epoch: How often a start claimed it, and what the last one got.
        tries: How many of those in a row were a process's own while the source failed.
        claimed_by: The process that did so last.
        owner: The process that its group gave it to.
        has_moved: Whether another had been given it since the last claim.
        restart_after: How often it had been claimed when a restart was asked for.
        wish: After a move back: the numbers of what is to come again, and how often each thing was
            out before.
        newest: Of each thing that is out: the newest time in its page.
        snapshots, snapshots_asked: How many have an end, and how many operators asked for.
        owed: What topics lost with their ends and must come again: where it was counted, which
            thing. Empty once its owner has published again.
        has_lost_end: Topics have lost some of it with their ends, and its owner has published
            nothing since.
        gone: The same of what need not come again.
        due: The alarms that a start has still to raise for that.
    """

    truth: Truth
    events: list[int] = field(init=False)
    letters: list[int] = field(init=False)
    gaps: list[int] = field(init=False)
    allowed: list[int] = field(init=False)
    last: Mapping[str, Any] | None = None
    passed: int = 0
    completed: int = 0
    wish: tuple[list[int], list[int]] | None = None
    newest: dict[int, datetime] = field(default_factory=dict)
    paused_at: float | None = None
    is_snapshot_due: bool = False
    snapshots: int = 0
    snapshots_asked: int = 0
    was_moved: bool = False
    sealed: set[int] = field(default_factory=set)
    claims: int = 0
    epoch: int = 0
    tries: int = 0
    claimed_by: str = ""
    owner: str = ""
    has_moved: bool = False
    restart_after: int | None = None
    owed: list[tuple[list[int], int]] = field(default_factory=list)
    has_lost_end: bool = False
    gone: set[tuple[str, int]] = field(default_factory=set)
    due: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        count = len(self.truth.items)
        self.events, self.letters, self.gaps = [0] * count, [0] * count, [0] * count
        self.allowed = [1] * count

    @property
    def version(self) -> int:
        """Of its last checkpoint."""
        return 0 if self.last is None else int(self.last["version"])

    def count_of(self, item: Item) -> int:
        """How often a thing is out, as a whole."""
        number = item.number
        if item.kind in ("altered", "twin"):
            return min(self.events[number], self.letters[number])
        counts = {"event": self.events, "gap": self.gaps}.get(item.kind, self.letters)
        return counts[number]

    def missing(self) -> list[Item]:
        """What is not out."""
        out = self.truth.out
        return [item for item in self.truth.items if item.number not in out]


class Violated(Exception):
    """A promise was broken; says which, and of what."""


class Reference:
    """Watches one world."""

    def __init__(self, truths: Iterable[Truth], platform: str, facts: Facts) -> None:
        self.known = {truth.name: Known(truth) for truth in truths}
        self._facts = facts
        self._raw, self._dead = raw_topic(platform), dead_topic(platform)
        self._permissions = permissions_topic(platform)
        self._grants: dict[str, int] = {}
        self._ended: set[str] = set()
        self._is_free = False

    # What is committed

    def committed(self, records: Iterable[tuple[str, int, Any]], *, is_kept: bool = True) -> None:
        """A transaction is decided, or a batch without one is appended.

        Args:
            is_kept: Its checkpoint's topic has not been deleted meanwhile.

        Raises:
            Violated: A promise is broken.
        """
        by_topic: dict[str, list[Any]] = {}
        for topic, _, record in records:
            by_topic.setdefault(topic, []).append(record)
        for record in by_topic.pop(self._permissions, []):
            self._permission(record)
        by_topic.pop(IDS_TOPIC, None)  # How ids are remembered is nobody's promise.
        seals = [orjson.loads(one.value) for one in by_topic.pop(CHECKPOINTS_TOPIC, [])]
        taken: dict[str, int] = {}
        numbers: list[int] = []
        items: list[tuple[Known, Item]] = []
        for topic, found in by_topic.items():
            taken[topic] = len(found)
            for record in found:
                known, number, counts = self._found(topic, record)
                if topic == self._raw:
                    numbers.append(number)
                counts[number] += 1
                item = known.truth.items[number]
                items.append((known, item))
                if known.count_of(item):
                    known.truth.out.add(number)
                    known.truth.outstanding.discard(number)
                if counts[number] > known.allowed[number]:
                    raise Violated(f"repeated: {topic} has {known.truth.id_of(item)} once more")
        self._note_page(items)
        if self._facts.is_exact and (by_topic or seals):
            self._check_whole(seals, taken)
        for seal in seals:
            known = self.known[seal["connector_id"]]
            before = known.last
            self._check_seal(known, seal, numbers)
            if not is_kept:
                known.last = before

    def _note_page(self, items: Sequence[tuple[Known, Item]]) -> None:
        """Up to when each thing in a page may have to be recognised, with the others of it."""
        now = BEGIN + timedelta(seconds=self._facts.now())
        # A letter's may come for as long as its source looks back over the present.
        until = [one.at if one.kind == "event" else max(one.at, now) for _, one in items]
        newest = max((at for at in until if at < now + PAGES_TOGETHER), default=BEGIN)
        for (known, one), at in zip(items, until, strict=True):
            before = known.newest.get(one.number, at)
            known.newest[one.number] = max(before, newest, at)

    def _found(self, topic: str, record: Any) -> tuple[Known, int, list[int]]:
        """Whose record it is, which thing, and where such things are counted."""
        headers = dict(record.headers)
        body = orjson.loads(record.value)
        if topic == self._raw:
            name = body["event_id"]
        elif topic == GAPS_TOPIC:
            name = body["scope"]
        elif topic == self._dead:
            name = headers["event_id"].decode() if "event_id" in headers else body["data"]
        else:
            raise Violated(f"a record in a topic that nobody knows: {topic}")
        if name == "w":  # What a windowed source no longer has: it lies before all that is here.
            known = self.known[body["connector_id"]]
            if parse_utc(body["to_at"]) > known.truth.by_time[0].at:
                raise Violated(f"a gap up to {body['to_at']} of what the source still has")
            return known, 0, [0]
        connector_id, _, number = name.rpartition(":")
        known = self.known[connector_id]
        if headers["connector_id"].decode() != connector_id:
            raise Violated(f"{name} says that {headers['connector_id']!r} published it")
        counts = {self._raw: known.events, self._dead: known.letters, GAPS_TOPIC: known.gaps}
        return known, int(number), counts[topic]

    def _check_whole(self, seals: list[Any], taken: Mapping[str, int]) -> None:
        if len(seals) != 1:
            raise Violated(f"torn: {len(seals)} checkpoints in a transaction")
        (seal,) = seals
        for topic, field_name in (
            (self._raw, "event_count"),
            (self._dead, "dead_count"),
            (GAPS_TOPIC, "gap_count"),
        ):
            if taken.get(topic, 0) != seal[field_name]:
                raise Violated(
                    f"torn: {taken.get(topic, 0)} in {topic}, and its checkpoint says "
                    f"{seal[field_name]}"
                )

    def _check_seal(self, known: Known, seal: Mapping[str, Any], numbers: list[int]) -> None:
        """What a checkpoint passes is out, with it or before it."""
        truth, before = known.truth, known.last
        known.owed, known.has_lost_end = [], False
        # Without transactions a zombie's may come last; the newest counts: versions ascend, and of
        # two starts that made the same one, the later start's.
        if before is None or self._facts.is_exact or _age(seal) >= _age(before):
            known.last = seal
        if not self._facts.is_exact and seal["epoch"] == known.epoch:  # Else it is a zombie's.
            known.sealed |= {item.number for item in truth.items if known.count_of(item)}
        # Of a zombie's the epoch tells.
        must_ascend = before is not None and (
            self._facts.is_exact or seal["epoch"] == before["epoch"]
        )
        if before is not None and must_ascend and seal["version"] <= before["version"]:
            raise Violated(f"versions: {seal['version']} after {before['version']}")
        is_new = before is None or any(seal[name] != before[name] for name in POSITION)
        # A start without transactions may have to write down again which ids a zombie overwrote.
        is_new = is_new or not must_ascend
        if not (is_new or known.was_moved or any(seal[name] for name in COUNTS)):
            raise Violated(f"idle: version {seal['version']} of {truth.name} tells nothing new")
        if known.paused_at is not None and "busy" not in self._facts.causes:
            seconds = self._facts.now() - known.paused_at
            if seconds > PAUSE_SECONDS:
                raise Violated(f"{truth.name} publishes {seconds:.0f} s after it was paused")
        cursor, kind = seal["cursor"], truth.plan["kind"]
        if kind == "plain":
            end = truth.index_of(parse_utc(seal["last_ts"]) - timedelta(seconds=truth.lookback))
            self._require(known, truth.by_time[known.passed : end], "the watermark passed")
            known.passed = max(known.passed, end)
        elif kind == "windowed":
            if cursor is not None and "w" in cursor["streams"]:
                end = truth.index_of(parse_utc(cursor["streams"]["w"]["through"]))
                settle = truth.plan["settle"]
                passed = truth.by_time[known.passed : end]
                self._require(
                    known,
                    (one for one in passed if one.visible_at <= max(0.0, _seconds(one) + settle)),
                    "the window passed",
                )
                known.passed = max(known.passed, end)
        elif cursor is not None:
            end = cursor["next"]
            if numbers and max(numbers) >= end and self._facts.is_exact:
                raise Violated(f"torn: {truth.name}:{max(numbers)} is out, and the cursor is {end}")
            self._require(known, truth.items[known.passed : end], "the cursor passed")
            known.passed = max(known.passed, end)
        if seal["complete_through"] is not None:
            through = parse_utc(seal["complete_through"])
            end = truth.index_of(through + timedelta(microseconds=1))
            self._require(
                known, truth.by_time[known.completed : end], f"complete through {through}:"
            )
            known.completed = max(known.completed, end)

    def _require(self, known: Known, items: Iterable[Item], why: str) -> None:
        out = known.truth.out
        for item in items:
            if item.number not in out:
                raise Violated(f"lost: {why} {known.truth.id_of(item)} ({item.kind})")

    def _permission(self, record: Any) -> None:
        headers = dict(record.headers)
        snapshot_id, kind = headers["snapshot_id"].decode(), headers["record"].decode()
        if snapshot_id in self._ended or (kind == "start") == (snapshot_id in self._grants):
            raise Violated(f"snapshot: {kind} of {snapshot_id} out of order")
        if kind == "start":
            self._grants[snapshot_id] = 0
        elif kind == "grant":
            self._grants[snapshot_id] += 1
        else:
            body = orjson.loads(record.value)
            known = self.known[body["connector_id"]]
            count, self._ended = self._grants[snapshot_id], self._ended | {snapshot_id}
            if body["grant_count"] != count:
                raise Violated(f"snapshot: {count} grants, and its end says {body['grant_count']}")
            if body["is_complete"] and count != known.truth.plan["grants"]:
                raise Violated(f"snapshot: complete with {count} grants")
            # A worker that was frozen finds that its source was silent for too long.
            was_silent = any("fetch_timeout" in one["reason"] for one in body["scopes_denied"])
            may_lack = known.truth.plan["denied_share"] or (
                was_silent and "busy" in self._facts.causes
            )
            if not body["is_complete"] and not may_lack:
                raise Violated("snapshot: partial, and nothing was denied")
            known.is_snapshot_due = False
            known.snapshots += 1
            # One of its own, and once more where its record was lost with a start or an answer.
            if known.snapshots > 3 + 2 * known.snapshots_asked + known.claims:
                raise Violated(
                    f"snapshot: {known.snapshots} of {known.truth.name}, and "
                    f"{known.snapshots_asked} were asked for"
                )

    def snapshot_asked(self, name: str) -> None:
        """An operator is about to ask: it can be taken before the answer is here."""
        self.known[name].is_snapshot_due = True
        self.known[name].snapshots_asked += 1

    # Who runs what

    def shared(self, name: str, owner: str) -> None:
        """A new generation of the group gives a connector to a process."""
        known = self.known[name]
        known.has_moved |= known.owner != owner
        known.owner = owner

    def claimed(self, name: str, process: str, epoch: int, unsure_seconds: float) -> None:
        """A process starts a connector.

        Args:
            unsure_seconds: For how long it has not known any more what it owns.

        Raises:
            Violated: It doesn't know that it owns it, or it ran it all the while.
        """
        known, causes = self.known[name], self._facts.causes
        known.claims, known.epoch = known.claims + 1, epoch
        if not self._facts.is_exact and causes & self._facts.crashes:
            # Two may have it in hand now, the one before and this one.
            for number in range(len(known.allowed)):
                known.allowed[number] += number not in known.sealed
        if unsure_seconds > UNSURE_SECONDS and not causes & {"slow", "row_locked"}:
            raise Violated(
                f"placement: {process} starts {name}, and has not known for "
                f"{unsure_seconds:.1f} s whether it owns it"
            )
        is_again = known.claimed_by == process and not known.has_moved
        if is_again and self._facts.is_exact and "ended" not in causes:
            raise Violated(f"placement: {process} starts {name} again, which had stayed with it")
        outage_seconds = known.truth.outage_seconds
        known.tries = known.tries + 1 if is_again and outage_seconds else 0
        # One was under way as it began, and what was in hand then may have been progress.
        if known.tries > 3 + math.log2(1 + 2 * outage_seconds) and "asked" not in causes:
            raise Violated(
                f"back-off: {known.tries} starts of {name} in {outage_seconds:.0f} s of failures"
            )
        known.claimed_by, known.has_moved = process, process != known.owner

    def reported(self, name: str, process: str, state: str, error: str | None) -> None:
        """A process says how a connector fares.

        Raises:
            Violated: It says that another has taken over, and none has.
        """
        if state != "stopped" or not (error or "").startswith("Fenced"):
            return
        # Where writing a status takes long, its process may have claimed once more by then.
        is_explained = self._facts.causes & {"restored", "slow", "row_locked"}
        if self.known[name].claimed_by == process and not is_explained:
            raise Violated(
                f"status: {process} says of {name} {error!r}, and nobody else claimed it"
            )

    # What operators and faults did

    @property
    def resume_seconds(self) -> float:
        """So long at most until a connector that is resumed asks its source again.

        Whoever resumes it has mended something. Less than until a blocked one's probe in any case.
        """
        is_slow = self._facts.causes & {"busy", "slow", "read"}
        return RESUME_SECONDS if is_slow else PAUSE_SECONDS

    def happened(self, what: str) -> bool:
        """Something that may be the cause of an alarm has happened; always True."""
        self._facts.causes.add(what)
        return True

    def moved(self, name: str, to: datetime) -> None:
        """A position was moved back: what comes after it comes again, once."""
        truth = self.known[name].truth
        since, first = to - timedelta(seconds=truth.lookback + 1), truth.first_since(to)
        self._replays(
            name,
            [one.number for one in truth.items if one.at >= since or one.number >= first],
            [one.number for one in truth.items if one.at >= to],
        )

    def cursor_moved(self, name: str, to: int) -> None:
        """The same of a cursor: what comes after it comes again, once."""
        truth = self.known[name].truth
        again = range(to, len(truth.items))
        self._replays(name, range(max(0, to - truth.plan["overlap"]), len(truth.items)), again)

    def _replays(self, name: str, may: Iterable[int], must: Iterable[int]) -> None:
        known = self.known[name]
        known.was_moved = True
        self._forgive(known)
        for number in may:
            known.allowed[number] += 1
        if not self._is_free:
            known.wish = list(must), [known.count_of(item) for item in known.truth.items]

    def restored(self) -> None:
        """The database is an older one: it forgot what operators asked for meanwhile."""
        taken_too = {"deleted", "end_lost"} & self._facts.causes
        self._is_free |= self.happened("restored") and bool(taken_too)
        for known in self.known.values():
            self._forgive(known)
            known.due.clear()
            known.wish = None
            known.was_moved = True
            known.paused_at = None
            known.is_snapshot_due = False
            known.restart_after = None
        self._free_all()

    def checkpoints_deleted(self) -> None:
        """The topic's versions are gone: Postgres' count."""
        self._is_free |= self.happened("deleted") and "restored" in self._facts.causes
        for known in self.known.values():
            self._forgive(known)
            known.last = None
            known.was_moved = True
        self._free_all()

    def end_lost(
        self,
        pages: Iterable[LostPage],
        kept: Iterable[Any],
        rows: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Topics have lost their ends while nobody ran.

        Where its checkpoint went along, a page is fetched once more: the position goes back to the
        last one that is left. What is left of it is recognised, and so is what the log of ids still
        tells of. Where no checkpoint is left, or an operator has moved the row meanwhile, only
        the row tells where to go on.

        Args:
            pages: All that lost something.
            kept: The checkpoints that are left.
            rows: Of `connector_checkpoints`.
        """
        self._is_free |= "restored" in self._facts.causes
        self._free_all()
        seals: dict[str, Any] = {}
        newest: dict[str, Any] = {}
        for record in kept:
            seal = orjson.loads(record.value)
            before = seals.get(seal["connector_id"])
            if before is None or self._facts.is_exact or _age(seal) >= _age(before):
                seals[seal["connector_id"]], newest[seal["connector_id"]] = seal, record
        goes_back, is_told = set(), set()
        for name, known in self.known.items():
            known.was_moved = True
            if known.last is None:
                continue
            last, known.last = known.last, seals.get(name)
            row = rows.get(name) or {"version": 0, "published_version": 0}
            if known.version < row["published_version"]:
                known.due.add("relay.topic_behind")
                is_told.add(name)
            if known.last is not None and row["version"] <= row["published_version"]:
                goes_back.add(name)
            if known.last is None or _age(known.last) < _age(last):
                known.passed = known.completed = 0
                if row["version"] <= row["published_version"]:
                    known.wish = None
        for page in pages:
            is_forgotten = page.has_lost(CHECKPOINTS_TOPIC) and not page.has_left(IDS_TOPIC)
            for record in page.gone:
                if (found := self._thing(record)) is None:
                    continue
                known, number, counts = found
                known.has_lost_end = True
                if is_forgotten and known.truth.name in goes_back and self._facts.is_exact:
                    counts[number] -= 1
                    known.owed.append((counts, number))
                    if not known.count_of(known.truth.items[number]):
                        known.truth.out.discard(number)
                else:
                    known.allowed[number] += 1
                    known.gone.add((record.topic, number))
            for record in page.left:
                if (found := self._thing(record)) is None:
                    continue
                known, number, _ = found
                known.has_lost_end = True
                # Nobody can tell a page that no row knows from one that never was.
                is_unknown = is_forgotten and known.truth.name not in is_told
                # A gap has no id.
                is_gap = record.topic == GAPS_TOPIC and page.has_lost(CHECKPOINTS_TOPIC)
                known.allowed[number] += is_unknown or is_gap
            for record in page.left:
                if page.has_lost(IDS_TOPIC) and newest.get(_name_of(record)) is record:
                    known = self.known[_name_of(record)]
                    if known.truth.name in goes_back and self._facts.is_exact:
                        known.due.add("relay.seen_window_lost")

    def _thing(self, record: Any) -> tuple[Known, int, list[int]] | None:
        """What a record is about, where that is a thing that is counted."""
        if record.topic not in (self._raw, self._dead, GAPS_TOPIC):
            return None
        found = self._found(record.topic, record)
        return None if found[2] == [0] else found

    def _forgive(self, known: Known) -> None:
        """What topics lost need not come again: the position is another's business now."""
        for counts, number in known.owed:
            counts[number] += 1
            known.allowed[number] += 1
            if known.count_of(known.truth.items[number]):
                known.truth.out.add(number)
            known.gone |= {(topic, number) for topic in (self._dead, GAPS_TOPIC)}
        known.owed = []

    def cleaned(self) -> None:
        """Retention took the records by which what is left would have been recognised."""
        for known in self.known.values():
            if known.has_lost_end:
                known.allowed = [count + 1 for count in known.allowed]

    def raw_deleted(self) -> None:
        """What was published is gone: it can't be repeated."""
        for known in self.known.values():
            gone = [count + 1 for count in known.events]
            known.allowed = list(map(max, known.allowed, gone))

    def _free_all(self) -> None:
        if self._is_free:  # Both views are gone: only an older row knows a position.
            for known in self.known.values():
                known.allowed = [1_000_000] * len(known.allowed)
                known.wish = None

    def alarm(self, event: str, error: str = "", whose: str = "") -> None:
        """An operator is woken up.

        Args:
            whose: The connector that it is about, if any.

        Raises:
            Violated: Nothing happened that would be a reason.
        """
        if not CAUSES.get(event, frozenset()) & self._facts.causes:
            raise Violated(f"alarm: {event} without a cause{error and f': {error}'}")
        if whose in self.known:
            self.known[whose].due.discard(event)

    def left_open(self, producer: str) -> None:
        """A producer has gone by itself, and has left its transaction open.

        Raises:
            Violated: The broker could be asked to abort it: who reads what is committed, and who
                starts, would have to wait for its time-out.
        """
        if not self._facts.causes & ALONE:
            raise Violated(f"stall: {producer} went and left its transaction open")

    def served(self, truth: Truth) -> None:
        """A source has handed something out.

        Raises:
            Violated: More is held in memory than two pages, and one more of the source's.
        """
        if truth.plan["kind"] == "windowed":
            return  # A slice is fetched as a whole.
        size = truth.plan["page"] + truth.plan["overlap"]
        bound = 2 * (self._facts.page_events + size) + size + 25
        bound *= min(2, self._facts.worker_count)
        if len(truth.outstanding) > bound:
            raise Violated(f"memory: {len(truth.outstanding)} things are held; {bound} may be")

    # At the end

    def left(self, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """What is still to come once all faults are over, in words; empty where all is well.

        Args:
            rows: Of `connector_checkpoints`.
        """
        found = []
        for name, known in self.known.items():
            missing = known.missing()
            if missing:
                item = missing[0]
                found.append(f"{len(missing)} not out, first {name}:{item.number} ({item.kind})")
            row, last = rows.get(name), known.last
            if last is not None and (
                row is None
                or (row["version"], row["cursor"], row["last_ts"])
                != (last["version"], last["cursor"], parse_utc(last["last_ts"]))
            ):
                found.append(f"the row of {name} differs from the topic")
            found += [f"{event} of {name} was never said" for event in sorted(known.due)]
            if known.is_snapshot_due:
                found.append(f"no snapshot of {name}")
            if known.restart_after is not None and known.claims <= known.restart_after:
                found.append(f"{name} was not started anew, as was asked for")
            if known.wish is not None:
                wanted, before = known.wish
                again = [
                    number
                    for number in wanted
                    if known.count_of(known.truth.items[number]) <= before[number]
                ]
                if again:
                    found.append(f"{name} was moved back, and {len(again)} did not come again")
        return found

    def ended(self, kept: Mapping[str, Iterable[Any]]) -> None:
        """What holds once a world is at rest.

        Args:
            kept: The records that the topics of gaps and dead letters still have.

        Raises:
            Violated: A promise is broken.
        """
        held = {
            (topic, known.truth.name, number)
            for topic, records in kept.items()
            for record in records
            for known, number, _ in (self._found(topic, record),)
        }
        for name, known in self.known.items():
            for topic, counts in ((GAPS_TOPIC, known.gaps), (self._dead, known.letters)):
                for number, count in enumerate(counts):
                    is_held = (topic, name, number) in held or (topic, number) in known.gone
                    if count and not is_held:
                        raise Violated(f"lost: {topic} no longer has {name}:{number}")
            if self._facts.is_exact:
                self._check_remembered(known)

    def _check_remembered(self, known: Known) -> None:
        """The window holds the ids of the lookback, page by page, and no more."""
        if known.last is None or known.last["seen"] is None:
            return
        truth, count = known.truth, known.last["seen"]["count"]
        begin = parse_utc(known.last["last_ts"]) - timedelta(seconds=truth.lookback)
        # A page is remembered as a whole, and small ones together.
        since, rest = begin - PAGES_TOGETHER, SMALL_PAGES_IDS
        bound = rest + sum(
            IDS_OF[truth.items[number].kind]
            for number, newest in known.newest.items()
            if newest >= since
        )
        if count > bound:
            raise Violated(f"memory: {count} ids are remembered; {bound} may be")


def _age(seal: Mapping[str, Any]) -> tuple[int, int]:
    return seal["version"], seal["epoch"]


def _name_of(record: Any) -> str:
    """Whose checkpoint a record is; empty where it is none."""
    return record.key.decode() if record.topic == CHECKPOINTS_TOPIC else ""


def _seconds(item: Item) -> float:
    return (item.at - BEGIN).total_seconds()
