"""Block 2: every type of network over a base model in float16, bfloat16 and 8 bits has the gradient that the CPU computes in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.card.block import CPU, Block, Card, Figures, require
from benchmarks.card.runs import crescent, prepared
from lora_trainer.config import effective
from lora_trainer.config.choices.networks import NETWORK_TYPES
from lora_trainer.config.schema import TrainConfig
from lora_trainer.data import batch_sampler
from lora_trainer.errors import ConfigError
from lora_trainer.models.detection.detect import inspect
from lora_trainer.train.distributed import SingleProcess
from lora_trainer.train.inputs.examples import CaptionSampler
from lora_trainer.train.planning.memory_plan import Machine
from lora_trainer.train.planning.plan import make_plan
from lora_trainer.train.progress import TrainingProgress
from lora_trainer.train.step.accumulate import GradientAccumulator
from lora_trainer.train.trainer import Trainer

BASES: dict[str, dict[str, Any]] = {
    "no": {"memory__mixed_precision": "no"},
    "fp16": {"memory__mixed_precision": "fp16"},
    "bf16": {"memory__mixed_precision": "bf16"},
    "fp8": {"memory__mixed_precision": "bf16", "memory__fp8_base_unet": True},
}
BOUNDS = {"no": 0.999, "fp16": 0.999, "bf16": 0.99, "fp8": 0.95}
"""The least cosine between a gradient and that of float32 on the CPU (there: 0.9999 in bf16, 0.997 in fp8)."""
ON_CPU = ("lora", "loha", "lokr", "dora", "oft", "full")
"""On a CPU, to save time, one type of each kind."""
ON_CPU_IN_8_BITS = ("lora", "loha", "dora", "full")
"""Two that are computed and two that are refused."""


def network_gradients(card: Card) -> Figures:
    """A row for each type and base: the cosine to the CPU's gradient, or by which option it is refused."""
    rows = []
    for name in NETWORK_TYPES if card.is_cuda else ON_CPU:
        bases = ("no", "fp16", "bf16", "fp8") if card.is_cuda else ("bf16", *(["fp8"] if name in ON_CPU_IN_8_BITS else []))
        exact = gradient(_on_cpu(card), name, "no")
        row: dict[str, Any] = {"network": name}
        for base in bases:
            row[base] = _compared(card, name, base, exact)
        rows.append(row)
    return {"rows": rows}


def _on_cpu(card: Card) -> Card:
    return Card(CPU, card.new_folder())


def _compared(card: Card, name: str, base: str, exact: Tensor) -> float | str:
    config = None
    try:
        config = _config(card, name, base)
    except ConfigError as error:
        paths = {problem.path for problem in error.problems}
        require(base == "fp8" and "memory.fp8_base_unet" in paths, f"{name} over {base}: {error}")
        return "refused"
    require(not (config.memory.fp8_base_unet and effective.uses_of_unet_weights(config)), f"{name} over fp8 is not refused")
    own = gradient(card, name, base)
    require(bool(torch.isfinite(own).all()), f"{name} over {base}: the gradient is not finite")
    cosine = float(functional.cosine_similarity(own, exact, dim=0))
    require(cosine >= BOUNDS[base], f"{name} over {base}: the gradient's cosine to the CPU's is {cosine:.3f}, less than {BOUNDS[base]}")
    return round(cosine, 4)


def _config(card: Card, name: str, base: str) -> TrainConfig:
    return crescent(card.new_folder(), network__type=name, **BASES[base])


def gradient(card: Card, name: str, base: str) -> Tensor:
    """The flat gradient of the first step, on the CPU in float64, unscaled."""
    config = _config(card, name, base)
    with prepared(card, config, card.new_folder()) as trainer:
        accumulate_first_step(trainer)
        scale = 1.0 if trainer.scaler is None else float(trainer.scaler.get_scale())
        return torch.cat([each.detach().cpu().double() / scale for each in trainer.optimizer.gradients()])


def accumulate_first_step(trainer: Trainer) -> None:
    """Forward and backward of the first step's batch, with the product's own accumulator."""
    config, dataset = trainer.config, trainer.dataset
    plan = make_plan(config, dataset.records, inspect(trainer.source.path), Machine(trainer.device.type), dataset.datasets)
    progress = TrainingProgress(plan)
    progress.begin_epoch()
    captions, group = CaptionSampler(dataset, config.seed, progress), SingleProcess()
    batches = batch_sampler.epoch_batches(dataset.train_records, batch_size=list(dataset.batch_sizes), seed=config.seed, epoch=1)
    with torch.inference_mode(False), torch.enable_grad():
        GradientAccumulator(trainer, progress, captions, group).accumulate(batches[:1])


BLOCKS = (Block("networks", "every network type over each base format: the CPU's gradient", network_gradients, 45.0, 19.0),)
