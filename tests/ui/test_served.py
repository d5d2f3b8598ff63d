"""What `python -m lora_trainer ui` serves, and the frame that a WebUI gets: without a browser."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest

from lora_trainer.errors import TrainerError
from lora_trainer.ui.blocks import build
from lora_trainer.ui.page import ROOT, complete_page
from lora_trainer.ui.standalone import create_app, require_free_port


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from starlette.testclient import TestClient

    from lora_trainer.host.standalone import StandaloneHost
    from lora_trainer.jobs.manager import JobManager

    return TestClient(create_app(StandaloneHost(tmp_path_factory.mktemp("ui")), JobManager()), base_url="http://127.0.0.1:7865")


def test_the_page_holds_the_tab_s_place_and_every_script(client: Any):
    html = client.get("/").text
    assert "lora_trainer_root" in html
    assert "tab_lora_trainer" in html
    for script in (ROOT / "javascript").glob("*.js"):
        address = re.search(rf'src="(lora-trainer/page/{script.name}\?\d+)"', html)
        assert address, script.name
        answer = client.get("/" + address.group(1))
        assert answer.text == script.read_text(encoding="utf-8")
        assert answer.headers["content-type"].startswith("text/javascript")


def test_the_page_asks_no_other_server(client: Any):
    html = re.sub(r"<script>window\.gradio_config.*?</script>", "", client.get("/").text, flags=re.DOTALL)
    assert re.findall(r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="https?://[^"]*"', html) == []
    assert "fonts.googleapis" not in html


def test_only_our_own_files_are_served_beside_the_page(client: Any):
    for name in ("../pyproject.toml", "..%2Fpyproject.toml", "start.js/../../pyproject.toml", "nothing.js"):
        answer = client.get(f"/lora-trainer/page/{name}")
        assert answer.status_code == 404 or "[project]" not in answer.text


def test_gradio_and_the_routes_answer_on_the_same_port(client: Any):
    assert client.get("/lora-trainer/v1/status").json()["host"]["name"] == "standalone"
    assert client.get("/config").json()["title"] == "LoRA Trainer"


def test_the_page_is_completed_once_at_the_end_of_its_head():
    html = complete_page(
        '<head><link rel="preconnect" href="https://fonts.gstatic.com" crossorigin="anonymous" /></head><body></head></body>'
    )
    assert "gstatic" not in html
    assert html.count("style.css") == 1
    assert html.index("start.js") < html.index("</head>")


def test_a_host_s_tab_has_the_hidden_fields_that_fill_its_page():
    registered: list[tuple[str, str]] = []
    blocks = build(lambda button, text: registered.append((button.elem_id, text.elem_id)))
    assert registered == [
        ("lora_trainer_txt2img_button", "lora_trainer_txt2img_text"),
        ("lora_trainer_plot_button", "lora_trainer_plot_text"),
    ]
    shown = [block for block in blocks.blocks.values() if getattr(block, "elem_id", None)]
    assert all(block.elem_id.startswith("lora_trainer_") for block in shown)


def test_a_tab_without_a_host_page_has_no_hidden_fields():
    assert "lora_trainer_txt2img_text" not in [getattr(block, "elem_id", None) for block in build().blocks.values()]


def test_gradio_is_given_no_words_that_it_translates_itself():
    # Gradio 4 shows a button whose label is one of its own i18n groups as "[object Object]"
    words = {"image", "file", "plot", "common", "login", "upload_text", "audio", "video", "chatbot", "code", "label"}
    blocks = build(lambda button, text: None)
    assert not words & {str(getattr(block, "value", "")) for block in blocks.blocks.values()}


def test_a_taken_port_is_named_with_the_remedy():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(TrainerError, match=f"port {port} cannot be opened .* Choose another with --port"):
            require_free_port("127.0.0.1", port)


def test_style_stays_inside_the_tab():
    rules = re.sub(r"/\*.*?\*/", "", (ROOT / "style.css").read_text(encoding="utf-8"), flags=re.DOTALL)
    depth, selectors, current = 0, [], ""
    for sign in rules:
        if sign == "{":
            if depth == 0:
                selectors.append(current.strip())
            depth += 1
            current = ""
        elif sign == "}":
            depth -= 1
            current = ""
        else:
            current += sign
    assert depth == 0
    assert [one for one in selectors if "#tab_lora_trainer" not in one and not one.startswith("@keyframes lt-")] == []


def test_javascript_needs_no_other_server_and_no_modules():
    for script in sorted((ROOT / "javascript").glob("*.js")):
        text = script.read_text(encoding="utf-8")
        assert not re.search(r"https?://(?!www\.w3\.org)", text), script.name
        assert not re.search(r"^\s*(import|export)\s", text, re.MULTILINE), script.name
        assert "innerHTML" not in text, f"{script.name}: text of files and prompts must never be read as HTML"
        assert text.count("window.LoraTrainer = window.LoraTrainer") == 1, script.name


def test_each_script_is_small_enough_to_read():
    """By its code without indentation: how its lines are wrapped does not count."""
    sizes = {
        file.name: sum(len(line.strip()) for line in file.read_text("utf-8").splitlines())
        for file in Path(ROOT / "javascript").glob("*.js")
    }
    long = {name: size for name, size in sizes.items() if size > 16_000}
    assert long == {}
