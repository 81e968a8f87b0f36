"""The connector: what is asked of Lagoon, in which order, and what becomes of the answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from datetime import timedelta
from typing import Any, ClassVar
from urllib.parse import urlsplit

from lagoon_connector.records import PLATFORM, box_ref, events_of
from lagoon_connector.settings import Settings
from verity_sdk import (
    Page,
    PagedConnector,
    PermissionSnapshot,
    Position,
    SnapshotGap,
    SnapshotScope,
    Unavailable,
    format_utc,
)
from verity_sdk.auth import ClientCredentials
from verity_sdk.http import Answer, HttpClient, encoded, follow, shared_budget
from verity_sdk.references import user
from verity_sdk.windows import Fetched, Slice, WindowedStream, WindowPolicy, windowed_pages

RESTARTS_MAX = 3
"""So often a listing starts anew whose page token has expired."""


class LagoonConnector(PagedConnector):
    """Who opened which Lagoon box, and who may."""

    settings: Settings
    PLATFORM = PLATFORM
    Settings = Settings

    # "Entries appear within ten minutes", and are kept for 30 days (Lagoon's API guide).
    settle = timedelta(minutes=10)
    lookback = timedelta(hours=1)
    slice_max = timedelta(hours=6)
    retention = timedelta(days=30)
    # "600 requests a minute and client" (likewise).
    requests_per_minute: ClassVar[int] = 600

    def __init__(self, config: Any, kafka_producer: Any, db_pool: Any) -> None:
        super().__init__(config, kafka_producer, db_pool)
        self._issuer = self._client()
        self._api = self._client(
            authorizer=ClientCredentials(
                self._issuer,
                token_url=f"{self.settings.url}/token",
                client_id=self.settings.client_id,
                client_secret=self.settings.client_secret,
                scope="audit",
            ),
            # One budget for all connectors of this process that use the same client.
            budget=shared_budget(
                (PLATFORM, self.settings.url, self.settings.client_id),
                requests=self.requests_per_minute,
                per=timedelta(minutes=1),
                share=self.settings.http.budget_share,
            ),
        )

    def fetch_pages(self, position: Position) -> AsyncIterator[Page]:
        """The audit log in slices of some hours, each read completely before it comes out."""
        policy = WindowPolicy(
            settle=self.settle,
            slice_max=self.slice_max,
            relook=self.settings.lookback,
            lookback=self.settings.lookback,
            retention=self.retention,
            page_events=self.settings.page_events,
        )
        audit = WindowedStream("audit", self._fetch, policy)
        return windowed_pages([audit], position, self.context.clock)

    async def snapshot_permissions(
        self,
    ) -> AsyncIterator[PermissionSnapshot | SnapshotGap | SnapshotScope]:
        """The members of every box; a box that can't be read is a gap, not an empty box."""
        snapshot_at = self.context.clock()
        for box in await self._listing("/boxes"):
            name = box["name"]
            answer = await self._api.get(
                f"{self.settings.url}/boxes/{encoded(name)}/members", expect={403, 404}
            )
            if answer.status != 200:
                yield SnapshotGap(name, f"its members can't be read: status {answer.status}")
                continue
            for member in _items(answer):
                yield PermissionSnapshot(
                    platform=PLATFORM,
                    principal_ref=user(member["who"]),
                    asset_ref=box_ref(name),
                    privilege=member["may"].upper(),
                    grant_mechanism="direct",
                    snapshot_at=snapshot_at,
                    raw_payload=member,
                )
            yield SnapshotScope(name)

    async def check(self) -> None:
        """One cheap request, for `verity check`: changes nothing."""
        await self._api.get(f"{self.settings.url}/boxes")

    async def close(self) -> None:
        """Close all connections."""
        await self._api.close()
        await self._issuer.close()

    async def _fetch(self, window: Slice) -> Fetched:
        records = await self._listing(
            "/audit", {"from": format_utc(window.from_at), "to": format_utc(window.to_at)}
        )
        events, rejected = events_of(records)
        return Fetched(events, rejected)

    async def _listing(self, path: str, params: Mapping[str, str] | None = None) -> list[Any]:
        """All items of a listing, or none: with an expired page token (410) it starts anew."""
        for _ in range(RESTARTS_MAX):
            items: list[Any] = []
            pages = follow(
                self._api, f"{self.settings.url}{path}", _next, params=params, expect={410}
            )
            async with aclosing(pages):
                async for answer in pages:
                    if answer.status == 410:
                        break
                    items += _items(answer)
                else:
                    return items
        raise Unavailable(f"{path}: its page tokens expire faster than its pages are read")

    def _client(self, **options: Any) -> HttpClient:
        return HttpClient(
            self.settings.http,
            platform=PLATFORM,
            hosts=[urlsplit(self.settings.url).netloc],
            context=self.context,
            **options,
        )


def _items(answer: Answer) -> list[Any]:
    body = answer.json()
    if not isinstance(body, dict) or not isinstance(body.get("items"), list):
        raise Unavailable(f"{answer.url}: an answer without items")
    return list(body["items"])


def _next(answer: Answer) -> str | None:
    following: str | None = answer.json().get("next")
    return following
