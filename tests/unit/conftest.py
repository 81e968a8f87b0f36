"""Fixtures for tests that need no server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from virtual_time import VirtualTime


@pytest.fixture
def virtual_time() -> Iterator[None]:
    """What `asyncio.run` runs waits for nothing; see `virtual_time.py`."""
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(VirtualTime())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(before)
