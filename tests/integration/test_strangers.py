"""What somebody else wrote into our topics: named, counted, and in nobody's way."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from stack_fixtures import StackFactory
from workers import Bench, eventually, killing, make_bench, metric

from verity_stream.kafka.partitions import partition_for
from verity_stream.records import CHECKPOINTS_TOPIC, GAPS_TOPIC, IDS_TOPIC, dead_topic, raw_topic

pytestmark = pytest.mark.stack

PLATFORM = "test_operated"
KEY = b"\xff\x1b[31mred"
COMPACTED = (CHECKPOINTS_TOPIC, IDS_TOPIC)
SCHEMAS = (b"gap/1", b"dead_letter/1", b"raw_event/1", b"checkpoint/1")
VALUES = (
    b"not JSON",
    b"[1]",
    b"null",
    b"{}",
    b'{"part": "x", "fetched_at": 5, "recorded_at": null, "version": "7", "connector_id": []}',
    b"\xff",
    None,
)


def run(bench: Bench, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command; whatever lies in the topics, no traceback comes out."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("verity")), *arguments],
        cwd=bench.directory,
        env={**os.environ, **bench.environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stdout + done.stderr, "what strangers wrote commands no terminal"
    return done


async def rows(bench: Bench, *arguments: str, code: int = 0) -> tuple[list[dict[str, Any]], str]:
    """What a command says with --json, and what it says beside that."""
    done = await asyncio.to_thread(run, bench, *arguments, "--json")
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout), done.stderr


async def strange(bench: Bench, topic: str, partition: int, key: bytes | None) -> None:
    """Records of every wrong kind."""
    headers: list[list[tuple[str, Any]]] = [[], [("schema", None), ("connector_id", None)]]
    # A foreign serializer's idea of ours: the right headers, another value, or none at all.
    headers += [
        [("schema", one), ("dead_id", None), ("connector_id", bench.id("source").encode())]
        for one in SCHEMAS
    ]
    async with AIOKafkaProducer(bootstrap_servers=bench.bootstrap_servers) as producer:
        for value in VALUES:
            for some in headers:
                if value is None and (key is None or topic in COMPACTED):
                    continue  # No client sends the one, and the other deletes a key.
                await producer.send_and_wait(
                    topic, value, key=key, partition=partition, headers=some
                )


async def test_records_of_strangers_are_named_and_hide_nothing(
    make_stack: StackFactory, tmp_path: Path
) -> None:
    address = make_stack().up(environ={})
    with killing(make_bench(tmp_path, address.bootstrap_servers, address.dsn)) as bench:
        table = {"type": PLATFORM, "platform": bench.name, "poll_every": "300ms", "count": 100}
        bench.configure(source={**table, "live": 5, "has_gaps": True})
        bench.environment["VERITY_KAFKA__MAX_RECORD_BYTES"] = "2048"
        worker = bench.worker()
        await bench.wait_for_version("source", 1)
        await bench.wait_for_state("source", "caught_up")
        source = bench.id("source")
        partition = partition_for(source, 24)
        complete = ("complete", "--platform", PLATFORM, "--at", "2026-01-01T01:20:00Z")
        (before,), _ = await rows(bench, *complete)
        letters, _ = await rows(bench, "dead", "list")
        for key in (KEY, None):
            await strange(bench, GAPS_TOPIC, 0, key)
            await strange(bench, dead_topic(PLATFORM), 0, key)
            await strange(bench, raw_topic(PLATFORM), 0, key)
        for topic in COMPACTED:  # To these the broker takes no record without a key.
            await strange(bench, topic, partition, KEY)
        await strange(bench, IDS_TOPIC, partition, source.encode() + b"\0" + b"9" * 5000)

        (gap,), said = await rows(bench, "gaps")
        assert gap["connector_id"] == source
        assert f"{GAPS_TOPIC}: 78 records are not understood" in said
        assert f"{GAPS_TOPIC}[0]@" in said
        assert r"key b'\xff\x1b[31mred'" in said
        found, said = await rows(bench, "dead", "list")
        assert found == letters
        assert f"{dead_topic(PLATFORM)}: 78 records are not understood" in said
        (letter,), _ = await rows(bench, "dead", "show", letters[0]["dead_id"][:12])
        assert letter["is_whole"]
        (body,), said = await rows(bench, "connector", source)
        assert len(body["gaps"]) == 1
        assert "not understood" in said
        (answer,), said = await rows(bench, *complete)
        assert answer == before
        assert f"{CHECKPOINTS_TOPIC}: 36 records are not understood" in said
        views, _ = await rows(bench, "checkpoints")
        told = {one["connector_id"]: one["relation"] for one in views}
        assert told.pop(source) in ("equal", "page in flight")
        assert set(told.values()) == {"diverged"}
        (one,), _ = await rows(bench, "verify", source, "--deep", code=1)
        # Who writes events in a connector's name is found out: they belong to no page.
        assert one["verdict"] == "diverged", one
        assert any("belong to no page" in reason for reason in one["reasons"])
        assert metric(worker, bench, "verity_gaps_total") == 1
        for page in ("/checkpoints", "/readyz"):
            assert (await asyncio.to_thread(worker.get, page))[0] == 200

        # A gap that claims to be one of this connector, and can't be read, may be what is missing.
        async with AIOKafkaProducer(bootstrap_servers=bench.bootstrap_servers) as producer:
            await producer.send_and_wait(
                GAPS_TOPIC, b"?", key=source.encode(), headers=[("schema", b"gap/1")]
            )
        (answer,), _ = await rows(bench, *complete, code=3)
        assert answer["waiting_for"] == [source]

        # And a start finds its way.
        worker.kill()
        again = bench.worker()

        async def runs() -> bool:
            return bool(again.messages("relay.started"))

        await eventually(runs, 90, bench.logs)
        await bench.wait_for_state("source", "caught_up")
