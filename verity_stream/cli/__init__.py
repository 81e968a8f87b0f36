"""The command line, `verity`."""

import click

from verity_stream.cli.dev import dev


@click.group()
def main() -> None:
    """Verity Stream: who did what, and who may do what, into Kafka."""


main.add_command(dev)
