"""`verity complete`: the topics are read, the SDK's function answers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime
from typing import Any

from verity_common.kafka import KafkaSettings
from verity_sdk.completeness import Completeness, Coverage, completeness, order_of
from verity_sdk.errors import Malformed
from verity_stream.kafka.committed import CommittedReader
from verity_stream.records import (
    CHECKPOINTS_TOPIC,
    GAPS_TOPIC,
    NotUnderstood,
    claims_to_be_a_gap,
    decode_checkpoint_body,
    decode_gap,
)

__all__ = ["Completeness", "Coverage", "is_complete"]


async def is_complete(
    kafka: KafkaSettings,
    platform: str,
    since: datetime,
    until: datetime,
    connectors: Collection[str] | None = None,
    configured: Collection[str] = (),
) -> Coverage:
    """Whether every event of a platform between two times is in its topic.

    For any program that reads the raw topics: it needs Kafka, and neither Postgres nor a worker.

    Args:
        connectors, configured: As `verity_sdk.completeness.completeness` has them.

    Raises:
        Unavailable, Denied: The topics can't be read.
    """
    reader = CommittedReader(kafka)
    # In this order: a page's gaps are visible no later than its checkpoint.
    newest = await reader.last_by_key(CHECKPOINTS_TOPIC, decode_checkpoint_body, newer=_newer)
    strange = [one for last in newest.values() for one in last.strange]
    # Such a record speaks for its connector only, until the next one that is understood: what
    # somebody else wrote into the topic takes no answer away.
    unreadable = {key for key, last in newest.items() if not last.is_clear}
    gaps = []
    async for record in reader.stream(GAPS_TOPIC):
        try:
            gaps.append(decode_gap(record))
        except Malformed as error:
            strange.append(NotUnderstood.of(record, error))
            if claims_to_be_a_gap(record):
                unreadable.add(record.key or b"")
    answer = completeness(
        [last.value for last in newest.values() if last.value is not None],
        gaps,
        platform=platform,
        since=since,
        until=until,
        connectors=connectors,
        configured=configured,
        unreadable={key.decode("utf-8", "backslashreplace") for key in unreadable},
    )
    return replace(answer, not_understood=tuple(map(str, strange)))


def _newer(held: dict[str, Any], incoming: dict[str, Any]) -> dict[str, Any]:
    return held if order_of(incoming) < order_of(held) else incoming
