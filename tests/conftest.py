"""What every test can count on: quiet threads, no network, the small model, and that CI runs what it says it runs."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

# before anything imports torch: two busy threads on a shared machine slow each other down a hundredfold
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import atexit
import shutil
import signal
import tempfile

import pytest

from lora_trainer import assets

# nothing that an earlier session, or the user's own runs, kept of encoded pictures may stand in for what a test is to compute
if "LORA_TRAINER_CACHE" not in os.environ:
    os.environ["LORA_TRAINER_CACHE"] = tempfile.mkdtemp(prefix="lora-trainer-cache-")
    atexit.register(shutil.rmtree, os.environ["LORA_TRAINER_CACHE"], ignore_errors=True)

# started in the background of a script, Ctrl-C is ignored, and every process that a test starts would inherit that
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

EXCUSED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the slow tests too")
    parser.addoption("--without", metavar="FIXTURE", default="", help="leave out the tests that use this fixture")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the slow ones out, unless all were asked for, or a marker expression or a test's own name chose them."""
    elsewhere = [item for item in items if config.getoption("--without") in getattr(item, "fixturenames", ())]
    chosen = config.getoption("--all") or config.getoption("markexpr") or any("::" in str(word) for word in config.args)
    slow = [] if chosen else [item for item in items if item.get_closest_marker("slow") and item not in elsewhere]
    config.hook.pytest_deselected(items=[*elsewhere, *slow])
    left_out = {*elsewhere, *slow}
    items[:] = [item for item in items if item not in left_out]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what this machine cannot run: the only skips that CI lets pass."""
    reason = None
    if item.get_closest_marker("needs_webui") and not os.environ.get("LORA_TRAINER_WEBUI_DIR"):
        reason = "LORA_TRAINER_WEBUI_DIR names no WebUI"
    elif item.get_closest_marker("needs_gpu"):
        import torch

        reason = None if torch.cuda.is_available() else "no CUDA device"
    if reason:
        item.stash[EXCUSED] = True
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not item.stash.get(EXCUSED, False):
        _fail_where_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_where_skipped(report)
    return report


def _fail_where_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In CI a test that skips itself is a hole that nobody sees."""
    if os.environ.get("LORA_TRAINER_CI") == "1" and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and CI (LORA_TRAINER_CI=1) lets only needs_gpu and needs_webui skip: {report.longreprtext}"


@pytest.fixture(scope="session")
def toy_checkpoint() -> Path:
    """The small trained model: Stable Diffusion 1.x in LDM layout, 64 x 64 pixels."""
    return assets.toy_checkpoint()


@pytest.fixture(scope="session")
def toy_pictures() -> Path:
    """Folder with crescent/train, crescent/val, star/train, star/val. Copy what you change."""
    return assets.toy_pictures()
