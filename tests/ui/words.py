"""The English templates of the tab's JavaScript, read out of its source."""

from __future__ import annotations

import json
import re
from pathlib import Path

JAVASCRIPT = Path(__file__).parents[2] / "javascript"
TEXT = r'"((?:[^"\\]|\\.)*)"'
ONE = re.compile(rf"\b(?:t|rich)\(\s*{TEXT}")
TWO = re.compile(rf"\btn\([^\"]*?{TEXT},\s*{TEXT}")


def templates() -> dict[str, str]:
    """Template -> the file that shows it."""
    found: dict[str, str] = {}
    for file in sorted(JAVASCRIPT.glob("*.js")):
        text = file.read_text(encoding="utf-8")
        for match in [*ONE.finditer(text), *TWO.finditer(text)]:
            for template in match.groups():
                found.setdefault(json.loads(f'"{template}"'), file.name)
    return found
