"""Format versions of run folders: JSON files of older ones are migrated when read; the files themselves are not changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lora_trainer.messages import Message, say

VERSION = 1
"""The current format. A folder without a version was made before versions existed: it counts as 1."""

Content = dict[str, Any]
Migration = Callable[[Content], Content]
MIGRATIONS: Mapping[int, Mapping[str, Migration]] = {}
"""Version -> file name ("manifest.json") -> migration of its content to the next version."""


def version_of(info: Mapping[str, Any]) -> int:
    """The version in the content of a run.json."""
    number = info.get("version", 1)
    return number if isinstance(number, int) and not isinstance(number, bool) and number > 0 else 1


def migrate(name: str, content: Content, version: int) -> Content:
    """The content of a file from a folder of that version, in the current format."""
    for number in range(version, VERSION):
        content = MIGRATIONS.get(number, {}).get(name, _unchanged)(content)
    return content


def version_note(version: int) -> Message | None:
    """The note for a folder of that version; None for the current one."""
    if version == VERSION:
        return None
    if version > VERSION:
        return say("A newer version of this trainer made this run: some of it may not be shown.")
    return say("An older version of this trainer made this run: it is shown in today's form.")


def _unchanged(content: Content) -> Content:
    return content
