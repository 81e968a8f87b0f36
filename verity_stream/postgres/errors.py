"""What Postgres answers, as one of the five errors: a table by SQLSTATE and its classes.

The classes are PostgreSQL's own list (appendix A of its manual, `errcodes.txt`), which
`test_postgres_errors.py` holds the table against. A code that has no row of its own is judged by
its class, an unknown class is `Unavailable`; both are shown with their number.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

import asyncpg

from verity_sdk.errors import Denied, Misconfigured, Unavailable, VerityError


class Verdict(NamedTuple):
    """A row: which of the five errors, and what is shown to who must act."""

    kind: type[VerityError]
    sentence: str = ""


_PASSES = Verdict(Unavailable)
_STATEMENT = Verdict(
    Misconfigured,
    "the database does not take a statement of ours: its tables are not as Verity's migrations "
    "made them, it is not PostgreSQL 14 or newer, or this is a bug; please report it",
)
_MIGRATIONS = Verdict(Misconfigured, "run `verity migrate`")
_POOLER = Verdict(
    Misconfigured,
    "a pooler stands between that gives each transaction another connection: let "
    "VERITY_DATABASE__DSN lead to the server itself, or to a pool in session mode",
)
_PARAMETER = Verdict(
    Misconfigured, "VERITY_DATABASE__DSN has a parameter that the server does not take"
)

_OF_STATEMENTS = ("03", "09", "0B", "0F", "0L", "0P", "0Z", "10", "20", "21", "22", "23", "24")
_OF_OBJECTS = ("27", "2B", "2D", "2F", "34", "38", "39", "3B", "42", "44", "P0", "HV")

READ_ONLY = (
    "the server is read-only: a standby, or one that was failed over; the next try connects anew, "
    "and finds the one that takes writes where VERITY_DATABASE__DSN names it (several hosts, or "
    "the vendor's address for writing)"
)

VERDICTS: Mapping[str, Verdict] = {
    # Nothing is wrong.
    **dict.fromkeys(("00", "01", "02"), _PASSES),
    # The same statement fails again.
    **dict.fromkeys((*_OF_STATEMENTS, *_OF_OBJECTS), _STATEMENT),
    "08": _PASSES,
    "0A": Verdict(Misconfigured, "the server lacks what Verity needs: PostgreSQL 14 or newer"),
    "25": _PASSES,
    "25006": Verdict(Unavailable, READ_ONLY),
    "26": _POOLER,
    "42P05": _POOLER,
    "28": Verdict(
        Denied,
        "VERITY_DATABASE__DSN's user or password is wrong, or the server's pg_hba.conf does not "
        "let this user in from here, or not without TLS (sslmode=require)",
    ),
    "0P000": Verdict(Denied, "the role does not exist"),
    "3D": Verdict(Misconfigured, "VERITY_DATABASE__DSN names a database that does not exist"),
    "3F": Verdict(Misconfigured, "the role's search_path names no schema that exists"),
    "40": _PASSES,
    "42501": Verdict(Denied, "the role lacks a right (docs/operating.md)"),
    "42P01": _MIGRATIONS,
    "42703": _MIGRATIONS,
    **dict.fromkeys(
        ("22021", "22P05"),
        Verdict(
            Misconfigured,
            "a text, as a connector's cursor, holds a character that the database can't store: a "
            "zero character, or one that its encoding lacks (UTF8 is needed)",
        ),
    ),
    "42704": _PARAMETER,
    "22023": _PARAMETER,
    "55P02": _PARAMETER,
    "53": Verdict(Unavailable, "the server has run out of a resource; if it stays so, see to it"),
    "53100": Verdict(Unavailable, "the server's disk is full: make room"),
    "53300": Verdict(
        Unavailable,
        "the server has as many connections as it allows: if it stays so, raise its "
        "max_connections (or the role's limit), or lower VERITY_DATABASE__POOL_SIZE_MAX and "
        "VERITY_DATABASE__CONNECTOR_POOL_SIZE_MAX of all workers together",
    ),
    "54": _STATEMENT,
    "55": _PASSES,
    "57": _PASSES,
    "57P04": Verdict(Misconfigured, "VERITY_DATABASE__DSN names a database that was dropped"),
    "58": Verdict(Unavailable, "the server can't use its own files; if it stays so, see to it"),
    "72": _PASSES,
    "F0": Verdict(Misconfigured, "the server's own configuration file is wrong"),
    "XX": Verdict(Unavailable, "an error inside of the server; if it stays so, see to it"),
}
"""By SQLSTATE, or by its first two characters, the class."""

_OF_THE_CLIENT: Mapping[type[Exception], Verdict] = {
    # After a change of a table, which a new connection knows (0A000 as well).
    asyncpg.InvalidCachedStatementError: _PASSES,
    asyncpg.OutdatedSchemaCacheError: _PASSES,
    asyncpg.exceptions.UnsupportedClientFeatureError: _PARAMETER,
    asyncpg.exceptions.UnsupportedServerFeatureError: VERDICTS["0A"],
    asyncpg.exceptions.TargetServerAttributeNotMatched: Verdict(
        Unavailable,
        "none of VERITY_DATABASE__DSN's hosts is what its target_session_attrs asks for, "
        f"read-write where nothing is said: {READ_ONLY}",
    ),
    ssl.SSLError: Verdict(
        Misconfigured,
        "TLS with the server fails: VERITY_DATABASE__DSN's sslmode or sslrootcert is not what the "
        "server needs",
    ),
}
_TEXTS: Mapping[str, Verdict] = {
    # pgbouncer answers 08P01 for everything, and asyncpg a plain ConnectionError.
    "unsupported startup parameter": Verdict(
        Misconfigured,
        "a pooler does not pass on a parameter of VERITY_DATABASE__DSN: leave it out, or add it "
        "to the pooler's ignore_startup_parameters",
    ),
    "rejected SSL upgrade": Verdict(
        Misconfigured,
        "VERITY_DATABASE__DSN asks for TLS (sslmode), which the server does not speak",
    ),
}


def verdict_of(error: BaseException) -> Verdict:
    """Who must act on an error of asyncpg's, or of the connection."""
    for text, verdict in _TEXTS.items():
        if text in str(error):
            return verdict
    for kind, verdict in _OF_THE_CLIENT.items():
        if isinstance(error, kind):
            return verdict
    code = str(getattr(error, "sqlstate", None) or "")
    return VERDICTS.get(code) or VERDICTS.get(code[:2]) or _PASSES


@asynccontextmanager
async def database_errors(doing: str) -> AsyncIterator[None]:
    """Turn what asyncpg raises into the errors that say who must act.

    Raises:
        Denied: The role may not do this, or its password is wrong.
        Misconfigured: The address, the server, a pooler or the tables are not what is needed.
        Unavailable: Anything else; the statement may or may not have been carried out.
    """
    try:
        yield
    except asyncpg.exceptions.ClientConfigurationError as error:
        raise Misconfigured(
            f"VERITY_DATABASE__DSN is no Postgres address ({type(error).__name__})"
        ) from None
    except TimeoutError as error:
        raise Unavailable(f"{doing}: no free connection, or no answer, in time") from error
    except (
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
        OSError,
    ) as error:
        kind, sentence = verdict_of(error)
        code = getattr(error, "sqlstate", None)
        number = f" ({code})" if code else ""
        # One line: a hint of the server's stands on another one.
        what = " ".join(f"{doing}: {type(error).__name__}{number}: {error}".split())
        raise kind(f"{what.rstrip(': ')}; {sentence}".removesuffix("; ")) from error
