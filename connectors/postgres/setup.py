"""The SQL that prepares a server to be observed."""

from __future__ import annotations

from importlib.resources import files

NAME_BYTES_MAX = 63


def setup_sql(role: str) -> str:
    """The SQL that installs the log reader for a role; a superuser runs it.

    The role's name is quoted, so any name that PostgreSQL allows is safe to pass.

    Raises:
        ValueError: PostgreSQL allows no such name.
    """
    size = len(role.encode("utf-8"))
    if not 0 < size <= NAME_BYTES_MAX or not role.isprintable():
        raise ValueError(f"a role's name has 1 to {NAME_BYTES_MAX} bytes and no control characters")
    if role.startswith("pg_") or role in {"public", "none"}:
        raise ValueError("this name is reserved by PostgreSQL")
    template = (files(__package__) / "sql" / "install_reader.sql").read_text(encoding="utf-8")
    # One pass over the text: a role named {role} must not be replaced again.
    parts = template.replace("{role_literal}", "\0literal\0").replace("{role}", "\0name\0")
    values = {"literal": _literal(role), "name": _identifier(role)}
    return "".join(
        values[part] if index % 2 else part for index, part in enumerate(parts.split("\0"))
    )


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    doubled = text.replace("'", "''")
    if "\\" in doubled:
        # Whatever standard_conforming_strings is.
        return "E'" + doubled.replace("\\", "\\\\") + "'"
    return f"'{doubled}'"
