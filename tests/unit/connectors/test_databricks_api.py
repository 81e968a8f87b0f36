"""Listings, and work on their items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from connectors.databricks.api import RestApi
from verity_sdk.errors import Unavailable
from verity_sdk.http import HttpClient


class Scripted(RestApi):
    """Answers with these bodies, one after the other."""

    def __init__(self, *bodies: dict[str, Any]) -> None:
        super().__init__(cast("HttpClient", None), "https://x")
        self.bodies = list(bodies)
        self.asked: list[dict[str, str]] = []

    async def object(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        self.asked.append(dict(params or {}))
        return self.bodies.pop(0)


def page(total: int, *ids: str) -> dict[str, Any]:
    return {"totalResults": total, "Resources": [{"id": one} for one in ids]}


async def scim(*bodies: dict[str, Any]) -> list[str]:
    return [one["id"] async for one in Scripted(*bodies).scim("/Groups", "id")]


async def test_a_scim_listing_ends_with_an_empty_page() -> None:
    assert await scim(page(3, "a", "b"), page(3, "c"), {"totalResults": 3}) == ["a", "b", "c"]
    assert await scim({"totalResults": 0, "Resources": []}) == []


async def test_a_resource_that_moves_to_the_next_page_comes_once() -> None:
    assert await scim(page(3, "a", "b"), page(3, "b", "c"), page(3)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "bodies",
    [
        [page(3, "a", "b"), page(3)],
        [page(3, "a"), page(3, "a")],
        [{"totalResults": 1, "Resources": [{}]}],
        [{"totalResults": 1, "Resources": "a"}],
        [{"totalResults": 1, "Resources": [7]}],
    ],
)
async def test_a_scim_listing_that_is_not_whole_is_unavailable(bodies: list[Any]) -> None:
    with pytest.raises(Unavailable):
        await scim(*bodies)


async def test_a_listing_goes_on_behind_an_empty_page_and_with_its_own_parameters() -> None:
    api = Scripted({"next_page_token": "1"}, {"x": [{"n": 1}], "next_page_token": "2"}, {"x": []})
    assert [one async for one in api.listing("/p", "x", {"q": "1"})] == [{"n": 1}]
    assert api.asked == [{"q": "1"}, {"q": "1", "page_token": "1"}, {"q": "1", "page_token": "2"}]


@pytest.mark.parametrize(
    "bodies",
    [
        [{"next_page_token": "1"}, {"next_page_token": "2"}, {"next_page_token": "1"}],
        [{"next_page_token": 1}],
        [{"x": {}}],
        [{"x": [7]}],
    ],
)
async def test_a_listing_that_is_not_understood_is_unavailable(bodies: list[Any]) -> None:
    with pytest.raises(Unavailable):
        _ = [one async for one in Scripted(*bodies).listing("/p", "x")]
