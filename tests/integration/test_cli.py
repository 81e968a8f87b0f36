"""The command line, as an operator types it, on real servers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from workers import Bench

from verity_sdk import BaseConnector, Denied, Misconfigured, PermissionSnapshot, RawEvent
from verity_stream import cli
from verity_stream.cli.check import Findings, _check_connector
from verity_stream.cli.connectors import shown_state
from verity_stream.cli.output import ago, plain
from verity_stream.redaction import Secrets
from verity_stream.settings import ConnectorOptions, ConnectorSpec
from verity_stream.status import utc_now

SECRET = "planted-secret-0123456789"
NOW = datetime(2026, 1, 2, tzinfo=UTC)

stack = pytest.mark.stack


def verity(bench: Bench, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command; whatever it is, no secret and no traceback may come out."""
    result = subprocess.run(
        [str(Path(sys.executable).with_name("verity")), *arguments],
        cwd=bench.directory,
        env={**os.environ, **bench.environment, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = result.stdout + result.stderr
    assert SECRET not in said
    assert "Traceback" not in said
    return result


def source(bench: Bench, **settings: Any) -> dict[str, Any]:
    """The table of a connector."""
    return {"type": "test_paged", "platform": bench.name, "poll_every": "500ms", **settings}


# verity check


@stack
def test_check_names_every_fault_of_the_configuration_at_once(bench: Bench) -> None:
    bench.configure(
        one={"type": "no_such_type"},
        two=source(bench, count="many"),
        three=source(bench, platform="env:NOT_SET_ANYWHERE"),
        four={**source(bench), "poll_every": SECRET},
    )
    result = verity(
        bench,
        "check",
        VERITY_KAFKA__EVENT_PARTITIONS="0",
        VERITY_KAFKA__PASSWROD=SECRET,
        VERITY_DATABASE__POOL_SIZE_MAX="none",
    )
    assert result.returncode == 2
    for fault in (
        "VERITY_KAFKA__EVENT_PARTITIONS",
        "VERITY_KAFKA__PASSWROD",
        "VERITY_DATABASE__POOL_SIZE_MAX",
        f"[connectors.{bench.id('one')}] type: no connector type 'no_such_type'",
        f"[connectors.{bench.id('two')}] count",
        f"[connectors.{bench.id('three')}] platform: the environment variable NOT_SET_ANYWHERE",
        f"[connectors.{bench.id('four')}] poll_every",
    ):
        assert fault in result.stderr
    assert all(
        line.startswith("fault  ") or "Nothing was connected to" in line
        for line in result.stderr.splitlines()
    )


@stack
def test_a_faulty_connector_does_not_hide_that_servers_are_unreachable(bench: Bench) -> None:
    bench.configure(one={"type": "no_such_type"})
    unreachable = {
        "VERITY_KAFKA__BOOTSTRAP_SERVERS": "localhost:1",
        "VERITY_DATABASE__DSN": f"postgresql://verity:{SECRET}@localhost:1/verity",
    }
    result = verity(bench, "check", **unreachable)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 3

    bench.configure(one=source(bench))
    result = verity(bench, "check", **unreachable)
    assert result.returncode == 1
    kafka, database = result.stderr.splitlines()
    assert kafka.startswith("fault  Kafka localhost:1: unavailable: ")
    assert database.startswith("fault  Postgres: unavailable: ")

    assert verity(bench, "check", "--offline", **unreachable).returncode == 0


@stack
def test_check_says_fine_and_changes_nothing(bench: Bench) -> None:
    bench.configure(one=source(bench))
    result = verity(bench, "check")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "0001_checkpoints.sql" in result.stdout
    assert verity(bench, "check", VERITY_MIGRATE="check").returncode == 2
    assert verity(bench, "migrate", "--check").returncode == 2


@stack
def test_check_says_who_was_denied(bench: Bench) -> None:
    bench.configure(one=source(bench))
    host = bench.dsn.rpartition("@")[2]
    result = verity(bench, "check", VERITY_DATABASE__DSN=f"postgresql://verity:{SECRET}@{host}")
    assert result.returncode == 1
    assert "fault  Postgres: denied: " in result.stderr


class Checked(BaseConnector):
    """A connector whose constructor and check do what its configuration says."""

    def __init__(self, config: Any, kafka_producer: Any, db_pool: Any) -> None:
        if config == "constructor":
            raise Misconfigured("first\nsecond")
        super().__init__(config, kafka_producer, db_pool)
        self.is_closed = False

    async def check(self) -> None:
        if isinstance(self.config, Exception):
            raise self.config
        if self.config == "hang":
            await asyncio.sleep(60)

    async def close(self) -> None:
        closed.append(self.config)

    async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        return
        yield

    async def snapshot_permissions(self) -> AsyncIterator[PermissionSnapshot]:
        return
        yield


closed: list[Any] = []


@pytest.mark.parametrize(
    ("config", "faults"),
    [
        ("fine", []),
        ("constructor", [(2, "first"), (2, "second")]),
        ("hang", [(1, "unavailable: the source did not answer within 0.05 s")]),
        (Denied("the role\nwas revoked"), [(1, "denied: the role was revoked")]),
        (RuntimeError("oops"), [(1, "a bug, please report it: RuntimeError: oops")]),
    ],
)
async def test_what_a_connectors_own_check_says_is_passed_on(config: Any, faults: Any) -> None:
    closed.clear()
    findings = Findings()
    spec = ConnectorSpec("one", Checked, "test", config, ConnectorOptions(type="test"))
    await _check_connector(spec, None, 0.05, findings)
    assert findings.faults == [(code, f"[connectors.one] {text}") for code, text in faults]
    assert bool(findings.good) is not bool(faults)
    assert closed == ([] if config == "constructor" else [config])


# The other commands


@stack
async def test_the_state_of_a_worker_that_ran(bench: Bench) -> None:
    bench.configure(source=source(bench, count=60), idle={**source(bench), "enabled": False})
    worker = bench.worker()
    await bench.wait_for_state("source", "caught_up")
    worker.terminate()

    result = verity(bench, "connectors", "--json")
    assert result.returncode == 0, result.stderr
    rows = {row["connector_id"]: row for row in json.loads(result.stdout)}
    ran, idle = rows[bench.id("source")], rows[bench.id("idle")]
    assert (ran["state"], ran["event_count"], ran["last_error"]) == ("stopped", 60, None)
    assert ran["is_configured"]
    assert idle["is_enabled"] is False
    table = verity(bench, "connectors").stdout
    assert bench.id("source") in table
    assert "disabled" in table

    wrong = verity(bench, "check", VERITY_CHECKPOINT_PARTITIONS="7")
    assert wrong.returncode == 2
    assert "VERITY_CHECKPOINT_PARTITIONS=7" in wrong.stderr

    async def is_now(change: str, expected: str) -> None:
        await bench.fetchrow(change, bench.id("source"))
        found = verity(bench, "checkpoints", "--json")
        assert found.returncode == 0, found.stderr
        (row,) = [
            row for row in json.loads(found.stdout) if row["connector_id"] == bench.id("source")
        ]
        assert row["relation"] == expected

    where = "WHERE connector_id = $1"
    await is_now(f"SELECT 1 FROM connector_checkpoints {where}", "equal")
    assert "equal" in verity(bench, "checkpoints").stdout
    await is_now(
        f"UPDATE connector_checkpoints SET complete_through = '2001-01-01' {where}", "diverged"
    )
    table = verity(bench, "checkpoints").stdout
    assert "different complete_through" in table
    (told,) = json.loads(verity(bench, "verify", bench.id("source"), "--json").stdout)
    assert told["verdict"] == "diverged"
    await is_now(
        f"UPDATE connector_checkpoints SET version = version - 1 {where}", "page in flight"
    )
    # An operator's edit takes the next version.
    await is_now(
        f"UPDATE connector_checkpoints SET last_ts = '2026-01-01' {where}", "repaired at next start"
    )
    await is_now(f"UPDATE connector_checkpoints SET version = version + 1 {where}", "diverged")
    await is_now(
        f"UPDATE connector_checkpoints SET version = version - 3 {where}", "repaired at next start"
    )
    # The source is one page: as far behind as a page in flight, until a second look.
    await is_now(f"DELETE FROM connector_checkpoints {where}", "page in flight")


@stack
async def test_what_is_asked_of_a_connector_is_kept_with_who_and_why(bench: Bench) -> None:
    bench.configure(source=source(bench))
    one = bench.id("source")
    missing = verity(bench, "pause", one, "--reason", "x")
    assert missing.returncode == 2
    assert "verity migrate" in missing.stderr
    assert len(missing.stderr.splitlines()) == 1

    migrated = verity(bench, "migrate")
    assert migrated.returncode == 0
    assert "applied 0001_checkpoints.sql" in migrated.stdout
    assert verity(bench, "migrate").stdout == "Nothing is missing.\n"
    assert verity(bench, "migrate", "--check").returncode == 0
    assert verity(bench, "connectors").returncode == 0
    assert "never ran" in verity(bench, "connectors").stdout

    assert verity(bench, "pause", one).returncode == 2, "a pause needs a reason"
    assert verity(bench, "pause", one, "--reason", "maintenance").stdout == f"{one}: paused.\n"
    again = verity(bench, "pause", one, "--reason", "again")
    assert (again.returncode, again.stdout) == (0, f"{one}: was paused already.\n")
    assert "pause asked" in verity(bench, "connectors").stdout
    assert verity(bench, "resume", one).stdout == f"{one}: resumed.\n"
    assert verity(bench, "snapshot", one, "--reason", "an auditor came \udcff").returncode == 0

    row = await bench.fetchrow("SELECT * FROM connector_controls WHERE connector_id = $1", one)
    assert row["paused"] is False
    assert row["snapshot_requested_at"] is not None
    audit = await bench.fetchrow(
        """
        SELECT array_agg(action ORDER BY id) AS actions, array_agg(reason ORDER BY id) AS reasons,
               array_agg(DISTINCT who) AS who
        FROM connector_audit WHERE connector_id = $1
        """,
        one,
    )
    assert audit["actions"] == ["pause", "resume", "snapshot"]
    assert audit["reasons"] == ["maintenance", None, "an auditor came \\udcff"]
    (who,) = audit["who"]
    # The person at the machine, and the role that the database knows.
    assert "@" in who
    assert who.endswith(" as verity")


@stack
@pytest.mark.parametrize("command", [("pause", "--reason", "x"), ("resume",), ("snapshot",)])
def test_an_unknown_connector_is_answered_with_the_known_ones(
    bench: Bench, command: tuple[str, ...]
) -> None:
    bench.configure(b=source(bench), a=source(bench))
    result = verity(bench, command[0], "nothing", *command[1:])
    assert result.returncode == 2
    assert result.stderr == (
        f"Error: no connector 'nothing' is configured; known: {bench.id('a')}, {bench.id('b')}\n"
    )


@stack
@pytest.mark.parametrize("command", ["connectors", "checkpoints", "migrate"])
def test_an_unreachable_database_is_one_line(bench: Bench, command: str) -> None:
    bench.configure(source=source(bench))
    dsn = f"postgresql://verity:{SECRET}@localhost:1/verity"
    result = verity(bench, command, VERITY_DATABASE__DSN=dsn)
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1


@stack
def test_checkpoints_say_that_kafka_is_unreachable(bench: Bench) -> None:
    bench.configure(source=source(bench))
    verity(bench, "migrate")
    result = verity(bench, "checkpoints", VERITY_KAFKA__BOOTSTRAP_SERVERS="localhost:1")
    assert result.returncode == 1
    assert result.stderr.startswith("Error: Kafka: ")
    assert len(result.stderr.splitlines()) == 1


def test_a_command_whose_packages_are_missing_does_not_break_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "dev", "no_such_package.at_all:dev")
    overview = CliRunner().invoke(cli.main, ["--help"])
    assert overview.exit_code == 0
    assert "checkpoints" in overview.output
    assert "\n  dev " not in overview.output
    asked = CliRunner().invoke(cli.main, ["dev", "up"])
    assert asked.exit_code == 1
    assert "not installed" in asked.output


def commands_below(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """It, and those of its group."""
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for one in command.list_commands(context):
            below = command.get_command(context, one)
            assert below is not None
            yield from commands_below(below, f"{name} {one}")


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_and_every_option_explains_itself(command: str) -> None:
    found = cli.main.get_command(click.Context(cli.main), command)
    assert found is not None
    for name, one in commands_below(found, command):
        assert re.match(r"[A-Z][^.]{10,}\.", one.help or ""), name
        for option in one.params:
            if isinstance(option, click.Option):
                assert option.help, f"{name} {option.opts[0]}"
        result = CliRunner().invoke(cli.main, [*name.split(), "--help"])
        assert result.exit_code == 0
        assert (one.help or "").split()[0] in result.output


# The decisions behind the tables


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "running"),
        ({"state": None}, "never ran"),
        ({"is_paused": True}, "running (pause asked)"),
        ({"is_paused": True, "state": "paused"}, "paused"),
        ({"is_enabled": False}, "disabled (was running)"),
        ({"is_enabled": False, "state": None}, "disabled"),
        ({"is_configured": False}, "not configured (was running)"),
        ({"reported_at": utc_now() - timedelta(minutes=1)}, "running (worker silent)"),
    ],
)
def test_the_state_that_a_person_sees(changes: dict[str, Any], expected: str) -> None:
    row = {"state": "running", "is_configured": True, "is_enabled": True, "is_paused": False}
    row["reported_at"] = utc_now()
    assert shown_state({**row, **changes}) == expected


def test_secrets_are_hidden_whole_and_in_parts(tmp_path: Path) -> None:
    secret_file = tmp_path / "password"
    secret_file.write_text("from-the-file\n")
    config = tmp_path / "verity.toml"
    config.write_text(f'[connectors.a]\ndeep = {{ list = ["file:{secret_file}"] }}\nplain = "seen"')
    secrets = Secrets()
    secrets.add("postgresql://user:pass%20word-1@host/db")
    secrets.add_references(config)
    said = secrets.hide("pass%20word-1, pass word-1, from-the-file, seen, user")
    assert said == "***, ***, ***, seen, user"


def test_what_sources_say_cannot_command_the_terminal() -> None:
    assert str(plain("a\x1b[31mb\n[bold]c")) == "a?[31mb?[bold]c"


@pytest.mark.parametrize(
    ("passed", "expected"),
    [
        (timedelta(seconds=5), "5 s ago"),
        (timedelta(minutes=5), "5 min ago"),
        (timedelta(hours=5), "5 h ago"),
        (timedelta(days=5), "5 d ago"),
        (timedelta(minutes=-5), "in 5 min"),
    ],
)
def test_times_are_told_roughly(passed: timedelta, expected: str) -> None:
    assert ago(NOW - passed, NOW) == expected
