"""The watchdog: a worker that lives and no longer works says so, and ends.

Faust has ways to die without ending: a join that the group's coordinator refuses with an error
of a kind that nobody expected, a timer that a stray cancellation stopped, a fetcher that waits
for ever. And a connector that blocks the event loop stops every other one. An orchestrator starts
a process again that has exited; it can't see one that only stands still.

What is observed are facts, `standstills` decides, and a thread acts: it needs no event loop. The
process then ends at once. Every point at which it can is one at which kill -9 is safe, and
waiting for a loop that stands still would be waiting for nothing.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

logger = logging.getLogger(__name__)

EXIT_STANDSTILL = 1
LOOKS_A_LIMIT = 20
"""How often the thread looks within the time that something may stand still."""
FRAMES_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Facts:
    """What was observed; seconds until now, 0.0 where nothing stands still.

    Attributes:
        since_tick: The reconcile timer ticked.
        since_settled: Since then no assignment is complete; one without partitions is complete.
        since_member: Since then nobody takes part in the consumer group's coordination.
        since_mirrored: Since then the mirror of some connector has not moved, although pages were
            published all the while.
        is_broker_reachable: Somebody listens where a broker should.
    """

    since_tick: float = 0.0
    since_settled: float = 0.0
    since_member: float = 0.0
    since_mirrored: float = 0.0
    is_broker_reachable: bool = True


@dataclass(frozen=True, slots=True)
class StandstillLimits:
    """How long each may last, in seconds.

    Attributes:
        standstill: For all but the mirror.
        mirror: The mirror reads committed records, so another connector's open transaction may
            hold it back until the broker ends that.
    """

    standstill: float
    mirror: float

    def half(self) -> StandstillLimits:
        """From here on the worker is not ready."""
        return StandstillLimits(self.standstill / 2, self.mirror / 2)


def standstills(facts: Facts, limits: StandstillLimits) -> list[str]:
    """What stands still for longer than it may, in sentences; empty where the worker works.

    While no broker can be reached, a worker that waits for one does what it should.
    """
    found = []
    if facts.since_tick > limits.standstill:
        found.append(f"the reconcile timer has not ticked for {facts.since_tick:.0f} s")
    if not facts.is_broker_reachable:
        return found
    if facts.since_settled > limits.standstill:
        found.append(f"no assignment is complete since {facts.since_settled:.0f} s")
    if facts.since_member > limits.standstill:
        found.append(f"the worker left its consumer group {facts.since_member:.0f} s ago")
    if facts.since_mirrored > limits.mirror:
        found.append(
            f"the consumer stands still: checkpoints of {facts.since_mirrored:.0f} s are published "
            "and not mirrored"
        )
    return found


@dataclass(frozen=True, slots=True)
class _Lag:
    """A mirror that is behind.

    Attributes:
        mirrored: The version at which it stands.
        since: When it was first seen there with a newer version published.
        published: The newest version, and since when that is known.
    """

    mirrored: int
    since: float
    published: int
    published_at: float


class MirrorWatch:
    """Tells a mirror that stands still from one that has nothing to do.

    A mirror that is behind while nothing new is published proves nothing: Kafka may be away. It
    stands still where pages went on being committed long after it had stopped.
    """

    def __init__(self) -> None:
        self._lags: dict[str, _Lag] = {}

    def look(self, published: Mapping[str, int], mirrored: Mapping[str, int], now: float) -> float:
        """The longest time for which a mirror stood still while pages were published; 0: none."""
        lags = {}
        for connector_id, version in published.items():
            held = mirrored.get(connector_id, 0)
            if held >= version:
                continue
            known = self._lags.get(connector_id)
            if known is None or known.mirrored != held:
                known = _Lag(held, now, version, now)
            elif known.published != version:
                known = replace(known, published=version, published_at=now)
            lags[connector_id] = known
        self._lags = lags
        return max((lag.published_at - lag.since for lag in lags.values()), default=0.0)


def leave(reason: str) -> None:
    """End the process at once."""
    logger.critical("Leaving, to be started again: %s", reason)
    logging.shutdown()
    os._exit(EXIT_STANDSTILL)


class Watchdog:
    """Looks from a thread of its own whether the worker moves.

    The event loop reports with `ticked`; that it no longer does is a fact as well.

    Args:
        limits: How long something may stand still.
        is_broker_reachable: Asked from the thread, and only where the process would end.
        leave: Ends the process; gets the reason.
        clock: Seconds that only ascend.
    """

    def __init__(
        self,
        limits: StandstillLimits,
        is_broker_reachable: Callable[[], bool],
        leave: Callable[[str], None] = leave,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._is_broker_reachable = is_broker_reachable
        self._leave = leave
        self._clock = clock
        self._looks_every = limits.standstill / LOOKS_A_LIMIT
        self._mirror = MirrorWatch()
        self._since_mirrored = 0.0
        self._ticked_at = self._settled_at = self._member_at = self._looked_at = clock()
        # Nothing counts from before: the process was frozen, or no broker could be reached.
        self._counts_from = self._excused_from = self._looked_at
        self._is_broker_away = False
        self._stopping = threading.Event()

    def start(self) -> None:
        """Begin to look."""
        self._ticked_at = self._settled_at = self._member_at = self._looked_at = self._clock()
        thread = threading.Thread(target=self._run, name="verity-watchdog", daemon=True)
        thread.start()

    def stop(self) -> None:
        """The worker ends by itself."""
        self._stopping.set()

    def ticked(
        self,
        *,
        is_settled: bool,
        is_member: bool,
        published: Mapping[str, int],
        mirrored: Mapping[str, int],
    ) -> None:
        """The reconcile timer ticks, and this is what it sees.

        Args:
            is_settled: An assignment is complete.
            is_member: The consumer still takes part in its group's coordination.
            published: The version of every connector that runs here.
            mirrored: Those that the mirror has.
        """
        now = self._clock()
        self._ticked_at = now
        if is_settled:
            self._settled_at = now
        if is_member:
            self._member_at = now
        self._since_mirrored = self._mirror.look(published if is_settled else {}, mirrored, now)

    def facts(self) -> Facts:
        """What is known now."""
        now = self._clock()
        excused = max(self._counts_from, self._excused_from)
        return Facts(
            since_tick=now - max(self._ticked_at, self._counts_from),
            since_settled=now - max(self._settled_at, excused),
            since_member=now - max(self._member_at, excused),
            since_mirrored=self._since_mirrored,
        )

    def reasons_not_ready(self) -> list[str]:
        """What stands still for so long that the worker can't be called ready."""
        return standstills(self.facts(), self._limits.half())

    def look(self) -> None:
        """What the thread does again and again: decide, and leave where the worker must end."""
        now = self._clock()
        if now - self._looked_at > 5 * self._looks_every:
            # This thread stood still as well: the whole process was frozen, or the machine was.
            self._counts_from = now
        self._looked_at = now
        facts = self.facts()
        found = standstills(facts, self._limits)
        if found or self._is_broker_away:
            self._is_broker_away = not self._is_broker_reachable()
            if self._is_broker_away:
                # Asked again at every look: once it is back, everything gets its full time.
                self._excused_from = self._clock()
            facts = replace(facts, is_broker_reachable=not self._is_broker_away)
            found = standstills(facts, self._limits)
        if found:
            if facts.since_tick > self._limits.standstill:
                found.append(f"the main thread is at {where_main_thread_is()}")
            self._leave("; ".join(found))

    def _run(self) -> None:
        while not self._stopping.wait(self._looks_every):
            self.look()


def where_main_thread_is() -> str:
    """The innermost calls of the main thread: what blocks the event loop, if anything does."""
    frames = sys._current_frames()  # noqa: SLF001 - Python's documented name of it
    frame = frames.get(threading.main_thread().ident or 0)
    if frame is None:
        return "no place that is known"
    calls = traceback.extract_stack(frame)[-FRAMES_SHOWN:]
    return " > ".join(f"{call.filename}:{call.lineno} {call.name}" for call in calls)
