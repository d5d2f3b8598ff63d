"""The difference of a normalisation layer's weight and bias."""

from __future__ import annotations

from torch import Tensor

from lora_trainer.adapters.kinds.base import Tensors
from lora_trainer.adapters.kinds.full import Full


class Norm(Full):
    """w' = w + w_norm, b' = b + b_norm: a full difference, under the names that hosts read for norm layers.

    Tensors: w_norm [channels], b_norm [channels]; both start at zero. Source: LyCORIS' `train_norm`.
    """

    name = "norm"
    weight_suffix, bias_suffix = "w_norm", "b_norm"

    def factors(self, tensors: Tensors) -> list[Tensor]:
        """None: max-norm leaves norm layers alone."""
        return []


KIND = Norm()
