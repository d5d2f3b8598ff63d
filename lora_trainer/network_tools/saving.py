"""What a tool made, written under a new name: no input is ever written to, and nothing that is there is replaced unasked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_trainer.adapters.lora_file import write_lora
from lora_trainer.errors import ConfigError, ModelError, Problem
from lora_trainer.files import write_atomically
from lora_trainer.messages import say
from lora_trainer.network_tools.checked_network import NetworkFile

PRECISIONS = {"F16": "fp16", "BF16": "bf16"}
SMALLEST = {"fp16": float(torch.finfo(torch.float16).max)}


def check_target(out: Path, inputs: Sequence[Path], *, overwrite: bool = False) -> None:
    """Raises ConfigError when `out` is no safetensors name, is one of the inputs, or is there already."""
    if out.suffix.lower() != ".safetensors":
        raise _wrong(say("{file} does not end with .safetensors.", file=str(out)), say("Add it to the name."))
    if any(_same(out, path) for path in inputs):
        raise _wrong(say("{file} is what is read: it is never written to.", file=str(out)), say("Choose another name."))
    if out.exists() and not overwrite:
        raise _wrong(say("{file} is there already.", file=str(out)), say("Choose another name, or add --overwrite."))


def _same(one: Path, other: Path) -> bool:
    try:
        return one.exists() and other.exists() and one.samefile(other)
    except OSError:
        return one.absolute() == other.absolute()


def _wrong(message: Any, fix: Any) -> ConfigError:
    return ConfigError([Problem("--out", message, fix)])


def write_network(out: Path, state: Mapping[str, Tensor], words: Mapping[str, str], precision: str) -> str:
    """Writes a network in sd-scripts' keys, opens it again and compares. Returns its sha256.

    `precision`: "float", "fp16", "bf16", or "keep". Raises TrainerError, also for numbers that are too large for the format.
    """
    most = SMALLEST.get(precision)
    large = next((name for name, tensor in state.items() if most and tensor.numel() and float(tensor.abs().max()) > most), "")
    if large:
        raise ModelError("{key} holds numbers that fp16 cannot hold.", key=large, fix="Save with --precision bf16 or float.")
    return write_lora(out, state, {key: value for key, value in words.items() if not key.startswith("sshs_")}, precision)


def precision_of(file: NetworkFile) -> str:
    """The file's own number format, as a precision that can be written."""
    return PRECISIONS.get(file.dtype, "float")


def made_words(
    words: Mapping[str, str], ranks: Sequence[int], alphas: Sequence[float], out: Path, done: Mapping[str, Any]
) -> dict[str, str]:
    """The header of a new LoRA: that of the file which it comes from, with the new ranks and name, and what was done."""
    history = json.loads(words.get("lora_trainer.tools") or "[]")
    return {
        **{key: value for key, value in words.items() if not key.startswith("sshs_") and key != "modelspec.hash_sha256"},
        "ss_network_module": "networks.lora",
        "ss_network_dim": _one_of(ranks),
        "ss_network_alpha": _one_of(alphas),
        "ss_output_name": out.stem,
        "modelspec.title": out.stem,
        "lora_trainer.tools": json.dumps([*history, done], ensure_ascii=False),
    }


def _one_of(values: Sequence[float]) -> str:
    found = sorted(set(values))
    return f"{found[0]:g}" if len(found) == 1 else "Dynamic"


def write_beside(out: Path, known: Mapping[str, Any]) -> None:
    """Writes what the WebUI's card shows into NAME.json, keeping what else stands there."""
    beside = out.with_suffix(".json")
    write_atomically(beside, json.dumps({**side_words(out), **known}, ensure_ascii=False, indent=4).encode("utf-8"))


def side_words(file: Path) -> dict[str, Any]:
    """What NAME.json beside a file says; nothing where there is none, or a broken one."""
    try:
        found = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
