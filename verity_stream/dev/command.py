"""`verity dev`: Kafka and PostgreSQL for the desk."""

import asyncio
import dataclasses
import json
import os
import time
from pathlib import Path

import click
from pydantic import SecretStr

from verity_common.config import DatabaseSettings
from verity_stream.dev.stack import (
    DATABASE_VARIABLE,
    KAFKA_PORT,
    KAFKA_VARIABLE,
    POSTGRES_PORT,
    Stack,
    StackError,
    external_addresses,
)
from verity_stream.postgres.pool import close_pool, create_pool, migrate

NOT_RUNNING = 3  # what init scripts and pg_ctl answer, too

directory_option = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".verity"),
    show_default=True,
    help="Where the stack keeps its data and logs.",
)


@click.group()
def dev() -> None:
    """Real Apache Kafka and PostgreSQL on this machine, without Docker."""


@dev.command()
@directory_option
@click.option("--kafka-port", type=click.IntRange(0, 65535), help=f"0: a free one.  [{KAFKA_PORT}]")
@click.option(
    "--postgres-port", type=click.IntRange(0, 65535), help=f"0: a free one.  [{POSTGRES_PORT}]"
)
@click.option("--timeout", type=float, default=120, show_default=True, help="Seconds to wait.")
def up(directory: Path, kafka_port: int | None, postgres_port: int | None, timeout: float) -> None:
    """Start Kafka and PostgreSQL; return when they serve. Safe to repeat."""
    began_at = time.monotonic()
    running = {status.name: status.port for status in Stack(directory).status()}
    stack = Stack(
        directory,
        # Without an option a running server may stay on whatever port it has.
        kafka_port=_first(kafka_port, running["kafka"], KAFKA_PORT),
        postgres_port=_first(postgres_port, running["postgres"], POSTGRES_PORT),
    )
    external = external_addresses()
    try:
        address = stack.up(timeout=timeout, environ=os.environ)
    except StackError as error:
        raise click.ClickException(str(error)) from error
    for name, variable in (("kafka", KAFKA_VARIABLE), ("postgres", DATABASE_VARIABLE)):
        if name in external:
            click.echo(f"{name}: {variable} is set, so nothing was started for it.")
        elif running[name] is not None:
            click.echo(f"{name}: already running.")
    click.echo(f"Kafka       {address.bootstrap_servers}")
    if "postgres" in external:
        click.echo(f"PostgreSQL  as {DATABASE_VARIABLE} says")  # its password is not ours to print
    else:
        if running["postgres"] is None:
            # So that a connector's own run() finds its table, before any worker ran.
            asyncio.run(_create_tables(address.dsn))
        click.echo(f"PostgreSQL  {address.dsn}  (verity is a superuser, on this machine only)")
    click.echo(f"Ready after {time.monotonic() - began_at:.1f} s, data in {stack.directory}")


async def _create_tables(dsn: str) -> None:
    pool = await create_pool(DatabaseSettings(dsn=SecretStr(dsn)))
    try:
        await migrate(pool)
    finally:
        await close_pool(pool)


@dev.command()
@directory_option
@click.option("--wipe", is_flag=True, help="Remove all data and logs as well.")
@click.option("--timeout", type=float, default=20, show_default=True, help="Seconds until killed.")
def down(directory: Path, wipe: bool, timeout: float) -> None:
    """Stop Kafka and PostgreSQL. Safe to repeat."""
    if not directory.exists():
        click.echo(f"Nothing runs in {directory}.")
        return
    try:
        Stack(directory).down(timeout=timeout, wipe=wipe)
    except StackError as error:
        raise click.ClickException(str(error)) from error
    click.echo("Stopped, data removed." if wipe else "Stopped.")


@dev.command()
@directory_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_context
def status(context: click.Context, directory: Path, as_json: bool) -> None:
    """Show what runs; exit code 0 when everything does, 3 otherwise."""
    external = external_addresses()
    servers = [
        dataclasses.replace(found, state="external") if found.name in external else found
        for found in Stack(directory).status()
    ]
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(found) for found in servers], indent=2))
    else:
        for found in servers:
            if found.state == "external":
                click.echo(f"{found.name:<9} external, as the environment says")
                continue
            click.echo(f"{found.name:<9} {found.version:<6} {found.state}")
            if found.pid:
                click.echo(f"          address  {found.address}\n          pid      {found.pid}")
            click.echo(f"          data     {found.data_dir}\n          log      {found.log}")
    if any(found.state == "stopped" for found in servers):
        context.exit(NOT_RUNNING)


@dev.command()
@directory_option
@click.argument("server", type=click.Choice(["kafka", "postgres"]), required=False)
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="So many of each.",
)
def logs(directory: Path, server: str | None, lines: int) -> None:
    """Print the end of the logs of one server, or of both."""
    for each in Stack(directory).servers:
        if server in (None, each.name):
            if server is None:
                click.echo(f"== {each.name}")
            click.echo(each.log_tail(lines))


def _first(*choices: int | None) -> int:
    return next(choice for choice in choices if choice is not None)
