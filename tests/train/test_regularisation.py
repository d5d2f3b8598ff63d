"""Regularisation pictures and several datasets in a run on the small model."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from lora_trainer.events import Started, Stepped, Warned
from lora_trainer.train.step.objective import apply_prior_weight
from tests.train.measure import loss_of
from tests.train.ordinary import draw_ordinary
from tests.train.runs import assets, events_of, small_config, tensors_of


@pytest.fixture
def ordinary(tmp_path: Path) -> Path:
    """A folder `1_shape` with 20 ordinary pictures in it; its parent is returned."""
    return draw_ordinary(tmp_path / "reg" / "1_shape", 20).parent


def result_of(config, folder: Path) -> tuple[list, dict[str, torch.Tensor]]:
    events = events_of(config, folder)
    return events, tensors_of(folder / "loras" / "small.safetensors")


def test_a_weight_of_0_gives_the_bits_of_a_run_without_regularisation(tmp_path: Path, ordinary: Path):
    events, weightless = result_of(
        small_config(tmp_path / "a", data__reg_data_dir=str(ordinary), loss__prior_loss_weight=0), tmp_path / "a"
    )
    _, plain = result_of(small_config(tmp_path / "b"), tmp_path / "b")
    _, shown = result_of(small_config(tmp_path / "c", data__reg_data_dir=str(ordinary)), tmp_path / "c")
    assert all(torch.equal(plain[name], weightless[name]) for name in plain)
    assert any(not torch.equal(plain[name], shown[name]) for name in plain)
    assert any(isinstance(event, Warned) and "prior_loss_weight" in event.message.text() for event in events)


def test_a_regularisation_picture_counts_by_its_weight_and_the_others_whole():
    losses = torch.rand(4, requires_grad=True)
    is_reg = [False, True, False, True]
    (gradient,) = torch.autograd.grad(apply_prior_weight(losses, is_reg, 0.25).sum(), losses)
    assert gradient.tolist() == [1.0, 0.25, 1.0, 0.25]
    (nothing,) = torch.autograd.grad(apply_prior_weight(losses, is_reg, 0.0).sum(), losses)
    assert nothing.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert apply_prior_weight(losses, is_reg, 1.0) is losses and apply_prior_weight(losses, [False] * 4, 0.5) is losses


def test_the_weight_of_regularisation_reaches_the_result(tmp_path: Path, ordinary: Path):
    changes = {"data__reg_data_dir": str(ordinary), "steps__max_train_steps": 2}
    half, whole = (
        result_of(small_config(tmp_path / str(weight), loss__prior_loss_weight=weight, **changes), tmp_path / str(weight))[1]
        for weight in (0.5, 1.0)
    )
    assert any(not torch.equal(whole[name], half[name]) for name in whole)


def test_plan_and_header_count_regularisation_apart(tmp_path: Path, ordinary: Path):
    config = small_config(
        tmp_path,
        data__reg_data_dir=str(ordinary),
        data__batch_size=60,
        steps__max_train_steps=0,
        steps__max_train_epochs=1,
        save__every_n_epochs=0,
    )
    events = events_of(config, tmp_path)
    plan = next(event for event in events if isinstance(event, Started)).plan
    assert (plan["images"], plan["reg_images"], plan["total_steps"]) == (12, 20, 240 // 60)
    assert sum(isinstance(event, Stepped) for event in events) == plan["total_steps"]
    with safe_open(tmp_path / "loras" / "small.safetensors", framework="pt") as file:
        words = file.metadata()
    assert (words["ss_num_train_images"], words["ss_num_reg_images"], words["ss_prior_loss_weight"]) == ("120", "120", "1.0")
    assert json.loads(words["ss_dataset_dirs"]) == {"10_sks crescent": {"n_repeats": 10, "img_count": 12}}
    assert json.loads(words["ss_reg_dataset_dirs"])["1_shape"]["img_count"] == 20
    assert list(json.loads(words["ss_tag_frequency"])) == ["10_sks crescent"]
    (dataset,) = json.loads(words["ss_datasets"])
    assert [(one["image_dir"], one["is_reg"]) for one in dataset["subsets"]] == [("train", False), ("reg", True)]


def test_several_datasets_of_a_file_train_in_one_run(tmp_path: Path):
    crescent, star = (few(name, count, tmp_path / name) for name, count in (("crescent", 4), ("star", 3)))
    (tmp_path / "sets.toml").write_text(
        f"""
        [general]
        enable_bucket = true
        bucket_reso_steps = 8
        [[datasets]]
        resolution = 64
        batch_size = 4
        [[datasets.subsets]]
        image_dir = '{crescent}'
        num_repeats = 2
        caption_dropout_rate = 0.5
        [[datasets]]
        resolution = 128
        batch_size = 5
        [[datasets.subsets]]
        image_dir = '{star}'
        flip_aug = true
        [[datasets.subsets]]
        image_dir = '{crescent}'
        """,
        encoding="utf-8",
    )
    config = small_config(
        tmp_path,
        data__train_data_dir="",
        data__dataset_config=str(tmp_path / "sets.toml"),
        steps__max_train_steps=0,
        steps__max_train_epochs=1,
        steps__gradient_accumulation_steps=2,
    )
    events = events_of(config, tmp_path)
    plan = next(event for event in events if isinstance(event, Started)).plan
    batches = math.ceil(4 * 2 / 4) + math.ceil((3 + 4) / 5)
    assert plan["total_steps"] == math.ceil(batches / 2) == sum(isinstance(event, Stepped) for event in events)
    assert plan["buckets"] == [{"width": 64, "height": 64, "count": 4}, {"width": 128, "height": 128, "count": 7}]
    with safe_open(tmp_path / "loras" / "small.safetensors", framework="pt") as file:
        first, second = json.loads(file.metadata()["ss_datasets"])
    assert (first["batch_size_per_device"], first["num_train_images"], first["resolution"]) == (4, 8, [64, 64])
    assert (second["batch_size_per_device"], second["num_train_images"], len(second["subsets"])) == (5, 7, 2)


def few(name: str, count: int, folder: Path) -> Path:
    """Some of the small model's pictures with their captions, in a folder of their own."""
    folder.mkdir()
    for picture in sorted((assets.toy_pictures() / name / "train").rglob("*.png"))[:count]:
        for file in (picture, picture.with_suffix(".txt")):
            shutil.copy(file, folder)
    return folder


@pytest.mark.slow
def test_regularisation_keeps_ordinary_pictures_while_the_concept_is_learned(tmp_path: Path, capsys):
    """Base pictures: at least 30 % worse without, at most 20 % with; the unseen concept at least 30 % better with it too."""
    base = draw_ordinary(tmp_path / "base", 24, first=1000)
    regular = draw_ordinary(tmp_path / "reg" / "1_shape", 100).parent
    concept = assets.toy_pictures() / "crescent" / "val"
    size = {"network__dim": 8, "network__alpha": 8}
    course = {
        **size,
        "data__caption_dropout_rate": 0.1,
        "schedule__warmup_steps": 10,
        "schedule__min_lr_ratio": 0.1,
        "steps__max_train_steps": 240,
        "save__every_n_epochs": 0,
    }
    before = [loss_of(folder, tmp_path, **size) for folder in (base, concept)]
    changes = {}
    for name, more in (("without", {"data__batch_size": 4}), ("with", {"data__batch_size": 8, "data__reg_data_dir": str(regular)})):
        events_of(small_config(tmp_path, save__output_name=name, **course, **more), tmp_path / name)
        after = [loss_of(folder, tmp_path, tmp_path / "loras" / f"{name}.safetensors", **size) for folder in (base, concept)]
        changes[name] = [late / early - 1 for early, late in zip(before, after, strict=True)]
    with capsys.disabled():
        for name, (kept, learned) in changes.items():
            sys.stdout.write(f"\n{name} regularisation: ordinary pictures {kept:+.1%}, concept {learned:+.1%}\n")
    assert changes["without"][0] >= 0.30
    assert changes["with"][0] <= 0.20
    assert changes["with"][1] <= -0.30 and changes["without"][1] <= -0.30
