"""The real WebUI of the tests that are marked needs_webui: one for the whole session."""

import os
import shutil
from pathlib import Path

import pytest

from tests.host import real_webui as real


@pytest.fixture(scope="session")
def webui_tree():
    return Path(os.environ["LORA_TRAINER_WEBUI_DIR"]).resolve()


@pytest.fixture(scope="session")
def webui_python(webui_tree):
    python = real.environment(webui_tree)
    yield python
    if "lora-trainer-venv-" in str(python):
        shutil.rmtree(python.parents[2])


@pytest.fixture(scope="session")
def webui_data(webui_tree, webui_python):
    data = real.scratch(webui_tree)
    real.place_extension(data)
    real.install(webui_tree, data, webui_python)
    yield data
    real.remove(data)


@pytest.fixture(scope="session")
def real_webui(webui_tree, webui_data, webui_python):
    """A running WebUI: LORA_TRAINER_WEBUI_URL, or one that is started for these tests."""
    if url := os.environ.get("LORA_TRAINER_WEBUI_URL"):
        yield real.RealWebUI(url)
        return
    host = real.start(webui_tree, webui_data, webui_python)
    yield host
    host.stop()
