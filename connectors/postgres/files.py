"""Where the reader stands in the log files, and which file comes next: pure decisions.

Files follow each other by name: log_filename is required to be chronological. One exception
is handled: when daylight saving ends in log_timezone, an hour of names repeats and a newer
file may sort before an older one. Its modification time gives it away.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from verity_sdk.errors import Misconfigured

CURSOR_VERSION = 1
# A file that was last written this long before the start holds nothing newer. The margin covers
# the difference between the clocks of two machines.
CLOCK_MARGIN = timedelta(hours=1)
# Lines stand in the order in which they were written, not quite in that of their times, which
# each session takes by itself just before.
LINE_ORDER_MARGIN = timedelta(seconds=1)

_FILE_NAME = re.compile(r"[A-Za-z0-9_.-]+\.json")
_DIRECTIVE = re.compile(r"%(.)")
_CHRONOLOGICAL = ("YmdHMS", "YjHMS", "s")


@dataclass(frozen=True, slots=True)
class LogFile:
    """A log file as listed.

    Attributes:
        name: Without a folder.
        size: In bytes.
        modified_at: When it was last written, aware UTC; whole seconds in some sources.
    """

    name: str
    size: int
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class Place:
    """The next byte to read; what the connector's cursor stores.

    Attributes:
        file: The file.
        offset: Bytes of it that are done.
        newest_at: The newest time read so far, aware UTC, or None.
        not_before: Lines older than this are skipped until one that is not was read.
        done_name: The last name done when a file that sorts before it is being read, else "".
        is_inside_line: Whether the offset lies inside a line too long to keep in memory.
    """

    file: str
    offset: int = 0
    newest_at: datetime | None = None
    not_before: datetime | None = None
    done_name: str = ""
    is_inside_line: bool = False

    def cursor(self) -> dict[str, Any]:
        """The place as a JSON object."""
        cursor: dict[str, Any] = {"v": CURSOR_VERSION, "file": self.file, "offset": self.offset}
        if self.newest_at is not None:
            cursor["newest_at"] = self.newest_at.isoformat()
        if self.not_before is not None:
            cursor["not_before"] = self.not_before.isoformat()
        if self.done_name:
            cursor["done_name"] = self.done_name
        if self.is_inside_line:
            cursor["is_inside_line"] = True
        return cursor

    def enter(self, name: str) -> Place:
        """The start of another file."""
        highest = max(self.done_name, self.file)
        is_late = name < highest
        return Place(
            file=name,
            newest_at=self.newest_at,
            # The server may have gone on in a file that was read before: its old lines are done.
            not_before=self.newest_at - LINE_ORDER_MARGIN
            if is_late and self.newest_at is not None
            else self.not_before,
            done_name=highest if is_late else "",
        )

    def restart(self) -> Place:
        """The start of the same file, whose content is another now."""
        return replace(self, offset=0, is_inside_line=False)


def place_of(cursor: Mapping[str, Any]) -> Place:
    """The place that a cursor stores.

    Raises:
        Misconfigured: The cursor is of a newer version, or none of this connector's.
    """
    if cursor.get("v") != CURSOR_VERSION:
        raise Misconfigured(
            f"the cursor has version {cursor.get('v')!r}, this connector reads {CURSOR_VERSION}"
        )
    file, offset = cursor.get("file"), cursor.get("offset")
    is_whole = (
        isinstance(file, str)
        and _FILE_NAME.fullmatch(file) is not None
        and isinstance(offset, int)
        and offset >= 0
    )
    if not is_whole:
        raise Misconfigured("the cursor names no file and offset")
    return Place(
        file=str(file),
        offset=int(offset or 0),
        newest_at=_time(cursor.get("newest_at")),
        not_before=_time(cursor.get("not_before")),
        done_name=str(cursor.get("done_name") or ""),
        is_inside_line=cursor.get("is_inside_line") is True,
    )


def _time(value: Any) -> datetime | None:
    if value is None:
        return None
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except (TypeError, ValueError) as error:
        raise Misconfigured("the cursor has a time that is none") from error


def is_log_file(name: str) -> bool:
    """Whether a file of the log directory is a jsonlog."""
    return _FILE_NAME.fullmatch(name) is not None and ".." not in name


def first_file(files: Sequence[LogFile], since: datetime) -> LogFile | None:
    """The oldest file that may hold lines from `since` on; the newest if none does."""
    ordered = sorted(files, key=lambda file: file.name)
    for file in ordered:
        if file.modified_at >= since - CLOCK_MARGIN:
            return file
    return ordered[-1] if ordered else None


def newer_file(files: Sequence[LogFile], place: Place) -> LogFile | None:
    """The next file by name, or None while the one at `place` is the newest."""
    highest = max(place.done_name, place.file)
    newer = [file for file in files if file.name > highest]
    return min(newer, key=lambda file: file.name, default=None)


def perhaps_late_files(files: Sequence[LogFile], place: Place) -> Sequence[LogFile]:
    """Files that sort before one already done but were written after the one at `place`.

    Usually there are none. A file that was copied or touched is among them too, so only a look
    at its last line tells; to leave the newest file for a touched one would lose the former's end.
    """
    highest = max(place.done_name, place.file)
    present = next((file for file in files if file.name == place.file), None)
    if present is None:
        return ()
    late = [
        file
        for file in files
        if file.name < highest
        and file.name != place.file
        and file.modified_at > present.modified_at
    ]
    return sorted(late, key=lambda file: (file.modified_at, file.name))


def is_chronological(log_filename: str) -> bool:
    """Whether names made from this pattern of log_filename sort in the order of their time.

    A name without a time is one file for ever, which is in order too.
    """
    letters = "".join(_DIRECTIVE.findall(log_filename.replace("%%", "")))
    letters = letters.replace("F", "Ymd").replace("T", "HMS")
    return not letters or any(order.startswith(letters) for order in _CHRONOLOGICAL)
