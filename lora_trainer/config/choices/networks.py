"""Networks by name: what people, the form, the plan and a file's size need to know of them (no torch).

A type is what a user chooses ("dora"); its kind is the arithmetic of one layer ("lora"), in adapters/kinds/KIND.py. The shapes of a
layer's tensors are written down here, once: the network is made with them, and its size is told by them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isqrt, prod, sqrt
from typing import Any

import attrs

from lora_trainer.errors import TrainerError

Shape = tuple[int, ...]
Options = Mapping[str, Any]
DORA_AXES = ("in", "out")
ALPHA_NUMBERS = 1


@attrs.frozen
class LayerShape:
    """What the size of an addition depends on: the shape of the layer's weight, [out, in(, kh, kw)] or [channels], and its bias."""

    weight: Shape
    bias: bool = False

    @property
    def type(self) -> str:
        """linear, conv or norm."""
        return {1: "norm", 2: "linear"}.get(len(self.weight), "conv")


@attrs.frozen
class NetworkKind:
    """The arithmetic of one layer, by name. `options` are all that it reads, with their defaults.

    `zero`: tensors that begin at zero, so that a fresh network changes nothing. `upper`: those that LoRA+ gives a rate of their own.
    """

    name: str
    layers: frozenset[str]
    make: Callable[[LayerShape, int, Options], dict[str, Shape]]
    zero: tuple[str, ...]
    upper: tuple[str, ...] = ()
    options: Options = attrs.field(factory=dict)
    ranked: bool = True
    """Whether rank and alpha say anything of it."""
    always_alpha: bool = True

    def settings(self, options: Options) -> dict[str, Any]:
        """All options, those that are not given at their defaults. Raises TrainerError for one that this kind does not read."""
        unknown = sorted(set(options) - set(self.options))
        if unknown:
            raise TrainerError(
                "the network kind {kind} has no option {name}.", kind=self.name, name=unknown[0], path="network", fix="Leave it out."
            )
        return {**self.options, **options}

    def shapes(self, layer: LayerShape, rank: int, options: Options) -> dict[str, Shape]:
        """Suffix in a file -> shape, in the order of the parameters; without alpha."""
        return self.make(layer, rank, self.settings(options))

    def numbers(self, layer: LayerShape, rank: int, options: Options) -> int:
        """How many numbers a file holds of the layer, its alpha with them."""
        return sum(prod(shape) for shape in self.shapes(layer, rank, options).values()) + (ALPHA_NUMBERS if self.always_alpha else 0)


def alpha_in_file(alpha: float, rank: int, options: Options) -> float:
    """The alpha that makes alpha / rank the layer's scale: rank-stabilised, alpha / sqrt(rank) (Kalajdzievski 2023)."""
    return alpha * sqrt(rank) if options.get("rs_lora") else alpha


def factors(dimension: int, factor: int = -1) -> tuple[int, int]:
    """The two factors of a dimension for a Kronecker product, the smaller first: `factor` itself where it divides it, else the divisors
    nearest to each other of which the smaller is at most `factor` (-1: any)."""
    if factor > 0 and dimension % factor == 0:
        return min(factor, dimension // factor), max(factor, dimension // factor)
    most = isqrt(dimension) if factor < 0 else min(factor, isqrt(dimension))
    small = next(number for number in range(max(1, most), 0, -1) if dimension % number == 0)
    return small, dimension // small


def _spatial(layer: LayerShape, options: Options) -> bool:
    """Whether a layer is taken apart by its place too (Tucker)."""
    return bool(options.get("tucker")) and any(side != 1 for side in layer.weight[2:])


def _with_magnitude(made: dict[str, Shape], layer: LayerShape, options: Options) -> dict[str, Shape]:
    if not options.get("dora"):
        return made
    out, into, *places = layer.weight
    ones = (1,) * len(places)
    return {**made, "dora_scale": (1, into, *ones) if options["dora"] == "in" else (out, 1, *ones)}


def _lora(layer: LayerShape, rank: int, options: Options) -> dict[str, Shape]:
    out, into, *places = layer.weight
    ones = (1,) * len(places)
    if _spatial(layer, options):
        made = {"lora_down.weight": (rank, into, *ones), "lora_mid.weight": (rank, rank, *places), "lora_up.weight": (out, rank, *ones)}
    else:
        made = {"lora_down.weight": (rank, into, *places), "lora_up.weight": (out, rank, *ones)}
    return _with_magnitude(made, layer, options)


def _loha(layer: LayerShape, rank: int, options: Options) -> dict[str, Shape]:
    out, into, *places = layer.weight
    if _spatial(layer, options):
        pair = {"t": (rank, rank, *places), "a": (rank, out), "b": (rank, into)}
        made = {f"hada_{'t' if word == 't' else 'w'}{n}{'' if word == 't' else '_' + word}": pair[word] for n in (1, 2) for word in "tab"}
    else:
        wide = into * prod(places)
        made = {"hada_w1_a": (out, rank), "hada_w1_b": (rank, wide), "hada_w2_a": (out, rank), "hada_w2_b": (rank, wide)}
    return _with_magnitude(made, layer, options)


def _lokr(layer: LayerShape, rank: int, options: Options) -> dict[str, Shape]:
    out, into, *places = layer.weight
    (small_in, large_in), (small_out, large_out) = factors(into, options["factor"]), factors(out, options["factor"])
    whole = bool(options["full_matrix"])
    made: dict[str, Shape] = {}
    if options["decompose_both"] and rank < max(small_out, small_in) / 2 and not whole:
        made |= {"lokr_w1_a": (small_out, rank), "lokr_w1_b": (rank, small_in)}
    else:
        made |= {"lokr_w1": (small_out, small_in)}
    if rank >= max(large_out, large_in) / 2 or whole:
        made |= {"lokr_w2": (large_out, large_in, *places)}
    elif _spatial(layer, options):
        made |= {"lokr_t2": (rank, rank, *places), "lokr_w2_a": (rank, large_out), "lokr_w2_b": (rank, large_in)}
    else:
        made |= {"lokr_w2_a": (large_out, rank), "lokr_w2_b": (rank, large_in * prod(places))}
    return _with_magnitude(made, layer, options)


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
        NetworkKind("lora", WEIGHTS, _lora, LORA_UP, LORA_UP, {**COMMON, "dropout": 0.0, "init": ""}),
        NetworkKind("loha", WEIGHTS, _loha, ("hada_w2_a",), ("hada_w2_a",), COMMON),
        NetworkKind(
            "lokr",
            WEIGHTS,
            _lokr,
            ("lokr_w2", "lokr_w2_b"),
            ("lokr_w2", "lokr_w2_b"),
            {**COMMON, "factor": -1, "decompose_both": False, "full_matrix": False},
        ),
        NetworkKind("dylora", WEIGHTS, _lora, LORA_UP, LORA_UP, {"rs_lora": False, "module_dropout": 0.0, "block_size": 4}),
        NetworkKind("oft", WEIGHTS, _oft, ("oft_blocks",), (), {"module_dropout": 0.0, "constraint": 0.0, "rescaled": False}),
        NetworkKind(
            "full", WEIGHTS, _full, ("diff", "diff_b"), (), {"module_dropout": 0.0, "bias": True}, ranked=False, always_alpha=False
        ),
        NetworkKind("norm", frozenset({"norm"}), _norm, ("w_norm", "b_norm"), (), {}, ranked=False, always_alpha=False),
    )
}


@attrs.frozen
class NetworkType:
    """What `network.type` can be. `conv`: its convolutions of more than one place are trained as well, unless the config says otherwise.

    `cost`: what a step takes beside that of LoRA with the same layers, in words; `fixed`: options that make it what it is.
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
            "LoRA whose convolutions learn too.",
            "Good for styles and fine textures, which the convolutions draw.",
            "More layers, so somewhat longer steps and a larger file.",
            conv=True,
        ),
        NetworkType(
            "loha",
            "LoHa",
            "loha",
            "The product, number by number, of two low-rank matrices: a high rank from few numbers.",
            "Good for several subjects or styles in one file. It changes the model gently.",
            "Each layer's whole addition is calculated at every step.",
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
            "Good for finding the rank that suffices. It learns more slowly: each step trains one slice.",
            "It costs what LoRA costs.",
        ),
        NetworkType(
            "dora",
            "DoRA",
            "lora",
            "LoRA that learns direction and strength of the weights apart.",
            "Good for fidelity at low ranks.",
            "The norm of each changed weight is calculated at every step.",
            fixed={"dora": "in"},
        ),
        NetworkType(
            "rslora",
            "rsLoRA",
            "lora",
            "LoRA whose strength is alpha divided by the root of the rank.",
            "Good for high ranks, which an ordinary LoRA makes weaker the higher they are.",
            "It costs what LoRA costs.",
            fixed={"rs_lora": True},
        ),
        NetworkType(
            "oft",
            "OFT",
            "oft",
            "Turns the outputs of each layer in small blocks instead of adding to them.",
            "Good for keeping the model's own composition while a subject is learned.",
            "A rotation is solved for each layer at every step.",
        ),
        NetworkType(
            "full",
            "Full difference",
            "full",
            "The whole difference of each weight, without a limit of rank.",
            "Good for large sets of pictures; the closest to fine-tuning. Rank and alpha have no meaning.",
            "Memory and the file are as large as the layers themselves.",
        ),
    )
}
"""Types in the order of the form. Norm layers are trained along with any of them (`train_norm`)."""
