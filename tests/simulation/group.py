"""The workers' consumer group: who owns which partitions of the checkpoints topic.

One owner a partition and generation; whoever is not heard of within its session is left out, and
learns of it late. `Member` is the worker's side, and drives the product's real `Driver`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from random import Random

from simulation.wire import Retry, Wire
from verity_stream.worker.driver import Driver

HEARTBEAT_SECONDS = 1.0
REBALANCE_SECONDS = 30.0
JOIN_SECONDS = 0.1


class Group:
    """The coordinator's side.

    Args:
        partitions: How many there are to share.
        session_seconds: Whoever is silent for longer is out.
        on_shared: Hears who owns each partition in a new generation.

    Attributes:
        on_assigned: Hears which member has just been told what it owns.
    """

    def __init__(
        self,
        wire: Wire,
        rng: Random,
        partitions: int,
        session_seconds: float,
        on_shared: Callable[[Mapping[int, str]], None] = lambda _: None,
    ) -> None:
        self.wire = wire
        self._on_shared = on_shared
        self.on_assigned: Callable[[str], None] = lambda _: None
        self.session_seconds = session_seconds
        self._rng = rng
        self._partitions = partitions
        self._generation = 0
        self._heard_at: dict[str, float] = {}
        self._joined: dict[str, None] = {}
        self._preparing_since: float | None = None
        self._owned: dict[str, frozenset[int]] = {}
        self._look()

    def disturb(self) -> None:
        """Share the partitions anew."""
        if self._preparing_since is None:
            self._preparing_since = self.wire.loop.time()
            self._joined = {}

    def join(self, member: str) -> tuple[int, frozenset[int]]:
        """JoinGroup and SyncGroup: the generation, and what is owned in it."""
        self._heard_at[member] = self.wire.loop.time()
        if self._preparing_since is None:
            if member in self._owned:
                return self._generation, self._owned[member]
            self.disturb()
        self._joined[member] = None
        self._share_if_complete()
        if self._preparing_since is None:
            return self._generation, self._owned[member]
        raise Retry(JOIN_SECONDS)

    def heartbeat(self, member: str, generation: int) -> bool:
        """Whether the member's generation still stands."""
        if member not in self._heard_at:
            return False
        self._heard_at[member] = self.wire.loop.time()
        return self._preparing_since is None and generation == self._generation

    def leave(self, member: str) -> None:
        """LeaveGroup."""
        if self._heard_at.pop(member, None) is not None:
            self.disturb()
            self._joined.pop(member, None)

    def _share_if_complete(self) -> None:
        if not self._heard_at or self._joined.keys() < self._heard_at.keys():
            return
        members = sorted(self._joined)
        owned: dict[str, set[int]] = {member: set() for member in members}
        for partition in range(self._partitions):
            before = [one for one in members if partition in self._owned.get(one, ())]
            is_sticky = before and self._rng.random() < 0.5
            owned[before[0] if is_sticky else self._rng.choice(members)].add(partition)
        self._owned = {member: frozenset(places) for member, places in owned.items()}
        self._generation += 1
        self._preparing_since = None
        self.wire.loop.note("group", self._generation, *members)
        self._on_shared({place: one for one, places in owned.items() for place in places})

    def _look(self) -> None:
        now = self.wire.loop.time()
        for member, heard_at in list(self._heard_at.items()):
            if self.wire.is_away:
                self._heard_at[member] = now  # A coordinator that was away starts its clocks anew.
            elif now - heard_at > self.session_seconds:
                self.leave(member)
        since = self._preparing_since
        if since is not None:
            if now - since > REBALANCE_SECONDS:
                for member in self._heard_at.keys() - self._joined.keys():
                    del self._heard_at[member]
            self._share_if_complete()
        self.wire.later(1.0, self._look)


class Member:
    """A worker's part in the group."""

    def __init__(self, group: Group, name: str, driver: Driver) -> None:
        self._group = group
        self._name = name
        self._driver = driver
        self._heard_at = group.wire.loop.time()
        self._sharing_since: float | None = self._heard_at

    @property
    def unsure_since(self) -> float | None:
        """Since when it can't know what it owns: others may be given it; None where it knows."""
        if self._sharing_since is not None:
            return self._sharing_since
        return None if self.is_in_group else self._heard_at + self._group.session_seconds

    @property
    def is_in_group(self) -> bool:
        """Whether the group has heard of the worker within its session."""
        return self._group.wire.loop.time() - self._heard_at < self._group.session_seconds

    async def run(self) -> None:
        """Join, and again whenever the group shares anew."""
        group, name, wire = self._group, self._name, self._group.wire
        while True:
            self._sharing_since = wire.loop.time()
            self._driver.rebalance_started()
            await self._driver.revoked()
            generation, partitions = await wire.send(
                f"join {name}", lambda: group.join(name), is_patient=True
            )
            self._heard_at = wire.loop.time()
            self._sharing_since = None
            self._driver.assigned(partitions)
            group.on_assigned(name)
            is_standing = True
            while is_standing:
                await asyncio.sleep(HEARTBEAT_SECONDS)
                sent_at = wire.loop.time()
                is_standing = await wire.send(
                    f"heartbeat {name}",
                    lambda generation=generation: group.heartbeat(name, generation),
                    is_patient=True,
                )
                self._heard_at = sent_at

    async def leave(self) -> None:
        """Say goodbye; not for long."""
        group, name = self._group, self._name
        try:
            await group.wire.send(f"leave {name}", lambda: group.leave(name), timeout=2.0)
        except (OSError, TimeoutError):
            pass  # Its session will end.
