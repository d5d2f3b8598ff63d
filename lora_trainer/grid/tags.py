"""`<lora:NAME-NUM:STRENGTH>` in a prompt: NUM stands for a file's number, STRENGTH for a weight."""

from __future__ import annotations

import re

import attrs

from lora_trainer.errors import TrainerError

TAG = re.compile(r"<lora:([^:<>]+)(?::([^<>]*))?>")
NUMBER = re.compile(r"-(?:\d{6}|step\d{8})$")


@attrs.frozen
class Recipe:
    """A grid's prompt for the run NAME, its tag written as `<lora:NAME-NUM:STRENGTH>`; sd-scripts' `--w 64 ...` may follow."""

    name: str
    prompt: str

    @property
    def tag(self) -> str:
        """The tag with both places open."""
        return f"<lora:{self.name}-NUM:STRENGTH>"

    def filled(self, stem: str, weight: float) -> str:
        """The prompt for the file STEM.safetensors at a weight."""
        return self.prompt.replace(self.tag, f"<lora:{stem}:{weight:g}>")

    def without(self) -> str:
        """The prompt without this run's network."""
        return " ".join(self.prompt.replace(self.tag, " ").split())


def recipe_of(prompt: str, name: str) -> Recipe:
    """The recipe of a user's prompt: where it holds no tag for this run, one is put in front.

    A tag with NUM or STRENGTH, or one that names a file of this run, is the one; other tags stay as they are. Raises TrainerError
    when NUM belongs to another name, or when there are two tags for this run.
    """
    open_tag = f"<lora:{name}-NUM:STRENGTH>"
    own = [found for found in TAG.finditer(prompt) if _is_own(found, name)]
    if not own:
        return Recipe(name, f"{open_tag} {prompt.strip()}".strip())
    if len(own) > 1:
        raise TrainerError(
            "the prompt holds this run's LoRA {count} times.",
            count=len(own),
            path="prompt",
            fix="Write {tag} once.",
            tag=open_tag,
        )
    written = own[0].group(1)
    if written not in (name, f"{name}-NUM") and NUMBER.sub("", written) != name:
        raise TrainerError(
            "the prompt asks for {written}, but this run's files are called {name}.",
            written=written,
            name=name,
            path="prompt",
            fix="Write {tag} in the prompt.",
            tag=open_tag,
        )
    return Recipe(name, prompt[: own[0].start()] + open_tag + prompt[own[0].end() :])


def _is_own(found: re.Match[str], name: str) -> bool:
    written, weight = found.group(1), found.group(2) or ""
    return written.endswith("-NUM") or "STRENGTH" in weight or NUMBER.sub("", written) == name


def split_tags(prompt: str) -> tuple[str, list[tuple[str, float]]]:
    """The words of a prompt and its networks as (name, weight); `<lora:NAME>` counts 1.

    Raises TrainerError for a weight that is no number, or that differs between text encoder and U-Net.
    """
    loras = [(found.group(1), _weight(found)) for found in TAG.finditer(prompt)]
    return " ".join(TAG.sub(" ", prompt).split()), loras


def _weight(found: re.Match[str]) -> float:
    written = "1" if found.group(2) is None else found.group(2)
    parts = [part.partition("=")[2] or part for part in written.split(":")]
    try:
        weights = {float(part) for part in parts}
    except ValueError:
        weights = set()
    if len(weights) != 1:
        raise TrainerError(
            "the weight in {tag} is not one number.", tag=found.group(0), path="prompt", fix="Write for example <lora:NAME:0.8>."
        )
    return weights.pop()
