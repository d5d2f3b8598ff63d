"""Detects what a checkpoint is by its key names and shapes (no torch, nothing is loaded)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from lora_trainer.errors import ModelError
from lora_trainer.messages import Message, say
from lora_trainer.models import layers, layout
from lora_trainer.models.detection import infer_config, prediction_type
from lora_trainer.models.detection.infer_config import text_heads as sd1_heads
from lora_trainer.models.detection.prediction_type import Flags
from lora_trainer.models.files import diffusers_folder
from lora_trainer.models.files.tensor_file import PACKED, Contents, TensorInfo, contents, read_header
from lora_trainer.models.layers import Layer
from lora_trainer.models.layout import UNET, VAE, FamilyRow

__all__ = ["Flags", "ModelFacts", "inspect", "read_header", "sd1_heads"]

DTYPES = {"F16": "float16", "BF16": "bfloat16"}
DAMAGE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
"""What shapes and settings raise that no model has."""
TRAINABLE = "Choose a Stable Diffusion 1, 2 or SDXL base checkpoint."
KINDS_BY_CHANNELS: Mapping[int, Message] = {
    32: say("an SDXL model with another VAE of 32 channels (Mugen)"),
    9: say("an inpainting model"),
    8: say("an InstructPix2Pix model"),
    7: say("an upscaling model"),
    5: say("a depth model"),
}


@attrs.frozen
class ModelFacts:
    """Facts about a model before it is loaded.

    `family` is its row's name, `prediction` "epsilon", "v" or "flow" with its reason, `native_size` a side in pixels. `sure` False: the
    prediction is a guess, tested when the model is loaded. Counts of text layers and parameters are sums over all text encoders.
    """

    family: str
    prediction: str
    reason: Message | str
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
    zero_terminal_snr: bool = False
    sure: bool = True
    notes: tuple[Message, ...] = ()
    """Notes for the user before training on it."""
    detected: prediction_type.PredictionType | None = None
    unet_levels: tuple[tuple[int, int], ...] = ()
    """(channels, transformer blocks per attention) of each level; empty if unknown."""
    middle_depth: int = 1
    texts: tuple[tuple[int, int], ...] = ()
    """Width and layers of each text encoder."""
    layers: tuple[Layer, ...] = attrs.field(default=(), repr=False)
    """Every layer that an adapter can be applied to; empty if unknown."""

    def badge(self) -> dict[str, Any]:
        """The facts that are shown to the user, with reasons."""
        return {
            "family": self.family,
            "label": layout.row(self.family).label,
            "prediction": self.prediction,
            "zero_terminal_snr": self.zero_terminal_snr,
            "native_size": self.native_size,
            "because": self.reason,
            "sure": self.sure,
            "notes": list(self.notes),
        }

    def with_flags(
        self,
        *,
        v2: bool | None = None,
        v_parameterization: bool | None = None,
        zero_terminal_snr: bool | None = None,
        prediction: str = prediction_type.AUTO,
    ) -> ModelFacts:
        """The facts with the user's flags (None, "auto": not set). Raises ModelError for a flag that contradicts the model."""
        return self.with_given(prediction_type.GivenFlags(v2, v_parameterization, zero_terminal_snr, prediction))

    def with_given(self, flags: Flags) -> ModelFacts:
        """The same for a config's [model]."""
        row = layout.row(self.family)
        detected = self.detected or prediction_type.PredictionType(
            self.prediction, say("{why}", why=self.reason), zero_terminal_snr=self.zero_terminal_snr
        )
        prediction = prediction_type.apply_flags(detected, row.v2, row.label, flags)
        size = self.native_size
        if prediction.kind != self.prediction and size in (row.native_size, row.native_size_v):
            size = row.size_for(prediction.kind)
        return attrs.evolve(
            self,
            prediction=prediction.kind,
            reason=prediction.reason,
            sure=prediction.sure,
            zero_terminal_snr=prediction.zero_terminal_snr,
            native_size=size,
            detected=prediction,
        )


def inspect(path: Path, *, sha256: str = "") -> ModelFacts:
    """Facts of a checkpoint file or a diffusers folder. Raises ModelError that says what it is if it cannot be trained on.

    `sha256` of the file, if known: it identifies released files without marks.
    """
    try:
        return _inspect(path, sha256)
    except DAMAGE as error:
        raise ModelError(
            "{path} is damaged, or no model that is known here: its parts do not fit together.", path=str(path), fix="Get the file again."
        ) from error


def _inspect(path: Path, sha256: str) -> ModelFacts:
    if path.is_dir():
        folder = diffusers_folder.read_contents(path)
        if (kind := _untrainable_folder(folder)) is not None:
            raise ModelError("{path} is {kind}.", path=str(path), kind=kind, fix=TRAINABLE)
        return _facts(path.name, layout.row(folder.family), folder.parts, folder.prediction, folder.native_size, "")
    file = contents(path)
    if (kind := _untrainable_kind(file)) is not None:
        raise ModelError("{path} is {kind}.", path=str(path), kind=kind, fix=TRAINABLE)
    row = layout.family_of(file.tensors)
    assert row is not None  # _untrainable_kind refuses all else
    marks = prediction_type.FileMarks(
        _mark_keys(file.tensors), file.metadata, prediction_type.read_yaml_beside(path), path.stem, sha256, str(path)
    )
    prediction = prediction_type.detect_prediction(marks, row.family)
    size = prediction_type.detect_native_size(marks, row.size_for(prediction.kind))
    return _facts(
        path.stem, row, layout.parts_of_checkpoint(file.tensors, row.family), prediction, size, prediction_type.distillation_name(marks)
    )


def inspect_with_flags(path: Path, flags: Flags, *, sha256: str = "") -> ModelFacts:
    """Facts of a checkpoint with the user's flags. Raises ModelError, also for a flag that contradicts the model."""
    return inspect(path, sha256=sha256).with_given(flags)


def _mark_keys(keys: Iterable[str]) -> set[str]:
    """Keys that can be marks: those without a module, and LCM's."""
    return {key for key in keys if "." not in key or "cond_proj" in key}


def _facts(
    title: str, row: FamilyRow, parts: Mapping[str, Any], prediction: prediction_type.PredictionType, size: int, few_steps: str
) -> ModelFacts:
    unet, texts = parts["unet"], [parts[name] for name in parts if name.startswith("text")]
    _check_widths(title, row, unet, texts)
    channels = unet["conv_in.weight"].shape[0]
    widths = [text["text_model.embeddings.token_embedding.weight"].shape[1] for text in texts]
    return ModelFacts(
        family=row.family,
        prediction=prediction.kind,
        reason=prediction.reason,
        native_size=size,
        model_channels=channels,
        context_width=unet["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        text_layers=sum(infer_config.text_config(text, 1)["num_hidden_layers"] for text in texts),
        unet_heads=row.unet_heads or max(1, channels // 64),
        text_heads=infer_config.text_heads(widths[0]),
        unet_parameters=_parameters(unet),
        text_parameters=sum(map(_parameters, texts)),
        vae_parameters=_parameters(parts["vae"]),
        dtype=DTYPES.get(unet["conv_in.weight"].dtype, "float32"),
        title=title,
        zero_terminal_snr=prediction.zero_terminal_snr,
        sure=prediction.sure,
        notes=(_about_few_steps(few_steps),) if few_steps else (),
        detected=prediction,
        unet_levels=infer_config.unet_levels(unet),
        middle_depth=infer_config.middle_depth(unet),
        texts=tuple((width, infer_config.text_config(text, 1)["num_hidden_layers"]) for width, text in zip(widths, texts, strict=True)),
        layers=layers.of_state(row.family, unet, texts),
    )


def _about_few_steps(word: str) -> Message:
    return say(
        "The model calls itself {word}: it is distilled to draw in few steps, and a LoRA trained on it unlearns that. Train on the model "
        "that it was made from; the LoRA works with both.",
        word=word,
    )


def _check_widths(title: str, row: FamilyRow, unet: Mapping[str, TensorInfo], texts: list[Mapping[str, TensorInfo]]) -> None:
    """Raises ModelError if the parts do not match, or the U-Net's architecture is not the family's."""
    cross_attention = unet.get("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight")
    if cross_attention is None or "down_blocks.0.resnets.1.conv2.weight" not in unet:
        raise ModelError(
            "{path} is {kind}.",
            path=title,
            kind=say("a variant of {label} with another architecture", label=row.label),
            fix=TRAINABLE,
        )
    text_width = sum(text["text_model.embeddings.token_embedding.weight"].shape[1] for text in texts)
    if text_width != cross_attention.shape[1]:
        raise ModelError(
            "{path}: its U-Net expects text states of width {context}, its text encoder gives {width}.",
            path=title,
            context=cross_attention.shape[1],
            width=text_width,
            fix=TRAINABLE,
        )


def _parameters(part: Mapping[str, TensorInfo]) -> int:
    return sum(entry.count for name, entry in part.items() if not name.endswith("position_ids"))


def _untrainable_folder(folder: diffusers_folder.FolderContents) -> Message | None:
    if folder.kind is not None:
        return folder.kind
    channels = folder.parts["unet"]["conv_in.weight"].shape[1]
    return None if channels == layout.row(folder.family).latent_channels else _kind_by_channels(channels)


def _kind_by_channels(count: int) -> Message:
    return KINDS_BY_CHANNELS.get(count) or say("a model with {count} input channels", count=count)


def _untrainable_kind(file: Contents) -> Message | None:
    """What a file is if it is not a checkpoint of a known family, else None."""
    keys = file.tensors

    def has(part: str) -> bool:
        return any(part in name for name in keys)

    if any(name.startswith(("lora_unet_", "lora_te")) for name in keys) or has(".lora_down.") or has(".lora_A."):
        return say("a LoRA, not a checkpoint")
    for part, kind in KINDS_BY_KEY:
        if has(part):
            return kind
    first = keys.get(f"{UNET}input_blocks.0.0.weight")
    if first is None:
        return _kind_without_unet(keys)
    if first.shape[1] not in layout.LATENT_CHANNELS:
        return _kind_by_channels(first.shape[1])
    row = layout.family_of(keys)
    if row is None:
        refiner = any(name.startswith("conditioner.embedders.0.model.") for name in keys)
        return say("an SDXL refiner") if refiner else say("a checkpoint without its text encoder")
    if not any(name.startswith(VAE) for name in keys):
        return say("a checkpoint without its VAE")
    extra = f"{UNET}label_emb.0.0.weight" in keys
    if row.has_label != extra:
        return say("an unCLIP model") if extra else say("a variant of {label} with another architecture", label=row.label)
    if f"{UNET}middle_block.1.proj_in.weight" not in keys:
        return say("a smaller, distilled SDXL model (SSD-1B, Segmind Vega or of their kind)")
    return None


def _kind_without_unet(keys: Mapping[str, TensorInfo]) -> Message:
    def starts(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in keys)

    if starts("down_blocks.", "unet.down_blocks."):
        return say("a U-Net in diffusers' names without its text encoder: choose the whole folder")
    if starts("encoder.down.", "encoder.down_blocks.", VAE):
        return say("a VAE, not a checkpoint")
    if starts("text_model.", "transformer.resblocks."):
        return say("a text encoder, not a checkpoint")
    if "emb_params" in keys or "clip_g" in keys or starts("string_to_"):
        return say("an embedding, not a checkpoint")
    return say("not a Stable Diffusion checkpoint")


KINDS_BY_KEY: tuple[tuple[str, Message], ...] = (
    (".quant_state.bitsandbytes__", PACKED),
    ("control_model.", say("a ControlNet")),
    ("motion_modules.", say("an AnimateDiff motion module")),
    ("joint_blocks.", say("a Stable Diffusion 3 model")),
    ("double_blocks.", say("a Flux model")),
    ("clip_txt_mapper.", say("a Stable Cascade model")),
    ("edm_vpred.sigma_max", say("a CosXL model, which has another noise schedule")),
    ("edm_mean", say("a Playground 2.5 model, which has another noise schedule")),
    ("noise_augmentor.", say("an unCLIP model")),
    ("img_in.", say("a model of a family that is not supported")),
)
"""(part of a key, the only kind of model that has it)."""
