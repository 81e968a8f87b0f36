"""The fake workspace: does it behave as documented, and refuse what is not?

Every answer it gives here is read by databricks-sdk, whose classes are the only machine-readable
description of these APIs: what the SDK does not know, the fake must not say.
"""

from __future__ import annotations

import base64
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from databricks.sdk.service import catalog, compute, iam, jobs, pipelines, serving, sql, workspace
from fakes.databricks import (
    AZURE_CLIENT_ID,
    AZURE_CLIENT_SECRET,
    AZURE_SCOPE,
    AZURE_TENANT,
    CLIENT_ID,
    CLIENT_SECRET,
    PERSONAL_TOKEN,
    WAREHOUSE_ID,
    DatabricksFake,
    Stage,
)
from fakes.kit import Clock, Fault
from fakes.world import World

from connectors.databricks.statements import AUDIT_SQL

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
AUTHORISED = {"Authorization": f"Bearer {PERSONAL_TOKEN}"}
STATEMENTS = "/api/2.0/sql/statements"
CATALOG = "/api/2.1/unity-catalog"

# Route (without /api) → how the SDK reads its answers.
ORACLE: dict[str, Any] = {
    "2.0/sql/statements": sql.StatementResponse,
    "2.0/sql/statements/{id}": sql.StatementResponse,
    "2.0/sql/statements/{id}/result/chunks/{index:int}": sql.ResultData,
    "2.1/unity-catalog/current-metastore-assignment": catalog.MetastoreAssignment,
    "2.1/unity-catalog/metastore_summary": catalog.GetMetastoreSummaryResponse,
    "2.1/unity-catalog/effective-permissions/{kind}/{name:path}": catalog.EffectivePermissionsList,
    "2.0/permissions/{kind}/{id}": iam.ObjectPermissions,
    "2.1/clusters/list": compute.ListClustersResponse,
    "2.0/policies/clusters/list": compute.ListPoliciesResponse,
    "2.0/instance-pools/list": compute.ListInstancePools,
    "2.2/jobs/list": jobs.ListJobsResponse,
    "2.0/pipelines": pipelines.ListPipelinesResponse,
    "2.0/repos": workspace.ListReposResponse,
    "2.0/serving-endpoints": serving.ListEndpointsResponse,
    "2.0/sql/warehouses": sql.ListWarehousesResponse,
}
LISTINGS: dict[str, Any] = {
    "catalogs": catalog.ListCatalogsResponse,
    "schemas": catalog.ListSchemasResponse,
    "tables": catalog.ListTablesResponse,
    "volumes": catalog.ListVolumesResponseContent,
    "functions": catalog.ListFunctionsResponse,
    "external_locations": catalog.ListExternalLocationsResponse,
    "storage_credentials": catalog.ListStorageCredentialsResponse,
    "connections": catalog.ListConnectionsResponse,
}
SCIM: dict[str, Any] = {
    "userName": iam.ListUsersResponse,
    "applicationId": iam.ListServicePrincipalResponse,
    "displayName": iam.ListGroupsResponse,
}


def reader_of(kind: str, body: dict[str, Any]) -> Any:
    """The SDK's class for an answer."""
    if kind == "2.1/unity-catalog/{listing}":
        (key,) = [key for key in LISTINGS if key in body] or [None]
        return LISTINGS[key] if key else catalog.ListCatalogsResponse
    if kind == "2.0/preview/scim/v2/{resource}":
        first = (body.get("Resources") or [{"userName": ""}])[0]
        return next((SCIM[key] for key in SCIM if key in first), iam.ListUsersResponse)
    return ORACLE[kind]


def kept(value: Any) -> Any:
    """A JSON value without what the SDK leaves out: nulls and what is empty."""
    if isinstance(value, dict):
        found = {key: kept(one) for key, one in value.items()}
        return {key: one for key, one in found.items() if one not in (None, [], {})}
    return [kept(one) for one in value] if isinstance(value, list) else value


def check_by_sdk(answers: list[tuple[str, int, Any]]) -> Counter[str]:
    """See that the SDK knows every key and every enumerated value of these answers."""
    counts: Counter[str] = Counter()
    for kind, status, body in answers:
        if kind.endswith("/cancel") and status == 200:
            assert body == {}
        elif status == 200:
            reader = reader_of(kind, body)
            assert kept(reader.from_dict(body).as_dict()) == kept(body), kind
            counts[reader.__name__] += 1
        elif "scim" in kind:
            assert body["detail"], body
        else:
            assert set(body) == {"error_code", "message"}
    return counts


@pytest.fixture
def fake() -> DatabricksFake:
    found = DatabricksFake(World(), Clock(NOW))
    found.polls_pending, found.answers = 2, []
    return found


@pytest.fixture(scope="module")
def stage() -> Iterator[tuple[Stage, str, str]]:
    with Stage.served() as found:
        yield found


@pytest.fixture
def client(fake: DatabricksFake, stage: tuple[Stage, str, str]) -> Iterator[httpx.Client]:
    stage[0].fake, fake.storage_url = fake, stage[2]
    with httpx.Client(base_url=stage[1], headers=AUTHORISED, timeout=10) as one:
        yield one
    check_by_sdk(fake.answers or [])


def body_of(statement: str = AUDIT_SQL, **changes: Any) -> dict[str, Any]:
    day = timedelta(days=1)
    found = {
        "warehouse_id": WAREHOUSE_ID,
        "statement": statement,
        "disposition": "INLINE",
        "format": "JSON_ARRAY",
        "wait_timeout": "0s",
        **changes,
    }
    if statement == AUDIT_SQL and "parameters" not in found:
        found["parameters"] = [
            {"name": "d0", "value": f"{NOW - day:%Y-%m-%d}", "type": "DATE"},
            {"name": "d1", "value": f"{NOW:%Y-%m-%d}", "type": "DATE"},
            {"name": "t0", "value": f"{NOW - day:%Y-%m-%dT%H:%M:%SZ}", "type": "TIMESTAMP"},
            {"name": "t1", "value": f"{NOW:%Y-%m-%dT%H:%M:%SZ}", "type": "TIMESTAMP"},
        ]
    return {key: value for key, value in found.items() if value is not ...}


def ended(client: httpx.Client, body: dict[str, Any], looks: int = 10) -> dict[str, Any]:
    """Submit a statement and look until it has ended."""
    answer = client.post(STATEMENTS, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    for _ in range(looks):
        if found["status"]["state"] not in {"PENDING", "RUNNING"}:
            return found
        found = client.get(f"{STATEMENTS}/{found['statement_id']}").json()
    raise AssertionError("it does not end")


def test_a_statement_is_pending_then_running_then_has_a_result(
    fake: DatabricksFake, client: httpx.Client
) -> None:
    names = fake.add_events(5, at=NOW - timedelta(hours=2))
    answer = client.post(STATEMENTS, json=body_of()).json()
    states = [answer["status"]["state"]]
    for _ in range(2):
        answer = client.get(f"{STATEMENTS}/{answer['statement_id']}").json()
        states.append(answer["status"]["state"])
    assert states == ["PENDING", "RUNNING", "SUCCEEDED"]
    cells = answer["result"]["data_array"]
    assert len(cells) == len(names) == answer["manifest"]["total_row_count"]
    assert all(isinstance(cell, str) or cell is None for row in cells for cell in row)
    assert [int(row[1]) for row in cells] == sorted(int(row[1]) for row in cells)


def test_chunks_are_fetched_by_number_and_are_gone_after_an_hour(
    fake: DatabricksFake, client: httpx.Client
) -> None:
    fake.add_events(7, at=NOW - timedelta(hours=2))
    fake.chunk_rows = 3
    found = ended(client, body_of())
    chunks = f"{STATEMENTS}/{found['statement_id']}/result/chunks"
    assert found["result"]["next_chunk_index"] == 1
    sizes = [client.get(f"{chunks}/{index}").json()["row_count"] for index in range(3)]
    assert sizes == [3, 3, 1]
    assert "next_chunk_index" not in client.get(f"{chunks}/2").json()
    assert client.get(f"{chunks}/3").status_code == 404
    fake.clock.advance(timedelta(seconds=3601))
    assert client.get(f"{chunks}/1").status_code == 404
    after = client.get(f"{STATEMENTS}/{found['statement_id']}").json()
    assert after["status"]["state"] == "CLOSED"
    fake.clock.advance(timedelta(hours=12))
    assert client.get(f"{STATEMENTS}/{found['statement_id']}").status_code == 404


def test_more_than_the_limit_of_inline_fails_with_status_200(
    fake: DatabricksFake, client: httpx.Client
) -> None:
    fake.add_events(5, at=NOW - timedelta(hours=2))
    fake.inline_bytes_max = 100
    found = ended(client, body_of())
    assert found["status"]["state"] == "FAILED"
    assert found["status"]["error"]["error_code"] == "BAD_REQUEST"
    assert "Inline byte limit exceeded" in found["status"]["error"]["message"]
    assert "result" not in found


def test_links_lead_elsewhere_expire_and_take_no_other_login(
    fake: DatabricksFake, client: httpx.Client
) -> None:
    fake.add_events(5, at=NOW - timedelta(hours=2))
    found = ended(client, body_of(disposition="EXTERNAL_LINKS"))
    (link,) = found["result"]["external_links"]
    url, headers = link["external_link"], link["http_headers"]
    assert not url.startswith(str(client.base_url))
    assert len(httpx.get(url, headers=headers).json()) == 5
    assert httpx.get(url, headers={**headers, **AUTHORISED}).status_code == 400
    assert httpx.get(url).status_code == 403
    assert httpx.get(url.replace("sig=", "sig=0"), headers=headers).status_code == 403
    fake.clock.advance(timedelta(minutes=15))
    assert httpx.get(url, headers=headers).status_code == 403
    again = client.get(f"{STATEMENTS}/{found['statement_id']}/result/chunks/0").json()
    fresh = again["external_links"][0]
    assert httpx.get(fresh["external_link"], headers=fresh["http_headers"]).status_code == 200


def test_a_result_over_the_limit_of_links_is_cut_and_says_so(
    fake: DatabricksFake, client: httpx.Client
) -> None:
    fake.add_events(9, at=NOW - timedelta(hours=2))
    fake.external_bytes_max = 2000
    found = ended(client, body_of(disposition="EXTERNAL_LINKS"))
    assert found["manifest"]["truncated"] is True
    assert found["manifest"]["total_row_count"] < 9


def test_a_statement_that_nobody_looks_at_or_that_is_cancelled_ends(
    fake: DatabricksFake, client: httpx.Client
) -> None:
    first = client.post(STATEMENTS, json=body_of()).json()["statement_id"]
    assert client.post(f"{STATEMENTS}/{first}/cancel", json={}).json() == {}
    state = client.get(f"{STATEMENTS}/{first}").json()["status"]["state"]
    assert (state, fake.cancelled) == ("CANCELED", [first])
    second = client.post(STATEMENTS, json=body_of()).json()["statement_id"]
    fake.clock.advance(timedelta(minutes=16))
    assert client.get(f"{STATEMENTS}/{second}").json()["status"]["state"] == "CANCELED"
    third = body_of(wait_timeout="5s", on_wait_timeout="CANCEL")
    assert client.post(STATEMENTS, json=third).json()["status"]["state"] == "CANCELED"
    assert client.post(f"{STATEMENTS}/none/cancel", json={}).status_code == 404


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"warehouse_id": "other"}, 400),
        ({"warehouse_id": ...}, 400),
        ({"wait_timeout": "4s"}, 400),
        ({"wait_timeout": "51s"}, 400),
        ({"wait_timeout": "30"}, 400),
        ({"format": "CSV"}, 400),
        ({"disposition": "OTHER"}, 400),
        ({"colour": "blue"}, 400),
    ],
)
def test_a_submission_with_a_fault_is_refused(
    client: httpx.Client, changes: dict[str, Any], status: int
) -> None:
    assert client.post(STATEMENTS, json=body_of(**changes)).status_code == status


PARAMETERS = body_of()["parameters"]


@pytest.mark.parametrize(
    ("statement", "parameters", "sql_state"),
    [
        ("DROP TABLE x", [], "42601"),
        ("SELECT event_id FROM system.access.audit WHERE event_time > ?", [], "42601"),
        ("SELECT event_id FROM main.hr.salary", [], "42P01"),
        ("SELECT event_id FROM system.access.others", [], "42P01"),
        ("SELECT secrets FROM system.access.audit", [], "42703"),
        ("SELECT event_id FROM system.access.audit WHERE user = :u", PARAMETERS, "42703"),
        (AUDIT_SQL, PARAMETERS[:3], "42P02"),
        (AUDIT_SQL, [*PARAMETERS, {"name": "more", "value": "1", "type": "DATE"}], "42P02"),
        (AUDIT_SQL, [*PARAMETERS[:3], {**PARAMETERS[3], "value": "soon"}], "22018"),
        (AUDIT_SQL, [*PARAMETERS[:3], {**PARAMETERS[3], "type": "STRING"}], "42K09"),
        (AUDIT_SQL.replace("event_time, event_id", "1"), PARAMETERS, "42703"),
    ],
)
def test_a_statement_that_is_not_understood_fails_with_status_200(
    fake: DatabricksFake,
    client: httpx.Client,
    statement: str,
    parameters: list[Any],
    sql_state: str,
) -> None:
    fake.add_events(3, at=NOW - timedelta(hours=2))
    found = ended(client, body_of(statement, parameters=parameters))
    assert (found["status"]["state"], found["status"]["sql_state"]) == ("FAILED", sql_state)


def test_a_time_without_a_zone_is_one_of_the_session(
    fake: DatabricksFake, client: httpx.Client
) -> None:
    fake.add_events(3, at=NOW - timedelta(hours=2))
    naive = [{**one, "value": one["value"].removesuffix("Z")} for one in PARAMETERS]
    assert ended(client, body_of())["manifest"]["total_row_count"] == 3
    found = ended(client, body_of(parameters=naive))
    assert found["manifest"]["total_row_count"] == 0, "05:30 hours earlier: not yet"


def test_filters_are_kept_to_the_bounds_and_late_events_come_late(
    fake: DatabricksFake, client: httpx.Client
) -> None:
    on_the_bounds = fake.add_events(1, at=NOW - timedelta(days=1))
    fake.add_events(1, at=NOW)
    fake.add_events(1, at=NOW - timedelta(days=1, milliseconds=1))
    fake.add_events(1, at=NOW - timedelta(days=400))
    late = fake.add_events(1, at=NOW - timedelta(hours=5), visible_at=NOW + timedelta(hours=1))
    assert len(fake.event_ids()) == 5

    def seen() -> list[str]:
        return [row[0] for row in ended(client, body_of())["result"]["data_array"]]

    assert seen() == on_the_bounds
    fake.clock.advance(timedelta(hours=1))
    assert seen() == on_the_bounds + late


@pytest.mark.parametrize("missing", ["USE CATALOG", "USE SCHEMA", "SELECT", "schema"])
def test_a_missing_grant_fails_with_status_200(
    fake: DatabricksFake, client: httpx.Client, missing: str
) -> None:
    fake.missing.add(missing)
    status = ended(client, body_of())["status"]
    assert status["state"] == "FAILED"
    assert status["sql_state"] == ("42P01" if missing == "schema" else "42501")


def test_without_use_of_the_warehouse_the_submission_is_refused(
    fake: DatabricksFake, client: httpx.Client
) -> None:
    fake.missing.add("warehouse")
    assert client.post(STATEMENTS, json=body_of()).status_code == 403


def test_three_ways_to_log_in_and_no_other(fake: DatabricksFake, client: httpx.Client) -> None:
    basic = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
    form = {"grant_type": "client_credentials", "scope": "all-apis"}
    oidc = "/oidc/v1/token"
    entra = f"/{AZURE_TENANT}/oauth2/v2.0/token"
    azure = {
        "grant_type": "client_credentials",
        "client_id": AZURE_CLIENT_ID,
        "client_secret": AZURE_CLIENT_SECRET,
        "scope": AZURE_SCOPE,
    }
    by_header = {"Authorization": f"Basic {basic}"}
    first = client.post(oidc, data=form, headers=by_header)
    second = client.post(entra, data=azure)
    assignment = f"{CATALOG}/current-metastore-assignment"
    for answer in (first, second):
        assert answer.json()["expires_in"] == 3600
        bearer = {"Authorization": f"Bearer {answer.json()['access_token']}"}
        assert client.get(assignment, headers=bearer).status_code == 200
    assert client.post(oidc, data=form, headers={"Authorization": "Basic eDp5"}).status_code == 401
    assert client.post(oidc, data={**form, "scope": "sql"}, headers=by_header).status_code == 400
    assert client.post(entra, data={**azure, "client_secret": "x"}).status_code == 401
    assert client.post(entra, data={**azure, "scope": "all-apis"}).status_code == 400
    fake.clock.advance(timedelta(hours=1))
    assert client.get(assignment, headers=bearer).status_code == 401
    assert client.get(assignment, headers={"Authorization": ""}).status_code == 401


def all_pages(
    client: httpx.Client, path: str, key: str, by: str = "page_token", **params: str
) -> list[Any]:
    found: list[Any] = []
    for _ in range(50):
        body = client.get(path, params=params).json()
        found += body.get(key, [])
        if "next_page_token" not in body:
            return found
        params[by] = body["next_page_token"]
    raise AssertionError("it does not end")


def test_catalog_listings_page_by_opaque_tokens_that_belong_to_them(
    fake: DatabricksFake, client: httpx.Client
) -> None:
    fake.page_items = 1
    parent = {"catalog_name": "main", "schema_name": "hr"}
    tables = all_pages(client, f"{CATALOG}/tables", "tables", max_results="0", **parent)
    assert [one["full_name"] for one in tables] == ["main.hr.salary", "main.hr.people"]
    for listing in ("catalogs", "external-locations", "storage-credentials", "connections"):
        assert all_pages(client, f"{CATALOG}/{listing}", listing.replace("-", "_"), max_results="0")
    schemas = all_pages(client, f"{CATALOG}/schemas", "schemas", catalog_name="main")
    assert len(schemas) == 3
    for listing in ("volumes", "functions"):
        assert all_pages(client, f"{CATALOG}/{listing}", listing, max_results="0", **parent)
    token = client.get(f"{CATALOG}/tables", params=parent).json()["next_page_token"]
    for bad in (token, "bm90IG1pbmU=", "%%%"):
        answer = client.get(f"{CATALOG}/catalogs", params={"page_token": bad})
        assert answer.status_code == 400
    assert client.get(f"{CATALOG}/tables", params={"catalog_name": "main"}).status_code == 400
    assert client.get(f"{CATALOG}/catalogs", params={"max_results": "-1"}).status_code == 400
    assert client.get(f"{CATALOG}/nothing").status_code == 404


def test_effective_permissions_hold_what_is_inherited(client: httpx.Client) -> None:
    path = f"{CATALOG}/effective-permissions"
    found = all_pages(
        client, f"{path}/table/main.hr.salary", "privilege_assignments", max_results="0"
    )
    held = {
        (one["principal"], held["privilege"], held.get("inherited_from_type"))
        for one in found
        for held in one["privileges"]
    }
    assert ("Cycle A", "SELECT", "CATALOG") in held
    assert ("Engineering", "ALL_PRIVILEGES", "CATALOG") in held
    assert any(privilege == "SELECT" and not above for _, privilege, above in held)
    assert client.get(f"{path}/table/main.hr.nothing").status_code == 404
    for bad in ("1", "149", "-1", "x"):
        answer = client.get(f"{path}/catalog/main", params={"max_results": bad})
        assert answer.status_code == 400
    assert client.get(f"{path}/catalog/main", params={"max_results": "150"}).status_code == 200
    assert client.get(f"{CATALOG}/metastore_summary").status_code == 200
    assert client.get(f"{CATALOG}/current-metastore-assignment").status_code == 200


def test_workspace_objects_and_their_access_control(
    fake: DatabricksFake, client: httpx.Client
) -> None:
    for path, key, id_key, kind, token in (
        ("/api/2.1/clusters/list", "clusters", "cluster_id", "clusters", "page_token"),
        ("/api/2.0/policies/clusters/list", "policies", "policy_id", "cluster-policies", ""),
        (
            "/api/2.0/instance-pools/list",
            "instance_pools",
            "instance_pool_id",
            "instance-pools",
            "",
        ),
        ("/api/2.2/jobs/list", "jobs", "job_id", "jobs", "page_token"),
        ("/api/2.0/pipelines", "statuses", "pipeline_id", "pipelines", "page_token"),
        ("/api/2.0/repos", "repos", "id", "repos", "next_page_token"),
        ("/api/2.0/serving-endpoints", "endpoints", "id", "serving-endpoints", ""),
        ("/api/2.0/sql/warehouses", "warehouses", "id", "warehouses", "page_token"),
    ):
        ids = [str(one[id_key]) for one in all_pages(client, path, key, token)]
        assert ids == list(fake.objects[kind])
        for object_id in ids:
            answer = client.get(f"/api/2.0/permissions/{kind}/{object_id}")
            assert answer.json()["access_control_list"]
    assert client.get("/api/2.0/permissions/jobs/1").status_code == 404


def test_scim_pages_by_index_and_ends_with_an_empty_page(client: httpx.Client) -> None:
    for resource in ("Users", "ServicePrincipals", "Groups"):
        path, start, found = f"/api/2.0/preview/scim/v2/{resource}", 1, []
        while page := client.get(path, params={"startIndex": str(start)}).json().get("Resources"):
            found += page
            start += len(page)
        body = client.get(path, params={"startIndex": "1", "attributes": "id"}).json()
        assert body["totalResults"] == len(found)
        assert set(body["Resources"][0]) == {"id"}
    assert client.get("/api/2.0/preview/scim/v2/Things").status_code == 404
    assert client.get("/api/2.0/preview/scim/v2/Users?startIndex=x").status_code == 400


def test_faults_happen_when_they_are_injected_and_then_no_more(
    fake: DatabricksFake, client: httpx.Client
) -> None:
    path = f"{CATALOG}/current-metastore-assignment"
    for fault, status in (
        (Fault.THROTTLED_SECONDS, 429),
        (Fault.THROTTLED_DATE, 429),
        (Fault.THROTTLED_BARE, 429),
        (Fault.UNAVAILABLE, 503),
        (Fault.TOKEN_EXPIRED, 401),
        (Fault.NOT_JSON, 200),
    ):
        fake.faults.inject(fault)
        answer = client.get(path)
        assert answer.status_code == status
        assert answer.headers["content-type"].startswith("text/html") == (fault is Fault.NOT_JSON)
        assert client.get(path).json()["metastore_id"]
    fake.faults.inject(Fault.DROPPED)
    with pytest.raises(httpx.TransportError):
        client.get(path)
    fake.page_items = 1
    catalogs = f"{CATALOG}/catalogs"
    fake.faults.inject(Fault.EMPTY_PAGE)
    assert len(all_pages(client, catalogs, "catalogs")) == 2
    token = client.get(catalogs).json()["next_page_token"]
    fake.faults.inject(Fault.REPEATED_TOKEN)
    again = client.get(catalogs, params={"page_token": token}).json()
    assert again["next_page_token"] == token
    for fault, status in ((Fault.FORBIDDEN_OBJECT, 403), (Fault.VANISHED_OBJECT, 404)):
        for where in (
            f"{CATALOG}/effective-permissions/catalog/main",
            "/api/2.0/permissions/jobs/4030",
        ):
            fake.faults.inject(fault)
            assert client.get(where).status_code == status
            assert client.get(where).status_code == 200
    assert fake.faults.are_over


def test_row_faults_change_rows_and_not_the_truth(
    fake: DatabricksFake, client: httpx.Client
) -> None:
    names = fake.add_events(6, at=NOW - timedelta(hours=2))
    faults = (
        *(Fault.REPEATED_EVENT, Fault.NULL_ACTOR),
        *(Fault.UNKNOWN_ENUM, Fault.MALFORMED_RECORD),
    )
    for fault in faults:
        fake.faults.inject(fault)
    rows = ended(client, body_of())["result"]["data_array"]
    assert len(rows) == 8
    assert "user_identity" not in rows[0][2]
    assert "foldedUnheard" in rows[-1][2]
    assert [row for row in rows if row[0] == "malformed"]
    assert fake.event_ids() == set(names)


def test_too_many_requests_are_refused_until_their_minute_is_over(
    fake: DatabricksFake, client: httpx.Client
) -> None:
    fake.rate.requests = 3
    path = f"{CATALOG}/current-metastore-assignment"
    assert [client.get(path).status_code for _ in range(4)] == [200, 200, 200, 429]
    fake.clock.advance(timedelta(minutes=1))
    assert client.get(path).status_code == 200
    fake.is_limited = False
    assert {client.get(path).status_code for _ in range(5)} == {200}


def test_the_sdk_reads_every_kind_of_answer(fake: DatabricksFake, client: httpx.Client) -> None:
    """The oracle has teeth, and has seen every kind of answer."""
    test_workspace_objects_and_their_access_control(fake, client)
    test_catalog_listings_page_by_opaque_tokens_that_belong_to_them(fake, client)
    test_effective_permissions_hold_what_is_inherited(client)
    test_scim_pages_by_index_and_ends_with_an_empty_page(client)
    fake.polls_pending = 1
    test_links_lead_elsewhere_expire_and_take_no_other_login(fake, client)
    fake.chunk_rows = 2
    found = ended(client, body_of())
    for index in range(found["manifest"]["total_chunk_count"]):
        client.get(f"{STATEMENTS}/{found['statement_id']}/result/chunks/{index}")
    fake.missing.add("SELECT")
    ended(client, body_of())
    counts = check_by_sdk(fake.answers or [])
    print(f"answers read by databricks-sdk: {counts.total()}", dict(counts))  # noqa: T201
    names = {one.__name__ for one in [*ORACLE.values(), *LISTINGS.values(), *SCIM.values()]}
    assert set(counts) == names
    assert counts.total() >= 90
    kind, status, body = next(
        one for one in fake.answers or [] if one[0] == "2.0/sql/statements/{id}"
    )
    for wrong in ({**body, "colour": 1}, {**body, "status": {"state": "SLEEPING"}}):
        with pytest.raises(AssertionError):
            check_by_sdk([(kind, status, wrong)])


def test_it_runs_by_itself_on_the_clock_of_the_machine(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    command = [sys.executable, "-m", "fakes.databricks", "--port", "0", "--events", "20"]
    process = subprocess.Popen(command, cwd=tests, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        truth = httpx.get(f"{url}/_truth").json()
        assert len(truth["event_ids"]) == 20
        assert truth["grants"]
        added = httpx.post(f"{url}/_add?count=3&late_seconds=60").json()
        assert set(added) <= set(httpx.get(f"{url}/_truth").json()["event_ids"])
        httpx.post(f"{url}/_fault?name=UNAVAILABLE&times=1")
        path = f"{url}{CATALOG}/current-metastore-assignment"
        assert httpx.get(path, headers=AUTHORISED).status_code == 503
        assert httpx.get(path, headers=AUTHORISED).status_code == 200
    finally:
        process.terminate()
        assert process.wait(60) == 0
