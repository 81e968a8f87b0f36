"""The downstream app: what counts as processed, where poison goes, topics at the start."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import faust
from aiokafka.admin import NewTopic
from faust.agents import current_agent
from faust.exceptions import Skip
from faust.types import TP
from faust.types.topics import TopicT
from mode import want_seconds

from verity_sdk.errors import Malformed, Misconfigured, Unavailable
from verity_sdk.position import NAME_RULE, is_valid_name
from verity_sdk.times import format_utc
from verity_stream.downstream.topics import TypedSchema, Undecodable, agents_dead_topic
from verity_stream.faust_base.app import VerityApp
from verity_stream.faust_base.fixes import (
    CommittedReaderThread,
    CommittedTransport,
    DeliveredOffsetsConsumer,
)
from verity_stream.faust_base.options import faust_options
from verity_stream.kafka.topics import ensure_topics
from verity_stream.settings import StreamSettings, load_settings

logger = logging.getLogger(__name__)

BODY_SECONDS_MAX = 25.0
"""How long an agent's function may take: less than the rebalance timeout, as a rebalance waits."""
SENT_SECONDS_MAX = 60.0
"""How long the broker may take to acknowledge; more than the producer's own patience."""
REASON_CHARACTERS_MAX = 2000

# The guarantees above rest on these.
_FIXED_OPTIONS = frozenset(
    {
        "id",
        "processing_guarantee",
        "producer_acks",
        "producer_threaded",
        "stream_publish_on_commit",
        "stream_wait_empty",
        "TableManager",
        "Topic",
    }
)


# What an event's function sends, the writes to changelogs included; None outside of one.
_sent: ContextVar[list[asyncio.Future[Any]] | None] = ContextVar("verity_sent", default=None)


class _TrackedTopic(faust.Topic):
    """A topic that is created before the first record to it, and notes what an event sends."""

    app: Any

    async def maybe_declare(self) -> None:
        """Create the topic unless it exists; Faust asks for it of what it reads and writes."""
        await self.app.ensure_topic(self)

    async def publish_message(self, fut: Any, wait: bool = False) -> Any:
        """Publish; Faust calls this for `send`, and later for what `send_soon` has buffered."""
        await self.app.ensure_topic(self)
        answer = await super().publish_message(fut, wait)
        if not wait:
            _note(answer)
        return answer

    def send_soon(self, **record: Any) -> Any:
        """Buffer a record, as tables do with every write."""
        future = super().send_soon(**record)
        _note(future)
        return future


def _note(future: Any) -> None:
    sent = _sent.get()
    if sent is not None:
        sent.append(future)


# The consumer.


class _PositionThread(CommittedReaderThread):
    """Notes how far each partition was read, beyond markers and aborted records as well."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The offset of the last record that was handed over, and the position after it.
        self.read: dict[TP, tuple[int | None, int]] = {}

    async def _fetch_records(
        self, consumer: Any, active_partitions: Any, *args: Any, **kwargs: Any
    ) -> Any:
        fetched = await super()._fetch_records(consumer, active_partitions, *args, **kwargs)
        # Nothing is awaited between the fetch and this, in the one thread that moves positions.
        # Paused partitions are left out: before its seek a position means nothing.
        assignment = consumer._subscription.subscription.assignment
        if self.consumer.flow_active and assignment is not None:
            for tp in assignment.tps:
                position = assignment.state_value(tp)._position
                if position is not None and tp in active_partitions:
                    batch = fetched.get(tp)
                    last = batch[-1].offset if batch else self.read.get(tp, (None, 0))[0]
                    self.read[tp] = (last, position)
        return fetched


class _DrainedConsumer(DeliveredOffsetsConsumer):
    """A consumer whose lag is 0 when all is processed.

    One past the last processed record stays behind the end of a transactional topic for ever: by
    the marker of the commit, and by whole pages where transactions were aborted last. Once
    everything that was read is processed, this commits the position instead, as Java's does.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._processed: dict[TP, int] = {}

    def _new_consumer_thread(self) -> _PositionThread:
        self._positions = _PositionThread(self, loop=self.loop, beacon=self.beacon)
        return self._positions

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        # A partition may end in markers without a single record since the assignment.
        for tp in {*self._acked, *self._positions.read}:
            if topics is None or tp in topics or tp.topic in topics:
                yield tp

    def _new_offset(self, tp: TP) -> int | None:
        offset = super()._new_offset(tp)
        if offset is not None:
            self._processed[tp] = offset
        # Read once: the other thread may replace it meanwhile.
        read = self._positions.read.get(tp)
        if read is None or self._delivered[tp] or not self.app.topics.acks_enabled_for(tp.topic):
            return offset
        last, position = read
        # Fetched is not delivered yet: only when the last fetched record is processed, too.
        if last is not None and self._processed.get(tp, 0) <= last:
            return offset
        return position

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Commit, then forget."""
        await super().on_partitions_revoked(revoked)
        self._forget(revoked)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Forget what was read before: the partitions are sought anew."""
        self._forget(assigned)
        await super().on_partitions_assigned(assigned, generation_id)

    def _forget(self, partitions: Collection[TP]) -> None:
        for tp in partitions:
            self._positions.read.pop(tp, None)
            self._processed.pop(tp, None)


class _DrainedTransport(CommittedTransport):
    Consumer = _DrainedConsumer


# The app.


def create_app(
    app_id: str, *, settings: StreamSettings | None = None, **options: Any
) -> DownstreamApp:
    """A Faust app for agents downstream of Verity's topics; the module says what it guarantees.

    `faust -A your.module worker` runs it. The broker, its security and the time-outs come from
    `VERITY_KAFKA__…` and the other settings; nothing else is read from the environment.

    Args:
        app_id: The consumer group, the prefix of changelogs, the end of the name of its dead
            letters. Your own: all workers with the same id share the work.
        settings: Verity's settings; read from the environment by default.
        options: Any setting of Faust but those that the guarantees rest on.

    Raises:
        Misconfigured: The id is that of Verity's own workers or can't be part of a topic's name,
            an option can't be set, or Faust is not the pinned version.
    """
    settings = load_settings() if settings is None else settings
    workers = {settings.app_id, StreamSettings.model_fields["app_id"].default}
    if app_id in workers:
        raise Misconfigured(
            f"The app_id {app_id!r} is the consumer group of Verity's own workers: in it, your "
            "app would take connectors away from them. Give it a name of its own"
        )
    if not is_valid_name(app_id):
        raise Misconfigured(
            f"The app_id {app_id!r} can't be part of a topic's name: it is {NAME_RULE}"
        )
    fixed = _FIXED_OPTIONS & options.keys()
    if fixed:
        raise Misconfigured(f"{', '.join(sorted(fixed))}: Verity's guarantees rest on these")
    own = {
        "broker_client_id": settings.kafka.client_id or app_id,
        "topic_partitions": settings.kafka.event_partitions,
        # A dead letter is a record as long as any, and its headers.
        "producer_max_request_size": settings.kafka.max_record_bytes + 65_536,
        "Topic": _TrackedTopic,
    }
    return DownstreamApp(app_id, verity=settings, **{**faust_options(settings), **own, **options})


class DownstreamApp(VerityApp):
    """A Faust app with dead letters of its own; see `create_app`."""

    def __init__(self, app_id: str, *, verity: StreamSettings, **options: Any) -> None:
        super().__init__(app_id, verity=verity, **options)
        self.dead_letters = self.topic(
            agents_dead_topic(app_id), key_serializer="raw", value_serializer="raw"
        )
        self._known_topics: set[str] = set()
        self._finishing: set[asyncio.Task[None]] = set()

    def _new_transport(self) -> _DrainedTransport:
        return _DrainedTransport(self.conf.broker_consumer, self)

    def stream(self, channel: Any, *args: Any, **kwargs: Any) -> Any:
        """A stream; what could not be decoded is put away before anything else sees it."""
        stream = super().stream(channel, *args, **kwargs)

        async def put_away(value: Any) -> Any:
            if not isinstance(value, Undecodable):
                return value
            agent = current_agent()
            name = "stream" if agent is None else agent.name
            if await self.put_away(stream.current_event, name, Malformed(value.reason)):
                raise Skip  # Faust acknowledges what is skipped.
            raise Unavailable("the worker stops")  # Not acknowledged: it is read again.

        stream.add_processor(put_away)
        return stream

    # Dead letters.

    async def put_away(self, event: Any, agent: str, error: BaseException) -> bool:
        """Publish an event's record as a dead letter and await the acknowledgement.

        Returns:
            False when that could not be done. Then the worker is about to stop, and the event
            must not be acknowledged.
        """
        message = event.message
        reason = f"{type(error).__name__}: {error}"
        where = f"topic {message.topic}, partition {message.partition}, offset {message.offset}"
        logger.error(
            "Agent %s can't process a record; it goes to %s: %s",
            agent,
            self.dead_letters.get_topic_name(),
            where,
            exc_info=error,
        )
        try:
            async with asyncio.timeout(SENT_SECONDS_MAX):
                sent = await self.dead_letters.send(
                    key=message.key,
                    value=message.value,
                    headers=dead_letter_headers(self.conf.name, agent, message, reason),
                    force=True,
                )
                await sent
        except Exception as failure:  # noqa: BLE001 - whatever it is: the worker stops
            logger.critical(
                "A dead letter can't be published, so the worker stops; the record is not lost, "
                "it will be read again: %s: %r",
                where,
                failure,
            )
            # The root of all services: the process ends with exit code 1.
            await self.crash(Unavailable(f"a dead letter can't be published: {failure!r}"))
            return False
        return True

    async def process(
        self, event: Any, agent: str, function: Callable[..., Awaitable[None]], seconds_max: float
    ) -> None:
        """Run a function for one event and acknowledge the event when all is done.

        The acknowledgement may come after the return, when the broker has taken what was sent:
        the next events need not wait for it.
        """
        sent: list[asyncio.Future[Any]] = []
        token = _sent.set(sent)
        failure: BaseException | None = None
        try:
            async with asyncio.timeout(seconds_max):
                await function(event)
        except TimeoutError as error:
            failure = error if str(error) else TimeoutError(f"it took over {seconds_max:g} s")
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not ours: a library's own, which has escaped. Faust would restart the agent and
            # never acknowledge the event, and no rebalance would end any more.
            failure = error
        except Exception as error:  # noqa: BLE001 - it goes to the dead letters
            failure = error
        finally:
            _sent.reset(token)
        if failure is not None:
            await self._finish(event, agent, sent, failure)
        elif sent:
            self._acknowledge_after(sent, event, agent)
        else:
            event.ack()

    def _acknowledge_after(
        self, sent: Sequence[asyncio.Future[Any]], event: Any, agent: str
    ) -> None:
        # Callbacks, as a task for every event would halve the speed. The producer's own
        # time-out is the limit.
        left = len(sent)

        def sent_one(_: asyncio.Future[Any]) -> None:
            nonlocal left
            left -= 1
            if left:
                return
            failure = _failure(sent)
            if failure is None:
                event.ack()
            else:
                task = asyncio.create_task(self._finish(event, agent, (), failure))
                self._finishing.add(task)
                task.add_done_callback(self._finishing.discard)

        for future in sent:
            future.add_done_callback(sent_one)

    async def _finish(
        self,
        event: Any,
        agent: str,
        sent: Sequence[asyncio.Future[Any]],
        failure: BaseException,
    ) -> None:
        if sent:
            await _outcome(sent)
        # The order is the guarantee: sent, put away, and only then acknowledged.
        if await self.put_away(event, agent, failure):
            event.ack()

    # Topics.

    async def prepare(self) -> None:
        """The broker answers, and the topics stand: sources, changelogs, dead letters.

        Faust itself does not look at what is there: a table with another number of partitions
        than its source raises at the first write.

        Raises:
            Misconfigured: A changelog has another number of partitions than its source.
            Denied: A topic is missing and we may not create it.
            Unavailable: The broker did not manage in time.
        """
        await super().prepare()
        sources = [
            topic
            for topic in (agent.channel for agent in self.agents.values())
            if isinstance(topic, TopicT) and topic.topics and not topic.internal
        ]
        ours = [topic for topic in sources if isinstance(topic.schema, TypedSchema)]
        counts = await self._ensure([self.dead_letters, *sources])
        source_counts = {counts[topic.get_topic_name()] for topic in ours}
        changelogs = [
            table.changelog_topic for table in self.tables.values() if not table.is_global
        ]
        for changelog in changelogs:
            if changelog.partitions is None and len(source_counts) > 1:
                raise Misconfigured(
                    f"{changelog.get_topic_name()}: the app's topics have different numbers of "
                    f"partitions {sorted(source_counts)}: say which with Table(…, partitions=)"
                )
            if changelog.partitions is None and source_counts:
                (changelog.partitions,) = source_counts
        counts = await self._ensure(changelogs)
        for changelog in changelogs:
            name, wanted = changelog.get_topic_name(), changelog.partitions
            if wanted is not None and counts[name] != wanted:
                raise Misconfigured(
                    f"The topic {name} has {counts[name]} partitions, but the events of its table "
                    f"come from {wanted}. With all of the app's workers stopped, delete the "
                    "topic and reset the group's offsets, or give the app another app_id"
                )

    async def ensure_topic(self, topic: Any) -> None:
        """Create a topic if it is missing; asks the broker once."""
        if topic.get_topic_name() not in self._known_topics:
            await self._ensure([topic])

    async def _ensure(self, topics: Iterable[Any]) -> dict[str, int]:
        wanted = {
            topic.get_topic_name(): NewTopic(
                topic.get_topic_name(),
                topic.partitions or self.conf.topic_partitions,
                topic.replicas or self.conf.topic_replication_factor,
                topic_configs=_configs(self, topic),
            )
            for topic in topics
        }
        counts = await ensure_topics(self.verity.kafka, wanted)
        self._known_topics.update(wanted)
        return counts


async def _outcome(sent: Sequence[asyncio.Future[Any]]) -> BaseException | None:
    """Await what was sent; the first failure, or None."""
    _, pending = await asyncio.wait(sent, timeout=SENT_SECONDS_MAX)
    if pending:
        return TimeoutError(f"the broker did not acknowledge within {SENT_SECONDS_MAX:g} s")
    return _failure(sent)


def _failure(sent: Sequence[asyncio.Future[Any]]) -> BaseException | None:
    """The first failure of what is done, or None."""
    for future in sent:
        if future.cancelled():
            return RuntimeError("sending was cancelled")
        if (error := future.exception()) is not None:
            return error
    return None


def dead_letter_headers(
    app_id: str, agent: str, message: Any, reason: str
) -> list[tuple[str, bytes]]:
    """The record's own headers, then who failed at what, where and why."""
    own = {
        "app_id": app_id,
        "agent": agent,
        "topic": message.topic,
        "partition": str(message.partition),
        "offset": str(message.offset),
        "reason": reason[:REASON_CHARACTERS_MAX],
        "failed_at": format_utc(datetime.now(UTC)),
    }
    encoded = [(name, text.encode("utf-8", "backslashreplace")) for name, text in own.items()]
    return [*(message.headers or ()), *encoded]


def verity_agent(
    app: DownstreamApp,
    topic: Any,
    *,
    name: str | None = None,
    seconds_max: float = BODY_SECONDS_MAX,
) -> Callable[[Callable[..., Awaitable[None]]], Any]:
    """Make an agent of a function that takes one event.

        @verity_agent(app, raw_topic(app, "postgres"))
        async def alert(event: RawEvent) -> None: ...

    A function of two parameters gets Faust's event as well: `event.headers`, `event.key`,
    `event.message.offset`. Tables may be written, windowed ones too: the function runs within
    the agent. What it raises makes the record a dead letter.

    Args:
        app: What `create_app` made.
        topic: What to read.
        name: The agent's name in dead letters; the function's by default.
        seconds_max: How long the function may take for one event; then it has failed. A
            rebalance of the group waits for it.

    Raises:
        Misconfigured: The app has an agent of that name.
    """

    def decorate(function: Callable[..., Awaitable[None]]) -> Any:
        agent_name = name or str(getattr(function, "__name__", type(function).__name__))
        if agent_name in app.agents:
            raise Misconfigured(f"The app has an agent {agent_name!r} already: give it a name")
        takes_event = len(inspect.signature(function).parameters) > 1

        async def handle(event: Any) -> None:
            await (function(event.value, event) if takes_event else function(event.value))

        # One at a time: the order of a partition is the order of its table.
        @app.agent(topic, name=agent_name, concurrency=1)
        async def agent(stream: Any) -> None:
            # `process` acknowledges. Faust would do so whatever becomes of the event, even one
            # whose processing was cancelled.
            stream.enable_acks = False
            async for event in stream.events():
                await app.process(event, agent_name, handle, seconds_max)

        agent.__doc__ = function.__doc__
        return agent

    return decorate


@asynccontextmanager
async def guarded(event: Any) -> AsyncIterator[None]:
    """For an agent with a loop of its own: the same care for what is done with one event.

        @app.agent(raw_topic(app, "postgres"))
        async def alert(stream):
            async for event in stream.events():
                async with guarded(event): ...

    What is raised within makes the record a dead letter and goes no further. On leaving, the
    broker has acknowledged what was sent and what was written to tables: slower than
    `verity_agent`, which does not wait with the next event.
    """
    agent = current_agent()
    sent: list[asyncio.Future[Any]] = []
    token = _sent.set(sent)
    failure: BaseException | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001 - it goes to the dead letters
        failure = error
    finally:
        _sent.reset(token)
    if sent:
        failure = failure or await _outcome(sent)
    if failure is not None:
        name = "stream" if agent is None else agent.name
        if not await event.app.put_away(event, name, failure):
            # The stream would acknowledge the event on the way out: wait for the end here.
            await asyncio.Event().wait()


def _configs(app: Any, topic: Any) -> dict[str, str]:
    configs = app.transport._topic_config(
        None if topic.retention is None else int(want_seconds(topic.retention) * 1000),
        topic.compacting,
        topic.deleting,
    )
    return {name: str(value) for name, value in {**configs, **topic.config}.items()}
