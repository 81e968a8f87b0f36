"""Topics on the real broker: the right partitions and compaction, whoever comes first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from contract.streams import kafka_settings, new_name, stream_settings
from workers import eventually

from verity_sdk.errors import Misconfigured, Unavailable
from verity_stream import topics as topics_module
from verity_stream.records import CHECKPOINTS_TOPIC
from verity_stream.topics import Topics

pytestmark = pytest.mark.stack


@pytest.fixture
async def admin(bootstrap_servers: str) -> AsyncIterator[Any]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    yield admin
    await admin.close()


@pytest.fixture
def own_checkpoints(monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoints topic of the test's own: the real one is shared by the whole session."""
    name = new_name()
    monkeypatch.setattr(topics_module, "CHECKPOINTS_TOPIC", name)
    return name


async def partitions(admin: Any, topic: str) -> int:
    (described,) = await admin.describe_topics([topic])
    return len(described["partitions"])


async def config(admin: Any, topic: str) -> dict[str, str]:
    (response,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    (resource,) = response.resources
    return {entry[0]: entry[1] for entry in resource[4]}


async def test_the_checkpoints_topic_is_compacted_and_has_its_partitions(
    bootstrap_servers: str, admin: Any, own_checkpoints: str
) -> None:
    topics = Topics(stream_settings(bootstrap_servers, checkpoint_partitions=5))
    events = new_name()
    await topics.ensure({own_checkpoints, events})
    assert await partitions(admin, own_checkpoints) == 5
    assert await partitions(admin, events) == 2
    assert (await config(admin, own_checkpoints))["cleanup.policy"] == "compact"
    assert (await config(admin, events))["cleanup.policy"] == "delete"


async def test_another_number_of_partitions_is_misconfigured(
    bootstrap_servers: str, own_checkpoints: str
) -> None:
    """Connectors would be placed elsewhere, and their records never found."""
    await Topics(stream_settings(bootstrap_servers, checkpoint_partitions=3)).ensure(
        {own_checkpoints}
    )
    again = Topics(stream_settings(bootstrap_servers, checkpoint_partitions=4))
    for _ in range(2):
        with pytest.raises(Misconfigured, match=r"PARTITIONS=4.* 3 partitions"):
            await again.ensure({own_checkpoints})


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
