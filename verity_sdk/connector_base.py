"""The base of every connector, by the specification's names: what it yields and what it extends."""

from __future__ import annotations

import asyncio
import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from verity_sdk import run
from verity_sdk.batches import batched, closing
from verity_sdk.context import Context, current_context
from verity_sdk.deprecation import moved
from verity_sdk.errors import Malformed, Misconfigured, Unavailable
from verity_sdk.events import PermissionSnapshot as PermissionSnapshot
from verity_sdk.events import RawEvent as RawEvent
from verity_sdk.position import FIRST_SINCE as FIRST_SINCE
from verity_sdk.position import NAME_RULE, is_valid_name
from verity_sdk.run import described
from verity_sdk.settings import validated
from verity_sdk.times import as_utc, format_utc

logger = logging.getLogger(__name__)

DATABASE_SECONDS_MAX = 30.0
"""How long reading or writing the checkpoint may take."""

_SELECT_CHECKPOINT = "SELECT last_ts FROM connector_checkpoints WHERE connector_id = $1"
_UPSERT_CHECKPOINT = (
    "INSERT INTO connector_checkpoints (connector_id, last_ts) VALUES ($1, $2) "
    "ON CONFLICT (connector_id) DO UPDATE SET last_ts = EXCLUDED.last_ts"
)


class BaseConnector(ABC):
    """What every connector extends: two methods to implement, publishing and checkpoints given.

    Attributes:
        PLATFORM: The platform of all its events. Empty: each event's own counts.
        Settings: The model that validates its table of `verity.toml` and the constructor's
            mapping. None: it is handed a plain dict.
        context: Its surroundings: the current `Context` when it was made. By these it tells the
            time, waits, and says that it waits.
        lookback: How far before the watermark the source may still deliver new events. The
            stream application asks from there and drops what it has published before; `run()`,
            which can't tell a repeat, does not look back. Zero only for a source in which
            nothing ever appears late.
        fetch_timeout: How long a pass may be silent before the stream application cuts it, where
            its own default is too short: for a request budget of an hour, say. None: the default.
    """

    PLATFORM: ClassVar[str] = ""
    Settings: ClassVar[Any] = None

    # Most sources show an event some seconds after its time; asking for a minute again costs
    # little, and not asking loses what nobody notices.
    lookback: ClassVar[timedelta] = timedelta(seconds=60)
    fetch_timeout: ClassVar[timedelta | None] = None

    # Class attributes, so that a subclass that forgets super().__init__() still has them.
    context: Context = Context()
    _has_warned_of_naive_time = False
    _is_checkpoint_known = True

    def __init__(self, config: Any, kafka_producer: Any, db_pool: Any) -> None:
        """Keep what is handed in; nothing is connected or checked yet.

        Args:
            config: A mapping, or an object with attributes, that has `connector_id`; where the
                class has `Settings`, one of these or what is validated into one.
            kafka_producer: A started `AIOKafkaProducer` whose `value_serializer` turns a dict
                into bytes, for `run()`; `verity_common.kafka.create_producer` makes one.
            db_pool: An `asyncpg` pool, for `run()`. Under the worker it is a small one that all
                connectors share: give connections back.

        Raises:
            Misconfigured: The class has `Settings`, and the mapping is not valid; the message
                names each setting at fault.
        """
        self.config = config
        if isinstance(self.Settings, type) and issubclass(self.Settings, BaseModel):
            self.config = validated(self.Settings, config)
        self.kafka_producer = kafka_producer
        self.db_pool = db_pool
        # Not by assignment: where an author has a property of this name, it goes on working.
        self.__dict__["context"] = current_context()

    if not TYPE_CHECKING:
        # Unseen by type checkers: to them it is what a connector declares or assigns.

        @cached_property
        def settings(self) -> Any:
            """The config, where the class has `Settings`; a connector declares `settings: …`."""
            if self.Settings is None:
                raise AttributeError(f"{type(self).__name__} has no Settings")
            return self.config

    # Not `async def`: a generator function (`async def` with `yield`) returns its iterator
    # without being awaited, and only so does an override type-check.
    @abstractmethod
    def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        """Yield the audit events of `since` and later, oldest first; end when caught up.

        This is what `since` means, everywhere:

        - Every event that the source shows and that occurred at `since` or later is yielded.
          Those *at* `since` belong to it: others of the same time may have appeared after the
          last pass, and whoever asks only for what is later never sees them. Where an API
          filters strictly, ask it from a moment earlier.
        - What was yielded before comes again then, with the same id. The stream application
          drops it; `run()`, at least once, publishes it again.
        - The stream application asks from `lookback` before the watermark, `run()` from exactly
          the stored one. Neither is moved by an event that is dated ahead of the clock.

        Write it as `async def` with `yield`. That the generator is resumed does not mean that the
        event is published.

        Args:
            since: Aware UTC.
        """

    @abstractmethod
    def snapshot_permissions(self) -> AsyncIterator[Any]:
        """Yield every grant that stands now, as `PermissionSnapshot`s.

        What could not be read is a `SnapshotGap`; what was read completely may be named by a
        `SnapshotScope`. Write it as `async def` with `yield`.
        """

    async def check(self) -> None:
        """See that the source answers and shows what is needed, for `verity check`.

        Nothing is asked unless a connector says what.

        Raises:
            Unavailable, Denied, Misconfigured: What an operator must mend; names all of it.
        """
        return

    async def close(self) -> None:
        """Close all connections; called once, at the end of a connector's life."""
        return

    def health_warnings(self) -> list[str]:
        """What is worth an operator's look without being an error, each in one sentence.

        No secrets in it.

        Asked by the stream application about every ten seconds; must not wait for anything.
        """
        return []

    async def run(self) -> None:
        """One pass: publish every event after the checkpoint, and let the checkpoint follow.

        What it guarantees, at least once and to one `run()` of a `connector_id` at a time:

        1. Each event goes to the topic `verity.events.raw.{platform}`, in the order in which
           the source yields them, as a dict of its fields with `occurred_at` as text.
        2. The checkpoint never passes an event that Kafka has not acknowledged.
        3. Within a pass the checkpoint rests on a time that the source has left behind: the
           newest one strictly before the newest. So even a source that filters strictly "after"
           loses nothing in a crash that shares its time with the last one.
        4. The checkpoint never moves backwards within a pass, and never below where it was
           loaded. Once an event comes out older than one before it, which is warned of once a
           pass, it stays where it was written until the end of the pass. Should that pass
           fail, the next one is not asked for events that are older than what was written: a
           source that can't yield oldest first is a `PagedConnector`, for the worker.
        5. A pass that ends normally leaves it at the newest `occurred_at` that is not ahead of
           the clock; an event that is dated ahead is published, at every pass until its time.
        6. Events are published, their acknowledgements awaited and the checkpoint written once
           for up to 1,000 events, and 1 s after the first that waits, also while the source is
           silent.

        A naive `occurred_at` is taken as UTC, with one warning a connector.

        One bad value costs at most its record. A value that JSON has no word for (half of a
        surrogate pair, NaN, bytes, an integer beyond 64 bits) goes out in its text form: the
        record has the header `altered`, a JSON list of the JSON pointers to what was altered,
        and a warning names the event; integers and UUIDs as ids or references become their text.
        What is not a `RawEvent`, or lacks an id, a valid time, a reference or a valid platform, is
        not published: one line at ERROR names its id and says why, the pass goes on, and the
        checkpoint follows the events after it. Nothing keeps it then but the source, for `run()`
        has no dead letters; the stream application has.

        Raises:
            Misconfigured: No `connector_id` in the config, or one that the worker would refuse
                (nothing was done), or the producer has no serializer for a dict (nothing was
                published, nothing moved).
            Unavailable: Kafka did not take or acknowledge an event, or the checkpoint could not
                be written. The checkpoint is where it was last written, and events after it may
                be published already; the next pass publishes all of them.
            Denied: Kafka does not let us write to the topic; then as with Unavailable.
            Malformed: An event is too large for Kafka; the message names its id. The checkpoint
                does not pass it, so the next pass meets it again. Where the producer itself
                refused it, the events before it are published and the checkpoint has followed
                them as far as 3 and 4 allow.
            asyncio.CancelledError: The source is closed; the checkpoint is where it was last
                written. Events after it may be published, and are published again.
            Exception: Whatever the source raises, as it is. What it yielded before is published,
                and the checkpoint has followed as far as 3 and 4 allow.
        """
        connector_id = self._connector_id()  # First: without it there is no checkpoint.
        since = as_utc(await self._load_checkpoint())
        stream: Any = self.stream_audit_events(since=since)
        if inspect.isawaitable(stream):
            stream = await stream
        one_pass = run.Pass(
            connector_id,
            since,
            producer=self.kafka_producer,
            read_checkpoint=partial(self._read_checkpoint, connector_id),
            save_checkpoint=self._save_checkpoint,
            is_checkpoint_known=self._is_checkpoint_known,
            on_naive_time=self._warn_of_naive_time,
        )
        batches = batched(stream, run.RUN_LIMITS)
        async with closing(batches):
            try:
                async for events, is_last in batches:
                    for event in events:
                        await one_pass.publish(event)
                    await one_pass.settle(is_last=is_last)
            except Malformed:
                await one_pass.settle_before_malformed()
                raise
            finally:
                one_pass.abandon()

    async def _load_checkpoint(self) -> datetime:
        """The checkpoint, or the start of the year 2000 if there is none or the query fails.

        A failing query is warned of. `run()` then starts from 2000, and asks again before it
        writes, so that the stored checkpoint is not moved backwards.

        Raises:
            Misconfigured: No `connector_id` in the config.
        """
        connector_id = self._connector_id()
        self._is_checkpoint_known = True
        try:
            stored = await self._read_checkpoint(connector_id)
        except Exception as error:  # noqa: BLE001 - the pool is handed in: any error is its query's
            self._is_checkpoint_known = False
            logger.warning(
                "connector %s: the checkpoint can't be read, starting from %s: %s",
                connector_id,
                format_utc(FIRST_SINCE),
                described(error),
            )
            return FIRST_SINCE
        return FIRST_SINCE if stored is None else stored

    async def _save_checkpoint(self, ts: datetime) -> None:
        """Write the checkpoint, whatever it was before; a naive time is taken as UTC.

        Raises:
            Misconfigured: No `connector_id` in the config.
            Malformed: It is not a time.
            Unavailable: The query failed or took too long; the checkpoint is what it was, or,
                where the answer was lost, the new one.
        """
        connector_id, at = self._connector_id(), as_utc(ts)
        try:
            async with asyncio.timeout(DATABASE_SECONDS_MAX):
                await self.db_pool.execute(_UPSERT_CHECKPOINT, connector_id, at)
        except Exception as error:
            raise Unavailable(
                f"connector {connector_id}: the checkpoint {format_utc(at)} could not be "
                f"written: {described(error)}; what was published after the stored one is "
                "published again"
            ) from error

    async def _read_checkpoint(self, connector_id: str) -> datetime | None:
        async with asyncio.timeout(DATABASE_SECONDS_MAX):
            row = await self.db_pool.fetchrow(_SELECT_CHECKPOINT, connector_id)
        return None if row is None or row["last_ts"] is None else as_utc(row["last_ts"])

    def _connector_id(self) -> str:
        if isinstance(self.config, Mapping):
            connector_id = self.config.get("connector_id")
        else:
            connector_id = getattr(self.config, "connector_id", None)
        if not isinstance(connector_id, str) or not connector_id:
            raise Misconfigured(
                "the connector's config has no connector_id: it must be a text, "
                "the key of the connector's checkpoint"
            )
        if not is_valid_name(connector_id):
            raise Misconfigured(f"connector_id {connector_id!r}: an id is {NAME_RULE}")
        return connector_id

    def _warn_of_naive_time(self, event_id: Any) -> None:
        if not self._has_warned_of_naive_time:
            self._has_warned_of_naive_time = True
            logger.warning(
                "connector %s: occurred_at has no time zone and is taken as UTC (event %r)",
                self._connector_id(),
                event_id,
            )


def has_check(connector: BaseConnector) -> bool:
    """Whether its author says what to check: the default finds nothing out."""
    return getattr(connector.check, "__func__", None) is not BaseConnector.check


if not TYPE_CHECKING:
    __getattr__ = moved(
        __name__,
        {
            "ACK_SECONDS_MAX": "verity_sdk.run.ACK_SECONDS_MAX",
            "RUN_LIMITS": "verity_sdk.run.RUN_LIMITS",
            "asked_since": "verity_sdk.position.asked_since",
        },
    )
