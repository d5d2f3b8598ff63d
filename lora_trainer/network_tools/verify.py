"""Whether a network's layers are a model's: each name and shape compared, each number looked at, and which WebUI reads the kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from lora_trainer.config.choices.network_hosts import HOSTS, reading
from lora_trainer.errors import ModelError
from lora_trainer.messages import Message, say
from lora_trainer.models import layout
from lora_trainer.network_tools import key_suffixes
from lora_trainer.network_tools.checked_network import NetworkFile, fits, open_network, read_modules
from lora_trainer.network_tools.info import kind_of
from lora_trainer.network_tools.layers import Layer, layers_of, other_names, stock_layers


@attrs.frozen
class Verified:
    """Layers that the model has in this shape, those that it has not with the reason, and who reads the file."""

    family: str
    kind: str
    matched: int
    unmatched: tuple[tuple[str, Message], ...]
    hosts: tuple[tuple[str, str, Message | None], ...]
    """(host, "all" | "partly" | "no", why)."""

    def to_json(self, language: str = "en") -> dict[str, Any]:
        """{"matched", "unmatched", "family", "kind", "names", "hosts"}: two counts, then the layers that do not fit."""
        return {
            "matched": self.matched,
            "unmatched": len(self.unmatched),
            "family": self.family,
            "kind": self.kind,
            "names": [{"name": name, "why": why.text(language)} for name, why in self.unmatched],
            "hosts": [{"host": host, "loads": loads, "why": "" if why is None else why.text(language)} for host, loads, why in self.hosts],
        }


def verify(path: Path, *, family: str = "", model: Path | None = None) -> Verified:
    """Compares a file with a checkpoint, or with a family's released models ("": the one that it is of itself).

    Raises ModelError for a file that is no network, is damaged, or holds numbers that are not finite.
    """
    file = open_network(path)
    if family and family not in (row.family for row in layout.ROWS):
        known = ", ".join(row.family for row in layout.ROWS)
        raise ModelError("there is no family called {family}.", family=family, fix="Known are {known}.", known=known, path="--family")
    row, layers = layers_of(model) if model is not None else (layout.row(family or file.family), stock_layers(family or file.family))
    names = {**dict(other_names(layers)), **{name: name for name in layers}}
    if not any(module.kind in key_suffixes.FOREIGN for module in file.modules.values()):
        read_modules(file)  # raises for numbers that are not finite
    compares = model is not None or _is_of_that_size(file, layers, names)
    unmatched = []
    for name, module in file.modules.items():
        layer = layers.get(names.get(name, ""))
        if layer is None:
            unmatched.append((name, say("no layer of {label} is called so", label=row.label)))
        elif compares and not fits(module, layer):
            shape = "x".join(map(str, layer.shape))
            unmatched.append((name, say("the layer's weight is {shape}, which this does not fit", shape=shape)))
    kind = kind_of(file)
    hosts = tuple((host, *_host(file, kind, host)) for host in HOSTS)
    return Verified(row.family, kind, len(file.modules) - len(unmatched), tuple(unmatched), hosts)


def _is_of_that_size(file: NetworkFile, layers: Mapping[str, Layer], names: Mapping[str, str]) -> bool:
    """Whether any layer has the released models' shape: else it is of a small model, as tests have it, and only names are compared."""
    return any(fits(module, layers[names[name]]) for name, module in file.modules.items() if name in names)


def _host(file: NetworkFile, kind: str, host: str) -> tuple[str, Message | None]:
    if file.naming != "kohya":
        return "no", say("Its layers have other names than WebUIs read: convert it with --to kohya.")
    scales = [module.shapes["dora_scale"] for module in file.modules.values() if "dora_scale" in module.entries]
    if kind == "dora" and any(shape[0] != 1 for shape in scales):
        kind = "dora_out"
    return reading(kind, host)
