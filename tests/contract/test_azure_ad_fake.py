"""The fake tenant is Graph as documented: its answers fit Graph's metadata, and it refuses."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit
from xml.etree import ElementTree

import httpx2
import pytest
from fakes.azure_ad import SIGN_IN_TYPES, AzureAdFake
from fakes.kit import Clock, Fault
from fakes.world import World
from jsonschema import Draft202012Validator

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
CSDL = Path(__file__).resolve().parents[3] / "shared/specs/graph-v1.0-Prod.csdl"
EDM = "{http://docs.oasis-open.org/odata/ns/edm}"
BASE = "http://graph.test"


# Graph's metadata as JSON Schema ---------------------------------------------------------------


class Metadata:
    """An OData schema, asked for one type at a time."""

    _SIMPLE: ClassVar[dict[str, dict[str, str]]] = {
        "Edm.String": {"type": "string"},
        "Edm.Boolean": {"type": "boolean"},
        "Edm.Int32": {"type": "integer"},
        "Edm.Int64": {"type": "integer"},
        "Edm.Double": {"type": "number"},
        "Edm.Guid": {"type": "string", "pattern": "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-.{12}$"},
        "Edm.DateTimeOffset": {
            "type": "string",
            "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,12})?(Z|[+-]\d\d:\d\d)$",
        },
    }

    def __init__(self, path: Path) -> None:
        self._types: dict[str, ElementTree.Element] = {}
        for schema in ElementTree.parse(path).getroot().iter(f"{EDM}Schema"):  # noqa: S314 - as above
            for prefix in filter(None, (schema.get("Namespace"), schema.get("Alias"))):
                for one in schema:
                    if one.get("Name"):
                        self._types[f"{prefix}.{one.get('Name')}"] = one

    def validator(self, name: str) -> Draft202012Validator:
        """Of one object; a property that the type does not have is a fault, unless it is open."""
        definitions: dict[str, Any] = {}
        reference = self._schema(f"graph.{name}", definitions)
        return Draft202012Validator({**reference, "$defs": definitions})

    def _schema(self, name: str, definitions: dict[str, Any]) -> dict[str, Any]:
        if name.startswith("Collection("):
            return {"type": "array", "items": self._schema(name[11:-1], definitions)}
        if name in self._SIMPLE:
            return self._SIMPLE[name]
        if name.startswith("Edm."):
            return {}
        if name not in definitions:
            definitions[name] = {}  # Types refer to each other in circles.
            definitions[name] = self._defined(self._types[name], definitions)
        return {"$ref": f"#/$defs/{name}"}

    def _defined(self, found: ElementTree.Element, definitions: dict[str, Any]) -> dict[str, Any]:
        if found.tag == f"{EDM}EnumType":
            return {"enum": [one.get("Name") for one in found.iter(f"{EDM}Member")]}
        properties: dict[str, Any] = {}
        is_open = False
        level: ElementTree.Element | None = found
        while level is not None:
            is_open |= level.get("OpenType") == "true"
            for one in level.iter(f"{EDM}Property"):
                kind = one.get("Type", "")
                schema = self._schema(kind, definitions)
                if one.get("Nullable") != "false" and not kind.startswith("Collection("):
                    schema = {"anyOf": [schema, {"type": "null"}]}
                properties[one.get("Name", "")] = schema
            for one in level.iter(f"{EDM}NavigationProperty"):
                # Only what was expanded is there; of which type, its annotation says.
                properties[one.get("Name", "")] = {"type": ["object", "array", "null"]}
            level = self._types.get(level.get("BaseType", ""))
        return {
            "type": "object",
            "properties": properties,
            "patternProperties": {"^@odata\\.": {}},
            "additionalProperties": is_open,
        }


@cache
def metadata() -> Metadata:
    if not CSDL.exists():
        pytest.skip("Graph's metadata is not here")
    return Metadata(CSDL)


# What is under test ----------------------------------------------------------------------------


class Caller:
    """Asks the fake, with a token of its own."""

    def __init__(self, fake: AzureAdFake, client: httpx2.AsyncClient) -> None:
        self.fake = fake
        self.client = client
        self.bearer = ""

    async def token(self, **changes: str) -> httpx2.Response:
        form = {
            "client_id": self.fake.client_id,
            "client_secret": self.fake.client_secret,
            "grant_type": "client_credentials",
            "scope": f"{BASE}/.default",
        }
        tenant = changes.pop("tenant", self.fake.tenant_id)
        answer = await self.client.post(f"/{tenant}/oauth2/v2.0/token", data=form | changes)
        if answer.status_code == 200:
            self.bearer = answer.json()["access_token"]
        return answer

    async def get(self, url: str, **params: str) -> httpx2.Response:
        if not self.bearer:
            await self.token()
        return await self.client.get(
            url, params=params or None, headers={"Authorization": f"Bearer {self.bearer}"}
        )

    async def all(self, url: str, **params: str) -> list[Any]:
        answer = await self.get(url, **params)
        found = []
        for _ in range(1000):
            body = answer.json()
            found += body["value"]
            if "@odata.nextLink" not in body:
                return found
            answer = await self.get(body["@odata.nextLink"])
        raise AssertionError("no end")


@pytest.fixture
def fake() -> AzureAdFake:
    made = AzureAdFake(World(seed=3, now=NOW), Clock(NOW))
    made.is_limited = False
    return made


@pytest.fixture
async def caller(fake: AzureAdFake) -> AsyncIterator[Caller]:
    transport = httpx2.ASGITransport(app=fake.app)
    async with httpx2.AsyncClient(transport=transport, base_url=BASE) as client:
        yield Caller(fake, client)


AUDITS = "/v1.0/auditLogs/directoryAudits"
SIGN_INS = "/v1.0/auditLogs/signIns"
BETA_SIGN_INS = "/beta/auditLogs/signIns"


def code_of(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def window(field: str, from_at: datetime, to_at: datetime) -> str:
    return f"{field} ge {from_at:%Y-%m-%dT%H:%M:%SZ} and {field} le {to_at:%Y-%m-%dT%H:%M:%SZ}"


async def test_every_kind_of_answer_fits_graphs_metadata(fake: AzureAdFake, caller: Caller) -> None:
    """Names, types, enumerations and nulls; nothing that Graph does not have."""
    fake.page_records = fake.page_objects = 20
    fake.add_events(120, at=NOW - timedelta(hours=1), streams=("directoryAudits", *SIGN_IN_TYPES))
    role = "roleManagement/directory"
    board = fake.world.applications[1].service_principal_id
    questions: dict[str, tuple[str, dict[str, str]]] = {
        AUDITS: ("directoryAudit", {}),
        SIGN_INS: ("signIn", {}),
        f"/v1.0/{role}/roleDefinitions": ("unifiedRoleDefinition", {}),
        f"/v1.0/{role}/roleAssignments": ("unifiedRoleAssignment", {"$expand": "principal"}),
        f"/v1.0/{role}/roleAssignmentScheduleInstances": (
            "unifiedRoleAssignmentScheduleInstance",
            {"$expand": "principal"},
        ),
        f"/v1.0/{role}/roleEligibilityScheduleInstances": (
            "unifiedRoleEligibilityScheduleInstance",
            {},
        ),
        "/v1.0/groups": ("group", {"$select": "id,displayName,isAssignableToRole,groupTypes"}),
        f"/v1.0/groups/{fake.groups[0]['id']}/members": ("directoryObject", {"$select": "id"}),
        f"/v1.0/groups/{fake.groups[0]['id']}/owners": ("directoryObject", {"$select": "id"}),
        "/v1.0/servicePrincipals": ("servicePrincipal", {"$select": "id,appId,appRoles"}),
        f"/v1.0/servicePrincipals/{board}/appRoleAssignedTo": ("appRoleAssignment", {}),
        f"/v1.0/servicePrincipals/{board}/owners": ("directoryObject", {}),
        "/v1.0/applications": ("application", {"$select": "id,appId"}),
        f"/v1.0/applications/{fake.applications[0]['id']}/owners": ("directoryObject", {}),
        "/v1.0/oauth2PermissionGrants": ("oAuth2PermissionGrant", {}),
        "/v1.0/users": ("user", {"$select": "id,mail,accountEnabled,employeeId"}),
    }
    validated: Counter[str] = Counter()
    for url, (kind, params) in questions.items():
        validator = metadata().validator(kind)
        for one in await caller.all(url, **params):
            faults = [f"{fault.json_path}: {fault.message}" for fault in validator.iter_errors(one)]
            assert not faults, (url, faults)
            validated[kind] += 1
    # Of beta there is no metadata here: what it has in common with v1.0 is held against that.
    validator = metadata().validator("signIn")
    added = {"signInEventTypes", "resourceServicePrincipalId"}
    for own in ("nonInteractiveUser", "servicePrincipal", "managedIdentity"):
        condition = f"signInEventTypes/any(t: t eq '{own}')"
        for one in await caller.all(BETA_SIGN_INS, **{"$filter": condition}):
            common = {name: value for name, value in one.items() if name not in added}
            assert not list(validator.iter_errors(common))
            validated[f"beta {own}"] += 1
    print("validated:", dict(validated))  # noqa: T201 - the count is asked for
    assert len(validated) == 16
    assert sum(validated.values()) > 200
    assert min(validated.values()) >= 2


def test_the_metadata_can_refuse() -> None:
    """A wrong type, an unknown name, a null that may not be, an unknown member of an enum."""
    validator = metadata().validator("directoryAudit")
    good = AzureAdFake(World(seed=3, now=NOW), Clock(NOW))
    record = good.record(good.add_events(1, at=NOW)[0])
    assert validator.is_valid(record)
    for change in (
        {"targetResources": {}},
        {"activityDateTime": None},
        {"activityDateTime": "yesterday"},
        {"colour": "blue"},
        {"result": "maybe"},
        {"initiatedBy": {"robot": None}},
    ):
        assert not validator.is_valid({**record, **change}), change


async def test_only_documented_filters_are_taken(fake: AzureAdFake, caller: Caller) -> None:
    """`ge` and `le` on the log's own time, as an unquoted literal with Z."""
    fake.add_events(20, at=NOW - timedelta(minutes=30))
    good = window("activityDateTime", NOW - timedelta(hours=1), NOW)
    assert len(await caller.all(AUDITS, **{"$filter": good})) == 10
    for condition in (
        good.replace("ge", "gt"),
        good.replace("le ", "lt "),
        good.replace("activityDateTime", "createdDateTime"),
        good.replace("Z", ""),
        good.replace("Z", "+00:00"),
        "activityDateTime ge '2026-11-24T00:00:00Z'",
        f"activityDateTime ge {NOW - timedelta(days=31):%Y-%m-%dT%H:%M:%SZ}",
        "signInEventTypes/any(t: t eq 'servicePrincipal')",
    ):
        answer = await caller.get(AUDITS, **{"$filter": condition})
        assert code_of(answer) == (400, "BadRequest"), condition
        assert answer.json()["error"]["message"] == "Invalid filter clause"


@pytest.mark.parametrize(
    ("url", "params"),
    [
        (AUDITS, {"$skip": "10"}),
        (AUDITS, {"$select": "id"}),
        (AUDITS, {"$count": "true"}),
        (AUDITS, {"$top": "1001"}),
        (AUDITS, {"$top": "0"}),
        (SIGN_INS, {"$orderby": "createdDateTime asc"}),
        ("/v1.0/users", {"$top": "1000"}),
        ("/v1.0/users", {"$filter": "mail eq 'x'"}),
        ("/v1.0/roleManagement/directory/roleAssignments", {"$top": "5"}),
        ("/v1.0/oauth2PermissionGrants", {"$top": "5"}),
    ],
)
async def test_other_options_are_refused(caller: Caller, url: str, params: dict[str, str]) -> None:
    """What is not documented for a collection is an error, not ignored."""
    assert code_of(await caller.get(url, **params)) == (400, "Request_UnsupportedQuery")


async def test_the_order_is_that_of_the_documentation(fake: AzureAdFake, caller: Caller) -> None:
    """Sign-ins descend; audits ascend only when asked to."""
    fake.add_events(60, at=NOW - timedelta(minutes=30))
    sign_ins = [one["createdDateTime"] for one in await caller.all(SIGN_INS)]
    assert sign_ins == sorted(sign_ins, reverse=True)
    plain = [one["activityDateTime"] for one in await caller.all(AUDITS)]
    assert plain != sorted(plain)
    order = {"$orderby": "activityDateTime asc"}
    ascending = [one["activityDateTime"] for one in await caller.all(AUDITS, **order)]
    assert ascending == sorted(plain)
    assert len(set(ascending)) < len(ascending)  # Ties are there to be met.
    assert all(re.fullmatch(r"[^.]*\.\d{7}Z", text) for text in ascending)
    fake.is_order_refused = True
    assert code_of(await caller.get(AUDITS, **order)) == (400, "BadRequest")


async def test_beta_serves_each_kind_of_sign_in_under_its_filter(
    fake: AzureAdFake, caller: Caller
) -> None:
    """And interactive ones without."""
    fake.add_events(8, at=NOW - timedelta(minutes=5), streams=SIGN_IN_TYPES)
    for kind, own in SIGN_IN_TYPES.items():
        condition = f"signInEventTypes/any(t: t eq '{own}')"
        found = await caller.all(BETA_SIGN_INS, **{"$filter": condition})
        assert {one["id"] for one in found} == fake.event_ids([kind])
    assert {one["id"] for one in await caller.all(BETA_SIGN_INS)} == fake.event_ids(["interactive"])
    refused = await caller.get(SIGN_INS, **{"$filter": condition})
    assert code_of(refused) == (400, "BadRequest")


async def test_a_late_event_is_not_there_before_its_time(fake: AzureAdFake, caller: Caller) -> None:
    """It appears with the time at which it happened."""
    at = NOW - timedelta(hours=1)
    ids = fake.add_events(
        1, at=at, visible_at=NOW + timedelta(minutes=20), streams=["directoryAudits"]
    )
    assert await caller.all(AUDITS) == []
    assert fake.event_ids() == set(ids)
    fake.clock.advance(timedelta(minutes=20))
    (found,) = await caller.all(AUDITS)
    assert found["activityDateTime"] == "2026-11-24T11:00:00.0000000Z"


async def test_the_audit_logs_answer_five_requests_in_ten_seconds(
    fake: AzureAdFake, caller: Caller
) -> None:
    """Of all audit logs together; the directory is not counted."""
    fake.is_limited = True
    for _ in range(5):
        assert (await caller.get(AUDITS)).status_code == 200
    refused = await caller.get(SIGN_INS)
    assert refused.status_code == 429
    assert 10 <= int(refused.headers["retry-after"]) <= 11
    assert (await caller.get("/v1.0/users")).status_code == 200
    fake.clock.advance(timedelta(seconds=int(refused.headers["retry-after"])))
    assert (await caller.get(SIGN_INS)).status_code == 200


async def test_page_tokens_are_opaque_and_belong_to_one_query(
    fake: AzureAdFake, caller: Caller
) -> None:
    """Another query, a made-up token and an old one are refused, each log in its own words."""
    fake.page_records = 4
    fake.add_events(20, at=NOW - timedelta(minutes=30))
    link = (await caller.get(AUDITS)).json()["@odata.nextLink"]
    assert len((await caller.get(link)).json()["value"]) == 4
    for other in (f"{link}x", f"{link}&$orderby=activityDateTime asc"):
        answer = await caller.get(other)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == "Invalid Skip Token."
    fake.page_objects = 10
    users = (await caller.get("/v1.0/users")).json()["@odata.nextLink"]
    assert urlsplit(users).netloc == urlsplit(BASE).netloc
    fake.clock.advance(timedelta(hours=1))
    await caller.token()
    assert code_of(await caller.get(users)) == (400, "Directory_ExpiredPageToken")
    assert code_of(await caller.get(link)) == (400, "BadRequest")


async def test_a_listing_is_of_one_moment(fake: AzureAdFake, caller: Caller) -> None:
    """What becomes visible while it is paged does not shift it."""
    fake.page_records = 4
    ids = fake.add_events(12, at=NOW - timedelta(minutes=30), streams=["directoryAudits"])
    body = (await caller.get(AUDITS)).json()
    fake.add_events(12, at=NOW - timedelta(minutes=40), streams=["directoryAudits"])
    found = [*body["value"], *await caller.all(body["@odata.nextLink"])]
    assert {one["id"] for one in found} == set(ids)


@pytest.mark.parametrize(
    ("changes", "status", "number"),
    [
        ({"tenant": "elsewhere.example"}, 400, 90002),
        ({"client_id": "someone"}, 400, 700016),
        ({"client_secret": "wrong"}, 401, 7000215),
        ({"grant_type": "password"}, 400, 70003),
        ({"scope": "https://elsewhere.example/.default"}, 400, 1002012),
    ],
)
async def test_the_token_service_says_what_is_wrong(
    caller: Caller, changes: dict[str, str], status: int, number: int
) -> None:
    """By its error numbers."""
    answer = await caller.token(**changes)
    assert (answer.status_code, answer.json()["error_codes"]) == (status, [number])
    assert f"AADSTS{number}" in answer.json()["error_description"]


async def test_an_expired_secret_and_an_expired_token(fake: AzureAdFake, caller: Caller) -> None:
    """A token lives for an hour by the fake's clock."""
    fake.secret_state = "expired"
    assert (await caller.token()).json()["error_codes"] == [7000222]
    fake.secret_state = "valid"
    await caller.token()
    assert (await caller.get("/v1.0/users")).status_code == 200
    fake.clock.advance(timedelta(seconds=3599))
    answer = await caller.get("/v1.0/users")
    assert code_of(answer) == (401, "InvalidAuthenticationToken")
    assert (await caller.client.get("/v1.0/users")).status_code == 401


async def test_what_was_not_consented_to_is_forbidden(fake: AzureAdFake, caller: Caller) -> None:
    """The log's own code and the directory's; a token keeps what it was issued with."""
    fake.permissions = {"AuditLog.Read.All", "Application.Read.All"}
    await caller.token()
    fake.permissions = {"Directory.Read.All", "AuditLog.Read.All"}
    assert code_of(await caller.get(AUDITS)) == (403, "Authentication_MSGraphPermissionMissing")
    assert code_of(await caller.get("/v1.0/users")) == (403, "Authorization_RequestDenied")
    assert (await caller.get("/v1.0/applications")).status_code == 200
    await caller.token()
    assert (await caller.get(AUDITS)).status_code == 200


async def test_licences(fake: AzureAdFake, caller: Caller) -> None:
    """Sign-ins need P1; Privileged Identity Management needs P2."""
    instances = "/v1.0/roleManagement/directory/roleEligibilityScheduleInstances"
    fake.licence = "P1"
    assert (await caller.get(SIGN_INS)).status_code == 200
    assert code_of(await caller.get(instances)) == (400, "AadPremiumLicenseRequired")
    fake.licence = "free"
    unlicensed = (403, "Authentication_RequestFromNonPremiumTenantOrB2CTenant")
    assert code_of(await caller.get(SIGN_INS)) == unlicensed
    assert (await caller.get(AUDITS)).status_code == 200


async def test_select_decides_what_comes(fake: AzureAdFake, caller: Caller) -> None:
    """`employeeId` comes only where it is asked for; a name that is none is refused."""
    (plain, *_) = await caller.all("/v1.0/users")
    assert "employeeId" not in plain
    (chosen, *_) = await caller.all("/v1.0/users", **{"$select": "id,employeeId"})
    assert chosen.keys() == {"id", "employeeId"}
    answer = await caller.get("/v1.0/users", **{"$select": "id,shoeSize"})
    assert code_of(answer) == (400, "Request_BadRequest")


async def test_v1_leaves_service_principals_out_of_groups(
    fake: AzureAdFake, caller: Caller
) -> None:
    """As documented for group-list-members; beta has them."""
    group_id = fake.groups[0]["id"]
    kinds = {}
    for version in ("v1.0", "beta"):
        found = await caller.all(f"/{version}/groups/{group_id}/members", **{"$select": "id"})
        kinds[version] = {one["@odata.type"].rpartition(".")[2] for one in found}
    assert kinds["v1.0"] == {"user", "device"}
    assert kinds["beta"] == {"user", "device", "servicePrincipal"}
    answer = await caller.get("/v1.0/groups/no-such/members")
    assert code_of(answer) == (404, "Request_ResourceNotFound")


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault.THROTTLED_SECONDS, 429),
        (Fault.THROTTLED_DATE, 429),
        (Fault.THROTTLED_BARE, 429),
        (Fault.UNAVAILABLE, 503),
        (Fault.TOKEN_EXPIRED, 401),
    ],
)
async def test_a_fault_happens_once_and_is_over(
    fake: AzureAdFake, caller: Caller, fault: Fault, status: int
) -> None:
    """Injected faults are answers of the fake like any other."""
    await caller.token()
    fake.faults.inject(fault)
    assert (await caller.get("/v1.0/users")).status_code == status
    assert fake.faults.are_over
    assert (await caller.get("/v1.0/users")).status_code == 200


async def test_faults_of_pages_and_records(fake: AzureAdFake, caller: Caller) -> None:
    """Each shows where it says."""
    fake.page_records = 4
    fake.add_events(16, at=NOW - timedelta(minutes=30), streams=["directoryAudits"])
    order = {"$orderby": "activityDateTime asc"}

    fake.faults.inject(Fault.EMPTY_PAGE)
    empty = (await caller.get(AUDITS, **order)).json()
    assert empty["value"] == []
    assert len(await caller.all(empty["@odata.nextLink"])) == 16

    fake.faults.inject(Fault.REPEATED_TOKEN)
    link = (await caller.get(AUDITS, **order)).json()["@odata.nextLink"]
    assert (await caller.get(link)).json()["@odata.nextLink"] == link

    fake.faults.inject(Fault.REPEATED_EVENT)
    ids = [one["id"] for one in await caller.all(AUDITS, **order)]
    assert (len(ids), len(set(ids))) == (17, 16)

    fake.faults.inject(Fault.PAGE_TOKEN_EXPIRED)
    link = (await caller.get(AUDITS, **order)).json()["@odata.nextLink"]
    assert (await caller.get(link)).status_code == 400

    for fault in (Fault.UNKNOWN_ENUM, Fault.NULL_ACTOR, Fault.MALFORMED_RECORD):
        fake.faults.inject(fault)
    broken, first, *_ = (await caller.get(AUDITS, **order)).json()["value"]
    assert "id" not in broken
    assert first["result"] == "somethingNew"
    assert first["initiatedBy"] == {"user": None, "app": None}

    group = f"/beta/groups/{fake.groups[0]['id']}/members"
    fake.faults.inject(Fault.FORBIDDEN_OBJECT)
    assert (await caller.get(group)).status_code == 403
    fake.faults.inject(Fault.VANISHED_OBJECT)
    assert (await caller.get(group)).status_code == 404
    assert fake.faults.are_over


def test_the_same_seed_is_the_same_tenant() -> None:
    """Ids, events and grants."""
    one, other = (AzureAdFake(World(seed=5, now=NOW), Clock(NOW)) for _ in range(2))
    assert one.add_events(9, at=NOW) == other.add_events(9, at=NOW)
    assert one.grants() == other.grants()
    assert one.tenant_id != AzureAdFake(World(seed=6, now=NOW), Clock(NOW)).tenant_id


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    tests = Path(__file__).resolve().parents[1]
    started = subprocess.Popen(
        [sys.executable, "-m", "fakes.azure_ad", "--seed", "4", "--events", "30", "--hours", "3"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tests,
        env={**os.environ, "PYTHONPATH": str(tests)},
    )
    yield started
    started.kill()
    started.wait()


def test_it_is_a_program_too(process: subprocess.Popen[str]) -> None:
    """It prints its URL, tells the truth, adds events and faults, and ends at SIGTERM."""
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    with httpx2.Client(base_url=url, timeout=10) as client:
        truth = client.get("/_truth").json()
        assert len(truth["event_ids"]) == 30
        assert {len(one) for one in truth["grants"]} == {5}
        added = client.post("/_add?count=3&late_seconds=60").json()["event_ids"]
        assert set(added) < set(client.get("/_truth").json()["event_ids"])
        assert client.post("/_fault?name=UNAVAILABLE&times=1").status_code == 200
        assert client.get("/v1.0/users").status_code == 503
        assert client.get("/v1.0/users").status_code == 401
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
