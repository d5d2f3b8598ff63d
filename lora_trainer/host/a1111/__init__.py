"""AUTOMATIC1111's WebUI as a host. Its modules are imported only in host/a1111, host/forge, install.py and scripts/."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.errors import ModelError
from lora_trainer.host.base import MODEL_FIELD, VAE_FIELD, Checkpoint, HostPaths, Lease, find_checkpoint, message_with_fix
from lora_trainer.host.web_names import WebNames
from lora_trainer.messages import Message

if TYPE_CHECKING:
    from lora_trainer.config.schema import ModelConfig
    from lora_trainer.models.detection.detect import Flags

LET_THROUGH = "lora_trainer_let_generations_through"


class A1111Host:
    """The Host for A1111. Cheap to construct; `app` is the web application once it has started."""

    name = "a1111"

    def __init__(self) -> None:
        self.app: Any = None

    @property
    def version(self) -> str:
        """As in the page's footer."""
        from modules import launch_utils

        return str(launch_utils.git_tag())

    def paths(self) -> HostPaths:
        """Runs and uploads lie under the data folder; LoRA files go into the LoRA folder."""
        from modules import paths, shared

        data = Path(paths.data_path).absolute()
        trainer_dir, options = data / "lora_trainer", shared.cmd_opts
        lora = Path(getattr(options, "lora_dir", None) or Path(paths.models_path) / "Lora").absolute()
        allowed = tuple(Path(folder).expanduser().absolute() for folder in getattr(options, "lora_trainer_allow_path", None) or ())
        return HostPaths(
            data_path=data,
            lora_dir=lora,
            runs_dir=trainer_dir / "runs",
            uploads_dir=trainer_dir / "uploads",
            cache_dir=trainer_dir / "cache",
            allowed_roots=(data, lora, *allowed) if self.is_listening() else (),
        )

    def checkpoints(self) -> list[Checkpoint]:
        """The entries of the page's checkpoint dropdown."""
        from modules import sd_models

        current = self._current_checkpoint()
        loaded_file = current.filename if current is not None else None
        return [Checkpoint(info.title, Path(info.filename), info.filename == loaded_file) for info in sd_models.checkpoints_list.values()]

    def vaes(self) -> list[Path]:
        """The entries of the page's VAE dropdown."""
        from modules import sd_vae

        return [Path(file) for file in sd_vae.vae_dict.values()]

    @staticmethod
    def _loaded_model() -> Any:
        """The loaded model or None, without loading one (the host's own property would)."""
        from modules import sd_models

        return sd_models.model_data.sd_model

    def _current_checkpoint(self) -> Any:
        """The host's entry of the checkpoint that an empty "base model" means; None when there is none."""
        loaded = self._loaded_model()
        return None if loaded is None else loaded.sd_checkpoint_info

    def model_info(self) -> dict[str, Any]:
        """The loaded checkpoint; "reason" is a Message with the remedy when it cannot be trained."""
        from lora_trainer.host.a1111 import facts, refuse

        loaded = self._loaded_model()
        problem = refuse.refusal(loaded)
        info: dict[str, Any] = {"title": "", "path": "", "family": "", "prediction": "", "clip_skip": self.clip_skip(), "native_size": 512}
        info |= {"trainable": problem is None, "reason": "" if problem is None else message_with_fix(problem), "because": ""}
        if loaded is None or not hasattr(loaded, "sd_checkpoint_info"):
            return info
        info |= {"title": loaded.sd_checkpoint_info.name_for_extra, "path": loaded.sd_checkpoint_info.filename}
        if problem is None:
            model_facts = facts.from_model(loaded)
            info |= {"family": model_facts.family, "native_size": model_facts.native_size, "prediction": model_facts.prediction.kind}
            info |= {"because": model_facts.prediction.reason, "zero_terminal_snr": model_facts.prediction.zero_terminal_snr}
        return info

    @staticmethod
    def clip_skip() -> int:
        """The user's setting for generations."""
        from modules import shared

        return int(shared.opts.CLIP_stop_at_last_layers)

    def memory(self) -> dict[str, Any]:
        """The memory of the host's device."""
        import torch
        from modules import devices

        from lora_trainer.host.memory import device_memory

        return device_memory(torch.device(devices.device))

    def known_sha256(self, path: Path) -> str:
        """From the host's list of checkpoints, which reads its cache of hashes."""
        from modules import sd_models

        entries = (info for info in sd_models.checkpoints_list.values() if _is_same_file(info.filename, path))
        return next((str(info.sha256) for info in entries if getattr(info, "sha256", None)), "")

    def busy_reason(self) -> Message | None:
        """None: weights that cannot be shared are read from the file, and what is active beside the model is switched off."""
        return None

    def lease(self, model: ModelConfig) -> AbstractContextManager[Lease]:
        """Lends the loaded model, or loads the config's for the duration of the lease."""
        from lora_trainer.host.a1111.lease import lend

        return lend(
            self._checkpoint_entry(model.pretrained_model_name_or_path, model), self._vae_file(model.vae), self.lets_through, flags=model
        )

    def _checkpoint_entry(self, value: str, flags: Flags | None = None) -> Any:
        """The host's entry of a checkpoint; None for the loaded one. Raises ModelError, also for a flag that the file contradicts."""
        from modules import sd_models

        from lora_trainer.models.detection import detect

        if not value:
            return None
        path = find_checkpoint(value, self.checkpoints())
        current = self._current_checkpoint()
        if current is not None and _is_same_file(current.filename, path):
            return current
        entry = next((info for info in sd_models.checkpoints_list.values() if _is_same_file(info.filename, path)), None)
        if entry is None and path.exists():
            raise ModelError(
                "{file} is not in the WebUI's list of checkpoints.",
                file=str(path),
                path=MODEL_FIELD,
                fix="Put it into {folder} and refresh the list at the top of the page.",
                folder=str(sd_models.model_path),
            )
        facts = detect.inspect(path, sha256=self.known_sha256(path))
        if flags is not None:
            facts.with_given(flags)
        return entry

    def _vae_file(self, value: str) -> str | None:
        """The VAE's path; "" for the user's selection in the host."""
        if not value:
            return ""
        file = next((str(path) for path in self.vaes() if value in (path.name, path.stem, str(path))), value)
        if not Path(file).is_file():
            raise ModelError("there is no VAE {name}.", name=value, path=VAE_FIELD, fix="Choose a VAE file, or leave the field empty.")
        return file

    def refresh_networks(self) -> None:
        """Reads the LoRA folder again, as the cards' refresh button does."""
        from lora_trainer.host.a1111 import model

        networks = model.networks_module()
        if networks is not None:
            networks.list_available_networks()

    def is_listening(self) -> bool:
        """As the host's `webui_is_non_local`."""
        from modules import shared

        return any(getattr(shared.cmd_opts, flag, None) for flag in ("listen", "share", "ngrok", "server_name"))

    def web_names(self) -> WebNames:
        """The computer's own, --server-name, those of --lora-trainer-allow-host, and the domains of tunnels; with a login every one."""
        from lora_trainer.host.a1111 import login

        return login.web_names()

    def is_authorized(self, request: Any) -> bool:
        """Gradio's login, or --api-auth's."""
        from lora_trainer.host.a1111 import login

        return login.is_authorized(request, self.app if self.app is not None else request.app)

    def challenge(self) -> Mapping[str, str]:
        """Basic authentication when only the API has a login."""
        from lora_trainer.host.a1111 import login

        page, api = login.required_logins()
        return {"WWW-Authenticate": "Basic"} if api and not page else {}

    def language(self) -> str:
        """From the host's localization file."""
        from modules import shared

        chosen = str(getattr(shared.opts, "localization", "")).lower().replace("-", "_")
        return "zh_CN" if chosen.startswith(("zh", "chinese", "简体")) else "en"

    def waiting(self) -> int:
        """The number of threads in the queue."""
        from modules import call_queue

        return len(getattr(call_queue.queue_lock, "_pending_threads", ()))

    def lets_through(self) -> bool:
        """The setting in the host's Settings page."""
        from modules import shared

        return bool(getattr(shared.opts, LET_THROUGH, True))


def _is_same_file(file: str, path: Path) -> bool:
    return Path(file).absolute() == path.absolute()
