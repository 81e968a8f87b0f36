"""From what is known of connectors to rows, and from rows to tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from rich.text import Text

from verity_stream.cli.output import ago, new_console, new_table, plain
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
