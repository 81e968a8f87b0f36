"""The workspace's REST APIs: one answer, or all pages of a listing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from verity_sdk.errors import Unavailable
from verity_sdk.http import HttpClient

PAGES_MAX = 10_000


class RestApi:
    """Reads JSON objects from one workspace.

    Args:
        client: Authorised, for the workspace.
        host: The workspace's URL.
    """

    def __init__(self, client: HttpClient, host: str) -> None:
        self._client = client
        self._host = host

    async def object(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        """One answer.

        Raises:
            Denied: The API refused, or there is no such object.
            Unavailable: No answer, or none that is understood.
        """
        answer = await self._client.get(self._host + path, params=params)
        body = answer.json()
        if not isinstance(body, dict):
            raise Unavailable(f"GET {answer.url}: not a JSON object")
        return body

    async def listing(
        self,
        path: str,
        key: str,
        params: Mapping[str, str] | None = None,
        *,
        page_parameter: str = "page_token",
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The items of a listing, over all pages. A page may be empty and still not the last.

        Raises:
            Unavailable: A page's token came twice (databricks-sdk-py issues 543, 569), there are
                too many pages, or an item is no object; what came is no complete listing.
            Denied: As `object`.
        """
        seen: set[str] = set()
        query = dict(params or {})
        for _ in range(PAGES_MAX):
            body = await self.object(path, query or None)
            items = body.get(key)
            for item in _list(items, f"{path}: {key}"):
                if not isinstance(item, dict):
                    raise Unavailable(f"GET {path}: an item under `{key}` is no object")
                yield item
            token = body.get("next_page_token")
            if not token:
                return
            if not isinstance(token, str) or token in seen:
                raise Unavailable(f"GET {path}: the token of a page came twice")
            seen.add(token)
            query[page_parameter] = token
        raise Unavailable(f"GET {path}: more than {PAGES_MAX} pages")

    async def scim(self, path: str, attributes: str) -> AsyncGenerator[dict[str, Any], None]:
        """The resources of a SCIM listing, each once; its end is an empty page (databricks-sdk).

        Raises:
            Unavailable: Fewer came than there are: the listing moved under us, or has no end.
            Denied: As `object`.
        """
        seen: set[str] = set()
        total, start = 0, 1
        for _ in range(PAGES_MAX):
            params = {"startIndex": str(start), "count": "100", "attributes": attributes}
            body = await self.object(path, params)
            stated = body.get("totalResults")
            total = stated if isinstance(stated, int) else total
            resources = _list(body.get("Resources"), f"{path}: Resources")
            fresh = 0
            for resource in resources:
                resource_id = resource.get("id") if isinstance(resource, dict) else None
                if not isinstance(resource_id, str):
                    raise Unavailable(f"GET {path}: a resource has no id")
                if resource_id not in seen:
                    seen.add(resource_id)
                    fresh += 1
                    yield resource
            if not resources:
                break
            if not fresh:
                raise Unavailable(f"GET {path}: a page came twice")
            start += len(resources)
        if len(seen) < total:
            raise Unavailable(f"GET {path}: {len(seen)} of {total} came; it changed meanwhile")


def _list(value: Any, what: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise Unavailable(f"GET {what} is no list")
    return value
