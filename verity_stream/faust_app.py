"""The Faust application: placement, the checkpoint mirror, and the worker's lifecycle.

Faust does here what it is good for: a consumer group gives each worker its partitions, an agent
mirrors the checkpoints into a table, timers tick, a small web server answers. What is published,
and where a connector stands, is the relay's business, behind the `Runner`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import faust
import faust.assignor
import orjson
from faust.types import TP
from faust.web import Request, Response, View

from verity_sdk.completeness import order_of
from verity_sdk.errors import Malformed, Misconfigured, Unavailable
from verity_stream import metrics
from verity_stream.driver import RECONCILE_SECONDS_MAX, STOP_RUNNER_SECONDS_MAX, Driver, Runner
from verity_stream.faust_fixes import (
    FixedApp,
    QuietWorker,
    SeekFirstTableManager,
    add_timer,
    check_versions,
    coordinator_of,
    partitions_of,
)
from verity_stream.kafka.clients import kafka_admin
from verity_stream.placement import evened, kept, partition_for
from verity_stream.records import CHECKPOINTS_TOPIC, NotUnderstood, decode_checkpoint_body
from verity_stream.settings import StreamSettings
from verity_stream.topics import (
    CHECKPOINTS_TABLE,
    Topics,
    changelog_topic,
)
from verity_stream.waiting import retry_until_available
from verity_stream.watchdog import Limits, Watchdog

logger = logging.getLogger(__name__)

RECONCILE_SECONDS = 1.0
REBALANCE_TIMEOUT_SECONDS = 30.0
BROKER_REQUEST_SECONDS = 5.0
BROKER_REACH_SECONDS = 2.0
# A broker ends a transaction up to this long after its time-out; some more, to consume it.
TRANSACTION_END_SECONDS = 15.0
YEAR_SECONDS = 365 * 24 * 3600.0


def create_worker_app(
    settings: StreamSettings,
    runner_factory: Callable[[], Runner],
    connector_ids: Iterable[str] = (),
) -> WorkerApp:
    """The app behind `faust -A verity_stream worker`.

    Args:
        settings: Verity's settings.
        runner_factory: Makes the runner, on the main loop, once the broker answers.
        connector_ids: Which connectors there are, so that workers get about as many of them.

    Raises:
        Misconfigured: Another version of Faust than the pinned one is installed, or its client
            can't speak the configured security protocol.
    """
    return WorkerApp(
        settings.app_id,
        verity=settings,
        runner_factory=runner_factory,
        connector_ids=connector_ids,
        PartitionAssignor=EvenAssignor,
        **faust_options(settings),
    )


def faust_options(settings: StreamSettings) -> dict[str, Any]:
    """Faust's settings out of ours; what differs from Faust's default says why."""
    session_seconds = settings.session_timeout_seconds
    try:
        client_options = settings.kafka.client_options()
    except ValueError as error:
        raise Misconfigured(str(error)) from error
    return {
        "broker": [f"kafka://{server}" for server in _servers(settings)],
        "broker_client_id": client_options.get("client_id", settings.app_id),
        "broker_credentials": broker_credentials(client_options),
        # Faust reads the environment without a prefix, and the environment wins: a stray
        # BROKER_URL or WEB_PORT would take over. An empty one leaves it nothing to read.
        "env": {},
        "env_prefix": "VERITY_FAUST",
        "broker_session_timeout": session_seconds,
        # A member hears of a rebalance by its next heartbeat, and everybody waits for the last.
        "broker_heartbeat_interval": min(0.5, session_seconds / 3),
        "broker_rebalance_timeout": REBALANCE_TIMEOUT_SECONDS,
        # Above the session and above a join, which lasts as long as the slowest member's revoke.
        "broker_request_timeout": max(session_seconds, REBALANCE_TIMEOUT_SECONDS) + 10.0,
        "broker_commit_interval": settings.commit_interval_seconds,
        # A worker without partitions polls nothing, and would leave the group for good.
        "broker_max_poll_interval": YEAR_SECONDS,
        "producer_acks": -1,
        # 1,200 s by default: a SIGTERM with the broker down would wait for it.
        "producer_request_timeout": 30.0,
        "processing_guarantee": "at_least_once",
        "stream_wait_empty": True,
        "store": "memory://",
        "table_standby_replicas": 0,
        "topic_replication_factor": settings.kafka.replication_factor,
        # A topic that the group's leader did not know of yet gets its owners after this, not
        # after five minutes.
        "consumer_metadata_max_age_ms": 30_000,
        # Faust would create topics while it joins its group, without a look at what is there, and
        # let a caller that is cancelled meanwhile, as a rebalance does, take the others along.
        "topic_allow_declare": False,
        # Nothing here runs on a leader only: no topic to elect one.
        "topic_disable_leader": True,
        # `faust worker` binds 0.0.0.0 and ignores web_enabled=False.
        "web_bind": settings.web_bind,
        "web_port": settings.web_port,
        "worker_redirect_stdouts": False,
        "TableManager": SeekFirstTableManager,
        "Worker": QuietWorker,
    }


def broker_credentials(options: Mapping[str, Any]) -> Any:
    """Faust's credentials for the options that aiokafka's clients take; None for plain text.

    Raises:
        Misconfigured: A mechanism that Faust can't carry.
    """
    protocol = options.get("security_protocol", "PLAINTEXT")
    if protocol == "PLAINTEXT":
        return None
    context = None
    if protocol in ("SSL", "SASL_SSL"):
        context = options.get("ssl_context") or ssl.create_default_context()
    if protocol == "SSL":
        return faust.SSLCredentials(context)
    mechanism = options.get("sasl_mechanism", "PLAIN")
    if mechanism not in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
        raise Misconfigured(f"The worker can't log in to Kafka with the mechanism {mechanism}")
    return faust.SASLCredentials(
        username=options.get("sasl_plain_username"),
        password=options.get("sasl_plain_password"),
        mechanism=mechanism,
        ssl_context=context,
    )


class VerityApp(FixedApp):
    """A Faust app that waits for its broker and says whether it is alive and ready.

    Raises:
        Misconfigured: Another version of Faust than the pinned one is installed.
    """

    def __init__(self, app_id: str, *, verity: StreamSettings, **options: Any) -> None:
        check_versions()
        super().__init__(app_id, **options)
        self.verity = verity
        self._preparing: asyncio.Task[None] | None = None
        self._add_page("/healthz", lambda: (200, {"status": "alive"}))
        self._add_page("/readyz", self._readyz)

    async def on_first_start(self) -> None:
        """Prepare before anything else starts; a stop meanwhile ends it at once."""
        await super().on_first_start()
        self._preparing = asyncio.ensure_future(self.prepare())
        await asyncio.wait({self._preparing})
        if not self._preparing.cancelled():
            self._preparing.result()

    async def prepare(self) -> None:
        """What must be true before the first service starts: the broker answers."""
        await wait_for_broker(self.verity)

    async def on_stop(self) -> None:
        """Give up preparing, then stop."""
        if self._preparing is not None and not self._preparing.done():
            self._preparing.cancel()
            await asyncio.wait({self._preparing}, timeout=STOP_RUNNER_SECONDS_MAX)
        await super().on_stop()

    def reasons_not_ready(self) -> list[str]:
        """Why this worker does not do its work now; empty when it does."""
        if not self.is_settled:
            return ["rebalancing"]
        if not self._assignment:
            return ["no partitions assigned"]
        return []

    def _readyz(self) -> tuple[int, Any]:
        reasons = self.reasons_not_ready()
        status = "not ready" if reasons else "ready"
        return (503 if reasons else 200), {"status": status, "reasons": reasons}

    def _add_page(
        self,
        path: str,
        answer: Callable[[], tuple[int, Any]],
        encode: Callable[[Any], bytes] = orjson.dumps,
        content_type: str = "application/json",
    ) -> None:
        async def page(view: View, request: Request) -> Response:
            status, body = answer()
            return view.bytes(encode(body), content_type=content_type, status=status)

        self.page(path, name=path.strip("/"))(page)


class EvenAssignor(faust.assignor.PartitionAssignor):
    """Faust's assignor; and then partitions are swapped until workers have as many connectors.

    The group's leader decides, by its own configuration. What moves is started anew elsewhere, so
    as little as possible does.
    """

    _owned_before: Mapping[str, frozenset[int]] = {}

    def _perform_assignment(self, cluster: Any, member_metadata: Any) -> Any:
        self._owned_before = {
            member: frozenset(
                self._get_client_metadata(metadata).assignment.actives.get(CHECKPOINTS_TOPIC, ())
            )
            for member, metadata in member_metadata.items()
        }
        return super()._perform_assignment(cluster, member_metadata)

    def _global_table_standby_assignments(self, assignments: Any, *arguments: Any) -> Any:
        # Called between Faust's own assignment and its encoding for the members.
        weights = getattr(self.app, "partition_weights", {})
        owned = {
            client: frozenset(one.actives.get(CHECKPOINTS_TOPIC, ()))
            for client, one in assignments.items()
        }
        before = self._owned_before
        for client, partitions in evened(kept(owned, before), weights, before).items():
            actives = assignments[client].actives
            for topic, before in actives.items():
                # The changelog goes where its topic goes.
                if frozenset(before) == owned[client]:
                    actives[topic] = sorted(partitions)
        return super()._global_table_standby_assignments(assignments, *arguments)


class WorkerApp(VerityApp):
    """The app that runs connectors: the mirror, and a runner that follows the assignment."""

    def __init__(
        self,
        app_id: str,
        *,
        verity: StreamSettings,
        runner_factory: Callable[[], Runner],
        connector_ids: Iterable[str] = (),
        **options: Any,
    ) -> None:
        self.partition_weights = Counter(
            partition_for(one, verity.checkpoint_partitions) for one in connector_ids
        )
        super().__init__(app_id, verity=verity, **options)
        # Without transactions the epoch fences, but only after a page was published twice.
        self.driver = Driver(runner_factory, is_fenced=verity.delivery == "exactly_once")
        timeout_seconds = verity.watchdog_timeout.total_seconds()
        self.watchdog = Watchdog(
            Limits(
                standstill=timeout_seconds,
                mirror=max(
                    timeout_seconds,
                    verity.transaction_timeout.total_seconds() + TRANSACTION_END_SECONDS,
                ),
            ),
            lambda: is_broker_reachable(verity),
        )
        self.on_partitions_revoked.connect(self._revoke)
        add_timer(
            self,
            RECONCILE_SECONDS,
            self._tick,
            name="reconcile",
            # The driver's own limit comes first.
            seconds_max=RECONCILE_SECONDS_MAX + 5.0,
        )
        self._add_page("/checkpoints", lambda: (200, self.owned_checkpoints()))
        self._add_page("/metrics", self._metrics, metrics.render, metrics.CONTENT_TYPE)
        self._declare_mirror()

    @property
    def owned_partitions(self) -> frozenset[int]:
        """The partitions of the checkpoints topic that this worker has; none in a rebalance."""
        if not self.is_settled:
            return frozenset()
        return partitions_of(self._assignment, CHECKPOINTS_TOPIC)

    # Lifecycle.

    async def prepare(self) -> None:
        """The broker answers, the topics stand, the runner has started."""
        await super().prepare()
        # A broker that has just come back may answer one request and not the next.
        # Faust joins its group before the metadata has what it creates: the leader then "ignores a
        # missing topic", and nobody owns its partitions.
        names = [CHECKPOINTS_TOPIC, changelog_topic(self.verity)]
        await retry_until_available(
            lambda: Topics(self.verity).ensure(names), self.verity.broker_wait_seconds
        )
        await self.driver.start()
        self.watchdog.start()

    def on_rebalance_start(self) -> None:
        """Tell the driver, in the main loop: Faust calls this in the consumer's thread.

        Faust hands the revoke to the same loop after this returns, so this comes first.
        """
        super().on_rebalance_start()
        self.loop.call_soon_threadsafe(self.driver.rebalance_started)

    async def _on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Tell the driver at once: the relays need neither the mirror nor its recovery.

        Every member hears of it at this moment, so what leaves one stops as another starts it.
        """
        if not self.should_stop:
            self.driver.assigned(partitions_of(assigned, CHECKPOINTS_TOPIC))
        await super()._on_partitions_assigned(assigned, generation_id)

    async def on_stop(self) -> None:
        """Stop the relays first: they need no Faust, and their brokers and pools still stand."""
        self.watchdog.stop()
        await self.driver.stop()
        await super().on_stop()

    async def _revoke(self, *args: Any, **kwargs: Any) -> None:
        await self.driver.revoked()

    async def _tick(self) -> None:
        self._report_to_watchdog()
        await self.driver.tick(is_in_group=is_in_group(self))

    def _report_to_watchdog(self) -> None:
        statuses = self.driver.statuses
        published = {name: one.version for name, one in statuses.items() if one.version is not None}
        mirrored = {}
        for connector_id in published:
            value = self.checkpoints.get(connector_id.encode())
            try:
                held = decode_checkpoint_body(value, connector_id.encode())
                mirrored[connector_id] = held["version"]
            except Malformed:
                mirrored[connector_id] = 0  # The agent has said so; reconciling must go on.
        self.watchdog.ticked(
            # Where the topic is gone, the group assigns nothing to anybody, for ever.
            is_settled=self.is_settled and has_topic(self, CHECKPOINTS_TOPIC),
            is_member=is_group_member(self),
            published=published,
            mirrored=mirrored,
        )

    def reasons_not_ready(self) -> list[str]:
        """Why this worker does not run its connectors now; empty when it does."""
        reasons = super().reasons_not_ready() + self.watchdog.reasons_not_ready()
        if not reasons and not self.owned_partitions:
            reasons.append("no partitions assigned")
        if not self.driver.is_ready():
            reasons.append("connectors are not running")
        return reasons

    def _metrics(self) -> tuple[int, Any]:
        statuses = self.driver.statuses
        mirrored = {key: value["version"] for key, value in self.owned_checkpoints().items()}
        is_ready = not self.reasons_not_ready()
        return 200, metrics.families(statuses.values(), mirrored, is_ready=is_ready)

    # The mirror.

    def _declare_mirror(self) -> None:
        # Raw bytes on both sides. A serializer would give the table another key than the topic,
        # hence another partition, and would send `null` where a tombstone is meant.
        raw: dict[str, Any] = {
            "key_type": bytes,
            "value_type": bytes,
            "partitions": self.verity.checkpoint_partitions,
        }
        topic = self.topic(
            CHECKPOINTS_TOPIC,
            **raw,
            key_serializer="raw",
            value_serializer="raw",
            internal=True,
            compacting=True,
            allow_empty=True,
        )
        # The changelog record takes the partition of the event that is being mirrored.
        self.checkpoints = self.Table(CHECKPOINTS_TABLE, **raw)

        # One at a time: with more, Faust commits past a message in flight (#606).
        @self.agent(topic, concurrency=1, name="verity.mirror")
        async def mirror(stream: Any) -> None:
            async for event in stream.events():
                mirror_event(self.checkpoints, event)

        self.mirror = mirror

    def owned_checkpoints(self) -> dict[str, Any]:
        """The mirrored checkpoints of the owned partitions, by connector id."""
        owned = self.owned_partitions
        result = {}
        for key, value in self.checkpoints.items():
            try:
                body = decode_checkpoint_body(value, key)
            except Malformed:
                continue  # The changelog is a topic, too; `verity verify` names it.
            connector_id = body["connector_id"]
            partition = partition_for(connector_id, self.verity.checkpoint_partitions)
            # A memory store may still hold keys of partitions that went to another worker.
            if partition in owned:
                result[connector_id] = {"partition": partition, **body}
        return result


def mirror_event(table: Any, event: Any) -> None:
    """Write one checkpoint record to the table when it is newer; nothing escapes.

    Faust acknowledges a message whose processing raised, and restarts the agent: a record that
    is not understood would take others with it. It is logged and left out instead; the relay
    does not depend on the mirror.
    """
    message = event.message
    try:
        key, value = message.key, message.value
        if value is None:
            table.pop(key, None)
        elif should_mirror(table.get(key), value, key):
            table[key] = value
    except Malformed as error:
        logger.error(
            "A checkpoint record is not understood, and not mirrored: %s",
            NotUnderstood.of(message, error),
        )
    except Exception:
        logger.exception(
            "A checkpoint record can't be mirrored: topic %s, partition %d, offset %d",
            message.topic,
            message.partition,
            message.offset,
        )


def should_mirror(current: bytes | None, incoming: bytes, key: bytes) -> bool:
    """Whether a checkpoint record is newer than the one that is held.

    Raises:
        Malformed: It is not a checkpoint record of the key's connector.
    """
    order = order_of(decode_checkpoint_body(incoming, key))
    if current is None:
        return True
    try:
        return order > order_of(decode_checkpoint_body(current, key))
    except Malformed:
        return True  # The changelog is a topic, too: what a stranger wrote there gives way.


def is_group_member(app: faust.App) -> bool:
    """Whether the task that takes part in the consumer group's coordination still runs.

    aiokafka ends it at an error that it does not expect (consumer/group_coordinator.py,
    `_coordination_routine`): heartbeats stop, others get the partitions, and nothing here changes.
    """
    task = getattr(coordinator_of(app), "_coordination_task", None)
    return task is None or not task.done()


def has_topic(app: faust.App, topic: str) -> bool:
    """Whether the cluster has a topic, as the consumer heard last; True where it heard nothing."""
    coordinator = coordinator_of(app)
    topics = set() if coordinator is None else coordinator._cluster.topics()
    return not topics or topic in topics


def is_in_group(app: faust.App) -> bool:
    """Whether the consumer group has heard of this worker within its session.

    Afterwards the group may have given its partitions to others, which it only hears of when it
    reaches the group again.
    """
    heard_at = getattr(coordinator_of(app), "heard_at", None)
    is_heard = heard_at is None or time.monotonic() - heard_at < app.conf.broker_session_timeout
    return is_heard and is_group_member(app)


def is_broker_reachable(settings: StreamSettings) -> bool:
    """Whether somebody listens at one of the brokers' addresses; from any thread."""
    for server in _servers(settings):
        host, _, port = server.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), BROKER_REACH_SECONDS).close()
        except (OSError, ValueError):
            continue
        return True
    return False


async def wait_for_broker(settings: StreamSettings) -> None:
    """Return when a broker answers; Faust itself would give up after two seconds.

    Raises:
        Unavailable: None did within `settings.broker_wait_seconds`.
        Denied, Misconfigured: At once, as `kafka_admin`.
    """

    async def ask() -> None:
        async with kafka_admin(settings.kafka, BROKER_REQUEST_SECONDS):
            pass

    try:
        await retry_until_available(ask, settings.broker_wait_seconds)
    except Unavailable as error:
        raise Unavailable(
            f"No Kafka broker answered at {', '.join(_servers(settings))} within "
            f"{settings.broker_wait_seconds:g} s ({error}). Is it running, and is "
            "VERITY_KAFKA__BOOTSTRAP_SERVERS right?"
        ) from error


def _servers(settings: StreamSettings) -> list[str]:
    return [server.strip() for server in settings.kafka.bootstrap_servers.split(",")]
