"""Names of roles and objects as Verity's references spell them; events and grants agree."""

from __future__ import annotations

import re


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


# Words that PostgreSQL quotes when it prints an identifier: pg_get_keywords() where catcode <> 'U',
# the union of 15.18 and 18.4, read 2026-11-24.
_QUOTED_WORDS = words(
    """
    all analyse analyze and any array as asc asymmetric authorization between bigint binary bit
    boolean both case cast char character check coalesce collate collation column concurrently
    constraint create cross current_catalog current_date current_role current_schema current_time
    current_timestamp current_user dec decimal default deferrable desc distinct do else end except
    exists extract false fetch float for foreign freeze from full grant greatest group grouping
    having ilike in initially inner inout int integer intersect interval into is isnull join json
    json_array json_arrayagg json_exists json_object json_objectagg json_query json_scalar
    json_serialize json_table json_value lateral leading least left like limit localtime
    localtimestamp merge_action national natural nchar none normalize not notnull null nullif
    numeric offset on only or order out outer overlaps overlay placing position precision primary
    real references returning right row select session_user setof similar smallint some substring
    symmetric system_user table tablesample then time timestamp to trailing treat trim true union
    unique user using values varchar variadic verbose when where window with xmlattributes
    xmlconcat xmlelement xmlexists xmlforest xmlnamespaces xmlparse xmlpi xmlroot xmlserialize
    xmltable
    """
)
_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")


def folded(text: str, *, is_quoted: bool) -> str:
    """An identifier as the server stores it: unquoted ones in lower case."""
    return text if is_quoted else text.lower()


def quoted(name: str) -> str:
    """A stored name as PostgreSQL prints it: in quotes only where it must."""
    if _PLAIN.fullmatch(name) and name not in _QUOTED_WORDS:
        return name
    return '"' + name.replace('"', '""') + '"'


def role_ref(server: str, role: str) -> str:
    """A role in a reference; roles belong to the server, not to a database."""
    return f"pg:{server}/role:{role}"


def public_ref(server: str) -> str:
    """PUBLIC in a reference: every role there is and will be. No role can have this spelling."""
    return f"pg:{server}/PUBLIC"


def asset_ref(server: str, database: str | None, kind: str | None, name: str | None) -> str:
    """An object in a reference: `pg:{server}/{database}/{KIND}:{name}`.

    Args:
        server: The server's name.
        database: The database; None for what belongs to the whole server.
        kind: In pgaudit's words (`TABLE`, `MATERIALIZED VIEW`, …); None for the database itself.
        name: As PostgreSQL prints it, qualified where the source says so.
    """
    if kind == "ROLE" and name is not None:
        return role_ref(server, name)
    base = f"pg:{server}/{database}" if database else f"pg:{server}"
    return base if kind is None or name is None else f"{base}/{kind}:{name}"
