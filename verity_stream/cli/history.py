"""What happened: one connector in detail, gaps, dead letters, and what is complete."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from verity_common.kafka import KafkaSettings
from verity_sdk.errors import Malformed, Misconfigured
from verity_sdk.times import format_utc, parse_utc
from verity_stream.cli.connectors import connector_row, metric_lines, shown_state
from verity_stream.cli.operate import (
    _checkpoint_body,
    _echo_json,
    _run,
    _settings,
    _specs,
    connector_argument,
    json_option,
)
from verity_stream.cli.output import new_console, new_table, plain, say_not_understood
from verity_stream.cli.steer import Time
from verity_stream.kafka.clients import partition_counts
from verity_stream.kafka.committed import CommittedReader
from verity_stream.postgres.checkpoints import PostgresCheckpoints
from verity_stream.postgres.pool import database_errors
from verity_stream.postgres.reports import Reports
from verity_stream.records import (
    GAPS_TOPIC,
    DeadLetter,
    NotUnderstood,
    dead_topic,
    decode_dead_part,
    decode_gap,
    header,
)
from verity_stream.redaction import SECRETS
from verity_stream.settings import configured_platforms
from verity_stream.verify.completeness import Completeness, is_complete

RECENT = 10
EXIT_CODES = {
    Completeness.COMPLETE: 0,
    Completeness.NOT_YET: 3,
    Completeness.INCOMPLETE: 4,
    Completeness.NOT_COLLECTED: 5,
}

platform_option = click.option("--platform", help="Only of this platform.")
since_option = click.option("--since", type=Time(), help="Only what was recorded from then on.")


@click.command()
@connector_argument
@json_option
def connector(connector_id: str, as_json: bool) -> None:
    """Show CONNECTOR in detail.

    Its state and position, its last errors, its recent gaps, and its audit trail: who paused,
    rewound or edited it, when and why.
    """
    settings = _settings()
    specs = _specs(settings)

    async def work(pool: Any) -> dict[str, Any]:
        known = await Reports(pool).overview()
        stored = await PostgresCheckpoints(pool).load(connector_id)
        if connector_id not in specs and connector_id not in known and stored is None:
            names = ", ".join(sorted({*specs, *known})) or "none"
            raise Misconfigured(f"no connector {connector_id!r} is known; known: {names}")
        recorded, strange = await _read_gaps(settings.kafka)
        say_not_understood(strange)
        return {
            **connector_row(connector_id, specs, known),
            "checkpoint": _checkpoint_body(stored),
            "errors": await _errors(pool, connector_id),
            "gaps": [gap for gap in recorded if gap["connector_id"] == connector_id][-RECENT:],
            "audit": await _audit(pool, connector_id),
        }

    body = _hidden(_run(settings, work))
    if as_json:
        _echo_json([body])
    else:
        _show_connector(body)


@click.command()
@platform_option
@since_option
@click.option("--connector", "connector_id", help="Only of this connector.")
@json_option
def gaps(
    platform: str | None, since: datetime | None, connector_id: str | None, as_json: bool
) -> None:
    """List what is known to be missing, as the connectors recorded it."""
    settings = _settings()
    recorded, strange = asyncio.run(_read_gaps(settings.kafka))
    say_not_understood(strange)
    found = [
        gap
        for gap in recorded
        if (platform is None or gap["platform"] == platform)
        and (connector_id is None or gap["connector_id"] == connector_id)
        and (since is None or parse_utc(gap["recorded_at"]) >= since)
    ]
    found = _hidden(found)
    if as_json:
        _echo_json(found)
    elif found:
        _show_gaps(found)
    else:
        click.echo("No gaps are recorded.")


@click.group()
def dead() -> None:
    """Look at dead letters: what could not be published as an event."""


@dead.command("list")
@platform_option
@since_option
@click.option("--connector", "connector_id", help="Only of this connector.")
@json_option
def dead_list(
    platform: str | None, since: datetime | None, connector_id: str | None, as_json: bool
) -> None:
    """List dead letters: whose, when, why, and how much."""
    settings = _settings()
    letters, strange = asyncio.run(
        _read_letters(settings.kafka, platform, connector_id=connector_id)
    )
    say_not_understood(strange)
    rows = [letter.row for letter in letters if since is None or letter.fetched_at >= since]
    rows = _hidden(rows)
    if as_json:
        _echo_json(rows)
    elif rows:
        table = new_table(
            *("dead letter", "connector", "fetched at", "bytes", "reference", "reason"),
            right=("bytes",),
        )
        for row in rows:
            table.add_row(
                plain(row["dead_id"][:16], "bold"),
                plain(row["connector_id"]),
                plain(row["fetched_at"]),
                plain(row["size_bytes"] if row["is_whole"] else f"{row['size_bytes']}, not whole"),
                plain(row["reference"]),
                plain(row["reason"]),
            )
        new_console().print(table)
    else:
        click.echo("There are no dead letters.")


@dead.command("show")
@click.argument("dead_id", metavar="DEAD_LETTER")
@platform_option
@click.option("--raw", "is_raw", is_flag=True, help="Write the bytes as they are, nothing else.")
@json_option
def dead_show(dead_id: str, platform: str | None, is_raw: bool, as_json: bool) -> None:
    """Show one dead letter whole; the beginning of its id is enough where it is unique."""
    settings = _settings()
    letters, _ = asyncio.run(_read_letters(settings.kafka, platform, dead_id=dead_id))
    names = {letter.dead_id for letter in letters}
    if len(names) != 1:
        what = "no dead letter begins so" if not names else f"{len(names)} dead letters begin so"
        raise Misconfigured(f"{dead_id}: {what}")
    letter = letters[-1]
    if is_raw:
        click.get_binary_stream("stdout").write(letter.data)
        return
    try:
        shown = {"encoding": "utf-8", "data": letter.data.decode()}
    except UnicodeDecodeError:
        shown = {"encoding": "base64", "data": base64.b64encode(letter.data).decode()}
    body = _hidden({**letter.row, **shown})
    if as_json:
        _echo_json([body])
        return
    console = new_console()
    for name, value in body.items():
        console.print(Text.assemble(plain(f"{name}: ", "bold"), plain(value)), soft_wrap=True)


@click.command()
@click.option("--platform", required=True, help="Of this platform.")
@click.option("--at", "until", type=Time(), required=True, help="The end of the stretch of time.")
@click.option("--from", "since", type=Time(), help="Its beginning; an hour before its end.")
@click.option(
    "--connector",
    "connector_ids",
    multiple=True,
    help="Who has to be complete; all that are configured or ever published if not given.",
)
@json_option
@click.pass_context
def complete(
    context: click.Context,
    platform: str,
    until: datetime,
    since: datetime | None,
    connector_ids: Sequence[str],
    as_json: bool,
) -> None:
    """Say whether all events of a platform up to a time are in Kafka.

    The topics answer: the connectors' checkpoints say how far they are complete and from when on
    they collect, the gaps what is missing for good. Of a connector that can't tell how far it is
    complete the answer is never more than "not yet". One that is configured and has not published
    yet is waited for; no secret of verity.toml is needed to know of it.

    Exit codes: 0 complete, 3 not yet, 4 incomplete because of gaps, 5 not collected: the stretch
    begins before a connector's beginning, 1 Kafka can't be reached.
    """
    settings = _settings()
    configured = () if connector_ids else _configured(settings.config, platform)
    since = until - timedelta(hours=1) if since is None else since
    if since > until:
        raise Misconfigured("--from is after --at")
    answer = asyncio.run(
        is_complete(settings.kafka, platform, since, until, connector_ids or None, configured)
    )
    body = {
        "platform": platform,
        "from": since,
        "at": until,
        "completeness": str(answer.completeness),
        "complete_through": answer.complete_through,
        "waiting_for": list(answer.waiting_for),
        "not_collected": dict(answer.not_collected),
        "gaps": _hidden(list(answer.gaps)),
    }
    say_not_understood(answer.not_understood)
    if as_json:
        _echo_json([body])
    else:
        click.echo(
            f"{platform}, {format_utc(since)} to {format_utc(until)}: {body['completeness']}"
        )
        if answer.complete_through is not None:
            click.echo(f"complete through {format_utc(answer.complete_through)}")
        for name, began_at in answer.not_collected.items():
            began = "an unknown time" if began_at is None else format_utc(began_at)
            click.echo(f"collected from {began} on: {name}")
        for name in answer.waiting_for:
            click.echo(f"not yet: {name}")
        if answer.gaps:
            _show_gaps(body["gaps"])
    context.exit(EXIT_CODES.get(answer.completeness, 1))


def _configured(path: Path, platform: str) -> list[str]:
    """The platform's connectors in verity.toml; without a file an empty list, which is said."""
    if not path.exists():
        click.echo(f"{path} is not here: only connectors that have published count", err=True)
        return []
    return [name for name, of in configured_platforms(path).items() if of == platform]


# Reading.


async def _read_gaps(kafka: KafkaSettings) -> tuple[list[dict[str, Any]], list[NotUnderstood]]:
    """All gaps, the latest last, and the records that are not gaps."""
    found: list[dict[str, Any]] = []
    strange: list[NotUnderstood] = []
    async for record in CommittedReader(kafka, waits_for_open=False).stream(GAPS_TOPIC):
        try:
            found.append(decode_gap(record))
        except Malformed as error:
            strange.append(NotUnderstood.of(record, error))
    return sorted(found, key=lambda gap: str(gap["recorded_at"])), strange


class _Letter:
    """A dead letter, put together from its parts and their records."""

    def __init__(self, dead_id: str, parts: Iterable[tuple[DeadLetter, Any]]) -> None:
        self.dead_id = dead_id
        ordered = sorted(parts, key=lambda pair: pair[0].part)
        self._first, self._record = ordered[0]
        self._count = len(ordered)
        self.data = b"".join(part.data for part, _ in ordered)

    @property
    def fetched_at(self) -> datetime:
        """When it was rejected."""
        return self._first.fetched_at

    @property
    def is_whole(self) -> bool:
        """Whether every part is there, and none was changed."""
        digest = hashlib.sha256(self.data).hexdigest()
        return (self._count, digest) == (self._first.parts, self._first.sha256)

    @property
    def row(self) -> dict[str, Any]:
        """What it is, without its data."""
        first = self._first
        return {
            "dead_id": self.dead_id,
            "connector_id": first.connector_id,
            "platform": first.platform,
            "reason": first.reason,
            "reference": first.reference,
            "fetched_at": format_utc(first.fetched_at),
            "size_bytes": first.size_bytes,
            "is_whole": self.is_whole,
            "topic": self._record.topic,
            "partition": self._record.partition,
            "offset": self._record.offset,
        }


async def _read_letters(
    kafka: KafkaSettings,
    platform: str | None,
    *,
    dead_id: str = "",
    connector_id: str | None = None,
) -> tuple[list[_Letter], list[NotUnderstood]]:
    """The dead letters whose id begins so, the latest last, and the records that are not any."""
    topics = [dead_topic(platform or "")]
    if platform is None:
        prefix = dead_topic("")
        topics = list(await partition_counts(kafka, lambda name: name.startswith(prefix)))
    strange: list[NotUnderstood] = []
    parts: dict[tuple[str, datetime], dict[int, tuple[DeadLetter, Any]]] = defaultdict(dict)
    async for record in CommittedReader(kafka, waits_for_open=False).stream(*topics):
        try:
            identity, part = decode_dead_part(record)
        except Malformed as error:
            strange.append(NotUnderstood.of(record, error))
            continue
        is_meant = connector_id is None or header(record, "connector_id") == connector_id
        if identity.startswith(dead_id) and is_meant:
            # After a rewind the same letter may be there twice.
            parts[identity, part.fetched_at][part.part] = (part, record)
    letters = [_Letter(identity, found.values()) for (identity, _), found in parts.items()]
    return sorted(letters, key=lambda letter: (letter.fetched_at, letter.dead_id)), strange


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


def _hidden(value: Any) -> Any:
    """The same without secrets: sources and operators may have written one somewhere."""
    if isinstance(value, str):
        return SECRETS.hide(value)
    if isinstance(value, dict):
        return {key: _hidden(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_hidden(item) for item in value]
    return value


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
            console.print(Text.assemble(plain(f"{name:<17}", "bold"), plain(_shown(value))))
    _print_table(console, "Last errors", body["errors"], ("first_at", "last_at", "state", "error"))
    of_gaps = ("recorded_at", "from_at", "to_at", "scope", "reason")
    _print_table(console, "Recent gaps", body["gaps"], of_gaps)
    of_audit = ("at", "who", "action", "reason", "before", "after")
    _print_table(console, "Audit trail", body["audit"], of_audit)


def _print_table(
    console: Any, title: str, rows: Sequence[dict[str, Any]], names: Sequence[str]
) -> None:
    if not rows:
        return
    table = new_table(*(name.removesuffix("_at").replace("_", " ") for name in names))
    table.title = title
    for row in rows:
        table.add_row(*(plain(_shown(row[name])) for name in names))
    console.print(table)


def _show_gaps(found: Sequence[dict[str, Any]]) -> None:
    names = ("platform", "connector_id", "from_at", "to_at", "scope", "reason", "recorded_at")
    _print_table(new_console(), "Gaps", found, names)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return format_utc(value)
    return json.dumps(value) if isinstance(value, dict) else str(value)
