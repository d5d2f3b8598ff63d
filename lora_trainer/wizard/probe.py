"""What the machine and the model in hand are: the only place of the wizard that asks for them."""

from __future__ import annotations

from pathlib import Path

from lora_trainer.config.schema import ModelConfig
from lora_trainer.errors import ModelError
from lora_trainer.host.base import Host, find_checkpoint
from lora_trainer.models.detection.detect import ModelFacts, inspect
from lora_trainer.models.files.hub import NotFetched
from lora_trainer.wizard.facts import MachineFacts


def machine(host: Host | None, vram_gb: float | None) -> MachineFacts:
    """The named card; else the host's device; else this computer's (torch is imported for that)."""
    if vram_gb:
        return MachineFacts.of_card(vram_gb)
    if host is not None:
        return MachineFacts.of(host.memory(), lent=host.name != "standalone")
    from lora_trainer.host.devices import default_device
    from lora_trainer.host.memory import device_memory

    return MachineFacts.of(device_memory(default_device()[0]))


def model(config: ModelConfig, model_path: Path | None, host: Host | None) -> ModelFacts | None:
    """Facts of the named model, else of the one that the host has loaded. None where none is known: Stable Diffusion 1.5 is assumed.

    Raises ModelError for a named file that cannot be trained on.
    """
    if model_path is not None:
        return inspect(model_path)
    if config.pretrained_model_name_or_path:
        try:
            return inspect(find_checkpoint(config.pretrained_model_name_or_path, [] if host is None else host.checkpoints()))
        except NotFetched:
            return None
    loaded = next((known.path for known in host.checkpoints() if known.loaded), None) if host is not None else None
    try:
        return None if loaded is None else inspect(loaded)
    except ModelError:  # the tab names it where a model is chosen; sizes and amounts can be suggested all the same
        return None


def clip_skip(config: ModelConfig, host: Host | None) -> int | None:
    """What the WebUI uses for the model that it has loaded; None where nobody says it."""
    if host is None or host.name == "standalone" or config.pretrained_model_name_or_path:
        return None
    found = host.model_info().get("clip_skip")
    return found if found in (1, 2) else None
