"""standalone.py: how an environment comes to be, with real pip and venv, a small index, and fakes for what a machine has."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import standalone
from tests.package_index import PackageIndex, clean_environment

ROOT = Path(standalone.__file__).parent
BARE = str(Path(sys.base_prefix) / ("python.exe" if os.name == "nt" else f"bin/python{sys.version_info[0]}.{sys.version_info[1]}"))
"""The interpreter below this environment: it has no torch of its own, which would be taken over."""
MINE = f"{sys.version_info[0]}.{sys.version_info[1]}"
TORCH = "1 + 1\n__version__ = {version!r}\n"
PROGRAM = """
import json, os, signal, sys, time
verb, *rest = sys.argv[1:]
if verb == "show":
    print(json.dumps({"arguments": rest, "wait": os.environ.get("OMP_WAIT_POLICY"), "folder": os.getcwd()}))
elif verb == "end":
    sys.exit(int(rest[0]))
elif verb == "die":
    os.kill(os.getpid(), signal.SIGKILL)
elif verb == "work":
    try:
        print("working", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(0.5)
        print("put away", flush=True)
        sys.exit(130)
"""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PackageIndex]:
    index = PackageIndex(tmp_path_factory.mktemp("index"))
    for version in ("2.12.0", "2.13.0", "2.13.0+cpu"):
        index.add("torch", version, modules={"torch/__init__.py": TORCH.format(version=version)})
    index.add("gadget", "1.0", needs=["torch"])
    index.add("gadget", "2.0", needs=["torch"])
    index.add("pytest", "9.0", modules={"pytest/__main__.py": "import sys\nprint('pytest', sys.argv[1:], sys._xoptions)"})
    yield index
    index.close()


class Project:
    """A small project around a copy of standalone.py, on a machine of its own: home, PATH and index are given."""

    def __init__(self, folder: Path, index: PackageIndex) -> None:
        self.folder, self.index = folder, index
        self.venv = folder / ".venv"
        (folder / "lora_trainer").mkdir(parents=True)
        (folder / "constraints").mkdir()
        shutil.copy(ROOT / "standalone.py", folder)
        files = {
            "lora_trainer/__init__.py": "",
            "lora_trainer/__main__.py": PROGRAM,
            "requirements.txt": "gadget\n",
            "requirements-optimizers.txt": "",
            "requirements-standalone.txt": "-r requirements.txt\n-r requirements-optimizers.txt\ntorch\n",
            "requirements-test.txt": "-r requirements-standalone.txt\npytest\n",
            f"constraints/py{MINE.replace('.', '')}.txt": "torch==2.13.0\ngadget==1.0\npytest==9.0\n",
        }
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        (folder / "home").mkdir()
        self.environment = clean_environment(index, HOME=str(folder / "home"), LORA_TRAINER_PYTHON=BARE)
        # a package that only PYTHONPATH holds is not one of the environment
        shutil.unpack_archive(index.folder / "gadget-1.0-py3-none-any.whl", folder / "elsewhere", "zip")
        self.environment["PYTHONPATH"] = str(folder / "elsewhere")
        self.environment["LORA_TRAINER_TORCH_INDEX_URL"] = "http://127.0.0.1:9/nothing"
        self.environment.pop("PYENV_ROOT", None)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(self.folder / "standalone.py"), *arguments]

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            env={**self.environment, **environment},
            cwd=self.folder / "home",
            capture_output=True,
            encoding="utf-8",
            timeout=120,
        )

    def packages(self, venv: Path | None = None) -> dict[str, str]:
        site = next((venv or self.venv).glob("lib/python*/site-packages"))
        return {d.metadata["Name"]: d.version for d in importlib.metadata.distributions(path=[str(site)])}


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, index: PackageIndex) -> Project:
    """A project whose environment is made, in a folder with spaces and letters of two scripts."""
    project = Project(tmp_path_factory.mktemp("made") / "数据 集 ü", index)
    done = project.run("show")
    assert done.returncode == 0, done.stderr
    project.first = done  # type: ignore[attr-defined]
    return project


@pytest.fixture
def project(tmp_path: Path, index: PackageIndex) -> Project:
    return Project(tmp_path / "project", index)


@pytest.fixture
def fake_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a program of that name and shell text first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def make(name: str, text: str) -> Path:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        path.chmod(0o755)
        return path

    return make


def test_first_call_makes_the_environment_from_the_constraints_and_runs_the_verb(ready: Project) -> None:
    assert ready.packages()["torch"].startswith("2.13.0")
    assert ready.packages()["gadget"] == "1.0"
    assert "pytest" not in ready.packages()
    assert '"wait": "PASSIVE"' in ready.first.stdout  # type: ignore[attr-defined]


def test_stdout_belongs_to_the_verb_alone(ready: Project) -> None:
    first = ready.first  # type: ignore[attr-defined]
    assert first.stdout.count("\n") == 1 and first.stdout.startswith("{")
    assert "Making" in first.stderr and "torch" in first.stderr


def test_size_and_free_space_are_told_before_torch_is_fetched(ready: Project) -> None:
    told, fetched = (ready.first.stderr.index(words) for words in ("GB to download", "Collecting torch"))  # type: ignore[attr-defined]
    assert told < fetched
    assert re.search(r"[\d.]+ GB are free", ready.first.stderr)  # type: ignore[attr-defined]


def test_index_of_torch_that_does_not_answer_gives_way_to_the_configured_one(ready: Project) -> None:
    assert "http://127.0.0.1:9/nothing did not answer within 10 s" in ready.first.stderr  # type: ignore[attr-defined]
    assert "torch-2.13.0+cpu-py3-none-any.whl" in ready.index.asked


def test_second_call_asks_nobody_and_passes_words_through(ready: Project, tmp_path: Path) -> None:
    before = ready.index.requests
    done = subprocess.run(
        ready.command("show", "--set", "a.b = c d", "ü"), env=ready.environment, capture_output=True, encoding="utf-8", cwd=tmp_path
    )
    assert done.returncode == 0
    assert '["--set", "a.b = c d", "\\u00fc"]' in done.stdout
    assert f'"folder": "{tmp_path}"' in done.stdout
    assert done.stderr == ""
    assert ready.index.requests == before


@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_exit_status_of_the_verb_is_passed_on(ready: Project, status: int) -> None:
    assert ready.run("end", str(status)).returncode == status


def test_verb_killed_by_a_signal_ends_with_128_and_its_number(ready: Project) -> None:
    assert ready.run("die").returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize("by_terminal", [True, False], ids=["ctrl-c", "sigterm"])
def test_interrupt_reaches_the_verb_and_waits_for_its_end(ready: Project, by_terminal: bool) -> None:
    child = subprocess.Popen(
        ready.command("work"),
        env=ready.environment,
        cwd=ready.folder,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )
    assert child.stdout is not None and child.stdout.readline() == "working\n"
    if by_terminal:
        os.killpg(child.pid, signal.SIGINT)
        assert child.stdout.read() == "put away\n"
        assert child.wait(10) == 130
    else:
        child.terminate()
        assert child.wait(10) == 128 + signal.SIGTERM


def test_test_verb_adds_the_test_packages_and_shows_files_without_encoding(ready: Project) -> None:
    done = ready.run("test", "tests/test_one.py", "-k", "one")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "pytest ['tests/test_one.py', '-k', 'one'] {'warn_default_encoding': True}\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--all"],
        ["tests/train"],
        ["tests/train", "-k", "disk"],
        ["tests/loss", "tests/test_x.py"],
        ["--order", "3"],
        ["--ignore=tests/test_x.py"],
    ],
)
def test_many_files_run_on_all_cores_each_file_in_one_process(words: list[str]) -> None:
    assert standalone.workers(words)[:4] == ["-n", "auto", "--dist", "loadfile"]


@pytest.mark.parametrize(
    "words", [["tests/test_x.py"], ["tests/test_x.py::test_y"], ["-n", "3"], ["-n3"], ["--pdb"], ["-s"], ["-p", "no:xdist"]]
)
def test_one_file_or_words_about_processes_are_left_to_pytest(words: list[str]) -> None:
    assert standalone.workers(words) == []


def test_version_that_another_package_does_not_accept_is_forced_after_all_others(project: Project) -> None:
    """A host that puts another torch below gadget than gadget asks for."""
    project.index.add("picky", "1.0", needs=["gadget<2"])
    (project.folder / "requirements.txt").write_text("picky\n", encoding="utf-8")
    for name, text in ((".txt", "torch==2.13.0\ngadget==1.0\npicky==1.0\n"), ("-forced.txt", "gadget==2.0\n")):
        (project.folder / "constraints" / f"py{MINE.replace('.', '')}{name}").write_text(text, encoding="utf-8")
    done = project.run("show")
    assert done.returncode == 0, done.stderr
    assert (project.packages()["gadget"], project.packages()["picky"]) == ("2.0", "1.0")
    project.index.requests = 0
    assert project.run("show").returncode == 0 and project.index.requests == 0


def test_changed_constraints_bring_the_environment_up_to_date(project: Project) -> None:
    assert project.run("setup").returncode == 0
    constraints = project.folder / "constraints" / f"py{MINE.replace('.', '')}.txt"
    constraints.write_text("torch==2.12.0\ngadget==2.0\npytest==9.0\n", encoding="utf-8")
    project.index.asked.clear()
    done = project.run("show")
    assert done.returncode == 0, done.stderr
    assert (project.packages()["gadget"], project.packages()["torch"]) == ("2.0", "2.12.0")
    assert project.index.asked == ["torch-2.12.0-py3-none-any.whl", "gadget-2.0-py3-none-any.whl"]


def test_interrupted_install_goes_on_where_it_stopped(project: Project) -> None:
    project.index.broken = {"gadget"}
    failed = project.run("show")
    project.index.broken = set()
    assert failed.returncode == 1 and failed.stdout == ""
    assert "run the same command again" in failed.stderr
    half = next(project.venv.glob("lib/python*/site-packages")) / "gadget-1.0.dist-info"  # as pip leaves it when it is killed
    half.mkdir()
    (half / "METADATA").write_text("Metadata-Version: 2.1\nName: gadget\nVersion: 1.0\n", encoding="utf-8")
    project.index.asked.clear()
    done = project.run("show")
    assert done.returncode == 0, done.stderr
    assert project.index.asked == ["gadget-1.0-py3-none-any.whl"]
    assert (half / "RECORD").is_file()


def test_environment_without_its_python_is_made_anew(project: Project) -> None:
    project.venv.mkdir()
    standalone.write_state(project.venv, {"python": MINE, "run": "x"})
    done = project.run("show")
    assert done.returncode == 0, done.stderr


def test_environment_that_somebody_else_made_is_never_changed(project: Project, tmp_path: Path) -> None:
    other = tmp_path / "webui venv"
    subprocess.run([sys.executable, "-m", "venv", str(other)], check=True)
    before = project.packages(other)
    done = project.run("show", LORA_TRAINER_VENV=str(other))
    assert done.returncode == 1
    assert "was not made by standalone.py" in done.stderr and "gadget, torch" in done.stderr
    assert "LORA_TRAINER_VENV=" in done.stderr
    assert project.packages(other) == before
    pip = [str(other / "bin" / "python"), "-m", "pip", "install", "-q", "gadget==2.0", "torch==2.12.0"]
    subprocess.run(pip, env=clean_environment(project.index), check=True)
    project.index.requests = 0
    assert project.run("show", LORA_TRAINER_VENV=str(other)).returncode == 0
    assert project.index.requests == 0


def test_folder_that_is_no_environment_is_refused(project: Project) -> None:
    project.venv.mkdir()
    (project.venv / "holiday.jpg").touch()
    done = project.run("show")
    assert done.returncode == 1 and "holds no environment of Python" in done.stderr
    assert (project.venv / "holiday.jpg").exists()
    done = project.run("show", LORA_TRAINER_VENV=str(project.venv / "holiday.jpg"))
    assert done.returncode == 1 and "holds no environment of Python" in done.stderr


def test_environment_of_another_python_than_the_named_one_is_refused(ready: Project, fake_program) -> None:
    other = fake_program("python3.99", "printf '3.99\\n/x/python\\n'")
    done = ready.run("show", LORA_TRAINER_PYTHON=str(other))
    assert done.returncode == 1 and f"was made with Python {MINE}" in done.stderr and "LORA_TRAINER_VENV" in done.stderr


# what this interpreter holds lies where an environment made with --system-site-packages sees it
WITH_TORCH = """
wheel='{index}/torch-2.12.0-py3-none-any.whl'
case "$*" in
  *sys.executable*) printf '{mine}\\n%s\\n' "$0" ;;
  *"import torch"*) echo 2.12.0 ;;
  *--system-site-packages*) for last; do :; done
    '{real}' "$@" && '{real}' -m zipfile -e "$wheel" "$last"/lib/python{mine}/site-packages ;;
  *) exec '{real}' "$@" ;;
esac
"""


def test_torch_of_the_named_python_is_used_whatever_its_version(project: Project, fake_program) -> None:
    python = fake_program("python-with-torch", WITH_TORCH.format(mine=MINE, real=sys.executable, index=project.index.folder))
    project.index.asked.clear()
    done = project.run("show", LORA_TRAINER_PYTHON=str(python))
    assert done.returncode == 0, done.stderr
    assert "with the torch that it has" in done.stderr
    assert project.index.asked == ["gadget-1.0-py3-none-any.whl"]
    assert project.packages()["torch"] == "2.12.0"


def test_without_a_fitting_python_the_way_to_one_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fake_program) -> None:
    broken = fake_program("python3.11", "echo 'pyenv: python3.11: command not found' >&2; exit 127")
    fake_program("python3.10", "printf '3.12\\n/usr/bin/python3.12\\n'")
    monkeypatch.setattr(sys, "executable", str(broken))
    for name in ("LORA_TRAINER_PYTHON", "PYENV_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(standalone.SetupError) as caught:
        standalone.find_python()
    assert "Python 3.11 or 3.10 is needed (or 3.13)" in str(caught.value)
    assert "python3.11" in caught.value.fix and "LORA_TRAINER_PYTHON=" in caught.value.fix


def test_python_311_wins_over_310_and_pyenv_is_looked_into(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fake_program) -> None:
    fake_program("python3.10", "printf '3.10\\n/usr/bin/python3.10\\n'")
    broken = fake_program("python3.11", "exit 127")
    monkeypatch.setattr(sys, "executable", str(broken))
    monkeypatch.delenv("LORA_TRAINER_PYTHON", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    assert standalone.find_python() == ("3.10", "/usr/bin/python3.10")
    own = tmp_path / "pyenv" / "versions" / "3.11.7" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.write_text("#!/bin/sh\nprintf '3.11\\n/pyenv/python3.11\\n'\n", encoding="utf-8")
    own.chmod(0o755)
    assert standalone.find_python() == ("3.11", "/pyenv/python3.11")


@pytest.mark.parametrize("answer", ["exit 1", "printf '3.12\\n/usr/bin/python3.12\\n'"], ids=["broken", "too new"])
def test_named_python_that_does_not_serve_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, fake_program, answer: str) -> None:
    python = fake_program("my-python", answer)
    monkeypatch.setenv("LORA_TRAINER_PYTHON", str(python))
    with pytest.raises(standalone.SetupError, match=f"LORA_TRAINER_PYTHON names {python}"):
        standalone.find_python()


SMI = """case "$*" in
  *compute_cap*) echo {capability} ;;
  *) echo "| NVIDIA-SMI 580.1   Driver Version: 580.1   CUDA Version: {cuda} |" ;;
esac"""


@pytest.mark.parametrize(
    ("python", "cuda", "capability", "build"),
    [
        ("3.11", "13.0", "8.6", "cu130"),
        ("3.11", "13.0", "6.1", "cu126"),  # Pascal is in no CUDA 13 build
        ("3.11", "12.4", "8.9", "cu126"),  # a driver before 580 runs no CUDA 13
        ("3.10", "12.4", "8.6", "cu121"),
        ("3.10", "11.8", "7.5", "cu118"),
        ("3.13", "13.0", "8.6", "cu130"),
        ("3.13", "12.4", "8.9", "cu126"),
    ],
)
def test_build_of_torch_fits_card_and_driver(fake_program, python: str, cuda: str, capability: str, build: str) -> None:
    fake_program("nvidia-smi", SMI.format(cuda=cuda, capability=capability))
    assert standalone.torch_build(python, standalone.nvidia_card()) == build


def test_nvidia_smi_that_fails_means_the_cpu_build(fake_program) -> None:
    fake_program("nvidia-smi", "echo 'could not communicate with the NVIDIA driver'; exit 9")
    assert standalone.nvidia_card() is None
    assert standalone.torch_build("3.11", None) == "cpu"


def test_index_that_hangs_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert standalone.PROBE_SECONDS == 10
    monkeypatch.setattr(standalone, "PROBE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not standalone.answers(f"http://127.0.0.1:{silent.getsockname()[1]}/simple")  # else it would wait for ever


def test_index_with_torch_answers_and_one_without_does_not(index: PackageIndex, tmp_path: Path) -> None:
    assert standalone.answers(index.url)
    empty = PackageIndex(tmp_path)
    assert not standalone.answers(empty.url)
    empty.close()


def test_full_disk_is_named_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12 - 10**9, 10**9))
    with pytest.raises(standalone.SetupError, match=r"needs 1\.9 GB, and 1\.0 GB are free there") as caught:
        standalone.check_disk(tmp_path / "a" / "venv", (0.5, 1.9))
    assert "LORA_TRAINER_VENV=" in caught.value.fix


def test_full_temporary_folder_is_named_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free = {str(tmp_path): 50 * 10**9, "/small": 10**8}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, free[str(path)]))
    monkeypatch.setattr(standalone.tempfile, "gettempdir", lambda: "/small")
    with pytest.raises(standalone.SetupError, match=r"/small, which needs 2\.7 GB; 0\.1 GB") as caught:
        standalone.check_disk(tmp_path / "venv", (2.7, 5.5))
    assert "TMPDIR=" in caught.value.fix


def test_folder_that_cannot_be_written_is_named(project: Project) -> None:
    (project.folder / "file").touch()
    done = project.run("show", LORA_TRAINER_VENV=str(project.folder / "file" / "venv"))
    assert done.returncode == 1 and str(project.folder / "file") in done.stderr and "LORA_TRAINER_VENV=" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_and_wrong_usage_make_no_environment(project: Project) -> None:
    assert project.run("--help").returncode == 0
    for words in ([], ["setup", "now"], ["tool"]):
        done = project.run(*words)
        assert done.returncode == 2 and "standalone.py VERB" in done.stdout
    assert not project.venv.exists()


def test_file_is_readable_by_python_38() -> None:
    ast.parse((ROOT / "standalone.py").read_text(encoding="utf-8"), feature_version=(3, 8))


def pins(python: str) -> dict[str, str]:
    """What standalone.py installs for that Python; of two versions of a package the one that is forced."""
    files = [standalone.constraints_file(python), *filter(None, [standalone.forced_file(python)])]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return {_normal(key): value for key, value in (line.split("==") for line in lines if "==" in line)}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_hold_the_versions_of_both_hosts() -> None:
    a1111 = {"torch": "2.1.2", "gradio": "3.41.2", "fastapi": "0.94.0", "transformers": "4.30.2", "accelerate": "0.21.0"}
    forge = {"torch": "2.13.0", "gradio": "4.40.0", "fastapi": "0.104.1", "transformers": "4.46.1", "accelerate": "0.31.0"}
    both = {"diffusers": "0.31.0", "safetensors": "0.4.2", "numpy": "1.26.2", "pillow": "9.5.0", "tomlkit": "0.12.0"}
    neo = {"torch": "2.11.0", "gradio": "4.40.0", "fastapi": "0.127.1", "transformers": "4.56.2", "accelerate": "1.13.0"}
    neo |= {"diffusers": "0.37.1", "safetensors": "0.7.0", "numpy": "2.3.5", "pillow": "12.2.0", "tomlkit": "0.12.0"}
    for version, host in (("3.10", a1111 | both), ("3.11", forge | both), ("3.13", neo)):
        assert host.items() <= pins(version).items()


def test_whole_environment_is_pinned() -> None:
    """Everything that the requirement files bring, however deep, has its version in the constraints."""
    from packaging.requirements import Requirement

    waiting = [
        line for path in standalone.requirement_files("test") for line in path.read_text("utf-8").splitlines() if re.match("[A-Za-z]", line)
    ]
    pinned, seen = pins(MINE), {}
    while waiting:
        requirement = Requirement(waiting.pop())
        name = _normal(requirement.name)
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen[name] = importlib.metadata.version(name)
        waiting += importlib.metadata.requires(name) or []
    own = {name: version.split("+")[0] for name, version in seen.items() if not name.startswith("nvidia-")}
    assert len(own) > 50
    assert own.items() <= pinned.items()


def test_documented_optimizers_are_in_the_environment_that_runs_and_not_only_in_that_of_the_tests() -> None:
    """`lr-find` trains with Prodigy, and a fresh installation holds no package of the tests."""
    lines = {line for path in standalone.requirement_files("run") for line in path.read_text("utf-8").splitlines()}
    names = {re.split("[=<>]", line)[0] for line in lines}
    assert {"prodigyopt", "lion-pytorch", "dadaptation", "schedulefree"} <= names
    exact = dict(line.split("==") for line in (ROOT / "requirements-optimizers.txt").read_text("utf-8").splitlines() if "==" in line)
    assert all(exact.items() <= pins(python).items() for python in standalone.PYTHONS)
