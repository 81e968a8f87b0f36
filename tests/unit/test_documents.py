"""The documents say what the code says."""

from __future__ import annotations

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


@pytest.mark.parametrize("name", TYPES)
def test_a_platform_s_page_has_its_settings(name: str) -> None:
    made = list(parts((ROOT / "docs" / "platforms" / f"{name}.md").read_text("utf-8")))
    model = settings_of(name)
    assert ["settings", f"{model.__module__}:{model.__qualname__}"] in made
