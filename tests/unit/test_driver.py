"""In which order a runner is called, whatever the consumer group does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from stub_runner import StubRunner

from verity_stream import driver as driver_module
from verity_stream.driver import Driver

ONE, TWO = frozenset({1}), frozenset({2})


async def started() -> tuple[Driver, StubRunner]:
    runner = StubRunner()
    driver = Driver(lambda: runner)
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
            case "stop":
                await driver.stop()
        for _ in range(10):
            await asyncio.sleep(0)


ORDERS = {
    "what is assigned starts at once": (
        "rebalance revoked one",
        "fence revoke assign[1] reconcile",
    ),
    "then about once a second": (
        "rebalance revoked one tick tick",
        "fence revoke assign[1] reconcile reconcile reconcile",
    ),
    "nothing is started before the first assignment": ("tick tick", ""),
    "nor during a rebalance": (
        "rebalance revoked one rebalance tick revoked tick",
        "fence revoke assign[1] reconcile fence revoke",
    ),
    "the next assignment starts again": (
        "rebalance revoked one rebalance revoked two",
        "fence revoke assign[1] reconcile fence revoke assign[2] reconcile",
    ),
    "a rebalance may begin anew before it is over": (
        "rebalance revoked rebalance revoked two",
        "fence revoke fence revoke assign[2] reconcile",
    ),
    "nothing comes after the stop": (
        "rebalance revoked one stop tick rebalance revoked two tick stop",
        "fence revoke assign[1] reconcile fence stop",
    ),
}


@pytest.mark.parametrize("name", ORDERS)
async def test_the_order_of_calls(name: str) -> None:
    events, expected = ORDERS[name]
    driver, runner = await started()
    await play(driver, events)
    assert called(runner) == expected.split()


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
    assert called(runner) == ["fence", "stop"]


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
    driver, runner = await started()
    monkeypatch.setattr(driver_module, limit, 0.01)
    runner.slow[call] = 60
    async with asyncio.timeout(2):
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
    await play(driver, "rebalance revoked one tick stop")
    words = [word.split("[")[0] for word in called(runner)]
    assert words == ["fence", "revoke", "assign", "reconcile", "reconcile", "fence", "stop"]
    assert "failed" in caplog.text


async def test_an_assignment_does_not_arrive_after_the_next_rebalance_began() -> None:
    """The older assignment is given up before the next one begins."""
    driver, runner = await started()
    runner.slow["assign"] = 60
    await play(driver, "rebalance revoked one")
    runner.slow.clear()
    await play(driver, "rebalance revoked two")
    assert called(runner) == ["fence", "revoke", "assign[1]", "fence", "revoke", "assign[2]",
                              "reconcile"]  # fmt: skip


async def test_an_assignment_that_is_overtaken_at_once_is_never_made() -> None:
    """Both are said in one turn of the loop, as when the next rebalance begins in the thread."""
    driver, runner = await started()
    driver.assigned(ONE)
    driver.rebalance_started()
    await asyncio.sleep(0.01)
    assert called(runner) == ["fence"]


async def test_reconcile_never_overlaps_itself() -> None:
    """Neither with the timer's ticks nor with the one at an assignment; a revoke lets it end."""
    driver, runner = await started()
    runner.slow["reconcile"] = 0.05
    await play(driver, "rebalance revoked one")
    ticks = [asyncio.create_task(driver.tick()) for _ in range(3)]
    await play(driver, "rebalance revoked two")
    await asyncio.wait(ticks, timeout=5)
    await asyncio.sleep(0.06)
    assert called(runner) == ["fence", "revoke", "assign[1]", "reconcile", "fence", "revoke",
                              "assign[2]", "reconcile done"]  # fmt: skip
    await driver.tick()
    assert called(runner)[-2:] == ["reconcile", "reconcile done"]
