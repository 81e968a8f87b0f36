"""Real Kafka and real PostgreSQL on this machine, without Docker.

One `Stack` lives in one directory: its data, its logs, and the state that lets any later process
find it again. `verity dev`, the tests and the demo use this module and nothing below it.
"""

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from verity_stream.dev.stack.errors import StackError
from verity_stream.dev.stack.kafka import KafkaServer
from verity_stream.dev.stack.postgres import PostgresServer
from verity_stream.dev.stack.server import POLL_SECONDS, START_SECONDS, Server, ServerStatus

__all__ = [
    "DATABASE_VARIABLE",
    "KAFKA_PORT",
    "KAFKA_VARIABLE",
    "NO_SETTINGS",
    "POSTGRES_PORT",
    "KafkaServer",
    "PostgresServer",
    "ServerStatus",
    "Stack",
    "StackAddress",
    "StackError",
    "external_addresses",
]

KAFKA_PORT = 9092
POSTGRES_PORT = 5432
# Where these are set, they name servers that exist already, and nothing is started for them.
KAFKA_VARIABLE = "VERITY_KAFKA__BOOTSTRAP_SERVERS"
DATABASE_VARIABLE = "VERITY_DATABASE__DSN"
NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class StackAddress:
    """Where the servers of a stack are."""

    bootstrap_servers: str
    dsn: str


class Stack:
    """Kafka and PostgreSQL in one directory; port 0 takes a free port and keeps it."""

    def __init__(
        self,
        directory: Path,
        *,
        kafka_port: int = KAFKA_PORT,
        postgres_port: int = POSTGRES_PORT,
        kafka_settings: Mapping[str, str] = NO_SETTINGS,
        postgres_settings: Mapping[str, str] = NO_SETTINGS,
    ) -> None:
        self.directory = directory.resolve()
        self.kafka = KafkaServer(self.directory / "kafka", kafka_port, kafka_settings)
        self.postgres = PostgresServer(
            self.directory / "postgres", postgres_port, postgres_settings
        )

    @property
    def servers(self) -> tuple[Server, ...]:
        """Both servers."""
        return (self.kafka, self.postgres)

    def up(
        self, *, timeout: float = START_SECONDS, environ: Mapping[str, str] | None = None
    ) -> StackAddress:
        """Start what does not run yet, both at once; on return clients are served.

        Args:
            timeout: Seconds until a server that is not ready counts as failed. The first download
                of Kafka's jars comes on top.
            environ: Names external servers by KAFKA_VARIABLE and DATABASE_VARIABLE, for which
                nothing is started; None: there are none.

        Raises:
            StackError: A server could not be started. Nothing that this call started still runs.
        """
        external = external_addresses(environ or {})
        wanted = [server for server in self.servers if server.name not in external]
        with self._locked(timeout):
            if self.kafka in wanted and not self.kafka.is_running():
                # Here and not in a thread: Ctrl-C ends a download at once.
                _ = self.kafka.jars
            self._start(wanted, timeout)
        return StackAddress(
            bootstrap_servers=external.get(self.kafka.name) or self.kafka.address,
            dsn=external.get(self.postgres.name) or self.postgres.address,
        )

    def down(self, *, timeout: float = 20, wipe: bool = False) -> None:
        """Stop both cleanly, by force after `timeout` seconds; `wipe` removes all data as well."""
        with self._locked(timeout), ThreadPoolExecutor() as pool:
            list(pool.map(lambda server: server.stop(timeout), self.servers))
            if wipe:
                for server in self.servers:
                    server.wipe()

    def status(self) -> tuple[ServerStatus, ...]:
        """Kafka's status and PostgreSQL's."""
        return tuple(server.status() for server in self.servers)

    def _start(self, servers: list[Server], timeout: float) -> None:
        with ThreadPoolExecutor() as pool:
            starts = {server: pool.submit(server.start, timeout) for server in servers}
            try:
                failures = [error for start in starts.values() if (error := start.exception())]
            except BaseException:
                # Interrupted: starts under way give up, so that the pool can end.
                for server, start in starts.items():
                    if not start.done() or start.result():
                        server.kill()
                raise
        if failures:
            for server, start in starts.items():
                if start.exception() is None and start.result():
                    server.stop()
            if all(isinstance(error, StackError) for error in failures):
                raise StackError("\n".join(map(str, failures))) from failures[0]
            raise next(error for error in failures if not isinstance(error, StackError))

    @contextmanager
    def _locked(self, timeout: float) -> Iterator[None]:
        """One `up` or `down` at a time in a directory, across processes."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = (self.directory / "lock").open("a")
        except OSError as error:
            raise StackError(f"{self.directory} cannot be used: {error}.") from error
        with lock:
            deadline = time.monotonic() + timeout
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise StackError(
                            f"Another process is starting or stopping the stack in "
                            f"{self.directory}; it did not end within {timeout:g} seconds."
                        ) from None
                    time.sleep(POLL_SECONDS)
            yield


def external_addresses(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The servers that the environment names, by server name."""
    variables = {KafkaServer.name: KAFKA_VARIABLE, PostgresServer.name: DATABASE_VARIABLE}
    return {name: environ[key] for name, key in variables.items() if environ.get(key)}
