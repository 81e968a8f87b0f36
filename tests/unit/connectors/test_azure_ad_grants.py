"""From directory objects to grants, and who is in a group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.azure_ad.grants import ACTIVE, ASSIGNED, ELIGIBLE, Grants, Groups, principal_of
from verity_sdk import Malformed, PermissionSnapshot

AT = datetime(2026, 11, 24, 9, tzinfo=UTC)
NOBODY = "00000000-0000-0000-0000-000000000000"
ASSIGNMENT: dict[str, Any] = {
    "id": "a1",
    "principalId": "u1",
    "roleDefinitionId": "r1",
    "directoryScopeId": "/",
    "principal": {"@odata.type": "#microsoft.graph.user", "id": "u1"},
}
ASSIGNED_APP: dict[str, Any] = {
    "id": "p1",
    "appRoleId": "v1",
    "principalId": "g1",
    "principalType": "Group",
    "resourceId": "s1",
}


def some_groups() -> Groups:
    """g1 holds u1 and g2; g2 holds u2 and, again, g1; nobody knows who is in g3."""
    return Groups(
        {"g1", "g2", "g3", "g4"},
        {"g1": ["user:u1", "group:g2"], "g2": ["user:u2", "group:g1"], "g4": ["group:g3"]},
    )


def keys(grants: Any) -> list[tuple[str, str, str, str, str | None]]:
    return [
        (g.principal_ref, g.asset_ref, g.privilege, g.grant_mechanism, g.granted_via)
        for g in grants
    ]


def grants() -> Grants:
    made = Grants(AT, some_groups())
    made.learn_role({"id": "r1", "displayName": "Reader", "templateId": "t1", "isBuiltIn": True})
    made.learn_app_roles({"id": "s1", "appRoles": [{"id": "v1", "value": "Reports.Read"}]})
    return made


def test_a_role_of_a_user() -> None:
    """Under the role's name; the record and the definition are kept."""
    (grant,) = grants().of_role(ASSIGNMENT, ASSIGNED).grants
    assert keys([grant]) == [("user:u1", "directory:/", "Reader", "role", "roleAssignment:a1")]
    assert grant.snapshot_at == AT
    assert grant.raw_payload["roleDefinition"]["templateId"] == "t1"
    assert "eligible" not in grant.raw_payload
    assert ASSIGNMENT.keys() <= grant.raw_payload.keys()


def test_a_role_of_a_group_is_also_its_members() -> None:
    """Through nested and cyclic groups, each member once."""
    record = {
        **ASSIGNMENT,
        "principalId": "g1",
        "principal": {"@odata.type": "#microsoft.graph.group", "id": "g1"},
        "directoryScopeId": "/administrativeUnits/x",
    }
    found = grants().of_role(record, ASSIGNED)
    asset = "directory:/administrativeUnits/x"
    assert keys(found.grants) == [
        ("group:g1", asset, "Reader", "role", "roleAssignment:a1"),
        ("user:u1", asset, "Reader", "group", "group:g1>roleAssignment:a1"),
        ("user:u2", asset, "Reader", "group", "group:g1>roleAssignment:a1"),
    ]
    assert not found.unread


def test_a_group_on_the_way_that_was_not_read_is_named() -> None:
    """Whoever is in it is missing, so the part is not complete."""
    record = {**ASSIGNMENT, "principalId": "g4", "principal": None}
    found = grants().of_role(record, ASSIGNED)
    assert keys(found.grants)[0][0] == "group:g4"
    assert found.unread == {"g3"}


@pytest.mark.parametrize(
    ("kind", "via", "is_eligible"),
    [(ACTIVE, "roleAssignmentSchedule:a1", False), (ELIGIBLE, "roleEligibility:a1", True)],
)
def test_privileged_identity_management(kind: Any, via: str, is_eligible: bool) -> None:
    """Eligible says so in the payload: its holder has to activate it first."""
    (grant,) = grants().of_role(ASSIGNMENT, kind).grants
    assert grant.granted_via == via
    assert grant.raw_payload.get("eligible", False) is is_eligible


def test_a_role_that_is_not_known_has_its_id() -> None:
    """The definitions may have been denied; the grant still stands."""
    (grant,) = grants().of_role({**ASSIGNMENT, "roleDefinitionId": "r9"}, ASSIGNED).grants
    assert grant.privilege == "r9"


def test_a_scope_of_an_application() -> None:
    """It stands in another field."""
    record = {**ASSIGNMENT, "directoryScopeId": None, "appScopeId": "/catalog"}
    (grant,) = grants().of_role(record, ASSIGNED).grants
    assert grant.asset_ref == "directory:/catalog"
    with pytest.raises(Malformed, match="scope"):
        grants().of_role({**record, "appScopeId": None}, ASSIGNED)


def test_an_app_role_of_a_group_is_its_direct_members_only() -> None:
    """It does not cascade to nested groups."""
    via = "appRoleAssignment:p1"
    assert keys(grants().of_app_role(ASSIGNED_APP).grants) == [
        ("group:g1", "servicePrincipal:s1", "Reports.Read", "direct", via),
        ("user:u1", "servicePrincipal:s1", "Reports.Read", "group", f"group:g1>{via}"),
    ]
    unread = grants().of_app_role({**ASSIGNED_APP, "principalId": "g3"}).unread
    assert unread == {"g3"}


@pytest.mark.parametrize(
    ("changes", "principal", "privilege"),
    [
        ({"principalType": "User", "principalId": "u9"}, "user:u9", "Reports.Read"),
        ({"principalType": "ServicePrincipal", "principalId": "s9"}, "sp:s9", "Reports.Read"),
        (
            {"principalType": "User", "principalId": "u9", "appRoleId": NOBODY},
            "user:u9",
            "default_access",
        ),
        ({"principalType": "User", "principalId": "u9", "appRoleId": "gone"}, "user:u9", "gone"),
    ],
)
def test_an_app_role_of_one(changes: dict[str, Any], principal: str, privilege: str) -> None:
    """Zeros are the default access; a role that is gone keeps its id."""
    (grant,) = grants().of_app_role({**ASSIGNED_APP, **changes}).grants
    assert (grant.principal_ref, grant.privilege) == (principal, privilege)
    assert grant.grant_mechanism == "direct"


def test_a_consent_is_a_grant_for_each_scope() -> None:
    """For one user or, by an administrator, for all."""
    record = {
        "id": "c1",
        "clientId": "s2",
        "consentType": "Principal",
        "principalId": "u1",
        "resourceId": "s1",
        "scope": " Mail.Read  Files.Read Mail.Read",
    }
    via = "oauth2PermissionGrant:c1"
    assert keys(grants().of_consent(record)) == [
        ("user:u1", "servicePrincipal:s1", "Mail.Read", "policy", via),
        ("user:u1", "servicePrincipal:s1", "Files.Read", "policy", via),
    ]
    everyone = {**record, "consentType": "AllPrincipals", "principalId": None, "scope": "openid"}
    assert keys(grants().of_consent(everyone))[0][0] == "all_principals"
    assert grants().of_consent({**record, "scope": None}) == []


def test_aliases_are_lower_case_and_say_each_name_once() -> None:
    """The name to sign in with, and the e-mail where it is another."""
    user = {"id": "u1", "userPrincipalName": "Ann@Contoso.example", "mail": "ann@contoso.example"}
    assert keys(grants().of_aliases(user)) == [
        ("user:u1", "user:ann@contoso.example", "alias", "alias", None)
    ]
    other = {**user, "mail": "a.adams@contoso.example", "employeeId": "7"}
    found = grants().of_aliases(other)
    assert [one.asset_ref for one in found] == [
        "user:ann@contoso.example",
        "user:a.adams@contoso.example",
    ]
    assert found[0].raw_payload["employeeId"] == "7"
    assert grants().of_aliases({"id": "u1", "userPrincipalName": None, "mail": None}) == []


def test_members_and_owners() -> None:
    """Of whatever type; the group and the application are named in the payload."""
    sp = {"@odata.type": "#microsoft.graph.servicePrincipal", "id": "s9"}
    made = grants()
    group, app = {"id": "g1", "displayName": "G"}, {"id": "o1", "appId": "a1"}
    assert keys([made.of_member(sp, group), made.of_group_owner(sp, group)]) == [
        ("sp:s9", "group:g1", "member", "direct", None),
        ("sp:s9", "group:g1", "owner", "direct", None),
    ]
    owned = [made.of_application_owner(sp, app), made.of_service_principal_owner(sp, {"id": "s1"})]
    assert [one.asset_ref for one in owned] == ["app:a1", "servicePrincipal:s1"]
    assert made.of_member(sp, group).raw_payload["group"] == group


@pytest.mark.parametrize(
    ("kind", "principal"),
    [
        ("#microsoft.graph.user", "user:x"),
        ("#microsoft.graph.group", "group:x"),
        ("#microsoft.graph.servicePrincipal", "sp:x"),
        ("#microsoft.graph.device", "device:x"),
        ("#microsoft.graph.orgContact", "orgContact:x"),
        ("SomethingNew", "somethingNew:x"),
    ],
)
def test_any_type_of_member_has_a_name(kind: str, principal: str) -> None:
    """Also one that Graph has yet to invent."""
    assert principal_of({"@odata.type": kind, "id": "x"}) == principal


anything = st.none() | st.integers() | st.text(max_size=3) | st.lists(st.text(max_size=3))


@given(
    st.sampled_from(
        [ASSIGNMENT, ASSIGNED_APP, {"id": "u1", "userPrincipalName": "a", "mail": "b"}]
    ),
    st.sampled_from(["id", "principalId", "principal", "principalType", "resourceId", "mail"]),
    anything,
)
def test_any_oddity_is_a_grant_or_malformed(record: dict[str, Any], name: str, value: Any) -> None:
    """Nothing else comes out."""
    odd, made = {**record, name: value}, grants()
    makes: tuple[Callable[[], Any], ...] = (
        lambda: made.of_role(odd, ASSIGNED).grants,
        lambda: made.of_app_role(odd).grants,
        lambda: made.of_consent(odd),
        lambda: made.of_aliases(odd),
    )
    for make in makes:
        try:
            found = make()
        except Malformed:
            continue
        assert all(isinstance(one, PermissionSnapshot) for one in found)


names = st.sampled_from("abcdefg")


@given(st.dictionaries(names, st.lists(names | st.sampled_from(["u1", "u2", "u3"]), max_size=4)))
def test_the_closure_is_what_a_walk_finds(edges: dict[str, list[str]]) -> None:
    """Against the plain definition, on any graph, cycles included."""
    members: dict[str, Sequence[str]] = {
        name: [f"user:{m}" if m.startswith("u") else f"group:{m}" for m in found]
        for name, found in edges.items()
    }
    groups = Groups(set(edges), members)
    for start in edges:
        reached, before = {start}, set[str]()
        while reached != before:
            before = set(reached)
            reached |= {m for one in before for m in edges.get(one, ()) if not m.startswith("u")}
        people = {m for one in reached for m in edges.get(one, ()) if m.startswith("u")}
        assert groups.reach(start).principals == sorted(f"user:{one}" for one in people)
        assert groups.reach(start).unread == {one for one in reached if one not in edges}
