"""What is asked of a warehouse, and what its answers mean."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.databricks.statements import (
    CHECK_SQL,
    Assembly,
    Chunk,
    Manifest,
    Statement,
    Status,
    audit_manifest,
    audit_statement,
    chunk_of,
    failure,
    manifest_of,
    refusal,
    status_of,
    submission,
)
from verity_sdk.errors import Denied, Misconfigured, Unavailable
from verity_sdk.windows import Slice, TooLarge

AUDIT = Statement(CHECK_SQL, "system.access.audit")
COLUMNS = [{"name": name} for name in ("event_id", "ts_us", "raw")]


def test_a_slice_is_asked_for_half_open_in_utc_with_a_day_more_of_files() -> None:
    one = Slice(datetime(2026, 11, 23, 22, tzinfo=UTC), datetime(2026, 11, 24, 3, 0, 1, tzinfo=UTC))
    body = submission(audit_statement(one), "wh", "inline", timedelta(0))
    assert body["parameters"] == [
        {"name": "d0", "value": "2026-11-22", "type": "DATE"},
        {"name": "d1", "value": "2026-11-25", "type": "DATE"},
        {"name": "t0", "value": "2026-11-23T22:00:00Z", "type": "TIMESTAMP"},
        {"name": "t1", "value": "2026-11-24T03:00:01Z", "type": "TIMESTAMP"},
    ]
    assert body["disposition"] == "INLINE"
    assert body["wait_timeout"] == "0s"
    assert "?" not in body["statement"]


def failed(message: str, code: str = "BAD_REQUEST", sql_state: str = "") -> Exception:
    return failure(Status("s", "FAILED", code, message, sql_state), AUDIT, "app-1")


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        (
            "[INSUFFICIENT_PERMISSIONS] User does not have USE CATALOG on Catalog 'system'.",
            "GRANT USE CATALOG ON CATALOG system TO `app-1`",
        ),
        (
            "[INSUFFICIENT_PERMISSIONS] User does not have USE SCHEMA on Schema 'system.access'.",
            "GRANT USE SCHEMA ON SCHEMA system.access TO `app-1`",
        ),
        (
            "PERMISSION_DENIED: User does not have SELECT on Table 'system.access.audit'.",
            "GRANT SELECT ON TABLE system.access.audit TO `app-1`",
        ),
        (
            "Insufficient privileges: something else",
            "GRANT USE SCHEMA ON SCHEMA system.access TO `app-1`",
        ),
    ],
)
def test_a_missing_grant_is_denied_with_the_sql_that_grants_it(message: str, needed: str) -> None:
    error = failed(message)
    assert isinstance(error, Denied)
    assert needed in str(error)


def test_the_sql_state_alone_says_that_a_grant_is_missing() -> None:
    assert "GRANT SELECT" in str(failed("no words", sql_state="42501"))


@pytest.mark.parametrize("message", ["[TABLE_OR_VIEW_NOT_FOUND] x", "[SCHEMA_NOT_FOUND] x"])
def test_a_missing_system_schema_is_denied_with_how_to_enable_it(message: str) -> None:
    error = failed(message)
    assert isinstance(error, Denied)
    assert "databricks system-schemas enable <metastore id> access" in str(error)
    view = Statement("", "system.information_schema.x")
    error = failure(Status("s", "FAILED", "BAD_REQUEST", message), view, "app")
    assert "privilege_views" in str(error)


def test_the_limit_of_inline_halves_the_window() -> None:
    message = (
        "Inline byte limit exceeded. Statements executed with disposition=INLINE can have a result "
        "size of at most 26214400 bytes."
    )
    assert isinstance(failed(message), TooLarge)


@pytest.mark.parametrize(
    "code", ["RESOURCE_EXHAUSTED", "TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "DEADLINE_EXCEEDED"]
)
def test_what_passes_by_itself_is_unavailable(code: str) -> None:
    assert isinstance(failed("later", code), Unavailable)


@pytest.mark.parametrize("code", ["BAD_REQUEST", "UNAUTHENTICATED", "", "A_NEW_ONE"])
def test_any_other_failure_needs_somebody(code: str) -> None:
    assert isinstance(failed("[UNRESOLVED_COLUMN] raw", code), Denied)


@pytest.mark.parametrize("state", ["CANCELED", "CLOSED", "A_NEW_ONE"])
def test_an_end_without_a_result_is_unavailable(state: str) -> None:
    assert isinstance(failure(Status("s", state), AUDIT, "app"), Unavailable)


def test_a_long_message_is_cut() -> None:
    assert len(str(failed("x" * 5000))) < 600


@pytest.mark.parametrize(
    ("status", "code", "message", "kind", "said"),
    [
        (403, "PERMISSION_DENIED", "no", Denied, "CAN USE"),
        (
            400,
            "INVALID_PARAMETER_VALUE",
            "x is not a valid endpoint id.",
            Misconfigured,
            "warehouse_id",
        ),
        (404, "RESOURCE_DOES_NOT_EXIST", "", Misconfigured, "warehouse_id"),
        (400, "BAD_REQUEST", "statement too long", Denied, "did not accept"),
    ],
)
def test_a_submission_that_is_refused_says_who_must_act(
    status: int, code: str, message: str, kind: type[Exception], said: str
) -> None:
    error = refusal(status, code, message, "wh-1")
    assert type(error) is kind
    assert said in str(error)
    assert "wh-1" in str(error)


@pytest.mark.parametrize(
    "answer",
    [None, [], {}, {"statement_id": "s"}, {"status": {"state": "FAILED"}}, {"statement_id": 1}],
)
def test_an_answer_that_says_no_state_is_unavailable(answer: Any) -> None:
    with pytest.raises(Unavailable):
        status_of(answer)


def manifest(**changes: Any) -> dict[str, Any]:
    found = {
        "schema": {"columns": COLUMNS},
        "total_chunk_count": 1,
        "total_row_count": 2,
        "truncated": False,
        **changes,
    }
    return {"manifest": {key: value for key, value in found.items() if value is not ...}}


def test_numbers_of_64_bits_may_come_as_text() -> None:
    assert manifest_of(manifest(total_row_count="2")).row_count == 2


@pytest.mark.parametrize(
    "answer",
    [
        {},
        manifest(schema=None),
        manifest(schema={"columns": [1]}),
        manifest(schema={"columns": COLUMNS[:2]}),
        manifest(total_row_count=...),
        manifest(total_row_count=-1),
        manifest(total_chunk_count=True),
        manifest(total_chunk_count="x"),
    ],
)
def test_a_manifest_that_does_not_say_what_is_there_is_unavailable(answer: Any) -> None:
    with pytest.raises(Unavailable):
        audit_manifest(answer, 10)


def test_too_many_rows_or_a_result_that_was_cut_halves_the_window() -> None:
    assert audit_manifest(manifest(), 2).row_count == 2
    with pytest.raises(TooLarge):
        audit_manifest(manifest(), 1)
    with pytest.raises(TooLarge):
        audit_manifest(manifest(truncated=True), 2)


def test_a_link_shows_nothing_of_itself() -> None:
    chunk = chunk_of(
        {
            "external_links": [
                {"chunk_index": 0, "external_link": "https://old/?sig=s3cret"},
                {
                    "chunk_index": 1,
                    "row_offset": "5",
                    "row_count": 5,
                    "external_link": "https://x/?sig=s3cret",
                    "http_headers": {"key": "s3cret"},
                    "expiration": "2026-11-24T12:00:00Z",
                },
            ]
        },
        1,
    )
    assert (chunk.index, chunk.row_offset, chunk.rows) == (1, 5, None)
    assert chunk.link is not None
    assert chunk.link.url == "https://x/?sig=s3cret"
    assert chunk.link.expires_at == datetime(2026, 11, 24, 12, tzinfo=UTC)
    assert "s3cret" not in repr(chunk)


@pytest.mark.parametrize(
    "result",
    [
        None,
        {"data_array": "x"},
        {"data_array": [["1"]], "row_count": 1, "row_offset": 0},
        {"external_links": [{"chunk_index": 1}]},
        {"external_links": [{"chunk_index": 0, "external_link": "u"}]},
    ],
)
def test_a_chunk_that_is_not_there_is_unavailable(result: Any) -> None:
    with pytest.raises(Unavailable):
        chunk_of(result, 1)


def chunks_of(sizes: list[int]) -> list[Chunk]:
    found, offset = [], 0
    for index, size in enumerate(sizes):
        following = index + 1 if index + 1 < len(sizes) else None
        found.append(Chunk(index, offset, size, following, rows=[[str(offset)]] * size))
        offset += size
    return found


def assembled(chunks: list[Chunk], promised: Manifest) -> list[Any]:
    assembly, rows = Assembly(promised), []
    for chunk in chunks:
        assert assembly.next_index is not None
        rows += assembly.add(chunk, chunk.rows)
    assembly.finish()
    return rows


SIZES = st.lists(st.integers(0, 4), min_size=1, max_size=5)


@given(SIZES)
def test_all_chunks_in_order_are_the_result(sizes: list[int]) -> None:
    promised = Manifest(("a",), len(sizes), sum(sizes), is_truncated=False)
    assert len(assembled(chunks_of(sizes), promised)) == sum(sizes)


def test_a_result_without_rows_may_have_no_chunk_or_an_empty_one() -> None:
    assert assembled([], Manifest(("a",), 0, 0, is_truncated=False)) == []
    empty = chunk_of({}, 0)
    assert assembled([empty], Manifest(("a",), 1, 0, is_truncated=False)) == []


@settings(max_examples=200)
@given(SIZES.filter(lambda sizes: sum(sizes) > 0), st.data())
def test_any_chunk_that_is_short_missing_or_comes_twice_is_noticed(
    sizes: list[int], data: st.DataObject
) -> None:
    promised = Manifest(("a",), len(sizes), sum(sizes), is_truncated=False)
    chunks = chunks_of(sizes)
    at = data.draw(st.sampled_from([i for i, size in enumerate(sizes) if size]))
    one = chunks[at]
    assert one.rows is not None
    wrong = data.draw(
        st.sampled_from(
            [
                [*chunks[:at], Chunk(at, one.row_offset, one.row_count, one.next_index, rows=[])],
                [
                    *chunks[:at],
                    Chunk(at, one.row_offset, len(one.rows) - 1, one.next_index, one.rows[1:]),
                    *chunks[at + 1 :],
                ],
                [*chunks[:at], Chunk(at, one.row_offset, one.row_count, at, one.rows)],
                [*chunks[:at], Chunk(at + 1, one.row_offset, one.row_count, one.next_index, [])],
                [
                    *chunks[:at],
                    Chunk(at, one.row_offset + 1, one.row_count, one.next_index, one.rows),
                ],
                chunks[:at],
            ]
        )
    )
    with pytest.raises(Unavailable):
        assembled(wrong, promised)


def test_a_result_that_says_it_was_cut_is_not_whole() -> None:
    with pytest.raises(Unavailable):
        assembled(chunks_of([2]), Manifest(("a",), 1, 2, is_truncated=True))
