"""Records of both sources: the allow-list, what becomes of them, and that nothing breaks it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.hr import bamboohr_records as bamboohr
from connectors.hr import scim_records as scim
from connectors.hr.bamboohr_records import Context, Tables, newest
from connectors.hr.changes import observe
from connectors.hr.fields import BAMBOOHR_FIELDS, SCIM_ATTRIBUTES, bamboohr_filter, scim_filter
from connectors.hr.grants import grants_of
from connectors.hr.known import Known
from connectors.hr.scim import Listing, doubt_of
from verity_sdk.connector_base import RawEvent
from verity_sdk.errors import Malformed

ENTERPRISE = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"
BEGAN = datetime(2026, 11, 1, tzinfo=UTC)
READ = datetime(2026, 11, 24, 12, tzinfo=UTC)

keep = bamboohr_filter(BAMBOOHR_FIELDS)
keep_user = scim_filter(SCIM_ATTRIBUTES)
CONTEXT = Context("acme", frozenset({"terminated"}), keep, BEGAN)
SCIM_CONTEXT = scim.Context("idp", scim.Shown.of(SCIM_ATTRIBUTES), BEGAN, READ)

JOB = {
    "id": "7",
    "date": "2024-01-01",
    "department": "Sales",
    "jobTitle": "Clerk",
    "reportsTo": "A B",
}
STATUS = {"id": "8", "date": "2024-01-01", "employmentStatus": "Full-Time"}

any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("id", "employeeId", "lastChanged", "action", "rows", "employees", "date"),
                    *("employmentStatus", "department", "firstName", "workEmail", "status"),
                    *("name", "givenName", "emails", "value", "type", "active", "meta", "members"),
                    *("lastModified", "version", "roles", "userName", ENTERPRISE, "manager"),
                    "_restrictedFields",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=25,
)


def entry(action: str = "Updated", changed: str = "2026-11-20T10:00:00+00:00") -> bamboohr.Change:
    body = {"employees": {"5": {"id": "5", "action": action, "lastChanged": changed}}}
    (change,), faulty = bamboohr.changes_of(body, keep)
    assert not faulty
    return change


def seen(
    known: Known,
    *,
    action: str = "Updated",
    changed: str = "2026-11-20T10:00:00+00:00",
    employee: dict[str, Any] | None = None,
    jobs: list[dict[str, Any]] | None = None,
    statuses: list[dict[str, Any]] | None = None,
    context: Context = CONTEXT,
) -> RawEvent | None:
    tables = Tables(
        {"5": [JOB] if jobs is None else jobs}, {"5": [STATUS] if statuses is None else statuses}
    )
    record = {"id": "5", "firstName": "Amy", "workEmail": "amy@acme.example"}
    if employee is not None:
        record = employee
    one = bamboohr.observation("5", entry(action, changed), keep(record), tables, context)
    return observe(one, known, BEGAN)


# The allow-list


@given(any_json, any_json)
def test_only_what_is_allowed_passes(value: Any, more: Any) -> None:
    """Whatever the shape: nothing but allowed names, and below them nothing with parts."""
    kept = keep({"birthDate": value, "workEmail": more, "payRate": more, "comment": value})
    assert set(kept) <= {"workEmail"}
    assert not isinstance(kept.get("workEmail"), dict)
    record = keep_user(
        {"addresses": value, "phoneNumbers": more, "name": {"middleName": value}, "emails": more}
    )
    assert set(record) <= {"name", "emails"}
    assert record.get("name") == {}
    text = json.dumps(record.get("emails"))
    assert "display" not in text


def test_what_is_private_is_dropped_wherever_it_hides() -> None:
    record = keep(
        {
            "id": "1",
            "workEmail": {"secret": "PRIVATE"},
            "department": ["PRIVATE"],
            "ssn": "PRIVATE",
            "_restrictedFields": ["workEmail", "payRate"],
        }
    )
    assert record == {
        "id": "1",
        "workEmail": ["dict"],
        "department": ["list"],
        "_restrictedFields": ["workEmail"],
    }
    assert keep("PRIVATE") == {"is": "str"}
    user = keep_user(
        {
            "id": ["PRIVATE"],
            "userName": "amy",
            "emails": [
                {"value": "PRIVATE@home.example", "type": "Home"},
                {"value": "amy@acme.example", "type": "work", "display": "PRIVATE"},
                "PRIVATE",
            ],
            "name": {"givenName": "Amy", "formatted": "PRIVATE"},
            "meta": {"version": "1", "location": "PRIVATE"},
            "roles": "PRIVATE",
            ENTERPRISE: {"department": "Sales", "salary": "PRIVATE", "manager": {"value": "9"}},
            "urn:acme:payroll": {"iban": "PRIVATE"},
        }
    )
    assert "PRIVATE" not in json.dumps(user)
    assert user["emails"] == [{"value": "amy@acme.example", "type": "work"}, {"is": "str"}]
    assert user[ENTERPRISE] == {"department": "Sales", "manager": {"value": "9"}}
    assert keep_user(["PRIVATE"]) == {"is": "list"}


def test_an_operator_may_allow_more_and_less() -> None:
    assert bamboohr_filter(["employeeNumber"])({"employeeNumber": "1", "workEmail": "x"}) == {
        "employeeNumber": "1"
    }
    some = scim_filter(["nickName", "urn:acme:hr:badge"])
    assert some({"nickName": "A", "userName": "b", "urn:acme:hr": {"badge": "7", "pay": 1}}) == {
        "nickName": "A",
        "urn:acme:hr": {"badge": "7"},
    }


# BambooHR


@given(any_json)
def test_any_answer_of_bamboohr_maps_or_is_malformed(body: Any) -> None:
    for parse in (
        lambda: bamboohr.changes_of(body, keep),
        lambda: bamboohr.rows_of_changed(body, "jobInfo", keep),
        lambda: bamboohr.rows_of_all(body, "jobInfo", keep),
    ):
        try:
            found, faulty = parse()
        except Malformed:
            continue
        for one in faulty:
            orjson.loads(one.data)
        if isinstance(found, dict):
            bamboohr.directory_holders(
                None, Tables(found, found), date(2026, 1, 1), frozenset({"terminated"})
            )
    record = keep(body)
    rows = [keep(one) for one in body] if isinstance(body, list) else [record]
    try:
        seen = bamboohr.observation("5", entry(), record, Tables({"5": rows}, {"5": rows}), CONTEXT)
        observe(seen, Known(), BEGAN)
    except Malformed:
        pass
    bamboohr.listed_holders([record])


def test_an_entry_without_a_time_is_rejected_and_the_others_stand() -> None:
    body = {
        "employees": {
            "1": {"id": "1", "action": "Updated", "lastChanged": "PRIVATE"},
            "2": {"id": "2", "action": "Merged", "lastChanged": "2026-11-20T10:00:00Z"},
            "3": ["PRIVATE"],
        }
    }
    changes, faulty = bamboohr.changes_of(body, keep)
    assert [(one.person_id, one.action) for one in changes] == [("2", "Merged")]
    assert [one.reference for one in faulty] == ["employees/changed:1", "employees/changed:3"]
    assert all("PRIVATE" not in one.reason for one in faulty)
    assert bamboohr.changes_of({"latest": "x", "employees": []}, keep) == ([], [])
    with pytest.raises(Malformed):
        bamboohr.changes_of({"error": 1}, keep)


def test_the_newest_row_counts_by_date_then_by_number() -> None:
    rows = [
        {"id": "10", "date": "2026-01-01", "n": 2},
        {"id": "9", "date": "2026-01-01", "n": 1},
        {"id": "11", "date": "0000-00-00", "n": 0},
        {"id": "3", "date": "2027-01-01", "n": 3},
    ]
    assert newest(rows)["n"] == 3  # type: ignore[index]
    assert newest(rows, until="2026-12-31")["n"] == 2  # type: ignore[index]
    assert newest([]) is None


def test_what_is_derived_of_somebody_who_is_known() -> None:
    known = Known()
    joined = seen(known, action="Inserted", changed="2026-11-02T08:00:00Z")
    assert joined is not None
    assert (joined.operation, joined.event_id) == (
        "JOINER",
        "bhr:acme:5:Inserted:2026-11-02T08:00:00Z",
    )
    assert seen(known) is None, "an entry of the feed without a difference is no event"

    moved = seen(known, jobs=[JOB, {**JOB, "id": "9", "date": "2026-12-01", "department": "Legal"}])
    assert moved is not None
    assert (moved.operation, moved.asset_ref) == ("MOVER", "hr:department:Legal")
    assert moved.event_id.endswith(":Updated:2026-11-20T10:00:00Z:jobInfo:9")
    assert moved.raw_payload["verity"]["previous"] == {"department": "Sales"}
    assert moved.raw_payload["verity"]["effective_date"] == "2026-12-01"
    jobs = moved.raw_payload["jobInfo"]
    assert [row["department"] for row in jobs] == ["Sales", "Legal"]

    gone = {"id": "12", "date": "2026-12-24", "employmentStatus": "TERMINATED"}
    left = seen(known, jobs=jobs, statuses=[STATUS, gone], employee={"id": "5", "workEmail": None})
    assert left is not None
    assert left.operation == "LEAVER"
    assert left.event_id.endswith(":employmentStatus:12")
    derived = left.raw_payload["verity"]
    assert derived["email"] == "amy@acme.example", "cleared with the exit, but known from before"
    assert derived["account"] == "user:amy@acme.example"
    assert derived["effective_date"] == "2026-12-24"

    earlier = {**gone, "date": "2026-11-21"}
    changed = seen(known, jobs=jobs, statuses=[STATUS, earlier], employee={"id": "5"})
    assert changed is not None
    assert (changed.operation, changed.raw_payload["verity"]["changed"]) == ("UPDATED", ["left_on"])

    back = {"id": "13", "date": "2026-12-28", "employmentStatus": "Part-Time"}
    again = seen(known, jobs=jobs, statuses=[STATUS, earlier, back])
    assert again is not None
    assert (again.operation, again.raw_payload["verity"]["is_rehire"]) == ("JOINER", True)

    deleted = seen(known, action="Deleted")
    assert deleted is not None
    assert deleted.operation == "LEAVER"
    assert deleted.raw_payload["verity"]["email"] == "amy@acme.example"
    assert seen(known, action="Deleted") is None


def test_what_is_hidden_is_not_cleared() -> None:
    known = Known()
    listed = {
        "employeeId": "5",
        "firstName": "Amy",
        "lastName": "Berg",
        "workEmail": "amy@acme.example",
        "departmentName": "Sales",
        "status": "Active",
        "_restrictedFields": [],
    }
    assert seen(known, jobs=[], statuses=[], employee=listed) is not None
    hidden = {**listed, "workEmail": None, "departmentName": None, "lastName": None}
    hidden["_restrictedFields"] = ["workEmail", "departmentName", "lastName"]
    assert seen(known, jobs=[], statuses=[], employee=hidden) is None
    assert known.people["5"].value("work_email") == "amy@acme.example"
    assert seen(known, jobs=[], statuses=[], employee=listed) is None
    cleared = seen(known, jobs=[], statuses=[], employee={**listed, "workEmail": None})
    assert cleared is not None
    assert cleared.raw_payload["verity"]["changed"] == ["work_email"]


@pytest.mark.parametrize(
    ("action", "hired", "moves", "left", "operation"),
    [
        ("Updated", "2020-01-01", [], None, "UPDATED"),
        ("Updated", "2026-11-02", [], None, "JOINER"),
        ("Inserted", "2020-01-01", [], None, "JOINER"),
        ("Updated", "2020-01-01", ["2026-11-10"], None, "MOVER"),
        ("Updated", "2020-01-01", ["2025-11-10"], None, "UPDATED"),
        ("Updated", "2020-01-01", [], "2026-11-10", "LEAVER"),
        ("Updated", "2020-01-01", [], "2025-11-10", "UPDATED"),
        ("Inserted", "2026-11-02", [], "2026-11-10", "LEAVER"),
        ("Deleted", "2020-01-01", [], None, "LEAVER"),
        ("Reborn", "2020-01-01", [], None, "UPDATED"),
    ],
)
def test_of_somebody_unknown_dates_tell(
    action: str, hired: str, moves: list[str], left: str | None, operation: str
) -> None:
    jobs = [{**JOB, "date": hired}, *({**JOB, "id": "9", "date": one} for one in moves)]
    statuses = [{**STATUS, "date": hired}]
    if left:
        statuses.append({"id": "9", "date": left, "employmentStatus": "Terminated"})
    event = seen(Known(), action=action, jobs=jobs, statuses=statuses)
    assert event is not None
    assert event.operation == operation


def test_a_first_position_that_is_entered_late_is_no_move() -> None:
    jobs = [{**JOB, "date": "2026-11-10"}]
    record = {"id": "5", "hireDate": "2020-01-01"}
    event = seen(Known(), jobs=jobs, employee=record)
    assert event is not None
    assert event.operation == "UPDATED"


def test_who_left_moves_no_more() -> None:
    known = Known()
    gone = [{"id": "12", "date": "2026-11-10", "employmentStatus": "Terminated"}]
    assert seen(known, statuses=gone) is not None
    event = seen(known, statuses=gone, jobs=[{**JOB, "department": "Archive"}])
    assert event is not None
    assert (event.operation, event.raw_payload["verity"]["changed"]) == ("UPDATED", ["department"])


def test_without_tables_the_record_says_what_it_can() -> None:
    known = Known()
    record = {"id": "5", "status": "Active", "department": "Sales", "employmentStatus": "Full-Time"}
    assert seen(known, jobs=[], statuses=[], employee=record) is not None
    moved = seen(known, jobs=[], statuses=[], employee={**record, "department": "Legal"})
    assert moved is not None
    assert moved.operation == "MOVER"
    left = seen(
        known,
        jobs=[],
        statuses=[],
        employee={**record, "status": "Inactive", "terminationDate": "2026-11-19"},
    )
    assert left is not None
    assert left.raw_payload["verity"]["effective_date"] == "2026-11-19"


def test_a_field_of_the_wrong_kind_is_named_and_not_shown() -> None:
    with pytest.raises(Malformed, match="workEmail") as raised:
        seen(Known(), employee={"id": "5", "workEmail": {"a": "PRIVATE"}})
    assert "PRIVATE" not in str(raised.value)


def test_managers_are_found_by_a_name_that_only_one_has() -> None:
    people = [("1", "Ann", "Lee"), ("2", "Bo", "Xu"), ("3", "Bo", "Xu"), ("4", "Cy", "Z")]
    directory = {
        one: {"id": one, "firstName": first, "lastName": last} for one, first, last in people
    }
    managers = {"2": "Ann Lee", "3": "Bo Xu", "4": "No Body"}
    jobs = {
        one: [{"id": one, "date": "2026-01-01", "reportsTo": who}] for one, who in managers.items()
    }
    holders, lost, faulty = bamboohr.directory_holders(
        directory, Tables(jobs, {}), date(2026, 2, 1), frozenset()
    )
    assert {one.person_id: one.manager_id for one in holders} == {
        "1": None,
        "2": "1",
        "3": None,
        "4": None,
    }
    assert (lost, faulty) == (["3", "4"], [])


# SCIM


def user(**changes: Any) -> dict[str, Any]:
    return {
        "id": "a1",
        "userName": "Amy@Acme.example",
        "active": True,
        "name": {"givenName": "Amy", "familyName": "Berg"},
        "title": "Clerk",
        "emails": [{"value": "amy@acme.example", "type": "work"}],
        "meta": {
            "created": "2026-01-01T00:00:00Z",
            "lastModified": "2026-11-20T10:00:00.123456789Z",
            "version": 'W/"3"',
        },
        ENTERPRISE: {"department": "Sales", "manager": {"value": "b2"}},
        **changes,
    }


def observed(known: Known, record: dict[str, Any]) -> RawEvent | None:
    kept = keep_user(record)
    return observe(scim.observation(kept, scim.times_of(kept), SCIM_CONTEXT), known, BEGAN)


@given(any_json)
def test_any_scim_resource_maps_or_is_malformed(body: Any) -> None:
    record = keep_user(body)
    try:
        observe(scim.observation(record, scim.times_of(record), SCIM_CONTEXT), Known(), BEGAN)
    except Malformed as error:
        orjson.loads(scim.rejected(record, str(error)).data)
    reads: tuple[Callable[[], Any], ...] = (
        lambda: list(grants_of(scim.holder(record, SCIM_CONTEXT.shown), READ)),
        lambda: scim.memberships(scim_filter(["displayName", "members"])(body), READ),
    )
    for read in reads:
        try:
            read()
        except Malformed:
            pass


def test_what_scim_shows_becomes_events_by_difference() -> None:
    known = Known()
    first = observed(known, user())
    assert first is not None
    assert (first.operation, first.event_id) == ("UPDATED", 'scim:idp:a1:W/"3"')
    assert first.occurred_at == datetime(2026, 11, 20, 10, 0, 0, 123456, tzinfo=UTC)
    touched = user(meta={"lastModified": "2026-11-21T10:00:00Z", "version": 'W/"4"'})
    assert observed(known, touched) is None, "a new version without a difference is no event"
    moved = observed(known, user(**{ENTERPRISE: {"department": "Legal"}}))
    assert moved is not None
    assert moved.operation == "MOVER"
    assert moved.raw_payload["verity"]["changed"] == ["department", "manager"]
    renamed = observed(known, user(displayName="A. Berg", **{ENTERPRISE: {"department": "Legal"}}))
    assert renamed is not None
    assert (renamed.operation, renamed.raw_payload["verity"]["changed"]) == ("UPDATED", ["profile"])
    left = observed(known, user(active="False", emails=[], **{ENTERPRISE: {"department": "Legal"}}))
    assert left is not None
    assert left.operation == "LEAVER"
    assert left.raw_payload["verity"]["email"] == "amy@acme.example"
    assert left.raw_payload["verity"]["effective_date"] == "2026-11-20"


@pytest.mark.parametrize(
    ("created", "modified", "is_active", "operation"),
    [
        ("2026-11-02T00:00:00Z", "2026-11-02T00:00:00Z", True, "JOINER"),
        ("2026-11-02T00:00:00Z", "2026-11-02T00:00:00Z", False, "UPDATED"),
        ("2026-11-02T00:00:00Z", "2026-11-03T00:00:00Z", False, "LEAVER"),
        ("2026-01-02T00:00:00Z", "2026-11-03T00:00:00Z", True, "UPDATED"),
        (None, "2026-11-03T00:00:00Z", True, "JOINER"),
        (None, None, True, "JOINER"),
    ],
)
def test_of_a_user_unknown_meta_tells(
    created: str | None, modified: str | None, is_active: bool, operation: str
) -> None:
    event = observed(
        Known(), user(active=is_active, meta={"created": created, "lastModified": modified})
    )
    assert event is not None
    assert event.operation == operation


def test_an_id_needs_a_version_a_time_or_the_values() -> None:
    def event_id(meta: Any, **changes: Any) -> str:
        kept = keep_user(user(meta=meta, **changes))
        return scim.observation(kept, scim.times_of(kept), SCIM_CONTEXT).event_id

    assert event_id({"lastModified": "2026-11-20T10:00:00Z"}) == "scim:idp:a1:2026-11-20T10:00:00Z"
    bare = event_id(None)
    assert bare == event_id(None)
    assert bare != event_id(None, title="Boss")


def test_the_work_address_is_found() -> None:
    def email(*emails: dict[str, Any]) -> str | None:
        return scim.values_of(keep_user(user(emails=list(emails))), SCIM_CONTEXT.shown)[
            "work_email"
        ]

    home = {"value": "h@x.example", "type": "home", "primary": True}
    other = {"value": "o@x.example", "type": "other", "primary": True}
    work = {"value": "w@x.example", "type": "work"}
    assert email(home, other, work) == "w@x.example"
    assert email(home, other) == "o@x.example"
    assert email(home) is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"id": None}, "no id"),
        ({"active": "PRIVATE"}, "active"),
        ({"meta": {"lastModified": "PRIVATE"}}, r"meta\.lastModified"),
        ({"userName": ["PRIVATE"]}, "userName"),
        ({"emails": [["PRIVATE"]]}, None),
        ({ENTERPRISE: {"manager": "m9"}}, None),
    ],
)
def test_what_is_wrong_is_named_and_not_shown(changes: dict[str, Any], named: str | None) -> None:
    if named is None:
        assert observed(Known(), user(**changes)) is not None
        return
    with pytest.raises(Malformed, match=named) as raised:
        observed(Known(), user(**changes))
    assert "PRIVATE" not in str(raised.value)


@pytest.mark.parametrize(
    ("held", "totals", "is_doubtful"),
    [(3, [3, 3], False), (3, [], False), (3, [3, 4], True), (2, [3, 3], True), (4, [3, 3], True)],
)
def test_a_listing_is_complete_if_the_counts_agree(
    held: int, totals: list[int], is_doubtful: bool
) -> None:
    """Somebody who comes in front while it is read makes one repeat, and the first count agree."""
    listing = Listing({str(number): {} for number in range(held)})
    assert (doubt_of(listing, totals) is not None) == is_doubtful


def test_a_snapshot_of_a_user_and_a_group() -> None:
    kept = keep_user(user(roles=[{"value": "approver"}, {"value": "approver"}], entitlements=None))
    rows = list(grants_of(scim.holder(kept, SCIM_CONTEXT.shown), READ))
    assert [(one.asset_ref, one.privilege, one.grant_mechanism) for one in rows] == [
        ("hr:department:Sales", "member_of", "role"),
        ("hr:job_title:Clerk", "job_title", "role"),
        ("hr:employee:b2", "reports_to", "role"),
        ("hr:role:approver", "assigned", "role"),
        ("user:amy@acme.example", "alias", "alias"),
    ]
    inactive = keep_user(user(active=False))
    rows = list(grants_of(scim.holder(inactive, SCIM_CONTEXT.shown), READ))
    assert [one.asset_ref for one in rows] == ["user:amy@acme.example"]
    group = {
        "id": "g1",
        "displayName": "All",
        "members": [
            {"value": "a1"},
            {"value": "g2", "$ref": "https://x.example/v2/Groups/g2"},
            {"value": "g3", "type": "Group"},
            {"value": "a1", "type": "User"},
            {"display": "nobody"},
        ],
    }
    members = scim.memberships(scim_filter(["displayName", "members"])(group), READ)
    assert [(one.principal_ref, one.asset_ref, one.privilege) for one in members] == [
        ("hr:employee:a1", "group:g1", "member"),
        ("group:g2", "group:g1", "member"),
        ("group:g3", "group:g1", "member"),
    ]
