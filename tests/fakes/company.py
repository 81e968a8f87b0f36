"""The whole made-up company: all fakes over one world, and the connectors' tables for them.

`python -m fakes.company` serves them on the machine's clock until SIGTERM. Its first line is a JSON
object with the tables of `verity.toml`, by platform, and the platforms on which people act.

A new platform's fake is part of it by its name: `Fake` in `fakes.<type>`, with `is_acted_on`,
`table` and, where more than `app` is served, `beside`.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from fakes.kit import Clock, Fault, serving
from fakes.world import World

HISTORY = timedelta(hours=6)
SETTLED = timedelta(minutes=75)
"""Longer than any connector stays behind now: what happened before is collected at once."""


def _fakes() -> dict[str, Any]:
    """The fake of every installed connector that has one: `Fake` of `fakes.<type>`."""
    names = sorted(point.name for point in entry_points(group="verity.connectors"))
    return {name: import_module(f"fakes.{name}").Fake for name in names if _has_fake(name)}


def _has_fake(name: str) -> bool:
    return find_spec(f"fakes.{name}") is not None


_CLASSES = _fakes()
PLATFORMS = tuple(_CLASSES)
AUDITED = tuple(name for name, fake in _CLASSES.items() if fake.is_acted_on)
"""Where people act; HR only says who they are."""


@dataclass
class Company:
    """All fakes of one world.

    Args:
        people_count: How many work or worked there.
        event_count: So many events on each platform, spread over the history.
        history: How far back it goes; the connectors' `retention` lets them read all of it.
    """

    seed: int = 1
    people_count: int = 40
    event_count: int = 120
    history: timedelta = HISTORY
    world: World = field(init=False)
    fakes: dict[str, Any] = field(init=False)
    urls: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        now = datetime.now(UTC).replace(microsecond=0)
        self.world = World(seed=self.seed, now=now, people_count=self.people_count)
        self.fakes = {name: make(self.world, Clock()) for name, make in _CLASSES.items()}
        start, span = now - self.history, self.history - SETTLED
        step = 6  # a few at a time, so that there are ties
        for name in AUDITED:
            for first in range(0, self.event_count, step):
                at = start + span * first / self.event_count
                count = min(step, self.event_count - first)
                self.fakes[name].add_events(count, at=at, visible_at=at)

    def late(self, count: int, after: timedelta) -> None:
        """Events on every audited platform that happened long ago and can be read only now."""
        now = datetime.now(UTC)
        for name in AUDITED:
            at = now - timedelta(minutes=100)
            self.fakes[name].add_events(count, at=at, visible_at=now + after)

    def storm(self, times: int, platforms: Sequence[str] = AUDITED) -> None:
        """Every platform refuses requests for a while, and drops some answers."""
        for name in platforms:
            faults = self.fakes[name].faults
            faults.inject(Fault.THROTTLED_SECONDS, times=times)
            faults.inject(Fault.UNAVAILABLE, times=2, after=times)
            faults.inject(Fault.DROPPED, times=2, after=3)

    @contextmanager
    def served(self) -> Iterator[Company]:
        """All of them on free ports of the loopback."""
        with ExitStack() as stack:
            for name, fake in self.fakes.items():
                self.urls[name] = stack.enter_context(serving(fake.app))
                for attribute, app in getattr(fake, "beside", {}).items():
                    setattr(fake, attribute, stack.enter_context(serving(app)))
            yield self

    def tables(self) -> dict[str, dict[str, Any]]:
        """What `verity.toml` says of each, for connectors that go on asking every second."""
        retention = f"{self.history.total_seconds() / 3600 + 2:g}h"
        return {
            name: {
                "type": name,
                "poll_every": "2s",
                **_without_id(fake.table(self.urls[name], retention)),
            }
            for name, fake in self.fakes.items()
        }


def _without_id(table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key != "connector_id"}


def toml_lines(connector_id: str, table: dict[str, Any]) -> list[str]:
    """A connector's table in `verity.toml`."""
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    lines = [f"[connectors.{connector_id}]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += toml_lines(f"{connector_id}.{key}", value)
    return lines


def main() -> None:
    """Serve the company. Lines on standard input: `storm TIMES`, `late COUNT`."""
    parser = argparse.ArgumentParser(prog="python -m fakes.company", description=main.__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--events", type=int, default=120)
    parser.add_argument("--hours", type=float, default=HISTORY.total_seconds() / 3600)
    parser.add_argument("--unlimited", action="store_true", help="without the vendors' limits")
    options = parser.parse_args()
    is_over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: is_over.set())
    company = Company(
        seed=options.seed, event_count=options.events, history=timedelta(hours=options.hours)
    )
    for fake in company.fakes.values():
        fake.is_limited = not options.unlimited

    def obey() -> None:
        for line in sys.stdin:
            command, _, count = line.strip().partition(" ")
            if command == "storm":
                company.storm(int(count))
            elif command == "late":
                company.late(int(count), after=timedelta(seconds=2))
        is_over.set()  # Whoever started it is gone.

    with company.served():
        said = {"tables": company.tables(), "urls": company.urls, "acted_on": AUDITED}
        print(json.dumps(said), flush=True)  # noqa: T201
        threading.Thread(target=obey, daemon=True).start()
        is_over.wait()


if __name__ == "__main__":
    main()
