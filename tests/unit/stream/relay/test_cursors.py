"""A cursor is stored so that both stores give it back exactly, and readable where that can be."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from verity_sdk.errors import Misconfigured
from verity_sdk.values import loads
from verity_stream.records import (
    Checkpoint,
    Origin,
    PageSummary,
    checkpoint_record,
    decode_checkpoint,
)
from verity_stream.relay.cursors import AS_TEXT, given_cursor, stored_cursor

AT = datetime(2026, 1, 1, tzinfo=UTC)
TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)
"""Any, NUL and halves of surrogate pairs among them."""
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)
CURSORS = st.dictionaries(TEXTS, VALUES, max_size=4)


def through_kafka(cursor: Any) -> Any:
    checkpoint = Checkpoint("c", 1, 1, AT, cursor)
    record = checkpoint_record(Origin("c", "p", "now"), checkpoint, PageSummary())
    return decode_checkpoint(record.value).cursor


@given(CURSORS)
@example({AS_TEXT: "{}"})
@example({AS_TEXT: "{}", "b": "\0"})
@example({"a": 2**64})
@example({"a": -0.0, "b": 1e23})
def test_a_cursor_comes_back_from_kafka_as_it_was(cursor: dict[str, Any]) -> None:
    assert repr(given_cursor(through_kafka(stored_cursor(cursor)))) == repr(cursor)


@pytest.mark.parametrize(
    "cursor",
    [
        {"v": 1, "streams": {"a/b": {"through": "2026-01-01T00:00:00Z"}}},
        {"é\U0001f600": ['\\"', "\\u0000", 2**64 - 1, -(2**63), 1.5, 5e-324, True, None, {}, []]},
        {},
    ],
)
def test_an_ordinary_cursor_can_be_read_where_it_is_stored(cursor: dict[str, Any]) -> None:
    assert stored_cursor(cursor) == cursor


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_count_as_what_they_were(number: float) -> None:
    back = given_cursor(through_kafka(stored_cursor({"a": number})))
    assert repr(back) == repr({"a": number})


@pytest.mark.parametrize("depth", [98, 99, 100, 252, 253, 254, 5000])
def test_no_depth_is_too_deep_to_be_stored(depth: int) -> None:
    stored = stored_cursor({"a": loads("[" * depth + "]" * depth)})
    assert through_kafka(stored) == stored
    assert stored_cursor(given_cursor(stored)) == stored


def test_what_is_no_json_is_stored_as_orjson_or_python_shows_it() -> None:
    assert stored_cursor({"at": AT, "pair": (1, 2)}) == {
        "at": "2026-01-01T00:00:00+00:00",
        "pair": [1, 2],
    }
    assert given_cursor(stored_cursor({"a": b"\xff"})) == {"a": "b'\\xff'"}


def test_it_is_a_copy() -> None:
    cursor = {"a": [1]}
    stored = stored_cursor(cursor)
    cursor["a"].append(2)
    assert stored == {"a": [1]}


@pytest.mark.parametrize("text", ["{", 5, None])
def test_a_text_that_was_edited_into_none_says_so(text: Any) -> None:
    with pytest.raises(Misconfigured, match="verity rewind"):
        given_cursor({AS_TEXT: text})
