"""A network at another rank: each layer's best approximation (Eckart and Young 1936), or, for DyLoRA, its first ranks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import torch
from torch import Tensor

from lora_trainer.adapters.files.checked_network import NetworkFile, open_network, read_modules
from lora_trainer.adapters.files.checkpoint_layers import CheckpointLayer, block_of, released_layers
from lora_trainer.adapters.network_file import ModuleState
from lora_trainer.errors import ModelError
from lora_trainer.network_tools import low_rank
from lora_trainer.network_tools.low_rank import RankTarget
from lora_trainer.network_tools.saving import derived_metadata, precision_of, write_network

CONV3X3_NAMES = re.compile(
    r"(conv1|conv2|conv_in|conv_out|downsamplers_0_conv|upsamplers_0_conv|in_layers_2|out_layers_3|_0_op|_[12]_conv)$"
)


@attrs.frozen
class ResizeOptions:
    """Ranks of all layers, of convolutions larger than 1 x 1 (0: as all) and of single blocks ("mid", "up 1"), and the energy to keep."""

    rank: int = 1 << 16
    energy: float = 1.0
    conv_rank: int = 0
    blocks: Mapping[str, int] = attrs.field(factory=dict)
    cut: bool = False
    """Keep the first ranks as they are: for DyLoRA, whose ranks are trained in order."""

    def target_for(self, layer: CheckpointLayer | None, shape: tuple[int, ...]) -> RankTarget:
        """The target of one layer, with this shape of its weight."""
        block = self.blocks.get(block_of(layer)) if layer is not None else None
        spatial = len(shape) == 4 and shape[2:] != (1, 1)
        return RankTarget(block or (self.conv_rank if spatial and self.conv_rank else self.rank), self.energy)


@attrs.frozen
class ResizedLayer:
    """The result of one layer: its rank before and after, and the share of its squared singular values that is kept."""

    name: str
    before: int
    after: int
    energy: float
    residual_norm: float
    """Frobenius norm of the difference, before rounding to the file's dtype."""
    norm: float
    """Frobenius norm of the delta before."""


def resize(path: Path, out: Path, options: ResizeOptions, *, precision: str = "") -> list[ResizedLayer]:
    """Writes a network at other ranks to `out`; layers that are small enough stay the same, bit for bit.

    Kinds other than LoRA become LoRA. `precision`: "float", "fp16", "bf16", "keep"; "": the file's. Raises ModelError for kinds that
    depend on the model's weights.
    """
    file = open_network(path)
    states = read_modules(file)
    _check_blocks(options, file)
    state: dict[str, Tensor] = {}
    resized: list[ResizedLayer] = []
    for name, module in states.items():
        tensors, layer = _resize_layer(name, module, file, options)
        state |= tensors
        resized.append(layer)
    ranks = [layer.after for layer in resized if layer.after]
    alphas = [float(tensor) for key, tensor in state.items() if key.endswith(".alpha")]
    history = {"tool": "resize", "from": path.name, "rank": options.rank if options.rank < 1 << 16 else None, "energy": options.energy}
    write_network(out, state, derived_metadata(file.metadata, ranks, alphas, out, history), precision or precision_of(file))
    return resized


def _resize_layer(name: str, module: ModuleState, file: NetworkFile, options: ResizeOptions) -> tuple[dict[str, Tensor], ResizedLayer]:
    layer = released_layers(file.family).get(name)
    network_module = file.modules[name]
    if module.kind.spec.layers == {"norm"}:
        return _unchanged_state(name, module), ResizedLayer(name, 0, 0, 1.0, 0.0, 0.0)
    if module.reads_weight and module.kind.name != "lora":  # a LoRA's magnitude stays beside the resized pair
        raise ModelError(
            "{name} is of a kind ({kind}) whose effect depends on the model's weights: it has no rank of its own.",
            name=name,
            kind=module.kind.name,
            fix="Merge it into its checkpoint, then extract a LoRA from the two.",
        )
    shape = low_rank.weight_shape(network_module.weight_size, kernel_size(name, network_module.shapes, layer))
    rank, target = network_module.rank, options.target_for(layer, shape)
    if module.kind.name == "lora" and (target.rank >= rank and target.energy >= 1.0):
        norm = low_rank.norm_of_product(*_up_and_down(module)) * module.scale if low_rank.is_plain(module) else 0.0
        return _unchanged_state(name, module), ResizedLayer(name, rank, rank, 1.0, 0.0, norm)
    if options.cut:
        return _take_first_ranks(name, module, rank, target.rank)
    pair = (
        low_rank.reduce_pair(low_rank.pair_of(module), target) if _is_pair(module) else low_rank.decompose(_matrix(module, shape), target)
    )
    scale = module.scale if module.kind.name == "lora" else 1.0
    tensors = low_rank.lora_state(name, pair, shape, scale=scale)
    if "dora_scale" in module.tensors:
        tensors[f"{name}.dora_scale"] = module.tensors["dora_scale"]
    return tensors, ResizedLayer(name, rank, pair.rank, pair.energy, pair.residual_norm, pair.norm)


def _up_and_down(module: ModuleState) -> tuple[Tensor, Tensor]:
    return module.tensors["lora_up.weight"].float().flatten(1), module.tensors["lora_down.weight"].float().flatten(1)


def _is_pair(module: ModuleState) -> bool:
    return module.kind.name == "lora" and "lora_mid.weight" not in module.tensors


def _matrix(module: ModuleState, shape: tuple[int, ...]) -> Tensor:
    without_magnitude = attrs.evolve(
        module, tensors={suffix: tensor for suffix, tensor in module.tensors.items() if suffix != "dora_scale"}
    )
    return low_rank.delta_matrix(without_magnitude, shape)


def _unchanged_state(name: str, module: ModuleState) -> dict[str, Tensor]:
    alpha = {} if not module.kind.spec.saves_alpha else {f"{name}.alpha": torch.tensor(module.alpha)}
    return {**alpha, **{f"{name}.{suffix}": tensor for suffix, tensor in module.tensors.items()}}


def _take_first_ranks(name: str, module: ModuleState, before: int, rank: int) -> tuple[dict[str, Tensor], ResizedLayer]:
    if not low_rank.is_plain(module):
        raise ModelError("{name} is not a plain LoRA: its ranks have no order.", name=name, fix="Leave --cut out.")
    pair = low_rank.pair_of(module)
    tensors = {
        f"{name}.alpha": torch.tensor(module.scale * rank),
        f"{name}.lora_down.weight": module.tensors["lora_down.weight"][:rank].contiguous(),
        f"{name}.lora_up.weight": module.tensors["lora_up.weight"][:, :rank].contiguous(),
    }
    residual_norm = low_rank.norm_of_product(pair.up[:, rank:], pair.down[rank:])
    return tensors, ResizedLayer(name, before, rank, 1.0 - (residual_norm / pair.norm) ** 2 if pair.norm else 1.0, residual_norm, pair.norm)


def kernel_size(name: str, shapes: Mapping[str, tuple[int, ...]], layer: CheckpointLayer | None) -> tuple[int, ...]:
    """(kh, kw) of a layer's kernel, () for a linear layer: the family's own, else inferred from the tensors and the name."""
    if layer is not None and len(layer.shape) != 1:
        return layer.shape[2:]
    if "diff" in shapes:
        return shapes["diff"][2:]
    down = shapes.get("lora_mid.weight", shapes.get("lora_down.weight", ()))
    return down[2:] if down else ((3, 3) if CONV3X3_NAMES.search(name) else ())


def _check_blocks(options: ResizeOptions, file: NetworkFile) -> None:
    layers = released_layers(file.family)
    blocks = {block_of(layers[name]) for name in file.modules if name in layers}
    for block in options.blocks:
        if block not in blocks:
            raise ModelError(
                "the file has no block called {block}.",
                block=block,
                fix="Known are {known}.",
                known=", ".join(_sorted(blocks)),
                path="--block",
            )


def _sorted(names: set[str]) -> Iterator[str]:
    return iter(sorted(names, key=lambda name: (name.split()[0], len(name), name)))
