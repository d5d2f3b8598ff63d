"""What every test can count on: quiet threads, no network, a cache of its worker's own, the small model; and that CI runs what it says."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

# before anything imports torch: two busy threads on a shared machine slow each other down a hundredfold
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# one thread: oneDNN adds up the gradient of a convolution on a 1 x 1 map (the small model has some) in the order in which several arrive
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import atexit
import math
import random
import shutil
import signal
import sys
import tempfile

import psutil
import pytest

from lora_trainer import assets

# nothing that an earlier session, another worker or the user kept of encoded pictures may stand in for what a test is to compute
if "LORA_TRAINER_CACHE" not in os.environ or "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["LORA_TRAINER_CACHE"] = tempfile.mkdtemp(prefix="lora-trainer-cache-")
    atexit.register(shutil.rmtree, os.environ["LORA_TRAINER_CACHE"], ignore_errors=True)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("PYTHONWARNDEFAULTENCODING", None)

# started in the background of a script, Ctrl-C is ignored, and every process that a test starts would inherit that
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

EXCUSED = pytest.StashKey[bool]()
WORKER_GB = 6.0
"""Memory for one worker and the programs that its tests start (measured: 4.7 for the worker alone, 9 with all pages that several share)."""
MINUTES = 40
"""What the fast tests take in one process (measured on one core of a server)."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the slow tests too")
    parser.addoption("--without", metavar="FIXTURE", default="", help="leave out the tests that use this fixture")
    parser.addoption("--order", metavar="SEED", type=int, help="run the files in another order, which the number decides")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """-n auto: a worker for each core that this process may use, as far as memory allows."""
    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count() or 1
    workers = max(1, min(cores, int(psutil.virtual_memory().available / 2**30 / WORKER_GB)))
    if sys.flags.warn_default_encoding:  # a worker is started without -X; it takes this out again, so that no program of a test has it
        os.environ["PYTHONWARNDEFAULTENCODING"] = "1"
    return workers


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Says before the first test how long they all take, and in which order the files come."""
    lines = [f"order: files shuffled by --order {config.getoption('--order')}"] if config.getoption("--order") is not None else []
    workers = getattr(config.option, "numprocesses", None) or 1
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return lines
    if config.getoption("--all"):
        return [*lines, "all tests, the slow ones too: several hours"]
    return [*lines, f"the fast tests: about {math.ceil(MINUTES / workers)} minutes in {workers} process(es) on an idle machine"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the slow ones out, unless all were asked for, or a marker expression or a test's own name chose them."""
    elsewhere = [item for item in items if config.getoption("--without") in getattr(item, "fixturenames", ())]
    chosen = config.getoption("--all") or config.getoption("markexpr") or any("::" in str(word) for word in config.args)
    slow = [] if chosen else [item for item in items if item.get_closest_marker("slow") and item not in elsewhere]
    config.hook.pytest_deselected(items=[*elsewhere, *slow])
    left_out = {*elsewhere, *slow}
    items[:] = [item for item in items if item not in left_out]
    if config.getoption("--order") is not None:
        files = list(dict.fromkeys(item.path for item in items))
        random.Random(config.getoption("--order")).shuffle(files)
        items.sort(key=lambda item: files.index(item.path))


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
