"""The small decisions under the servers."""

import socket
import time
from pathlib import Path

import pytest

from verity_stream.dev.stack import Stack, StackError
from verity_stream.dev.stack.kafka import serves_metadata
from verity_stream.dev.stack.server import (
    FREE_PORTS,
    contains,
    free_port,
    port_is_taken,
    tail,
    wait_until,
)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["postgres", "-D", "/data"], True),
        (["tail", "-f", "/data"], False),
        (["postgres", "-D", "/data/other"], False),
        (["-D"], False),
        ([], False),
    ],
)
def test_a_process_is_ours_by_whole_arguments(arguments: list[str], expected: bool) -> None:
    assert contains(arguments, ("-D", "/data")) is expected


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 - it is the case to test
def test_a_listening_port_is_taken_and_a_closed_one_is_not(address: str) -> None:
    port = free_port()
    assert port in FREE_PORTS
    with socket.create_server((address, port)):
        assert port_is_taken(port)
    assert not port_is_taken(port)


def test_a_free_port_is_kept_and_a_wanted_one_is_not_remembered(tmp_path: Path) -> None:
    kept = Stack(tmp_path, kafka_port=0).kafka.port
    assert Stack(tmp_path, kafka_port=9).kafka.port == 9
    assert Stack(tmp_path, kafka_port=0).kafka.port == kept


def test_tail(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tail(log, 3) == ""
    log.write_bytes(b"1\n2\n\xff3\n")
    assert tail(log, 2) == "2\n\ufffd3"


def test_wait_until_has_an_end() -> None:
    began_at = time.monotonic()
    assert not wait_until(lambda: False, began_at + 0.1)
    assert time.monotonic() - began_at < 5
    assert wait_until(lambda: True, began_at)


def test_a_program_that_is_not_kafka_does_not_serve_metadata() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert not serves_metadata("127.0.0.1", port, timeout=0.1)
    assert not serves_metadata("127.0.0.1", port, timeout=0.1)


def test_directory_that_cannot_be_used_is_a_clear_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(StackError, match=r"file cannot be used"):
        Stack(blocked).up()
