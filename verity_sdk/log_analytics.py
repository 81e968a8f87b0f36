"""Deprecated, for one release: Log Analytics is Azure's, and `connectors._azure` has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from verity_sdk.deprecation import moved

_NAMES = """
ANSWER_BYTES_MAX API_URL IngestedRow IngestedRows LAG_MAX LogAnalytics QUERIES QUERIES_AT_ONCE
QUERIES_PER RANGE_AFTER RANGE_BEFORE ROLE ROWS_MAX ResourceId Rows SCOPE WAIT_MAX WorkspaceId
canonical_time checked_guid checked_resource_id in_time_of_events ingested_row numbered parsed
patient query_budget rows_of
"""

if not TYPE_CHECKING:
    # Above this package, so only by name, and only when it is asked for.
    __getattr__ = moved(
        __name__, {name: f"connectors._azure.log_analytics.{name}" for name in _NAMES.split()}
    )
