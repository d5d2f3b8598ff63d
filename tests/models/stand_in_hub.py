"""A Hub on this machine: repositories as dictionaries, gates, redirects, ranges, and connections that break off."""

from __future__ import annotations

import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import attrs

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@attrs.define(eq=False)
class StandIn:
    """What the Hub holds and how it behaves; `seen` is (method path, range, authorization) of every request."""

    files: dict[str, bytes]
    repo: str = "someone/some-model"
    revisions: tuple[str, ...] = ("main", "v1", COMMIT)
    token: str = ""
    break_after: int = 0
    breaks: int = 0
    """How many answers still break off after so many bytes."""
    errors: int = 0
    """How many requests for files are still answered with 503."""
    ranges: bool = True
    spoilt: frozenset[str] = frozenset()
    """Files that arrive with a wrong byte."""
    elsewhere: str = ""
    """Address that files are redirected to; empty: sent from here."""
    url: str = ""
    seen: list[tuple[str, str, str]] = attrs.field(factory=list)

    def index(self) -> bytes:
        """What the Hub says of the repository's files."""
        siblings = []
        for path, content in self.files.items():
            told: dict[str, object] = {"rfilename": path, "size": len(content)}
            if not path.endswith(".json"):
                told["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            siblings.append(told)
        return json.dumps({"sha": COMMIT, "siblings": siblings}).encode()


def _handler(hub: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            """Quiet."""

        def answer(self, code: int, content: bytes = b"", **headers: str) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Connection", "close")
            self.end_headers()
            if hub.breaks and len(content) > hub.break_after and "/resolve/" in self.path:
                hub.breaks -= 1
                content = content[: hub.break_after]
            self.wfile.write(content)
            self.close_connection = True

        def do_GET(self) -> None:
            hub.seen.append((self.path, self.headers.get("Range", ""), self.headers.get("Authorization", "")))
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.answer(401)
            if path.startswith(f"/api/models/{hub.repo}/revision/"):
                return self.answer(200, hub.index()) if path.rpartition("/")[2] in hub.revisions else self.answer(404)
            start, _, file = path.partition(f"/resolve/{COMMIT}/")
            if start != f"/{hub.repo}" or file not in hub.files:
                return self.answer(404)
            if hub.elsewhere:
                return self.answer(302, Location=hub.elsewhere + self.path)
            if hub.errors:
                hub.errors -= 1
                return self.answer(503)
            content = hub.files[file]
            if file in hub.spoilt:
                content = bytes([content[0] ^ 1]) + content[1:]
            asked = self.headers.get("Range", "")
            if asked and hub.ranges:
                first = int(asked.removeprefix("bytes=").rstrip("-"))
                return self.answer(206, content[first:], Content_Range=f"bytes {first}-{len(content) - 1}/{len(content)}")
            return self.answer(200, content)

    return Handler


@contextmanager
def serving(hub: StandIn) -> Iterator[StandIn]:
    """The Hub at `hub.url` while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
