"""Placement: the relay's producer and the worker agree on the partition of a connector."""

import pytest
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st

from verity_stream.kafka.partitions import partition_for


@given(st.text(min_size=1), st.integers(min_value=1, max_value=1000))
def test_it_is_the_partition_of_a_producers_default_partitioner(
    connector_id: str, partitions: int
) -> None:
    """A checkpoint record, sent without a partition, lands where its connector belongs."""
    numbers = list(range(partitions))
    chosen = DefaultPartitioner()(connector_id.encode(), numbers, numbers)
    assert partition_for(connector_id, partitions) == chosen


@pytest.mark.parametrize(
    ("connector_id", "murmur2"),
    [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("abc", 479470107),
    ],
)
def test_it_is_the_partition_of_javas_partitioner(connector_id: str, murmur2: int) -> None:
    """Hashes from the test of Kafka's own client (UtilsTest.testMurmur2): it must never move."""
    assert partition_for(connector_id, 24) == (murmur2 & 0x7FFFFFFF) % 24
