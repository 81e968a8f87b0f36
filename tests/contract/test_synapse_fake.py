"""The Synapse fake: it answers in the documented shapes, and refuses what the services refuse.

The schemas are written here after the specifications in Azure/azure-rest-api-specs, read
2026-11-24: synapse/data-plane stable/2020-12-01 (roleAssignments.json, roleDefinitions.json),
operationalinsights/data-plane stable/v1 (OperationalInsights.json), Microsoft.Insights
2015-04-01 (activityLogs_API.json), Microsoft.Authorization 2022-04-01 (RoleAssignmentsCalls,
RoleDefinitionsCalls, DenyAssignmentCalls). One deviation: that specification types every cell of
a result as a string; the vendor's own sample ("Response format") has numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from fakes.kit import Clock, Fault, serving
from fakes.synapse import (
    AUDIT,
    CLIENT_ID,
    CLIENT_SECRET,
    GROUP,
    RESOURCE,
    SCOPES,
    SUBSCRIPTION,
    TENANT,
    WORKSPACE_ID,
    SynapseFake,
)
from fakes.world import World
from jsonschema import Draft202012Validator

from connectors._azure.log_analytics import IngestedRows

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
TABLES = ("SQLSecurityAuditEvents", "SynapseRbacOperations", "SynapseBuiltinSqlPoolRequestsEnded")
QUERY = IngestedRows(TABLES, RESOURCE)
ACTIVITY = (
    f"/management/subscriptions/{SUBSCRIPTION}"
    "/providers/Microsoft.Insights/eventtypes/management/values"
)
AUTHORIZATION = f"/management{RESOURCE}/providers/Microsoft.Authorization"

TEXT = {"type": "string"}
GUID = {"type": "string", "pattern": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"}
AT = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$"}


def listing(item: dict[str, Any], **others: Any) -> dict[str, Any]:
    properties = {"value": {"type": "array", "items": item}, **others}
    return {"type": "object", "required": ["value"], "properties": properties}


def record(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


LOCALIZABLE = record(["value"], value=TEXT, localizedValue=TEXT)
ERROR_INFO: dict[str, Any] = record(["code", "message"], code=TEXT, message=TEXT)
ERROR = record(["error"], error=ERROR_INFO)
CELL = {"type": ["string", "number", "boolean", "null", "object", "array"]}
TABLE = record(
    ["name", "columns", "rows"],
    name=TEXT,
    columns={"type": "array", "items": record(["name", "type"], name=TEXT, type=TEXT)},
    rows={"type": "array", "items": {"type": "array", "items": CELL}},
)
RESULTS = record(["tables"], tables={"type": "array", "items": TABLE}, error=ERROR_INFO)
SYNAPSE_ASSIGNMENTS = listing(
    record(
        ["id", "roleDefinitionId", "principalId", "scope"],
        id=TEXT,
        roleDefinitionId=GUID,
        principalId=GUID,
        scope=TEXT,
        principalType=TEXT,
    ),
    count={"type": "integer"},
)
SYNAPSE_DEFINITIONS = {
    "type": "array",
    "items": record(
        ["id"],
        id=GUID,
        name=TEXT,
        isBuiltIn={"type": "boolean"},
        scopes={"type": "array", "items": TEXT},
    ),
}
SYNAPSE_SCOPES = {"type": "array", "items": TEXT}
AZURE_ASSIGNMENTS = listing(
    record(
        ["properties"],
        id=TEXT,
        name=TEXT,
        type=TEXT,
        properties=record(
            ["roleDefinitionId", "principalId"],
            scope=TEXT,
            roleDefinitionId=TEXT,
            principalId=TEXT,
            principalType={"enum": ["User", "Group", "ServicePrincipal", "ForeignGroup"]},
            condition={"type": ["string", "null"]},
            createdOn=AT,
        ),
    ),
    nextLink=TEXT,
)
AZURE_DEFINITIONS = listing(
    record(
        ["properties"],
        id=TEXT,
        properties=record(
            [], roleName=TEXT, type=TEXT, assignableScopes={"type": "array", "items": TEXT}
        ),
    ),
    nextLink=TEXT,
)
PRINCIPALS = {"type": "array", "items": record([], id=TEXT, type=TEXT)}
AZURE_DENIALS = listing(
    record(
        ["properties"],
        id=TEXT,
        properties=record(
            [],
            denyAssignmentName=TEXT,
            scope=TEXT,
            principals=PRINCIPALS,
            excludePrincipals=PRINCIPALS,
            isSystemProtected={"type": "boolean"},
        ),
    ),
    nextLink=TEXT,
)
ACTIVITIES = listing(
    record(
        [],
        caller=TEXT,
        claims={"type": "object", "additionalProperties": TEXT},
        eventDataId=TEXT,
        eventTimestamp=AT,
        submissionTimestamp=AT,
        resourceId=TEXT,
        operationName=LOCALIZABLE,
        status=LOCALIZABLE,
        level={"enum": ["Critical", "Error", "Warning", "Informational", "Verbose"]},
    ),
    nextLink=TEXT,
)
FLAT_ERROR = record(["code", "message"], code=TEXT, message=TEXT)

VALIDATED: Counter[str] = Counter()


def validated(kind: str, schema: dict[str, Any], body: Any) -> Any:
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(body)
    VALIDATED[kind] += 1
    return body


@dataclass
class Raw:
    """A client without manners: no retries, no budget."""

    fake: SynapseFake
    client: httpx2.Client
    tokens: dict[str, str] = field(default_factory=dict)

    def token(self, audience: str) -> str:
        if audience not in self.tokens:
            scope = next(scope for scope, name in SCOPES.items() if name == audience)
            answer = self.client.post(f"/login/{TENANT}/oauth2/v2.0/token", data=form(scope))
            self.tokens[audience] = answer.json()["access_token"]
        return self.tokens[audience]

    def get(self, path: str, audience: str = "management", **options: Any) -> httpx2.Response:
        headers = {"authorization": f"Bearer {self.token(audience)}", **options.pop("headers", {})}
        return self.client.get(path, headers=headers, **options)

    def query(self, text: str, **headers: str) -> httpx2.Response:
        return self.client.post(
            f"/loganalytics/v1/workspaces/{WORKSPACE_ID}/query",
            json={"query": text},
            headers={"authorization": f"Bearer {self.token('loganalytics')}", **headers},
        )

    def rows(self, from_at: datetime, to_at: datetime, **options: Any) -> list[list[Any]]:
        options.setdefault("rows_max", 1000)
        answer = self.query(QUERY.text(from_at, to_at, **options))
        assert answer.status_code == 200
        body = validated("queryResults", RESULTS, answer.json())
        rows: list[list[Any]] = body["tables"][0]["rows"]
        return rows


def form(scope: str, **others: str) -> dict[str, str]:
    return {
        "grant_type": "client_credentials",
        "client_id": CLIENT_ID,
        "client_secret": CLIENT_SECRET,
        "scope": scope,
        **others,
    }


@pytest.fixture
def raw() -> Iterator[Raw]:
    fake = SynapseFake(World(now=NOW), Clock(NOW))
    with serving(fake.app) as url, httpx2.Client(base_url=url, timeout=10) as client:
        yield Raw(fake, client)


class TestTokens:
    @pytest.mark.parametrize(
        "wrong", [{"client_secret": "x"}, {"client_id": "x"}, {"grant_type": "password"}]
    )
    def test_a_wrong_credential_is_refused(self, raw: Raw, wrong: dict[str, str]) -> None:
        answer = raw.client.post(
            f"/login/{TENANT}/oauth2/v2.0/token", data=form(next(iter(SCOPES)), **wrong)
        )
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")

    def test_a_scope_that_is_not_known_is_refused(self, raw: Raw) -> None:
        answer = raw.client.post(
            f"/login/{TENANT}/oauth2/v2.0/token", data=form("https://graph.microsoft.com/.default")
        )
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_scope")

    def test_a_token_opens_its_own_service_only_and_only_for_an_hour(self, raw: Raw) -> None:
        params = {"api-version": "2020-12-01"}
        assert raw.get("/synapse/roleAssignments", "synapse", params=params).status_code == 200
        assert raw.get("/synapse/roleAssignments", "management", params=params).status_code == 401
        assert raw.client.get("/synapse/roleAssignments", params=params).status_code == 401
        raw.fake.clock.advance(timedelta(seconds=3600))
        assert raw.get("/synapse/roleAssignments", "synapse", params=params).status_code == 401


class TestQueries:
    def test_rows_are_answered_by_the_time_they_came_in_half_open(self, raw: Raw) -> None:
        at = NOW - timedelta(hours=1)
        raw.fake.add_events(30, at=at)
        edge = at + timedelta(seconds=31)
        before = raw.rows(at, edge)
        after = raw.rows(edge, NOW)
        assert len(before) + len(after) == 30
        assert before
        assert after
        assert all(datetime.fromisoformat(row[2]) < edge for row in before)
        # One batch came in exactly on the second.
        assert after[0][2] == edge.strftime("%Y-%m-%dT%H:%M:%SZ")
        came_in = [datetime.fromisoformat(row[2]) for row in after]
        assert came_in == sorted(came_in)

    def test_a_row_that_comes_in_late_is_not_there_before(self, raw: Raw) -> None:
        visible_at = NOW + timedelta(minutes=30)
        raw.fake.add_events(1, at=NOW - timedelta(hours=1), visible_at=visible_at)
        later = NOW + timedelta(hours=1)
        assert raw.rows(NOW - timedelta(hours=2), later) == []
        raw.fake.clock.advance(timedelta(minutes=31))
        assert len(raw.rows(visible_at, later)) == 1
        assert raw.rows(NOW - timedelta(hours=2), visible_at) == []

    def test_a_row_can_be_queried_a_minute_after_it_came_in(self, raw: Raw) -> None:
        raw.fake.add_events(1, at=NOW - timedelta(seconds=60))
        window = (NOW - timedelta(hours=1), NOW + timedelta(hours=1))
        assert raw.rows(*window) == []
        raw.fake.clock.advance(timedelta(seconds=30))
        assert len(raw.rows(*window)) == 1

    def test_a_row_later_than_the_bound_is_dated_when_it_came_in(self, raw: Raw) -> None:
        raw.fake.add_events(1, at=NOW - timedelta(days=4), visible_at=NOW - timedelta(hours=1))
        row = raw.rows(NOW - timedelta(hours=2), NOW)[0]
        assert row[1] == (NOW - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        assert '"EventTime":"2026-11-20T' in row[3]

    def test_rows_vanish_after_the_retention(self, raw: Raw) -> None:
        raw.fake.add_events(5, at=NOW - timedelta(days=29))
        window = (NOW - timedelta(days=30), NOW - timedelta(days=28))
        assert len(raw.rows(*window)) == 5
        raw.fake.clock.advance(timedelta(days=2))
        raw.tokens.clear()
        assert raw.rows(*window) == []

    def test_portions_of_the_total_order_are_the_whole(self, raw: Raw) -> None:
        at = NOW - timedelta(hours=1)
        raw.fake.add_events(23, at=at)
        whole = raw.rows(at, NOW)
        portions = [raw.rows(at, NOW, rows_max=10, skip=skip) for skip in (0, 10, 20)]
        assert [len(portion) for portion in portions] == [10, 10, 3]
        found = [row for portion in portions for row in portion]
        assert sorted(map(str, found)) == sorted(map(str, whole))
        assert len(raw.rows(at, NOW, rows_max=10)) == 10

    @pytest.mark.parametrize("cells", ["json_text", "object", "strings"])
    def test_rows_of_every_spelling_fit_the_specification(self, raw: Raw, cells: Any) -> None:
        raw.fake.cells = cells
        raw.fake.add_events(20, at=NOW - timedelta(hours=1))
        rows = raw.rows(NOW - timedelta(hours=2), NOW)
        assert len(rows) == 20
        kind = str if cells == "json_text" else dict
        assert all(isinstance(row[3], kind) for row in rows)

    @pytest.mark.parametrize(
        "text",
        [
            "SQLSecurityAuditEvents | take 1",
            QUERY.text(NOW, NOW, rows_max=1) + " | count",
            QUERY.text(NOW, NOW, rows_max=1).replace("<", "<="),
            QUERY.text(NOW, NOW, rows_max=1).replace("ingestion_time() >=", "TimeGenerated >="),
            QUERY.text(NOW, NOW, rows_max=1).replace("// verity-stream: ingested rows, 1\n", ""),
            QUERY.text(NOW, NOW, rows_max=1).replace(RESOURCE, "/x", 1),
            QUERY.text(NOW, NOW, rows_max=1, skip=2).replace("RowText asc", "RowText desc"),
        ],
    )
    def test_any_other_query_is_a_syntax_error(self, raw: Raw, text: str) -> None:
        answer = raw.query(text)
        assert answer.status_code == 400
        error = validated("errorResponse", ERROR, answer.json())["error"]
        assert (error["code"], error["innererror"]["code"]) == ("BadArgumentError", "SyntaxError")

    def test_a_missing_table_is_left_out_and_none_at_all_is_an_error(self, raw: Raw) -> None:
        raw.fake.add_events(10, at=NOW - timedelta(hours=1))
        raw.fake.tables = {AUDIT}
        rows = raw.rows(NOW - timedelta(hours=2), NOW)
        assert {row[0] for row in rows} == {AUDIT}
        raw.fake.tables = set()
        answer = raw.query(QUERY.text(NOW, NOW, rows_max=1))
        error = validated("errorResponse", ERROR, answer.json())["error"]
        assert (answer.status_code, error["innererror"]["code"]) == (400, "SemanticError")

    def test_another_resource_has_no_rows(self, raw: Raw) -> None:
        raw.fake.add_events(10, at=NOW - timedelta(hours=1))
        query = IngestedRows(TABLES, RESOURCE + "2")
        answer = raw.query(query.text(NOW - timedelta(hours=2), NOW, rows_max=100))
        assert answer.json()["tables"][0]["rows"] == []

    def test_a_part_of_a_result_comes_with_status_200_and_an_error(self, raw: Raw) -> None:
        raw.fake.add_events(10, at=NOW - timedelta(hours=1))
        text = QUERY.text(NOW - timedelta(hours=2), NOW, rows_max=100)
        raw.fake.partial_results = 1
        answer = raw.query(text)
        body = validated("queryResults", RESULTS, answer.json())
        assert (answer.status_code, len(body["tables"][0]["rows"])) == (200, 5)
        assert body["error"]["code"] == "PartialError"
        raw.fake.result_rows_max = 8
        body = validated("queryResults", RESULTS, raw.query(text).json())
        assert len(body["tables"][0]["rows"]) == 8
        assert "E_QUERY_RESULT_SET_TOO_LARGE" in str(body["error"])

    @pytest.mark.parametrize("wait", ["wait=601", "wait=0", "soon"])
    def test_a_wait_beyond_its_limits_is_refused(self, raw: Raw, wait: str) -> None:
        assert raw.query(QUERY.text(NOW, NOW, rows_max=1), prefer=wait).status_code == 400

    def test_another_workspace_and_a_missing_role_are_refused(self, raw: Raw) -> None:
        token = {"authorization": f"Bearer {raw.token('loganalytics')}"}
        answer = raw.client.post(
            "/loganalytics/v1/workspaces/other/query", json={"query": "x"}, headers=token
        )
        assert answer.status_code == 404
        validated("errorResponse", ERROR, answer.json())
        raw.fake.roles.discard("logs")
        answer = raw.query(QUERY.text(NOW, NOW, rows_max=1))
        assert answer.status_code == 403
        validated("errorResponse", ERROR, answer.json())

    def test_the_201st_query_of_half_a_minute_is_throttled(self, raw: Raw) -> None:
        text = QUERY.text(NOW, NOW, rows_max=1)
        assert {raw.query(text).status_code for _ in range(200)} == {200}
        answer = raw.query(text)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "30")
        raw.fake.clock.advance(timedelta(seconds=30))
        assert raw.query(text).status_code == 200

    def test_a_sixth_query_at_once_is_throttled(self, raw: Raw) -> None:
        raw.fake.query_seconds = 60
        raw.token("loganalytics")
        text = QUERY.text(NOW, NOW, rows_max=1)
        with ThreadPoolExecutor(8) as pool:
            answers = as_completed([pool.submit(raw.query, text) for _ in range(8)], timeout=30)
            refused = [next(answers).result().status_code for _ in range(3)]
            raw.fake.query_seconds = 0
            served = [answer.result().status_code for answer in answers]
        assert refused == [429] * 3
        assert served == [200] * 5


class TestRoleAssignments:
    def test_of_synapse_with_a_continuation_in_a_header(self, raw: Raw) -> None:
        found, headers = [], {}
        params = {"api-version": "2020-12-01"}
        while True:
            answer = raw.get("/synapse/roleAssignments", "synapse", params=params, headers=headers)
            body = validated("RoleAssignmentDetailsList", SYNAPSE_ASSIGNMENTS, answer.json())
            found += body["value"]
            if "x-ms-continuation" not in answer.headers:
                break
            assert len(body["value"]) == 3
            headers = {"x-ms-continuation": answer.headers["x-ms-continuation"]}
        assert len({one["id"] for one in found}) == len(found) == 7
        pool = {"scope": "workspaces/ws1/bigDataPools/spark1", **params}
        one = raw.get("/synapse/roleAssignments", "synapse", params=pool).json()
        assert one["count"] == 1

    def test_of_synapse_a_made_up_or_old_continuation_is_refused(self, raw: Raw) -> None:
        params = {"api-version": "2020-12-01"}
        first = raw.get("/synapse/roleAssignments", "synapse", params=params)
        token = first.headers["x-ms-continuation"]
        for headers, seconds in (
            ({"x-ms-continuation": "x"}, 0),
            ({"x-ms-continuation": token}, 301),
        ):
            raw.fake.clock.advance(timedelta(seconds=seconds))
            answer = raw.get("/synapse/roleAssignments", "synapse", params=params, headers=headers)
            assert answer.status_code == 400
            validated("ErrorContract", ERROR, answer.json())

    def test_the_definitions_and_scopes_of_synapse(self, raw: Raw) -> None:
        params = {"api-version": "2020-12-01"}
        body = raw.get("/synapse/roleDefinitions", "synapse", params=params).json()
        assert len(validated("SynapseRoleDefinition", SYNAPSE_DEFINITIONS, body)) == 3
        body = raw.get("/synapse/rbacScopes", "synapse", params=params).json()
        assert "workspaces/ws1" in validated("rbacScopes", SYNAPSE_SCOPES, body)
        assert raw.get("/synapse/rbacScopes", "synapse").status_code == 400
        raw.fake.roles.discard("synapse")
        answer = raw.get("/synapse/rbacScopes", "synapse", params=params)
        assert answer.status_code == 403
        validated("ErrorContract", ERROR, answer.json())

    def all_of(self, raw: Raw, kind: str, schema: dict[str, Any], **params: str) -> list[Any]:
        url: str | None = f"{AUTHORIZATION}/{kind}"
        options: dict[str, Any] = {"params": {"api-version": "2022-04-01", **params}}
        found = []
        while url:
            body = validated(kind, schema, raw.get(url, **options).json())
            found += body["value"]
            url, options = body.get("nextLink"), {}
        return found

    def test_of_azure_at_and_above_or_at_and_below(self, raw: Raw) -> None:
        filter_ = {"$filter": "atScope()"}
        above = self.all_of(raw, "roleAssignments", AZURE_ASSIGNMENTS, **filter_)
        below = self.all_of(raw, "roleAssignments", AZURE_ASSIGNMENTS)
        assert len(above) == 4
        assert len(below) == 2
        assert {one["properties"]["scope"] for one in below} == {
            RESOURCE,
            f"{RESOURCE}/sqlPools/dw",
        }
        assert len(self.all_of(raw, "roleDefinitions", AZURE_DEFINITIONS)) == 4
        assert len(self.all_of(raw, "denyAssignments", AZURE_DENIALS, **filter_)) == 1

    @pytest.mark.parametrize(
        ("path", "params", "status"),
        [
            ("roleAssignments", {}, 400),
            ("roleAssignments", {"api-version": "2015-01-01"}, 400),
            ("roleAssignments", {"api-version": "2022-04-01", "$filter": "scope eq 'x'"}, 400),
            ("roleAssignments", {"api-version": "2022-04-01", "$skipToken": "made up"}, 400),
            ("locks", {"api-version": "2022-04-01"}, 404),
        ],
    )
    def test_of_azure_what_is_not_supported_is_refused(
        self, raw: Raw, path: str, params: dict[str, str], status: int
    ) -> None:
        answer = raw.get(f"{AUTHORIZATION}/{path}", params=params)
        assert answer.status_code == status
        validated("ErrorResponse", ERROR, answer.json())

    def test_of_azure_without_the_role_or_of_another_resource(self, raw: Raw) -> None:
        params = {"api-version": "2022-04-01"}
        other = AUTHORIZATION.replace("ws1", "ws2")
        assert raw.get(f"{other}/roleAssignments", params=params).status_code == 404
        raw.fake.roles.discard("azure")
        answer = raw.get(f"{AUTHORIZATION}/roleAssignments", params=params)
        assert answer.status_code == 403
        validated("ErrorResponse", ERROR, answer.json())


class TestActivityLog:
    def filter(self, from_at: datetime, to_at: datetime, rest: str = "") -> dict[str, str]:
        shape = "%Y-%m-%dT%H:%M:%SZ"
        times = f"eventTimestamp ge '{from_at.strftime(shape)}'"
        times += f" and eventTimestamp le '{to_at.strftime(shape)}'"
        return {"api-version": "2015-04-01", "$filter": times + rest}

    def test_pages_follow_a_link_and_the_window_is_closed(self, raw: Raw) -> None:
        at = NOW - timedelta(hours=1)
        raw.fake.add_activities(8, at=at)
        window = self.filter(at, at + timedelta(seconds=7), f" and resourceGroupName eq '{GROUP}'")
        url: str | None = ACTIVITY
        options: dict[str, Any] = {"params": window}
        found = []
        while url:
            body = validated("EventDataCollection", ACTIVITIES, raw.get(url, **options).json())
            found += body["value"]
            url, options = body.get("nextLink"), {}
        assert len(found) == 8
        one = self.filter(at, at + timedelta(seconds=7), f" and resourceUri eq '{RESOURCE}'")
        about = raw.get(ACTIVITY, params=one).json()["value"]
        assert {record["resourceId"] for record in about} == {RESOURCE}

    def test_a_record_is_there_once_it_was_submitted(self, raw: Raw) -> None:
        raw.fake.add_activities(1, at=NOW)
        window = self.filter(NOW - timedelta(hours=1), NOW + timedelta(hours=1))
        assert raw.get(ACTIVITY, params=window).json()["value"] == []
        raw.fake.clock.advance(timedelta(minutes=5))
        assert len(raw.get(ACTIVITY, params=window).json()["value"]) == 1

    @pytest.mark.parametrize(
        "rest",
        [" and caller eq 'x'", " or resourceUri eq 'x'", " and resourceUri ne 'x'", " "],
    )
    def test_no_other_syntax_is_allowed(self, raw: Raw, rest: str) -> None:
        answer = raw.get(ACTIVITY, params=self.filter(NOW, NOW, rest))
        assert answer.status_code == 400
        validated("flat ErrorResponse", FLAT_ERROR, answer.json())

    def test_a_start_is_needed_and_within_90_days(self, raw: Raw) -> None:
        assert raw.get(ACTIVITY, params={"api-version": "2015-04-01"}).status_code == 400
        assert (
            raw.get(ACTIVITY, params=self.filter(NOW, NOW) | {"api-version": "1"}).status_code
            == 400
        )
        old = self.filter(NOW - timedelta(days=91), NOW)
        assert raw.get(ACTIVITY, params=old).status_code == 400
        raw.fake.roles.discard("azure")
        assert raw.get(ACTIVITY, params=self.filter(NOW, NOW)).status_code == 403


class TestFaults:
    @pytest.mark.parametrize(
        ("fault", "status"),
        [
            (Fault.THROTTLED_SECONDS, 429),
            (Fault.THROTTLED_DATE, 429),
            (Fault.THROTTLED_BARE, 429),
            (Fault.UNAVAILABLE, 503),
            (Fault.TOKEN_EXPIRED, 401),
            (Fault.NOT_JSON, 200),
        ],
    )
    def test_once_and_no_more(self, raw: Raw, fault: Fault, status: int) -> None:
        raw.fake.faults.inject(fault)
        text = QUERY.text(NOW, NOW, rows_max=1)
        answer = raw.query(text)
        assert answer.status_code == status
        assert raw.fake.faults.are_over
        if fault is Fault.NOT_JSON:
            assert answer.text.startswith("<html>")
        raw.tokens.clear()
        assert "tables" in raw.query(text).json()

    def test_an_answer_is_cut_in_its_middle(self, raw: Raw) -> None:
        raw.fake.faults.inject(Fault.DROPPED)
        with pytest.raises(httpx2.RemoteProtocolError):
            raw.query(QUERY.text(NOW, NOW, rows_max=1))

    @pytest.mark.parametrize(
        ("fault", "count"),
        [
            (Fault.UNKNOWN_ENUM, 10),
            (Fault.NULL_ACTOR, 10),
            (Fault.REPEATED_EVENT, 11),
            (Fault.MALFORMED_RECORD, 11),
        ],
    )
    def test_what_happens_to_rows(self, raw: Raw, fault: Fault, count: int) -> None:
        at = NOW - timedelta(hours=1)
        raw.fake.add_events(10, at=at)
        plain = raw.rows(at, NOW)
        raw.fake.faults.inject(fault)
        changed = raw.rows(at, NOW)
        assert len(changed) == count
        assert changed != plain
        assert raw.rows(at, NOW) == plain

    def test_what_happens_to_pages(self, raw: Raw) -> None:
        params = {"api-version": "2022-04-01"}
        url = f"{AUTHORIZATION}/roleDefinitions"
        raw.fake.faults.inject(Fault.EMPTY_PAGE)
        body = raw.get(url, params=params).json()
        assert (body["value"], "nextLink" in body) == ([], True)
        raw.fake.faults.inject(Fault.PAGE_TOKEN_EXPIRED)
        assert raw.get(body["nextLink"]).status_code == 400
        assert len(raw.get(body["nextLink"]).json()["value"]) == 3
        raw.fake.faults.inject(Fault.REPEATED_TOKEN)
        assert raw.get(body["nextLink"]).json()["nextLink"] == body["nextLink"]


def test_how_many_answers_were_validated() -> None:
    """The last test of the file: every kind of answer was held against its specification."""
    kinds = {
        *("queryResults", "errorResponse", "RoleAssignmentDetailsList", "ErrorContract"),
        *("SynapseRoleDefinition", "rbacScopes", "roleAssignments", "roleDefinitions"),
        *("denyAssignments", "ErrorResponse", "EventDataCollection", "flat ErrorResponse"),
    }
    if not VALIDATED:
        pytest.skip("run alone: the other tests of this file validate")
    assert set(VALIDATED) == kinds
    assert sum(VALIDATED.values()) >= 50, VALIDATED
    print(f"{sum(VALIDATED.values())} answers validated: {dict(VALIDATED)}")  # noqa: T201 - counted
