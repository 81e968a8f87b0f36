"""A connector for the Acme platform, whose API is that of `server.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import httpx
from pydantic import BaseModel, SecretStr

from verity_sdk import (
    BaseConnector,
    Denied,
    PermissionSnapshot,
    RawEvent,
    Unavailable,
    format_utc,
    parse_utc,
)

__all__ = ["AcmeConnector"]

PAGE_EVENTS = 200
REQUEST_SECONDS_MAX = 30.0


class AcmeConnector(BaseConnector):
    """Who read and changed which Acme board, and who may."""

    PLATFORM = "acme"

    class Settings(BaseModel):
        """The connector's table of `verity.toml`; it is validated before anything starts."""

        connector_id: str
        url: str
        token: SecretStr

    # Acme lists its log oldest first. That is what the checkpoint relies on: see the SDK.
    async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        """Yield what happened at `since` and later, following the API from page to page."""
        query: dict[str, Any] | None = {"from": format_utc(since), "limit": PAGE_EVENTS}
        async with self._client() as client:
            while query is not None:
                page = await _get(client, "/log", query)
                for item in page["items"]:
                    yield _event(item)
                cursor = page["next"]
                query = None if cursor is None else {**query, "cursor": cursor}

    async def snapshot_permissions(self) -> AsyncIterator[PermissionSnapshot]:
        """Yield the members of every board, with what they may do there."""
        async with self._client() as client:
            for item in (await _get(client, "/members", {}))["items"]:
                yield PermissionSnapshot(
                    platform=self.PLATFORM,
                    principal_ref=item["member"],
                    asset_ref=item["board"],
                    privilege=item["may"].upper(),
                    grant_mechanism="group" if item["team"] else "direct",
                    granted_via=item["team"],
                    raw_payload=item,
                )

    # One client a pass: there is nothing to close when the connector is done.
    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.config.url,
            headers={"Authorization": f"Bearer {self.config.token.get_secret_value()}"},
            timeout=REQUEST_SECONDS_MAX,
        )


def _event(item: dict[str, Any]) -> RawEvent:
    return RawEvent(
        platform=AcmeConnector.PLATFORM,
        event_id=item["id"],
        occurred_at=parse_utc(item["at"]),
        principal_ref=item["who"],
        asset_ref=item["board"],
        operation=item["did"].upper(),
        raw_payload=item,
    )


async def _get(client: httpx.AsyncClient, path: str, query: dict[str, Any]) -> Any:
    """One answer of the API, or the error that says who must act."""
    try:
        response = await client.get(path, params=query)
    except httpx.TransportError as error:
        raise Unavailable(f"Acme did not answer: {type(error).__name__}") from error
    if response.status_code in (401, 403):
        raise Denied(f"Acme refuses the token for {path}: {response.status_code}")
    if response.status_code >= 400:
        raise Unavailable(f"Acme answered {response.status_code} to {path}")
    try:
        return response.json()
    except ValueError as error:
        raise Unavailable(f"Acme's answer to {path} is not JSON") from error
