"""A U-Net in eight bits: what it calculates is what its rounded numbers give, and half the memory of fp16."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lora_trainer import assets
from lora_trainer.adapters.network import NetworkAdapter
from lora_trainer.adapters.targets import plan_layers
from lora_trainer.config.build import build
from lora_trainer.config.choices.networks import NETWORK_TYPES
from lora_trainer.errors import ConfigError
from lora_trainer.events import Finished, Stepped, Warned
from lora_trainer.models.conditioning import Conditioning
from lora_trainer.models.load import load
from lora_trainer.models.source import FileSource
from lora_trainer.optim.optimizers import GroupPlan, make_optimizer
from lora_trainer.train.memory import eight_bit
from lora_trainer.train.memory.eight_bit import Fp8Weight
from tests.train.runs import events_of, small_config, tensors_of

CPU = torch.device("cpu")
TOY = FileSource(assets.toy_checkpoint())


def answer(bundle, autocast: bool = False):
    """What the U-Net says, and the gradient that reaches the words."""
    draw = torch.Generator().manual_seed(1)
    words = torch.randn(2, 77, bundle.text_encoder.config.hidden_size, generator=draw, requires_grad=True)
    noisy = torch.randn(2, 4, 8, 8, generator=draw)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        said = bundle.family.denoise(bundle, noisy, torch.tensor([3, 900]), Conditioning(words))
    said.float().square().sum().backward()
    return said.detach().float(), words.grad


@pytest.fixture(scope="module")
def eight():
    return eight_bit.load_bundle(TOY, CPU, torch.float32, fp8=True)


@pytest.fixture(scope="module")
def rounded(eight):
    """An ordinary bundle that holds the same rounded numbers."""
    bundle = load(TOY, CPU)
    for name, module in bundle.unet.named_modules():
        held = getattr(eight.unet.get_submodule(name), "weight", None)
        if isinstance(held, Fp8Weight):
            module.weight = nn.Parameter(held.as_subclass(torch.Tensor).float(), requires_grad=False)
    return bundle


@pytest.mark.parametrize("autocast", [False, True])
def test_answer_and_gradient_are_those_of_the_rounded_numbers(eight, rounded, autocast):
    (said, gradient), (expected, expected_gradient) = answer(eight, autocast), answer(rounded, autocast)
    torch.testing.assert_close(said, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6 if not autocast else 1e-2)


def test_the_blocks_take_a_byte_a_number_and_the_ends_stay_whole(eight):
    blocks = [weight for name, weight in eight.unet.named_parameters() if isinstance(weight, Fp8Weight)]
    assert len(blocks) > 200 and all(weight.element_size() == 1 for weight in blocks)
    assert sum(weight.numel() for weight in blocks) > 0.9 * sum(weight.numel() for weight in eight.unet.parameters())
    assert eight.unet.conv_in.weight.dtype is eight.unet.time_embedding.linear_1.weight.dtype is torch.float32


def test_numbers_beyond_the_format_become_its_largest():
    assert Fp8Weight.quantize(torch.tensor([[1e4, -1e4, 0.5]])).float().tolist() == [[448.0, -448.0, 0.5]]


@pytest.mark.parametrize("inside", [nn.Linear(8, 12), nn.Conv2d(8, 12, 3, stride=2, padding=1)])
def test_backward_keeps_no_copy_of_a_matrix(inside):
    inside.requires_grad_(False)
    inside.weight = nn.Parameter(Fp8Weight.quantize(inside.weight), requires_grad=False)
    kept: list[torch.Tensor] = []
    given = torch.randn(2, 8, *([6, 6] if inside.weight.ndim == 4 else []), requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        out = inside(given)
    assert [tensor.element_size() for tensor in kept] == [1]
    out.sum().backward()
    assert given.grad is not None and bool(given.grad.any())


def test_a_run_learns_with_eight_bits_and_its_file_is_an_ordinary_lora(tmp_path):
    config = small_config(tmp_path, memory__fp8_base_unet=True, memory__gradient_checkpointing=True, steps__max_train_steps=3)
    events = events_of(config, tmp_path)
    assert isinstance(events[-1], Finished) and sum(isinstance(event, Stepped) for event in events) == 3
    state = tensors_of(tmp_path / "loras" / "small.safetensors")
    idle = {name for name, tensor in state.items() if name.endswith("lora_up.weight") and not tensor.any()}
    assert all("mid_block" in name and "attn1_to" in name for name in idle)  # a single cell there attends to itself whatever it asks
    assert all(tensor.dtype is torch.float32 for tensor in state.values())


def test_a_lent_model_is_used_as_it_is_and_that_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(eight_bit, "LiveSource", FileSource)
    events = events_of(small_config(tmp_path, memory__fp8_base_unet=True, steps__max_train_steps=1), tmp_path)
    assert isinstance(events[-1], Finished)
    assert [event.path for event in events if isinstance(event, Warned) and "in its own format" in str(event.message)] == [
        "memory.fp8_base_unet"
    ]


@pytest.mark.parametrize(
    ("network", "path"),
    [
        ({"type": "dora"}, "network.type = dora"),
        ({"type": "full"}, "network.type = full"),
        ({"type": "lokr", "dora_wd": True}, "network.dora_wd"),
        ({"type": "loha", "dora_wd": True}, "network.dora_wd"),
        ({"type": "locon", "dora_wd": True}, "network.dora_wd"),
        ({"type": "lora", "base_weights": ["a.safetensors"]}, "network.base_weights"),
    ],
)
def test_what_needs_the_weights_themselves_is_refused_by_name_with_eight_bits(network, path):
    with pytest.raises(ConfigError) as raised:
        build({"network": network, "memory": {"fp8_base_unet": True}})
    (problem,) = raised.value.problems
    assert problem.path == "memory.fp8_base_unet" and path in problem.message.text() and "fp8_base_unet = false" in problem.fix.text()
    build({"network": network})


@pytest.mark.parametrize("kind", [name for name, row in NETWORK_TYPES.items() if row.kind != "full" and not row.fixed.get("dora")])
def test_every_other_network_gets_the_gradient_of_the_rounded_numbers(kind, eight, rounded):
    """Of each part of the network, in both precisions that a U-Net of eight bits computes in."""
    for dtype in (None, torch.bfloat16):
        (loss, gradient), (expected, expected_gradient) = (learned(bundle, kind, dtype) for bundle in (eight, rounded))
        tolerance = 1e-4 if dtype is None else 5e-2
        assert loss == pytest.approx(expected, rel=tolerance) and bool(gradient.any())
        assert float((gradient - expected_gradient).norm() / expected_gradient.norm()) < tolerance * (1 if dtype is None else 4)


def learned(bundle, kind: str, dtype: torch.dtype | None) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one batch with a fresh network of this kind."""
    config = build({"network": {"type": kind, "dim": 4, "alpha": 4}, "optimizer": {"text_encoder_lr": 0.0}})
    adapter = NetworkAdapter(bundle, plan_layers(bundle, config.network, ("unet",)), seed=1)
    optimizer = make_optimizer("SGD", adapter.parameters(), [GroupPlan("unet", "unet", 1.0)], {})
    adapter.attach(bundle)
    try:
        with adapter.using_tensors(optimizer.tensors(dtype)), torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
            loss = answer_of(bundle).float().square().mean()
        loss.backward()
    finally:
        adapter.detach()
    return float(loss), torch.cat(optimizer.gradients()).clone()


def answer_of(bundle) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    words = torch.randn(2, 77, bundle.text_encoder.config.hidden_size, generator=draw)
    return bundle.family.denoise(bundle, torch.randn(2, 4, 16, 16, generator=draw), torch.tensor([3, 900]), Conditioning(words))
