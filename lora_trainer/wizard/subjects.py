"""What a user may want to teach, and what that asks for (no torch)."""

from __future__ import annotations

from difflib import get_close_matches

import attrs

from lora_trainer.errors import ConfigError, Problem
from lora_trainer.messages import Message, say


@attrs.frozen
class Subject:
    """`exposures`: how often each of 40 pictures is to be seen in all, and for SDXL; `rate`: times the usual learning rate."""

    name: str
    label: Message
    exposures: int
    exposures_sdxl: int
    rank: int
    rate: float = 1.0
    convolutions: bool = False
    """Whether textures belong to it, which convolutions draw."""
    wanted: int = 0
    """Pictures below which the result is known to be weak; 0: even few will do."""

    def on(self, family: str) -> Subject:
        """As a family learns it: SDXL needs to see a picture less often."""
        return attrs.evolve(self, exposures=self.exposures_sdxl) if family == "sdxl" else self


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("person", say("a person"), 100, 80, 32),
        Subject("character", say("a character"), 80, 60, 16),
        Subject("style", say("a style"), 40, 30, 32, rate=0.7, convolutions=True, wanted=30),
        Subject("object", say("an object"), 80, 60, 16),
        Subject("scenery", say("scenery"), 30, 25, 32),
    )
}


def subject_called(name: str) -> Subject:
    """The subject of that name. Raises ConfigError with the nearest one."""
    if name in SUBJECTS:
        return SUBJECTS[name]
    near = (get_close_matches(name.lower(), SUBJECTS, 1) or ["object"])[0]
    values = {"name": name, "known": ", ".join(SUBJECTS), "near": near}
    raise ConfigError(
        [Problem("subject", say("there is no subject {name}; known: {known}.", **values), say("Did you mean {near}?", **values))]
    )
