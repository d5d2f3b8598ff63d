"""One thing to do about a folder of pictures, and how much it is worth."""

from __future__ import annotations

from typing import Any

import attrs

from lora_trainer.messages import Message


@attrs.frozen
class Suggestion:
    """`worth` 0..100: how much it matters, by its kind and by how many pictures it concerns; `pictures`: their keys."""

    worth: float
    message: Message
    fix: Message
    pictures: tuple[str, ...] = ()

    def to_json(self, language: str = "en") -> dict[str, Any]:
        """{"worth", "message", "fix", "pictures"} in the reader's language."""
        return {
            "worth": round(self.worth, 1),
            "message": self.message.text(language),
            "fix": self.fix.text(language),
            "pictures": list(self.pictures),
        }
