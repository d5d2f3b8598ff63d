"""A model folder in diffusers' layout: facts from its json files and headers (no torch), and its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_trainer.errors import ModelError
from lora_trainer.files import read_regular
from lora_trainer.messages import Message, say
from lora_trainer.models import layout
from lora_trainer.models.detection.infer_config import Heads
from lora_trainer.models.detection.prediction_type import PREDICTION_NAMES, PredictionType
from lora_trainer.models.files.tensor_file import TensorInfo, contents, tensors
from lora_trainer.models.prediction_kinds import FLOW
from lora_trainer.parsing import parse_json

MAX_CONFIG_BYTES = 1 << 20

if TYPE_CHECKING:
    from torch import Tensor

PARTS = {"unet": "unet", "vae": "vae", "text": "text_encoder", "text_2": "text_encoder_2"}
NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")
ENDINGS = (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin")
PIPELINES = {
    "StableDiffusion3Pipeline": say("a Stable Diffusion 3 model"),
    "FluxPipeline": say("a Flux model"),
    "StableDiffusionInpaintPipeline": say("an inpainting model"),
    "StableDiffusionXLInpaintPipeline": say("an inpainting model"),
    "StableDiffusionInstructPix2PixPipeline": say("an InstructPix2Pix model"),
    "StableDiffusionUpscalePipeline": say("an upscaling model"),
    "StableDiffusionDepth2ImgPipeline": say("a depth model"),
    "StableUnCLIPImg2ImgPipeline": say("an unCLIP model"),
}
CHOOSE_WHOLE_FOLDER = "Choose the folder that holds model_index.json, unet, vae and text_encoder."


@attrs.frozen
class FolderContents:
    """A folder's contents: `parts` by diffusers' names; `kind` is set if it cannot be trained on."""

    family: str
    parts: Mapping[str, Mapping[str, TensorInfo]]
    prediction: PredictionType
    native_size: int
    kind: Message | None = None


def is_model(path: Path) -> bool:
    """Whether a folder is a model in diffusers' layout."""
    return (path / "unet" / "config.json").is_file()


def read_contents(path: Path) -> FolderContents:
    """The contents of a model folder. Raises ModelError if it is none, or a part is missing."""
    if not is_model(path):
        raise ModelError("{path} is a folder, but no model in diffusers' layout.", path=str(path), fix=CHOOSE_WHOLE_FOLDER)
    pipeline = str(_json(path / "model_index.json").get("_class_name", ""))
    names = {part: inner for part, inner in PARTS.items() if (path / inner / "config.json").is_file()}
    unet = _json(path / "unet" / "config.json")
    family, kind = _family(path, unet, names)
    kind = PIPELINES.get(pipeline, kind)
    prediction_type, scheduler = scheduler_prediction(path)
    if kind is None and prediction_type not in PREDICTION_NAMES:
        kind = say("a model that predicts {kind}", kind=prediction_type)
    zero = bool(scheduler.get("rescale_betas_zero_snr")) and PREDICTION_NAMES.get(prediction_type) == "v"
    prediction = PredictionType(
        PREDICTION_NAMES.get(prediction_type, "epsilon"), say("the folder's scheduler_config.json"), zero_terminal_snr=zero
    )
    parts = {} if kind is not None else {part: _entries(path / inner) for part, inner in names.items()}
    return FolderContents(family, parts, prediction, 8 * int(unet.get("sample_size") or 64), kind)


def scheduler_prediction(path: Path) -> tuple[str, dict[str, Any]]:
    """The prediction type in the words of a folder's scheduler_config.json, and that file: schedulers of flow matching name none."""
    scheduler = _json(path / "scheduler" / "scheduler_config.json")
    is_flow = str(scheduler.get("_class_name", "")).startswith("FlowMatch") or bool(scheduler.get("use_flow_sigmas"))
    return (FLOW if is_flow else str(scheduler.get("prediction_type", "epsilon"))), scheduler


def read_parts(path: Path) -> dict[str, dict[str, Tensor]]:
    """Tensors of a folder by part ("unet", "vae", "text", "text_2"), memory-mapped, under current names. Raises ModelError."""
    return {
        part: {new: tensor for file in weight_files(path / inner) for new, tensor in current_names(tensors(file))}
        for part, inner in PARTS.items()
        if (path / inner / "config.json").is_file()
    }


def heads(path: Path) -> tuple[Heads, dict[str, int], int]:
    """What shapes do not show: heads of the U-Net by level, heads of the text encoders by part, groups of the VAE's norms."""
    unet = _json(path / "unet" / "config.json")
    texts = {
        part: int(_json(path / PARTS[part] / "config.json").get("num_attention_heads", 0))
        for part in ("text", "text_2")
        if (path / PARTS[part]).is_dir()
    }
    return _heads(unet), texts, int(_json(path / "vae" / "config.json").get("norm_num_groups", 32))


def weight_files(part: Path) -> list[Path]:
    """The files of a part's tensors: one, or the shards of an index. Raises ModelError if there are none."""
    for ending in ENDINGS:
        for name in NAMES:
            if (file := part / f"{name}{ending}").is_file():
                return [file]
            stem, _, kind = f"{name}{ending}".rpartition(".")
            if (index := part / f"{stem}.{kind}.index.json").is_file():
                return _shards(part, index)
    raise ModelError("{path} holds no weights.", path=str(part), fix=CHOOSE_WHOLE_FOLDER)


def _shards(part: Path, index: Path) -> list[Path]:
    """The files that an index names. Raises ModelError."""
    weight_map = _json(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ModelError("{path} cannot be read.", path=str(index), fix="Get the folder again.")
    return sorted({part / Path(name).name for name in names})


def main_weight_file(path: Path) -> Path:
    """The file that identifies a model: the path itself, or the U-Net's first file of a folder."""
    return weight_files(path / "unet")[0] if path.is_dir() else path


def _entries(part: Path) -> dict[str, TensorInfo]:
    return {new: entry for file in weight_files(part) for new, entry in current_names(contents(file).tensors)}


def current_names(tensors_by_name: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(name, value) under current names of diffusers and transformers: renames the VAE's old attention, adds a missing `text_model.`."""
    renamed = []
    for key, value in tensors_by_name.items():
        if key.endswith("position_ids"):
            continue
        if ".attentions.0." in key and key.startswith(("encoder.", "decoder.")):
            for old, new in layout.OLD_VAE_ATTENTION.items():
                key = key.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
        renamed.append((f"text_model.{key}" if key.startswith(("embeddings.", "final_layer_norm.", "encoder.layers.")) else key, value))
    return renamed


def _family(path: Path, unet: Mapping[str, Any], names: Mapping[str, str]) -> tuple[str, Message | None]:
    if missing := [inner for part, inner in PARTS.items() if part not in names and part != "text_2"]:
        if missing == ["text_encoder"] and unet.get("addition_embed_type") == "text_time":
            return "sdxl", say("an SDXL refiner")
        raise ModelError("{path} lacks {part}.", path=str(path), part=", ".join(missing), fix=CHOOSE_WHOLE_FOLDER)
    if unet.get("addition_embed_type") == "text_time":
        return "sdxl", None if "text_2" in names else say("an SDXL refiner")
    if unet.get("class_embed_type") or unet.get("addition_embed_type"):
        return "sd2", say("an unCLIP model")
    activation = _json(path / "text_encoder" / "config.json").get("hidden_act", "quick_gelu")
    return ("sd1" if activation == "quick_gelu" else "sd2"), None


def _heads(unet: Mapping[str, Any]) -> Heads:
    """Heads from `attention_head_dim`, diffusers' name for the number of heads: one for all levels, or a list."""
    counts = unet.get("attention_head_dim") or 8
    return Heads(tuple(counts) if isinstance(counts, list) else (int(counts),))


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = parse_json(read_regular(path, MAX_CONFIG_BYTES).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError("{path} cannot be read.", path=str(path), fix="Get the folder again.") from error
    return value if isinstance(value, dict) else {}
