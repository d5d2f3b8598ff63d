"""Arguments as sd-scripts writes them, weight_decay=0.01 betas=.9,.999, read as plain values: nothing is ever run (no torch)."""

from __future__ import annotations

import ast
import re
from typing import Any

ARGUMENT = re.compile(r"[A-Za-z_]\w*=.+", re.DOTALL)
_WORD = re.compile(r"""(?:[^\s"'()\[\]{}]|"[^"]*"|'[^']*'|\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}|[\[\](){}"'])+""")
_WORDS = {"true": True, "false": False, "none": None}


def words(text: str) -> list[str]:
    """The arguments of a line; spaces within quotes and brackets do not part them, and quotes around a whole one are taken off."""
    return [_bare(word) for word in _WORD.findall(text)]


def values(text: str) -> dict[str, Any]:
    """Name -> value: a literal of Python (numbers, text, True, None, tuples, lists), else the text itself."""
    found: dict[str, Any] = {}
    for word in words(text):
        key, _, value = word.partition("=")
        found[key] = _value(value)
    return found


def _bare(word: str) -> str:
    quoted = len(word) > 1 and word[0] == word[-1] and word[0] in "\"'"
    return word[1:-1] if quoted else word


def _value(text: str) -> Any:
    if text.strip().lower() in _WORDS:
        return _WORDS[text.strip().lower()]
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
