"""Checkpoints of any family and size filled with random numbers: for measuring, and for tests that need a model like a real one.

python benchmarks/random_checkpoint.py model.safetensors                        Stable Diffusion 1.5's shapes, fp16, 2.1 GB
python benchmarks/random_checkpoint.py model.safetensors --tiny                 the same 192 + 24 layers at a 300th of the size
python benchmarks/random_checkpoint.py model.safetensors --family sdxl --tiny   SDXL's 722 + 48 layers in 60 MB, in seconds
python benchmarks/random_checkpoint.py model.safetensors --family sd2 --tiny --v --zero-snr   marked as v-prediction with zero terminal SNR
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lora_trainer.models import layout
from lora_trainer.models.detection.infer_config import text_heads
from lora_trainer.models.detection.prediction_type import V_KEY, ZERO_SNR_KEY
from lora_trainer.models.files import save
from lora_trainer.models.text_model import clip_text_model

HEADS = 8
POOL = 1 << 22


@attrs.frozen
class Text:
    """One text encoder: width, layers, and whether it is open_clip's (with a projection of the text as a whole, or without)."""

    width: int = 768
    layers: int = 12
    activation: str = "quick_gelu"
    projected: bool = False


@attrs.frozen
class Widths:
    """What tells two models apart: family, channels per level of U-Net and VAE, text width, layers and words, transformers per level."""

    unet: Sequence[int] = (320, 640, 1280, 1280)
    vae: Sequence[int] = (128, 256, 512, 512)
    text: int = 768
    text_layers: int = 12
    words: int = 49408
    family: str = "sd1"
    depths: Sequence[int] = (1, 1, 1, 0)
    text_2: Text | None = None

    def texts(self) -> list[Text]:
        """The text encoders in the order in which the U-Net reads them."""
        first = Text(self.text, self.text_layers)
        if self.family == "sd2":
            first = attrs.evolve(first, activation="gelu", projected=True)  # the projection stands in the file, and nothing reads it
        return [first] if self.text_2 is None else [first, self.text_2]

    def modules(self) -> tuple[nn.Module, ...]:
        """U-Net, VAE and text encoders in diffusers' and transformers' classes, without memory."""
        from diffusers import AutoencoderKL, UNet2DConditionModel

        with torch.device("meta"):
            unet = UNet2DConditionModel(**self.unet_config())
            vae = AutoencoderKL(
                block_out_channels=tuple(self.vae),
                down_block_types=["DownEncoderBlock2D"] * len(self.vae),
                up_block_types=["UpDecoderBlock2D"] * len(self.vae),
                layers_per_block=2,
            )
            texts = [self._text(text) for text in self.texts()]
        return unet, vae, *texts

    def unet_config(self) -> dict[str, Any]:
        """Arguments of diffusers' UNet2DConditionModel."""
        sd1 = self.family == "sd1"
        kinds = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in self.depths]
        made: dict[str, Any] = {
            "block_out_channels": tuple(self.unet),
            "down_block_types": kinds,
            "up_block_types": [kind.replace("Down", "Up") for kind in reversed(kinds)],
            "transformer_layers_per_block": [max(1, depth) for depth in self.depths],
            "cross_attention_dim": sum(text.width for text in self.texts()),
            "attention_head_dim": HEADS if sd1 else [max(1, width // 64) for width in self.unet],
            "use_linear_projection": not sd1,
            "sample_size": 64,
        }
        if self.text_2 is not None:
            inputs = self.text_2.width + 6 * 256
            made |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": inputs}
        return made

    def _text(self, text: Text) -> nn.Module:
        config = {
            "vocab_size": self.words,
            "hidden_size": text.width,
            "intermediate_size": 4 * text.width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text_heads(text.width),
            "hidden_act": text.activation,
            "projection_dim": text.width,
        }
        return clip_text_model(config, projection=text.projected)


SD15 = Widths()
TINY = Widths(unet=(32, 64, 64, 64), vae=(32, 32, 32, 32), text=64, text_layers=4)
"""As many layers as Stable Diffusion 1.5 has, and next to no arithmetic in them."""
SD21 = Widths(text=1024, text_layers=24, family="sd2")
TINY_SD2 = Widths(unet=(64, 128, 128, 128), vae=(32, 32, 32, 32), text=64, text_layers=4, family="sd2")
SDXL = Widths(unet=(320, 640, 1280), family="sdxl", depths=(0, 2, 10), text_2=Text(1280, 32, "gelu", projected=True))
TINY_SDXL = Widths(
    unet=(32, 64, 128),
    vae=(32, 32, 32, 32),
    text=32,
    text_layers=4,
    family="sdxl",
    depths=(0, 2, 10),
    text_2=Text(64, 4, "gelu", projected=True),
)
SHAPES = {"sd1": (SD15, TINY), "sd2": (SD21, TINY_SD2), "sdxl": (SDXL, TINY_SDXL)}


def parts(widths: Widths, dtype: torch.dtype, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Random tensors by part ("unet", "vae", "text", "text_2") under a host's names without prefix, as a host holds them."""
    fill = _Filler(dtype, seed)
    prefixes = layout.part_prefixes(widths.family)
    named = dict(zip(prefixes, widths.modules(), strict=True))
    return {part: save.host_names(part, dict(fill(module)), open_clip=prefixes[part].endswith("model.")) for part, module in named.items()}


def checkpoint(widths: Widths = SD15, dtype: torch.dtype = torch.float16, seed: int = 0, *, marks: Sequence[str] = ()) -> dict[str, Tensor]:
    """The tensors of a whole checkpoint; `marks` are keys that tell what it predicts."""
    prefixes = layout.part_prefixes(widths.family)
    tensors = {prefixes[part] + name: tensor for part, named in parts(widths, dtype, seed).items() for name, tensor in named.items()}
    return tensors | {mark: torch.zeros(0) for mark in marks}


def write(path: Path, widths: Widths = SD15, dtype: torch.dtype = torch.float16, seed: int = 0, *, marks: Sequence[str] = ()) -> Path:
    """Writes a checkpoint in LDM layout, as the shops for models hand them out."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in checkpoint(widths, dtype, seed, marks=marks).items()}, str(path))
    return path


def hollow(path: Path, widths: Widths = SD15, *, marks: Sequence[str] = ()) -> Path:
    """A checkpoint's header with nothing behind it: as large as the file would be, without taking that room on the disk."""
    prefixes = layout.part_prefixes(widths.family)
    named = dict(zip(prefixes, widths.modules(), strict=True))
    shapes = {
        prefixes[part] + name: tuple(tensor.shape)
        for part, module in named.items()
        for name, tensor in save.host_names(part, dict(module.named_parameters()), open_clip=prefixes[part].endswith("model.")).items()
    }
    told, offset = {}, 0
    for name, shape in {**shapes, **dict.fromkeys(marks, (0,))}.items():
        size = 2 * math.prod(shape)
        told[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(told).encode("utf-8")
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return path


class _Filler:
    """Gives every parameter of a module numbers that keep signals the size they have: cut from one pool, so that it takes seconds."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        self.dtype = dtype
        self.pool = torch.randn(POOL, generator=torch.Generator().manual_seed(seed))
        self.used = 0

    def __call__(self, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in module.named_parameters():
            yield name, self._numbers(name, tuple(parameter.shape))

    def _numbers(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith("bias"):
            return torch.zeros(shape, dtype=self.dtype)
        if len(shape) == 1:
            return torch.ones(shape, dtype=self.dtype)
        count, inputs = math.prod(shape), math.prod(shape[1:])
        start, self.used = self.used % 1009, self.used + 1  # neighbours do not share their numbers
        pool = (self.pool[start : start + count] / inputs**0.5).to(self.dtype)
        return pool.repeat(-(-count // len(pool)))[:count].view(shape).clone()


def main() -> None:
    """Writes the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--family", choices=SHAPES, default="sd1")
    parser.add_argument("--tiny", action="store_true", help="the small shape instead of the released one's")
    parser.add_argument("--v", action="store_true", help="marked as predicting v")
    parser.add_argument("--zero-snr", action="store_true", help="marked as trained with zero terminal SNR")
    chosen = parser.parse_args()
    marks = [key for key, wanted in ((V_KEY, chosen.v), (ZERO_SNR_KEY, chosen.zero_snr)) if wanted]
    path = write(chosen.path, SHAPES[chosen.family][chosen.tiny], marks=marks)
    print(f"{path}: {path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
