"""The rules that worker, `run()` and laws share: one answer, wherever it is asked."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from verity_sdk.connector_base import BaseConnector, RawEvent
from verity_sdk.errors import Malformed, Misconfigured
from verity_sdk.position import (
    FIRST_SINCE,
    PlainPass,
    Reached,
    Watermark,
    after_page,
    asked_since,
    earlier,
    is_valid_name,
    not_after,
)
from verity_stream.records import EventEncoder
from verity_stream.settings import load_connectors

AT = datetime(2026, 1, 1, tzinfo=UTC)
VALID = ("a", "acme-1", "Acme_prod.eu", "9", "x" * 128)
INVALID = ("-door", ".door", "_door", "x" * 129, "x" * 150, "a b", "a/b", "tür", "a\n")


class Connector(BaseConnector):
    """One event of a platform."""

    platform = "acme"

    async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        yield RawEvent(self.platform, "e1", AT, "ada", "vault", "OPEN", {"n": 1})

    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        return
        yield


class Kafka:
    """A producer that notes the topics."""

    def __init__(self) -> None:
        self.topics: list[str] = []

    async def send(self, topic: str, value: Any) -> None:
        self.topics.append(topic)


class Pool:
    """No checkpoint yet, and room for one."""

    async def fetchrow(self, *_: Any) -> None: ...

    async def execute(self, *_: Any) -> None: ...


def is_taken_by_the_worker(name: str, directory: Path) -> bool:
    """As a connector's id in verity.toml."""
    config = directory / "verity.toml"
    quoted = name.replace("\n", "\\n")
    config.write_text(f'[connectors."{quoted}"]\ntype = "test_paged"\nplatform = "p"\n', "utf-8")
    try:
        load_connectors(config)
    except Misconfigured as error:
        return "an id is letters" not in str(error)
    return True


@pytest.mark.parametrize("name", [*VALID, *INVALID])
async def test_an_id_that_the_worker_refuses_is_refused_by_run(name: str, tmp_path: Path) -> None:
    kafka = Kafka()
    with suppress(Misconfigured):
        await Connector({"connector_id": name}, kafka, Pool()).run()
    assert bool(kafka.topics) is is_valid_name(name) is (name in VALID)
    assert is_taken_by_the_worker(name, tmp_path) is is_valid_name(name)


@pytest.mark.parametrize("name", [*VALID, *INVALID])
async def test_a_platform_that_the_relay_refuses_is_refused_by_run(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    kafka = Kafka()
    connector = Connector({"connector_id": "acme"}, kafka, Pool())
    connector.platform = name
    with caplog.at_level(logging.ERROR):
        await connector.run()
    encoder = EventEncoder("acme", "principal_ref", 10_000)
    try:
        topic = encoder.encode(RawEvent(name, "e1", AT, "ada", "vault", "OPEN", {}))[2]
    except Malformed:
        assert not is_valid_name(name)
        assert kafka.topics == []
        assert "can't be part of a topic's name" in caplog.text
    else:
        assert is_valid_name(name)
        assert kafka.topics == [topic]


@pytest.mark.parametrize("name", [None, 7, b"acme", ["a"], {}])
def test_what_is_no_text_is_no_name(name: Any) -> None:
    assert not is_valid_name(name)


# How far a page moves the position. Seconds after AT; a pass begins at 100 and it is 200 now.


def at(second: int | None) -> Any:
    """So many seconds after AT; None stays None."""
    return None if second is None else AT + timedelta(seconds=second)


@pytest.mark.parametrize(
    ("before", "times", "through", "after"),
    [
        # A connector that does not say how far it is complete: the newest time is the best.
        ((10, None), [], None, (10, None)),
        ((10, None), [12, 30, 20], None, (30, None)),
        ((10, None), [5], None, (10, None)),
        # What is dated later than the pass's begin moves nothing.
        ((10, None), [30, 101], None, (30, None)),
        ((10, None), [150], None, (10, None)),
        ((10, None), [100], None, (100, None)),
        # One that says so: the watermark follows that, not the newest event.
        ((10, None), [30], 25, (25, 25)),
        ((10, None), [], 25, (25, 25)),
        ((10, None), [30], 5, (10, 5)),
        # It may go back, to what is to be asked again; the watermark does not.
        ((50, 50), [], 40, (50, 40)),
        # Nobody can know it of what is still to come; nor the watermark of what came meanwhile.
        ((10, None), [30], 150, (100, 150)),
        ((10, None), [30], 300, (100, 200)),
        # What was said before still holds.
        ((10, 9), [30], None, (30, 9)),
    ],
)
def test_what_a_page_of_a_paged_connector_moves(
    before: tuple[int, int | None],
    times: list[int],
    through: int | None,
    after: tuple[int, int | None],
) -> None:
    got = after_page(
        Reached(at(before[0]), {"page": 1}, at(before[1])),
        [at(one) for one in times],
        {"page": 2},
        at(through),
        began_at=at(100),
        now=at(200),
    )
    assert got == Reached(at(after[0]), {"page": 2}, at(after[1]))


@pytest.mark.parametrize(
    ("since", "pages", "rests"),
    [
        # Until the pass ends it rests on the newest time that was left behind.
        (10, [[11, 12, 12], [13]], [11, 13]),
        (10, [[11, 12, 12], [13], []], [11, 12, 13]),
        (10, [[11, 11]], [11]),
        (10, [[]], [10]),
        (10, [[5, 6]], [10]),
        (10, [[5, 6], []], [10, 10]),
        # Once the order is broken it stays until the end.
        (10, [[11, 12], [9], [20, 21], []], [11, 11, 11, 21]),
        # What is dated later than the pass's begin moves nothing, and breaks no order.
        (10, [[11, 150], [12, 13], []], [10, 12, 13]),
        (10, [[150], []], [10, 10]),
    ],
)
def test_what_a_page_of_a_plain_connector_moves(
    since: int, pages: list[list[int]], rests: list[int]
) -> None:
    one_pass = PlainPass(at(since), began_at=at(100))
    got = [
        one_pass.after_page([at(one) for one in page], is_last=number == len(pages), now=at(200))
        for number, page in enumerate(pages, start=1)
    ]
    assert got == [Reached(at(rest)) for rest in rests]


@pytest.mark.parametrize(
    ("met", "now", "began_at", "rests"),
    [
        # Met in the pass before, after its begin and before the clock: it counts from now on …
        ([150], 200, 300, [10, 150]),
        ([150, 180], 200, 300, [10, 180]),
        # … but not what was ahead of the clock then,
        ([150, 250], 200, 300, [10, 150]),
        ([250], 200, 300, [10, 10]),
        # nor where the clock was put back since.
        ([150], 200, 120, [10, 10]),
        ([150], 200, 150, [10, 150]),
    ],
)
def test_what_happened_during_a_pass_counts_from_the_next_one_on(
    met: list[int], now: int, began_at: int, rests: list[int]
) -> None:
    """And then only at its end, also of a source that shows it only once."""
    first = PlainPass(at(10), began_at=at(100))
    assert first.after_page([at(one) for one in met], is_last=True, now=at(now)) == Reached(at(10))
    second = PlainPass(at(10), at(began_at), first.met_at)
    got = [second.after_page([], is_last=is_last, now=at(400)) for is_last in (False, True)]
    assert got == [Reached(at(rest)) for rest in rests]


def test_the_newest_that_was_met_is_not_forgotten() -> None:
    one_pass = PlainPass(at(10), began_at=at(100))
    for times in ([150, 130], [120], []):
        one_pass.after_page([at(one) for one in times], is_last=False, now=at(200))
    assert one_pass.met_at == at(150)


def test_a_watermark_without_a_limit_takes_what_comes() -> None:
    """`run()` gives it the present, event by event, and not the begin of the pass."""
    watermark = Watermark(at(10))
    watermark.pass_by([at(20), at(150)])
    assert (watermark.rests_at, watermark.is_ascending) == (at(20), True)
    watermark.pass_by([at(160)], until=at(155))
    watermark.finish()
    assert watermark.rests_at == at(150)


@pytest.mark.parametrize(
    ("times", "until", "kept"),
    [([], 5, []), ([1, 5], 5, [1, 5]), ([6, 1, 7, 5], 5, [1, 5]), ([6], 5, [])],
)
def test_what_is_later_is_left_out(times: list[int], until: int, kept: list[int]) -> None:
    assert list(not_after(at(until), [at(one) for one in times])) == [at(one) for one in kept]


BEGIN_OF_TIME = datetime.min.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("last_ts", "lookback", "since"),
    [
        (AT, timedelta(0), AT),
        (AT, timedelta(seconds=60), at(-60)),
        # Nothing was published before the first start: nothing of then can have late company.
        (FIRST_SINCE, timedelta(seconds=60), FIRST_SINCE),
        (FIRST_SINCE + timedelta(seconds=9), timedelta(seconds=60), FIRST_SINCE),
        (AT, timedelta.max, FIRST_SINCE),
        # Where an operator put it further back, from there.
        (FIRST_SINCE - timedelta(days=9), timedelta(seconds=60), FIRST_SINCE - timedelta(days=9)),
    ],
)
def test_where_a_plain_connector_is_asked_from(
    last_ts: datetime, lookback: timedelta, since: datetime
) -> None:
    assert asked_since(last_ts, lookback) == since


@pytest.mark.parametrize(
    ("moment", "by", "before"),
    [
        (AT, timedelta(seconds=1), at(-1)),
        (AT, timedelta.max, BEGIN_OF_TIME),
        (BEGIN_OF_TIME, timedelta(microseconds=1), BEGIN_OF_TIME),
        (BEGIN_OF_TIME, timedelta(0), BEGIN_OF_TIME),
    ],
)
def test_there_is_nothing_before_the_beginning_of_time(
    moment: datetime, by: timedelta, before: datetime
) -> None:
    assert earlier(moment, by) == before
