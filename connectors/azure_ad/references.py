"""How Entra ID's principals and assets are named in references; keyed by object id throughout."""

from __future__ import annotations

from verity_sdk import references

ALL_PRINCIPALS = "all_principals"
"""Every user of the tenant: an administrator consented on behalf of all."""

NO_OBJECT = "00000000-0000-0000-0000-000000000000"
"""Graph's id for no object: an unknown user, and the app role of default access."""


def principal(kind: str, object_id: str) -> str:
    """An object of the directory as a principal.

    Args:
        kind: Graph's type (`#microsoft.graph.servicePrincipal`) or its name in app-role
            assignments (`ServicePrincipal`).
        object_id: Its id.
    """
    name = kind.rpartition(".")[2]
    match name.lower():
        case "user":
            return references.user(object_id)
        case "group":
            return references.group(object_id)
        case "serviceprincipal":
            return references.service_principal(object_id)
        case _:
            # Devices, contacts, and what Graph may invent: they hold memberships, too.
            return f"{name[:1].lower()}{name[1:]}:{object_id}"


def target(kind: str, object_id: str) -> str:
    """What an audit record was about: `group:{id}`, `role:{id}`, `servicePrincipal:{id}`.

    The record writes the kind with a capital; a snapshot names the same object as here.
    """
    return f"{kind[:1].lower()}{kind[1:]}:{object_id}"


def directory(scope: str) -> str:
    """Where a directory role holds: `/` is the tenant; else an administrative unit or an app."""
    return f"directory:{scope}"


def resource(service_principal_id: str) -> str:
    """An application in this tenant as what is accessed: its service principal."""
    return f"servicePrincipal:{service_principal_id}"
