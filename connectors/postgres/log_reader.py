"""The two ways to read a server's log: through its reader functions, or from its directory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from connectors.postgres.files import LogFile, is_log_file
from connectors.postgres.server import Server
from verity_sdk.errors import Denied, Misconfigured, Unavailable

LIST_SQL = "SELECT name, size, modification FROM audit_reader.list_logs()"
READ_SQL = "SELECT audit_reader.read_log($1, $2, $3)"
NOW_SQL = "SELECT pg_catalog.clock_timestamp()"


class ReaderFunctions:
    """A `LogReader` over the SECURITY DEFINER functions of `verity postgres-setup`."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def now(self) -> datetime:
        """The server's clock."""
        now: datetime = await self._server.value(NOW_SQL)
        return now.astimezone(UTC)

    async def list_files(self) -> Sequence[LogFile]:
        """The jsonlog files of log_directory."""
        return [
            LogFile(row["name"], row["size"], row["modification"])
            for row in await self._server.rows(LIST_SQL)
            if is_log_file(row["name"])
        ]

    async def read(self, name: str, offset: int, length: int) -> bytes | None:
        """Bytes of a file; the function itself caps one read at 8 MiB."""
        data = await self._server.value(READ_SQL, name, offset, length)
        return None if data is None else bytes(data)


class LogDirectory:
    """A `LogReader` over the server's log directory, mounted where the worker runs.

    The clock is the worker's: the directory is meant to be that of the same machine.
    """

    def __init__(self, directory: Path, clock: Callable[[], datetime]) -> None:
        self._directory = directory
        self._clock = clock

    async def now(self) -> datetime:
        """The worker's clock."""
        return self._clock()

    async def list_files(self) -> Sequence[LogFile]:
        """The jsonlog files of the directory.

        Raises:
            Denied: The directory may not be read.
            Misconfigured: There is none, or the server logs in another format.
            Unavailable: It cannot be read now.
        """
        return await asyncio.to_thread(self._list_files)

    def _list_files(self) -> Sequence[LogFile]:
        found, others = [], 0
        try:
            for path in self._directory.iterdir():
                if not is_log_file(path.name):
                    others += path.suffix in {".csv", ".log"}
                    continue
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue  # removed meanwhile
                modified_at = datetime.fromtimestamp(status.st_mtime, UTC)
                found.append(LogFile(path.name, status.st_size, modified_at))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Misconfigured("log_directory is no directory here") from error
        except PermissionError as error:
            raise Denied("log_directory may not be read by this user") from error
        except OSError as error:
            raise Unavailable(f"log_directory cannot be read: {error.strerror}") from error
        if not found and others:
            raise Misconfigured(
                "log_directory has no *.json file: the server's log_destination must contain "
                "jsonlog (csvlog and stderr are not read)"
            )
        return found

    async def read(self, name: str, offset: int, length: int) -> bytes | None:
        """Bytes of a file.

        Raises:
            Denied: The file may not be read (log_file_mode = 0640 and a common group help).
            Unavailable: It cannot be read now.
        """
        return await asyncio.to_thread(self._read, name, offset, length)

    def _read(self, name: str, offset: int, length: int) -> bytes | None:
        if not is_log_file(name):
            return None  # never outside of the directory
        try:
            with (self._directory / name).open("rb") as file:
                file.seek(offset)
                return file.read(length)
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise Denied(
                f"{name} may not be read by this user (log_file_mode of the server)"
            ) from error
        except OSError as error:
            raise Unavailable(f"{name} cannot be read: {error.strerror}") from error
