"""What options of the network must be by themselves: lists of blocks, patterns, files that come beneath."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from lora_trainer.config.choices import unet_blocks
from lora_trainer.config.schema import NetworkConfig
from lora_trainer.errors import Problem
from lora_trainer.messages import say

RANKS, ALPHAS = ("block_dims", "conv_block_dims"), ("block_alphas", "conv_block_alphas")
SIDES = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")
HIGHEST_RANK, HIGHEST_ALPHA = 1024, 4096


def check_network(network: NetworkConfig) -> Iterator[tuple[tuple[str, ...], Problem]]:
    """(the option concerned, what is wrong with it)."""
    for name in (*RANKS, *ALPHAS):
        yield from _check_list(name, getattr(network, name))
    for name in SIDES:
        yield from _check_side(name, getattr(network, name))
    for name in ("include", "exclude"):
        for text in getattr(network, name):
            yield from _check_pattern(name, text)
    given = network.base_weights_multiplier
    if isinstance(given, tuple) and len(given) != len(network.base_weights):
        yield _wrong(
            "base_weights_multiplier",
            "{numbers} strengths are given for {files} files (network.base_weights).",
            "Give one for each file, or a single number for all.",
            numbers=len(given),
            files=len(network.base_weights),
        )


def _check_list(name: str, text: str) -> Iterator[tuple[tuple[str, ...], Problem]]:
    whole = name in RANKS
    high = HIGHEST_RANK if whole else HIGHEST_ALPHA
    given, wrong = _read(lambda: unet_blocks.numbers(text))
    if wrong is not None:
        yield _wrong(name, "{word} is no number.", "Write numbers with commas between them: 4,4,8", word=wrong or '","')
    elif bad := [number for number in given if not 0 <= number <= high or (whole and not number.is_integer())]:
        template = "{number} is no whole number from 0 to {high}." if whole else "{number} is no number from 0 to {high}."
        yield _wrong(name, template, "Choose another number for that block.", number=f"{bad[0]:g}", high=high)
    elif given and len(given) not in unet_blocks.LENGTHS:
        lengths = ", ".join(map(str, unet_blocks.LENGTHS))
        yield _wrong(
            name,
            "{count} numbers are given, and no U-Net has so many blocks ({lengths}).",
            "Write a number for each block, from the first on.",
            count=len(given),
            lengths=lengths,
        )


def _check_side(name: str, text: str) -> Iterator[tuple[tuple[str, ...], Problem]]:
    if not text.strip():
        return
    _, wrong = _read(lambda: unet_blocks.weights(text, unet_blocks.SD.down))
    if wrong is not None:
        curves = ", ".join(unet_blocks.CURVES)
        yield _wrong(
            name,
            "{word} is no share of a rate.",
            "Write numbers from 0 up with commas between them, or one of {curves}.",
            word=wrong,
            curves=curves,
        )


def _check_pattern(name: str, text: str) -> Iterator[tuple[tuple[str, ...], Problem]]:
    try:
        re.compile(text)
    except re.error as error:
        yield _wrong(name, "{pattern} is no pattern: {why}.", "Write a part of the layers' names.", pattern=text, why=str(error))


def _read(read: Callable[[], tuple[float, ...]]) -> tuple[tuple[float, ...], str | None]:
    """(the numbers, what is none of them)."""
    try:
        return read(), None
    except ValueError as error:
        return (), str(error)


def _wrong(name: str, template: str, fix: str, **values: Any) -> tuple[tuple[str, ...], Problem]:
    path = f"network.{name}"
    return (path,), Problem(path, say(template, **values), say(fix, **values))
