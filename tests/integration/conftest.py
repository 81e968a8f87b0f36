"""Fixtures for whole workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from workers import Bench, killing, make_bench


@pytest.fixture
def bench(tmp_path: Path, bootstrap_servers: str, database: str) -> Iterator[Bench]:
    """A test's own group, platform and database on the session's stack; workers on demand."""
    with killing(make_bench(tmp_path, bootstrap_servers, database)) as bench:
        yield bench
