"""The sweep's sources over HTTP, with the weather that an API has."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from verity_sweep_connectors.script import page_of


class Handler(BaseHTTPRequestHandler):
    """Answers with a page after its wait; refuses some requests and cuts some answers."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        weather = random.random()
        if weather < 0.004:
            self._answer(503, b"busy")
            return
        if weather < 0.014:
            self._answer(429, b"slow down", {"Retry-After": "0"})
            return
        page = page_of(query["platform"], int(query["number"]))
        if "hurry" not in query:
            time.sleep(page["wait"])
        body = json.dumps(page).encode()
        if weather < 0.018:
            self._answer(200, body[: len(body) // 2], {"Content-Length": str(len(body))})
            self.close_connection = True
            return
        self._answer(200, body)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Killed workers leave their connections; that is the point of it."""


@contextmanager
def serving() -> Iterator[str]:
    """Serve on a free port of this machine, in threads; yields the URL."""
    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
