"""`CommittedReader` on the real broker: what it reads back is what was committed, all of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from contract.streams import (
    AT,
    checkpoint_of,
    kafka_settings,
    neighbour,
    new_name,
    new_topic,
    published,
    publisher,
    record,
    watermarks,
)

from verity_common.kafka import KafkaSettings
from verity_sdk.errors import Malformed, Unavailable
from verity_stream.kafka import committed as reader_module
from verity_stream.kafka.committed import CommittedReader
from verity_stream.kafka.partitions import partition_for, partition_of_key
from verity_stream.records import CHECKPOINTS_TOPIC, Offsets, PublishedId, Record, raw_topic
from verity_stream.settings import StreamSettings
from verity_stream.worker import runner as runner_module
from verity_stream.worker.runner import ConnectorRunner

pytestmark = pytest.mark.stack

PARTITIONS = 24


async def listed(found: AsyncIterator[list[PublishedId]]) -> list[str]:
    return [one.decode() async for some in found for _, one, _ in some]


@pytest.fixture
async def kafka(bootstrap_servers: str) -> KafkaSettings:
    await new_topic(bootstrap_servers)  # … and the checkpoints topic with it.
    return kafka_settings(bootstrap_servers)


@pytest.fixture
def reader(kafka: KafkaSettings) -> CommittedReader:
    return CommittedReader(kafka, PARTITIONS)


async def publish(kafka: KafkaSettings, connector: str, *pages: list[Record]) -> list[Offsets]:
    one = publisher(kafka, connector)
    await one.start()
    try:
        return [await published(one, page) for page in pages]
    finally:
        await one.close()


async def abort(kafka: KafkaSettings, connector: str, page: list[Record]) -> None:
    """A page that was acknowledged and then aborted."""
    one = publisher(kafka, connector)
    await one.start()

    def fail(_: Offsets) -> list[Record]:
        raise ValueError("inside the page")

    with pytest.raises(ValueError, match="inside the page"):
        await published(one, page, fail)
    await one.close()


async def test_a_connector_without_a_record_has_none(reader: CommittedReader) -> None:
    assert await reader.last_checkpoint(new_name()) is None


async def test_the_last_committed_checkpoint_wins_over_older_and_aborted_ones(
    kafka: KafkaSettings, reader: CommittedReader
) -> None:
    connector = new_name()
    await publish(kafka, connector, *([checkpoint_of(connector, n)] for n in range(1, 8)))
    await abort(kafka, connector, [checkpoint_of(connector, 8)])
    other = neighbour(connector, partition_for)
    await publish(kafka, other, [checkpoint_of(other, 99)])
    found = await reader.last_checkpoint(connector)
    assert found is not None
    assert found.version == 7


async def test_the_history_of_a_connector_is_its_own_committed_records_in_order(
    kafka: KafkaSettings, reader: CommittedReader
) -> None:
    connector = new_name()
    await publish(kafka, connector, *([checkpoint_of(connector, n)] for n in range(1, 4)))
    await abort(kafka, connector, [checkpoint_of(connector, 4)])
    other = neighbour(connector, partition_for)
    await publish(kafka, other, [checkpoint_of(other, 99)])
    await publish(kafka, connector, [checkpoint_of(connector, 5)])
    assert [one.version for one in await reader.history(connector)] == [1, 2, 3, 5]
    assert await reader.history(new_name()) == []


async def test_it_is_found_above_an_open_transaction_of_another_connector(
    kafka: KafkaSettings, reader: CommittedReader
) -> None:
    """Up to the last stable offset, as a reader of committed records sees the end, it is not."""
    connector = new_name()
    partition = partition_for(connector, PARTITIONS)
    other = AIOKafkaProducer(
        bootstrap_servers=kafka.bootstrap_servers,
        transactional_id=new_name(),
        transaction_timeout_ms=30_000,
    )
    await publish(kafka, connector, [checkpoint_of(connector, 1)])
    await other.start()
    try:
        await other.begin_transaction()
        await other.send_and_wait(CHECKPOINTS_TOPIC, b"{}", key=b"other", partition=partition)
        await publish(kafka, connector, *([checkpoint_of(connector, n)] for n in range(2, 8)))
        stable, high = (await watermarks(kafka.bootstrap_servers, CHECKPOINTS_TOPIC))[partition]
        assert high - stable > 6, "versions 2 to 7 stand above the last stable offset"
        reading = asyncio.create_task(reader.last_checkpoint(connector))
        done, _ = await asyncio.wait({reading}, timeout=0.5)
        assert not done, "it waits for the other transaction's end"
        await other.abort_transaction()
        found = await asyncio.wait_for(reading, 20)
    finally:
        await other.stop()
    assert found is not None
    assert found.version == 7


async def test_reading_back_does_not_wait_for_ever_and_says_for_what(
    kafka: KafkaSettings, reader: CommittedReader
) -> None:
    reader.stall_seconds = 0.5
    connector = new_name()
    other = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, transactional_id=new_name())
    await other.start()
    try:
        await other.begin_transaction()
        await other.send_and_wait(
            CHECKPOINTS_TOPIC,
            b"{}",
            key=b"other",
            partition=partition_for(connector, PARTITIONS),
        )
        with pytest.raises(Unavailable, match=r"checkpoints\[\d+\] .*another producer stays open"):
            await reader.last_checkpoint(connector)
        await other.abort_transaction()
    finally:
        await other.stop()


async def test_reading_that_goes_on_may_take_as_long_as_it_takes(
    kafka: KafkaSettings,
    reader: CommittedReader,
    bootstrap_servers: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A start that reads steadily must not fail, whatever is done with what it has read."""
    reader.stall_seconds = 0.5
    monkeypatch.setattr(reader_module, "READ_RECORDS", 10)
    topic, mine = await new_topic(bootstrap_servers), new_name()
    await publish(kafka, mine, [record(topic, n, mine, key=b"k") for n in range(100)])
    place = TopicPartition(topic, partition_of_key(b"k", 2))
    count = 0
    async for records in reader.read({place: None}):
        count += len(records)
        await asyncio.sleep(0.1)
    assert count == 100


def test_no_transaction_that_a_worker_may_leave_open_fails_a_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broker ends one up to 10 s after its time-out (its own default)."""
    made: list[CommittedReader] = []

    def reader_of(*arguments: Any) -> CommittedReader:
        made.append(CommittedReader(*arguments))
        return made[-1]

    monkeypatch.setattr(runner_module, "CommittedReader", reader_of)
    for timeout in (StreamSettings().transaction_timeout, timedelta(minutes=10)):
        ConnectorRunner(StreamSettings(transaction_timeout=timeout), [])
        assert made[-1].stall_seconds >= timeout.total_seconds() + 10 + 10


@pytest.mark.parametrize("late", [(2, 1), (3, 1)])
async def test_the_late_record_of_a_relay_that_was_replaced_does_not_count(
    kafka: KafkaSettings, reader: CommittedReader, late: tuple[int, int]
) -> None:
    """Without transactions nobody refuses it; taken for the last, it moved the position back."""
    connector = new_name()
    one = publisher(kafka, None)
    await one.start()
    try:
        for order in ((2, 1), (3, 2), late):
            await published(one, [checkpoint_of(connector, *order)])
    finally:
        await one.close()
    found = await reader.last_checkpoint(connector)
    assert found is not None
    assert (found.version, found.epoch) == (3, 2)
    (held,) = [
        one
        for name, one in (await CommittedReader(kafka).last_checkpoints()).items()
        if name == connector
    ]
    assert held == found
    # With a restored database epochs begin again lower.
    await publish(kafka, connector, [checkpoint_of(connector, 4, 1)])
    newest = await reader.last_checkpoint(connector)
    assert newest is not None
    assert newest.version == 4


async def test_a_deleted_record_is_none_and_a_broken_one_malformed(
    kafka: KafkaSettings, reader: CommittedReader
) -> None:
    connector = new_name()
    await publish(kafka, connector, [checkpoint_of(connector, 1)])
    tombstone = checkpoint_of(connector, 2)._replace(value=None)
    await publish(kafka, connector, [tombstone])
    assert await reader.last_checkpoint(connector) is None
    await publish(kafka, connector, [tombstone._replace(value=b"?")])
    with pytest.raises(Malformed):
        await reader.last_checkpoint(connector)


async def test_ids_are_read_from_headers_mine_only_committed_only_from_these_offsets(
    kafka: KafkaSettings, reader: CommittedReader, bootstrap_servers: str
) -> None:
    topic, mine, other = await new_topic(bootstrap_servers), new_name(), new_name()

    def of(connector: str, *numbers: int) -> list[Record]:
        # One key, so one partition: offsets are easy to tell.
        return [record(topic, n, connector, key=b"k", value=b"no JSON") for n in numbers]

    first, second, _ = await publish(kafka, mine, of(mine, 1, 2), of(mine, 3), of(mine, 4))
    await publish(kafka, other, of(other, 5))
    await abort(kafka, mine, of(mine, 6))
    letter = record(topic, 0, mine, key=b"k")._replace(
        headers=[("dead_id", "é:1".encode()), ("connector_id", mine.encode())]
    )
    await publish(kafka, mine, [letter])
    (partition,) = first[topic]
    assert await listed(reader.published_ids(mine, {topic: {partition: 0}})) == [
        *("e1", "e2", "e3", "e4", "é:1")
    ]
    later = {topic: {partition: second[topic][partition][0]}}
    assert await listed(reader.published_ids(mine, later)) == [*("e3", "e4", "é:1")]
    assert await listed(reader.published_ids(other, {topic: {partition: 0}})) == ["e5"]
    assert await listed(reader.published_ids(mine, {})) == []
    # The page of an empty partition beside it holds nothing back.
    assert len(await listed(reader.published_ids(mine, {topic: {0: 0, 1: 0}}))) == 5


async def test_an_id_comes_with_its_topic_and_its_time(
    kafka: KafkaSettings, reader: CommittedReader, bootstrap_servers: str
) -> None:
    topic, mine = await new_topic(bootstrap_servers), new_name()
    value = b'{"raw_payload":{"occurred_at":"x"},"occurred_at":"2026-01-01T00:00:01.000000Z"}'
    await publish(
        kafka,
        mine,
        [record(topic, 1, mine, key=b"k", value=value), record(topic, 2, mine, key=b"k")],
    )
    found = [
        one async for some in reader.published_ids(mine, {topic: {0: 0, 1: 0}}) for one in some
    ]
    assert found == [(topic, b"e1", AT + timedelta(seconds=1)), (topic, b"e2", None)]


async def test_the_offsets_of_a_time_are_those_of_what_was_published_since(
    kafka: KafkaSettings, reader: CommittedReader, bootstrap_servers: str
) -> None:
    topic, other, mine = await new_topic(bootstrap_servers), await new_topic(bootstrap_servers), "c"
    await publish(kafka, mine, [record(topic, 1, key=b"k"), record(other, 1, key=b"k")])
    await asyncio.sleep(0.05)
    between = datetime.now(UTC)
    (taken,) = await publish(kafka, mine, [record(topic, 2, key=b"k")])
    ((partition, (first, _)),) = taken[topic].items()
    gone = raw_topic(new_name())
    assert await reader.offsets_since({topic, other, gone}, between) == {topic: {partition: first}}
    everywhere = await reader.offsets_since(set(), AT)
    assert {topic, other} <= everywhere.keys()
    assert CHECKPOINTS_TOPIC not in everywhere
    assert everywhere[topic] == {partition: 0}
    assert await reader.offsets_since({gone}, AT) == {}


@pytest.mark.parametrize("offset", [0, 5, 1_000_000])
async def test_a_topic_that_was_recreated_empty_holds_no_ids(
    reader: CommittedReader, bootstrap_servers: str, offset: int
) -> None:
    """aiokafka's stop() raises CancelledError if nothing was awaited since assign()."""
    topic = await new_topic(bootstrap_servers)
    assert await listed(reader.published_ids("c", {topic: {0: offset, 1: offset}})) == []


async def test_a_topic_that_was_made_anew_with_fewer_partitions_gives_what_it_has(
    kafka: KafkaSettings, reader: CommittedReader, bootstrap_servers: str
) -> None:
    """Asked for a partition that is gone the client would retry until its time is up."""
    topic, mine = await new_topic(bootstrap_servers), new_name()
    await publish(kafka, mine, [record(topic, n, mine) for n in range(5)])
    places = dict.fromkeys(range(6), 0)
    assert sorted(await listed(reader.published_ids(mine, {topic: places}))) == [
        *("e0", "e1", "e2", "e3", "e4")
    ]


async def test_an_offset_that_was_never_known_reads_from_the_beginning(
    kafka: KafkaSettings, reader: CommittedReader, bootstrap_servers: str
) -> None:
    """-1: the broker acknowledged a batch as a duplicate and no longer knew where it stands."""
    topic, mine = await new_topic(bootstrap_servers), new_name()
    ((partition, _),) = (await publish(kafka, mine, [record(topic, 1, mine)]))[0][topic].items()
    assert await listed(reader.published_ids(mine, {topic: {partition: -1}})) == ["e1"]


async def test_offsets_that_retention_removed_read_what_is_left(
    kafka: KafkaSettings, reader: CommittedReader, bootstrap_servers: str
) -> None:
    topic, mine = await new_topic(bootstrap_servers), new_name()
    pages = [[record(topic, n, mine, key=b"k")] for n in range(4)]
    taken = await publish(kafka, mine, *pages)
    ((partition, (cut, _)),) = taken[2][topic].items()
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        await admin.delete_records(
            {TopicPartition(topic, partition): RecordsToDelete(before_offset=cut)}
        )
    finally:
        await admin.close()
    assert await listed(reader.published_ids(mine, {topic: {partition: 0}})) == ["e2", "e3"]


async def test_a_topic_that_is_gone_is_unavailable(bootstrap_servers: str) -> None:
    kafka = kafka_settings(bootstrap_servers, request_timeout_seconds=0.5)
    with pytest.raises(Unavailable):
        await listed(CommittedReader(kafka, PARTITIONS).published_ids("c", {new_name(): {0: 0}}))


async def test_a_broker_that_is_not_there_is_unavailable() -> None:
    reader = CommittedReader(kafka_settings("localhost:1"), PARTITIONS)
    with pytest.raises(Unavailable):
        await reader.last_checkpoint("c")
