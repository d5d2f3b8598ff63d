"""The Dreambooth extension's concepts: a list of objects, each a folder of pictures with its prompts and class pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from lora_trainer.config.checks.option_checks import options
from lora_trainer.config.importing.arguments import drop_invalid, nest
from lora_trainer.config.importing.reasons import EMPTY, ITSELF, NOT_YET, UNKNOWN
from lora_trainer.config.importing.result import Imported, Left, Taken
from lora_trainer.config.importing.values import is_empty, to_number
from lora_trainer.messages import Message, say

FILEWORDS = "[filewords]"
NO_CLASS_PICTURES = say("Class pictures are not drawn here yet: put some into the folder.")
CLASS_PICTURES = ("num_class_images_per", "num_class_images", "class_negative_prompt", "class_guidance_scale", "class_infer_steps")
PREVIEW = {"sample_seed": "d", "save_guidance_scale": "l", "save_infer_steps": "s"}
SUBSETS = "data.subsets"


def import_concepts(entries: Sequence[Any]) -> Imported:
    """Each concept becomes a table of `data.subsets`, its class pictures another; a single concept without them a plain folder."""
    collected = _Concepts(several=len(_with_pictures(entries)) > 1 or any(_has_class(concept) for concept in _with_pictures(entries)))
    for index, concept in enumerate(entries):
        if isinstance(concept, Mapping):
            collected.add(f"[{index}]", concept)
        else:
            collected.left.append(Left(f"[{index}]", concept, say("It is not an object with the keys of a concept.")))
    return collected.result()


def _with_pictures(entries: Sequence[Any]) -> list[Mapping[str, Any]]:
    return [concept for concept in entries if isinstance(concept, Mapping) and _text(concept, "instance_data_dir")]


def _has_class(concept: Mapping[str, Any]) -> bool:
    return _text(concept, "class_data_dir") != ""


def _text(concept: Mapping[str, Any], name: str) -> str:
    """The text of a key; "" where it holds none."""
    value = concept.get(name)
    return "" if value is None or isinstance(value, (list, dict, bool)) else str(value).strip()


def import_concepts_file(content: Any) -> Imported:
    """A list of concepts, a single one, or a file of the extension that holds them in `concepts_list`."""
    if isinstance(content, list):
        return import_concepts(content)
    entries = content.get("concepts_list")
    if not isinstance(entries, list):
        return import_concepts([content])
    imported = import_concepts(entries)
    why = say("Only the concepts of this file are read.")
    others = [Left(key, value, why) for key, value in content.items() if key != "concepts_list"]
    return attrs.evolve(imported, left=(*imported.left, *others))


class _Concepts:
    """Collects the options of the concepts."""

    def __init__(self, several: bool) -> None:
        self.tables = several and SUBSETS in options()
        self.several = several
        self.flat: dict[str, Any] = {}
        self.subsets: list[dict[str, Any]] = []
        self.prompts: list[str] = []
        self.taken: list[Taken] = []
        self.left: list[Left] = []
        self.notes: list[Message] = []

    def add(self, prefix: str, concept: Mapping[str, Any]) -> None:
        """Adds one concept; without tables of subsets the first one with pictures is the run's folder."""
        has_folder = _text(concept, "instance_data_dir") != ""
        is_usable = has_folder and (self.tables or "data.train_data_dir" not in self.flat)
        for name, value in concept.items():
            key = f"{prefix}.{name}"
            why = self._reason_left(name, value, concept, has_folder, is_usable)
            if why is not None:
                self.left.append(Left(key, value, why))
            else:
                self.taken.append(Taken(key, value, self._paths(name, value)))
        if is_usable:
            self._add_options(concept)

    def result(self) -> Imported:
        """The import of all concepts."""
        if self.subsets:
            self.flat[SUBSETS] = self.subsets
        if self.prompts:
            self.flat["sample.prompts"] = self.prompts
        valid, refused = drop_invalid(self.flat)
        notes = [
            say("{key}: {name}={value} was not taken. {why}", key="concepts", name=one.place, value=one.value, why=one.why)
            for one in refused
        ]
        return Imported("dreambooth", nest(valid), tuple(self.taken), tuple(self.left), notes=(*self.notes, *notes))

    def _reason_left(self, name: str, value: Any, concept: Mapping[str, Any], has_folder: bool, usable: bool) -> Message | None:
        is_known = name in TARGETS
        if name == "is_valid":
            return ITSELF
        if is_empty(value):
            return EMPTY
        if not is_known:
            return UNKNOWN
        if isinstance(value, (list, dict, bool)):
            return say("It must be a text or a number.")
        if not has_folder:
            return say("The concept has no folder of pictures.")
        if not usable:
            return say("Only one folder is possible here yet.")
        if name in CLASS_PICTURES:
            return NO_CLASS_PICTURES
        return self._reason_key_left(name, value, concept)

    def _reason_key_left(self, name: str, value: Any, concept: Mapping[str, Any]) -> Message | None:
        if name in ("class_data_dir", "class_prompt"):
            if not self.tables:
                return NOT_YET
            return None if _has_class(concept) else say("There is no folder of class pictures.")
        if name == "save_sample_template":
            return say("Prompts from {file} are not read here: write them into sample.prompts.", file=value)
        if name in (*PREVIEW, "save_sample_negative_prompt", "n_save_sample") and is_empty(concept.get("save_sample_prompt")):
            return say("There is no preview prompt.")
        if name == "n_save_sample" and to_number(value) > 1:
            return say("One picture is drawn of each prompt.")
        if name == "sample_seed" and to_number(value) < 0:
            return say("Previews keep one seed here, so that they can be compared.")
        if name == "instance_token" and self.several:
            return say("Several concepts have no trigger word in common: write it into the captions.")
        if name == "class_token" and self.several:
            return say("Each folder's prompt names its class.")
        return None

    def _paths(self, name: str, value: Any) -> tuple[str, ...]:
        section = SUBSETS if self.tables and TARGETS[name][1] else "data"
        if name in ("instance_prompt", "class_prompt"):
            folder = "image_dir" if self.tables else "train_data_dir"  # [filewords] alone: the captions as they are
            return tuple(f"{section}.{option}" for option in _caption_options({name: value}, name)) or (f"{section}.{folder}",)
        return (f"{section}.{TARGETS[name][1]}",) if section == SUBSETS else (TARGETS[name][0],)

    def _add_options(self, concept: Mapping[str, Any]) -> None:
        options_of_prompt = _caption_options(concept, "instance_prompt")
        if self.tables:
            self.subsets.append({"image_dir": str(concept["instance_data_dir"]), **options_of_prompt})
            if _has_class(concept):
                self.subsets.append(
                    {"image_dir": str(concept["class_data_dir"]), "is_reg": True, **_caption_options(concept, "class_prompt")}
                )
        else:
            self.flat["data.train_data_dir"] = str(concept["instance_data_dir"])
            self.flat |= {f"data.{name}": value for name, value in options_of_prompt.items() if f"data.{name}" in options()}
        if not self.several:
            tokens = {"data.trigger_word": _text(concept, "instance_token"), "data.class_tokens": _text(concept, "class_token")}
            self.flat |= {path: token for path, token in tokens.items() if token}
        if FILEWORDS not in _text(concept, "instance_prompt"):
            self.notes.append(
                say(
                    "{folder}: where pictures have caption files, these are read, not the prompt.", folder=str(concept["instance_data_dir"])
                )
            )
        if _text(concept, "save_sample_prompt"):
            self.prompts.append(_prompt_line(concept))


def _caption_options(concept: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A prompt as class tokens, or with [filewords] as prefix and suffix of each caption."""
    prompt = _text(concept, name)
    if FILEWORDS not in prompt:
        return {"class_tokens": prompt} if prompt else {}
    prefix, _, suffix = prompt.partition(FILEWORDS)
    affixes = {"caption_prefix": prefix.strip(), "caption_suffix": suffix.strip()}
    return {name: text for name, text in affixes.items() if text}


def _prompt_line(concept: Mapping[str, Any]) -> str:
    prompt = _text(concept, "save_sample_prompt").replace(FILEWORDS, "").strip()
    parts = [prompt]
    if negative := _text(concept, "save_sample_negative_prompt"):
        parts.append(f"--n {negative}")
    parts += [f"--{letter} {concept[name]}" for name, letter in PREVIEW.items() if to_number(_text(concept, name)) > 0]
    return " ".join(parts)


TARGETS: dict[str, tuple[str, str]] = {
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
"""Key -> our option, and its name in a table of data.subsets ("" if it has none there)."""
