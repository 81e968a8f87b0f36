"""Times: what is read, what is refused, and that both ways lead back."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from verity_sdk.errors import Malformed
from verity_sdk.times import as_utc, format_utc, parse_utc

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-01-31T12:00:00Z", NOON),
        ("2026-01-31t12:00:00z", NOON),
        ("2026-01-31T12:00:00+00:00", NOON),
        ("2026-01-31T12:00:00-00:00", NOON),
        ("2026-01-31 12:00:00", NOON),
        ("2026-01-31 12:00:00 +0000", NOON),
        ("2026-01-31T12:00Z", NOON),
        ("2026-01-31T14:30:00+02:30", NOON),
        ("2026-01-31T10:00:00-02", NOON),
        ("2026-01-31T12:00:00.5Z", NOON.replace(microsecond=500_000)),
        ("2026-01-31T12:00:00,123Z", NOON.replace(microsecond=123_000)),
        ("2026-01-31T12:00:00.1234567Z", NOON.replace(microsecond=123_456)),
        ("2026-01-31T12:00:00.999999999999Z", NOON.replace(microsecond=999_999)),
        ("2026-01-31T24:00:00Z", datetime(2026, 2, 1, tzinfo=UTC)),
        ("2026-12-31T24:00:00.0000000+01:00", datetime(2026, 12, 31, 23, tzinfo=UTC)),
        ("9999-12-31T23:59:59.9999999Z", datetime.max.replace(tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime.min.replace(tzinfo=UTC)),
    ],
)
def test_forms_that_are_read(text: str, at: datetime) -> None:
    parsed = parse_utc(text)
    assert parsed == at
    assert parsed.tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2026-01-31",
        "2026-W05-6T12:00:00Z",
        "20260131T120000Z",
        "2026-02-30T12:00:00Z",
        "2026-01-31T12:00:60Z",
        "2026-01-31T25:00:00Z",
        "2026-01-31T24:00:01Z",
        "2026-01-31T24:00:00.0000001Z",
        "2026-01-31T12:00:00.Z",
        "2026-01-31T12:00:00+24:00",
        "2026-01-31T12:00:00+01:60",
        "2026-01-31T12:00:00Z\n",
        "２０２６-01-31T12:00:00Z",
        "9999-12-31T24:00:00Z",
        "9999-12-31T23:59:59-01:00",
        "0001-01-01T00:00:00+00:01",
        "0000-01-01T00:00:00Z",
    ],
)
def test_anything_else_is_one_malformed_that_shows_the_text(text: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse_utc(text)
    assert repr(text) in str(caught.value)


def test_a_text_without_end_is_shown_shortened() -> None:
    with pytest.raises(Malformed) as caught:
        parse_utc("x" * 1_000_000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", [None, 5, b"2026-01-31T12:00:00Z", NOON])
def test_what_is_no_text_is_malformed(value: object) -> None:
    with pytest.raises(Malformed):
        parse_utc(value)  # type: ignore[arg-type]  # the fault under test


@given(
    st.text() | st.from_regex(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?")
)
@example("9999-12-31T23:59:59-23:59")
def test_any_text_is_read_or_malformed(text: str) -> None:
    try:
        parsed = parse_utc(text)
    except Malformed:
        return
    assert parsed.tzinfo is UTC


@given(st.datetimes(timezones=st.timezones() | st.none()))
def test_what_is_written_reads_back_as_the_same_time(at: datetime) -> None:
    try:
        utc = as_utc(at)
    except Malformed:
        return
    text = format_utc(at)
    assert len(text) == len("2026-01-31T12:00:00.000000Z")
    assert text.endswith("Z")
    assert parse_utc(text) == utc


@given(st.datetimes(timezones=st.just(UTC)), st.datetimes(timezones=st.just(UTC)))
def test_texts_sort_as_their_times(one: datetime, other: datetime) -> None:
    assert (format_utc(one) < format_utc(other)) == (one < other)


def test_microseconds_are_always_written() -> None:
    assert format_utc(NOON) == "2026-01-31T12:00:00.000000Z"
    assert format_utc(datetime(33, 1, 1, tzinfo=UTC)) == "0033-01-01T00:00:00.000000Z"


class NoOffset(tzinfo):
    """A zone that does not know its offset; Python calls such a time naive."""

    def utcoffset(self, _: datetime | None) -> None:
        return None

    def dst(self, _: datetime | None) -> None:
        return None

    def tzname(self, _: datetime | None) -> None:
        return None


class FailingZone(tzinfo):
    """A zone whose code fails, shown or asked."""

    def __repr__(self) -> str:
        raise RuntimeError("it can't be shown")

    def utcoffset(self, at: datetime | None) -> timedelta:
        raise RuntimeError("it has no idea")

    def dst(self, _: datetime | None) -> None:
        return None

    def tzname(self, _: datetime | None) -> None:
        return None


@pytest.mark.parametrize("zone", [None, NoOffset()])
def test_a_naive_time_is_taken_as_utc_whatever_the_machines_zone(
    zone: tzinfo | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    monkeypatch.setenv("TZ", "America/St_Johns")
    time.tzset()
    try:
        assert as_utc(datetime(2026, 1, 31, 12, tzinfo=zone)) == NOON
    finally:
        monkeypatch.undo()
        time.tzset()


def test_an_aware_time_is_converted() -> None:
    assert as_utc(datetime(2026, 1, 31, 13, tzinfo=ZoneInfo("Europe/Berlin"))) == NOON
    assert as_utc(NOON) is NOON


@pytest.mark.parametrize(
    "value",
    [
        None,
        "2026-01-31T12:00:00Z",
        date(2026, 1, 31),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
        datetime(2026, 1, 31, tzinfo=FailingZone()),
    ],
)
def test_what_is_no_time_in_utc_is_malformed(value: object) -> None:
    with pytest.raises(Malformed):
        as_utc(value)  # type: ignore[arg-type]  # the fault under test
