"""The errors that a user can act on: each says what is wrong, where, and the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from lora_trainer.messages import Message


@attrs.frozen
class Problem:
    """One thing that is wrong: `path` is the config field ("network.dim") or the file concerned."""

    path: str
    message: Message
    fix: Message

    def text(self, language: str = "en") -> str:
        """The problem and its remedy on one line."""
        where = f"{self.path}: " if self.path else ""
        return f"{where}{self.message.text(language)} {self.fix.text(language)}".rstrip()

    def to_json(self, language: str = "en") -> dict[str, str]:
        """{"path", "message", "fix"} in the reader's language."""
        return {"path": self.path, "message": self.message.text(language), "fix": self.fix.text(language)}


class TrainerError(Exception):
    """Base class: a message template with its values, and a remedy.

    `raise DatasetError("{folder} holds no pictures", folder=folder, fix="Choose the folder that holds the pictures.")`
    `path` is the config field or file; `path` and the values fill both the message and the fix.
    """

    def __init__(self, template: str, /, *, fix: str = "", path: str = "", **values: Any) -> None:
        values = {"path": path, **values} if path else values
        self.problems: tuple[Problem, ...] = (Problem(str(path), Message(template, values), Message(fix, values)),)
        super().__init__(self.problems[0].text())

    def text(self, language: str = "en") -> str:
        """All problems, one per line."""
        return "\n".join(problem.text(language) for problem in self.problems)

    def __str__(self) -> str:
        return self.text()


class ConfigError(TrainerError):
    """Everything that is wrong with a config, at once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        problems = tuple(problems)
        first = problems[0]
        values = {key: value for key, value in first.message.values.items() if key != "path"}
        super().__init__(first.message.template, fix=first.fix.template, path=first.path, **values)
        self.problems = problems


class NothingToImport(ConfigError):
    """A file that was read, and holds no settings that can be taken."""


class DatasetError(TrainerError):
    """Pictures, captions or folders that cannot be trained on."""


class ModelError(TrainerError):
    """A model file that is missing, broken, or of a family that cannot be trained."""


class HostBusy(TrainerError):
    """The host or another run holds a resource that this needs."""


class DiskFull(TrainerError):
    """A file does not fit on its disk. Nothing was changed: it can be written again once there is room."""


class MissingPackage(TrainerError):
    """A package that is not installed; the fix is the command that installs it."""


class OutOfMemory(TrainerError):
    """The device ran out of memory; the fix is the one setting to change."""


class TrainingError(TrainerError):
    """Training cannot continue: a loss that is not finite, a module that does not learn, a file that was not written."""
