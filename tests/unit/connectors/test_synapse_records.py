"""Synapse: from rows, activity records, role assignments and catalog rows to Verity's records."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, ClassVar

import orjson
import pytest
from fakes.synapse import CLIENT_SECRET, RESOURCE, settings_of
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from connectors._azure.log_analytics import IngestedRow
from connectors.synapse import PLATFORM, Settings, sql_server
from connectors.synapse import references as names
from connectors.synapse.grants import azure_grant, deny_grants, role_names, synapse_grant
from connectors.synapse.records import activity_events_of, content_hash, event_of, events_of
from connectors.synapse.sql_grants import SqlCatalog, sql_records
from verity_sdk.errors import Malformed, Misconfigured, Unavailable

AT = datetime(2026, 11, 24, 10, 0, 30, tzinfo=UTC)
GUID = "11111111-2222-4333-8444-555555555555"
JSON = st.recursive(
    # What the SDK's JSON reader can give: integers beyond 64 bits come as floats.
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)
TABLES = ("SQLSecurityAuditEvents", "SynapseRbacOperations", "SynapseBuiltinSqlPoolRequestsEnded")
COLUMNS = (
    *("EventId", "EventTime", "SequenceNumber", "ActionId", "ActionName", "OperationName"),
    *("SessionServerPrincipalName", "ServerPrincipalName", "DatabaseName", "SchemaName"),
    *("ObjectName", "Identity", "Properties", "RoleAssignmentId", "CorrelationId", "DurationMs"),
)


def audit(**record: Any) -> IngestedRow:
    base = {
        "EventId": "e1",
        "SequenceNumber": 1,
        "EventTime": "2026-11-24T09:59:58.1234567Z",
        "ActionId": "BCM ",
        "ActionName": "BATCH COMPLETED",
        "SessionServerPrincipalName": "Amy@Contoso.example",
        "ServerPrincipalName": "other@contoso.example",
        "DatabaseName": "dw",
        "SchemaName": "hr",
        "ObjectName": "salary",
    }
    return IngestedRow(TABLES[0], "2026-11-24T10:00:00Z", AT, base | record)


def rbac(ingested_at: datetime = AT, **record: Any) -> IngestedRow:
    base = {"OperationName": "write", "RoleAssignmentId": "r1", "Identity": {"oid": GUID}}
    return IngestedRow(TABLES[1], "2026-11-24T10:00:00.5Z", ingested_at, base | record)


class TestRows:
    def test_an_audited_statement(self) -> None:
        event = event_of(audit(), "ws1")
        assert event.platform == PLATFORM
        assert event.event_id == "e1:1"
        assert event.occurred_at == datetime(2026, 11, 24, 9, 59, 58, 123456, tzinfo=UTC)
        assert event.principal_ref == "user:amy@contoso.example"
        assert event.asset_ref == "synapse:ws1/dw/hr.salary"
        assert event.operation == "BATCH COMPLETED"
        assert event.raw_payload["ActionId"] == "BCM "
        assert event.raw_payload["verity"] == {
            "table": TABLES[0],
            "ingested_at": "2026-11-24T10:00:30.000000Z",
        }

    @pytest.mark.parametrize(
        ("record", "id_", "who", "what", "operation"),
        [
            ({"SequenceNumber": "2"}, "e1:2", None, None, None),
            ({"SequenceNumber": None}, "e1", None, None, None),
            ({"ActionName": None}, None, None, None, "BCM"),
            ({"ActionName": "", "ActionId": None}, None, None, None, TABLES[0]),
            ({"SessionServerPrincipalName": ""}, None, "user:other@contoso.example", None, None),
            (
                {"SessionServerPrincipalName": None, "ServerPrincipalName": None},
                None,
                "unknown",
                None,
                None,
            ),
            ({"SessionServerPrincipalName": f"{GUID}@{GUID}"}, None, f"sp:{GUID}", None, None),
            (
                {"SessionServerPrincipalName": "admin1"},
                None,
                "synapse:ws1/login:admin1",
                None,
                None,
            ),
            ({"ObjectName": ""}, None, None, "synapse:ws1/dw/schema:hr", None),
            ({"ObjectName": None, "SchemaName": None}, None, None, "synapse:ws1/dw", None),
            ({"SchemaName": ""}, None, None, "synapse:ws1/dw/salary", None),
            ({"DatabaseName": ""}, None, None, "synapse:ws1", None),
        ],
    )
    def test_what_may_be_missing(
        self,
        record: dict[str, Any],
        id_: str | None,
        who: str | None,
        what: str | None,
        operation: str | None,
    ) -> None:
        event = event_of(audit(**record), "ws1")
        assert event.event_id == (id_ or "e1:1")
        assert event.principal_ref == (who or "user:amy@contoso.example")
        assert event.asset_ref == (what or "synapse:ws1/dw/hr.salary")
        assert event.operation == (operation or "BATCH COMPLETED")

    def test_without_a_time_of_its_own_an_event_happened_when_its_row_says(self) -> None:
        event = event_of(audit(EventTime=None), "ws1")
        assert event.occurred_at == datetime(2026, 11, 24, 10, tzinfo=UTC)

    @pytest.mark.parametrize(
        "record",
        [
            {"EventTime": "yesterday"},
            {"EventTime": 4711},
            {"EventId": 4711},
            {"SequenceNumber": True},
            {"SequenceNumber": 1.5},
            {"DatabaseName": ["dw"]},
        ],
    )
    def test_what_is_not_understood_is_malformed_and_kept(self, record: dict[str, Any]) -> None:
        row = audit(**record)
        events, rejected = events_of([row, audit(EventId="e2")], "ws1")
        assert [event.event_id for event in events] == ["e2:1"]
        assert orjson.loads(rejected[0].data)["Row"] == row.record

    def test_a_change_of_a_role_and_a_request_to_the_serverless_pool(self) -> None:
        event = event_of(rbac(), "ws1")
        assert event.principal_ref == f"user:{GUID}"
        assert event.asset_ref == "synapse:ws1/roleAssignment:r1"
        assert event.operation == "write"
        row = IngestedRow(TABLES[2], "2026-11-24T10:00:00Z", AT, {"Identity": "Amy@x.example"})
        event = event_of(row, "ws1")
        assert (event.principal_ref, event.asset_ref) == (
            "user:amy@x.example",
            "synapse:ws1/builtin",
        )
        assert event.operation == TABLES[2]

    @pytest.mark.parametrize(
        ("identity", "who"),
        [
            ({"claims": {"oid": GUID, "upn": "a@b.example"}}, f"user:{GUID}"),
            (
                {"http://schemas.microsoft.com/identity/claims/objectidentifier": GUID},
                f"user:{GUID}",
            ),
            ({"oid": GUID, "idtyp": "app"}, f"sp:{GUID}"),
            ({"oid": GUID, "appid": "a1"}, f"sp:{GUID}"),
            ({"oid": GUID, "principalType": "ServicePrincipal"}, f"sp:{GUID}"),
            ({"upn": "A@b.example"}, "user:a@b.example"),
            ({"appid": "a1"}, "app:a1"),
            (orjson.dumps({"oid": GUID}).decode(), f"user:{GUID}"),
            ("sa", "synapse:ws1/login:sa"),
            ({}, "unknown"),
            (None, "unknown"),
            ([], "unknown"),
            (7, "unknown"),
        ],
    )
    def test_who_an_identity_names(self, identity: Any, who: str) -> None:
        assert event_of(rbac(Identity=identity), "ws1").principal_ref == who

    @given(
        st.sampled_from((*TABLES, "Another")),
        st.dictionaries(st.sampled_from(COLUMNS) | st.text(max_size=5), JSON, max_size=8),
        st.text(max_size=30) | st.just("2026-11-24T10:00:00Z"),
    )
    def test_any_row_becomes_an_event_or_a_rejected_record(
        self, table: str, record: dict[str, Any], generated_at: str
    ) -> None:
        row = IngestedRow(table, generated_at, AT, record)
        events, rejected = events_of([row], "ws1")
        assert len(events) + len(rejected) == 1
        for event in events:
            assert event.event_id
            assert event.occurred_at.tzinfo is UTC


class TestContentHash:
    def test_it_does_not_depend_on_how_the_service_spells_cells(self) -> None:
        record = {"DurationMs": 12, "Properties": {"b": 1, "a": [True, None]}, "ErrorCode": None}
        spelled = {"Properties": '{"a":[true,null], "b":1}', "DurationMs": "12", "ErrorCode": ""}
        one = IngestedRow(TABLES[2], "2026-11-24T10:00:00.1200000Z", AT, record)
        other = IngestedRow(
            TABLES[2],
            "2026-11-24T10:00:00.12Z",
            AT + timedelta(days=1),
            spelled | {"_BilledSize": 700, "TenantId": "t"},
        )
        assert content_hash(one) == content_hash(other)

    @pytest.mark.parametrize(
        "column",
        [
            *("CorrelationId", "OperationName", "RoleAssignmentId", "Identity", "Properties"),
            *("ResultType", "DurationMs", "_ResourceId"),
        ],
    )
    def test_every_column_of_the_content_counts(self, column: str) -> None:
        assert content_hash(rbac(AT, **{column: "x"})) != content_hash(rbac(AT, **{column: "y"}))

    def test_the_table_and_the_time_count(self) -> None:
        row = rbac()
        others = (
            IngestedRow(TABLES[2], row.generated_at, AT, row.record),
            IngestedRow(row.table, "2026-11-24T10:00:00.6Z", AT, row.record),
        )
        assert len({content_hash(one) for one in (row, *others)}) == 3

    def test_two_equal_rows_of_one_moment_are_two_events_and_a_second_delivery_is_none(
        self,
    ) -> None:
        late = AT + timedelta(minutes=1)
        events, _ = events_of([rbac(), rbac(), rbac(late), rbac(ResultType="F")], "ws1")
        first, twin, again, other = (event.event_id for event in events)
        assert (twin, again) == (f"{first}:1", first)
        assert other.partition(":")[0] != first

    def test_an_audit_row_without_an_id_is_named_by_its_content(self) -> None:
        events, _ = events_of([audit(EventId=None), audit(EventId="")], "ws1")
        first, second = (event.event_id for event in events)
        assert len(first) == 64
        assert second == f"{first}:1"


class TestActivities:
    RECORD: ClassVar[dict[str, Any]] = {
        "eventDataId": "a1",
        "eventTimestamp": "2026-11-24T09:00:00.1234567Z",
        "resourceId": RESOURCE.upper().replace("SUBSCRIPTIONS", "subscriptions") + "/sqlPools/dw",
        "caller": "Amy@contoso.example",
        "operationName": {"value": "Microsoft.Synapse/workspaces/sqlPools/write"},
    }

    def test_a_record_below_the_workspace(self) -> None:
        events, rejected = activity_events_of([self.RECORD], "ws1", RESOURCE)
        assert not rejected
        event = events[0]
        assert (event.event_id, event.principal_ref) == ("a1", "user:amy@contoso.example")
        assert event.asset_ref == "synapse:ws1/sqlPools/dw"
        assert event.operation == "Microsoft.Synapse/workspaces/sqlPools/write"

    def test_claims_say_more_than_the_caller(self) -> None:
        record = self.RECORD | {"claims": {"oid": GUID, "idtyp": "app"}}
        events, _ = activity_events_of([record], "ws1", RESOURCE)
        assert events[0].principal_ref == f"sp:{GUID}"

    def test_another_workspace_of_the_group_is_left_out_even_if_its_name_begins_alike(self) -> None:
        records = [self.RECORD | {"resourceId": RESOURCE + "2"}, self.RECORD | {"resourceId": ""}]
        assert activity_events_of(records, "ws1", RESOURCE) == ([], [])

    def test_a_broken_record_is_kept(self) -> None:
        records = [self.RECORD | {"eventTimestamp": None}, self.RECORD | {"eventDataId": None}, 7]
        events, rejected = activity_events_of(records, "ws1", RESOURCE)
        assert not events
        assert [orjson.loads(one.data) for one in rejected] == records

    @given(st.dictionaries(st.sampled_from(sorted(RECORD)) | st.just("claims"), JSON))
    def test_any_record_becomes_an_event_or_a_rejected_record(self, record: dict[str, Any]) -> None:
        events, rejected = activity_events_of([self.RECORD | record], "ws1", RESOURCE)
        assert len(events) + len(rejected) <= 1


class TestGrants:
    def test_a_role_of_the_workspace(self) -> None:
        roles = role_names([{"id": "R1", "name": "Synapse User"}, {"id": 3}, None])
        one = {
            "id": "a",
            "roleDefinitionId": "r1",
            "principalId": GUID,
            "principalType": "Group",
            "scope": "workspaces/ws1/bigDataPools/spark1",
        }
        grant = synapse_grant(one, roles, "ws1", AT)
        assert grant.principal_ref == f"group:{GUID}"
        assert grant.asset_ref == "synapse:ws1/bigDataPools/spark1"
        assert (grant.privilege, grant.grant_mechanism) == ("Synapse User", "direct")
        assert synapse_grant(one, {}, "ws1", AT).privilege == "roleDefinition:r1"
        robot = synapse_grant(one | {"principalType": "Robot"}, {}, "ws1", AT)
        assert robot.principal_ref == f"robot:{GUID}"

    @pytest.mark.parametrize(
        ("scope", "asset", "how", "via"),
        [
            (RESOURCE.upper(), "synapse:ws1", "direct", None),
            (RESOURCE + "/sqlPools/dw", "synapse:ws1/sqlPools/dw", "direct", None),
            (RESOURCE + "2", "synapse:ws1", "role", f"azure:{RESOURCE.lower()}2"),
            ("/subscriptions/S", "synapse:ws1", "role", "azure:/subscriptions/s"),
            ("/", "synapse:ws1", "role", "azure:/"),
        ],
    )
    def test_a_role_of_azure_and_where_it_stands(
        self, scope: str, asset: str, how: str, via: str | None
    ) -> None:
        one = {
            "id": "x",
            "properties": {
                "scope": scope,
                "principalId": GUID,
                "principalType": "ForeignGroup",
                "roleDefinitionId": "/providers/x/roleDefinitions/R9",
                "condition": "c",
            },
        }
        roles = role_names([{"id": "/a/b/r9", "properties": {"roleName": "Owner"}}])
        grant = azure_grant(one, roles, "ws1", RESOURCE, AT)
        assert (grant.asset_ref, grant.grant_mechanism, grant.granted_via) == (asset, how, via)
        assert (grant.privilege, grant.principal_ref) == ("Owner", f"group:{GUID}")
        assert grant.raw_payload["properties"]["condition"] == "c"

    def test_a_denial_is_a_record_for_each_principal(self) -> None:
        nobody = "00000000-0000-0000-0000-000000000000"
        one = {
            "id": "/x/d1",
            "properties": {
                "scope": RESOURCE,
                "denyAssignmentName": "No deletion",
                "principals": [
                    {"id": nobody, "type": "SystemDefined"},
                    {"id": GUID, "type": "User"},
                ],
            },
        }
        found = list(deny_grants(one, "ws1", RESOURCE, AT))
        assert [(one.principal_ref, one.privilege) for one in found] == [
            ("everyone", "DENY No deletion"),
            (f"user:{GUID}", "DENY No deletion"),
        ]

    @given(JSON)
    def test_any_assignment_becomes_a_grant_or_is_malformed(self, one: Any) -> None:
        for read in (
            lambda: synapse_grant(one, {}, "ws1", AT),
            lambda: azure_grant(one, {}, "ws1", RESOURCE, AT),
            lambda: list(deny_grants(one, "ws1", RESOURCE, AT)),
        ):
            with pytest.raises(Malformed):
                read()


def principal(id_: int, name: str, kind: str) -> dict[str, Any]:
    return {"principal_id": id_, "name": name, "type": kind, "sid": "0x01"}


def permission(grantee: int, privilege: str, state: str = "GRANT", **row: Any) -> dict[str, Any]:
    return {
        "class_desc": "DATABASE",
        "major_id": 0,
        "minor_id": 0,
        "grantee_principal_id": grantee,
        "grantor_principal_id": 1,
        "permission_name": privilege,
        "state_desc": state,
        "schema_name": None,
        "object_name": None,
        "column_name": None,
        **row,
    }


class TestSqlGrants:
    PRINCIPALS: ClassVar[list[dict[str, Any]]] = [
        principal(0, "public", "R"),
        principal(1, "dbo", "S"),
        principal(5, "Amy@contoso.example", "E"),
        principal(6, "Nightly ETL", "E "),
        principal(7, "Analysts", "X"),
        principal(16384, "db_owner", "R"),
    ]

    def records(self, **catalog: Any) -> list[tuple[str, str, str, str, str | None]]:
        base: dict[str, Any] = {"members": [], "permissions": [], "schemas": []}
        found = sql_records(
            SqlCatalog(**(base | {"principals": self.PRINCIPALS} | catalog)),
            workspace="ws1",
            database="dw",
            snapshot_at=AT,
        )
        return [
            (r.principal_ref, r.asset_ref, r.privilege, r.grant_mechanism, r.granted_via)
            for r in found
        ]

    def test_grants_denials_and_where_they_stand(self) -> None:
        table = {"class_desc": "OBJECT_OR_COLUMN", "schema_name": "hr", "object_name": "salary"}
        dbo = "synapse:ws1/dw/user:dbo"
        assert self.records(
            permissions=[
                permission(5, "CONNECT"),
                permission(5, "SELECT", "GRANT_WITH_GRANT_OPTION", major_id=9, **table),
                permission(7, "SELECT", "DENY", major_id=9, **table, column_name="amount"),
                permission(6, "SELECT", "REVOKE", class_desc="SCHEMA", schema_name="hr"),
                permission(0, "VIEW", class_desc="DATABASE_PRINCIPAL", major_id=16384),
                permission(0, "USE", class_desc="KEY", major_id=3),
            ]
        ) == [
            ("user:amy@contoso.example", "synapse:ws1/dw", "CONNECT", "direct", dbo),
            ("user:amy@contoso.example", "synapse:ws1/dw/hr.salary", "SELECT", "direct", dbo),
            ("group:Analysts", "synapse:ws1/dw/hr.salary.amount", "DENY SELECT", "direct", dbo),
            ("sp:Nightly ETL", "synapse:ws1/dw/schema:hr", "REVOKE SELECT", "direct", dbo),
            ("synapse:ws1/dw/role:public", "synapse:ws1/dw/role:db_owner", "VIEW", "direct", dbo),
            ("synapse:ws1/dw/role:public", "synapse:ws1/dw/KEY:3", "USE", "direct", dbo),
        ]

    def test_members_of_roles_and_owners_of_schemas(self) -> None:
        assert self.records(
            members=[{"role_principal_id": 16384, "member_principal_id": 5}],
            schemas=[{"name": "hr", "principal_id": 7}],
        ) == [
            ("user:amy@contoso.example", "synapse:ws1/dw/role:db_owner", "MEMBER", "direct", None),
            ("group:Analysts", "synapse:ws1/dw/schema:hr", "CONTROL", "owner", None),
        ]

    @pytest.mark.parametrize(
        "catalog",
        [
            {"members": [{"role_principal_id": 16384, "member_principal_id": 99}]},
            {"permissions": [permission(99, "SELECT")]},
            {"permissions": [permission(5, "")]},
            {"schemas": [{"name": "hr"}]},
            {"principals": [{"name": "x", "type": "S"}]},
        ],
    )
    def test_a_catalog_that_does_not_fit_together_is_no_snapshot(
        self, catalog: dict[str, Any]
    ) -> None:
        with pytest.raises(Malformed):
            self.records(**catalog)


class Driver:
    """What `mssql_python` promises, PEP 249: rows by the order of the queries."""

    def __init__(self, results: list[tuple[list[str], list[tuple[Any, ...]]]]) -> None:
        self.results = results
        self.asked: dict[str, Any] = {}
        self.closed = 0

    def connect(self, text: str, **options: Any) -> Any:
        self.asked = {"text": text, **options}
        if not self.results:
            raise RuntimeError(f"login failed: {text}")
        return SimpleNamespace(cursor=self._cursor, close=self._close)

    def _cursor(self) -> Any:
        columns, rows = self.results.pop(0)
        return SimpleNamespace(
            execute=lambda sql: None,
            description=[(name, None) for name in columns],
            fetchall=lambda: rows,
            close=self._close,
        )

    def _close(self) -> None:
        self.closed += 1


class TestSqlServer:
    CREDENTIAL: ClassVar[dict[str, str]] = {"UID": "u", "PWD": "{very;secret}"}

    async def test_rows_become_mappings_and_the_connection_is_closed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        empty: tuple[list[str], list[tuple[Any, ...]]] = (["a"], [])
        driver = Driver([(["principal_id", "name"], [(1, "dbo")]), empty, empty, empty])
        monkeypatch.setattr(sql_server, "load_driver", lambda: driver)
        catalog = await sql_server.read_catalog("s", "dw", self.CREDENTIAL, 5)
        assert catalog.principals == [{"principal_id": 1, "name": "dbo"}]
        assert driver.asked["text"].startswith("Server=tcp:s,1433;Database=dw;Encrypt=yes;")
        assert driver.closed == 5

    async def test_a_pool_that_is_paused_is_unavailable_and_tells_no_secret(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(sql_server, "load_driver", lambda: Driver([]))
        caplog.set_level(logging.DEBUG)
        with pytest.raises(
            Unavailable, match="s/dw: RuntimeError; the pool may be paused"
        ) as error:
            await sql_server.read_catalog("s", "dw", self.CREDENTIAL, 5)
        assert "secret" not in str(error.value)
        assert error.value.__cause__ is None
        assert error.value.__suppress_context__
        assert "secret" not in caplog.text

    def test_without_the_extra_its_name_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sql_server, "DRIVER", "no_such_module_anywhere")
        with pytest.raises(Misconfigured, match=r"verity-stream\[synapse-sql\]"):
            sql_server.load_driver()


class TestSettings:
    def test_names_come_from_the_resource_id(self) -> None:
        settings = Settings.model_validate(settings_of("http://127.0.0.1:1", synapse_url=None))
        assert settings.workspace == "ws1"
        assert settings.resource_group == "rg-data"
        assert settings.workspace_url == "https://ws1.dev.azuresynapse.net"
        assert CLIENT_SECRET not in repr(settings)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"workspace_id": "x"},
            {"resource_id": RESOURCE + "/sqlPools/dw"},
            {"resource_id": RESOURCE.replace("Synapse", "Sql")},
            {"resource_id": RESOURCE + '" or true'},
            {"client_secret": None},
            {"client_id": ""},
            {"tables": []},
            {"tables": ["Heartbeat"]},
            {"lookback": "2d"},
            {"lookback": "1h"},
            {"query_timeout": "11m"},
            {"sql_pools": ["dw;PWD=x"]},
            {"management_url": "ftp://x"},
            {"tenant_id": "a/b"},
            {"unknown": 1},
        ],
    )
    def test_what_is_wrong_is_refused_and_not_quoted(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValidationError) as caught:
            Settings.model_validate(settings_of("http://127.0.0.1:1", **wrong))
        assert CLIENT_SECRET not in str(caught.value)

    def test_a_managed_identity_needs_no_secret(self) -> None:
        url = "http://127.0.0.1:1"
        others = {"credential": "azure", "client_secret": None, "client_id": ""}
        assert Settings.model_validate(settings_of(url, **others)).client_secret is None
        with pytest.raises(ValidationError, match="client_secret is for"):
            Settings.model_validate(settings_of(url, credential="azure"))

    @pytest.mark.parametrize(
        ("text", "who"),
        [
            ("", "unknown"),
            (" amy@x.example ", "user:amy@x.example"),
            (GUID.upper(), f"sp:{GUID}"),
        ],
    )
    def test_logins(self, text: str, who: str) -> None:
        assert names.login("ws1", text) == who
