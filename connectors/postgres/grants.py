"""From catalog rows to grants: pure functions, no I/O.

The vocabulary is PostgreSQL's own. Privileges on objects are those of GRANT (`SELECT`,
`EXECUTE`, `MAINTAIN`, …), on a role those of pg_has_role (`USAGE`, `SET`, `MEMBER`) and
`ADMIN`, on the server the attributes of a role (`SUPERUSER`, `BYPASSRLS`, …).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from connectors.postgres.references import asset_ref, public_ref, role_ref
from connectors.postgres.settings import PLATFORM
from verity_sdk.connector_base import PermissionSnapshot

# Its only member is, implicitly, the owner of the database one is connected to
# (documentation of PostgreSQL 18, "Predefined Roles", read 2026-11-24).
DATABASE_OWNER = "pg_database_owner"

ATTRIBUTES: Mapping[str, str] = {
    "rolsuper": "SUPERUSER",
    "rolbypassrls": "BYPASSRLS",
    "rolcreaterole": "CREATEROLE",
    "rolcreatedb": "CREATEDB",
    "rolreplication": "REPLICATION",
    "rolcanlogin": "LOGIN",
}

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Membership:
    """One grant of a role to a role."""

    member: str
    role: str
    grantor: str | None
    has_admin: bool
    is_inherited: bool
    may_set: bool


@dataclass(frozen=True, slots=True)
class Reach:
    """A role that a member has through memberships, in one of the ways of having it.

    Attributes:
        member: Who.
        role: What.
        privilege: `USAGE`: its privileges count as the member's own. `SET`: the member may
            SET ROLE to it. `ADMIN`: the member may grant it. `MEMBER`: none of these.
        path: The roles from member to role, both included.
        grantor: Of a direct membership, who granted it.
    """

    member: str
    role: str
    privilege: str
    path: tuple[str, ...]
    grantor: str | None = None


def closure(memberships: Iterable[Membership]) -> Iterator[Reach]:
    """Everything that memberships lead to, over any number of steps.

    A step counts for `USAGE` only if it is inherited and for `SET` only if it may be set to;
    `ADMIN` needs the option on the last step and any membership before it. So NOINHERIT or
    INHERIT FALSE anywhere on the way ends `USAGE` there. Each way comes with a shortest path.
    """
    edges = list(memberships)
    by_member: dict[str, list[Membership]] = {}
    for edge in edges:
        by_member.setdefault(edge.member, []).append(edge)
    for member in sorted(by_member):
        anyhow = _paths(member, by_member, lambda edge: True)
        found: dict[str, dict[str, tuple[str, ...]]] = {
            "USAGE": _paths(member, by_member, lambda edge: edge.is_inherited),
            "SET": _paths(member, by_member, lambda edge: edge.may_set),
            "ADMIN": _admin_paths(member, by_member, anyhow),
        }
        for role in sorted(anyhow):
            ways = [(way, paths[role]) for way, paths in found.items() if role in paths]
            for way, path in ways or [("MEMBER", anyhow[role])]:
                yield Reach(member, role, way, path, _grantor(path, by_member))


def _paths(
    start: str,
    by_member: Mapping[str, list[Membership]],
    is_open: Callable[[Membership], bool],
) -> dict[str, tuple[str, ...]]:
    """A shortest path to every role that open steps lead to, the start left out."""
    paths: dict[str, tuple[str, ...]] = {start: (start,)}
    queue = deque([start])
    while queue:
        here = queue.popleft()
        for edge in by_member.get(here, ()):
            if is_open(edge) and edge.role not in paths:
                paths[edge.role] = (*paths[here], edge.role)
                queue.append(edge.role)
    del paths[start]
    return paths


def _admin_paths(
    member: str,
    by_member: Mapping[str, list[Membership]],
    anyhow: Mapping[str, tuple[str, ...]],
) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for path in sorted([(member,), *anyhow.values()], key=len):
        for edge in by_member.get(path[-1], ()):
            if edge.has_admin and edge.role != member:
                found.setdefault(edge.role, (*path, edge.role))
    return found


def _grantor(path: tuple[str, ...], by_member: Mapping[str, list[Membership]]) -> str | None:
    if len(path) != 2:
        return None
    return next((edge.grantor for edge in by_member[path[0]] if edge.role == path[1]), None)


@dataclass(frozen=True, slots=True)
class Grants:
    """Makes the grants of one server, as they stood at one time.

    Attributes:
        server: The server's name in references.
        snapshot_at: The start of the transaction that the rows come from.
    """

    server: str
    snapshot_at: datetime

    def of_attributes(self, row: Row) -> Iterator[PermissionSnapshot]:
        """What a role may do by its attributes, on the server."""
        for column, privilege in ATTRIBUTES.items():
            if row[column]:
                yield self._grant(
                    role_ref(self.server, row["role"]),
                    f"pg:{self.server}",
                    privilege,
                    "direct",
                    None,
                    {"part": "attribute", **row},
                )

    def of_reach(self, reach: Reach, *, is_predefined: bool) -> PermissionSnapshot:
        """A role held through memberships."""
        is_direct = len(reach.path) == 2
        return self._grant(
            role_ref(self.server, reach.member),
            role_ref(self.server, reach.role),
            reach.privilege,
            "direct" if is_direct else "role",
            reach.grantor if is_direct else " > ".join(reach.path[1:-1]),
            {
                "part": "membership",
                "path": list(reach.path),
                "grantor": reach.grantor,
                "is_predefined": is_predefined,
            },
        )

    def of_database_owner(self, reach: Reach, database: str) -> PermissionSnapshot:
        """`pg_database_owner`, held by the owner of one database there."""
        return self._grant(
            role_ref(self.server, reach.member),
            # Another role in every database, so not the reference of a role of the server.
            f"pg:{self.server}/{database}/role:{reach.role}",
            reach.privilege,
            "owner" if len(reach.path) == 2 else "role",
            " > ".join(reach.path[1:-1]) or f"owner of database {database}",
            {"part": "database_owner", "path": list(reach.path), "database": database},
        )

    def of_shared(self, row: Row) -> PermissionSnapshot:
        """A grant on a database, a tablespace or a parameter."""
        if row["kind"] == "DATABASE":
            asset = asset_ref(self.server, row["name"], None, None)
        else:
            asset = asset_ref(self.server, None, row["kind"], row["printed_name"])
        return self._acl(asset, row, {"part": "grant"})

    def of_object(self, row: Row, database: str) -> PermissionSnapshot:
        """A grant on an object of a database."""
        asset = asset_ref(self.server, database, row["kind"], row["printed_name"])
        return self._acl(asset, row, {"part": "grant", "database": database})

    def of_default(self, row: Row, database: str) -> PermissionSnapshot:
        """A grant that objects to come will carry."""
        where = row["printed_schema"] or "*"
        asset = asset_ref(self.server, database, "DEFAULT PRIVILEGES", f"{where}.{row['kind']}")
        return self._acl(asset, row, {"part": "default_privilege", "database": database})

    def of_policy(self, row: Row, database: str) -> PermissionSnapshot:
        """A policy of row-level security; it narrows or widens grants, it is none by itself."""
        return self._grant(
            self._principal(row["grantee"]),
            asset_ref(self.server, database, "TABLE", row["printed_name"]),
            row["privilege"],
            "policy",
            row["policy"],
            {"part": "policy", "database": database, **row},
        )

    def _acl(self, asset: str, row: Row, about: Mapping[str, Any]) -> PermissionSnapshot:
        return self._grant(
            self._principal(row["grantee"]),
            asset,
            row["privilege"],
            row["mechanism"],
            row["grantor"],
            {**about, **row},
        )

    def _principal(self, role: str | None) -> str:
        return public_ref(self.server) if role is None else role_ref(self.server, role)

    def _grant(
        self,
        principal: str,
        asset: str,
        privilege: str,
        mechanism: str,
        via: str | None,
        raw: dict[str, Any],
    ) -> PermissionSnapshot:
        return PermissionSnapshot(
            platform=PLATFORM,
            principal_ref=principal,
            asset_ref=asset,
            privilege=privilege,
            grant_mechanism=mechanism,
            granted_via=via,
            snapshot_at=self.snapshot_at,
            raw_payload=raw,
        )
