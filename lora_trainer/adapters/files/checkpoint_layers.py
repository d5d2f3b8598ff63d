"""Every layer of a model that a network can adapt: its name in a network's file, and its slice in a checkpoint (no torch).

A checkpoint's header, or the released models' shapes (models/detection/released_shapes.py), are enough: no tensor is loaded.
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
from lora_trainer.models.layout import FamilyRow

TEXT_PARTS = ("text", "text_2")


@attrs.frozen
class TensorSlice:
    """A module's tensor in a checkpoint: the key, the shape as the module has it, its first row, and whether it is stored transposed.

    `chunk` and `t` as a tensor's, so that models/layout.py can map it: open_clip packs three matrices into one.
    """

    key: str
    shape: tuple[int, ...]
    first_row: int = 0
    transposed: bool = False

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def chunk(self, parts: int) -> list[TensorSlice]:
        """Equal parts along the first dimension."""
        rows = self.shape[0] // parts
        return [attrs.evolve(self, shape=(rows, *self.shape[1:]), first_row=self.first_row + rows * index) for index in range(parts)]

    def t(self) -> TensorSlice:
        """Transposed."""
        return attrs.evolve(self, shape=self.shape[::-1], transposed=not self.transposed)


@attrs.frozen
class CheckpointLayer:
    """One layer: `part` "unet", "text" or "text_2", path in diffusers' or transformers' modules, weight and bias in a checkpoint."""

    name: str
    part: str
    path: str
    weight: TensorSlice
    bias: TensorSlice | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight: [out, in], [out, in, kh, kw], or [channels] of a norm."""
        return self.weight.shape

    @property
    def weight_numel(self) -> int:
        """Number of elements of the weight."""
        return prod(self.weight.shape)


def checkpoint_layers(checkpoint: Path) -> tuple[FamilyRow, dict[str, CheckpointLayer]]:
    """A checkpoint's family, and its layers by their names in a network's file. Raises ModelError for any other file."""
    tensors = contents(checkpoint).tensors
    row = layout.family_of(tensors)
    if row is None or f"{layout.UNET}input_blocks.0.0.weight" not in tensors:
        raise ModelError(
            "{path} is not a Stable Diffusion checkpoint.", path=str(checkpoint), fix="Choose a Stable Diffusion 1, 2 or SDXL checkpoint."
        )
    parts = layout.parts_of_checkpoint({key: TensorSlice(key, entry.shape) for key, entry in tensors.items()}, row.family)
    return row, _named(row, parts)


@lru_cache(maxsize=4)
def released_layers(family: str) -> Mapping[str, CheckpointLayer]:
    """The layers of a family's released models."""
    row = layout.row(family)
    parts = {
        part: {key: TensorSlice(key, shape) for key, shape in shapes.items()} for part, shapes in released_shapes.shapes(family).items()
    }
    prefixes = layout.invert(layout.unet_prefixes(released_shapes.attends(family)))
    ldm = layout.rename_keys(parts["unet"], prefixes)
    parts["unet"] = {key: attrs.evolve(tensor, key=f"{layout.UNET}{ldm[key]}") for key, tensor in parts["unet"].items()}
    return _named(row, parts)


def _named(row: FamilyRow, parts: Mapping[str, Mapping[str, TensorSlice]]) -> dict[str, CheckpointLayer]:
    named = {}
    for layer in of_state(row.family, parts["unet"], [parts[part] for part in TEXT_PARTS if part in parts]):
        root, _, path = layer.path.partition(".")
        part = "unet" if root == "unet" else TEXT_PARTS[TEXT_ROOTS.index(root)]
        named[layer.name] = CheckpointLayer(layer.name, part, path, parts[part][f"{path}.weight"], parts[part].get(f"{path}.bias"))
    return named


def alias_names(layers: Mapping[str, CheckpointLayer]) -> Iterator[tuple[str, str]]:
    """(alias, name) of the U-Net's layers: hosts accept diffusers' and the checkpoint's own names."""
    for name, layer in layers.items():
        if layer.part == "unet":
            ldm = layer.weight.key.removeprefix(layout.UNET).removesuffix(".weight")
            for path in (layer.path, ldm):
                if (alias := f"lora_unet_{path.replace('.', '_')}") != name:
                    yield alias, name


def block_of(layer: CheckpointLayer) -> str:
    """The block of a layer: "down 1", "mid", "up 3", "text 4", "text_2 11", or "ends"."""
    blocks = layer.path.split(".")
    if layer.part != "unet":
        return f"{layer.part} {blocks[3]}" if ".layers." in layer.path else f"{layer.part} ends"
    if blocks[0] in ("down_blocks", "up_blocks"):
        return f"{blocks[0].removesuffix('_blocks')} {blocks[1]}"
    return "mid" if blocks[0] == "mid_block" else "ends"
