"""The interface between the trainer and its host: a WebUI, or the stand-alone host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from lora_trainer.errors import ModelError, TrainerError
from lora_trainer.files import expand_user
from lora_trainer.host.web_names import WebNames
from lora_trainer.messages import Message, say
from lora_trainer.models.files import hub
from lora_trainer.path_kinds import is_network_path

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from lora_trainer.config.schema import ModelConfig
    from lora_trainer.control import Control
    from lora_trainer.models.source import ModelSource

MODEL_FIELD = "model.pretrained_model_name_or_path"
VAE_FIELD = "model.vae"


@attrs.frozen
class HostPaths:
    """A host's folders. `allowed_roots` empty: requests may access any path; else only paths inside these folders.

    `allow_flag`: the host's flag that adds one.
    """

    data_path: Path
    lora_dir: Path
    runs_dir: Path
    uploads_dir: Path
    cache_dir: Path
    allowed_roots: tuple[Path, ...] = ()
    allow_flag: str = "--lora-trainer-allow-path"

    def allows(self, path: Path) -> bool:
        """Whether a request may access `path`; symlinks are resolved first, so that none leads out of the roots."""
        if not self.allowed_roots:
            return True
        if is_network_path(str(path)) and not any(path.is_relative_to(root) for root in self.allowed_roots):
            return False  # before it is resolved, which would contact the computer that it names
        try:
            real = path.resolve()
        except (OSError, RuntimeError, ValueError):  # a link to itself, a name that is too long
            return False
        return any(real == root or root in real.parents for root in (root.resolve() for root in self.allowed_roots))


@attrs.frozen
class Checkpoint:
    """A checkpoint that the host offers. `loaded`: the one that an empty "base model" refers to.

    `unpack`: makes the file if it is not there yet, and returns its path.
    """

    title: str
    path: Path
    loaded: bool = False
    unpack: Callable[[], Path] | None = None

    def file(self) -> Path:
        """The path of the file, unpacked if it was not yet. Raises TrainerError where it cannot be."""
        return self.path if self.unpack is None else self.unpack()


class PictureRequest(Protocol):
    """One picture to draw (train.prompts.SampleRequest is one)."""

    @property
    def prompt(self) -> str: ...
    @property
    def negative(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def cfg(self) -> float: ...
    @property
    def steps(self) -> int: ...
    @property
    def sampler(self) -> str: ...
    @property
    def clip_skip(self) -> int: ...
    @property
    def flow_shift(self) -> float: ...


class Lease(Protocol):
    """A model lent for the duration of a `with` block.

    Model bundles are built from `source`. `preview`, `let_one_through` and `resume` may replace it when the host had to reload the
    model: the owner of a bundle compares `lease.source is source` after each of them and rebuilds the bundle when it differs.
    All methods are called in the thread that entered the `with` block.
    """

    device: torch.device
    checkpoint: Path
    clip_skip: int
    own_previews: bool
    notes: tuple[Message, ...]
    """Messages for the user about how the model is lent."""
    attention: str
    """The host's attention implementation: "xformers", "sdpa", or "" for another or an unknown one."""

    @property
    def source(self) -> ModelSource: ...
    @property
    def title(self) -> str: ...
    @property
    def vae_title(self) -> str: ...

    @property
    def sha256(self) -> str:
        """Hex hash of the whole checkpoint file."""
        ...

    def preview(
        self, request: PictureRequest, write_weights: Callable[[Path], None] | None, weight: float, control: Control
    ) -> Image | None:
        """An image from the host's own pipeline with the network that `write_weights` saves; None when it was interrupted.

        Only when `own_previews` is set. Raises TrainerError when the host cannot draw it; the lent weights are unchanged in
        any case.
        """
        ...

    def pause(self) -> None:
        """Returns model, device and queue to the host, so that the user can generate."""
        ...

    def resume(self) -> ModelSource:
        """Takes them back, as they were. Raises HostBusy (and stays paused) when the model cannot be restored."""
        ...

    def let_one_through(self, make_room: Callable[[], object] = lambda: None) -> bool:
        """Between two steps: lets one waiting generation run where the user's setting allows it. True when one ran.

        `make_room` is called before it: the run gives back what it only keeps to be faster.
        """
        ...


class Host(Protocol):
    """The program around the trainer."""

    name: str

    @property
    def version(self) -> str: ...
    def paths(self) -> HostPaths: ...
    def checkpoints(self) -> list[Checkpoint]: ...
    def vaes(self) -> list[Path]: ...

    def model_info(self) -> dict[str, Any]:
        """{"title", "path", "family", "prediction", "clip_skip", "native_size", "trainable", "reason"} of the loaded model."""
        ...

    def known_sha256(self, path: Path) -> str:
        """The SHA-256 of a checkpoint when the host has computed it before, else ""; computes nothing."""
        ...

    def memory(self) -> dict[str, Any]:
        """{"device", "total_mb", "free_mb", "host_mb"} of the device that trains."""
        ...

    def busy_reason(self) -> Message | None:
        """Why no run could start now because of the host; None when it could."""
        ...

    def lease(self, model: ModelConfig) -> AbstractContextManager[Lease]:
        """Lends the config's model. Raises ModelError or HostBusy before anything is touched."""
        ...

    def refresh_networks(self) -> None:
        """Has the host read its list of LoRA files again."""
        ...

    def is_listening(self) -> bool:
        """Whether other computers can reach the host."""
        ...

    def web_names(self) -> WebNames:
        """The names under which browsers may reach the host."""
        ...

    def is_authorized(self, request: Any) -> bool:
        """Whether a request (starlette's) carries the host's login; True when the host has none."""
        ...

    def challenge(self) -> Mapping[str, str]:
        """Headers of the 401 response, so that a browser asks for the password where the host's own API does."""
        ...

    def language(self) -> str:
        """The user's language: "en" or "zh_CN"."""
        ...

    def waiting(self) -> int:
        """How many generations wait for the run to pause or end."""
        ...

    def lets_through(self) -> bool:
        """Whether a generation may run between two steps instead of waiting for the end."""
        ...


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # the name is too long
        return False


def message_with_fix(error: TrainerError) -> Message:
    """The first problem's message and fix as one message."""
    problem = error.problems[0]
    return say("{message} {fix}", message=problem.message, fix=problem.fix)


def find_vae(value: str, vaes: Sequence[Path]) -> Path | None:
    """The path of a config's VAE: the name of one of `vaes`, a path, or a VAE of a Hub; None: the model's own.

    Raises ModelError when there is none, NotFetched for a Hub's VAE that has not been downloaded.
    """
    if not value:
        return None
    if (match := next((path for path in vaes if value in (path.name, path.stem, str(path))), None)) is not None:
        return match
    path = expand_user(value)
    if _exists(path):
        return path
    if (name := hub.HubName.parse(value)) is not None:
        return hub.require_downloaded(name)
    raise no_such_vae(value)


def no_such_vae(value: str) -> ModelError:
    """The error for a VAE that does not exist, or that the host cannot use."""
    return ModelError("there is no VAE {name}.", name=value, path=VAE_FIELD, fix="Choose a VAE file, or leave the field empty.")


def find_checkpoint(value: str, checkpoints: Sequence[Checkpoint]) -> Path:
    """The path of a config's base model: a path, the title, file name or stem of one of `checkpoints`, or a model of a Hub.

    Raises ModelError with the closest known name, NotFetched for a Hub's model that has not been downloaded.
    """
    path = expand_user(value)
    if path.is_absolute() or _exists(path):
        return next((checkpoint.file() for checkpoint in checkpoints if checkpoint.path == path), path)
    names: dict[str, Checkpoint] = {}
    for checkpoint in checkpoints:
        for name in (checkpoint.path.stem, checkpoint.path.name, checkpoint.title, checkpoint.title.partition(" [")[0]):
            names.setdefault(name.casefold(), checkpoint)
    if match := names.get(value.casefold()):
        return match.file()
    if (name := hub.HubName.parse(value)) is not None:
        return hub.require_downloaded(name)
    near = get_close_matches(value.casefold(), names, 1)
    fix = "Did you mean {near}?" if near else "Choose a checkpoint file."
    raise ModelError("there is no checkpoint {name}.", name=value, near=names[near[0]].path.name if near else "", path=MODEL_FIELD, fix=fix)
