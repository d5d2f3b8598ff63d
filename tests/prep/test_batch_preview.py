"""What is shown before training is what is trained: the same pictures in the same order, cut, mirrored and described the same way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lora_trainer.api.dataset_reports import write_first_batches as show_batches
from lora_trainer.cli.main import main
from lora_trainer.config.build import build
from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import Control
from lora_trainer.data.cache import latent_cache
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.train import loop, setup
from lora_trainer.train.inputs.dataset import load_dataset
from lora_trainer.train.inputs.examples import first_batches, pixels
from tests.prep.test_doctor import drawn


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures of three shapes with captions of several parts."""
    place = tmp_path / "pictures"
    place.mkdir()
    for number, size in enumerate([(96, 64), (64, 96), (64, 64), (128, 64), (66, 100)]):
        drawn(number, size).save(place / f"{number}.png")
        (place / f"{number}.txt").write_text(f"sks, one{number}, two, three, four", encoding="utf-8")
    return place


def config_of(folder: Path, **data: Any) -> TrainConfig:
    values = {"train_data_dir": str(folder), "resolution": 64, "min_bucket_reso": 32, "bucket_reso_steps": 16, "batch_size": 2}
    values |= {"flip_aug": True, "shuffle_caption": True, "keep_tokens": 1, "caption_dropout_rate": 0.2, "cache_latents": False, **data}
    output = {"output_dir": str(folder.parent / "out"), "every_n_epochs": 0}
    return build({"data": values, "steps": {"max_train_epochs": 2}, "save": output, "network": {"dim": 1}})


def test_the_batches_that_are_shown_are_those_that_the_loop_trains(folder: Path, monkeypatch: pytest.MonkeyPatch):
    config = config_of(folder)
    captions: list[str] = []
    seen: list[Any] = []
    encode, fitted = setup.CaptionEncoder.encode, latent_cache.load_pixels

    def encoding(self: Any, bundle: Any, texts: list[str]) -> Any:
        captions.extend(texts)
        return encode(self, bundle, texts)

    def reading(record: Any, flipped: bool) -> Any:
        seen.append(((fitted(record, flipped)[0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy())
        return fitted(record, flipped)

    monkeypatch.setattr(setup.CaptionEncoder, "encode", encoding)
    monkeypatch.setattr(latent_cache, "load_pixels", reading)
    for event in loop.run(config, StandaloneHost(), Control(), folder.parent):
        if type(event).__name__ == "Stepped":
            steps = event.step
    shown = [one for batch in first_batches(load_dataset(config), seed=config.seed, count=steps) for one in batch]
    assert [one.caption for one in shown] == captions[: len(shown)] and len(set(captions)) > 5
    assert len(shown) == 10 and len(seen) >= 10
    assert all(np.array_equal(pixels(one), pixel) for one, pixel in zip(shown, seen[-10:], strict=True))
    assert {one.flipped for one in shown} == {True, False}


def test_the_sheet_and_its_json_tell_cut_caption_and_group(folder: Path, tmp_path: Path):
    config = config_of(folder, trigger_word="sks")
    found = show_batches(config, load_dataset(config), tmp_path / "shown")
    assert json.loads((tmp_path / "shown" / "batches.json").read_text(encoding="utf-8"))["batches"] == found["batches"]
    first = found["batches"][0]
    assert len(first["bucket"]) == 2 and first["epoch"] == 1
    for batch in found["batches"]:
        for picture in batch["pictures"]:
            assert picture["crop"][2:] == batch["bucket"] and 0 < picture["kept"] <= 1
            assert picture["caption"] == "" or picture["caption"].startswith("sks, ")
    with Image.open(tmp_path / "shown" / "batches.png") as sheet:
        assert sheet.width > 300 and sheet.height > 300 and len(sheet.getcolors(1 << 20) or []) > 50


def test_the_part_that_is_not_learned_is_tinted_and_its_share_told(folder: Path, tmp_path: Path):
    picture = Image.new("RGBA", (64, 64), (0, 0, 255, 255))
    picture.paste((0, 0, 255, 0), (0, 0, 32, 64))
    for number in range(5):
        (folder / f"{number}.png").unlink()
    picture.save(folder / "2.png")
    config = config_of(folder, alpha_mask=True, flip_aug=False)
    found = show_batches(config, load_dataset(config), tmp_path / "shown")
    assert found["batches"][0]["pictures"][0]["mask"] == 0.5
    with Image.open(tmp_path / "shown" / "batches.png") as sheet:
        colours = {colour for _, colour in sheet.getcolors(1 << 20) or []}
    assert any(red > 120 and blue < 140 and green < 120 for red, green, blue in colours)


def test_the_verb_draws_where_it_is_asked_to(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "my.toml"
    file.write_text(f'[data]\ntrain_data_dir = "{folder.as_posix()}"\nresolution = 64\ntrigger_word = "sks"\n', encoding="utf-8")
    assert main(["check", str(file), "--show", str(tmp_path / "shown"), "--json", "--set", f"save.output_dir={tmp_path / 'out'}"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["images"] == 5 and document["shown"]["batches"]
    assert all(Path(name).is_file() for name in document["shown"]["files"])
