"""What a model predicts, told from the marks that people leave on it (no torch): keys, yaml, header, hash, name.

"epsilon" is the noise, "v" the velocity of Salimans & Ho 2022. A model with zero terminal SNR was trained down to pure noise.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import attrs

from lora_trainer.errors import ModelError
from lora_trainer.messages import Message, say

V_KEY, ZERO_SNR_KEY = "v_pred", "ztsnr"
HASHES = {
    "d635794c1fedfdfa261e065370bea59c651fc9bfa65dc6d67ad29e11869a1824": "epsilon",  # 512-base-ema.ckpt
    "88ecb782561455673c4b78d05093494b9c539fc6bfc08f3a9a4a0dd7b0b10f36": "epsilon",  # v2-1_512-ema-pruned.ckpt
    "bfcaf0755797b0c30eb00a3787e8b423eb1f5decd8de76c4d824ac2dd27e139f": "v",  # 768-v-ema.ckpt
    "ad2a33c361c1f593c4a1fb32ea81afce2b5bb7d1983c6b94793a26a3b54b08a0": "v",  # v2-1_768-ema-pruned.ckpt
}
"""sha256 of the released files of Stable Diffusion 2, which bear no mark."""
WORDS = {"epsilon": "epsilon", "eps": "epsilon", "v": "v", "v_prediction": "v", "v-prediction": "v", "velocity": "v"}
V_NAME = re.compile(r"(?<![a-z])(v[-_ ]?pred(iction)?|v[-_ ]?parameteri[sz]ation)(?![a-z])", re.IGNORECASE)
FEW_STEPS = re.compile(r"(?<![a-z])(turbo|lightning|hyper|lcm|dmd2?)(?![a-z])", re.IGNORECASE)
COMMON_SIZE = "64"
"""Latents' side in LDM's own yaml files, which stands there for models of 768 pixels too."""
SAYS_YES = ("true", "1", "yes")


@attrs.frozen
class Prediction:
    """`kind` "epsilon" or "v", with its reason. `sure` False: nothing tells, so the model itself is asked when it is loaded.

    `marked`: the file says it, so a flag that says otherwise is wrong; else it is only the family's habit.
    """

    kind: str
    because: Message
    sure: bool = True
    marked: bool = True
    zero_terminal_snr: bool = False


@attrs.frozen
class Marked:
    """All that may tell: keys and header of the file, the text of the yaml beside it, its name, its sha256 where it is known."""

    keys: Collection[str] = ()
    words: Mapping[str, str] = attrs.field(factory=dict)
    yaml: str = ""
    name: str = ""
    sha256: str = ""


def yaml_beside(path: Path) -> str:
    """The text of the yaml file beside a checkpoint; empty where there is none."""
    described = path.with_suffix(".yaml")
    return described.read_text(encoding="utf-8", errors="replace") if described.is_file() else ""


def prediction_of(marked: Marked, family: str) -> Prediction:
    """What a model predicts: by its keys, else the yaml, else the header, else its hash, else by the family's habit."""
    zero = ZERO_SNR_KEY in marked.keys or _said(marked.words, "zero_terminal_snr") or _in_yaml(marked.yaml, "zero_terminal_snr") in SAYS_YES
    kind, because, sure, is_marked = _kind(marked, family)
    if zero and kind == "epsilon" and not is_marked:
        kind, because, sure, is_marked = "v", say("its mark of zero terminal SNR, with which only v can be predicted"), True, True
    return Prediction(kind, because, sure, is_marked, zero and kind == "v")


def _kind(marked: Marked, family: str) -> tuple[str, Message, bool, bool]:
    if V_KEY in marked.keys:
        return "v", say("the checkpoint's key {name}", name=V_KEY), True, True
    if described := WORDS.get(_in_yaml(marked.yaml, "parameterization")) or _scaling(marked.yaml):
        return described, say("the yaml file beside the checkpoint"), True, True
    for name in ("modelspec.prediction_type", "modelspec.predict_key"):
        if said := WORDS.get(str(marked.words.get(name, "")).lower()):
            return said, say("{name} in the checkpoint's header", name=name), True, True
    if _said(marked.words, "v_parameterization") or str(marked.words.get("modelspec.architecture", "")).endswith("768-v"):
        return "v", say("the words of the checkpoint's header"), True, True
    if known := HASHES.get(marked.sha256):
        return known, say("its hash: a released file"), True, True
    if V_NAME.search(marked.name):
        return "v", say("its name; nothing inside says so, so the model itself is asked when it is loaded"), False, False
    if family == "sd2":
        return "v", say("nothing in the file tells it, so the model itself is asked when it is loaded"), False, False
    return "epsilon", say("no mark of another: models of this family predict the noise"), True, False


def native_size(marked: Marked, by_family: int) -> int:
    """The side in pixels that a model was made for: by the yaml beside it, else the header, else its family's."""
    size = _in_yaml(marked.yaml, "image_size")
    if size.isdigit() and size != COMMON_SIZE:
        return int(size) * 8
    sides = [int(side) for side in re.findall(r"\d+", str(marked.words.get("modelspec.resolution", "")))]
    return sides[0] if len(sides) in (1, 2) and all(64 <= side <= 4096 and not side % 8 for side in sides) else by_family


def few_steps(marked: Marked) -> str:
    """The word by which a model calls itself distilled to few steps ("turbo", "lightning" ...); empty for the others."""
    if any(".time_embed.cond_proj." in key or key.startswith("time_embedding.cond_proj.") for key in marked.keys):
        return "lcm"
    found = FEW_STEPS.search(marked.name) or FEW_STEPS.search(str(marked.words.get("modelspec.title", "")))
    return found.group(1).lower() if found else ""


def settled(found: Prediction, family_v2: bool, label: str, v2: bool | None, v: bool | None, zero_snr: bool | None) -> Prediction:
    """The prediction with the user's flags (None: not given). Raises ModelError for one that the model contradicts."""
    if v2 is not None and v2 != family_v2:
        template = "the model is {label}, but v2 is set." if v2 else "the model is {label}, but v2 is set to false."
        raise ModelError(template, label=label, path="model.v2", fix="Leave it out: the family is told from the file.")
    kind = found.kind if v is None else ("v" if v else "epsilon")
    if kind != found.kind and found.marked:
        raise ModelError(
            "the model predicts {kind} ({because}), but v_parameterization says otherwise.",
            kind=found.kind,
            because=found.because,
            path="model.v_parameterization",
            fix="Leave it out: what the model predicts is told from the file.",
        )
    zero = found.zero_terminal_snr if zero_snr is None else zero_snr
    if found.zero_terminal_snr and not zero:
        raise ModelError(
            "the model was trained with zero terminal SNR ({because}), but zero_terminal_snr says otherwise.",
            because=say("the checkpoint's key {name}", name=ZERO_SNR_KEY),
            path="model.zero_terminal_snr",
            fix="Leave it out: the noise schedule is told from the file.",
        )
    if zero and kind == "epsilon":
        raise ModelError(
            "zero terminal SNR needs a model that predicts v: from pure noise the noise itself says nothing about the picture.",
            path="model.zero_terminal_snr",
            fix="Leave it out.",
        )
    if v is None and zero_snr is None:
        return found
    because = found.because if v is None else say("you said so")
    return attrs.evolve(found, kind=kind, because=because, sure=found.sure or v is not None, zero_terminal_snr=zero)


def _said(words: Mapping[str, str], name: str) -> bool:
    return str(words.get(f"ss_{name}", "")).lower() in SAYS_YES


def _scaling(text: str) -> str:
    """What SGM's yaml files of SDXL call it."""
    return {"VScaling": "v", "EpsScaling": "epsilon"}.get(next(iter(re.findall(r"\b(VScaling|EpsScaling)\b", text)), ""), "")


def _in_yaml(text: str, name: str) -> str:
    """The value of the first line `name: value`, without quotes; a yaml reader is not needed for that."""
    found = re.search(rf"^\s*{name}:\s*[\"']?([\w.-]+)", text, re.MULTILINE)
    return found.group(1).lower() if found else ""
