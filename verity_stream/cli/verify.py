"""`verity checkpoints` and `verity verify`: do the views agree, and do the topics prove it?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from verity_sdk.errors import Malformed
from verity_sdk.times import format_utc
from verity_stream.cli.context import checkpoint_body, echo_json, json_option, read_settings, run
from verity_stream.cli.output import new_console, new_table, plain
from verity_stream.records import Checkpoint
from verity_stream.redaction import SECRETS
from verity_stream.verify.verification import Report
from verity_stream.verify.verification import verify as verify_views
from verity_stream.verify.views import Verdict

DIVERGED = 1
STYLES = {
    Verdict.EQUAL: "green",
    Verdict.IN_FLIGHT: "green",
    Verdict.REPAIRED: "yellow",
    Verdict.DIVERGED: "bold red",
}


@click.command()
@click.option("--verify", "is_verified", is_flag=True, help="As `verity verify`: a second look.")
@click.option("--deep", "is_deep", is_flag=True, help="With --verify: read all events, too.")
@json_option
@click.pass_context
def checkpoints(context: click.Context, is_verified: bool, is_deep: bool, as_json: bool) -> None:
    """Show where each connector stands in Postgres, in Kafka and in the workers' table.

    It says of them what `verity verify` says, after one look: a connector that is running may have
    a `page in flight`, and whether that stands still only a second look can tell. After a crash
    the next start brings Postgres up.
    """
    if is_verified or is_deep:
        context.invoke(
            verify, connector_ids=(), is_deep=is_deep, settle_seconds=2.0, as_json=as_json
        )
        return
    settings = read_settings()
    reports = run(settings, lambda pool: verify_views(settings, pool, settle_seconds=None))
    if as_json:
        # `relation` is what it was called before `verify` said it.
        echo_json([{**report_row(one), "relation": str(one.verdict)} for one in reports])
    elif reports:
        _show_positions(reports)
    else:
        click.echo("There are no checkpoints yet.")


@click.command()
@click.argument("connector_ids", metavar="[CONNECTOR]...", nargs=-1)
@click.option(
    "--deep", "is_deep", is_flag=True, help="Read all events, too, and prove that none repeats."
)
@click.option(
    "--settle",
    "settle_seconds",
    type=click.FloatRange(0, 600),
    default=2.0,
    show_default=True,
    help="Seconds before a second look where views differ.",
)
@json_option
@click.pass_context
def verify(
    context: click.Context,
    connector_ids: Sequence[str],
    is_deep: bool,
    settle_seconds: float,
    as_json: bool,
) -> None:
    """Compare the checkpoints in Postgres, the topic and the workers' table.

    Each connector is `equal`, has a `page in flight`, is `repaired at next start`, or has
    `diverged`: then nothing that Verity does explains it.

    With --deep the topics prove it: no event id repeats, except where an operator asked for a
    replay; every event stands in a page; every page has as many events as its checkpoint says.
    The ids of all events are held in memory, about 100 bytes each.

    Exit codes: 0 fine, 1 something diverged, or a server can't be reached.
    """
    settings = read_settings()
    reports = run(
        settings,
        lambda pool: verify_views(
            settings, pool, connector_ids, is_deep=is_deep, settle_seconds=settle_seconds
        ),
    )
    if as_json:
        echo_json([report_row(report) for report in reports])
    elif reports:
        _show(reports)
    else:
        click.echo("There are no checkpoints yet.")
    if any(report.verdict is Verdict.DIVERGED for report in reports):
        context.exit(DIVERGED)


def report_row(report: Report) -> dict[str, Any]:
    """One connector as JSON has it."""
    views, proof = report.views, report.proof
    return {
        "connector_id": views.connector_id,
        "verdict": str(report.verdict),
        "reasons": [SECRETS.hide(reason) for reason in report.reasons],
        "postgres": checkpoint_body(views.after),
        "kafka": _view_body(views.topic),
        "table": _view_body(views.table),
        "deep": None
        if proof is None
        else {
            "event_count": proof.event_count,
            "page_count": proof.page_count,
            "from_version": proof.from_version,
            "replayed_count": proof.replayed_count,
            "faults": list(proof.faults),
            "notes": list(proof.notes),
        },
    }


def _view_body(view: Checkpoint | Malformed | None) -> dict[str, Any] | None:
    return {"error": str(view)} if isinstance(view, Malformed) else checkpoint_body(view)


def _show_positions(reports: Sequence[Report]) -> None:
    versions = ("version, Postgres", "version, Kafka", "version, table")
    table = new_table(
        *("connector", "is", *versions, "last_ts, Postgres", "last_ts, Kafka", "cursor, Kafka"),
        right=versions,
    )
    for report in reports:
        row = report_row(report)
        views = [row[name] or {} for name in ("postgres", "kafka", "table")]
        last_ts = [view.get("last_ts") for view in views[:2]]
        cursor = views[1].get("cursor")
        table.add_row(
            plain(row["connector_id"], "bold"),
            plain(report.verdict, STYLES[report.verdict]),
            *(plain("?" if "error" in view else view.get("version")) for view in views),
            *(plain(None if at is None else format_utc(at)) for at in last_ts),
            plain(None if cursor is None else json.dumps(cursor)),
        )
    console = new_console()
    console.print(table)
    for report in reports:
        _say(console, report, [(STYLES[report.verdict], reason) for reason in report.reasons])


def _show(reports: Sequence[Report]) -> None:
    numbers = ("Postgres", "topic", "table")
    deep = ("events", "pages proven", "from version", "replayed")
    is_deep = any(report.proof is not None for report in reports)
    table = new_table("connector", "is", *numbers, *(deep if is_deep else ()), right=numbers + deep)
    for report in reports:
        views, proof = report.views, report.proof
        cells = [
            plain(views.connector_id, "bold"),
            plain(report.verdict, STYLES[report.verdict]),
            plain(None if views.after is None else views.after.version),
            *(
                plain(one.version if isinstance(one, Checkpoint) else one and "?")
                for one in (views.topic, views.table)
            ),
        ]
        if is_deep:
            cells += (
                [plain("")] * len(deep)
                if proof is None
                else [
                    plain(proof.event_count),
                    plain(proof.page_count),
                    plain(proof.from_version),
                    plain(proof.replayed_count),
                ]
            )
        table.add_row(*cells)
    console = new_console()
    console.print(table)
    for report in reports:
        style = STYLES[report.verdict]
        lines = [(style, reason) for reason in report.reasons]
        if report.verdict is Verdict.DIVERGED:
            for place, view in (
                ("Postgres", checkpoint_body(report.views.after)),
                ("topic", _view_body(report.views.topic)),
                ("table", _view_body(report.views.table)),
            ):
                lines.append(("", f"{place}: {json.dumps(view, default=str)}"))
        if report.proof is not None:
            lines += [("", f"note: {note}") for note in report.proof.notes]
        _say(console, report, lines)


def _say(console: Console, report: Report, lines: Sequence[tuple[str, str]]) -> None:
    name = plain(f"{report.views.connector_id}: ", "bold")
    for style, line in lines:
        console.print(Text.assemble(name, plain(SECRETS.hide(line), style)))
