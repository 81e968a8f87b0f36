"""Permission snapshots: who may do what, between a start and an end record.

A snapshot is published in transactions of up to a page of grants. Its end record says how
many grants there are and whether the snapshot is complete: nobody may read a revocation out
of a partial one, or out of one that has no end. All records of a connector stand in one
partition, in order.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import structlog

from verity_sdk.chunks import Limits, chunked
from verity_sdk.connector_base import BaseConnector, PermissionSnapshot
from verity_sdk.errors import Malformed
from verity_sdk.pages import SnapshotGap, SnapshotScope
from verity_sdk.times import format_utc
from verity_stream.publisher import Publisher
from verity_stream.records import (
    Origin,
    Record,
    clean,
    dead_event,
    grant_body,
    snapshot_record,
)
from verity_stream.settings import ConnectorSpec, StreamSettings
from verity_stream.source import Clock
from verity_stream.status import utc_now

logger = structlog.get_logger(__name__)


@dataclass(slots=True)
class SnapshotResult:
    """How a snapshot ended."""

    snapshot_id: str
    started_at: datetime
    grant_count: int = 0
    dead_count: int = 0
    scopes_read: list[str] = field(default_factory=list)
    gaps: list[SnapshotGap] = field(default_factory=list)

    @property
    def scopes_tried(self) -> list[str]:
        """What was read, and what was denied."""
        return [*self.scopes_read, *(gap.scope for gap in self.gaps)]

    @property
    def is_complete(self) -> bool:
        """Whether a grant that is absent was really not there."""
        return not self.gaps and not self.dead_count


async def publish_snapshot(
    spec: ConnectorSpec,
    settings: StreamSettings,
    connector: BaseConnector,
    publisher: Publisher,
    limits: Limits,
    clock: Clock = utc_now,
) -> SnapshotResult:
    """Read the connector's permissions once and publish them.

    A source that fails half way leaves a partial snapshot with an end record that says so;
    a Kafka that fails leaves one without an end.

    Args:
        publisher: Started; the caller closes it.
    """
    started_at = clock()
    result = SnapshotResult(uuid.uuid4().hex, started_at)
    origin = Origin(spec.connector_id, spec.platform, format_utc(started_at))
    log = logger.bind(connector_id=spec.connector_id)
    about = {"connector_id": spec.connector_id, "platform": spec.platform}

    def mark(kind: str, body: dict[str, Any]) -> Record:
        return snapshot_record(origin, result.snapshot_id, kind, {**about, **body})

    await publisher.publish([mark("start", {"started_at": origin.fetched_at})])
    grants: Any = chunked(connector.snapshot_permissions(), limits)
    async with aclosing(grants):
        while True:
            try:
                chunk, _ = await anext(grants)
            except StopAsyncIteration:
                break
            except Exception as error:
                log.exception("snapshot.failed", scope="*")
                result.gaps.append(SnapshotGap("*", f"{type(error).__name__}: {error}"))
                break
            records = list(_encode(chunk, origin, settings, result))
            if records:
                await publisher.publish(records)
    end = {
        "started_at": origin.fetched_at,
        "ended_at": format_utc(clock()),
        "is_complete": result.is_complete,
        "grant_count": result.grant_count,
        "dead_count": result.dead_count,
        "scopes_tried": [clean(scope) for scope in result.scopes_tried],
        "scopes_denied": [
            {"scope": clean(gap.scope), "reason": clean(gap.reason)} for gap in result.gaps
        ],
    }
    await publisher.publish([mark("end", end)])
    (log.info if result.is_complete else log.error)(
        "snapshot.published",
        snapshot_id=result.snapshot_id,
        grants=result.grant_count,
        is_complete=result.is_complete,
        scopes_denied=[gap.scope for gap in result.gaps],
    )
    return result


def _encode(
    chunk: Sequence[Any], origin: Origin, settings: StreamSettings, result: SnapshotResult
) -> Iterator[Record]:
    """The records of some grants; gaps and counts go into the result."""
    bytes_max = settings.kafka.max_record_bytes
    for item in chunk:
        if isinstance(item, SnapshotGap):
            result.gaps.append(item)
            continue
        if isinstance(item, SnapshotScope):
            result.scopes_read.append(item.scope)
            continue
        try:
            yield _grant_record(item, origin, bytes_max, result)
            result.grant_count += 1
        except Malformed as error:
            result.dead_count += 1
            yield from dead_event(origin, item, str(error), bytes_max // 2).records


def _grant_record(item: Any, origin: Origin, bytes_max: int, result: SnapshotResult) -> Record:
    if not isinstance(item, PermissionSnapshot):
        raise Malformed(f"the connector yielded a {type(item).__name__}, not a PermissionSnapshot")
    body = grant_body(item, result.started_at)
    try:
        record = snapshot_record(origin, result.snapshot_id, "grant", body)
    except (TypeError, ValueError, RecursionError) as error:
        raise Malformed(f"the grant can't be written as JSON: {error}") from error
    if len(record.value) > bytes_max:
        raise Malformed(
            f"the grant is {len(record.value)} bytes, more than the {bytes_max} of "
            "VERITY_KAFKA__MAX_RECORD_BYTES"
        )
    return record
