"""What all commands share: tables, times and quiet logs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import click
import structlog
from rich.console import Console
from rich.table import Table
from rich.text import Text

from verity_sdk.times import format_utc
from verity_stream.redaction import SECRETS

WIDTH_WITHOUT_TERMINAL = 1000
"""More than any table has: one that is read by a program, or by grep, is never folded."""
STRANGERS_SHOWN = 10
"""All are counted."""


def quiet_logs() -> None:
    """Let a command's own lines be all that it says.

    Kafka's client logs every refused connection as an error; the command reports it once.
    """
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    for library in ("aiokafka", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)


def new_console() -> Console:
    """A console for tables; into a pipe they keep their full width."""
    console = Console(highlight=False)
    if console.is_terminal:
        return console
    return Console(highlight=False, width=WIDTH_WITHOUT_TERMINAL)


def new_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table; the columns in `right` hold numbers."""
    table = Table()
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


def plain(value: object, style: str = "") -> Text:
    """A cell that shows the value as it is: no markup, no control characters of a terminal."""
    text = "" if value is None else str(value)
    return Text("".join(c if c.isprintable() else "?" for c in text), style=style)


def one_line(error: object) -> str:
    """A message on one line."""
    return " ".join(str(error).split())


def say_not_understood(found: Iterable[object]) -> None:
    """What strangers wrote into a topic: how much, and where; on stderr, beside the answer."""
    by_topic: dict[str, list[str]] = {}
    for one in map(str, found):
        by_topic.setdefault(one.partition("[")[0], []).append(one)
    for topic, some in by_topic.items():
        click.echo(f"{topic}: {len(some)} records are not understood:", err=True)
        for one in some[:STRANGERS_SHOWN]:
            click.echo(f"  {plain(SECRETS.hide(one))}", err=True)
        if len(some) > STRANGERS_SHOWN:
            click.echo("  …", err=True)


def ago(at: datetime | None, now: datetime) -> str:
    """How long ago, or how far ahead, roughly; empty where there is no time."""
    if at is None:
        return ""
    passed = now - at
    return f"in {_rough(-passed)}" if passed < timedelta(0) else f"{_rough(passed)} ago"


def _rough(duration: timedelta) -> str:
    seconds = int(duration.total_seconds())
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def print_table(
    console: Any, title: str, rows: Sequence[dict[str, Any]], names: Sequence[str]
) -> None:
    """Rows as a table with a title; nothing where there are none."""
    if not rows:
        return
    table = new_table(*(name.removesuffix("_at").replace("_", " ") for name in names))
    table.title = title
    for row in rows:
        table.add_row(*(plain(shown(row[name])) for name in names))
    console.print(table)


def shown(value: Any) -> str:
    """A value in a cell."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return format_utc(value)
    return json.dumps(value) if isinstance(value, dict) else str(value)


def hidden(value: Any) -> Any:
    """The same without secrets: sources and operators may have written one somewhere."""
    if isinstance(value, str):
        return SECRETS.hide(value)
    if isinstance(value, dict):
        return {key: hidden(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hidden(item) for item in value]
    return value
