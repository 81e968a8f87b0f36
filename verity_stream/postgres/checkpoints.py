"""The rows of the checkpoints: claimed, compared and set."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from verity_sdk.position import FIRST_SINCE
from verity_stream.postgres.errors import database_errors
from verity_stream.records import (
    POSITION,
    Checkpoint,
    SeenInTopics,
    encode_seen,
    position_of_row,
    position_row,
)

POSITION_IS = ", ".join(f"{name} = ${number}" for number, name in enumerate(POSITION, 6))
"""Of an UPDATE: the columns of a position, as its arguments from the sixth on."""


class Persisted(enum.Enum):
    """What a compare-and-set did."""

    DONE = "done"
    EDITED = "edited"
    """Nothing was written: an operator moved the position; the edit wins."""
    FENCED = "fenced"
    """Nothing was written: a newer relay has claimed the connector."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a stored checkpoint comes from.

    Attributes:
        published_version: The version that a relay last published; edits come on top.
        other_cluster: The Kafka cluster that it was published to, where that is not ours.
    """

    published_version: int = 0
    other_cluster: str | None = None


class CheckpointStore(Protocol):
    """The stored checkpoints. Every method raises one of the five errors."""

    async def provenance(self, connector_id: str) -> Provenance:
        """Where the checkpoint comes from; ask before a claim, which makes it ours."""

    async def adopt(self, connector_id: str) -> None:
        """Take over a checkpoint of another cluster: its position counts, its offsets do not."""

    async def claim(self, connector_id: str) -> Checkpoint:
        """Take the next epoch; every relay with a lower one is fenced from here on."""

    async def load(self, connector_id: str) -> Checkpoint | None:
        """The checkpoint as it is stored now."""

    async def persist(self, checkpoint: Checkpoint, *, expected_version: int) -> Persisted:
        """Write the checkpoint if version and epoch are still what the relay knows.

        And if the row is as a relay published it, unless the checkpoint comes from an edited one.
        """


class PostgresCheckpoints:
    """The rows of `connector_checkpoints`.

    Args:
        pool: The database.
        kafka_cluster: The id of the cluster that is published to; None asks nobody.
    """

    def __init__(self, pool: Any, kafka_cluster: str | None = None) -> None:
        self._pool = pool
        self._kafka_cluster = kafka_cluster

    async def provenance(self, connector_id: str) -> Provenance:
        """Which version was published last, and whether to another cluster."""
        async with database_errors("reading the checkpoint"):
            row = await self._pool.fetchrow(
                "SELECT published_version, kafka_cluster FROM connector_checkpoints "
                "WHERE connector_id = $1",
                connector_id,
            )
        if row is None:
            return Provenance()
        found, own = row["kafka_cluster"], self._kafka_cluster
        is_other = found is not None and own is not None and found != own
        return Provenance(row["published_version"], found if is_other else None)

    async def claim(self, connector_id: str) -> Checkpoint:
        """Insert the row if there is none, raise its epoch by one and return it."""
        async with database_errors("claiming the checkpoint"):
            row = await self._pool.fetchrow(
                """
                INSERT INTO connector_checkpoints AS c (connector_id, last_ts, epoch, kafka_cluster)
                VALUES ($1, $2, 1, $3)
                ON CONFLICT (connector_id) DO UPDATE SET
                    epoch = c.epoch + 1, kafka_cluster = coalesce($3, c.kafka_cluster)
                RETURNING *
                """,
                connector_id,
                FIRST_SINCE,
                self._kafka_cluster,
            )
        return checkpoint_of(row)

    async def adopt(self, connector_id: str) -> None:
        """Make the row one of our cluster.

        Where the ids are still to be read back from offsets, those are another cluster's: here
        they can stand anywhere from the beginning on.
        """
        stored = await self.load(connector_id)
        if stored is None:
            return
        seen = stored.seen
        if isinstance(seen, SeenInTopics):
            start = {topic: dict.fromkeys(places, 0) for topic, places in seen.start.items()}
            seen = SeenInTopics(start, seen.newest_at)
        async with database_errors("taking over the checkpoint"):
            await self._pool.execute(
                "UPDATE connector_checkpoints SET kafka_cluster = $2, seen = $3 "
                "WHERE connector_id = $1",
                connector_id,
                self._kafka_cluster,
                None if seen is None else encode_seen(seen),
            )

    async def load(self, connector_id: str) -> Checkpoint | None:
        """The row, or None."""
        async with database_errors("reading the checkpoint"):
            row = await self._pool.fetchrow(
                "SELECT * FROM connector_checkpoints WHERE connector_id = $1", connector_id
            )
        return None if row is None else checkpoint_of(row)

    async def load_all(self) -> list[Checkpoint]:
        """Every row, by connector id."""
        async with database_errors("reading the checkpoints"):
            rows = await self._pool.fetch(
                "SELECT * FROM connector_checkpoints ORDER BY connector_id"
            )
        return [checkpoint_of(row) for row in rows]

    async def persist(self, checkpoint: Checkpoint, *, expected_version: int) -> Persisted:
        """Compare, and set; one statement, so nothing can come between."""
        async with database_errors("writing the checkpoint"):
            status = await self._pool.execute(
                f"""
                UPDATE connector_checkpoints
                SET version = $4, published_version = $4, updated_at = now(), {POSITION_IS}
                WHERE connector_id = $1 AND version = $2 AND epoch = $3
                    AND (published_version = version OR $5)
                """,  # noqa: S608 - the names are those of `POSITION`
                checkpoint.connector_id,
                expected_version,
                checkpoint.epoch,
                checkpoint.version,
                checkpoint.is_edited,
                *position_row(checkpoint),
            )
        if status == "UPDATE 1":
            return Persisted.DONE
        stored = await self.load(checkpoint.connector_id)
        if stored is not None and stored.epoch == checkpoint.epoch:
            return Persisted.EDITED
        return Persisted.FENCED


def checkpoint_of(row: Mapping[str, Any]) -> Checkpoint:
    """A row of the table."""
    return Checkpoint(
        row["connector_id"],
        row["version"],
        row["epoch"],
        **position_of_row(row),
        is_edited=row["version"] > row["published_version"],
    )
