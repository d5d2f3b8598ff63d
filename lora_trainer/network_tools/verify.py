"""Checks a network's file against a model: the name and shape of each layer, finite values, and which WebUI reads the kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from lora_trainer.adapters.files.checked_network import NetworkFile, fits, open_network, read_modules
from lora_trainer.adapters.files.checkpoint_layers import CheckpointLayer, alias_names, checkpoint_layers, released_layers
from lora_trainer.config.choices.network_hosts import ALL, HOSTS, SEVERITY, LayerInFile, host_support, layer_support
from lora_trainer.errors import ModelError
from lora_trainer.messages import Message, say
from lora_trainer.models import layout
from lora_trainer.network_tools.info import kind_of


@attrs.frozen
class VerifyResult:
    """How many layers fit the model, those that do not with the reason, and which hosts read the file."""

    family: str
    kind: str
    matched: int
    unmatched: tuple[tuple[str, Message], ...]
    hosts: tuple[tuple[str, str, Message | None], ...]
    """(host, "all" | "partly" | "no", why)."""
    notes: tuple[Message, ...] = ()
    """What differs in every WebUI."""
    offers_conversion: bool = False
    """Whether the file that `network convert --to kohya` writes is read where this one is not, or not at its strength."""

    def to_json(self, language: str = "en") -> dict[str, Any]:
        """{"matched", "unmatched", "family", "kind", "names", "hosts", "notes", "convert"}: two counts, then the layers that do not fit."""
        return {
            "matched": self.matched,
            "unmatched": len(self.unmatched),
            "family": self.family,
            "kind": self.kind,
            "names": [{"name": name, "why": why.text(language)} for name, why in self.unmatched],
            "hosts": [{"host": host, "loads": loads, "why": "" if why is None else why.text(language)} for host, loads, why in self.hosts],
            "notes": [note.text(language) for note in self.notes],
            "convert": self.offers_conversion,
        }


def verify(path: Path, *, family: str = "", model: Path | None = None) -> VerifyResult:
    """Compares a file with a checkpoint, or with a family's released models ("": the family that the file itself is of).

    Raises ModelError for a file that is not a network, is damaged, or holds values that are not finite.
    """
    file = open_network(path)
    if family and family not in (row.family for row in layout.ROWS):
        known = ", ".join(row.family for row in layout.ROWS)
        raise ModelError("there is no family called {family}.", family=family, fix="Known are {known}.", known=known, path="--family")
    row, layers = (
        checkpoint_layers(model) if model is not None else (layout.row(family or file.family), released_layers(family or file.family))
    )
    names = {**dict(alias_names(layers)), **{name: name for name in layers}}
    if all(module.is_supported for module in file.modules.values()):
        read_modules(file)  # raises for values that are not finite
    compare_shapes = model is not None or _has_released_shapes(file, layers, names)
    unmatched = []
    for name, module in file.modules.items():
        layer = layers.get(names.get(name, ""))
        if layer is None:
            unmatched.append((name, say("no layer of {label} is called so", label=row.label)))
        elif compare_shapes and not fits(module, layer):
            shape = "x".join(map(str, layer.shape))
            unmatched.append((name, say("the layer's weight is {shape}, which this does not fit", shape=shape)))
    kind = kind_of(file)
    hosts = tuple((host, *_host(file, kind, host)) for host in HOSTS)
    notes = _strength_notes(file)
    offers_conversion = bool(notes) or (file.naming != "kohya" and any(loads != ALL for _, loads, _ in hosts))
    return VerifyResult(row.family, kind, len(file.modules) - len(unmatched), tuple(unmatched), hosts, notes, offers_conversion)


def _strength_notes(file: NetworkFile) -> tuple[Message, ...]:
    """Where a WebUI, which reads alphas among the tensors only, draws the file at another strength than the program that wrote it."""
    declared = [alpha / file.modules[name].rank for name, alpha in file.declared.alphas.items()]
    scales = sorted({f"{scale:g}" for scale in (*declared, *file.declared.factors.values())})
    if set(scales) <= {"1"}:
        return ()
    return (
        say(
            "The strength of the layers ({scales}) is written in {source}, where no WebUI looks: it draws them at strength 1. Use the "
            "file that network convert --to kohya makes of it, which holds the strength as tensors.",
            scales=", ".join(scales[:4]),
            source=file.declared.source,
        ),
    )


def _has_released_shapes(file: NetworkFile, layers: Mapping[str, CheckpointLayer], names: Mapping[str, str]) -> bool:
    """Whether any layer has the released models' shape; else it belongs to a small model, as in tests, and only names are compared."""
    return any(fits(module, layers[names[name]]) for name, module in file.modules.items() if name in names)


def _host(file: NetworkFile, kind: str, host: str) -> tuple[str, Message | None]:
    """The worse of what a host does with the layers' names, and with the kind."""
    magnitudes = [module.shapes["dora_scale"] for module in file.modules.values() if "dora_scale" in module.entries]
    if kind == "dora" and any(shape[0] != 1 for shape in magnitudes):
        kind = "dora_out"
    layers = [LayerInFile(module.name_in_file, len(module.keys), name not in file.unknown_layers) for name, module in file.modules.items()]
    return max(layer_support(layers, host, file.family), host_support(kind, host), key=lambda found: SEVERITY.index(found[0]))
