"""The demo: it holds on real servers, and its proof notices when something does not."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from connectors.postgres.log_lines import LogContext
from verity_stream.dev.demo.proof import Copies, Proof, events_in_log, statement_lines
from verity_stream.dev.demo.show import who_may_do_what
from verity_stream.records import Checkpoint, Seen

CHECKPOINT = Checkpoint("a", 7, 2, datetime(2026, 1, 1, tzinfo=UTC), {"offset": 1})
HELD = Proof(
    source_ids=["1", "2", "3"],
    topic_ids=["3", "1", "2"],
    views=Copies(CHECKPOINT, CHECKPOINT, CHECKPOINT),
    statements_sent=2,
    statements_found=2,
    leak_count=0,
    exit_code=0,
)


@pytest.mark.stack
@pytest.mark.timeout(330)
def test_the_demo_holds_and_leaves_nothing_running(tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    # Whatever these name for other programs, the demo stays on its own servers.
    elsewhere = {
        "VERITY_KAFKA__BOOTSTRAP_SERVERS": "localhost:1",
        "VERITY_DATABASE__DSN": "postgresql://nobody@localhost:1/nothing",
        "VERITY_CONFIG": str(tmp_path / "nothing.toml"),
    }
    result = subprocess.run(
        [sys.executable, "-m", "verity_stream.dev.demo", "--dir", str(directory)],
        cwd=tmp_path,
        env={**os.environ, **elsewhere},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "kill -9 of worker-1 in the middle" in result.stdout
    assert "repeats 0, lost 0, three views equal" in result.stdout
    assert "LOGIN_FAILED" in result.stdout
    assert "Traceback" not in result.stderr
    assert _processes_with(str(directory)) == []


def _processes_with(argument: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue  # It ended meanwhile.
        if argument in command and str(os.getpid()) != folder.name:
            found.append(command.replace("\0", " "))
    return found


def test_a_proof_without_differences_holds() -> None:
    assert HELD.differences == []


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (replace(HELD, topic_ids=["1", "3"]), "1 events are lost: 2"),
        (replace(HELD, topic_ids=["1", "2", "3", "2"]), "1 events are repeated: 2"),
        # The counts are equal, the events are not.
        (replace(HELD, topic_ids=["1", "2", "2"]), "1 events are lost: 3"),
        (replace(HELD, topic_ids=["1", "2", "3", "4"]), "1 events are not from the source: 4"),
        (replace(HELD, source_ids=[], topic_ids=[]), "nothing was shown"),
        (replace(HELD, statements_found=1), "sent 2 statements, the topic tells of 1"),
        (replace(HELD, leak_count=1), "contain a password"),
        (replace(HELD, exit_code=1), "exit code"),
        (replace(HELD, views=Copies(None, None, None)), "views of the checkpoint differ"),
        (replace(HELD, views=Copies(CHECKPOINT, CHECKPOINT, None)), "table none"),
        (
            replace(HELD, views=Copies(CHECKPOINT, CHECKPOINT, replace(CHECKPOINT, version=6))),
            "table version 6",
        ),
        (
            replace(HELD, views=Copies(replace(CHECKPOINT, cursor={}), CHECKPOINT, CHECKPOINT)),
            "PostgreSQL version 7 {}",
        ),
        (
            replace(
                HELD, views=Copies(replace(CHECKPOINT, seen=Seen(1, 1)), CHECKPOINT, CHECKPOINT)
            ),
            "views of the checkpoint differ",
        ),
    ],
)
def test_whatever_differs_is_named(changed: Proof, says: str) -> None:
    assert any(says in difference for difference in changed.differences), changed.differences


def test_a_claim_after_the_last_page_is_no_difference() -> None:
    claimed = replace(CHECKPOINT, epoch=3)
    assert Copies(claimed, CHECKPOINT, CHECKPOINT).are_equal


def test_a_statement_over_several_tables_is_one_line() -> None:
    events = [
        ("pg:7:6512.a:4", "statement: SELECT 1"),
        ("pg:7:6512.a:4:1", "statement: SELECT 1"),
        ("pg:7:6512.a:5", "statement: SELECT 2"),
        ("pg:7:6512.b:4", "statement: SELECT 3"),
        ("pg:7:6512.b:5", "disconnection: session time: 0:00:00.1"),
    ]
    assert statement_lines(events) == 3


def test_a_line_of_the_log_that_is_not_understood_fails_the_count(tmp_path: Path) -> None:
    (tmp_path / "postgresql-1.json").write_bytes(b"not json\n")
    with pytest.raises(ValueError, match=r"postgresql-1.json, line 1"):
        events_in_log(tmp_path, LogContext(server="s", system_identifier="7"))


def test_the_table_of_permissions_leaves_out_what_belongs_to_the_server() -> None:
    def grant(principal: str, asset: str, privilege: str, mechanism: str = "direct") -> dict:
        return {
            "principal_ref": f"pg:s/{principal}",
            "asset_ref": f"pg:s/{asset}" if asset else "pg:s",
            "privilege": privilege,
            "grant_mechanism": mechanism,
            "granted_via": "olga",
        }

    table = who_may_do_what(
        [
            grant("role:ada", "shop/TABLE:sales.orders", "UPDATE"),
            grant("role:ada", "shop/TABLE:sales.orders", "SELECT"),
            grant("role:ada", "role:analysts", "USAGE"),
            grant("role:ada", "role:analysts", "SET"),
            grant("role:olga", "shop/TABLE:sales.orders", "DELETE", "owner"),
            grant("role:olga", "", "SUPERUSER"),
            grant("PUBLIC", "other/TABLE:sales.orders", "SELECT"),
        ],
        "s",
        "shop",
    )
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    assert list(zip(*cells, strict=True)) == [
        ("ada", "member", "analysts", "direct, by olga"),
        ("ada", "SELECT, UPDATE", "shop/TABLE:sales.orders", "direct, by olga"),
    ]
