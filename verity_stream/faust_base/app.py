"""What workers and downstream apps share: a broker that answers, health, a group that refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
from faust.web import Request, Response, View

from verity_sdk.errors import Unavailable
from verity_stream.faust_base.fixes import FixedApp, check_versions
from verity_stream.faust_base.group import refusal
from verity_stream.faust_base.options import servers
from verity_stream.kafka.clients import kafka_admin
from verity_stream.settings import StreamSettings
from verity_stream.waiting import retry_until_available

BROKER_REQUEST_SECONDS = 5.0
STOP_PREPARING_SECONDS = 5.0
GROUP_LOOK_SECONDS = 1.0


class VerityApp(FixedApp):
    """A Faust app that waits for its broker and says whether it is alive and ready.

    Raises:
        Misconfigured: Another version of Faust than the pinned one is installed.
    """

    def __init__(self, app_id: str, *, verity: StreamSettings, **options: Any) -> None:
        check_versions()
        super().__init__(app_id, **options)
        self.verity = verity
        self._preparing: asyncio.Task[None] | None = None
        self._add_page("/healthz", lambda: (200, {"status": "alive"}))
        self._add_page("/readyz", self._readyz)

    async def on_first_start(self) -> None:
        """Prepare before anything else starts; a stop meanwhile ends it at once."""
        await super().on_first_start()
        self._preparing = asyncio.ensure_future(self.prepare())
        await asyncio.wait({self._preparing})
        if not self._preparing.cancelled():
            self._preparing.result()
            self.add_future(self._end_where_the_group_refuses())

    async def prepare(self) -> None:
        """What must be true before the first service starts: the broker answers."""
        await wait_for_broker(self.verity)

    async def _end_where_the_group_refuses(self) -> None:
        # Not a timer: Faust starts those after the first assignment, which never comes here.
        while True:
            await asyncio.sleep(GROUP_LOOK_SECONDS)
            error = refusal(self)
            if error is not None:
                await self.crash(error)
                return

    async def on_stop(self) -> None:
        """Give up preparing, then stop."""
        if self._preparing is not None and not self._preparing.done():
            self._preparing.cancel()
            await asyncio.wait({self._preparing}, timeout=STOP_PREPARING_SECONDS)
        await super().on_stop()

    def reasons_not_ready(self) -> list[str]:
        """Why this worker does not do its work now; empty when it does."""
        if not self.is_settled:
            return ["rebalancing"]
        if not self._assignment:
            return ["no partitions assigned"]
        return []

    def _readyz(self) -> tuple[int, Any]:
        reasons = self.reasons_not_ready()
        status = "not ready" if reasons else "ready"
        return (503 if reasons else 200), {"status": status, "reasons": reasons}

    def _add_page(
        self,
        path: str,
        answer: Callable[[], tuple[int, Any]],
        encode: Callable[[Any], bytes] = orjson.dumps,
        content_type: str = "application/json",
    ) -> None:
        async def page(view: View, request: Request) -> Response:
            status, body = answer()
            return view.bytes(encode(body), content_type=content_type, status=status)

        self.page(path, name=path.strip("/"))(page)


async def wait_for_broker(settings: StreamSettings) -> None:
    """Return when a broker answers; Faust itself would give up after two seconds.

    Raises:
        Unavailable: None did within `settings.broker_wait_seconds`.
        Denied, Misconfigured: At once, as `kafka_admin`.
    """

    async def ask() -> None:
        async with kafka_admin(settings.kafka, BROKER_REQUEST_SECONDS):
            pass

    try:
        await retry_until_available(ask, settings.broker_wait_seconds)
    except Unavailable as error:
        raise Unavailable(
            f"No Kafka broker answered at {', '.join(servers(settings))} within "
            f"{settings.broker_wait_seconds:g} s ({error}). Is it running, and is "
            "VERITY_KAFKA__BOOTSTRAP_SERVERS right?"
        ) from error
