"""The demo's workers: `faust -A verity_stream worker` in process groups of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import psutil

LOG_TAIL_BYTES = 6000
STOP_SECONDS = 20.0
KILL_SECONDS = 10.0
PAGE_SECONDS = 5.0


class WorkerDied(Exception):
    """A worker ended that nobody had asked to."""


class DemoWorker:
    """One worker; its data and its log are below `directory`."""

    def __init__(self, directory: Path, name: str, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log_file = directory / f"{name}.log"
        self.web_port = _free_port()
        self._data = directory / f"{name}-data"
        self._environment = {
            **_outside(),
            **environment,
            "VERITY_WORKER_NAME": name,
            "VERITY_WEB_PORT": str(self.web_port),
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> list[str]:
        """What an operator would type; the data directory is what tells it from other workers."""
        faust = [sys.executable, "-m", "faust", "--datadir", str(self._data)]
        return [*faust, "-A", "verity_stream", "worker"]

    @property
    def pid(self) -> int:
        """The pid of the running worker."""
        if self._process is None:
            raise WorkerDied(f"{self.name} was never started")
        return self._process.pid

    def start(self) -> None:
        """Start it in a session of its own: a Ctrl-C in the terminal is for the demo alone."""
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.log_file.parent,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def require_alive(self) -> None:
        """Raise WorkerDied with the end of its log, unless it runs."""
        if self._process is None or self._process.poll() is not None:
            code = None if self._process is None else self._process.returncode
            raise WorkerDied(f"{self.name} ended by itself, exit code {code}.\n{self.log_tail()}")

    def kill(self) -> None:
        """kill -9 for the whole process group, and reap it; fine where it has ended."""
        if self._process is None or self._process.poll() is not None:
            return
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(KILL_SECONDS)

    def terminate(self) -> tuple[int, float]:
        """SIGTERM; returns the exit code and how many seconds it took.

        Raises:
            WorkerDied: It did not stop in time; it was killed.
        """
        self.require_alive()
        assert self._process is not None  # noqa: S101 - require_alive() saw it
        began_at = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise WorkerDied(
                f"{self.name} did not stop within {STOP_SECONDS:g} s of SIGTERM.\n{self.log_tail()}"
            ) from None
        return code, time.monotonic() - began_at

    def page(self, path: str) -> Any:
        """A page of its web server, or None while there is no answer."""
        # The address is our own and never a file's.
        url = f"http://127.0.0.1:{self.web_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=PAGE_SECONDS) as answer:
                return orjson.loads(answer.read())
        except (OSError, ValueError):
            return None

    def log_tail(self) -> str:
        """The end of its log."""
        try:
            text = self.log_file.read_bytes()[-LOG_TAIL_BYTES:].decode("utf-8", "replace")
        except FileNotFoundError:
            return "It wrote no log."
        return f"The end of {self.log_file}:\n{text}"


def kill_left_behind(directory: Path) -> int:
    """Kill workers that an earlier demo in this directory left; returns how many.

    A demo that was itself killed with -9 could not. They are known by their data directory.
    """
    count = 0
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or []
        if "faust" in arguments and any(
            argument.startswith(f"{directory}{os.sep}") for argument in arguments
        ):
            try:
                process.kill()
                process.wait(KILL_SECONDS)
                count += 1
            except psutil.NoSuchProcess:
                pass  # It ended meanwhile.
    return count


def _outside() -> dict[str, str]:
    """The environment without Verity's variables: the demo must not reach anybody's real Kafka."""
    return {
        key: value for key, value in os.environ.items() if not key.upper().startswith("VERITY_")
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
