"""The stand-alone page: our scripts and style added to Gradio's HTML, as a WebUI does it, and requests to other servers removed."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from lora_trainer.host.web_names import WebNames
from lora_trainer.messages import say

ROOT = Path(__file__).parents[2]
PREFIX = "/lora-trainer/page/"
ROUTES_PREFIX = "/lora-trainer/v1/"
EXTERNAL_TAGS = re.compile(r'<(?:script|link)\b[^>]*\b(?:src|href)="https?://[^"]*"[^>]*?(?:/>|>(?:\s*</script>)?)', re.IGNORECASE)
OWN_STYLE = """<style>
body, gradio-app, .gradio-container { margin: 0 !important; padding: 0 !important; max-width: none !important; }
gradio-app .main, gradio-app .wrap, #tab_lora_trainer { margin: 0 !important; padding: 0 !important; max-width: none !important; }
gradio-app footer { display: none !important; }
</style>"""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class PageMiddleware:
    """An ASGI middleware that serves our own files and completes the page at "/"."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and path.startswith(PREFIX):
            await _send_file(send, asset_files().get(path.removeprefix(PREFIX)))
        elif scope["type"] == "http" and scope["method"] == "GET" and path == "/":
            await self._complete(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _complete(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers_in = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        start: MutableMapping[str, Any] = {}
        body = b""

        async def keep(message: MutableMapping[str, Any]) -> None:
            nonlocal body
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                body += message.get("body", b"")

        await self.app({**scope, "headers": headers_in}, receive, keep)
        headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
        if any(name.lower() == b"content-type" and b"html" in value for name, value in headers):
            body = complete_page(body.decode("utf-8")).encode("utf-8")
        await send({**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": body})


class OwnNamesMiddleware:
    """An ASGI middleware that answers only where the server is reached under a name of its own: our routes and Gradio's alike."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], names: WebNames) -> None:
        self.app = app
        self.names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and not scope.get("path", "").startswith(ROUTES_PREFIX):  # the routes say it themselves
            hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
            if len(hosts) != 1 or not self.names.accepts(hosts[0]):
                await _refuse(scope, receive, send, self.names.flag)
                return
        await self.app(scope, receive, send)


async def _refuse(scope: Scope, receive: Receive, send: Send, flag: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
        return
    text = say("this server is not known by this name. Open it by its address, or start it with {flag} and the name.", flag=flag).text()
    body = text.encode("utf-8")
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def asset_files() -> dict[str, Path]:
    """Name in the URL -> file: style.css and every javascript/*.js."""
    return {file.name: file for file in (ROOT / "style.css", *sorted((ROOT / "javascript").glob("*.js")))}


def complete_page(html: str) -> str:
    """The page with our files at the end of its head, and without scripts, styles and fonts from other servers."""
    tags = [OWN_STYLE]
    for name, file in asset_files().items():
        address = f"{PREFIX[1:]}{name}?{int(file.stat().st_mtime)}"
        tags.append(f'<link rel="stylesheet" href="{address}">' if name.endswith(".css") else f'<script defer src="{address}"></script>')
    return EXTERNAL_TAGS.sub("", html).replace("</head>", "\n".join([*tags, "</head>"]), 1)


async def _send_file(send: Send, file: Path | None) -> None:
    status, body, kind = (200, file.read_bytes(), mimetypes.guess_type(file.name)[0] or "text/plain") if file else (404, b"", "text/plain")
    if kind == "application/javascript":  # what Windows' registry may call it
        kind = "text/javascript"
    headers = [
        (b"content-type", f"{kind}; charset=utf-8".encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-cache"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
