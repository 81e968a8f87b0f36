"""The Acme platform, as far as the example needs it: `python server.py PORT [FILE]`.

| request | answer |
| --- | --- |
| `GET /log?from=TIME&limit=N[&cursor=C]` | log entries of the time and later, oldest first |
| `GET /members` | who may do what on which board |

Both answer `{"items": […], "next": cursor or null}` to `Authorization: Bearer open-sesame`. The
file is read again for every request, so that entries can be added while it runs.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "open-sesame"  # noqa: S105 - a toy's secret, printed in the README
PAGE_MAX = 500


def answer(platform: dict[str, Any], path: str, query: dict[str, str]) -> dict[str, Any] | None:
    """What the API says to a request; None for a path it does not have."""
    if path == "/members":
        return {"items": platform["members"], "next": None}
    if path != "/log":
        return None
    from_at = datetime.fromisoformat(query["from"])
    entries = sorted(
        (entry for entry in platform["log"] if _at(entry) >= from_at),
        key=lambda entry: (_at(entry), entry["id"]),
    )
    start = int(query.get("cursor", 0))
    end = start + min(int(query["limit"]), PAGE_MAX)
    return {"items": entries[start:end], "next": str(end) if end < len(entries) else None}


def _at(entry: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(entry["at"])


def make_server(port: int, file: Path) -> ThreadingHTTPServer:
    """A server on this machine only; port 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.send_error(401)
                return
            address = urlsplit(self.path)
            query = {name: values[-1] for name, values in parse_qs(address.query).items()}
            try:
                answered = answer(json.loads(file.read_text("utf-8")), address.path, query)
            except (KeyError, ValueError) as error:
                self.send_error(400, explain=repr(error))
                return
            if answered is None:
                self.send_error(404)
                return
            body = json.dumps(answered).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    chosen = sys.argv[2] if len(sys.argv) > 2 else Path(__file__).with_name("audit_log.json")
    server = make_server(int(sys.argv[1]), Path(chosen))
    print(f"Acme listens on http://127.0.0.1:{server.server_port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass  # The way to stop it.
