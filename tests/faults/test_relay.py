"""The relay under every schedule of failures, against Kafka and Postgres in memory.

The laws, whatever fails and wherever:

1. Nothing is lost: every event that the source serves is in the topic.
2. Nothing is repeated: it is there once.
3. Versions in the topic ascend strictly.
4. At the end Postgres says what the topic says.
5. Postgres is never ahead of the topic by more than an operator's edits.
6. A relay that was fenced publishes nothing more.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog
from faults.memory import (
    CONNECTOR,
    NOW,
    PARTITION,
    PLATFORM,
    Broker,
    CursorSource,
    Effect,
    MemoryCheckpoints,
    MemoryIdLog,
    MemoryPublisher,
    MemoryReader,
    PlainConnector,
    Platform,
    Script,
    builder_of,
    cancel_here,
    event,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from page_builders import HASHER

from verity_sdk.batches import Limits
from verity_sdk.errors import Fenced, Misconfigured, Unavailable
from verity_sdk.pages import Gap, RejectedRecord
from verity_sdk.position import Reached
from verity_stream.postgres.checkpoints import Persisted
from verity_stream.records import (
    CHECKPOINTS_TOPIC,
    GAPS_TOPIC,
    IDS_TOPIC,
    Checkpoint,
    Offsets,
    Record,
    Seen,
    SeenInTopics,
    dead_topic,
    decode_checkpoint,
    decode_slot,
    raw_topic,
)
from verity_stream.relay import relay as relay_module
from verity_stream.relay.ids import IdHasher
from verity_stream.relay.relay import Relay
from verity_stream.relay.sources import NewBuilder, PlainSource, RelayPage
from verity_stream.relay.start import Start
from verity_stream.settings import ConnectorOptions, ConnectorSpec, StreamSettings
from verity_stream.status import State, Status

LOOKBACK = timedelta(seconds=60)
BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
RESTARTS_MAX = 12


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    """Thousands of lives of a relay say nothing that a failing assertion does not say better."""
    with structlog.testing.capture_logs():
        yield


def deliveries() -> list[list[Any]]:
    """Ties, a repeat within a pass, and later passes with late events."""
    first = [event(n, seconds) for n, seconds in enumerate([1, 2, 2, 2, 3, 5, 5, 9])]
    second = [event(20, 9), event(21, 2.5), event(22, 12), event(3, 2)]
    third = [event(30, 13), event(31, 13), event(32, 8)]
    return [first, second, third]


class WatchedStatus(Status):
    """Calls back whenever a pass ended."""

    __slots__ = ("on_caught_up",)
    on_caught_up: Callable[[], None]

    def enter(self, state: State, **details: Any) -> None:
        Status.enter(self, state, **details)
        if state is State.CAUGHT_UP:
            self.on_caught_up()


@dataclass
class World:
    """What outlives a relay; and one kind of source for all its relays."""

    kind: str
    platform: Platform = field(default_factory=lambda: Platform(deliveries()))
    broker: Broker = field(default_factory=Broker)
    store: MemoryCheckpoints = field(default_factory=MemoryCheckpoints)
    relay_class: type[Relay] = Relay
    publisher_class: type[MemoryPublisher] = MemoryPublisher
    transactional_id: str = CONNECTOR
    hasher: IdHasher = HASHER

    def __post_init__(self) -> None:
        self.settings = StreamSettings(database_behind="kafka_wins")
        options = ConnectorOptions(type="memory", poll_every=0.001, lookback=LOOKBACK)
        self.spec = ConnectorSpec(CONNECTOR, PlainConnector, PLATFORM, {}, options)

    def source(self, script: Script) -> Any:
        if self.kind == "cursor":
            return CursorSource(self.platform, script)
        connector = PlainConnector(self.platform, script, is_closed=self.kind == "closed")
        return PlainSource(connector, LOOKBACK, Limits(3, timedelta(hours=1)), lambda: NOW)

    def relay(self, script: Script, transactional_id: str | None = None) -> Relay:
        """A relay that halts after a pass in which everything could be read."""
        status = self.status = WatchedStatus(CONNECTOR, PLATFORM)

        async def ensure_topics(_: Iterable[str]) -> None:
            async with script.effect("ensure_topics"):
                pass

        relay = self.relay_class(
            self.spec,
            self.settings,
            self.source(script),
            self.publisher_class(self.broker, script, transactional_id or self.transactional_id),
            self.store.scripted(script),
            MemoryReader(self.broker, script),
            MemoryIdLog(self.broker, script, self.hasher),
            ensure_topics,
            status,
            lambda: NOW,
        )
        status.on_caught_up = lambda: relay.halt() if self.platform.is_all_served else None
        return relay

    async def run(self, script: Script | None = None) -> BaseException | None:
        """One life of a relay, in a task of its own; how it ended."""
        task = asyncio.create_task(self.relay(script or Script()).run())
        await asyncio.wait({task}, timeout=10)
        assert task.done(), "a relay hangs"
        return asyncio.CancelledError() if task.cancelled() else task.exception()

    async def run_until_done(self, *scripts: Script) -> None:
        """Relay after relay, each with the next script, until one ends by itself."""
        for number in range(RESTARTS_MAX):
            ended = await self.run(scripts[number] if number < len(scripts) else None)
            if ended is None:
                return
            if not isinstance(ended, Unavailable | asyncio.CancelledError):
                raise ended
        raise AssertionError("it never finishes")

    def published_ids(self) -> list[str]:
        return [
            dict(record.headers)["event_id"].decode()
            for record in self.broker.committed(raw_topic(PLATFORM))
        ]

    def checkpoints(self) -> list[Checkpoint]:
        return [decode_checkpoint(one.value) for one in self.broker.committed(CHECKPOINTS_TOPIC)]

    def delete_checkpoints(self) -> None:
        """The topic of checkpoints is deleted, and made anew."""
        self.broker.partitions = {
            place: entries
            for place, entries in self.broker.partitions.items()
            if place[0] != CHECKPOINTS_TOPIC
        }

    def check(self, *, are_repeats_allowed: bool = False) -> None:
        """The laws 1 to 4."""
        counts = Counter(self.published_ids())
        assert self.platform.ids - counts.keys() == set(), "lost"
        if not are_repeats_allowed:
            assert {one: n for one, n in counts.items() if n > 1} == {}, "repeated"
        versions = [one.version for one in self.checkpoints()]
        assert versions == sorted(set(versions)), "versions ascend"
        began = [one.collected_from for one in self.checkpoints() if one.collected_from]
        assert began == sorted(began, reverse=True), "what was collected is not any more"
        different = self.store.rows[CONNECTOR].differences(self.checkpoints()[-1])
        assert not different, "the views differ"

    def check_order(self) -> None:
        """Law 5; at any moment."""
        row = self.store.rows.get(CONNECTOR)
        newest = self.checkpoints()[-1].version if self.checkpoints() else 0
        assert row is None or row.version <= newest, "the checkpoint runs ahead of the events"


KINDS = ["cursor", "closed", "after"]


async def fail_here() -> None:
    raise Unavailable("injected")


FAULTS = {"error": fail_here, "cancellation": cancel_here}


def script_that(world: World, fault: str, at: Effect) -> Script:
    async def hook(effect: Effect) -> None:
        world.check_order()
        if effect == at:
            await FAULTS[fault]()

    return Script(hook)


async def effects_of(make: Callable[[], World]) -> list[Effect]:
    """Every point that a relay passes when nothing fails."""
    script = Script()
    await make().run_until_done(script)
    return script.passed


async def sweep(make: Callable[[], World], fault: str) -> int:
    """Fail at every point in turn, restart until done, and check the laws."""
    effects = await effects_of(make)
    for effect in effects:
        world = make()
        try:
            await world.run_until_done(script_that(world, fault, effect))
            world.check()
        except AssertionError as error:
            raise AssertionError(f"{fault} {effect}: {error}") from error
    return len(effects)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
async def test_whatever_fails_nothing_is_lost_and_nothing_repeated(kind: str, fault: str) -> None:
    assert await sweep(lambda: World(kind), fault) > 50


async def test_the_sweep_passes_every_effect() -> None:
    """Names of effects that are gone would make the sweep prove nothing."""
    world = World("cursor")
    first, second = Script(), Script()
    await world.run_until_done(first)
    world.platform.passes = 0
    await world.run_until_done(second)
    assert {effect.name for effect in [*first.passed, *second.passed]} == {
        *("claim", "publisher.start", "load", "last_checkpoint", "slots"),
        *("fetch", "ensure_topics", "append", "seal", "commit", "persist", "close"),
    }


@pytest.mark.parametrize("kind", KINDS)
async def test_a_failure_during_the_repair_of_another(kind: str) -> None:
    """Crash between commit and persist, then again at every point of the repairing start."""
    at = Effect("commit", 2, "after")
    again = [
        Effect(name, 1, when)
        for name in ("claim", "publisher.start", "load", "last_checkpoint", "slots")
        for when in ("before", "after")
    ] + [
        Effect("persist", 1, "before"),
        Effect("persist", 1, "after"),
        Effect("commit", 1, "after"),
    ]
    for fault in FAULTS:
        for effect in again:
            world = World(kind)
            await world.run_until_done(
                script_that(world, "cancellation", at), script_that(world, fault, effect)
            )
            world.check()


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    faults=st.lists(
        st.tuples(st.integers(0, 90), st.sampled_from(sorted(FAULTS))), max_size=RESTARTS_MAX - 2
    ),
    times=st.lists(
        st.lists(st.tuples(st.integers(0, 30), st.integers(0, 20)), max_size=9),
        min_size=1,
        max_size=3,
    ),
)
def test_any_schedule_of_failures(
    kind: str, faults: list[tuple[int, str]], times: list[list[tuple[int, int]]]
) -> None:
    # An id has one time, whenever it is delivered: what differs is another event.
    known: dict[int, int] = {}
    platform = [
        [event(number, known.setdefault(number, seconds)) for number, seconds in delivery]
        for delivery in times
    ]

    def script(world: World, position: int, fault: str) -> Script:
        async def hook(effect: Effect) -> None:
            world.check_order()
            if len(made.passed) == position + 1:
                await FAULTS[fault]()

        made = Script(hook)
        return made

    async def scenario() -> None:
        world = World(kind, Platform(platform))
        await world.run_until_done(*[script(world, *fault) for fault in faults])
        counts = Counter(world.published_ids())
        assert counts == dict.fromkeys(world.platform.ids, 1)
        versions = [one.version for one in world.checkpoints()]
        assert versions == sorted(set(versions))
        if versions:
            assert not world.store.rows[CONNECTOR].differences(world.checkpoints()[-1])

    asyncio.run(scenario())


# Zombies


class Pause:
    """Holds a relay at one point until it is let go."""

    def __init__(self, at: Effect) -> None:
        self.reached, self.let_go = asyncio.Event(), asyncio.Event()
        self._at = at
        self.script = Script(self._hook)

    async def _hook(self, effect: Effect) -> None:
        if effect == self._at:
            self.reached.set()
            await self.let_go.wait()


PAGE_EFFECTS = ("append", "seal", "commit", "persist")


async def zombie_sweep(make: Callable[[], World]) -> None:
    """Pause a relay at every point, let another take over and finish, let the first go on."""
    for effect in await effects_of(make):
        if effect == Effect("claim", 1, "before"):
            continue  # It has claimed nothing yet: it is no zombie but the next relay.
        world = make()
        pause = Pause(effect)
        zombie = asyncio.create_task(world.relay(pause.script).run())
        try:
            await asyncio.wait_for(pause.reached.wait(), 5)
            await world.run_until_done()
            seen_by_consumers = len(world.broker.commits)
            stored = world.store.rows[CONNECTOR]
            pause.let_go.set()
            await asyncio.wait({zombie}, timeout=5)
            assert zombie.done()
            assert len(world.broker.commits) == seen_by_consumers, "the zombie published"
            assert world.store.rows[CONNECTOR] == stored, "the zombie wrote to Postgres"
            went_on = pause.script.passed[pause.script.passed.index(effect) :]
            is_in_page = any(one.name in PAGE_EFFECTS for one in went_on[1:])
            assert isinstance(zombie.exception(), Fenced if is_in_page else Fenced | None)
            world.check()
        except AssertionError as error:
            raise AssertionError(f"zombie {effect}: {error}") from error
        finally:
            zombie.cancel()
            await asyncio.wait({zombie})


@pytest.mark.parametrize("kind", KINDS)
async def test_a_zombie_publishes_nothing_wherever_it_froze(kind: str) -> None:
    await zombie_sweep(lambda: World(kind))


async def swapped_start(world: World) -> None:
    """Claim in one order, fence in the other: the relay that claimed first fences last.

    Both find an edit that has to be published at once.
    """
    await world.run_until_done()
    world.store.edit(CONNECTOR, BEGINNING)
    commits = len(world.broker.commits)
    older = Pause(Effect("claim", 1, "after"))
    newer = Pause(Effect("publisher.start", 1, "after"))
    first = asyncio.create_task(world.relay(older.script).run())
    await older.reached.wait()
    second = asyncio.create_task(world.relay(newer.script).run())
    await newer.reached.wait()
    older.let_go.set()
    await asyncio.wait({first}, timeout=5)
    newer.let_go.set()
    await asyncio.wait({second}, timeout=5)
    assert isinstance(first.exception(), Fenced)
    # The newer one lost its producer to the older; that is no fencing, so it is tried again.
    assert isinstance(second.exception(), Unavailable)
    assert len(world.broker.commits) == commits, "the older published after the newer's claim"
    await world.run_until_done()
    world.check(are_repeats_allowed=True)


async def test_claims_and_fencing_in_opposite_orders() -> None:
    await swapped_start(World("cursor"))


@settings(max_examples=40, deadline=None)
@given(schedule=st.lists(st.booleans(), max_size=150))
def test_two_relays_in_any_interleaving(schedule: list[bool]) -> None:
    """Two relays step by step in any order, and a third at the end: the laws hold throughout."""

    async def scenario() -> None:
        world = World("cursor")
        turns: list[asyncio.Queue[None]] = [asyncio.Queue(), asyncio.Queue()]

        def relay(number: int) -> asyncio.Task[None]:
            async def hook(_: Effect) -> None:
                world.check_order()
                await turns[number].get()

            return asyncio.create_task(world.relay(Script(hook)).run())

        tasks = [relay(0), relay(1)]
        for is_second in [*schedule, *[False, True] * 300]:
            if all(task.done() for task in tasks):
                break
            turns[is_second].put_nowait(None)
            for _ in range(4):
                await asyncio.sleep(0)
        await asyncio.wait(tasks, timeout=10)
        for task in tasks:
            assert isinstance(task.exception(), Fenced | Unavailable | None)
        await world.run_until_done()
        world.check()

    asyncio.run(scenario())


class NoFencing(MemoryPublisher):
    """`at_least_once`: every relay has a producer of its own, no transaction protects the page."""

    count = 0

    def __init__(self, broker: Broker, script: Script, transactional_id: str) -> None:
        NoFencing.count += 1
        super().__init__(broker, script, f"{transactional_id}-{NoFencing.count}")


async def unfenced_zombie(world: World) -> None:
    """Without transactions only the epoch stops a zombie: after the page in hand."""
    pause = Pause(Effect("persist", 2, "before"))
    zombie = asyncio.create_task(world.relay(pause.script).run())
    await pause.reached.wait()
    commits = len(world.broker.commits)
    # Another relay has claimed, and got no further yet.
    world.store.claim(CONNECTOR)
    pause.let_go.set()
    await asyncio.wait({zombie}, timeout=5)
    assert isinstance(zombie.exception(), Fenced), "only its producer would have stopped it"
    assert len(world.broker.commits) == commits, "it went on after the claim"
    assert world.store.rows[CONNECTOR].version == 1


async def test_at_least_once_a_zombie_stops_at_the_epoch() -> None:
    await unfenced_zombie(World("cursor", publisher_class=NoFencing))


@pytest.mark.parametrize("fault", FAULTS)
async def test_at_least_once_loses_nothing(fault: str) -> None:
    for effect in await effects_of(lambda: World("cursor", publisher_class=NonAtomic)):
        world = World("cursor", publisher_class=NonAtomic)
        await world.run_until_done(script_that(world, fault, effect))
        world.check(are_repeats_allowed=True)


# Operators


async def edit_sweep(make: Callable[[], World]) -> None:
    """Rewind to the beginning at every point of a relay's life."""
    for effect in await effects_of(make):
        if effect == Effect("claim", 1, "before") or effect.name == "close":
            continue  # No row yet, or too late for this relay.
        world = make()
        edited: list[int] = []

        async def hook(
            passed: Effect,
            effect: Effect = effect,
            world: World = world,
            edited: list[int] = edited,
        ) -> None:
            if passed == effect:
                world.store.edit(CONNECTOR, BEGINNING)
                edited.append(len(world.broker.commits))

        try:
            await world.run_until_done(Script(hook))
            await world.run_until_done()
            world.check(are_repeats_allowed=True)
            # At most the page in hand comes out before the edited position does.
            after = world.broker.commits[edited[0] :]
            positions = [
                decode_checkpoint(record.value)
                for commit in after
                for record in commit
                if record.topic == CHECKPOINTS_TOPIC
            ]
            is_edit = [
                one.last_ts == BEGINNING
                and one.cursor is None
                and isinstance(one.seen, Seen)
                and one.seen.count == 0
                for one in positions
            ]
            assert any(is_edit[:2]), "the edit did not win within one page"
            replayed = Counter(
                dict(record.headers)["event_id"].decode()
                for commit in after[is_edit.index(True) :]
                for record in commit
                if record.topic == raw_topic(PLATFORM)
            )
            assert replayed == dict.fromkeys(world.platform.ids, 1), "the replay is exactly once"
        except AssertionError as error:
            raise AssertionError(f"edit {effect}: {error}") from error


@pytest.mark.parametrize("kind", ["cursor", "closed"])
async def test_an_operators_edit_wins_within_one_page(kind: str) -> None:
    await edit_sweep(lambda: World(kind))


async def test_an_edit_while_the_connector_stands_still_wins_at_the_next_start() -> None:
    """… also over the page that only the topic knows of: both have the same version then."""
    world = World("cursor")
    await world.run(script_that(world, "cancellation", Effect("commit", 2, "after")))
    assert world.store.rows[CONNECTOR].version == 1
    edited = world.store.edit(CONNECTOR, BEGINNING)
    assert edited.version == world.checkpoints()[-1].version == 2
    await world.run_until_done()
    assert [one.last_ts for one in world.checkpoints() if one.version == 3] == [BEGINNING]
    world.check(are_repeats_allowed=True)


async def test_after_an_edit_the_next_pass_begins_at_once() -> None:
    """A rewind of a connector that is polled daily must not wait a day, shown as caught up."""
    world = World("cursor")
    options = world.spec.options.model_copy(update={"poll_every": timedelta(days=1)})
    world.spec = replace(world.spec, options=options)
    world.platform.passes = 2  # Everything is readable in the first pass.

    async def hook(effect: Effect) -> None:
        if effect == Effect("persist", 2, "before"):
            world.store.edit(CONNECTOR, BEGINNING)

    task = asyncio.create_task(world.relay(Script(hook)).run())
    for _ in range(2000):
        await asyncio.sleep(0)
    passes = world.platform.passes
    task.cancel()
    await asyncio.wait({task})
    assert passes == 4


async def test_a_deleted_row_fences_and_the_topic_restores_it() -> None:
    world = World("cursor")

    async def hook(effect: Effect) -> None:
        if effect == Effect("persist", 3, "before"):
            del world.store.rows[CONNECTOR]

    assert isinstance(await world.run(Script(hook)), Fenced)
    await world.run_until_done()
    world.check()


# A database that is behind


async def behind(policy: str) -> World:
    world = World("cursor")
    await world.run_until_done()
    world.store.rows[CONNECTOR] = replace(
        world.store.rows[CONNECTOR], version=1, last_ts=BEGINNING, cursor=None
    )
    world.settings = StreamSettings(database_behind=policy)
    return world


async def test_a_restored_backup_follows_the_topic() -> None:
    world = await behind("kafka_wins")
    await world.run_until_done()
    world.check()


async def test_a_restored_backup_blocks_where_the_operator_wants_to_decide() -> None:
    world = await behind("stop")
    with pytest.raises(Misconfigured, match="VERITY_DATABASE_BEHIND"):
        await world.run_until_done()
    assert world.store.rows[CONNECTOR].version == 1


async def test_a_topic_that_lost_its_end_blocks_where_the_operator_wants_to_decide() -> None:
    world = World("cursor")
    await world.run_until_done()
    del world.broker.partitions[CHECKPOINTS_TOPIC, PARTITION][-2:]
    commits = len(world.broker.commits)
    world.settings = StreamSettings(topic_behind="stop")
    with pytest.raises(Misconfigured, match="VERITY_TOPIC_BEHIND"):
        await world.run_until_done()
    assert len(world.broker.commits) == commits
    # An edit is the decision.
    world.store.edit(CONNECTOR, world.store.rows[CONNECTOR].last_ts)
    await world.run_until_done()
    assert not world.store.rows[CONNECTOR].differences(world.checkpoints()[-1])


async def test_a_row_of_another_cluster_is_not_claimed_until_it_is_adopted() -> None:
    """Who publishes there must not find itself fenced."""
    world = World("cursor")
    await world.run_until_done()
    row = world.store.rows[CONNECTOR]
    world.store.other_cluster = "another"
    with pytest.raises(Misconfigured, match="VERITY_OTHER_CLUSTER"):
        await world.run_until_done()
    assert world.store.rows[CONNECTOR] == row
    world.settings = StreamSettings(other_cluster="adopt")
    await world.run_until_done()
    assert world.store.rows[CONNECTOR].epoch == row.epoch + 1
    assert world.store.other_cluster is None, "the next start has nothing to adopt"


@pytest.mark.parametrize("kind", ["cursor", "closed"])
@pytest.mark.parametrize("policy", ["kafka_wins", "stop"])
async def test_an_edit_of_a_restored_row_wins_over_everything_that_was_published(
    policy: str, kind: str
) -> None:
    """It is the decision that `stop` leaves to the operator."""

    async def restored_and_edited() -> World:
        world = World(kind)
        await world.run_until_done()
        row = world.store.rows[CONNECTOR]
        world.store.rows[CONNECTOR] = replace(row, version=1, last_ts=NOW, cursor=None)
        world.store.published_versions[CONNECTOR] = 1
        world.store.edit(CONNECTOR, BEGINNING)
        world.settings = StreamSettings(database_behind=policy)
        return world

    world = await restored_and_edited()
    published, commits = world.checkpoints()[-1], len(world.broker.commits)
    await world.run_until_done()
    versions = [one.version for one in world.checkpoints()]
    assert versions == sorted(set(versions)), "versions ascend"
    edited = next(one for one in world.checkpoints() if one.version > published.version)
    assert (edited.last_ts, edited.cursor) == (BEGINNING, None)
    assert not world.store.rows[CONNECTOR].differences(world.checkpoints()[-1])
    replayed = Counter(
        dict(record.headers)["event_id"].decode()
        for commit in world.broker.commits[commits:]
        for record in commit
        if record.topic == raw_topic(PLATFORM)
    )
    assert replayed == dict.fromkeys(world.platform.ids, 1), "the replay is exactly once"
    # Wherever that start dies, the edit still wins, and is replayed once.
    for effect in [Effect("commit", 1, when) for when in ("before", "after")] + [
        Effect("persist", number, when) for number in (1, 2) for when in ("before", "after")
    ]:
        world = await restored_and_edited()
        commits = len(world.broker.commits)
        await world.run_until_done(script_that(world, "cancellation", effect))
        replayed = Counter(
            dict(record.headers)["event_id"].decode()
            for commit in world.broker.commits[commits:]
            for record in commit
            if record.topic == raw_topic(PLATFORM)
        )
        assert replayed == dict.fromkeys(world.platform.ids, 1), str(effect)


@pytest.mark.parametrize("is_edited", [False, True])
async def test_a_backup_that_is_restored_under_a_running_relay_is_no_edit(is_edited: bool) -> None:
    """The row is older than what was published; the next start decides what holds."""
    world = World("cursor")
    backups: list[Checkpoint] = []

    async def hook(effect: Effect) -> None:
        if effect == Effect("persist", 1, "after"):
            backups.append(world.store.rows[CONNECTOR])
        if effect == Effect("persist", 4, "before"):
            world.store.rows[CONNECTOR] = backups[0]
            world.store.published_versions[CONNECTOR] = backups[0].version
            if is_edited:
                world.store.edit(CONNECTOR, BEGINNING)

    assert isinstance(await world.run(Script(hook)), Unavailable)
    await world.run_until_done()
    world.check(are_repeats_allowed=is_edited)
    assert any(one.version > 4 and one.last_ts == BEGINNING for one in world.checkpoints()) is (
        is_edited
    )


@pytest.mark.parametrize(
    "at", [Effect("persist", 3, "before"), Effect("load", 3, "before")], ids=str
)
async def test_an_edit_of_a_restored_row_is_seen_by_a_relay_of_the_same_version(at: Effect) -> None:
    """One page back, and one edit on top: the version is the one that the relay published."""
    world = World("cursor")
    is_edited = False

    async def hook(effect: Effect) -> None:
        nonlocal is_edited
        row = world.store.rows.get(CONNECTOR)
        if effect == at and row is not None and row.version > 0:
            world.store.rows[CONNECTOR] = replace(row, version=row.version - 1, cursor=None)
            world.store.published_versions[CONNECTOR] = row.version - 1
            assert world.store.edit(CONNECTOR, BEGINNING).version == row.version
            is_edited = True

    await world.run(Script(hook))
    await world.run_until_done()
    assert is_edited
    counts = Counter(world.published_ids())
    assert counts.keys() == world.platform.ids
    assert max(counts.values()) == 2, "what was published before the edit is out again"
    assert not world.store.rows[CONNECTOR].differences(world.checkpoints()[-1])


async def test_an_edit_of_the_cursor_alone_wins_within_one_page() -> None:
    world = World("cursor")

    async def hook(effect: Effect) -> None:
        if effect == Effect("persist", 2, "before"):
            world.store.edit(CONNECTOR, cursor={"next": 3})

    await world.run_until_done(Script(hook))
    counts = Counter(world.published_ids())
    assert counts.keys() == world.platform.ids
    assert counts["e0"] == 1, "before the cursor and the overlap of its source: not again"
    assert counts["e1"] == 2
    versions = [one.version for one in world.checkpoints()]
    assert versions == sorted(set(versions))


async def overtaken(world: World, at: Effect) -> tuple[BaseException | None, Status]:
    """A starter whose reading takes so long that another relay takes over and publishes on.

    Args:
        at: Where the slow one stands meanwhile.
    """
    slow = Pause(at)
    relay, status = world.relay(slow.script), world.status
    task = asyncio.create_task(relay.run())
    await slow.reached.wait()
    # The other one is a worker of its own, where no operator has to decide anything.
    policies, world.settings = world.settings, StreamSettings()
    await world.run_until_done()
    world.settings = policies
    slow.let_go.set()
    await asyncio.wait({task}, timeout=5)
    world.check()
    return task.exception(), status


@pytest.mark.parametrize("policy", ["kafka_wins", "stop"])
async def test_a_starter_that_was_overtaken_does_not_take_the_database_for_restored(
    policy: str,
) -> None:
    world = World("cursor")
    world.settings = StreamSettings(database_behind=policy)
    ended, status = await overtaken(world, Effect("last_checkpoint", 1, "before"))
    assert len(world.checkpoints()) > 2, "so many pages are out that it would look restored"
    assert isinstance(ended, Fenced), repr(ended)
    assert status.behind_count == 0


@pytest.mark.parametrize("policy", ["repair", "stop"])
async def test_a_starter_that_was_overtaken_does_not_take_the_topic_for_deleted(
    policy: str,
) -> None:
    """The one that overtook it has found that, said so, and mended it."""
    world = World("cursor")
    await world.run_until_done()
    world.delete_checkpoints()
    world.settings = StreamSettings(topic_behind=policy)
    ended, status = await overtaken(world, Effect("last_checkpoint", 1, "after"))
    assert isinstance(ended, Fenced), repr(ended)
    assert status.topic_behind_count == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_repeats_where_a_crash_met_deleted_checkpoints(kind: str) -> None:
    """Also where the page of the crash was the first, so that no row knows of any."""
    for effect in await effects_of(lambda: World(kind)):
        world = World(kind)
        ended = await world.run(script_that(world, "cancellation", effect))
        assert ended is not None
        world.delete_checkpoints()
        await world.run_until_done()
        counts = Counter(world.published_ids())
        assert counts == dict.fromkeys(world.platform.ids, 1), str(effect)


@pytest.mark.parametrize("policy", ["repair", "stop"])
async def test_a_starter_that_was_overtaken_after_its_last_look_at_the_row_says_nothing(
    policy: str,
) -> None:
    """What was published and the epoch that published it are not from two times."""
    world = World("cursor")
    world.settings = StreamSettings(topic_behind=policy)
    ended, status = await overtaken(world, Effect("load", 1, "after"))
    assert isinstance(ended, Fenced), repr(ended)
    assert status.topic_behind_count == 0


async def test_a_starter_that_was_overtaken_does_not_take_ids_for_lost() -> None:
    """Who took over has forgotten what its window has passed."""
    world = World("cursor")
    await run_pages(world, page(event(1, 1), event(3, 3)))
    slow = Pause(Effect("slots", 1, "before"))
    relay, status = world.relay(slow.script), world.status
    task = asyncio.create_task(relay.run())
    await slow.reached.wait()
    # Longer than the lookback later.
    await run_pages(world, page(event(2, 5000), last_ts=BEGINNING + timedelta(seconds=5000)))
    with structlog.testing.capture_logs() as said:
        slow.let_go.set()
        await asyncio.wait({task}, timeout=5)
    assert isinstance(task.exception(), Fenced), repr(task.exception())
    assert [one for one in said if one["log_level"] == "error"] == []
    assert status.lost_count == 0


# What is no event


@dataclass
class GivenPage:
    """What `RelayPage` is made of."""

    events: tuple[Any, ...]
    last_ts: datetime
    rejected: list[RejectedRecord] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    cursor: Any = None


@dataclass
class PagesSource:
    """A `Source` of given pages, from the start at every pass."""

    given: list[GivenPage]

    async def pages(self, checkpoint: Checkpoint, new_builder: NewBuilder) -> Any:
        for page in self.given:
            builder = await builder_of(new_builder, page.events)
            for record in page.rejected:
                builder.reject(record)
            builder.gaps += page.gaps
            yield RelayPage(builder, Reached(page.last_ts, page.cursor))


async def run_pages(world: World, *pages: GivenPage) -> None:
    """One relay over these pages."""
    world.platform = Platform([[]], passes=1)
    world.source = lambda script: PagesSource(list(pages))  # type: ignore[method-assign]
    await world.run_until_done()


def page(*events: Any, last_ts: datetime = BEGINNING, **fields: Any) -> GivenPage:
    return GivenPage(events, last_ts, **fields)


async def test_dead_letters_and_gaps_stand_in_the_page_and_come_once() -> None:
    world = World("cursor")
    rejected = RejectedRecord(b"\xff{", "not JSON", "file:7")
    gap = Gap(None, BEGINNING, "signIns", "past retention")
    first = page(event(1, 1), event(2, 1, operation=None), rejected=[rejected], gaps=[gap])
    await run_pages(world, first)
    await run_pages(world, page(event(2, 1, operation=None), rejected=[rejected]))
    assert world.published_ids() == ["e1"]
    assert len(world.broker.committed(dead_topic(PLATFORM))) == 2
    assert len(world.broker.committed(GAPS_TOPIC)) == 1
    assert len(world.broker.commits) == 1, "one transaction; the repeats made none"


async def test_the_same_rejected_record_twice_in_a_page_is_one_dead_letter() -> None:
    """Small overlapping pages are coalesced, so both copies may stand in one."""
    world = World("cursor")
    rejected = RejectedRecord(b"x", "not understood", "file:7")
    await run_pages(world, page(rejected=[rejected, rejected]))
    assert len(world.broker.committed(dead_topic(PLATFORM))) == 1


@pytest.mark.parametrize(
    "fields", [{"event_id": "bad\ud800"}, {"raw_payload": {"x": float("nan")}}]
)
async def test_an_altered_event_and_its_original_come_once_over_a_restart(
    fields: dict[str, Any],
) -> None:
    world = World("cursor")
    for _ in range(2):
        await run_pages(world, page(event(1, 1, **fields)))
    assert len(world.published_ids()) == 1
    assert len(world.broker.committed(dead_topic(PLATFORM))) == 1


async def test_a_dead_letter_whose_id_is_no_utf_8_comes_once_over_a_restart() -> None:
    world = World("cursor")
    for _ in range(2):
        await run_pages(world, page(event(1, 1, event_id="bad\ud800", operation=None)))
    assert world.published_ids() == []
    assert len(world.broker.committed(dead_topic(PLATFORM))) == 1


async def test_a_page_of_repeats_that_moves_nothing_is_no_transaction() -> None:
    world = World("cursor")
    await run_pages(world, page(event(1, 1)), page(event(1, 1)), page())
    assert len(world.broker.commits) == 1


async def test_a_page_without_events_that_moves_the_position_is_published() -> None:
    world = World("cursor")
    await run_pages(world, page(cursor={"next": 5}))
    assert [one.cursor for one in world.checkpoints()] == [{"next": 5}]


async def test_an_event_of_another_platform_goes_to_its_topic() -> None:
    world = World("cursor")
    await run_pages(world, page(event(1, 1, platform="other")))
    assert len(world.broker.committed(raw_topic("other"))) == 1


async def test_one_event_dated_far_ahead_does_not_pin_the_seen_window() -> None:
    world = World("cursor")
    far = event(1, 1, occurred_at=datetime(9999, 12, 31, tzinfo=UTC))
    later = [
        page(event(n, 1000 * n), last_ts=BEGINNING + timedelta(seconds=1000 * n))
        for n in range(2, 12)
    ]
    await run_pages(world, page(far), *later)
    seen = world.checkpoints()[-1].seen
    assert isinstance(seen, Seen)
    assert seen.count == 2, "the last page's event, and the one dated far ahead"
    await run_pages(world, page(far))
    assert Counter(world.published_ids())["e1"] == 1


async def log_of_ids(world: World) -> list[int]:
    """How many ids each slot of the log holds."""
    slots = await MemoryIdLog(world.broker, Script()).slots(CONNECTOR)
    return [len(decode_slot(value)[2]) for value in slots.values()]


async def test_the_window_moves_on_however_often_a_relay_restarts() -> None:
    """A restart a page, each page beyond the lookback of the one before."""
    world = World("cursor")
    far = event(0, 1, occurred_at=datetime(9999, 12, 31, tzinfo=UTC))
    for n in range(1, 20):
        last_ts = BEGINNING + timedelta(seconds=1000 * n)
        await run_pages(world, page(far, event(n, 1000 * n), last_ts=last_ts))
        seen = world.checkpoints()[-1].seen
        assert isinstance(seen, Seen)
        assert seen.count == 2, "this page's event, and the one dated far ahead"
        assert await log_of_ids(world) == [1, 1]
    assert Counter(world.published_ids())["e0"] == 1


LOST = {
    "all": lambda entries: entries.clear(),
    "the end": lambda entries: entries.__delitem__(slice(-2, None)),
}


@pytest.mark.parametrize("lost", LOST)
async def test_ids_that_the_log_has_lost_are_said_and_read_back_from_the_topics(lost: str) -> None:
    world = World("cursor")
    rejected = RejectedRecord(b"x", "not understood", "file:7")
    # A lookback apart from each other, so that they have slots of their own.
    pages = [
        page(event(n, n * 50), rejected=[rejected] if n == 1 else [], last_ts=BEGINNING)
        for n in (1, 3, 5)
    ]
    await run_pages(world, *pages)
    LOST[lost](world.broker.partitions[IDS_TOPIC, PARTITION])
    with structlog.testing.capture_logs() as said:
        await run_pages(world, *pages)
    assert Counter(world.published_ids()) == {"e1": 1, "e3": 1, "e5": 1}
    assert len(world.broker.committed(dead_topic(PLATFORM))) == 1
    (alarm,) = [one for one in said if one["event"] == "relay.seen_window_lost"]
    assert alarm["log_level"] == "error"
    assert (alarm["lost_ids"], alarm["recovered_ids"]) == ((4, 4) if lost == "all" else (1, 1))
    # … and stand in the log again: this time there is nothing to say.
    with structlog.testing.capture_logs() as said:
        await run_pages(world, *pages)
    assert [one for one in said if one["log_level"] == "error"] == []
    assert sum(await log_of_ids(world)) == 4


async def test_what_is_left_is_recognised_where_checkpoints_and_ids_lost_their_end() -> None:
    """As with one broker's disk: the log then agrees with the checkpoint that is left."""
    world = World("cursor")
    pages = [page(event(n, n * 50), last_ts=BEGINNING) for n in (1, 3, 5)]
    await run_pages(world, *pages)
    for topic in (CHECKPOINTS_TOPIC, IDS_TOPIC):
        del world.broker.partitions[topic, PARTITION][-2:]
    with structlog.testing.capture_logs() as said:
        await run_pages(world, *pages)
    assert Counter(world.published_ids()) == {"e1": 1, "e3": 1, "e5": 1}
    errors = [one["event"] for one in said if one["log_level"] == "error"]
    assert errors == ["relay.topic_behind"]
    assert sum(await log_of_ids(world)) == 3, "they stand in the log again"


async def test_hashes_of_another_key_are_not_taken_for_ours() -> None:
    world = World("cursor")
    await run_pages(world, page(event(1, 1)))
    world.hasher = IdHasher(b"another key 1234")
    with structlog.testing.capture_logs() as said:
        await run_pages(world, page(event(1, 1)))
    assert world.published_ids() == ["e1"]
    assert "relay.seen_window_lost" in [one["event"] for one in said]
    assert await log_of_ids(world) == [1], "the old slot has left"


def older_installation() -> World:
    """A world as a version without a log of ids left it: its row says where in the topics."""
    world = World("closed")
    asyncio.run(world.run_until_done())
    world.platform.passes = 0
    starts: dict[str, dict[int, int]] = {}
    for topic, partition in world.broker.partitions:
        if topic in (raw_topic(PLATFORM), dead_topic(PLATFORM)):
            starts.setdefault(topic, {})[partition] = 0
    world.broker.partitions = {
        place: entries
        for place, entries in world.broker.partitions.items()
        if place[0] != IDS_TOPIC
    }
    row = world.store.rows[CONNECTOR]
    world.store.rows[CONNECTOR] = replace(row, seen=SeenInTopics(starts, row.last_ts))
    return world


@pytest.mark.parametrize("fault", FAULTS)
def test_an_older_installation_is_taken_over_whatever_fails_meanwhile(fault: str) -> None:
    world = older_installation()
    script = Script()
    asyncio.run(world.run_until_done(script))
    assert "published_ids" in {effect.name for effect in script.passed}
    world.check()
    for effect in script.passed:
        again = older_installation()
        asyncio.run(again.run_until_done(script_that(again, fault, effect)))
        again.check()
        later = Script()
        again.platform.passes = 0
        asyncio.run(again.run_until_done(later))
        again.check()
        assert "published_ids" not in {one.name for one in later.passed}, "read back only once"


async def test_a_transaction_that_the_broker_ended_is_unavailable_not_fenced() -> None:
    """Both look the same to the producer; only the epoch tells them apart."""
    world = World("cursor")

    async def hook(effect: Effect) -> None:
        if effect == Effect("commit", 2, "before"):
            raise Fenced("the broker timed the transaction out")

    assert isinstance(await world.run(Script(hook)), Unavailable)
    await world.run_until_done()
    world.check()


async def test_a_halt_cuts_a_waiting_source_short_and_lets_a_page_finish() -> None:
    world = World("cursor")
    pause = Pause(Effect("commit", 2, "before"))
    relay = world.relay(pause.script)
    task = asyncio.create_task(relay.run())
    await pause.reached.wait()
    relay.halt()
    pause.let_go.set()
    await asyncio.wait_for(task, 5)
    assert world.store.rows[CONNECTOR].version == 2, "the page in hand finished"
    await world.run_until_done()
    world.check()


async def test_a_halt_while_the_source_is_silent_closes_it() -> None:
    closed: list[bool] = []

    @dataclass
    class Silent:
        async def pages(self, checkpoint: Checkpoint, new_builder: NewBuilder) -> Any:
            try:
                await asyncio.Event().wait()
                yield
            finally:
                closed.append(True)

    world = World("cursor")
    world.source = lambda script: Silent()  # type: ignore[method-assign]
    script = Script()
    relay = world.relay(script)
    task = asyncio.create_task(relay.run())
    for _ in range(50):
        await asyncio.sleep(0)
    relay.halt()
    await asyncio.wait({task}, timeout=5)
    assert task.done()
    assert closed == [True]
    assert script.passed[-1].name == "close"


# Each line that carries the guarantee, broken: the tests above must notice.


class PersistsFirst(Relay):
    """The checkpoint is persisted before the page is published."""

    async def _relay(self, page: RelayPage) -> bool:
        before, summary = self.checkpoint, await page.builder.finish()
        last_ts, cursor = page.reached.last_ts, page.reached.cursor
        after = replace(before, version=before.version + 1, last_ts=last_ts, cursor=cursor)
        if not page.builder.page.record_count and after.cursor == before.cursor:
            return True
        if await self._store.persist(after, expected_version=before.version) is Persisted.FENCED:
            raise Fenced("")
        self._checkpoint = await self._publish(page.builder, summary, after)
        return True


class NonAtomic(MemoryPublisher):
    """No transaction: records are visible at once, the checkpoint record follows."""

    def _append(self, records: Iterable[Record]) -> Offsets:
        offsets = super()._append(records)
        self.broker.commit(self.transactional_id, self._generation)
        return offsets


class NoWindow(Relay):
    """Nothing is remembered."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._window.claim = lambda hashes: [True for _ in hashes]  # type: ignore[method-assign]


class WindowNotReadBack(Relay):
    """What was published before the start is not remembered."""

    async def _remember(self, checkpoint: Checkpoint, **_: bool) -> bool:
        return False


class EpochNotReadAgain(Relay):
    """The epoch is not looked at after the producer's start."""

    async def _load(self, epoch: int) -> Checkpoint:
        if self._checkpoint is None:
            stored = await self._store.load(CONNECTOR)
            assert stored is not None
            return replace(stored, epoch=epoch)
        return await super()._load(epoch)


class NoEpochInTheComparison(MemoryCheckpoints):
    """Only the version is compared."""

    def persist(self, checkpoint: Checkpoint, expected_version: int) -> Persisted:
        row = self.rows[checkpoint.connector_id]
        if row.version != expected_version:
            return Persisted.EDITED
        self.rows[checkpoint.connector_id] = replace(checkpoint, epoch=row.epoch)
        return Persisted.DONE


class NoVersionInTheComparison(MemoryCheckpoints):
    """Only the epoch is compared."""

    def persist(self, checkpoint: Checkpoint, expected_version: int) -> Persisted:
        self.rows[checkpoint.connector_id] = checkpoint
        return Persisted.DONE


async def test_a_checkpoint_before_the_publishing_is_noticed() -> None:
    with pytest.raises(AssertionError, match=r"runs ahead|lost|the views differ"):
        await sweep(lambda: World("cursor", relay_class=PersistsFirst), "error")


async def test_a_page_without_a_transaction_is_noticed() -> None:
    with pytest.raises(AssertionError, match="repeated"):
        await sweep(lambda: World("closed", publisher_class=NonAtomic), "error")


@pytest.mark.parametrize("broken", [NoWindow, WindowNotReadBack])
async def test_a_missing_seen_window_is_noticed(broken: type[Relay]) -> None:
    with pytest.raises(AssertionError, match="repeated"):
        await sweep(lambda: World("closed", relay_class=broken), "error")


async def test_an_epoch_that_is_not_read_again_is_noticed() -> None:
    with pytest.raises(AssertionError):
        await swapped_start(World("cursor", relay_class=EpochNotReadAgain))


async def test_a_comparison_without_the_epoch_is_noticed() -> None:
    world = World("cursor", publisher_class=NoFencing, store=NoEpochInTheComparison())
    with pytest.raises(AssertionError):
        await unfenced_zombie(world)


async def test_a_comparison_without_the_version_is_noticed() -> None:
    with pytest.raises(AssertionError):
        await edit_sweep(lambda: World("cursor", store=NoVersionInTheComparison()))


async def test_postgres_over_a_newer_topic_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "decide_start", lambda stored, published: Start(stored))
    with pytest.raises(AssertionError, match=r"repeated|versions ascend"):
        await sweep(lambda: World("closed"), "cancellation")


async def test_halted_within_the_last_page_it_ends_without_another_wait() -> None:
    """A hand-over must not wait for the next poll, nor call the connector caught up."""
    world = World("cursor")
    options = world.spec.options.model_copy(update={"poll_every": timedelta(days=1)})
    world.spec = replace(world.spec, options=options)
    relays: list[Relay] = []

    async def hook(effect: Effect) -> None:
        if effect == Effect("persist", 2, "before"):
            relays[0].halt()

    relays.append(world.relay(Script(hook)))
    await asyncio.wait_for(relays[0].run(), 10)
    assert relays[0].checkpoint.version == 2


async def test_a_cursor_longer_than_a_record_is_named_and_nothing_of_its_page_is_visible() -> None:
    """The broker's refusal named two settings, and following it changed nothing."""
    world = World("cursor")
    await run_pages(world, page(cursor={"next": 1}))
    with pytest.raises(Misconfigured, match=r"cursor of 1200\d+ bytes") as caught:
        await run_pages(world, page(event(1, 1), cursor={"known": "x" * 1_200_000}))
    assert "message.max.bytes" not in str(caught.value)
    assert world.store.rows[CONNECTOR].cursor == {"next": 1}
    assert world.published_ids() == []
    assert len(world.broker.commits) == 1
