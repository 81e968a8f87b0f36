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
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, cast

import structlog

from verity_sdk.connector_base import RawEvent
from verity_sdk.errors import Fenced, Malformed, Misconfigured, Unavailable
from verity_sdk.times import as_utc, format_utc
from verity_stream.checkpoints import (
    CheckpointStore,
    Persisted,
    TopicReader,
    after_loss,
    decide_start,
)
from verity_stream.failpoints import passing
from verity_stream.publisher import Publisher
from verity_stream.records import (
    CHECKPOINTS_TOPIC,
    GAPS_TOPIC,
    Checkpoint,
    DeadLetter,
    EventEncoder,
    Offsets,
    Origin,
    PageSummary,
    Record,
    checkpoint_record,
    dead_event,
    dead_record,
    gap_record,
)
from verity_stream.seen import SeenWindow
from verity_stream.settings import ConnectorSpec, StreamSettings
from verity_stream.source import Clock, RelayPage, Source, earlier
from verity_stream.status import State, Status, utc_now

logger = structlog.get_logger(__name__)


SLICE_EVENTS = 250
"""So many events are encoded at a time, a millisecond's work, while the page before is sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _PreparedPage:
    """A page as the publisher takes it, and what the seen window remembers of it.

    Attributes:
        batches: What the publisher prepared.
        record_count: How many records those hold; the checkpoint's is not among them.
    """

    origin: Origin
    batches: Any = ()
    record_count: int = 0
    ids: Sequence[str] = ()
    newest_at: datetime
    summary: PageSummary = field(default_factory=PageSummary)
    lateness_seconds: Sequence[float] = ()


class Relay:
    """Runs one connector until it is halted, fenced or fails.

    Args:
        spec: The connector's configuration.
        settings: The worker's settings.
        source: Where the pages come from.
        publisher: A fresh one; the relay starts and closes it.
        store: The checkpoints in Postgres.
        reader: What was committed to Kafka.
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
        self._ensure_topics = ensure_topics
        self._status = status
        self._clock = clock
        self._window = SeenWindow(settings.seen_window_ids)
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
        """Claim, fence, read the epoch again, and make the two stored views equal."""
        connector_id = self._spec.connector_id
        provenance = await self._store.provenance(connector_id)
        if provenance.other_cluster is not None:
            self._is_of_another_cluster(provenance.other_cluster)
            await self._store.adopt(connector_id)
        claimed = await self._store.claim(connector_id)
        passing("after_claim")
        await self._publisher.start()
        passing("after_fence")
        # Two starters may claim in one order and fence in the other. Whoever finds a newer
        # epoch after its own fencing gives way.
        stored = await self._load(claimed.epoch)
        published = await self._reader.last_checkpoint(connector_id)
        passing("after_read_back")
        lost = provenance.published_version - (0 if published is None else published.version)
        if lost > 0:
            self._topic_is_behind(lost)
            stored = after_loss(stored, published, provenance.published_version)
        start = decide_start(stored, published)
        if start.pages_behind > 1:
            self._database_is_behind(start.pages_behind)
        if start.repair_database_from is not None:
            outcome = await self._store.persist(
                start.checkpoint, expected_version=start.repair_database_from
            )
            if outcome is Persisted.FENCED:
                raise Fenced("a newer relay claimed the connector during this one's start")
            if outcome is Persisted.EDITED:
                raise Unavailable("an operator moved the position during the start")
            self._log.info("relay.database_repaired", version=start.checkpoint.version)
        self._hold(start.checkpoint)
        if start.checkpoint.seen is not None:
            await self._ensure_topics(start.checkpoint.seen.start)
            ids = await self._reader.published_ids(connector_id, start.checkpoint.seen.start)
            self._report_forgotten(self._window.restore(ids, start.checkpoint.seen))
        if start.publish:
            await self._publish_position(start.checkpoint)
        self._log.info(
            "relay.started",
            version=self.checkpoint.version,
            epoch=self.checkpoint.epoch,
            last_ts=format_utc(self.checkpoint.last_ts),
            remembered_ids=len(self._window),
        )

    def _hold(self, checkpoint: Checkpoint) -> None:
        """This is the last position that is in the topic and in Postgres."""
        self._checkpoint = checkpoint
        self._status.version = checkpoint.version
        self._status.complete_through = checkpoint.complete_through
        self._status.seen_count = len(self._window)

    def _database_is_behind(self, pages: int) -> None:
        self._status.behind_count += 1
        self._log.error("relay.database_behind", pages=pages, policy=self._settings.database_behind)
        if self._settings.database_behind == "stop":
            raise Misconfigured(
                f"the database is {pages} pages behind the topic, as after a restored backup; "
                "VERITY_DATABASE_BEHIND=stop leaves the decision to you"
            )

    def _topic_is_behind(self, versions: int) -> None:
        self._status.topic_behind_count += 1
        policy = self._settings.topic_behind
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
        if stored.version != self.checkpoint.version:
            await self._adopt_edit(stored)

    async def _pull(self) -> bool:
        """One pass: every page until caught up; False where the position was moved meanwhile.

        While a page is on its way to Kafka and Postgres, the next one is fetched and encoded.
        """
        pages = cast("Any", self._source.pages(self.checkpoint))
        async with aclosing(pages):
            preparing = asyncio.create_task(self._prepare_next(pages))
            is_edited = False
            try:
                while not self._is_halted and not is_edited:
                    found = await self._interruptible(self._prepared(preparing))
                    if found is None:
                        return True
                    preparing = asyncio.create_task(self._prepare_next(pages))
                    is_edited = not self._is_halted and not await self._relay(*found)
            finally:
                preparing.cancel()
                await asyncio.wait({preparing})
                if not preparing.cancelled():
                    preparing.exception()  # Seen: its page is not published by this pass.
        if is_edited:
            # Only now that no page is being prepared any more: what it claimed is forgotten, too.
            await self._adopt_edit(await self._load(self.checkpoint.epoch))
        return not is_edited

    @staticmethod
    async def _prepared(
        preparing: asyncio.Task[tuple[RelayPage, _PreparedPage] | None],
    ) -> tuple[RelayPage, _PreparedPage] | None:
        try:
            return await preparing
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise Unavailable("the source cancelled itself") from None

    async def _prepare_next(self, pages: Any) -> tuple[RelayPage, _PreparedPage] | None:
        """Fetch and encode the next page; None where there is none."""
        passing("before_fetch")
        try:
            page = await anext(pages)
        except StopAsyncIteration:
            return None
        passing("after_fetch")
        return page, await self._prepare(page)

    async def _relay(self, page: RelayPage, prepared: _PreparedPage) -> bool:
        """Publish and persist one page; False where an operator moved the position meanwhile."""
        before = self.checkpoint
        summary = prepared.summary
        after = replace(
            before,
            version=before.version + 1,
            last_ts=max(before.last_ts, page.last_ts),
            cursor=page.cursor,
            complete_through=page.complete_through,
        )
        is_moved = (after.last_ts, after.cursor, after.complete_through) != (
            before.last_ts,
            before.cursor,
            before.complete_through,
        )
        self._status.repeat_count += summary.repeat_count
        if not prepared.record_count and not is_moved:
            return True
        after = await self._publish(prepared, after)
        passing("before_persist")
        # The order is the guarantee: only what is committed may be persisted.
        outcome = await self._store.persist(after, expected_version=before.version)
        passing("after_persist")
        if outcome is Persisted.FENCED:
            raise Fenced("a newer relay claimed the connector; it knows of this page")
        self._hold(after)
        self._count(summary, page)
        self._status.lateness.observe(prepared.lateness_seconds)
        self._log.debug(
            "relay.page",
            version=after.version,
            events=summary.event_count,
            repeats=summary.repeat_count,
            dead=summary.dead_count,
            gaps=summary.gap_count,
            last_ts=format_utc(after.last_ts),
        )
        return outcome is not Persisted.EDITED

    def _origin(self) -> Origin:
        return Origin(self._spec.connector_id, self._spec.platform, format_utc(self._clock()))

    async def _prepare(self, page: RelayPage) -> _PreparedPage:
        """The page's records without its checkpoint, and what is to be remembered of them."""
        origin, kafka = self._origin(), self._settings.kafka
        part_bytes = kafka.max_record_bytes // 2  # base64 and the frame around it must fit too
        encoder = EventEncoder(origin, self._spec.options.partition_by, kafka.max_record_bytes)
        fresh = self._window.claim(page.events)
        letters: list[DeadLetter] = []

        def encoded(events: Sequence[RawEvent]) -> Iterator[Record]:
            for event in events:
                try:
                    yield encoder.encode(event)
                except Malformed as error:
                    letters.append(dead_event(origin, event, str(error), part_bytes))

        await self._ensure_topics({CHECKPOINTS_TOPIC, *encoder.topics(fresh)})
        batches = await self._publisher.prepare(())
        for start in range(0, len(fresh), SLICE_EVENTS):
            await self._publisher.prepare(encoded(fresh[start : start + SLICE_EVENTS]), batches)
            await asyncio.sleep(0)
        event_count = len(fresh) - len(letters)
        letters += [
            dead_event(origin, thing, reason, part_bytes) for thing, reason in page.unpublishable
        ]
        letters += [dead_record(origin, rejected, part_bytes) for rejected in page.rejected]
        letters = [letter for letter in letters if self._window.claim_id(letter.dead_id)]
        others = [record for letter in letters for record in letter.records]
        others += [gap_record(origin, gap) for gap in page.gaps]
        await self._ensure_topics({record.topic for record in others})
        await self._publisher.prepare(others, batches)
        times = [as_utc(event.occurred_at) for event in fresh]
        # What is older before the first catch-up is a backfill or a replay, and is not late.
        now = self._clock() if self._has_caught_up else None
        return _PreparedPage(
            origin=origin,
            batches=batches,
            record_count=event_count + len(others),
            ids=[*(str(event.event_id) for event in fresh), *(one.dead_id for one in letters)],
            newest_at=max(times, default=page.last_ts),
            lateness_seconds=[] if now is None else [(now - at).total_seconds() for at in times],
            summary=PageSummary(
                event_count=event_count,
                repeat_count=len(page.events) - len(fresh),
                dead_count=len(letters),
                gap_count=len(page.gaps),
            ),
        )

    async def _publish(self, prepared: _PreparedPage, after: Checkpoint) -> Checkpoint:
        """One transaction: the records, and the checkpoint that says where they ended up."""

        def seal(offsets: Offsets) -> Record:
            nonlocal after
            places = {topic: taken for topic, taken in offsets.items() if topic != GAPS_TOPIC}
            forgotten = self._window.remember(prepared.ids, prepared.newest_at, places)
            self._report_forgotten(forgotten)
            self._window.forget_before(earlier(after.last_ts, self._spec.lookback))
            after = replace(after, seen=self._window.seen())
            summary = replace(prepared.summary, offsets=offsets)
            return checkpoint_record(prepared.origin, after, summary)

        began = time.monotonic()
        try:
            await self._publisher.publish(
                prepared.batches, seal, (CHECKPOINTS_TOPIC, after.connector_id.encode())
            )
            self._status.commit_seconds.observe([time.monotonic() - began])
        except Fenced as error:
            # A transaction that the broker timed out looks the same; only the epoch can tell.
            await self._load(after.epoch)
            raise Unavailable("the broker ended the transaction: it took too long") from error
        return after

    async def _publish_position(self, stored: Checkpoint) -> None:
        """Bring the topic up to a position that only Postgres has, as a page without events."""
        await self._ensure_topics({CHECKPOINTS_TOPIC})
        after = replace(stored, version=stored.version + 1)
        page = _PreparedPage(origin=self._origin(), newest_at=stored.last_ts)
        after = await self._publish(page, after)
        outcome = await self._store.persist(after, expected_version=stored.version)
        if outcome is Persisted.FENCED:
            raise Fenced("a newer relay claimed the connector")
        self._hold(after)
        if outcome is Persisted.EDITED:
            await self._adopt_edit(await self._load(after.epoch))

    async def _adopt_edit(self, edited: Checkpoint) -> None:
        """Go on from where an operator put the position; ids are forgotten, to replay them."""
        self._log.warning(
            "relay.position_edited",
            before=format_utc(self.checkpoint.last_ts),
            after=format_utc(edited.last_ts),
        )
        self._window.forget_all()
        self._has_caught_up = False
        await self._publish_position(edited)

    def _count(self, summary: PageSummary, page: RelayPage) -> None:
        status = self._status
        status.page_count += 1
        status.event_count += summary.event_count
        status.dead_count += summary.dead_count
        status.gap_count += summary.gap_count
        now = self._clock()
        status.last_success_at = now
        if summary.event_count:
            status.last_event_at = now
        status.enter(State.RUNNING)
        if summary.dead_count:
            self._log.error("relay.dead_letters", count=summary.dead_count)
        for gap in page.gaps:
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
