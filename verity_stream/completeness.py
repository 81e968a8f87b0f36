"""`verity complete`: the topics are read, the SDK's function answers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any

import orjson

from verity_common.kafka import KafkaSettings
from verity_sdk.completeness import Answer, Completeness, completeness, order_of
from verity_sdk.errors import Malformed
from verity_stream.records import CHECKPOINTS_TOPIC, GAPS_TOPIC
from verity_stream.topic_reader import CommittedReader

__all__ = ["Answer", "Completeness", "is_complete"]

FIELDS = ("connector_id", "platform", "complete_through")
OPTIONAL = ("collected_from", "version", "epoch")
"""The first is what records of older versions lack."""


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
        Malformed: A record can't be understood.
    """
    reader = CommittedReader(kafka)
    # In this order: a page's gaps are visible no later than its checkpoint.
    checkpoints = last_checkpoints(await reader.records(CHECKPOINTS_TOPIC))
    gaps = [
        _object(record)
        for record in await reader.records(GAPS_TOPIC)
        if ("schema", b"gap/1") in record.headers
    ]
    return completeness(
        checkpoints,
        gaps,
        platform=platform,
        since=since,
        until=until,
        connectors=connectors,
        configured=configured,
    )


def last_checkpoints(records: Iterable[Any]) -> list[Mapping[str, Any]]:
    """The newest record of every connector; one that is not understood can't tell how far it is.

    It speaks for its connector only: what somebody else wrote into the topic takes no answer away.
    """
    last: dict[bytes | None, Mapping[str, Any]] = {}
    for record in records:
        if record.value is None:
            last.pop(record.key, None)
            continue
        try:
            body = _object(record)
            found = {name: body[name] for name in FIELDS}
            found |= {name: body[name] for name in OPTIONAL if name in body}
            if order_of(found) >= order_of(last.get(record.key, found)):
                last[record.key] = found
        except (Malformed, KeyError, TypeError):
            if record.key in last:
                last[record.key] = {**last[record.key], "complete_through": None}
    return list(last.values())


def _object(record: Any) -> Mapping[str, Any]:
    try:
        body = orjson.loads(record.value)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Malformed(f"{record.topic}[{record.partition}]@{record.offset} is no JSON object")
    return body
