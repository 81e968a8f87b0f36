"""What came of the laws, connector by connector: a registry, and a table at the end of a run.

With pytest, one line in the project's top `conftest.py` prints the table:

    from verity_sdk.testing.report import pytest_terminal_summary  # noqa: F401

With pytest-xdist the other two hooks, `pytest_sessionfinish` and `pytest_testnodedown`, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import pytest

__all__ = [
    "OUTCOMES",
    "Outcome",
    "Verdict",
    "pytest_sessionfinish",
    "pytest_terminal_summary",
    "pytest_testnodedown",
    "table",
]


class Verdict(StrEnum):
    """What came of one law for one connector."""

    BROKEN = "BROKEN"
    HOLDS = "holds"
    DOES_NOT_APPLY = "–"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of one law.

    Attributes:
        connector: Its platform.
        label: `L1` and so on.
        title: The law in a few words.
        case: What it was run with, for example the fault; "" where there is one case only.
        reason: Why it does not apply, or how it is broken.
    """

    connector: str
    label: str
    title: str
    case: str
    verdict: Verdict
    reason: str = ""


OUTCOMES: list[Outcome] = []
"""Of this process, in the order of the runs."""


def table(outcomes: Iterable[Outcome]) -> str:
    """Laws down, connectors across; of several cases of a law the worst counts.

    Under it stands why laws do not apply; a law of which only some cases don't says `holds`.
    """
    cells: dict[tuple[str, str], Verdict] = {}
    titles: dict[str, str] = {}
    reasons: dict[str, None] = {}
    order = {Verdict.BROKEN: 0, Verdict.HOLDS: 1, Verdict.DOES_NOT_APPLY: 2}
    for one in outcomes:
        titles[one.label] = one.title
        key = (one.label, one.connector)
        cells[key] = min(cells.get(key, one.verdict), one.verdict, key=order.__getitem__)
        if one.verdict is Verdict.DOES_NOT_APPLY:
            case = f" ({one.case})" if one.case else ""
            reasons[f"{one.connector}: {one.label}{case} does not apply: {one.reason}"] = None
    if not cells:
        return ""
    connectors = sorted({connector for _, connector in cells})
    labels = sorted(titles, key=lambda label: int(label[1:]))
    widths = [max(len(name), len(Verdict.BROKEN)) for name in connectors]
    first = max(len(f"{label:<4}{titles[label]}") for label in labels)
    lines = [
        " ".join(
            [" " * first, *(f"{name:>{w}}" for name, w in zip(connectors, widths, strict=True))]
        )
    ]
    for label in labels:
        row = [f"{f'{label:<4}{titles[label]}':<{first}}"]
        for name, width in zip(connectors, widths, strict=True):
            row.append(f"{cells.get((label, name), ''):>{width}}")
        lines.append(" ".join(row))
    return "\n".join([*lines, *([""] if reasons else []), *reasons])


def pytest_sessionfinish(session: Any) -> None:
    """Pytest's hook, in a process of pytest-xdist: hand over what came of the laws here."""
    if hasattr(session.config, "workeroutput"):
        # Plain text: an enum can't be sent, and the process would end with a traceback.
        session.config.workeroutput["verity_laws"] = [
            {name: str(value) for name, value in asdict(one).items()} for one in OUTCOMES
        ]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    """Hook of pytest-xdist, in the process that prints: take it over."""
    sent = getattr(node, "workeroutput", {}).get("verity_laws", ())
    OUTCOMES.extend(Outcome(**{**one, "verdict": Verdict(one["verdict"])}) for one in sent)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Pytest's hook: the table, where any law ran."""
    text = table(OUTCOMES)
    if text:
        terminalreporter.section("laws of connectors")
        terminalreporter.write_line(text)
