"""What the two sources have in common: where a pass stands, and what it hands over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urlsplit

from connectors.hr.changes import Observation
from connectors.hr.known import Known
from verity_sdk.connector_base import PermissionSnapshot
from verity_sdk.errors import Denied, Malformed, Misconfigured
from verity_sdk.http import HttpClient
from verity_sdk.pages import Cursor, Position, RejectedRecord, SnapshotGap, SnapshotScope
from verity_sdk.times import format_utc, parse_utc
from verity_sdk.values import is_utf8

CURSOR_VERSION: Final = 1
SETTLE: Final = timedelta(seconds=2)
"""Times of changes have whole seconds and are part of event ids: a second is read once it is over.
Otherwise a second change within it would look like a repeat of the first."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Asking:
    """How a source is asked.

    Attributes:
        client: For its API, authorised.
        lookback: How far before the newest change is asked again.
        portion: How many people are handed over at once.
        clock: The present, aware UTC.
    """

    client: HttpClient
    lookback: timedelta
    portion: int
    clock: Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class ReadingState:
    """A cursor without what is known of the people.

    Attributes:
        source: `bamboohr` or `scim`.
        of: Whose: the company's domain or the source's name. Another one's state would make
            leavers of everybody.
        began_at: Where the first pass was told to start, aware UTC.
        since: The newest change that was read, aware UTC.
        last_read_at: When everybody was last read completely (SCIM).
        reads: How often that was (SCIM).
        is_first: There is no baseline yet.
    """

    source: str
    of: str
    began_at: datetime
    since: datetime
    last_read_at: datetime | None = None
    reads: int = 0
    is_first: bool = False

    def cursor(self, known: str) -> dict[str, Any]:
        """The cursor, with what is known as `Known.encode` packs it."""
        last_read_at = None if self.last_read_at is None else format_utc(self.last_read_at)
        return {
            "v": CURSOR_VERSION,
            "source": self.source,
            "of": self.of,
            "began_at": format_utc(self.began_at),
            "since": format_utc(self.since),
            "last_read_at": last_read_at,
            "reads": self.reads,
            "known": known,
        }


def place_of(position: Position, source: str, of: str) -> ReadingState:
    """Where a pass starts.

    Raises:
        Misconfigured: The cursor is another source's, of another version, or was edited.
    """
    cursor = position.cursor
    if cursor is None:
        return ReadingState(source, of, position.since, position.since, is_first=True)
    if cursor.get("v") != CURSOR_VERSION:
        raise Misconfigured(f"the cursor has version {cursor.get('v')!r}, which is not known here")
    if (cursor.get("source"), cursor.get("of")) != (source, of):
        raise Misconfigured(
            f"the cursor is of {cursor.get('source')} {cursor.get('of')}, the settings say "
            f"{source} {of}: name the connector anew, or move its position by time"
        )
    return _place(cursor, source, of)


def _place(cursor: Cursor, source: str, of: str) -> ReadingState:
    try:
        last_read_at = cursor["last_read_at"]
        return ReadingState(
            source,
            of,
            began_at=parse_utc(cursor["began_at"]),
            since=parse_utc(cursor["since"]),
            last_read_at=None if last_read_at is None else parse_utc(last_read_at),
            reads=int(cursor["reads"]),
        )
    except (KeyError, TypeError, ValueError, Malformed) as error:
        raise Misconfigured(f"the cursor can't be read: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Reading:
    """A part of a pass.

    Attributes:
        observations: What may become events, oldest first.
        baseline: How people are whose changes are not wanted or come in none of these parts.
        rejected: What was not understood; complete once the other two were gone through, which
            are made one by one: there may be twenty thousand people.
        is_news: Whether the first two hold anything.
        after: Where the pass stands then; None while there is more of it.
    """

    observations: Iterable[Observation] = ()
    baseline: Iterable[Observation] = ()
    rejected: Sequence[RejectedRecord] = ()
    is_news: bool = True
    after: ReadingState | None = None


SnapshotItem = PermissionSnapshot | SnapshotGap | SnapshotScope


class Source(Protocol):
    """An HR system."""

    def readings(
        self, place: ReadingState, known: Known, read_at: datetime, until: datetime | None
    ) -> AsyncIterator[Reading]:
        """One pass: all that changed after `place`, the last part with its `after`.

        `known` is the caller's, who changes it between the parts by what they hold.
        """

    def snapshot(self, snapshot_at: datetime) -> AsyncIterator[SnapshotItem]:
        """Who belongs where, and is known by which accounts."""

    async def check(self) -> None:
        """See that the source answers and shows what is needed.

        Raises:
            Denied: Which permission is missing, in the vendor's names.
            Unavailable: It does not answer.
        """


def bound_of(read_at: datetime, until: datetime | None) -> datetime:
    """The newest change that a pass reads."""
    bound = read_at - SETTLE
    return bound if until is None else min(bound, until)


def advanced(place: ReadingState, times: Iterable[datetime]) -> ReadingState:
    """The place after changes of these times."""
    return replace(place, since=max([place.since, *times]), is_first=False)


def host_of(url: str) -> str:
    """Host and port of a URL, as `HttpClient` wants them."""
    return urlsplit(url).netloc.lower()


def not_there(person_id: str, *statuses: int) -> tuple[int, ...]:
    """The statuses that say that a source does not show somebody.

    An id with half of a surrogate pair is refused as none by servers that take only UTF-8; it
    must not hold up everybody else.
    """
    return statuses if is_utf8(person_id) else (400, *statuses)


def portions(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Cut into parts of at most `size`."""
    return [items[i : i + size] for i in range(0, len(items), size)]


async def each(
    items: Iterable[Item], ask: Callable[[Item], Awaitable[Result]], concurrent: int
) -> list[Result]:
    """Ask for each, so many at once; the answers in the order of the items.

    Raises:
        Exception: The first that a request raised; the others are cancelled.
    """
    gate = asyncio.Semaphore(concurrent)

    async def one(item: Item) -> Result:
        async with gate:
            return await ask(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [task.result() for task in tasks]


class TokenFile:
    """An `Authorizer`: a bearer token in a file that somebody else keeps fresh."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._value: str | None = None

    async def authorization(self) -> str:
        """`Bearer …`, as it was read last.

        Raises:
            Denied: The file can't be read, or is empty.
        """
        if self._value is None:
            self._value = await asyncio.to_thread(self._read)
        return self._value

    async def renew(self, refused: str) -> bool:
        """Read the file again; true if another token stands there now."""
        self._value = await asyncio.to_thread(self._read)
        return self._value != refused

    def _read(self) -> str:
        try:
            token = self._path.read_text("utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise Denied(f"access_token_file {self._path} can't be read: {reason}") from None
        if not token or not token.isascii() or any(c.isspace() for c in token):
            raise Denied(f"access_token_file {self._path} holds no token")
        return f"Bearer {token}"
