"""Messages are data: a template and its values, put together only where somebody reads them.

The English template is the key of the translation, so one message holds every language.
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
    """An English template with `{name}` places, and the values that fill them."""

    template: str
    values: Mapping[str, Any] = attrs.field(factory=dict, converter=dict, hash=False)

    def text(self, language: str = "en") -> str:
        """The sentence in `language`; a value that is a Message itself is put into words too."""
        template = translate(self.template, language)
        filled = {key: value.text(language) if isinstance(value, Message) else value for key, value in self.values.items()}
        return template.format_map(_Given(filled)) if filled else template.replace("{{", "{").replace("}}", "}")

    def __str__(self) -> str:
        return self.text()

    def to_json(self) -> dict[str, Any]:
        """{"template", "values", "text"}: the tab words it in the reader's language."""
        values = {key: value.to_json() if isinstance(value, Message) else _plain(value) for key, value in self.values.items()}
        return {"template": self.template, "values": values, "text": self.text()}


class _Given(dict[str, Any]):
    """Leaves a place without a value as it is: a wrong message must never hide the error it tells of."""

    def __missing__(self, key: str) -> str:
        return "{" + key + "}"


def say(template: str, **values: Any) -> Message:
    """A message of this template and these values."""
    return Message(template, values)


def translate(template: str, language: str) -> str:
    """The template in `language`, or the English one where no translation is known."""
    return template if language == "en" else words(language).get(template, template)


@lru_cache(maxsize=8)
def words(language: str) -> Mapping[str, str]:
    """English template -> translated template, from locale/LANGUAGE.toml and locale/LANGUAGE/*.toml."""
    import tomlkit

    found: dict[str, str] = {}
    for path in [LOCALE / f"{language}.toml", *sorted((LOCALE / language).glob("*.toml"))]:
        if path.is_file():
            found.update(tomlkit.parse(path.read_text(encoding="utf-8")).unwrap().get("words", {}))
    return found


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
