"""The app that runs connectors: a runner that follows the assignment, watched, with its pages.

Faust does here what it is good for: a consumer group gives each worker its partitions, an agent
mirrors the checkpoints into a table, timers tick, a small web server answers. What is published,
and where a connector stands, is the relay's business, behind the `Runner`.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from faust.types import TP

from verity_sdk.errors import Malformed
from verity_stream.faust_base.app import VerityApp
from verity_stream.faust_base.fixes import add_timer, partitions_of
from verity_stream.faust_base.group import has_topic, is_group_member, is_in_group
from verity_stream.faust_base.options import faust_options, servers
from verity_stream.kafka.partitions import partition_for
from verity_stream.kafka.topics import CHECKPOINTS_TABLE, Topics, changelog_topic
from verity_stream.records import CHECKPOINTS_TOPIC, decode_checkpoint_body
from verity_stream.settings import StreamSettings
from verity_stream.waiting import retry_until_available
from verity_stream.worker import metrics
from verity_stream.worker.assignor import EvenAssignor
from verity_stream.worker.driver import RECONCILE_SECONDS_MAX, Driver, Runner
from verity_stream.worker.mirror import mirror_event
from verity_stream.worker.watchdog import StandstillLimits, Watchdog

RECONCILE_SECONDS = 1.0
BROKER_REACH_SECONDS = 2.0
# A broker ends a transaction up to this long after its time-out; some more, to consume it.
TRANSACTION_END_SECONDS = 15.0


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
            StandstillLimits(
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


def is_broker_reachable(settings: StreamSettings) -> bool:
    """Whether somebody listens at one of the brokers' addresses; from any thread."""
    for server in servers(settings):
        host, _, port = server.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), BROKER_REACH_SECONDS).close()
        except (OSError, ValueError):
            continue
        return True
    return False
