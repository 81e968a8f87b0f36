"""A limit on repeated log lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from verity_stream.faust_base.log_limits import MESSAGES_MAX, RepeatLimit, install


def record(name: str, message: str = "Unable to connect to %s", *args: object) -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, "file", 1, message, args or ("broker",), None)


class Clock:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_a_message_passes_a_few_times_a_window_and_then_says_how_often_it_came() -> None:
    """What was held back is counted in the first line of the next window."""
    clock = Clock()
    limit = RepeatLimit("aiokafka", lines_max=2, window_seconds=10, clock=clock)
    passed = [limit.filter(record("aiokafka.conn", "Unable to connect to %s", n)) for n in range(5)]
    assert passed == [True, True, False, False, False]
    clock.seconds += 10
    next_one = record("aiokafka.conn")
    assert limit.filter(next_one)
    assert next_one.getMessage() == "Unable to connect to broker (3 more like this were not logged)"


def test_other_messages_and_other_loggers_are_not_touched() -> None:
    """The limit is a message's own, and only of the loggers at the prefix."""
    limit = RepeatLimit("aiokafka", lines_max=1)
    assert limit.filter(record("aiokafka.conn"))
    assert limit.filter(record("aiokafka.conn", "Something else about %s"))
    assert all(limit.filter(record("verity_stream.relay")) for _ in range(9))
    assert all(limit.filter(record("aiokafkaesque")) for _ in range(9))


def test_its_memory_is_bounded() -> None:
    """A logger whose messages never repeat does not fill the memory."""
    limit = RepeatLimit("aiokafka")
    while limit.filter(record("aiokafka")):
        pass
    for number in range(MESSAGES_MAX):
        assert limit.filter(record("aiokafka", f"message {number} %s"))
    assert limit.filter(record("aiokafka")), "it forgot, rather than remember one more"


@pytest.fixture
def root_handler() -> Iterator[logging.Handler]:
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


def test_it_is_installed_once(root_handler: logging.Handler) -> None:
    """On the handlers, where the records of child loggers pass as well."""
    install("aiokafka")
    install("aiokafka")
    assert len(root_handler.filters) == 1
    for handler in logging.getLogger().handlers:
        handler.filters = [f for f in handler.filters if not isinstance(f, RepeatLimit)]
