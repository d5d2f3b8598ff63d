"""Low-rank pairs up @ down: of a layer's LoRA, or the best of a rank for a matrix (Eckart and Young 1936), with the error."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import attrs
import torch
from torch import Tensor

from lora_trainer.adapters.network_file import ModuleState, delta_of, empty_weight

FULL_SVD_SIDE = 1536
"""Matrices with a smaller side up to this, and large ranks, get a full SVD; others a randomised one (torch.svd_lowrank)."""


@attrs.frozen(eq=False)
class LowRankPair:
    """up [out, rank] @ down [rank, in * kh * kw], float32, as an approximation of a matrix."""

    up: Tensor
    down: Tensor
    norm: float
    """Frobenius norm of the matrix."""
    residual_norm: float = 0.0
    """Frobenius norm of the matrix less the pair's product."""

    @property
    def rank(self) -> int:
        """Rows of down."""
        return self.down.shape[0]

    @property
    def energy(self) -> float:
        """Share of the matrix's squared singular values that the pair keeps, 0 to 1."""
        return 1.0 - (self.residual_norm / self.norm) ** 2 if self.norm else 1.0


@attrs.frozen
class RankTarget:
    """The size of a pair: at most `rank`, and the smallest that keeps the share `energy` of the squared singular values."""

    rank: int
    energy: float = 1.0

    def choose_rank(self, singular_values: Tensor, norm: float) -> int:
        """The rank for descending singular values of a matrix with this Frobenius norm."""
        highest = min(self.rank, len(singular_values))
        if self.energy >= 1.0 or not norm:
            return highest
        energy = torch.cumsum(singular_values.double().square(), 0) / norm**2
        return min(highest, int(torch.searchsorted(energy, torch.tensor(self.energy, dtype=torch.float64))) + 1)


def is_plain(state: ModuleState) -> bool:
    """Whether a layer's network is up @ down and nothing else: no Tucker core, no magnitude."""
    return state.kind.name == "lora" and set(state.tensors) == {"lora_down.weight", "lora_up.weight"}


def pair_of(state: ModuleState) -> LowRankPair:
    """A plain layer's pair, with its scale in up."""
    up, down = state.tensors["lora_up.weight"].float().flatten(1), state.tensors["lora_down.weight"].float().flatten(1)
    return LowRankPair(up * state.scale, down, norm_of_product(up * state.scale, down))


def norm_of_product(up: Tensor, down: Tensor) -> float:
    """Frobenius norm of up @ down, from their small Gram matrices."""
    inner = (up.double().t() @ up.double()) * (down.double() @ down.double().t())
    return max(0.0, float(inner.sum())) ** 0.5


def reduce_pair(pair: LowRankPair, target: RankTarget) -> LowRankPair:
    """The best pair of a lower rank for up @ down, without building the product."""
    left, inner_left = torch.linalg.qr(pair.up.double())
    right, inner_right = torch.linalg.qr(pair.down.double().t())
    u, s, v = torch.linalg.svd(inner_left @ inner_right.t())
    rank, root = target.choose_rank(s, float(s.norm())), s.sqrt()
    up, down = (left @ u[:, :rank]) * root[:rank], root[:rank, None] * (v[:rank] @ right.t())
    return LowRankPair(up.float(), down.float(), float(s.norm()), float(s[rank:].norm()))


def decompose(matrix: Tensor, target: RankTarget) -> LowRankPair:
    """The best pair for a matrix [out, in * kh * kw], by SVD."""
    norm, smaller = float(matrix.double().norm()), min(matrix.shape)
    if smaller <= FULL_SVD_SIDE or target.rank * 4 > smaller:
        u, s, v = torch.linalg.svd(matrix.float(), full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, s, right = torch.svd_lowrank(matrix.float(), q=min(smaller, target.rank * 2 + 16), niter=6)
        v = right.t()
    return _truncate(u, s, v, norm, target)


def whole_pair(matrix: Tensor) -> LowRankPair:
    """A pair of the matrix's own rank: only singular values that are rounding errors of float32 are dropped."""
    u, s, v = torch.linalg.svd(matrix.float(), full_matrices=False)
    noise = float(s[0]) * max(matrix.shape) * torch.finfo(torch.float32).eps
    return _truncate(u, s, v, float(matrix.double().norm()), RankTarget(max(1, int((s > noise).sum()))))


def _truncate(u: Tensor, s: Tensor, v: Tensor, norm: float, target: RankTarget) -> LowRankPair:
    rank, root = target.choose_rank(s, norm), s.sqrt()
    not_computed = max(0.0, norm**2 - float(s.double().square().sum())) if len(s) < min(u.shape[0], v.shape[1]) else 0.0
    residual_norm = (not_computed + float(s[rank:].double().square().sum())) ** 0.5
    return LowRankPair((u[:, :rank] * root[:rank]).float(), (root[:rank, None] * v[:rank]).float(), norm, residual_norm)


def delta_matrix(state: ModuleState, shape: tuple[int, ...]) -> Tensor:
    """A layer's delta at strength 1 as [out, in * kh * kw]; only where `reads_weight` is false."""
    return delta_of(state, empty_weight(shape)).flatten(1)


def lora_state(name: str, pair: LowRankPair, shape: tuple[int, ...], *, scale: float = 1.0) -> dict[str, Tensor]:
    """A pair as a LoRA under sd-scripts' keys. `shape`: that of the layer's weight; `scale`: the file's alpha / rank."""
    out, into, *kernel = shape
    ones = (1,) * len(kernel)
    return {
        f"{name}.alpha": torch.tensor(scale * pair.rank),
        f"{name}.lora_down.weight": pair.down.reshape(pair.rank, into, *kernel).contiguous(),
        f"{name}.lora_up.weight": (pair.up / scale).reshape(out, pair.rank, *ones).contiguous(),
    }


def weight_shape(size: tuple[int, int], kernel: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a layer's weight from its (rows, elements) and its kernel's size, () for a linear layer."""
    rows, elements = size
    return (rows, elements // rows // prod(kernel), *kernel)


def energy_share(pairs: Mapping[str, LowRankPair]) -> float:
    """Share of the squared singular values that all pairs keep together, 0 to 1."""
    total = sum(pair.norm**2 for pair in pairs.values())
    return 1.0 - sum(pair.residual_norm**2 for pair in pairs.values()) / total if total else 1.0
