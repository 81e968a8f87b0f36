"""Names of principals and assets as Verity's references spell them; events and grants agree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verity_sdk.references import UNKNOWN, service_principal, user

_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# Values of user_identity.email that name nobody. UNCONFIRMED: the list is not documented.
_NOBODY = frozenset({"", "unknown", "__REDACTED__"})
# The last words of Unity Catalog's actions (getTable, createExternalLocation): audit log
# reference, docs.databricks.com/admin/account-settings/audit-logs, read 2026-11.
_KINDS = {
    "Metastore": "metastore",
    "Catalog": "catalog",
    "Schema": "schema",
    "Table": "table",
    "Volume": "volume",
    "Function": "function",
    "RegisteredModel": "registered_model",
    "ExternalLocation": "external_location",
    "StorageCredential": "storage_credential",
    "Credential": "credential",
    "Connection": "connection",
    "Share": "share",
    "Recipient": "recipient",
    "Provider": "provider",
}
_ACTION = re.compile(
    r"(?:get|create|update|delete|list|read|validate|refresh)(" + "|".join(_KINDS) + r")s?"
)
_KIND_OF_DEPTH = {0: "catalog", 1: "schema", 2: "table"}
# Keys of request_params that name a workspace object, the most telling first, and its kind in the
# Permissions API.
_OBJECT_KEYS = (
    ("warehouseId", "warehouses"),
    ("warehouse_id", "warehouses"),
    ("clusterId", "clusters"),
    ("cluster_id", "clusters"),
    ("jobId", "jobs"),
    ("job_id", "jobs"),
    ("pipelineId", "pipelines"),
    ("pipeline_id", "pipelines"),
    ("notebookId", "notebooks"),
    ("notebook_id", "notebooks"),
    ("path", "path"),
)
ACCOUNT_LEVEL = "0"
"""The workspace id of an event of the account (MS Learn, audit-logs, read 2026-11)."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where the connector looks from.

    Attributes:
        metastore_id: Of the workspace's Unity Catalog; where an event doesn't say its own.
        workspace_id: Of the workspace.
    """

    metastore_id: str
    workspace_id: str


def principal_ref(name: str | None) -> str:
    """Who, by the name that Databricks gives: an e-mail, or a service principal's application id.

    Anything else that is a name (`System-User`) stays one.
    """
    if name is None or name in _NOBODY:
        return UNKNOWN
    return service_principal(name) if _UUID.fullmatch(name) else user(name)


def is_application_id(name: str) -> bool:
    """Whether a principal's name has the form of a service principal's."""
    return _UUID.fullmatch(name) is not None


def securable_ref(metastore_id: str, kind: str, full_name: str) -> str:
    """An object of Unity Catalog: `uc:{metastore_id}/{kind}/{full_name}`; the kind in lower case.

    Args:
        kind: `catalog`, `schema`, `table` (views, too), `volume`, `function`, …
        full_name: As Unity Catalog writes it (`main.hr.salary`); the metastore's own id of it.
    """
    return f"uc:{metastore_id}/{kind.lower()}/{full_name}"


def workspace_ref(workspace_id: str) -> str:
    """A workspace."""
    return f"workspace:{workspace_id}"


def object_ref(workspace_id: str, kind: str, object_id: str) -> str:
    """An object in a workspace, its kind as the Permissions API calls it (`jobs`)."""
    return f"workspace:{workspace_id}/{kind}/{object_id}"


def recipient_ref(metastore_id: str, name: str) -> str:
    """A recipient of Delta Sharing, who is outside of the account."""
    return securable_ref(metastore_id, "recipient", name)


def account_ref(account_id: str) -> str:
    """A Databricks account."""
    return f"account:{account_id}"


def asset_of(
    action: str, parameters: Mapping[str, Any], record: Mapping[str, Any], workspace: Workspace
) -> str:
    """What an audit event was done to.

    Args:
        action: Its `action_name`.
        parameters: Its `request_params`; which keys there are differs from action to action.
        record: All of it.
    """
    metastore_id = _text(parameters, "metastore_id") or workspace.metastore_id
    found = _securable(action, parameters)
    if found is not None:
        return securable_ref(metastore_id, *found)
    stated = record.get("workspace_id")
    workspace_id = str(stated) if isinstance(stated, str | int) else workspace.workspace_id
    for key, kind in _OBJECT_KEYS:
        value = _text(parameters, key)
        if value:
            return object_ref(workspace_id, kind, value)
    account_id = record.get("account_id")
    if workspace_id == ACCOUNT_LEVEL and isinstance(account_id, str) and account_id:
        return account_ref(account_id)
    return workspace_ref(workspace_id)


def _securable(action: str, parameters: Mapping[str, Any]) -> tuple[str, str] | None:
    kind, name = _text(parameters, "securable_type"), _text(parameters, "securable_full_name")
    if kind and name:
        return kind, name
    match = _ACTION.fullmatch(action)
    kind_of_action = _KINDS[match[1]] if match else None
    full_name = _text(parameters, "full_name_arg")
    if full_name:
        return kind_of_action or _KIND_OF_DEPTH.get(full_name.count("."), "table"), full_name
    table = _text(parameters, "table_full_name")
    if table:
        return "table", table
    catalog, schema = _text(parameters, "catalog_name"), _text(parameters, "schema_name")
    parents = [part for part in (catalog, schema if catalog else None) if part]
    name = _text(parameters, "name_arg") or _text(parameters, "name")
    # A list (listTables) names its parents only; a created object its own name beside them.
    if name and kind_of_action and not action.startswith("list"):
        return kind_of_action, ".".join([*parents, name])
    if schema and catalog:
        return "schema", f"{catalog}.{schema}"
    if schema and "." in schema:
        return "schema", schema
    return ("catalog", catalog) if catalog else None


def _text(parameters: Mapping[str, Any], key: str) -> str | None:
    value = parameters.get(key)
    return value if isinstance(value, str) and value else None
