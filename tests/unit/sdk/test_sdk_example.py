"""The example in `examples/acme`: what its README promises, without a stack."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import threading
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest

from verity_sdk import BaseConnector, Denied, RawEvent, Unavailable

EXAMPLE = Path(__file__).parents[3] / "examples" / "acme"
SINCE = datetime(2000, 1, 1, tzinfo=UTC)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The connector and the server as modules, imported from the example's folder."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    names = ("acme_connector", "server")
    connector, server = (import_module(name) for name in names)
    yield SimpleNamespace(connector=connector, server=server)
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def platform(example: Any, tmp_path: Path) -> Iterator[Any]:
    """The server on a free port, with a copy of the example's data that a test may change."""
    file = tmp_path / "audit_log.json"
    shutil.copy(EXAMPLE / "audit_log.json", file)
    server = example.server.make_server(0, file)
    server.RequestHandlerClass.log_message = lambda *_: None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield SimpleNamespace(file=file, url=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()
    thread.join(10)


def connect(example: Any, url: str, *, token: str | None = None, **kw: Any) -> BaseConnector:
    cls: type[BaseConnector] = example.connector.AcmeConnector
    token = token or example.server.TOKEN
    settings = example.connector.AcmeConnector.Settings(connector_id="acme-1", url=url, token=token)
    return cls(settings, kw.get("producer"), kw.get("pool"))


async def events_of(connector: BaseConnector, since: datetime) -> list[RawEvent]:
    return [event async for event in connector.stream_audit_events(since)]


def test_one_line_names_the_class(example: Any) -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text("utf-8"))["project"]
    (target,) = project["entry-points"]["verity.connectors"].values()
    module, _, name = target.partition(":")
    assert module == "acme_connector"
    assert issubclass(getattr(example.connector, name), BaseConnector)


async def test_it_yields_the_log_oldest_first(example: Any, platform: Any) -> None:
    events = await events_of(connect(example, platform.url), SINCE)
    assert [event.event_id for event in events] == ["a-1", "a-2", "a-3", "a-4"]
    assert events == sorted(events, key=lambda event: (event.occurred_at, event.event_id))
    assert events[3].raw_payload["who"] == "svc-sync"


async def test_it_follows_the_pages(
    example: Any, platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example.connector, "PAGE_EVENTS", 1)
    assert len(await events_of(connect(example, platform.url), SINCE)) == 4


async def test_a_second_pass_publishes_what_was_added(example: Any, platform: Any) -> None:
    rows: dict[str, datetime] = {}

    async def fetchrow(_: str, connector_id: str) -> Any:
        return {"last_ts": rows[connector_id]} if connector_id in rows else None

    async def execute(_: str, connector_id: str, last_ts: datetime) -> None:
        rows[connector_id] = last_ts

    producer = AsyncMock()
    pool = SimpleNamespace(fetchrow=fetchrow, execute=execute)
    connector = connect(example, platform.url, producer=producer, pool=pool)
    await connector.run()
    data = json.loads(platform.file.read_text())
    data["log"].append({**data["log"][0], "id": "a-5", "at": "2026-03-03T00:00:00Z"})
    platform.file.write_text(json.dumps(data))
    await connector.run()
    sent = [call.kwargs["value"]["event_id"] for call in producer.send.call_args_list]
    # What happened at the checkpoint itself is asked for again: it may have got company.
    assert sent == ["a-1", "a-2", "a-3", "a-4", "a-4", "a-5"]
    assert rows == {"acme-1": datetime(2026, 3, 3, tzinfo=UTC)}


async def test_it_yields_who_may_do_what(example: Any, platform: Any) -> None:
    connector = connect(example, platform.url)
    grants = [grant async for grant in connector.snapshot_permissions()]
    assert [(g.principal_ref, g.privilege, g.grant_mechanism, g.granted_via) for g in grants] == [
        ("ines@acme.test", "READ", "direct", None),
        ("ines@acme.test", "WRITE", "group", "product"),
        ("omar@acme.test", "ADMIN", "group", "finance"),
    ]


async def test_its_errors_say_who_must_act(example: Any, platform: Any) -> None:
    with pytest.raises(Denied):
        await events_of(connect(example, platform.url, token="wrong"), SINCE)
    platform.file.write_text("not JSON")
    with pytest.raises(Unavailable, match="400"):
        await events_of(connect(example, platform.url), SINCE)
    listener = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    listener.close()
    await listener.wait_closed()
    with pytest.raises(Unavailable):
        await events_of(connect(example, f"http://127.0.0.1:{port}"), SINCE)
