"""Whole short runs on small random models of the other families: text, previews, validation, caches, files, sizes of pictures."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import random_checkpoint
from lora_trainer import assets
from lora_trainer.api.runs.start_run import find_problems
from lora_trainer.control import Control
from lora_trainer.data.records import ImageRecord
from lora_trainer.events import Finished, Phase, Sampled, Stepped, Stopped, Validated, Warned
from lora_trainer.host.standalone import StandaloneHost
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.families.sdxl import SDXL
from lora_trainer.models.load import load
from lora_trainer.models.source import FileSource
from lora_trainer.train.inputs.caption_encoder import CAPTION_BATCH, CaptionEncoder
from lora_trainer.train.inputs.examples import sizes_of
from lora_trainer.train.loop import run
from lora_trainer.train.previews.sampling import SAMPLERS, run_sampler
from lora_trainer.train.step.precision import Precision
from tests.models.stand_in_hub import StandIn, serving
from tests.train.runs import events_of, small_config, tensors_of

CPU = torch.device("cpu")
MARKS = {"sd2": ("v_pred",), "sdxl": ("v_pred", "ztsnr")}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family -> a small random checkpoint of v-prediction, SDXL's with zero terminal SNR."""
    folder = tmp_path_factory.mktemp("random")

    @cache
    def made(family: str) -> Path:
        widths = random_checkpoint.SHAPES[family][1]
        return random_checkpoint.write(folder / f"{family}.safetensors", widths, torch.float32, marks=MARKS[family])

    return made


def header(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])["__metadata__"]


@pytest.mark.parametrize(
    ("family", "layers", "words"),
    [
        (
            "sd2",
            {"lora_unet": 192, "lora_te": 18},
            {"ss_base_model_version": "sd_v2_v", "ss_v2": "True", "modelspec.architecture": "stable-diffusion-v2-768-v/lora"},
        ),
        (
            "sdxl",
            {"lora_unet": 722, "lora_te1": 24, "lora_te2": 24},
            {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False", "modelspec.architecture": "stable-diffusion-xl-v1-base/lora"},
        ),
    ],
)
def test_a_run_learns_in_every_layer_draws_validates_and_names_its_model(tmp_path, checkpoint, family, layers, words):
    config = small_config(
        tmp_path,
        model__pretrained_model_name_or_path=str(checkpoint(family)),
        optimizer__text_encoder_lr=1e-3,
        steps__max_train_steps=5,
        memory__gradient_checkpointing=True,
        sample__prompts=["a sks crescent --w 64 --h 64 --s 3"],
        sample__every_n_steps=5,
        validate__fraction=0.2,
    )
    events = events_of(config, tmp_path)
    assert isinstance(events[-1], Finished), events[-1]
    assert [event.step for event in events if isinstance(event, Stepped)] == [1, 2, 3, 4, 5]
    assert all(np.isfinite(event.loss) for event in events if isinstance(event, (Stepped, Validated)))
    assert [event.step for event in events if isinstance(event, Sampled)] == [0, 5]
    drawn = np.asarray(Image.open(next(event.path for event in events if isinstance(event, Sampled) and event.step == 5)))
    assert drawn.std() > 1
    path = tmp_path / "loras" / "small.safetensors"
    state, told = tensors_of(path), header(path)
    names = {name.partition(".")[0] for name in state}
    assert {prefix: sum(name.startswith(f"{prefix}_") for name in names) for prefix in layers} == layers
    idle = {name for name in names if not state[f"{name}.lora_up.weight"].any()}
    assert {name.partition("_self_attn")[0].partition("_mlp")[0] for name in idle} == (
        {"lora_te1_text_model_encoder_layers_3"} if family == "sdxl" else set()
    )
    zero = str(family == "sdxl")
    assert told == told | words | {"modelspec.prediction_type": "v", "ss_v_parameterization": "True", "ss_zero_terminal_snr": zero}


def test_captions_encoded_ahead_equal_those_of_each_step_for_both_encoders(checkpoint):
    precision, bundle = Precision(torch.float32, None, False), load(FileSource(checkpoint("sdxl")), CPU)
    texts = [f"a photo of {number} red circles" for number in range(CAPTION_BATCH + 3)]
    ahead, each = CaptionEncoder(precision, 1, False), CaptionEncoder(precision, 1, False)
    ahead.fill(bundle, texts)
    for text in texts:
        each.retain([])
        one = each.encode(bundle, [text])
        assert one.pooled is not None
        assert ahead.encode(bundle, [text]).equals(one)
    both = ahead.encode(bundle, texts[3:5])
    assert both[1:].equals(ahead.encode(bundle, texts[4:5]))


@pytest.mark.parametrize(
    ("changes", "flipped", "expected"),
    [
        ({}, False, (400, 600, 0, 0, 400, 600)),
        ({"bucket": (64, 64), "resized": (96, 64), "crop": (16, 0, 64, 64)}, False, (400, 600, 0, 16, 64, 64)),
        ({"bucket": (64, 64), "resized": (96, 64), "crop": (10, 0, 64, 64)}, True, (400, 600, 0, 22, 64, 64)),
        ({"bucket": (64, 96), "resized": (64, 100), "crop": (0, 3, 64, 96)}, True, (400, 600, 3, 0, 96, 64)),
    ],
)
def test_sizes_are_those_of_the_picture_its_crop_and_its_group(changes, flipped, expected):
    assert sizes_of(attrs.evolve(ImageRecord(Path("x"), "x", 600, 400), **changes), flipped) == expected


def test_each_picture_of_a_step_is_told_with_its_own_sizes(tmp_path, checkpoint, monkeypatch):
    seen: set[tuple[int, ...]] = set()
    denoise = SDXL.denoise

    def watched(self: SDXL, bundle: ModelBundle, noisy, timesteps, conditioning):
        assert conditioning.sizes is not None
        assert len(conditioning.sizes) == len(noisy)
        seen.update(tuple(row) for row in conditioning.sizes.tolist())
        return denoise(self, bundle, noisy, timesteps, conditioning)

    monkeypatch.setattr(SDXL, "denoise", watched)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, size in (("wide", (128, 64)), ("high", (64, 192))):
        Image.effect_noise(size, 50).convert("RGB").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text("noise", encoding="utf-8")
    config = small_config(
        tmp_path,
        model__pretrained_model_name_or_path=str(checkpoint("sdxl")),
        data__train_data_dir=str(folder),
        data__enable_bucket=False,
        steps__max_train_steps=2,
    )
    events = events_of(config, tmp_path)
    assert isinstance(events[-1], Finished)
    assert seen == {(64, 128, 0, 32, 64, 64), (192, 64, 64, 0, 64, 64)}


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_every_sampler_draws_what_a_perfect_model_of_pure_noise_means(name):
    """A model that always answers with the one picture that there is leads every sampler to that picture, from pure noise on."""
    from lora_trainer.models.noise_schedule import SCALED_LINEAR

    alphas, picture = (
        SCALED_LINEAR.alphas_cumprod(zero_terminal_snr=True),
        torch.tensor([0.8, -0.5, 0.1, -1.0]).view(1, 4, 1, 1).expand(2, 4, 4, 4),
    )
    asked: list[float] = []

    def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        asked.append(float(timestep))
        kept = alphas[round(float(timestep))].clamp(min=2.0**-24)
        noise = (latents - kept.sqrt() * picture) / (1 - kept).sqrt()
        return kept.sqrt() * noise - (1 - kept).sqrt() * picture

    generators = [torch.Generator().manual_seed(number) for number in range(2)]
    noise = torch.stack([torch.randn(4, 4, 4, generator=generator) for generator in generators])
    drawn = run_sampler(name, "v_prediction", noise, 20, predict, generators, lambda: False, zero_terminal_snr=True)
    assert asked[0] == 999
    assert torch.isfinite(drawn).all()
    assert (drawn - picture).abs().max() < 0.15


def test_a_flag_that_contradicts_the_model_stops_a_run_before_it_begins(tmp_path, checkpoint):
    for option, value in (("v2", False), ("v_parameterization", False)):
        config = small_config(
            tmp_path,
            model__pretrained_model_name_or_path=str(checkpoint("sd2")),
            **{f"model__{option}": value},
            save__runs_dir=str(tmp_path),
        )
        assert [problem.path for problem in find_problems(config, StandaloneHost(tmp_path))] == [f"model.{option}"]


def test_a_clip_skip_that_a_family_does_not_read_is_told(tmp_path, checkpoint):
    config = small_config(
        tmp_path, model__pretrained_model_name_or_path=str(checkpoint("sd2")), model__clip_skip=2, steps__max_train_steps=1
    )
    warned = [event for event in events_of(config, tmp_path) if isinstance(event, Warned) and event.path == "model.clip_skip"]
    assert len(warned) == 1


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that holds the small model as one file; nothing of it is here."""
    monkeypatch.setenv("LORA_TRAINER_CACHE", str(tmp_path / "cache"))
    with serving(StandIn({"toy.safetensors": assets.toy_checkpoint().read_bytes(), "toy.yaml": b"x"})) as stand_in:
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
        yield stand_in


def test_a_model_of_a_hub_is_fetched_when_the_run_begins_and_only_once(tmp_path, hub):
    changes = {"model__pretrained_model_name_or_path": "someone/some-model", "steps__max_train_steps": 1, "save__runs_dir": str(tmp_path)}
    config = small_config(tmp_path, **changes, save__overwrite=True)
    assert find_problems(config, StandaloneHost(tmp_path)) == []
    events = events_of(config, tmp_path)
    assert next(event.name for event in events if isinstance(event, Phase)) == "fetching"
    assert isinstance(events[-1], Finished)
    hub.seen.clear()
    assert isinstance(events_of(config, tmp_path)[-1], Finished)
    assert hub.seen == []


def test_a_fetch_that_is_stopped_goes_on_later(tmp_path, hub):
    config, control = small_config(tmp_path, model__pretrained_model_name_or_path="someone/some-model", steps__max_train_steps=1), Control()
    events = []
    with contextlib.closing(run(config, StandaloneHost(tmp_path), control, tmp_path / "run")) as work:
        for event in work:
            events.append(event)
            if isinstance(event, Phase):
                control.command("stop")
    assert isinstance(events[-1], Stopped)
    assert isinstance(events_of(config, tmp_path)[-1], Finished)
