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


def epochs(text: str) -> list[str]:
    """File numbers of "1, 3, 5-10 (+2), step120": "000001" and so on; "step00000120" for files saved by steps."""
    found: list[str] = []
    for word in (part.strip() for part in text.split(",")):
        if span := RANGE.fullmatch(word):
            first, last, stride = int(span.group(1)), int(span.group(2)), int(span.group(3) or 1)
            found += [f"{number:06d}" for number in range(first, last + 1, max(1, stride))]
        elif step := STEP.fullmatch(word):
            found.append(f"step{int(step.group(1)):08d}")
        elif word:
            found.append(f"{int(word):06d}" if word.isdigit() else word)
    return found


def fill(prompt: str, place: str, value: str) -> str:
    """The prompt with NUM or STRENGTH replaced, inside of <lora:...> only."""
    whole = re.compile(rf"(?<![A-Za-z]){place}(?![A-Za-z])")
    return TAG.sub(lambda tag: whole.sub(value, tag.group()), prompt)


def apply_epoch(p: Any, x: str, xs: list[str]) -> None:
    """Puts an epoch's number where the prompt says NUM."""
    _put(p, "NUM", x)


def apply_weight(p: Any, x: float, xs: list[float]) -> None:
    """Puts a weight where the prompt says STRENGTH."""
    _put(p, "STRENGTH", f"{x:g}")


def _put(p: Any, place: str, value: str) -> None:
    before = (p.prompt, p.negative_prompt)
    p.prompt, p.negative_prompt = (fill(text, place, value) for text in before)
    if (p.prompt, p.negative_prompt) == before:
        raise RuntimeError(f"Write <lora:NAME-NUM:STRENGTH> in the prompt: {place} was not found in it.")
    p.extra_generation_params = dict(p.extra_generation_params or {})  # cells share one: hashes would wander from cell to cell


def add_axes() -> bool:
    """Adds both to the X/Y/Z plot once; False when the host has no such script."""
    from modules import scripts

    for data in scripts.scripts_data:
        if data.script_class.__module__ == "xyz_grid.py":
            options, axis = data.module.axis_options, data.module.AxisOption
            plain: Callable[..., str] = lambda p, opt, x: f"Epoch {x.lstrip('0') or '0'}"  # noqa: E731
            if not any(option.label == EPOCH for option in options):
                options.append(axis(EPOCH, str, apply_epoch, format_value=plain, cost=0.5, prepare=epochs))
                options.append(axis(WEIGHT, float, apply_weight, format_value=lambda p, opt, x: f"Weight {x:g}", cost=0.4))
            return True
    return False
