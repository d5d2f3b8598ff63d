"""Drawing the pictures of a grid: by the host's own pipeline where it has one, else by the trainer's sampler; each only once."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from lora_trainer.adapters.lora_file import with_loras
from lora_trainer.control import Control
from lora_trainer.files import write_atomically
from lora_trainer.grid.files import GridFile, find_lora
from lora_trainer.grid.tags import Recipe, split_tags
from lora_trainer.grid.xyz import infotext
from lora_trainer.host.base import Host, Lease
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.load import load
from lora_trainer.models.source import ModelSource
from lora_trainer.train.previews.preview_prompts import SampleRequest
from lora_trainer.train.previews.sampling import decode, draw_latents
from lora_trainer.train.step.precision import Precision, choose_precision

Loras = Sequence[tuple[Path, float]]


@attrs.frozen
class Picture:
    """A cell's file. `fresh`: drawn now; its latents [1, 4, h, w] where the trainer's sampler drew it."""

    path: Path
    fresh: bool
    latents: Tensor | None = attrs.field(default=None, eq=False)


@attrs.define(eq=False)
class GridPainter:
    """Draws for one grid. The model is built when it is first needed, and anew when the host had to read it again.

    `networks` is the run's output folder: other networks that the prompt names are looked for there, then in the host's LoRA folder.
    """

    host: Host
    control: Control
    lease: Lease
    recipe: Recipe
    request: SampleRequest
    folder: Path
    networks: Path
    _bundle: ModelBundle | None = None
    _source: ModelSource | None = None
    _precision: Precision | None = None
    _own_names: dict[Path, bool] = attrs.field(factory=dict)

    @property
    def model_key(self) -> str:
        """What a picture depends on besides prompt and network: model, VAE and pipeline."""
        return f"{self.lease.sha256}|{self.lease.vae_title}|{self.host.name if self.lease.own_previews else 'own'}"

    @torch.inference_mode(False)
    def bundle(self) -> tuple[ModelBundle, Precision]:
        """The lent model as modules."""
        source = self.lease.source
        if self._bundle is None or self._precision is None or self._source is not source:
            self._precision = choose_precision("auto", source, self.lease.device)
            self._bundle, self._source = load(source, self.lease.device, self._precision.base), source
        return self._bundle, self._precision

    def release(self) -> None:
        """Lets go of the model before it is given back."""
        self._bundle = self._source = None

    def picture(self, file: GridFile | None, weight: float) -> Picture | None:
        """The picture of a file at a weight (None: without the run's network), kept or drawn now; None when interrupted."""
        path = self.folder / f"{self._name(file, weight)}.png"
        if path.is_file():
            return Picture(path, False)
        drawn = self._by_host(file, weight) if self.lease.own_previews else self._by_sampler(file, weight)
        if drawn is None:
            return None
        image, latents = drawn
        prompt = self.recipe.filled(file.stem, weight) if file else self.recipe.without()
        write_atomically(path, _png(image, infotext(prompt, self.request, {})))
        return Picture(path, True, latents)

    @torch.inference_mode(False)
    def latents(self, requests: Sequence[SampleRequest], loras: Loras) -> Tensor | None:
        """Scaled latents [n, 4, h, w] on the CPU by the trainer's sampler; None when stopped."""
        bundle, precision = self.bundle()
        with with_loras(bundle, loras):
            drawn = draw_latents(bundle, list(requests), precision, lambda: self.control.stopping)
        return None if drawn is None else drawn.float().cpu()

    def _name(self, file: GridFile | None, weight: float) -> str:
        words = [self.model_key, self.recipe.without(), attrs.astuple(attrs.evolve(self.request, prompt=""))]
        words += [file.sha256, f"{weight:g}"] if file else []
        digest = hashlib.sha256(json.dumps(words).encode("utf-8")).hexdigest()[:16]
        return f"{file.number or 'final'}_{weight:g}_{digest}" if file else f"base_{digest}"

    def _by_sampler(self, file: GridFile | None, weight: float) -> tuple[Image.Image, Tensor] | None:
        words, others = split_tags(self.recipe.without())
        loras = [(find_lora(name, [self.networks, self.host.paths().lora_dir]), strength) for name, strength in others]
        if file is not None:
            loras.append((file.path, weight))
        latents = self.latents([attrs.evolve(self.request, prompt=words)], loras)
        if latents is None:
            return None
        bundle, _ = self.bundle()
        return decode(bundle, latents.to(bundle.device))[0], latents

    def _by_host(self, file: GridFile | None, weight: float) -> tuple[Image.Image, None] | None:
        """A file in the host's LoRA folder is named in the prompt, as the user would; another one is lent for this picture."""
        if file is not None and not self._known_to_host(file.path):
            request, write = attrs.evolve(self.request, prompt=self.recipe.without()), _copier(file.path)
        else:
            prompt = self.recipe.filled(file.stem, weight) if file else self.recipe.without()
            request, write = attrs.evolve(self.request, prompt=prompt), None
        image = self.lease.preview(request, write, weight, self.control)
        return None if image is None else (image, None)

    def _known_to_host(self, path: Path) -> bool:
        """Whether the host finds this file, and no other, under its name."""
        if path not in self._own_names:
            same = [found.resolve() for found in self.host.paths().lora_dir.rglob(path.name)]
            self._own_names[path] = same == [path.resolve()]
        return self._own_names[path]


def _copier(source: Path) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        shutil.copyfile(source, path)

    return write


def _png(image: Image.Image, text: str) -> bytes:
    """A PNG that holds its prompt and settings, as the WebUI reads them."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("parameters", text)
    packed = io.BytesIO()
    image.save(packed, "PNG", pnginfo=info)
    return packed.getvalue()
