"""One side of a comparison: measures with the code of the checkout that PYTHONPATH names.

A script, not a module: `benchmarks` and the product are those of that checkout, old ones among
them, so only names that old checkouts have are used. Reads `NAME EVENTS` lines, answers each with
a line of JSON.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import secrets
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import structlog

CHECKOUT = Path(os.environ["PYTHONPATH"]).resolve()


def is_of_checkout(module: ModuleType) -> bool:
    """Whether it is that of the checkout, and not what is installed."""
    return CHECKOUT in Path(str(module.__file__)).resolve().parents


async def _patiently(check: Any, *arguments: Any) -> Any:
    for _ in range(20):
        try:
            return await check(*arguments)
        except RuntimeError:
            await asyncio.sleep(0.2)
    return await check(*arguments)


async def serve() -> None:
    """Answer until the input ends."""
    from benchmarks import contestants, workload
    from benchmarks.bench import connected
    from verity_stream.settings import StreamSettings

    for name in ("verity_stream", "verity_sdk", "benchmarks"):
        if not is_of_checkout(sys.modules[name]):
            raise SystemExit(f"{name} is not that of {CHECKOUT}: {sys.modules[name].__file__}")
    # Two sides that start in the same second would publish to the same topics.
    workload.RUN = secrets.token_hex(4)
    check = contestants._check  # noqa: SLF001 - so it is called in old checkouts
    # That of old checkouts does not wait for the markers of the commit.
    contestants._check = partial(_patiently, check)  # noqa: SLF001 - as above
    measures = {one.name: one.measure for one in contestants.CONTESTANTS}
    workloads: dict[int, workload.Workload] = {}
    # The broker's own program is what only one contestant needs, and that one is not compared.
    async with connected(StreamSettings(), None) as bench:  # type: ignore[arg-type]
        while line := await asyncio.to_thread(sys.stdin.readline):
            name, events = line.split()
            count = int(events)
            if count not in workloads:
                workloads[count] = workload.Workload.of(count)
                gc.collect()
                gc.freeze()
            gc.collect()
            measured = await measures[name](bench, workloads[count])
            # What the broker still writes and deletes of this one shall not hit the next.
            await asyncio.sleep(0.3)
            answer = {"rate": measured.rate, "cpu_seconds": measured.cpu_seconds, "events": count}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    asyncio.run(serve())
