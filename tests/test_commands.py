"""Every command that the documents show is run as written, one after the other, in one folder, with the small model.

They run without the packages that only the tests need: what a fresh installation lacks, these commands must not ask for.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import standalone
from lora_trainer import assets

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted(path for path in ROOT.glob("docs/*.md") if "zh-CN" not in path.name)]
STARTS = ("python3 standalone.py ", "python -m ", "python benchmarks/", "accelerate launch ")
# a line's command ends where its remark begins: two spaces, or a # after spaces
REMARK = re.compile(r"\s{2,}.*| +#.*")
SETTINGS = {
    "pretrained_model_name_or_path": "model.safetensors",
    "train_data_dir": "pictures",
    "output_dir": "out",
    "output_name": "mika",
    "max_resolution": "64,64",
    "enable_bucket": False,
    "epoch": 1,
    "max_train_steps": 4,
    "train_batch_size": 2,
    "network_dim": 4,
    "network_alpha": 4,
    "learning_rate": 1e-3,
    "mixed_precision": "no",
    "LoRA_type": "Standard",
    "caption_extension": ".txt",
    "save_every_n_epochs": 1,
}
HANGS = 3600
"""Seconds after which a command is taken to hang; the demo needs five minutes of a quiet machine."""
HIDER = """
import os, sys
from importlib.machinery import PathFinder
class Hider(PathFinder):
    names = set(os.environ["HIDDEN_MODULES"].split(","))
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in cls.names else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Hider
"""


def documented() -> list[str]:
    """The commands in the code blocks of all documents, each once, in the order in which a reader meets them."""
    commands = []
    for document in DOCUMENTS:
        blocks = re.findall(r"^```\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        for line in "".join(blocks).replace("\\\n", " ").splitlines():
            if line.startswith(STARTS):
                commands.append(re.sub(r"(?<=29500) +", " ", line) if "29500" in line else REMARK.sub("", line))
    return list(dict.fromkeys(commands))


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(level: str) -> set[str]:
    """The distributions that the environment of that level holds: its requirements and theirs."""
    from packaging.requirements import Requirement

    lines = [line for path in standalone.requirement_files(level) for line in path.read_text("utf-8").splitlines()]
    waiting, found = [line for line in lines if re.match("[A-Za-z]", line)], set()
    while waiting:
        requirement = Requirement(waiting.pop())
        name = normalized(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        waiting += importlib.metadata.requires(name) or []
    return found


def modules_of_tests_only() -> set[str]:
    extra = needed("test") - needed("run")
    owners = importlib.metadata.packages_distributions() if sys.version_info >= (3, 10) else {}
    return {module for module, names in owners.items() if {normalized(name) for name in names} <= extra}


class Reader:
    """A folder that holds what the documents' commands name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.written = folder, 0
        shutil.copytree(assets.toy_pictures() / "crescent" / "train", folder / "pictures")
        shutil.copy(assets.toy_checkpoint(), folder / "model.safetensors")
        shutil.copy(assets.toy_checkpoint().with_suffix(".yaml"), folder / "model.yaml")
        for name in ("kohya.json", "their.json"):
            (folder / name).write_text(json.dumps(SETTINGS), encoding="utf-8")
        (folder / "hider").mkdir()
        (folder / "hider" / "sitecustomize.py").write_text(HIDER, encoding="utf-8")
        paths = os.pathsep.join([str(folder / "hider"), str(ROOT)])
        self.environment = {**os.environ, "PYTHONPATH": paths, "HIDDEN_MODULES": ",".join(modules_of_tests_only())}

    def words(self, command: str) -> list[str]:
        """The command's words; standalone.py's own environment is the one that runs this test."""
        words = shlex.split(command)
        if words[:2] == ["python3", "standalone.py"]:
            return [sys.executable, "-m", "lora_trainer", *words[2:], *SHORTER.get(words[2], [])]
        return [sys.executable if words[0] == "python" else words[0], *words[1:]]

    def run(self, command: str) -> None:
        done = subprocess.run(
            self.words(command), cwd=self.folder, env=self.environment, capture_output=True, encoding="utf-8", timeout=HANGS
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, command

    def filled_in(self, command: str) -> str:
        """The command with names of this folder in place of the capital letters; without what the shell does with its output."""
        if "--to kohya" in command:  # a file that has other names
            command = command.replace("FILE", f"new-{self.written}.safetensors")
        self.written += 1
        new = "tuned.safetensors" if "--into" in command else f"new-{self.written}.safetensors"
        words = [
            new
            if word == "NEW.safetensors"
            else STAND_INS.get(word.partition(":")[0], word.partition(":")[0]) + "".join(word.partition(":")[1:])
            for word in shlex.split(command.partition(" > ")[0])
        ]
        return shlex.join(words)

    def in_several_processes(self, command: str) -> None:
        """Trains with a config that the document leaves to the reader."""
        self.run("python3 standalone.py import kohya.json --out several.toml")
        self.run(f"{command.replace('CONFIG.toml', 'several.toml')} --set save.output_name=several")

    def open_page(self, command: str) -> None:
        """Starts the page on a free port, reads it, and ends the server as Ctrl-C does."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = subprocess.Popen([*self.words(command), "--port", str(port)], cwd=self.folder, env=self.environment)
        address = f"http://127.0.0.1:{port}/lora-trainer/v1/status"
        try:
            until(lambda: server.poll() is not None or answers(address))
            assert server.poll() is None
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)

    def control(self, command: str) -> None:
        """Gives the command to a run that trains, then stops it."""
        self.run(self.filled_in("python3 standalone.py import kohya.json --out long.toml"))
        long = "python3 standalone.py train long.toml --set save.output_name=long --set steps.max_train_steps=100000"
        training = subprocess.Popen(
            self.words(long), cwd=self.folder, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            events = self.folder / "runs" / "long" / "events.jsonl"
            until(lambda: events.is_file() and '"stepped"' in events.read_text(encoding="utf-8"))
            self.run(command.replace("runs/mika", "runs/long"))
            until(lambda: '"paused"' in events.read_text(encoding="utf-8"))
            self.run("python3 standalone.py control runs/long stop")
            assert training.wait(60) in (0, 130)
        finally:
            training.kill()
            training.wait()


def until(reached: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    yield Reader(tmp_path_factory.mktemp("reader"))


ELSEWHERE = {
    "python3 standalone.py test": "is the run of this test itself",
    "python3 standalone.py tool benchmarks.on_card": "is a step of CI of its own",
    "accelerate launch --multi_gpu --num_processes 2 -m lora_trainer train CONFIG.toml": "needs two GPUs",
    "python -m torch.distributed.run --nnodes 2 --nproc_per_node 1 --node_rank 0 --master_addr 192.168.1.10 --master_port 29500"
    " -m lora_trainer train CONFIG.toml": "needs two machines",
}
SLOW = ("demo", " control ", " grid ", "torch.distributed.run", "config.reference", "network", "standalone.py import FILE")


def cases() -> list[object]:
    commands = [*documented(), *network_commands()]
    return [
        pytest.param(command, marks=[pytest.mark.slow, pytest.mark.timeout(HANGS)] if any(word in command for word in SLOW) else ())
        for command in commands
        if command not in ELSEWHERE
    ]


def network_commands() -> list[str]:
    """The list in network-tools.md, which leaves out how the program is started; what stands in [] may be left out, of a|b each is run."""
    text = (ROOT / "docs" / "network-tools.md").read_text(encoding="utf-8")
    block = re.search(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block
    lines = [re.sub(r" \[[^]]*\]", "", line) for line in block.group(1).splitlines()]
    commands = ["python3 standalone.py " + REMARK.sub("", line) for line in lines]
    return [choice for command in commands for choice in alternatives(command)]


def alternatives(command: str) -> list[str]:
    match = re.search(r"\S+\|\S+", command)
    words = match.group(0).split("|") if match else []
    return [command.replace("|".join(words), word) for word in reversed(words)] if words else [command]  # the names that a file has, last


SHORTER = {"lr-find": ["--steps", "8"]}  # than by default: the same work, less of it
STAND_INS = {
    "CONFIG.toml": "other.toml",
    "FILE.safetensors": "out/mika.safetensors",
    "FILE": "out/mika.safetensors",
    "A": "out/mika.safetensors",
    "B": "out/mika-000001.safetensors",
    "CHECKPOINT": "model.safetensors",
    "BASE": "model.safetensors",
    "TUNED": "tuned.safetensors",
    "cat.png": "mika.png",
    "KEY": "ss_clip_skip",
}


def test_documents_show_commands_and_each_is_run_or_said_to_need_more_than_this_machine() -> None:
    commands = documented()
    assert len(commands) > 15 and len(network_commands()) > 8
    assert ELSEWHERE.keys() <= set(commands)
    assert any("lr-find" in command for command in commands)
    assert {"prodigyopt", "dadaptation"}.isdisjoint(modules_of_tests_only()) and "pytest" in modules_of_tests_only()


@pytest.mark.parametrize("command", cases())
def test_command_ends_as_the_documents_say(reader: Reader, command: str) -> None:
    if " ui" in command:
        reader.open_page(command)
    elif " control " in command:
        reader.control(command)
    elif "torch.distributed.run" in command:
        reader.in_several_processes(command)
    else:
        reader.run(reader.filled_in(command))
