"""The planted bugs can be planted, and leave nothing behind."""

import pytest

from simulation.plants import PLANTS, planted
from verity_sdk import batches, position
from verity_stream.relay import relay, sources


@pytest.mark.parametrize("name", PLANTS)
def test_what_it_replaces_is_there_and_comes_back(name: str) -> None:
    modules = (batches, position, relay, sources, relay.Relay, sources.PlainSource)
    before = [dict(vars(one)) for one in modules]
    with planted(name):
        pass
    assert [dict(vars(one)) for one in modules] == before


def test_a_function_is_replaced_wherever_it_is_known() -> None:
    with planted("add_unlocked"):
        assert sources.batched_into is batches.batched_into  # type: ignore[attr-defined]
        assert sources.batched_into.__module__ == "simulation.plants"  # type: ignore[attr-defined]
    assert sources.batched_into.__module__ == "verity_sdk.batches"  # type: ignore[attr-defined]


def test_there_are_enough_of_them() -> None:
    assert len(PLANTS) >= 40
