"""`verity dead`: what could not be published."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import click
from rich.text import Text

from verity_common.kafka import KafkaSettings
from verity_sdk.errors import Malformed, Misconfigured
from verity_sdk.times import format_utc
from verity_stream.cli.context import (
    echo_json,
    json_option,
    platform_option,
    read_settings,
    since_option,
)
from verity_stream.cli.output import hidden, new_console, new_table, plain, say_not_understood
from verity_stream.kafka.clients import partition_counts
from verity_stream.kafka.committed import CommittedReader
from verity_stream.records import DeadLetter, NotUnderstood, dead_topic, decode_dead_part, header


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
    settings = read_settings()
    letters, strange = asyncio.run(
        read_letters(settings.kafka, platform, connector_id=connector_id)
    )
    say_not_understood(strange)
    rows = [letter.row for letter in letters if since is None or letter.fetched_at >= since]
    rows = hidden(rows)
    if as_json:
        echo_json(rows)
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
    settings = read_settings()
    letters, _ = asyncio.run(read_letters(settings.kafka, platform, dead_id=dead_id))
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
    body = hidden({**letter.row, **shown})
    if as_json:
        echo_json([body])
        return
    console = new_console()
    for name, value in body.items():
        console.print(Text.assemble(plain(f"{name}: ", "bold"), plain(value)), soft_wrap=True)


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


async def read_letters(
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
