"""The first connectors that a reader sees, README's and `examples/acme`, under the laws."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import AsyncMock

import pytest

from verity_sdk import BaseConnector, format_utc
from verity_sdk.testing import (
    Clock,
    ConnectorLaws,
    FakedSource,
    Fault,
    Faults,
    SourceUnderTest,
    Verdict,
    judge,
)

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)

NO_REQUESTS: dict[Fault | str, str] = {
    **dict.fromkeys(Fault, "what stands behind read_entries is the reader's own"),
    "L22": "there is no credential in it",
}


class DoorSource(SourceUnderTest):
    """What README's `read_entries` and `read_grants` read: a door's log, in whole seconds.

    Args:
        is_strict: It shows only what is later than what is asked for: not what README describes.
        lookback: None leaves Door as it stands in README.
    """

    does_not_apply: ClassVar = NO_REQUESTS

    def __init__(self, *, is_strict: bool = False, lookback: timedelta | None = None) -> None:
        self.clock = Clock(NOW)
        self._is_strict = is_strict
        self._log: list[tuple[datetime, datetime, dict[str, str]]] = []
        text = (ROOT / "README.md").read_text("utf-8")
        code = re.search(r"## Your first connector\n\n```python\n(.*?)```", text, re.DOTALL)
        assert code is not None
        names: dict[str, Any] = {
            "read_entries": self._read_entries,
            "read_grants": self._read_grants,
        }
        exec(compile(code[1], "README.md", "exec"), names)  # noqa: S102 - it is ours
        self.door: type[BaseConnector] = names["Door"]
        if lookback is not None:
            self.door.lookback = lookback

    async def _read_entries(self, since: datetime) -> AsyncIterator[dict[str, str]]:
        shown = [
            (at, entry)
            for at, visible_at, entry in self._log
            if visible_at <= self.clock() and (at > since or (at == since and not self._is_strict))
        ]
        for _, entry in sorted(shown, key=lambda one: one[0]):
            await asyncio.sleep(0)
            yield dict(entry)

    async def _read_grants(self) -> AsyncIterator[tuple[str, str]]:
        for badge, door, *_ in sorted(self.grants()):
            yield badge, door

    def connector(self) -> BaseConnector:
        return self.door({"connector_id": "door"}, None, None)

    def now(self) -> datetime:
        return self.clock()

    def advance(self, by: timedelta) -> None:
        self.clock.advance(by)

    def add_events(
        self, count: int, *, at: datetime, visible_at: datetime | None = None
    ) -> list[str]:
        ids = []
        for number in range(count):
            happened_at = (at + timedelta(seconds=number // 4)).replace(microsecond=0)
            ids.append(f"d-{len(self._log)}")
            entry = {"id": ids[-1], "at": format_utc(happened_at), "badge": "ada", "door": "7"}
            self._log.append((happened_at, visible_at or happened_at, entry))
        return ids

    def event_ids(self) -> set[str]:
        return {entry["id"] for _, _, entry in self._log}

    def grants(self) -> set[tuple[str, ...]]:
        return {("ada", door, "OPEN", "direct", "") for door in "789"}


def verdicts(labels: list[str] | None = None, **how: Any) -> dict[str, tuple[Verdict, str]]:
    """What the laws say of Door."""

    @contextmanager
    def make() -> Iterator[DoorSource]:
        yield DoorSource(**how)

    suite: Any = type("DoorLaws", (ConnectorLaws,), {"connector_class": DoorSource().door})()
    return {one.label: (one.verdict, one.reason) for one in judge(suite, make, labels)}


class TestDoorLaws(ConnectorLaws):
    """As it stands in README, with what README says of `read_entries`."""

    connector_class = DoorSource().door

    @pytest.fixture
    def source(self) -> DoorSource:
        return DoorSource()


@pytest.mark.parametrize("is_strict", [False, True])
def test_a_source_that_shows_an_event_a_little_late_loses_none(*, is_strict: bool) -> None:
    """The default lookback makes up even for a source that does not keep to `since`."""
    held = verdicts(["L1", "L2", "L3", "L5", "L14"], is_strict=is_strict)
    assert {verdict for verdict, _ in held.values()} == {Verdict.HOLDS}, held


def test_without_a_lookback_since_itself_must_be_shown() -> None:
    """That is what the contract is for, and that the law can tell."""
    assert verdicts(["L1"], lookback=timedelta(0))["L1"][0] is Verdict.HOLDS
    verdict, reason = verdicts(["L1"], lookback=timedelta(0), is_strict=True)["L1"]
    assert verdict is Verdict.BROKEN
    assert "4 events are missing" in reason, reason


async def test_run_publishes_what_shares_its_time_with_the_end_of_the_pass_before() -> None:
    """`run()` can't look back: only by what `since` means nothing is lost between two passes."""
    source = DoorSource()
    row: dict[str, datetime] = {}

    async def fetchrow(*_: Any) -> Any:
        return row or None

    async def execute(_: str, __: str, last_ts: datetime) -> None:
        row["last_ts"] = last_ts

    producer = AsyncMock()
    pool = SimpleNamespace(fetchrow=fetchrow, execute=execute)
    door = source.door({"connector_id": "door"}, producer, pool)
    for _ in range(2):
        source.add_events(3, at=NOW)
        await door.run()
    sent = {call.kwargs["value"]["event_id"] for call in producer.send.call_args_list}
    assert sent == source.event_ids()


# examples/acme

ACME = ROOT / "examples" / "acme"
REFUSALS = {
    Fault.THROTTLED_SECONDS: (429, {"Retry-After": "2"}),
    Fault.THROTTLED_DATE: (429, {"Retry-After": "Tue, 24 Nov 2026 12:00:02 GMT"}),
    Fault.THROTTLED_BARE: (429, {}),
    Fault.UNAVAILABLE: (503, {}),
    Fault.CREDENTIAL_REFUSED: (401, {}),
}


class AcmePlatform:
    """The example's own server over a file of the example's form, with faults in front of it."""

    def __init__(self, server_module: Any, file: Path) -> None:
        self.clock = Clock(NOW)
        self.faults = Faults()
        self.requests: list[str] = []
        self._file = file
        self._members = json.loads((ACME / "audit_log.json").read_text("utf-8"))["members"]
        self._log: list[tuple[datetime, dict[str, str]]] = []
        self.write()
        self._server = server_module.make_server(0, file)
        self._wrap(self._server.RequestHandlerClass)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def serving(self) -> Iterator[None]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join(10)

    def _wrap(self, handler_class: Any) -> None:
        answer = handler_class.do_GET

        def do_get(handler: Any) -> None:
            self.requests.append(handler.path)
            for fault, (status, headers) in REFUSALS.items():
                if self.faults.take(fault):
                    self._send(handler, status, b"no", headers)
                    return
            if self.faults.take(Fault.HANGING):
                threading.Event().wait(2)
            if self.faults.take(Fault.NOT_JSON):
                self._send(handler, 200, b"<html>a proxy</html>", {})
            elif self.faults.take(Fault.DROPPED):
                self._send(handler, 200, b'{"items": [', {"Content-Length": "99"})
            else:
                answer(handler)

        handler_class.do_GET = do_get
        handler_class.log_message = lambda *_: None

    @staticmethod
    def _send(handler: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
        handler.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    def add_events(
        self, count: int, *, at: datetime, visible_at: datetime | None = None
    ) -> list[str]:
        ids = []
        for number in range(count):
            happened_at = at + timedelta(milliseconds=100) * (number // 2)
            ids.append(f"a-{len(self._log)}")
            entry = {"id": ids[-1], "at": format_utc(happened_at), "who": "ines", "did": "read"}
            entry["board"] = "payroll"
            self._log.append((visible_at or happened_at, entry))
        self.write()
        return ids

    def write(self) -> None:
        """What can be seen by now."""
        shown = [entry for visible_at, entry in self._log if visible_at <= self.clock()]
        self._file.write_text(json.dumps({"log": shown, "members": self._members}), "utf-8")

    def event_ids(self) -> set[str]:
        return {entry["id"] for _, entry in self._log}

    def grants(self) -> set[tuple[str, ...]]:
        return {
            (
                one["member"],
                one["board"],
                one["may"].upper(),
                "group" if one["team"] else "direct",
                one["team"] or "",
            )
            for one in self._members
        }


class AcmeSource(FakedSource):
    """The connector against its own server."""

    does_not_apply: ClassVar = {
        Fault.TOKEN_EXPIRED: "Acme's tokens do not expire",
        Fault.REPEATED_TOKEN: "Acme's cursor is a number of entries",
        Fault.EMPTY_PAGE: "Acme's pages are full but for the last",
        Fault.PAGE_TOKEN_EXPIRED: "Acme's cursor is a number of entries",
        Fault.REPEATED_EVENT: "Acme's log is a file",
        Fault.UNKNOWN_ENUM: "Acme's verbs are free text",
        Fault.NULL_ACTOR: "Acme's entries say who",
        Fault.MALFORMED_RECORD: "a plain connector has no place for rejected records",
        Fault.FORBIDDEN_OBJECT: "Acme's members are one list",
        Fault.VANISHED_OBJECT: "Acme's members are one list",
    }

    def __init__(self, module: Any, platform: AcmePlatform, token: str) -> None:
        super().__init__(platform)
        self._module, self._platform, self._token = module, platform, token

    def connector(self) -> BaseConnector:
        settings = self._module.AcmeConnector.Settings(
            connector_id="acme-1", url=self._platform.url, token=self._token
        )
        made: BaseConnector = self._module.AcmeConnector(settings, None, None)
        return made

    def advance(self, by: timedelta) -> None:
        super().advance(by)
        self._platform.write()

    def secrets(self) -> list[str]:
        return [self._token]


@pytest.fixture(scope="module")
def acme() -> Iterator[Any]:
    """The connector and the server as modules, imported from the example's folder."""
    sys.path.insert(0, str(ACME))
    import acme_connector
    import server

    yield SimpleNamespace(connector=acme_connector, server=server)
    sys.path.remove(str(ACME))
    for name in ("acme_connector", "server"):
        sys.modules.pop(name, None)


class TestAcmeLaws(ConnectorLaws):
    """`examples/acme`, over HTTP to its own server."""

    memory_events_per_slice = 60  # The server reads its file anew for each page of seven.

    @pytest.fixture
    def source(
        self, acme: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[AcmeSource]:
        # 40 events are several pages of the API; what never answers is waited for half a second.
        monkeypatch.setattr(acme.connector, "PAGE_EVENTS", 7)
        monkeypatch.setattr(acme.connector, "REQUEST_SECONDS_MAX", 0.5)
        monkeypatch.setattr(type(self), "connector_class", acme.connector.AcmeConnector)
        platform = AcmePlatform(acme.server, tmp_path / "audit_log.json")
        with platform.serving():
            yield AcmeSource(acme.connector, platform, acme.server.TOKEN)
