"""The fake of BambooHR is no more generous than documented; its answers fit the specification."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from fakes.hr import (
    ACCESS_TOKEN,
    API_KEY,
    PRIVATE,
    SCIM_CLIENT,
    SCIM_SECRET,
    SCIM_TOKEN,
    TOO_MANY_FROM,
    HrFake,
    ScimHarness,
)
from fakes.kit import Clock, Fault, Rate, serving
from fakes.world import World
from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from scim2_models import EnterpriseUser, Group, ListResponse, User

SPECIFICATION = Path(__file__).resolve().parents[3] / "shared/specs/bamboohr-public.yaml"
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SINCE = "2026-11-20T00:00:00Z"
validated: Counter[str] = Counter()


@pytest.fixture(scope="module")
def specification() -> dict[str, Any]:
    if not SPECIFICATION.exists():
        pytest.skip("the specification is not on this machine")
    # A specification on disk, and CSafeLoader builds plain values only.
    return yaml.load(SPECIFICATION.read_text("utf-8"), Loader=yaml.CSafeLoader)


@pytest.fixture(scope="module")
def registry(specification: dict[str, Any]) -> Registry[Any]:
    resource = Resource.from_contents(specification, default_specification=DRAFT202012)
    return Registry().with_resource("urn:bamboohr", resource)


@pytest.fixture
def fake() -> HrFake:
    return HrFake(World(), Clock(NOW))


@pytest.fixture
def client(fake: HrFake) -> Iterator[httpx2.Client]:
    with serving(fake.app) as url:
        headers = {"Accept": "application/json", "Authorization": f"Bearer {ACCESS_TOKEN}"}
        with httpx2.Client(base_url=f"{url}/api/v1/", headers=headers) as one:
            yield one


def ask(client: httpx2.Client, path: str, **params: Any) -> Any:
    answer = client.get(path, params=params)
    assert answer.status_code == 200, (path, answer.status_code, answer.text)
    return answer.json()


PATHS = {
    "employees/changed": "/api/v1/employees/changed",
    "employees/changed/tables/jobInfo": "/api/v1/employees/changed/tables/{table}",
    "employees/changed/tables/employmentStatus": "/api/v1/employees/changed/tables/{table}",
    "employees": "/api/v1/employees",
    "employees/directory": "/api/v1/employees/directory",
    "employees/all/tables/jobInfo": "/api/v1/employees/{id}/tables/{table}",
    "employees/100/tables/employmentStatus": "/api/v1/employees/{id}/tables/{table}",
    "employees/101": "/api/v1/employees/{id}",
}
ALL_FIELDS = "workEmail,homeEmail,birthDate,departmentName,reportsToId,hireDate,nonsense"


def test_every_kind_of_answer_fits_the_specification(
    fake: HrFake, client: httpx2.Client, specification: dict[str, Any], registry: Registry[Any]
) -> None:
    fake.add_events(12, at=NOW - timedelta(hours=2))
    fake.change("delete", "103", at=NOW - timedelta(hours=1))
    fake.change("update", "101", at=NOW - timedelta(minutes=9), restricted=frozenset({"lastName"}))
    params: dict[str, dict[str, Any]] = {
        "employees/changed": {"since": SINCE, "type": "all"},
        "employees/changed/tables/jobInfo": {"since": SINCE},
        "employees/changed/tables/employmentStatus": {"since": SINCE},
        "employees": {"fields": ALL_FIELDS, "page[limit]": "7", "sort": "employeeId"},
        "employees/101": {"fields": "firstName,workEmail,department,terminationDate,status"},
    }
    for path, name in PATHS.items():
        operation = specification["paths"][name]["get"]
        answer = operation["responses"]["200"]["content"]["application/json"]
        pointer = name.replace("~", "~0").replace("/", "~1").replace("{", "%7B").replace("}", "%7D")
        reference = (
            f"urn:bamboohr#/paths/{pointer}/get/responses/200/content/application~1json/schema"
        )
        assert "schema" in answer
        validator = Draft202012Validator(
            {"$ref": reference}, registry=registry, format_checker=FormatChecker()
        )
        body = ask(client, path, **params.get(path, {}))
        assert body
        validator.validate(body)
        validated[name] += 1
        # What the connector asks with is documented, too.
        documented = {one["name"] for one in operation["parameters"] if "name" in one}
        assert {one.partition("[")[0] for one in params.get(path, {})} <= documented
        with pytest.raises(Exception, match=r"type|required"):
            validator.validate([] if isinstance(body, dict) else {})
    refused = client.get("employees", params={"sort": "payRate"})
    Draft202012Validator(
        {"$ref": "urn:bamboohr#/components/schemas/Employee-StringCodeErrorResponse-V1"},
        registry=registry,
    ).validate(refused.json())
    validated["error"] += 1
    assert set(validated) == {*PATHS.values(), "error"}
    print(f"BambooHR answers validated: {sum(validated.values())} of {len(validated)} kinds")  # noqa: T201


def test_the_feed_shows_each_once_and_only_the_last_change(
    fake: HrFake, client: httpx2.Client
) -> None:
    fake.change("move", "100", at=NOW - timedelta(hours=2))
    fake.change("leave", "100", at=NOW - timedelta(hours=1))
    fake.change("hire", at=NOW - timedelta(hours=1))
    fake.change("update", "101", at=NOW, visible_at=NOW + timedelta(hours=1))
    body = ask(client, "employees/changed", since="2026-11-24T01:00:00Z")
    assert body["employees"]["100"] == {
        "id": "100",
        "action": "Updated",
        "lastChanged": "2026-11-24T11:00:00+00:00",
    }
    assert set(body["employees"]) == {"100", "5001"}
    assert body["latest"] == "2026-11-24T11:00:00+00:00"
    # Strictly after; who is shown is not said, so the less is taken.
    assert ask(client, "employees/changed", since=body["latest"])["employees"] == {}
    inserted = ask(client, "employees/changed", since="2026-11-24T01:00:00Z", type="inserted")
    assert set(inserted["employees"]) == {"5001"}
    fake.clock.advance(timedelta(hours=1))
    assert "101" in ask(client, "employees/changed", since="2026-11-24T11:30:00Z")["employees"]


def test_the_tables_show_all_rows_of_whoever_changed(fake: HrFake, client: httpx2.Client) -> None:
    fake.change("move", "100", at=NOW - timedelta(hours=2))
    fake.change("update", "101", at=NOW - timedelta(hours=1))
    body = ask(client, "employees/changed/tables/jobInfo", since="2026-11-24T01:00:00Z")
    assert {one: len(rows["rows"]) for one, rows in body["employees"].items()} == {
        "100": 2,
        "101": 1,
    }
    assert client.get("employees/changed/tables/pay", params={"since": SINCE}).status_code == 404
    status = ask(client, "employees/100/tables/employmentStatus")
    assert PRIVATE in json.dumps(status)


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?since=yesterday",
        "?since=2026-11-20T00:00:00Z&type=moved",
        "?since=2026-11-20T00:00:00+00:00",
    ],
)
def test_a_since_that_is_none_is_refused(client: httpx2.Client, query: str) -> None:
    """The last one is the documented trap: an offset's plus arrives as a space."""
    assert client.get(f"employees/changed{query}").status_code == 400


def test_whoever_does_not_ask_for_json_gets_xml(client: httpx2.Client) -> None:
    answer = client.get("employees/directory", headers={"Accept": "*/*"})
    assert answer.headers["content-type"] == "application/xml"


def test_credentials(client: httpx2.Client) -> None:
    for credential in ("Basic eDp4", "Bearer wrong", ""):
        answer = client.get("employees/directory", headers={"Authorization": credential})
        assert answer.status_code == 401
    client.headers.pop("Authorization")
    basic = httpx2.BasicAuth(API_KEY, "x")
    assert client.get("employees/directory", auth=basic).status_code == 200
    # The list has OAuth in its security list, and nothing else.
    assert client.get("employees", auth=basic).status_code == 401


def test_the_directory_has_active_people_only(fake: HrFake, client: httpx2.Client) -> None:
    fake.change("hire", at=NOW, effective_on=date(2027, 1, 1))
    shown = {one["id"] for one in ask(client, "employees/directory")["employees"]}
    assert not shown & {one.employee_id for one in fake.world.leavers}
    assert "5001" not in shown
    shown = {
        one["id"] for one in ask(client, "employees/directory", onlyCurrent="false")["employees"]
    }
    assert "5001" in shown
    fake.is_directory_shared = False
    assert client.get("employees/directory").status_code == 403


def test_one_employee_has_what_is_asked_for_and_allowed(
    fake: HrFake, client: httpx2.Client
) -> None:
    fake.change("update", "101", at=NOW, restricted=frozenset({"workEmail"}))
    assert set(ask(client, "employees/101")) == {"id", "firstName", "lastName"}
    assert set(ask(client, "employees/101", fields="workEmail,status,nonsense")) == {"id", "status"}
    assert client.get("employees/77777").status_code == 404
    fake.change("delete", "102", at=NOW)
    assert client.get("employees/102").status_code == 404
    many = ",".join(map(str, range(401)))
    assert client.get("employees/101", params={"fields": many}).status_code == 400


def test_the_list_is_paged_by_cursors_that_go_stale(fake: HrFake, client: httpx2.Client) -> None:
    def page(**params: str) -> httpx2.Response:
        return client.get("employees", params={"page[limit]": "15", **params})

    first = page().json()
    assert (len(first["data"]), first["meta"]["total"]) == (15, 40)
    cursor = first["meta"]["page"]["nextCursor"]
    second = page(**{"page[after]": cursor}).json()
    assert not {one["employeeId"] for one in first["data"]} & {
        one["employeeId"] for one in second["data"]
    }
    fake.change("update", first["data"][-1]["employeeId"], at=NOW)
    stale = page(**{"page[after]": cursor})
    assert (stale.status_code, stale.json()["error"]["code"]) == (400, "BadPage")
    assert page(**{"page[after]": "!!"}).json()["error"]["code"] == "BadPage"
    assert page(**{"page[limit]": "2501"}).json()["error"]["code"] == "BadRequest"
    assert page(sort="payRate").status_code == 400
    some = ask(client, "employees", **{"filter[ids]": "100,139"})["data"]
    assert [one["employeeId"] for one in some] == ["100", "139"]
    assert some[1]["status"] == "Inactive"
    assert "workEmail" not in some[0]


def test_what_is_restricted_is_null_and_named(fake: HrFake, client: httpx2.Client) -> None:
    fake.change("update", "101", at=NOW, restricted=frozenset({"workEmail", "lastName"}))
    (one,) = ask(client, "employees", fields="workEmail", **{"filter[ids]": "101"})["data"]
    assert (one["workEmail"], one["lastName"]) == (None, None)
    assert set(one["_restrictedFields"]) == {"workEmail", "lastName"}


@pytest.mark.parametrize(
    ("at", "status"), [(TOO_MANY_FROM, 429), (TOO_MANY_FROM - timedelta(1), 503)]
)
def test_too_many_requests_by_the_day(at: datetime, status: int) -> None:
    fake = HrFake(World(now=at), Clock(at))
    fake.rate = Rate(5, timedelta(seconds=10), fake.clock)
    with serving(fake.app) as url:
        headers = {"Accept": "application/json", "Authorization": f"Bearer {ACCESS_TOKEN}"}
        with httpx2.Client(base_url=f"{url}/api/v1/", headers=headers) as client:
            answers = [client.get("employees/101") for _ in range(6)]
            assert [one.status_code for one in answers] == [200] * 5 + [status]
            assert int(answers[-1].headers["retry-after"]) >= 1
            fake.clock.advance(timedelta(seconds=11))
            assert client.get("employees/101").status_code == 200


def test_added_events_are_of_different_people_and_have_ties(fake: HrFake) -> None:
    ids = fake.add_events(60, at=NOW + timedelta(milliseconds=1))
    assert len(set(ids)) == 60
    assert len({one.split(":")[2] for one in ids}) == 60
    assert set(ids) <= fake.event_ids()
    seconds = Counter(one.split(":", 4)[4][:20] for one in ids)
    assert (min(seconds), max(seconds)) == ("2026-11-24T12:00:01Z", "2026-11-24T12:00:20Z")
    assert set(seconds.values()) == {3}
    assert ids == HrFake(World(), Clock(NOW)).add_events(60, at=NOW + timedelta(milliseconds=1))


def test_it_serves_other_processes() -> None:
    command = [sys.executable, "-m", "fakes.hr", "--events", "10", "--hours", "1"]
    folder = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        truth = httpx2.get(f"{url}/_truth").json()
        assert len(truth["event_ids"]) == 13, "ten, and three who left"
        added = httpx2.post(f"{url}/_add?count=2&late_seconds=60").json()["event_ids"]
        assert set(added) <= set(httpx2.get(f"{url}/_truth").json()["event_ids"])
        httpx2.post(f"{url}/_fault?name=UNAVAILABLE&times=1")
        auth = httpx2.BasicAuth(API_KEY, "x")
        answers = [httpx2.get(f"{url}/api/v1/employees/directory", auth=auth) for _ in range(2)]
        assert [one.status_code for one in answers] == [503, 200]
        process.terminate()
        assert process.wait(10) == 0


# The real SCIM server behind its harness


@pytest.fixture
def harness() -> ScimHarness:
    return ScimHarness(World(), Clock(NOW), pagination={"cursor": True, "index": True})


def test_the_scim_server_is_real_and_its_answers_are_models(harness: ScimHarness) -> None:
    harness.add_events(8, at=NOW)
    with serving(harness.app) as url:
        headers = {"Authorization": f"Bearer {SCIM_TOKEN}"}
        with httpx2.Client(base_url=f"{url}/v2/", headers=headers) as client:
            for kind in ("Users", "Groups"):
                body = ask(client, kind, count="7")
                model = User[EnterpriseUser] if kind == "Users" else Group
                assert len(ListResponse[model].model_validate(body).resources) == 7
            found = ask(client, "Users", filter='meta.lastModified ge "2026-11-24T12:00:00Z"')
            assert found["totalResults"] == 8
            page = ask(client, "Users", cursor="", count="30")
            assert page["nextCursor"]
            assert client.get("Users", params={"cursor": "stale"}).status_code == 400
            client.headers["Authorization"] = "Bearer wrong"
            assert client.get("Users").status_code == 401
            assert client.get("ServiceProviderConfig").status_code == 200
            form = {"client_id": SCIM_CLIENT, "client_secret": SCIM_SECRET}
            assert client.post(f"{url}/token", data=form).json()["token_type"] == "Bearer"
            assert client.post(f"{url}/token", data={}).status_code == 401
            harness.faults.inject(Fault.UNAVAILABLE)
            assert client.get("ServiceProviderConfig").status_code == 503


def test_late_writes_of_the_scim_server_carry_their_own_time(harness: ScimHarness) -> None:
    (event_id,) = harness.add_events(1, at=NOW, visible_at=NOW + timedelta(hours=1))
    user_id = event_id.split(":")[2]
    before = harness.user(user_id)["meta"]
    with serving(harness.app) as url:
        headers = {"Authorization": f"Bearer {SCIM_TOKEN}"}
        with httpx2.Client(base_url=f"{url}/v2/", headers=headers) as client:
            assert ask(client, f"Users/{user_id}")["meta"]["version"] == before["version"]
            harness.clock.advance(timedelta(hours=1))
            after = ask(client, f"Users/{user_id}")["meta"]
    assert after["lastModified"] == "2026-11-24T12:00:00Z"
    assert event_id.endswith(after["version"])
