"""From Graph's records to events: what is taken from where, and what is refused."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.azure_ad.records import SIGN_IN, audit_event, sign_in_event
from connectors.azure_ad.streams import AUDITS, SIGN_INS, fetched, is_past_retention
from verity_sdk import Malformed, RawEvent
from verity_sdk.windows import Slice

AT = datetime(2026, 11, 24, 9, tzinfo=UTC)

MEMBER_ADDED: dict[str, Any] = {
    "id": "Directory_5b1e_9QXY_77",
    "activityDateTime": "2026-11-24T08:01:02.1234567Z",
    "activityDisplayName": "Add member to group",
    "category": "GroupManagement",
    "operationType": "Assign",
    "result": "success",
    "initiatedBy": {"user": {"id": "u-1", "userPrincipalName": "ann@contoso.example"}, "app": None},
    "targetResources": [
        {"id": "u-2", "type": "User", "userPrincipalName": "ben@contoso.example"},
        {"id": "g-1", "type": "Group", "displayName": "Finance"},
    ],
}
SIGNED_IN: dict[str, Any] = {
    "id": "s-1",
    "createdDateTime": "2026-11-24T08:01:02Z",
    "userId": "u-1",
    "userPrincipalName": "ann@contoso.example",
    "appId": "a-1",
    "resourceId": "r-1",
    "status": {"errorCode": 50126},
}
NOBODY = "00000000-0000-0000-0000-000000000000"

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def with_changes(record: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(record), **changes}


def test_an_audit_record_becomes_one_event() -> None:
    """Who, what, when and the id, and the whole record as payload."""
    event = audit_event(MEMBER_ADDED)
    assert event == RawEvent(
        platform="azure_ad",
        event_id="Directory_5b1e_9QXY_77",
        occurred_at=datetime(2026, 11, 24, 8, 1, 2, 123456, tzinfo=UTC),
        principal_ref="user:u-1",
        asset_ref="group:g-1",
        operation="Add member to group",
        raw_payload=MEMBER_ADDED,
    )
    assert event.raw_payload["activityDateTime"].endswith("4567Z")


@pytest.mark.parametrize(
    ("initiated_by", "principal"),
    [
        ({"user": {"id": "u", "userPrincipalName": None}, "app": None}, "user:u"),
        ({"user": {"id": "u"}, "app": {"servicePrincipalId": "s"}}, "user:u"),
        ({"user": None, "app": {"servicePrincipalId": "s", "appId": "a"}}, "sp:s"),
        ({"user": {"id": None}, "app": {"servicePrincipalId": None, "appId": "a"}}, "app:a"),
        ({"user": {"id": ""}, "app": {"servicePrincipalId": "", "appId": ""}}, "unknown"),
        ({"user": {"userPrincipalName": "ann@contoso.example"}}, "unknown"),
        ({"user": None, "app": {"displayName": "Some Service"}}, "unknown"),
        ({"user": "ann", "app": 7}, "unknown"),
        ({}, "unknown"),
        (None, "unknown"),
        ([], "unknown"),
    ],
)
def test_the_principal_is_keyed_by_object_id(initiated_by: Any, principal: str) -> None:
    """A user, else a service principal, else an application, else nobody; a name is no key."""
    record = with_changes(MEMBER_ADDED, initiatedBy=initiated_by)
    assert audit_event(record).principal_ref == principal


@pytest.mark.parametrize(
    ("targets", "asset"),
    [
        ([{"id": "u", "type": "User"}, {"id": "r", "type": "Role"}], "role:r"),
        ([{"id": "u", "type": "User"}, {"id": "p", "Type": "Policy"}], "policy:p"),
        ([{"id": "a", "type": "Application"}, {"id": "g", "type": "Group"}], "application:a"),
        ([{"id": "u", "type": "User"}, {"id": "v", "type": "User"}], "user:u"),
        ([{"id": None, "type": "Policy", "displayName": "MFA"}], "policy:MFA"),
        ([{"id": None, "type": "N/A", "displayName": None}], "unknown"),
        ([{"id": "x", "type": None}], "unknown"),
        ([{"id": "x", "type": "SomethingNew"}], "somethingNew:x"),
        ([None, 3, {"id": "d", "type": "Device"}], "device:d"),
        ([], "unknown"),
        (None, "unknown"),
        ({}, "unknown"),
    ],
)
def test_the_asset_is_what_was_changed(targets: Any, asset: str) -> None:
    """The grantee of a membership is a user; the asset is the group or role."""
    assert audit_event(with_changes(MEMBER_ADDED, targetResources=targets)).asset_ref == asset


@pytest.mark.parametrize("name", ["id", "activityDateTime"])
@pytest.mark.parametrize("value", [None, "", 7, [], {}])
def test_a_record_without_id_or_time_is_malformed(name: str, value: Any) -> None:
    """And says which."""
    with pytest.raises(Malformed, match=name):
        audit_event(with_changes(MEMBER_ADDED, **{name: value}))


def test_a_time_that_is_none_is_malformed() -> None:
    """It is not guessed."""
    with pytest.raises(Malformed, match="yesterday"):
        audit_event(with_changes(MEMBER_ADDED, activityDateTime="yesterday"))


def test_an_operation_without_a_name_has_its_type() -> None:
    """An odd record is still an event."""
    nameless = with_changes(MEMBER_ADDED, activityDisplayName=None)
    assert audit_event(nameless).operation == "Assign"
    assert audit_event(with_changes(nameless, operationType="")).operation == "unknown"


@pytest.mark.parametrize(
    ("changes", "is_workload", "principal", "asset"),
    [
        ({}, False, "user:u-1", "app:r-1"),
        ({"userId": NOBODY}, False, "unknown", "app:r-1"),
        ({"userId": "", "servicePrincipalId": "s"}, True, "sp:s", "app:r-1"),
        ({"userId": "", "servicePrincipalId": ""}, True, "app:a-1", "app:r-1"),
        ({"userId": None}, False, "unknown", "app:r-1"),
        ({"resourceServicePrincipalId": "p"}, False, "user:u-1", "servicePrincipal:p"),
        ({"resourceId": None}, False, "user:u-1", "app:a-1"),
        ({"resourceId": None, "appId": None}, False, "user:u-1", "unknown"),
    ],
)
def test_a_sign_in_becomes_one_event(
    changes: dict[str, Any], is_workload: bool, principal: str, asset: str
) -> None:
    """A person who is not known is not the application that was used."""
    record = with_changes(SIGNED_IN, **changes)
    event = sign_in_event(record, is_workload=is_workload)
    assert (event.principal_ref, event.asset_ref) == (principal, asset)
    assert event.event_id == "s-1"
    assert event.occurred_at == datetime(2026, 11, 24, 8, 1, 2, tzinfo=UTC)
    assert event.operation == SIGN_IN
    assert event.raw_payload == record


@given(anything)
def test_any_json_maps_or_is_malformed(record: Any) -> None:
    """Nothing else comes out of the mapping."""
    for stream in (AUDITS, *SIGN_INS.values()):
        try:
            event = stream.event(record)
        except Malformed:
            continue
        assert event.event_id
        assert event.occurred_at.tzinfo is UTC


@given(
    st.sampled_from([*sorted(MEMBER_ADDED), "createdDateTime", "userId", "resourceId"]),
    anything,
)
def test_any_single_oddity_maps_or_is_malformed(name: str, value: Any) -> None:
    """Whatever one field of a good record turns into."""
    for stream, record in ((AUDITS, MEMBER_ADDED), (SIGN_INS["interactive"], SIGNED_IN)):
        odd = with_changes(record, **{name: value})
        try:
            event = stream.event(odd)
        except Malformed:
            continue
        assert event.raw_payload == odd


def test_what_is_not_understood_is_rejected_with_its_bytes() -> None:
    """The others of the slice are events."""
    broken = with_changes(MEMBER_ADDED, activityDateTime=None)
    found = fetched(AUDITS, [MEMBER_ADDED, broken, "no record"])
    assert [event.event_id for event in found.events] == ["Directory_5b1e_9QXY_77"]
    first, second = found.rejected
    assert orjson.loads(first.data) == broken
    assert (first.reference, second.reference) == ("Directory_5b1e_9QXY_77", None)
    assert "activityDateTime" in first.reason
    assert second.data == b'"no record"'


def test_a_window_is_asked_for_with_documented_operators_only() -> None:
    """Whole seconds, `ge` and `le`, and an order only where one is documented."""
    audits = AUDITS.listing(AT, AT + timedelta(hours=1), is_ordered=True)
    assert audits.params == {
        "$filter": "activityDateTime ge 2026-11-24T09:00:00Z"
        " and activityDateTime le 2026-11-24T10:00:00Z",
        "$top": "999",
        "$orderby": "activityDateTime asc",
    }
    assert "$orderby" not in AUDITS.listing(AT, AT, is_ordered=False).params
    for kind, stream in SIGN_INS.items():
        params = stream.listing(AT, AT, is_ordered=True).params
        assert "$orderby" not in params
        assert stream.path.startswith("/v1.0") == (kind == "interactive")
        assert ("signInEventTypes" in params["$filter"]) == (kind != "interactive")
    assert len({stream.name for stream in (AUDITS, *SIGN_INS.values())}) == 5


@pytest.mark.parametrize(
    ("age", "message", "is_past"),
    [
        (timedelta(days=8), "Invalid filter clause", True),
        (timedelta(days=6), "Invalid filter clause", False),
        (timedelta(days=8), "Query option 'Skip' is not allowed.", False),
    ],
)
def test_only_an_old_slice_can_be_past_retention(
    age: timedelta, message: str, is_past: bool
) -> None:
    """The same refusal of a recent one is a fault of ours."""
    one = Slice(AT - age, AT - age + timedelta(hours=1))
    assert is_past_retention(message, one, AT) is is_past
