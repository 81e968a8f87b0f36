"""The fake tenant behaves as documented; its answers fit Microsoft's own specifications."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fakes.fabric import CLIENT_ID, CLIENT_SECRET, SCOPES, FabricFake
from fakes.kit import Clock, Fault, serving
from fakes.world import World
from jsonschema import Draft4Validator, FormatChecker
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4

NOW = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)
SPECS = Path(__file__).resolve().parents[3] / "shared/specs"
EVENTS = "/powerbi/v1.0/myorg/admin/activityevents"
WORKSPACES = "/powerbi/v1.0/myorg/admin/workspaces"
ADMIN = "/fabric/v1/admin"


@dataclass
class Tenant:
    """The fake, served, and who asks it."""

    fake: FabricFake
    clock: Clock
    http: httpx2.Client

    def bearer(self, audience: str = "powerbi") -> dict[str, str]:
        scope = next(scope for scope, name in SCOPES.items() if name == audience)
        form = {
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "grant_type": "client_credentials",
            "scope": scope,
        }
        answer = self.http.post("/login/t/oauth2/v2.0/token", data=form)
        return {"Authorization": f"Bearer {answer.json()['access_token']}"}

    def get(self, url: str, audience: str = "powerbi") -> httpx2.Response:
        return self.http.get(url, headers=self.bearer(audience))

    def window(self, start: str, end: str) -> httpx2.Response:
        return self.get(f"{EVENTS}?startDateTime='{start}'&endDateTime='{end}'")

    def scan(self, ids: list[str]) -> httpx2.Response:
        url = f"{WORKSPACES}/getInfo?getArtifactUsers=true"
        return self.http.post(url, headers=self.bearer(), json={"workspaces": ids})

    def finished_scan(self, ids: list[str]) -> str:
        scan_id = str(self.scan(ids).json()["id"])
        for _ in range(self.fake.scan_polls + 1):
            self.get(f"{WORKSPACES}/scanStatus/{scan_id}")
        return scan_id


@pytest.fixture
def tenant() -> Iterator[Tenant]:
    clock = Clock(NOW)
    fake = FabricFake(World(now=NOW), clock)
    with serving(fake.app) as url, httpx2.Client(base_url=url, timeout=10) as http:
        yield Tenant(fake, clock, http)


# ── Activity events ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "query",
    [
        "startDateTime=2026-11-24T08:00:00Z&endDateTime=2026-11-24T09:00:00Z",
        "startDateTime='2026-11-24T08:00:00'&endDateTime='2026-11-24T09:00:00'",
        "startDateTime='2026-11-24T08:00:00%2B00:00'&endDateTime='2026-11-24T09:00:00Z'",
        "startDateTime='2026-11-23T23:00:00Z'&endDateTime='2026-11-24T00:00:00Z'",
        "startDateTime='2026-11-24T09:00:00Z'&endDateTime='2026-11-24T08:00:00Z'",
        "startDateTime='2026-10-26T08:00:00Z'&endDateTime='2026-10-26T09:00:00Z'",
        "startDateTime='2026-11-24T08:00:00Z'",
        "continuationToken='nothing'",
        "",
    ],
    ids=[
        "unquoted", "no zone", "an offset", "two days", "backwards", "29 days ago", "no end",
        "strange token", "nothing",
    ],
)  # fmt: skip
def test_a_window_that_breaks_a_rule_is_refused(tenant: Tenant, query: str) -> None:
    answer = tenant.get(f"{EVENTS}?{query}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "BadRequest")


def test_the_last_day_kept_is_served(tenant: Tenant) -> None:
    assert tenant.window("2026-10-27T12:30:00Z", "2026-10-27T13:00:00Z").status_code == 200


def test_a_window_comes_hour_by_hour_descending_with_empty_pages(tenant: Tenant) -> None:
    first = tenant.fake.add_events(4, at=datetime(2026, 11, 24, 8, tzinfo=UTC))
    last = tenant.fake.add_events(2, at=datetime(2026, 11, 24, 10, tzinfo=UTC))
    tenant.fake.add_events(1, at=datetime(2026, 11, 24, 11, tzinfo=UTC))
    tenant.fake.page_events = 3
    pages, sizes, answers = [], [], []
    answer = tenant.window("2026-11-24T08:00:00Z", "2026-11-24T10:59:59.999Z")
    while True:
        body = answer.json()
        answers.append(body)
        pages += body["activityEventEntities"]
        sizes.append(len(body["activityEventEntities"]))
        if not body.get("continuationToken"):
            break
        answer = tenant.get(body["continuationUri"])
    assert sizes == [3, 1, 0, 2]
    assert {record["Id"] for record in pages} == {*first, *last}
    times = [record["CreationTime"] for record in pages]
    assert times[:3] == sorted(times[:3], reverse=True)
    assert "Z" not in times[0]
    assert [body["lastResultSet"] for body in answers] == [False] * 4


def test_a_continuation_goes_only_byte_for_byte_and_not_for_ever(tenant: Tenant) -> None:
    uri = tenant.window("2026-11-24T08:00:00Z", "2026-11-24T10:00:00Z").json()["continuationUri"]
    assert "/wabi/" in uri
    assert "'%2BRID" in uri
    assert tenant.get(uri).status_code == 200
    assert tenant.get(uri.replace("%", "%25")).status_code == 400
    assert tenant.get(uri.replace("'", "")).status_code == 400
    assert tenant.get(f"{uri}&startDateTime='2026-11-24T08:00:00Z'").status_code == 400
    tenant.clock.advance(timedelta(minutes=31))
    assert tenant.get(uri).status_code == 400


def test_a_late_event_is_served_once_the_clock_is_there(tenant: Tenant) -> None:
    late = NOW + timedelta(hours=5)
    (event_id,) = tenant.fake.add_events(1, at=NOW - timedelta(hours=2), visible_at=late)
    window = ("2026-11-24T10:00:00Z", "2026-11-24T10:59:59.999Z")
    assert tenant.window(*window).json()["activityEventEntities"] == []
    assert event_id in tenant.fake.event_ids()
    tenant.clock.advance(timedelta(hours=5))
    served = tenant.window(*window).json()["activityEventEntities"]
    assert [record["Id"] for record in served] == [event_id]


@pytest.mark.parametrize(
    ("url", "name", "limit"),
    [
        (
            f"{EVENTS}?startDateTime='2026-11-24T08:00:00Z'&endDateTime='2026-11-24T08:00:00Z'",
            "activityevents",
            200,
        ),
        (f"{WORKSPACES}/modified", "modified", 30),
        (f"{ADMIN}/workspaces", "admin/workspaces", 200),
        (f"{ADMIN}/items", "admin/items", 200),
    ],
    ids=["activity events", "modified", "workspaces", "items"],
)
def test_an_hour_has_so_many_requests(tenant: Tenant, url: str, name: str, limit: int) -> None:
    audience = "fabric" if url.startswith(ADMIN) else "powerbi"
    bearer = tenant.bearer(audience)
    # All but the last are counted without being sent: it is the limit that is looked at.
    for _ in range(limit - 1):
        assert tenant.fake.rates[name].refuse() is None
    assert tenant.http.get(url, headers=bearer).status_code == 200
    refused = tenant.http.get(url, headers=bearer)
    assert refused.status_code == 429
    assert ("retry-after" in refused.headers) == (audience == "fabric")
    tenant.clock.advance(timedelta(minutes=59, seconds=59))
    assert tenant.http.get(url, headers=bearer).status_code == 429
    tenant.clock.advance(timedelta(seconds=1))
    assert tenant.get(url, audience).status_code == 200


# ── Tokens ───────────────────────────────────────────────────────────────────────────────────


def test_a_token_is_of_one_audience_and_ends(tenant: Tenant) -> None:
    bearer = tenant.bearer("fabric")
    assert tenant.http.get(f"{ADMIN}/workspaces", headers=bearer).status_code == 200
    assert tenant.http.get(f"{WORKSPACES}/modified", headers=bearer).status_code == 401
    assert tenant.http.get(f"{ADMIN}/workspaces").status_code == 401
    tenant.clock.advance(timedelta(hours=1))
    assert tenant.http.get(f"{ADMIN}/workspaces", headers=bearer).status_code == 401


def test_a_wrong_secret_and_a_wrong_scope_are_refused(tenant: Tenant) -> None:
    form = {"client_id": CLIENT_ID, "client_secret": "x", "grant_type": "client_credentials"}
    url = "/login/t/oauth2/v2.0/token"
    refused = tenant.http.post(url, data={**form, "scope": next(iter(SCOPES))})
    assert (refused.status_code, refused.json()["error"]) == (401, "invalid_client")
    form["client_secret"] = CLIENT_SECRET
    refused = tenant.http.post(url, data={**form, "scope": "https://elsewhere/.default"})
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_scope")


# ── Scanner ──────────────────────────────────────────────────────────────────────────────────


def test_a_scan_goes_through_its_states(tenant: Tenant) -> None:
    ids = [one["id"] for one in tenant.get(f"{WORKSPACES}/modified").json()]
    started = tenant.scan(ids)
    assert (started.status_code, started.json()["status"]) == (202, "NotStarted")
    scan_id = started.json()["id"]
    result = f"{WORKSPACES}/scanResult/{scan_id}"
    assert tenant.get(result).status_code == 400
    states = [tenant.get(f"{WORKSPACES}/scanStatus/{scan_id}").json()["status"] for _ in range(3)]
    assert states == ["NotStarted", "Running", "Succeeded"]
    assert {one["id"] for one in tenant.get(result).json()["workspaces"]} == set(ids)
    tenant.clock.advance(timedelta(hours=24))
    assert tenant.get(result).status_code == 404
    assert tenant.get(f"{WORKSPACES}/scanStatus/elsewhere").status_code == 404


def test_a_scan_takes_a_hundred_workspaces_and_sixteen_run_at_once(tenant: Tenant) -> None:
    assert tenant.scan([]).status_code == 400
    assert tenant.scan(["x"] * 101).status_code == 400
    assert [tenant.scan(["x"]).status_code for _ in range(17)] == [202] * 16 + [429]


def test_users_come_only_where_they_are_asked_for(tenant: Tenant) -> None:
    ids = [tenant.fake.workspaces[0].id]
    url = f"{WORKSPACES}/getInfo"
    scan_id = tenant.http.post(url, headers=tenant.bearer(), json={"workspaces": ids}).json()["id"]
    for _ in range(3):
        tenant.get(f"{WORKSPACES}/scanStatus/{scan_id}")
    assert "users" not in tenant.get(f"{WORKSPACES}/scanResult/{scan_id}").text
    scan_id = tenant.finished_scan(ids)
    assert "users" in tenant.get(f"{WORKSPACES}/scanResult/{scan_id}").text


def test_a_scan_can_fail(tenant: Tenant) -> None:
    tenant.fake.scans_to_fail = 1
    scan_id = tenant.finished_scan([tenant.fake.workspaces[0].id])
    body = tenant.get(f"{WORKSPACES}/scanStatus/{scan_id}").json()
    assert (body["status"], body["error"]["code"]) == ("Failed", "ScanInternalError")
    assert tenant.get(f"{WORKSPACES}/scanResult/{scan_id}").status_code == 400


def test_personal_workspaces_can_be_left_out(tenant: Tenant) -> None:
    everything = tenant.get(f"{WORKSPACES}/modified").json()
    fewer = tenant.get(f"{WORKSPACES}/modified?excludePersonalWorkspaces=True").json()
    assert len(everything) - len(fewer) == 1


# ── Fabric admin API ─────────────────────────────────────────────────────────────────────────


def test_the_admin_api_pages_by_token(tenant: Tenant) -> None:
    tenant.fake.page_records = 3
    ids: list[str] = []
    answer = tenant.get(f"{ADMIN}/workspaces?state=active", "fabric").json()
    while True:
        ids += [one["id"] for one in answer["workspaces"]]
        if "continuationUri" not in answer:
            break
        answer = tenant.get(answer["continuationUri"], "fabric").json()
    assert ids == [one.id for one in tenant.fake.workspaces]
    refused = tenant.get(f"{ADMIN}/workspaces?continuationToken=x", "fabric")
    assert (refused.status_code, refused.json()["errorCode"]) == (400, "BadRequest")


def test_some_items_need_their_type(tenant: Tenant) -> None:
    workspace = tenant.fake.workspaces[5]
    for item in workspace.items:
        url = f"{ADMIN}/workspaces/{workspace.id}/items/{item.id}/users"
        needs = item.kind in {"Report", "SemanticModel", "Dashboard", "Dataflow"}
        assert tenant.get(url, "fabric").status_code == (400 if needs else 200)
        assert tenant.get(f"{url}?type={item.kind}", "fabric").status_code == 200
        assert tenant.get(f"{url}?type=App", "fabric").status_code == 400
    unknown = tenant.get(f"{ADMIN}/workspaces/{workspace.id}/items/x/users", "fabric")
    assert (unknown.status_code, unknown.json()["isRetriable"]) == (404, False)


# ── Against the specifications ───────────────────────────────────────────────────────────────


def _without_examples(value: Any) -> Any:
    # They refer to files that are not there.
    if isinstance(value, dict):
        return {k: _without_examples(v) for k, v in value.items() if k != "x-ms-examples"}
    return [_without_examples(one) for one in value] if isinstance(value, list) else value


def _document(path: Path) -> Any:
    return _without_examples(json.loads(path.read_text(encoding="utf-8")))


def _retrieve(uri: str) -> Resource[Any]:
    return DRAFT4.create_resource(_document(Path(uri.removeprefix("file://"))))


def _validator(uri: str) -> Draft4Validator:
    registry: Registry[Any] = Registry(retrieve=_retrieve)
    return Draft4Validator({"$ref": uri}, registry=registry, format_checker=FormatChecker())


def _power_bi(definition: str) -> Draft4Validator:
    return _validator(f"file://{SPECS}/powerbi-swagger.json#/definitions/{definition}")


def _fabric(definition: str, document: str = "admin") -> Draft4Validator:
    return _validator(
        f"file://{SPECS}/fabric/{document}/definitions.json#/definitions/{definition}"
    )


@pytest.mark.skipif(not SPECS.exists(), reason="the specifications are not here")
def test_every_kind_of_answer_fits_the_specification(tenant: Tenant) -> None:
    fake, valid = tenant.fake, dict[str, int]()

    def accept(validator: Draft4Validator, kind: str, body: Any) -> None:
        validator.validate(body)
        valid[kind] = valid.get(kind, 0) + 1

    fake.add_events(40, at=datetime(2026, 11, 24, 8, tzinfo=UTC))
    fake.page_events = 7
    for fault in (Fault.UNKNOWN_ENUM, Fault.NULL_ACTOR, Fault.EMPTY_PAGE, Fault.REPEATED_EVENT):
        fake.faults.inject(fault)
    body = tenant.window("2026-11-24T08:00:00Z", "2026-11-24T11:00:00Z").json()
    while True:
        # The swagger has no nulls; the service ends with null or nothing.
        written = {name: value for name, value in body.items() if value is not None}
        accept(_power_bi("ActivityEventResponse"), "activity events", written)
        if not body.get("continuationToken"):
            break
        body = tenant.get(body["continuationUri"]).json()

    fake.faults.clear()
    ids = tenant.get(f"{WORKSPACES}/modified").json()
    for one in ids:
        accept(_power_bi("ModifiedWorkspace"), "workspace ids", one)
    started = tenant.scan([one["id"] for one in ids]).json()
    accept(_power_bi("ScanRequest"), "scans", started)
    for _ in range(3):
        status = tenant.get(f"{WORKSPACES}/scanStatus/{started['id']}").json()
        accept(_power_bi("ScanRequest"), "scans", status)
    fake.scans_to_fail = 1
    failed = tenant.finished_scan([ids[0]["id"]])
    status = tenant.get(f"{WORKSPACES}/scanStatus/{failed}").json()
    accept(_power_bi("ScanRequest"), "scans", status)
    result = tenant.get(f"{WORKSPACES}/scanResult/{started['id']}").json()
    accept(_power_bi("WorkspaceInfoResponse"), "scan results", result)

    fake.page_records = 5
    for path, definition in (("workspaces", "Workspaces"), ("items", "Items")):
        body = tenant.get(f"{ADMIN}/{path}", "fabric").json()
        while True:
            accept(_fabric(definition), path, body)
            if "continuationUri" not in body:
                break
            body = tenant.get(body["continuationUri"], "fabric").json()
    for workspace in fake.workspaces:
        url = f"{ADMIN}/workspaces/{workspace.id}"
        body = tenant.get(f"{url}/users", "fabric").json()
        accept(_fabric("WorkspaceAccessDetailsResponse"), "workspace users", body)
        for item in workspace.items:
            body = tenant.get(f"{url}/items/{item.id}/users?type={item.kind}", "fabric").json()
            accept(_fabric("ItemAccessDetailsResponse"), "item users", body)
    refused = tenant.get(f"{ADMIN}/workspaces/x/users", "fabric").json()
    accept(_fabric("ErrorResponse", "common"), "errors", refused)

    print("answers validated:", valid)  # noqa: T201 - asked for
    assert set(valid) == {
        "activity events", "workspace ids", "scans", "scan results", "workspaces", "items",
        "workspace users", "item users", "errors",
    }  # fmt: skip
    assert sum(valid.values()) >= 50


@pytest.mark.skipif(not SPECS.exists(), reason="the specifications are not here")
def test_the_specification_is_really_applied(tenant: Tenant) -> None:
    scan_id = tenant.finished_scan([tenant.fake.workspaces[0].id])
    result = tenant.get(f"{WORKSPACES}/scanResult/{scan_id}").json()
    result["workspaces"][0]["reports"][0]["users"][0]["reportUserAccessRight"] = "Levitate"
    assert not _power_bi("WorkspaceInfoResponse").is_valid(result)
    assert not _fabric("Workspaces").is_valid({"workspaces": [{"id": "x", "name": "y"}]})
    details = {"workspaceAccessDetails": {"workspaceRole": "Levitator"}}
    assert not _fabric("WorkspaceAccessDetailsResponse").is_valid({"accessDetails": [details]})
