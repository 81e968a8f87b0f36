"""Registering a connector puts it under test: each has a class of laws of its own."""

from __future__ import annotations

import importlib
import tomllib
from datetime import timedelta
from importlib.metadata import EntryPoint
from pathlib import Path

from verity_sdk.testing import ConnectorLaws, SourceUnderTest

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
    return [
        one
        for one in subclasses_of(ConnectorLaws)
        if one.connector_class is not None and issubclass(one.connector_class, connector_class)
    ]


def import_all_laws() -> None:
    for file in sorted(Path(__file__).parent.glob("test_*_laws.py")):
        if file.name != Path(__file__).name:
            importlib.import_module(file.stem)


def subclasses_of(base: type) -> list[type]:
    return [one for sub in base.__subclasses__() for one in (sub, *subclasses_of(sub))]


def unknown_numbers(base: type) -> list[str]:
    """Public numbers of subclasses that the base class does not have, so that nobody reads them."""
    return [
        f"{one.__name__}.{name}"
        for one in subclasses_of(base)
        for name, value in vars(one).items()
        if isinstance(value, int | float | timedelta)
        and not name.startswith("_")
        and not hasattr(base, name)
    ]


def test_every_registered_connector_is_under_the_laws() -> None:
    import_all_laws()
    missing = [name for name, entry in registered().items() if not _is_judged(entry)]
    assert not missing, f"no class of laws in tests/contract/test_*_laws.py for: {missing}"


def test_every_number_of_a_class_of_laws_counts() -> None:
    """A name that is misspelt, or was renamed, leaves the default in force without a word."""
    import_all_laws()
    assert unknown_numbers(ConnectorLaws) == []
    assert unknown_numbers(SourceUnderTest) == []


def _is_judged(entry: EntryPoint) -> bool:
    suites = laws_of(entry.load())
    # Collected by pytest, from a file of its own, and with a source to judge.
    return any(one.__name__.startswith("Test") and hasattr(one, "source") for one in suites)


def test_a_connector_without_laws_is_found() -> None:
    class Unjudged:
        pass

    assert laws_of(Unjudged) == []
