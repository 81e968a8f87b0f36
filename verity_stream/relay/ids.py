"""Event ids as 8 bytes each: how they are hashed, and the set that remembers a million of them.

Two ids with the same hash would lose an event: by chance, with a million ids remembered, once in
10^13 events. On purpose never, because the hash is keyed (see `docs/decisions/0010-ids.md`).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable

from siphashc import siphash

KEY_BYTES = 16
FINGERPRINT_BYTES = 4

SHARDS = 64
"""So many tables of their own: one that grows is a small one, and takes no long turn."""

GROWTH = 2.5
"""What grows is filled anew, in Python, at a quarter of a microsecond an id."""

SHARD_PLACES_MIN = tuple(round(8 * GROWTH ** (number / SHARDS)) | 1 for number in range(SHARDS))
"""Odd, as every size of a shard: its number says nothing of a place in it."""


class IdHasher:
    """Hashes ids with the installation's key: the same in every process, known to nobody else.

    Args:
        key: 16 random bytes; never logged.

    Attributes:
        fingerprint: Tells hashes of this key from those of another one, and says nothing of it.
    """

    def __init__(self, key: bytes) -> None:
        self._keys = _TopicKeys(key)
        self.fingerprint = hashlib.blake2b(
            key=key, digest_size=FINGERPRINT_BYTES, person=b"siphash-2-4"
        ).digest()

    def hash(self, topic: str, identity: bytes) -> int:
        """64 bits, never 0. The same id in another topic is another id."""
        return self.hashes([topic], [identity])[0]

    def hashes(self, topics: Iterable[str], identities: Iterable[bytes]) -> list[int]:
        """The hashes of ids, each in its topic, in order."""
        keys = map(self._keys.__getitem__, topics)
        return [hashed or 1 for hashed in map(siphash, keys, identities)]


class _TopicKeys(dict[str, bytes]):
    """The key of each topic, made of the installation's, so that an id's hash tells its topic."""

    def __init__(self, key: bytes) -> None:
        super().__init__()
        self._key = key

    def __missing__(self, topic: str) -> bytes:
        derived = hashlib.blake2b(
            topic.encode(), key=self._key, digest_size=KEY_BYTES, person=b"topic"
        ).digest()
        self[topic] = derived
        return derived


class IdTable:
    """A set of such hashes at 15 to 18 bytes each, where Python's own takes 72.

    Open addressing with linear probing, in shards that grow to 2.5 times their size: between a
    third and 4/5 of one is taken, once it is larger than at first. They begin with different sizes,
    so that they do not all grow at the same time. A removal closes its hole, so there is nothing to
    clean up.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Remove all."""
        self._shards = [_zeros(size) for size in SHARD_PLACES_MIN]
        # How many more each shard takes before it grows: one look, where every event comes by.
        self._room = [_taken_max(size) for size in SHARD_PLACES_MIN]

    def __len__(self) -> int:
        return sum(_taken_max(len(shard)) for shard in self._shards) - sum(self._room)

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
        shards, room = self._shards, self._room
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
                left = room[number] = room[number] - 1
                if not left:
                    self._resize(number, _larger(len(shard)))
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
        self._room[number] += 1
        least = SHARD_PLACES_MIN[number]
        if size > least and 4 * (_taken_max(size) - self._room[number]) < size:
            self._resize(number, max(least, size // 2 | 1))

    def reserve(self, count: int) -> None:
        """Make room for so many more at once, rather than by growing again and again."""
        wanted = (len(self) + count) * 9 // 8 // SHARDS
        for number, shard in enumerate(self._shards):
            size = len(shard)
            while _taken_max(size) <= wanted:
                size = _larger(size)
            if size > len(shard):
                self._resize(number, size)

    def _resize(self, number: int, size: int) -> None:
        shard, resized = self._shards[number], _zeros(size)
        for hashed in filter(None, shard):
            place = hashed % size
            while resized[place]:
                place -= 1
            resized[place] = hashed
        self._shards[number] = resized
        self._room[number] += _taken_max(size) - _taken_max(len(shard))

    @property
    def size_bytes(self) -> int:
        """What the tables take."""
        return sum(shard.itemsize * len(shard) for shard in self._shards)


def _larger(size: int) -> int:
    return int(size * GROWTH) | 1


def _taken_max(size: int) -> int:
    return size * 4 // 5


def _zeros(size: int) -> array[int]:
    return array("Q", bytes(8 * size))


def hashes_of(values: Iterable[int] = ()) -> array[int]:
    """Hashes in the form in which they are kept, 8 bytes each."""
    return array("Q", values)
