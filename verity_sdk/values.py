"""Values as JSON, whatever a source or a connector puts into them: pure functions.

Two directions. `loads` reads what a source sent: valid JSON always, exactly, and what strict
readers refuse (NaN, half of a surrogate pair, bytes that are not UTF-8) as well, so that one bad
value does not cost all that came with it. `plain` makes of anything a value that every reader of
JSON takes, and says what it had to alter; `readable` writes the original for the dead letters.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from itertools import count
from typing import Any
from uuid import UUID

import orjson

from verity_sdk.errors import Malformed

DEPTH_MAX = 253
"""What lies deeper is written as one text: orjson writes 254 levels, and an event is one itself."""

ALTERED_POINTERS_MAX = 100
ALTERED_BYTES_MAX = 4096
"""With more pointers, or longer ones, the header `altered` names the event's fields only."""

_SCALARS = frozenset((str, int, bool, type(None)))
_INTEGER_MIN, _INTEGER_MAX = -(2**63), 2**64 - 1
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
_LONG_RUN = b"0" * 19
_LONG_INTEGER = re.compile(rb"(?:^|[\[,:\s])(?:-[0-9]{19}|[0-9]{20})")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', re.DOTALL)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_CONTAINS_ITSELF = "(contains itself)"


class NumberText(float):
    """A JSON number that no int or float holds, and NaN or infinity where a source wrote them.

    It counts as the float nearest to it; orjson refuses to write it, so that it never becomes
    another number in silence.

    Attributes:
        text: As the source wrote it.
    """

    text: str

    def __new__(cls, text: str) -> NumberText:
        number = super().__new__(cls, text)
        number.text = str(text)
        return number


class JsonText:
    """A part of a document that is nested too deeply to be taken apart: its own JSON text.

    No dataclass, which orjson would write in silence.
    """

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


# Reading


def loads(data: bytes | str) -> Any:
    """Read JSON, exactly and tolerantly.

    Integers are exact, whatever their length. A number beyond a float's range, NaN and infinity
    become a `NumberText`, half of a surrogate pair stays one, a byte that is not UTF-8 becomes
    half of one (`surrogateescape`), what is nested too deeply a `JsonText`. Numbers with a
    fraction or an exponent are rounded to the nearest float, as RFC 8259, 6, has it. A byte order
    mark at the beginning is left out.

    Raises:
        ValueError: It is not JSON, or not all of it. The error may quote the document.
    """
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    # orjson reads an integer beyond 64 bits as a float, without a word.
    if not (_LONG_RUN in raw.translate(_DIGITS_TO_ZERO) and _LONG_INTEGER.search(raw)):
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError:
            pass  # One bad value, or no JSON at all: the tolerant reader knows.
    errors = "surrogatepass" if isinstance(data, str) else "surrogateescape"
    text = raw.decode("utf-8", errors)
    try:
        return _decoder().decode(text)
    except RecursionError:
        pass
    shallow, cut = _without_depth(text)
    try:
        return _decoder(cut).decode(shallow)
    except RecursionError:
        raise ValueError("the document ends within its depths") from None


def _decoder(cut: Mapping[str, JsonText] | None = None) -> json.JSONDecoder:
    def real(text: str) -> Any:
        number = float(text)
        return NumberText(text) if number in (float("inf"), float("-inf")) else number

    def integer(text: str) -> Any:
        if cut is not None and text in cut:
            return cut[text]
        try:
            return int(text)
        except ValueError:  # Python converts no more than some thousand digits.
            return NumberText(text)

    return json.JSONDecoder(
        parse_float=real, parse_int=integer, parse_constant=NumberText, strict=False
    )


def _without_depth(text: str) -> tuple[str, Mapping[str, JsonText]]:
    """The document with a number in place of each part that lies too deep, and those parts."""
    prefix = "9"
    while prefix in text:
        prefix += str(len(prefix) % 10)
    numbers = (f"{prefix}{number}" for number in count())
    cut: dict[str, JsonText] = {}
    kept, kept_to, depth, began = [], 0, 0, 0
    for token in _TOKEN.finditer(text):
        if token[0] in ("[", "{"):
            if depth == DEPTH_MAX:
                began = token.start()
            depth += 1
        elif token[0] in ("]", "}"):
            depth -= 1
            if depth == DEPTH_MAX:
                number = next(numbers)
                cut[number] = JsonText(text[began : token.end()])
                kept += [text[kept_to:began], number]
                kept_to = token.end()
    return "".join([*kept, text[kept_to:]]), cut


# Writing


def dumps(value: Any, *, sort_keys: bool = False) -> bytes:
    """JSON bytes of anything, for dead letters and for hashes; never raises.

    What orjson writes faithfully is written by orjson; all else as `readable` does.
    """
    try:
        data = orjson.dumps(value, option=orjson.OPT_SORT_KEYS if sort_keys else None)
    except TypeError:
        return readable(value, sort_keys=sort_keys).encode("ascii")
    if has_null(data) and hides_a_number(value):
        return readable(value, sort_keys=sort_keys).encode("ascii")
    return data


has_null = re.compile(b"null").search
"""Whether, from an offset, bytes may hold a null: three times as fast as `bytes.find`."""


def hides_a_number(value: Any) -> bool:
    """Whether orjson writes null for a NaN or an infinity, which JSON has no word for, in a value.

    Args:
        value: One that orjson has written, with a null in it: this looks at all of it.
    """
    if type(value) is not dict and type(value) is not list:
        return type(value) not in _SCALARS  # An object that may hold anything.
    containers = [value]
    for container in containers:  # It grows meanwhile.
        for one in container.values() if type(container) is dict else container:
            kind = type(one)
            if kind in _SCALARS:
                continue
            if kind is dict or kind is list:
                containers.append(one)
            elif kind is not float or one - one != 0.0:
                return True
    return False


def plain(value: Any, pointer: str = "") -> tuple[Any, list[str]]:
    """A value that every reader of JSON takes, and the pointers (RFC 6901) to what was altered.

    Texts that are not UTF-8 are escaped; what JSON has no word for is in its text form: NaN,
    infinity, integers beyond 64 bits (all digits), bytes, what lies deeper than `DEPTH_MAX`,
    objects. What orjson writes by itself (times, UUIDs, enumerations, dataclasses, tuples, keys
    that are not texts) is written as there and is not altered.

    Args:
        pointer: Where the value stands in its document.
    """
    altered: list[str] = []
    return _plain(value, pointer, DEPTH_MAX, set(), altered), altered


def _plain(value: Any, at: str, levels: int, path: set[int], altered: list[str]) -> Any:
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, Mapping | list | tuple) or _is_dataclass(value):
        if id(value) in path:
            altered.append(at)
            return _CONTAINS_ITSELF
        if not levels:
            altered.append(at)
            return readable(value)
        path.add(id(value))
        result: Any
        if isinstance(value, list | tuple):
            result = []
            # No comprehension, which takes a frame of its own: there are enough for the depth.
            for index, one in enumerate(value):
                result.append(_plain(one, f"{at}/{index}", levels - 1, path, altered))
        else:
            result = {}
            for key, one in _items(value):
                name, is_altered = _key(key, result)
                place = f"{at}/{name.replace('~', '~0').replace('/', '~1')}"
                if is_altered:
                    altered.append(place)
                result[name] = _plain(one, place, levels - 1, path, altered)
        path.discard(id(value))
        return result
    result, is_altered = _scalar(value)
    if is_altered:
        altered.append(at)
    return result


def _scalar(value: Any) -> tuple[Any, bool]:
    """A value that holds no others as JSON has it, and whether that is a text in its place."""
    if value is None or isinstance(value, bool):
        return value, False
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        if _INTEGER_MIN <= value <= _INTEGER_MAX:
            return int(value), False
        return digits(value), True
    if isinstance(value, NumberText | JsonText):
        return _text(value.text)[0], True
    if isinstance(value, float):
        if value - value == 0.0:
            return float(value), False
        return _float_text(value), True
    if isinstance(value, datetime | date | time | UUID):
        try:
            return orjson.loads(orjson.dumps(value, option=orjson.OPT_UTC_Z)), False
        except TypeError:
            pass  # A time of a zone that orjson does not know.
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "backslashreplace"), True
    return _text(shown(value))[0], True


def _key(key: Any, taken: Mapping[str, Any]) -> tuple[str, bool]:
    """A key as a text that is not taken yet, and whether that alters it."""
    if isinstance(key, enum.Enum):
        key = key.value
    if isinstance(key, datetime | date | time):
        name, is_altered = key.isoformat(), False
    else:
        found, is_altered = _scalar(key)
        name = found if isinstance(found, str) else orjson.dumps(found).decode()
    if name not in taken:
        return name, is_altered
    free = (f"{name} ({number})" for number in count(2))
    return next(one for one in free if one not in taken), True


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    names = (field.name for field in dataclasses.fields(value))
    return [(name, getattr(value, name)) for name in names if not name.startswith("_")]


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _text(text: str) -> tuple[str, bool]:
    """A text without surrogates: they stand escaped."""
    text = str.__str__(text)  # A subclass may show itself differently.
    if is_utf8(text):
        return text, False
    return utf8(text).decode(), True


def is_utf8(text: str) -> bool:
    """Whether a text can be written in UTF-8: it has no half of a surrogate pair by itself."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def utf8(text: str) -> bytes:
    """A text in UTF-8; what can't be written in it stands escaped (`\\ud800`)."""
    return text.encode("utf-8", "backslashreplace")


def digits(number: int) -> str:
    """An integer in decimal, of any length: `str` refuses more than some thousand digits."""
    try:
        return int.__repr__(number)
    except ValueError:
        return format(Decimal(number), "f")


def _float_text(number: float) -> str:
    if number != number:
        return "NaN"
    return "Infinity" if number > 0 else "-Infinity"


def shown(value: Any) -> str:
    """As Python shows it, without addresses, which differ every time; never raises."""
    try:
        return _ADDRESS.sub("", repr(value))
    except Exception:  # noqa: BLE001 - it comes from a connector, and may be anything
        return f"<{type(value).__name__}>"


def readable(value: Any, *, sort_keys: bool = False) -> str:
    """JSON text of anything, in ASCII, of any depth; never raises.

    Meant for people and for dead letters: NaN and integers stand as they are, as Python's json
    writes them, and what JSON has no word for as Python shows it.
    """
    try:
        return _readable(value, sort_keys)
    except Exception:  # noqa: BLE001 - a container of a connector's own may do anything
        return json.dumps(shown(value))


def _readable(value: Any, sort_keys: bool) -> str:
    parts: list[str] = []
    path: set[int] = set()
    # What is written next is the last: a text, the end of a container, or a value.
    todo: list[tuple[str, Any]] = [("value", value)]
    while todo:
        kind, one = todo.pop()
        if kind == "text":
            parts.append(one)
        elif kind == "end":
            path.discard(one)
        elif not isinstance(one, Mapping | list | tuple):
            parts.append(_written(one))
        elif id(one) in path:
            parts.append(json.dumps(_CONTAINS_ITSELF))
        else:
            path.add(id(one))
            todo += [("end", id(one)), *reversed(list(_pieces(one, sort_keys)))]
    return "".join(parts)


def _pieces(value: Any, sort_keys: bool) -> Iterator[tuple[str, Any]]:
    is_mapping = isinstance(value, Mapping)
    yield "text", "{" if is_mapping else "["
    if is_mapping:
        named = [
            (_key(key, {})[0] if type(key) is not str else key, one) for key, one in value.items()
        ]
        if sort_keys:
            named.sort(key=lambda pair: pair[0])
        for index, (name, one) in enumerate(named):
            yield "text", f"{', ' if index else ''}{json.dumps(name)}: "
            yield "value", one
    else:
        for index, one in enumerate(value):
            if index:
                yield "text", ", "
            yield "value", one
    yield "text", "}" if is_mapping else "]"


def _written(value: Any) -> str:
    if isinstance(value, NumberText | JsonText):
        return value.text
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, str):
        return json.dumps(str.__str__(value))
    if isinstance(value, int):
        return digits(value)
    if isinstance(value, float):
        return json.dumps(float(value))
    return json.dumps(shown(value))


# Events and grants


def reference(value: Any, name: str) -> tuple[str, bool]:
    """An id or a reference as text, and whether it had to be altered.

    Integers and UUIDs become their text; a text that is not UTF-8 stands escaped.

    Raises:
        Malformed: It is missing, or another kind of value.
    """
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return digits(value), False
    if isinstance(value, UUID):
        return str(value), False
    what = "missing" if value is None else f"a {type(value).__name__}, not a text"
    raise Malformed(f"{name} is {what}")


def publishable(
    thing: Any, needed: Iterable[str], optional: Iterable[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """An event's or a grant's references and `raw_payload`, as every reader of JSON takes them.

    Args:
        needed: The fields without which it says nothing.
        optional: The references that may be None.

    Returns:
        The fields, and the pointers to what of them was altered.

    Raises:
        Malformed: A reference is missing or no text.
    """
    fields: dict[str, Any] = {}
    altered = []
    for name in (*needed, *optional):
        value = getattr(thing, name)
        if value is None and name in optional:
            fields[name] = None
            continue
        fields[name], is_altered = reference(value, name)
        if is_altered:
            altered.append(f"/{name}")
    fields["raw_payload"], in_payload = plain(thing.raw_payload, "/raw_payload")
    return fields, altered + in_payload


def altered_header(pointers: Iterable[str]) -> bytes:
    """The value of the header `altered`: a JSON list of JSON pointers, of bounded length."""
    some = list(pointers)
    if len(some) <= ALTERED_POINTERS_MAX:
        data = orjson.dumps(some)
        if len(data) <= ALTERED_BYTES_MAX:
            return data
    return orjson.dumps(list(dict.fromkeys("/" + one.split("/", 2)[1] for one in some)))
