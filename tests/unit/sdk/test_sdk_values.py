"""Reading JSON exactly and tolerantly, and writing anything at all."""

from __future__ import annotations

import enum
import json
import math
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any, NamedTuple
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verity_sdk.values import (
    DEPTH_MAX,
    JsonText,
    NumberText,
    dumps,
    has_null,
    hides_a_number,
    loads,
    plain,
    readable,
)

texts = st.text(st.characters(exclude_categories=()), max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)


def equal(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)  # NaN is equal to itself here, and 1 is not 1.0


# Reading


@given(json_values)
def test_whatever_json_says_is_read_exactly(value: Any) -> None:
    found = loads(json.dumps(value).encode())
    assert equal(found, value)


@given(json_values)
def test_a_text_is_read_as_its_bytes_are(value: Any) -> None:
    assert equal(loads(json.dumps(value, ensure_ascii=False)), value)


@pytest.mark.parametrize("size", range(17, 26))
@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize("frame", ["{}", " {}", "[{}]", "[1,{}, 2]", '{{"a":{}}}', '{{"a":\n{}}}'])
def test_integers_are_exact_wherever_they_stand(size: int, sign: str, frame: str) -> None:
    for digit in "19":
        document = frame.format(sign + digit * size)
        assert equal(loads(document), json.loads(document))
        assert loads(document) == json.loads(document)


def test_an_integer_of_thousands_of_digits_keeps_them() -> None:
    (found,) = loads(b"[" + b"7" * 5000 + b"]")
    assert found.text == "7" * 5000
    assert plain(found) == ("7" * 5000, [""])


@pytest.mark.parametrize("text", ["1e400", "-1E400", "NaN", "Infinity", "-Infinity"])
def test_a_number_that_no_float_holds_keeps_its_text(text: str) -> None:
    found = loads(f'{{"a": {text}, "b": 1}}')
    assert found["b"] == 1
    assert found["a"].text == text
    assert equal(float(found["a"]), float(text))
    assert deepcopy(found["a"]).text == text
    assert plain(found) == ({"a": text, "b": 1}, ["/a"])
    with pytest.raises(TypeError):
        orjson.dumps(found)  # It never becomes null in silence.


def test_bytes_that_are_not_utf8_cost_no_more_than_their_text() -> None:
    found = loads(b'{"a": "x\xff", "b": 1}')
    assert found == {"a": "x\udcff", "b": 1}
    assert plain(found) == ({"a": "x\\udcff", "b": 1}, ["/a"])


@pytest.mark.parametrize("found", [loads("1e400"), JsonText("[]")])
def test_what_stands_in_place_of_a_value_is_never_written_in_silence(found: Any) -> None:
    with pytest.raises(TypeError):
        orjson.dumps({"a": [found]})


def test_a_byte_order_mark_and_raw_control_characters_are_let_pass() -> None:
    assert loads(b'\xef\xbb\xbf{"a": "b\tc"}') == {"a": "b\tc"}


@pytest.mark.parametrize("depth", [300, 1100, 100_000])
def test_depth_costs_no_more_than_what_lies_too_deep(depth: int) -> None:
    deep = '{"a": ' * depth + '"\\ud800}"' + "}" * depth
    found = loads(f'[{{"id": 1}}, {deep}, {deep}, 99]')
    assert (len(found), found[0], found[3]) == (4, {"id": 1}, 99)
    cleaned, pointers = plain(found)
    assert orjson.loads(orjson.dumps(cleaned))[0] == {"id": 1}
    assert len(pointers) == 2
    # Nothing is lost: the text that stands there is JSON, and all of what was there.
    text = cleaned[1]
    while not isinstance(text, str):
        text = text["a"]
    assert text.count('"a"') + DEPTH_MAX - 1 == depth


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"a": 1', b"[1,]", b"<html>", b"\xff", b"1 2", b'"abc', b"[" * 5000]
)
def test_what_is_no_json_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"line|document|Expecting"):
        loads(data)


@given(st.binary(max_size=30))
def test_any_bytes_are_json_or_a_value_error(data: bytes) -> None:
    try:
        loads(data)
    except ValueError:
        return
    json.loads(data.decode("utf-8-sig", "surrogateescape"), strict=False)


# Writing


class Colour(enum.Enum):
    RED = "red"


class Name(str):
    def __str__(self) -> str:
        return "another"


class Pair(NamedTuple):
    left: int
    right: float


@dataclass
class Point:
    x: int
    y: float
    _hidden: int = 0


NATIVE: list[Any] = [
    *(None, True, 1, -(2**63), 2**64 - 1, 1.5, "é", [1], (1, 2), {"a": {}}, Colour.RED),
    *(datetime(2026, 1, 1, tzinfo=UTC), date(2026, 1, 1), time(1, 2), UUID(int=1), Point(1, 2.5)),
]


@pytest.mark.parametrize("value", NATIVE)
def test_what_orjson_writes_by_itself_is_not_altered(value: Any) -> None:
    found, pointers = plain({"v": value})
    assert pointers == []
    option = orjson.OPT_UTC_Z
    assert orjson.dumps(found) == orjson.dumps({"v": value}, option=option)


def test_subclasses_are_what_they_are() -> None:
    assert plain([Name("one"), Pair(1, math.nan), Point(1, math.inf)]) == (
        ["one", [1, "NaN"], {"x": 1, "y": "Infinity"}],
        ["/1/1", "/2/y"],
    )


@given(json_values)
def test_null_is_honest_or_found_out(value: Any) -> None:
    try:
        data = orjson.dumps(value)
    except TypeError:
        return
    is_honest = equal(orjson.loads(data), value)
    assert is_honest is not (has_null(data) is not None and hides_a_number(value))


class Evil(dict[str, Any]):
    def __init__(self) -> None:
        super().__init__({"a": object()})

    def items(self) -> Any:
        raise RuntimeError("no")

    def __repr__(self) -> str:
        raise RuntimeError("no")


@given(json_values)
def test_what_is_written_for_people_reads_back(value: Any) -> None:
    assert equal(json.loads(readable(value)), value)
    assert equal(json.loads(dumps(value)), value)


@pytest.mark.parametrize("value", [Evil(), [Evil()], {(1,): 1}, {1: 2, "1": 3}, b"\xff", object()])
def test_anything_can_be_written(value: Any) -> None:
    assert json.loads(dumps(value)) is not None
    assert b" at 0x" not in dumps(value)


def test_what_contains_itself_ends() -> None:
    value: dict[str, Any] = {"a": []}
    value["a"] += [value, [1], value]
    assert json.loads(readable(value)) == {"a": ["(contains itself)", [1], "(contains itself)"]}


def test_numbers_as_they_were_written() -> None:
    value = [NumberText("1e400"), 2**70, JsonText('{"deep": 1}')]
    assert dumps(value) == b'[1e400, 1180591620717411303424, {"deep": 1}]'


def test_keys_in_order_make_equal_bytes() -> None:
    one, other = {"b": 2**70, "a": 1}, {"a": 1, "b": 2**70}
    assert dumps(one, sort_keys=True) == dumps(other, sort_keys=True)
