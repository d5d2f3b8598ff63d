"""Block 9: what needs a package with CUDA kernels of its own: bitsandbytes' optimizers, xformers' attention."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from benchmarks.card.attention import WIDTHS, attention_error
from benchmarks.card.block import CPU, Block, BlockLeftOut, Card, Figures, require
from benchmarks.card.runs import crescent, events_of, validation_losses, warnings, with_validation
from lora_trainer.config.choices.optimizers import OPTIMIZER_SPECS
from lora_trainer.optim.optimizers import GroupPlan, TrainingOptimizer, make_optimizer, probe
from lora_trainer.train.step.attention import why_not

STEPS, WIDE = 16, 64
"""A rank at which the matrices have the 4096 elements from which these optimizers keep their state in 8 bits."""
ERRORS = {torch.float16: 1e-2, torch.bfloat16: 5e-2}


def bitsandbytes_optimizers(card: Card) -> Figures:
    """Each of its optimizers takes a real step on the card, and a run with it lowers the validation loss without falling back."""
    _need("bitsandbytes")
    rows = []
    for spec in OPTIMIZER_SPECS:
        if spec.package != "bitsandbytes":
            continue
        probe(spec.name, {}, str(card.device))
        folder = card.new_folder()
        rate = {"Lion": 2e-4, "SGDNesterov": 0.5}.get(spec.fallback, 2e-3)
        changes: dict[str, Any] = {"optimizer__type": spec.name, "optimizer__learning_rate": rate, "steps__max_train_steps": STEPS}
        changes |= {"network__dim": WIDE, "network__alpha": float(WIDE)}
        events = events_of(card, crescent(folder, **with_validation(**changes)), folder)
        found = validation_losses(events)
        require(not warnings(events, "is used instead"), f"{spec.name} fell back: {warnings(events, 'instead')}")
        require(found[-1] < found[0], f"{spec.name}: the validation loss did not fall")
        rows.append({"optimizer": spec.name, "before": found[0], "after": found[-1]})
    return {"rows": rows}


def paged_state_after_a_pause(card: Card) -> Figures:
    """E7: the state of a paged optimizer is in pageable memory before a pause and after it, and the next step is the same."""
    _need("bitsandbytes")
    paged, plain = (_optimizer(card) for _ in range(2))
    for optimizer in (paged, plain):
        _step(optimizer)
    before = _pages(paged.inner)
    paged.move(CPU)  # what a pause does, and the end of it
    paged.move(card.device)
    require(before > 0, "nothing was paged in the first place")
    require(_pages(paged.inner) == before, f"{before} tensors were paged before the pause, {_pages(paged.inner)} after it")
    for optimizer in (paged, plain):
        _step(optimizer)
    card.synchronize()
    require(torch.equal(paged.groups[0].buffer, plain.groups[0].buffer), "the step after the pause is another one")
    return {"paged tensors": before}


def _optimizer(card: Card) -> TrainingOptimizer:
    """PagedAdamW of one matrix of the size from which it pages (100 000 elements)."""
    parameter = nn.Parameter(torch.ones(512, 512, device=card.device))
    return make_optimizer("PagedAdamW", {"unet": [parameter]}, [GroupPlan("unet", "unet", 1e-2)], {})


def _step(optimizer: TrainingOptimizer) -> None:
    (optimizer.tensors()[0][0] ** 2).sum().backward()
    optimizer.step(1.0)


def _pages(inner: torch.optim.Optimizer) -> int:
    return sum(bool(getattr(value, "is_paged", False)) for state in inner.state.values() for value in state.values())


def xformers_attention(card: Card) -> Figures:
    """xformers at all widths against float64, if it says that it works here."""
    _need("xformers")
    rows = []
    for dtype, bound in ERRORS.items():
        reason = why_not("xformers", card.device, dtype, WIDTHS)
        require(not reason, f"xformers in {dtype}: {reason}")
        for width in WIDTHS:
            error = max(attention_error("xformers", card.device, dtype, width, tokens, keys) for tokens, keys in ((512, 512), (512, 77)))
            require(error <= bound, f"xformers in {dtype}, heads of {width}: off by {error:.2g}")
            rows.append({"format": str(dtype)[6:], "head width": width, "error": error})
    folder = card.new_folder()
    events = events_of(card, crescent(folder, memory__attention="xformers", memory__mixed_precision="fp16"), folder)
    require(not warnings(events, "does not work here"), f"{warnings(events, 'does not work here')}")
    return {"rows": rows}


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise BlockLeftOut(f"{package} is not installed")


BLOCKS = (
    Block("bitsandbytes", "its optimizers train on the card", bitsandbytes_optimizers, 25.0),
    Block("E7-paged", "a paged optimizer pages again after a pause", paged_state_after_a_pause, 8.0),
    Block("xformers", "its attention at the widths of real models", xformers_attention, 10.0),
)
