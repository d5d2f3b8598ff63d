"""Detects what a model predicts by marks (no torch): keys, yaml, header, hash, name.

"epsilon" is the noise, "v" the velocity of Salimans & Ho 2022, "flow" the velocity along the straight path of rectified
flow (Liu et al. 2022). Zero terminal SNR: the model was trained down to pure noise.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

import attrs

from lora_trainer.errors import ModelError
from lora_trainer.files import read_regular
from lora_trainer.messages import Message, say
from lora_trainer.models.prediction_kinds import FLOW

MAX_YAML_BYTES = 1 << 20

V_KEY, ZERO_SNR_KEY = "v_pred", "ztsnr"
HASHES = {
    "d635794c1fedfdfa261e065370bea59c651fc9bfa65dc6d67ad29e11869a1824": "epsilon",  # 512-base-ema.ckpt
    "88ecb782561455673c4b78d05093494b9c539fc6bfc08f3a9a4a0dd7b0b10f36": "epsilon",  # v2-1_512-ema-pruned.ckpt
    "bfcaf0755797b0c30eb00a3787e8b423eb1f5decd8de76c4d824ac2dd27e139f": "v",  # 768-v-ema.ckpt
    "ad2a33c361c1f593c4a1fb32ea81afce2b5bb7d1983c6b94793a26a3b54b08a0": "v",  # v2-1_768-ema-pruned.ckpt
}
"""sha256 of the released files of Stable Diffusion 2, which have no marks."""
FLOW_NAMES = ("flow", "rf", "rectified_flow", "rectified_flow_matching", "flow_match", "flow_matching", "flow_prediction", "const")
PREDICTION_NAMES = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    **dict.fromkeys(("v", "v_prediction", "v-prediction", "velocity"), "v"),
    **{name.replace("_", sign): FLOW for name in FLOW_NAMES for sign in "_- "},
}
"""What files call a prediction type -> "epsilon", "v" or "flow"."""
KINDS, AUTO = ("epsilon", "v", FLOW), "auto"
V_NAME = re.compile(r"(?<![a-z])(v[-_ ]?pred(iction)?|v[-_ ]?parameteri[sz]ation)(?![a-z])", re.IGNORECASE)
FLOW_PATH = re.compile("rectified", re.IGNORECASE)
"""The word in an SDXL checkpoint's path by which Forge Neo draws it as rectified flow."""
FEW_STEPS = re.compile(r"(?<![a-z])(turbo|lightning|hyper|lcm|dmd2?)(?![a-z])", re.IGNORECASE)
COMMON_SIZE = "64"
"""image_size in LDM's own yaml files, which is also in those of 768 pixel models."""
TRUE_WORDS = ("true", "1", "yes")


@attrs.frozen
class PredictionType:
    """`kind` "epsilon", "v" or "flow", with its reason. `sure` False: a guess, so the model itself is tested when it is loaded.

    `is_marked`: the file says so, and a flag that contradicts it is an error; else it is the family's default.
    """

    kind: str
    reason: Message
    sure: bool = True
    is_marked: bool = True
    zero_terminal_snr: bool = False


@attrs.frozen
class FileMarks:
    """All possible marks: keys and header of the file, text of the yaml beside it, file name, sha256 ("" if unknown), whole path."""

    keys: Collection[str] = ()
    metadata: Mapping[str, str] = attrs.field(factory=dict)
    yaml: str = ""
    name: str = ""
    sha256: str = ""
    path: str = ""


def read_yaml_beside(path: Path) -> str:
    """The text of the yaml file beside a checkpoint; "" if there is none."""
    yaml = path.with_suffix(".yaml")
    try:
        return read_regular(yaml, MAX_YAML_BYTES).decode("utf-8", "replace")
    except OSError:  # there is none, or it is no config of a model
        return ""


def detect_prediction(marks: FileMarks, family: str) -> PredictionType:
    """What a model predicts by its keys, else yaml, header, hash, name, else the family's default.

    The word in an SDXL model's path wins over them, as in Forge Neo: such models are made of others, whose marks they keep.
    """
    zero = (
        ZERO_SNR_KEY in marks.keys
        or _is_set(marks.metadata, "zero_terminal_snr")
        or _yaml_value(marks.yaml, "zero_terminal_snr") in TRUE_WORDS
    )
    kind, reason, sure, is_marked = _detect_kind(marks, family)
    if zero and kind == "epsilon" and not is_marked:
        kind, reason, sure, is_marked = "v", say("its mark of zero terminal SNR, with which only v can be predicted"), True, True
    if kind != FLOW and family == "sdxl" and FLOW_PATH.search(marks.path):
        kind, reason, sure, is_marked = FLOW, say('the word "rectified" in its path, by which Forge Neo draws it so too'), True, False
    return PredictionType(kind, reason, sure, is_marked, zero and kind == "v")


def _detect_kind(marks: FileMarks, family: str) -> tuple[str, Message, bool, bool]:
    if V_KEY in marks.keys:
        return "v", say("the checkpoint's key {name}", name=V_KEY), True, True
    if yaml_kind := PREDICTION_NAMES.get(_yaml_value(marks.yaml, "parameterization")) or _yaml_scaling(marks.yaml):
        return yaml_kind, say("the yaml file beside the checkpoint"), True, True
    if _is_set(marks.metadata, "flow_model"):
        return FLOW, say("the metadata in the checkpoint's header"), True, True
    for name in ("modelspec.prediction_type", "modelspec.predict_key"):
        if header_kind := PREDICTION_NAMES.get(str(marks.metadata.get(name, "")).lower()):
            return header_kind, say("{name} in the checkpoint's header", name=name), True, True
    if _is_set(marks.metadata, "v_parameterization") or str(marks.metadata.get("modelspec.architecture", "")).endswith("768-v"):
        return "v", say("the metadata in the checkpoint's header"), True, True
    if kind := HASHES.get(marks.sha256):
        return kind, say("its hash: a released file"), True, True
    if V_NAME.search(marks.name):
        return "v", say("its name; nothing inside says so, so the model itself is tested when it is loaded"), False, False
    if family == "sd2":
        return "v", say("nothing in the file says so, so the model itself is tested when it is loaded"), False, False
    return "epsilon", say("nothing in it says otherwise: models of this family predict the noise"), True, False


def detect_native_size(marks: FileMarks, by_family: int) -> int:
    """The native resolution (one side, pixels) by the yaml, else the header, else `by_family`."""
    size = _yaml_value(marks.yaml, "image_size")
    if size.isdigit() and size != COMMON_SIZE:
        return int(size) * 8
    sides = [int(side) for side in re.findall(r"\d+", str(marks.metadata.get("modelspec.resolution", "")))]
    return sides[0] if len(sides) in (1, 2) and all(64 <= side <= 4096 and not side % 8 for side in sides) else by_family


def distillation_name(marks: FileMarks) -> str:
    """The kind of few-step distillation by a model's name or keys ("turbo", "lightning" ...); "" if there is none."""
    if any(".time_embed.cond_proj." in key or key.startswith("time_embedding.cond_proj.") for key in marks.keys):
        return "lcm"
    match = FEW_STEPS.search(marks.name) or FEW_STEPS.search(str(marks.metadata.get("modelspec.title", "")))
    return match.group(1).lower() if match else ""


class Flags(Protocol):
    """What the user says about a model, as in a config's [model]; None or "auto": nothing."""

    @property
    def v2(self) -> bool | None: ...
    @property
    def prediction(self) -> str: ...
    @property
    def v_parameterization(self) -> bool | None: ...
    @property
    def zero_terminal_snr(self) -> bool | None: ...


@attrs.frozen
class GivenFlags:
    """Flags that are given one by one."""

    v2: bool | None = None
    v_parameterization: bool | None = None
    zero_terminal_snr: bool | None = None
    prediction: str = AUTO


def told_kind(flags: Flags) -> str:
    """The prediction type that the user gives by either option; "" for neither. Raises ModelError where both are given and disagree."""
    by_flag = "" if flags.v_parameterization is None else "v" if flags.v_parameterization else "epsilon"
    told = "" if flags.prediction == AUTO else flags.prediction
    if told and by_flag and told != by_flag and (told, by_flag) != (FLOW, "epsilon"):
        raise ModelError(
            "the model is to predict {kind}, but v_parameterization says otherwise.",
            kind=told,
            path="model.v_parameterization",
            fix="Leave it out: model.prediction says the same in one word.",
        )
    return told or by_flag


def apply_flags(detected: PredictionType, family_v2: bool, label: str, flags: Flags) -> PredictionType:
    """The prediction with the user's flags. Raises ModelError for a flag that contradicts the model.

    A mark of "epsilon" does not contradict "flow": programs that train such models write it for want of a word.
    """
    if flags.v2 is not None and flags.v2 != family_v2:
        template = "the model is {label}, but v2 is set." if flags.v2 else "the model is {label}, but v2 is set to false."
        raise ModelError(template, label=label, path="model.v2", fix="Leave it out: the family is detected from the file.")
    told = told_kind(flags)
    kind = told or detected.kind
    if kind != detected.kind and detected.is_marked and (kind, detected.kind) != (FLOW, "epsilon"):
        name = "v_parameterization" if flags.prediction == AUTO else "prediction"
        raise ModelError(
            "the model predicts {kind} ({because}), but {option} says otherwise.",
            kind=detected.kind,
            because=detected.reason,
            option=name,
            path=f"model.{name}",
            fix="Leave it out: what the model predicts is detected from the file.",
        )
    zero = _zero_terminal_snr(detected, kind, flags.zero_terminal_snr)
    if not told and flags.zero_terminal_snr is None:
        return detected
    reason = say("you said so") if told else detected.reason
    return attrs.evolve(detected, kind=kind, reason=reason, sure=detected.sure or bool(told), zero_terminal_snr=zero)


def _zero_terminal_snr(detected: PredictionType, kind: str, flag: bool | None) -> bool:
    """Whether the model has zero terminal SNR, with the user's flag. Raises ModelError for one that the model contradicts."""
    zero = detected.zero_terminal_snr if flag is None else flag
    if detected.zero_terminal_snr and not zero:
        raise ModelError(
            "the model was trained with zero terminal SNR ({because}), but zero_terminal_snr says otherwise.",
            because=say("the checkpoint's key {name}", name=ZERO_SNR_KEY),
            path="model.zero_terminal_snr",
            fix="Leave it out: the noise schedule is detected from the file.",
        )
    if flag and kind == FLOW:
        raise ModelError(
            "zero terminal SNR is for models that predict v; this one is rectified flow, whose path ends in pure noise anyway.",
            path="model.zero_terminal_snr",
            fix="Leave it out.",
        )
    if zero and kind == "epsilon":
        raise ModelError(
            "zero terminal SNR needs a model that predicts v: from pure noise the noise itself says nothing about the picture.",
            path="model.zero_terminal_snr",
            fix="Leave it out.",
        )
    return zero and kind != FLOW


def _is_set(metadata: Mapping[str, str], name: str) -> bool:
    return str(metadata.get(f"ss_{name}", "")).lower() in TRUE_WORDS


def _yaml_scaling(text: str) -> str:
    """The prediction by the scaling class in SGM's yaml files of SDXL; "" if there is none."""
    return {"VScaling": "v", "EpsScaling": "epsilon"}.get(next(iter(re.findall(r"\b(VScaling|EpsScaling)\b", text)), ""), "")


def _yaml_value(text: str, name: str) -> str:
    """The value of the first line `name: value`, without quotes; a yaml parser is not needed."""
    match = re.search(rf"^[ \t]*{name}:\s*[\"']?([\w.-]+)", text, re.MULTILINE)
    return match.group(1).lower() if match else ""
