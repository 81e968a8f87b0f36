"""What is hidden wherever something is shown, logged or stored."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from verity_common.config import DatabaseSettings
from verity_common.kafka import KafkaSettings
from verity_stream.redaction import HIDDEN, Secrets
from verity_stream.settings import StreamSettings


@pytest.fixture
def secrets() -> Secrets:
    return Secrets()


def test_a_secret_is_hidden_wherever_it_stands_and_however_often(secrets: Secrets) -> None:
    secrets.add("correct horse")
    assert secrets.hide("correct horse, (correct horse)") == f"{HIDDEN}, ({HIDDEN})"
    assert secrets.hide("nothing of it") == "nothing of it"


def test_one_secret_within_another_leaves_nothing_of_the_longer_one(secrets: Secrets) -> None:
    secrets.add("password", "password-and-more")
    assert secrets.hide("it is password-and-more") == f"it is {HIDDEN}"


@pytest.mark.parametrize(
    "address",
    ["postgresql://verity:s3cret%2Fword@db/verity", "amqp://u:s3cret%2Fword@h:1/x?y=z"],
)
def test_the_password_of_an_address_is_hidden_alone_as_written_and_decoded(
    secrets: Secrets, address: str
) -> None:
    secrets.add(address)
    for shown in (address, "s3cret%2Fword", "s3cret/word"):
        assert secrets.hide(f"<{shown}>") == f"<{HIDDEN}>"


def test_what_is_too_short_to_be_told_from_words_stays(secrets: Secrets) -> None:
    secrets.add("verity")
    assert secrets.hide("verity check") == "verity check"


def test_what_the_process_logs_in_with_is_hidden(secrets: Secrets) -> None:
    settings = StreamSettings(
        kafka=KafkaSettings(
            security_protocol="SASL_SSL",
            sasl_mechanism="PLAIN",
            sasl_username="somebody",
            sasl_password=SecretStr("of-the-broker"),
        ),
        database=DatabaseSettings(dsn=SecretStr("postgresql://v:of-the-database@db/v")),
    )
    secrets.add_settings(settings)
    said = "of-the-broker of-the-database postgresql://v:of-the-database@db/v"
    assert secrets.hide(said) == f"{HIDDEN} {HIDDEN} {HIDDEN}"


def test_what_references_refer_to_is_hidden_at_any_depth_and_no_other_text(
    secrets: Secrets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_API_KEY", "from-the-environment")
    (tmp_path / "key").write_text("from-the-file\n")
    toml = tmp_path / "verity.toml"
    toml.write_text(
        '[connectors.a]\ntype = "a-type-by-name"\n'
        'keys = [{one = "env:TEST_API_KEY"}]\n'
        f'[connectors.a.more]\nkey = "file:{tmp_path}/key"\nlost = "env:NOT_SET"\n'
    )
    secrets.add_references(toml)
    assert secrets.hide("from-the-environment from-the-file") == f"{HIDDEN} {HIDDEN}"
    assert secrets.hide("a-type-by-name") == "a-type-by-name"


@pytest.mark.parametrize("text", ["not = [toml", None])
def test_a_file_that_cant_be_read_hides_nothing_and_raises_nothing(
    secrets: Secrets, tmp_path: Path, text: str | None
) -> None:
    path = tmp_path / "verity.toml"
    if text is not None:
        path.write_text(text)
    secrets.add_references(path)
    assert secrets.hide("anything at all") == "anything at all"
