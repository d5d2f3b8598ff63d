"""Result of an import: keys in = keys taken + keys left, each left one with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from lora_trainer.config.build import build
from lora_trainer.config.schema import TrainConfig
from lora_trainer.messages import Message

KINDS = {
    "kohya_ss": "kohya_ss (JSON)",
    "sd-scripts": "sd-scripts (--config_file)",
    "command": "sd-scripts (command line)",
    "lora-scripts": "lora-scripts (TOML)",
    "dreambooth": "Dreambooth concepts (JSON)",
    "dataset": "sd-scripts (--dataset_config)",
    "metadata": "LoRA (metadata)",
    "onetrainer": "OneTrainer",
    "ai-toolkit": "ai-toolkit",
    "simpletuner": "SimpleTuner",
    "lycoris": "LyCORIS (lycoris_config.json)",
    "own": "LoRA Trainer",
}
"""Names of programs and formats: not translated."""


SECRETS = ("hub_token", "huggingface_token", "hf_token", "wandb_api_key", "wandb_token", "api_key", "password")
"""Keys with secret values."""


def masked(key: str, value: Any) -> Any:
    """The value of a key, or "…" if it is a secret."""
    return "…" if value and key.rpartition(".")[2] in SECRETS else value


@attrs.frozen
class Taken:
    """A key of the file and the options that it was translated to."""

    key: str
    value: Any
    paths: tuple[str, ...]


@attrs.frozen
class Left:
    """A key of the file that was not taken, and why."""

    key: str
    value: Any
    why: Message


@attrs.frozen
class Filled:
    """An option that the file does not set, filled in with the other program's default."""

    path: str
    value: Any


@attrs.frozen
class Imported:
    """`values`: nested plain values for `build`; `kind` is a key of KINDS; `notes`: what else the user should know."""

    kind: str
    values: Mapping[str, Any]
    taken: tuple[Taken, ...] = ()
    left: tuple[Left, ...] = ()
    filled: tuple[Filled, ...] = ()
    notes: tuple[Message, ...] = ()

    @property
    def config(self) -> TrainConfig:
        """The settings, the rest at our defaults."""
        return build(self.values)

    @property
    def keys(self) -> int:
        """How many keys the file had."""
        return len(self.taken) + len(self.left)

    def to_json(self, language: str = "en") -> dict[str, Any]:
        """{"kind", "keys", "taken", "left", "filled", "notes"} with reasons in the reader's language."""
        return {
            "kind": self.kind,
            "name": KINDS[self.kind],
            "keys": self.keys,
            "taken": [{"key": one.key, "value": masked(one.key, one.value), "paths": list(one.paths)} for one in self.taken],
            "left": [{"key": one.key, "value": masked(one.key, one.value), "why": one.why.text(language)} for one in self.left],
            "filled": [{"path": one.path, "value": one.value} for one in self.filled],
            "notes": [note.text(language) for note in self.notes],
        }
