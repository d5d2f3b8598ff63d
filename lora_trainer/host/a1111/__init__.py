"""AUTOMATIC1111's WebUI as a host. Only here, in install.py and in scripts/ are its modules imported."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.errors import ModelError
from lora_trainer.host.base import MODEL_FIELD, VAE_FIELD, Checkpoint, HostPaths, Lease, find_checkpoint, with_remedy
from lora_trainer.messages import Message

if TYPE_CHECKING:
    from lora_trainer.config.schema import ModelConfig
    from lora_trainer.models.detection.detect import Flags

LET_THROUGH = "lora_trainer_let_generations_through"


class A1111Host:
    """Everything that the trainer asks of A1111. Cheap to make; `app` is the web application once it has started."""

    name = "a1111"

    def __init__(self) -> None:
        self.app: Any = None

    @property
    def version(self) -> str:
        """As in the page's footer."""
        from modules import launch_utils

        return str(launch_utils.git_tag())

    def paths(self) -> HostPaths:
        """Runs and uploads lie under the data folder; files go into the LoRA folder."""
        from modules import paths, sd_models, shared

        data = Path(paths.data_path).absolute()
        own, options = data / "lora_trainer", shared.cmd_opts
        lora = Path(getattr(options, "lora_dir", None) or Path(paths.models_path) / "Lora").absolute()
        more = tuple(Path(folder).expanduser().absolute() for folder in getattr(options, "lora_trainer_allow_path", None) or ())
        models = [sd_models.model_path, *([options.ckpt_dir] if options.ckpt_dir else [])]
        return HostPaths(
            data_path=data,
            lora_dir=lora,
            runs_dir=own / "runs",
            uploads_dir=own / "uploads",
            cache_dir=own / "cache",
            allowed_roots=(data, lora, *more) if self.listening() else (),
            models_dirs=tuple(Path(folder) for folder in models),
        )

    def checkpoints(self) -> list[Checkpoint]:
        """The list behind the page's dropdown."""
        from modules import sd_models

        current = self._current()
        used = current.filename if current is not None else None
        return [Checkpoint(info.title, Path(info.filename), info.filename == used) for info in sd_models.checkpoints_list.values()]

    def vaes(self) -> list[Path]:
        """The list behind the page's VAE dropdown."""
        from modules import sd_vae

        return [Path(file) for file in sd_vae.vae_dict.values()]

    @staticmethod
    def _loaded() -> Any:
        """The loaded model without waiting for it (the host's own property loads one when there is none)."""
        from modules import sd_models

        return sd_models.model_data.sd_model

    def _current(self) -> Any:
        """The host's entry of the checkpoint that an empty "base model" means; None when there is none."""
        loaded = self._loaded()
        return None if loaded is None else loaded.sd_checkpoint_info

    def model_info(self) -> dict[str, Any]:
        """Of the loaded checkpoint; "reason" is a Message with the remedy where it cannot be trained."""
        from lora_trainer.host.a1111 import facts, refuse

        loaded = self._loaded()
        problem = refuse.refusal(loaded)
        info: dict[str, Any] = {"title": "", "path": "", "family": "", "prediction": "", "clip_skip": self.clip_skip(), "native_size": 512}
        info |= {"trainable": problem is None, "reason": "" if problem is None else with_remedy(problem), "because": ""}
        if loaded is None or not hasattr(loaded, "sd_checkpoint_info"):
            return info
        info |= {"title": loaded.sd_checkpoint_info.name_for_extra, "path": loaded.sd_checkpoint_info.filename}
        if problem is None:
            known = facts.of_model(loaded)
            info |= {"family": known.family, "native_size": known.native_size, "prediction": known.found.kind}
            info |= {"because": known.found.because, "zero_terminal_snr": known.found.zero_terminal_snr}
        return info

    @staticmethod
    def clip_skip() -> int:
        """The one that the user draws with."""
        from modules import shared

        return int(shared.opts.CLIP_stop_at_last_layers)

    def memory(self) -> dict[str, Any]:
        """Of the device that the host draws on."""
        import torch
        from modules import devices

        from lora_trainer.host.memory import device_memory

        return device_memory(torch.device(devices.device))

    def known_sha256(self, path: Path) -> str:
        """From the host's list, which knows what its cache of hashes knows."""
        from modules import sd_models

        known = (info for info in sd_models.checkpoints_list.values() if _same(info.filename, path))
        return next((str(info.sha256) for info in known if getattr(info, "sha256", None)), "")

    def busy_reason(self) -> Message | None:
        """Nothing: what cannot be shared is read from its file, and what is on beside the model is set aside."""
        return None

    def lease(self, model: ModelConfig) -> AbstractContextManager[Lease]:
        """Lends the loaded model, or loads the one that the config names for as long as the loan lasts."""
        from lora_trainer.host.a1111.lease import lend

        return lend(self._wanted(model.pretrained_model_name_or_path, model), self._vae(model.vae), self.lets_through, flags=model)

    def _wanted(self, value: str, flags: Flags | None = None) -> Any:
        """The host's entry of a checkpoint; None for the loaded one. Raises ModelError, also for a flag that its file contradicts."""
        from modules import sd_models

        from lora_trainer.models.detection import detect

        if not value:
            return None
        path = find_checkpoint(value, self.checkpoints())
        current = self._current()
        if current is not None and _same(current.filename, path):
            return current
        known = next((info for info in sd_models.checkpoints_list.values() if _same(info.filename, path)), None)
        if known is None and path.exists():
            raise ModelError(
                "{file} is not in the WebUI's list of checkpoints.",
                file=str(path),
                path=MODEL_FIELD,
                fix="Put it into {folder} and refresh the list at the top of the page.",
                folder=str(sd_models.model_path),
            )
        facts = detect.inspect(path, sha256=self.known_sha256(path))
        if flags is not None:
            facts.settled(v2=flags.v2, v_parameterization=flags.v_parameterization, zero_terminal_snr=flags.zero_terminal_snr)
        return known

    def _vae(self, value: str) -> str | None:
        """The VAE's file; "" for the host's choice."""
        if not value:
            return ""
        known = next((str(path) for path in self.vaes() if value in (path.name, path.stem, str(path))), value)
        if not Path(known).is_file():
            raise ModelError("there is no VAE {name}.", name=value, path=VAE_FIELD, fix="Choose a VAE file, or leave the field empty.")
        return known

    def refresh_networks(self) -> None:
        """Reads the LoRA folder again, as the button on the cards does."""
        from lora_trainer.host.a1111 import model

        networks = model.loaded_networks()
        if networks is not None:
            networks.list_available_networks()

    def listening(self) -> bool:
        """As the host's own `webui_is_non_local`."""
        from modules import shared

        return any(getattr(shared.cmd_opts, flag, None) for flag in ("listen", "share", "ngrok", "server_name"))

    def authorized(self, request: Any) -> bool:
        """Gradio's login, or --api-auth's."""
        from lora_trainer.host.a1111 import login

        return login.is_authorized(request, self.app if self.app is not None else request.app)

    def challenge(self) -> Mapping[str, str]:
        """The browser asks for the password where only the API has one."""
        from lora_trainer.host.a1111 import login

        page, api = login.wanted()
        return {"WWW-Authenticate": "Basic"} if api and not page else {}

    def language(self) -> str:
        """From the host's localization file."""
        from modules import shared

        chosen = str(getattr(shared.opts, "localization", "")).lower().replace("-", "_")
        return "zh_CN" if chosen.startswith(("zh", "chinese", "简体")) else "en"

    def waiting(self) -> int:
        """How many hold a place in the queue."""
        from modules import call_queue

        return len(getattr(call_queue.queue_lock, "_pending_threads", ()))

    def lets_through(self) -> bool:
        """The user's setting."""
        from modules import shared

        return bool(getattr(shared.opts, LET_THROUGH, True))


def _same(file: str, path: Path) -> bool:
    return Path(file).absolute() == path.absolute()
