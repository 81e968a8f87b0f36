"""Groups and what is granted to whom."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.databricks.grants import VIEWS, Grants
from connectors.databricks.groups import Directory, Membership
from connectors.databricks.references import Workspace
from connectors.databricks.settings import OWNER_VIEWS, PRIVILEGE_VIEWS
from verity_sdk.errors import Malformed

AT = datetime(2026, 11, 24, 12, tzinfo=UTC)
APP = "0f5d6e7a-1111-4000-8000-00000000c1de"


def directory(groups: dict[str, list[str]]) -> Directory:
    """Groups by name with their members: `u…` for users, `G…` for groups."""
    return Directory.of(
        [{"id": f"u{i}", "userName": f"u{i}@x.example"} for i in range(6)],
        [{"id": "sp", "applicationId": APP}],
        [
            {
                "id": name,
                "displayName": name,
                "members": [{"value": member, "$ref": f"any/{member}"} for member in members],
            }
            for name, members in groups.items()
        ],
    )


def grants(found: Directory, expand_up_to: int = 100) -> Grants:
    return Grants(Workspace("m", "1"), found, AT, expand_up_to)


def keys(rows: Any) -> list[tuple[Any, ...]]:
    return [
        (one.principal_ref, one.asset_ref, one.privilege, one.grant_mechanism, one.granted_via)
        for one in rows
    ]


def test_nested_and_cyclic_groups_are_closed_once() -> None:
    found = directory({"Ga": ["u0", "Gb"], "Gb": ["u1", "Ga", "Gc"], "Gc": ["u2", "sp", "gone"]})
    assert found.members("Ga") == {
        "user:u0@x.example",
        "user:u1@x.example",
        "user:u2@x.example",
        f"sp:{APP}",
        "scim:gone",
    }
    assert found.members("Gb") == found.members("Ga")
    of_c = [one for one in found.memberships() if one.group == "Gc"]
    assert {one.via for one in of_c} == {None}
    assert Membership("group:Gb", "Ga", None) in found.memberships()
    assert Membership("group:Gc", "Ga", "Gb") in found.memberships()
    assert Membership("user:u2@x.example", "Ga", "Gc") in found.memberships()
    assert not [one for one in found.memberships() if one.member == f"group:{one.group}"]


def test_of_several_ways_into_a_group_the_nearest_is_named() -> None:
    found = directory(
        {"G": ["u0", "Gz", "Ga"], "Gz": ["u0", "u1"], "Ga": ["u1", "Gq"], "Gq": ["u1"]}
    )
    via = {one.member: one.via for one in found.memberships() if one.group == "G"}
    assert via["user:u0@x.example"] is None
    assert via["user:u1@x.example"] == "Ga"


@given(st.dictionaries(st.sampled_from("ABCDE"), st.sets(st.sampled_from("ABCDE"))))
def test_a_closure_ends_and_holds_whoever_can_be_reached(edges: dict[str, set[str]]) -> None:
    groups = {name: [f"u{i}", *sorted(edges.get(name, ()))] for i, name in enumerate("ABCDE")}
    found = directory(groups)
    for name in "ABCDE":
        reached, before = {name}, None
        while reached != before:
            before, reached = reached, reached.union(*(edges.get(one, set()) for one in reached))
        assert found.members(name) == {f"user:u{'ABCDE'.index(one)}@x.example" for one in reached}
        listed = [one.member for one in found.memberships() if one.group == name]
        assert len(listed) == len(set(listed))
        assert set(listed) == found.members(name) | {f"group:{one}" for one in reached - {name}}


@pytest.mark.parametrize(
    ("name", "ref"),
    [
        ("u0@x.example", "user:u0@x.example"),
        ("nobody@x.example", "user:nobody@x.example"),
        (APP, f"sp:{APP}"),
        ("11111111-2222-3333-4444-555555555555", "sp:11111111-2222-3333-4444-555555555555"),
        ("account users", "group:account users"),
        ("team@night", "group:team@night"),
        ("System user", "user:System user"),
    ],
)
def test_a_principal_is_told_by_the_directory_then_by_its_form(name: str, ref: str) -> None:
    assert directory({"team@night": ["u0"]}).ref(name) == ref


def test_a_grant_to_a_group_is_repeated_for_each_member_up_to_a_limit() -> None:
    found = directory({"G": ["u0", "u1"]})
    columns = ("grantee", "catalog_name", "privilege_type", "inherited_from")
    row = ["G", "main", "USE_CATALOG", "NONE"]
    view = VIEWS["catalog_privileges"]
    asset = "uc:m/catalog/main"
    all_three = [
        ("group:G", asset, "USE_CATALOG", "direct", None),
        ("user:u0@x.example", asset, "USE_CATALOG", "group", "group:G"),
        ("user:u1@x.example", asset, "USE_CATALOG", "group", "group:G"),
    ]
    assert keys(grants(found, 2).of_row(view, columns, row)) == all_three
    assert keys(grants(found, 1).of_row(view, columns, row)) == all_three[:1]
    assert all(one.snapshot_at == AT for one in grants(found).of_row(view, columns, row))


@pytest.mark.parametrize(
    ("inherited_from", "via"),
    [
        (None, None),
        ("NONE", None),
        ("", None),
        ("CATALOG", "catalog:main"),
        ("SCHEMA", "schema:main.hr"),
        ("METASTORE", "metastore:m"),
        ("GALAXY", "galaxy"),
    ],
)
def test_an_inherited_grant_names_the_object_it_comes_from(inherited_from: Any, via: Any) -> None:
    columns = (
        *("grantee", "table_catalog", "table_schema", "table_name"),
        *("privilege_type", "inherited_from"),
    )
    row = ["a@x.example", "main", "hr", "salary", "SELECT", inherited_from]
    (one,) = grants(Directory()).of_row(VIEWS["table_privileges"], columns, row)
    assert (one.asset_ref, one.granted_via) == ("uc:m/table/main.hr.salary", via)
    assert one.raw_payload["inherited_from"] == inherited_from


def test_an_owner_and_a_recipient() -> None:
    (owner,) = grants(Directory()).of_row(
        VIEWS["schemata"],
        ("catalog_name", "schema_name", "schema_owner"),
        ["a", "b", "o@x.example"],
    )
    assert keys([owner]) == [("user:o@x.example", "uc:m/schema/a.b", "OWNER", "direct", None)]
    columns = ("grantor", "recipient_name", "share_name", "privilege_type")
    row = ["g", "acme", "s", "SELECT"]
    (shared,) = grants(Directory()).of_row(VIEWS["share_recipient_privileges"], columns, row)
    assert shared.principal_ref == "uc:m/recipient/acme"


@pytest.mark.parametrize(
    "row", [None, [], ["a@x", "c"], ["a@x", "c", None], ["", "c", "SELECT"], ["a@x", 7, "SELECT"]]
)
def test_a_row_that_is_not_understood_is_malformed(row: Any) -> None:
    columns = ("grantee", "catalog_name", "privilege_type")
    with pytest.raises(Malformed):
        list(grants(Directory()).of_row(VIEWS["catalog_privileges"], columns, row))


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {},
        {"all_permissions": []},
        {"user_name": "", "all_permissions": []},
        {"user_name": "a", "all_permissions": [{}]},
        {"user_name": "a", "all_permissions": ["CAN_VIEW"]},
    ],
)
def test_an_acl_entry_that_is_not_understood_is_malformed(entry: Any) -> None:
    with pytest.raises(Malformed):
        list(grants(Directory()).of_acl_entry("jobs", "1", entry))


@pytest.mark.parametrize(
    "assignment",
    [
        None,
        {"privileges": []},
        {"principal": "", "privileges": []},
        {"principal": "a", "privileges": [{}]},
        {"principal": "a", "privileges": [None]},
    ],
)
def test_an_assignment_that_is_not_understood_is_malformed(assignment: Any) -> None:
    with pytest.raises(Malformed):
        list(grants(Directory()).of_assignment("table", "a.b.c", assignment))


def test_every_view_that_the_settings_know_can_be_read() -> None:
    assert set(VIEWS) == {*PRIVILEGE_VIEWS, *OWNER_VIEWS}
