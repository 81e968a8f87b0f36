"""A small SQL: what is asked of Verity's own tables, run on dictionaries.

Statements are recognised by what they do and not by their text: they are parsed as Postgres' SQL
and compiled into functions, once. The tables come from the migrations themselves. What is not
known here raises `NotImplementedError`, which ends the run: a statement without a model must not
pass for an outage.

A transaction sees what was committed and what it wrote itself; what it wrote is locked until it
ends, and whoever wants to write there meanwhile waits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

import asyncpg
import sqlglot
from sqlglot import exp

from simulation.wire import Wait

Row = dict[str, Any]
Trigger = Callable[["Session", "Row | None", Row], None]
Evaluate = Callable[["Env"], Any]
Statement = Callable[["Session", Sequence[Any]], "Answer"]


class Answer(NamedTuple):
    """What a statement returned: rows, and the tag of what was done."""

    rows: list[Row]
    status: str


# Tables


@dataclass(frozen=True)
class Column:
    """A column: its type's name, what it is where nobody says, and what it must be."""

    name: str
    kind: str
    default: Evaluate | None = None
    is_required: bool = False
    check: Evaluate | None = None


@dataclass
class Table:
    """Rows by their key. A row is never changed, but replaced."""

    name: str
    columns: dict[str, Column]
    key: tuple[str, ...] = ()
    identity: str = ""
    rows: dict[Any, Row] = field(default_factory=dict)
    count: int = 0

    def key_of(self, row: Row) -> Any:
        """What tells a row from all others."""
        return tuple(row[name] for name in self.key)


class Database:
    """Tables, triggers and locks.

    Args:
        now: The server's clock, aware UTC.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.now = now
        self.tables: dict[str, Table] = {}
        self.before_update: dict[str, list[Trigger]] = {}
        self.after_write: dict[str, list[Trigger]] = {}
        self.locks: dict[tuple[str, Any], Session] = {}
        self._waiters: list[Callable[[], None]] = []

    def run(self, sql: str, args: Sequence[Any]) -> Answer:
        """One statement, as a transaction of its own."""
        session = Session(self)
        try:
            answer = session.run(sql, args)
        except BaseException:
            session.rollback()
            raise
        session.commit()
        return answer

    def table(self, name: str) -> Table:
        """A table that exists."""
        if name not in self.tables:
            raise asyncpg.UndefinedTableError(f'relation "{name}" does not exist')
        return self.tables[name]

    def wait(self) -> Wait:
        """To be raised by whoever meets a lock of another's."""
        return Wait(self._waiters)

    def wake(self) -> None:
        """A transaction has ended: whoever waits looks again, in order."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter()


class Session:
    """One transaction."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._now: datetime | None = None
        self._written: dict[tuple[str, Any], Row | None] = {}
        self._locked: list[tuple[str, Any]] = []

    @property
    def now(self) -> datetime:
        """When it began; the same until it ends."""
        if self._now is None:
            self._now = self.database.now()
        return self._now

    def run(self, sql: str, args: Sequence[Any]) -> Answer:
        """One statement; what it raises leaves nothing of it."""
        before = dict(self._written)
        try:
            return compiled(sql)(self, args)
        except BaseException:
            self._written = before
            raise

    def rows(self, name: str) -> Iterator[tuple[Any, Row]]:
        """What this transaction sees of a table, with the keys."""
        table = self.database.table(name)
        if not self._written:
            yield from table.rows.items()
            return
        for key, row in table.rows.items():
            seen = self._written.get((name, key), row)
            if seen is not None:
                yield key, seen
        for (other, key), written in self._written.items():
            if other == name and written is not None and key not in table.rows:
                yield key, written

    def row(self, name: str, key: Any) -> Row | None:
        """The row with this key, as this transaction sees it."""
        if (name, key) in self._written:
            return self._written[name, key]
        return self.database.table(name).rows.get(key)

    def lock(self, name: str, key: Any) -> None:
        """Nobody else writes the row until this transaction ends."""
        holder = self.database.locks.get((name, key))
        if holder is None:
            self.database.locks[name, key] = self
            self._locked.append((name, key))
        elif holder is not self:
            raise self.database.wait()

    def insert(self, table: Table, row: Row) -> None:
        """A new row, with its triggers.

        Raises:
            UniqueViolationError: Its key is taken.
        """
        key = table.key_of(row)
        if self.row(table.name, key) is not None:
            raise asyncpg.UniqueViolationError(
                f'duplicate key value violates unique constraint "{table.name}_pkey"'
            )
        self.lock(table.name, key)
        self._check(table, row)
        self._written[table.name, key] = row
        for trigger in self.database.after_write.get(table.name, ()):
            trigger(self, None, row)

    def update(self, table: Table, before: Row, after: Row) -> Row:
        """Another row in place of one, with its triggers; returns what was written."""
        key = table.key_of(before)
        self.lock(table.name, key)
        for trigger in self.database.before_update.get(table.name, ()):
            trigger(self, before, after)
        self._check(table, after)
        self._written[table.name, key] = after
        for trigger in self.database.after_write.get(table.name, ()):
            trigger(self, before, after)
        return after

    def delete(self, table: Table, row: Row) -> None:
        """No row any more."""
        key = table.key_of(row)
        self.lock(table.name, key)
        self._written[table.name, key] = None

    def _check(self, table: Table, row: Row) -> None:
        env = Env(self, (), {"": row})
        for column in table.columns.values():
            value = row[column.name]
            if value is None:
                if column.is_required:
                    raise asyncpg.NotNullViolationError(
                        f'null value in column "{column.name}" of relation "{table.name}"'
                    )
            else:
                row[column.name] = _stored(column.kind, value)
            if column.check is not None and column.check(env) is False:
                raise asyncpg.CheckViolationError(
                    f'new row for relation "{table.name}" violates a check of "{column.name}"'
                )

    def commit(self) -> None:
        """All of it is there."""
        for (name, key), row in self._written.items():
            rows = self.database.tables[name].rows
            if row is None:
                rows.pop(key, None)
            else:
                rows[key] = row
        self.rollback()

    def rollback(self) -> None:
        """What was not committed never was."""
        self._written.clear()
        if self._locked:
            for place in self._locked:
                del self.database.locks[place]
            self._locked.clear()
            self.database.wake()


_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "TEXT": str,
    "BIGINT": int,
    "INT": int,
    "SMALLINT": int,
    "BOOLEAN": bool,
    "TIMESTAMPTZ": datetime,
    "DOUBLE": (int, float),
    "BYTEA": bytes,
    "VARBINARY": bytes,
}
_PLAIN: Mapping[str, type] = {
    "TEXT": str,
    "INT": int,
    "SMALLINT": int,
    "BOOLEAN": bool,
    "DOUBLE": float,
    "BYTEA": bytes,
}
"""What stays as it is given; by far most of all values."""


def _texts(value: Any) -> Iterator[str]:
    """The texts of a JSON value, keys among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value:
            yield from _texts(one)
        if isinstance(value, dict):
            yield from _texts(list(value.values()))


def _is_text(text: str) -> bool:
    """Whether Postgres has it as one: no NUL, no half of a surrogate pair."""
    if text.isascii():
        return "\0" not in text
    return "\0" not in text and not any("\ud800" <= one <= "\udfff" for one in text)


def _stored(kind: str, given: Any) -> Any:
    """A value as a column of this type holds it.

    Raises:
        DataError: asyncpg finds another type, as it does before anything is sent.
    """
    if type(given) is _PLAIN.get(kind) and not (kind == "TEXT" and "\0" in given):
        return given
    if kind == "JSONB":
        text = json.dumps(given)
        if "NaN" in text or "Infinity" in text:
            raise asyncpg.InvalidTextRepresentationError("invalid input syntax for type json")
        stored = json.loads(text)  # Which makes one character of a whole surrogate pair.
        if not all(map(_is_text, _texts(stored))):
            raise asyncpg.UntranslatableCharacterError("unsupported Unicode escape sequence")
        return stored
    if kind not in _KINDS:
        raise NotImplementedError(f"no model of the type {kind}")
    value, is_odd = given, isinstance(given, bool) and kind != "BOOLEAN"
    if is_odd or not isinstance(given, _KINDS[kind]):
        raise asyncpg.DataError(f"invalid input for query argument: {value!r} (expected {kind})")
    if kind == "TEXT" and "\0" in value:
        raise asyncpg.CharacterNotInRepertoireError(
            'invalid byte sequence for encoding "UTF8": 0x00'
        )
    if kind == "BIGINT" and not -(2**63) <= value < 2**63:
        raise asyncpg.DataError(f"invalid input for query argument: {value!r} (out of int64 range)")
    if kind == "TIMESTAMPTZ":
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    return value


# Statements


class Env:
    """What an expression is evaluated in.

    Attributes:
        rows: Those at hand, by their table's alias.
        group: What an aggregate is taken of.
    """

    __slots__ = ("args", "group", "rows", "session")

    def __init__(
        self,
        session: Session,
        args: Sequence[Any],
        rows: dict[str, Row | None],
        group: Sequence[Env] = (),
    ) -> None:
        self.session = session
        self.args = args
        self.rows = rows
        self.group = group


@cache
def compiled(sql: str) -> Statement:
    """A statement as a function."""
    node = sqlglot.parse_one(sql, dialect="postgres")
    if type(node) not in _STATEMENTS:
        raise NotImplementedError(f"no model of the statement: {' '.join(sql.split())}")
    return _STATEMENTS[type(node)](node)


def _select(node: exp.Select) -> Statement:
    _only(node, "expressions", "from_", "joins", "where", "order", "limit", "locks")
    source = node.args.get("from_")
    tables = (
        [] if source is None else [source.this, *(one.this for one in node.args.get("joins") or ())]
    )
    names = [(one.alias_or_name, one.name) for one in tables]
    joins = [_join(one) for one in node.args.get("joins") or ()]
    shared = sorted({name for _, columns in joins for name in columns})
    where = _condition(node)
    order = [
        (_expression(one.this), bool(one.args.get("desc")))
        for one in (node.args["order"].expressions if node.args.get("order") else ())
    ]
    limit = _expression(node.args["limit"].expression) if node.args.get("limit") else None
    returned = _returned(node.expressions)
    is_locking = bool(node.args.get("locks"))
    is_aggregate = any(one.find(exp.AggFunc) for one in node.expressions)

    def found(session: Session, args: Sequence[Any]) -> list[Env]:
        if not names:
            return [Env(session, args, {})]
        (first, table), *others = names
        envs = [Env(session, args, {first: row}) for _, row in session.rows(table)]
        before = [first]
        for (alias, table), (side, columns) in zip(others, joins, strict=True):
            envs = list(_joined(session, args, envs, before, alias, table, side, columns))
            before.append(alias)
        if shared:
            for env in envs:
                held = [row for row in env.rows.values() if row]
                values = {
                    name: next((row[name] for row in held if name in row), None) for name in shared
                }
                env.rows = {"": values, **env.rows}
        return envs if where is None else [env for env in envs if where(env)]

    def run(session: Session, args: Sequence[Any]) -> Answer:
        envs = found(session, args)
        if is_locking:
            for env in envs:
                for alias, name in names:
                    row = env.rows[alias]
                    if row is not None:
                        session.lock(name, session.database.table(name).key_of(row))
        if is_aggregate:
            envs = [Env(session, args, {}, envs)]
        for by, is_descending in reversed(order):
            envs.sort(key=lambda env: _sortable(by(env)), reverse=is_descending)
        if limit is not None and envs:
            envs = envs[: limit(envs[0])]
        return Answer([returned(env) for env in envs], f"SELECT {len(envs)}")

    return run


def _join(node: exp.Join) -> tuple[str, list[str]]:
    _only(node, "this", "side", "using", "kind")
    if not node.args.get("using"):
        raise NotImplementedError(f"no model of the join: {node.sql()}")
    return str(node.args.get("side") or ""), [one.name for one in node.args["using"]]


def _joined(
    session: Session,
    args: Sequence[Any],
    envs: list[Env],
    before: Sequence[str],
    alias: str,
    table: str,
    side: str,
    columns: list[str],
) -> Iterator[Env]:
    def shared_by(row: Row) -> tuple[Any, ...]:
        return tuple([row.get(name) for name in columns])

    found: dict[tuple[Any, ...], list[Row]] = {}
    for _, row in session.rows(table):
        found.setdefault(shared_by(row), []).append(row)
    matched = set()
    for env in envs:
        key = next((shared_by(row) for row in env.rows.values() if row is not None), ())
        rows = found.get(key, [])
        matched.add(key)
        for row in rows:
            yield Env(session, args, {**env.rows, alias: row})
        if not rows and side in ("LEFT", "FULL"):
            yield Env(session, args, {**env.rows, alias: None})
    if side in ("RIGHT", "FULL"):
        blank: dict[str, Row | None] = dict.fromkeys(before)
        for key, rows in found.items():
            if key not in matched:
                for row in rows:
                    yield Env(session, args, {**blank, alias: row})


def _insert(node: exp.Insert) -> Statement:
    _only(node, "this", "expression", "conflict", "returning")
    schema = node.this
    into = schema.this if isinstance(schema, exp.Schema) else schema
    name, alias = into.name, into.alias_or_name
    names = [one.name for one in schema.expressions] if isinstance(schema, exp.Schema) else []
    if not isinstance(node.expression, exp.Values):
        raise NotImplementedError(f"no model of the insert: {node.sql()}")
    values = [[_expression(one) for one in row.expressions] for row in node.expression.expressions]
    conflict = node.args.get("conflict")
    returned = _returning(node)
    changes, where, is_upsert = [], None, False
    if conflict is not None:
        is_upsert = str(conflict.args["action"]) == "DO UPDATE"
        changes = [(one.this.name, _expression(one.expression)) for one in conflict.expressions]
        where = _condition(conflict)

    def run(session: Session, args: Sequence[Any]) -> Answer:
        table, written = session.database.table(name), []
        _known(table, [*names, *(column for column, _ in changes)])
        for row in values:
            env = Env(session, args, {})
            given = {
                column: value(env)
                for column, value in zip(names or table.columns, row, strict=True)
            }
            new = _new_row(table, given, env)
            before = session.row(name, table.key_of(new))
            if before is None or conflict is None:
                session.insert(table, new)
                written.append(new)
                continue
            if not is_upsert:
                continue
            session.lock(name, table.key_of(before))
            env.rows = {alias: before, "excluded": new}
            if where is None or where(env):
                after = before | {column: value(env) for column, value in changes}
                written.append(session.update(table, before, after))
        rows = [returned(Env(session, args, {alias: row})) for row in written] if returned else []
        return Answer(rows, f"INSERT 0 {len(written)}")

    return run


def _new_row(table: Table, given: Row, env: Env) -> Row:
    row: Row = {}
    for name, column in table.columns.items():
        if name in given:
            row[name] = given[name]
        elif name == table.identity:
            table.count += 1  # A sequence is no part of a transaction.
            row[name] = table.count
        else:
            row[name] = None if column.default is None else column.default(env)
    return row


def _known(table: Table, names: Iterable[str]) -> None:
    for name in names:
        if name not in table.columns:
            raise asyncpg.UndefinedColumnError(f'column "{name}" does not exist')


def _update(node: exp.Update) -> Statement:
    _only(node, "this", "expressions", "where", "returning")
    name, alias = node.this.name, node.this.alias_or_name
    changes = [(one.this.name, _expression(one.expression)) for one in node.expressions]
    where, returned = _condition(node), _returning(node)

    def run(session: Session, args: Sequence[Any]) -> Answer:
        table, written = session.database.table(name), []
        _known(table, [column for column, _ in changes])
        for _, row in list(session.rows(name)):
            env = Env(session, args, {alias: row})
            if where is None or where(env):
                session.lock(name, table.key_of(row))
                after = row | {column: value(env) for column, value in changes}
                written.append(session.update(table, row, after))
        rows = [returned(Env(session, args, {alias: row})) for row in written] if returned else []
        return Answer(rows, f"UPDATE {len(written)}")

    return run


def _delete(node: exp.Delete) -> Statement:
    _only(node, "this", "where", "returning")
    name, alias = node.this.name, node.this.alias_or_name
    where, returned = _condition(node), _returning(node)

    def run(session: Session, args: Sequence[Any]) -> Answer:
        table, gone = session.database.table(name), []
        for _, row in list(session.rows(name)):
            env = Env(session, args, {alias: row})
            if where is None or where(env):
                session.delete(table, row)
                gone.append(env)
        return Answer([returned(env) for env in gone] if returned else [], f"DELETE {len(gone)}")

    return run


_STATEMENTS: Mapping[type, Callable[[Any], Statement]] = {
    exp.Select: _select,
    exp.Insert: _insert,
    exp.Update: _update,
    exp.Delete: _delete,
}


def _only(node: exp.Expression, *names: str) -> None:
    """Fail where a statement has a part that is not looked at here."""
    for name, value in node.args.items():
        if value and name not in names:
            raise NotImplementedError(f"no model of {name} in: {node.sql('postgres')}")


def _condition(node: exp.Expression) -> Evaluate | None:
    where = node.args.get("where")
    return None if where is None else _expression(where.this if where else where)


def _returning(node: exp.Expression) -> Callable[[Env], Row] | None:
    returning = node.args.get("returning")
    return None if returning is None else _returned(returning.expressions)


def _returned(nodes: Sequence[exp.Expression]) -> Callable[[Env], Row]:
    parts: list[tuple[str, Evaluate | None]] = []
    for node in nodes:
        if isinstance(node, exp.Star):
            parts.append(("*", None))
        elif isinstance(node, exp.Column) and isinstance(node.this, exp.Star):
            parts.append((node.table, None))
        else:
            name = node.alias_or_name or type(node).__name__.lower()
            parts.append((name, _expression(node.this if isinstance(node, exp.Alias) else node)))

    def row_of(env: Env) -> Row:
        row: Row = {}
        for name, value in parts:
            if value is not None:
                row[name] = _loaded(value(env))
                continue
            for alias, held in env.rows.items():
                if name in ("*", alias):
                    row |= {column: _loaded(one) for column, one in (held or {}).items()}
        return row

    return row_of


def _loaded(value: Any) -> Any:
    """JSON comes as an object of its own with every read."""
    if type(value) is dict:
        return {name: _loaded(one) for name, one in value.items()}
    return [_loaded(one) for one in value] if type(value) is list else value


def _sortable(value: Any) -> tuple[bool, Any]:
    return (value is None, value)  # NULLs come last in an ascending order.


# Expressions


def _expression(node: exp.Expression) -> Evaluate:
    make = _EXPRESSIONS.get(type(node))
    if make is None:
        raise NotImplementedError(f"no model of {type(node).__name__}: {node.sql('postgres')}")
    return make(node)


def _column(node: exp.Column) -> Evaluate:
    table, name = node.table.lower(), node.name

    def value(env: Env) -> Any:
        if table:
            if table not in env.rows:
                raise asyncpg.UndefinedTableError(f'missing FROM-clause entry for table "{table}"')
            row = env.rows[table]
            if row is not None and name not in row:
                raise asyncpg.UndefinedColumnError(f"column {table}.{name} does not exist")
            return None if row is None else row[name]
        for row in env.rows.values():
            if row is not None and name in row:
                return row[name]
        if any(row is None for row in env.rows.values()):
            return None
        raise asyncpg.UndefinedColumnError(f'column "{name}" does not exist')

    return value


def _parameter(node: exp.Parameter) -> Evaluate:
    number = int(node.name or node.this.name) - 1
    return lambda env: env.args[number]


def _literal(node: exp.Literal) -> Evaluate:
    text = node.this
    value: Any = text if node.is_string else float(text) if "." in text else int(text)
    return lambda _: value


def _constant(value: Any) -> Callable[[Any], Evaluate]:
    return lambda _: lambda _: value


def _binary(operate: Callable[[Any, Any], Any]) -> Callable[[Any], Evaluate]:
    """NULL where one of both is."""

    def make(node: Any) -> Evaluate:
        left, right = _expression(node.this), _expression(node.expression)

        def value(env: Env) -> Any:
            one, other = left(env), right(env)
            return None if one is None or other is None else operate(one, other)

        return value

    return make


def _and(node: exp.And) -> Evaluate:
    left, right = _expression(node.this), _expression(node.expression)

    def value(env: Env) -> Any:
        one, other = left(env), right(env)
        return False if one is False or other is False else None if None in (one, other) else True

    return value


def _or(node: exp.Or) -> Evaluate:
    left, right = _expression(node.this), _expression(node.expression)

    def value(env: Env) -> Any:
        one, other = left(env), right(env)
        return True if one is True or other is True else None if None in (one, other) else False

    return value


def _not(node: exp.Not) -> Evaluate:
    inner = _expression(node.this)

    def value(env: Env) -> Any:
        one = inner(env)
        return None if one is None else not one

    return value


def _is(node: exp.Is) -> Evaluate:
    inner, wanted = _expression(node.this), _expression(node.expression)
    is_negated = bool(node.args.get("negate"))
    return lambda env: (inner(env) is wanted(env)) is not is_negated


def _distinct(is_equal: bool) -> Callable[[Any], Evaluate]:
    def make(node: Any) -> Evaluate:
        left, right = _expression(node.this), _expression(node.expression)
        return lambda env: (left(env) == right(env)) is is_equal

    return make


def _equals(node: exp.EQ) -> Evaluate:
    if isinstance(node.expression, exp.Any):
        one, many = _expression(node.this), _expression(node.expression.this)
        return lambda env: one(env) in many(env)
    return _binary(lambda left, right: left == right)(node)


def _in(node: exp.In) -> Evaluate:
    _only(node, "this", "expressions")
    one, many = _expression(node.this), [_expression(item) for item in node.expressions]
    return lambda env: one(env) in [item(env) for item in many]


def _first_known(node: exp.Coalesce) -> Evaluate:
    parts = [_expression(one) for one in (node.this, *node.expressions)]
    return lambda env: next((one for part in parts if (one := part(env)) is not None), None)


def _extreme(choose: Callable[..., Any]) -> Callable[[Any], Evaluate]:
    def make(node: Any) -> Evaluate:
        parts = [_expression(one) for one in (node.this, *node.expressions)]

        def value(env: Env) -> Any:
            known = [one for part in parts if (one := part(env)) is not None]
            return choose(known) if known else None

        return value

    return make


def _aggregate(choose: Callable[[list[Any]], Any]) -> Callable[[Any], Evaluate]:
    """Of what is known in all rows of the group."""

    def make(node: Any) -> Evaluate:
        is_all = isinstance(node.this, exp.Star)
        inner = _constant(True)(node) if is_all else _expression(node.this)

        def value(env: Env) -> Any:
            return choose([one for each in env.group if (one := inner(each)) is not None])

        return value

    return make


def _json_text(node: exp.JSONExtractScalar) -> Evaluate:
    inner = _expression(node.this)
    keys = [one.this for one in node.expression.expressions if isinstance(one, exp.JSONPathKey)]

    def value(env: Env) -> Any:
        found = inner(env)
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found if found is None or isinstance(found, str) else json.dumps(found)

    return value


def _cast(node: exp.Cast) -> Evaluate:
    inner = _expression(node.this)
    kind = node.to.this.name
    if kind == "BIGINT":
        return lambda env: None if (one := inner(env)) is None else _stored(kind, int(one))
    if kind == "INTERVAL":
        number, unit = str(inner(None)).split()  # type: ignore[arg-type]
        span = timedelta(**{unit if unit.endswith("s") else f"{unit}s": float(number)})
        return lambda _: span
    return lambda env: None if (one := inner(env)) is None else _stored(kind, one)


def _function(node: exp.Anonymous) -> Evaluate:
    name = str(node.this).lower()
    if name == "clock_timestamp":
        return lambda env: env.session.database.now()
    if name == "octet_length":
        (inner,) = map(_expression, node.expressions)
        return lambda env: None if (one := inner(env)) is None else len(one)
    if name == "pg_advisory_xact_lock":
        return lambda _: None
    raise NotImplementedError(f"no model of the function {name}")


_EXPRESSIONS: Mapping[type, Callable[[Any], Evaluate]] = {
    exp.Column: _column,
    exp.Parameter: _parameter,
    exp.Literal: _literal,
    exp.Null: _constant(None),
    exp.Boolean: lambda node: _constant(bool(node.this))(node),
    exp.Paren: lambda node: _expression(node.this),
    exp.And: _and,
    exp.Or: _or,
    exp.Not: _not,
    exp.Is: _is,
    exp.EQ: _equals,
    exp.NEQ: _binary(lambda left, right: left != right),
    exp.GT: _binary(lambda left, right: left > right),
    exp.GTE: _binary(lambda left, right: left >= right),
    exp.LT: _binary(lambda left, right: left < right),
    exp.LTE: _binary(lambda left, right: left <= right),
    exp.Add: _binary(lambda left, right: left + right),
    exp.Sub: _binary(lambda left, right: left - right),
    exp.DPipe: _binary(lambda left, right: left + right),
    exp.NullSafeNEQ: _distinct(False),
    exp.NullSafeEQ: _distinct(True),
    exp.In: _in,
    exp.Coalesce: _first_known,
    exp.Greatest: _extreme(max),
    exp.Least: _extreme(min),
    exp.Max: _aggregate(lambda known: max(known, default=None)),
    exp.Min: _aggregate(lambda known: min(known, default=None)),
    exp.Count: _aggregate(len),
    exp.JSONExtractScalar: _json_text,
    exp.Cast: _cast,
    exp.CurrentTimestamp: lambda _: lambda env: env.session.now,
    exp.SessionUser: _constant("verity"),
    exp.Anonymous: _function,
}


# The schema

FUNCTION = re.compile(
    r"CREATE (?:OR REPLACE )?FUNCTION (\w+)\(\) RETURNS trigger LANGUAGE plpgsql AS \$\$(.*?)\$\$;",
    re.DOTALL,
)
"""What a trigger calls: it is modelled by hand."""


def migrate(
    database: Database, sql: str, triggers: Mapping[str, Callable[[Database], None]]
) -> None:
    """Run a migration's definitions.

    Args:
        triggers: What a trigger of this name does; one that is missing fails the run.
    """
    for node in sqlglot.parse(FUNCTION.sub("", sql), dialect="postgres"):
        match node:
            case exp.Create() if node.kind == "TABLE":
                _create_table(database, node)
            case exp.Create() if node.kind == "TRIGGER":
                name = node.this.name
                if name not in triggers:
                    raise NotImplementedError(f"no model of the trigger {name}")
                triggers[name](database)
            case exp.Create() if node.kind == "INDEX":
                pass
            case exp.Alter():
                _alter_table(database, node)
            case exp.Comment() | None:
                pass
            case exp.Update() | exp.Insert() | exp.Delete():
                database.run(node.sql("postgres"), ())
            case _:
                raise NotImplementedError(f"no model of: {node.sql('postgres')[:200]}")


def _create_table(database: Database, node: exp.Create) -> None:
    name = node.this.this.name
    if name in database.tables:
        return
    table = database.tables[name] = Table(name, {})
    for one in node.this.expressions:
        if isinstance(one, exp.ColumnDef):
            _add_column(table, one)
        elif isinstance(one, exp.PrimaryKey):
            table.key = tuple(column.name for column in one.expressions)
    if not table.key:
        raise NotImplementedError(f"no model of a table without a key: {name}")


def _alter_table(database: Database, node: exp.Alter) -> None:
    table = database.table(node.this.name)
    for action in node.args["actions"]:
        if isinstance(action, exp.ColumnDef):
            _add_column(table, action)
            for key, row in table.rows.items():
                column = table.columns[action.name]
                value = column.default(Env(Session(database), (), {})) if column.default else None
                table.rows[key] = {action.name: value, **row}
        else:
            raise NotImplementedError(f"no model of: {node.sql('postgres')}")


def _add_column(table: Table, node: exp.ColumnDef) -> None:
    if node.name in table.columns:
        return
    default, check, is_required = None, None, False
    for constraint in node.args.get("constraints") or ():
        match constraint.kind:
            case exp.DefaultColumnConstraint():
                default = _expression(constraint.kind.this)
            case exp.NotNullColumnConstraint():
                is_required = not constraint.kind.args.get("allow_null")
            case exp.PrimaryKeyColumnConstraint():
                table.key, is_required = (node.name,), True
            case exp.CheckColumnConstraint():
                check = _expression(constraint.kind.this)
            case exp.GeneratedAsIdentityColumnConstraint():
                table.identity = node.name
            case _:
                raise NotImplementedError(f"no model of: {constraint.sql('postgres')}")
    kind = node.args["kind"].this.name
    table.columns[node.name] = Column(node.name, kind, default, is_required, check)
