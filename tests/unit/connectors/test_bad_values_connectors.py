"""From the bytes that a platform sends to the topic: one bad value costs at most its record."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import pytest
from page_builders import ListPage, body_of, target

from connectors._azure.log_analytics import _understood, rows_of
from connectors.azure_ad.streams import AUDITS, SIGN_INS, fetched
from connectors.databricks.records import parse_rows
from connectors.databricks.references import Workspace
from connectors.fabric.records import read_records
from connectors.postgres.log_analytics import events_of as postgres_events_of
from connectors.postgres.log_lines import LogContext, parse_line
from connectors.postgres.log_prefix import compiled
from connectors.synapse.records import activity_events_of
from connectors.synapse.records import events_of as synapse_events_of
from verity_sdk.http import Answer
from verity_sdk.pages import RejectedRecord
from verity_stream.relay.page_builder import PageBuilder

AT = "2026-11-24T08:01:02.123456Z"
RESOURCE = "/subscriptions/s/resourcegroups/g/providers/microsoft.synapse/workspaces/ws1"
Found: TypeAlias = tuple[Sequence[Any], Sequence[RejectedRecord]]


def answered(body: bytes) -> Any:
    """What a connector gets of an answer's body."""
    return Answer("GET", "https://api.example", 200, {}, body).json()


def listing(records: Sequence[bytes]) -> bytes:
    return b'{"value": [' + b", ".join(records) + b"]}"


def azure_ad(records: Sequence[bytes], stream: Any = AUDITS) -> Found:
    found = fetched(stream, answered(listing(records))["value"])
    return found.events, found.rejected


def sign_ins(records: Sequence[bytes]) -> Found:
    return azure_ad(records, SIGN_INS["interactive"])


def fabric(records: Sequence[bytes]) -> Found:
    return read_records(answered(listing(records))["value"])


def databricks(records: Sequence[bytes]) -> Found:
    rows = [[f"e{n}", "1764000000123000", one.decode()] for n, one in enumerate(records)]
    return parse_rows(answered(json.dumps(rows).encode()), Workspace("m-1", "42"))


def postgres(records: Sequence[bytes]) -> Found:
    lines = [parse_line(one + b"\n", "f.json:7", LogContext("db1", "42")) for one in records]
    return [one for line in lines for one in line.events], [
        line.rejected for line in lines if line.rejected is not None
    ]


def activity_log(records: Sequence[bytes]) -> Found:
    return activity_events_of(answered(listing(records))["value"], "ws1", RESOURCE)


def workspace_rows(records: Sequence[bytes], table: str) -> Any:
    """Log Analytics: a table of typed cells, the last a text with the whole row's JSON."""
    names = {"SourceTable": "string", "TimeGenerated": "datetime", "IngestedAt": "datetime"}
    columns = [{"name": name, "type": kind} for name, kind in {**names, "Row": "dynamic"}.items()]
    rows = [[table, AT, AT, one.decode()] for one in records]
    return _understood(rows_of(answered(json.dumps({
        "tables": [{"columns": columns, "rows": rows}]
    }).encode())))  # fmt: skip


def synapse(records: Sequence[bytes]) -> Found:
    found = workspace_rows(records, "SQLSecurityAuditEvents")
    events, rejected = synapse_events_of(found.rows, "ws1")
    return events, [*found.rejected, *rejected]


def synapse_without_ids(records: Sequence[bytes]) -> Found:
    found = workspace_rows(records, "SynapseRbacOperations")
    events, rejected = synapse_events_of(found.rows, "ws1")
    return events, [*found.rejected, *rejected]


def postgres_in_azure(records: Sequence[bytes]) -> Found:
    found = workspace_rows(records, "PGSQLServerLogs")
    pattern = compiled("%t-%c-%l-%u-%d-")
    events, rejected = postgres_events_of(found.rows, pattern, LogContext("db1", "42"))
    return events, [*found.rejected, *rejected]


PLATFORMS: dict[Callable[[Sequence[bytes]], Found], dict[str, Any]] = {
    azure_ad: {
        "id": "n1",
        "activityDateTime": AT,
        "activityDisplayName": "Add member",
        "initiatedBy": {"user": {"id": "u-1"}, "app": None},
        "targetResources": [{"id": "g-1", "type": "Group"}],
    },
    sign_ins: {"id": "n1", "createdDateTime": AT, "userId": "u-1", "resourceId": "r-1"},
    fabric: {"Id": "n1", "CreationTime": AT, "Operation": "ViewReport", "UserId": "amy@x.example"},
    databricks: {
        "workspace_id": "77",
        "user_identity": {"email": "amy@contoso.example"},
        "service_name": "unityCatalog",
        "action_name": "getTable",
        "request_params": {"full_name_arg": "main.hr.salary"},
    },
    postgres: {
        "timestamp": "2026-11-24 03:15:47.984 UTC",
        "user": "alice",
        "dbname": "shop",
        "session_id": "6b050163.4246",
        "line_num": 3,
        "error_severity": "LOG",
        "message": "connection authorized: user=alice",
        "backend_type": "client backend",
    },
    activity_log: {
        "eventDataId": "n1",
        "eventTimestamp": AT,
        "resourceId": f"{RESOURCE}/sqlPools/dw",
        "caller": "Amy@contoso.example",
        "operationName": {"value": "Microsoft.Synapse/workspaces/sqlPools/write"},
    },
    synapse: {
        "EventId": "n1",
        "SequenceNumber": 1,
        "EventTime": AT,
        "ActionName": "BATCH COMPLETED",
        "SessionServerPrincipalName": "Amy@Contoso.example",
        "DatabaseName": "dw",
        "ObjectName": "salary",
    },
    synapse_without_ids: {"OperationName": "write", "RoleAssignmentId": "n1", "Identity": {}},
    postgres_in_azure: {
        "Message": "2026-11-24 03:15:47 UTC-6b050163.4246-3-alice-shop-LOG:  "
        "connection authorized: user=alice",
        "BackendType": "client backend",
    },
}
BAD = {
    "a surrogate": rb'"a\ud800b"',
    "no UTF-8": b'"a\xffb"',
    "NaN": b"NaN",
    "beyond a float": b"1e400",
    "beyond 64 bits": b"123456789012345678901234567890",
    "in an object": rb'{"id": "\ud800", "value": -1e999, "\udfff": [NaN]}',
    "too deep": b'{"a": ' * 1500 + b"1" + b"}" * 1500,
    "deep": b"[" * 600 + b"]" * 600,
    "a long number": b"1" * 5000,
    "null": b"null",
    "a list": b"[[]]",
}
TEXT_ONLY = {databricks, synapse, synapse_without_ids, postgres_in_azure}
"""Their records stand in a text of the answer, which bytes that are no UTF-8 don't reach."""


def with_value(record: dict[str, Any], key: str, value: bytes) -> bytes:
    text = json.dumps({**record, key: "@@"}).encode()
    return text.replace(b'"@@"', value)


def unlike(record: dict[str, Any], number: int) -> bytes:
    """A record of its own: each has another id."""
    text = json.dumps(record)
    return re.sub(r'"n1"|: 3,|LOG-3-|-3-alice', lambda m: {
        '"n1"': f'"n{number}0"', ": 3,": f": {number}0,", "-3-alice": f"-{number}0-alice"
    }[m[0]], text).encode()  # fmt: skip


CASES = [
    (read, key, name)
    for read, record in PLATFORMS.items()
    for key in [*record, "aFieldThatNobodyReads"]
    for name in BAD
    if not (read in TEXT_ONLY and name == "no UTF-8")
]


@pytest.mark.parametrize(
    ("read", "key", "name"), CASES, ids=[f"{one[0].__name__}-{one[1]}-{one[2]}" for one in CASES]
)
def test_a_bad_value_costs_at_most_its_record(
    read: Callable[[Sequence[bytes]], Found], key: str, name: str
) -> None:
    record = PLATFORMS[read]
    bad = with_value(record, key, BAD[name])
    events, rejected = read([unlike(record, 1), bad, unlike(record, 2)])
    assert len(events) + len(rejected) in (2, 3)  # A line of another kind may tell no event.
    builder = PageBuilder(target(), 99, 10**7)

    async def publish() -> int:
        for one in events:
            waiting = builder.add(one)
            if waiting is not None:
                await waiting
        for one in rejected:
            builder.reject(one)
        return (await builder.finish()).event_count

    assert asyncio.run(publish()) == len(events) >= 2
    assert isinstance(builder.page, ListPage)
    for out in builder.page.records:
        assert isinstance(body_of(out), dict)
    altered = [one for one in builder.page.records if "altered" in dict(one.headers)]
    if key == "aFieldThatNobodyReads":
        assert len(events) == 3
        assert len(altered) == (name not in ("null", "a list"))


def test_a_row_of_another_shape_costs_its_row() -> None:
    """Before, the whole answer was `Unavailable`, and so was the next."""
    columns = [{"name": "SourceTable", "type": "string"}, {"name": "Row", "type": "dynamic"}]
    rows = [["T", "{}"], ["T"], 7, ["T", "{}"]]
    found = rows_of({"tables": [{"columns": columns, "rows": rows}]})
    assert found == [
        {"SourceTable": "T", "Row": {}},
        {"row": ["T"]},
        {"row": 7},
        {"SourceTable": "T", "Row": {}},
    ]
    assert len(_understood(found).rejected) == 4


@pytest.mark.parametrize(
    ("kind", "cell"), [("long", "²"), ("int", "--5"), ("long", "9" * 5000), ("real", "1e400")]
)
def test_a_cell_that_is_no_number_keeps_its_text(kind: str, cell: str) -> None:
    columns = [{"name": "n", "type": kind}]
    ((row),) = rows_of({"tables": [{"columns": columns, "rows": [[cell]]}]})
    assert getattr(row["n"], "text", row["n"]) == cell
