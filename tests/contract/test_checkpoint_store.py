"""Checkpoint stores: Postgres, and the one in memory that the fault tests stand on."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from contract.streams import AT, new_name
from faults.memory import MemoryCheckpoints, Script
from hypothesis import example, given, settings
from unit.stream.relay.test_cursors import CURSORS

from verity_common.config import DatabaseSettings
from verity_sdk.errors import Misconfigured, Unavailable
from verity_sdk.position import FIRST_SINCE
from verity_stream.postgres.checkpoints import Persisted, PostgresCheckpoints
from verity_stream.postgres.controls import Controls
from verity_stream.postgres.pool import create_pool, migrate
from verity_stream.postgres.reports import Reports
from verity_stream.records import Checkpoint, Seen, SeenInTopics
from verity_stream.relay.cursors import given_cursor, stored_cursor
from verity_stream.status import State, Status

pytestmark = pytest.mark.stack

SPECIFICATION_SELECT = "SELECT last_ts FROM connector_checkpoints WHERE connector_id = $1"
SPECIFICATION_UPSERT = (
    "INSERT INTO connector_checkpoints (connector_id, last_ts) VALUES ($1, $2) "
    "ON CONFLICT (connector_id) DO UPDATE SET last_ts = EXCLUDED.last_ts"
)


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Any]:
    pool = await create_pool(DatabaseSettings(dsn=database))
    await migrate(pool)
    yield pool
    await pool.close()


class InPostgres(PostgresCheckpoints):
    """With the pool that an operator's own statements take."""

    def __init__(self, pool: Any) -> None:
        super().__init__(pool)
        self.pool = pool


@pytest.fixture(params=["postgres", "memory"])
def store(request: pytest.FixtureRequest, pool: Any) -> Any:
    if request.param == "postgres":
        return InPostgres(pool)
    return MemoryCheckpoints().scripted(Script())


async def edit_cursor(store: Any, connector: str, cursor: dict[str, Any]) -> None:
    """What an operator types to move the cursor alone."""
    if isinstance(store, InPostgres):
        await store.pool.execute(
            "UPDATE connector_checkpoints SET cursor = $2 WHERE connector_id = $1",
            connector,
            cursor,
        )
    else:
        store.store.edit(connector, cursor=cursor)


async def edit(store: Any, connector: str, at: datetime) -> None:
    """What an operator types."""
    if isinstance(store, InPostgres):
        await store.pool.execute(SPECIFICATION_UPSERT, connector, at)
    else:
        store.store.edit(connector, at)


def after(claimed: Checkpoint, **fields: Any) -> Checkpoint:
    """The checkpoint of the next page."""
    return replace(
        claimed,
        **{
            "version": claimed.version + 1,
            "last_ts": AT,
            "cursor": {"é": [1, None, {"a": 1.5}], "big": 2**53},
            "complete_through": AT,
            "seen": Seen(2**40, 7),
            **fields,
        },
    )


# Claims and comparisons, both stores


async def test_a_first_claim_makes_the_row(store: Any) -> None:
    connector = new_name()
    assert await store.load(connector) is None
    claimed = await store.claim(connector)
    assert claimed == Checkpoint(connector, 0, 1, FIRST_SINCE)
    assert await store.load(connector) == claimed


async def test_every_claim_raises_the_epoch_and_nothing_else(store: Any) -> None:
    connector = new_name()
    claimed = await store.claim(connector)
    assert await store.persist(after(claimed), expected_version=0) is Persisted.DONE
    again = await store.claim(connector)
    assert again == replace(after(claimed), epoch=2)


async def test_persist_writes_every_field(store: Any) -> None:
    connector = new_name()
    wanted = after(await store.claim(connector))
    assert await store.persist(wanted, expected_version=0) is Persisted.DONE
    assert await store.load(connector) == wanted


async def test_postgres_gives_back_any_cursor_exactly(pool: Any) -> None:
    """It refuses NUL, surrogates and infinity, and turns large floats into integers."""
    store, connector = InPostgres(pool), new_name()
    page = await store.claim(connector)
    cursors: list[Any] = []

    @settings(max_examples=100, deadline=None)
    @given(CURSORS)
    @example({"a": "\0"})
    @example({"a": "x\ud800"})
    @example({"a": [1e15, 1e16, 1e23, -0.0, 5e-324]})
    @example({"a": [2**63, 2**64, math.inf]})
    def collect(cursor: Any) -> None:
        cursors.append(cursor)

    collect()
    for cursor in cursors:
        page = after(page, cursor=stored_cursor(cursor))
        assert await store.persist(page, expected_version=page.version - 1) is Persisted.DONE
        loaded = await store.load(connector)
        assert loaded is not None
        assert loaded.cursor == page.cursor
        assert same(given_cursor(loaded.cursor), cursor)


def same(one: Any, other: Any) -> bool:
    """Equal, types and the sign of zero included, in any order of keys: jsonb keeps none."""
    if isinstance(one, dict) and isinstance(other, dict):
        return set(one) == set(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)


async def test_a_moved_version_is_an_edit_and_nothing_is_written(store: Any) -> None:
    connector = new_name()
    claimed = await store.claim(connector)
    await store.persist(after(claimed), expected_version=0)
    await edit(store, connector, AT - timedelta(days=1))
    edited = await store.load(connector)
    page = after(after(claimed))
    assert await store.persist(page, expected_version=1) is Persisted.EDITED
    assert await store.load(connector) == edited
    assert edited == Checkpoint(connector, 2, 1, AT - timedelta(days=1))


async def test_an_edited_row_is_an_edit_though_its_version_fits(store: Any) -> None:
    """As after a restored database was edited: the version is the one that the relay knows."""
    connector = new_name()
    claimed = await store.claim(connector)
    first = replace(claimed, version=1, last_ts=AT)
    assert await store.persist(first, expected_version=0) is Persisted.DONE
    await edit(store, connector, AT - timedelta(days=1))
    edited = await store.load(connector)
    assert (edited.version, edited.is_edited) == (2, True)
    page = replace(first, version=3, last_ts=AT + timedelta(days=1))
    assert await store.persist(page, expected_version=2) is Persisted.EDITED
    assert (await store.load(connector)).last_ts == AT - timedelta(days=1)
    # Only what takes the edit up may follow it.
    after = replace(edited, version=3)
    assert await store.persist(after, expected_version=2) is Persisted.DONE
    assert not (await store.load(connector)).is_edited


async def test_a_moved_epoch_is_fenced_even_where_the_version_fits(store: Any) -> None:
    """The zombie's page is in the topic; its write must not look like the newer relay's."""
    connector = new_name()
    older = await store.claim(connector)
    newer = await store.claim(connector)
    assert await store.persist(after(older), expected_version=0) is Persisted.FENCED
    assert await store.load(connector) == newer
    assert await store.persist(after(newer), expected_version=0) is Persisted.DONE


async def test_both_moved_is_fenced(store: Any) -> None:
    connector = new_name()
    older = await store.claim(connector)
    newer = await store.claim(connector)
    await store.persist(after(newer), expected_version=0)
    assert await store.persist(after(older), expected_version=0) is Persisted.FENCED


async def test_a_row_that_is_gone_is_fenced(store: Any) -> None:
    gone = Checkpoint(new_name(), 0, 1, AT)
    assert await store.persist(after(gone), expected_version=0) is Persisted.FENCED


@pytest.mark.parametrize(
    "at",
    [
        datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
        datetime(2026, 1, 1, tzinfo=UTC),
        datetime(1, 1, 1, tzinfo=UTC),
    ],
)
async def test_times_survive_to_the_microsecond(store: Any, at: datetime) -> None:
    connector = new_name()
    claimed = await store.claim(connector)
    wanted = after(claimed, last_ts=at, complete_through=at, seen=SeenInTopics({}, at))
    assert await store.persist(wanted, expected_version=0) is Persisted.DONE
    assert await store.load(connector) == wanted


# The specification's SQL, and edits


async def test_the_specifications_sql_works_unchanged_on_an_empty_table(pool: Any) -> None:
    connector = new_name()
    assert await pool.fetchrow(SPECIFICATION_SELECT, connector) is None
    await pool.execute(SPECIFICATION_UPSERT, connector, AT)
    row = await pool.fetchrow(SPECIFICATION_SELECT, connector)
    assert row["last_ts"] == AT
    assert await PostgresCheckpoints(pool).claim(connector) == Checkpoint(connector, 0, 1, AT)


async def test_the_specifications_upsert_is_an_edit_with_an_audit_row(pool: Any) -> None:
    store, connector = InPostgres(pool), new_name()
    await store.persist(after(await store.claim(connector)), expected_version=0)
    earlier = AT - timedelta(days=3)
    await pool.execute(SPECIFICATION_UPSERT, connector, earlier)
    assert await store.load(connector) == Checkpoint(connector, 2, 1, earlier)
    (audit,) = await pool.fetch("SELECT * FROM connector_audit WHERE connector_id = $1", connector)
    assert audit["action"] == "edit"
    assert audit["who"] == await pool.fetchval("SELECT session_user")
    assert audit["before"]["version"] == 1
    assert audit["before"]["cursor"]["big"] == 2**53
    assert datetime.fromisoformat(audit["before"]["last_ts"]) == AT
    assert datetime.fromisoformat(audit["after"]["last_ts"]) == earlier
    assert audit["after"]["version"] == 2


async def test_an_edit_of_the_cursor_alone_is_an_edit_and_keeps_the_cursor(store: Any) -> None:
    connector = new_name()
    claimed = await store.claim(connector)
    page = after(claimed)
    await store.persist(page, expected_version=0)
    await edit_cursor(store, connector, {"next": 5})
    assert await store.load(connector) == Checkpoint(connector, 2, 1, AT, {"next": 5})
    assert await store.persist(after(page), expected_version=1) is Persisted.EDITED


async def test_an_edit_of_the_cursor_leaves_an_audit_row(pool: Any) -> None:
    store, connector = InPostgres(pool), new_name()
    await store.persist(after(await store.claim(connector)), expected_version=0)
    await edit_cursor(store, connector, {"next": 5})
    (audit,) = await pool.fetch("SELECT * FROM connector_audit WHERE connector_id = $1", connector)
    assert (audit["action"], audit["who"]) == ("edit", await pool.fetchval("SELECT session_user"))
    assert audit["before"]["cursor"]["big"] == 2**53
    assert (audit["after"]["cursor"], audit["after"]["version"]) == ({"next": 5}, 2)
    assert await Controls(pool).edited_version(connector) == 2
    assert await Controls(pool).edited_version("another") == 0


async def test_an_edit_of_both_keeps_both_and_of_the_time_drops_the_cursor(pool: Any) -> None:
    store, connector = InPostgres(pool), new_name()
    await store.persist(after(await store.claim(connector)), expected_version=0)
    await pool.execute(
        "UPDATE connector_checkpoints SET last_ts = $1, cursor = $2", AT - timedelta(1), {"n": 1}
    )
    both = await store.load(connector)
    assert both == Checkpoint(connector, 2, 1, AT - timedelta(1), {"n": 1})
    await pool.execute("UPDATE connector_checkpoints SET last_ts = $1", AT)
    assert await store.load(connector) == Checkpoint(connector, 3, 1, AT)
    # What clears a cursor that is there moves the position, too.
    await edit_cursor(store, connector, {"n": 2})
    await pool.execute("UPDATE connector_checkpoints SET cursor = NULL")
    assert await store.load(connector) == Checkpoint(connector, 5, 1, AT)


async def test_an_upsert_of_the_same_time_and_a_relays_write_are_no_edits(pool: Any) -> None:
    store, connector = InPostgres(pool), new_name()
    wanted = after(await store.claim(connector))
    await store.persist(wanted, expected_version=0)
    await pool.execute(SPECIFICATION_UPSERT, connector, AT)
    assert await store.load(connector) == wanted
    assert await pool.fetchval("SELECT count(*) FROM connector_audit") == 0


async def test_a_position_at_minus_infinity_is_a_time_like_others(pool: Any) -> None:
    """An operator may write it to read everything again; asyncpg makes it a naive time."""
    store, connector = InPostgres(pool), new_name()
    await store.claim(connector)
    await pool.execute("UPDATE connector_checkpoints SET last_ts = '-infinity'")
    loaded = await store.load(connector)
    assert loaded is not None
    assert loaded.last_ts == datetime.min.replace(tzinfo=UTC)


async def test_all_rows_come_by_connector(pool: Any) -> None:
    store = InPostgres(pool)
    for connector in ("b", "a"):
        await store.claim(connector)
    assert [one.connector_id for one in await store.load_all()] == ["a", "b"]


async def test_a_cursor_that_postgres_cant_hold_is_named_and_not_half_written(
    pool: Any,
) -> None:
    store, connector = InPostgres(pool), new_name()
    claimed = await store.claim(connector)
    # It was Unavailable, for ever: the same page has the same cursor again.
    with pytest.raises(Misconfigured, match="cursor"):
        await store.persist(after(claimed, cursor={"a": "\x00"}), expected_version=0)
    assert await store.load(connector) == claimed


async def test_a_database_that_is_gone_is_unavailable(pool: Any, database: str) -> None:
    store = InPostgres(pool)
    await pool.close()
    with pytest.raises(Unavailable):
        await store.claim("c")


# Reports


@pytest.mark.parametrize("text", ["a\x00b", "\ud800", "é" * 5000])
async def test_no_error_text_keeps_the_others_from_being_reported(pool: Any, text: str) -> None:
    """All connectors of a worker are reported in one statement."""
    statuses = [Status("a", "acme"), Status("b", "acme")]
    statuses[0].enter(State.BACKING_OFF, error=text)
    await Reports(pool, "worker").report(statuses)
    assert await pool.fetchval("SELECT count(*) FROM connector_status") == 2
