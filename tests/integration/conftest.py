"""Fixtures for whole workers."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from workers import PLUGINS, Bench, killing


@pytest.fixture
def bench(tmp_path: Path, bootstrap_servers: str, database: str) -> Iterator[Bench]:
    """A test's own group, platform and database on the session's stack; workers on demand."""
    name = f"t{secrets.token_hex(4)}"
    environment = {
        "VERITY_KAFKA__BOOTSTRAP_SERVERS": bootstrap_servers,
        "VERITY_DATABASE__DSN": database,
        "VERITY_CONFIG": str(tmp_path / "verity.toml"),
        "VERITY_APP_ID": name,
        "VERITY_SESSION_TIMEOUT_SECONDS": "6",
        "VERITY_LOG_FORMAT": "json",
        "PYTHONPATH": str(PLUGINS),
    }
    with killing(Bench(name, tmp_path, bootstrap_servers, database, environment)) as bench:
        yield bench
