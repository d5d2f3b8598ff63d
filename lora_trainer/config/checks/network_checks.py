"""Checks of the network options: lists by block, patterns, base networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lora_trainer.config.choices import unet_blocks
from lora_trainer.config.patterns import Pattern, PatternError
from lora_trainer.config.schema import NetworkConfig
from lora_trainer.errors import Problem
from lora_trainer.messages import say

RANKS, ALPHAS = ("block_dims", "conv_block_dims"), ("block_alphas", "conv_block_alphas")
LR_WEIGHTS = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")
MAX_RANK, MAX_ALPHA = 1024, 4096
MAX_PATTERNS = 100


def check_network(network: NetworkConfig) -> Iterator[tuple[tuple[str, ...], Problem]]:
    """(paths of the options concerned, problem) of each wrong network option."""
    for name in (*RANKS, *ALPHAS):
        yield from _check_list(name, getattr(network, name))
    for name in LR_WEIGHTS:
        yield from _check_lr_weights(name, getattr(network, name))
    for name in ("include", "exclude"):
        patterns = getattr(network, name)
        if len(patterns) > MAX_PATTERNS:
            yield _problem(name, "{count} patterns are too many.", "Write at most {most}.", count=len(patterns), most=MAX_PATTERNS)
        for text in patterns[:MAX_PATTERNS]:
            yield from _check_pattern(name, text)
    multiplier = network.base_weights_multiplier
    if isinstance(multiplier, tuple) and len(multiplier) != len(network.base_weights):
        yield _problem(
            "base_weights_multiplier",
            "{numbers} strengths are given for {files} files (network.base_weights).",
            "Give one for each file, or a single number for all.",
            numbers=len(multiplier),
            files=len(network.base_weights),
        )


def _check_list(name: str, text: str) -> Iterator[tuple[tuple[str, ...], Problem]]:
    is_rank = name in RANKS
    high = MAX_RANK if is_rank else MAX_ALPHA
    numbers, invalid_word = _try_parse(lambda: unet_blocks.parse_numbers(text))
    if invalid_word is not None:
        yield _problem(name, "{word} is not a number.", "Write numbers with commas between them: 4,4,8", word=invalid_word or '","')
    elif out_of_range := [number for number in numbers if not 0 <= number <= high or (is_rank and not number.is_integer())]:
        template = "{number} is not a whole number from 0 to {high}." if is_rank else "{number} is not a number from 0 to {high}."
        yield _problem(name, template, "Choose another number for that block.", number=f"{out_of_range[0]:g}", high=high)
    elif numbers and len(numbers) not in unet_blocks.LIST_LENGTHS:
        lengths = ", ".join(map(str, unet_blocks.LIST_LENGTHS))
        yield _problem(
            name,
            "{count} numbers are given, and no U-Net has that many blocks ({lengths}).",
            "Write a number for each block, from the first on.",
            count=len(numbers),
            lengths=lengths,
        )


def _check_lr_weights(name: str, text: str) -> Iterator[tuple[tuple[str, ...], Problem]]:
    if not text.strip():
        return
    _, invalid_word = _try_parse(lambda: unet_blocks.parse_lr_weights(text, unet_blocks.SD.down))
    if invalid_word is not None:
        curves = ", ".join(unet_blocks.CURVES)
        yield _problem(
            name,
            "{word} is not a share of a rate.",
            "Write numbers from 0 up with commas between them, or one of {curves}.",
            word=invalid_word,
            curves=curves,
        )


def _check_pattern(name: str, text: str) -> Iterator[tuple[tuple[str, ...], Problem]]:
    try:
        Pattern(text)
    except PatternError as error:
        yield _problem(
            name, "{pattern} is not a valid pattern: {why}.", "Write a part of the layers' names.", pattern=text[:200], why=error.reason
        )


def _try_parse(parse: Callable[[], tuple[float, ...]]) -> tuple[tuple[float, ...], str | None]:
    """(the parsed numbers, None), or ((), the word that is not a number)."""
    try:
        return parse(), None
    except ValueError as error:
        return (), str(error)


def _problem(name: str, template: str, fix: str, **values: Any) -> tuple[tuple[str, ...], Problem]:
    path = f"network.{name}"
    return (path,), Problem(path, say(template, **values), say(fix, **values))
