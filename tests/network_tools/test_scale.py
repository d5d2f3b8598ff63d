"""The strength of each layer: for every program, place of alpha and tool, what is added is (alpha / rank) B A, or alpha / sqrt(rank)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_trainer.adapters.files.checkpoint_layers import CheckpointLayer, checkpoint_layers
from lora_trainer.adapters.initial_weights import load_initial_weights
from lora_trainer.adapters.lora_file import read_base_weights, with_loras
from lora_trainer.adapters.network import NetworkAdapter
from lora_trainer.adapters.targets import module_at, plan_layers
from lora_trainer.config.schema import NetworkConfig
from lora_trainer.errors import ModelError
from lora_trainer.host.devices import default_device
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.files.safetensors_stream import open_tensors
from lora_trainer.models.layout import UNET
from lora_trainer.models.load import load
from lora_trainer.models.source import FileSource
from lora_trainer.network_tools.convert import convert
from lora_trainer.network_tools.info import info
from lora_trainer.network_tools.merge import WeightedNetwork, merge_into_checkpoint
from lora_trainer.network_tools.verify import verify

LAYERS = (
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
    "lora_te_text_model_encoder_layers_1_mlp_fc1",
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0",
    "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn2_to_v",
)
SECTION = {"unet": "unet", "text": "text_encoder"}
PEFT_WORDS = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
DIFFUSERS_WORDS = {"lora_down.weight": "lora.down.weight", "lora_up.weight": "lora.up.weight"}
PROGRAMS = ("sd-scripts", "LyCORIS", "diffusers", "diffusers with PEFT", "PEFT", "OneTrainer", "ComfyUI")


def key_of(program: str, layer: CheckpointLayer, suffix: str) -> str:
    """A tensor's key as the program writes it."""
    path = layer.path
    if program == "sd-scripts":
        return f"{layer.name}.{suffix}"
    if program == "LyCORIS":
        return f"lycoris_{path.replace('.', '_')}.{suffix}"
    if program == "OneTrainer":
        return f"{'lora_unet' if layer.part == 'unet' else 'lora_te'}.{path}.{suffix}"
    if program == "ComfyUI":
        ldm = layer.weight.key.removeprefix(UNET).removesuffix(".weight")
        return f"diffusion_model.{ldm}.{suffix}" if layer.part == "unet" else f"text_encoders.clip_l.transformer.{path}.{suffix}"
    words = DIFFUSERS_WORDS if program == "diffusers" else PEFT_WORDS
    prefix = "base_model.model." if program == "PEFT" else f"{SECTION[layer.part]}."
    return f"{prefix}{path}.{words.get(suffix, suffix)}"


@attrs.frozen
class Case:
    """Where alpha is, whether ranks and alphas differ from layer to layer, and whether the scale is alpha / sqrt(rank)."""

    program: str
    place: str
    mixed: bool = False
    rslora: bool = False

    @property
    def name(self) -> str:
        return ", ".join(filter(None, [self.program, self.place, "mixed" * self.mixed, "rslora" * self.rslora]))

    @property
    def parts(self) -> tuple[str, ...]:
        return ("unet",) if self.place in ("beside", "header of one model") else ("unet", "text")

    def rank(self, number: int) -> int:
        return (2, 4, 3, 4, 6)[number] if self.mixed else 4

    def alpha(self, layer: CheckpointLayer, number: int) -> float:
        if self.mixed and number in (1, 3):
            return 5.0
        return 12.0 if layer.part == "unet" else 2.0

    def scale(self, layer: CheckpointLayer, number: int) -> float:
        if self.place == "nowhere":
            return 1.0
        rank = self.rank(number)
        return self.alpha(layer, number) / (math.sqrt(rank) if self.rslora else rank)


def cases() -> list[Case]:
    every = [Case(program, place, mixed) for program in PROGRAMS for place in ("tensors", "nowhere") for mixed in (False, True)]
    for mixed in (False, True):
        for rslora in (False, True):
            every += [Case(program, "header", mixed, rslora) for program in ("diffusers", "diffusers with PEFT", "sd-scripts")]
            every += [Case("diffusers with PEFT", "header of one model", mixed, rslora), Case("PEFT", "beside", mixed, rslora)]
    return every


CASES = cases()
every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@pytest.fixture(scope="module")
def layers(toy_checkpoint: Path) -> dict[str, CheckpointLayer]:
    return {name: checkpoint_layers(toy_checkpoint)[1][name] for name in LAYERS}


@pytest.fixture(scope="module")
def bundle(toy_checkpoint: Path) -> ModelBundle:
    return load(FileSource(toy_checkpoint), default_device()[0], torch.float32)


def config_of(case: Case, layers: Mapping[str, CheckpointLayer], part: str) -> dict[str, Any]:
    """PEFT's LoraConfig of one part."""
    rows = [(number, layer) for number, layer in enumerate(layers.values()) if layer.part == part]
    first = next(case.alpha(layer, number) for number, layer in rows if number not in (1, 3))
    alphas = {layer.path: case.alpha(layer, number) for number, layer in rows if case.alpha(layer, number) != first}
    ranks = {layer.path: case.rank(number) for number, layer in rows if case.rank(number) != 4}
    return {"r": 4, "lora_alpha": first, "alpha_pattern": alphas, "rank_pattern": ranks, "use_rslora": case.rslora, "use_dora": False}


def build(case: Case, layers: Mapping[str, CheckpointLayer], folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """A file of the case, and what each of its layers adds to its weight, by the formula alone."""
    generator = torch.Generator().manual_seed(1)
    state, added, metadata = {}, {}, {"format": "pt"}
    for number, (name, layer) in enumerate(layers.items()):
        if layer.part not in case.parts:
            continue
        rank, (out, into) = case.rank(number), layer.shape[:2]
        down, up = torch.randn(rank, into, generator=generator) * 0.05, torch.randn(out, rank, generator=generator) * 0.05
        added[name] = case.scale(layer, number) * (up.double() @ down.double())
        state |= {key_of(case.program, layer, "lora_down.weight"): down, key_of(case.program, layer, "lora_up.weight"): up}
        if case.place == "tensors":
            state[key_of(case.program, layer, "alpha")] = torch.tensor(case.alpha(layer, number))
    if case.place == "header":
        header = {f"{SECTION[part]}.{key}": value for part in case.parts for key, value in config_of(case, layers, part).items()}
        metadata["lora_adapter_metadata"] = json.dumps(header, indent=2, sort_keys=True)
    if case.place == "header of one model":
        metadata["lora_adapter_metadata"] = json.dumps(config_of(case, layers, "unet"))
    if case.place == "beside":
        config = {"peft_type": "LORA", **config_of(case, layers, "unet")}
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    path = folder / "adapter_model.safetensors"
    save_file(state, str(path), metadata)
    return path, added


def near(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.double().reshape(other.shape), other.double(), rtol=1e-6, atol=1e-6)


def formula(path: Path) -> dict[str, Tensor]:
    """What a file in sd-scripts' names adds: alpha / rank * B A, from the tensors alone."""
    state, added = load_file(str(path)), {}
    for key, down in state.items():
        if key.endswith(".lora_down.weight"):
            name = key.removesuffix(".lora_down.weight")
            alpha = float(state.get(f"{name}.alpha", torch.tensor(float(down.shape[0]))))
            added[name] = alpha / down.shape[0] * (state[f"{name}.lora_up.weight"].double() @ down.double())
    return added


def difference(base: Path, merged: Path, layer: CheckpointLayer) -> Tensor:
    with open_tensors(base) as before, open_tensors(merged) as after:
        rows = slice(layer.weight.first_row, layer.weight.first_row + layer.weight.shape[0])
        return after(layer.weight.key).double()[rows] - before(layer.weight.key).double()[rows]


@every_case
def test_every_tool_adds_what_the_formula_says(case: Case, layers, bundle: ModelBundle, toy_checkpoint: Path, tmp_path: Path):
    path, added = build(case, layers, tmp_path)
    # info
    facts = info(path)
    total = math.sqrt(sum(float(delta.norm()) ** 2 for delta in added.values()))
    assert facts["norm"] == pytest.approx(total, rel=1e-6)
    assert (facts["without_alpha"], bool(facts["alphas_from"])) == (
        len(added) if case.place == "nowhere" else 0,
        case.place not in ("tensors", "nowhere"),
    )
    # merge
    merge_into_checkpoint(toy_checkpoint, [WeightedNetwork(path)], tmp_path / "merged.safetensors", precision="float")
    assert all(near(difference(toy_checkpoint, tmp_path / "merged.safetensors", layers[name]), delta) for name, delta in added.items())
    # convert there and back
    kohya = path
    if case.program != "sd-scripts" or case.place == "header":
        kohya = tmp_path / "kohya.safetensors"
        if case.program == "sd-scripts":
            convert(path, tmp_path / "there.safetensors", "peft")
        convert(tmp_path / "there.safetensors" if case.program == "sd-scripts" else path, kohya, "kohya")
    assert formula(kohya).keys() == added.keys() and all(near(formula(kohya)[name], delta) for name, delta in added.items())
    for to in ("diffusers", "peft"):
        convert(kohya, tmp_path / f"{to}.safetensors", to)
        convert(tmp_path / f"{to}.safetensors", tmp_path / f"back-{to}.safetensors", "kohya")
        assert all(near(formula(tmp_path / f"back-{to}.safetensors")[name], delta) for name, delta in added.items()), to


@every_case
def test_pictures_and_training_start_from_what_the_formula_says(case: Case, layers, bundle: ModelBundle, tmp_path: Path):
    path, added = build(case, layers, tmp_path)
    # sample: what the layer answers with the file, less what it answers without
    with torch.no_grad():
        plans = plan_layers(bundle, NetworkConfig(network_weights=str(path), dim_from_weights=True), ("unet", "text_encoder"))
        assert {plan.name for plan in plans} == added.keys()
        for plan in plans:
            module = module_at(bundle, plan.path)
            x = torch.eye(module.in_features)
            before = module(x)
            with with_loras(bundle, [(path, 1.0)]):
                after = module(x)
            assert near((after - before).T, added[plan.name])
    # continue
    network = NetworkAdapter(bundle, plans)
    load_initial_weights(network, path, takes_ranks=True)
    for layer in network.iter_layers():
        weight = torch.empty(layer.shape, device="meta")
        assert near(layer.kind.weight_delta(layer.parameters, layer.alpha, weight).detach(), added[layer.plan.name])
    # as a part of the base model
    (base,) = read_base_weights([str(path)], 1.0)
    assert base.modules.keys() == added.keys()
    assert all(state.scale == pytest.approx(case.scale(layers[name], LAYERS.index(name)), rel=1e-6) for name, state in base.modules.items())


def test_a_webui_that_draws_a_file_at_another_strength_is_said_and_the_converted_file_offered(layers, tmp_path: Path):
    path, _ = build(Case("sd-scripts", "header"), layers, tmp_path)
    report = verify(path)
    assert "at strength 1" in report.notes[0].text() and "network convert --to kohya" in report.notes[0].text()
    assert report.offers_conversion and report.to_json()["convert"] is True
    plain, _ = build(Case("sd-scripts", "tensors"), layers, tmp_path)
    assert verify(plain).notes == () and not verify(plain).offers_conversion


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"init_lora_weights": "pissa"}, "began with pissa"),
        ({"init_lora_weights": "pissa_niter_16"}, "began with pissa_niter_16"),
        ({"init_lora_weights": "olora"}, "began with olora"),
        ({"use_dora": True}, "no magnitude"),
    ],
)
def test_tensors_that_are_not_the_whole_of_what_is_added_are_refused(layers, values: dict[str, Any], said: str, tmp_path: Path):
    path, _ = build(Case("PEFT", "beside"), layers, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **values}), encoding="utf-8")
    with pytest.raises(ModelError, match=said):
        info(path)
