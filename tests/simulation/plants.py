"""Planted bugs: what the simulator must find.

A plant puts something else in place of a function or of a collaborator, through the names that the
product itself looks up; it never touches source text. Most wrap what is there and spoil its
argument, its answer or its order. Those that cannot (a race lies within a function) bring a version
of their own. A name that has gone raises `Stale`: after a move of modules, the imports here are
what follows.

The numbers are those of the design's table; those from 51 on are the code of losses that were
mended before the simulator was there.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import repeat
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from aiokafka import errors as kafka_errors

from simulation import postgres
from verity_sdk import batches, clock, position, windows
from verity_sdk.errors import Fenced, Malformed, Misconfigured, Unavailable
from verity_stream import records
from verity_stream.kafka import committed, topics, transactions
from verity_stream.postgres import checkpoints
from verity_stream.postgres.controls import Controls
from verity_stream.postgres.reports import Reports
from verity_stream.records import GAPS_TOPIC, IDS_TOPIC, EventEncoder, SnapshotResult
from verity_stream.relay import ids, page_builder, relay, seen_window, sources, start
from verity_stream.status import State
from verity_stream.worker import driver, runner

PACKAGES = ("verity_sdk", "verity_stream")


class Stale(Exception):
    """What a plant replaces is not there any more."""


class Ground:
    """Where plants are put, and what stood there before."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, str, Any]] = []

    def put(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Put `make(what stands there)` in place of a class's or module's attribute."""
        if name not in vars(owner):
            raise Stale(f"{owner.__name__}.{name}")
        before = vars(owner)[name]
        self._before.append((owner, name, before))
        setattr(owner, name, make(before))

    def put_function(self, function: Any, make: Callable[[Any], Any]) -> None:
        """Put `make(function)` wherever the product has this function under a name."""
        planted = make(function)
        for module in list(sys.modules.values()):
            if not isinstance(module, ModuleType) or module.__name__.split(".")[0] not in PACKAGES:
                continue
            for name, found in list(vars(module).items()):
                if found is function:
                    self._before.append((module, name, found))
                    setattr(module, name, planted)

    def clear(self) -> None:
        """All as it was."""
        while self._before:
            owner, name, before = self._before.pop()
            setattr(owner, name, before)


@dataclass(frozen=True)
class Plant:
    """One planted bug.

    Attributes:
        number: In the table of the design.
        breaks: What goes wrong with it.
    """

    name: str
    number: int
    breaks: str
    put: Callable[[Ground], None]


PLANTS: dict[str, Plant] = {}


def plant(
    number: int, breaks: str
) -> Callable[[Callable[[Ground], None]], Callable[[Ground], None]]:
    """Enter a plant under its function's name."""

    def enter(put: Callable[[Ground], None]) -> Callable[[Ground], None]:
        PLANTS[put.__name__] = Plant(put.__name__, number, breaks, put)
        return put

    return enter


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The product with this bug; `none` is the product as it is.

    Raises:
        KeyError: There is no such plant.
        Stale: What it replaces has gone.
    """
    ground = Ground()
    try:
        if name != "none":
            PLANTS[name].put(ground)
        yield
    finally:
        ground.clear()


def answering(answer: Any) -> Callable[[Any], Any]:
    """In place of a function: one that answers this whatever it is asked."""
    return lambda _: lambda *_args, **_options: answer


async def _nothing(*_: Any, **__: Any) -> None: ...


# batches: one batch is filled while another is on its way


def filled_with(bug: str) -> Any:
    """`batched_into`, with one bug of those below."""

    async def batched_into(items: Any, new: Any, limits: Any) -> AsyncIterator[tuple[Any, bool]]:
        batch = new()
        has_some, is_full, has_room = asyncio.Event(), asyncio.Event(), asyncio.Event()
        adding = asyncio.Lock()

        async def add(item: Any) -> None:
            if bug == "add_unlocked":
                waiting = batch.add(item)
                if waiting is not None:
                    async with adding:
                        await waiting
                return
            async with adding:
                waiting = batch.add(item)
                if waiting is not None:
                    await waiting

        async def gather() -> None:
            try:
                async with batches.closing(items):
                    async for item in items:
                        await add(item)
                        has_some.set()
                        if batch.is_full:
                            is_full.set()
                            if bug != "no_room":
                                has_room.clear()
                                await has_room.wait()
            finally:
                has_some.set()
                is_full.set()

        gathering = asyncio.create_task(gather())
        try:
            while True:
                try:
                    timeout = limits.fetch_timeout
                    seconds = None if timeout is None else timeout.total_seconds()
                    async with asyncio.timeout(seconds):
                        await has_some.wait()
                except TimeoutError:
                    raise Unavailable("the source yielded nothing") from None
                try:
                    async with asyncio.timeout(limits.wait.total_seconds()):
                        await is_full.wait()
                except TimeoutError:
                    pass
                was_full = is_full.is_set()
                if bug == "swap_unlocked":
                    done, batch = batch, new()
                else:
                    async with adding:
                        done, batch = batch, new()
                has_ended = gathering.done()
                if not has_ended:
                    has_some.clear()
                    is_full.clear()
                    has_room.set()
                error = batches._error_of(gathering) if has_ended else None
                if bug == "last_dropped" and not was_full:
                    done = new()
                is_last = has_ended and (error is None or bug == "error_is_end")
                if not done.is_empty or is_last:
                    yield done, is_last
                if error is not None:
                    raise error
                if has_ended:
                    return
        finally:
            gathering.cancel()
            await asyncio.wait({gathering}, timeout=batches.ABANDON_SECONDS)
            if gathering.done() and not gathering.cancelled():
                gathering.exception()

    return batched_into


@plant(1, "lost, torn")
def add_unlocked(ground: Ground) -> None:
    """An item is added to a batch that was handed over meanwhile."""
    ground.put_function(batches.batched_into, lambda _: filled_with("add_unlocked"))


@plant(2, "torn")
def swap_unlocked(ground: Ground) -> None:
    """A batch is handed over while an item is on its way into it."""
    ground.put_function(batches.batched_into, lambda _: filled_with("swap_unlocked"))


@plant(3, "lost")
def last_dropped(ground: Ground) -> None:
    """A batch that is not full is dropped."""
    ground.put_function(batches.batched_into, lambda _: filled_with("last_dropped"))


@plant(4, "memory bound")
def no_room(ground: Ground) -> None:
    """A full batch is filled on."""
    ground.put_function(batches.batched_into, lambda _: filled_with("no_room"))


@plant(5, "watermark too far")
def error_is_end(ground: Ground) -> None:
    """What was gathered before an error is taken for the end of the pass."""
    ground.put_function(batches.batched_into, lambda _: filled_with("error_is_end"))


@plant(6, "lost ties of a strict source")
def rests_on_newest(ground: Ground) -> None:
    """The watermark rests on the newest time, not on the one that was left behind."""

    def make(before: Any) -> Any:
        def pass_by(self: Any, *args: Any) -> None:
            before(self, *args)
            self.finish()

        return pass_by

    ground.put(position.Watermark, "pass_by", make)


@plant(7, "lost late events")
def order_ignored(ground: Ground) -> None:
    """The watermark goes on after the order broke."""

    def make(before: Any) -> Any:
        def pass_by(self: Any, *args: Any) -> None:
            before(self, *args)
            if not self.is_ascending:
                self.is_ascending = True
                self.finish()

        return pass_by

    ground.put(position.Watermark, "pass_by", make)


# source


@plant(8, "lost ties, lost late events")
def looks_not_back(ground: Ground) -> None:
    """A plain source is asked from the watermark on, without its lookback."""

    def make(before: Any) -> Any:
        def init(self: Any, connector: Any, lookback: timedelta, *args: Any) -> None:
            before(self, connector, timedelta(0), *args)

        return init

    ground.put(sources.PlainSource, "__init__", make)


@plant(9, "lost")
def cursor_shared(ground: Ground) -> None:
    """A page's cursor is the connector's own object, which it goes on changing."""
    ground.put(sources, "stored_cursor", lambda _: lambda cursor: cursor)


class _Halved:
    """A connector whose pages come in two halves, the first of which has the cursor already."""

    def __init__(self, connector: Any) -> None:
        self._connector = connector

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connector, name)

    async def fetch_pages(self, position: Any) -> Any:
        async with batches.closing(pages := self._connector.fetch_pages(position)):
            async for page in pages:
                middle = len(page.events) // 2
                if middle:
                    yield replace(page, events=page.events[:middle], rejected=(), gaps=())
                yield replace(page, events=page.events[middle:])


@plant(10, "torn, lost after a crash")
def pages_halved(ground: Ground) -> None:
    """A source's page may come out in two transactions; the first moves the cursor."""

    def make(before: Any) -> Any:
        def init(self: Any, connector: Any, *args: Any) -> None:
            before(self, _Halved(connector), *args)

        return init

    ground.put(sources.PagedSource, "__init__", make)


@plant(11, "complete too early")
def complete_early(ground: Ground) -> None:
    """`complete_through` of the page that was read last, be it still being gathered."""
    read: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()

    def entering(before: Any) -> Any:
        async def add(self: Any, page: Any) -> None:
            await before(self, page)
            known = read.setdefault(asyncio.get_running_loop(), {})
            known[self.builder.origin.connector_id] = self.complete_through

        return add

    def claiming(before: Any) -> Any:
        def checkpoint_record(origin: Any, after: Any, summary: Any) -> Any:
            through = read.get(asyncio.get_running_loop(), {}).get(after.connector_id)
            return before(origin, replace(after, complete_through=through), summary)

        return checkpoint_record

    ground.put(sources._Pages, "add", entering)
    ground.put_function(records.checkpoint_record, claiming)


# builder


@plant(12, "lost")
def first_of_topic(ground: Ground) -> None:
    """The first event of a topic is not added."""

    async def add(self: Any, topic: str, _: Any) -> None:
        await self._target.open_topic(topic)

    ground.put(page_builder.PageBuilder, "_add_to_new_topic", lambda _: add)


class _Forgetful:
    """A seen window, or whoever has one, that knows nothing of what is asked."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return _Forgetful(found) if name == "window" else found

    def __contains__(self, _: Any) -> bool:
        return False

    def claim(self, hashes: Any) -> list[bool]:
        """Everything is new."""
        return [True for _ in hashes]


@plant(13, "repeated letters")
def letters_unclaimed(ground: Ground) -> None:
    """Dead letters are not looked up in the window."""

    def make(before: Any) -> Any:
        async def finish(self: Any) -> Any:
            self._target, self._claim = _Forgetful(self._target), lambda of: [True for _ in of]
            return await before(self)

        return finish

    ground.put(page_builder.PageBuilder, "finish", make)


@plant(15, "liveness (loss 4)")
def bad_value_raises(ground: Ground) -> None:
    """One bad value makes its whole page fail, for ever."""

    def make(before: Any) -> Any:
        def encode(self: Any, event: Any) -> Any:
            try:
                return before(self, event)
            except Malformed as error:
                raise Unavailable(f"an event can't be encoded: {error}") from error

        return encode

    ground.put(EventEncoder, "encode", make)


@plant(49, "lost letters")
def letters_dropped(ground: Ground) -> None:
    """What is not understood is left out."""

    def make(_: Any) -> Any:
        return lambda self, letter: self._grow(letter.size_bytes)

    ground.put(page_builder.PageBuilder, "_bury", make)


@plant(50, "lost gaps")
def gaps_dropped(ground: Ground) -> None:
    """A page with events comes without its gaps."""

    def make(before: Any) -> Any:
        async def finish(self: Any) -> Any:
            if self.fresh_times:
                self.gaps = []
            return await before(self)

        return finish

    ground.put(page_builder.PageBuilder, "finish", make)


# relay


def _with_collaborators(ground: Ground, change: Callable[[Any], None]) -> None:
    """Change a relay right after it was made."""

    def make(before: Any) -> Any:
        def init(self: Any, *args: Any, **options: Any) -> None:
            before(self, *args, **options)
            change(self)

        return init

    ground.put(relay.Relay, "__init__", make)


class _Other:
    """A collaborator with some methods of its own."""

    def __init__(self, inner: Any, **methods: Any) -> None:
        self._inner = inner
        vars(self).update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@plant(16, "lost, false alarm")
def persist_first(ground: Ground) -> None:
    """Postgres is moved before Kafka has committed."""

    def change(one: Any) -> None:
        store, publish = one._store, one._publish
        outcomes: list[Any] = []

        async def publish_late(page: Any, summary: Any, after: Any) -> Any:
            outcomes.append(await store.persist(after, expected_version=after.version - 1))
            return await publish(page, summary, after)

        async def persist(checkpoint: Any, *, expected_version: int) -> Any:
            if outcomes:
                return outcomes.pop()
            return await store.persist(checkpoint, expected_version=expected_version)

        one._store, one._publish = _Other(store, persist=persist), publish_late

    _with_collaborators(ground, change)


@plant(17, "repeated")
def not_remembered(ground: Ground) -> None:
    """A published page's ids are not remembered."""
    ground.put(seen_window.SeenWindow, "remember", answering(0))


@plant(18, "repeated")
def no_lookback(ground: Ground) -> None:
    """Ids are forgotten at the watermark, not a lookback before it."""
    ground.put(relay, "earlier", lambda _: lambda at, _by: at)


def _edits_unmarked(ground: Ground) -> None:
    """Only a row's version tells that it was edited: two looks at an edit cover each other."""

    def unmarked(before: Any) -> Any:
        return lambda row: replace(before(row), is_edited=False)

    def whatever(before: Any) -> Any:
        async def persist(self: Any, checkpoint: Any, **options: Any) -> Any:
            return await before(self, replace(checkpoint, is_edited=True), **options)

        return persist

    ground.put_function(checkpoints.checkpoint_of, unmarked)
    ground.put(checkpoints.PostgresCheckpoints, "persist", whatever)


@plant(19, "edit lost, views differ")
def edited_is_done(ground: Ground) -> None:
    """An edit that comes while a page is on its way is taken for the page's own write."""
    _edits_unmarked(ground)
    _answers_done(ground, checkpoints.Persisted.EDITED)


@plant(20, "false alarm, views differ")
def fenced_is_done(ground: Ground) -> None:
    """A newer relay's claim is taken for the page's own write."""
    _answers_done(ground, checkpoints.Persisted.FENCED)


def _answers_done(ground: Ground, instead_of: Any) -> None:
    def make(before: Any) -> Any:
        async def persist(self: Any, *args: Any, **options: Any) -> Any:
            outcome = await before(self, *args, **options)
            return checkpoints.Persisted.DONE if outcome is instead_of else outcome

        return persist

    ground.put(checkpoints.PostgresCheckpoints, "persist", make)


@plant(21, "zombie (at_least_once)")
def epoch_unchecked(ground: Ground) -> None:
    """A relay goes on though a newer one has claimed the connector."""

    def make(before: Any) -> Any:
        async def load(self: Any, epoch: int) -> Any:
            try:
                return await before(self, epoch)
            except Fenced:
                return await self._store.load(self._spec.connector_id)

        return load

    ground.put(relay.Relay, "_load", make)


@plant(22, "two owners (at_least_once)")
def claims_last(ground: Ground) -> None:
    """The epoch is claimed after the older producer was fenced."""

    def change(one: Any) -> None:
        store, inner = one._store, one._publisher

        async def claim(connector_id: str) -> Any:
            await inner.start()
            return await store.claim(connector_id)

        one._store = _Other(store, claim=claim)
        one._publisher = _Other(inner, start=_nothing)

    _with_collaborators(ground, change)


@plant(23, "version twice")
def reads_before_fencing(ground: Ground) -> None:
    """The topic is read before the older producer is fenced."""

    def change(one: Any) -> None:
        reader, inner = one._reader, one._publisher
        found: list[Any] = []

        async def start() -> None:
            found.append(await reader.last_checkpoint(one._spec.connector_id))
            await inner.start()

        async def last_checkpoint(_: str) -> Any:
            return found.pop()

        one._publisher = _Other(inner, start=start)
        one._reader = _Other(reader, last_checkpoint=last_checkpoint)

    _with_collaborators(ground, change)


@plant(24, "repeated")
def ids_not_read_back(ground: Ground) -> None:
    """A start does not remember what was published before it."""
    ground.put(seen_window.SeenWindow, "restore", answering(0))


@plant(25, "replay missing")
def edit_keeps_ids(ground: Ground) -> None:
    """After an edit the ids are still known."""
    ground.put(seen_window.SeenWindow, "forget_all", answering(None))


@plant(26, "liveness")
def unavailable_is_fenced(ground: Ground) -> None:
    """A transaction that takes too long is taken for a newer relay's fencing."""

    def make(before: Any) -> Any:
        async def publish(self: Any, *args: Any) -> Any:
            try:
                return await before(self, *args)
            except Unavailable as error:
                raise Fenced(str(error)) from error

        return publish

    ground.put(relay.Relay, "_publish", make)


@plant(27, "repeats, liveness")
def halt_cancels(ground: Ground) -> None:
    """Halting cancels the page that is on its way."""

    def make(before: Any) -> Any:
        def halt(self: Any) -> None:
            before(self)
            if self._task is not None:
                self._task.cancel()

        return halt

    ground.put(relay.Relay, "halt", make)


# checkpoints


@plant(28, "version twice")
def database_wins_by_one(ground: Ground) -> None:
    """Where the topic is one page ahead, the database wins."""

    def make(before: Any) -> Any:
        def decide_start(stored: Any, published: Any) -> Any:
            if published is not None and published.version == stored.version + 1:
                return start.Start(stored)
            return before(stored, published)

        return decide_start

    ground.put_function(start.decide_start, make)


@plant(29, "edit lost")
def topic_wins_ties(ground: Ground) -> None:
    """Where both have the same version and differ, the topic wins over the edit."""
    _edits_unmarked(ground)

    def make(before: Any) -> Any:
        def decide_start(stored: Any, published: Any) -> Any:
            if published is not None and published.version == stored.version:
                return start.Start(replace(published, epoch=stored.epoch))
            return before(stored, published)

        return decide_start

    ground.put_function(start.decide_start, make)


@plant(30, "lost")
def loss_ignored(ground: Ground) -> None:
    """The topic lost its end, and the database's position holds all the same."""
    ground.put_function(start.after_loss, lambda _: lambda stored, *_args: stored)


@plant(31, "edit overwritten")
def persist_blind(ground: Ground) -> None:
    """The version is not compared."""
    _edits_unmarked(ground)

    def make(before: Any) -> Any:
        async def persist(self: Any, checkpoint: Any, *, expected_version: int) -> Any:
            stored = await self.load(checkpoint.connector_id)
            if stored is not None:
                expected_version = stored.version
            return await before(self, checkpoint, expected_version=expected_version)

        return persist

    ground.put(checkpoints.PostgresCheckpoints, "persist", make)


# seen


@plant(32, "repeated")
def floor_plus_one(ground: Ground) -> None:
    """A checkpoint says that the ids begin one later than they do."""

    def make(before: Any) -> Any:
        def later(self: Any) -> Any:
            found = before(self)
            if found is None:
                return None
            if hasattr(found, "slots_from"):
                return replace(found, slots_from=found.slots_from + 1)
            start = {
                topic: {place: offset + 1 for place, offset in places.items()}
                for topic, places in found.start.items()
            }
            return replace(found, start=start)

        return later

    ground.put(seen_window.SeenWindow, "seen", make)


@plant(33, "repeated")
def forgets_early(ground: Ground) -> None:
    """A page is forgotten with its oldest event, not with its newest."""

    def make(before: Any) -> Any:
        def remember(self: Any, ids: Any, times: Any, *args: Any) -> Any:
            if isinstance(times, list | tuple):
                times = [min(times)] * len(times) if times else times
            else:
                times -= timedelta(hours=1)
            return before(self, ids, times, *args)

        return remember

    ground.put(seen_window.SeenWindow, "remember", make)


@plant(35, "memory, start time (loss 5)")
def never_forgets(ground: Ground) -> None:
    """The window's floor never moves, as where one event dated 9999 held it."""
    ground.put(seen_window.SeenWindow, "forget_before", answering(None))


# publisher


@plant(36, "torn")
def seal_apart(ground: Ground) -> None:
    """The events are one transaction, their checkpoint the next."""

    def make(before: Any) -> Any:
        async def send_in_order(self: Any, records: Any) -> None:
            if self._is_transactional:
                await self._producer.commit_transaction()
                await self._producer.begin_transaction()
            await before(self, records)

        return send_in_order

    ground.put(transactions.KafkaPublisher, "send_in_order", make)


@plant(37, "lost")
def refused_passed_over(ground: Ground) -> None:
    """A batch that the broker refuses is left out of its page."""

    def make(before: Any) -> Any:
        async def send(self: Any, *args: Any) -> Any:
            try:
                return await before(self, *args)
            except kafka_errors.ProducerFenced:
                raise
            except kafka_errors.KafkaError:
                return {}

        return send

    ground.put(transactions.KafkaPublisher, "send", make)


@plant(38, "others stall")
def no_abort(ground: Ground) -> None:
    """A publisher is closed without an abort of what is open."""

    def make(before: Any) -> Any:
        async def close(self: Any, producer: Any) -> None:
            self._is_transactional = False
            await before(self, producer)

        return close

    ground.put(transactions.KafkaPublisher, "_close", make)


# runner


@plant(39, "no fencing: repeated, torn")
def own_ids(ground: Ground) -> None:
    """Each start has a transactional id of its own."""

    def make(before: Any) -> Any:
        def own(self: Any, name: str) -> Any:
            # Counted by the runner and not by us: a seed's world is the same in any process.
            self._planted = getattr(self, "_planted", 0) + 1
            return before(self, f"{name}.{self._settings.worker_name}.{self._planted}")

        return own

    ground.put(runner.ConnectorRunner, "_publisher", make)


@plant(42, "two relays fight")
def starts_while_held(ground: Ground) -> None:
    """Connectors are started while a rebalance is under way."""
    ground.put(runner.ConnectorRunner, "hold", answering(None))


@plant(43, "operator ignored")
def restart_ignored(ground: Ground) -> None:
    """A restart that is asked for is taken for done."""

    def make(before: Any) -> Any:
        async def read_controls(self: Any) -> None:
            await before(self)
            for one in self._connectors:
                one.life = replace(one.life, is_restart_due=False)

        return read_controls

    ground.put(runner.ConnectorRunner, "_read_controls", make)


@plant(43, "operator ignored")
def pause_ignored(ground: Ground) -> None:
    """A paused connector goes on."""

    def make(before: Any) -> Any:
        async def controls(self: Any) -> Any:
            found = await before(self)
            return {name: replace(one, is_paused=False) for name, one in found.items()}

        return controls

    ground.put(Controls, "controls", make)


# topic_reader


@plant(40, "repeated, version twice")
def ends_at_stable(ground: Ground) -> None:
    """Reading back ends at the last stable offset."""

    def make(before: Any) -> Any:
        def init(self: Any, *args: Any, **options: Any) -> None:
            before(self, *args, **options)
            self._ends_seen_by = "read_committed"

        return init

    ground.put(committed.CommittedReader, "__init__", make)


class _Impatient:
    """A consumer that is at its end with the first empty answer."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._is_done = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def getmany(self, *args: Any, **options: Any) -> Any:
        """As it comes."""
        found = await self._inner.getmany(*args, **options)
        self._is_done = not found
        return found

    async def position(self, place: Any) -> int:
        """Beyond everything, after an empty answer."""
        return 2**62 if self._is_done else int(await self._inner.position(place))


@plant(41, "repeated, version twice")
def ends_when_empty(ground: Ground) -> None:
    """Reading back ends at the first empty answer."""

    def make(before: Any) -> Any:
        @asynccontextmanager
        async def consumer_of(*args: Any, **options: Any) -> AsyncIterator[Any]:
            async with before(*args, **options) as consumer:
                yield _Impatient(consumer)

        return consumer_of

    ground.put(committed, "consumer_of", make)


# rewinds, snapshots


@plant(44, "rewind lost")
def rewinds_by_the_row(ground: Ground) -> None:
    """A rewind takes the row's next version, though the topic is ahead of the row.

    A start lifts such a row above the topic's version, so that alone breaks nothing; this is the
    code from before both.
    """
    edit_not_lifted(ground)

    def make(before: Any) -> Any:
        def rewound(stored: Any, *args: Any, **options: Any) -> Any:
            after = before(stored, *args, **options)
            return replace(after, version=stored.version + 1)

        return rewound

    ground.put_function(start.rewound, make)


@plant(48, "false revocations")
def gaps_are_complete(ground: Ground) -> None:
    """A snapshot's end says that it is complete, in spite of a gap."""
    ground.put(SnapshotResult, "is_complete", lambda _: property(lambda _self: True))


# windows


@plant(45, "lost after a crash")
def through_with_first_page(ground: Ground) -> None:
    """A slice's first page moves its stream to the slice's end."""

    def make(before: Any) -> Any:
        def parts(fetched: Any, place: Any, page_events: int) -> Any:
            return [replace(one, place=place) for one in before(fetched, place, page_events)]

        return parts

    ground.put(windows, "_parts", make)


def _with_policy(ground: Ground, **changes: Any) -> None:
    def make(before: Any) -> Any:
        def turn(stream: Any, *args: Any) -> Any:
            policy = replace(stream.policy, **changes)
            return before(replace(stream, policy=policy), *args)

        return turn

    ground.put(windows, "_turn", make)


@plant(46, "lost late events")
def no_relook(ground: Ground) -> None:
    """A pass does not read the last stretch again."""
    _with_policy(ground, relook=timedelta(0), lookback=timedelta(0))


@plant(46, "lost late events")
def no_settle(ground: Ground) -> None:
    """A pass reads up to now."""
    _with_policy(ground, settle=timedelta(0))


@plant(47, "lost")
def half_dropped(ground: Ground) -> None:
    """The second half of a slice that had to be halved is not read."""

    def make(before: Any) -> Any:
        def halves(one: Any, slice_min: Any) -> Any:
            found = before(one, slice_min)
            return found and (found[0], replace(found[1], from_at=found[1].to_at))

        return halves

    ground.put(windows, "halves", make)


# Losses that were mended before the simulator was there


@plant(51, "liveness (loss 10)")
def shown_is_progress(ground: Ground) -> None:
    """The back-off begins anew with whatever is shown as running."""

    def make(before: Any) -> Any:
        def take_result(self: Any, one: Any) -> None:
            if one.task is not None and one.status.state in (State.CAUGHT_UP, State.RUNNING):
                one.life = replace(one.life, failures=0)
            before(self, one)

        return take_result

    ground.put(runner.ConnectorRunner, "_take_result", make)


@plant(52, "false alarm (loss 11)")
def row_before_topic(ground: Ground) -> None:
    """A start reads its row, and then the topic, which may take long."""

    def change(one: Any) -> None:
        store, reader = one._store, one._reader
        rows: list[Any] = []

        async def last_checkpoint(connector_id: str) -> Any:
            rows.append(await store.load(connector_id))
            return await reader.last_checkpoint(connector_id)

        async def load(connector_id: str) -> Any:
            return rows.pop() if rows else await store.load(connector_id)

        one._reader = _Other(reader, last_checkpoint=last_checkpoint)
        one._store = _Other(store, load=load)

    _with_collaborators(ground, change)


@plant(53, "placed by two numbers (loss 6)")
def partitions_of_the_broker(ground: Ground) -> None:
    """The writer asks the broker how many partitions a placed topic has; the reader does not."""
    ground.put_function(topics.placed_partitions, answering({}))


@plant(54, "placed by two numbers (loss 6)")
def shapes_unchecked(ground: Ground) -> None:
    """Topics of another shape are used as they are."""
    ground.put_function(topics.require_shape, lambda _: _nothing)


@plant(55, "liveness (loss 13)")
def rebalance_stops_all(ground: Ground) -> None:
    """Every rebalance stops every relay."""

    def make(before: Any) -> Any:
        def hold(self: Any) -> None:
            before(self)
            for one in self._connectors:
                if one.relay is not None:
                    one.relay.halt()

        return hold

    ground.put(runner.ConnectorRunner, "hold", make)


@plant(56, "complete too early (loss 8)")
def complete_before_lookback(ground: Ground) -> None:
    """`complete_through` passes what only the next lookback finds."""

    def make(before: Any) -> Any:
        def complete_through(place: Any, policy: Any) -> Any:
            return before(place, replace(policy, lateness=timedelta(0)))

        return complete_through

    ground.put(windows, "_complete_through", make)


@plant(57, "lost late events (loss 3)")
def future_moves(ground: Ground) -> None:
    """An event that is dated ahead moves the watermark."""
    ground.put_function(position.not_after, lambda _: lambda _until, times: times)


@plant(58, "lost late events (loss 3)")
def clamped_when_out(ground: Ground) -> None:
    """What is dated ahead counts as of when its page comes out, not as of the pass's beginning."""
    clocks: list[Any] = []

    def noting(before: Any) -> Any:
        def init(self: Any, *args: Any, **options: Any) -> None:
            before(self, *args, **options)
            clocks.append(self._clock)

        return init

    def make(before: Any) -> Any:
        def pass_by(self: Any, times: Any, *_: Any) -> None:
            now = clocks[-1]()
            before(self, [min(at, now) for at in times])

        return pass_by

    ground.put(sources.PlainSource, "__init__", noting)
    ground.put(position.Watermark, "pass_by", make)


@plant(59, "edit lost (loss 7)")
def edit_not_lifted(ground: Ground) -> None:
    """An edit of a restored database has a version that the topic passed long ago."""
    ground.put_function(start.lifted, lambda _: lambda stored, *_args: stored)


@plant(60, "lost with a crash between two pages")
def claims_late(ground: Ground) -> None:
    """A page that is out of the adapter claims its last events after the next one has begun."""

    def make(_: Any) -> Any:
        def turn_to(self: Any, builder: Any) -> None:
            self._filled = builder

        return turn_to

    ground.put(page_builder.PageTarget, "turn_to", make)


@plant(70, "liveness (loss 5)")
def read_within_a_time(ground: Ground) -> None:
    """Reading back has a fixed time, however steadily it goes on."""

    def make(before: Any) -> Any:
        async def read(self: Any, *args: Any, **options: Any) -> AsyncIterator[Any]:
            time = asyncio.get_running_loop().time
            ends_at = time() + self._stall_seconds
            async with batches.closing(reading := before(self, *args, **options)):
                async for found in reading:
                    if time() > ends_at:
                        raise Unavailable("reading back took too long")
                    yield found

        return read

    ground.put(committed.CommittedReader, "read", make)


@plant(71, "repeated (loss 5)")
def ids_from_raw(ground: Ground) -> None:
    """The ids of the lookback are those that the topics of events and dead letters still have."""

    async def remember(self: Any, checkpoint: Any, **_: bool) -> bool:
        begin = position.earlier(checkpoint.last_ts, self._spec.lookback)
        await self._ensure_topics({IDS_TOPIC})
        self._window.expect(None, await self._ids.slots(self._spec.connector_id))
        if checkpoint.seen is not None:
            since = position.earlier(begin, relay.PUBLISHED_MARGIN)
            start = await self._reader.offsets_since(self._topics(), since)
            await self._recover(start, begin)
        return False

    ground.put(relay.Relay, "_remember", lambda _: remember)


@plant(72, "lost letters (loss 5)")
def ids_of_any_topic(ground: Ground) -> None:
    """An id that is known in one topic is known in all."""

    def make(before: Any) -> Any:
        return lambda self, _topics, identities: before(self, repeat(""), identities)

    ground.put(ids.IdHasher, "hashes", make)


@plant(73, "edit lost (loss 7)")
def cursor_edit_unseen(ground: Ground) -> None:
    """Only whoever moves the row's time edits it: the trigger of the first migrations."""

    def make(before: Any) -> Any:
        def init(self: Any, *args: Any) -> None:
            before(self, *args)
            self.database.before_update = {"connector_checkpoints": [postgres._time_edited]}

        return init

    ground.put(postgres.Postgres, "__init__", make)


@plant(74, "lost (loss 7)")
def rewinds_forward(ground: Ground) -> None:
    """A rewind goes wherever it is told to, ahead as well."""

    def make(before: Any) -> Any:
        def rewound(stored: Any, history: Any, *, to: Any, cursor: Any, **options: Any) -> Any:
            try:
                return before(stored, history, to=to, cursor=cursor, **options)
            except Misconfigured:
                version = max(one.version for one in (stored, *history)) + 1
                last_ts = stored.last_ts if to is None else to
                return replace(stored, version=version, last_ts=last_ts, cursor=cursor)

        return rewound

    ground.put_function(start.rewound, make)


@plant(75, "operator ignored (loss 7)")
def resume_waits(ground: Ground) -> None:
    """A connector that was blocked and then paused waits for its probe when it is resumed."""

    def make(before: Any) -> Any:
        async def read_controls(self: Any) -> None:
            known = [(one.control, one.life.is_restart_due) for one in self._connectors]
            await before(self)
            for one, (control, was_due) in zip(self._connectors, known, strict=True):
                if control.is_paused and not one.control.is_paused:
                    one.life = replace(one.life, is_restart_due=was_due)

        return read_controls

    ground.put(runner.ConnectorRunner, "_read_controls", make)


@plant(76, "gaps forgotten (loss 8)")
def gaps_expire(ground: Ground) -> None:
    """The topic of gaps has the broker's own retention."""

    def make(before: Any) -> Any:
        def new_topic(settings: Any, name: str) -> Any:
            made = before(settings, name)
            if name == GAPS_TOPIC:
                made.topic_configs.clear()
            return made

        return new_topic

    ground.put_function(topics.new_topic, make)


@plant(77, "false alarm, repeats (loss 12)")
def last_record_counts(ground: Ground) -> None:
    """Without transactions a zombie's late checkpoint counts, because it is the last one."""
    ground.put_function(records.newer_checkpoint, lambda _: lambda _held, incoming: incoming)


@plant(78, "lost (loss 12)")
def own_clock(ground: Ground) -> None:
    """A worker believes its own clock, however wrong."""
    ground.put(clock.ClockDifference, "trusted", lambda _: lambda _self, at: at)


@plant(79, "lost")
def compared_once(ground: Ground) -> None:
    """Between two comparisons a worker's clock is believed to go on as it did."""

    def make(_: Any) -> Any:
        def trusted(self: Any, at: datetime) -> datetime:
            heard = self._heard
            if heard is not None and getattr(self, "_ahead_of", None) is not heard:
                self._ahead_of, self._ahead = heard, at - self.other
            ahead = getattr(self, "_ahead", clock.TOLERANCE)
            return at - ahead if ahead > clock.TOLERANCE else at

        return trusted

    ground.put(clock.ClockDifference, "trusted", make)


@plant(80, "snapshots without end, or none")
def snapshot_by_own_clock(ground: Ground) -> None:
    """When a snapshot began is written down by the clock of the worker, not the database's."""

    def make(before: Any) -> Any:
        async def snapshot_taken(self: Any, name: str, result: Any, _: datetime) -> None:
            await before(self, name, result, result.started_at)

        return snapshot_taken

    ground.put(Reports, "snapshot_taken", make)


@plant(84, "two relays fight")
def assigns_late(ground: Ground) -> None:
    """An assignment on its way is carried out whatever has come between."""

    async def assign(self: Any, partitions: Any) -> None:
        if self._runner is not None:
            await self._runner.assign(partitions)

    ground.put(driver.Driver, "_assign_unless_held", lambda _: assign)


@plant(81, "two relays fight")
def assigns_unsure(ground: Ground) -> None:
    """An assignment that failed is tried again though the group does not hear of the worker.

    Carried out, it would find that out; this is the code from before both.
    """
    assigns_late(ground)

    def make(before: Any) -> Any:
        async def tick(self: Any, *, is_in_group: bool = True) -> None:
            is_due = self._partitions is not None and not self._knows_partitions
            if self._runner is None or is_in_group or not is_due:
                await before(self, is_in_group=is_in_group)
                return
            if self._is_in_group:
                self._is_in_group = False
                self._runner.hold()
            self._assigning = asyncio.create_task(self._assign(self._partitions))

        return tick

    ground.put(driver.Driver, "tick", make)


@plant(82, "repeated")
def left_not_recognised(ground: Ground) -> None:
    """Where a topic lost its end, the log of ids alone tells what is out, which lost it, too."""

    def make(before: Any) -> Any:
        async def remember(self: Any, checkpoint: Any, *, is_moved: bool, is_behind: bool) -> bool:
            recovered: bool = await before(self, checkpoint, is_moved=is_moved, is_behind=False)
            return recovered or is_behind

        return remember

    ground.put(relay.Relay, "_remember", make)


@plant(83, "a loss in silence")
def loss_unsaid(ground: Ground) -> None:
    """Nobody is told that the topic lost its end."""
    ground.put(relay.Relay, "_topic_is_behind", answering(None))
