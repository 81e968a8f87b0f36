"""Permission snapshots: who may do what, between a start and an end record.

A snapshot is published in transactions of up to a page of grants. Its end record says how
many grants there are and whether the snapshot is complete: nobody may read a revocation out
of a partial one, or out of one that has no end. All records of a connector stand in one
partition, in order.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any

import structlog

from verity_sdk.batches import Limits, batched
from verity_sdk.connector_base import BaseConnector, PermissionSnapshot
from verity_sdk.errors import Malformed
from verity_sdk.pages import SnapshotGap, SnapshotScope
from verity_sdk.times import format_utc
from verity_stream.kafka.transactions import Publisher
from verity_stream.records import (
    Origin,
    Record,
    SnapshotResult,
    clean,
    dead_event,
    end_record,
    grant_body,
    original,
    snapshot_record,
    start_record,
)
from verity_stream.relay.sources import Clock
from verity_stream.settings import ConnectorSpec, StreamSettings, is_valid_name
from verity_stream.status import utc_now

logger = structlog.get_logger(__name__)

UNPUBLISHABLE = "unpublishable"
"""The scope of the gap that says that grants were read and could not be published."""


def new_snapshot_id() -> str:
    """An id that no other snapshot has."""
    return uuid.uuid4().hex


async def publish_snapshot(
    spec: ConnectorSpec,
    settings: StreamSettings,
    connector: BaseConnector,
    publisher: Publisher,
    limits: Limits,
    clock: Clock = utc_now,
    new_id: Callable[[], str] = new_snapshot_id,
) -> SnapshotResult:
    """Read the connector's permissions once and publish them.

    A source that fails half way leaves a partial snapshot with an end record that says so;
    a Kafka that fails leaves one without an end.

    Args:
        publisher: Started; the caller closes it.
    """
    started_at = clock()
    result = SnapshotResult(new_id(), started_at)
    origin = Origin(spec.connector_id, spec.platform, format_utc(started_at))
    log = logger.bind(connector_id=spec.connector_id)
    await _publish(publisher, [start_record(origin, result)])
    encode = _Encoder(spec, settings, origin, result)
    grants: Any = batched(connector.snapshot_permissions(), limits)
    async with aclosing(grants):
        while True:
            try:
                batch, _ = await anext(grants)
            except StopAsyncIteration:
                break
            except Exception as error:
                log.exception("snapshot.failed", scope="*")
                result.gaps.append(SnapshotGap("*", clean(f"{type(error).__name__}: {error}")))
                break
            records = list(encode(batch))
            if records:
                await _publish(publisher, records)
    await _publish(publisher, [end_record(origin, result, clock())])
    (log.info if result.is_complete else log.error)(
        "snapshot.published",
        snapshot_id=result.snapshot_id,
        grants=result.grant_count,
        is_complete=result.is_complete,
        scopes_denied=[gap.scope for gap in result.gaps],
    )
    return result


async def _publish(publisher: Publisher, records: Sequence[Record]) -> None:
    async with publisher.transaction() as transaction:
        await transaction.send(records)


class _Encoder:
    """Makes the records of some grants; gaps and counts go into the result."""

    def __init__(
        self, spec: ConnectorSpec, settings: StreamSettings, origin: Origin, result: SnapshotResult
    ) -> None:
        self._spec = spec
        self._origin = origin
        self._result = result
        self._bytes_max = settings.kafka.max_record_bytes
        self._has_warned = False

    def __call__(self, batch: Sequence[Any]) -> Iterator[Record]:
        for item in batch:
            if isinstance(item, SnapshotGap):
                self._result.gaps.append(SnapshotGap(clean(item.scope), clean(item.reason)))
            elif isinstance(item, SnapshotScope):
                self._result.scopes_read.append(clean(item.scope))
            else:
                yield from self._records(item)

    def _records(self, item: Any) -> Iterator[Record]:
        """A grant, with its original where it had to be altered; or a dead letter."""
        part_bytes = self._bytes_max // 2
        try:
            record, altered = self._grant(item)
        except Malformed as error:
            if not self._result.dead_count:
                # Once: what the others lacked is in the dead letters.
                self._result.gaps.append(SnapshotGap(UNPUBLISHABLE, clean(str(error))))
            self._result.dead_count += 1
            yield from dead_event(self._origin, item, str(error), part_bytes).records
            return
        self._result.grant_count += 1
        yield record
        if altered is not None:
            yield from original(self._origin, item, altered, part_bytes).records

    def _grant(self, item: Any) -> tuple[Record, bytes | None]:
        if not isinstance(item, PermissionSnapshot):
            raise Malformed(
                f"the connector yielded a {type(item).__name__}, not a PermissionSnapshot"
            )
        declared = self._spec.declared_platform
        try:
            if not isinstance(item.platform, str) or not is_valid_name(item.platform):
                raise Malformed("platform can't be part of a topic's name")
            if declared is not None and item.platform != declared:
                raise Malformed(
                    f"the grant is of platform {item.platform!r}, and the connector of {declared!r}"
                )
            body, altered = grant_body(item, self._result.started_at)
            self._warn_of_naive_time(item.snapshot_at)
            record = snapshot_record(self._origin, self._result.snapshot_id, "grant", body, altered)
        except Malformed:
            raise
        except Exception as error:
            # It comes from a connector, and may be anything: it costs its record, not the rest.
            raise Malformed(
                f"the grant can't be written as JSON: {type(error).__name__}: {error}"
            ) from error
        size = len(record.value or b"")
        if size > self._bytes_max:
            raise Malformed(
                f"the grant is {size} bytes, more than the {self._bytes_max} of "
                "VERITY_KAFKA__MAX_RECORD_BYTES"
            )
        return record, altered

    def _warn_of_naive_time(self, at: datetime | None) -> None:
        if at is not None and at.tzinfo is None and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "snapshot.naive_time", connector_id=self._spec.connector_id, taken_as="UTC"
            )
