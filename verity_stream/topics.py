"""The topics: created with the right settings, and checked where they exist already."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

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

CHECKPOINTS_CONFIG = {
    "cleanup.policy": "compact",
    # Small segments that are compacted early: a start reads the partition from its beginning.
    "segment.bytes": str(16 * 1024 * 1024),
    "segment.ms": str(60 * 60 * 1000),
    "min.cleanable.dirty.ratio": "0.1",
}


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
        """Create the topics that are missing.

        Raises:
            Denied: The principal may not create topics; create them by hand.
            Misconfigured: The checkpoints topic has another number of partitions than
                VERITY_CHECKPOINT_PARTITIONS, or the replication factor can't be met.
            Unavailable: The broker did not answer.
        """
        names = set(names)
        if self._known.issuperset(names):
            return
        async with self._lock:
            missing = sorted(names - self._known)
            try:
                await asyncio.wait_for(self._create(missing), ADMIN_SECONDS)
            except TimeoutError:
                raise Unavailable("Kafka did not answer while topics were created") from None
            except kafka_errors.KafkaError as error:
                raise as_verity_error(error) from error
            self._known.update(missing)

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

    async def _create(self, names: list[str]) -> None:
        kafka = self._settings.kafka
        admin = AIOKafkaAdminClient(**kafka.client_options())
        await admin.start()
        try:
            present = set(await admin.list_topics())
            for name in names:
                if name not in present:
                    await self._create_one(admin, name, kafka)
            if CHECKPOINTS_TOPIC in names:
                await self._check_partitions(admin)
        finally:
            await admin.close()

    async def _create_one(
        self, admin: AIOKafkaAdminClient, name: str, kafka: KafkaSettings
    ) -> None:
        is_checkpoints = name == CHECKPOINTS_TOPIC
        topic = NewTopic(
            name,
            self._settings.checkpoint_partitions if is_checkpoints else kafka.event_partitions,
            kafka.replication_factor,
            topic_configs=CHECKPOINTS_CONFIG if is_checkpoints else {},
        )
        response = await admin.create_topics([topic])
        for failed, code, *message in response.topic_errors:
            error = kafka_errors.for_code(code)
            if error is kafka_errors.NoError:
                logger.info("topics.created", topic=failed, partitions=topic.num_partitions)
            elif error is kafka_errors.InvalidReplicationFactorError:
                raise Misconfigured(
                    f"VERITY_KAFKA__REPLICATION_FACTOR={kafka.replication_factor}: "
                    f"{message[0] if message else 'the cluster has fewer brokers'}"
                )
            elif error is not kafka_errors.TopicAlreadyExistsError:
                raise as_verity_error(error(f"creating topic {failed}: {message}"))

    async def _check_partitions(self, admin: AIOKafkaAdminClient) -> None:
        wanted = self._settings.checkpoint_partitions
        for _ in range(50):
            (described,) = await admin.describe_topics([CHECKPOINTS_TOPIC])
            if described["error_code"] == 0:
                break
            # Just created: the broker's metadata follows within milliseconds.
            await asyncio.sleep(0.1)
        found = len(described["partitions"])
        if found != wanted:
            raise Misconfigured(
                f"VERITY_CHECKPOINT_PARTITIONS={wanted}, but {CHECKPOINTS_TOPIC} has {found} "
                "partitions: connectors would be placed differently than before"
            )
