"""`verity verify` on the real stack: honest after a run, and not fooled by what is planted."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from contract.streams import published
from workers import Bench, committed

from verity_common.kafka import KafkaSettings
from verity_stream.kafka.transactions import KafkaPublisher
from verity_stream.records import Offsets, Record, raw_topic

pytestmark = pytest.mark.stack


def verify(bench: Bench, *options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code, and what was found about each of the bench's connectors, by short name."""
    names = [line[12:-1] for line in (bench.directory / "verity.toml").read_text().splitlines()
             if line.startswith("[connectors.")]  # fmt: skip
    result = subprocess.run(
        [str(Path(sys.executable).with_name("verity")), "verify", *names, "--json", *options],
        env={**os.environ, **bench.environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout, result.stderr
    rows = json.loads(result.stdout)
    return result.returncode, {row["connector_id"].partition("-")[2]: row for row in rows}


async def publish(bench: Bench, records: list[Record], body: dict[str, Any] | None = None) -> None:
    """Publish as nobody should: events, and a checkpoint record that has this body."""
    kafka = KafkaSettings(bootstrap_servers=bench.bootstrap_servers)
    publisher = KafkaPublisher(
        kafka, transactional_id=f"planted.{bench.name}", transaction_timeout=timedelta(seconds=20)
    )

    def seal(offsets: Offsets) -> list[Record]:
        assert body is not None
        value = orjson.dumps({**body, "offsets": offsets}, option=orjson.OPT_NON_STR_KEYS)
        return [Record("verity.connector.checkpoints", body["connector_id"].encode(), value, [])]

    await publisher.start()
    try:
        await published(publisher, records, None if body is None else seal)
    finally:
        await publisher.close()


async def test_views_are_equal_after_kill_9_and_plants_are_found(bench: Bench) -> None:
    source = {"type": "test_paged", "platform": bench.name, "poll_every": "300ms", "count": 300,
              "page": 20, "overlap": 5, "page_seconds": 0.02}  # fmt: skip
    # One alone: a transaction that the crash leaves open would be waited for, up to a minute.
    bench.configure(one=source)
    crash = {"VERITY_FAILPOINTS": "before_persist=kill@5"}
    worker = bench.worker(VERITY_PAGE_EVENTS="20", **crash)
    assert worker.process is not None
    await asyncio.to_thread(worker.process.wait, 90)
    code, rows = await asyncio.to_thread(verify, bench, "--settle", "0.2")
    assert code == 0
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    assert verdicts == {"one": "repaired at next start"}, "the page that was not persisted"
    assert rows["one"]["kafka"]["version"] == rows["one"]["postgres"]["version"] + 1
    bench.configure(one=source, two={**source, "late": 0.2}, three=source)

    worker = bench.worker(VERITY_PAGE_EVENTS="20")
    # While pages fly, nothing looks diverged.
    await bench.wait_for_version("one", 6)
    code, rows = await asyncio.to_thread(verify, bench, "--deep", "--settle", "0.2")
    assert code == 0, rows
    for name in ("one", "two", "three"):
        await bench.wait_for_state(name, "caught_up")
    code, rows = await asyncio.to_thread(verify, bench, "--deep", "--settle", "0.5")
    assert (code, {row["verdict"] for row in rows.values()}) == (0, {"equal"}), rows
    for row in rows.values():
        assert row["deep"]["event_count"] == 300
        assert row["deep"]["page_count"] == row["postgres"]["version"]
        assert row["deep"]["from_version"] == 1
        assert row["deep"]["notes"] == []

    # An edit is replayed on purpose, and the proof knows.
    await bench.fetchrow(
        "UPDATE connector_checkpoints SET last_ts = '2026-01-01' WHERE connector_id = $1",
        bench.id("one"),
    )
    await bench.wait_for_events(600, connector="one")
    await bench.wait_for_state("one", "caught_up")
    code, rows = await asyncio.to_thread(verify, bench, "--deep", "--settle", "0.5")
    assert (code, rows["one"]["verdict"]) == (0, "equal"), rows["one"]
    assert rows["one"]["deep"]["replayed_count"] == 300

    worker.terminate()
    # A divergence: one view was changed behind the others' back, and behind the trigger's, for
    # which it would be an edit.
    alter = "ALTER TABLE connector_checkpoints {} TRIGGER verity_checkpoint_edited"
    await bench.fetchrow(alter.format("DISABLE"))
    await bench.fetchrow(
        """UPDATE connector_checkpoints SET cursor = '{"v": 1, "next": 5}'
           WHERE connector_id = $1""",
        bench.id("one"),
    )
    await bench.fetchrow(alter.format("ENABLE"))
    # An orphan: an event of no page.
    topic = raw_topic(bench.name)
    (event, *_) = [
        record
        for record in await committed(bench.bootstrap_servers, topic)
        if ("connector_id", bench.id("two").encode()) in record.headers
    ]
    fresh = [(name, b"orphan" if name == "event_id" else value) for name, value in event.headers]
    await publish(bench, [Record(topic, event.key, event.value, fresh)])
    # A repeated id, in a page that is otherwise in order: the crash before it is persisted.
    (event, *_) = [
        record
        for record in await committed(bench.bootstrap_servers, topic)
        if ("connector_id", bench.id("three").encode()) in record.headers
    ]
    last = (await bench.published_checkpoints("three"))[-1]
    body = {**last, "version": last["version"] + 1, "event_count": 1, "repeat_count": 0}
    await publish(bench, [Record(topic, event.key, event.value, list(event.headers))], body)

    code, rows = await asyncio.to_thread(verify, bench, "--settle", "0.2")
    assert code == 1
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "one": "diverged",
        "two": "equal",
        "three": "repaired at next start",
    }
    assert "different cursor" in rows["one"]["reasons"][0]
    assert rows["one"]["postgres"]["cursor"]["next"] == 5
    assert rows["one"]["kafka"]["cursor"]["next"] == 300
    code, rows = await asyncio.to_thread(verify, bench, "--deep", "--settle", "0.2")
    assert code == 1
    assert {row["verdict"] for row in rows.values()} == {"diverged"}
    assert rows["one"]["deep"]["faults"] == []
    (fault,) = rows["two"]["deep"]["faults"]
    assert "1 records belong to no page" in fault
    (fault,) = rows["three"]["deep"]["faults"]
    assert "1 events repeat the id of another" in fault
