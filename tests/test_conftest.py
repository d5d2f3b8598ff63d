"""The rules of the suite itself: which skips CI lets pass, which warnings are errors, which tests run unasked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULE = """
from pathlib import Path
import warnings

def read():
    Path(__file__).open().close()

def warn():
    warnings.warn("x")
"""
TESTS = """
import pytest, other
from lora_trainer.deep import module

def test_skips_itself(): pytest.skip("no reason")
@pytest.mark.skipif(True, reason="none either")
def test_skipped_by_mark(): pass
@pytest.mark.needs_webui
def test_needs_webui(): pass
@pytest.mark.slow
def test_slow(): pass
@pytest.mark.xfail
def test_expected_to_fail(): assert False
def test_our_file_without_encoding(): module.read()
def test_their_file_without_encoding(): other.read()
def test_our_warning(): module.warn()
def test_their_warning(): other.warn()
def test_own_cache():
    import os, pathlib
    assert "PYTEST_XDIST_WORKER" not in os.environ or not list(pathlib.Path(os.environ["LORA_TRAINER_CACHE"]).iterdir())
    pathlib.Path(os.environ["LORA_TRAINER_CACHE"], "mine").touch()
def test_programs_do_not_warn():
    import os
    assert "PYTEST_XDIST_WORKER" not in os.environ or "PYTHONWARNDEFAULTENCODING" not in os.environ
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project under this project's own pyproject.toml and conftest.py."""
    folder = tmp_path_factory.mktemp("suite")
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", folder / "tests")
    files = {
        "lora_trainer/__init__.py": "",
        "lora_trainer/assets.py": "",
        "lora_trainer/deep/__init__.py": "",
        "lora_trainer/deep/module.py": MODULE,
        "other.py": MODULE,
        "tests/test_all.py": TESTS,
        "tests/test_absent.py": "import pytest\npytest.importorskip('no_such_package')\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def outcomes(suite: Path, *words: str, ci: str) -> dict[str, str]:
    """Test -> PASSED, FAILED, ERROR, SKIPPED or XFAIL."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LORA_TRAINER_", "PYTEST_", "PYTHONPATH"))}
    command = [sys.executable, "-X", "warn_default_encoding", "-m", "pytest", "-rA", "-v", "-p", "no:cacheprovider", *words]
    done = subprocess.run(command, cwd=suite, env={**environment, "LORA_TRAINER_CI": ci}, capture_output=True, encoding="utf-8")
    found = re.findall(r"tests/test_\w+\.py::test_(\w+) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)", done.stdout)
    absent = re.search(r"^(ERROR|SKIPPED).*test_absent", done.stdout, re.MULTILINE)
    return {**dict(found), "absent": absent.group(1) if absent else ""}


def test_in_ci_only_what_the_machine_cannot_have_may_skip(suite: Path) -> None:
    seen = outcomes(suite, "tests/test_all.py", ci="1")
    assert (seen["skips_itself"], seen["skipped_by_mark"], seen["needs_webui"]) == ("FAILED", "ERROR", "SKIPPED")
    assert seen["expected_to_fail"] == "XFAIL"
    assert outcomes(suite, ci="1")["absent"] == "ERROR"


def test_elsewhere_a_skip_is_a_skip(suite: Path) -> None:
    seen = outcomes(suite, ci="")
    assert (seen["skips_itself"], seen["skipped_by_mark"], seen["absent"]) == ("SKIPPED", "SKIPPED", "SKIPPED")


def test_warnings_of_our_own_modules_are_errors_and_those_of_others_are_not(suite: Path) -> None:
    seen = outcomes(suite, "tests/test_all.py", ci="")
    assert (seen["our_file_without_encoding"], seen["their_file_without_encoding"]) == ("FAILED", "PASSED")
    assert (seen["our_warning"], seen["their_warning"]) == ("FAILED", "PASSED")


def test_workers_keep_the_rules_and_each_has_its_own_cache(suite: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LORA_TRAINER_", "PYTEST_", "PYTHONPATH"))}
    command = [
        sys.executable,
        "-X",
        "warn_default_encoding",
        "-m",
        "pytest",
        "-rA",
        "-p",
        "no:cacheprovider",
        "-n",
        "auto",
        "tests/test_all.py",
    ]
    done = subprocess.run(command, cwd=suite, env={**environment, "LORA_TRAINER_CI": "1"}, capture_output=True, encoding="utf-8")
    found = {name: word for word, name in re.findall(r"^(PASSED|FAILED|ERROR) tests/test_all\.py::test_(\w+)", done.stdout, re.MULTILINE)}
    assert (found["our_file_without_encoding"], found["their_file_without_encoding"]) == ("FAILED", "PASSED")
    assert (found["skips_itself"], found["own_cache"], found["programs_do_not_warn"]) == ("FAILED", "PASSED", "PASSED")


def test_another_order_is_another_order_of_whole_files_and_comes_again(suite: Path, tmp_path: Path) -> None:
    for number in range(8):
        (suite / "tests" / f"test_order_{number}.py").write_text("def test_a(): pass\ndef test_b(): pass\n", encoding="utf-8")

    def order(*words: str) -> list[str]:
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-k", "test_order", *words]
        done = subprocess.run(command, cwd=suite, capture_output=True, encoding="utf-8")
        return re.findall(r"test_order_(\d)\.py::test_[ab]", done.stdout)

    assert order() == [str(number) for number in range(8) for _ in range(2)]
    other = order("--order", "3")
    assert other != order() and sorted(other) == sorted(order()) and other[::2] == other[1::2]
    assert order("--order", "3") == other


@pytest.mark.parametrize(
    ("words", "runs"), [([], False), (["--all"], True), (["-m", "slow"], True), (["tests/test_all.py::test_slow"], True)]
)
def test_slow_tests_run_when_asked_for(suite: Path, words: list[str], runs: bool) -> None:
    assert ("slow" in outcomes(suite, *words, ci="")) is runs
