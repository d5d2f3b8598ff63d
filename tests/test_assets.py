"""The small model and what else ships: unpacked only for who needs it, and into another folder where the cache cannot be written."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lora_trainer import assets
from lora_trainer.api.runs.start_run import find_problems
from lora_trainer.errors import TrainerError
from lora_trainer.host.base import find_checkpoint
from lora_trainer.host.standalone import StandaloneHost
from tests.train.runs import small_config

ROOT = Path(__file__).parents[1]


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The three places, all below the test's folder."""
    places = {"own": tmp_path / "own", "platform": tmp_path / "platform", "temporary": tmp_path / "temporary"}
    places["temporary"].mkdir()
    monkeypatch.setenv("LORA_TRAINER_CACHE", str(places["own"]))
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(places["platform"]))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(places["temporary"]))
    return places


def block(place: Path) -> None:
    """No folder can be made there, not even by root."""
    if place.is_dir():
        place.rmdir()
    place.write_bytes(b"")


def test_the_small_model_is_not_unpacked_for_another_model(tmp_path: Path, toy_checkpoint: Path, toy_pictures: Path, caches):
    own = tmp_path / "models" / "own.safetensors"
    own.parent.mkdir()
    shutil.copy(toy_checkpoint, own)
    host = StandaloneHost(tmp_path)
    assert [checkpoint.title for checkpoint in host.checkpoints()] == ["own", assets.TOY]
    pictures = str(toy_pictures / "crescent" / "train")
    config = small_config(tmp_path, model__pretrained_model_name_or_path="own", data__train_data_dir=pictures)
    shutil.rmtree(caches["own"])
    assert not find_problems(config, host) and host.model_info()["title"] == "own"
    assert not list(tmp_path.rglob("toy-sd15-host-*"))
    assert find_checkpoint(assets.TOY, host.checkpoints()).is_file()
    assert find_checkpoint(str(assets.toy_path()), host.checkpoints()).is_file() and assets.is_toy(assets.toy_path())


def test_a_path_of_the_list_of_models_is_unpacked_when_it_is_named(tmp_path: Path, caches):
    host = StandaloneHost(tmp_path)
    listed = host.checkpoints()[0].path
    assert not listed.exists()
    assert find_checkpoint(str(listed), host.checkpoints()) == listed and listed.is_file()


@pytest.mark.parametrize("blocked", [["own"], ["own", "platform"]])
def test_a_cache_that_cannot_be_written_is_passed_over_for_the_next(caches, blocked: list[str]):
    for name in blocked:
        block(caches[name])
    expected = next(place for name, place in caches.items() if name not in blocked)
    assert expected in assets.toy_checkpoint().parents and expected in assets.clip_vocabulary().parents
    assert expected in (assets.cache_folder(), *assets.cache_folder().parents)


def test_where_nothing_can_be_written_the_remedy_is_told(tmp_path: Path, caches):
    for place in caches.values():
        block(place)
    with pytest.raises(TrainerError, match="toy-sd15-host cannot be unpacked") as caught:
        assets.toy_checkpoint()
    assert "LORA_TRAINER_CACHE" in caught.value.problems[0].fix.text()
    info = StandaloneHost(tmp_path).model_info()
    assert not info["trainable"] and "cannot be unpacked" in info["reason"].text()


def test_a_full_cache_leaves_nothing_half_unpacked_and_is_named(tmp_path: Path, caches):
    code = "import signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    code += "from lora_trainer.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = ["sample", "--model", assets.TOY, "--prompt", "x", "--out", "x.png"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(caches["temporary"])},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
    assert "cannot be unpacked" in done.stderr and "LORA_TRAINER_CACHE" in done.stderr
    assert not list(tmp_path.rglob("*.safetensors"))


def test_what_a_killed_process_left_half_unpacked_is_removed_later(caches):
    old, new = (caches["own"] / f"{assets._TOY_FOLDER}.{name}" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (1, 1))
    assert assets.toy_checkpoint().is_file()
    assert not old.exists() and new.exists()


def test_what_ships_damaged_is_named_as_that(tmp_path: Path, caches, monkeypatch):
    shipped = tmp_path / "shipped"
    shutil.copytree(assets.HERE, shipped)
    for name in ("clip.tar.xz", "toy-sd15-host.safetensors.xz"):
        (shipped / name).write_bytes(b"damaged")
    monkeypatch.setattr(assets, "HERE", shipped)
    for unpack in (assets.clip_vocabulary, assets.toy_checkpoint):
        with pytest.raises(TrainerError, match=r"xz is damaged.*Download the project again"):
            unpack()
    assert not list(caches["own"].glob("*/*"))
