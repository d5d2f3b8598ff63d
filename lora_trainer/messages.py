"""Messages are data: a template and its values, formatted only where they are shown.

The English template is the key of the translation, so one message serves every language.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import attrs

LOCALE = Path(__file__).parent / "locale"
LANGUAGES = ("en", "zh_CN")


@attrs.frozen
class Message:
    """An English template with `{name}` placeholders, and their values."""

    template: str
    values: Mapping[str, Any] = attrs.field(factory=dict, converter=dict, hash=False)

    def text(self, language: str = "en") -> str:
        """The sentence in `language`; a value that is itself a Message is translated too."""
        template = translate(self.template, language)
        filled = {key: value.text(language) if isinstance(value, Message) else value for key, value in self.values.items()}
        return template.format_map(_PartialValues(filled)) if filled else template.replace("{{", "{").replace("}}", "}")

    def __str__(self) -> str:
        return self.text()

    def to_json(self) -> dict[str, Any]:
        """{"template", "values", "text"}: the tab translates it into the reader's language."""
        values = {key: value.to_json() if isinstance(value, Message) else _plain(value) for key, value in self.values.items()}
        return {"template": self.template, "values": values, "text": self.text()}


class _PartialValues(dict[str, Any]):
    """Leaves a placeholder without a value as it is: a wrong message must never hide the error that it reports."""

    def __missing__(self, key: str) -> str:
        return "{" + key + "}"


def say(template: str, **values: Any) -> Message:
    """A message with this template and these values."""
    return Message(template, values)


def duration(seconds: float) -> Message:
    """Seconds as the tab writes them: "25 s", "6 min", "1 h 20 min"."""
    if seconds < 90:
        return say("{n} s", n=max(0, int(seconds + 0.5)))
    minutes = int(seconds / 60 + 0.5)
    if minutes < 90:
        return say("{n} min", n=minutes)
    hours, rest = divmod(minutes, 60)
    return say("{hours} h {n} min", hours=hours, n=rest) if rest else say("{hours} h", hours=hours)


def translate(template: str, language: str) -> str:
    """The template in `language`, or the English one if there is no translation."""
    return template if language == "en" else translations(language).get(template, template)


@lru_cache(maxsize=8)
def translations(language: str) -> Mapping[str, str]:
    """English template -> translated template, from locale/LANGUAGE.toml and locale/LANGUAGE/*.toml."""
    import tomlkit

    merged: dict[str, str] = {}
    for path in [LOCALE / f"{language}.toml", *sorted((LOCALE / language).glob("*.toml"))]:
        if path.is_file():
            merged.update(tomlkit.parse(path.read_text(encoding="utf-8")).unwrap().get("words", {}))
    return merged


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
