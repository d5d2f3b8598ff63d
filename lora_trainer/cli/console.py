"""What a verb prints: results on stdout (with --json one document and nothing else there), progress and problems on stderr."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable
from typing import Any

from lora_trainer.errors import Problem
from lora_trainer.messages import Message

DONE, FAILED, WRONG, STOPPED = 0, 1, 2, 130


class Console:
    """The reader's language, and whether the result is for a program."""

    def __init__(self, language: str = "en", *, as_json: bool = False) -> None:
        self.language = language
        self.as_json = as_json

    def line(self, text: Message | str = "") -> None:
        """A line of the result; nothing with --json, where the document holds it."""
        if not self.as_json:
            print(self.worded(text))

    def note(self, text: Message | str) -> None:
        """Progress, on stderr."""
        print(self.worded(text), file=sys.stderr, flush=True)

    def document(self, content: Any) -> None:
        """The one JSON document of --json."""
        if self.as_json:
            wide = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
            print(json.dumps(content, ensure_ascii=wide, indent=1, default=str))

    def problems(self, problems: Iterable[Problem]) -> None:
        """Each problem with its remedy, a line each, on stderr."""
        for problem in problems:
            self.note(problem.text(self.language))

    def worded(self, text: Message | str) -> str:
        """In the reader's language."""
        return text.text(self.language) if isinstance(text, Message) else text


def prepare_streams() -> None:
    """No console may end a run by not knowing a letter (a Chinese Windows has gbk)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def language_of(words: list[str]) -> str:
    """`--lang` among the words of the command line, else as the system says: zh* is zh_CN, everything else English."""
    given = ""
    for place, word in enumerate(words):
        if word == "--lang" and place + 1 < len(words):
            given = words[place + 1]
        elif word.startswith("--lang="):
            given = word.partition("=")[2]
    if not given:
        given = next((os.environ[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if os.environ.get(name)), "")
    return "zh_CN" if given.lower().startswith("zh") else "en"


def quiet_pipe() -> None:
    """Whoever read our output has gone: nothing more is written, and nobody is told at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
