"""Following the log through its files: no byte is lost, whatever happens to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.postgres.files import (
    LogFile,
    Place,
    first_file,
    is_chronological,
    newer_file,
    perhaps_late_files,
    place_of,
)
from connectors.postgres.tail import Portion, Tail, complete_through
from verity_sdk.errors import Misconfigured

START = datetime(2026, 11, 24, 12, tzinfo=UTC)
LONG_AGO = START - timedelta(days=365)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


class FakeLog:
    """A `LogReader` over bytes; `before_read` lets the server write in between."""

    def __init__(self, **files: bytes) -> None:
        self.files = {f"{name}.json": data for name, data in files.items()}
        self.modified = {name: at(index) for index, name in enumerate(sorted(self.files))}
        self.seconds = 100.0
        self.before_read: Callable[[], None] = lambda: None

    async def now(self) -> datetime:
        self.seconds += 1
        return at(self.seconds)

    async def list_files(self) -> Sequence[LogFile]:
        return [
            LogFile(name, len(data), self.modified.get(name, at(self.seconds)))
            for name, data in reversed(self.files.items())
        ]

    async def read(self, name: str, offset: int, length: int) -> bytes | None:
        self.before_read()
        data = self.files.get(name)
        return None if data is None else data[offset : offset + length]


def time_of(line: bytes) -> datetime | None:
    """Lines of these tests are numbers of seconds, perhaps with words behind."""
    try:
        return at(float(line.split()[0]))
    except (ValueError, IndexError, OverflowError):
        return None


def run(
    log: FakeLog,
    place: Place | None = None,
    *,
    records: int = 100,
    size: int = 1000,
    longest: int = 10_000,
    since: datetime = LONG_AGO,
) -> list[Portion]:
    async def collect() -> list[Portion]:
        tail = Tail(log, place, time_of, records, size, longest)
        return [portion async for portion in tail.portions(since)]

    # Nothing waits here, and a loop for each of many thousand calls would cost most of the time.
    try:
        collect().send(None)
    except StopIteration as ended:
        portions: list[Portion] = ended.value
        return portions
    raise AssertionError("the reader waits for something besides its log")


def lines_of(portions: Sequence[Portion]) -> list[bytes]:
    return [line for portion in portions for line in portion.lines]


def test_lines_of_all_files_come_in_order_and_the_end_is_reported() -> None:
    log = FakeLog(a=b"1\n2\n", b=b"", c=b"3\n")
    portions = run(log)
    assert lines_of(portions) == [b"1\n", b"2\n", b"3\n"]
    assert portions[-1].end == Place("c.json", 2, newest_at=at(3))
    assert portions[-1].caught_up_at is not None
    assert not any(portion.gaps or portion.rejected for portion in portions)


def test_an_empty_directory_gives_nothing() -> None:
    assert run(FakeLog()) == []


def test_a_quiet_log_still_says_how_far_it_is_complete() -> None:
    log = FakeLog(a=b"1\n")
    (portion,) = run(log, Place("a.json", 2))
    assert portion.lines == ()
    assert portion.caught_up_at == at(101)
    assert complete_through(portion) == at(100)


def test_a_cut_last_line_of_the_newest_file_waits() -> None:
    log = FakeLog(a=b"1\n2")
    portions = run(log)
    assert lines_of(portions) == [b"1\n"]
    assert portions[-1].end.offset == 2
    # The cut line was perhaps logged before now: nothing later than line 1 is complete.
    assert portions[-1].caught_up_at is None
    log.files["a.json"] += b"5\n"
    assert lines_of(run(log, portions[-1].end)) == [b"25\n"]


def test_a_cut_last_line_that_is_followed_by_a_newer_file_is_rejected() -> None:
    portions = run(FakeLog(a=b"1\nhalf a li", b=b"2\n"))
    assert lines_of(portions) == [b"1\n", b"2\n"]
    (rejected,) = [record for portion in portions for record in portion.rejected]
    assert (rejected.data, rejected.reference) == (b"half a li", "a.json:2")


class LiveLog(FakeLog):
    """A log whose server acts between any two questions that the reader asks."""

    def __init__(self, acts: dict[int, str]) -> None:
        super().__init__(a=b"1\n")
        self.acts = acts
        self.step = 0
        self.current = "a.json"
        self.written = [b"1\n"]

    def tick(self) -> None:
        self.seconds += 1
        acts = self.acts.get(self.step, "")
        self.step += 1
        for act in acts.split(" and "):
            self.do(act)

    def do(self, act: str) -> None:
        if act == "rotate":
            self.current = f"{chr(ord(self.current[0]) + 1)}.json"
            self.files[self.current] = b""
        elif act == "write":
            line = b"%d\n" % self.seconds
            self.files[self.current] += line
            self.written.append(line)
        elif act == "write half":
            self.files[self.current] += b"%d" % self.seconds
        elif act == "other half":
            self.files[self.current] += b" words\n"

    async def now(self) -> datetime:
        self.tick()
        return at(self.seconds)

    async def list_files(self) -> Sequence[LogFile]:
        self.tick()
        return await super().list_files()

    async def read(self, name: str, offset: int, length: int) -> bytes | None:
        self.tick()
        return await super().read(name, offset, length)


_ACTS = ["write", "rotate", "write and rotate", "rotate and write"]


@pytest.mark.parametrize("second", _ACTS)
@pytest.mark.parametrize("first", _ACTS)
def test_whatever_the_server_does_meanwhile_nothing_is_lost_nor_promised_too_early(
    first: str, second: str
) -> None:
    """The server acts between any two questions; a second pass goes on from the first's cursor.

    This is what the order of the last questions (time, list, read) is for.
    """
    for one in range(12):
        for two in range(one + 1, 13):
            for three in range(two + 1, 14):
                log = LiveLog({one: first, two: second, three: "write"})
                portions = run(log)
                read = lines_of(portions)
                promise = portions[-1].caught_up_at
                assert promise is not None
                late = [line for line in log.written[len(read) :] if time_of(line) <= promise]  # type: ignore[operator]
                assert not late, (one, two, three)
                log.acts = {}
                again = run(log, portions[-1].end)
                assert read + lines_of(again) == log.written, (one, two, three)
                assert not any(p.gaps or p.rejected for p in [*portions, *again])


def test_a_pass_ends_although_the_server_logs_what_it_is_asked() -> None:
    """Without the settings of the installer every question writes a line that can be read."""
    log = LiveLog(dict.fromkeys(range(10_000), "write"))
    portions = run(log, size=10, records=1)
    assert log.step < 100
    assert portions[-1].caught_up_at is not None
    log.acts = {}
    assert lines_of(portions) + lines_of(run(log, portions[-1].end)) == log.written


@pytest.mark.parametrize("end", ["other half", "other half and rotate", "other half and write"])
def test_a_line_that_is_written_in_two_halves_is_read_whole(end: str) -> None:
    for one in range(12):
        for two in range(one + 1, 14):
            log = LiveLog({one: "write half", two: end})
            portions = run(log)
            half_is_waiting = one < log.step <= two
            promise = portions[-1].caught_up_at
            if half_is_waiting:
                log.step = two
            again = run(log, portions[-1].end)
            if promise is not None:
                assert all(time_of(line) >= promise for line in lines_of(again))  # type: ignore[operator]
            everything = b"".join(log.files[name] for name in sorted(log.files))
            read = b"".join(lines_of(portions) + lines_of(again))
            assert everything.startswith(read), (one, two)
            assert b"\n" not in everything[len(read) :], (one, two)
            assert not any(p.gaps or p.rejected for p in [*portions, *again]), (one, two)


def test_inside_a_line_that_is_too_long_nothing_is_promised() -> None:
    portions = run(FakeLog(a=b"1\n" + b"x" * 3000), size=5000, longest=1024)
    assert portions[-1].end.is_inside_line
    assert portions[-1].caught_up_at is None


def test_a_late_file_is_found_when_all_else_was_read_before() -> None:
    log = FakeLog(f0245=b"2\n", f0210=b"3\n")
    log.modified = {"f0245.json": at(2), "f0210.json": at(3)}
    assert lines_of(run(log, Place("f0245.json", 2, newest_at=at(2)))) == [b"3\n"]


def test_a_file_that_has_gone_is_a_gap_up_to_the_next_one() -> None:
    log = FakeLog(c=b"30\n31\n", d=b"40\n")
    place = Place("b.json", 77, newest_at=at(22))
    portions = run(log, place)
    assert lines_of(portions) == [b"30\n", b"31\n", b"40\n"]
    (gap,) = [gap for portion in portions for gap in portion.gaps]
    assert (gap.from_at, gap.to_at, gap.scope) == (at(22), at(30), "b.json")


def test_a_gap_is_told_once_and_a_log_without_newer_files_is_waited_for() -> None:
    log = FakeLog(a=b"1\n")
    assert run(log, Place("b.json", 7, newest_at=at(5))) == []
    log.files["c.json"] = b"9\n"
    portions = run(log, Place("b.json", 7, newest_at=at(5)))
    assert sum(len(portion.gaps) for portion in portions) == 1


def test_a_file_that_goes_while_it_is_read_is_a_gap() -> None:
    log = FakeLog(a=b"1\n2\n3\n", b=b"9\n")

    def gone() -> None:
        log.files.pop("a.json", None)

    def remove() -> None:
        log.before_read = gone

    log.before_read = remove
    portions = run(log, size=3)
    assert lines_of(portions) == [b"1\n", b"9\n"]
    assert [gap.scope for portion in portions for gap in portion.gaps] == ["a.json"]
    # The half line that was in memory is kept.
    assert [record.data for portion in portions for record in portion.rejected] == [b"2"]


@pytest.mark.parametrize("content", [b"50\n", b"50\n51\n52\n53\n"], ids=["shorter", "longer"])
def test_a_truncated_or_replaced_file_is_a_gap_and_is_read_from_its_start(content: bytes) -> None:
    log = FakeLog(a=content)
    portions = run(log, Place("a.json", 5, newest_at=at(7)))
    assert lines_of(portions) == content.splitlines(keepends=True)
    (gap,) = [gap for portion in portions for gap in portion.gaps]
    assert (gap.from_at, gap.to_at, gap.scope) == (at(7), at(50), "a.json")


def test_a_line_too_long_for_memory_is_rejected_in_pieces_that_add_up() -> None:
    long = b"x" * 5000 + b"\n"
    log = FakeLog(a=b"1\n" + long + b"2\n")
    portions = run(log, size=100, longest=1024)
    assert lines_of(portions) == [b"1\n", b"2\n"]
    pieces = [record for portion in portions for record in portion.rejected]
    assert b"".join(piece.data for piece in pieces) == long
    assert max(len(piece.data) for piece in pieces) <= 1024 + 100
    # From every place on the way, the rest comes again, and nothing else.
    for index, portion in enumerate(portions):
        again = run(
            log, place_of(json.loads(json.dumps(portion.end.cursor()))), size=77, longest=1024
        )
        assert lines_of(again) == lines_of(portions[index + 1 :])
        rest = b"".join(r.data for p in portions[index + 1 :] for r in p.rejected)
        assert b"".join(r.data for p in again for r in p.rejected) == rest


def test_the_start_is_chosen_by_time_and_older_lines_are_marked_to_be_skipped() -> None:
    log = FakeLog(a=b"1\n", b=b"2\n")
    log.modified = {"a.json": at(-9000), "b.json": at(2)}
    portions = run(log, since=at(2))
    assert lines_of(portions) == [b"2\n"]
    assert portions[0].start.not_before == at(2)
    assert portions[-1].end.not_before is None, "reached"


def test_the_mark_of_the_start_survives_a_restart_before_it_is_reached() -> None:
    log = FakeLog(a=b"1\n2\n3\n4\n")
    portions = run(log, records=1, since=at(3))
    assert place_of(portions[0].end.cursor()).not_before == at(3)
    assert place_of(portions[3].end.cursor()).not_before is None


def test_names_that_repeat_when_summer_ends_are_read_by_the_time_they_were_written() -> None:
    """Berlin: 0245 (summer), then 0210 (winter) which sorts before it, then 0310."""
    log = FakeLog(f0145=b"1\n", f0245=b"2\n", f0210=b"3\n", f0310=b"4\n")
    for name, seconds in [("f0145", 1), ("f0245", 2), ("f0210", 3), ("f0310", 4)]:
        log.modified[f"{name}.json"] = at(seconds)
    place = Place("f0245.json", 0, newest_at=at(1))
    portions = run(log, place)
    assert lines_of(portions) == [b"2\n", b"3\n", b"4\n"]
    assert not any(portion.gaps for portion in portions)


def test_an_old_file_that_goes_on_when_summer_ends_is_read_from_where_it_was_left() -> None:
    """Berlin, one file an hour and one more by size: 0200 (summer), 0230, then 0200 again."""
    log = FakeLog(f0200=b"0\n9000\n", f0230=b"2\n", f0300=b"9001\n")
    for name, seconds in [("f0230", 2), ("f0200", 9000), ("f0300", 9001)]:
        log.modified[f"{name}.json"] = at(seconds)
    portions = run(log, Place("f0230.json", 0, newest_at=at(1)), records=1)
    assert [
        line
        for portion in portions
        for line in portion.lines
        if not portion.start.not_before or time_of(line) >= portion.start.not_before  # type: ignore[operator]
    ] == [b"2\n", b"9000\n", b"9001\n"]


def test_a_line_that_is_dated_ahead_moves_nothing() -> None:
    """The server's clock stood wrong for a moment: no time to come is complete or was read."""
    log = FakeLog(a=b"1\n9000\n2\n", b=b"3\n")
    portions = run(log, records=1)
    assert [portion.end.newest_at for portion in portions[:4]] == [at(1), at(1), at(2), at(3)]
    assert [complete_through(portion) for portion in portions[:4]] == [at(0), at(0), at(1), at(2)]


def test_a_line_that_is_dated_ahead_hides_no_late_file() -> None:
    log = FakeLog(f0245=b"2\n9000\n", f0210=b"3\n4\n")
    log.modified = {"f0245.json": at(2), "f0210.json": at(4)}
    for place in (
        Place("f0245.json", 0, newest_at=at(1)),
        # As an older version may have stored it.
        Place("f0245.json", 0, newest_at=at(9000)),
    ):
        portions = run(log, place, records=1)
        assert [
            line
            for portion in portions
            for line in portion.lines
            if not portion.start.not_before or time_of(line) >= portion.start.not_before  # type: ignore[operator]
        ] == [b"2\n", b"9000\n", b"3\n", b"4\n"]


def test_a_place_that_lies_ahead_is_not_known_any_more() -> None:
    log = FakeLog(a=b"1\nwords\n")
    portions = run(log, Place("a.json", 2, newest_at=at(9000)))
    assert portions[0].end.newest_at is None
    assert complete_through(portions[0]) is None
    assert portions[0].lines == [b"words\n"]


def test_an_old_file_that_was_touched_is_left_alone() -> None:
    log = FakeLog(a=b"1\n", b=b"20\n", c=b"30\n")
    log.modified = {"a.json": at(99), "b.json": at(20), "c.json": at(30)}
    portions = run(log, Place("b.json", 0, newest_at=at(10)))
    assert lines_of(portions) == [b"20\n", b"30\n"]
    log.files["c.json"] += b"31\n"
    assert lines_of(run(log, portions[-1].end)) == [b"31\n"]


_FILES = st.lists(st.lists(st.binary(max_size=12), max_size=8), min_size=1, max_size=3)


@settings(deadline=None)  # a busy machine is no failure
@given(
    _FILES,
    st.booleans(),
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(8, 60),
)
def test_every_byte_is_a_line_or_rejected_for_any_chunks_and_any_restart(
    parts: list[list[bytes]], is_cut: bool, records: int, size: int, longest: int
) -> None:
    contents = [b"\n".join(part) + (b"" if is_cut else b"\n") for part in parts]
    log = FakeLog(**{f"f{index}": data for index, data in enumerate(contents)})
    portions = run(log, records=records, size=size, longest=longest)

    def taken(some: Sequence[Portion], name: str) -> bytes:
        return b"".join(
            b"".join(portion.lines) + b"".join(record.data for record in portion.rejected)
            for portion in some
            if portion.start.file == name
        )

    last = f"f{len(contents) - 1}.json"
    for name, data in log.files.items():
        got = taken(portions, name)
        assert data.startswith(got)
        if name != last:
            assert got == data
        else:  # what waits is an incomplete line
            assert b"\n" not in data[len(got) :]
    assert not any(portion.gaps for portion in portions)
    for index, portion in enumerate(portions):
        place = place_of(json.loads(json.dumps(portion.end.cursor())))
        again = run(log, place, records=records, size=size + 3, longest=longest)
        for name in log.files:
            fewer, more = sorted([taken(again, name), taken(portions[index + 1 :], name)], key=len)
            assert more.startswith(fewer)
            # Only of a line that is too long and has no end yet may more be out or less.
            assert more == fewer or (name == last and b"\n" not in more[len(fewer) :])


def test_only_the_cursor_that_this_version_wrote_is_read() -> None:
    place = Place("a.json", 5, at(1), at(2), "b.json", is_inside_line=True)
    assert place_of(json.loads(json.dumps(place.cursor()))) == place
    for wrong in [
        {"v": 2, "file": "a.json", "offset": 0},
        {"v": 1, "file": "../a.json", "offset": 0},
        {"v": 1, "file": "a.json", "offset": -1},
        {"v": 1, "file": "a.json"},
        {"v": 1, "file": "a.json", "offset": 0, "newest_at": "yesterday"},
        {},
    ]:
        with pytest.raises(Misconfigured):
            place_of(wrong)


def test_first_newer_and_late_files() -> None:
    files = [LogFile(name, 1, at(seconds)) for name, seconds in [("b", 20), ("a", 10), ("c", 30)]]
    hour = timedelta(hours=1)
    assert first_file(files, LONG_AGO) == files[1]
    assert first_file(files, at(15) + hour) == files[0]
    assert first_file(files, at(9999)) == files[2]
    assert first_file([], LONG_AGO) is None
    assert newer_file(files, Place("a")) == files[0]
    assert newer_file(files, Place("aa")) == files[0]
    assert newer_file(files, Place("a", done_name="b")) == files[2]
    assert newer_file(files, Place("c")) is None
    assert perhaps_late_files(files, Place("b")) == []
    touched = [replace(file, modified_at=at(25)) if file.name == "a" else file for file in files]
    assert perhaps_late_files(touched, Place("b")) == [touched[1]]
    assert perhaps_late_files(touched, Place("c")) == []


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("postgresql-%Y-%m-%d_%H%M%S.log", True),
        ("%Y%m%d.log", True),
        ("pg-%F_%T.log", True),
        ("pg-%s.log", True),
        ("pg-100%%-%Y.log", True),
        ("postgresql.log", True),
        ("postgresql-%a.log", False),
        ("postgresql-%H.log", False),
        ("postgresql-%d-%m-%Y.log", False),
        ("postgresql-%b-%d.log", False),
    ],
)
def test_log_filename_must_sort_by_time(pattern: str, expected: bool) -> None:
    assert is_chronological(pattern) is expected
