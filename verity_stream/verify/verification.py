"""Reading what `verify` compares, in the order that makes it comparable."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from verity_sdk.errors import Malformed
from verity_stream.kafka.clients import partition_counts, partitions_of
from verity_stream.kafka.committed import CommittedReader, by_name
from verity_stream.kafka.topics import changelog_topic
from verity_stream.postgres.checkpoints import PostgresCheckpoints
from verity_stream.postgres.errors import database_errors
from verity_stream.records import (
    CHECKPOINTS_TOPIC,
    GAPS_TOPIC,
    KINDS,
    CheckpointRecord,
    dead_topic,
    decode_checkpoint,
    decode_checkpoint_record,
    header,
    raw_topic,
)
from verity_stream.settings import StreamSettings
from verity_stream.verify.continuity import Continuity, Proof
from verity_stream.verify.views import Finding, Verdict, Views, judge


@dataclass(slots=True)
class Report:
    """What `verify` found about one connector."""

    views: Views
    finding: Finding
    proof: Proof | None = None

    @property
    def verdict(self) -> Verdict:
        """That of the views, unless the topic contradicts itself."""
        is_refuted = self.proof is not None and self.proof.faults
        return Verdict.DIVERGED if is_refuted else self.finding.verdict

    @property
    def reasons(self) -> list[str]:
        """Why it is not equal."""
        return [*self.finding.reasons, *(self.proof.faults if self.proof is not None else ())]


async def verify(
    settings: StreamSettings,
    pool: Any,
    only: Collection[str] = (),
    *,
    is_deep: bool = False,
    settle_seconds: float | None = 2.0,
) -> list[Report]:
    """Compare all views of all connectors, twice where they differ.

    Args:
        only: These connectors; all that any view knows if empty.
        is_deep: Prove continuity from the topics, too.
        settle_seconds: How long to wait before the second look; None: there is only one.

    Raises:
        Unavailable, Denied, Misconfigured: A view can't be read; nothing is known.
    """
    views = await _look(settings, pool, only)
    policy = settings.database_behind
    findings = {name: judge(view, policy=policy, is_settled=False) for name, view in views.items()}
    are_equal = all(finding.verdict is Verdict.EQUAL for finding in findings.values())
    if settle_seconds is not None and not are_equal:
        await asyncio.sleep(settle_seconds)
        first, views = views, await _look(settings, pool, only)
        for name, view in views.items():
            is_settled = name in first and first[name].versions == view.versions
            findings[name] = judge(view, policy=policy, is_settled=is_settled)
    reports = {name: Report(view, findings[name]) for name, view in sorted(views.items())}
    if is_deep:
        edits = {name: report.views.edits for name, report in reports.items()}
        proofs = await prove(settings, edits, only)
        for name, proof in proofs.items():
            if name not in reports:
                nothing = Finding(Verdict.EQUAL)
                reports[name] = Report(Views(name), nothing)
            reports[name].proof = proof
    return [reports[name] for name in sorted(reports)]


async def _look(settings: StreamSettings, pool: Any, only: Collection[str]) -> dict[str, Views]:
    store = PostgresCheckpoints(pool)
    reader = CommittedReader(settings.kafka, transaction_timeout=settings.transaction_timeout)
    # The table as a worker would recover it: the last value of every key.
    table = by_name(await reader.last_by_key(changelog_topic(settings), decode_checkpoint))
    before = {row.connector_id: row for row in await store.load_all()}
    topic = await reader.last_checkpoints()
    after = {row.connector_id: row for row in await store.load_all()}
    edits = await _edits(pool)
    names = set(only) or {*before, *topic, *after, *table}
    return {
        name: Views(
            name,
            table.get(name),
            before.get(name),
            topic.get(name),
            after.get(name),
            edits.get(name, frozenset()),
        )
        for name in names
    }


async def _edits(pool: Any) -> dict[str, frozenset[int]]:
    async with database_errors("reading the audit trail"):
        rows = await pool.fetch(
            """
            SELECT connector_id, array_agg((after->>'version')::bigint) AS versions
            FROM connector_audit
            WHERE action IN ('edit', 'rewind') AND after ? 'version'
            GROUP BY connector_id
            """
        )
    return {row["connector_id"]: frozenset(row["versions"]) for row in rows}


async def prove(
    settings: StreamSettings, edits: Mapping[str, Collection[int]], only: Collection[str] = ()
) -> dict[str, Proof]:
    """Prove continuity of every connector from the topics alone.

    Raises:
        Unavailable, Denied: The topics can't be read.
    """
    prefixes = (raw_topic(""), dead_topic(""))
    counts = await partition_counts(
        settings.kafka, lambda name: name.startswith(prefixes) or name == GAPS_TOPIC
    )
    places = partitions_of(counts)
    decided = CommittedReader(settings.kafka, waits_for_open=False)
    # The order matters: whatever is decided now has its checkpoint in the topic by the time that
    # is read. What follows is newer than this look, and left out.
    ends = await decided.ends(places)
    sealed, malformed = await _checkpoint_records(settings, only)
    begins = await decided.begins(places)
    bounds = {(place.topic, place.partition): (begins[place], ends[place]) for place in places}

    def new(name: str) -> Continuity:
        return Continuity(sealed.get(name, ()), edits.get(name, ()), bounds, settings.delivery)

    proofs = {name: new(name) for name in sealed}
    async for records in decided.read(dict.fromkeys(places), ends):
        for record in records:
            kind = KINDS.get(header(record, "schema"))
            name = header(record, "connector_id")
            place = record.topic, record.partition
            # Published by a connector's own run(), which promises less; or since this look.
            if kind is None or not name or record.offset >= bounds[place][1]:
                continue
            if only and name not in only:
                continue
            if name not in proofs:
                proofs[name] = new(name)
            headers = dict(record.headers)
            identity = headers.get("dead_id" if kind == "dead" else "event_id") or record.value
            proofs[name].take(place, record.offset, kind, identity or b"")
    finished = {name: proof.finish() for name, proof in proofs.items()}
    for name, reason in malformed.items():
        empty = finished.get(name) or Proof(0, 0, None, 0, (), ())
        finished[name] = replace(empty, faults=(*empty.faults, reason))
    return finished


async def _checkpoint_records(
    settings: StreamSettings, only: Collection[str]
) -> tuple[dict[str, list[CheckpointRecord]], dict[str, str]]:
    found: dict[str, list[CheckpointRecord]] = defaultdict(list)
    malformed: dict[str, str] = {}
    reader = CommittedReader(settings.kafka, transaction_timeout=settings.transaction_timeout)
    async for record in reader.stream(CHECKPOINTS_TOPIC):
        if record.key is None or record.value is None:
            continue
        name = record.key.decode("utf-8", "backslashreplace")
        if only and name not in only:
            continue
        try:
            found[name].append(decode_checkpoint_record(record.value, record.key))
        except Malformed as error:
            malformed[name] = f"a checkpoint record is not understood: {error}"
    return dict(found), malformed
