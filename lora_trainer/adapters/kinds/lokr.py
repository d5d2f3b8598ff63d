"""LoKr: the Kronecker product of a small matrix and a larger one, each of which may be low-rank itself (Edalati et al. 2022)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_trainer.adapters.base_layer import BaseLayer
from lora_trainer.adapters.dora import MAGNITUDE, init_magnitude
from lora_trainer.adapters.kinds.base import AdapterLayer, Forward, HasShape, Shapes, Tensors, factor_size, kaiming_
from lora_trainer.adapters.kinds.loha import tucker_weight
from lora_trainer.adapters.kinds.product import ProductKind
from lora_trainer.adapters.layer_plan import LayerPlan

W1, W1_A, W1_B, W2, W2_A, W2_B, T2 = "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"


class Lokr(ProductKind):
    """W' = W + alpha / rank * w1 (x) w2, the Kronecker product; scale 1 where both matrices are whole.

    Tensors, with out = out1 * out2 and in = in1 * in2: lokr_w1 [out1, in1], or lokr_w1_a [out1, rank] @ lokr_w1_b [rank, in1];
    lokr_w2 [out2, in2(, kh, kw)], or lokr_w2_a [out2, rank] @ lokr_w2_b [rank, in2 * kh * kw], or with `tucker`
    lokr_t2 [rank, rank, kh, kw], lokr_w2_a [rank, out2], lokr_w2_b [rank, in2]. dora_scale: see adapters/dora.py.

    Options: `factor` (out1 and in1; -1: near the square root), `decompose_both` (w1 is low-rank too), `full_matrix` (w2 is whole),
    `rs_lora`, `dora`, `tucker`, `rank_dropout`, `module_dropout`. Source: Edalati et al. 2022 (KronA), https://arxiv.org/abs/2212.10650;
    the layout is LyCORIS' (Yeh et al. 2023, https://arxiv.org/abs/2309.14859)
    """

    name = "lokr"

    def rank(self, tensors: Mapping[str, HasShape]) -> int:
        """The rank of the low-rank part; 1 where both matrices are whole."""
        low_rank = tensors.get(W2_B, tensors.get(W1_B))
        return 1 if low_rank is None else int(low_rank.shape[0])

    def has_rank(self, suffixes: Collection[str]) -> bool:
        """Not where both matrices are whole."""
        return not (W1 in suffixes and W2 in suffixes)

    def scale(self, tensors: Tensors, alpha: float) -> float:
        """alpha / rank; 1 where both matrices are whole."""
        return alpha / self.rank(tensors) if self.has_rank(tensors) else 1.0

    def alpha_in_file(self, layer: LayerPlan, tensors: Tensors) -> float:
        """The rank where both matrices are whole, so that every reader gets a scale of 1."""
        return super().alpha_in_file(layer, tensors) if self.has_rank(tensors) else float(layer.rank)

    def weight_size(self, shapes: Shapes) -> tuple[int, int]:
        """(rows, elements) of the Kronecker product: those of w1 times those of w2."""
        sizes = []
        for whole, a, b, core in ((W1, W1_A, W1_B, None), (W2, W2_A, W2_B, T2)):
            if whole in shapes:
                shape = shapes[whole]
                sizes.append((shape[0], prod(shape)) if len(shape) >= 2 else (0, 0))
            else:
                sizes.append(factor_size(shapes[a], shapes[b], shapes.get(core) if core else None))
        (rows1, elements1), (rows2, elements2) = sizes
        return rows1 * rows2, elements1 * elements2

    def init_tensors(self, tensors: Mapping[str, nn.Parameter], base: BaseLayer, layer: LayerPlan, generator: torch.Generator) -> None:
        """Kaiming; w2, or its second factor, is zero."""
        for suffix in (T2, W2_A, W1, W1_A, W1_B):
            if suffix in tensors:
                kaiming_(tensors[suffix], generator)
        init_magnitude(tensors, base)

    def product(self, tensors: Tensors, weight: Tensor) -> Tensor:
        """w1 (x) w2 in the weight's shape."""
        w1, w2 = w1_of(tensors), w2_of(tensors, weight)
        ones = (1,) * (w2.dim() - 2)
        return torch.kron(w1.reshape(*w1.shape, *ones), w2.contiguous()).reshape(weight.shape)

    def forward(self, base: BaseLayer, layer: AdapterLayer) -> Forward:
        """Applies w2, then w1, which never builds the large matrix; a magnitude and rank dropout need the whole delta."""
        if MAGNITUDE in layer.parameters or layer.options["rank_dropout"]:
            return super().forward(base, layer)
        apply_delta = _linear if base.is_linear else _convolution

        def separate(x: Tensor) -> Tensor:
            output = base.forward(x)
            return torch.add(output, apply_delta(base, layer.compute_dict(), x), alpha=layer.strength)

        return separate


def _linear(base: BaseLayer, tensors: Tensors, x: Tensor) -> Tensor:
    """x as [..., in1, in2]: w2 on the right, w1 on the left."""
    w1 = w1_of(tensors)
    table = x.reshape(-1, w1.shape[1], x.shape[-1] // w1.shape[1])
    if W2 in tensors:
        rows = functional.linear(table, tensors[W2])
    else:
        rows = functional.linear(functional.linear(table, tensors[W2_B]), tensors[W2_A])
    return torch.matmul(w1, rows).reshape(*x.shape[:-1], -1)


def _convolution(base: BaseLayer, tensors: Tensors, x: Tensor) -> Tensor:
    """x [batch, in1 * in2, h, w]: w2 over each of the in1 groups of channels, then w1 between the groups."""
    w1, (batch, _, *size) = w1_of(tensors), x.shape
    groups = x.reshape(batch * w1.shape[1], -1, *size)
    if W2 in tensors:
        rows = base.operation(groups, tensors[W2], None)
    elif T2 in tensors:
        inner = base.operation(functional.conv2d(groups, as_conv1x1(tensors[W2_B])), tensors[T2], None)
        rows = functional.conv2d(inner, as_conv1x1(tensors[W2_A].t()))
    else:
        down, up = tensors[W2_B], tensors[W2_A]
        inner = base.operation(groups, down.reshape(down.shape[0], -1, *base.weight.shape[2:]), None)
        rows = functional.conv2d(inner, as_conv1x1(up))
    mixed = torch.matmul(w1, rows.reshape(batch, w1.shape[1], -1))
    return mixed.reshape(batch, -1, *rows.shape[2:])


def as_conv1x1(matrix: Tensor) -> Tensor:
    """[out, in] as the weight of a 1 x 1 convolution, [out, in, 1, 1]."""
    return matrix[:, :, None, None]


def w1_of(tensors: Tensors) -> Tensor:
    """w1 [out1, in1]."""
    return tensors[W1] if W1 in tensors else tensors[W1_A] @ tensors[W1_B]


def w2_of(tensors: Tensors, weight: Tensor) -> Tensor:
    """w2 [out2, in2(, kh, kw)]."""
    if W2 in tensors:
        return tensors[W2]
    if T2 in tensors:
        return tucker_weight(tensors[T2], tensors[W2_A], tensors[W2_B])
    return (tensors[W2_A] @ tensors[W2_B]).reshape(tensors[W2_A].shape[0], -1, *weight.shape[2:])


KIND = Lokr()
