"""A runner that notes how it is called."""

from __future__ import annotations

import asyncio
import threading
from typing import Any


class StubRunner:
    """Notes every call; may be slow or fail."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.slow: dict[str, float] = {}
        self.statuses: dict[str, Any] = {}

    async def _called(self, name: str, *details: Any) -> None:
        self.calls.append((name, *details) if details else name)
        if name in self.slow:
            await asyncio.sleep(self.slow[name])
            self.calls.append(f"{name} done")

    async def start(self) -> None:
        await self._called("start")

    async def assign(self, partitions: frozenset[int]) -> None:
        await self._called("assign", sorted(partitions))

    def hold(self) -> None:
        self.calls.append(("hold", threading.current_thread() is threading.main_thread()))

    async def revoke(self) -> None:
        await self._called("revoke")

    async def reconcile(self) -> None:
        await self._called("reconcile")

    async def stop(self) -> None:
        await self._called("stop")

    def is_ready(self) -> bool:
        return True
