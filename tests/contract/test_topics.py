"""Topics on the real broker: the right partitions and compaction, whoever comes first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from contract.streams import kafka_settings, new_name, stream_settings
from stack_fixtures import StackFactory
from workers import eventually

from verity_common.kafka import insync_replicas
from verity_sdk.errors import Misconfigured, Unavailable
from verity_stream.kafka import topics as topics_module
from verity_stream.kafka.topics import (
    Misshapen,
    Topics,
    differences,
    new_topic,
    placed_topics,
    worker_topics,
)
from verity_stream.records import CHECKPOINTS_TOPIC, GAPS_TOPIC, dead_topic, raw_topic
from verity_stream.settings import StreamSettings

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
    await listed(admin, *counts)


async def listed(admin: Any, *names: str) -> None:
    """Until the broker knows what the controller has made."""

    async def are_listed() -> bool:
        return set(names) <= set(await admin.list_topics())

    await eventually(are_listed, 30)


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
        with pytest.raises(Misshapen, match=r"checkpoints has 1 .*refused.*delete.topic.enable"):
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

        async def has_grown() -> bool:
            return await partitions(admin, name) == 7

        await eventually(has_grown, 30)
        topics.forget()
        await topics.ensure({name})
        topics.forget()
        await topics.ensure({name})
    assert [one["event"] for one in logs] == [
        "topics.other_partitions",
        "topics.partitions_changed",
    ]
    assert (logs[1]["before"], logs[1]["after"]) == (5, 7)


async def test_what_must_not_disappear_is_kept_for_ever(
    make_stack: StackFactory,
) -> None:
    """The broker's own retention made "complete" of a recorded loss, after a week."""
    stack = make_stack(kafka_settings={"log.retention.ms": "1000", "log.retention.bytes": "1000"})
    server = (await asyncio.to_thread(stack.up, environ={})).bootstrap_servers
    settings = stream_settings(server, dead_letter_retention="90d")
    names = worker_topics(settings, ["p"])
    await Topics(settings).ensure(names)
    admin = AIOKafkaAdminClient(bootstrap_servers=server)
    await admin.start()
    try:
        held = {name: await config(admin, name) for name in names}
        gaps = held[GAPS_TOPIC]
        assert (gaps["retention.ms"], gaps["retention.bytes"]) == ("-1", "-1")
        assert held[dead_topic("p")]["retention.ms"] == str(90 * 86_400_000)
        assert held[raw_topic("p")]["retention.ms"] == "1000", "is the operator's"
        for name in placed_topics(settings):
            assert held[name]["cleanup.policy"] == "compact"
        assert {one["min.insync.replicas"] for one in held.values()} == {"1"}
        assert await differences(settings, names) == []
    finally:
        await admin.close()


async def test_what_differs_is_said_once_with_topic_setting_found_and_wanted(
    bootstrap_servers: str, admin: Any, placed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, gaps = placed[0], new_name()
    dead = dead_topic(new_name())
    monkeypatch.setattr(topics_module, "GAPS_TOPIC", gaps)
    await admin.create_topics(
        [
            NewTopic(gaps, 1, 1, topic_configs={"retention.ms": "604800000"}),
            NewTopic(dead, 1, 1, topic_configs={"retention.ms": "-1", "retention.bytes": "5000"}),
            NewTopic(checkpoints, 24, 1, topic_configs={"cleanup.policy": "compact,delete"}),
        ]
    )
    await listed(admin, gaps, dead, checkpoints)
    # As many brokers as the session's stack has: three of them are too dear for this.
    monkeypatch.setattr(topics_module, "PRODUCTION_BROKERS", 1)
    settings = stream_settings(bootstrap_servers)
    with structlog.testing.capture_logs() as logs:
        await Topics(settings).warn_of_differences([checkpoints, gaps, dead, new_name()])
    (said,) = logs
    assert (said["event"], said["log_level"]) == ("topics.settings_differ", "warning")
    first, *others = said["differences"]
    assert first.startswith("VERITY_KAFKA__REPLICATION_FACTOR is 1 on a cluster of 1 brokers")
    assert sorted(others) == sorted(
        [
            f"{checkpoints}: cleanup.policy is compact,delete, wanted compact",
            f"{gaps}: retention.ms is 604800000, wanted -1",
            f"{dead}: retention.bytes is 5000, wanted -1",
        ]
    )


async def test_less_replication_than_wanted_differs(bootstrap_servers: str, admin: Any) -> None:
    name = new_name()
    await create_by_hand(admin, **{name: 1})
    kafka = kafka_settings(bootstrap_servers, replication_factor=3)
    found = await differences(stream_settings(bootstrap_servers, kafka=kafka), [name])
    assert found == [
        f"{name}: replication factor is 1, wanted 3",
        f"{name}: min.insync.replicas is 1, wanted 2",
    ]


@pytest.mark.parametrize(("replicas", "expected"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_one_of_three_replicas_may_be_away(replicas: int, expected: int) -> None:
    assert insync_replicas(replicas) == expected


class PoliticalAdmin:
    """A cluster whose policy refuses topics with certain settings, as Confluent Cloud's does."""

    def __init__(self, *forbidden: str) -> None:
        self.forbidden, self.created = set(forbidden), dict[str, Any]()

    async def create_topics(self, topics: Any, validate_only: bool = False) -> Any:
        errors = []
        for topic in topics:
            bad = self.forbidden & topic.topic_configs.keys()
            errors.append((topic.name, 44 if bad else 0, f"{bad} not permitted"))
            if not bad:
                self.created[topic.name] = topic.topic_configs
        return SimpleNamespace(topic_errors=errors)


async def test_where_small_segments_are_forbidden_topics_are_made_without() -> None:
    settings = StreamSettings()
    topics = [new_topic(settings, name) for name in (CHECKPOINTS_TOPIC, GAPS_TOPIC)]
    admin: Any = PoliticalAdmin("segment.bytes")
    await topics_module.create_topics(settings.kafka, admin, topics)
    assert admin.created[CHECKPOINTS_TOPIC] == {
        "cleanup.policy": "compact",
        "min.insync.replicas": "1",
    }
    assert admin.created[GAPS_TOPIC]["retention.ms"] == "-1"
    for forbidden in ("cleanup.policy", "min.insync.replicas"):
        with pytest.raises(Misconfigured, match=f"policy refuses.*{forbidden}.*by hand"):
            await topics_module.create_topics(settings.kafka, PoliticalAdmin(forbidden), topics)  # type: ignore[arg-type]  # a fake


async def test_workers_that_start_together_create_once(bootstrap_servers: str, admin: Any) -> None:
    """Each may find a topic missing that another creates at the same moment."""
    names = {new_name() for _ in range(3)}
    workers = [Topics(stream_settings(bootstrap_servers)) for _ in range(3)]
    with structlog.testing.capture_logs() as said:
        await asyncio.gather(*(worker.ensure(names) for worker in workers))
        await workers[0].ensure(names)
    assert names <= set(await admin.list_topics())
    lines = [line["topics"] for line in said if line["event"] == "topics.created"]
    assert sorted(name for line in lines for name in line) == sorted(names), "each by one of them"


async def test_names_may_come_as_an_iterator(bootstrap_servers: str, admin: Any) -> None:
    names = [new_name(), new_name()]
    await Topics(stream_settings(bootstrap_servers)).ensure(iter(names))
    assert set(names) <= set(await admin.list_topics())


async def test_what_is_known_is_not_asked_again_until_forgotten(
    bootstrap_servers: str, admin: Any
) -> None:
    topics, name = Topics(stream_settings(bootstrap_servers)), new_name()

    async def was_there() -> bool:
        """Deletes it. Asked of the controller: the broker's own metadata follows later."""
        answer = await admin.delete_topics([name])
        return [code for _, code in answer.topic_error_codes] == [0]

    async def is_unlisted() -> bool:
        return name not in await admin.list_topics()

    await topics.ensure({name})
    assert await was_there()
    await eventually(is_unlisted, 30)
    await topics.ensure({name})
    assert not await was_there()

    topics.forget()
    await topics.ensure({name})
    assert await was_there()


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
