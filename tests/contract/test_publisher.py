"""`KafkaPublisher` on the real broker: its four guarantees, and each trap of aiokafka."""

from __future__ import annotations

import asyncio
import time
import tomllib
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from contract.streams import (
    Makes,
    checkpoint_of,
    kafka_settings,
    new_name,
    new_topic,
    published,
    publisher,
    record,
    values,
    watermarks,
)
from workers import committed, eventually

from verity_sdk.errors import Denied, Fenced, Misconfigured, Unavailable
from verity_stream.kafka import transactions as publisher_module
from verity_stream.kafka.clients import Clients
from verity_stream.kafka.partitions import partition_for
from verity_stream.kafka.transactions import BATCH_BYTES, Batches, KafkaPublisher, as_verity_error
from verity_stream.records import CHECKPOINTS_TOPIC, Offsets, Record

stack = pytest.mark.stack


# Pages


@stack
async def test_a_page_and_its_seal_are_visible_when_publish_returns(bootstrap_servers: str) -> None:
    topic, connector = await new_topic(bootstrap_servers), new_name()
    page = [record(topic, number, connector) for number in range(50)]
    sealed: list[Offsets] = []

    def seal(offsets: Offsets) -> list[Record]:
        sealed.append(offsets)
        return [checkpoint_of(connector, 1)]

    one = publisher(kafka_settings(bootstrap_servers), connector)
    await one.start()
    try:
        assert await published(one, page, seal) == sealed[0]
        read = await committed(bootstrap_servers, topic)
        seals = await committed(bootstrap_servers, CHECKPOINTS_TOPIC)
    finally:
        await one.close()
    assert values(read) == sorted(str(number) for number in range(50))
    for found in read:
        sent = page[int(found.value)]
        assert (found.key, list(found.headers)) == (sent.key, sent.headers)
        # The same partition that any Kafka producer picks for the key.
        assert found.partition == partition_for(sent.key.decode(), 2)
    places: dict[int, list[int]] = {}
    for found in read:
        places.setdefault(found.partition, []).append(found.offset)
    assert sealed[0] == {
        topic: {one: (min(offsets), max(offsets)) for one, offsets in places.items()}
    }
    own = [orjson.loads(one.value) for one in seals if one.key == connector.encode()]
    assert [one["version"] for one in own] == [1]


@stack
async def test_a_placed_topic_is_written_by_the_number_that_it_is_read_by(
    bootstrap_servers: str,
) -> None:
    """Somebody added partitions: the broker's number would put the next record elsewhere."""
    topic = new_name()
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 48, 1)])
    finally:
        await admin.close()
    connector = next(
        name for name in iter(new_name, None) if partition_for(name, 24) != partition_for(name, 48)
    )
    one = KafkaPublisher(
        kafka_settings(bootstrap_servers),
        transactional_id=connector,
        transaction_timeout=timedelta(seconds=20),
        partitions={topic: 24},
    )
    await one.start()
    try:
        sealed = checkpoint_of(connector, 1)._replace(topic=topic)
        await published(one, [], lambda _: [sealed])
    finally:
        await one.close()
    (found,) = await committed(bootstrap_servers, topic)
    assert found.partition == partition_for(connector, 24)


@stack
@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
async def test_a_partition_that_is_given_is_taken_and_without_a_value_a_key_is_removed(
    bootstrap_servers: str, delivery: str
) -> None:
    topic = await new_topic(bootstrap_servers)
    sent = [b"a", b"", None]
    records = [Record(topic, b"%d" % number, value, [], 1) for number, value in enumerate(sent)]
    name = new_name() if delivery == "exactly_once" else None
    one = publisher(kafka_settings(bootstrap_servers), name)
    await one.start()
    try:
        await published(one, [], lambda _: records, (topic, 1))
    finally:
        await one.close()
    read = await committed(bootstrap_servers, topic)
    assert [(found.partition, found.key, found.value) for found in read] == [
        (1, b"%d" % number, value) for number, value in enumerate(sent)
    ]


@stack
async def test_without_a_transaction_a_page_is_sealed_one_record_after_the_other(
    bootstrap_servers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an earlier one stands for is there before the later one says so."""
    topic = await new_topic(bootstrap_servers)
    one = publisher(kafka_settings(bootstrap_servers), None)
    await one.start()
    sent: list[int] = []
    send = KafkaPublisher.send

    async def counted(self: Any, page: Any) -> Offsets:
        sent.append(page.record_count if isinstance(page, Batches) else len(page))
        return await send(self, page)

    monkeypatch.setattr(KafkaPublisher, "send", counted)
    try:
        await published(one, [record(topic, 0)], lambda _: [record(topic, n) for n in (1, 2, 3)])
    finally:
        await one.close()
    assert sent == [1, 1, 1, 1]


@stack
async def test_large_pages_and_records_keep_their_order(bootstrap_servers: str) -> None:
    """A batch that is full makes room for the next; a record longer than a batch has its own."""
    topic = await new_topic(bootstrap_servers)
    page = [
        record(topic, number, key=b"k", value=b"%06d" % number + b"x" * 2000)
        for number in range(400)
    ]
    page.insert(200, record(topic, 0, key=b"k", value=b"long" + b"x" * 3 * BATCH_BYTES))
    page.append(record(topic, 0, key=None, value=b"no key"))
    one = publisher(kafka_settings(bootstrap_servers), new_name())
    await one.start()
    try:
        await published(one, page)
    finally:
        await one.close()
    read = await committed(bootstrap_servers, topic)
    assert [found.value for found in read if found.key] == [sent.value for sent in page if sent.key]
    assert [found.partition for found in read if found.key is None] == [0]


# Trap 1: every acknowledgement before the commit


class CommitsWithoutAcknowledgements(KafkaPublisher):
    """The guarantee line broken: what `send_batch` hands back is not awaited."""

    async def send(self, page: Any, /) -> Offsets:
        if not isinstance(page, Batches):
            return await super().send(page)
        for topic, partition, batch in page:
            batch.close()
            await self._started.send_batch(batch, topic, partition=partition)
        return {}


async def topic_of_small_records(bootstrap_servers: str) -> str:
    """A topic whose broker refuses what is longer than 500 bytes."""
    topic = new_name()
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics(
            [NewTopic(topic, 1, 1, topic_configs={"max.message.bytes": "500"})]
        )
    finally:
        await admin.close()
    return topic


async def publish_with_a_failing_batch(
    bootstrap_servers: str, make: type[KafkaPublisher]
) -> tuple[BaseException | None, list[Any]]:
    """A page with one batch that the broker refuses: the error, and what became visible."""
    good = await new_topic(bootstrap_servers)
    bad = await topic_of_small_records(bootstrap_servers)
    made = publisher(kafka_settings(bootstrap_servers), new_name())
    made.__class__ = make
    await made.start()
    error: BaseException | None = None
    try:
        page = [record(good, 1), record(bad, 2, value=b"x" * 2000), record(good, 3)]
        await published(made, page, lambda _: [record(good, 4)])
    except (Misconfigured, Unavailable) as raised:
        error = raised
    finally:
        await made.close()
    return error, await committed(bootstrap_servers, good)


@stack
async def test_a_batch_that_fails_fails_the_whole_page(bootstrap_servers: str) -> None:
    error, visible = await publish_with_a_failing_batch(bootstrap_servers, KafkaPublisher)
    assert isinstance(error, Misconfigured)
    assert "VERITY_KAFKA__MAX_RECORD_BYTES" in str(error)
    assert visible == []


@stack
async def test_a_commit_without_acknowledgements_is_noticed(bootstrap_servers: str) -> None:
    """The test above is worth something: the broken publisher commits half a page."""
    error, visible = await publish_with_a_failing_batch(
        bootstrap_servers, CommitsWithoutAcknowledgements
    )
    assert error is None
    assert values(visible) == ["1", "3", "4"]


# Trap 2: a producer is thrown away after a failure


@stack
async def test_after_a_failure_a_new_publisher_of_the_same_id_goes_on(
    bootstrap_servers: str,
) -> None:
    topic, name = await new_topic(bootstrap_servers), new_name()
    failing = publisher(kafka_settings(bootstrap_servers), name)
    await failing.start()

    def fail(_: Offsets) -> Record:
        raise ValueError("inside the page")

    with pytest.raises(ValueError, match="inside the page"):
        await published(failing, [record(topic, 1)], fail)
    await failing.close()
    again = publisher(kafka_settings(bootstrap_servers), name)
    await again.start()
    await published(again, [record(topic, 2)])
    await again.close()
    assert values(await committed(bootstrap_servers, topic)) == ["2"]


# Trap 3: fencing


@stack
@pytest.mark.parametrize("when", ["before the page", "before the commit"])
async def test_a_newer_publisher_fences_the_older(bootstrap_servers: str, when: str) -> None:
    """The zombie publishes nothing, and can be closed; the newer one goes on."""
    topic, name = await new_topic(bootstrap_servers), new_name()
    kafka, made = kafka_settings(bootstrap_servers), Makes()
    older, newer = publisher(kafka, name, clients=made.clients), publisher(kafka, name)
    await older.start()
    await published(older, [record(topic, 1)])
    if when == "before the page":
        await newer.start()
    else:
        commit = made.producer.commit_transaction

        async def frozen() -> None:
            await newer.start()
            await commit()

        made.producer.commit_transaction = frozen
    with pytest.raises(Fenced):
        await published(older, [record(topic, 2)], lambda _: [record(topic, 3)])
    await older.close()
    await published(newer, [record(topic, 4)])
    await newer.close()
    assert values(await committed(bootstrap_servers, topic)) == ["1", "4"]


@stack
async def test_who_was_fenced_while_it_filled_a_page_says_so(bootstrap_servers: str) -> None:
    """The broker's refusal is heard before the page is sent: aiokafka then calls that illegal."""
    topic, name = await new_topic(bootstrap_servers), new_name()
    kafka, made = kafka_settings(bootstrap_servers), Makes()
    older, newer = publisher(kafka, name, clients=made.clients), publisher(kafka, name)
    await older.start()
    await published(older, [record(topic, 1)])
    await newer.start()
    open_topic, transactions = older.open_topic, made.producer._txn_manager

    async def is_refused() -> bool:
        return not transactions.is_in_transaction()

    async def once_refused(one: str) -> None:
        if transactions.partitions_to_add():
            await eventually(is_refused, 30)
        await open_topic(one)

    older.open_topic = once_refused
    with pytest.raises(Fenced):
        await published(older, [], lambda _: [record(topic, 2)], (topic, 0))
    await older.close()
    await newer.close()
    assert values(await committed(bootstrap_servers, topic)) == ["1"]


@stack
async def test_without_transactions_nobody_is_fenced(bootstrap_servers: str) -> None:
    """`at_least_once`: only the epoch in Postgres stops a zombie."""
    topic = await new_topic(bootstrap_servers)
    kafka, made = kafka_settings(bootstrap_servers), Makes()
    both = [publisher(kafka, None, clients=made.clients) for _ in range(2)]
    for one in both:
        await one.start()
        assert made.producer._txn_manager is not None, "idempotent"
    for number, one in enumerate(both):
        await published(one, [record(topic, number)], lambda _: [record(topic, 9)])
        await one.close()
    assert values(await committed(bootstrap_servers, topic)) == ["0", "1", "9", "9"]


# Trap 5: close aborts


@stack
async def test_close_aborts_the_page_that_was_cancelled(bootstrap_servers: str) -> None:
    """Left open, it would hold back every committed reader until it times out."""
    topic = await new_topic(bootstrap_servers)
    made = Makes()
    one = publisher(kafka_settings(bootstrap_servers), new_name(), 60, made.clients)
    await one.start()
    acknowledged = asyncio.Event()

    async def frozen() -> None:
        acknowledged.set()
        await asyncio.Event().wait()

    made.producer.commit_transaction = frozen
    publishing = asyncio.create_task(published(one, [record(topic, 1)]))
    await asyncio.wait_for(acknowledged.wait(), 30)
    publishing.cancel()
    await asyncio.wait({publishing})

    async def is_held_back() -> bool:
        marks = await watermarks(bootstrap_servers, topic)
        return any(stable < high for stable, high in marks.values())

    async def is_free() -> bool:
        return not await is_held_back()

    assert await is_held_back()
    await one.close()
    # The coordinator writes the markers a moment after it has answered.
    await eventually(is_free, 30)
    assert await committed(bootstrap_servers, topic) == []


# Trap 6: a broker that is gone


@stack
async def test_with_the_broker_gone_publishing_and_closing_end_in_time(
    make_stack: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "CLOSE_SECONDS", 0.5)
    own = make_stack()
    bootstrap_servers = own.up(environ={}).bootstrap_servers
    topic = await new_topic(bootstrap_servers)
    made = Makes()
    one = publisher(kafka_settings(bootstrap_servers), new_name(), clients=made.clients)
    await one.start()
    await published(one, [record(topic, 1)])
    for server in own.servers:
        server.kill()
    one.publish_seconds = 0.5
    with pytest.raises(Unavailable):
        await published(one, [record(topic, 2)])
    sender = made.producer._sender.sender_task
    async with asyncio.timeout(30):
        await one.close()
        await asyncio.wait({sender})
    assert sender.done()
    again = publisher(kafka_settings(bootstrap_servers), new_name())
    with pytest.raises(Unavailable):
        await again.start()
    await again.close()


class HangingProducer:
    """A producer with a transaction open and nobody to talk to."""

    def __init__(self) -> None:
        self._txn_manager = self._sender = self.client = self
        self.sender_task = asyncio.create_task(asyncio.Event().wait())
        self.disconnected = asyncio.Event()

    def is_in_transaction(self) -> bool:
        return True

    async def start(self) -> None:
        pass

    async def abort_transaction(self) -> None:
        await asyncio.Event().wait()

    async def stop(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        self.disconnected.set()


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_close_leaves_no_task_and_no_connection(
    monkeypatch: pytest.MonkeyPatch, is_cancelled: bool
) -> None:
    """The runner cancels a relay after 2.5 s, which may be in the middle of closing."""
    monkeypatch.setattr(publisher_module, "CLOSE_SECONDS", 0.02)
    producer = HangingProducer()
    clients = Clients(producer=lambda **_: producer)
    one = publisher(kafka_settings("localhost:1"), "t", clients=clients)
    await one.start()
    closing = asyncio.create_task(one.close())
    await asyncio.sleep(0)
    if is_cancelled:
        closing.cancel()
    await asyncio.wait({closing}, timeout=30)
    await asyncio.wait({producer.sender_task}, timeout=30)
    is_cancelled = producer.sender_task.cancelled()
    producer.sender_task.cancel()
    assert is_cancelled
    async with asyncio.timeout(30):
        await producer.disconnected.wait()


# Traps 7 and 8, and other errors


@stack
async def test_a_record_too_large_names_the_setting(bootstrap_servers: str) -> None:
    topic = await new_topic(bootstrap_servers)
    one = publisher(kafka_settings(bootstrap_servers, max_record_bytes=5_000_000), new_name())
    await one.start()
    with pytest.raises(Misconfigured, match="VERITY_KAFKA__MAX_RECORD_BYTES"):
        await published(one, [record(topic, 1), record(topic, 2, value=b"x" * 3_000_000)])
    await one.close()
    assert await committed(bootstrap_servers, topic) == []


@stack
async def test_an_unknown_topic_is_unavailable(bootstrap_servers: str) -> None:
    one = publisher(kafka_settings(bootstrap_servers, request_timeout_seconds=0.5), new_name())
    await one.start()
    with pytest.raises(Unavailable):
        await published(one, [record(f"absent.{new_name()}", 1)])
    await one.close()


@stack
async def test_a_transaction_timeout_above_the_brokers_names_the_setting(
    bootstrap_servers: str,
) -> None:
    one = publisher(kafka_settings(bootstrap_servers), new_name(), seconds=7200)
    with pytest.raises(Misconfigured, match="VERITY_TRANSACTION_TIMEOUT"):
        await one.start()
    await one.close()


@stack
async def test_a_clock_that_is_more_than_an_hour_ahead_is_named(bootstrap_servers: str) -> None:
    """It was Unavailable, for ever."""
    topic = await new_topic(bootstrap_servers)
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers)
    await producer.start()
    try:
        ahead_ms = int((time.time() + 7200) * 1000)
        with pytest.raises(kafka_errors.KafkaError) as raised:
            await producer.send_and_wait(topic, b"1", timestamp_ms=ahead_ms)
    finally:
        await producer.stop()
    error = as_verity_error(raised.value)
    assert isinstance(error, Misconfigured)
    assert "clock is ahead" in str(error)


@pytest.mark.parametrize("codec", ["lz4", "zstd", "snappy"])
async def test_a_codec_that_is_not_installed_is_misconfigured(codec: str) -> None:
    def absent(**options: Any) -> None:
        raise RuntimeError(f"Compression library for {options['compression_type']} not found")

    one = KafkaPublisher(
        kafka_settings("localhost:1", compression_type=codec),
        transactional_id=new_name(),
        transaction_timeout=timedelta(seconds=60),
        clients=Clients(producer=absent),
    )
    with pytest.raises(Misconfigured, match=f"VERITY_KAFKA__.*{codec}"):
        await one.start()
    await one.close()


async def test_a_broker_that_is_not_there_is_unavailable() -> None:
    one = publisher(kafka_settings("localhost:1"), new_name())
    with pytest.raises(Unavailable):
        await one.start()
    await one.close()
    await one.close()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (kafka_errors.ProducerFenced(), Fenced),
        (kafka_errors.MessageSizeTooLargeError(), Misconfigured),
        (kafka_errors.RecordListTooLargeError(), Misconfigured),
        (kafka_errors.InvalidTransactionTimeout(), Misconfigured),
        (kafka_errors.InvalidTimestampError(), Misconfigured),
        (kafka_errors.TopicAuthorizationFailedError("t"), Denied),
        (kafka_errors.TransactionalIdAuthorizationFailed(), Denied),
        (kafka_errors.AuthenticationFailedError(), Denied),
        (kafka_errors.KafkaConnectionError(), Unavailable),
        (kafka_errors.UnknownTopicOrPartitionError(), Unavailable),
        (kafka_errors.OutOfOrderSequenceNumber(), Unavailable),
        (kafka_errors.InvalidProducerIdMapping(), Unavailable),
        (kafka_errors.IllegalOperation(), Unavailable),
        (AssertionError("Invalid state transition"), Unavailable),
        (Denied("as it is"), Denied),
    ],
)
def test_errors_say_who_must_act(error: BaseException, expected: type[Exception]) -> None:
    assert type(as_verity_error(error)) is expected


# What the workarounds hold on to


def test_the_version_of_aiokafka_is_the_one_that_was_examined() -> None:
    """With another version read the traps again, then change the pin and this test."""
    project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
    assert f"aiokafka=={version('aiokafka')}" in project["dependencies"]
    assert version("aiokafka") == "0.14.0"


async def test_the_private_attributes_of_aiokafka_are_there() -> None:
    producer = AIOKafkaProducer(bootstrap_servers="localhost:1", transactional_id="t")
    assert producer._txn_manager.is_in_transaction() is False
    assert producer._sender.sender_task is None
    assert callable(producer.client.close)
    await producer.stop()
