"""What all commands share: tables, times, quiet logs, and secrets that stay secret."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import structlog
from rich.console import Console
from rich.table import Table
from rich.text import Text

from verity_stream.settings import StreamSettings, resolve_references

WIDTH_WITHOUT_TERMINAL = 200
SECRET_LENGTH_MIN = 8
"""Shorter values, such as the `verity` of a desk's database, stand in too many other words."""
HIDDEN = "***"


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


class Secrets:
    """Values that no output may contain.

    The errors are written so that they carry none. This is the net below: a driver's next
    version may quote in a message what this one does not.
    """

    def __init__(self) -> None:
        self._values: set[str] = set()

    def add(self, *values: str) -> None:
        """Hide these from now on, and the passwords in those that are addresses."""
        for value in values:
            for part in (value, *_passwords(value)):
                if len(part) >= SECRET_LENGTH_MIN:
                    self._values.add(part)

    def add_settings(self, settings: StreamSettings) -> None:
        """Hide what the environment gave the process to log in with."""
        self.add(settings.database.dsn.get_secret_value())
        if settings.kafka.sasl_password is not None:
            self.add(settings.kafka.sasl_password.get_secret_value())

    def add_references(self, path: Path) -> None:
        """Hide what `env:` and `file:` in the file of connectors refer to."""
        try:
            document = tomllib.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            return  # The command says so itself.
        for text in _strings(document):
            # The one place that knows what a reference is; faults are its callers' business.
            value = resolve_references(text, "", [])
            if value != text:
                self.add(value)

    def hide(self, text: str) -> str:
        """The text without them."""
        for value in sorted(self._values, key=len, reverse=True):
            text = text.replace(value, HIDDEN)
        return text


SECRETS = Secrets()
"""Of this process: a command line runs one command."""


def _passwords(value: str) -> Iterator[str]:
    try:
        password = urlsplit(value).password
    except ValueError:
        return
    if password:
        yield password
        yield unquote(password)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
