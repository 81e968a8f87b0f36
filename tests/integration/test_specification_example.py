"""The full example of the SDK's specification, unchanged but for the address of its API.

The example names Kafka, Postgres, topic and connector id itself, so the test uses the stack on
the default ports and forgets the checkpoint that an earlier run left.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from verity_sdk import format_utc

SPECIFICATION = Path(
    os.environ.get("VERITY_SHARED", Path(__file__).parents[2].parent / "shared")
).joinpath("connector-sdk.txt")
API_ADDRESS = "https://api.acme.example.com"
TOPIC = "verity.events.raw.acme"
CONNECTOR_ID = "acme-prod"

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(not SPECIFICATION.is_file(), reason="the specification is not at hand"),
]


class AuditApi(BaseHTTPRequestHandler):
    """Serves `server.entries` after `since`, oldest first, a page at a time."""

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        if address.path != "/api/v1/audit-logs":
            self.send_error(404)
            return
        if not self.headers.get("Authorization", "").startswith("Bearer "):
            self.send_error(401)
            return
        since = datetime.fromisoformat(query["since"])
        page, size = int(query["page"]), int(query["page_size"])
        entries: list[dict[str, Any]] = [
            entry
            for entry in self.server.entries  # type: ignore[attr-defined]  # set by serving()
            if datetime.fromisoformat(entry["timestamp"]) > since
        ]
        shown = entries[(page - 1) * size : page * size]
        body = json.dumps({"events": shown, "has_next": page * size < len(entries)}).encode()
        self.server.asked.append(query)  # type: ignore[attr-defined]  # set by serving()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@contextmanager
def serving(entries: list[dict[str, Any]]) -> Iterator[Any]:
    """The API on a free port, in a thread."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), AuditApi)
    server.entries, server.asked = entries, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def extract_example(text: str) -> str:
    """The one block of the page that is a whole program."""
    start = text.index('"""Connector for Acme Data Platform."""')
    last_line = re.compile(r"^    asyncio\.run\(main\(\)\)$", re.MULTILINE)
    end = last_line.search(text, start)
    assert end is not None
    return text[start : end.end()] + "\n"


def entry(run: str, number: int, at: datetime) -> dict[str, Any]:
    """An audit log entry, with more in it than the example reads."""
    return {
        "id": f"{run}-{number}",
        "timestamp": at.isoformat(),
        "user_email": f"user{number % 7}@example.com",
        "resource_urn": f"urn:acme:table/{number % 11}",
        "action": "SELECT",
        "client": {"ip": "203.0.113.9", "agent": "é ☃", "big": 2**53},
    }


def record_of(given: dict[str, Any]) -> dict[str, Any]:
    """What a raw event record of this entry is."""
    return {
        "platform": "acme",
        "event_id": given["id"],
        "occurred_at": format_utc(datetime.fromisoformat(given["timestamp"])),
        "principal_ref": given["user_email"],
        "asset_ref": given["resource_urn"],
        "operation": "SELECT",
        "raw_payload": given,
    }


def run_program(path: Path) -> None:
    """Run the example as its reader would, with nothing of ours in the environment."""
    environment = {k: v for k, v in os.environ.items() if not k.upper().startswith("VERITY_")}
    done = subprocess.run(
        [sys.executable, path.name],
        cwd=path.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


class TopicReader:
    """What is new in the topic since the last look."""

    def __init__(self, servers: str) -> None:
        self._servers = servers
        self._seen: dict[TopicPartition, int] = {}
        self._is_new = False

    async def new_values(self) -> list[dict[str, Any]]:
        consumer = AIOKafkaConsumer(bootstrap_servers=self._servers, enable_auto_commit=False)
        await consumer.start()
        try:
            async with asyncio.timeout(30):
                if TOPIC not in await consumer.topics():
                    self._is_new = True  # The example's producer will create it.
                    return []
                while not (numbers := consumer.partitions_for_topic(TOPIC)):
                    await consumer._client.force_metadata_update()  # noqa: SLF001 - aiokafka's
                partitions = [TopicPartition(TOPIC, number) for number in numbers]
                ends = await consumer.end_offsets(partitions)
                consumer.assign(partitions)
                for partition in partitions:
                    unseen = 0 if self._is_new else ends[partition]
                    consumer.seek(partition, self._seen.get(partition, unseen))
                values = []
                for partition in partitions:
                    while await consumer.position(partition) < ends[partition]:
                        batches = await consumer.getmany(timeout_ms=500)
                        values += [json.loads(r.value) for rs in batches.values() for r in rs]
            self._seen = ends
            return values
        finally:
            await consumer.stop()


async def test_the_example_of_the_specification_runs_unchanged(
    default_stack: Any, tmp_path: Path
) -> None:
    example = extract_example(SPECIFICATION.read_text("utf-8"))
    assert example.count(API_ADDRESS) == 1
    run = secrets.token_hex(6)
    began_at = datetime.now(UTC) - timedelta(hours=1)
    # Three events share each time, also across the ends of pages and with the last one.
    entries = [
        entry(run, number, began_at + timedelta(milliseconds=number // 3)) for number in range(250)
    ]
    reader = TopicReader(default_stack.bootstrap_servers)
    assert await reader.new_values() == []
    connection = await asyncpg.connect(default_stack.dsn)
    try:
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS connector_checkpoints "
            "(connector_id text PRIMARY KEY, last_ts timestamptz NOT NULL)"
        )
        forget = "DELETE FROM connector_checkpoints WHERE connector_id = $1"
        await connection.execute(forget, CONNECTOR_ID)
        last_ts = "SELECT last_ts FROM connector_checkpoints WHERE connector_id = $1"
        with serving(entries) as api:
            program = tmp_path / "acme.py"
            address = f"http://127.0.0.1:{api.server_port}"
            program.write_text(example.replace(API_ADDRESS, address), "utf-8")

            await asyncio.to_thread(run_program, program)
            assert [query["page"] for query in api.asked] == ["1", "2", "3"]
            assert api.asked[0]["since"] == "2000-01-01T00:00:00+00:00"
            first = await reader.new_values()
            assert in_order(first) == [record_of(given) for given in entries]
            newest_at = datetime.fromisoformat(entries[-1]["timestamp"])
            assert await connection.fetchval(last_ts, CONNECTOR_ID) == newest_at

            # Of what comes later, one is a minute younger and says so in another zone.
            later_at = (newest_at + timedelta(minutes=1)).astimezone()
            entries += [entry(run, 250, newest_at + timedelta(microseconds=1))]
            entries += [entry(run, 251, later_at)]
            await asyncio.to_thread(run_program, program)
            second = await reader.new_values()
            assert in_order(second) == [record_of(given) for given in entries[250:]]
            assert await connection.fetchval(last_ts, CONNECTOR_ID) == later_at
        await connection.execute(forget, CONNECTOR_ID)
    finally:
        await connection.close()


def in_order(values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Order across partitions is not promised; the number at the end of the id gives it back."""
    return sorted(values, key=lambda value: int(value["event_id"].rpartition("-")[2]))
