"""Whether the views agree, and what the topics prove: every decision, from data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verity_sdk.errors import Malformed
from verity_stream.records import (
    Checkpoint,
    CheckpointRecord,
    Origin,
    PageSummary,
    Seen,
    checkpoint_record,
    decode_checkpoint_record,
)
from verity_stream.verify.continuity import Continuity, Proof
from verity_stream.verify.verification import Report
from verity_stream.verify.views import Verdict, Views, judge

AT = datetime(2026, 1, 1, tzinfo=UTC)
RAW = ("verity.events.raw.test", 0)
OTHER = ("verity.events.raw.test", 1)
DEAD = ("verity.events.dead.test", 0)
BOUNDS = {RAW: (0, 10_000), OTHER: (0, 10_000), DEAD: (0, 10_000)}


def at(version: int, **changes: Any) -> Checkpoint:
    """The checkpoint of a version."""
    checkpoint = Checkpoint("c", version, 1, AT + timedelta(seconds=version), {"next": version})
    return replace(checkpoint, **changes)


def views(
    row: Checkpoint | None,
    topic: Checkpoint | Malformed | None,
    table: Checkpoint | Malformed | None = None,
    after: Checkpoint | None = None,
    edits: Iterable[int] = (),
) -> Views:
    """Views in which nothing moved, and the table follows the topic unless it is given."""
    held = topic if table is None and isinstance(topic, Checkpoint) else table
    return Views("c", held, row, topic, after or row, frozenset(edits))


@pytest.mark.parametrize(
    ("looked_at", "verdict"),
    [
        (views(None, None), Verdict.EQUAL),
        (views(at(0), None), Verdict.EQUAL),
        (views(at(7), at(7)), Verdict.EQUAL),
        (views(at(7, epoch=4), at(7)), Verdict.EQUAL),
        (views(at(6), at(7), after=at(7)), Verdict.EQUAL),
        (views(at(6), at(7), after=at(9)), Verdict.EQUAL),
        (views(at(6), at(7)), Verdict.REPAIRED),
        (views(None, at(1)), Verdict.REPAIRED),
        (views(at(2), at(7)), Verdict.REPAIRED),
        (views(None, at(7)), Verdict.REPAIRED),
        (views(at(7), None), Verdict.REPAIRED),
        (views(at(8), at(7), edits=[8]), Verdict.REPAIRED),
        (views(at(9), at(7), edits=[3, 8, 9]), Verdict.REPAIRED),
        (views(at(7, cursor=None), at(7), edits=[7]), Verdict.REPAIRED),
        (views(at(7), at(7), table=at(5)), Verdict.REPAIRED),
        (views(at(7), None, table=at(7)), Verdict.REPAIRED),
        (Views("c", None, at(7), at(7), at(7)), Verdict.REPAIRED),
        (views(at(8), at(7)), Verdict.DIVERGED),
        (views(at(8), at(7), edits=[7]), Verdict.DIVERGED),
        (views(at(9), at(7), edits=[3, 8]), Verdict.DIVERGED),
        (views(at(7, cursor=None), at(7)), Verdict.DIVERGED),
        (views(at(6), at(7), after=at(7, cursor=None)), Verdict.DIVERGED),
        (views(at(7, last_ts=AT), at(7)), Verdict.DIVERGED),
        (views(at(7, complete_through=AT), at(7)), Verdict.DIVERGED),
        (views(at(7, seen=Seen(0, 1)), at(7)), Verdict.DIVERGED),
        (views(at(7), at(7), table=at(8)), Verdict.DIVERGED),
        (views(at(7), at(7), table=at(7, cursor=None)), Verdict.DIVERGED),
        (views(at(7), at(7), table=at(7, epoch=2)), Verdict.DIVERGED),
        (views(at(7), at(7), table=Malformed("what?")), Verdict.DIVERGED),
        (views(at(7), Malformed("what?")), Verdict.DIVERGED),
    ],
)
def test_the_verdict_on_views_that_stand_still(looked_at: Views, verdict: Verdict) -> None:
    found = judge(looked_at, policy="kafka_wins", is_settled=True)
    assert found.verdict is verdict
    assert bool(found.reasons) is (verdict is not Verdict.EQUAL)


@pytest.mark.parametrize("looked_at", [views(at(6), at(7)), views(at(7), at(7), table=at(6))])
def test_what_is_behind_may_be_the_page_in_flight_until_it_stands_still(looked_at: Views) -> None:
    verdict = judge(looked_at, policy="kafka_wins", is_settled=False).verdict
    assert verdict is Verdict.IN_FLIGHT


def test_what_moves_between_two_looks_is_any_of_the_three_versions() -> None:
    """By it a page in flight is told from what stands still."""
    assert views(at(6), at(7), table=at(5)).versions == (5, 7, 6)
    assert views(None, Malformed("what?")).versions == (None, None, None)


def test_a_database_that_is_far_behind_needs_somebody_where_the_policy_is_to_stop() -> None:
    for row in (at(2), at(5)):
        looked_at = views(row, at(7))
        assert judge(looked_at, policy="stop", is_settled=False).verdict is Verdict.DIVERGED
    # One page behind is a crash; and an edit is the decision.
    for looked_at in (views(at(6), at(7)), views(at(4), at(7), edits=[4])):
        assert judge(looked_at, policy="stop", is_settled=True).verdict is Verdict.REPAIRED


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_no_schedule_of_a_running_relay_looks_diverged(
    table: int, row: int, topic: int, after: int
) -> None:
    """Whenever the four places are read, in this order, from a relay that does what it should."""
    first, second, third = sorted((table, row, topic))
    moved_on = max(after, third - 1)

    def page(version: int) -> Checkpoint | None:
        return at(version) if version else None

    looked_at = Views("c", page(first), page(second), page(third), page(moved_on))
    found = judge(looked_at, policy="stop", is_settled=False)
    assert found.verdict in (Verdict.EQUAL, Verdict.IN_FLIGHT)


# Continuity.


def page(
    version: int, first: int, last: int, *, place: Any = RAW, **counts: int
) -> CheckpointRecord:
    """The record of a page that holds the events of a range."""
    return CheckpointRecord(
        version,
        {"event": counts.get("event", last - first + 1), "dead": counts.get("dead", 0), "gap": 0},
        {place: (first, last)},
    )


def edit(version: int) -> CheckpointRecord:
    """The record by which an edit was published."""
    return CheckpointRecord(version, {"event": 0, "dead": 0, "gap": 0}, {}, is_position=True)


def proof(
    records: Iterable[CheckpointRecord],
    ids: dict[int, str],
    edits: Iterable[int] = (),
    **options: Any,
) -> Proof:
    """What a partition with these ids proves."""
    continuity = Continuity(list(records), set(edits), options.pop("bounds", BOUNDS), **options)
    for offset, identity in sorted(ids.items()):
        continuity.take(RAW, offset, "event", identity.encode())
    return continuity.finish()


def numbered(*ranges: tuple[int, int]) -> dict[int, str]:
    """An event with an id of its own at each of these offsets."""
    return {offset: f"e{offset}" for first, last in ranges for offset in range(first, last + 1)}


def test_pages_that_hold_what_they_say_are_proven() -> None:
    # Control markers of other transactions stand between.
    found = proof([page(1, 0, 9), page(2, 12, 19), page(3, 25, 25)],
                  numbered((0, 9), (12, 19), (25, 25)))  # fmt: skip
    assert found == Proof(19, 3, 1, 0, (), ())


@pytest.mark.parametrize("lost", [0, 5, 9, 12])
def test_an_event_that_is_missing_is_found(lost: int) -> None:
    ids = numbered((0, 9), (12, 19))
    del ids[lost]
    (fault,) = proof([page(1, 0, 9), page(2, 12, 19)], ids).faults
    assert "says events" in fault


@pytest.mark.parametrize("offset", [5, 15, 30])
def test_an_event_that_no_page_holds_is_found(offset: int) -> None:
    ids = {**numbered((6, 9), (20, 29)), offset: "stray"}
    (fault,) = proof([page(1, 6, 9), page(2, 20, 29)], ids).faults
    assert "1 records belong to no page" in fault
    assert f"@{offset} stray" in fault


def test_an_event_too_many_in_a_page_is_found() -> None:
    (fault,) = proof([page(1, 0, 9, event=8)], numbered((0, 9))).faults
    assert "version 1 says events: 8, the topics hold 10" in fault


def test_an_id_that_repeats_is_found_within_a_page_and_across() -> None:
    ids = numbered((0, 9), (12, 19))
    (fault,) = proof([page(1, 0, 9), page(2, 12, 19)], {**ids, 15: "e3", 8: "e2"}).faults
    assert "2 events repeat the id of another: e2; e3" in fault


def test_an_edit_explains_repeats_after_it_and_none_before() -> None:
    records = [page(1, 0, 9), page(2, 12, 19), edit(4), page(5, 22, 31)]
    replayed = {
        **numbered((0, 9), (12, 19)),
        **{offset: f"e{offset - 22}" for offset in range(22, 32)},
    }
    for edits in ([3], []):  # The record of the edit says so itself.
        found = proof(records, replayed, edits)
        assert found.faults == ()
        assert found.replayed_count == 10
    (fault,) = proof(records, {**replayed, 15: "e3"}).faults
    assert "repeat" in fault


def test_an_edit_that_took_the_version_of_a_page_in_flight_explains_its_repeats() -> None:
    records = [page(1, 0, 9), page(2, 12, 19), edit(3), page(4, 22, 31)]
    ids = {**numbered((0, 9), (12, 19)), **{offset: f"e{offset - 10}" for offset in range(22, 32)}}
    assert proof(records, ids, edits=[2]).faults == ()
    assert proof(records, ids).faults != ()
    # What that page itself repeats came before the edit.
    (fault,) = proof(records[:3], {**numbered((0, 9), (12, 19)), 15: "e3"}, edits=[2]).faults
    assert "1 events repeat" in fault


def test_what_was_replayed_once_may_not_repeat_once_more() -> None:
    records = [page(1, 0, 9), edit(3), page(4, 12, 21), page(5, 24, 33)]
    ids = {**numbered((0, 9), (24, 33)), **{offset: f"e{offset - 12}" for offset in range(12, 22)}}
    assert proof(records, ids).faults == ()
    (fault,) = proof(records, {**ids, 30: "e5"}).faults
    assert "1 events repeat the id of another: e5" in fault


def test_the_records_that_compaction_removed_are_not_proven_and_it_says_so() -> None:
    ids = numbered((0, 9), (12, 19), (22, 25))
    found = proof([page(2, 12, 19), page(3, 22, 25)], ids)
    assert found.faults == ()
    assert found.from_version == 2
    assert any("10 records stand outside" in note for note in found.notes)
    assert any("1 checkpoint records are gone" in note for note in found.notes)
    # Between two pages that follow each other nothing can have been compacted.
    (fault,) = proof([page(2, 12, 19), page(3, 22, 25)], {**ids, 20: "stray"}).faults
    assert "@20 stray" in fault


def test_versions_that_do_not_ascend_are_found() -> None:
    records = [page(1, 0, 9), page(3, 12, 19), page(2, 22, 25)]
    assert any("2 after 3" in fault for fault in proof(records, {}).faults)
    # Two pages of one version: two relays that both believed themselves to be the owner.
    records = [page(1, 0, 9), page(2, 12, 19), page(2, 22, 25)]
    assert any("2 after 2" in fault for fault in proof(records, {}).faults)


def test_what_retention_removed_is_not_missing() -> None:
    found = proof(
        [page(1, 0, 9), page(2, 12, 19)], numbered((5, 9), (12, 19)), bounds={RAW: (5, 100)}
    )
    assert found.faults == ()
    assert (found.page_count, found.from_version) == (1, 2)


@pytest.mark.parametrize("end", [12, 19])
def test_what_was_published_while_this_was_read_is_not_missing(end: int) -> None:
    ids = numbered((0, 9), (12, end - 1))
    found = proof([page(1, 0, 9), page(2, 12, 19)], ids, bounds={RAW: (0, end)})
    assert found.faults == ()
    assert found.page_count == 1


def test_a_topic_that_was_deleted_and_made_anew_is_proven_from_there() -> None:
    found = proof([page(1, 0, 9), page(2, 12, 30), page(3, 0, 5)], numbered((0, 5)))
    assert found.faults == ()
    assert found.page_count == 1
    assert any("deleted since" in note for note in found.notes)


@pytest.mark.parametrize("lost", [(-1, -1), (12, 30)])
def test_of_a_page_that_cant_be_placed_in_one_partition_the_rest_is_no_stray(
    lost: tuple[int, int],
) -> None:
    """The broker did not tell where it stands there, or the topic was made anew."""
    counts: Any = {"event": 2, "dead": 0, "gap": 0}
    records = [page(1, 0, 1), CheckpointRecord(2, counts, {RAW: lost, OTHER: (4, 4)}),
               CheckpointRecord(3, counts, {RAW: (2, 2), OTHER: (5, 5)})]  # fmt: skip
    continuity = Continuity(records, (), BOUNDS)
    for place, offset in ((RAW, 0), (RAW, 1), (RAW, 2), (OTHER, 4), (OTHER, 5)):
        continuity.take(place, offset, "event", f"{place}@{offset}".encode())
    found = continuity.finish()
    assert (found.faults, found.page_count, len(found.notes)) == ((), 2, 1)


def test_after_crashes_at_least_once_repeats_and_that_is_no_fault() -> None:
    ids = {**numbered((0, 9), (12, 19)), 10: "e12", 11: "e13"}
    records = [page(1, 0, 9), page(2, 12, 19)]
    assert len(proof(records, ids).faults) == 2
    found = proof(records, ids, delivery="at_least_once")
    assert found.faults == ()
    assert len(found.notes) == 2


def test_a_late_record_of_a_replaced_relay_is_a_fault_only_with_transactions() -> None:
    records = [page(1, 0, 9), page(2, 10, 19), page(1, 20, 29)]
    assert any("ascend" in fault for fault in proof(records, {}).faults)
    found = proof(records, {}, delivery="at_least_once")
    assert not any("ascend" in fault for fault in found.faults)
    assert any("ascend" in note for note in found.notes)


def test_a_page_over_several_partitions_and_a_dead_letter_in_parts_are_counted_whole() -> None:
    record = CheckpointRecord(
        1, {"event": 3, "dead": 1, "gap": 0}, {RAW: (0, 1), OTHER: (4, 4), DEAD: (0, 2)}
    )
    continuity = Continuity([record], (), BOUNDS)
    for place, offset, identity in ((RAW, 0, b"a"), (RAW, 1, b"b"), (OTHER, 4, b"c")):
        continuity.take(place, offset, "event", identity)
    for offset in range(3):
        continuity.take(DEAD, offset, "dead", b"one letter")
    assert continuity.finish().faults == ()


def test_a_connector_without_records_proves_nothing() -> None:
    found = proof([], numbered((0, 9)))
    assert found.faults == ()
    assert found.from_version is None
    assert any("10 records stand outside" in note for note in found.notes)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(0, 59), st.data())
def test_any_loss_orphan_or_repeat_is_found(
    sizes: list[int], choice: int, data: st.DataObject
) -> None:
    records, ids, offset = [], {}, 3
    for version, size in enumerate(sizes, 1):
        records.append(page(version, offset, offset + size - 1))
        ids.update(numbered((offset, offset + size - 1)))
        offset += size + 2
    assert proof(records, ids).faults == ()
    victim = sorted(ids)[choice % len(ids)]
    kind = data.draw(st.sampled_from(["lost", "orphan", "repeated"]))
    if kind == "lost":
        del ids[victim]
    elif kind == "orphan":
        ids[data.draw(st.sampled_from(sorted(set(range(offset)) - set(ids))))] = "stray"
    elif len(ids) > 1:
        ids[victim] = ids[sorted(set(ids) - {victim})[0]]
    else:
        return
    assert proof(records, ids).faults != ()


def test_a_record_says_about_its_page_what_the_relay_wrote() -> None:
    origin = Origin("c", "test", "2026-01-01T00:00:00.000000Z")
    summary = PageSummary(3, 1, 2, 0, {RAW[0]: {0: (5, 7)}, DEAD[0]: {1: (0, 1)}})
    value = checkpoint_record(origin, at(4), summary).value
    assert value is not None
    assert decode_checkpoint_record(value) == CheckpointRecord(
        4, {"event": 3, "dead": 2, "gap": 0}, {RAW: (5, 7), (DEAD[0], 1): (0, 1)}
    )
    value = checkpoint_record(origin, at(4), PageSummary()).value
    assert value is not None
    assert decode_checkpoint_record(value).is_position


@given(st.binary() | st.sampled_from([b"null", b"{}", b'{"offsets": 1}', b"[]"]))
def test_any_other_bytes_are_malformed(value: bytes) -> None:
    with pytest.raises(Malformed):
        decode_checkpoint_record(value)


def test_a_topic_that_contradicts_itself_is_a_divergence_whatever_the_views_say() -> None:
    looked_at = views(at(7), at(7))
    found = judge(looked_at, policy="kafka_wins", is_settled=True)
    assert Report(looked_at, found).verdict is Verdict.EQUAL
    report = Report(looked_at, found, Proof(1, 1, 1, 0, ("lost",), ()))
    assert report.verdict is Verdict.DIVERGED
    assert report.reasons == ["lost"]
