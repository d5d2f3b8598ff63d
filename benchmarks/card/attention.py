"""Block 1: does a training step work on the device at all, and which ways of computing attention do, at the widths of real models."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.card.block import CPU, Block, Card, Figures, relative_error, require
from lora_trainer.host import devices
from lora_trainer.train.step.attention import ATTENTION, TRIED_TEXT_TOKENS, why_not

WIDTHS = (40, 64, 80, 160)
"""Widths of a head: Stable Diffusion 1.x has 40, 80 and 160, 2.x and SDXL have 64."""
HEADS, TOKENS, CPU_TOKENS = 8, 512, 96
BOUNDS = {torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Relative errors of outputs and gradients: some units of the format's last place (TF32's for float32), added up over the tokens."""


def device_probe(card: Card) -> Figures:
    """The product's own probe: loss and gradient of a small U-Net's step agree with the CPU's, in each number format."""
    dtypes = (torch.float32, torch.float16, torch.bfloat16) if card.is_cuda else (torch.float32, torch.bfloat16)
    reasons = {str(dtype).removeprefix("torch."): devices.step_failure(card.device, dtype) for dtype in dtypes}
    automatic = devices.auto_precision(card.device)
    needed = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}[automatic]
    require(not reasons["float32"], f"float32: {reasons['float32']}")
    require(not reasons[needed], f"{needed}, which is chosen here: {reasons[needed]}")
    return {"automatic": automatic, **{name: reason or "works" for name, reason in reasons.items()}}


def attention_ways(card: Card) -> Figures:
    """Each way's output and gradients against softmax(q k' / sqrt(d)) v in float64; SDPA and slices must work, xformers where it is."""
    dtypes = (torch.float16, torch.bfloat16, torch.float32) if card.is_cuda else (torch.float32, torch.bfloat16)
    rows = [row for name in ATTENTION for dtype in dtypes for row in _rows(card, name, dtype)]
    return {"xformers": "there" if importlib.util.find_spec("xformers") else "not installed", "rows": rows}


def _rows(card: Card, name: str, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    reason = why_not(name, card.device, dtype, WIDTHS)
    if reason:
        require(name == "xformers", f"{name} in {dtype} does not work: {reason}")
        yield {"way": name, "format": str(dtype)[6:], "result": f"not used: {reason}"}
        return
    for width in WIDTHS:
        tokens = TOKENS if card.is_cuda else CPU_TOKENS
        error = max(attention_error(name, card.device, dtype, width, tokens, keys) for keys in (tokens, TRIED_TEXT_TOKENS))
        bound = BOUNDS[dtype]
        require(error <= bound, f"{name} in {dtype}, heads of {width}: off by {error:.2g}, more than {bound}")
        row = {"way": name, "format": str(dtype)[6:], "head width": width, "error": error}
        yield row | ({"ms of 4096 tokens": _milliseconds(card, name, dtype, width)} if card.is_cuda else {})


def attention_error(name: str, device: torch.device, dtype: torch.dtype, width: int, tokens: int, key_tokens: int) -> float:
    """The largest relative error of the output and the three gradients."""
    generator = torch.Generator().manual_seed(width)
    inputs = [torch.randn(2, HEADS, count, width, generator=generator).to(dtype) for count in (tokens, key_tokens, key_tokens)]
    towards = torch.randn(2, HEADS, tokens, width, generator=generator).to(dtype)
    own = _output_and_gradients(ATTENTION[name], [each.to(device) for each in inputs], towards.to(device))
    exact = _output_and_gradients(_exact, [each.to(CPU, torch.float64) for each in inputs], towards.double())
    return max(relative_error(each, other) for each, other in zip(own, exact, strict=True))


def _output_and_gradients(attend: Any, inputs: list[Tensor], towards: Tensor) -> list[Tensor]:
    leaves = [each.clone().requires_grad_() for each in inputs]
    output = attend(*leaves)
    output.backward(towards)
    return [output, *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def _exact(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return torch.softmax(queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1]), dim=-1) @ values


def _milliseconds(card: Card, name: str, dtype: torch.dtype, width: int, rounds: int = 5) -> float:
    """Forward and backward of one picture's self-attention with 4096 tokens."""
    leaves = [torch.randn(1, HEADS, 4096, width, device=card.device, dtype=dtype, requires_grad=True) for _ in range(3)]
    for _ in range(2):
        ATTENTION[name](*leaves).sum().backward()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(rounds):
        ATTENTION[name](*leaves).sum().backward()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end) / rounds)


BLOCKS = (
    Block("device", "a training step agrees with the CPU's in each number format", device_probe, 8.0, 5.0),
    Block("attention", "each way of attention, forward and backward, at head widths 40, 64, 80, 160", attention_ways, 15.0, 2.0),
)
