"""What both servers share: a process that outlives its starter, found again by its state file."""

import json
import random
import shutil
import socket
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from verity_stream.dev.stack.errors import StackError

POLL_SECONDS = 0.05
START_SECONDS = 120.0
KILL_SECONDS = 5.0
TAIL_BYTES = 1024 * 1024
# Below the range that Linux hands to outgoing connections: a port that was picked here is still
# free when a stopped server comes back for it.
FREE_PORTS = range(12000, 32000)


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """One server, as `verity dev status` shows it."""

    name: str
    state: str  # "running" or "stopped"
    version: str
    address: str
    port: int | None
    pid: int | None
    data_dir: str
    log: str


class Server(ABC):
    """A server with its files in `directory`; start, stop and kill it from any process.

    The state file remembers port, pid and data directory. A pid is believed only while its process
    carries this server's own marker in its command line, so a reused pid is never signalled.
    """

    name: str
    title: str
    port_option: str

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self._requested_port = port
        self._abandoned = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None  # kept to reap it when it was ours

    # What a server must say about itself.

    @property
    @abstractmethod
    def version(self) -> str:
        """The version that is locked or installed."""

    @property
    @abstractmethod
    def address(self) -> str:
        """What clients connect to."""

    @property
    @abstractmethod
    def _marker(self) -> Sequence[str]:
        """Consecutive arguments that only this server's process has."""

    @abstractmethod
    def _prepare(self) -> None:
        """Create the data directory when it is missing and write the configuration."""

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """The command that runs the server in the foreground."""

    @abstractmethod
    def _is_ready(self, pid: int) -> bool:
        """True when clients are served."""

    @abstractmethod
    def _ask_to_stop(self, process: psutil.Process) -> None:
        """Send the signal of a clean shutdown."""

    # Files and facts.

    @property
    def data_dir(self) -> Path:
        """Where the data is."""
        return self.directory / "data"

    @property
    def log_file(self) -> Path:
        """Where the server's output goes."""
        return self.directory / f"{self.name}.log"

    @property
    def port(self) -> int:
        """The port: of the running server, else as asked for, else a free one that is kept."""
        state = self._state
        if self.is_running():
            return int(state["port"])
        if self._requested_port != 0:
            return self._requested_port
        if "free_port" not in state:
            self._remember(free_port=free_port())
        return int(self._state["free_port"])

    @property
    def pid(self) -> int | None:
        """The pid of the running server, or None."""
        process = self._process()
        return process.pid if process else None

    def is_running(self) -> bool:
        """Whether the process lives; it may still be starting."""
        return self._process() is not None

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of the log, for a person."""
        return tail(self.log_file, lines)

    # Life.

    def start(self, timeout: float = START_SECONDS) -> bool:
        """Serve clients on return; False when it already ran, True when this call started it.

        Args:
            timeout: Seconds from the start of the process until it must be ready.

        Raises:
            StackError: It could not be started or was not ready in time; nothing is left running.
        """
        self._abandoned.clear()
        already_running = self.is_running()
        if already_running:
            if self._requested_port not in (0, self.port):
                raise StackError(
                    f"{self.title} already runs on port {self.port}, not {self._requested_port}. "
                    f"Stop it first, or leave {self.port_option} as it was."
                )
        else:
            self._spawn()
        try:
            self._wait_until_ready(timeout)
        except BaseException:
            if not already_running:
                self.kill()
            raise
        return not already_running

    def stop(self, timeout: float = 20) -> None:
        """Stop cleanly; after `timeout` seconds by force. Stopping a stopped server is fine."""
        process = self._process()
        if process is None:
            return
        try:
            self._ask_to_stop(process)
        except psutil.NoSuchProcess:
            return
        if not wait_until(lambda: not self.is_running(), time.monotonic() + timeout):
            self.kill()

    def kill(self) -> None:
        """Kill the server and its children with SIGKILL, as a crash would, and see them gone.

        A start that is under way in another thread gives up.
        """
        self._abandoned.set()
        process = self._process()
        if process is None:
            return
        try:
            family = [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for member in family:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                pass  # gone by itself meanwhile

        def is_gone() -> bool:
            return not any(map(_is_alive, family)) and not self.is_running()

        wait_until(is_gone, time.monotonic() + KILL_SECONDS)

    def wipe(self) -> None:
        """Remove the data, the logs and the remembered port; the server must be stopped."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def status(self) -> ServerStatus:
        """What there is to know; starts nothing and changes nothing."""
        pid = self.pid
        return ServerStatus(
            name=self.name,
            state="running" if pid else "stopped",
            version=self.version,
            address=self.address if pid else "",
            port=self.port if pid else None,
            pid=pid,
            data_dir=str(self.data_dir),
            log=str(self.log_file),
        )

    # Inside.

    def _spawn(self) -> None:
        port = self.port
        if port_is_taken(port):
            raise StackError(
                f"Port {port} for {self.title} is taken by another program. Stop that program, "
                f"or choose another port with {self.port_option} (0 takes a free one)."
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        self._prepare()
        if self._abandoned.is_set():
            raise StackError(f"The start of {self.title} was abandoned.")
        with self.log_file.open("ab") as log:
            self._child = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A session of its own: it survives its starter, and Ctrl-C in the terminal.
                start_new_session=True,
                cwd=self.directory,
                **self.run_as(),
            )
        self._remember(port=port, pid=self._child.pid)

    def run_as(self) -> dict[str, Any]:
        """Arguments for subprocess that change the user; none by default."""
        return {}

    def _wait_until_ready(self, timeout: float) -> None:
        def settled() -> bool:
            pid = self.pid
            return pid is None or self._is_ready(pid)

        is_in_time = wait_until(settled, time.monotonic() + timeout)
        if not self.is_running():
            reason = "ended while it was starting"
        elif not is_in_time:
            reason = f"was not ready within {timeout:g} seconds"
        else:
            return
        raise StackError(f"{self.title} {reason}. The end of {self.log_file}:\n{self.log_tail()}")

    def _process(self) -> psutil.Process | None:
        pid = self._state.get("pid")
        if pid is None:
            return None
        try:
            process = psutil.Process(pid)
            if self._child is not None and self._child.pid == pid:
                # Ours without a look at its arguments, which are empty for an instant after exec.
                return process if self._child.poll() is None else None
            is_ours = contains(process.cmdline(), self._marker)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return None
        return process if is_ours and _is_alive(process) else None

    @property
    def _state_file(self) -> Path:
        return self.directory / "state.json"

    @property
    def _state(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads(self._state_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:
            return {}  # cut short by a full disk: the ports are lost, nothing else
        return state

    def _remember(self, **changes: Any) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        fresh = self._state_file.with_suffix(".new")
        fresh.write_text(json.dumps({**self._state, **changes}), encoding="utf-8")
        fresh.replace(self._state_file)


def wait_until(condition: Callable[[], bool], deadline: float) -> bool:
    """Poll until the condition holds (True) or the monotonic clock passes the deadline (False)."""
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def contains(arguments: Sequence[str], marker: Sequence[str]) -> bool:
    """Whether `marker` stands in `arguments`, in one piece."""
    size = len(marker)
    return any(
        list(arguments[start : start + size]) == list(marker) for start in range(len(arguments))
    )


def _is_alive(process: psutil.Process) -> bool:
    """Whether any thread of it runs; one that ended but was not yet reaped by its parent does not.

    A killed JVM is a zombie whose last threads still hold its port for some milliseconds.
    """
    try:
        return process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1
    except psutil.NoSuchProcess:
        return False


def tail(path: Path, lines: int) -> str:
    """The last lines of a text file; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            content = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return "\n".join(content[-lines:])


def loopback_addresses() -> list[str]:
    """127.0.0.1, and ::1 where this machine has it."""
    return ["127.0.0.1", *(["::1"] if _can_bind("::1", 0) else [])]


def port_is_taken(port: int) -> bool:
    """Whether another program listens on the port, on any loopback address."""
    return not all(_can_bind(address, port) for address in loopback_addresses())


def free_port() -> int:
    """A port that nobody listens on."""
    for _ in range(200):
        port = random.choice(FREE_PORTS)  # noqa: S311 - to spread, not to keep a secret
        if not port_is_taken(port):
            return port
    raise StackError(f"No free port was found between {FREE_PORTS[0]} and {FREE_PORTS[-1]}.")


def _can_bind(address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As the servers do: connections in TIME_WAIT do not make a port taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError:
        return False
    return True
