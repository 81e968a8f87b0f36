"""The PostgreSQL connector takes the same addresses, through its own connection, and a pooler."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import pytest
from poolers import pgbouncer

from connectors.postgres.server import VERSION_SQL, Server
from connectors.postgres.settings import Settings
from verity_sdk.errors import Misconfigured

pytestmark = pytest.mark.stack


def server(dsn: str) -> Server:
    return Server(Settings.model_validate({"connector_id": "pg", "dsn": dsn}))


async def version(dsn: str) -> Any:
    observed = server(dsn)
    try:
        async with observed.snapshot(None) as snapshot:
            rows = [row["n"] async for row in snapshot.rows("SELECT generate_series(1, 9) AS n")]
            assert rows == list(range(1, 10))
            return await snapshot.value(VERSION_SQL)
    finally:
        await observed.close()


@pytest.mark.parametrize(
    "parameters",
    [
        "channel_binding=require",
        "connect_timeout=10&keepalives=1&gssencmode=prefer&pgbouncer=true",
        "application_name=ours&options=-c%20statement_timeout%3D30s",
    ],
)
async def test_a_parameter_keeps_nobody_from_connecting(database: str, parameters: str) -> None:
    assert await version(f"{database}?{parameters}") >= 150_000


async def test_the_other_form(database: str) -> None:
    place = urlsplit(database)
    dsn = (
        f"host={place.hostname} port={place.port} dbname={place.path[1:]} user={place.username} "
        f"password={place.password}"
    )
    assert await version(dsn) >= 150_000


@pytest.mark.parametrize("parameters", ["no_such_thing=very-secret", "shared_buffers=very-secret"])
async def test_what_the_server_does_not_take_is_named(database: str, parameters: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        await version(f"{database}?{parameters}")
    assert parameters.partition("=")[0] in str(caught.value)
    assert "very-secret" not in str(caught.value)


async def test_a_pooler_is_named_and_works_where_it_lets_by_what_is_set(database: str) -> None:
    async with pgbouncer(database, "transaction") as address:
        with pytest.raises(Misconfigured, match=r"a pooler refuses.*default_transaction_read_only"):
            await version(address)
    async with pgbouncer(
        database, "transaction", ignore_startup_parameters="default_transaction_read_only"
    ) as address:
        assert await version(address) >= 150_000
