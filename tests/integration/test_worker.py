"""The whole program on the real stack: `faust -A verity_stream worker`, killed and restarted."""

from __future__ import annotations

import asyncio
import random
import secrets
import signal
import time
from typing import Any

import asyncpg
import orjson
import pytest
from verity_test_connectors import sequence
from workers import Bench, committed, eventually

from verity_stream.failpoints import POINTS, START_POINTS

pytestmark = pytest.mark.stack


def plain(bench: Bench, **settings: Any) -> dict[str, Any]:
    """The table of a connector whose type yields events."""
    return {"type": "test_plain", "platform": bench.name, "poll_every": "500ms", **settings}


def paged(bench: Bench, **settings: Any) -> dict[str, Any]:
    """The table of a connector whose type yields pages."""
    return {"type": "test_paged", "platform": bench.name, "poll_every": "500ms", **settings}


async def assert_exactly_once(bench: Bench, connector: str, count: int) -> None:
    """The first `count` events of the sequence are in the topic once, and the views agree."""
    expected = {event.event_id for event in sequence(bench.name, count)}
    await bench.assert_exactly_once(connector, expected)


@pytest.mark.parametrize("kind", [plain, paged])
async def test_killed_at_random_times_every_event_arrives_exactly_once(
    bench: Bench, kind: Any
) -> None:
    count = 1500
    extra = {"overlap": 20} if kind is paged else {}
    bench.configure(source=kind(bench, count=count, page=20, page_seconds=0.02, **extra))
    numbers = random.Random(int.from_bytes(secrets.token_bytes(4)))
    worker = bench.worker(VERITY_PAGE_EVENTS="20")
    for _ in range(4):
        stored = await bench_version(bench)
        await bench.wait_for_version("source", stored + 1)
        await asyncio.sleep(numbers.uniform(0, 0.3))
        worker.kill()
        worker = bench.worker(VERITY_PAGE_EVENTS="20")
    await bench.wait_for_state("source", "caught_up")
    await assert_exactly_once(bench, "source", count)
    assert worker.messages("relay.started")[-1]["version"] > 0


async def bench_version(bench: Bench) -> int:
    """The stored version now, 0 before there is one."""
    try:
        stored = await bench.stored_checkpoint("source")
    except asyncpg.UndefinedTableError:
        return 0
    return stored["version"] if stored else 0


async def test_the_table_is_the_third_view_of_the_checkpoint(bench: Bench) -> None:
    bench.configure(source=paged(bench, count=300))
    worker = bench.worker()
    await bench.wait_for_state("source", "caught_up")
    (*_, last) = await bench.published_checkpoints("source")
    stored = await bench.stored_checkpoint("source")

    async def mirrored() -> bool:
        _, table = worker.get("/checkpoints")
        return bool(table) and table.get(bench.id("source"), {}).get("version") == last["version"]

    await eventually(mirrored, 60, bench.logs)
    _, table = worker.get("/checkpoints")
    assert stored is not None
    assert table[bench.id("source")]["cursor"] == last["cursor"] == orjson.loads(stored["cursor"])
    assert worker.get("/healthz")[0] == 200
    assert worker.get("/readyz")[0] == 200


async def test_sigterm_ends_within_ten_seconds_and_repeats_nothing(bench: Bench) -> None:
    count = 1200
    bench.configure(source=plain(bench, count=count, page=20, page_seconds=0.02))
    worker = bench.worker(VERITY_PAGE_EVENTS="20")
    await bench.wait_for_version("source", 2)
    assert worker.terminate() < 10
    stored = await bench.stored_checkpoint("source")
    published = await bench.published_checkpoints("source")
    assert stored is not None
    assert 0 < stored["version"] == published[-1]["version"]
    bench.worker()
    await bench.wait_for_state("source", "caught_up")
    await assert_exactly_once(bench, "source", count)


async def test_a_stopped_worker_that_wakes_up_is_fenced_and_publishes_nothing(
    bench: Bench,
) -> None:
    count = 1500
    bench.configure(source=paged(bench, count=count, page=20, page_seconds=0.03))
    zombie = bench.worker(VERITY_PAGE_EVENTS="20")
    await bench.wait_for_version("source", 3)
    zombie.signal(signal.SIGSTOP)
    bench.worker(VERITY_PAGE_EVENTS="20")
    stopped_at = (await bench.stored_checkpoint("source"))["epoch"]

    async def taken_over() -> bool:
        return (await bench.stored_checkpoint("source"))["epoch"] > stopped_at

    await eventually(taken_over, 90, bench.logs)
    zombie.signal(signal.SIGCONT)

    async def takes_part_again() -> bool:
        return len(zombie.messages("runner.assigned")) > 1

    await eventually(takes_part_again, 90, bench.logs)
    await bench.wait_for_state("source", "caught_up")
    await assert_exactly_once(bench, "source", count)
    assert zombie.process is not None
    assert zombie.process.poll() is None, (
        "it published nothing because it could not, and not because it died"
    )
    # A container's file system may be read-only; Faust makes directories of its own.
    assert [path.name for path in zombie.directory.iterdir()] == ["worker.log"]


async def test_two_workers_share_the_connectors_and_hand_them_over(bench: Bench) -> None:
    names = [f"s{number}" for number in range(8)]
    bench.configure(
        **{name: paged(bench, count=400, seed=1, page=20, page_seconds=0.1) for name in names}
    )
    first = bench.worker(VERITY_PAGE_EVENTS="20")
    await bench.wait_for_version("s0", 2)
    second = bench.worker(VERITY_PAGE_EVENTS="20")

    async def shared() -> bool:
        held = [
            lines[-1]["connectors"] if (lines := one.messages("runner.assigned")) else []
            for one in (first, second)
        ]
        return all(held) and sorted(held[0] + held[1]) == sorted(map(bench.id, names))

    await eventually(shared, 90, bench.logs)
    first.terminate()
    for name in names:
        await bench.wait_for_state(name, "caught_up")
        await assert_exactly_once(bench, name, 400)


async def test_an_edit_by_sql_wins_and_replays(bench: Bench) -> None:
    # Without looking back, so that the replay begins at the edit: all 200 are within a minute.
    bench.configure(source=plain(bench, count=200, poll_every="300ms", lookback="0s"))
    bench.worker()
    await bench.wait_for_state("source", "caught_up")
    truth = sequence(bench.name, 200)
    middle = truth[100].occurred_at
    await bench.fetchrow(
        """
        INSERT INTO connector_checkpoints (connector_id, last_ts) VALUES ($1, $2)
        ON CONFLICT (connector_id) DO UPDATE SET last_ts = EXCLUDED.last_ts
        """,
        bench.id("source"),
        middle,
    )
    expected = 200 + sum(event.occurred_at >= middle for event in truth)
    await bench.wait_for_events(expected)
    await bench.wait_for_state("source", "caught_up")
    assert len(await bench.event_ids()) == expected, "replayed once, as asked"
    audit = await bench.fetchrow(
        "SELECT action FROM connector_audit WHERE connector_id = $1", bench.id("source")
    )
    assert audit["action"] == "edit"


@pytest.mark.alone
async def test_pause_is_honoured_within_two_seconds_and_snapshots_come_on_demand(
    bench: Bench,
) -> None:
    bench.configure(
        source=paged(bench, count=100_000, page=10, page_seconds=0.05, snapshot_every="1h",
                     denied_scopes=["vault"])
    )  # fmt: skip
    bench.worker(VERITY_PAGE_EVENTS="10")
    await bench.wait_for_version("source", 2)
    platform_topic = "verity.permissions.raw.test_paged"

    async def snapshots(number: int) -> bool:
        records = await committed(bench.bootstrap_servers, platform_topic)
        own = [r for r in records if r.key == bench.id("source").encode()]
        return [orjson.loads(r.value)["record"] for r in own].count("end") == number

    # The topic is shared: a worker that another test killed within a snapshot leaves a transaction
    # open, and committed readers of its partition wait until the broker ends it.
    await eventually(lambda: snapshots(1), 120, bench.logs)
    await bench.fetchrow(
        "INSERT INTO connector_controls (connector_id, snapshot_requested_at) VALUES ($1, now())",
        bench.id("source"),
    )
    await eventually(lambda: snapshots(2), 120, bench.logs)
    records = await committed(bench.bootstrap_servers, platform_topic)
    own = [orjson.loads(r.value) for r in records if r.key == bench.id("source").encode()]
    first = [body for body in own if body["snapshot_id"] == own[0]["snapshot_id"]]
    assert [body["record"] for body in first] == ["start", *["grant"] * 5, "end"]
    assert first[-1]["is_complete"] is False
    assert first[-1]["grant_count"] == 5
    assert first[-1]["scopes_denied"] == [{"scope": "vault", "reason": "the source refused"}]

    await bench.fetchrow(
        "UPDATE connector_controls SET paused = true WHERE connector_id = $1", bench.id("source")
    )
    asked_at = time.monotonic()
    await bench.wait_for_state("source", "paused")
    assert time.monotonic() - asked_at < 4  # 2 s to honour it, and time to see it
    before = (await bench.stored_checkpoint("source"))["version"]
    await asyncio.sleep(1)
    assert (await bench.stored_checkpoint("source"))["version"] == before


async def test_one_failing_connector_never_stops_another(bench: Bench) -> None:
    bench.configure(
        broken={"type": "test_failing", "platform": bench.name, "error": "bug"},
        denied={"type": "test_failing", "platform": bench.name, "error": "denied"},
        source=paged(bench, count=300),
    )
    bench.worker()
    await bench.wait_for_state("source", "caught_up")
    await bench.wait_for_state("broken", "backing_off")
    await bench.wait_for_state("denied", "blocked")
    await assert_exactly_once(bench, "source", 300)


async def test_at_least_once_loses_nothing(bench: Bench) -> None:
    count = 800
    bench.configure(source=paged(bench, count=count, page=20, page_seconds=0.02))
    worker = bench.worker(VERITY_PAGE_EVENTS="20", VERITY_DELIVERY="at_least_once")
    await bench.wait_for_version("source", 2)
    worker.kill()
    bench.worker(VERITY_PAGE_EVENTS="20", VERITY_DELIVERY="at_least_once")
    await bench.wait_for_state("source", "caught_up")
    ids = await bench.event_ids("source")
    assert set(ids) == {event.event_id for event in sequence(bench.name, count)}
    assert len(ids) - count <= 20, "at most the page in flight is repeated"


def test_a_wrong_configuration_exits_with_2_and_names_every_fault(bench: Bench) -> None:
    (bench.directory / "verity.toml").write_text(
        '[connectors.a]\ntype = "nonsense"\n'
        '[connectors.b]\ntype = "test_plain"\nplatform = "x"\ncount = "many"\n'
        '[connectors.c]\ntype = "test_plain"\nplatform = "env:NOT_SET"\npoll_every = "soon"\n'
    )
    worker = bench.worker()
    assert worker.process is not None
    assert worker.process.wait(90) == 2
    for text in (
        "nonsense",
        "[connectors.b] count",
        "[connectors.c] platform: the environment variable NOT_SET",
        "[connectors.c] poll_every",
    ):
        assert text in worker.log
    assert "Traceback" not in worker.log


@pytest.mark.parametrize("point", POINTS)
async def test_killed_at_every_point_of_a_page(bench: Bench, point: str) -> None:
    """kill -9 exactly there; whatever it leaves, the next start makes right (I1, I2, I5)."""
    count = 120
    bench.configure(source=paged(bench, count=count, page=20, overlap=5))
    passage = 1 if point in START_POINTS else 3
    first = bench.worker(VERITY_PAGE_EVENTS="20", VERITY_FAILPOINTS=f"{point}=kill@{passage}")
    assert first.process is not None
    assert await asyncio.to_thread(first.process.wait, 90) == -signal.SIGKILL
    bench.worker(VERITY_PAGE_EVENTS="20")
    await bench.wait_for_state("source", "caught_up")
    await assert_exactly_once(bench, "source", count)
