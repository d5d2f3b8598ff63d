"""Forge as a host: A1111's page, queue and folders around an engine of its own. Only what differs stands here."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.errors import ModelError
from lora_trainer.host.a1111 import A1111Host
from lora_trainer.host.base import Lease, with_remedy
from lora_trainer.messages import Message

if TYPE_CHECKING:
    from lora_trainer.config.schema import ModelConfig


class _Relative(A1111Host):
    """A host whose modules are not A1111's: what it would train on is told from the checkpoint's file."""

    def model_info(self) -> dict[str, Any]:
        """Of the chosen checkpoint's file; "reason" is a Message with the remedy where it cannot be trained."""
        from lora_trainer.host.forge import lease

        info: dict[str, Any] = {"title": "", "path": "", "family": "", "prediction": "", "clip_skip": self.clip_skip(), "native_size": 512}
        info |= {"trainable": False, "reason": "", "because": ""}
        chosen = self._current()
        if chosen is not None:
            info |= {"title": chosen.name_for_extra, "path": chosen.filename}
        try:
            facts = lease.inspect(chosen)
        except ModelError as error:
            return info | {"reason": with_remedy(error)}
        known = {"family": facts.family, "prediction": facts.prediction, "native_size": facts.native_size, "because": facts.because}
        return info | known | {"trainable": True, "zero_terminal_snr": facts.zero_terminal_snr}

    def busy_reason(self) -> Message | None:
        """Nothing: what cannot be shared is read from its file."""
        return None


class ForgeHost(_Relative):
    """Everything that the trainer asks of Forge. It loads a checkpoint only when it generates, so what counts is the user's choice."""

    name = "forge"

    @staticmethod
    def _loaded() -> Any:
        """None until the first generation."""
        from lora_trainer.host.forge import engine

        return engine.loaded()

    def _current(self) -> Any:
        from lora_trainer.host.forge import engine

        return engine.choice()["checkpoint_info"]

    def vaes(self) -> list[Path]:
        """Those of "VAE / Text Encoder" that lie in the folders of VAEs."""
        from lora_trainer.host.forge import engine

        return [Path(file) for file in engine.vae_files().values()]

    def lease(self, model: ModelConfig) -> AbstractContextManager[Lease]:
        """Lends the chosen model, or loads the one that the config names for as long as the loan lasts."""
        from lora_trainer.host.forge.lease import lend

        return lend(self._wanted(model.pretrained_model_name_or_path), self._vae(model.vae) or None, self.lets_through, model)


class ReForgeHost(_Relative):
    """reForge (and Forge Classic, untried): A1111's way of choosing and loading, Forge's way of holding a model."""

    name = "reforge"

    def lease(self, model: ModelConfig) -> AbstractContextManager[Lease]:
        """Lends the loaded model, or loads the one that the config names for as long as the loan lasts."""
        from lora_trainer.host.forge.reforge import lend

        return lend(self._wanted(model.pretrained_model_name_or_path), self._vae(model.vae), self.lets_through, model)
