"""A role with the rights of a worker and no more: nothing asks for a right before it is needed."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from contract.streams import AT

from verity_common.config import DatabaseSettings
from verity_common.kafka import KafkaSettings
from verity_sdk.errors import Denied
from verity_stream.cli.check import Findings, _check_database
from verity_stream.postgres.checkpoints import Persisted, PostgresCheckpoints
from verity_stream.postgres.controls import Controls
from verity_stream.postgres.pool import (
    close_pool,
    create_pool,
    migrate,
    open_pools,
    require_migrations,
)
from verity_stream.postgres.reports import Reports
from verity_stream.postgres.rights import RIGHTS, grants
from verity_stream.records import SnapshotResult
from verity_stream.settings import StreamSettings
from verity_stream.status import State, Status

pytestmark = pytest.mark.stack
PLACES = [(table, right) for table, rights in RIGHTS.items() for right in rights]


@dataclass(frozen=True)
class Weak:
    """A role without any right of its own, and who made it."""

    name: str
    dsn: str
    boss: Any

    def settings(self) -> StreamSettings:
        return StreamSettings(
            database=DatabaseSettings(dsn=self.dsn),
            kafka=KafkaSettings(bootstrap_servers="localhost:1"),
        )


@pytest.fixture
async def weak(database: str) -> AsyncIterator[Weak]:
    name = f"weak_{secrets.token_hex(4)}"
    boss = await asyncpg.connect(database)
    address = urlsplit(database)
    place = f"{name}:weak@{address.hostname}:{address.port}"
    try:
        await boss.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'weak'")
        yield Weak(name, address._replace(netloc=place).geturl(), boss)
    finally:
        await boss.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")
        await boss.close()


@pytest.fixture
async def granted(database: str, weak: Weak) -> Weak:
    """Migrated by the owner; the role has what `grants` says."""
    pool = await create_pool(DatabaseSettings(dsn=database))
    await migrate(pool)
    await close_pool(pool)
    for statement in grants(weak.name):
        await weak.boss.execute(statement)
    return weak


async def test_a_role_without_create_starts_where_nothing_is_missing(granted: Weak) -> None:
    for mode in ("apply", "check"):
        settings = granted.settings().model_copy(update={"migrate": mode})
        pools = await open_pools(settings)
        assert await migrate(pools.own) == []
        await require_migrations(pools.own)
        for pool in pools:
            await close_pool(pool)


async def test_the_rights_are_enough_for_all_that_workers_and_operators_do(granted: Weak) -> None:
    pool = await create_pool(DatabaseSettings(dsn=granted.dsn))
    try:
        store, controls, reports = PostgresCheckpoints(pool, "k"), Controls(pool), Reports(pool)
        await store.provenance("c")
        claimed = await store.claim("c")
        assert (
            await store.persist(replace(claimed, version=1, last_ts=AT), expected_version=0)
            is Persisted.DONE
        )
        await pool.execute("UPDATE connector_checkpoints SET last_ts = now()")  # The trigger's row.
        await controls.edited_version("c")
        await controls.set_paused("c", is_paused=True, who="me", reason="r")
        stored = await controls.stored("c")
        await controls.rewind(
            stored, replace(stored, version=stored.version + 1, last_ts=AT), who="me", reason="r"
        )
        await controls.set_paused("c", is_paused=False, who="me", reason="r")
        await controls.request_restart("c", who="me", reason="r")
        asked = await controls.request_snapshot("c", who="me", reason="r")
        await reports.snapshot_taken("c", SnapshotResult("s", AT), asked)
        for number in range(25):  # The trigger deletes the oldest errors.
            status = Status("c", "test", state=State.BLOCKED, last_error=f"error {number}")
            await reports.report([status])
        await reports.overview()
        # What `agree_on_key` does, which needs a Kafka besides.
        await pool.execute("INSERT INTO verity_id_key (key) VALUES ($1)", bytes(16))
        await pool.execute("UPDATE verity_id_key SET key = $1", bytes(16))
        assert await pool.fetchval("SELECT key FROM verity_id_key") == bytes(16)
    finally:
        await close_pool(pool)


@pytest.mark.parametrize(("table", "right"), PLACES)
async def test_check_names_a_right_that_is_missing(granted: Weak, table: str, right: str) -> None:
    await granted.boss.execute(f"REVOKE {right} ON {table} FROM {granted.name}")
    findings = Findings()
    await _check_database(granted.settings(), findings)
    assert [code for code, _ in findings.faults] == [1]
    line = findings.faults[0][1]
    assert f"{right} ON {table}" in line
    assert "\n" not in line
    with pytest.raises(Denied, match=f"{right} ON {table}"):  # And a start says the same.
        await open_pools(granted.settings())


async def test_who_may_create_but_owns_no_table_is_told_before_the_start(granted: Weak) -> None:
    await granted.boss.execute(f"GRANT CREATE ON SCHEMA public TO {granted.name}")
    await granted.boss.execute(
        "DELETE FROM verity_migrations WHERE name = (SELECT max(name) FROM verity_migrations)"
    )
    findings = Findings()
    await _check_database(granted.settings(), findings)
    assert "may not create or change" in findings.faults[0][1]
    with pytest.raises(Denied):
        await open_pools(granted.settings())


async def test_the_documented_grants_are_those_of_the_code() -> None:
    documented = (Path(__file__).parents[2] / "docs" / "operating.md").read_text("utf-8")
    for statement in grants("verity_worker"):
        assert f"{statement};" in documented
