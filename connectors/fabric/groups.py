"""The members of groups that hold grants, from Microsoft Graph; no connector knows another."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

from connectors.fabric import grants
from connectors.fabric import references as names
from connectors.fabric.clients import GRAPH, Clients, refusal
from connectors.fabric.scanner import Row
from connectors.fabric.settings import Settings
from verity_sdk import references
from verity_sdk.connector_base import PermissionSnapshot
from verity_sdk.errors import Denied, Unavailable
from verity_sdk.http import Answer, encoded, follow
from verity_sdk.pages import SnapshotGap, SnapshotScope

PAGE_MEMBERS = 999  # Graph's largest page of directory objects.
_GROUP = "#microsoft.graph.group"
_SERVICE_PRINCIPAL = "#microsoft.graph.servicePrincipal"
_USER = "#microsoft.graph.user"


@dataclass(frozen=True, slots=True)
class Member:
    """Who is in a group, directly or through others."""

    ref: str
    login: str | None
    said: dict[str, Any]


class Groups:
    """Adds, to every grant of a group, a row for each of its members.

    Members are asked for once a group and kept for the one snapshot that it serves.
    """

    def __init__(self, clients: Clients, settings: Settings) -> None:
        self._clients = clients
        self._settings = settings
        self._known: dict[str, list[Member] | str] = {}

    async def expanded(self, rows: AsyncGenerator[Row, None]) -> AsyncGenerator[Row, None]:
        """The same rows, and those of the members (`group`, via the group).

        A group that can't be read makes a gap of the part in which it holds a grant.
        """
        lost: dict[str, str] = {}
        async with aclosing(rows):
            async for row in rows:
                if isinstance(row, SnapshotScope | SnapshotGap):
                    if lost and isinstance(row, SnapshotScope):
                        reasons = "; ".join(f"{ref}: {reason}" for ref, reason in lost.items())
                        yield SnapshotGap(row.scope, f"members could not be read: {reasons}")
                    else:
                        yield row
                    lost = {}
                    continue
                yield row
                if not row.principal_ref.startswith("group:"):
                    continue
                members = await self._members(row.principal_ref.removeprefix("group:"))
                if isinstance(members, str):
                    lost[row.principal_ref] = members
                    continue
                for member in members:
                    yield grants.member_row(row, member.ref, member.said)
                    if member.login and row.snapshot_at is not None:
                        yield grants.alias(member.ref, member.login, row.snapshot_at, member.said)

    async def _members(self, group_id: str) -> list[Member] | str:
        """The members, or why they are not known."""
        if group_id not in self._known:
            try:
                self._known[group_id] = await self._ask(group_id)
            except Denied as error:
                self._known[group_id] = str(refusal(error, "graph"))
            except Unavailable as error:
                self._known[group_id] = str(error)
        return self._known[group_id]

    async def _ask(self, group_id: str) -> list[Member]:
        members: dict[str, Member] = {}
        answers = follow(
            self._clients.of(GRAPH),
            f"{self._settings.graph_url}/v1.0/groups/{encoded(group_id)}/transitiveMembers",
            _next_link,
            params={"$select": "id,userPrincipalName", "$top": str(PAGE_MEMBERS)},
        )
        async with aclosing(cast("AsyncGenerator[Answer, None]", answers)) as pages:
            async for answer in pages:
                for one in _values(answer):
                    member = _member(one)
                    if member is not None:
                        members[member.ref] = member
                if len(members) > self._settings.group_members_max:
                    raise Unavailable("the group has more members than group_members_max")
        return list(members.values())


def _member(one: Any) -> Member | None:
    """Who it is; None for a group, whose members are in the list themselves."""
    if not isinstance(one, dict) or not isinstance(one.get("id"), str):
        raise Unavailable("a member has no id")
    kind, member_id = one.get("@odata.type"), one["id"]
    if kind == _GROUP:
        return None
    if kind == _SERVICE_PRINCIPAL:
        return Member(references.service_principal(member_id), None, one)
    login = one.get("userPrincipalName")
    if kind == _USER or isinstance(login, str):
        return Member(references.user(member_id), login if isinstance(login, str) else None, one)
    return Member(names.principal(member_id), None, one)


def _values(answer: Answer) -> list[Any]:
    body = answer.json()
    values = body.get("value") if isinstance(body, dict) else None
    if not isinstance(values, list):
        raise Unavailable(f"GET {answer.url} answered without a list")
    return values


def _next_link(answer: Answer) -> str | None:
    body = answer.json()
    link = body.get("@odata.nextLink") if isinstance(body, dict) else None
    return link if isinstance(link, str) else None


def is_alias(row: Row) -> bool:
    """Whether a row only says how somebody is also called."""
    return isinstance(row, PermissionSnapshot) and row.grant_mechanism == references.ALIAS
