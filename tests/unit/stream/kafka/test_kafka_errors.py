"""Kafka's errors by who must act: the table against the broker's own list, and what it makes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from aiokafka import errors as kafka_errors

from verity_sdk.errors import Denied, Fenced, Misconfigured, Unavailable
from verity_stream.dev.stack.jars import cache_directory, class_path, load_lock
from verity_stream.dev.stack.java import find_java
from verity_stream.kafka.errors import VERDICTS, Cure, as_verity_error, error_of_code

LISTING = """
public class Listing {
    public static void main(String[] arguments) {
        for (var one : org.apache.kafka.common.protocol.Errors.values()) {
            System.out.println(one.code() + " " + one.name());
        }
    }
}
"""


def test_the_table_is_the_brokers_list(tmp_path: Path) -> None:
    lock = load_lock()
    source = tmp_path / "Listing.java"
    source.write_text(LISTING, "utf-8")
    jars = ":".join(map(str, class_path(lock, cache_directory())))
    answer = subprocess.run(
        [find_java(lock.java_minimum), "-cp", jars, str(source)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    pairs = [line.split() for line in answer.stdout.splitlines()]
    listed = {int(code): name for code, name in pairs}
    assert len(listed) > 130
    assert {code: verdict.name for code, verdict in VERDICTS.items()} == listed


@pytest.mark.parametrize("code", VERDICTS)
def test_what_needs_a_person_has_a_sentence_and_is_no_unavailable(code: int) -> None:
    verdict = VERDICTS[code]
    error = error_of_code(code, "asking")
    kinds = {
        Cure.WAIT: Unavailable,
        Cure.ANEW: Unavailable,
        Cure.STOP: Fenced,
        Cure.GRANT: Denied,
        Cure.CHANGE: Misconfigured,
    }
    assert type(error) is kinds[verdict.cure]
    assert verdict.sentence in str(error)
    assert "\n" not in str(error)
    if verdict.cure in (Cure.GRANT, Cure.CHANGE):
        assert verdict.sentence
    if type(error) is not Fenced:
        assert f"({code})" in str(error)
        assert "asking" in str(error)


def test_a_code_that_nobody_knows_is_shown_with_its_number() -> None:
    error = error_of_code(4711, "asking")
    assert type(error) is Unavailable
    assert "4711" in str(error)
    assert kafka_errors.for_code(4711) is not kafka_errors.for_code(4712)


def test_a_code_beyond_the_clients_list_keeps_its_number() -> None:
    assert kafka_errors.for_code(81).errno == 81
    assert kafka_errors.for_code(30) is kafka_errors.GroupAuthorizationFailedError


@pytest.mark.parametrize("code", [23, 81, 30, 112])
def test_what_the_client_only_quotes_is_found(code: int) -> None:
    """As its coordinator does it: `KafkaError(repr(err))`, and another one from that."""
    quoted = kafka_errors.KafkaError(repr(kafka_errors.for_code(code)()))
    outer = kafka_errors.KafkaError(f"Unexpected error during coordination {quoted!r}")
    outer.__cause__ = quoted
    error = as_verity_error(outer)
    assert isinstance(error, Denied | Misconfigured)
    assert "VERITY_APP_ID" in str(error)


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (kafka_errors.PolicyViolationError("segment.bytes"), Misconfigured, "by hand"),
        (kafka_errors.InvalidTimestampError(), Misconfigured, "clock"),
        (kafka_errors.InvalidSessionTimeoutError(), Misconfigured, "VERITY_SESSION_TIMEOUT_SEC"),
        (kafka_errors.UnsupportedCodecError("zstd"), Misconfigured, "codec"),
        (kafka_errors.InvalidProducerEpoch(), Unavailable, "(47)"),
        (kafka_errors.UnknownProducerId(), Unavailable, "(59)"),
        (kafka_errors.RebalanceInProgressError(), Unavailable, "(27)"),
        (kafka_errors.NotEnoughReplicasError(), Unavailable, "min.insync.replicas"),
    ],
)
def test_some_that_were_told_wrong(error: Exception, expected: type, text: str) -> None:
    assert type(as_verity_error(error)) is expected
    assert text in str(as_verity_error(error))
