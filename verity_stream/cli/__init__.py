"""The command line, `verity`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from verity_sdk.errors import Misconfigured, VerityError
from verity_stream.cli.output import one_line
from verity_stream.redaction import SECRETS, escape_what_can_not_be_shown

CONFIGURATION = 2
FAILED = 1

# Loaded when they are asked for: `verity dev` needs the extra `stack`, `verity postgres-setup`
# a connector, and neither may keep `verity pause` from working where they are not installed.
COMMANDS = {
    "check": "verity_stream.cli.check:check",
    "checkpoints": "verity_stream.cli.verify:checkpoints",
    "complete": "verity_stream.cli.complete:complete",
    "connector": "verity_stream.cli.connectors:connector",
    "connectors": "verity_stream.cli.connectors:connectors",
    "dead": "verity_stream.cli.dead:dead",
    "dev": "verity_stream.dev.command:dev",
    "gaps": "verity_stream.cli.gaps:gaps",
    "migrate": "verity_stream.cli.migrate:migrate",
    "pause": "verity_stream.cli.controls:pause",
    "postgres-setup": "connectors.postgres.command:postgres_setup",
    "restart": "verity_stream.cli.controls:restart",
    "resume": "verity_stream.cli.controls:resume",
    "rewind": "verity_stream.cli.controls:rewind",
    "snapshot": "verity_stream.cli.controls:snapshot",
    "verify": "verity_stream.cli.verify:verify",
}


class VerityGroup(click.Group):
    """Loads commands on demand, and turns the five errors into a line and an exit code."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Those that can be loaded here."""
        return [name for name in COMMANDS if _load(name) is not None]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command, or None where there is no command of this name.

        Raises:
            click.ClickException: It is one of ours, and something that it needs is not installed.
        """
        if name not in COMMANDS:
            return None
        command = _load(name)
        if command is None:
            raise click.ClickException(
                f"`verity {name}` needs packages that are not installed here "
                '(`pip install "verity-stream[stack]"` for `dev`)'
            )
        return command

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line on any terminal."""
        escape_what_can_not_be_shown()
        return super().main(*args, **kwargs)

    def invoke(self, context: click.Context) -> Any:
        """Run the command; exit with 2 for a wrong configuration, 1 for the other errors."""
        try:
            return super().invoke(context)
        except VerityError as error:
            lines = str(error).splitlines() if isinstance(error, Misconfigured) else [str(error)]
            for line in lines:
                click.echo(f"Error: {SECRETS.hide(one_line(line))}", err=True)
            context.exit(CONFIGURATION if isinstance(error, Misconfigured) else FAILED)
        except BrokenPipeError:
            raise  # Whoever read has gone; click ends without a word.
        except OSError as error:
            # A folder that is read-only, a full disk: the error names the place.
            click.echo(f"Error: {SECRETS.hide(one_line(error))}", err=True)
            context.exit(FAILED)


def _load(name: str) -> click.Command | None:
    module, _, attribute = COMMANDS[name].partition(":")
    try:
        command = getattr(import_module(module), attribute)
    except ModuleNotFoundError:
        return None
    if not isinstance(command, click.Command):
        raise TypeError(f"{COMMANDS[name]} is not a command")
    return command


@click.group(cls=VerityGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="verity-stream")
def main() -> None:
    """Verity Stream: who did what, and who may do what, into Kafka.

    Commands read the same settings as the workers: VERITY_CONFIG names the file of connectors,
    VERITY_KAFKA__… and VERITY_DATABASE__… say where the servers are.

    Exit codes: 0 fine, 1 a server can't be reached or refuses, 2 the configuration or the command
    is wrong.
    """
