"""The connector against both sources over real HTTP: what it tells, and what never leaves it."""

from __future__ import annotations

import base64
import bz2
import json
import logging
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from fakes.hr import (
    ACCESS_TOKEN,
    API_KEY,
    COMPANY,
    PRIVATE,
    SCIM_CLIENT,
    SCIM_NAME,
    SCIM_PASSWORD,
    SCIM_SECRET,
    SCIM_TOKEN,
    SCIM_USER,
    TOO_MANY_FROM,
    HrFake,
    ScimHarness,
)
from fakes.kit import Clock, Fault, Rate, serving
from fakes.world import World

from connectors.hr import HrConnector, known
from connectors.hr import connector as connector_module
from verity_sdk.connector_base import PermissionSnapshot, RawEvent
from verity_sdk.context import Context
from verity_sdk.errors import Denied, Misconfigured, Unavailable
from verity_sdk.pages import Page, Position, RejectedRecord, SnapshotGap, SnapshotScope

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)
HTTP = {"retry_budget": "30s", "read_timeout": 5.0}
MODES = ("api_key", "oauth")


@dataclass
class Reader:
    """A worker that polls one source, and keeps its cursor as JSON."""

    fake: HrFake | ScimHarness
    settings: dict[str, Any]
    since: datetime
    cursor: str | None = None
    pages: list[Page] = field(default_factory=list)

    def connector(self, **changes: Any) -> HrConnector:
        table = {"connector_id": "hr", "http": HTTP, **self.settings, **changes}
        return Context(self.fake.clock, self._sleep).construct(HrConnector, table)

    async def _sleep(self, seconds: float) -> None:
        self.fake.clock.advance(timedelta(seconds=seconds))

    async def poll(self, until: datetime | None = None, **changes: Any) -> list[RawEvent]:
        """One pass, a few seconds after what happened last."""
        self.fake.clock.advance(3 * SECOND)
        connector = self.connector(**changes)
        pages: list[Page] = []
        position = Position(
            self.since, None if self.cursor is None else json.loads(self.cursor), until
        )
        try:
            async with aclosing(connector.fetch_pages(position)) as stream:  # type: ignore[type-var]
                async for page in stream:
                    self.cursor = json.dumps(page.cursor)
                    pages.append(page)
        finally:
            self.pages += pages
            await connector.close()
        return [event for page in pages for event in page.events]

    async def snapshot(self, **changes: Any) -> list[Any]:
        connector = self.connector(**changes)
        try:
            return [row async for row in connector.snapshot_permissions()]
        finally:
            await connector.close()

    async def check(self, **changes: Any) -> None:
        connector = self.connector(**changes)
        try:
            await connector.check()
        finally:
            await connector.close()


def tuples(rows: list[Any]) -> set[tuple[str, ...]]:
    return {
        (
            one.principal_ref,
            one.asset_ref,
            one.privilege,
            one.grant_mechanism,
            one.granted_via or "",
        )
        for one in rows
        if isinstance(one, PermissionSnapshot)
    }


def gaps(rows: list[Any]) -> dict[str, str]:
    return {one.scope: one.reason for one in rows if isinstance(one, SnapshotGap)}


def scopes(rows: list[Any]) -> list[str]:
    return [one.scope for one in rows if isinstance(one, SnapshotScope)]


def unpacked(cursor: str | None) -> str:
    """What a cursor holds, in plain text."""
    assert cursor is not None
    return bz2.decompress(base64.b85decode(json.loads(cursor)["known"])).decode()


def table(url: str, mode: str, **changes: Any) -> dict[str, Any]:
    credential = {"api_key": API_KEY} if mode == "api_key" else {"access_token": ACCESS_TOKEN}
    settings = {"company_domain": COMPANY, "api_url": f"{url}/api/v1", **credential, **changes}
    return {"source": "bamboohr", "bamboohr": settings}


@contextmanager
def bamboohr(
    mode: str = "oauth", *, world: World | None = None, at: datetime = NOW, **changes: Any
) -> Iterator[Reader]:
    fake = HrFake(world or World(), Clock(at))
    with serving(fake.app) as url:
        yield Reader(fake, table(url, mode, **changes), at - 4 * 24 * HOUR)


@contextmanager
def scim(
    *, world: World | None = None, config: dict[str, Any] | None = None, **changes: Any
) -> Iterator[Reader]:
    harness = ScimHarness(world or World(), Clock(NOW), **(config or {}))
    with serving(harness.app) as url:
        settings = {
            "base_url": f"{url}/v2",
            "name": SCIM_NAME,
            "auth": {"kind": "bearer", "token": SCIM_TOKEN},
            "page_size": 15,
            **changes,
        }
        settings = {
            key: value.replace("{url}", url) if isinstance(value, str) else value
            for key, value in settings.items()
        }
        if "token_url" in settings["auth"]:
            settings["auth"] = {**settings["auth"], "token_url": f"{url}/token"}
        yield Reader(harness, {"source": "scim", "scim": settings}, NOW - 4 * 24 * HOUR)


def brief(events: list[RawEvent]) -> list[tuple[str, str]]:
    return [(one.principal_ref, one.operation) for one in events]


# BambooHR: events


@pytest.mark.parametrize("mode", MODES)
async def test_from_the_beginning_everybody_joined_or_left(mode: str) -> None:
    with bamboohr(mode) as reader:
        reader.fake.add_events(6, at=NOW - HOUR)
        reader.since = datetime(2000, 1, 1, tzinfo=UTC)
        events = await reader.poll()
        assert isinstance(reader.fake, HrFake)
        assert set(brief(events)) == reader.fake.everything()
        assert len(events) == len({one.event_id for one in events})
        times = [one.occurred_at for one in events]
        assert times == sorted(times)
        assert await reader.poll() == []


@pytest.mark.parametrize("mode", MODES)
async def test_who_polls_between_changes_sees_each(mode: str) -> None:
    with bamboohr(mode) as reader:
        fake = reader.fake
        assert isinstance(fake, HrFake)
        first = await reader.poll()
        assert {one.operation for one in first} == {"LEAVER"}
        assert {one.event_id for one in first} == fake.event_ids()
        expected, seen, operations = [], [], []
        for kind, person_id in (
            ("move", "100"),
            ("update", "100"),
            ("leave", "100"),
            ("rehire", "100"),
            ("move", "100"),
            ("hire", None),
            ("delete", "101"),
        ):
            expected.append(fake.change(kind, person_id, at=fake.clock().replace(microsecond=0)))
            events = await reader.poll()
            seen += [one.event_id for one in events]
            operations += [one.operation for one in events]
            assert await reader.poll() == []
        assert seen == expected
        assert operations == ["MOVER", "UPDATED", "LEAVER", "JOINER", "MOVER", "JOINER", "LEAVER"]


@pytest.mark.parametrize("mode", MODES)
async def test_what_a_leaver_s_event_carries(mode: str) -> None:
    with bamboohr(mode) as reader:
        fake = reader.fake
        assert isinstance(fake, HrFake)
        await reader.poll()
        person = fake.latest("105")
        fake.change("leave", "105", at=NOW + 5 * SECOND, effective_on=date(2026, 12, 31))
        fake.change("delete", "106", at=NOW + 5 * SECOND)
        reader.fake.clock.advance(MINUTE)
        left, deleted = sorted(await reader.poll(), key=lambda one: one.principal_ref)
        derived = left.raw_payload["verity"]
        assert (derived["email"], derived["account"]) == (person.email, f"user:{person.email}")
        assert derived["effective_date"] == "2026-12-31"
        assert left.asset_ref == f"hr:department:{person.jobs[0]['department']}"
        assert left.raw_payload["feed"]["action"] == "Updated"
        assert left.raw_payload["employmentStatus"][-1]["employmentStatus"]
        gone = deleted.raw_payload["verity"]
        assert gone["email"] == fake.entries["106"].versions[0].employee.email  # type: ignore[union-attr]
        assert (gone["basis"], gone["effective_date"]) == ("deleted", "2026-11-24")


@pytest.mark.parametrize("mode", MODES)
async def test_changes_between_polls_collapse_and_the_rows_tell_them(mode: str) -> None:
    with bamboohr(mode) as reader:
        fake = reader.fake
        assert isinstance(fake, HrFake)
        await reader.poll()
        fake.change("move", "100", at=NOW + 5 * SECOND, department="Secret Lab")
        last = fake.change("move", "100", at=NOW + 9 * SECOND, department="Archive")
        fake.clock.advance(MINUTE)
        (event,) = await reader.poll()
        assert (event.event_id, event.operation) == (last, "MOVER")
        assert event.asset_ref == "hr:department:Archive"
        departments = {row["department"] for row in event.raw_payload["jobInfo"]}
        assert {"Secret Lab", "Archive"} < departments
        fake.change("move", "101", at=NOW + 5 * MINUTE, department="Elsewhere")
        fake.change("move", "101", at=NOW + 5 * MINUTE, department="Finance")
        fake.change("leave", "102", at=NOW + 5 * MINUTE)
        fake.change("rehire", "102", at=NOW + 6 * MINUTE)
        fake.clock.advance(7 * MINUTE)
        operations = dict(brief(await reader.poll()))
        assert "hr:employee:102" not in operations, "he left and came back unseen"


@pytest.mark.parametrize("action", ["first", "last"])
async def test_whichever_action_the_feed_keeps(action: str) -> None:
    with bamboohr() as reader:
        fake = reader.fake
        assert isinstance(fake, HrFake)
        await reader.poll()
        fake.feed_action = action
        fake.change("hire", at=NOW + 5 * SECOND)
        fake.change("update", "5001", at=NOW + 6 * SECOND)
        fake.clock.advance(MINUTE)
        assert brief(await reader.poll()) == [("hr:employee:5001", "JOINER")]
        fake.change("update", "5001", at=NOW + 2 * MINUTE, first_name="Anna")
        fake.clock.advance(5 * MINUTE)
        assert brief(await reader.poll()) == [("hr:employee:5001", "UPDATED")]


async def test_a_change_that_is_not_of_our_business_is_no_event() -> None:
    with bamboohr("oauth") as reader:
        await reader.poll()
        # As a raise would show: changed, and nothing that is allowed differs.
        reader.fake.change("update", "100", at=NOW + 5 * SECOND, last_name="")
        reader.fake.change("update", "100", at=NOW + 6 * SECOND, restricted=frozenset({"lastName"}))
        reader.fake.clock.advance(MINUTE)
        assert await reader.poll() == []


async def test_a_second_is_read_once_it_is_over() -> None:
    with bamboohr() as reader:
        fake = reader.fake
        assert isinstance(fake, HrFake)
        await reader.poll()
        at = fake.clock() + 3 * SECOND
        first = fake.change("update", "100", at=at)
        assert await reader.poll() == [], "this second is not over: another change may come"
        second = fake.change("leave", "100", at=at)
        (event,) = await reader.poll()
        assert event.event_id == second != first


@pytest.mark.parametrize("mode", MODES)
async def test_a_bounded_pass_leaves_what_is_later_to_the_next(mode: str) -> None:
    with bamboohr(mode) as reader:
        fake = reader.fake
        early = fake.add_events(4, at=NOW - 3 * HOUR)
        late = fake.add_events(4, at=NOW - HOUR)
        until = NOW - 2 * HOUR
        events = {one.event_id for one in await reader.poll(until=until)}
        assert set(early) <= events
        assert not set(late) & events
        assert reader.pages[-1].complete_through == until
        assert {one.event_id for one in await reader.poll()} == set(late)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("path", ["tables/jobInfo", "tables/employmentStatus", "changed"])
async def test_a_change_while_the_baseline_is_read(mode: str, path: str) -> None:
    """Whatever was read before it: the change is told, as it is, and only once."""
    with bamboohr(mode) as reader:
        fake = reader.fake
        assert isinstance(fake, HrFake)
        fake.change("update", "100", at=NOW - HOUR)
        changed: list[str] = []

        def interfere(requested: str) -> None:
            if requested.endswith(path) and not changed:
                at = fake.clock() - 2 * SECOND
                changed.append(fake.change("move", "100", at=at, department="Moon"))
                changed.append(fake.change("leave", "101", at=at))

        fake.on_request = interfere
        events = await reader.poll()
        fake.on_request = None
        events += await reader.poll()
        told = {one.event_id: one for one in events}
        assert set(changed) <= set(told)
        assert told[changed[0]].asset_ref == "hr:department:Moon"
        assert told[changed[1]].operation == "LEAVER"
        assert len(told) == len(events) == 5
        assert await reader.poll() == []


async def test_times_that_no_pass_meets_again_leave_the_cursor() -> None:
    with bamboohr() as reader:
        ids = reader.fake.add_events(6, at=NOW - HOUR)
        await reader.poll()

        def kept() -> int:
            return sum(1 for one in json.loads(unpacked(reader.cursor))["changed"] if one)

        assert kept() >= len(ids)
        reader.fake.clock.advance(49 * HOUR)
        reader.fake.add_events(2, at=reader.fake.clock())
        assert len(await reader.poll()) == 2
        assert kept() == 2


async def test_the_feed_is_asked_as_documented() -> None:
    with bamboohr(fields=["firstName", "workEmail"]) as reader:
        reader.fake.add_events(6, at=NOW - HOUR)
        reader.since = datetime(2000, 1, 1, tzinfo=UTC)
        await reader.poll()
        await reader.poll()
        queries = [parse_qs(one) for one in reader.fake.queries]
        sinces = [one["since"][0] for one in queries if "since" in one]
        assert all(one.endswith("Z") for one in sinces)
        assert not any("+" in one or "%2B" in one for one in reader.fake.queries)
        assert sinces[0] == "2011-06-05T00:00:00Z", "there is no older change"
        assert max(sinces) == "2026-11-23T11:00:01Z", "the newest change, less the lookback"
        asked = {name for one in queries for name in one.get("fields", [""])[0].split(",")}
        assert asked - {""} == {"workEmail"}


async def test_an_unchanged_entry_costs_no_request() -> None:
    with bamboohr("api_key") as reader:
        reader.fake.add_events(8, at=NOW - HOUR)
        await reader.poll()
        reader.fake.requests.clear()
        await reader.poll()
        assert [path for _, path in reader.fake.requests] == ["/api/v1/employees/changed"]


@pytest.mark.parametrize("at", [TOO_MANY_FROM, TOO_MANY_FROM - 24 * HOUR])
async def test_throttling_is_sat_out(at: datetime) -> None:
    """429 since 2026-09-16, 503 before; both with Retry-After."""
    with bamboohr("api_key", world=World(now=at), at=at) as reader:
        fake = reader.fake
        assert isinstance(fake, HrFake)
        fake.rate = Rate(5, 10 * SECOND, fake.clock)
        ids = fake.add_events(16, at=at - HOUR)
        events = {one.event_id for one in await reader.poll()}
        assert set(ids) <= events
        assert fake.clock() > at + 10 * SECOND


@pytest.mark.parametrize("mode", MODES)
async def test_what_is_not_understood_stops_nothing(mode: str) -> None:
    with bamboohr(mode) as reader:
        ids = reader.fake.add_events(6, at=NOW - HOUR)
        reader.fake.faults.inject(Fault.MALFORMED_RECORD, times=2)
        events = await reader.poll()
        assert set(ids) <= {one.event_id for one in events}
        (record,) = [one for page in reader.pages for one in page.rejected]
        assert record.reason == "lastChanged is no time"
        assert json.loads(record.data)["id"] == "9999"


async def test_somebody_whose_record_is_broken_is_told_later() -> None:
    with bamboohr() as reader:
        fake = reader.fake
        assert isinstance(fake, HrFake)
        await reader.poll()
        fake.change("update", "100", at=NOW + 5 * SECOND, first_name=["broken"])
        event_id = fake.change("move", "101", at=NOW + 5 * SECOND)
        fake.clock.advance(MINUTE)
        assert [one.event_id for one in await reader.poll()] == [event_id]
        assert [one.reason for one in reader.pages[-1].rejected] == [
            "firstName is a list, not a text"
        ]
        mended = fake.change("update", "100", at=NOW + 5 * MINUTE, first_name="Mended")
        fake.clock.advance(10 * MINUTE)
        assert [one.event_id for one in await reader.poll()] == [mended]


# BambooHR: the cursor


async def test_every_page_is_a_place_to_go_on_from() -> None:
    with bamboohr() as reader:
        ids = set(reader.fake.add_events(30, at=NOW - HOUR))
        reader.settings["page_events"] = 7
        assert ids <= {one.event_id for one in await reader.poll()}
        assert len(reader.pages) == 5
        for number, page in enumerate(reader.pages):
            again = Reader(reader.fake, reader.settings, reader.since, json.dumps(page.cursor))
            before = {
                one.event_id for earlier in reader.pages[: number + 1] for one in earlier.events
            }
            after = {one.event_id for one in await again.poll()}
            assert not before & after
            assert ids <= before | after
        assert all(page.complete_through is None for page in reader.pages[:-1])


async def test_a_cursor_of_another_company_is_refused() -> None:
    with bamboohr() as reader:
        await reader.poll()
        assert reader.cursor is not None
        for change, said in (
            ({"of": "other"}, "bamboohr other"),
            ({"v": 2}, "version 2"),
            ({"known": "@"}, "known"),
            ({"since": "soon"}, "can't be read"),
        ):
            broken = Reader(
                reader.fake,
                reader.settings,
                reader.since,
                json.dumps({**json.loads(reader.cursor), **change}),
            )
            with pytest.raises(Misconfigured, match=said):
                await broken.poll()


async def test_more_people_than_a_checkpoint_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    with bamboohr() as reader:
        monkeypatch.setattr(known, "KNOWN_BYTES_MAX", 500)
        with pytest.raises(Misconfigured, match="a checkpoint holds 500, about"):
            await reader.poll()
        assert reader.cursor is None, "nothing was published"


async def test_a_large_cursor_is_not_written_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with bamboohr() as reader:
        await reader.poll()
        connector = reader.connector()
        assert reader.cursor is not None
        position = Position(reader.since, json.loads(reader.cursor))

        async def pages() -> list[Page]:
            reader.fake.clock.advance(MINUTE)
            return [page async for page in connector.fetch_pages(position)]

        (quiet,) = await pages()
        assert quiet.cursor == position.cursor, "a quiet pass says how far it read, and no more"
        assert quiet.complete_through == reader.fake.clock() - 2 * SECOND
        monkeypatch.setattr(connector_module, "LARGE_CURSOR_BYTES", 100)
        told = [len(await pages()) for _ in range(22)]
        assert told == [1, *[0] * 9, 1, *[0] * 9, 1, 0]
        reader.fake.add_events(1, at=reader.fake.clock() - 5 * SECOND)
        assert len(await pages()) == 1
        await connector.close()


async def test_hashes_remember_no_address() -> None:
    with bamboohr() as reader:
        await reader.poll(remember="hashes")
        assert "contoso.example" not in unpacked(reader.cursor)
        reader.fake.change("move", "100", at=NOW + 5 * SECOND)
        reader.fake.clock.advance(MINUTE)
        (event,) = await reader.poll(remember="hashes")
        assert event.operation == "MOVER"
        assert event.raw_payload["verity"]["previous"] == {}
        await reader.poll()
        assert await reader.poll() == [], "the setting may change"


# BambooHR: snapshots, permissions


@pytest.mark.parametrize("mode", MODES)
async def test_a_snapshot_is_the_truth(mode: str) -> None:
    with bamboohr(mode) as reader:
        fake = reader.fake
        assert isinstance(fake, HrFake)
        fake.add_events(8, at=NOW - HOUR)
        fake.change("move", "110", at=NOW, effective_on=date(2027, 1, 1), department="Moon")
        fake.clock.advance(MINUTE)
        fake.list_limit_max = 11
        rows = await reader.snapshot()
        assert tuples(rows) == fake.grants(has_oauth=mode == "oauth")
        assert "employees" in scopes(rows)
        alias = [one for one in rows if getattr(one, "privilege", "") == "alias"]
        assert {one.principal_ref.rpartition(":")[2] for one in alias} >= {"100", "101"}
        assert "Moon" not in str(tuples(rows)), "it is not so yet"


async def test_a_list_that_changes_while_it_is_read_is_read_again() -> None:
    with bamboohr() as reader:
        fake = reader.fake
        assert isinstance(fake, HrFake)
        fake.list_limit_max = 9
        for fault, times in (
            (Fault.PAGE_TOKEN_EXPIRED, 2),
            (Fault.REPEATED_EVENT, 2),
            (Fault.EMPTY_PAGE, 2),
        ):
            fake.faults.inject(fault, times=times)
            rows = await reader.snapshot()
            assert fake.faults.are_over
            assert tuples(rows) == fake.grants(has_oauth=True)
        fake.faults.inject(Fault.PAGE_TOKEN_EXPIRED, times=5)
        with pytest.raises(Unavailable, match="BadPage"):
            await reader.snapshot()
        fake.faults.clear()
        fake.faults.inject(Fault.REPEATED_TOKEN, times=9)
        with pytest.raises(Unavailable, match="twice"):
            await reader.snapshot()


async def test_a_directory_that_is_not_shared() -> None:
    with bamboohr("api_key") as reader:
        fake = reader.fake
        assert isinstance(fake, HrFake)
        fake.is_directory_shared = False
        rows = await reader.snapshot()
        assert "share the directory" in gaps(rows)["employees"]
        assert "employees" not in scopes(rows)
        kinds = ("member_of", "job_title")
        expected = {one for one in fake.grants() if one[2] in kinds}
        assert {one for one in tuples(rows) if one[2] in kinds} == expected
        with pytest.raises(Denied, match="share the directory"):
            await reader.check()
        # Events need no directory: the e-mail is asked for one by one.
        fake.change("leave", "100", at=NOW - HOUR)
        (event,) = [one for one in await reader.poll() if one.principal_ref == "hr:employee:100"]
        assert event.raw_payload["verity"]["email"] == fake.latest("100").email


async def test_managers_that_an_api_key_can_not_find() -> None:
    with bamboohr("api_key") as reader:
        fake = reader.fake
        assert isinstance(fake, HrFake)
        manager = next(one.manager_id for one in fake.world.people if one.manager_id)
        fake.change("leave", manager, at=NOW - HOUR)
        rows = await reader.snapshot()
        assert tuples(rows) == fake.grants()
        assert "OAuth" in gaps(rows)["reports_to"]
        assert scopes(rows) == ["employees"]


@pytest.mark.parametrize(
    ("mode", "changes", "said"),
    [
        ("api_key", {"api_key": "wrong-secret"}, r"refuses the API key for company contoso"),
        ("oauth", {"access_token": "wrong-secret"}, r"refuses the access token"),
    ],
)
async def test_a_refused_credential(mode: str, changes: dict[str, Any], said: str) -> None:
    with bamboohr(mode, **changes) as reader:
        with pytest.raises(Denied, match=said) as raised:
            await reader.check()
        assert "wrong-secret" not in str(raised.value)
        with pytest.raises(Denied, match=said):
            await reader.poll()


async def test_check_says_which_part_is_closed() -> None:
    for mode in MODES:
        with bamboohr(mode) as reader:
            fake = reader.fake
            assert isinstance(fake, HrFake)
            await reader.check()
            fake.hidden_tables.add("employmentStatus")
            with pytest.raises(Denied, match=r"table employmentStatus is not visible.*Job tab"):
                await reader.check()
    with bamboohr() as reader:
        reader.settings["bamboohr"]["api_url"] += "/nowhere"
        with pytest.raises(Denied, match="company_domain is wrong"):
            await reader.check()


async def test_a_column_that_is_hidden_is_taken_from_the_record() -> None:
    with bamboohr() as reader:
        fake = reader.fake
        assert isinstance(fake, HrFake)
        fake.hidden_columns |= {"department", "employmentStatus"}
        assert {one.operation for one in await reader.poll()} == {"LEAVER"}
        fake.change("move", "100", at=NOW + 5 * SECOND)
        fake.change("leave", "101", at=NOW + 5 * SECOND)
        fake.clock.advance(MINUTE)
        assert sorted(one.operation for one in await reader.poll()) == ["LEAVER", "MOVER"]


async def test_a_token_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("old-token\n")
    with bamboohr() as reader:
        del reader.settings["bamboohr"]["access_token"]
        reader.settings["bamboohr"]["access_token_file"] = str(path)
        with pytest.raises(Denied, match="refuses the access token"):
            await reader.check()
        connector = reader.connector()
        with pytest.raises(Denied):
            await connector.check()
        path.write_text(ACCESS_TOKEN)
        await connector.check()
        await connector.close()
        path.write_text("")
        with pytest.raises(Denied, match="holds no token"):
            await reader.check()


# What never leaves


async def everything_of(reader: Reader, caplog: pytest.LogCaptureFixture) -> str:
    """All that comes out of the connector, also when things go wrong."""
    caplog.set_level(logging.DEBUG)
    out: list[Any] = []
    for fault in (
        *(None, Fault.MALFORMED_RECORD, Fault.UNKNOWN_ENUM, Fault.NOT_JSON, Fault.DROPPED),
        *(Fault.REPEATED_TOKEN, Fault.FORBIDDEN_OBJECT, Fault.CREDENTIAL_REFUSED),
        Fault.PAGE_TOKEN_EXPIRED,
    ):
        reader.fake.add_events(3, at=reader.fake.clock())
        if fault is not None:
            reader.fake.faults.inject(fault, times=9)
        for work in (reader.poll, reader.snapshot, reader.check):
            try:
                out.append(await work())
            except (Unavailable, Denied) as error:
                out += [str(error), repr(error.__cause__)]
        reader.fake.faults.clear()
        out.append(unpacked(reader.cursor) if reader.cursor else "")
    out += [(page.rejected, page.gaps, page.cursor) for page in reader.pages]
    assert any(isinstance(one, list) and one for one in out)
    assert [
        one for page in reader.pages for one in page.rejected if isinstance(one, RejectedRecord)
    ]
    return f"{out!r} {caplog.text}"


@pytest.mark.parametrize("mode", MODES)
async def test_private_data_never_leaves_bamboohr(
    mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    with bamboohr(mode) as reader:
        fake = reader.fake
        assert isinstance(fake, HrFake)
        fake.is_limited = False
        text = await everything_of(reader, caplog)
        assert fake.latest("100").email in text
        # The one place: a time of the feed that is none, which is what was not understood.
        text = text.replace(f'"lastChanged":"{PRIVATE}"', "")
        assert PRIVATE not in text


@pytest.mark.parametrize("asks", [True, False])
async def test_private_data_never_leaves_scim(asks: bool, caplog: pytest.LogCaptureFixture) -> None:
    with scim(request_attributes=asks) as reader:
        harness = reader.fake
        assert isinstance(harness, ScimHarness)
        harness.ignores_attributes = not asks
        text = await everything_of(reader, caplog)
        assert "@contoso.example" in text
        assert PRIVATE not in text
        if asks:
            sent = json.dumps(harness.answers)
            assert "phoneNumbers" not in sent.replace('"phoneNumbers": "PRIVATE"', "")


async def test_fewer_fields_are_fewer_everywhere() -> None:
    fields = ["firstName", "lastName", "employmentStatusName", "status"]
    with bamboohr(fields=fields) as reader:
        reader.fake.add_events(4, at=NOW - HOUR)
        events = await reader.poll()
        assert {one.operation for one in events} == {"JOINER", "LEAVER", "MOVER", "UPDATED"}
        rows = await reader.snapshot()
        text = f"{events!r} {rows!r} {unpacked(reader.cursor)}"
        assert "@contoso" not in text
        assert "Finance" not in text
        assert {one.asset_ref for one in events} == {"unknown"}


# SCIM: events


CAPABILITIES: dict[str, dict[str, Any]] = {
    "filters and sorts": {},
    "filters": {"sort": {"supported": False}},
    "neither": {"filter": {"supported": False}, "sort": {"supported": False}},
    "cursors": {"pagination": {"cursor": True, "index": True}},
}


@pytest.mark.parametrize("kind", [*CAPABILITIES, "announces filters and refuses them"])
@pytest.mark.parametrize("has_versions", [True, False])
async def test_whatever_the_server_can_the_same_is_seen(kind: str, has_versions: bool) -> None:
    with scim(config=CAPABILITIES.get(kind)) as reader:
        harness = reader.fake
        assert isinstance(harness, ScimHarness)
        harness.has_versions = has_versions
        harness.refuses_filters = kind.startswith("announces")
        assert {one.operation for one in await reader.poll()} == {"LEAVER"}
        users = [harness.ids[one] for one in ("100", "101", "102", "103")]
        at = NOW + 5 * SECOND
        harness.change("move", users[0], at=at)
        harness.change("leave", users[1], at=at)
        harness.change("update", users[2], at=at)
        harness.change("touch", users[3], at=at)
        harness.change("hire", at=at)
        harness.clock.advance(MINUTE)
        harness.queries.clear()
        events = await reader.poll()
        assert sorted(one.operation for one in events) == ["JOINER", "LEAVER", "MOVER", "UPDATED"]
        assert all(one.event_id.startswith(f"scim:{SCIM_NAME}:") for one in events)
        if has_versions:
            assert {one.event_id for one in events} < harness.event_ids()
        assert await reader.poll() == []
        is_filtered = any("filter=" in one for one in harness.queries)
        assert is_filtered == (kind != "neither")
        assert any("sortBy" in one for one in harness.queries) == (
            kind in ("filters and sorts", "cursors") or kind.startswith("announces")
        )
        assert any("cursor=" in one for one in harness.queries) == (kind == "cursors")


async def test_a_filter_asks_again_from_before_the_newest_change() -> None:
    with scim() as reader:
        harness = reader.fake
        assert isinstance(harness, ScimHarness)
        harness.change("move", harness.ids["100"], at=NOW - HOUR)
        await reader.poll()
        late = harness.change("move", harness.ids["101"], at=NOW - 20 * HOUR)
        harness.queries.clear()
        assert [one.event_id for one in await reader.poll()] == [late]
        (condition,) = {parse_qs(one)["filter"][0] for one in harness.queries if "filter" in one}
        assert condition == 'meta.lastModified ge "2026-11-23T11:00:00Z"'


async def test_a_complete_read_that_lies_ahead_holds_up_no_other() -> None:
    """A clock that stood days ahead is right again: who is gone is not missed until it was."""
    with scim() as reader:
        harness = reader.fake
        assert isinstance(harness, ScimHarness)
        harness.clock.advance(72 * HOUR)
        await reader.poll()
        harness.clock.advance(-72 * HOUR)
        harness.change("delete", harness.ids["104"], at=NOW)
        (event,) = await reader.poll()
        assert event.operation == "LEAVER"


async def test_who_is_gone_is_found_by_a_complete_read() -> None:
    with scim() as reader:
        harness = reader.fake
        assert isinstance(harness, ScimHarness)
        await reader.poll()
        gone, left = harness.ids["104"], harness.ids[harness.world.leavers[0].employee_id]
        email = harness.user(gone)["userName"]
        harness.change("delete", gone, at=NOW)
        harness.change("delete", left, at=NOW)
        assert await reader.poll() == [], "a filter does not show who is gone"
        harness.clock.advance(HOUR)
        (event,) = await reader.poll()
        assert (event.principal_ref, event.operation) == (f"hr:employee:{gone}", "LEAVER")
        assert event.event_id == f"scim:{SCIM_NAME}:{gone}:absent:1"
        derived = event.raw_payload["verity"]
        assert (derived["email"], derived["basis"]) == (email, "absent")
        assert derived["last_complete_read_at"] == "2026-11-24T12:00:03.000000Z"
        assert derived["effective_date"] == "2026-11-24"
        harness.clock.advance(HOUR)
        assert await reader.poll() == []


async def test_nobody_is_gone_whom_a_list_only_left_out() -> None:
    with scim() as reader:
        harness = reader.fake
        assert isinstance(harness, ScimHarness)
        await reader.poll()
        harness.hidden = {harness.ids["104"]}
        harness.clock.advance(HOUR)
        harness.requests.clear()
        assert await reader.poll() == []
        assert ("GET", f"/v2/Users/{harness.ids['104']}") in harness.requests
        harness.hidden = set()
        harness.clock.advance(HOUR)
        assert await reader.poll() == []


async def test_nobody_is_gone_after_an_incomplete_read() -> None:
    with scim() as reader:
        harness = reader.fake
        assert isinstance(harness, ScimHarness)
        await reader.poll()
        gone = harness.ids["104"]
        harness.change("delete", gone, at=NOW)
        # Somebody comes at each page: index paging skips and repeats.
        harness.between_pages = lambda: harness.change("hire", at=harness.clock())
        harness.clock.advance(HOUR)
        events = await reader.poll()
        assert {one.operation for one in events} == {"JOINER"}
        assert json.loads(reader.cursor or "")["last_read_at"] == "2026-11-24T12:00:03.000000Z"
        rows = await reader.snapshot()
        assert "totalResults" in gaps(rows)["users"]
        harness.between_pages = None
        harness.faults.inject(Fault.MALFORMED_RECORD, times=9)
        assert "LEAVER" not in {one.operation for one in await reader.poll()}
        harness.faults.clear()
        events = await reader.poll()
        assert (f"hr:employee:{gone}", "LEAVER") in brief(events)
        told = {one.event_id for page in reader.pages for one in page.events}
        assert harness.event_ids() <= told, "everybody who came meanwhile is told"


async def test_too_many_are_gone_at_once() -> None:
    with scim() as reader:
        harness = reader.fake
        assert isinstance(harness, ScimHarness)
        await reader.poll()
        for number in range(12):
            harness.change("delete", harness.ids[str(110 + number)], at=NOW)
        harness.change("move", harness.ids["100"], at=NOW + 4 * SECOND)
        harness.clock.advance(HOUR)
        with pytest.raises(Denied, match=r"12 of 37 active people .* absence_share_max = 0\.2"):
            await reader.poll()
        assert [one.operation for one in reader.pages[-1].events] == ["MOVER"]
        with pytest.raises(Denied, match="12 of 37"):
            await reader.poll()
        reader.settings["scim"]["absence_share_max"] = 0.5
        assert [one.operation for one in await reader.poll()] == ["LEAVER"] * 12


async def test_a_cursor_that_expires_or_repeats() -> None:
    with scim(config=CAPABILITIES["cursors"]) as reader:
        harness = reader.fake
        harness.faults.inject(Fault.PAGE_TOKEN_EXPIRED, times=1)
        rows = await reader.snapshot()
        assert harness.faults.are_over
        assert (tuples(rows), gaps(rows)) == (harness.grants(), {})
        harness.faults.inject(Fault.PAGE_TOKEN_EXPIRED, times=9)
        assert "expired" in gaps(await reader.snapshot())["users"]
        harness.faults.clear()
        harness.faults.inject(Fault.REPEATED_TOKEN, times=9)
        assert "twice" in gaps(await reader.snapshot())["users"]


async def test_without_a_version_a_second_is_read_once_it_is_over() -> None:
    with scim() as reader:
        harness = reader.fake
        assert isinstance(harness, ScimHarness)
        harness.has_versions = False
        await reader.poll()
        at = harness.clock() + 3 * SECOND
        harness.change("move", harness.ids["100"], at=at)
        assert await reader.poll() == []
        harness.change("leave", harness.ids["100"], at=at)
        (event,) = await reader.poll()
        assert event.operation == "LEAVER"
        assert event.event_id.endswith(":2026-11-24T12:00:06Z")


async def test_a_bounded_scim_pass_leaves_what_is_later_to_the_next() -> None:
    with scim() as reader:
        harness = reader.fake
        early = harness.add_events(4, at=NOW - 3 * HOUR)
        late = harness.add_events(4, at=NOW - HOUR)
        events = {one.event_id for one in await reader.poll(until=NOW - 2 * HOUR)}
        assert set(early) <= events
        assert not set(late) & events
        assert {one.event_id for one in await reader.poll()} == set(late)


# SCIM: snapshots, credentials


async def test_a_scim_snapshot_is_the_truth() -> None:
    with scim() as reader:
        harness = reader.fake
        assert isinstance(harness, ScimHarness)
        harness.add_events(8, at=NOW)
        rows = await reader.snapshot()
        assert tuples(rows) == harness.grants()
        assert (scopes(rows), gaps(rows)) == (["users", "groups"], {})
        assert {one[3] for one in tuples(rows)} == {"role", "alias", "group"}
        assert len({one.snapshot_at for one in rows if isinstance(one, PermissionSnapshot)}) == 1
        harness.faults.inject(Fault.FORBIDDEN_OBJECT)
        rows = await reader.snapshot()
        assert "403 that it may not read" in gaps(rows)["groups"]
        assert tuples(rows) == {one for one in harness.grants() if one[2] != "member"}
        reader.settings["scim"]["groups"] = False
        assert scopes(await reader.snapshot()) == ["users"]


@pytest.mark.parametrize(
    "auth",
    [
        {"kind": "bearer", "token": SCIM_TOKEN},
        {"kind": "basic", "user": SCIM_USER, "password": SCIM_PASSWORD},
        {
            "kind": "client_credentials",
            "token_url": "https://replaced.example",
            "client_id": SCIM_CLIENT,
            "client_secret": SCIM_SECRET,
        },
    ],
    ids=lambda one: one["kind"],
)
async def test_every_kind_of_credential(auth: dict[str, str]) -> None:
    secret = {"token", "password", "client_secret"} & set(auth)
    with scim(auth=auth) as reader:
        await reader.check()
        assert len(await reader.poll()) == 3
    with scim(auth={**auth, **dict.fromkeys(secret, "wrong-secret")}) as reader:
        for work in (reader.check, reader.poll, reader.snapshot):
            with pytest.raises(Denied) as raised:
                await work()
            assert "wrong-secret" not in str(raised.value)


async def test_a_base_url_that_leads_nowhere() -> None:
    with scim() as reader:
        reader.settings["scim"]["base_url"] += "/v1"
        with pytest.raises(Denied, match=r"404 that scim\.base_url does not end"):
            await reader.check()
