"""Which partition, and so which worker, a connector belongs to."""

from __future__ import annotations

from aiokafka.partitioner import murmur2


def partition_of_key(key: bytes, partitions: int) -> int:
    """The partition that a Kafka producer's default partitioner picks for a record's key."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def partition_for(connector_id: str, partitions: int) -> int:
    """The partition of the checkpoints topic that a connector belongs to.

    A producer picks the same one, so that the relay's checkpoint record, its changelog record and
    the worker that runs the connector meet.

    Args:
        connector_id: The key of the checkpoint record.
        partitions: How many partitions the topic has.
    """
    return partition_of_key(connector_id.encode(), partitions)
