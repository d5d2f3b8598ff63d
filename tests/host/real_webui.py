"""Starts a real WebUI (A1111's or Forge's tree at LORA_TRAINER_WEBUI_DIR) with a copy of this extension, the probe and the small model.

Its Python is LORA_TRAINER_WEBUI_PYTHON, else the tree's venv or the one beside the tree. Nothing of it is changed: missing packages
go into a hard-linked copy of its environment.
"""

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from PIL import Image

from tests.host.data_folder import make_data
from tests.host.family_models import add_families

ROOT = Path(__file__).parents[2]
PARTS = (
    "lora_trainer",
    "scripts",
    "javascript",
    "install.py",
    "preload.py",
    "requirements.txt",
    "requirements-optimizers.txt",
    "style.css",
)
FLAGS = (
    "--api --skip-torch-cuda-test --skip-prepare-environment --no-half --use-cpu all --disable-console-progressbars --no-download-sd-model"
)
FORGE_FLAGS = f"{FLAGS} --always-cpu"
NEO_FLAGS = "--api --skip-torch-cuda-test --skip-prepare-environment --skip-python-version-check --disable-console-progressbars --cpu"


class RealWebUI:
    """A running host. Every request has the given login."""

    def __init__(self, url, process=None, log=None, login=""):
        self.url, self.process, self.log = url, process, log
        self.headers = {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()} if login else {}

    def request(self, method, path, content=None, timeout=120, headers=None):
        body = None if content is None else json.dumps(content).encode()
        sent = {"Content-Type": "application/json", **self.headers, **(headers or {})}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, body, sent, method=method), timeout=timeout) as answer:
            text = answer.read()
            return json.loads(text) if text[:1] in (b"{", b"[", b"n", b'"') else text.decode("utf-8", "replace")

    def get(self, path, **more):
        return self.request("GET", path, **more)

    def post(self, path, content=None, **more):
        return self.request("POST", path, content or {}, **more)

    def status_of(self, path, headers=None, method="GET"):
        """The HTTP status, and the headers of a refusal."""
        try:
            self.request(method, path, headers=headers)
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers)
        return 200, {}

    def draw(self, prompt, seed=3, **more):
        """txt2img as any program asks for it."""
        settings = {"width": 64, "height": 64, "steps": 6, "cfg_scale": 5, "sampler_name": "Euler", "scheduler": "Automatic"}
        answer = self.post("/sdapi/v1/txt2img", settings | {"prompt": prompt, "seed": seed} | more, timeout=600)
        return Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).convert("RGB")

    def lines(self):
        return self.log.read_text(encoding="utf-8", errors="replace")

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()


def environment(tree):
    """The host's Python; in a copy of its environment when the extension's packages are missing there."""
    named = os.environ.get("LORA_TRAINER_WEBUI_PYTHON")
    places = [Path(named)] if named else [folder / "venv" / "bin" / "python" for folder in (tree, tree.parent)]
    python = next(path for path in places if path.exists())
    wanted = [python, "-c", "import attrs, cattrs, diffusers, tomlkit"]
    if subprocess.run(wanted, capture_output=True, cwd=tree).returncode == 0:
        return python
    copy = Path(tempfile.mkdtemp(prefix="lora-trainer-venv-", dir=tree.parent)) / "venv"
    shutil.copytree(python.parents[1], copy, symlinks=True, copy_function=os.link)
    return copy / "bin" / "python"


def is_neo(tree):
    """Forge Neo, which has other flags and asks questions on its console where a config.json lacks its mark."""
    return (tree / "modules_forge" / "presets.py").is_file()


def remove_extension(data):
    """Leaves the compiled files of an earlier start, as in life: they are not what is measured."""
    if (folder := data / "extensions" / "lora-trainer").exists():
        folder.rename(data / "lora-trainer")


def place_extension(data):
    """This checkout and the probe as extensions of a data folder."""
    if (kept := data / "lora-trainer").exists():
        kept.rename(data / "extensions" / "lora-trainer")
        return
    for name in PARTS:
        source, target = ROOT / name, data / "extensions" / "lora-trainer" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        elif source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    shutil.copytree(Path(__file__).parent / "webui_probe", data / "extensions" / "lora-trainer-probe", dirs_exist_ok=True)


def variables(tree, data):
    mine = {
        "LORA_TRAINER_CHECKOUT": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HOME": str(data / "hf"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": "1",  # several divide a sum differently when the machine is busy: runs would differ in their last bits
        "PYTHONUNBUFFERED": "1",
    }
    kept = {key: value for key, value in os.environ.items() if key not in ("COMMANDLINE_ARGS", "PYTHONPATH", "VIRTUAL_ENV")}
    return kept | mine


def install(tree, data, python):
    """Runs install.py as the host does. Returns its output."""
    script = data / "extensions" / "lora-trainer" / "install.py"
    around = variables(tree, data) | {"PYTHONPATH": str(tree), "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([python, script], cwd=tree, env=around, capture_output=True, text=True, encoding="utf-8", timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def start(tree, data, python, *flags, login=""):
    """Waits for the line "Startup time"; before it, no request may come (the host would end)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = data / f"host-{port}.log"
    own = NEO_FLAGS if is_neo(tree) else FORGE_FLAGS if (tree / "modules_forge").is_dir() else FLAGS
    command = [python, "launch.py", "--data-dir", data, "--port", str(port), *own.split(), *flags]
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            command, cwd=tree, env=variables(tree, data), stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
    host, end = RealWebUI(f"http://127.0.0.1:{port}", process, log, login), time.monotonic() + 300
    while "Startup time" not in host.lines():
        assert process.poll() is None, host.lines()[-3000:]
        assert time.monotonic() < end, host.lines()[-3000:]
        time.sleep(0.3)
    return host


def scratch(tree):
    """A data folder on the tree's disk."""
    data = make_data(Path(tempfile.mkdtemp(prefix="lora-trainer-data-", dir=tree.parent)))
    if not (tree / "modules_forge").is_dir():
        add_families(data)
    approximations = [tree / "models" / "VAE-approx" / name for name in ("model.pt", "vaeapprox-sdxl.pt")]
    missing = not all(path.exists() for path in approximations)  # the host would fetch them to show half-done pictures
    options = {"live_previews_enable": False} if missing else {}
    if is_neo(tree):
        options["VERSION_UID"] = "PY313"
    if options:
        (data / "config.json").write_text(json.dumps(options), encoding="utf-8")
    return data


def remove(data):
    """Deletes a scratch data folder, unless it is to be looked at."""
    if not os.environ.get("LORA_TRAINER_WEBUI_KEEP"):
        shutil.rmtree(data)
