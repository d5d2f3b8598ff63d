"""Low-rank pairs: what a layer adds as up @ down, the best pair of a rank for a matrix, and how much of it that holds."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import attrs
import torch
from torch import Tensor

from lora_trainer.adapters.network_file import ModuleState, delta_of, empty_weight

WHOLE_SVD = 1536
"""Up to this smaller side, or where much of it is wanted, a matrix is taken apart whole; else its largest directions are sought."""


@attrs.frozen(eq=False)
class Pair:
    """up [out, rank] @ down [rank, in * places], float32; what it lacks of the matrix that it stands for is `lost` (Frobenius norm)."""

    up: Tensor
    down: Tensor
    whole: float
    """Frobenius norm of the matrix that it stands for."""
    lost: float = 0.0

    @property
    def rank(self) -> int:
        """Rows of the lower matrix."""
        return self.down.shape[0]

    @property
    def energy(self) -> float:
        """Which share of the squares of the singular values it holds."""
        return 1.0 - (self.lost / self.whole) ** 2 if self.whole else 1.0


@attrs.frozen
class Wanted:
    """How small a pair is to be: at most `rank`, and, where `energy` is given, no larger than holds that share of the squares."""

    rank: int
    energy: float = 1.0

    def of(self, values: Tensor, whole: float) -> int:
        """The rank for singular values in falling order, of a matrix of this Frobenius norm."""
        most = min(self.rank, len(values))
        if self.energy >= 1.0 or not whole:
            return most
        held = torch.cumsum(values.double().square(), 0) / whole**2
        return min(most, int(torch.searchsorted(held, torch.tensor(self.energy, dtype=torch.float64))) + 1)


def is_plain(state: ModuleState) -> bool:
    """Whether a layer's network is one low-rank pair that is added, and nothing else."""
    return state.kind.name == "lora" and set(state.tensors) == {"lora_down.weight", "lora_up.weight"}


def own_pair(state: ModuleState) -> Pair:
    """A plain layer's pair with its scale in the upper matrix."""
    up, down = state.tensors["lora_up.weight"].float().flatten(1), state.tensors["lora_down.weight"].float().flatten(1)
    return Pair(up * state.scale, down, norm_of_product(up * state.scale, down))


def norm_of_product(up: Tensor, down: Tensor) -> float:
    """Frobenius norm of up @ down, by their small Gram matrices."""
    inner = (up.double().t() @ up.double()) * (down.double() @ down.double().t())
    return max(0.0, float(inner.sum())) ** 0.5


def of_pair(pair: Pair, wanted: Wanted) -> Pair:
    """The best pair of fewer ranks for up @ down; the product itself is never built."""
    left, inner_left = torch.linalg.qr(pair.up.double())
    right, inner_right = torch.linalg.qr(pair.down.double().t())
    u, s, v = torch.linalg.svd(inner_left @ inner_right.t())
    rank, root = wanted.of(s, float(s.norm())), s.sqrt()
    up, down = (left @ u[:, :rank]) * root[:rank], root[:rank, None] * (v[:rank] @ right.t())
    return Pair(up.float(), down.float(), float(s.norm()), float(s[rank:].norm()))


def of_matrix(matrix: Tensor, wanted: Wanted) -> Pair:
    """The best pair for a matrix [out, in * places]."""
    whole, smaller = float(matrix.double().norm()), min(matrix.shape)
    if smaller <= WHOLE_SVD or wanted.rank * 4 > smaller:
        u, s, v = torch.linalg.svd(matrix.float(), full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, s, right = torch.svd_lowrank(matrix.float(), q=min(smaller, wanted.rank * 2 + 16), niter=6)
        v = right.t()
    return _cut(u, s, v, whole, wanted)


def _cut(u: Tensor, s: Tensor, v: Tensor, whole: float, wanted: Wanted) -> Pair:
    rank, root = wanted.of(s, whole), s.sqrt()
    beyond = max(0.0, whole**2 - float(s.double().square().sum())) if len(s) < min(u.shape[0], v.shape[1]) else 0.0
    lost = (beyond + float(s[rank:].double().square().sum())) ** 0.5
    return Pair((u[:, :rank] * root[:rank]).float(), (root[:rank, None] * v[:rank]).float(), whole, lost)


def reads_weights(state: ModuleState) -> bool:
    """Whether what it adds depends on the layer's own weight: DoRA and OFT."""
    return "dora_scale" in state.tensors or state.kind.name == "oft"


def matrix_of(state: ModuleState, shape: tuple[int, ...]) -> Tensor:
    """What a layer adds at strength 1 as [out, in * places]; only for kinds that do not read the layer's weight."""
    return delta_of(state, empty_weight(shape)).flatten(1)


def tensors_of(name: str, pair: Pair, shape: tuple[int, ...], *, scale: float = 1.0) -> dict[str, Tensor]:
    """A pair under sd-scripts' keys: `shape` is the layer's weight's, `scale` what alpha / rank is to be."""
    out, inner, *places = shape
    ones = (1,) * len(places)
    return {
        f"{name}.alpha": torch.tensor(scale * pair.rank),
        f"{name}.lora_down.weight": pair.down.reshape(pair.rank, inner, *places).contiguous(),
        f"{name}.lora_up.weight": (pair.up / scale).reshape(out, pair.rank, *ones).contiguous(),
    }


def weight_shape(fit: tuple[int, int], places: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a layer's weight from (rows, numbers) and its kernel's sides."""
    rows, count = fit
    return (rows, count // rows // prod(places), *places)


def shares(pairs: Mapping[str, Pair]) -> float:
    """Which share of the squares all pairs hold together."""
    whole = sum(pair.whole**2 for pair in pairs.values())
    return 1.0 - sum(pair.lost**2 for pair in pairs.values()) / whole if whole else 1.0
