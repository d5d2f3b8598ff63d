"""sd-scripts' lists with a number for each block of the U-Net: how many there are, how a list is written, where a layer stands."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import attrs

CURVES = ("cosine", "sine", "linear", "reverse_linear", "zeros")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_DIFFUSERS = re.compile(r"_(down|up)_blocks_(\d+)_(resnets|attentions|downsamplers|upsamplers)_(\d+)_")
_LDM = re.compile(r"_(input_blocks|middle_block|output_blocks)_(\d+)_")


@attrs.frozen
class Blocks:
    """How many blocks lie on the way down, in the middle and up; `ends`: whole lists begin and end with one that lies in none."""

    down: int
    mid: int
    up: int
    ends: bool = False

    @property
    def count(self) -> int:
        """Numbers in a whole list: 25, and 23 of SDXL."""
        return self.down + self.mid + self.up + 2 * self.ends

    @property
    def short(self) -> int:
        """Numbers in the list that takes the middle as one and has none for the end, as prompts' block weights do: 20 of SDXL."""
        return 1 + self.down + 1 + self.up if self.ends else self.count

    def whole(self, numbers: Sequence[float]) -> tuple[float, ...]:
        """A whole list from one of either length. Raises ValueError for another length."""
        if len(numbers) == self.count:
            return tuple(numbers)
        if len(numbers) == self.short:
            middle = 1 + self.down
            return (*numbers[:middle], *[numbers[middle]] * self.mid, *numbers[middle + 1 :], numbers[0])
        raise ValueError(len(numbers))

    def place(self, name: str) -> int | None:
        """The number of the block that holds a layer of this name in a LoRA file; None where it lies in none."""
        if found := _DIFFUSERS.search(name):
            side, level, kind, number = found[1], int(found[2]), found[3], int(found[4])
            place = 3 * level + (number if kind in ("resnets", "attentions") else 2)
            return 1 + place if side == "down" else self.down + self.mid + place
        if found := _LDM.search(name):
            number = int(found[2])
            return (
                self.ends + {"input": number, "middle": self.down + number, "output": self.down + self.mid + number}[found[1].split("_")[0]]
            )
        if "_mid_block_" in name:
            return self.down
        if name.endswith("_conv_in"):
            return 0
        return self.count - 1 if self.ends and name.endswith("_out_2") else 0 if self.ends and name.startswith("lora_unet_") else None


SD = Blocks(12, 1, 12)
SDXL = Blocks(9, 3, 9, ends=True)
LENGTHS = sorted({SD.count, SDXL.count, SDXL.short})


def blocks_of(family: str) -> Blocks:
    """The blocks of a family's U-Net."""
    return SDXL if family == "sdxl" else SD


def numbers(text: str, empty: float | None = None) -> tuple[float, ...]:
    """The numbers of a list "1,2,4"; `empty` stands where there is nothing between two commas. Raises ValueError with what is no number."""
    found = []
    for word in (part.strip() for part in text.split(",")) if text.strip() else ():
        if not word and empty is not None:
            found.append(empty)
        elif _NUMBER.fullmatch(word):
            found.append(float(word))
        else:
            raise ValueError(word)
    return tuple(found)


def weights(text: str, count: int) -> tuple[float, ...]:
    """Shares of the rate for `count` blocks: numbers (missing ones are 1), or a curve with what is added: "cosine+0.25".

    Raises ValueError with what is neither.
    """
    name, _, added = text.strip().partition("+")
    if name in CURVES:
        base = numbers(added)[0] if added.strip() else 0.0
        return tuple(_curve(name, place / max(1, count - 1)) + base for place in range(count))
    if (given := numbers(text, 0.0)) and min(given) < 0:
        raise ValueError(min(given))
    return (*given, *[1.0] * (count - len(given)))[:count]


def rate_weights(down: str, mid: str, up: str, threshold: float, blocks: Blocks) -> tuple[float, ...] | None:
    """The share of the learning rate for every block, 0 up to the threshold; None where none is given."""
    if not (down.strip() or mid.strip() or up.strip()):
        return None
    inner: list[float] = []
    for text, count in ((down, blocks.down), (mid, blocks.mid), (up, blocks.up)):
        given = weights(text, count) if text.strip() else None
        inner += [1.0] * count if given is None else [weight if weight > threshold else 0.0 for weight in given]
    return (1.0, *inner, 1.0) if blocks.ends else tuple(inner)


def _curve(name: str, share: float) -> float:
    """A curve's height where `share` of the blocks lie before."""
    return {
        "cosine": math.sin(math.pi * (1 - share) / 2),
        "sine": math.sin(math.pi * share / 2),
        "linear": share,
        "reverse_linear": 1 - share,
        "zeros": 0.0,
    }[name]
