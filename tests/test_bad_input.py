"""Whatever is wrong is named, with the remedy, the right exit status, and nothing half-written."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from PIL import Image

from lora_trainer import assets
from lora_trainer.cli.main import main

ROOT = Path(__file__).parent.parent


def run(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A verb in its own process."""
    return subprocess.run(
        [sys.executable, "-m", "lora_trainer", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


def told(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The same verb in this process: most of a short process's time is the interpreter's start."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as notes:
        patch.chdir(cwd)
        patch.setenv("LC_ALL", "C.UTF-8")
        code = main([*map(str, words)])
    return subprocess.CompletedProcess(words, code, out.getvalue(), notes.getvalue())


def good(folder: Path) -> dict[str, dict[str, object]]:
    """A config that works: each case spoils one thing."""
    return {
        "model": {"pretrained_model_name_or_path": str(assets.toy_checkpoint())},
        "data": {"train_data_dir": str(folder / "pictures"), "resolution": 64, "trigger_word": "sks"},
        "save": {"output_dir": str(folder / "out"), "output_name": "thing"},
        "steps": {"max_train_steps": 1},
    }


def written(folder: Path, config: dict[str, dict[str, object]]) -> Path:
    """The config as TOML."""
    lines = []
    for section, values in config.items():
        lines.append(f"[{section}]")
        lines += [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
    path = folder / "config.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "pictures" / "a.png")
    return tmp_path


def snapshot(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


VALUES = [
    ("data.batch_size", 2.7, "whole number"),
    ("data.batch_size", 0, "too small"),
    ("data.batch_size", "four", "whole number"),
    ("data.flip_aug", "false", "true or false"),
    ("data.resolution", 63, "data.resolution"),
    ("data.resolution", [512], "data.resolution"),
    ("data.resolutoin", 64, "data.resolution"),
    ("data.caption_dropout_rate", 1.5, "too large"),
    ("data.train_data_dir", "", "data.train_data_dir"),
    ("data.train_data_dir", "C:\new\train", "control character"),
    ("data.train_data_dir", "nowhere/at/all", "nowhere"),
    ("network.dim", 0, "too small"),
    ("network.alpha", -1.0, "network.alpha"),
    ("network.type", "lorra", "lora"),
    ("optimizer.type", "Adam W", "AdamW"),
    ("optimizer.learning_rate", -1e-4, "too small"),
    ("optimizer.args", "weight_decay", "optimizer.args"),
    ("optimizer.args", "momentum=0.9", "optimizer.args"),
    ("schedule.type", "cosin", "cosine"),
    ("schedule.warmup_steps", "5 percent", "schedule.warmup_steps"),
    ("steps.max_train_epochs", -1, "too small"),
    ("memory.mixed_precision", "fp8", "memory.mixed_precision"),
    ("sample.sampler", "dpm", "sample.sampler"),
    ("validate.fraction", 0.9, "too large"),
    ("validate.data_dir", "missing", "validate.data_dir"),
    ("save.output_name", "CON", "save.output_name"),
    ("save.output_name", "../thing", "save.output_name"),
    ("save.output_name", "thing.", "save.output_name"),
    ("save.precision", "fp15", "fp16"),
    ("model.clip_skip", 3, "model.clip_skip"),
    ("model.pretrained_model_name_or_path", "missing.safetensors", "missing.safetensors"),
    ("seed.of", 1, "seed"),
]


@pytest.mark.parametrize(("path", "value", "words"), VALUES, ids=[f"{path}={value}" for path, value, _ in VALUES])
def test_a_wrong_value_is_named_with_the_remedy(place: Path, path: str, value: object, words: str):
    config = good(place)
    section, _, name = path.partition(".")
    config.setdefault(section, {})[name] = value
    file = written(place, config)
    before = snapshot(place)
    done = told("train", file, cwd=place)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot(place) == before


def checkpoint(spoil: Callable[[Path], None]) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        path = place / "model.safetensors"
        spoil(path)
        return path

    return make


def header_only(path: Path, names: dict[str, list[int]]) -> None:
    header = {name: {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]} for name, shape in names.items()}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


MODELS = {
    "empty": (lambda path: path.write_bytes(b""), "not a safetensors file"),
    "text": (lambda path: path.write_text("no model", encoding="utf-8"), "not a safetensors file"),
    "half": (lambda path: path.write_bytes(assets.toy_checkpoint().read_bytes()[:1_000_000]), "ends early"),
    "folder": (lambda path: path.mkdir(), "folder"),
    "sdxl": (lambda path: header_only(path, {"conditioner.embedders.1.model.x": [1]}), "SDXL"),
    "lora": (lambda path: header_only(path, {"lora_unet_x.lora_down.weight": [1]}), "a LoRA"),
    "flux": (lambda path: header_only(path, {"double_blocks.0.x": [1]}), "Flux"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_wrong_model_is_named_by_what_it_is(place: Path, kind: str):
    spoil, words = MODELS[kind]
    spoil(place / "model.safetensors")
    config = good(place)
    config["model"]["pretrained_model_name_or_path"] = str(place / "model.safetensors")
    done = told("train", written(place, config), cwd=place)
    assert done.returncode == 2
    assert words in done.stderr
    assert "model.safetensors" in done.stderr
    assert "Traceback" not in done.stderr


FOLDERS = {
    "empty": lambda folder: (folder / "a.png").unlink(),
    "no pictures": lambda folder: (folder / "a.png").rename(folder / "a.doc"),
    "broken": lambda folder: (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n broken"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_without_a_usable_picture_is_named(place: Path, kind: str):
    FOLDERS[kind](place / "pictures")
    done = told("train", written(place, good(place)), cwd=place)
    assert done.returncode == 2
    assert "pictures" in done.stderr
    assert not (place / "out").exists()


def test_configs_that_are_no_configs_are_named(place: Path):
    for name, content in {"a.toml": b"[data\n", "b.toml": b"\xff\xfe\x00", "c.toml": b'x = "C:\\users"\n'}.items():
        (place / name).write_bytes(content)
        done = told("train", place / name, cwd=place)
        assert (done.returncode, name in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr
    missing = run("train", place / "none.toml", cwd=place)
    assert missing.returncode == 2
    assert "none.toml" in missing.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB. A leg that may not mount one fails: a full disk has to be tried."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_named_before_the_first_step(place: Path, small_disk: Path):
    config = good(place)
    config["save"] |= {"output_dir": str(small_disk), "runs_dir": str(place / "runs"), "precision": "float"}
    config["network"] = {"dim": 64}
    file = written(place, config)
    done = run("train", file, cwd=place)
    assert done.returncode == 1
    assert "no room for thing" in done.stderr
    assert "Free some disk space" in done.stderr
    assert "step 1" not in done.stderr
    assert [path.name for path in small_disk.iterdir()] == []
    checked = run("check", file, "--json", cwd=place)
    assert checked.returncode == 2
    assert [problem["path"] for problem in json.loads(checked.stdout)["problems"]] == ["save.output_dir"]


def test_wrong_usage_is_answered_with_2(place: Path):
    assert run("trian", cwd=place).returncode == 2
    assert run("train", cwd=place).returncode == 2
    assert run("sample", "--model", "x.safetensors", cwd=place).returncode == 2
