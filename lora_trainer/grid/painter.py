"""Draws the pictures of a grid with the host's own pipeline or the trainer's sampler; each picture only once."""

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
from lora_trainer.config.choices.samplers import webui_names
from lora_trainer.control import Control
from lora_trainer.files import write_atomically
from lora_trainer.grid.files import GridFile
from lora_trainer.grid.tags import PromptTemplate
from lora_trainer.host.base import Host, Lease
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.load import load
from lora_trainer.models.source import ModelSource
from lora_trainer.train.previews.preview_prompts import SampleRequest
from lora_trainer.train.previews.prompt_networks import find_lora, split_tags
from lora_trainer.train.previews.sampling import decode, draw_latents
from lora_trainer.train.step.precision import Precision, choose_precision

Loras = Sequence[tuple[Path, float]]


@attrs.frozen
class CellPicture:
    """A cell's picture. `is_new`: drawn now; `latents` [1, channels, h, w] only where the trainer's sampler drew it now."""

    path: Path
    is_new: bool
    latents: Tensor | None = attrs.field(default=None, eq=False)


@attrs.define(eq=False)
class GridPainter:
    """Draws for one grid. The model is built when first needed, and again after the host has reloaded it.

    `lora_folder` is the run's output folder: other LoRAs in the prompt are looked up there, then in the host's LoRA folder.
    """

    host: Host
    control: Control
    lease: Lease
    template: PromptTemplate
    request: SampleRequest
    folder: Path
    lora_folder: Path
    _bundle: ModelBundle | None = None
    _source: ModelSource | None = None
    _precision: Precision | None = None
    _host_loras: dict[Path, bool] = attrs.field(factory=dict)

    @property
    def model_key(self) -> str:
        """Cache key of model, VAE and pipeline, which a picture depends on besides prompt and network."""
        return f"{self.lease.sha256}|{self.lease.vae_title}|{self.host.name if self.lease.own_previews else 'own'}"

    @torch.inference_mode(False)
    def bundle(self) -> tuple[ModelBundle, Precision]:
        """The lent model as modules, and its precision."""
        source = self.lease.source
        if self._bundle is None or self._precision is None or self._source is not source:
            self._precision = choose_precision("auto", source, self.lease.device)
            self._bundle, self._source = load(source, self.lease.device, self._precision.base), source
        return self._bundle, self._precision

    def release(self) -> None:
        """Drops the model before it is given back to the host."""
        self._bundle = self._source = None

    def draw_cell(self, file: GridFile | None, weight: float) -> CellPicture | None:
        """The picture of a file at a weight (`file` None: without the run's network), kept or drawn now; None when interrupted."""
        path = self.folder / f"{self._file_stem(file, weight)}.png"
        if path.is_file():
            return CellPicture(path, False)
        result = self._draw_by_host(file, weight) if self.lease.own_previews else self._draw_by_sampler(file, weight)
        if result is None:
            return None
        image, latents = result
        prompt = self.template.fill(file.stem, weight) if file else self.template.without_network()
        write_atomically(path, _png(image, infotext(prompt, self.request)))
        return CellPicture(path, True, latents)

    @torch.inference_mode(False)
    def sample_latents(self, requests: Sequence[SampleRequest], loras: Loras) -> Tensor | None:
        """Scaled latents [n, channels, h, w] on the CPU by the trainer's sampler; None when stopped."""
        bundle, precision = self.bundle()
        with with_loras(bundle, loras):
            latents = draw_latents(bundle, list(requests), precision, lambda: self.control.stopping)
        return None if latents is None else latents.float().cpu()

    def _file_stem(self, file: GridFile | None, weight: float) -> str:
        key = [self.model_key, self.template.without_network(), attrs.astuple(attrs.evolve(self.request, prompt=""))]
        key += [file.sha256, f"{weight:g}"] if file else []
        digest = hashlib.sha256(json.dumps(key).encode("utf-8")).hexdigest()[:16]
        return f"{file.number or 'final'}_{weight:g}_{digest}" if file else f"base_{digest}"

    def _draw_by_sampler(self, file: GridFile | None, weight: float) -> tuple[Image.Image, Tensor] | None:
        prompt, others = split_tags(self.template.without_network())
        loras = [(find_lora(name, [self.lora_folder, self.host.paths().lora_dir]), strength) for name, strength in others]
        if file is not None:
            loras.append((file.path, weight))
        latents = self.sample_latents([attrs.evolve(self.request, prompt=prompt)], loras)
        if latents is None:
            return None
        bundle, _ = self.bundle()
        return decode(bundle, latents.to(bundle.device))[0], latents

    def _draw_by_host(self, file: GridFile | None, weight: float) -> tuple[Image.Image, None] | None:
        """A file in the host's LoRA folder is named in the prompt, as a user would; any other is copied there for this picture."""
        if file is not None and not self._is_host_lora(file.path):
            request, write = attrs.evolve(self.request, prompt=self.template.without_network()), _copy_from(file.path)
        else:
            prompt = self.template.fill(file.stem, weight) if file else self.template.without_network()
            request, write = attrs.evolve(self.request, prompt=prompt), None
        image = self.lease.preview(request, write, weight, self.control)
        return None if image is None else (image, None)

    def _is_host_lora(self, path: Path) -> bool:
        """Whether the file's name stands for this file, and no other, in the host's LoRA folder."""
        if path not in self._host_loras:
            matches = [match.resolve() for match in self.host.paths().lora_dir.rglob(path.name)]
            self._host_loras[path] = matches == [path.resolve()]
        return self._host_loras[path]


def infotext(prompt: str, request: SampleRequest) -> str:
    """Prompt, negative prompt and one line of parameters, quoted as in A1111's infotext."""
    parameters = {
        "Steps": request.steps,
        "Sampler": webui_names(request.sampler)[0],
        "CFG scale": f"{request.cfg:g}",
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        **({"Clip skip": request.clip_skip} if request.clip_skip > 1 else {}),
    }
    last = ", ".join(f"{key}: {_quoted(str(value))}" for key, value in parameters.items())
    return "\n".join([prompt, *([f"Negative prompt: {request.negative}"] if request.negative else []), last])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if any(sign in text for sign in ",:\n") else text


def _copy_from(source: Path) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        shutil.copyfile(source, path)

    return write


def _png(image: Image.Image, text: str) -> bytes:
    """A PNG with prompt and settings as infotext, which the WebUI reads."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("parameters", text)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()
