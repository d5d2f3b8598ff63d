"""The one file that the host executes: a tab appears whatever is missing, and it says what."""

import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import lora_trainer
from tests.host.data_folder import make_data
from tests.host.fake_webui import FakeWebUI

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "lora_trainer_tab.py"


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return FakeWebUI(make_data(tmp_path_factory.mktemp("webui")))


@pytest.fixture
def execute(fake, monkeypatch):
    """Executes the script as the host does; returns its module and what it registered."""
    fake.install(monkeypatch)
    registered = {}
    for kind in ("ui_tabs", "app_started", "ui_settings", "before_ui"):
        monkeypatch.setattr(
            fake.script_callbacks, f"on_{kind}", lambda function, kind=kind: registered.update({kind: function}), raising=False
        )
    monkeypatch.setattr(fake.scripts, "basedir", lambda: str(ROOT), raising=False)
    monkeypatch.delitem(lora_trainer.__dict__, "stamp_when_loaded", raising=False)

    def run():
        spec = importlib.util.spec_from_file_location("lora_trainer_tab.py", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module, registered

    return run


def words_of(registered):
    """Every text of the tab that appears."""
    [(blocks, title, element)] = registered["ui_tabs"]()
    assert (title, element) == ("LoRA Trainer", "lora_trainer")
    return "\n".join(str(component.get("props", {}).get("value", "")) for component in blocks.get_config_file()["components"])


def test_missing_package_is_named_with_the_line_that_adds_it(execute, monkeypatch):
    version = importlib.metadata.version

    def without_tomlkit(name):
        if name == "tomlkit":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_tomlkit)
    shown = words_of(execute()[1])
    assert "LoRA Trainer cannot work yet." in shown
    assert f'{sys.executable} -m pip install "tomlkit' in shown
    assert "tomlkit is not installed" in shown
    assert "torch 2" in shown, "the report has no versions"


@pytest.fixture
def diffusers_043(monkeypatch):
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.43.0" if name == "diffusers" else version(name))


def test_diffusers_of_a_version_that_cannot_serve_is_named_and_not_called_missing(execute, diffusers_043):
    shown = words_of(execute()[1])
    assert "diffusers 0.43.0 is installed, and LoRA Trainer needs diffusers>=0.29,<0.43." in shown
    assert "missing" not in shown
    assert f'{sys.executable} -m pip install --no-deps "diffusers==0.3' in shown


def test_diffusers_that_the_host_pins_has_no_command_that_it_would_undo(execute, diffusers_043, monkeypatch, tmp_path):
    (tmp_path / "launch.py").touch()
    (tmp_path / "requirements.txt").write_text("diffusers==0.43.0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    shown = words_of(execute()[1])
    assert "this WebUI installs diffusers==0.43.0 again at its next start" in shown
    assert "pip install" not in shown and "in a terminal" not in shown


def test_update_on_disk_asks_for_a_complete_restart(execute):
    execute()
    lora_trainer.__dict__["stamp_when_loaded"] = "of an older version"
    shown = words_of(execute()[1])
    assert "Close the WebUI and start it again" in shown
    assert "Traceback" not in shown


def test_reload_without_an_update_keeps_the_tab(execute):
    assert execute()[0].problem == ""
    assert execute()[0].problem == ""


def test_package_of_the_same_name_elsewhere_is_named(execute, monkeypatch):
    monkeypatch.setitem(sys.modules, "lora_trainer", SimpleNamespace(__file__="/elsewhere/lora_trainer/__init__.py", __version__="9"))
    module, _ = execute()
    assert "/elsewhere/lora_trainer/__init__.py" in module.problem


def test_tab_that_cannot_be_built_shows_why(execute, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lora_trainer.api.routes.mount", None)
    shown = words_of(execute()[1])
    assert "could not build its tab" in shown
    assert "ModuleNotFoundError" in shown
    assert "ModuleNotFoundError" in capsys.readouterr().err


def test_fallback_speaks_the_users_language(execute, fake, monkeypatch):
    monkeypatch.setitem(fake.data, "localization", "zh_CN")
    lora_trainer.__dict__["stamp_when_loaded"] = "of an older version"
    assert "请关闭 WebUI 再重新启动" in words_of(execute()[1])


def test_broken_routes_do_not_break_the_hosts_start(execute, monkeypatch, capsys):
    _, registered = execute()
    monkeypatch.setitem(sys.modules, "lora_trainer.api.routes.mount", None)
    registered["app_started"](None, SimpleNamespace())
    assert "could not add its routes" in capsys.readouterr().err


def test_setting_asks_what_a_generation_during_training_does(execute, fake, monkeypatch):
    options = {}
    monkeypatch.setattr(fake.shared.opts, "add_option", lambda key, info: options.update({key: info}), raising=False)
    monkeypatch.setattr(fake.shared, "OptionInfo", lambda default, label, section: (default, label, section), raising=False)
    module, registered = execute()
    registered["ui_settings"]()
    assert options["lora_trainer_let_generations_through"][0] is True
    assert module.host.lets_through()
    monkeypatch.setitem(fake.data, "lora_trainer_let_generations_through", False)
    assert not module.host.lets_through()


def test_script_imports_nothing_heavy(tmp_path):
    """In a fresh interpreter with the host's modules stubbed: the start pays for what the script imports."""
    import subprocess

    program = f"""
import sys, types, importlib.util
package = types.ModuleType("modules")
for name in ("script_callbacks", "scripts", "shared"):
    module = sys.modules["modules." + name] = types.ModuleType(name)
    setattr(package, name, module)
    module.__getattr__ = lambda name: (lambda *_: {str(ROOT)!r})
sys.modules["modules"] = package
sys.path.insert(0, {str(ROOT)!r})
spec = importlib.util.spec_from_file_location("lora_trainer_tab.py", {str(SCRIPT)!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert module.host.name == "a1111"
print([name for name in ("torch", "diffusers", "transformers", "accelerate", "gradio") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, encoding="utf-8", cwd=tmp_path)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
