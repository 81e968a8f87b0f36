"""The snapshot through the Fabric admin API (preview): a request a workspace, a request an item."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any, cast

from connectors.fabric import grants
from connectors.fabric import references as names
from connectors.fabric.clients import Clients, admin, refusal
from connectors.fabric.scanner import Row, end_of
from connectors.fabric.settings import Settings
from verity_sdk.concurrently import in_order
from verity_sdk.errors import Denied, Unavailable
from verity_sdk.http import Answer, HttpClient, encoded, follow
from verity_sdk.pages import SnapshotGap

ADMIN_PATH = "/v1/admin"
WORKSPACES = "admin/workspaces"
WORKSPACE_USERS = "admin/workspaces/users"
ITEMS = "admin/items"
ITEM_USERS = "admin/items/users"
# Items_ListItemAccessDetails: for these the parameter `type` is required (fabric-rest-api-specs).
TYPES_TO_NAME = frozenset({"Report", "Dashboard", "SemanticModel", "App", "Dataflow"})
WORKSPACES_CONCURRENT = 4
TRIES_MAX = 3
RETRY_SECONDS = 5.0
# Errors whose body says whether to try again. Without 500 the client would retry what the API
# says not to.
_TELLING = (400, 403, 404, 409, 500)


class AdminApi:
    """Reads the permissions of all active workspaces and of the items in them.

    Args:
        clients: For the requests.
        settings: Where and how much.
    """

    def __init__(self, clients: Clients, settings: Settings) -> None:
        self._clients = clients
        self._settings = settings
        self._base = f"{settings.fabric_url}{ADMIN_PATH}"

    async def rows(self) -> AsyncGenerator[Row, None]:
        """Every grant, each workspace followed by its scope or gap.

        `snapshot_at` is the time at which reading began.

        Raises:
            Denied: The workspaces may not be listed; the message says what to grant.
            Unavailable: They could not be listed.
        """
        snapshot_at = self._clients.context.clock()
        try:
            workspaces = await self._workspaces()
        except Denied as error:
            raise refusal(error, "fabric") from error
        items: dict[str, list[dict[str, Any]]] | None = None
        reason = ""
        try:
            items = await self._items()
        except (Denied, Unavailable) as error:
            reason = f"its items could not be listed: {error}"

        def read(workspace: dict[str, Any]) -> Awaitable[list[Row]]:
            found = [] if items is None else items.get(str(workspace["id"]), [])
            return self._read_workspace(workspace, found, snapshot_at, reason)

        async with aclosing(in_order(workspaces, read, WORKSPACES_CONCURRENT)) as results:
            async for rows in results:
                for row in rows:
                    yield row

    async def probe(self) -> None:
        """One authorised request.

        Raises:
            Denied, Unavailable, Misconfigured: As `rows`.
        """
        try:
            await self._client(WORKSPACES).get(
                f"{self._base}/workspaces", params={"state": "active", "type": "adminworkspace"}
            )
        except Denied as error:
            raise refusal(error, "fabric") from error

    async def _workspaces(self) -> list[dict[str, Any]]:
        listing = self._listing(WORKSPACES, "workspaces", "workspaces", {"state": "active"})
        async with aclosing(listing) as workspaces:
            return [
                one
                async for one in workspaces
                if self._settings.personal_workspaces or one.get("type") != "Personal"
            ]

    async def _items(self) -> dict[str, list[dict[str, Any]]]:
        """All items of the tenant by workspace: 10,000 a request instead of one a workspace."""
        items: dict[str, list[dict[str, Any]]] = defaultdict(list)
        async with aclosing(self._listing(ITEMS, "items", "itemEntities", {})) as listing:
            async for one in listing:
                items[str(one.get("workspaceId"))].append(one)
        return items

    async def _read_workspace(
        self,
        workspace: Mapping[str, Any],
        items: Sequence[Mapping[str, Any]],
        snapshot_at: datetime,
        reason: str,
    ) -> list[Row]:
        workspace_id = str(workspace["id"])
        scope = names.workspace(workspace_id)
        rows: list[Row] = []
        problems = [reason] if reason else []
        url = f"{self._base}/workspaces/{encoded(workspace_id)}"
        try:
            body = (await self._ask(WORKSPACE_USERS, f"{url}/users")).json()
        except (Denied, Unavailable) as error:
            return [SnapshotGap(scope, str(error))]
        found = grants.workspace_access(workspace, body, snapshot_at)
        rows += found.rows
        problems += found.problems
        for item in items:
            kind = item.get("type")
            item_url = f"{url}/items/{encoded(str(item['id']))}/users"
            params = {"type": str(kind)} if kind in TYPES_TO_NAME else None
            try:
                body = (await self._ask(ITEM_USERS, item_url, params)).json()
            except (Denied, Unavailable) as error:
                problems.append(f"item {item['id']}: {error}")
                continue
            found = grants.item_access(item, body, snapshot_at)
            rows += found.rows
            problems += found.problems
        rows.append(end_of(scope, problems))
        return rows

    async def _ask(self, name: str, url: str, params: Mapping[str, str] | None = None) -> Answer:
        """Ask, and again where the error says `isRetriable`.

        Raises:
            Unavailable: Still an error that may pass.
            Denied: An error that does not.
        """
        for attempt in range(1, TRIES_MAX + 1):
            answer = await self._client(name).get(url, params=params, expect=_TELLING)
            if answer.status < 400:
                return answer
            text = f"GET {answer.url} answered {answer.status} ({answer.error_code})"
            if not _is_retriable(answer):
                raise Denied(text)
            if attempt < TRIES_MAX:
                await self._clients.context.sleep(self._pause_seconds(answer))
        raise Unavailable(text)

    def _pause_seconds(self, answer: Answer) -> float:
        asked = answer.headers.get("retry-after", "")
        longest = self._settings.http.retry_after_max.total_seconds()
        return min(float(asked), longest) if asked.isdecimal() else RETRY_SECONDS

    async def _listing(
        self, name: str, path: str, field: str, params: dict[str, str]
    ) -> AsyncGenerator[dict[str, Any], None]:
        url = f"{self._base}/{path}"
        answers = follow(
            self._client(name),
            url,
            lambda answer: _next_url(answer, url, params),
            params=params or None,
        )
        async with aclosing(cast("AsyncGenerator[Answer, None]", answers)) as pages:
            async for answer in pages:
                body = answer.json()
                entries = body.get(field) if isinstance(body, dict) else None
                if not isinstance(entries, list):
                    raise Unavailable(f"GET {answer.url} answered without {field}")
                for entry in entries:
                    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
                        raise Unavailable(f"GET {answer.url} answered with one that has no id")
                    yield entry

    def _client(self, name: str) -> HttpClient:
        return self._clients.of(admin(name, self._settings))


def _next_url(answer: Answer, url: str, params: Mapping[str, str]) -> str | None:
    """`continuationUri`, byte for byte; built from the token where there is only that."""
    body = answer.json()
    if not isinstance(body, dict) or not body.get("continuationToken"):
        return None
    uri = body.get("continuationUri")
    if isinstance(uri, str) and uri:
        return uri
    query = {**params, "continuationToken": str(body["continuationToken"])}
    return url + "?" + "&".join(f"{name}={encoded(value)}" for name, value in query.items())


def _is_retriable(answer: Answer) -> bool:
    try:
        body = answer.json()
    except Unavailable:
        body = None
    if isinstance(body, dict) and isinstance(body.get("isRetriable"), bool):
        return bool(body["isRetriable"])
    # An error that says nothing: a server's own may pass, a refusal does not.
    return answer.status >= 500
