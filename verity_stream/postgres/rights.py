"""Which rights the database role of workers and of `verity` needs: asked for before work begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

RIGHTS: Mapping[str, Sequence[str]] = {
    "verity_migrations": ("SELECT",),
    "verity_id_key": ("SELECT", "INSERT", "UPDATE"),
    "connector_checkpoints": ("SELECT", "INSERT", "UPDATE"),
    "connector_controls": ("SELECT", "INSERT", "UPDATE"),
    "connector_snapshots": ("SELECT", "INSERT", "UPDATE"),
    "connector_status": ("SELECT", "INSERT", "UPDATE"),
    # A trigger keeps the last 20 errors, as the role that reports them.
    "connector_errors": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "connector_audit": ("SELECT", "INSERT"),
}
"""What is needed of each table once the migrations are applied; none of it changes a table."""


def grants(role: str) -> list[str]:
    """The statements with which the tables' owner gives a role all it needs.

    Args:
        role: As it stands in SQL, quoted where it must be.
    """
    return [f"GRANT {', '.join(rights)} ON {table} TO {role}" for table, rights in RIGHTS.items()]


async def missing_rights(connection: Any) -> list[str]:
    """What the role lacks on tables that are there, each as `SELECT ON connector_status`."""
    needed = [(table, right) for table, rights in RIGHTS.items() for right in rights]
    rows = await connection.fetch(
        "SELECT tab, needed FROM unnest($1::text[], $2::text[]) AS place (tab, needed) "
        "WHERE NOT has_table_privilege(to_regclass(tab), needed)",
        [table for table, _ in needed],
        [right for _, right in needed],
    )
    return [f"{row['needed']} ON {row['tab']}" for row in rows]


async def may_migrate(connection: Any) -> bool:
    """Whether the role may create tables here, and owns those that migrations change."""
    may: bool = await connection.fetchval(
        """
        SELECT coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) AND NOT EXISTS (
            SELECT FROM unnest($1::text[]) AS place (tab)
            JOIN pg_class c ON c.oid = to_regclass(tab)
            WHERE NOT pg_has_role(c.relowner, 'USAGE'))
        """,
        list(RIGHTS),
    )
    return may
