"""Topics on the real broker: the right partitions and compaction, whoever comes first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from contract.streams import kafka_settings, new_name, stream_settings
from stack_fixtures import StackFactory
from workers import eventually

from verity_sdk.errors import Misconfigured, Unavailable
from verity_stream import topics as topics_module
from verity_stream.records import CHECKPOINTS_TOPIC
from verity_stream.topics import Misshapen, Topics

pytestmark = pytest.mark.stack


@pytest.fixture
async def admin(bootstrap_servers: str) -> AsyncIterator[Any]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    yield admin
    await admin.close()


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, str]:
    """Placed topics of the test's own: the real ones are shared by the whole session."""
    names = (new_name(), new_name(), new_name())
    monkeypatch.setattr(topics_module, "placed_topics", lambda _: names)
    return names


async def create_by_hand(admin: Any, **counts: int) -> None:
    """Topics as a broker or an administrator makes them."""
    await admin.create_topics([NewTopic(name, count, 1) for name, count in counts.items()])
    for name in counts:

        async def is_listed(name: str = name) -> bool:
            return name in await admin.list_topics()

        await eventually(is_listed, 10)


async def write(bootstrap_servers: str, topic: str) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers)
    await producer.start()
    try:
        await producer.send_and_wait(topic, b"1", b"key")
    finally:
        await producer.stop()


async def partitions(admin: Any, topic: str) -> int:
    (described,) = await admin.describe_topics([topic])
    return len(described["partitions"])


async def config(admin: Any, topic: str) -> dict[str, str]:
    (response,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    (resource,) = response.resources
    return {entry[0]: entry[1] for entry in resource[4]}


async def test_a_placed_topic_is_compacted_and_has_its_partitions(
    bootstrap_servers: str, admin: Any, placed: tuple[str, ...]
) -> None:
    topics = Topics(stream_settings(bootstrap_servers, checkpoint_partitions=5))
    events = new_name()
    await topics.ensure({placed[0], events})
    assert await partitions(admin, placed[0]) == 5
    assert await partitions(admin, events) == 2
    assert (await config(admin, placed[0]))["cleanup.policy"] == "compact"
    assert (await config(admin, events))["cleanup.policy"] == "delete"


async def test_placed_topics_of_another_shape_are_named_together_with_one_command(
    bootstrap_servers: str, admin: Any, placed: tuple[str, ...]
) -> None:
    """Set to 48 for one of them, the other would ask for 24: the advice has to fit all."""
    checkpoints, changelog, ids = placed
    await create_by_hand(admin, **{checkpoints: 6, changelog: 3, ids: 6})
    for name in placed:
        await write(bootstrap_servers, name)
    topics = Topics(stream_settings(bootstrap_servers, checkpoint_partitions=3))
    for _ in range(2):
        with pytest.raises(Misshapen) as raised:
            await topics.ensure({checkpoints})
        said = str(raised.value)
        assert f"--delete --topic '{'|'.join(sorted((checkpoints, ids)))}'" in said
        assert changelog not in said
        assert "set it back" not in said
    assert await partitions(admin, checkpoints) == 6


async def test_a_setting_that_was_changed_is_told_its_number(
    bootstrap_servers: str, placed: tuple[str, ...]
) -> None:
    before = Topics(stream_settings(bootstrap_servers, checkpoint_partitions=3))
    await before.ensure(placed)
    await write(bootstrap_servers, placed[0])
    again = Topics(stream_settings(bootstrap_servers, checkpoint_partitions=4))
    with pytest.raises(Misshapen, match=r"PARTITIONS=4.* has 3.*set it back to 3"):
        await again.ensure({placed[0]})


async def test_placed_topics_of_another_shape_without_a_record_are_made_anew(
    bootstrap_servers: str, admin: Any, placed: tuple[str, ...]
) -> None:
    """A broker that creates topics by itself made them: one partition, and no compaction."""
    checkpoints, changelog, ids = placed
    await create_by_hand(admin, **{checkpoints: 1, changelog: 3, ids: 7})
    workers = [
        Topics(stream_settings(bootstrap_servers, checkpoint_partitions=3)) for _ in range(3)
    ]
    await asyncio.gather(*(worker.ensure({checkpoints}) for worker in workers))
    for name in placed:
        assert await partitions(admin, name) == 3
    assert (await config(admin, checkpoints))["cleanup.policy"] == "compact"
    assert (await config(admin, ids))["cleanup.policy"] == "compact"


async def test_none_is_made_anew_beside_one_that_holds_records(
    bootstrap_servers: str, admin: Any, placed: tuple[str, ...]
) -> None:
    checkpoints, _, ids = placed
    await create_by_hand(admin, **{checkpoints: 1, ids: 7})
    await write(bootstrap_servers, ids)
    with pytest.raises(Misshapen):
        await Topics(stream_settings(bootstrap_servers, checkpoint_partitions=3)).ensure({ids})
    assert (await partitions(admin, checkpoints), await partitions(admin, ids)) == (1, 7)


async def test_without_the_right_to_delete_an_empty_topic_is_named(
    make_stack: StackFactory,
) -> None:
    stack = make_stack(kafka_settings={"delete.topic.enable": "false"})
    server = (await asyncio.to_thread(stack.up, environ={})).bootstrap_servers
    admin = AIOKafkaAdminClient(bootstrap_servers=server)
    await admin.start()
    try:
        await create_by_hand(admin, **{CHECKPOINTS_TOPIC: 1})
        with pytest.raises(Misshapen, match=r"checkpoints has 1 .*refused.*error 73"):
            await Topics(stream_settings(server)).ensure({CHECKPOINTS_TOPIC})
    finally:
        await admin.close()


async def test_other_topics_take_any_number_of_partitions_and_it_is_said(
    bootstrap_servers: str, admin: Any
) -> None:
    topics, name = Topics(stream_settings(bootstrap_servers)), new_name()
    await create_by_hand(admin, **{name: 5})
    with structlog.testing.capture_logs() as logs:
        await topics.ensure({name})
        await admin.create_partitions({name: NewPartitions(7)})
        topics.forget()
        await topics.ensure({name})
        topics.forget()
        await topics.ensure({name})
    assert [one["event"] for one in logs] == [
        "topics.other_partitions",
        "topics.partitions_changed",
    ]
    assert (logs[1]["before"], logs[1]["after"]) == (5, 7)


async def test_workers_that_start_together_create_once(bootstrap_servers: str, admin: Any) -> None:
    names = {new_name() for _ in range(3)}
    workers = [Topics(stream_settings(bootstrap_servers)) for _ in range(3)]
    await asyncio.gather(*(worker.ensure(names) for worker in workers))
    await workers[0].ensure(names)
    assert names <= set(await admin.list_topics())


async def test_names_may_come_as_an_iterator(bootstrap_servers: str, admin: Any) -> None:
    names = [new_name(), new_name()]
    await Topics(stream_settings(bootstrap_servers)).ensure(iter(names))
    assert set(names) <= set(await admin.list_topics())


async def test_what_is_known_is_not_asked_again_until_forgotten(
    bootstrap_servers: str, admin: Any
) -> None:
    topics, name = Topics(stream_settings(bootstrap_servers)), new_name()
    await topics.ensure({name})
    await admin.delete_topics([name])
    await topics.ensure({name})
    assert name not in await admin.list_topics()
    topics.forget()
    await topics.ensure({name})

    async def is_listed() -> bool:
        return name in await admin.list_topics()

    # Created is what the controller says; the broker's own metadata follows.
    await eventually(is_listed, 10)


async def test_a_replication_factor_that_cant_be_met_names_the_setting(
    bootstrap_servers: str, admin: Any
) -> None:
    kafka = kafka_settings(bootstrap_servers, replication_factor=7)
    name = new_name()
    with pytest.raises(Misconfigured, match="VERITY_KAFKA__REPLICATION_FACTOR=7"):
        await Topics(stream_settings(bootstrap_servers, kafka=kafka)).ensure({name})
    assert name not in await admin.list_topics()


async def test_a_broker_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        await Topics(stream_settings("localhost:1")).ensure({CHECKPOINTS_TOPIC})
