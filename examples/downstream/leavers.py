"""Who left the company, and what they still may and still do, on every platform.

    faust -A leavers worker

What is found of every leaver goes to the topic `findings.{app_id}`, keyed by the employee; a later
finding replaces it. Empty lists say that nothing is left. It joins three things:

- the HR system's LEAVER events say who left, and since when;
- permission snapshots say what each principal may, and by which other names it is known (alias);
- raw events say what each principal did.

People have another name on every platform, so all facts meet in one partition of the topic
`facts.{app_id}`, where one agent knows all names. They are small: what was done is kept as the last
acts of a principal on each platform, what is allowed as the last complete snapshot.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping, Sequence
from datetime import UTC, datetime
from typing import Any

from verity_sdk import RawEvent, format_utc
from verity_sdk.references import ALIAS, account
from verity_stream import create_app, permissions_topic, raw_topic, verity_agent
from verity_stream.downstream import Grant, PermissionRecord, SnapshotEnd

PLATFORMS = ("azure_ad", "fabric", "synapse", "databricks", "postgres", "hr")
ACTS_KEPT = 20
NAMES_MAX = 100
"""A person has a handful of names; a loop of wrong aliases must not make one person of all."""

Fact = dict[str, Any]


# From records to facts: pure functions.


def fact_of_event(event: RawEvent) -> Fact:
    """Somebody left, came back, or did something."""
    derived = event.raw_payload.get("verity", {}) if event.platform == "hr" else {}
    if event.platform == "hr" and event.operation == "LEAVER":
        day = derived.get("effective_date")
        left_at = datetime.fromisoformat(day).replace(tzinfo=UTC) if day else event.occurred_at
        return {
            "kind": "left",
            "who": event.principal_ref,
            "left_at": format_utc(left_at),
            "known_as": derived.get("account"),
        }
    if event.platform == "hr" and event.operation == "JOINER":
        return {"kind": "came", "who": event.principal_ref, "known_as": derived.get("account")}
    return {
        "kind": "did",
        "who": event.principal_ref,
        "at": format_utc(event.occurred_at),
        "event_id": event.event_id,
        "platform": event.platform,
        "operation": event.operation,
        "asset_ref": event.asset_ref,
    }


def fact_of_permission(record: PermissionRecord, connector_id: str) -> Fact | None:
    """Somebody may do something, or has another name, or a snapshot was read completely."""
    if isinstance(record, SnapshotEnd):
        # Only of a complete snapshot may an absent grant be read as a revocation.
        if not record.is_complete:
            return None
        return {"kind": "read", "connector_id": connector_id, "snapshot_id": record.snapshot_id}
    if not isinstance(record, Grant):
        return None
    grant = record.snapshot
    if grant.privilege == ALIAS:
        return {"kind": "alias", "who": grant.principal_ref, "known_as": grant.asset_ref}
    if grant.platform == "hr":
        return None  # A department is no access.
    return {
        "kind": "may",
        "who": grant.principal_ref,
        "connector_id": connector_id,
        "snapshot_id": record.snapshot_id,
        "grant": [grant.platform, grant.privilege, grant.asset_ref, grant.granted_via],
    }


def same_name(reference: str, domain: str | None) -> str:
    """One spelling of a name that platforms spell differently: e-mails in lower case, as `user:`.

    Args:
        reference: As the platform's records have it.
        domain: What follows the @ where a PostgreSQL role is the first part of an e-mail.
    """
    server, is_role, role = reference.partition("/role:")
    if reference.startswith("pg:") and is_role:
        if "@" in role:
            return account(role)
        return account(f"{role}@{domain}") if domain else f"{server}/role:{role}"
    name = reference.removeprefix("user:")
    return account(name) if "@" in name else reference


class Picture:
    """What is known of everybody, in a table (any mapping from text to JSON values)."""

    def __init__(self, table: MutableMapping[str, Any], domain: str | None = None) -> None:
        self._table = table
        self._domain = domain

    def learn(self, fact: Fact) -> Iterator[str]:
        """Take in a fact; yields the leavers about whom there may be news."""
        kind = fact["kind"]
        if kind == "read":
            self._table[f"read:{fact['connector_id']}"] = fact["snapshot_id"]
            yield from self._table.get("leavers", [])
            return
        who = same_name(fact["who"], self._domain)
        if fact.get("known_as"):
            self._join(who, same_name(fact["known_as"], self._domain))
        leavers = self._table.get("leavers", [])
        if kind == "left":
            self._table[f"left:{who}"] = fact["left_at"]
            leavers = self._table["leavers"] = sorted({*leavers, who})
        elif kind == "came" and who in leavers:
            self._table[f"left:{who}"] = None
            self._table["leavers"] = [one for one in leavers if one != who]
        elif kind == "may":
            self._may(who, fact)
            return  # It counts once its snapshot is read completely.
        elif kind == "did":
            self._did(who, fact)
        yield from (name for name in self.names(who) if name in leavers)

    def names(self, who: str) -> list[str]:
        """All names of whoever has this one."""
        found, to_look_at = [who], [who]
        while to_look_at and len(found) < NAMES_MAX:
            for other in self._table.get(f"alias:{to_look_at.pop()}", []):
                if other not in found:
                    found.append(other)
                    to_look_at.append(other)
        return found

    def finding(self, leaver: str) -> dict[str, Any]:
        """What somebody who left still may, and did after leaving."""
        left_at = self._table[f"left:{leaver}"]
        if left_at is None:  # and is back
            return {"employee": leaver, "left_at": None, "still_may": [], "did_after": []}
        names = self.names(leaver)
        acts = [
            act
            for name in names
            for on_platform in self._table.get(f"did:{name}", {}).values()
            for act in on_platform
        ]
        return {
            "employee": leaver,
            "left_at": left_at,
            "known_as": [name for name in names if name != leaver],
            "still_may": sorted(
                (grant for name in names for grant in self._grants(name)),
                key=lambda grant: [part or "" for part in grant],
            ),
            "did_after": sorted(
                (act for act in acts if act["at"] >= left_at), key=lambda act: act["at"]
            ),
        }

    def _join(self, one: str, other: str) -> None:
        if one == other:
            return
        for name, known_as in ((one, other), (other, one)):
            known = self._table.get(f"alias:{name}", [])
            if known_as not in known:
                self._table[f"alias:{name}"] = [*known, known_as]

    def _may(self, who: str, fact: Fact) -> None:
        held = dict(self._table.get(f"may:{who}", {}))
        connector_id, snapshot_id = fact["connector_id"], fact["snapshot_id"]
        snapshots = dict(held.get(connector_id, {}))
        grants = snapshots.get(snapshot_id, [])
        if fact["grant"] in grants:
            return
        # The last complete snapshot counts until this one is complete, too.
        last = self._table.get(f"read:{connector_id}")
        kept = {key: value for key, value in snapshots.items() if key in (last, snapshot_id)}
        held[connector_id] = {**kept, snapshot_id: [*grants, fact["grant"]]}
        self._table[f"may:{who}"] = held

    def _grants(self, name: str) -> Iterator[Sequence[Any]]:
        for connector_id, snapshots in self._table.get(f"may:{name}", {}).items():
            yield from snapshots.get(self._table.get(f"read:{connector_id}"), [])

    def _did(self, who: str, fact: Fact) -> None:
        by_platform = self._table.get(f"did:{who}", {})
        acts = by_platform.get(fact["platform"], [])
        # By id, because after a crash an event may come again.
        if any(act["event_id"] == fact["event_id"] for act in acts):
            return
        act = {key: value for key, value in fact.items() if key not in ("kind", "who")}
        newest = sorted([*acts, act], key=lambda one: one["at"])[-ACTS_KEPT:]
        self._table[f"did:{who}"] = {**by_platform, fact["platform"]: newest}


# The app: agents that only pass on.


def make_app(
    platforms: Sequence[str] = PLATFORMS,
    app_id: str = os.environ.get("LEAVERS_APP_ID", "leavers"),
    domain: str | None = os.environ.get("LEAVERS_DOMAIN"),
) -> Any:
    """The app; a factory, so that tests can make their own."""
    app = create_app(app_id)
    facts = app.topic(f"facts.{app_id}", partitions=1)
    findings = app.topic(f"findings.{app_id}")
    picture = Picture(app.Table("picture", partitions=1), domain)

    def read(platform: str) -> None:
        @verity_agent(app, raw_topic(app, platform), name=f"events-{platform}")
        async def events(event: RawEvent) -> None:
            await facts.send(key="all", value=fact_of_event(event))

        @verity_agent(app, permissions_topic(app, platform), name=f"permissions-{platform}")
        async def permissions(record: PermissionRecord, event: Any) -> None:
            connector_id = dict(event.headers)["connector_id"]
            name = connector_id.decode() if isinstance(connector_id, bytes) else connector_id
            fact = fact_of_permission(record, name)
            if fact is not None:
                await facts.send(key="all", value=fact)

    for platform in platforms:
        read(platform)

    @verity_agent(app, facts)
    async def join(fact: Fact) -> None:
        # Told again also when nothing changed: after a crash the fact may meet its own traces, and
        # the finding may not have been out.
        for leaver in list(picture.learn(fact)):
            await findings.send(key=leaver, value=picture.finding(leaver))

    return app


app = make_app()
