"""The settings of a Databricks workspace."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from connectors.databricks.settings import Settings

BASE = {"connector_id": "dbx", "host": "https://adb-1.azuredatabricks.net", "warehouse_id": "wh"}
PAT = {"token": "dapi-s3cret"}
OAUTH = {"client_id": "c", "client_secret": "s3cret"}
AZURE = {"azure_tenant_id": "t", "azure_client_id": "c", "azure_client_secret": "s3cret"}


@pytest.mark.parametrize("login", [PAT, OAUTH, AZURE])
def test_one_way_to_log_in_is_enough(login: dict[str, str]) -> None:
    settings = Settings.model_validate({**BASE, **login})
    assert "s3cret" not in repr(settings)
    assert settings.principal == login.get("client_id", login.get("azure_client_id", "<principal>"))


@pytest.mark.parametrize(
    "login",
    [
        {},
        {**PAT, **OAUTH},
        {**OAUTH, **AZURE},
        {**PAT, **OAUTH, **AZURE},
        {"client_id": "c"},
        {"client_secret": "s3cret"},
        {"azure_tenant_id": "t", "azure_client_id": "c"},
        {**PAT, "client_id": "c"},
    ],
)
def test_none_or_two_or_half_of_one_is_refused_without_showing_it(login: dict[str, str]) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({**BASE, **login})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "http://adb-1.azuredatabricks.net"},
        {"host": "https://adb-1.azuredatabricks.net/sql"},
        {"host": "https://user:s3cret@adb-1.azuredatabricks.net"},
        {"host": "adb-1.azuredatabricks.net"},
        {"host": "https://"},
        {"host": "https://x:port"},
        {"warehouse_id": "../x"},
        {"wait_timeout": "3s"},
        {"wait_timeout": "51s"},
        {"wait_timeout": 7.5},
        {"wait_timeout": "30s", "http": {"read_timeout": "30s"}},
        {"disposition": "arrow"},
        {"privilege_views": ["secrets"]},
        {"owner_views": ["tables; DROP"]},
        {"workspace_objects": ["folders"]},
        {"statement_timeout": 0},
        {"metastore_id": "a/b"},
        {"unknown": 1},
    ],
)
def test_what_can_not_work_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({**BASE, **PAT, **changes})
    assert "s3cret" not in str(caught.value)


def test_a_slash_at_the_end_of_the_host_does_not_matter_and_the_loopback_may_be_plain() -> None:
    found = Settings.model_validate({**BASE, **PAT, "host": "http://127.0.0.1:8080/"})
    assert found.host == "http://127.0.0.1:8080"
    assert found.lookback == timedelta(hours=4)
