"""Secrets that stay secret, the net below errors that carry none; and what a terminal can show."""

from __future__ import annotations

import io
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from verity_sdk.postgres_dsn import secrets_in
from verity_stream.settings import StreamSettings, resolve_secrets

SECRET_LENGTH_MIN = 8
"""Shorter values, such as the `verity` of a desk's database, stand in too many other words."""
HIDDEN = "***"


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
            document = tomllib.loads(path.read_text("utf-8-sig"))
        except (OSError, ValueError):
            return  # The command says so itself.
        for text in _strings(document):
            # The one place that knows what a reference is; faults are its callers' business.
            value = resolve_secrets(text, "", [])
            if value != text:
                self.add(value)

    def hide(self, text: str) -> str:
        """The text without them."""
        for value in sorted(self._values, key=len, reverse=True):
            text = text.replace(value, HIDDEN)
        return text


SECRETS = Secrets()
"""Of this process: a command line runs one command."""


def escape_what_can_not_be_shown() -> None:
    """Let a terminal that is not UTF-8 get escapes where it lacks a character, and no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _passwords(value: str) -> Iterator[str]:
    yield from secrets_in(value)
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
