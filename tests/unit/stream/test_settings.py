"""Settings: every fault in one message, and never a secret in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, SecretStr

from verity_sdk.connector_base import BaseConnector, RawEvent
from verity_sdk.errors import Misconfigured
from verity_sdk.settings import Duration, parse_duration
from verity_stream import settings as settings_module
from verity_stream.settings import ConnectorSpec, load_connectors, load_settings

SECRET = "s3cret-value"


class Dictionary(BaseConnector):
    """A connector without a settings model."""

    lookback = timedelta(minutes=7)

    async def stream_audit_events(self, since: datetime) -> AsyncIterator[RawEvent]:
        return
        yield

    async def snapshot_permissions(self) -> AsyncIterator[Any]:
        return
        yield


class Strict(Dictionary):
    """A connector with one that refuses what it does not know."""

    PLATFORM = "acme"

    class Settings(BaseModel):
        model_config = ConfigDict(extra="forbid")
        connector_id: str
        url: str
        token: SecretStr
        retries: int = 3
        pause: Duration = timedelta(seconds=1)
        lookback: Duration = timedelta(0)


class Anonymous(Dictionary):
    """A model that has no connector_id."""

    class Settings(BaseModel):
        url: str


class Abstract(BaseConnector):
    """Lacks both methods."""


class BadPlatform(Dictionary):
    """Its name can't be a topic's."""

    PLATFORM = "a/b"


NOT_A_CLASS = 7


@pytest.fixture(autouse=True)
def _types(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "dict": "Dictionary",
        "strict": "Strict",
        "anonymous": "Anonymous",
        "abstract": "Abstract",
        "bad_platform": "BadPlatform",
        "not_a_class": "NOT_A_CLASS",
        "absent": "Nothing",
    }
    points = [
        EntryPoint(name, f"{__name__}:{value}", "verity.connectors")
        for name, value in names.items()
    ]
    points.append(EntryPoint("no_module", "no_such_module_here:X", "verity.connectors"))
    monkeypatch.setattr(settings_module, "entry_points", lambda group: points)


def load(tmp_path: Path, text: str) -> list[ConnectorSpec]:
    path = tmp_path / "verity.toml"
    path.write_text(text, "utf-8")
    return load_connectors(path)


def message(tmp_path: Path, text: str) -> str:
    with pytest.raises(Misconfigured) as caught:
        load(tmp_path, text)
    return str(caught.value)


# verity.toml


def test_without_a_model_the_table_is_handed_over_with_the_id(tmp_path: Path) -> None:
    (spec,) = load(tmp_path, '[connectors.a-1]\ntype = "dict"\nurl = "u"\npoll_every = "5m"\n')
    assert spec.config == {
        "connector_id": "a-1",
        "type": "dict",
        "url": "u",
        "poll_every": "5m",
    }
    assert (spec.connector_id, spec.platform, spec.cls) == ("a-1", "dict", Dictionary)
    assert spec.options.poll_every == timedelta(minutes=5)
    assert spec.lookback == timedelta(minutes=7)


def test_a_model_gets_its_own_settings_and_none_of_the_common_ones(tmp_path: Path) -> None:
    (spec,) = load(
        tmp_path,
        '[connectors.a-1]\ntype = "strict"\npoll_every = 2\nurl = "u"\ntoken = "t"\n'
        'pause = "500ms"\nlookback = "1h"\n',
    )
    assert spec.config == Strict.Settings(
        connector_id="a-1", url="u", token="t", pause=0.5, lookback=3600
    )
    assert spec.platform == "acme"
    assert spec.lookback == timedelta(hours=1)


@pytest.mark.parametrize(("said", "seconds"), [("", 60), ('lookback = "0s"\n', 0)])
def test_a_plain_connector_looks_back_a_minute_unless_zero_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, seconds: int
) -> None:
    monkeypatch.delattr(Dictionary, "lookback")
    (spec,) = load(tmp_path, f'[connectors.a-1]\ntype = "anonymous"\nurl = "u"\n{said}')
    assert spec.lookback == timedelta(seconds=seconds)


def test_a_model_without_an_id_is_not_given_one(tmp_path: Path) -> None:
    (spec,) = load(tmp_path, '[connectors.a-1]\ntype = "anonymous"\nurl = "u"\n')
    assert spec.config == Anonymous.Settings(url="u")


def test_every_fault_of_the_file_stands_in_one_message(tmp_path: Path) -> None:
    text = message(
        tmp_path,
        """
        [connector.typo]
        [connectors."bad id"]
        type = "dict"
        [connectors.none]
        [connectors.unknown]
        type = "nope"
        [connectors.options]
        type = "dict"
        poll_every = "soon"
        partition_by = "colour"
        [connectors.own]
        type = "strict"
        retries = "many"
        extra = 1
        [connectors.abstract]
        type = "abstract"
        [connectors.absent]
        type = "absent"
        [connectors.no-module]
        type = "no_module"
        [connectors.not-a-class]
        type = "not_a_class"
        [connectors.bad-platform]
        type = "bad_platform"
        [connectors.secrets]
        type = "dict"
        token = "env:VERITY_TEST_NOT_SET"
        deep = { list = ["file:/nowhere/at/all"] }
        """,
    )
    for part in (
        "unknown table [connector]",
        "[connectors.bad id]",
        "[connectors.none] type: Field required",
        "[connectors.unknown] type: no connector type 'nope'",
        "[connectors.options] poll_every:",
        "[connectors.options] partition_by:",
        "[connectors.own] url: Field required",
        "[connectors.own] token: Field required",
        "[connectors.own] retries:",
        "[connectors.own] extra:",
        "stream_audit_events",
        "[connectors.absent] type:",
        "[connectors.no-module] type: no_such_module_here:X can't be imported",
        "is not a subclass of BaseConnector",
        "PLATFORM 'a/b'",
        "[connectors.secrets] token: the environment variable VERITY_TEST_NOT_SET is not set",
        "[connectors.secrets] deep.list[0]: the file /nowhere/at/all can't be read",
    ):
        assert part in text


@pytest.mark.parametrize(
    "data", [b"not toml [", b"connectors = 5", b"[connectors]\na = 5", b"a = '\xff'"]
)
def test_a_file_that_is_none_is_one_clear_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "verity.toml"
    path.write_bytes(data)
    with pytest.raises(Misconfigured, match=r"verity\.toml|connectors"):
        load_connectors(path)


def test_a_missing_file_names_its_variable(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.toml", tmp_path):
        with pytest.raises(Misconfigured, match="VERITY_CONFIG"):
            load_connectors(path)


def test_secrets_are_resolved_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERITY_TEST_TOKEN", SECRET)
    (tmp_path / "token").write_text(SECRET + "\n", "utf-8")
    table = f"""
        [connectors.a]
        type = "dict"
        token = "env:VERITY_TEST_TOKEN"
        deep = {{ list = ["file:{tmp_path}/token", "plain:text", 5] }}
        """
    (spec,) = load(tmp_path, table)
    assert spec.config["token"] == SECRET
    assert spec.config["deep"] == {"list": [SECRET, "plain:text", 5]}
    assert SECRET not in message(
        tmp_path,
        '[connectors.a]\ntype = "strict"\nretries = "env:VERITY_TEST_TOKEN"\n'
        'url = ["env:VERITY_TEST_TOKEN"]\ntoken = "env:VERITY_TEST_TOKEN"\n'
        'pause = "env:VERITY_TEST_TOKEN"\nlookback = 0\n',
    )


def test_a_binary_secret_file_is_named_not_shown(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xff" + SECRET.encode())
    text = message(tmp_path, f'[connectors.a]\ntype = "dict"\ntoken = "file:{tmp_path}/token"\n')
    assert "not UTF-8" in text
    assert SECRET not in text


# The environment


def test_faults_of_the_environment_name_the_variable_and_not_its_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VERITY_WEB_PORT", SECRET)
    monkeypatch.setenv("VERITY_KAFKA__REPLICATION_FACTOR", SECRET)
    monkeypatch.setenv("VERITY_TRANSACTION_TIMEOUT", SECRET)
    with pytest.raises(Misconfigured) as caught:
        load_settings()
    text = str(caught.value)
    assert len(text.splitlines()) == 3
    for name in ("WEB_PORT", "KAFKA__REPLICATION_FACTOR", "TRANSACTION_TIMEOUT"):
        assert f"VERITY_{name}:" in text
    assert SECRET not in text


def test_a_group_that_is_no_json_is_misconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERITY_KAFKA", SECRET)
    with pytest.raises(Misconfigured, match="kafka") as caught:
        load_settings()
    assert SECRET not in str(caught.value)


# Durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("500ms", 0.5), ("30s", 30), ("5m", 300), ("24h", 86400), ("2d", 172800)),
        *((" 1.5h ", 5400), ("90", 90), (90, 90), (0.25, 0.25), (0, 0)),
    ],
)
def test_durations(text: Any, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "value", ["soon", "", "-5s", "5 m", "5w", True, "99999999999999d", -1, -0.5]
)
def test_what_is_no_duration(value: Any) -> None:
    """A negative lookback would skip events."""
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(value)


@given(st.floats() | st.integers() | st.text(max_size=8))
def test_any_value_is_a_duration_or_a_settings_error(value: Any) -> None:
    try:
        duration = parse_duration(value)
    except ValueError:
        return
    assert isinstance(duration, timedelta)
    assert duration >= timedelta(0)


def test_a_codec_that_is_none_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERITY_KAFKA__COMPRESSION_TYPE", "brotli")
    with pytest.raises(Misconfigured, match=r"^VERITY_KAFKA__COMPRESSION_TYPE: [^\n]*zstd[^\n]*$"):
        load_settings()
