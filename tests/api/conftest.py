"""A real server on a free port, with the headless host in a folder of its own."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from lora_trainer.api.routes.mount import mount
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.jobs.manager import JobManager

V1 = "/lora-trainer/v1"


class TestHost(StandaloneHost):
    """The headless host, with a login and waits that a test can set."""

    __test__ = False

    def __init__(self, root: Path, **options):
        super().__init__(root, **options)
        self.password = ""
        self.slow: threading.Event | None = None  # the model is not told before this is set
        self.busy = None
        self.refreshed = 0

    def is_authorized(self, request):
        return not self.password or request.headers.get("authorization") == self.password

    def model_info(self):
        if self.slow:
            self.slow.wait()
        return super().model_info()

    def busy_reason(self):
        return self.busy

    def refresh_networks(self):
        self.refreshed += 1


class Server:
    """The routes behind uvicorn; `client` asks below /lora-trainer/v1."""

    def __init__(self, host: TestHost):
        self.host, self.manager = host, JobManager()
        self.app = FastAPI()
        mount(self.app, host, self.manager)
        config = uvicorn.Config(self.app, port=0, log_level="warning")
        self.uvicorn = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.uvicorn.run, daemon=True)
        self.thread.start()
        while not self.uvicorn.started:
            time.sleep(0.01)
        self.port = self.uvicorn.servers[0].sockets[0].getsockname()[1]
        self.origin = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.origin + V1, timeout=60)

    def close(self):
        if self.manager.current is not None:
            self.manager.current.command("stop-discard")
            assert self.manager.current is None or self.manager.latest.join(60)
        self.client.close()
        self.uvicorn.should_exit = True
        self.thread.join(10)

    def get(self, path, /, **query):
        return self.client.get(path, params=query)

    def post(self, path, /, body, **options):
        return self.client.post(path, json=body, **options)

    def wait_for(self, condition, seconds=120):
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, "it never came"
            time.sleep(0.02)
        return found

    def wait_for_end(self, run):
        return self.wait_for(lambda: (found := self.get(f"runs/{run}").json())["outcome"] and found)


@pytest.fixture
def server(tmp_path):
    running = Server(TestHost(tmp_path / "data"))
    yield running
    running.close()


@pytest.fixture
def closed_server(tmp_path):
    """Reachable from the network: only its own folder may be touched."""
    (tmp_path / "data").mkdir()
    running = Server(TestHost(tmp_path / "data", listen=True))
    yield running
    running.close()


@pytest.fixture
def pictures(tmp_path, toy_pictures):
    """A copy of the crescents that a test may change."""
    return Path(shutil.copytree(toy_pictures / "crescent" / "train", tmp_path / "data" / "pictures"))


def small_config(pictures, **changes):
    """Six steps on the crescent."""
    config = {
        "data": {"train_data_dir": str(pictures), "resolution": 64, "batch_size": 4, "trigger_word": "sks"},
        "network": {"dim": 4, "alpha": 4},
        "optimizer": {"learning_rate": 2e-3},
        "steps": {"max_train_steps": 6},
        "sample": {"prompts": ["a sks crescent --w 64 --h 64 --s 2"], "at_first": False},
        "save": {"output_name": "moon"},
    }
    for path, value in changes.items():
        section, _, name = path.partition("__")
        config.setdefault(section, {})[name] = value
    return config
