"""From rows of the audit table to events."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.databricks.records import event_of, fallback_id, parse_rows
from connectors.databricks.references import Workspace
from verity_sdk.connector_base import RawEvent
from verity_sdk.errors import Malformed

PLACE = Workspace("m-1", "42")
APP = "0f5d6e7a-1111-4000-8000-00000000c1de"
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def record(**changes: Any) -> dict[str, Any]:
    found = {
        "account_id": "acc",
        "workspace_id": "77",
        "user_identity": {"email": "amy@contoso.example"},
        "service_name": "unityCatalog",
        "action_name": "getTable",
        "request_params": {"full_name_arg": "main.hr.salary"},
        **changes,
    }
    return {key: value for key, value in found.items() if value is not ...}


def row(event_id: Any = "e1", ts_us: Any = "1764000000123000", **changes: Any) -> list[Any]:
    return [event_id, ts_us, json.dumps(record(**changes))]


def test_a_row_becomes_an_event_with_its_whole_record() -> None:
    assert event_of(row(), PLACE) == RawEvent(
        platform="databricks",
        event_id="e1",
        occurred_at=datetime(2025, 11, 24, 16, 0, 0, 123000, UTC),
        principal_ref="user:amy@contoso.example",
        asset_ref="uc:m-1/table/main.hr.salary",
        operation="unityCatalog.getTable",
        raw_payload=record(),
    )


@pytest.mark.parametrize("ts_us", ["0", "-1", "1764000000000001", "253402300799999999"])
def test_times_keep_their_microseconds(ts_us: str) -> None:
    at = event_of(row(ts_us=ts_us), PLACE).occurred_at
    assert at.tzinfo is UTC
    delta = at - datetime(1970, 1, 1, tzinfo=UTC)
    assert (delta.days * 86400 + delta.seconds) * 10**6 + delta.microseconds == int(ts_us)


@pytest.mark.parametrize(
    ("identity", "metadata", "principal"),
    [
        ({"email": "Amy@Contoso.Example"}, ..., "user:Amy@Contoso.Example"),
        ({"email": APP}, ..., f"sp:{APP}"),
        ({"email": "System-User"}, ..., "user:System-User"),
        ({"email": "unknown"}, ..., "unknown"),
        ({"email": "__REDACTED__"}, ..., "unknown"),
        ({"email": None, "subject_name": "bob"}, ..., "user:bob"),
        ({"subjectName": "bob"}, ..., "user:bob"),
        ({"email": ""}, {"run_by": "c@x.example", "run_as": "d@x.example"}, "user:c@x.example"),
        (..., {"run_as": "d@x.example"}, "user:d@x.example"),
        (None, None, "unknown"),
        (..., ..., "unknown"),
        ("a text", ["a list"], "unknown"),
        ({"email": 7}, ..., "unknown"),
    ],
)
def test_the_principal_is_who_acted(identity: Any, metadata: Any, principal: str) -> None:
    event = event_of(row(user_identity=identity, identity_metadata=metadata), PLACE)
    assert event.principal_ref == principal


@pytest.mark.parametrize(
    ("action", "parameters", "asset"),
    [
        ("getTable", {"full_name_arg": "a.b.c"}, "uc:m-1/table/a.b.c"),
        ("getSchema", {"full_name_arg": "a.b"}, "uc:m-1/schema/a.b"),
        ("getVolume", {"full_name_arg": "a.b.v"}, "uc:m-1/volume/a.b.v"),
        ("somethingNew", {"full_name_arg": "a.b.c"}, "uc:m-1/table/a.b.c"),
        ("somethingNew", {"full_name_arg": "a"}, "uc:m-1/catalog/a"),
        ("getTable", {"full_name_arg": "a.b.c", "metastore_id": "m-2"}, "uc:m-2/table/a.b.c"),
        (
            "updatePermissions",
            {"securable_type": "TABLE", "securable_full_name": "a.b.c", "full_name_arg": "x"},
            "uc:m-1/table/a.b.c",
        ),
        ("generateTemporaryTableCredential", {"table_full_name": "a.b.c"}, "uc:m-1/table/a.b.c"),
        ("getCatalog", {"name_arg": "main"}, "uc:m-1/catalog/main"),
        ("createSchema", {"name": "hr", "catalog_name": "main"}, "uc:m-1/schema/main.hr"),
        (
            "createTable",
            {"name": "t", "catalog_name": "main", "schema_name": "hr"},
            "uc:m-1/table/main.hr.t",
        ),
        ("listTables", {"catalog_name": "main", "schema_name": "hr"}, "uc:m-1/schema/main.hr"),
        ("listSchemas", {"catalog_name": "main", "name": "x"}, "uc:m-1/catalog/main"),
        ("x", {"schema_name": "main.hr"}, "uc:m-1/schema/main.hr"),
        ("x", {"schema_name": "hr"}, "workspace:77"),
        ("getExternalLocation", {"name_arg": "l"}, "uc:m-1/external_location/l"),
        ("createStorageCredential", {"name": "l"}, "uc:m-1/storage_credential/l"),
        ("create", {"name": "a cluster", "cluster_id": "c1"}, "workspace:77/clusters/c1"),
        ("commandSubmit", {"warehouseId": "w", "path": "/x"}, "workspace:77/warehouses/w"),
        ("runNow", {"jobId": "7"}, "workspace:77/jobs/7"),
        ("runCommand", {"notebookId": "9", "path": "/a"}, "workspace:77/notebooks/9"),
        ("export", {"path": "/Users/ä"}, "workspace:77/path//Users/ä"),
        ("login", {}, "workspace:77"),
        ("login", {"full_name_arg": "", "path": None, "cluster_id": 7}, "workspace:77"),
    ],
)
def test_the_asset_is_what_the_parameters_name(
    action: str, parameters: dict[str, Any], asset: str
) -> None:
    event = event_of(row(action_name=action, request_params=parameters), PLACE)
    assert event.asset_ref == asset


@pytest.mark.parametrize(
    ("changes", "asset"),
    [
        ({"workspace_id": "0"}, "account:acc"),
        ({"workspace_id": 0}, "account:acc"),
        ({"workspace_id": 77}, "workspace:77"),
        ({"workspace_id": ...}, "workspace:42"),
        ({"workspace_id": "0", "account_id": ...}, "workspace:0"),
    ],
)
def test_an_event_without_an_object_stands_on_its_workspace_or_account(
    changes: dict[str, Any], asset: str
) -> None:
    given: tuple[Any, ...] = ({}, None, ..., "text")
    for parameters in given:
        event = event_of(row(request_params=parameters, **changes), PLACE)
        assert event.asset_ref == asset


def test_an_event_without_an_id_is_known_by_its_record_whatever_the_order_of_its_keys() -> None:
    found = record(request_params={"b": "ä", "a": "1"})
    backwards = dict(reversed(found.items())) | {"request_params": {"a": "1", "b": "ä"}}
    text = json.dumps(found, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    expected = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    for event_id in (None, ""):
        for one in (found, backwards):
            event = event_of([event_id, "5", json.dumps(one)], PLACE)
            assert event.event_id == expected
    assert fallback_id(record(action_name="x")) != expected


@pytest.mark.parametrize(
    "bad",
    [
        None,
        "abc",
        7,
        [],
        ["e1", "5"],
        ["e1", "5", "{}", "more"],
        [7, "5", json.dumps(record())],
        row(ts_us=None),
        row(ts_us=5),
        row(ts_us="1_0"),
        row(ts_us="٣"),
        row(ts_us=" 5"),
        row(ts_us="999999999999999999"),
        ["e1", "5", None],
        ["e1", "5", "{"],
        ["e1", "5", "[]"],
        row(service_name=...),
        row(service_name=""),
        row(action_name=7),
    ],
)
def test_what_is_not_understood_is_malformed_and_keeps_its_bytes(bad: Any) -> None:
    with pytest.raises(Malformed):
        event_of(bad, PLACE)
    events, (rejected,) = parse_rows([row("before"), bad, row("after")], PLACE)
    assert [event.event_id for event in events] == ["before", "after"]
    assert json.loads(rejected.data) == bad
    assert rejected.reason


def test_a_rejected_row_is_found_again_by_its_id() -> None:
    _, (rejected,) = parse_rows([["e9", "5", "{"]], PLACE)
    assert rejected.reference == "e9"


@settings(max_examples=300)
@given(JSON_VALUES)
def test_any_json_value_is_an_event_or_malformed(value: Any) -> None:
    rows = [value, ["e", "5", value], ["e", "5", json.dumps(value)], ["e", value, "{}"]]
    rows.append(row(user_identity=value, request_params=value, identity_metadata=value))
    rows.append(row(service_name=value, workspace_id=value, account_id=value))
    rows.append(row(request_params={"full_name_arg": value, "path": value, "metastore_id": value}))
    events, rejected = parse_rows(rows, PLACE)
    assert len(events) + len(rejected) == len(rows)
    assert all(event.event_id and event.principal_ref and event.asset_ref for event in events)
