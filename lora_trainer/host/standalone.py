"""The host of a headless run: files on disk, this process's device, nobody to share with."""

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
from lora_trainer.host.base import MODEL_FIELD, Checkpoint, HostPaths, PictureRequest, find_checkpoint, find_vae, with_remedy
from lora_trainer.host.memory import device_memory, empty
from lora_trainer.messages import Message
from lora_trainer.models.detection import detect
from lora_trainer.models.files.diffusers_folder import weights_file
from lora_trainer.models.files.vae_file import check_vae
from lora_trainer.models.source import FileSource, ModelSource

if TYPE_CHECKING:
    import torch

    from lora_trainer.config.schema import ModelConfig


class StandaloneHost:
    """Reads checkpoints from LORA_TRAINER_MODELS (several folders as in PATH) and ./models; the small model is always there.

    `root` (else LORA_TRAINER_DATA, else the working directory) holds output/, runs/ and uploads/. `device` is torch's name of where
    to calculate; empty: the GPU of this `number`, or the CPU where there is none.
    """

    name = "standalone"
    version = __version__

    def __init__(
        self, root: Path | None = None, *, listen: bool = False, allow: Sequence[Path] = (), device: str = "", number: int = 0
    ) -> None:
        self._root = root or Path(os.environ.get("LORA_TRAINER_DATA") or ".").absolute()
        self._listen = listen
        self._allow = tuple(allow)
        self._device, self._number = device, number

    def paths(self) -> HostPaths:
        """Everything below the root; bounded to it only when listening."""
        return HostPaths(
            data_path=self._root,
            lora_dir=self._root / "output",
            runs_dir=self._root / "runs",
            uploads_dir=self._root / "uploads",
            cache_dir=assets.cache_folder(),
            allowed_roots=(self._root, *self._allow) if self._listen else (),
            models_dirs=self._models_dirs(),
        )

    def _models_dirs(self) -> tuple[Path, ...]:
        named = [Path(folder).expanduser() for folder in os.environ.get("LORA_TRAINER_MODELS", "").split(os.pathsep) if folder]
        return (*named, self._root / "models")

    def checkpoints(self) -> list[Checkpoint]:
        """Every checkpoint in the models folders, and the small model; with at most one of the user's own, "" means that one."""
        own = [path for folder in self._models_dirs() if folder.is_dir() for path in _checkpoints(folder)]
        found = [Checkpoint(path.stem, path, loaded=len(own) == 1) for path in own]
        return [*found, Checkpoint(assets.TOY, assets.toy_checkpoint(), loaded=not own)]

    def vaes(self) -> list[Path]:
        """Files called *.vae.safetensors (or .pt, .ckpt), or in a folder called VAE, in the models folders."""
        folders = [folder for folder in self._models_dirs() if folder.is_dir()]
        found = (path for folder in folders for ending in ("safetensors", "pt", "ckpt") for path in folder.rglob(f"*.{ending}"))
        return sorted(path for path in found if not _is_checkpoint(path))

    def model_info(self) -> dict[str, Any]:
        """Of the checkpoint that an empty base model means."""
        none = {"title": "", "path": "", "family": "", "prediction": "", "clip_skip": 1, "native_size": 512, "trainable": False}
        chosen = next((checkpoint for checkpoint in self.checkpoints() if checkpoint.loaded), None)
        if chosen is None:
            return none | {"reason": with_remedy(_no_choice())}
        try:
            facts = detect.inspect(chosen.path, sha256=self.known_sha256(chosen.path))
        except TrainerError as error:
            return none | {"title": chosen.title, "path": str(chosen.path), "reason": with_remedy(error)}
        return none | facts.badge() | {"title": chosen.title, "path": str(chosen.path), "trainable": True, "reason": ""}

    def memory(self) -> dict[str, Any]:
        """Of the GPU where there is one, else of the computer."""
        return device_memory(_device(self._device, self._number)[0])

    def known_sha256(self, path: Path) -> str:
        """Of a file whose hash an earlier run has calculated."""
        return "" if path.is_dir() else known_sha256(path, assets.cache_folder())

    def busy_reason(self) -> Message | None:
        """Nobody else is here."""
        return None

    @contextmanager
    def lease(self, model: ModelConfig) -> Iterator[FileLease]:
        """Reads nothing yet: checks that the files can be trained on, and names them."""
        checkpoint = self._chosen(model.pretrained_model_name_or_path)
        sha256 = self.known_sha256(checkpoint)
        facts = detect.inspect_with(checkpoint, model, sha256=sha256)
        vae = find_vae(model.vae, self.vaes())
        if vae is not None:
            check_vae(vae)
        device, told = _device(self._device, self._number)
        said = {
            "prediction": None if model.v_parameterization is None else facts.prediction,
            "zero_terminal_snr": None if model.zero_terminal_snr is None else facts.zero_terminal_snr,
        }
        notes = () if told is None else (told,)
        yield FileLease(checkpoint, vae, model.clip_skip, device, notes=notes, known_sha256=sha256, **said)

    def _chosen(self, value: str) -> Path:
        if value:
            return find_checkpoint(value, self.checkpoints())
        chosen = next((checkpoint for checkpoint in self.checkpoints() if checkpoint.loaded), None)
        if chosen is None:
            raise _no_choice()
        return chosen.path

    def refresh_networks(self) -> None:
        """Nobody keeps a list."""

    def listening(self) -> bool:
        """Whether the tab was opened to the network."""
        return self._listen

    def authorized(self, request: Any) -> bool:
        """There is no login."""
        return True

    def challenge(self) -> Mapping[str, str]:
        """There is no login."""
        return {}

    def language(self) -> str:
        """From the environment, as programs do it."""
        words = next((os.environ[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if os.environ.get(name)), "")
        return "zh_CN" if words.lower().startswith("zh") else "en"

    def waiting(self) -> int:
        """Nobody."""
        return 0

    def lets_through(self) -> bool:
        """There is nobody to let through."""
        return False


@attrs.define(eq=False, slots=False)
class FileLease:
    """A checkpoint file that nobody else works with."""

    checkpoint: Path
    vae: Path | None
    clip_skip: int
    device: torch.device
    own_previews: bool = False
    notes: tuple[Message, ...] = ()
    attention: str = ""
    prediction: str | None = None
    """What the user says of it; None: what the file, or the model itself, says."""
    zero_terminal_snr: bool | None = None
    known_sha256: str = ""

    @cached_property
    def source(self) -> ModelSource:
        """The file, and the other VAE where one is wanted."""
        return FileSource(self.checkpoint, self.vae, self.prediction, self.zero_terminal_snr, self.known_sha256)

    @property
    def title(self) -> str:
        """The file's name without ending."""
        return self.checkpoint.stem

    @property
    def vae_title(self) -> str:
        """The other VAE's file name; empty: the checkpoint's own."""
        return self.vae.name if self.vae else ""

    @cached_property
    def sha256(self) -> str:
        """Calculated once for a file, when somebody asks for it."""
        return checkpoint_sha256(weights_file(self.checkpoint), assets.cache_folder())

    def preview(self, request: PictureRequest, write_weights: object, weight: float, control: object) -> NoReturn:
        """There is no pipeline but the trainer's own."""
        raise TrainerError("this host has no pipeline of its own to draw with.", fix="Use the trainer's sampler.")

    def pause(self) -> None:
        """Gives the GPU's free memory back to other programs."""
        empty(self.device)

    def resume(self) -> ModelSource:
        """Nobody has touched it."""
        return self.source

    def breathe(self) -> bool:
        """Nobody waits."""
        return False


def _device(name: str, number: int) -> tuple[torch.device, Message | None]:
    """The device of that name, else the first that trains here; and what to tell of one that does not. Raises TrainerError."""
    import torch

    from lora_trainer.host.devices import default_device, device_named

    device, told = (device_named(name), None) if name else default_device(number)
    if device.type == "cuda" and (name or number):
        torch.cuda.set_device(device_named(str(device)))
    return device, told


def _checkpoints(folder: Path) -> list[Path]:
    """Files of checkpoints below a folder, and models in diffusers' layout as their folders."""
    models = {path.parent for path in folder.rglob("model_index.json")}
    files = [path for ending in ("safetensors", "ckpt") for path in folder.rglob(f"*.{ending}") if _is_checkpoint(path)]
    return sorted([*models, *(path for path in files if not models.intersection(path.parents))])


def _is_checkpoint(path: Path) -> bool:
    return not (path.stem.lower().endswith(".vae") or "vae" in (part.lower() for part in path.parts[:-1]))


def _no_choice() -> ModelError:
    return ModelError("no base model is chosen.", path=MODEL_FIELD, fix="Choose a checkpoint file.")
