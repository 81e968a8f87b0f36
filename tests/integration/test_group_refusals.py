"""What the coordinator of the consumer group refuses: said as what it is, and no standstill."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from stack_fixtures import StackFactory, temporary_stack
from workers import Bench, assert_said, ended, eventually, killing, make_bench

from verity_stream.dev.stack import Stack

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def narrow() -> Iterator[Stack]:
    """A broker that allows one member a group, and a session of 2 s at least."""
    settings = {"group.max.size": "1", "group.min.session.timeout.ms": "2000"}
    with temporary_stack(kafka_settings=settings) as stack:
        yield stack


@contextmanager
def bench_on(stack: Stack, directory: Path) -> Iterator[Bench]:
    address = stack.up(environ={})
    with killing(make_bench(directory, address.bootstrap_servers, address.dsn)) as bench:
        bench.configure(
            source={"type": "test_paged", "platform": bench.name, "count": 20, "page": 20}
        )
        yield bench


async def test_a_session_that_the_broker_does_not_allow(narrow: Stack, tmp_path: Path) -> None:
    with bench_on(narrow, tmp_path) as bench:
        worker = bench.worker(VERITY_SESSION_TIMEOUT_SECONDS="1")
        assert await ended(worker) == 2
        assert_said(worker, "VERITY_SESSION_TIMEOUT_SECONDS")


async def test_a_group_that_is_full(narrow: Stack, tmp_path: Path) -> None:
    with bench_on(narrow, tmp_path) as bench:
        bench.worker()
        await bench.wait_for_state("source", "caught_up")
        second = bench.worker()
        assert await ended(second) == 2
        assert_said(second, "group.max.size")


async def test_a_group_of_somebody_else(
    narrow: Stack, make_stack: StackFactory, tmp_path: Path
) -> None:
    with bench_on(make_stack(), tmp_path) as bench:
        admin = AIOKafkaAdminClient(bootstrap_servers=bench.bootstrap_servers)
        await admin.start()
        await admin.create_topics([NewTopic("strangers", 1, 1)])
        await admin.close()
        async with AIOKafkaConsumer(
            "strangers", bootstrap_servers=bench.bootstrap_servers, group_id=bench.name
        ) as stranger:

            async def has_joined() -> bool:
                await stranger.getmany(timeout_ms=100)
                return bool(stranger.assignment())

            await eventually(has_joined, 60)
            worker = bench.worker()
            waiting = asyncio.create_task(ended(worker))
            while not waiting.done():
                await stranger.getmany(timeout_ms=100)
            assert await waiting == 2
        assert_said(worker, "VERITY_APP_ID")


async def test_a_port_that_is_taken_on_a_terminal_that_is_ascii(
    narrow: Stack, tmp_path: Path
) -> None:
    """Not the group's, but the same end: one line, whatever the terminal can show."""
    with bench_on(narrow, tmp_path) as bench, socket.create_server(("127.0.0.1", 0)) as taken:
        worker = bench.worker(PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0")
        worker.kill()
        worker.web_port = taken.getsockname()[1]
        worker.start(PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0")
        assert await ended(worker) == 1
        assert_said(worker, str(worker.web_port))
        assert "UnicodeEncodeError" not in worker.log
