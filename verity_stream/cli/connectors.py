"""From what is known of connectors to rows, and from rows to tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import click
from rich.text import Text

from verity_sdk.errors import Misconfigured
from verity_stream.cli.context import (
    checkpoint_body,
    connector_argument,
    echo_json,
    json_option,
    read_settings,
    read_specs,
    run,
)
from verity_stream.cli.gaps import read_gaps
from verity_stream.cli.output import (
    ago,
    hidden,
    new_console,
    new_table,
    plain,
    print_table,
    say_not_understood,
    shown,
)
from verity_stream.postgres.checkpoints import PostgresCheckpoints
from verity_stream.postgres.errors import database_errors
from verity_stream.postgres.reports import Reports
from verity_stream.redaction import SECRETS
from verity_stream.settings import ConnectorSpec
from verity_stream.status import METRICS, Kind, Status, columns_of, utc_now

SHOWN = {name: metric for name, metric in METRICS.items() if metric.title is not None}
"""What the tables of connectors have a column for, by the field of a status."""

SILENCE = timedelta(seconds=45)
"""A worker that lives reports every 10 s; after this it is shown as silent."""
STATE_STYLES = {
    "caught_up": "green",
    "running": "green",
    "backing_off": "yellow",
    "paused": "yellow",
    "blocked": "bold red",
}


def connector_row(
    connector_id: str,
    specs: Mapping[str, ConnectorSpec],
    known: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """A connector as `--json` has it, with what is configured and what the database knows."""
    spec, found = specs.get(connector_id), known.get(connector_id, {})
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
        **{name: found.get(name) for name in ("state_since", "next_try_at", "reported_at")},
        **{
            column: (found.get(column) or 0) if metric.kind is Kind.COUNTER else found.get(column)
            for name, metric in SHOWN.items()
            for column in columns_of(name)
        },
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


def show_connectors(rows: Sequence[Mapping[str, Any]]) -> None:
    """All connectors as a table, and what their last errors and warnings say."""
    now = utc_now()
    table = new_table(
        *("connector", "type", "state", "since", "worker"),
        *(str(metric.title) for metric in SHOWN.values()),
        *("next try", "permissions"),
        right=tuple(str(one.title) for one in SHOWN.values() if one.kind is Kind.COUNTER),
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
            *(plain(_in_a_cell(name, row, now)) for name in SHOWN),
            plain(ago(row["next_try_at"], now)),
            plain(permissions),
        )
    console = new_console()
    console.print(table)
    for row in rows:
        for said in filter(None, (row["last_error"], row["warning"])):
            console.print(Text.assemble(plain(f"{row['connector_id']}: ", "bold"), plain(said)))


def _in_a_cell(name: str, row: Mapping[str, Any], now: datetime) -> object:
    """A metric of a row: of a histogram its quantiles, at most, as its bounds go."""
    values = [row[column] for column in columns_of(name)]
    if SHOWN[name].kind is Kind.AGE:
        return ago(values[0], now)
    if SHOWN[name].kind is Kind.HISTOGRAM:
        return "" if None in values else " / ".join(str(timedelta(seconds=one)) for one in values)
    return values[0]


def metric_lines(row: Mapping[str, Any]) -> dict[str, object]:
    """The metrics of a row, line by line, by what they are called."""
    lines: dict[str, object] = {}
    for name, metric in SHOWN.items():
        for column in columns_of(name):
            value = row[column]
            if metric.kind is not Kind.HISTOGRAM:
                lines[str(metric.title)] = value
            elif value is not None:
                # A bound; the last also stands for more.
                is_last = value == getattr(Status("", ""), name).bounds[-1]
                quantile = column.removeprefix(f"{name}_").removesuffix("_seconds")
                lines[f"{metric.title}, {quantile}"] = (
                    f"{value:g} s or more" if is_last else f"at most {value:g} s"
                )
    return lines


@click.command()
@json_option
def connectors(as_json: bool) -> None:
    """Show what every connector is doing.

    Its state, its worker, how far its source is complete, how late its events come (half of them,
    and 99 of 100, at most; backfills do not count), its counts and permission snapshots, and its
    last error.

    Counts are those since the worker took the connector over.
    """
    settings = read_settings()
    specs = read_specs(settings)
    known = run(settings, lambda pool: Reports(pool).overview())
    rows = [connector_row(connector_id, specs, known) for connector_id in sorted({*specs, *known})]
    if as_json:
        echo_json(rows)
    elif rows:
        show_connectors(rows)
    else:
        click.echo(f"{settings.config} lists no connectors.")


RECENT = 10


@click.command()
@connector_argument
@json_option
def connector(connector_id: str, as_json: bool) -> None:
    """Show CONNECTOR in detail.

    Its state and position, its last errors, its recent gaps, and its audit trail: who paused,
    rewound or edited it, when and why.
    """
    settings = read_settings()
    specs = read_specs(settings)

    async def work(pool: Any) -> dict[str, Any]:
        known = await Reports(pool).overview()
        stored = await PostgresCheckpoints(pool).load(connector_id)
        if connector_id not in specs and connector_id not in known and stored is None:
            names = ", ".join(sorted({*specs, *known})) or "none"
            raise Misconfigured(f"no connector {connector_id!r} is known; known: {names}")
        recorded, strange = await read_gaps(settings.kafka)
        say_not_understood(strange)
        return {
            **connector_row(connector_id, specs, known),
            "checkpoint": checkpoint_body(stored),
            "errors": await _errors(pool, connector_id),
            "gaps": [gap for gap in recorded if gap["connector_id"] == connector_id][-RECENT:],
            "audit": await _audit(pool, connector_id),
        }

    body = hidden(run(settings, work))
    if as_json:
        echo_json([body])
    else:
        _show_connector(body)


async def _errors(pool: Any, connector_id: str) -> list[dict[str, Any]]:
    async with database_errors("reading the errors"):
        rows = await pool.fetch(
            """
            SELECT first_at, last_at, worker, state, error FROM connector_errors
            WHERE connector_id = $1 ORDER BY id DESC LIMIT $2
            """,
            connector_id,
            RECENT,
        )
    return [dict(row) for row in reversed(rows)]


async def _audit(pool: Any, connector_id: str) -> list[dict[str, Any]]:
    async with database_errors("reading the audit trail"):
        rows = await pool.fetch(
            """
            SELECT at, who, action, reason, before, after FROM connector_audit
            WHERE connector_id = $1 ORDER BY id DESC LIMIT $2
            """,
            connector_id,
            RECENT,
        )
    return [dict(row) for row in reversed(rows)]


# Showing.


def _show_connector(body: dict[str, Any]) -> None:
    console = new_console()
    checkpoint = body["checkpoint"] or {}
    lines = {
        "connector": body["connector_id"],
        "type": body["type"] or body["platform"],
        "state": shown_state(body),
        "since": body["state_since"],
        "worker": body["worker"],
        "next try": body["next_try_at"],
        "version": checkpoint.get("version"),
        "watermark": checkpoint.get("last_ts"),
        "cursor": checkpoint.get("cursor") and json.dumps(checkpoint["cursor"]),
        **metric_lines(body),
        "error": body["last_error"],
    }
    for name, value in lines.items():
        if value is not None:
            console.print(Text.assemble(plain(f"{name:<17}", "bold"), plain(shown(value))))
    print_table(console, "Last errors", body["errors"], ("first_at", "last_at", "state", "error"))
    of_gaps = ("recorded_at", "from_at", "to_at", "scope", "reason")
    print_table(console, "Recent gaps", body["gaps"], of_gaps)
    of_audit = ("at", "who", "action", "reason", "before", "after")
    print_table(console, "Audit trail", body["audit"], of_audit)
