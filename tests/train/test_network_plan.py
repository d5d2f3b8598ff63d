"""The network of a plan is the network of the run: the same layers, numbers, rates, and bytes in the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_trainer.adapters.lora_file import serialize
from lora_trainer.adapters.network import NetworkAdapter
from lora_trainer.adapters.targets import plan_layers, trainable_layers
from lora_trainer.config import effective
from lora_trainer.config.build import build
from lora_trainer.config.choices.networks import NETWORK_TYPES
from lora_trainer.errors import ConfigError, TrainerError
from lora_trainer.models.detection.detect import inspect
from lora_trainer.models.load import load
from lora_trainer.models.source import FileSource
from lora_trainer.train.outputs.network_metadata import network_metadata
from lora_trainer.train.planning.network_plan import group_rates, pattern_hits, planned_network
from lora_trainer.train.setup import plan_param_groups


@pytest.fixture(scope="module")
def bundle(toy_checkpoint: Path):
    return load(FileSource(toy_checkpoint), torch.device("cpu"))


def adapter_of(bundle, config) -> NetworkAdapter:
    with torch.inference_mode(False):
        return NetworkAdapter(bundle, plan_layers(bundle, config.network, effective.trained_parts(config)))


def bytes_of_tensors(adapter: NetworkAdapter, precision: str) -> int:
    """What a saved file says of the last byte of its tensors."""
    content = serialize(adapter.state_dict(), {}, precision)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")


def test_a_checkpoints_header_tells_the_layers_that_its_modules_have(bundle, toy_checkpoint):
    told = {layer.name: layer for layer in inspect(toy_checkpoint).layers}
    held = {layer.name: layer for layer in trainable_layers(bundle)}
    assert set(held) == set(told)
    assert all(
        (told[name].shape, told[name].bias, told[name].part) == (layer.shape, layer.bias, layer.part) for name, layer in held.items()
    )


@pytest.mark.parametrize("precision", ["fp16", "float"])
@pytest.mark.parametrize("kind", NETWORK_TYPES)
def test_the_size_of_a_file_is_told_to_the_byte_before_it_is_made(bundle, toy_checkpoint, kind, precision):
    network = {"type": kind, "dim": 4, "alpha": 2, "train_norm": kind == "full", "use_tucker": kind == "locon", "conv_dim": 3}
    config = build({"network": network, "save": {"precision": precision}})
    facts, adapter = inspect(toy_checkpoint), adapter_of(bundle, config)
    told = planned_network(config, facts)
    assert told.exact and told.file_bytes == bytes_of_tensors(adapter, precision)
    assert told.parameters == sum(tensor.numel() for tensors in adapter.parameters().values() for tensor in tensors)
    assert dict(told.layers) == {part: len(layers) for part, layers in adapter.layers.items()}


def test_the_groups_of_a_plan_are_those_of_the_optimizer(bundle, toy_checkpoint):
    options = {"down_lr_weight": "0,0.5", "up_lr_weight": "linear+0.1", "mid_lr_weight": "0"}
    config = build({"network": options, "optimizer": {"unet_lr": 1e-3, "text_encoder_lr": 5e-4, "loraplus_unet_lr_ratio": 4}})
    plans = plan_param_groups(config, adapter_of(bundle, config))
    assert {plan.name: plan.lr for plan in plans} == group_rates(config, inspect(toy_checkpoint))
    assert {"unet", "unet plus", "unet x0.5", "unet plus x0.5", "text_encoder"} <= {plan.name for plan in plans}
    assert next(plan.lr for plan in plans if plan.name == "unet plus x0.5") == pytest.approx(2e-3)


def test_every_parameter_is_in_one_group(bundle):
    config = build({"network": {"type": "locon", "up_lr_weight": "cosine", "dim": 2}, "optimizer": {"loraplus_lr_ratio": 2}})
    adapter = adapter_of(bundle, config)
    for part, tensors in adapter.parameters().items():
        places = [place for plan in plan_param_groups(config, adapter) if plan.part == part for place in plan.indices or ()]
        assert sorted(places) == list(range(len(tensors)))


def test_an_optimizer_of_one_rate_refuses_shares_of_it(bundle):
    pytest.importorskip("prodigyopt")
    config = build({"network": {"down_lr_weight": "1,0.5"}, "optimizer": {"type": "Prodigy", "learning_rate": 1.0}})
    with pytest.raises(TrainerError, match="one step size"):
        plan_param_groups(config, adapter_of(bundle, config))


def test_settings_that_leave_no_layer_are_refused_before_and_at_the_run(bundle, toy_checkpoint):
    config = build({"network": {"include": ["nothing like it"]}})
    for look in (lambda: planned_network(config, inspect(toy_checkpoint)), lambda: adapter_of(bundle, config)):
        with pytest.raises(ConfigError, match="no layer"):
            look()
    assert pattern_hits(config, None) == {"include": {"nothing like it": 0}, "exclude": {}}


def test_a_run_without_a_checkpoint_is_planned_as_stable_diffusion_1():
    told = planned_network(build({"network": {"dim": 16}, "save": {"precision": "fp16"}}), None)
    assert dict(told.layers) == {"unet": 192, "text_encoder": 72} and round(told.file_bytes / 1e6, 2) == 18.87
    assert not told.exact


@pytest.mark.parametrize(
    ("network", "module", "arguments"),
    [
        ({}, "networks.lora", None),
        ({"type": "locon", "dim": 8, "alpha": 4}, "networks.lora", {"conv_dim": "8", "conv_alpha": "4.0"}),
        ({"type": "dylora", "unit": 2}, "networks.dylora", {"unit": "2"}),
        (
            {"type": "loha", "dim": 8, "alpha": 4, "conv_dim": 2},
            "lycoris.kohya",
            {"algo": "loha", "preset": "blocks", "conv_dim": "2", "conv_alpha": "1.0"},
        ),
        ({"type": "dora"}, "lycoris.kohya", {"algo": "locon", "preset": "attn-mlp", "dora_wd": "True", "wd_on_output": "False"}),
        ({"type": "oft", "constraint": 1e-3}, "lycoris.kohya", {"algo": "diag-oft", "preset": "attn-mlp", "constraint": "0.001"}),
    ],
)
def test_the_header_says_what_makes_such_a_network_elsewhere(network, module, arguments):
    words = network_metadata(build({"network": network}).network)
    assert words["ss_network_module"] == module
    assert (None if words["ss_network_args"] == "None" else json.loads(words["ss_network_args"])) == arguments


def operations(bundle, config, side: int = 8) -> int:
    """Multiplications and additions of one forward and backward of the U-Net with this network."""
    from torch.utils.flop_counter import FlopCounterMode

    adapter = adapter_of(bundle, config)
    adapter.attach(bundle)
    try:
        with FlopCounterMode(display=False) as counter, torch.inference_mode(False), torch.enable_grad():
            words = torch.zeros(1, 77, bundle.unet.config.cross_attention_dim)
            bundle.unet(torch.zeros(1, 4, side, side), torch.tensor([500]), words).sample.square().mean().backward()
        return counter.get_total_flops()
    finally:
        adapter.detach()


def test_blocks_that_are_not_trained_are_in_neither_file_nor_cost(bundle):
    up = {"down_lr_weight": "zeros", "mid_lr_weight": "0"}
    unet = {"optimizer": {"text_encoder_lr": 0}}
    some, every = build({"network": up, **unet}), build(unet)
    names = {name.partition(".")[0] for name in adapter_of(bundle, some).state_dict()}
    assert names and all("up_blocks" in name for name in names)
    assert operations(bundle, some) <= 0.8 * operations(bundle, every)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_files_of_whole_models_are_as_large_as_their_families_say(name):
    """Modules of the released models, without values: their networks have the bytes that are told without a checkpoint."""
    from types import SimpleNamespace

    from diffusers import UNet2DConditionModel

    from lora_trainer.adapters.layer_selection import select_layers
    from lora_trainer.models.detection import released_shapes
    from lora_trainer.models.families import family
    from lora_trainer.models.layers import of_family

    known = family(name)
    parts = {
        part: {key: torch.empty(shape, device="meta") for key, shape in held.items()} for part, held in released_shapes.shapes(name).items()
    }
    with torch.device("meta"):
        unet = UNet2DConditionModel(**known.unet_config(parts["unet"], None))
        texts = [known.text_encoder(number, parts[part], 4) for number, part in enumerate(("text", "text_2")) if part in parts]
    whole: Any = SimpleNamespace(family=known, unet=unet, text_encoder=texts[0], text_encoder_2=texts[-1], text_encoders=tuple(texts))
    for kind in NETWORK_TYPES:
        for rank in (4, 8, 16, 32, 64, 128) if kind != "full" else (8,):
            config = build({"network": {"type": kind, "dim": rank, "alpha": rank / 2}})
            made = adapter_of(whole, config).state_dict().values()
            told = select_layers(of_family(name), config.network, effective.trained_parts(config), name)
            assert sum(tensor.numel() for tensor in made) == sum(one.parameter_count for one in told), (kind, rank)
