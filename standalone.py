"""Makes an environment beside this file and runs the trainer in it. Needs nothing but Python; runs on 3.8, to say which is needed.

    python3 standalone.py VERB ...           the same as `python -m lora_trainer VERB ...`: demo, ui, train, check, ...
    python3 standalone.py test [--all] ...   the tests, one process for each core (--all: the slow ones too); the rest is handed to pytest
    python3 standalone.py setup [--test]     makes the environment and stops
    python3 standalone.py tool NAME ...      a tool of the environment: ruff, mypy, pytest, pip

On Windows: py -3 standalone.py VERB ...

What may be set:  LORA_TRAINER_PYTHON            the Python 3.11, 3.10 or 3.13 to build with (a torch that it has is used)
                  LORA_TRAINER_VENV              the environment's folder (else .venv beside this file)
                  LORA_TRAINER_TORCH_INDEX_URL   where torch comes from, tried before the index that pip is set up with
                  PIP_INDEX_URL and pip's other settings
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PYTHONS = ("3.11", "3.10", "3.13")  # the versions of Forge, A1111 and Forge Neo; none of them pins packages for 3.12
OLDEST_TORCH = (2, 1)
STATE = "lora_trainer.json"  # in the environment: only what this file made is ever changed
PROBE_SECONDS = 10
TORCH_WHEELS = "https://download.pytorch.org/whl/"
# The CUDA builds of the torch that constraints/ pins: (index, CUDA of the driver at least, compute capability at least).
CUDA_BUILDS = {
    "3.11": (("cu130", 13, 7.5), ("cu126", 0, 0.0)),
    "3.10": (("cu121", 12, 0.0), ("cu118", 0, 0.0)),
    "3.13": (("cu130", 13, 7.5), ("cu126", 0, 0.0)),
}
# GB to download and GB on disk, everything together (measured on Linux; CUDA of 3.11 estimated).
SIZES = {
    ("3.11", "cpu"): (0.5, 1.9),
    ("3.11", "cuda"): (3.5, 8.0),
    ("3.10", "cpu"): (0.5, 1.9),
    ("3.10", "cuda"): (2.9, 5.5),
    ("3.13", "cpu"): (0.5, 1.9),
    ("3.13", "cuda"): (3.0, 6.0),
}
REQUIREMENTS = {
    "run": ["requirements.txt", "requirements-optimizers.txt", "requirements-standalone.txt"]
}  # the last one includes those before it
REQUIREMENTS["test"] = [*REQUIREMENTS["run"], "requirements-test.txt"]


class SetupError(Exception):
    """What went wrong, and what helps."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


def say(text: str) -> None:
    """To stderr: stdout belongs to the verb, whose --json prints one document there."""
    print(text, file=sys.stderr, flush=True)


# The interpreter


def ask(command: list[str], timeout: float = 60) -> str | None:
    """What the command prints, or None when it is not there, fails or hangs."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, timeout=timeout)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def interpreter(command: list[str]) -> tuple[str, str] | None:
    """(version, path) of a Python that can make an environment: it runs, has 64 bits, venv and ensurepip.

    The path is the one behind a virtual environment, for that is what a new one is made from.
    """
    code = (
        "import sys, venv, ensurepip; assert sys.maxsize > 2**32; print('%d.%d' % sys.version_info[:2]);"
        "print(getattr(sys, '_base_executable', None) or sys.executable)"
    )
    answer = (ask([*command, "-I", "-c", code]) or "").split("\n")
    return (answer[0].strip(), answer[1].strip()) if len(answer) > 1 else None


def candidates(version: str) -> list[list[str]]:
    """Commands that may start a Python of that version, nearest first."""
    found = [[sys.executable]] if sys.executable and "%d.%d" % sys.version_info[:2] == version else []
    found += [["py", "-" + version]] if os.name == "nt" else []
    found += [["python" + version]]
    roots = [os.environ.get("PYENV_ROOT"), os.environ.get("PYENV"), str(Path.home() / ".pyenv"), str(Path.home() / ".pyenv" / "pyenv-win")]
    for root in filter(None, roots):
        for folder in sorted(Path(root, "versions").glob(version + ".*")):
            found.append([str(folder / ("python.exe" if os.name == "nt" else "bin/python"))])
    return found


def find_python() -> tuple[str, str]:
    """(version, path) of the Python to build with: the one that was named, else the first of PYTHONS that is there."""
    named = os.environ.get("LORA_TRAINER_PYTHON")
    if named:
        found = interpreter([named])
        if found is None:
            raise SetupError(
                f"LORA_TRAINER_PYTHON names {named}, which does not run as a 64-bit Python with venv and ensurepip.",
                "Name the python program itself, or unset the variable. (Debian and Ubuntu: apt-get install python3.11-venv)",
            )
        if found[0] not in PYTHONS:
            raise SetupError(f"LORA_TRAINER_PYTHON names {named}, a Python {found[0]}; 3.11, 3.10 or 3.13 is needed.", how_to_get_python())
        return found
    for version in PYTHONS:
        for command in candidates(version):
            found = interpreter(command)
            if found is not None and found[0] == version:
                return found
    mine = "%d.%d" % sys.version_info[:2]
    raise SetupError(f"Python 3.11 or 3.10 is needed (or 3.13), and none was found (this is Python {mine}).", how_to_get_python())


def how_to_get_python() -> str:
    if os.name == "nt":
        way = "winget install Python.Python.3.11     (or the installer from https://www.python.org/downloads/)"
    elif sys.platform == "darwin":
        way = "brew install python@3.11     (or the installer from https://www.python.org/downloads/)"
    else:
        way = "apt-get install python3.11 python3.11-venv     (or: dnf install python3.11; pyenv install 3.11; uv python install 3.11)"
    return f"Install Python 3.11 beside the one you have:\n    {way}\nor name one: LORA_TRAINER_PYTHON=/path/to/python3.11"


# Torch: which build, from where, how large


def nvidia_card() -> tuple[int, float] | None:
    """(CUDA version of the driver, compute capability) when nvidia-smi answers; 0 for what it does not tell."""
    answer = ask(["nvidia-smi"])
    if answer is None:
        return None
    cuda = re.search(r"CUDA[\w ]*Version:\s*(\d+)", answer)
    capability = re.search(r"\d+\.\d+", ask(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]) or "")
    return int(cuda.group(1)) if cuda else 0, float(capability.group()) if capability else 0.0


def torch_build(version: str, card: tuple[int, float] | None) -> str:
    """The name of torch's own index for this machine."""
    if card is None:
        return "cpu"
    return next(name for name, cuda, capability in CUDA_BUILDS[version] if card[0] >= cuda and card[1] >= capability)


def answers(url: str) -> bool:
    """Whether the index gives its page of torch within PROBE_SECONDS; a name server that hangs counts as no."""
    result: list[bool] = []

    def look() -> None:
        try:
            with urllib.request.urlopen(url.rstrip("/") + "/torch/", timeout=PROBE_SECONDS) as page:
                result.append(page.status == 200)
        except (OSError, ValueError):  # URLError and HTTPError are OSErrors
            result.append(False)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return bool(result and result[0])


def install_torch(folder: Path, version: str, constraints: Path) -> None:
    """Says how much is coming from where, checks the disk, installs."""
    card = nvidia_card()
    build = torch_build(version, card)
    if card is not None and card[1] >= 10 and not build.startswith("cu13"):
        say("This card needs a newer NVIDIA driver (580 or later) for torch to use it; with today's driver it will not.")
    url = os.environ.get("LORA_TRAINER_TORCH_INDEX_URL") or (None if sys.platform == "darwin" else TORCH_WHEELS + build)
    index: list[str] = []
    if url and answers(url):
        index, sizes = ["--extra-index-url", url], [SIZES[version, "cpu" if build == "cpu" else "cuda"]]
    else:
        if url:
            say(f"{url} did not answer within {PROBE_SECONDS} s; torch comes from the index that pip is set up with.")
        # On Linux such an index mostly holds the CUDA build, elsewhere the one for the CPU; only pip knows.
        sizes = [SIZES[version, "cpu"], SIZES[version, "cuda"]] if sys.platform == "linux" else [SIZES[version, "cpu"]]
    what = f"Torch ({'for the CPU' if build == 'cpu' else 'with CUDA, ' + build})" if index else "Torch (the build that the index offers)"
    download, disk = (" to ".join(f"{amount:.1f}" for amount in column) for column in zip(*sizes))  # noqa: B905
    free = check_disk(folder, sizes[0])
    say(f"{what} and the other packages: about {download} GB to download, {disk} GB on disk; {free:.1f} GB are free in {folder.parent}.")
    if free < sizes[-1][1]:
        say(f"If the index offers the CUDA build, {sizes[-1][1]:.1f} GB are needed, and the disk will be full.")
    pip(folder, "torch", "-c", str(constraints), *index)


def check_disk(folder: Path, size: tuple[float, float]) -> float:
    """Free GB where the environment goes; SetupError when that, or pip's temporary folder, is too small."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free / 1e9
    if free < size[1]:
        raise SetupError(
            f"{folder} needs {size[1]:.1f} GB, and {free:.1f} GB are free there.",
            "Free some space, or choose a folder on another disk: LORA_TRAINER_VENV=/path/to/folder",
        )
    temporary = Path(tempfile.gettempdir())
    free_there = shutil.disk_usage(temporary).free / 1e9
    if free_there < size[0]:
        raise SetupError(
            f"pip unpacks its downloads in {temporary}, which needs {size[0]:.1f} GB; {free_there:.1f} GB are free there.",
            "Free some space, or choose another folder: TMPDIR=/path/to/folder (Windows: TEMP)",
        )
    return free


# The environment


def program(folder: Path, name: str = "python") -> Path:
    return folder / "Scripts" / (name + ".exe") if os.name == "nt" else folder / "bin" / name


def read_state(folder: Path) -> dict[str, str] | None:
    """What this file noted in the environment; None when it did not make it."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:  # cut off while it was written
        return {}
    return state if isinstance(state, dict) else {}


def write_state(folder: Path, state: dict[str, str]) -> None:
    new = folder / (STATE + ".new")
    new.write_text(json.dumps(state, indent=1), encoding="utf-8")
    new.replace(folder / STATE)


def constraints_file(version: str) -> Path:
    return ROOT / "constraints" / f"py{version.replace('.', '')}.txt"


def forced_file(version: str) -> Path | None:
    """Versions that the host installs against what its other packages ask for: pip takes them last, and without looking."""
    path = ROOT / "constraints" / f"py{version.replace('.', '')}-forced.txt"
    return path if path.exists() else None


def requirement_files(level: str) -> list[Path]:
    return [ROOT / name for name in REQUIREMENTS[level]]


def fingerprint(version: str, level: str) -> str:
    """Changes when any file changes that says what is installed."""
    digest = hashlib.sha256()
    forced = forced_file(version)
    for path in (constraints_file(version), *([forced] if forced else []), *requirement_files(level)):
        digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


def pip(folder: Path, *arguments: str) -> None:
    """pip of that environment; what it prints goes to stderr. -I: what PYTHONPATH holds is not taken for installed."""
    environment = dict(os.environ, PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1")
    command = [str(program(folder)), "-I", "-m", "pip", "install", *arguments]
    if subprocess.run(command, stdout=sys.stderr, env=environment).returncode:
        check_disk(folder, (0.1, 0.1))
        raise SetupError(
            "The packages could not be installed; pip says why above.",
            "Check the network (behind a mirror: set PIP_INDEX_URL) and run the same command again: it goes on where it stopped.",
        )


def torch_of(python: str) -> str | None:
    """The version of a torch that this Python can import, or None."""
    answer = ask([python, "-I", "-c", "import torch; print(torch.__version__)"], timeout=300)
    return answer.strip().split("\n")[-1] if answer else None


def is_new_enough(torch_version: str | None) -> bool:
    numbers = re.findall(r"\d+", torch_version or "")[:2]
    return len(numbers) == 2 and tuple(map(int, numbers)) >= OLDEST_TORCH


def make_folder(folder: Path) -> dict[str, str]:
    """An empty environment; returns its note. The note comes first, so that an interrupted one is known as ours."""
    version, python = find_python()
    share = is_new_enough(torch_of(python))
    say(f"Making {folder} with Python {version} ({python})" + (", with the torch that it has." if share else "."))
    check_disk(folder, (0.1, 0.3))
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    state = {"python": version, "torch": "shared" if share else "own"}
    write_state(folder, state)
    command = [python, "-m", "venv", *(["--system-site-packages"] if share else []), str(folder)]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        message = f"{python} could not make {folder}; its own words are above."
        raise SetupError(message, "Name another Python: LORA_TRAINER_PYTHON=/path/to/python3.11")
    return state


def remove_halves(folder: Path) -> None:
    """Packages whose installation was cut off: pip writes RECORD last, and takes one without it for installed."""
    for pattern in ("lib/python*/site-packages/*.dist-info", "Lib/site-packages/*.dist-info"):
        for package in list(folder.glob(pattern)):
            if not (package / "RECORD").exists():
                shutil.rmtree(package, ignore_errors=True)


def install(folder: Path, level: str, state: dict[str, str]) -> None:
    """Makes the environment, or goes on with one that was interrupted or is of another version of this project."""
    if state.get("python") in PYTHONS and ask([str(program(folder)), "-I", "-m", "pip", "--version"]) is not None:
        say(f"Bringing {folder} up to date.")
        remove_halves(folder)
    else:
        state = make_folder(folder)
    version = state["python"]
    python, constraints = str(program(folder)), constraints_file(version)
    torch = torch_of(python)
    text = constraints.read_text(encoding="utf-8")
    pinned = f"torch=={torch.split('+')[0]}" in text.split() if torch else False
    if torch and not pinned and state.get("torch") == "shared":  # kept, whatever its version
        constraints = folder / "constraints.txt"
        constraints.write_text(re.sub(r"(?m)^torch==.*", f"torch=={torch}", text), encoding="utf-8")
    elif not pinned:
        install_torch(folder, version, constraints)
    quiet = [] if sys.stderr.isatty() else ["-q"]
    pip(folder, "-r", str(requirement_files(level)[-1]), "-c", str(constraints), *quiet)
    forced = forced_file(version)
    if forced:
        pip(folder, "--no-deps", "-r", str(forced), *quiet)
    torch = torch_of(python)
    if torch is None:
        subprocess.run([python, "-I", "-c", "import torch"], stdout=sys.stderr)
        raise SetupError(
            "Torch is installed but cannot be imported; its own words are above.",
            "On Windows install the Microsoft Visual C++ Redistributable (x64). Elsewhere remove the folder "
            f"{folder} and run the same command again.",
        )
    levels = ("run", "test") if level == "test" else (level,)
    write_state(folder, {**state, **{name: fingerprint(version, name) for name in levels}})
    say(f"Ready: Python {version}, torch {torch}.")


def check_foreign(folder: Path, level: str) -> None:
    """An environment that somebody else made (a WebUI's, say) is used as it is or not at all."""
    python = str(program(folder))
    files = [path.read_text(encoding="utf-8") for path in requirement_files(level)]
    names = {name for text in files for name in re.findall(r"^([A-Za-z][\w.-]*)", text, re.MULTILINE)}
    code = "import sys, importlib.metadata as m\nfor n in sys.argv[1:]:\n try: m.version(n)\n except m.PackageNotFoundError: print(n)"
    missing = ask([python, "-I", "-c", code, *sorted(names)])
    other = "Remove the folder, or choose another one: LORA_TRAINER_VENV=/path/to/folder"
    if missing is None:
        raise SetupError(f"{folder} is there, but holds no environment of Python.", other)
    if missing.strip():
        lacking = ", ".join(missing.split())
        raise SetupError(f"{folder} was not made by standalone.py, so nothing is installed into it; it lacks {lacking}.", other)


def environment(level: str) -> Path:
    """The folder of an environment that holds what `level` needs; made or completed when it does not."""
    folder = Path(os.environ.get("LORA_TRAINER_VENV") or ROOT / ".venv").absolute()
    state = read_state(folder)
    if state is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        check_foreign(folder, level)
        return folder
    state = state or {}
    version = state.get("python", "")
    named = interpreter([os.environ["LORA_TRAINER_PYTHON"]]) if os.environ.get("LORA_TRAINER_PYTHON") else None
    if version and named and named[0] != version:
        raise SetupError(
            f"{folder} was made with Python {version}, and LORA_TRAINER_PYTHON names a Python {named[0]}.",
            "Remove the folder, or choose another one for it: LORA_TRAINER_VENV=/path/to/folder",
        )
    if version in PYTHONS and state.get(level) == fingerprint(version, level) and program(folder).exists():
        return folder
    install(folder, level, state)
    return folder


# Running


def run(command: list[str], **options: object) -> int:
    """The command's exit status. Ctrl-C and SIGTERM reach it, and it is given the time to end in order."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    defaults = {"OMP_WAIT_POLICY": "PASSIVE", "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    child = subprocess.Popen(command, env={**defaults, **os.environ, "PYTHONPATH": os.pathsep.join(paths)}, **options)  # type: ignore[call-overload]
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while True:
        try:
            code = int(child.wait())
        except KeyboardInterrupt:  # the terminal has sent it to the child as well
            continue
        return code if code >= 0 else 128 - code


def workers(rest: list[str]) -> list[str]:
    """What has pytest use all cores, file by file; nothing where a single file is named, or how it runs."""
    paths = [word for word in rest if word[:1] != "-" and (".py" in word or (ROOT / word).exists())]
    if any(re.match(r"-n|--dist|--numprocesses|-p|--pdb|-s$|--capture", word) for word in rest) or (len(paths) == 1 and ".py" in paths[0]):
        return []
    return ["-n", "auto", "--dist", "loadfile", *(["--no-loadscope-reorder"] if "--order" in rest else [])]


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    verb, rest = arguments[0], arguments[1:]
    if (verb == "setup" and rest not in ([], ["--test"])) or (verb == "tool" and not rest):
        print(__doc__)
        return 2
    try:
        folder = environment("test" if verb in ("test", "tool") or (verb == "setup" and rest) else "run")
    except SetupError as error:
        say(f"{error}\n{error.fix}")
        return 1
    except OSError as error:
        say(f"{error}\nFree the disk or the path, or choose another folder: LORA_TRAINER_VENV=/path/to/folder")
        return 1
    except KeyboardInterrupt:
        say("Stopped. The same command goes on from here.")
        return 130
    python = str(program(folder))
    if verb == "setup":
        return 0
    if verb == "test":
        return run([python, "-X", "warn_default_encoding", "-m", "pytest", *workers(rest), *rest], cwd=str(ROOT))
    return run([python, "-m", *([] if verb == "tool" else ["lora_trainer", verb]), *rest])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
