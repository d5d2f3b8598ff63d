"""install.py as the host runs it: a process of its own, in an environment with the host's packages, with real pip."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import install
import preload
from tests.package_index import PackageIndex, clean_environment, write_wheel

ROOT = Path(install.__file__).parent
# A1111's own launch.run_pip puts the command together in this way: a string, for a shell
LAUNCH = """
import subprocess, sys
def run_pip(command, desc=None):
    print("host's pip: " + command)
    done = subprocess.run(f'"{sys.executable}" -m pip {command} --prefer-binary', shell=True, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"Couldn't install {desc}.\\nstdout: {done.stdout}\\nstderr: {done.stderr}")
"""


class Host:
    """An environment with packages (their metadata is all that pip looks at), and a WebUI folder with the extension in it."""

    def __init__(self, folder: Path, venv: Path, index: PackageIndex, **packages: str) -> None:
        self.venv, self.index = folder / "venv", index
        shutil.copytree(venv, self.venv, symlinks=True)
        self.python = self.venv / "bin" / "python"
        self.site = next(self.venv.glob("lib/python*/site-packages"))
        for name, version in packages.items():
            wheel = write_wheel(folder / "wheels", name, version)
            shutil.unpack_archive(wheel, self.site, "zip")
        self.extension = folder / "web ui" / "extensions" / "lora trainer"
        self.extension.mkdir(parents=True)
        for name in ("install.py", "requirements.txt", "requirements-optimizers.txt"):
            shutil.copy(ROOT / name, self.extension)
        (folder / "web ui" / "launch.py").write_text(LAUNCH, encoding="utf-8")
        self.environment = clean_environment(index, PYTHONPATH=str(folder / "web ui"))

    def start(self, *flags: str, **environment: str) -> str:
        """What install.py prints in one start of the host; its exit status is always 0."""
        command = [str(self.python), str(self.extension / "install.py"), *flags]
        done = subprocess.run(command, env={**self.environment, **environment}, capture_output=True, encoding="utf-8", timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def pin(self, text: str, file: str) -> None:
        """The requirements that the host itself installs at its start."""
        (Path(self.environment["PYTHONPATH"]) / file).write_text(text, encoding="utf-8")

    def freeze(self) -> set[str]:
        return {f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions(path=[str(self.site)])}


@pytest.fixture(scope="module")
def empty_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    venv = tmp_path_factory.mktemp("venv") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    return venv


@pytest.fixture
def index(tmp_path: Path) -> Iterator[PackageIndex]:
    index = PackageIndex(tmp_path / "index")
    for version in ("0.30.3", "0.31.0", "0.37.1", "0.42.1"):
        index.add("diffusers", version, needs=["huggingface_hub>=0.23.2", "zipp>=3.20"])
    for name, version in (("cattrs", "24.1.3"), ("cattrs", "25.3.0"), ("tomlkit", "0.12.0"), ("tomlkit", "0.15.2"), ("zipp", "4.1.2")):
        index.add(name, version)
    for version in ("0.20.3", "0.36.2", "1.0.0"):
        index.add("huggingface_hub", version)
    index.add("transformers", "4.30.2", needs=["huggingface-hub (<1.0,>=0.14.1)", "huggingface-hub<0.1 ; extra == 'old'", "torch>=1.9"])
    for version in ("26.1.0", "27.0.0"):
        index.add("attrs", version)
    for name, version in OPTIMIZERS.items():  # lion-pytorch and schedulefree name torch, which must stay as it is
        index.add(name, version, needs=["torch>=2.4"])
    index.add("torch", "2.4.0")
    yield index
    index.close()


@pytest.fixture
def make_host(tmp_path: Path, empty_venv: Path, index: PackageIndex):
    return lambda **packages: Host(tmp_path, empty_venv, index, **packages)


DIFFUSERS = "0.31.0" if sys.version_info < (3, 12) else "0.37.1"
"""What is installed where there is none."""
A1111 = {"attrs": "26.1.0", "huggingface_hub": "0.36.2", "torch": "2.1.2+cu121"}
OPTIMIZERS = {"prodigyopt": "1.1.2", "lion_pytorch": "0.2.5", "dadaptation": "3.2", "schedulefree": "1.4.1"}
BASE = {**A1111, "diffusers": "0.31.0", "cattrs": "24.1.3", "tomlkit": "0.12.0"}
FULL = {**BASE, **OPTIMIZERS}


def test_what_is_missing_is_added_and_no_line_of_the_freeze_changes(make_host) -> None:
    host = make_host(**A1111)
    before = host.freeze()
    said = host.start()
    added = {f"diffusers=={DIFFUSERS}", "cattrs==24.1.3", "tomlkit==0.12.0", "zipp==4.1.2"}
    added |= {f"{name}=={version}" for name, version in OPTIMIZERS.items()}
    assert host.freeze() == before | added
    assert all(package.replace("==", " ") in said for package in added)


def test_the_hosts_own_pip_call_is_used_with_everything_pinned(make_host) -> None:
    said = make_host(**A1111).start()
    assert "host's pip: install" in said and '-c "' in said and f'"diffusers=={DIFFUSERS}"' in said


def test_optimizers_come_without_what_they_depend_on_and_one_that_is_there_stays(make_host) -> None:
    host = make_host(**BASE, schedulefree="1.3")
    before = host.freeze()
    said = host.start()
    assert host.freeze() == before | {"prodigyopt==1.1.2", "lion_pytorch==0.2.5", "dadaptation==3.2"}
    assert said.count("--no-deps") == 3 and "torch" not in " ".join(host.index.asked).replace("lion_pytorch", "")


def test_optimizer_that_cannot_be_added_keeps_no_other_away_and_is_not_tried_again(make_host) -> None:
    host = make_host(**BASE)
    (host.index.folder / "dadaptation-3.2-py3-none-any.whl").unlink()
    before = host.freeze()
    said = host.start()
    assert host.freeze() == before | {"prodigyopt==1.1.2", "lion_pytorch==0.2.5", "schedulefree==1.4.1"}
    assert said.count("Remedy:") == 1 and '-m pip install --no-deps "dadaptation==3.2"' in said
    before, host.index.requests = host.freeze(), 0
    assert "dadaptation could not be added" in host.start() and host.index.requests == 0
    assert host.freeze() == before


def test_it_installs_without_a_host_too(make_host) -> None:
    host = make_host(**A1111)
    said = host.start(PYTHONPATH="")
    assert "host's pip" not in said and f"diffusers=={DIFFUSERS}" in host.freeze()


@pytest.mark.parametrize("version", ["0.29.2", "0.30.3", "0.35.2", "0.37.1", "0.39.0", "0.42.1"])
def test_diffusers_that_is_there_and_serves_is_left(make_host, version: str) -> None:
    host = make_host(**{**FULL, "diffusers": version})
    assert host.start() == ""
    assert f"diffusers=={version}" in host.freeze()


@pytest.mark.parametrize(("name", "version"), [("cattrs", "25.3.0"), ("cattrs", "26.2.1"), ("tomlkit", "0.15.2"), ("attrs", "27.0.0")])
def test_newer_package_of_another_extension_is_left(make_host, name: str, version: str) -> None:
    assert make_host(**{**FULL, name: version}).start() == ""


@pytest.mark.parametrize("version", ["0.28.2", "0.43.0", "1.0.0"])
def test_diffusers_that_does_not_serve_is_left_and_one_remedy_is_told(make_host, version: str) -> None:
    host = make_host(**{**FULL, "diffusers": version})
    before = host.freeze()
    said = host.start()
    assert f"diffusers {version} is installed" in said and "diffusers>=0.29,<0.43" in said
    assert "missing" not in said and "could not be added" not in said
    assert said.count("Remedy:") == 1 and f'{host.python} -m pip install --no-deps "diffusers=={DIFFUSERS}"' in said
    assert host.freeze() == before and host.index.requests == 0


NEO = {"attrs": "26.1.0", "huggingface_hub": "0.36.2", "torch": "2.11.0+cu130", "diffusers": "0.37.1", "tomlkit": "0.12.0"}


def test_what_forge_neo_lacks_is_added_and_its_newer_versions_stay(make_host) -> None:
    host = make_host(**NEO)
    host.pin("diffusers==0.37.1\nhuggingface-hub==0.36.2\n", "requirements.txt")
    before = host.freeze()
    said = host.start()
    assert host.freeze() == before | {"cattrs==24.1.3", *(f"{name}=={version}" for name, version in OPTIMIZERS.items())}
    assert "Remedy:" not in said and host.start() == ""


@pytest.mark.parametrize("file", ["requirements_versions.txt", "requirements.txt"])
@pytest.mark.parametrize("installed", ["0.28.2", "0.43.0"])
def test_remedy_is_the_version_that_the_host_puts_back_itself(make_host, installed: str, file: str) -> None:
    host = make_host(**{**FULL, "diffusers": installed})
    host.pin("torch\nDiffusers == 0.37.1  # as the host writes it\n", file)
    said = host.start()
    remedy = said.partition("Remedy: ")[2].splitlines()[0]
    assert remedy == f'{host.python} -m pip install --no-deps "diffusers==0.37.1"'
    subprocess.run(remedy, shell=True, env=host.environment, check=True, capture_output=True, timeout=120)
    assert "diffusers==0.37.1" in host.freeze() and host.start() == ""


@pytest.mark.parametrize("pinned", ["0.28.2", "0.50.0"])
def test_version_that_the_host_pins_and_that_does_not_serve_has_no_remedy(make_host, pinned: str) -> None:
    host = make_host(**{**FULL, "diffusers": pinned})
    host.pin(f"diffusers=={pinned}\n", "requirements.txt")
    before = host.freeze()
    said = host.start()
    assert f"diffusers {pinned} is installed" in said
    assert f"No remedy lasts: this WebUI installs diffusers=={pinned} again at its next start" in said
    assert "pip install" not in said and "Remedy:" not in said and host.freeze() == before


def test_other_file_of_requirements_is_read_where_the_host_is_given_one(make_host) -> None:
    host = make_host(**{**FULL, "diffusers": "0.50.0"})
    host.pin("diffusers==0.50.0\n", "requirements.txt")
    host.pin("diffusers==0.37.1\n", "mine.txt")
    assert '"diffusers==0.37.1"' in host.start(REQS_FILE="mine.txt")
    assert "No remedy lasts" in host.start(REQS_FILE="")


def test_host_that_installs_nothing_undoes_nothing(make_host) -> None:
    host = make_host(**{**FULL, "diffusers": "0.50.0"})
    host.pin("diffusers==0.50.0\n", "requirements.txt")
    assert f'"diffusers=={DIFFUSERS}"' in host.start(COMMANDLINE_ARGS="--skip-prepare-environment")


@pytest.mark.parametrize("pinned", ["0.20.3", "0.36.2"])
def test_conflict_with_a_version_that_the_host_pins_has_a_remedy_only_if_another_one_is_installed(make_host, pinned: str) -> None:
    host = make_host(**{**A1111, "huggingface_hub": "0.20.3"})
    host.pin(f"huggingface-hub=={pinned}\n", "requirements_versions.txt")
    before = host.freeze()
    said, again = host.start(), host.start()
    assert host.freeze() == before and again in said
    if pinned == "0.20.3":
        assert "No remedy lasts: this WebUI installs huggingface-hub==0.20.3 again" in said and "pip install" not in again
    else:
        remedy = again.partition("Remedy: ")[2].splitlines()[0]
        subprocess.run(remedy, shell=True, env=host.environment, check=True, capture_output=True, timeout=120)
        assert {"huggingface_hub==0.36.2", f"diffusers=={DIFFUSERS}"} <= host.freeze()


def test_conflict_changes_nothing_tells_one_remedy_and_is_not_tried_again(make_host) -> None:
    host = make_host(**{**A1111, "huggingface_hub": "0.20.3"})
    before = host.freeze()
    said = host.start()
    assert host.freeze() == before
    assert "huggingface_hub>=0.23.2" in said.replace("-", "_") and said.count("Remedy:") == 1
    host.index.requests = 0
    again = host.start()
    assert again in said and "Remedy:" in again
    assert host.index.requests == 0
    shutil.unpack_archive(write_wheel(host.venv / "new", "huggingface_hub", "0.36.2"), host.site, "zip")  # the user updates it
    shutil.rmtree(host.site / "huggingface_hub-0.20.3.dist-info")
    assert "added" in host.start()


def test_the_remedy_of_a_conflict_breaks_no_other_package_of_the_host(make_host) -> None:
    host = make_host(**{**A1111, "huggingface_hub": "0.20.3"})
    wheel = next(host.index.folder.glob("transformers-*.whl"))
    shutil.unpack_archive(wheel, host.site, "zip")
    remedy = host.start().partition("Remedy: ")[2].splitlines()[0]
    done = subprocess.run(remedy, shell=True, env=host.environment, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    after = host.freeze()
    assert {"huggingface_hub==0.36.2", "transformers==4.30.2", "torch==2.1.2+cu121", f"diffusers=={DIFFUSERS}"} <= after
    assert not any(line.startswith("huggingface_hub==1") for line in after)


@pytest.mark.parametrize(
    ("flags", "environment"),
    [(["--skip-install"], {}), ([], {"COMMANDLINE_ARGS": "--api --skip-install"}), ([], {"LORA_TRAINER_SKIP_INSTALL": "1"})],
    ids=["flag", "COMMANDLINE_ARGS", "variable"],
)
def test_skip_install_is_honoured(make_host, flags: list[str], environment: dict[str, str]) -> None:
    host = make_host(**A1111)
    before = host.freeze()
    assert host.start(*flags, **environment) == ""
    assert host.freeze() == before and host.index.requests == 0


def test_satisfied_start_neither_imports_the_host_nor_runs_pip_and_costs_little_more_than_python(make_host) -> None:
    host = make_host(**FULL, **{f"other{number}": "1.0" for number in range(150)})  # A1111 holds some 130 packages
    (Path(host.environment["PYTHONPATH"]) / "launch.py").write_text("raise SystemExit('imported')", encoding="utf-8")

    def cost(action: Callable[[], object]) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        action()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def plain() -> None:
        subprocess.run([str(host.python), "-c", "import json, urllib.request, importlib.metadata"], check=True)

    def satisfied() -> None:
        assert host.start() == ""

    costs = [(cost(plain), cost(satisfied)) for _ in range(5)]
    assert min(own for _, own in costs) < 5 * min(python for python, _ in costs), costs
    assert host.index.requests == 0


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where connections hang: its queue is full and nobody takes one."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting = [socket.socket() for _ in range(8)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield server.getsockname()[1]
        for client in waiting:
            client.close()


@pytest.mark.parametrize("way", ["hangs", "refuses", "proxy hangs", "pip.conf"])
def test_offline_start_asks_once_for_less_than_a_second_and_runs_no_pip(make_host, silent_port: int, tmp_path: Path, way: str) -> None:
    host = make_host(**A1111)
    (Path(host.environment["PYTHONPATH"]) / "launch.py").write_text("raise SystemExit('pip was to be run')", encoding="utf-8")
    before = host.freeze()
    silent = f"http://127.0.0.1:{silent_port}/simple"
    (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {silent}\n", encoding="utf-8")
    environment = {
        "hangs": {"PIP_INDEX_URL": silent},
        "refuses": {"PIP_INDEX_URL": "http://127.0.0.1:9/simple"},
        "proxy hangs": {"http_proxy": silent},
        "pip.conf": {"PIP_INDEX_URL": "", "PIP_CONFIG_FILE": str(tmp_path / "pip.conf")},
    }[way]
    said = host.start(**environment)
    assert said.count("cannot be reached") == said.count("Remedy:") == 1 and "pip was to be run" not in said
    assert install.PROBE_SECONDS < 1 and host.freeze() == before


def test_back_online_it_is_tried_again(make_host) -> None:
    host = make_host(**A1111)
    assert "cannot be reached" in host.start(PIP_INDEX_URL="http://127.0.0.1:9/simple")
    assert "added" in host.start()


@pytest.mark.parametrize(
    ("version", "bounds", "inside"),
    [
        ("0.31.0", "==0.31.0", True),
        ("0.31", "==0.31.0", True),
        ("0.42.1", ">=0.29,<0.43", True),
        ("0.43.0.dev0", ">=0.29,<0.43", False),
        ("0.28.9", ">=0.29,<0.43", False),
        ("24.1.3", ">=23.2,<25", True),
        ("23.2", ">=23.2,<25", True),
        ("25.0", ">=23.2,<25", False),
        ("0.100.0", ">=0.29,<0.43", False),
        ("2.1.2+cu121", ">=2.1.2", True),
        ("1.0", "", True),
    ],
)
def test_version_lies_in_its_bounds(version: str, bounds: str, inside: bool) -> None:
    assert install.fits(version, bounds) is inside


def test_whatever_happens_the_hosts_start_goes_on(make_host) -> None:
    host = make_host(**A1111)
    (host.extension / "requirements.txt").unlink()
    assert "could not look at its packages (FileNotFoundError" in host.start()


@pytest.mark.slow
def test_on_the_real_index_the_pins_of_this_environment_stay_as_they_are(tmp_path: Path, empty_venv: Path, index: PackageIndex) -> None:
    """The environment that runs this test holds the host's pins; a copy without what the host lacks gets it from the real index."""
    host = Host(tmp_path, empty_venv, index)
    optimizers = {"prodigyopt", "lion-pytorch", "dadaptation", "schedulefree"}
    lacking = {"diffusers", "cattrs", "tomlkit", "importlib-metadata", "importlib_metadata", "zipp", *optimizers}
    for package in importlib.metadata.distributions():
        folder = Path(str(package._path))  # type: ignore[attr-defined]
        if package.metadata["Name"] not in lacking and folder.name.endswith(".dist-info"):
            shutil.copytree(folder, host.site / folder.name, dirs_exist_ok=True)
    before = host.freeze()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHONPATH", "LORA_TRAINER_"))}
    command = [str(host.python), str(host.extension / "install.py")]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0
    after = host.freeze()
    assert before < after, done.stdout
    names = {line.split("==")[0].replace("-", "_") for line in after - before}
    wanted = {"diffusers", "cattrs", "tomlkit", *(name.replace("-", "_") for name in optimizers)}
    assert wanted <= names <= {*wanted, "importlib_metadata", "zipp", "lazy_importer"}
    assert f"diffusers=={DIFFUSERS}" in after


def test_preload_adds_its_flag_and_imports_nothing_heavy() -> None:
    parser = argparse.ArgumentParser()
    preload.preload(parser)
    assert parser.parse_args([]).lora_trainer_allow_path == []
    words = ["--lora-trainer-allow-path", "/a b", "--lora-trainer-allow-path", "/c"]
    assert parser.parse_args(words).lora_trainer_allow_path == ["/a b", "/c"]
    assert parser.parse_args([]).lora_trainer_allow_host == []
    assert parser.parse_args(["--lora-trainer-allow-host", "my.example"]).lora_trainer_allow_host == ["my.example"]
    code = "import sys, json; before = set(sys.modules); import preload; print(json.dumps(sorted(set(sys.modules) - before)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert {name.split(".")[0] for name in json.loads(done.stdout)} - {"preload"} <= sys.stdlib_module_names
