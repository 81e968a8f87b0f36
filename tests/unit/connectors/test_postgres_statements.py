"""What a statement touches, found from its text."""

# ruff: noqa: E501 - the tables read best with a case a line

from __future__ import annotations

import logging
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.postgres.statements import redacted, touched

LIMIT = 64 * 1024


def found(sql: str) -> set[str]:
    statement = touched(sql, LIMIT)
    assert statement.is_parsed, sql
    return {
        f"{touch.operation} {touch.kind}:{touch.name}" if touch.kind else touch.operation
        for touch in statement.touches
    }


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        # Queries: every relation, and only relations.
        ("SELECT 1", {"READ.SELECT"}),
        ("select * from fin.salary", {"READ.SELECT TABLE:fin.salary"}),
        ("select $1 from a where x = $2", {"READ.SELECT TABLE:a"}),
        ("TABLE a", {"READ.SELECT TABLE:a"}),
        ("VALUES (1), (2)", {"READ.SELECT"}),
        ("((select 1 from a))", {"READ.SELECT TABLE:a"}),
        ("select f(x) from generate_series(1, 2)", {"READ.SELECT"}),
        ("select * from only a", {"READ.SELECT TABLE:a"}),
        (
            "select a.x from a as t join b using (y) where x in (select 1 from c)",
            {"READ.SELECT TABLE:a", "READ.SELECT TABLE:b", "READ.SELECT TABLE:c"},
        ),
        ("/* a note */ select 1 from a -- end", {"READ.SELECT TABLE:a"}),
        ("explain (analyze, buffers) select * from a", {"READ.SELECT TABLE:a"}),
        ("declare c cursor with hold for select * from a", {"READ.SELECT TABLE:a"}),
        # Common table expressions are no objects, except where they are not in scope.
        (
            "with c as (select * from a) insert into b select * from c",
            {"READ.SELECT TABLE:a", "WRITE.INSERT TABLE:b"},
        ),
        ("with a as (select * from a) select * from a", {"READ.SELECT TABLE:a"}),
        (
            "with recursive a as (select 1 union select * from a) select * from a, s.a",
            {"READ.SELECT TABLE:s.a"},
        ),
        (
            "with x as (delete from q returning *) insert into r select * from x",
            {"WRITE.DELETE TABLE:q", "WRITE.INSERT TABLE:r"},
        ),
        (
            "with a as (select 1), b as (select * from a, (with d as (select 1 from c) "
            "select * from d, a) k) select * from b",
            {"READ.SELECT TABLE:c"},
        ),
        # Writes: the target is written, the rest is read.
        ("insert into a (x) values (1) on conflict do nothing", {"WRITE.INSERT TABLE:a"}),
        ("insert into a select * from a", {"WRITE.INSERT TABLE:a", "READ.SELECT TABLE:a"}),
        (
            "update a k set x = 1 from b where k.y = b.y",
            {"WRITE.UPDATE TABLE:a", "READ.SELECT TABLE:b"},
        ),
        ("delete from a using b", {"WRITE.DELETE TABLE:a", "READ.SELECT TABLE:b"}),
        (
            "merge into t using s on t.a = s.a when matched then update set b = 1 "
            "when not matched then insert values (1)",
            {"WRITE.MERGE TABLE:t", "READ.SELECT TABLE:s"},
        ),
        ("truncate a, only b.c", {"WRITE.TRUNCATE TABLE TABLE:a", "WRITE.TRUNCATE TABLE TABLE:b.c"}),
        ("copy fin.t (a, b) to stdout", {"READ.COPY TABLE:fin.t"}),
        ("copy t from stdin", {"WRITE.COPY TABLE:t"}),
        ("copy (select * from a.b) to stdout", {"READ.SELECT TABLE:a.b"}),
        ("select * into x from y", {"DDL.SELECT INTO TABLE:x", "READ.SELECT TABLE:y"}),
        # Definitions.
        ("create table if not exists a.x (id int references q (id))", {"DDL.CREATE TABLE TABLE:a.x"}),
        ("create table x as select * from y", {"DDL.CREATE TABLE TABLE:x", "READ.SELECT TABLE:y"}),
        ("create or replace view v as select * from t", {"DDL.CREATE VIEW VIEW:v"}),
        ("create unique index concurrently i on s.a (x)", {"DDL.CREATE INDEX TABLE:s.a"}),
        ("create policy p on a using (true)", {"DDL.CREATE POLICY TABLE:a"}),
        ("create function s.f() returns int as $$ select 1; $$ language sql", {"DDL.CREATE FUNCTION FUNCTION:s.f"}),
        ("create function f() returns int begin atomic select 1; select 2; end", {"DDL.CREATE FUNCTION FUNCTION:f"}),
        ("alter table only a enable row level security", {"DDL.ALTER TABLE TABLE:a"}),
        ("drop table if exists a, b cascade", {"DDL.DROP TABLE TABLE:a", "DDL.DROP TABLE TABLE:b"}),
        ("comment on column s.t.c is 'y'", {"DDL.COMMENT TABLE:s.t"}),
        ("refresh materialized view concurrently m", {"DDL.REFRESH MATERIALIZED VIEW MATERIALIZED VIEW:m"}),
        ("alter default privileges grant select on tables to bob", {"DDL.ALTER DEFAULT PRIVILEGES"}),
        # Roles and grants.
        ("grant select (a, b), insert on fin.salary, b to bob", {"ROLE.GRANT TABLE:fin.salary", "ROLE.GRANT TABLE:b"}),
        ("revoke grant option for all on schema x from bob", {"ROLE.REVOKE SCHEMA:x"}),
        ("grant execute on function f(int, text), g() to x", {"ROLE.GRANT FUNCTION:f", "ROLE.GRANT FUNCTION:g"}),
        ('grant all on all tables in schema a, "B" to x', {"ROLE.GRANT SCHEMA:a", 'ROLE.GRANT SCHEMA:"B"'}),
        ("grant a, b to c with admin option", {"ROLE.GRANT ROLE ROLE:a", "ROLE.GRANT ROLE ROLE:b"}),
        ("grant set on parameter log_statement to x", {"ROLE.GRANT PARAMETER:log_statement"}),
        ("grant all on large object 123 to x", {"ROLE.GRANT LARGE OBJECT:123"}),
        ("create user bob password 'x'", {"ROLE.CREATE ROLE ROLE:bob"}),
        ("drop role bob, c", {"ROLE.DROP ROLE ROLE:bob", "ROLE.DROP ROLE ROLE:c"}),
        ("set local role bob", {"MISC.SET ROLE ROLE:bob"}),
        # The rest.
        ("begin", {"MISC.BEGIN"}),
        ("set x = 1", {"MISC.SET"}),
        ("do $$ begin delete from a; end $$", {"FUNCTION.DO"}),
        ("call s.p(1)", {"FUNCTION.CALL PROCEDURE:s.p"}),
        ("lock table a, b in exclusive mode", {"MISC.LOCK TABLE:a", "MISC.LOCK TABLE:b"}),
        ("vacuum (full) a", {"MISC.VACUUM TABLE:a"}),
        ("prepare p as select * from a", {"MISC.PREPARE"}),
        # Several statements; semicolons in strings, parentheses and bodies do not part them.
        ("select 1;; delete from b; -- end", {"READ.SELECT", "WRITE.DELETE TABLE:b"}),
        ("insert into a values (';'); select $x$ ; $x$ from c", {"WRITE.INSERT TABLE:a", "READ.SELECT TABLE:c"}),
        # Names are folded and quoted as PostgreSQL prints them.
        (
            'select * from Fin.SALARY, "Größe"."T", "order", "plain"',
            {
                "READ.SELECT TABLE:fin.salary",
                'READ.SELECT TABLE:"Größe"."T"',
                'READ.SELECT TABLE:"order"',
                "READ.SELECT TABLE:plain",
            },
        ),
    ],
)  # fmt: skip
def test_every_object_is_found_and_nothing_else(sql: str, expected: set[str]) -> None:
    assert found(sql) == expected


@pytest.mark.parametrize(
    ("sql", "operation"),
    [
        ("security label on table a is 'x'", "DDL.SECURITY"),
        ("select 'never closed", "READ.SELECT"),
        ("select from where", "READ.SELECT"),
        ("\\x", "MISC.UNKNOWN"),
        ("select " + "- " * 20000 + "1", "READ.SELECT"),
        ("insert into t values " + "(1)," * 30000 + "(1)", "WRITE.INSERT"),
    ],
    ids=["unknown", "unclosed", "nonsense", "no word", "too deep", "too long"],
)
def test_what_is_not_understood_stands_on_the_database(sql: str, operation: str) -> None:
    statement = touched(sql, LIMIT)
    assert not statement.is_parsed
    assert [(t.operation, t.kind, t.name) for t in statement.touches] == [(operation, "", "")]


def test_a_part_that_is_not_understood_does_not_hide_the_others() -> None:
    statement = touched("delete from a; security label on table b is 'x'", LIMIT)
    assert not statement.is_parsed
    assert [t.operation for t in statement.touches] == ["DDL.SECURITY", "WRITE.DELETE"]


def test_a_statement_that_makes_the_parser_explode_is_given_up_at_once() -> None:
    """Nested ARRAY[…] doubles the steps a level: 40 levels would take longer than the universe."""
    started = time.monotonic()
    statement = touched("select " + "array[" * 40 + "1" + "]" * 40, LIMIT)
    assert not statement.is_parsed
    assert time.monotonic() - started < 60


def test_nothing_of_a_statement_reaches_the_log_of_this_program(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG):
        touched("select 1 from a where x = any (some 'very-secret' nonsense", LIMIT)
        logging.getLogger("sqlglot").warning("'%s' contains unsupported syntax", "very-secret")
    assert "very-secret" not in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("create role a password 'x''y' login", "create role a password <redacted> login"),
        (r"ALTER ROLE a PASSWORD E'a\'b' x", "ALTER ROLE a PASSWORD <redacted> x"),
        ("alter role a password $q$ab$q$;", "alter role a password <redacted>;"),
        ("alter role a password 'never closed", "alter role a password <redacted>"),
        ("alter role a password null", "alter role a password null"),
    ],
)
def test_passwords_are_redacted(text: str, expected: str) -> None:
    assert redacted(text) == expected


@settings(deadline=None)  # a busy machine is no failure
@given(st.text(max_size=300))
def test_any_text_gives_at_least_one_touch(sql: str) -> None:
    statement = touched(sql, LIMIT)
    assert statement.touches
    assert list(statement.touches) == sorted(set(statement.touches))


_SQL_WORDS = st.sampled_from(
    [
        "select",
        "from",
        "where",
        "with",
        "as",
        "(",
        ")",
        ",",
        ";",
        "a",
        "b.c",
        '"D"',
        "'x'",
        "$1",
        "$$",
        "insert",
        "into",
        "update",
        "set",
        "delete",
        "grant",
        "on",
        "to",
        "revoke",
        "create",
        "table",
        "drop",
        "alter",
        "role",
        "copy",
        "merge",
        "using",
        "values",
        "[",
        "]",
        "array",
        "::",
        ".",
        "*",
        "-",
        "explain",
    ]
)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(_SQL_WORDS, max_size=60))
def test_any_words_of_sql_give_at_least_one_touch(words: list[str]) -> None:
    assert touched(" ".join(words), LIMIT).touches
