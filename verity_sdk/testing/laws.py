"""The laws L1 to L28, one test each. What they promise is said in their docstrings."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import gc
import io
import json
import logging
import traceback
import tracemalloc
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, ClassVar, NoReturn
from urllib.parse import quote

import pytest

from verity_sdk.batches import closing
from verity_sdk.connector_base import BaseConnector, PermissionSnapshot, RawEvent, has_check
from verity_sdk.errors import Denied, Fenced, Misconfigured, Unavailable, VerityError
from verity_sdk.pages import Page, PagedConnector, Position, SnapshotGap, SnapshotScope
from verity_sdk.position import NAME_RULE, is_valid_name
from verity_sdk.testing.driver import Collector, LawBroken, State, opened
from verity_sdk.testing.faults import Fault
from verity_sdk.testing.report import OUTCOMES, Outcome, Verdict
from verity_sdk.testing.source import GrantTuple, SourceUnderTest, declared

MARGIN = timedelta(minutes=2)
"""Events are added within seconds after the time that is asked for; all of them are past then."""
TICK = timedelta(seconds=1)
"""Between the end of a pass and what happens next, in all laws but L1: ties are that law's."""
FOREVER = 200
"""A fault that is injected so many times lasts longer than any law."""
EVENT_BYTES = 1000
"""By so much memory may grow with each event of a longer history: a fake in this process keeps a
little of each request, while an event with its record, if it is kept, takes several times that."""
UNKNOWN_VERSION = 1_000_000
VERSION_KEYS = ("v", "version")


class _NotApplicable(Exception):
    """The law has nothing to say about this source; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Law:
    """One law.

    Attributes:
        label: `L1` and so on.
        title: In a few words.
        cases: The faults with which it runs one by one; (None,) where there is one run.
        needs: Faults without which it can't run.
        run: Runs one case against a source, and says what came of it; it does not raise.
    """

    label: str
    title: str
    cases: tuple[Fault | None, ...]
    needs: tuple[Fault, ...]
    run: Callable[[ConnectorLaws, SourceUnderTest, Fault | None], Outcome]


LAWS: dict[str, Law] = {}
"""All laws by their labels, in order."""

_LawMethod = Callable[..., None]


def _law(
    label: str, title: str, *, each: Sequence[Fault] = (), needs: Sequence[Fault] = ()
) -> Callable[[_LawMethod], _LawMethod]:
    """Make a method a law: numbered, skipped where it does not apply, and on the record.

    Args:
        each: It runs once for each of these faults, handed to it as `fault`.
        needs: It runs only where the source shows these.
    """

    def decorate(method: _LawMethod) -> _LawMethod:
        def judged(
            suite: ConnectorLaws, source: SourceUnderTest, fault: Fault | None
        ) -> tuple[Outcome, BaseException | None]:
            case = "" if fault is None else fault.name
            arguments = {} if fault is None else {"fault": fault}
            error: BaseException | None = None
            try:
                _require_applicable(source, label, (*needs, *([] if fault is None else [fault])))
                method(suite, source, **arguments)
                verdict, reason = Verdict.HOLDS, ""
            except _NotApplicable as why:
                verdict, reason = Verdict.DOES_NOT_APPLY, str(why)
            except Exception as broken:  # noqa: BLE001 - whatever it is, the law does not hold
                is_said = isinstance(broken, LawBroken)
                reason = str(broken) if is_said else f"{type(broken).__name__}: {broken}"
                verdict, error = Verdict.BROKEN, broken
            return Outcome(suite.connector_name(), label, title, case, verdict, reason), error

        @functools.wraps(method)
        def test(self: ConnectorLaws, source: SourceUnderTest, **parameters: Any) -> None:
            outcome, error = judged(self, source, parameters.get("fault"))
            OUTCOMES.append(outcome)
            if outcome.verdict is Verdict.DOES_NOT_APPLY:
                pytest.skip(f"{label} does not apply: {outcome.reason}")
            if outcome.verdict is Verdict.BROKEN:
                raise LawBroken(f"{label} ({title}) is broken: {outcome.reason}") from error

        def run(suite: ConnectorLaws, source: SourceUnderTest, fault: Fault | None) -> Outcome:
            return judged(suite, source, fault)[0]

        LAWS[label] = Law(label, title, tuple(each) or (None,), tuple(needs), run)
        if not each:
            return test
        parametrized: _LawMethod = pytest.mark.parametrize(
            "fault", each, ids=[one.name for one in each]
        )(test)
        return parametrized

    return decorate


@contextmanager
def _own_garbage() -> Iterator[None]:
    """Within, `gc.collect()` looks through what was made within, and through nothing else.

    In a process with a large suite, looking through all of it takes half a second each time.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def judge(
    suite: ConnectorLaws,
    make_source: Callable[[], AbstractContextManager[SourceUnderTest]],
    labels: Iterable[str] | None = None,
) -> list[Outcome]:
    """Run laws without pytest, each with a source of its own; all, or those with these labels."""
    outcomes = []
    for label in LAWS if labels is None else labels:
        law = LAWS[label]
        for fault in law.cases:
            with make_source() as source:
                outcomes.append(law.run(suite, source, fault))
    return outcomes


class ConnectorLaws:
    """Subclass it as `Test…`, name `connector_class`, and give it a fixture `source`.

    The numbers may be changed where a source needs it; smaller ones prove less.

    Attributes:
        connector_class: Whose laws these are. A connector that is registered under the entry points
            `verity.connectors` without a class of laws of its own fails the project's tests.
        events_count: So many events most laws lay.
        history: Over so long a time before now.
        crashes_max: At most so many crashes of each kind (L5).
        page_events_max: The most events that a page may have (L18).
        memory_events_per_slice: How dense the long history is (L18).
        pass_seconds_max: The longest that a pass may take, in real seconds.
        hanging_seconds_max: The longest that a source that never answers may hold a pass (L23).
        law_seconds_max: The longest that a law may take.
    """

    connector_class: ClassVar[type[BaseConnector] | None] = None
    events_count: ClassVar[int] = 40
    history: ClassVar[timedelta] = timedelta(hours=3)
    crashes_max: ClassVar[int] = 20
    page_events_max: ClassVar[int] = 10_000
    memory_events_per_slice: ClassVar[int] = 150
    pass_seconds_max: ClassVar[float] = 30.0
    hanging_seconds_max: ClassVar[float] = 20.0
    law_seconds_max: ClassVar[float] = 120.0

    @classmethod
    def connector_name(cls) -> str:
        """The platform's name, in the report."""
        if cls.connector_class is None:
            return cls.__name__
        return cls.connector_class.PLATFORM or cls.connector_class.__name__

    # Events

    @_law("L1", "no event is lost at ties")
    def test_l1_no_event_is_lost_at_ties(self, source: SourceUnderTest) -> None:
        """Events that share their time, also with the newest event that was read, are all there.

        Others happen at the very instant at which a pass ended; and the history crosses midnight.
        """

        async def scenario() -> None:
            since = source.now() - timedelta(hours=26)
            now = source.now()
            midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
            source.add_events(5, at=since + MARGIN)
            source.add_events(4, at=midnight - timedelta(seconds=1))
            source.add_events(4, at=midnight)
            self._lay(source)
            source.add_events(7, at=now)
            collector = self._collector(source, since)
            await collector.catch_up()
            source.add_events(7, at=now)
            await self._collect_all(collector)
            self._expect_truth(collector)

        self._run(scenario())

    @_law("L2", "late events are found")
    def test_l2_late_events_are_found(self, source: SourceUnderTest) -> None:
        """An event that becomes visible up to `late_by` after it occurred is found, once.

        Meanwhile passes go on, and younger events move the watermark beyond it.
        """

        async def scenario() -> None:
            async with opened(source) as connector:
                lookback = declared(source, connector, "lookback") or timedelta(0)
            late_by = lookback / 2 if source.late_by is None else source.late_by
            if late_by <= timedelta(0):
                raise _NotApplicable("it declares no lookback: nothing comes late")
            collector = self._collector(source, self._lay(source))
            await self._collect_all(collector)
            source.advance(TICK)
            at = source.now()
            late = set(source.add_events(5, at=at, visible_at=at + late_by))
            for part in range(4):
                source.add_events(3, at=at + late_by * part / 4)
                source.advance(late_by / 4)
                await collector.catch_up()
            deadline = source.now() + source.late_found_within
            while not late <= set(collector.events) and source.now() < deadline:
                source.advance(min(timedelta(minutes=5), source.late_found_within))
                await collector.catch_up()
            missing = sorted(late - set(collector.events))
            if missing:
                raise LawBroken(
                    f"{_few(missing)} became visible {late_by} late and were not found within "
                    f"{source.late_found_within}; if less is promised, say so in late_by"
                )
            await self._collect_all(collector)
            self._expect_truth(collector)

        self._run(scenario())

    @_law("L3", "the order of the source does not matter")
    def test_l3_the_order_of_the_source_does_not_matter(self, source: SourceUnderTest) -> None:
        """Events that the source got in another order than that of their times are all there."""

        async def scenario() -> None:
            now = source.now()
            for minutes in (10, 130, 50, 170, 30, 90, 5, 150):
                source.add_events(5, at=now - timedelta(minutes=minutes))
            collector = self._collector(source, now - self.history - MARGIN)
            await self._collect_all(collector)
            self._expect_truth(collector)

        self._run(scenario())

    @_law("L4", "a repeat has the id it had", needs=[Fault.REPEATED_EVENT])
    def test_l4_a_repeat_has_the_id_it_had(self, source: SourceUnderTest) -> None:
        """An event that the source gives on two pages has one id: nothing is twice or missing."""
        self._survives(source, Fault.REPEATED_EVENT, times=2)

    @_law("L5", "a crash anywhere loses nothing")
    def test_l5_a_crash_anywhere_loses_nothing(self, source: SourceUnderTest) -> None:
        """A worker that dies at any wait, or while any request is under way, loses nothing.

        The next one starts with a new connector from the last page that was published.
        """

        async def scenario() -> None:
            since = self._lay(source)
            await self._settle(source)
            requests_before = source.requests_count()
            waits = await self._collector(source, since).suspensions_count()
            requests = 0
            if requests_before is not None:
                requests = (source.requests_count() or 0) - requests_before
            crashes: list[tuple[str, int]] = [
                *(("wait", number) for number in _spread(waits, self.crashes_max)),
                *(("request", number) for number in _spread(requests, self.crashes_max)),
            ]
            died = 0
            for kind, number in crashes:
                collector = self._collector(source, since)
                if kind == "wait":
                    died += await collector.crash_at_suspension(number)
                else:
                    died += await collector.crash_during_request(number)
                await collector.catch_up()
                self._expect_truth(collector, f"after a crash at {kind} {number}: ")
            if not died:
                raise LawBroken("no crash happened: the pass never waits")

        self._run(scenario())

    @_law(
        "L6",
        "throttling and outages lose nothing",
        each=[
            Fault.THROTTLED_SECONDS,
            Fault.THROTTLED_DATE,
            Fault.THROTTLED_BARE,
            Fault.UNAVAILABLE,
        ],
    )
    def test_l6_throttling_loses_nothing(self, source: SourceUnderTest, fault: Fault) -> None:
        """A storm of 429 or 503 in the middle of a pass ends in Unavailable, or is sat out."""
        self._survives(source, fault, times=6, after=1)

    @_law("L7", "an expired token is renewed", needs=[Fault.TOKEN_EXPIRED])
    def test_l7_an_expired_token_is_renewed(self, source: SourceUnderTest) -> None:
        """A bearer that expires in the middle of a pass is renewed; nobody is called."""
        self._survives(source, Fault.TOKEN_EXPIRED, times=1, after=1)

    @_law("L8", "a repeated page token ends", needs=[Fault.REPEATED_TOKEN])
    def test_l8_a_repeated_page_token_ends(self, source: SourceUnderTest) -> None:
        """A page that names itself as the next ends the pass with an error, or it starts anew.

        It is neither an endless loop nor the end of the listing: nothing is lost.
        """

        async def scenario() -> None:
            since = self._lay(source)
            await self._settle(source)
            for times in (1, FOREVER):
                source.inject(Fault.REPEATED_TOKEN, times=times)
                collector = self._collector(source, since)
                async with opened(source) as connector:
                    with contextlib.suppress(VerityError):
                        await collector.one_pass(connector)
                if times == 1:
                    self._expect_happened(source)
                source.heal()
                await self._collect_all(collector)
                self._expect_truth(collector)

        self._run(scenario())

    @_law("L9", "an empty page is not the end", needs=[Fault.EMPTY_PAGE])
    def test_l9_an_empty_page_is_not_the_end(self, source: SourceUnderTest) -> None:
        """Behind a page without events, but with a token, the listing goes on."""
        self._survives(source, Fault.EMPTY_PAGE, times=2)

    @_law("L10", "an expired page token starts anew", needs=[Fault.PAGE_TOKEN_EXPIRED])
    def test_l10_an_expired_page_token_starts_anew(self, source: SourceUnderTest) -> None:
        """A page token that the source has forgotten makes it ask again, and loses nothing."""
        self._survives(source, Fault.PAGE_TOKEN_EXPIRED, times=1)

    @_law("L11", "a broken answer is not an answer", each=[Fault.DROPPED, Fault.NOT_JSON])
    def test_l11_a_broken_answer_is_no_answer(self, source: SourceUnderTest, fault: Fault) -> None:
        """A body that is cut short, or a proxy's page, is asked for again, and loses nothing."""
        self._survives(source, fault, times=2, after=1)

    @_law("L12", "a malformed record stops nothing", needs=[Fault.MALFORMED_RECORD])
    def test_l12_a_malformed_record_stops_nothing(self, source: SourceUnderTest) -> None:
        """A record that is not understood is rejected with its bytes; all others are there."""
        times = 2

        async def scenario() -> None:
            since = self._lay(source)
            await self._settle(source)
            self._require_paged(source, "a plain connector has no place for rejected records")
            source.inject(Fault.MALFORMED_RECORD, times=times)
            collector = self._collector(source, since)
            await collector.catch_up()
            self._expect_happened(source)
            if not collector.rejected:
                raise LawBroken("the record was dropped: no page has it under `rejected`")
            for record in collector.rejected:
                if not isinstance(record.data, bytes) or not record.data or not record.reason:
                    raise LawBroken(f"a rejected record without its bytes or a reason: {record}")
            missing = set(source.event_ids()) - set(collector.events)
            if len(missing) > min(times, len(collector.rejected)):
                raise LawBroken(
                    f"{len(missing)} events are missing for {len(collector.rejected)} rejected "
                    f"records: {_few(missing)}"
                )
            self._expect_nothing_else(collector)

        self._run(scenario())

    @_law("L13", "the unknown is kept", each=[Fault.UNKNOWN_ENUM, Fault.NULL_ACTOR])
    def test_l13_the_unknown_is_kept(self, source: SourceUnderTest, fault: Fault) -> None:
        """A value that no specification lists, or nobody as the actor, is an event like others."""
        collector = self._survives(source, fault, times=2)
        if collector.rejected:
            raise LawBroken(f"rejected instead of kept: {collector.rejected[0].reason}")

    # Positions

    @_law("L14", "every page boundary resumes")
    def test_l14_every_page_boundary_resumes(self, source: SourceUnderTest) -> None:
        """From the cursor of each page, hours later and in a new connector, the rest comes."""

        async def scenario() -> None:
            since = self._lay(source)
            await self._settle(source)
            collector = self._collector(source, since)
            boundaries = [collector.copy()]
            collector.on_page = lambda *_: boundaries.append(collector.copy())
            await collector.catch_up()
            if len(boundaries) < 3:
                raise LawBroken(
                    f"all {self.events_count} events came in {len(boundaries) - 1} page: there is "
                    "no boundary to resume from; make pages smaller"
                )
            source.advance(TICK)
            source.add_events(5, at=source.now())
            source.advance(timedelta(hours=1))
            await self._settle(source)
            for number in (0, *_spread(len(boundaries) - 1, self.crashes_max)):
                resumed = boundaries[number].copy()
                await resumed.catch_up()
                self._expect_truth(resumed, f"from the cursor of page {number}: ")

        self._run(scenario())

    @_law("L15", "a cursor is JSON, and versioned")
    def test_l15_a_cursor_is_json_and_versioned(self, source: SourceUnderTest) -> None:
        """A cursor survives JSON unchanged and says its version; an unknown one is refused.

        The version is an integer under `v` or `version`. An unknown one is `Misconfigured`: to
        start anew in silence would lose events or repeat them.
        """

        async def scenario() -> None:
            self._require_paged(source, "a plain connector has no cursor")
            since = self._lay(source)
            await self._settle(source)
            collector = self._collector(source, since)
            cursors: list[Any] = []
            collector.on_page = lambda page, *_: cursors.append(page.cursor)
            await collector.catch_up()
            if not cursors:
                raise LawBroken("a pass over events yielded no page")
            for cursor in cursors:
                stored = json.loads(json.dumps(cursor, allow_nan=False))
                if stored != cursor or not isinstance(stored, dict):
                    raise LawBroken(f"through JSON {cursor!r} becomes {stored!r}")
                key = next((key for key in VERSION_KEYS if key in stored), None)
                if key is None or type(stored[key]) is not int:
                    raise LawBroken(f"no version under {' or '.join(VERSION_KEYS)} in {stored!r}")
            unknown = {**stored, key: UNKNOWN_VERSION}
            collector.state = State(collector.state.last_ts, json.dumps(unknown))
            async with opened(source) as connector:
                try:
                    await collector.one_pass(connector)
                except Misconfigured as error:
                    if not str(error).strip():
                        raise LawBroken("an unknown version is refused without a word") from error
                    return
            raise LawBroken(f"a cursor of version {UNKNOWN_VERSION} was taken as if it were known")

        self._run(scenario())

    @_law("L16", "any since is served")
    def test_l16_any_since_is_served(self, source: SourceUnderTest) -> None:
        """A start in the future waits; one beyond the source's retention is a gap, told once."""

        async def scenario() -> None:
            async with opened(source) as connector:
                retention = declared(source, connector, "retention")
                lookback = declared(source, connector, "lookback") or timedelta(0)
                is_paged = isinstance(connector, PagedConnector)
            self._lay(source)
            await self._settle(source)
            now = source.now()
            ago = max(timedelta(days=2), 2 * lookback)
            if retention is not None:
                ago = 2 * retention
            past = self._collector(source, now - ago)
            await past.catch_up()
            self._expect_truth(past, f"from {ago} ago: ")
            if retention is not None and is_paged:
                if not past.gaps:
                    raise LawBroken(f"a start {ago} ago is past the retention and told no gap")
                for gap in past.gaps:
                    _require_sound_gap(gap.from_at, gap.to_at, gap.scope, gap.reason)
                told = len(past.gaps)
                source.advance(timedelta(minutes=10))
                await past.catch_up()
                if len(past.gaps) > told:
                    raise LawBroken(f"the next pass told the gap again: {past.gaps[-1]}")
            start = source.now() + timedelta(hours=2)
            future = self._collector(source, start)
            await future.catch_up()
            source.advance(timedelta(hours=3))
            expected = set(source.add_events(5, at=start + timedelta(minutes=30)))
            await self._collect_all(future)
            missing = expected - set(future.events)
            if missing:
                raise LawBroken(f"after a start in the future events are missing: {_few(missing)}")

        self._run(scenario())

    @_law("L17", "complete_through is true")
    def test_l17_complete_through_is_true(self, source: SourceUnderTest) -> None:
        """Nothing turns up at or before `complete_through`, which stays behind now and ascends.

        It never comes closer to now than `settle`. Events become visible `on_time` late.
        """

        async def scenario() -> None:
            self._require_paged(source, "a plain connector does not say how far it is complete")
            async with opened(source) as connector:
                settle = declared(source, connector, "settle") or timedelta(0)
            late = settle if source.on_time is None else source.on_time
            collector = self._collector(source, self._lay(source))
            # Exactly where the first pass ends: is "through" said of it, too?
            source.add_events(1, at=source.now() - settle)
            promised: list[datetime] = []

            def look(page: Page, fresh: Sequence[RawEvent], _: State) -> None:
                for event in fresh:
                    if promised and event.occurred_at <= promised[-1]:
                        raise LawBroken(
                            f"{event.event_id} of {event.occurred_at} came after a page that was "
                            f"complete through {promised[-1]}"
                        )
                through = page.complete_through
                if through is None:
                    return
                if through.tzinfo is None:
                    raise LawBroken(f"complete_through is naive: {through}")
                if through > source.now() - settle:
                    raise LawBroken(
                        f"complete through {through}, at {source.now()} with settle = {settle}"
                    )
                if promised and through < promised[-1]:
                    raise LawBroken(f"complete_through went back to {through} from {promised[-1]}")
                promised.append(through)

            collector.on_page = look
            await collector.catch_up()
            step = max(settle / 3, timedelta(minutes=1))
            for number in range(12):
                source.advance(TICK)
                now = source.now()
                delay = late * (number % 4) / 3
                source.add_events(3, at=now, visible_at=now + delay if delay else None)
                source.advance(step)
                await collector.catch_up()
            source.advance(late)
            await self._collect_all(collector)
            self._expect_truth(collector)
            if not promised:
                raise _NotApplicable("no page says how far it is complete")
            if promised[-1] < source.now() - settle - late - self.history:
                raise LawBroken(f"caught up at {source.now()}, but complete only to {promised[-1]}")

        self._run(scenario())

    @_law("L18", "memory is bounded")
    def test_l18_memory_is_bounded(self, source: SourceUnderTest) -> None:
        """Four times the history needs no more memory, and no page has more than the bound.

        The longer one has eight slices, or eight hours where no `slice_max` is declared.
        """

        async def scenario() -> None:
            async with opened(source) as connector:
                unit = declared(source, connector, "slice_max") or timedelta(0)
                retention = declared(source, connector, "retention")
            unit = max(unit, timedelta(hours=1))
            if retention is not None:
                unit = min(unit, retention / 10)
            start, count = source.now() - 8 * unit, self.memory_events_per_slice
            for part in range(32):
                source.add_events(count // 4, at=start + part * unit / 4)
            await self._settle(source)
            with _own_garbage():
                # Once without measuring: what is imported and cached on the way does not count.
                await self._peak(source, start + 7 * unit)
                short = await self._peak(source, start + 6 * unit)
                whole = await self._peak(source, start - MARGIN)
            if whole - short > EVENT_BYTES * 6 * count:
                raise LawBroken(
                    f"a history of {8 * unit} takes {whole >> 10} KiB at its peak, its last "
                    f"{2 * unit} take {short >> 10} KiB: memory grows with the source"
                )

        self._run(scenario())

    # Snapshots

    @_law("L19", "a snapshot is the truth")
    def test_l19_a_snapshot_is_the_truth(self, source: SourceUnderTest) -> None:
        """A snapshot has exactly the grants that stand, of one time, and names what it read."""

        async def scenario() -> None:
            truth = self._grants(source)
            async with opened(source) as connector:
                is_paged = isinstance(connector, PagedConnector)
                taken = await self._snapshot(connector)
            if taken.gaps:
                raise LawBroken(f"a gap although nothing went wrong: {taken.gaps[0]}")
            self._expect_grants(taken, truth)
            if is_paged:
                if not taken.scopes:
                    raise LawBroken("no SnapshotScope says what was read completely")
                if len(set(taken.scopes)) < len(taken.scopes):
                    raise LawBroken(f"a scope is named twice: {taken.scopes}")
                if not taken.ends_with_scope:
                    raise LawBroken("a grant comes after the last SnapshotScope: of what is it?")
            times = {grant.snapshot_at for grant in taken.grants}
            if len(times) > 1:
                raise LawBroken(f"one snapshot has {len(times)} times")
            if any(at is not None and at.tzinfo is None for at in times):
                raise LawBroken("snapshot_at is naive")

        self._run(scenario())

    @_law("L20", "a partial snapshot says so", each=[Fault.FORBIDDEN_OBJECT, Fault.VANISHED_OBJECT])
    def test_l20_a_partial_snapshot_says_so(self, source: SourceUnderTest, fault: Fault) -> None:
        """Where one object can't be read, its scope is a gap, and all the others are there."""

        async def scenario() -> None:
            truth = self._grants(source)
            source.inject(fault, times=1)
            async with opened(source) as connector:
                taken = await self._snapshot(connector)
            self._expect_happened(source)
            got = taken.as_tuples()
            if got - truth:
                raise LawBroken(f"grants that do not stand: {_few(got - truth)}")
            missing = truth - got
            if not taken.gaps and (missing or fault is Fault.FORBIDDEN_OBJECT):
                raise LawBroken(f"no SnapshotGap, and missing are {_few(missing) or 'none'}")
            both = {gap.scope for gap in taken.gaps} & set(taken.scopes)
            if both:
                raise LawBroken(f"said to be complete and not readable: {_few(both)}")
            if any(not gap.reason for gap in taken.gaps):
                raise LawBroken("a SnapshotGap without a reason")
            if not got:
                raise LawBroken("nothing is left of the snapshot: the rest was not read")

        self._run(scenario())

    @_law("L21", "no snapshot is partial in silence")
    def test_l21_no_snapshot_is_partial_in_silence(self, source: SourceUnderTest) -> None:
        """Whatever goes wrong on the way: a snapshot is the truth, an error, or says its gap."""
        faults = [
            Fault.UNAVAILABLE,
            Fault.THROTTLED_BARE,
            Fault.DROPPED,
            Fault.NOT_JSON,
            Fault.TOKEN_EXPIRED,
            Fault.REPEATED_TOKEN,
            Fault.EMPTY_PAGE,
            Fault.PAGE_TOKEN_EXPIRED,
        ]

        async def scenario() -> None:
            truth = self._grants(source)
            applicable = [fault for fault in faults if fault not in source.does_not_apply]
            for fault in applicable:
                for times, after in ((1, 2), (FOREVER, 1)):
                    source.inject(fault, times=times, after=after)
                    async with opened(source) as connector:
                        try:
                            taken = await self._snapshot(connector)
                        except Exception:  # noqa: BLE001 - an error is not silent; L27 looks at it
                            taken = None
                    source.heal()
                    source.advance(timedelta(hours=1))
                    if taken is not None and not taken.gaps:
                        self._expect_grants(taken, truth, f"{fault.name} ({times}, {after}): ")

        self._run(scenario())

    # Errors

    @_law("L22", "a refused credential is Denied", needs=[Fault.CREDENTIAL_REFUSED])
    def test_l22_a_refused_credential_is_denied(self, source: SourceUnderTest) -> None:
        """A wrong secret is the operator's: Denied from a pass, a snapshot and `check()`.

        Once it is accepted, a new connector goes on as if nothing had been.
        """

        async def scenario() -> None:
            since = self._lay(source)
            await self._settle(source)
            collector = self._collector(source, since)
            source.inject(Fault.CREDENTIAL_REFUSED, times=FOREVER)
            async with opened(source) as connector:
                await self._expect_denied("a pass", collector.one_pass(connector))
            if source.grants():
                async with opened(source) as connector:
                    await self._expect_denied("a snapshot", self._snapshot(connector))
            async with opened(source) as connector:
                if has_check(connector):
                    await self._expect_denied("check()", connector.check())
            source.heal()
            source.advance(timedelta(hours=1))
            await self._collect_all(collector)
            self._expect_truth(collector)

        self._run(scenario())

    @_law("L23", "a source that hangs is Unavailable", needs=[Fault.HANGING])
    def test_l23_a_source_that_hangs_is_unavailable(self, source: SourceUnderTest) -> None:
        """A source that never answers holds nobody: Unavailable within the connector's time-out."""

        async def scenario() -> None:
            since = self._lay(source)
            await self._settle(source)
            collector = self._collector(source, since)
            collector.pass_seconds_max = self.hanging_seconds_max
            source.inject(Fault.HANGING, times=FOREVER)
            async with opened(source) as connector:
                try:
                    await collector.one_pass(connector)
                except Unavailable:
                    pass
                else:
                    raise LawBroken("a pass over a source that never answers ended normally")
            source.heal()
            collector.pass_seconds_max = self.pass_seconds_max
            source.advance(timedelta(hours=1))
            await self._collect_all(collector)
            self._expect_truth(collector)

        self._run(scenario())

    @_law("L24", "a pass ends")
    def test_l24_a_pass_ends(self, source: SourceUnderTest) -> None:
        """A pass ends when it has caught up, also where the source grows while it is read."""

        async def scenario() -> None:
            since = self._lay(source)
            await self._settle(source)
            collector = self._collector(source, since)
            await collector.catch_up()
            quiet_count, events_count = collector.pages_count, len(collector.events)
            await collector.catch_up()
            if len(collector.events) > events_count or collector.repeated:
                raise LawBroken("a second pass over a source that stands still published events")
            growing = self._collector(source, since)
            bound = 10 * quiet_count + 20

            def grow(*_: Any) -> None:
                if growing.pages_count > bound:
                    raise LawBroken(
                        f"no end after {bound} pages while the source grows by an event a page; "
                        f"{quiet_count} pages are all there was"
                    )
                source.advance(TICK)
                source.add_events(1, at=source.now())

            growing.on_page = grow
            await growing.catch_up()
            growing.on_page = None
            await self._collect_all(growing)
            self._expect_truth(growing)

        self._run(scenario())

    @_law("L25", "it closes cleanly")
    def test_l25_it_closes_cleanly(self, source: SourceUnderTest) -> None:
        """A pass that is left at any page, or cancelled, leaves no task and no open connection.

        The same connector then goes on, from where it was left, to the truth.
        """

        async def leave(since: datetime, pages: int, suspension: int) -> None:
            collector = self._collector(source, since)
            async with opened(source) as connector:
                if suspension:
                    await collector.crash_at_suspension(suspension, connector)
                else:
                    await self._leave_after(connector, collector, pages)
                await collector.one_pass(connector)
            await self._expect_no_tasks()
            self._expect_truth(collector, "the same connector, after it was left: ")

        async def measure(since: datetime) -> tuple[int, int]:
            collector = self._collector(source, since)
            waits = await collector.suspensions_count()
            return collector.pages_count, waits

        since = self._lay(source)
        self._run(self._settle(source))
        pages_count, waits = self._run(measure(since))
        places = [
            *((number, 0) for number in _spread(pages_count, 5)),
            *((0, number) for number in _spread(waits, 5)),
        ]
        with _own_garbage():
            for pages, suspension in places:
                where = f"left after page {pages}" if pages else f"cancelled at wait {suspension}"
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always", ResourceWarning)
                    troubles = self._troubles_of(leave(since, pages, suspension))
                    gc.collect()
                leaks = [
                    str(one.message) for one in caught if issubclass(one.category, ResourceWarning)
                ]
                if leaks or troubles:
                    raise LawBroken(f"{where}: {(leaks + troubles)[0]}")

    @_law("L26", "secrets are not seen")
    def test_l26_secrets_are_not_seen(self, source: SourceUnderTest) -> None:
        """No secret is in any error, log line (at DEBUG), output, repr, cursor, gap or reason."""
        secrets = [secret for secret in source.secrets() if secret]
        if not secrets:
            raise _NotApplicable("the source names no secrets")
        seen: list[tuple[str, str]] = []

        async def watched(what: str, work: Awaitable[Any]) -> None:
            try:
                await work
            except Exception as error:  # noqa: BLE001 - every error is looked at
                seen.append((f"the error of {what}", _everything_of(error)))

        async def scenario() -> None:
            since = self._lay(source)
            await self._settle(source)
            plain = [None, *(fault for fault in Fault if fault is not Fault.HANGING)]
            for fault in plain:
                if fault is not None:
                    if fault in source.does_not_apply:
                        continue
                    source.inject(fault, times=FOREVER)
                what = "a pass" if fault is None else f"a pass under {fault.name}"
                collector = self._collector(source, since)
                async with opened(source) as connector:
                    await watched(what, collector.one_pass(connector))
                    await watched(what.replace("a pass", "a snapshot"), self._snapshot(connector))
                    await watched(what.replace("a pass", "check()"), connector.check())
                    seen.append(("the connector's repr", f"{connector!r} {connector}"))
                    for name in ("config", "settings"):
                        held = getattr(connector, name, None)
                        if name == "settings" or not isinstance(held, dict):
                            seen.append((f"the repr of {name}", f"{held!r} {held}"))
                seen.append(("a cursor", str(collector.state.cursor)))
                seen.extend(("a gap", repr(gap)) for gap in collector.gaps)
                seen.extend(("a reason", record.reason) for record in collector.rejected)
                source.heal()
                source.advance(timedelta(hours=1))

        with _all_output() as output:
            self._run(scenario())
        seen.append(("the log or the output", output()))
        for secret in secrets:
            for form in _forms_of(secret):
                for what, text in seen:
                    if form in text:
                        # The secret itself stays out of this message, too.
                        raise LawBroken(f"a secret is in {what}")

    @_law("L27", "errors are the five")
    def test_l27_errors_are_the_five(self, source: SourceUnderTest) -> None:
        """Whatever goes wrong, for as long as it will: what is raised is one of the SDK's errors.

        Not `Fenced`, which is the relay's. A `retry_after_seconds` is a number from 0 on.
        """

        async def watched(what: str, work: Awaitable[Any]) -> None:
            try:
                await work
            except Unavailable as error:
                asked = error.retry_after_seconds
                if asked is not None and not 0 <= asked < float("inf"):
                    raise LawBroken(f"{what}: retry_after_seconds is {asked}") from error
            except (Fenced, LawBroken):
                raise
            except VerityError:
                pass
            except Exception as error:
                raise LawBroken(f"{what} raised {type(error).__name__}: {error}") from error

        async def scenario() -> None:
            since = self._lay(source)
            await self._settle(source)
            for fault in Fault:
                # L23 has the one that costs time.
                if fault in source.does_not_apply or fault is Fault.HANGING:
                    continue
                source.inject(fault, times=FOREVER)
                async with opened(source) as connector:
                    collector = self._collector(source, since)
                    await watched(f"a pass under {fault.name}", collector.one_pass(connector))
                    await watched(f"a snapshot under {fault.name}", self._snapshot(connector))
                    await watched(f"check() under {fault.name}", connector.check())
                source.heal()
                source.advance(timedelta(hours=1))

        self._run(scenario())

    @_law("L28", "events can be published")
    def test_l28_events_can_be_published(self, source: SourceUnderTest) -> None:
        """Every event has an id, an aware time, all references, one platform, a JSON payload.

        The platform and the connector's own id are names that the worker takes.
        """

        async def scenario() -> None:
            async with opened(source) as connector:
                _require_valid_id(getattr(connector, "config", None))
            collector = self._collector(source, self._lay(source))
            await self._collect_all(collector)
            self._expect_truth(collector)
            platform = self.connector_class.PLATFORM if self.connector_class else None
            for event in collector.events.values():
                _require_publishable(event, platform)

        self._run(scenario())

    # What the laws are made of

    def _collector(self, source: SourceUnderTest, since: datetime) -> Collector:
        return Collector(source, State(since), pass_seconds_max=self.pass_seconds_max)

    def _lay(self, source: SourceUnderTest) -> datetime:
        """Lay the usual events over the usual history; returns a since before all of them."""
        start, batches = source.now() - self.history, 8
        for number in range(batches):
            count = self.events_count // batches
            source.add_events(count, at=start + self.history * number / batches)
        return start - MARGIN

    async def _settle(self, source: SourceUnderTest) -> None:
        """Let so much time go by that all that has happened can be read."""
        async with opened(source) as connector:
            settle = declared(source, connector, "settle") or timedelta(0)
        source.advance(settle + MARGIN)

    async def _collect_all(self, collector: Collector) -> None:
        await self._settle(collector.source)
        await collector.catch_up()

    def _survives(
        self, source: SourceUnderTest, fault: Fault, *, times: int, after: int = 0
    ) -> Collector:
        """A pass meets the fault and the truth is collected all the same."""

        async def scenario() -> Collector:
            since = self._lay(source)
            await self._settle(source)
            source.inject(fault, times=times, after=after)
            collector = self._collector(source, since)
            await collector.catch_up()
            have_happened = source.have_faults_happened()
            source.heal()
            await self._collect_all(collector)
            self._expect_truth(collector)
            if not have_happened:
                self._refuse_the_proof()
            return collector

        survived: Collector = self._run(scenario())
        return survived

    def _expect_happened(self, source: SourceUnderTest) -> None:
        if not source.have_faults_happened():
            self._refuse_the_proof()

    def _refuse_the_proof(self) -> NoReturn:
        raise LawBroken(
            "what was injected did not happen, so nothing is proved: let the source show it "
            "(smaller pages?), or name it in does_not_apply with the reason"
        )

    def _expect_truth(self, collector: Collector, where: str = "") -> None:
        missing = set(collector.source.event_ids()) - set(collector.events)
        if missing:
            raise LawBroken(f"{where}{len(missing)} events are missing: {_few(missing)}")
        self._expect_nothing_else(collector, where)

    def _expect_nothing_else(self, collector: Collector, where: str = "") -> None:
        extra = set(collector.events) - set(collector.source.event_ids())
        if extra:
            raise LawBroken(f"{where}{len(extra)} events that never happened: {_few(extra)}")
        if collector.repeated:
            raise LawBroken(
                f"{where}published twice, although repeats within the lookback are dropped: "
                f"{_few(collector.repeated)}"
            )

    def _require_paged(self, source: SourceUnderTest, reason: str) -> None:
        connector_class = self.connector_class
        if connector_class is not None and not issubclass(connector_class, PagedConnector):
            raise _NotApplicable(reason)

    def _grants(self, source: SourceUnderTest) -> set[GrantTuple]:
        grants = source.grants()
        if grants is None:
            raise _NotApplicable("the source has no grants to read")
        return set(grants)

    def _expect_grants(self, taken: Snapshot, truth: set[GrantTuple], where: str = "") -> None:
        got = taken.as_tuples()
        if truth - got:
            missing = truth - got
            raise LawBroken(f"{where}{len(missing)} grants are missing: {_few(missing)}")
        if got - truth:
            raise LawBroken(f"{where}grants that do not stand: {_few(got - truth)}")

    async def _snapshot(self, connector: BaseConnector) -> Snapshot:
        taken = Snapshot()
        rows = connector.snapshot_permissions()
        async with asyncio.timeout(self.pass_seconds_max), closing(rows):
            async for row in rows:
                taken.take(row)
        return taken

    async def _expect_denied(self, what: str, work: Awaitable[Any]) -> None:
        try:
            await work
        except Denied:
            return
        raise LawBroken(f"{what} with a refused credential ended normally, not in Denied")

    async def _peak(self, source: SourceUnderTest, since: datetime) -> int:
        """The most memory that a pass takes whose pages are let go at once, in bytes."""
        async with opened(source) as connector:
            gc.collect()
            tracemalloc.start()
            try:
                if isinstance(connector, PagedConnector):
                    pages = connector.fetch_pages(Position(since))
                    async with closing(pages):
                        async for page in pages:
                            self._expect_bounded(page)
                            del page
                else:
                    events = connector.stream_audit_events(since)
                    async with closing(events):
                        async for _ in events:
                            pass
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    def _expect_bounded(self, page: Page) -> None:
        if len(page.events) > self.page_events_max:
            raise LawBroken(f"a page of {len(page.events)} events")

    async def _leave_after(
        self, connector: BaseConnector, collector: Collector, pages: int
    ) -> None:
        class _Left(Exception):
            pass

        def leave(*_: Any) -> None:
            if collector.pages_count == pages:
                raise _Left

        collector.on_page = leave
        with contextlib.suppress(_Left):
            await collector.one_pass(connector)
        collector.on_page = None

    async def _expect_no_tasks(self) -> None:
        now = asyncio.get_running_loop().time
        deadline = now() + 1.0
        while True:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            if not others:
                return
            if now() > deadline:
                raise LawBroken(f"a task is left behind: {next(iter(others)).get_coro()!r}")
            await asyncio.sleep(0.01)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run it in a loop of its own, within the time of a law."""

        async def bounded() -> Any:
            ending = asyncio.timeout(self.law_seconds_max)
            try:
                async with ending:
                    return await work
            except TimeoutError as error:
                if not ending.expired():
                    raise
                raise LawBroken(f"no end after {self.law_seconds_max:g} s") from error

        return asyncio.run(bounded())

    def _troubles_of(self, work: Coroutine[Any, Any, Any]) -> list[str]:
        """Run it; returns what asyncio complained of (errors nobody asked for, lost tasks)."""
        troubles: list[str] = []

        async def watched() -> None:
            asyncio.get_running_loop().set_exception_handler(
                lambda _, context: troubles.append(str(context.get("message")))
            )
            async with asyncio.timeout(self.law_seconds_max):
                await work
            gc.collect()
            await asyncio.sleep(0)

        asyncio.run(watched())
        return troubles


@dataclass(slots=True)
class Snapshot:
    """What `snapshot_permissions` yielded."""

    grants: list[PermissionSnapshot] = field(default_factory=list)
    scopes: list[str] = field(default_factory=list)
    gaps: list[SnapshotGap] = field(default_factory=list)
    ends_with_scope: bool = False

    def take(self, row: Any) -> None:
        """One more row."""
        self.ends_with_scope = False
        if isinstance(row, SnapshotScope):
            self.scopes.append(row.scope)
            self.ends_with_scope = True
        elif isinstance(row, SnapshotGap):
            self.gaps.append(row)
            self.ends_with_scope = True
        elif isinstance(row, PermissionSnapshot):
            self.grants.append(row)
        else:
            raise LawBroken(f"a snapshot yielded a {type(row).__name__}")

    def as_tuples(self) -> set[GrantTuple]:
        """The grants as the truth is written."""
        return {
            (
                grant.principal_ref,
                grant.asset_ref,
                grant.privilege,
                grant.grant_mechanism,
                grant.granted_via or "",
            )
            for grant in self.grants
        }


def _require_applicable(source: SourceUnderTest, label: str, faults: Sequence[Fault]) -> None:
    for name in (label, *faults):
        if name in source.does_not_apply:
            raise _NotApplicable(source.does_not_apply[name])


def _require_sound_gap(
    from_at: datetime | None, to_at: datetime | None, scope: str, reason: str
) -> None:
    if not scope or not reason:
        raise LawBroken("a gap without a scope or a reason")
    if any(at is not None and at.tzinfo is None for at in (from_at, to_at)):
        raise LawBroken("a gap with a naive time")
    if from_at is not None and to_at is not None and from_at > to_at:
        raise LawBroken(f"a gap that ends before it begins: {from_at} to {to_at}")


def _require_valid_id(config: Any) -> None:
    """Where the source's config has a `connector_id`, it is one that the worker takes."""
    if isinstance(config, Mapping):
        connector_id = config.get("connector_id")
    else:
        connector_id = getattr(config, "connector_id", None)
    if connector_id is not None and not is_valid_name(connector_id):
        raise LawBroken(f"connector_id {connector_id!r}: an id is {NAME_RULE}")


def _require_publishable(event: RawEvent, platform: str | None) -> None:
    def broken(what: str) -> NoReturn:
        raise LawBroken(f"{event.event_id!r}: {what}")

    if not isinstance(event.event_id, str) or not event.event_id:
        broken("no event_id")
    if event.occurred_at.tzinfo is None:
        broken("occurred_at is naive")
    if not is_valid_name(event.platform):
        broken(f"{event.platform!r} can't be part of a topic's name")
    if platform is not None and event.platform != platform:
        broken(f"platform {event.platform!r} of a connector of {platform!r}")
    for name in ("principal_ref", "asset_ref", "operation"):
        if not isinstance(getattr(event, name), str) or not getattr(event, name):
            broken(f"no {name}")
    if not isinstance(event.raw_payload, dict) or not event.raw_payload:
        broken("no raw_payload")
    try:
        json.dumps(event.raw_payload, allow_nan=False)
    except (TypeError, ValueError) as error:
        broken(f"raw_payload is not JSON: {error}")


def _few(things: Iterable[Any], most: int = 5) -> str:
    ordered = sorted(map(str, things))
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more


def _spread(count: int, most: int) -> list[int]:
    """1 … count, or `most` of them, evenly, with the first and the last."""
    if count <= most:
        return list(range(1, count + 1))
    return sorted({1 + round(i * (count - 1) / (most - 1)) for i in range(most)})


def _everything_of(error: BaseException) -> str:
    """All that an error shows: itself, its traceback, what caused it, its attributes."""
    parts = ["".join(traceback.format_exception(error))]
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        parts += [str(one), repr(one), repr(one.args), *getattr(one, "__notes__", ())]
        # The SDK's errors are stored and shown with all that they carry; what a client's error
        # holds (its request, with the header) is not, as long as nobody prints it.
        if isinstance(one, VerityError):
            parts.append(repr(vars(one)))
        waiting += [one.__cause__, one.__context__]
    return "\n".join(parts)


def _forms_of(secret: str) -> set[str]:
    """The secret as it may stand in a text."""
    return {
        secret,
        quote(secret, safe=""),
        json.dumps(secret)[1:-1],
        base64.b64encode(secret.encode()).decode(),
    }


@contextlib.contextmanager
def _all_output() -> Iterator[Callable[[], str]]:
    """All that is logged, at DEBUG, or printed; the loggers are then as they were."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter("%(name)s %(message)s %(args)s"))
    root = logging.getLogger()
    names = [
        name for name, one in root.manager.loggerDict.items() if isinstance(one, logging.Logger)
    ]
    loggers = [root, *map(logging.getLogger, names)]
    levels = [(logger, logger.level, logger.disabled) for logger in loggers]
    root.addHandler(handler)
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.disabled = False
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            yield text.getvalue
    finally:
        root.removeHandler(handler)
        for logger, level, is_disabled in levels:
            logger.setLevel(level)
            logger.disabled = is_disabled
