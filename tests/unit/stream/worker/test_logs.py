"""Logs: one object a line, levels as set, and never a credential from a traceback."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from verity_stream.settings import StreamSettings
from verity_stream.worker import logs

PACKAGES = ("verity_stream", "verity_sdk", "verity_common", "connectors")


@pytest.fixture
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    loggers = [logging.getLogger(name) for name in (*PACKAGES, "verity_stream.faust_base.fixes")]
    levels = [logger.level for logger in loggers]
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for logger, before in zip(loggers, levels, strict=True):
        logger.setLevel(before)
    structlog.reset_defaults()


def configured(**settings: Any) -> io.StringIO:
    logs.configure(StreamSettings(**settings))
    (handler,) = logging.getLogger().handlers
    assert isinstance(handler, logging.StreamHandler)
    stream = io.StringIO()
    handler.setStream(stream)
    return stream


def fail() -> None:
    password = "hunter" + "2"
    raise ValueError(f"{len(password)} characters")


def log_a_failure() -> None:
    log = structlog.get_logger("verity_stream.test")
    try:
        fail()
    except ValueError:
        log.exception("it.failed", connector_id="acme-1")


@pytest.mark.usefixtures("_restored")
def test_a_line_is_a_json_object() -> None:
    stream = configured(log_format="json")
    structlog.get_logger("verity_stream.test").info("relay.page", events=3)
    logging.getLogger("connectors.acme").warning("plain %s", "text")
    logging.getLogger("aiokafka").info("not shown")
    logging.getLogger("verity_stream.test").debug("not shown")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first["timestamp"].endswith("Z")
    del first["timestamp"], second["timestamp"]
    assert first == {
        "message": "relay.page",
        "events": 3,
        "level": "info",
        "logger": "verity_stream.test",
    }
    assert second == {"message": "plain text", "level": "warning", "logger": "connectors.acme"}


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_shows_no_local_variables(log_format: str) -> None:
    """They hold passwords, tokens and addresses with credentials."""
    stream = configured(log_format=log_format)
    log_a_failure()
    text = stream.getvalue()
    assert "7 characters" in text
    assert "in fail" in text or '"name": "fail"' in text
    assert "hunter2" not in text
    assert len(text) < 20_000


@pytest.mark.usefixtures("_restored")
def test_json_on_a_pipe_and_the_level_as_set() -> None:
    stream = configured(log_format="auto", log_level="error")
    structlog.get_logger("verity_stream.test").warning("not.shown")
    structlog.get_logger("verity_stream.test").error("shown")
    assert json.loads(stream.getvalue())["message"] == "shown"
