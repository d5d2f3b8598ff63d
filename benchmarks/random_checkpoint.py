"""Checkpoints of any size filled with random numbers: for measuring, and for tests that need a model as large as a real one.

python benchmarks/random_checkpoint.py model.safetensors          Stable Diffusion 1.5's shapes, fp16, 2.1 GB
python benchmarks/random_checkpoint.py model.safetensors --tiny   the same 192 + 24 layers at a 300th of the size
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lora_trainer.models import layout

HEADS = 8
POOL = 1 << 22


@attrs.frozen
class Widths:
    """What tells two Stable Diffusion 1.x models apart: channels per level of U-Net and VAE, text width, layers and words."""

    unet: Sequence[int] = (320, 640, 1280, 1280)
    vae: Sequence[int] = (128, 256, 512, 512)
    text: int = 768
    text_layers: int = 12
    words: int = 49408

    def modules(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """U-Net, VAE and text encoder in diffusers' and transformers' classes, without memory."""
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel

        with torch.device("meta"):
            unet = UNet2DConditionModel(
                block_out_channels=tuple(self.unet), cross_attention_dim=self.text, attention_head_dim=HEADS, sample_size=64
            )
            vae = AutoencoderKL(
                block_out_channels=tuple(self.vae),
                down_block_types=["DownEncoderBlock2D"] * len(self.vae),
                up_block_types=["UpDecoderBlock2D"] * len(self.vae),
                layers_per_block=2,
            )
            text = CLIPTextModel(CLIPTextConfig(**self._text_config()))
        return unet, vae, text

    def _text_config(self) -> dict[str, Any]:
        return {
            "vocab_size": self.words,
            "hidden_size": self.text,
            "intermediate_size": 4 * self.text,
            "num_hidden_layers": self.text_layers,
            "num_attention_heads": max(1, self.text // 64),
        }


SD15 = Widths()
TINY = Widths(unet=(32, 64, 64, 64), vae=(32, 32, 32, 32), text=64, text_layers=4)
"""As many layers as Stable Diffusion 1.5 has, and next to no arithmetic in them."""


def parts(widths: Widths, dtype: torch.dtype, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Random tensors by part ("unet", "vae", "text") under LDM names without prefix, as a host holds them."""
    unet, vae, text = widths.modules()
    fill = _Filler(dtype, seed)
    return {
        "unet": dict(fill(unet, layout.turned_round(layout.unet_prefixes()))),
        "vae": dict(fill(vae, layout.turned_round(layout.vae_prefixes(len(widths.vae))))),
        "text": dict(fill(text, {"text_model": "text_model"})),
    }


def write(path: Path, widths: Widths = SD15, dtype: torch.dtype = torch.float16, seed: int = 0) -> Path:
    """Writes a checkpoint in LDM layout, as the shops for models hand them out."""
    from safetensors.torch import save_file

    prefixes = {"unet": layout.UNET, "vae": layout.VAE, "text": layout.TEXT}
    tensors = {prefixes[part] + name: tensor for part, named in parts(widths, dtype, seed).items() for name, tensor in named.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(path))
    return path


class _Filler:
    """Gives every parameter of a module numbers that keep signals the size they have: cut from one pool, so that it takes seconds."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        self.dtype = dtype
        self.pool = torch.randn(POOL, generator=torch.Generator().manual_seed(seed))
        self.used = 0

    def __call__(self, module: nn.Module, names: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
        shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
        for name, old in layout.renamed(shapes, names).items():
            shape = shapes[name]
            if ".attentions.0." in name and old.startswith(("encoder.", "decoder.")) and len(shape) == 2:
                shape = (*shape, 1, 1)  # linear in diffusers, a 1 x 1 convolution in LDM
            yield old, self._numbers(name, shape)

    def _numbers(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith("bias"):
            return torch.zeros(shape, dtype=self.dtype)
        if len(shape) == 1:
            return torch.ones(shape, dtype=self.dtype)
        count, inputs = math.prod(shape), math.prod(shape[1:])
        start, self.used = self.used % 1009, self.used + 1  # neighbours do not share their numbers
        pool = (self.pool[start:] / inputs**0.5).to(self.dtype)
        return pool.repeat(-(-count // len(pool)))[:count].view(shape).clone()


def main() -> None:
    """Writes the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--tiny", action="store_true", help="the small shape instead of Stable Diffusion 1.5's")
    chosen = parser.parse_args()
    path = write(chosen.path, TINY if chosen.tiny else SD15)
    print(f"{path}: {path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
