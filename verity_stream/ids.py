"""Event ids as 8 bytes each: how they are hashed, and the set that remembers a million of them.

Two ids with the same hash would lose an event: by chance, with a million ids remembered, once in
10^13 events. On purpose never, because the hash is keyed (see `docs/decisions/0010-ids.md`).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable

KEY_BYTES = 16
FINGERPRINT_BYTES = 4

SHARDS = 64
"""So many tables of their own: one that grows is a small one, and takes no long turn."""

SHARD_PLACES_MIN = 5
"""Odd, as every size of a shard: its number says nothing of a place in it."""


class IdHasher:
    """Hashes ids with the installation's key: the same in every process, known to nobody else.

    Args:
        key: 16 random bytes; never logged.

    Attributes:
        fingerprint: Tells hashes of this key from those of another one, and says nothing of it.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._bases: dict[str, hashlib.blake2b] = {}
        self.fingerprint = hashlib.blake2b(
            key=key, digest_size=FINGERPRINT_BYTES, person=b"fingerprint"
        ).digest()

    def hash(self, topic: str, identity: bytes) -> int:
        """64 bits, never 0. The same id in another topic is another id."""
        return self.hashes([topic], [identity])[0]

    def hashes(self, topics: Iterable[str], identities: Iterable[bytes]) -> list[int]:
        """The hashes of ids, each in its topic, in order."""
        bases, hashes = self._bases, []
        for topic, identity in zip(topics, identities, strict=False):
            try:
                digest = bases[topic].copy()
            except KeyError:
                base = hashlib.blake2b(topic.encode() + b"\0", key=self._key, digest_size=8)
                digest = bases.setdefault(topic, base).copy()
            digest.update(identity)
            hashes.append(int.from_bytes(digest.digest(), "little") or 1)
        return hashes


class IdTable:
    """A set of such hashes at 11 to 16 bytes each, where Python's own takes 72.

    Open addressing with linear probing. Shards are between a half and three quarters full, once
    they are larger than the least; a removal closes its hole, so there is nothing to clean up.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Remove all."""
        self._shards = [_zeros(SHARD_PLACES_MIN) for _ in range(SHARDS)]
        self._counts = [0] * SHARDS

    def __len__(self) -> int:
        return sum(self._counts)

    def __contains__(self, hashed: int) -> bool:
        shard = self._shards[hashed % SHARDS]
        place = hashed % len(shard)
        while found := shard[place]:
            if found == hashed:
                return True
            place -= 1  # Before the first stands the last.
        return False

    def add(self, hashes: Iterable[int]) -> list[bool]:
        """Which of them were not there, in order; all are from now on."""
        shards, counts = self._shards, self._counts
        are_new: list[bool] = []
        for hashed in hashes:
            number = hashed % SHARDS
            shard = shards[number]
            place = hashed % len(shard)
            while found := shard[place]:
                if found == hashed:
                    are_new.append(False)
                    break
                place -= 1
            else:
                shard[place] = hashed
                are_new.append(True)
                count = counts[number] = counts[number] + 1
                if 4 * count > 3 * len(shard):
                    self._resize(number, len(shard) * 3 // 2 | 1)
        return are_new

    def discard(self, hashed: int) -> None:
        """Remove it, if it is there."""
        number = hashed % SHARDS
        shard = self._shards[number]
        size = len(shard)
        hole = hashed % size
        while (found := shard[hole]) != hashed:
            if not found:
                return
            hole = (hole - 1) % size
        # Whatever follows and could stand at the hole moves there: a probe ends at a 0.
        place = hole
        while found := shard[place := (place - 1) % size]:
            if (found - place) % size >= (hole - place) % size:
                shard[hole] = found
                hole = place
        shard[hole] = 0
        count = self._counts[number] = self._counts[number] - 1
        if size > SHARD_PLACES_MIN and 4 * count < size:
            self._resize(number, max(SHARD_PLACES_MIN, size // 2 | 1))

    def reserve(self, count: int) -> None:
        """Make room for so many more at once, rather than by growing again and again."""
        wanted = (len(self) + count) // SHARDS * 8 // 5 | 1
        for number, shard in enumerate(self._shards):
            if wanted > len(shard):
                self._resize(number, wanted)

    def _resize(self, number: int, size: int) -> None:
        resized = _zeros(size)
        for hashed in self._shards[number]:
            if hashed:
                place = hashed % size
                while resized[place]:
                    place -= 1
                resized[place] = hashed
        self._shards[number] = resized

    @property
    def size_bytes(self) -> int:
        """What the tables take."""
        return sum(shard.itemsize * len(shard) for shard in self._shards)


def _zeros(size: int) -> array[int]:
    return array("Q", bytes(8 * size))


def hashes_of(values: Iterable[int] = ()) -> array[int]:
    """Hashes in the form in which they are kept, 8 bytes each."""
    return array("Q", values)
