"""The documents say what the code says."""

from __future__ import annotations

import ast
import pkgutil
import re
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from documents import ROOT, documents, made_again, model_class, parts, reachable
from pydantic import BaseModel

from verity_stream.dev.demo.proof import Copies, Proof
from verity_stream.dev.demo.show import proof_lines
from verity_stream.records import Checkpoint
from verity_stream.settings import ENTRY_POINT_GROUP, ConnectorOptions, StreamSettings

# Those of the tests' own plugins left out.
TYPES = sorted(
    point.name
    for point in entry_points(group=ENTRY_POINT_GROUP)
    if point.value.startswith("connectors.")
)


TEST_FILES = [one for top in ("tests", "examples") for one in (ROOT / top).rglob("test_*.py")]


def functions(path: Path) -> set[str]:
    """The names of all functions of a file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def models() -> set[type[BaseModel]]:
    """Every model of which somebody may write a setting."""
    return reachable(StreamSettings, ConnectorOptions, *(settings_of(name) for name in TYPES))


def settings_of(connector_type: str) -> type[BaseModel]:
    (point,) = entry_points(group=ENTRY_POINT_GROUP, name=connector_type)
    model: type[BaseModel] = point.load().Settings
    return model


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_made_from_the_code_is_as_the_code_has_it(path: Path) -> None:
    text = path.read_text("utf-8")
    assert made_again(text) == text, "`make docs` writes it"


def test_every_setting_says_what_it_is_for() -> None:
    silent = [
        f"{model.__module__}.{model.__qualname__}.{name}"
        for model in models()
        for name, field in model.model_fields.items()
        if not (field.description or "").strip(" .…")
    ]
    assert sorted(silent) == []


def test_every_setting_stands_in_the_documents() -> None:
    shown = {
        model_class(arguments[0])
        for path in documents()
        for kind, *arguments in parts(path.read_text("utf-8"))
        if kind == "settings"
    }
    assert {model.__qualname__ for model in models() - shown} == set()


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_that_a_document_names_exists(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
    wrong = []
    for file, function in re.findall(r"`([\w/]*test_\w+\.py)(?:::(\w+))?`", text):
        found = [one for one in TEST_FILES if f"/{one.relative_to(ROOT)}".endswith(f"/{file}")]
        if len(found) != 1 or (function and function not in functions(found[0])):
            wrong.append(f"{file}::{function}" if function else file)
    assert wrong == []


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_and_name_that_a_document_names_exists(path: Path) -> None:
    text = path.read_text("utf-8")
    tops = "verity_common|verity_sdk|verity_stream|connectors|tests|docs|examples|ops|benchmarks"
    for file in re.findall(rf"`((?:{tops})/[\w./-]*)(?:::\w+)?`", text):
        # `x` stands for any platform.
        assert (ROOT / file).exists() or "x" in re.split(r"[/.]", file), file
    if path.name == "CHANGELOG.md":
        return  # It tells what there was.
    for name in re.findall(r"`((?:verity_common|verity_sdk|verity_stream)(?:\.\w+)+)", text):
        assert pkgutil.resolve_name(name) is not None


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
            names = {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}
            assert anchor in names, link


@pytest.mark.parametrize("name", ["README.md", "docs/demo.md"])
def test_the_demo_s_last_lines_are_as_they_are_printed(name: str) -> None:
    checkpoint = Checkpoint("c", 1, 1, datetime(2026, 1, 1, tzinfo=UTC))
    views = Copies(checkpoint, checkpoint, checkpoint)
    printed = proof_lines(Proof(["a"], ["a"], views, 1, 1, 0, 0)).plain
    digits = re.compile(r"\b[1-9]\d*\b")
    text = (ROOT / name).read_text("utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)
    shown = [digits.sub("N", block) for block in blocks]
    assert digits.sub("N", printed) in shown


def test_the_figures_of_the_sweep_are_those_of_its_table() -> None:
    """README adds up the lanes that publish exactly once."""
    text = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
    (table,) = re.findall(r"^A full sweep over.*(?:\n.*)?\n\n((?:\|.*\n)+)", text, re.MULTILINE)
    rows = [row.strip("| ").split(" | ") for row in table.splitlines() if " / " in row]
    rows = [row for row in rows if row[0] != "kill_at_least_once"]
    assert {cell for row in rows for cell in row[3:6]} == {"0"}
    runs = sum(int(row[1]) for row in rows)
    events = sum(int(row[2].split(" / ")[0].replace(",", "")) for row in rows)
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    assert f"{runs} times" in readme
    assert f"of {events:,} events **0 were lost, 0 repeated, 0 torn**" in readme


def test_every_guarantee_names_a_test() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
    (table,) = re.findall(r"\| guarantee \|.*\n\| --- .*\n((?:\|.*\n)+)", text)
    rows = table.splitlines()
    assert len(rows) >= 10
    for row in rows:
        attacked_by = row.strip("| ").split(" | ")[-1]
        assert re.search(r"`tests/[\w/]+\.py::test_\w+`", attacked_by), row


@pytest.mark.parametrize("name", TYPES)
def test_a_platform_s_page_has_its_settings(name: str) -> None:
    made = list(parts((ROOT / "docs" / "platforms" / f"{name}.md").read_text("utf-8")))
    model = settings_of(name)
    assert ["settings", f"{model.__module__}:{model.__qualname__}"] in made
