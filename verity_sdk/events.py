"""What a connector yields: an audit event, and a grant of a permission snapshot.

Authors import them from `verity_sdk` or `verity_sdk.connector_base`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass
class RawEvent:
    """One audit event, as the source reported it.

    Attributes:
        platform: The source platform, for example `azure_ad`; part of the topic's name.
        event_id: The source's own id, exactly as it gave it; repeats are recognised by it.
        occurred_at: When it happened; a naive value is taken as UTC.
        principal_ref: Who did it, in the source's terms.
        asset_ref: What it was done to, in the source's terms.
        operation: What was done, for example `SELECT`.
        raw_payload: The source's record, complete.
    """

    platform: str
    event_id: str
    occurred_at: datetime
    principal_ref: str
    asset_ref: str
    operation: str
    raw_payload: dict[str, Any] = field(default_factory=dict)


@dataclass
class PermissionSnapshot:
    """One grant, as it stood at one point in time.

    Attributes:
        platform: The source platform.
        principal_ref: Who holds the privilege, in the source's terms.
        asset_ref: On what, in the source's terms.
        privilege: What it allows, for example `READ`.
        grant_mechanism: How it is held: `direct`, `group`, `role`, `policy`, …
        granted_via: The group or role it is held through, if any.
        snapshot_at: When it was read; a naive value is taken as UTC.
        raw_payload: The source's record, complete.
    """

    platform: str
    principal_ref: str
    asset_ref: str
    privilege: str
    grant_mechanism: str
    granted_via: str | None = None
    snapshot_at: datetime | None = None
    raw_payload: dict[str, Any] = field(default_factory=dict)
