"""The log of ids on the real broker and the real database: its reader, and its key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import structlog
from aiokafka import AIOKafkaProducer
from contract.streams import AT, create, kafka_settings, new_name, published, publisher
from page_builders import HASHER
from workers import committed, eventually

from verity_common.config import DatabaseSettings
from verity_common.kafka import KafkaSettings
from verity_sdk.errors import Unavailable
from verity_stream.kafka.committed import CommittedReader
from verity_stream.kafka.partitions import partition_for
from verity_stream.postgres.pool import create_pool, migrate
from verity_stream.records import ID_KEY_KEY, Record, encode_slot, slot_key
from verity_stream.relay import id_log as id_log_module
from verity_stream.relay.id_log import KafkaIdLog, agree_on_key
from verity_stream.relay.ids import hashes_of

pytestmark = pytest.mark.stack

PARTITIONS = 2
VALUE = encode_slot(HASHER.fingerprint, AT, hashes_of([1, 2]))


@pytest.fixture
async def log(bootstrap_servers: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A log of the test's own: the real one is shared by the whole session."""
    name = new_name()
    await create(bootstrap_servers, name)
    monkeypatch.setattr(id_log_module, "IDS_TOPIC", name)
    return name


class CountingReader(CommittedReader):
    """Writes down where each reading began."""

    def __init__(self, kafka: KafkaSettings) -> None:
        super().__init__(kafka, PARTITIONS, timedelta(seconds=20))
        self.begins: list[int | None] = []
        self.fails = 0

    def read(self, places: Any, *arguments: Any, **named: Any) -> Any:
        self.begins += places.values()
        if self.fails:
            self.fails -= 1
            raise Unavailable("injected")
        return super().read(places, *arguments, **named)


@pytest.fixture
def reader(bootstrap_servers: str) -> CountingReader:
    return CountingReader(kafka_settings(bootstrap_servers))


def slot(log: str, connector: str, number: int, value: bytes | None = VALUE) -> Record:
    return Record(log, slot_key(connector, number), value, [], partition_for(connector, PARTITIONS))


async def publish(kafka: KafkaSettings, *records: Record) -> None:
    one = publisher(kafka, new_name())
    await one.start()
    try:
        await published(one, list(records))
    finally:
        await one.close()


def names(count: int, partition: int = 0) -> list[str]:
    """Connectors of one partition."""
    found: list[str] = []
    while len(found) < count:
        name = new_name()
        if partition_for(name, PARTITIONS) == partition:
            found.append(name)
    return found


async def test_a_connector_gets_its_own_slots_as_they_are_now(
    bootstrap_servers: str, log: str, reader: CountingReader
) -> None:
    kafka, (mine, other) = kafka_settings(bootstrap_servers), names(2)
    key = Record(log, ID_KEY_KEY, bytes(16), [], 0)
    strange = Record(log, b"strange", b"x", [], 0)
    await publish(kafka, key, strange, slot(log, mine, 1), slot(log, mine, 2), slot(log, other, 7))
    await publish(kafka, slot(log, mine, 2, None), slot(log, mine, 3, VALUE + VALUE[-8:]))
    ids = KafkaIdLog(reader, PARTITIONS, HASHER)
    try:
        assert await ids.slots(mine) == {1: VALUE, 3: VALUE + VALUE[-8:]}
        assert await ids.slots(other) == {7: VALUE}
        assert await ids.slots(names(1)[0]) == {}
        assert await ids.slots(names(1, partition=1)[0]) == {}
    finally:
        ids.close()


async def test_a_partition_is_read_once_for_all_and_then_on_from_there(
    bootstrap_servers: str, log: str, reader: CountingReader
) -> None:
    kafka, connectors = kafka_settings(bootstrap_servers), names(20)
    await publish(kafka, *(slot(log, one, 1) for one in connectors))
    ids = KafkaIdLog(reader, PARTITIONS, HASHER)
    try:
        found = await asyncio.gather(*map(ids.slots, connectors))
        assert found == [{1: VALUE}] * 20
        assert reader.begins == [None]
        await publish(kafka, slot(log, connectors[3], 2))
        assert await ids.slots(connectors[3]) == {1: VALUE, 2: VALUE}
        assert reader.begins == [None, 21], "20 records and the transaction's end"
        assert await ids.slots(connectors[4]) == {1: VALUE}
        assert len(reader.begins) == 2, "nothing was written since"
    finally:
        ids.close()


async def test_who_asks_while_it_is_read_gets_what_was_written_before_he_asked(
    bootstrap_servers: str, log: str, reader: CountingReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round that is under way may have asked for the end too early: he waits for the next."""
    kafka, (first, second) = kafka_settings(bootstrap_servers), names(2)
    await publish(kafka, slot(log, first, 1))
    ends = reader.ends
    has_asked, may_go_on = asyncio.Event(), asyncio.Event()

    async def slowly(places: Any) -> Any:
        found = await ends(places)
        has_asked.set()
        await may_go_on.wait()
        return found

    monkeypatch.setattr(reader, "ends", slowly)
    ids = KafkaIdLog(reader, PARTITIONS, HASHER)
    try:
        early = asyncio.create_task(ids.slots(first))
        await has_asked.wait()
        await publish(kafka, slot(log, second, 9))
        late = asyncio.create_task(ids.slots(second))
        cancelled = asyncio.create_task(ids.slots(second))
        await asyncio.sleep(0)
        cancelled.cancel()
        may_go_on.set()
        assert await early == {1: VALUE}
        assert await late == {9: VALUE}
    finally:
        ids.close()


async def test_a_reading_that_fails_fails_those_who_wait_and_the_next_begins_anew(
    bootstrap_servers: str, log: str, reader: CountingReader
) -> None:
    kafka, (one, other) = kafka_settings(bootstrap_servers), names(2)
    await publish(kafka, slot(log, one, 1))
    ids = KafkaIdLog(reader, PARTITIONS, HASHER)
    try:
        reader.fails = 1
        failed = await asyncio.gather(ids.slots(one), ids.slots(other), return_exceptions=True)
        assert [type(error) for error in failed] == [Unavailable, Unavailable]
        assert await ids.slots(one) == {1: VALUE}
    finally:
        ids.close()


async def test_what_was_read_is_dropped_when_nobody_asks_any_more(
    bootstrap_servers: str, log: str, reader: CountingReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(id_log_module, "KEPT_SECONDS", 0.05)
    kafka, (one,) = kafka_settings(bootstrap_servers), names(1)
    await publish(kafka, slot(log, one, 1))
    ids = KafkaIdLog(reader, PARTITIONS, HASHER)
    try:
        assert await ids.slots(one) == {1: VALUE}

        async def is_read_anew() -> bool:
            assert await ids.slots(one) == {1: VALUE}
            return len(reader.begins) > 1

        await eventually(is_read_anew, 30)
        assert reader.begins[:2] == [None, None], "from the beginning: nothing was kept"
    finally:
        ids.close()


# The key.


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Any]:
    opened = await create_pool(DatabaseSettings(dsn=database))
    try:
        await migrate(opened)
        yield opened
    finally:
        await opened.close()


async def agreed(pool: Any, reader: CountingReader, bootstrap_servers: str) -> bytes:
    return await agree_on_key(pool, reader, publisher(kafka_settings(bootstrap_servers), None))


async def logged(bootstrap_servers: str, log: str) -> list[bytes]:
    found = await committed(bootstrap_servers, log)
    return [one.value for one in found if one.key == ID_KEY_KEY]


async def stored(pool: Any) -> bytes | None:
    key: bytes | None = await pool.fetchval("SELECT key FROM verity_id_key")
    return key


async def test_the_key_is_made_once_and_is_in_both(
    bootstrap_servers: str, log: str, reader: CountingReader, pool: Any
) -> None:
    with structlog.testing.capture_logs() as said:
        key = await agreed(pool, reader, bootstrap_servers)
        assert len(key) == 16
        assert await agreed(pool, reader, bootstrap_servers) == key
    assert await stored(pool) == key
    assert await logged(bootstrap_servers, log) == [key]
    assert [one["event"] for one in said] == ["ids.key_written"]
    assert not any(repr(key) in repr(one) or key.hex() in repr(one) for one in said)


async def test_workers_that_start_together_agree(
    bootstrap_servers: str, log: str, pool: Any
) -> None:
    readers = [CountingReader(kafka_settings(bootstrap_servers)) for _ in range(4)]
    keys = await asyncio.gather(*(agreed(pool, one, bootstrap_servers) for one in readers))
    assert set(keys) == {await stored(pool)}
    assert set(await logged(bootstrap_servers, log)) == set(keys)


@pytest.mark.parametrize("lost", ["DELETE FROM verity_id_key", None])
async def test_a_key_that_one_of_the_two_lost_comes_back_from_the_other(
    bootstrap_servers: str,
    log: str,
    reader: CountingReader,
    pool: Any,
    lost: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = await agreed(pool, reader, bootstrap_servers)
    if lost is not None:
        await pool.execute(lost)
    else:
        log = new_name()
        await create(bootstrap_servers, log)
        monkeypatch.setattr(id_log_module, "IDS_TOPIC", log)
    assert await agreed(pool, reader, bootstrap_servers) == key
    assert await stored(pool) == key
    assert await logged(bootstrap_servers, log) == [key]


async def test_a_key_that_is_gone_as_soon_as_it_was_stored_is_unavailable(
    bootstrap_servers: str, log: str, reader: CountingReader, pool: Any
) -> None:
    """A backup is restored at that moment; it ended the worker, and now it is tried again."""

    class Restored:
        def __getattr__(self, name: str) -> Any:
            return getattr(pool, name)

        async def execute(self, *arguments: Any) -> None:
            await pool.execute(*arguments)
            await pool.execute("DELETE FROM verity_id_key")

    with pytest.raises(Unavailable, match="restored"):
        await agreed(Restored(), reader, bootstrap_servers)
    assert await logged(bootstrap_servers, log) == []
    assert len(await agreed(pool, reader, bootstrap_servers)) == 16


async def test_where_they_differ_the_log_wins_and_it_is_said(
    bootstrap_servers: str, log: str, reader: CountingReader, pool: Any
) -> None:
    key = await agreed(pool, reader, bootstrap_servers)
    await pool.execute("UPDATE verity_id_key SET key = $1", bytes(16))
    with structlog.testing.capture_logs() as said:
        assert await agreed(pool, reader, bootstrap_servers) == key
    assert await stored(pool) == key
    assert [(one["event"], one["log_level"]) for one in said] == [("ids.key_differs", "error")]


async def test_a_transaction_that_stays_open_does_not_hold_the_key_back(
    bootstrap_servers: str, log: str, reader: CountingReader, pool: Any
) -> None:
    """A worker that was killed within a page left it; only its own next start can end it."""
    key = await agreed(pool, reader, bootstrap_servers)
    await pool.execute("DELETE FROM verity_id_key")
    (mine,) = names(1)
    one = AIOKafkaProducer(bootstrap_servers=bootstrap_servers, transactional_id=new_name())
    await one.start()
    await one.begin_transaction()
    try:
        await one.send_and_wait(log, VALUE, key=slot_key(mine, 1), partition=0)
        async with asyncio.timeout(30):
            assert await agreed(pool, reader, bootstrap_servers) == key
    finally:
        await one.abort_transaction()
        await one.stop()
