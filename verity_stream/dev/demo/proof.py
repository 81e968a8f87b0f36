"""What must be true at the end: pure comparisons of what the servers say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from connectors.postgres.log_lines import LogContext, parse_line, split_lines
from verity_sdk.connector_base import RawEvent
from verity_stream.records import Checkpoint

IDS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Copies:
    """A connector's checkpoint in the three places where it is kept."""

    database: Checkpoint | None
    topic: Checkpoint | None
    table: Checkpoint | None

    @property
    def are_equal(self) -> bool:
        """Whether all three are there and say the same; the epoch may differ after a claim."""
        if self.database is None or self.topic is None or self.table is None:
            return False
        others = (self.database, self.table)
        return not any(self.topic.differences(one) for one in others)


@dataclass(frozen=True, slots=True)
class Proof:
    """The claim and its evidence.

    Attributes:
        source_ids: From the server's own log files, read past connector, worker and Kafka.
        topic_ids: From the topic, committed records only, repeats included.
        views: When the stream had come to rest.
        statements_sent: By the scripted workload to the audited database.
        statements_found: Of these, in the topic.
        leak_count: Records of the topic that contain the workload's password.
        exit_code: Of the worker that was asked to stop.
    """

    source_ids: Sequence[str]
    topic_ids: Sequence[str]
    views: Copies
    statements_sent: int
    statements_found: int
    leak_count: int
    exit_code: int

    @property
    def lost(self) -> list[str]:
        """Ids that are in the source and not in the topic."""
        return sorted(set(self.source_ids) - set(self.topic_ids))

    @property
    def repeated(self) -> list[str]:
        """Ids that are in the topic more than once."""
        return sorted(key for key, count in Counter(self.topic_ids).items() if count > 1)

    @property
    def invented(self) -> list[str]:
        """Ids that are in the topic and not in the source."""
        return sorted(set(self.topic_ids) - set(self.source_ids))

    @property
    def differences(self) -> list[str]:
        """What does not hold, in sentences; empty if the promise was kept."""
        found = []
        for what, ids in (
            ("lost", self.lost),
            ("repeated", self.repeated),
            ("not from the source", self.invented),
        ):
            if ids:
                examples = ", ".join(ids[:IDS_SHOWN])
                found.append(f"{len(ids)} events are {what}: {examples}")
        if not self.source_ids:
            found.append("the source has no events, so nothing was shown")
        if not self.views.are_equal:
            found.append(
                "the three views of the checkpoint differ: "
                f"PostgreSQL {_short(self.views.database)}, topic {_short(self.views.topic)}, "
                f"table {_short(self.views.table)}"
            )
        if self.statements_sent != self.statements_found:
            found.append(
                f"the workload sent {self.statements_sent} statements, the topic tells of "
                f"{self.statements_found}"
            )
        if self.leak_count:
            found.append(f"{self.leak_count} records of the topic contain a password")
        if self.exit_code:
            found.append(f"the worker's exit code after SIGTERM was {self.exit_code}")
        return found


def events_in_log(directory: Path, context: LogContext) -> list[RawEvent]:
    """The events that a server's jsonlog files hold now, read and parsed from the beginning.

    The rules of what counts are the connector's; how it reads, pages and restarts is not used.

    Raises:
        ValueError: A line is not understood.
    """
    events: list[RawEvent] = []
    for file in sorted(directory.glob("*.json")):
        lines, _ = split_lines(file.read_bytes())
        for number, line in enumerate(lines, 1):
            parsed = parse_line(line, f"{file.name}, line {number}", context)
            if parsed.rejected is not None:
                raise ValueError(f"{parsed.rejected.reference}: {parsed.rejected.reason}")
            events += parsed.events
    return events


def statement_lines(events: Iterable[tuple[str, str]]) -> int:
    """How many lines of log_statement some events, (id, message) each, come from.

    A statement that touches three tables is three events of one line: `{line}`, `{line}:1`, ….
    """
    # pg:{cluster}:{session}:{line}, and perhaps the number of the object.
    return len(
        {
            tuple(event_id.split(":")[:4])
            for event_id, message in events
            if message.startswith("statement: ")
        }
    )


def _short(checkpoint: Checkpoint | None) -> str:
    return "none" if checkpoint is None else f"version {checkpoint.version} {checkpoint.cursor}"
