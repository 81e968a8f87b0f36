"""Permissions: the records of a snapshot, between a start and an end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

import orjson

from verity_sdk.connector_base import PermissionSnapshot
from verity_sdk.pages import SnapshotGap
from verity_sdk.times import as_utc, format_utc
from verity_sdk.values import altered_header, publishable
from verity_stream.records.record import Origin, Record, decoding, permissions_topic, read_time

_TEXTS = ("principal_ref", "asset_ref", "privilege", "grant_mechanism")


@dataclass(frozen=True, slots=True)
class SnapshotStart:
    """A connector begins to read who may do what; its grants follow, then the end."""

    snapshot_id: str
    connector_id: str
    platform: str
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Grant:
    """One grant of a snapshot."""

    snapshot_id: str
    snapshot: PermissionSnapshot


@dataclass(frozen=True, slots=True)
class SnapshotEnd:
    """A snapshot is over.

    Attributes:
        is_complete: Whether a grant that was absent was really not there. A revocation may be
            read out of a complete snapshot only.
        grant_count: How many grants belong to it.
        dead_count: How many could not be published.
        scopes_tried: What was read, or should have been.
        scopes_denied: What could not be read: scope → reason.
    """

    snapshot_id: str
    connector_id: str
    platform: str
    started_at: datetime
    ended_at: datetime
    is_complete: bool
    grant_count: int
    dead_count: int
    scopes_tried: tuple[str, ...]
    scopes_denied: Mapping[str, str]


PermissionRecord: TypeAlias = SnapshotStart | Grant | SnapshotEnd


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


def snapshot_record(
    origin: Origin,
    snapshot_id: str,
    kind: str,
    body: dict[str, Any],
    altered: bytes | None = None,
) -> Record:
    """A record of a permission snapshot.

    All records of a connector's snapshots share one key and so one partition: start, grants
    and end stand in that order for every consumer.

    Args:
        altered: The header of that name, if it has one.
    """
    headers = [
        *origin.headers("permission/1"),
        ("snapshot_id", snapshot_id.encode()),
        ("record", kind.encode()),
    ]
    if altered is not None:
        headers.append(("altered", altered))
    value = orjson.dumps({"record": kind, "snapshot_id": snapshot_id, **body})
    return Record(permissions_topic(origin.platform), origin.connector_id.encode(), value, headers)


def start_record(origin: Origin, result: SnapshotResult) -> Record:
    """The record before a snapshot's first grant."""
    return snapshot_record(origin, result.snapshot_id, "start", _about(origin, result))


def end_record(origin: Origin, result: SnapshotResult, ended_at: datetime) -> Record:
    """The record after a snapshot's last grant, which says what it is worth."""
    body = _about(origin, result) | {
        "ended_at": format_utc(ended_at),
        "is_complete": result.is_complete,
        "grant_count": result.grant_count,
        "dead_count": result.dead_count,
        "scopes_tried": result.scopes_tried,
        "scopes_denied": [{"scope": gap.scope, "reason": gap.reason} for gap in result.gaps],
    }
    return snapshot_record(origin, result.snapshot_id, "end", body)


def _about(origin: Origin, result: SnapshotResult) -> dict[str, Any]:
    return {
        "connector_id": origin.connector_id,
        "platform": origin.platform,
        "started_at": format_utc(result.started_at),
    }


def grant_body(
    grant: PermissionSnapshot, snapshot_at: datetime
) -> tuple[dict[str, Any], bytes | None]:
    """The fields of a grant as JSON values, and the header `altered` where some had to be.

    Raises:
        Malformed: It does not say who holds what on what, or its time is none.
    """
    at = snapshot_at if grant.snapshot_at is None else as_utc(grant.snapshot_at)
    fields, pointers = publishable(grant, _TEXTS, ("granted_via",))
    body = {"platform": grant.platform, "snapshot_at": format_utc(at), **fields}
    return body, altered_header(pointers) if pointers else None


def decode_permission(value: bytes) -> PermissionRecord:
    """Read a record of a permissions topic.

    Raises:
        Malformed: It is none.
    """
    with decoding("a permission record"):
        body = orjson.loads(value)
        kind, snapshot_id = body["record"], body["snapshot_id"]
        if kind == "grant":
            snapshot = PermissionSnapshot(
                body["platform"],
                body["principal_ref"],
                body["asset_ref"],
                body["privilege"],
                body["grant_mechanism"],
                body["granted_via"],
                read_time(body["snapshot_at"]),
                body["raw_payload"],
            )
            return Grant(snapshot_id, snapshot)
        about = snapshot_id, body["connector_id"], body["platform"], read_time(body["started_at"])
        if kind == "start":
            return SnapshotStart(*about)
        if kind != "end":
            raise ValueError(f"`record` is {kind!r}")
        return SnapshotEnd(
            *about,
            read_time(body["ended_at"]),
            body["is_complete"],
            body["grant_count"],
            body["dead_count"],
            tuple(body["scopes_tried"]),
            {denied["scope"]: denied["reason"] for denied in body["scopes_denied"]},
        )
