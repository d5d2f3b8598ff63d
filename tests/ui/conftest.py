"""Chromium, and the two servers that the tab is tried against: made-up answers, and the real one with the small model."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .made_up import World
from .mock_server import serve

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
OWN = ("lora-trainer/", "javascript/", "style.css")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser of the machine."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """open_page(address, width=, height=, **context) -> a page; at the end no error of ours may stand in its console."""
    contexts, complaints = [], []

    def note(kind: str, text: str, where: str) -> None:
        # a refusal that the page shows beside its field is no error, although Chromium notes every 4xx
        if "Failed to load resource" not in text and (kind == "page" or any(name in where for name in OWN)):
            complaints.append(f"{kind}: {text} ({where})")

    def open_(address: str, *, width: int = 1440, height: int = 900, ready: bool = True, **context: Any) -> Any:
        contexts.append(chromium.new_context(viewport={"width": width, "height": height}, **context))
        contexts[-1].set_default_timeout(120_000)  # a machine that is busy with other work
        page = contexts[-1].new_page()
        page.on("console", lambda said: note(said.type, said.text, said.location.get("url", "")) if said.type == "error" else None)
        page.on("pageerror", lambda error: note("page", str(error), error.stack or ""))
        page.goto(address)
        if ready:
            page.wait_for_selector("[data-ready=true]", timeout=120_000)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def made_up() -> Iterator[tuple[str, World]]:
    """(address, world) of the server with made-up answers."""
    server = serve()
    handler: Any = server.RequestHandlerClass
    yield f"http://127.0.0.1:{server.server_address[1]}/", handler.world
    server.shutdown()


FORM = {
    "data.train_data_dir": "D:\\photos\\mika",
    "data.trigger_word": "sks mika",
    "data.class_tokens": "girl",
    "data.num_repeats": 8,
    "steps.max_train_epochs": 10,
    "network.dim": 32,
    "network.alpha": 32.0,
    "save.output_name": "mika",
    "sample.prompts": ["photo of sks mika, by the sea"],
}


@pytest.fixture
def mika(open_page: Callable[..., Any], made_up: tuple[str, World]) -> Callable[..., Any]:
    """mika(step, scenario, ...) -> the page at that step, with the form filled as in the drawings."""
    address, world = made_up

    def at(
        step: str, scenario: str = "idle", *, lang: str = "en", theme: str = "", values: dict[str, Any] | None = None, **size: int
    ) -> Any:
        world.scenario = scenario
        page = open_page(f"{address}?__lang={lang}&__theme={theme}&__scenario={scenario}", **size)
        page.evaluate("values => LoraTrainer.set(values, 'the test')", FORM if values is None else values)
        page.evaluate("LoraTrainer.noteSuggestions('kept')")  # not a first visit: nothing is filled in
        page.evaluate("LoraTrainer.state.typed['data.num_repeats'] = true")  # of all these the user typed only this one
        page.evaluate("step => LoraTrainer.goToStep(step)", step)
        page.wait_for_function(
            "!LoraTrainer.folder()"
            " || (LoraTrainer.cache.plan && (LoraTrainer.cache.pictures || LoraTrainer.cache.picturesProblems.length))",
            timeout=120_000,
        )
        return page

    return at


class Server:
    """The real app in a thread of this process."""

    def __init__(self, root: Path) -> None:
        import uvicorn

        from lora_trainer.host.standalone import StandaloneHost
        from lora_trainer.jobs.manager import JobManager
        from lora_trainer.ui.standalone import create_app

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.root = root
        self.manager = JobManager()
        self.address = f"http://127.0.0.1:{port}/"
        app = create_app(StandaloneHost(root), self.manager)
        self._server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        end = time.monotonic() + 60
        while not self._server.started:
            assert time.monotonic() < end, "the page's server did not start"
            time.sleep(0.05)

    def close(self) -> None:
        """Stops what runs, then the server."""
        if (job := self.manager.current) is not None:
            job.command("stop-discard")
            job.join(60)
        self._server.should_exit = True
        self._thread.join(20)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The page of `python -m lora_trainer ui` with the small model."""
    server = Server(tmp_path_factory.mktemp("ui"))
    yield server
    server.close()
