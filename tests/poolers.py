"""A real pgbouncer before a test's PostgreSQL, where one is installed.

Debian 12 has 1.18, Debian 13 has 1.24; `VERITY_TEST_PGBOUNCER` names another program.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

START_SECONDS = 20
PROGRAM_VARIABLE = "VERITY_TEST_PGBOUNCER"


def find_pgbouncer() -> str:
    """The program; the test fails without one: a guarantee without proof is none."""
    path = os.environ.get("PATH", "")
    found = os.environ.get(PROGRAM_VARIABLE) or shutil.which("pgbouncer", path=f"{path}:/usr/sbin")
    if not found:
        pytest.fail(f"pgbouncer is missing: install it (Debian: pgbouncer), or {PROGRAM_VARIABLE}")
    return found


@asynccontextmanager
async def pgbouncer(dsn: str, mode: str, **options: str) -> AsyncIterator[str]:
    """The address of a pgbouncer before `dsn`, with its defaults but for `options`.

    Args:
        mode: Its `pool_mode`.
    """
    place = urlsplit(dsn)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    directory = Path(tempfile.mkdtemp(prefix="verity-pgbouncer-"))
    process: asyncio.subprocess.Process | None = None
    try:
        users = directory / "users.txt"
        users.write_text(f'"{place.username}" "{place.password}"\n')
        settings: Mapping[str, str] = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(port),
            "auth_type": "scram-sha-256",
            "auth_file": str(users),
            "pool_mode": mode,
            "default_pool_size": "3",
            "unix_socket_dir": "",
            **options,
        }
        lines = [f"{name} = {value}" for name, value in settings.items()]
        configuration = directory / "pgbouncer.ini"
        configuration.write_text(
            f"[databases]\n* = host=127.0.0.1 port={place.port}\n[pgbouncer]\n"
            + "\n".join(lines)
            + "\n"
        )
        account = {}
        if os.geteuid() == 0:  # It does not run as root.
            nobody = pwd.getpwnam("nobody")
            for path in (directory, users, configuration):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
            account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        process = await asyncio.create_subprocess_exec(
            find_pgbouncer(),
            "-q",
            str(configuration),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            **account,
        )
        login = place.netloc.rpartition("@")[0]
        address = place._replace(netloc=f"{login}@127.0.0.1:{port}").geturl()
        await _serving(port)
        yield address
    finally:
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()
        shutil.rmtree(directory, ignore_errors=True)


async def _serving(port: int) -> None:
    async with asyncio.timeout(START_SECONDS):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return
