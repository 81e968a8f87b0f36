"""The guide for authors: its code is the example's, and the example keeps the laws."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from verity_sdk import BaseConnector, Denied, Misconfigured, PagedConnector, format_utc
from verity_sdk.testing import Clock, ConnectorLaws, Fault, SourceUnderTest, Verdict, judge

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "writing_a_connector"
GUIDE = (ROOT / "docs" / "writing-a-connector.md").read_text("utf-8")
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)

sys.path.insert(0, str(EXAMPLE))
from lagoon_connector import LagoonConnector  # noqa: E402 - the path comes first
from lagoon_paged import LagoonTail  # noqa: E402
from lagoon_plain import LagoonFile  # noqa: E402
from lagoon_server import SECRET, LagoonFake, serving  # noqa: E402
from test_lagoon_laws import TestLagoonLaws  # noqa: E402, F401 - pytest collects it here

SHOWN = [
    "lagoon_plain.py",
    "lagoon_paged.py",
    "lagoon_connector/records.py",
    "lagoon_connector/settings.py",
    "lagoon_connector/connector.py",
    "lagoon_connector/__init__.py",
    "pyproject.toml",
    "test_lagoon_laws.py",
    "verity.toml",
]
LINKED = ["lagoon_server.py"]


def test_the_code_of_the_guide_is_the_example() -> None:
    blocks = re.findall(r"^```(?:python|toml)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    files = [(EXAMPLE / name).read_text("utf-8") for name in SHOWN]
    assert blocks == files, "paste the files into the guide, in the order of SHOWN"
    for name in SHOWN:
        assert f"`{name}`" in GUIDE


def test_nothing_of_the_example_is_left_out_of_the_guide() -> None:
    found = {
        str(path.relative_to(EXAMPLE))
        for path in EXAMPLE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and ".pytest_cache" not in path.parts
    }
    assert found == {*SHOWN, *LINKED}
    for name in LINKED:
        assert f"../examples/writing_a_connector/{name}" in GUIDE


def test_every_link_of_the_guide_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", GUIDE):
        assert "://" in target or (ROOT / "docs" / target).exists(), target


def test_the_guide_names_every_law() -> None:
    from verity_sdk.testing import LAWS

    named = set(re.findall(r"^\| (L\d+) \|", GUIDE, re.MULTILINE))
    assert named == set(LAWS)
    for label, law in LAWS.items():
        assert f"| {label} | {law.title} |" in GUIDE


def test_the_entry_point_leads_to_the_class() -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["entry-points"]["verity.connectors"] == {
        LagoonConnector.PLATFORM: "lagoon_connector:LagoonConnector"
    }


def test_the_table_of_the_guide_is_valid() -> None:
    table = tomllib.loads((EXAMPLE / "verity.toml").read_text("utf-8"))["connectors"]["harbour"]
    common = ("type", "poll_every", "snapshot_every")
    own = {key: value for key, value in table.items() if key not in common}
    settings = LagoonConnector.Settings(connector_id="harbour", **own)
    assert settings.lookback == LagoonConnector.lookback
    assert "env:" not in repr(settings)


def test_a_faulty_setting_is_named_and_its_value_is_not_shown() -> None:
    table = {"connector_id": "harbour", "client_id": "verity", "client_secret": [SECRET]}
    with pytest.raises(Misconfigured, match="client_secret") as raised:
        LagoonConnector(table, None, None)
    assert SECRET not in str(raised.value)


async def test_check_tells_a_wrong_secret() -> None:
    with serving(LagoonFake(Clock(NOW)).app) as url:
        table = {"connector_id": "harbour", "url": url, "client_id": "verity"}
        good = LagoonConnector({**table, "client_secret": SECRET}, None, None)
        await good.check()
        await good.close()
        bad = LagoonConnector({**table, "client_secret": "wrong"}, None, None)
        with pytest.raises(Denied):
            await bad.check()
        await bad.close()


def test_the_server_can_be_started() -> None:
    with subprocess.Popen(
        [sys.executable, str(EXAMPLE / "lagoon_server.py"), "0"],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        server.terminate()
    assert json.loads(line)["url"].startswith("http://127.0.0.1:")


class FileSource(SourceUnderTest):
    """The export of the first two connectors: a file to which lines are appended."""

    does_not_apply: ClassVar = {
        **{
            fault: "a file has no requests"
            for fault in Fault
            if fault is not Fault.MALFORMED_RECORD
        },
        "L22": "a file has no credential",
    }
    late_by: ClassVar = timedelta(minutes=30)

    def __init__(self, file: Path, connector_class: type[BaseConnector]) -> None:
        self.file = file
        self.file.touch()
        self.clock = Clock(NOW)
        self.ids: set[str] = set()
        self._waiting: list[tuple[datetime, bytes]] = []
        self._connector_class = connector_class

    def connector(self) -> BaseConnector:
        return self._connector_class({"connector_id": "export", "file": self.file}, None, None)

    def now(self) -> datetime:
        return self.clock()

    def advance(self, by: timedelta) -> None:
        self.clock.advance(by)
        self._write()

    def add_events(
        self, count: int, *, at: datetime, visible_at: datetime | None = None
    ) -> list[str]:
        ids = []
        for number in range(count):
            ids.append(f"e{len(self.ids)}")
            happened_at = at + timedelta(milliseconds=number // 2)
            record = {"id": ids[-1], "at": format_utc(happened_at), "who": "ada", "did": "open"}
            line = json.dumps({**record, "box": "7"}).encode() + b"\n"
            self._waiting.append((visible_at or happened_at, line))
            self.ids.add(ids[-1])
        self._write()
        return ids

    def event_ids(self) -> set[str]:
        return self.ids

    def inject(self, fault: Fault, *, times: int = 1, after: int = 0) -> None:
        assert fault is Fault.MALFORMED_RECORD
        lines = self.file.read_bytes().splitlines(keepends=True)
        bad = [b'{"id": "half\n', b'{"id": "x", "at": "yesterday"}\n'][:times]
        self.file.write_bytes(b"".join([*lines[:5], *bad, *lines[5:]]))

    def _write(self) -> None:
        ready = [line for visible_at, line in self._waiting if visible_at <= self.now()]
        self._waiting = [one for one in self._waiting if one[0] > self.now()]
        with self.file.open("ab") as file:
            file.writelines(ready)


@pytest.mark.parametrize(
    ("connector_class", "not_asked"),
    [(LagoonFile, {"L12", "L15", "L17"}), (LagoonTail, {"L17"})],
)
def test_the_first_steps_of_the_guide_keep_the_laws_too(
    connector_class: type[BaseConnector],
    not_asked: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lagoon_paged.PAGE_BYTES", 500)
    files = iter(range(1000))

    @contextmanager
    def make() -> Iterator[FileSource]:
        yield FileSource(tmp_path / f"export-{next(files)}.jsonl", connector_class)

    suite: Any = type("FileLaws", (ConnectorLaws,), {"connector_class": connector_class})()
    outcomes = judge(suite, make)
    broken = {one.label: one.reason for one in outcomes if one.verdict is Verdict.BROKEN}
    assert broken == {}
    held = {one.label for one in outcomes if one.verdict is Verdict.HOLDS}
    asked = {"L1", "L2", "L3", "L5", "L14", "L16", "L18", "L24", "L25", "L27", "L28"}
    assert held == (asked | {"L12", "L15", "L17"}) - not_asked
    assert issubclass(connector_class, PagedConnector) == ("L15" in held)
