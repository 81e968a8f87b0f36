"""Bursts of failed logins: an alert when one principal fails five times in a minute's window.

    faust -A failed_logins worker

Alerts go to the topic `alerts.{app_id}`. They may repeat after a crash; principal and window
say that two are the same.
"""

from __future__ import annotations

from typing import Any

from faust import HoppingWindow

from verity_sdk import RawEvent
from verity_stream import create_app, raw_topic, verity_agent

FAILURES = 5
# Windows overlap, so that a burst of 30 s is whole in one of them wherever it begins.
WINDOW = HoppingWindow(size=60, step=30, expires=3600)


def with_failure(event_ids: list[str], event_id: str) -> list[str]:
    """Ids, not a count: an event that is processed again after a crash counts once."""
    return event_ids if event_id in event_ids else [*event_ids, event_id]


def make_app(platform: str = "postgres", app_id: str = "failed-logins") -> Any:
    """The app; a factory, so that tests can make their own."""
    app = create_app(app_id)
    alerts = app.topic(f"alerts.{app_id}")
    failures = app.Table("failures", default=list, window=WINDOW).relative_to(
        lambda event: event.value.occurred_at
    )

    @verity_agent(app, raw_topic(app, platform))
    async def failed_logins(event: RawEvent) -> None:
        """The raw topic's key is the principal, so all of one's events come to one worker."""
        if event.operation != "LOGIN_FAILED":
            return
        windows = failures[event.principal_ref]
        windows.apply(with_failure, event.event_id)
        for window in WINDOW.ranges(event.occurred_at.timestamp()):
            event_ids = windows[window]
            # By the event's place and not by "as soon as": the one that completed the burst
            # raises the alert again, should the worker have died before the alert was out.
            if event_ids.index(event.event_id) + 1 == FAILURES:
                alert = {
                    "principal_ref": event.principal_ref,
                    "window_start": window[0],
                    "event_ids": event_ids[:FAILURES],
                }
                await alerts.send(key=event.principal_ref, value=alert)

    return app


app = make_app()
