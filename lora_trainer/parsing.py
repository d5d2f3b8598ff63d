"""JSON and TOML from outside: whatever is wrong with a text is a ValueError, and no text takes minutes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from lora_trainer.files import read_regular

MAX_DEPTH = 50
"""Levels of objects and lists. No settings need more than 5; Python's own limit is reached at a few hundred."""
MAX_FILE_BYTES = 4 << 20
MAX_TOML_CHARACTERS = 1_000_000
MAX_DOTTED_KEYS, MAX_SLOW_CHARACTERS = 200, 200_000
"""Limits where Python has no tomllib: tomlkit takes seconds for more characters, minutes for more dotted keys."""
_DOTTED_KEY = re.compile(r"^[ \t]*(?:\[[^\]\n.]*\.|[\w\"'-]+[ \t]*\.)", re.MULTILINE)
_LONG_KEY = re.compile(r"(?<![\w\"'-])(?:[\w\"'-]+[ \t]*\.[ \t]*){50}")
_COMMENT_LINE = re.compile(r"^[ \t]*#.*", re.MULTILINE)
_DUPLICATE = re.compile(r'Key "([^"\n]+)" already exists')
_PLACE = re.compile(r"\.? \(?at (?:line (\d+)|end of|start of).*$", re.DOTALL)


class TooDeep(ValueError):
    """Objects or lists inside each other beyond MAX_DEPTH."""

    def __init__(self) -> None:
        super().__init__(f"it is nested too deeply: more than {MAX_DEPTH} levels")


class TomlError(ValueError):
    """What is wrong with a TOML text, and its line (0 where the parser does not name it)."""

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(reason)
        self.line = line


def parse_json(text: str | bytes) -> Any:
    """The values of a JSON text. Raises ValueError."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise TooDeep from error
    check_depth(value)
    return value


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of at most MAX_FILE_BYTES; {} where it is missing or invalid."""
    try:
        value = parse_json(read_regular(path, MAX_FILE_BYTES).decode("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def parse_toml(text: str) -> dict[str, Any]:
    """The plain values of a TOML text. Raises TomlError, TooDeep."""
    if len(text) > MAX_TOML_CHARACTERS:
        raise TomlError(f"it has more than {MAX_TOML_CHARACTERS} characters")
    if _LONG_KEY.search(text):
        raise TooDeep
    try:
        values = _with_tomllib(text) if sys.version_info >= (3, 11) else _with_tomlkit(text)
    except RecursionError as error:
        raise TooDeep from error
    check_depth(values)
    return values


def _with_tomllib(text: str) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise _toml_error(str(error), text) from error


def _with_tomlkit(text: str) -> dict[str, Any]:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    if '"""' not in text and "'''" not in text:
        text = _COMMENT_LINE.sub("", text)
    dotted = len(_DOTTED_KEY.findall(text))
    if len(text) > MAX_SLOW_CHARACTERS or dotted > MAX_DOTTED_KEYS:
        raise TomlError(f"it has more than {MAX_SLOW_CHARACTERS} characters, or more than {MAX_DOTTED_KEYS} keys with dots")
    try:
        values: dict[str, Any] = tomlkit.parse(text).unwrap()
    except (TOMLKitError, ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        raise _toml_error(str(error) or type(error).__name__, text) from error
    return values


def _toml_error(message: str, text: str) -> TomlError:
    """The error with its line taken out of the parser's message."""
    place = _PLACE.search(message)
    line = int(place[1]) if place and place[1] else len(text.splitlines()) if place else 0
    return TomlError(_PLACE.sub("", message), _line_of_duplicate(message, text, line) or line)


def _line_of_duplicate(message: str, text: str, last: int) -> int:
    """The last line up to `last` that has the key which, as tomlkit says at its end, is there already; 0 for other errors."""
    named = _DUPLICATE.search(message)
    if not named:
        return 0
    key = re.compile(rf"""[ \t]*\[{{0,2}}[ \t]*["']?{re.escape(named[1])}["']?[ \t]*[\]=.]""")
    return max((number for number, line in enumerate(text.splitlines()[:last], start=1) if key.match(line)), default=0)


def check_depth(value: Any) -> None:
    """Raises TooDeep where objects and lists are nested more than MAX_DEPTH deep."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [part for item in level for part in _parts(item) if isinstance(part, (dict, list))]
        if not level:
            return
    raise TooDeep


def _parts(item: Any) -> Any:
    if isinstance(item, dict):
        return item.values()
    return item if isinstance(item, list) else ()
