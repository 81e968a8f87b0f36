"""The commands of an operator: what runs, where it stands, and what is asked of it."""

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

from verity_sdk.errors import Misconfigured
from verity_sdk.times import format_utc
from verity_stream.cli.connectors import connector_row, show_connectors
from verity_stream.cli.output import quiet_logs
from verity_stream.postgres import pool as database
from verity_stream.postgres.controls import Controls
from verity_stream.postgres.reports import Reports
from verity_stream.records import Checkpoint
from verity_stream.redaction import SECRETS
from verity_stream.settings import (
    ConnectorSpec,
    StreamSettings,
    load_connectors,
    load_settings,
)

T = TypeVar("T")

json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")
connector_argument = click.argument("connector_id", metavar="CONNECTOR")


@click.command()
@click.option(
    "--check", "only_check", is_flag=True, help="Change nothing; exit code 2 if any is missing."
)
def migrate(only_check: bool) -> None:
    """Bring Verity's own tables up to date.

    All that is missing is applied in one transaction, under a lock: safe to repeat, and while
    workers run. Workers do it themselves unless VERITY_MIGRATE=check.
    """
    settings = _settings()

    async def work(pool: Any) -> list[str]:
        if only_check:
            await database.require_migrations(pool)
            return []
        return await database.migrate(pool)

    applied = _run(settings, work)
    for name in applied:
        click.echo(f"applied {name}")
    if not applied:
        click.echo("Nothing is missing.")


@click.command()
@json_option
def connectors(as_json: bool) -> None:
    """Show what every connector is doing.

    Its state, its worker, how far its source is complete, how late its events come (half of them,
    and 99 of 100, at most; backfills do not count), its counts and permission snapshots, and its
    last error.

    Counts are those since the worker took the connector over.
    """
    settings = _settings()
    specs = _specs(settings)
    known = _run(settings, lambda pool: Reports(pool).overview())
    rows = [connector_row(connector_id, specs, known) for connector_id in sorted({*specs, *known})]
    if as_json:
        _echo_json(rows)
    elif rows:
        show_connectors(rows)
    else:
        click.echo(f"{settings.config} lists no connectors.")


@click.command()
@connector_argument
@click.option("--reason", required=True, help="Why; kept in connector_audit.")
def pause(connector_id: str, reason: str) -> None:
    """Stop CONNECTOR until it is resumed.

    Its worker sees it within 2 seconds and finishes the page in hand.
    """
    _set_paused(connector_id, is_paused=True, reason=reason)


@click.command()
@connector_argument
@click.option("--reason", help="Why; kept in connector_audit.")
def resume(connector_id: str, reason: str | None) -> None:
    """Let a paused CONNECTOR go on where it stopped."""
    _set_paused(connector_id, is_paused=False, reason=reason)


@click.command()
@connector_argument
@click.option("--reason", help="Why; kept in connector_audit.")
def snapshot(connector_id: str, reason: str | None) -> None:
    """Ask for a permission snapshot of CONNECTOR.

    It comes beside the regular ones: the worker takes it as soon as the connector runs.
    `verity connectors` shows when it is done.
    """
    settings = _settings()
    _require_known(connector_id, _specs(settings))
    _run(
        settings,
        lambda pool: Controls(pool).request_snapshot(connector_id, who=_who(), reason=reason),
    )
    click.echo(f"{connector_id}: a snapshot is asked for.")


def _set_paused(connector_id: str, *, is_paused: bool, reason: str | None) -> None:
    settings = _settings()
    _require_known(connector_id, _specs(settings))
    has_changed = _run(
        settings,
        lambda pool: Controls(pool).set_paused(
            connector_id, is_paused=is_paused, who=_who(), reason=reason
        ),
    )
    state = "paused" if is_paused else "resumed"
    click.echo(
        f"{connector_id}: {state}." if has_changed else f"{connector_id}: was {state} already."
    )


# What every command starts from.


def _settings() -> StreamSettings:
    quiet_logs()
    settings = load_settings()
    SECRETS.add_settings(settings)
    return settings


def _specs(settings: StreamSettings) -> Mapping[str, ConnectorSpec]:
    SECRETS.add_references(settings.config)
    return {spec.connector_id: spec for spec in load_connectors(settings.config)}


def _require_known(connector_id: str, specs: Mapping[str, ConnectorSpec]) -> None:
    if connector_id not in specs:
        known = ", ".join(sorted(specs)) or "none"
        raise Misconfigured(f"no connector {connector_id!r} is configured; known: {known}")


def _who() -> str:
    """The person at this machine, as far as it can be told; the audit row adds the role."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"  # A container may have a user without a name.
    return f"{user}@{socket.gethostname()}"


def _run(settings: StreamSettings, work: Callable[[Any], Awaitable[T]]) -> T:
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


def _checkpoint_body(checkpoint: Checkpoint | None) -> dict[str, Any] | None:
    if checkpoint is None:
        return None
    return {
        "version": checkpoint.version,
        "epoch": checkpoint.epoch,
        "last_ts": checkpoint.last_ts,
        "cursor": checkpoint.cursor,
        "complete_through": checkpoint.complete_through,
    }


def _echo_json(rows: Sequence[Mapping[str, Any]]) -> None:
    def encode(value: object) -> str:
        if isinstance(value, datetime):
            return format_utc(value)
        raise TypeError(f"{type(value).__name__} in JSON")

    click.echo(json.dumps(rows, indent=2, default=encode))
