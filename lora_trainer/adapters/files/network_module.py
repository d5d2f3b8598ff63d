"""One layer's network in a file, before its tensors are read."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from lora_trainer.adapters.files import naming
from lora_trainer.adapters.kinds import kind_named
from lora_trainer.models.files.tensor_file import TensorInfo


@attrs.frozen
class NetworkModule:
    """One layer's network: `keys` (names in the file) and `entries` (dtype and shape) by sd-scripts' suffix."""

    name: str
    kind: str
    keys: Mapping[str, str]
    entries: Mapping[str, TensorInfo]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Suffix -> shape."""
        return {suffix: entry.shape for suffix, entry in self.entries.items()}

    @property
    def rank(self) -> int:
        """0 where the kind has none."""
        return kind_named(self.kind).rank(self.entries) if self.is_supported and kind_named(self.kind).has_rank(self.entries) else 0

    @property
    def name_in_file(self) -> str:
        """The layer's name as the file has it."""
        suffix, key = next((suffix, key) for suffix, key in self.keys.items() if suffix != "alpha")
        return naming.name_in_file(key, suffix)

    @property
    def is_supported(self) -> bool:
        """Whether its delta can be computed here."""
        return self.kind not in naming.UNSUPPORTED_KINDS

    @property
    def weight_size(self) -> tuple[int, int]:
        """(rows, elements) of the layer's weight, as `Kind.weight_size`."""
        return kind_named(self.kind).weight_size(self.shapes)
