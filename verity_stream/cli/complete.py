"""`verity complete`: whether a stretch of time is complete."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import click

from verity_sdk.errors import Misconfigured
from verity_sdk.times import format_utc
from verity_stream.cli.context import Time, echo_json, json_option, read_settings
from verity_stream.cli.gaps import show_gaps
from verity_stream.cli.output import hidden, say_not_understood
from verity_stream.settings import configured_platforms
from verity_stream.verify.completeness import Completeness, is_complete

EXIT_CODES = {
    Completeness.COMPLETE: 0,
    Completeness.NOT_YET: 3,
    Completeness.INCOMPLETE: 4,
    Completeness.NOT_COLLECTED: 5,
}


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
    settings = read_settings()
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
        "gaps": hidden(list(answer.gaps)),
    }
    say_not_understood(answer.not_understood)
    if as_json:
        echo_json([body])
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
            show_gaps(body["gaps"])
    context.exit(EXIT_CODES.get(answer.completeness, 1))


def _configured(path: Path, platform: str) -> list[str]:
    """The platform's connectors in verity.toml; without a file an empty list, which is said."""
    if not path.exists():
        click.echo(f"{path} is not here: only connectors that have published count", err=True)
        return []
    return [name for name, of in configured_platforms(path).items() if of == platform]
