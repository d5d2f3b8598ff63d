"""The tab's page with made-up answers: states that a small machine does not reach at will (10 000 steps, out of memory, half a grid).

`python -m tests.ui.mock_server 7999` serves it for looking; `?__scenario=failed` and so on choose the state.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from lora_trainer.api.options import default_config, option_sections
from lora_trainer.messages import translations

from .drawn import figure
from .made_up import World, schedule

ROOT = Path(__file__).parents[2]


class Handler(BaseHTTPRequestHandler):
    """Answers like the routes."""

    world = World()
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def send(self, body: bytes | Any, kind: str = "application/json", status: int = 200) -> None:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        path = unquote(url.path)
        world = self.world
        if path == "/":
            if "__scenario" in query:
                world.scenario = query["__scenario"]
            scripts = "".join(f'<script src="javascript/{file.name}"></script>' for file in sorted((ROOT / "javascript").glob("*.js")))
            page = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
            page = page.replace("<!-- scripts -->", scripts).replace("THEME", query.get("__theme", ""))
            self.send(page.encode(), "text/html; charset=utf-8")
        elif path == "/style.css" or path.startswith("/javascript/"):
            self.send((ROOT / path[1:]).read_bytes(), "text/css" if path.endswith("css") else "text/javascript; charset=utf-8")
        elif path == "/favicon.ico":
            self.send(b"", "image/x-icon")
        else:
            self.route(path.removeprefix("/lora-trainer/v1/"), query)

    def route(self, path: str, query: dict[str, str]) -> None:
        world = self.world
        language = "zh_CN" if (query.get("lang") or self.headers.get("X-Language") or "").startswith("zh") else "en"
        if path == "status":
            status = world.status()
            self.send({"version": status["version"], "unchanged": True} if query.get("seen") == status["version"] else status)
        elif path == "options":
            checkpoints = [
                {"title": "v1-5-pruned-emaonly", "path": "", "loaded": True},
                {"title": "anime-mix", "path": "D:\\sd\\anime-mix.safetensors", "loaded": False},
            ]
            self.send(
                {
                    "sections": option_sections(language),
                    "defaults": default_config({"native_size": 512}),
                    "checkpoints": checkpoints,
                    "vaes": [],
                }
            )
        elif path == "words":
            translations.cache_clear()
            self.send(dict(translations(language)) if language != "en" else {})
        elif path == "runs":
            self.send(world.history())
        elif path == "report":
            self.send(b"versions\n", "text/plain")
        elif path == "folders":
            at = query.get("path") or ""
            folders = [
                {"name": name, "path": f"{at}/{name}", "pictures": count} for name, count in (("mika", 34), ("mika-val", 4), ("older", 0))
            ]
            self.send({"path": at or "/photos", "parent": "/" if at else None, "folders": folders, "roots": []})
        elif path == "thumbnail":
            _, _, _, place, number, size = (query["path"].split("/") + [""] * 6)[:6]
            width, height = (int(side) for side in size.split("x"))
            shrink = 300 / max(width, height)
            self.send(figure(int(width * shrink), int(height * shrink), place, 1.0, int(number)), "image/png")
        elif path.startswith("uploads/"):
            self.send({"path": "", "files": [], "parts": []})
        elif path.startswith("runs/"):
            self.run_route(path.split("/")[1:], query)
        else:
            self.send({"problems": [{"path": "", "message": f"no {path}", "fix": ""}]}, status=404)

    def run_route(self, parts: list[str], query: dict[str, str]) -> None:
        world = self.world
        what = parts[1] if len(parts) > 1 else ""
        if what == "events":
            after = int(query.get("after", 0))
            listed = world.events()[after : after + 20_000]
            self.send({"events": listed, "next": after + len(listed)})
        elif what == "config":
            config = {
                "data": {
                    "train_data_dir": "D:\\photos\\mika",
                    "trigger_word": "sks mika",
                    "class_tokens": "girl",
                    "batch_size": 2,
                    "num_repeats": 8,
                },
                "network": {"dim": 16, "alpha": 8.0},
                "optimizer": {"unet_lr": 1.4e-4, "learning_rate": 1e-4},
                "schedule": {"type": "cosine", "warmup_steps": 66},
                "sample": {"prompts": ["photo of sks mika, by the sea --s 20"]},
            }
            self.send({"config": config, "toml": ""})
        elif what == "grid":
            self.send(world.grid())
        elif what == "schedule":
            total = 10_000 if world.scenario == "long" else 1320
            self.send({"total_steps": total, "epochs": 10, "schedule": schedule(total, world.share(world.steps_done()))})
        elif what == "files":
            name = parts[-1].removesuffix(".png")
            epoch, _, second = name.partition("-")
            weight = float(second) if parts[-2] == "grid" else 1.0
            learnt = min(1.0, int(epoch) / 5) * (min(1.0, weight / 0.8) if parts[-2] == "grid" else 1.0)
            place = "cafe" if parts[-2] == "samples" and second == "1" else "sea"
            self.send(figure(512, 512, place, 0.0 if second == "2" and parts[-2] == "samples" else learnt), "image/png")
        else:
            run = world.run() or world.history()[0]
            self.send({**run, "id": parts[0], "manifest": world.manifest(), "plan": {}, "chosen": None})

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path).removeprefix("/lora-trainer/v1/")
        raw = self.body()
        body = json.loads(raw) if raw[:1] == b"{" else {}
        world = self.world
        world.asked.append(("POST", path, body))
        config = body.get("config", {})
        if path == "pictures" and not Path(config["data"]["train_data_dir"]).name.startswith(("mika", "D:")):
            self.send(
                {
                    "problems": [
                        {
                            "path": "data.train_data_dir",
                            "message": f"{config['data']['train_data_dir']} is not a folder.",
                            "fix": "Choose the folder that holds the pictures.",
                        }
                    ]
                },
                status=400,
            )
        elif path == "pictures":
            self.send(world.pictures(config))
        elif path == "captions":
            self.send(world.caption_list(config))
        elif path == "caption":
            self.send({"old": world.write_caption(body["path"], body["text"]), "written": True})
        elif path == "check":
            plan = world.plan(config)
            self.send(plan, status=200 if "images" in plan else 400)
        elif path == "wizard":
            self.send(world.wizard(config, body.get("typed", [])))
        elif path == "runs":
            world.scenario = "training"
            self.send({"run": "mika"})
        elif path == "grid":
            world.scenario = "halfgrid"
            self.send({"run": "mika-grid", "of": "mika"}, status=202)
        elif path.endswith("/resume"):
            world.scenario = "training"
            self.send({"run": "mika"})
        elif path.endswith("/control") and body["command"] == "change":
            wrong = [path for path, value in body["changes"].items() if isinstance(value, str) and path.endswith("_lr")]
            problems = [{"path": path, "message": "This must be a number.", "fix": "Write 1e-4."} for path in wrong]
            if not wrong:
                world.scenario, world.changed_at = "changed", world.steps_done()
            self.send({"problems": problems} if wrong else {}, status=400 if wrong else 200)
        elif path.endswith("/control"):
            world.scenario = {"pause": "paused", "resume": "training", "stop": "finished", "stop-discard": "finished"}.get(
                body["command"], world.scenario
            )
            self.send({})
        elif path.endswith("/use"):
            self.send({"file": f"mika-{body['epoch']:06d}.safetensors", "prompt": f"<lora:mika-{body['epoch']:06d}:{body['weight']}>"})
        else:
            self.send({})

    def do_DELETE(self) -> None:
        self.world.asked.append(("DELETE", self.path, None))
        self.send({"deleted": "", "files": []})


class _Server(ThreadingHTTPServer):
    """A page that is closed leaves its connections behind: no error of ours."""

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def serve(port: int = 0) -> ThreadingHTTPServer:
    """The server in a thread; `server_address[1]` is its port, `RequestHandlerClass.world` its world."""
    handler = type("Handler", (Handler,), {"world": World()})
    server = _Server(("127.0.0.1", port), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


if __name__ == "__main__":
    serve(int(sys.argv[1]) if len(sys.argv) > 1 else 7999)
    while True:
        time.sleep(3600)
