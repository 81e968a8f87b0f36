"""The runner: starts, stops and restarts the connectors that this worker owns.

The stream application tells it which partitions are owned and ticks it once a second. One
connector that fails never stops another: each runs in a task of its own, and how the task
ended decides when the next one starts.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import Any

import structlog

from verity_sdk.batches import Limits
from verity_sdk.clock import ClockDifference
from verity_sdk.connector_base import BaseConnector
from verity_sdk.context import Context, WaitReport
from verity_sdk.errors import Denied, Fenced, Misconfigured, Unavailable
from verity_stream.kafka.clients import AIOKAFKA, Clients
from verity_stream.kafka.committed import CommittedReader
from verity_stream.kafka.partitions import partition_for
from verity_stream.kafka.topics import Misshapen, Topics, placed_partitions, worker_topics
from verity_stream.kafka.transactions import KafkaPublisher
from verity_stream.postgres.checkpoints import PostgresCheckpoints
from verity_stream.postgres.controls import Control, Controls
from verity_stream.postgres.pool import Pools, close_pool, open_pools
from verity_stream.postgres.reports import Reports
from verity_stream.redaction import SECRETS
from verity_stream.relay.id_log import KafkaIdLog, agree_on_key, new_id_key
from verity_stream.relay.ids import IdHasher
from verity_stream.relay.relay import Relay
from verity_stream.relay.snapshots import new_snapshot_id, publish_snapshot
from verity_stream.relay.sources import Clock, PublishedByTheRelay, source_of
from verity_stream.settings import ConnectorSpec, StreamSettings
from verity_stream.status import State, Status, utc_now
from verity_stream.waiting import retry_until_available
from verity_stream.worker.supervise import Life, Step, Wanted, ended, next_step

logger = structlog.get_logger(__name__)

HALT_SECONDS = 2.5
"""A page in hand gets this long to finish before its relay is cancelled."""
CANCEL_SECONDS = 2.0
CLOSE_SECONDS = 5.0
SHAPES_SECONDS = 10.0
CLOCKS_DIFFER = timedelta(minutes=1)
SIGN_OF_LIFE_SECONDS = 10.0
SUMMARY_SECONDS = 60.0


@dataclass(slots=True)
class _Supervised:
    """One configured connector on this worker."""

    spec: ConnectorSpec
    partition: int
    status: Status
    relay: Relay | None = None
    connector: BaseConnector | None = None
    task: asyncio.Task[None] | None = None
    snapshot: asyncio.Task[None] | None = None
    life: Life = field(default_factory=Life)
    # Of its status, when its relay was started.
    progress: int = 0
    # By the event loop's clock, in seconds: however the wall clock is set, it comes.
    next_snapshot_at: float | None = None
    reported: tuple[int, int] = (0, 0)
    control: Control = field(default_factory=Control)
    is_stopping: bool = False

    @property
    def made_progress(self) -> bool:
        """Whether its relay has committed a page or finished a pass."""
        return self.status.progress != self.progress


class ConnectorRunner:
    """Owns the relays of one worker.

    Args:
        settings: The worker's settings.
        specs: Every configured connector, whoever runs it.
        clock: The present, aware UTC.
        random: Spreads what would happen at the same time.
        clients: Makes Kafka's clients.
        open_pools: Connects to Postgres.
        new_snapshot_id: Makes an id that no other snapshot has.
        new_id_key: Makes the key of the hashes of ids, where the installation has none yet.
    """

    def __init__(
        self,
        settings: StreamSettings,
        specs: Iterable[ConnectorSpec],
        *,
        clock: Clock = utc_now,
        random: Random | None = None,
        clients: Clients = AIOKAFKA,
        open_pools: Callable[[StreamSettings], Awaitable[Pools]] = open_pools,
        new_snapshot_id: Callable[[], str] = new_snapshot_id,
        new_id_key: Callable[[], bytes] = new_id_key,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._random = Random() if random is None else random  # noqa: S311 - jitter
        self._clients = clients
        self._open_pools = open_pools
        self._new_snapshot_id = new_snapshot_id
        self._new_id_key = new_id_key
        self._connectors = [
            _Supervised(
                spec,
                partition_for(spec.connector_id, settings.checkpoint_partitions),
                Status(
                    spec.connector_id,
                    spec.platform,
                    state_since=clock(),
                    lookback_seconds=spec.lookback.total_seconds(),
                    poll_seconds=spec.options.poll_every.total_seconds(),
                    clock=clock,
                ),
            )
            for spec in specs
        ]
        self._owned: frozenset[int] = frozenset()
        self._is_held = True
        self._is_assigned = False
        self._pool: Any = None
        self._connector_pool: Any = None
        self._topics = Topics(settings, clients)
        self._reader = CommittedReader(
            settings.kafka, settings.checkpoint_partitions, settings.transaction_timeout, clients
        )
        self._ids: KafkaIdLog | None = None
        self._store: PostgresCheckpoints | None = None
        self._controls: Controls | None = None
        self._reports: Reports | None = None
        self._is_database_down = False
        self._has_read_controls = False
        self._summarised_at = self._reported_at = 0.0
        self._look_at_shapes_at = 0.0
        self._misshapen: str | None = None
        self._difference = ClockDifference()
        self._has_differed = False

    async def start(self) -> None:
        """Connect to Postgres, see to its migrations, and create the topics.

        Raises:
            Misconfigured, Denied, Unavailable: Nothing was started.
        """
        settings = self._settings
        # Bound to the loop: a connector may ask in a thread.
        self._difference = ClockDifference(asyncio.get_running_loop().time)
        self._summarised_at = self._reported_at = _loop_seconds()
        self._pool, self._connector_pool = await self._open_pools(settings)
        cluster = await retry_until_available(self._topics.cluster_id, settings.broker_wait_seconds)
        self._store = PostgresCheckpoints(self._pool, cluster)
        self._controls = Controls(self._pool)
        self._reports = Reports(self._pool, settings.worker_name)
        names = worker_topics(settings, {one.spec.platform for one in self._connectors})
        await retry_until_available(
            lambda: self._topics.ensure(names), settings.broker_wait_seconds
        )
        await self._topics.warn_of_differences(names)
        key = await retry_until_available(self._agree_on_key, settings.broker_wait_seconds)
        self._ids = KafkaIdLog(self._reader, settings.checkpoint_partitions, IdHasher(key))

    async def _agree_on_key(self) -> bytes:
        publisher = KafkaPublisher(
            self._settings.kafka,
            transactional_id=None,
            transaction_timeout=self._settings.transaction_timeout,
            clients=self._clients,
        )
        return await agree_on_key(self._pool, self._reader, publisher, self._new_id_key)

    def hold(self) -> None:
        """Start nothing until the next `assign`; what runs goes on."""
        self._is_held = True

    async def assign(self, partitions: frozenset[int]) -> None:
        """Own these partitions of the checkpoints topic: stop the others' relays within 5 s."""
        self._owned = partitions
        self._is_held = False
        self._is_assigned = True
        # The rebalance may have come because topics changed.
        self._topics.forget()
        self._look_at_shapes_at = 0.0
        mine = [one for one in self._connectors if self._is_mine(one)]
        logger.info(
            "runner.assigned",
            partitions=sorted(partitions),
            connectors=[one.spec.connector_id for one in mine],
        )
        for one in mine:
            self._take_result(one)
            one.life = one.life.assigned()
        await self._stop_all([one for one in self._connectors if not self._is_mine(one)])

    async def revoke(self) -> None:
        """Own nothing any more: stop every relay, within 5 seconds."""
        self.hold()
        self._owned = frozenset()
        self._is_assigned = False
        await self._stop_all(self._connectors)

    async def stop(self) -> None:
        """Stop everything and disconnect."""
        await self.revoke()
        if self._controls is not None:
            await self._report()
        if self._ids is not None:
            self._ids.close()
        pools = [pool for pool in (self._pool, self._connector_pool) if pool is not None]
        self._pool = self._connector_pool = None
        await asyncio.gather(*map(close_pool, pools))

    def is_ready(self) -> bool:
        """Whether the worker is connected and knows what it owns."""
        return self._pool is not None and self._is_assigned

    @property
    def statuses(self) -> Mapping[str, Status]:
        """The connectors that this worker owns, by id."""
        return {one.spec.connector_id: one.status for one in self._connectors if self._is_mine(one)}

    def _is_mine(self, one: _Supervised) -> bool:
        return one.partition in self._owned

    async def reconcile(self) -> None:
        """Bring what runs in line with what is owned, enabled and asked for; then report."""
        if self._controls is None:
            return
        await self._look_at_shapes()
        await self._read_controls()
        now_seconds = _loop_seconds()
        unwanted = []
        for one in self._connectors:
            self._take_result(one)
            wanted = self._wanted(one)
            has_relay, has_snapshot = one.task is not None, one.snapshot is not None
            step, one.life = next_step(
                one.life, wanted, now_seconds, has_relay=has_relay, has_snapshot=has_snapshot
            )
            if step is Step.STOP:
                unwanted.append(one)
            elif step is Step.START:
                self._launch(one)
            elif step is Step.REST:
                rest = wanted.rest
                if wanted.is_mine and rest is not None and one.status.state is not rest:
                    one.status.enter(rest, error=wanted.misshapen)
            elif wanted.may_start:
                self._snapshot_if_due(one)
        await self._stop_all(unwanted)
        await self._report()
        self._summarise(now_seconds)

    def _wanted(self, one: _Supervised) -> Wanted:
        return Wanted(
            is_mine=self._is_mine(one),
            is_enabled=one.spec.options.enabled,
            is_paused=one.control.is_paused,
            misshapen=self._misshapen,
            # Before the first look nobody knows what is paused, and whether a restart was asked
            # for before or after the start.
            may_start=not self._is_held and self._has_read_controls,
        )

    async def _look_at_shapes(self) -> None:
        """After an assignment, and while they are wrong: have the placed topics their shape?

        One error for all connectors: it is one command that mends it.
        """
        if _loop_seconds() < self._look_at_shapes_at:
            return
        # Before the wait: an assignment that comes meanwhile wants a look of its own.
        self._look_at_shapes_at, again_seconds = math.inf, math.inf
        try:
            async with asyncio.timeout(SHAPES_SECONDS):
                await self._topics.require_shape()
        except Misshapen as error:
            if self._misshapen is None:
                logger.error("topics.misshapen", error=str(error))
            self._misshapen = str(error)
            again_seconds = self._settings.blocked_probe.total_seconds()
        except (Unavailable, Denied, Misconfigured, TimeoutError) as error:
            # Not known: the relays find out by themselves what is wrong with the broker.
            logger.debug("topics.not_looked_at", error=str(error))
            again_seconds = SHAPES_SECONDS
        else:
            self._misshapen = None
        next_at = _loop_seconds() + again_seconds
        self._look_at_shapes_at = min(self._look_at_shapes_at, next_at)

    async def _read_controls(self) -> None:
        assert self._controls is not None  # noqa: S101 - start() comes first
        try:
            controls = await self._controls.controls()
            await self._compare_clocks()
        except (Unavailable, Denied, Misconfigured) as error:
            if not self._is_database_down:
                logger.warning("runner.database_unavailable", error=str(error))
            self._is_database_down = True
            return
        if self._is_database_down:
            logger.info("runner.database_available")
        self._is_database_down = False
        for one in self._connectors:
            before, one.control = one.control, controls.get(one.spec.connector_id, Control())
            # At a worker's first look everything starts anyway.
            if not self._has_read_controls:
                continue
            one.life = one.life.asked(before, one.control)
            if one.control.snapshot_requested_at != before.snapshot_requested_at:
                one.next_snapshot_at = None
        self._has_read_controls = True

    async def _compare_clocks(self) -> None:
        """Whether this machine's clock is right: of two that differ the earlier counts."""
        assert self._controls is not None  # noqa: S101 - start() comes first
        asked_at = self._clock()
        now = await self._controls.now()
        self._difference.hear(now)
        ahead = asked_at - now
        has_differed, self._has_differed = self._has_differed, abs(ahead) > CLOCKS_DIFFER
        if self._has_differed and not has_differed:
            logger.error("worker.clock_differs", ahead_of_database_seconds=ahead.total_seconds())
        elif has_differed and not self._has_differed:
            logger.info("worker.clock_agrees")

    def _present(self) -> datetime:
        """The earlier of this machine's clock and the database's."""
        return self._difference.trusted(self._clock())

    def _launch(self, one: _Supervised) -> None:
        one.status.enter(State.STARTING)
        one.progress = one.status.progress
        one.task = asyncio.create_task(self._run(one), name=f"relay:{one.spec.connector_id}")

    async def _run(self, one: _Supervised) -> None:
        """One life of a connector: a new instance, a new producer, a new relay."""
        spec, settings = one.spec, self._settings
        assert self._store is not None  # noqa: S101 - start() comes first
        assert self._ids is not None  # noqa: S101 - so does it
        connector: BaseConnector | None = None
        Context(
            self._clock,
            report_wait=shown_as_backing_off(one.status, asyncio.current_task()),
            trusted=self._difference.trusted,
        ).enter()
        try:
            connector = one.connector = self._construct(spec)
            one.relay = Relay(
                spec,
                settings,
                source_of(
                    connector,
                    spec.lookback,
                    self._limits(spec),
                    self._present,
                    settings.page_bytes,
                ),
                self._publisher(f"verity.{spec.connector_id}"),
                self._store,
                self._reader,
                self._ids,
                self._topics.ensure,
                one.status,
                self._present,
            )
            await one.relay.run()
        finally:
            # One that outlived its cancellation may end when the next life has begun.
            if one.connector is connector:
                one.relay = one.connector = None
            await _close(connector)

    def _construct(self, spec: ConnectorSpec) -> BaseConnector:
        try:
            return spec.cls(spec.config, PublishedByTheRelay(), self._connector_pool)
        except BaseException as error:
            if isinstance(error, Exception):
                raise
            # Nothing is awaited in a constructor, so a CancelledError is the connector's own.
            raise RuntimeError(f"the connector's constructor raised {error!r}") from error

    def _publisher(self, name: str) -> KafkaPublisher:
        is_exact = self._settings.delivery == "exactly_once"
        return KafkaPublisher(
            self._settings.kafka,
            transactional_id=name if is_exact else None,
            transaction_timeout=self._settings.transaction_timeout,
            partitions=placed_partitions(self._settings),
            clients=self._clients,
        )

    def _limits(self, spec: ConnectorSpec) -> Limits:
        return Limits(
            self._settings.page_events,
            self._settings.page_wait,
            spec.options.fetch_timeout or spec.cls.fetch_timeout or self._settings.fetch_timeout,
        )

    def _take_result(self, one: _Supervised) -> None:
        """If the connector's task has ended, decide when the next one starts."""
        task = one.task
        if task is None:
            return
        if one.is_stopping or not task.done():
            return
        one.task = None
        self._topics.forget()
        error = None if task.cancelled() else task.exception()
        one.status.retry_count += 1
        one.status.fenced_count += isinstance(error, Fenced)
        if isinstance(error, Misshapen):
            self._look_at_shapes_at = 0.0
        end = ended(
            one.life,
            error,
            made_progress=one.made_progress,
            now=_loop_seconds(),
            settings=self._settings,
            jitter=self._random.random(),
        )
        one.life = end.life
        state, delay = end.state, end.pause
        text = "cancelled" if error is None else SECRETS.hide(f"{type(error).__name__}: {error}")
        one.status.enter(state, error=text, next_try_at=self._clock() + delay)
        log = logger.bind(
            connector_id=one.spec.connector_id, next_try_in_seconds=delay.total_seconds()
        )
        if isinstance(error, Unavailable | Fenced) or error is None:
            log.warning(f"connector.{state}", error=text)
        elif isinstance(error, Misshapen):
            pass  # The next look says it, once for all connectors.
        elif isinstance(error, Denied | Misconfigured):
            log.error(f"connector.{state}", error=text)
        else:
            # None of the five: a bug of the connector's or of ours. Loud, but alone.
            log.error("connector.bug", error=text, exc_info=error)

    def _snapshot_if_due(self, one: _Supervised) -> None:
        if one.snapshot is not None:
            if one.snapshot.done():
                one.snapshot = None
            return
        # The checkpoints' epoch fences events; a snapshot is only started beside a live relay.
        if one.task is None or not one.made_progress:
            return
        every = one.spec.options.snapshot_every
        # By the database's clock, which also says when one was asked for and when one began.
        now = self._difference.other
        if now is None or (one.next_snapshot_at or 0.0) > _loop_seconds():
            return
        if one.control.is_snapshot_due(every, now):
            one.snapshot = asyncio.create_task(
                self._take_snapshot(one), name=f"snapshot:{one.spec.connector_id}"
            )

    async def _take_snapshot(self, one: _Supervised) -> None:
        """Publish a snapshot with an instance and a producer of its own; never raises an error."""
        spec = one.spec
        assert self._controls is not None  # noqa: S101 - start() comes first
        assert self._reports is not None  # noqa: S101 - as above
        publisher = self._publisher(f"verity.{spec.connector_id}.snapshot")
        connector: BaseConnector | None = None
        try:
            started_at = await self._controls.now()
            Context(self._clock).enter()
            connector = self._construct(spec)
            await publisher.start()
            result = await publish_snapshot(
                spec,
                self._settings,
                connector,
                publisher,
                self._limits(spec),
                self._clock,
                self._new_snapshot_id,
            )
            await self._reports.snapshot_taken(spec.connector_id, result, started_at)
        except Exception as error:  # noqa: BLE001 - a snapshot that fails must not stop the events
            logger.warning(
                "snapshot.unpublished",
                connector_id=spec.connector_id,
                error=f"{type(error).__name__}: {error}",
            )
            one.next_snapshot_at = _loop_seconds() + self._settings.backoff_max.total_seconds()
        finally:
            await publisher.close()
            await _close(connector)

    async def _stop_all(self, connectors: Iterable[_Supervised]) -> None:
        """Halt at the end of the page in hand; cancel what takes too long. Bounded."""
        stopping = []
        for one in connectors:
            if one.relay is not None:
                one.relay.halt()
            elif one.task is not None:
                one.task.cancel()
            if one.snapshot is not None:
                one.snapshot.cancel()
            if one.task is not None or one.snapshot is not None:
                one.is_stopping = True
                stopping.append((one, one.task, one.snapshot))
        tasks = {task for _, *both in stopping for task in both if task is not None}
        if not tasks:
            return
        pending = tasks
        try:
            _, pending = await asyncio.wait(tasks, timeout=HALT_SECONDS)
            for task in pending:
                task.cancel()
            if pending:
                _, pending = await asyncio.wait(pending, timeout=CANCEL_SECONDS)
        finally:
            for one, _, _ in stopping:
                one.is_stopping = False
        for task in pending:
            # Whatever it still does, its producer's next transaction finds itself fenced.
            logger.error("runner.task_ignores_cancellation", task=task.get_name())
        for one, relay_task, snapshot in stopping:
            # Somebody else may have stopped it meanwhile, and a third have started it again.
            if one.snapshot is snapshot:
                one.snapshot = None
            if one.task is relay_task:
                one.task = one.relay = None
                one.life = one.life.stopped()
                one.status.enter(State.PAUSED if one.control.is_paused else State.STOPPED)
        for task in tasks - pending:
            if not task.cancelled():
                task.exception()  # Seen: its relay was stopping anyway.

    async def _report(self) -> None:
        """Write changed statuses to Postgres, and all from time to time: a sign of life."""
        assert self._reports is not None  # noqa: S101 - start() comes first
        is_alive = _loop_seconds() - self._reported_at >= SIGN_OF_LIFE_SECONDS
        if is_alive:
            for one in self._connectors:
                one.status.warning = warning_of(one.connector)
        changed = [
            one.status
            for one in self._connectors
            if (is_alive and self._is_mine(one))
            or (
                not one.status.is_reported
                and (self._is_mine(one) or one.status.state is State.STOPPED)
            )
        ]
        if not changed or self._is_database_down:
            return
        for status in changed:
            # Before the write: what changes while it is on its way is for the next one.
            status.is_reported = True
        try:
            await self._reports.report(changed)
            if is_alive:
                self._reported_at = _loop_seconds()
        except (Unavailable, Denied, Misconfigured) as error:
            for status in changed:
                status.is_reported = False
            logger.debug("runner.unreported", error=str(error))

    def _summarise(self, now_seconds: float) -> None:
        if now_seconds - self._summarised_at < SUMMARY_SECONDS:
            return
        self._summarised_at = now_seconds
        for one in self._connectors:
            status = one.status
            events, pages = one.reported
            if self._is_mine(one) and status.page_count != pages:
                logger.info(
                    "connector.summary",
                    connector_id=status.connector_id,
                    state=status.state,
                    events=status.event_count - events,
                    pages=status.page_count - pages,
                    repeats=status.repeat_count,
                    dead_letters=status.dead_count,
                    gaps=status.gap_count,
                )
            one.reported = (status.event_count, status.page_count)


def _loop_seconds() -> float:
    """The event loop's clock: it only ascends, whatever is done to the wall clock."""
    return asyncio.get_running_loop().time()


def warning_of(connector: BaseConnector | None) -> str | None:
    """What a running connector says is worth a look; never raises."""
    if connector is None:
        return None
    try:
        return SECRETS.hide(" ".join(connector.health_warnings())) or None
    except Exception as error:  # noqa: BLE001 - a connector may raise anything
        return f"its health_warnings() raised {error!r}"


def shown_as_backing_off(status: Status, life: asyncio.Task[Any] | None = None) -> WaitReport:
    """While a connector waits for its vendor by itself, people see until when, and why.

    Args:
        status: Where it is shown.
        life: The task that runs the connector: what it left behind reports nothing once it is over.
    """

    def report(until: datetime | None, why: str) -> None:
        if life is not None and life.done():
            return
        if until is not None:
            status.enter(State.BACKING_OFF, error=SECRETS.hide(why), next_try_at=until)
        elif status.state is State.BACKING_OFF:
            status.enter(State.RUNNING)

    return report


async def _close(connector: BaseConnector | None) -> None:
    """Let the connector close what it opened; bounded, never raises."""
    if connector is None:
        return
    close = connector.close

    async def contained() -> None:
        try:
            await close()
        except (SystemExit, KeyboardInterrupt) as error:
            raise RuntimeError(f"close() raised {error!r}") from error

    closing = asyncio.create_task(contained())
    try:
        # Not the task itself: what it cancels within, or ignores, is not ours.
        await asyncio.wait({closing}, timeout=CLOSE_SECONDS)
    finally:
        closing.cancel()
    if not closing.done():
        logger.warning("connector.close_failed", error=f"it took over {CLOSE_SECONDS} s")
    elif not closing.cancelled() and (error := closing.exception()) is not None:
        logger.warning("connector.close_failed", error=SECRETS.hide(repr(error)))
