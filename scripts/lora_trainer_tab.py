"""The only file that the host executes: tab, routes, settings and X/Y/Z axes. A tab appears whatever is missing.

Executed again at every "Reload UI", while the package stays as first imported; its folder is on sys.path only now.
"""

import contextlib
import hashlib
import html
import importlib
import importlib.util
import platform
import re
import sys
import traceback
from importlib import metadata
from pathlib import Path

from modules import script_callbacks, scripts, shared

ROOT = Path(scripts.basedir())
TITLE, ELEMENT = "LoRA Trainer", "lora_trainer"
STAMP = "stamp_when_loaded"
BANNER = "padding: 0.75em 1em; border: 2px solid #d97706; border-radius: 6px; font-weight: 600"
problem = ""  # why the real tab cannot be shown, in the user's language
details = ""  # for the report

with contextlib.suppress(ImportError):
    importlib.import_module("lora_trainer")  # the other functions need no path once it is loaded


def stamp() -> str:
    """A hash that changes with every file of the package on disk."""
    files = sorted((ROOT / "lora_trainer").rglob("*.py"))
    states = [(file.name, status.st_size, status.st_mtime_ns) for file in files for status in [file.stat()]]
    return hashlib.sha256(repr(states).encode()).hexdigest()


def version_on_disk() -> str:
    """The version in the source file, which may be newer than the imported one."""
    text = (ROOT / "lora_trainer" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'__version__ = "([^"]+)"', text)
    return match.group(1) if match else "?"


def translate(template: str, **values: object) -> str:
    """The message in the user's language, or in English when the translation cannot be loaded."""
    try:
        from lora_trainer.host.a1111 import A1111Host
        from lora_trainer.messages import say

        return say(template, **values).text(A1111Host().language())
    except Exception:
        return template.format(**values)


def package_problems() -> str:
    """What to do about packages that install.py finds missing or unsupported; "" when there are none."""
    spec = importlib.util.spec_from_file_location("lora_trainer_install", ROOT / "install.py")
    install = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(install)
    absent, unfit = install.check_packages()
    sentences = [translate("Packages are missing: {names}.", names=", ".join(absent))] if absent else []
    for each in unfit:
        template = "{name} {version} is installed, and LoRA Trainer needs {name}{bounds}."
        sentences.append(translate(template, name=each.name, version=each.version, bounds=each.accepted))
    pins = install.lasting_pins(absent, unfit)
    if pins:
        sentences.append(
            translate(
                "No remedy lasts: this WebUI installs {packages} again at its next start. Look for a newer version of LoRA Trainer.",
                packages=", ".join(f"{name}=={version}" for name, version in pins.items()),
            )
        )
    commands = install.remedies(absent, unfit)
    if commands:
        sentences.append(translate("Close the WebUI, run the following in a terminal, and start it again:"))
    return "\n\n".join([*sentences, *(f"`{command}`" for command in commands)])


def find_problem() -> str:
    """Why this version cannot work in this process; "" when it can."""
    if "lora_trainer" not in sys.modules:
        return package_problems() or translate("The package lora_trainer is not in {folder}.", folder=ROOT)
    loaded = sys.modules["lora_trainer"]
    if Path(loaded.__file__).resolve().parent != (ROOT / "lora_trainer").resolve():
        return translate("Another extension has a package of the same name: {file}. Disable one of the two.", file=loaded.__file__)
    now = stamp()
    if loaded.__dict__.setdefault(STAMP, now) != now:
        return translate(
            "LoRA Trainer was updated from {old} to {new}. Close the WebUI and start it again: reloading the page's UI is not enough.",
            old=loaded.__version__,
            new=version_on_disk(),
        )
    return package_problems()


def report() -> str:
    """A bug report: versions, and what went wrong."""
    names = ("torch", "gradio", "fastapi", "transformers", "diffusers", "attrs", "cattrs", "tomlkit", "safetensors", "accelerate")
    lines = [f"LoRA Trainer {version_on_disk()}", f"Python {platform.python_version()} on {platform.platform()}", f"folder {ROOT}"]
    for name in names:
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name} is not installed")
    return "\n".join([*lines, "", problem, "", details]).strip()


def fallback_tab():
    """A banner and a report to copy."""
    import gradio as gr

    banner = html.escape(translate("LoRA Trainer cannot work yet."))
    with gr.Blocks(analytics_enabled=False) as blocks:
        gr.HTML(f'<div id="lora_trainer_fallback" style="{BANNER}" role="alert">{banner}</div>')
        gr.Markdown(problem)
        text = gr.Textbox(
            value=report(), label=translate("Report"), lines=14, interactive=False, show_copy_button=True, elem_id="lora_trainer_report"
        )
        text.do_not_save_to_config = True
    return blocks


def fail(task: str) -> None:
    """Stores the exception for the report, and prints it to the console."""
    global problem, details
    problem = translate("LoRA Trainer could not {what}. Please report this with the text below.", what=translate(task))
    details = traceback.format_exc()
    print(f"LoRA Trainer: could not {task}\n{details}", file=sys.stderr)


def tabs():
    """The tab, or the fallback."""
    if not problem:
        try:
            from lora_trainer.host.a1111.paste import register
            from lora_trainer.ui.blocks import build

            return [(build(register), TITLE, ELEMENT)]
        except Exception:
            fail("build its tab")
    return [(fallback_tab(), TITLE, ELEMENT)]


def app_started(_demo, app) -> None:
    """Adds the routes; they work without the tab, so that an active run can still be watched and stopped."""
    if host is None:
        return
    try:
        from lora_trainer.api.routes.mount import mount
        from lora_trainer.host.a1111.preview import remove_leftovers
        from lora_trainer.jobs.manager import MANAGER

        host.app = app
        mount(app, host, MANAGER)
        remove_leftovers()
    except Exception:
        fail("add its routes")


def settings() -> None:
    """One setting: what happens when the user generates during training."""
    from lora_trainer.host.a1111 import LET_THROUGH

    label = translate("While training runs, let each generation through between two steps (off: it waits until training pauses or ends)")
    shared.opts.add_option(LET_THROUGH, shared.OptionInfo(True, label, section=(ELEMENT, TITLE)))


def before_ui() -> None:
    """Two axes for the X/Y/Z plot."""
    from lora_trainer.host.a1111.axes import add_axes

    add_axes()


host = None
try:
    problem = find_problem()
    if "lora_trainer" in sys.modules and importlib.util.find_spec("attrs"):
        from lora_trainer.host.detect import detect

        host = detect()
except Exception:
    fail("start")
if not problem:
    try:  # import the routes now: once the host loads its model in a second thread, imports take much longer
        importlib.import_module("lora_trainer.api.routes.mount")
    except Exception:
        fail("build its tab")

script_callbacks.on_ui_tabs(tabs)
script_callbacks.on_app_started(app_started)
if host is not None:
    script_callbacks.on_ui_settings(settings)
    script_callbacks.on_before_ui(before_ui)
