"""Reading who may do what: the shared catalogs once, then each database in one transaction."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime
from importlib.resources import files

from connectors.postgres.grants import DATABASE_OWNER, Grants, Membership, closure
from connectors.postgres.server import VERSION_SQL, Server, Snapshot, check_version
from connectors.postgres.settings import Settings
from verity_sdk.connector_base import PermissionSnapshot
from verity_sdk.errors import Denied, Misconfigured, Unavailable
from verity_sdk.pages import SnapshotGap, SnapshotScope

INHERIT_BY_GRANT_VERSION = 160_000
SHARED_SCOPE = "server"
TIME_SQL = "SELECT pg_catalog.transaction_timestamp()"


def _sql(name: str) -> str:
    return (files(__package__) / "sql" / f"{name}.sql").read_text(encoding="utf-8")


async def read_permissions(
    server: Server, settings: Settings
) -> AsyncGenerator[PermissionSnapshot | SnapshotGap | SnapshotScope, None]:
    """Every grant, and after each part whether it was read completely.

    Each part (the shared one, each database) is read in one repeatable-read transaction, so it
    is consistent in itself; the parts are of slightly different times, which `snapshot_at` tells.

    Raises:
        Unavailable: The shared part could not be read.
        Denied: The server refused the login or a catalog.
        Misconfigured: It is too old.
    """
    name = settings.server_name
    async with server.snapshot() as shared:
        version = await shared.value(VERSION_SQL)
        check_version(version)
        grants = await _grants(shared, name)
        predefined: set[str] = set()
        async for row in shared.rows(_sql("roles")):
            if row["is_predefined"]:
                predefined.add(row["role"])
            for grant in grants.of_attributes(dict(row)):
                yield grant
        memberships = await _memberships(shared, version)
        for reach in closure(memberships):
            yield grants.of_reach(reach, is_predefined=reach.role in predefined)
        async for row in shared.rows(_sql("shared_grants")):
            yield grants.of_shared(dict(row))
        databases = [
            (row["database"], row["owner"])
            async for row in shared.rows(_sql("databases"))
            # Nobody can connect to the others, the owner included.
            if row["is_open"] and settings.is_wanted_database(row["database"])
        ]
    yield SnapshotScope(SHARED_SCOPE)
    for database, owner in databases:
        scope = f"database:{database}"
        try:
            async with server.snapshot(database) as snapshot:
                reading = _read_database(snapshot, name, database, owner, memberships)
                async with aclosing(reading) as grants_there:
                    async for grant in grants_there:
                        yield grant
        except (Denied, Unavailable, Misconfigured) as error:
            # One closed database must not hide the others.
            yield SnapshotGap(scope, str(error))
        else:
            yield SnapshotScope(scope)


async def _grants(snapshot: Snapshot, server: str) -> Grants:
    snapshot_at: datetime = await snapshot.value(TIME_SQL)
    return Grants(server, snapshot_at.astimezone(UTC))


async def _memberships(snapshot: Snapshot, version: int) -> list[Membership]:
    sql = _sql("memberships_16" if version >= INHERIT_BY_GRANT_VERSION else "memberships_15")
    return [
        Membership(
            member=row["member"],
            role=row["role"],
            grantor=row["grantor"],
            has_admin=row["admin_option"],
            is_inherited=row["inherit_option"],
            may_set=row["set_option"],
        )
        async for row in snapshot.rows(sql)
    ]


async def _read_database(
    snapshot: Snapshot,
    server: str,
    database: str,
    owner: str | None,
    memberships: list[Membership],
) -> AsyncGenerator[PermissionSnapshot, None]:
    grants = await _grants(snapshot, server)
    if owner is not None:
        implicit = Membership(
            owner, DATABASE_OWNER, None, has_admin=False, is_inherited=True, may_set=True
        )
        for reach in closure([*memberships, implicit]):
            if reach.role == DATABASE_OWNER:
                yield grants.of_database_owner(reach, database)
    async for row in snapshot.rows(_sql("object_grants")):
        yield grants.of_object(dict(row), database)
    async for row in snapshot.rows(_sql("default_privileges")):
        yield grants.of_default(dict(row), database)
    async for row in snapshot.rows(_sql("policies")):
        yield grants.of_policy(dict(row), database)
