"""A model of Postgres, beneath asyncpg's pool.

The tables are those of the migrations; statements are run by what they do (`simulation.sql`), and
one without a model ends the run. A statement is atomic at the server; what its client knows of it
is another matter: the connection can break before or after the effect, the server can be away or
silent, a row can be locked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import cache
from hashlib import blake2b
from typing import Any

import asyncpg

from simulation.loop import PROCESS
from simulation.sql import FUNCTION, Answer, Database, Row, Session, Table, migrate
from simulation.wire import BEGIN, Wire
from verity_stream.postgres.pool import migrations

COMMAND_SECONDS = 30.0
POOL_SIZE_MAX = 10


# Triggers: what the migrations' functions do, each modelled after texts with these digests.


def _time_edited(session: Session, before: Row | None, after: Row) -> None:
    """Whoever moves the time without raising the version is an operator: that is an edit."""
    assert before is not None
    if after["version"] == before["version"] and after["last_ts"] != before["last_ts"]:
        after["cursor"] = None
        _edit(session, before, after, ("last_ts", "version"))


def _position_edited(session: Session, before: Row | None, after: Row) -> None:
    """The same of time or cursor; a cursor that was written is kept."""
    assert before is not None
    moved = [name for name in ("last_ts", "cursor") if after[name] != before[name]]
    if after["version"] == before["version"] and moved:
        if "cursor" not in moved:
            after["cursor"] = None
        _edit(session, before, after, ("last_ts", "cursor", "version"))


def _edit(session: Session, before: Row, after: Row, told: Sequence[str]) -> None:
    after["version"] = before["version"] + 1
    after["complete_through"] = after["seen"] = None
    after["updated_at"] = session.now
    session.run(
        "INSERT INTO connector_audit (connector_id, action, before, after) "
        "VALUES ($1, 'edit', $2, $3)",
        (
            after["connector_id"],
            {name: _jsonable(before[name]) for name in ("last_ts", "cursor", "version")},
            {name: _jsonable(after[name]) for name in told},
        ),
    )


def _jsonable(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else value


def _error_reported(session: Session, _: Row | None, after: Row) -> None:
    """The last errors of every connector; 20 different ones are kept."""
    if after["last_error"] is None or after["state"] not in ("backing_off", "blocked"):
        return
    mine = [
        row
        for _, row in session.rows("connector_errors")
        if row["connector_id"] == after["connector_id"]
    ]
    last = max(mine, key=lambda row: row["id"], default=None)
    table = session.database.table("connector_errors")
    if last is not None and (last["error"], last["state"]) == (after["last_error"], after["state"]):
        session.update(table, last, last | {"last_at": session.now, "worker": after["worker"]})
        return
    session.run(
        "INSERT INTO connector_errors (connector_id, worker, state, error) VALUES ($1, $2, $3, $4)",
        (after["connector_id"], after["worker"], after["state"], after["last_error"]),
    )
    for row in sorted(mine, key=lambda row: -int(row["id"]))[19:]:
        session.delete(table, row)


TRIGGERS: Mapping[str, tuple[str, str, Mapping[str, Callable[..., None]]]] = {
    "verity_checkpoint_edited": (
        "before_update",
        "connector_checkpoints",
        {"7d60fb25": _time_edited, "cd24ef49": _position_edited},
    ),
    "verity_error_reported": ("after_write", "connector_status", {"fab25161": _error_reported}),
}
"""When and where each fires, and what its function does, by the digest of the function's text."""


def _digests() -> dict[str, str]:
    """Of each trigger function, as the last migration that has it leaves it."""
    return {
        name: blake2b(" ".join(body.split()).encode(), digest_size=4).hexdigest()
        for _, text in migrations()
        for name, body in FUNCTION.findall(text)
    }


@cache
def _schema() -> Database:
    """The tables as the migrations make them, empty."""
    digests = _digests()

    def modelled(name: str) -> Callable[[Database], None]:
        when, table, versions = TRIGGERS[name]
        if digests.get(name) not in versions:
            raise NotImplementedError(
                f"the function {name} has changed ({digests.get(name)}): change its model, too"
            )
        trigger = versions[digests[name]]

        def create(database: Database) -> None:
            getattr(database, when).setdefault(table, []).append(trigger)

        return create

    database = Database(lambda: BEGIN)
    for _, text in migrations():
        migrate(database, text, {name: modelled(name) for name in TRIGGERS})
    return database


class Postgres:
    """One database.

    Attributes:
        skew: How far the server's clock is from the world's.
        asking: The process whose statement is run.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.asking = ""
        self.skew = timedelta(0)
        schema = _schema()
        self.database = Database(lambda: wire.now() + self.skew)
        self.database.before_update = schema.before_update
        self.database.after_write = {name: [*all_] for name, all_ in schema.after_write.items()}
        self.database.tables = {
            name: Table(name, one.columns, one.key, one.identity, dict(one.rows))
            for name, one in schema.tables.items()
        }

    def rows(self, table: str) -> dict[str, Row]:
        """What is committed, by the first column of the key."""
        return {key[0]: row for key, row in self.database.table(table).rows.items()}

    @property
    def checkpoints(self) -> dict[str, Row]:
        """The rows of `connector_checkpoints`, to look at."""
        return self.rows("connector_checkpoints")

    def watch(self, table: str, look: Callable[[str, Row | None, Row], None]) -> None:
        """Whenever a row is written: who did it, the row before, the row after."""
        looks = self.database.after_write.setdefault(table, [])
        looks.append(lambda _, before, after: look(self.asking, before, after))

    def run(self, sql: str, *args: Any) -> Answer:
        """A statement of somebody who sits at the server; a trigger sees it as any other."""
        return self.database.run(sql, args)

    def edit(self, connector_id: str, **columns: Any) -> None:
        """What an operator does by hand: `UPDATE connector_checkpoints SET …`."""
        changes = ", ".join(f"{name} = ${number}" for number, name in enumerate(columns, 2))
        sql = f"UPDATE connector_checkpoints SET {changes} WHERE connector_id = $1"
        self.run(sql, connector_id, *columns.values())

    def pause(self, connector_id: str, *, is_paused: bool) -> None:
        """What `verity pause` and `verity resume` ask for."""
        self.run(
            "INSERT INTO connector_controls (connector_id, paused) VALUES ($1, $2) "
            "ON CONFLICT (connector_id) DO UPDATE SET paused = EXCLUDED.paused",
            connector_id,
            is_paused,
        )

    def backup(self) -> Any:
        """All rows as they are."""
        return {name: dict(table.rows) for name, table in self.database.tables.items()}

    def restore(self, backup: Any) -> None:
        """All rows as they were; whoever is in a transaction loses it."""
        for session in set(self.database.locks.values()):
            session.rollback()
        for name, rows in backup.items():
            self.database.tables[name].rows = dict(rows)

    def lock(self, table: str, key: str, seconds: float) -> None:
        """Somebody has a row for so long, and leaves it as it was."""
        session = Session(self.database)
        session.lock(table, (key,))
        self.wire.later(seconds, session.rollback)


class Pool:
    """What Verity uses of an asyncpg pool.

    Args:
        command_timeout: How long one statement may take, in seconds.
        size_max: So many connections; whoever wants another waits.
    """

    def __init__(
        self,
        postgres: Postgres,
        *,
        command_timeout: float = COMMAND_SECONDS,
        size_max: int = POOL_SIZE_MAX,
    ) -> None:
        self._postgres = postgres
        self._seconds = command_timeout
        self._free = size_max
        self._waiting: list[asyncio.Future[None]] = []
        self._is_closed = False

    def acquire(self, *, timeout: float | None = None) -> Acquired:
        """A connection, for `async with` or awaited."""
        return Acquired(self, timeout)

    async def release(self, connection: Connection) -> None:
        """Give it back."""
        connection.close_transaction()
        self._give_back()

    async def take(self, timeout: float | None) -> Connection:
        if self._is_closed:
            raise asyncpg.InterfaceError("pool is closed")
        if self._free:
            self._free -= 1
        else:
            turn: asyncio.Future[None] = self._postgres.wire.loop.create_future()
            self._waiting.append(turn)
            try:
                async with asyncio.timeout(timeout):
                    await turn
            except BaseException:
                if turn.done() and not turn.cancelled():
                    self._give_back()
                raise
        return Connection(self._postgres, self._seconds)

    def _give_back(self) -> None:
        while self._waiting:
            turn = self._waiting.pop(0)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    async def fetchrow(self, sql: str, *args: Any, timeout: float | None = None) -> Any:
        """The first row, or None."""
        async with self.acquire() as connection:
            return await connection.fetchrow(sql, *args, timeout=timeout)

    async def fetch(self, sql: str, *args: Any, timeout: float | None = None) -> list[Row]:
        """All rows."""
        async with self.acquire() as connection:
            return await connection.fetch(sql, *args, timeout=timeout)

    async def fetchval(self, sql: str, *args: Any, timeout: float | None = None) -> Any:
        """The first column of the first row, or None."""
        async with self.acquire() as connection:
            return await connection.fetchval(sql, *args, timeout=timeout)

    async def execute(self, sql: str, *args: Any, timeout: float | None = None) -> str:
        """The tag of what was done."""
        async with self.acquire() as connection:
            return await connection.execute(sql, *args, timeout=timeout)

    async def executemany(
        self, sql: str, rows: Sequence[Sequence[Any]], *, timeout: float | None = None
    ) -> None:
        """A statement for each of these, all or nothing."""
        async with self.acquire() as connection:
            await connection.executemany(sql, rows, timeout=timeout)

    async def close(self) -> None:
        """Take no more."""
        self._is_closed = True

    def terminate(self) -> None:
        """Take no more, and end what is under way."""
        self._is_closed = True


class Acquired:
    """What `Pool.acquire` returns."""

    def __init__(self, pool: Pool, timeout: float | None) -> None:
        self._pool = pool
        self._timeout = timeout
        self._connection: Connection | None = None

    def __await__(self) -> Any:
        return self._pool.take(self._timeout).__await__()

    async def __aenter__(self) -> Connection:
        self._connection = await self._pool.take(self._timeout)
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        if self._connection is not None:
            await self._pool.release(self._connection)


class Connection:
    """What Verity uses of an asyncpg connection."""

    def __init__(self, postgres: Postgres, command_timeout: float) -> None:
        self._postgres = postgres
        self._seconds = command_timeout
        self._session: Session | None = None

    async def fetchrow(self, sql: str, *args: Any, timeout: float | None = None) -> Any:
        """The first row, or None."""
        rows = (await self._run(sql, args, timeout)).rows
        return rows[0] if rows else None

    async def fetch(self, sql: str, *args: Any, timeout: float | None = None) -> list[Row]:
        """All rows."""
        return (await self._run(sql, args, timeout)).rows

    async def fetchval(self, sql: str, *args: Any, timeout: float | None = None) -> Any:
        """The first column of the first row, or None."""
        row = await self.fetchrow(sql, *args, timeout=timeout)
        return None if row is None else next(iter(row.values()))

    async def execute(self, sql: str, *args: Any, timeout: float | None = None) -> str:
        """The tag of what was done."""
        return (await self._run(sql, args, timeout)).status

    async def executemany(
        self, sql: str, rows: Sequence[Sequence[Any]], *, timeout: float | None = None
    ) -> None:
        """A statement for each of these, all or nothing."""
        session = self._session

        def effect() -> None:
            within = session or Session(self._postgres.database)
            try:
                for args in rows:
                    within.run(sql, args)
            except BaseException:
                within.rollback()
                raise
            if session is None:
                within.commit()

        await self._ask(sql, effect, timeout)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """What is done within is committed at the end, or never was."""
        database = self._postgres.database
        self._session = session = await self._ask("BEGIN", lambda: Session(database), None)
        try:
            yield
        except BaseException:
            self._session = None
            try:
                await self._ask("ROLLBACK", session.rollback, None)
            finally:
                session.rollback()
            raise
        self._session = None
        try:
            await self._ask("COMMIT", session.commit, None)
        finally:
            session.rollback()  # Nothing is left to undo where it was committed.

    def close_transaction(self) -> None:
        """A connection that is given back leaves nothing open."""
        if self._session is not None:
            self._session.rollback()
            self._session = None

    async def _run(self, sql: str, args: Sequence[Any], timeout: float | None) -> Answer:
        session, database = self._session, self._postgres.database
        answer: Answer = await self._ask(
            sql,
            lambda: database.run(sql, args) if session is None else session.run(sql, args),
            timeout,
        )
        return answer

    async def _ask(self, sql: str, effect: Callable[[], Any], timeout: float | None) -> Any:
        postgres, process = self._postgres, PROCESS.get()

        def asked() -> Any:
            postgres.asking = process
            return effect()

        try:
            return await postgres.wire.send(
                f"sql {sql.split(None, 1)[0]}", asked, timeout=timeout or self._seconds
            )
        except ConnectionResetError as error:
            self.close_transaction()  # The server undoes what was not committed.
            raise asyncpg.ConnectionDoesNotExistError(
                "connection was closed in the middle of operation"
            ) from error
