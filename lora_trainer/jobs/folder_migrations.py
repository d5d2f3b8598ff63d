"""The version of a run's folder: the documents of an older one are read in today's form; the files themselves stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lora_trainer.messages import Message, say

VERSION = 1
"""Of the form that runs are written in. A folder without a number was made before there were numbers: it counts as 1."""

Content = dict[str, Any]
Step = Callable[[Content], Content]
STEPS: Mapping[int, Mapping[str, Step]] = {}
"""Version -> file name ("manifest.json") -> what brings that document to the next version."""


def version_of(about: Mapping[str, Any]) -> int:
    """The version that a run.json tells."""
    number = about.get("version", 1)
    return number if isinstance(number, int) and not isinstance(number, bool) and number > 0 else 1


def brought(name: str, content: Content, version: int) -> Content:
    """A document of a folder of that version in today's form."""
    for number in range(version, VERSION):
        content = STEPS.get(number, {}).get(name, _as_it_is)(content)
    return content


def note(version: int) -> Message | None:
    """What to tell of a folder of that version; None of today's."""
    if version == VERSION:
        return None
    if version > VERSION:
        return say("A newer version of this trainer made this run: some of it may not be shown.")
    return say("An older version of this trainer made this run: it is shown in today's form.")


def _as_it_is(content: Content) -> Content:
    return content
