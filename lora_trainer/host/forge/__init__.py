"""Forge as a host: A1111's page, queue and folders with its own model engine. Only the differences are here."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.errors import ModelError
from lora_trainer.host.a1111 import A1111Host
from lora_trainer.host.base import Lease, message_with_fix
from lora_trainer.host.forge import capabilities
from lora_trainer.messages import Message

if TYPE_CHECKING:
    from lora_trainer.config.schema import ModelConfig


class _ForgeFamilyHost(A1111Host):
    """A host whose model modules are not A1111's: the model's facts come from the checkpoint's file."""

    def model_info(self) -> dict[str, Any]:
        """The chosen checkpoint; "reason" is a Message with the remedy when it cannot be trained."""
        from lora_trainer.host.forge import lease

        info: dict[str, Any] = {"title": "", "path": "", "family": "", "prediction": "", "clip_skip": self.clip_skip(), "native_size": 512}
        info |= {"trainable": False, "reason": "", "because": ""}
        chosen = self._current_checkpoint()
        if chosen is not None:
            info |= {"title": chosen.name_for_extra, "path": chosen.filename}
        try:
            facts = lease.inspect(chosen)
        except ModelError as error:
            return info | {"reason": message_with_fix(error)}
        known_facts = {"family": facts.family, "prediction": facts.prediction, "native_size": facts.native_size, "because": facts.reason}
        return info | known_facts | {"trainable": True, "zero_terminal_snr": facts.zero_terminal_snr}

    def busy_reason(self) -> Message | None:
        """None: weights that cannot be shared are read from the file."""
        return None


class ForgeHost(_ForgeFamilyHost):
    """The Host for Forge and Forge Neo. It loads a checkpoint only when it generates, so the user's choice counts, not the loaded model."""

    @property
    def name(self) -> str:  # type: ignore[override]
        """ "forge", or "neo" for Forge Neo."""
        return capabilities.host_name()

    @staticmethod
    def _loaded_model() -> Any:
        """None until the first generation."""
        from lora_trainer.host.forge import engine

        return engine.loaded_model()

    def _current_checkpoint(self) -> Any:
        from lora_trainer.host.forge import engine

        return engine.chosen_parameters()["checkpoint_info"]

    def vaes(self) -> list[Path]:
        """The entries of "VAE / Text Encoder" that lie in the VAE folders."""
        from lora_trainer.host.forge import engine

        return [Path(file) for file in engine.vae_files().values()]

    def lease(self, model: ModelConfig) -> AbstractContextManager[Lease]:
        """Lends the chosen model, or loads the config's for the duration of the lease."""
        from lora_trainer.host.forge.lease import lend

        return lend(
            self._checkpoint_entry(model.pretrained_model_name_or_path), self._vae_file(model.vae) or None, self.lets_through, model
        )


class ReForgeHost(_ForgeFamilyHost):
    """The Host for reForge (and Forge Classic, untested): chooses and loads models as A1111, keeps them as Forge."""

    name = "reforge"

    def lease(self, model: ModelConfig) -> AbstractContextManager[Lease]:
        """Lends the loaded model, or loads the config's for the duration of the lease."""
        from lora_trainer.host.forge.reforge import lend

        return lend(self._checkpoint_entry(model.pretrained_model_name_or_path), self._vae_file(model.vae), self.lets_through, model)
