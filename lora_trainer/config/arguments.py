"""Arguments as sd-scripts writes them, weight_decay=0.01 betas=.9,.999, parsed as literals: nothing is ever evaluated (no torch)."""

from __future__ import annotations

import ast
import re
from typing import Any

ARGUMENT = re.compile(r"[A-Za-z_]\w*=.+", re.DOTALL)
_WORD = re.compile(r"""(?:[^\s"'()\[\]{}]|"[^"]*"|'[^']*'|\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}|[\[\](){}"'])+""")
_WORDS = {"true": True, "false": False, "none": None}


def split_args(text: str) -> list[str]:
    """The arguments of a line; spaces within quotes and brackets do not split them, and quotes around a whole argument are removed."""
    return [_unquote(word) for word in _WORD.findall(text)]


def parse_args(text: str) -> dict[str, Any]:
    """Name -> value: a Python literal (numbers, text, True, None, tuples, lists), else the text itself."""
    parsed: dict[str, Any] = {}
    for word in split_args(text):
        key, _, value = word.partition("=")
        parsed[key] = _parse_value(value)
    return parsed


def _unquote(word: str) -> str:
    is_quoted = len(word) > 1 and word[0] == word[-1] and word[0] in "\"'"
    return word[1:-1] if is_quoted else word


def _parse_value(text: str) -> Any:
    if text.strip().lower() in _WORDS:
        return _WORDS[text.strip().lower()]
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
