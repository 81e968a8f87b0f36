"""Ids as hashes: whose they are, and the set that remembers them."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from siphashc import siphash

from verity_stream.relay.ids import SHARD_PLACES_MIN, SHARDS, IdHasher, IdTable, _larger

FIRST_SIZES = [SHARD_PLACES_MIN[0]]
"""How large a shard is at first, and after it grew once, twice and three times."""
for _ in range(3):
    FIRST_SIZES.append(_larger(FIRST_SIZES[-1]))

ONE, OTHER = IdHasher(b"k" * 16), IdHasher(b"l" * 16)


@given(st.text(), st.binary())
def test_an_id_has_one_hash_in_every_process_of_an_installation(topic: str, one: bytes) -> None:
    assert IdHasher(b"k" * 16).hash(topic, one) == ONE.hash(topic, one)
    assert 0 < ONE.hash(topic, one) < 2**64


def test_the_hash_stays_what_it_is() -> None:
    """What was written by an older version must be found by a newer one."""
    assert ONE.hash("verity.events.raw.acme", b"e1") == 13077122791700312571
    assert ONE.fingerprint.hex() == "b511b6a1"


def test_the_package_computes_siphash_2_4() -> None:
    """The example of the paper's appendix A (Aumasson and Bernstein, 2012)."""
    assert siphash(bytes(range(16)), bytes(range(15))) == 0xA129CA6149BE45E5


def test_another_key_is_another_hash_and_another_fingerprint() -> None:
    assert ONE.hash("t", b"1") != OTHER.hash("t", b"1")
    assert ONE.fingerprint != OTHER.fingerprint
    assert b"k" not in ONE.fingerprint


def test_the_same_id_in_another_topic_is_another_one() -> None:
    assert ONE.hash("a", b"1") != ONE.hash("b", b"1")
    assert ONE.hash("a", b"b1") != ONE.hash("ab", b"1"), "where the topic ends is clear"


def test_it_costs_15_to_18_bytes_an_id_while_it_grows_and_gives_them_back() -> None:
    drawn = random.Random(1)
    ids = [drawn.getrandbits(64) or 1 for _ in range(200_000)]
    table = IdTable()
    for count, one in enumerate(ids, 1):
        table.add([one])
        if count > 20_000 and count % 5000 == 0:
            # Its shards grow one after the other, so that this is the same at every size.
            assert 14 < table.size_bytes / count < 19, count
    for one in ids[1000:]:
        table.discard(one)
    assert len(table) == 1000
    assert table.size_bytes < 1000 * 40
    assert all(one in table for one in ids[:1000])


@pytest.mark.parametrize("count", [80_000, 100_000, 130_000])
def test_room_that_was_made_is_enough_and_not_too_much(count: int) -> None:
    drawn = random.Random(2)
    table = IdTable()
    table.reserve(count)
    before = table.size_bytes
    for _ in range(count):
        table.add([drawn.getrandbits(64) or 1])
    # By chance a shard gets more than the others, and grows all the same.
    assert before <= table.size_bytes <= 1.02 * before < 20 * count


class TableMachine(RuleBasedStateMachine):
    """Against Python's set; hashes that collide, wrap around and make long runs among them."""

    # Of one shard, and of one place in it whatever its size: these are its first ones.
    hashes = st.integers(1, 2**64 - 1) | st.builds(
        lambda number, home: number * SHARDS * math.lcm(*FIRST_SIZES) + home,
        st.integers(1, 40),
        st.integers(0, 2),
    )

    def __init__(self) -> None:
        super().__init__()
        self.table = IdTable()
        self.model: set[int] = set()

    @rule(these=st.lists(hashes, max_size=9))
    def add(self, these: list[int]) -> None:
        for hashed, is_new in zip(these, self.table.add(these), strict=True):
            assert is_new is (hashed not in self.model)
            self.model.add(hashed)

    @rule(hashed=hashes)
    def discard(self, hashed: int) -> None:
        self.table.discard(hashed)
        self.model.discard(hashed)

    @rule(count=st.integers(0, 2000))
    def reserve(self, count: int) -> None:
        self.table.reserve(count)

    @rule()
    def clear(self) -> None:
        self.table.clear()
        self.model.clear()

    @rule(hashed=hashes)
    def look(self, hashed: int) -> None:
        assert (hashed in self.table) is (hashed in self.model)

    @invariant()
    def has_all(self) -> None:
        assert len(self.table) == len(self.model)
        assert all(hashed in self.table for hashed in self.model)


TestTable = TableMachine.TestCase
