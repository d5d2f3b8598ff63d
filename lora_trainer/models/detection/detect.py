"""What a checkpoint is, told from its names and shapes alone (no torch, nothing is loaded)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import attrs

from lora_trainer.errors import ModelError
from lora_trainer.messages import Message, say
from lora_trainer.models import layers, layout
from lora_trainer.models.detection import infer_config, prediction_type
from lora_trainer.models.detection.infer_config import text_heads as sd1_heads
from lora_trainer.models.files import diffusers_folder
from lora_trainer.models.files.tensor_file import PACKED, Contents, Entry, contents, read_header
from lora_trainer.models.layers import Layer
from lora_trainer.models.layout import UNET, VAE, Row

__all__ = ["ModelFacts", "inspect", "read_header", "sd1_heads"]

DTYPES = {"F16": "float16", "BF16": "bfloat16"}
TRAINABLE = "Choose a Stable Diffusion 1, 2 or SDXL base checkpoint."
CHANNELS: Mapping[int, Message] = {
    9: say("an inpainting model"),
    8: say("an InstructPix2Pix model"),
    7: say("an upscaling model"),
    5: say("a depth model"),
}


@attrs.frozen
class ModelFacts:
    """What is known of a model before it is loaded.

    `family` is its row's name, `prediction` "epsilon" or "v" with its reason, `native_size` a side in pixels. `sure` False: the model
    itself is asked for its prediction when it is loaded. Counts of text layers and parameters are of all text encoders together.
    """

    family: str
    prediction: str
    because: Message | str
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
    """What the user should know of the model before training on it."""
    found: prediction_type.Prediction | None = None
    unet_lora: int = 0
    """Parameters of a LoRA of rank 1 on the U-Net; 0 where they were not counted."""
    text_lora: int = 0
    unet_levels: tuple[tuple[int, int], ...] = ()
    """Channels of each level, and the transformer blocks in each of its attentions; empty where they were not looked at."""
    middle_depth: int = 1
    texts: tuple[tuple[int, int], ...] = ()
    """Width and layers of each text encoder."""
    layers: tuple[Layer, ...] = attrs.field(default=(), repr=False)
    """Every layer that a network can be put on; none where they were not looked at."""

    def badge(self) -> dict[str, Any]:
        """What is shown of the model, with its reason."""
        return {
            "family": self.family,
            "label": layout.row(self.family).label,
            "prediction": self.prediction,
            "zero_terminal_snr": self.zero_terminal_snr,
            "native_size": self.native_size,
            "because": self.because,
            "sure": self.sure,
            "notes": list(self.notes),
        }

    def settled(
        self, *, v2: bool | None = None, v_parameterization: bool | None = None, zero_terminal_snr: bool | None = None
    ) -> ModelFacts:
        """The facts with sd-scripts' flags, None where they are not given. Raises ModelError for one that the model contradicts."""
        row = layout.row(self.family)
        known = self.found or prediction_type.Prediction(
            self.prediction, say("{why}", why=self.because), zero_terminal_snr=self.zero_terminal_snr
        )
        made = prediction_type.settled(known, row.v2, row.label, v2, v_parameterization, zero_terminal_snr)
        size = self.native_size
        if made.kind != self.prediction and size in (row.native_size, row.native_size_v):
            size = row.size_for(made.kind)
        return attrs.evolve(
            self,
            prediction=made.kind,
            because=made.because,
            sure=made.sure,
            zero_terminal_snr=made.zero_terminal_snr,
            native_size=size,
            found=made,
        )


def inspect(path: Path, *, sha256: str = "") -> ModelFacts:
    """Facts of a checkpoint file or a diffusers folder. Raises ModelError that says what it is when it cannot be trained on.

    `sha256`: the file's hash where somebody knows it already; released files that bear no mark are told by it.
    """
    if path.is_dir():
        described = diffusers_folder.described(path)
        if (other := _other_folder(described)) is not None:
            raise ModelError("{path} is {kind}.", path=str(path), kind=other, fix=TRAINABLE)
        return _facts(path.name, layout.row(described.family), described.parts, described.prediction, described.native_size, "")
    held = contents(path)
    if (other := _other_kind(held)) is not None:
        raise ModelError("{path} is {kind}.", path=str(path), kind=other, fix=TRAINABLE)
    row = layout.family_of(held.tensors)
    assert row is not None  # what is of no family was named above
    marked = prediction_type.Marked(_bare(held.tensors), held.words, prediction_type.yaml_beside(path), path.stem, sha256)
    found = prediction_type.prediction_of(marked, row.family)
    size = prediction_type.native_size(marked, row.size_for(found.kind))
    return _facts(path.stem, row, layout.parts_of(held.tensors, row.family), found, size, prediction_type.few_steps(marked))


class Flags(Protocol):
    """sd-scripts' words about a model, as a config's [model] has them."""

    @property
    def v2(self) -> bool | None: ...
    @property
    def v_parameterization(self) -> bool | None: ...
    @property
    def zero_terminal_snr(self) -> bool | None: ...


def inspect_with(path: Path, flags: Flags, *, sha256: str = "") -> ModelFacts:
    """Facts of a checkpoint with the user's flags. Raises ModelError also for a flag that the model contradicts."""
    facts = inspect(path, sha256=sha256)
    return facts.settled(v2=flags.v2, v_parameterization=flags.v_parameterization, zero_terminal_snr=flags.zero_terminal_snr)


def _bare(keys: Iterable[str]) -> set[str]:
    """Names that can be marks: those without an owner, and the one by which LCM is told."""
    return {key for key in keys if "." not in key or "cond_proj" in key}


def _facts(title: str, row: Row, parts: Mapping[str, Any], found: prediction_type.Prediction, size: int, few_steps: str) -> ModelFacts:
    unet, texts = parts["unet"], [parts[name] for name in parts if name.startswith("text")]
    _check_widths(title, row, unet, texts)
    channels = unet["conv_in.weight"].shape[0]
    widths = [text["text_model.embeddings.token_embedding.weight"].shape[1] for text in texts]
    return ModelFacts(
        family=row.family,
        prediction=found.kind,
        because=found.because,
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
        zero_terminal_snr=found.zero_terminal_snr,
        sure=found.sure,
        notes=(_about_few_steps(few_steps),) if few_steps else (),
        found=found,
        unet_lora=infer_config.lora_parameters(unet),
        text_lora=sum(map(infer_config.lora_parameters, texts)),
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


def _check_widths(title: str, row: Row, unet: Mapping[str, Entry], texts: list[Mapping[str, Entry]]) -> None:
    """Raises ModelError when the parts do not belong together, or the U-Net is of another build than the family's."""
    read = unet.get("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight")
    if read is None or "down_blocks.0.resnets.1.conv2.weight" not in unet:
        raise ModelError(
            "{path} is {kind}.",
            path=title,
            kind=say("of another build than the {label} models that are trained here", label=row.label),
            fix=TRAINABLE,
        )
    given = sum(text["text_model.embeddings.token_embedding.weight"].shape[1] for text in texts)
    if given != read.shape[1]:
        raise ModelError(
            "{path}: its U-Net reads text {context} wide and its text encoder gives {width}.",
            path=title,
            context=read.shape[1],
            width=given,
            fix=TRAINABLE,
        )


def _parameters(part: Mapping[str, Entry]) -> int:
    return sum(entry.count for name, entry in part.items() if not name.endswith("position_ids"))


def _other_folder(described: diffusers_folder.Described) -> Message | None:
    if described.kind is not None:
        return described.kind
    first = described.parts["unet"]["conv_in.weight"]
    return None if first.shape[1] == 4 else _by_channels(first.shape[1])


def _by_channels(count: int) -> Message:
    return CHANNELS.get(count) or say("a model with {count} input channels", count=count)


def _other_kind(held: Contents) -> Message | None:
    """What a file is when it is no checkpoint of a family; None when it is one."""
    keys = held.tensors

    def has(part: str) -> bool:
        return any(part in name for name in keys)

    if any(name.startswith(("lora_unet_", "lora_te")) for name in keys) or has(".lora_down.") or has(".lora_A."):
        return say("a LoRA, not a checkpoint")
    for part, kind in BY_KEY:
        if has(part):
            return kind
    first = keys.get(f"{UNET}input_blocks.0.0.weight")
    if first is None:
        return _without_unet(keys)
    if first.shape[1] != 4:
        return _by_channels(first.shape[1])
    row = layout.family_of(keys)
    if row is None:
        refiner = any(name.startswith("conditioner.embedders.0.model.") for name in keys)
        return say("an SDXL refiner") if refiner else say("a checkpoint without its text encoder")
    if not any(name.startswith(VAE) for name in keys):
        return say("a checkpoint without its VAE")
    extra = f"{UNET}label_emb.0.0.weight" in keys
    if row.has_label != extra:
        return say("an unCLIP model") if extra else say("of another build than the {label} models that are trained here", label=row.label)
    if f"{UNET}middle_block.1.proj_in.weight" not in keys:
        return say("a smaller, distilled SDXL model (SSD-1B, Segmind Vega or of their kind)")
    return None


def _without_unet(keys: Mapping[str, Entry]) -> Message:
    def starts(*beginnings: str) -> bool:
        return any(name.startswith(beginnings) for name in keys)

    if starts("down_blocks.", "unet.down_blocks."):
        return say("a U-Net in diffusers' names without its text encoder: choose the whole folder")
    if starts("encoder.down.", "encoder.down_blocks.", VAE):
        return say("a VAE, not a checkpoint")
    if starts("text_model.", "transformer.resblocks."):
        return say("a text encoder, not a checkpoint")
    if "emb_params" in keys or "clip_g" in keys or starts("string_to_"):
        return say("an embedding, not a checkpoint")
    return say("not a Stable Diffusion checkpoint")


BY_KEY: tuple[tuple[str, Message], ...] = (
    (".quant_state.bitsandbytes__", PACKED),
    ("control_model.", say("a ControlNet")),
    ("motion_modules.", say("an AnimateDiff motion module")),
    ("joint_blocks.", say("a Stable Diffusion 3 model")),
    ("double_blocks.", say("a Flux model")),
    ("clip_txt_mapper.", say("a Stable Cascade model")),
    ("edm_vpred.sigma_max", say("a CosXL model, whose noise schedule is another")),
    ("edm_mean", say("a Playground 2.5 model, whose noise schedule is another")),
    ("noise_augmentor.", say("an unCLIP model")),
    ("img_in.", say("a model of a family that is not trained here")),
)
"""A piece of a name that only models of that kind have."""
