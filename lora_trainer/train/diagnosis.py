"""Why a run has lost its numbers, and what to do: from what the network has become, the number format and the loss."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from lora_trainer.config.schema import LossConfig
from lora_trainer.messages import Message, say

GROWN = 5.0
"""Numbers of a network stay around 1 and below; one of this size means that steps were far too long."""
HEAVY = 50.0
"""A weight of the loss that makes single pictures count so many times as much."""
LEAST_SIGNAL = 0.0047
"""Signal to noise at the last step of Stable Diffusion 1.x."""


def largest(network: Iterable[Tensor]) -> float:
    """The largest number of the network without its sign; infinite where one is no number."""
    found = [float(tensor.detach().abs().max()) for tensor in network if tensor.numel()]
    return max((size if math.isfinite(size) else math.inf for size in found), default=0.0)


def remedy(precision: str, size: float, loss: LossConfig) -> Message:
    """The most likely cause, with what to do. `size` is the network's largest number, `precision` no, fp16 or bf16."""
    if size > GROWN:
        return say(
            "The network's numbers have grown to {size}: the learning rate is far too high. Take a tenth of it or less.", size=_shown(size)
        )
    if precision == "fp16":
        return say('Set memory.mixed_precision to "bf16" or "no": fp16 knows no large numbers, and some cards are wrong with it.')
    if (times := 1.0 + loss.v_pred_like_loss * (1.0 + 1.0 / LEAST_SIGNAL)) > HEAVY:
        return say("loss.v_pred_like_loss makes very noisy pictures count {times} times: take a smaller value.", times=round(times))
    return say("Use a lower learning rate. Where that does not help, the model or the VAE is damaged: try another file.")


def _shown(size: float) -> str:
    return f"{size:.0f}" if size < 1e6 else f"{size:.0e}"
