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
RECONCILE_AWAITED_SECONDS = 1.0
"""A tick waits no longer for it: the next one may find that the group does not hear of the worker,
and what a slow reconcile would start then is to be held."""
REVOKE_SECONDS_MAX = 5.0
"""Awaited while the whole group waits: well below the rebalance timeout."""
STOP_RUNNER_SECONDS_MAX = 5.0
REBALANCE_SECONDS_MAX = 40.0
"""A rebalance that takes longer has failed: a group waits 30 s for its members."""


class Runner(Protocol):
    """What runs the connectors of a worker; every call comes from the main event loop.

    1. `start` is awaited once, before the worker joins its group; what it raises stops the worker.
    2. After `hold` nothing is started, until the next `assign`; what runs goes on. It comes at the
       start of every rebalance, the first included, and may come twice.
    3. `assign` stops what is not among its partitions and leaves alone what is. It may come with
       the same partitions again.
    4. `revoke` stops everything, and comes where an `assign` may not come soon enough.
    5. `reconcile` comes about once a second, also while nothing may be started, and never twice at
       a time; it may overlap with the others.
    6. `stop` is awaited once, before Kafka's clients stop, also when `start` was cancelled
       half-way or failed. Nothing comes after it.
    """

    async def start(self) -> None:
        """Connect to what the connectors need: pool, migrations."""

    def hold(self) -> None:
        """Start nothing; what is owned may be about to change."""

    async def assign(self, partitions: frozenset[int]) -> None:
        """Own exactly these partitions of the checkpoints topic; stop others within 5 s.

        What is new is started by the next `reconcile`.
        """

    async def revoke(self) -> None:
        """Own nothing any more: stop every relay, within 5 s."""

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

    A rebalance takes every partition away from everybody and gives most of them back. What runs is
    not stopped for that: whoever gets a connector instead fences it, by epoch and transactional id,
    so both can't publish. Only nothing is started before the new assignment is known: two workers
    that start the same connector again and again would fight.

    Args:
        make_runner: Makes the runner, at `start`. Before that, every call does nothing.
        is_fenced: Whether whoever takes a connector over fences the one before. Otherwise
            everything is stopped at a rebalance, before anybody else can start it.
    """

    def __init__(self, make_runner: Callable[[], Runner], *, is_fenced: bool = True) -> None:
        self._make_runner = make_runner
        self._is_fenced = is_fenced
        self._runner: Runner | None = None
        self._partitions: frozenset[int] | None = None
        self._is_in_group = True
        self._knows_partitions = True  # The runner does.
        self._rebalancing_since: float | None = None
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
        self._partitions = None
        if self._rebalancing_since is None:
            self._rebalancing_since = asyncio.get_running_loop().time()
        # An assignment that is still on its way must not arrive any more.
        if self._assigning is not None:
            self._assigning.cancel()
        if self._runner is not None:
            self._runner.hold()

    async def revoked(self) -> None:
        """The group takes all partitions away and waits; returns within 5 s."""
        if not self._is_fenced:
            await self._revoke()

    def assigned(self, partitions: frozenset[int]) -> None:
        """These partitions of the checkpoints topic are ours, until the next rebalance."""
        self._partitions = partitions
        self._is_in_group = True
        self._rebalancing_since = None
        self._assigning = asyncio.create_task(self._assign(partitions))

    async def tick(self, *, is_in_group: bool = True) -> None:
        """About once a second: reconcile, unless that is still being done.

        Args:
            is_in_group: The group has heard of this worker lately. Otherwise its partitions may be
                another's by now: what runs goes on until that one fences it, and is not started
                again.
        """
        if self._runner is None:
            return
        if self._partitions is not None and is_in_group != self._is_in_group:
            self._is_in_group = is_in_group
            if is_in_group:
                logger.info("The group hears of this worker again")
                self._assigning = asyncio.create_task(self._assign(self._partitions))
                return
            logger.warning("The group has not heard of this worker lately: nothing is started")
            self._runner.hold()
        if self._partitions is not None and is_in_group and not self._knows_partitions:
            self._assigning = asyncio.create_task(self._assign(self._partitions))
            return
        since = self._rebalancing_since
        if since is not None and asyncio.get_running_loop().time() - since > REBALANCE_SECONDS_MAX:
            # Once; whatever comes of the rebalance, an assignment starts everything again.
            self._rebalancing_since = None
            logger.error("No assignment came within %g s: stopping all", REBALANCE_SECONDS_MAX)
            await self._revoke()
        if self._reconciling is None or self._reconciling.done():
            await self._reconcile(RECONCILE_AWAITED_SECONDS)

    async def stop(self) -> None:
        """Stop the runner, within 5 s; nothing is called after it."""
        runner, self._runner = self._runner, None
        for task in (self._assigning, self._reconciling):
            await _cancel(task)
        if runner is not None:
            runner.hold()
            await contained(runner.stop(), "Stopping the connectors", STOP_RUNNER_SECONDS_MAX)

    async def _assign(self, partitions: frozenset[int]) -> None:
        if self._runner is None:
            return
        logger.info("Assigned %d partitions: %s", len(partitions), sorted(partitions))
        self._knows_partitions = True
        # Where that fails, or took too long, the next tick tries again: nobody else has them.
        self._knows_partitions = await contained(
            self._assign_unless_held(partitions), "Assigning partitions", REVOKE_SECONDS_MAX
        )
        # Now and not at the next tick: nobody runs the new ones, and a reconcile that is under way
        # may have passed them by.
        while self._reconciling is not None and not self._reconciling.done():
            await asyncio.wait({self._reconciling})
        await self._reconcile()

    async def _assign_unless_held(self, partitions: frozenset[int]) -> None:
        # Here, for it ends what `hold` began: where the process was frozen meanwhile, another
        # rebalance may have come between, or the group does not hear of this worker any more.
        if self._runner is not None and self._partitions == partitions and self._is_in_group:
            await self._runner.assign(partitions)

    async def _revoke(self) -> None:
        if self._runner is not None:
            await contained(self._runner.revoke(), "Stopping what ran", REVOKE_SECONDS_MAX)

    async def _reconcile(self, awaited_seconds: float | None = None) -> None:
        if self._runner is None:
            return
        self._reconciling = asyncio.create_task(
            contained(self._runner.reconcile(), "reconcile", RECONCILE_SECONDS_MAX)
        )
        await asyncio.wait({self._reconciling}, timeout=awaited_seconds)


async def _cancel(task: asyncio.Task[Any] | None) -> None:
    if task is not None and not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=1.0)
