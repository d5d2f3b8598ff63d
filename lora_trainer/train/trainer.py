"""What the loop works with: model, network, optimizer and caches, put on the modules and taken off again."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import attrs
import torch
from torch import Tensor

from lora_trainer.adapters.network import NetworkAdapter
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
from lora_trainer.train.memory import checkpointing, eight_bit
from lora_trainer.train.memory.activations import Block, DtypeSizes
from lora_trainer.train.memory.checkpointing import Checkpointing, blocks_of
from lora_trainer.train.outputs.ema import EmaWeights, ema_weights
from lora_trainer.train.step import attention
from lora_trainer.train.step.compiling import CompiledBlocks
from lora_trainer.train.step.cuda_graphs import CudaGraphs
from lora_trainer.train.step.precision import Precision

RELEASED: Any = None


@attrs.define(eq=False)
class Trainer:
    """Everything that the loop works with. `bundle` is replaced when the host's model had to be read anew."""

    config: TrainConfig
    dataset: TrainingDataset
    precision: Precision
    source: ModelSource
    device: torch.device
    bundle: ModelBundle
    adapter: NetworkAdapter
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

    def attach(self) -> None:
        """Puts network, attention and checkpointing on the bundle's modules."""
        attention.use(self.bundle.unet, self.attention, upcast=attention.wants_upcast(self.bundle))
        self.adapter.attach(self.bundle)
        if self.compiled is not None:
            self.compiled.put_on(self.bundle.unet)
        self.checkpointing = checkpointing.checkpointing(self.config.memory, self.bundle, *self.blocks())

    def detach(self) -> None:
        """Takes both off again."""
        if self.checkpointing is not None:
            self.checkpointing.remove()
            self.checkpointing = None
        if self.compiled is not None:
            self.compiled.remove()
        if self.cuda_graphs is not None:
            self.cuda_graphs.forget()
        self.adapter.detach()

    @torch.inference_mode(False)
    def rebuild(self, source: ModelSource) -> None:
        """The network on a model that was lent anew (after a pause, or when somebody generated meanwhile)."""
        self.detach()
        if source is not self.source or self.bundle is RELEASED:
            if self.bundle is RELEASED:
                self._move(self.device)
            eight = self.config.memory.fp8_base_unet
            self.bundle, self.source = eight_bit.loaded(source, self.device, self.precision.base, asked=eight), source
            vae.set_precision(self.bundle, self.config.memory.vae_precision)
        self.attach()

    @torch.inference_mode(False)
    def reset(self, config: TrainConfig) -> None:
        """Other settings of [memory] from now on, and of how many pictures are encoded together."""
        self.detach()
        self.config, self.latent_cache.batch = config, config.data.vae_batch_size
        if config.memory.attention != "auto":
            self.attention = config.memory.attention
        if not config.memory.cuda_graphs:
            self.cuda_graphs = None
        self.attach()

    @torch.inference_mode(False)
    def release(self) -> None:
        """Lets go of the model and parks network and optimizer, so that nothing stays on the device; `rebuild` brings all back."""
        self.detach()
        self._move(torch.device("cpu"))
        self.bundle = self.source = RELEASED

    def blocks(self) -> tuple[list[Block], float]:
        """What the largest batch keeps for its gradient: by block, and the rest that is always kept."""
        pixels, pictures = checkpointing.largest_batch(self.dataset.trained, self.dataset.batch_sizes, self.config.memory.pictures_at_once)
        size = torch.finfo(self.precision.base).bits // 8
        return blocks_of(
            self.bundle,
            pixels=pixels,
            pictures=pictures,
            rank=self.config.network.dim,
            words="text_encoder" in self.adapter.parameters(),
            numbers=DtypeSizes(size, 4 if self.device.type == "cuda" else size),
        )

    def offload_unused(self) -> bool:
        """Puts what no step needs into ordinary memory; False when there was nothing.

        Only parts that are the trainer's own: what a host lends stays where it is.
        """
        if self.device.type == "cpu" or not isinstance(self.source, FileSource):
            return False
        unused = [self.bundle.vae] if self.config.data.cache_latents else []
        return checkpointing.offload([*unused, *([] if self.caption_encoder.trained else self.bundle.text_encoders)], self.device)

    def _move(self, device: torch.device) -> None:
        """Network, optimizer and average as fresh copies there."""
        self.optimizer.unpark(device)
        if self.ema is not None:
            self.ema.move(device)
        if self.scaler is not None:  # its two numbers are made anew, where they are needed, from what it knows
            kept = self.scaler.state_dict()
            self.scaler._scale = self.scaler._growth_tracker = None
            self.scaler.load_state_dict(kept)

    def clip_weight_norms(self) -> None:
        """After a step: no layer's addition is longer than the config allows."""
        if self.config.network.scale_weight_norms:
            self.adapter.clip_weight_norms(self.config.network.scale_weight_norms)

    def ema_weights(self) -> AbstractContextManager[None]:
        """Inside, the network holds the weights that are saved, drawn with and validated with."""
        return ema_weights(self.optimizer, self.ema)

    def conditioning_for(self, record: ImageRecord, caption: str) -> Conditioning:
        """What the U-Net is told with a picture as it is: its caption, and its sizes where the family reads them."""
        found = self.caption_encoder.encode(self.bundle, [caption])
        if not self.bundle.family.reads_sizes:
            return found
        return found.with_sizes(torch.tensor([sizes_of(record, False)], device=self.bundle.device))

    def latent(self, record: ImageRecord, flipped: bool) -> Tensor:
        """Scaled latents [4, h/8, w/8] of a picture, from memory or read now."""
        return self.latent_cache.get(record, flipped)
