"""What stands in Kafka: every record reads back as what went in, and nothing is cut silently."""

from __future__ import annotations

import base64
import hashlib
import json
import string
from array import array
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any, NamedTuple

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_builders import body_of

from verity_sdk.connector_base import PermissionSnapshot, RawEvent
from verity_sdk.errors import Malformed
from verity_sdk.pages import Gap, RejectedRecord, SnapshotGap
from verity_stream.records import (
    CHECKPOINTS_TOPIC,
    GAPS_TOPIC,
    ID_KEY_KEY,
    IDS_TOPIC,
    KINDS,
    POSITION,
    Checkpoint,
    DeadLetter,
    EventEncoder,
    Grant,
    NotUnderstood,
    Origin,
    PageSummary,
    Record,
    Seen,
    SeenInTopics,
    SnapshotEnd,
    SnapshotResult,
    SnapshotStart,
    checkpoint_record,
    dead_event,
    dead_record,
    dead_topic,
    decode_checkpoint,
    decode_checkpoint_record,
    decode_dead_part,
    decode_gap,
    decode_permission,
    decode_slot,
    decode_slot_key,
    encode_slot,
    end_record,
    gap_record,
    grant_body,
    newer_checkpoint,
    original,
    permissions_topic,
    position_of_row,
    position_row,
    published_ids_of,
    raw_topic,
    slot_key,
    snapshot_record,
    sound_gap,
    start_record,
)
from verity_stream.relay.ids import hashes_of

ORIGIN = Origin("acme-1", "acme", "2026-02-03T04:05:06.000007Z")
AT = datetime(2026, 1, 31, 23, 59, 59, tzinfo=UTC)
BYTES_MAX = 100_000

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
times = st.datetimes(timezones=st.just(UTC))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)


def event(**fields: Any) -> RawEvent:
    return RawEvent(
        **{
            "platform": "acme",
            "event_id": "id-1",
            "occurred_at": AT,
            "principal_ref": "ada",
            "asset_ref": "vault",
            "operation": "READ",
            "raw_payload": {"a": 1},
            **fields,
        }
    )


class Encoded(NamedTuple):
    id_header: bytes
    occurred_at: datetime
    topic: str
    key: bytes
    value: bytes
    altered: bytes | None


def encode(
    one: RawEvent, bytes_max: int = BYTES_MAX, partition_by: str = "principal_ref"
) -> Encoded:
    return Encoded(*EventEncoder("acme-1", partition_by, bytes_max, "acme").encode(one))


def whole(records: list[Record]) -> bytes:
    """What a consumer makes of the parts of a dead letter."""
    data = b""
    for number, record in enumerate(records, 1):
        body = body_of(record)
        assert (body["part"], body["parts"]) == (number, len(records))
        data += (
            base64.b64decode(body["data"])
            if body["encoding"] == "base64"
            else body["data"].encode()
        )
    body = body_of(records[0])
    assert body["size_bytes"] == len(data)
    assert body["sha256"] == hashlib.sha256(data).hexdigest()
    return data


# Names


def test_the_names_that_consumers_know_stay_what_they_are() -> None:
    assert (
        *("verity.connector.checkpoints", "verity.connector.gaps", "verity.connector.ids"),
    ) == (CHECKPOINTS_TOPIC, GAPS_TOPIC, IDS_TOPIC)
    assert (raw_topic("acme"), dead_topic("acme"), permissions_topic("acme")) == (
        *("verity.events.raw.acme", "verity.events.dead.acme", "verity.permissions.raw.acme"),
    )
    # What `verity verify --deep` counts: of another name it would pass over it.
    assert KINDS == {"raw_event/1": "event", "dead_letter/1": "dead", "gap/1": "gap"}
    assert ORIGIN.headers("gap/1") == [
        *(("connector_id", b"acme-1"), ("schema", b"gap/1")),
        ("fetched_at", b"2026-02-03T04:05:06.000007Z"),
    ]


# Raw events


@given(
    event_id=texts.filter(bool),
    occurred_at=times,
    principal=texts,
    payload=st.dictionaries(texts, json_values, max_size=4),
)
def test_an_event_reads_back_as_it_was(
    event_id: str, occurred_at: datetime, principal: str, payload: dict[str, Any]
) -> None:
    encoded = encode(
        event(
            event_id=event_id,
            occurred_at=occurred_at,
            principal_ref=principal,
            raw_payload=payload,
        )
    )
    body = body_of(encoded)
    assert datetime.fromisoformat(body.pop("occurred_at")) == occurred_at
    assert body == {
        "platform": "acme",
        "event_id": event_id,
        "principal_ref": principal,
        "asset_ref": "vault",
        "operation": "READ",
        "raw_payload": payload,
    }
    assert encoded.topic == "verity.events.raw.acme"
    assert encoded.key == principal.encode()
    assert (encoded.id_header.decode(), encoded.occurred_at) == (event_id, occurred_at)


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (AT, "2026-01-31T23:59:59.000000Z"),
        (AT.replace(microsecond=7), "2026-01-31T23:59:59.000007Z"),
        (AT.replace(tzinfo=None), "2026-01-31T23:59:59.000000Z"),
        (AT.astimezone(timezone(timedelta(hours=-5))), "2026-01-31T23:59:59.000000Z"),
        (datetime.max.replace(tzinfo=UTC), "9999-12-31T23:59:59.999999Z"),
        (datetime.min.replace(tzinfo=UTC), "0001-01-01T00:00:00.000000Z"),
    ],
)
def test_times_have_microseconds_and_z(at: datetime, text: str) -> None:
    assert orjson.loads(encode(event(occurred_at=at)).value)["occurred_at"] == text


@pytest.mark.parametrize(
    ("event_id", "text"), [("é/✓ 1", "é/✓ 1"), (17, "17"), (0, "0"), (" ", " "), ("\x00", "\x00")]
)
def test_an_id_stays_exactly_as_the_source_gave_it(event_id: Any, text: str) -> None:
    encoded = encode(event(event_id=event_id))
    assert body_of(encoded)["event_id"] == text
    assert encoded.id_header.decode() == text
    assert encoded.altered is None


@pytest.mark.parametrize(
    ("field", "key"), [("principal_ref", b"ada"), ("asset_ref", b"vault"), ("event_id", b"id-1")]
)
def test_the_key_is_the_configured_field(field: str, key: bytes) -> None:
    assert encode(event(), partition_by=field).key == key


def test_keys_that_are_no_text_become_text() -> None:
    body = orjson.loads(encode(event(raw_payload={1: {None: True}, AT: 2})).value)
    assert body["raw_payload"] == {"1": {"null": True}, "2026-01-31T23:59:59+00:00": 2}


def _circular() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"in": value}
    return value


class Hostile(dict[str, Any]):
    """Raises once its items are asked for."""

    def __init__(self) -> None:
        super().__init__({"x": object()})

    def items(self) -> Any:
        raise RuntimeError("no")


UNPUBLISHABLE = {
    "no id": {"event_id": None},
    "an empty id": {"event_id": ""},
    "an id that is no text": {"event_id": 1.5},
    "no principal": {"principal_ref": None},
    "an asset that is no text": {"asset_ref": ["vault"]},
    "an operation that is none": {"operation": b"READ!", "raw_payload": {"x": "READ"}},
    "a truth as reference": {"principal_ref": True},
    "a time that is none": {"occurred_at": "yesterday"},
    "no time": {"occurred_at": None},
    "a time beyond UTC": {
        "occurred_at": datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))
    },
    "no topic": {"platform": "a/b"},
    "no platform": {"platform": None},
    "a platform that is a list": {"platform": ["acme"]},
    "a foreign platform": {"platform": "hr"},
    "too long": {"raw_payload": {"x": "y" * BYTES_MAX}},
    "too long once altered": {"raw_payload": {"x": b"\xff" * (BYTES_MAX // 4)}},
    "too long an id": {"event_id": "y" * (BYTES_MAX // 2)},
    "too long a key": {"principal_ref": "y" * (BYTES_MAX // 2)},
    "a mapping that raises": {"raw_payload": Hostile()},
}


@pytest.mark.parametrize("fields", UNPUBLISHABLE.values(), ids=UNPUBLISHABLE.keys())
def test_what_cant_be_published_becomes_a_dead_letter(fields: dict[str, Any]) -> None:
    one = event(**fields)
    with pytest.raises(Malformed) as caught:
        encode(one)
    letter = dead_event(ORIGIN, one, str(caught.value), BYTES_MAX // 2)
    data = whole(letter.records)
    assert b"READ" in data
    body = body_of(letter.records[0])
    assert body["reason"] == str(caught.value)
    assert body["connector_id"] == "acme-1"
    assert letter.records[0].topic == "verity.events.dead.acme"
    for record in letter.records:
        assert total_bytes(record) <= BYTES_MAX


def test_a_payload_nested_too_deeply_for_python_is_kept_whole() -> None:
    """orjson reads 1024 levels from a source; repr() and json.dumps() then give up."""
    letter = dead_event(ORIGIN, event(raw_payload=nested(200_000)), "nested", 50_000)
    assert whole(letter.records).count(b'{"in": ') == 200_000


def total_bytes(record: Record) -> int:
    headers = sum(len(name) + len(value) for name, value in record.headers)
    return len(record.value or b"") + len(record.key or b"") + headers


def test_an_event_of_exactly_the_limit_is_published() -> None:
    size = len(encode(event()).value) + len(b"ada") + len(b"id-1")
    assert encode(event(), bytes_max=size)
    with pytest.raises(Malformed, match="VERITY_KAFKA__MAX_RECORD_BYTES"):
        encode(event(), bytes_max=size - 1)


def test_of_an_altered_event_the_limit_holds_for_all_that_is_written() -> None:
    """What it was is said in a header, which the broker counts, too."""
    odd = event(principal_ref=7, raw_payload={"x": float("nan")})
    encoded = encode(odd)
    assert encoded.altered is not None
    size = len(encoded.value) + len(encoded.key) + len(b"id-1") + len(encoded.altered)
    assert encode(odd, bytes_max=size) == encoded
    with pytest.raises(Malformed, match="VERITY_KAFKA__MAX_RECORD_BYTES"):
        encode(odd, bytes_max=size - 1)


def test_an_altered_event_has_the_fields_and_the_time_of_any_other() -> None:
    body = body_of(encode(event(principal_ref=7)))
    assert body == {**body_of(encode(event())), "principal_ref": "7"}
    assert body["occurred_at"] == "2026-01-31T23:59:59.000000Z"


# Dead letters


@given(data=st.binary(max_size=500), part_bytes=st.integers(1, 200))
def test_a_dead_letter_reassembles_to_its_bytes(data: bytes, part_bytes: int) -> None:
    assert whole(dead_record(ORIGIN, RejectedRecord(data, "no JSON"), part_bytes).records) == data


@pytest.mark.parametrize(
    "data",
    [
        *(b"\x00", b'"', b"\\", b"a", b"\xff", "é".encode(), "\u2028".encode(), b"\x7f", b"\n"),
        # Text that becomes nearly twice as long, and half as long again.
        *(b'"' * 19 + b"a", b'"a'),
    ],
)
def test_no_part_is_longer_than_the_broker_takes(data: bytes) -> None:
    """A log file that a crash filled with zeros becomes six times as long as JSON text."""
    bytes_max = 100_000
    rejected = RejectedRecord(data * 150_000, "r" * 9000, "f" * 9000)
    letter = dead_record(ORIGIN, rejected, bytes_max // 2)
    assert whole(letter.records) == rejected.data
    assert max(map(total_bytes, letter.records)) <= bytes_max


def test_a_dead_letter_has_the_same_id_whenever_it_turns_up_again() -> None:
    first = dead_record(ORIGIN, RejectedRecord(b"x", "one reason", "file:1"), 100)
    later = Origin("acme-1", "acme", "2027-01-01T00:00:00.000000Z")
    again = dead_record(later, RejectedRecord(b"x", "another reason", "file:1"), 100)
    elsewhere = dead_record(ORIGIN, RejectedRecord(b"x", "one reason", "file:2"), 100)
    assert first.ids == again.ids != elsewhere.ids


@given(st.text(max_size=5), st.text(max_size=3000))
def test_the_id_of_a_dead_letter_reads_back_from_its_header(text: str, reference: str) -> None:
    letter = dead_record(ORIGIN, RejectedRecord(b"x", text, reference), 100)
    assert (dict(letter.records[0].headers)["dead_id"].decode(),) == letter.ids
    letter = dead_event(ORIGIN, event(event_id=reference), text, 100)
    headers = {name: value.decode() for name, value in letter.records[0].headers}
    ids = ("event_id", "dead_id") if reference else ("dead_id",)
    assert tuple(headers[name] for name in ids) == letter.ids


def test_a_dead_letter_may_come_again_as_long_as_its_event() -> None:
    assert dead_event(ORIGIN, event(), "too long", 100).occurred_at == AT
    assert dead_event(ORIGIN, event(occurred_at="soon"), "no time", 100).occurred_at is None


@pytest.mark.parametrize("thing", [None, 7, "text", {"a": object()}, object(), [b"\xff"]])
def test_anything_a_connector_yields_can_be_a_dead_letter(thing: Any) -> None:
    assert whole(dead_event(ORIGIN, thing, "no RawEvent", 5000).records)


@pytest.mark.parametrize("reference", [None, "file:1"])
@pytest.mark.parametrize("data", [b"no JSON at all", b"\xff\x00\xfe" * 5])
def test_a_dead_letter_is_read_as_it_was_written(data: bytes, reference: str | None) -> None:
    letter = dead_record(ORIGIN, RejectedRecord(data, "no JSON", reference), 6)
    read = [decode_dead_part(record) for record in letter.records]
    assert {dead_id for dead_id, _ in read} == set(letter.ids)
    fetched_at = datetime(2026, 2, 3, 4, 5, 6, 7, tzinfo=UTC)
    digest = hashlib.sha256(data).hexdigest()
    assert letter.ids == (f"{digest}:{reference or ''}",), "also as every older version had it"
    assert [part for _, part in read] == [
        DeadLetter(
            *("acme", "acme-1", "no JSON", reference, fetched_at, len(data), digest),
            *(number, len(read), data[6 * number - 6 : 6 * number]),
        )
        for number in range(1, len(read) + 1)
    ]


@pytest.mark.parametrize(
    "change",
    [
        *({"platform": 1}, {"connector_id": None}, {"reason": 1}, {"sha256": 1}, {"data": 7}),
        *({"size_bytes": "1"}, {"part": "1"}, {"parts": True}, {"reference": 7}),
        *({"fetched_at": "soon"}, {"encoding": "base64", "data": "YQ=!="}),
    ],
)
def test_a_dead_letter_of_another_shape_is_malformed(change: dict[str, Any]) -> None:
    (record,) = dead_record(ORIGIN, RejectedRecord(b"a", "no JSON", "file:1"), 10).records
    assert decode_dead_part(record)[1].data == b"a"
    changed = orjson.dumps({**body_of(record), **change})
    with pytest.raises(Malformed):
        decode_dead_part(record._replace(value=changed))
    with pytest.raises(Malformed, match="no header `schema`"):
        decode_dead_part(record._replace(headers=[("dead_id", b"a")]))


def test_the_ids_that_a_record_stands_for_are_those_that_its_page_claimed() -> None:
    """Of an event its id; of a dead letter its own and its event's; of an original its own."""
    letter = dead_event(ORIGIN, event(), "too long", 500)
    rejected = dead_record(ORIGIN, RejectedRecord(b"x", "no JSON"), 500)
    kept = original(ORIGIN, event(), b"/raw_payload", 500)
    for one in (letter, rejected, kept):
        (record,) = one.records
        claimed = [("verity.events.dead.acme", identity.encode(), None) for identity in one.ids]
        assert list(published_ids_of(record)) == claimed
    assert [len(one.ids) for one in (letter, rejected, kept)] == [2, 1, 1]
    # An event's payload may look like anything.
    value = orjson.dumps({**body_of(encode(event())), "reason": "published, but altered at /x"})
    headers = [("schema", b"raw_event/1"), ("event_id", b"id-1"), ("dead_id", b"")]
    record = Record("t", b"ada", value, headers)
    assert list(published_ids_of(record)) == [("t", b"id-1", AT)]
    for stranger in (None, b"", b"[1]", b'{"reason": 7}'):
        assert list(published_ids_of(record._replace(value=stranger))) == [("t", b"id-1", None)]


# Gaps


def test_a_gap_says_what_is_missing() -> None:
    record = gap_record(ORIGIN, Gap(None, AT.replace(tzinfo=None), "sign\ud800Ins", "lost"))
    assert (record.topic, record.key) == (GAPS_TOPIC, b"acme-1")
    assert dict(record.headers)["schema"] == b"gap/1"
    assert body_of(record) == {
        "platform": "acme",
        "connector_id": "acme-1",
        "from_at": None,
        "to_at": "2026-01-31T23:59:59.000000Z",
        "scope": "sign\\ud800Ins",
        "reason": "lost",
        "recorded_at": ORIGIN.fetched_at,
    }


@pytest.mark.parametrize(
    "change",
    [
        *({"platform": 1}, {"connector_id": None}, {"scope": 1}, {"reason": None}),
        *({"recorded_at": "soon"}, {"from_at": "soon"}, {"to_at": 7}, {"recorded_at": None}),
    ],
)
def test_a_gap_of_another_shape_is_malformed(change: dict[str, Any]) -> None:
    record = gap_record(ORIGIN, Gap(None, AT, "signIns", "lost"))
    body = body_of(record)
    assert decode_gap(record) == body
    with pytest.raises(Malformed):
        decode_gap(record._replace(value=orjson.dumps({**body, **change})))
    with pytest.raises(Malformed):
        decode_gap(record._replace(value=orjson.dumps([body])))
    with pytest.raises(Malformed, match="no header `schema`"):
        decode_gap(record._replace(headers=[]))


def test_whatever_is_reported_as_a_gap_is_one() -> None:
    gap = Gap(None, AT, "signIns", "lost")
    assert sound_gap(gap) == gap
    no_time: Any = "soon"
    odd: Any = replace(gap, from_at=no_time)
    assert sound_gap(odd).reason.startswith("lost (")
    assert replace(sound_gap(odd), reason="lost") == gap
    odd = "all of May"
    assert (sound_gap(odd).from_at, sound_gap(odd).to_at, sound_gap(odd).scope) == (None, None, "*")
    assert odd in sound_gap(odd).reason


# Checkpoints

names = st.text(string.ascii_lowercase + ".", min_size=1, max_size=10)
offsets = st.dictionaries(st.integers(0, 999), st.integers(0, 2**62), max_size=4)
checkpoints = st.builds(
    Checkpoint,
    connector_id=texts.filter(bool),
    version=st.integers(0, 2**62),
    epoch=st.integers(0, 2**62),
    last_ts=times,
    cursor=st.none() | st.dictionaries(texts, json_values, max_size=4),
    complete_through=st.none() | times,
    seen=st.none()
    | st.builds(Seen, slots_from=st.integers(0, 2**62), count=st.integers(0, 2**62))
    | st.builds(SeenInTopics, start=st.dictionaries(names, offsets, max_size=3), newest_at=times),
    collected_from=st.none() | times,
)


@given(checkpoints)
def test_a_checkpoint_reads_back_as_it_was(checkpoint: Checkpoint) -> None:
    record = checkpoint_record(ORIGIN, checkpoint, PageSummary(1, 2, 3, 4, {"t": {0: (5, 6)}}))
    assert decode_checkpoint(record.value) == checkpoint
    assert (record.topic, record.key) == (CHECKPOINTS_TOPIC, checkpoint.connector_id.encode())
    assert dict(record.headers)["schema"] == b"checkpoint/1"
    body = body_of(record)
    assert [body[name] for name in ("event_count", "repeat_count", "dead_count", "gap_count")] == [
        *(1, 2, 3, 4)
    ]
    assert body["offsets"] == {"t": {"0": [5, 6]}}


@given(checkpoints)
def test_a_position_comes_back_from_its_row(checkpoint: Checkpoint) -> None:
    row = dict(zip(POSITION, position_row(checkpoint), strict=True))
    nowhere = Checkpoint(*("", 0, 0), datetime.min.replace(tzinfo=UTC))
    read = replace(nowhere, **position_of_row(row))
    assert {name: getattr(read, name) for name in POSITION} == {
        name: getattr(checkpoint, name) for name in POSITION
    }


@pytest.mark.parametrize(
    ("change", "differences"),
    [
        ({"version": 8}, ("version",)),
        ({"last_ts": AT + timedelta(seconds=1)}, ("last_ts",)),
        ({"cursor": {"n": 2}, "seen": None}, ("cursor", "seen")),
        ({"complete_through": AT}, ("complete_through",)),
        # A claim writes the epoch to the row alone, and of two beginnings a start takes one.
        ({"epoch": 9, "collected_from": AT, "is_edited": True}, ()),
    ],
)
def test_in_what_two_views_of_a_position_differ(
    change: dict[str, Any], differences: tuple[str, ...]
) -> None:
    one = Checkpoint("c", 7, 1, AT, {"n": 1}, None, Seen(1, 2))
    assert one.differences(replace(one, **change)) == differences
    assert replace(one, **change).differences(one) == differences


@pytest.mark.parametrize(
    ("held", "incoming", "counts"),
    [
        ((7, 1), (8, 1), "incoming"),
        ((7, 1), (7, 2), "incoming"),
        ((7, 2), (8, 1), "incoming"),
        ((8, 1), (7, 2), "held"),
        # What a relay that was replaced still got out.
        ((7, 2), (7, 1), "held"),
        ((7, 1), (7, 1), "incoming"),
    ],
)
def test_which_of_two_records_counts(
    held: tuple[int, int], incoming: tuple[int, int], counts: str
) -> None:
    first, later = Checkpoint("c", *held, AT), Checkpoint("c", *incoming, AT, {"n": 2})
    assert newer_checkpoint(first, later) is {"held": first, "incoming": later}[counts]


@pytest.mark.parametrize(
    ("seen", "summary", "is_position"),
    [
        (Seen(4, 0), PageSummary(), True),
        (None, PageSummary(), True),  # As before there was a log of ids.
        # A page of repeats: nothing came out, and yet it is no edit that explains a replay.
        (Seen(4, 2), PageSummary(repeat_count=3), False),
        (SeenInTopics({}, AT), PageSummary(), False),
        (Seen(4, 0), PageSummary(gap_count=1), False),
        (Seen(4, 0), PageSummary(offsets={"t": {0: (1, 2)}}), False),
    ],
)
def test_a_record_that_moved_no_page_says_so(
    seen: Seen | SeenInTopics | None, summary: PageSummary, is_position: bool
) -> None:
    """From there on an event may be in the topic again: an operator asked for it."""
    record = checkpoint_record(ORIGIN, Checkpoint("c", 7, 1, AT, seen=seen), summary)
    assert record.value is not None
    assert decode_checkpoint_record(record.value).is_position is is_position


hashes = st.lists(st.integers(1, 2**64 - 1), max_size=9).map(hashes_of)


@given(st.binary(min_size=4, max_size=4), times, hashes)
def test_a_slot_of_ids_reads_back_as_it_was(
    fingerprint: bytes, newest_at: datetime, found: array[int]
) -> None:
    value = encode_slot(fingerprint, newest_at, found)
    assert decode_slot(value) == (fingerprint, newest_at, found)
    assert len(value) == 13 + 8 * len(found), "eight bytes an id"


def test_a_slot_is_the_same_bytes_on_every_machine() -> None:
    value = encode_slot(b"abcd", datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), hashes_of([1, 2**63]))
    assert value == (
        b"\x01abcd" + (1_000_000).to_bytes(8, "little") + b"\1" + bytes(7) + bytes(7) + b"\x80"
    )
    # And where it is found, by every version.
    assert (slot_key("c", 7), ID_KEY_KEY) == (b"c\0" + b"7", b"\0key")


@given(st.binary(max_size=60))
def test_any_bytes_are_a_slot_or_malformed(value: bytes) -> None:
    try:
        fingerprint, newest_at, found = decode_slot(value)
    except Malformed:
        return
    assert encode_slot(fingerprint, newest_at, found) == value


@pytest.mark.parametrize(
    "value", [b"", b"\1abcd", b"\2abcd" + bytes(8), b"\1abcd" + bytes(8) + b"\1"]
)
def test_what_is_no_slot_is_malformed(value: bytes) -> None:
    """One of a later version is: who takes it for nothing would forget what it holds."""
    assert decode_slot(b"\1abcd" + bytes(8))
    with pytest.raises(Malformed):
        decode_slot(value)


@given(texts.filter(lambda text: text and "\0" not in text), st.integers(0, 2**62))
def test_a_slots_key_reads_back_as_it_was(connector_id: str, number: int) -> None:
    assert decode_slot_key(slot_key(connector_id, number)) == (connector_id, number)


@pytest.mark.parametrize(
    "key",
    [
        *(ID_KEY_KEY, b"", b"c", b"c\0", b"c\0x", b"\xff\0" + b"1", b"c\0" + b"9" * 5000),
        # No name; what comes after it would fit no checkpoint; a number to Python only.
        *(b"\0" + b"1", b"c\0%d" % (2**62 + 1), "c\0٣".encode(), b"c\0-5", b"c\0 5"),
    ],
)
def test_what_is_no_slots_key_is_malformed(key: bytes) -> None:
    with pytest.raises(Malformed):
        decode_slot_key(key)


stranger_headers = st.lists(
    st.tuples(st.sampled_from(["schema", "dead_id"]), st.none() | st.binary(max_size=5))
    | st.sampled_from([("schema", b"gap/1"), ("schema", b"dead_letter/1")])
)
stranger_bodies = st.dictionaries(
    st.sampled_from(
        [
            *("platform", "connector_id", "scope", "reason", "recorded_at", "from_at", "to_at"),
            *("reference", "fetched_at", "size_bytes", "sha256", "part", "parts"),
            *("encoding", "data"),
        ]
    ),
    json_values,
)


@given(
    st.none() | st.binary(max_size=60) | (json_values | stranger_bodies).map(orjson.dumps),
    stranger_headers,
    st.none() | st.binary(max_size=5),
)
def test_any_record_is_what_it_says_or_malformed(value: Any, headers: Any, key: Any) -> None:
    """Whatever a stranger writes into the topics of gaps and dead letters."""
    record = SimpleNamespace(
        topic="t", partition=1, offset=2, key=key, value=value, headers=headers
    )
    for decode in (decode_gap, decode_dead_part):
        try:
            decode(record)
        except Malformed as error:
            said = str(NotUnderstood.of(record, error))
            assert said.startswith("t[1]@2, ")
            assert said.isprintable()


@pytest.mark.parametrize(
    "change",
    [
        *({"version": "7"}, {"version": -1}, {"version": 2**63}, {"epoch": True}),
        *({"epoch": -1}, {"epoch": 2**63}, {"platform": 7}, {"last_ts": None}),
        *({"cursor": 5}, {"last_ts": 5}, {"complete_through": "soon"}, {"connector_id": "b"}),
        *({"seen": []}, {"seen": {"from": 1}}, {"seen": {"from": 1e400, "count": 1}}),
    ],
)
def test_a_checkpoint_of_another_shape_is_malformed(change: dict[str, Any]) -> None:
    """Types, too: what compares versions must not be the first to notice."""
    checkpoint = Checkpoint("a", 7, 1, datetime(2026, 1, 1, tzinfo=UTC))
    body = body_of(checkpoint_record(ORIGIN, checkpoint, PageSummary()))
    assert decode_checkpoint(orjson.dumps(body), b"a") == checkpoint
    with pytest.raises(Malformed):
        decode_checkpoint(json.dumps({**body, **change}).encode(), b"a")


@pytest.mark.parametrize(
    "lacks",
    [
        *("connector_id", "platform", "version", "epoch"),
        *("last_ts", "cursor", "complete_through", "seen"),
    ],
)
def test_only_what_older_versions_did_not_write_may_be_missing(lacks: str) -> None:
    """A cursor that is not there is none that is None: the connector would begin anew."""
    checkpoint = Checkpoint("a", 7, 1, AT, {"n": 1}, AT, Seen(1, 2))
    body = body_of(checkpoint_record(ORIGIN, checkpoint, PageSummary()))
    del body["collected_from"]
    assert decode_checkpoint(orjson.dumps(body)) == checkpoint
    del body[lacks]
    with pytest.raises(Malformed):
        decode_checkpoint(orjson.dumps(body))


@given(st.binary(max_size=60) | json_values.map(orjson.dumps))
def test_any_bytes_are_a_checkpoint_or_malformed(value: bytes) -> None:
    with pytest.raises(Malformed):
        decode_checkpoint(value)


# Permissions


def test_a_grant_keeps_its_fields_and_its_time() -> None:
    grant = PermissionSnapshot("acme", "ada", "vault", "READ", "role", "admins", None, {"a": 1})
    body, altered = grant_body(grant, AT)
    assert altered is None
    record = snapshot_record(ORIGIN, "s1", "grant", body)
    assert (record.topic, record.key) == ("verity.permissions.raw.acme", b"acme-1")
    headers = dict(record.headers)
    assert (headers["schema"], headers["snapshot_id"], headers["record"]) == (
        *(b"permission/1", b"s1", b"grant"),
    )
    assert body_of(record) == {
        "record": "grant",
        "snapshot_id": "s1",
        "platform": "acme",
        "principal_ref": "ada",
        "asset_ref": "vault",
        "privilege": "READ",
        "grant_mechanism": "role",
        "granted_via": "admins",
        "snapshot_at": "2026-01-31T23:59:59.000000Z",
        "raw_payload": {"a": 1},
    }


def test_a_grant_that_had_to_be_altered_says_so() -> None:
    at = AT - timedelta(days=1)
    grant = PermissionSnapshot(
        "acme", "ada", "vault", "READ", "role", None, at, {"n": float("nan")}
    )
    body, altered = grant_body(grant, AT)
    assert body["snapshot_at"] == "2026-01-30T23:59:59.000000Z"
    assert altered is not None
    record = snapshot_record(ORIGIN, "s1", "grant", body, altered)
    assert dict(record.headers)["altered"] == altered
    assert "altered" not in dict(snapshot_record(ORIGIN, "s1", "grant", body).headers)


def test_a_snapshot_is_read_as_it_was_written() -> None:
    result = SnapshotResult("s1", AT, 2, 1, ["sales"], [SnapshotGap("hr", "denied")])
    ended_at = AT + timedelta(minutes=1)
    grant = PermissionSnapshot("acme", "ada", "vault", "READ", "role", "admins", AT, {"a": 1})
    records = [
        start_record(ORIGIN, result),
        snapshot_record(ORIGIN, "s1", "grant", grant_body(grant, AT)[0]),
        end_record(ORIGIN, result, ended_at),
    ]
    about = ("s1", "acme-1", "acme", AT)
    scopes = ("sales", "hr"), {"hr": "denied"}
    assert [decode_permission(record.value or b"") for record in records] == [
        SnapshotStart(*about),
        Grant("s1", grant),
        SnapshotEnd(*about, ended_at, False, 2, 1, *scopes),
    ]
    kinds = [dict(record.headers)["record"] for record in records]
    assert kinds == [b"start", b"grant", b"end"]


@pytest.mark.parametrize(
    ("dead_count", "gaps", "is_complete"),
    [
        (0, [], True),
        (1, [], False),
        (0, [SnapshotGap("hr", "denied")], False),
        (1, [SnapshotGap("hr", "denied")], False),
    ],
)
def test_no_revocation_is_read_out_of_what_lacks_something(
    dead_count: int, gaps: list[SnapshotGap], is_complete: bool
) -> None:
    result = SnapshotResult("s1", AT, 2, dead_count, ["sales"], gaps)
    end = decode_permission(end_record(ORIGIN, result, AT).value or b"")
    assert isinstance(end, SnapshotEnd)
    assert end.is_complete is result.is_complete is is_complete


@pytest.mark.parametrize("record", ["begin", "", None, 7])
def test_a_permission_record_of_another_kind_is_malformed(record: Any) -> None:
    result = SnapshotResult("s1", AT)
    body = body_of(end_record(ORIGIN, result, AT))
    with pytest.raises(Malformed):
        decode_permission(orjson.dumps({**body, "record": record}))
