"""Output of a verb: results on stdout (with --json a single document), progress and problems on stderr."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable
from typing import Any

from lora_trainer.errors import Problem
from lora_trainer.messages import Message

DONE, FAILED, USAGE_ERROR, STOPPED = 0, 1, 2, 130


class Console:
    """Prints in the reader's language; `as_json`: the result is for a program."""

    def __init__(self, language: str = "en", *, as_json: bool = False) -> None:
        self.language = language
        self.as_json = as_json

    def line(self, text: Message | str = "") -> None:
        """Prints a line of the result; nothing with --json, where the document holds it."""
        if not self.as_json:
            print(self.translate(text))

    def note(self, text: Message | str) -> None:
        """Prints progress on stderr."""
        print(self.translate(text), file=sys.stderr, flush=True)

    def document(self, content: Any) -> None:
        """Prints the JSON document of --json; nothing without it."""
        if self.as_json:
            wide = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
            print(json.dumps(content, ensure_ascii=wide, indent=1, default=str))

    def problems(self, problems: Iterable[Problem]) -> None:
        """Prints each problem with its remedy on stderr, one per line."""
        for problem in problems:
            self.note(problem.text(self.language))

    def translate(self, text: Message | str) -> str:
        """The text in the reader's language."""
        return text.text(self.language) if isinstance(text, Message) else text


def prepare_streams() -> None:
    """Characters that the console cannot encode (a Chinese Windows has gbk) are escaped instead of ending the run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def choose_language(argv: list[str]) -> str:
    """The language of `--lang`, else of the system's locale: zh* is zh_CN, everything else English."""
    language = ""
    for place, word in enumerate(argv):
        if word == "--lang" and place + 1 < len(argv):
            language = argv[place + 1]
        elif word.startswith("--lang="):
            language = word.partition("=")[2]
    if not language:
        language = next((os.environ[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if os.environ.get(name)), "")
    return "zh_CN" if language.lower().startswith("zh") else "en"


def silence_stdout() -> None:
    """After a broken pipe: sends stdout to os.devnull, so that the flush at exit raises no error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
