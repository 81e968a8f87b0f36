"""The last known state: what fits into a cursor, and what it can tell afterwards; settings."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.hr import HrConnector, Settings, known
from connectors.hr.known import ACTIVE, GONE, INACTIVE, PROFILE, TRACKED, UNKNOWN, Known, Person
from verity_sdk.errors import Misconfigured

SECRET = "very-secret"
BAMBOOHR: dict[str, Any] = {
    "connector_id": "hr",
    "source": "bamboohr",
    "bamboohr": {"company_domain": "acme", "api_key": SECRET},
}
SCIM: dict[str, Any] = {
    "connector_id": "hr",
    "source": "scim",
    "scim": {
        "base_url": "https://idp.example/scim/v2/",
        "auth": {"kind": "bearer", "token": SECRET},
    },
}

values = st.dictionaries(
    st.sampled_from([*TRACKED, *PROFILE]), st.none() | st.text(max_size=12), max_size=8
)


def person(**fields: Any) -> Person:
    one = Person(status=ACTIVE)
    one.learn(fields, is_by_value=True)
    return one


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=6),
        st.tuples(
            st.sampled_from([ACTIVE, INACTIVE, GONE, UNKNOWN]),
            st.integers(0, 2_000_000_000),
            values,
            values,
        ),
        max_size=6,
    ),
    st.booleans(),
)
def test_what_is_packed_comes_back(people: dict[str, Any], is_by_value: bool) -> None:
    before = Known(is_by_value)
    for person_id, (status, changed, first, second) in people.items():
        one = Person(status=status, changed=changed)
        one.learn(first, is_by_value=is_by_value)
        one.learn(second, is_by_value=is_by_value)
        before.people[person_id] = one
    packed = before.encode()
    after = Known.decode(packed, is_by_value=is_by_value)
    assert after == before
    assert after.encode() == packed
    assert not {'"', "\\"} & set(packed)


@given(values, values, st.booleans())
def test_what_was_learnt_is_no_difference(
    first: dict[str, Any], second: dict[str, Any], is_by_value: bool
) -> None:
    one = Person(status=ACTIVE)
    one.learn(first, is_by_value=is_by_value)
    one.learn(second, is_by_value=is_by_value)
    assert one.differences(second) == []
    shown = {name: value for name, value in second.items() if name in TRACKED}
    assert one.differences({**shown, "department": "\x00 other"}) in (
        ["department"],
        [] if "department" not in {**first, **second} else ["department"],
    )


def test_what_is_not_shown_is_no_difference() -> None:
    one = person(work_email="a@x", department="Sales", first_name="Amy", last_name="Berg")
    assert one.differences({}) == []
    assert one.differences({"location": "Lyon"}) == [], "it was never shown before"
    assert one.differences({"first_name": "Bo"}) == [], "fewer names are shown than before"
    assert one.differences({"first_name": "Bo", "last_name": "Berg"}) == ["profile"]
    assert one.differences({"department": None}) == ["department"]
    one.learn({"department": None}, is_by_value=True)
    assert one.differences({"department": None}) == []
    assert one.differences({"department": "Sales"}) == ["department"]


def test_who_left_is_kept_without_values_and_still_compared() -> None:
    one = person(work_email="a@x", department="Sales")
    assert one.value("work_email") == "a@x"
    one.status = INACTIVE
    one.learn({"left_on": "2026-01-01"}, is_by_value=True)
    assert one.value("work_email") is None
    assert one.differences({"work_email": "a@x", "department": "Sales"}) == []
    assert one.differences({"work_email": "b@x"}) == ["work_email"]
    packed = Known(people={"1": one}).encode()
    assert "a@x" not in repr(Known.decode(packed, is_by_value=True))


def test_hashes_keep_no_value() -> None:
    one = Person(status=ACTIVE)
    one.learn({"work_email": "amy@x", "department": "Sales"}, is_by_value=False)
    assert "amy" not in repr(one)
    assert "Sales" not in repr(one)
    assert one.differences({"work_email": "amy@x"}) == []
    by_value = person(work_email="amy@x")
    by_value.learn({}, is_by_value=False)
    assert "amy" not in repr(by_value), "also after the setting was changed"


def test_times_that_are_met_no_more_are_forgotten() -> None:
    state = Known(
        people={
            "1": Person(ACTIVE, 100),
            "2": Person(GONE, 100),
            "3": Person(GONE, 200),
            "4": Person(INACTIVE, 0),
        }
    )
    assert state.forget_changes_before(150)
    assert {one: kept.changed for one, kept in state.people.items()} == {"1": 0, "3": 200, "4": 0}
    assert not state.forget_changes_before(150)


def company(people_count: int, *, has_uuids: bool) -> Known:
    """People with random names, in 60 departments, 300 titles and 25 places."""
    chance = random.Random(people_count)

    def word(length: int) -> str:
        return "".join(chance.choice("aeiounrstlmdcghkbp") for _ in range(length))

    firsts = [word(chance.randint(3, 7)) for _ in range(800)]
    lasts = [word(chance.randint(4, 9)) for _ in range(6000)]
    ids = [f"{chance.getrandbits(128):032x}" if has_uuids else str(i) for i in range(people_count)]
    state = Known()
    for person_id in ids:
        first, last = chance.choice(firsts), chance.choice(lasts)
        email = f"{first}.{last}{chance.randint(1, 99)}@contoso.example"
        one = Person(status=ACTIVE if chance.random() < 0.8 else INACTIVE)
        fields: dict[str, str | None] = {
            "work_email": email,
            "department": f"Department {chance.randrange(60)}",
            "location": f"Place {chance.randrange(25)}",
            "job_title": f"Title {chance.randrange(300)}",
            "manager": ids[chance.randrange(people_count // 8)],
            "employment_status": "Full-Time",
            "first_name": first,
            "last_name": last,
        }
        if has_uuids:
            fields["login"] = email
        one.learn(fields, is_by_value=True)
        state.people[person_id] = one
    return state


@pytest.mark.parametrize(("has_uuids", "bytes_max"), [(False, 26), (True, 46)])
def test_so_many_bytes_a_person(has_uuids: bool, bytes_max: int) -> None:
    """docs/platforms/hr.md promises 30,000 people of BambooHR, and 18,000 of SCIM with UUIDs."""
    packed = company(4000, has_uuids=has_uuids).encode()
    each = len(packed) / 4000
    assert each <= bytes_max
    promised = 18_000 if has_uuids else 30_000
    assert each * promised < known.KNOWN_BYTES_MAX


def test_too_many_people_are_an_error_with_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    state = company(200, has_uuids=False)
    monkeypatch.setattr(known, "KNOWN_BYTES_MAX", 2000)
    with pytest.raises(Misconfigured, match=r"200 people .* holds 2,000, .*remember = \"hashes\""):
        state.encode()


@pytest.mark.parametrize("packed", [None, "", "@@", "nonsense", 7, {}])
def test_a_state_that_was_edited_is_refused(packed: Any) -> None:
    with pytest.raises(Misconfigured, match="known"):
        Known.decode(packed, is_by_value=True)


# Settings


def test_the_least_that_is_needed() -> None:
    settings = Settings.model_validate(BAMBOOHR)
    assert settings.bamboohr is not None
    assert settings.bamboohr.url == "https://acme.bamboohr.com/api/v1"
    settings = Settings.model_validate(SCIM)
    assert settings.scim is not None
    assert settings.scim.source_name == "idp.example/scim/v2"
    assert SECRET not in repr(settings)
    assert SECRET not in repr(HrConnector(BAMBOOHR, None, None).settings)


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ({**BAMBOOHR, "bamboohr": None}, "bamboohr is missing"),
        ({**BAMBOOHR, "source": "scim"}, "scim is missing"),
        ({**BAMBOOHR, "scim": SCIM["scim"]}, "scim is for source"),
        ({**BAMBOOHR, "source": "workday"}, "source"),
        ({**BAMBOOHR, "bamboohr": {"company_domain": "acme"}}, "exactly one of api_key"),
        (
            {
                **BAMBOOHR,
                "bamboohr": {**BAMBOOHR["bamboohr"], "access_token": SECRET},
            },
            "exactly one of api_key",
        ),
        (
            {**BAMBOOHR, "bamboohr": {**BAMBOOHR["bamboohr"], "company_domain": "a/b"}},
            r"bamboohr\.company_domain",
        ),
        (
            {**BAMBOOHR, "bamboohr": {**BAMBOOHR["bamboohr"], "fields": ["a,b"]}},
            r"bamboohr\.fields",
        ),
        ({**SCIM, "scim": {**SCIM["scim"], "auth": {"kind": "magic"}}}, r"scim\.auth"),
        (
            {**SCIM, "scim": {**SCIM["scim"], "base_url": f"https://u:{SECRET}@x.example"}},
            r"scim\.base_url",
        ),
        ({**SCIM, "scim": {**SCIM["scim"], "absence_share_max": 0}}, "absence_share_max"),
        ({**SCIM, "lookback": "soon"}, "lookback"),
        ({**SCIM, "sauce": 1}, "sauce"),
        ("text", "not a table"),
    ],
)
def test_faults_name_the_setting_and_never_the_secret(table: Any, fault: str) -> None:
    with pytest.raises(Misconfigured, match=fault) as raised:
        HrConnector(table, None, None)
    assert SECRET not in str(raised.value)


def test_an_http_url_is_for_the_loopback_only() -> None:
    scim = {**SCIM["scim"], "base_url": "http://idp.example/v2"}
    with pytest.raises(Misconfigured, match="https"):
        HrConnector({**SCIM, "scim": scim}, None, None)
