"""This code against that of another checkout: `python -m benchmarks.run --against DIRECTORY`.

Three processes take turns on one broker, each in its own database: this code, the other, and the
other once more. A round measures each once, each time in another order. What the other code makes
of itself, round by round, is what the machine's noise is.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from rich.console import Console
from rich.table import Table

from verity_stream.settings import StreamSettings

HERE = Path(__file__).resolve().parents[1]
COMPARED = ("relay", "relay-2000", "relay-500")
RATIO_MIN = 0.95
"""This code may be so much slower; more where the other is as far from itself."""
WARM_UP_ROUNDS = 2

SIDES = ("new", "old", "old again")


class Side:
    """A process that measures one checkout."""

    def __init__(self, checkout: Path, settings: StreamSettings, dsn: str) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": str(checkout),
            "VERITY_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
            "VERITY_DATABASE__DSN": dsn,
        }
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "benchmarks" / "side.py")],
            cwd=checkout,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def measure(self, name: str, events: int) -> dict[str, Any]:
        """Have it measured once.

        Raises:
            SystemExit: The process ended; what it said is on the terminal.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{name} {events}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a side ended with {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


async def _database(dsn: str, name: str) -> str:
    """A new database beside the one that the DSN names: the other code has other migrations."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))


async def compare(
    settings: StreamSettings,
    other: Path,
    names: Sequence[str],
    rounds: int,
    events: int,
    console: Console,
) -> bool:
    """Measure, print, and say whether this code passed."""
    dsn = settings.database.dsn.get_secret_value()
    checkouts = {"new": HERE, "old": other, "old again": other}
    rates: dict[tuple[str, str], list[float]] = {
        (name, side): [] for name in names for side in SIDES
    }
    with ExitStack() as closing:
        sides = {}
        for number, (side, checkout) in enumerate(checkouts.items()):
            database = await _database(dsn, f"verity_bench_{os.getpid()}_{number}")
            sides[side] = Side(checkout, settings, database)
            closing.callback(sides[side].close)
        for number in range(WARM_UP_ROUNDS + rounds):
            turn = number % len(SIDES)
            for name in names:
                for side in SIDES[turn:] + SIDES[:turn]:
                    rate = sides[side].measure(name, events)["rate"]
                    if number >= WARM_UP_ROUNDS:
                        rates[name, side].append(rate)
                    said = number - WARM_UP_ROUNDS + 1 if number >= WARM_UP_ROUNDS else "warming up"
                    console.print(f"[dim]{said}: {name:<11} {side:<10} {rate:>9,.0f}/s[/dim]")
    console.print(_table(names, rates, rounds, events))
    return all(has_passed(ratios_of(name, rates)) for name in names)


def ratios_of(
    name: str, rates: dict[tuple[str, str], list[float]]
) -> tuple[list[float], list[float]]:
    """New against old, and old against old, round by round."""
    old = rates[name, "old"]
    new, again = (
        [one / other for one, other in zip(rates[name, side], old, strict=True)]
        for side in ("new", "old again")
    )
    return new, again


def has_passed(ratios: tuple[list[float], list[float]]) -> bool:
    """Whether the median is high enough, or the old code is as far from itself."""
    new, again = ratios
    return statistics.median(new) >= min(RATIO_MIN, *again)


def _table(
    names: Sequence[str], rates: dict[tuple[str, str], list[float]], rounds: int, events: int
) -> Table:
    table = Table(title=f"{events:,} events, {rounds} rounds; ratios within a round")
    for column in ("", "new /s", "old /s", "new : old", "old again : old", "passed"):
        table.add_column(column, justify="right" if column else "left")
    for name in names:
        ratios = ratios_of(name, rates)
        table.add_row(
            name,
            *(f"{statistics.median(rates[name, side]):,.0f}" for side in ("new", "old")),
            *(f"{statistics.median(one):.2f} ({min(one):.2f} - {max(one):.2f})" for one in ratios),
            "yes" if has_passed(ratios) else "NO",
        )
    return table
