"""The stand-alone host: checkpoint files on disk, and a device that is not shared with a WebUI."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import attrs

from lora_trainer import __version__, assets
from lora_trainer.errors import ModelError, TrainerError
from lora_trainer.file_hashes import checkpoint_sha256, known_sha256
from lora_trainer.host.base import MODEL_FIELD, Checkpoint, HostPaths, PictureRequest, find_checkpoint, find_vae, message_with_fix
from lora_trainer.host.memory import device_memory, empty_cache
from lora_trainer.host.web_names import WebNames, declared_names, declared_origins
from lora_trainer.messages import Message
from lora_trainer.models.detection import detect
from lora_trainer.models.detection.prediction_type import told_kind
from lora_trainer.models.files.diffusers_folder import main_weight_file
from lora_trainer.models.files.vae_file import check_vae
from lora_trainer.models.source import FileSource, ModelSource

if TYPE_CHECKING:
    import torch

    from lora_trainer.config.schema import ModelConfig


class StandaloneHost:
    """Finds checkpoints in LORA_TRAINER_MODELS (several folders as in PATH) and ./models; the small toy model is always available.

    `root` (else LORA_TRAINER_DATA, else the working directory) holds output/, runs/ and uploads/. `device` is a torch device name;
    empty: the GPU of this `number`, or the CPU when there is none.
    """

    name = "standalone"
    version = __version__

    def __init__(
        self,
        root: Path | None = None,
        *,
        listen: bool = False,
        allow: Sequence[Path] = (),
        names: Sequence[str] = (),
        device: str = "",
        number: int = 0,
    ) -> None:
        self._root = root or Path(os.environ.get("LORA_TRAINER_DATA") or ".").absolute()
        self._listen = listen
        self._allow = tuple(allow)
        self._names = WebNames(declared=declared_names(names), origins=declared_origins(names), any_address=listen)
        self._device, self._number = device, number

    def paths(self) -> HostPaths:
        """Everything below the root; access is limited to it only when listening on the network."""
        return HostPaths(
            data_path=self._root,
            lora_dir=self._root / "output",
            runs_dir=self._root / "runs",
            uploads_dir=self._root / "uploads",
            cache_dir=assets.cache_folder(),
            allowed_roots=(self._root, *self._allow) if self._listen else (),
            allow_flag="--allow-path",
        )

    def _models_dirs(self) -> tuple[Path, ...]:
        folders = [Path(folder).expanduser() for folder in os.environ.get("LORA_TRAINER_MODELS", "").split(os.pathsep) if folder]
        return (*folders, self._root / "models")

    def checkpoints(self) -> list[Checkpoint]:
        """Every checkpoint in the models folders, and the toy model. An empty base model means the user's only one, or the toy model."""
        own = [path for folder in self._models_dirs() if folder.is_dir() for path in _checkpoints(folder)]
        checkpoints = [Checkpoint(path.stem, path, loaded=len(own) == 1) for path in own]
        return [*checkpoints, Checkpoint(assets.TOY, assets.toy_path(), loaded=not own, unpack=assets.toy_checkpoint)]

    def vaes(self) -> list[Path]:
        """Files called *.vae.safetensors (or .pt, .ckpt), or in a folder called VAE, in the models folders."""
        folders = [folder for folder in self._models_dirs() if folder.is_dir()]
        files = (path for folder in folders for ending in ("safetensors", "pt", "ckpt") for path in folder.rglob(f"*.{ending}"))
        return sorted(path for path in files if not _is_checkpoint(path))

    def model_info(self) -> dict[str, Any]:
        """The facts of the checkpoint that an empty base model means."""
        info = {"title": "", "path": "", "family": "", "prediction": "", "clip_skip": 1, "native_size": 512, "trainable": False}
        chosen = next((checkpoint for checkpoint in self.checkpoints() if checkpoint.loaded), None)
        if chosen is None:
            return info | {"reason": message_with_fix(_no_model_error())}
        try:
            path = chosen.file()
            facts = detect.inspect(path, sha256=self.known_sha256(path))
        except TrainerError as error:
            return info | {"title": chosen.title, "path": str(chosen.path), "reason": message_with_fix(error)}
        return info | facts.badge() | {"title": chosen.title, "path": str(path), "trainable": True, "reason": ""}

    def memory(self) -> dict[str, Any]:
        """Of the device that trains."""
        return device_memory(_device(self._device, self._number)[0])

    def known_sha256(self, path: Path) -> str:
        """From our cache of hashes."""
        return "" if path.is_dir() else known_sha256(path, assets.cache_folder())

    def busy_reason(self) -> Message | None:
        """Never busy."""
        return None

    @contextmanager
    def lease(self, model: ModelConfig) -> Iterator[FileLease]:
        """Checks that the checkpoint and the VAE can be used; reads no weights yet."""
        checkpoint = self._checkpoint_path(model.pretrained_model_name_or_path)
        sha256 = self.known_sha256(checkpoint)
        facts = detect.inspect_with_flags(checkpoint, model, sha256=sha256)
        vae = find_vae(model.vae, self.vaes())
        if vae is not None:
            check_vae(vae)
        device, note = _device(self._device, self._number)
        from_user = {
            "prediction": facts.prediction if told_kind(model) else None,
            "zero_terminal_snr": None if model.zero_terminal_snr is None else facts.zero_terminal_snr,
        }
        notes = () if note is None else (note,)
        yield FileLease(checkpoint, vae, model.clip_skip, device, notes=notes, known_sha256=sha256, **from_user)

    def _checkpoint_path(self, value: str) -> Path:
        if value:
            return find_checkpoint(value, self.checkpoints())
        chosen = next((checkpoint for checkpoint in self.checkpoints() if checkpoint.loaded), None)
        if chosen is None:
            raise _no_model_error()
        return chosen.file()

    def refresh_networks(self) -> None:
        """There is no list to refresh."""

    def is_listening(self) -> bool:
        """Whether the page is served to the network."""
        return self._listen

    def web_names(self) -> WebNames:
        """This computer's own; when listening on the network also its addresses."""
        return self._names

    def is_authorized(self, request: Any) -> bool:
        """There is no login."""
        return True

    def challenge(self) -> Mapping[str, str]:
        """There is no login."""
        return {}

    def language(self) -> str:
        """From the environment's locale."""
        locale = next((os.environ[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if os.environ.get(name)), "")
        return "zh_CN" if locale.lower().startswith("zh") else "en"

    def waiting(self) -> int:
        """Always 0."""
        return 0

    def lets_through(self) -> bool:
        """There are no other generations."""
        return False


@attrs.define(eq=False, slots=False)
class FileLease:
    """See host.base.Lease: a checkpoint file that is not shared with anyone."""

    checkpoint: Path
    vae: Path | None
    clip_skip: int
    device: torch.device
    own_previews: bool = False
    notes: tuple[Message, ...] = ()
    attention: str = ""
    prediction: str | None = None
    """The user's setting; None: detected from the file or the model."""
    zero_terminal_snr: bool | None = None
    known_sha256: str = ""

    @cached_property
    def source(self) -> ModelSource:
        """The checkpoint file, and the separate VAE when there is one."""
        return FileSource(self.checkpoint, self.vae, self.prediction, self.zero_terminal_snr, self.known_sha256)

    @property
    def title(self) -> str:
        """The file's name without suffix."""
        return self.checkpoint.stem

    @property
    def vae_title(self) -> str:
        """The separate VAE's file name; empty: the checkpoint's own VAE."""
        return self.vae.name if self.vae else ""

    @cached_property
    def sha256(self) -> str:
        """Computed once per file, on first access."""
        return checkpoint_sha256(main_weight_file(self.checkpoint), assets.cache_folder())

    def preview(self, request: PictureRequest, write_weights: object, weight: float, control: object) -> NoReturn:
        """Raises TrainerError: this host has no pipeline of its own."""
        raise TrainerError("this host has no pipeline of its own to draw with.", fix="Use the trainer's sampler.")

    def pause(self) -> None:
        """Returns the GPU's cached memory to other programs."""
        empty_cache(self.device)

    def resume(self) -> ModelSource:
        """Nothing has changed it."""
        return self.source

    def let_one_through(self, make_room: object = None) -> bool:
        """No generation waits."""
        return False


def _device(name: str, number: int) -> tuple[torch.device, Message | None]:
    """The device of that name, else the first that can train; and a message about one that cannot. Raises TrainerError."""
    import torch

    from lora_trainer.host.devices import default_device, device_named

    device, note = (device_named(name), None) if name else default_device(number)
    if device.type == "cuda" and (name or number):
        torch.cuda.set_device(device_named(str(device)))
    return device, note


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoint files below a folder, and the folders of models in diffusers' layout."""
    models = {path.parent for path in folder.rglob("model_index.json")}
    files = [path for ending in ("safetensors", "ckpt") for path in folder.rglob(f"*.{ending}") if _is_checkpoint(path)]
    return sorted([*models, *(path for path in files if not models.intersection(path.parents))])


def _is_checkpoint(path: Path) -> bool:
    return not (path.stem.lower().endswith(".vae") or "vae" in (part.lower() for part in path.parts[:-1]))


def _no_model_error() -> ModelError:
    return ModelError("no base model is chosen.", path=MODEL_FIELD, fix="Choose a checkpoint file.")
