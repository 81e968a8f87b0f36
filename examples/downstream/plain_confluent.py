"""Read committed events with confluent-kafka: python plain_confluent.py [SERVERS [PLATFORM]]."""

import sys

import orjson
from confluent_kafka import Consumer

servers, platform = (sys.argv[1:] + ["localhost:9092", "postgres"][len(sys.argv) - 1 :])[:2]
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
        print(orjson.loads(record.value())["event_id"], flush=True)
