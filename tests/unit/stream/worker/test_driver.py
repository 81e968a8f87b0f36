"""In which order a runner is called, whatever the consumer group does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from stub_runner import StubRunner

from verity_stream.worker import driver as driver_module
from verity_stream.worker.driver import Driver

ONE, TWO = frozenset({1}), frozenset({2})


class Clock:
    """The loop's time, put forward."""

    seconds = 0.0


clock = Clock()


@pytest.fixture(autouse=True)
async def clock_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    time = loop.time
    monkeypatch.setattr(clock, "seconds", 0.0)
    monkeypatch.setattr(loop, "time", lambda: time() + clock.seconds)


async def started(**options: Any) -> tuple[Driver, StubRunner]:
    runner = StubRunner()
    driver = Driver(lambda: runner, **options)
    await driver.start()
    runner.calls.clear()
    return driver, runner


async def play(driver: Driver, events: str) -> None:
    """What the stream application says, word by word; after each the loop turns a few times."""
    for event in events.split():
        match event:
            case "rebalance":
                driver.rebalance_started()
            case "revoked":
                await driver.revoked()
            case "one":
                driver.assigned(ONE)
            case "two":
                driver.assigned(TWO)
            case "tick":
                await driver.tick()
            case "lost":
                await driver.tick(is_in_group=False)
            case "stop":
                await driver.stop()
            case _:
                clock.seconds += float(event.removesuffix("s"))
        await turns()


async def turns() -> None:
    """So many turns of the loop that whatever waits for nothing else is done."""
    for _ in range(10):
        await asyncio.sleep(0)


ORDERS = {
    "what is assigned starts at once": (
        "rebalance revoked one",
        "hold assign[1] reconcile",
    ),
    "then about once a second": (
        "rebalance revoked one tick tick",
        "hold assign[1] reconcile reconcile reconcile",
    ),
    "a rebalance stops nothing": (
        "rebalance revoked one rebalance revoked",
        "hold assign[1] reconcile hold",
    ),
    "during one people's wishes are honoured": (
        "rebalance revoked one rebalance tick revoked tick",
        "hold assign[1] reconcile hold reconcile reconcile",
    ),
    "the next assignment says what goes on": (
        "rebalance revoked one rebalance revoked two",
        "hold assign[1] reconcile hold assign[2] reconcile",
    ),
    "a rebalance may begin anew before it is over": (
        "rebalance revoked rebalance revoked two",
        "hold hold assign[2] reconcile",
    ),
    "a rebalance that does not end stops all, once": (
        "rebalance revoked one rebalance 39s tick 2s tick tick",
        "hold assign[1] reconcile hold reconcile revoke reconcile reconcile",
    ),
    "however often it begins anew": (
        "rebalance 30s rebalance 11s tick",
        "hold hold revoke reconcile",
    ),
    "and the assignment that comes at last starts all": (
        "rebalance 41s tick one 41s tick",
        "hold revoke reconcile assign[1] reconcile reconcile",
    ),
    "each rebalance has its own time": (
        "rebalance 39s one rebalance 39s tick",
        "hold assign[1] reconcile hold reconcile",
    ),
    "who has lost the group starts nothing, and stops nothing": (
        "rebalance one lost lost",
        "hold assign[1] reconcile hold reconcile reconcile",
    ),
    "who reaches it again goes on": (
        "rebalance one lost tick tick",
        "hold assign[1] reconcile hold reconcile assign[1] reconcile reconcile",
    ),
    "or learns that its partitions are another's": (
        "rebalance one lost rebalance tick lost two tick",
        "hold assign[1] reconcile hold reconcile hold reconcile reconcile assign[2] reconcile "
        "reconcile",
    ),
    "nothing comes after the stop": (
        "rebalance revoked one stop tick rebalance revoked two tick lost 41s tick stop",
        "hold assign[1] reconcile hold stop",
    ),
}


@pytest.mark.parametrize("name", ORDERS)
async def test_the_order_of_calls(name: str) -> None:
    events, expected = ORDERS[name]
    driver, runner = await started()
    await play(driver, events)
    assert called(runner) == expected.split()


async def test_where_nobody_is_fenced_a_rebalance_waits_until_all_is_stopped() -> None:
    """Without transactions whoever takes over can't keep the one before from publishing."""
    driver, runner = await started(is_fenced=False)
    await play(driver, "rebalance revoked one rebalance revoked tick two")
    assert called(runner) == ["hold", "revoke", "assign[1]", "reconcile", "hold", "revoke",
                              "reconcile", "assign[2]", "reconcile"]  # fmt: skip


def called(runner: StubRunner) -> list[str]:
    """The calls in one word each."""
    words = []
    for call in runner.calls:
        name, *details = (call,) if isinstance(call, str) else call
        words.append(f"assign{sorted(details[0])}" if name == "assign" else name)
    return words


async def test_before_the_start_there_is_nobody_to_call() -> None:
    """Faust may rebalance, tick and stop before the runner is made."""
    driver = Driver(StubRunner)
    await play(driver, "tick rebalance revoked one tick stop")
    assert (driver.is_ready(), driver.statuses) == (False, {})


async def test_a_start_that_fails_is_stopped_once() -> None:
    runner = StubRunner()

    async def fails() -> None:
        raise OSError("no database")

    runner.start = fails  # type: ignore[method-assign]
    driver = Driver(lambda: runner)
    with pytest.raises(OSError, match="no database"):
        await driver.start()
    await play(driver, "stop stop")
    assert called(runner) == ["hold", "stop"]


async def test_an_assignment_that_failed_is_carried_out_by_the_next_tick() -> None:
    """Nobody else has what it names: it would stand still until the next rebalance."""
    driver, runner = await started()
    assign, failures = runner.assign, iter([OSError("a bug"), OSError("again")])

    async def fails_twice(partitions: frozenset[int]) -> None:
        await assign(partitions)
        for error in failures:
            raise error

    runner.assign = fails_twice  # type: ignore[method-assign]
    await play(driver, "rebalance revoked one tick tick tick")
    assert called(runner).count("assign[1]") == 3
    assert called(runner)[-1] == "reconcile"
    await play(driver, "stop")


async def test_a_failed_assignment_waits_while_the_group_does_not_hear_of_this_worker() -> None:
    """Its partitions may be another's by now: carried out, it would start what that one runs."""
    driver, runner = await started()
    assign, failures = runner.assign, iter([OSError("a bug")])

    async def fails_once(partitions: frozenset[int]) -> None:
        await assign(partitions)
        for error in failures:
            raise error

    runner.assign = fails_once  # type: ignore[method-assign]
    await play(driver, "rebalance revoked one lost lost")
    assert called(runner).count("assign[1]") == 1
    assert "hold" in called(runner)[2:]
    await play(driver, "tick")
    assert called(runner).count("assign[1]") == 2
    await play(driver, "stop")


@pytest.mark.parametrize("turn_count", [0, 1])
@pytest.mark.parametrize("event", ["lost", "rebalance"])
async def test_an_assignment_that_comes_late_arrives_no_more(event: str, turn_count: int) -> None:
    """A worker may be frozen right after it was told; held first, that would let it go."""
    driver, runner = await started()
    await play(driver, "rebalance revoked")
    driver.assigned(ONE)
    for _ in range(turn_count):
        await asyncio.sleep(0)
    await play(driver, event)
    assert "assign[1]" not in called(runner)
    await play(driver, {"lost": "tick", "rebalance": "revoked one"}[event])
    assert called(runner)[-2:] == ["assign[1]", "reconcile"]
    await play(driver, "stop")


LIMITS = {
    "assign": ("REVOKE_SECONDS_MAX", "rebalance revoked one"),
    "revoke": ("REVOKE_SECONDS_MAX", "rebalance revoked"),
    "reconcile": ("RECONCILE_SECONDS_MAX", "rebalance revoked one tick"),
    "stop": ("STOP_RUNNER_SECONDS_MAX", "stop"),
}


@pytest.mark.parametrize("call", LIMITS)
async def test_every_call_has_a_limit(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is awaited in a revoke holds the whole group up; an orchestrator waits for a stop."""
    limit, events = LIMITS[call]
    driver, runner = await started(is_fenced=False)
    monkeypatch.setattr(driver_module, limit, 0.01)
    runner.slow[call] = 60
    async with asyncio.timeout(30):
        await play(driver, events)
        await asyncio.sleep(0.05)
        runner.slow.clear()
        await play(driver, "rebalance revoked two tick stop")
    assert f"{call} done" not in runner.calls
    assert called(runner)[-1] == "stop"


@pytest.mark.parametrize("call", ["assign", "revoke", "reconcile", "stop"])
async def test_a_call_that_fails_does_not_end_the_driver(
    call: str, caplog: pytest.LogCaptureFixture
) -> None:
    driver, runner = await started()

    async def fails(*arguments: Any) -> None:
        runner.calls.append((call, *arguments))
        raise ZeroDivisionError

    setattr(runner, call, fails)
    await play(driver, "rebalance 41s tick one tick stop")
    again = ["assign[1]"] if call == "assign" else []
    assert called(runner) == ["hold", "revoke", "reconcile", "assign[1]", "reconcile", *again,
                              "reconcile", "hold", "stop"]  # fmt: skip
    assert "failed" in caplog.text


async def test_an_assignment_does_not_arrive_after_the_next_rebalance_began() -> None:
    """The older assignment is given up before the next one begins."""
    driver, runner = await started()
    runner.slow["assign"] = 60
    await play(driver, "rebalance revoked one")
    runner.slow.clear()
    await play(driver, "rebalance revoked two")
    assert called(runner) == ["hold", "assign[1]", "hold", "assign[2]", "reconcile"]


async def test_an_assignment_that_is_overtaken_at_once_is_never_made() -> None:
    """Both are said in one turn of the loop, as when the next rebalance begins in the thread."""
    driver, runner = await started()
    driver.assigned(ONE)
    driver.rebalance_started()
    await turns()
    assert called(runner) == ["hold"]


async def test_reconcile_never_overlaps_itself() -> None:
    """Neither with the timer's ticks nor at an assignment; but that one is reconciled after it."""
    driver, runner = await started()
    may_end = asyncio.Event()

    async def slow() -> None:
        runner.calls.append("reconcile")
        await may_end.wait()
        runner.calls.append("done")

    runner.reconcile = slow  # type: ignore[method-assign]
    await play(driver, "rebalance revoked one")
    ticks = [asyncio.create_task(driver.tick()) for _ in range(3)]
    await play(driver, "rebalance revoked two")
    assert called(runner) == ["hold", "assign[1]", "reconcile", "hold", "assign[2]"]
    may_end.set()
    await asyncio.wait(ticks, timeout=5)
    for _ in range(20):
        await asyncio.sleep(0)
    assert called(runner)[5:] == ["done", "reconcile", "done"]


async def test_a_slow_look_keeps_nobody_from_holding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick waited for its reconcile, and that for a broker: meanwhile nobody asked the group."""
    monkeypatch.setattr(driver_module, "RECONCILE_AWAITED_SECONDS", 0.01)
    driver, runner = await started()
    await play(driver, "rebalance revoked one")
    runner.calls.clear()
    runner.slow["reconcile"] = 5.0
    async with asyncio.timeout(2):
        await play(driver, "tick lost")
    assert runner.calls == ["reconcile", ("hold", True)]
    await driver.stop()
