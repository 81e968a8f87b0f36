"""Log Analytics: the text of the query, the cells of the answer, the ids of rows without one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import orjson
import pytest
from fakes.synapse import RESOURCE, parse_query
from hypothesis import given
from hypothesis import strategies as st

from connectors._azure.log_analytics import (
    WAIT_MAX,
    IngestedRows,
    LogAnalytics,
    canonical_time,
    checked_guid,
    checked_resource_id,
    ingested_row,
    numbered,
    parsed,
    patient,
    rows_of,
)
from verity_sdk.errors import Denied, Malformed, Misconfigured, Unavailable
from verity_sdk.http import Answer, HttpSettings
from verity_sdk.windows import Slice, TooLarge

FROM_AT = datetime(2026, 11, 24, 10, tzinfo=UTC)
TO_AT = FROM_AT + timedelta(minutes=10)
GUID = "b7c9d1e2-3f40-4a5b-8c6d-7e8f90a1b203"


def body(rows: list[list[Any]], types: dict[str, str]) -> dict[str, Any]:
    columns = [{"name": name, "type": type_} for name, type_ in types.items()]
    return {"tables": [{"name": "PrimaryResult", "columns": columns, "rows": rows}]}


class Scripted:
    """A client that gives these answers in turn and keeps what it was asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []

    async def request(self, method: str, url: str, **options: Any) -> Answer:
        self.asked.append({"method": method, "url": url, **options})
        status, content = self.answers.pop(0)
        return Answer(method, url, status, {}, orjson.dumps(content))


def workspace(*answers: Any, wait: timedelta = WAIT_MAX) -> tuple[LogAnalytics, Scripted]:
    client: Any = Scripted(*answers)
    return LogAnalytics(client, workspace_id=GUID, wait=wait, setup="Add the setting."), client


def rows(count: int, at: str = "2026-11-24T10:00:00.5Z") -> dict[str, Any]:
    types = {
        "SourceTable": "string",
        "TimeGenerated": "datetime",
        "IngestedAt": "datetime",
        "Row": "dynamic",
    }
    return body([["T", at, at, orjson.dumps({"n": i}).decode()] for i in range(count)], types)


class TestQueryText:
    def test_what_it_asks_for_is_what_it_was_given(self) -> None:
        query = IngestedRows(("A", "B"), RESOURCE, 7)
        found = parse_query(query.text(FROM_AT, TO_AT, rows_max=7))
        assert found is not None
        assert (found.from_at, found.to_at) == (FROM_AT, TO_AT)
        assert found.tables == ("A", "B")
        assert found.resource == RESOURCE.lower()
        assert (found.take, found.skip) == (7, None)
        assert (found.before, found.after) == (timedelta(days=3), timedelta(days=1))

    def test_one_table_is_asked_without_a_union_that_would_hide_its_absence(self) -> None:
        text = IngestedRows(("A",), RESOURCE).text(FROM_AT, TO_AT, rows_max=1, skip=5)
        assert "union" not in text
        found = parse_query(text)
        assert found is not None
        assert (found.tables, found.take, found.skip) == (("A",), 1, 5)

    def test_times_of_another_zone_are_written_in_utc(self) -> None:
        east = timezone(timedelta(hours=5, minutes=30))
        text = IngestedRows(("A",), RESOURCE).text(
            FROM_AT.astimezone(east), TO_AT.astimezone(east), rows_max=1
        )
        assert "let from_at = datetime(2026-11-24T10:00:00Z);" in text

    @pytest.mark.parametrize(
        "resource",
        [
            "",
            'x" or 1 == 1 //',
            f'{RESOURCE}" | take 1 //',
            f"{RESOURCE}\n| take 1",
            f"{RESOURCE}\\",
            "/subscriptions/x/resourceGroups/r/providers/P/t/n",
            RESOURCE + "/",
            RESOURCE + "/sqlPools",
        ],
    )
    def test_no_text_but_a_resource_id_gets_into_it(self, resource: str) -> None:
        if resource == RESOURCE + "/":
            assert checked_resource_id(resource) == RESOURCE
            return
        with pytest.raises(ValueError, match="resource id"):
            IngestedRows(("A",), resource)

    @pytest.mark.parametrize("table", ["", "A | take 1", "A;", "1A", "a-b", "A\n"])
    def test_no_text_but_a_name_gets_in_as_a_table(self, table: str) -> None:
        with pytest.raises(ValueError, match="table"):
            IngestedRows(("Fine", table), RESOURCE)

    def test_a_list_of_no_tables_is_refused(self) -> None:
        with pytest.raises(ValueError, match="table"):
            IngestedRows((), RESOURCE)

    @given(st.text())
    def test_no_text_but_a_guid_gets_into_the_path(self, text: str) -> None:
        with pytest.raises(ValueError, match="GUID"):
            checked_guid(text + "/../x")
        assert checked_guid(GUID) == GUID


class TestCells:
    def test_both_forms_of_a_cell_become_the_same_value(self) -> None:
        types = {
            "i": "int",
            "l": "long",
            "r": "real",
            "b": "bool",
            "d": "dynamic",
            "s": "string",
            "t": "datetime",
        }
        own = [1, -2, 1.5, True, {"a": [1]}, "x", "2026-11-24T10:00:00Z"]
        as_text = ["1", "-2", "1.5", "true", '{"a":[1]}', "x", "2026-11-24T10:00:00Z"]
        found = rows_of(body([own, as_text], types))
        assert found[0] == found[1] == dict(zip(types, own, strict=True))

    def test_null_stays_null_and_what_does_not_fit_its_type_stays_as_it_is(self) -> None:
        types = {"i": "long", "r": "real", "b": "bool", "d": "dynamic"}
        assert rows_of(body([[None] * 4, ["x", "y", "z", "{broken"]], types)) == [
            {"i": None, "r": None, "b": None, "d": None},
            {"i": "x", "r": "y", "b": "z", "d": "{broken"},
        ]

    def test_a_boolean_may_come_as_a_number(self) -> None:
        assert rows_of(body([[1], [0], ["1"], ["False"]], {"b": "bool"})) == [
            {"b": True},
            {"b": False},
            {"b": True},
            {"b": False},
        ]

    def test_columns_are_found_by_name_not_by_place(self) -> None:
        types = {"Row": "dynamic", "IngestedAt": "datetime", "x": "new_type"}
        types |= {"TimeGenerated": "datetime", "SourceTable": "string"}
        cells = rows_of(body([["{}", "2026-11-24T10:00:00.1234567Z", 3, "t", "T"]], types))
        row = ingested_row(cells[0])
        assert (row.table, row.generated_at, row.record) == ("T", "t", {})
        assert row.ingested_at == datetime(2026, 11, 24, 10, 0, 0, 123456, tzinfo=UTC)

    @pytest.mark.parametrize(
        "wrong",
        [
            None,
            [],
            {},
            {"tables": []},
            {"tables": [{"columns": [{"name": "a"}], "rows": []}]},
            {"tables": [{"columns": None, "rows": []}]},
        ],
    )
    def test_an_answer_of_another_shape_is_no_empty_result(self, wrong: Any) -> None:
        with pytest.raises(Unavailable):
            rows_of(wrong)

    def test_rows_beside_an_error_are_no_result(self) -> None:
        error = {"code": "PartialError", "details": [{"code": "EngineError", "message": "secret"}]}
        with pytest.raises(Unavailable, match="PartialError/EngineError") as caught:
            rows_of(rows(3) | {"error": error})
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize(
        "inner",
        [
            {"code": "-2133196797", "message": "x"},
            {"code": "x", "message": "limit (E_QUERY_RESULT_SET_TOO_LARGE, 0x80DA0003)"},
            {"code": "x", "message": "E_RUNAWAY_QUERY"},
        ],
    )
    def test_an_error_about_a_limit_asks_for_less(self, inner: dict[str, str]) -> None:
        error = {"code": "PartialError", "details": [{"code": "E", "innererror": inner}]}
        with pytest.raises(TooLarge):
            rows_of({"tables": [], "error": error})

    @pytest.mark.parametrize("key", ["SourceTable", "TimeGenerated", "IngestedAt", "Row"])
    @pytest.mark.parametrize("value", [None, 3, []])
    def test_a_row_without_its_columns_is_malformed(self, key: str, value: Any) -> None:
        cells = {"SourceTable": "T", "TimeGenerated": "t", "IngestedAt": "2026-11-24", "Row": {}}
        with pytest.raises(Malformed):
            ingested_row(cells | {key: value})


class TestSlices:
    async def test_fewer_rows_than_asked_for_are_all(self) -> None:
        client, asked = workspace((200, rows(2)))
        found = await client.slice(
            IngestedRows(("T",), RESOURCE, 3), Slice(FROM_AT, TO_AT), is_divisible=True
        )
        assert [row.record for row in found.rows] == [{"n": 0}, {"n": 1}]
        assert asked.asked[0]["headers"] == {"Prefer": "wait=600"}
        assert asked.asked[0]["is_idempotent"] is True
        assert asked.asked[0]["url"].endswith(f"/v1/workspaces/{GUID}/query")

    async def test_exactly_as_many_rows_as_asked_for_may_be_cut(self) -> None:
        client, _ = workspace((200, rows(3)))
        with pytest.raises(TooLarge):
            await client.slice(
                IngestedRows(("T",), RESOURCE, 3), Slice(FROM_AT, TO_AT), is_divisible=True
            )

    async def test_what_cannot_be_divided_is_read_in_portions(self) -> None:
        client, asked = workspace((200, rows(3)), (200, rows(3)), (200, rows(0)))
        found = await client.slice(
            IngestedRows(("T",), RESOURCE, 3), Slice(FROM_AT, TO_AT), is_divisible=False
        )
        assert len(found) == 6
        skips = [parse_query(one["json"]["query"]) for one in asked.asked]
        assert [one.skip for one in skips if one] == [0, 3, 6]

    async def test_a_portion_beyond_a_limit_is_asked_for_again_smaller(self) -> None:
        large = {"error": {"code": "E_QUERY_RESULT_SET_TOO_LARGE", "message": ""}}
        client, asked = workspace((200, large), (200, rows(2)), (200, rows(1)))
        found = await client.slice(
            IngestedRows(("T",), RESOURCE, 4), Slice(FROM_AT, TO_AT), is_divisible=False
        )
        assert len(found) == 3
        takes = [parse_query(one["json"]["query"]) for one in asked.asked]
        assert [(one.take, one.skip) for one in takes if one] == [(4, 0), (2, 0), (2, 2)]

    async def test_a_row_that_is_not_understood_does_not_stop_the_others(self) -> None:
        answer = rows(3)
        answer["tables"][0]["rows"][1][2] = "yesterday"
        client, _ = workspace((200, answer))
        found = await client.slice(
            IngestedRows(("T",), RESOURCE, 9), Slice(FROM_AT, TO_AT), is_divisible=True
        )
        assert [row.record for row in found.rows] == [{"n": 0}, {"n": 2}]
        assert orjson.loads(found.rejected[0].data)["IngestedAt"] == "yesterday"

    @pytest.mark.parametrize(
        ("status", "error", "kind", "says"),
        [
            (403, {"code": "InsufficientAccessError"}, Denied, "Log Analytics Reader"),
            (404, {"code": "WorkspaceNotFoundError"}, Misconfigured, "workspace_id"),
            (
                400,
                {"code": "BadArgumentError", "innererror": {"code": "SemanticError"}},
                Misconfigured,
                "Add the setting.",
            ),
            (
                400,
                {"code": "BadArgumentError", "innererror": {"innererror": {"code": "SEM0100"}}},
                Misconfigured,
                "Add the setting.",
            ),
            (400, {"code": "BadArgumentError", "message": "secret"}, Denied, "refused"),
        ],
    )
    async def test_a_refusal_says_who_must_do_what(
        self, status: int, error: dict[str, Any], kind: type[Exception], says: str
    ) -> None:
        client, _ = workspace((status, {"error": error}))
        with pytest.raises(kind, match=says) as caught:
            await client.probe(IngestedRows(("T",), RESOURCE), TO_AT)
        assert "secret" not in str(caught.value)


class TestIds:
    def test_equal_rows_of_one_moment_are_told_apart_and_redelivered_ones_are_not(self) -> None:
        later = FROM_AT + timedelta(seconds=1)
        keys = [("h", FROM_AT), ("h", FROM_AT), ("g", FROM_AT), ("h", later), ("h", FROM_AT)]
        assert numbered(keys) == ["h", "h:1", "g", "h", "h:2"]

    @given(
        st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5)), max_size=30),
        st.integers(0, 6),
    )
    def test_ids_do_not_depend_on_where_slices_are_cut(
        self, rows: list[tuple[str, int]], cut: int
    ) -> None:
        keys = [(name, FROM_AT + timedelta(seconds=second)) for name, second in sorted(rows)]
        edge = FROM_AT + timedelta(seconds=cut)
        whole = set(numbered(keys))
        halves = numbered(key for key in keys if key[1] < edge)
        halves += numbered(key for key in keys if key[1] >= edge)
        assert set(halves) == whole

    def test_both_spellings_of_a_time_are_one(self) -> None:
        spellings = ("2026-11-24T10:00:00.1200000Z", "2026-11-24T10:00:00.12Z")
        assert len({canonical_time(text) for text in spellings}) == 1
        assert canonical_time("2026-11-24T10:00:00Z") == "2026-11-24T10:00:00"
        assert canonical_time("2026-11-24T10:00:00.0000000Z") == "2026-11-24T10:00:00"

    @pytest.mark.parametrize("value", ["x", "", None, 3, "[broken", {"a": 1}])
    def test_what_is_no_json_stays(self, value: Any) -> None:
        assert parsed(value) == value


def test_a_query_may_run_longer_than_any_other_request() -> None:
    http = patient(HttpSettings(), timedelta(minutes=10))
    assert http.read_timeout > timedelta(minutes=10)
    assert http.retry_budget > timedelta(minutes=10)
    assert http.answer_bytes_max >= 100 * 1024 * 1024
    slow = HttpSettings(read_timeout=timedelta(hours=1), answer_bytes_max=2**30)
    assert patient(slow, WAIT_MAX).read_timeout == timedelta(hours=1)
    assert patient(slow, WAIT_MAX).answer_bytes_max == 2**30
