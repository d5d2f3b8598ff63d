"""Writes a tool's result under a new name: an input is never written to, and an existing file is replaced only with `overwrite`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_trainer.adapters.files.checked_network import NetworkFile
from lora_trainer.adapters.files.declared_alphas import HEADER_KEY
from lora_trainer.adapters.lora_file import write_lora
from lora_trainer.errors import ConfigError, ModelError, Problem
from lora_trainer.files import write_atomically
from lora_trainer.messages import say
from lora_trainer.parsing import parse_json, read_json_object

PRECISIONS = {"F16": "fp16", "BF16": "bf16"}
OF_THE_SOURCE = ("modelspec.hash_sha256", "lora_trainer.alphas")
"""Metadata keys that describe the tensors which a file was made of."""
LARGEST = {"fp16": float(torch.finfo(torch.float16).max)}


def check_target(out: Path, inputs: Sequence[Path], *, overwrite: bool = False) -> None:
    """Raises ConfigError where `out` does not end with .safetensors, is one of the inputs, or exists already."""
    if out.suffix.lower() != ".safetensors":
        raise _out_error(say("{file} does not end with .safetensors.", file=str(out)), say("Add it to the name."))
    if any(_is_same_file(out, path) for path in inputs):
        raise _out_error(say("{file} is an input, which is never written to.", file=str(out)), say("Choose another name."))
    if out.exists() and not overwrite:
        raise _out_error(say("{file} exists already.", file=str(out)), say("Choose another name, or add --overwrite."))


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        return one.exists() and other.exists() and one.samefile(other)
    except OSError:
        return one.absolute() == other.absolute()


def _out_error(message: Any, fix: Any) -> ConfigError:
    return ConfigError([Problem("--out", message, fix)])


def write_network(out: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str], precision: str) -> str:
    """Writes a network file, reads it back and compares names and shapes. Returns its sha256 in hex.

    `precision`: "float", "fp16", "bf16", or "keep". Raises TrainerError, also for values that are not finite, or too large
    for fp16.
    """
    infinite = next((name for name, tensor in state.items() if not bool(torch.isfinite(tensor.float()).all())), "")
    if infinite:
        raise ModelError("the result's {key} holds values that are not finite.", key=infinite, fix="Use smaller weights.")
    limit = LARGEST.get(precision)
    too_large = next((name for name, tensor in state.items() if limit and tensor.numel() and float(tensor.abs().max()) > limit), "")
    if too_large:
        raise ModelError("{key} holds values that fp16 cannot hold.", key=too_large, fix="Save with --precision bf16 or float.")
    kept = {
        key: value for key, value in metadata.items() if not key.startswith("sshs_") and key != HEADER_KEY
    }  # the alphas are tensors now
    return write_lora(out, state, kept, precision)


def precision_of(file: NetworkFile) -> str:
    """The file's dtype as a precision for `write_network`."""
    return PRECISIONS.get(file.dtype, "float")


def derived_metadata(
    metadata: Mapping[str, str], ranks: Sequence[int], alphas: Sequence[float], out: Path, tool_entry: Mapping[str, Any]
) -> dict[str, str]:
    """The metadata of a new LoRA: its source's, with the new ranks, alphas and name, and `tool_entry` added to the history of tools."""
    history = _history(metadata.get("lora_trainer.tools") or "[]")
    return {
        **{key: value for key, value in metadata.items() if not key.startswith("sshs_") and key not in OF_THE_SOURCE},
        "ss_network_module": "networks.lora",
        "ss_network_dim": _one_or_dynamic(ranks),
        "ss_network_alpha": _one_or_dynamic(alphas),
        "ss_output_name": out.stem,
        "modelspec.title": out.stem,
        "lora_trainer.tools": json.dumps([*history, tool_entry], ensure_ascii=False),
    }


def _history(text: str) -> list[Any]:
    """The tools that a file went through; none where its metadata is damaged."""
    try:
        history = parse_json(text)
    except ValueError:
        return []
    return history if isinstance(history, list) else []


def _one_or_dynamic(values: Sequence[float]) -> str:
    distinct = sorted(set(values))
    return f"{distinct[0]:g}" if len(distinct) == 1 else "Dynamic"


def write_card(out: Path, card: Mapping[str, Any]) -> None:
    """Writes the WebUI's card, NAME.json beside `out`; other keys in it stay."""
    write_atomically(out.with_suffix(".json"), json.dumps({**read_card(out), **card}, ensure_ascii=False, indent=4).encode("utf-8"))


def read_card(file: Path) -> dict[str, Any]:
    """The WebUI's card of a file, NAME.json beside it; {} where it is missing or invalid."""
    return read_json_object(file.with_suffix(".json"))
