"""The specification's names and its full example: they work, and nothing of them is deprecated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

NOTHING_DEPRECATED = (
    "-W",
    "error::DeprecationWarning:verity_sdk",
    # Python takes that for the package's own module alone. A name that moved warns with whoever
    # uses it, and its message begins so.
    "-W",
    "error:verity_:DeprecationWarning",
)

SPECIFICATION = next(
    (
        file
        for folder in Path(__file__).resolve().parents
        if (file := folder / "shared" / "connector-sdk.txt").is_file()
    ),
    None,
)
"""Handed to those who work on the project; not a part of it."""

AUTHORS = """
import asyncio
from datetime import UTC, datetime, timedelta

from verity_common.config import VerityConfig
from verity_common.kafka import KafkaSettings, create_producer
from verity_sdk.connector_base import BaseConnector, PermissionSnapshot, RawEvent

AT = datetime(2026, 1, 1, tzinfo=UTC)


class Vault(BaseConnector):
    PLATFORM = "vault"

    def __init__(self, config, kafka_producer, db_pool):
        super().__init__(config, kafka_producer, db_pool)
        self.doors = config["doors"]

    async def stream_audit_events(self, since):
        for number in range(self.doors):
            at = AT + timedelta(seconds=number)
            yield RawEvent(self.PLATFORM, f"v-{number}", at, "ada", "door", "OPEN", {"n": number})

    async def snapshot_permissions(self):
        yield PermissionSnapshot(self.PLATFORM, "ada", "door", "OPEN", "direct")


class Kafka:
    def __init__(self):
        self.sent = []

    async def send(self, topic, value):
        self.sent.append((topic, value["event_id"]))


class Postgres:
    def __init__(self):
        self.rows = {}

    async def fetchrow(self, _, connector_id):
        return {"last_ts": self.rows[connector_id]} if connector_id in self.rows else None

    async def execute(self, _, connector_id, last_ts):
        self.rows[connector_id] = last_ts


async def main():
    assert isinstance(VerityConfig().kafka, KafkaSettings)
    assert callable(create_producer)
    kafka, postgres = Kafka(), Postgres()
    connector = Vault({"connector_id": "vault-1", "doors": 3}, kafka, postgres)
    assert await connector._load_checkpoint() == datetime(2000, 1, 1, tzinfo=UTC)
    await connector._save_checkpoint(AT)
    await connector.run()
    assert kafka.sent == [("verity.events.raw.vault", f"v-{number}") for number in range(3)]
    assert await connector._load_checkpoint() == AT + timedelta(seconds=2)
    assert [grant.privilege async for grant in connector.snapshot_permissions()] == ["OPEN"]


asyncio.run(main())
"""
"""What an author writes, with every name of the specification."""

SERVERS = """
import asyncpg
import httpx
import verity_common.kafka
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial

sent, saved = [], []

EVENT = {"user_email": "ada@acme.test", "resource_urn": "urn:vault", "action": "OPEN"}
PAGES = [
    {"events": [EVENT | {"id": f"a-{page}", "timestamp": f"2026-01-0{page}T00:00:00+00:00"}],
     "has_next": page < 2}
    for page in (1, 2)
]
GRANTS = {"grants": [{"user_email": "ada@acme.test", "resource_urn": "urn:vault", "level": "read"}]}


def answer(request):
    if request.url.path.endswith("permissions"):
        return httpx.Response(200, json=GRANTS)
    return httpx.Response(200, json=PAGES[int(request.url.params["page"]) - 1])


class Producer:
    async def send(self, topic, value):
        sent.append((topic, value["event_id"]))


class Pool:
    async def fetchrow(self, *_):
        return None

    async def execute(self, _, connector_id, last_ts):
        saved.append((connector_id, last_ts))


@asynccontextmanager
async def producer(settings):
    assert settings.bootstrap_servers == "localhost:9092"
    yield Producer()


async def pool(dsn):
    return Pool()


verity_common.kafka.create_producer = producer
asyncpg.create_pool = pool
httpx.AsyncClient = partial(httpx.AsyncClient, transport=httpx.MockTransport(answer))
"""
"""Before the example: what it talks to."""

PROOF = """

async def proof():
    connector = AcmeConnector(
        {"connector_id": "acme-prod", "acme_api_url": "https://acme.test", "acme_api_key": "k"},
        None,
        None,
    )
    return [grant.privilege async for grant in connector.snapshot_permissions()]


assert sent == [("verity.events.raw.acme", "a-1"), ("verity.events.raw.acme", "a-2")], sent
assert saved[-1] == ("acme-prod", datetime(2026, 1, 2, tzinfo=UTC)), saved
assert asyncio.run(proof()) == ["READ"]
"""
"""After it: what has become of it."""


def done(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The program, run where nothing of the SDK may be deprecated."""
    file = folder / "program.py"
    file.write_text(program, "utf-8")
    return subprocess.run(
        [sys.executable, *NOTHING_DEPRECATED, str(file)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=folder,
        env={"PATH": "", "PYTHONPATH": str(Path(__file__).parents[3])},
    )


def test_what_an_author_writes_works_without_a_deprecation(tmp_path: Path) -> None:
    ran = done(AUTHORS, tmp_path)
    assert ran.returncode == 0, ran.stderr


def test_a_name_that_moved_would_be_found_by_this(tmp_path: Path) -> None:
    ran = done("from verity_sdk.connector_base import asked_since\n", tmp_path)
    assert ran.returncode == 1
    assert "DeprecationWarning: verity_sdk.connector_base.asked_since is" in ran.stderr


@pytest.mark.skipif(SPECIFICATION is None, reason="the specification is not on this machine")
def test_the_specifications_own_example_runs_as_it_is(tmp_path: Path) -> None:
    assert SPECIFICATION is not None
    text = SPECIFICATION.read_text("utf-8")
    begin, end = text.index('"""Connector for '), text.rindex("asyncio.run(main())")
    example = text[begin:end] + "asyncio.run(main())\n"
    # Its imports of the future come first in a file.
    future = "from __future__ import annotations\n"
    assert future in example
    ran = done(future + SERVERS + example.replace(future, "") + PROOF, tmp_path)
    assert ran.returncode == 0, ran.stderr
