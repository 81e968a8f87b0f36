"""From what the APIs say of permissions to grants: pure functions, no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from connectors.databricks.groups import Directory
from connectors.databricks.references import Workspace, object_ref, recipient_ref, securable_ref
from connectors.databricks.settings import PLATFORM
from verity_sdk.connector_base import PermissionSnapshot
from verity_sdk.errors import Malformed
from verity_sdk.references import ALIAS, account, group, service_principal, user

OWNER = "OWNER"
MEMBER = "MEMBER"

# INHERITED_FROM of a grant on the object itself. The documentation has null for it; rows have NONE.
_NOT_INHERITED = frozenset({"", "NONE"})


@dataclass(frozen=True, slots=True)
class View:
    """A view of `system.information_schema` that says who holds what.

    Attributes:
        kind: The kind of securable.
        name_columns: The columns that make up its full name.
        principal_column: Who.
        privilege_column: What; None where the principal is the owner.
        is_of_recipients: Whether principals are recipients of Delta Sharing.
    """

    name: str
    kind: str
    name_columns: tuple[str, ...]
    principal_column: str = "grantee"
    privilege_column: str | None = "privilege_type"
    is_of_recipients: bool = False

    @property
    def sql(self) -> str:
        """The statement that reads it; grants with all columns, owners without the objects'."""
        what = (
            "*" if self.privilege_column else ", ".join([*self.name_columns, self.principal_column])
        )
        return f"SELECT {what} FROM {self.table}"  # noqa: S608 - from the table below only

    @property
    def table(self) -> str:
        """Its full name."""
        return f"system.information_schema.{self.name}"

    @property
    def columns(self) -> tuple[str, ...]:
        """What a row of it has to have."""
        privilege = (self.privilege_column,) if self.privilege_column else ()
        return (*self.name_columns, self.principal_column, *privilege)


def _owners(name: str, kind: str, names: tuple[str, ...], owner: str) -> View:
    return View(name, kind, names, owner, None)


# docs.databricks.com/sql/language-manual/information-schema/*, read 2026-11.
VIEWS = {
    view.name: view
    for view in (
        View("metastore_privileges", "metastore", ("metastore_id",)),
        View("catalog_privileges", "catalog", ("catalog_name",)),
        View("schema_privileges", "schema", ("catalog_name", "schema_name")),
        View("table_privileges", "table", ("table_catalog", "table_schema", "table_name")),
        View("volume_privileges", "volume", ("volume_catalog", "volume_schema", "volume_name")),
        # Not ROUTINE_SCHEMA: the documentation spells that column ROUTNE_SCHEMA.
        View(
            "routine_privileges",
            "function",
            ("specific_catalog", "specific_schema", "specific_name"),
        ),
        View("external_location_privileges", "external_location", ("external_location_name",)),
        View("storage_credential_privileges", "storage_credential", ("storage_credential_name",)),
        View("connection_privileges", "connection", ("connection_name",)),
        View(
            "share_recipient_privileges",
            "share",
            ("share_name",),
            "recipient_name",
            is_of_recipients=True,
        ),
        # UNCONFIRMED for each runtime: that the owner's column is there. A view without it is a
        # gap of the snapshot, and `owner_views` takes it out.
        _owners("metastores", "metastore", ("metastore_id",), "metastore_owner"),
        _owners("catalogs", "catalog", ("catalog_name",), "catalog_owner"),
        _owners("schemata", "schema", ("catalog_name", "schema_name"), "schema_owner"),
        _owners("tables", "table", ("table_catalog", "table_schema", "table_name"), "table_owner"),
        _owners(
            "volumes", "volume", ("volume_catalog", "volume_schema", "volume_name"), "volume_owner"
        ),
        _owners(
            "routines",
            "function",
            ("specific_catalog", "specific_schema", "specific_name"),
            "routine_owner",
        ),
        _owners(
            "external_locations",
            "external_location",
            ("external_location_name",),
            "external_location_owner",
        ),
        _owners(
            "storage_credentials",
            "storage_credential",
            ("storage_credential_name",),
            "storage_credential_owner",
        ),
        _owners("connections", "connection", ("connection_name",), "connection_owner"),
        _owners("shares", "share", ("share_name",), "share_owner"),
    )
}


@dataclass(frozen=True, slots=True)
class Grants:
    """Makes the grants of one snapshot.

    Attributes:
        snapshot_at: When it was begun, aware UTC; the same for all of it.
        expand_up_to: A grant to a group of at most so many members is repeated for each.
    """

    workspace: Workspace
    directory: Directory
    snapshot_at: datetime
    expand_up_to: int

    def of_memberships(self) -> Iterator[PermissionSnapshot]:
        """Who is in which group, and the aliases of users whose e-mail is not in lower case."""
        for one in self.directory.memberships():
            yield self._grant(
                one.member,
                group(one.group),
                MEMBER,
                "direct" if one.via is None else "group",
                None if one.via is None else group(one.via),
                {"part": "membership"},
            )
        for name in sorted(self.directory.users):
            if user(name) != account(name):
                yield self._grant(user(name), account(name), ALIAS, ALIAS, None, {"part": "alias"})

    def of_row(self, view: View, columns: Sequence[str], row: Any) -> Iterator[PermissionSnapshot]:
        """The grants of one row of a view.

        Raises:
            Malformed: The row is not what the view holds.
        """
        if not isinstance(row, list) or len(row) != len(columns):
            raise Malformed(f"not a row of {len(columns)} cells")
        cells = dict(zip(columns, row, strict=True))
        for column in view.columns:
            if not isinstance(cells.get(column), str) or not cells[column]:
                raise Malformed(f"no text under `{column}`")
        names = [cells[column] for column in view.name_columns]
        principal = cells[view.principal_column]
        if view.is_of_recipients:
            ref = recipient_ref(self.workspace.metastore_id, principal)
        else:
            ref = self.directory.ref(principal)
        yield from self._expanded(
            ref,
            securable_ref(self.workspace.metastore_id, view.kind, ".".join(names)),
            cells[view.privilege_column] if view.privilege_column else OWNER,
            self._ancestor(cells.get("inherited_from"), names),
            {"part": view.name, **cells},
        )

    def of_assignment(
        self, kind: str, full_name: str, assignment: Any
    ) -> Iterator[PermissionSnapshot]:
        """The grants of one principal on one securable, as the REST API lists them.

        Raises:
            Malformed: It is not what the API documents.
        """
        principal = assignment.get("principal") if isinstance(assignment, dict) else None
        privileges = assignment.get("privileges") if isinstance(assignment, dict) else None
        if not isinstance(principal, str) or not principal or not isinstance(privileges, list):
            raise Malformed("a privilege assignment has no principal or privileges")
        for held in privileges:
            privilege = held.get("privilege") if isinstance(held, dict) else None
            if not isinstance(privilege, str) or not privilege:
                raise Malformed("a privilege assignment has no privilege")
            from_kind, from_name = held.get("inherited_from_type"), held.get("inherited_from_name")
            is_inherited = isinstance(from_kind, str) and from_kind
            yield from self._expanded(
                self.directory.ref(principal),
                securable_ref(self.workspace.metastore_id, kind, full_name),
                privilege,
                f"{str(from_kind).lower()}:{from_name or ''}" if is_inherited else None,
                {"part": "effective_permissions", "principal": principal, **held},
            )

    def of_owner(self, kind: str, full_name: str, owner: str) -> Iterator[PermissionSnapshot]:
        """The ownership of one securable, as the REST API's listings name it."""
        yield from self._expanded(
            self.directory.ref(owner),
            securable_ref(self.workspace.metastore_id, kind, full_name),
            OWNER,
            None,
            {"part": "owner", "owner": owner},
        )

    def of_acl_entry(self, kind: str, object_id: str, entry: Any) -> Iterator[PermissionSnapshot]:
        """The grants of one entry of a workspace object's access control list.

        Raises:
            Malformed: It is not what the API documents.
        """
        permissions = entry.get("all_permissions") if isinstance(entry, dict) else None
        if not isinstance(permissions, list):
            raise Malformed("an entry of an access control list has no permissions")
        ref = _acl_principal(entry)
        for held in permissions:
            level = held.get("permission_level") if isinstance(held, dict) else None
            if not isinstance(level, str) or not level:
                raise Malformed("an entry of an access control list has no permission level")
            inherited = held.get("inherited_from_object")
            via = None
            if held.get("inherited") is True or inherited:
                objects = inherited if isinstance(inherited, list) else []
                via = ",".join(str(one) for one in objects) or "inherited"
            yield from self._expanded(
                ref,
                object_ref(self.workspace.workspace_id, kind, object_id),
                OWNER if level == "IS_OWNER" else level,
                via,
                {"part": f"permissions/{kind}", **entry, "all_permissions": [held]},
            )

    def _ancestor(self, inherited_from: Any, names: Sequence[str]) -> str | None:
        """Which object a row's grant comes from: the view says its kind only."""
        if not isinstance(inherited_from, str) or inherited_from in _NOT_INHERITED:
            return None
        kind = inherited_from.lower()
        full_name = {
            "metastore": self.workspace.metastore_id,
            "catalog": names[0],
            "schema": ".".join(names[:2]),
        }.get(kind)
        return kind if full_name is None else f"{kind}:{full_name}"

    def _expanded(
        self,
        ref: str,
        asset_ref: str,
        privilege: str,
        via: str | None,
        raw: Mapping[str, Any],
    ) -> Iterator[PermissionSnapshot]:
        """The grant itself, and, where it is a group's, the same for each member."""
        yield self._grant(ref, asset_ref, privilege, "direct", via, raw)
        if not ref.startswith(group("")):
            return
        members = self.directory.members(ref.removeprefix(group("")))
        if len(members) <= self.expand_up_to:
            for member in sorted(members):
                yield self._grant(member, asset_ref, privilege, "group", ref, raw)

    def _grant(
        self,
        principal_ref: str,
        asset_ref: str,
        privilege: str,
        mechanism: str,
        via: str | None,
        raw: Mapping[str, Any],
    ) -> PermissionSnapshot:
        return PermissionSnapshot(
            platform=PLATFORM,
            principal_ref=principal_ref,
            asset_ref=asset_ref,
            privilege=privilege,
            grant_mechanism=mechanism,
            granted_via=via,
            snapshot_at=self.snapshot_at,
            raw_payload=dict(raw),
        )


def _acl_principal(entry: Mapping[str, Any]) -> str:
    for key, reference in (
        ("user_name", user),
        ("group_name", group),
        ("service_principal_name", service_principal),
    ):
        name = entry.get(key)
        if isinstance(name, str) and name:
            return reference(name)
    raise Malformed("an entry of an access control list names nobody")
