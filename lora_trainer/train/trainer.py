"""What the loop works with: model, adapter, optimizer and caches, attached to the modules and detached again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from lora_trainer.adapters.base import Adapter
from lora_trainer.adapters.base_weights import MergedNetwork
from lora_trainer.adapters.lora_file import merged_networks, read_lora
from lora_trainer.config.schema import LossConfig, TrainConfig
from lora_trainer.data.cache.latent_cache import LatentCache
from lora_trainer.data.records import ImageRecord
from lora_trainer.events import Warned
from lora_trainer.models.bundle import ModelBundle
from lora_trainer.models.conditioning import Conditioning
from lora_trainer.models.source import FileSource, ModelSource
from lora_trainer.optim.optimizers import TrainingOptimizer
from lora_trainer.train.inputs import vae
from lora_trainer.train.inputs.caption_encoder import CaptionEncoder
from lora_trainer.train.inputs.dataset import TrainingDataset
from lora_trainer.train.inputs.examples import LatentViews, sizes_of
from lora_trainer.train.memory import checkpointing, eight_bit, placement, vae_strips
from lora_trainer.train.memory.activations import Block, DtypeSizes
from lora_trainer.train.memory.checkpointing import Checkpointing
from lora_trainer.train.memory.oom import free_cache, retry_after_free
from lora_trainer.train.outputs.ema import EmaWeights, ema_weights
from lora_trainer.train.step import attention
from lora_trainer.train.step.compiling import CompiledBlocks
from lora_trainer.train.step.cuda_graphs import CudaGraphs
from lora_trainer.train.step.precision import Precision

RELEASED: Any = None


@attrs.define(eq=False)
class Trainer:
    """Everything that the loop works with. `bundle` is replaced when the host had to load its model anew."""

    config: TrainConfig
    dataset: TrainingDataset
    precision: Precision
    source: ModelSource
    device: torch.device
    bundle: ModelBundle
    adapter: Adapter
    optimizer: TrainingOptimizer
    scaler: Any
    caption_encoder: CaptionEncoder
    latent_cache: LatentCache
    views: LatentViews
    loss_config: LossConfig
    checkpointing: Checkpointing | None = None
    ema: EmaWeights | None = None
    attention: str = "sdpa"
    notes: tuple[Warned, ...] = ()
    compiled: CompiledBlocks | None = None
    cuda_graphs: CudaGraphs | None = None
    vae_in_strips: bool = False
    other_networks: tuple[MergedNetwork, ...] = ()
    """Networks that work beside the one that is trained while a preview is drawn."""

    def attach(self) -> None:
        """Puts attention, adapter, compiled blocks and checkpointing on the bundle's modules."""
        attention.set_processors(self.bundle.unet, self.attention, upcast=attention.wants_upcast(self.bundle))
        self.adapter.attach(self.bundle, self.other_networks)
        if self.compiled is not None:
            self.compiled.compile_blocks(self.bundle.unet)
        self.checkpointing = checkpointing.apply_checkpointing(self.config.memory, self.bundle, *self.activation_blocks())

    def detach(self) -> None:
        """Takes adapter, compiled blocks and checkpointing off again."""
        if self.checkpointing is not None:
            self.checkpointing.remove()
            self.checkpointing = None
        if self.compiled is not None:
            self.compiled.remove()
        self.drop_graphs()
        self.adapter.detach()

    @contextmanager
    def with_networks(self, loras: Sequence[tuple[Path, float]]) -> Iterator[None]:
        """Inside, network files, each with its weight, work beside the one that is trained. Raises ModelError for one that does not fit."""
        if not loras:
            yield
            return
        networks = merged_networks([(read_lora(path)[0], weight, path) for path, weight in loras])
        self.detach()
        try:
            self.other_networks = tuple(networks)
            self.attach()
            yield
        finally:
            self.other_networks = ()
            self.detach()
            self.attach()

    def drop_graphs(self) -> None:
        """Gives back the memory of CUDA graphs, which only they can use; they are recorded anew when steps go on."""
        if self.cuda_graphs is not None:
            self.cuda_graphs.reset()

    @torch.inference_mode(False)
    def rebuild(self, source: ModelSource) -> None:
        """Attaches to a model that was lent anew (after a pause, or when somebody generated meanwhile).

        The old bundle is dropped before the new one is loaded, so that never both are on the device; loading that runs out of memory is
        tried once more. Raises ModelError, and OutOfMemory: nothing of the model is on the device then, and `rebuild` can be called again.
        """
        self.detach()
        if source is not self.source or self.bundle is RELEASED:
            was_released, self.bundle, self.source = self.bundle is RELEASED, RELEASED, RELEASED
            self.bundle = retry_after_free(lambda: self._load(source, moves_tensors=was_released), self.config, self.device)
            self.source = source
        self.attach()

    def _load(self, source: ModelSource, *, moves_tensors: bool) -> ModelBundle:
        if moves_tensors:
            self._move_tensors(self.device)
        bundle = eight_bit.load_bundle(source, self.device, self.precision.base, fp8=self.config.memory.fp8_base_unet)
        vae.set_precision(bundle, self.config.memory.vae_precision)
        if self.vae_in_strips:
            vae_strips.apply(bundle.vae)
        return bundle

    @torch.inference_mode(False)
    def reconfigure(self, config: TrainConfig) -> None:
        """Applies other settings of [memory] and another VAE batch size."""
        self.detach()
        self.config, self.latent_cache.batch_size = config, config.data.vae_batch_size
        if config.memory.attention != "auto":
            self.attention = config.memory.attention
        if not config.memory.cuda_graphs:
            self.cuda_graphs = None
        self.attach()

    @torch.inference_mode(False)
    def release(self) -> None:
        """Drops the model and moves adapter and optimizer to the CPU, so that nothing stays on the device; `rebuild` brings all back."""
        self.detach()
        self._move_tensors(torch.device("cpu"))
        self.bundle = self.source = RELEASED

    def activation_blocks(self) -> tuple[list[Block], float]:
        """The U-Net's blocks with the activations that the largest batch keeps for backward, and the bytes of the rest, always kept."""
        dataset, pictures_at_once = self.dataset, self.config.memory.pictures_at_once
        pixels, pictures = checkpointing.largest_batch(dataset.train_records, dataset.batch_sizes, pictures_at_once)
        element_size = torch.finfo(self.precision.base).bits // 8
        return checkpointing.activation_blocks(
            self.bundle,
            pixels=pixels,
            pictures=pictures,
            rank=self.config.network.dim,
            trains_text="text_encoder" in self.adapter.parameters(),
            sizes=DtypeSizes(element_size, 4 if self.device.type == "cuda" else element_size),
        )

    @property
    def can_offload(self) -> bool:
        """Whether parts of the model may leave the device: not on the CPU, and only what the trainer loaded itself, never a host's."""
        return self.device.type != "cpu" and isinstance(self.source, FileSource)

    def needed_parts(self, kind: str) -> frozenset[str]:
        """The parts of the model that a kind of work needs on the device."""
        caches_latents = self.config.data.cache_latents
        return placement.needed_parts(kind, trains_text=self.caption_encoder.is_trained, caches_latents=caches_latents)

    def make_ready(self, kind: str) -> None:
        """Moves what a kind of work needs to the device; where there is no room for it, what it does not need leaves first.

        Where even then there is no room for a whole picture in the VAE, it works on strips from now on.
        """
        if self.can_offload:
            self._bring(kind)
        is_on_gpu = self.can_offload or self.device.type != "cpu"
        if kind == placement.PICTURES and is_on_gpu and self._working_bytes(kind) > placement.free_bytes(self.device) > 0:
            self.use_vae_strips()

    def use_vae_strips(self) -> bool:
        """Makes the VAE work on strips of its feature maps; False when it does already."""
        if self.vae_in_strips:
            return False
        self.vae_in_strips = True
        vae_strips.apply(self.bundle.vae)
        return True

    def _bring(self, kind: str) -> None:
        needed = self.needed_parts(kind)
        missing = {
            part: [module for module in modules if not placement.is_on(module, self.bundle.device)]
            for part, modules in placement.part_modules(self.bundle).items()
            if part in needed
        }
        coming = placement.weight_bytes(module for modules in missing.values() for module in modules)
        is_encoding = kind in (placement.CAPTIONS, placement.PICTURES)
        if (coming or is_encoding) and coming + self._working_bytes(kind) > placement.free_bytes(self.device):
            self.offload_unused(kind)
            free_cache(self.device)
        for part, modules in missing.items():
            if modules:
                self._move(modules, self.bundle.device, attaches=self._attaches(part))

    def _working_bytes(self, kind: str) -> float:
        pixels, _ = checkpointing.largest_batch(self.dataset.train_records, self.dataset.batch_sizes, 1)
        vae_element = next(self.bundle.vae.parameters()).element_size()
        return placement.working_bytes(kind, pixels * self.config.data.vae_batch_size, vae_element)

    def _attaches(self, part: str) -> bool:
        """Whether the adapter keeps tensors that it made of this part's weights, which have to be made anew when they move."""
        return part == placement.UNET or (
            part == placement.TEXT and (self.caption_encoder.is_trained or bool(self.config.network.base_weights or self.other_networks))
        )

    def offload_unused(self, kind: str = placement.STEP) -> bool:
        """Moves what this kind of work does not need to the CPU; False when nothing was left to move."""
        if not self.can_offload:
            return False
        needed = self.needed_parts(kind)
        moved = False
        for part, modules in placement.part_modules(self.bundle).items():
            leaving = [module for module in modules if part not in needed and placement.is_on(module, self.bundle.device)]
            if leaving:
                self._move(leaving, torch.device("cpu"), attaches=self._attaches(part))
                moved = True
        return moved

    @torch.inference_mode(False)
    def _move(self, modules: Sequence[nn.Module], device: torch.device, *, attaches: bool) -> None:
        """Moves modules; `attaches`: the adapter has tensors made of their weights, and graphs their addresses."""
        if attaches:
            self.detach()
        try:
            for module in modules:
                placement.move(module, device)
        finally:
            if attaches:
                self.attach()

    def _move_tensors(self, device: torch.device) -> None:
        """Moves parameters, optimizer state and EMA to the device, as fresh copies."""
        self.optimizer.move(device)
        if self.ema is not None:
            self.ema.move(device)
        if self.scaler is not None:  # its two tensors are lazily made anew from its state
            scaler_state = self.scaler.state_dict()
            self.scaler._scale = self.scaler._growth_tracker = None
            self.scaler.load_state_dict(scaler_state)

    def clip_weight_norms(self) -> None:
        """Max-norm regularisation after a step: clips each layer's weight delta to the norm that the config allows."""
        if self.config.network.scale_weight_norms:
            self.adapter.clip_weight_norms(self.config.network.scale_weight_norms)

    def ema_weights(self) -> AbstractContextManager[None]:
        """Inside, the adapter has the weights that are saved and used for previews and validation."""
        return ema_weights(self.optimizer, self.ema)

    def conditioning_for(self, record: ImageRecord, caption: str) -> Conditioning:
        """Conditioning of a picture that is not augmented: its caption, and its sizes where the family reads them."""
        conditioning = self.caption_encoder.encode(self.bundle, [caption])
        if not self.bundle.family.uses_sizes:
            return conditioning
        return conditioning.with_sizes(torch.tensor([sizes_of(record, False)], device=self.bundle.device))

    def latent(self, record: ImageRecord, flipped: bool) -> Tensor:
        """Scaled latents [channels, h/8, w/8] of a picture, cached or encoded now. Raises DatasetError."""
        return self.latent_cache.get(record, flipped)
