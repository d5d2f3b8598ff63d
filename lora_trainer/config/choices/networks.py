"""Network types and kinds by name, with everything about them that needs no tensors (no torch).

A type is what a user chooses ("dora"); its kind is the arithmetic of one layer ("lora"), in adapters/kinds/KIND.py. A new kind is one
row of NETWORK_KINDS and that file. The shapes of a layer's tensors are declared here, once: the network is built with them, and the
size of its file is computed from them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import isqrt, prod, sqrt
from typing import Any

import attrs

from lora_trainer.errors import TrainerError

Shape = tuple[int, ...]
Options = Mapping[str, Any]
DORA = "dora_scale"
DORA_AXES = ("in", "out")


@attrs.frozen
class LayerShape:
    """Shape of a layer's weight, [out, in(, kh, kw)] or [channels], and whether it has a bias."""

    weight: Shape
    bias: bool = False

    @property
    def type(self) -> str:
        """linear, conv or norm."""
        return {1: "norm", 2: "linear"}.get(len(self.weight), "conv")


@attrs.frozen
class NetworkKind:
    """What is known of one kind without its tensors: which layers it fits, its tensors' suffixes and shapes in a file, its options.

    `layers`: the layer types that it is made for. `options`: all that it reads, with their defaults. `tensor_shapes(layer, rank,
    options)`: suffix -> shape of a layer's tensors.
    """

    name: str
    layers: frozenset[str]
    tensor_shapes: Callable[[LayerShape, int, Options], dict[str, Shape]]
    needed: tuple[tuple[str, ...], ...]
    """Sets of suffixes of which a module holds at least one completely; none where files of this kind are another kind's."""
    optional: tuple[str, ...]
    """Further suffixes that a module may hold, without alpha."""
    zero_init: tuple[str, ...]
    """Tensors that start at zero, so that a fresh network changes nothing."""
    lora_plus: tuple[str, ...] = ()
    """Tensors that LoRA+ gives a learning rate of their own."""
    together: tuple[str, ...] = ()
    """Optional suffixes that a module holds all of, or none."""
    options: Options = attrs.field(factory=dict)
    has_rank: bool = True
    """Whether rank and alpha mean anything."""
    is_low_rank: bool = True
    """Whether the rank limits that of the weight's change; for OFT it is the size of a block."""
    saves_alpha: bool = True
    reads_weight: bool = False
    """Whether the delta depends on the values of the frozen weight, as a rotation's does. DoRA's magnitude makes that of any kind do so."""
    lycoris_algo: str = attrs.field(default=attrs.Factory(lambda self: self.name, takes_self=True))
    """LyCORIS' name of it (`algo`)."""

    @property
    def suffixes(self) -> frozenset[str]:
        """All suffixes that a module of this kind may hold, without alpha."""
        return frozenset(self.optional).union(*self.needed)

    def owns(self, suffixes: Collection[str]) -> bool:
        """Whether a module with these suffixes, without alpha, is of this kind and complete."""
        return self.suffixes.issuperset(suffixes) and any(set(needed) <= set(suffixes) for needed in self.needed)

    def missing(self, suffixes: Collection[str]) -> str:
        """The first suffix that a module lacks, "" where it is complete."""
        closest = max(self.needed, key=lambda needed: sum(suffix in suffixes for suffix in needed))
        if not any(set(needed) <= set(suffixes) for needed in self.needed):
            return next(suffix for suffix in closest if suffix not in suffixes)
        lacking = [suffix for suffix in self.together if suffix not in suffixes]
        return lacking[0] if 0 < len(lacking) < len(self.together) else ""

    def with_defaults(self, options: Options) -> dict[str, Any]:
        """All options, those that are missing at their defaults. Raises TrainerError for one that this kind does not read."""
        unknown = sorted(set(options) - set(self.options))
        if unknown:
            raise TrainerError(
                "the network kind {kind} has no option {name}.", kind=self.name, name=unknown[0], path="network", fix="Leave it out."
            )
        return {**self.options, **options}

    def shapes(self, layer: LayerShape, rank: int, options: Options) -> dict[str, Shape]:
        """Suffix in a file -> shape, in the order of the parameters; without alpha. Raises TrainerError as `with_defaults`."""
        return self.tensor_shapes(layer, rank, self.with_defaults(options))

    def parameter_count(self, layer: LayerShape, rank: int, options: Options) -> int:
        """How many values a file holds for the layer, its alpha included."""
        return sum(prod(shape) for shape in self.shapes(layer, rank, options).values()) + self.saves_alpha


def alpha_in_file(alpha: float, rank: int, options: Options) -> float:
    """The alpha for which alpha / rank is the layer's scale: with rs_lora, alpha sqrt(rank), so that the scale is alpha / sqrt(rank)
    (rsLoRA; Kalajdzievski 2023)."""
    return alpha * sqrt(rank) if options.get("rs_lora") else alpha


def factors(dimension: int, factor: int = -1) -> tuple[int, int]:
    """The two factors of a dimension for a Kronecker product, the smaller first: `factor` itself where it divides the dimension, else the
    two divisors closest to each other of which the smaller is at most `factor` (-1: no limit)."""
    if factor > 0 and dimension % factor == 0:
        return min(factor, dimension // factor), max(factor, dimension // factor)
    most = isqrt(dimension) if factor < 0 else min(factor, isqrt(dimension))
    small = next(number for number in range(max(1, most), 0, -1) if dimension % number == 0)
    return small, dimension // small


def _is_tucker(layer: LayerShape, options: Options) -> bool:
    """Whether the layer's kernel gets a core tensor of its own (Tucker decomposition)."""
    return bool(options.get("tucker")) and any(side != 1 for side in layer.weight[2:])


def _with_magnitude(shapes: dict[str, Shape], layer: LayerShape, options: Options) -> dict[str, Shape]:
    if not options.get("dora"):
        return shapes
    out, into, *kernel = layer.weight
    ones = (1,) * len(kernel)
    return {**shapes, DORA: (1, into, *ones) if options["dora"] == "in" else (out, 1, *ones)}


def _lora(layer: LayerShape, rank: int, options: Options) -> dict[str, Shape]:
    out, into, *kernel = layer.weight
    ones = (1,) * len(kernel)
    if _is_tucker(layer, options):
        shapes = {"lora_down.weight": (rank, into, *ones), "lora_mid.weight": (rank, rank, *kernel), "lora_up.weight": (out, rank, *ones)}
    else:
        shapes = {"lora_down.weight": (rank, into, *kernel), "lora_up.weight": (out, rank, *ones)}
    return _with_magnitude(shapes, layer, options)


def _loha(layer: LayerShape, rank: int, options: Options) -> dict[str, Shape]:
    out, into, *kernel = layer.weight
    if _is_tucker(layer, options):
        shapes: dict[str, Shape] = {}
        for n in (1, 2):
            shapes |= {f"hada_t{n}": (rank, rank, *kernel), f"hada_w{n}_a": (rank, out), f"hada_w{n}_b": (rank, into)}
    else:
        wide = into * prod(kernel)
        shapes = {"hada_w1_a": (out, rank), "hada_w1_b": (rank, wide), "hada_w2_a": (out, rank), "hada_w2_b": (rank, wide)}
    return _with_magnitude(shapes, layer, options)


def _lokr(layer: LayerShape, rank: int, options: Options) -> dict[str, Shape]:
    out, into, *kernel = layer.weight
    (small_in, large_in), (small_out, large_out) = factors(into, options["factor"]), factors(out, options["factor"])
    full_matrix = bool(options["full_matrix"])
    shapes: dict[str, Shape] = {}
    if options["decompose_both"] and rank < max(small_out, small_in) / 2 and not full_matrix:
        shapes |= {"lokr_w1_a": (small_out, rank), "lokr_w1_b": (rank, small_in)}
    else:
        shapes |= {"lokr_w1": (small_out, small_in)}
    if rank >= max(large_out, large_in) / 2 or full_matrix:
        shapes |= {"lokr_w2": (large_out, large_in, *kernel)}
    elif _is_tucker(layer, options):
        shapes |= {"lokr_t2": (rank, rank, *kernel), "lokr_w2_a": (rank, large_out), "lokr_w2_b": (rank, large_in)}
    else:
        shapes |= {"lokr_w2_a": (large_out, rank), "lokr_w2_b": (rank, large_in * prod(kernel))}
    return _with_magnitude(shapes, layer, options)


def _full(layer: LayerShape, rank: int, options: Options) -> dict[str, Shape]:
    return {"diff": layer.weight, **({"diff_b": layer.weight[:1]} if layer.bias and options["bias"] else {})}


def _norm(layer: LayerShape, rank: int, options: Options) -> dict[str, Shape]:
    return {"w_norm": layer.weight, **({"b_norm": layer.weight} if layer.bias else {})}


def _oft(layer: LayerShape, rank: int, options: Options) -> dict[str, Shape]:
    size, count = factors(layer.weight[0], rank)
    rescale = {"rescale": (layer.weight[0], *(1 for _ in layer.weight[1:]))} if options["rescaled"] else {}
    return {"oft_blocks": (count, size, size), **rescale}


WEIGHTS = frozenset({"linear", "conv"})
LORA_UP = ("lora_up.weight",)
COMMON = {"rs_lora": False, "dora": "", "tucker": False, "rank_dropout": 0.0, "module_dropout": 0.0}
NETWORK_KINDS = {
    kind.name: kind
    for kind in (
        NetworkKind(
            "lora",
            WEIGHTS,
            _lora,
            needed=(("lora_down.weight", "lora_up.weight"),),
            optional=("lora_mid.weight", DORA),
            zero_init=LORA_UP,
            lora_plus=LORA_UP,
            options={**COMMON, "dropout": 0.0, "init": ""},
            lycoris_algo="locon",
        ),
        NetworkKind(
            "loha",
            WEIGHTS,
            _loha,
            needed=(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),),
            optional=("hada_t1", "hada_t2", DORA),
            together=("hada_t1", "hada_t2"),
            zero_init=("hada_w2_a",),
            lora_plus=("hada_w2_a",),
            options=COMMON,
        ),
        NetworkKind(
            "lokr",
            WEIGHTS,
            _lokr,
            needed=tuple(
                (*w1, *w2) for w1 in (("lokr_w1_a", "lokr_w1_b"), ("lokr_w1",)) for w2 in (("lokr_w2_a", "lokr_w2_b"), ("lokr_w2",))
            ),
            optional=("lokr_t2", DORA),
            zero_init=("lokr_w2", "lokr_w2_b"),
            lora_plus=("lokr_w2", "lokr_w2_b"),
            options={**COMMON, "factor": -1, "decompose_both": False, "full_matrix": False},
        ),
        NetworkKind(
            "dylora",
            WEIGHTS,
            _lora,
            needed=(),  # its files are LoRA's
            optional=("lora_down.weight", "lora_mid.weight", "lora_up.weight", DORA),
            zero_init=LORA_UP,
            lora_plus=LORA_UP,
            options={"rs_lora": False, "module_dropout": 0.0, "block_size": 4},
        ),
        NetworkKind(
            "oft",
            WEIGHTS,
            _oft,
            needed=(("oft_blocks",),),
            optional=("rescale",),
            zero_init=("oft_blocks",),
            options={"module_dropout": 0.0, "constraint": 0.0, "rescaled": False},
            is_low_rank=False,
            reads_weight=True,
            lycoris_algo="diag-oft",
        ),
        NetworkKind(
            "full",
            WEIGHTS,
            _full,
            needed=(("diff",),),
            optional=("diff_b",),
            zero_init=("diff", "diff_b"),
            options={"module_dropout": 0.0, "bias": True},
            has_rank=False,
            is_low_rank=False,
            saves_alpha=False,
        ),
        NetworkKind(
            "norm",
            frozenset({"norm"}),
            _norm,
            needed=(("w_norm",),),
            optional=("b_norm",),
            zero_init=("w_norm", "b_norm"),
            has_rank=False,
            is_low_rank=False,
            saves_alpha=False,
        ),
    )
}


@attrs.frozen
class NetworkType:
    """What `network.type` can be. `conv`: convolutions larger than 1 x 1 are trained as well, unless the config says otherwise.

    `cost`: what a step costs compared with LoRA on the same layers, in words; `fixed`: options that define the type.
    """

    name: str
    label: str
    kind: str
    help: str
    good_for: str
    cost: str
    conv: bool = False
    fixed: Options = attrs.field(factory=dict)


NETWORK_TYPES = {
    row.name: row
    for row in (
        NetworkType(
            "lora",
            "LoRA",
            "lora",
            "Two small matrices are added to each attention layer.",
            "The usual choice: people, objects, most styles. Every host and tool reads it.",
            "It costs the least.",
        ),
        NetworkType(
            "locon",
            "LoCon",
            "lora",
            "LoRA that trains the convolutions too.",
            "Good for styles and fine textures, which the convolutions draw.",
            "More layers, so somewhat longer steps and a larger file.",
            conv=True,
        ),
        NetworkType(
            "loha",
            "LoHa",
            "loha",
            "The element-wise product of two low-rank matrices: a high rank from few values.",
            "Good for several subjects or styles in one file. It changes the model gently.",
            "Each layer's whole delta is computed at every step.",
            conv=True,
        ),
        NetworkType(
            "lokr",
            "LoKr",
            "lokr",
            "A Kronecker product of a small and a larger matrix.",
            "Good for very small files, or with a small factor and the full matrix for a faithful likeness.",
            "It costs little with small factors.",
            conv=True,
        ),
        NetworkType(
            "dylora",
            "DyLoRA",
            "dylora",
            "LoRA that is trained at many ranks at once: any smaller rank can be cut out of the file afterwards.",
            "Good for finding a sufficient rank. It learns more slowly: each step trains one slice.",
            "It costs what LoRA costs.",
        ),
        NetworkType(
            "dora",
            "DoRA",
            "lora",
            "LoRA that learns the direction and the magnitude of the weights separately.",
            "Good for fidelity at low ranks.",
            "The norm of each changed weight is computed at every step.",
            fixed={"dora": "in"},
        ),
        NetworkType(
            "rslora",
            "rsLoRA",
            "lora",
            "LoRA whose strength is alpha divided by the root of the rank.",
            "Good for high ranks, at which an ordinary LoRA gets weaker.",
            "It costs what LoRA costs.",
            fixed={"rs_lora": True},
        ),
        NetworkType(
            "oft",
            "OFT",
            "oft",
            "Rotates the outputs of each layer in small blocks instead of adding to them.",
            "Good for keeping the model's own composition while a subject is learned.",
            "A rotation is computed for each layer at every step.",
        ),
        NetworkType(
            "full",
            "Full difference",
            "full",
            "The whole difference of each weight, without a limit on the rank.",
            "Good for large sets of pictures; the closest to fine-tuning. Rank and alpha have no meaning.",
            "Memory and the file are as large as the layers themselves.",
        ),
    )
}
"""Types in the order of the form. Norm layers are trained along with any of them (`train_norm`)."""
