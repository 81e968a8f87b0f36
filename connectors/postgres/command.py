"""`verity postgres-setup`: prints what to run on a server before it can be observed."""

from __future__ import annotations

import click

from connectors.postgres.setup import setup_sql


@click.command("postgres-setup")
@click.option(
    "--role",
    default="verity_collector",
    show_default=True,
    help="The role of the connector's dsn; created without a password if it is missing.",
)
def postgres_setup(role: str) -> None:
    """Print the SQL that lets ROLE read the server's audit log, and nothing else.

    Run it as a superuser in the database that the connector's dsn names:

        verity postgres-setup | psql "$SUPERUSER_DSN" -v ON_ERROR_STOP=1
    """
    try:
        click.echo(setup_sql(role), nl=False)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--role") from error
