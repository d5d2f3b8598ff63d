"""Facts about machine and model: the only module of the wizard that queries host and hardware."""

from __future__ import annotations

from pathlib import Path

from lora_trainer.config.schema import ModelConfig
from lora_trainer.errors import ModelError
from lora_trainer.host.base import Host, find_checkpoint
from lora_trainer.models.detection.detect import ModelFacts, inspect
from lora_trainer.models.files.hub import NotDownloaded
from lora_trainer.wizard.facts import MachineFacts


def machine(host: Host | None, vram_gb: float | None) -> MachineFacts:
    """A card of `vram_gb`; else the host's device; else this computer's (which imports torch)."""
    if vram_gb:
        return MachineFacts.from_vram(vram_gb)
    if host is not None:
        return MachineFacts.from_memory(host.memory(), lent=host.name != "standalone")
    from lora_trainer.host.devices import default_device
    from lora_trainer.host.memory import device_memory

    return MachineFacts.from_memory(device_memory(default_device()[0]))


def model(config: ModelConfig, model_path: Path | None, host: Host | None) -> ModelFacts | None:
    """Facts of the named model, else of the one that the host has loaded; None where neither is known (Stable Diffusion 1.5 is assumed).

    Raises ModelError for a named file that cannot be trained on.
    """
    if model_path is not None:
        return inspect(model_path)
    if config.pretrained_model_name_or_path:
        try:
            return inspect(find_checkpoint(config.pretrained_model_name_or_path, [] if host is None else host.checkpoints()))
        except NotDownloaded:
            return None
    loaded = next((checkpoint.file() for checkpoint in host.checkpoints() if checkpoint.loaded), None) if host is not None else None
    try:
        return None if loaded is None else inspect(loaded)
    except ModelError:  # the tab reports it where the model is chosen; the rest can still be suggested
        return None


def clip_skip(config: ModelConfig, host: Host | None) -> int | None:
    """The WebUI's clip skip for the model that it has loaded; None where it is unknown."""
    if host is None or host.name == "standalone" or config.pretrained_model_name_or_path:
        return None
    value = host.model_info().get("clip_skip")
    return value if value in (1, 2) else None
