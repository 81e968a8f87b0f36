"""What an author of connectors needs; it imports no Faust, no Kafka and no Postgres."""

from verity_sdk.connector_base import BaseConnector, PermissionSnapshot, RawEvent
from verity_sdk.context import Context
from verity_sdk.errors import Denied, Fenced, Malformed, Misconfigured, Unavailable
from verity_sdk.pages import (
    Cursor,
    Gap,
    Page,
    PagedConnector,
    Position,
    RejectedRecord,
    SnapshotGap,
    SnapshotScope,
)
from verity_sdk.times import format_utc, parse_utc

__all__ = [
    "BaseConnector",
    "Context",
    "Cursor",
    "Denied",
    "Fenced",
    "Gap",
    "Malformed",
    "Misconfigured",
    "Page",
    "PagedConnector",
    "PermissionSnapshot",
    "Position",
    "RawEvent",
    "RejectedRecord",
    "SnapshotGap",
    "SnapshotScope",
    "Unavailable",
    "format_utc",
    "parse_utc",
]
