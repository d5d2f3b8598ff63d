"""What a run needs of the device's memory, phase by phase (no torch)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from lora_trainer.config import effective
from lora_trainer.config.choices.optimizers import optimizer_spec
from lora_trainer.config.schema import DataConfig, TrainConfig
from lora_trainer.data.sources.blueprint import resolution_of
from lora_trainer.models import layout
from lora_trainer.models.detection.detect import ModelFacts
from lora_trainer.train.memory import activations
from lora_trainer.train.memory.activations import DtypeSizes, RecomputeChoice, UNetShape

DTYPE_BYTES = {"no": 4, "fp16": 2, "bf16": 2, "float": 4}
TFLOPS = {"cpu": 0.05, "cuda": 10.0}
"""A guess of the throughput in practice."""
SD1_TEXTS = ((768, 12),)
LOAD, CAPTIONS, PICTURES, STEP, PREVIEW, SAVE = "load", "captions", "pictures", "step", "preview", "save"
"""Phases of a run: loading the model, encoding captions, encoding pictures, a step, a preview, saving."""
ENCODE_BYTES, DECODE_BYTES = 2560.0, 3072.0
"""Bytes for each pixel of a picture that the VAE keeps at a time in float32, counted as in benchmarks/memory.py; half of it in 16 bits."""
STRIPS_ENCODE_BYTES, STRIPS_DECODE_BYTES = 1184.0, 2144.0
"""The same where the VAE works on strips, as it does on a GPU without room for the whole (train/memory/vae_strips.py)."""
CAPTION_BYTES = 150 * 2**20
"""What a batch of captions takes, at most, besides the text encoders."""


@attrs.frozen
class Machine:
    """The machine of a run: `free_mb` memory for it, `tflops` a guess of the throughput in practice.

    `lent`: a host lends its model, which can be neither converted nor offloaded, unless the run is a process of its own.
    """

    device: str = "cpu"
    free_mb: float = 0.0
    tflops: float = 0.05
    lent: bool = False
    host_mb: float = 0.0
    """The part of `free_mb` that the host's model takes: free for a run that shares it, not for one in a process of its own."""
    auto_precision: str = "fp16"
    """What memory.mixed_precision = "auto" means on this GPU for the model of the run: fp16, which most WebUIs use, where it is unknown."""

    @classmethod
    def of(cls, device: str, memory: Mapping[str, Any], *, lent: bool, auto_precision: str) -> Machine:
        """The machine of a run that begins now, by its host's memory report."""
        shared = float(memory.get("host_mb") or 0) if lent else 0.0
        return cls(device, float(memory["free_mb"]) + shared, TFLOPS.get(device, TFLOPS["cuda"]), lent, shared, auto_precision)

    def for_run(self, config: TrainConfig) -> Machine:
        """As a run of this config finds it: one in a process of its own reads its model from the file, and the host keeps its own."""
        if not effective.uses_own_process(config):
            return self
        return attrs.evolve(self, free_mb=max(0.0, self.free_mb - self.host_mb), host_mb=0.0, lent=False)


@attrs.frozen
class MemoryPhase:
    """One phase of a run with its parts in MB: model, network, optimizer, activations (or what encoding takes), workspace."""

    name: str
    parts: tuple[tuple[str, float], ...]

    @property
    def needed_mb(self) -> float:
        """Sum of the parts."""
        return sum(megabytes for _, megabytes in self.parts)


@attrs.frozen
class _Weights:
    """Bytes of the model's parts on the device, and of what stays there beside any of them (`resident`: the parts that cannot leave it)."""

    unet: float
    text: float
    vae: float
    vae_element: int
    takes_turns: bool

    def model(self, *parts: str) -> float:
        """Of these parts; of all where none can leave the device."""
        names = parts if self.takes_turns else ("unet", "text", "vae")
        return sum(float(getattr(self, name)) for name in names)


def memory_phases(
    config: TrainConfig, datasets: Sequence[DataConfig], facts: ModelFacts | None, machine: Machine, trained: int
) -> tuple[MemoryPhase, ...]:
    """The phases of a run that trains `trained` parameters. A run needs the largest of them.

    On a GPU a model that is read from a file takes turns: captions, then pictures, are encoded before the U-Net is there, and where memory
    is short a part makes room for the next. What a host lends stays where it is, and on the CPU there is no elsewhere.
    """
    sizes = dtype_sizes(config, machine)
    weights = _weights(config, facts, machine, sizes)
    choice, state = recompute_choice(config, datasets, facts, sizes), optimizer_spec(config.optimizer.type).state_bytes
    step = memory_parts(choice, trained, sizes, state)
    network, optimizer, workspace = step["network"], step["optimizer"], (600.0 if machine.device != "cpu" else 100.0) * 2**20
    pixels, vae_work = max(map(pixels_of, datasets)), weights.vae_element / 4
    besides = network + optimizer + workspace + weights.model("vae")

    def vae_bytes(whole: float, strips: float, pictures: int) -> float:
        """What the VAE works with, by the bytes for a pixel."""
        needed = whole * vae_work * pixels * pictures
        is_short = machine.device != "cpu" and 0 < machine.free_mb * 2**20 < besides + needed
        return strips * vae_work * pixels * pictures if is_short else needed

    def phase(name: str, model: float, work: float) -> MemoryPhase:
        parts = {"model": model, "network": network, "optimizer": optimizer, "activations": work, "workspace": workspace}
        return MemoryPhase(name, tuple((part, size / 2**20) for part, size in parts.items()))

    def previews() -> Iterator[tuple[float, float]]:
        yield weights.model("text"), CAPTION_BYTES
        yield weights.model("unet"), _drawing_bytes(facts, pixels, sizes)
        yield weights.model("vae"), vae_bytes(DECODE_BYTES, STRIPS_DECODE_BYTES, 1)

    trains_text = effective.trains_text_encoder(config)
    stays = ["unet", *(["text"] if trains_text or not effective.caches_captions(config) else [])]
    phases = [phase(LOAD, max(weights.model("unet"), weights.model("text", "vae")), 0.0)]
    if not trains_text:
        phases.append(phase(CAPTIONS, weights.model("text"), CAPTION_BYTES))
    encoding = vae_bytes(ENCODE_BYTES, STRIPS_ENCODE_BYTES, config.data.vae_batch_size)
    phases.append(phase(PICTURES, weights.model("vae"), encoding))
    phases.append(phase(STEP, _step_model(weights, stays, machine), step["activations"]))
    if (config.sample.prompts or config.sample.prompt_file) and not machine.lent:
        phases.append(phase(PREVIEW, *max(previews(), key=sum)))
    phases.append(phase(SAVE, _step_model(weights, stays, machine), 0.0))
    return tuple(phases)


def _step_model(weights: _Weights, stays: Sequence[str], machine: Machine) -> float:
    """Of a step; what a host lends counts without its VAE, which some of them keep off the device."""
    return weights.unet + weights.text if machine.lent else weights.model(*stays)


def _weights(config: TrainConfig, facts: ModelFacts | None, machine: Machine, sizes: DtypeSizes) -> _Weights:
    unet, text, vae = (860e6, 123e6, 84e6) if facts is None else (facts.unet_parameters, facts.text_parameters, facts.vae_parameters)
    is_own = not machine.lent
    unet_bytes = unet if is_own and config.memory.fp8_base_unet else unet * sizes.compute
    vae_element = 4 if is_own and config.memory.vae_precision != "bf16" else sizes.compute
    return _Weights(unet_bytes, text * sizes.compute, vae * vae_element, vae_element, takes_turns=is_own and machine.device != "cpu")


def _drawing_bytes(facts: ModelFacts | None, pixels: int, sizes: DtypeSizes) -> float:
    """What drawing a picture keeps at a time: the U-Net's largest block, for the prompt and the negative one, and its skip connections."""
    shape, cells = shape_of(facts), max(1, pixels // 64)
    skips = sum(3 * width * 2 * cells / 4**level * sizes.compute for level, width in enumerate(shape.channels))
    return skips + max(block.options[0].kept_bytes for block in activations.unet_blocks(shape, cells, 2, 0, sizes))


def memory_parts(choice: RecomputeChoice, trained: int, sizes: DtypeSizes, state: float = 8.0) -> dict[str, float]:
    """Bytes that training `trained` parameters needs besides the model: parameters, optimizer state (`state` bytes each), activations.

    `choice` says which blocks are recomputed. Memory peaks at the start of backward, or when all gradients exist.
    """
    copies = trained * sizes.compute if sizes.compute < 4 else 0
    return {"network": 4.0 * trained + copies, "optimizer": state * trained, "activations": max(choice.peak_bytes, 4.0 * trained + copies)}


def dtype_sizes(config: TrainConfig, machine: Machine) -> DtypeSizes:
    """Bytes per value in a step."""
    precision, on_cpu = config.memory.mixed_precision, machine.device == "cpu"
    if precision == "auto":
        precision = "no" if on_cpu else machine.auto_precision
    return DtypeSizes(DTYPE_BYTES[precision], DTYPE_BYTES[precision] if on_cpu else 4)


def recompute_choice(config: TrainConfig, datasets: Sequence[DataConfig], facts: ModelFacts | None, dtypes: DtypeSizes) -> RecomputeChoice:
    """Which blocks of the model are recomputed, for the largest batch."""
    memory, rank = config.memory, config.network.dim
    limit = memory.pictures_at_once
    batches = [(pixels_of(data), min(data.batch_size, limit) if limit else data.batch_size) for data in datasets]
    pixels, pictures = max(batches, key=lambda batch: batch[0] * batch[1])
    shape = shape_of(facts, half=dtypes.compute < 4 and memory.mixed_precision != "bf16")
    cells = max(1, pixels // 64)
    blocks = list(activations.unet_blocks(shape, cells, pictures, rank, dtypes))
    if effective.trains_text_encoder(config):
        texts = SD1_TEXTS if facts is None or not facts.texts else facts.texts
        encoder_layers = (
            (f"text_encoder.{encoder}.{number}", width) for encoder, (width, layers) in enumerate(texts) for number in range(layers)
        )
        blocks += [activations.clip_layer(name, width, pictures, rank, dtypes) for name, width in encoder_layers]
    rest = activations.bytes_between_blocks(shape, cells * pictures, rank, dtypes)
    if not memory.gradient_checkpointing:
        return activations.keep_all(blocks, rest)
    budget = memory.checkpointing_budget_gb * 2**30
    return activations.recompute_within(blocks, rest, budget) if budget else activations.recompute_all(blocks, rest)


def shape_of(facts: ModelFacts | None, *, half: bool = False) -> UNetShape:
    """The U-Net's shape; Stable Diffusion 1.5's where it is unknown. `half`: computed in float16."""
    if facts is None or not facts.unet_levels:
        return activations.SD1
    row = layout.row(facts.family)
    levels = tuple((width, depth, row.unet_heads or max(1, width // 64)) for width, depth in facts.unet_levels)
    return UNetShape(levels, facts.middle_depth, facts.context_width, upcast=half and row.v2)


def pixels_of(data: DataConfig) -> int:
    """Pixels of a picture at the training size."""
    width, height = resolution_of(data)
    return width * height
