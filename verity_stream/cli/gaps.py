"""`verity gaps`: what is known to be missing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click

from verity_common.kafka import KafkaSettings
from verity_sdk.errors import Malformed
from verity_sdk.times import parse_utc
from verity_stream.cli.context import (
    echo_json,
    json_option,
    platform_option,
    read_settings,
    since_option,
)
from verity_stream.cli.output import hidden, new_console, print_table, say_not_understood
from verity_stream.kafka.committed import CommittedReader
from verity_stream.records import GAPS_TOPIC, NotUnderstood, decode_gap


@click.command()
@platform_option
@since_option
@click.option("--connector", "connector_id", help="Only of this connector.")
@json_option
def gaps(
    platform: str | None, since: datetime | None, connector_id: str | None, as_json: bool
) -> None:
    """List what is known to be missing, as the connectors recorded it."""
    settings = read_settings()
    recorded, strange = asyncio.run(read_gaps(settings.kafka))
    say_not_understood(strange)
    found = [
        gap
        for gap in recorded
        if (platform is None or gap["platform"] == platform)
        and (connector_id is None or gap["connector_id"] == connector_id)
        and (since is None or parse_utc(gap["recorded_at"]) >= since)
    ]
    found = hidden(found)
    if as_json:
        echo_json(found)
    elif found:
        show_gaps(found)
    else:
        click.echo("No gaps are recorded.")


async def read_gaps(kafka: KafkaSettings) -> tuple[list[dict[str, Any]], list[NotUnderstood]]:
    """All gaps, the latest last, and the records that are not gaps."""
    found: list[dict[str, Any]] = []
    strange: list[NotUnderstood] = []
    async for record in CommittedReader(kafka, waits_for_open=False).stream(GAPS_TOPIC):
        try:
            found.append(decode_gap(record))
        except Malformed as error:
            strange.append(NotUnderstood.of(record, error))
    return sorted(found, key=lambda gap: str(gap["recorded_at"])), strange


def show_gaps(found: Sequence[dict[str, Any]]) -> None:
    """Gaps as a table."""
    names = ("platform", "connector_id", "from_at", "to_at", "scope", "reason", "recorded_at")
    print_table(new_console(), "Gaps", found, names)
