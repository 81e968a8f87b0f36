"""`verity migrate`: Verity's own tables."""

from __future__ import annotations

from typing import Any

import click

from verity_stream.cli.context import read_settings, run
from verity_stream.postgres import pool as database


@click.command()
@click.option(
    "--check", "only_check", is_flag=True, help="Change nothing; exit code 2 if any is missing."
)
def migrate(only_check: bool) -> None:
    """Bring Verity's own tables up to date.

    All that is missing is applied in one transaction, under a lock: safe to repeat, and while
    workers run. Workers do it themselves unless VERITY_MIGRATE=check.
    """
    settings = read_settings()

    async def work(pool: Any) -> list[str]:
        if only_check:
            await database.require_migrations(pool)
            return []
        return await database.migrate(pool)

    applied = run(settings, work)
    for name in applied:
        click.echo(f"applied {name}")
    if not applied:
        click.echo("Nothing is missing.")
