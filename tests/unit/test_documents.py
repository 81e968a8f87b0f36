"""The documents say what the code says."""

from __future__ import annotations

import ast
import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from documents import ROOT, documents, made_again, model_class, parts, reachable
from pydantic import BaseModel

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
    assert made_again(text) == text, "`make docs` writes it anew"


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
