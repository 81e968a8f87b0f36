"""The leavers example's picture, without a stack: facts in any order give the same findings."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from verity_sdk import PermissionSnapshot, RawEvent
from verity_sdk.references import ALIAS, account, employee, user
from verity_stream.downstream import Grant, SnapshotEnd

LEFT_AT = datetime(2026, 11, 23, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def leavers() -> Any:
    path = Path(__file__).parents[4] / "examples" / "downstream" / "leavers.py"
    spec = importlib.util.spec_from_file_location("leavers_example", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def left(**derived: Any) -> RawEvent:
    return RawEvent(
        "hr",
        "bhr:7",
        LEFT_AT + 9 * HOUR,
        employee("7"),
        "hr:department:Sales",
        "LEAVER",
        {"verity": {"account": account("Amy@Contoso.example"), **derived}},
    )


def did(who: str, event_id: str, at: datetime, platform: str = "fabric") -> RawEvent:
    return RawEvent(platform, event_id, at, who, "workspace:1", "ViewReport")


def may(who: str, privilege: str, snapshot: str = "s1", platform: str = "azure_ad") -> Grant:
    return Grant(
        snapshot, PermissionSnapshot(platform, who, "directory:/", privilege, "direct", "role:1")
    )


def alias(who: str, name: str) -> Grant:
    return Grant("s1", PermissionSnapshot("azure_ad", who, account(name), ALIAS, ALIAS))


def end(snapshot: str = "s1", *, is_complete: bool = True) -> SnapshotEnd:
    return SnapshotEnd(snapshot, "c", "azure_ad", LEFT_AT, LEFT_AT, is_complete, 1, 0, (), {})


def facts_of(leavers: Any, records: Any) -> list[Any]:
    facts = [
        leavers.fact_of_event(one)
        if isinstance(one, RawEvent)
        else leavers.fact_of_permission(one, "c")
        for one in records
    ]
    return [fact for fact in facts if fact is not None]


def findings(leavers: Any, facts: list[Any], domain: str | None = None) -> dict[str, Any]:
    """The last finding about each leaver."""
    picture = leavers.Picture({}, domain)
    return {name: picture.finding(name) for fact in facts for name in list(picture.learn(fact))}


def test_names_acts_and_grants_meet_in_any_order(leavers: Any) -> None:
    records = [
        left(effective_date="2026-11-23"),
        alias(user("oid-amy"), "amy@contoso.example"),
        may(user("oid-amy"), "Owner"),
        end(),
        did(user("AMY@contoso.example"), "late", LEFT_AT + HOUR),
        did(user("amy@contoso.example"), "before", LEFT_AT - HOUR),
        did(user("bob@contoso.example"), "other", LEFT_AT + HOUR),
    ]
    for order in itertools.permutations(facts_of(leavers, records)):
        kinds = [fact["kind"] for fact in order]
        if kinds.index("read") < kinds.index("may"):
            continue  # A snapshot's grants stand before its end.
        (finding,) = findings(leavers, list(order)).values()
        assert finding["left_at"] == "2026-11-23T00:00:00.000000Z"
        assert sorted(finding["known_as"]) == [account("amy@contoso.example"), user("oid-amy")]
        assert finding["still_may"] == [["azure_ad", "Owner", "directory:/", "role:1"]]
        assert [act["event_id"] for act in finding["did_after"]] == ["late"]


def test_only_a_complete_snapshot_revokes(leavers: Any) -> None:
    facts = facts_of(
        leavers,
        [
            left(),
            alias(user("o"), "amy@contoso.example"),
            *(may(user("o"), "Owner"), may(user("o"), "Reader"), end()),
            *(may(user("o"), "Reader", "s2"), end("s2", is_complete=False)),
        ],
    )
    assert len(findings(leavers, facts)[employee("7")]["still_may"]) == 2
    facts += facts_of(leavers, [may(user("o"), "Reader", "s3"), end("s3")])
    (grant,) = findings(leavers, facts)[employee("7")]["still_may"]
    assert grant[1] == "Reader"
    facts += facts_of(leavers, [end("s4")])
    assert findings(leavers, facts)[employee("7")]["still_may"] == []


def test_a_fact_that_comes_again_changes_nothing_and_is_told_again(leavers: Any) -> None:
    facts = facts_of(leavers, [left(), did("amy@contoso.example", "x", LEFT_AT + 10 * HOUR)])
    once, twice = findings(leavers, facts), findings(leavers, [*facts, facts[-1]])
    assert once == twice
    picture = leavers.Picture({})
    assert [list(picture.learn(fact)) for fact in [*facts, facts[-1]]] == [[employee("7")]] * 3


def test_whoever_comes_back_has_not_left(leavers: Any) -> None:
    back = RawEvent("hr", "bhr:8", LEFT_AT + 20 * HOUR, employee("7"), "hr:d", "JOINER", {})
    facts = facts_of(leavers, [left(), back])
    assert findings(leavers, facts)[employee("7")]["left_at"] is None
    late = facts_of(leavers, [did("amy@contoso.example", "x", LEFT_AT + 30 * HOUR)])
    picture = leavers.Picture({})
    assert [list(picture.learn(fact)) for fact in [*facts, *late]][-1] == []


@pytest.mark.parametrize(
    ("reference", "domain", "same"),
    [
        ("user:Amy@X.example", None, "user:amy@x.example"),
        ("Amy@X.example", None, "user:amy@x.example"),
        ("user:0f2c", None, "user:0f2c"),
        ("pg:s/role:amy", "x.example", "user:amy@x.example"),
        ("pg:s/role:amy", None, "pg:s/role:amy"),
        ("pg:s/role:Amy@x.example", None, "user:amy@x.example"),
        ("sp:1", "x.example", "sp:1"),
    ],
)
def test_one_spelling(leavers: Any, reference: str, domain: str | None, same: str) -> None:
    assert leavers.same_name(reference, domain) == same


def test_wrong_aliases_end(leavers: Any) -> None:
    picture = leavers.Picture({})
    for number in range(1000):
        list(
            picture.learn(
                {"kind": "alias", "who": f"user:{number}", "known_as": f"user:{number + 1}"}
            )
        )
    assert len(picture.names("user:0")) <= leavers.NAMES_MAX + 1
