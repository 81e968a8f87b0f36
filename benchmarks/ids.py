"""The log of ids: how fast a start reads it back, and what an id costs in memory.

python -m benchmarks.ids                     # a tenth of the large installation
python -m benchmarks.ids --connectors 200    # all of it: 30 million ids
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import resource
import tempfile
import time
import tracemalloc
from array import array
from datetime import UTC, datetime, timedelta
from pathlib import Path

from verity_common.kafka import KafkaSettings
from verity_stream.dev.stack import Stack
from verity_stream.kafka.committed import CommittedReader
from verity_stream.kafka.partitions import partition_for
from verity_stream.kafka.topics import Topics
from verity_stream.kafka.transactions import KafkaPublisher
from verity_stream.records import IDS_TOPIC, Seen, decode_slot
from verity_stream.relay.id_log import KafkaIdLog, slot_records
from verity_stream.relay.ids import IdHasher
from verity_stream.relay.seen_window import SeenWindow
from verity_stream.settings import StreamSettings

PARTITIONS = 24
PAGE = 8000
AT = datetime(2026, 1, 1, tzinfo=UTC)
HASHER = IdHasher(bytes(16))


def hashes(count: int) -> array[int]:
    found: array[int] = array("Q")
    found.frombytes(os.urandom(8 * count))
    return found


async def write(kafka: KafkaSettings, connector: str, count: int, page: int) -> Seen:
    """As a relay does, a page after the other; returns what its checkpoint says."""
    window = SeenWindow(10**9)
    publisher = KafkaPublisher(
        kafka, transactional_id=f"bench.{connector}", transaction_timeout=timedelta(seconds=60)
    )
    await publisher.start()
    try:
        for start in range(0, count, page):
            at = AT + timedelta(seconds=start)
            ids = hashes(min(page, count - start))
            window.remember(ids, [at] * len(ids), at)
            place = partition_for(connector, PARTITIONS)
            written, gone = slot_records(connector, place, HASHER, window.changes())
            await publisher.publish([*written, *gone])
    finally:
        await publisher.close()
    return window.seen()


async def restore(log: KafkaIdLog, connector: str, seen: Seen) -> SeenWindow:
    """As `Relay` does at its start."""
    slots = await log.slots(connector)
    window, unrested = SeenWindow(10**9), 0
    for number in window.expect(seen, slots):
        _, newest_at, ids = decode_slot(slots[number])
        window.restore(number, newest_at, ids)
        unrested += len(ids)
        if unrested > 20_000:
            unrested = 0
            await asyncio.sleep(0)
    assert len(window) == seen.count
    return window


def new_log(kafka: KafkaSettings) -> KafkaIdLog:
    return KafkaIdLog(CommittedReader(kafka, PARTITIONS), PARTITIONS, HASHER)


async def one_connector(kafka: KafkaSettings, count: int, page: int) -> None:
    connector = f"one-{page}"
    seen = await write(kafka, connector, count, page)
    for _ in range(3):
        log = new_log(kafka)
        began, cpu = time.perf_counter(), time.process_time()
        await restore(log, connector, seen)
        print(
            f"{count:,} ids of one connector in pages of {page:,}: "
            f"{time.perf_counter() - began:.2f} s ({time.process_time() - cpu:.2f} s of the CPU)"
        )
        log.close()


async def many(kafka: KafkaSettings, connectors: int, ids: int) -> None:
    names = [f"many-{number}" for number in range(connectors)]
    seen = {}
    for name in names:
        seen[name] = await write(kafka, name, ids, PAGE)
    # Two workers with half of the partitions each, one after the other: processes of their own
    # would share the same cores.
    for worker in (0, 1):
        mine = [name for name in names if partition_for(name, PARTITIONS) % 2 == worker]
        log = new_log(kafka)
        began = time.perf_counter()
        windows = await asyncio.gather(*(restore(log, name, seen[name]) for name in mine))
        held = sum(map(len, windows))
        print(
            f"worker {worker + 1} of 2: {len(mine)} connectors, {held:,} ids, "
            f"{time.perf_counter() - began:.1f} s, at most "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB"
        )
        log.close()


def memory(count: int, page: int) -> None:
    gc.collect()
    tracemalloc.start()
    window = SeenWindow(10**9)
    highest = 0.0
    for start in range(0, count, page):
        ids = hashes(page)
        window.claim(ids)
        at = AT + timedelta(seconds=start)
        window.remember(ids, [at] * page, at)
        window.changes()
        if start > count // 4:
            highest = max(highest, tracemalloc.get_traced_memory()[0] / (start + page))
    held = tracemalloc.get_traced_memory()[0] / count
    tracemalloc.stop()
    print(f"{count:,} ids in pages of {page:,}: {held:.1f} bytes an id, {highest:.1f} at most")
    began = time.perf_counter()
    for one in ids:
        one in window  # noqa: B015 - it is the look-up that is measured
    print(f"  a look-up: {(time.perf_counter() - began) / page * 1e6:.2f} µs")


def hashing(count: int = 200_000) -> None:
    ids = [b"event-%d" % number for number in range(count)]
    began = time.perf_counter()
    for one in ids:
        HASHER.hash("verity.events.raw.acme", one)
    print(f"hashing an id: {(time.perf_counter() - began) / count * 1e6:.2f} µs")


async def measured(kafka: KafkaSettings, connectors: int, ids: int) -> None:
    await Topics(StreamSettings(kafka=kafka)).ensure({IDS_TOPIC})
    await one_connector(kafka, 1_000_000, PAGE)
    await one_connector(kafka, 100_000, 64)
    await many(kafka, connectors, ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connectors", type=int, default=20)
    parser.add_argument("--ids", type=int, default=150_000, help="of each of them")
    options = parser.parse_args()
    hashing()
    memory(1_000_000, PAGE)
    memory(100_000, 1)
    with tempfile.TemporaryDirectory(prefix="verity-bench-") as directory:
        Path(directory).chmod(0o755)
        stack = Stack(Path(directory), kafka_port=0, postgres_port=0)
        try:
            servers = stack.up(environ={}).bootstrap_servers
            kafka = KafkaSettings(bootstrap_servers=servers)
            asyncio.run(measured(kafka, options.connectors, options.ids))
        finally:
            for server in stack.servers:
                server.kill()
                server.wipe()


if __name__ == "__main__":
    main()
