"""Two axes of the host's X/Y/Z plot that fill a prompt's `<lora:NAME-NUM:STRENGTH>`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

EPOCH = "[LoRA Trainer] Epoch"
WEIGHT = "[LoRA Trainer] Weight"
TAG = re.compile(r"<lora:[^<>]*>")
RANGE = re.compile(r"(\d+)\s*-\s*(\d+)(?:\s*\(\s*\+?\s*(\d+)\s*\))?")
STEP = re.compile(r"step\s*(\d+)")


def parse_epochs(text: str) -> list[str]:
    """The file numbers of "1, 3, 5-10 (+2), step120": "000001" and so on; "step00000120" for files saved by steps."""
    numbers: list[str] = []
    for word in (part.strip() for part in text.split(",")):
        if span := RANGE.fullmatch(word):
            first, last, stride = int(span.group(1)), int(span.group(2)), int(span.group(3) or 1)
            numbers += [f"{number:06d}" for number in range(first, last + 1, max(1, stride))]
        elif step := STEP.fullmatch(word):
            numbers.append(f"step{int(step.group(1)):08d}")
        elif word:
            numbers.append(f"{int(word):06d}" if word.isdigit() else word)
    return numbers


def fill(prompt: str, placeholder: str, value: str) -> str:
    """The prompt with NUM or STRENGTH replaced, only inside <lora:...>."""
    pattern = re.compile(rf"(?<![A-Za-z]){placeholder}(?![A-Za-z])")
    return TAG.sub(lambda tag: pattern.sub(value, tag.group()), prompt)


def apply_epoch(p: Any, x: str, xs: list[str]) -> None:
    """Replaces NUM in the prompt by an epoch's file number."""
    _replace(p, "NUM", x)


def apply_weight(p: Any, x: float, xs: list[float]) -> None:
    """Replaces STRENGTH in the prompt by a weight."""
    _replace(p, "STRENGTH", f"{x:g}")


def _replace(p: Any, placeholder: str, value: str) -> None:
    before = (p.prompt, p.negative_prompt)
    p.prompt, p.negative_prompt = (fill(text, placeholder, value) for text in before)
    if (p.prompt, p.negative_prompt) == before:
        raise RuntimeError(f"Write <lora:NAME-NUM:STRENGTH> in the prompt: {placeholder} was not found in it.")
    p.extra_generation_params = dict(p.extra_generation_params or {})  # cells share one dict: hashes would leak from cell to cell


def add_axes() -> bool:
    """Adds both axes to the X/Y/Z plot once; False when the host has no such script."""
    from modules import scripts

    for data in scripts.scripts_data:
        if data.script_class.__module__ == "xyz_grid.py":
            options, axis = data.module.axis_options, data.module.AxisOption
            plain: Callable[..., str] = lambda p, opt, x: f"Epoch {x.lstrip('0') or '0'}"  # noqa: E731
            if not any(option.label == EPOCH for option in options):
                options.append(axis(EPOCH, str, apply_epoch, format_value=plain, cost=0.5, prepare=parse_epochs))
                options.append(axis(WEIGHT, float, apply_weight, format_value=lambda p, opt, x: f"Weight {x:g}", cost=0.4))
            return True
    return False
