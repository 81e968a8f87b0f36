"""Registering a connector puts it under test: each has a class of laws of its own."""

from __future__ import annotations

import importlib
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

from verity_sdk.testing import ConnectorLaws

ROOT = Path(__file__).parents[2]


def registered() -> dict[str, EntryPoint]:
    """What pyproject.toml registers: an editable install may still know an older list."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    group = "verity.connectors"
    return {
        name: EntryPoint(name, target, group)
        for name, target in project["entry-points"][group].items()
    }


def laws_of(connector_class: type) -> list[type[ConnectorLaws]]:
    """The classes of laws of a connector; a class of laws of a subclass of it counts, too."""
    found, waiting = [], [ConnectorLaws]
    while waiting:
        for one in waiting.pop().__subclasses__():
            waiting.append(one)
            judged = one.connector_class
            if judged is not None and issubclass(judged, connector_class):
                found.append(one)
    return found


def test_every_registered_connector_is_under_the_laws() -> None:
    for file in sorted(Path(__file__).parent.glob("test_*_laws.py")):
        if file.name != Path(__file__).name:
            importlib.import_module(file.stem)
    missing = [name for name, entry in registered().items() if not _is_judged(entry)]
    assert not missing, f"no class of laws in tests/contract/test_*_laws.py for: {missing}"


def _is_judged(entry: EntryPoint) -> bool:
    suites = laws_of(entry.load())
    # Collected by pytest, from a file of its own, and with a source to judge.
    return any(one.__name__.startswith("Test") and hasattr(one, "source") for one in suites)


def test_a_connector_without_laws_is_found() -> None:
    class Unjudged:
        pass

    assert laws_of(Unjudged) == []
