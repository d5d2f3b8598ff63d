"""sd-scripts' lists with one number per U-Net block: how many blocks there are, how a list is parsed, which block a layer is in."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import attrs

CURVES = ("cosine", "sine", "linear", "reverse_linear", "zeros")
_NUMBER = re.compile(r"[+-]?(\d+(?:\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_DIFFUSERS = re.compile(r"_(down|up)_blocks_(\d+)_(resnets|attentions|downsamplers|upsamplers)_(\d+)_")
_LDM = re.compile(r"_(input_blocks|middle_block|output_blocks)_(\d+)_")


@attrs.frozen
class BlockLayout:
    """How many blocks lie on the way down, in the middle and up; `has_ends`: full lists also have an entry for input and output."""

    down: int
    mid: int
    up: int
    has_ends: bool = False

    @property
    def count(self) -> int:
        """Length of a full list: 25, and 23 for SDXL."""
        return self.down + self.mid + self.up + 2 * self.has_ends

    @property
    def short_count(self) -> int:
        """Length of the list with one entry for the middle and none for the output, as in prompts' block weights: 20 for SDXL."""
        return 1 + self.down + 1 + self.up if self.has_ends else self.count

    def expand(self, numbers: Sequence[float]) -> tuple[float, ...]:
        """A full list from a list of either length. Raises ValueError for any other length."""
        if len(numbers) == self.count:
            return tuple(numbers)
        if len(numbers) == self.short_count:
            middle = 1 + self.down
            return (*numbers[:middle], *[numbers[middle]] * self.mid, *numbers[middle + 1 :], numbers[0])
        raise ValueError(len(numbers))

    def block_index(self, name: str) -> int | None:
        """Index of the block of the layer with this name in a LoRA file; None if it is in no block."""
        if match := _DIFFUSERS.search(name):
            side, level, kind, number = match[1], int(match[2]), match[3], int(match[4])
            index = 3 * level + (number if kind in ("resnets", "attentions") else 2)
            return 1 + index if side == "down" else self.down + self.mid + index
        if match := _LDM.search(name):
            number = int(match[2])
            return (
                self.has_ends
                + {"input": number, "middle": self.down + number, "output": self.down + self.mid + number}[match[1].split("_")[0]]
            )
        if "_mid_block_" in name:
            return self.down
        if name.endswith("_conv_in"):
            return 0
        return (
            self.count - 1 if self.has_ends and name.endswith("_out_2") else 0 if self.has_ends and name.startswith("lora_unet_") else None
        )


SD = BlockLayout(12, 1, 12)
SDXL = BlockLayout(9, 3, 9, has_ends=True)
LIST_LENGTHS = sorted({SD.count, SDXL.count, SDXL.short_count})


def block_layout(family: str) -> BlockLayout:
    """The block layout of a family's U-Net."""
    return SDXL if family == "sdxl" else SD


def parse_numbers(text: str, empty: float | None = None) -> tuple[float, ...]:
    """The numbers of a list "1,2,4"; `empty` replaces an empty entry. Raises ValueError with the entry that is not a number."""
    numbers = []
    for word in (part.strip() for part in text.split(",")) if text.strip() else ():
        if not word and empty is not None:
            numbers.append(empty)
        elif _NUMBER.fullmatch(word):
            numbers.append(float(word))
        else:
            raise ValueError(word)
    return tuple(numbers)


def parse_lr_weights(text: str, count: int) -> tuple[float, ...]:
    """Learning-rate factors of `count` blocks: numbers (missing ones are 1), or a curve with an offset: "cosine+0.25".

    Raises ValueError with the entry that is neither.
    """
    name, _, offset = text.strip().partition("+")
    if name in CURVES:
        base = parse_numbers(offset)[0] if offset.strip() else 0.0
        return tuple(_curve(name, position / max(1, count - 1)) + base for position in range(count))
    if (weights := parse_numbers(text, 0.0)) and min(weights) < 0:
        raise ValueError(min(weights))
    return (*weights, *[1.0] * (count - len(weights)))[:count]


def lr_weights(down: str, mid: str, up: str, threshold: float, layout: BlockLayout) -> tuple[float, ...] | None:
    """The learning-rate factor of every block, 0 for factors up to `threshold`; None if no list is given."""
    if not (down.strip() or mid.strip() or up.strip()):
        return None
    inner: list[float] = []
    for text, count in ((down, layout.down), (mid, layout.mid), (up, layout.up)):
        weights = parse_lr_weights(text, count) if text.strip() else None
        inner += [1.0] * count if weights is None else [weight if weight > threshold else 0.0 for weight in weights]
    return (1.0, *inner, 1.0) if layout.has_ends else tuple(inner)


def _curve(name: str, position: float) -> float:
    """The curve's value at `position`, 0 (first block) to 1 (last block)."""
    return {
        "cosine": math.sin(math.pi * (1 - position) / 2),
        "sine": math.sin(math.pi * position / 2),
        "linear": position,
        "reverse_linear": 1 - position,
        "zeros": 0.0,
    }[name]
