"""The commands of an operator: what runs, where it stands, and what is asked of it."""

from __future__ import annotations

import asyncio
import getpass
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, TypeVar

import click
from rich.text import Text

from verity_sdk.errors import Misconfigured
from verity_sdk.times import format_utc
from verity_stream.cli.output import ago, new_console, new_table, plain, quiet_logs
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
from verity_stream.status import utc_now

T = TypeVar("T")

SILENCE = timedelta(seconds=45)
"""A worker that lives reports every 10 s; after this it is taken for dead."""
STATE_STYLES = {
    "caught_up": "green",
    "running": "green",
    "backing_off": "yellow",
    "paused": "yellow",
    "blocked": "bold red",
}

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
    rows = [_connector_row(connector_id, specs, known) for connector_id in sorted({*specs, *known})]
    if as_json:
        _echo_json(rows)
    elif rows:
        _show_connectors(rows)
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


# From what is known to rows, and from rows to tables.


def _connector_row(
    connector_id: str,
    specs: Mapping[str, ConnectorSpec],
    known: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    spec, found = specs.get(connector_id), known.get(connector_id, {})
    counts = ("event_count", "repeat_count", "dead_count", "gap_count")
    times = ("state_since", "last_success_at", "last_event_at", "next_try_at", "reported_at")
    known_of = (*times, "complete_through", "lateness_p50_seconds", "lateness_p99_seconds")
    error = found.get("last_error")
    return {
        "connector_id": connector_id,
        "type": None if spec is None else spec.options.type,
        "platform": found.get("platform") if spec is None else spec.platform,
        "is_configured": spec is not None,
        "is_enabled": spec is not None and spec.options.enabled,
        "is_paused": bool(found.get("paused")),
        "state": found.get("state"),
        "worker": found.get("worker"),
        **{name: found.get(name) for name in known_of},
        **{name: found.get(name) or 0 for name in counts},
        "last_error": None if error is None else SECRETS.hide(error),
        "warning": found.get("warning"),
        "snapshot_requested_at": found.get("snapshot_requested_at"),
        "snapshot": {
            "snapshot_id": found["snapshot_id"],
            "started_at": found["snapshot_started_at"],
            "ended_at": found["snapshot_ended_at"],
            "is_complete": found["snapshot_is_complete"],
            "grant_count": found["snapshot_grant_count"],
        }
        if found.get("snapshot_id")
        else None,
    }


def shown_state(row: Mapping[str, Any]) -> str:
    """The state for a person: what the worker reported, and what it may not have seen yet."""
    state: str = row["state"] or "never ran"
    if not row["is_configured"]:
        return f"not configured (was {state})"
    if not row["is_enabled"]:
        return f"disabled (was {state})" if row["state"] else "disabled"
    reported_at = row["reported_at"]
    if reported_at is not None and state != "stopped" and utc_now() - reported_at > SILENCE:
        return f"{state} (worker silent)"
    if row["is_paused"] and state != "paused":
        return f"{state} (pause asked)"
    return state


def _show_connectors(rows: Sequence[Mapping[str, Any]]) -> None:
    now = utc_now()
    numbers = ("events", "repeats", "dead", "gaps")
    table = new_table(
        *("connector", "type", "state", "since", "worker", "last success", "last event"),
        *("complete through", "late by"),
        *numbers,
        *("next try", "permissions"),
        right=numbers,
    )
    for row in rows:
        snapshot = row["snapshot"]
        permissions = "" if row["snapshot_requested_at"] is None else "asked for"
        if snapshot is not None:
            complete = "" if snapshot["is_complete"] else ", partial"
            permissions = (
                f"{snapshot['grant_count']} grants{complete}, {ago(snapshot['started_at'], now)}"
            )
            asked_at = row["snapshot_requested_at"]
            if asked_at is not None and asked_at > snapshot["started_at"]:
                permissions += "; asked for"
        table.add_row(
            plain(row["connector_id"], "bold"),
            plain(row["type"] or row["platform"]),
            plain(shown_state(row), STATE_STYLES.get(row["state"] or "", "")),
            plain(ago(row["state_since"], now)),
            plain(row["worker"]),
            plain(ago(row["last_success_at"], now)),
            plain(ago(row["last_event_at"], now)),
            plain(ago(row["complete_through"], now)),
            plain(_lateness(row)),
            *(
                plain(row[name])
                for name in ("event_count", "repeat_count", "dead_count", "gap_count")
            ),
            plain(ago(row["next_try_at"], now)),
            plain(permissions),
        )
    console = new_console()
    console.print(table)
    for row in rows:
        for said in filter(None, (row["last_error"], row["warning"])):
            console.print(Text.assemble(plain(f"{row['connector_id']}: ", "bold"), plain(said)))


def _lateness(row: Mapping[str, Any]) -> str:
    """How late half of the events come, and 99 of 100: at most, as the histogram's bounds go."""
    quantiles = row["lateness_p50_seconds"], row["lateness_p99_seconds"]
    if None in quantiles:
        return ""
    return " / ".join(str(timedelta(seconds=seconds)) for seconds in quantiles)


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
