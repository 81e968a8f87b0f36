"""Input of the environment that nobody typed: one line or none, and never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from verity_common.config import DatabaseSettings, KafkaSettings
from verity_sdk.errors import Misconfigured
from verity_stream.postgres.pool import create_pool
from verity_stream.redaction import Secrets
from verity_stream.settings import load_connectors, load_settings, resolve_secrets

VERITY = str(Path(sys.executable).with_name("verity"))
LINKS = {
    "VERITY_WEB_PORT": "tcp://10.43.12.7:6066",
    "VERITY_WEB_SERVICE_HOST": "10.43.12.7",
    "VERITY_WEB_SERVICE_PORT": "6066",
    "VERITY_WEB_PORT_6066_TCP": "tcp://10.43.12.7:6066",
    "VERITY_KAFKA_PORT": "tcp://10.43.12.8:9092",
    "VERITY_KAFKA_SERVICE_HOST": "10.43.12.8",
    # A Service may be called like any setting.
    "VERITY_LOG_LEVEL_PORT": "tcp://10.43.12.9:80",
}


def verity(
    directory: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
    return subprocess.run(
        [VERITY, *arguments], env={**kept, **environment}, cwd=directory,
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip


def test_service_links_of_kubernetes_are_passed_over_with_a_hint(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in LINKS.items():
        monkeypatch.setenv(name, value)
    assert load_settings().web_port == 6066
    (line,) = [one for one in caplog.messages if "VERITY_WEB_PORT" in one]
    assert "enableServiceLinks" in line


def test_what_only_looks_like_a_service_link_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its companions somebody typed it."""
    monkeypatch.setenv("VERITY_WEB_PORT", "tcp://10.43.12.7:6066")
    with pytest.raises(Misconfigured, match="VERITY_WEB_PORT"):
        load_settings()


@pytest.mark.parametrize("port", ["99999", "abc", "0", "-1", ""])
def test_ports_that_are_none(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("VERITY_WEB_PORT", port)
    with pytest.raises(Misconfigured, match=r"^VERITY_WEB_PORT: [^\n]*$"):
        load_settings()


@pytest.mark.parametrize(
    "servers",
    ["localhost:abc", "localhost:99999", "localhost:0", ":9092", ",", "a:1,b:x", "kafka://a:9092",
     "SASL_SSL://a:9092", "a:b:c", "[::1", "[::1]:x", "a b:9092", "user:secret@a:9092"],
)  # fmt: skip
def test_brokers_that_are_no_addresses(monkeypatch: pytest.MonkeyPatch, servers: str) -> None:
    monkeypatch.setenv("VERITY_KAFKA__BOOTSTRAP_SERVERS", servers)
    with pytest.raises(Misconfigured, match=r"^VERITY_KAFKA__BOOTSTRAP_SERVERS: [^\n]*$") as caught:
        load_settings()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "servers",
    ["localhost", "localhost:9092", " a:1 ,\n b:2 ", "a:1,b:2,", "[::1]:9092", "::1", "10.0.0.1:1"],
)
def test_brokers_that_are_addresses(servers: str) -> None:
    assert KafkaSettings(bootstrap_servers=servers).bootstrap_servers == servers


def test_a_program_without_verity_stream_gets_the_same_line() -> None:
    with pytest.raises(ValidationError, match="host:port"):
        KafkaSettings(bootstrap_servers="localhost:abc")


@pytest.mark.parametrize("port", ["99999", "-1", "abc"])
async def test_a_database_port_that_is_none(port: str) -> None:
    dsn = SecretStr(f"postgresql://verity:s3cret@localhost:{port}/verity")
    with pytest.raises(Misconfigured, match="VERITY_DATABASE__DSN") as caught:
        await create_pool(DatabaseSettings(dsn=dsn))
    assert "s3cret" not in str(caught.value)


def test_a_byte_order_mark_is_read_over_everywhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\xef\xbb\xbfa-long-password\r\n")
    assert resolve_secrets(f"file:{secret}", "x", []) == "a-long-password"
    path = tmp_path / "verity.toml"
    text = f'[connectors.a]\r\ntype = "absent"\r\npassword = "file:{secret}"\r\n'
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    with pytest.raises(Misconfigured, match="absent"):  # It was read: only its type is wrong.
        load_connectors(path)
    secrets = Secrets()
    secrets.add_references(path)
    assert "a-long-password" not in secrets.hide("with a-long-password")


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"},
     {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LANG": "C"}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("arguments", [["--help"], ["check", "--help"], ["pause", "—…ſ"]], ids=str)
def test_a_terminal_that_can_not_show_everything(
    tmp_path: Path, environment: dict[str, str], arguments: list[str]
) -> None:
    answer = verity(tmp_path, *arguments, **environment)
    assert b"Traceback" not in answer.stderr
    assert answer.stdout or answer.stderr


@pytest.mark.parametrize("name", ["VERITY_CONFIG", "dir"])
def test_folders_that_can_not_be_used_are_one_line(tmp_path: Path, name: str) -> None:
    """A file where a folder should be: root, as tests may run, can write to any folder."""
    (tmp_path / "file").write_text("", "utf-8")
    place = str(tmp_path / "file" / "x")
    answer = (
        verity(tmp_path, "check", "--offline", VERITY_CONFIG=place)
        if name == "VERITY_CONFIG"
        else verity(tmp_path, "dev", "up", "--dir", place)
    )
    assert answer.returncode in (1, 2)
    assert b"Traceback" not in answer.stderr
    assert place.encode() in answer.stderr
    assert len(answer.stderr.splitlines()) == 1
