"""Where Forge and Forge Neo differ: what the running one has, found by its attributes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lora_trainer.models import layout

_LOADER_CLASSES = {"SD15": "sd1", "SD20": "sd2", "SDXL": "sdxl"}
"""Class of a model in the loader's list -> family."""


def host_name() -> str:
    """ "forge" or "neo", for reports and for the table of hosts: nothing is decided by it."""
    version = getattr(sys.modules.get("modules_forge.forge_version"), "version", "")
    return "neo" if version == "neo" else "forge"


def families() -> frozenset[str]:
    """The families whose checkpoints it loads. Neo has no Stable Diffusion 2."""
    model_list = sys.modules.get("huggingface_guess.model_list") or sys.modules.get("modules_forge.packages.huggingface_guess.model_list")
    if model_list is None:  # reForge, which loads all
        return frozenset(row.family for row in layout.ROWS)
    return frozenset(family for name, family in _LOADER_CLASSES.items() if hasattr(model_list, name))


def folders(flag: str) -> list[Path]:
    """The folders of a command-line flag: Forge's `vae_dir` is one, Neo's `vae_dirs` a list."""
    from modules import shared

    one, many = getattr(shared.cmd_opts, flag, None), getattr(shared.cmd_opts, f"{flag}s", None)
    return [Path(folder).absolute() for folder in [*([one] if one else []), *(many or [])]]


def forget_network_files(networks: Any) -> None:
    """Clears Forge's cache of network files. Its key is the file's name: it does not notice a rewritten file. Neo has no such cache."""
    clear = getattr(networks.load_lora_state_dict, "cache_clear", None)
    if clear is not None:
        clear()


def packed_format(parameter: Any) -> str:
    """The number format of a parameter whose values are packed ("gguf", "nf4", "int8" ...); "" for plain numbers.

    Neo's packed tensors report the number format that they are unpacked to as their dtype.
    """
    if getattr(parameter, "gguf_cls", None) is not None:
        return "gguf"
    if hasattr(parameter, "quant_type") or hasattr(parameter, "bnb_quantized"):
        return str(getattr(parameter, "quant_type", "4 bit"))
    packed = getattr(parameter, "_qdata", None)
    return "" if packed is None else str(packed.dtype).removeprefix("torch.")


def local_drawing() -> dict[str, Any]:
    """Options under which the host itself draws: a repackaged Neo can send its requests to a service instead."""
    from modules import shared

    draws_itself = getattr(shared.opts, "forge_model_mode", "local") == "local"
    return {} if draws_itself else {"forge_model_mode": "local"}
