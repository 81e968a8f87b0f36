"""A page while it is filled: every event is looked at once, on its way into Kafka's batches.

It is checked and encoded at once, for the connector may go on using the object; recognised as a
repeat or not, and appended, together with a few others, while all of them are still in the
processor's cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from itertools import compress, count, repeat
from typing import Any

from verity_sdk.errors import Malformed
from verity_sdk.pages import Gap
from verity_stream.kafka.transactions import Publisher
from verity_stream.records import (
    EncodedEvent,
    EventEncoder,
    Headers,
    Origin,
    PageSummary,
    Undeliverable,
    dead_event,
    dead_record,
    gap_record,
    original,
    sound_gap,
)
from verity_stream.relay.ids import IdHasher
from verity_stream.relay.seen_window import SeenWindow

TURN = 25
"""After so many events other tasks have their turn: meanwhile the page before is sent, which takes
some sixty turns until its row is in Postgres."""

TAKEN_TOGETHER = 250
"""So many are put into the page together, in about half a millisecond: the code of each step stays
in the processor's cache."""


class PageTarget:
    """Where builders lead to: one publisher, one seen window, and the topics known to exist.

    Args:
        ensure_topics: Makes sure that topics exist before something is published to them.
        origin: Whose records they are, at the present time.
        record_bytes_max: The longest record the broker takes.
    """

    def __init__(
        self,
        publisher: Publisher,
        window: SeenWindow,
        hasher: IdHasher,
        encoder: EventEncoder,
        ensure_topics: Callable[[Iterable[str]], Awaitable[None]],
        origin: Callable[[], Origin],
        record_bytes_max: int,
    ) -> None:
        self.publisher = publisher
        self.window = window
        self.hasher = hasher
        self.encoder = encoder
        self.origin = origin
        self.record_bytes_max = record_bytes_max
        self.open_topics: set[str] = set()
        self._filled: PageBuilder | None = None
        self._ensure_topics = ensure_topics

    def turn_to(self, builder: PageBuilder) -> None:
        """From now on this builder is filled; the one before claims all that is in it first."""
        if self._filled is not None:
            self._filled.take()
        self._filled = builder

    def forget_all(self) -> None:
        """Forget every id, to replay them: those of a page that is left unfinished, too."""
        self._filled = None
        self.window.forget_all()

    async def open_topic(self, topic: str) -> None:
        """From now on records can be added to the topic."""
        if topic not in self.open_topics:
            await self._ensure_topics({topic})
            await self.publisher.open_topic(topic)
            self.open_topics.add(topic)


class PageBuilder:
    """A page that is being filled; see the module.

    Args:
        events_max: It is full at so many events, or things in place of events,
        bytes_max: or at so many bytes, as JSON.

    Attributes:
        page: The records, for the publisher.
        times: When its events occurred, in their order, repeats among them.
        fresh_times: The same without the repeats.
        letter_times: When what is in the dead letters occurred, id by id; None where unknown.
        hashes: The ids that the seen window is to remember with the page: those of the fresh
            events, in their order, and then those of the dead letters.
        gaps: What is known to be missing; add to it.
        size_bytes: Of all that was added.
    """

    def __init__(self, target: PageTarget, events_max: int, bytes_max: int) -> None:
        self.page = target.publisher.new_page()
        self.times: list[datetime] = []
        self.fresh_times: list[datetime] = []
        self.letter_times: list[datetime | None] = []
        self.hashes: list[int] = []
        self.gaps: list[Gap] = []
        self.size_bytes = 0
        self.is_empty, self.is_full = True, False
        self._target = target
        self._encode = target.encoder.encode
        self._hashes = target.hasher.hashes
        self._claim = target.window.claim
        self._open_topics = target.open_topics
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._count = 0
        self._turn_at = TURN
        self._encoded: list[EncodedEvent] = []
        self._originals: dict[int, Undeliverable] = {}
        self._letters: list[Undeliverable] = []
        # base64 and the frame around it must fit too.
        self._part_bytes = target.record_bytes_max // 2
        self._origin: Origin | None = None
        self._headers: Headers = []

    @property
    def origin(self) -> Origin:
        """Whose records these are; `fetched_at` is when the first thing was added."""
        if self._origin is None:
            self._origin = self._target.origin()
            self._headers = self._origin.headers("raw_event/1")
        return self._origin

    def add(self, event: Any, /) -> Awaitable[None] | None:
        """Add what a connector yielded as an event; what is returned has to be awaited."""
        try:
            encoded = self._encode(event)
        except Malformed as error:
            self._bury(dead_event(self.origin, event, str(error), self._part_bytes))
            return None
        _, occurred_at, topic, _, value, altered = encoded
        if topic not in self._open_topics:
            return self._add_to_new_topic(topic, event)
        self._grow(len(value))
        self.times.append(occurred_at)
        if altered is not None:
            letter = original(self.origin, event, altered, self._part_bytes)
            self.size_bytes += letter.size_bytes
            self._originals[len(self._encoded)] = letter
        self._encoded.append(encoded)
        if self._count < self._turn_at:
            return None
        self._turn_at += TURN
        if len(self._encoded) >= TAKEN_TOGETHER:
            self.take()
        return asyncio.sleep(0)

    def take(self) -> None:
        """Put what was encoded, but for the repeats, into the page: some events, step by step.

        Event by event, the hash and the table of ids would drive the rest out of the cache and
        take half as long again.
        """
        if not self._encoded:
            return
        ids, times, topics, keys, values, altered = zip(*self._encoded, strict=True)
        originals, self._encoded, self._originals = self._originals, [], {}
        hashes = self._hashes(topics, ids)
        are_new = self._claim(hashes)
        self.hashes += compress(hashes, are_new)
        self.fresh_times += compress(times, are_new)
        add, shared = self.page.add, self._headers
        rows = zip(count(), ids, topics, keys, values, altered)
        for place, id_header, topic, key, value, pointers in compress(rows, are_new):
            headers = [("event_id", id_header), *shared]
            if pointers is not None:
                headers.append(("altered", pointers))
                self._letters.append(originals[place])
            add(topic, key, value, headers)

    async def _add_to_new_topic(self, topic: str, event: Any) -> None:
        await self._target.open_topic(topic)
        waiting = self.add(event)  # Once more from the start: a topic is new once.
        if waiting is not None:
            await waiting

    def reject(self, record: Any) -> None:
        """Add a source record that was not understood."""
        self._bury(dead_record(self.origin, record, self._part_bytes))

    def _bury(self, letter: Undeliverable) -> None:
        """Keep in place of an event; at once, for the connector may go on using the object."""
        self._letters.append(letter)
        self._grow(letter.size_bytes)

    def _grow(self, size_bytes: int) -> None:
        if self.is_empty:
            self.is_empty = False
            self._target.turn_to(self)
            self.origin  # noqa: B018 - the time is taken now
        self._count += 1
        self.size_bytes += size_bytes
        if self._count >= self._events_max or self.size_bytes >= self._bytes_max:
            self.is_full = True

    async def finish(self) -> PageSummary:
        """Add the dead letters and the gaps; nothing may be added after that."""
        self.take()
        target = self._target
        event_count = len(self.hashes)
        letters = [letter for letter in self._letters if self._is_fresh(letter)]
        records = [record for letter in letters for record in letter.records]
        self.gaps = [sound_gap(gap) for gap in self.gaps]
        records += [gap_record(self.origin, gap) for gap in self.gaps]
        for record in records:
            await target.open_topic(record.topic)
            self.page.add(*record)
        return PageSummary(
            event_count=event_count,
            repeat_count=len(self.times) - event_count,
            dead_count=len(letters),
            gap_count=len(self.gaps),
        )

    def _is_fresh(self, letter: Undeliverable) -> bool:
        """Whether none of a dead letter's ids was in this topic before; they are from now on."""
        topic = letter.records[0].topic
        hashes = self._hashes(repeat(topic), (one.encode() for one in letter.ids))
        if any(hashed in self._target.window for hashed in hashes):
            return False
        claimed = list(compress(hashes, self._claim(hashes)))
        self.hashes.extend(claimed)
        self.letter_times += [letter.occurred_at] * len(claimed)
        return True

    def times_of_ids(self, now: datetime) -> list[datetime]:
        """Up to when each of `hashes` may come again; call it after `finish`.

        An event: the time it occurred. A dead letter: now at the least, for its own time may be
        unknown or wrong, and the source may serve it for as long as it looks back over the present.
        """
        letters = [now if at is None else max(at, now) for at in self.letter_times]
        return [*self.fresh_times, *letters]
