"""Settings from the environment: names, defaults, faults, and that no secret is shown."""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from pydantic import ValidationError

from verity_common.config import VerityConfig
from verity_common.kafka import KafkaSettings, _key_bytes, _value_bytes, create_producer

SECRET = "hunter2-and-more"


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("VERITY_"):
            monkeypatch.delenv(name)


def test_defaults_reach_a_stack_on_this_machine() -> None:
    config = VerityConfig()
    assert config.kafka.bootstrap_servers == "localhost:9092"
    assert config.kafka.replication_factor == 1
    assert config.kafka.max_record_bytes == 1_000_000
    assert config.database.dsn.get_secret_value() == "postgresql://verity:verity@localhost/verity"


def test_two_underscores_lead_into_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERITY_KAFKA__BOOTSTRAP_SERVERS", "one:1,two:2")
    monkeypatch.setenv("VERITY_KAFKA__MAX_RECORD_BYTES", "2048")
    monkeypatch.setenv("VERITY_DATABASE__DSN", "postgresql://db/x")
    config = VerityConfig()
    assert config.kafka.bootstrap_servers == "one:1,two:2"
    assert config.kafka.max_record_bytes == 2048
    assert config.database.dsn.get_secret_value() == "postgresql://db/x"


def test_variables_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERITY_CONFIG", "verity.toml")
    monkeypatch.setenv("VERITY_SOMETHING_ELSE", "1")
    VerityConfig()


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("VERITY_KAFKA__SECURITY_PROTOKOL", "SSL", "security_protokol"),
        ("VERITY_KAFKA__SECURITY_PROTOCOL", "TLS", "security_protocol"),
        ("VERITY_KAFKA__SECURITY_PROTOCOL", "SASL_SSL", "sasl_username and sasl_password"),
        ("VERITY_KAFKA__BOOTSTRAP_SERVERS", "", "bootstrap_servers"),
        ("VERITY_KAFKA__REPLICATION_FACTOR", "0", "replication_factor"),
        ("VERITY_DATABASE__POOL_SIZE_MAX", "many", "pool_size_max"),
        ("VERITY_DATABASE__POOL_SIZE_MIN", "11", "pool_size_min"),
    ],
)
def test_a_fault_is_named(
    variable: str, value: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValidationError) as caught:
        VerityConfig()
    assert named in str(caught.value)


def test_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERITY_KAFKA__SASL_PASSWORD", SECRET)
    monkeypatch.setenv("VERITY_DATABASE__DSN", f"postgresql://verity:{SECRET}@db/verity")
    config = VerityConfig()
    assert SECRET not in f"{config!r} {config} {config.kafka!r} {config.database!r}"
    # A fault elsewhere shows the input of the whole group unless that is switched off.
    monkeypatch.setenv("VERITY_KAFKA__SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("VERITY_DATABASE__POOL_SIZE_MIN", "99")
    with pytest.raises(ValidationError) as caught:
        VerityConfig()
    assert SECRET not in f"{caught.value} {caught.value!r}"
    with pytest.raises(ValidationError) as caught:
        KafkaSettings(security_protocol="SASL_SSL", sasl_password=SECRET)
    assert SECRET not in f"{caught.value} {caught.value!r}"


def test_options_of_a_plain_connection() -> None:
    settings = KafkaSettings(request_timeout_seconds=1.5)
    assert settings.client_options() == {
        "bootstrap_servers": "localhost:9092",
        "security_protocol": "PLAINTEXT",
        "request_timeout_ms": 1500,
    }


def test_options_of_a_protected_connection() -> None:
    settings = KafkaSettings(
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="verity",
        sasl_password=SECRET,
        client_id="verity-1",
    )
    options = settings.client_options()
    context = options.pop("ssl_context")
    assert isinstance(context, ssl.SSLContext)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert options == {
        "bootstrap_servers": "localhost:9092",
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "verity",
        "sasl_plain_password": SECRET,
        "request_timeout_ms": 30_000,
        "client_id": "verity-1",
    }


async def test_any_client_takes_the_options() -> None:
    settings = KafkaSettings(
        security_protocol="SASL_SSL",
        sasl_username="verity",
        sasl_password=SECRET,
        client_id="verity-1",
    )
    options = settings.client_options()
    await AIOKafkaProducer(**options).stop()
    await AIOKafkaConsumer(**options).stop()
    await AIOKafkaAdminClient(**options).close()


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_authorities_that_cannot_be_used_are_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    settings = KafkaSettings(security_protocol="SSL", ssl_cafile=str(path))
    with pytest.raises(ValueError, match="VERITY_KAFKA__SSL_CAFILE"):
        settings.client_options()


def test_values_are_written_as_json() -> None:
    assert _value_bytes({"é": 1}) == '{"é":1}'.encode()
    assert _value_bytes({"big": 2**70}) == b'{"big":1180591620717411303424}'
    assert _value_bytes(None) is None
    for refused in ({"x": object()}, {"x": "\ud800"}):
        with pytest.raises((TypeError, ValueError)):
            _value_bytes(refused)


def test_keys_are_text_or_bytes() -> None:
    assert _key_bytes("é") == "é".encode()
    assert _key_bytes(b"x") == b"x"
    assert _key_bytes(None) is None


async def test_an_unreachable_broker_is_named_with_its_setting() -> None:
    listener = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    listener.close()
    await listener.wait_closed()
    settings = KafkaSettings(bootstrap_servers=f"127.0.0.1:{port}")
    with pytest.raises(ConnectionError) as caught:
        async with create_producer(settings):
            pass
    assert f"VERITY_KAFKA__BOOTSTRAP_SERVERS=127.0.0.1:{port}" in str(caught.value)


async def test_a_compression_without_its_package_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_lz4 = (lambda: False, 3)
    known = AIOKafkaProducer._COMPRESSORS  # noqa: SLF001 - aiokafka's: as if the package lacked
    monkeypatch.setitem(known, "lz4", no_lz4)
    with pytest.raises(ValueError, match="VERITY_KAFKA__COMPRESSION_TYPE"):
        async with create_producer(KafkaSettings(compression_type="lz4")):
            pass
