"""The command of a remedy installs one package into the Python that runs this, and never another torch."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lora_trainer import install_command as module
from lora_trainer.config.choices.optimizers import OPTIMIZER_SPECS
from lora_trainer.config.importing.forms import parse_settings
from lora_trainer.errors import MissingPackage
from lora_trainer.install_command import VERSIONS, install_command
from lora_trainer.optim.builders import optimizer_choice

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("torch", "bitsandbytes"),
    [
        ("2.0.1+cu118", "0.45.5"),
        ("2.1.2+cu121", "0.45.5"),
        ("2.2.2", "0.47.0"),
        ("2.3.1+cu121", "0.49.2"),
        ("2.4.0", "0.50.2"),
        ("2.10.0+cu128", "0.50.2"),
        ("3.0.0", "0.50.2"),
    ],
)
def test_bitsandbytes_is_the_newest_that_accepts_this_torch(torch, bitsandbytes, monkeypatch):
    monkeypatch.setattr(module, "version", lambda name: {"torch": torch}[name])
    assert install_command("bitsandbytes") == f'{sys.executable} -m pip install --no-deps "bitsandbytes=={bitsandbytes}"'


def test_forge_gets_the_bitsandbytes_that_it_installs_at_every_start_itself(monkeypatch):
    monkeypatch.setitem(sys.modules, "modules_forge.bnb_installer", SimpleNamespace(target_bitsandbytes_version="0.45.3"))
    assert install_command("bitsandbytes").endswith(' "bitsandbytes==0.45.3"')


@pytest.mark.parametrize(
    ("python", "shown"),
    [
        (r"C:\webui\venv\Scripts\python.exe", r"C:\webui\venv\Scripts\python.exe -m"),
        (r"D:\my webui\python.exe", r'"D:\my webui\python.exe" -m'),
    ],
)
def test_the_path_of_python_is_quoted_only_where_it_has_to_be(python, shown, monkeypatch):
    monkeypatch.setattr(sys, "executable", python)
    assert install_command("PyYAML").startswith(shown + " pip")


@pytest.mark.parametrize("constraints", sorted(ROOT.glob("constraints/py???.txt")), ids=lambda path: path.stem)
def test_the_versions_are_those_that_the_tests_run_with(constraints):
    lines = constraints.read_text(encoding="utf-8").replace("_", "-").lower().splitlines()
    for package, wanted in VERSIONS.items():
        assert f"{package.lower()}=={wanted}" in lines


def test_a_yaml_file_without_its_reader_comes_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingPackage) as raised:
        parse_settings("job: extension\n", "job.yaml")
    assert raised.value.problems[0].fix.text().endswith(install_command("PyYAML"))


@pytest.mark.parametrize("spec", [spec for spec in OPTIMIZER_SPECS if spec.package], ids=lambda spec: spec.name)
def test_every_optimizer_that_is_missing_comes_with_its_command(spec, monkeypatch):
    monkeypatch.setattr("lora_trainer.registry.find_spec", lambda name: None)
    with pytest.raises(MissingPackage) as raised:
        optimizer_choice(spec.name)
    assert raised.value.problems[0].fix.text().endswith(install_command(spec.pip_name))


@pytest.mark.parametrize("package", sorted({spec.package for spec in OPTIMIZER_SPECS if spec.package}))
def test_a_class_of_a_missing_package_is_installed_under_the_name_that_pip_knows(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails as where it is not installed
    monkeypatch.delitem(sys.modules, package)
    monkeypatch.setattr("lora_trainer.optim.dotted_class.importlib.import_module", lambda name: _missing(package))
    with pytest.raises(MissingPackage) as raised:
        optimizer_choice(f"{package}.SomeOptimizer")
    pip_name = next(spec.pip_name for spec in OPTIMIZER_SPECS if spec.package == package)
    assert raised.value.problems[0].fix.text().endswith(install_command(pip_name))


def _missing(package: str) -> None:
    raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def test_no_other_sentence_tells_anyone_to_install_with_pip():
    sources = [*ROOT.glob("lora_trainer/**/*.py"), *ROOT.glob("lora_trainer/locale/**/*.toml"), *ROOT.glob("javascript/*.js")]
    found = [path.name for path in sources if re.search(r"pip3? install", path.read_text(encoding="utf-8"))]
    assert found == ["install_command.py"]
