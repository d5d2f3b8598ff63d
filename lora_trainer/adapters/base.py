"""The one shape behind which everything trainable hides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from lora_trainer.models.bundle import ModelBundle


class Adapter(Protocol):
    """An addition to a model that can be put on, trained, saved and taken off again."""

    multiplier: float

    def attach(self, bundle: ModelBundle) -> None:
        """Puts it on the bundle's modules; their own weights stay as they are."""
        ...

    def detach(self) -> None:
        """Takes it off: the modules are as before, bit for bit."""
        ...

    def parameters(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """Trainable float32 tensors by part: "unet", "text_encoder"."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors under the names of a file."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes tensors of a file. Raises ModelError for names or shapes that do not fit."""
        ...

    def metadata(self) -> dict[str, str]:
        """What a file's header says of this adapter (`ss_network_*`)."""
        ...
