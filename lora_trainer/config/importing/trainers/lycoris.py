"""A lycoris_config.json, which SimpleTuner reads: the network alone, under the names of LyCORIS' own arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_trainer.config.importing.arguments import Key
from lora_trainer.config.importing.learning import ReadText
from lora_trainer.config.importing.networks import LYCORIS_MODULE
from lora_trainer.config.importing.reasons import CALCULATED
from lora_trainer.config.importing.trainers.kohya_and_lora_scripts import ProgramKeys
from lora_trainer.config.importing.values import flatten
from lora_trainer.messages import Message, say

NAMES = {"algo": "lycoris_algo", "linear_dim": "network_dim", "linear_alpha": "network_alpha"}
MODULES = {("Attention", "FeedForward"): "attn-mlp", ("Attention",): "attn-only"}
"""diffusers' modules that a file chooses -> our set of layers."""
LAYERS = say("It holds for some of the layers only; here the network's options hold for all.")


def lycoris_keys(values: Mapping[str, Any], read: ReadText) -> ProgramKeys:
    """Every key of the file; those of `apply_preset` that set options of single layers are listed."""
    context = {"network_module": LYCORIS_MODULE, "lycoris_algo": values.get("algo")}
    return ProgramKeys(tuple(_key(key, value) for key, value in flatten(values)), context=context)


def _key(key: str, value: Any) -> Key:
    why: Message | None = None
    if key == "apply_preset.target_module" and isinstance(value, list):
        preset = MODULES.get(tuple(sorted(map(str, value))))
        return Key(key, "network.preset", preset, shown=value) if preset else Key(key, key, value, why=LAYERS)
    if key.startswith("apply_preset"):
        why = LAYERS
    elif key == "multiplier":
        why = say("The strength is chosen when the network is used.")
    elif key == "bypass_mode":
        why = CALCULATED
    return Key(key, NAMES.get(key, key), value, why=why)
