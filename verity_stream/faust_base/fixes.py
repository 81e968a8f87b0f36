"""Workarounds for defects of Faust, mode and aiokafka, each pinned to the version it was read in.

The reasons, with measurements, are in `docs/decisions/0002-faust-at-the-edge.md`. Every class
here names the upstream issue or the place in the source; the tests of this folder's fixes
(`test_faust_fixes.py`) and `tests/integration/test_faust_app.py` turn red when one is taken away.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import threading
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Set
from typing import Any, NoReturn, cast

import faust
from aiokafka.errors import KafkaError
from faust.tables import TableManager
from faust.tables.recovery import Recovery, ServiceStopped
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP
from faust.types.tuples import ack_lock
from faust.web.base import BlueprintManager

from verity_sdk.errors import Misconfigured, Unavailable, VerityError
from verity_stream.faust_base import log_limits
from verity_stream.faust_base.group import coordinator_of, note_heartbeats
from verity_stream.kafka.errors import as_verity_error
from verity_stream.redaction import escape_what_can_not_be_shown
from verity_stream.waiting import contained

logger = logging.getLogger(__name__)

# The versions whose source the workarounds below were read and measured against.
PINNED: Mapping[str, str] = {
    "faust-streaming": "0.15.3",
    "mode-streaming": "0.7.1",
    "aiokafka": "0.14.0",
}

# A SIGTERM ends the process within this, whatever hangs: longer, and the orchestrator kills us.
STOP_SECONDS_MAX = 9.0

FETCH_WAIT_MS = 200
"""A fetch that finds nothing is answered after this."""

EXIT_UNAVAILABLE = 1
EXIT_MISCONFIGURED = 2


def check_versions(installed: Callable[[str], str] = importlib.metadata.version) -> None:
    """Return when the installed versions are the ones the workarounds were written for.

    Raises:
        Misconfigured: Another version is installed: a workaround may do harm in it. The message
            names each.
    """
    faults = []
    for name, pinned in PINNED.items():
        try:
            found = installed(name)
        except importlib.metadata.PackageNotFoundError:
            found = "missing"
        if found != pinned:
            faults.append(f"{name} is {found}, not {pinned}")
    if faults:
        raise Misconfigured(
            f"{'; '.join(faults)}. Verity Stream works around defects of exactly these versions: "
            "install the pinned ones (pip install "
            + " ".join(f"{name}=={version}" for name, version in PINNED.items())
            + ")."
        )


class ActiveNow:
    """The partitions that may be fetched from, asked at the moment of the fetch; never "all".

    Faust hands its own set to aiokafka and goes on changing it. Once that is empty, because the
    partitions were paused, aiokafka takes it for "no restriction" (consumer/fetcher.py,
    `if partitions and …`): a fetch that was waiting takes records from paused partitions, moves
    their position, and Faust drops them. Between a seek and a resume nothing brings them back.
    """

    def __init__(self, active: Set[TP]) -> None:
        self._active = active

    def __bool__(self) -> bool:
        return True

    def __contains__(self, partition: object) -> bool:
        return partition in self._active


class CommittedReaderThread(AIOKafkaConsumerThread):
    """A consumer thread that reads committed records only, and of active partitions only.

    Faust ties the isolation level to its own `exactly_once` (drivers/aiokafka.py:571), so an
    at-least-once app consumes records of aborted transactions.
    """

    async def getmany(self, active_partitions: Any, timeout: float) -> Any:
        """Fetch from what is active at that moment."""
        if active_partitions is not None:
            active_partitions = ActiveNow(active_partitions)
        return await super().getmany(active_partitions, timeout)

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Read when the consumer starts, which is after this.
        consumer._isolation_level = "read_committed"
        # Faust waits 1,500 ms (drivers/aiokafka.py:615). A broker answers one request of a
        # connection after the other, so whatever a rebalance asks for waits behind a fetch.
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer


class DeliveredOffsetsConsumer(Consumer):
    """A consumer that commits one past the longest acknowledged prefix of what it delivered.

    Defects of the original:

    - It reasons about gaps between offsets, with an interval that includes the arriving message
      (transport/consumer.py:1215), so on a transactional topic each commit advances by one
      control marker; and when offset 0 is followed by a gap, never. Here offsets that were never
      delivered play no part at all.
    - It forgets acknowledged offsets before the commit at a revoke (#502), so every graceful
      rebalance repeats up to a commit interval.
    - It makes all partitions active at an assignment, before they are sought, and pauses them a
      moment later.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._delivered: defaultdict[TP, deque[Any]] = defaultdict(deque)
        self._deliver = self.callback
        self.callback = self._note_and_deliver

    def _new_consumer_thread(self) -> CommittedReaderThread:
        return CommittedReaderThread(self, loop=self.loop, beacon=self.beacon)

    def _note_and_deliver(self, message: Any) -> Awaitable[None]:
        # Noted before the delivery starts, not inside of it: Faust may cancel the delivery before
        # its first step, and a message that was not noted would be committed past.
        if self.app.topics.acks_enabled_for(message.topic):
            self._delivered[message.tp].append(message)
        return cast(Awaitable[None], self._deliver(message))

    async def _add_gap(self, tp: TP, _from: int, _to: int) -> None:
        pass

    def _new_offset(self, tp: TP) -> int | None:
        """One past the longest acknowledged prefix, or None when it has not moved.

        The message's own flag is asked, not its offset: after a seek an offset is delivered
        again, as another message, and only that one's processing counts.
        """
        last = None
        with ack_lock:
            delivered = self._delivered[tp]
            while delivered and delivered[0].acked:
                last = delivered.popleft().offset
            self._acked[tp].clear()
            self._acked_index[tp].clear()
        return None if last is None else last + 1

    @faust.Service.transitions_to("PARTITIONS_REVOKED")
    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Let the app finish, commit and stop what it does there; only then forget."""
        self._active_partitions.difference_update(revoked)
        self._paused_partitions.difference_update(revoked)
        await self._on_partitions_revoked(revoked)
        for tp in revoked:
            for state in (
                self._delivered,
                self._gap,
                self._acked,
                self._acked_index,
                self._read_offset,
                self._committed_offset,
            ):
                state.pop(tp, None)

    @faust.Service.transitions_to("PARTITIONS_ASSIGNED")
    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Keep everything paused until the recovery, having sought, resumes it."""
        self._paused_partitions.update(assigned)
        await super().on_partitions_assigned(assigned, generation_id)


class CommittedTransport(Transport):
    """The transport of the consumer above; a URL scheme of our own would be lower-cased."""

    Consumer = DeliveredOffsetsConsumer


class SeekFirstRecovery(Recovery):
    """Table recovery that seeks the streams' partitions before it resumes them.

    The original resumes first (tables/recovery.py:649, #596): records from before the seek get
    in between, a repeat and then a gap that silently stops the partition's commits. It also ends
    a rebalance while the next one is under way, and takes a step that ran out of time for a stop
    of the service, after which the worker lives on without ever being assigned anything.
    """

    app: Any  # a FixedApp; Faust's interface type knows neither that nor its own fetcher

    async def _wait(self, coro: Any, timeout: Any = None) -> None:
        try:
            await super()._wait(coro, timeout=timeout)
        except ServiceStopped:
            if self.should_stop:
                raise
            raise TimeoutError(f"A step of the table recovery took over {timeout} s") from None

    async def on_recovery_completed(self, generation_id: int = 0) -> None:
        """Tell the tables, then seek, resume and end the rebalance."""
        await self.app.on_rebalance_complete.send()
        self._set_recovery_ended()
        for table in self.tables.values():
            await table.on_recovery_completed(
                self.actives_for_table[table], self.standbys_for_table[table]
            )
        await self._seek_and_resume(generation_id)

    async def _resume_streams(self, generation_id: int = 0) -> None:
        await self.app.on_rebalance_complete.send()
        await self._seek_and_resume(generation_id)

    async def _seek_and_resume(self, generation_id: int) -> None:
        app, consumer = self.app, self.app.consumer
        if self._is_outdated(generation_id):
            return
        assignment = consumer.assignment()
        if assignment:
            await self._wait(consumer.perform_seek(), timeout=app.conf.broker_request_timeout)
        if self._is_outdated(generation_id):
            return
        consumer.resume_partitions({tp for tp in assignment if not self._is_changelog_tp(tp)})
        self.completed.set()
        app.flow_control.resume()
        consumer.resume_flow()
        await app._fetcher.maybe_start()
        self.tables.on_actives_ready()
        if not app.assignor.assigned_standbys():
            self.tables.on_standbys_ready()
        app.on_rebalance_end()
        self.log.info("Worker ready")

    def _is_outdated(self, generation_id: int) -> bool:
        is_outdated = self.app.consumer_generation_id != generation_id or not self.app.is_latest
        if is_outdated:
            self.log.info("Another rebalance has begun; leaving the streams to that one")
        return is_outdated


class SeekFirstTableManager(TableManager):
    """The table manager of the recovery above."""

    @property
    def recovery(self) -> SeekFirstRecovery:
        """The recovery service, made on first use."""
        if self._recovery is None:
            self._recovery = SeekFirstRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return cast(SeekFirstRecovery, self._recovery)


_TOLD = (VerityError, KafkaError, OSError)
"""What ends a worker in one line."""


class QuietWorker(faust.Worker):
    """A worker process that leaves logging alone and whose exit code says who must act.

    Faust clears the root handlers, even with a `logging_config`, and the command line redirects
    stdout whatever `worker_redirect_stdouts` says. An error that stops the start is one line
    here: 2 for a configuration, 1 for anything else.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        escape_what_can_not_be_shown()  # Faust's banner is not ASCII.
        # Somebody who configured no logging at all, as a downstream app may, gets Faust's.
        is_configured = bool(logging.getLogger().handlers)
        super().__init__(*args, **{**kwargs, "override_logging": not is_configured})
        self.spinner = None
        self._exit_code = 0

    async def on_execute(self) -> None:
        """Apply `--loglevel` when it is not Faust's default, and limit repeats."""
        level = str(self.loglevel or "WARN").upper()
        if not self.override_logging and level not in ("WARN", "WARNING"):
            logging.getLogger().setLevel({"CRIT": "CRITICAL"}.get(level, level))
        log_limits.install("aiokafka")
        await super().on_execute()

    async def start(self) -> None:
        """Run until stopped; one of our own errors becomes one line and the exit code."""
        try:
            await super().start()
        except _TOLD as error:
            self._end_with(error)

    def _crash(self, reason: BaseException) -> None:
        is_first = not self.crashed
        super()._crash(reason)
        if isinstance(reason, _TOLD):
            self.crash_reason = None  # mode would raise it once more, as a traceback.
            if is_first:
                self._end_with(reason)

    def _end_with(self, reason: Exception) -> None:
        # An OSError is the web server's: its port is taken, or not ours to take.
        error = Unavailable(str(reason)) if isinstance(reason, OSError) else as_verity_error(reason)
        logger.critical("%s", error)
        is_misconfigured = isinstance(error, Misconfigured)
        self._exit_code = EXIT_MISCONFIGURED if is_misconfigured else EXIT_UNAVAILABLE

    def execute_from_commandline(self) -> NoReturn:
        """Run the worker and exit."""
        try:
            super().execute_from_commandline()
        except SystemExit as end:
            raise SystemExit(end.code or self._exit_code) from None


class FixedApp(faust.App):
    """A Faust app with the workarounds of this module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Three numbers of the same count, so that no flag has to be cleared in time: Faust sets
        # `rebalancing` in the consumer's thread and clears it in the main one, also at the end
        # of a recovery that a newer rebalance has overtaken.
        self._assigned_in: int | None = None
        self._settled_in: int | None = None
        self._stop_timer: threading.Timer | None = None
        super().__init__(*args, **kwargs)

    @property
    def is_latest(self) -> bool:
        """Whether no rebalance has begun since the last assignment."""
        return self._assigned_in == self.rebalancing_count

    @property
    def is_settled(self) -> bool:
        """Whether an assignment is complete and no rebalance has begun since."""
        return self._settled_in is not None and self._settled_in == self.rebalancing_count

    async def _on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        self._assigned_in = self.rebalancing_count
        note_heartbeats(coordinator_of(self))
        await super()._on_partitions_assigned(assigned, generation_id)

    async def crash(self, reason: BaseException) -> None:
        """End; one of our own errors without mode's traceback, for the worker says it."""
        if not isinstance(reason, VerityError):
            await super().crash(reason)
        elif not self.crashed:
            for node in {self, self.beacon.root.data if self.beacon.root else self}:
                node._crash(reason)

    def on_rebalance_end(self) -> None:
        """End the rebalance, unless a newer one has begun: that one will end it."""
        count = self._assigned_in
        if count != self.rebalancing_count:
            return
        super().on_rebalance_end()
        self._settled_in = count

    def _new_transport(self) -> CommittedTransport:
        return CommittedTransport(self.conf.broker_consumer, self)

    def _new_producer_transport(self) -> CommittedTransport:
        return CommittedTransport(self.conf.broker_producer, self)

    def _new_web(self) -> Any:
        # Faust's own pages (/, /table/, /router/) serve data to whoever asks.
        web = super()._new_web()
        web.blueprints = BlueprintManager()
        return web

    def _create_directories(self) -> None:
        # The memory store keeps nothing on disk, and a container's file system may be read-only.
        pass

    async def on_stop(self) -> None:
        """Stop; in a worker process within `STOP_SECONDS_MAX`, come what may.

        With the broker away, Faust's stop waits for acks and commits that never come, in a
        thread that keeps the process alive. Nothing is lost by leaving: what was not committed
        is read again.
        """
        if self.in_worker:
            self._stop_timer = threading.Timer(STOP_SECONDS_MAX, _leave)
            self._stop_timer.daemon = True
            self._stop_timer.start()
        await super().on_stop()

    async def on_shutdown(self) -> None:
        """The app has stopped in time."""
        if self._stop_timer is not None:
            self._stop_timer.cancel()
        await super().on_shutdown()


def _leave() -> None:
    logger.critical(
        "Could not stop within %g s (is the broker away?); leaving. Uncommitted records are "
        "read again.",
        STOP_SECONDS_MAX,
    )
    logging.shutdown()
    os._exit(EXIT_UNAVAILABLE)


def add_timer(
    app: faust.App,
    seconds: float,
    tick: Callable[[], Coroutine[Any, Any, Any]],
    *,
    name: str,
    seconds_max: float,
) -> None:
    """Call `tick` every `seconds` while the app runs, whatever happens in it.

    In Faust an exception in a timer kills the worker, and a CancelledError ends that timer for
    ever without a word (mode/services.py:879).
    """

    async def timer() -> None:
        try:
            await contained(tick(), name, seconds_max)
        except asyncio.CancelledError:
            if app.should_stop:
                raise
            logger.error("The timer %s was cancelled from outside; it goes on", name)

    app.timer(seconds, name=name)(timer)


def partitions_of(assignment: Iterable[TP] | None, topic: str) -> frozenset[int]:
    """The partition numbers of one topic in an assignment."""
    return frozenset(tp.partition for tp in assignment or () if tp.topic == topic)
