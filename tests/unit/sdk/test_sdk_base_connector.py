"""`BaseConnector.run()` at its edges: what is handed in, what is refused, who must act.

Its laws, over failures and on the real stack, are in `tests/contract/test_sdk_run.py`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock
from uuid import UUID

import pytest
from aiokafka.errors import MessageSizeTooLargeError, TopicAuthorizationFailedError
from pydantic import BaseModel

from verity_sdk import BaseConnector, Denied, Malformed, Misconfigured, RawEvent, Unavailable, run
from verity_sdk import connector_base as module
from verity_sdk.batches import Limits
from verity_sdk.pages import Page, PagedConnector, Position

START = datetime(2026, 1, 1, tzinfo=UTC)
YEAR_2000 = datetime(2000, 1, 1, tzinfo=UTC)


def at(seconds: int) -> datetime:
    return START + timedelta(seconds=seconds)


def event(number: int, occurred_at: Any = None, **fields: Any) -> RawEvent:
    return RawEvent(
        **{
            "platform": "acme",
            "event_id": f"e{number}",
            "occurred_at": at(number) if occurred_at is None else occurred_at,
            "principal_ref": "ann",
            "asset_ref": "table",
            "operation": "SELECT",
            "raw_payload": {"n": number},
            **fields,
        }
    )


class Pool:
    """The checkpoints of a database, and how often they were read and written."""

    def __init__(self, last_ts: datetime | None = None) -> None:
        self.last_ts = last_ts
        self.statements: list[tuple[str, tuple[Any, ...]]] = []
        self.read_errors: list[Exception] = []
        self.write_error: Exception | None = None

    async def fetchrow(self, statement: str, *arguments: Any) -> dict[str, Any] | None:
        self.statements.append((statement, arguments))
        if self.read_errors:
            raise self.read_errors.pop()
        return None if self.last_ts is None else {"last_ts": self.last_ts}

    async def execute(self, statement: str, *arguments: Any) -> str:
        self.statements.append((statement, arguments))
        if self.write_error is not None:
            raise self.write_error
        self.last_ts = arguments[1]
        return "INSERT 0 1"

    @property
    def written(self) -> list[datetime]:
        return [values[1] for text, values in self.statements if text.startswith("INSERT")]


class Producer:
    """Acknowledges at once, unless an event's id is given an error."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.headers: dict[str, list[tuple[str, bytes]]] = {}
        self.send_errors: dict[str, Exception] = {}
        self.ack_errors: dict[str, Exception] = {}

    async def send(
        self, *, topic: str, value: dict[str, Any], headers: Any = None
    ) -> asyncio.Future[None]:
        if error := self.send_errors.get(value["event_id"]):
            raise error
        if headers is not None:
            self.headers[value["event_id"]] = headers
        self.sent.append((topic, value))
        ack: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if error := self.ack_errors.get(value["event_id"]):
            ack.set_exception(error)
        else:
            ack.set_result(None)
        return ack


class Connector(BaseConnector):
    """Yields what it is given."""

    def __init__(self, events: list[Any], producer: Any = None, pool: Any = None, **kw: Any):
        super().__init__(kw.get("config", {"connector_id": "acme-1"}), producer, pool)
        self.events = events
        self.since: datetime | None = None
        self.is_closed = False

    async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        self.since = since
        try:
            for one in self.events:
                if isinstance(one, Exception):
                    raise one
                yield one
        finally:
            self.is_closed = True

    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        return
        yield

    async def load(self) -> datetime:
        """As a connector's own code may call it."""
        return await self._load_checkpoint()

    async def save(self, ts: datetime) -> None:
        """As a connector's own code may call it."""
        await self._save_checkpoint(ts)


@pytest.fixture
def producer() -> Producer:
    return Producer()


@pytest.fixture
def pool() -> Pool:
    return Pool()


async def test_the_statements_are_those_of_the_specification(
    producer: Producer, pool: Pool
) -> None:
    await Connector([event(1)], producer, pool).run()
    (select, read), (upsert, written) = pool.statements
    assert select == "SELECT last_ts FROM connector_checkpoints WHERE connector_id = $1"
    assert read == ("acme-1",)
    assert upsert == (
        "INSERT INTO connector_checkpoints (connector_id, last_ts) VALUES ($1, $2) "
        "ON CONFLICT (connector_id) DO UPDATE SET last_ts = EXCLUDED.last_ts"
    )
    assert written == ("acme-1", at(1))


async def test_an_event_is_sent_as_its_fields(producer: Producer, pool: Pool) -> None:
    local = datetime(2026, 1, 1, 1, 0, 1, tzinfo=timezone(timedelta(hours=1)))
    await Connector([event(1, local)], producer, pool).run()
    assert producer.sent == [
        (
            "verity.events.raw.acme",
            {
                "platform": "acme",
                "event_id": "e1",
                "occurred_at": "2026-01-01T00:00:01.000000Z",
                "principal_ref": "ann",
                "asset_ref": "table",
                "operation": "SELECT",
                "raw_payload": {"n": 1},
            },
        )
    ]
    assert pool.last_ts == at(1)


async def test_without_a_checkpoint_it_starts_in_2000(producer: Producer, pool: Pool) -> None:
    connector = Connector([], producer, pool)
    await connector.run()
    assert connector.since == YEAR_2000
    assert pool.written == []


@pytest.mark.parametrize("stored", [at(5), at(5).replace(tzinfo=None)])
async def test_a_stored_checkpoint_is_where_it_starts(producer: Producer, stored: datetime) -> None:
    connector = Connector([], producer, Pool(stored))
    await connector.run()
    assert connector.since == at(5)


async def test_nothing_newer_is_no_write(producer: Producer) -> None:
    pool = Pool(at(5))
    await Connector([event(4), event(5)], producer, pool).run()
    assert [value["event_id"] for _, value in producer.sent] == ["e4", "e5"]
    assert pool.written == []


async def test_what_is_dated_ahead_of_the_clock_moves_no_checkpoint(
    producer: Producer, pool: Pool
) -> None:
    """All that happens until then would be passed by; it is published, and the order holds."""
    ahead = event(9, datetime.now(UTC) + timedelta(hours=1))
    far = event(8, datetime(9999, 1, 1, tzinfo=UTC))
    await Connector([far, event(1), ahead, event(2)], producer, pool).run()
    assert [value["event_id"] for _, value in producer.sent] == ["e8", "e1", "e9", "e2"]
    assert pool.written == [at(2)]


async def test_what_happens_during_the_pass_moves_the_checkpoint(
    producer: Producer, pool: Pool
) -> None:
    class Now(Connector):
        async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
            for number in range(3):
                self.events.append(datetime.now(UTC))
                yield event(number, self.events[-1])

    connector = Now([], producer, pool)
    await connector.run()
    assert pool.last_ts == connector.events[-1]


async def test_a_failing_query_starts_in_2000_and_warns(
    producer: Producer, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    pool.read_errors = [OSError("refused")]
    connector = Connector([event(1)], producer, pool)
    await connector.run()
    assert connector.since == YEAR_2000
    assert pool.last_ts == at(1)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "refused" in caplog.text


async def test_a_failed_query_moves_no_stored_checkpoint_backwards(producer: Producer) -> None:
    pool = Pool(at(100))
    pool.read_errors = [OSError("refused")]
    await Connector([event(1), event(2)], producer, pool).run()
    assert len(producer.sent) == 2
    assert pool.last_ts == at(100)
    assert pool.written == []


async def test_a_query_that_keeps_failing_is_unavailable(producer: Producer) -> None:
    pool = Pool(at(100))
    pool.read_errors = [OSError("refused"), OSError("refused")]
    with pytest.raises(Unavailable, match="refused"):
        await Connector([event(1)], producer, pool).run()
    assert pool.last_ts == at(100)


class Settings(BaseModel):
    """The config of a connector with typed settings."""

    connector_id: str


@pytest.mark.parametrize(
    "config", [SimpleNamespace(connector_id="acme-1"), Settings(connector_id="acme-1")]
)
async def test_the_config_may_be_an_object(producer: Producer, pool: Pool, config: Any) -> None:
    await Connector([event(1)], producer, pool, config=config).run()
    assert pool.statements[0][1] == ("acme-1",)


@pytest.mark.parametrize(
    "config", [None, {}, {"connector_id": ""}, {"connector_id": 7}, SimpleNamespace()]
)
async def test_without_a_connector_id_nothing_is_done(
    producer: Producer, pool: Pool, config: Any
) -> None:
    connector = Connector([event(1)], producer, pool, config=config)
    with pytest.raises(Misconfigured, match="connector_id"):
        await connector.run()
    with pytest.raises(Misconfigured, match="connector_id"):
        await connector.load()
    with pytest.raises(Misconfigured, match="connector_id"):
        await connector.save(START)
    assert not producer.sent
    assert not pool.statements


async def test_a_naive_time_is_utc_with_one_warning_a_connector(
    producer: Producer, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    naive = [event(n, at(n).replace(tzinfo=None)) for n in (1, 2)]
    connector = Connector(naive, producer, pool)
    await connector.run()
    await connector.run()
    assert pool.last_ts == at(2)
    assert producer.sent[0][1]["occurred_at"] == "2026-01-01T00:00:01.000000Z"
    assert len(caplog.records) == 1
    await Connector(naive, producer, pool).run()
    assert len(caplog.records) == 2


async def test_one_warning_a_pass_when_the_order_is_broken(
    producer: Producer, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    connector = Connector([event(3), event(1), event(2), event(1)], producer, pool)
    await connector.run()
    assert pool.written == [at(3)]
    assert len(caplog.records) == 1
    assert "'e1'" in caplog.text


@pytest.mark.parametrize("double", [AsyncMock(), MagicMock()])
async def test_a_mock_for_a_producer_is_taken_at_its_word(pool: Pool, double: Any) -> None:
    await Connector([event(1), event(2)], double, pool).run()
    assert double.send.call_count == 2
    assert set(double.send.call_args.kwargs) == {"topic", "value"}
    assert pool.last_ts == at(2)


async def test_a_stream_may_come_from_a_coroutine(producer: Producer, pool: Pool) -> None:
    class Coroutine(Connector):
        # As the specification's signature also allows.
        async def stream_audit_events(self, since: datetime) -> Any:  # type: ignore[override]
            return super().stream_audit_events(since)

    connector = Coroutine([event(1)], producer, pool)
    await connector.run()
    assert connector.is_closed
    assert len(producer.sent) == 1


async def test_a_stream_may_be_an_iterator_that_cannot_be_closed(
    producer: Producer, pool: Pool
) -> None:
    class Iterator:
        def __init__(self) -> None:
            self.left = [event(1), event(2)]

        def __aiter__(self) -> Iterator:
            return self

        async def __anext__(self) -> RawEvent:
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop(0)

    class Plain(Connector):
        def stream_audit_events(self, since: datetime) -> Any:
            return Iterator()

    await Plain([], producer, pool).run()
    assert pool.last_ts == at(2)


async def test_a_paged_connector_runs_as_well(producer: Producer, pool: Pool) -> None:
    class Paged(PagedConnector):
        async def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
            assert position.since == YEAR_2000
            yield Page([event(1), event(2)], {"page": 1})
            yield Page([event(3)], {"page": 2})

        async def snapshot_permissions(self) -> AsyncIterator[Any]:
            return
            yield

    await Paged({"connector_id": "acme-1"}, producer, pool).run()
    assert [value["event_id"] for _, value in producer.sent] == ["e1", "e2", "e3"]
    assert pool.last_ts == at(3)


async def test_overridden_checkpoints_are_used(producer: Producer) -> None:
    saved: list[datetime] = []

    class Own(Connector):
        async def _load_checkpoint(self) -> datetime:
            return at(5)

        async def _save_checkpoint(self, ts: datetime) -> None:
            saved.append(ts)

    connector = Own([event(6)], producer, None)
    await connector.run()
    assert connector.since == at(5)
    assert saved == [at(6)]


UNPUBLISHABLE = {
    "no event": {"event_id": "e3"},
    "no time": event(3, "2026-01-01"),
    "no time in UTC": event(3, datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))),
    "no platform": event(3, platform=None),
    "a platform that is no topic": event(3, platform="ac me/é"),
    "no principal": event(3, principal_ref=None),
    "an operation that is no text": event(3, operation=["READ"]),
    "an id that is no text": event(3, event_id=b"e3"),
    "no id": event(3, event_id=""),
}


@pytest.mark.parametrize("name", UNPUBLISHABLE)
async def test_what_does_not_say_who_did_what_costs_its_record_only(
    producer: Producer, pool: Pool, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Before, the pass ended there, and every later one as well."""
    faulty = UNPUBLISHABLE[name]
    with caplog.at_level(logging.ERROR):
        await Connector([event(1), event(2), faulty, event(4)], producer, pool).run()
    (said,) = caplog.messages
    assert "id" in name or name == "no event" or "'e3'" in said
    assert [value["event_id"] for _, value in producer.sent] == ["e1", "e2", "e4"]
    assert pool.written == [at(4)]


ALTERED: dict[str, tuple[dict[str, Any], str, Any]] = {
    "a surrogate": ({"raw_payload": {"x": "\ud800"}}, "/raw_payload/x", {"x": "\\ud800"}),
    "NaN": ({"raw_payload": {"x": float("nan")}}, "/raw_payload/x", {"x": "NaN"}),
    "a long integer": ({"raw_payload": {"x": 2**70}}, "/raw_payload/x", {"x": str(2**70)}),
    "an object": ({"raw_payload": {"x": b"ab"}}, "/raw_payload/x", {"x": "ab"}),
    "a reference": ({"asset_ref": "\ud800"}, "/asset_ref", {"n": 3}),
}


@pytest.mark.parametrize("name", ALTERED)
async def test_whatever_else_is_wrong_goes_out_in_text_form(
    producer: Producer, pool: Pool, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    fields, pointer, payload = ALTERED[name]
    await Connector([event(1), event(3, **fields), event(4)], producer, pool).run()
    assert [value["event_id"] for _, value in producer.sent] == ["e1", "e3", "e4"]
    assert producer.sent[1][1]["raw_payload"] == payload
    assert producer.headers == {"e3": [("altered", f'["{pointer}"]'.encode())]}
    (said,) = caplog.messages
    assert "'e3'" in said
    assert pointer in said


async def test_a_producer_that_takes_no_headers_takes_altered_events(pool: Pool) -> None:
    class Narrow(Producer):
        async def send(self, *, topic: str, value: dict[str, Any]) -> Any:  # type: ignore[override]
            return await super().send(topic=topic, value=value)

    producer = Narrow()
    await Connector([event(1, raw_payload={"x": b"ab"}), event(2)], producer, pool).run()
    assert [value["raw_payload"] for _, value in producer.sent] == [{"x": "ab"}, {"n": 2}]


async def test_what_a_serializer_refuses_goes_out_as_texts(producer: Producer, pool: Pool) -> None:
    """orjson writes a time, the specification's own `json.dumps` does not."""

    class Strict(Producer):
        async def send(self, *, topic: str, value: Any, headers: Any = None) -> Any:
            json.dumps(value)
            return await super().send(topic=topic, value=value, headers=headers)

    strict = Strict()
    await Connector([event(1, raw_payload={"at": at(1)}), event(2)], strict, pool).run()
    assert strict.sent[0][1]["raw_payload"] == {"at": "2026-01-01T00:00:01Z"}
    assert strict.headers == {}


async def test_integers_and_uuids_as_references_are_texts(producer: Producer, pool: Pool) -> None:
    given = event(1, event_id=17, principal_ref=UUID(int=5))
    await Connector([given], producer, pool).run()
    assert producer.sent[0][1]["event_id"] == "17"
    assert producer.sent[0][1]["principal_ref"] == str(UUID(int=5))


async def test_an_event_that_is_too_large_is_malformed_and_not_passed(
    producer: Producer, pool: Pool
) -> None:
    error = producer.send_errors["e3"] = MessageSizeTooLargeError("2 MB")
    faulty = event(3, raw_payload={"x": "y"})
    with pytest.raises(Malformed, match="'e3'") as caught:
        await Connector([event(1), event(2), event(2), faulty], producer, pool).run()
    assert caught.value.__cause__ is error
    assert pool.written == [at(2)]


@pytest.mark.parametrize("number", [2, 1, 0])
async def test_a_malformed_event_is_not_passed_whatever_its_time(
    producer: Producer, pool: Pool, number: int
) -> None:
    producer.send_errors["faulty"] = MessageSizeTooLargeError("2 MB")
    faulty = event(number, event_id="faulty")
    with pytest.raises(Malformed, match="'faulty'"):
        await Connector([event(1), event(2), faulty], producer, pool).run()
    assert all(ts < at(number) for ts in pool.written)


@pytest.mark.parametrize(
    "error", [TypeError("object supporting the buffer API required"), ValueError("no bytes")]
)
async def test_a_producer_without_a_serializer_is_misconfigured(
    producer: Producer, pool: Pool, error: Exception
) -> None:
    producer.send_errors["e1"] = error
    with pytest.raises(Misconfigured, match="value_serializer") as caught:
        await Connector([event(1)], producer, pool).run()
    assert caught.value.__cause__ is error
    assert pool.written == []


async def test_no_serializer_is_told_from_a_bad_payload(producer: Producer, pool: Pool) -> None:
    producer.send_errors["e1"] = TypeError("bytes required")
    with pytest.raises(Misconfigured, match="value_serializer"):
        await Connector([event(1, raw_payload={"x": object()})], producer, pool).run()


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError("gone"), Unavailable),
        (AssertionError("Unrecognized partition"), Unavailable),
        (TopicAuthorizationFailedError("verity.events.raw.acme"), Denied),
    ],
)
@pytest.mark.parametrize("when", ["send", "ack"])
async def test_who_must_act_when_kafka_fails(
    producer: Producer, pool: Pool, error: Exception, raised: type[Exception], when: str
) -> None:
    getattr(producer, f"{when}_errors")["e3"] = error
    with pytest.raises(raised, match="'e3'") as caught:
        await Connector([event(n) for n in (1, 2, 3, 4)], producer, pool).run()
    assert caught.value.__cause__ is error
    assert "2000-01-01T00:00:00.000000Z" in str(caught.value)
    assert pool.written == []


async def test_an_event_that_the_broker_finds_too_large_is_malformed_and_not_passed(
    producer: Producer, pool: Pool
) -> None:
    producer.ack_errors["e2"] = MessageSizeTooLargeError("2 MB")
    with pytest.raises(Malformed, match="'e2'"):
        await Connector([event(n) for n in (1, 2, 3, 4)], producer, pool).run()
    assert pool.written == []


async def test_a_failing_save_is_unavailable(producer: Producer, pool: Pool) -> None:
    pool.write_error = OSError("gone")
    with pytest.raises(Unavailable, match=r"2026-01-01T00:00:01.*gone") as caught:
        await Connector([event(1)], producer, pool).run()
    assert caught.value.__cause__ is pool.write_error


async def test_what_the_source_raises_comes_out_after_what_it_yielded(
    producer: Producer, pool: Pool
) -> None:
    gone = Unavailable("the API is down", retry_after_seconds=5)
    with pytest.raises(Unavailable) as caught:
        await Connector([event(1), event(2), gone], producer, pool).run()
    assert caught.value is gone
    assert len(producer.sent) == 2
    assert pool.written == [at(1)]


async def test_an_ack_that_never_comes_has_a_limit(
    producer: Producer, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "ACK_SECONDS_MAX", 0.0)
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    silent = SimpleNamespace(send=AsyncMock(return_value=never))
    with pytest.raises(Unavailable, match="did not acknowledge"):
        await Connector([event(1)], silent, pool).run()
    assert pool.written == []
    assert not never.cancelled()


async def test_a_database_that_never_answers_has_a_limit(
    producer: Producer, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DATABASE_SECONDS_MAX", 0.0)
    monkeypatch.setattr(pool, "execute", lambda *_: asyncio.Event().wait())
    with pytest.raises(Unavailable, match="TimeoutError"):
        await Connector([], producer, pool).save(at(1))


async def test_a_silent_source_holds_back_neither_events_nor_checkpoint(
    producer: Producer, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "RUN_LIMITS", Limits(1000, timedelta(milliseconds=1)))
    has_written = asyncio.Event()
    execute = pool.execute

    async def execute_and_say(*arguments: Any) -> str:
        done = await execute(*arguments)
        has_written.set()
        return done

    monkeypatch.setattr(pool, "execute", execute_and_say)

    class Silent(Connector):
        async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
            yield event(1)
            yield event(2)
            # Only the checkpoint wakes this source up: a pass that waits for it hangs.
            await has_written.wait()
            assert pool.written == [at(1)]
            yield event(3)

    async with asyncio.timeout(30):
        await Silent([], producer, pool).run()
    assert pool.written[-1] == at(3)


async def test_a_cancelled_source_is_not_a_cancelled_pass(producer: Producer, pool: Pool) -> None:
    class Cancelled(Connector):
        async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
            yield event(1)
            raise asyncio.CancelledError

    with pytest.raises(Unavailable, match="cancelled itself"):
        await Cancelled([], producer, pool).run()


async def test_failures_leave_nothing_for_asyncio_to_complain_of(
    producer: Producer, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    import gc

    caplog.set_level(logging.ERROR, "asyncio")
    producer.send_errors["e3"] = OSError("send")
    producer.ack_errors["e1"] = OSError("ack")
    with pytest.raises(Unavailable):
        await Connector([event(1), event(2), event(3), OSError("source")], producer, pool).run()
    gc.collect()
    await asyncio.sleep(0)
    assert [record.getMessage() for record in caplog.records] == []
