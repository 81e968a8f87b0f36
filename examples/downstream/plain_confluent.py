"""Read committed events with confluent-kafka: python plain_confluent.py [SERVERS [PLATFORM]]."""

import sys

import orjson
from confluent_kafka import Consumer

servers = sys.argv[1] if len(sys.argv) > 1 else "localhost:9092"
platform = sys.argv[2] if len(sys.argv) > 2 else "postgres"
consumer = Consumer(
    {
        "bootstrap.servers": servers,
        "group.id": "plain-confluent",
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",  # librdkafka's default, said for whoever copies this
    }
)
consumer.subscribe([f"verity.events.raw.{platform}"])
while True:
    record = consumer.poll(1.0)
    if record is not None and record.error() is None:
        try:
            print(orjson.loads(record.value() or b"")["event_id"], flush=True)
        except (ValueError, LookupError, TypeError):
            place = f"{record.topic()}[{record.partition()}]@{record.offset()}"
            print(f"{place} is not an event", file=sys.stderr)
