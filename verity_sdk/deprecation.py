"""Public names that moved: for one release the old ones still lead to the new ones, and warn."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def moved_module(
    module: str, home: str, renamed: Mapping[str, str] | None = None
) -> Callable[[str], Any]:
    """A module's `__getattr__` where all of its names have moved to another one.

    The other one may lie above: it is imported by its name only, when it is asked for.

    Args:
        module: The module's own name.
        home: Where its names are now.
        renamed: Old name → new name, for those that have another one there.
    """

    def found(name: str) -> Any:
        new_name = (renamed or {}).get(name, name)
        there = None if name.startswith("__") else import_module(home)
        if not hasattr(there, new_name):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(
            f"{module}.{name} is {home}.{new_name} now; the old name goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(there, new_name)

    return found


def moved(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` for names that it no longer has.

    Give it to a module in a branch that type checkers don't see (`if not TYPE_CHECKING`): to
    them every name would be there, those that never were among them.

    Args:
        module: The module's own name.
        names: Old name → new name, with its module.
    """

    def found(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(
            f"{module}.{name} is {names[name]} now; the old name goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        home, _, new_name = names[name].rpartition(".")
        return getattr(import_module(home), new_name)

    return found
