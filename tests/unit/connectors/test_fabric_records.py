"""What Fabric's records mean: events, grants, silence, settings."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from connectors.fabric import FabricConnector, Settings, grants
from connectors.fabric import references as names
from connectors.fabric.activity import _Listing
from connectors.fabric.admin_api import _next_url
from connectors.fabric.records import event_of, read_records
from connectors.fabric.silence import SilenceWatch
from verity_sdk.connector_base import PermissionSnapshot, RawEvent
from verity_sdk.errors import Malformed, Misconfigured
from verity_sdk.http import Answer

AT = datetime(2026, 11, 24, 8, tzinfo=UTC)
BASE: dict[str, Any] = {
    "Id": "0b1c5f3e-77a7-4c7e-9d54-4f0f6f6a2f11",
    "CreationTime": "2026-11-24T07:55:15",
    "Operation": "ViewReport",
    "UserType": 0,
    "UserKey": "1003200000000001",
    "UserId": "Amy.Adams@contoso.example",
    "OrganizationId": "org-1",
}

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
RECORD_FIELDS = [
    "Id", "CreationTime", "Operation", "Activity", "UserType", "UserId", "ClientId", "ArtifactId",
    "ReportId", "WorkspaceId", "ObjectId", "CapacityId", "OrganizationId",
]  # fmt: skip


# ── Events ───────────────────────────────────────────────────────────────────────────────────


def test_an_event_says_who_did_what_when() -> None:
    record = {**BASE, "WorkspaceId": "w-1", "WorkSpaceName": "Finance", "ArtifactId": "r-1"}
    assert event_of(record) == RawEvent(
        platform="fabric",
        event_id="0b1c5f3e-77a7-4c7e-9d54-4f0f6f6a2f11",
        occurred_at=datetime(2026, 11, 24, 7, 55, 15, tzinfo=UTC),
        principal_ref="user:amy.adams@contoso.example",
        asset_ref="workspace:w-1/item:r-1",
        operation="ViewReport",
        raw_payload=record,
    )


@pytest.mark.parametrize(
    ("fields", "principal"),
    [
        ({"UserType": 0}, "user:amy.adams@contoso.example"),
        ({"UserType": 5, "UserId": "App-Id"}, "sp:App-Id"),
        ({"UserType": 6, "UserId": "Sp-Id"}, "sp:Sp-Id"),
        ({"UserType": 6, "UserId": None, "ClientId": "Client"}, "sp:Client"),
        ({"UserType": 6, "UserId": ""}, "unknown"),
        ({"UserType": 99}, "user:amy.adams@contoso.example"),
        ({"UserType": "Robot"}, "user:amy.adams@contoso.example"),
        ({"UserId": None}, "unknown"),
        ({"UserId": 7}, "unknown"),
    ],
)
def test_who_it_was(fields: dict[str, Any], principal: str) -> None:
    assert event_of({**BASE, **fields}).principal_ref == principal


ASSETS = [
    ("ArtifactId", "a", "workspace:w/item:a"),
    ("ReportId", "r", "workspace:w/item:r"),
    ("DashboardId", "b", "workspace:w/item:b"),
    ("DataflowId", "f", "workspace:w/item:f"),
    ("DatasetId", "d", "workspace:w/item:d"),
    ("ItemId", "i", "workspace:w/item:i"),
    ("WorkspaceId", "w", "workspace:w"),
    ("ObjectId", "o", "object:o"),
    ("CapacityId", "c", "capacity:c"),
    ("OrganizationId", "org", "tenant:org"),
]


@pytest.mark.parametrize("first", range(len(ASSETS)))
def test_the_most_specific_id_is_the_asset(first: int) -> None:
    record = {**BASE, **{field: value for field, value, _ in ASSETS[first:]}}
    expected = ASSETS[first][2]
    assert event_of(record).asset_ref == expected


def test_an_item_without_a_workspace_and_an_event_about_nothing() -> None:
    assert event_of({**BASE, "ReportId": "r"}).asset_ref == "item:r"
    assert event_of({**BASE, "OrganizationId": None}).asset_ref == "unknown"


def test_activity_stands_in_for_operation() -> None:
    assert event_of({**BASE, "Operation": None, "Activity": "NewThing"}).operation == "NewThing"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ([], "not an object"),
        ({**BASE, "Id": None}, "no Id"),
        ({**BASE, "CreationTime": 7}, "no CreationTime"),
        ({**BASE, "CreationTime": "yesterday"}, "yesterday"),
        ({**BASE, "Operation": ""}, "neither Operation"),
    ],
)
def test_what_is_not_understood_says_why(record: Any, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        event_of(record)


def test_a_rejected_record_keeps_its_bytes_and_the_others_go_on() -> None:
    broken = {**BASE, "Id": "broken", "CreationTime": "?"}
    events, rejected = read_records([BASE, broken, 7])
    assert [event.event_id for event in events] == [BASE["Id"]]
    assert [orjson.loads(one.data) for one in rejected] == [broken, 7]
    assert [one.reference for one in rejected] == ["broken", None]


@given(json_values | st.dictionaries(st.sampled_from(RECORD_FIELDS), json_values))
def test_any_value_maps_or_is_malformed(value: Any) -> None:
    try:
        event = event_of(value)
    except Malformed:
        (rejected,) = read_records([value])[1]
        assert json.loads(rejected.data) == value
        return
    assert event.event_id
    assert event.operation
    assert event.occurred_at.tzinfo is UTC
    assert ":" in event.principal_ref or event.principal_ref == "unknown"


# ── Grants ───────────────────────────────────────────────────────────────────────────────────


def rows_of(found: grants.Found) -> set[tuple[str, str, str, str, str | None]]:
    return {
        (one.principal_ref, one.asset_ref, one.privilege, one.grant_mechanism, one.granted_via)
        for one in found.rows
    }


def scanned_user(**fields: Any) -> dict[str, Any]:
    return {"identifier": "Amy@contoso.example", "principalType": "User", **fields}


@pytest.mark.parametrize(
    ("user", "ref", "login"),
    [
        (scanned_user(graphId="g-1"), "user:g-1", "Amy@contoso.example"),
        (scanned_user(graphId="g-1", emailAddress="a@b.c"), "user:g-1", "a@b.c"),
        (scanned_user(), "user:amy@contoso.example", None),
        (scanned_user(principalType="Group", graphId="g"), "group:g", None),
        (scanned_user(principalType="Group", identifier="i"), "group:i", None),
        (scanned_user(principalType="App", graphId="s"), "sp:s", None),
        (scanned_user(principalType="App", profile={"id": "p"}), "sp_profile:p", None),
        (scanned_user(principalType="None"), "all_tenant_users", None),
        (scanned_user(principalType="Robot", graphId="x"), "principal:x", None),
        (scanned_user(principalType=None, graphId="x"), "principal:x", None),
    ],
)
def test_who_a_user_of_a_scan_is(user: dict[str, Any], ref: str, login: str | None) -> None:
    assert grants.scanned_holder(user) == grants.Holder(ref, login)


def test_a_workspace_of_a_scan() -> None:
    amy = scanned_user(graphId="g-1", emailAddress="Amy@contoso.example")
    workspace = {
        "id": "w",
        "name": "Finance",
        "users": [{**amy, "groupUserAccessRight": "Admin"}],
        "reports": [{"id": "r", "users": [{**amy, "reportUserAccessRight": "ReadReshare"}]}],
        "dataflows": [{"objectId": "f", "users": [{**amy, "DataflowUserAccessRight": "Owner"}]}],
        "datamarts": [{"id": "m", "Users": [{**amy, "datamartUserAccessRight": "Write"}]}],
        "Notebook": [{"id": "n", "users": [{**amy, "artifactUserAccessRight": "Fly"}]}],
        "datasets": [{"id": "d", "users": [{**amy, "datasetUserAccessRight": "None"}]}],
        "dashboards": [{"id": "b", "tiles": [{"id": "t"}]}],
    }
    found = grants.scanned(workspace, AT, {"id": "scan"})
    assert not found.problems
    assert rows_of(found) == {
        ("user:g-1", "user:amy@contoso.example", "alias", "alias", None),
        ("user:g-1", "workspace:w", "Admin", "role", "Admin"),
        ("user:g-1", "workspace:w/item:r", "ReadReshare", "direct", None),
        ("user:g-1", "workspace:w/item:f", "Owner", "direct", None),
        ("user:g-1", "workspace:w/item:m", "Write", "direct", None),
        ("user:g-1", "workspace:w/item:n", "Fly", "direct", None),
    }
    assert {one.snapshot_at for one in found.rows} == {AT}
    report = next(one for one in found.rows if one.asset_ref.endswith("item:r"))
    assert report.raw_payload == {
        "workspace": {"id": "w", "name": "Finance"},
        "item": {"id": "r", "kind": "reports", "name": None},
        "user": {**amy, "reportUserAccessRight": "ReadReshare"},
        "scan": {"id": "scan"},
    }


@pytest.mark.parametrize(
    ("workspace", "problem"),
    [
        ({"users": [{"principalType": "User"}]}, "no access right"),
        ({"users": [{"groupUserAccessRight": "Admin", "principalType": "User"}]}, "no id"),
        ({"users": [7]}, "no object"),
        ({"users": 7}, "no list"),
        ({"reports": [{"users": []}]}, "no id"),
        ({"dataRetrievalState": "PartiallyFailed"}, "PartiallyFailed"),
    ],
)
def test_what_a_scan_does_not_tell_is_a_problem(workspace: Any, problem: str) -> None:
    found = grants.scanned({"id": "w", **workspace}, AT, {})
    assert len(found.problems) == 1
    assert problem in found.problems[0]


@pytest.mark.parametrize(
    ("principal", "ref", "login"),
    [
        ({"id": "u", "type": "User", "userDetails": {"userPrincipalName": "A@b"}}, "user:u", "A@b"),
        ({"id": "u", "type": "User"}, "user:u", None),
        ({"id": "g", "type": "Group"}, "group:g", None),
        ({"id": "s", "type": "ServicePrincipal"}, "sp:s", None),
        ({"id": "p", "type": "ServicePrincipalProfile"}, "sp_profile:p", None),
        ({"id": "t", "type": "EntireTenant"}, "all_tenant_users", None),
        ({"id": "x", "type": "Swarm"}, "principal:x", None),
    ],
)
def test_who_a_principal_is(principal: dict[str, Any], ref: str, login: str | None) -> None:
    assert grants.admin_holder(principal) == grants.Holder(ref, login)


def test_access_details_of_workspace_and_item() -> None:
    principal = {"id": "u", "type": "User", "userDetails": {"userPrincipalName": "A@b.c"}}
    access = {"principal": principal, "workspaceAccessDetails": {"workspaceRole": "Overlord"}}
    found = grants.workspace_access({"id": "w"}, {"accessDetails": [access]}, AT)
    assert rows_of(found) == {
        ("user:u", "workspace:w", "Overlord", "role", "Overlord"),
        ("user:u", "user:a@b.c", "alias", "alias", None),
    }
    details = {"permissions": ["Read", "Write"], "additionalPermissions": ["ReadAll", "Read"]}
    access = {"principal": {"id": "g", "type": "Group"}, "itemAccessDetails": details}
    found = grants.item_access({"id": "i", "workspaceId": "w"}, {"accessDetails": [access]}, AT)
    assert [one.privilege for one in found.rows] == ["Read", "Write", "ReadAll", "Read"]
    assert {(one.principal_ref, one.grant_mechanism) for one in found.rows} == {
        ("group:g", "direct")
    }


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        {"accessDetails": [7]},
        {"accessDetails": [{}]},
        {"accessDetails": [{"principal": {"type": "User"}}]},
        {"accessDetails": [{"principal": {"id": "u", "type": "User"}}]},
    ],
)
def test_what_the_admin_api_does_not_tell_is_a_problem(body: Any) -> None:
    assert len(grants.workspace_access({"id": "w"}, body, AT).problems) == 1
    assert len(grants.item_access({"id": "i", "workspaceId": "w"}, body, AT).problems) == 1


@given(st.dictionaries(st.sampled_from(["users", "reports", "Lakehouse", "name"]), json_values))
def test_any_scan_is_read_to_its_end(value: dict[str, Any]) -> None:
    found = grants.scanned({"id": "w", **value}, AT, {})
    assert all(isinstance(one, PermissionSnapshot) for one in found.rows)


@given(json_values)
def test_any_access_details_are_read_to_their_end(value: Any) -> None:
    for body in (value, {"accessDetails": value}, {"accessDetails": [{"principal": value}]}):
        assert isinstance(grants.workspace_access({"id": "w"}, body, AT), grants.Found)
        assert isinstance(
            grants.item_access({"id": "i", "workspaceId": "w"}, body, AT), grants.Found
        )


def test_events_and_grants_name_an_item_alike() -> None:
    event = event_of({**BASE, "WorkspaceId": "w", "ArtifactId": "i", "ArtifactKind": "Dataset"})
    assert event.asset_ref == names.item("w", "i")


# ── Paging ───────────────────────────────────────────────────────────────────────────────────


def answer_of(body: dict[str, Any]) -> Answer:
    return Answer("GET", "https://h/p", 200, {}, orjson.dumps(body))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"continuationToken": "%2B'", "continuationUri": "https://r/x?'%2B'"},
            "https://r/x?'%2B'",
        ),
        ({"continuationToken": "%2B"}, "https://h/p?continuationToken='%2B'"),
        ({"continuationToken": None, "continuationUri": "https://r/x"}, None),
        ({"continuationUri": "https://r/x", "lastResultSet": False}, None),
        ({}, None),
    ],
)
def test_the_token_says_whether_and_the_uri_where_to_go_on(
    fields: dict[str, Any], expected: str | None
) -> None:
    listing = _Listing("https://h/p")
    assert listing.next_url(answer_of({"activityEventEntities": [], **fields})) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"continuationToken": "a+/=", "continuationUri": "https://r/x?y"}, "https://r/x?y"),
        (
            {"continuationToken": "a+/="},
            "https://h/p?state=active&continuationToken=a%2B%2F%3D",
        ),
        ({"continuationUri": "https://r/x"}, None),
        ({}, None),
    ],
)
def test_the_admin_api_goes_on_likewise(fields: dict[str, Any], expected: str | None) -> None:
    assert _next_url(answer_of(fields), "https://h/p", {"state": "active"}) == expected


# ── Silence ──────────────────────────────────────────────────────────────────────────────────


def hour(n: float) -> datetime:
    return AT + timedelta(hours=n)


def watch_of(*windows: tuple[float, float, float | None]) -> SilenceWatch:
    watch = SilenceWatch(timedelta(hours=24))
    for start, end, newest in windows:
        watch.saw(hour(start), hour(end), None if newest is None else hour(newest))
    return watch


def is_silent(watch: SilenceWatch) -> bool:
    return watch.silence is not None


def test_a_day_without_an_event_is_a_silence() -> None:
    watch = watch_of(*[(n, n + 1, None) for n in range(23)])
    assert not is_silent(watch)
    watch.saw(hour(23), hour(24), None)
    assert watch.silence is not None
    assert (watch.silence.from_at, watch.silence.to_at) == (hour(0), hour(24))
    assert watch.silence.window_count == 24


def test_an_event_ends_it_and_silence_starts_at_the_event() -> None:
    watch = watch_of(*[(n, n + 1, None) for n in range(30)])
    watch.saw(hour(30), hour(31), hour(30.5))
    assert not is_silent(watch)
    for n in range(31, 55):
        watch.saw(hour(n), hour(n + 1), None)
    assert watch.silence is not None
    assert watch.silence.from_at == hour(30.5)


def test_an_event_that_is_dated_ahead_hides_no_silence() -> None:
    watch = watch_of((0, 1, 1000), *[(n, n + 1, None) for n in range(1, 30)])
    assert watch.silence is not None
    assert watch.silence.from_at == hour(1)


def test_what_is_read_again_counts_once() -> None:
    windows = [(n - back, n - back + 1, None) for n in range(12) for back in (2, 1, 0)]
    assert watch_of(*windows).silence is None


def test_a_late_event_within_the_silence_ends_it() -> None:
    watch = watch_of(*[(n, n + 1, None) for n in range(30)])
    watch.saw(hour(20), hour(21), hour(20.25))
    assert watch.silence is None


def test_an_event_before_the_silence_does_not() -> None:
    watch = watch_of((-1, 0, -0.5), *[(n, n + 1, None) for n in range(30)])
    watch.saw(hour(-3), hour(-2), hour(-2.5))
    assert watch.silence is not None


def test_after_a_restart_the_look_back_tells_how_long_it_lasts() -> None:
    watch = watch_of((22, 23, None), (23, 24, None))
    assert not is_silent(watch)
    for n in range(24):
        watch.saw(hour(n), hour(n + 1), None)
    assert watch.silence is not None
    assert watch.silence.from_at == hour(0)


def test_what_was_not_read_is_no_silence() -> None:
    assert watch_of((0, 1, None), (30, 31, None)).silence is None


def test_it_is_warned_of_once_a_day() -> None:
    watch = watch_of(*[(n, n + 1, None) for n in range(24)])
    times = [n for n in range(72) if watch.is_warning_due(hour(24 + n))]
    assert times == [0, 24, 48]
    watch.saw(hour(24), hour(25), hour(24.5))
    assert not watch.is_warning_due(hour(100))
    for n in range(25, 49):
        watch.saw(hour(n), hour(n + 1), None)
    assert watch.is_warning_due(hour(100))


# ── Settings ─────────────────────────────────────────────────────────────────────────────────

TABLE: dict[str, Any] = {
    "connector_id": "fabric-1",
    "tenant_id": "contoso.example",
    "client_id": "c",
    "client_secret": "s3cret-value",
}


def test_the_defaults_agree_with_the_class() -> None:
    settings = Settings.model_validate(TABLE)
    assert settings.lookback == FabricConnector.lookback
    assert settings.settle == FabricConnector.settle
    assert settings.retention == FabricConnector.retention
    assert settings.slice_max == FabricConnector.slice_max


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"client_secret": None}, "client_secret"),
        ({"client_id": ""}, "client_id"),
        ({"tenant_id": "a/b"}, "tenant_id"),
        ({"slice_max": "25h"}, "slice_max"),
        ({"lookback": "24h"}, "lateness and lookback_every"),
        ({"workspaces_per_scan": 101}, "workspaces_per_scan"),
        ({"scans_concurrent": 17}, "scans_concurrent"),
        ({"power_bi_url": "api.powerbi.com"}, "power_bi_url"),
        ({"snapshot_source": "telepathy"}, "snapshot_source"),
        ({"unknown": 1}, "unknown"),
        ({"http": {"read_timeout": "soon"}}, "http.read_timeout"),
    ],
)
def test_a_fault_names_its_setting_and_shows_no_secret(change: dict[str, Any], fault: str) -> None:
    with pytest.raises(Misconfigured, match=fault) as caught:
        FabricConnector({**TABLE, **change}, None, None)
    assert "s3cret-value" not in str(caught.value)
    with pytest.raises(ValidationError) as raw:
        Settings.model_validate({**TABLE, **change})
    assert "s3cret-value" not in str(raw.value)


def test_durations_and_nested_tables_are_read_from_text() -> None:
    settings = Settings.model_validate(
        {**TABLE, "slice_max": "24h", "http": {"read_timeout": "5s", "proxy": "http://p:1"}}
    )
    assert settings.slice_max == timedelta(hours=24)
    assert settings.http.read_timeout == timedelta(seconds=5)


def test_a_managed_identity_needs_no_secret() -> None:
    table = {"connector_id": "x", "tenant_id": "t", "authentication": "azure_identity"}
    assert Settings.model_validate(table).client_secret is None
