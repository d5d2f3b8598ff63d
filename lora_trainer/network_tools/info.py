"""Facts about a network's file, from the file alone: kind, family, ranks, norms by block, what it was trained on, hashes."""

from __future__ import annotations

import hashlib
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lora_trainer.adapters.files.checked_network import NetworkFile, open_network, read_modules
from lora_trainer.adapters.files.checkpoint_layers import block_of, released_layers
from lora_trainer.adapters.files.network_module import NetworkModule
from lora_trainer.files import open_regular
from lora_trainer.models import layout
from lora_trainer.network_tools import low_rank
from lora_trainer.network_tools.resize import kernel_size
from lora_trainer.parsing import parse_json

MOST_TAGS = 20
PARTS = {"lora_unet_": "unet", "lora_te": "text_encoder"}


def info(path: Path) -> dict[str, Any]:
    """Everything, as JSON values. Raises ModelError for a file that is not a network."""
    file = open_network(path)
    sha256, tensors_sha256 = hashes(path)
    declared = file.metadata.get("sshs_model_hash", "")
    return {
        "path": str(path),
        "bytes": path.stat().st_size,
        "kind": kind_of(file),
        "family": file.family,
        "family_label": layout.row(file.family).label,
        "naming": file.naming,
        "namings": list(file.namings),
        "dtype": file.dtype,
        "modules": dict(Counter(part_of(name) for name in file.modules)),
        "unknown": list(file.unknown_layers),
        "embeddings": sorted({key.split(".")[1] for key in file.embedding_keys}),
        "ranks": _value_counts(module.rank for module in file.modules.values() if module.rank),
        **_alphas_and_norms(file),
        "alphas_from": file.declared.source,
        "without_alpha": len(file.declared.missing),
        "trained_on": trained_on(file.metadata),
        "hashes": {
            "sha256": sha256,
            "tensors": tensors_sha256,
            "webui": (declared or tensors_sha256)[:12],
            "as_said": declared in ("", tensors_sha256),
        },
        "metadata": {key: value for key, value in sorted(file.metadata.items()) if key != "modelspec.thumbnail"},
        "has_thumbnail": "modelspec.thumbnail" in file.metadata,
    }


def kind_of(file: NetworkFile) -> str:
    """The kind of a file, as in network_hosts.SUPPORT; "mixed" where layers other than norms differ."""
    kinds = {_kind(module) for module in file.modules.values() if module.kind != "norm"} or {"norm"}
    if kinds <= {"lora", "locon"}:
        return "locon" if "locon" in kinds else "lora"
    return kinds.pop() if len(kinds) == 1 else "mixed"


def _kind(module: NetworkModule) -> str:
    if "dora_scale" in module.entries:
        return "dora"
    spatial = [suffix for suffix, shape in module.shapes.items() if len(shape) == 4 and shape[2:] != (1, 1)]
    return "locon" if module.kind == "lora" and spatial else module.kind


def part_of(name: str) -> str:
    """ "unet" or "text_encoder"."""
    return next((part for prefix, part in PARTS.items() if name.startswith(prefix)), "?")


def _value_counts(values: Iterable[float]) -> list[dict[str, Any]]:
    return [{"value": value, "modules": count} for value, count in sorted(Counter(values).items())]


def _alphas_and_norms(file: NetworkFile) -> dict[str, Any]:
    """Alphas, and norms of the delta by block (Frobenius); the total is None where one depends on the model's weights or is unsupported."""
    if not all(module.is_supported for module in file.modules.values()):
        return {"alphas": [], "norm": None, "blocks": []}
    layers = released_layers(file.family)
    squares: defaultdict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    complete, alphas = True, []
    for name, state in read_modules(file).items():
        module = file.modules[name]
        if "alpha" in module.keys or name in file.declared.alphas:
            alphas.append(state.alpha)
        if state.reads_weight:
            complete = False
            continue
        block = block_of(layers[name]) if name in layers else "?"
        counts[block] += 1
        if low_rank.is_plain(state):
            squares[block] += low_rank.pair_of(state).norm ** 2
        else:
            shape = low_rank.weight_shape(module.weight_size, kernel_size(name, module.shapes, layers.get(name)))
            squares[block] += float(low_rank.delta_matrix(state, shape).norm()) ** 2
    order = {block_of(layer): number for number, layer in reversed(list(enumerate(layers.values())))}
    blocks = [
        {"block": block, "modules": counts[block], "norm": squares[block] ** 0.5}
        for block in sorted(counts, key=lambda block: order.get(block, 1 << 20))
    ]
    return {"alphas": _value_counts(alphas), "norm": sum(squares.values()) ** 0.5 if complete else None, "blocks": blocks}


def trained_on(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Base model, images, training length and tags from the metadata; what it does not say is left out."""
    datasets = _datasets(metadata)
    folders = _parse_json(metadata.get("ss_dataset_dirs")) or _dataset_folders(datasets)
    tags: Counter[str] = Counter()
    frequencies = (
        [_parse_json(metadata.get("ss_tag_frequency"))]
        if _parse_json(metadata.get("ss_tag_frequency"))
        else [entry["tag_frequency"] for entry in datasets if isinstance(entry.get("tag_frequency"), dict)]
    )
    for counts in [counts for frequency in frequencies for counts in frequency.values()]:
        tags.update({tag: count for tag, count in counts.items() if isinstance(count, int)} if isinstance(counts, dict) else {})
    facts = {
        "base_model": metadata.get("ss_sd_model_name"),
        "base_version": metadata.get("ss_base_model_version"),
        "base_sha256": metadata.get("ss_new_sd_model_hash"),
        "network_module": metadata.get("ss_network_module"),
        "dim": metadata.get("ss_network_dim"),
        "alpha": metadata.get("ss_network_alpha"),
        "pictures": _picture_count(folders),
        "examples": metadata.get("ss_num_train_images"),
        "steps": metadata.get("ss_steps"),
        "epochs": metadata.get("ss_epoch") or metadata.get("ss_num_epochs"),
        "resolution": (metadata.get("ss_resolution") or "None").replace("None", "") or _dataset_resolutions(datasets),
        "clip_skip": metadata.get("ss_clip_skip"),
        "optimizer": metadata.get("ss_optimizer"),
        "learning_rate": metadata.get("ss_learning_rate"),
        "title": metadata.get("modelspec.title") or metadata.get("ss_output_name"),
        "trigger": metadata.get("modelspec.trigger_phrase"),
        "merged_from": metadata.get("modelspec.merged_from"),
        "folders": folders,
        "tags": [{"tag": tag.strip(), "count": count} for tag, count in tags.most_common(MOST_TAGS)],
    }
    return {key: value for key, value in facts.items() if value not in (None, "", "None", {}, [])}


def _datasets(metadata: Mapping[str, str]) -> list[dict[str, Any]]:
    """The data sets of `ss_datasets`, which sd-scripts writes where a dataset TOML was used."""
    try:
        entries = parse_json(metadata.get("ss_datasets") or "[]")
    except ValueError:
        return []
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _dataset_folders(datasets: Iterable[dict[str, Any]]) -> dict[str, Any]:
    lists = [entry["subsets"] for entry in datasets if isinstance(entry.get("subsets"), list)]
    subsets = [subset for entries in lists for subset in entries if isinstance(subset, dict)]
    return {
        str(subset.get("image_dir") or subset.get("metadata_file")): {
            "n_repeats": subset.get("num_repeats"),
            "img_count": subset.get("img_count"),
        }
        for subset in subsets
        if (subset.get("image_dir") or subset.get("metadata_file")) and subset.get("is_reg") is not True
    }


def _picture_count(folders: Mapping[str, Any]) -> int | None:
    """The pictures of all folders; None where a folder does not say. (`ss_num_train_images` counts each as often as it is repeated.)"""
    counts = [folder.get("img_count") if isinstance(folder, dict) else None for folder in folders.values()]
    known = [count for count in counts if isinstance(count, int) and not isinstance(count, bool)]
    return sum(known) if counts and len(known) == len(counts) else None


def _dataset_resolutions(datasets: Iterable[dict[str, Any]]) -> str:
    sizes = [str(tuple(entry["resolution"])) for entry in datasets if isinstance(entry.get("resolution"), list)]
    return ", ".join(dict.fromkeys(sizes))


def _parse_json(text: str | None) -> dict[str, Any]:
    try:
        parsed = parse_json(text or "{}")
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def hashes(path: Path) -> tuple[str, str]:
    """sha256 in hex of the whole file, and of its tensors (all bytes after the header)."""
    whole_file, tensors = hashlib.sha256(), hashlib.sha256()
    with open_regular(path) as file:
        start = file.read(8)
        head = file.read(struct.unpack("<Q", start)[0])
        whole_file.update(start + head)
        while block := file.read(1 << 22):
            whole_file.update(block)
            tensors.update(block)
    return whole_file.hexdigest(), tensors.hexdigest()
