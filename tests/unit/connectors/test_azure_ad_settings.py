"""The settings of a tenant: what is refused before anything starts, and what is derived."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from connectors.azure_ad import AzureAdConnector, Settings
from verity_sdk import Misconfigured

SECRET = "s3cret-do-not-show"
GOOD: dict[str, Any] = {
    "connector_id": "entra",
    "tenant_id": "contoso.example",
    "client_id": "11111111-2222-3333-4444-555555555555",
    "client_secret": SECRET,
}


def connector(**changes: Any) -> AzureAdConnector:
    table = {name: value for name, value in {**GOOD, **changes}.items() if value is not ...}
    return AzureAdConnector(table, None, None)


def test_the_least_there_must_be() -> None:
    """Defaults are those of the public cloud and a premium tenant."""
    settings = connector().settings
    assert settings.identity.token_url == (
        "https://login.microsoftonline.com/contoso.example/oauth2/v2.0/token"
    )
    assert settings.scope == "https://graph.microsoft.com/.default"
    assert settings.sign_ins == ["interactive"]
    assert settings.retention == timedelta(days=30)


def test_the_seen_window_is_as_long_as_the_lookback() -> None:
    """Else what is read again would be published again."""
    assert connector().settings.lookback == AzureAdConnector.lookback == timedelta(hours=24)


@pytest.mark.parametrize(
    ("cloud", "login", "graph"),
    [
        ("usgov", "https://login.microsoftonline.us", "https://graph.microsoft.us"),
        ("china", "https://login.chinacloudapi.cn", "https://microsoftgraph.chinacloudapi.cn"),
    ],
)
def test_a_national_cloud_has_its_own_hosts(cloud: str, login: str, graph: str) -> None:
    """The token is for that cloud's Graph; a URL that is named overrides."""
    settings = connector(cloud=cloud).settings
    assert (settings.login, settings.graph) == (login, graph)
    assert settings.scope == f"{graph}/.default"
    other = connector(cloud=cloud, graph_url="https://dod-graph.microsoft.us/").settings
    assert other.graph == "https://dod-graph.microsoft.us"
    assert other.login == login


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tenant_id": "common"}, "tenant_id"),
        ({"tenant_id": "a/b"}, "tenant_id"),
        ({"tenant_id": ...}, "tenant_id"),
        ({"client_id": ...}, "client_id is missing"),
        ({"client_id": "a b"}, "client_id"),
        ({"client_secret": ...}, "client_secret is missing"),
        ({"credential": "azure"}, "client_secret is for"),
        ({"cloud": "mars"}, "cloud"),
        ({"graph_url": "http://graph.example"}, "graph_url"),
        ({"graph_url": "https://user@graph.example"}, "graph_url"),
        ({"login_url": "https://[bad"}, "login_url"),
        ({"sign_ins": ["everything"]}, "sign_ins"),
        ({"sign_ins": ["interactive", "interactive"]}, "once"),
        ({"retention": "0s"}, "retention"),
        ({"slice_pages": 0}, "slice_pages"),
        ({"group_members_from": "v2"}, "group_members_from"),
        ({"http": {"proxyy": 1}}, "http.proxyy"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_what_is_refused_is_named_and_not_shown(changes: dict[str, Any], named: str) -> None:
    """The message names the setting and never its value."""
    with pytest.raises(Misconfigured, match=named) as raised:
        connector(**changes)
    assert SECRET not in str(raised.value)


def test_settings_that_are_not_a_table() -> None:
    """A message, not a traceback."""
    with pytest.raises(Misconfigured, match="not a table"):
        AzureAdConnector("secret", None, None)


def test_http_is_for_the_loopback_only() -> None:
    """A fake may be spoken to in clear; a tenant never."""
    for url in ("http://127.0.0.1:8080", "http://localhost:1", "http://[::1]:2"):
        assert connector(graph_url=url, login_url=url).settings.graph == url


def test_the_secret_is_in_no_text() -> None:
    """Neither in the settings nor in the connector."""
    one = connector()
    assert SECRET not in repr(one.settings) + str(one.settings) + repr(vars(one))
    assert isinstance(one.settings, Settings)
