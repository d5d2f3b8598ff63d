"""What a checkpoint file is, told from its names and shapes alone (no torch, nothing is loaded)."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from lora_trainer.errors import ModelError
from lora_trainer.messages import Message, say
from lora_trainer.models.layout import TEXT, UNET, VAE

HEADER_LIMIT = 100 << 20
CLIP_HEADS = {768: 12, 1024: 16, 1280: 20}
TRAIN_SD1 = "Choose a Stable Diffusion 1.x checkpoint: this version trains those."


@attrs.frozen
class ModelFacts:
    """Family ("sd1"), prediction ("epsilon" or "v") with its reason, native side in pixels, widths and head counts."""

    family: str
    prediction: str
    because: str
    native_size: int
    model_channels: int
    context_width: int
    text_layers: int
    unet_heads: int
    text_heads: int
    unet_parameters: int
    text_parameters: int
    vae_parameters: int
    dtype: str
    title: str


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: name -> {"dtype", "shape", "data_offsets"}, and "__metadata__".

    Raises ModelError when the file is missing, no safetensors file, or cut short.
    """
    fix = "Choose a .safetensors checkpoint."
    if not path.exists():
        raise ModelError("{path} does not exist.", path=str(path), fix=fix)
    if path.is_dir():
        raise ModelError("{path} is a folder, not a checkpoint file.", path=str(path), fix=fix)
    if path.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        raise ModelError(
            "{path} is a pickle file, which can run any code when it is opened.", path=str(path), fix="Use the model's .safetensors file."
        )
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else HEADER_LIMIT + 1
            if length > HEADER_LIMIT:
                raise ModelError("{path} is not a safetensors file.", path=str(path), fix=fix)
            header: dict[str, Any] = json.loads(file.read(length).decode("utf-8"))
    except OSError as error:
        raise ModelError(
            "{path} cannot be read ({reason}).", path=str(path), reason=error.strerror, fix="Check the file's permissions."
        ) from error
    except ValueError as error:
        raise ModelError("{path} is not a safetensors file, or it is damaged.", path=str(path), fix=fix) from error
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if ends and path.stat().st_size < 8 + length + max(ends):
        raise ModelError("{path} ends early: it was not downloaded or copied completely.", path=str(path), fix="Get the file again.")
    return header


def inspect(path: Path) -> ModelFacts:
    """Facts of a Stable Diffusion 1.x checkpoint. Raises ModelError that says what the file is when it is something else."""
    header = read_header(path)
    shapes = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    if (other := _other_kind(shapes)) is not None:
        raise ModelError("{path} is {kind}.", path=str(path), kind=other, fix=TRAIN_SD1)
    return _sd1_facts(path, header, shapes)


def sd1_heads(text_width: int) -> int:
    """Attention heads of a CLIP text encoder: they are not in the tensors; known widths by table, small ones 16 wide."""
    return CLIP_HEADS.get(text_width, max(1, text_width // 16))


def _other_kind(shapes: Mapping[str, Any]) -> Message | None:
    def has(part: str) -> bool:
        return any(part in name for name in shapes)

    if any(name.startswith(("lora_unet_", "lora_te")) for name in shapes) or has(".lora_down.") or has(".lora_A."):
        return say("a LoRA, not a checkpoint")
    if has("joint_blocks."):
        return say("a Stable Diffusion 3 model")
    if has("double_blocks."):
        return say("a Flux model")
    if has("conditioner.embedders.1."):
        return say("an SDXL model")
    if has("conditioner.embedders.0.model."):
        return say("an SDXL refiner")
    if has("cond_stage_model.model.transformer."):
        return say("a Stable Diffusion 2 model")
    first = shapes.get(f"{UNET}input_blocks.0.0.weight")
    if first is None:
        if has("encoder.down.0.") or has("encoder.down_blocks.0."):
            return say("a VAE, not a checkpoint")
        return say("not a Stable Diffusion checkpoint")
    if first[1] == 9:
        return say("an inpainting model")
    if first[1] != 4:
        return say("a model with {count} input channels", count=first[1])
    if not any(name.startswith(TEXT) for name in shapes):
        return say("a checkpoint without its text encoder")
    if not any(name.startswith(VAE) for name in shapes):
        return say("a checkpoint without its VAE")
    return None


def _sd1_facts(path: Path, header: Mapping[str, Any], shapes: Mapping[str, Any]) -> ModelFacts:
    def count(prefix: str) -> int:
        return sum(_product(shape) for name, shape in shapes.items() if name.startswith(prefix))

    context = next(shape[1] for name, shape in shapes.items() if name.startswith(UNET) and name.endswith("attn2.to_k.weight"))
    text_width = next(shape[1] for name, shape in shapes.items() if name.startswith(TEXT) and name.endswith("token_embedding.weight"))
    if text_width != context:
        raise ModelError(
            "{path}: its U-Net reads text {context} wide and its text encoder gives {width}.",
            path=str(path),
            context=context,
            width=text_width,
            fix=TRAIN_SD1,
        )
    layers = {int(found.group(1)) for name in shapes if name.startswith(TEXT) and (found := re.search(r"encoder\.layers\.(\d+)\.", name))}
    v_pred = "v_pred" in shapes
    first = header[f"{UNET}input_blocks.0.0.weight"]
    return ModelFacts(
        family="sd1",
        prediction="v" if v_pred else "epsilon",
        because="the checkpoint's key v_pred" if v_pred else "Stable Diffusion 1.x predicts the noise",
        native_size=_native_size(path),
        model_channels=first["shape"][0],
        context_width=context,
        text_layers=len(layers),
        unet_heads=8,
        text_heads=sd1_heads(text_width),
        unet_parameters=count(UNET),
        text_parameters=count(TEXT),
        vae_parameters=count(VAE),
        dtype={"F16": "float16", "BF16": "bfloat16"}.get(first["dtype"], "float32"),
        title=path.stem,
    )


def _native_size(path: Path) -> int:
    described = path.with_suffix(".yaml")
    if described.is_file():
        found = re.search(r"^    image_size:\s*(\d+)", described.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        if found:
            return int(found.group(1)) * 8
    return 512


def _product(shape: list[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total
