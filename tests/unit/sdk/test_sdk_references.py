"""How things are named: the formats that downstream agents rely on, byte for byte."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from inspect import isfunction

import pytest

from connectors.azure_ad import references as azure_ad
from connectors.databricks import references as databricks
from connectors.fabric import references as fabric
from connectors.hr import references as hr
from connectors.postgres import references as postgres
from connectors.synapse import references as synapse
from verity_sdk import references


@pytest.mark.parametrize(
    ("made", "is_called"),
    [
        (references.user("Amy@X.example"), "user:Amy@X.example"),
        (references.account("Amy@X.example"), "user:amy@x.example"),
        (references.service_principal("1f"), "sp:1f"),
        (references.application("1f"), "app:1f"),
        (references.group("1f"), "group:1f"),
        (references.employee("7"), "hr:employee:7"),
        (references.department("Sales: East"), "hr:department:Sales: East"),
        (azure_ad.principal("#microsoft.graph.user", "1"), "user:1"),
        (azure_ad.principal("ServicePrincipal", "1"), "sp:1"),
        (azure_ad.principal("#microsoft.graph.device", "1"), "device:1"),
        (azure_ad.target("Group", "1"), references.group("1")),
        (azure_ad.target("ServicePrincipal", "1"), azure_ad.resource("1")),
        (azure_ad.directory("/"), "directory:/"),
        (azure_ad.resource("1"), "servicePrincipal:1"),
        (synapse.workspace("ws1"), "synapse:ws1"),
        (synapse.sql_object("ws1", "dw", "hr", "salary"), "synapse:ws1/dw/hr.salary"),
        (synapse.sql_object("ws1", "dw", "", ""), "synapse:ws1/dw"),
        (synapse.sql_role("ws1", "dw", "reader"), "synapse:ws1/dw/role:reader"),
        (synapse.login("ws1", "Amy@X.example"), "user:amy@x.example"),
        (databricks.principal_ref("amy@x.example"), "user:amy@x.example"),
        (databricks.principal_ref(None), "unknown"),
        (databricks.securable_ref("m", "TABLE", "main.hr.salary"), "uc:m/table/main.hr.salary"),
        (databricks.object_ref("17", "jobs", "3"), "workspace:17/jobs/3"),
        (fabric.workspace("w"), "workspace:w"),
        (fabric.item("w", "i"), "workspace:w/item:i"),
        (fabric.item(None, "i"), "item:i"),
        (hr.job_title("Analyst"), "hr:job_title:Analyst"),
        (postgres.role_ref("db1", "amy"), "pg:db1/role:amy"),
        (postgres.public_ref("db1"), "pg:db1/PUBLIC"),
        (postgres.asset_ref("db1", "shop", "TABLE", "hr.salary"), "pg:db1/shop/TABLE:hr.salary"),
    ],
)
def test_a_name(made: str, is_called: str) -> None:
    assert made == is_called


@pytest.mark.parametrize("entry", entry_points(group="verity.connectors"), ids=lambda one: one.name)
def test_a_platforms_names_of_old_lead_to_its_connector_and_warn(entry: EntryPoint) -> None:
    if find_spec(f"verity_sdk.references.{entry.name}") is None:
        return  # A platform of later: its names were never in the SDK.
    new = import_module(f"connectors.{entry.name}.references")
    old = import_module(f"verity_sdk.references.{entry.name}")
    functions = [name for name, one in vars(new).items() if isfunction(one) and name[0] != "_"]
    assert functions
    for name in functions:
        with pytest.warns(DeprecationWarning, match=f"{name} is connectors.{entry.name}"):
            assert getattr(old, name) is getattr(new, name)
    with pytest.raises(AttributeError):
        _ = old.never_there
