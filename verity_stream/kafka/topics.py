"""The topics: created with the right settings, and checked where they exist already.

Two kinds. The *placed* topics (checkpoints, their changelog, the log of ids) are read where a
connector's id says, by `VERITY_CHECKPOINT_PARTITIONS`: that setting is the one number, and a topic
of another shape is never used. All others take any number of partitions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import structlog
from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from verity_common.kafka import KafkaSettings, insync_replicas
from verity_sdk.errors import Denied, Misconfigured, Unavailable
from verity_stream.kafka.clients import AIOKAFKA, Clients, consumer_of, kafka_admin, partitions_of
from verity_stream.kafka.errors import error_of_code
from verity_stream.records import (
    CHECKPOINTS_TOPIC,
    GAPS_TOPIC,
    IDS_TOPIC,
    dead_topic,
    permissions_topic,
    raw_topic,
)
from verity_stream.settings import StreamSettings

logger = structlog.get_logger(__name__)

ADMIN_SECONDS = 30.0
POLL_SECONDS = 0.1
POLICY_CODES = frozenset(
    {kafka_errors.PolicyViolationError.errno, kafka_errors.InvalidConfigurationError.errno}
)
GONE_POLLS_MAX = 20
"""A deleted topic that is listed for longer was made anew by the broker, and is deleted again."""

CHECKPOINTS_TABLE = "checkpoints"

CHECKPOINTS_CONFIG = {
    "cleanup.policy": "compact",
    # Small segments that are compacted early: a start reads the partition from its beginning.
    "segment.bytes": str(16 * 1024 * 1024),
    "segment.ms": str(60 * 60 * 1000),
    "min.cleanable.dirty.ratio": "0.1",
}


GAPS_CONFIG = {
    "cleanup.policy": "delete",
    # For ever: with the cluster's retention a recorded loss would become "complete".
    "retention.ms": "-1",
    "retention.bytes": "-1",
}

OPTIONAL_CONFIGS = frozenset({"segment.bytes", "segment.ms", "min.cleanable.dirty.ratio"})
"""What makes a topic cheaper, not another one: clusters may forbid it, and it is not checked."""

PRODUCTION_BROKERS = 3
"""A cluster of so many brokers is meant to survive the loss of one."""


def changelog_topic(settings: StreamSettings) -> str:
    """The changelog of the mirrored checkpoints, as Faust names it."""
    return f"{settings.app_id}-{CHECKPOINTS_TABLE}-changelog"


def placed_topics(settings: StreamSettings) -> tuple[str, ...]:
    """The topics whose partitions are the places of connectors."""
    return (CHECKPOINTS_TOPIC, changelog_topic(settings), IDS_TOPIC)


def worker_topics(settings: StreamSettings, platforms: Iterable[str]) -> set[str]:
    """All topics of a worker that serves these platforms."""
    names = {*placed_topics(settings), GAPS_TOPIC}
    for platform in platforms:
        names |= {raw_topic(platform), dead_topic(platform), permissions_topic(platform)}
    return names


def new_topic(settings: StreamSettings, name: str) -> NewTopic:
    """A topic as it is created, and as it should be found: what is left out is the cluster's."""
    kafka, partitions = settings.kafka, settings.kafka.event_partitions
    config: dict[str, str] = {}
    if name in placed_topics(settings):
        config, partitions = CHECKPOINTS_CONFIG, settings.checkpoint_partitions
    elif name == GAPS_TOPIC:
        config = GAPS_CONFIG
    elif name.startswith(dead_topic("")):
        config = GAPS_CONFIG
        if settings.dead_letter_retention is not None:
            kept_ms = settings.dead_letter_retention // timedelta(milliseconds=1)
            config = GAPS_CONFIG | {"retention.ms": str(kept_ms)}
    replication = kafka.replication_factor
    config = config | {"min.insync.replicas": str(insync_replicas(replication))}
    return NewTopic(name, partitions, replication, topic_configs=config)


async def check_creatable(
    settings: StreamSettings, admin: AIOKafkaAdminClient, names: Iterable[str]
) -> None:
    """Whether those of these topics that are missing could be created; creates none.

    Raises:
        Denied, Misconfigured, Unavailable: As `ensure_topics`.
    """
    missing = sorted(set(names) - set(await admin.list_topics()))
    if missing:
        topics = [new_topic(settings, name) for name in missing]
        await create_topics(settings.kafka, admin, topics, is_tried_only=True)


def placed_partitions(settings: StreamSettings) -> dict[str, int]:
    """How many partitions the placed topics have, without asking the broker."""
    return dict.fromkeys(placed_topics(settings), settings.checkpoint_partitions)


async def ensure_topics(
    kafka: KafkaSettings, wanted: Mapping[str, NewTopic], clients: Clients = AIOKAFKA
) -> dict[str, int]:
    """Create what is missing; return when all are whole: how many partitions each has.

    What exists is left as it is. Whole means that every partition has a leader: a consumer that
    joins its group before the metadata has a topic would leave it without owners.

    Raises:
        Denied: The principal may not create topics; create them by hand.
        Misconfigured: The replication factor can't be met.
        Unavailable: The broker did not manage in time.
    """
    if not wanted:
        return {}
    try:
        async with kafka_admin(kafka, ADMIN_SECONDS, clients) as admin:
            missing = sorted(wanted.keys() - set(await admin.list_topics()))
            if missing:
                await create_topics(kafka, admin, [wanted[name] for name in missing])
            while True:
                found = await _described(admin, wanted)
                if len(found) == len(wanted) and all(map(_is_whole, found.values())):
                    return {name: len(partitions) for name, partitions in found.items()}
                await asyncio.sleep(POLL_SECONDS)
    except Unavailable as error:
        raise Unavailable(f"the topics {', '.join(sorted(wanted))}: {error}") from error


async def create_topics(
    kafka: KafkaSettings,
    admin: AIOKafkaAdminClient,
    topics: Sequence[NewTopic],
    *,
    is_tried_only: bool = False,
) -> None:
    created: list[str] = []
    answer = await admin.create_topics(topics, validate_only=is_tried_only)
    refused = {name for name, code, *_ in answer.topic_errors if code in POLICY_CODES}
    if any(topic.topic_configs.keys() & OPTIONAL_CONFIGS for topic in topics) and refused:
        # A cluster that forbids small segments, say: the topic is the same without them.
        plainer = [
            NewTopic(
                topic.name,
                topic.num_partitions,
                topic.replication_factor,
                topic_configs={
                    key: value
                    for key, value in topic.topic_configs.items()
                    if key not in OPTIONAL_CONFIGS
                },
            )
            for topic in topics
            if topic.name in refused
        ]
        created = _created(kafka, [one for one in answer.topic_errors if one[0] not in refused])
        answer = await admin.create_topics(plainer, validate_only=is_tried_only)
    created += _created(kafka, answer.topic_errors)
    if created and not is_tried_only:
        logger.info("topics.created", topics=sorted(created))


def _created(kafka: KafkaSettings, outcomes: Iterable[Sequence[Any]]) -> list[str]:
    """Which of them are new: another worker may have created the others meanwhile."""
    created = []
    for name, code, *message in outcomes:
        error = kafka_errors.for_code(code)
        if error is kafka_errors.NoError:
            created.append(name)
            continue
        if error is kafka_errors.InvalidReplicationFactorError:
            raise Misconfigured(
                f"VERITY_KAFKA__REPLICATION_FACTOR={kafka.replication_factor}: "
                f"{message[0] if message else 'the cluster has fewer brokers'}"
            )
        if code in POLICY_CODES:
            why = message[0] if message else code
            raise Misconfigured(
                f"the cluster's policy refuses the topic {name} ({why}): create it by hand "
                "(docs/operating.md, The topics)"
            )
        if error is not kafka_errors.TopicAlreadyExistsError:
            raise error_of_code(code, f"creating topic {name}: {message}")
    return created


async def _described(
    admin: AIOKafkaAdminClient, names: Iterable[str]
) -> dict[str, Sequence[Mapping[str, Any]]]:
    """The partitions of those of these topics that exist, with and without a leader."""
    # All of them: asking for one by name would create it, with the broker's own number of
    # partitions, where brokers create topics by themselves.
    described = {topic["topic"]: topic for topic in await admin.describe_topics()}
    return {
        name: described[name]["partitions"]
        for name in names
        if name in described and not described[name]["error_code"]
    }


def _is_whole(partitions: Sequence[Mapping[str, Any]]) -> bool:
    return bool(partitions) and not any(
        part["error_code"] or part["leader"] < 0 for part in partitions
    )


async def _shapes(admin: AIOKafkaAdminClient, names: Iterable[str]) -> dict[str, int]:
    """How many partitions those of these topics that exist have.

    One whose leader is just moving has its number all the same. Passed over, a topic of another
    shape would be written to, and then could not be made anew any more.
    """
    found = await _described(admin, names)
    return {name: len(partitions) for name, partitions in found.items() if partitions}


class Misshapen(Misconfigured):
    """Placed topics have another number of partitions than the setting; nothing may use them."""


def misshapen(settings: StreamSettings, counts: Mapping[str, int]) -> Misshapen | None:
    """What to do about placed topics of another shape, all of them together; None if there is none.

    Args:
        counts: How many partitions each of the placed topics that exist has.
    """
    wanted = settings.checkpoint_partitions
    wrong = {name: count for name, count in sorted(counts.items()) if count != wanted}
    if not wrong:
        return None
    found = ", ".join(f"{name} has {count}" for name, count in wrong.items())
    # The client can't tell a topic that was made anew from one that grew: in either case what
    # stands in it was placed by another number.
    advice = (
        f"VERITY_CHECKPOINT_PARTITIONS={wanted}, but {found} partitions: records are never looked "
        "for by two numbers, so nothing runs. With all workers stopped: kafka-topics.sh "
        f"--bootstrap-server {settings.kafka.bootstrap_servers} --delete --topic "
        f"'{'|'.join(wrong)}'; the next start makes them anew"
    )
    numbers = set(counts.values())
    # Of one topic alone, or with the one partition that a broker's own creation gives, it would
    # be the wrong advice.
    if len(counts) > 1 and len(numbers) == 1 and numbers != {1}:
        (number,) = numbers
        advice += f". If the setting was changed, and not the topics: set it back to {number}"
    return Misshapen(advice)


async def require_shape(settings: StreamSettings, clients: Clients = AIOKAFKA) -> None:
    """Whether each of the placed topics that exist has the partitions that the settings say.

    One of another shape that holds no record is nobody's (a broker that creates topics by itself
    made it): it is deleted and made anew, unless another one does hold records.

    Two workers may do so at once. The second looks again just before it deletes, and what the
    first made has the right shape. A worker that is frozen for a second between these two requests
    would delete a topic that is in use; nothing in Kafka's client (it sees no topic ids) prevents
    that.

    Raises:
        Misshapen: One has another number, and holds records or can't be deleted.
        Denied, Unavailable: The broker did not let us look, or not in time.
    """
    names = placed_topics(settings)
    async with kafka_admin(settings.kafka, ADMIN_SECONDS, clients) as admin:
        while True:
            counts = await _shapes(admin, names)
            fault = misshapen(settings, counts)
            if fault is None:
                return
            wrong = {
                name: count
                for name, count in counts.items()
                if count != settings.checkpoint_partitions
            }
            if await _holds_records(settings.kafka, wrong, clients):
                raise fault
            if await _shapes(admin, names) != counts:
                continue
            await _delete(admin, wrong, fault)
            for _ in range(GONE_POLLS_MAX):
                if not wrong.keys() & set(await admin.list_topics()):
                    break
                await asyncio.sleep(POLL_SECONDS)
            # At once: a broker that creates topics by itself would do so at the next request.
            topics = [new_topic(settings, name) for name in wrong]
            await create_topics(settings.kafka, admin, topics)
            await asyncio.sleep(POLL_SECONDS)


async def _delete(admin: AIOKafkaAdminClient, wrong: Mapping[str, int], fault: Misshapen) -> None:
    answer = await admin.delete_topics(list(wrong))
    for name, code in answer.topic_error_codes:
        error = kafka_errors.for_code(code)
        if error is kafka_errors.NoError:
            logger.warning("topics.made_anew", topic=name, partitions=wrong[name])
        elif error is not kafka_errors.UnknownTopicOrPartitionError:
            raise Misshapen(
                f"{fault}. They hold no record, but Kafka refused to delete them: "
                f"{error_of_code(code, name)}"
            )


async def _holds_records(kafka: KafkaSettings, counts: Mapping[str, int], clients: Clients) -> bool:
    places = partitions_of(counts)
    async with consumer_of(kafka, "read_uncommitted", clients) as consumer:
        consumer.assign(places)
        begins = await consumer.beginning_offsets(places)
        ends = await consumer.end_offsets(places)
    return any(begins[place] < ends[place] for place in places)


async def differences(
    settings: StreamSettings, names: Iterable[str], clients: Clients = AIOKAFKA
) -> list[str]:
    """Where the topics that exist are not as they should be: topic, setting, found and wanted.

    Nothing of it keeps a worker from working; it is what makes records disappear, or a broker's
    loss into a loss of records.

    Raises:
        Denied, Unavailable: The broker did not let us look, or not in time.
    """
    kafka = settings.kafka
    wanted = {name: new_topic(settings, name) for name in names}
    found = []
    async with kafka_admin(kafka, ADMIN_SECONDS, clients) as admin:
        brokers = len((await admin.describe_cluster())["brokers"])
        described = [one for one in await admin.describe_topics() if one["topic"] in wanted]
        configs = await _configs(admin, [one["topic"] for one in described])
    if kafka.replication_factor == 1 and brokers >= PRODUCTION_BROKERS:
        found.append(
            f"VERITY_KAFKA__REPLICATION_FACTOR is 1 on a cluster of {brokers} brokers, wanted 3: "
            "what is published is gone with its broker"
        )
    for one in sorted(described, key=lambda one: str(one["topic"])):
        name = one["topic"]
        replicas = min((len(part["replicas"]) for part in one["partitions"]), default=0)
        if 0 < replicas < kafka.replication_factor:
            found.append(
                f"{name}: replication factor is {replicas}, wanted {kafka.replication_factor}"
            )
        for setting, value in wanted[name].topic_configs.items():
            held = configs.get(name, {}).get(setting)
            if (
                held is not None
                and setting not in OPTIONAL_CONFIGS
                and _differs(setting, held, value)
            ):
                found.append(f"{name}: {setting} is {held}, wanted {value}")
    return found


def _differs(setting: str, found: str, wanted: str) -> bool:
    # More than is wanted is somebody's choice, and safer.
    return int(found) < int(wanted) if setting == "min.insync.replicas" else found != wanted


async def _configs(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """The settings of these topics; without those that we may not see."""
    if not names:
        return {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    found = {}
    for response in await admin.describe_configs(resources):
        for code, message, _, name, entries in response.resources:
            if code:
                logger.info("topics.settings_not_seen", topic=name, error=message or code)
            else:
                found[name] = {entry[0]: entry[1] for entry in entries}
    return found


class Topics:
    """Makes sure that topics exist; one instance serves all relays of a worker.

    A broker that creates topics by itself would give them its own partition counts and no
    compaction, so nothing here relies on that.
    """

    def __init__(self, settings: StreamSettings, clients: Clients = AIOKAFKA) -> None:
        self._settings = settings
        self._clients = clients
        self._placed = frozenset(placed_topics(settings))
        self._known: set[str] = set()
        self._counts: dict[str, int] = {}
        self._lock = asyncio.Lock()

    async def ensure(self, names: Iterable[str]) -> None:
        """Create the topics that are missing, and wait until all are whole.

        Raises:
            Denied, Unavailable, Misconfigured: As `ensure_topics`.
            Misshapen: As `require_shape`, where a placed topic is among them.
        """
        names = set(names)
        if self._known.issuperset(names):
            return
        async with self._lock:
            wanted = {name: new_topic(self._settings, name) for name in names - self._known}
            if self._placed & wanted.keys():
                await require_shape(self._settings, self._clients)
            counts = await ensure_topics(self._settings.kafka, wanted, self._clients)
            for name, count in counts.items():
                self._say_count(name, count, wanted[name].num_partitions)
            self._known.update(wanted)

    async def warn_of_differences(self, names: Iterable[str]) -> None:
        """Say once what makes records of these topics disappear; it stops nothing."""
        try:
            found = await differences(self._settings, names, self._clients)
        except (Denied, Unavailable) as error:
            logger.warning("topics.not_checked", error=str(error))
            return
        if found:
            logger.warning("topics.settings_differ", differences=found)

    async def require_shape(self) -> None:
        """As the function of this name."""
        async with self._lock:
            await require_shape(self._settings, self._clients)

    def _say_count(self, name: str, count: int, wanted: int) -> None:
        """Say what partitions a topic has where nobody expects it."""
        before = self._counts.get(name)
        self._counts[name] = count
        if before is not None and before != count:
            # The order of a key's records holds from here on, and up to here.
            logger.warning("topics.partitions_changed", topic=name, before=before, after=count)
        elif before is None and count != wanted:
            logger.info("topics.other_partitions", topic=name, partitions=count, setting=wanted)

    async def cluster_id(self) -> str | None:
        """The id of the Kafka cluster, which it got when it was formatted.

        Raises:
            Denied, Unavailable: As `ensure`.
        """
        async with kafka_admin(self._settings.kafka, ADMIN_SECONDS, self._clients) as admin:
            found: str | None = (await admin.describe_cluster()).get("cluster_id")
            return found

    def forget(self) -> None:
        """Look again next time: a topic may have been deleted, made anew or grown."""
        self._known.clear()
