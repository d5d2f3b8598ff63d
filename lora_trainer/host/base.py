"""The contract between the trainer and its host, be it a WebUI or nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from lora_trainer.errors import ModelError, TrainerError
from lora_trainer.messages import Message, say
from lora_trainer.models.files import hub

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
    """Folders of a host. `allowed_roots` empty: everything may be read and written; else only what lies inside them."""

    data_path: Path
    lora_dir: Path
    runs_dir: Path
    uploads_dir: Path
    cache_dir: Path
    allowed_roots: tuple[Path, ...] = ()
    models_dirs: tuple[Path, ...] = ()

    def allows(self, path: Path) -> bool:
        """Whether a request may touch `path`; links are followed first, so that none leads out of the roots."""
        if not self.allowed_roots:
            return True
        real = path.resolve()
        return any(real == root or root in real.parents for root in (root.resolve() for root in self.allowed_roots))


@attrs.frozen
class Checkpoint:
    """A checkpoint that the host offers. `loaded`: the one that an empty "base model" means."""

    title: str
    path: Path
    loaded: bool = False


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


class Lease(Protocol):
    """A model lent for the time of a `with`.

    `source` is what bundles are built from. `preview`, `breathe` and `resume` may replace it, when the host had to read the
    model anew: whoever holds a bundle compares `lease.source is source` after each of them and rebuilds when it is another.
    All methods are called in the thread that entered the `with`.
    """

    device: torch.device
    checkpoint: Path
    clip_skip: int
    own_previews: bool
    notes: tuple[Message, ...]
    """What the user should know of the way in which the model is lent."""
    attention: str
    """How the host calculates attention: "xformers" or "sdpa", "" where it is another way or not known."""

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
        """A picture by the host's own pipeline with the weights that `write_weights` saves; None when it was interrupted.

        Only where `own_previews`. Raises TrainerError when the host could not draw it; the lent weights are as before in any
        case.
        """
        ...

    def pause(self) -> None:
        """Gives model, device and queue back, so that the user can generate."""
        ...

    def resume(self) -> ModelSource:
        """Takes them again, as they were. Raises HostBusy (and stays paused) when the model cannot be brought back."""
        ...

    def breathe(self) -> bool:
        """Between two steps: lets one waiting generation through where the user wants that. True when it did."""
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
        """The hash of a checkpoint's file where the host has calculated it before; empty: nothing is calculated for this."""
        ...

    def memory(self) -> dict[str, Any]:
        """{"device", "total_mb", "free_mb", "host_mb"} of the device that trains."""
        ...

    def busy_reason(self) -> Message | None:
        """Why no run could start now because of the host; None when it could."""
        ...

    def lease(self, model: ModelConfig) -> AbstractContextManager[Lease]:
        """Lends the model that the config names. Raises ModelError or HostBusy before anything is touched."""
        ...

    def refresh_networks(self) -> None:
        """Makes the host see the LoRA files that are there now."""
        ...

    def listening(self) -> bool:
        """Whether other computers can reach the host."""
        ...

    def authorized(self, request: Any) -> bool:
        """Whether a web request (starlette's) comes with the host's login; True where the host has none."""
        ...

    def challenge(self) -> Mapping[str, str]:
        """Headers of the 401 answer, so that a browser asks for the password where the host's own API does."""
        ...

    def language(self) -> str:
        """The user's language: "en" or "zh_CN"."""
        ...

    def waiting(self) -> int:
        """How many generations wait for the run to pause or end."""
        ...

    def lets_through(self) -> bool:
        """Whether a generation runs between two steps instead of waiting for the end."""
        ...


def with_remedy(error: TrainerError) -> Message:
    """What is wrong and what to do about it, in one message."""
    problem = error.problems[0]
    return say("{message} {fix}", message=problem.message, fix=problem.fix)


def find_vae(value: str, known: Sequence[Path]) -> Path | None:
    """The file or folder that a config's VAE means: a known one's name, a path, or a VAE of a Hub; None: the model's own.

    Raises ModelError, NotFetched for a Hub's VAE that is not here yet.
    """
    if not value:
        return None
    if (found := next((path for path in known if value in (path.name, path.stem, str(path))), None)) is not None:
        return found
    path = Path(value).expanduser()
    if path.exists():
        return path
    if (name := hub.Name.read(value)) is not None:
        return hub.here(name)
    raise no_such_vae(value)


def no_such_vae(value: str) -> ModelError:
    """A VAE that cannot be found, or that the host does not take."""
    return ModelError("there is no VAE {name}.", name=value, path=VAE_FIELD, fix="Choose a VAE file, or leave the field empty.")


def find_checkpoint(value: str, known: Sequence[Checkpoint]) -> Path:
    """The file that a config's base model means: a path, the title, file name or stem of a known checkpoint, or a model of a Hub.

    Raises ModelError that offers the nearest known name, NotFetched for a Hub's model that is not here yet.
    """
    path = Path(value).expanduser()
    if path.is_absolute() or path.exists():
        return path
    names: dict[str, Path] = {}
    for checkpoint in known:
        for name in (checkpoint.path.stem, checkpoint.path.name, checkpoint.title, checkpoint.title.partition(" [")[0]):
            names.setdefault(name.casefold(), checkpoint.path)
    if found := names.get(value.casefold()):
        return found
    if (name := hub.Name.read(value)) is not None:
        return hub.here(name)
    near = get_close_matches(value.casefold(), names, 1)
    fix = "Did you mean {near}?" if near else "Choose a checkpoint file."
    raise ModelError("there is no checkpoint {name}.", name=value, near=names[near[0]].name if near else "", path=MODEL_FIELD, fix=fix)
