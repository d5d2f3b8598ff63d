"""The Dreambooth extension's concepts: a list of objects, each a folder of pictures with its prompts and class pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_trainer.config.checks.option_checks import options
from lora_trainer.config.importing.arguments import nested
from lora_trainer.config.importing.reasons import EMPTY, ITSELF, NOT_YET, UNKNOWN
from lora_trainer.config.importing.result import Imported, Left, Taken
from lora_trainer.config.importing.values import is_empty, number
from lora_trainer.messages import Message, say

FILEWORDS = "[filewords]"
NO_CLASS_PICTURES = say("Class pictures are not drawn here yet: put some into the folder.")
CLASS_PICTURES = ("num_class_images_per", "num_class_images", "class_negative_prompt", "class_guidance_scale", "class_infer_steps")
PREVIEW = {"sample_seed": "d", "save_guidance_scale": "l", "save_infer_steps": "s"}
SUBSETS = "data.subsets"


def concepts(given: Sequence[Any]) -> Imported:
    """Every concept a folder of `data.subsets`, its class pictures another one; a single concept without them a plain folder."""
    found = _Concepts(several=len(_with_pictures(given)) > 1 or any(_has_class(one) for one in _with_pictures(given)))
    for place, one in enumerate(given):
        if isinstance(one, Mapping):
            found.add(f"[{place}]", one)
        else:
            found.left.append(Left(f"[{place}]", one, say("It is no object with the keys of a concept.")))
    return found.result()


def _with_pictures(given: Sequence[Any]) -> list[Mapping[str, Any]]:
    return [one for one in given if isinstance(one, Mapping) and not is_empty(one.get("instance_data_dir"))]


def _has_class(one: Mapping[str, Any]) -> bool:
    return not is_empty(one.get("class_data_dir"))


class _Concepts:
    """What is gathered from one concept after the other."""

    def __init__(self, several: bool) -> None:
        self.tables = several and SUBSETS in options()
        self.several = several
        self.flat: dict[str, Any] = {}
        self.subsets: list[dict[str, Any]] = []
        self.prompts: list[str] = []
        self.taken: list[Taken] = []
        self.left: list[Left] = []
        self.notes: list[Message] = []

    def add(self, at: str, one: Mapping[str, Any]) -> None:
        """One concept; the first with pictures is the run's folder where there are no tables of subsets."""
        folder = not is_empty(one.get("instance_data_dir"))
        usable = folder and (self.tables or "data.train_data_dir" not in self.flat)
        for name, value in one.items():
            key = f"{at}.{name}"
            why = self._refused(name, value, one, folder, usable)
            if why is not None:
                self.left.append(Left(key, value, why))
            else:
                self.taken.append(Taken(key, value, self._paths(name, value)))
        if usable:
            self._put(one)

    def result(self) -> Imported:
        """All concepts together."""
        if self.subsets:
            self.flat[SUBSETS] = self.subsets
        if self.prompts:
            self.flat["sample.prompts"] = self.prompts
        return Imported("dreambooth", nested(self.flat), tuple(self.taken), tuple(self.left), notes=tuple(self.notes))

    def _refused(self, name: str, value: Any, one: Mapping[str, Any], folder: bool, usable: bool) -> Message | None:
        known = name in NAMES
        if name == "is_valid":
            return ITSELF
        if is_empty(value):
            return EMPTY
        if not known:
            return UNKNOWN
        if not folder:
            return say("The concept has no folder of pictures.")
        if not usable:
            return say("Only one folder is possible here yet.")
        if name in CLASS_PICTURES:
            return NO_CLASS_PICTURES
        return self._refused_word(name, value, one)

    def _refused_word(self, name: str, value: Any, one: Mapping[str, Any]) -> Message | None:
        if name in ("class_data_dir", "class_prompt"):
            if not self.tables:
                return NOT_YET
            return None if _has_class(one) else say("There is no folder of class pictures.")
        if name == "save_sample_template":
            return say("Prompts from {file} are not read here: write them into sample.prompts.", file=value)
        if name in (*PREVIEW, "save_sample_negative_prompt", "n_save_sample") and is_empty(one.get("save_sample_prompt")):
            return say("There is no preview prompt.")
        if name == "n_save_sample" and number(value) > 1:
            return say("One picture is drawn of each prompt.")
        if name == "sample_seed" and number(value) < 0:
            return say("Previews keep one seed here, so that they can be compared.")
        if name == "instance_token" and self.several:
            return say("Several concepts have no trigger word in common: write it into the captions.")
        if name == "class_token" and self.several:
            return say("Each folder's prompt names its class.")
        return None

    def _paths(self, name: str, value: Any) -> tuple[str, ...]:
        place = SUBSETS if self.tables and NAMES[name][1] else "data"
        if name in ("instance_prompt", "class_prompt"):
            folder = "image_dir" if self.tables else "train_data_dir"  # [filewords] alone: the captions as they are
            return tuple(f"{place}.{word}" for word in _words({name: value}, name)) or (f"{place}.{folder}",)
        return (f"{place}.{NAMES[name][1]}",) if place == SUBSETS else (NAMES[name][0],)

    def _put(self, one: Mapping[str, Any]) -> None:
        words = _words(one, "instance_prompt")
        if self.tables:
            self.subsets.append({"image_dir": str(one["instance_data_dir"]), **words})
            if _has_class(one):
                self.subsets.append({"image_dir": str(one["class_data_dir"]), "is_reg": True, **_words(one, "class_prompt")})
        else:
            self.flat["data.train_data_dir"] = str(one["instance_data_dir"])
            self.flat |= {f"data.{name}": value for name, value in words.items() if f"data.{name}" in options()}
        if not self.several:
            tokens = {"data.trigger_word": one.get("instance_token"), "data.class_tokens": one.get("class_token")}
            self.flat |= {path: str(token) for path, token in tokens.items() if not is_empty(token)}
        if FILEWORDS not in str(one.get("instance_prompt", "")):
            self.notes.append(
                say("{folder}: where pictures have caption files, these are read, not the prompt.", folder=str(one["instance_data_dir"]))
            )
        if not is_empty(one.get("save_sample_prompt")):
            self.prompts.append(_preview(one))


def _words(one: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A prompt as class words, or with [filewords] as what stands before and behind each caption."""
    prompt = str(one.get(name) or "").strip()
    if FILEWORDS not in prompt:
        return {"class_tokens": prompt} if prompt else {}
    before, _, behind = prompt.partition(FILEWORDS)
    found = {"caption_prefix": before.strip(), "caption_suffix": behind.strip()}
    return {name: text for name, text in found.items() if text}


def _preview(one: Mapping[str, Any]) -> str:
    prompt = str(one["save_sample_prompt"]).replace(FILEWORDS, "").strip()
    words = [prompt]
    if not is_empty(one.get("save_sample_negative_prompt")):
        words.append(f"--n {one['save_sample_negative_prompt']}")
    words += [f"--{letter} {one[name]}" for name, letter in PREVIEW.items() if number(one.get(name)) > 0]
    return " ".join(words)


NAMES: dict[str, tuple[str, str]] = {
    "instance_data_dir": ("data.train_data_dir", "image_dir"),
    "class_data_dir": ("", "image_dir"),
    "instance_prompt": ("data.class_tokens", "class_tokens"),
    "class_prompt": ("", "class_tokens"),
    "instance_token": ("data.trigger_word", ""),
    "class_token": ("data.class_tokens", ""),
    "save_sample_prompt": ("sample.prompts", ""),
    "save_sample_template": ("", ""),
    "save_sample_negative_prompt": ("sample.prompts", ""),
    "n_save_sample": ("sample.prompts", ""),
    "sample_seed": ("sample.prompts", ""),
    "save_guidance_scale": ("sample.prompts", ""),
    "save_infer_steps": ("sample.prompts", ""),
    **dict.fromkeys(CLASS_PICTURES, ("", "")),
}
"""Key -> our option, and its name in a table of data.subsets ("" where it does not stand there)."""
