"""From the catalog rows of a SQL pool to permission records: SQL text and pure functions, no I/O.

sys.database_principals, sys.database_role_members, sys.database_permissions, sys.schemas,
sys.objects, sys.columns (MS Learn, Azure Synapse Analytics, read 2026-11-24). The queries were
not run against a server: docs/platforms/synapse.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from connectors.synapse import references as names
from connectors.synapse.settings import PLATFORM
from verity_sdk import references
from verity_sdk.connector_base import PermissionSnapshot
from verity_sdk.errors import Malformed

PRINCIPALS_SQL = (
    "SELECT principal_id, name, type, type_desc, authentication_type_desc,"
    " CONVERT(varchar(172), sid, 1) AS sid, owning_principal_id, is_fixed_role"
    " FROM sys.database_principals"
)
MEMBERS_SQL = "SELECT role_principal_id, member_principal_id FROM sys.database_role_members"
PERMISSIONS_SQL = (
    "SELECT p.class_desc, p.major_id, p.minor_id, p.grantee_principal_id, p.grantor_principal_id,"
    " p.permission_name, p.state_desc, s.name AS schema_name, o.name AS object_name,"
    " o.type_desc AS object_type, c.name AS column_name, r.name AS principal_name"
    " FROM sys.database_permissions AS p"
    " LEFT JOIN sys.objects AS o ON p.class_desc = 'OBJECT_OR_COLUMN' AND o.object_id = p.major_id"
    " LEFT JOIN sys.schemas AS s ON s.schema_id ="
    " CASE WHEN p.class_desc = 'SCHEMA' THEN p.major_id ELSE o.schema_id END"
    " LEFT JOIN sys.columns AS c ON p.class_desc = 'OBJECT_OR_COLUMN'"
    " AND c.object_id = p.major_id AND c.column_id = p.minor_id AND p.minor_id > 0"
    " LEFT JOIN sys.database_principals AS r"
    " ON p.class_desc = 'DATABASE_PRINCIPAL' AND r.principal_id = p.major_id"
    # What system objects grant to public is the same in every database.
    " WHERE p.major_id >= 0"
)
SCHEMAS_SQL = "SELECT name, principal_id FROM sys.schemas"

_ROLE_TYPES = frozenset("RA")
_EXTERNAL_USER, _EXTERNAL_GROUP = "E", "X"

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SqlCatalog:
    """What one database says of its principals and permissions; rows by column name."""

    principals: Sequence[Row]
    members: Sequence[Row]
    permissions: Sequence[Row]
    schemas: Sequence[Row]


def sql_records(
    catalog: SqlCatalog, *, workspace: str, database: str, snapshot_at: datetime
) -> Iterator[PermissionSnapshot]:
    """The grants, denials, memberships and owners of one database.

    Raises:
        Malformed: A row names a principal that the database does not list, or lacks a column; the
            catalog was changed while it was read, or is not what it was taken for.
    """
    known = {
        _value(row, "principal_id"): _principal(row, workspace, database)
        for row in catalog.principals
    }
    raw_of = {row["principal_id"]: dict(row) for row in catalog.principals}

    def record(
        principal_id: Any, asset: str, privilege: str, how: str, via: str | None, raw: Row
    ) -> PermissionSnapshot:
        return PermissionSnapshot(
            platform=PLATFORM,
            principal_ref=_known(known, principal_id),
            asset_ref=asset,
            privilege=privilege,
            grant_mechanism=how,
            granted_via=via,
            snapshot_at=snapshot_at,
            raw_payload={
                **raw,
                "plane": "sql",
                "database": database,
                "principal": raw_of[principal_id],
            },
        )

    for row in catalog.members:
        role = _known(known, _value(row, "role_principal_id"))
        member = _value(row, "member_principal_id")
        yield record(member, role, "MEMBER", "direct", None, row)
    for row in catalog.permissions:
        state, privilege = _text(row, "state_desc"), _text(row, "permission_name")
        yield record(
            _value(row, "grantee_principal_id"),
            _asset(row, known, workspace, database),
            # GRANT, GRANT_WITH_GRANT_OPTION, DENY, and REVOKE, which takes a column out of a
            # grant on its table. A state that is not known is shown, not taken for a grant.
            privilege if state.startswith("GRANT") else f"{state} {privilege}",
            "direct",
            known.get(row.get("grantor_principal_id")),
            row,
        )
    for row in catalog.schemas:
        asset = names.sql_object(workspace, database, _text(row, "name"), "")
        yield record(_value(row, "principal_id"), asset, "CONTROL", "owner", None, row)


def _principal(row: Row, workspace: str, database: str) -> str:
    name, kind = _text(row, "name"), _text(row, "type").strip()
    if kind in _ROLE_TYPES:
        return names.sql_role(workspace, database, name)
    if kind == _EXTERNAL_GROUP:
        return references.group(name)
    if kind == _EXTERNAL_USER and "@" not in name:
        # Applications and managed identities are created by their display name.
        return references.service_principal(name)
    if kind == _EXTERNAL_USER:
        return names.login(workspace, name)
    # A user of the database stands for a login that need not have its name.
    return names.below(workspace, database, f"user:{name}")


def _asset(row: Row, known: Mapping[Any, str], workspace: str, database: str) -> str:
    kind = _text(row, "class_desc")
    schema, thing = row.get("schema_name"), row.get("object_name")
    if kind == "DATABASE":
        return names.sql_object(workspace, database, "", "")
    if kind == "SCHEMA" and schema:
        return names.sql_object(workspace, database, schema, "")
    if kind == "OBJECT_OR_COLUMN" and schema and thing:
        asset = names.sql_object(workspace, database, schema, thing)
        return f"{asset}.{row['column_name']}" if row.get("column_name") else asset
    if kind == "DATABASE_PRINCIPAL" and row.get("major_id") in known:
        return known[row["major_id"]]
    return names.below(workspace, database, f"{kind}:{_value(row, 'major_id')}")


def _known(known: Mapping[Any, str], principal_id: Any) -> str:
    if principal_id not in known:
        raise Malformed(f"the database lists no principal {principal_id}")
    return known[principal_id]


def _value(row: Row, key: str) -> Any:
    if key not in row:
        raise Malformed(f"no column `{key}`")
    return row[key]


def _text(row: Row, key: str) -> str:
    value = _value(row, key)
    if not isinstance(value, str) or not value:
        raise Malformed(f"no text in column `{key}`")
    return value
