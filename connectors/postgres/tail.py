"""Following the log through its files: which bytes are lines, and when the end is reached.

It reads through a `LogReader`, knows nothing of where that reads from, and does not look
into the lines beyond their newline.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from connectors.postgres.files import (
    LINE_ORDER_MARGIN,
    LogFile,
    Place,
    first_file,
    newer_file,
    perhaps_late_files,
)
from connectors.postgres.log_lines import split_lines
from verity_sdk.pages import Gap, RejectedRecord

PEEK_BYTES = 64 * 1024
PIECE_BYTES = 512 * 1024


class LogReader(Protocol):
    """Reads the log directory of one server.

    1. `list_files` returns every jsonlog file that exists when it is called.
    2. `read` returns the bytes at an offset, fewer than asked for at the end of the file, none
       at or past it, and None where there is no such file.
    3. What was logged before `now()` was called is seen by a `list_files` and a `read` after it.
    4. All raise Unavailable or Denied, and have then changed nothing.
    """

    async def now(self) -> datetime:
        """The time by the clock that stamps the lines, aware UTC."""

    async def list_files(self) -> Sequence[LogFile]:
        """The jsonlog files, in any order."""

    async def read(self, name: str, offset: int, length: int) -> bytes | None:
        """At most `length` bytes of a file."""


@dataclass(frozen=True, slots=True)
class Portion:
    """Consecutive lines of one file, and what was noticed on the way to them.

    Attributes:
        start: The place of the first line.
        lines: Complete lines with their newlines.
        end: The place after them.
        rejected: Bytes that are no line: a cut last line, pieces of a line that is too long.
        gaps: What is missing before them.
        caught_up_at: Set on the last portion: all that was logged up to then is out.
    """

    start: Place
    end: Place
    lines: Sequence[bytes] = ()
    rejected: Sequence[RejectedRecord] = ()
    gaps: Sequence[Gap] = ()
    caught_up_at: datetime | None = None


@dataclass(slots=True)
class Tail:
    """One pass over the log, from a place to the end of the newest file.

    Attributes:
        reader: Where it reads.
        place: Where it stands; None before the first file is chosen.
        time_of_line: When a line was logged, or None; to date gaps and to keep the newest time.
        page_records: Most lines in a portion.
        page_bytes: Most bytes of one read.
        line_bytes: Longest line kept in memory.
    """

    reader: LogReader
    place: Place | None
    time_of_line: Callable[[bytes], datetime | None]
    page_records: int
    page_bytes: int
    line_bytes: int

    async def portions(self, since: datetime) -> AsyncGenerator[Portion, None]:
        """The portions up to the end of the newest file; the last says so.

        Args:
            since: Chooses the first file where there is no place yet.
        """
        # The order is what makes caught_up_at true, here and below: first the time, then the list,
        # then the read. What was logged before `now` is in a file that was listed, and a file is
        # not written any more once the list shows a newer one.
        now = await self.reader.now()
        files = await self.reader.list_files()
        if self.place is None:
            first = first_file(files, since)
            if first is None:
                return
            self.place = Place(first.name, not_before=since)
        if self.place.newest_at is not None and self.place.newest_at > now:
            # Read while a clock stood wrong: when the lines before were logged is not known.
            self.place = replace(self.place, newest_at=None)
        gaps: list[Gap] = []
        place = await self._checked(self.place, files, gaps)
        buffer = b""  # bytes from place.offset on that are not a complete line yet
        while True:
            # Up to what was there when the list was made, and not to an end that moves: should the
            # server log what this reader asks of it, there would be no end.
            if _is_covered(place, files):
                yield Portion(place, place, gaps=tuple(gaps), caught_up_at=now)
                return
            data = await self._read(place, buffer)
            if not data:
                now = await self.reader.now()
                files = await self.reader.list_files()
                data = await self._read(place, buffer)
            if data:
                buffer += data
                read_at = await self.reader.now()
                for portion in self._portions(place, buffer, read_at):
                    yield replace(portion, gaps=tuple(gaps))
                    gaps = []
                    buffer = buffer[portion.end.offset - place.offset :]
                    place = portion.end
                continue
            following = await self._late_file(files, place) or newer_file(files, place)
            is_gone = data is None or all(file.name != place.file for file in files)
            if following is None:
                # A line that is not written to its end yet was perhaps logged before `now`.
                is_whole = not buffer and not place.is_inside_line and not is_gone
                if gaps or not is_gone:
                    yield Portion(
                        place, place, gaps=tuple(gaps), caught_up_at=now if is_whole else None
                    )
                return
            if is_gone:
                gaps.append(await self._gap(place, following.name, "the file has gone"))
            after = place.enter(following.name)
            if buffer or gaps:
                rejected = self._pieces(place, buffer, "the last line of the file is cut")
                yield Portion(place, after, rejected=rejected, gaps=tuple(gaps))
                gaps = []
            place, buffer = after, b""

    async def _late_file(self, files: Sequence[LogFile], place: Place) -> LogFile | None:
        """The first file whose last line is newer than all that was read, whatever its name."""
        for file in perhaps_late_files(files, place):
            start = max(0, file.size - PEEK_BYTES)
            data = await self.reader.read(file.name, start, PEEK_BYTES)
            lines, _ = split_lines(data or b"")
            last_at = self.time_of_line(lines[-1]) if lines else None
            if last_at is not None and place.newest_at is not None and last_at > place.newest_at:
                return file
        return None

    async def _read(self, place: Place, buffer: bytes) -> bytes | None:
        return await self.reader.read(place.file, place.offset + len(buffer), self.page_bytes)

    def _portions(self, place: Place, buffer: bytes, read_at: datetime) -> Iterator[Portion]:
        """The complete lines of the buffer, as portions; pieces of a line that is too long.

        Args:
            read_at: Everything in the buffer was logged before.
        """
        if place.is_inside_line:
            end = buffer.find(b"\n") + 1
            if not end and len(buffer) < self.line_bytes:
                return
            done = end or len(buffer)
            after = replace(place, offset=place.offset + done, is_inside_line=not end)
            yield Portion(place, after, rejected=self._long(place, buffer[:done]))
            place, buffer = after, buffer[done:]
            if not end:
                return
        lines, done = split_lines(buffer)
        for start in range(0, len(lines), self.page_records):
            group = lines[start : start + self.page_records]
            after = self._after(place, group, read_at)
            yield Portion(place, after, lines=group)
            place = after
        rest = buffer[done:]
        if len(rest) >= self.line_bytes:
            after = replace(place, offset=place.offset + len(rest), is_inside_line=True)
            yield Portion(place, after, rejected=self._long(place, rest))

    def _after(self, place: Place, lines: Sequence[bytes], read_at: datetime) -> Place:
        """The place after lines; one look at the last of them keeps the newest time.

        One that is dated ahead moves nothing: what is logged until then would be taken as read.
        """
        last_at = self.time_of_line(lines[-1])
        if last_at is None or last_at > read_at:
            return replace(place, offset=place.offset + sum(map(len, lines)))
        is_reached = place.not_before is not None and last_at >= place.not_before
        return replace(
            place,
            offset=place.offset + sum(map(len, lines)),
            newest_at=max(last_at, place.newest_at or last_at),
            not_before=None if is_reached else place.not_before,
        )

    def _long(self, place: Place, data: bytes) -> Sequence[RejectedRecord]:
        return self._pieces(place, data, f"a line longer than {self.line_bytes} bytes")

    @staticmethod
    def _pieces(place: Place, data: bytes, reason: str) -> Sequence[RejectedRecord]:
        return tuple(
            RejectedRecord(
                data[start : start + PIECE_BYTES], reason, f"{place.file}:{place.offset + start}"
            )
            for start in range(0, len(data), PIECE_BYTES)
        )

    async def _checked(self, place: Place, files: Sequence[LogFile], gaps: list[Gap]) -> Place:
        """The place, or the start of its file where the content is no longer what was read."""
        present = next((file for file in files if file.name == place.file), None)
        if present is None or place.offset == 0:
            return place
        if present.size >= place.offset:
            if place.is_inside_line:
                return place
            before = await self.reader.read(place.file, place.offset - 1, 1)
            if before == b"\n" or before is None:
                return place
        reason = "the file was truncated or replaced"
        gaps.append(await self._gap(place, place.file, reason))
        return place.restart()

    async def _gap(self, place: Place, following: str, reason: str) -> Gap:
        """From the last time read to the first that is there after the missing part."""
        data = await self.reader.read(following, 0, PEEK_BYTES)
        line, newline, _ = (data or b"").partition(b"\n")
        first_at = self.time_of_line(line) if newline else None
        return Gap(
            from_at=place.newest_at,
            to_at=first_at,
            scope=place.file,
            reason=f"{reason} before it was read to its end",
        )


def _is_covered(place: Place, files: Sequence[LogFile]) -> bool:
    """Whether all that the list shows lies before the place, in complete lines."""
    present = next((file for file in files if file.name == place.file), None)
    return (
        present is not None
        and place.offset >= present.size
        and not place.is_inside_line
        and newer_file(files, place) is None
        and not perhaps_late_files(files, place)
    )


def complete_through(portion: Portion) -> datetime | None:
    """Up to when all events are out once this portion is."""
    reached = portion.caught_up_at or portion.end.newest_at
    return reached - LINE_ORDER_MARGIN if reached is not None else None
