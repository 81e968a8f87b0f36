"""The Connector SDK: what the author of a connector needs, and nothing of Kafka or Faust."""

from verity_sdk.connector_base import BaseConnector, PermissionSnapshot, RawEvent
from verity_sdk.errors import (
    Denied,
    Fenced,
    Malformed,
    Misconfigured,
    Unavailable,
    VerityError,
)
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
from verity_sdk.settings import Duration
from verity_sdk.times import as_utc, format_utc, parse_utc

__all__ = [
    "BaseConnector",
    "Cursor",
    "Denied",
    "Duration",
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
    "VerityError",
    "as_utc",
    "format_utc",
    "parse_utc",
]
