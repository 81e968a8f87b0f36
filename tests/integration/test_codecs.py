"""What brokers and topics compress is read, by everything that reads; and what we compress."""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stack_fixtures import StackFactory, temporary_stack
from verity_test_connectors import sequence
from workers import Bench, eventually, killing, make_bench

from verity_stream.dev.stack import Stack

pytestmark = pytest.mark.stack

CODECS = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
"""Their numbers in a batch's attributes, as Kafka's message format has them."""
COUNT = 200


def codecs_of(stack: Stack, topic: str) -> set[int]:
    """The codecs of the first batches in a topic's partitions, from the broker's own files."""
    found = set()
    for path in stack.kafka.data_dir.rglob(f"{topic}-*/00000000000000000000.log"):
        header = path.read_bytes()[:23]
        if len(header) == 23:
            found.add(struct.unpack(">h", header[21:])[0] & 7)
    return found


async def assert_all_is_read(bench: Bench, **environment: str) -> None:
    """The worker starts, publishes and mirrors; starts anew; and the command line reads it, too."""
    bench.configure(
        source={"type": "test_paged", "platform": bench.name, "count": COUNT, "page": 50}
    )
    await assert_caught_up_and_mirrored(bench, environment)
    await assert_caught_up_and_mirrored(bench, environment)
    expected = {one.event_id for one in sequence(bench.name, COUNT)}
    await bench.assert_exactly_once("source", expected)
    answer = await asyncio.to_thread(
        subprocess.run,
        [str(Path(sys.executable).with_name("verity")), "verify"],
        env={**os.environ, **bench.environment, **environment},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr


async def assert_caught_up_and_mirrored(bench: Bench, environment: dict[str, str]) -> None:
    """One worker's life."""
    worker = bench.worker(**environment)
    await bench.wait_for_state("source", "caught_up")
    last = (await bench.published_checkpoints("source"))[-1]

    async def is_mirrored() -> bool:
        _, table = worker.get("/checkpoints")
        mine = table.get(bench.id("source")) if table else None
        return bool(mine) and mine["version"] == last["version"]

    await eventually(is_mirrored, 60, lambda: worker.log[-4000:])
    worker.terminate()


@pytest.mark.parametrize("codec", CODECS)
async def test_a_broker_that_compresses_everything(
    make_stack: StackFactory, tmp_path: Path, codec: str
) -> None:
    """It ended the worker at its first page, for ever, as `verity check` said ok."""
    stack = make_stack(kafka_settings={"compression.type": codec})
    address = await asyncio.to_thread(stack.up, environ={})
    with killing(make_bench(tmp_path, address.bootstrap_servers, address.dsn)) as bench:
        await assert_all_is_read(bench)
        for topic in ("verity.connector.checkpoints", f"verity.events.raw.{bench.name}"):
            assert codecs_of(stack, topic) == {CODECS[codec]}


@pytest.fixture(scope="module")
def plain() -> Iterator[Stack]:
    """A broker that stores what it gets."""
    with temporary_stack() as stack:
        yield stack


@pytest.mark.parametrize("codec", CODECS)
async def test_the_setting_compresses_what_is_published(
    plain: Stack, tmp_path: Path, codec: str
) -> None:
    address = await asyncio.to_thread(plain.up, environ={})
    with killing(make_bench(tmp_path, address.bootstrap_servers, address.dsn)) as bench:
        await assert_all_is_read(bench, VERITY_KAFKA__COMPRESSION_TYPE=codec)
        assert codecs_of(plain, f"verity.events.raw.{bench.name}") == {CODECS[codec]}
