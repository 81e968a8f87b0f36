"""Permission snapshots on the real broker: start, grants, end, in that order, and honest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from typing import Any

import orjson
import pytest
import structlog.testing
from contract.streams import AT, create, kafka_settings, new_name, publisher, stream_settings
from workers import committed

from verity_sdk.batches import Limits
from verity_sdk.connector_base import BaseConnector, PermissionSnapshot
from verity_sdk.errors import Denied
from verity_sdk.pages import SnapshotGap, SnapshotScope
from verity_stream.records import SnapshotResult, dead_topic, permissions_topic
from verity_stream.relay.snapshots import publish_snapshot
from verity_stream.settings import ConnectorOptions, ConnectorSpec

pytestmark = pytest.mark.stack


class Given(BaseConnector):
    """Yields what it was given, raises what is an error."""

    def __init__(self, *things: Any) -> None:
        super().__init__({}, None, None)
        self.things = things

    async def stream_audit_events(self, since: Any) -> AsyncIterator[Any]:
        for event in ():
            yield event

    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        for thing in self.things:
            if isinstance(thing, Exception):
                raise thing
            yield thing


def grant(number: int, **fields: Any) -> PermissionSnapshot:
    return PermissionSnapshot(
        **{
            "platform": "acme",
            "principal_ref": f"user{number}",
            "asset_ref": "vault",
            "privilege": "READ",
            "grant_mechanism": "direct",
            **fields,
        }
    )


async def take(
    bootstrap_servers: str,
    *things: Any,
    platform: str | None = None,
    connector: str = "",
    is_declared: bool = False,
) -> tuple[SnapshotResult, list[Any], list[Any]]:
    """Publish a snapshot; its result, and the committed records of both topics."""
    platform = platform or new_name()
    cls = type("Declared", (Given,), {"PLATFORM": platform}) if is_declared else Given
    spec = ConnectorSpec(connector or new_name(), cls, platform, {}, ConnectorOptions(type="given"))
    permissions, dead = permissions_topic(platform), dead_topic(platform)
    await create(bootstrap_servers, permissions, dead)
    one = publisher(kafka_settings(bootstrap_servers), f"{spec.connector_id}.snapshot")
    await one.start()
    try:
        result = await publish_snapshot(
            spec,
            stream_settings(bootstrap_servers),
            Given(*things),
            one,
            Limits(10, timedelta(hours=1)),
            lambda: AT,
        )
    finally:
        await one.close()
    return (
        result,
        await committed(bootstrap_servers, permissions),
        await committed(bootstrap_servers, dead),
    )


def bodies(records: list[Any]) -> list[dict[str, Any]]:
    return [orjson.loads(record.value) for record in records]


async def test_start_grants_and_end_stand_in_one_partition_in_order(
    bootstrap_servers: str,
) -> None:
    things = [*(grant(number) for number in range(35)), SnapshotScope("all")]
    result, records, _ = await take(bootstrap_servers, *things)
    assert len({record.partition for record in records}) == 1
    start, *grants, end = bodies(records)
    assert [body["record"] for body in (start, end)] == ["start", "end"]
    assert [body["principal_ref"] for body in grants] == [f"user{n}" for n in range(35)]
    assert {body["snapshot_id"] for body in (start, *grants, end)} == {result.snapshot_id}
    assert [dict(record.headers)["record"] for record in records] == [
        *(b"start", *[b"grant"] * 35, b"end")
    ]
    assert end["is_complete"] is result.is_complete is True
    assert end["grant_count"] == 35
    assert (end["scopes_tried"], end["scopes_denied"]) == (["all"], [])


async def test_a_denied_scope_makes_it_partial(bootstrap_servers: str) -> None:
    things = [grant(1), SnapshotScope("a"), SnapshotGap("b", "no permission"), grant(2)]
    result, records, _ = await take(bootstrap_servers, *things)
    end = bodies(records)[-1]
    assert end["is_complete"] is result.is_complete is False
    assert end["grant_count"] == 2
    assert end["scopes_tried"] == ["a", "b"]
    assert end["scopes_denied"] == [{"scope": "b", "reason": "no permission"}]


@pytest.mark.parametrize("error", [Denied("revoked"), ZeroDivisionError("a bug")])
async def test_a_source_that_fails_half_way_leaves_an_end_that_says_so(
    bootstrap_servers: str, error: Exception
) -> None:
    _, records, _ = await take(bootstrap_servers, grant(1), error)
    start, one, end = bodies(records)
    assert (start["record"], one["record"], end["record"]) == ("start", "grant", "end")
    assert end["is_complete"] is False
    assert end["scopes_denied"][0]["scope"] == "*"
    assert str(error) in end["scopes_denied"][0]["reason"]


async def test_a_grant_that_cant_be_published_is_a_dead_letter_and_makes_it_partial(
    bootstrap_servers: str,
) -> None:
    platform = new_name()
    own = partial(grant, platform=platform)
    things = [
        own(1),
        own(2, principal_ref=None),
        own(3, raw_payload={"x": "y" * 2_000_000}),
        own(4, snapshot_at="today"),
        "no grant",
        own(5, asset_ref=["vault"]),
        grant(6, platform=None),
        own(7, privilege=1.5),
        own(8, grant_mechanism=None),
        own(9, granted_via=b"group"),
        grant(10, platform="another"),
        own(11, privilege=17, granted_via=None),
    ]
    result, records, dead = await take(
        bootstrap_servers, *things, platform=platform, is_declared=True
    )
    *_, last, end = bodies(records)
    assert last["privilege"] == "17"
    assert (end["grant_count"], end["dead_count"], end["is_complete"]) == (2, 10, False)
    assert result.dead_count == 10
    # Once, however many: what each lacked is in the dead letters.
    assert end["scopes_denied"] == [
        {"scope": "unpublishable", "reason": "principal_ref is missing"}
    ]
    assert len({body["sha256"] for body in bodies(dead)}) == 10


async def test_whatever_else_is_wrong_never_hides_a_grant(bootstrap_servers: str) -> None:
    things = [
        grant(1, raw_payload={"x": float("nan"), "y": None}),
        grant(2, principal_ref="a\ud800", raw_payload={"x": object()}),
        grant(3, granted_via="\ud800", raw_payload={"x": 2**70}),
        grant(4, raw_payload={"n": None}),
    ]
    result, records, dead = await take(bootstrap_servers, *things)
    grants = records[1:-1]
    altered = [dict(one.headers).get("altered") for one in grants]
    assert [one and orjson.loads(one) for one in altered] == [
        ["/raw_payload/x"],
        ["/principal_ref", "/raw_payload/x"],
        ["/granted_via", "/raw_payload/x"],
        None,
    ]
    assert [body["raw_payload"]["x"] for body in bodies(grants)[::2]] == ["NaN", str(2**70)]
    assert len(dead) == 3
    assert all("this is the original" in body["reason"] for body in bodies(dead))
    # All of them are out: nothing is lacking.
    assert bodies(records)[-1]["is_complete"] is result.is_complete is True


async def test_a_naive_time_of_a_grant_is_utc_and_warned_of_once(bootstrap_servers: str) -> None:
    naive = AT.replace(tzinfo=None)
    with structlog.testing.capture_logs() as said:
        _, records, dead = await take(
            bootstrap_servers, grant(1, snapshot_at=naive), grant(2, snapshot_at=naive)
        )
    assert [body["snapshot_at"] for body in bodies(records)[1:-1]] == [
        "2026-01-01T00:00:00.000000Z"
    ] * 2
    assert dead == []
    assert [one["event"] for one in said].count("snapshot.naive_time") == 1


async def test_a_gap_or_a_scope_of_wrong_types_does_not_take_the_end_away(
    bootstrap_servers: str,
) -> None:
    things: list[Any] = [SnapshotScope(None), SnapshotGap(7, None), grant(1)]  # type: ignore[arg-type]
    _, records, _ = await take(bootstrap_servers, *things)
    end = bodies(records)[-1]
    assert end["scopes_tried"] == ["None", "7"]
    assert end["scopes_denied"] == [{"scope": "7", "reason": "None"}]


async def test_an_empty_snapshot_is_complete_and_says_nobody_may_anything(
    bootstrap_servers: str,
) -> None:
    _, records, _ = await take(bootstrap_servers)
    assert [body["record"] for body in bodies(records)] == ["start", "end"]
    assert bodies(records)[-1]["is_complete"] is True


async def test_a_grant_keeps_the_time_it_was_read(bootstrap_servers: str) -> None:
    _, records, _ = await take(
        bootstrap_servers, grant(1), grant(2, snapshot_at=AT - timedelta(hours=1))
    )
    assert [body["snapshot_at"] for body in bodies(records)[1:-1]] == [
        "2026-01-01T00:00:00.000000Z",
        "2025-12-31T23:00:00.000000Z",
    ]


async def test_snapshots_of_one_connector_follow_each_other(bootstrap_servers: str) -> None:
    platform, connector = new_name(), new_name()
    for number in range(2):
        _, records, _ = await take(
            bootstrap_servers, grant(number), platform=platform, connector=connector
        )
    assert [body["record"] for body in bodies(records)] == ["start", "grant", "end"] * 2
    assert len({body["snapshot_id"] for body in bodies(records)}) == 2


async def test_a_reason_that_is_no_utf_8_does_not_take_the_end_away(
    bootstrap_servers: str,
) -> None:
    _, records, _ = await take(bootstrap_servers, grant(1), SnapshotGap("b\ud800", "r\ud800"))
    assert bodies(records)[-1]["record"] == "end"
