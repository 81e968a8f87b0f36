"""The driver: in which order a worker's runner is called, whoever knows the group's assignment.

The stream application says what happens in its consumer group and ticks; here that becomes calls
of the runner, each within a limit, in an order that the runner can rely on. It knows no Faust, so
a simulator drives the same order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from verity_stream.status import Status
from verity_stream.waiting import contained

logger = logging.getLogger(__name__)

RECONCILE_SECONDS_MAX = 30.0
REVOKE_SECONDS_MAX = 5.0
"""Awaited while the whole group waits: well below the rebalance timeout."""
STOP_RUNNER_SECONDS_MAX = 5.0


class Runner(Protocol):
    """What runs the connectors of a worker; every call comes from the main event loop.

    1. `start` is awaited once, before the worker joins its group; what it raises stops the worker.
    2. After `fence` no new transaction starts, until the next `assign`.
    3. `fence`, then `revoke`, then `assign` is the order of every rebalance, the first included:
       the first two come even when nothing runs yet, and `fence` may come twice.
    4. `reconcile` comes about once a second, never during a rebalance and never twice at a time;
       it may overlap with `fence`.
    5. `stop` is awaited once, before Kafka's clients stop, also when `start` was cancelled
       half-way or failed. Nothing comes after it.
    """

    async def start(self) -> None:
        """Connect to what the connectors need: pool, migrations."""

    async def assign(self, partitions: frozenset[int]) -> None:
        """Own exactly these partitions of the checkpoints topic, from the next `reconcile` on."""

    def fence(self) -> None:
        """Start no new transaction."""

    async def revoke(self) -> None:
        """Stop every relay, within 5 s."""

    async def reconcile(self) -> None:
        """Start, stop and restart relays, so that those that should run do."""

    async def stop(self) -> None:
        """Stop every relay and let go of everything, within 5 s."""

    def is_ready(self) -> bool:
        """Whether the connectors are being served."""

    @property
    def statuses(self) -> Mapping[str, Status]:
        """The connectors that this worker owns, by id: what `/metrics` shows."""


class Driver:
    """Calls one runner as its protocol promises; every method is called from the main loop.

    Args:
        make_runner: Makes the runner, at `start`. Before that, every call does nothing.
    """

    def __init__(self, make_runner: Callable[[], Runner]) -> None:
        self._make_runner = make_runner
        self._runner: Runner | None = None
        # From an assignment to the next rebalance.
        self._is_settled = False
        self._assigning: asyncio.Task[None] | None = None
        self._reconciling: asyncio.Task[bool] | None = None

    @property
    def statuses(self) -> Mapping[str, Status]:
        """The connectors that this worker owns, by id."""
        return {} if self._runner is None else self._runner.statuses

    def is_ready(self) -> bool:
        """Whether the connectors are being served."""
        return self._runner is not None and self._runner.is_ready()

    async def start(self) -> None:
        """Make the runner and start it.

        Raises:
            Exception: What the runner's start raised. `stop` must still be called.
        """
        self._runner = self._make_runner()
        await self._runner.start()

    def rebalance_started(self) -> None:
        """The group begins to share its partitions anew: what was assigned may move."""
        self._is_settled = False
        # An assignment that is still on its way must not arrive any more.
        if self._assigning is not None:
            self._assigning.cancel()
        if self._runner is not None:
            self._runner.fence()

    async def revoked(self) -> None:
        """The partitions are taken away; returns when nothing runs, or after 5 s."""
        await _cancel(self._assigning)
        if self._runner is not None:
            await contained(self._runner.revoke(), "Revoking partitions", REVOKE_SECONDS_MAX)

    def assigned(self, partitions: frozenset[int]) -> None:
        """The rebalance is over, and these partitions of the checkpoints topic are ours."""
        self._is_settled = True
        self._assigning = asyncio.create_task(self._assign(partitions))

    async def tick(self) -> None:
        """About once a second: reconcile, unless that is still being done."""
        is_running = self._reconciling is not None and not self._reconciling.done()
        if self._runner is None or not self._is_settled or is_running:
            return
        self._reconciling = asyncio.create_task(
            contained(self._runner.reconcile(), "reconcile", RECONCILE_SECONDS_MAX)
        )
        await asyncio.wait({self._reconciling})

    async def stop(self) -> None:
        """Stop the runner, within 5 s; nothing is called after it."""
        self._is_settled = False
        for task in (self._assigning, self._reconciling):
            await _cancel(task)
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.fence()
            await contained(runner.stop(), "Stopping the connectors", STOP_RUNNER_SECONDS_MAX)

    async def _assign(self, partitions: frozenset[int]) -> None:
        if self._runner is None:
            return
        logger.info("Assigned %d partitions: %s", len(partitions), sorted(partitions))
        await contained(self._runner.assign(partitions), "Assigning partitions", REVOKE_SECONDS_MAX)
        # Now and not at the next tick: nobody runs these connectors.
        await self.tick()


async def _cancel(task: asyncio.Task[Any] | None) -> None:
    if task is not None and not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=1.0)
