"""One training step of each type of network beside the reference loop's LoRA, in one process, turn by turn.

    python benchmarks/networks.py                                   Stable Diffusion 1.5's shape, all types, about fifteen minutes
    python benchmarks/networks.py --shape tiny --types lora loha    some of them on the small shape
    python benchmarks/networks.py --count                           multiplications of a step at 512 pixels, counted and not calculated

A step is noise, forward, backward, clipping and fused AdamW on the U-Net's network, without the events of a run (benchmarks/step.py
has those). Times are seconds of this process's CPU with one thread: medians of ratios to the reference's step of the same turn.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.random_checkpoint import SD15
from benchmarks.reference_loop import CLIP, RATE, ReferenceLoop
from benchmarks.step import CPU, RANK, SHAPES, Shape, held_model, machine
from lora_trainer.adapters.network import NetworkAdapter
from lora_trainer.adapters.rng import LayerRng
from lora_trainer.adapters.targets import plan_layers
from lora_trainer.config.choices.networks import NETWORK_TYPES
from lora_trainer.config.schema import NetworkConfig
from lora_trainer.models.conditioning import Conditioning
from lora_trainer.models.load import load
from lora_trainer.models.source import LiveSource
from lora_trainer.optim.optimizers import GroupPlan, make_optimizer
from lora_trainer.train.step.accumulate import OptimizerStep
from lora_trainer.train.step.precision import choose_precision, compute_scope

WAYS: dict[str, dict[str, Any]] = {
    **{name: {"type": name} for name in NETWORK_TYPES},
    "dora, outputs": {"type": "dora", "dora_axis": "out"},
    "lokr, factor 4": {"type": "lokr", "factor": 4},
    "lokr, factor 4, whole": {"type": "lokr", "factor": 4, "full_matrix": True},
    "loha, rank 8": {"type": "loha", "dim": 8, "alpha": 8.0},
    "loha, attention alone": {"type": "loha", "conv_dim": 0},
    "lokr, attention alone": {"type": "lokr", "conv_dim": 0},
    "lora, upper blocks": {"type": "lora", "include": ("up_blocks",)},
}
GOALS = {
    "lora": 1.02,
    "rslora": 1.02,
    "locon": 1.15,
    "dora": 1.25,
    "loha": 1.3,
    "loha, rank 8": 1.3,
    "lokr": 1.3,
    "lora, upper blocks": 0.8,
}


@attrs.frozen
class Row:
    """Of one way: layers, numbers, and the median of its step over the reference's of the same turn."""

    name: str
    layers: int
    numbers: int
    seconds: float
    ratio: float


def stepper(network: NetworkAdapter, source: LiveSource, bundle: Any, latents: Tensor, texts: Tensor) -> Callable[[], None]:
    """A training step of a network that is attached to the bundle."""
    precision = choose_precision("auto", source, CPU)
    optimizer = make_optimizer("AdamW", network.parameters(), [GroupPlan("unet", "unet", RATE)], {})
    updater, turn = OptimizerStep(optimizer, None), iter(range(10**6))

    def step() -> None:
        number = next(turn)
        noise, timesteps = torch.randn_like(latents), torch.randint(0, len(bundle.alphas_cumprod), (len(latents),))
        kept = bundle.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
        with network.using_tensors(optimizer.tensors(precision.autocast), LayerRng(0, number) if network.is_random else None):
            with compute_scope(precision, CPU, grad=True):
                predicted = bundle.family.denoise(bundle, noisy.to(bundle.dtype), timesteps, Conditioning(texts))
            loss = functional.mse_loss(predicted.float(), noise)
            loss.backward()
        updater.update(1.0, CLIP, loss.detach())

    return step


def measure(shape: Shape, ways: Sequence[str], turns: int) -> list[Row]:
    """The ways one after the other, each turn by turn with the reference; they share one model's tensors."""
    source, side = held_model(shape), shape.side // 8
    latents, texts = torch.randn(1, 4, side, side), torch.randn(1, 77, shape.widths.text).to(shape.dtype)
    plain = load(source, CPU)
    reference, found = ReferenceLoop(plain.unet, plain.alphas_cumprod, latents, texts, RANK), []
    for name in ways:
        bundle = load(source, CPU)
        network = NetworkAdapter(bundle, plan_layers(bundle, NetworkConfig(**{"dim": RANK, "alpha": float(RANK), **WAYS[name]}), ("unet",)))
        network.attach(bundle)
        step, other, times = stepper(network, source, bundle, latents, texts), reference.step, []
        for turn in range(turns + 1):
            order = (step, other) if turn % 2 else (other, step)
            took = {work: timed(work) for work in order}
            if turn:
                times.append((took[step], took[other]))
        numbers = sum(tensor.numel() for tensor in network.state_dict().values())
        found.append(Row(name, len(network.plan), numbers, median(own for own, _ in times), median(own / other for own, other in times)))
        network.detach()
        print(found[-1], file=sys.stderr, flush=True)
    return found


def counted(name: str, side: int) -> int:
    """Multiplications and additions of forward and backward with one picture, on Stable Diffusion 1.5's U-Net without memory."""
    from torch.utils.flop_counter import FlopCounterMode

    unet, *_ = SD15.modules()
    bundle = attrs.evolve(load(held_model(SHAPES["tiny"]), CPU), unet=unet.requires_grad_(False), device=torch.device("meta"))
    network = NetworkAdapter(bundle, plan_layers(bundle, NetworkConfig(**{"dim": RANK, "alpha": float(RANK), **WAYS[name]}), ("unet",)))
    network.attach(bundle)
    noisy, texts = torch.empty(1, 4, side // 8, side // 8, device="meta"), torch.empty(1, 77, SD15.text, device="meta")
    with FlopCounterMode(display=False) as counter, network.using_tensors(list(network.parameters().values()), LayerRng(0, 0)):
        unet(noisy, torch.empty(1, device="meta"), texts, return_dict=False)[0].sum().backward()
    return int(counter.get_total_flops())


def counts(ways: Sequence[str], side: int) -> str:
    """A table of multiplications beside LoRA's."""
    least = counted("lora", side)
    lines = [f"| network, rank {RANK}, {side} px | TFLOP | of LoRA's |", "|---|---|---|"]
    for name in ways:
        found = counted(name, side)
        lines.append(f"| {name} | {found / 1e12:.2f} | {found / least:.3f} |")
    return "\n".join(lines)


def timed(work: Callable[[], None]) -> float:
    """CPU seconds of this process."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def table(heading: str, rows: Sequence[Row]) -> str:
    """The rows as Markdown, with what was to be reached."""
    lines = [heading, "", "| network, rank 16 | layers | numbers | s / step | of the reference's | goal |", "|---|---|---|---|---|---|"]
    for row in rows:
        goal = GOALS.get(row.name)
        met = "" if goal is None else f"{goal} {'met' if row.ratio <= goal else 'missed'}"
        lines.append(f"| {row.name} | {row.layers} | {row.numbers:,} | {row.seconds:.3f} | {row.ratio:.3f} | {met} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what was asked for and prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="sd15")
    parser.add_argument("--types", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--count", action="store_true", help="count multiplications instead")
    parser.add_argument("--side", type=int, default=512, help="with --count: pixels of a side")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if chosen.count:
        print(counts(chosen.types, chosen.side))
        return
    rows = measure(SHAPES[chosen.shape], chosen.types, chosen.turns)
    heading = f"{SHAPES[chosen.shape].name}: {machine()}"
    print(json.dumps({"machine": heading, "rows": [attrs.asdict(row) for row in rows]}) if chosen.json else table(heading, rows))


if __name__ == "__main__":
    main()
