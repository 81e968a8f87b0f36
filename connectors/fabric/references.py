"""Names of what Fabric has: workspaces, items, principals; events and grants agree."""

from __future__ import annotations

ALL_TENANT_USERS = "all_tenant_users"
"""Everybody in the organisation."""


def workspace(workspace_id: str) -> str:
    """A workspace."""
    return f"workspace:{workspace_id}"


def item(workspace_id: str | None, item_id: str) -> str:
    """An item (report, semantic model, lakehouse, …).

    Its kind is not part of the name: event, scanner and admin API call the same item `Dataset`,
    `datasets` and `SemanticModel`, and the id alone is unique.
    """
    if not workspace_id:
        return f"item:{item_id}"
    return f"workspace:{workspace_id}/item:{item_id}"


def capacity(capacity_id: str) -> str:
    """A capacity."""
    return f"capacity:{capacity_id}"


def tenant(tenant_id: str) -> str:
    """The organisation as a whole."""
    return f"tenant:{tenant_id}"


def object_of(object_id: str) -> str:
    """What an event calls `ObjectId` and says nothing else about."""
    return f"object:{object_id}"


def profile(profile_id: str) -> str:
    """A service principal profile (Power BI Embedded)."""
    return f"sp_profile:{profile_id}"


def principal(principal_id: str) -> str:
    """A principal of a type that is not known here."""
    return f"principal:{principal_id}"
