"""The app without a broker: its settings, the mirror's decision, and how it drives the runner."""

from __future__ import annotations

import asyncio
import ssl
import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import faust
import pytest
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st
from stub_runner import StubRunner

from verity_sdk.errors import Malformed, Misconfigured
from verity_stream.faust_base import app as faust_app
from verity_stream.faust_base import group
from verity_stream.faust_base.options import broker_credentials
from verity_stream.kafka.partitions import partition_for
from verity_stream.kafka.topics import Topics
from verity_stream.records import (
    CHECKPOINTS_TOPIC,
    Checkpoint,
    Origin,
    PageSummary,
    checkpoint_record,
)
from verity_stream.settings import StreamSettings
from verity_stream.worker.app import WorkerApp, create_worker_app
from verity_stream.worker.mirror import mirror_event, should_mirror


def make_settings(**changes: Any) -> StreamSettings:
    kafka = {"bootstrap_servers": "one:9092, two:9093", "replication_factor": 3}
    return StreamSettings(**{"app_id": "unit", "kafka": kafka, **changes})


def make_worker(**changes: Any) -> tuple[WorkerApp, StubRunner]:
    runner = StubRunner()
    app = create_worker_app(make_settings(**changes), lambda: runner)
    return app, runner


# Settings.


def test_the_settings_that_fit() -> None:
    """faust.md, "Settings that fit": each of Faust's defaults here is a trap."""
    conf = make_worker()[0].conf
    assert [str(url) for url in conf.broker] == ["kafka://one:9092", "kafka://two:9093"]
    assert conf.topic_allow_declare is False
    assert 6 <= conf.broker_session_timeout <= 9
    assert conf.broker_heartbeat_interval <= conf.broker_session_timeout / 3
    assert conf.broker_request_timeout > conf.broker_session_timeout
    assert conf.broker_request_timeout > conf.broker_rebalance_timeout == 30
    assert conf.broker_commit_interval == 1
    assert conf.broker_max_poll_interval == 365 * 24 * 3600
    assert conf.producer_acks == -1
    assert conf.producer_request_timeout == 30
    assert conf.topic_replication_factor == 3
    assert conf.table_standby_replicas == 0
    assert conf.stream_wait_empty
    assert not conf.worker_redirect_stdouts
    assert str(conf.processing_guarantee.value) == "at_least_once"
    assert (conf.web_bind, conf.web_port) == ("127.0.0.1", 6066)


@pytest.mark.parametrize("session_seconds", [3.0, 10.0, 60.0])
def test_the_timeouts_keep_their_order(session_seconds: float) -> None:
    """Faust refuses a session above the request timeout; the group, a late heartbeat."""
    conf = make_worker(session_timeout_seconds=session_seconds)[0].conf
    assert conf.broker_heartbeat_interval * 3 <= session_seconds < conf.broker_request_timeout


def test_the_environment_does_not_take_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faust reads it without a prefix, and APP_ENV_PREFIX would undo a prefix of ours."""
    strays = {
        "APP_ENV_PREFIX": "",
        "BROKER_URL": "kafka://elsewhere:1",
        "BROKER_CONSUMER_URL": "kafka://elsewhere:1",
        "WEB_PORT": "1",
        "WEB_BIND": "0.0.0.0",  # noqa: S104 - the trap itself
        "PROCESSING_GUARANTEE": "exactly_once",
        "PRODUCER_REQUEST_TIMEOUT": "1200",
        "VERITY_FAUST_WEB_PORT": "2",
    }
    for name, value in strays.items():
        monkeypatch.setenv(name, value)
    test_the_settings_that_fit()


def test_many_apps_share_nothing() -> None:
    """Tests and programs build as many as they like."""
    (one, _), (two, _) = make_worker(), make_worker(app_id="other")
    assert one.checkpoints is not two.checkpoints
    assert one.web is not two.web
    assert (one.conf.id, two.conf.id) == ("unit", "other")


@pytest.mark.parametrize(
    ("options", "protocol"),
    [
        ({"security_protocol": "SSL"}, "SSL"),
        ({"security_protocol": "SSL", "ssl_context": ssl.create_default_context()}, "SSL"),
        ({"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN"}, "SASL_PLAINTEXT"),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-512"}, "SASL_SSL"),
    ],
)
def test_kafkas_security_is_carried_over(options: dict[str, Any], protocol: str) -> None:
    """The same options that aiokafka's clients take, as Faust's driver hands them on."""
    from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

    user = {"sasl_plain_username": "me", "sasl_plain_password": "secret"}
    carried = credentials_to_aiokafka_auth(broker_credentials({**options, **user}))
    assert carried["security_protocol"] == protocol
    if "SASL" in protocol:
        assert carried["sasl_mechanism"] == options["sasl_mechanism"]
        assert carried["sasl_plain_username"] == "me"
        assert carried["sasl_plain_password"] == "secret"
    if "SSL" in protocol:
        assert isinstance(carried["ssl_context"], ssl.SSLContext)


def test_plain_text_needs_no_credentials_and_other_mechanisms_are_refused() -> None:
    """Before anything starts, naming the mechanism."""
    assert broker_credentials({}) is None
    with pytest.raises(Misconfigured, match="GSSAPI"):
        broker_credentials({"security_protocol": "SASL_SSL", "sasl_mechanism": "GSSAPI"})


# The mirror.


def held(version: int, epoch: int = 1, connector_id: str = "a") -> bytes:
    """A checkpoint record's value."""
    checkpoint = Checkpoint(connector_id, version, epoch, datetime(2026, 1, 1, tzinfo=UTC))
    value = checkpoint_record(Origin(connector_id, "test", ""), checkpoint, PageSummary()).value
    assert value is not None
    return value


@given(st.integers(0, 2**62), st.integers(0, 2**62))
def test_only_a_higher_version_is_mirrored(current: int, incoming: int) -> None:
    """The mirror never goes back, in whatever order and how often records come."""
    assert should_mirror(held(current), held(incoming), b"a") == (incoming > current)
    assert should_mirror(None, held(incoming), b"a")


@given(st.binary())
def test_no_other_bytes_are_mirrored(value: bytes) -> None:
    """Nothing else is raised, whatever lies in the topic."""
    with pytest.raises(Malformed):
        should_mirror(None, value, b"a")
    assert should_mirror(value, held(1), b"a"), "and what lies in the table gives way"


def test_the_mirror_takes_the_higher_version_and_of_equal_ones_the_higher_epoch() -> None:
    """Without transactions the record of a relay that was replaced comes late, or first."""
    assert should_mirror(held(3, 1), held(3, 2), b"a")
    for late in (held(3, 1), held(2, 9), held(3, 2)):
        assert not should_mirror(held(3, 2), late, b"a")
    assert should_mirror(held(3, 2), held(4, 1), b"a")


def event(key: bytes | None, value: bytes | None) -> Any:
    message = SimpleNamespace(key=key, value=value, topic=CHECKPOINTS_TOPIC, partition=3, offset=8)
    return SimpleNamespace(message=message)


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"not JSON", b"null", b"[]", b"{}", b'{"version": 2}'),
        held(2).replace(b'"version":2', b'"version":"2"'),
        held(2).replace(b'"version":2', b'"version":true'),
        held(2).replace(b'"version":2', b'"version":9223372036854775808'),
        held(2).replace(b'"last_ts":"2026', b'"last_ts":"soon'),
        held(2, connector_id="b"),
    ],
)
def test_a_record_that_is_not_understood_is_skipped_and_named(
    value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in an agent acknowledges and skips, and restarts it (streams.py)."""
    table = {b"a": held(1)}
    mirror_event(table, event(b"a", value))
    assert table == {b"a": held(1)}
    assert f"{CHECKPOINTS_TOPIC}[3]@8, key b'a'" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_table_that_refuses_the_write_does_not_stop_the_agent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A partition mismatch raises at the write."""

    class Refusing(dict[bytes, bytes]):
        def __setitem__(self, key: bytes, value: bytes) -> None:
            raise RuntimeError("partitions mismatch")

    mirror_event(Refusing(), event(b"a", held(1)))
    assert "partition 3, offset 8" in caplog.text


def test_a_tombstone_removes_and_a_later_record_comes_back() -> None:
    """None, not `null`: raw values."""
    table: dict[bytes, bytes] = {}
    for value in (held(7), None, None, held(1)):
        mirror_event(table, event(b"a", value))
    assert table == {b"a": held(1)}


async def test_the_mirror_runs_alone_on_raw_bytes() -> None:
    """#606; and with a serializer the key would land in another partition."""
    app, _ = make_worker()
    assert app.mirror.concurrency == 1
    table: Any = app.checkpoints
    topics: tuple[Any, ...] = (app.mirror.channel, table.changelog_topic)
    for one in topics:
        assert (one.key_type, one.value_type) == (bytes, bytes)
        assert one.partitions == 24
        assert one.internal
        assert one.compacting
    assert (table.key_serializer, table.value_serializer) == ("raw", "raw")
    assert not table.use_partitioner


# The lifecycle.


async def rebalance(app: WorkerApp, *partitions: int) -> None:
    """What Faust does, in its order; the first call comes from another thread."""
    await asyncio.to_thread(app.on_rebalance_start)
    await app.on_partitions_revoked.send(set())
    topics = (CHECKPOINTS_TOPIC, "other")
    await app._on_partitions_assigned({TP(topic, p) for p in partitions for topic in topics})
    app.on_rebalance_end()
    await turns()


async def turns() -> None:
    """So many turns of the loop that whatever waits for nothing else is done."""
    for _ in range(100):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def without_a_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def assigned(app: Any, assigned: set[TP], generation_id: int = 0) -> None:
        app._assignment = assigned

    monkeypatch.setattr(faust.App, "_on_partitions_assigned", assigned)


@pytest.fixture
async def worker() -> tuple[WorkerApp, StubRunner]:
    app, runner = make_worker()
    app.loop = asyncio.get_running_loop()
    await app.driver.start()
    runner.calls.clear()
    return app, runner


async def test_hold_then_assign(worker: tuple[WorkerApp, StubRunner]) -> None:
    """The first on the main loop, though Faust calls from the consumer's thread.

    And what is owned is started at once: until the timer's next tick nobody would run it.
    """
    app, runner = worker
    await rebalance(app, 1, 2)
    assert runner.calls == [("hold", True), ("assign", [1, 2]), "reconcile"]
    assert app.owned_partitions == {1, 2}
    await asyncio.to_thread(app.on_rebalance_start)
    assert app.owned_partitions == frozenset()


async def test_without_transactions_a_revoke_stops_all() -> None:
    """Nobody fences there."""
    app, runner = make_worker(delivery="at_least_once")
    app.loop = asyncio.get_running_loop()
    await app.driver.start()
    await rebalance(app, 1)
    assert runner.calls == ["start", ("hold", True), "revoke", ("assign", [1]), "reconcile"]


async def test_a_worker_that_the_group_has_not_heard_of_starts_nothing(
    worker: tuple[WorkerApp, StubRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    app, runner = worker
    await rebalance(app, 1)
    coordinator = SimpleNamespace(
        heard_at=time.monotonic() - app.conf.broker_session_timeout - 0.1,
        _coordination_task=None,
        _cluster=SimpleNamespace(topics=set),
    )
    monkeypatch.setattr(group, "coordinator_of", lambda app: coordinator)
    await app._tick()
    assert runner.calls[-2:] == [("hold", True), "reconcile"]
    coordinator.heard_at = time.monotonic()
    await app._tick()
    await turns()
    assert runner.calls[-2:] == [("assign", [1]), "reconcile"]


async def test_an_assignment_of_a_topic_that_is_gone_is_not_complete(
    worker: tuple[WorkerApp, StubRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group assigns nothing to anybody, for ever: the watchdog is to end that."""
    app, _ = worker
    there, said = {"other", CHECKPOINTS_TOPIC}, []
    coordinator = SimpleNamespace(
        _cluster=SimpleNamespace(topics=lambda: there), _coordination_task=None
    )
    monkeypatch.setattr(group, "coordinator_of", lambda app: coordinator)
    monkeypatch.setattr(app.watchdog, "ticked", lambda **facts: said.append(facts["is_settled"]))
    await rebalance(app)
    await app._tick()
    there = {"other"}
    await app._tick()
    there = set()  # Nothing was heard yet.
    await app._tick()
    assert said == [True, False, True]


async def test_readiness_says_why_not(worker: tuple[WorkerApp, StubRunner]) -> None:
    """Rebalancing, no partitions, no connectors: each is a reason."""
    app, runner = worker
    assert app._readyz() == (503, {"status": "not ready", "reasons": ["rebalancing"]})
    await rebalance(app)
    assert app.reasons_not_ready() == ["no partitions assigned"]
    # Seen when the leader did not know the topic yet: only the changelog was assigned.
    app._assignment = {TP("other", 1)}
    assert app.reasons_not_ready() == ["no partitions assigned"]
    await rebalance(app, 1)
    assert app._readyz() == (200, {"status": "ready", "reasons": []})
    runner.is_ready = lambda: False  # type: ignore[method-assign]
    assert app.reasons_not_ready() == ["connectors are not running"]


async def test_checkpoints_of_other_workers_are_not_shown(
    worker: tuple[WorkerApp, StubRunner],
) -> None:
    """A memory store may still hold the keys of partitions that were revoked."""
    app, _ = worker
    mine, theirs = "postgres-main", "azure_ad"
    assert partition_for(mine, 24) != partition_for(theirs, 24)
    await rebalance(app, partition_for(mine, 24))
    for connector_id in (mine, theirs):
        app.checkpoints.data[connector_id.encode()] = held(4, connector_id=connector_id)
    app.checkpoints.data[b"\xff"] = app.checkpoints.data[b"stranger"] = b"what?"
    (found,) = app.owned_checkpoints().items()
    assert found == (mine, found[1] | {"partition": partition_for(mine, 24), "version": 4})


async def test_a_stop_while_starting_ends_the_start_and_stops_the_runner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGTERM does not wait for a database that does not answer."""
    app, runner = make_worker()

    async def nothing(*args: Any) -> None:
        pass

    monkeypatch.setattr(faust_app, "wait_for_broker", nothing)
    monkeypatch.setattr(Topics, "ensure", nothing)
    runner.slow["start"] = 60
    starting = asyncio.ensure_future(app.on_first_start())
    async with asyncio.timeout(10):
        while runner.calls != ["start"]:  # noqa: ASYNC110 - a list tells nobody
            await asyncio.sleep(0.01)
        await app.on_stop()
        await starting
    assert runner.calls == ["start", ("hold", True), "stop"]
