"""A package index on this machine, of wheels made on the spot: pip is real, only what it finds is small."""

from __future__ import annotations

import base64
import hashlib
import http.server
import os
import re
import threading
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_wheel(folder: Path, name: str, version: str, *, needs: Sequence[str] = (), modules: Mapping[str, str] | None = None) -> Path:
    """A pure wheel of that name and version; modules maps a path inside it to its text."""
    files = dict(modules or {f"{name}/__init__.py": f"__version__ = {version!r}\n"})
    info = f"{name}-{version}.dist-info"
    files[f"{info}/METADATA"] = "\n".join(
        ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs), ""]
    )
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    rows = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(text.encode())}")
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for inner, text in files.items():
            wheel.writestr(inner, text)
    return path


class PackageIndex:
    """Serves the wheels of one folder as a package index at `url`; `asked` lists the wheels that were downloaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.requests = 0
        self.broken: set[str] = set()  # names of packages whose wheels answer 404
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple"

    def add(self, name: str, version: str, *, needs: Sequence[str] = (), modules: Mapping[str, str] | None = None) -> None:
        write_wheel(self.folder, name, version, needs=needs, modules=modules)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        self.requests += 1
        name = request.path.rstrip("/").rsplit("/", 1)[-1].replace("%2B", "+")
        body = self._wheel(name) if name.endswith(".whl") else self._page(name)
        request.send_response(200 if body else 404)
        request.send_header("Content-Type", "application/octet-stream" if name.endswith(".whl") else "text/html")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def _wheel(self, name: str) -> bytes:
        self.asked.append(name)
        return b"" if name.split("-")[0] in self.broken else (self.folder / name).read_bytes()

    def _page(self, name: str) -> bytes:
        wheels = [path.name for path in sorted(self.folder.glob("*.whl")) if _normal(path.name.split("-")[0]) == _normal(name)]
        return "".join(f'<a href="/files/{wheel}">{wheel}</a>\n' for wheel in wheels).encode()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def clean_environment(index: PackageIndex, **more: str) -> dict[str, str]:
    """Environment variables under which pip knows nothing but that index."""
    ours = ("PIP_", "LORA_TRAINER_", "INDEX_URL", "COMMANDLINE_ARGS", "PYTHONPATH", "PYTEST_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return {**kept, "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index.url, "PIP_NO_CACHE_DIR": "1", "PIP_RETRIES": "0", **more}
