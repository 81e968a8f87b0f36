"""The files for Docker, which cannot be run here: well formed, and in step with the rest.

They were checked against the Compose specification's JSON schema once by hand (decision 0005).
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from verity_stream.dev.stack import DATABASE_VARIABLE, KAFKA_VARIABLE
from verity_stream.dev.stack.jars import load_lock
from verity_stream.dev.stack.kafka import BROKER_SETTINGS
from verity_stream.dev.stack.postgres import SERVER_SETTINGS

ROOT = Path(__file__).parents[4]
DOCKERFILE = ROOT / "Dockerfile"


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> Any:
    return compose["services"]


def test_versions_are_those_of_the_stack(services: dict[str, Any]) -> None:
    lock = load_lock()
    assert services["kafka"]["image"] == f"apache/kafka:{lock.kafka_version}"
    assert services["postgres"]["image"] == f"postgres:{lock.postgres_major}"


def test_postgres_writes_the_same_audit_log_as_the_stack(services: dict[str, Any]) -> None:
    program, *options = services["postgres"]["command"]
    assert program == "postgres"
    assert {option[:2] for option in options} == {"-c"}
    assert dict(option[2:].split("=", 1) for option in options) == {
        key: value for key, value in SERVER_SETTINGS.items() if key.startswith("log")
    }


def test_broker_settings_agree_with_the_stack(services: dict[str, Any]) -> None:
    """Names are translated as the image does it; listeners and paths differ by nature."""
    settings = {
        key.removeprefix("KAFKA_").lower().replace("_", "."): value
        for key, value in services["kafka"]["environment"].items()
    }
    shared = settings.keys() & BROKER_SETTINGS.keys() - {"listener.security.protocol.map"}
    assert {"auto.create.topics.enable", "transaction.state.log.min.isr"} <= shared
    assert {key: settings[key] for key in shared} == {key: BROKER_SETTINGS[key] for key in shared}


def test_worker_scales(services: dict[str, Any]) -> None:
    """`--scale worker=3` fails on a container name or a port of the host."""
    assert not {"container_name", "ports", "hostname"} & services["worker"].keys()


def test_worker_finds_both_servers_by_the_fixed_names(services: dict[str, Any]) -> None:
    environment = services["worker"]["environment"]
    listeners = services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert f"INTERNAL://{environment[KAFKA_VARIABLE]}," in listeners
    login = services["postgres"]["environment"]
    assert environment[DATABASE_VARIABLE] == (
        f"postgresql://{login['POSTGRES_USER']}:{login['POSTGRES_PASSWORD']}"
        f"@postgres/{login['POSTGRES_DB']}"
    )
    (mount,) = services["worker"]["volumes"]
    assert environment["VERITY_CONFIG"] == mount["target"]


def test_worker_waits_for_healthy_servers(services: dict[str, Any]) -> None:
    for name in ("kafka", "postgres"):
        assert services["worker"]["depends_on"][name] == {"condition": "service_healthy"}
        assert services[name]["healthcheck"]["test"][0] == "CMD"


def test_data_is_in_named_volumes_and_ports_are_on_loopback(compose: dict[str, Any]) -> None:
    for name in ("kafka", "postgres"):
        service = compose["services"][name]
        volume, _ = service["volumes"][0].split(":")
        assert volume in compose["volumes"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_image_runs_the_worker_as_a_plain_user() -> None:
    lines = DOCKERFILE.read_text("utf-8").splitlines()
    last_stage = lines[max(n for n, line in enumerate(lines) if line.startswith("FROM ")) :]
    assert 'CMD ["faust", "-A", "verity_stream", "worker"]' in last_stage
    (user,) = [line.split()[1] for line in last_stage if line.startswith("USER ")]
    assert int(user) > 0


def test_build_context_has_all_that_the_dockerfile_copies() -> None:
    """.dockerignore excludes everything but a list: whatever is copied must be on it."""
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines()
        if line.startswith("!")
    }
    copied = [
        source.removeprefix("./")
        for line in DOCKERFILE.read_text("utf-8").splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    ]
    assert copied
    assert set(copied) == allowed
    assert all((ROOT / source).exists() for source in copied)


def test_dockerfile_passes_hadolint() -> None:
    assert hadolint(DOCKERFILE.read_text("utf-8")) == ""


def test_hadolint_is_really_looking() -> None:
    assert "DL3002" in hadolint("FROM debian:13\nUSER root\n")


def hadolint(dockerfile: str) -> str:
    """What hadolint, from its wheel, has to say."""
    program = Path(sys.executable).with_name("hadolint")
    result = subprocess.run(
        [program, "--no-color", "-"], input=dockerfile, capture_output=True, text=True, timeout=60
    )
    return result.stdout + result.stderr
