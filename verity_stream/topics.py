"""The topics: created with the right settings, and checked where they exist already."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import structlog
from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from verity_common.kafka import KafkaSettings
from verity_sdk.errors import Misconfigured, Unavailable
from verity_stream.publisher import as_verity_error
from verity_stream.records import CHECKPOINTS_TOPIC
from verity_stream.settings import StreamSettings

logger = structlog.get_logger(__name__)

ADMIN_SECONDS = 30.0
POLL_SECONDS = 0.1

CHECKPOINTS_CONFIG = {
    "cleanup.policy": "compact",
    # Small segments that are compacted early: a start reads the partition from its beginning.
    "segment.bytes": str(16 * 1024 * 1024),
    "segment.ms": str(60 * 60 * 1000),
    "min.cleanable.dirty.ratio": "0.1",
}


async def made_whole(kafka: KafkaSettings, wanted: Mapping[str, NewTopic]) -> dict[str, int]:
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
    admin = AIOKafkaAdminClient(**kafka.client_options())
    try:
        async with asyncio.timeout(ADMIN_SECONDS):
            await admin.start()
            missing = sorted(wanted.keys() - set(await admin.list_topics()))
            if missing:
                answer = await admin.create_topics([wanted[name] for name in missing])
                for name, code, *message in answer.topic_errors:
                    _check_created(kafka, name, code, message)
            while True:
                # All of them: asking for one by name would create it, with the broker's own
                # number of partitions, where brokers create topics by themselves.
                described = {topic["topic"]: topic for topic in await admin.describe_topics()}
                counts = {name: _partition_count(described.get(name)) for name in wanted}
                whole = {name: count for name, count in counts.items() if count is not None}
                if len(whole) == len(wanted):
                    return whole
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise Unavailable(
            f"Kafka did not have the topics {', '.join(sorted(wanted))} ready within "
            f"{ADMIN_SECONDS:g} s"
        ) from None
    except kafka_errors.KafkaError as error:
        raise as_verity_error(error) from error
    finally:
        await admin.close()


def _check_created(kafka: KafkaSettings, name: str, code: int, message: Sequence[Any]) -> None:
    error = kafka_errors.for_code(code)
    if error is kafka_errors.NoError:
        logger.info("topics.created", topic=name)
    elif error is kafka_errors.InvalidReplicationFactorError:
        raise Misconfigured(
            f"VERITY_KAFKA__REPLICATION_FACTOR={kafka.replication_factor}: "
            f"{message[0] if message else 'the cluster has fewer brokers'}"
        )
    elif error is not kafka_errors.TopicAlreadyExistsError:
        raise as_verity_error(error(f"creating topic {name}: {message}"))


def _partition_count(described: Mapping[str, Any] | None) -> int | None:
    """The number of partitions; None while one has no leader or nothing is known yet."""
    if described is None or described["error_code"] or not described["partitions"]:
        return None
    if any(part["error_code"] or part["leader"] < 0 for part in described["partitions"]):
        return None
    return len(described["partitions"])


def checkpoints_topic(settings: StreamSettings, name: str = CHECKPOINTS_TOPIC) -> NewTopic:
    """The checkpoints topic, or another of its kind: compacted, as many partitions."""
    return NewTopic(
        name,
        settings.checkpoint_partitions,
        settings.kafka.replication_factor,
        topic_configs=CHECKPOINTS_CONFIG,
    )


def check_partitions(settings: StreamSettings, name: str, found: int) -> None:
    """Whether a topic of the checkpoints' kind has the partitions that the settings say.

    Raises:
        Misconfigured: It has another number: connectors would be placed differently than before.
    """
    if found != settings.checkpoint_partitions:
        raise Misconfigured(
            f"VERITY_CHECKPOINT_PARTITIONS={settings.checkpoint_partitions}, but {name} has "
            f"{found} partitions. The number is fixed once the topic exists: set it to {found}, "
            "or, with all workers stopped, delete the topic"
        )


class Topics:
    """Makes sure that topics exist; one instance serves all relays of a worker.

    A broker that creates topics by itself would give them its own partition counts and no
    compaction, so nothing here relies on that.
    """

    def __init__(self, settings: StreamSettings) -> None:
        self._settings = settings
        self._known: set[str] = set()
        self._lock = asyncio.Lock()

    async def ensure(self, names: Iterable[str]) -> None:
        """Create the topics that are missing, and wait until all are whole.

        Raises:
            Denied, Unavailable: As `made_whole`.
            Misconfigured: The same, or the checkpoints topic has another number of partitions
                than VERITY_CHECKPOINT_PARTITIONS.
        """
        names = set(names)
        if self._known.issuperset(names):
            return
        async with self._lock:
            wanted = {name: self._topic(name) for name in names - self._known}
            counts = await made_whole(self._settings.kafka, wanted)
            if CHECKPOINTS_TOPIC in counts:
                check_partitions(self._settings, CHECKPOINTS_TOPIC, counts[CHECKPOINTS_TOPIC])
            self._known.update(wanted)

    def _topic(self, name: str) -> NewTopic:
        kafka = self._settings.kafka
        if name == CHECKPOINTS_TOPIC:
            return checkpoints_topic(self._settings, name)
        return NewTopic(name, kafka.event_partitions, kafka.replication_factor)

    async def cluster_id(self) -> str | None:
        """The id of the Kafka cluster, which it got when it was formatted.

        Raises:
            Denied, Unavailable: As `ensure`.
        """
        admin = AIOKafkaAdminClient(**self._settings.kafka.client_options())
        try:
            async with asyncio.timeout(ADMIN_SECONDS):
                await admin.start()
                found: str | None = (await admin.describe_cluster()).get("cluster_id")
                return found
        except TimeoutError:
            raise Unavailable("Kafka did not answer which cluster it is") from None
        except kafka_errors.KafkaError as error:
            raise as_verity_error(error) from error
        finally:
            await admin.close()

    def forget(self) -> None:
        """Look again next time: something failed, and a topic may have been deleted."""
        self._known.clear()
