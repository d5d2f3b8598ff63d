"""LoRA tags in prompts; in `<lora:NAME-NUM:STRENGTH>` NUM is a placeholder for a file's number, STRENGTH for a weight."""

from __future__ import annotations

import re

import attrs

from lora_trainer.errors import TrainerError
from lora_trainer.train.previews.prompt_networks import TAG

NUMBER = re.compile(r"-(?:\d{6}|step\d{8})$")


@attrs.frozen
class PromptTemplate:
    """A grid's prompt, with the tag of the run NAME as `<lora:NAME-NUM:STRENGTH>`; sd-scripts' `--w 64 ...` may follow."""

    name: str
    prompt: str

    @property
    def tag(self) -> str:
        """The tag with both placeholders."""
        return f"<lora:{self.name}-NUM:STRENGTH>"

    def fill(self, stem: str, weight: float) -> str:
        """The prompt for the file STEM.safetensors at a weight."""
        return self.prompt.replace(self.tag, f"<lora:{stem}:{weight:g}>")

    def without_network(self) -> str:
        """The prompt without this run's network."""
        return " ".join(self.prompt.replace(self.tag, " ").split())


def parse_template(prompt: str, name: str) -> PromptTemplate:
    """The template of a user's prompt: without a tag for this run, one is put in front.

    A tag with NUM or STRENGTH, or one that names a file of this run, becomes the placeholder tag; other tags stay. Raises
    TrainerError when NUM belongs to another name, or when there are two tags for this run.
    """
    open_tag = f"<lora:{name}-NUM:STRENGTH>"
    own = [match for match in TAG.finditer(prompt) if _is_own(match, name)]
    if not own:
        return PromptTemplate(name, f"{open_tag} {prompt.strip()}".strip())
    if len(own) > 1:
        raise TrainerError(
            "the prompt holds this run's LoRA {count} times.",
            count=len(own),
            path="prompt",
            fix="Write {tag} once.",
            tag=open_tag,
        )
    tag_name = own[0].group(1)
    if tag_name not in (name, f"{name}-NUM") and NUMBER.sub("", tag_name) != name:
        raise TrainerError(
            "the prompt asks for {written}, but this run's files are called {name}.",
            written=tag_name,
            name=name,
            path="prompt",
            fix="Write {tag} in the prompt.",
            tag=open_tag,
        )
    return PromptTemplate(name, prompt[: own[0].start()] + open_tag + prompt[own[0].end() :])


def _is_own(match: re.Match[str], name: str) -> bool:
    tag_name, weight = match.group(1), match.group(2) or ""
    return tag_name.endswith("-NUM") or "STRENGTH" in weight or NUMBER.sub("", tag_name) == name
