"""How fast each connector reads its fake over HTTP, and whether its memory stays flat.

    PYTHONPATH=tests python -m benchmarks.connectors [--events 50000] [--only fabric]

The fakes run in a process of their own, without the vendors' limits; each connector in another, so
that its own CPU time and its peak memory are its own. Two lengths of the same history are read: the
rate is that of the longer one, and the memory of both should be alike. That of Entra ID keeps to
Microsoft's 5 requests in 10 s by itself, so only its own CPU says what it could do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from verity_sdk.pages import Position

TESTS = Path(__file__).resolve().parents[1] / "tests"
SHORTER = 5
"""The shorter history has one event of so many."""


@contextmanager
def fakes(count: int, hours: float) -> Iterator[dict[str, Any]]:
    """The tables of connectors for fakes with so many events on each platform that has events."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "fakes.company", "--unlimited"),
            *("--events", str(count), "--hours", str(hours)),
        ],
        cwd=TESTS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = json.loads(process.stdout.readline())
        yield {name: found["tables"][name] for name in found["acted_on"]}
    finally:
        process.kill()
        process.wait()


async def read(platform: str, hours: float, table: dict[str, Any]) -> dict[str, Any]:
    """One pass over all there is, by the connector's own pages."""
    (point,) = entry_points(group="verity.connectors", name=platform)
    options = {"type", "poll_every"}
    own = {key: value for key, value in table.items() if key not in options}
    connector = point.load()({"connector_id": platform, **own}, None, None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, used = time.perf_counter(), time.process_time()
    ids: set[int] = set()
    pages = 0
    position = Position(since=datetime.now(UTC) - timedelta(hours=hours + 1))
    try:
        async for page in connector.fetch_pages(position):
            ids.update(hash(event.event_id) for event in page.events)
            pages += 1
    finally:
        await connector.close()
    return {
        "events": len(ids),
        "pages": pages,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - used,
        "megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def measure(platform: str, hours: float, table: dict[str, Any]) -> dict[str, Any]:
    """`read` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.connectors", "--read", platform, "--hours", str(hours)],
        input=json.dumps(table),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, default=50_000, help="how many on each platform")
    parser.add_argument("--hours", type=float, default=30.0, help="how long their history is")
    parser.add_argument("--only", action="append", metavar="PLATFORM")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(
            json.dumps(asyncio.run(read(options.read, options.hours, json.loads(sys.stdin.read()))))
        )
        return
    rows: dict[str, list[dict[str, Any]]] = {}
    for part in (SHORTER, 1):
        count, hours = options.events // part, options.hours / part
        with fakes(count, hours) as tables:
            for platform in options.only or tables:
                found = measure(platform, hours, tables[platform])
                if found["events"] != count:
                    raise SystemExit(f"{platform}: {found['events']} events, expected {count}")
                rows.setdefault(platform, []).append(found)
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    table = Table(title=f"{options.events:,} events; {os.cpu_count()} cores, load {load}")
    for column in ("platform", "events/s of own CPU", "events/s", "MB", f"MB, 1/{SHORTER} of them"):
        table.add_column(column, justify="left" if column == "platform" else "right")
    for platform, (short, long) in rows.items():
        table.add_row(
            platform,
            f"{long['events'] / long['cpu_seconds']:,.0f}",
            f"{long['events'] / long['seconds']:,.0f}",
            f"{long['megabytes']:.0f}",
            f"{short['megabytes']:.0f}",
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
