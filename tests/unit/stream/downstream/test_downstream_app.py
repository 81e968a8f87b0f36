"""Downstream without a broker: decoding, refusals, and when an event counts as processed."""

from __future__ import annotations

import asyncio
import importlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from verity_sdk import Malformed, Misconfigured, PermissionSnapshot, RawEvent, RejectedRecord
from verity_stream import create_app, raw_topic, records, verity_agent
from verity_stream.downstream import (
    DeadLetter,
    DownstreamApp,
    Grant,
    SnapshotEnd,
    SnapshotStart,
    agents_dead_topic,
    decode_dead_letter,
    decode_event,
    decode_permission,
)
from verity_stream.downstream import app as downstream_app
from verity_stream.downstream.app import _DrainedConsumer, _sent, dead_letter_headers
from verity_stream.faust_base.app import VerityApp
from verity_stream.records import EventEncoder, Origin
from verity_stream.settings import StreamSettings

EXAMPLES = Path(__file__).parents[4] / "examples" / "downstream"
ORIGIN = Origin("acme-1", "acme", "2026-02-03T04:05:06.000007Z")
FETCHED_AT = datetime(2026, 2, 3, 4, 5, 6, 7, UTC)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
times = st.datetimes(timezones=st.just(UTC))
payloads = st.dictionaries(
    texts,
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | texts | st.lists(texts),
    max_size=4,
)
events = st.builds(
    RawEvent, st.just("acme"), texts.filter(bool), times, texts, texts, texts, payloads
)


def make_app(app_id: str = "team", **options: Any) -> DownstreamApp:
    settings = StreamSettings(app_id="workers", kafka={"bootstrap_servers": "localhost:1"})
    return create_app(app_id, settings=settings, **options)


# Decoding.


@given(events)
def test_an_event_arrives_equal_to_the_one_published(event: RawEvent) -> None:
    *_, value, _ = EventEncoder("c", "event_id", 1_000_000).encode(event)
    decoded = decode_event(value)
    assert decoded == event
    assert decoded.occurred_at.tzinfo is UTC


@pytest.mark.parametrize(
    "text", ["2026-01-31T23:59:59Z", "2026-01-31 23:59:59", "2026-02-01T00:59:59+01:00"]
)
def test_a_time_in_another_writing_is_aware_utc_too(text: str) -> None:
    """`BaseConnector.run()` and other producers may write times in their own way."""
    body = {"platform": "p", "event_id": "e", "principal_ref": "", "asset_ref": ""}
    value = orjson.dumps({**body, "operation": "", "raw_payload": {}, "occurred_at": text})
    assert decode_event(value).occurred_at == datetime(2026, 1, 31, 23, 59, 59, tzinfo=UTC)
    assert decode_event(value).occurred_at.tzinfo is UTC


shapes = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=5,
)
names = "platform event_id occurred_at principal_ref asset_ref operation raw_payload record"
fields = st.sampled_from([*names.split(), "snapshot_id", "snapshot_at", "data", "encoding"])


@given(st.binary() | st.dictionaries(fields, shapes).map(lambda body: json.dumps(body).encode()))
def test_any_bytes_decode_or_are_malformed(value: bytes) -> None:
    for decode in (decode_event, decode_permission, decode_dead_letter):
        try:
            decode(value)
        except Malformed:
            pass


@given(texts, times, payloads)
def test_a_snapshot_arrives_as_start_grants_and_end(
    text: str, at: datetime, payload: dict[str, Any]
) -> None:
    def decoded(kind: str, body: dict[str, Any]) -> Any:
        value = records.snapshot_record(ORIGIN, "s1", kind, body).value
        assert value is not None
        return decode_permission(value)

    grant = PermissionSnapshot("acme", text, text, "READ", "direct", None, at, payload)
    assert decoded("grant", records.grant_body(grant, FETCHED_AT)[0]) == Grant("s1", grant)
    about = {"connector_id": "acme-1", "platform": "acme", "started_at": ORIGIN.fetched_at}
    assert decoded("start", about) == SnapshotStart("s1", "acme-1", "acme", FETCHED_AT)
    end = {
        "ended_at": ORIGIN.fetched_at,
        "is_complete": False,
        "grant_count": 3,
        "dead_count": 1,
        "scopes_tried": ["a", "b"],
        "scopes_denied": [{"scope": "b", "reason": text}],
    }
    assert decoded("end", {**about, **end}) == SnapshotEnd(
        "s1", "acme-1", "acme", FETCHED_AT, FETCHED_AT, False, 3, 1, ("a", "b"), {"b": text}
    )
    with pytest.raises(Malformed, match="`record` is 'other'"):
        decoded("other", about)


@given(st.binary(max_size=300))
def test_a_dead_letters_parts_join_to_its_bytes(data: bytes) -> None:
    letter = records.dead_record(ORIGIN, RejectedRecord(data, "why", "ref"), 100)
    parts = [decode_dead_letter(record.value) for record in letter.records]
    assert b"".join(part.data for part in parts) == data
    first = parts[0]
    assert first == DeadLetter(
        *("acme", "acme-1", "why", "ref", FETCHED_AT, len(data), first.sha256, 1, len(parts)),
        data=data[:100],
    )


# The app.


def test_importing_the_package_loads_no_faust() -> None:
    """The SDK's users and the command line pay for Faust only when they use it."""
    code = (
        "import sys, verity_stream; assert 'faust' not in sys.modules\n"
        "from verity_stream import create_app, raw_topic, permissions_topic, dead_topic\n"
        "assert 'faust' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("app_id", ["workers", "verity-stream"])
def test_the_workers_own_group_is_refused(app_id: str) -> None:
    """The one that is configured, and the one that is the default."""
    with pytest.raises(Misconfigured, match="consumer group of Verity's own workers"):
        make_app(app_id)


@pytest.mark.parametrize("app_id", ["", "two words", "../x", "x" * 129])
def test_an_id_that_cant_be_part_of_a_topics_name_is_refused(app_id: str) -> None:
    with pytest.raises(Misconfigured, match="part of a topic's name"):
        make_app(app_id)


def test_what_the_guarantees_rest_on_cant_be_set() -> None:
    with pytest.raises(Misconfigured, match="processing_guarantee, stream_wait_empty"):
        make_app(stream_wait_empty=False, processing_guarantee="exactly_once")
    assert make_app(broker_commit_interval=3.0).conf.broker_commit_interval == 3.0


def test_two_agents_of_one_name_are_refused() -> None:
    """Faust would silently run the second one only."""
    app = make_app()

    async def alert(event: RawEvent) -> None: ...

    verity_agent(app, raw_topic(app, "a"))(alert)
    with pytest.raises(Misconfigured, match="agent 'alert' already"):
        verity_agent(app, raw_topic(app, "b"))(alert)
    verity_agent(app, raw_topic(app, "b"), name="other")(alert)


def test_a_dead_letter_says_who_failed_at_what_where_and_why() -> None:
    """The record's own headers stay; text that is not UTF-8 and no end of text do no harm."""
    message = SimpleNamespace(
        headers=[("event_id", b"1")], topic="verity.events.raw.p", partition=3, offset=7
    )
    headers = dead_letter_headers("team", "alert", message, "\udc00" + "x" * 5000)
    found = dict(headers)
    assert headers[0] == ("event_id", b"1")
    assert (found["app_id"], found["agent"]) == (b"team", b"alert")
    assert (found["topic"], found["partition"], found["offset"]) == (
        *(b"verity.events.raw.p", b"3", b"7"),
    )
    assert found["reason"].startswith(b"\\udc00xxx")
    assert len(found["reason"]) < 2010
    assert agents_dead_topic("team") == "verity.agents.dead.team"


# When an event counts as processed.


class Processing:
    """An app whose dead letters are noted, and one event."""

    def __init__(self, *, is_put_away: bool = True) -> None:
        self.app = make_app()
        self.put_away: list[str] = []
        self.acks = 0
        self.event = SimpleNamespace(ack=self._ack, app=self.app)

        async def put_away(event: Any, agent: str, error: BaseException) -> bool:
            assert self.acks == 0, "put away before it is acknowledged"
            self.put_away.append(f"{agent}: {type(error).__name__}: {error}")
            return is_put_away

        self.app.put_away = put_away  # type: ignore[method-assign]  # the broker's part

    def _ack(self) -> None:
        self.acks += 1

    async def process(self, function: Callable[..., Any], seconds_max: float = 5.0) -> None:
        await self.app.process(self.event, "alert", function, seconds_max)

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


def sending(*futures: asyncio.Future[Any]) -> Callable[..., Any]:
    """A function that sends, as `_TrackedTopic` notes it."""

    async def function(event: Any) -> None:
        sent = _sent.get()
        assert sent is not None
        sent.extend(futures)

    return function


async def test_an_event_without_output_is_acknowledged_at_once() -> None:
    one = Processing()
    await one.process(sending())
    assert (one.acks, one.put_away) == (1, [])


async def test_an_event_is_acknowledged_when_all_it_sent_is() -> None:
    """And the next event need not wait for that."""
    one = Processing()
    first, second = asyncio.Future[Any](), asyncio.Future[Any]()
    await one.process(sending(first, second))
    second.set_result(None)
    await one.settle()
    assert one.acks == 0
    first.set_result(None)
    await one.settle()
    assert (one.acks, one.put_away) == (1, [])
    assert not one.app._finishing


async def test_what_the_broker_refuses_makes_a_dead_letter_of_the_event() -> None:
    one = Processing()
    refused = asyncio.Future[Any]()
    await one.process(sending(refused))
    refused.set_exception(ValueError("too large"))
    await one.settle()
    assert (one.acks, one.put_away) == (1, ["alert: ValueError: too large"])


async def raises(event: Any) -> None:
    raise ValueError("poison")


async def hangs(event: Any) -> None:
    await asyncio.sleep(60)


async def leaks(event: Any) -> None:
    raise asyncio.CancelledError("a library's own")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (raises, "ValueError: poison"),
        (hangs, "TimeoutError: it took over 0.05 s"),
        (leaks, "CancelledError: a library's own"),
    ],
)
async def test_a_failure_is_put_away_and_then_acknowledged(
    function: Callable[..., Any], reason: str
) -> None:
    one = Processing()
    await one.process(function, 0.05)
    assert (one.acks, one.put_away) == (1, [f"alert: {reason}"])
    assert _sent.get() is None


async def test_what_cant_be_put_away_is_not_acknowledged() -> None:
    """The worker stops, and the record is read again."""
    one = Processing(is_put_away=False)
    await one.process(raises)
    assert (one.acks, len(one.put_away)) == (0, 1)


async def test_an_event_whose_processing_is_cancelled_is_not_acknowledged() -> None:
    """A stop of the worker is no fault of the record's."""
    one = Processing()
    task = asyncio.create_task(one.process(hangs))
    await one.settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (one.acks, one.put_away) == (0, [])


async def test_the_agent_acknowledges_by_itself_and_knows_the_event() -> None:
    """Faust would acknowledge before what was sent is out, and whatever became of it."""
    one = Processing()
    one.event.value, one.event.headers = "value", {"event_id": b"1"}
    seen: list[Any] = []

    async def by_value(value: Any) -> None:
        seen.append(value)

    async def by_event(value: Any, event: Any) -> None:
        seen.append((value, event.headers["event_id"]))

    async def events() -> AsyncIterator[Any]:
        assert stream.enable_acks is False
        yield one.event

    stream = SimpleNamespace(enable_acks=True, events=events)
    for function in (by_value, by_event):
        verity_agent(one.app, raw_topic(one.app, "p"))(function)
        await one.app.agents[function.__name__].fun(stream)
    assert seen == ["value", ("value", b"1")]
    assert one.acks == 2


# Topics at the start.


async def prepared(app: DownstreamApp, monkeypatch: pytest.MonkeyPatch, **found: int) -> None:
    """Prepare the app where these topics have so many partitions, and others what is asked."""

    async def nothing(*_: Any) -> None: ...

    async def ensure(kafka: Any, wanted: dict[str, Any]) -> dict[str, int]:
        return {name: found.get(name, new.num_partitions) for name, new in wanted.items()}

    monkeypatch.setattr(VerityApp, "prepare", nothing)
    monkeypatch.setattr(downstream_app, "ensure_topics", ensure)
    await app.prepare()


def app_with_table(*platforms: str, **table: Any) -> DownstreamApp:
    app = make_app()
    app.Table("t", **table)

    async def alert(event: RawEvent) -> None: ...

    for platform in platforms:
        verity_agent(app, raw_topic(app, platform), name=platform)(alert)
    return app


async def test_a_caller_that_is_cancelled_harms_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two declare the same topic, as at a rebalance; the second is cancelled while it waits."""
    may_answer = asyncio.Event()

    async def ensure(kafka: Any, wanted: dict[str, Any]) -> dict[str, int]:
        await may_answer.wait()
        return dict.fromkeys(wanted, 1)

    monkeypatch.setattr(downstream_app, "ensure_topics", ensure)
    topic = make_app().topic("unit", internal=True)
    callers = [asyncio.create_task(topic.maybe_declare()) for _ in range(2)]
    await asyncio.sleep(0.01)
    callers[1].cancel()
    await asyncio.sleep(0.01)
    may_answer.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert results[0] is None
    assert isinstance(results[1], asyncio.CancelledError)


def test_faust_creates_no_topics_by_itself() -> None:
    """It looks at no number of partitions, and shares one future between its callers."""
    assert make_app().conf.topic_allow_declare is False


async def test_a_table_gets_the_partitions_of_the_apps_topics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With another number Faust raises at the first write."""
    app = app_with_table("a", "b")
    await prepared(app, monkeypatch, **{records.raw_topic(one): 17 for one in "ab"})
    assert app.tables["t"].changelog_topic.partitions == 17


async def test_partitions_that_dont_fit_are_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = app_with_table("a")
    with pytest.raises(Misconfigured, match="team-t-changelog has 3 partitions"):
        await prepared(app, monkeypatch, **{"team-t-changelog": 3})
    counts = {records.raw_topic("a"): 2, records.raw_topic("b"): 3}
    with pytest.raises(Misconfigured, match=r"numbers of partitions \[2, 3\]"):
        await prepared(app_with_table("a", "b"), monkeypatch, **counts)
    await prepared(app_with_table("a", "b", partitions=3), monkeypatch, **counts)


# Committed offsets.

TOPIC = TP("verity.events.raw.p", 0)


@pytest.fixture
async def consumer() -> AsyncIterator[_DrainedConsumer]:
    app = make_app()
    conductor: Any = app.topics
    conductor._acking_topics.add(TOPIC.topic)
    consumer = app.consumer
    assert isinstance(consumer, _DrainedConsumer)
    yield consumer
    consumer._thread.thread_loop.close()  # Of a thread that is never started.


def deliver(consumer: _DrainedConsumer, *offsets: int) -> list[Any]:
    messages = [SimpleNamespace(offset=offset, acked=False) for offset in offsets]
    consumer._delivered[TOPIC].extend(messages)
    return messages


async def test_the_position_is_committed_when_all_that_was_read_is_processed(
    consumer: _DrainedConsumer,
) -> None:
    """Beyond the markers and the aborted records that follow the last record."""
    consumer._positions.read[TOPIC] = (4, 105)
    (first, second) = deliver(consumer, 2, 4)
    first.acked = True
    assert consumer._new_offset(TOPIC) == 3
    second.acked = True
    assert consumer._new_offset(TOPIC) == 105


async def test_what_was_fetched_but_not_delivered_is_not_committed_past(
    consumer: _DrainedConsumer,
) -> None:
    """The position runs ahead of the delivery: it alone would lose what lies between."""
    consumer._positions.read[TOPIC] = (9, 10)
    assert consumer._new_offset(TOPIC) is None
    (message,) = deliver(consumer, 4)
    message.acked = True
    assert consumer._new_offset(TOPIC) == 5
    assert consumer._new_offset(TOPIC) is None


async def test_markers_alone_are_committed_past(consumer: _DrainedConsumer) -> None:
    """A partition that held nothing but an aborted transaction since the assignment."""
    consumer._positions.read[TOPIC] = (None, 31)
    assert list(consumer._filter_tps_with_pending_acks()) == [TOPIC]
    assert consumer._new_offset(TOPIC) == 31
    conductor: Any = consumer.app.topics
    conductor._acking_topics.clear()
    assert consumer._new_offset(TOPIC) is None, "a changelog is not committed"


async def test_positions_are_forgotten_with_the_assignment(consumer: _DrainedConsumer) -> None:
    """Another worker may have gone on from there, or the partition be sought back."""
    consumer._positions.read[TOPIC] = (None, 31)
    consumer._processed[TOPIC] = 5

    async def nothing(*_: Any) -> None: ...

    consumer._on_partitions_revoked = nothing
    await consumer.on_partitions_revoked({TOPIC})
    assert not consumer._positions.read
    assert not consumer._processed


async def test_the_position_is_noted_with_the_records_of_active_partitions_only(
    consumer: _DrainedConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its seek a paused partition's position means nothing."""
    paused = TP(TOPIC.topic, 1)
    states = {TOPIC: SimpleNamespace(_position=12), paused: SimpleNamespace(_position=99)}
    assignment = SimpleNamespace(tps=set(states), state_value=states.__getitem__)
    client = SimpleNamespace(
        _subscription=SimpleNamespace(subscription=SimpleNamespace(assignment=assignment))
    )
    batches = [{TOPIC: [SimpleNamespace(offset=7), SimpleNamespace(offset=9)]}, {}]

    async def fetch(*_: Any, **__: Any) -> Any:
        return batches.pop(0)

    thread = consumer._positions
    monkeypatch.setattr(type(thread).__mro__[1], "_fetch_records", fetch)
    await thread._fetch_records(client, {TOPIC})
    assert thread.read == {TOPIC: (9, 12)}
    states[TOPIC]._position = 13
    await thread._fetch_records(client, {TOPIC})
    assert thread.read == {TOPIC: (9, 13)}, "the last record stays the last one"


def test_the_example_counts_a_failure_once_in_each_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that is processed again after a crash changes nothing."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module("failed_logins")
    at = datetime(2026, 1, 1, 12, 0, 45, tzinfo=UTC)
    ranges = example.WINDOW.ranges(at.timestamp())
    starts = [datetime.fromtimestamp(start, UTC) for start, _ in ranges]
    assert starts == [at - timedelta(seconds=45), at - timedelta(seconds=15)]
    once = example.with_failure(["a"], "b")
    assert once == example.with_failure(once, "a") == ["a", "b"]
