"""URLs in settings: one rule for all connectors."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from verity_sdk.settings import ConnectorSettings, Origin, Url, UrlOrDefault


class Sample(ConnectorSettings):
    url: Url


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://api.example.com", "https://api.example.com"),
        ("https://api.example.com:8443/v2/", "https://api.example.com:8443/v2"),
        ("http://127.0.0.1:80/x", "http://127.0.0.1:80/x"),
        ("http://localhost", "http://localhost"),
        ("http://[::1]:9", "http://[::1]:9"),
    ],
)
def test_a_url_is_kept_without_a_slash_at_its_end(given: str, kept: str) -> None:
    assert TypeAdapter(Url).validate_python(given) == kept
    assert TypeAdapter(UrlOrDefault).validate_python(given) == kept


@pytest.mark.parametrize(
    "given",
    [
        "api.example.com",
        "ftp://api.example.com",
        "http://api.example.com",
        "http://127.0.0.1.example.com",
        "https://",
        "https://user@api.example.com",
        "https://user:s3cr3t@api.example.com",
        "https://api.example.com?x=s3cr3t",
        "https://api.example.com#x",
        "https://api.example.com:port",
        "https://[::1",
    ],
)
@pytest.mark.parametrize("kind", [Url, UrlOrDefault, Origin])
def test_what_no_request_could_go_to_is_refused_and_not_shown(given: str, kind: Any) -> None:
    with pytest.raises(ValidationError, match="not a URL of the form"):
        TypeAdapter(kind).validate_python(given)
    with pytest.raises(ValidationError) as raised:
        Sample.model_validate({"connector_id": "a", "url": given})
    assert "s3cr3t" not in str(raised.value)


def test_empty_is_a_default_only_where_there_is_one() -> None:
    assert TypeAdapter(UrlOrDefault).validate_python("") == ""
    with pytest.raises(ValidationError):
        TypeAdapter(Url).validate_python("")


def test_an_origin_has_no_path() -> None:
    assert TypeAdapter(Origin).validate_python("https://adb-1.example.com/") == (
        "https://adb-1.example.com"
    )
    with pytest.raises(ValidationError, match="without a path"):
        TypeAdapter(Origin).validate_python("https://adb-1.example.com/x")
