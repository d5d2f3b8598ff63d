"""What a checkpoint is: told from names, shapes and marks of more than thirty headers, without loading one."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import random_checkpoint
from lora_trainer.adapters.targets import TEXT_OWNERS, UNET_OWNERS, linear_layers
from lora_trainer.errors import ModelError
from lora_trainer.models.detection import prediction_type
from lora_trainer.models.detection.detect import ModelFacts, inspect, read_header

UNET = "model.diffusion_model."
FIRST = f"{UNET}input_blocks.0.0.weight"
Shapes = dict[str, list[int]]


@pytest.fixture
def header(checkpoint) -> Callable[[str], Shapes]:
    """Family -> name and shape of each tensor of its small checkpoint."""
    return lambda family: {name: entry["shape"] for name, entry in read_header(checkpoint(family)).items() if name != "__metadata__"}


def sparse(path: Path, shapes: Shapes, words: Mapping[str, str] | None = None) -> Path:
    """A safetensors file whose tensors are a hole in the disk."""
    made: dict[str, Any] = {"__metadata__": dict(words)} if words else {}
    offset = 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        made[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(made).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return path


def told(facts: ModelFacts) -> tuple[str, str, bool, int, bool]:
    return facts.family, facts.prediction, facts.zero_terminal_snr, facts.native_size, facts.sure


V, ZERO = {"v_pred": [0]}, {"ztsnr": [0]}
KNOWN = [
    ("sd1", {}, {}, "", "", ("sd1", "epsilon", False, 512, True)),
    ("sd1", V, {}, "", "", ("sd1", "v", False, 512, True)),
    ("sd1", {**V, **ZERO}, {}, "", "", ("sd1", "v", True, 512, True)),
    ("sd1", {}, {"modelspec.prediction_type": "v", "modelspec.resolution": "768x768"}, "", "", ("sd1", "v", False, 768, True)),
    ("sd1", {}, {"modelspec.resolution": "nonsense"}, "", "", ("sd1", "epsilon", False, 512, True)),
    ("sd1", {}, {}, "    image_size: 96\n", "", ("sd1", "epsilon", False, 768, True)),
    ("sd1", {}, {}, '    parameterization: "v"\n', "", ("sd1", "v", False, 512, True)),
    ("sd1", {}, {}, "    # parameterization: v\n", "", ("sd1", "epsilon", False, 512, True)),
    ("sd1", {}, {}, "", "my-vpred-mix", ("sd1", "v", False, 512, False)),
    ("sd1", {}, {}, "", "improved-pred", ("sd1", "epsilon", False, 512, True)),
    ("sd2", {}, {}, "", "", ("sd2", "v", False, 768, False)),
    ("sd2", V, {}, "", "", ("sd2", "v", False, 768, True)),
    ("sd2", {}, {}, "    parameterization: eps\n    image_size: 64\n", "", ("sd2", "epsilon", False, 512, True)),
    ("sd2", {}, {}, "    parameterization: v\n    image_size: 64\n", "", ("sd2", "v", False, 768, True)),
    ("sd2", {}, {"modelspec.architecture": "stable-diffusion-v2-768-v"}, "", "", ("sd2", "v", False, 768, True)),
    ("sd2", {}, {"modelspec.predict_key": "epsilon"}, "", "", ("sd2", "epsilon", False, 512, True)),
    ("sd2", {}, {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, "", "", ("sd2", "v", True, 768, True)),
    ("sdxl", {}, {}, "", "", ("sdxl", "epsilon", False, 1024, True)),
    ("sdxl", {**V, **ZERO}, {}, "", "", ("sdxl", "v", True, 1024, True)),
    ("sdxl", ZERO, {}, "", "", ("sdxl", "v", True, 1024, True)),
    ("sdxl", {}, {"modelspec.prediction_type": "v_prediction"}, "", "", ("sdxl", "v", False, 1024, True)),
    ("sdxl", {}, {}, "target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling\n", "", ("sdxl", "v", False, 1024, True)),
    ("sdxl", {}, {}, "", "noobaiXL V-Pred 1.0", ("sdxl", "v", False, 1024, False)),
    ("sdxl", {}, {"modelspec.prediction_type": "epsilon"}, "", "not really v-pred", ("sdxl", "epsilon", False, 1024, True)),
]


@pytest.mark.parametrize(("family", "added", "words", "yaml", "name", "expected"), KNOWN)
def test_family_prediction_schedule_and_size_are_told_from_the_marks(tmp_path, header, family, added, words, yaml, name, expected):
    path = sparse(tmp_path / f"{name or 'model'}.safetensors", {**header(family), **added}, words)
    if yaml:
        path.with_suffix(".yaml").write_text(f"model:\n  params:\n{yaml}", encoding="utf-8")
    facts = inspect(path)
    assert told(facts) == expected
    assert str(facts.reason)


@pytest.mark.parametrize(
    ("sha256", "kind", "size"), [(known, kind, 768 if kind == "v" else 512) for known, kind in prediction_type.HASHES.items()]
)
def test_released_files_without_a_mark_are_told_by_their_hash(tmp_path, header, sha256, kind, size):
    path = sparse(tmp_path / "model.safetensors", header("sd2"))
    assert told(inspect(path, sha256=sha256)) == ("sd2", kind, False, size, True)


def changed(shapes: Shapes, **sizes: int) -> Shapes:
    return {**shapes, FIRST: [shapes[FIRST][0], sizes["channels"], 3, 3]}


def without(shapes: Shapes, *beginnings: str) -> Shapes:
    return {name: shape for name, shape in shapes.items() if not name.startswith(beginnings)}


def only(shapes: Shapes, beginning: str) -> Shapes:
    return {name.removeprefix(beginning): shape for name, shape in shapes.items() if name.startswith(beginning)}


REFUSED = [
    ("sd1", lambda held: changed(held, channels=9), "an inpainting model"),
    ("sd2", lambda held: changed(held, channels=9), "an inpainting model"),
    ("sdxl", lambda held: changed(held, channels=9), "an inpainting model"),
    ("sd1", lambda held: changed(held, channels=8), "an InstructPix2Pix model"),
    ("sd2", lambda held: changed(held, channels=5), "a depth model"),
    ("sd2", lambda held: changed(held, channels=7), "an upscaling model"),
    ("sd2", lambda held: {**held, f"{UNET}label_emb.0.0.weight": [4, 4]}, "an unCLIP model"),
    ("sd2", lambda held: {**held, "noise_augmentor.data_mean": [1]}, "an unCLIP model"),
    ("sdxl", lambda held: without(held, "conditioner.embedders.0."), "without its text encoder"),
    (
        "sdxl",
        lambda held: {
            **without(held, "conditioner."),
            **{f"conditioner.embedders.0.model.{name}": shape for name, shape in only(held, "conditioner.embedders.1.model.").items()},
        },
        "an SDXL refiner",
    ),
    ("sdxl", lambda held: without(held, f"{UNET}middle_block.1."), "a smaller, distilled SDXL model"),
    ("sdxl", lambda held: without(held, f"{UNET}label_emb."), "a variant of SDXL with another architecture"),
    ("sdxl", lambda held: {**held, "edm_vpred.sigma_max": []}, "a CosXL model"),
    ("sdxl", lambda held: {**held, "edm_mean": [4], "edm_std": [4]}, "a Playground 2.5 model"),
    ("sd1", lambda held: without(held, "cond_stage_model."), "without its text encoder"),
    ("sd1", lambda held: without(held, "first_stage_model."), "without its VAE"),
    ("sd1", lambda held: only(held, "first_stage_model."), "a VAE"),
    ("sd1", lambda held: {f"control_model.{name}": shape for name, shape in only(held, UNET).items()}, "a ControlNet"),
    ("sd1", lambda held: {"down_blocks.0.motion_modules.0.x": [1]}, "an AnimateDiff"),
    ("sd1", lambda held: {"down_blocks.0.resnets.0.conv1.weight": [1], "conv_in.weight": [4, 4, 3, 3]}, "a U-Net in diffusers' names"),
    ("sd1", lambda held: {"text_model.final_layer_norm.weight": [1]}, "a text encoder"),
    ("sd1", lambda held: {"emb_params": [4, 768]}, "an embedding"),
    ("sd1", lambda held: {"lora_te1_x.lora_down.weight": [4, 4]}, "a LoRA"),
    ("sd1", lambda held: {"model.diffusion_model.joint_blocks.0.x": [1]}, "a Stable Diffusion 3 model"),
    ("sd1", lambda held: {"model.diffusion_model.double_blocks.0.x": [1]}, "a Flux model"),
    ("sd1", lambda held: without(held, f"{UNET}input_blocks.2."), "with another architecture"),
]


@pytest.mark.parametrize(("family", "change", "words"), REFUSED)
def test_what_cannot_be_trained_on_is_refused_by_what_it_is(tmp_path, header, family, change, words):
    path = sparse(tmp_path / "model.safetensors", change(header(family)))
    with pytest.raises(ModelError, match=words) as caught:
        inspect(path)
    assert caught.value.problems[0].fix.text()


def test_parts_that_do_not_belong_together_are_refused(tmp_path, header):
    shapes = header("sd1")
    wide = {name: [*shape[:-1], 768] if name.endswith("token_embedding.weight") else shape for name, shape in shapes.items()}
    with pytest.raises(ModelError, match="expects text states of width 64, its text encoder gives 768"):
        inspect(sparse(tmp_path / "model.safetensors", wide))


@pytest.mark.parametrize(
    ("name", "added", "word"),
    [
        ("sd_xl_turbo_1.0", {}, "turbo"),
        ("juggernautXL-Lightning", {}, "lightning"),
        ("x", {f"{UNET}time_embed.cond_proj.weight": [4, 4]}, "lcm"),
        ("turbocharged", {}, ""),
    ],
)
def test_models_distilled_to_few_steps_are_trained_with_a_word_of_warning(tmp_path, header, name, added, word):
    facts = inspect(sparse(tmp_path / f"{name}.safetensors", {**header("sdxl"), **added}))
    assert [note.values["word"] for note in facts.notes] == ([word] if word else [])


def test_counts_and_widths_of_each_family_are_those_of_its_shapes(checkpoint):
    sd2, sdxl = inspect(checkpoint("sd2")), inspect(checkpoint("sdxl"))
    assert (sd2.model_channels, sd2.context_width, sd2.text_layers, sd2.unet_heads, sd2.text_heads) == (64, 64, 3, 1, 4)
    assert (sdxl.model_channels, sdxl.context_width, sdxl.text_layers) == (32, 32 + 64, 8)
    assert sdxl.unet_parameters == sum(entry_size(checkpoint("sdxl"), UNET))


@pytest.mark.parametrize(("family", "unet", "text"), [("sd1", 423_936, 165_888), ("sd2", 432_128, 423_936), ("sdxl", 2_659_840, 903_168)])
def test_a_lora_of_rank_1_has_as_many_parameters_as_the_layers_of_the_released_models_ask_for(family, unet, text):
    """Stable Diffusion 1.5's at rank 16 in fp16 is the 18.87 MB file of sd-scripts."""
    found = random_checkpoint.SHAPES[family][0].modules()
    adapters = [sum(sum(layer.weight.shape[:2]) for _, layer in linear_layers(module, UNET_OWNERS | TEXT_OWNERS)) for module in found]
    assert adapters[0] == unet
    unread = sum(adapters[2:]) // 24 if family == "sd2" else 0
    assert sum(adapters[2:]) - unread == text


def entry_size(path: Path, beginning: str) -> list[int]:
    sizes = []
    for name, entry in read_header(path).items():
        if name.startswith(beginning):
            start, end = entry["data_offsets"]
            sizes.append((end - start) // 4)
    return sizes


FLAGS = [
    ("sd1", {}, {"v2": True}, "v2 is set"),
    ("sd2", V, {"v2": False}, "v2 is set to false"),
    ("sdxl", {}, {"v2": True}, "v2 is set"),
    ("sd2", V, {"v_parameterization": False}, "v_parameterization says otherwise"),
    ("sdxl", {**V, **ZERO}, {"zero_terminal_snr": False}, "zero_terminal_snr says otherwise"),
    ("sd1", {}, {"zero_terminal_snr": True}, "needs a model that predicts v"),
]


@pytest.mark.parametrize(("family", "added", "flags", "words"), FLAGS)
def test_a_flag_that_contradicts_the_model_is_refused_with_the_reason(tmp_path, header, family, added, flags, words):
    facts = inspect(sparse(tmp_path / "model.safetensors", {**header(family), **added}))
    with pytest.raises(ModelError, match=words) as caught:
        facts.with_flags(**flags)
    assert caught.value.problems[0].path == f"model.{next(iter(flags))}"


def test_a_flag_decides_where_nothing_in_the_file_does(tmp_path, header):
    facts = inspect(sparse(tmp_path / "a.safetensors", header("sd1"))).with_flags(v_parameterization=True, zero_terminal_snr=True)
    assert (facts.prediction, facts.zero_terminal_snr, facts.sure, str(facts.reason)) == ("v", True, True, "you said so")
    unsure = inspect(sparse(tmp_path / "b.safetensors", header("sd2")))
    assert told(unsure.with_flags(v_parameterization=False)) == ("sd2", "epsilon", False, 512, True)
    assert unsure.with_flags(v2=True) == unsure


def test_a_flag_that_agrees_changes_nothing(tmp_path, header):
    facts = inspect(sparse(tmp_path / "a.safetensors", {**header("sdxl"), **V, **ZERO}))
    agreed = facts.with_flags(v2=False, v_parameterization=True, zero_terminal_snr=True)
    assert told(agreed) == told(facts)


def test_looking_at_sdxl_costs_little_more_than_reading_its_header(checkpoint):
    path = checkpoint("sdxl")

    def read() -> None:
        with path.open("rb") as file:
            json.loads(file.read(int.from_bytes(file.read(8), "little")))

    def cost(action) -> float:
        begin = time.process_time()
        action()
        return time.process_time() - begin

    costs = [(cost(read), cost(lambda: inspect(path))) for _ in range(5)]
    assert min(own for _, own in costs) < 20 * min(plain for plain, _ in costs), costs
