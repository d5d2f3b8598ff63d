"""A suggestion for a folder of pictures, and its worth."""

from __future__ import annotations

from typing import Any

import attrs

from lora_trainer.messages import Message


@attrs.frozen
class Suggestion:
    """`worth` 0..100: importance by kind and number of pictures; `pictures`: their keys."""

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
