"""`python -m verity_stream.dev.demo`: fresh servers, the scenario, and everything stopped again."""

from __future__ import annotations

import asyncio
import fcntl
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import asyncpg
import click

from verity_sdk.errors import VerityError
from verity_stream.cli.output import quiet_logs
from verity_stream.dev.demo.scenario import KAFKA_SETTINGS, DemoFailed, Scenario
from verity_stream.dev.demo.show import Progress
from verity_stream.dev.demo.workers import WorkerDied, kill_left_behind
from verity_stream.dev.stack import Stack, StackError
from verity_stream.redaction import escape_what_can_not_be_shown

DIFFERED = 1
INTERRUPTED = 130


@click.command()
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".verity/demo"),
    show_default=True,
    help="For the servers' data and all logs. What an earlier demo left there is removed.",
)
@click.option("--keep", is_flag=True, help="Leave Kafka and PostgreSQL running, to look around.")
def main(directory: Path, keep: bool) -> None:
    """See PostgreSQL's audit trail arrive in Kafka, exactly once, across a kill -9.

    Starts a Kafka and a PostgreSQL of its own on free ports. Exit code 0: everything that the
    last lines claim was found to be true; 1: it was not, and they say what.
    """
    quiet_logs()
    escape_what_can_not_be_shown()
    signal.signal(signal.SIGTERM, _interrupt)
    progress = Progress()
    stack: Stack | None = None
    has_held = False
    try:
        with _alone(directory):
            kill_left_behind(directory.resolve())
            stack = Stack(directory, kafka_port=0, postgres_port=0, kafka_settings=KAFKA_SETTINGS)
            try:
                # Fresh servers take seconds, and no earlier run can be mistaken for this one.
                stack.down(wipe=True)
                progress.say("starting a real Kafka and a real PostgreSQL")
                address = stack.up()
                progress.say(
                    f"Kafka serves port {stack.kafka.port}, PostgreSQL port {stack.postgres.port}"
                )
                scenario = Scenario(
                    address, stack.directory, stack.postgres.log_directory, progress
                )
                proof = asyncio.run(scenario.run())
                has_held = not proof.differences
            finally:
                if not (keep and has_held):
                    # What went wrong can be read in the data afterwards.
                    stack.down(wipe=has_held)
    except KeyboardInterrupt:
        progress.say("interrupted; everything that was started is stopped", "yellow")
        sys.exit(INTERRUPTED)
    except (
        StackError,
        DemoFailed,
        WorkerDied,
        VerityError,
        OSError,
        asyncpg.PostgresError,
    ) as error:
        progress.console.print(f"The demo failed: {error}", style="bold red", markup=False)
        progress.say(f"the servers' data and the workers' logs stay in {directory}")
        sys.exit(DIFFERED)
    if keep and has_held:
        progress.say(f"both servers still run; `verity dev down --dir {directory}` stops them")
    if not has_held:
        progress.say(f"the servers' data and the workers' logs stay in {directory}")
    progress.say("done")
    sys.exit(0 if has_held else DIFFERED)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One demo at a time in a directory: the second would remove the first one's servers."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "demo.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoFailed(f"another demo runs in {directory}") from None
        yield


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
