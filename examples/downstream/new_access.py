"""New access: an alert when a principal touches an asset for the first time.

    faust -A new_access worker

Alerts go to the topic `alerts.{app_id}`. They may repeat after a crash, with the same event id.
"""

from __future__ import annotations

from typing import Any

from verity_sdk import RawEvent, format_utc
from verity_stream import create_app, raw_topic, verity_agent


def make_app(platform: str = "postgres", app_id: str = "new-access") -> Any:
    """The app; a factory, so that tests can make their own."""
    app = create_app(app_id)
    alerts = app.topic(f"alerts.{app_id}")
    first_access = app.Table("first-access")

    @verity_agent(app, raw_topic(app, platform))
    async def new_access(event: RawEvent) -> None:
        """The raw topic's key is the principal, so all of one's events come to one worker."""
        pair = (event.principal_ref, event.asset_ref)
        if pair not in first_access:
            first_access[pair] = event.event_id
        # Also when this very event comes again after a crash: the alert may not have been out.
        if first_access[pair] == event.event_id:
            alert = {
                "principal_ref": event.principal_ref,
                "asset_ref": event.asset_ref,
                "event_id": event.event_id,
                "occurred_at": format_utc(event.occurred_at),
            }
            await alerts.send(key=event.principal_ref, value=alert)

    return app


app = make_app()
