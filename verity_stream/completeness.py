"""`verity complete`: the topics are read, the SDK's function answers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from verity_common.kafka import KafkaSettings
from verity_sdk.completeness import Answer, Completeness, completeness, order_of
from verity_sdk.errors import Malformed
from verity_stream.records import (
    CHECKPOINTS_TOPIC,
    GAPS_TOPIC,
    NotUnderstood,
    claims_to_be_a_gap,
    decode_checkpoint_body,
    decode_gap,
)
from verity_stream.topic_reader import CommittedReader

__all__ = ["Answer", "Completeness", "is_complete"]


async def is_complete(
    kafka: KafkaSettings,
    platform: str,
    since: datetime,
    until: datetime,
    connectors: Collection[str] | None = None,
    configured: Collection[str] = (),
) -> Answer:
    """Whether every event of a platform between two times is in its topic.

    For any program that reads the raw topics: it needs Kafka, and neither Postgres nor a worker.

    Args:
        connectors, configured: As `verity_sdk.completeness.completeness` has them.

    Raises:
        Unavailable, Denied: The topics can't be read.
    """
    reader = CommittedReader(kafka)
    # In this order: a page's gaps are visible no later than its checkpoint.
    newest = Newest(await reader.records(CHECKPOINTS_TOPIC))
    strange, unreadable = newest.strange, newest.unreadable
    gaps = []
    for record in await reader.records(GAPS_TOPIC):
        try:
            gaps.append(decode_gap(record))
        except Malformed as error:
            strange.append(NotUnderstood.of(record, error))
            if claims_to_be_a_gap(record):
                unreadable.add(record.key or b"")
    answer = completeness(
        newest.bodies,
        gaps,
        platform=platform,
        since=since,
        until=until,
        connectors=connectors,
        configured=configured,
        unreadable={key.decode("utf-8", "backslashreplace") for key in unreadable},
    )
    return replace(answer, not_understood=tuple(map(str, strange)))


class Newest:
    """The newest record of every connector, taken in the order of the topic.

    One that is not understood speaks for its connector only, until the next that is: what somebody
    else wrote into the topic takes no answer away.

    Attributes:
        strange: All that were not understood.
        unreadable: The keys that ended in one of these.
    """

    def __init__(self, records: Iterable[Any]) -> None:
        self._last: dict[bytes, Mapping[str, Any]] = {}
        self.strange: list[NotUnderstood] = []
        self.unreadable: set[bytes] = set()
        for record in records:
            self._take(record)

    @property
    def bodies(self) -> list[Mapping[str, Any]]:
        """The newest that were understood."""
        return list(self._last.values())

    def _take(self, record: Any) -> None:
        key = record.key or b""
        if record.value is None:
            self._last.pop(key, None)
            self.unreadable.discard(key)
            return
        try:
            body = decode_checkpoint_body(record.value, key)
        except Malformed as error:
            self.strange.append(NotUnderstood.of(record, error))
            self.unreadable.add(key)
            return
        if order_of(body) >= order_of(self._last.get(key, body)):
            self._last[key] = body
            self.unreadable.discard(key)
