"""The rules that worker, `run()` and laws share: one answer, wherever it is asked."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from verity_sdk.connector_base import BaseConnector, RawEvent
from verity_sdk.errors import Malformed, Misconfigured
from verity_sdk.position import is_valid_name
from verity_stream.records import EventEncoder
from verity_stream.settings import load_connectors

AT = datetime(2026, 1, 1, tzinfo=UTC)
VALID = ("a", "acme-1", "Acme_prod.eu", "9", "x" * 128)
INVALID = ("-door", ".door", "_door", "x" * 129, "x" * 150, "a b", "a/b", "tür", "a\n")


class Connector(BaseConnector):
    """One event of a platform."""

    platform = "acme"

    async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        yield RawEvent(self.platform, "e1", AT, "ada", "vault", "OPEN", {"n": 1})

    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        return
        yield


class Kafka:
    """A producer that notes the topics."""

    def __init__(self) -> None:
        self.topics: list[str] = []

    async def send(self, topic: str, value: Any) -> None:
        self.topics.append(topic)


class Pool:
    """No checkpoint yet, and room for one."""

    async def fetchrow(self, *_: Any) -> None: ...

    async def execute(self, *_: Any) -> None: ...


def is_taken_by_the_worker(name: str, directory: Path) -> bool:
    """As a connector's id in verity.toml."""
    config = directory / "verity.toml"
    quoted = name.replace("\n", "\\n")
    config.write_text(f'[connectors."{quoted}"]\ntype = "test_paged"\nplatform = "p"\n', "utf-8")
    try:
        load_connectors(config)
    except Misconfigured as error:
        return "an id is letters" not in str(error)
    return True


@pytest.mark.parametrize("name", [*VALID, *INVALID])
async def test_an_id_that_the_worker_refuses_is_refused_by_run(name: str, tmp_path: Path) -> None:
    kafka = Kafka()
    with suppress(Misconfigured):
        await Connector({"connector_id": name}, kafka, Pool()).run()
    assert bool(kafka.topics) is is_valid_name(name) is (name in VALID)
    assert is_taken_by_the_worker(name, tmp_path) is is_valid_name(name)


@pytest.mark.parametrize("name", [*VALID, *INVALID])
async def test_a_platform_that_the_relay_refuses_is_refused_by_run(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    kafka = Kafka()
    connector = Connector({"connector_id": "acme"}, kafka, Pool())
    connector.platform = name
    with caplog.at_level(logging.ERROR):
        await connector.run()
    encoder = EventEncoder("acme", "principal_ref", 10_000)
    try:
        topic = encoder.encode(RawEvent(name, "e1", AT, "ada", "vault", "OPEN", {}))[2]
    except Malformed:
        assert not is_valid_name(name)
        assert kafka.topics == []
        assert "can't be part of a topic's name" in caplog.text
    else:
        assert is_valid_name(name)
        assert kafka.topics == [topic]


@pytest.mark.parametrize("name", [None, 7, b"acme", ["a"], {}])
def test_what_is_no_text_is_no_name(name: Any) -> None:
    assert not is_valid_name(name)
