"""Read committed events with aiokafka: python plain_aiokafka.py [SERVERS [PLATFORM]]."""

import asyncio
import sys

import orjson
from aiokafka import AIOKafkaConsumer


async def main(servers: str = "localhost:9092", platform: str = "postgres") -> None:
    topic = f"verity.events.raw.{platform}"
    async with AIOKafkaConsumer(
        topic,
        bootstrap_servers=servers,
        group_id="plain-aiokafka",
        auto_offset_reset="earliest",
        isolation_level="read_committed",  # the default, read_uncommitted, shows aborted events
    ) as consumer:
        async for record in consumer:
            try:
                print(orjson.loads(record.value)["event_id"], flush=True)
            except (ValueError, LookupError, TypeError):
                place = f"{record.topic}[{record.partition}]@{record.offset}"
                print(f"{place} is not an event", file=sys.stderr)


asyncio.run(main(*sys.argv[1:]))
