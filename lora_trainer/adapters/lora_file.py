"""LoRA files: written atomically, verified, read, and attached to a model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lora_trainer.adapters.base_weights import MergedModel, MergedNetwork
from lora_trainer.adapters.files.checked_network import open_network, read_state
from lora_trainer.adapters.network import NetworkAdapter
from lora_trainer.adapters.network_file import modules_of
from lora_trainer.adapters.targets import attention_layers, target_paths
from lora_trainer.errors import ModelError, TrainingError
from lora_trainer.files import write_durably
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.files.tensor_file import read_header

PARTS = ("unet", "text_encoder")
DTYPES = {"float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "keep": None}


def serialize(state: Mapping[str, Tensor], metadata: Mapping[str, str], precision: str) -> bytes:
    """The bytes of a safetensors file, with `sshs_model_hash` and `sshs_legacy_hash` added to the metadata.

    `precision`: "float", "fp16", "bf16" or "keep". Raises TrainingError when a value is not finite: such a file is not written.
    """
    from safetensors.torch import save

    tensors = {name: tensor.detach().to(device="cpu", dtype=DTYPES[precision]).contiguous() for name, tensor in state.items()}
    nonfinite = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if nonfinite:
        raise TrainingError(
            "the network holds values that are not finite ({name}), so it was not saved.",
            name=nonfinite[0],
            fix="Use a lower learning rate, or a file precision of float or bf16.",
        )
    content = save(tensors, metadata={key: value for key, value in metadata.items() if key.startswith("ss_")})
    (length,) = struct.unpack("<Q", content[:8])
    hashes = {
        "sshs_model_hash": hashlib.sha256(content[8 + length :]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8],
    }
    return _with_sorted_header(save(tensors, metadata={**metadata, **hashes}))


def _with_sorted_header(content: bytes) -> bytes:
    """The same file with sorted metadata: safetensors writes it in another order in each process."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def write_lora(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str], precision: str) -> str:
    """Writes a network file, reads it back and compares names and shapes. Returns the file's sha256 in hex. Raises TrainerError."""
    content = serialize(state, metadata, precision)
    write_durably(path, content)
    verify_written(path, state)
    return hashlib.sha256(content).hexdigest()


def verify_written(path: Path, state: Mapping[str, Tensor]) -> None:
    """Compares names and shapes in a written file with `state`. Raises TrainingError where they differ."""
    written = {name: tuple(entry["shape"]) for name, entry in read_header(path).items() if name != "__metadata__"}
    if written != {name: tuple(tensor.shape) for name, tensor in state.items()}:
        raise TrainingError("{path} was not written correctly.", path=str(path), fix="Check the disk, then save again.")


def read_lora(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by sd-scripts' names and metadata of a network file of any program, with the alphas that it says anywhere.

    Raises ModelError for any other file, for one that brings embeddings along, empty tensors, and values that are not finite.
    """
    file = open_network(path)
    if file.embedding_keys:
        raise ModelError(
            "{path} brings embeddings along, which cannot be read here.", path=str(path), fix="Use it in a WebUI, or choose another file."
        )
    return read_state(file), dict(file.metadata)


@contextlib.contextmanager
def with_loras(bundle: ModelBundle, loras: Sequence[tuple[Path, float]]) -> Iterator[None]:
    """Attaches network files, each with its weight, to a bundle while the block runs; several add up.

    Plain LoRA files are stacked along the rank into one adapter, so that the order does not matter; where a file holds anything else,
    the layers use changed copies of their weights. Raises ModelError for a file that is not a network, or not of this model.
    """
    files = [(read_lora(path)[0], weight, path) for path, weight in loras if weight]
    if not files:
        yield
        return
    plain = all(is_plain_lora(state, bundle) for state, _, _ in files)
    adapter: NetworkAdapter | MergedModel = stacked_adapter(bundle, files) if plain else MergedModel(bundle, merged_networks(files))
    adapter.attach(bundle)
    try:
        yield
    finally:
        adapter.detach()


def read_base_weights(files: Sequence[str], strengths: float | Sequence[float]) -> list[MergedNetwork]:
    """Networks that are part of the base model, with one strength for all or one for each; missing ones are 1.

    Raises ModelError for a file that is not a network.
    """
    paths = [Path(file) for file in files]
    strengths = [strengths] * len(paths) if isinstance(strengths, (int, float)) else list(strengths)
    padded = [*strengths, *[1.0] * (len(paths) - len(strengths))]
    return merged_networks([(read_lora(path)[0], strength, path) for path, strength in zip(paths, padded, strict=True)])


def merged_networks(loras: Sequence[tuple[Mapping[str, Tensor], float, Path]]) -> list[MergedNetwork]:
    """(tensors, strength, path) of files as `MergedModel` takes them. Raises ModelError for an incomplete module."""
    return [MergedNetwork(modules_of(state, str(path)), weight, str(path)) for state, weight, path in loras]


def is_plain_lora(state: Mapping[str, Tensor], bundle: ModelBundle) -> bool:
    """Whether a file holds nothing but down and up matrices, on layers that an ordinary LoRA trains."""
    if not {key.partition(".")[2] for key in state} <= {"lora_down.weight", "lora_up.weight", "alpha"}:
        return False
    lora_layers = {name for part in PARTS for name, _ in target_paths(bundle, part)}
    return {key.partition(".")[0] for key in state} <= lora_layers


def stacked_adapter(bundle: ModelBundle, loras: Sequence[tuple[Mapping[str, Tensor], float, Path]]) -> LoraAdapter:
    """One adapter equal to the sum of several (state, weight, path), their ranks stacked. Raises ModelError where layers do not fit."""
    rank = sum(max(tensor.shape[0] for name, tensor in state.items() if name.endswith("lora_down.weight")) for state, _, _ in loras)
    parts = [
        part for part, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te")) if any(_has(state, prefix) for state, _, _ in loras)
    ]
    adapter = LoraAdapter(bundle, rank=rank, alpha=rank, parts=parts)
    pairs = {layer.plan.name: tuple(layer.parameters.values()) for layer in adapter.iter_layers()}
    with torch.no_grad():
        for down, _ in pairs.values():
            down.zero_()
        offset = 0
        for state, weight, path in loras:
            width = 0
            for name in {key.rsplit(".lora_", 1)[0] for key in state if ".lora_" in key}:
                if name not in pairs:
                    raise ModelError(
                        "{path} holds {name}, which this model does not have.",
                        path=str(path),
                        name=name,
                        fix="Use a LoRA of the same family.",
                    )
                down, up = state[f"{name}.lora_down.weight"], state[f"{name}.lora_up.weight"]
                width = max(width, down.shape[0])
                scale = float(state.get(f"{name}.alpha", torch.tensor(float(down.shape[0])))) / down.shape[0] * weight
                (own_down, own_up), span = pairs[name], slice(offset, offset + down.shape[0])
                if own_down[span].shape != down.shape or own_up[:, span].shape != up.shape:
                    raise ModelError(
                        "{path}: {name} has another shape than the model.", path=str(path), name=name, fix="Use a LoRA of the same family."
                    )
                own_down[span].copy_(down)
                own_up[:, span].copy_(up.to(own_up.dtype) * scale)
            offset += width
    return adapter


def _has(state: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in state)


class LoraAdapter(NetworkAdapter):
    """LoRA of one rank and alpha on all attention layers. `parts`: "unet", "text_encoder" or both."""

    def __init__(self, bundle: ModelBundle, *, rank: int, alpha: float, parts: Sequence[str], seed: int = 0) -> None:
        super().__init__(bundle, attention_layers(bundle, parts, rank=rank, alpha=alpha), seed=seed)
        self.rank, self.alpha = rank, alpha
