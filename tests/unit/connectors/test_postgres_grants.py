"""Memberships and what they lead to."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.postgres.grants import Grants, Membership, closure

GRANTS = Grants("db1", datetime(2026, 11, 24, tzinfo=UTC))


def membership(
    member: str, role: str, *, inherit: bool = True, may_set: bool = True, admin: bool = False
) -> Membership:
    return Membership(member, role, "boss", admin, inherit, may_set)


def ways(*memberships: Membership) -> set[tuple[str, str, str, str]]:
    return {(r.member, r.role, r.privilege, ">".join(r.path)) for r in closure(memberships)}


def test_memberships_lead_on() -> None:
    found = ways(membership("bob", "admins"), membership("admins", "analysts"))
    assert found == {
        ("bob", "admins", "USAGE", "bob>admins"),
        ("bob", "admins", "SET", "bob>admins"),
        ("bob", "analysts", "USAGE", "bob>admins>analysts"),
        ("bob", "analysts", "SET", "bob>admins>analysts"),
        ("admins", "analysts", "USAGE", "admins>analysts"),
        ("admins", "analysts", "SET", "admins>analysts"),
    }


def test_a_step_that_is_not_inherited_ends_usage_and_one_that_may_not_be_set_ends_set() -> None:
    found = ways(membership("bob", "a", inherit=False), membership("a", "b", may_set=False))
    assert ("bob", "a", "SET", "bob>a") in found
    assert ("bob", "b", "MEMBER", "bob>a>b") in found
    assert not any(w[:2] == ("bob", "b") and w[2] != "MEMBER" for w in found)


def test_a_second_grant_may_open_what_the_first_leaves_closed() -> None:
    found = ways(membership("bob", "a", inherit=False), membership("bob", "a", may_set=False))
    assert {w[2] for w in found} == {"USAGE", "SET"}


def test_admin_needs_the_option_on_the_last_step_only() -> None:
    found = ways(membership("bob", "a", inherit=False), membership("a", "b", admin=True))
    assert ("bob", "b", "ADMIN", "bob>a>b") in found
    assert not any(w[:3] == ("bob", "a", "ADMIN") for w in found)


def test_the_grant_names_the_way_it_is_held() -> None:
    every = closure([membership("bob", "a"), membership("a", "b")])
    reaches = {(r.role, r.privilege): r for r in every if r.member == "bob"}
    direct = GRANTS.of_reach(reaches["a", "USAGE"], is_predefined=False)
    assert (direct.principal_ref, direct.asset_ref) == ("pg:db1/role:bob", "pg:db1/role:a")
    assert (direct.grant_mechanism, direct.granted_via) == ("direct", "boss")
    through = GRANTS.of_reach(reaches["b", "USAGE"], is_predefined=True)
    assert (through.grant_mechanism, through.granted_via) == ("role", "a")
    assert through.raw_payload["path"] == ["bob", "a", "b"]
    assert through.raw_payload["is_predefined"] is True


_NAMES = st.sampled_from("abcdefg")
_EDGES = st.lists(
    st.builds(Membership, _NAMES, _NAMES, st.none(), st.booleans(), st.booleans(), st.booleans()),
    max_size=14,
)


@settings(deadline=None)  # a busy machine is no failure
@given(_EDGES)
def test_closure_is_what_walking_every_path_finds(edges: list[Membership]) -> None:
    """Cycles included: PostgreSQL refuses them, the function ends all the same."""

    def reachable(start: str, option: str | None) -> set[str]:
        found = {start}
        while True:
            more = {
                e.role for e in edges if e.member in found and (not option or getattr(e, option))
            } - found
            if not more:
                return found - {start}
            found |= more

    got: dict[tuple[str, str], set[str]] = {}
    for reach in closure(edges):
        got.setdefault((reach.member, reach.role), set()).add(reach.privilege)
        assert reach.path[0] == reach.member
        assert reach.path[-1] == reach.role
    for start in "abcdefg":
        everything = reachable(start, None)
        assert {role for member, role in got if member == start} >= everything
        for privilege, option in [("USAGE", "is_inherited"), ("SET", "may_set")]:
            named = {
                role for (member, role), p in got.items() if member == start and privilege in p
            }
            assert named == reachable(start, option)
