"""A worker without Faust: the real runner that owns every partition from the start.

The sweep kills relays hundreds of times. In a consumer group every kill would wait for the
session to time out; what is attacked here is the relay, and Faust's part has its own lane.

`VERITY_PLANT` plants one bug, to see that the sweep finds it. The product knows nothing of it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from dataclasses import replace
from typing import Any

from verity_stream.kafka.transactions import KafkaPublisher
from verity_stream.postgres import checkpoints
from verity_stream.relay import relay, seen_window
from verity_stream.settings import load_connectors, load_settings
from verity_stream.worker import logs, runner


def plant(name: str) -> None:
    """Break one guarantee on purpose."""
    if name == "no_transaction":
        # Events and checkpoint are sent, but not as one.
        original = KafkaPublisher

        def without(kafka: Any, **options: Any) -> Any:
            return original(kafka, **{**options, "transactional_id": None})

        runner.KafkaPublisher = without  # type: ignore[assignment,attr-defined]
    elif name == "checkpoint_first":
        # The position is persisted before its page is published, and believed.
        publish = relay.Relay._publish

        async def persist_first(self: Any, builder: Any, summary: Any, after: Any) -> Any:
            before = self.checkpoint.version
            await self._store.persist(after, expected_version=before)
            after = await publish(self, builder, summary, after)
            self._checkpoint = replace(self._checkpoint, version=after.version)
            return after

        async def already_done(self: Any, *_: Any, **__: Any) -> Any:
            return checkpoints.Persisted.DONE

        relay.Relay._publish = persist_first  # type: ignore[method-assign]
        real = checkpoints.PostgresCheckpoints.persist

        async def once(self: Any, checkpoint: Any, *, expected_version: int) -> Any:
            stored = await self.load(checkpoint.connector_id)
            if stored is not None and stored.version >= checkpoint.version:
                return checkpoints.Persisted.DONE
            return await real(self, checkpoint, expected_version=expected_version)

        checkpoints.PostgresCheckpoints.persist = once  # type: ignore[method-assign]
    elif name == "no_seen_window":
        seen_window.SeenWindow.claim = lambda self, hashes: [True for _ in hashes]  # type: ignore[method-assign]
    elif name == "no_fencing":
        # Every start has a transactional id of its own, and no epoch is compared.
        numbers = itertools.count()
        original = KafkaPublisher

        def unfenced(kafka: Any, **options: Any) -> Any:
            name = f"{options['transactional_id']}.{os.getpid()}.{next(numbers)}"
            return original(kafka, **{**options, "transactional_id": name})

        runner.KafkaPublisher = unfenced  # type: ignore[assignment,attr-defined]

        async def overwrite(self: Any, checkpoint: Any, *, expected_version: int) -> Any:
            await self._pool.execute(
                "UPDATE connector_checkpoints SET version = greatest(version, $2), cursor = $3,"
                " last_ts = $4 WHERE connector_id = $1",
                checkpoint.connector_id,
                checkpoint.version,
                checkpoint.cursor,
                checkpoint.last_ts,
            )
            return checkpoints.Persisted.DONE

        checkpoints.PostgresCheckpoints.persist = overwrite  # type: ignore[method-assign]

        async def load(self: Any, epoch: int) -> Any:
            return replace(await self._store.load(self._spec.connector_id), epoch=epoch)

        relay.Relay._load = load  # type: ignore[method-assign]
    elif name == "database_wins":
        relay.decide_start = lambda stored, published: checkpoints.Start(stored)  # type: ignore[attr-defined]
    elif name:
        raise ValueError(f"no plant is called {name}")


async def main() -> None:
    """Run every configured connector until SIGTERM."""
    settings = load_settings()
    logs.configure(settings)
    plant(os.environ.get("VERITY_PLANT", ""))
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    own = runner.ConnectorRunner(settings, load_connectors(settings.config))
    await own.start()
    await own.assign(frozenset(range(settings.checkpoint_partitions)))
    while not stopping.is_set():
        await own.reconcile()
        try:
            await asyncio.wait_for(stopping.wait(), 0.1)
        except TimeoutError:
            continue
    await own.stop()


if __name__ == "__main__":
    asyncio.run(main())
