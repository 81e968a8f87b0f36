"""What an operator sees and does, on the real stack."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from stack_fixtures import StackFactory
from verity_operator_connectors import BROKEN
from workers import Bench, Worker, eventually, killing, make_bench

from verity_common.kafka import KafkaSettings
from verity_stream.dev.stack.server import free_port
from verity_stream.kafka.clients import kafka_admin
from verity_stream.kafka.committed import CommittedReader
from verity_stream.settings import load_connectors, load_settings

pytestmark = pytest.mark.stack


def operated(bench: Bench, **settings: Any) -> dict[str, Any]:
    """The table of a connector."""
    return {"type": "test_operated", "platform": bench.name, "poll_every": "300ms", **settings}


async def verity(bench: Bench, *arguments: str, code: int = 0) -> str:
    """Run a command; what it said."""
    return "".join(await _run(bench, *arguments, code=code))


async def verity_json(bench: Bench, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    """The rows of a command with --json; what other tests wrote into the topics it says beside."""
    said, _ = await _run(bench, *arguments, "--json", code=code)
    rows: list[dict[str, Any]] = json.loads(said)
    return rows


async def _run(bench: Bench, *arguments: str, code: int) -> tuple[str, str]:
    result = await asyncio.to_thread(
        subprocess.run,
        [str(Path(sys.executable).with_name("verity")), *arguments],
        cwd=bench.directory,
        env={**os.environ, **bench.environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = result.stdout + result.stderr
    assert result.returncode == code, said
    assert "Traceback" not in said
    return result.stdout, result.stderr


def metrics(worker: Worker) -> str:
    """The page that Prometheus reads."""
    address = f"http://127.0.0.1:{worker.web_port}/metrics"
    with urllib.request.urlopen(address, timeout=5) as page:
        assert page.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text: str = page.read().decode()
    return text


def samples(worker: Worker, connector_id: str) -> Callable[..., float | None]:
    """The values of one connector's metrics, by name and further labels."""
    found = [
        sample
        for family in text_string_to_metric_families(metrics(worker))
        for sample in family.samples
        if sample.labels.get("connector_id") == connector_id
    ]

    def value(name: str, **labels: str) -> float | None:
        values = [s.value for s in found if s.name == name and labels.items() <= s.labels.items()]
        return values[0] if values else None

    return value


async def test_what_happened_is_shown_by_metrics_commands_and_the_topics(bench: Bench) -> None:
    bench.configure(
        source=operated(bench, count=100, live=5, has_gaps=True), other=operated(bench, count=10)
    )
    # A dead letter is longer than a record may be: it comes in parts, and is shown whole.
    worker = bench.worker(VERITY_KAFKA__MAX_RECORD_BYTES="2048")
    await bench.wait_for_version("source", 1)  # Before that there is no topic.
    await bench.wait_for_events(115)
    await bench.wait_for_state("source", "caught_up")
    await bench.wait_for_state("other", "caught_up")
    connector_id = bench.id("source")

    value = samples(worker, connector_id)
    assert value("verity_events_total", platform="test_operated") == 105
    assert value("verity_dead_letters_total") == 2
    assert value("verity_gaps_total") == 1
    pages = value("verity_pages_total")
    assert pages is not None
    assert value("verity_commit_seconds_count") == pages
    # Only what came after the first catch-up is late; it was so by 120 s.
    assert value("verity_event_lateness_seconds_count") == 5
    assert value("verity_event_lateness_seconds_bucket", le="60.0") == 0
    assert value("verity_event_lateness_seconds_bucket", le="300.0") == 5
    assert value("verity_seen_window_ids") != 0
    assert value("verity_lookback_seconds") == 3600
    age = value("verity_last_success_age_seconds")
    assert age is not None
    assert 0 <= age < 30
    assert value("verity_complete_through_age_seconds") is not None
    assert value("verity_fenced_total") == 0

    async def mirrored() -> bool:
        return samples(worker, connector_id)("verity_mirror_behind_versions") == 0

    await eventually(mirrored, 60, bench.logs)

    async def reported() -> bool:
        row = await bench.fetchrow(
            "SELECT event_count FROM connector_status WHERE connector_id = $1", connector_id
        )
        return bool(row["event_count"] == 105)

    await eventually(reported, 60, bench.logs)
    (body,) = await verity_json(bench, "connector", connector_id)
    assert body["event_count"] == 105
    assert body["checkpoint"]["cursor"] == {"v": 1, "next": 105}
    assert body["lateness_p50_seconds"] == body["lateness_p99_seconds"] == 300

    async def warned() -> bool:
        rows = await verity_json(bench, "connectors")
        return any(row["warning"] == "nothing came since long" for row in rows)

    await eventually(warned, 60, bench.logs)
    assert "nothing came since long" in await verity(bench, "connectors")
    rows = await verity_json(bench, "connectors")
    (row,) = [row for row in rows if row["connector_id"] == body["connector_id"]]
    assert row["lateness_p50_seconds"] == row["lateness_p99_seconds"] == 300
    assert row["complete_through"] == body["complete_through"]
    assert "0:05:00 / 0:05:00" in await verity(bench, "connectors")
    assert [gap["scope"] for gap in body["gaps"]] == ["signIns"]
    assert "past retention" in await verity(bench, "connector", connector_id)
    assert "nobody" in await verity(bench, "connector", "nobody", code=2)

    (gap,) = await verity_json(
        bench, "gaps", "--platform", "test_operated", "--connector", connector_id
    )
    assert (gap["connector_id"], gap["reason"]) == (connector_id, "past retention")
    since = ("--since", "2100-01-01T00:00:00Z")
    assert await verity_json(bench, "gaps", "--platform", "test_operated", *since) == []

    letters = await verity_json(bench, "dead", "list", "--connector", connector_id)
    assert {(row["reference"], row["is_whole"]) for row in letters} == {
        ("audit.log:7", True),
        ("audit.log:8", True),
    }
    digest = hashlib.sha256(BROKEN).hexdigest()
    assert await verity_json(bench, "dead", "list", *since) == []
    (letter,) = await verity_json(bench, "dead", "show", digest[:12], "--platform", "test_operated")
    assert letter["reason"] == "it is not UTF-8"
    raw = await asyncio.to_thread(
        subprocess.run,
        [str(Path(sys.executable).with_name("verity")), "dead", "show", digest, "--raw"],
        env={**os.environ, **bench.environment},
        capture_output=True,
        timeout=120,
    )
    assert raw.stdout == BROKEN
    assert "no dead letter begins so" in await verity(bench, "dead", "show", "none", code=2)

    complete = ("complete", "--platform", "test_operated", "--connector", connector_id, "--at")
    (answer,) = await verity_json(bench, *complete, "2026-01-01T01:20:00Z")
    assert answer["completeness"] == "complete"
    (answer,) = await verity_json(bench, *complete, "2026-01-01T00:10:00Z", code=4)
    assert [gap["scope"] for gap in answer["gaps"]] == ["signIns"]
    assert "is not a time" in await verity(bench, *complete, "2026-02-01", code=2)
    assert "not yet" in await verity(bench, *complete, "2026-02-01T00:00:00Z", code=3)
    (answer,) = await verity_json(
        bench, "complete", "--platform", "test_operated", "--at", "2026-01-01T01:20:00Z", code=3
    )
    assert bench.id("other") in answer["waiting_for"]
    assert "collected from 2026-01-01T00:00:00" in await verity(
        bench, *complete, "2025-12-31T00:00:00Z", code=5
    )
    # Configured and never published, with a secret that is not here: it is waited for.
    bench.configure(
        source=operated(bench),
        other=operated(bench),
        never=operated(bench, token="env:VERITY_TEST_NOWHERE"),
    )
    await verity(bench, *complete, "2026-01-01T01:20:00Z")
    others = ("complete", "--platform", "test_operated", "--at", "2026-01-01T01:20:00Z")
    (answer,) = await verity_json(bench, *others, code=3)
    assert bench.id("never") in answer["waiting_for"]


async def test_a_rewind_needs_a_pause_replays_and_leaves_a_trace(bench: Bench) -> None:
    bench.configure(source=operated(bench, count=100))
    # The source's own pages, so that there are checkpoints between to go back to.
    bench.worker(VERITY_PAGE_EVENTS="20")
    await bench.wait_for_state("source", "caught_up")
    connector_id = bench.id("source")
    rewind = ("rewind", connector_id, "--reason", "the index was lost", "--yes")
    to = ("--to", "2026-01-01T01:00:00Z")
    assert "is not paused" in await verity(bench, *rewind, *to, code=2)
    await verity(bench, "pause", connector_id, "--reason", "to rewind it")
    await bench.wait_for_state("source", "paused")
    assert "never be fetched" in await verity(
        bench, *rewind, "--to", "2027-01-01T00:00:00Z", code=2
    )
    assert "--cursor" in await verity(bench, *rewind, "--cursor", "[1]", code=2)

    stored = await bench.stored_checkpoint("source")
    assert stored is not None
    (body,) = await verity_json(bench, *rewind, *to)
    assert body["after"]["version"] == stored["version"] + 1
    await verity(bench, "resume", connector_id)
    await bench.wait_for_events(140)
    await bench.wait_for_state("source", "caught_up")
    assert len(await bench.event_ids()) == 140, "from 01:00 on once more"

    await verity(bench, "pause", connector_id, "--reason", "once more")
    await bench.wait_for_state("source", "paused")
    # Ahead, never there, or there only before the first rewind: nobody can tell what they skip.
    for unknown in (120, 90, 40):
        cursor = ("--cursor", json.dumps({"v": 1, "next": unknown}))
        for refused in (cursor, (*cursor, *to)):
            assert "may lie ahead" in await verity(bench, *rewind, *refused, code=2)
    (body,) = await verity_json(bench, *rewind, "--cursor", '{"v": 1, "next": 80}')
    assert body["after"]["last_ts"] == "2026-01-01T01:19:00.000000Z"
    await verity(bench, "resume", connector_id)
    await bench.wait_for_events(160)
    await bench.wait_for_state("source", "caught_up")
    assert len(await bench.event_ids()) == 160

    (body,) = await verity_json(bench, "connector", connector_id)
    actions = [(row["action"], row["reason"]) for row in body["audit"]]
    assert actions == [
        ("pause", "to rewind it"),
        ("rewind", "the index was lost"),
        ("resume", None),
        ("pause", "once more"),
        ("rewind", "the index was lost"),
        ("resume", None),
    ]
    trace = body["audit"][1]
    assert trace["before"]["cursor"] == {"v": 1, "next": 100}
    assert trace["after"]["last_ts"] == "2026-01-01T01:00:00.000000Z"
    assert " as verity" in trace["who"]
    (found,) = await verity_json(bench, "verify", connector_id, "--deep")
    assert found["verdict"] == "equal"
    assert found["deep"]["replayed_count"] == 60


@pytest.mark.alone
async def test_a_resume_does_not_wait_for_what_the_pause_interrupted(bench: Bench) -> None:
    """Blocked, paused while somebody renews the grant, resumed: by itself it waits 5 minutes."""
    granted = bench.directory / "granted"
    bench.configure(source=operated(bench, count=10, denied_until=str(granted)))
    bench.worker()
    await bench.wait_for_state("source", "blocked")
    await verity(bench, "pause", bench.id("source"), "--reason", "the grant is renewed")
    await bench.wait_for_state("source", "paused")
    granted.touch()
    await verity(bench, "resume", bench.id("source"))
    asked_at = time.monotonic()
    await bench.wait_for_state("source", "caught_up")
    assert time.monotonic() - asked_at < 6


@pytest.mark.alone
async def test_a_restart_does_not_wait_for_the_next_probe(bench: Bench) -> None:
    granted = bench.directory / "granted"
    bench.configure(
        blocked=operated(bench, count=10, denied_until=str(granted)),
        other=operated(bench, count=10),
    )
    worker = bench.worker()
    await bench.wait_for_state("blocked", "blocked")
    await bench.wait_for_state("other", "caught_up")
    assert samples(worker, bench.id("blocked"))("verity_connector_state", state="blocked") == 1
    epoch = (await bench.stored_checkpoint("other") or {})["epoch"]
    (body,) = await verity_json(bench, "connector", bench.id("blocked"))
    assert "was revoked" in body["errors"][-1]["error"]
    granted.touch()
    for name in ("blocked", "other"):
        await verity(bench, "restart", bench.id(name), "--reason", "the grant is back")
    asked_at = time.monotonic()

    async def restarted() -> bool:
        row = await bench.stored_checkpoint("other")
        return row is not None and row["epoch"] == epoch + 1

    await bench.wait_for_state("blocked", "caught_up")
    await eventually(restarted, 60, bench.logs)
    assert time.monotonic() - asked_at < 6
    (body,) = await verity_json(bench, "connector", bench.id("blocked"))
    assert [(row["action"], row["reason"]) for row in body["audit"]] == [
        ("restart", "the grant is back")
    ]


# Secrets.

SASL = "planted-sasl-password-5e1"
DATABASE = "planted-database-password-7a2"
BY_ENV = "planted-token-by-environment-9c3"
BY_FILE = "planted-token-by-file-1d4"
SECRETS = (SASL, DATABASE, BY_ENV, BY_FILE)


async def test_no_secret_comes_out_anywhere(
    make_stack: StackFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka_port, sasl_port, controller = free_port(), free_port(), free_port()
    login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    stack = make_stack(
        kafka_port=kafka_port,
        kafka_settings={
            "listeners": f"PLAINTEXT://127.0.0.1:{kafka_port},SASL://127.0.0.1:{sasl_port},"
            f"CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://localhost:{kafka_port},"
            f"SASL://localhost:{sasl_port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,"
            "CONTROLLER:PLAINTEXT",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.name.sasl.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl.plain.sasl.jaas.config": f'{login} user_verity="{SASL}";',
        },
    )
    address = await asyncio.to_thread(stack.up, environ={})
    connection = await asyncpg.connect(address.dsn)
    try:
        await connection.execute(f"CREATE ROLE operator LOGIN SUPERUSER PASSWORD '{DATABASE}'")
    finally:
        await connection.close()
    server = address.dsn.rpartition("@")[2]
    with killing(make_bench(tmp_path, address.bootstrap_servers, address.dsn)) as bench:
        token_file = tmp_path / "token"
        token_file.write_text(BY_FILE + "\n")
        bench.configure(
            good=operated(bench, count=50, live=3, has_gaps=True, token="env:PLANTED_TOKEN"),
            denied=operated(bench, denied_until="/nowhere/at/all", token=f"file:{token_file}"),
            bug=operated(bench, bug=True, token="env:PLANTED_TOKEN"),
            wrong={"type": "postgres", "dsn": "env:PLANTED_DSN", "poll_every": "1s"},
        )
        bench.environment.update(
            {
                "VERITY_KAFKA__BOOTSTRAP_SERVERS": f"localhost:{sasl_port}",
                "VERITY_KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
                "VERITY_KAFKA__SASL_USERNAME": "verity",
                "VERITY_KAFKA__SASL_PASSWORD": SASL,
                "VERITY_DATABASE__DSN": f"postgresql://operator:{DATABASE}@{server}",
                "VERITY_LOG_LEVEL": "debug",
                "PLANTED_TOKEN": BY_ENV,
                "PLANTED_DSN": f"postgresql://nobody:{BY_FILE}@{server}",
            }
        )
        worker = bench.worker()
        said: dict[str, str] = {}
        await bench.wait_for_version("good", 1)
        await bench.wait_for_events(53)
        for name, state in (("denied", "blocked"), ("bug", "backing_off"), ("good", "caught_up")):
            await bench.wait_for_state(name, state)

        async def tried() -> bool:
            return await bench.state("wrong") in ("blocked", "backing_off")

        await eventually(tried, 90, bench.logs)
        for path in ("/healthz", "/readyz", "/checkpoints"):
            status, body = worker.get(path)
            assert status == 200
            said[path] = json.dumps(body)
        said["/metrics"] = metrics(worker)
        good = bench.id("good")
        await verity(bench, "pause", good, "--reason", "a test")
        await bench.wait_for_state("good", "paused")
        for arguments in (
            ("connectors", "--json"),
            ("connector", bench.id("denied"), "--json"),
            ("connector", bench.id("bug")),
            ("checkpoints", "--json"),
            ("verify", "--deep", "--json"),
            ("gaps", "--json"),
            ("dead", "list", "--json"),
            ("rewind", good, "--to", "2026-01-01T00:01:00Z", "--reason", "a test", "--yes"),
            ("restart", good),
            ("complete", "--platform", "test_operated", "--at", "2026-01-01T00:40:00Z", "--from",
             "2026-01-01T00:20:00Z", "--connector", good),
        ):  # fmt: skip
            said[" ".join(arguments)] = await verity(bench, *arguments)
        (bug,) = json.loads(said_by := await verity(bench, "connector", bench.id("bug"), "--json"))
        assert "?token=***" in bug["errors"][-1]["error"], "the error is there, without the token"
        said["connector bug --json"] = said_by
        # A wrong password and a wrong address are errors of their own.
        wrong = {**bench.environment, "VERITY_KAFKA__SASL_USERNAME": "somebody"}
        for environment in (
            wrong,
            {**wrong, "VERITY_DATABASE__DSN": f"postgres:/{DATABASE}@x:y:z"},
        ):
            result = await asyncio.to_thread(
                subprocess.run,
                [str(Path(sys.executable).with_name("verity")), "check", "--timeout", "5"],
                cwd=bench.directory,
                env={**os.environ, **environment},
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert result.returncode != 0
            said[f"check {len(said)}"] = result.stdout + result.stderr
        refused = bench.worker(
            VERITY_KAFKA__SASL_USERNAME="somebody", VERITY_BROKER_WAIT_SECONDS="1"
        )
        assert refused.process is not None
        assert await asyncio.to_thread(refused.process.wait, 90) != 0
        worker.terminate()
        said["log"], said["log of the refused"] = worker.log, refused.log
        assert "connector.bug" in worker.log

        for name, value in bench.environment.items():
            monkeypatch.setenv(name, value)
        settings = load_settings()
        specs = load_connectors(settings.config)
        said["repr of the settings"] = (
            f"{settings!r} {settings} {settings.kafka} {settings.database}"
        )
        (spec,) = [spec for spec in specs if spec.connector_id == bench.id("wrong")]
        said["repr of a connector's settings"] = f"{spec!r} {spec.config}"

        said["topics"] = await everything(address.bootstrap_servers)
        connection = await asyncpg.connect(address.dsn)
        try:
            for table in ("status", "audit", "errors", "controls", "checkpoints", "snapshots"):
                rows = await connection.fetch(f"SELECT t::text FROM connector_{table} t")
                said[f"table {table}"] = str(rows)
        finally:
            await connection.close()
    assert said["table errors"] != "[]", "there is something to look at"
    assert len(said["topics"]) > 10_000
    leaks = [(place, text) for place, text in said.items() if any(one in text for one in SECRETS)]
    shown = [(place, text[max(0, text.find("planted-") - 300) :][:500]) for place, text in leaks]
    assert leaks == [], shown


async def everything(bootstrap_servers: str) -> str:
    """Keys, values and headers of all topics, those of Kafka itself left out."""
    kafka = KafkaSettings(bootstrap_servers=bootstrap_servers)
    async with kafka_admin(kafka, 10) as admin:
        topics = [name for name in await admin.list_topics() if not name.startswith("__")]
    reader = CommittedReader(kafka)
    records = [record async for record in reader.stream(*topics)]
    return "\n".join(f"{r.key!r} {r.value!r} {r.headers!r}" for r in records)
