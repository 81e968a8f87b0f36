"""What commands share: settings, a pool for one piece of work, options, JSON."""

from __future__ import annotations

import asyncio
import getpass
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, TypeVar

import click

from verity_sdk.errors import Malformed, Misconfigured
from verity_sdk.times import format_utc, parse_utc
from verity_stream.cli.output import quiet_logs
from verity_stream.postgres import pool as database
from verity_stream.records import Checkpoint
from verity_stream.redaction import SECRETS
from verity_stream.settings import ConnectorSpec, StreamSettings, load_connectors, load_settings

T = TypeVar("T")

json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")
connector_argument = click.argument("connector_id", metavar="CONNECTOR")


# What every command starts from.


def read_settings() -> StreamSettings:
    """The settings of the environment, quiet logs and hidden secrets."""
    quiet_logs()
    settings = load_settings()
    SECRETS.add_settings(settings)
    return settings


def read_specs(settings: StreamSettings) -> Mapping[str, ConnectorSpec]:
    """The connectors of `verity.toml`, by id."""
    SECRETS.add_references(settings.config)
    return {spec.connector_id: spec for spec in load_connectors(settings.config)}


def require_known(connector_id: str, specs: Mapping[str, ConnectorSpec]) -> None:
    """Raise Misconfigured, with the ids that are known, unless the connector is configured."""
    if connector_id not in specs:
        known = ", ".join(sorted(specs)) or "none"
        raise Misconfigured(f"no connector {connector_id!r} is configured; known: {known}")


def who() -> str:
    """The person at this machine, as far as it can be told; the audit row adds the role."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"  # A container may have a user without a name.
    return f"{user}@{socket.gethostname()}"


def run(settings: StreamSettings, work: Callable[[Any], Awaitable[T]]) -> T:
    async def connected() -> T:
        async with _pool(settings) as pool:
            return await work(pool)

    return asyncio.run(connected())


@asynccontextmanager
async def _pool(settings: StreamSettings) -> AsyncIterator[Any]:
    pool = await database.create_pool(settings.database)
    try:
        yield pool
    finally:
        await database.close_pool(pool)


def checkpoint_body(checkpoint: Checkpoint | None) -> dict[str, Any] | None:
    """A checkpoint as commands show it."""
    if checkpoint is None:
        return None
    return {
        "version": checkpoint.version,
        "epoch": checkpoint.epoch,
        "last_ts": checkpoint.last_ts,
        "cursor": checkpoint.cursor,
        "complete_through": checkpoint.complete_through,
    }


def echo_json(rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSON; times as RFC 3339 has them."""

    def encode(value: object) -> str:
        if isinstance(value, datetime):
            return format_utc(value)
        raise TypeError(f"{type(value).__name__} in JSON")

    click.echo(json.dumps(rows, indent=2, default=encode))


platform_option = click.option("--platform", help="Only of this platform.")


class Time(click.ParamType):
    """A time as RFC 3339 has it, UTC where no offset is said."""

    name = "time"

    def convert(self, value: Any, parameter: Any, context: Any) -> Any:
        """Aware UTC."""
        if not isinstance(value, str):
            return value
        try:
            return parse_utc(value)
        except Malformed as error:
            self.fail(str(error), parameter, context)


since_option = click.option("--since", type=Time(), help="Only what was recorded from then on.")


class JsonObject(click.ParamType):
    """A JSON object."""

    name = "json"

    def convert(self, value: Any, parameter: Any, context: Any) -> Any:
        """A dict."""
        if not isinstance(value, str):
            return value
        try:
            found = json.loads(value)
        except ValueError as error:
            self.fail(f"not JSON: {error}", parameter, context)
        if not isinstance(found, dict):
            self.fail("not a JSON object", parameter, context)
        return found
