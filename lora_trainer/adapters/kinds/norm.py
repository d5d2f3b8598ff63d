"""The difference of a normalisation's scale and shift."""

from __future__ import annotations

from torch import Tensor

from lora_trainer.adapters.kinds.base import Tensors
from lora_trainer.adapters.kinds.full import Full


class Norm(Full):
    """A full difference under the names that hosts know for norm layers."""

    name = "norm"
    needed = (frozenset({"w_norm"}),)
    known = frozenset({"w_norm", "b_norm"})
    weight_suffix, bias_suffix = "w_norm", "b_norm"

    def factors(self, tensors: Tensors) -> list[Tensor]:
        """None: a norm's scale is a strength of its own."""
        return []


KIND = Norm()
