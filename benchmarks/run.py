"""Compare the relay with its alternatives: `python -m benchmarks.run`, or `make bench`.

Everything runs in one process against one broker and one database, in rounds: every round
measures each contestant once, each time in another order, so that what else the machine does
hits all of them alike. Shown are medians and ranges, and ratios taken within a round.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import logging
import os
import platform
import pstats
import shutil
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from rich.console import Console
from rich.table import Table

from benchmarks import against
from benchmarks.bench import Bench, connected
from benchmarks.contestants import CONTESTANTS, Contestant, Measured
from benchmarks.extras import EXTRAS, Figure
from benchmarks.workload import EVENT_BYTES, Workload
from verity_common.config import DatabaseSettings, KafkaSettings
from verity_stream.dev.stack import NO_SETTINGS, Stack, StackError, external_addresses
from verity_stream.settings import StreamSettings

DIRECTORY = Path(".verity/bench")
BASELINES = ("confluent", "confluent-events", "spec")
WARM_UP_ROUNDS = 3
"""A broker that has just started is compiled while it runs: the first half million events take it
twice as long as later ones."""

PROFILE_LINES = 30
WIDTH = 150

Results = dict[str, list[Measured]]


def main() -> int:
    """Parse the command line and measure."""
    options = _options()
    # aiokafka reports as an error that a topic made a moment ago has no leader yet.
    logging.basicConfig(level=logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    try:
        with _stack() as (stack, settings):
            if options.against:
                console.print(f"[bold]{_command()}[/bold]\n{_machine(stack)}")
                names = options.only or against.COMPARED
                comparing = against.compare(
                    settings, options.against, names, options.rounds, options.events, console
                )
                return 0 if asyncio.run(comparing) else 1
            asyncio.run(_measure(stack, settings, options, console))
    except StackError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _options() -> argparse.Namespace:
    names = [one.name for one in CONTESTANTS] + list(EXTRAS)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured")
    parser.add_argument("--events", type=int, default=200_000, help="how many events each gets")
    parser.add_argument(
        "--only", action="append", metavar="NAME", choices=names, help=" | ".join(names)
    )
    parser.add_argument(
        "--profile", action="store_true", help="instead: one pass of the relay under cProfile"
    )
    parser.add_argument(
        "--against",
        type=_checkout,
        metavar="DIRECTORY",
        help="instead: this code against that of a checkout, in turns, and that against itself",
    )
    options = parser.parse_args()
    if options.against and set(options.only or ()) & {*EXTRAS, "java"}:
        parser.error("only what runs in one process can be compared")
    if options.rounds < 1 or options.events < 1000:
        parser.error("at least 1 round of 1,000 events")
    return options


def _checkout(text: str) -> Path:
    directory = Path(text).resolve()
    if not (directory / "benchmarks" / "contestants.py").is_file():
        raise argparse.ArgumentTypeError(f"{text} is no checkout of this project")
    return directory


@contextmanager
def _stack() -> Iterator[tuple[Stack, StreamSettings]]:
    """An own stack, except for what the environment names; wiped afterwards."""
    is_own = {"kafka", "postgres"} - set(external_addresses())
    stack = Stack(DIRECTORY / str(os.getpid()), kafka_port=0, postgres_port=0)
    try:
        address = stack.up(environ=os.environ if len(is_own) < 2 else NO_SETTINGS)
        # Beside what the environment says, such as how to log in to a broker of one's own.
        settings = StreamSettings()
        if "kafka" in is_own:
            settings = settings.model_copy(
                update={"kafka": KafkaSettings(bootstrap_servers=address.bootstrap_servers)}
            )
        if "postgres" in is_own:
            settings = settings.model_copy(
                update={"database": DatabaseSettings.model_validate({"dsn": address.dsn})}
            )
        yield stack, settings
    finally:
        stack.down(wipe=True)
        shutil.rmtree(stack.directory, ignore_errors=True)


async def _measure(
    stack: Stack, settings: StreamSettings, options: argparse.Namespace, console: Console
) -> None:
    async with connected(settings, stack.kafka) as bench:
        workload = Workload.of(options.events)
        # The workload stays; that the collector walks through it again and again would be a
        # cost of this script's and of nobody's worker.
        gc.collect()
        gc.freeze()
        if options.profile:
            await _profile(bench, workload)
            return
        chosen = [one for one in CONTESTANTS if not options.only or one.name in options.only]
        extras = [name for name in EXTRAS if not options.only or name in options.only]
        console.print(f"[bold]{_command()}[/bold]\n{_machine(stack)}")
        if chosen:
            results = await _rounds(bench, workload, chosen, options.rounds, console)
            console.print(_table(chosen, results, options, settings))
        figures: list[Figure] = []
        for name in extras:
            console.print(f"[dim]{name} …[/dim]")
            figures += await EXTRAS[name](bench, workload)
        if figures:
            console.print(_figures(figures))


async def _rounds(
    bench: Bench, workload: Workload, chosen: list[Contestant], rounds: int, console: Console
) -> Results:
    for number in range(WARM_UP_ROUNDS):
        console.print(f"[dim]warming up, {number + 1} of {WARM_UP_ROUNDS} …[/dim]")
        for one in chosen:
            await _once(one, bench, workload)
    results: Results = defaultdict(list)
    for number in range(rounds):
        turn = number % len(chosen)
        for one in chosen[turn:] + chosen[:turn]:
            measured = await _once(one, bench, workload)
            results[one.name].append(measured)
            console.print(f"[dim]round {number + 1}: {one.name:<17} {measured.rate:>9,.0f}/s[/dim]")
    return results


async def _once(one: Contestant, bench: Bench, workload: Workload) -> Measured:
    part = workload.first(max(500, len(workload.events) // one.share))
    gc.collect()
    measured = await one.measure(bench, part)
    # What the broker still writes and deletes of this one shall not hit the next.
    await asyncio.sleep(0.3)
    return measured


async def _profile(bench: Bench, workload: Workload) -> None:
    (one,) = [one for one in CONTESTANTS if one.name == "relay"]
    plain = await _once(one, bench, workload)
    profiler = cProfile.Profile()
    profiler.enable()
    profiled = await one.measure(bench, workload)
    profiler.disable()
    print(
        f"{plain.rate:,.0f} events/s without the profiler, {profiled.rate:,.0f} with it; "
        f"own CPU {plain.cpu_seconds or 0:.2f} of {plain.seconds:.2f} s"
    )
    pstats.Stats(profiler).sort_stats("tottime").print_stats(PROFILE_LINES)


def _table(
    chosen: list[Contestant],
    results: Results,
    options: argparse.Namespace,
    settings: StreamSettings,
) -> Table:
    table = Table(
        title=f"{options.events:,} events of {EVENT_BYTES} bytes, {options.rounds} rounds, "
        f"{settings.kafka.event_partitions} partitions, "
        f"transactions of at most {settings.page_events:,} events"
    )
    table.add_column("")
    table.add_column("events/s", justify="right")
    table.add_column("min - max", justify="right")
    table.add_column("CPU us/event", justify="right")
    baselines = [name for name in BASELINES if name in results]
    for name in baselines:
        table.add_column(f"x {name}", justify="right")
    for one in chosen:
        measured = results[one.name]
        rates = [each.rate for each in measured]
        costs = [each.cpu_seconds / each.event_count for each in measured if each.cpu_seconds]
        table.add_row(
            f"{one.name}: {one.title}",
            f"{statistics.median(rates):,.0f}",
            f"{min(rates):,.0f} - {max(rates):,.0f}",
            f"{1e6 * statistics.median(costs):.1f}" if costs else "",
            *(_ratio(measured, results[name]) for name in baselines),
        )
    return table


def _ratio(measured: list[Measured], baseline: list[Measured]) -> str:
    ratios = [one.rate / other.rate for one, other in zip(measured, baseline, strict=True)]
    middle = statistics.median(ratios)
    # Three digits that mean something, whether it is 0.003 or 300.
    digits = 0 if middle >= 10 else 2 if middle >= 0.1 else 4
    return f"{middle:.{digits}f} ({min(ratios):.{digits}f} - {max(ratios):.{digits}f})"


def _figures(figures: list[Figure]) -> Table:
    table = Table(title="Starts, latency, memory")
    for column in ("", "median", "min - max", "p95", "n"):
        table.add_column(column, justify="right" if column else "left")
    for figure in figures:
        values = sorted(figure.values)
        table.add_row(
            figure.title,
            f"{statistics.median(values):,.2f} {figure.unit}",
            f"{values[0]:,.2f} - {values[-1]:,.2f}",
            f"{values[int(0.95 * len(values))]:,.2f}" if len(values) >= 20 else "",
            str(len(values)),
        )
    return table


def _command() -> str:
    return " ".join(["python -m benchmarks.run", *sys.argv[1:]])


def _machine(stack: Stack) -> str:
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    return (
        f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, Kafka {stack.kafka.version}; load before: {load}"
    )


if __name__ == "__main__":
    sys.exit(main())
