"""What a statement touches: a pure function from its text to operations on objects.

Without pgaudit the log has the text of a statement and no object. Queries and the four
writing statements are parsed by sqlglot; everything else (DDL, grants, `COPY`, …) has its
objects near its first words and is read from sqlglot's tokens here, because sqlglot keeps
most of those statements as opaque commands.

The text comes from whoever may log in to the observed server, so nothing here may take
unbounded time: the length of a statement, the steps of the parser and its recursion are
bounded, and what exceeds a bound is *unparsed*, never an error.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from sqlglot import exp
from sqlglot.dialects.postgres import Postgres
from sqlglot.errors import SqlglotError
from sqlglot.tokenizer_core import Token, TokenType

from connectors.postgres.references import folded, quoted, words

MULTI_STATEMENT_MAX = 1000
CACHED_STATEMENT_BYTES = 4096
# Ordinary statements need about one step a token; nested ARRAY[…] needs 2^depth (sqlglot 30.30,
# measured 2026-11-24), which one statement of 100 bytes turns into minutes.
STEPS_PER_TOKEN = 5
STEPS_BASE = 2000


class _SilentFilter(logging.Filter):
    """sqlglot warns with the statement's text, which may hold a password; nothing gets out."""

    def filter(self, record: logging.LogRecord) -> bool:
        return False


logging.getLogger("sqlglot").addFilter(_SilentFilter())


@dataclass(frozen=True, slots=True, order=True)
class Touch:
    """One operation on one object.

    Attributes:
        operation: `{CLASS}.{COMMAND}` in pgaudit's words, for example `READ.SELECT`.
        kind: The object's kind (`TABLE` for any relation: the text does not tell a view from
            a table); empty for the database itself.
        name: The object's name as written, folded and quoted as PostgreSQL prints it.
    """

    operation: str
    kind: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Statement:
    """What a text of one or more statements touches.

    Attributes:
        touches: Distinct and sorted, at least one; sorted so that their order, which becomes
            part of event ids, does not depend on how the parser walks.
        is_parsed: False where a part was not understood; then the first words name the operation.
        statement_count: How many statements the text holds; 0 where that is not known.
    """

    touches: tuple[Touch, ...]
    is_parsed: bool
    statement_count: int = 1


class _TooManySteps(Exception):
    """Not a parse error on purpose: the parser catches those to try something else."""


class _BoundedParser(Postgres.Parser):  # type: ignore[misc, valid-type]  # a class held in a variable
    """sqlglot's parser for PostgreSQL, with a limit on its steps."""

    _steps_left = 0

    def allow(self, steps: int) -> _BoundedParser:
        self._steps_left = steps
        return self

    def _advance(self, times: int = 1) -> None:
        self._steps_left -= 1
        if self._steps_left < 0:
            raise _TooManySteps
        super()._advance(times)


class _Tokenizer(Postgres.Tokenizer):
    """sqlglot's tokens, also behind words after which it would keep the rest as one string."""

    COMMANDS: ClassVar[set[TokenType]] = set()


class _Dialect(Postgres):
    """PostgreSQL, with the tokens above."""

    Tokenizer = _Tokenizer


_DIALECT = _Dialect()

_CLASS_OF_VERB = {
    "SELECT": "READ",
    "TABLE": "READ",
    "VALUES": "READ",
    "WITH": "READ",
    "INSERT": "WRITE",
    "UPDATE": "WRITE",
    "DELETE": "WRITE",
    "MERGE": "WRITE",
    "TRUNCATE": "WRITE",
    "COPY": "WRITE",
    "GRANT": "ROLE",
    "REVOKE": "ROLE",
    "REASSIGN": "ROLE",
    "CREATE": "DDL",
    "ALTER": "DDL",
    "DROP": "DDL",
    "COMMENT": "DDL",
    "IMPORT": "DDL",
    "REFRESH": "DDL",
    "SECURITY": "DDL",
    "REINDEX": "DDL",
    "DO": "FUNCTION",
    "CALL": "FUNCTION",
}
_QUERY_VERBS = {"SELECT", "TABLE", "VALUES", "WITH", "INSERT", "UPDATE", "DELETE", "MERGE", "("}
# Understood, and no object in them.
_SESSION_VERBS = words(
    """
    ABORT BEGIN CHECKPOINT CLOSE COMMIT DEALLOCATE DISCARD END FETCH LISTEN LOAD MOVE NOTIFY
    PREPARE RELEASE RESET ROLLBACK SAVEPOINT SET SHOW START UNLISTEN EXECUTE
    """
)
_KINDS = sorted(
    [
        ("ACCESS", "METHOD"),
        ("AGGREGATE",),
        ("CAST",),
        ("COLLATION",),
        ("CONVERSION",),
        ("DATABASE",),
        ("DEFAULT", "PRIVILEGES"),
        ("DOMAIN",),
        ("EVENT", "TRIGGER"),
        ("EXTENSION",),
        ("FOREIGN", "DATA", "WRAPPER"),
        ("FOREIGN", "SERVER"),
        ("FOREIGN", "TABLE"),
        ("FUNCTION",),
        ("GROUP",),
        ("INDEX",),
        ("LANGUAGE",),
        ("LARGE", "OBJECT"),
        ("MATERIALIZED", "VIEW"),
        ("OPERATOR", "CLASS"),
        ("OPERATOR", "FAMILY"),
        ("OPERATOR",),
        ("OWNED",),
        ("PARAMETER",),
        ("POLICY",),
        ("PROCEDURE",),
        ("PUBLICATION",),
        ("ROLE",),
        ("ROUTINE",),
        ("RULE",),
        ("SCHEMA",),
        ("SEQUENCE",),
        ("SERVER",),
        ("STATISTICS",),
        ("SUBSCRIPTION",),
        ("SYSTEM",),
        ("TABLE",),
        ("TABLESPACE",),
        ("TRIGGER",),
        ("TYPE",),
        ("USER", "MAPPING"),
        ("USER",),
        ("VIEW",),
    ],
    key=len,
    reverse=True,
)
# Words between CREATE and the kind, and between the kind and the name.
_BEFORE_KIND = words(
    """
    OR REPLACE TEMP TEMPORARY LOCAL GLOBAL UNLOGGED UNIQUE RECURSIVE TRUSTED PROCEDURAL CONSTRAINT
    """
)
_BEFORE_NAME = {"IF", "NOT", "EXISTS", "ONLY", "CONCURRENTLY"}
_ROLE_KINDS = {"ROLE", "USER", "GROUP"}
_ON_TABLE_KINDS = {"POLICY", "TRIGGER", "RULE", "INDEX"}
_CALLABLE_KINDS = {"FUNCTION", "PROCEDURE", "ROUTINE", "AGGREGATE"}
_WORD = re.compile(r"\s*(?:--[^\n]*\n\s*|/\*.*?\*/\s*)*([A-Za-z]+|\()", re.DOTALL)
_FIRST_WORD_SEARCH = 4096


def touched(sql: str, longest_bytes: int) -> Statement:
    """What the text of a statement, or of several with semicolons between, touches.

    Never raises: what is too long, too deep or not understood has `is_parsed` False and stands
    on the database with the operation that its first word names.
    """
    size = len(sql.encode("utf-8", "surrogatepass"))
    if size > longest_bytes:
        return _unparsed(sql)
    # Workloads repeat their statements; long ones would make the cache heavy.
    return _cached(sql) if size <= CACHED_STATEMENT_BYTES else _touched(sql)


def first_word(sql: str) -> str:
    """The first word of a statement in upper case, or an empty string."""
    match = _WORD.match(sql[:_FIRST_WORD_SEARCH])
    return match[1].upper() if match else ""


def _unparsed(sql: str) -> Statement:
    word = first_word(sql)
    if word == "(":
        word = "SELECT"
    operation = f"{_CLASS_OF_VERB.get(word, 'MISC')}.{word}" if word else "MISC.UNKNOWN"
    return Statement((Touch(operation),), is_parsed=False, statement_count=0)


def _touched(sql: str) -> Statement:
    try:
        tokens = _DIALECT.tokenize(sql)
        parts = list(_split(tokens))
    except (SqlglotError, RecursionError, ValueError):
        return _unparsed(sql)
    if len(parts) > MULTI_STATEMENT_MAX:
        return _unparsed(sql)
    touches: set[Touch] = set()
    is_parsed = True
    for part in parts:
        try:
            found = set(_part(part, sql))
        except (SqlglotError, _TooManySteps, RecursionError, _NotUnderstood):
            found = set()
        if not found:
            is_parsed = False
            found = set(_unparsed(sql[part[0].start :]).touches)
        touches |= found
    if not touches:  # only comments or semicolons
        return Statement((Touch("MISC.EMPTY"),), is_parsed=True, statement_count=0)
    return Statement(tuple(sorted(touches)), is_parsed, len(parts))


_cached = lru_cache(maxsize=4096)(_touched)


class _NotUnderstood(Exception):
    """The statement is not one of the forms known here."""


def _split(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """The statements between semicolons; those within parentheses or BEGIN ATOMIC do not count."""
    part: list[Token] = []
    depth = 0
    is_atomic = False
    for token in tokens:
        if token.token_type == TokenType.SEMICOLON and depth <= 0 and not is_atomic:
            if part:
                yield part
            part = []
            continue
        if token.token_type == TokenType.L_PAREN:
            depth += 1
        elif token.token_type == TokenType.R_PAREN:
            depth -= 1
        elif part and _word(token) == "ATOMIC" and _word(part[-1]) == "BEGIN":
            # A body in standard SQL ends in END; what follows on the same line is left to it.
            is_atomic = _word(part[0]) == "CREATE"
        part.append(token)
    if part:
        yield part


def _part(part: list[Token], sql: str) -> Iterable[Touch]:
    """The touches of one statement."""
    cursor = _Cursor(part)
    verb = cursor.peek()
    if verb in _QUERY_VERBS:
        return _query(part, sql)
    cursor.take()
    if verb == "EXPLAIN":
        return _explain(cursor, sql)
    if verb == "DECLARE":
        cursor.skip_to("FOR")
        return _part(cursor.rest(), sql)
    if verb == "COPY":
        return _copy(cursor, sql)
    if verb in {"GRANT", "REVOKE"}:
        return _grant(verb, cursor)
    if verb == "CREATE":
        return _create(cursor, sql)
    if verb in {"ALTER", "DROP"}:
        return _alter_or_drop(verb, cursor)
    if verb == "TRUNCATE":
        cursor.take_if("TABLE")
        return [Touch("WRITE.TRUNCATE TABLE", "TABLE", name) for name in cursor.names()]
    if verb == "COMMENT":
        cursor.expect("ON")
        return [_on_object("DDL.COMMENT", cursor)]
    if verb == "REFRESH":
        cursor.expect("MATERIALIZED", "VIEW")
        cursor.take_if("CONCURRENTLY")
        return [Touch("DDL.REFRESH MATERIALIZED VIEW", "MATERIALIZED VIEW", cursor.name())]
    if verb == "REINDEX":
        return _reindex(cursor)
    if verb in {"LOCK", "VACUUM", "ANALYZE", "ANALYSE", "CLUSTER"}:
        return _maintenance(verb, cursor)
    if verb == "CALL":
        return [Touch("FUNCTION.CALL", "PROCEDURE", cursor.name())]
    if verb == "DO":
        return [Touch("FUNCTION.DO")]
    if verb == "SET" and cursor.take_past({"SESSION", "LOCAL"}).take_if("ROLE"):
        return [Touch("MISC.SET ROLE", "ROLE", cursor.role())]
    if verb in _SESSION_VERBS:
        return [Touch(f"MISC.{verb}")]
    raise _NotUnderstood


def _explain(cursor: _Cursor, sql: str) -> Iterable[Touch]:
    if cursor.peek() == "(":
        cursor.skip_parentheses()
    cursor.take_past({"ANALYZE", "ANALYSE", "VERBOSE"})
    rest = cursor.rest()
    if not rest:
        raise _NotUnderstood
    return _part(rest, sql)


def _copy(cursor: _Cursor, sql: str) -> Iterable[Touch]:
    if cursor.peek() == "(":
        return _part(cursor.parenthesised(), sql)
    name = cursor.name()
    if cursor.peek() == "(":
        cursor.skip_parentheses()
    direction = cursor.take()
    if direction not in {"TO", "FROM"}:
        raise _NotUnderstood
    return [Touch("READ.COPY" if direction == "TO" else "WRITE.COPY", "TABLE", name)]


def _grant(verb: str, cursor: _Cursor) -> Iterable[Touch]:
    operation = f"ROLE.{verb}"
    # GRANT role, role TO role: no ON before TO or FROM.
    before, separator = cursor.until({"ON", "TO", "FROM"})
    if separator != "ON":
        before.take_past({"ADMIN", "INHERIT", "SET", "OPTION", "FOR", "GRANT"})
        return [Touch(f"{operation} ROLE", "ROLE", name) for name in before.roles()]
    targets, _ = cursor.until({"TO", "FROM"})
    if targets.take_if("ALL"):
        # ON ALL TABLES IN SCHEMA a, b
        _, separator = targets.until({"SCHEMA"})
        return [Touch(operation, "SCHEMA", name) for name in targets.names()]
    kind = targets.kind() or "TABLE"
    if kind == "LARGE OBJECT":
        return [Touch(operation, kind, oid) for oid in targets.numbers()]
    if kind == "PARAMETER":
        return [Touch(operation, kind, name) for name in targets.names(is_folded=True)]
    return [Touch(operation, kind, name) for name in targets.names()]


def _create(cursor: _Cursor, sql: str) -> Iterable[Touch]:
    cursor.take_past(_BEFORE_KIND)
    kind = cursor.kind()
    if kind is None:
        raise _NotUnderstood
    if kind in _ROLE_KINDS:
        return [Touch("ROLE.CREATE ROLE", "ROLE", cursor.role())]
    operation = f"DDL.CREATE {kind}"
    if kind in _ON_TABLE_KINDS:
        return [Touch(operation, "TABLE", cursor.table_after_on(kind))]
    if kind == "SCHEMA":
        cursor.take_past(_BEFORE_NAME)
        cursor.take_if("AUTHORIZATION")
        return [Touch(operation, kind, cursor.name())]
    if kind == "USER MAPPING":
        _, _ = cursor.until({"SERVER"})
        return [Touch(operation, "FOREIGN SERVER", cursor.name())]
    cursor.take_past(_BEFORE_NAME)
    touches = {Touch(operation, _printed_kind(kind), cursor.name())}
    if kind in {"TABLE", "MATERIALIZED VIEW"} and (query := cursor.query_after_as()):
        touches |= set(_part(query, sql)) - {Touch("READ.SELECT")}
    return touches


def _alter_or_drop(verb: str, cursor: _Cursor) -> Iterable[Touch]:
    kind = cursor.kind()
    if kind is None:
        raise _NotUnderstood
    if kind in _ROLE_KINDS:
        operation = f"ROLE.{verb} ROLE"
        cursor.take_past(_BEFORE_NAME)
        names = cursor.roles() if verb == "DROP" else [cursor.role()]
        return [Touch(operation, "ROLE", name) for name in names]
    operation = f"DDL.{verb} {kind}"
    if kind in {"SYSTEM", "DEFAULT PRIVILEGES", "OWNED", "CAST", "USER MAPPING"}:
        return [Touch(operation)]
    if kind in _ON_TABLE_KINDS - {"INDEX"}:
        return [Touch(operation, "TABLE", cursor.table_after_on(kind))]
    cursor.take_past(_BEFORE_NAME)
    if cursor.take_if("ALL"):  # ALTER TABLE ALL IN TABLESPACE
        return [Touch(operation)]
    names = cursor.names() if verb == "DROP" else [cursor.name()]
    return [Touch(operation, _printed_kind(kind), name) for name in names]


def _on_object(operation: str, cursor: _Cursor) -> Touch:
    kind = cursor.kind()
    if kind is None:
        if not cursor.take_if("COLUMN"):
            return Touch(operation)
        parts = cursor.parts()
        if len(parts) < 2:
            raise _NotUnderstood
        return Touch(operation, "TABLE", ".".join(map(quoted, parts[:-1])))
    if kind in _ROLE_KINDS:
        return Touch(operation, "ROLE", cursor.role())
    if kind in _ON_TABLE_KINDS - {"INDEX"}:
        return Touch(operation, "TABLE", cursor.table_after_on(kind))
    return Touch(operation, _printed_kind(kind), cursor.name())


def _reindex(cursor: _Cursor) -> Iterable[Touch]:
    if cursor.peek() == "(":
        cursor.skip_parentheses()
    kind = cursor.kind()
    cursor.take_if("CONCURRENTLY")
    if kind is None or cursor.is_at_end():
        return [Touch("DDL.REINDEX")]
    return [Touch("DDL.REINDEX", kind, cursor.name())]


def _maintenance(verb: str, cursor: _Cursor) -> Iterable[Touch]:
    operation = f"MISC.{'ANALYZE' if verb == 'ANALYSE' else verb}"
    if cursor.peek() == "(":
        cursor.skip_parentheses()
    cursor.take_past({"FULL", "FREEZE", "VERBOSE", "ANALYZE", "ANALYSE", "TABLE", "ONLY"})
    if cursor.is_at_end():
        return [Touch(operation)]
    return [Touch(operation, "TABLE", name) for name in cursor.names()]


def _printed_kind(kind: str) -> str:
    return "FOREIGN SERVER" if kind == "SERVER" else kind


def _query(part: list[Token], sql: str) -> Iterable[Touch]:
    """SELECT, VALUES, TABLE, INSERT, UPDATE, DELETE and MERGE, with everything in them."""
    parser = _BoundedParser(dialect=_DIALECT)
    trees = parser.allow(STEPS_BASE + STEPS_PER_TOKEN * len(part)).parse(part, sql)
    touches: set[Touch] = set()
    for tree in trees:
        if tree is None or isinstance(tree, exp.Command):
            raise _NotUnderstood
        touches |= set(_tree(tree))
    return touches


def _tree(tree: exp.Expression) -> Iterator[Touch]:
    targets: dict[int, str] = {}
    scopes = _Scopes()
    is_empty = True
    for node in tree.walk():
        if isinstance(node, exp.Insert | exp.Update | exp.Delete | exp.Merge):
            if isinstance(node.parent, exp.When):
                continue  # the branch of a MERGE, whose target is the MERGE's
            target = _target(node.this)
            if target is None:
                raise _NotUnderstood
            targets[id(target)] = f"WRITE.{node.key.upper()}"
        elif isinstance(node, exp.Into):
            target = _target(node.this)
            if target is not None:
                targets[id(target)] = "DDL.SELECT INTO"
    for table in tree.find_all(exp.Table):
        operation = targets.get(id(table))
        if operation is None and (not _is_relation(table) or scopes.has(table)):
            continue
        is_empty = False
        yield Touch(operation or "READ.SELECT", "TABLE", _table_name(table))
    if is_empty:
        yield Touch("READ.SELECT")


def _target(node: Any) -> exp.Table | None:
    if isinstance(node, exp.Table):
        return node
    found = node.find(exp.Table) if isinstance(node, exp.Expression) else None
    return found if isinstance(found, exp.Table) else None


def _is_relation(table: exp.Table) -> bool:
    """False for functions and other things that stand where a table could."""
    return bool(table.parts) and all(isinstance(part, exp.Identifier) for part in table.parts)


def _table_name(table: exp.Table) -> str:
    return ".".join(
        quoted(folded(part.name, is_quoted=bool(part.args.get("quoted")))) for part in table.parts
    )


class _Scopes:
    """Which names mean a common table expression where a table is named.

    Inside a WITH without RECURSIVE an expression sees those before it, not itself: in
    `WITH a AS (SELECT * FROM a) …` the inner `a` is the table.
    """

    def __init__(self) -> None:
        # By the id of a WITH: the place of each name in it, and of each expression's id. Looked up,
        # not searched: a statement may hold thousands of both.
        self._withs: dict[int, tuple[dict[str, int], dict[int, int]]] = {}

    def has(self, table: exp.Table) -> bool:
        """Whether the table's name is that of an expression in scope."""
        if len(table.parts) != 1:
            return False
        name = folded(table.name, is_quoted=bool(table.this.args.get("quoted")))
        child: Any = table
        node: Any = table.parent
        while node is not None:
            if isinstance(node, exp.With):
                places, order = self._with(node)
                limit = len(order) if node.args.get("recursive") else order.get(id(child), 0)
                if places.get(name, limit) < limit:
                    return True
                # Its statement would look at the same WITH again, from outside.
                child, node = node.parent, node.parent.parent if node.parent else None
                continue
            with_ = node.args.get("with_") or node.args.get("with")
            if isinstance(with_, exp.With) and name in self._with(with_)[0]:
                return True
            child, node = node, node.parent
        return False

    def _with(self, node: exp.With) -> tuple[dict[str, int], dict[int, int]]:
        known = self._withs.get(id(node))
        if known is None:
            places: dict[str, int] = {}
            for place, cte in enumerate(node.expressions):
                places.setdefault(_cte_name(cte), place)
            order = {id(cte): place for place, cte in enumerate(node.expressions)}
            known = self._withs[id(node)] = (places, order)
        return known


def _cte_name(cte: exp.Expression) -> str:
    alias = cte.args.get("alias")
    identifier = alias.this if isinstance(alias, exp.TableAlias) else alias
    if not isinstance(identifier, exp.Identifier):
        return ""
    return folded(identifier.name, is_quoted=bool(identifier.args.get("quoted")))


def _word(token: Token) -> str:
    """The token as a keyword; a quoted identifier or a string is none."""
    if token.token_type in {TokenType.IDENTIFIER, TokenType.STRING, TokenType.HEREDOC_STRING}:
        return ""
    return token.text.upper()


class _Cursor:
    """A walk over the tokens of one statement."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._index = 0

    def is_at_end(self) -> bool:
        return self._index >= len(self._tokens)

    def peek(self) -> str:
        return "" if self.is_at_end() else _word(self._tokens[self._index])

    def take(self) -> str:
        word = self.peek()
        self._index += 1
        return word

    def take_if(self, word: str) -> bool:
        if self.peek() == word:
            self._index += 1
            return True
        return False

    def take_past(self, words: Set[str]) -> _Cursor:
        while self.peek() in words and not self.is_at_end():
            self._index += 1
        return self

    def expect(self, *words: str) -> None:
        for word in words:
            if self.take() != word:
                raise _NotUnderstood

    def rest(self) -> list[Token]:
        return self._tokens[self._index :]

    def skip_to(self, word: str) -> None:
        """Go behind the next `word`."""
        _, found = self.until({word})
        if not found or self.is_at_end():
            raise _NotUnderstood

    def until(self, words: Set[str]) -> tuple[_Cursor, str]:
        """What stands before the next of `words` outside parentheses, and which it was."""
        start, depth = self._index, 0
        while not self.is_at_end():
            word = self.peek()
            if depth == 0 and word in words:
                before = _Cursor(self._tokens[start : self._index])
                self._index += 1
                return before, word
            depth += {"(": 1, ")": -1}.get(word, 0)
            self._index += 1
        return _Cursor(self._tokens[start:]), ""

    def parenthesised(self) -> list[Token]:
        """The tokens within the parentheses that start here."""
        self.expect("(")
        start, depth = self._index, 1
        while depth and not self.is_at_end():
            depth += {"(": 1, ")": -1}.get(self.take(), 0)
        inner = self._tokens[start : self._index - 1]
        if depth or not inner:
            raise _NotUnderstood
        return inner

    def skip_parentheses(self) -> None:
        self.parenthesised()

    def kind(self) -> str | None:
        """The kind of object named here, in pgaudit's words, or None."""
        words = [_word(token) for token in self._tokens[self._index : self._index + 3]]
        for kind in _KINDS:
            if tuple(words[: len(kind)]) == kind and len(words) > len(kind) - 1:
                self._index += len(kind)
                return " ".join(kind)
        return None

    def parts(self) -> list[str]:
        """A qualified name, stored spelling."""
        parts: list[str] = []
        while True:
            if self.is_at_end():
                raise _NotUnderstood
            token = self._tokens[self._index]
            is_quoted = token.token_type == TokenType.IDENTIFIER
            text = token.text
            if not is_quoted and not re.fullmatch(r"[^\W\d][\w$]*", text):
                raise _NotUnderstood
            if token.token_type in {TokenType.STRING, TokenType.HEREDOC_STRING}:
                raise _NotUnderstood
            parts.append(folded(text, is_quoted=is_quoted))
            self._index += 1
            if not self.take_if("."):
                return parts

    def name(self) -> str:
        self.take_past({"ONLY"})
        return ".".join(quoted(part) for part in self.parts())

    def names(self, *, is_folded: bool = False) -> list[str]:
        """Names with commas between; argument lists and `*` behind a name are skipped."""
        names = []
        while True:
            self.take_past(_BEFORE_NAME)
            parts = self.parts()
            names.append(".".join(parts if is_folded else map(quoted, parts)))
            self.take_if("*")
            if self.peek() == "(":
                self._skip_arguments()
            if not self.take_if(","):
                return names

    def _skip_arguments(self) -> None:
        depth = 0
        while not self.is_at_end():
            depth += {"(": 1, ")": -1}.get(self.take(), 0)
            if depth == 0:
                return
        raise _NotUnderstood

    def role(self) -> str:
        parts = self.parts()
        if len(parts) != 1:
            raise _NotUnderstood
        return parts[0]

    def roles(self) -> list[str]:
        roles = [self.role()]
        while self.take_if(","):
            roles.append(self.role())
        return roles

    def numbers(self) -> list[str]:
        numbers = [word for word in (self.take() for _ in self.rest()) if word != ","]
        if not numbers or not all(word.isdigit() for word in numbers):
            raise _NotUnderstood
        return numbers

    def table_after_on(self, kind: str) -> str:
        """The table of a policy, trigger, rule or index."""
        _, found = self.until({"ON"} if kind != "RULE" else {"TO", "ON"})
        if kind == "RULE" and found == "ON":  # ON event TO table; DROP RULE … ON table
            mark = self._index
            _, is_create = self.until({"TO"})
            if not is_create:
                self._index = mark
        if not found:
            raise _NotUnderstood
        return self.name()

    def query_after_as(self) -> list[Token]:
        """The query of CREATE … AS query, or nothing."""
        _, found = self.until({"AS"})
        rest = self.rest()
        return rest if found and rest and _word(rest[0]) in _QUERY_VERBS else []


# What a password is written as: '…', E'…', U&'…', $tag$…$tag$.
_PASSWORD = re.compile(
    r"(\bPASSWORD\s+)(?:(?:E|U&)?'(?:[^'\\]|''|\\.)*'?|(\$\w*\$).*?(?:\2|\Z))",
    re.IGNORECASE | re.DOTALL,
)


def redacted(text: str) -> str:
    """The text with `<redacted>` for every password literal of CREATE or ALTER ROLE."""
    return _PASSWORD.sub(r"\1<redacted>", text)


__all__ = ["Statement", "Touch", "first_word", "redacted", "touched"]
