"""A network at another rank: each layer's best pair of fewer ranks (Eckart and Young 1936), or, for DyLoRA, its first ranks cut out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import torch
from torch import Tensor

from lora_trainer.adapters.network_file import ModuleState
from lora_trainer.errors import ModelError
from lora_trainer.network_tools import key_suffixes, low_rank
from lora_trainer.network_tools.checked_network import NetworkFile, open_network, read_modules
from lora_trainer.network_tools.layers import Layer, block_of, stock_layers
from lora_trainer.network_tools.low_rank import Wanted
from lora_trainer.network_tools.saving import made_words, precision_of, write_network

KERNEL = re.compile(r"(conv1|conv2|conv_in|conv_out|downsamplers_0_conv|upsamplers_0_conv|in_layers_2|out_layers_3|_0_op|_[12]_conv)$")


@attrs.frozen
class Resizing:
    """What is wanted: ranks for the whole, for convolutions (0: as the whole) and for single blocks ("mid", "up 1"), or energy."""

    rank: int = 1 << 16
    energy: float = 1.0
    conv_rank: int = 0
    blocks: Mapping[str, int] = attrs.field(factory=dict)
    cut: bool = False
    """Take the first ranks as they are: right for DyLoRA, whose ranks are trained in order."""

    def of(self, layer: Layer | None, shape: tuple[int, ...]) -> Wanted:
        """What is wanted of one layer."""
        block = self.blocks.get(block_of(layer)) if layer is not None else None
        large = len(shape) == 4 and shape[2:] != (1, 1)
        return Wanted(block or (self.conv_rank if large and self.conv_rank else self.rank), self.energy)


@attrs.frozen
class Resized:
    """What became of one layer: its ranks, and the share of the squares of its singular values that is kept."""

    name: str
    before: int
    after: int
    energy: float
    lost: float
    """Frobenius norm of the difference, before the numbers are rounded to the file's format."""
    whole: float


def resize(path: Path, out: Path, wanted: Resizing, *, precision: str = "") -> list[Resized]:
    """Writes a network at other ranks to `out`; layers that are small enough already stay as they are, bit for bit.

    Kinds other than LoRA become LoRA. Raises ModelError for kinds that depend on the model's weights.
    """
    file = open_network(path)
    states = read_modules(file)
    _check_blocks(wanted, file)
    state: dict[str, Tensor] = {}
    told: list[Resized] = []
    for name, module in states.items():
        tensors, line = _resized(name, module, file, wanted)
        state |= tensors
        told.append(line)
    dims = [line.after for line in told if line.after]
    alphas = [float(tensor) for key, tensor in state.items() if key.endswith(".alpha")]
    done = {"tool": "resize", "from": path.name, "rank": wanted.rank if wanted.rank < 1 << 16 else None, "energy": wanted.energy}
    write_network(out, state, made_words(file.words, dims, alphas, out, done), precision or precision_of(file))
    return told


def _resized(name: str, module: ModuleState, file: NetworkFile, wanted: Resizing) -> tuple[dict[str, Tensor], Resized]:
    layer = stock_layers(file.family).get(name)
    held = file.modules[name]
    if held.kind == "norm":
        return _as_it_is(name, module), Resized(name, 0, 0, 1.0, 0.0, 0.0)
    if module.kind.name == "oft" or ("dora_scale" in module.tensors and module.kind.name != "lora"):
        raise ModelError(
            "{name} is of a kind ({kind}) that changes weights by what they are: it has no rank of its own.",
            name=name,
            kind=module.kind.name,
            fix="Merge it into its checkpoint, then extract a LoRA from the two.",
        )
    shape = low_rank.weight_shape(key_suffixes.fit_of(held.kind, held.shapes), places_of(name, held.shapes, layer))
    want = wanted.of(layer, shape)
    if module.kind.name == "lora" and (want.rank >= held.rank and want.energy >= 1.0):
        whole = low_rank.norm_of_product(*_halves(module)) * module.scale if low_rank.is_plain(module) else 0.0
        return _as_it_is(name, module), Resized(name, held.rank, held.rank, 1.0, 0.0, whole)
    if wanted.cut:
        return _cut(name, module, held.rank, want.rank)
    pair = low_rank.of_pair(low_rank.own_pair(module), want) if _is_pair(module) else low_rank.of_matrix(_matrix(module, shape), want)
    scale = module.scale if module.kind.name == "lora" else 1.0
    tensors = low_rank.tensors_of(name, pair, shape, scale=scale)
    if "dora_scale" in module.tensors:
        tensors[f"{name}.dora_scale"] = module.tensors["dora_scale"]
    return tensors, Resized(name, held.rank, pair.rank, pair.energy, pair.lost, pair.whole)


def _halves(module: ModuleState) -> tuple[Tensor, Tensor]:
    return module.tensors["lora_up.weight"].float().flatten(1), module.tensors["lora_down.weight"].float().flatten(1)


def _is_pair(module: ModuleState) -> bool:
    return module.kind.name == "lora" and "lora_mid.weight" not in module.tensors


def _matrix(module: ModuleState, shape: tuple[int, ...]) -> Tensor:
    bare = attrs.evolve(module, tensors={suffix: tensor for suffix, tensor in module.tensors.items() if suffix != "dora_scale"})
    return low_rank.matrix_of(bare, shape)


def _as_it_is(name: str, module: ModuleState) -> dict[str, Tensor]:
    alpha = {} if module.kind.name in ("full", "norm") else {f"{name}.alpha": torch.tensor(module.alpha)}
    return {**alpha, **{f"{name}.{suffix}": tensor for suffix, tensor in module.tensors.items()}}


def _cut(name: str, module: ModuleState, before: int, rank: int) -> tuple[dict[str, Tensor], Resized]:
    if not low_rank.is_plain(module):
        raise ModelError("{name} is no plain LoRA: its ranks have no order.", name=name, fix="Leave --cut out.")
    pair = low_rank.own_pair(module)
    tensors = {
        f"{name}.alpha": torch.tensor(module.scale * rank),
        f"{name}.lora_down.weight": module.tensors["lora_down.weight"][:rank].contiguous(),
        f"{name}.lora_up.weight": module.tensors["lora_up.weight"][:, :rank].contiguous(),
    }
    lost = low_rank.norm_of_product(pair.up[:, rank:], pair.down[rank:])
    return tensors, Resized(name, before, rank, 1.0 - (lost / pair.whole) ** 2 if pair.whole else 1.0, lost, pair.whole)


def places_of(name: str, shapes: Mapping[str, tuple[int, ...]], layer: Layer | None) -> tuple[int, ...]:
    """Sides of a layer's kernel: as the family's own layer has them, else as the tensors and the name tell."""
    if layer is not None and len(layer.shape) != 1:
        return layer.shape[2:]
    if "diff" in shapes:
        return shapes["diff"][2:]
    down = shapes.get("lora_mid.weight", shapes.get("lora_down.weight", ()))
    return down[2:] if down else ((3, 3) if KERNEL.search(name) else ())


def _check_blocks(wanted: Resizing, file: NetworkFile) -> None:
    layers = stock_layers(file.family)
    known = {block_of(layers[name]) for name in file.modules if name in layers}
    for block in wanted.blocks:
        if block not in known:
            raise ModelError(
                "the file has no block called {block}.",
                block=block,
                fix="Known are {known}.",
                known=", ".join(_sorted(known)),
                path="--block",
            )


def _sorted(names: set[str]) -> Iterator[str]:
    return iter(sorted(names, key=lambda name: (name.split()[0], len(name), name)))
