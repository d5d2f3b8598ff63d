"""Every layer of a model that a network can touch: its name in a network's file, and its place in a checkpoint (no torch).

A checkpoint's header, or the released models' own measures (stock.py), are enough: nothing is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import prod
from pathlib import Path

import attrs

from lora_trainer.errors import ModelError
from lora_trainer.models import layout
from lora_trainer.models.detection import released_shapes
from lora_trainer.models.files.tensor_file import contents
from lora_trainer.models.layers import TEXT_ROOTS, of_state
from lora_trainer.models.layout import Row

TEXT_PARTS = ("text", "text_2")


@attrs.frozen
class Place:
    """Where numbers stand in a checkpoint: a tensor's name, its shape as modules see it, and which of its rows they are.

    `chunk` and `t` as a tensor's own, so that models/layout.py renames it: open_clip keeps three matrices as one.
    """

    key: str
    shape: tuple[int, ...]
    first_row: int = 0
    turned: bool = False

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def chunk(self, parts: int) -> list[Place]:
        """Equal parts along the first dimension."""
        rows = self.shape[0] // parts
        return [attrs.evolve(self, shape=(rows, *self.shape[1:]), first_row=self.first_row + rows * number) for number in range(parts)]

    def t(self) -> Place:
        """Turned."""
        return attrs.evolve(self, shape=self.shape[::-1], turned=not self.turned)


@attrs.frozen
class Layer:
    """One layer: `part` "unet", "text" or "text_2", its path in diffusers' or transformers' modules, weight and bias in a checkpoint."""

    name: str
    part: str
    path: str
    weight: Place
    bias: Place | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight: [out, in], [out, in, kernel, kernel], or [channels] of a norm."""
        return self.weight.shape

    @property
    def weight_numbers(self) -> int:
        """How many numbers the weight has."""
        return prod(self.weight.shape)


def layers_of(checkpoint: Path) -> tuple[Row, dict[str, Layer]]:
    """A checkpoint's family, and its layers by their names in a network's file. Raises ModelError for what is no checkpoint."""
    held = contents(checkpoint).tensors
    row = layout.family_of(held)
    if row is None or f"{layout.UNET}input_blocks.0.0.weight" not in held:
        raise ModelError(
            "{path} is not a Stable Diffusion checkpoint.", path=str(checkpoint), fix="Choose a Stable Diffusion 1, 2 or SDXL checkpoint."
        )
    parts = layout.parts_of({key: Place(key, entry.shape) for key, entry in held.items()}, row.family)
    return row, _named(row, parts)


@lru_cache(maxsize=4)
def stock_layers(family: str) -> Mapping[str, Layer]:
    """The layers of a family's released models."""
    row = layout.row(family)
    parts = {part: {key: Place(key, shape) for key, shape in shapes.items()} for part, shapes in released_shapes.shapes(family).items()}
    prefixes = layout.turned_round(layout.unet_prefixes(released_shapes.attends(family)))
    ldm = layout.renamed(parts["unet"], prefixes)
    parts["unet"] = {key: attrs.evolve(place, key=f"{layout.UNET}{ldm[key]}") for key, place in parts["unet"].items()}
    return _named(row, parts)


def _named(row: Row, parts: Mapping[str, Mapping[str, Place]]) -> dict[str, Layer]:
    found = {}
    for layer in of_state(row.family, parts["unet"], [parts[part] for part in TEXT_PARTS if part in parts]):
        root, _, path = layer.path.partition(".")
        part = "unet" if root == "unet" else TEXT_PARTS[TEXT_ROOTS.index(root)]
        found[layer.name] = Layer(layer.name, part, path, parts[part][f"{path}.weight"], parts[part].get(f"{path}.bias"))
    return found


def other_names(layers: Mapping[str, Layer]) -> Iterator[tuple[str, str]]:
    """(another name, the name) of the U-Net's layers: hosts read a file in diffusers' and in the checkpoint's own words."""
    for name, layer in layers.items():
        if layer.part == "unet":
            ldm = layer.weight.key.removeprefix(layout.UNET).removesuffix(".weight")
            for path in (layer.path, ldm):
                if (other := f"lora_unet_{path.replace('.', '_')}") != name:
                    yield other, name


def block_of(layer: Layer) -> str:
    """The block that a layer stands in: "down 1", "mid", "up 3", "text 4", "text_2 11", or "ends"."""
    words = layer.path.split(".")
    if layer.part != "unet":
        return f"{layer.part} {words[3]}" if ".layers." in layer.path else f"{layer.part} ends"
    if words[0] in ("down_blocks", "up_blocks"):
        return f"{words[0].removesuffix('_blocks')} {words[1]}"
    return "mid" if words[0] == "mid_block" else "ends"
