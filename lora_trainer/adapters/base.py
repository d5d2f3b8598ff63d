"""The contract behind which everything that can be trained hides: the loop, files and states know nothing else of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn

from lora_trainer.adapters.base_weights import MergedNetwork
from lora_trainer.adapters.rng import LayerRng
from lora_trainer.models.bundle import ModelBundle


class Adapter(Protocol):
    """What is trained on a frozen model. Its parts ("unet", "text_encoder") and the order of each part's parameters never change."""

    def attach(self, bundle: ModelBundle, others: Sequence[MergedNetwork] = ()) -> None:
        """Puts it on the bundle's modules, with `others` beside it; their own weights stay as they are.

        Raises ModelError where a module is missing.
        """
        ...

    def detach(self) -> None:
        """Takes it off: the modules compute as before, bit for bit. Does nothing when it is not attached."""
        ...

    def parameters(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """Trainable float32 tensors by part; only parts that are trained."""
        ...

    def lr_weights(self) -> Mapping[str, Sequence[float]]:
        """By part, for each of its parameters a factor of the part's learning rate (block learning rates); 1.0 is the rate itself."""
        ...

    def lora_plus_indices(self, part: str) -> Sequence[int]:
        """Indices of the part's parameters that LoRA+ trains at a rate of their own; empty where there are none."""
        ...

    def using_tensors(self, tensors: Iterable[Sequence[Tensor]], rng: LayerRng | None = None) -> AbstractContextManager[None]:
        """While the block runs, forward passes compute with `tensors` instead of `parameters()`.

        They have the order, shapes and values of the parameters, part after part, in any dtype. With `rng` dropout is active and draws
        from it; without, nothing is random.
        """
        ...

    @property
    def is_random(self) -> bool:
        """Whether a training step draws random numbers from an `rng`."""
        ...

    def clip_weight_norms(self, max_norm: float) -> int:
        """Max-norm regularisation: scales every weight delta whose norm is above `max_norm` down to it; returns how many were."""
        ...

    def untrained_layers(self) -> Mapping[str, Sequence[str]]:
        """By part, the names of layers whose parameters are all as they were initialised, apart from those that dropout may skip."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors of a file, float32 and detached, by their names in it."""
        ...

    def metadata(self) -> dict[str, str]:
        """The entries of a file's header that describe this adapter (`ss_network_*`)."""
        ...
