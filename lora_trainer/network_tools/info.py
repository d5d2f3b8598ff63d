"""What a network's file is, told from the file alone: kind, family, ranks, strength by block, what it was trained on, hashes."""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lora_trainer.models import layout
from lora_trainer.network_tools import key_suffixes, low_rank
from lora_trainer.network_tools.checked_network import Module, NetworkFile, open_network, read_modules
from lora_trainer.network_tools.layers import block_of, stock_layers
from lora_trainer.network_tools.resize import places_of

MOST_TAGS = 20
PARTS = {"lora_unet_": "unet", "lora_te": "text_encoder"}


def info(path: Path) -> dict[str, Any]:
    """Everything, as plain values. Raises ModelError for what is no network."""
    file = open_network(path)
    sha256, tensors_sha256 = hashes(path)
    said = file.words.get("sshs_model_hash", "")
    return {
        "path": str(path),
        "bytes": path.stat().st_size,
        "kind": kind_of(file),
        "family": file.family,
        "family_label": layout.row(file.family).label,
        "naming": file.naming,
        "dtype": file.dtype,
        "modules": dict(Counter(part_of(name) for name in file.modules)),
        "unknown": list(file.unknown),
        "embeddings": sorted({key.split(".")[1] for key in file.extra}),
        "ranks": _counted(module.rank for module in file.modules.values() if module.rank),
        **_alphas_and_norms(file),
        "trained_on": trained_on(file.words),
        "hashes": {
            "sha256": sha256,
            "tensors": tensors_sha256,
            "webui": (said or tensors_sha256)[:12],
            "as_said": said in ("", tensors_sha256),
        },
        "metadata": {key: value for key, value in sorted(file.words.items()) if key != "modelspec.thumbnail"},
        "has_thumbnail": "modelspec.thumbnail" in file.words,
    }


def kind_of(file: NetworkFile) -> str:
    """The name of what a file holds: the type's, "mixed" where layers differ in more than norms."""
    kinds = {_kind(module) for module in file.modules.values() if module.kind != "norm"} or {"norm"}
    if kinds <= {"lora", "locon"}:
        return "locon" if "locon" in kinds else "lora"
    return kinds.pop() if len(kinds) == 1 else "mixed"


def _kind(module: Module) -> str:
    if "dora_scale" in module.entries:
        return "dora"
    large = [suffix for suffix, shape in module.shapes.items() if len(shape) == 4 and shape[2:] != (1, 1)]
    return "locon" if module.kind == "lora" and large else module.kind


def part_of(name: str) -> str:
    """ "unet" or "text_encoder"."""
    return next((part for prefix, part in PARTS.items() if name.startswith(prefix)), "?")


def _counted(values: Iterable[float]) -> list[dict[str, Any]]:
    return [{"value": value, "modules": count} for value, count in sorted(Counter(values).items())]


def _alphas_and_norms(file: NetworkFile) -> dict[str, Any]:
    """Alphas, and by block how much is added (Frobenius norm); None where that depends on the model's weights, or is not calculated."""
    if any(module.kind in key_suffixes.FOREIGN for module in file.modules.values()):
        return {"alphas": [], "norm": None, "blocks": []}
    layers = stock_layers(file.family)
    squares: defaultdict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    complete, alphas = True, []
    for name, state in read_modules(file).items():
        held = file.modules[name]
        if "alpha" in held.keys:
            alphas.append(state.alpha)
        if low_rank.reads_weights(state):
            complete = False
            continue
        block = block_of(layers[name]) if name in layers else "?"
        counts[block] += 1
        if low_rank.is_plain(state):
            squares[block] += low_rank.own_pair(state).whole ** 2
        else:
            shape = low_rank.weight_shape(key_suffixes.fit_of(held.kind, held.shapes), places_of(name, held.shapes, layers.get(name)))
            squares[block] += float(low_rank.matrix_of(state, shape).norm()) ** 2
    order = {block_of(layer): number for number, layer in reversed(list(enumerate(layers.values())))}
    blocks = [
        {"block": block, "modules": counts[block], "norm": squares[block] ** 0.5}
        for block in sorted(counts, key=lambda block: order.get(block, 1 << 20))
    ]
    return {"alphas": _counted(alphas), "norm": sum(squares.values()) ** 0.5 if complete else None, "blocks": blocks}


def trained_on(words: Mapping[str, str]) -> dict[str, Any]:
    """Base model, pictures, length and tags, as the header tells them; what it does not tell is left out."""
    folders = _parsed(words.get("ss_dataset_dirs"))
    tags: Counter[str] = Counter()
    for counts in _parsed(words.get("ss_tag_frequency")).values():
        tags.update({tag: count for tag, count in counts.items() if isinstance(count, int)} if isinstance(counts, dict) else {})
    found = {
        "base_model": words.get("ss_sd_model_name"),
        "base_version": words.get("ss_base_model_version"),
        "base_sha256": words.get("ss_new_sd_model_hash"),
        "network_module": words.get("ss_network_module"),
        "dim": words.get("ss_network_dim"),
        "alpha": words.get("ss_network_alpha"),
        "pictures": words.get("ss_num_train_images"),
        "steps": words.get("ss_steps"),
        "epochs": words.get("ss_epoch") or words.get("ss_num_epochs"),
        "resolution": words.get("ss_resolution"),
        "clip_skip": words.get("ss_clip_skip"),
        "optimizer": words.get("ss_optimizer"),
        "learning_rate": words.get("ss_learning_rate"),
        "title": words.get("modelspec.title") or words.get("ss_output_name"),
        "trigger": words.get("modelspec.trigger_phrase"),
        "merged_from": words.get("modelspec.merged_from"),
        "folders": folders,
        "tags": [{"tag": tag.strip(), "count": count} for tag, count in tags.most_common(MOST_TAGS)],
    }
    return {key: value for key, value in found.items() if value not in (None, "", "None", {}, [])}


def _parsed(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def hashes(path: Path) -> tuple[str, str]:
    """Hex sha256 of the whole file, and of what stands behind its header."""
    whole, tensors = hashlib.sha256(), hashlib.sha256()
    with path.open("rb") as file:
        start = file.read(8)
        head = file.read(struct.unpack("<Q", start)[0])
        whole.update(start + head)
        while block := file.read(1 << 22):
            whole.update(block)
            tensors.update(block)
    return whole.hexdigest(), tensors.hexdigest()
