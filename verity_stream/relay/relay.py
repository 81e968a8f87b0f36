"""The relay: one connector's events from its source into Kafka, exactly once.

One page takes four steps, and their order is the guarantee:

1. **Fetch** a page and drop the events that the seen window knows.
2. **Publish** events, dead letters, gaps and the checkpoint record in one Kafka transaction.
3. **Persist** the checkpoint in Postgres by compare-and-set.
4. **Mirror**: an agent of the stream application copies the record into its table.

Before the commit nothing happened; after it everything did. Between commit and persist the
topic is ahead of Postgres by one page, and the next start repairs that. Whatever fails inside
a page ends `run`; the caller throws the relay away and starts another, which finds out from
the topic what became of that page.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, cast

import orjson
import structlog

from verity_sdk.errors import Fenced, Malformed, Misconfigured, Unavailable
from verity_sdk.position import FIRST_SINCE, earlier
from verity_sdk.times import format_utc
from verity_stream.failpoints import passing
from verity_stream.kafka.committed import TopicReader
from verity_stream.kafka.partitions import partition_for
from verity_stream.kafka.transactions import Publisher, Transaction
from verity_stream.postgres.checkpoints import CheckpointStore, Persisted
from verity_stream.records import (
    CHECKPOINTS_TOPIC,
    IDS_TOPIC,
    Checkpoint,
    EventEncoder,
    Origin,
    PageSummary,
    Record,
    Seen,
    SeenInTopics,
    checkpoint_record,
    dead_topic,
    decode_slot,
    raw_topic,
)
from verity_stream.relay.id_log import IdLog, Slots, slot_records
from verity_stream.relay.page_builder import PageBuilder, PageTarget
from verity_stream.relay.seen_window import SLOT_IDS_MAX, SeenWindow
from verity_stream.relay.sources import Clock, RelayPage, Source
from verity_stream.relay.start import after_loss, beginning, decide_start, lifted
from verity_stream.settings import ConnectorSpec, StreamSettings
from verity_stream.status import State, Status, utc_now

logger = structlog.get_logger(__name__)

RESTORED_WITHOUT_REST = 20_000
"""After so many ids other tasks have their turn: some 10 ms."""

RECOVERED_TOGETHER = 4096
"""Ids that are read back from the topics share a slot with so many others."""

PUBLISHED_MARGIN = timedelta(hours=1)
"""An event is published after it occurred, by clocks that differ."""

EDIT_WINS = "edit_wins"
"""What is logged in place of a policy where an operator's edit has decided already."""


class Relay:
    """Runs one connector until it is halted, fenced or fails.

    Args:
        spec: The connector's configuration.
        settings: The worker's settings.
        source: Where the pages come from.
        publisher: A fresh one; the relay starts and closes it.
        store: The checkpoints in Postgres.
        reader: What was committed to Kafka.
        ids: The log of ids.
        ensure_topics: Makes sure that topics exist before something is published to them.
        status: What people see; the relay keeps it up to date.
        clock: The present, aware UTC.
    """

    def __init__(
        self,
        spec: ConnectorSpec,
        settings: StreamSettings,
        source: Source,
        publisher: Publisher,
        store: CheckpointStore,
        reader: TopicReader,
        ids: IdLog,
        ensure_topics: Callable[[Iterable[str]], Awaitable[None]],
        status: Status,
        clock: Clock = utc_now,
    ) -> None:
        self._spec = spec
        self._settings = settings
        self._source = source
        self._publisher = publisher
        self._store = store
        self._reader = reader
        self._ids = ids
        self._partition = partition_for(spec.connector_id, settings.checkpoint_partitions)
        self._ensure_topics = ensure_topics
        self._status = status
        self._clock = clock
        record_bytes_max = settings.kafka.max_record_bytes
        slot_ids_max = min(SLOT_IDS_MAX, record_bytes_max // 16)
        self._window = SeenWindow(settings.seen_window_ids, slot_ids_max)
        self._target = PageTarget(
            publisher,
            self._window,
            ids.hasher,
            EventEncoder(
                spec.connector_id,
                spec.options.partition_by,
                record_bytes_max,
                spec.declared_platform,
            ),
            ensure_topics,
            self._origin,
            record_bytes_max,
        )
        self._checkpoint: Checkpoint | None = None
        self._is_halted = False
        self._has_caught_up = False
        self._task: asyncio.Task[Any] | None = None
        self._is_interruptible = False
        self._log = logger.bind(connector_id=spec.connector_id)

    @property
    def checkpoint(self) -> Checkpoint:
        """The last position that is in the topic and in Postgres."""
        assert self._checkpoint is not None, "known once the relay has started"  # noqa: S101
        return self._checkpoint

    def halt(self) -> None:
        """Let the page in hand finish, start no other, and end `run`."""
        self._is_halted = True
        if self._is_interruptible and self._task is not None:
            self._task.cancel()

    async def run(self) -> None:
        """Start, then pull pass after pass.

        Raises:
            Fenced: Another relay owns the connector. Nothing of the page in hand is visible,
                or all of it is and the owner knows.
            Unavailable, Denied, Misconfigured: The page in hand is out as a whole or not at
                all; the next start finds out which.
        """
        self._task = asyncio.current_task()
        try:
            await self._start()
            while not self._is_halted:
                await self._refresh()
                if not await self._pull() or self._is_halted:
                    continue
                self._has_caught_up = True
                self._status.pass_count += 1
                self._status.last_success_at = self._clock()
                self._status.enter(State.CAUGHT_UP)
                await self._interruptible(
                    asyncio.sleep(self._spec.options.poll_every.total_seconds())
                )
        finally:
            await self._publisher.close()

    async def _interruptible(self, waiting: Awaitable[Any]) -> Any:
        """Wait for something that `halt` may cut short, because nothing is in flight."""
        self._is_interruptible = True
        try:
            return await waiting
        finally:
            self._is_interruptible = False

    async def _start(self) -> None:
        """Claim, fence, read back, read the epoch again, and make the two stored views equal."""
        connector_id = self._spec.connector_id
        provenance = await self._store.provenance(connector_id)
        is_moved = provenance.other_cluster is not None
        if provenance.other_cluster is not None:
            self._is_of_another_cluster(provenance.other_cluster)
            await self._store.adopt(connector_id)
        claimed = await self._store.claim(connector_id)
        passing("after_claim")
        await self._publisher.start()
        passing("after_fence")
        published = await self._reader.last_checkpoint(connector_id)
        passing("after_read_back")
        # Asked again: until the claim another relay went on publishing. From then on only edits
        # raise the row's version.
        published_version = (await self._store.provenance(connector_id)).published_version
        # Two starters may claim in one order and fence in the other: whoever finds a newer epoch
        # after its own fencing gives way. And after everything that is judged by: reading back may
        # take minutes, a worker may be frozen at any point, and what a newer relay published
        # meanwhile would look like a restored database or a topic that lost its end.
        row = await self._load(claimed.epoch)
        is_edited = row.version > published_version
        lost = published_version - (0 if published is None else published.version)
        if lost > 0:
            if not is_moved:  # Else that has been said, and explains it.
                self._topic_is_behind(lost, is_edited=is_edited)
            stored = after_loss(row, published, published_version)
        else:
            stored = lifted(row, published, published_version)
        start = decide_start(stored, published)
        behind = start.checkpoint.version - row.version
        if behind > 1:
            self._database_is_behind(behind, is_edited=is_edited)
        if behind > 0:
            outcome = await self._store.persist(start.checkpoint, expected_version=row.version)
            if outcome is Persisted.FENCED:
                raise Fenced("a newer relay claimed the connector during this one's start")
            if outcome is Persisted.EDITED:
                raise Unavailable("an operator moved the position during the start")
            self._log.info("relay.database_repaired", version=start.checkpoint.version)
        # Either view may be of a backup; what was collected once stays collected.
        checkpoint = replace(start.checkpoint, collected_from=_earliest_beginning(row, published))
        if checkpoint.collected_from is None or start.publish:
            checkpoint = self._begun(checkpoint)
        self._hold(checkpoint)
        is_recovered = await self._remember(
            start.checkpoint, is_moved=is_moved, is_behind=lost > 0 and not is_edited
        )
        self._status.seen_count = len(self._window)
        if start.publish or is_recovered:
            await self._publish_position(checkpoint)
        self._log.info(
            "relay.started",
            version=self.checkpoint.version,
            epoch=self.checkpoint.epoch,
            last_ts=format_utc(self.checkpoint.last_ts),
            remembered_ids=len(self._window),
        )

    def _begun(self, checkpoint: Checkpoint) -> Checkpoint:
        """The same with the connector's beginning: at its first start, or after an edit."""
        known = _earliest_beginning(checkpoint, self._checkpoint)
        began_at = beginning(
            replace(checkpoint, collected_from=known), self._spec.retention, self._clock()
        )
        return replace(checkpoint, collected_from=began_at)

    async def _remember(self, checkpoint: Checkpoint, *, is_moved: bool, is_behind: bool) -> bool:
        """Read the seen window back, as it was when this checkpoint was published.

        Args:
            is_moved: The checkpoint comes from another cluster, whose log is not ours.
            is_behind: The topic has lost checkpoints. Where the log's end went along, it holds all
                that this checkpoint tells of, and yet not what was published after it.

        Returns:
            Whether ids were recovered, or given up, that the log lacks: the checkpoint is to be
            published together with what is known now.
        """
        seen, window = checkpoint.seen, self._window
        if checkpoint.version == 0:
            # What the log holds was published, and the checkpoint got lost before a row had it.
            seen = Seen(slots_from=0, count=0)
        begin = earlier(checkpoint.last_ts, self._spec.lookback)
        await self._ensure_topics({IDS_TOPIC})
        slots = await self._ids.slots(self._spec.connector_id)
        passing("after_ids_read")
        found = await self._restore(seen if isinstance(seen, Seen) else None, slots)
        lost = seen.count - found if isinstance(seen, Seen) else 0
        window.forget_before(begin)
        if checkpoint.version == 0 and found:
            self._log.warning("relay.checkpoint_lost", remembered_ids=found)
        if isinstance(seen, SeenInTopics):
            await self._ensure_topics(seen.start)
            recovered = await self._recover(seen.start, begin)
            self._log.info("relay.seen_window_taken_over", recovered_ids=recovered)
        elif lost > 0 or is_behind:
            # A newer relay forgets what its window has passed: to an older one that looks lost.
            await self._load(checkpoint.epoch)
            since = earlier(begin, PUBLISHED_MARGIN)
            start = await self._reader.offsets_since(self._topics(), since)
            recovered = await self._recover(start, begin)
            if lost > 0:
                self._ids_are_lost(lost, recovered, is_moved=is_moved)
        return lost > 0 or is_behind or isinstance(seen, SeenInTopics)

    async def _restore(self, seen: Seen | None, slots: Slots) -> int:
        """Take in what the log has; returns how many ids that were."""
        window, unrested = self._window, 0
        for number in window.expect(seen, slots):
            try:
                fingerprint, newest_at, hashes = decode_slot(slots[number])
            except Malformed:
                fingerprint = b""
            if fingerprint != self._ids.hasher.fingerprint:
                window.drop(number)  # Hashes of another key, or of a version to come.
                continue
            window.restore(number, newest_at, hashes)
            unrested += len(hashes)
            if unrested > RESTORED_WITHOUT_REST:
                unrested = 0
                await asyncio.sleep(0)
        return window.seen().count

    async def _recover(self, start: Mapping[str, Mapping[int, int]], begin: datetime) -> int:
        """Take ids that the log lacks from the topics of events and dead letters.

        Args:
            start: From where on.
            begin: What is older need not be remembered.

        Returns:
            How many were found.
        """
        window, hasher, now = self._window, self._ids.hasher, self._clock()
        recovered = 0
        hashes, times = list[int](), list[datetime]()

        def remember() -> None:
            self._report_forgotten(window.remember(hashes, times, now))
            window.forget_before(begin)

        async for found in self._reader.published_ids(self._spec.connector_id, start):
            asked = hasher.hashes((topic for topic, *_ in found), (one for _, one, _ in found))
            for (_, _, at), hashed, is_new in zip(found, asked, window.claim(asked), strict=True):
                if is_new:
                    recovered += 1
                    hashes.append(hashed)
                    times.append(now if at is None else at)
            if len(hashes) >= RECOVERED_TOGETHER:
                remember()
                hashes, times = [], []
        remember()
        return recovered

    def _topics(self) -> set[str]:
        """Where the connector's events and dead letters are; empty: wherever they may be."""
        platform = self._spec.declared_platform
        return set() if platform is None else {raw_topic(platform), dead_topic(platform)}

    def _ids_are_lost(self, lost: int, recovered: int, *, is_moved: bool) -> None:
        """The log has less than the checkpoint says: it lost its end, or was made anew."""
        if is_moved:  # As it was announced: another cluster's log is not here.
            self._log.info("relay.seen_window_moved", recovered_ids=recovered)
            return
        self._status.lost_count += lost
        self._log.error(
            "relay.seen_window_lost",
            lost_ids=lost,
            recovered_ids=recovered,
            topic=IDS_TOPIC,
        )

    def _hold(self, checkpoint: Checkpoint) -> None:
        """This is the last position that is in the topic and in Postgres."""
        self._checkpoint = replace(checkpoint, is_edited=False)
        self._status.version = checkpoint.version
        self._status.complete_through = checkpoint.complete_through
        self._status.seen_count = len(self._window)

    def _database_is_behind(self, pages: int, *, is_edited: bool) -> None:
        self._status.behind_count += 1
        # An edit is the decision that "stop" leaves to the operator.
        policy = EDIT_WINS if is_edited else self._settings.database_behind
        self._log.error("relay.database_behind", pages=pages, policy=policy)
        if policy == "stop":
            raise Misconfigured(
                f"the database is {pages} pages behind the topic, as after a restored backup; "
                "VERITY_DATABASE_BEHIND=stop leaves the decision to you"
            )

    def _topic_is_behind(self, versions: int, *, is_edited: bool) -> None:
        self._status.topic_behind_count += 1
        policy = EDIT_WINS if is_edited else self._settings.topic_behind
        self._log.error("relay.topic_behind", versions=versions, policy=policy)
        if policy == "stop":
            raise Misconfigured(
                f"{CHECKPOINTS_TOPIC} lacks the last {versions} versions that were published, as "
                "after it was deleted; VERITY_TOPIC_BEHIND=stop leaves the decision to you"
            )

    def _is_of_another_cluster(self, cluster: str) -> None:
        """Before the claim: the relay that publishes there must not find itself fenced."""
        self._status.other_cluster_count += 1
        policy = self._settings.other_cluster
        self._log.error("relay.other_cluster", cluster=cluster, policy=policy)
        if policy == "stop":
            raise Misconfigured(
                f"the database's checkpoint belongs to the Kafka cluster {cluster}, and this is "
                "another: point VERITY_DATABASE__DSN to a database of its own or, after a move, "
                "set VERITY_OTHER_CLUSTER=adopt"
            )

    async def _load(self, epoch: int) -> Checkpoint:
        stored = await self._store.load(self._spec.connector_id)
        if stored is None:
            raise Unavailable("the checkpoint's row was deleted while the connector ran")
        if stored.epoch != epoch:
            raise Fenced(f"epoch {stored.epoch} has claimed the connector; this one is {epoch}")
        return stored

    async def _refresh(self) -> None:
        """Before a pass: see an operator's edit, or that another relay took over."""
        stored = await self._load(self.checkpoint.epoch)
        if stored.version != self.checkpoint.version or stored.is_edited:
            await self._adopt_edit(stored)

    async def _pull(self) -> bool:
        """One pass: every page until caught up; False where the position was moved meanwhile."""
        pages = cast("Any", self._source.pages(self.checkpoint, partial(PageBuilder, self._target)))
        is_edited = False
        async with aclosing(pages):
            while not self._is_halted and not is_edited:
                passing("before_fetch")
                try:
                    page = await self._interruptible(anext(pages))
                except StopAsyncIteration:
                    return True
                passing("after_fetch")
                is_edited = not self._is_halted and not await self._relay(page)
        if is_edited:
            # Only now that no page is being filled any more: what it claimed is forgotten, too.
            await self._adopt_edit(await self._load(self.checkpoint.epoch))
        return False

    async def _relay(self, page: RelayPage) -> bool:
        """Publish and persist one page; False where an operator moved the position meanwhile."""
        before, builder = self.checkpoint, page.builder
        summary = await builder.finish()
        after = replace(
            before,
            version=before.version + 1,
            last_ts=max(before.last_ts, page.reached.last_ts),
            cursor=page.reached.cursor,
            complete_through=page.reached.complete_through,
            collected_from=self._began_at(before, builder),
        )
        self._status.repeat_count += summary.repeat_count
        if not builder.page.record_count and after.reached == before.reached:
            return True
        after = await self._publish(builder, summary, after)
        is_ours = await self._persist(after, before.version)
        self._count(summary, builder)
        self._log.debug(
            "relay.page",
            version=after.version,
            events=summary.event_count,
            repeats=summary.repeat_count,
            dead=summary.dead_count,
            gaps=summary.gap_count,
            last_ts=format_utc(after.last_ts),
        )
        return is_ours

    def _began_at(self, before: Checkpoint, builder: PageBuilder) -> datetime | None:
        """Where no retention is declared, the oldest event published tells the beginning."""
        known = before.collected_from
        if known is None or self._spec.retention is not None:
            return known
        return min(known, max(min(builder.fresh_times, default=known), FIRST_SINCE))

    def _origin(self) -> Origin:
        return Origin(self._spec.connector_id, self._spec.platform, format_utc(self._clock()))

    async def _publish(
        self, builder: PageBuilder, summary: PageSummary, after: Checkpoint
    ) -> Checkpoint:
        """One transaction: the page, its ids, and the checkpoint that says where it is."""
        # The window changes before the commit, for the checkpoint says what it remembers. Whatever
        # fails from here on throws the relay away, and its window with it.
        window, now = self._window, self._clock()
        self._report_forgotten(window.remember(builder.hashes, builder.times_of_ids(now), now))
        window.forget_before(earlier(after.last_ts, self._spec.lookback))
        after = replace(after, seen=window.seen())
        own, hasher = self._partition, self._ids.hasher
        written, gone = slot_records(after.connector_id, own, hasher, window.changes())
        time = asyncio.get_running_loop().time
        began = time()
        last = {CHECKPOINTS_TOPIC, IDS_TOPIC} if written or gone else {CHECKPOINTS_TOPIC}
        async with self._transaction(*sorted(last)) as transaction:
            offsets = await transaction.send(builder.page)
            passing("after_publish")
            record = checkpoint_record(builder.origin, after, replace(summary, offsets=offsets))
            self._require_room(record, after)
            # The ids that the checkpoint tells of are there before it, and those that an older one
            # tells of are gone after it.
            checkpoint = record._replace(partition=own)
            await transaction.send_in_order([*written, checkpoint, *gone])
        self._status.commit_seconds.observe([time() - began])
        return after

    def _require_room(self, record: Record, after: Checkpoint) -> None:
        """Raise Misconfigured where the cursor is longer than a record may be.

        The broker would refuse it, too, but can't say whose record it was.
        """
        bytes_max = self._settings.kafka.max_record_bytes
        if len(record.value or b"") <= bytes_max:
            return
        cursor_bytes = len(orjson.dumps(after.cursor))
        if cursor_bytes > bytes_max:
            raise Misconfigured(
                f"the connector's cursor of {cursor_bytes} bytes is longer than a record may be "
                f"(VERITY_KAFKA__MAX_RECORD_BYTES={bytes_max}): a cursor is a position, not what "
                "was read; this is a bug of the connector"
            )

    @asynccontextmanager
    async def _transaction(self, *last_topics: str) -> AsyncIterator[Transaction]:
        """One of the publisher's; `last_topics` are those whose records close the page."""
        await self._target.open_topic(CHECKPOINTS_TOPIC)
        places = [(topic, self._partition) for topic in last_topics]
        try:
            async with self._publisher.transaction(*places) as transaction:
                yield transaction
        except Fenced as error:
            # A transaction that the broker timed out looks the same; only the epoch can tell.
            await self._load(self.checkpoint.epoch)
            raise Unavailable("the broker ended the transaction: it took too long") from error

    async def _persist(self, after: Checkpoint, expected_version: int) -> bool:
        """Let the row follow; False where an operator moved the position meanwhile."""
        passing("before_persist")
        # The order is the guarantee: only what is committed may be persisted.
        outcome = await self._store.persist(after, expected_version=expected_version)
        passing("after_persist")
        if outcome is Persisted.FENCED:
            raise Fenced("a newer relay claimed the connector; it knows of this page")
        self._hold(after)
        return outcome is not Persisted.EDITED

    async def _publish_position(self, stored: Checkpoint) -> None:
        """Bring the topic up to a position that only Postgres has, as a page without events."""
        after = replace(stored, version=stored.version + 1)
        after = await self._publish(PageBuilder(self._target, 1, 1), PageSummary(), after)
        if not await self._persist(after, stored.version):
            await self._adopt_edit(await self._load(after.epoch))

    async def _adopt_edit(self, edited: Checkpoint) -> None:
        """Go on from where an operator put the position; ids are forgotten, to replay them.

        Raises:
            Unavailable: It is no edit: the row is older than what was published. The next start
                decides what holds.
        """
        if edited.version < self.checkpoint.version:
            raise Unavailable(
                f"the stored position went back from version {self.checkpoint.version} to "
                f"{edited.version} while the connector ran, as after a restored backup"
            )
        self._log.warning(
            "relay.position_edited",
            before=format_utc(self.checkpoint.last_ts),
            after=format_utc(edited.last_ts),
        )
        self._target.forget_all()
        self._has_caught_up = False
        await self._publish_position(self._begun(edited))

    def _count(self, summary: PageSummary, builder: PageBuilder) -> None:
        status = self._status
        status.page_count += 1
        status.event_count += summary.event_count
        status.dead_count += summary.dead_count
        status.gap_count += summary.gap_count
        now = self._clock()
        # What is older before the first catch-up is a backfill or a replay, and is not late.
        if self._has_caught_up:
            status.lateness.observe([(now - at).total_seconds() for at in builder.fresh_times])
        status.last_success_at = now
        if summary.event_count:
            status.last_event_at = now
        status.enter(State.RUNNING)
        if summary.dead_count:
            self._log.error("relay.dead_letters", count=summary.dead_count)
        for gap in builder.gaps:
            self._log.error("relay.gap", scope=gap.scope, reason=gap.reason)

    def _report_forgotten(self, count: int) -> None:
        self._status.forgotten_count += count
        if count:
            self._log.error(
                "relay.seen_window_full",
                forgotten_ids=count,
                remembered_ids=len(self._window),
                setting="VERITY_SEEN_WINDOW_IDS",
            )


def _earliest_beginning(*checkpoints: Checkpoint | None) -> datetime | None:
    """From when on the connector's events are collected, as far as any of these knows."""
    known = [one.collected_from for one in checkpoints if one is not None and one.collected_from]
    return min(known, default=None)
