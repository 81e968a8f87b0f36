"""One snapshot: what is asked, in which order, and what becomes of a part that is refused."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from connectors.databricks.api import RestApi
from connectors.databricks.grants import VIEWS, Grants, View
from connectors.databricks.groups import Directory
from connectors.databricks.references import Workspace
from connectors.databricks.settings import Settings
from connectors.databricks.statements import Statement
from connectors.databricks.warehouse import Warehouse
from verity_sdk.concurrently import in_order
from verity_sdk.connector_base import PermissionSnapshot
from verity_sdk.errors import Denied, Malformed, Misconfigured, Unavailable
from verity_sdk.http import encoded
from verity_sdk.pages import SnapshotGap, SnapshotScope

Found: TypeAlias = PermissionSnapshot | SnapshotGap | SnapshotScope

GROUPS_SCOPE = "groups"
SCIM = "/api/2.0/preview/scim/v2"
CATALOG_API = "/api/2.1/unity-catalog"
# A warehouse that has failed so often within a snapshot is not asked again: each try may take
# statement_timeout.
FAILURES_MAX = 2
PART_LOST = (Denied, Unavailable, Misconfigured)


@dataclass(frozen=True, slots=True)
class ObjectListing:
    """How workspace objects of a kind are listed.

    Attributes:
        key: Under which the items stand.
        id_key: Which of an item's keys is its id.
    """

    path: str
    key: str
    id_key: str
    page_parameter: str = "page_token"


# databricks-sdk 0.162, service/{compute,jobs,pipelines,workspace,serving,sql}.py, read 2026-11.
OBJECTS = {
    "clusters": ObjectListing("/api/2.1/clusters/list", "clusters", "cluster_id"),
    "cluster-policies": ObjectListing("/api/2.0/policies/clusters/list", "policies", "policy_id"),
    "instance-pools": ObjectListing(
        "/api/2.0/instance-pools/list", "instance_pools", "instance_pool_id"
    ),
    "jobs": ObjectListing("/api/2.2/jobs/list", "jobs", "job_id"),
    "pipelines": ObjectListing("/api/2.0/pipelines", "statuses", "pipeline_id"),
    "repos": ObjectListing("/api/2.0/repos", "repos", "id", "next_page_token"),
    "serving-endpoints": ObjectListing("/api/2.0/serving-endpoints", "endpoints", "id"),
    "warehouses": ObjectListing("/api/2.0/sql/warehouses", "warehouses", "id"),
}


@dataclass(frozen=True, slots=True)
class Securable:
    """An object of Unity Catalog, as a listing names it."""

    kind: str
    full_name: str
    owner: str | None = None


async def read_permissions(
    settings: Settings,
    api: RestApi,
    warehouse: Warehouse,
    workspace: Workspace,
    snapshot_at: datetime,
) -> AsyncGenerator[Found, None]:
    """Every grant there is: memberships, then Unity Catalog, then the workspace's objects.

    A part that is refused or lost is a `SnapshotGap`, and the others are read all the same.
    """
    directory = Directory()
    gap: SnapshotGap | None = None
    try:
        directory = await _directory(api)
    except PART_LOST as error:
        gap = SnapshotGap(GROUPS_SCOPE, str(error))
    grants = Grants(workspace, directory, snapshot_at, settings.expand_groups_up_to)
    for grant in grants.of_memberships():
        yield grant
    yield gap or SnapshotScope(GROUPS_SCOPE)

    parts: list[AsyncGenerator[Found, None]] = []
    if settings.snapshot_source == "information_schema":
        parts.append(_views(settings, warehouse, grants))
    else:
        parts.append(_securables(settings, api, grants))
    parts.extend(_acls(settings, api, grants, kind) for kind in settings.workspace_objects)
    for part in parts:
        async with aclosing(part) as found:
            async for one in found:
                yield one


async def _directory(api: RestApi) -> Directory:
    users = [one async for one in api.scim(f"{SCIM}/Users", "id,userName")]
    principals = [one async for one in api.scim(f"{SCIM}/ServicePrincipals", "id,applicationId")]
    groups = [one async for one in api.scim(f"{SCIM}/Groups", "id,displayName,members")]
    return Directory.of(users, principals, groups)


async def _views(
    settings: Settings, warehouse: Warehouse, grants: Grants
) -> AsyncGenerator[Found, None]:
    failures = 0
    for name in [*settings.privilege_views, *settings.owner_views]:
        view = VIEWS[name]
        scope = f"information_schema.{name}"
        if failures >= FAILURES_MAX:
            yield SnapshotGap(scope, "not asked: the warehouse did not answer before")
            continue
        async with aclosing(_view(warehouse, grants, view, scope)) as found:
            async for one in found:
                if isinstance(one, _Lost):
                    failures += 1
                    yield SnapshotGap(scope, one.reason)
                else:
                    yield one


@dataclass(frozen=True, slots=True)
class _Lost:
    """A part that was lost because the warehouse did not answer."""

    reason: str


async def _view(
    warehouse: Warehouse, grants: Grants, view: View, scope: str
) -> AsyncGenerator[Found | _Lost, None]:
    malformed: str | None = None
    try:
        async with aclosing(warehouse.rows(Statement(view.sql, view.table))) as chunks:
            async for columns, rows in chunks:
                missing = set(view.columns) - set(columns)
                if missing:
                    raise Unavailable(f"{view.table} has no column {', '.join(sorted(missing))}")
                for row in rows:
                    try:
                        for grant in grants.of_row(view, columns, row):
                            yield grant
                    except Malformed as error:
                        malformed = str(error)
    except Unavailable as error:
        yield _Lost(str(error))
    except (Denied, Misconfigured) as error:
        yield SnapshotGap(scope, str(error))
    else:
        yield _end(scope, malformed)


def _end(scope: str, malformed: str | None) -> SnapshotGap | SnapshotScope:
    """The end of a part: what was not understood is missing from it."""
    if malformed is not None:
        return SnapshotGap(scope, f"not all was understood: {malformed}")
    return SnapshotScope(scope)


async def _securables(
    settings: Settings, api: RestApi, grants: Grants
) -> AsyncGenerator[Found, None]:
    """Unity Catalog by REST: the metastore and what hangs on it, then catalog by catalog."""
    metastore_id = grants.workspace.metastore_id
    async with aclosing(
        _scope(settings, api, grants, "metastore", _metastore(api, metastore_id))
    ) as found:
        async for one in found:
            yield one
    for kind, path in (
        ("external_location", "external-locations"),
        ("storage_credential", "storage-credentials"),
        ("connection", "connections"),
    ):
        listed = _listed(api, kind, f"{CATALOG_API}/{path}", path.replace("-", "_"))
        async with aclosing(_scope(settings, api, grants, f"{kind}s", listed)) as found:
            async for one in found:
                yield one
    catalogs: list[Securable] = []
    try:
        async for item in _listed(api, "catalog", f"{CATALOG_API}/catalogs", "catalogs"):
            if isinstance(item, SnapshotGap):
                yield item
            else:
                catalogs.append(item)
    except PART_LOST as error:
        yield SnapshotGap("catalogs", str(error))
        return
    for catalog in catalogs:
        inside = _catalog(api, catalog)
        scope = f"catalog:{catalog.full_name}"
        async with aclosing(_scope(settings, api, grants, scope, inside)) as found:
            async for one_found in found:
                yield one_found
    yield SnapshotScope("catalogs")


async def _scope(
    settings: Settings,
    api: RestApi,
    grants: Grants,
    scope: str,
    securables: AsyncGenerator[Securable | SnapshotGap, None],
) -> AsyncGenerator[Found, None]:
    """The grants on some securables; the scope is complete only if none of them was lost."""

    async def work(one: Securable | SnapshotGap) -> list[Found]:
        if isinstance(one, SnapshotGap):
            return [one]
        return await _on_securable(api, grants, one)

    is_whole = True
    try:
        async with (
            aclosing(securables),
            aclosing(in_order(securables, work, settings.snapshot_concurrency)) as results,
        ):
            async for found in results:
                for each in found:
                    is_whole = is_whole and not isinstance(each, SnapshotGap)
                    yield each
    except PART_LOST as error:
        yield SnapshotGap(scope, str(error))
        return
    if is_whole:
        yield SnapshotScope(scope)


async def _on_securable(api: RestApi, grants: Grants, one: Securable) -> list[Found]:
    """The grants on one securable, inherited ones included, or the gap that it leaves."""
    scope = f"{one.kind}:{one.full_name}"
    found: list[Found] = []
    path = f"{CATALOG_API}/effective-permissions/{one.kind}/{encoded(one.full_name)}"
    try:
        # 0: the server's page size; pages may be empty (databricks-sdk, GrantsAPI.get_effective).
        async for assignment in api.listing(path, "privilege_assignments", {"max_results": "0"}):
            found.extend(grants.of_assignment(one.kind, one.full_name, assignment))
    except PART_LOST as error:
        return [SnapshotGap(scope, str(error))]
    except Malformed as error:
        found.append(SnapshotGap(scope, f"not all was understood: {error}"))
    if one.owner:
        found.extend(grants.of_owner(one.kind, one.full_name, one.owner))
    return found


async def _metastore(
    api: RestApi, metastore_id: str
) -> AsyncGenerator[Securable | SnapshotGap, None]:
    summary = await api.object(f"{CATALOG_API}/metastore_summary")
    owner = summary.get("owner")
    yield Securable("metastore", metastore_id, owner if isinstance(owner, str) else None)


async def _listed(
    api: RestApi, kind: str, path: str, key: str, params: dict[str, str] | None = None
) -> AsyncGenerator[Securable | SnapshotGap, None]:
    """The securables of one listing."""
    async for item in api.listing(path, key, {"max_results": "0", **(params or {})}):
        name = item.get("full_name") or item.get("name")
        owner = item.get("owner")
        if not isinstance(name, str):
            yield SnapshotGap(f"{kind}s", f"GET {path}: an item has no name")
        else:
            yield Securable(kind, name, owner if isinstance(owner, str) else None)


async def _catalog(
    api: RestApi, catalog: Securable
) -> AsyncGenerator[Securable | SnapshotGap, None]:
    """A catalog, its schemas, and what is in them; a listing that is refused leaves a gap."""
    yield catalog
    schemas: list[Securable] = []
    listed = _listed(
        api,
        "schema",
        f"{CATALOG_API}/schemas",
        "schemas",
        {"catalog_name": catalog.full_name},
    )
    async for one in _or_gap(listed, f"catalog:{catalog.full_name}/schemas"):
        # Every catalog has this one, read by all who may use the catalog; it holds no data.
        if isinstance(one, Securable) and one.full_name.endswith(".information_schema"):
            continue
        if isinstance(one, Securable):
            schemas.append(one)
        yield one
    for schema in schemas:
        parent = {
            "catalog_name": catalog.full_name,
            "schema_name": schema.full_name.removeprefix(f"{catalog.full_name}."),
        }
        for kind, key, more in (
            ("table", "tables", {"omit_columns": "true", "omit_properties": "true"}),
            ("volume", "volumes", {}),
            ("function", "functions", {}),
        ):
            listed = _listed(api, kind, f"{CATALOG_API}/{key}", key, {**parent, **more})
            async for one in _or_gap(listed, f"schema:{schema.full_name}/{key}"):
                yield one


async def _or_gap(
    securables: AsyncGenerator[Securable | SnapshotGap, None], scope: str
) -> AsyncIterator[Securable | SnapshotGap]:
    try:
        async with aclosing(securables):
            async for one in securables:
                yield one
    except PART_LOST as error:
        yield SnapshotGap(scope, str(error))


async def _acls(
    settings: Settings, api: RestApi, grants: Grants, kind: str
) -> AsyncGenerator[Found, None]:
    """The access control lists of all workspace objects of a kind."""
    listing = OBJECTS[kind]
    scope = f"permissions/{kind}"

    async def work(object_id: str) -> list[Found]:
        return await _on_object(api, grants, kind, object_id)

    is_whole = True
    try:
        async with (
            aclosing(_object_ids(api, listing)) as ids,
            aclosing(in_order(ids, work, settings.snapshot_concurrency)) as results,
        ):
            async for found in results:
                for each in found:
                    is_whole = is_whole and not isinstance(each, SnapshotGap)
                    yield each
    except PART_LOST as error:
        yield SnapshotGap(scope, str(error))
        return
    if is_whole:
        yield SnapshotScope(scope)


async def _object_ids(api: RestApi, listing: ObjectListing) -> AsyncGenerator[str, None]:
    items = api.listing(listing.path, listing.key, page_parameter=listing.page_parameter)
    async with aclosing(items):
        async for item in items:
            object_id = item.get(listing.id_key)
            if not isinstance(object_id, str | int):
                raise Unavailable(f"GET {listing.path}: an item has no `{listing.id_key}`")
            yield str(object_id)


async def _on_object(api: RestApi, grants: Grants, kind: str, object_id: str) -> list[Found]:
    scope = f"{kind}:{object_id}"
    try:
        answer = await api.object(f"/api/2.0/permissions/{kind}/{encoded(object_id)}")
    except PART_LOST as error:
        return [SnapshotGap(scope, str(error))]
    return list(
        _each(
            answer.get("access_control_list") or (),
            lambda entry: grants.of_acl_entry(kind, object_id, entry),
            scope,
        )
    )


def _each(
    entries: Iterable[Any], grants_of: Callable[[Any], Iterator[PermissionSnapshot]], scope: str
) -> Iterator[Found]:
    malformed: str | None = None
    for entry in entries:
        try:
            yield from grants_of(entry)
        except Malformed as error:
            malformed = str(error)
    if malformed is not None:
        yield SnapshotGap(scope, f"not all was understood: {malformed}")
