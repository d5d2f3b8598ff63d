"""Kinds of subjects to train, and the settings that suit each (no torch)."""

from __future__ import annotations

from difflib import get_close_matches

import attrs

from lora_trainer.errors import ConfigError, Problem
from lora_trainer.messages import Message, say


@attrs.frozen
class Subject:
    """`exposures`: how often each of 40 pictures is trained on (`exposures_sdxl` for SDXL); `rate`: factor on the usual learning rate."""

    name: str
    label: Message
    exposures: int
    exposures_sdxl: int
    rank: int
    rate: float = 1.0
    convolutions: bool = False
    """Whether it consists of textures, which convolutions draw."""
    min_pictures: int = 0
    """Pictures below which the result is known to be weak; 0: even few will do."""

    def for_family(self, family: str) -> Subject:
        """The subject with the exposures of a model family: SDXL needs fewer."""
        return attrs.evolve(self, exposures=self.exposures_sdxl) if family == "sdxl" else self


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("person", say("a person"), 100, 80, 32),
        Subject("character", say("a character"), 80, 60, 16),
        Subject("style", say("a style"), 40, 30, 32, rate=0.7, convolutions=True, min_pictures=30),
        Subject("object", say("an object"), 80, 60, 16),
        Subject("scenery", say("scenery"), 30, 25, 32),
    )
}


def find_subject(name: str) -> Subject:
    """The subject of that name. Raises ConfigError that suggests the nearest one."""
    if name in SUBJECTS:
        return SUBJECTS[name]
    nearest = (get_close_matches(name.lower(), SUBJECTS, 1) or ["object"])[0]
    values = {"name": name, "known": ", ".join(SUBJECTS), "near": nearest}
    raise ConfigError(
        [Problem("subject", say("there is no subject {name}; known: {known}.", **values), say("Did you mean {near}?", **values))]
    )
