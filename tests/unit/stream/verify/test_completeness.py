"""Whether a stretch of time is complete, from what the topics say."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, TypeAlias

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_builders import body_of

from verity_common.kafka import KafkaSettings
from verity_sdk.completeness import Completeness, Coverage, completeness
from verity_sdk.errors import Malformed
from verity_sdk.pages import Gap
from verity_stream.kafka.committed import CommittedReader
from verity_stream.records import (
    CHECKPOINTS_TOPIC,
    GAPS_TOPIC,
    Checkpoint,
    Origin,
    PageSummary,
    checkpoint_record,
    gap_record,
)
from verity_stream.verify.completeness import is_complete

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def checkpoint(
    connector: str,
    hours: float | None,
    platform: str = "test",
    *,
    began: float | None = -1000,
    order: tuple[int, int] = (1, 1),
) -> dict[str, Any]:
    """The record of a page that is complete through so many hours after the start.

    Args:
        began: The connector's beginning, likewise.
        order: Its version and epoch.
    """
    through = None if hours is None else START + hours * HOUR
    collected_from = None if began is None else START + began * HOUR
    version, epoch = order
    page = Checkpoint(
        connector, version, epoch, START, None, through, collected_from=collected_from
    )
    record = checkpoint_record(Origin(connector, platform, ""), page, PageSummary())
    body: dict[str, Any] = body_of(record)
    return body


def gap(
    connector: str, first: float | None, last: float | None, platform: str = "test"
) -> dict[str, Any]:
    """The record of what is missing between so many hours after the start; recorded at 100."""
    begin, end = (None if hours is None else START + hours * HOUR for hours in (first, last))
    recorded_at = (START + 100 * HOUR).isoformat().replace("+00:00", "Z")
    record = gap_record(
        Origin(connector, platform, recorded_at), Gap(begin, end, "all", "retention")
    )
    body: dict[str, Any] = body_of(record)
    return body


def asked(
    checkpoints: Sequence[Mapping[str, Any]],
    gaps: Sequence[dict[str, Any]] = (),
    **options: Any,
) -> Coverage:
    """The answer for the hour from 10 to 11."""
    return completeness(
        checkpoints, gaps, platform="test", since=START + 10 * HOUR, until=START + 11 * HOUR,
        **options,
    )  # fmt: skip


def record(key: str, value: Any, schema: str = "") -> SimpleNamespace:
    """A record of a topic."""
    data = value if isinstance(value, bytes | None) else orjson.dumps(value)
    return SimpleNamespace(
        key=key.encode(), value=data, topic="t", partition=0, offset=0,
        headers=[("schema", schema.encode())],
    )  # fmt: skip


Ask: TypeAlias = Callable[..., Awaitable[Coverage]]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Ask:
    """The answer of what the topics of checkpoints and gaps hold, for the hour from 10 to 11."""

    async def ask(checkpoints: Sequence[Any], gaps: Sequence[Any] = ()) -> Coverage:
        topics = {CHECKPOINTS_TOPIC: checkpoints, GAPS_TOPIC: gaps}

        async def counts(_: Any, names: Iterable[str]) -> dict[str, int]:
            return dict.fromkeys(names, 1)

        async def read(_: Any, places: Iterable[Any], *__: Any) -> AsyncIterator[Sequence[Any]]:
            for place in places:
                yield topics[place.topic]

        monkeypatch.setattr(CommittedReader, "partition_counts", counts)
        monkeypatch.setattr(CommittedReader, "read", read)
        since, until = START + 10 * HOUR, START + 11 * HOUR
        return await is_complete(KafkaSettings(), "test", since, until)

    return ask


def test_complete_is_where_every_connector_of_the_platform_is() -> None:
    answer = asked([checkpoint("a", 11), checkpoint("b", 12), checkpoint("c", 1, "other")])
    assert answer == Coverage(Completeness.COMPLETE, START + 11 * HOUR)


def test_the_slowest_connector_is_waited_for_and_its_last_record_counts() -> None:
    answer = asked([checkpoint("a", 12), checkpoint("b", 12), checkpoint("b", 10.9)])
    assert answer.completeness is Completeness.NOT_YET
    assert answer.waiting_for == ("b",)
    assert answer.complete_through == START + 10.9 * HOUR


def test_a_connector_that_cannot_tell_is_never_complete() -> None:
    answer = asked([checkpoint("a", 12), checkpoint("b", None)])
    assert answer == Coverage(Completeness.NOT_YET, None, ("b",))


def test_of_a_platform_that_nobody_serves_nothing_is_known() -> None:
    assert asked([]) == Coverage(Completeness.NOT_YET, None)
    assert asked([checkpoint("a", 12)], connectors=["b"]).waiting_for == ("b",)


def test_a_retired_connector_is_left_out_by_naming_the_others() -> None:
    checkpoints = [checkpoint("retired", 1), checkpoint("a", 12)]
    assert asked(checkpoints).completeness is Completeness.NOT_YET
    assert asked(checkpoints, connectors=["a"]).completeness is Completeness.COMPLETE


@pytest.mark.parametrize(
    ("first", "last", "is_in"),
    [
        (10.2, 10.3, True),
        (9, 10, True),
        (11, 12, True),
        (9, 12, True),
        (None, 10, True),
        (None, None, True),
        (11, None, True),
        (9, None, True),
        (8, 9.9, False),
        (11.1, 12, False),
        (None, 9.9, False),
        (11.1, None, False),
    ],
)
def test_a_gap_makes_the_hours_incomplete_that_it_reaches_into(
    first: float | None, last: float | None, is_in: bool
) -> None:
    checkpoints = [checkpoint("a", 12)]
    answer = asked(checkpoints, [gap("a", first, last)])
    assert (answer.completeness is Completeness.INCOMPLETE) is is_in
    assert len(answer.gaps) == is_in
    assert asked(checkpoints, [gap("a", first, last, "other")]).gaps == ()
    assert asked(checkpoints, [gap("b", first, last)], connectors=["a"]).gaps == ()


def test_incomplete_is_said_before_the_end_is_reached() -> None:
    answer = asked([checkpoint("a", 10.5)], [gap("a", 10, 10.1)])
    assert answer.completeness is Completeness.INCOMPLETE
    assert answer.waiting_for == ("a",)


@pytest.mark.parametrize(
    ("began", "expected"),
    [
        (9, Completeness.COMPLETE),
        (10, Completeness.COMPLETE),
        (10.1, Completeness.NOT_COLLECTED),
        (20, Completeness.NOT_COLLECTED),
        (None, Completeness.NOT_COLLECTED),
    ],
)
def test_what_lies_before_a_connectors_beginning_was_never_collected(
    began: float | None, expected: Completeness
) -> None:
    answer = asked([checkpoint("a", 12, began=began), checkpoint("b", 12)])
    assert answer.completeness is expected
    is_out = expected is Completeness.NOT_COLLECTED
    began_at = None if began is None else START + began * HOUR
    assert answer.not_collected == ({"a": began_at} if is_out else {})


def test_a_record_of_an_older_version_knows_no_beginning() -> None:
    body = checkpoint("a", 12)
    del body["collected_from"]
    assert asked([body]).not_collected == {"a": None}


def test_a_gap_before_the_beginning_is_no_gap_and_one_behind_it_comes_first() -> None:
    """A source may say at its first start that it lacks all that was ever before."""
    body = checkpoint("a", 12, began=10.5)
    answer = asked([body], [gap("a", None, 10.4)])
    assert (answer.completeness, answer.gaps) == (Completeness.NOT_COLLECTED, ())
    assert asked([body], [gap("a", None, 10.6)]).completeness is Completeness.INCOMPLETE
    never = asked([checkpoint("a", 12, began=20)], [gap("a", None, 30)])
    assert (never.completeness, never.gaps) == (Completeness.NOT_COLLECTED, ())


def test_a_connector_that_is_configured_and_never_published_is_waited_for() -> None:
    answer = asked([checkpoint("a", 12)], configured=["a", "b"])
    assert (answer.completeness, answer.waiting_for) == (Completeness.NOT_YET, ("b",))
    # Whoever names the connectors has decided.
    named = asked([checkpoint("a", 12)], configured=["a", "b"], connectors=["a"])
    assert named.completeness is Completeness.COMPLETE
    # One that is retired still counts as far as it came.
    assert asked([checkpoint("a", 12), checkpoint("c", 1)], configured=["a"]).waiting_for == ("c",)


async def test_the_late_record_of_a_relay_that_was_replaced_does_not_count(ask: Ask) -> None:
    """Without transactions it may come after its successor's: higher versions, then epochs."""
    successors = [checkpoint("a", 8, order=(12, 6)), checkpoint("a", 10.5, order=(13, 6))]
    for late in ((12, 5), (13, 5)):
        records = [*successors, checkpoint("a", 12, order=late)]
        assert asked(records).completeness is Completeness.NOT_YET
        answer = await ask([record("a", body) for body in records])
        assert answer.complete_through == START + 10.5 * HOUR
    # With a restored database epochs begin again lower, versions go on.
    assert asked([*successors, checkpoint("a", 12, order=(14, 1))]).waiting_for == ()


@given(st.dictionaries(st.sampled_from("abc"), st.one_of(st.none(), st.floats(0, 20))))
def test_complete_means_that_each_says_so(reached: dict[str, float | None]) -> None:
    answer = asked([checkpoint(name, hours) for name, hours in reached.items()])
    is_complete = bool(reached) and all(
        hours is not None and START + hours * HOUR >= START + 11 * HOUR
        for hours in reached.values()
    )
    assert (answer.completeness is Completeness.COMPLETE) is is_complete


@pytest.mark.parametrize("body", [{}, {"connector_id": "a", "platform": "test"}])
def test_a_record_that_is_not_understood_is_no_answer(body: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        asked([body])
    with pytest.raises(Malformed):
        asked([], [{**gap("a", 1, 2), "from_at": 5}])


async def test_the_last_record_speaks_for_its_connector_and_what_is_no_record_for_nobody_else(
    ask: Ask,
) -> None:
    records = [
        record("a", checkpoint("a", 5)),
        record("b", checkpoint("b", 12)),
        record("a", checkpoint("a", 12)),
        record("gone", checkpoint("gone", 1)),
        record("gone", None),
        record("stranger", b"not JSON"),
    ]
    assert (await ask(records)).completeness is Completeness.COMPLETE
    for junk in (b"not JSON", b"[]", b"{}", checkpoint("a", 12)):
        after = [*records, record("b", junk)]
        answer = await ask(after)
        assert answer.waiting_for == ("b",)
        assert len(answer.not_understood) == 2
        assert (await ask([*after, record("b", checkpoint("b", 12))])).waiting_for == ()


async def test_nobody_speaks_for_another_connector(ask: Ask) -> None:
    """Neither so that it looks complete, nor so that there is no answer at all."""
    for body in (checkpoint("a", 12, order=(9, 9)), {**checkpoint("b", 12), "connector_id": []}):
        answer = await ask([record("a", checkpoint("a", 5)), record("b", body)])
        assert answer.waiting_for == ("a",)
        assert [one[:14] for one in answer.not_understood] == ["t[0]@0, key b'"]


async def test_a_gap_that_cannot_be_read_holds_up_its_connector_and_nobody_else(ask: Ask) -> None:
    checkpoints = [record("a", checkpoint("a", 12)), record("b", checkpoint("b", 12))]
    for key, schema, waiting_for in (
        ("b", "gap/1", ("b",)),
        ("b", "gap/2", ("b",)),  # A later version knows what is missing.
        ("b", "", ()),
        ("stranger", "gap/1", ()),
    ):
        strange = record(key, {"from_at": None}, schema)
        answer = await ask(checkpoints, [record("a", gap("a", 1, 2), "gap/1"), strange])
        assert answer.waiting_for == waiting_for
        assert len(answer.not_understood) == 1
