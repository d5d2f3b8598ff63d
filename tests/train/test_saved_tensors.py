"""What the backward pass keeps: activations and the network, never a second copy of the host's weights."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor

from benchmarks import random_checkpoint
from benchmarks.random_checkpoint import TINY
from lora_trainer.adapters.lora_file import LoraAdapter
from lora_trainer.config.schema import LossConfig
from lora_trainer.models.load import load
from lora_trainer.models.source import LiveSource
from lora_trainer.optim.optimizers import GroupPlan, make_optimizer
from lora_trainer.train.memory.checkpointing import Checkpointing
from lora_trainer.train.step.objective import Batch, per_image_losses
from lora_trainer.train.step.precision import choose_precision, compute_scope

CPU = torch.device("cpu")
HALF = [torch.float16] if hasattr(torch.amp, "GradScaler") else []  # torch 2.1 cannot train in fp16 on the CPU


def live_source(dtype: torch.dtype) -> LiveSource:
    parts = random_checkpoint.parts(attrs.evolve(TINY, words=100), dtype)
    return LiveSource(parts["unet"], parts["vae"], parts["text"], 8, 4, None, Path("random"))


def saved_by_one_step(source: LiveSource, checkpointing: bool) -> list[Tensor]:
    """Every tensor that forward saves for backward in a step that trains U-Net and text encoder; the step is gone through."""
    precision = choose_precision("auto", source, CPU)
    bundle = load(source, CPU, precision.base)
    adapter = LoraAdapter(bundle, rank=5, alpha=5.0, parts=("unet", "text_encoder"))
    groups = [GroupPlan(part, part, 1e-3) for part in adapter.parameters()]
    optimizer = make_optimizer("AdamW", adapter.parameters(), groups, {})
    adapter.attach(bundle)
    if checkpointing:
        Checkpointing(bundle.unet, bundle.text_encoder)
    saved: list[Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor)
    with hooks, adapter.using_tensors(optimizer.tensors(precision.autocast)):
        with compute_scope(precision, CPU, grad=True):
            words = bundle.family.encode_text(bundle, torch.arange(77).unsqueeze(0), 1).states
            # 16 x 24: no activation happens to have a weight's shape
            batch = Batch(torch.randn(1, 4, 16, 24), torch.randn(1, 4, 16, 24), torch.tensor([300]), words)
            loss = per_image_losses(bundle, batch, LossConfig()).sum()
        loss.backward()
    assert [bool(gradient.any()) for gradient in optimizer.gradients()] == [True, True]
    return saved


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, *HALF])
def test_no_weight_is_kept_for_backward_but_in_the_hosts_own_storage(dtype, checkpointing):
    source = live_source(dtype)
    named = [*source.unet_state.items(), *source.text_state.items()]
    weights = [tensor for name, tensor in named if tensor.ndim > 1 and "embeddings" not in name]  # those have activations' shapes
    shapes = {shape for weight in weights for shape in (tuple(weight.shape), tuple(reversed(weight.shape)))}
    storages = {weight.untyped_storage().data_ptr() for weight in weights}
    saved = saved_by_one_step(source, checkpointing)
    shaped = [tensor for tensor in saved if tuple(tensor.shape) in shapes]
    copied = [tuple(tensor.shape) for tensor in shaped if tensor.untyped_storage().data_ptr() not in storages]
    assert copied == []
    assert checkpointing or len(shaped) > 192  # the look is into the right place
