"""How a relay's end, and what operators ask for, decide what the runner does."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from verity_sdk.connector_base import BaseConnector
from verity_sdk.errors import Misconfigured
from verity_stream.postgres.controls import Control
from verity_stream.relay.sources import PublishedByTheRelay
from verity_stream.settings import StreamSettings
from verity_stream.status import State, Status
from verity_stream.worker.runner import shown_as_backing_off, warning_of

SETTINGS = StreamSettings()
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("control", "every", "is_due"),
    [
        (Control(), timedelta(hours=1), True),
        (Control(), None, False),
        (Control(snapshot_started_at=NOW), timedelta(hours=1), False),
        (Control(snapshot_started_at=NOW - timedelta(hours=1)), timedelta(hours=1), True),
        (Control(snapshot_requested_at=NOW), None, True),
        (Control(False, NOW, NOW - timedelta(seconds=1)), None, True),
        (Control(False, NOW - timedelta(seconds=1), NOW), None, False),
    ],
)
def test_a_snapshot_is_due_when_asked_for_or_in_time(
    control: Control, every: timedelta | None, is_due: bool
) -> None:
    assert control.is_snapshot_due(every, NOW) is is_due


def test_a_connector_that_publishes_by_itself_is_told() -> None:
    with pytest.raises(Misconfigured, match=r"kafka_producer\.send_and_wait"):
        asyncio.run(PublishedByTheRelay().send_and_wait("topic", b""))


def test_an_error_stays_shown_until_the_connector_is_caught_up() -> None:
    status = Status("c", "acme")
    status.enter(State.BACKING_OFF, error="no answer", next_try_at=NOW)
    status.enter(State.RUNNING)
    assert (status.last_error, status.next_try_at) == ("no answer", None)
    status.is_reported = True
    status.enter(State.CAUGHT_UP)
    assert (status.last_error, status.is_reported) == (None, False)


def test_a_wait_within_a_pass_is_shown_until_it_is_over() -> None:
    status = Status("c", "p", State.RUNNING)
    report = shown_as_backing_off(status)
    report(NOW, "429")
    assert (status.state, status.next_try_at, status.last_error) == (
        State.BACKING_OFF,
        NOW,
        "429",
    )
    assert not status.is_reported
    report(None, "")
    assert (status.state, status.next_try_at) == (State.RUNNING, None)
    # Whatever else the connector is by then is not undone.
    status.enter(State.CAUGHT_UP)
    report(None, "")
    assert status.state is State.CAUGHT_UP


async def test_what_a_dead_connector_left_behind_shows_nothing_more() -> None:
    """Shown as `running`, it would have a snapshot started beside no relay."""
    status = Status("c", "p", State.RUNNING)

    async def live() -> Any:
        return shown_as_backing_off(status, asyncio.current_task())

    report = await asyncio.create_task(live())
    status.enter(State.BACKING_OFF, error="no answer", next_try_at=NOW)
    report(None, "")
    assert (status.state, status.next_try_at) == (State.BACKING_OFF, NOW)
    report(NOW + timedelta(hours=1), "429")
    assert (status.last_error, status.next_try_at) == ("no answer", NOW)


@pytest.mark.parametrize(
    ("says", "shown"),
    [
        ([], None),
        (["quiet.", "and odd."], "quiet. and odd."),
        (3, "TypeError"),
        (None, "TypeError"),
    ],
)
def test_what_a_connector_says_of_its_health_is_shown_whatever_it_is(
    says: object, shown: str | None
) -> None:
    class Odd(BaseConnector):
        async def stream_audit_events(self, since):  # type: ignore[no-untyped-def]
            yield

        async def snapshot_permissions(self):  # type: ignore[no-untyped-def]
            yield

        def health_warnings(self) -> list[str]:
            return says  # type: ignore[return-value]

    found = warning_of(Odd({}, None, None))
    assert found == shown or (shown is not None and found is not None and shown in found)
    assert warning_of(None) is None
